"""config/sudoku_mdlm.py's network, data and iterations by uniform noise: does it pay that any cell can be corrected?

Data      python data/sudoku/prepare.py  (no solution of a validation puzzle occurs in training)
Hardware  one CPU core with bfloat16, about as long as that one (2026-11-29, a core shared with other work)
Expected  97.2 % of 1000 held-out puzzles solved in 16 steps, 89.3 % in 2; the table is in docs/uniform.md
          python eval.py --checkpoint=out/sudoku_udlm --temperature=0
"""

dataset = "sudoku"
out_dir = "out/sudoku_udlm"
algorithm = "udlm"
objective = "noised_ce"

seq_len = 33  # 16 cells, "=", 16 cells
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
