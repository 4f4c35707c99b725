"""LLaDA-8B-Instruct learns countdown by rewards: d1's diffu-GRPO (arXiv 2504.12216) and DiffuCoder's coupled masks.

As config/llada_grpo_gsm8k.py, which has the published settings beside ours, but for the data, the rewards, and d1's own
estimate: one forward, with 15 % of the prompt hidden.

Data         python data/countdown/prepare.py --largest=99 --chat=data/countdown.jsonl      three numbers, as d1's
Published    d1, table 1 (arXiv 2504.12216)
Ours         not run: no GPU was at hand
Hardware     8 GPUs of 80 GB: torchrun --nproc_per_node=8 train.py config/llada_grpo_countdown.py
"""

algorithm = "grpo"
dataset = "data/countdown.jsonl"
init_from = "GSAI-ML/LLaDA-8B-Instruct"
out_dir = "out/llada_grpo_countdown"

rewards = ("countdown",)
group = 6
updates = 12
max_new_tokens = 256
steps = 128
answer_block = 32
temperature = 0.9
estimate = "d1"
clip_ratio = 0.5
kl = 0.04
reward_fails = "leave_out"

seq_len = 512
learn = "last"
lora_r = 128
lora_alpha = 64.0
lora_dropout = 0.05
recompute = True

batch_size = 6  # of 8 GPUs, twice: 96 answers to 16 prompts
gradient_accumulation_steps = 2
max_iters = 9000
learning_rate = 3e-6
lr_schedule = "constant"
warmup_iters = 1
weight_decay = 0.1
beta2 = 0.99
grad_clip = 0.2

eval_interval = 600
eval_windows = 64
eval_samples = 1
