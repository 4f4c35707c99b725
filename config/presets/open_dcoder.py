# Open-dCoder's evaluation (github.com/pengzhangzhi/Open-dLLM, eval/eval_completion): P2 (arXiv 2502.03540), a token a
# step; in every step the tokens of which the network is least sure, written ones too, are hidden again. With
# --temperature=0 --top_p=1 --exact token for token; its other samplers are Dream's (--preset=dream).
#
# Its config.json calls it an autoregressive Qwen2, and its class does what a conversion does, so convert it:
# python convert_ar.py fredzzp/open-dcoder-0.5B --out=checkpoints/dcoder --shift=true --mask_init=keep \
#     --mask_token="[MASK]"
max_new_tokens = 128
steps = 128
block_size = 0
order = "confidence"
quota = "p2"
measure = "draw"
temperature = 0.8
top_p = 0.95
