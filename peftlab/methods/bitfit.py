"""BitFit (https://arxiv.org/abs/2106.10199): h = W·x + b. Trains b, every bias or the paper's subset."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from peftlab.family_traits import learns
from peftlab.methods.base import Method, Problems, Sizes, note_idle
from peftlab.shapes import LinearSite, ModelShape, ParameterSite

if TYPE_CHECKING:
    from torch import Tensor, nn

SUBSET_ROLES = ("query", "query-key-value", "feed-forward-input")


class BitFit(Method):
    """Bias-term fine-tuning: biases of projections, of norms and of the head.

    The subset is the paper's b_q and b_m2. With m1 being the attention's output, m2 is the projection that
    widens the hidden state (768 → 3072), which alone agrees with its 0.04 % of BERT-base. Where query, key
    and value are one projection (GPT-2, GPT-NeoX) their bias is one tensor, and all of it trains.
    """

    title: ClassVar[str] = "BitFit"
    mergeable: ClassVar[bool] = True

    type: Literal["bitfit"] = "bitfit"
    terms: Literal["all", "subset"] = "all"
    """All biases, or the paper's subset: the query's and the second feed-forward's (the one that widens)."""
    norms: bool = False
    """Train the normalisation layers too, scales and biases."""
    add_missing: bool = False
    """Give linear layers without a bias a zero one to train."""

    def check_own(self, shape: ModelShape) -> Problems:
        if self._biases(shape) - shape.fresh or self.added_parameters(shape):
            return []
        which = "biases" if self.terms == "all" else "query or feed-forward biases"
        ways = "terms: all, add_missing: true" if self.terms == "subset" else "add_missing: true"
        return [
            ("terms", f"this {shape.model_type} model has no {which} to train; set {ways}, or use lora or adapters")
        ]

    def trained_base(self, shape: ModelShape) -> set[str]:
        norms = {site.name for site in shape.parameters if self.norms and site.kind == "norm"}
        return self._biases(shape) | norms - shape.idle_parameters

    def notes(self, shape: ModelShape) -> list[str]:
        return [*super().notes(shape), *note_idle(shape)]

    def added_parameters(self, shape: ModelShape) -> tuple[ParameterSite, ...]:
        if not self.add_missing:
            return ()
        return tuple(
            ParameterSite(f"{site.name}.bias", (site.n_out,), "bias", site.layer)
            for site in self._projections(shape)
            if not site.bias
        )

    def sizes(self, shape: ModelShape) -> Sizes:
        terms = [terms for terms in ("subset", "all") if not self.resized("terms", terms).check_own(shape)]
        return Sizes("terms", terms, graded=False)

    def _projections(self, shape: ModelShape) -> list[LinearSite]:
        roles = SUBSET_ROLES if self.terms == "subset" else None
        return [
            site
            for site in shape.linears
            if site.role != "head"
            and (roles is None or site.role in roles)
            and f"{site.name}.weight" not in shape.idle_parameters
            and learns(site.name)
        ]

    def _biases(self, shape: ModelShape) -> set[str]:
        biases = {site.name for site in shape.parameters if site.name.endswith("bias") and learns(site.name)}
        biases -= shape.idle_parameters
        if self.terms == "all":
            return biases
        return biases & {f"{site.name}.bias" for site in self._projections(shape)}

    def stored_sites(self, shape: ModelShape) -> list[ParameterSite]:
        return self.trainable_sites(shape)

    def insert(self, model: nn.Module, shape: ModelShape) -> nn.Module:
        import torch

        for site in self.added_parameters(shape):
            projection = model.get_submodule(site.name.removesuffix(".bias"))
            device = next(projection.parameters()).device
            projection.bias = torch.nn.Parameter(torch.zeros(site.shape, device=device))
        return model

    def stored_tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """Return what trains: an added bias that stays frozen is still zero."""
        from peftlab.parameters.trainable import trainable_parameters

        return dict(trainable_parameters(model))
