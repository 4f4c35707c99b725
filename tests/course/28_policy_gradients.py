"""Lesson 28: the answer, and wrong answers with a word of the hint that each must get."""

import torch


def advantages(rewards, deviation, failed=0.0, less=1, small=1e-4, dim=1):
    rest = rewards if failed is None else rewards.nan_to_num(failed) if failed else rewards
    found = rest - rest.nanmean(dim, keepdim=True)
    if deviation:
        n = (~found.isnan()).sum(1, keepdim=True)
        found = found / ((found.square().nansum(1, keepdim=True) / (n - less).clamp(min=1)).sqrt() + small)
    return found if failed is None else found.nan_to_num(0.0)


def clipped(logp, old, A, eps):
    ratio, A = (logp - old).exp(), A[:, None]
    return -torch.minimum(ratio * A, ratio.clamp(1 - eps, 1 + eps) * A)


def log_pi(model, x, mask_id, pick=None, again=True, sure=None):
    canvas, total = torch.full_like(x, mask_id), 0.0
    first = model(canvas[None].clone())[0]
    while (canvas == mask_id).any():
        at = (canvas == mask_id).nonzero()[:, 0]
        logits = (model(canvas[None].clone())[0] if again else first)[at]
        logp = logits.index_fill(1, torch.tensor([mask_id]), -torch.inf).log_softmax(1)
        best = pick(logp) if pick else int((sure(logits) if sure else logp).amax(1).argmax())
        total = total + logp[best, x[at[best]]]
        canvas[at[best]] = x[at[best]]
    return total


WRONG = {
    "failed ones are 0": ("leave it out", dict(advantages=lambda r, d: advantages(r.nan_to_num(0.0), d))),
    "failed ones stay": ("own advantage is 0", dict(advantages=lambda r, d: advantages(r, d, failed=None))),
    "over G": ("over G - 1", dict(advantages=lambda r, d: advantages(r, d, less=0))),
    "always divided": ("do not divide", dict(advantages=lambda r, d: advantages(r, True))),
    "never divided": ("divide by it", dict(advantages=lambda r, d: advantages(r, False))),
    "upside down": ("positive advantage", dict(advantages=lambda r, d: -advantages(r, d))),
    "across groups": ("compared with itself", dict(advantages=lambda r, d: r - r.nanmean())),
    "no minimum": ("wrong way", dict(clipped=lambda p, o, A, e: -(p - o).exp().clamp(1 - e, 1 + e) * A[:, None])),
    "never clipped": ("clip the ratio", dict(clipped=lambda p, o, A, e: -(p - o).exp() * A[:, None])),
    "the gain": ("minimised", dict(clipped=lambda *case: -clipped(*case))),
    "always 0.2": ("what is given", dict(clipped=lambda p, o, A, e: clipped(p, o, A, 0.2))),
    "old over new": ("over the old", dict(clipped=lambda p, o, A, e: clipped(o, p, A, e))),
    "from the left": ("not the leftmost", dict(log_pi=lambda *case: log_pi(*case, pick=lambda p: 0))),
    "by logits": ("not of logits", dict(log_pi=lambda *case: log_pi(*case, sure=lambda x: x))),
    "beside the mask": ("left out", dict(log_pi=lambda *case: log_pi(*case, sure=lambda x: x.softmax(1)))),
    "looked once": ("look again", dict(log_pi=lambda *case: log_pi(*case, again=False))),
    "detached": ("do not detach", dict(log_pi=lambda *case: log_pi(*case).detach())),
}
