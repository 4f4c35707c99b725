"""LLaDA2.0-mini: its table (arXiv 2512.15745, table 1), published beside here.

               published                                     here
decoding       temperature 0, blocks of 32, a threshold of   the same: the preset llada2, least = 1
               0.95; `generate` reveals at least 32 / steps
length         not said; generate's default is 2048 tokens   4096
prompts        OpenCompass, shots not said                   the nearest tasks of lm-eval, in the chat template
MMLU           80.53                                         mmlu_generative: the answer must be the letter
ARC-C          93.56                                         arc_challenge_chat: begins the answer itself
GPQA           47.98, of which questions is not said         gpqa_diamond_cot_zeroshot
MATH           93.22                                         minerva_math: does not ask for a box; math_verify reads it
HumanEval      86.59                                         humaneval_instruct: begins the answer with the signature
MBPP           81.50                                         mbpp_instruct: the first block of code

So no row repeats a published one to the letter: decoding is as published, prompts and reading of answers are not. The
flash model, --checkpoint=inclusionAI/LLaDA2.0-flash, has for these six 87.69, 95.93, 61.98, 95.44, 94.51 and 88.29, for
MMLU-Pro 73.36, GSM8K 96.06 and IFEval 81.70. The authors' comparison of thresholds has 2.55 tokens per forward at 0.95
(figure 4). Left out is what lm-eval has no task for, as LiveCodeBench, or what is not written, as HellaSwag.

Hardware   python eval.py config/eval_llada2.py --run_code
           --run_code allows HumanEval and MBPP to run what the model wrote. 16 B parameters, 33 GB. Not run by us.
"""

checkpoint = ("inclusionAI/LLaDA2.0-mini",)
dtype = "bfloat16"
apply_chat_template = True
fewshot_as_multiturn = False

threshold = 0.95
max_new_tokens = 4096

tasks = (
    "mmlu_generative num_fewshot=0 metric=exact_match,get_response published=80.53",
    "mmlu_pro num_fewshot=0 metric=exact_match,custom-extract published=63.22",
    "arc_challenge_chat num_fewshot=0 metric=exact_match published=93.56",
    "gpqa_diamond_cot_zeroshot num_fewshot=0 metric=exact_match,flexible-extract published=47.98",
    "gsm8k_cot num_fewshot=0 metric=exact_match,flexible-extract published=94.24",
    "minerva_math num_fewshot=0 metric=math_verify published=93.22",
    "humaneval_instruct num_fewshot=0 metric=pass@1 published=86.59",
    "mbpp_instruct num_fewshot=0 metric=pass_at_1 published=81.50",
    "ifeval num_fewshot=0 metric=prompt_level_strict_acc published=80.78",
)
