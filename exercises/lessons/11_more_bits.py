# %% [markdown]
# # 11 · Six ways to be wrong about bits per byte: the other three
# *Chapter II, the bound. 50 minutes. Pull requests of openai/parameter-golf; the way out is that of number 1699.*
#
# **4 · The score of another model.** Pull requests 1119 and 1194 trained one network in two ways, half of the time to
# predict the next token, half to fill in masks, and scored it from left to right, each token given those before it:
#
# $$ -\log p(x) = \sum_i -\log p(x^i \mid x^1, \dots, x^{i-1}) $$
#
# A fine number, exact even; of an autoregressive model, which happens to share its weights with a diffusion model.
# What the latter writes with, filling in any places in any order, was never measured.
#
# **5 · Predictions that depend on each other.** A refinement: predict the hidden tokens of a mask one after the other,
# each seeing those before it; weigh by 1/t as always. In lesson 8 you saw that it falls below the entropy. Here it is
# again, as it comes in code: it looks like a better denoiser.
#
# **6 · Windows without their first tokens.** A long text is cut into windows, since the context is limited. The first
# tokens of a window have hardly any context, and are expensive. Leaving them out of the mean looks like fairness, and
# is a gift. If windows overlap, the first ones of each may be left out as they were scored in the window before; but
# then every token must be scored exactly once, the first ones of the text, too.
#
# Pull request 1699 is the one to imitate: a bound, 1.483 ± 0.0003, beside two exact chain rules of the same network,
# from left to right 1.420, the surest first 1.430, and autoregression on the same text, 1.239.

# %%
import sys

import torch

sys.path += ["exercises", ".", "..", "../.."]  # the course and the project, from wherever this is run
import tiny

# %% [markdown]
# ## Write


# %%
def left_to_right(model, x0, mask_id):
    """-log p(x0) where each token is predicted from those before it; it and all after it are masks.

    model    from canvases, int64 (B, L), to logits (B, L, V); that of the mask is left out before the softmax
    returns  float64 (B,)
    """
    raise NotImplementedError("left_to_right is yours to write")


def refined(model, x0, hidden, mask_id):
    """The summed -log p of the hidden tokens, predicted from left to right: each sees what is visible, and the true
    tokens at the hidden places before it; those after it are masks.

    hidden   bool (L,), the same places for all rows
    returns  float64 (B,)
    """
    raise NotImplementedError("refined is yours to write")


def windows(length, size, stride):
    """How to score each token of a text exactly once, with windows of a limited context.

    length   tokens of the text, at least 1
    size     tokens that a window may have at most
    stride   how many tokens a window scores at most, except the first, which scores all of its own; 1 <= stride <= size
    returns  a list of (begin, first, end): the network sees tokens begin…end-1, and first…end-1 are scored. In order;
             each window has as much context as fits; the last may score fewer. windows(10, 4, 4) is
             [(0, 0, 4), (4, 4, 8), (6, 8, 10)], windows(6, 4, 1) [(0, 0, 4), (1, 4, 5), (2, 5, 6)]
    """
    raise NotImplementedError("windows is yours to write")


# %% [markdown]
# ## What one sees
#
# A model that learnt to predict the next letter, and nothing else: where a hidden letter has a visible one behind it,
# it guesses. From left to right it is perfect. As a diffusion model it is bad, and one number does not show it. Then
# the refined predictions of the model that knows the truth, below the entropy. Last, a text of 1000 tokens that cost 2
# nats plus 4/(1 + context), in windows of 64.
#
#     entropy                         2.5280 nats per word
#     half trained, left to right     2.5280
#     half trained, the bound         2.9526
#     the truth, the bound            2.5280
#     the truth, refined              2.2215
#     windows of 64, stride 64                                2.2885 nats per token, 1000 scored
#     windows of 64, stride 64, without the first 16 of each  2.1127 nats per token, 760 scored
#     windows of 64, stride 16                                2.0856 nats per token, 1000 scored

# %%
if __name__ == "__main__":

    def half_trained(canvases):
        logits = tiny.truth(canvases).clone()
        for i in range(2):
            logits[(canvases[:, i + 1 :] != tiny.MASK).any(1), i, :3] = 0.0
        return logits

    weights = {1: 1 / 3, 2: 1 / 6, 3: 1 / 3}  # lesson 5

    def plain(model, x0, hidden, mask_id):
        logp = model(torch.where(hidden, mask_id, x0))[..., :mask_id].log_softmax(-1).gather(2, x0[..., None])[..., 0]
        return -(logp * hidden).sum(1)

    def mean(model, score):
        sets = tiny.PLACES[1:]
        return sum((tiny.P * weights[int(s.sum())] * score(model, tiny.WORDS, s, tiny.MASK)).sum() for s in sets)

    print(f"entropy                         {tiny.ENTROPY:.4f} nats per word")
    print(f"half trained, left to right     {(tiny.P * left_to_right(half_trained, tiny.WORDS, tiny.MASK)).sum():.4f}")
    print(f"half trained, the bound         {mean(half_trained, plain):.4f}")
    print(f"the truth, the bound            {mean(tiny.truth, plain):.4f}")
    print(f"the truth, refined              {mean(tiny.truth, refined):.4f}")
    for stride, skip in ((64, 0), (64, 16), (16, 0)):
        cut = [(begin, max(first, begin + skip), end) for begin, first, end in windows(1000, 64, stride)]
        scored = [2 + 4 / (1 + i - begin) for begin, first, end in cut for i in range(first, end)]
        name = f"stride {stride}" + (f", without the first {skip} of each" if skip else "")
        print(f"windows of 64, {name:40} {sum(scored) / len(scored):.4f} nats per token, {len(scored)} scored")

# %% [markdown]
# In the project: `eval.py --chain_rule=left_to_right` and `--chain_rule=confidence` report the chain rules *beside*
# the bound, each under its name.
