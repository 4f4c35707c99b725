# Models fine-tuned here on answers filled with end-of-text: a text grows by blocks of 32 masks, and nothing but these
# masks lies behind it, until a block has the end-of-text.
max_new_tokens = 256
block_size = 32
lookahead = False
temperature = 0.0
order = "confidence"
quota = "steps"
