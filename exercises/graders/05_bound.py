"""The claims of lesson 5, by enumeration, beside the toy of tests/book: two letters, four places."""

import numpy as np
import torch
import toy
from checks import ELSEWHERE, alike, generator, mask_first

M = toy.MASK
SET = "which sets are there, and what does the second equation give each? (And does the claim on nll hold?)"


def hidden_rows(model, mask_too=False):
    """Every string with every set hidden: xt, x0 (256, 4), and its nll (256, 4)."""
    x0 = toy.STRINGS.repeat_interleave(16, 0)
    hidden = toy.SUBSETS.repeat(16, 1)
    logits = model(torch.where(hidden, M, x0))[..., : 3 if mask_too else M]
    nll = -logits.log_softmax(-1).gather(2, x0[..., None])[..., 0]
    return torch.where(hidden, M, x0), x0, torch.where(hidden, nll, 0.0)


def claim_nll(my):
    """nll is -log p at hidden places, with the mask's logit left out, and 0 elsewhere"""
    for model in (toy.ARBITRARY, toy.EXACT):
        xt, x0, want = hidden_rows(model)
        every = -model(xt)[..., :M].log_softmax(-1).gather(2, x0[..., None])[..., 0]
        mistakes = [
            (hidden_rows(model, mask_too=True)[2], "the mask is never an answer: leave its logit out of the softmax"),
            (every, "tokens that are not hidden need no prediction: 0 there"),
            (-want, "-log p is positive"),
        ]
        hint = "log_softmax over the ids, the mask's left out; then the entry of x0's token"
        alike(my.nll(model, xt.clone(), x0, M), want, hint, mistakes)


def claim_any_mask(my):
    """nll leaves out the mask's logit wherever it stands: here the mask is id 0, and the letters are 1 and 2"""
    xt, x0, want = hidden_rows(toy.ARBITRARY)
    alike(my.nll(mask_first(toy.ARBITRARY, M), (xt + 1) % 3, x0 + 1, 0), want, ELSEWHERE)


def claim_estimate(my):
    """estimate weighs the sum over a row's hidden tokens by 1/t"""
    x0 = toy.STRINGS.repeat(8, 1)
    t = torch.rand(128, generator=generator(7), dtype=torch.float64) * 0.98 + 0.01
    u = torch.rand(128, 4, generator=generator(8), dtype=torch.float64)
    hidden = u < t[:, None]
    index = (hidden.long() * torch.tensor([8, 4, 2, 1])).sum(1)
    ce, too = (toy.subset_ce(toy.ARBITRARY, x0, m)[range(128), index] for m in (False, True))
    n, k = 4, hidden.sum(1)
    mistakes = [
        (ce, "a mask at time t weighs 1/t"),
        (ce / k.clamp(min=1), "the sum over hidden tokens, not their mean, weighed by 1/t"),
        (ce / k.clamp(min=1) / t, "the sum over hidden tokens, not their mean"),
        (ce / n / t, "nats for a row: the sum over its tokens, not their mean"),
        (ce * n / k.clamp(min=1), "n/k is the weight where a count is drawn (lesson 2); here a rate is: 1/t"),
        (ce / t.mean(), "each row has its own t"),
        (too / t, "the mask is never an answer: leave its logit out of the softmax"),
    ]
    alike(
        my.estimate(toy.ARBITRARY, x0, t, u, M),
        ce / t,
        "what is inside of the integral? (And does the claim on nll hold?)",
        mistakes,
    )


def claim_bound(my):
    """bound is the integral over all times and masks, for a model with whatever opinions"""
    x0 = toy.STRINGS
    ce = toy.subset_ce(toy.ARBITRARY, x0)
    k = toy.SIZES.clamp(min=1).double()
    flat = ce[:, 1:].mean(1)
    mistakes = [
        (flat, "sets of different sizes weigh differently: see the second equation"),
        (ce.sum(1), "sets of different sizes weigh differently: see the second equation"),
        ((ce / k).sum(1), "1/k is the weight of all sets of k places together: there are n over k of them"),
        (toy.exact_nelbo(toy.ARBITRARY, x0) / 4, "nats for a row, not for a token"),
    ]
    alike(my.bound(toy.ARBITRARY, x0, M), toy.exact_nelbo(toy.ARBITRARY, x0), SET, mistakes)


def claim_tight(my):
    """for the model that knows the truth, the bound of every string is -log p"""
    alike(my.bound(toy.EXACT, toy.STRINGS, M), -toy.DATA.log(), SET)


def claim_average(my):
    """the estimate's average, over all times and masks that may be drawn, is the bound"""
    node, part = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(8))
    x0, hidden = toy.STRINGS.repeat_interleave(16, 0), toy.SUBSETS.repeat(16, 1)
    total = torch.zeros(16, dtype=torch.float64)
    for t, w in zip((node + 1) / 2, part / 2):
        chance = t**toy.SIZES * (1 - t) ** (4 - toy.SIZES)
        u = torch.where(hidden, t * 0.5, (1 + t) / 2)  # below t where it is to be hidden
        value = my.estimate(toy.ARBITRARY, x0, t.expand(256), u, M)
        alike(value, value.double() if torch.is_tensor(value) else torch.zeros(256).double(), "one number for each row")
        total += (w * chance * value.view(16, 16)).sum(1)
    alike(
        total, toy.exact_nelbo(toy.ARBITRARY, toy.STRINGS), "the estimate is wrong for some masks: see the claim on it"
    )
