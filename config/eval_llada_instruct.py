"""LLaDA-8B-Instruct: the tables of LLaDA (arXiv 2502.09992; EVAL.md of github.com/ML-GSAI/LLaDA), published beside
here.

               published                                     here
prompts        OpenCompass                                   the nearest tasks of lm-eval, in the chat template
decoding       temperature 0, length = steps = block; end    the same: block_size = 0 is the whole canvas; last =
               tokens revealed last, or never written,       126081,126348 are end-of-text and end-of-turn, suppress =
               where its table says so                       126081 is end-of-text
MMLU           5 shots, 3 tokens, the first letter in them   mmlu_generative: the answer must be the letter
MMLU-Pro       0 shots, asks for "ANSWER: X"                 mmlu_pro: looks for "answer is (X)"
ARC-C          asks for the letter, takes the first          arc_challenge_chat: begins the answer itself
GSM8K          4 shots of its own, as turns                  gsm8k_cot: the first 4 of 8 others, as turns
MATH           0 shots, asks for a box                       minerva_math: 0 shots, does not ask; math_verify reads it
GPQA           diamond, the same 5 shots in one turn         gpqa_diamond_generative_n_shot: 5 shots drawn for each
HumanEval      "Complete the following python code"          humaneval_instruct: begins the answer with the signature
MBPP           3 shots, as turns, [BEGIN] and [DONE]         mbpp: the same shots, as turns; [BEGIN] ends the question

So no row repeats a published one to the letter: lengths, blocks and end tokens are as published, prompts and the
reading of answers are not. Differences of some points say nothing of the decoder: where their own tools gave what is
published, OpenCompass gave LLaDA's authors MMLU 65.4, MMLU-Pro 36.6, ARC-C 89.2, GSM8K 68.8, MATH 29.6, GPQA 32.3,
HumanEval 47.0 and MBPP 39.6, and others report 72.8 on an A100 for a GSM8K that gave 77.5 on an H200.
Left out: HellaSwag (74.6, 3 tokens), as lm-eval has no task that lets the model write the letter.

Hardware   torchrun --nproc_per_node=8 eval.py config/eval_llada_instruct.py --run_code
           --run_code allows HumanEval and MBPP to run what the model wrote. Not run by us; GSM8K at 512 tokens took
           LLaDA's authors 3 hours on 8 A100.
"""

checkpoint = ("GSAI-ML/LLaDA-8B-Instruct",)
dtype = "bfloat16"
apply_chat_template = True

block_size = 0
steps = 0

tasks = (
    "mmlu_generative num_fewshot=5 max_new_tokens=3 metric=exact_match,get_response published=65.5",
    "mmlu_pro num_fewshot=0 max_new_tokens=256 metric=exact_match,custom-extract published=37.0",
    "arc_challenge_chat num_fewshot=0 max_new_tokens=512 metric=exact_match published=88.5",
    "gsm8k_cot num_fewshot=4 max_new_tokens=512 last=126081,126348 metric=exact_match,flexible-extract published=69.4",
    "minerva_math num_fewshot=0 max_new_tokens=512 last=126081,126348 metric=math_verify published=31.9",
    "gpqa_diamond_generative_n_shot num_fewshot=5 fewshot_as_multiturn=false max_new_tokens=64 last=126081,126348"
    " metric=exact_match,flexible-extract published=33.3",
    "humaneval_instruct num_fewshot=0 max_new_tokens=512 suppress=126081 metric=pass@1 published=49.4",
    "mbpp num_fewshot=3 max_new_tokens=256 last=126081,126348 metric=pass_at_1 published=41.0",
    # block by block, without a rule for the end tokens
    "gsm8k_cot label=gsm8k_cot_blocks num_fewshot=4 max_new_tokens=256 block_size=8"
    " metric=exact_match,flexible-extract published=78.6",
    "minerva_math label=minerva_math_blocks num_fewshot=0 max_new_tokens=512 block_size=64"
    " metric=math_verify published=42.2",
)
