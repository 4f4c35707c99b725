"""Dream-v0-Base-7B: the table of Dream (arXiv 2508.15487; eval/ of github.com/DreamLM/Dream), published beside here.

               published                                     here
prompts        <|beginoftext|> in front, the last 2048       the same
               tokens
likelihood     128 masks in batches of 32, an end-of-text    the same: method = dream
               behind the answer
generation     entropy order anywhere on the canvas, top_p   the same, by the model's preset; steps must be said, as the
               0.95, steps = length                          preset has 512
temperature    0; HumanEval and MBPP 0.2                     the same; lm-eval asks these tasks for 0, which our word
                                                             overrides
GSM8K          8 shots of gsm8k_cot                          the same
HumanEval      no stop strings; a sanitizer cuts the         humaneval: lm-eval's stop strings instead
               function out of prompt and answer

Faithful: all rows but HumanEval, as Dream's own commands name these tasks. They do not say which score is printed. For
ARC, HellaSwag and PIQA that is acc_norm (the Qwen2.5-7B of its table has lm-eval's acc_norm); we assume
flexible-extract for GSM8K and exact_match for MATH. The results' file has the others.

Hardware   torchrun --nproc_per_node=8 eval.py config/eval_dream_base.py --run_code
           --run_code allows HumanEval and MBPP to run what the model wrote. Not run by us.
"""

checkpoint = ("Dream-org/Dream-v0-Base-7B",)
dtype = "bfloat16"
prefix = "<|beginoftext|>"
max_length = 2048

method = "dream"
mc_samples = 128
mc_batch = 32
top_p = 0.95

tasks = (
    "mmlu num_fewshot=5 metric=acc published=69.5",
    "arc_easy num_fewshot=0 metric=acc_norm published=83.9",
    "arc_challenge num_fewshot=0 metric=acc_norm published=59.9",
    "hellaswag num_fewshot=0 metric=acc_norm published=73.3",
    "piqa num_fewshot=0 metric=acc_norm published=75.8",
    "gpqa_main_n_shot num_fewshot=5 metric=acc_norm published=36.6",
    "winogrande num_fewshot=5 metric=acc published=74.8",
    "race num_fewshot=0 metric=acc published=44.7",
    "gsm8k_cot num_fewshot=8 max_new_tokens=256 steps=256 temperature=0"
    " metric=exact_match,flexible-extract published=77.2",
    "minerva_math num_fewshot=4 max_new_tokens=512 steps=512 temperature=0 metric=exact_match published=39.6",
    "bbh num_fewshot=3 max_new_tokens=512 steps=512 temperature=0 metric=exact_match,get-answer published=57.9",
    "humaneval num_fewshot=0 max_new_tokens=512 steps=512 temperature=0.2 metric=pass@1 published=57.9",
    "mbpp num_fewshot=3 max_new_tokens=512 steps=512 temperature=0.2 metric=pass_at_1 published=56.2",
)
