"""How likely a text is: log p(target | prompt) of ragged pairs, as a bound, exactly, or as published codes estimate it;
and means with their errors."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from mdlm import certainty, hide_by_count, nelbo_masks
from nanodlm.bounds import Amount, Seed, Size, check
from nanodlm.choice import one_per_row, resolution, scatter
from nanodlm.decode import check_length, pad, reader, states
from nanodlm.guard import evaluating
from nanodlm.noise import home, of_masks, uniform


def llada_masks(maskable, row, j, samples, seed, batch, begin=0):
    """nelbo_masks (LLaDA, eq. 6) as its published code draws them: `batch` masks at a time, whose counts are k,
    k + n/batch, …, modulo n, for one k ~ U{1…n}."""
    n = maskable.sum(1)
    k = (uniform(seed, 6, row, j // batch) * n).floor() + 1
    count = ((k + j % batch * (n / batch)).round().long() - 1) % n.clamp(min=1) + 1
    return hide_by_count(count, of_masks(seed, row, j, maskable.shape[1], begin), maskable), n.double() / count


def dream_masks(maskable, row, j, samples, seed, batch, begin=0):
    """nelbo_masks as Dream's code (arXiv 2508.15487) draws them: each token with probability p = t + (1 - t) / 1000,
    weight 1/p, t evenly spread over `batch` masks; a row's last maskable token, its end-of-text, is never hidden."""
    t = (uniform(seed, 6, row, j // batch) + (j % batch) / batch) % 1
    p = (1 - 1e-3) * t + 1e-3
    position = torch.arange(maskable.shape[1], device=maskable.device)
    last = torch.where(maskable, position, -1).amax(1, keepdim=True)
    return (of_masks(seed, row, j, maskable.shape[1], begin) < p[:, None]) & maskable & (position != last), 1 / p


def mean_and_error(values):
    """Mean and standard error of a float tensor (N,), as floats; a single value has no error: None."""
    values = values.double()
    return values.mean().item(), (values.std() / len(values) ** 0.5).item() if len(values) > 1 else None


def per_token(nats, tokens):
    """Nats per token of texts of different lengths, from both (N,) in float64, linearised about their ratio: the mean
    is that of all nats over all tokens, and the spread that of a ratio."""
    ratio = nats.sum() / tokens.sum()
    return ratio + (nats - ratio * tokens) / tokens.mean()


@dataclass
class LikelihoodOptions:
    method: Literal["nelbo", "left_to_right", "confidence", "llada", "dream", "illada"] = "nelbo"  # a bound, or exact
    mc_samples: Size = 16  # masks per sequence (nelbo, llada, dream)
    mc_batch: Size = 16  # … drawn together (llada, dream), so that their counts are spread evenly
    cfg_scale: Amount = 0.0  # classifier-free guidance, as in SampleOptions; what is measured is then no likelihood
    batch_size: Size = 16  # sequences per forward
    seed: Seed = 0  # of the masks
    seen_end: bool = False  # illada: behind each target an end-of-text, its last token, is seen and not scored

    def __post_init__(self):
        check(self)
        if self.seen_end and self.method in ("nelbo", "llada", "dream"):
            raise ValueError(f"seen_end=True is iLLaDA's, with method=illada; method={self.method} does not have it")


@evaluating("hidden", "head", "config.vocab_size", "config.position")
def log_likelihood(model, prompts, targets, options=LikelihoodOptions(), *, mask_id, numbers=None):
    """log p(target | prompt) in nats for lists of 1-D int64 tensors, ragged; float64 (N,).

    nelbo          minus the NELBO: a lower bound, `mc_samples` forwards
    left_to_right  exact, for the model that reveals the target from left to right: one forward per token
    confidence     exact, for the sampler that reveals the position with the largest maximum probability first and
                   samples its token: that order depends on revealed tokens only (DUEL, arXiv 2603.01367)
    llada, dream   the bound, estimated as in their published evaluations: for scores that can be compared with theirs.
                   dream never hides a target's last token, which must be an end-of-text: append one
    illada         iLLaDA's confidence-based scoring (arXiv 2606.25331): as confidence, but the position whose own token
                   is the likeliest is revealed first. That order looks at the answer, so this is no likelihood
                   (github.com/ML-GSAI/LLaDA, pull request 134: llh=confidence; seen_end is its padd_eos)

    numbers  of the pairs, int64 (N,), from which with the seed alone their masks come; default: their places
    """
    if not len(prompts):
        return torch.zeros(0, dtype=torch.float64)
    o, bound = options, options.method in ("nelbo", "llada", "dream")
    numbers = torch.arange(len(prompts)) if numbers is None else numbers
    x0, real = pad([home(torch.cat([p, t])) for p, t in zip(prompts, targets)], mask_id)
    check_length(model, x0)
    lengths = torch.tensor([len(p) for p in prompts], device=x0.device)
    position = torch.arange(x0.shape[1], device=x0.device)
    target = real & (position >= lengths[:, None]) & (position < real.sum(1, keepdim=True) - int(o.seen_end))
    numbers = numbers.to(x0.device)
    size = max(1, 2**22 // (x0.shape[1] * (o.mc_samples if bound else 1) or 1))  # what follows is a few such tables
    parts = zip(*(v.split(size) for v in (x0, real, target, *([numbers] if bound else []))))
    return torch.cat([(minus_nelbo if bound else chain_rule)(model, *part, o, mask_id) for part in parts])


def portions(targets, size, vocab_size):
    """Slices of at most `size` targets, whose logits are 2^30 numbers (4 GB) at most, or of one target: for ar and
    bd3lm, which have the logits of a batch all at once."""
    begin, tokens = 0, 0
    for i, target in enumerate(targets):
        if i > begin and (i - begin == size or (tokens + len(target)) * vocab_size > 2**30):
            yield slice(begin, i)
            begin, tokens = i, 0
        tokens += len(target)
    yield slice(begin, len(targets))


def minus_nelbo(model, x0, real, target, number, options, mask_id):
    """The estimate of each row's bound, float64 (B,). Equal canvases go through the network once: a short answer can be
    hidden in few ways, and the letters of a multiple choice are all hidden in the same."""
    o = options
    batch = min(o.mc_batch, o.mc_samples)
    masks = dict(nelbo=nelbo_masks, llada=partial(llada_masks, batch=batch), dream=partial(dream_masks, batch=batch))
    row = torch.arange(len(x0), device=x0.device).repeat_interleave(o.mc_samples)
    j = torch.arange(o.mc_samples, device=x0.device).repeat(len(x0))
    # A target, its row's end, is short beside the text before it: masks are tables (N, W) of the targets alone.
    begin, width = real.sum(1) - target.sum(1), max(1, int(target.sum(1).max()))
    at = begin[:, None] + torch.arange(width, device=x0.device)
    own = at < real.sum(1, keepdim=True)
    ids = torch.zeros_like(at).masked_scatter_(own, x0[target])
    hidden, weight = masks[o.method](own[row], number[row], j, o.mc_samples, o.seed, begin=begin[row])
    seen = {}
    before = [seen.setdefault(x[:n].tobytes(), i) for i, (x, n) in enumerate(zip(x0.cpu().numpy(), begin.tolist()))]
    before = torch.tensor(before, device=x0.device)[row, None]
    canvas, seen = torch.cat([before, torch.where(own[row], torch.where(hidden, -1, ids[row]), -2)], 1), {}
    same = [seen.setdefault(c.tobytes(), i) for i, c in enumerate(canvas.cpu().numpy())]
    first, which = torch.tensor(same, device=x0.device).unique(return_inverse=True)
    length = real.sum(1)[row[first]]
    order = length.argsort(descending=True, stable=True)
    place = order.argsort()[which]  # of each canvas among the different ones, the longest first
    total = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
    for start in range(0, len(first), o.batch_size):
        mine = first[order[start : start + o.batch_size]]
        x, visible, answer = (v[row[mine], : int(length[order[start]])] for v in (x0, real, target))
        wanted = torch.zeros_like(answer).masked_scatter_(answer, hidden[mine][own[row[mine]]])
        ask = ((place >= start) & (place < start + len(mine))).nonzero()[:, 0]  # all the rows that have these canvases
        i, at = hidden[ask].nonzero(as_tuple=True)
        begins = wanted.sum(1).cumsum(0) - wanted.sum(1)
        state = begins[place[ask] - start][i] + hidden[ask].cumsum(1)[i, at] - 1
        token = ids[row[ask[i]], at]
        xt = torch.where(wanted, mask_id, x)
        logp, _ = own_tokens(model, xt, visible, answer, wanted, state, token, mask_id, o)
        total.index_add_(0, row[ask[i]], logp * weight[ask[i]] / o.mc_samples)
    return total


def chain_rule(model, x0, real, target, options, mask_id):
    """log p of each row's target, one token after the other (DUEL), float64 (B,)."""
    total = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
    hidden, position = target.clone(), torch.arange(x0.shape[1], device=x0.device)
    while hidden.any():
        for r in hidden.any(1).nonzero()[:, 0].split(options.batch_size):
            T = int(real[r].sum(1).max())
            x, visible, answer, h = (v[r, :T] for v in (x0, real, target, hidden))
            best = wanted = h
            if options.method == "left_to_right":
                best = wanted = one_per_row(-position[:T].double().expand_as(h), h)
            token, xt = x[wanted], torch.where(h, mask_id, x)
            state = torch.arange(len(token), device=x.device)
            logp, sure = own_tokens(model, xt, visible, answer, wanted, state, token, mask_id, options)
            if options.method != "left_to_right":
                best = one_per_row(scatter(sure, wanted).nan_to_num(0.0), h, resolution(model))
            total[r] += torch.where(best, scatter(logp, wanted), 0.0).sum(1)
            hidden[r, :T] = h & ~best
    return total


def own_tokens(model, xt, real, target, wanted, state, token, mask_id, options):
    """log p of token (Q,) at the state-th (Q,) of the True places of wanted (bool, B, L), and the probability by which
    the method says how early it reveals each of these; both float64. llada, dream and illada leave the mask among the
    alternatives, as published."""
    scale, rows, device = options.cfg_scale, wanted.flatten().nonzero()[:, 0], next(model.parameters()).device
    if not len(rows):
        return (torch.zeros(0, dtype=torch.float64, device=xt.device),) * 2
    given = (v.to(device) for v in (xt, real, target, rows))
    read = reader(model, states(model, *given, mask_id, scale), scale)
    logp = torch.zeros(len(token), dtype=torch.float64, device=xt.device)
    sure = torch.zeros(len(rows), dtype=torch.float64, device=xt.device)
    for part in torch.arange(len(rows), device=xt.device).split(max(1, 2**25 // model.config.vocab_size)):
        logits = read(part.to(device))
        if options.method not in ("llada", "dream", "illada"):
            logits[:, mask_id] = -torch.inf
        ask = ((state >= part[0]) & (state <= part[-1])).nonzero()[:, 0]
        at, its = (state[ask] - part[0]).to(device), token[ask].to(device)
        logp[ask] = home(logits[at, its] - logits.logsumexp(-1)[at]).double()
        if options.method == "confidence":
            sure[part] = home(certainty(logits, "confidence")).double()
    return logp, sure if options.method == "confidence" else logp.exp()
