"""mdlm.py made fast: ragged batches, and a whole canvas with Fast-dLLM's caches (arXiv 2505.22618, section 3.2)."""

import torch

from mdlm import CAUSAL, LossOptions, Output, nelbo  # noqa: F401
from model import Transformer
from nanodlm.decode import Loop, SampleOptions, check_length, pad, reader
from nanodlm.device import compiler_lacks
from nanodlm.guard import evaluating
from nanodlm.likelihood import LikelihoodOptions, log_likelihood  # noqa: F401
from nanodlm.noise import to
from nanodlm.rows import larger, rows_of


def compiled(model):
    """model.hidden, compiled for calls of one shape; on a GPU as CUDA graphs, which spare it the launch of kernels."""
    if not isinstance(model, Transformer):  # runs through transformers
        return model.hidden
    if not hasattr(model, "graph"):
        if lack := compiler_lacks(str(model.embed.weight.device)):
            raise ValueError(f"compile=True cannot be here: {lack}; install a C++ compiler, or leave it out")
        mode = "reduce-overhead" if model.embed.weight.is_cuda else None
        model.graph = torch.compile(model.hidden, dynamic=False, mode=mode)
    return model.graph


def cache_again(model, batch, size):
    """model.cache for compiled(): the same one again and again, of few sizes, as every new one would be compiled, or
    recorded, anew."""
    if not isinstance(model, Transformer):
        return model.cache(batch, size)
    key = batch, -(-size // 256) * 256
    kept = model.__dict__.setdefault("caches", {})
    if key not in kept:
        kept[key] = model.cache(*key)
        for store in (*kept[key].k, *kept[key].v, kept[key].filled):
            torch._dynamo.mark_static_address(store)
    kept[key].filled.zero_()
    return kept[key]


class Canvas:
    """The rows of a batch (rows.py) as the network on the device reads them: whole, or within a block by what is kept
    of the rest.

    A pass writes the slots of the cache for the tokens that it is given, and who is not given keeps what is there."""

    def __init__(self, model, options, mask_id):
        self.model, self.options, self.mask_id, self.device = model, options, mask_id, next(model.parameters()).device
        self.copies = 2 if options.cfg_scale else 1  # guidance: a second batch, in which the given tokens are masks
        self.cache, self.live, self.stored = None, torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
        if options.compile:
            compiled(model)  # or else it is refused now

    def enter(self, rows, kept):
        """Rows have come behind the kept ones (int64 (K,)), which are now the first K."""
        B, L = rows.x.shape
        if self.options.compile:  # for one shape: no rows join others
            self.cache = cache_again(self.model, self.copies * B, L)
        elif self.options.cache != "none":
            self.cache = larger(self.model, self.cache, self.live, kept, self.copies, B, L)
        self.x, self.hole, self.lengths = rows.x, rows.hole, rows.lengths
        self.live = torch.arange(B)  # the rows that the cache holds
        self.stored = torch.full((B,), -1).index_copy_(0, torch.arange(len(kept)), self.stored[kept])  # where the
        # block starts for which a row was stored

    def encode(self, r, i, begin, stop, width, position, wanted, one_shape=False):
        """Hidden states of the wanted positions, from one pass over begin…stop, `width` tokens at most, of the canvases
        of rows r[i]."""
        o, x, cache = self.options, self.x, self.cache
        begin, stop, position, wanted = (v[i] for v in (begin, stop, position, wanted))
        p = begin[:, None] + torch.arange(width)
        padding = p >= stop[:, None]
        index = r[i, None], p
        if some := bool(padding.any()):
            p, index = p.masked_fill(padding, -1), (r[i, None], p.masked_fill(padding, 0))
        a, b = wanted.nonzero(as_tuple=True)
        ids, rows = x[index], a * width + position[a, b] - begin[a]
        if o.cfg_scale:
            rows = torch.cat([rows, rows + ids.numel()])
            ids, p = torch.cat([ids, ids.masked_fill(~self.hole[index], self.mask_id)]), p.repeat(2, 1)
        ids, p, rows = (to(v, self.device) for v in (ids, p, rows))
        if cache is None:
            return self.model.hidden(ids, mask=p >= 0 if some else None, positions=p, rows=rows)
        cache.rows = None
        if len(i) < len(r):
            cache.rows = to(torch.cat([i + k * len(r) for k in range(self.copies)]), self.device)
        if one_shape:  # all positions of the block
            return compiled(self.model)(ids, positions=p, cache=cache).flatten(0, 1)[rows]
        return self.model.hidden(ids, positions=p, cache=cache, rows=rows)

    def logits_at(self, r, position, wanted):
        """Reader of the logits at the wanted positions (bool, R, W) of rows r, for decode()."""
        o, lengths, shift = self.options, self.lengths, int(self.model.config.shift and self.options.opening == "rule")
        if o.compile:  # no row leaves: those that are finished become padding
            full = [v.new_zeros(len(self.x), v.shape[1]).index_copy_(0, r, v) for v in (position, wanted)]
            r, position, wanted = torch.arange(len(self.x)), *full
        active, start = wanted.any(1), position[:, 0]
        after = start + position.shape[1]
        end = lengths[r] if o.lookahead else torch.minimum(lengths[r], after)
        if self.cache is None:
            i = active.nonzero()[:, 0]
            hidden = self.encode(r, i, 0 * end, end, int(end[i].max()), position, wanted)
            return reader(self.model, hidden, o.cfg_scale, o.exact), 0
        if len(r) < len(self.live):
            stay = torch.isin(self.live, r).repeat(self.copies).nonzero()[:, 0]
            self.cache.keep(to(stay, self.device))
            self.live = r
        self.cache.full = bool((end == self.cache.size).all())
        # A row that enters a block reads, and stores, its whole canvas. Until the block is done, what stands before it
        # (prefix), or before and behind it (dual), keeps these keys and values: that is the approximation.
        fresh = active & (self.stored[r] != start)
        self.stored[r] = torch.where(fresh, start, self.stored[r])
        begin = (start - shift).clamp(min=0)  # shifted, the token before predicts the block's first, if that is hidden
        stop = torch.where(active & ~fresh, end if o.cache == "prefix" else torch.minimum(after, end), begin)
        first, i, passes = wanted & fresh[:, None], fresh.nonzero()[:, 0], []
        if len(i):
            passes.append((fresh, self.encode(r, i, 0 * end, end, int(end[i].max()), position, first)))
        width = int((stop - begin).max())
        if width:  # all rows, the others as padding: picking rows would copy the cache
            width = position.shape[1] + shift if o.compile else width
            i = torch.arange(len(r))
            passes.append((~fresh, self.encode(r, i, begin, stop, width, position, wanted & ~first, o.compile)))
        hidden = passes[0][1]
        if len(passes) == 2:
            row = wanted.nonzero()[:, 0].repeat(self.copies)
            hidden = hidden.new_empty(len(row), hidden.shape[1])
            for rows, part in passes:
                hidden.index_copy_(0, to(rows[row].nonzero()[:, 0], self.device), part)
        return reader(self.model, hidden, o.cfg_scale, o.exact), 0


def open_batch(model, options, *, mask_id, eos_id=None, trace=False):
    """A batch (decode.Loop) without rows, for options of this SHAPE."""
    return Loop(model, Canvas(model, options, mask_id), options.block_size, mask_id=mask_id, eos_id=eos_id, trace=trace)


def rows_of_prompts(model, prompts, options, *, mask_id, numbers=None, until=None):
    """The rows of generate()'s arguments."""
    extra = torch.full((options.max_new_tokens,), mask_id)
    x, real = pad([torch.cat([p.long().cpu(), extra]) for p in prompts], mask_id)
    check_length(model, x)
    hole = (x == mask_id) & real
    origin = hole.long().argmax(1)  # blocks are counted from the first hole
    return rows_of(x, hole, real.sum(1), origin, options, options.block_size, numbers, until)


@evaluating("hidden", "head", "config.vocab_size", "config.position", "config.shift")
def generate(
    model, prompts, options=SampleOptions(), *, mask_id, eos_id=None, until=None, numbers=None, trace=False, watch=None
):
    """Fill in masks. Each prompt (1-D int64 tensor) is a canvas: its own masks are holes to fill, and
    `max_new_tokens` masks are appended. Rows of different lengths share the batch; each advances through its own
    blocks and steps, leaves when it is finished, and gives what it would have given alone.

    With eos_id, a row is finished once an end-of-text stands in the tail (behind the last given token) with nothing
    hidden before it, and is cut there. It always ends, and never returns a mask: steps and ancestral count their steps,
    the last of which reveals what is left; the other quotas reveal at least one token per row and step. A step that
    reveals nothing in any row costs no forward.

    until    called when a block is done, with the row so far, int64 (n,), its prompt's length, and of how many tokens
             at its end, at most, it was not asked before; true ends the row. For prompts without holes
    numbers  of the prompts, int64 (B,), from which with the seed alone their random numbers come; default: their places
    trace    keep every reveal (and remasking, as token mask_id with probability 0)
    watch    called after each step with the list of canvases, one int64 tensor per prompt
    """
    if not any(len(p) + options.max_new_tokens for p in prompts):
        return Output([p.long() for p in prompts], [0] * len(prompts), [[] for _ in prompts])
    found = rows_of_prompts(model, prompts, options, mask_id=mask_id, numbers=numbers, until=until)
    out = open_batch(model, options, mask_id=mask_id, eos_id=eos_id, trace=trace).run(found, watch)
    out.tokens = [tokens.to(p.device) for tokens, p in zip(out.tokens, prompts)]
    return out
