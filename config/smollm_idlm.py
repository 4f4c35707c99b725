"""SmolLM2-135M by I-DLM's own objective (arXiv 2604.11035): to compare with config/smollm_bd3lm.py.

Adapters at all tokens; beside the masked half's loss stands the clean half's, the next token's, so that the model
remains an autoregressive one, though no longer the one it was.

Data      GSM8K's training problems; from the hub, or data/gsm8k/train.jsonl
Hardware  one CPU core with bfloat16, 10 to 17 minutes (half a core of a busy machine)
Expected  0.947 bits per byte (NELBO); blocks that grow: 1.216
"""

algorithm = "bd3lm"
dataset = "gsm8k"
init_from = "checkpoints/smollm2-bd3lm"
convert = "checkpoints/smollm2"
shift = True
out_dir = "out/smollm_idlm"

block_size = 4
seq_len = 256
packing = True

objective = "masked_ce"
corruption = "count"
t_min = 0.5
clean_weight = 0.5

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
