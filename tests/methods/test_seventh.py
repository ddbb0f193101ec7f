"""A method of another package works like a built-in one: the file `scales.py`, and nothing else knows it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Literal

import pytest
import torch

from peftlab.budgets.solve import apply_budget
from peftlab.errors import MethodError, StoppedError
from peftlab.memory.fit import remedies
from peftlab.methods import METHODS, LoRA, Method, register
from peftlab.models.load import load_model, load_tokenizer
from peftlab.parameters.report import parameter_report
from peftlab.parameters.shape import shape_of
from peftlab.recipe.budget import parse_budget
from peftlab.recipe.json_schema import editor_schema
from peftlab.recipe.schema import Recipe
from peftlab.reports import PHASES, MemoryReport
from peftlab.runs.directory import RunDirectory
from peftlab.runs.display import NoDisplay
from peftlab.runs.doctor import describe_method
from peftlab.runs.generation import generate
from peftlab.runs.plan import plan_methods, relative_step_time
from peftlab.runs.run import train
from peftlab.runs.use import evaluate
from peftlab.runs.verify import differing, load_final
from tests.evaluation.texts import generate_text
from tests.memory.real import write_model
from tests.methods import scales
from tests.methods.tiny import tiny_model
from tests.recipe.texts import VALID, problems_of

SCALES = "method={type: scales, layers: 2, groups: 4}"


@pytest.fixture(scope="module", autouse=True)
def registered():
    register(scales.Scales)
    yield
    METHODS.remove("scales")


def recipe(folder: Path, **run) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"name": "builtin:tiny"},
            "method": {"type": "scales", "layers": 2, "whole": True},
            "data": {
                "train": "builtin:docstrings[train]",
                "evaluation": "builtin:docstrings[test]",
                "max_length": 64,
                "train_rows": 16,
                "evaluation_rows": 8,
            },
            "training": {"steps": 4, "batch_size": 4, "learning_rate": 0.05},
            "evaluation": {"generation": {"max_new_tokens": 6, "examples": 1}},
            "run": {"output": str(folder), "device": "cpu", "save_every": 2, **run},
        }
    )


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of the method: its result and its directory."""
    folder = tmp_path_factory.mktemp("seventh") / "straight"
    return train(recipe(folder), display=NoDisplay()), RunDirectory.open(folder)


def added_rows(model) -> tuple[dict, dict]:
    """Return trainable counts by kind and by layer."""
    report = parameter_report(model)
    kinds, layers = ({row.name: row.trainable for row in rows} for rows in (report.kinds, report.layers))
    return {k: n for k, n in kinds.items() if n}, {k: n for k, n in layers.items() if n}


def test_added_parameters_count_by_kind_and_layer_after_apply_copy_save_and_load(tmp_path):
    method = scales.Scales(layers=1, groups=4)
    model = method.apply(tiny_model("llama"))
    expected = {"adapter": 4}, {"layers.1": 4}
    assert added_rows(model) == added_rows(deepcopy(model)) == expected
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.factor.copy_(torch.tensor([[2.0, 3.0, 5.0, 7.0]]))
    method.save(model, tmp_path, {})
    loaded = method.load(tiny_model("llama"), tmp_path)
    assert added_rows(loaded) == expected
    assert loaded.model.layers[1].mlp.down_proj.factor.tolist() == [[2.0, 3.0, 5.0, 7.0]]
    base = {row.name: row.total for row in parameter_report(tiny_model("llama")).kinds}
    assert {row.name: row.total for row in parameter_report(loaded).kinds} == {**base, "adapter": 4}


def test_an_added_parameter_of_unknown_kind_is_refused():
    class Odd(scales.Scales):
        def added_parameters(self, shape):
            return tuple(site.__class__(site.name, site.shape, "scale") for site in super().added_parameters(shape))

    with pytest.raises(MethodError, match=r"factor has the unknown kind 'scale'; known: attention, feed-forward"):
        Odd().apply(tiny_model("llama"))


def test_check_finds_its_contradictions_and_knows_its_fields():
    assert problems_of(VALID, (SCALES,)) == []
    (problem,) = problems_of(VALID, ("method={type: scales, whole: true, groups: 2}",))
    assert (problem.path, problem.message) == ("method.groups", "has no effect with `whole: true`")
    (problem,) = problems_of(VALID, ("method={type: lora, groups: 2}",))
    assert problem.message == "not a field of method lora, only of scales"
    (problem,) = problems_of(VALID, ("method={type: scale}",))
    assert problem.message.endswith("prefix, bitfit, scales, got 'scale'; did you mean 'scales'?")
    (problem,) = problems_of(VALID, ("method={type: scales, layers: 0}",))
    assert problem.message == "must be a whole number of at least 1, got 0"


def test_the_schema_documents_it():
    definition = editor_schema()["$defs"]["Scales"]
    assert definition["properties"]["layers"]["description"] == "How many of the last layers get scales."
    assert definition["properties"]["type"]["description"] == "The method: learned scales."


def test_a_recipe_with_it_survives_a_round_trip(tmp_path):
    one = recipe(tmp_path)
    assert Recipe.model_validate_json(one.model_dump_json()) == one
    assert Recipe.model_validate(one.model_dump(), strict=True) == one


def test_its_memory_is_predicted_within_two_percent(straight):
    memory = straight[0].memory
    assert tuple(memory["predicted"].phases) == tuple(memory["measured"].phases) == PHASES
    for phase in PHASES:
        assert memory["predicted"].phases[phase] == pytest.approx(memory["measured"].phases[phase], rel=0.02), phase


def test_its_run_reports_what_trained_and_lowers_the_loss(straight):
    result, _ = straight
    assert {row.name: row.trainable for row in result.parameters.kinds if row.trainable} == {"adapter": 2 * 192}
    assert result.audit.clean
    assert result.metrics["after"]["loss"] < result.metrics["before"]["loss"]


