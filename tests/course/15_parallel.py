"""Lesson 15: the answer, and wrong answers with a word of the hint that each must get."""

import torch
from toy import last


def law(model, words, groups, mask_id, masked=True, write=True, whole=False):
    canvas, q = torch.full_like(words, mask_id), torch.ones(len(words), dtype=torch.float64)
    for group in groups:
        logits = model(words if whole else canvas).double()
        if masked:
            logits = logits.index_fill(2, torch.tensor([mask_id]), -torch.inf)
        q = q * logits.softmax(2).gather(2, words[..., None])[:, group, 0].prod(1)
        if write:
            canvas[:, group] = words[:, group]
    return q


def kl(p, q):
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum()


def marginals(p, words):
    return [torch.bincount(words[:, i], weights=p) for i in range(words.shape[1])]


def entropy(p):
    return -torch.special.xlogy(p, p).sum()


def total_correlation(p, words):
    return sum(map(entropy, marginals(p, words))) - entropy(p)


def singly(model, words, groups, mask_id):
    return law(model, words, [[i] for group in groups for i in group], mask_id)


def other(**keys):
    return dict(law=lambda *case: law(*case, **keys))


WRONG = {
    "the last id": ("need not be the last", dict(law=lambda m, w, groups, k: law(last(m, k), w, groups, k))),
    "the mask, too": ("-inf", other(masked=False)),
    "marginals": ("earlier groups", other(write=False)),
    "sees the answer": ("must not see", other(whole=True)),
    "one after the other": ("same canvas", dict(law=singly)),
    "backwards": ("first group", dict(law=lambda m, w, groups, k: law(m, w, groups[::-1], k))),
    "logarithm": ("logarithm", dict(law=lambda *case: law(*case).log())),
    "other direction": ("other direction", dict(kl=lambda p, q: kl(q, p))),
    "bits": ("nats", dict(kl=lambda p, q: kl(p, q) / torch.tensor(2.0).log())),
    "nan": ("xlogy", dict(kl=lambda p, q: (p * (p / q).log()).sum())),
    "mean": ("no mean", dict(kl=lambda p, q: torch.special.xlogy(p, p / q).mean())),
    "sums": ("less the entropy", dict(total_correlation=lambda p, w: sum(map(entropy, marginals(p, w))))),
    "negative": ("never below 0", dict(total_correlation=lambda p, w: -total_correlation(p, w))),
}
