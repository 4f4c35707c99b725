"""The claims of lesson 4, by Bayes' rule over the two states, and beside nanodlm.choice.ancestral_rates."""

import torch
from checks import alike, generator, true

from nanodlm import choice, decode

TIMES = [(0.9, 0.4), (0.5, 0.1), (1.0, 0.3), (0.35, 0.0), (1.0, 0.0), (0.6, 0.59)]


def table(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def by_bayes(a, b):
    """q(x_t | x_s) q(x_s | x_0) / q(x_t | x_0), entry by entry; a and b are alpha at s and t."""
    forward = table((b / a, 1 - b / a), (0, 1))  # from x_s (row) to x_t
    joint = table(a, 1 - a)[:, None] * forward
    return (joint / joint.sum(0)).T if b else torch.stack([table(1, 0), joint[:, 1]])


def claim_bayes(my):
    """the table is what Bayes' rule gives, for every pair of times"""
    for a, b in TIMES:
        want, r = by_bayes(a, b), (a - b) / (1 - b)
        stays = "a clean token in x_t was clean at every earlier time"
        given = "given that it is masked at t: divide by the probability of that, 1 - alpha_t"
        swap = "rows are states in x_t, columns in x_s; of the mask's row, which entry is the chance of being revealed?"
        mistakes = [
            (table((1, 0), (a - b, 1 - a + b)), given),
            (table((1, 0), (a, 1 - a)), given),
            (table((1, 0), (1 - r, r)), swap),
            (want.T, swap),
            (table((b / a, 1 - b / a), (0, 1)), "that is the way forward, q(x_t | x_s)"),
            (table((a, 1 - a), (r, 1 - r)), stays),
        ]
        got = my.posterior(a, b)
        if b == 0 and torch.is_tensor(got) and got.isnan().any():
            given = "0/0: a token that is clean at t was clean at s, however unlikely; cancel alpha_t first"
        alike(got, want, given, mistakes, what=f"alpha_s = {a}, alpha_t = {b}")


def claim_project(my):
    """its chance of revealing a token is that of the project's ancestral sampler"""
    for a, b in TIMES:
        t, s = (torch.tensor([1 - x], dtype=torch.float64) for x in (b, a))
        want = choice.ancestral_rates(t, s, decode.SampleOptions(quota="ancestral"))[0]
        got = my.posterior(a, b)
        alike(got, by_bayes(a, b), "see the claim before", what=f"alpha_s = {a}, alpha_t = {b}")
        alike(got[1, :1], want, "see the claim before", what=f"alpha_s = {a}, alpha_t = {b}")


def rows(L=4000):
    x0 = torch.arange(2 * L).view(2, L) % 7
    u, v = torch.rand(2, 2, L, generator=generator(5), dtype=torch.float64)
    return x0, torch.where(u < 0.6, 9, x0), v


def claim_stays(my):
    """back never changes a token that is revealed, and reveals nothing but x_0"""
    x0, xt, u = rows()
    r, above = 0.35 / 0.6, "u below the chance of being revealed, not above it"
    mistakes = [
        (torch.where(u < r, x0, 9), "a revealed token stays: only masks may change"),
        (torch.where(u < 0.35, x0, xt), "the chance is the table's, given that the token is masked"),
        (torch.where(u < 1 - r, x0, xt), "u below the chance of being revealed, not of staying masked"),
        (torch.where(u >= r, x0, xt), above),
        (torch.where(u >= 1 - r, x0, xt), above),
    ]
    hint = "where is it hidden, and u below the chance? If back calls posterior, see the claims on that first"
    alike(my.back(xt.clone(), x0, 0.75, 0.4, u, 9), torch.where(u < r, x0, xt), hint, mistakes)


def claim_rate(my):
    """after the step back a share of 1 - alpha_s is masked, as if one had corrupted x_0 to time s at once"""
    x0, xt, u = rows()
    for a in (0.5, 0.75, 1.0):
        got = my.back(xt.clone(), x0, a, 0.4, u, 9)
        alike(
            got, torch.where(u < (a - 0.4) / 0.6, x0, xt), "see the claim on what back reveals", what=f"alpha_s = {a}"
        )
        share = (got == 9).double().mean().item()
        true(abs(share - (1 - a)) < 0.03, f"a share of {1 - a:.2f}", f"{share:.2f}", "the chance is the table's")
