"""Lesson 8."""

from itertools import product
from math import factorial

import torch


def joint_nll(p, words, x0, hidden):
    agree = ((words == x0) | hidden).all(1)
    return -(p[(words == x0).all(1)].sum() / p[agree].sum()).log()


def product_nll(p, words, x0, hidden):
    possible = ((words == x0) | hidden).all(1)
    total = torch.zeros((), dtype=torch.float64)
    for i in hidden.nonzero()[:, 0]:
        total -= (p[possible & (words[:, i] == x0[i])].sum() / p[possible].sum()).log()
    return total


def weighed(of, by_p=True):
    def expected_loss(p, words, nll):
        n, total = words.shape[1], torch.zeros((), dtype=torch.float64)
        for chance, x0 in zip(p if by_p else torch.full_like(p, 1 / len(p)), words):
            for places in product([False, True], repeat=n):
                if any(places):
                    total += chance * of(sum(places), n) * nll(p, words, x0, torch.tensor(places))
        return total

    return expected_loss


def right(k, n):
    return factorial(k - 1) * factorial(n - k) / factorial(n)


expected_loss = weighed(right)


def marginals(p, words, x0, hidden):
    total = torch.zeros((), dtype=torch.float64)
    for i in hidden.nonzero()[:, 0]:
        total -= p[words[:, i] == x0[i]].sum().log()
    return total


WRONG = {
    "the joint one": ("predicted by itself", dict(product_nll=joint_nll)),
    "marginals": ("only words that agree", dict(product_nll=marginals)),
    "log p": ("positive", dict(product_nll=lambda *a: -product_nll(*a))),
    "not given": ("divide by", dict(joint_nll=lambda p, w, x, h: -p[(w == x).all(1)].sum().log())),
    "letter by letter": ("together", dict(joint_nll=product_nll)),
    "sets alike": ("sets weigh differently", dict(expected_loss=weighed(lambda k, n: 1 / (2**n - 1)))),
    "words alike": ("weigh them by p", dict(expected_loss=weighed(right, by_p=False))),
}
