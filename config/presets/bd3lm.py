# Qwen3-0.6B-diffusion-bd3lm and its like: blocks of 32, each denoised greedily, the surest position first, and then
# kept in the KV cache. Blocks are counted from the start of the text, as in training (their own sampler counts them
# from the prompt's end).
max_new_tokens = 256
block_size = 32
steps = 0
temperature = 0.0
order = "confidence"
quota = "steps"
measure = "token"
