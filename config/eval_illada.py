"""iLLaDA-8B-Base: its table (arXiv 2606.25331; github.com/ML-GSAI/LLaDA, pull request 134), published beside here.

                published                                    here
multiple choice each step reveals the token of the answer    method = illada, seen_end: the same
                that is the likeliest; an end-of-text is
                seen behind it; no masks are drawn
                MMLU: one mask, which is the same for a      the same
                letter
                three tasks by likelihood, too               rows called …_likelihood: LLaDA's estimate, 128 masks
generation      1024 tokens in blocks of 32, one behind the  the model's preset: later blocks are not on the canvas
                other; HumanEval one block of 512            the same
shots           GSM8K 8, MMLU 5, the others lm-eval's own    the same
begin-of-text   in front of multiple choice                  where its tokenizer writes one

Faithful, as far as its commands are public: they name no score, so acc_norm for ARC-C, HellaSwag and PIQA,
flexible-extract for GSM8K and exact_match for MATH are those of LLaDA. PIQA and the rows by likelihood are not among
them and follow the paper.

Hardware   torchrun --nproc_per_node=8 eval.py config/eval_illada.py --run_code
           --run_code allows HumanEval and MBPP to run what the model wrote. Not run by us.
"""

checkpoint = ("GSAI-ML/iLLaDA-8B-Base",)
dtype = "bfloat16"

method = "illada"
block_size = 32
steps = 0

tasks = (
    "mmlu num_fewshot=5 seen_end=true metric=acc published=74.8",
    "arc_challenge num_fewshot=0 seen_end=true metric=acc_norm published=60.8",
    "arc_challenge label=arc_challenge_likelihood num_fewshot=0 method=llada mc_samples=128 mc_batch=8"
    " metric=acc_norm published=60.2",
    "hellaswag num_fewshot=0 seen_end=true metric=acc_norm published=76.6",
    "hellaswag label=hellaswag_likelihood num_fewshot=0 method=llada mc_samples=128 mc_batch=8"
    " metric=acc_norm published=74.3",
    "piqa num_fewshot=0 seen_end=true metric=acc_norm published=78.5",
    "piqa label=piqa_likelihood num_fewshot=0 method=llada mc_samples=128 mc_batch=8 metric=acc_norm published=77.2",
    "bbh num_fewshot=3 max_new_tokens=1024 metric=exact_match,get-answer published=71.3",
    "gsm8k_cot num_fewshot=8 max_new_tokens=1024 metric=exact_match,flexible-extract published=81.9",
    "minerva_math num_fewshot=4 max_new_tokens=1024 metric=exact_match published=38.4",
    "humaneval num_fewshot=0 max_new_tokens=512 block_size=512 metric=pass@1 published=50.0",
    "mbpp num_fewshot=3 max_new_tokens=1024 metric=pass_at_1 published=57.8",
)
