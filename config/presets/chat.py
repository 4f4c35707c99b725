# Models fine-tuned here with fill=32: answers grow by blocks of 32 masks, and end within one. As in training, nothing
# but the block's own masks lies behind the text.
max_new_tokens = 256
block_size = 32
lookahead = False
temperature = 0.0
order = "confidence"
quota = "steps"
