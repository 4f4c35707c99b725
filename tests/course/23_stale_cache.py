"""Lesson 23: the answer, and wrong answers with a word of the hint that each must get."""

import copy

import torch


def refresh(model, x):
    cache = model.cache(*x.shape)
    return cache, model(x, cache=cache)


def step(model, x, block, cache):
    return model(x[:, block], positions=block.expand(len(x), -1), cache=cache)


def work(L, block_size, steps_per_block):
    blocks = -(-L // block_size)
    return blocks * steps_per_block * L, blocks * L + (steps_per_block - 1) * L


def all_anew(model, x, block, cache):
    place = torch.arange(x.shape[1]).expand_as(x)
    return model(x, positions=place, cache=cache)[:, block]


WRONG = {
    "cache not passed": ("pass the cache", dict(refresh=lambda m, x: (m.cache(*x.shape), m(x)))),
    "logits alone": ("return cache, logits", dict(refresh=lambda m, x: refresh(m, x)[1])),
    "the other way round": ("return cache, logits", dict(refresh=lambda m, x: refresh(m, x)[::-1])),
    "a full pass each step": ("not read anew", dict(step=lambda m, x, b, c: m(x)[:, b])),
    "all written": ("not read anew", dict(step=all_anew)),
    "no cache": ("pass the cache", dict(step=lambda m, x, b, c: m(x[:, b], positions=b.expand(len(x), -1)))),
    "from 0": ("those of the block", dict(step=lambda m, x, b, c: step(m, x[:, b], torch.arange(len(b)), c))),
    "appended": ("those of the block", dict(step=lambda m, x, b, c: m(x[:, b], cache=c))),
    "in a copy": ("not in a copy", dict(step=lambda m, x, b, c: step(m, x, b, copy.deepcopy(c)))),
    "logits of all": ("x[:, block]", dict(step=lambda m, x, b, c: m(x))),
    "one step more": ("no step besides", dict(work=lambda L, b, s: (work(L, b, s)[0], -(-L // b) * L + s * L))),
    "one full pass": (
        "every block begins",
        dict(work=lambda L, b, s: (work(L, b, s)[0], L + -(-L // b) * (s - 1) * b)),
    ),
    "whole blocks": ("shorter", dict(work=lambda L, b, s: (work(L, b, s)[0], -(-L // b) * (L + (s - 1) * b)))),
    "turned round": ("comes first", dict(work=lambda L, b, s: work(L, b, s)[::-1])),
    "blocks alone": ("whole canvas", dict(work=lambda L, b, s: (s * L, work(L, b, s)[1]))),
}
