"""Nemotron-Labs-Diffusion-8B (instruct) in its diffusion mode: the table of the report (arXiv 2607.05722, table 5),
published beside here. We had the report's numbers from a transcript (github.com/tuandung222/nemotron-diffusion-study,
part 3.7), not from itself; its GSM8K of linear self-speculation is also in the README of the authors' code.

               published                                     here
decoding       temperature 0, blocks of 32, threshold 0.9    the same: the checkpoint's own preset
length         not known to us, but for its scripts' 512     1024; 2048 where an answer is reasoned
prompts        NeMo-Skills                                   the nearest tasks of lm-eval, in the chat template

So no row repeats a published one to the letter. Of the two other modes, which sample.py has (--algorithm=ar, --verify),
as published:  AR           GPQA 44.44  IFEval 68.65  MMLU 79.85  HumanEval 80.49  MBPP 85.19  MATH-500 88.00
                            GSM8K 94.01; 1.00 tokens per forward
               linear       40.40  69.13  79.01  81.71  84.92  87.60  93.78; 5.99 with the adapter for drafts
               quadratic    44.30  71.00  79.95  79.27  85.19  88.80  94.16; 6.38
               diffusion    as below; 2.57
Self-speculation is autoregression's text, so that its scores differ by rounding alone. Left out: LiveCodeBench 26.16,
AIME 2024 46.67 and AIME 2025 26.67, of which lm-eval has no task that runs or reads such answers.

Hardware   python eval.py config/eval_nemotron.py --run_code
           One GPU of 24 GB. --run_code allows HumanEval and MBPP to run what the model wrote. Not run by us.
"""

checkpoint = ("nvidia/Nemotron-Labs-Diffusion-8B",)
dtype = "bfloat16"
apply_chat_template = True
fewshot_as_multiturn = False

tasks = (
    "gpqa_diamond_cot_zeroshot num_fewshot=0 max_new_tokens=2048 metric=exact_match,flexible-extract published=43.94",
    "ifeval num_fewshot=0 max_new_tokens=1024 metric=prompt_level_strict_acc published=68.32",
    "mmlu_generative num_fewshot=0 max_new_tokens=32 metric=exact_match,get_response published=78.71",
    "humaneval_instruct num_fewshot=0 max_new_tokens=1024 metric=pass@1 published=78.66",
    "mbpp_instruct num_fewshot=0 max_new_tokens=1024 metric=pass_at_1 published=83.86",
    "minerva_math500 num_fewshot=0 max_new_tokens=2048 metric=math_verify published=85.8",
    "gsm8k_cot num_fewshot=0 max_new_tokens=1024 metric=exact_match,flexible-extract published=93.03",
)
