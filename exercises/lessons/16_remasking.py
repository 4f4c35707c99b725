# %% [markdown]
# # 16 · Remasking: to change one's mind
# *Chapter III, sampling. 30 minutes. ReMDM (arXiv 2503.00307), equation 6 and section 4.1.*
#
# In lesson 12 a token that is revealed stays, also when what comes later makes it look wrong. Remasking hides some
# again, to be drawn anew from a canvas that knows more. But not as one likes: at every time s there should still be as
# many tokens shown as the process itself shows. With $\alpha_t = 1 - t$, the probability to be shown at time t, this
# means: of the $\alpha_t$ that are shown at t, a share $\sigma$ is hidden on the way to s, and to make up for them
# more of the hidden ones, of which there are $1 - \alpha_t$, are revealed:
#
# $$ \alpha_s = (1 - \sigma) \alpha_t + r \, (1 - \alpha_t) \quad \Rightarrow \quad
# r = \frac{\alpha_s - (1 - \sigma) \alpha_t}{1 - \alpha_t} $$
#
# (ReMDM, equation 6.) The probability r to be revealed cannot be above 1. That leaves room for $\sigma$ up to $(1 -
# \alpha_s) / \alpha_t$, and no more. ReMDM-cap (section 4.1) takes a constant $\eta$ where that fits:
#
# $$ \sigma = \min \left( \eta, \; \frac{1 - \alpha_s}{\alpha_t} \right) $$
#
# With $\eta = 0$ this is lesson 12. In the last step s = 0, so $\sigma = 0$: nothing is hidden any more.
#
# What was given, a prompt, is never hidden: it is no opinion of the model's.

# %%
import sys

sys.path += ["exercises", ".", "..", "../.."]  # the course and the project, from wherever this is run

import tiny
import torch

from nanodlm import noise

# %% [markdown]
# ## Write
#
# To draw is ready, as in lesson 12: `noise.draw(logits, u)` takes logits (N, V), the mask's set to -inf before, and u,
# float64 (N,), and returns the tokens, int64 (N,).


# %%
def rates(t, s, eta):
    """How likely it is, from time t to an earlier time s, that a hidden token is revealed, and a shown one hidden.

    t, s     float64 (R,), times, 0 <= s < t <= 1
    eta      float, from 0 to 1
    returns  (reveal, hide), both float64 (R,): r and sigma above, for alpha_t = 1 - t. At t = 1 alpha_t is 0, and the
             cap has no limit unless s = 0: divide by 1e-12 where alpha_t is less than that
    """
    raise NotImplementedError("rates is yours to write")


def step(model, x, given, t, s, eta, uniform, mask_id):
    """Go from time t to time s: reveal some hidden tokens, and hide some that are shown.

    model    a function from canvases int64 (B, L) to logits (B, L, V); the mask's own logit is set to -inf
    x        int64 (L,), the canvas at time t; leave it as it is: return a new tensor
    given    bool (L,), what was given from the beginning: it always stays
    t, s     float64 (1,), and eta a float, for rates
    uniform  a function: uniform(0) and uniform(1) are random numbers, float64 (L,), one for each position
    mask_id  int
    returns  int64 (L,), the canvas at time s

    A token that is hidden in x is revealed where uniform(0) is below reveal: drawn from what the model says of x, with
    its number of uniform(1). One that is shown in x, and not given, is hidden where uniform(0) is below hide. So a
    token that is revealed in a step is not hidden in the same step.
    """
    raise NotImplementedError("step is yours to write")


# %% [markdown]
# ## What one sees
#
# A word of the tiny language with eta = 0.5 that changes its mind. Then, for three eta, the share of places that are
# hidden after 2, 4 and 6 of 8 steps, in 1000 words side by side, and how many letters were drawn for a word of three.
#
#     ___ → ___ → ___ → _b_ → c__ → __c → cac → cac → cac
#     eta = 0.0: hidden 0.75  0.50  0.25, letters drawn 3.0
#     eta = 0.2: hidden 0.75  0.49  0.25, letters drawn 4.5
#     eta = 1.0: hidden 0.76  0.50  0.26, letters drawn 7.5
#
# The shares are those of the process, 1 - step / 8, whatever eta is. Only more letters are drawn. With a model that is
# right this costs something, as more of them are drawn together (lesson 15). It is for models that make mistakes.

# %%
if __name__ == "__main__":

    def canvases(eta, seed, words=1, steps=8):
        """The canvases (steps + 1, words, 3) on the way from masks to words, which stand side by side."""
        x = torch.full((3 * words,), tiny.MASK)
        seen, given, model = [x], torch.zeros(3 * words, dtype=torch.bool), tiny.side_by_side(tiny.truth)
        for k in range(steps):

            def uniform(which, k=k):
                return noise.uniform(seed, k, which, torch.arange(3 * words))

            t, s = (torch.tensor([1 - (k + i) / steps], dtype=torch.float64) for i in (0, 1))
            x = step(model, x, given, t, s, eta, uniform, tiny.MASK)
            seen.append(x)
        return torch.stack(seen).view(-1, words, 3)

    print(" → ".join(tiny.show(canvases(0.5, seed=1)[:, 0])))
    for eta in (0.0, 0.2, 1.0):
        hidden = canvases(eta, seed=0, words=1000) == tiny.MASK
        shares = "  ".join(f"{hidden[k].double().mean():.2f}" for k in (2, 4, 6))
        drawn = (hidden[:-1] & ~hidden[1:]).sum() / 1000
        print(f"eta = {eta}: hidden {shares}, letters drawn {drawn:.1f}")

# %% [markdown]
# In the project: `choice.ancestral_rates`, for every schedule, and `--remask` of `sample.py`.
