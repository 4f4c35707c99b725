"""Qwen3-0.6B as a block diffusion model on one GPU: config/qwen3_bd3lm.py with a hundredth of its compute.

Published counterpart: none; the full recipe's header shows it.

Data       alpaca, 52,000 single turns
Hardware   one GPU of 24 GB: python train.py config/qwen3_bd3lm_small.py; not run by us
"""

algorithm = "bd3lm"
dataset = "alpaca"
init_from = "checkpoints/qwen3-0.6b-bd3lm"
convert = "Qwen/Qwen3-0.6B"
out_dir = "out/qwen3_bd3lm_small"

block_size = 32
seq_len = 512
packing = True

batch_size = 8
gradient_accumulation_steps = 4
epochs = 3.0
recompute = True
learning_rate = 0.0001
lr_schedule = "cosine"
warmup_fraction = 0.1
min_lr_fraction = 0.0
weight_decay = 0.0
beta2 = 0.999

eval_interval = 500
