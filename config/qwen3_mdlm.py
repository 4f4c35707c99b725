"""Qwen3-0.6B as a masked diffusion model: the published recipe (dLLM's Tiny-A2D) beside ours.

             published                                   here
start        Qwen/Qwen3-0.6B                             the same, converted by convert_ar.py
attention    full at once, no right shift                the same
data         tulu-3 + smoltalk + opc-sft (Python)        the same
rows         1024 tokens                                 the same, filled with end-of-text
optimiser    lr 1e-4                                     the same; cosine, 10 % warm-up, AdamW (.9, .999)
batch        2048 conversations                          the same
length       10 epochs, 640 A100-hours (for MDLM)        10 epochs; not run by us

Hardware   torchrun --nproc_per_node=8 train.py config/qwen3_mdlm.py
Then       python sample.py --checkpoint=out/qwen3_mdlm --chat
"""

algorithm = "mdlm"
dataset = "tulu3,smoltalk,opc_sft"
init_from = "checkpoints/qwen3-0.6b"
convert = "Qwen/Qwen3-0.6B"
out_dir = "out/qwen3_mdlm"
preset = "chat"

seq_len = 1024
fill = 0

batch_size = 16
gradient_accumulation_steps = 16
epochs = 10.0
learning_rate = 0.0001
lr_schedule = "cosine"
warmup_fraction = 0.1
min_lr_fraction = 0.0
weight_decay = 0.0
beta2 = 0.999

eval_interval = 1000
eval_windows = 256
