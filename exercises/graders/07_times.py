"""The claims of lesson 7, beside nanodlm.noise.stratified."""

import torch
from checks import alike, generator, true

from nanodlm import noise


def drawn(seed, B=16):
    i = torch.arange(B)
    return noise.uniform(seed, 2, i).argsort(), noise.uniform(seed, 1, i)


def claim_formula(my):
    """each row's time is in its own stratum, where its u says, as nanodlm.noise.stratified"""
    order, u = drawn(5)
    i, B = torch.arange(16), 16
    sorted_ = "row i belongs to the stratum order[i]: row 0 must not always be the earliest"
    mistakes = [
        ((i + u) / B, sorted_),
        ((order.argsort() + u) / B, sorted_),
        (order / B + u, "u is the place within a stratum, and a stratum is 1/B wide"),
        ((order + 0.5).double() / B, "in the middle of its stratum no time is random: use u"),
        (order.double() / B, "at the edge of its stratum no time is random, and one is 0: use u"),
        ((order + u[order]) / B, "u[i] belongs to row i, not to stratum i"),
        ((order + u[order.argsort()]) / B, "u[i] belongs to row i, not to stratum i"),
        (u, "that is independent times: order says in which stratum each lies"),
        ((order + u) / (B - 1), "there are B strata, not B - 1"),
        ((order + 1 + u) / B, "strata are counted from 0"),
    ]
    alike(my.stratified(order, u.clone()), noise.stratified(5, B), "see the equation", mistakes)


def claim_strata(my):
    """of any batch there is exactly one time in each stratum"""
    for seed in range(20):
        order, u = drawn(seed, 8)
        t = my.stratified(order, u)
        alike(t, (order + u) / 8, "see the claim before")
        alike((t * 8).long(), order, "the whole part of B t is the stratum")


def claim_shared(my):
    """one u for all puts every time at the same place of its stratum"""
    order = drawn(3)[0]
    want = (order + 0.25) / 16
    hint = "u of no dimension works by itself, if you add before you divide"
    alike(my.stratified(order, torch.tensor(0.25).double()), want.double(), hint)


def claim_spread(my):
    """spread is the standard deviation of the batches' means"""
    values = torch.rand(300, 16, generator=generator(1), dtype=torch.float64) ** 2
    means = values.mean(1)
    mistakes = [
        (values.std(), "first the mean of each batch, then how these scatter"),
        (values.std(1).mean(), "first the mean of each batch, then how these scatter"),
        (values.mean(0).std(), "rows of `values` are batches"),
        (means.var(), "the square root of the variance"),
        (means.std(unbiased=False), "n - 1 in the denominator"),
        (means.std() / 300**0.5, "that is the error of the mean of all batches; one batch scatters more"),
    ]
    alike(my.spread(values), means.std(), "first the mean of each batch, then how these scatter", mistakes)


def claim_saves(my):
    """with your times the mean of 1 - t^2 over a batch scatters at most a tenth of what independent times do"""
    t = [my.stratified(*drawn(seed)) for seed in range(300)]
    true(all(torch.is_tensor(x) and x.shape == (16,) for x in t), "16 times", "something else", "see the claims before")
    independent = torch.stack([drawn(seed)[1] for seed in range(300)])
    ratio = ((1 - torch.stack(t) ** 2).mean(1).std() / (1 - independent**2).mean(1).std()).item()
    true(ratio < 0.1, "a ratio below 0.1", f"{ratio:.3f}", "one time in each stratum")
