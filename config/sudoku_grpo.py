"""4x4 sudoku in two forwards, learnt by rewards alone: a network that solves about half goes on, and is told no answer.

Data      python data/sudoku/prepare.py
Start     python train.py config/sudoku_mdlm.py --max_iters=400 --eval_interval=400 --out_dir=out/sudoku_start
"""

dataset = "sudoku"
algorithm = "grpo"
init_from = "out/sudoku_start"
out_dir = "out/sudoku_grpo"

rewards = ("sudoku",)
group = 8
steps = 2
estimate = "exact"
deviation = False

batch_size = 128  # 16 puzzles, 8 answers to each
max_iters = 400
learning_rate = 1e-4
lr_schedule = "constant"
warmup_iters = 10
weight_decay = 0.0
beta2 = 0.99
grad_clip = 1.0

eval_interval = 100
eval_windows = 256
