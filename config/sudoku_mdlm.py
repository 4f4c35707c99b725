"""4x4 sudoku by masked diffusion: puzzle in, solution out, filled in whatever order the model is surest of.

Data      python data/sudoku/prepare.py  (no solution of a validation puzzle occurs in training)
Hardware  one CPU core with bfloat16, 9 minutes
Expected  99.9 % of 1000 held-out puzzles solved by confidence order, 91.5 % by random order
          python eval.py --checkpoint=out/sudoku_mdlm --temperature=0
9x9       python data/sudoku/prepare.py --size=9 --out=data/sudoku9, then --dataset=data/sudoku9 --seq_len=163 and a
          larger network; not run by us
"""

dataset = "sudoku"  # python data/sudoku/prepare.py
out_dir = "out/sudoku_mdlm"
algorithm = "mdlm"
objective = "masked_ce"

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
