"""The record of a run: its result, its directory, its notes, seconds and phases."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from peftlab.memory.measure import MemoryMeter
from peftlab.quantities import format_seconds
from peftlab.recipe.dump import dump_recipe
from peftlab.recipe.schema import Recipe
from peftlab.reports import RunResult, SplitReport
from peftlab.runs.digests import KEPT, LAST, WEIGHTS, read_digests, write_digests
from peftlab.runs.directory import RunDirectory
from peftlab.runs.environment import describe_environment
from peftlab.runs.launch import Launch
from peftlab.runs.phases import FIRST_STEP, PHASES, PROCESSOR
from peftlab.runs.watch import Watch
from peftlab.secrets import mask_secrets
from peftlab.training.recorder import Display
from peftlab.world.base import World


class RunDisplay(Display, Protocol):
    """What a person sees of a run."""

    def note(self, text: str) -> None: ...

    def close(self) -> None: ...


class RunRecord:
    """What happened in a run, written by the main process. Every stage adds its part."""

    def __init__(
        self,
        recipe: Recipe,
        name: str,
        world: World,
        directory: RunDirectory,
        display: RunDisplay,
        launch: Launch | None = None,
    ):
        self.recipe, self.name, self.world = recipe, name, world
        self.launch = launch or Launch(1, {})
        self.directory, self.display = directory, display
        self.meter = MemoryMeter(world.device)
        self.result = RunResult(
            status="running",
            name=name,
            recipe=recipe.model_dump(mode="json"),
            environment=describe_environment(world),
        )
        self.watch = Watch(recipe, world.device, self.result.memory)
        # Waits for what another thread is writing: a process that is ended must not lose a checkpoint.
        self.settle: Callable[[], None] = lambda: None
        self.lost: list[str] = []  # what earlier attempts logged and cannot be made again
        self._opened = time.perf_counter()
        self._started = self._used = 0.0
        self._phase: str | None = None

    def note(self, line: str) -> None:
        """Show a line, and keep it in the record, once."""
        line = mask_secrets(line)
        self.display.note(line)
        if line not in self.result.notes:
            self.result.notes.append(line)

    @contextlib.contextmanager
    def in_phase(self, phase: str) -> Iterator[None]:
        """Add the seconds and the peak memory of what runs inside, and write the record at its end."""
        self.watch.phase = self._phase = phase
        self._started, self._used = time.perf_counter(), time.process_time()
        try:
            with self.meter.phase(phase):
                yield
                self.world.synchronize()
        finally:
            self._add_running_seconds()
            self._phase = None
        self.write()

    def _add_running_seconds(self) -> None:
        """Add the seconds of the present phase so far, so that a record of a killed run has them too."""
        now, used = time.perf_counter(), time.process_time()
        if self._phase is not None:
            self.add_seconds(self._phase, now - self._started)
            self.add_seconds(PROCESSOR, used - self._used)
        self._started, self._used = now, used

    def add_seconds(self, name: str, seconds: float) -> None:
        """Add to the result's seconds of `name`, a phase or a part of one."""
        self.result.seconds[name] = self.result.seconds.get(name, 0.0) + seconds

    @property
    def kept_step(self) -> int:
        """The step whose weights the run has."""
        saved = self.result.saved_step
        return self.result.progress.step if saved is None else saved

    def note_first_step(self) -> None:
        """Add the seconds from the start of this run to the end of its first step."""
        seconds = time.perf_counter() - self._opened
        self.result.seconds[FIRST_STEP] = seconds
        self.display.note(f"first step done after {format_seconds(seconds)} s")

    def split(self, recipe: Recipe) -> None:
        """Continue with a recipe whose steps may be split into other micro-batches."""
        if recipe.training.batch_size != self.recipe.training.batch_size:
            self.result.split = SplitReport.of(self.recipe, recipe)
        self.continue_with(recipe)

    def continue_with(self, recipe: Recipe) -> None:
        """Continue with a recipe in which something is decided that it left open."""
        if recipe == self.recipe:
            return
        self.recipe = self.watch.recipe = recipe
        self.result.recipe = recipe.model_dump(mode="json")
        self.write_recipe()

    def reopen(self, former: RunResult, trained: bool) -> None:
        """Keep what an earlier attempt measured and noted; if it has `trained`, also what its training was."""
        kept = {"metrics", "undefined", "signatures", "examples", "seconds", "resumes", "audit", "notes", "data"}
        kept |= {"parameters", "progress", "saved_step"} if trained else set()
        self.result = self.result.model_copy(update={name: getattr(former, name) for name in kept})
        if trained:  # the watch has the same dictionary
            self.result.memory.update(former.memory)
            return
        for name in [name for name in self.result.metrics if name.endswith("after")]:
            del self.result.metrics[name]
            self.result.undefined.pop(name, None)

    def forget_measured(self) -> None:
        """Drop what an earlier attempt measured; the stage that lacks it measures it anew."""
        emptied: dict[str, object] = {"metrics": {}, "undefined": {}, "signatures": {}, "examples": []}
        self.result = self.result.model_copy(update=emptied)

    def finish(self) -> None:
        self.result.status = "finished"
        self.result.seconds["total"] = sum(seconds for name, seconds in self.result.seconds.items() if name in PHASES)
        self.write()
        self.seal()

    def seal(self, parts: Sequence[str] = KEPT) -> None:
        """Write the digests of what the run keeps, after everything else. Weights are read once."""
        if not self.world.is_main:
            return
        earlier = read_digests(self.directory.path)
        weights = (
            {name: one for name, one in earlier.files.items() if name.startswith((WEIGHTS, LAST))} if earlier else {}
        )
        write_digests(self.directory.path, self.result.progress.step, parts, weights)

    def write_recipe(self) -> None:
        if self.world.is_main:
            self.directory.write_recipe(dump_recipe(self.recipe))

    def write(self) -> None:
        self._add_running_seconds()
        if self.world.is_main:
            self.directory.write_result(self.result)
