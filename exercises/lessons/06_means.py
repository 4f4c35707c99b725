# %% [markdown]
# # 6 · Three means, of which one is not the bound
# *Chapter II, the bound. 30 minutes. LLaDA (arXiv 2502.09992), equation 6; MDLM (2406.07524), equation 11.*
#
# Most code for masked language models computes
#
#     loss = F.cross_entropy(logits[hidden], x0[hidden])
#
# the mean over all hidden tokens of the batch. It trains well. It is often reported as well, turned into a perplexity
# and put beside those of other models; and then it is wrong. Let CE be a row's summed cross entropy at its k hidden
# places of L. There are at least three ways to average over rows, per token:
#
# $$ \text{weighted} = \operatorname*{mean}_{\text{rows}} \frac{1}{t} \frac{\mathrm{CE}}{L} \qquad
#    \text{by row} = \operatorname*{mean}_{\text{rows}} \frac{\mathrm{CE}}{k} \qquad
#    \text{pooled} = \frac{\sum_{\text{rows}} \mathrm{CE}}{\sum_{\text{rows}} k} $$
#
# The first one is the bound's estimate of lesson 5. The last one is what the code above computes. The surprise is in
# the middle. With t uniform, every count k from 0 to L is as likely (the integral of lesson 2 without its 1/t is 1/(L
# + 1), whatever k), and an exact count would weigh by L/k: so, leaving out the rows of which nothing is hidden, the
# mean *by row* has the same expectation as the bound! Pooling gives a row with many hidden tokens, which are hard to
# guess, more to say.

# %%
import sys

import torch

sys.path += ["exercises", ".", "..", "../.."]  # the course and the project, from wherever this is run
import tiny

# %% [markdown]
# ## Write


# %%
def weighted(ce, hidden, t):
    """The bound's estimate, in nats per token: a float64 tensor of no dimension.

    ce      float64 (B, L), -log p of each hidden token, 0 elsewhere
    hidden  bool (B, L)
    t       float64 (B,), the time of each row
    """
    raise NotImplementedError("weighted is yours to write")


def by_row(ce, hidden):
    """The mean over rows of the mean over a row's hidden tokens; rows of which nothing is hidden do not count."""
    raise NotImplementedError("by_row is yours to write")


def pooled(ce, hidden):
    """The mean over all hidden tokens of the batch."""
    raise NotImplementedError("pooled is yours to write")


# %% [markdown]
# ## What one sees
#
# Words drawn from the tiny language, the model that knows the truth. It cannot be better than the entropy, and is
# exactly as good. Two of the means say so.
#
#     entropy   0.843 nats per letter
#     weighted  0.840
#     by row    0.841
#     pooled    0.909

# %%
if __name__ == "__main__":
    n, generator = 200_000, torch.Generator().manual_seed(0)
    x0 = tiny.WORDS[torch.multinomial(tiny.P, n, replacement=True, generator=generator)]
    t, u = (torch.rand(*shape, generator=generator, dtype=torch.float64) for shape in ((n,), (n, 3)))
    hidden = u < t[:, None]
    logits = tiny.truth(torch.where(hidden, tiny.MASK, x0))[..., : tiny.MASK]
    ce = torch.where(hidden, -logits.log_softmax(-1).gather(2, x0[..., None])[..., 0], 0.0)
    print(f"entropy   {tiny.ENTROPY / 3:.3f} nats per letter")
    print(f"weighted  {weighted(ce, hidden, t):.3f}")
    print(f"by row    {by_row(ce, hidden):.3f}")
    print(f"pooled    {pooled(ce, hidden):.3f}")

# %% [markdown]
# In the project: `objective="masked_ce"` of `mdlm.LossOptions` trains on the pooled mean (about), since it trains
# better; what is *reported* is always `mdlm.nelbo`.
