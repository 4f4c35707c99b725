"""Masked diffusion language models (MDLM, arXiv 2406.07524; MD4, 2406.04329; LLaDA, 2502.09992).

The idea in five lines. Hide each token of a text x_0 with probability 1 - alpha(t), t uniform in [0, 1]; the result
is x_t. A Transformer sees x_t, in both directions, and predicts what is hidden. The cross entropy at the hidden
positions, weighted by -alpha'(t) / (1 - alpha(t)), is in expectation an upper bound on -log p(x_0): the NELBO.
Sampling goes the other way: start from a canvas of masks and reveal a few positions per step, in any order.

    python mdlm.py      trains and samples something tiny, and says what it does

1 random numbers · 2 schedules · 3 corruption · 4 loss · 5 likelihood · 6 token choice · 7 generation · 8 tutorial
"""

from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from typing import Literal, get_args, get_origin

import torch
import torch.nn.functional as F

from model import Config, Transformer, fp32

CAUSAL = False  # the attention this algorithm needs; train.py sets the network's switch by it

# ------------------------------------------------------------------------------------------------------------------
# 1 · random numbers
#
# Every random number here is a pure function of integers: (seed, row, step, position). So a row of a batch is what it
# would have been alone, any split of a batch over processes or micro-batches gives the same numbers, CPU and GPU
# agree, and a resumed run needs no generator state.


def mix(x):
    """The splitmix64 finaliser on int64 (products wrap; torch's >> is arithmetic, so the sign bits are cut off)."""
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * -4658895280553007687
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * -7723592293110705685
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def uniform(*counters):
    """Uniform numbers strictly inside (0, 1), float64, from ints and int64 tensors; they broadcast together."""
    device = next((c.device for c in counters if torch.is_tensor(c)), None)
    state = torch.zeros((), dtype=torch.int64, device=device)
    for c in counters:
        c = c + 7046029254386353131
        state = mix(state + (c if torch.is_tensor(c) else (c + 2**63) % 2**64 - 2**63))  # ints wrap as tensors do
    return (((state >> 12) & ((1 << 52) - 1)).double() + 0.5) * 2.0**-52


def fold(seed, *counters):
    """One int64 seed from several: fold(seed, step) is a new, unrelated seed."""
    return int(uniform(seed, *counters) * 2**52)


# ------------------------------------------------------------------------------------------------------------------
# 2 · schedules


def mask_rate(t, schedule="linear"):
    """The probability 1 - alpha(t) that a token is hidden at time t, and its derivative.

    linear (MDLM's "log-linear"), poly2, poly3, … (t^k), cosine (MD4's), cosine_mdlm (the other way round)."""
    if schedule in ("linear", "dream"):  # which differ in a sampler's steps only
        return t, torch.ones_like(t)
    if schedule == "cosine":
        a = torch.pi / 2 * (1 - t)
        return a.cos(), torch.pi / 2 * a.sin()
    if schedule == "cosine_mdlm":
        a = torch.pi / 2 * t
        return 2 * (a / 2).sin() ** 2, torch.pi / 2 * a.sin()  # 1 - cos(a), without the cancellation
    if schedule.startswith("poly") and schedule[4:].replace(".", "", 1).isdigit() and float(schedule[4:]) > 0:
        k = float(schedule[4:])
        return t**k, k * t ** (k - 1)
    raise ValueError(f"unknown schedule {schedule!r}; use linear, poly2 (any power), cosine or cosine_mdlm")


def nelbo_weight(t, schedule="linear"):
    """w(t) = -alpha'(t) / (1 - alpha(t)); 1/t for the linear schedule."""
    rate, slope = mask_rate(t, schedule)
    return slope / rate


def stratified(seed, total, device=None, low_discrepancy=True):
    """`total` times in (0, 1), float64: one in each of `total` equal strata, jittered, in random order.

    Toy standard deviation of a batch loss at 16 rows: 0.378 independent, 0.042 jittered strata. The order is random
    because a batch index should not always see the same t."""
    i = torch.arange(total, device=device)
    u = uniform(seed, 1, i)
    if not low_discrepancy:
        return u
    return (uniform(seed, 2, i).argsort() + u) / total


# ------------------------------------------------------------------------------------------------------------------
# 3 · corruption


def hide_by_rate(rate, u, maskable):
    """Hide each maskable token independently with probability rate (B,); u uniform (B, L). Returns bool (B, L)."""
    return (u < rate[:, None]) & maskable


def hide_by_count(count, u, maskable):
    """Hide exactly count (B,) of each row's maskable tokens, chosen uniformly: those with the smallest u."""
    ranks = u.masked_fill(~maskable, 2.0).argsort(1).argsort(1)
    return (ranks < count[:, None]) & maskable


# ------------------------------------------------------------------------------------------------------------------
# 4 · loss


def check_choices(options):
    """A misspelt choice is an error for those, too, who call these functions from Python."""
    for f in fields(options):
        if get_origin(f.type) is Literal and getattr(options, f.name) not in get_args(f.type):
            raise ValueError(f"{f.name}={getattr(options, f.name)!r} is not one of {', '.join(get_args(f.type))}")


@dataclass
class LossOptions:
    schedule: str = "linear"  # mask rate over time: linear, poly2 (any power), cosine (MD4's), cosine_mdlm
    objective: Literal["nelbo", "masked_ce"] = "nelbo"  # w(t) times cross entropy, the bound; or without w(t)
    corruption: Literal["rate", "count"] = "rate"  # hide independently; or an exact count, with less variance
    complementary: bool = False  # also train on the opposite mask: every token is predicted once; doubles the batch
    t_shape: Literal["uniform", "bell"] = "uniform"  # bell: t ~ Beta(2, 2), fewer nearly clean and nearly empty rows
    t_min: float = 0.0  # t is drawn between t_min and t_max; clipped or bell-shaped times train well, but the
    t_max: float = 1.0  # weighted loss is then no longer the bound (nelbo() always integrates over all t)
    low_discrepancy: bool = True  # spread t evenly over the global batch
    see_ahead: float = 1.0  # chance that a token sees one behind it: 0 is causal attention (see train's anneal_iters)

    def __post_init__(self):
        check_choices(self)
        if not 0 <= self.see_ahead <= 1:
            raise ValueError(f"see_ahead={self.see_ahead} is a probability, between 0 and 1")
        mask_rate(torch.ones(1), self.schedule)
        if not 0 <= self.t_min <= self.t_max <= 1:
            raise ValueError(f"t_min={self.t_min} and t_max={self.t_max} must satisfy 0 <= t_min <= t_max <= 1")


