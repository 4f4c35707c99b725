"""The claims of lesson 23, beside model.Transformer, its KVCache, and nanodlm.fast_mdlm's dual cache."""

import copy

import torch
import toy
from checks import alike, kind, true

from nanodlm import decode, fast_mdlm

L, BLOCK = 12, torch.arange(4, 8)
SLOTS = "the positions that go with the block's tokens are those of the block; they say which slots are overwritten"
ALONE = "feed the block's tokens alone: x[:, block]"
STORED = "the tokens outside are seen by what is stored of them: pass the cache"
FULL = "the full pass is given the whole canvas and an empty cache of L slots: model.cache(B, L)"
NETS = ("plain", "gqa", "learned", "local")


def canvases():
    """x', and x: a canvas, and what it is after two tokens of the block have been revealed."""
    before = toy.texts(2, L)
    before[:, 4:] = toy.M
    after = before.clone()
    after[:, 5], after[:, 6] = 7, 9
    return before, after


def full(net, x):
    """A cache that the model itself has filled, with room behind, for tokens that go astray."""
    cache = net.cache(len(x), L + 8)
    cache.visible = slice(0, L + 8)
    logits = net(x, positions=torch.arange(L).expand(len(x), -1), cache=cache)
    return cache, logits


def right(net, x, cache):
    return net(x[:, BLOCK], positions=BLOCK.expand(len(x), -1), cache=cache)


def two(got):
    """Wrong unless refresh returned two things."""
    pair = isinstance(got, tuple | list) and len(got) == 2
    true(pair, "two: cache, logits", kind(got), "return cache, logits")
    true(hasattr(got[0], "filled"), "a KVCache first", kind(got[0]), "return cache, logits")
    return got


@torch.no_grad()
def claim_refresh(my):
    """refresh stores every position of the canvas, and gives the logits of a full pass"""
    x = canvases()[1]
    for name in NETS:
        net = toy.NETS[name]
        cache, logits = two(my.refresh(net, x))
        alike(logits, net(x), FULL, what=f"logits ({name})")
        filled = cache.filled[:, : cache.size]
        alike(filled, torch.ones(2, L, dtype=torch.bool), FULL, [(torch.zeros(2, L).bool(), STORED)], what="filled")
        alike(*(torch.stack(c.k)[:, :, :L] for c in (cache, full(net, x)[0])), FULL, what="keys")


@torch.no_grad()
def claim_fresh(my):
    """right after a full pass a step says what the full pass said: nothing is stale yet"""
    x = canvases()[0]
    for name in NETS:
        net = toy.NETS[name]
        compare(my, net, x, full(net, x)[0], f"{name}")
        alike(my.step(net, x, BLOCK, full(net, x)[0]), net(x)[:, BLOCK], STORED, what=f"{name}")


def mistakes(net, x, copies):
    alone, n = x[:, BLOCK], torch.arange(len(BLOCK)).expand(len(x), -1)
    yield net(x)[:, BLOCK], "the others are not read anew: " + ALONE
    yield net(alone), STORED
    yield net(alone, positions=BLOCK.expand(len(x), -1)), STORED
    yield net(alone, positions=n, cache=copies[1]), SLOTS
    if net.pos_embed is None:  # a learned position beyond the context is an error anyway
        yield net(alone, cache=copies[2]), SLOTS


def compare(my, net, x, cache, what):
    """Fail unless a step gives the right logits, and leaves the right cache."""
    copies = [copy.deepcopy(cache) for _ in range(4)]
    want = right(net, x, copies[0])
    got = my.step(net, x.clone(), BLOCK.clone(), copies[3])
    if torch.is_tensor(got) and got.shape == (len(x), L, toy.VOCAB):
        true(False, kind(want), kind(got), "logits at the positions of the block only: " + ALONE)
    alike(got, want, STORED, mistakes(net, x, copies), what=what)
    outside = [p for p in range(L) if p not in BLOCK]
    for i, name in enumerate("kv"):
        store, wanted = (torch.stack((c.k, c.v)[i]) for c in (copies[3], copies[0]))
        hint = "what is outside the block is not written: " + ALONE
        alike(store[:, :, outside], wanted[:, :, outside], hint, what=f"slots outside the block ({name})")
        hint = "the block's slots are overwritten in the cache that was given, not in a copy"
        alike(store[:, :, BLOCK], wanted[:, :, BLOCK], hint, what=f"the block's slots ({name})")
    return got, copies[3]


