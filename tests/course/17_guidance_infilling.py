"""Lesson 17: the answer, and wrong answers with a word of the hint that each must get."""

import torch

from nanodlm import decode, noise


def guide(cond, uncond, scale):
    return decode.guide(torch.cat([cond, uncond]), scale)


def without_prompt(x, given, mask_id):
    return torch.where(given, mask_id, x)


def infill(
    model, x, scale, uniform, mask_id, guide=guide, without=without_prompt, exclude=True, left=False, best=False
):
    x, given = x.clone(), x != mask_id
    for k in range(int((x == mask_id).sum())):
        logits = guide(model(x[None])[0], model(without(x, given, mask_id)[None])[0], scale)
        p = logits.softmax(1).amax(1)
        logits = logits.index_fill(1, torch.tensor([mask_id]), -torch.inf)
        p = logits.softmax(1).amax(1) if exclude else p
        i = torch.where(x == mask_id, torch.zeros_like(p) if left else p, -1.0).argmax()
        x[i] = logits[i].argmax() if best else noise.draw(logits[i, None], uniform(k, 1)[i, None])[0]
    return x


def other(**keys):
    return dict(infill=lambda *case: infill(*case, **keys))


def in_place(x, given, mask_id):
    x[given] = mask_id
    return x


def everything(x, given, mask_id):
    return torch.full_like(x, mask_id)


WRONG = {
    "other convention": ("scale 0 is the model", dict(guide=lambda c, u, w: u + w * (c - u))),
    "swapped": ("subtracted", dict(guide=lambda c, u, w: guide(u, c, w))),
    "begins at cond": ("begin at uncond", dict(guide=lambda c, u, w: c + (w + 1) * (c - u))),
    "all masks": ("what was revealed since", dict(without_prompt=everything)),
    "the others": ("other way round", dict(without_prompt=lambda x, given, m: torch.where(given, x, m))),
    "in place": ("new tensor", dict(without_prompt=in_place)),
    "unguided": ("guided ones", other(guide=lambda c, u, w: c)),
    "asks a blank": ("what was revealed since", other(without=everything)),
    "the mask counts": ("-inf", other(exclude=False)),
    "left to right": ("not the leftmost", other(left=True)),
    "greedy": ("greedy", other(best=True)),
    "all of it": ("given", dict(infill=lambda m, x, *rest: infill(m, torch.full_like(x, rest[-1]), *rest))),
}
