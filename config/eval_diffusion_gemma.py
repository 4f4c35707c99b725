"""DiffusionGemma-26B-A4B-it: what its model card says (Google, June 2026; as others quote it), published beside here.

             published                                     here
decoding     48 steps at most, entropy bound 0.1,          the same, by the defaults of transformers 5.17
             temperature 0.8 to 0.4, stop when stable
             and surer than 0.005 nats
thinking     not in our source                             thoughts=think; they are no part of the answer
lengths      not in our source                             at most 32,768 tokens, thoughts included
prompts      not in our source                             tasks of lm-eval in the chat template, no examples
GPQA         diamond, 73.2                                 gpqa_diamond_cot_zeroshot, the last letter in brackets
MMLU-Pro     77.6                                          mmlu_pro: looks for "answer is (X)"

So no row repeats a published one to the letter. The same task of GPQA under vLLM gave others 70.7 and 70.2 with
thoughts, 64.7 without (198 questions, one A100 of 80 GB; issue 4732 of github.com/tenstorrent/tt-inference-server),
which is the nearer comparison.
Left out, as lm-eval has no task of it: AIME 2026 (69.1), LiveCodeBench v6 (69.1), and what needs images.

Hardware   python eval.py config/eval_diffusion_gemma.py      one GPU with 80 GB: the weights are 52 GB in bfloat16
           Not run by us: all of it is tested on random weights alone.
"""

checkpoint = ("google/diffusiongemma-26B-A4B-it",)
dtype = "bfloat16"
batch_size = 4  # a row's logits of a canvas, and those of the step before: 256 x 262,144 numbers each
apply_chat_template = True
thoughts = "think"
max_new_tokens = 32768

steps = 48
entropy_bound = 0.1
temperature = 0.8  # said, or the tasks would ask for greedy decoding
last_temperature = 0.4
stable = 1
sure = 0.005

tasks = (
    "gpqa_diamond_cot_zeroshot num_fewshot=0 metric=exact_match,flexible-extract published=73.2",
    "gpqa_diamond_cot_zeroshot label=gpqa_diamond_without_thoughts num_fewshot=0 thoughts=empty"
    " metric=exact_match,flexible-extract",
    "mmlu_pro num_fewshot=0 metric=exact_match,custom-extract published=77.6",
)
