"""Tiny Shakespeare, character by character, by uniform noise: config/shakespeare_char_mdlm.py without a mask.

Data      python data/shakespeare_char/prepare.py
Hardware  one CPU core with bfloat16, 9 minutes of its time
Expected  2.196 nats per character (NELBO); on as many characters, config/shakespeare_char_mdlm.py: 2.02, _ar.py: 1.53
"""

algorithm = "udlm"
dataset = "shakespeare_char"
out_dir = "out/shakespeare_char_udlm"

seq_len = 64
n_layer = 4
n_head = 4
n_embd = 128

batch_size = 32
max_iters = 3000
optimizer = "muon"
learning_rate = 2e-3
muon_learning_rate = 2e-2
lr_schedule = "wsd"
warmup_iters = 100
decay_fraction = 0.5
eval_interval = 500
eval_windows = 512
