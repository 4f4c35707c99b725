"""Edit flows on OpenWebText: the published settings (arXiv 2506.09018, section 5, appendix E) beside ours.

             published (1.3B / 280M)                     here (the 280M shape)
data         DCLM-baseline 1.0, CodeLlama's mix, COCO    OpenWebText, GPT-2's tokens
network      16 / 12 layers, 2048 / 1024 wide, 32 / 16   12 layers, 1024 wide, 16 heads, 8 of keys and values,
             heads, 8 of keys and values, feed-forward   feed-forward 6963; RMSNorm, RoPE, QK-norm; 500M, of which
             12288 / 6963, 32k tokens, a token for t     206M are rows, for 50k tokens in place of 32k
time         kappa = t^3, t uniform                      the same
begins with  nothing; or 100 tokens (uniform X_0)        nothing; --source=noise, of up to the text's length
alignment    of X_0: 50 substituted, 50 deleted          --source=noise: the cheapest one
prompts      c^3 of a text, c uniform; none in 10 %      the same
batch        4096 texts of up to 1024 tokens, which      4096 windows of 1024: 8 GPUs x 8 x 64 micro-batches
             FlexAttention packs
optimiser    AdamW (.9, .95), lr 3e-4, cosine, 2000      the same
             warm-up steps
length       500K steps, on 128 H100                     the same
sampling     10,000 steps, guidance 0.5, temperature     --steps=1000 --temperature=0.8; neither guidance nor reverse
             0.8, top-p 0.5, and a corrector             rates are here
localised    +48 % of MBPP's pass@1                      --spread=1, after appendix C.1

Published, of 1.3B parameters: HellaSwag 49.0 (autoregressive 49.5, masks 38.3), ARC-E 63.1 (71.0, 55.4), PIQA 68.8
(76.0, 65.3); HumanEval pass@1 12.8 (17.0, 9.1), localised 14.0. Not run by us.

Data       python data/openwebtext/prepare.py
Hardware   torchrun --nproc_per_node=8 train.py config/editflow_owt.py
"""

algorithm = "editflow"
dataset = "openwebtext"
out_dir = "out/editflow_owt"

schedule = "poly3"
prompts = 0.9

seq_len = 1024
n_layer = 12
n_head = 16
n_kv_head = 8
n_embd = 1024
mlp = "swiglu"
mlp_dim = 6963

batch_size = 8
gradient_accumulation_steps = 64
max_iters = 500_000
learning_rate = 3e-4
lr_schedule = "cosine"
warmup_iters = 2000
beta2 = 0.95

eval_interval = 5000
eval_windows = 1024
eval_samples = 1
log_interval = 50
