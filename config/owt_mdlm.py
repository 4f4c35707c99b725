"""GPT-2-sized masked diffusion on OpenWebText: the published recipe (MDLM, arXiv 2406.07524) beside ours.

             published                                   here
network      12 layers, 768, 12 heads, learned           the same size, RMSNorm, RoPE, QK-norm, no biases,
             time conditioning switched off, untied      untied (about 162M parameters with both embeddings)
batch        512 windows of 1024 GPT-2 tokens            the same: 8 GPUs x 16 windows x 4 micro-batches
optimiser    AdamW (.9, .999), lr 3e-4 constant after    the same
             2500 warm-up steps, no weight decay, clip 1
dropout      0.1                                         0: one epoch hardly repeats a text
average      EMA 0.9999                                  the same
loss         NELBO, low-discrepancy t                    the same, strata jittered over the global batch
length       1M steps (about 262B tokens)                the same
expected     validation PPL <= 22.98                     not run by us

Data       python data/openwebtext/prepare.py  (about 9B tokens, 18 GB)
Hardware   torchrun --nproc_per_node=8 train.py config/owt_mdlm.py  (8 GPUs of 80 GB; several days)
One GPU    python train.py config/owt_mdlm.py --gradient_accumulation_steps=32
"""

algorithm = "mdlm"
dataset = "openwebtext"
out_dir = "out/owt_mdlm"

seq_len = 1024
n_layer = 12
n_head = 12
n_embd = 768
mlp = "gelu"

batch_size = 16
gradient_accumulation_steps = 4
max_iters = 1_000_000
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
