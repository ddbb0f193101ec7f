"""Axolotl's configurations: six in its documented form, with the values that they must have as recipes."""

from __future__ import annotations

import pytest

from peftlab.errors import UsageError

QLORA = """
base_model: acme/base-3b
load_in_8bit: false
load_in_4bit: true
strict: false
datasets:
  - path: acme/instructions
    type: alpaca
val_set_size: 0.05
output_dir: ./out
adapter: qlora
lora_model_dir:
sequence_len: 2048
sample_packing: true
pad_to_sequence_len: true
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
lora_target_modules:
wandb_project:
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 3
optimizer: paged_adamw_8bit
lr_scheduler: cosine
learning_rate: 0.0002
train_on_inputs: false
bf16: auto
fp16:
tf32: false
gradient_checkpointing: true
logging_steps: 1
flash_attention: true
warmup_steps: 10
saves_per_epoch: 1
weight_decay: 0.01
special_tokens:
  pad_token: "<pad>"
"""


def test_qlora_on_alpaca_rows(converted):
    made = converted(QLORA)
    assert made.made.peer.name == "axolotl"
    made.has(
        model={"name": "acme/base-3b", "attention": "flash_attention_2"},
        method={
            "type": "qlora",
            "quantization": "nf4",
            "rank": 32,
            "alpha": 16,
            "dropout": 0.05,
            "targets": "all-linear",
        },
        data={
            "train": "acme/instructions",
            "format": "completion",
            "evaluation": 0.05,
            "max_length": 2048,
            "long": "skip",
        },
        training={
            "speed": {"packing": "auto"},
            "epochs": 3,
            "batch_size": 2,
            "gradient_accumulation": 4,
            "learning_rate": 0.0002,
            "schedule": "cosine",
            "warmup": 10,
            "optimizer": {"type": "adamw", "bits": 8, "paged": True},
            "weight_decay": 0.01,
            "precision": "auto",
            "gradient_checkpointing": True,
        },
    )
    assert made.keys("no counterpart") == {"saves_per_epoch", "special_tokens"}
    assert made.keys("not known") == set()
    assert made.made.problems == []
    packing, batch = made.made.notes
    assert packing.startswith("packing: a step's sequences") and "2 x 4 = 8 rows" in batch
    assert f"# note: {packing}" in made.made.text
    assert "datasets.type" in made.keys("taken") and "excess_length_strategy" in made.keys("default")
    assert "# no counterpart: saves_per_epoch: 1 ->" in made.made.text


def test_chats_with_their_own_columns_and_named_projections(converted):
    made = converted("""
base_model: acme/chat
datasets:
  - path: rows.jsonl
    ds_type: json
    type: chat_template
    field_messages: dialogue
    message_property_mappings: {role: from, content: value}
  - path: acme/more
    name: easy
    split: validation
    type: chat_template
    field_messages: dialogue
chat_template: chatml
val_set_size: 200
adapter: lora
lora_r: 8
lora_alpha: 8
lora_target_modules: [q_proj, v_proj]
peft_use_rslora: true
lora_modules_to_save: [embed_tokens]
sequence_len: 1024
excess_length_strategy: truncate
batch_size: 32
micro_batch_size: 4
max_steps: 500
num_epochs: 9
optimizer: adamw_torch
adam_beta2: 0.95
adam_epsilon: 0.000001
lr_scheduler: linear
warmup_ratio: 0.1
learning_rate: 1e-4
max_grad_norm: 0.5
bf16: true
seed: 7
""")
    made.has(
        model={"name": "acme/chat"},
        method={
            "type": "lora",
            "rank": 8,
            "alpha": 8,
            "rslora": True,
            "targets": ["q_proj", "v_proj"],
            "unfreeze": ["embed_tokens"],
        },
        data={
            "train": ["rows.jsonl", "acme/more:easy[validation]"],
            "format": "chat",
            "columns": {"messages": "dialogue"},
            "evaluation": 200,
            "max_length": 1024,
            "long": "cut",
        },
        training={
            "steps": 500,
            "batch_size": 4,
            "gradient_accumulation": 8,
            "learning_rate": 1e-4,
            "schedule": "linear",
            "warmup": 0.1,
            "optimizer": {"type": "adamw", "betas": [0.9, 0.95], "eps": 1e-6},
            "clip": 0.5,
            "precision": "bfloat16",
        },
        run={"seed": 7},
    )
    assert made.keys("no counterpart") == {"chat_template"}
    assert made.made.problems == []


