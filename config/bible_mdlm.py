"""The checkpoint that ships as checkpoints/bible_mdlm: 3.4M parameters, 7 MB in float16, whose sentences can be read.

Data      python data/bible/prepare.py  (the World English Bible, which is in the public domain)
Hardware  one CPU core with bfloat16, 2 hours 26 minutes (torch 2.13, 2026-11-28)
Expected  1.25 bits per byte (NELBO); the log is checkpoints/bible_mdlm/metrics.jsonl

4096 tokens and one table for both ends: after 350 iterations of 2048 tokens 1.84 bits per byte, where 2048 tokens and
two tables, the same number of weights, had 2.08.
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
