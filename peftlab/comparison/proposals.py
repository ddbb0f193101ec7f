"""Proposals: what optuna proposes for a space, and the trials of a search that have ended, kept in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from peftlab.comparison.points import Point
from peftlab.errors import MissingRequirementError, StorageError
from peftlab.recipe.space import Dimension, Range

if TYPE_CHECKING:
    import optuna

DIGITS = 3  # of a number that is tried


def require_optuna() -> None:
    """Raise MissingRequirementError where a search cannot be made."""
    try:
        import optuna
    except ImportError:
        raise MissingRequirementError("a search needs the package optuna: pip install 'peftlab[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass
class Proposals:
    """The trials of the search `name` in the database `storage`, and what follows from them.

    `trials` are those that have ended, in their order. The first `drawn` are drawn at random, where nobody says what to
    try, before the others follow what was good.
    """

    name: str
    storage: Path
    space: Mapping[str, Dimension]
    higher_is_better: bool
    pruner: optuna.pruners.BasePruner
    drawn: int
    trials: list[optuna.trial.FrozenTrial] = field(init=False)

    def __post_init__(self) -> None:
        self._kept = self._open()
        self.trials = self._kept.get_trials(deepcopy=False)

    @property
    def _direction(self) -> Literal["minimize", "maximize"]:
        return "maximize" if self.higher_is_better else "minimize"

    def _open(self) -> optuna.Study:
        import optuna

        try:
            return optuna.create_study(
                storage=f"sqlite:///{self.storage.resolve()}", study_name=self.name, load_if_exists=True,
                direction=self._direction,
            )  # fmt: skip
        except Exception as error:  # whatever a damaged database raises
            line = " ".join(str(error).split())[:200]
            raise StorageError(f"{self.storage}: cannot be read: {line}; remove it to search again") from None

    def ask(self, wanted: Point | None = None) -> tuple[optuna.Trial, Point]:
        """Return a trial and its point: the one that is wanted, else one that follows from the trials.

        The trial is in memory until `keep` adds it to those that have ended.
        """
        import optuna

        study = optuna.create_study(
            study_name=self.name, sampler=self._sampler(), pruner=self.pruner, direction=self._direction
        )
        study.add_trials(self.trials)
        if wanted is not None:
            study.enqueue_trial(self._labels_of(wanted))
        trial = study.ask(self._distributions())
        return trial, wanted or Point.of({key: _value(self.space[key], drawn) for key, drawn in trial.params.items()})

    def _sampler(self) -> optuna.samplers.BaseSampler:
        """Return a sampler whose draws depend on the search and the trial's number alone."""
        import optuna

        seed = int.from_bytes(sha256(f"{self.name}\0{len(self.trials)}".encode()).digest()[:4], "big")
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.drawn)

    def _distributions(self) -> dict[str, Any]:
        return {key: _distribution(dimension) for key, dimension in self.space.items()}

    def _labels_of(self, point: Point) -> dict[str, Any]:
        """Return a point as optuna keeps it: choices by their JSON."""
        ranges = {key for key, dimension in self.space.items() if isinstance(dimension, Range)}
        return {key: value if key in ranges else json.dumps(value) for key, value in point.settings.items()}

    def keep(
        self,
        trial: optuna.Trial,
        point: Point,
        state: optuna.trial.TrialState,
        value: float | None,
        attributes: Mapping[str, Any],
    ) -> None:
        """Add a trial to those that have ended, with what it reported while it ran."""
        import optuna

        asked = trial.study.get_trials(deepcopy=False)[-1]
        self._kept.add_trial(optuna.trial.create_trial(
            state=state, value=value, params=self._labels_of(point), distributions=self._distributions(),
            user_attrs=dict(attributes), system_attrs=asked.system_attrs,
            intermediate_values=asked.intermediate_values,
        ))  # fmt: skip
        self.trials = self._kept.get_trials(deepcopy=False)


def _distribution(dimension: Dimension) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(dimension, Range):
        return CategoricalDistribution([json.dumps(value) for value in dimension])
    if isinstance(dimension.low, int) and isinstance(dimension.high, int):
        return IntDistribution(dimension.low, dimension.high, log=dimension.log)
    return FloatDistribution(float(dimension.low), float(dimension.high), log=dimension.log)


def _value(dimension: Dimension, drawn: Any) -> Any:
    """Return what is tried: numbers rounded to what people read, choices as they were written."""
    if not isinstance(dimension, Range):
        return json.loads(drawn)
    if isinstance(drawn, int):
        return drawn
    return min(max(float(f"{drawn:.{DIGITS}g}"), float(dimension.low)), float(dimension.high))
