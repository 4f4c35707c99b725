"""What config/pydocs_typos.py is compared with: masked diffusion on the same characters, which fills in what is missing
where it is told that something is (experiments/repair.py).

Data      python data/pydocs/prepare.py --tokenizer=char --out=data/pydocs_chars
Hardware  one CPU core with bfloat16, 8 minutes, as many as that one (0.26 s an iteration, on a shared core, 2026-11-29)
Expected  3.34 +- .06 bits per character (NELBO, of all rates, where up to 0.2 were learnt); docs/editing.md
"""

algorithm = "mdlm"
dataset = "pydocs_chars"
out_dir = "out/pydocs_chars_mdlm"

objective = "masked_ce"
t_max = 0.2  # few holes, as it will meet

seq_len = 128
n_layer = 4
n_head = 4
n_embd = 192

batch_size = 16
max_iters = 1760
optimizer = "muon"
learning_rate = 2e-3
muon_learning_rate = 2e-2
lr_schedule = "wsd"
decay_fraction = 0.5
warmup_iters = 40

eval_interval = 880
eval_windows = 128
