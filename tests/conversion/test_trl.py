"""TRL's SFT configurations and command lines, with the values that they must have as recipes."""

from __future__ import annotations

import pytest

from peftlab.errors import UsageError

COMMAND = """#!/bin/bash
MODEL=acme/base
# trl sft --learning_rate 9 is a comment
accelerate launch --num_processes 4 trl/scripts/sft.py \\
    --model_name_or_path $MODEL \\
    --dataset_name acme/talk --dataset_config small \\
    --learning_rate 2.0e-4 \\
    --num_train_epochs 1 --packing \\
    --per_device_train_batch_size 2 --gradient-accumulation-steps=8 \\
    --eval_strategy steps --eval_steps 100 \\
    --use_peft --lora_r 32 --lora_alpha 16 \\
    --lora_target_modules q_proj k_proj \\
    --output_dir out 2>&1 | tee log
"""


def test_a_command_line(converted):
    made = converted(COMMAND, name="run.sh")
    made.has(
        model={"name": "acme/base"},
        method={"type": "lora", "rank": 32, "alpha": 16, "dropout": 0.05, "targets": ["q_proj", "k_proj"]},
        data={"train": "acme/talk:small", "evaluation": "acme/talk:small[test]", "max_length": 1024, "long": "cut"},
        training={
            "speed": {"packing": "auto"},
            "epochs": 1,
            "batch_size": 2,
            "gradient_accumulation": 8,
            "learning_rate": 2e-4,
            "schedule": "linear",
            "optimizer": {"type": "adamw"},
            "precision": "bfloat16",
            "gradient_checkpointing": True,
        },
        evaluation={"every": 100},
    )
    assert "2 x 8 = 16 rows" in made.made.notes[-1] and "64 on the 4" in made.made.notes[-1]
    assert made.keys("no counterpart") == {"assistant_only_loss"}
    assert any("precision = bfloat16" in note for note in made.made.notes)
    assert made.made.problems == []


def test_four_bits_are_not_quantised_twice_by_default(converted):
    made = converted(
        "model_name_or_path: a/b\ndataset_name: c/d\nuse_peft: true\nload_in_4bit: true\n"
        "lora_target_modules: all-linear\nassistant_only_loss: true\nlora_dropout: 0.0\n"
    )
    assert made.fields["method.type"] == "qlora" and made.fields["method.double_quantization"] is False
    assert made.fields["method.rank"] == 16 and made.fields["method.alpha"] == 32
    assert made.fields["method.dropout"] == 0.0 and made.fields["method.targets"] == "all-linear"
    assert made.fields["data.format"] == "chat" and made.keys("no counterpart") == set()
    assert made.fields["training.learning_rate"] == 2e-5 and made.fields["training.epochs"] == 3.0


def test_full_fine_tuning_without_peft(converted):
    made = converted(
        "model_name_or_path: a/b\ndataset_name: c/d\nlora_r: 8\nmax_seq_length: 300\ngradient_checkpointing: false\n"
        "fp16: true\ncompletion_only_loss: true\nmodel_revision: v2\ndtype: bfloat16\n"
    )
    assert made.fields["method.type"] == "full" and "method.rank" not in made.fields
    assert made.fields["data.max_length"] == 300 and made.fields["data.format"] == "completion"
    assert made.fields["training.precision"] == "float16"
    assert made.fields["training.gradient_checkpointing"] is False
    assert (made.fields["model.revision"], made.fields["model.dtype"]) == ("v2", "bfloat16")


def test_a_trl_command_with_flags(converted):
    made = converted(
        "CUDA_VISIBLE_DEVICES=0 trl sft --model_name_or_path a/b --dataset_name c/d --dataset_train_split train_sft "
        "--max_steps 7 --warmup_ratio 0.5 --weight_decay 0.1 --optim paged_adamw_32bit --seed 3 --report_to wandb "
        "--bf16 False --save_steps 5 --save_total_limit 1\n",
        name="run.sh",
    )
    assert made.fields["data.train"] == "c/d[train_sft]"
    assert made.fields["training.steps"] == 7 and made.fields["training.warmup"] == 0.5
    assert made.fields["training.optimizer.paged"] is True and made.fields["training.weight_decay"] == 0.1
    assert made.fields["training.precision"] == "float32"
    assert made.fields["run.trackers"] == ["wandb"]
    assert (made.fields["run.seed"], made.fields["run.save_every"], made.fields["run.keep_checkpoints"]) == (3, 5, 1)


