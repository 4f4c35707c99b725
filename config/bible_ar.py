"""The judge of config/bible_mdlm.py's samples: the same network and text, left to right.

Data      python data/bible/prepare.py
Hardware  one CPU core with bfloat16, 43 minutes beside other work (2026-11-29)
Expected  1.163 +- .014 bits per byte (exact) of the chapters that are held out, and still falling
Then      python experiments/readable.py --checkpoint=checkpoints/bible_mdlm --judge=out/bible_ar
"""

algorithm = "ar"
dataset = "bible"
out_dir = "out/bible_ar"

seq_len = 256
n_layer = 6
n_head = 3
n_embd = 192
tied = True

batch_size = 16
max_iters = 2000
optimizer = "muon"
learning_rate = 2e-3
muon_learning_rate = 2e-2
lr_schedule = "wsd"
decay_fraction = 0.6
warmup_iters = 50

eval_interval = 250
eval_windows = 256
