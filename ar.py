"""The autoregressive baseline: next-token prediction on the same network, so that every table has its AR row.

What differs from mdlm.py: attention is causal, the order is always left to right, the likelihood is exact, and a KV
cache holds the past. The mask token serves as beginning-of-text: the input is [mask, x_1 … x_{L-1}] and every one of
the L tokens is predicted, as in diffusion, so that the units are the same. Released models have no such token (mask_id
is None): their first token is given, never predicted.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from mdlm import Output
from model import fp32
from nanodlm import cross_entropy
from nanodlm.bounds import Above0, Amount, Seed, Size, Whole, check
from nanodlm.choice import choose_tokens
from nanodlm.decode import pad
from nanodlm.guard import evaluating
from nanodlm.likelihood import portions
from nanodlm.noise import home, uniform

CAUSAL = True


@dataclass
class LossOptions:
    pass


def token_nll(model, x0, rows, mask_id, real=None, texts=None):
    """-log p(x_i | x_<i) (BD3LM, arXiv 2503.09573, eq. 1) at the True places of rows (B, L), fp32 (N,), row-major."""
    i = torch.arange(x0.shape[1], device=x0.device)
    begins, mask, positions = i == 0, real, None
    if texts is not None:
        begins, mask, positions = texts.position == 0, texts.mask(), texts.positions()
        if texts.packed:  # each text sees its own past alone
            mask = mask & (i <= i[:, None])
    index = rows.flatten().nonzero()[:, 0]
    if mask_id is None:
        if (rows & begins).any():
            raise ValueError("this model has no begin-of-text: nothing says how likely a text's first token is")
        # The last token is an answer only: a text may be one token longer than the context.
        mask, positions = (m if m is None else m[:, :-1] for m in (mask, positions))
        mask = mask[:, :, :-1] if mask is not None and mask.dim() == 3 else mask
        inputs, asked = x0[:, :-1], rows[:, 1:].flatten().nonzero()[:, 0]
    else:
        inputs, asked = torch.where(begins, mask_id, F.pad(x0, (1, 0))[:, :-1]), index
    keys = dict(mask=mask, positions=positions, rows=asked)
    return cross_entropy.nll(model, x0.flatten()[index], mask_id, inputs, **keys)


def loss(model, x0, options=LossOptions(), *, mask_id, maskable=None, seed=0, shard=None, denominator=None, texts=None):
    """Cross entropy in nats per token, a scalar; the arguments are mdlm.loss's, of which seed and shard do nothing."""
    if maskable is None:
        maskable = torch.ones_like(x0, dtype=torch.bool)
    nll = token_nll(model, x0, maskable, mask_id, texts=texts)
    return nll.sum() / (maskable.sum() if denominator is None else denominator)


@evaluating()
def nelbo(model, x0, *, mask_id, maskable=None, real=None, samples=1, seed=0, first=0):
    """-log p(maskable | what is left of it) per row in nats, float64 (B,): exact, so samples and seed do nothing."""
    if maskable is None:
        maskable = torch.ones_like(x0, dtype=torch.bool) if real is None else real
    nll = token_nll(model, x0, maskable, mask_id, real)
    return home(torch.zeros_like(x0, dtype=nll.dtype).masked_scatter_(maskable, nll)).double().sum(1)


@dataclass
class LikelihoodOptions:
    batch_size: Size = 16  # sequences per forward

    def __post_init__(self):
        check(self)


@evaluating("config.vocab_size")
def log_likelihood(model, prompts, targets, options=LikelihoodOptions(), *, mask_id, numbers=None):
    """log p(target | prompt) in nats for lists of 1-D int64 tensors, ragged; float64 (N,), exact."""
    out = []
    if not len(prompts):
        return torch.zeros(0, dtype=torch.float64)
    for part in portions(targets, options.batch_size, model.config.vocab_size):
        pairs = list(zip(prompts, targets))[part]
        x0, real = pad([torch.cat([p, t]) for p, t in pairs], mask_id or 0)
        lengths = torch.tensor([len(p) for p, _ in pairs], device=x0.device)
        target = real & (torch.arange(x0.shape[1], device=x0.device) >= lengths[:, None])
        out.append(-nelbo(model, x0, mask_id=mask_id, maskable=target, real=real))
    return torch.cat(out)


