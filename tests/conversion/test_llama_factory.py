"""LLaMA-Factory's configurations: in its documented form, with the values that they must have as recipes."""

from __future__ import annotations

import pytest

from peftlab.errors import UsageError

BASE = """
model_name_or_path: acme/chat
stage: sft
do_train: true
finetuning_type: lora
dataset: notes
template: llama3
"""


def test_lora_with_its_defaults(converted):
    made = converted(
        BASE
        + """
lora_rank: 8
lora_target: all
cutoff_len: 1024
max_samples: 1000
overwrite_cache: true
preprocessing_num_workers: 16
output_dir: saves/x
logging_steps: 10
save_steps: 500
plot_loss: true
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
val_size: 0.1
eval_strategy: steps
eval_steps: 50
report_to: none
"""
    )
    assert made.made.peer.name == "llama-factory"
    made.has(
        model={"name": "acme/chat"},
        method={"type": "lora", "rank": 8, "alpha": 16, "targets": "all-linear"},
        data={
            "format": "chat",
            "train": "notes",
            "evaluation": 0.1,
            "train_rows": 900,
            "evaluation_rows": 100,
            "max_length": 1024,
            "long": "cut",
        },
        training={
            "epochs": 3.0,
            "batch_size": 1,
            "gradient_accumulation": 8,
            "learning_rate": 1e-4,
            "schedule": "cosine",
            "warmup": 0.1,
            "optimizer": {"type": "adamw"},
            "precision": "bfloat16",
            "gradient_checkpointing": True,
        },
        run={"save_every": 500},
        evaluation={"every": 50},
    )
    assert made.keys("no counterpart") == {"dataset", "template"}
    assert "lora_alpha" in made.keys("default")
    assert made.made.problems == []


def test_four_bits(converted):
    made = converted(BASE + "quantization_bit: 4\nlora_alpha: 64\nlora_target: q_proj,v_proj\nlora_dropout: 0.1\n")
    expected = {
        "method.type": "qlora",
        "method.quantization": "nf4",
        "method.double_quantization": True,
        "method.alpha": 64,
        "method.targets": ["q_proj", "v_proj"],
        "method.dropout": 0.1,
        "training.learning_rate": 5e-5,
        "training.epochs": 3.0,
        "training.batch_size": 8,
        "training.schedule": "linear",
    }
    assert {key: made.fields[key] for key in expected} == expected


def test_eight_bits(converted):
    made = converted(BASE + "quantization_bit: 8\nquantization_method: bnb\n")
    assert (made.fields["method.type"], made.fields["method.quantization"]) == ("qlora", "int8")
    assert "method.double_quantization" not in made.fields


def test_the_last_layers(converted):
    made = converted(
        BASE.replace("lora", "freeze") + "freeze_trainable_layers: 3\ndisable_gradient_checkpointing: true\n"
    )
    assert (made.fields["method.type"], made.fields["method.layers"]) == ("full", 3)
    assert made.fields["training.gradient_checkpointing"] is False


def test_pretraining_reads_running_text(converted):
    made = converted(
        BASE.replace("sft", "pt").replace("lora", "full") + "max_steps: 40\npacking: true\nwarmup_steps: 4\n"
    )
    assert made.fields["data.format"] == "text" and made.fields["method.type"] == "full"
    assert made.fields["training.steps"] == 40 and made.fields["training.warmup"] == 4
    assert "training.epochs" not in made.fields and "data.long" not in made.fields


def test_pretraining_packs_and_loses_no_text_unless_packing_is_off(converted):
    """`packing` is on in pre-training where the file does not name it; without it a text is cut at the length."""
    base = BASE.replace("sft", "pt")
    made = converted(base)
    assert made.fields["training.speed.packing"] == "auto" and "data.long" not in made.fields
    assert any("each filled with several rows there" in note for note in made.made.notes)
    off = converted(base + "packing: false\n")
    assert "training.speed.packing" not in off.fields and off.fields["data.long"] == "cut"


def test_settings_without_counterpart_are_named(converted):
    made = converted(
        BASE.replace("notes", "notes,facts")
        + "mask_history: true\nneftune_noise_alpha: 5\nuse_galore: true\nmax_samples: 10\nloraplus_lr_ratio: 16\n"
        + "save_strategy: epoch\noptim: adafactor\nlr_scheduler_type: cosine_with_restarts\nmystery: 1\n"
    )
    assert made.fields["data.train"] == ["notes", "facts"] and made.fields["data.supervise"] == "last"
    missed = {"dataset", "template", "neftune_noise_alpha", "use_galore", "max_samples", "loraplus_lr_ratio"}
    assert made.keys("no counterpart") == missed | {"save_strategy", "optim", "lr_scheduler_type", "bf16"}
    assert made.keys("not known") == {"mystery"}


def test_another_stage_is_refused(converted):
    with pytest.raises(UsageError, match="stage: dpo"):
        converted(BASE.replace("sft", "dpo"))


def test_an_adapter_below_a_new_one_is_not_continued(converted):
    made = converted(BASE + "adapter_name_or_path: saves/x\ncreate_new_adapter: true\n")
    assert "method.from" not in made.fields and "adapter_name_or_path" in made.keys("no counterpart")
    assert converted(BASE + "adapter_name_or_path: saves/x\n").fields["method.from"] == "saves/x"


def test_references_between_keys_are_omegaconfs(converted):
    made = converted(
        "root: acme\nname: ${root}/chat\nmodel_name_or_path: ${name}\nstage: sft\ncutoff_len: ${oc.env:LENGTH,1024}\n"
        "finetuning_type: lora\ndataset: notes\nlora_rank: 4\nlora_alpha: ${lora_rank}\n"
    )
    assert made.fields["model.name"] == "acme/chat" and made.fields["data.max_length"] == 1024
    assert made.fields["method.alpha"] == 4


def test_evaluations_are_every_500_steps_and_training_can_end_early(converted):
    made = converted(BASE + "val_size: 20\nmax_samples: 100\neval_strategy: steps\nearly_stopping_steps: 3\n")
    assert made.fields["evaluation.every"] == 500 and made.fields["evaluation.patience"] == 3
    assert (made.fields["data.train_rows"], made.fields["data.evaluation_rows"]) == (80, 20)


def test_rows_that_are_not_shuffled_or_left_out_are_said(converted):
    made = converted(BASE + "disable_shuffling: true\ndataloader_drop_last: true\ndataloader_num_workers: 4\n")
    assert {"disable_shuffling", "dataloader_drop_last"} <= made.keys("no counterpart")
    assert "dataloader_num_workers" in made.keys("ignored")
