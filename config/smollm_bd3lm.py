"""SmolLM2-135M learns to read masks, and remains SmolLM2: block diffusion on a laptop, on school problems.

The network stays the causal one that it is, its shift kept (I-DLM, arXiv 2604.11035): a block's first token is the
autoregressive model's to the bit, and adapters that act at masks alone learn those behind it. `make smollm` makes what
it starts from.

Published counterpart: I-DLM-8B-LoRA (Qwen3-8B, rank 128, 8 H100); here rank 12, 1 core.

Data      GSM8K's training problems; from the hub, or data/gsm8k/train.jsonl
Hardware  one CPU core with bfloat16, 7 s an iteration: 37 minutes in all; not run at this length
Then      python experiments/smollm.py checkpoints/smollm2-bd3lm out/smollm_bd3lm
"""

algorithm = "bd3lm"
dataset = "gsm8k"
init_from = "checkpoints/smollm2-bd3lm"
convert = "checkpoints/smollm2"
shift = True
out_dir = "out/smollm_bd3lm"

block_size = 4
seq_len = 256
packing = True

objective = "masked_ce"
corruption = "count"
t_min = 0.5  # where few are hidden, most are predicted from what is not: by the frozen network

lora_r = 12
lora_at = "masks"
batch_size = 4
max_iters = 300
learning_rate = 1.5e-3
lr_schedule = "wsd"
decay_fraction = 0.5
warmup_iters = 10
weight_decay = 0.0
save_dtype = "float16"

eval_interval = 100
eval_windows = 32
