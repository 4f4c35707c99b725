"""The recipe of 3 minutes on a larger network and twice the batch. Not run yet: no result stands beside it."""

algorithm = "bd3lm"
budget = "30min"
block_size = 16
corruption = "count"

vocabulary = 4096
n_layer = 5
n_head = 4
n_embd = 256
nearest = 8
conv = 2

stages = (
    "0:algorithm=ar seq_len=64 batch_size=64",
    "0.2:seq_len=128 batch_size=32",
    "0.4:algorithm=bd3lm block_size=4",
    "0.5:block_size=16",
    "0.75:seq_len=256 batch_size=16",
)
learning_rate = 2e-3
muon_learning_rate = 2e-2
decay = 0.5
