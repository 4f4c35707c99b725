# %% [markdown]
# # 9 · The exact likelihood of an order
# *Chapter II, the bound. 45 minutes. DUEL (arXiv 2603.01367); any-order models: ARDM (2110.02037).*
#
# A sampler that reveals one token at a time, in a fixed order σ, is an autoregressive model in another order. Its
# likelihood is no bound but exact, by the chain rule:
#
# $$ \log p_\sigma(x) = \sum_{j=1}^{L} \log p\big(x^{\sigma_j} \mid x^{\sigma_1}, \dots, x^{\sigma_{j-1}}\big) $$
#
# What has the bound to do with it? Averaged over all L! orders, -log p_σ(x) *is* the bound of lesson 5: the time t
# merely says how far a random order has come. And why is that a bound? A sampler that draws its order at random writes
# x with the probability mean of p_σ(x); and the mean of -log is never below -log of the mean (Jensen).
#
# Samplers do not use random orders. They reveal next where the network is surest. Such an order depends on the text,
# so has it a likelihood? Look at what decides: how sure the network is, which is to say the largest probability, of
# *any* letter, at each hidden place, given the letters revealed so far. The letter that is then written plays no part
# in it before it is written. So whoever knows the text can follow: look where the sampler would write next, take log p
# of the text's letter there, write it, go on. The sum is exact, and the probabilities of all texts add up to 1.
#
# But let the place be chosen by the probability of the text's own letter, and the chooser has looked at the answer:
# the probabilities no longer add up to 1.

# %%
import sys

import torch

sys.path += ["exercises", ".", "..", "../.."]  # the course and the project, from wherever this is run
import tiny

# %% [markdown]
# ## Write


# %%
def in_order(model, x0, order, mask_id):
    """log p(x0) where places are revealed one at a time, in this order, from a canvas of masks.

    model    from canvases, int64 (B, L), to logits (B, L, V); that of the mask is left out before the softmax
    x0       int64 (B, L)
    order    a list of places, such as [2, 0, 1]: the same for all rows
    returns  float64 (B,)
    """
    raise NotImplementedError("in_order is yours to write")


def surest_first(model, x0, mask_id):
    """log p(x0) where the next place, of each row by itself, is the hidden one at which the most probable id has the
    largest probability, and of equal ones the leftmost. float64 (B,)."""
    raise NotImplementedError("surest_first is yours to write")


def all_orders(model, x0, mask_id):
    """The mean of -log p(x0) over all orders: float64 (B,)."""
    raise NotImplementedError("all_orders is yours to write")


# %% [markdown]
# ## What one sees
#
# The model with opinions, in nats per word. It is better in some orders than in others. Each of them adds up to 1, and
# so does the order that depends on the text.
#
#     order [0, 1, 2]      5.1872   all words together 1.000000
#     order [2, 1, 0]      3.8251   all words together 1.000000
#     order [1, 2, 0]      3.5566   all words together 1.000000
#     the surest first     4.1357   all words together 1.000000
#     mean over all orders 4.3020

# %%
if __name__ == "__main__":
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        logp = in_order(tiny.opinions, tiny.WORDS, order, tiny.MASK)
        mean, total = -(tiny.P * logp).sum(), logp.exp().sum()
        print(f"order {order}      {mean:.4f}   all words together {total:.6f}")
    logp = surest_first(tiny.opinions, tiny.WORDS, tiny.MASK)
    print(f"the surest first     {-(tiny.P * logp).sum():.4f}   all words together {logp.exp().sum():.6f}")
    print(f"mean over all orders {(tiny.P * all_orders(tiny.opinions, tiny.WORDS, tiny.MASK)).sum():.4f}")

# %% [markdown]
# In the project: `mdlm.log_likelihood` with the methods `left_to_right` and `confidence`; it is the sampler itself,
# made to write the answer.
