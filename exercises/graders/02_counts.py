"""The claims of lesson 2, beside mdlm.hide_by_count and the integral over t."""

import itertools
import math

import numpy as np
import torch
from checks import alike, generator, true

import mdlm


def rows(B=200, L=9):
    u = torch.rand(B, L, generator=generator(1), dtype=torch.float64)
    maskable = torch.rand(B, L, generator=generator(2)) < 0.7
    maskable[:, 4] = True
    n = maskable.sum(1)
    k = (torch.rand(B, generator=generator(3), dtype=torch.float64) * n).long() + 1
    return k, u, maskable


def claim_count(my):
    """each count from 1 to n takes one n-th of the uniform numbers, in order"""
    n = torch.arange(1, 8).repeat_interleave(840)
    u = ((torch.arange(840) + 0.5) / 840).double().repeat(7)
    ends = "counts run from 1 to n: a mask that hides nothing teaches nothing, and one may hide all"
    mistakes = [((u * n).long(), ends), ((u * (n + 1)).long(), ends)]
    even = "all counts are as likely: which cuts [0, 1] into n equal parts, round or floor?"
    mistakes += [((u * (n - 1)).round().long() + 1, even), ((u * (n - 1)).long() + 1, even)]
    mistakes += [((u * n).round().long(), even), ((u * n).round().long().clamp(min=1), even)]
    alike(my.draw_count(n, u), (u * n).floor().long() + 1, ends, mistakes)


def claim_exact(my):
    """hide takes exactly k of the maskable tokens, those with the smallest u, as mdlm.hide_by_count"""
    k, u, maskable = rows()
    k[::20] = 0  # then nothing is hidden
    ranks = u.argsort(1).argsort(1)
    among = "count among the maskable tokens alone: give the others a u that is never among the smallest"
    fewer = "k tokens have the ranks 0 to k - 1"
    once = "argsort says which token has a rank; which rank has a token? (argsort of argsort)"
    only = u.masked_fill(~maskable, 2.0)
    none = "k may be 0, and then nothing is hidden: the k-th smallest u has the index k - 1, which is no index then"
    kth = [only.sort(1).values.gather(1, at[:, None]) for at in ((k - 1).clamp(min=0), (k - 1) % u.shape[1])]
    mistakes = [
        ((ranks < k[:, None]) & maskable, among),
        (ranks < k[:, None], among),
        ((only.argsort(1).argsort(1) <= k[:, None]) & maskable, fewer),
        ((only.argsort(1) < k[:, None]) & maskable, once),
        ((only.argsort(1) < k[:, None]), once),
        (
            ((-u).masked_fill(~maskable, 2.0).argsort(1).argsort(1) < k[:, None]) & maskable,
            "the smallest u, not largest",
        ),
        *(((only <= at) & maskable, none) for at in kth),
    ]
    alike(my.hide(k, u, maskable), mdlm.hide_by_count(k, u, maskable), among, mistakes)


def claim_fair(my):
    """every choice of k places is as likely: over all orders of the u, each comes as often"""
    u = torch.tensor(list(itertools.permutations([0.1, 0.3, 0.5, 0.8]))).double()
    for k in (1, 2, 3):
        got = my.hide(torch.full((24,), k), u.clone(), torch.ones(24, 4).bool())
        alike(got, mdlm.hide_by_count(torch.full((24,), k), u, torch.ones(24, 4).bool()), "the k smallest u of a row")
        often = torch.bincount((got.long() * 2 ** torch.arange(4)).sum(1), minlength=16)
        true(set(often.tolist()) == {0, 24 // math.comb(4, k)}, "each choice as often", str(often.tolist()), "see hide")


def claim_weight(my):
    """the weight of k of n is n/k, where n is the number of maskable tokens"""
    k, _, maskable = rows()
    n, L = maskable.sum(1).double(), torch.full((len(k),), 9.0).double()
    inverse = "few hidden tokens speak for all: the fewer are hidden, the more each weighs"
    alone = "1/k is the weight that a count must have in all; a draw gives it the chance 1/n already"
    long = "n is the number of tokens that may be hidden, not the length of the row"
    mistakes = [(k / n, inverse), (1 / k.double(), alone), (L / k, long), (k.double(), inverse)]
    alike(my.weight(k, maskable), n / k, "see the equation, and what follows it", mistakes)


def claim_same(my):
    """in expectation, counts weigh every mask as rates do: by the integral of t^(k-1) (1-t)^(n-k)"""
    node, part = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(32))
    t, n, k = (node + 1) / 2, 6, torch.arange(1, 7)
    w = my.weight(k, torch.ones(6, 6).bool())
    rate = torch.stack([(part / 2 * t ** (int(i) - 1) * (1 - t) ** (n - int(i))).sum() for i in k])
    choices = torch.tensor([math.comb(n, int(i)) for i in k])
    alike(w, rate * choices * n, "the chance of a mask of k places is 1/n, by the number of such masks")
