# iLLaDA's variable-length procedure (arXiv 2606.25331; github.com/ML-GSAI/LLaDA, pull request 134, var_generate): 32
# masks are appended and filled, the surest first; then, unless a stop token has been written, the next 32. Later blocks
# are not on the canvas. With --exact token for token; with --lookahead, too: that is LLaDA's own generate with mask 5.
# Published: 2048/32 for GSM8K and HumanEval, 4096/32 for MATH, 2048/16 for MBPP.
max_new_tokens = 1024
block_size = 32
lookahead = False
temperature = 0.0
steps = 0
order = "confidence"
quota = "steps"
measure = "token"
