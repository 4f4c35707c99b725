"""LLaDA-8B learns from your conversations: the published recipe (LLaDA, arXiv 2502.09992) beside ours.

             published                                   here
start        LLaDA-8B-Base                               the same
weights      all 8 B                                     adapters of rank 64 beside the linear layers (LoRA), the base
                                                         in bfloat16, in parts on all GPUs (FSDP2)
data         4.5 M pairs, not released                   tulu-3
rows         filled with end-of-text, which is learnt    the same: fill = 0
optimiser    lr 2.5e-5, warm-up 50 steps, wd 0.1         1e-4, as adapters want it
batch        256                                         the same
length       3 epochs                                    1; not run by us

All weights instead of adapters: --lora_r=0 --learning_rate=2.5e-5 (16 GPUs of 80 GB, or recompute and fewer rows).

Hardware   torchrun --nproc_per_node=8 train.py config/llada_sft.py
Then       python sample.py --checkpoint=out/llada_sft --chat
           python -m nanodlm.merge --checkpoint=out/llada_sft --merge=checkpoints/llada_sft --dtype=bfloat16
"""

algorithm = "mdlm"
dataset = "tulu3"
init_from = "GSAI-ML/LLaDA-8B-Base"
out_dir = "out/llada_sft"

seq_len = 2048
fill = 0

lora_r = 64
lora_alpha = 128.0
sharding = "fsdp"
recompute = True

batch_size = 4
gradient_accumulation_steps = 8
epochs = 1.0
learning_rate = 0.0001
lr_schedule = "wsd"
decay_fraction = 0.1
warmup_iters = 50
weight_decay = 0.1

eval_interval = 200
eval_windows = 64
