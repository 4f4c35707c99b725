# %% [markdown]
# # 7 · Stratified times, and the variance they save
# *Chapter II, the bound. 30 minutes. MDLM (arXiv 2406.07524), section 3.5.1; VDM (2107.00630) had them first.*
#
# A batch of B rows needs B times. Drawn independently, they cluster: by chance most are early, and the loss is low, or
# late, and it is high. That says nothing about the model. Better: cut [0, 1] into B equal parts, *strata*, and put one
# time into each.
#
# $$ t_i = \frac{\pi(i) + u_i}{B}, \qquad i = 0 \ldots B-1 $$
#
# π is a random order of the strata. (Otherwise row 0 of every batch would always be the one that is nearly clean; and
# where a batch is split over several machines, the first would get all the easy rows.) Each $t_i$ is still uniform in
# [0, 1], since its stratum is and its place within: so the mean is what it was, the *expectation* of the loss is the
# same, and only its noise shrinks. With one u for all rows instead, all strata are hit at the same place: for a loss
# that is smooth in t, that leaves about √B times the noise.

# %%
import sys

import torch

sys.path += ["exercises", ".", "..", "../.."]  # the course and the project, from wherever this is run
import tiny

# %% [markdown]
# ## Write


# %%
def stratified(order, u):
    """One time in each of B strata.

    order    int64 (B,), the number of each row's stratum: a permutation of 0…B-1
    u        float64 (B,), uniform numbers: where in its stratum each time lies; or (), one for all
    returns  float64 (B,)
    """
    raise NotImplementedError("stratified is yours to write")


def spread(values):
    """How much the mean of a batch scatters: the standard deviation, over batches, of their means.

    values   float64 (N, B), the loss of each of B rows in each of N batches
    returns  a float64 tensor of no dimension; n - 1 in the denominator, as torch.std has it
    """
    raise NotImplementedError("spread is yours to write")


# %% [markdown]
# ## What one sees
#
# The loss of lesson 5 in batches of 16 rows, of the model that knows the truth; 2000 batches of each kind. Words and
# masks are averaged out here, so that the times are the only noise there is; in training theirs remains.
#
#     independent    mean 2.527   standard deviation of a batch 0.0863
#     one u for all  mean 2.527   standard deviation of a batch 0.0220
#     one u each     mean 2.528   standard deviation of a batch 0.0054

# %%
if __name__ == "__main__":
    N, B, generator = 2000, 16, torch.Generator().manual_seed(0)
    order = torch.rand(N, B, generator=generator).argsort(1)
    u, one = (torch.rand(N, n, generator=generator, dtype=torch.float64) for n in (B, 1))
    kinds = {"independent": u}
    kinds["one u for all"] = torch.stack([stratified(o, x[0]) for o, x in zip(order, one)])
    kinds["one u each"] = torch.stack([stratified(o, x) for o, x in zip(order, u)])
    for name, t in kinds.items():
        # What a row costs on average at time t, all masks together: no other noise than that of t.
        k = torch.arange(1, 4)
        chance = torch.stack([t**i * (1 - t) ** (3 - i) / t for i in k.tolist()], -1)  # (N, B, 3), of one mask of k
        ce = torch.zeros(3, dtype=torch.float64)
        for places in tiny.PLACES[1:]:
            xt = torch.where(places, tiny.MASK, tiny.WORDS)
            logp = tiny.truth(xt)[..., : tiny.MASK].log_softmax(-1).gather(2, tiny.WORDS[..., None])[..., 0]
            ce[places.sum() - 1] -= (tiny.P[:, None] * logp * places).sum()
        values = (chance * ce).sum(-1)
        print(f"{name:14} mean {values.mean():.3f}   standard deviation of a batch {spread(values):.4f}")

# %% [markdown]
# In the project: `nanodlm.noise.stratified`. The strata are those of the whole batch, over all machines and
# micro-batches, so that one large batch and its parts see the same times.
