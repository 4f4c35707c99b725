"""Lesson 26: the answer, and wrong answers with a word of the hint that each must get."""

import torch
import torch.nn.functional as F


def mix(p, r):
    return (1 - r[:, None]) * p + r[:, None] / p.shape[1]


def token_bound(p, x0, z, r, ours=mix, weight=None, rest=True, sign=1, first=None, where=None):
    N = p.shape[1]
    q, q_ours = mix(F.one_hot(x0, N).double(), r), ours(p, r)
    weight = 1 / (N * (1 - r[:, None])) if weight is None else weight(N, r[:, None])
    here = z[:, None]
    R, R_ours = (weight * x / x.gather(1, here) for x in (q, q_ours))
    if first:
        R, R_ours = first(R, R_ours)
    terms = sign * R * (R / R_ours).log() + (R_ours - R if rest else 0)
    total = terms.sum(1)
    return total if where is None else torch.where(where(x0, z), total, 0.0)


def other(**keys):
    return dict(token_bound=lambda *case: token_bound(*case, **keys))


def estimate(model, xt, x0, r, where=None, over=None):
    B, L = x0.shape
    p = model(xt).softmax(-1).flatten(0, 1)
    each = token_bound(p, x0.flatten(), xt.flatten(), r.repeat_interleave(L)).view(B, L)
    if where:
        each = torch.where(where(xt, x0), each, 0.0)
    return each.sum(1) if over is None else over(each.sum(1), L, r)


def undivided(p, x0, z, r):
    q, ours = mix(F.one_hot(x0, p.shape[1]).double(), r), mix(p, r)
    others = F.one_hot(z, p.shape[1]) == 0
    R, R_ours = (x / (p.shape[1] * (1 - r[:, None])) for x in (q, ours))
    return torch.where(others, R * (R / R_ours).log() + R_ours - R, 0.0).sum(1)


def cross_entropy(model, xt, x0, r):
    return -model(xt).log_softmax(-1).gather(2, x0[..., None])[..., 0].sum(1)


WRONG = {
    "noise is nothing": ("is a letter, too", dict(mix=lambda p, r: (1 - r[:, None]) * p)),
    "not divided by N": ("r / N each", dict(mix=lambda p, r: (1 - r[:, None]) * p + r[:, None])),
    "r and alpha": ("is kept", dict(mix=lambda p, r: mix(p, 1 - r))),
    "without the linear term": ("do not happen", other(rest=False)),
    "no weight": ("the weight", other(weight=lambda N, r: 1)),
    "weight of 1 / N": ("the weight", other(weight=lambda N, r: 1 / N)),
    "sign of the log": ("sign", other(sign=-1)),
    "exchanged": ("which of the two is true", other(first=lambda R, ours: (ours, R))),
    "p, not mixed": ("mixed with noise", other(ours=lambda p, r: p)),
    "not divided by q(z)": ("q(y) / q(z)", dict(token_bound=undivided)),
    "what changed only": ("all places count", other(where=lambda x0, z: x0 != z)),
    "changed places only": ("all places count", dict(estimate=lambda *a: estimate(*a, where=lambda xt, x0: xt != x0))),
    "mean": ("not their mean", dict(estimate=lambda *a: estimate(*a, over=lambda total, L, r: total / L))),
    "1 / t": ("no further weight", dict(estimate=lambda *a: estimate(*a, over=lambda total, L, r: total / r))),
    "cross entropy": ("no cross entropy", dict(estimate=cross_entropy)),
    "in 32 bits": ("dtype", dict(token_bound=lambda *a: token_bound(*a).float())),
}
