"""Lesson 20: the answer, and wrong answers with a word of the hint that each must get."""

import torch

import bd3lm


def block_mask(L, size, rule=bd3lm.sees):
    i = torch.arange(2 * L)
    return rule(i[:, None] % L // size, i[:, None] >= L, i % L // size, i >= L)


def positions(L):
    return torch.arange(L).repeat(2)


def reach(mask):
    known = mask | torch.eye(len(mask), dtype=torch.bool)
    for _ in mask:
        known = (known.double() @ known.double()) > 0
    return known


def causal(L, size):
    place = torch.arange(2 * L) % L
    return block_mask(L, size) & (place <= place[:, None])


def one_row(L, size):
    i = torch.arange(2 * L)
    return bd3lm.sees(i[:, None] // size, i[:, None] >= L, i // size, i >= L)


def filled(mask):
    mask |= torch.eye(len(mask), dtype=torch.bool)
    return reach(mask)


def two_layers(mask):
    one = (mask | torch.eye(len(mask), dtype=torch.bool)).double()
    return (one @ one) > 0


RULES = {
    "sees its answer": ("which is the answer", lambda q, cq, k, ck: (q == k) & (cq == ck) | ck & (k <= q)),
    "clean sees noised": ("nothing noised", lambda q, cq, k, ck: bd3lm.sees(q, cq, k, ck) | cq & ~ck & (k <= q)),
    "noised past": ("not the noised ones", lambda q, cq, k, ck: bd3lm.sees(q, cq, k, ck) | ~cq & ~ck & (k < q)),
    "turned round": ("rows are queries", lambda q, cq, k, ck: bd3lm.sees(k, ck, q, cq)),
}
WRONG = {
    name: (word, dict(block_mask=lambda L, size, rule=rule: block_mask(L, size, rule)))
    for name, (word, rule) in RULES.items()
} | {
    "causal within": ("not places", dict(block_mask=causal)),
    "blocks go on": ("from 0 again", dict(block_mask=one_row)),
    "whole blocks": ("docstring", dict(block_mask=lambda L, size: block_mask(-(-L // size) * size, size))),
    "numbers": ("docstring", dict(block_mask=lambda L, size: block_mask(L, size).float())),
    "positions go on": ("starts at 0 again", dict(positions=lambda L: torch.arange(2 * L))),
    "one layer": ("any length", dict(reach=lambda mask: mask.clone())),
    "two layers": ("any length", dict(reach=two_layers)),
    "eight layers": ("any length", dict(reach=lambda mask: two_layers(two_layers(two_layers(mask))))),
    "itself forgotten": ("knows of itself", dict(reach=lambda mask: reach(mask) & ~torch.eye(len(mask)).bool() | mask)),
    "mask in place": ("a copy", dict(reach=filled)),
}
