"""Weights of PEFT and transformers become runs that compute what their own library computes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from peftlab.cli.app import run as run_command
from peftlab.errors import MethodError, StorageError, UsageError
from peftlab.recipe.load import load_recipe
from peftlab.recipe.schema import Recipe
from peftlab.runs.directory import RunDirectory
from peftlab.runs.display import NoDisplay
from peftlab.runs.imported import import_run
from peftlab.runs.loading import load_trained
from peftlab.runs.reopen import load_run_recipe
from peftlab.runs.run import train
from peftlab.runs.use import evaluate
from peftlab.training.metrics_file import read_lines
from tests.runs.recipes import shallow_model, shallow_sections
from tests.tasks.answering import write_family
from tests.tasks.tagging import write_model

IDS = torch.arange(24).view(2, 12) % 90 + 5


def save_adapter(folder: Path, config: Any, auto: Any = AutoModelForCausalLM, **settings: Any) -> torch.Tensor:
    """Write a PEFT folder whose weights are random, and return what PEFT, reading it again, computes."""
    torch.manual_seed(3)
    settings = {"dtype": torch.float32} | settings
    wrapped = peft.get_peft_model(auto.from_pretrained(shallow_model(), **settings), config)
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            scale = 0.05 if "lora_" in name or "prompt" in name else 0.01
            parameter.data += scale * torch.randn_like(parameter)
    wrapped.save_pretrained(folder)
    AutoTokenizer.from_pretrained(shallow_model()).save_pretrained(folder)
    base = auto.from_pretrained(shallow_model(), **settings)
    return logits(peft.PeftModel.from_pretrained(base, folder))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found = model.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits.float()
    return found[:, -IDS.shape[1] :] if found.dim() == 3 else found


def bring(folder: Path, *overrides: str, **options: Any) -> Path:
    output = [] if any(one.startswith("run.output=") for one in overrides) else [f"run.output={folder}-run"]
    path, _ = import_run(folder, overrides=[*output, *overrides], display=NoDisplay(), **options)
    return path


def computed(run: Path) -> torch.Tensor:
    """Return what the run's saved weights compute, loaded again."""
    directory = RunDirectory.open(run)
    recipe = load_run_recipe(directory)
    labels = json.loads((directory.weights / "peftlab_adapter.json").read_text())["context"]["labels"]
    return logits(load_trained(recipe, directory.weights, torch.device("cpu"), labels))


def lora(**changes: Any) -> peft.LoraConfig:
    settings = {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    return peft.LoraConfig(**{**settings, **changes})


ADAPTERS = {
    "lora": lora(),
    "regular expression": lora(target_modules=r".*layers\.1\..*(up|down)_proj", use_rslora=True, lora_dropout=0.1),
    "one layer": lora(layers_to_transform=[0]),
    "dora, trained norms": lora(use_dora=True, modules_to_save=["norm"]),
}
SLOW = {
    "all linear": lora(target_modules="all-linear"),
    "excluded": lora(target_modules="all-linear", exclude_modules=["o_proj"]),
    "gaussian": lora(init_lora_weights="gaussian"),
    "pissa": lora(init_lora_weights="pissa"),
    "olora": lora(init_lora_weights="olora"),
    "embeddings saved": lora(modules_to_save=["input_layernorm"], bias="none"),
    "prompt": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "prefix": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "prefix, projected": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, prefix_projection=True),
}


