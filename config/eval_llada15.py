"""LLaDA 1.5: its table (arXiv 2505.19223; EVAL.md of github.com/ML-GSAI/LLaDA), published beside here.

               published                                     here
prompts        OpenCompass                                   the nearest tasks of lm-eval: see eval_llada_instruct.py
decoding       temperature 0, a token per step, blocks of    the same
               16 to 128; end tokens last but for GPQA       last = 126081,126348: end-of-text, end-of-turn
IFEval         one of its four scores, not said which        prompt_level_strict_acc

Lengths, blocks and end tokens are published; prompts and the reading of answers are not, so differences of some points
say nothing of the decoder. OpenCompass itself gave its authors GSM8K 83.6, MATH 42.3, GPQA 34.8, HumanEval 51.2, MBPP
42.6, IFEval 65.2 where their own tools had what is published. Left out: Arena-Hard, AlignBench and MT-Bench, whose
judge is a service.

Hardware   torchrun --nproc_per_node=8 eval.py config/eval_llada15.py --run_code
           --run_code allows HumanEval and MBPP to run what the model wrote. Not run by us.
"""

checkpoint = ("GSAI-ML/LLaDA-1.5",)
dtype = "bfloat16"
apply_chat_template = True

steps = 0

tasks = (
    "gsm8k_cot num_fewshot=4 max_new_tokens=256 block_size=16 last=126081,126348"
    " metric=exact_match,flexible-extract published=83.8",
    "minerva_math num_fewshot=0 max_new_tokens=1024 block_size=128 last=126081,126348"
    " metric=math_verify published=42.6",
    "gpqa_diamond_generative_n_shot num_fewshot=5 fewshot_as_multiturn=false max_new_tokens=256 block_size=16"
    " metric=exact_match,flexible-extract published=36.9",
    "humaneval_instruct num_fewshot=0 max_new_tokens=512 block_size=32 last=126081,126348 metric=pass@1 published=52.4",
    "mbpp num_fewshot=3 max_new_tokens=512 block_size=32 last=126081,126348 metric=pass_at_1 published=42.8",
    "ifeval num_fewshot=0 max_new_tokens=256 block_size=16 last=126081,126348"
    " metric=prompt_level_strict_acc published=66.2",
)
