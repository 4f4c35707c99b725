"""Lesson 24: the answer, and wrong answers with a word of the hint that each must get."""

import torch


def shift(logits):
    return torch.cat([logits[:, :1], logits[:, :-1]], 1)


def add_mask_row(weight):
    return torch.cat([weight, weight.mean(0, keepdim=True)])


def anneal(L, chance, u):
    return torch.ones(L, L, dtype=torch.bool).tril() | (u < chance)


def in_place(logits):
    logits[:, 1:] = logits[:, :-1].clone()
    return logits


def zero_row(weight):
    return torch.cat([weight, torch.zeros_like(weight[:1])])


WRONG = {
    "to the left": ("to the right", dict(shift=lambda x: torch.cat([x[:, 1:], x[:, -1:]], 1))),
    "rolled": ("keeps its own", dict(shift=lambda x: x.roll(1, 1))),
    "cut": ("keeps its own", dict(shift=lambda x: x[:, :-1])),
    "not at all": ("the output before", dict(shift=lambda x: x)),
    "tokens of the vocabulary": ("second dimension", dict(shift=lambda x: torch.cat([x[..., :1], x[..., :-1]], -1))),
    "in place": ("new tensor", dict(shift=in_place)),
    "zeros": ("mean over all tokens", dict(add_mask_row=zero_row)),
    "one mean": ("a vector", dict(add_mask_row=lambda w: torch.cat([w, w.mean().expand(1, w.shape[1])]))),
    "in front": ("the last", dict(add_mask_row=lambda w: torch.cat([w.mean(0, keepdim=True), w]))),
    "past by chance": ("always seen", dict(anneal=lambda L, c, u: u < c)),
    "not itself": ("sees itself", dict(anneal=lambda L, c, u: torch.ones(L, L).tril(-1).bool() | (u < c))),
    "above": ("below it", dict(anneal=lambda L, c, u: torch.ones(L, L).tril().bool() | (u > c))),
    "turned round": ("rows are queries", dict(anneal=lambda L, c, u: torch.ones(L, L).triu().bool() | (u < c))),
    "one u a row": ("its own u", dict(anneal=lambda L, c, u: torch.ones(L, L).tril().bool() | (u[:, :1] < c))),
    "numbers": ("docstring", dict(anneal=lambda L, c, u: anneal(L, c, u).double())),
}
