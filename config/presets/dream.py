# Dream's published sampler (diffusion_generate; arXiv 2508.15487) with the settings its authors recommend: the
# positions of lowest entropy first, anywhere on the canvas. --order=confidence is its maskgit_plus, --order=margin
# its topk_margin, --quota=ancestral its origin, --order_temperature its alg_temp. With --temperature=0 --exact token
# for token, for every row of a batch as if it were alone (the published code averages the rows' number of masks);
# ties go to the left; and except that where it would write a mask, here stands the best other token.
#
# DiffuCoder (github.com/apple/ml-diffucoder) says --temperature=0.3 and 256 tokens in as many steps, Dream-Coder
# (github.com/DreamLM/Dream-Coder) --temperature=0.1 and 768, and for its base model's HumanEval 512 at 0.2, top_p 0.9.
max_new_tokens = 512
steps = 512
block_size = 0
order = "entropy"
quota = "steps"
schedule = "dream"
measure = "draw"
temperature = 0.2
top_p = 0.95
