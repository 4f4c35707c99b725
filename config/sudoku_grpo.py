"""4x4 sudoku in three forwards, by rewards: a network that can fill in what is half known learns to write at once.

Data      python data/sudoku/prepare.py
Start     python train.py config/sudoku_mdlm.py --t_max=0.5 --max_iters=300 --out_dir=out/sudoku_half
          It solves 92.2 % of 500 held-out puzzles in 16 forwards, 67.0 % in 4, 57.6 % in 3 (43.6 % at temperature 1)
Expected  66.1 % at temperature 1 and 67.8 % greedily, in 3 forwards (1000 puzzles, +- 1.5 points)
Measure   python eval.py --checkpoint=out/sudoku_grpo/last --windows=0 --temperature=0 --steps=3
"""

dataset = "sudoku"
algorithm = "grpo"
init_from = "out/sudoku_half"
out_dir = "out/sudoku_grpo"

rewards = ("sudoku_cells",)  # the share of cells that are right: gradients of 256 answers agree better than for whole
group = 8
steps = 3
estimate = "exact"
deviation = False

batch_size = 256  # 32 puzzles, 8 answers to each
max_iters = 600
learning_rate = 3e-4
min_lr_fraction = 0.03
warmup_iters = 20
weight_decay = 0.0
beta2 = 0.99

eval_interval = 100
eval_windows = 256