@torch.no_grad()
def claim_stale(my):
    """after tokens have changed a step reads the block alone: the others stay as stored, and there is a cost"""
    before, after = canvases()
    for name in NETS:
        net = toy.NETS[name]
        got, cache = compare(my, net, after, full(net, before)[0], name)
        cost = (got.log_softmax(-1) - net(after)[:, BLOCK].log_softmax(-1)).abs().max().item()
        true(cost > 1e-3, "a cost", f"{cost}", "the others are not read anew: " + ALONE)
        later = after.clone()
        later[:, 4] = 8
        compare(my, net, later, cache, f"{name}, another step")


@torch.no_grad()
def claim_exact(my):
    """with one layer, or causal attention, the cost is zero, whatever changed in the block"""
    before, after = canvases()
    nets = {
        "one layer": toy.transformer(3, n_layer=1),
        "causal, three layers": toy.transformer(3, n_layer=3, causal=True),
    }
    for name, net in nets.items():
        got, _ = compare(my, net, after, full(net, before)[0], name)
        alike(got.log_softmax(-1), net(after)[:, BLOCK].log_softmax(-1), STORED, what=f"{name}: log p")


def read(size, steps, cache):
    """The tokens that the project's sampler gives its network for a canvas of L tokens."""
    spy, o = toy.Spy(toy.PLAIN), dict(block_size=size, steps=L // size * steps, order="random", cache=cache)
    fast_mdlm.generate(spy, [toy.ids()], decode.SampleOptions(L, **o), mask_id=toy.M)
    return sum(ids.numel() for ids in spy.seen)


def claim_work(my):
    """work counts what the project's sampler reads, with cache="dual" and without"""
    cases = [(L, 6, 2), (L, 4, 1), (L, 4, 3), (L, 12, 2), (10, 4, 3), (7, 7, 5), (5, 8, 2)]
    for length, size, steps in cases:
        sizes = [min(size, length - i) for i in range(0, length, size)]
        n = len(sizes)
        want = n * steps * length, n * length + (steps - 1) * length
        if length == L:
            want = read(size, steps, "none"), read(size, steps, "dual")
        got = my.work(length, size, steps)
        what = f"L={length}, block_size={size}, steps_per_block={steps}"
        pair = isinstance(got, tuple | list) and len(got) == 2
        true(pair, "two numbers: without, with", kind(got), "return without, with")
        blocks = "there are as many blocks as it takes, the last of which may be shorter"
        wrong = [
            (want[1], "without the cache comes first"),
            (sum(sizes) * steps, "without the cache every step reads the whole canvas, not the block alone"),
            (length * steps, "every block takes steps_per_block steps"),
            (length // size * steps * length, blocks),
        ]
        alike(got[0], want[0], "L tokens in every step of every block", wrong, what=f"{what}: without")
        first = "the full pass is the first step of its block, and no step besides"
        wrong = [
            (n * length + steps * length, first),
            (length + n * (steps - 1) * size, "every block begins with a full pass"),
            (length + (n * steps - 1) * size, "every block begins with a full pass"),
            (n * length + n * (steps - 1) * size, blocks),
            (length // size * (length + (steps - 1) * size), blocks),
            (n * length * steps, "the other steps read the block's tokens alone"),
        ]
        alike(
            got[1], want[1], "a full pass for each block, then steps that read the block", wrong, what=f"{what}: with"
        )
