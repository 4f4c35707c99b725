"""The recipe of 3 minutes on a larger network, in batches twice as large, with dropout: the text is read 19 times."""

algorithm = "ar"
budget = "30min"

vocabulary = 4096
n_layer = 5
n_head = 4
n_embd = 256
tied = True
conv = 2
drop = 0.2

stages = ("0:seq_len=64 batch_size=64", "0.3:seq_len=128 batch_size=32", "0.6:seq_len=256 batch_size=16")
learning_rate = 2e-3
muon_learning_rate = 2e-2
decay = 0.5
