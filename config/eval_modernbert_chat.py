"""ModernBERT-base-chat-v0.1: dLLM's table (examples/bert of github.com/ZHZisZZ/dllm), published beside here.

               published                                     here
decoding       temperature 0, 256 tokens and steps, blocks   the same
               of 32
likelihood     LLaDA's estimate, 32 masks in one batch       the same
prompts        the chat template, examples in the one turn   the same: fewshot_as_multiturn = False
HellaSwag      acc_norm, as the GPT-2 of its table shows     the same
GSM8K          a task of its own copy of lm-eval, 0 shots    gsm8k_cot, 0 shots, flexible-extract
LAMBADA        no command is published                       lambada_openai, 0 shots, greedy

Nearest for GSM8K and LAMBADA; faithful for the others, with math_verify assumed for MATH. Most of these numbers are
what guessing gives (MMLU, C-Eval, CMMLU 25, WinoGrande 50): agreement there says little.

ModernBERT-large-chat-v0.1, published: GSM8K 9.3, BBH 25.6, MATH 3.6, MMLU 29.6, HellaSwag 40.9, LAMBADA 46.3,
WinoGrande 49.0, C-Eval 26.5, CMMLU 26.5. With --checkpoint=dllm-hub/ModernBERT-large-chat-v0.1 the same tasks run; the
published column is then still that of base.

Hardware   python eval.py config/eval_modernbert_chat.py
           0.3 GB (large 0.8): any GPU. Not run by us.
"""

checkpoint = ("dllm-hub/ModernBERT-base-chat-v0.1",)
dtype = "bfloat16"
apply_chat_template = True
fewshot_as_multiturn = False

method = "llada"
mc_samples = 32
mc_batch = 32
block_size = 32
steps = 0

tasks = (
    "gsm8k_cot num_fewshot=0 max_new_tokens=256 metric=exact_match,flexible-extract published=3.6",
    "bbh num_fewshot=3 max_new_tokens=256 metric=exact_match,get-answer published=21.1",
    "minerva_math num_fewshot=4 max_new_tokens=256 metric=math_verify published=3.1",
    "mmlu num_fewshot=5 metric=acc published=26.2",
    "hellaswag num_fewshot=0 metric=acc_norm published=34.5",
    "lambada_openai num_fewshot=0 metric=acc published=49.3",
    "winogrande num_fewshot=5 metric=acc published=48.8",
    "ceval-valid num_fewshot=5 metric=acc published=25.1",
    "cmmlu num_fewshot=5 metric=acc published=26.1",
)
