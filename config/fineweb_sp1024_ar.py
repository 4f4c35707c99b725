"""FineWeb in parameter-golf's 1024 tokens, left to right: config/fineweb_sp1024_mdlm.py's network, batch and length.

Published (openai/parameter-golf, PR 1699, its authors' number): 1.239 bits per byte on 5000 windows, of the baseline
there: 9 layers, 512 wide, 17.1M parameters, 10 minutes of 8 H100.

Data      python data/fineweb_sp1024/prepare.py --train_shards=95  (19 GB; one file will do to try it)
Hardware  meant for one GPU of 80 GB; not run by us
"""

algorithm = "ar"
dataset = "fineweb_sp1024"
out_dir = "out/fineweb_sp1024_ar"

seq_len = 1024
n_layer = 8
n_head = 8
n_kv_head = 4
n_embd = 576
mlp_dim = 1152
tied = True

batch_size = 64
gradient_accumulation_steps = 8
max_iters = 18_000
optimizer = "muon"
learning_rate = 2e-3
muon_learning_rate = 8e-3  # theirs, .04, in our scale; masked diffusion wants half of it
lr_schedule = "wsd"
decay_fraction = 0.6
warmup_iters = 50
weight_decay = 0.0
ema = 0.999

eval_interval = 1000
eval_windows = 1024
log_interval = 50
