"""A small model whose sentences can be read: 3.4M parameters, under 8 MB in float16, on plain English.

Data      python data/bible/prepare.py
Hardware  meant for 2 CPU cores with bfloat16 and 2 hours; not run to its end by us yet
"""

algorithm = "mdlm"
dataset = "bible"
out_dir = "out/bible_mdlm"

objective = "masked_ce"  # without the bound's weight 1/t, flat over masked tokens (arXiv 2602.15014)
t_shape = "bell"  # rows that are almost empty or almost clean teach little (arXiv 2605.13026)

seq_len = 256
n_layer = 6
n_head = 3
n_embd = 192
tied = True  # the vocabulary of 4096 would otherwise be a third of all weights

batch_size = 16
max_iters = 9000  # 37M tokens, 37 passes over the text
optimizer = "muon"
learning_rate = 2e-3
muon_learning_rate = 2e-2
lr_schedule = "wsd"
decay_fraction = 0.6
warmup_iters = 50
save_dtype = "float16"

eval_interval = 1000
eval_windows = 256
eval_samples = 4
