"""config/quickstart_ar.py with twice the vocabulary, in one table for input and output."""

algorithm = "ar"

vocabulary = 4096
seq_len = 256
n_layer = 3
n_head = 3
n_embd = 192
tied = True

batch_size = 8
learning_rate = 2e-3
muon_learning_rate = 2e-2
decay = 0.5