@dataclass
class Texts:
    """Which text each token of a batch belongs to, where rows hold several texts, or one and padding."""

    number: torch.Tensor  # int64 (B, L): of the text in the global batch, -1 for padding; each row's texts are in order
    position: torch.Tensor  # int64 (B, L): of the token in its text
    first: int  # number of the first text here
    count: int  # texts here
    total: int  # texts in the global batch
    length: int  # tokens of a text at most, the same for the whole run
    packed: bool  # several texts in a row

    def mask(self):
        """Who sees whom: bool (B, L), the real tokens; or with several texts in a row (B, L, L), each its own text."""
        if not self.packed:
            return self.number >= 0
        return self.number[:, :, None] == self.number[:, None, :]  # padding sees padding, or it would see nothing

    def positions(self):
        """What the network is given: None, which counts from the row's start, or those within each text."""
        return self.position if self.packed else None

    def apart(self, x):
        """x (B, L), a row for every text: (count, length), where what a text lacks is 0 or False."""
        rows = x.new_zeros(self.count * self.length + 1)
        return rows.index_put((self.index,), x.masked_fill(self.number < 0, 0))[:-1].view(self.count, self.length)

    def together(self, x):
        """The inverse of apart, for one or several copies below each other: (k count, length) to (k B, L)."""
        copies = F.pad(x.reshape(-1, self.count * self.length), (0, 1))
        return copies[:, self.index].flatten(0, 1)

    @cached_property
    def index(self):
        inside = (self.number - self.first) * self.length + self.position
        return torch.where(self.number >= 0, inside, self.count * self.length)


def hidden_nll(model, xt, x0, hidden, mask_id, mask=None, positions=None):
    """-log p(x_0 | x_t) at the hidden tokens, fp32 (N,), in row-major order; logits are computed for those alone.

    The mask token is never predicted: its logit is excluded (SUBS, MDLM section 3.2.3)."""
    rows = hidden.flatten().nonzero()[:, 0]
    logits = fp32(model(xt, mask=mask, positions=positions, rows=rows))
    # Behind autograd's back, which would copy all logits: the gradient there is exp(-inf) = 0 anyway.
    logits.detach()[:, mask_id] = -torch.inf
    return F.cross_entropy(logits, x0.flatten()[rows], reduction="none")


def corrupt(maskable, options, seed, first, total):
    """What is hidden of rows first…first+B of `total`, and its weight in the loss: bool (B, L) and float64 (B, 1), one
    time t a row; both twice as long with complementary masks."""
    B, L = maskable.shape
    t_all = stratified(seed, total, maskable.device, options.low_discrepancy)
    if options.t_shape == "bell":  # the inverse of Beta(2, 2)'s distribution function, 3t^2 - 2t^3
        t_all = 0.5 - torch.sin(torch.asin(1 - 2 * t_all) / 3)
    t_all = options.t_min + (options.t_max - options.t_min) * t_all
    t = t_all[first : first + B]
    rate, slope = mask_rate(t, options.schedule)
    row = first + torch.arange(B, device=maskable.device)[:, None]
    u = uniform(seed, 3, row, torch.arange(L, device=maskable.device))

    if options.corruption == "count":  # k of n hidden, weight n/k: the same expectation, less variance (LLaDA)
        n = maskable.sum(1)
        k = torch.minimum((rate * n).floor().long() + 1, n.clamp(min=1))
        hidden = hide_by_count(k, u, maskable)
        weight, other_weight = slope * n / k, slope * n / (n - k).clamp(min=1)
        if options.complementary:  # the opposite of hiding everything is empty, so everything counts for both
            weight = torch.where(k >= n, 2 * weight, weight)
    else:
        hidden = hide_by_rate(rate, u, maskable)
        weight, other_weight = slope / rate, slope / (1 - rate)
    if options.complementary:
        # The opposite mask has rate 1 - r. Its density under this draw is 1/slope too, so its weight in the bound is
        # slope / (1 - r) where the first one's is slope / r; half the sum of both is the bound again.
        hidden = torch.cat([hidden, maskable & ~hidden])
        weight = torch.cat([weight, other_weight]) / 2
    if options.objective == "masked_ce":
        # A constant weight, so that micro-batches add up; about the mean over hidden tokens.
        mean_rate = mask_rate(t_all, options.schedule)[0].mean()
        weight = torch.full_like(weight, 1.0) / (1.0 if options.complementary else mean_rate)
    return hidden, weight[:, None]


def corrupt_texts(texts, maskable, corrupt, *args):
    """What corrupt(maskable, *args, first, total) hides, and its weight for every token, both (B, L), where each text
    is a row of its own: its own time t, and the same tokens hidden whatever it shares its row with."""
    if texts is None:
        hidden, weight = corrupt(maskable, *args)
        return hidden, weight.expand_as(hidden)
    hidden, weight = corrupt(texts.apart(maskable), *args, texts.first, texts.total)
    return texts.together(hidden), texts.together(weight.expand_as(hidden))


def ahead(mask, options, seed, length, device):
    """The mask for see_ahead < 1: causal, but each pair of a token and one behind it is seen with that probability,
    drawn anew in every step, so that a causal network learns to use it little by little (DiffuLLaMA, 2410.17891)."""
    if options.see_ahead == 1:
        return mask
    i = torch.arange(length, device=device)
    seen = (i <= i[:, None]) | (uniform(seed, 7, i[:, None], i) < options.see_ahead)
    return seen[None] if mask is None else seen & (mask if mask.dim() == 3 else mask[:, None])


def loss(model, x0, options=LossOptions(), *, mask_id, maskable=None, seed=0, shard=None, denominator=None, texts=None):
    """The training loss in nats per token, a scalar.

    x0           int64 (B, L), clean tokens
    maskable     bool (B, L): the tokens to learn; prompts and pads are not. Default: all
    seed         of this step; shard = (first, total): these are rows first…first+B of a global batch of total rows.
                 t is stratified over the whole of it, and the sum over its parts equals one large batch
    denominator  what the summed loss is divided by; default: the number of maskable tokens here
    texts        Texts, in place of shard: each text has its own t, positions and attention, so that the loss of
                 packed rows is that of rows with one text each
    """
    if maskable is None:
        maskable = torch.ones_like(x0, dtype=torch.bool)
    split = () if texts else (shard or (0, len(x0)))
    hidden, weight = corrupt_texts(texts, maskable, corrupt, options, seed, *split)
    mask, positions = (texts.mask(), texts.positions()) if texts else (None, None)
    mask = ahead(mask, options, seed, x0.shape[1], x0.device)
    if options.complementary:
        x0 = torch.cat([x0, x0])
        mask, positions = (m if m is None or len(m) < len(maskable) else torch.cat([m, m]) for m in (mask, positions))
    nll = hidden_nll(model, torch.where(hidden, mask_id, x0), x0, hidden, mask_id, mask, positions)
    return (weight[hidden].to(nll.dtype) * nll).sum() / (maskable.sum() if denominator is None else denominator)


# ------------------------------------------------------------------------------------------------------------------
# 5 · likelihood


