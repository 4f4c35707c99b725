"""The claims of lesson 17, beside decode.guide, mdlm.generate and fast_mdlm.generate."""

import torch
import toy
from checks import alike, generator, true

import mdlm
from nanodlm import decode, fast_mdlm, noise

M, NET = toy.M, toy.NETS["learned"]  # learned positions: no two places look alike
SIDES = "the model is asked about the whole canvas: a hole sees what is given on both sides"
REVEALED = "what was revealed since stays in both canvases: mask what was given, and only that"
MASKED = "guide first; then the mask's logit is -inf, for the order as well as for the draw"
GIVEN = "what is no mask in x is given, and stays"


@torch.no_grad()
def model(canvases):
    return NET(canvases)


def numbers(seed):
    """uniform(step, which) of row 0, as the samplers draw them."""
    return lambda step, which: noise.uniform(seed, 0, step, which, torch.arange(10))


def canvas(seed=0):
    """Ten places of which the second, sixth and tenth are given, and one more."""
    x = torch.full((10,), M)
    x[1::4] = torch.tensor([7, 8, 9])[: len(x[1::4])]
    x[9], x[2 + seed % 3] = 3, 10
    return x


def variant(x, scale, uniform, plain=False, blank=False, masked=True, greedy=False, left=False, least=False):
    """What typical mistakes make of a canvas."""
    x, given, k = x.clone(), x != M, 0
    while (x == M).any():
        other = torch.full_like(x, M) if blank else torch.where(given, M, x)
        cond, un = model(torch.stack([x, other]))
        logits = cond if plain else un + (scale + 1) * (cond - un)
        excluded = logits.index_fill(1, torch.tensor([M]), -torch.inf)
        p = (excluded if masked else logits).softmax(1).amax(1)
        p = torch.where(x == M, -p if least else p, -9.0)
        i = int((x == M).long().argmax() if left else p.argmax())
        x[i] = excluded[i].argmax() if greedy else noise.draw(excluded[i : i + 1], uniform(k, 1)[i : i + 1])[0]
        k += 1
    return x


def mistakes(*case):
    if case[1] != 0:  # at scale 0 the logits are those of the canvas, whatever the other one is
        yield variant(*case, plain=True), "the logits that decide are the guided ones"
        yield variant(*case, blank=True), REVEALED
    yield variant(*case, masked=False), MASKED
    yield variant(*case, greedy=True), "the token is drawn, with uniform(k, 1): the most probable one is greedy"
    yield variant(*case, left=True), "the surest hole goes first, not the leftmost"
    yield variant(*case, least=True), "the surest hole goes first: the largest probability"


def claim_guide(my):
    """guide is LLaDA's: scale 0 gives cond, scale -1 uncond, and decode.guide the rest"""
    cond, uncond = torch.randn(2, 6, 9, generator=generator(1), dtype=torch.float64)
    convention = "in LLaDA's convention scale 0 is the model itself: the difference counts scale + 1 times"
    for scale in (1.5, 0.0, -1.0, 0.5):
        swapped = "from uncond towards cond, and beyond: which of the two is subtracted?"
        found = [
            (uncond + scale * (cond - uncond), convention),
            (cond + (scale + 1) * (cond - uncond), "begin at uncond"),
            (cond + (scale + 1) * (uncond - cond), swapped),
            (uncond + (scale + 1) * (uncond - cond), swapped),
        ]
        want = decode.guide(torch.cat([cond, uncond]), scale)
        alike(my.guide(cond.clone(), uncond.clone(), scale), want, convention, found, what=f"scale {scale}")


def claim_without_prompt(my):
    """without_prompt masks what was given, and leaves what was revealed since"""
    x = canvas()
    given = x != M
    x[[3, 7]] = torch.tensor([6, 11])
    before = x.clone()
    got = my.without_prompt(x, given, M)
    true(torch.equal(x, before), "x as it was", "x changed", "return a new tensor; torch.where makes one")
    found = [
        (torch.full_like(x, M), REVEALED),
        (torch.where(given, before, M), "the other way round: what was given is masked"),
        (before, "what was given becomes the mask"),
    ]
    alike(got, torch.where(given, M, before), REVEALED, found)


def claim_infill(my):
    """with scale 0 it writes, token for token, what mdlm.generate writes into holes"""
    for seed in range(2):
        x, uniform = canvas(seed), numbers(seed)
        want = mdlm.generate(NET, [x], mdlm.SampleOptions(0, seed=seed), mask_id=M).tokens[0]
        alike(my.infill(model, x.clone(), 0.0, uniform, M), want, SIDES, mistakes(x, 0.0, uniform))


def claim_guided(my):
    """with guidance it writes, token for token, what fast_mdlm.generate writes with cfg_scale"""
    for seed, scale in ((0, 0.7), (0, 3.0), (1, 0.7)):
        x, uniform = canvas(seed), numbers(seed)
        want = fast_mdlm.generate(NET, [x], fast_mdlm.SampleOptions(0, seed=seed, cfg_scale=scale), mask_id=M).tokens[0]
        hint = "two questions a step: about the canvas, and about it without what was given; then guide, then the order"
        got = my.infill(model, x.clone(), scale, uniform, M)
        alike(got, want, hint, mistakes(x, scale, uniform), what=f"scale {scale}")


def claim_given(my):
    """what is given stays, and the canvas that was handed in is left as it was"""
    x = canvas()
    before = x.clone()
    got = my.infill(model, x, 1.0, numbers(5), M)
    true(torch.equal(x, before), "x as it was", "x changed", "return a new tensor: begin with x.clone()")
    kept = torch.where(before == M, got, before) if torch.is_tensor(got) and got.shape == x.shape else before
    alike(got, kept, GIVEN)
    true(not (kept == M).any(), "no masks", "masks", "go on until no hole is left: as many steps as there are masks")
