"""Lesson 5."""

from itertools import product
from math import factorial

import torch
from toy import last


def nll(model, xt, x0, mask_id):
    logits = model(xt).double().index_fill(2, torch.tensor([mask_id]), -torch.inf)
    all_nll = -logits.log_softmax(-1).gather(2, x0[..., None])[..., 0]
    return torch.where(xt == mask_id, all_nll, 0.0)


def estimate(model, x0, t, u, mask_id):
    return nll(model, torch.where(u < t[:, None], mask_id, x0), x0, mask_id).sum(1) / t


def weighed(of):
    """The sum over all sets of places, each weighed by of(k, n)."""

    def bound(model, x0, mask_id):
        n, total = x0.shape[1], torch.zeros(len(x0), dtype=torch.float64)
        for places in product([False, True], repeat=n):
            if any(places):
                hidden = torch.tensor(places)
                ce = nll(model, torch.where(hidden, mask_id, x0), x0, mask_id).sum(1)
                total += of(sum(places), n) * ce
        return total

    return bound


bound = weighed(lambda k, n: factorial(k - 1) * factorial(n - k) / factorial(n))


def with_mask(model, xt, x0, mask_id):
    return torch.where(xt == mask_id, -model(xt).log_softmax(-1).gather(2, x0[..., None])[..., 0], 0.0)


def everywhere(model, xt, x0, mask_id):
    return nll(model, torch.where(xt == mask_id, xt, xt), x0, mask_id) + torch.where(xt == mask_id, 0.0, 1.0)


def row_mean(model, x0, t, u, mask_id):
    hidden = u < t[:, None]
    return nll(model, torch.where(hidden, mask_id, x0), x0, mask_id).sum(1) / hidden.sum(1).clamp(min=1)


def one_t(model, x0, t, u, mask_id):
    return estimate(model, x0, t, u, mask_id) * t / t.mean()


WRONG = {
    "the last id": ("need not be the last", dict(nll=lambda m, xt, x0, k: nll(last(m, k), xt, x0, k))),
    "the mask is an answer": ("never an answer", dict(nll=with_mask)),
    "in 32 bits": ("dtype", dict(nll=lambda *a: nll(*a).float())),
    "log p": ("positive", dict(nll=lambda *a: -nll(*a))),
    "visible tokens, too": ("left out", dict(nll=everywhere)),
    "forgot 1/t": ("weighs 1/t", dict(estimate=lambda m, x, t, u, k: estimate(m, x, t, u, k) * t)),
    "mean over hidden": ("not their mean", dict(estimate=row_mean)),
    "mean over tokens": ("not their mean", dict(estimate=lambda *a: estimate(*a) / 4)),
    "one t for all": ("own t", dict(estimate=one_t)),
    "all sets alike": ("different sizes", dict(bound=weighed(lambda k, n: 1 / (2**n - 1)))),
    "1/k": ("all sets of k places together", dict(bound=weighed(lambda k, n: 1 / k))),
    "nan": ("sets", dict(bound=lambda *a: bound(*a) + torch.nan)),
}
