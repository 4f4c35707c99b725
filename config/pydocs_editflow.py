"""Edit flows on the Python documentation: texts grow from nothing by insertions, with nobody saying how long they are.

Data      python data/pydocs/prepare.py
Hardware  one CPU core with bfloat16, 11 minutes (0.4 s an iteration; the run itself shared its core, 2026-11-29)
Expected  2.75 +- .05 bits per byte (NELBO, the length included); masks: 2.21 (config/quickstart.py), of 3.7 M
          tokens, where these are 3.3 M; uniform noise: 2.49 (config/quickstart_udlm.py)

A text that grows anywhere tells less of its future than one whose places are known: at first its tokens are far from
each other, and the network does not know how far.
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
