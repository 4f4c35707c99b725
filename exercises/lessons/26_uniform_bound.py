# %% [markdown]
# # 26 · Noise without a mask, and its bound
# *Chapter V, uniform noise. 45 minutes. UDLM (arXiv 2412.10193); GIDD (2503.04482); jump processes: 2205.14987.*
#
# Now noise does not hide a token, it replaces it by any of N letters, perhaps by itself. There is no mask. At a rate of
# noise r (for the linear schedule r is the time, and α = 1 − r) the letter y stands where $x_0$ was with probability
#
# $$ q(y) = (1 - r) \, [y = x_0] + r / N $$
#
# Nothing says which letters are noise. So the network is asked about *all* of them, and what counts is no cross
# entropy. Where does the bound come from?
#
# Let r run backwards, from 1 to 0. The canvas is then a process that jumps: where z stands, now and then another letter
# y comes, at a rate (jumps per unit of r) that Bayes' rule gives,
#
# $$ R(z \to y) = \frac{1}{N (1 - r)} \, \frac{q(y)}{q(z)} $$
#
# since forwards z comes in the place of y at a rate of 1 / (N (1 − r)). The sampler does not know $x_0$. So its rates
# $\hat R$ have the network's p in the place of $[y = x_0]$, that is, $\hat q(y) = (1 - r) \, p(y) + r / N$ in the place
# of q. How much worse is a process with wrong rates? In a short time dr each of N − 1 jumps happens, or does not, and
# the KL divergence of two such coins is, per dr,
#
# $$ \ell(z) = \sum_{y \ne z} \Big( R \log \frac{R}{\hat R} + \hat R - R \Big) $$
#
# The logarithm is for jumps that happen, and $\hat R - R$ for those that do not. What you know of KL, that a term which
# is linear drops out because both sides sum to 1, fails here: rates sum to nothing in particular. The NELBO is the
# integral of this over r from 0 to 1, in expectation over the canvas, and summed over **all** places: a letter that is
# still $x_0$ costs, too, if the network would have it jump.
#
# The project writes the same as GIDD does, a KL divergence of q and $\hat q$ and a divergence of their values at z.

# %%
import sys

sys.path += ["exercises", ".", "..", "../.."]  # the course and the project, from wherever this is run

import numpy as np
import tiny
import torch

# %% [markdown]
# ## Write


# %%
def mix(p, r):
    """The distribution of what stands at a place at a rate of noise, if the distribution of x_0 there is p.

    p        float64 (B, N), each row sums to 1
    r        float64 (B,), between 0 and 1
    returns  float64 (B, N)
    """
    raise NotImplementedError("mix is yours to write")


def token_bound(p, x0, z, r):
    """l(z) above: what a place adds to the bound per unit of r, with R from x_0 and its counterpart from p.

    p        float64 (B, N), the network's distribution of x_0 at the place, above 0
    x0, z    int64 (B,), the letter that was there, and the one that stands there now
    r        float64 (B,), above 0 and below 1
    returns  float64 (B,), nats
    """
    raise NotImplementedError("token_bound is yours to write")


def estimate(model, xt, x0, r):
    """What is inside of the expectation and the integral, for one canvas and one rate of each row.

    model    a function from canvases int64 (B, L) to logits float64 (B, L, N)
    xt, x0   int64 (B, L), canvases and the words they came from
    r        float64 (B,), above 0 and below 1
    returns  float64 (B,), nats for each row
    """
    raise NotImplementedError("estimate is yours to write")


# %% [markdown]
# ## What one sees
#
# The model that knows the truth says of each place what follows from the other letters (`doubting` in
# `exercises/tiny.py`). Its bound of every word is -log p: so no term is missing. Whoever counts only what was replaced
# gets a number below the entropy, even for a model that is often wrong; no honest measure can be there.
#
# The last line is the most tempting mistake of all. Its model says all that can be known of a letter, p(x_0 | x_t), by
# what stands in its own place, too; and it is worse. For what a letter says of itself is in $\hat q(y) / \hat q(z)$
# already, so that it is counted twice, and the sampler believes every letter more than it should.
#
#     aaa: bound 2.4845, -log p 2.4845
#     abc: bound 3.1458, -log p 3.1458
#     bbb: bound 4.8794, -log p 4.8794
#     on average: the entropy 2.5280, and by
#       the model that knows the truth    2.5280
#       … only what was replaced          1.6294
#       the one with opinions             4.2137
#       … only what was replaced          2.3154
#       the posterior of each letter      3.9042

# %%
if __name__ == "__main__":
    X0, XT = tiny.WORDS.repeat_interleave(27, 0), tiny.WORDS.repeat(27, 1)

    def bound(model_at, inside):
        """The integral over rates, of the expectation over all canvases, of inside(model, xt, x0, r): (27,)."""
        total = torch.zeros(27, dtype=torch.float64)
        for node, weight in zip(*(torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(80))):
            u = (node + 1) / 2
            r = (u * u * (3 - 2 * u)).repeat(len(X0))  # denser at both ends
            chance = torch.where(XT == X0, 1 - r[:, None] * 2 / 3, r[:, None] / 3).prod(1)
            total += (3 * weight * u * (1 - u) * chance * inside(model_at(r[0]), XT, X0, r)).view(27, 27).sum(1)
        return total

    def truth(r):
        return lambda canvases: tiny.doubting(r)(canvases)[..., :3]

    def posterior(r):
        own = ((1 - r) * torch.eye(3).double() + r / 3).log()  # of a letter that stands there, what it was
        return lambda canvases: truth(r)(canvases) + own[canvases]

    def replaced_only(model, xt, x0, r):
        p = model(xt).softmax(-1)
        each = [token_bound(p[:, i], x0[:, i], xt[:, i], r) * (xt[:, i] != x0[:, i]) for i in range(3)]
        return sum(each)

    def opinions(r):
        return lambda canvases: tiny.opinions(canvases)[..., :3]

    exact = bound(truth, estimate)
    for i in (0, 5, 13):
        print(f"{tiny.show(tiny.WORDS)[i]}: bound {exact[i]:.4f}, -log p {-tiny.P[i].log():.4f}")
    print(f"on average: the entropy {tiny.ENTROPY:.4f}, and by")
    print(f"  the model that knows the truth    {tiny.P @ exact:.4f}")
    print(f"  … only what was replaced          {tiny.P @ bound(truth, replaced_only):.4f}")
    print(f"  the one with opinions             {tiny.P @ bound(opinions, estimate):.4f}")
    print(f"  … only what was replaced          {tiny.P @ bound(opinions, replaced_only):.4f}")
    print(f"  the posterior of each letter      {tiny.P @ bound(posterior, estimate):.4f}")

# %% [markdown]
# In the project: `udlm.token_bound`, with masks among the noise, `udlm.loss`, `udlm.nelbo`. `docs/uniform.md` has what
# two published losses make of it.