def test_its_saved_run_evaluates_and_generates_as_the_trained_model(straight):
    result, directory = straight
    assert evaluate(directory.path)["loss"] == pytest.approx(result.metrics["after"]["loss"], abs=1e-6)
    one = recipe(directory.path)
    model = one.method.load(load_model(one.model, device=torch.device("cpu")).model, directory.weights)
    prompt, tokenizer = "def push(heap, item):\n# Summary:", load_tokenizer(one.model)
    alone = generate_text(model, tokenizer, [prompt], one.evaluation.generation)[0]
    assert generate(directory.path, prompt) == alone
    assert generate_text(model, tokenizer, [prompt, "x"], one.evaluation.generation)[0] == alone


def test_a_stopped_run_of_it_resumes_exactly(straight, tmp_path):
    with pytest.raises(StoppedError):
        train(recipe(tmp_path / "run", stop_after=2, plan="off"), display=NoDisplay())
    resumed = train(recipe(tmp_path / "run", plan="off"), resume=True, display=NoDisplay())
    assert [(one.step, one.exact) for one in resumed.resumes] == [(2, True)]
    same = differing(load_final(straight[1].path), load_final(tmp_path / "run"))
    assert same and all(same.values())


def test_a_budget_solves_for_its_size():
    shape = shape_of(tiny_model("llama"))
    one = Recipe.model_validate(
        {
            "model": {"name": "-"},
            "method": {"type": "scales", "whole": True, "layers": 2},
            "data": {"train": "-"},
            "training": {"steps": 1, "learning_rate": 1e-3},
        }
    )
    solved, report = apply_budget(one, parse_budget("trainable=32"), shape)
    assert (solved.method.layers, report.reached, report.met) == (1, 32, True)


def test_a_plan_of_methods_and_the_doctor_list_it(tmp_path, monkeypatch):
    monkeypatch.setattr("peftlab.runs.plan.METHODS", {"scales": METHODS["scales"]})  # the others take seconds each
    (row,) = plan_methods(str(write_model(tmp_path, "llama")), device="cpu", max_length=16)
    assert (row.method, row.error, row.trainable) == ("scales", None, 2)
    assert row.memory.peak_bytes > 0 and row.relative_step_time < 1
    assert describe_method(scales.Scales, torch.device("cpu")) == {
        "title": "learned scales",
        "usable": True,
        "variants": {"default": None},
    }


def test_a_scale_multiplies_no_token_by_a_matrix_and_does_not_decay():
    method, shape = scales.Scales(whole=True), shape_of(tiny_model("llama"))
    frozen = LoRA(rank=1, freeze=("lora_B",))
    assert relative_step_time(method, shape, 1) < relative_step_time(frozen, shape, 1) < 1
    assert not method.decays("model.layers.0.mlp.down_proj.factor", (1, 32))
    assert method.decays("model.layers.0.mlp.down_proj.weight", (32, 48))


def test_it_is_suggested_where_memory_is_short(tmp_path):
    def predict(one: Recipe) -> MemoryReport:
        return MemoryReport(source="predicted", device="cpu", peak_bytes=1 if one.method.type == "scales" else 100)

    one = recipe(tmp_path).model_copy(update={"method": LoRA()})
    assert [str(change) for change in remedies(one, 10, predict)] == ["method={type: scales}"]


def test_only_a_complete_method_under_a_free_type_is_registered():
    class Untitled(Method):
        type: Literal["untitled"] = "untitled"

    class Required(Untitled):
        title = "required"
        size: int

    class Taken(scales.Scales):
        type: Literal["lora"] = "lora"

    for method, told in (
        (int, "not a subclass"),
        (Untitled, "it has no title"),
        (Required, "every field needs a default, and size has none"),
        (Taken, "the type 'lora' belongs to peftlab.methods.lora.LoRA; choose another"),
    ):
        with pytest.raises(MethodError, match=told):
            register(method)
    assert register(scales.Scales) is METHODS["scales"]


PLUG_IN = """
import sys
from peftlab.errors import RecipeError
from peftlab.recipe import load_recipe

print(load_recipe(sys.argv[1]).method)
try:
    load_recipe(sys.argv[1], ["method.type=broken"])
except RecipeError as error:
    print(error)
print("torch" in sys.modules)
"""


def install(folder: Path, name: str, module: str, method: str) -> None:
    """Write what an installer writes: metadata with an entry point."""
    metadata = folder / f"{name}-2.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.0\n")
    (metadata / "entry_points.txt").write_text(f"[peftlab.methods]\n{method} = {module}\n")


def test_an_installed_package_adds_a_method_without_torch_and_a_broken_one_is_named(tmp_path):
    shutil.copy(scales.__file__, tmp_path / "its_scales.py")
    install(tmp_path, "some-scales", "its_scales:Scales", "scales")
    install(tmp_path, "bad-package", "no_such_module:Broken", "broken")
    path = tmp_path / "recipe.yaml"
    path.write_text(VALID.replace("type: lora", "type: scales").replace("rank: 8", "groups: 8"))
    root = Path(scales.__file__).parents[2]
    environment = {"PYTHONPATH": f"{root}:{tmp_path}", "PATH": ""}
    command = [sys.executable, "-c", PLUG_IN, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    section, problem, loaded_torch = done.stdout.splitlines()
    assert section == "type='scales' from_=None unfreeze=() freeze=() layers=2 groups=8 whole=False"
    assert problem.endswith(
        "method: method 'broken' of package bad-package 2.0 cannot be loaded: "
        "ModuleNotFoundError: No module named 'no_such_module'"
    )
    assert loaded_torch == "False"
