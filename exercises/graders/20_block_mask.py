"""The claims of lesson 20, beside bd3lm.attention, bd3lm.sees and bd3lm.predict."""

import torch
import toy
from checks import alike, generator, true

import bd3lm

OWN = "a noised token must not see the clean version of its own block, which is the answer: blocks before it only"
WITHIN = "within a block everybody sees everybody: compare numbers of blocks, not places"
NOISED = "the clean half sees nothing noised: it must be what it will be when generating"
TURNED = "rows are queries, columns are keys"
AGAIN = "the clean half counts its places, and so its blocks, from 0 again"
BEFORE = "of the blocks before, a noised token sees the clean versions, not the noised ones"
WHICH = "three parts: same block among the noised; earlier blocks, of noised to clean; same or earlier among the clean"


def by_rule(L, size, rule=bd3lm.sees):
    """The mask of a rule of (block of the query, whether it is clean, block of the key, whether it is clean)."""
    i = torch.arange(2 * L)
    return rule(i[:, None] % L // size, i[:, None] >= L, i % L // size, i >= L)


def mistakes(L, size):
    want, i = by_rule(L, size), torch.arange(2 * L)
    place, clean, block = i % L, i >= L, i % L // size
    q, k, clean_q, clean_k = block[:, None], block, clean[:, None], clean
    number = i // size
    again = (number == number[:, None]) & (clean_q == clean_k) | clean_k & (number < number[:, None])
    shifted = clean_k & clean_q & (number <= number[:, None]) | ~clean_k & ~clean_q & (q == k)
    return [
        (want | (clean_k & ~clean_q & (k == q)), OWN),
        (want | (clean_k & (k <= q)), OWN),
        (want & ((q != k) | (place <= place[:, None])), WITHIN),
        (want & (clean_q | (q != k) | (place <= place[:, None])), WITHIN),
        (want & (~clean_q | (q != k) | (place <= place[:, None])), WITHIN),
        (want & ((q != k) | (place == place[:, None])), WITHIN),
        (want | (clean_q & ~clean_k & (k <= q)), NOISED),
        (want | (clean_q & ~clean_k & (k < q)), NOISED),
        (want | (clean_q & ~clean_k & (k == q)), NOISED),
        (want | (~clean_q & ~clean_k & (k < q)), BEFORE),
        (want.T, TURNED),
        (again, AGAIN),
        (again & ~(~clean_q & clean_k) | (~clean_q & clean_k & (k < q)), AGAIN),
        (shifted | (~clean_q & clean_k & (number - -(-L // size) < number[:, None])), AGAIN),
    ]


def compared(my, L, size, what=""):
    alike(my.block_mask(L, size), by_rule(L, size), WHICH, mistakes(L, size), what=what or f"L={L}, size={size}")


def claim_papers(my):
    """the mask is the paper's, as bd3lm.attention has it, for blocks of 2 and of 4"""
    for L, size in ((6, 2), (12, 4)):
        compared(my, L, size)
        n = L + bd3lm.clean_length(L, size)  # it leaves out the last clean block
        kept = bd3lm.attention(L, size, torch.device("cpu"), "dense")[0][0]
        alike(my.block_mask(L, size)[:n, :n], kept, WHICH, what="without the last clean block")


def claim_short(my):
    """a last block that is shorter is a block like others"""
    for L, size in ((7, 3), (5, 4), (10, 4)):
        compared(my, L, size)


def claim_ends(my):
    """size L is masked diffusion, size 1 autoregression: each noised token sees the clean past and itself"""
    L = 5
    compared(my, L, L, "size=L")
    compared(my, L, 1, "size=1")
    past = torch.ones(L, L).tril(-1).bool()
    alike(my.block_mask(L, 1)[:L, L:], past, OWN, what="size=1, noised to clean")


def claim_positions(my):
    """both halves stand at 0 … L-1, and a network with this mask and these positions says what bd3lm.predict says"""
    for L in (1, 5):
        both = torch.arange(L)
        found = "noised and clean are versions of one text: the clean half starts at 0 again"
        alike(my.positions(L), torch.cat([both, both]), found, [(torch.arange(2 * L), found)])
    net, L, size = toy.transformer(2), 11, 4
    x0, xt = toy.texts(2, L), toy.texts(2, L, 1)
    xt[:, ::3] = toy.M
    compared(my, L, size)
    with torch.no_grad():
        mask, place = my.block_mask(L, size)[None], my.positions(L).expand(2, -1)
        logits = net(torch.cat([xt, x0], 1), mask=mask, positions=place)[:, :L].flatten(0, 1)
        want = bd3lm.predict(net, xt, x0, torch.arange(2 * L), size, toy.M)
    alike(logits.index_fill(1, torch.tensor([toy.M]), -torch.inf), want, WHICH, what="logits")


def claim_leaks(my):
    """reach follows every detour: chains of one layer, of two, of many; and the right mask has none to follow"""
    n = 12  # the longest chain has 11 layers: more than 2^3
    chain = torch.eye(n).bool() | torch.eye(n).bool().roll(1, 1)  # 0 sees 1, 1 sees 2, …, 11 sees 0
    chain[-1, 0] = False
    loose = torch.rand(n, n, generator=generator(1)) < 0.15
    for name, mask in (("a chain", chain), ("a mask in which some do not see themselves", loose)):
        one = mask | torch.eye(n).bool()
        want, two = one, (one.double() @ one.double()) > 0
        for _ in range(n):
            want = (want.double() @ one.double()) > 0
        four = (two.double() @ two.double()) > 0
        layers = "a chain may have any length: go on until nothing is new"
        found = [(mask, layers), (one, layers), (two, layers), (four, layers), (want.T, TURNED)]
        found += [(want & ~torch.eye(n).bool() | mask, "everybody knows of itself")]
        before = mask.clone()
        got = my.reach(mask)
        true(torch.equal(mask, before), "the mask as it was", "the mask changed", "work on a copy of the mask")
        alike(got, want, layers, found, what=name)
    mask = by_rule(7, 3)
    alike(my.reach(mask), mask, "a chain goes from query to key, and on from there as a query", what="the right mask")
    mask[8, 10] = True  # clean 1 looks into the next block
    one = mask.double()
    alike(my.reach(mask), (one @ one @ one) > 0, "a chain may have any length", what="clean 1 sees clean 3")
