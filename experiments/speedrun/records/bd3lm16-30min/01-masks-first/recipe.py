"""The recipe of 3 minutes on the network of mdlm-30min's 03. Not run yet: no result stands beside it."""

algorithm = "bd3lm"
budget = "30min"
block_size = 16
t_min = 0.3
t_max = 0.8

vocabulary = 4096
n_layer = 5
n_head = 6
n_embd = 192
tied = True
nearest = 8
conv = 2
drop = 0.1

stages = (
    "0:algorithm=ar seq_len=64 batch_size=64",
    "0.15:seq_len=128 batch_size=32",
    "0.3:algorithm=mdlm",
    "0.8:algorithm=bd3lm seq_len=256 batch_size=16",
)
learning_rate = 2e-3
muon_learning_rate = 2e-2
decay = 0.5
