"""Lesson 22: the answer, and wrong answers with a word of the hint that each must get."""

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint


def head_at(hidden_states, weight, rows):
    return F.linear(hidden_states[rows], weight)


def part(states, weight, targets):
    return F.cross_entropy(F.linear(states, weight), targets, reduction="none")


def nll_in_parts(states, weight, targets, at_once):
    parts = zip(states.split(at_once), targets.split(at_once))
    return torch.cat([checkpoint(part, s, weight, t, use_reentrant=False) for s, t in parts])


def multiply_adds(tokens, rows, layers, C, V):
    return tokens * (12 * layers - 8) * C * C + rows * (8 * C * C + C * V)


def kept(states, weight, targets, at_once):
    return torch.cat([part(s, weight, t) for s, t in zip(states.split(at_once), targets.split(at_once))])


def whole(states, weight, targets, at_once):
    logits = (states @ weight.T).split(at_once)
    pairs = zip(logits, targets.split(at_once))
    return torch.cat([F.cross_entropy(a, t, reduction="none") for a, t in pairs])


def gathered(states, weight, targets, at_once):
    logits = torch.cat([s @ weight.T for s in states.split(at_once)])
    return F.cross_entropy(logits, targets, reduction="none")


def no_rest(states, weight, targets, at_once):
    n = max(1, len(states) // at_once) * at_once
    return nll_in_parts(states[:n], weight, targets[:n], at_once)


def means(states, weight, targets, at_once):
    return nll_in_parts(states, weight, targets, at_once).mean()


WRONG = {
    "all, then chosen": ("choose the places first", dict(head_at=lambda h, w, r: (h @ w.T)[r])),
    "by columns": ("row by row", dict(head_at=lambda h, w, r: h.transpose(0, 1)[r.T] @ w.T)),
    "the others": ("chosen places", dict(head_at=lambda h, w, r: (h[~r] @ w.T)[: int(r.sum())])),
    "no checkpoint": ("autograd keeps", dict(nll_in_parts=kept)),
    "product first": ("part by part", dict(nll_in_parts=whole)),
    "logits gathered": ("part by part", dict(nll_in_parts=gathered)),
    "no last part": ("may be shorter", dict(nll_in_parts=no_rest)),
    "mean": ("neither sum nor mean", dict(nll_in_parts=means)),
    "detached": ("leads back", dict(nll_in_parts=lambda s, *a: nll_in_parts(s.detach(), *a))),
    "no gradient": ("leads back", dict(nll_in_parts=torch.no_grad()(kept))),
    "sign": ("sign", dict(nll_in_parts=lambda *a: -nll_in_parts(*a))),
    "head alone": (
        "the MLP, too",
        dict(multiply_adds=lambda t, r, n, c, v: t * 12 * n * c * c + r * c * v),
    ),
    "whole last layer": (
        "its attention reads all",
        dict(multiply_adds=lambda t, r, n, c, v: t * 12 * (n - 1) * c * c + r * (12 * c * c + c * v)),
    ),
    "all layers": ("see all tokens", dict(multiply_adds=lambda t, r, n, c, v: r * (12 * n * c * c + c * v))),
}
