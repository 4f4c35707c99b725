"""The claims of lesson 21, beside model.KVCache and PyTorch's attention."""

import torch
import torch.nn.functional as F
from checks import alike, generator, kind, true

from model import Config, KVCache

B, H, S, D = 3, 2, 8, 4
PLACE = "each token goes to the slot that its position says, whatever is filled"
PADDING = (
    "padding has a negative position and goes nowhere; as an index, -1 would be the last slot, clamped to 0 the first"
)
ROWS = "each row has its own positions"
KEEP = "slots to which no token goes keep what they had, in the store and in filled"
NEW = "what comes back is the store with the new tokens in it"
FILLED = "only filled slots are seen: the scores of the others are -inf before the softmax"
# Calls one after another: three prompts of different lengths, tokens behind them, a block over some, a gap.
CALLS = [
    [[0, 1, 2, 3], [0, 1, -1, -1], [0, 1, 2, -1]],
    [[4, 5], [2, 3], [3, -1]],
    [[4, 5], [3, 2], [-1, 1]],
    [[7], [6], [-1]],
]


def random(*shape, seed):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def written(store, filled, positions, new, where=lambda b, p: (b, p)):
    """The store and filled, token by token; where(row, position) says to which row and slot, or None."""
    store, filled = store.clone(), filled.clone()
    for b, row in enumerate(positions.tolist()):
        for t, p in enumerate(row):
            to = where(b, p)
            if to is not None:
                store[to[0], :, to[1]], filled[to[0], to[1]] = new[b, :, t], True
    return store, filled


def compare(my, store, filled, positions, new, want):
    """Fail unless write gives this store and filled; it returns them, as far as they are right."""
    before = store.clone(), filled.clone()
    got = my.write(store, filled, positions.clone(), new.clone())
    same = torch.equal(store, before[0]) and torch.equal(filled, before[1])
    true(same, "store and filled as they were", "one of them changed", "write into a copy, and return that")
    pair = isinstance(got, tuple | list) and len(got) == 2
    true(pair, "two tensors: store, filled", kind(got), "return store, filled")

    def behind(b, p):  # appended, whatever the position says
        count[b] += p >= 0
        return (b, count[b] - 1) if p >= 0 and count[b] <= S else None

    count = filled.sum(1).tolist()
    empty = written(store * 0, filled & False, positions, new, lambda b, p: (b, p) if p >= 0 else None)
    first = written(store, filled, positions[:1].expand(B, -1), new, lambda b, p: (b, p) if p >= 0 else None)
    mistakes = [
        (written(store, filled, positions, new), PADDING),
        (written(store, filled, positions, new, lambda b, p: (b, max(p, 0))), PADDING),
        (written(store, filled, positions, new, behind), PLACE),
        (first, ROWS),
        (empty, KEEP),
    ]
    for i, (name, hint) in enumerate(
        (("store", PLACE), ("filled", "what was filled stays so, and what is written is"))
    ):
        found = [((store, filled)[i], (NEW, "the slots that were written are filled now")[i])]
        found += [(pair[i], said) for pair, said in mistakes]
        alike(got[i], want[i], hint, found, what=name)
    return got


def oracle():
    return KVCache(Config(vocab_size=1, n_layer=1, n_head=H, n_embd=H * D), B, S, dtype=torch.float64)


def run(my, calls):
    cache = oracle()
    store, filled = torch.zeros(B, H, S, D).double(), torch.zeros(B, S, dtype=torch.bool)
    for i, positions in enumerate(torch.tensor(c) for c in calls):
        new = random(B, H, positions.shape[1], D, seed=i)
        cache.write(0, cache.reserve(positions, None), new, new)
        store, filled = compare(
            my, store, filled, positions, new, (cache.k[0][:, :S].transpose(1, 2), cache.filled[:, :S])
        )


def claim_append(my):
    """tokens go to the slots of their positions, as in model.KVCache"""
    run(my, [[[0, 1, 2]] * B, [[3]] * B, [[7, 4], [4, 5], [6, 5]]])


def claim_overwrite(my):
    """what was there is replaced, and all other slots stay as they were"""
    run(my, [[[0, 1, 2, 3]] * B, [[2, 3]] * B, [[3, 2], [0, 1], [1, 4]]])


def claim_ragged(my):
    """rows may bring different numbers of tokens: padding goes nowhere, and no slot is harmed"""
    run(my, CALLS)
    full, all_filled = random(B, H, S, D, seed=9), torch.ones(B, S, dtype=torch.bool)
    positions = torch.full((B, 2), -1)
    compare(my, full, all_filled, positions, random(B, H, 2, D, seed=8), (full.clone(), all_filled.clone()))


def claim_attend(my):
    """a query sees all filled slots of its row, wherever they are, and no empty one"""
    q, k, v = random(B, H, 3, D, seed=1), random(B, H, S, D, seed=2), random(B, H, S, D, seed=3)
    filled = torch.rand(B, S, generator=generator(4)) < 0.5
    filled[:, 5], filled[2] = True, True
    scores, slots = q @ k.mT, filled[:, None, None]
    prefix = torch.arange(S) < filled.sum(1)[:, None, None, None]
    wrong = [
        (F.scaled_dot_product_attention(q, k, v), FILLED),
        ((scores / D**0.5).masked_fill(~slots, 0).softmax(-1) @ v, FILLED),
        ((scores / D**0.5).softmax(-1) * slots @ v, FILLED),
        (
            F.scaled_dot_product_attention(q, k, v, prefix),
            "filled slots need not be the first: look where filled is True",
        ),
        (scores.masked_fill(~slots, -torch.inf).softmax(-1) @ v, "the scores are divided by the square root of D"),
        (F.scaled_dot_product_attention(q, k, v, filled[:1, None, None]), ROWS),
    ]
    alike(my.attend(q, k, v, filled), F.scaled_dot_product_attention(q, k, v, slots), FILLED, wrong)


def claim_same(my):
    """token by token is one causal pass, and block by block, each written twice, is a block-causal one"""
    q, k, v = (random(B, H, S, D, seed=i) for i in range(3))
    place = torch.arange(S)
    for size, name in ((1, "token by token"), (2, "blocks of 2")):
        keys, values = torch.zeros_like(k), torch.zeros_like(v)
        filled, want = torch.zeros(B, S, dtype=torch.bool), []
        seen = place // size <= place[:, None] // size
        want = F.scaled_dot_product_attention(q, k, v, seen)
        for i in range(0, S, size):
            part, where = slice(i, i + size), place[i : i + size].expand(B, -1)
            for draft in (random(B, H, size, D, seed=7), None)[size == 1 :]:  # what is overwritten must leave no trace
                new_k, new_v = (k[:, :, part], v[:, :, part]) if draft is None else (draft, draft)
                keys, now = compare(my, keys, filled, where, new_k, written(keys, filled, where, new_k))
                values, filled = compare(my, values, filled, where, new_v, written(values, filled, where, new_v))
            got = my.attend(q[:, :, part], keys, values, now)
            alike(got, want[:, :, part], "a query sees what is filled by then: the past, and its own block", what=name)
