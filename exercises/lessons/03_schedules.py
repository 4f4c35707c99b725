# %% [markdown]
# # 3 · Schedules, and the weight w(t) = −α′(t) / (1 − α(t))
# *Chapter I, the process. 30 minutes. MDLM (arXiv 2406.07524), equation 11; MD4 (2406.04329), table 4.*
#
# Until now a token was hidden at time t with probability t. It may as well be hidden faster or slower: let α(t) be the
# probability that a token is *still clean* at time t, any function that falls from α(0) = 1 to α(1) = 0. That is a
# schedule. Three are in use:
#
# | schedule | α(t) |
# |---|---|
# | linear | 1 − t |
# | poly2 | 1 − t² |
# | cosine (MD4's) | 1 − cos(π/2 · (1 − t)) |
#
# Which weight belongs to it? Each token gets hidden once, between t and t + dt with probability −α′(t) dt. Going back
# in time, this is the moment in which it is revealed, and has to be predicted. So of the tokens that are hidden at
# time t, a share of −α′(t) dt / (1 − α(t)) is revealed in that moment, and that is how much their prediction counts:
#
# $$ \mathcal{L} = \int_0^1 \underbrace{\frac{-\alpha'(t)}{1 - \alpha(t)}}_{w(t)} \;
#    \mathbb{E}_{q(x_t \mid x_0)} \Big[ \sum_{i \text{ hidden}} -\log p(x_0^i \mid x_t) \Big] dt $$
#
# With the linear schedule w(t) = 1/t. And now the surprise: the integral is the same for *every* schedule, as all that
# changes is when things happen, not in which order. (Substitute r = 1 − α(t): w(t) dt is dr/r, whatever α is.) What
# the integral is good for, lesson 5 says. Training with another schedule changes the noise of the loss only.

# %%
import torch

# %% [markdown]
# ## Write


# %%
def alpha(t, schedule):
    """The probability that a token is still clean at time t.

    t         float64, any shape, from 0 to 1
    schedule  "linear", "poly2" or "cosine", as in the table
    returns   float64, t's shape
    """
    raise NotImplementedError("alpha is yours to write")


def weight(t, schedule):
    """w(t) = -alpha'(t) / (1 - alpha(t)) for t above 0; take the derivatives by hand. float64, t's shape."""
    raise NotImplementedError("weight is yours to write")


# %% [markdown]
# ## What one sees
#
# Take a text of 10 tokens, and a made-up model that needs 1 nat for a hidden token where nothing is visible, 0.6 where
# everything else is, and in between in proportion. The three weights differ a lot, the integrals do not:
#
#     linear   w at t = 0.1, 0.5, 0.9: 10.00, 2.00, 1.11  integral 8.0000
#     poly2    w at t = 0.1, 0.5, 0.9: 20.00, 4.00, 2.22  integral 8.0000
#     cosine   w at t = 0.1, 0.5, 0.9: 9.92, 1.57, 0.25   integral 8.0000

# %%
if __name__ == "__main__":
    t = (torch.arange(100_000).double() + 0.5) / 100_000
    for schedule in ("linear", "poly2", "cosine"):
        rate = 1 - alpha(t, schedule)
        loss = weight(t, schedule) * 10 * rate * (0.6 + 0.4 * rate)
        at = torch.tensor([0.1, 0.5, 0.9]).double()
        weights = ", ".join(f"{w:.2f}" for w in weight(at, schedule))
        print(f"{schedule:8} w at t = 0.1, 0.5, 0.9: {weights:18} integral {loss.mean():.4f}")

# %% [markdown]
# In the project: `mdlm.mask_rate` (1 − α and −α′ together), and `nanodlm.noise.schedule` for all but the linear one.
