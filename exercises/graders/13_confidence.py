"""The claims of lesson 13, beside mdlm.surest, mdlm.generate and an enumeration of all that can be drawn."""

import itertools

import torch
import toy
from checks import alike, generator, true

import mdlm
from nanodlm import noise

M, NET = toy.M, toy.NETS["learned"]  # learned positions: no two places look alike
GIVEN = "the mask's logit is -inf before anything else: it must take no probability from the tokens"
DRAWN = "the order must not look at the token that was drawn: take the largest probability of any token, then draw"
GREEDY = "the order is right, but tokens are drawn, with uniform(k, 1): the most probable one every time is greedy"
MASKS = "only hidden positions can be revealed: what is given stays, and does not count"
QUOTA = "the shares are of the n masks of x at the beginning, the same in every step, plus one in the first n % steps"
ANEW = "ask the model anew in every step: its probabilities change with what is revealed"


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


def variant(model, x, steps, uniform, mask_id, by="best", greedy=False, masked=True, stale=False, quota=None):
    """What typical mistakes make of a canvas."""
    x, n, logits = x.clone(), int((x == mask_id).sum()), None
    for k in range(steps):
        at = (x == mask_id).nonzero()[:, 0]
        if logits is None or not stale:
            logits = model(x[None])[0]
        excluded = logits.index_fill(1, torch.tensor([mask_id]), -torch.inf)
        p = (excluded if masked else logits)[at].softmax(1)
        tokens = excluded[at].argmax(1) if greedy else noise.draw(excluded[at], uniform(k, 1)[at])
        sure = p.gather(1, tokens[:, None])[:, 0] if by == "drawn" else p.amax(1)
        count = min(len(at), noise.share(n, k, steps) if quota is None else quota(n, k, steps))
        now = mdlm.surest(-sure if by == "least" else sure, count) if count else at[:0]
        x[at[now]] = tokens[now]
    return x


def path(decode, first, bits):
    """Which string a decode writes behind the given first letter, one letter a step, and how likely it is to, where
    bits (3, 4) are the letters that each step would draw at each place."""
    seen = []

    def watched(canvases):
        if not seen or not torch.equal(seen[-1], canvases[0]):
            seen.append(canvases[0].clone())
        return toy.EXACT(canvases)

    def uniform(k, which):
        return bits[k].double() * (1 - 2e-9) + 1e-9  # the least u draws a, the largest b

    word = decode(watched, toy.ids(first, *[toy.MASK] * 3), 3, uniform, toy.MASK)
    whole = torch.is_tensor(word) and word.shape == (4,) and not ((word != 0) & (word != 1)).any()
    came = f"{word.tolist() if torch.is_tensor(word) else word}, the model asked about {len(seen)}"
    true(whole and len(seen) == 3, "a string, the model asked about 3 canvases, a new one in each step", came, ANEW)
    chance = 1.0
    for canvas, would in zip(seen, bits):
        p = toy.EXACT(canvas[None])[0, :, :2].softmax(1).gather(1, would[:, None])[:, 0]
        chance *= p[canvas == toy.MASK].prod()
    return int((word * torch.tensor([8, 4, 2, 1])).sum()), chance


def outcomes(decode):
    """The distribution over the 16 strings of four letters a and b, of which the first is given (half of them begin
    with each), of a decode that reveals one a step: every letter that could be drawn at every place is tried."""
    law = torch.zeros(16, dtype=torch.float64)
    for first, *bits in itertools.product(range(2), repeat=8):
        bits = torch.tensor([[0, *bits[:3]], [0, *bits[3:6]], [0, *bits[6:] * 3]])  # in the last step one place is left
        string, chance = path(decode, first, bits)
        law[string] += chance / 4  # the first letter, and the number of the second step that is not used, are even
    return law


def claim_surest(my):
    """surest finds the largest, from left to right where they are equal, in ascending order"""
    p = (torch.rand(12, generator=generator(1), dtype=torch.float64) * 4).round() / 4  # many are equal
    least = "the largest come first, not the smallest"
    ties = "equal ones go from left to right: a stable sort keeps their order (descending=True, stable=True)"
    for count in (0, 1, 4, 7, 12):
        want = mdlm.surest(p, count) if count else torch.zeros(0, dtype=torch.int64)
        ranked = p.argsort(descending=True, stable=True)[:count]
        mistakes = [
            (ranked, "the indices are returned in ascending order"),
            (p.argsort(stable=True)[:count].sort().values, least),
            ((11 - p.flip(0).argsort(descending=True, stable=True)[:count]).sort().values, ties),
            (torch.zeros_like(want) + p.argmax(), "count of them, not always the same one"),
        ]
        alike(my.surest(p.clone(), count), want, ties, mistakes, what=f"count {count}")


def mistakes(*case):
    left = "one more in the first n % steps, not all that is left in the last"
    yield variant(*case, greedy=True), GREEDY
    yield variant(*case, by="drawn"), DRAWN
    yield variant(*case, masked=False), GIVEN
    yield variant(*case, stale=True), ANEW
    yield variant(*case, by="least"), "the surest go first: the largest probability"
    yield variant(*case, quota=lambda n, k, steps: n if k == steps - 1 else n // steps), left
    yield variant(*case, quota=lambda n, k, steps: -(-n // steps)), QUOTA


def claim_generate(my):
    """token for token what mdlm.generate writes with order="confidence", in 7, 3 and 9 steps for 7 masks"""
    hint = "follow one step by hand: how sure, who goes first, what is drawn, and at which temperature (1)"
    for steps, seed in itertools.product((7, 3, 9), range(2)):
        x, uniform = canvas(), numbers(seed)
        want = mdlm.generate(NET, [x], mdlm.SampleOptions(0, steps=steps, seed=seed), mask_id=M).tokens[0]
        case = (model, x, steps, uniform, M)
        alike(my.decode(model, x.clone(), *case[2:]), want, hint, mistakes(*case), what=f"{steps} steps")


def claim_law(my):
    """one token a step with a model that is right: the order leaves the distribution of the data as it is"""
    ends = toy.DATA.view(2, 8)
    want = (ends / ends.sum(1, keepdim=True) / 2).flatten()
    typical = ((dict(by="drawn"), DRAWN), (dict(greedy=True), GREEDY))
    found = ((outcomes(lambda *case: variant(*case, **keys)), said) for keys, said in typical)  # noqa: B023
    alike(outcomes(my.decode), want, "who goes first may depend on what is revealed, on nothing else", found)


def claim_given(my):
    """what is given stays, and the canvas that was handed in is left as it was"""
    x = canvas()
    before = x.clone()
    got = my.decode(model, x, 4, numbers(3), M)
    true(torch.equal(x, before), "x as it was", "x changed", "return a new tensor: begin with x.clone()")
    alike(
        got, torch.where(before == M, got, before) if torch.is_tensor(got) and got.shape == x.shape else before, MASKS
    )
