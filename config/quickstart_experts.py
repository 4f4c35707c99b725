"""The laptop path as a mixture of experts: in every layer eight MLPs of half the width, of which a token takes two.

Data      python data/pydocs/prepare.py
Hardware  2 CPU cores with bfloat16; an iteration takes 1.55 times config/quickstart.py's (CPU seconds)
Expected  2.22 bits per byte (NELBO) on as many tokens as there, where it is 2.24 on the same machine; in as many
          minutes, which is --max_iters=1160, 2.36. So at this size a mixture does not pay (docs/training.md)
"""

algorithm = "mdlm"
dataset = "pydocs"
out_dir = "out/quickstart_experts"

experts = 8
experts_per_token = 2
expert_dim = 384  # two of them are as wide as config/quickstart.py's one MLP
router = "sigmoid"  # LLaDA 2's kind of router, whose bias keeps the experts equally busy
router_norm = True
router_bias = True
router_scale = 2.0  # the two weights are about 1/2 each: so together the experts begin as the one MLP would
balance = 0.003

objective = "masked_ce"  # from here on as there
t_shape = "bell"
t_max = 0.8

seq_len = 256
n_layer = 3
n_head = 3
n_embd = 192

batch_size = 8
max_iters = 1800
optimizer = "muon"
learning_rate = 2e-3
muon_learning_rate = 2e-2
lr_schedule = "wsd"
decay_fraction = 0.5
warmup_iters = 40

eval_interval = 600
eval_windows = 128
