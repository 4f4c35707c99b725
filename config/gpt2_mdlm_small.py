"""GPT-2 as a masked diffusion model, on one GPU in a day: config/gpt2_mdlm.py with an eighth of its compute.

Published counterpart: none; the full recipe's header shows it.

Data       python data/fineweb_edu/prepare.py --max_tokens=1e9
Hardware   one GPU of 24 GB: python train.py config/gpt2_mdlm_small.py; not run by us
"""

algorithm = "mdlm"
dataset = "fineweb_edu"
init_from = "checkpoints/gpt2-shifted"
convert = "openai-community/gpt2"
shift = True
out_dir = "out/gpt2_mdlm_small"

seq_len = 512
anneal_iters = 2000

batch_size = 32
gradient_accumulation_steps = 4
max_iters = 20000
learning_rate = 0.0003
lr_schedule = "cosine"
warmup_iters = 500
min_lr_fraction = 0.1
weight_decay = 0.1
beta2 = 0.999

eval_interval = 1000
