"""peftlab: the whole of `peftlab train`, with stamps where it logs; and the rows and weights that the peers get."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from race.clock import Clock
from race.job import Job


class Stamps:
    """A run's display that stamps every logged step."""

    def __init__(self, clock: Clock):
        self.clock = clock

    def note(self, text: str) -> None:
        pass

    def update(self, line: dict[str, Any], steps: int) -> None:
        if line["event"] == "train":
            self.clock.step(line["loss"])

    def close(self) -> None:
        pass


def load(job: Job, *settings: str) -> Any:
    from peftlab.recipe.load import load_recipe

    own = [
        f"model.name={job.model}",
        f"training.steps={job.steps}",
        f"training.learning_rate={job.learning_rate}",
        "training.schedule=constant",
        "training.warmup=0",
        "training.weight_decay=0.0",
        f"training.precision={job.precision}",
        f"training.gradient_checkpointing={str(job.checkpointing).lower()}",
        "run.log_every=1",
        f"run.device={job.device}",
    ]
    return load_recipe(Path(job.recipe), [*own, *job.settings, *settings])


def run(job: Job, clock: Clock) -> dict[str, Any]:
    """Train as the command does; a recipe without evaluation rows evaluates nothing."""
    from peftlab.runs.run import train

    folder = Path(job.rows).parent / "run"
    result = train(load(job, f"run.output={folder}"), overwrite=True, display=Stamps(clock))
    found = result.model_dump(mode="json")
    return {"speed": found.get("speed"), "version": found["environment"].get("peftlab")}


def write_start(job: Job) -> None:
    """Write the rows of every step and the trained weights before the first, as a run of the recipe has them."""
    from safetensors.torch import save_file

    from peftlab.runs.bench import prepare
    from peftlab.runs.setup import build_setup
    from peftlab.training.stop import Stop
    from peftlab.world.open import open_world

    recipe = load(job)
    bench = prepare(recipe, open_world(job.device))
    applied = bench.apply()
    model = applied.model
    trained = {name: one.detach().cpu().clone() for name, one in model.named_parameters() if one.requires_grad}
    save_file(trained, job.start)
    if job.method == "adapters":
        write_for_adapterhub(recipe.method, model, job.adapterhub)
    setup = build_setup(bench, model, Stop())
    steps = [
        [_plain(bench.dataset.train[number]) for micro in setup.rows.numbers(step) for number in micro]
        for step in range(1, job.steps + 1)
    ]
    Path(job.rows).write_text(
        json.dumps({"steps": steps, "pad_id": bench.dataset.pad_id, "trainable": applied.parameters.trainable}),
        encoding="utf-8",
    )


def write_for_adapterhub(method: Any, model: Any, folder: Path) -> None:
    """Write the adapters of a model for AdapterHub's library; nothing where it cannot have them."""
    from peftlab.errors import MethodError
    from peftlab.export.adapterhub import write_adapters

    folder.mkdir()
    try:
        write_adapters(method.stored_tensors(model), model, method, folder, "race")
    except MethodError:
        folder.rmdir()


def _plain(row: Any) -> dict[str, list[int]]:
    return {"input_ids": row.input_ids.tolist(), "labels": row.labels.tolist()}
