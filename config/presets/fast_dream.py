# Fast-dLLM's Dream with a cache (arXiv 2505.22618; github.com/NVlabs/Fast-dLLM, dream/), greedy: the pass over the
# whole canvas that opens a block reveals its first token alone, however unsure; the token before the block, which
# predicts that one, keeps its keys and values, too; then every position that the network is 90 % sure of is revealed at
# once. With --exact token for token (float32), except that where the published code would write a mask, here stands the
# best other token. --preset=fast is the same by our rule, whose blocks open as they go on.
#
# --cache=prefix is its other cache. --quota=steps --order=entropy --schedule=dream --steps=256 (for 256 tokens) is how
# it goes without threshold; a block's last step takes what is left, and a block of one step, which the published code
# leaves unfinished, takes a second. Without a cache its threshold reveals, so far, no more than equal steps would have:
# --preset=dream --temperature=0 --top_p=1 --order=confidence --threshold=0.9 --capped --steps=8.
block_size = 32
cache = "dual"
opening = "first"
quota = "threshold"
threshold = 0.9
order = "confidence"
measure = "draw"
temperature = 0.0
