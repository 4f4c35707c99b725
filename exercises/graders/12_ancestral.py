"""The claims of lesson 12, beside noise.draw and mdlm.generate."""

import itertools

import torch
import toy
from checks import alike, generator, true

import mdlm
from nanodlm import noise

M, NET = toy.M, toy.NETS["plain"]  # of 12 ids the mask is the sixth
MASKED = "the mask's logit is excluded: -inf before the softmax, so that the others share all of the probability"


@torch.no_grad()
def model(canvases):
    return NET(canvases)


def numbers(seed):
    """uniform(step, which) of row 0, as mdlm.generate draws them."""
    return lambda step, which: noise.uniform(seed, 0, step, which, torch.arange(10))


def canvas():
    x = torch.full((10,), M)
    x[:2], x[6] = torch.tensor([7, 8]), 9
    return x


def variant(x, steps, uniform, chance=lambda t, s: (t - s) / t, stale=False, again=False, same=False, last=False):
    """What typical mistakes make of a canvas."""
    x, holes, logits = x.clone(), x == M, None
    for k in range(steps):
        t, s = 1 - k / steps, 1 - (k + 1) / steps
        if logits is None or not stale:
            logits = model(x[None])[0].index_fill(1, torch.tensor([M]), -torch.inf)
        now = (x == M) & (uniform(k, 0) < chance(t, s))
        if last and k == steps - 1:
            now = x == M
        if again:
            now = holes & (uniform(k, 0) < chance(t, s))
        x[now] = noise.draw(logits[now], uniform(k, 0 if same else 1)[now])
    return x


def claim_draw(my):
    """draw takes the first id whose cumulative probability exceeds u, as noise.draw does"""
    logits = 2 * torch.randn(500, 9, generator=generator(1))
    u = torch.rand(500, dtype=torch.float64, generator=generator(2))
    u[::5] = 1 - 2**-53  # above some last sums, which rounding has left below 1
    excluded = logits.index_fill(1, torch.tensor([4]), -torch.inf)
    want = noise.draw(excluded, u)
    sums = excluded.double().softmax(1).cumsum(1)
    first = "the first id whose sum exceeds u: count how many sums are not above u"
    last = "rounding may leave the last sum below 1, and u above it: compare with u times the last sum"
    mistakes = [
        (noise.draw(logits, u), MASKED),
        ((sums <= u[:, None]).long().sum(1), last),
        (want - 1, first),
        (want + 1, first),
        ((sums > u[:, None]).long().sum(1), first),
        (excluded.argmax(1), "this is the most probable id, and u plays no part: draw, do not maximise"),
        (
            noise.draw(excluded, 1 - u),
            "the sums begin with id 0, and the id is the first whose sum exceeds u, not 1 - u",
        ),
    ]
    alike(my.draw(logits.clone(), u, 4), want, "add up the probabilities, id after id, and see where u falls", mistakes)
    half, exceeds = torch.tensor([0.5]).double(), "the first id whose sum exceeds u: a sum that equals u does not"
    alike(my.draw(torch.zeros(1, 3), half, 1), torch.tensor([2]), exceeds, what="two ids of 1/2, u = 1/2")


def claim_tails(my):
    """draw tells 1 - 1e-13 from 1 - 1e-11, and reaches ids of probability 1e-12, as it computes in float64"""
    logits = torch.tensor([[0.0, 0.0, 0.0, -27.0]]).repeat(3, 1)
    u = torch.tensor([1 - 1e-13, 1 - 1e-11, 0.5], dtype=torch.float64)
    precise = "make the logits float64 before the softmax: float32 sums cannot tell 1 - 1e-12 from 1"
    want = noise.draw(logits.index_fill(1, torch.tensor([1]), -torch.inf), u)
    alike(my.draw(logits.clone(), u, 1), want, precise)


def claim_one_step(my):
    """in one step everything is revealed, and each token is drawn from what the model says of the canvas of masks"""
    x, uniform = canvas(), numbers(1)
    want = variant(x, 1, uniform)
    mistakes = [(variant(x, 1, uniform, same=True), "the numbers of which = 0 say where, those of which = 1 say what")]
    alike(
        my.ancestral(model, x.clone(), 1, uniform, M), want, "with one step t = 1 and s = 0: the chance is 1", mistakes
    )


def mistakes(*case):
    chance = "how likely is it to come to light by s, given that it is still hidden at t? Not t - s: that grows"
    yield variant(*case, chance=lambda t, s: t - s), chance
    yield variant(*case, chance=lambda t, s: t - s, last=True), chance
    yield variant(*case, chance=lambda t, s: s / t, last=True), "s / t is the chance to stay hidden"
    yield variant(*case, stale=True), "ask the model anew in every step: it has to see what was revealed before"
    yield variant(*case, again=True), "what is revealed stays: only hidden tokens are drawn"
    yield variant(*case, same=True), "which = 0 says where, which = 1 says what is drawn there"


def claim_generate(my):
    """token for token what mdlm.generate writes with quota="ancestral", in 2, 5 and 12 steps"""
    hint = "follow one step by hand: t, s, the chance, who is revealed, what is drawn there"
    for steps, seed in itertools.product((2, 5, 12), range(4)):
        x, uniform = canvas(), numbers(seed)
        o = mdlm.SampleOptions(0, steps=steps, quota="ancestral", seed=seed)
        want = mdlm.generate(NET, [x], o, mask_id=M).tokens[0]
        got = my.ancestral(model, x.clone(), steps, uniform, M)
        alike(got, want, hint, mistakes(x, steps, uniform), what=f"{steps} steps")


def claim_given(my):
    """what is given stays, and the canvas that was handed in is left as it was"""
    x = canvas()
    before = x.clone()
    got = my.ancestral(model, x, 4, numbers(3), M)
    true(torch.equal(x, before), "x as it was", "x changed", "return a new tensor: begin with x.clone()")
    given = "what was no mask in x stays: only hidden tokens are drawn"
    kept = torch.where(before == M, got, before) if torch.is_tensor(got) and got.shape == x.shape else before
    alike(got, kept, given)
