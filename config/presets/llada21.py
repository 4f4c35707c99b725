# LLaDA2.1's published sampler (modeling_llada2_moe.py, generate; arXiv 2602.08676), greedy, in its quality mode: as
# llada2, and in the same pass a token of the block gives way to another of which the network is surer than 0.5. Once
# nothing in the block is hidden, at most 16 passes more. Thresholds: diffusers' documentation of the pipeline, 0.7 and
# 0.5; generate's own defaults are 0.95 and 0.9. With --exact token for token, as llada2. Its multi-block editing, which
# goes back to blocks before, is in no code that we found.
max_new_tokens = 2048
block_size = 32
quota = "threshold"
threshold = 0.7
edit_threshold = 0.5
edit_steps = 16
least = 1
order = "confidence"
measure = "token"
temperature = 0.0
overhang = True
