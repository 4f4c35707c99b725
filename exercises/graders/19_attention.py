"""The claims of lesson 19, beside PyTorch's attention, model.Attention and mdlm.hidden_nll."""

import torch
import torch.nn.functional as F
import toy
from checks import alike, generator, kind, true

import mdlm

B, H, T, D = 3, 2, 6, 4
BOTH = "everybody sees everybody: drop the triangle that hides the future"
SCALE = "the scores are divided by the square root of D, the channels of a head"
AXIS = "the softmax is over the keys, the last dimension of the scores: the weights of a query sum to 1"
KEYS = "padding is seen by nobody: the scores of its keys (columns; not of queries, rows) are -inf before the softmax"


def qkv(seed=0):
    return torch.randn(3, B, H, T, D, generator=generator(seed), dtype=torch.float64)


def padded():
    return torch.arange(T) < torch.tensor([T, 4, 2])[:, None]


def looked(my, q, k, v, real):
    """What attention returns, or Wrong where it has another shape."""
    got = my.attention(q.clone(), k.clone(), v.clone(), real.clone())
    like = "shape and dtype are said in the function's docstring"
    true(torch.is_tensor(got) and got.shape == v.shape and got.dtype == v.dtype, kind(v), kind(got), like)
    return got


def seen(my, real):
    """bool (B, T, T): whether output i changes with the value at j."""
    q, k, v = qkv()
    before, columns = looked(my, q, k, v, real), []
    for j in range(T):
        other = v.clone()
        other[:, :, j] += 1
        columns.append((looked(my, q, k, other, real) - before).abs().amax((1, 3)) > 1e-9)
    return torch.stack(columns, -1)


def claim_sees(my):
    """every output changes with every token's value: the past's, the future's, its own"""
    everybody = torch.ones(B, T, T, dtype=torch.bool)
    mistakes = [(everybody.tril(), BOTH), (everybody.triu(), BOTH)]
    alike(seen(my, everybody[:, 0]), everybody, "which keys have the weight 0, and should not?", mistakes)


def claim_padding(my):
    """padding is seen by nobody, and what is seen weighs as if the padding were not there"""
    real = padded()
    alike(seen(my, real), real[:, None].expand(-1, T, -1), KEYS, what="who sees whom")
    q, k, v = qkv()
    scores, keys = q @ k.mT / D**0.5, real[:, None, None]
    rest = "the weights of the real tokens sum to 1: hide the padding before the softmax, not behind it"
    mistakes = [
        (scores.softmax(-1) * keys @ v, rest),
        (scores.masked_fill(~keys, 0).softmax(-1) @ (v * real[:, None, :, None]), rest),
        (scores.softmax(-1) @ v, KEYS),
    ]
    want = F.scaled_dot_product_attention(q, k, v, keys)
    alike(my.attention(q, k, v, real), want, KEYS, mistakes, what="the result")


def claim_attention(my):
    """the result is PyTorch's F.scaled_dot_product_attention, and model.Attention's"""
    q, k, v = qkv(1)
    real = torch.ones(B, T, dtype=torch.bool)
    scores = q @ k.mT
    mistakes = [
        (scores.softmax(-1) @ v, SCALE),
        ((scores / D).softmax(-1) @ v, SCALE),
        ((scores * D**0.5).softmax(-1) @ v, SCALE),
        ((scores / T**0.5).softmax(-1) @ v, SCALE),
        ((scores / D**0.5).softmax(-2) @ v, AXIS),
        (F.scaled_dot_product_attention(q, k, v, is_causal=True), BOTH),
    ]
    alike(my.attention(q, k, v, real), F.scaled_dot_product_attention(q, k, v), "softmax(q k^T / sqrt(D)) v", mistakes)
    layer = toy.transformer(qk_norm=False, position="none").blocks[0].attn
    x, real = torch.randn(B, T, 16, generator=generator(2), dtype=torch.float64), padded()
    with torch.no_grad():
        q, k, v = (part(x).view(B, T, 2, 8).transpose(1, 2) for part in (layer.q, layer.k, layer.v))
        out = layer.out(looked(my, q, k, v, real).transpose(1, 2).reshape(B, T, 16))
        alike(
            out,
            layer(x, real[:, None, None].expand(-1, -1, T, -1), False, None, None, None),
            KEYS,
            what="inside model.Attention",
        )


def task():
    """x0, hidden: one row without a hole, one that is all holes."""
    hidden = torch.rand(4, 8, generator=generator(3)) < 0.4
    hidden[0], hidden[1] = False, True
    return toy.texts(4, 8), hidden


def claim_scored(my):
    """the network reads the text with holes; only the outputs at holes are scored, by the tokens that were there"""
    x0, hidden = task()
    before = x0.clone()
    got = my.scored(x0, hidden, toy.M)
    true(torch.equal(x0, before), "x0 as it was", "x0 changed", "return new inputs; torch.where makes them")
    three = isinstance(got, tuple) and len(got) == 3
    true(three, "a tuple of three: inputs, rows, targets", kind(got), "return inputs, rows, targets")
    xt, rows = torch.where(hidden, toy.M, x0), hidden.flatten().nonzero()[:, 0]
    read = "the input is x0 with mask_id at the hidden places"
    mistakes = [(x0, "the network must not read the answer: " + read), (torch.where(hidden, x0, toy.M), read)]
    alike(got[0], xt, read, mistakes, what="inputs")
    place = "no shift: a hole is scored by its own output, and nothing else is scored"
    true(torch.is_tensor(got[1]), "rows: a tensor", kind(got[1]), place)
    other = [
        (len(x0) * 8, "only the outputs at hidden places are scored"),
        (int((~hidden).sum()), "only the outputs at hidden places are scored, not those at the visible"),
        (len(x0) * 7, place),
    ]
    for n, said in other:
        true(got[1].shape != (n,), f"rows: {len(rows)} outputs scored", f"{n}", said)
    alike(got[1], rows, place, [((rows - 1) % 32, place)], what="rows")
    own = "the target is the token of x0 that was hidden, at its own place: no shift"
    mistakes = [
        (xt.flatten()[rows], "the target is the token of x0, not the mask"),
        (x0.roll(-1, 1).flatten()[rows], own),
    ]
    alike(got[2], x0.flatten()[rows], own, mistakes, what="targets")


def claim_nll(my):
    """with the network's logits it is mdlm.hidden_nll: one number for each hole, the mask token excluded"""
    x0, hidden = task()
    net = toy.transformer()
    xt, rows = torch.where(hidden, toy.M, x0), hidden.flatten().nonzero()[:, 0]
    with torch.no_grad():
        logits, want = net(xt), mdlm.hidden_nll(net, xt, x0, hidden, toy.M)
    flat, targets = logits.flatten(0, 1)[rows], x0.flatten()[rows]
    whole = F.cross_entropy(flat, targets, reduction="none")
    mask = "the mask is no answer: its logit is -inf before the softmax"
    before = logits.clone()
    got = my.nll(logits, rows, targets, toy.M)
    true(torch.equal(logits, before), "logits as they were", "logits changed", "change a copy of the chosen rows")
    each = "one number for each target: neither sum nor mean"
    true(not (torch.is_tensor(got) and got.dim() == 0), kind(want), "one number", each)
    zero = flat.index_fill(1, torch.tensor([toy.M]), 0)
    mistakes = [
        (whole, mask),
        (F.cross_entropy(zero, targets, reduction="none"), mask),
        (-want, "the sign: -log p"),
    ]
    alike(got, want, "-log_softmax at the target, of the logits at rows", mistakes)
