"""One Transformer for every language model in this project.

It knows nothing of diffusion: ids go in, logits come out. What differs between families (norm, positions, heads,
MLP, biases, windows, shift) is a switch in `Config`; there are no subclasses. Shapes in comments: B batch, T tokens
in this call, S keys, C channels (n_embd), H heads, D channels per head, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from nanodlm.attention import attend
from nanodlm.bounds import Amount, Below1, Layers, Positive, Size, Unit, Whole, check
from nanodlm.cross_entropy import cross_entropy
from nanodlm.experts import Experts, check_settings


@dataclass
class Config:
    vocab_size: Whole = 0  # number of token ids; 0 takes the data set's
    seq_len: Size = 256  # context length in tokens (nanoGPT's block_size)
    block_size: Whole = 0  # bd3lm: tokens of a diffusion block it is trained for; the network does not look at it
    n_layer: Layers = 6  # Transformer blocks
    n_head: Size = 6  # query heads
    n_kv_head: Whole = 0  # key/value heads; fewer than n_head is grouped-query attention; 0 means n_head
    n_embd: Size = 384  # channels of the residual stream
    head_dim: Whole = 0  # channels per head; 0 means n_embd / n_head
    mlp: Literal["swiglu", "geglu", "gelu", "gelu_tanh", "relu2"] = "relu2"  # gated: swiglu, geglu; relu2 is squared
    mlp_dim: Whole = 0  # hidden channels of the MLP; 0 means 4 n_embd, or 8/3 n_embd where gated
    norm: Literal["rms", "layer"] = "rms"  # RMSNorm or LayerNorm, before each sublayer
    norm_eps: Positive = 1e-5  # added to the variance
    norm_bias: bool = False  # LayerNorm with a bias
    norm_after: bool = False  # norms after each residual sum, as BERT has them, and none at the end
    norm_embed: bool = False  # a norm of the embeddings (BERT, ModernBERT)
    norm_first: bool = True  # a norm before the first attention; ModernBERT has none
    position: Literal["rope", "learned", "none"] = "rope"  # rotary or learned absolute positions
    position_offset: Whole = 0  # learned positions: the row of position 0 (RoBERTa's table starts with two others)
    token_types: Whole = 0  # rows of a table of token types, of which all tokens have the first (BERT)
    rope_theta: Positive = 10000.0  # base of the rotary frequencies
    rope_fraction: Unit = 1.0  # part of each head that is rotated
    rope_scaling: tuple[Positive, ...] = ()  # of the rotary frequencies, by 1 number, YaRN's 3 or Llama 3's 4: rotary()
    qk_norm: bool = True  # RMSNorm of queries and keys per head, before the rotation
    qkv_bias: bool = False  # bias of the query, key and value projections (Qwen2, GPT-2)
    out_bias: bool = False  # bias of the attention output projection
    mlp_bias: bool = False  # biases of the MLP
    head_dense: Literal["none", "plain", "bias"] = "none"  # a dense layer, GELU and norm before the output head (BERT)
    head_bias: bool = False  # bias of the output head (BERT)
    tied: bool = False  # the output head is the embedding matrix
    causal: bool = False  # attend to the past only; set by the algorithm when training. bd3lm: where nothing is hidden
    shift: bool = False  # output i-1 predicts token i, as in Dream, and where convert_ar.py keeps the shift
    window: Whole = 0  # local layers see |i - j| <= window; 0 means all layers are global
    global_every: Whole = 0  # with a window: layers 0, n, 2n, … are global; 0 means all are local
    local_rope_theta: Amount = 0.0  # rope_theta of the local layers; 0 means the same
    dropout: Below1 = 0.0  # on embeddings, attention weights and both residual branches
    mask_share: Unit = 0.0  # udlm: the part of its noise that is the mask; else a uniform token; 1 is mdlm
    noise_ids: Whole = 0  # udlm: noise is of the ids below this, but for the mask; 0 means all
    experts: Whole = 0  # MLPs of a layer of which each token takes some (nanodlm/experts.py); 0: one for all
    experts_per_token: Size = 2  # how many
    expert_dim: Whole = 0  # hidden channels of each; 0 means mlp_dim / experts_per_token
    shared_dim: Whole = 0  # hidden channels of one more that all tokens take; 0: none
    dense_layers: Whole = 0  # the first layers have one MLP all the same
    router: Literal["softmax", "sigmoid"] = "softmax"  # what makes the experts' scores
    router_norm: bool = False  # the weights of a token's experts sum to 1
    router_bias: bool = False  # a bias of the scores, for the choice alone, that keeps experts equally busy
    router_groups: tuple[Size, ...] = ()  # (groups of experts, how many of these a token may choose from)
    router_scale: Positive = 1.0  # of the weights
    two_way: bool = False  # bd3lm, with shift: a token sees all of its block (Fast-dLLM v2); else none after it
    source: Literal["nothing", "masks", "noise", "typos"] = "nothing"  # editflow: what a text is edited from

    def __post_init__(self):
        check(self)
        if self.block_size > self.seq_len:
            raise ValueError(f"block_size={self.block_size} must lie between 1 and the context, seq_len={self.seq_len}")
        if len(self.rope_scaling) not in (0, 1, 3, 4):
            raise ValueError(f"rope_scaling takes 1, 3 or 4 numbers, not {self.rope_scaling}")
        self.n_kv_head = self.n_kv_head or self.n_head
        if self.n_embd % self.n_head and not self.head_dim:
            raise ValueError(f"n_embd={self.n_embd} is not divisible by n_head={self.n_head}; change one of them")
        self.head_dim = self.head_dim or self.n_embd // self.n_head
        if self.n_head % self.n_kv_head:
            raise ValueError(f"n_head={self.n_head} must be a multiple of n_kv_head={self.n_kv_head}")
        if not self.mlp_dim:
            self.mlp_dim = -(-8 * self.n_embd // 3 // 32) * 32 if self.mlp in ("swiglu", "geglu") else 4 * self.n_embd
        if self.position == "rope" and self.rope_dim % 2:
            raise ValueError(f"rotated channels per head, {self.rope_dim}, must be even: head_dim x rope_fraction")
        self.expert_dim = self.expert_dim or max(1, self.mlp_dim // self.experts_per_token)
        check_settings(self)

    @property
    def rope_dim(self):
        return round(self.head_dim * self.rope_fraction)

    def is_local(self, layer):
        return self.window > 0 and not (self.global_every and layer % self.global_every == 0)


# ------------------------------------------------------------------------------------------------------------------
# the parts


def fp32(x):
    """x in fp32, for statistics and logits that bf16 would spoil; fp64 stays fp64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Norm(nn.Module):
    """RMSNorm (arXiv 1910.07467, eq. 4) or LayerNorm (1607.06450, eq. 3) over the last dimension; statistics in fp32,
    result in the input's dtype."""

    def __init__(self, dim, config):
        super().__init__()
        self.kind, self.eps = config.norm, config.norm_eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if config.norm_bias else None

    def forward(self, x):
        norm = F.layer_norm if self.kind == "layer" else F.rms_norm
        h = norm(fp32(x), x.shape[-1:], eps=self.eps).type_as(x) * self.weight.type_as(x)
        return h if self.bias is None else h + self.bias.type_as(x)


