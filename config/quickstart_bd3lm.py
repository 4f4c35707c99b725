"""The laptop path by blocks: config/quickstart.py's network, data and budget, in blocks of 16 tokens.

Data      python data/pydocs/prepare.py
Hardware  one CPU core with bfloat16, 14 minutes
Expected  2.11 bits per byte (NELBO); config/quickstart.py, on as many tokens: 2.21
"""

algorithm = "bd3lm"
dataset = "pydocs"
out_dir = "out/quickstart_bd3lm"

block_size = 16
t_min = 0.3  # blocks that are almost clean or almost empty teach little, and their loss varies most (experiments/)
t_max = 0.8

seq_len = 256
n_layer = 3
n_head = 3
n_embd = 192

batch_size = 8
max_iters = 1800
optimizer = "muon"
learning_rate = 2e-3
muon_learning_rate = 2e-2
lr_schedule = "wsd"
decay_fraction = 0.5
warmup_iters = 40

eval_interval = 600
eval_windows = 128