@dataclass
class SampleOptions:
    max_new_tokens: Whole = 256  # tokens generated after each prompt
    temperature: Amount = 1.0  # of the token draw; 0 takes the most probable token
    top_k: Whole = 0  # draw among the k most probable tokens; 0 means all
    top_p: Above0 = 1.0  # draw among the fewest tokens that hold this much probability
    suppress: tuple[Whole, ...] = ()  # token ids never generated
    seed: Seed = 0  # row i of a call draws from seed and i alone

    def __post_init__(self):
        check(self)


@evaluating("cache")
def generate(
    model, prompts, options=SampleOptions(), *, mask_id, eos_id=None, until=None, numbers=None, trace=False, watch=None
):
    """Continue each prompt (1-D int64 tensor) by max_new_tokens, or up to an end-of-text. Rows of different lengths
    share the batch and the KV cache. Arguments and result are mdlm.generate's, `until` is bd3lm.generate's."""
    o = options
    if not len(prompts):
        return Output([], [])
    begin = int(mask_id is not None)  # whether the mask token is put in front of all, as begin-of-text
    for p in prompts:
        if begin and (p == mask_id).any():
            raise ValueError("an autoregressive model cannot fill in masks; use --prompt, or a diffusion checkpoint")
        if not begin and not len(p):
            raise ValueError("this model has no begin-of-text: give it a prompt of at least one token")
    fill = mask_id if begin else 0
    x, real = pad([F.pad(home(p).long(), (0, o.max_new_tokens), value=fill) for p in prompts], fill)
    (B, L), device, there = x.shape, x.device, next(model.parameters()).device
    length = torch.tensor([len(p) for p in prompts], device=device)  # tokens known so far, per row
    end = length + o.max_new_tokens
    events, forwards = [[] for _ in range(B)], torch.zeros_like(length)
    banned = torch.tensor([*([mask_id] if begin else []), *o.suppress], device=device, dtype=torch.int64)

    # Token i is predicted from the input at i: begin-of-text and the tokens before it. The first forward reads all
    # prompts, each later one only the newest token of every row.
    numbers = torch.arange(B, device=device) if numbers is None else numbers.to(device)
    alive = length < end
    cache = model.cache(B, L)
    width = int(length.max()) + begin
    inputs = F.pad(x, (begin, 0), value=fill)[:, :width]
    position = torch.arange(width, device=device).expand(B, width)
    ends_text = torch.tensor([] if eos_id is None else eos_id, device=device, dtype=torch.int64)
    clock = 0
    while alive.any():
        newest = length[:, None] - 1 + begin
        known, last = position <= newest, position == newest
        # Finished rows go on through the batch but write to no slot that anyone reads.
        ids, mask, positions, rows = (v.to(there) for v in (inputs, known & alive[:, None], position, last))
        logits = fp32(model(ids, mask=mask, positions=positions, cache=cache, rows=rows)).to(device)
        logits[:, banned] = -torch.inf
        tokens = choose_tokens(logits, uniform(o.seed, numbers, length, 1), o.temperature, o.top_k, o.top_p)
        forwards += alive
        r = alive.nonzero()[:, 0]
        x[r, length[r]] = tokens[r]
        if trace:
            p = logits.softmax(-1).gather(1, tokens[:, None])[:, 0]
            for i in r.tolist():
                events[i].append((clock, int(length[i]), int(tokens[i]), float(p[i])))
        length = length + alive
        alive = alive & (length < end) & ~torch.isin(tokens, ends_text)
        for i in alive.nonzero()[:, 0].tolist() if until else ():
            alive[i] = not until(x[i, : length[i]], len(prompts[i]), 1)
        inputs, position = tokens[:, None], (length - 1 + begin).clamp(max=L - 1)[:, None]
        clock += 1
        if watch is not None:
            unknown = mask_id if begin else -1  # what replay.py draws as not yet written
            now = torch.where(torch.arange(L, device=device) < length[:, None], x, unknown)
            watch([row[:n] for row, n in zip(now, end)])
    tokens = [row[:n].to(p.device) for row, n, p in zip(x, length.tolist(), prompts)]
    return Output(tokens, forwards.tolist(), events if trace else [])
