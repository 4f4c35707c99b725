"""Lesson 14: the answer, and wrong answers with a word of the hint that each must get."""

import torch


def gumbel(u):
    return -(-u.log()).log()


def reach(bits):
    return gumbel(torch.tensor(1 - 2.0**-bits, dtype=torch.float64)).item()


def law(p, bits, u=None, logs=torch.log, gumbel=gumbel, least=1):
    g = gumbel(torch.arange(least, 2**bits).double() / 2**bits if u is None else u(bits))
    p = logs(p)
    wins = (p[1] + g[None] > p[0] + g[:, None]).double().mean()
    return torch.stack([1 - wins, wins])


def paired(p, bits):
    g = gumbel(torch.arange(1, 2**bits).double() / 2**bits)
    wins = (p.log()[1] + g > p.log()[0] + g).double().mean()
    return torch.stack([1 - wins, wins])


def halves(bits):
    return (torch.arange(2**bits) + 0.5).double() / 2**bits


def ties(p, bits):
    g = gumbel(torch.arange(1, 2**bits).double() / 2**bits)
    wins = (p.log()[1] + g[None] >= p.log()[0] + g[:, None]).double().mean()
    return torch.stack([1 - wins, wins])


WRONG = {
    "one minus": ("minus signs", dict(gumbel=lambda u: (-u.log()).log())),
    "bits": ("natural", dict(gumbel=lambda u: -(-u.log2()).log2())),
    "float32": ("float64", dict(reach=lambda bits: gumbel(torch.tensor(1 - 2.0**-bits)).item())),
    "smallest": ("next to 1", dict(reach=lambda bits: gumbel(torch.tensor(2.0**-bits).double()).item())),
    "about": ("noise itself", dict(reach=lambda bits: bits * 0.6931471805599453)),
    "one u": ("independent", dict(law=paired)),
    "no logarithm": ("logarithm", dict(law=lambda p, bits: law(p, bits, logs=lambda p: p))),
    "the truth": ("true probabilities", dict(law=lambda p, bits: p)),
    "halves": (
        "multiples of",
        dict(law=lambda p, bits: law(p, bits, halves)),
    ),
    "the other way": ("token 0 first", dict(law=lambda p, bits: law(p, bits).flip(0))),
    "ties": ("equal scores", dict(law=ties)),
}
