# Fast-dLLM's setting (arXiv 2505.22618) for LLaDA, Dream and any other masked diffusion model: keys and values of all
# other blocks are kept while a block is denoised, and every position that the network is 90 % sure of is revealed at
# once. An approximation: its authors report from -1.2 to +4.9 points over nine tasks, at 2.7 to 11 times the tokens
# per second.
# LLaDA's token for token: with --exact in float32, without it in bfloat16 (its certainties are float64; with --exact
# they are in the network's dtype, as LLaDA's own code has them). Its Dream with a cache is another rule, the preset
# fast_dream; here Dream's blocks open as they go on.
block_size = 32
cache = "dual"
quota = "threshold"
threshold = 0.9
order = "confidence"
measure = "token"
temperature = 0.0
