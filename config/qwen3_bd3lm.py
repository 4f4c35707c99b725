"""Qwen3-0.6B as a block diffusion model: the published recipe (dLLM's Tiny-A2D) beside ours.

             published                                   here
start        Qwen/Qwen3-0.6B                             the same, converted by convert_ar.py
attention    full at once, no right shift                the same
data         tulu-3 + smoltalk + opc-sft (Python)        the same
rows         512 tokens, blocks of 32                    the same, conversations packed; answers end with a block
optimiser    lr 1e-4                                     the same; cosine, 10 % warm-up, AdamW (.9, .999)
batch        2048 conversations                          512 rows, of several conversations each
length       10 epochs, 640 A100-hours (for MDLM)        10 epochs; not run by us

Hardware   torchrun --nproc_per_node=8 train.py config/qwen3_bd3lm.py
Then       python sample.py --checkpoint=out/qwen3_bd3lm --chat
"""

algorithm = "bd3lm"
dataset = "tulu3,smoltalk,opc_sft"
init_from = "checkpoints/qwen3-0.6b-bd3lm"
convert = "Qwen/Qwen3-0.6B"
out_dir = "out/qwen3_bd3lm"

block_size = 32
seq_len = 512
packing = True

batch_size = 8
gradient_accumulation_steps = 8
epochs = 10.0
learning_rate = 0.0001
lr_schedule = "cosine"
warmup_fraction = 0.1
min_lr_fraction = 0.0
weight_decay = 0.0
beta2 = 0.999

eval_interval = 1000
eval_windows = 256
