"""The claims of lesson 10, beside the toy of tests/book."""

import math

import torch
import toy
from checks import alike

M, X = toy.MASK, toy.STRINGS


def claim_unit(my):
    """bits_per_byte divides by ln 2, and by the bytes of the text in UTF-8"""
    for text, tokens in (("the quick brown fox", 5), ("Größe: 3 µm", 6), ("東京は夜の七時", 9)):
        n, bits = len(text.encode()), 1.7 * tokens / math.log(2)
        mistakes = [
            (bits / len(text), "bytes are not characters: encode the text"),
            (1.7 * tokens / n, "nats are not bits: divide by ln 2"),
            (1.7 / math.log(2) / n, "nats per token: multiply by the number of tokens"),
            (bits / 4.3, "no number of bytes may be written in: count them"),
            (bits / tokens, "bits per byte, not per token"),
            (1.7 * tokens * math.log(2) / n, "a nat is more than a bit: 1 / ln 2 of them"),
            (bits * n, "divide by the number of bytes"),
        ]
        alike(my.bits_per_byte(1.7, tokens, text), bits / n, "see the equation", mistakes, what=repr(text))


def at(t, drop_weight=False, flat=False, comb=False):
    """g(t) of the toy's model; without 1/t; without the chances of the sets; with a number of sets for each set."""
    k = toy.SIZES.double()
    chance = torch.ones(16).double() / 16 if flat else t**k * (1 - t) ** (4 - k)
    chance = chance * torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]).double()[toy.SIZES] if comb else chance
    return (chance * toy.subset_ce(toy.ARBITRARY, X)).sum(1) / (1 if drop_weight else t)


def claim_one_rate(my):
    """one_rate weighs each set of hidden places by its chance at this rate, and by 1/t"""
    for t in (0.15, 0.5, 0.8):
        mistakes = [
            (at(t, drop_weight=True), "a mask at time t weighs 1/t"),
            (at(t, flat=True), "how likely is each set at the rate t? each place is hidden with probability t"),
            (at(1 - t) * (1 - t) / t, "a place is hidden with probability t, not 1 - t"),
            (at(t) / 4, "nats per row, not per token"),
            (at(t) / (1 - (1 - t) ** 4), "the empty set counts, as 0"),
            (at(t, comb=True), "each set by itself: n over k is how many of its size there are"),
        ]
        hint = "the sum over all sets: chance times CE, over t"
        alike(my.one_rate(toy.ARBITRARY, X.clone(), t, M), at(t), hint, mistakes, what=f"t = {t}")


def claim_some(my):
    """some_rates is the mean over the rates, and over many of them the bound"""
    times = [0.1, 0.3, 0.5, 0.7, 0.9]
    want = torch.stack([at(t) for t in times]).mean(0)
    mistakes = [
        (want * 5, "the mean, not the sum"),
        (at(0.5), "the mean of g at the rates, not g at their mean"),
        (sum(at(t) * t for t in times) / sum(times), "g has its 1/t already: a plain mean"),
    ]
    alike(my.some_rates(toy.ARBITRARY, X.clone(), times, M), want, "the mean of g over the rates", mistakes)
    many = [(i + 0.5) / 50 for i in range(50)]
    exact = toy.exact_nelbo(toy.ARBITRARY, X)
    alike(
        my.some_rates(toy.ARBITRARY, X.clone(), many, M),
        exact,
        "the mean over however many rates there are",
        tolerance=1e-4,
        what="50 rates",
    )


def claim_below(my):
    """at the rate 0.15 the model that knows the truth seems to need less than the entropy"""
    k = toy.SIZES
    want = ((0.15 ** k.double() * 0.85 ** (4 - k.double())) * toy.subset_ce(toy.EXACT, X)).sum(1) / 0.15
    got = my.one_rate(toy.EXACT, X.clone(), 0.15, M)
    alike(got, want, "see one_rate")
    alike(bool((toy.DATA * got).sum() < toy.ENTROPY) * 1.0, 1.0, "see one_rate", what="below the entropy")
