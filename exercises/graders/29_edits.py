"""The claims of lesson 29, by listing alignments and texts, and beside editflow.token_bound's formula."""

import copy
import itertools
import math

import torch
from checks import Wrong, alike, generator, kind, true

BLANK, KINDS = -1, ("insert", "delete", "replace")
COLUMNS = [c for c in itertools.product((BLANK, 0, 1), repeat=2) if c != (BLANK, BLANK)]  # (z, z1)
TEXTS = [t for n in range(4) for t in itertools.product(range(2), repeat=n)]
P = (1.5 * torch.randn(15, generator=generator(4)).double()).softmax(0).tolist()


def strip(z):
    return [a for a in z if a != BLANK]


def right(z, z1, count=True, same=False, own=False):
    found, place = [], 0
    for a, b in zip(z, z1):
        if a != b or same:
            found.append((KINDS[0 if a == BLANK else 1 if b == BLANK else 2], place, a if own else b))
        place += a != BLANK or not count
    return found


def alignments():
    for n in range(4):
        for columns in itertools.product(COLUMNS, repeat=n):
            yield [a for a, _ in columns], [b for _, b in columns]


def claim_outstanding(my):
    """outstanding names each column that differs once, with its kind, its place in the text and the letter to come"""
    typical = [
        (dict(count=False), "blanks are no letters: the place is counted in x, not in z"),
        (dict(same=True), "where both have the same there is nothing to do"),
        (dict(own=True), "the letter of z_1 is what comes; of a deletion it is BLANK"),
    ]
    for z, z1 in alignments():
        got, want = my.outstanding(list(z), list(z1)), right(z, z1)
        if got == want:
            continue
        hint = "go through the columns from left to right, and count the letters of z"
        for keys, said in typical:
            hint = said if got == right(z, z1, **keys) else hint
        if not isinstance(got, list):
            raise Wrong("a list of tuples", kind(got), "what is returned is said in the function's docstring")
        raise Wrong(f"{want} for z = {z}, z_1 = {z1}", got, hint)


def cases():
    """(x, edits): of all short texts, some edits, in an order that is not that of places."""
    for x in TEXTS:
        each = [[None, ("delete", i, BLANK), ("replace", i, 1 - x[i])] for i in range(len(x))]
        for n, (some, new) in enumerate(itertools.product(itertools.product(*each), TEXTS[: 2 ** (len(x) + 1)])):
            inserted = [("insert", i, a) for i, a in enumerate(new[: len(x) + 1])]
            edits = [e for e in some if e] + inserted
            yield list(x), edits[n % 3 :] + edits[: n % 3]


def together(x, edits):
    insert = {i: a for k, i, a in edits if k == "insert"}
    change = {i: a for k, i, a in edits if k != "insert"}
    pairs = [([insert[i]] if i in insert else []) + [change.get(i, x[i])] for i in range(len(x))]
    return strip(sum(pairs, [])) + ([insert[len(x)]] if len(x) in insert else [])


def one_by_one(x, edits):
    x = list(x)
    for k, i, a in sorted(edits, key=lambda e: e[1]):
        i = min(i, len(x) - (k != "insert"))
        x[i : i + (k != "insert")] = strip([a])
    return x


def claim_apply(my):
    """apply makes all edits at once, each at its place in the text as it was before"""
    now = (
        "all places are those of x as it is now: an insertion must not move the others (from right to left it does not)"
    )
    for x, edits in cases():
        want, before = together(x, edits), list(x)
        got = my.apply(x, copy.deepcopy(edits))
        true(x == before, "x as it was", "x changed", "return a new list: begin with list(x)")
        if got == want:
            continue
        behind = [(k, min(i + 1, len(x)) if k == "insert" else i, a) for k, i, a in edits]
        hint = "insert at place i is in front of the letter i" if got == together(x, behind) else now
        raise Wrong(f"{want} for x = {x} and {edits}", got, hint)


def claim_way(my):
    """whatever is made, the outstanding edits lead to x_1 (where no two letters are inserted at one place)"""
    for z, z1 in alignments():
        edits = right(z, z1)
        if len({i for k, i, _ in edits if k == "insert"}) == sum(k == "insert" for k, *_ in edits):
            got = my.apply(strip(z), my.outstanding(list(z), list(z1)))
            hint = "outstanding and apply mean the same places (do the claims before hold?)"
            true(got == strip(z1), f"{strip(z1)} from z = {z}, z_1 = {z1}", f"{got}", hint)


def claim_estimate(my):
    """estimate is the sum of all rates, and R (log(R / u) - 1) of each outstanding edit"""
    for n, kappa in itertools.product((0, 1, 4), (0.0, 0.3, 0.95)):
        u = torch.rand(n, generator=generator(n), dtype=torch.float64) + 0.2
        total, R = u.sum().item() + 1.5, 1 / (1 - kappa)
        logs = (R / u).log()
        want = total + (R * (logs - 1)).sum().item()
        mistakes = [
            (want - total, "the rates of all edits, which the network expects, cost: total belongs to it"),
            (total + (R * logs).sum().item(), "minus 1: an edit that came is not to be paid as one that did not"),
            (total - (u.log() + 1).sum().item(), "R is 1 / (1 - kappa), inside of the logarithm and before it"),
            (total - (R * (logs + 1)).sum().item(), "which of the two is true? R is before the logarithm, and over u"),
            (total + (logs - 1).sum().item(), "the sum over outstanding edits is times R"),
        ]
        got = my.estimate(total, u.clone(), kappa)
        alike(got, want, "the formula of the lesson", mistakes[: 5 if n else 1], what=f"{n} edits, kappa = {kappa}")


def states(text, kappa):
    for done in itertools.product([False, True], repeat=len(text)):
        z = [a if d else BLANK for a, d in zip(text, done)]
        yield math.prod(kappa if d else 1 - kappa for d in done), tuple(strip(z)), right(z, list(text))


def knowing(kappa):
    """{x: {edit: rate}} of the model that knows the language."""
    mass, count = {}, {}
    for text, p in zip(TEXTS, P):
        for q, x, edits in states(text, kappa):
            mass[x] = mass.get(x, 0) + p * q
            for e in edits:
                count.setdefault(x, {})[e] = count.get(x, {}).get(e, 0) + p * q
    return {x: {e: c / mass[x] / (1 - kappa) for e, c in count.get(x, {}).items()} for x in mass}


def claim_bound(my):
    """for the model that knows the language, the bound of every text, of whatever length, is -log p"""
    import letters

    found = torch.zeros(15, dtype=torch.float64)
    for kappa, weight in zip(*(v.tolist() for v in letters.rates(20))):
        rates = knowing(kappa)
        for i, text in enumerate(TEXTS):
            for q, x, edits in states(text, kappa):
                u = torch.tensor([rates[x][e] for e in edits], dtype=torch.float64)
                value = my.estimate(sum(rates[x].values()), u, kappa)
                found[i] += weight * q * (value if isinstance(value, float) else torch.as_tensor(value).item())
    alike(found, -torch.tensor(P).double().log(), "see the claim on estimate", tolerance=1e-3)
