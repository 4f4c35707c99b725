"""4x4 sudoku left to right: config/sudoku_mdlm.py's network, data and budget, one cell after the other.

Data      python data/sudoku/prepare.py
Hardware  one CPU core with bfloat16, 9 minutes
Expected  79.5 % of 1000 held-out puzzles solved (diffusion: 99.9 %)
          python eval.py --checkpoint=out/sudoku_ar --temperature=0
"""

dataset = "sudoku"  # python data/sudoku/prepare.py
out_dir = "out/sudoku_ar"
algorithm = "ar"

seq_len = 33
n_layer = 4
n_head = 4
n_embd = 128

batch_size = 128
max_iters = 2000
optimizer = "muon"
learning_rate = 2e-3
muon_learning_rate = 2e-2
lr_schedule = "wsd"
decay_fraction = 0.5
warmup_iters = 50
weight_decay = 0.1

eval_interval = 500
eval_windows = 256