def nelbo_masks(maskable, row, j, samples, seed):
    """Mask j (an int, or int64 (B,)) of `samples` of each row (numbered by row, int64 (B,)): what is hidden, bool
    (B, L), and the weight n/k of its cross entropy, float64 (B,)."""
    n = maskable.sum(1)
    spread = ((row * samples + j).double() * 0.6180339887498949 + uniform(seed, 5)) % 1
    k = torch.minimum((spread * n).floor().long() + 1, n.clamp(min=1))
    return hide_by_count(k, mask_numbers(maskable, row, j, seed), maskable), n.double() / k


def mask_numbers(maskable, row, j, seed):
    """The random numbers (B, L) that say what mask j of each row hides."""
    j = torch.as_tensor(j, device=row.device)[..., None]
    return uniform(seed, 4, row[:, None], j, torch.arange(maskable.shape[1], device=row.device))


def llada_masks(maskable, row, j, samples, seed, batch):
    """nelbo_masks as LLaDA's evaluation draws them: `batch` masks at a time, whose counts are k, k + n/batch, …, modulo
    n, for one k ~ U{1…n}."""
    n = maskable.sum(1)
    k = (uniform(seed, 6, row, j // batch) * n).floor() + 1
    count = ((k + j % batch * (n / batch)).round().long() - 1) % n.clamp(min=1) + 1
    return hide_by_count(count, mask_numbers(maskable, row, j, seed), maskable), n.double() / count


def dream_masks(maskable, row, j, samples, seed, batch):
    """nelbo_masks as Dream's evaluation draws them: each token with probability p = t + (1 - t) / 1000, weight 1/p, the
    times t of `batch` masks evenly spread; a row's last maskable token, its end-of-text, is never hidden."""
    t = (uniform(seed, 6, row, j // batch) + (j % batch) / batch) % 1
    p = (1 - 1e-3) * t + 1e-3
    position = torch.arange(maskable.shape[1], device=maskable.device)
    last = torch.where(maskable, position, -1).amax(1, keepdim=True)
    return hide_by_rate(p, mask_numbers(maskable, row, j, seed), maskable & (position != last)), 1 / p


@torch.no_grad()
def nelbo(model, x0, *, mask_id, maskable=None, real=None, samples=1, seed=0, first=0):
    """An unbiased estimate of each row's NELBO in nats, float64 (B,): an upper bound on -log p(maskable | the rest).

    Fixed-count estimator (LLaDA eq. 6): k ~ U{1…n}, hide exactly k of the n maskable tokens, n/k times their summed
    cross entropy; for all schedules the same expectation. `samples` masks per row. Row i's masks depend on seed and
    first + i alone, never on the batch it came in; k is spread evenly over samples and rows by the golden ratio, so a
    standard error taken over rows is, if anything, too large.
    real       bool (B, L): padding, as the network's mask
    first      the first row's number; or all of them, int64 (B,)
    """
    if maskable is None:
        maskable = torch.ones_like(x0, dtype=torch.bool) if real is None else real
    row = row_numbers(first, x0)
    total = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
    for j in range(samples):
        hidden, weight = nelbo_masks(maskable, row, j, samples, seed)
        nll = hidden_nll(model, torch.where(hidden, mask_id, x0), x0, hidden, mask_id, real)
        ce = torch.zeros(x0.shape, dtype=torch.float64, device=x0.device).masked_scatter_(hidden, nll.double())
        total += ce.sum(1) * weight
    return total / samples


def row_numbers(first, x):
    """The number of each row of x, int64 (B,), from that of the first, or from all of them."""
    return first if torch.is_tensor(first) else first + torch.arange(len(x), device=x.device)


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
    mc_samples: int = 16  # masks per sequence (nelbo, llada, dream)
    mc_batch: int = 16  # … drawn together (llada, dream), so that their counts are spread evenly
    cfg_scale: float = 0.0  # classifier-free guidance, as in SampleOptions; what is measured is then no likelihood
    batch_size: int = 16  # sequences per forward
    seed: int = 0  # of the masks

    def __post_init__(self):
        check_choices(self)
        for name in ("mc_samples", "mc_batch", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} estimates nothing; use at least 1")


@torch.no_grad()
def log_likelihood(model, prompts, targets, options=LikelihoodOptions(), *, mask_id, numbers=None):
    """log p(target | prompt) in nats for lists of 1-D int64 tensors, ragged; float64 (N,).

    nelbo          minus the NELBO: a lower bound, `mc_samples` forwards
    left_to_right  exact, for the model that reveals the target from left to right: one forward per token
    confidence     exact, for the sampler that reveals the position with the largest maximum probability first and
                   samples its token: that order depends on revealed tokens only (DUEL, arXiv 2603.01367)
    llada, dream   the bound, estimated as in their published evaluations: for scores that can be compared with theirs.
                   dream never hides a target's last token, which must be an end-of-text: append one
    illada         iLLaDA's score (arXiv 2606.25331): as confidence, but the position whose own token is the likeliest
                   is revealed first. That order looks at the answer, so this is no likelihood

    numbers  of the pairs, int64 (N,), from which with the seed alone their masks come; default: their places
    """
    if not len(prompts):
        return torch.zeros(0, dtype=torch.float64)
    o, bound = options, options.method in ("nelbo", "llada", "dream")
    numbers = torch.arange(len(prompts)) if numbers is None else numbers
    x0, real = pad([torch.cat([p, t]) for p, t in zip(prompts, targets)], mask_id)
    check_length(model, x0)
    lengths = torch.tensor([len(p) for p in prompts], device=x0.device)
    target = real & (torch.arange(x0.shape[1], device=x0.device) >= lengths[:, None])
    numbers = numbers.to(x0.device)
    size = max(1, 2**22 // (x0.shape[1] * (o.mc_samples if bound else 1) or 1))  # what follows is a few such tables
    parts = zip(*(v.split(size) for v in (x0, real, target, *([numbers] if bound else []))))
    return torch.cat([(minus_nelbo if bound else chain_rule)(model, *part, o, mask_id) for part in parts])


def batches(targets, size, vocab_size):
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
    hidden, weight = masks[o.method](target[row], number[row], j, o.mc_samples, o.seed)
    canvas = torch.where(real[row], torch.where(hidden, -1, x0[row]), -2) | target[row].long() << 40  # guidance: where
    seen = {}
    same = [seen.setdefault(c.tobytes(), i) for i, c in enumerate(canvas.cpu().numpy())]
    first, which = torch.tensor(same, device=x0.device).unique(return_inverse=True)
    length = real.sum(1)[row[first]]
    order = length.argsort(descending=True, stable=True)
    place = order.argsort()[which]  # of each canvas among the different ones, the longest first
    total = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
    for start in range(0, len(first), o.batch_size):
        mine = first[order[start : start + o.batch_size]]
        wanted = hidden[mine, : int(length[order[start]])]
        x, visible, answer = (v[row[mine], : wanted.shape[1]] for v in (x0, real, target))
        ask = ((place >= start) & (place < start + len(mine))).nonzero()[:, 0]  # all the rows that have these canvases
        i, at = hidden[ask].nonzero(as_tuple=True)
        begins = wanted.sum(1).cumsum(0) - wanted.sum(1)
        state = begins[place[ask] - start][i] + hidden[ask].cumsum(1)[i, at] - 1
        token = x0[row[ask[i]], at]
        xt = torch.where(wanted, mask_id, x)
        logp, _ = own_tokens(model, xt, visible, answer, wanted, state, token, mask_id, o)
        total.index_add_(0, row[ask[i]], logp * weight[ask[i]] / o.mc_samples)
    return total


def chain_rule(model, x0, real, target, options, mask_id):
    """log p of each row's target, one token after the other, float64 (B,)."""
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
    the method says how early it reveals each of these; both float64. llada and dream leave the mask token among the
    alternatives, as published."""
    scale, rows = options.cfg_scale, wanted.flatten().nonzero()[:, 0]
    if not len(rows):
        return (torch.zeros(0, dtype=torch.float64, device=xt.device),) * 2
    read = reader(model, states(model, xt, real, target, rows, mask_id, scale), scale)
    logp = torch.zeros(len(token), dtype=torch.float64, device=xt.device)
    sure = torch.zeros(len(rows), dtype=torch.float64, device=xt.device)
    for part in torch.arange(len(rows), device=xt.device).split(max(1, 2**25 // model.config.vocab_size)):
        logits = read(part)
        if options.method not in ("llada", "dream"):
            logits[:, mask_id] = -torch.inf
        ask = ((state >= part[0]) & (state <= part[-1])).nonzero()[:, 0]
        at = state[ask] - part[0]
        logp[ask] = (logits[at, token[ask]] - logits.logsumexp(-1)[at]).double()
        if options.method == "confidence":
            sure[part] = certainty(logits, "confidence").double()
    return logp, sure if options.method == "confidence" else logp.exp()


# ------------------------------------------------------------------------------------------------------------------
# 6 · which tokens, which positions


def filter_logits(logits, temperature=1.0, top_k=0, top_p=1.0, dtype=torch.float64):
    """Log-weights (N, V) of the distribution to sample from: tempered, then cut to the tokens that are both among the
    top k and in the nucleus; computed in `dtype`.

    The token that crosses top_p stays in, so that the nucleus holds at least that mass."""
    logits = logits.to(dtype) / temperature
    outside = torch.zeros_like(logits, dtype=torch.bool)
    if 0 < top_k < logits.shape[-1]:
        outside = logits < logits.topk(top_k, -1).values[:, -1:]
    if top_p < 1:
        ordered, index = logits.sort(-1, descending=True)
        before = F.pad(ordered.softmax(-1).cumsum(-1), (1, -1))  # the mass of the tokens that go before
        outside = outside | torch.zeros_like(outside).scatter(-1, index, before > top_p)
    return logits.masked_fill(outside, -torch.inf)


def choose_tokens(logits, u, temperature=1.0, top_k=0, top_p=1.0):
    """One token per row of logits (N, V) from one uniform number each (N,): int64 (N,).

    By inverting the distribution function in float64. 32-bit Gumbel noise, the usual way, cannot reach the tails and
    silently lowers the temperature (generative perplexity 126 → 31 from precision alone)."""
    if temperature == 0:
        return logits.argmax(-1)
    return invert(filter_logits(logits, temperature, top_k, top_p), u)


def invert(log_weights, u):
    """The token at which each row's distribution function passes u."""
    c = log_weights.softmax(-1).cumsum(-1)
    total = c[:, -1]
    x = torch.minimum(u * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(c, x[:, None], right=True)[:, 0]


def certainty(logits, order, tokens=None):
    """How sure the network is of a position, (N,) in [0, 1], from its logits (N, V); the larger goes first.

    confidence: the largest probability, or that of the given tokens; margin: first minus second; entropy: exp(-H), 1
    over the perplexity. Without tokens none of them looks at the token drawn, so that choosing positions by them leaves
    the distribution of the tokens intact."""
    p = logits.softmax(-1)
    if order == "confidence":
        return p.amax(-1) if tokens is None else p.gather(1, tokens[:, None])[:, 0]
    if order == "margin":
        best = p.topk(min(2, p.shape[-1]), -1).values
        return best[:, 0] - (best[:, 1] if best.shape[1] > 1 else 0)
    # 1e-10 as in Dream's code, and so that 0 log 0 = 0; exp in fp64, or small entropies would tie.
    return (p * (p + 1e-10).log()).sum(-1).double().exp()


def look(logits, u, options, mask_id, dtype, trace):
    """From the logits (N, V) of candidates and one uniform number each (N,), in place: the token drawn, how sure the
    network is, and (for a trace) the token's probability, each (N,).

    `measure` says of what order=confidence takes the probability: of the network's best token; of the token drawn
    (LLaDA); of the token drawn, after temperature, top_k and top_p, which the other orders then look at, too (Dream).
    `exact` repeats the published samplers' arithmetic: the network's own dtype, and the mask token an alternative that
    counts, though it is never drawn."""
    o = options
    if o.suppress:
        logits[:, list(o.suppress)] = -torch.inf
    if not o.exact:
        logits[:, mask_id] = -torch.inf
    weights, published = logits, o.exact and o.measure == "draw"  # Dream filters, and finds its maximum, in that dtype
    if o.temperature or o.measure == "draw":
        weights = filter_logits(logits, o.temperature or 1.0, o.top_k, o.top_p, dtype if published else torch.float64)
    mask_weight = weights[:, mask_id].clone()
    best = weights.softmax(-1) if published and not o.temperature else weights
    best[:, mask_id] = weights[:, mask_id] = -torch.inf
    tokens = invert(weights.double(), u) if o.temperature else best.argmax(-1)
    if o.exact and weights is not logits:  # the filters may have left the mask alone: then the best other token of all
        other = logits.clone()
        other[:, mask_id] = -torch.inf
        tokens = torch.where((weights > -torch.inf).any(-1), tokens, other.argmax(-1))
    chance = tokens
    if trace:
        p = logits.index_fill(1, tokens.new_tensor([mask_id]), -torch.inf).softmax(-1)
        chance = p.gather(1, tokens[:, None])[:, 0]
    if o.order == "random" or o.quota == "ancestral":
        return tokens, chance, chance
    weights[:, mask_id] = mask_weight
    if o.measure == "draw":
        logits = weights
    if o.exact:
        logits = logits.to(dtype)
    if o.last:
        logits[:, list(o.last)] = -torch.inf
    sure = fp32(certainty(logits, o.order, None if o.measure == "network" and o.temperature else tokens))
    for token in o.last:
        sure = sure.masked_fill(tokens == token, -1e4)  # behind all others, however positions are drawn
    return tokens, sure, chance


def resolution(model):
    """How far apart the log-odds of two certainties have to be to count as different: half of the dtype's digits.

    Where certainties are equal by symmetry, as all are on a canvas of masks under RoPE, rounding would decide who goes
    first, and so the batch and the machine. This is far coarser than rounding, and far finer than what it means."""
    return torch.finfo(next(model.parameters()).dtype).eps ** 0.5


def top_per_row(score, count, slack=0.0):
    """bool (B, L): the count (B,) largest finite scores of each row. Those that equal the last of them, probabilities
    p whose log-odds differ by up to `slack` (see resolution), fill the places that are left from left to right."""
    last = score.sort(1, descending=True).values.gather(1, (count[:, None] - 1).clamp(0, score.shape[1] - 1))
    p = last.clamp(0, 1)
    alike = slack * p * (1 - p + 1 / 256)  # a logit moves p by p (1 - p) times itself; near 1 by fp32's last digits
    level = (score > last + alike).long() + (score >= last - alike).long()
    finite = score > -torch.inf
    ranks = level.masked_fill(~finite, -1).argsort(dim=1, descending=True, stable=True).argsort(1)
    return (ranks < count[:, None]) & finite


def one_per_row(score, candidates, slack=0.0):
    """bool (B, L): the largest score among the candidates of each row that has any; the leftmost of equals."""
    ones = torch.ones_like(score[:, 0], dtype=torch.int64)
    return top_per_row(score.masked_fill(~candidates, -torch.inf), ones, slack)


def quota(masks, left, step, steps, schedule):
    """How many of a block's `masks`, of which `left` are left, to reveal in `step` of `steps`, (B,) int64 each.

    linear  equal shares, the remainder one each to the first steps (LLaDA)
    dream   left * (1 - s/t), rounded down, at Dream's times; all that is left in the last step
    others  as many stay hidden as the schedule says, rounded down"""
    if schedule == "linear":
        return masks // steps + (step < masks % steps)
    if schedule == "dream":
        return (left * (1 - dream_time(step + 1, steps) / dream_time(step, steps))).long()

    def stay(step):
        return (masks * mask_rate(1 - step.double() / steps, schedule)[0] + 1e-9).floor().long()

    return stay(step) - stay(step + 1)


def dream_time(step, steps):
    """t after `step` of `steps`, fp32: torch.linspace(1, 1e-3, steps + 1), to the bit, as the counts are rounded down;
    0 after the last."""
    low = torch.full_like(steps, 1e-3, dtype=torch.float32)
    width = ((low - 1) / steps).double()
    t = torch.where(step < (steps + 1) // 2, 1 + width * step, low.double() - width * (steps - step))
    return torch.where(step >= steps, 0.0, t.float())


def choose_positions(score, candidates, options, count, u=None, slack=0.0):
    """Which candidates (bool, B, L) to reveal, by score (B, L): at least one in every row that has any. Scores that are
    equal up to `slack` (see resolution) go from left to right.

    steps          the `count` (B,) best; with order_temperature drawn without replacement, weights exp(score / it), by
                   adding Gumbel noise from u (B, L)
    threshold      all that reach the threshold (Fast-dLLM, arXiv 2505.22618)
    factor         the best r, for the largest r whose r-th score is at least 1 - factor / (r + 1) (ibid.)
    entropy_bound  the longest run of ascending entropies whose sum without the largest stays within the bound
                   (EB-Sampler, arXiv 2505.24857)
    """
    score = score.double().masked_fill(~candidates, -torch.inf)
    level = (1 + score) / 2 if options.order == "margin" else score  # how a difference of two probabilities rounds
    if options.quota == "steps":
        if options.order_temperature:
            weight = score.clamp(min=1e-300).log() if options.order == "entropy" else score
            noisy = weight / options.order_temperature - (-u.log()).log()
            return top_per_row(torch.where(candidates, noisy, -torch.inf), count)
        return top_per_row(level, count, slack)
    best = one_per_row(level, candidates, slack)
    if options.quota == "threshold":
        return (score >= options.threshold) & candidates | best
    ordered = score.sort(1, descending=True).values
    rank = torch.arange(1, score.shape[1] + 1, device=score.device)
    if options.quota == "factor":
        ok = ordered >= 1 - options.factor / (rank + 1)
        return top_per_row(level, torch.where(ok, rank, 0).amax(1), slack) | best
    entropy = -ordered.clamp(min=1e-300).log()  # the score is exp(-H)
    ok = (entropy.cumsum(1) - entropy <= options.entropy_bound) & (ordered > -torch.inf)
    return top_per_row(level, ok.cumprod(1).sum(1), slack) | best


# ------------------------------------------------------------------------------------------------------------------
# 7 · generation


@dataclass
class SampleOptions:
    max_new_tokens: int = 256  # masks appended to each prompt; 0 fills only the masks inside the prompts
    block_size: int = 0  # fill the canvas in blocks of this many tokens, left to right; 0 means all at once
    steps: int = 0  # denoising steps over the whole canvas, shared out over its blocks; 0 means one token per step
    order: Literal["confidence", "margin", "entropy", "random"] = "confidence"  # which positions are revealed first
    quota: Literal["steps", "threshold", "factor", "entropy_bound", "ancestral"] = "steps"  # how many per step
    schedule: str = "linear"  # of the steps and ancestral quotas: linear, poly2 (any power), cosine, cosine_mdlm, dream
    threshold: float = 0.9  # quota=threshold: reveal every position at least this sure
    factor: float = 1.0  # quota=factor: larger reveals more at once
    entropy_bound: float = 0.1  # quota=entropy_bound: nats of joint uncertainty accepted per step
    remask: float = 0.0  # quota=ancestral: hide revealed tokens again with at most this probability per step (ReMDM)
    remask_from: float = 1.0  # … only while t is below this
    remask_until: float = 0.0  # … and above this
    temperature: float = 1.0  # of the token draw; 0 takes the most probable token
    top_k: int = 0  # draw among the k most probable tokens; 0 means all
    top_p: float = 1.0  # draw among the fewest tokens that hold this much probability
    measure: Literal["network", "token", "draw"] = "network"  # confidence in the best token, the drawn, or its draw
    order_temperature: float = 0.0  # quota=steps: draw the positions by exp(certainty / this) (Dream's alg_temp)
    cfg_scale: float = 0.0  # classifier-free guidance: logits = un + (scale + 1)(cond - un); twice the forwards
    suppress: tuple[int, ...] = ()  # token ids never generated
    last: tuple[int, ...] = ()  # token ids revealed after all others (LLaDA does so with the two end tokens)
    lookahead: bool = True  # later blocks are seen, as masks; false: the canvas ends with this block (iLLaDA, bd3lm)
    cache: Literal["none", "prefix", "dual"] = "none"  # keys and values kept within a block: those before it, or all
    compile: bool = False  # cache=dual: steps within a block through torch.compile, on a GPU as CUDA graphs
    exact: bool = False  # certainty as published code computes it: in the network's dtype, the mask token included
    seed: int = 0  # row i of a call draws from seed and i alone

    def __post_init__(self):
        if self.order == "random" and self.quota in ("threshold", "factor", "entropy_bound"):
            raise ValueError(
                f"quota={self.quota} needs a measure of certainty: use order=confidence, margin or entropy"
            )
        if self.quota == "entropy_bound" and self.order != "entropy":
            raise ValueError(f"quota=entropy_bound ranks by entropy: use order=entropy, not {self.order}")
        if self.remask and self.quota != "ancestral":
            raise ValueError(f"remask={self.remask} is defined for quota=ancestral only, not quota={self.quota}")
        check_choices(self)
        if self.remask > 1:
            raise ValueError(f"remask={self.remask} is a probability: use at most 1")
        for f in fields(self):
            if isinstance(getattr(self, f.name), int | float) and getattr(self, f.name) < 0:
                raise ValueError(f"{f.name}={getattr(self, f.name)} must not be negative")
        if self.compile and self.cache != "dual":
            raise ValueError("compile=True needs cache=dual, whose steps all have one shape")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must lie in (0, 1]")
        mask_rate(torch.ones(1), self.schedule)


@dataclass
class Output:
    tokens: list[torch.Tensor]  # per prompt: int64 (length,), prompt included, cut behind a generated end-of-text
    num_forwards: list[int]  # per prompt: network evaluations it took; guidance counts twice
    trace: list[list[tuple]] = field(default_factory=list)  # per prompt: (step, position, token, its probability)


def pad(sequences, value):
    """A list of 1-D tensors as one (B, L), padded on the right, and the bool (B, L) of what is real."""
    x = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=value)
    lengths = torch.tensor([len(s) for s in sequences], device=x.device)
    return x, torch.arange(x.shape[1], device=x.device) < lengths[:, None]


def check_length(model, x):
    """Refuse canvases (B, L) that are longer than a table of learned positions."""
    if model.config.position == "learned" and x.shape[1] > model.config.seq_len:
        raise ValueError(f"{x.shape[1]} tokens exceed the {model.config.seq_len} learned positions; shorten the text")


def states(model, x, real, target, rows, mask_id, scale):
    """Hidden states (N, C) of x (B, L) at the flat indices rows; with guidance (2N, C), the second half with all but
    the target (bool, B, L) masked. Padding is mentioned only where there is some, for SDPA's fastest path."""
    if scale:
        rows = torch.cat([rows, rows + x.numel()])
        x, real = torch.cat([x, torch.where(target, x, mask_id)]), torch.cat([real, real])
    return model.hidden(x, mask=None if real.all() else real, rows=rows)


def reader(model, hidden, scale, exact=False):
    """A function from indices into the N states to their logits (n, V), at least fp32, guided where scale is not 0; as
    published (exact) in the network's dtype."""

    def read(part):
        if not scale:
            return fp32(model.head(hidden[part]))
        logits = model.head(torch.cat([half[part] for half in hidden.chunk(2)]))
        return fp32(guide(logits if exact else fp32(logits), scale))

    return read


def scatter(values, where):
    """values (N,) to the N True places of where (B, L); -inf elsewhere."""
    return torch.full(where.shape, -torch.inf, dtype=values.dtype, device=where.device).masked_scatter_(where, values)


@torch.no_grad()
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

    until    called with what follows a prompt, int64 (n,), whenever a block of it is done; a row ends where it says so.
             For prompts without holes
    numbers  of the prompts, int64 (B,), from which with the seed alone their random numbers come; default: their places
    trace    keep every reveal (and remasking, as token mask_id with probability 0)
    watch    called after each step with the list of canvases, one int64 tensor per prompt
    """
    if not any(len(p) + options.max_new_tokens for p in prompts):
        return Output([p.long() for p in prompts], [0] * len(prompts), [[] for _ in prompts])
    o, device = options, prompts[0].device
    extra = torch.full((o.max_new_tokens,), mask_id, dtype=torch.int64, device=device)
    x, real = pad([torch.cat([p.long(), extra]) for p in prompts], mask_id)
    check_length(model, x)
    hole = (x == mask_id) & real
    lengths = real.sum(1)
    copies = 2 if o.cfg_scale else 1  # guidance: a second batch, in which the given tokens are masks
    cache = None if o.cache == "none" else model.cache(copies * len(x), x.shape[1], o.compile)
    live = torch.arange(len(x), device=device)  # the rows that the cache holds
    stored = torch.full_like(lengths, -1)  # where the block starts for which a row was stored

    def encode(r, i, begin, stop, width, position, wanted, compiled=False):
        """Hidden states of the wanted positions, from one pass over begin…stop, `width` tokens at most, of the canvases
        of rows r[i]."""
        begin, stop, position, wanted = (v[i] for v in (begin, stop, position, wanted))
        p = begin[:, None] + torch.arange(width, device=device)
        p = torch.where(p < stop[:, None], p, -1)  # -1: padding
        index = r[i, None], p.clamp(min=0)
        a, b = wanted.nonzero(as_tuple=True)
        ids, rows = x[index], a * p.shape[1] + position[a, b] - begin[a]
        if o.cfg_scale:
            rows = torch.cat([rows, rows + ids.numel()])
            ids, p = torch.cat([ids, ids.masked_fill(~hole[index], mask_id)]), p.repeat(2, 1)
        if cache is None:
            padding = p < 0
            return model.hidden(ids, mask=~padding if padding.any() else None, positions=p, rows=rows)
        cache.rows = None if len(i) == len(r) else torch.cat([i + k * len(r) for k in range(copies)])
        if compiled:  # one shape: all positions of the block
            return model.compiled()(ids, positions=p, cache=cache).flatten(0, 1)[rows]
        return model.hidden(ids, positions=p, cache=cache, rows=rows)

    def logits_at(r, position, wanted):
        nonlocal live
        if o.compile:  # no row leaves: those that are finished become padding
            full = [v.new_zeros(len(x), v.shape[1]).index_copy_(0, r, v) for v in (position, wanted)]
            r, position, wanted = torch.arange(len(x), device=device), *full
        active, start = wanted.any(1), position[:, 0]
        after = start + position.shape[1]
        end = lengths[r] if o.lookahead else torch.minimum(lengths[r], after)
        if cache is None:
            i = active.nonzero()[:, 0]
            hidden = encode(r, i, 0 * end, end, int(end[i].max()), position, wanted)
            return reader(model, hidden, o.cfg_scale, o.exact), 0
        if len(r) < len(live):
            cache.keep(torch.isin(live, r).repeat(copies))
            live = r
        # A row that enters a block reads, and stores, its whole canvas. Until the block is done, what stands before it
        # (prefix), or before and behind it (dual), keeps these keys and values: that is the approximation.
        fresh = active & (stored[r] != start)
        stored[r] = torch.where(fresh, start, stored[r])
        begin = (start - int(model.config.shift)).clamp(min=0)  # shifted, the token before predicts the block's first
        stop = torch.where(active & ~fresh, end if o.cache == "prefix" else torch.minimum(after, end), begin)
        first, i, passes = wanted & fresh[:, None], fresh.nonzero()[:, 0], []
        if len(i):
            passes.append((fresh, encode(r, i, 0 * end, end, int(end[i].max()), position, first)))
        width = int((stop - begin).max())
        if width:  # all rows, the others as padding: picking rows would copy the cache
            width = position.shape[1] + int(model.config.shift) if o.compile else width
            i = torch.arange(len(r), device=device)
            passes.append((~fresh, encode(r, i, begin, stop, width, position, wanted & ~first, o.compile)))
        hidden = passes[0][1]
        if len(passes) == 2:
            row = wanted.nonzero()[:, 0]
            hidden = hidden.new_empty(copies, len(row), hidden.shape[1])
            for rows, part in passes:
                hidden[:, rows[row]] = part.unflatten(0, (copies, -1))
            hidden = hidden.flatten(0, 1)
        return reader(model, hidden, o.cfg_scale, o.exact), 0

    origin = hole.long().argmax(1)  # blocks are counted from the first hole
    keys = dict(mask_id=mask_id, eos_id=eos_id, until=until, numbers=numbers, trace=trace, watch=watch)
    return decode(model, x, hole, lengths, origin, options, logits_at, **keys)


def decode(
    model,
    x,
    hole,
    lengths,
    origin,
    options,
    logits_at,
    *,
    mask_id,
    eos_id=None,
    until=None,
    numbers=None,
    trace=False,
    watch=None,
):
    """The loop of every sampler: reveal the holes of each row block by block, in place. Returns Output.

    x          int64 (B, L), the canvases: given tokens, and masks
    hole       bool (B, L): what is to be filled in
    lengths    int64 (B,): where each row's canvas ends
    origin     int64 (B,): where its first block starts; blocks without holes are passed over
    logits_at  (rows r (R,), positions (R, W), wanted bool (R, W)) -> reader of the logits of the N wanted positions,
               and how many forwards it took besides one (int64 (R,), or 0)
    """
    o = options
    ends_text = torch.tensor([] if eos_id is None else eos_id, device=x.device, dtype=torch.int64)
    B, L = x.shape
    device = x.device
    numbers = torch.arange(B, device=device) if numbers is None else numbers.to(device)
    at = torch.arange(L, device=device)
    given = (at < lengths[:, None]) & ~hole
    tail = hole & (at > torch.where(given, at, -1).amax(1, keepdim=True))

    # blocks[i]: the numbers of row i's blocks that have holes, in order; the steps are shared out over them.
    size = o.block_size or L
    most = -(-L // size)
    block_of = torch.where(hole, (at - origin[:, None]) // size, most)
    held = torch.zeros(B, most + 1, dtype=torch.bool, device=device).scatter_(1, block_of, True)[:, :most]
    blocks = torch.where(held, torch.arange(most, device=device), most).sort(1).values
    num_blocks = held.sum(1)
    window = torch.arange(min(size, int((lengths - origin).max())), device=device)
    current = torch.zeros(B, dtype=torch.int64, device=device)  # the row is in block blocks[i, current[i]]
    step = torch.zeros_like(current)  # within that block
    forwards = torch.zeros_like(current)
    events, clock = [[] for _ in range(B)], 0

    alive, ends = hole.any(1), lengths.clone()
    while alive.any():
        r = alive.nonzero()[:, 0]  # live rows (R,): all tensors below are of these only, and of their blocks (R, W)
        position = (origin[r] + blocks[r, current[r]] * size)[:, None] + window
        index = r[:, None], position.clamp(max=L - 1)
        in_block = hole[index] & (position < L)
        xr = x[index]
        hidden = (xr == mask_id) & in_block
        masks = in_block.sum(1)
        if o.steps:
            steps = (o.steps // num_blocks[r] + (current[r] < o.steps % num_blocks[r])).clamp(min=1)
        else:
            steps = masks.clamp(min=1)
        key = (o.seed, numbers[r, None], step[r, None])  # a row's number, not its place in the batch
        u = uniform(*key, 0, position) if o.order == "random" or o.quota == "ancestral" else None

        # Positions that need no logits are chosen first, so that logits are computed for those alone.
        count, drop = None, torch.zeros_like(hidden)
        if o.quota == "ancestral":
            if o.schedule == "dream":
                t, s = (dream_time(step[r] + i, steps) for i in (0, 1))
            else:
                t, s = (1 - (step[r] + i).double() / steps for i in (0, 1))
            reveal, hide = ancestral_rates(t, s, o)
            wanted = hidden & (u < reveal[:, None])
            drop = in_block & ~hidden & (u < hide[:, None])
        else:
            count = quota(masks, hidden.sum(1), step[r], steps, o.schedule)
            if o.order == "random":
                wanted = top_per_row(u.masked_fill(~hidden, -torch.inf), count)
            else:
                wanted = hidden & (count > 0)[:, None] if o.quota == "steps" else hidden

        if wanted.any():
            read, more = logits_at(r, position, wanted)
            forwards[r] += wanted.any(1) * (1 + more) * (2 if o.cfg_scale else 1)
            chosen, tokens, chance = choose(model, read, wanted, position, key, count, o, mask_id, trace)
            xr = xr.masked_scatter(chosen, tokens)
            i, j = chosen.nonzero(as_tuple=True)
            if not len(i):  # or this would go on for ever
                raise ValueError("no token can be chosen: the network's logits are not finite numbers")
            x[r[i], position[i, j]] = tokens
            if trace:
                record(events, clock, r[i], position[i, j], tokens, chance)
        if o.remask and drop.any():
            xr = xr.masked_fill(drop, mask_id)
            i, j = drop.nonzero(as_tuple=True)
            x[r[i], position[i, j]] = mask_id
            if trace:
                record(events, clock, r[i], position[i, j], torch.full_like(i, mask_id), torch.zeros(len(i)))
        clock += 1
        if watch is not None:
            watch([row[:n].clone() for row, n in zip(x, lengths)])

        # A block is done when nothing in it is hidden; with remasking, when its steps are over.
        step[r] += 1
        done = ~((xr == mask_id) & in_block).any(1)
        if o.remask:
            done &= step[r] >= steps
        current[r] += done
        step[r] = torch.where(done, 0, step[r])
        alive[r] = current[r] < num_blocks[r]
        if eos_id is not None:
            ended = stop_position(x[r], hole[r], tail[r], mask_id, ends_text) < L
            alive[r] &= ~(ended & (done | (o.remask == 0)))
        for i in r[done & alive[r]].tolist() if until else ():
            begin, end = int(hole[i].long().argmax()), int((hole[i] & (x[i] == mask_id)).long().argmax())
            if until(x[i, begin:end]):
                alive[i], ends[i] = False, end

    if eos_id is not None:
        ends = torch.minimum(ends, stop_position(x, hole, tail, mask_id, ends_text) + 1)
    return Output([row[:n] for row, n in zip(x, ends.tolist())], forwards.tolist(), events if trace else [])


def choose(model, read, wanted, position, key, count, options, mask_id, trace):
    """Which of the wanted positions (bool, R, W) are revealed now (bool, R, W), their tokens, and (for a trace) their
    probabilities, both (n,); `read` gives logits, `key` and `position` the random numbers.

    Logits exist for some positions at a time: 128 MB of them in fp32; where tokens are drawn, in float64, for fewer."""
    o, V = options, model.config.vocab_size
    dtype = next(model.parameters()).dtype if o.exact else None
    u = uniform(*key, 1, position)[wanted] if o.temperature else None

    def drawn(index):
        size = max(1, (2**23 if o.temperature or o.measure == "draw" else 2**25) // V)
        found = [look(read(i), u[i] if o.temperature else u, o, mask_id, dtype, trace) for i in index.split(size)]
        return [torch.cat(column) for column in zip(*found)]

    index = torch.arange(int(wanted.sum()), device=wanted.device)
    if o.order == "random" or o.quota == "ancestral":
        tokens, _, chance = drawn(index)
        return wanted, tokens, chance
    first = o.temperature == 0 or o.measure != "network" or o.exact or len(o.last) > 0
    if first:
        tokens, sure, chance = drawn(index)
    else:  # draw only for those that are chosen
        banned, sure = torch.tensor([mask_id, *o.suppress], device=wanted.device), []
        for part in index.split(max(1, 2**25 // V)):
            sure.append(certainty(read(part).index_fill_(1, banned, -torch.inf), o.order))
        sure = torch.cat(sure)
    w = uniform(*key, 2, position) if o.order_temperature else None
    slack = 0.0 if o.exact else resolution(model)
    chosen = choose_positions(scatter(sure, wanted), wanted, o, count, w, slack)
    index = chosen[wanted].nonzero()[:, 0]
    if first:
        return chosen, tokens[index], chance[index]
    tokens, _, chance = drawn(index)
    return chosen, tokens, chance


def ancestral_rates(t, s, options):
    """Probabilities, from time t to s, that a hidden token is revealed and that a revealed one is hidden again, (R,).

    Without remasking (alpha_s - alpha_t) / (1 - alpha_t). ReMDM (arXiv 2503.00307, eq. 9): sigma at most
    min(remask, (1 - alpha_s) / alpha_t), and (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t)."""
    rate_t, rate_s = mask_rate(t, options.schedule)[0], mask_rate(s, options.schedule)[0]
    rate_s = torch.where(s <= 1e-12, 0.0, rate_s)
    alpha_t = 1 - rate_t
    sigma = torch.minimum(torch.full_like(t, options.remask), rate_s / alpha_t.clamp(min=1e-12))
    sigma = torch.where((t <= options.remask_from) & (t >= options.remask_until), sigma, 0.0)
    return (rate_t - rate_s + sigma * alpha_t) / rate_t, sigma


def guide(logits, scale):
    """Classifier-free guidance, un + (scale + 1)(cond - un), of logits (2N, V) that hold cond, then un: (N, V)."""
    cond, un = logits.chunk(2)
    return un + (scale + 1) * (cond - un)


def stop_position(x, hole, tail, mask_id, eos_id):
    """Where each row ends, (B,): its first end-of-text (any id of the tensor eos_id) in the tail if nothing is hidden
    before it, else L."""
    L = x.shape[1]
    position = torch.arange(L, device=x.device)
    end = torch.where(tail & torch.isin(x, eos_id), position, L).amin(1)
    first_mask = torch.where(hole & (x == mask_id), position, L).amin(1)
    return torch.where(end < first_mask, end, L)


def record(events, clock, *columns):
    """Append what happened (rows, positions, tokens, probabilities, each (N,)) to each row's trace."""
    for row, *event in zip(*(c.tolist() for c in columns)):
        events[row].append((clock, *event))


# ------------------------------------------------------------------------------------------------------------------
# 8 · tutorial


def tutorial():
    """Train a tiny model on a rule that a child sees at once, and watch it work."""
    torch.manual_seed(0)
    letters, L = "abcdefghijklmnopqrstuvwxyz_", 10
    mask_id = len(letters) - 1

    def runs(n, seed):  # "cdefghijkl" or, as often, "lkjihgfedc": 52 possible rows
        start, way = ((uniform(seed, i, torch.arange(n)) * k).long()[:, None] for i, k in ((0, 26), (1, 2)))
        return (start + (2 * way - 1) * torch.arange(L)) % 26

    def show(ids):
        return "".join(letters[i] for i in ids)

    def ids(text):
        return torch.tensor([letters.index(c) for c in text])

    x0 = runs(1, 0)
    print(f"1 · Data: runs of the alphabet, forwards or backwards, as {show(x0[0])!r}; 52 different rows.")
    print("\n2 · Corruption: at time t each letter is hidden (_) with probability t.")
    for t in (0.2, 0.5, 0.8):
        hidden = hide_by_rate(torch.tensor([t]), uniform(0, torch.arange(L))[None], torch.ones_like(x0).bool())
        print(f"    t = {t}   {show(torch.where(hidden, mask_id, x0)[0])}   weight 1/t = {1 / t:.2f}")

    model = Transformer(Config(vocab_size=len(letters), seq_len=L, n_layer=2, n_head=2, n_embd=64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    steps, best = 800, torch.tensor(52.0).log().item()
    print(
        f"\n3 · Training: {model.num_params():,} parameters learn to fill in what is hidden. The loss is, on average,"
    )
    print(f"    an upper bound on -log p(row), which no model can push below ln 52 = {best:.3f} nats.")
    for i in range(steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, i / 50, (steps - i) / 400 + 1e-3)
        value = loss(model, runs(64, fold(1, i)), mask_id=mask_id, seed=fold(2, i))
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if i % 200 == 0:
            mean, error = mean_and_error(nelbo(model, runs(256, 99), mask_id=mask_id, samples=4))
            print(f"    step {i:4}   loss {value.item() * L:6.3f}   NELBO {mean:6.3f} ± {error:.3f} nats a row")

    model.eval()
    print("\n4 · Sampling: from a canvas of masks, the surest position first, its letter drawn from the model.")
    steps_seen = []
    generate(model, [ids("")], SampleOptions(L), mask_id=mask_id, watch=lambda xs: steps_seen.append(show(xs[0])))
    print("    " + " → ".join(["_" * L, *steps_seen[:4], "…", steps_seen[-1]]))
    print("\n5 · Any pattern of holes can be filled in, several at once where the model is sure (threshold 0.9):")
    for canvas in ("wx________", "____q_____", "______ih__"):
        out = generate(model, [ids(canvas)], SampleOptions(0, quota="threshold"), mask_id=mask_id)
        print(f"    {canvas} → {show(out.tokens[0])}   in {out.num_forwards[0]} forwards")
    out = generate(model, [ids("")] * 1000, SampleOptions(L), mask_id=mask_id)
    made, rows = [show(x) for x in out.tokens], {show(x) for x in runs(5000, 3)}
    good = sum(m in rows for m in made)
    print(f"\n6 · Of 1000 samples {good} follow the rule; they cover {len(rows & set(made))} of the 52 rows.")
    print("    Next: python train.py config/quickstart.py")


if __name__ == "__main__":
    tutorial()
