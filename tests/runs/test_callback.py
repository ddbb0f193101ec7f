"""peftlab's methods and its callback inside other trainers: transformers' `Trainer`, TRL's where it is installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from peftlab import LoRA, PeftlabCallback
from peftlab.errors import MethodError
from peftlab.reports import CallbackReport
from peftlab.runs.callback import RECORD
from peftlab.runs.imported import import_run
from tests.docs.pages import blocks
from tests.runs.recipes import shallow_model

# The Trainer's own, where there is no accelerator.
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument")

TEXTS = [f"def double_{number}(value): return value * 2 + {number}" for number in range(8)]


def load_model():
    return AutoModelForCausalLM.from_pretrained(shallow_model(), dtype=torch.float32)


def arguments(folder: Path, **changes) -> dict:
    settings = {"output_dir": str(folder), "per_device_train_batch_size": 2, "learning_rate": 1e-2, "report_to": "none"}
    return settings | {"max_steps": 4, "logging_steps": 1, "use_cpu": True, "save_strategy": "no"} | changes


def run_trainer(folder: Path, callbacks: list, **changes) -> Trainer:
    tokenizer = AutoTokenizer.from_pretrained(shallow_model())
    rows = Dataset.from_list([{"input_ids": tokenizer(text)["input_ids"]} for text in TEXTS])
    trainer = Trainer(
        LoRA(rank=4).apply(load_model()),
        TrainingArguments(**arguments(folder, **changes)),
        train_dataset=rows,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        callbacks=callbacks,
    )
    trainer.train()
    return trainer


def read(folder: Path) -> CallbackReport:
    stored = json.loads((folder / RECORD).read_text())
    for computed in ("fraction",):
        stored["parameters"].pop(computed)
    stored["audit"].pop("clean")
    for computed in ("needed_bytes", "residual_bytes", "fits", "spare_bytes"):
        stored["memory"].pop(computed)
    return CallbackReport.model_validate(stored)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Trainer, PeftlabCallback]:
    folder, callback = tmp_path_factory.mktemp("trainer"), PeftlabCallback()
    return folder, run_trainer(folder, [callback]), callback


def test_a_trainer_s_run_is_audited_counted_and_recorded(trained):
    folder, trainer, callback = trained
    report = read(folder)
    assert report == callback.report
    assert report.finished and report.steps == 4 and report.audit is not None and report.audit.clean
    assert report.audit.steps == 3
    trainable = sum(one.numel() for one in trainer.model.parameters() if one.requires_grad)
    assert report.parameters.trainable == trainable
    # AdamW has two moments of four bytes and a count of four for each tensor.
    tensors = sum(one.requires_grad for one in trainer.model.parameters())
    assert report.memory is not None
    assert report.memory.categories["trainable_weights"] == 4 * trainable
    assert report.memory.categories["optimiser_state"] == 8 * trainable + 4 * tensors
    assert [line["step"] for line in report.log if "loss" in line] == [1, 2, 3, 4]
    assert all(line["memory_bytes"] > 0 for line in report.log if "loss" in line)


class Meddler(TrainerCallback):
    """Changes a frozen weight, as a wrong optimiser group would."""

    def on_step_begin(self, args, state, control, **parts):
        weight = next(one for one in parts["model"].parameters() if not one.requires_grad)
        weight.data.view(-1)[0] += 1


def test_a_frozen_weight_that_changes_ends_the_trainer_s_run(tmp_path):
    with pytest.raises(MethodError, match="the audit found 1 frozen tensors changed after 3 steps"):
        run_trainer(tmp_path, [PeftlabCallback(), Meddler()])
    callback = PeftlabCallback(strict=False)
    run_trainer(tmp_path, [callback, Meddler()])
    assert callback.report.audit.frozen_changed and not callback.report.audit.clean


def test_a_run_of_fewer_steps_than_the_audit_wants_is_audited_at_its_end(tmp_path):
    run_trainer(tmp_path, [PeftlabCallback()], max_steps=2)
    audit = read(tmp_path).audit
    assert audit is not None and audit.steps == 2


def test_the_example_of_the_python_page_runs(tmp_path, monkeypatch):
    (block,) = (one for one in blocks("python") if "PeftlabCallback()" in one.text)
    monkeypatch.chdir(tmp_path)
    text = block.text.replace("HuggingFaceTB/SmolLM2-135M", str(shallow_model()))
    names: dict = {"__name__": "example"}
    exec(compile(text, str(block), "exec", dont_inherit=True), names)
    assert names["callback"].report.audit.clean
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed (pip install trl)")
def test_trl_trains_a_method_with_the_callback_and_its_checkpoint_is_imported(tmp_path):
    from trl import SFTConfig, SFTTrainer

    callback = PeftlabCallback()
    trainer = SFTTrainer(
        LoRA(rank=4).apply(load_model()),
        SFTConfig(**arguments(tmp_path / "out", save_strategy="steps", save_steps=4, bf16=False, max_length=64)),
        train_dataset=Dataset.from_list([{"text": text} for text in TEXTS]),
        processing_class=AutoTokenizer.from_pretrained(shallow_model()),
        callbacks=[callback],
    )
    trainer.train()
    assert callback.report.audit.clean and callback.report.finished
    run, result = import_run(
        tmp_path / "out" / "checkpoint-4",
        overrides=[f"run.output={tmp_path / 'run'}", f"model.name={shallow_model()}"],
    )
    assert result.status == "finished" and result.progress.step == 4
    assert result.parameters.trainable == callback.report.parameters.trainable
