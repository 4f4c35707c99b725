# %% [markdown]
# # 14 · Gumbel noise, and the temperature it lowers
# *Chapter III, sampling. 25 minutes. arXiv 2409.02908 (the part on categorical sampling); Gumbel's trick: 1411.0030.*
#
# There is a popular way to draw a token: add noise to the logarithm of each probability, and take the largest.
#
# $$ \arg\max_i \; (\log p_i + g_i), \qquad g_i = -\log(-\log u_i), \qquad u_i \text{ uniform in } (0, 1) $$
#
# With real numbers i comes out with probability $p_i$, exactly (Gumbel's trick). But a computer's u are few:
# `torch.rand` in float32 gives multiples of $2^{-24}$. So the noise cannot be larger than it is at $u = 1 - 2^{-24}$,
# and near there it comes in coarse steps. A rare token needs large noise to win, and gets it less often than it
# should.
#
# Who is rare? In ancestral sampling (lesson 12) with many steps, every token: a hidden one stays hidden with
# probability s / t, and many samplers count "stays hidden" as one more token to draw. What is left for the real ones
# is shared out over the steps. The rarer among them then lose far more than the more frequent, just as if one had
# lowered the temperature. Samples of published models looked better than the models were, for this reason alone.
#
# This exercise lets u run over all multiples of $2^{-bits}$ between 0 and 1, few enough to count every case.

# %%
import math

import torch

# %% [markdown]
# ## Write


# %%
def gumbel(u):
    """Gumbel noise -log(-log u), natural logarithms.

    u        float64, any shape, between 0 and 1
    returns  float64, the same shape
    """
    raise NotImplementedError("gumbel is yours to write")


def reach(bits):
    """The largest noise, where u is a multiple of 2^-bits below 1.

    bits     int, up to 53. Make u with dtype=torch.float64: a float32 near 1 has 24 bits
    returns  float, a number
    """
    raise NotImplementedError("reach is yours to write")


def law(p, bits):
    """How often each of two tokens wins, when their u are multiples of 2^-bits: all pairs of u counted, all alike.

    p        float64 (2,), the true probabilities, both above 0
    bits     int, up to 10. Each of the two u, by itself, is one of k / 2^bits, k = 1, 2, …, 2^bits - 1: not 0 and not
             1, where the noise is infinite. That makes (2^bits - 1)^2 pairs
    returns  float64 (2,): the share of the pairs in which log p[i] + gumbel(u[i]) is the largest, for i = 0 and i = 1.
             Where both are equal, token 0 wins, as with argmax. The two add up to 1
    """
    raise NotImplementedError("law is yours to write")


# %% [markdown]
# ## What one sees
#
# How far the noise reaches in float32 and in float64. Then a token with probability p against one with 1 - p: how
# often it wins. Last, two letters, 9 to 1, each beside "stays hidden", in a sampler with a number of steps: their
# probabilities are 0.9 / steps and 0.1 / steps. How many to 1 come out, in 10 bits? At which temperature would that be
# right?
#
#     reach: 24 bits 16.6, 53 bits 36.7
#     p = 0.1     6 bits 0.09095   8 bits 0.09775   10 bits 0.09940
#     p = 0.01    6 bits 0.00378   8 bits 0.00809   10 bits 0.00949
#     p = 0.001   6 bits 0.00000   8 bits 0.00008   10 bits 0.00059
#      16 steps:  9.7 to 1, as at temperature 0.97
#      64 steps: 12.1 to 1, as at temperature 0.88
#     128 steps: 16.8 to 1, as at temperature 0.78
#
# With 24 bits tokens have to be rarer than that; thousands of steps and a vocabulary of tens of thousands make them
# so. The way out is float64, and one number for each draw, with which the distribution function is inverted (lesson
# 12).

# %%
if __name__ == "__main__":
    print(f"reach: 24 bits {reach(24):.1f}, 53 bits {reach(53):.1f}")
    for rare in (0.1, 0.01, 0.001):
        p = torch.tensor([1 - rare, rare], dtype=torch.float64)
        print(f"p = {rare:<5}   " + "   ".join(f"{bits} bits {law(p, bits)[1]:.5f}" for bits in (6, 8, 10)))
    for steps in (16, 64, 128):
        odds = [law(torch.tensor([1 - q / steps, q / steps], dtype=torch.float64), 10)[1].item() for q in (0.9, 0.1)]
        odds = odds[0] / odds[1]
        print(f"{steps:3} steps: {odds:4.1f} to 1, as at temperature {math.log(9) / math.log(odds):.2f}")

# %% [markdown]
# In the project: `noise.uniform` has 52 bits, and `noise.draw` inverts; no Gumbel noise is added to a token's logits.
