"""Dream-v0-Instruct-7B: the table of Dream (arXiv 2508.15487; eval_instruct of github.com/DreamLM/Dream), published
beside here.

               published                                     here
decoding       temperature 0.1, top_p 0.9, entropy order     the same; steps must be said, as the preset has 512
               anywhere on the canvas, steps = length
prompts        the chat template, examples in the one turn;  the same: fewshot_as_multiturn = False; max_length is 1024
               the last 1024 tokens                          and the answer
GPQA           likelihood, 32 masks drawn one by one         the same: method = dream
MMLU           its lm-eval takes an answer's first letter    mmlu_generative: the answer must be the letter
HumanEval      its lm-eval sanitizes, other words in front   humaneval_instruct
MBPP           the same, up to the closing ```               mbpp_instruct: the first block of code
GSM8K, MATH    0 shots                                       the same; flexible-extract and math_verify, as without
                                                             examples nothing else finds an answer
IFEval         one of its four scores, not said which        prompt_level_strict_acc

Faithful: MMLU-Pro, GSM8K, MATH, GPQA and IFEval. Nearest: MMLU, HumanEval and MBPP, whose tasks Dream changed in its
copy of lm-eval. Others who ran Dream's own scripts report GPQA 31.0 and MMLU 60.9 (batches of 12, whose masks are
counted together), and GSM8K about 77 at temperature 0.1, but 58 at 0 (its issues 80, 36, 72).

Hardware   torchrun --nproc_per_node=8 eval.py config/eval_dream_instruct.py --run_code
           --run_code allows HumanEval and MBPP to run what the model wrote. Not run by us.
"""

checkpoint = ("Dream-org/Dream-v0-Instruct-7B",)
dtype = "bfloat16"
apply_chat_template = True
fewshot_as_multiturn = False

method = "dream"
mc_samples = 32
mc_batch = 1
temperature = 0.1
top_p = 0.9

tasks = (
    "mmlu_generative num_fewshot=4 max_new_tokens=128 steps=128 max_length=1152"
    " metric=exact_match,get_response published=67.0",
    "mmlu_pro num_fewshot=4 max_new_tokens=128 steps=128 max_length=1152"
    " metric=exact_match,custom-extract published=43.3",
    "gsm8k_cot num_fewshot=0 max_new_tokens=256 steps=256 max_length=1280"
    " metric=exact_match,flexible-extract published=81.0",
    "minerva_math num_fewshot=0 max_new_tokens=512 steps=512 max_length=1536 metric=math_verify published=39.2",
    "gpqa_main_n_shot num_fewshot=5 metric=acc_norm published=33.0",
    "humaneval_instruct num_fewshot=0 max_new_tokens=768 steps=768 max_length=1792 metric=pass@1 published=55.5",
    "mbpp_instruct num_fewshot=0 max_new_tokens=1024 steps=1024 max_length=2048 metric=pass_at_1 published=58.8",
    "ifeval num_fewshot=0 max_new_tokens=1280 steps=1280 max_length=2304 metric=prompt_level_strict_acc published=62.5",
)
