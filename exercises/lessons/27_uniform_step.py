# %% [markdown]
# # 27 · One step back, in which every token may change
# *Chapter V, uniform noise. 40 minutes. GIDD (arXiv 2503.04482); UDLM (2412.10193); Duo II (2602.21185).*
#
# In lesson 12 a token that is revealed stays. Under uniform noise (lesson 26) nothing is ever revealed: at each step
# any token may be noise, and may be replaced. How likely is that? From time t to an earlier time s < t, with α the
# probability of being kept, and N letters, Bayes' rule says, for a token z in $x_t$ and a text $x_0$ (as in lesson 4):
#
# $$ q(x_s = y \mid x_t = z, x_0) = \frac{q(z \mid y) \; q_s(y)}{q_t(z)}, \qquad
# q_s(y) = \alpha_s [y = x_0] + \frac{1 - \alpha_s}{N} $$
#
# and $q_t$ with $\alpha_t$. What is q(z | y), from s to t? With probability $\alpha_t / \alpha_s$ no noise came (since
# $\alpha_t = \alpha_s \cdot \alpha_t / \alpha_s$), and then z is y. Else z is any letter, whatever y was. So the sum
# falls into two parts, of which the first is a token that stays:
#
# $$ \underbrace{\frac{\alpha_t}{\alpha_s} \frac{q_s(z)}{q_t(z)}}_{\text{no noise came: } y = z} \;+\;
# \underbrace{\Big( 1 - \frac{\alpha_t}{\alpha_s} \frac{q_s(z)}{q_t(z)} \Big) \, q_s(y)}_{\text{noise came: it says
# nothing of } y} $$
#
# That is the whole sampler: **stay** with the first probability; else draw a letter anew from $q_s$, which is
# $x_0$ with probability $\alpha_s$, and else any letter. As $x_0$ is not known, the network's p stands in its place: in
# $q_s(z)$ and $q_t(z)$ its probability of z, and where $x_0$ is to be drawn, a draw from p. In the last step $\alpha_s$
# is 1: no noise is left.
#
# A token that the network finds unlikely ($p(z)$ small) is replaced soon, one that it likes stays long, but not for
# sure: until the last step there is noise that even the best of tokens may become.
#
# Noise is *letters*. Where the vocabulary has a mask (it says where a prompt has holes), no noise and no network ever
# writes one: N letters are all ids but the mask.

# %%
import sys

sys.path += ["exercises", ".", "..", "../.."]  # the course and the project, from wherever this is run

import tiny
import torch

from nanodlm import noise

# %% [markdown]
# ## Write
#
# To draw is ready, as in lesson 12: `noise.draw(logits, u)` takes logits (R, V), the mask's set to -inf before, and u,
# float64 (R,), and returns the tokens, int64 (R,).


# %%
def letter(u, vocab_size, mask_id):
    """Noise: letter number floor(u N), where the N = vocab_size - 1 letters are all ids but the mask, in order.

    u        float64 (R,), uniform numbers, at least 0 and below 1
    returns  int64 (R,)
    """
    raise NotImplementedError("letter is yours to write")


def stays(p, alpha_s, alpha_t, N):
    """The chance that a token stays since no noise came between s and t.

    p        float64 (R,), the network's probability of the token that stands there
    alpha_s  float, and alpha_t, with 1 >= alpha_s > alpha_t >= 0
    N        int, how many letters there are
    returns  float64 (R,)
    """
    raise NotImplementedError("stays is yours to write")


def step(model, x, given, alpha_s, alpha_t, uniform, mask_id):
    """Go from time t to time s.

    model    a function from canvases int64 (B, L) to logits (B, L, V); V counts the mask, whose logit is set to -inf
    x        int64 (L,), the canvas at time t, without masks; leave it as it is: return a new tensor
    given    bool (L,), what was given from the beginning: it always stays
    alpha_s  float, and alpha_t
    uniform  a function: uniform(0) and uniform(1) are random numbers, float64 (L,), one for each position
    returns  int64 (L,), the canvas at time s

    Let `change` be the chance that a token does not stay, and u its number of uniform(0). Where u < change * alpha_s,
    it is drawn from the network's p; else where u < change, it is noise; else it stays. What is drawn, the letter or
    the noise, is drawn with uniform(1). All that the network says is made float64 before the softmax.
    """
    raise NotImplementedError("step is yours to write")


# %% [markdown]
# ## What one sees
#
# Three words of the tiny language, from noise in eight steps: letters come, go, and come back. Then how far 1000
# words, side by side, are from the true probabilities (half the sum of the differences), as in lesson 12, and how often
# a letter changed.
#
#     cbc → aac → aaa → baa → aaa → aaa → aaa → aca → aaa
#     cca → cca → cbc → cbc → cbc → cbc → cbc → cbb → cbb
#     cba → cba → cbc → cbc → cbc → cbc → abc → abc → abc
#     steps =  1: 0.471, changes of a letter 2.0
#     steps =  2: 0.330, changes of a letter 3.0
#     steps =  4: 0.199, changes of a letter 4.3
#     steps = 16: 0.080, changes of a letter 6.7
#     the truth:  0.053
#
# The model is told the time here (`doubting` in `exercises/tiny.py`), and knows the truth; its steps are wrong only as
# several letters change at once. So more steps are better, and corrections are no luxury: a word of three letters takes
# about seven changes. With masks it takes three.

# %%
if __name__ == "__main__":

    def canvases(steps, seed, words=1):
        """The canvases (steps + 1, words, 3) on the way from noise to words, which stand side by side."""
        places = torch.arange(3 * words)
        x, nothing = letter(noise.uniform(seed, -1, places), 4, tiny.MASK), torch.zeros(3 * words, dtype=torch.bool)
        seen = [x]
        for k in range(steps):

            def uniform(which, k=k):
                return noise.uniform(seed, k, which, places)

            s, t = 1 - (k + 1) / steps, 1 - k / steps
            x = step(tiny.side_by_side(tiny.doubting(t)), x, nothing, 1 - s, 1 - t, uniform, tiny.MASK)
            seen.append(x)
        return torch.stack(seen).view(-1, words, 3)

    for seed in range(3):
        print(" → ".join(tiny.show(canvases(8, seed)[:, 0])))
    for steps in (1, 2, 4, 16):
        ways = canvases(steps, seed=0, words=1000)
        counts = torch.bincount((ways[-1] * torch.tensor([9, 3, 1])).sum(1), minlength=27)
        changed = (ways.diff(dim=0) != 0).sum() / 1000
        print(f"steps = {steps:2}: {(counts / 1000 - tiny.P).abs().sum() / 2:.3f}, changes of a letter {changed:.1f}")
    u = noise.uniform(1, torch.arange(1000))
    counts = torch.bincount(torch.searchsorted(tiny.P.cumsum(0), u), minlength=27)
    print(f"the truth:  {(counts / 1000 - tiny.P).abs().sum() / 2:.3f}")

# %% [markdown]
# In the project: `udlm.one_step`, with masks among the noise, and with `forget`: a chance that a token does not stay
# whatever it is, which is a corrector (Duo II), as remasking is in lesson 16.
