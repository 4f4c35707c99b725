"""config/quickstart.py, as a recipe of the speed-run: where every lever starts from."""

algorithm = "mdlm"
objective = "masked_ce"
t_shape = "bell"
t_max = 0.8

seq_len = 256
n_layer = 3
n_head = 3
n_embd = 192

batch_size = 8
learning_rate = 2e-3
muon_learning_rate = 2e-2
decay = 0.5