def rotary(positions, dim, theta, scaling=()):
    """cos and sin of the angles position * theta^(-2i/dim) (RoPE, arXiv 2104.09864, eq. 15), fp32, (B, 1, T, dim); the
    first half of the sines is negative, as rotate() wants them.

    scaling  (factor,): positions divided by it; (factor, low, high, context): only the frequencies that turn less than
             `low` times within the old context, between that and `high` turns gradually less (Llama 3.1);
             (factor, last, width): those from `last` on, the `width` before it gradually less (YaRN, 2309.00071)"""
    freq = 1.0 / theta ** (torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / dim)
    if scaling:
        keep = 0.0
        if len(scaling) == 4:
            low, high, context = scaling[1:]
            keep = ((context * freq / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
        elif len(scaling) == 3:
            keep = ((scaling[1] - torch.arange(len(freq), device=freq.device)) / scaling[2]).clamp(0, 1)
        freq = freq * (keep + (1 - keep) / scaling[0])
    angle = positions[:, None, :, None].float() * freq
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


def rotate(x, cos, sin):
    """Rotate the first cos.shape[-1] channels of x (B, H, T, D), pairing channel i with i + half, where the paper pairs
    neighbours (eq. 34); fp32 inside."""
    if not torch.is_grad_enabled() and x.numel() > 2**23 and x.shape[1] > 1:  # as in MLP: a few heads at a time
        return torch.cat([rotate(part, cos, sin) for part in x.chunk(-(-x.numel() // 2**23), 1)], 1)
    dim = cos.shape[-1]
    h = fp32(x[..., :dim])
    h = (h * cos + h.roll(dim // 2, -1) * sin).type_as(x)
    return h if dim == x.shape[-1] else torch.cat([h, x[..., dim:]], -1)


class Attention(nn.Module):
    """softmax(q k^T / sqrt(D)) v in each head (arXiv 1706.03762, eq. 1)."""

    def __init__(self, config, layer):
        super().__init__()
        c, self.config, self.layer = config, config, layer
        self.q = nn.Linear(c.n_embd, c.n_head * c.head_dim, bias=c.qkv_bias)
        self.k = nn.Linear(c.n_embd, c.n_kv_head * c.head_dim, bias=c.qkv_bias)
        self.v = nn.Linear(c.n_embd, c.n_kv_head * c.head_dim, bias=c.qkv_bias)
        self.out = nn.Linear(c.n_head * c.head_dim, c.n_embd, bias=c.out_bias)
        if c.qk_norm:
            self.q_norm, self.k_norm = (Norm(c.head_dim, Config(norm="rms", norm_eps=c.norm_eps)) for _ in "qk")

    def forward(self, x, mask, is_causal, rope, cache, slots):
        B, T, _ = x.shape
        c = self.config
        n = T if mask is None else mask.shape[-2]  # queries: fewer than T where the last tokens are only seen
        q = self.q(x[:, :n]).view(B, n, c.n_head, c.head_dim).transpose(1, 2)  # (B, H, n, D)
        k = self.k(x).view(B, T, c.n_kv_head, c.head_dim).transpose(1, 2)  # (B, H_kv, T, D)
        v = self.v(x).view(B, T, c.n_kv_head, c.head_dim).transpose(1, 2)
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            cos, sin = rope
            q, k = rotate(q, cos[:, :, :n], sin[:, :, :n]), rotate(k, cos, sin)
        if cache is not None:
            k, v = cache.write(self.layer, slots, k, v)  # (B, H_kv, S, D)
        gqa = c.n_kv_head != c.n_head
        p = c.dropout if self.training else 0.0
        y = attend(q, k, v, mask, dropout_p=p, is_causal=is_causal, enable_gqa=gqa)
        return self.out(y.transpose(1, 2).reshape(B, n, c.n_head * c.head_dim))


class MLP(nn.Module):
    """The feed-forward layer; the gated ones are those of arXiv 2002.05202, eq. 6."""

    def __init__(self, c):
        super().__init__()
        self.kind = c.mlp
        self.at_once = max(1, 2**25 // c.mlp_dim)  # tokens; bounds the memory of decoding a large canvas
        self.up = nn.Linear(c.n_embd, c.mlp_dim, bias=c.mlp_bias)
        self.gate = nn.Linear(c.n_embd, c.mlp_dim, bias=c.mlp_bias) if c.mlp in ("swiglu", "geglu") else None
        self.down = nn.Linear(c.mlp_dim, c.n_embd, bias=c.mlp_bias)

    def forward(self, x):
        if not torch.is_grad_enabled() and x.numel() // x.shape[-1] > self.at_once:
            return torch.cat([self(part) for part in x.flatten(0, -2).split(self.at_once)]).view_as(x)
        return self.down(self.act(self.kind, self.up(x), None if self.gate is None else self.gate(x)))

    @staticmethod
    def act(kind, up, gate):
        if kind == "swiglu":
            return F.silu(gate) * up
        if kind == "geglu":
            return F.gelu(gate) * up
        if kind in ("gelu", "gelu_tanh"):
            return F.gelu(up, approximate="tanh" if kind == "gelu_tanh" else "none")
        return F.relu(up) * up  # the square, whose gradient takes one pass less


class Block(nn.Module):
    def __init__(self, c, layer):
        super().__init__()
        self.after = c.norm_after
        self.attn_norm = Norm(c.n_embd, c) if layer or c.norm_first else nn.Identity()
        self.attn = Attention(c, layer)
        self.mlp_norm = Norm(c.n_embd, c)
        self.mlp = Experts(c, MLP) if c.experts and layer >= c.dense_layers else MLP(c)
        self.drop = nn.Dropout(c.dropout)

    def forward(self, x, rows, *attention):
        """rows: None, or indices into the flattened tokens that attended: the others go no further."""
        y = self.attn(x if self.after else self.attn_norm(x), *attention)
        x = x[:, : y.shape[1]] + self.drop(y)
        if rows is not None:
            x = x.flatten(0, 1)[rows]
        if self.after:
            x = self.attn_norm(x)
            return self.mlp_norm(x + self.drop(self.mlp(x)))
        return x + self.drop(self.mlp(self.mlp_norm(x)))


# ------------------------------------------------------------------------------------------------------------------
# the cache


class KVCache:
    """Keys and values, of every layer (B, size + 1, n_kv_head, head_dim): slot p holds position p; the last one is for
    padding, which nobody sees. (All layers in one tensor would be copied by a compiled network that writes into it.)

    That one rule makes appending and overwriting the same act: tokens go where their positions say, and a row's
    tokens may lie anywhere. `filled` (bool, B, size) says which slots hold something; only those are attended to.
    `visible` narrows attention to a slice of the slots, for speed where the others are empty or out of sight. `rows`
    (int64 indices) says which of the cache's rows a call is about, in order; None means all. Who knows that all visible
    slots are filled says so by `full`: without a mask attention is faster.
    """

    def __init__(self, config, batch, size, device=None, dtype=None):
        shape = (batch, size + 1, config.n_kv_head, config.head_dim)
        self.size, self.visible, self.rows, self.full = size, slice(0, size), None, False
        self.k, self.v = ([torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)] for _ in "kv")
        self.filled = torch.zeros(batch, size + 1, device=device, dtype=torch.bool)

    def next_positions(self, n):
        """The n positions after each row's last filled slot, (B, n)."""
        index = torch.arange(1, self.size + 1, device=self.filled.device)
        length = (self.mine(self.filled)[:, : self.size] * index).amax(1)
        return length[:, None] + torch.arange(n, device=length.device)

    def mine(self, x):
        """The rows of x that the call is about."""
        return x if self.rows is None else x[self.rows]

    def reserve(self, positions, real):
        """The slots (B, T) that tokens at `positions` go to; marks them filled."""
        real = positions >= 0 if real is None else real
        inside = (positions < self.size) | ~real
        torch._assert_async(inside.all(), "a token lies beyond the end of the KV cache")  # does not wait for the GPU
        slots = torch.where(real, positions, self.size)
        if self.rows is None:
            self.filled.scatter_(1, slots, True)
        else:
            self.filled[self.rows[:, None], slots] = True
        return slots

    def write(self, layer, slots, k, v):
        """Store k, v (B, n_kv_head, T, D) of one layer; returns that layer's visible keys and values."""
        rows = torch.arange(len(slots), device=slots.device) if self.rows is None else self.rows
        stores = self.k[layer], self.v[layer]
        for store, new in zip(stores, (k, v)):
            store[rows[:, None], slots] = new.transpose(1, 2).type_as(store)
        return tuple(self.mine(store[:, self.visible]).transpose(1, 2).type_as(k) for store in stores)

    def keep(self, rows):
        """Only these rows (bool (B,), or indices) of the batch go on."""
        self.k, self.v = ([store[rows] for store in stores] for stores in (self.k, self.v))
        self.filled = self.filled[rows]


# ------------------------------------------------------------------------------------------------------------------
# the network


class Transformer(nn.Module):
    def __init__(self, config):
        super().__init__()
        c = self.config = config
        if c.vocab_size < 1:
            raise ValueError("vocab_size is not set; it must be the tokenizer's number of ids")
        self.embed = nn.Embedding(c.vocab_size, c.n_embd)
        self.pos_embed = nn.Embedding(c.seq_len + c.position_offset, c.n_embd) if c.position == "learned" else None
        self.type_embed = nn.Embedding(c.token_types, c.n_embd) if c.token_types else None
        self.embed_norm = Norm(c.n_embd, c) if c.norm_embed else nn.Identity()
        self.drop = nn.Dropout(c.dropout)
        self.blocks = nn.ModuleList(Block(c, layer) for layer in range(c.n_layer))
        self.norm = nn.Identity() if c.norm_after else Norm(c.n_embd, c)
        if c.head_dense != "none":
            self.head_dense, self.head_norm = nn.Linear(c.n_embd, c.n_embd, c.head_dense == "bias"), Norm(c.n_embd, c)
        self.head_weight = None if c.tied else nn.Parameter(torch.empty(c.vocab_size, c.n_embd))
        self.head_bias = nn.Parameter(torch.zeros(c.vocab_size)) if c.head_bias else None
        self.recompute = False  # activations of a block again in the backward pass, rather than keeping them
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """GPT-2's (section 2.3): N(0, 0.02), residual projections smaller by sqrt(2 n_layer); biases 0."""
        for name, p in self.named_parameters():
            if p.dim() >= 2:
                residual = name.endswith(("attn.out.weight", "mlp.down.weight", "mlp.down", "shared.down.weight"))
                p.normal_(0, 0.02 / math.sqrt(2 * self.config.n_layer) if residual else 0.02)
            elif name.endswith("bias"):
                p.zero_()

    def forward(self, ids, mask=None, positions=None, cache=None, rows=None, targets=None, excluded=None):
        """Logits for every token of ids, or for some.

        ids        int64 (B, T)
        mask       None: attention as the config says. bool (B, T): which tokens are real; the others are seen by
                   nobody. bool (1 or B, T, S) or (1 or B, H, T, S): who sees whom, in place of the config's causality;
                   S is T, or the cache's visible slots. A BlockMask, or Tiles: the same, through FlexAttention or in
                   tiles. A pair of such masks: the second is the last layer's; where it has n < T queries, the tokens
                   after the first n are only seen, and have no logits
        positions  int64 (B, T); default 0…T-1, or after the cache's last filled slot. Negative: padding, which the
                   cache does not keep
        cache      KVCache; each token's keys and values go to the slot of its position, and all filled slots are seen
        rows       bool (B, T), or int64 indices into the B*T flattened tokens (n for T where the last layer has n
                   queries): logits of those tokens only
        targets    int64 (N,): in place of logits their -log p, fp32 (N,), where the id `excluded` is impossible
        returns    (B, T, V), or (N, V) with rows, in the dtype of the computation
        """
        return self.head(self.hidden(ids, mask, positions, cache, rows), targets, excluded)

    def hidden(self, ids, mask=None, positions=None, cache=None, rows=None):
        """What the output head sees, (B, T, C) or (N, C); the arguments are forward's. Samplers call the two halves by
        themselves: with 126k tokens, the logits of a long canvas would need more memory than the network."""
        B, T = ids.shape
        c = self.config
        in_order = positions is None and cache is None  # then SDPA's own switches will do
        if positions is None:
            positions = torch.arange(T, device=ids.device).expand(B, T) if cache is None else cache.next_positions(T)
        x = self.embed(ids)
        if self.pos_embed is not None:
            x = x + self.pos_embed(positions.clamp(min=0) + c.position_offset)
        if self.type_embed is not None:
            x = x + self.type_embed.weight[0]
        x = self.drop(self.embed_norm(x))

        mask, last_mask = mask if isinstance(mask, tuple) else (mask, mask)
        real = mask if torch.is_tensor(mask) and mask.dim() == 2 else None
        slots = None if cache is None else cache.reserve(positions, real)
        attention = (real, positions, cache, in_order)
        masks = {local: self.attention_mask(mask, local, *attention) for local in {*map(c.is_local, range(c.n_layer))}}
        local = c.is_local(c.n_layer - 1)
        last_mask = masks[local] if last_mask is mask else self.attention_mask(last_mask, local, *attention)
        is_causal = c.causal and mask is None and in_order
        ropes = dict.fromkeys(masks)
        if c.position == "rope":
            thetas = c.rope_theta, c.local_rope_theta or c.rope_theta
            turned = positions[:1] if in_order else positions
            ropes = {local: rotary(turned, c.rope_dim, thetas[local], c.rope_scaling) for local in masks}
        if rows is not None:
            rows = rows.flatten().nonzero()[:, 0] if rows.dtype == torch.bool else rows
            if c.shift:  # output i - 1 predicts token i; the first one of the call has only its own
                rows = rows - (rows % (T if last_mask is None else last_mask.shape[-2]) > 0).long()

        for layer, block in enumerate(self.blocks):
            local, last = c.is_local(layer), layer == c.n_layer - 1
            m = last_mask if last else masks[local]
            # What nobody will read is not computed: after the last attention only `rows` go on.
            args = (x, rows if last else None, m, is_causal and m is None, ropes[local], cache, slots)
            x = checkpoint(block, *args, use_reentrant=False) if self.recompute and self.training else block(*args)

        if c.shift and rows is None:
            x = torch.cat([x[:, :1], x[:, :-1]], 1)
        x = self.norm(x)
        return x if c.head_dense == "none" else self.head_norm(F.gelu(self.head_dense(x)))

    def head(self, x, targets=None, excluded=None):
        """Logits (…, V) of what hidden() returns; with targets, forward's."""
        given = x, self.embed.weight if self.config.tied else self.head_weight, self.head_bias
        return F.linear(*given) if targets is None else cross_entropy(*given, targets, excluded)

    def cache(self, batch, size):
        """An empty KVCache for `batch` rows of at most `size` tokens, in the network's device and dtype."""
        return KVCache(self.config, batch, size, self.embed.weight.device, self.embed.weight.dtype)

    def attention_mask(self, mask, local, real, positions, cache, in_order):
        """What SDPA or FlexAttention is given on global or local layers: None, a bool tensor (B, 1 or H, T, S), or the
        caller's BlockMask or Tiles."""
        c = self.config
        window = c.window if local else 0
        if mask is not None and not torch.is_tensor(mask):
            if window:
                raise ValueError(
                    f"a {type(mask).__name__} mask cannot be combined with window > 0; pass a bool mask instead"
                )
            if self.training and c.dropout and not hasattr(mask, "attend"):
                raise ValueError(f"FlexAttention has no dropout; set dropout=0 instead of {c.dropout}")
            return mask
        if mask is None and not window and (in_order or not c.causal and (cache is None or cache.full)):
            return None  # full, or causal through SDPA's own switch
        n = positions.shape[1] if mask is None or mask.dim() == 2 else mask.shape[-2]
        q = positions[:, None, :n, None]  # (B, 1, n, 1)
        if cache is None:
            k = positions[:, None, None, :]
            seen = torch.ones_like(k, dtype=torch.bool) if real is None else real[:, None, None, :]
        else:
            k = torch.arange(cache.size, device=positions.device)[None, None, None, cache.visible]
            seen = cache.mine(cache.filled)[:, None, None, cache.visible]
        if mask is not None and real is None:
            seen = seen & (mask[:, None] if mask.dim() == 3 else mask)
        elif c.causal:
            seen = seen & (k <= q)
        if window:
            seen = seen & ((q - k).abs() <= window)
        return seen.expand(-1, -1, n, -1)

    def num_params(self):
        return sum(p.numel() for p in self.parameters())


# ------------------------------------------------------------------------------------------------------------------
# tutorial


@torch.no_grad()
def tutorial():
    """Follow the shapes of one forward pass, and see what each switch changes."""
    torch.manual_seed(0)
    usual = dict(vocab_size=100, seq_len=8, n_layer=2, n_head=4, n_embd=32)
    ids = torch.randint(99, (1, 8))

    def network(**switches):
        return Transformer(Config(**usual | switches)).eval()

    print("1. One forward pass of a text of 8 tokens; every line is a module and the shape that it returns.\n")
    model = network()
    for name, module in model.named_modules():
        if name and "blocks.1" not in name and not isinstance(module, nn.Dropout | nn.Identity | nn.ModuleList):
            module.register_forward_hook(lambda _, __, out, name=name: print(f"    {name:22} {tuple(out.shape)}"))
    print(f"    ids                    {tuple(ids.shape)}")
    print(f"    logits                 {tuple(model(ids).shape)}")

    print("\n2. Who sees whom: a # where output i (row) changes when token j (column) is another one.\n")

    def seen(model):
        other = ids.repeat(8, 1).fill_diagonal_(99)  # row j: token j is another one
        change = (model(other) - model(ids)).abs().amax(-1) > 1e-7
        return ["".join("#" if x else "." for x in row) for row in change.T.tolist()]

    switches = ({}, dict(causal=True), dict(causal=True, shift=True), dict(window=1, n_layer=1))
    print("    " + "".join(f"{', '.join(f'{k}={v}' for k, v in s.items()) or 'usual':28}" for s in switches))
    for rows in zip(*(seen(network(**s)) for s in switches)):
        print("    " + "".join(f"{row:28}" for row in rows))

    usual_size = network().num_params()
    print(f"\n3. What a switch costs in parameters, of {usual_size:,}:")
    for name, value in dict(n_kv_head=1, mlp="swiglu", qk_norm=False, position="learned", tied=True).items():
        print(f"    {name}={value}".ljust(26) + f"{network(**{name: value}).num_params() - usual_size:+7,}")

    model = network(causal=True)
    some, cache = torch.tensor([2, 5]), model.cache(1, 8)
    one_by_one = torch.cat([model(ids[:, i : i + 1], cache=cache) for i in range(8)], 1)
    some_off = (model(ids)[0, some] - model(ids, rows=some)).abs().max()
    print("\n4. The same numbers for less work:")
    print(f"    rows=[2, 5]: logits of two tokens alone, off by {some_off:.0e}")
    print(f"    a KV cache: one token at a time, off by {(model(ids) - one_by_one).abs().max():.0e}")
    print("    Next: python mdlm.py")


if __name__ == "__main__":
    tutorial()
