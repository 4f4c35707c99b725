"""03 with a network half as wide."""

algorithm = "ar"

vocabulary = 4096
n_layer = 3
n_head = 3
n_embd = 96
tied = True
conv = 2

stages = ("0:seq_len=64 batch_size=32", "0.3:seq_len=128 batch_size=16", "0.6:seq_len=256 batch_size=8")
learning_rate = 2e-3
muon_learning_rate = 2e-2
decay = 0.5
