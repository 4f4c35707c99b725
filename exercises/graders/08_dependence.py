"""The claims of lesson 8, beside the toy of tests/book, by enumeration."""

import torch
import toy
from checks import alike, true

P, WORDS = toy.DATA, toy.STRINGS


def weights(words):
    """Every set of places that is not empty, and its weight."""
    n = words.shape[1]
    sets = toy.listing(2, n).bool()[1:]
    k = sets.sum(1).double()
    return sets, (k.lgamma() + (n - k + 1).lgamma() - torch.tensor(n + 1.0).double().lgamma()).exp()


def joint(p, words, x0, hidden):
    agree = ((words == x0) | hidden).all(1)
    return -(p[(words == x0).all(1)].sum() / p[agree].sum()).log()


def claim_product(my):
    """product_nll is what a network that knows the truth has: each hidden letter by itself"""
    ce = toy.subset_ce(toy.EXACT, WORDS)
    for i in (0, 6, 11):
        for s in range(16):
            x0, hidden = WORDS[i], toy.SUBSETS[s]
            together = joint(P, WORDS, x0, hidden)
            marginal = -torch.stack([P[WORDS[:, j] == x0[j]].sum().log() for j in range(4)])[hidden].sum()
            mistakes = [
                (together, "that is their joint probability: here each hidden letter is predicted by itself"),
                (marginal, "given the visible letters: only words that agree with them are possible"),
                (-ce[i, s], "-log p is positive"),
            ]
            what = f"word {x0.tolist()}, hidden {hidden.long().tolist()}"
            hint = "the words that agree with what is visible; among them those that have the letter"
            alike(my.product_nll(P, WORDS, x0.clone(), hidden.clone()), ce[i, s], hint, mistakes, what=what)


def claim_joint(my):
    """joint_nll is -log of what share of the words that agree with the visible letters is x0"""
    for i in (0, 6, 11):
        for s in range(16):
            x0, hidden = WORDS[i], toy.SUBSETS[s]
            mistakes = [
                (-P[i].log(), "given the visible letters: divide by the probability of all words that agree with them"),
                (toy.subset_ce(toy.EXACT, WORDS)[i, s], "together, not letter by letter"),
            ]
            what = f"word {x0.tolist()}, hidden {hidden.long().tolist()}"
            hint = "p(x0) by the probability of all words that agree with its visible letters"
            got = my.joint_nll(P, WORDS, x0.clone(), hidden.clone())
            alike(got, joint(P, WORDS, x0, hidden), hint, mistakes, what=what)


def claim_expected(my):
    """expected_loss weighs sets as lesson 5 does, and words by their probability"""

    def nll(p, words, x0, hidden):  # of no meaning
        return (x0 + 1.0 + hidden * 2.0).double().log().sum() * hidden.sum()

    sets, w = weights(WORDS)
    values = torch.stack([torch.stack([nll(P, WORDS, x, s) for s in sets]) for x in WORDS])
    want = (P[:, None] * w * values).sum()
    mistakes = [
        ((w * values).sum(1).mean(), "the words are not equally likely: weigh them by p"),
        ((w * values).sum(), "weigh the words by p"),
        ((P[:, None] * values).mean(1).sum(), "sets weigh differently, by how many places they hide"),
        ((P[:, None] * values).sum(), "sets weigh differently, by how many places they hide"),
        (want / 4, "for a word, not for a letter"),
        ((P[:, None] * values / sets.sum(1)).sum(), "1/k is the weight of all sets of k places together (lesson 5)"),
        (
            (P[:, None] * values / sets.sum(1) / 4).sum(),
            "there are n over k sets of k places, and 1/k is for all of them",
        ),
    ]
    alike(my.expected_loss(P, WORDS, nll), want, "which sets, which weights, which words?", mistakes)


def claim_caught(my):
    """each by itself the loss is the entropy; together it is below: caught"""
    got = my.expected_loss(P, WORDS, my.product_nll)
    alike(got, toy.ENTROPY, "see the claims before", what="each by itself")
    sets, w = weights(WORDS)
    want = sum(P[i] * w[j] * joint(P, WORDS, x, s) for i, x in enumerate(WORDS) for j, s in enumerate(sets))
    got = my.expected_loss(P, WORDS, my.joint_nll)
    alike(got, want, "see the claims before", what="together")
    true(got < toy.ENTROPY - 0.1, f"less than the entropy, {toy.ENTROPY:.4f}", f"{got:.4f}", "see the claims before")
