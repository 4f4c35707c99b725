"""The claims of lesson 9, beside toy.chain_rule, toy.exact_nelbo and mdlm.log_likelihood."""

import itertools

import torch
import toy
from checks import ELSEWHERE, alike, mask_first, true

import mdlm

M, X = toy.MASK, toy.STRINGS


def whole(model, order):
    """As in_order, of a model whose mask is an answer, too; and with the wrong letters written, or none."""
    out = {}
    for name in ("mask", "none", "best"):
        total, x = torch.zeros(16).double(), torch.full_like(X, M)
        for i in order:
            logits = model(x)[:, i, : 3 if name == "mask" else M]
            total = total + logits.log_softmax(-1).gather(1, X[:, i : i + 1])[:, 0]
            if name != "none":
                x[:, i] = logits.argmax(-1) if name == "best" else X[:, i]
        out[name] = total
    return out


def claim_order(my):
    """in_order is the chain rule, in any order"""
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]):
        wrong, want = whole(toy.ARBITRARY, order), toy.chain_rule(toy.ARBITRARY, X, order)
        inverse = sorted(range(4), key=order.__getitem__)
        mistakes = [
            (wrong["mask"], "the mask is never an answer: leave its logit out of the softmax"),
            (wrong["none"], "what has been revealed is seen from then on: write the letter before going on"),
            (wrong["best"], "x0's letter is written, whatever the model likes best"),
            (-want, "log p is negative"),
            (want / 4, "the sum over places, not the mean"),
            (toy.chain_rule(toy.ARBITRARY, X, inverse), "order[j] is the place that is revealed in step j"),
            (toy.chain_rule(toy.ARBITRARY, X, range(4)), "the order is given: it need not be left to right"),
        ]
        got = my.in_order(toy.ARBITRARY, X.clone(), list(order), M)
        alike(got, want, "one place a step, from a canvas of masks", mistakes, what=f"order {order}")


def claim_all(my):
    """averaged over all orders, -log p is the bound of lesson 5"""
    every = torch.stack([toy.chain_rule(toy.ARBITRARY, X, o) for o in itertools.permutations(range(4))])
    mistakes = [
        (-every.logsumexp(0) + torch.tensor(24.0).log(), "the mean of -log p, not -log of the mean of p"),
        (every.mean(0), "the mean of -log p, which is positive"),
        (-every.sum(0), "the mean, not the sum"),
    ]
    want = toy.exact_nelbo(toy.ARBITRARY, X)
    alike(my.all_orders(toy.ARBITRARY, X.clone(), M), want, "itertools.permutations lists all orders", mistakes)


def greedy(choose, write="answer", fixed=False, letters=M):
    """surest_first with another choice: the largest of choose(p (B, L, V), the answer's p (B, L)), (B, L)."""
    x, total, first = torch.full_like(X, M), torch.zeros(16).double(), None
    for _ in range(4):
        p = toy.ARBITRARY(x)[..., :letters].softmax(-1)
        answer = p.gather(2, X[..., None])[..., 0]
        score = choose(p, answer)
        first = score if first is None else first
        at = (first if fixed else score).masked_fill(x != M, -torch.inf).argmax(1, keepdim=True)
        total = total + answer.gather(1, at)[:, 0].log()
        x = x.scatter(1, at, (X if write == "answer" else p[..., :M].argmax(-1)).gather(1, at))
    return total


def claim_surest(my):
    """surest_first follows the sampler, as mdlm.log_likelihood does with method="confidence" """
    options = mdlm.LikelihoodOptions(method="confidence")
    want = mdlm.log_likelihood(toy.ARBITRARY, [X[0, :0]] * 16, list(X), options, mask_id=M)
    mistakes = [
        (greedy(lambda p, a: a), "the place is chosen without looking at the answer: by the most probable letter"),
        (greedy(lambda p, a: -p.amax(-1)), "the surest first: the largest probability, not the smallest"),
        (toy.chain_rule(toy.ARBITRARY, X, range(4)), "the places are not taken from left to right"),
        (greedy(lambda p, a: p.amax(-1), write="best"), "x0's letter is written, whatever the model likes best"),
        (
            greedy(lambda p, a: p.amax(-1), fixed=True),
            "ask anew in every step: what has been revealed changes the order",
        ),
        (greedy(lambda p, a: p.amax(-1), letters=3), "the mask is never an answer: leave its logit out of the softmax"),
    ]
    hint = "how sure is the model of each hidden place, and which place of a row is next?"
    alike(my.surest_first(toy.ARBITRARY, X.clone(), M), want, hint, mistakes)


def claim_any_mask(my):
    """the mask may be any id: here it is 0, and the letters are 1 and 2"""
    model, options = mask_first(toy.ARBITRARY, M), mdlm.LikelihoodOptions(method="confidence")
    order = [2, 0, 3, 1]
    alike(my.in_order(model, X + 1, order, 0), toy.chain_rule(toy.ARBITRARY, X, order), ELSEWHERE, what="in_order")
    want = mdlm.log_likelihood(toy.ARBITRARY, [X[0, :0]] * 16, list(X), options, mask_id=M)
    alike(my.surest_first(model, X + 1, 0), want, ELSEWHERE, what="surest_first")


def claim_one(my):
    """the probabilities of all texts add up to 1"""
    one = torch.tensor(1.0).double()
    alike(my.in_order(toy.ARBITRARY, X, [1, 0, 3, 2], M).exp().sum(), one, "see the claims before", what="in_order")
    got = my.surest_first(toy.ARBITRARY, X, M).exp().sum()
    alike(got, one, "whoever looks at the answer gives more than 1, or less", what="surest_first")


def claim_ties(my):
    """where the model is equally sure everywhere, places are taken from left to right"""
    flat = toy.Toy(torch.zeros(4**4, 4, 3))
    flat.table[:, :, 0] = 0.7
    seen = []

    def spy(canvases, **keys):
        seen.append(canvases.clone())
        return flat(canvases)

    my.surest_first(spy, X[:1].clone(), M)
    hidden = [int((c == M).sum()) for c in seen]
    first = [c for c, n in zip(seen, hidden) if n == 3]
    true(bool(first) and first[0][0, 0] != M, "place 0 first", "another one", "argmax takes the first of equal ones")
