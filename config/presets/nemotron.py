# Nemotron-Labs-Diffusion's published diffusion mode (arXiv 2607.05722; generate of modeling_nemotron_labs_diffusion.py
# on the hub), greedy: blocks of 32 behind the prompt; what stands before a block says its first token, as the
# autoregressive model that it is, and then every position that the masks are 90 % sure of is revealed at once. Token
# for token, in as many forwards, except that where it would write a mask, here stands the best other token, that ties
# go to the left, and that a block whose first token ends the text is over.
#
# Its other modes on the same checkpoint: --algorithm=ar; and --verify, self-speculation, in which masks draft and the
# autoregressive model judges (published with --temperature=0).
max_new_tokens = 512
block_size = 32
opening = "next"
quota = "threshold"
threshold = 0.9
order = "confidence"
measure = "token"
temperature = 0.0
