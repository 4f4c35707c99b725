"""Fast-dLLM v2 7B: its table (arXiv 2509.26328; github.com/NVlabs/Fast-dLLM, v2/), published beside here.

               published                                     here
decoding       greedy, blocks of 32 in parts of 8, the       the model's preset: the same tokens
               pass that stores a block opens the next
threshold      1: one token per step                         quota = steps: one token per step
lengths        2048 tokens, up to the end of the turn        the same
prompts        the chat template, no examples but for MMLU   the same
               (5)
GSM8K, MATH    "Answer:", "Solution:" give way to "Please    lm-eval's prompts
               reason step by step, and put your final
               answer within \\boxed{}."
MMLU, GPQA     log p of an answer whose first token alone    mmlu_generative; GPQA is left out (31.9)
               is hidden, before an end-of-text

Faithful: the decoding. HumanEval and MBPP are EvalPlus' (+ 58.5 and 52.3), here lm-eval's tasks. For speed, and what it
costs: --quota=threshold (0.9, its default), and with --cache=parts. The smaller one:
--checkpoint=Efficient-Large-Model/Fast_dLLM_v2_1.5B (HumanEval 43.9, MBPP 50.0, GSM8K 62.0, MATH 38.1, IFEval 47.0,
MMLU 55.1).

Hardware   python eval.py config/eval_fastdllm_v2.py --run_code
           One GPU of 24 GB. --run_code allows HumanEval and MBPP to run what the model wrote. Not run by us.
"""

checkpoint = ("Efficient-Large-Model/Fast_dLLM_v2_7B",)
dtype = "bfloat16"
apply_chat_template = True

quota = "steps"
steps = 0

tasks = (
    "humaneval_instruct num_fewshot=0 max_new_tokens=2048 metric=pass@1 published=63.4",
    "mbpp_instruct num_fewshot=0 max_new_tokens=2048 metric=pass_at_1 published=63.0",
    "gsm8k_cot num_fewshot=0 max_new_tokens=2048 metric=exact_match,flexible-extract published=83.7",
    "minerva_math num_fewshot=0 max_new_tokens=2048 metric=math_verify published=61.6",
    "ifeval num_fewshot=0 max_new_tokens=2048 metric=prompt_level_strict_acc published=61.4",
    "mmlu_generative num_fewshot=5 max_new_tokens=32 metric=exact_match,get_response published=66.6",
)
