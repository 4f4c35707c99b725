"""Two texts, one below the other, with blanks: the edits that lead from one to the other, by which editflow.py learns.

Where a text begins (begin), how it is aligned with the other (align), and which of the edits are made (made)."""

import torch
import torch.nn.functional as F

from nanodlm.noise import uniform

BLANK = -1
INSERT, DELETE, REPLACE = 0, 1, 2


def to_front(x, chosen):
    """The chosen (bool) of each row of x (B, L), moved to its front, and how many, (B,)."""
    order = (~chosen).long().argsort(dim=1, stable=True)
    return x.gather(1, order), chosen.sum(1)


def with_errors(x, free, errors, letter, *key):
    """Texts (B, L) in which free (bool) tokens are lost, are replaced by a letter (int64 (B, L)) or have one before
    them, and their lengths (B,). Each row has its own rate of errors, between 0 and `errors`."""
    at = torch.arange(x.shape[1], device=x.device)
    which, rate = (uniform(*key, 1, at) * 3).long(), uniform(*key, 2, 0) * errors
    which = torch.where(uniform(*key, 0, at) < rate, which, BLANK)
    pair = torch.stack([letter, torch.where(which == REPLACE, letter, x)], 2)
    there = torch.stack([which == INSERT, which != DELETE], 2) & free[:, :, None]
    return to_front(pair.flatten(1), there.flatten(1))


def costs(x0, x1):
    """[b, i, j]: the fewest edits that make the first j tokens of x1 (B, L1) of the first i of x0 (B, L0):
    Levenshtein's distance, a row of the table at a time."""
    j = torch.arange(x1.shape[1] + 1, device=x1.device)
    rows = [j.expand(len(x1), -1)]
    for i in range(x0.shape[1]):
        lost, other = rows[i], rows[i][:, :-1] - (x0[:, i, None] == x1).long()
        best = torch.cat([lost[:, :1], torch.minimum(lost[:, 1:], other)], 1) + 1
        rows.append((best - j).cummin(1).values + j)  # … or fewer of x1, and one insertion more
    return torch.stack(rows, 1)


def align(x0, n0, x1, n1, u, cheapest=True):
    """Texts x0 (B, L0) and x1 (B, L1) of lengths n0, n1 (B,), with blanks, one below the other: z0, z1 (B, L0 + L1);
    what is left over in front is blank in both. At each column, from the end, u (L0 + L1, B), uniform numbers, choose
    among what may come: of the ways with fewest edits, or of all."""
    (B, L0), L1 = x0.shape, x1.shape[1]
    cost = costs(x0, x1) if cheapest else None
    b, i, k = torch.arange(B, device=x1.device), n0.clone(), n1.clone()
    z0, z1 = x1.new_full((2, B, L0 + L1), BLANK)
    for column in range(L0 + L1 - 1, -1, -1):
        some = torch.stack([k > 0, i > 0, (i > 0) & (k > 0)], 1)  # INSERT, DELETE, REPLACE or keep
        if not some.any():
            break
        a, c = (F.pad(x, (0, 1))[b, (n - 1).clamp(min=0)] for x, n in ((x0, i), (x1, k)))
        if cheapest:
            before = torch.stack([cost[b, i, k - 1], cost[b, i - 1, k], cost[b, i - 1, k - 1]], 1)
            price = torch.stack([torch.ones_like(a), torch.ones_like(a), (a != c).long()], 1)
            some &= before + price == cost[b, i, k][:, None]
        way = (u[column][:, None] * some.sum(1, keepdim=True) < some.cumsum(1)).long().argmax(1)
        going = some.any(1)
        from_x0, from_x1 = going & (way != INSERT), going & (way != DELETE)
        z0[:, column], z1[:, column] = torch.where(from_x0, a, BLANK), torch.where(from_x1, c, BLANK)
        i, k = i - from_x0.long(), k - from_x1.long()
    return z0, z1


def begin(x1, free, source, errors, key, V, mask_id):
    """What the free (bool) tokens of texts x1 (B, L) begin as: texts (B, L') and their lengths (B,)."""
    letter = (uniform(*key, 0, torch.arange(x1.shape[1], device=x1.device)) * (V - 1)).long()
    letter += letter >= mask_id
    if source == "typos":
        return with_errors(x1, free, errors, letter, *key, 1)
    n = (uniform(*key, 2, 0)[:, 0] * (free.sum(1) + 1)).long()  # masks or noise: as long as the text at most
    return torch.full_like(x1, mask_id) if source == "masks" else letter, n


def aligned(x1, maskable, real, source, alignment, errors, key, V, mask_id):
    """z0 and z1 (B, M) of texts x1 (B, L) and what they begin as, and which columns are given (bool): prompts, that is
    all but the maskable, whose tokens no edit touches."""
    given, free = real & ~maskable, real & maskable
    if source == "nothing":  # with a column behind all, as there may be no other
        return (*(F.pad(torch.where(of, x1, BLANK), (0, 1), value=BLANK) for of in (given, real)), F.pad(given, (0, 1)))
    if (given & (free.cumsum(1) > 0)).any():
        raise ValueError(f"source={source} aligns what follows a prompt: given tokens may stand at the beginning alone")
    x0, n0 = begin(x1, free, source, errors, key, V, mask_id)
    rest, n1 = to_front(x1, free)
    total = x0.shape[1] + rest.shape[1]
    u = uniform(*key, 4, torch.arange(total, device=x1.device)).T
    z0, z1 = align(x0, n0, rest, n1, u, alignment == "cheapest")
    front = torch.where(given, x1, BLANK)
    return torch.cat([front, z0], 1), torch.cat([front, z1], 1), F.pad(given, (0, total))


def made(kappa, M, spread, key):
    """Which of M columns are edited at kappa (B, 1), bool (B, M); and how fast each of the others will be, relative to
    the usual rate, float64 (B, M).

    In the time -log(1 - kappa) an edit comes at a rate of 1, and at `spread` from each neighbour that is there:
    localised Edit Flows (appendix C.1, where what several edits call for adds up, at a rate that is constant in t). So
    it is first passage: columns reach each other in exponential times."""
    at = torch.arange(M, device=kappa.device)
    came = -uniform(*key, 5, at).log()
    if spread:
        way = F.pad((-uniform(*key, 6, at).log() / spread)[:, 1:].cumsum(1), (1, 0))
        from_left = way + (came - way).cummin(1).values
        came = torch.minimum(from_left, (came + way).flip(1).cummin(1).values.flip(1) - way)
    done = came <= -torch.log1p(-kappa)
    beside = F.pad(done, (1, 1)).double()
    return done, 1 + spread * (beside[:, 2:] + beside[:, :-2])
