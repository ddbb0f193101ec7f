"""What a method trains, adds and stores on a model, and what cannot work there: all from sizes, without the model."""

from __future__ import annotations

from typing import Any, Self

from peftlab.methods.candidates import describe_candidates, describe_tied
from peftlab.methods.new_tokens import row_sites
from peftlab.methods.traits import MethodTraits, Sizes
from peftlab.patterns import matching, unmatched
from peftlab.shapes import ModelShape, ParameterSite

Problems = list[tuple[str, str]]
TRAINED_BYTES = 4


class CountedMethod(MethodTraits):
    """A method as far as sizes go: its checks and its parameters."""

    def check_settings(self) -> Problems:
        """Return (field, message) for settings that contradict one another, whatever the model. Needs no torch."""
        empty = [
            (field, "an empty pattern; remove it or name something")
            for field in self.pattern_fields
            if isinstance(patterns := getattr(self, field), tuple) and any(not one.strip() for one in patterns)
        ]
        both = [
            ("freeze", f"{pattern!r} is also in unfreeze; keep it in one of them")
            for pattern in self.unfreeze
            if pattern in self.freeze
        ]
        return empty + both

    def check_own(self, shape: ModelShape) -> Problems:
        """Return (field, message) for what this method cannot do on a model of this shape."""
        return []

    def notes(self, shape: ModelShape) -> list[str]:
        """Return what a user must know of this method on a model of this shape, a line each: what it leaves out."""
        return []

    def check(self, shape: ModelShape) -> Problems:
        """Return (field, message) for everything that cannot work on a model of this shape."""
        own = [*self.check_settings(), *self.check_own(shape), *self._check_new_tokens(shape)]
        return own or self._check_patterns(shape)

    def _check_new_tokens(self, shape: ModelShape) -> Problems:
        rows = self.new_rows(shape)
        if rows and not self.stores_new_tokens:
            return [("type", f"{self.title} cannot train rows of new tokens alone: {self.why_no_new_tokens}")]
        used = {name for table in (shape.new_tokens.tables if shape.new_tokens else ()) for name in table}
        biased = [site.name for site in shape.linears if site.bias and site.name in used]
        if rows and biased:
            return [("type", f"new tokens: {biased[0]} has a bias, which PEFT's rows of new tokens would leave out")]
        return []

    def _check_patterns(self, shape: ModelShape) -> Problems:
        names = [site.name for site in (*shape.parameters, *self.all_added(shape))]
        problems = [
            (field, f"{one!r} matches no parameter; {describe_tied(one, shape)}{describe_candidates(one, names)}")
            for field, patterns in (("unfreeze", self.unfreeze), ("freeze", self.freeze))
            for one in unmatched(patterns, names)
        ]
        old = [name for name in names if name not in shape.fresh]
        for pattern in unmatched(self.freeze, old) if not problems else ():
            problems.append(("freeze", f"{pattern!r} matches only the new head, which always trains"))
        if not problems and not self.trainable_sites(shape):
            problems.append(("freeze" if self.freeze else "type", "nothing would train"))
        return problems

    def trained_base(self, shape: ModelShape) -> set[str]:
        """Return the names of the base parameters that this method itself trains."""
        return set()

    def added_parameters(self, shape: ModelShape) -> tuple[ParameterSite, ...]:
        """Return the parameters that this method adds to a model of this shape: canonical name, size, kind, layer."""
        return ()

    def new_rows(self, shape: ModelShape) -> tuple[ParameterSite, ...]:
        """Return the rows of new tokens that train beside frozen embeddings; none of one that trains as a whole."""
        names = shape.by_name
        whole = self.trained_base(shape) | shape.fresh | set(matching(self.unfreeze, names))
        return row_sites(shape, whole - (set(matching(self.freeze, names)) - shape.fresh))

    def all_added(self, shape: ModelShape) -> tuple[ParameterSite, ...]:
        """Return everything that is added to a model of this shape: by the method, and for new tokens."""
        return (*self.added_parameters(shape), *self.new_rows(shape))

    def trainable_sites(self, shape: ModelShape) -> list[ParameterSite]:
        """Return every parameter that trains, from sizes alone, after `unfreeze` and `freeze`.

        Fresh parameters always train: frozen, they would stay random.
        """
        added = self.all_added(shape)
        sites = {site.name: site for site in (*shape.parameters, *added)}
        wanted = self.trained_base(shape) | shape.fresh | {site.name for site in added}
        wanted |= set(matching(self.unfreeze, sites))
        wanted -= set(matching(self.freeze, sites)) - shape.fresh
        return [site for name, site in sites.items() if name in wanted]

    def count_trainable(self, shape: ModelShape) -> int:
        """Return the number of trainable parameters on a model of this shape, without building it."""
        return sum(site.count for site in self.trainable_sites(shape))

    def sizes(self, shape: ModelShape) -> Sizes:
        """Return how small and how large this method can be on a model of this shape."""
        raise NotImplementedError

    def resized(self, field: str, value: Any) -> Self:
        """Return this method in one of its `sizes`, everything else that it does unchanged."""
        return self.model_copy(update={field: value})

    def stored_sites(self, shape: ModelShape) -> list[ParameterSite]:
        """Return every parameter that a saved copy contains, from sizes alone: what trained or was added."""
        saved = self.without_training_parts()
        sites = {site.name: site for site in (*saved.trainable_sites(shape), *saved.all_added(shape))}
        return list(sites.values())

    def count_stored_bytes(self, shape: ModelShape, frozen_bytes: int = 4) -> int:
        """Return the bytes of a saved copy's tensors: four a number that trained or was added, else `frozen_bytes`."""
        saved = self.without_training_parts()
        own = {site.name for site in (*saved.trainable_sites(shape), *saved.all_added(shape))}
        width = {True: TRAINED_BYTES, False: frozen_bytes}
        return sum(site.count * width[site.name in own] for site in self.stored_sites(shape))

    def without_training_parts(self) -> Self:
        """Return this method as a saved copy of it is: without what only training needs."""
        return self
