"""Nemotron-Labs-Diffusion-3B learns from your conversations, as an autoregressive model and a diffusion model at once:
NVIDIA's recipe (NeMo AutoModel 36044ad, examples/dllm_sft/nemotron_labs_diffusion_lora.yaml) beside ours.

             published                                   here
start        Nemotron-Labs-Diffusion-8B-Base             3B-Base, for one GPU
weights      adapters of rank 16, alpha 32               the same, the base in bfloat16
data         tulu-3                                      the same
loss         next token + 0.3 x diffusion, each a mean   diffusion + next token / 0.3: the same but for its size; the
             over its own tokens                         diffusion's over all tokens of answers, not the hidden ones
noise        one level for a text, 1/t                   one for each block of 32, 1/t
rows         8192 tokens                                 2048
optimiser    lr 2.5e-6, betas 0.9, 0.98, warm-up 50      lr 1e-4, as adapters want it; the same warm-up
length       2 epochs                                    1; not run by us

Pretraining by Megatron-Bridge (067f987) has blocks of 64 and the same two weights: --block_size=64.

Hardware   python train.py config/nemotron_lora.py       one GPU of 24 GB
Then       python sample.py --checkpoint=out/nemotron_lora --chat --verify --temperature=0
"""

algorithm = "bd3lm"
dataset = "tulu3"
init_from = "nvidia/Nemotron-Labs-Diffusion-3B-Base"
out_dir = "out/nemotron_lora"

causal = True  # where nothing is hidden
block_size = 32
seq_len = 2048
fill = 32
packing = True
clean_weight = 3.3333

lora_r = 16
lora_alpha = 32.0
recompute = True

batch_size = 1
gradient_accumulation_steps = 32
epochs = 1.0
learning_rate = 0.0001
beta2 = 0.98
warmup_iters = 50
weight_decay = 0.1

eval_interval = 200
eval_windows = 64
