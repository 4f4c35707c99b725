"""SDAR-8B-Chat: its table (jetastra.github.io/SDAR; github.com/JetAstra/SDAR, evaluation/), published beside here.

               published                                     here
decoding       greedy, blocks of 4, 4 steps each, by         the model's preset: the same tokens
               LMDeploy, up to 4096 tokens
tasks          of OpenCompass: GSM8K and MATH-500 without    tasks of lm-eval in the chat template, without examples
               examples, MMLU with 5, HumanEval, MBPP        but for MMLU
               (sanitized), IFEval
answers        read by OpenCompass' rules                    by lm-eval's

Faithful: the decoding. Prompts and the reading of answers are lm-eval's, so that differences of some points say nothing
of the decoder. Other sizes: --checkpoint=JetLM/SDAR-4B-Chat (MMLU 74.9, GSM8K 89.9, MATH-500 72.8, HumanEval 72.0, MBPP
65.4), JetLM/SDAR-1.7B-Chat (62.9, 80.1, 63.2, 61.6, 61.1). Left out: MathBench (76.9), which lm-eval does not have, and
IFEval, whose number for this size is not in our source. What a threshold costs: --threshold=0.95 for all rows.

Hardware   python eval.py config/eval_sdar.py --run_code
           One GPU of 24 GB. --run_code allows HumanEval and MBPP to run what the model wrote. Not run by us.
"""

checkpoint = ("JetLM/SDAR-8B-Chat",)
dtype = "bfloat16"
apply_chat_template = True

steps = 0

tasks = (
    "mmlu_generative num_fewshot=5 max_new_tokens=32 metric=exact_match,get_response published=78.6",
    "gsm8k_cot num_fewshot=0 max_new_tokens=4096 metric=exact_match,flexible-extract published=91.3",
    "minerva_math500 num_fewshot=0 max_new_tokens=4096 metric=math_verify published=78.6",
    "humaneval_instruct num_fewshot=0 max_new_tokens=4096 metric=pass@1 published=78.7",
    "mbpp_instruct num_fewshot=0 max_new_tokens=4096 metric=pass_at_1 published=72.0",
)
