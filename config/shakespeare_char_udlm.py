"""Tiny Shakespeare, character by character, by uniform noise: config/shakespeare_char_mdlm.py without a mask.

Data      python data/shakespeare_char/prepare.py
Hardware  2 CPU cores with bfloat16; not run to its end by us yet
"""

algorithm = "udlm"
dataset = "shakespeare_char"
out_dir = "out/shakespeare_char_udlm"

seq_len = 64
n_layer = 4
n_head = 4
n_embd = 128

batch_size = 32
max_iters = 3000
optimizer = "muon"
learning_rate = 2e-3
muon_learning_rate = 2e-2
lr_schedule = "wsd"
warmup_iters = 100
decay_fraction = 0.5
eval_interval = 500
eval_windows = 512
