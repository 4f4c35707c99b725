"""The claims of lesson 24, beside model.Transformer, convert_ar.give_row and noise.see_ahead."""

import torch
import toy
from checks import alike, generator, true

import convert_ar
from nanodlm import noise

RIGHT = "to the right: what stands at place i is the output before, i - 1"
FIRST = "the first token has no output before it, and keeps its own"
PLACES = "the shift is along the tokens, the second dimension"
MEAN = "the new row is the mean over all tokens, a vector of C numbers"
END = "the new row is the last: its id is V, and no other id changes"
PAST = "the past is always seen, whatever u is: chance is for what is behind"
SELF = "a token always sees itself"
LESS = "with probability chance: where u is below it"
TURNED = "rows are queries, columns keys: what is behind query i are the columns j > i"


def random(*shape, seed):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def unharmed(function, x):
    """function(x), or Wrong where it changed x."""
    before = x.clone()
    got = function(x)
    true(torch.equal(x, before), "the argument as it was", "it changed", "return a new tensor; torch.cat makes one")
    return got


def shifted(my, logits, want, what):
    first = torch.cat([torch.zeros_like(logits[:, :1]), logits[:, :-1]], 1)
    mistakes = [
        (logits.roll(1, 1), FIRST),
        (first, FIRST),
        (torch.cat([logits[:, :1] - torch.inf, logits[:, :-1]], 1), FIRST),
        (torch.cat([logits[:, 1:], logits[:, -1:]], 1), RIGHT),
        (logits.roll(-1, 1), RIGHT),
        (logits, RIGHT),
        (torch.cat([logits[..., :1], logits[..., :-1]], -1), PLACES),
        (logits.roll(1, -1), PLACES),
        (torch.cat([logits[:1], logits[:-1]], 0), PLACES),
    ]
    if torch.is_tensor(got := unharmed(my.shift, logits)) and got.shape == logits[:, 1:].shape:
        true(False, f"{logits.shape[1]} places", f"{logits.shape[1] - 1}", FIRST)
    alike(got, want, RIGHT, mistakes, what=what)


@torch.no_grad()
def claim_shift(my):
    """shifted outputs are those of model.Transformer with shift=True and the same weights"""
    plain, other, x = toy.transformer(4), toy.transformer(4, shift=True), toy.texts(3, 6)
    shifted(my, plain(x), other(x), "logits")
    shifted(my, plain(x[:, :1]), other(x[:, :1]), "one token")


@torch.no_grad()
def claim_row(my):
    """the mask token's row is the mean of all, as in convert_ar.give_row, and every old token keeps its row"""
    net = toy.transformer(5)
    for name, weight in (("embedding", net.embed.weight.clone()), ("head", net.head_weight.clone())):
        if name == "embedding":
            convert_ar.give_row(net, toy.VOCAB, toy.VOCAB, "mean")  # both tables; they grow to 64 rows
        table = net.embed.weight if name == "embedding" else net.head_weight
        want = table[: toy.VOCAB + 1]
        if name == "head":
            weight = want[:-1].clone()
        mean = weight.mean(0, keepdim=True)
        mistakes = [
            (torch.cat([mean, weight]), END),
            (torch.cat([weight, mean * 0]), MEAN),
            (torch.cat([weight, weight.sum(0, keepdim=True)]), MEAN),
            (torch.cat([weight, weight.mean().expand(1, weight.shape[1])]), MEAN),
            (torch.cat([weight, weight[-1:]]), MEAN),
        ]
        got = unharmed(my.add_mask_row, weight)
        alike(got, want, "all old rows, then their mean", mistakes, what=name)
    square = random(5, 5, seed=1)  # where a mean over the wrong dimension would fit
    want = torch.cat([square, square.mean(0, keepdim=True)])
    wrong = torch.cat([square, square.mean(1)[None]])
    alike(my.add_mask_row(square), want, MEAN, [(wrong, MEAN)], what="V=C=5")


def looked(my, L, chance, u, want, what):
    i = torch.arange(L)
    behind, past, drawn = i > i[:, None], i <= i[:, None], u < chance
    mistakes = [
        (drawn, PAST),
        ((i < i[:, None]) | drawn, SELF),
        ((i < i[:, None]) | (behind & drawn), SELF),
        (drawn | i.eq(i[:, None]), PAST),
        (past | (u > chance), LESS),
        (past | (u >= chance), LESS),
        (past & drawn, PAST),
        (behind | drawn, TURNED),
        (~behind.T | drawn, TURNED),
        (want.T, TURNED),
        (past | drawn.T, "u[i, j] is for query i and key j"),
        (past | (u[:, :1] < chance), "each pair has its own u"),
        (past | (u[:1] < chance), "each pair has its own u"),
    ]
    alike(unharmed(lambda u: my.anneal(L, chance, u), u), want, PAST, mistakes, what=what)


def claim_chance(my):
    """who sees whom is what noise.see_ahead draws: the past always, what is behind with the chance"""
    for L, chance, seed in ((7, 0.5, 1), (12, 0.2, 2), (9, 0.8, 3)):
        i = torch.arange(L)
        u, want = noise.uniform(seed, 7, i[:, None], i), noise.see_ahead(None, chance, seed, L, "cpu")[0]
        looked(my, L, chance, u, want, f"L={L}, chance={chance}")


@torch.no_grad()
def claim_ends(my):
    """at chance 0 a network is causal, as it was, and at 1 it is bidirectional"""
    x = toy.texts(2, 6)
    i, u = torch.arange(6), torch.rand(6, 6, generator=generator(7), dtype=torch.float64)
    u[0, 3] = 0.0  # which is below no chance of 0
    looked(my, 6, 0.0, u, i <= i[:, None], "chance=0")
    looked(my, 6, 1.0, u, torch.ones(6, 6, dtype=torch.bool), "chance=1")
    for chance, causal in ((0.0, True), (1.0, False)):
        net = toy.transformer(6, causal=causal)
        mask = my.anneal(6, chance, u)[None]
        alike(net(x, mask=mask), net(x), PAST, what=f"logits at chance={chance}")
