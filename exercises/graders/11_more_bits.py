"""The claims of lesson 11, beside the toy of tests/book and mdlm.log_likelihood."""

import torch
import toy
from checks import ELSEWHERE, alike, mask_first, true

import mdlm

M, X = toy.MASK, toy.STRINGS


def claim_causal(my):
    """left_to_right predicts each token from those before it alone, as mdlm.log_likelihood does"""
    options = mdlm.LikelihoodOptions(method="left_to_right")
    want = -mdlm.log_likelihood(toy.ARBITRARY, [X[0, :0]] * 16, list(X), options, mask_id=M)
    one_hidden = torch.stack([toy.subset_ce(toy.ARBITRARY, X)[:, 8 >> i] for i in range(4)]).sum(0)
    mistakes = [
        (toy.subset_ce(toy.ARBITRARY, X)[:, 15], "what has been predicted is known from then on"),
        (one_hidden, "tokens behind the predicted one are masks: here nobody sees ahead"),
        (-toy.chain_rule(toy.ARBITRARY, X, [3, 2, 1, 0]), "from left to right"),
        (-want, "-log p is positive"),
        (want / 4, "the sum over tokens, not the mean"),
    ]
    hint = "token i from the tokens before it; the mask's logit left out"
    alike(my.left_to_right(toy.ARBITRARY, X.clone(), M), want, hint, mistakes)


def chain(s, behind=False):
    """What refined gives for the set s of hidden places; or where all behind the predicted one is hidden."""
    x, total = torch.where(s, M, X), torch.zeros(16).double()
    for i in s.nonzero()[:, 0].tolist():
        seen = x.masked_fill(torch.arange(4) > i, M) if behind else x
        total -= toy.ARBITRARY(seen)[:, i, :M].log_softmax(-1).gather(1, X[:, i : i + 1])[:, 0]
        x[:, i] = X[:, i]
    return total


def claim_refined(my):
    """refined predicts hidden tokens one after the other, each seeing the true ones before it"""
    for n in (0, 5, 7, 13, 15):
        s = toy.SUBSETS[n]
        mistakes = [
            (toy.subset_ce(toy.ARBITRARY, X)[:, n], "each sees the true tokens at the hidden places before it"),
            (-chain(s), "-log p is positive"),
            (chain(s, behind=True), "what is visible stays visible, behind the predicted token, too"),
        ]
        hint = "write each true token into the canvas before predicting the next"
        got = my.refined(toy.ARBITRARY, X.clone(), s.clone(), M)
        alike(got, chain(s), hint, mistakes, what=f"hidden {s.long().tolist()}")


def claim_any_mask(my):
    """the mask may be any id: here it is 0, and the letters are 1 and 2"""
    model, want = mask_first(toy.ARBITRARY, M), -toy.chain_rule(toy.ARBITRARY, X, range(4))
    alike(my.left_to_right(model, X + 1, 0), want, ELSEWHERE, what="left_to_right")
    alike(my.refined(model, X + 1, toy.SUBSETS[13], 0), chain(toy.SUBSETS[13]), ELSEWHERE, what="refined")


def claim_below(my):
    """with the weights of the bound it falls below the entropy, for the model that knows the truth"""
    w = torch.tensor([0, 1 / 4, 1 / 12, 1 / 12, 1 / 4]).double()[toy.SIZES]
    values = [my.refined(toy.EXACT, X.clone(), s.clone(), M) for s in toy.SUBSETS]
    shapes = all(torch.is_tensor(v) and v.shape == (16,) for v in values)
    true(shapes, "16 numbers", "something else", "float64 (B,), also where nothing is hidden")
    got = float((toy.DATA[None] * w[:, None] * torch.stack(values)).sum())
    true(got < toy.ENTROPY - 0.1, f"less than the entropy, {toy.ENTROPY:.4f}", f"{got:.4f}", "see the claim before")


SHAPES = [(10, 4, 2), (10, 4, 4), (10, 4, 1), (3, 8, 2), (9, 4, 3), (1, 4, 2), (1000, 64, 48)]


def right(length, size, stride):
    out, end = [(0, 0, min(size, length))], min(size, length)
    while end < length:
        first, end = end, min(end + stride, length)
        out.append((max(0, end - size), first, end))
    return out


def claim_once(my):
    """windows score every token exactly once, the first ones of the text, too"""
    for shape in SHAPES:
        got = my.windows(*shape)
        hint = "the first window scores from 0; each other one from where the one before ended"
        ok = isinstance(got, list) and all(isinstance(w, tuple | list) and len(w) == 3 for w in got)
        true(ok, "a list of (begin, first, end)", str(got)[:80], "see the docstring")
        scored = [i for _, first, end in got for i in range(first, end)]
        missing, twice = set(range(shape[0])) - set(scored), len(scored) - len(set(scored))
        said = f"windows{shape}: {len(missing)} tokens never scored, {twice} more than once"
        true(sorted(scored) == list(range(shape[0])), f"windows{shape}: each token once", said, hint)


def claim_context(my):
    """windows have at most `size` tokens, score at most `stride` new ones, and have all the context that fits"""
    for shape in SHAPES:
        got, want = [tuple(w) for w in my.windows(*shape)], right(*shape)
        hint = "a window ends behind the last token it scores, and begins `size` tokens before that"
        true(got == want, f"windows{shape} = {want[:3]}…", f"{got[:3]}…", hint)
