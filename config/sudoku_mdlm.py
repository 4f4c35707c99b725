"""4x4 sudoku by masked diffusion: puzzle in, solution out, filled in whatever order the model is surest of."""

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
