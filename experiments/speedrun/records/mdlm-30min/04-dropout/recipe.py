"""As 03, with twice the dropout, as the text is read 37 times."""

algorithm = "mdlm"
budget = "30min"
objective = "masked_ce"
t_shape = "bell"
t_max = 0.8

vocabulary = 4096
n_layer = 5
n_head = 6
n_embd = 192
nearest = 8
conv = 2
drop = 0.2
tied = True

stages = (
    "0:algorithm=ar seq_len=64 batch_size=64",
    "0.15:seq_len=128 batch_size=32",
    "0.3:algorithm=mdlm",
    "0.6:seq_len=256 batch_size=16 t_max=1.0",
)
learning_rate = 2e-3
muon_learning_rate = 2e-2
decay = 0.5
