"""Lesson 16: the answer, and wrong answers with a word of the hint that each must get."""

import torch

from nanodlm import choice, fast_mdlm, noise


def rates(t, s, eta):
    return choice.ancestral_rates(t, s, fast_mdlm.SampleOptions(0, quota="ancestral", remask=eta))


def step(model, x, given, t, s, eta, uniform, mask_id, masked=True, back=None, which=1, rates=rates):
    reveal, hide = rates(t, s, eta)
    hidden, u = x == mask_id, uniform(0)
    logits = model(x[None])[0]
    if masked:
        logits = logits.index_fill(1, torch.tensor([mask_id]), -torch.inf)
    drawn = noise.draw(logits, uniform(which))
    after = torch.where(hidden & (u < reveal), drawn, x)
    back = ~hidden & ~given & (u < hide) if back is None else back(hidden, given, u, hide, after != mask_id)
    return torch.where(back, mask_id, after)


def other(**keys):
    return dict(step=lambda *case: step(*case, **keys))


def in_place(model, x, *rest):
    x[:] = step(model, x, *rest)
    return x


def uncapped(t, s, eta):
    return (t - s + eta * (1 - t)) / t, torch.full_like(t, eta)


def unpaid(t, s, eta):
    return (t - s) / t, rates(t, s, eta)[1]


def exchanged(t, s, eta):
    sigma = torch.minimum(torch.full_like(t, eta), t / (1 - s).clamp(min=1e-12))
    return (t - s + sigma * (1 - t)) / t, sigma


WRONG = {
    "no cap": ("smaller of eta", dict(rates=uncapped)),
    "not made up for": ("make up", dict(rates=unpaid)),
    "t for s": ("which alpha_s", dict(rates=exchanged)),
    "hide first": ("reveal comes first", dict(rates=lambda *case: rates(*case)[::-1])),
    "one of them": ("a pair", dict(rates=lambda *case: rates(*case)[0])),
    "prompts, too": ("given", other(back=lambda hidden, given, u, hide, shown: ~hidden & (u < hide))),
    "never hides": ("hidden with probability", other(back=lambda hidden, given, u, hide, shown: given & False)),
    "hides what is new": ("same one", other(back=lambda hidden, given, u, hide, shown: shown & ~given & (u < hide))),
    "the mask, too": ("-inf", other(masked=False)),
    "one noise": ("uniform(1)", other(which=0)),
    "in place": ("x.clone()", dict(step=in_place)),
}
