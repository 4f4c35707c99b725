"""LLaDA-8B-Instruct learns GSM8K by rewards: d1's diffu-GRPO (arXiv 2504.12216) and DiffuCoder's coupled masks.

             d1 (its code's train.yaml)                  DiffuCoder (2506.20639; its recipe, Dream 7B)   here
answers      6 a prompt, 256 tokens, blocks of 32        10 a prompt, 256 tokens                      6, as d1
steps        2 tokens at a time (the paper: 128)          256                                          128
estimate     one forward, 15 % of the prompt hidden       coupled masks, three forwards, no prompt     coupled
updates      12 on the same answers                       2                                            12
advantages   mean and deviation                           mean alone                                   mean alone
clip, KL     0.5, 0.04, reference synchronised at 64      0.5, 0.01, reference synchronised at 64      0.5, 0.04, fixed
optimiser    AdamW 3e-6, beta2 .99, wd .1, clip .2        1e-6, likewise                               as d1
weights      LoRA 128, alpha 64, dropout .05, 4 bits      all                                          LoRA, bfloat16
rewards      right number, format by tags and others     tests passed 2.0, format 0.5                 gsm8k, format 0.5

Published    d1 with s1k: GSM8K 82.1 at its best length (table 1); DiffuCoder: 4.4 % more on EvalPlus
Ours         not run: no GPU was at hand
Hardware     8 GPUs of 80 GB: torchrun --nproc_per_node=8 train.py config/llada_grpo_gsm8k.py
"""

algorithm = "grpo"
dataset = "gsm8k"
init_from = "GSAI-ML/LLaDA-8B-Instruct"
out_dir = "out/llada_grpo_gsm8k"

rewards = ("gsm8k", "tags_format=0.5")
group = 6
updates = 12
max_new_tokens = 256
steps = 128
answer_block = 32
temperature = 0.9
estimate = "coupled"
deviation = False
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
