"""bd3lm16's 03 in blocks of 4: autoregression, masked diffusion, blocks. An exact count of hidden tokens varies less in
so short a block than clipped rates do (experiments/README.md, 8)."""

algorithm = "bd3lm"
block_size = 4
corruption = "count"

vocabulary = 8192
n_layer = 3
n_head = 3
n_embd = 192
tied = True
nearest = 4
conv = 2

stages = (
    "0:algorithm=ar seq_len=64 batch_size=32",
    "0.15:seq_len=128 batch_size=16",
    "0.3:algorithm=mdlm",
    "0.6:algorithm=bd3lm",
    "0.8:seq_len=256 batch_size=8",
)
learning_rate = 2e-3
muon_learning_rate = 2e-2
decay = 0.5
