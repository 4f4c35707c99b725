"""Edit flows on the Python documentation: texts grow from nothing by insertions.

Data      python data/pydocs/prepare.py
"""

algorithm = "editflow"
dataset = "pydocs"
out_dir = "out/pydocs_editflow"

objective = "counts"  # flat: what is reported is the bound
schedule = "linear"
prompts = 0.3  # so that it goes on with a text, too

seq_len = 256
n_layer = 3
n_head = 3
n_embd = 192

batch_size = 8
max_iters = 1600
optimizer = "muon"
learning_rate = 2e-3
muon_learning_rate = 2e-2
lr_schedule = "wsd"
decay_fraction = 0.5
warmup_iters = 40

eval_interval = 800
eval_windows = 128
