"""LLaDA-8B-Base: the tables of LLaDA (arXiv 2502.09992; EVAL.md of github.com/ML-GSAI/LLaDA), published beside here.

               published                                     here
likelihood     128 masks per answer in batches of 8; 1 for   the same: method = llada
               MMLU, CMMLU and C-Eval
guidance       a second column: 0.5, TruthfulQA 2.0          rows called …_cfg
generation     length = steps = block = 1024, temperature 0  the same: block_size = 0 is the whole canvas (the model's
                                                             preset has blocks of 32), steps = 0 a token per step
answers        lm-eval 0.4.8                                 0.4.13: bbh and gpqa have other data mirrors and versions
shots          given in its commands, or the task's own      all written out

Faithful: all rows, as LLaDA's own commands name these tasks of lm-eval. It does not say which of a task's scores it
prints. For ARC-C, HellaSwag and PIQA that is acc_norm: the autoregressive models of its table have what lm-eval gives
as acc_norm. We assume flexible-extract for GSM8K and exact_match for MATH; the file with the results has the others.
Left out: HumanEval-FIM, for which no command is published.

Published for shorter canvases, BBH GSM8K MATH HumanEval MBPP: 512 tokens 50.4 70.8 30.9 32.9 39.2; 256 tokens 45.0 70.0
30.3 32.9 40.2. These runs cost a half and an eighth: --max_new_tokens=256.

Hardware   torchrun --nproc_per_node=8 eval.py config/eval_llada_base.py --run_code
           --run_code allows HumanEval and MBPP to run what the model wrote; without it they are refused. One task
           alone: --only=piqa. Not run by us: a GSM8K of 512 tokens took LLaDA's authors 3 hours on 8 A100.
"""

checkpoint = ("GSAI-ML/LLaDA-8B-Base",)
dtype = "bfloat16"

method = "llada"
mc_samples = 128
mc_batch = 8
block_size = 0
steps = 0

tasks = (
    "mmlu num_fewshot=5 mc_samples=1 metric=acc published=65.9",
    "arc_challenge num_fewshot=0 metric=acc_norm published=45.9",
    "arc_challenge label=arc_challenge_cfg num_fewshot=0 cfg_scale=0.5 metric=acc_norm published=47.9",
    "hellaswag num_fewshot=0 metric=acc_norm published=70.5",
    "hellaswag label=hellaswag_cfg num_fewshot=0 cfg_scale=0.5 metric=acc_norm published=72.5",
    "truthfulqa_mc2 num_fewshot=0 metric=acc published=46.1",
    "truthfulqa_mc2 label=truthfulqa_mc2_cfg num_fewshot=0 cfg_scale=2.0 metric=acc published=46.4",
    "winogrande num_fewshot=5 metric=acc published=74.8",
    "piqa num_fewshot=0 metric=acc_norm published=73.6",
    "piqa label=piqa_cfg num_fewshot=0 cfg_scale=0.5 metric=acc_norm published=74.4",
    "gpqa_main_n_shot num_fewshot=5 metric=acc_norm published=25.2",
    "gpqa_main_n_shot label=gpqa_main_n_shot_cfg num_fewshot=5 cfg_scale=0.5 metric=acc_norm published=26.1",
    "cmmlu num_fewshot=5 mc_samples=1 metric=acc published=69.9",
    "ceval-valid num_fewshot=5 mc_samples=1 metric=acc published=70.5",
    "bbh num_fewshot=3 max_new_tokens=1024 metric=exact_match,get-answer published=49.7",
    "gsm8k num_fewshot=5 max_new_tokens=1024 metric=exact_match,flexible-extract published=70.3",
    "minerva_math num_fewshot=4 max_new_tokens=1024 metric=exact_match published=31.4",
    "humaneval num_fewshot=0 max_new_tokens=1024 metric=pass@1 published=35.4",
    "mbpp num_fewshot=3 max_new_tokens=1024 metric=pass_at_1 published=40.0",
)
