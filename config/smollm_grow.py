"""SmolLM2-135M by blocks that grow, as LLaDA2.0 and others convert: to compare with config/smollm_bd3lm.py.

The shift is dropped and blocks see themselves in both directions, so that a mask is filled by its own output: all of
that has to be learnt, by adapters at all tokens.

Data      GSM8K's training problems; from the hub, or data/gsm8k/train.jsonl
Hardware  one CPU core with bfloat16, 10 minutes
Expected  1.216 bits per byte (NELBO)
"""

algorithm = "bd3lm"
dataset = "gsm8k"
init_from = "checkpoints/smollm2-grow"
convert = "checkpoints/smollm2"
out_dir = "out/smollm_grow"

block_size = 1
stages = ("15:block_size=2", "30:block_size=4")
seq_len = 256
packing = True

objective = "masked_ce"
corruption = "count"

lora_r = 12
batch_size = 4
max_iters = 50
learning_rate = 1.5e-3
lr_schedule = "wsd"
decay_fraction = 0.5
warmup_iters = 10
weight_decay = 0.0

eval_interval = 50
eval_windows = 24
