"""torchtune's configurations, in its documented form, with the values that they must have as recipes."""

from __future__ import annotations

import pytest

from peftlab.errors import UsageError

LORA = """
output_dir: /tmp/out
model:
  _component_: torchtune.models.llama3_1.lora_llama3_1_8b
  lora_attn_modules: [q_proj, v_proj, output_proj]
  apply_lora_to_mlp: True
  apply_lora_to_output: False
  lora_rank: 8
  lora_alpha: 16
  lora_dropout: 0.0
tokenizer:
  _component_: torchtune.models.llama3.llama3_tokenizer
  path: /models/base/original/tokenizer.model
  max_seq_len: null
checkpointer:
  _component_: torchtune.training.FullModelHFCheckpointer
  checkpoint_dir: /models/base/
  checkpoint_files: [a.safetensors]
  output_dir: ${output_dir}
  model_type: LLAMA3
dataset:
  _component_: torchtune.datasets.alpaca_cleaned_dataset
  packed: False
seed: null
shuffle: True
batch_size: 2
optimizer:
  _component_: torch.optim.AdamW
  fused: True
  weight_decay: 0.01
  lr: 3e-4
lr_scheduler:
  _component_: torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup
  num_warmup_steps: 100
loss:
  _component_: torchtune.modules.loss.LinearCrossEntropyLoss
epochs: 1
max_steps_per_epoch: null
gradient_accumulation_steps: 8
compile: False
metric_logger:
  _component_: torchtune.training.metric_logging.DiskLogger
  log_dir: ${output_dir}/logs
log_every_n_steps: 1
device: cuda
dtype: bf16
enable_activation_checkpointing: True
profiler:
  _component_: torchtune.training.setup_torch_profiler
  enabled: False
"""


def test_lora(converted):
    made = converted(LORA)
    assert made.made.peer.name == "torchtune"
    made.has(
        model={"name": "/models/base/", "dtype": "bfloat16"},
        method={
            "type": "lora",
            "rank": 8,
            "alpha": 16,
            "dropout": 0.0,
            "targets": ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        },
        data={"format": "completion", "train": "yahma/alpaca-cleaned"},
        training={
            "batch_size": 2,
            "gradient_accumulation": 8,
            "epochs": 1,
            "optimizer": {"type": "adamw"},
            "learning_rate": 3e-4,
            "weight_decay": 0.01,
            "schedule": "cosine",
            "warmup": 100,
            "clip": None,
            "precision": "bfloat16",
            "gradient_checkpointing": True,
        },
        run={"device": "cuda"},
    )
    assert made.keys("no counterpart") == {"tokenizer.max_seq_len", "dataset.train_on_input"}
    assert made.keys("not known") == set()
    assert made.made.problems == []


def test_qlora_of_all_projections(converted):
    text = LORA.replace(".lora_llama", ".qlora_llama").replace("[q_proj,", "[q_proj, k_proj,")
    made = converted(text.replace("max_seq_len: null", "max_seq_len: 4096"))
    assert made.fields["method.type"] == "qlora" and made.fields["method.quantization"] == "nf4"
    assert made.fields["method.targets"] == "all-linear" and made.fields["data.max_length"] == 4096
    assert made.fields["data.long"] == "cut" and any("the end is cut there" in note for note in made.made.notes)


def test_full_with_pages_and_a_constant_rate(converted):
    text = LORA.replace(".lora_llama", ".llama").replace("torch.optim.AdamW", "bitsandbytes.optim.PagedAdamW8bit")
    text = text.replace("  weight_decay: 0.01\n", "")
    start, end = text.index("lr_scheduler:"), text.index("loss:")
    made = converted(text[:start] + text[end:].replace("max_steps_per_epoch: null", "max_steps_per_epoch: 30"))
    assert {key: value for key, value in made.fields.items() if key.startswith("method.")} == {"method.type": "full"}
    assert made.fields["training.optimizer.bits"] == 8 and made.fields["training.optimizer.paged"] is True
    assert made.fields["training.weight_decay"] == 0.01 and "optimizer.weight_decay" in made.keys("default")
    assert made.fields["training.schedule"] == "constant" and made.fields["training.steps"] == 30


def test_chats_of_a_file(converted):
    text = LORA.replace("torchtune.datasets.alpaca_cleaned_dataset", "torchtune.datasets.chat_dataset").replace(
        "  packed: False",
        "  source: json\n  data_files: talk.json\n  conversation_column: turns\n  conversation_style: sharegpt\n"
        "  split: train\n  packed: True",
    )
    made = converted(text)
    assert made.fields["data.train"] == "talk.json" and made.fields["data.format"] == "chat"
    assert made.fields["data.columns.messages"] == "turns" and made.fields["training.speed.packing"] == "auto"
    assert made.keys("no counterpart") == {"tokenizer.max_seq_len"}


def test_instructions_with_columns(converted):
    text = LORA.replace("alpaca_cleaned_dataset", "instruct_dataset").replace(
        "  packed: False", "  source: acme/qa\n  column_map: {input: question, output: answer}\n  train_on_input: True"
    )
    made = converted(text.replace("seed: null", "seed: 5\nclip_grad_norm: 2.0"))
    assert made.fields["data.train"] == "acme/qa"
    assert made.fields["data.columns.prompt"] == "question" and made.fields["data.columns.completion"] == "answer"
    assert made.fields["run.seed"] == 5 and made.fields["training.clip"] == 2.0
    assert "dataset.train_on_input" in made.keys("no counterpart")


def test_text_another_optimiser_and_unknown_keys(converted):
    text = LORA.replace("alpaca_cleaned_dataset", "text_completion_dataset").replace(
        "  packed: False", "  source: acme/books\n  column: body\n  split: test"
    )
    made = converted(
        text.replace("torch.optim.AdamW", "torch.optim.Adagrad").replace("apply_lora_to_output: False", "x: 1")
    )
    assert made.fields["data.train"] == "acme/books[test]" and made.fields["data.columns.text"] == "body"
    assert made.keys("not known") == {"model.x"}
    assert "optimizer._component_" in made.keys("no counterpart")


def test_references_to_references_are_followed(converted):
    text = LORA.replace("max_seq_len: null", "max_seq_len: ${length}") + "\nlength: ${long}\nlong: 4096\n"
    assert converted(text).fields["data.max_length"] == 4096


def test_preference_training_is_refused(converted):
    text = LORA.replace("torchtune.modules.loss.LinearCrossEntropyLoss", "torchtune.rlhf.loss.DPOLoss")
    assert text != LORA
    with pytest.raises(UsageError, match="supervised fine-tuning only"):
        converted(text)


def test_an_order_that_is_kept_and_files_of_a_hub_data_set_are_said(converted):
    text = LORA.replace("shuffle: True", "shuffle: False").replace("alpaca_cleaned_dataset", "instruct_dataset")
    made = converted(text.replace("  packed: False", "  source: acme/qa\n  data_files: part.json"))
    assert {"shuffle", "dataset.data_files"} <= made.keys("no counterpart")
    assert made.fields["data.train"] == "acme/qa"
