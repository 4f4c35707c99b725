"""iLLaDA-8B-Instruct: its table (arXiv 2606.25331), published beside here.

               published                                     here
decoding       temperature 0, blocks one behind the other    the model's preset: later blocks are not on the canvas, an
               until an end token                            answer ends with its end tokens
lengths        2048 in blocks of 32 (GSM8K, HumanEval), of   the same
               16 (MBPP); 4096/32 (MATH, MMLU-Pro); MMLU 4/4
MMLU-Redux     not in our source                             as MMLU
prompts        not public                                    tasks of lm-eval in the chat template, as those of
                                                             eval_llada_instruct.py

Its evaluation code is not public, so prompts, shots and the reading of answers are ours: differences of some points say
nothing of the decoder. A runner of others also stops at </think>; where answers show it: --until="</think>".

Hardware   torchrun --nproc_per_node=8 eval.py config/eval_illada_instruct.py --run_code
           --run_code allows HumanEval and MBPP to run what the model wrote. Not run by us.
"""

checkpoint = ("GSAI-ML/iLLaDA-8B-Instruct",)
dtype = "bfloat16"
apply_chat_template = True

block_size = 32
steps = 0

tasks = (
    "mmlu_generative num_fewshot=5 max_new_tokens=4 block_size=4 metric=exact_match,get_response published=71.6",
    "mmlu_pro num_fewshot=0 max_new_tokens=4096 metric=exact_match,custom-extract published=52.3",
    "mmlu_redux_generative num_fewshot=0 max_new_tokens=4 block_size=4 metric=exact_match,default published=76.4",
    "gsm8k_cot num_fewshot=4 max_new_tokens=2048 metric=exact_match,flexible-extract published=89.0",
    "minerva_math num_fewshot=0 max_new_tokens=4096 metric=math_verify published=56.7",
    "humaneval_instruct num_fewshot=0 max_new_tokens=2048 metric=pass@1 published=65.9",
    "mbpp num_fewshot=3 max_new_tokens=2048 block_size=16 metric=pass_at_1 published=58.0",
)