def test_full_fine_tuning_on_running_text_with_defaults(converted):
    made = converted("""
base_model: acme/base
datasets: [{path: books.txt, type: completion, field: body}]
sequence_len: 512
micro_batch_size: 1
learning_rate: 2e-5
fp16: true
lora_r: 8
group_by_length: true
""")
    made.has(
        model={"name": "acme/base"},
        method={"type": "full"},
        data={"train": "books.txt", "format": "text", "columns": {"text": "body"}, "max_length": 512},
        training={
            "epochs": 1.0,
            "batch_size": 1,
            "learning_rate": 2e-5,
            "schedule": "cosine",
            "warmup": 0.03,
            "optimizer": {"type": "adamw"},
            "precision": "float16",
        },
    )
    assert {"num_epochs", "lr_scheduler", "warmup_ratio", "optimizer", "adapter"} <= made.keys("default")
    assert "lora_r" in made.keys("ignored")
    assert made.keys("no counterpart") == {"group_by_length"}


def test_a_prompt_that_the_file_writes(converted):
    made = converted("""
base_model: acme/base
adapter: lora
lora_r: 4
lora_alpha: 8
lora_target_linear: true
datasets:
  - path: facts.jsonl
    type:
      field_instruction: question
      field_input: context
      field_output: reply
      format: "{input}\\nQ: {instruction}\\nA:"
      no_input_format: "Q: {instruction}\\nA:"
train_on_inputs: true
sequence_len: 256
micro_batch_size: 8
num_epochs: 2
learning_rate: 0.001
lr_scheduler: constant
warmup_steps: 5
optimizer: lion_8bit
load_in_8bit: true
""")
    assert made.fields["data.template"] == "{context}\nQ: {question}\nA:"
    assert made.fields["data.columns.completion"] == "reply"
    assert made.fields["method.type"] == "qlora" and made.fields["method.quantization"] == "int8"
    assert made.fields["training.schedule"] == "constant" and "training.warmup" not in made.fields
    assert made.fields["training.optimizer.type"] == "adamw"
    assert made.keys("no counterpart") == {"datasets.type.no_input_format", "train_on_inputs", "optimizer"}
    assert made.made.problems == []


def test_a_key_that_nobody_knows_is_listed_with_its_line(converted):
    made = converted("base_model: acme/base\nmicro_batch_size: 1\nfrobnicate: 3\n")
    line = next(line for line in made.made.lines if line.key == "frobnicate")
    assert (line.fate.value, line.line) == ("not known", 3)
    assert "not known: frobnicate: 3" in made.made.text
    assert {problem.path for problem in made.made.problems} == {"data.train", "training.learning_rate"}


def test_segments_and_no_targets_are_said(converted):
    made = converted("""
base_model: acme/base
adapter: lora
lora_r: 4
lora_alpha: 8
datasets: [{path: rows.jsonl, type: input_output}]
micro_batch_size: 2
num_epochs: 1
learning_rate: 1e-3
lr_scheduler: polynomial
""")
    assert made.keys("no counterpart") == {"lora_target_modules", "datasets.type", "lr_scheduler"}
    assert made.fields["method.targets"] == ["q_proj", "v_proj"]
    assert "data.format" not in made.fields
    assert made.fields["training.precision"] == "auto"


def test_both_half_types_off_is_float32_and_a_revision_stays_text(converted):
    made = converted("base_model: a\nrevision_of_model: 12\nmicro_batch_size: 1\nbf16: false\nfp16: false\n")
    assert made.fields["training.precision"] == "float32" and made.fields["model.revision"] == "12"


def test_preference_training_is_refused(converted):
    with pytest.raises(UsageError, match="supervised fine-tuning only, not dpo"):
        converted("base_model: a\nmicro_batch_size: 1\nrl: dpo\n")


def test_a_head_beside_all_layers_and_fractions_of_a_run_are_said(converted):
    made = converted(
        "base_model: a\nmicro_batch_size: 1\nlearning_rate: 1e-3\nadapter: lora\nlora_target_linear: true\n"
        "lora_target_modules: [gate_proj, lm_head]\nsave_steps: 0.25\neval_strategy: epoch\nval_set_size: 0.1\n"
        "datasets: [{path: x.jsonl, type: chat_template, roles_to_train: [user], shards: 4}]\n"
    )
    assert made.fields["method.targets"] == "all-linear"
    said = {"lora_target_modules", "save_steps", "eval_strategy", "datasets.roles_to_train", "datasets.shards"}
    assert made.keys("no counterpart") == said
    assert made.made.problems == []


def test_a_regular_expression_of_projections_is_no_name_of_one(converted):
    made = converted(
        QLORA.replace("lora_target_linear: true\nlora_target_modules:", "lora_target_modules: '.*(q|v)_proj'")
    )
    assert made.made.recipe["method"]["targets"] == "all-linear"
    assert "lora_target_modules" in made.keys("no counterpart")


def test_digits_may_be_grouped_as_in_yaml_1_1(converted):
    made = converted(QLORA.replace("sequence_len: 2048", "sequence_len: 2_048"))
    assert made.made.recipe["data"]["max_length"] == 2048


