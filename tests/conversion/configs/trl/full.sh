# Full training
python trl/scripts/sft.py \
    --model_name_or_path Qwen/Qwen2.5-0.5B \
    --dataset_name trl-lib/Capybara \
    --learning_rate 2.0e-5 \
    --num_train_epochs 1 \
    --per_device_train_batch_size 2 \
    --gradient_accumulation_steps 8 \
    --assistant_only_loss \
    --lr_scheduler_type cosine --warmup_ratio 0.03 \
    --optim adamw_bnb_8bit \
    --output_dir Qwen2.5-0.5B-SFT
