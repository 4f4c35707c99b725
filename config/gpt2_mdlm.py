"""GPT-2 as a masked diffusion model: the published recipe (DiffuGPT, arXiv 2410.17891) beside ours.

             published                                   here
start        GPT-2 (127 M, 355 M)                        openai-community/gpt2, converted by convert_ar.py
attention    causal, each future pair seen ever more     the same: anneal_iters
             often, in the end full
shift        kept: output i fills position i + 1         the same: shift
time         no time embedding                           the same
data         30 billion tokens of FineWeb                FineWeb-Edu's sample of 10 billion
loss         masked cross entropy times 1/t              the same
length       see the paper                               40,000 iterations of 262,144 tokens; not run by us

Data       python data/fineweb_edu/prepare.py
Hardware   torchrun --nproc_per_node=8 train.py config/gpt2_mdlm.py
"""

algorithm = "mdlm"
dataset = "fineweb_edu"
init_from = "checkpoints/gpt2-shifted"
convert = "openai-community/gpt2"
shift = True
out_dir = "out/gpt2_mdlm"

seq_len = 1024
anneal_iters = 10000  # a quarter of the run, after which attention is full

batch_size = 16
gradient_accumulation_steps = 2
max_iters = 40000
learning_rate = 0.0003
lr_schedule = "cosine"
warmup_iters = 2000
min_lr_fraction = 0.1
weight_decay = 0.1
beta2 = 0.999

eval_interval = 2000
