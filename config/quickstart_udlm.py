"""The laptop path by uniform noise: config/quickstart.py's network, data and iterations, without a mask.

Data      python data/pydocs/prepare.py
Hardware  2 CPU cores with bfloat16 (2026-11-28, a core shared with other work: the time says nothing)
Expected  2.48 bits per byte (NELBO); config/quickstart.py, on as many tokens: 2.21
"""

algorithm = "udlm"
dataset = "pydocs"
out_dir = "out/quickstart_udlm"

t_shape = "bell"  # as there: what is reported is the bound

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
