"""Runs that resume with another number of processes: no row is lost or comes twice, and no loss is lost."""

from __future__ import annotations

import pytest

from peftlab.errors import StoppedError
from peftlab.runs.directory import RunDirectory
from peftlab.runs.display import NoDisplay
from peftlab.runs.run import train
from tests.runs.recipes import METHODS
from tests.world.compared import lines_of, relative, weights_of
from tests.world.crew import Crew
from tests.world.runs import even_recipe

ROWS, EPOCHS, STOP = 12, 2, 2


@pytest.fixture(params=["ddp", "fsdp2", pytest.param("tensor", marks=pytest.mark.slow)])
def crew(request, tmp_path):
    crew = Crew(request.param, tmp_path)
    yield crew
    crew.end()


def recipe_of(folder, accumulation, stop_after=None, **length):
    """Return a recipe that logs its last step alone, with the losses of all before."""
    made = even_recipe(METHODS["lora"] | {"init": "orthogonal"}, folder, accumulation, save_every=1, log_every=99)
    update = {"steps": None, "schedule": "constant", "batch_size": 1} | length
    run = made.run.model_copy(update={"stop_after": stop_after, "save_every": 2})
    evaluation = made.evaluation.model_copy(update={"metrics": ("loss",)})
    training = made.training.model_copy(update=update)
    return made.model_copy(update={"training": training, "run": run, "evaluation": evaluation})


def processes_of(crew):
    return 1 if crew.strategy == "tensor" else 2


def results_of(*folders):
    return [RunDirectory.open(folder).read_result() for folder in folders]


def test_a_step_of_the_same_rows_is_split_among_other_processes(tmp_path, crew):
    """Oracle: one process from the beginning. The line of the last step has the losses of both processes before."""
    shared = 4 // processes_of(crew)
    train(recipe_of(tmp_path / "straight", 4, steps=5), display=NoDisplay())
    errors = crew.train(recipe_of(tmp_path / "two", shared, stop_after=3, steps=5))
    assert all("stop_after" in error for error in errors), errors
    train(recipe_of(tmp_path / "two", 4, steps=5), resume=True, display=NoDisplay())
    with pytest.raises(StoppedError):
        train(recipe_of(tmp_path / "one", 4, stop_after=3, steps=5), display=NoDisplay())
    assert crew.train(recipe_of(tmp_path / "one", shared, steps=5), resume=True) == ["", ""]
    straight, *others = results_of(*(tmp_path / name for name in ("straight", "two", "one")))
    for name, other in zip(("two", "one"), others, strict=True):
        assert other.progress == straight.progress and not other.resumes[0].exact
        assert not any("rows of a step" in reason for reason in other.resumes[0].reasons)
        lines = [[line["loss"] for line in lines_of(tmp_path / run) if line["step"]] for run in ("straight", name)]
        assert relative(*lines) < 1e-5
        assert weights_of(tmp_path / name).keys() == weights_of(tmp_path / "straight").keys()
    assert straight.progress.rows == 5 * 4


@pytest.mark.parametrize("more", [False, True], ids=["two to one", "one to two"])
def test_epochs_end_with_their_last_row_where_steps_have_other_rows_from_then_on(tmp_path, crew, more):
    """By hand: two epochs of twelve rows are 24 rows, each of them twice, whatever a step has."""
    per_step = 2 * processes_of(crew)
    first = recipe_of(tmp_path / "run", 2, stop_after=STOP, epochs=EPOCHS)
    rest = recipe_of(tmp_path / "run", 2, epochs=EPOCHS)
    if more:
        with pytest.raises(StoppedError):
            train(first, display=NoDisplay())
        assert crew.train(rest, resume=True) == ["", ""]
        steps = STOP + (EPOCHS * ROWS - 2 * STOP) / per_step
    else:
        assert all("stop_after" in error for error in crew.train(first))
        train(rest, resume=True, display=NoDisplay())
        steps = STOP + (EPOCHS * ROWS - per_step * STOP) / 2
    train(recipe_of(tmp_path / "straight", 2, epochs=EPOCHS), display=NoDisplay())
    resumed, straight = results_of(tmp_path / "run", tmp_path / "straight")
    assert resumed.progress.rows == straight.progress.rows == EPOCHS * ROWS
    assert resumed.progress.tokens == straight.progress.tokens and resumed.progress.step == steps
    reason = f"rows of a step: {2 if more else per_step} -> {per_step if more else 2}"
    assert (reason in resumed.resumes[0].reasons) == (per_step != 2)


@pytest.mark.parametrize("crew", ["ddp"], indirect=True)
def test_streamed_rows_resume_at_the_next_one(tmp_path, crew):
    """Oracle: one process that never stopped has as many tokens in as many rows, which differ in length."""
    per_step = 2 * processes_of(crew)

    def streamed(folder, steps, stop_after=None):
        made = recipe_of(folder, 2, stop_after, steps=steps)
        update = {"train": "builtin:docstrings[train[:9]]", "train_rows": None, "streaming": True, "shuffle_buffer": 4}
        return made.model_copy(update={"data": made.data.model_copy(update=update)})

    assert all("stop_after" in error for error in crew.train(streamed(tmp_path / "run", STOP + 2, STOP)))
    train(streamed(tmp_path / "run", STOP + 2), resume=True, display=NoDisplay())
    train(streamed(tmp_path / "straight", (per_step * STOP + 2 * 2) // 2), display=NoDisplay())
    resumed, straight = results_of(tmp_path / "run", tmp_path / "straight")
    assert resumed.progress.rows == straight.progress.rows == per_step * STOP + 2 * 2
    assert resumed.progress.tokens == straight.progress.tokens and resumed.progress.step == STOP + 2
