# SDAR (arXiv 2510.06303; github.com/JetAstra/SDAR) as its scores were measured: greedy, in blocks as trained, counted
# from the start of the text, the surest position of a block first, one token per step (LMDeploy's
# low_confidence_static). --threshold=0.95 is its low_confidence_dynamic, --order=left_to_right its sequential; with
# --exact token for token.
#
# Its own generate.py draws: --temperature=1 --measure=draw, and --threshold=0.85; with --exact token for token where as
# many steps as tokens are taken (with fewer it overwrites given tokens). Its engine's entropy_bounded is
# --entropy_bound=0.35 --exact. Blocks of 8, 16, 32 and 64 are checkpoints of their own, whose config.json says so.
max_new_tokens = 1024
steps = 0
temperature = 0.0
order = "confidence"
quota = "steps"
measure = "token"
