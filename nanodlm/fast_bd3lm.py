"""bd3lm.py's sampler and likelihoods, made fast: ragged batches, and the exact cache of whole blocks (BD3LM, eq. 7)."""

import warnings
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F

import mdlm
from bd3lm import CAUSAL, LossOptions, from_blocks, nelbo, part_of, predict, to_blocks, trained_block_size  # noqa: F401
from mdlm import Output, certainty
from nanodlm import decode
from nanodlm.bounds import Whole
from nanodlm.choice import one_per_row, resolution, scatter
from nanodlm.guard import evaluating
from nanodlm.likelihood import portions
from nanodlm.noise import home, to
from nanodlm.rows import larger, rows_of


@dataclass
class LikelihoodOptions(mdlm.LikelihoodOptions):
    batch_size: int = 16  # sequences per forward


@evaluating("config.block_size", "config.seq_len", "config.vocab_size")
def log_likelihood(model, prompts, targets, options=LikelihoodOptions(), *, mask_id, numbers=None):
    """bd3lm.log_likelihood for ragged pairs, in batches; float64 (N,). The exact methods take
    block_size forwards, not one per token: what a block is given, the text before it, is known from the start, so all
    blocks reveal a token at the same time."""
    out, size, device = [], trained_block_size(model), next(model.parameters()).device
    numbers = torch.arange(len(prompts)) if numbers is None else numbers
    if options.method in ("llada", "dream", "illada") or getattr(options, "cfg_scale", 0.0):  # of likelihood.py's own
        raise ValueError(f"method={options.method}, cfg_scale={options.cfg_scale:g} is defined for mdlm only")
    longest, seq_len = max((len(p) + len(t) for p, t in zip(prompts, targets)), default=0), model.config.seq_len
    if longest > seq_len:
        raise ValueError(f"a text of {longest} tokens exceeds the context of {seq_len}; cut it into windows")
    if not len(prompts):
        return torch.zeros(0, dtype=torch.float64)
    for part in portions(targets, options.batch_size, model.config.vocab_size):
        pairs = list(zip(prompts, targets))[part]
        x0, real = decode.pad([home(torch.cat([p, t])) for p, t in pairs], mask_id)
        lengths = torch.tensor([len(p) for p, _ in pairs], device=x0.device)
        more = int(whole_blocks(real.sum(1), size, seq_len).max()) - x0.shape[1]
        x0, real = F.pad(x0, (0, more), value=mask_id), F.pad(real, (0, more))
        position = torch.arange(x0.shape[1], device=x0.device)
        target = real & (position >= lengths[:, None])
        if options.method == "nelbo":
            keys = dict(mask_id=mask_id, maskable=target.to(device), real=real.to(device), seed=options.seed)
            keys["first"] = numbers[part].to(x0.device)
            out.append(-nelbo(model, x0.to(device), **keys, samples=options.mc_samples))
            continue
        total = torch.zeros(x0.shape, dtype=torch.float64, device=x0.device)
        hidden = target.clone()
        while hidden.any():
            leftmost = one_per_row(-to_blocks(position.double().expand_as(hidden), size), to_blocks(hidden, size))
            best = from_blocks(leftmost, x0.shape[1])
            rows = best if options.method == "left_to_right" else hidden
            given = torch.where(hidden | ~real, mask_id, x0), x0, rows.flatten().nonzero()[:, 0]
            logits = predict(model, *(v.to(device) for v in given), size, mask_id)
            if options.method == "confidence":
                score = to_blocks(scatter(home(certainty(logits, "confidence")), hidden), size)
                best = one_per_row(score, to_blocks(hidden, size), resolution(model))
                best = from_blocks(best, x0.shape[1])
                logits = logits[best[hidden].to(device)]
            total[best] = home(logits).double().log_softmax(-1).gather(1, x0[best][:, None])[:, 0]
            hidden &= ~best
        out.append(total.sum(1))
    return torch.cat(out)


@dataclass
class SampleOptions(decode.SampleOptions):
    block_size: Whole = 0  # tokens of a block; 0 means as trained (bd3lm), or the whole canvas at once (mdlm)
    window: Whole = 0  # bd3lm: a block sees this many tokens, its own included; 0 means the context it was trained on
    overhang: bool = False  # bd3lm: the last block is written to its end, and cut there where the text ends (LLaDA2.x)
    cache: Literal["kept", "parts", "block", "none"] = "kept"  # bd3lm: parts: with sub_block; block, none: to compare
    sub_block: Whole = 0  # bd3lm: reveal a block in parts of this many tokens, left to right; 0 means all of it at once
    opening: Literal["rule", "next"] = "rule"  # bd3lm: next: a block's first token is a part of its own

    def __post_init__(self):
        if self.compile:
            raise ValueError("compile does nothing for bd3lm, whose steps have no one shape; leave it out")
        if self.cache == "parts" and not self.sub_block:
            raise ValueError("cache=parts needs sub_block, the tokens of a part")
        super().__post_init__()


