"""The speed-run's network: model.Transformer, and what may be put on it. With all levers off it is the same function.

What makes text easy to predict is near: most of what a small network must learn first is to look at the neighbours. So
several levers bring neighbours to a token without attention. Whom a token may be told of is decided in one place,
`Around`: nobody whom attention could not see, or what is reported would be no likelihood.

It has no KV cache: what wins here and is wanted for decoding belongs into model.py.
"""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from model import Transformer, fp32, rotary
from nanodlm.bounds import Amount, Below1, Whole, check
from nanodlm.cross_entropy import cross_entropy, of_logits


@dataclass
class Levers:
    sides: Whole = 0  # so many neighbours on either side have embeddings, from tables of their own, in a token's input
    nearest: Whole = 0  # … and the nearest tokens on either side that are not hidden, with distances up to this
    pairs: Whole = 0  # rows of a table of embeddings of pairs of neighbours, found by a hash
    conv: Whole = 0  # in front of each block, each channel's own weights of so many neighbours on either side
    value_embed: bool = False  # embeddings of the tokens among the first and the last layer's values
    u_net: bool = False  # what early layers give is added to what late ones are given
    x0_mix: bool = False  # what enters a block is a mixture of the stream and the first embedding
    softcap: Amount = 0.0  # logits are squeezed into ± this by tanh; 0 leaves them
    zero_init: bool = False  # projections into the residual stream begin as zeros
    rank: Whole = 0  # embeddings and head go through so many channels; 0 means n_embd
    embed_std: Amount = 0.02  # of the initial embeddings
    drop: Below1 = 0.0  # dropout of the embeddings and of what attention and MLPs add; not of attention's weights

    def __post_init__(self):
        check(self)


PAIRS = ((-1, 1), (-2, -1), (1, 2)), ((-1, 0), (-2, -1))  # of offsets: for text seen in both directions, and causal


@functools.lru_cache(maxsize=256)
def place(offset, T, L, size, causal, device):
    """Where among T tokens each one's neighbour at an offset stands, int64 (T,), and whether there is one that it may
    see, bool (T,). The tokens are a text of L, or its noised form and the clean one behind it (bd3lm.py), of which a
    noised token is told its own block's noised tokens and the clean ones before. size: of the blocks, or 0."""
    i = torch.arange(T, device=device)
    here, noised = torch.where(i < L, i, i - L), i < L
    there = here + offset
    seen = (there >= 0) & (there < L) & ((offset <= 0) | (not causal))
    if not size:
        return there.clamp(0, T - 1), seen
    same = there.div(size, rounding_mode="floor") == here // size
    seen &= same | (offset < 0)
    clean = ~noised | (~same & (T > L))
    return torch.where(seen, there + L * clean, 0), seen


class Around:
    """What stands at an offset from each token of a call; nothing where nobody may be seen."""

    def __init__(self, ids, mask, positions, config):
        T = ids.shape[1]
        L = T if positions is None else int(positions.max()) + 1
        self.key = T, L, 0 if config.causal else config.block_size, config.causal, ids.device
        self.real = mask if torch.is_tensor(mask) and mask.dim() == 2 else None

    def where(self, offset):
        index, seen = place(offset, *self.key)
        return index, seen[None] if self.real is None else seen & self.real[:, index]

    def ids(self, ids, offset, nobody):
        index, seen = self.where(offset)
        return torch.where(seen, ids[:, index], nobody)

    def nearest(self, ids, side, nobody):
        """The nearest token before (side -1) or behind (1) each that is not hidden, and how far away it is; nobody and
        0 where there is none. Hidden is the last id, the mask; clean tokens hide nothing."""
        T, L, size, causal, device = self.key
        i = torch.arange(T, device=device)
        known = ids != nobody - 1 if self.real is None else (ids != nobody - 1) & self.real
        if side < 0:
            at = torch.where(known, i, -1).cummax(1).values.roll(1, 1)
            begin = i - i % size if size else torch.zeros_like(i)
            outside = (at < begin) & (i >= size) if size else at > i  # then it is the clean one at the block's border
            at = torch.where(outside, begin - 1 + L * (T > L), at)
            distance, ok = torch.where(outside, i - begin + 1, i - at), (at >= 0) & (i > 0)
        else:
            at = torch.where(known, i, T).flip(1).cummin(1).values.flip(1).roll(-1, 1)
            end = (i - i % size + size).clamp(max=L) if size else torch.full_like(i, L)
            distance, ok = at - i, (at < end) & (i < L - 1) & (not causal)
        token = torch.where(ok, ids.gather(1, at.clamp(0, T - 1)), nobody)
        if T > L:  # nobody is hidden from the clean half
            token = torch.where(i < L, token, self.ids(ids, side, nobody))
            distance, ok = torch.where(i < L, distance, 1), ok & (i < L) | (token != nobody)
        return token, torch.where(ok, distance, 0)

    def states(self, x, offset):
        """Of states x (B, T, C)."""
        index, seen = self.where(offset)
        if self.key[0] == self.key[1]:  # one text: a shift, which is faster
            y = F.pad(x[:, offset:], (0, 0, 0, offset)) if offset > 0 else F.pad(x[:, :offset], (0, 0, -offset, 0))
            return y if self.real is None and not any(self.key[2:4]) else y * seen[..., None]
        return x.index_select(1, index) * seen[..., None]


