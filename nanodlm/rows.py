"""What the loop of every sampler (decode.py) knows of each text that it writes, and how texts join those under way."""

from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F

from nanodlm import levenshtein
from nanodlm.noise import shares, to

WHOLE = 2**40  # tokens of a block that holds all of any canvas


@dataclass
class Rows:
    """Texts being written: one item per row in every field, all of them of the host."""

    x: torch.Tensor  # int64 (B, L), the canvases: given tokens, and masks
    hole: torch.Tensor  # bool (B, L): what is to be filled in
    tail: torch.Tensor  # bool (B, L): … behind all that is given
    lengths: torch.Tensor  # int64 (B,): where the canvas ends
    room: torch.Tensor  # int64 (B,): … for the network, which may see masks behind it that stay
    origin: torch.Tensor  # int64 (B,): where the first block starts; blocks without holes are passed over
    seed: torch.Tensor  # int64 (B,)
    number: torch.Tensor  # int64 (B,): not the row's place in the batch
    blocks: torch.Tensor  # int64 (B, N): the blocks that have holes, in order
    num_blocks: torch.Tensor  # int64 (B,): how many these are
    most: torch.Tensor  # int64 (B, N): steps of each
    current: torch.Tensor  # int64 (B,): the row is in block blocks[i, current[i]]
    step: torch.Tensor  # int64 (B,): … of that block
    after: torch.Tensor  # int64 (B,): … once nothing in it was hidden
    clock: torch.Tensor  # int64 (B,): … since the row came
    forwards: torch.Tensor  # int64 (B,)
    ends: torch.Tensor  # int64 (B,): where what is written ends
    alive: torch.Tensor  # bool (B,)
    options: list  # SampleOptions
    until: list  # what is asked when a block is done, or None
    events: list  # the trace: [(step, position, token, its probability)]
    moving: list  # what levenshtein.py remembers of the block
    name: list  # what the caller calls it


def rows_of(x, hole, lengths, origin, options, size, numbers=None, until=None, room=None):
    """Rows that begin, of options that they share; arguments as there."""
    B, at = len(x), torch.arange(x.shape[1])
    given = (at < lengths[:, None]) & ~hole
    levenshtein.check(options, given, hole)
    blocks, num_blocks, holes = blocks_with_holes(hole, origin, size or WHOLE)
    zero = torch.zeros(5, B, dtype=torch.int64).unbind()
    return Rows(
        x,
        hole,
        hole & (at > torch.where(given, at, -1).amax(1, keepdim=True)),
        lengths,
        lengths if room is None else room,
        origin,
        torch.full((B,), options.seed),
        torch.arange(B) if numbers is None else numbers.cpu(),
        blocks,
        num_blocks,
        shares(options.steps, holes),
        *zero,
        lengths.clone(),
        hole.any(1),
        [replace(options, seed=0, max_new_tokens=0)] * B,
        [until] * B,
        [[] for _ in range(B)],
        [None] * B,
        [None] * B,
    )


def joined(rows, kept, new):
    """The kept rows (int64 (K,)), and behind them the new ones, on canvases of the longest."""
    found = {}
    for f in fields(Rows):
        a, b = getattr(rows, f.name), getattr(new, f.name)
        if isinstance(a, list):
            found[f.name] = [*(a[i] for i in kept.tolist()), *b]
        else:
            a = a[kept]
            width = max(t.shape[1] for t in (a, b)) if a.dim() == 2 else 0
            found[f.name] = torch.cat([F.pad(t, (0, width - t.shape[1])) if width else t for t in (a, b)])
    longest = int(found["room"].max())  # of who is gone, nothing is kept
    return Rows(**found | {name: found[name][:, :longest] for name in ("x", "hole", "tail")})


def larger(model, cache, live, kept, copies, batch, size):
    """A cache for `batch` rows of `size` tokens, the first of them the kept ones (int64) of those that are live (int64)
    in `cache`, which is emptied layer by layer; `copies` of all rows, for guidance."""
    new, found = model.cache(copies * batch, size), torch.isin(live, kept).nonzero()[:, 0]
    if cache is None or not len(found):
        return new
    device, n = new.filled.device, min(size, cache.size)
    old, into = (
        to(torch.cat([i + k * step for k in range(copies)]), device)
        for i, step in ((found, len(live)), (torch.arange(len(found)), batch))
    )
    new.filled[into, :n] = cache.filled[old, :n]
    for mine, theirs in ((new.k, cache.k), (new.v, cache.v)):
        for layer in range(len(mine)):
            mine[layer][into, :n], theirs[layer] = theirs[layer][old, :n], None
    return new


def blocks_with_holes(hole, origin, size):
    """The numbers of each row's blocks that have holes, in order, int64 (B, blocks), how many there are (B,), and the
    holes of each (B, blocks)."""
    most = -(-hole.shape[1] // size)
    block_of = torch.where(hole, (torch.arange(hole.shape[1], device=hole.device) - origin[:, None]) // size, most)
    holes = torch.zeros(len(hole), most + 1, dtype=torch.int64, device=hole.device)
    holes.scatter_add_(1, block_of, torch.ones_like(block_of))[:, most] = 0
    blocks = torch.where(holes > 0, torch.arange(most + 1, device=hole.device), most).sort(1).values
    return blocks[:, :most], (holes > 0).sum(1), holes.gather(1, blocks)[:, :most]
