"""A network that mends texts: typing errors in the Python documentation, character by character (editflow.py).

Data      python data/pydocs/prepare.py --tokenizer=char --out=data/pydocs_chars
Hardware  one CPU core with bfloat16, 8 minutes (0.33 s an iteration; the run itself shared its core, 2026-11-29)
Expected  0.210 +- .017 nats per character (NELBO from typos); how many texts it mends: docs/editing.md
"""

algorithm = "editflow"
dataset = "pydocs_chars"
out_dir = "out/pydocs_typos"

source = "typos"
errors = 0.4  # of each text's characters up to so many are lost, are others, or have one too many before them
objective = "counts"
schedule = "linear"

seq_len = 128
n_layer = 4
n_head = 4
n_embd = 192

batch_size = 16
max_iters = 1400
optimizer = "muon"
learning_rate = 2e-3
muon_learning_rate = 2e-2
lr_schedule = "wsd"
decay_fraction = 0.5
warmup_iters = 40

eval_interval = 700
eval_windows = 128
