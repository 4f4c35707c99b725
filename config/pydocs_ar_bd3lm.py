"""Proof on a laptop: our own autoregressive model of the Python documentation, converted to block diffusion.

As config/pydocs_ar_mdlm.py, in blocks of 16 tokens: what lies before a block is read from left to right still.

Data      python data/pydocs/prepare.py
Hardware  one CPU core, 10 minutes
"""

algorithm = "bd3lm"
dataset = "pydocs"
init_from = "out/pydocs_ar_to_bd3lm"
convert = "out/quickstart_ar"
out_dir = "out/pydocs_ar_bd3lm"

block_size = 16
t_min = 0.3
t_max = 0.8

batch_size = 8
max_iters = 600
optimizer = "muon"
learning_rate = 2e-3
muon_learning_rate = 2e-2
lr_schedule = "wsd"
decay_fraction = 0.5
warmup_iters = 40

eval_interval = 600
eval_windows = 128
