"""04 with rates half as large again: at a third of the budget, masked diffusion won 0.012 by them."""

algorithm = "bd3lm"
block_size = 16
t_min = 0.3
t_max = 0.8

vocabulary = 8192
n_layer = 3
n_head = 3
n_embd = 96
tied = True
nearest = 8
conv = 2

stages = (
    "0:algorithm=ar seq_len=64 batch_size=32",
    "0.15:seq_len=128 batch_size=16",
    "0.3:algorithm=mdlm",
    "0.8:algorithm=bd3lm seq_len=256 batch_size=8",
)
learning_rate = 3e-3
muon_learning_rate = 3e-2
decay = 0.5