def check_import(tmp_path: Path, config: Any) -> None:
    theirs = save_adapter(tmp_path / "adapter", config)
    run = bring(tmp_path / "adapter")
    torch.testing.assert_close(computed(run), theirs, rtol=1e-5, atol=1e-5)
    result = RunDirectory.open(run).read_result()
    assert result.status == "finished" and result.parameters is not None
    assert (run / "MANIFEST.json").exists()


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_imported_adapter_computes_what_peft_computes(tmp_path, name):
    check_import(tmp_path, ADAPTERS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_any_adapter_with_a_counterpart_computes_what_peft_computes(tmp_path, name):
    check_import(tmp_path, SLOW[name])


REFUSED = {
    "rank_pattern": lora(rank_pattern={"q_proj": 2}),
    "alpha_pattern": lora(alpha_pattern={"q_proj": 2}),
    "lora_bias": lora(lora_bias=True),
    "target_modules: lm_head": lora(target_modules=["q_proj", "lm_head"]),
    "target_modules: model.embed_tokens": lora(target_modules=["q_proj", "embed_tokens"]),
    "init_lora_weights: pissa_niter_2": lora(init_lora_weights="pissa_niter_2"),
    "trainable_token_indices": lora(trainable_token_indices=[3, 4]),
    "peft_type: IA3": peft.IA3Config(
        task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's own, on tied embeddings
@pytest.mark.parametrize("key", REFUSED)
def test_what_has_no_counterpart_is_refused_by_its_key(tmp_path, key):
    save_adapter(tmp_path / "adapter", REFUSED[key])
    with pytest.raises(MethodError) as refused:
        bring(tmp_path / "adapter")
    assert key in str(refused.value) and "adapter_config.json" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "adapter-run").exists()


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_weights_of_another_base_and_pickles_are_refused(tmp_path):
    folder = tmp_path / "adapter"
    save_adapter(folder, lora(target_modules=["q_proj", "gate_proj"]))
    with pytest.raises(UsageError, match=r"method.alpha: 32.0, but .*adapter was trained with 12; remove it"):
        bring(folder, "method.alpha=32")
    with pytest.raises(UsageError, match="method.type: bitfit, but .*adapter contains LoRA"):
        bring(folder, "method.type=bitfit")
    change_config(folder, r=8)
    with pytest.raises(StorageError, match=r"lora_A.weight is \(4, 192\), but \(8, 192\) on this base"):
        bring(folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(StorageError, match="adapter_model.bin is a pickle; load it with PEFT and save it again"):
        bring(folder)
    with pytest.raises(StorageError, match="has no adapter_config.json and no config.json"):
        bring(tmp_path)


def test_a_model_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    folder = tmp_path / "adapter"
    save_adapter(folder, lora())
    monkeypatch.setattr("peftlab.runs.imported.build_foreign", lambda foreign, base: base)
    with pytest.raises(StorageError, match="is not the one that its own library makes of the folder"):
        bring(folder)
    assert not RunDirectory(tmp_path / "adapter-run").has_weights()


def write_state(folder: Path) -> None:
    history = [
        {"step": 5, "loss": 3.5, "grad_norm": 1.25, "learning_rate": 2e-4, "epoch": 0.5},
        {"step": 10, "eval_loss": 3.25, "epoch": 1.0},
        {"step": 10, "train_runtime": 12.0, "train_loss": 3.4},
    ]
    state = {"global_step": 10, "train_batch_size": 2, "log_history": history}
    (folder / "trainer_state.json").write_text(json.dumps(state))


def test_a_trainers_checkpoint_keeps_its_steps_and_its_losses(tmp_path):
    folder = tmp_path / "trained" / "checkpoint-10"
    save_adapter(folder, lora())
    write_state(folder)
    with pytest.raises(StorageError, match="name its checkpoint, .*checkpoint-10"):
        bring(tmp_path / "trained")
    run = bring(folder)
    result = RunDirectory.open(run).read_result()
    assert (result.name, result.progress.step, result.saved_step) == ("trained-checkpoint-10", 10, 10)
    training = result.recipe["training"]
    assert (training["steps"], training["batch_size"], training["learning_rate"]) == (10, 2, 2e-4)
    assert read_lines(run / "metrics.jsonl")[0] == [
        {"event": "train", "step": 5, "loss": 3.5, "gradient_norm": 1.25, "learning_rate": 2e-4},
        {"event": "evaluation", "step": 10, "loss": 3.25},
    ]


def test_a_whole_model_is_imported_beside_its_base(tmp_path):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(shallow_model(), dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "whole")
    AutoTokenizer.from_pretrained(shallow_model()).save_pretrained(tmp_path / "whole")
    run = bring(tmp_path / "whole", f"model.name={shallow_model()}")
    torch.testing.assert_close(computed(run), logits(model))
    assert RunDirectory.open(run).read_result().recipe["method"]["type"] == "full"


def save_classifier(folder: Path) -> torch.Tensor:
    names = {"num_labels": 3, "pad_token_id": 0}
    return save_adapter(folder, lora(task_type="SEQ_CLS"), AutoModelForSequenceClassification, **names)


def test_the_order_of_classes_is_asked_for_and_kept(tmp_path):
    theirs = save_classifier(tmp_path / "adapter")
    with pytest.raises(UsageError, match="does not say the order of its classes; name them .*--labels"):
        bring(tmp_path / "adapter")
    run = bring(tmp_path / "adapter", labels=["zebra", "ant", "cow"])
    torch.testing.assert_close(computed(run), theirs, rtol=1e-5, atol=1e-5)
    saved = json.loads((run / "weights" / "peftlab_adapter.json").read_text())
    assert saved["context"]["labels"] == ["zebra", "ant", "cow"]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"a {name}", "label": name}) + "\n" for name in ("ant", "cow")))
    found = evaluate(run, [f"data.evaluation={rows}", "evaluation.metrics=[loss]"])["loss"]
    assert found == pytest.approx(classes_loss(run, {"a ant": 1, "a cow": 2}), rel=1e-4)


