"""Lesson 12: the answer, and wrong answers with a word of the hint that each must get."""

import torch

from nanodlm import noise


def draw(logits, u, mask_id):
    return noise.draw(logits.index_fill(1, torch.tensor([mask_id]), -torch.inf), u)


def ancestral(model, x, steps, uniform, mask_id, chance=lambda t, s: (t - s) / t, stale=False, which=1, draw=draw):
    x, logits = x.clone(), model(x[None])[0]
    for k in range(steps):
        t, s = 1 - k / steps, 1 - (k + 1) / steps
        now = (x == mask_id) & ((uniform(k, 0) < chance(t, s)) | (k == steps - 1))
        logits = logits if stale else model(x[None])[0]
        x[now] = draw(logits[now], uniform(k, which)[now], mask_id)
    return x


def again(model, x, steps, uniform, mask_id):
    x, holes = x.clone(), x == mask_id
    for k in range(steps):
        now = holes & (uniform(k, 0) < 1 / (steps - k))
        x[now] = draw(model(x[None])[0, now], uniform(k, 1)[now], mask_id)
    return x


def everywhere(model, x, steps, uniform, mask_id):
    x = torch.full_like(x, mask_id)
    return ancestral(model, x, steps, uniform, mask_id)


def in_place(model, x, *rest):
    x[:] = ancestral(model, x, *rest)
    return x


def other(**keys):
    return dict(ancestral=lambda *args: ancestral(*args, **keys))


def best(logits, u, mask_id):
    return logits.index_fill(1, torch.tensor([mask_id]), -torch.inf).argmax(1)


def single(logits, u, mask_id):
    sums = logits.float().index_fill(1, torch.tensor([mask_id]), -torch.inf).softmax(1).cumsum(1)
    return torch.searchsorted(sums, u.float()[:, None] * sums[:, -1:], right=True)[:, 0].clamp(max=logits.shape[1] - 1)


def sums_of(logits, mask_id):
    return logits.double().index_fill(1, torch.tensor([mask_id]), -torch.inf).softmax(1).cumsum(1)


def reaches(logits, u, mask_id):
    sums = sums_of(logits, mask_id)
    return (sums < u[:, None] * sums[:, -1:]).sum(1)


def before(logits, u, mask_id):
    return draw(logits, u, mask_id) - 1


WRONG = {
    "t - s": ("still hidden at t", other(chance=lambda t, s: t - s)),
    "stays": ("stay hidden", other(chance=lambda t, s: s / t)),
    "asks once": ("anew", other(stale=True)),
    "one noise": ("which = 1", other(which=0)),
    "draws again": ("what is revealed stays", dict(ancestral=again)),
    "all masks": ("no mask in x stays", dict(ancestral=everywhere)),
    "in place": ("x.clone()", dict(ancestral=in_place)),
    "the mask, too": ("excluded", dict(draw=lambda logits, u, m: noise.draw(logits, u))),
    "the best": ("maximise", dict(draw=best)),
    "float32": ("float64", dict(draw=single)),
    "one before": ("first id", dict(draw=before)),
    "reaches u": ("equals u does not", dict(draw=reaches)),
    "the last sum is 1": ("last sum below 1", dict(draw=lambda x, u, m: (sums_of(x, m) <= u[:, None]).sum(1))),
}
