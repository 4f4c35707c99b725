"""Lesson 19: the answer, and wrong answers with a word of the hint that each must get."""

import torch
import torch.nn.functional as F


def attention(q, k, v, real):
    return F.scaled_dot_product_attention(q, k, v, real[:, None, None])


def scored(x0, hidden, mask_id):
    return torch.where(hidden, mask_id, x0), hidden.flatten().nonzero()[:, 0], x0[hidden]


def nll(logits, rows, targets, mask_id):
    logits = logits.flatten(0, 1)[rows]
    logits[:, mask_id] = -torch.inf
    return F.cross_entropy(logits, targets, reduction="none")


def by_hand(q, k, v, real, scale=None, axis=-1, causal=False, before=True):
    """Attention with something wrong."""
    scores = q @ k.mT / (q.shape[-1] ** 0.5 if scale is None else scale)
    if causal:
        scores = scores.masked_fill(~torch.ones_like(scores).bool().tril(), -torch.inf)
    keys = real[:, None, None]
    if before:
        return scores.masked_fill(~keys, -torch.inf).softmax(axis) @ v
    return scores.softmax(axis) * keys @ v


def in_place(x0, hidden, mask_id):
    targets = x0[hidden]
    x0[hidden] = mask_id
    return x0, hidden.flatten().nonzero()[:, 0], targets


def mask_stays(logits, rows, targets, mask_id):
    return F.cross_entropy(logits.flatten(0, 1)[rows], targets, reduction="none")


def logits_change(logits, rows, targets, mask_id):
    logits[..., mask_id] = -torch.inf
    return mask_stays(logits, rows, targets, mask_id)


def shifted(x0, hidden, mask_id):
    xt, rows, targets = scored(x0, hidden, mask_id)
    return xt, (rows - 1) % x0.numel(), targets


def answers_masks(x0, hidden, mask_id):
    xt, rows, _ = scored(x0, hidden, mask_id)
    return xt, rows, xt[hidden]


def everything(x0, hidden, mask_id):
    return torch.where(hidden, mask_id, x0), torch.arange(x0.numel()), x0.flatten()


WRONG = {
    "still causal": ("triangle", dict(attention=lambda q, k, v, r: by_hand(q, k, v, r, causal=True))),
    "no scale": ("square root", dict(attention=lambda q, k, v, r: by_hand(q, k, v, r, scale=1.0))),
    "scale D": ("square root", dict(attention=lambda q, k, v, r: by_hand(q, k, v, r, scale=q.shape[-1]))),
    "softmax of queries": ("over the keys", dict(attention=lambda q, k, v, r: by_hand(q, k, v, r, axis=-2))),
    "padding behind": ("before the softmax", dict(attention=lambda q, k, v, r: by_hand(q, k, v, r, before=False))),
    "padding seen": ("columns", dict(attention=lambda q, k, v, r: by_hand(q, k, v, r | True))),
    "padding as queries": (
        "not of queries",
        dict(attention=lambda q, k, v, r: F.scaled_dot_product_attention(q, k, v, r[:, None, :, None])),
    ),
    "nothing returned": ("docstring", dict(attention=lambda q, k, v, r: None)),
    "shifted": ("no shift", dict(scored=shifted)),
    "answers are masks": ("not the mask", dict(scored=answers_masks)),
    "all scored": ("only the outputs at hidden", dict(scored=everything)),
    "reads the answer": ("must not read the answer", dict(scored=lambda x, h, m: (x, *scored(x, h, m)[1:]))),
    "x0 in place": ("new inputs", dict(scored=in_place)),
    "mask in the softmax": ("no answer", dict(nll=mask_stays)),
    "logits in place": ("a copy", dict(nll=logits_change)),
    "mean": ("neither sum nor mean", dict(nll=lambda *a: nll(*a).mean())),
}