START = (
    "base_model: a\nmicro_batch_size: 1\nlearning_rate: 1e-3\nadapter: lora\nlora_r: 4\nlora_alpha: 8\n"
    "lora_target_linear: true\n"
)
ROWS = "datasets: [{path: x.jsonl, type: alpaca}]\n"


@pytest.mark.parametrize(
    ("text", "precision"),
    [
        ("bf16: full", "bfloat16"),
        ("bfloat16: true", "bfloat16"),
        ("float16: true", "float16"),
        ("bf16: false\nbfloat16: true", "float32"),
        ("bf16: Yes", "bfloat16"),
        ("bf16: OFF\nfp16: On", "float16"),
    ],
)
def test_every_way_to_write_a_type_of_computation_is_taken(converted, text, precision):
    assert converted(START + ROWS + text + "\n").fields["training.precision"] == precision


def test_flags_in_capitals_turn_on_what_they_name(converted):
    made = converted(START + ROWS + "load_in_4bit: Yes\ngradient_checkpointing: NO\npeft_use_dora: ON\n")
    assert made.fields["method.type"] == "qlora" and made.fields["method.dora"] is True
    assert made.fields["training.gradient_checkpointing"] is False


def test_evaluations_without_a_number_of_steps_are_as_often_as_logs(converted):
    made = converted(START + ROWS + "val_set_size: 0.1\neval_strategy: steps\nlogging_steps: 25\n")
    assert made.fields["evaluation.every"] == 25
    made = converted(START + ROWS + "val_set_size: 0.1\nevaluation_strategy: steps\nsave_strategy: steps\n")
    assert "evaluation.every" not in made.fields and "eval_steps" in made.keys("no counterpart")
    assert made.fields["run.save_every"] == 500


def test_settings_of_bitsandbytes_are_taken_or_said(converted):
    text = "load_in_4bit: true\nbnb_config_kwargs: {bnb_4bit_quant_type: fp4, bnb_4bit_use_double_quant: false, x: 1}\n"
    made = converted(START + ROWS + text)
    assert made.fields["method.quantization"] == "fp4" and made.fields["method.double_quantization"] is False
    said = [line for line in made.made.lines if line.fate.value == "no counterpart"]
    assert [line.text.partition(":")[0] for line in said] == ["x"]


def test_data_sets_with_other_columns_keep_their_own(converted):
    made = converted(
        START + "datasets:\n  - {path: a.jsonl, type: chat_template, field_messages: dialogue}\n"
        "  - {path: b.jsonl, type: chat_template}\n"
    )
    assert made.made.recipe["data"]["train"] == [{"source": "a.jsonl", "columns": {"messages": "dialogue"}}, "b.jsonl"]
    assert "data.columns.messages" not in made.fields and made.made.problems == []


@pytest.mark.parametrize(
    ("source", "train", "said"),
    [
        ("path: json, data_files: [a.jsonl, b.jsonl]", ["a.jsonl", "b.jsonl"], set()),
        ("path: ./rows, data_files: a.jsonl", "./rows/a.jsonl", set()),
        ("path: acme/rows, data_files: a.jsonl", "acme/rows", {"datasets.data_files"}),
    ],
)
def test_files_of_a_data_set_are_those_of_its_path(converted, source, train, said):
    made = converted(START + f"datasets: [{{{source}, type: alpaca}}]\n")
    assert made.made.recipe["data"]["train"] == train and made.keys("no counterpart") == said


def test_a_prompt_without_a_format_has_axolotls_own(converted):
    made = converted(START + "datasets: [{path: x.jsonl, type: {field_input: context}}]\n")
    assert made.fields["data.template"] == "{instruction} {context} "


def test_merged_keys_are_those_of_the_section_that_they_name(converted):
    made = converted(
        "_all: &all {micro_batch_size: 4, learning_rate: 1e-4}\n<<: *all\nbase_model: a\nlearning_rate: 2e-4\n" + ROWS
    )
    assert made.fields["training.batch_size"] == 4 and made.fields["training.learning_rate"] == 2e-4


@pytest.mark.parametrize("text", ["base_model: ${MODEL}", "datasets: [{path: '${DATA}/x.jsonl', type: alpaca}]"])
def test_a_variable_that_nothing_replaces_is_refused(converted, text):
    with pytest.raises(UsageError, match=r"\$\{\w+\} has no value in this file"):
        converted(f"micro_batch_size: 1\nval_set_size: 0\n{text}\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("datasets: rows.jsonl", "datasets: rows.jsonl is not a list of sections"),
        ("datasets: 3", "datasets: 3 is not a list"),
        ("max_steps: .inf", "max_steps: inf is not a finite number"),
        ("val_set_size: .nan", "val_set_size: nan is not a finite number"),
    ],
)
def test_values_of_another_kind_are_named(converted, text, message):
    with pytest.raises(UsageError, match=message):
        converted(f"base_model: a\nmicro_batch_size: 1\n{text}\n")
