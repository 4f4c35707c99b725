# LLaDA's published sampler (github.com/ML-GSAI/LLaDA, generate.py; arXiv 2502.09992), greedy: blocks from left to
# right, the surest positions of a block first, equal shares per step. With --exact token for token, except that where
# the published code would write a mask, here stands the best other token, and that ties go to the left.
#
# Published settings of LLaDA-8B-Instruct (max_new_tokens, block_size): GSM8K 256/8, MATH 512/64, HumanEval 512/512
# with --suppress=126081; LLaDA-1.5: GSM8K 256/16, MATH 1024/128, MBPP 512/32, all with --last=126081,126348.
temperature = 0.0
block_size = 32
steps = 0  # one token per step, as published; --steps=64 for 64 in all
order = "confidence"
quota = "steps"
measure = "token"
