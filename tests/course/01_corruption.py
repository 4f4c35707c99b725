"""Lesson 1: the answer, and wrong answers with a word of the hint that each must get."""

import torch


def corrupt(x0, t, u, maskable, mask_id):
    return torch.where((u < t[:, None]) & maskable, mask_id, x0)


def in_place(x0, t, u, maskable, mask_id):
    x0[(u < t[:, None]) & maskable] = mask_id
    return x0


WRONG = {
    "other way": ("probability of being hidden", lambda x, t, u, m, k: torch.where((u > t[:, None]) & m, k, x)),
    "one t for all": ("own t", lambda x, t, u, m, k: torch.where((u < t[0]) & m, k, x)),
    "whole rows": ("by itself", lambda x, t, u, m, k: torch.where((u[:, :1] < t[:, None]) & m, k, x)),
    "prompts, too": ("prompt", lambda x, t, u, m, k: torch.where(u < t[:, None], k, x)),
    "one row's tokens": ("own maskable", lambda x, t, u, m, k: torch.where((u < t[:, None]) & m[0], k, x)),
    "behind a prompt": ("whatever places", lambda x, t, u, m, k: corrupt(x, t, u, m.cumsum(1) > 0, k)),
    "in place": ("new tensor", in_place),
    "what is hidden": ("dtype", lambda x, t, u, m, k: (u < t[:, None]) & m),
}
WRONG = {name: (word, dict(corrupt=f)) for name, (word, f) in WRONG.items()}
