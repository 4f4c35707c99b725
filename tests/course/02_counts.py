"""Lesson 2."""

import torch

import mdlm


def draw_count(n, u):
    return (u * n).floor().long() + 1


def hide(k, u, maskable):
    return mdlm.hide_by_count(k, u, maskable)


def weight(k, maskable):
    return maskable.sum(1).double() / k


def among_all(k, u, maskable):
    return (u.argsort(1).argsort(1) < k[:, None]) & maskable


def one_more(k, u, maskable):
    return (u.masked_fill(~maskable, 2.0).argsort(1).argsort(1) <= k[:, None]) & maskable


def one_argsort(k, u, maskable):
    return (u.masked_fill(~maskable, 2.0).argsort(1) < k[:, None]) & maskable


def up_to_the_kth(k, u, maskable):
    only = u.masked_fill(~maskable, 2.0)
    return (only <= only.sort(1).values[range(len(k)), k - 1][:, None]) & maskable


WRONG = {
    "from zero": ("1 to n", dict(draw_count=lambda n, u: (u * n).long())),
    "rounded": ("round or floor", dict(draw_count=lambda n, u: (u * n).round().long())),
    "a float": ("dtype", dict(draw_count=lambda n, u: (u * n).floor() + 1)),
    "ranks among all": ("maskable tokens alone", dict(hide=among_all)),
    "one more": ("0 to k - 1", dict(hide=one_more)),
    "one argsort": ("argsort of argsort", dict(hide=one_argsort)),
    "all where none": ("k may be 0", dict(hide=up_to_the_kth)),
    "k/n": ("the more each weighs", dict(weight=lambda k, m: k / m.sum(1).double())),
    "1/k": ("chance 1/n", dict(weight=lambda k, m: 1 / k.double())),
    "L/k": ("not the length", dict(weight=lambda k, m: torch.full_like(k, m.shape[1]).double() / k)),
}
