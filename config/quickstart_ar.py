"""The baseline of the laptop path: the same network, data, optimiser and number of tokens, left to right.

Data      python data/pydocs/prepare.py
Hardware  2 CPU cores with bfloat16, 220 s of training
Expected  1.73 bits per byte (exact)
"""

algorithm = "ar"
dataset = "pydocs"
out_dir = "out/quickstart_ar"

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
