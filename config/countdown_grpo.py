"""Countdown on a laptop: three numbers, a target, + - * / and brackets; any expression that comes to it is right.

Data      python data/countdown/prepare.py
Start     python train.py config/countdown_mdlm.py
Reward    1 for the target, 0.1 for an expression that uses the numbers (d1's); ours was not run to its end
"""

dataset = "countdown"
algorithm = "grpo"
init_from = "out/countdown_mdlm"
out_dir = "out/countdown_grpo"

rewards = ("countdown",)
group = 8
steps = 6  # of 12 characters: two at a time
estimate = "exact"
deviation = False

batch_size = 256
max_iters = 600
learning_rate = 3e-4
min_lr_fraction = 0.03
warmup_iters = 20
weight_decay = 0.0
beta2 = 0.99

eval_interval = 100
eval_windows = 256
