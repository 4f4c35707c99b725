"""Qwen3-0.6B-diffusion-bd3lm-v0.1: dLLM's table (examples/a2d of github.com/ZHZisZZ/dllm), published beside here.

               published                                     here
decoding       temperature 0, 256 tokens and steps, blocks   the same
               of 32, kept in the cache; MMLU 3 tokens
blocks         counted from the prompt's end                 from the start of the text, as in training
prompts        the chat template, thinking off, examples in  the same: fewshot_as_multiturn = False
               the one turn
MMLU           its lm-eval takes an answer's first letter    mmlu_generative: the answer must be the letter
HumanEval      its lm-eval begins the answer with ```python  humaneval_instruct: with the signature, too

Nearest for MMLU and HumanEval; faithful for the others but for the blocks. dLLM does not say which score it prints:
without examples only flexible-extract (GSM8K) and math_verify (MATH) find an answer.
Left out: HellaSwag (39.3, 3 tokens), as lm-eval has no task that lets the model write the letter; dLLM's copy has.

Hardware   python eval.py config/eval_qwen3_bd3lm.py --run_code
           --run_code allows HumanEval and MBPP to run what the model wrote. 1.2 GB: any GPU. Not run by us.
"""

checkpoint = ("dllm-hub/Qwen3-0.6B-diffusion-bd3lm-v0.1",)
dtype = "bfloat16"
apply_chat_template = True
fewshot_as_multiturn = False

block_size = 32
steps = 0

tasks = (
    "gsm8k_cot num_fewshot=0 max_new_tokens=256 metric=exact_match,flexible-extract published=46.3",
    "bbh num_fewshot=3 max_new_tokens=256 metric=exact_match,get-answer published=26.6",
    "minerva_math num_fewshot=0 max_new_tokens=256 metric=math_verify published=12.9",
    "mmlu_generative num_fewshot=0 max_new_tokens=3 metric=exact_match,get_response published=39.1",
    "mmlu_pro num_fewshot=0 max_new_tokens=256 metric=exact_match,custom-extract published=13.8",
    "humaneval_instruct num_fewshot=0 max_new_tokens=256 metric=pass@1 published=46.3",
    "mbpp_instruct num_fewshot=0 max_new_tokens=256 metric=pass_at_1 published=38.2",
)
