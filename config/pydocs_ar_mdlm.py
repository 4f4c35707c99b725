"""Proof on a laptop: our own autoregressive model of the Python documentation, converted to masked diffusion.

The network of config/quickstart_ar.py goes on as config/quickstart.py would train it from scratch, for a third of its
steps. `python experiments/compare.py pydocs` trains both, and prints the table of docs/converting.md.

Data      python data/pydocs/prepare.py
Hardware  one CPU core, 6 minutes
"""

algorithm = "mdlm"
dataset = "pydocs"
init_from = "out/pydocs_ar_to_mdlm"
convert = "out/quickstart_ar"
out_dir = "out/pydocs_ar_mdlm"

objective = "masked_ce"
t_shape = "bell"
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