@torch.no_grad()
def classes_loss(run: Path, classes: dict[str, int]) -> float:
    """Return PEFT's own mean loss of texts, each with the number of its class."""
    base = AutoModelForSequenceClassification.from_pretrained(
        shallow_model(), num_labels=3, dtype=torch.float32, pad_token_id=0
    )
    model = peft.PeftModel.from_pretrained(base, run.with_name("adapter")).eval()
    tokenizer = AutoTokenizer.from_pretrained(shallow_model())
    losses = []
    for text, number in classes.items():
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        losses.append(-model(input_ids=ids).logits[0].log_softmax(-1)[number].item())
    return sum(losses) / len(losses)


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> tuple[Path, Path]:
    """A run of an adapter, evaluated on the rows of a recipe, and the file of that recipe."""
    folder = tmp_path_factory.mktemp("imported")
    save_adapter(folder / "adapter", lora())
    recipe = folder / "recipe.yaml"
    sections = shallow_sections("lora", folder / "none", steps=2, batch_size=4, learning_rate=1e-3)
    sections["method"] = {"type": "lora", "rank": 4, "alpha": 12, "targets": "attention"}
    sections["data"] |= {"train_rows": 8, "evaluation_rows": 8}
    sections["evaluation"] = {"generation": {"examples": 0}}
    sections["run"] |= {"log_every": 1}
    recipe.write_text(json.dumps(sections))
    return bring(folder / "adapter", recipe=recipe), recipe


def test_rows_of_a_recipe_measure_the_import(imported):
    run, _ = imported
    result = RunDirectory.open(run).read_result()
    assert result.metrics["before"]["loss"] != result.metrics["after"]["loss"]
    assert evaluate(run)["loss"] == pytest.approx(result.metrics["after"]["loss"], rel=1e-6)
    assert result.recipe["method"]["targets"] == ["q_proj", "v_proj"]
    assert result.data["train"]["rows"] == 8


def from_start(imported, output: Path, start: Path, **changes: Any) -> Recipe:
    _, file = imported
    overrides = [f"method.from={start}", "method.targets=[q_proj,v_proj]", f"run.output={output}"]
    return load_recipe(file, [*overrides, *(f"{key.replace('__', '.')}={one}" for key, one in changes.items())])


def first_loss(run: Path) -> float:
    return next(line["loss"] for line in read_lines(run / "metrics.jsonl")[0] if line["event"] == "train")


def test_training_continues_from_imported_weights_at_their_loss(imported, tmp_path):
    run, _ = imported
    metrics = RunDirectory.open(run).read_result().metrics
    result = train(from_start(imported, tmp_path / "more", run), display=NoDisplay())
    assert result.metrics["before"]["loss"] == pytest.approx(metrics["after"]["loss"], rel=1e-6)
    assert result.metrics["after"]["loss"] != result.metrics["before"]["loss"]
    other = train(
        from_start(imported, tmp_path / "folder", run.parent / "adapter", training__steps=1), display=NoDisplay()
    )
    assert other.metrics["before"] == result.metrics["before"]
    assert first_loss(tmp_path / "folder") == first_loss(tmp_path / "more")
    assert any("training starts from the weights in" in note for note in result.notes)


