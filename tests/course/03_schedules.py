"""Lesson 3."""

import math

import torch

import mdlm


def alpha(t, schedule):
    return 1 - mdlm.mask_rate(t, schedule)[0]


def weight(t, schedule):
    rate, slope = mdlm.mask_rate(t, schedule)
    return slope / rate


def other_cosine(t, schedule):
    return torch.cos(math.pi / 2 * t) if schedule == "cosine" else alpha(t, schedule)


def no_chain_rule(t, schedule):
    return torch.tan(math.pi / 2 * (1 - t)) if schedule == "cosine" else weight(t, schedule)


WRONG = {
    "hidden, not clean": ("being clean", dict(alpha=lambda t, s: 1 - alpha(t, s))),
    "the other cosine": ("MD4's", dict(alpha=other_cosine)),
    "negative": ("w is positive", dict(weight=lambda t, s: -weight(t, s))),
    "over alpha": ("not alpha", dict(weight=lambda t, s: mdlm.mask_rate(t, s)[1] / alpha(t, s))),
    "1/t for all": ("belongs to the linear", dict(weight=lambda t, s: 1 / t)),
    "not divided": ("how many are hidden", dict(weight=lambda t, s: mdlm.mask_rate(t, s)[1])),
    "no chain rule": ("chain rule", dict(weight=no_chain_rule)),
    "32 bits of it": ("dtype", dict(weight=lambda t, s: weight(t, s).tolist())),
}
