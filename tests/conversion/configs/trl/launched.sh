#!/bin/bash
MODEL="meta-llama/Llama-3.1-8B"
OUTPUT=./sft-llama
accelerate launch --config_file examples/accelerate_configs/deepspeed_zero3.yaml --num_processes 8 \
    trl/scripts/sft.py \
    --model_name_or_path ${MODEL} \
    --dataset_name philschmid/dolly-15k-oai-style \
    --bf16 True --tf32 True \
    --per_device_train_batch_size 8 \
    --gradient_accumulation_steps 2 \
    --learning_rate 2e-4 \
    --max_steps 1000 --warmup_steps 50 \
    --max_length 3072 \
    --use_peft --lora_r 16 --lora_alpha 8 --lora_target_modules all-linear \
    --assistant_only_loss True \
    --attn_implementation sdpa \
    --logging_steps 10 --save_steps 250 --save_total_limit 2 \
    --report_to tensorboard \
    --output_dir ${OUTPUT}
