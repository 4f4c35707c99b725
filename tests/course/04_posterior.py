"""Lesson 4."""

import torch


def posterior(alpha_s, alpha_t):
    r = (alpha_s - alpha_t) / (1 - alpha_t)
    return torch.tensor([[1.0, 0.0], [r, 1 - r]], dtype=torch.float64)


def back(xt, x0, alpha_s, alpha_t, u, mask_id):
    return torch.where((xt == mask_id) & (u < posterior(alpha_s, alpha_t)[1, 0]), x0, xt)


def table(masked, clean=(1, 0)):
    return lambda a, b: torch.tensor([clean, masked(a, b)], dtype=torch.float64)


WRONG = {
    "not given the mask": ("1 - alpha_t", dict(posterior=table(lambda a, b: (a - b, 1 - a + b)))),
    "marginal": ("1 - alpha_t", dict(posterior=table(lambda a, b: (a, 1 - a)))),
    "swapped": ("which entry", dict(posterior=table(lambda a, b: ((1 - a) / (1 - b), (a - b) / (1 - b))))),
    "transposed": ("rows are states", dict(posterior=lambda a, b: posterior(a, b).T)),
    "hides again": (
        "a revealed token stays",
        dict(back=lambda xt, x0, a, b, u, m: torch.where(u < (a - b) / (1 - b), x0, m)),
    ),
    "u above": ("not above", dict(back=lambda xt, x0, a, b, u, m: torch.where(u >= (a - b) / (1 - b), x0, xt))),
    "undivided": ("given that", dict(back=lambda xt, x0, a, b, u, m: torch.where(u < a - b, x0, xt))),
}
