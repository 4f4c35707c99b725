"""LLaDA-8B learns from your conversations on one GPU: config/llada_sft.py with one process and short rows.

Published counterpart: none; the full recipe's header shows it.

Data       alpaca, 52,000 single turns; or --dataset=my.jsonl
Hardware   one GPU of 40 GB: python train.py config/llada_sft_small.py; not run by us
"""

algorithm = "mdlm"
dataset = "alpaca"
init_from = "GSAI-ML/LLaDA-8B-Base"
out_dir = "out/llada_sft_small"
preset = "chat"

seq_len = 512
fill = 0

lora_r = 32
lora_alpha = 64.0
recompute = True

batch_size = 4
gradient_accumulation_steps = 8
epochs = 1.0
learning_rate = 0.0001
lr_schedule = "cosine"
warmup_fraction = 0.03
weight_decay = 0.1

eval_interval = 100
eval_windows = 64
