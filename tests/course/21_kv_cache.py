"""Lesson 21: the answer, and wrong answers with a word of the hint that each must get."""

import torch
import torch.nn.functional as F

from model import Config, KVCache


def write(store, filled, positions, new):
    B, H, S, D = store.shape
    cache = KVCache(Config(vocab_size=1, n_layer=1, n_head=H, n_embd=H * D, position="none"), B, S, dtype=store.dtype)
    cache.k[0][:, :S], cache.filled[:, :S] = store.transpose(1, 2), filled
    cache.write(0, cache.reserve(positions, None), new, new)
    return cache.k[0][:, :S].transpose(1, 2), cache.filled[:, :S]


def attend(q, store_k, store_v, filled):
    return F.scaled_dot_product_attention(q, store_k, store_v, filled[:, None, None])


def scattered(store, filled, positions, new, copy=True):
    """Without a thought for padding: -1 is an index."""
    if copy:
        store, filled = store.clone(), filled.clone()
    rows = torch.arange(len(store))[:, None]
    store[rows, :, positions], filled[rows, positions] = new.transpose(1, 2), True
    return store, filled


def appended(store, filled, positions, new):
    real = positions >= 0
    slots = filled.sum(1, keepdim=True) + torch.arange(positions.shape[1])
    return write(store, filled, torch.where(real & (slots < store.shape[2]), slots, -1), new)


def emptied(store, filled, positions, new):
    return write(store * 0, filled & False, positions, new)


def unscaled(q, k, v, filled):
    return (q @ k.mT).masked_fill(~filled[:, None, None], -torch.inf).softmax(-1) @ v


def the_first(q, k, v, filled):
    return attend(q, k, v, torch.arange(filled.shape[1]) < filled.sum(1, keepdim=True))


WRONG = {
    "padding at -1": ("the last slot", dict(write=scattered)),
    "padding at 0": ("the first", dict(write=lambda s, f, p, n: scattered(s, f, p.clamp(min=0), n))),
    "appended": ("whatever is filled", dict(write=appended)),
    "first row for all": ("own positions", dict(write=lambda s, f, p, n: write(s, f, p[:1].expand_as(p), n))),
    "others emptied": ("keep what they had", dict(write=emptied)),
    "filled forgotten": ("are filled now", dict(write=lambda s, f, p, n: (write(s, f, p, n)[0], f.clone()))),
    "in place": ("a copy", dict(write=lambda s, f, p, n: scattered(s, f, p, n, copy=False))),
    "one returned": ("return store, filled", dict(write=lambda s, f, p, n: write(s, f, p, n)[0])),
    "empty slots seen": ("-inf before", dict(attend=lambda q, k, v, f: F.scaled_dot_product_attention(q, k, v))),
    "no scale": ("square root", dict(attend=unscaled)),
    "the first slots": ("need not be the first", dict(attend=the_first)),
}
