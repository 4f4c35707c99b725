"""Lesson 9: the answers are mdlm.log_likelihood's chain rule, for canvases of a toy."""

import itertools

import torch
from toy import last

WRITE = {"answer": lambda p, x0: x0, "best": lambda p, x0: p.argmax(-1)}


def reveal(model, x0, mask_id, choose, write="answer", exclude=True):
    """log p(x0), the next place being the largest of choose(p, the answer's p, step), (B, L)."""
    x, total = torch.full_like(x0, mask_id), torch.zeros(len(x0), dtype=torch.float64)
    for step in range(x0.shape[1]):
        logits = model(x).double()
        if exclude:
            logits = logits.index_fill(2, torch.tensor([mask_id]), -torch.inf)
        p = logits.softmax(-1)
        answer = p.gather(2, x0[..., None])[..., 0]
        score = choose(p, answer, step)
        at = (
            score.masked_fill(x != mask_id, -torch.inf).argmax(1, keepdim=True)
            if write
            else score.argmax(1, keepdim=True)
        )
        total += answer.gather(1, at)[:, 0].log()
        if write:
            x = x.scatter(1, at, WRITE[write](p, x0).gather(1, at))
    return total


def fixed(order):
    def choose(p, answer, step):
        score = torch.zeros_like(answer)
        score[:, order[step]] = 1
        return score

    return choose


def in_order(model, x0, order, mask_id, **keys):
    return reveal(model, x0, mask_id, fixed(order), **keys)


def surest_first(model, x0, mask_id):
    return reveal(model, x0, mask_id, lambda p, answer, step: p.amax(-1))


def all_orders(model, x0, mask_id):
    orders = itertools.permutations(range(x0.shape[1]))
    return -torch.stack([in_order(model, x0, order, mask_id) for order in orders]).mean(0)


def of_mean(model, x0, mask_id):
    orders = itertools.permutations(range(x0.shape[1]))
    return -torch.stack([in_order(model, x0, order, mask_id).exp() for order in orders]).mean(0).log()


WRONG = {
    "the last id": ("need not be the last", dict(in_order=lambda m, x, o, k: in_order(last(m, k), x, o, k))),
    "the last id, surest": ("need not be the last", dict(surest_first=lambda m, x, k: surest_first(last(m, k), x, k))),
    "the mask is an answer": ("never an answer", dict(in_order=lambda *a: in_order(*a, exclude=False))),
    "writes the best": ("x0's letter", dict(in_order=lambda *a: in_order(*a, write="best"))),
    "writes nothing": ("before going on", dict(in_order=lambda *a: in_order(*a, write=""))),
    "left to right": ("the order is given", dict(in_order=lambda m, x, o, k: in_order(m, x, sorted(o), k))),
    "mean": ("not the mean", dict(in_order=lambda *a: in_order(*a) / a[1].shape[1])),
    "log of mean": ("not -log of the mean", dict(all_orders=of_mean)),
    "looks": ("without looking", dict(surest_first=lambda m, x, k: reveal(m, x, k, lambda p, a, step: a))),
    "least sure": ("not the smallest", dict(surest_first=lambda m, x, k: reveal(m, x, k, lambda p, a, s: -p.amax(-1)))),
    "writes its own": (
        "x0's letter",
        dict(surest_first=lambda m, x, k: reveal(m, x, k, lambda p, a, s: p.amax(-1), "best")),
    ),
}