def test_a_start_that_does_not_fit_is_refused(imported, tmp_path):
    run, _ = imported
    with pytest.raises(StorageError, match="^method.from: .*missing: no such folder"):
        train(from_start(imported, tmp_path / "a", tmp_path / "missing"), display=NoDisplay())
    with pytest.raises(MethodError, match="method.alpha: 24.0 here, but the weights in .* were trained with 12.0"):
        train(from_start(imported, tmp_path / "b", run, method__alpha=24), display=NoDisplay())
    with pytest.raises(StorageError, match="method.from: .*it lacks .*k_proj"):
        recipe = from_start(imported, tmp_path / "c", run)
        wider = recipe.method.model_copy(update={"targets": ("q_proj", "k_proj", "v_proj")})
        train(recipe.model_copy(update={"method": wider}), display=NoDisplay())


def test_a_run_from_other_weights_resumes_without_them(imported, tmp_path):
    run, _ = imported
    straight = train(from_start(imported, tmp_path / "straight", run, training__steps=4), display=NoDisplay())
    start = tmp_path / "start"
    (start).symlink_to(run / "weights")
    parts = from_start(imported, tmp_path / "parts", start, training__steps=4, run__save_every=2)
    with pytest.raises(Exception, match="stop_after"):
        train(parts.model_copy(update={"run": parts.run.model_copy(update={"stop_after": 2})}), display=NoDisplay())
    start.unlink()
    result = train(parts, resume=True, display=NoDisplay())
    assert result.metrics == straight.metrics and result.resumes[0].exact


def test_the_command_says_where_the_run_is_and_the_run_is_used_as_any_other(tmp_path, capsys):
    save_adapter(tmp_path / "adapter", lora())
    run = tmp_path / "run"
    assert run_command(["import", str(tmp_path / "adapter"), f"run.output={run}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["run"], found["status"]) == (str(run), "finished")
    assert run_command(["import", str(tmp_path / "adapter"), f"run.output={run}"]) == 8
    assert "already contains a run" in capsys.readouterr().err
    assert run_command(["generate", str(run), "def", "evaluation.generation.max_new_tokens=2"]) == 0
    assert run_command(["merge", str(run), str(tmp_path / "merged"), "--rows", "0"]) == 0
    capsys.readouterr()
    assert run_command(["reproduce", str(run)]) == 2
    assert "were imported from" in capsys.readouterr().err
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(logits(merged), computed(run), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_an_adapter_of_a_quantised_base_is_imported_with_its_base_quantised(tmp_path):
    save_adapter(tmp_path / "adapter", lora(target_modules="all-linear"))
    run = bring(tmp_path / "adapter", "method.type=qlora")
    result = RunDirectory.open(run).read_result()
    assert (result.recipe["method"]["type"], result.recipe["method"]["targets"]) == ("qlora", "all-linear")
    plain = bring(tmp_path / "adapter", f"run.output={tmp_path / 'plain'}")
    assert not torch.allclose(computed(run), computed(plain), atol=1e-3), "the base is another one"


@pytest.mark.slow
@pytest.mark.parametrize("task", ["SEQ_2_SEQ_LM", "TOKEN_CLS"])
def test_other_tasks_are_imported(tmp_path, task):
    """The comparison with PEFT's own model is in the import itself."""
    if task == "TOKEN_CLS":
        base, auto, targets = write_model(tmp_path / "base"), AutoModelForTokenClassification, ["query", "value"]
    else:
        base, auto, targets = write_family(tmp_path / "base", "t5"), AutoModelForSeq2SeqLM, ["q", "v"]
    options = {"num_labels": 3} if task == "TOKEN_CLS" else {}
    wrapped = peft.get_peft_model(auto.from_pretrained(base, **options), lora(task_type=task, target_modules=targets))
    for parameter in wrapped.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter) * parameter.requires_grad
    wrapped.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "adapter")
    run = bring(tmp_path / "adapter", labels=["A", "B", "C"] if options else None)
    result = RunDirectory.open(run).read_result()
    assert result.status == "finished" and any("outputs differ from those of its own" in one for one in result.notes)
