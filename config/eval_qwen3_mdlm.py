"""Qwen3-0.6B-diffusion-mdlm-v0.1: dLLM's table (examples/a2d of github.com/ZHZisZZ/dllm), published beside here.

               published                                     here
decoding       temperature 0, 256 tokens and steps, one      the same: block_size = 0 is the whole canvas
               block; MMLU 3 tokens
prompts        the chat template, thinking off, examples in  the same: fewshot_as_multiturn = False
               the one turn
GSM8K          0 shots in its README, 5 in its script        0, which a reader of it could repeat (its issue 88)
MMLU           its lm-eval takes an answer's first letter    mmlu_generative: the answer must be the letter
HumanEval      its lm-eval begins the answer with ```python  humaneval_instruct: with the signature, too

Nearest for MMLU and HumanEval; faithful for the others, of which dLLM does not say which score it prints: without
examples only flexible-extract (GSM8K) and math_verify (MATH) find an answer.
Left out: HellaSwag (42.1, 3 tokens), as lm-eval has no task that lets the model write the letter; dLLM's copy has.

Hardware   python eval.py config/eval_qwen3_mdlm.py --run_code
           --run_code allows HumanEval and MBPP to run what the model wrote. 1.2 GB: any GPU. Not run by us.
"""

checkpoint = ("dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1",)
dtype = "bfloat16"
apply_chat_template = True
fewshot_as_multiturn = False

block_size = 0
steps = 0

tasks = (
    "gsm8k_cot num_fewshot=0 max_new_tokens=256 metric=exact_match,flexible-extract published=29.3",
    "bbh num_fewshot=3 max_new_tokens=256 metric=exact_match,get-answer published=26.7",
    "minerva_math num_fewshot=0 max_new_tokens=256 metric=math_verify published=8.7",
    "mmlu_generative num_fewshot=0 max_new_tokens=3 metric=exact_match,get_response published=40.0",
    "mmlu_pro num_fewshot=0 max_new_tokens=256 metric=exact_match,custom-extract published=17.3",
    "humaneval_instruct num_fewshot=0 max_new_tokens=256 metric=pass@1 published=30.5",
    "mbpp_instruct num_fewshot=0 max_new_tokens=256 metric=pass_at_1 published=29.2",
)
