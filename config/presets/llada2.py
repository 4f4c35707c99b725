# LLaDA2.0's published sampler (modeling_llada2_moe.py, generate; arXiv 2512.15745), greedy, with the settings that its
# authors report: blocks of 32, counted from the text's first token; every position of a block that the network is 95 %
# sure of is revealed at once, and at least one a step. Their `steps` is --least here, 32 / steps (where steps divides
# 32). The last block is written to its end, then cut. With --exact token for token, except that where the published
# code would write a mask, here stands the best other token. (The copy in dFactory, of January 2026, draws at
# temperature 1 where it is told 0.)
max_new_tokens = 2048
block_size = 32
quota = "threshold"
threshold = 0.95
least = 1
order = "confidence"
measure = "token"
temperature = 0.0
overhang = True
