"""LLaDA 2 learns from your conversations on one GPU: its authors' recipe (github.com/inclusionAI/dFactory) beside ours.

             published                                   here
start        LLaDA2.0-mini, all 16.3 B weights, FSDP2    LLaDA2.1-mini, frozen, in bfloat16; adapters of rank 32 beside
                                                         attention, the dense and the shared MLPs
loss         flat cross entropy of the hidden tokens,    the same
             of which .3 to .8 are; blocks of 32
data         GSM8K's training questions                  tulu-3
rows         2048 tokens                                 the same, conversations packed
optimiser    lr 1e-5, cosine, 3 % warm-up, AdamW         1e-4, as adapters want it; the rest the same
             (.9, .999), wd .1
batch        8                                           32
length       1 epoch                                     the same; not run by us

Memory, by arithmetic, of an 80 GB GPU: weights 32.5 GB; 14 M adapters with gradients and AdamW 0.2 GB; of a micro-batch
of 2 rows, which block diffusion reads twice (8192 tokens), 1.3 GB of what 20 layers are given, and about 2 GB of what
the experts of the layer that is recomputed make. LLaDA2.1-flash (103 B, 206 GB) is for several: torchrun with
--sharding=fsdp. --lora_at=experts trains the experts, too (1.2 B in adapters: 19 GB). What this does not teach is to
edit tokens: LLaDA 2.1 has also learnt to set right shown tokens that are noise (arXiv 2602.08676).

Hardware   python train.py config/llada2_lora.py
Then       python sample.py --checkpoint=out/llada2_lora --chat
           python -m nanodlm.merge --checkpoint=out/llada2_lora --merge=checkpoints/llada2_lora --dtype=bfloat16
"""

algorithm = "bd3lm"
dataset = "tulu3"
init_from = "inclusionAI/LLaDA2.1-mini"
out_dir = "out/llada2_lora"

objective = "masked_ce"
t_min = 0.3
t_max = 0.8
block_size = 32
seq_len = 2048
packing = True

lora_r = 32
recompute = True

batch_size = 2
gradient_accumulation_steps = 16
epochs = 1.0
learning_rate = 1e-4
lr_schedule = "cosine"
warmup_fraction = 0.03
min_lr_fraction = 0.0
weight_decay = 0.1
beta2 = 0.999

eval_interval = 200
eval_windows = 64
