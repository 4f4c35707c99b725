"""Blocks of 16 that begin as autoregression and go on as masked diffusion, a step of which costs half: blocks are the
last two fifths alone. A vocabulary of 8192, in one table for input and output."""

algorithm = "bd3lm"
block_size = 16
t_min = 0.3
t_max = 0.8

vocabulary = 8192
n_layer = 3
n_head = 3
n_embd = 192
tied = True
nearest = 8
conv = 2

stages = (
    "0:algorithm=ar seq_len=64 batch_size=32",
    "0.15:seq_len=128 batch_size=16",
    "0.3:algorithm=mdlm",
    "0.6:algorithm=bd3lm",
    "0.8:seq_len=256 batch_size=8",
)
learning_rate = 2e-3
muon_learning_rate = 2e-2
decay = 0.5