def test_no_projections_means_those_of_the_family_and_is_said(converted):
    made = converted("model_name_or_path: a/b\ndataset_name: c/d\nuse_peft: true\nassistant_only_loss: true\n")
    assert made.fields["method.targets"] == ["q_proj", "v_proj"]
    assert made.keys("no counterpart") == {"lora_target_modules"}


def test_the_head_as_a_target_and_supervised_prompts_are_said(converted):
    made = converted(
        "model_name_or_path: a/b\ndataset_name: c/d\nuse_peft: true\nlora_target_modules: [q_proj, lm_head]\n"
        "completion_only_loss: false\nloss_type: dft\nodd_key: 1\nmax_length: null\n"
    )
    assert made.fields["method.targets"] == ["q_proj"]
    missed = {"lora_target_modules", "completion_only_loss", "assistant_only_loss", "loss_type", "max_length"}
    assert "data.max_length" not in made.fields and "data.long" not in made.fields
    assert made.keys("no counterpart") == missed and made.keys("not known") == {"odd_key"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trl dpo --model_name_or_path a\n", "supervised fine-tuning only"),
        ("trl sft --model_name_or_path $WHICH\n", r"\$WHICH has no value"),
        ("echo --x\n", "no commands of TRL"),
        ("trl sft --a 'b\n", "cannot be read"),
    ],
)
def test_commands_that_cannot_be_taken(converted, text, message):
    with pytest.raises(UsageError, match=message):
        converted(text, name="run.sh")


TALK = "trl sft --model_name_or_path a/b --dataset_name c/d"


def test_a_flag_that_begins_with_no_turns_off_what_it_names(converted):
    made = converted(f"{TALK} --no_gradient_checkpointing\n", name="run.sh")
    assert made.fields["training.gradient_checkpointing"] is False and made.keys("not known") == set()


def test_a_command_has_the_keys_of_its_config_below_its_own(converted, tmp_path):
    (tmp_path / "base.yaml").write_text("model_name_or_path: a/b\nuse_peft: true\nlora_r: 64\nlearning_rate: 1e-5\n")
    made = converted("trl sft --config base.yaml --dataset_name c/d --learning_rate 2e-4\n", name="run.sh")
    assert made.fields["model.name"] == "a/b" and made.fields["method.rank"] == 64
    assert made.fields["training.learning_rate"] == 2e-4 and made.keys("not known") == set()
    with pytest.raises(UsageError, match="--config other.yaml: no such file"):
        converted("trl sft --config other.yaml --dataset_name c/d\n", name="run.sh")


def test_variables_have_their_defaults_and_what_a_shell_knows_is_refused(converted):
    text = 'ROOT=acme # ours\nMODEL="${ROOT}/x"\ntrl sft --model_name_or_path $MODEL --dataset_name ${DATA:-c/d}'
    made = converted(f"{text}\n", name="run.sh")
    assert made.fields["model.name"] == "acme/x" and made.fields["data.train"] == "c/d"
    for left in ('"$@"', "--seed $(date +%s)", "--seed ${#X}"):
        with pytest.raises(UsageError, match="only a shell knows"):
            converted(f"{TALK} {left}\n", name="run.sh")


def test_torchrun_counts_the_processes_of_each_machine(converted):
    made = converted(f"torchrun --nnodes 2 --nproc_per_node 4 sft.py {TALK[8:]}\n", name="run.sh")
    assert "64 on the 8" in made.made.notes[-1]


def test_evaluations_are_as_often_as_trls_logs(converted):
    assert converted(f"{TALK} --eval_strategy steps\n", name="run.sh").fields["evaluation.every"] == 10
    made = converted(f"{TALK} --eval_strategy steps --logging_steps 50\n", name="run.sh")
    assert made.fields["evaluation.every"] == 50


def test_the_type_that_four_bits_are_unpacked_to_is_taken(converted):
    text = f"{TALK} --use_peft --load_in_4bit --bnb_4bit_compute_dtype float16\n"
    assert converted(text, name="run.sh").fields["method.compute_dtype"] == "float16"
