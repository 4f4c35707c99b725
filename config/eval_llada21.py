"""LLaDA2.1-mini in its two modes: its table (arXiv 2602.08676, table 2), published beside here.

               published                                     here
quality        an average of 63.90, 3.12 tokens a forward    the preset llada21: thresholds 0.7, for edits 0.5
speed          an average of 62.07, 5.34 tokens a forward    llada21_speed: 0.5, for edits 0, which is any that differs
edits          16 passes more, at most, once a block is full the same; within a block, as in its public code
thresholds     not in the paper                              of diffusers' documentation (quality) and SGLang's (speed)
length         not said; generate's default is 2048 tokens   4096
GPQA           53.28, speed 48.36, of which is not said      gpqa_diamond_cot_zeroshot
tokens a       MMLU-Pro 2.41, speed 4.22; GPQA 2.12, 3.62;   beside each score
forward        IFEval 1.25, 1.83; BBH 2.86, 5.02

Prompts are those of lm-eval's nearest tasks, in the chat template: theirs, and their shots, are not public. The flash
model, --checkpoint=inclusionAI/LLaDA2.1-flash, has in quality 76.59, 67.30, 83.55 and 88.69 for MMLU-Pro, GPQA, IFEval
and BBH, in speed 75.31, 66.67, 83.36 and 87.82. Left out is what lm-eval has no task for, and multi-block editing, of
which there is no public code.

Hardware   python eval.py config/eval_llada21.py
           16 B parameters, 33 GB. Not run by us.
"""

checkpoint = ("inclusionAI/LLaDA2.1-mini",)
dtype = "bfloat16"
apply_chat_template = True
fewshot_as_multiturn = False

max_new_tokens = 4096

tasks = (
    "mmlu_pro num_fewshot=0 preset=llada21 metric=exact_match,custom-extract published=64.84",
    "gpqa_diamond_cot_zeroshot num_fewshot=0 preset=llada21 metric=exact_match,flexible-extract published=53.28",
    "ifeval num_fewshot=0 preset=llada21 metric=prompt_level_strict_acc published=83.18",
    "bbh num_fewshot=3 preset=llada21 metric=exact_match,get-answer published=80.58",
    "mmlu_pro label=mmlu_pro_speed num_fewshot=0 preset=llada21_speed metric=exact_match,custom-extract"
    " published=63.42",
    "gpqa_diamond_cot_zeroshot label=gpqa_diamond_speed num_fewshot=0 preset=llada21_speed"
    " metric=exact_match,flexible-extract published=48.36",
    "ifeval label=ifeval_speed num_fewshot=0 preset=llada21_speed metric=prompt_level_strict_acc published=81.33",
    "bbh label=bbh_speed num_fewshot=3 preset=llada21_speed metric=exact_match,get-answer published=78.42",
)
