"""GPT-2-sized block diffusion on OpenWebText: the published recipe (BD3LM, arXiv 2503.09573) beside ours.

             published                                   here
start        850K steps with one block of 1024           out/owt_mdlm, from config/owt_mdlm.py (--max_iters=850000)
then         150K steps at the block size wanted         the same
mask rates   clipped, searched by variance during        clip = "adaptive", which begins at U[0.45, 0.95]
             training: see the table
network      12 layers, 768, 12 heads                    the same size, RMSNorm, RoPE, QK-norm, no biases
batch        512 windows of 1024 GPT-2 tokens            the same: 8 GPUs x 8 windows x 8 micro-batches
optimiser    AdamW, lr 3e-4 after 2500 warm-up steps     the same
average      EMA 0.9999                                  the same

Published validation perplexity on OpenWebText after 1M steps; not run by us:

    AR 17.54     blocks of 4: 20.73     8: 21.68     16: 22.27     one block (MDLM): 22.98

Published on LM1B, perplexity / variance of the training NELBO, by the mask rates trained on:

    blocks of 4     U[.45, .95] 29.21 / 6.24      U[.3, .8] 29.38 / 10.33     U[0, 1] 30.18 / 23.45
    blocks of 16    U[.3, .8] 31.12 / 3.58        U[.45, .95] 31.42 / 3.60    U[0, 1] 31.72 / 7.62

Blocks of 16   torchrun --nproc_per_node=8 train.py config/owt_bd3lm.py
Blocks of 4    torchrun --nproc_per_node=8 train.py config/owt_bd3lm.py --block_size=4 --out_dir=out/owt_bd3lm_4
Hardware       8 GPUs of 80 GB; a step takes about twice the time of MDLM's
"""

algorithm = "bd3lm"
dataset = "openwebtext"
out_dir = "out/owt_bd3lm"
init_from = "out/owt_mdlm"

block_size = 16
clip = "adaptive"
t_min = 0.45
t_max = 0.95

seq_len = 1024
n_layer = 12
n_head = 12
n_embd = 768
mlp = "gelu"

batch_size = 8
gradient_accumulation_steps = 8
max_iters = 150_000
learning_rate = 3e-4
lr_schedule = "constant"
warmup_iters = 2500
weight_decay = 0.0
beta2 = 0.999
ema = 0.9999

eval_interval = 5000
eval_windows = 1024
eval_samples = 1
log_interval = 50
