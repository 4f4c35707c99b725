"""The claims of lesson 26, beside udlm.token_bound and the language of tests/book/letters.py."""

import itertools

import letters
import torch
import torch.nn.functional as F
import toy
from checks import alike, generator, true

import udlm
from model import Config

CONFIG = Config(vocab_size=letters.K)
DATA = letters.language(2)
TEXTS = toy.listing(letters.K, 2)
X0, XT = TEXTS.repeat_interleave(9, 0), TEXTS.repeat(9, 1)  # every text as every canvas, (81, 2)
LOGITS = 1.2 * torch.randn(9, 2, letters.K, generator=generator(2)).double()
ALL = "all places count: a letter that is still x_0 costs, too, if the network would have it jump"


def true_bound(p, x0, z, r):
    return udlm.token_bound(p.log(), x0, z, r, CONFIG, letters.MASK)


def number(canvases):
    return (canvases * torch.tensor([3, 1])).sum(-1)


def opinions(canvases):
    return LOGITS[number(canvases)]


def knowing(r):
    """The model that knows the language, told the rate."""
    table = letters.truth(DATA, r, 0.0, False)[(toy.listing(4, 2) < letters.MASK).all(1), :, :3]
    return lambda canvases: table[number(canvases)]


def cases():
    """p (B, 3), x0, z and r (B,)."""
    x0, z, r = (torch.tensor(x) for x in zip(*itertools.product(range(3), range(3), (0.001, 0.2, 0.5, 0.9, 0.999))))
    p = (1.5 * torch.randn(len(r), 3, generator=generator(1)).double()).softmax(1)
    return p, x0, z, r.double()


def noised(p, r):
    """p mixed with noise, (B, 3)."""
    return letters.q_of(F.pad(p, (0, 1)), r[:, None], 0.0)[:, :3]


def claim_mix(my):
    """mix is p where there is no noise, uniform where all is noise, and between them the mean of both"""
    p, _, _, r = cases()
    kept = (1 - r[:, None]) * p
    mistakes = [
        (r[:, None] * p + (1 - r[:, None]) / 3, "x_0 is kept with probability 1 - r"),
        (kept, "what is not kept is noise, and noise is a letter, too: any of them"),
        (kept + r[:, None], "noise is any of the N letters: r / N each"),
    ]
    alike(my.mix(p.clone(), r.clone()), noised(p, r), "(1 - r) p(y) + r / N for each letter y", mistakes)


def claim_token(my):
    """token_bound is the sum over jumps of R log(R / R') + R' - R, as udlm.token_bound has it in another form"""
    p, x0, z, r = cases()
    want = true_bound(p, x0, z, r)

    def divergence(R, ours, sign=1, rest=1):
        return (sign * R * (R / ours).log() + rest * (ours - R)).sum(1)

    q, ours, w = noised(F.one_hot(x0, 3).double(), r), noised(p, r), 1 / (3 * (1 - r))
    R, R_ours, bare = (x / x.gather(1, z[:, None]) for x in (q, ours, p))
    others = F.one_hot(z, 3) == 0
    whole = torch.where(others, q * (q / ours).log() + ours - q, 0.0).sum(1)
    weight = "each rate has the weight 1 / (N (1 - r)): that is how often noise comes"
    mistakes = [
        (w * divergence(R, R_ours, rest=0), "R' - R belongs to it, for jumps that do not happen"),
        (divergence(R, R_ours), weight),
        (divergence(R, R_ours) / 3, weight),
        (w * divergence(R, R_ours, sign=-1), "the sign of the logarithm: a jump that R' has too seldom costs"),
        (w * divergence(R_ours, R), "which of the two is true? R is before the logarithm, and over R'"),
        (w * divergence(R, bare), "the network's p is mixed with noise, as [y = x_0] is"),
        (w * whole, "a rate is q(y) / q(z): divide by the probability of what stands there"),
        (torch.where(z == x0, 0.0, want), ALL),
    ]
    hint = "R and R' are one formula, with x_0 and with p; then the sum over the letters that are not z"
    alike(my.token_bound(p.clone(), x0, z, r.clone()), want, hint, mistakes)


def inside(model, xt, x0, r):
    """Each place's part of the bound, (B, 2)."""
    p = model(xt).softmax(-1).flatten(0, 1)
    return true_bound(p, x0.flatten(), xt.flatten(), r.repeat_interleave(2)).view(-1, 2)


def claim_estimate(my):
    """estimate is the sum of token_bound over all places, those that were replaced and those that were not"""
    r = torch.rand(81, generator=generator(3), dtype=torch.float64) * 0.98 + 0.01
    each, changed = inside(opinions, XT, X0, r), XT != X0
    ce = -opinions(XT).log_softmax(-1).gather(2, X0[..., None])[..., 0]
    mistakes = [
        (torch.where(changed, each, 0.0).sum(1), ALL),
        (each.mean(1), "nats for a row: the sum over its places, not their mean"),
        (each.sum(1) / r, "no further weight: token_bound has it already"),
        (ce.sum(1), "it is no cross entropy here: each place adds its token_bound"),
        ((ce * changed).sum(1), "it is no cross entropy here: each place adds its token_bound"),
    ]
    hint = "softmax of the logits, then token_bound of each place, then their sum (does the claim on token_bound hold?)"
    alike(my.estimate(opinions, XT.clone(), X0.clone(), r.clone()), each.sum(1), hint, mistakes)


def integral(my, model_at):
    """The bound of every text, (9,), as the integral over rates of the expectation over canvases of estimate."""
    total, q = torch.zeros(9, dtype=torch.float64), torch.eye(3, 4).double()
    for r, w in zip(*letters.rates(40)):
        chance = letters.q_of(q, r, 0.0)[X0, XT].prod(1)
        value = my.estimate(model_at(r.item()), XT.clone(), X0.clone(), r.repeat(81))
        alike(value, torch.full((81,), 0.0).double() if not torch.is_tensor(value) else value.double(), "one a row")
        total += w * (chance * value).view(9, 9).sum(1)
    return total


def claim_tight(my):
    """for the model that knows the truth, the bound of every text is -log p"""
    hint = "a term is missing, or is there twice: see the claims before"
    alike(integral(my, knowing), -DATA.flatten().log(), hint, tolerance=1e-4)


def claim_bound(my):
    """for a model with opinions it is above -log p of the process that the model defines (by its master equation)"""
    table = torch.zeros(16, 2, 4).double()
    table[(toy.listing(4, 2) < letters.MASK).all(1), :, :3] = LOGITS.softmax(-1)
    law = letters.law_of(lambda r: table.log(), 0.0)
    least = (integral(my, lambda r: opinions) + law.log()).min().item()
    true(least > -1e-3, "no less than -log p", f"{-least:.4f} nats less", "see the claims before")
