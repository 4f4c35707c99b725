# LLaDA2.1 in its speedy mode: half sure is enough to write a token, and any other that becomes more probable replaces
# it. Thresholds: SGLang's documentation of JointThreshold, 0.5 and 0 ("full editing"), as NVIDIA's AutoModel has them;
# diffusers reads 0 as no edits at all. Else as llada21.
max_new_tokens = 2048
block_size = 32
quota = "threshold"
threshold = 0.5
edit_threshold = 0.0
edit_steps = 16
least = 1
order = "confidence"
measure = "token"
temperature = 0.0
overhang = True
