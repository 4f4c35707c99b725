# %% [markdown]
# # 25 · A race against autoregression
# *Chapter IV, networks and speed. 45 minutes. Fast-dLLM (arXiv 2505.22618), algorithm 1; BD3LM (2503.09573), alg. 2.*
#
# Autoregression writes one token in each pass of the network (a *forward*). A diffusion model may write several. So it
# is faster? It depends on what a forward costs, and that depends on the machine. In this lesson you count.
#
# **How many tokens in a step?** Fast-dLLM lets the network decide: every hidden place of whose token it is sure enough
# is revealed at once, and if there is none, the surest one. So no step is wasted, and hard places wait for easy ones.
#
# **What does a forward read?** Say there is a prompt, and `new` tokens are to be written, `per_step` in each step.
#
# - *ar*, with a cache (lesson 21): the first forward reads the prompt, and in front of it one token that means
#   "begin". Each other forward reads the token that was written last. The very last token is read by nobody.
# - *mdlm*, without a cache: every step reads the whole canvas, prompt and new tokens.
# - *bd3lm*, with an exact cache (prompt and new tokens are whole blocks here): one forward stores the prompt, if there
#   is one. Then, block after block: each step reads the block, and when it is finished, one more forward reads it once
#   more, clean, to store it. The last block need not be stored.
#
# **What does it cost?** A forward moves all weights from memory to where they are multiplied, be it for one token or
# for many. Up to some number of tokens that takes longer than multiplying, and more tokens are free; beyond, the cost
# grows with the tokens. With $n_f$ the tokens that forward f reads, and in units of one token's multiplications:
#
# $$ \text{cost} = \sum_f \max(\text{free}, n_f) $$
#
# (This is the roofline model of Williams, Waterman and Patterson, 2009, at its plainest.) On a GPU that serves one
# text `free` is large: forwards count. On a CPU it is small: tokens count. And where B texts share each forward, they
# share the weights: each has free / B, and tokens count again.
#
# ## Write

# %%
import torch


# %%
def reveal(sure, hidden, threshold):
    """Which hidden places are revealed in this step.

    sure       float64 (B, L), how sure the network is of each place's token, in [0, 1]; of places that are not hidden
               it may say anything
    hidden     bool (B, L)
    threshold  float
    returns    bool (B, L): in each row all hidden places whose sure is at least the threshold; if there are none, the
               surest hidden place, of equally sure ones the leftmost. A row in which nothing is hidden reveals nothing
    """
    raise NotImplementedError("reveal is yours to write")


def tokens_read(method, new, prompt, block_size, per_step):
    """How many tokens each forward reads, in order.

    method      "ar", "mdlm" or "bd3lm"
    new         int, at least 1: tokens to write
    prompt      int, tokens before them; may be 0
    block_size  int, of bd3lm, where it divides new and prompt; the others ignore it
    per_step    int, tokens that a step reveals; the last step of a canvas (mdlm) or of a block (bd3lm) reveals what is
                left, which may be fewer. ar ignores it
    returns     int64 (F,), one number for each forward; the length says how many forwards it takes
    """
    raise NotImplementedError("tokens_read is yours to write")


def break_even(method, new, prompt, block_size, free):
    """The smallest per_step with which a method costs no more than ar, or 0 if there is none.

    method   "mdlm", whose per_step goes up to new, or "bd3lm", whose per_step goes up to block_size
    free     int, at least 1: a forward that reads n tokens costs max(free, n)
    returns  int
    """
    raise NotImplementedError("break_even is yours to write")


# %% [markdown]
# ## What one sees
#
#     threshold 0.9   reveals [0, 2]
#     threshold 0.99  reveals [0]
#                        forwards  tokens   cost at free = 1, 32, 512
#     ar       1 a step      256       320        320    8,225  131,072
#     mdlm     1 a step      256    81,920     81,920   81,920  131,072
#     mdlm     4 a step       64    20,480     20,480   20,480   32,768
#     mdlm   256 a step        1       320        320      320      512
#     bd3lm    1 a step      264     8,480      8,480    8,480  135,168
#     bd3lm    4 a step       72     2,336      2,336    2,336   36,864
#     tokens a step to draw level with ar (0: never)
#     mdlm  256 at free = 1, 11 at free = 32, 3 at free = 128, 1 at free = 512
#     bd3lm 0 at free = 1, 2 at free = 32, 2 at free = 128, 2 at free = 512
#
# At the top, one step of a sampler: at 0.9 two places are sure enough, at 0.99 none is, and the surest goes alone.
#
# The table is for 256 new tokens after a prompt of 64, in blocks of 32. With several tokens a step diffusion needs
# fewer forwards, but it reads more tokens: ar reads each token once, bd3lm reads each new one at least twice (but for
# the last block), mdlm reads all of them in each step. So at free = 1 mdlm draws level only by writing everything in
# one step, and bd3lm does not. With enough free tokens one or two in a step will do. Whoever says that diffusion is
# faster, or that it is not, has said something about a machine and a batch. (What is left out here: attention's own
# work, which grows with what is in the cache.)

# %%
if __name__ == "__main__":
    sure = torch.tensor([[0.95, 0.40, 0.91, 0.97, 0.60]]).double()
    hidden = torch.tensor([[True, True, True, False, True]])
    for threshold in (0.9, 0.99):
        print(f"threshold {threshold:<5} reveals", reveal(sure, hidden, threshold)[0].nonzero()[:, 0].tolist())

    sizes = dict(new=256, prompt=64, block_size=32)
    print(f"{'':18} forwards  tokens   cost at free = 1, 32, 512")
    for method, per_step in (("ar", 1), ("mdlm", 1), ("mdlm", 4), ("mdlm", 256), ("bd3lm", 1), ("bd3lm", 4)):
        read = tokens_read(method, per_step=per_step, **sizes)
        costs = "".join(f"{int(read.clamp(min=free).sum()):9,}" for free in (1, 32, 512))
        print(f"{method:6}{per_step:4} a step {len(read):8}{int(read.sum()):10,}  {costs}")
    print("tokens a step to draw level with ar (0: never)")
    for method in ("mdlm", "bd3lm"):
        said = ", ".join(f"{break_even(method, free=free, **sizes)} at free = {free}" for free in (1, 32, 128, 512))
        print(f"{method:6}{said}")

# %% [markdown]
# In the project: `choose_positions` in `nanodlm/choice.py` (`quota="threshold"`); `num_forwards` of every sampler's
# output. To see three models write side by side: `python exercises/race.py`.
