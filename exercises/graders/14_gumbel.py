"""The claims of lesson 14, beside counting in another way: of the exponential race that Gumbel's trick is."""

import math

import torch
from checks import alike


def grid(bits):
    return torch.arange(1, 2**bits).double() / 2**bits


def shares(p, bits, u=None):
    """The share of pairs in which each token wins: token 1 does where u_1 > u_0^(p_1 / p_0)."""
    u = grid(bits) if u is None else u
    wins = (u[None] > u[:, None] ** (p[1] / p[0])).double().mean()
    return torch.stack([1 - wins, wins])


def pair(rare):
    return torch.tensor([1 - rare, rare], dtype=torch.float64)


def claim_gumbel(my):
    """gumbel is -log(-log u): its mean is Euler's constant, and its distribution function is exp(-exp(-g))"""
    u = grid(6)
    signs = "two minus signs: -log u is above 0, and of that, again, minus the logarithm"
    base = "natural logarithms: torch.log"
    mistakes = [
        ((-u.log()).log(), signs),
        (-u.log(), signs),
        (-(-u.log2()).log2(), base),
        (-(-u.log10()).log10(), base),
    ]
    got = my.gumbel(u.clone())
    alike(got, -(-u.log()).log(), signs, mistakes)
    alike((-(-got).exp()).exp(), u, signs, what="exp(-exp(-g))")
    mean = my.gumbel((torch.arange(2**16).double() + 0.5) / 2**16).mean()
    alike(mean, 0.5772156649, signs, tolerance=1e-3, what="mean")


def claim_reach(my):
    """the noise reaches 16.6 with the 24 bits of float32, and 36.7 with the 53 of float64"""
    smallest = "this is the noise of the smallest u: the largest is at the u next to 1"
    for bits in (3, 24, 53):
        u = 2.0**-bits
        mistakes = [
            (-math.log(-math.log(u)), smallest),
            (math.log(-math.log(u)), smallest),
            (bits * math.log(2), "nearly: but of u = 1 - 2^-bits the noise itself, not what it is about"),
            (-math.log(-math.log1p(-u / 2)), "the largest multiple of 2^-bits below 1 is 1 - 2^-bits"),
        ]
        hint = "make u = 1 - 2^-bits in float64 from the start: as a float32 it may become 1"
        alike(my.reach(bits), -math.log(-math.log1p(-u)), hint, mistakes, what=f"{bits} bits")


def claim_law(my):
    """law counts all pairs of multiples of 2^-bits"""
    independent = "the two u are independent: every u of one token with every u of the other, a table of pairs"
    for rare, bits in ((0.3, 2), (0.03, 6), (0.01, 9)):
        p, u = pair(rare), grid(bits)
        want = shares(p, bits)
        same = (p.log()[1] - p.log()[0] > 0).double()
        odd = "the u are multiples of 2^-bits, from 1 / 2^bits to 1 - 1 / 2^bits"
        logs = "the noise is added to the logarithm of the probability, not to the probability"
        g = -(-u.log()).log()
        bare = (p[1] + g[None] > p[0] + g[:, None]).double().mean()
        mistakes = [
            (p, "these are the true probabilities: count the pairs of u in which each token wins"),
            (want.flip(0), "token 0 first: is the noise of each added to the logarithm of its own probability?"),
            (torch.stack([1 - same, same]), independent),
            (torch.stack([1 - bare, bare]), logs),
            (shares(p, bits, (torch.arange(2**bits).double() + 0.5) / 2**bits), odd),
            (shares(p, bits + 1), odd),
            (want * len(u) ** 2, "a share: divide by the number of pairs"),
        ]
        alike(my.law(p.clone(), bits), want, independent, mistakes, what=f"p = {rare}, {bits} bits")


def claim_rare(my):
    """rare tokens lose: the fewer bits, the more, and with 6 bits one of probability 0.003 never wins"""
    for bits in (5, 7, 9):
        alike(my.law(pair(0.03), bits), shares(pair(0.03), bits), "count the pairs", what=f"{bits} bits")
    alike(my.law(pair(0.003), 6), pair(0.0), "no noise of 6 bits is large enough", what="p = 0.003")


def claim_equal(my):
    """of two equal scores token 0 wins"""
    p, n = pair(0.5), 7
    ties = "equal scores are a win of token 0: token 1 has to be above it"
    one = (n - 1) / 2 / n
    want = torch.tensor([1 - one, one], dtype=torch.float64)
    alike(my.law(p, 3), want, ties, [(want.flip(0), ties), (torch.full_like(want, 0.5), ties)])
