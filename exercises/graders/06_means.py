"""The claims of lesson 6, with every mask in its proportion, beside the toy's exact bound."""

import torch
import toy
from checks import alike, generator


def drawn():
    """ce, hidden, t of random rows, some with nothing hidden."""
    t = torch.rand(50, generator=generator(1), dtype=torch.float64)
    hidden = torch.rand(50, 6, generator=generator(2)) < t[:, None]
    hidden[::10] = False
    ce = torch.rand(50, 6, generator=generator(3), dtype=torch.float64) * 3 * hidden
    return ce, hidden, t


def every_mask():
    """ce, hidden, t of every string of the toy with every mask, each count as often; t is as counts weigh, k/n."""
    often = torch.tensor([0, 3, 2, 3, 12])[toy.SIZES]  # 12 rows of each count
    which = torch.arange(16).repeat_interleave(often)
    hidden = toy.SUBSETS[which].repeat(16, 1)
    x0 = toy.STRINGS.repeat_interleave(len(which), 0)
    logits = toy.ARBITRARY(torch.where(hidden, toy.MASK, x0))[..., : toy.MASK]
    ce = torch.where(hidden, -logits.log_softmax(-1).gather(2, x0[..., None])[..., 0], 0.0)
    return ce, hidden, hidden.sum(1).double() / 4


def claim_weighted(my):
    """weighted is CE/t per token, whatever is hidden"""
    ce, hidden, t = drawn()
    got, want = my.weighted(ce, hidden, t), (ce.sum(1) / t).mean() / 6
    per_hidden = "per token means per token of the text, hidden or not: divide by L"
    mistakes = [
        (ce.sum() / 300, "each row weighs 1/t"),
        ((ce.sum(1) / t).mean(), "nats per token: divide by L"),
        ((ce / t[:, None]).sum() / hidden.sum(), per_hidden),
        ((ce.sum(1) / t)[hidden.any(1)].mean() / 6, "a row of which nothing is hidden counts here, as 0"),
        (ce.sum() / t.sum() / 6, "the mean of the ratios, not the ratio of the sums: each row has its own t"),
    ]
    alike(got, want, "each row's sum by its own t, the mean over rows, per token", mistakes)


def claim_by_row(my):
    """by_row gives each row that has hidden tokens the same weight"""
    ce, hidden, _ = drawn()
    k = hidden.sum(1)
    every = (ce.sum(1) / k.clamp(min=1)).mean()
    mistakes = [
        (every, "rows of which nothing is hidden do not count"),
        (torch.tensor(torch.nan).double(), "0/0: leave out the rows of which nothing is hidden"),
        (ce.sum() / k.sum(), "that is the pooled mean: average within each row first"),
    ]
    out = "0/0: leave out the rows of which nothing is hidden"
    alike(my.by_row(ce, hidden), (ce.sum(1) / k)[k > 0].mean(), out, mistakes)


def claim_pooled(my):
    """pooled gives each hidden token the same weight"""
    ce, hidden, _ = drawn()
    k = hidden.sum(1)
    mistakes = [
        (ce.mean(), "the mean over hidden tokens, not over all"),
        ((ce.sum(1) / k)[k > 0].mean(), "that is the mean by row: pool all hidden tokens first"),
    ]
    alike(my.pooled(ce, hidden), ce.sum() / hidden.sum(), "the mean over hidden tokens", mistakes)


def claim_two_are_the_bound(my):
    """with every mask in its proportion, weighted and by_row are the exact bound, and pooled is not"""
    ce, hidden, t = every_mask()
    exact = toy.exact_nelbo(toy.ARBITRARY, toy.STRINGS).mean() / 4
    alike(my.weighted(ce, hidden, t), exact, "see the claim on weighted", what="weighted")
    alike(my.by_row(ce, hidden), exact, "see the claim on by_row", what="by_row")
    alike(my.pooled(ce, hidden), ce.sum() / hidden.sum(), "see the claim on pooled", what="pooled")
