"""Lesson 11."""

import torch
from toy import last


def one_by_one(model, x, x0, places, mask_id, write=True):
    x, total = x.clone(), torch.zeros(len(x), dtype=torch.float64)
    for i in places:
        logits = model(x).double().index_fill(2, torch.tensor([mask_id]), -torch.inf)
        total -= logits[:, i].log_softmax(-1).gather(1, x0[:, i : i + 1])[:, 0]
        if write:
            x[:, i] = x0[:, i]
    return total


def left_to_right(model, x0, mask_id, **keys):
    return one_by_one(model, torch.full_like(x0, mask_id), x0, range(x0.shape[1]), mask_id, **keys)


def refined(model, x0, hidden, mask_id, **keys):
    places = hidden.nonzero()[:, 0].tolist()
    return one_by_one(model, torch.where(hidden, mask_id, x0), x0, places, mask_id, **keys)


def windows(length, size, stride):
    out, end = [(0, 0, min(size, length))], min(size, length)
    while end < length:
        first, end = end, min(end + stride, length)
        out.append((max(0, end - size), first, end))
    return out


def sees_ahead(model, x0, mask_id):
    eye = torch.eye(x0.shape[1]).bool()
    return sum(refined(model, x0, hidden, mask_id) for hidden in eye)


def without_first(length, size, stride):
    return [(b, f if b else min(size - stride, e), e) for b, f, e in windows(length, size, stride)]


def overlapping(length, size, stride):
    return [(b, b, e) for b, _, e in windows(length, size, stride)]


def no_context(length, size, stride):
    return [(f, f, e) for _, f, e in windows(length, size, stride)]


WRONG = {
    "the last id": ("need not be the last", dict(left_to_right=lambda m, x, k: left_to_right(last(m, k), x, k))),
    "the last id, refined": ("need not be the last", dict(refined=lambda m, x, s, k: refined(last(m, k), x, s, k))),
    "all at once": ("known from then on", dict(left_to_right=lambda *a: left_to_right(*a, write=False))),
    "sees ahead": ("nobody sees ahead", dict(left_to_right=sees_ahead)),
    "log p": ("positive", dict(left_to_right=lambda *a: -left_to_right(*a))),
    "each by itself": ("true tokens", dict(refined=lambda *a: refined(*a, write=False))),
    "first tokens lost": ("scores from 0", dict(windows=without_first)),
    "scored twice": ("where the one before ended", dict(windows=overlapping)),
    "no context": ("begins `size` tokens", dict(windows=no_context)),
}
