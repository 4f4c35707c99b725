"""Rules of who sees whom, in the form that is fastest where they are used: FlexAttention's, tiles, or written down."""

import functools

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


@functools.cache
def flex_attention(compiled):
    """FlexAttention; outside a compiled model on a GPU it must be compiled by itself, or it is slow."""
    from torch.nn.attention.flex_attention import flex_attention as flex

    return torch.compile(flex) if compiled else flex


def attend(q, k, v, mask=None, dropout_p=0.0, is_causal=False, enable_gqa=False):
    """F.scaled_dot_product_attention, for a mask of any form. Training in bfloat16 on a CPU, three plain products take
    2/3 of the time of its fused form, forward and backward; they hold all weights, and so only where these are few."""
    if isinstance(mask, Tiles):
        return mask.attend(q, k, v, dropout_p=dropout_p, enable_gqa=enable_gqa)
    if mask is not None and not torch.is_tensor(mask):  # a BlockMask
        flex = flex_attention(q.is_cuda and not torch.compiler.is_compiling())
        return flex(q, k, v, block_mask=mask, enable_gqa=enable_gqa)
    few = q.shape[:-2].numel() * q.shape[-2] * k.shape[-2] <= 2**24
    plain = torch.is_grad_enabled() and q.dtype == torch.bfloat16 and q.device.type == "cpu" and few
    plain = plain and not dropout_p and not is_causal
    if enable_gqa and (plain or mask is not None and q.is_cuda):  # SDPA's kernels for a mask want as many keys
        k, v, enable_gqa = *(x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v)), False
    if not plain:
        keys = dict(dropout_p=dropout_p, is_causal=is_causal, enable_gqa=enable_gqa)
        return F.scaled_dot_product_attention(q, k, v, mask, **keys)
    score = q * q.shape[-1] ** -0.5 @ k.mT
    return (score if mask is None else score.masked_fill(~mask, torch.finfo(score.dtype).min)).softmax(-1) @ v


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
            rows.append(attend(tile, k_seen, v_seen, part, **options))
        return torch.cat(rows, 2)