class Network(Transformer):
    def __init__(self, config, levers):
        c, v = config, levers
        plain = c.position == "rope" and not (c.window or c.dropout or c.token_types or c.norm_after)
        if not plain or c.head_dense != "none" or c.head_bias or c.shift and c.block_size:
            raise ValueError("here position=rope, and there is no window, dropout, head_bias, nor shift with blocks")
        super().__init__(config)
        self.levers, C, V = levers, c.n_embd, c.vocab_size
        if v.rank:
            self.embed, self.widen = nn.Embedding(V, v.rank), nn.Linear(v.rank, C, bias=False)
            self.narrow = nn.Linear(C, v.rank, bias=False)
            self.head_weight = None if c.tied else nn.Parameter(torch.empty(V, v.rank).normal_(0, 0.02))
            self.widen.weight.data.normal_(0, v.rank**-0.5)
            self.narrow.weight.data.normal_(0, C**-0.5)
        if v.rank or v.embed_std != 0.02:
            self.embed.weight.data.normal_(0, v.embed_std)
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = v.drop
        zeros = lambda *shape: nn.Parameter(torch.zeros(*shape))  # noqa: E731
        offsets = [o for k in range(1, v.sides + 1) for o in (-k, k)]
        self.side_tables = nn.ParameterDict({str(o): zeros(V + 1, C) for o in offsets if o < 0 or not c.causal})
        if v.nearest:
            self.near_table, self.distance_table = zeros(2, V + 1, C), zeros(2, v.nearest + 1, C)
        self.pair_table = zeros(v.pairs, C) if v.pairs else None
        reach = [o for o in range(-v.conv, v.conv + 1) if o <= 0 or not c.causal] if v.conv else []
        self.reach, self.conv_weight = reach, zeros(c.n_layer, len(reach), C) if reach else None
        self.mix = nn.Parameter(torch.tensor([[1.0, 0.0]]).repeat(c.n_layer, 1)) if v.x0_mix else None
        self.skip = zeros(c.n_layer // 2) if v.u_net else None
        if v.value_embed:
            self.value_table = nn.Parameter(torch.empty(V, c.n_kv_head * c.head_dim).normal_(0, 0.02))
            for layer in {0, c.n_layer - 1}:
                self.blocks[layer].attn.v.register_forward_hook(lambda _, __, y: y + self.values)
        if v.zero_init:
            for block in self.blocks:
                block.attn.out.weight.data.zero_()
                block.mlp.down.weight.data.zero_()

    def hidden(self, ids, mask=None, positions=None, cache=None, rows=None):
        """As Transformer.hidden."""
        if cache is not None:
            raise ValueError("the speed-run's network has no cache; sample with cache=none")
        c, v, (B, T) = self.config, self.levers, ids.shape
        in_order, around = positions is None, Around(ids, mask, positions, c)
        positions = torch.arange(T, device=ids.device).expand(B, T) if in_order else positions
        x = self.drop(self.embed_norm(self.told(ids, around)))
        if v.value_embed:
            self.values = F.embedding(ids, self.value_table)

        mask, last_mask = mask if isinstance(mask, tuple) else (mask, mask)
        real = mask if torch.is_tensor(mask) and mask.dim() == 2 else None
        m = self.attention_mask(mask, False, real, positions, None, in_order)
        last_m = m if last_mask is mask else self.attention_mask(last_mask, False, real, positions, None, in_order)
        is_causal = c.causal and mask is None and in_order
        rope = rotary(positions[:1] if in_order else positions, c.rope_dim, c.rope_theta, c.rope_scaling)
        shift = c.shift and not c.causal  # ar.py hands over the token before, so that this is what it has learnt
        if rows is not None:
            rows = rows.flatten().nonzero()[:, 0] if rows.dtype == torch.bool else rows
            rows = rows - (rows % T > 0).long() if shift else rows

        first, given = x, []
        for layer, block in enumerate(self.blocks):
            last, over = layer == c.n_layer - 1, c.n_layer - 1 - layer
            if self.mix is not None:
                x = self.mix[layer, 0] * x + self.mix[layer, 1] * first
            if self.skip is not None and over < layer:
                x = x + self.skip[over] * given[over]
            if self.conv_weight is not None:
                y = F.rms_norm(fp32(x), x.shape[-1:])
                taps = zip(self.reach, self.conv_weight[layer])
                x = x + sum((y if o == 0 else around.states(y, o)) * w for o, w in taps)
            if last:
                m = last_m
            x = block(x, rows if last else None, m, is_causal and m is None, rope, None, None)
            given.append(x)
        x = torch.cat([x[:, :1], x[:, :-1]], 1) if shift and rows is None else x
        return self.norm(x)

    def told(self, ids, around):
        """What enters the first block (B, T, C): a token's embedding, and its neighbours'."""
        v, nobody = self.levers, self.config.vocab_size
        x = self.embed(ids)
        if v.rank:
            x = self.widen(x)
        more = [F.embedding(around.ids(ids, int(o), nobody), table) for o, table in self.side_tables.items()]
        couples = [[around.ids(ids, o, nobody) if o else ids for o in pair] for pair in PAIRS[self.config.causal]]
        if v.nearest:
            found = [around.nearest(ids, side, nobody) for side in (-1, 1)]
            couples.append([token for token, _ in found])
            for i, (token, distance) in enumerate(found):
                more.append(F.embedding(token, self.near_table[i]))
                more.append(F.embedding(distance.clamp(max=v.nearest), self.distance_table[i]))
        for salt, (a, b) in enumerate(couples if v.pairs else ()):
            more.append(F.embedding((a * 1_000_003 + b * 8_191 + salt * 7_919) % v.pairs, self.pair_table))
        return x + sum(more) if more else x

    def head(self, x, targets=None, excluded=None):
        """As Transformer.head."""
        v, weight = self.levers, self.embed.weight if self.config.tied else self.head_weight
        if v.rank:
            x = self.narrow(x)
        if not v.softcap:
            return F.linear(x, weight) if targets is None else cross_entropy(x, weight, None, targets, excluded)
        logits = v.softcap * torch.tanh(fp32(F.linear(x, weight)) / v.softcap)
        return logits if targets is None else of_logits(logits, targets, excluded)


def forward_flops(config, levers, batch, tokens, queries, pairs, last_pairs, rows):
    """FLOPs of one forward pass: 2 for each weight of a matrix and token that it is applied to, 4 for each channel and
    pair of a query and a key that attention multiplies, masked or not.

    tokens, queries  of each of `batch` rows, and those among them that the last layer asks for
    pairs            of a row in each layer but the last, and in the last
    rows             of the whole batch whose logits are wanted, which alone pass the last MLP and the head"""
    c, q, kv = config, config.n_head * config.head_dim, config.n_kv_head * config.head_dim
    mlp = c.n_embd * c.mlp_dim * (3 if c.mlp in ("swiglu", "geglu") else 2)
    both = 2 * c.n_embd * q  # query and output projections, of those who ask
    whole = batch * (tokens * (2 * c.n_embd * kv + both + mlp) + 2 * pairs * q)
    last = batch * (tokens * 2 * c.n_embd * kv + queries * both + 2 * last_pairs * q) + rows * mlp
    head = rows * c.vocab_size * c.n_embd
    if levers.rank:
        head = rows * (c.vocab_size + c.n_embd) * levers.rank + batch * tokens * levers.rank * c.n_embd
    return 2 * ((c.n_layer - 1) * whole + last + head)


def muon_flops(model):
    """FLOPs of one step of Muon: five times three products for each matrix of the blocks."""
    shapes = [sorted(p.shape) for n, p in model.named_parameters() if n.startswith("blocks.") and p.dim() == 2]
    return sum(5 * (4 * small * small * large + 2 * small**3) for small, large in shapes)
