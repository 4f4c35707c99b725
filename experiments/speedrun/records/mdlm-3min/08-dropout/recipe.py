"""07 with dropout: the text is read 15 times."""

algorithm = "mdlm"
objective = "masked_ce"
t_shape = "bell"
t_max = 0.8

vocabulary = 8192
n_layer = 3
n_head = 3
n_embd = 96
tied = True
nearest = 8
conv = 2
drop = 0.1

stages = (
    "0:algorithm=ar seq_len=64 batch_size=32",
    "0.15:seq_len=128 batch_size=16",
    "0.3:algorithm=mdlm",
    "0.6:seq_len=256 batch_size=8",
)
learning_rate = 2e-3
muon_learning_rate = 2e-2
decay = 0.5
