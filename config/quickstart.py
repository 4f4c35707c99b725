"""The laptop path: masked diffusion on the Python documentation.

Data      python data/pydocs/prepare.py
Hardware  2 CPU cores with bfloat16, 190 s of training (without bfloat16 about twice that)
Expected  2.21 bits per byte (NELBO); the plain recipe reaches 2.60 in 200 s (docs/training.md)
"""

algorithm = "mdlm"
dataset = "pydocs"
out_dir = "out/quickstart"

objective = "masked_ce"  # flat, without the bound's weight 1/t (arXiv 2602.15014); what is reported is the bound
t_shape = "bell"  # rows that are almost empty or almost clean teach little (arXiv 2605.13026)
t_max = 0.8

seq_len = 256
n_layer = 3
n_head = 3
n_embd = 192

batch_size = 8  # small batches: at first the number of steps counts, not their size
max_iters = 1800
optimizer = "muon"
learning_rate = 2e-3
muon_learning_rate = 2e-2
lr_schedule = "wsd"
decay_fraction = 0.5
warmup_iters = 40

eval_interval = 600
eval_windows = 128
