# %% [markdown]
# # 20 · Who sees whom in block diffusion
# *Chapter IV, networks and speed. 40 minutes. BD3LM (arXiv 2503.09573), section 3.2 and supplement B.6.*
#
# Block diffusion cuts a text into blocks of `size` tokens. Blocks follow each other from left to right; within a block
# tokens are hidden and revealed as in masked diffusion. So a network that fills in block b is to see block b with its
# holes, and what is finished: the clean text of all blocks before.
#
# In training every block has holes, and every block must also be there clean, for those behind it. One pass does it:
# the network reads both versions, first the noised text $x_t$, then the clean one $x_0$, as one row of 2L tokens. A
# mask says who sees whom. Below, i is a query (a row of the mask), j a key (a column), and b() the block of a token;
# the first row and the first column of M are the noised half.
#
# $$ M = \begin{pmatrix} M_{BD} & M_{OBC} \\ 0 & M_{BC} \end{pmatrix} \qquad
# M_{BD}: b(i) = b(j) \qquad M_{OBC}: b(j) < b(i) \qquad M_{BC}: b(j) \le b(i) $$
#
# In words: a noised token sees its own noised block (BD: block diagonal), and the clean blocks *before* its own (OBC:
# offset block causal). A clean token sees its own clean block and the clean blocks before (BC: block causal), and
# nothing that is noised.
#
# Both versions of a token stand at the same place of the text, so both halves have the positions 0 … L-1. If L is no
# multiple of `size`, the last block is shorter.
#
# **What could leak?** A noised token is scored by its own clean version. If it saw that, directly, it would copy it.
# But a network has many layers, and what a token has seen in one layer, others see of it in the next. So an answer can
# also come in by a detour: i sees m, and m sees j. The third function follows all detours.
#
# ## Write

# %%
import torch


# %%
def block_mask(L, size):
    """Who sees whom in [x_t ; x_0].

    L        int, tokens of the text
    size     int, tokens of a block; token p is in block p // size
    returns  bool (2L, 2L): row i, column j: whether query i sees key j; 0 … L-1 noised, L … 2L-1 clean
    """
    raise NotImplementedError("block_mask is yours to write")


def positions(L):
    """Where in the text each token of [x_t ; x_0] stands: int64 (2L,)."""
    raise NotImplementedError("positions is yours to write")


def reach(mask):
    """Who can know of whom in a network of any number of layers.

    mask     bool (N, N): row i, column j: whether i sees j in one layer; it stays as it is
    returns  bool (N, N): True where j = i, where i sees j, or where a chain of any length leads from i to j: i sees
             someone, who sees someone, …, who sees j
    """
    raise NotImplementedError("reach is yours to write")


# %% [markdown]
# ## What one sees
#
#       ab__e_abcdef
#     a ##..........
#     b ##..........
#     _ ..##..##....
#     _ ..##..##....
#     e ....######..
#     _ ....######..
#     a ......##....
#     b ......##....
#     c ......####..
#     d ......####..
#     e ......######
#     f ......######
#     positions 0 1 2 3 4 5 0 1 2 3 4 5
#     any number of layers, the same mask: True
#     noised 3 sees clean 3: noised tokens that know an answer after one layer [3], after all [2, 3]
#     clean 1 sees clean 2: noised tokens that know an answer after one layer [], after all [2, 3]
#
# The right mask is closed under detours: more layers let nobody know of more. With one entry too many the answers come
# in, and not only for the token that sees too much. The last case is the treacherous one: nobody sees its own answer,
# one clean token merely looks into the next block.

# %%
if __name__ == "__main__":
    L, size = 6, 2
    both, mask = "ab__e_abcdef", block_mask(L, size)
    print("  " + both)
    for letter, row in zip(both, mask.tolist()):
        print(f"{letter} " + "".join("#" if seen else "." for seen in row))
    print("positions", *positions(L).tolist())
    print("any number of layers, the same mask:", torch.equal(reach(mask), mask))

    token = torch.arange(L)
    answer = token // size >= token[:, None] // size  # (L, L): of the own block, or of a later one
    for what, i, j in (("noised 3 sees clean 3", 3, L + 3), ("clean 1 sees clean 2", L + 1, L + 2)):
        wrong = mask.clone()
        wrong[i, j] = True
        one, all_layers = (m[:L, L:] & answer for m in (wrong, reach(wrong)))
        told = [row.any(1).nonzero()[:, 0].tolist() for row in (one, all_layers)]
        print(f"{what}: noised tokens that know an answer after one layer {told[0]}, after all {told[1]}")

# %% [markdown]
# In the project: `bd3lm.sees`, and `bd3lm.attention`, which leaves out the last clean block: nobody behind it reads
# it.
