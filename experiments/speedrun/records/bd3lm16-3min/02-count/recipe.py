"""Blocks of 16, with what won for mdlm: it begins as autoregression, then blocks grow."""

algorithm = "bd3lm"
block_size = 16
corruption = "count"  # all of the bound is trained, not the part that clipped rates keep

vocabulary = 4096
n_layer = 3
n_head = 3
n_embd = 192
nearest = 8
conv = 2

stages = (
    "0:algorithm=ar seq_len=64 batch_size=32",
    "0.2:seq_len=128 batch_size=16",
    "0.4:algorithm=bd3lm block_size=4",
    "0.5:block_size=16",
    "0.75:seq_len=256 batch_size=8",
)
learning_rate = 2e-3
muon_learning_rate = 2e-2
decay = 0.5
