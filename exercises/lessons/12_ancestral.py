# %% [markdown]
# # 12 · Ancestral sampling: the process backwards
# *Chapter III, sampling. 30 minutes. MDLM (arXiv 2406.07524), equation 7; MD4 (2406.04329); 2409.02908 on precision.*
#
# The process hid each token with probability t. To sample, walk it backwards: start at t = 1, where everything is a
# mask, and go down to t = 0 in equal steps. What happens to one hidden token between t and an earlier time s < t?
#
# At time t it was hidden, and the chance of that was t. At time s the chance is s, and a token that is hidden at s is
# hidden at t, too. So of the probability t of being hidden now, s stays hidden, and t - s comes to light:
#
# $$ q(x_s^i \mid x_t^i = \text{mask}) = \begin{cases} (t - s) / t & x_s^i = \text{a token, drawn from }
# p(x_0^i \mid x_t) \\ s / t & x_s^i = \text{mask} \end{cases} $$
#
# Here $p(x_0^i \mid x_t)$ is what the model says of the place, from the canvas as it is now.
#
# (MDLM, equation 7, for the linear schedule.) A token that is revealed stays as it is until the end. In the last step
# s = 0, so the chance is 1, and nothing stays hidden.
#
# How is a token drawn from a distribution with one uniform number u? Add up the probabilities, id after id. The sums
# climb from 0 to 1, each id owns an interval as long as its probability, and u falls into one of them: that id is
# drawn. With float64 this is exact far into the tails, which is not so for what most samplers do (lesson 14).
#
# The mask is an id, too, so the network has a logit for it. It is no answer: exclude it, by setting it to -inf before
# the softmax.

# %%
import sys

sys.path += ["exercises", ".", "..", "../.."]  # the course and the project, from wherever this is run

import tiny
import torch

from nanodlm import noise

# %% [markdown]
# ## Write


# %%
def draw(logits, u, mask_id):
    """Draw one token for each row: the first id whose cumulative probability exceeds the row's u.

    logits   float (N, V), of each row one for each id, the mask's too, which is never drawn; leave them as they are
    u        float64 (N,), uniform numbers between 0 and 1
    mask_id  int
    returns  int64 (N,), ids

    In float64: the logits are made float64, the mask's becomes -inf, then softmax over the ids, then the cumulative
    sums of the probabilities from id 0 on. The last sum is 1 but for rounding: compare with u times it.
    """
    raise NotImplementedError("draw is yours to write")


def ancestral(model, x, steps, uniform, mask_id):
    """Fill in the masks of one canvas, from t = 1 to t = 0 in equal steps.

    model    a function from canvases int64 (B, L) to logits (B, L, V); ask it anew in every step
    x        int64 (L,), a canvas of tokens and masks; leave it as it is: return a new tensor
    steps    int; step k = 0, 1, …, steps - 1 goes from t = 1 - k / steps to s = 1 - (k + 1) / steps
    uniform  a function: uniform(k, which) are the random numbers of step k, float64 (L,), one for each position.
             which = 0: a hidden token is revealed where its number is below (t - s) / t; in the last step every one is
             which = 1: for draw, of the tokens that are revealed
    mask_id  int
    returns  int64 (L,), without masks. What was no mask in x stays, and what is revealed stays
    """
    raise NotImplementedError("ancestral is yours to write")


# %% [markdown]
# ## What one sees
#
# Three words of the tiny language (`exercises/tiny.py`), each in eight steps; a step in which nothing is revealed is
# left out. Then how far the frequencies of 1000 words are from the true probabilities: half the sum of the differences.
# (The 1000 stand side by side in one canvas, and the model reads each by itself: so one call writes them all.)
#
#     ___ → __c → b_c → bcc
#     ___ → _b_ → cb_ → cbb
#     ___ → a__ → a_a → aba
#     steps = 1: 0.471
#     steps = 2: 0.261
#     steps = 4: 0.136
#     steps = 8: 0.107
#     the truth: 0.053
#
# More steps are better, as fewer tokens come to light together: those of one step are drawn independently (lesson 15).
# About half of what is left at the end is chance: 1000 words that are drawn from the truth itself are not at 0 either.

# %%
if __name__ == "__main__":

    def canvases(steps, seed, words=1):
        """The canvases (steps + 1, words, 3) on the way from masks to words, which stand side by side."""
        seen = []

        def uniform(k, which):
            return noise.uniform(seed, k, which, torch.arange(3 * words))

        def watched(x):
            seen.append(x[0].clone())
            return tiny.side_by_side(tiny.truth)(x)

        x = ancestral(watched, torch.full((3 * words,), tiny.MASK), steps, uniform, tiny.MASK)
        return torch.stack([*seen, x]).view(-1, words, 3)

    for seed in range(3):
        print(" → ".join(dict.fromkeys(tiny.show(canvases(8, seed)[:, 0]))))
    for steps in (1, 2, 4, 8):
        words = canvases(steps, seed=0, words=1000)[-1]
        counts = torch.bincount((words * torch.tensor([9, 3, 1])).sum(1), minlength=27)
        print(f"steps = {steps}: {(counts / 1000 - tiny.P).abs().sum() / 2:.3f}")
    u = noise.uniform(1, torch.arange(1000))
    counts = torch.bincount(torch.searchsorted(tiny.P.cumsum(0), u), minlength=27)
    print(f"the truth: {(counts / 1000 - tiny.P).abs().sum() / 2:.3f}")

# %% [markdown]
# In the project: `noise.draw`, and in `mdlm.denoise` the lines under `quota == "ancestral"`, for every schedule.
