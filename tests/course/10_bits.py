"""Lesson 10."""

import itertools
import math

import torch


def bits_per_byte(nats_per_token, num_tokens, text):
    return nats_per_token * num_tokens / math.log(2) / len(text.encode())


def ce(model, x0, hidden, mask_id):
    logits = model(torch.where(hidden, mask_id, x0)).double().index_fill(2, torch.tensor([mask_id]), -torch.inf)
    return torch.where(hidden, -logits.log_softmax(-1).gather(2, x0[..., None])[..., 0], 0.0).sum(1)


def weighed(chance, over=lambda t: t):
    def one_rate(model, x0, t, mask_id):
        n = x0.shape[1]
        sets = map(torch.tensor, itertools.product([False, True], repeat=n))
        return sum(chance(t, int(s.sum()), n) * ce(model, x0, s, mask_id) for s in sets) / over(t)

    return one_rate


def right(t, k, n):
    return t**k * (1 - t) ** (n - k)


one_rate = weighed(right)


def some_rates(model, x0, times, mask_id, of=one_rate):
    return torch.stack([of(model, x0, t, mask_id) for t in times]).mean(0)


WRONG = {
    "characters": ("encode", dict(bits_per_byte=lambda n, k, text: n * k / math.log(2) / len(text))),
    "nats": ("nats are not bits", dict(bits_per_byte=lambda n, k, text: n * k / len(text.encode()))),
    "4.3": ("written in", dict(bits_per_byte=lambda n, k, text: n * k / math.log(2) / 4.3)),
    "per token": ("multiply", dict(bits_per_byte=lambda n, k, text: n / math.log(2) / len(text.encode()))),
    "forgot 1/t": ("weighs 1/t", dict(one_rate=weighed(right, lambda t: 1))),
    "sets alike": ("how likely", dict(one_rate=weighed(lambda t, k, n: 1 / 2**n))),
    "1 - t": ("not 1 - t", dict(one_rate=weighed(lambda t, k, n: (1 - t) ** k * t ** (n - k)))),
    "sum": ("not the sum", dict(some_rates=lambda m, x, ts, k: len(ts) * some_rates(m, x, ts, k))),
    "mean t": ("not g at", dict(some_rates=lambda m, x, ts, k: one_rate(m, x, sum(ts) / len(ts), k))),
}
