"""The claims of lesson 3, beside mdlm.mask_rate and the toy of tests/book."""

import math

import torch
import toy
from checks import alike, true

import mdlm

SCHEDULES = ("linear", "poly2", "cosine")


def claim_alpha(my):
    """alpha is 1 - t, 1 - t^2 and MD4's cosine, as mdlm.mask_rate has them"""
    t = torch.linspace(0, 1, 21).double()
    for schedule in SCHEDULES:
        clean = "alpha is the probability of being clean: 1 at t = 0, and 0 at t = 1"
        way = "there are two cosine schedules, the other way round of each other: the table has MD4's"
        mistakes = [(1 - (1 - mdlm.mask_rate(t, schedule)[0]), clean)]
        if schedule == "poly2":
            mistakes += [((1 - t) ** 2, "poly2 is 1 - t^2, not (1 - t)^2"), (1 - t, "poly2 is 1 - t^2")]
        mistakes += [(1 - torch.cos(math.pi / 2 * t), clean), (torch.cos(math.pi / 2 * t), way)]
        alike(my.alpha(t, schedule), 1 - mdlm.mask_rate(t, schedule)[0], clean, mistakes, what=schedule)


def claim_ends(my):
    """alpha falls from 1 to 0, without a step back"""
    for schedule in SCHEDULES:
        a = my.alpha(torch.linspace(0, 1, 101).double(), schedule)
        alike(a[[0, -1]], torch.tensor([1.0, 0.0]).double(), "alpha(0) is 1, alpha(1) is 0", what=schedule)
        true(bool((a.diff() < 0).all()), f"{schedule}: falling", "it rises somewhere", "what is hidden stays hidden")


def claim_weight(my):
    """w(t) is -alpha'(t) / (1 - alpha(t))"""
    for schedule in SCHEDULES:
        t = torch.linspace(0.05, 0.95, 19).double()
        rate, slope = mdlm.mask_rate(t, schedule)
        sign = "alpha falls, so alpha' is negative, and w is positive"
        below = "the denominator is the share of tokens that are hidden, 1 - alpha, not alpha"
        rates = "w is a rate for each hidden token: divide by how many are hidden"
        same = "1/t belongs to the linear schedule: derive each alpha by itself"
        chain = "the chain rule: what is inside of the cosine has a derivative, too"
        mistakes = [(-slope / rate, sign), (slope / (1 - rate), below), (slope, rates), (1 / rate, same), (1 / t, same)]
        mistakes += [(slope / rate / (math.pi / 2), chain)]
        alike(my.weight(t, schedule), slope / rate, "derive alpha by hand", mistakes, what=schedule)


def claim_same_integral(my):
    """the bound of the toy's model is the same under all three schedules"""
    t = ((torch.arange(20_000) + 0.5) / 20_000).double()[:, None, None]
    ce = toy.subset_ce(toy.ARBITRARY, toy.STRINGS)  # (16, 16): of each string, for each set of hidden places
    exact = toy.exact_nelbo(toy.ARBITRARY, toy.STRINGS)
    for schedule in SCHEDULES:
        a = my.alpha(t, schedule)
        chance = (1 - a) ** toy.SIZES * a ** (4 - toy.SIZES)  # of each set, at each time
        loss = (my.weight(t, schedule) * chance).mean(0)[0]
        got = (loss * ce)[:, 1:].sum(1)
        alike(got, exact, "one of alpha and weight does not fit the other", tolerance=1e-4, what=schedule)
