"""The claims of lesson 1, beside mdlm.corrupt."""

import torch
from checks import alike, generator, true

import mdlm
from nanodlm import noise

MASK = 9


def rows(B=64, L=8):
    """x0, t, u, maskable: as mdlm.corrupt draws them from seed 3."""
    x0 = torch.arange(B * L).view(B, L) % 9
    t = noise.times(3, B, mdlm.LossOptions())
    u = noise.uniform(3, 3, torch.arange(B)[:, None], torch.arange(L))
    return x0, t, u, torch.ones(B, L, dtype=torch.bool)


def claim_stays(my):
    """corrupt returns a new canvas, and leaves x0 as it was"""
    x0, t, u, maskable = rows()
    before = x0.clone()
    xt = my.corrupt(x0, t, u, maskable, MASK)
    true(torch.equal(x0, before), "x0 as it was", "x0 changed", "return a new tensor; torch.where makes one")
    shown = torch.where(torch.as_tensor(xt) == MASK, MASK, x0) if torch.is_tensor(xt) and xt.shape == x0.shape else x0
    alike(xt, shown, "a token that is not the mask must be the token of x0 at its place")


def claim_rule(my):
    """a token is hidden exactly where its u is below its row's t, as mdlm.corrupt does it"""
    x0, t, u, maskable = rows()
    hidden = mdlm.corrupt(maskable, mdlm.LossOptions(), 3, 0, len(x0))[0]
    other = "t is the probability of being hidden, not of staying: u is below t with probability t"
    first = "each row has its own t: compare u (B, L) with t as a column, (B, 1)"
    each = "each token is hidden by itself: compare every one of the u (B, L), not one for a row"
    mistakes = [
        (torch.where(u >= t[:, None], MASK, x0), other),
        (torch.where(u < t[0], MASK, x0), first),
        (torch.where(u < t.mean(), MASK, x0), first),
        (torch.where(u[:, :1] < t[:, None], MASK, x0).expand_as(x0), each),
    ]
    got = my.corrupt(x0, t, u, maskable, MASK)
    alike(got, torch.where(hidden, MASK, x0), "which u is compared with which t?", mistakes)


def claim_maskable(my):
    """what is not maskable is never hidden"""
    x0, t, u, _ = rows()
    maskable = torch.rand(x0.shape, generator=generator(1)) < 0.6  # any tokens, of each row others
    want = torch.where((u < t[:, None]) & maskable, MASK, x0)
    prompt = "a token is hidden where two things hold: u < t, and it is maskable (the prompt is not)"
    own = "each row has its own maskable tokens, in whatever places"
    mistakes = [
        (torch.where(u < t[:, None], MASK, x0), prompt),
        (torch.where((u < t[:, None]) & maskable[0], MASK, x0), own),
        (torch.where((u < t[:, None]) & (maskable.cumsum(1) > 0), MASK, x0), own),
    ]
    alike(my.corrupt(x0, t, u, maskable, MASK), want, prompt, mistakes)


def claim_ends(my):
    """at t = 0 nothing is hidden, and at t = 1 everything"""
    x0, t, u, maskable = rows()
    u[0, 0] = 0.0  # which is not below 0
    alike(my.corrupt(x0, t * 0, u, maskable, MASK), x0, "at t = 0 no u is below t", what="t = 0")
    want = torch.full_like(x0, MASK)
    alike(my.corrupt(x0, t * 0 + 1, u, maskable, MASK), want, "at t = 1 every u is below t", what="t = 1")
