"""ModernBERT-base learns to chat on one GPU in an evening: config/modernbert_chat.py with a twentieth of its compute.

Published counterpart: none; the full recipe's header shows it.

Data       alpaca, 52,000 single turns
Hardware   one GPU of 24 GB: python train.py config/modernbert_chat_small.py; not run by us
"""

algorithm = "mdlm"
dataset = "alpaca"
init_from = "checkpoints/modernbert-base"
convert = "answerdotai/ModernBERT-base"
out_dir = "out/modernbert_chat_small"
preset = "chat"

seq_len = 512
fill = 0

objective = "masked_ce"  # learns faster than the bound in short runs (experiments/README.md)
t_shape = "bell"
batch_size = 32
gradient_accumulation_steps = 2
epochs = 5.0
learning_rate = 0.0001
lr_schedule = "cosine"
warmup_fraction = 0.1
min_lr_fraction = 0.0
weight_decay = 0.0
beta2 = 0.999

eval_interval = 500
