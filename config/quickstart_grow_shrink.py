"""From an autoregressive checkpoint to block diffusion: blocks grow, stay at the whole window, and shrink again.

The schedule with which LLaDA2.0 turns a pretrained autoregressive model into a diffusion model (its report calls it
warm-up, stable, decay), at laptop size: each stage starts from what the one before has learnt, and the last one makes
it a model with a KV cache again.

Data      python data/pydocs/prepare.py, then python train.py config/quickstart_ar.py
Hardware  one CPU core with bfloat16, 8 minutes
Expected  2.07 bits per byte (NELBO at blocks of 16), measured with --init_from=out/ladder/ar, an autoregressive model
          of 1200 steps; the same 1200 steps of blocks of 16 from scratch reach 2.24, 1800 reach 2.11
"""

algorithm = "bd3lm"
dataset = "pydocs"
out_dir = "out/quickstart_grow_shrink"
init_from = "out/quickstart_ar"

block_size = 1
stages = (
    "100:block_size=4",
    "200:block_size=16",
    "300:block_size=64",
    "400:block_size=256",
    "800:block_size=64",
    "900:block_size=16",
)
t_min = 0.3
t_max = 0.8

seq_len = 256
n_layer = 3
n_head = 3
n_embd = 192

batch_size = 8
max_iters = 1200
optimizer = "muon"
learning_rate = 2e-3
muon_learning_rate = 2e-2
lr_schedule = "wsd"
decay_fraction = 0.5
warmup_iters = 40

eval_interval = 400
eval_windows = 128
