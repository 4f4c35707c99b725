"""Lesson 13: the answer, and wrong answers with a word of the hint that each must get."""

import torch

import mdlm
from nanodlm import noise


def surest(p, count):
    return p.argsort(descending=True, stable=True)[:count].sort().values


def decode(model, x, steps, uniform, mask_id, sure=None, pick=None, exclude=True, share=noise.share, everywhere=False):
    x, n = x.clone(), int((x == mask_id).sum())
    for k in range(steps):
        at = torch.arange(len(x)) if everywhere else (x == mask_id).nonzero()[:, 0]
        logits = model(x[None])[0, at]
        p = logits.softmax(1)
        logits = logits.index_fill(1, torch.tensor([mask_id]), -torch.inf)
        p = logits.softmax(1) if exclude else p
        tokens = pick(logits) if pick else noise.draw(logits, uniform(k, 1)[at])
        now = surest(sure(p, tokens) if sure else p.amax(1), share(n, k, steps))
        x[at[now]] = tokens[now]
    return x


def drawn(p, tokens):
    return p.gather(1, tokens[:, None])[:, 0]


def in_place(model, x, *rest):
    x[:] = decode(model, x, *rest)
    return x


def frozen(model, x, *rest):
    logits = model(x[None])
    return decode(lambda canvases: logits, x, *rest)


def other(**keys):
    return dict(decode=lambda *case: decode(*case, **keys))


def from_the_right(p, count):
    return (len(p) - 1 - surest(p.flip(0), count)).sort().values


WRONG = {
    "of the drawn token": ("drawn", other(sure=drawn)),
    "greedy": ("greedy", other(pick=lambda logits: logits.argmax(1))),
    "least sure": ("surest go first", other(sure=lambda p, tokens: -p.amax(1))),
    "the mask counts": ("-inf before anything", other(exclude=False)),
    "asks once": ("anew", dict(decode=frozen)),
    "the rest at the end": ("first n % steps", other(share=lambda n, k, T: n if k == T - 1 else n // T)),
    "given places, too": ("given", other(everywhere=True)),
    "in place": ("x.clone()", dict(decode=in_place)),
    "unsorted": ("ascending", dict(surest=lambda p, count: p.argsort(descending=True, stable=True)[:count])),
    "from the right": ("left to right", dict(surest=from_the_right)),
    "smallest": ("not the smallest", dict(surest=lambda p, count: mdlm.surest(-p, count)[:count])),
}
