"""The ladder from autoregression to masked diffusion: `python experiments/compare.py ladder` trains this network five
times, on the same windows, as ar, bd3lm with blocks of 1, 4 and 16, and mdlm, and prints one table.

Data      python data/pydocs/prepare.py
Hardware  2 CPU cores with bfloat16, 28 minutes
Expected  1.82 (ar), 1.87 (blocks of 1), 2.22 (4), 2.24 (16), 2.36 (mdlm) bits per byte, 2.67 with --algorithm=udlm
          --t_shape=bell; the table is in docs/numbers.md
"""

dataset = "pydocs"

seq_len = 256
n_layer = 3
n_head = 3
n_embd = 192

batch_size = 8
max_iters = 1200
optimizer = "muon"
learning_rate = 2e-3
muon_learning_rate = 2e-2
lr_schedule = "wsd"
decay_fraction = 0.5
warmup_iters = 40

eval_interval = 1200
eval_windows = 128
