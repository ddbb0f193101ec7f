"""Names that PEFT, transformers' Trainer, TRL and configurations around them give to fields of a recipe."""

from __future__ import annotations

NAMES = {
    "model.name": "base_model model_name model_id model_name_or_path pretrained_model_name_or_path "
    "base_model_name_or_path",
    "model.tokenizer": "tokenizer_name tokenizer_name_or_path",
    "model.dtype": "torch_dtype weight_dtype",
    "model.attention": "attn_implementation attention_implementation",
    "model.task": "task_type",
    "method.type": "peft_type peft_method adapter finetuning_type load_in_4bit load_in_8bit use_peft",
    "method.rank": "r lora_r lora_rank lora_dim",
    "method.alpha": "lora_alpha",
    "method.dropout": "lora_dropout",
    "method.targets": "target_modules lora_target lora_target_modules lora_modules target_layers",
    "method.init": "init_lora_weights",
    "method.dora": "use_dora",
    "method.rslora": "use_rslora",
    "method.unfreeze": "modules_to_save lora_modules_to_save additional_target",
    "method.quantization": "bnb_4bit_quant_type quantization_bit quant_type",
    "method.double_quantization": "bnb_4bit_use_double_quant use_double_quant double_quant",
    "method.compute_dtype": "bnb_4bit_compute_dtype",
    "method.length": "num_virtual_tokens prefix_length prompt_length",
    "method.projection": "prefix_projection",
    "method.projection_dim": "encoder_hidden_size",
    "method.bottleneck": "adapter_dim bottleneck_dim bottleneck_size adapter_size",
    "data.train": "dataset datasets dataset_name dataset_path train_file train_dataset train_data",
    "data.evaluation": "validation_file eval_dataset eval_file val_set_size eval_data validation_split",
    "data.test": "test_file test_dataset",
    "data.max_length": "max_seq_length max_seq_len max_sequence_length sequence_len seq_length seq_len cutoff_len "
    "model_max_length block_size context_length",
    "data.template": "prompt_template instruction_template",
    "data.columns": "dataset_text_field text_column",
    "training.steps": "max_steps num_steps total_steps train_steps iterations iters",
    "training.epochs": "num_train_epochs num_epochs n_epochs epoch",
    "training.batch_size": "per_device_train_batch_size train_batch_size micro_batch_size bs",
    "training.gradient_accumulation": "gradient_accumulation_steps grad_accum grad_accumulation_steps "
    "accumulate_grad_batches",
    "training.learning_rate": "lr peak_lr base_lr max_lr",
    "training.schedule": "lr_scheduler_type lr_scheduler scheduler lr_schedule",
    "training.warmup": "warmup_steps warmup_ratio num_warmup_steps lr_warmup_steps",
    "training.weight_decay": "wd",
    "training.optimizer": "optim optimizer_name",
    "training.clip": "max_grad_norm grad_clip gradient_clipping gradient_clip_val clip_grad_norm",
    "training.gradient_checkpointing": "use_gradient_checkpointing activation_checkpointing grad_checkpointing",
    "training.precision": "bf16 fp16 mixed_precision",
    "evaluation.every": "eval_steps eval_every evals_per_epoch eval_interval",
    "evaluation.batch_size": "per_device_eval_batch_size eval_batch_size",
    "evaluation.generation.max_new_tokens": "max_tokens generation_max_length max_gen_length",
    "evaluation.generation.beams": "num_beams generation_num_beams",
    "evaluation.generation.stop": "stop_strings stop_sequences",
    "run.output": "output_dir output_path save_dir",
    "run.seed": "random_seed",
    "run.save_every": "save_steps checkpoint_every save_interval",
    "run.keep_checkpoints": "save_total_limit",
    "run.log_every": "logging_steps log_interval",
    "run.trackers": "report_to loggers log_with",
    "run.max_seconds": "max_time time_limit",
}  # fmt: skip
ABSENT = {
    "rank_pattern alpha_pattern": "every projection has the same rank and alpha; method.targets leaves projections out",
    "layers_to_transform layers_pattern": "name the layers in method.targets, as in `layers.3`",
    "exclude_modules": "method.targets names what gets an update",
    "target_parameters": "the fused weights of experts get no update",
    "lora_bias": "LoRA's own layers have no biases; method.bias trains those of the base",
    "trainable_token_indices": "no single embeddings of the base train; model.add_tokens adds tokens, which do",
    "layer_replication": "no layers are repeated",
    "loftq_config": "a quantised base keeps its error; use method.init=default or gaussian",
}
"""What other libraries have and recipes do not, and what recipes have instead."""

PATHS = {name: path for path, names in NAMES.items() for name in names.split()}


def path_of(name: str) -> str | None:
    """Return the key path of the field that other libraries call `name`, None if it is not known."""
    return PATHS.get(name.lower().replace("-", "_").lstrip("_"))


def explain_absent(name: str) -> str | None:
    """Return what recipes have instead of something that other libraries call `name`; None if nothing is known."""
    return next((instead for names, instead in ABSENT.items() if name in names.split()), None)
