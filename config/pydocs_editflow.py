"""Edit flows on the Python documentation: texts grow from nothing by insertions.

Data      python data/pydocs/prepare.py
"""

algorithm = "editflow"
dataset = "pydocs"
out_dir = "out/pydocs_editflow"

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
