"""DiffusionGemma (Google, 2026), whose network is gemma.py's: decoding, likelihoods, fine-tuning.

It writes canvas after canvas: 256 tokens that begin as noise, tokens drawn uniformly, are denoised together, each step
given what the one before predicted; what is done is read by the causal pass, and the next canvas begins. It is udlm.py
with a share of masks of 0, by blocks, so that the bound and the losses are udlm.py's.

There is no mask. In the house a hole in a text is `mask_id`, here an id that the vocabulary does not have; nothing of
it reaches the network.

1 decisions · 2 sampling · 3 likelihood · 4 loss
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

import udlm
from mdlm import Output
from nanodlm import noise
from nanodlm.bounds import Amount, Positive, Seed, Size, Whole, check
from nanodlm.guard import evaluating
from nanodlm.likelihood import portions
from nanodlm.noise import draw, home, uniform

CAUSAL = False

# ------------------------------------------------------------------------------------------------------------------
# 1 · decisions


@dataclass
class SampleOptions:
    """The defaults are the published ones (`generate` of transformers' class)."""

    max_new_tokens: Whole = 256  # tokens to write behind each prompt, canvas after canvas
    steps: Size = 48  # denoising steps of a canvas, at most
    entropy_bound: Amount = 0.1  # nats of joint uncertainty accepted in a step (EB-Sampler); the rest is noise again
    temperature: Amount = 0.8  # in the first step of a canvas; 0 takes the most probable token, at last_temperature
    last_temperature: Positive = 0.4  # in the last step, linearly from the first
    stable: Whole = 1  # a canvas is done when its best tokens stay the same for so many steps more, and …
    sure: Amount = 0.005  # … their mean entropy, nats, is below this
    seed: Seed = 0  # row i of a call draws from seed and i alone

    def __post_init__(self):
        check(self)


def heat(step, o):
    """The temperature of a step, linear from o.temperature at step 0 to o.last_temperature at step o.steps."""
    rest = (o.steps - step) / o.steps
    return o.last_temperature + (o.temperature - o.last_temperature) * rest * bool(o.temperature)


def accepted(entropy, bound):
    """Which positions are accepted, bool (B, L), by entropies (B, L): of the surest as many as have a sum, without the
    largest, of at most the bound, which bounds what they say of each other (EB-Sampler, arXiv 2505.24857)."""
    low, order = entropy.sort(dim=-1, stable=True)
    return torch.zeros_like(entropy, dtype=torch.bool).scatter(-1, order, low.cumsum(-1) - low <= bound)


def done(same, entropy, o):
    """Which canvases are done, bool (B,): the same for so many steps, int64 (B,), of entropies (B, L)."""
    return (same >= o.stable) & (entropy.mean(-1) < o.sure)


# ------------------------------------------------------------------------------------------------------------------
# 2 · sampling


def noise_of(model, *key):
    """The ids, int64, that noise is at the integers of a key."""
    return udlm.replacement(uniform(*key), model.config, model.config.vocab_size)


def denoise(model, prefix, number, o):
    """Write a canvas behind each row's prefix; number (B,) of the rows, int64. After each step it yields the rows (b,)
    that were not done before it, what they hold, int64 (b, L), where -1 is noise, and its probabilities (b, L); what a
    row holds when it is done, its best tokens, is the canvas."""
    begin = home(prefix.real.sum(1, keepdim=True))
    number, live = number.to(begin.device), torch.arange(len(number), device=begin.device)
    at = begin + torch.arange(model.canvas, device=begin.device)
    x = noise_of(model, o.seed, number[:, None], -1, 1, at)
    best, same, before = torch.full_like(x, -1), torch.zeros_like(number), None
    for step in range(o.steps):
        logits = home(model.hidden(x.to(prefix.real.device), prefix, before=before)) / heat(step, o)
        logp = logits.log_softmax(-1)
        entropy, was, best = -(logp.exp() * logp).sum(-1), best, logits.argmax(-1)
        key = o.seed, number[live, None], step
        u = uniform(*key, 1, at[live])  # row by row: 256 times 262,144 float64 are 0.5 GB
        drawn = torch.stack([draw(*row) for row in zip(logits, u)]) if o.temperature else best
        kept = accepted(entropy, o.entropy_bound)
        x = torch.where(kept, drawn, noise_of(model, *key, 0, at[live]))
        same = torch.where((best == was).all(1), same + 1, 0)
        over = done(same, entropy, o) | (step + 1 == o.steps)
        shown = torch.where(over[:, None], best, torch.where(kept, drawn, -1))
        p = logp.gather(2, shown.clamp(min=0)[..., None])[..., 0].exp()
        yield live, shown, p.masked_fill(shown < 0, 0.0)
        if over.all():
            return
        if over.any():
            stay = (~over).nonzero()[:, 0]
            prefix = prefix.keep(stay.to(prefix.real.device))
            live, x, best, same, logits = (a[stay] for a in (live, x, best, same, logits))
        before = logits


@evaluating("hidden", "read", "canvas", "config.vocab_size")
def generate(
    model, prompts, options=SampleOptions(), *, mask_id, eos_id=None, until=None, numbers=None, trace=False, watch=None
):
    """Write behind each prompt (1-D int64 tensor), canvas after canvas, all rows at once; arguments and result are
    mdlm.generate's. Holes at a prompt's end are written, too; any other is refused. What is left of a last canvas is
    cut off.

    num_forwards  passes over canvases, as transformers' tokens_per_forward counts them; the causal ones come on top
    trace, watch  show what is accepted; what has become noise again is a hole again, with probability 0
    until         called when a canvas is done: (the row so far, its prompt's length, how many are new); true ends it
    """
    o, size, texts = options, model.canvas, [given(p.cpu(), model, mask_id) for p in prompts]
    xs = [F.pad(x, (0, len(p) + o.max_new_tokens - len(x)), value=mask_id) for x, p in zip(texts, prompts)]
    ends = torch.tensor([] if eos_id is None else eos_id)
    numbers = torch.arange(len(xs)) if numbers is None else torch.as_tensor(numbers).cpu()
    out = Output(xs[:], [0] * len(xs), [[] for _ in xs if trace])
    rows, begin = [i for i, x in enumerate(xs) if len(x) > len(texts[i])], [len(x) for x in texts]
    prefix = model.read([texts[i] for i in rows])[0] if rows else None
    while rows:
        canvas = torch.zeros(len(rows), size, dtype=torch.int64)
        for step in denoise(model, prefix, numbers[rows], o):
            live, shown, p = (x.cpu() for x in step)
            canvas[live] = shown
            for j, new, sure in zip(live.tolist(), torch.where(shown < 0, mask_id, shown), p):
                i = rows[j]
                part = xs[i][begin[i] : begin[i] + size]  # a view
                at = (new[: len(part)] != part).nonzero()[:, 0]
                part[at] = new[at]
                if trace:
                    events = zip((begin[i] + at).tolist(), new[at].tolist(), sure[at].tolist())
                    out.trace[i] += [(out.num_forwards[i], *event) for event in events]
                out.num_forwards[i] += 1
            if watch is not None:
                watch([x.clone() for x in xs])
        stay = []
        for j, i in enumerate(rows):
            end = torch.isin(xs[i][begin[i] : begin[i] + size], ends).nonzero()[:1, 0]
            begin[i] += size
            if len(end) or begin[i] >= len(xs[i]) or until and until(xs[i][: begin[i]], len(prompts[i]), size):
                out.tokens[i] = xs[i][: begin[i] - size + int(end) + 1 if len(end) else begin[i]]
            else:
                stay.append(j)
        rows, prefix = [rows[j] for j in stay], model.follow(prefix, stay, canvas[stay]) if stay else None
    out.tokens = [x.to(p.device) for x, p in zip(out.tokens, prompts)]
    return out


def given(x, model, mask_id):
    """A prompt without the holes at its end; ValueError where it has what cannot be read."""
    vocab = model.config.vocab_size
    if mask_id < vocab:
        raise ValueError(f"mask_id={mask_id} is a token; DiffusionGemma has no mask: a hole is mask_id={vocab}")
    tokens = (x != mask_id).nonzero()[:, 0]
    x = x[: int(tokens[-1]) + 1 if len(tokens) else 0]
    if (x == mask_id).any():
        raise ValueError("DiffusionGemma writes behind a text, canvas after canvas: it fills in no holes; use --prompt")
    if images := [i for i in x.tolist() if i in model.images]:
        raise ValueError(f"the prompt holds the image token {images[0]}, and images are not read here: give text alone")
    return x.long()


# ------------------------------------------------------------------------------------------------------------------
# 3 · likelihood


@dataclass
class LikelihoodOptions:
    method: Literal["nelbo", "left_to_right"] = "nelbo"  # a bound, of diffusion; exact, by the causal pass
    mc_samples: Size = 16  # canvases per canvas of text (nelbo)
    passes: Size = 1  # 2: a canvas is read twice, the second time with the first prediction (nelbo)
    batch_size: Size = 16  # texts per forward
    seed: Seed = 0  # of the noise

    def __post_init__(self):
        check(self)


@evaluating("hidden", "head", "read", "config.vocab_size")
def log_likelihood(model, prompts, targets, options=LikelihoodOptions(), *, mask_id=None, numbers=None):
    """log p(target | prompt) in nats for lists of 1-D int64 tensors, float64 (N,), in batches. Two numbers of one
    network, which has two ways to write a text:

    left_to_right  exact, of the autoregressive model that the causal pass and the head are: one forward
    nelbo          minus the bound of the diffusion model, canvas after canvas"""
    numbers = torch.arange(len(prompts)) if numbers is None else torch.as_tensor(numbers)
    found = torch.zeros(len(prompts), dtype=torch.float64)
    for part in portions(targets, options.batch_size, model.config.vocab_size) if len(prompts) else ():
        some, rest = prompts[part], targets[part]
        if options.method == "nelbo":
            every = [torch.ones_like(t, dtype=torch.bool) for t in rest]
            keys = options.mc_samples, options.seed, options.passes
            found[part] = -bound(model, some, rest, every, numbers[part], *keys)
            continue
        for i, (logits, t) in enumerate(zip(ahead(model, some, rest), rest), part.start):
            logp = home(logits).double().log_softmax(-1)
            found[i] = logp.gather(1, t.to(logp.device)[:, None]).sum()
    return found


def ahead(model, prompts, targets):
    """The causal pass's logits (n, V) for each target's tokens, each from what stands before it."""
    rows = [(p if len(p) else p.new_tensor(model.begin), t) for p, t in zip(prompts, targets)]
    _, x = model.read([torch.cat(row) for row in rows])
    for states, t in zip(x, targets):
        yield model.head(states[-len(t) - 1 : -1])


class Behind:
    """The network as udlm.py asks for one: given noised canvases (B, L), their logits, each behind its prefix.

    rows    of the canvases, those that the prefix has, in its order
    passes  2: the last pass is given what the first one predicted of the same canvas (self-conditioning). That, too, is
            a function of the canvas alone, so that a bound stays one. (A sampler gives what was predicted a step ago.)
    """

    def __init__(self, model, prefix, rows, passes=1):
        self.model, self.prefix, self.rows, self.passes = model, prefix, rows, passes
        self.config = model.config

    def __call__(self, xt, mask=None, positions=None, rows=None):
        place, before = torch.zeros(len(xt), dtype=torch.int64, device=xt.device), None
        place[self.rows] = torch.arange(len(self.rows), device=xt.device)
        L, xt = xt.shape[1], xt[self.rows]
        for _ in range(self.passes - 1):
            with torch.no_grad():
                before = self.model.hidden(xt, self.prefix, before=before)
        rows = None if rows is None else place[rows // L] * L + rows % L
        return self.model.hidden(xt, self.prefix, before=before, rows=rows)


def canvases(model, prompts, texts, counted, passes=1):
    """The canvases of texts behind prompts, lists of 1-D tensors, as they would be written: for each (the network
    behind what stands before it, x (B, L), which of it counts and which is there, both bool (B, L))."""
    size, rows = model.canvas, [i for i, x in enumerate(texts) if len(x)]
    prefix = model.read([prompts[i] for i in rows])[0] if rows else None
    longest = max(map(len, texts), default=0)
    every = [torch.ones_like(x, dtype=torch.bool) for x in texts]
    table = (pad_sequence([x.to(model.hf.device) for x in xs], True) for xs in (texts, counted, every) if rows)
    table = [F.pad(x, (0, -longest % size)) for x in table]
    for c in range(0, longest, size):
        now = [x[:, c : c + size] for x in table]
        yield Behind(model, prefix, rows, passes), *now
        stay = [j for j, i in enumerate(rows) if len(texts[i]) > c + size]
        rows = [rows[j] for j in stay]
        prefix = model.follow(prefix, stay, now[0][rows]) if rows else None


def bound(model, prompts, texts, counted, numbers, samples=1, seed=0, passes=1):
    """An estimate of the NELBO, in nats, float64 (B,), of those tokens of each text that count (bool), given the others
    and the prompt: the sum of udlm.nelbo over the canvases. What is left of a last canvas is read as noise."""
    total = torch.zeros(len(texts), dtype=torch.float64)
    for c, (network, x, mine, there) in enumerate(canvases(model, prompts, texts, counted, passes)):
        keys = dict(mask_id=model.config.vocab_size, maskable=mine, real=there, samples=samples, seed=seed)
        total += udlm.nelbo(network, x, first=numbers.to(x.device) + 1_000_003 * c, **keys).cpu()
    return total


def apart(x0, maskable, real):
    """Rows (B, T) as (prompts, texts from the first token that counts on, which of their tokens count), lists."""
    rows = [(x[r], m[r]) for x, m, r in zip(x0, maskable, real)]
    cut = [int(m.long().argmax()) if m.any() else len(m) for _, m in rows]
    return [[x[:n] for (x, _), n in zip(rows, cut)]] + [[row[k][n:] for row, n in zip(rows, cut)] for k in (0, 1)]


@evaluating("hidden", "read", "config.vocab_size")
def nelbo(model, x0, *, mask_id=None, maskable=None, real=None, samples=1, seed=0, first=0):
    """mdlm.nelbo, of the diffusion model: canvas after canvas from each row's first token that counts, float64 (B,)."""
    real = torch.ones_like(x0, dtype=torch.bool) if real is None else real
    rows = apart(x0, real if maskable is None else maskable & real, real)
    numbers = first if torch.is_tensor(first) else first + torch.arange(len(x0))
    return bound(model, *rows, numbers, samples, seed)


# ------------------------------------------------------------------------------------------------------------------
# 4 · loss


@dataclass
class LossOptions:
    objective: Literal["nelbo", "noised_ce", "all_ce"] = "nelbo"  # udlm.py's: the bound; dLLM's flat mean; NeMo's
    ar_weight: Amount = 0.0  # of the causal pass's autoregressive loss, beside it (NeMo: 1)
    passes: Size = 2  # the last is given the prediction of the one before, which has no gradient; 1: none is

    def __post_init__(self):
        check(self)


def loss(model, x0, options=LossOptions(), *, mask_id, maskable=None, seed=0, shard=None, denominator=None, texts=None):
    """The loss of fine-tuning, in nats per token that counts, a scalar; its arguments are mdlm.loss's. A row is cut
    into canvases from its first token that counts on, as it would be written, and every canvas has its own t."""
    if hasattr(model, "module") or texts and texts.packed:
        what = "sharding=ddp: use one process" if hasattr(model, "module") else "packing: canvases follow one prompt"
        raise ValueError(f"DiffusionGemma is not trained with {what}")
    real = texts.mask() if texts else torch.ones_like(x0, dtype=torch.bool)
    maskable = real if maskable is None else maskable & real
    shard = (texts.first, texts.total) if texts else shard or (0, len(x0))
    total, rows = 0.0, apart(x0, maskable, real)
    number = shard[0] + torch.arange(len(x0))[:, None]
    given = dict(mask_id=model.config.vocab_size, shard=shard, denominator=1)
    for c, (network, x, mine, there) in enumerate(canvases(model, *rows, options.passes)):
        own = noise.fold(seed, 11, c)
        x = torch.where(there, x, noise_of(model, own, 9, number, torch.arange(x.shape[1])).to(x.device))
        if mine.any():
            objective = udlm.LossOptions(objective=options.objective)
            total += udlm.loss(network, x, objective, maskable=mine, seed=own, **given)
    if options.ar_weight:
        for logits, x, counts in zip(ahead(model, *rows[:2]), *rows[1:]):
            total += options.ar_weight * F.cross_entropy(logits[counts], x[counts], reduction="sum")
    return total / (maskable.sum() if denominator is None else denominator)