def whole_blocks(lengths, size, seq_len):
    """Where the block that holds a text's last token ends, as in training: a whole block, or the end of the context."""
    ends = -(-lengths // size) * size
    return torch.where(lengths <= seq_len, ends.clamp(max=seq_len), ends)


class Blocks:
    """The rows of a batch (rows.py) as the network on the device reads them: a block, given what is stored of those
    before it. The cache keeps what a row's finished blocks are."""

    def __init__(self, model, size, window, options, mask_id):
        self.model, self.size, self.window, self.options, self.mask_id = model, size, window, options, mask_id
        self.copies = 2 if options.cfg_scale else 1  # guidance: a second batch, in which the given tokens are masks
        self.cache, nothing = None, torch.zeros(0, dtype=torch.int64)
        self.live, self.stored, self.seen_whole = nothing, nothing, nothing

    def enter(self, rows, kept):
        """Rows have come behind the kept ones (int64 (K,)), which are now the first K."""
        B, L = rows.x.shape
        self.cache = larger(self.model, self.cache, self.live, kept, self.copies, B, L)
        self.x, self.hole, self.ends, self.origin = rows.x, rows.hole, rows.room, rows.origin
        self.live, first = torch.arange(B), torch.arange(len(kept))  # the rows that the cache holds
        # Tokens of each row that are in the cache for good: whole blocks; and where the block starts over all of which
        # the last such pass went.
        self.stored = torch.zeros(B, dtype=torch.int64).index_copy_(0, first, self.stored[kept])
        self.seen_whole = torch.full((B,), -1).index_copy_(0, first, self.seen_whole[kept])

    def logits_at(self, r, position, wanted):
        """Reader of the logits at the wanted positions (bool, R, W) of rows r, for decode.Loop; and whether something
        was stored, too, int64 (R,)."""
        o, config, cache, size, mask_id = self.options, self.model.config, self.cache, self.size, self.mask_id
        x, stored, ends, device = self.x, self.stored, self.ends, self.cache.filled.device
        if len(r) < len(self.live):
            cache.keep(to(torch.isin(self.live, r).repeat(self.copies).nonzero()[:, 0], device))
            self.live = r
        # Each row's tokens of this pass: from the first one that is not stored to the end of its block.
        active = wanted.any(1)
        zero = self.origin[r]
        start = (position[:, 0] - zero) // size * size + zero  # of the block, of which these may be a part
        pending = stored[r] < start
        begin = torch.where(pending, 0, start) if o.cache == "block" else stored[r] * (o.cache != "none")
        begin = (begin - int(config.shift)).clamp(min=0)  # shifted, the token before predicts the first
        end = stop = torch.minimum(start + size, ends[r])
        alone, own = torch.zeros_like(active), config.causal and not config.shift
        if config.shift and config.two_way or own and o.opening == "next":
            # What the text before a block predicts is read as that is stored: no more passes.
            alone = ~(wanted & (position != start[:, None])).any(1) & (start > 0)
            end = torch.where(alone, torch.minimum(start + int(config.shift), end), end)
        if o.cache == "parts":  # a pass over a part alone, as soon as its first token is known
            part = (self.seen_whole[r] == start) & (x[r, position[:, 0]] != mask_id)
            self.seen_whole[r] = torch.where(active & ~alone, start, self.seen_whole[r])
            begin, end = torch.where(part, position[:, 0], begin), torch.where(part, position[:, -1] + 1, end)
        first_end = torch.minimum(((begin - zero) // size + 1) * size + zero, ends[r])
        first_end = torch.where(active, first_end, x.shape[1])
        T, lowest = int(((end - begin) * active).max()), int(first_end.min()) - self.window
        cache.visible = slice(max(0, lowest), int(stop.max()))
        p = begin[:, None] + torch.arange(T)  # (R, T)
        p = torch.where((p < end[:, None]) & active[:, None], p, -1)  # -1: padding
        i, j = wanted.nonzero(as_tuple=True)
        rows = i * T + position[i, j] - begin[i] - alone[i].long() * own
        ids = x[r[:, None], p.clamp(min=0)]
        if o.cfg_scale:
            given = ~self.hole[r[:, None], p.clamp(min=0)]
            ids, rows = torch.cat([ids, ids.masked_fill(given, mask_id)]), torch.cat([rows, rows + ids.numel()])
            p = p.repeat(2, 1)
        of_rows = (v.repeat(self.copies)[:, None, None] for v in (ends[r], zero, start))
        ids, p, rows, last, zero, first = (to(v, device) for v in (ids, p, rows, *of_rows))
        k, q = torch.arange(x.shape[1], device=device)[cache.visible], p[:, :, None]
        q_block, k_block = (q - zero) // size, (k - zero) // size
        seen = k_block <= q_block  # (R, T, S)
        if config.causal or config.shift and not config.two_way:
            seen = k <= q if config.shift else (k <= q) | seen & (q >= first)
        q_end = torch.minimum((q_block + 1) * size + zero, last)
        mask = seen & (k >= q_end - self.window) | (q < 0)
        hidden = self.model.hidden(ids, mask=mask, positions=p, cache=cache, rows=rows)
        stored[r] = torch.where(active, start, stored[r])
        return decode.reader(self.model, hidden, o.cfg_scale, o.exact), (pending & ~alone).long() * (o.cache != "none")


def open_batch(model, options, *, mask_id, eos_id=None, trace=False):
    """A batch (decode.Loop) without rows, for options of this SHAPE."""
    o, config = options, model.config
    size, window = o.block_size or trained_block_size(model), o.window or config.seq_len
    if size > config.seq_len:
        raise ValueError(f"block_size={size} exceeds the context of {config.seq_len} tokens it was trained on")
    part_of(size, o)
    if window < size:
        raise ValueError(f"window={window} is smaller than a block of {size} tokens")
    if config.block_size not in (0, size):
        warnings.warn(f"the network was trained on blocks of {config.block_size} tokens, not {size}", stacklevel=3)
    source = Blocks(model, size, window, o, mask_id)
    return decode.Loop(model, source, o.sub_block or size, mask_id=mask_id, eos_id=eos_id, trace=trace)


def rows_of_prompts(model, prompts, options, *, mask_id, numbers=None, until=None):
    """The rows of generate()'s arguments."""
    o, config, size = options, model.config, options.block_size or trained_block_size(model)
    x, real = decode.pad([F.pad(p.long().cpu(), (0, o.max_new_tokens), value=mask_id) for p in prompts], mask_id)
    lengths, hole = real.sum(1), (x == mask_id) & real
    origin = hole.long().argmax(1) % size * (config.causal and not config.shift)
    ends = origin + whole_blocks(lengths - origin, size, config.seq_len - origin)
    if config.position == "learned" and ends.max() > config.seq_len:
        raise ValueError(f"learned positions end at {config.seq_len}: shorten the prompt, or max_new_tokens")
    # What follows a text within its last block stays hidden for good: seen as masks, as in training, never revealed.
    more = int(ends.max()) - x.shape[1]
    x, hole = F.pad(x, (0, more), value=mask_id), F.pad(hole, (0, more))
    at, over = torch.arange(x.shape[1]), lengths
    if o.overhang:  # unless there is nothing to write
        hole |= (at >= lengths[:, None]) & (at < ends[:, None]) & hole.any(1, keepdim=True)
        over = torch.where(hole.any(1), ends, lengths)
    o = replace(o, block_size=size)
    return rows_of(x, hole, over, origin, o, o.sub_block or size, numbers, until, room=ends)


@evaluating("hidden", "head", "cache", "config.block_size", "config.seq_len", "config.vocab_size", "config.position")
def generate(
    model, prompts, options=SampleOptions(), *, mask_id, eos_id=None, until=None, numbers=None, trace=False, watch=None
):
    """Continue or fill in each prompt (1-D int64 tensor) block by block; arguments and result are fast_mdlm.generate's.

    Blocks lie where bd3lm.generate has them: as in training, or behind a causal network's prompt. A block is denoised
    while it attends to the cached keys and values of what is finished. In the first step of the next block
    the finished one goes through the network once more, now clean, and is stored: no token is ever encoded again.
    Every row has its own block and step, and leaves the batch, and the cache, when it is finished. BD3LM, alg. 2.

    A text may be longer than the context; what lies before the window is then out of sight.

    num_forwards counts the storing of a block, or of the prompt, as a forward of its own, as it would be in a sampler
    that does not fuse it with the next step. With opening=next, where what is stored predicts a block's first token, it
    is the forward that does so.
    """
    o, loop = options, open_batch(model, options, mask_id=mask_id, eos_id=eos_id, trace=trace)
    if not any(len(p) + o.max_new_tokens for p in prompts):
        return Output([p.long() for p in prompts], [0] * len(prompts), [[] for _ in prompts])
    out = loop.run(rows_of_prompts(model, prompts, o, mask_id=mask_id, numbers=numbers, until=until), watch)
    lengths = [len(p) + o.max_new_tokens for p in prompts]
    out.tokens = [tokens[:n].to(p.device) for tokens, n, p in zip(out.tokens, lengths, prompts)]
    out.trace = [[e for e in events if e[1] < n] for events, n in zip(out.trace, lengths)]
    return out
