"""The claims of lesson 15, beside toy.chain_rule and sums over all words."""

import itertools

import tiny
import torch
import toy
from checks import ELSEWHERE, alike, mask_first

EXCLUDED = "the mask's logit is set to -inf before the softmax, or the probabilities of the letters do not add up to 1"
EARLIER = "a group sees the letters of all earlier groups, and they are the word's own: write them into the canvas"
TOGETHER = "within a group every place sees the same canvas: its own group's letters are masks there, too"
TRUTHS = {"tiny": (tiny.truth, tiny.WORDS, tiny.P, tiny.MASK), "toy": (toy.EXACT, toy.STRINGS, toy.DATA, toy.MASK)}
FINER = [[[0, 1, 2, 3]], [[0, 1], [2, 3]], [[2], [0, 1], [3]], [[2], [1], [0], [3]]]


def entropy(p):
    return -torch.special.xlogy(p, p).sum()


def shown(p, words, places):
    """The probability of the letters that each word has at these places, (N,)."""
    same = (words[:, None, places] == words[None, :, places]).all(2)
    return same.double() @ p


def true_law(p, words, groups):
    """From the truth itself: each place given the earlier groups."""
    q, before = torch.ones_like(p), []
    for group in groups:
        for i in group:
            q = q * shown(p, words, [*before, i]) / shown(p, words, before)
        before = [*before, *group]
    return q


def variant(model, words, groups, mask_id, masked=True, write=True, whole=False):
    """What typical mistakes make of the probabilities."""
    canvas, q = torch.full_like(words, mask_id), torch.ones(len(words), dtype=torch.float64)
    for group in groups:
        logits = model(words if whole else canvas).double()
        if masked:
            logits = logits.index_fill(2, torch.tensor([mask_id]), -torch.inf)
        q = q * logits.softmax(2).gather(2, words[..., None])[:, group, 0].prod(1)
        if write:
            canvas[:, group] = words[:, group]
    return q


def mistakes(model, words, groups, mask_id):
    case = (model, words, groups, mask_id)
    singles = [[i] for group in groups for i in group]
    yield variant(*case, masked=False), EXCLUDED
    yield variant(*case, write=False), EARLIER
    yield variant(*case, whole=True), "the model must not see the letter it is asked for: begin with a canvas of masks"
    yield variant(*case).log(), "a probability, not its logarithm"
    yield variant(model, words, singles, mask_id), TOGETHER
    yield variant(model, words, groups[::-1], mask_id), "the first group of the list is revealed first"
    yield variant(model, words, sorted(groups), mask_id), "the groups come in the order of the list"


def claim_chain(my):
    """one place after the other it is the chain rule, for any model and each of the 24 orders"""
    for order in itertools.permutations(range(4)):
        want = toy.chain_rule(toy.ARBITRARY, toy.STRINGS, order).exp()
        case = (toy.ARBITRARY, toy.STRINGS, [[i] for i in order], toy.MASK)
        got = my.law(toy.ARBITRARY, toy.STRINGS.clone(), [[i] for i in order], toy.MASK)
        alike(got, want, EARLIER, mistakes(*case), what=f"order {list(order)}")


def claim_any_mask(my):
    """the mask may be any id: here it is 0, and the letters are 1 and 2"""
    groups = [[2, 0], [3], [1]]
    got = my.law(mask_first(toy.EXACT, toy.MASK), toy.STRINGS + 1, groups, 0)
    alike(got, true_law(toy.DATA, toy.STRINGS, groups), ELSEWHERE)


def claim_truth(my):
    """one at a time with the true model every order gives the truth, and costs nothing"""
    for name, (model, words, p, mask_id) in TRUTHS.items():
        for order in itertools.permutations(range(words.shape[1])):
            groups = [[i] for i in order]
            got = my.law(model, words.clone(), groups, mask_id)
            alike(got, p, EARLIER, mistakes(model, words, groups, mask_id), what=name)
            alike(my.kl(p, got), 0.0, "the price of the truth is 0", what=name)


def claim_groups(my):
    """the letters of a group are independent, given all earlier groups"""
    for model, words, p, mask_id in TRUTHS.values():
        for groups in FINER if words.shape[1] == 4 else ([[0, 1, 2]], [[1], [2, 0]], [[2, 1], [0]]):
            got = my.law(model, words.clone(), groups, mask_id)
            want = true_law(p, words, groups)
            alike(got, want, TOGETHER, mistakes(model, words, groups, mask_id), what=str(groups))


def claim_kl(my):
    """kl is the sum of p log(p / q) in nats, and 0 log 0 is 0"""
    p, q = tiny.P, true_law(tiny.P, tiny.WORDS, [[0, 1, 2]])
    nats = (p * (p / q).log()).sum()
    other = (q * (q / p).log()).sum()
    found = [
        (other, "the other direction: the average is over p, the first argument"),
        (nats / torch.tensor(2.0).log(), "nats: natural logarithms"),
        (-nats, "it is never below 0: log of p / q, not of q / p"),
        (nats / len(p), "a sum over the words, weighted by p: no mean"),
        (-(p * q.log()).sum(), "this is the cross entropy: the entropy of p has to go"),
    ]
    alike(my.kl(p.clone(), q.clone()), nats, "the sum of p log(p / q)", found)
    some = torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64)
    even = torch.full_like(some, 1 / 3)
    zero = "where p is 0 the summand is 0, not nan: torch.special.xlogy, or leave these words out"
    alike(my.kl(some, even), torch.tensor(1.5).double().log(), zero, what="with p = 0")


def claim_price(my):
    """all at once costs the total correlation, and finer groups cost less and less"""
    for name, (model, words, p, mask_id) in TRUTHS.items():
        places = range(words.shape[1])
        each = torch.stack([torch.bincount(words[:, i], weights=p) for i in places])
        sums = torch.stack([entropy(m) for m in each]).sum()
        want = sums - entropy(p)
        found = [
            (sums, "less the entropy of the words"),
            (-want, "the entropies of the places come first: it is never below 0"),
            (want / torch.tensor(2.0).log(), "nats: natural logarithms"),
            (entropy(each.mean(0)) * len(places) - entropy(p), "each place has an entropy of its own"),
        ]
        hint = "the marginal of a place: for each letter, the sum of the p of the words that have it there"
        alike(my.total_correlation(p.clone(), words.clone()), want, hint, found, what=name)
        alike(
            my.kl(p, my.law(model, words.clone(), [list(places)], mask_id)), want, TOGETHER, what=f"{name}, all at once"
        )
    model, words, p, mask_id = TRUTHS["toy"]
    for groups in FINER:
        want = sum((p * (p / true_law(p, words, groups)).log()).flatten())
        alike(my.kl(p, my.law(model, words.clone(), groups, mask_id)), want, TOGETHER, what=f"the price of {groups}")
