"""Countdown by masked diffusion: what config/countdown_grpo.py starts from. It learns one answer of several.

Data      python data/countdown/prepare.py
Hardware  one CPU core with bfloat16; not run to its end by us
"""

dataset = "countdown"
out_dir = "out/countdown_mdlm"
algorithm = "mdlm"
objective = "masked_ce"

seq_len = 25  # 13 characters of the question, 12 of the answer
n_layer = 4
n_head = 4
n_embd = 128

batch_size = 128
max_iters = 1000
optimizer = "muon"
learning_rate = 2e-3
muon_learning_rate = 2e-2
lr_schedule = "wsd"
decay_fraction = 0.5
warmup_iters = 50

eval_interval = 500
eval_windows = 256
