"""config/quickstart_ar.py, as a recipe of the speed-run: where every lever of autoregression starts from."""

algorithm = "ar"

seq_len = 256
n_layer = 3
n_head = 3
n_embd = 192

batch_size = 8
learning_rate = 2e-3
muon_learning_rate = 2e-2
decay = 0.5
