"""Dream-7B learns from your conversations: adapters beside the released base.

             published                                   here
start        Dream-v0-Base-7B (for Dream-v0-Instruct)    the same; its shift is a switch of the network
weights      all 7 B                                     adapters of rank 64 (LoRA), base in bfloat16, in parts (FSDP2)
data         tulu-3 and smoltalk, 1.8 M pairs            the same
rows         end-of-text behind the answers, learnt      the same: fill = 0
loss         weights from the context of each token      1/t, the bound
             (CART), not implemented here
length       3 epochs                                    1; not run by us

Hardware   torchrun --nproc_per_node=8 train.py config/dream_sft.py
Then       python sample.py --checkpoint=out/dream_sft --chat
"""

algorithm = "mdlm"
dataset = "tulu3,smoltalk"
init_from = "Dream-org/Dream-v0-Base-7B"
out_dir = "out/dream_sft"

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
