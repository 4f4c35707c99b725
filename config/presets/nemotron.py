# Nemotron-Labs-Diffusion's published diffusion mode (arXiv 2607.05722; generate in its modeling_nemotron_labs_diffusion.py
# on the hub), greedy: blocks of 32 behind the prompt; the text before a block says its first token, as the autoregressive
# model that it is, and then every position that the masks are 90 % sure of is revealed at once. Token for token, in as
# many forwards, except that where it would write a mask, here stands the best other token, and that ties go to the left.
#
# Its other two modes on the same checkpoint: --algorithm=ar, and --verify (self-speculation: masks draft, the
# autoregressive model judges; --temperature=0 as published).
max_new_tokens = 512
block_size = 32
opening = "first"
quota = "threshold"
threshold = 0.9
order = "confidence"
measure = "token"
temperature = 0.0
