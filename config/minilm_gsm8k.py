"""Proof on a laptop: a sentence encoder learns to solve school problems by diffusion.

Published counterpart: none. all-MiniLM-L6-v2 (22 M parameters, WordPiece) has never predicted a token in this form; its
head is built anew (convert_bert.py).

Data      GSM8K's training problems; from the hub, or data/gsm8k/train.jsonl
Hardware  one CPU core
"""

algorithm = "mdlm"
dataset = "gsm8k"
init_from = "checkpoints/minilm"
convert = "sentence-transformers/all-MiniLM-L6-v2"
out_dir = "out/minilm_gsm8k"
preset = "chat"

seq_len = 256
packing = True  # a conversation has 160 tokens: several share a row
fill = 32  # end-of-text behind each answer to the next multiple of 32: answers come in such blocks when sampling

objective = "masked_ce"
t_shape = "bell"

batch_size = 8
max_iters = 300
learning_rate = 3e-4
lr_schedule = "wsd"
decay_fraction = 0.5
warmup_iters = 20
weight_decay = 0.01

eval_interval = 300
eval_windows = 100
