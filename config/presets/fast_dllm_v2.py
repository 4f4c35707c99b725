# Fast-dLLM v2 (arXiv 2509.26328; github.com/NVlabs/Fast-dLLM, v2/), greedy: the pass that stores a block of 32 says
# what comes next, which opens the next block; this is then revealed in parts of 8, from left to right, in each of which
# every position that the network is 90 % sure of goes at once. With --exact token for token (float32).
#
# --cache=parts keeps the keys and values of a block's other parts while one is revealed (its use_block_cache): an
# approximation. --quota=steps reveals one token per step, as its scores were measured (its threshold=1).
max_new_tokens = 2048
sub_block = 8
opening = "next"
temperature = 0.0
order = "confidence"
quota = "threshold"
threshold = 0.9
measure = "token"
