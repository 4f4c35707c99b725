"""iLLaDA-8B-Instruct: its table (arXiv 2606.25331; github.com/ML-GSAI/LLaDA, pull request 134), published beside here.

               published                                     here
decoding       temperature 0, blocks one behind the other    the model's preset: later blocks are not on the canvas, an
               until an end token                            answer ends with its end tokens
lengths        2048 in blocks of 32 (GSM8K, HumanEval), of   the same
               16 (MBPP); 4096/32 (MATH, MMLU-Pro); MMLU
               3/3, MMLU-Redux 4/4
thoughts       the logits of "</think>" grow with what has   not here: a thought that does not end by itself is cut
               been written, by 100 times its part of the
               length to the power of 3 (HumanEval 1)
prompts        the chat template, no examples but for MMLU   the same; MMLU-Redux without examples, as lm-eval has
               (5)                                           none for it
tasks          MMLU-Pro, GSM8K, HumanEval and MBPP are its   tasks of lm-eval in the chat template
               own (…_reasoning)

The decoding is its evaluation code's but for the thoughts; its tasks are not in our sources, so prompts and the reading
of answers are lm-eval's: differences of some points say nothing of the decoder.

Hardware   torchrun --nproc_per_node=8 eval.py config/eval_illada_instruct.py --run_code
           --run_code allows HumanEval and MBPP to run what the model wrote. Not run by us.
"""

checkpoint = ("GSAI-ML/iLLaDA-8B-Instruct",)
dtype = "bfloat16"
apply_chat_template = True

block_size = 32
steps = 0

tasks = (
    "mmlu_generative num_fewshot=5 max_new_tokens=3 block_size=3 metric=exact_match,get_response published=71.6",
    "mmlu_pro num_fewshot=0 max_new_tokens=4096 metric=exact_match,custom-extract published=52.3",
    "mmlu_redux_generative num_fewshot=0 max_new_tokens=4 block_size=4 metric=exact_match,default published=76.4",
    "gsm8k_cot num_fewshot=0 max_new_tokens=2048 metric=exact_match,flexible-extract published=89.0",
    "minerva_math num_fewshot=0 max_new_tokens=4096 metric=math_verify published=56.7",
    "humaneval_instruct num_fewshot=0 max_new_tokens=2048 metric=pass@1 published=65.9",
    "mbpp_instruct num_fewshot=0 max_new_tokens=2048 block_size=16 metric=pass_at_1 published=58.0",
)
