"""Rules of who sees whom, in the form that is fastest where they are used: FlexAttention's, tiles, or written down."""

import torch
import torch.nn.functional as F


def as_masks(rule, batch, queries, keys, device, kind):
    """A rule (row, head, query, key) -> bool as masks for model.Transformer, one for each of `queries`: the first so
    many of the `keys` tokens ask, and all are seen.

    batch  rows that differ, or None where all are alike
    kind   flex: BlockMasks, for GPUs; tiles: Tiles, for long sparse masks without one; dense: bool (1 or B, T, S)"""
    if kind == "flex":
        from torch.nn.attention.flex_attention import create_block_mask

        return tuple(create_block_mask(rule, batch, None, n, keys, device) for n in queries)
    i = torch.arange(keys, device=device)
    row = None if batch is None else torch.arange(batch, device=device)[:, None, None]
    mask = rule(row, None, i[:, None], i)
    if kind == "dense":
        mask = mask[None] if batch is None else mask
        return tuple(mask[:, :n] for n in queries)
    size = max(64, queries[-1] // 4)
    return tuple(Tiles(mask[:n], size) for n in queries)


class Tiles:
    """A mask for long, sparse attention without a GPU: what a BlockMask is to FlexAttention, for SDPA.

    mask   bool (T, S), who sees whom. It is cut into tiles of size x size; those that are empty are never computed."""

    def __init__(self, mask, size):
        self.shape, self.size, self.rows = mask.shape, size, []
        for row in mask.split(size):
            tiles = row.split(size, 1)
            seen = [j for j, tile in enumerate(tiles) if tile.any()]
            part = torch.cat([tiles[j] for j in seen], 1)
            self.rows.append((seen, None if part.all() else part))

    def attend(self, q, k, v, **options):
        k, v = k.split(self.size, 2), v.split(self.size, 2)
        rows = []
        for tile, (seen, part) in zip(q.split(self.size, 2), self.rows, strict=True):
            k_seen, v_seen = torch.cat([k[j] for j in seen], 2), torch.cat([v[j] for j in seen], 2)
            rows.append(F.scaled_dot_product_attention(tile, k_seen, v_seen, part, **options))
        return torch.cat(rows, 2)
