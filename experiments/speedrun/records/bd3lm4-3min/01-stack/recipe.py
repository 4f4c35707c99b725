"""Blocks of 4, with what won for mdlm: it begins as autoregression. An exact count of hidden tokens varies less in so
short a block than clipped rates do (experiments/README.md, 8)."""

algorithm = "bd3lm"
block_size = 4
corruption = "count"

vocabulary = 4096
n_layer = 3
n_head = 3
n_embd = 192
nearest = 4
conv = 2

stages = (
    "0:algorithm=ar seq_len=64 batch_size=32",
    "0.2:seq_len=128 batch_size=16",
    "0.4:algorithm=bd3lm",
    "0.75:seq_len=256 batch_size=8",
)
learning_rate = 2e-3
muon_learning_rate = 2e-2
decay = 0.5
