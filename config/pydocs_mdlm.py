"""The checkpoint that ships with the repository, checkpoints/pydocs_mdlm: 3.4M parameters on the Python documentation.

Data      python data/pydocs/prepare.py
Hardware  one CPU core with bfloat16, 53 minutes (Python 3.11's documentation, torch 2.13, 2026-11-21)
Expected  1.87 bits per byte (NELBO); the log is checkpoints/pydocs_mdlm/metrics.jsonl

The shipped weights drew t uniformly up to iteration 2873 (--t_shape=uniform), were stopped there and resumed with the
bell, when that had turned out to be better (experiments/README.md).
"""

algorithm = "mdlm"
dataset = "pydocs"
out_dir = "out/pydocs_mdlm"

objective = "masked_ce"
t_shape = "bell"

seq_len = 256
n_layer = 6
n_head = 3
n_embd = 192

batch_size = 16
max_iters = 5500
optimizer = "muon"
learning_rate = 2e-3
muon_learning_rate = 2e-2
lr_schedule = "wsd"
decay_fraction = 0.5
warmup_iters = 50
save_dtype = "float16"

eval_interval = 500
eval_windows = 256
eval_samples = 4
