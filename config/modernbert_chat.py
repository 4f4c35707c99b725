"""ModernBERT-base learns to chat: the published recipe (dLLM's BERT-Chat) beside ours.

             published                                   here
start        answerdotai/ModernBERT-base                 the same, converted by convert_bert.py
data         tulu-3-sft-mixture + smoltalk               the same, every answer of a conversation learnt
rows         one conversation of at most 1024 tokens,    the same: fill = 0. Packing is faster, but what then stands
             filled with end-of-text that is learnt      behind an answer tells its length (docs/training.md)
optimiser    lr 1e-4, cosine, 10 % warm-up               the same, AdamW (.9, .999)
batch        384 conversations                           the same
length       10 epochs                                   the same
hardware     8 A100, 4 hours                             not run by us

Data       tokenized when the run starts; or before it, by python data/tulu3/prepare.py --tokenizer=…
Hardware   torchrun --nproc_per_node=8 train.py config/modernbert_chat.py
Then       python sample.py --checkpoint=out/modernbert_chat --chat
"""

algorithm = "mdlm"
dataset = "tulu3,smoltalk"
init_from = "checkpoints/modernbert-base"
convert = "answerdotai/ModernBERT-base"
out_dir = "out/modernbert_chat"
preset = "chat"

seq_len = 1024
fill = 0

batch_size = 24
gradient_accumulation_steps = 2
epochs = 10.0
learning_rate = 0.0001
lr_schedule = "cosine"
warmup_fraction = 0.1
min_lr_fraction = 0.0
weight_decay = 0.0
beta2 = 0.999

eval_interval = 1000
eval_windows = 256
