"""Two texts, one below the other: alignments with blanks, by the fewest edits or at random; and texts with errors."""

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
    """Texts (B, L) in which free (bool) tokens are lost, are replaced by a letter (int64 (B, L)) or have one before them,
    and their lengths (B,). Each row has its own rate of errors, between 0 and `errors`."""
    at = torch.arange(x.shape[1], device=x.device)
    which, rate = (uniform(*key, 1, at) * 3).long(), uniform(*key, 2, 0) * errors
    which = torch.where(uniform(*key, 0, at) < rate, which, BLANK)
    pair = torch.stack([letter, torch.where(which == REPLACE, letter, x)], 2)
    there = torch.stack([which == INSERT, which != DELETE], 2) & free[:, :, None]
    return to_front(pair.flatten(1), there.flatten(1))


def costs(x0, x1):
    """[b, i, j]: the fewest edits that make the first j tokens of x1 (B, L1) of the first i of x0 (B, L0): Levenshtein's
    distance, a row of the table at a time."""
    j = torch.arange(x1.shape[1] + 1, device=x1.device)
    rows = [j.expand(len(x1), -1)]
    for i in range(x0.shape[1]):
        lost, other = rows[i], rows[i][:, :-1] - (x0[:, i, None] == x1).long()
        best = torch.cat([lost[:, :1], torch.minimum(lost[:, 1:], other)], 1) + 1
        rows.append((best - j).cummin(1).values + j)  # … or fewer of x1, and one insertion more
    return torch.stack(rows, 1)


def align(x0, n0, x1, n1, u, cheapest=True):
    """Texts x0 (B, L0) and x1 (B, L1) of lengths n0, n1 (B,), with blanks, one below the other: z0, z1 (B, L0 + L1); what
    is left over in front is blank in both. At each column, from the end, u (L0 + L1, B), uniform numbers, choose among
    what may come: of the ways with fewest edits, or of all."""
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
