"""The adapter that ships as checkpoints/smollm2_adapter: SmolLM2-135M drafts its own answers, and judges them.

config/smollm_bd3lm.py on half as many school problems, and on what the model says itself: what is to be drafted is
what it will say (experiments/own_answers.py).

Data      GSM8K's training problems, and data/own_answers.jsonl:
          python experiments/own_answers.py checkpoints/smollm2 --out=data/own_answers.jsonl
          (the shipped weights learnt 310 conversations that an earlier form of that script had made, and cut text by
          the tokenizer that `transformers` makes of the GGUF, which differs in a few spaces)
Hardware  one CPU core with bfloat16, 49 minutes
Expected  0.763 bits per byte of what is held out of both (NELBO); of GSM8K's answers .19 more than the original
Then      make chat
"""

algorithm = "bd3lm"
dataset = "gsm8k:1,data/own_answers.jsonl:1"
init_from = "checkpoints/smollm2-bd3lm"
convert = "checkpoints/smollm2"
shift = True
out_dir = "out/smollm_chat"

block_size = 4
seq_len = 256
packing = True

objective = "masked_ce"
corruption = "count"
t_min = 0.5

lora_r = 12
lora_at = "masks"
batch_size = 4
max_iters = 400
learning_rate = 1.5e-3
lr_schedule = "wsd"
decay_fraction = 0.5
warmup_iters = 10
weight_decay = 0.0
save_dtype = "float16"

eval_interval = 100
eval_windows = 24
