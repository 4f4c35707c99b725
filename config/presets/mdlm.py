# Qwen3-0.6B-diffusion-mdlm and its like, as evaluated by their authors: LLaDA's sampler over the whole canvas at
# once.
max_new_tokens = 256
block_size = 0
temperature = 0.0
order = "confidence"
quota = "steps"
measure = "token"
