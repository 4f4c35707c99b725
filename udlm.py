"""Uniform-state diffusion (UDLM, arXiv 2412.10193; GIDD, 2503.04482; Duo, 2506.10892): what differs from mdlm.py.

The idea in five lines. Noise does not hide a token, it replaces it by any. Nothing in x_t says which tokens are noise,
so that the network has to doubt them all, and a sampler may correct every token at every step, where masked diffusion
commits itself. One knob leads from here to mdlm.py: noise is the mask with probability `config.mask_share`,
else a token drawn uniformly. A share of 1 is mdlm.py exactly: loss, bound and samples. A share of 0 needs no mask.

    python udlm.py      trains and samples something tiny, and says what it does

1 noise · 2 what the network predicts · 3 loss · 4 bound · 5 sampling · 6 likelihood · 7 tutorial

With `block_size` the same by blocks, with bd3lm.py's attention. As in mdlm.py, everything is plain;
nanodlm/fast_udlm.py has ragged batches and the cache.
"""

import functools
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

import bd3lm
import mdlm
from bd3lm import from_blocks, to_blocks
from mdlm import Output, mask_rate, surest
from model import Config, Transformer, fp32
from nanodlm import noise
from nanodlm.bounds import Above0, Amount, Seed, Size, Steps, Unit, Whole, check
from nanodlm.guard import evaluating
from nanodlm.noise import draw, home, uniform

CAUSAL = False

# ---- 1 · noise -----------------------------------------------------------------------------------------------------
#
# At time t a token is kept with probability alpha(t), else drawn from pi, which is the mask with probability s =
# mask_share, and each of N letters, the ids of text, with (1 - s) / N: in the formulas below, with x_0 at hand,
#     q(y) = q(x_t = y | x_0) = alpha(t) [y = x_0] + (1 - alpha(t)) pi(y).


def letters(config, mask_id):
    """How many ids noise is drawn from and the network predicts: those that are in use, but for the mask."""
    extent = config.noise_ids or config.vocab_size
    return extent - int(mask_id < extent)


def replacement(v, config, mask_id):
    """The noise, int64, that uniform numbers v in (0, 1) stand for."""
    s, n = config.mask_share, letters(config, mask_id)
    i = ((v - s) / (1 - s or 1) * n).long().clamp(0, n - 1)
    return torch.where(v < s, mask_id, i + (i >= mask_id).long())


# ---- 2 · what the network predicts ---------------------------------------------------------------------------------
#
# The network's p(y) goes in the place of [y = x_0]: q^(y) = alpha p(y) + (1 - alpha) pi(y). Its best answer is not
# p(x_0^i | x_t), but f = p(x_0^i | all tokens of x_t but the i-th). For with z = x_t^i the posterior is f q(z | x_0),
# so that the true reverse process goes from z to y at a rate of sum f(x_0) q(y | x_0) over sum f(x_0) q(z | x_0): what
# the formulas make of f. What a token says of itself they add by themselves, and t with it; the network needs t only
# to know how far the others can be trusted. (tests/book/test_udlm.py has it all by enumeration.)


def log_p(logits, config, mask_id):
    """log p of each letter, (N, V), at least fp32, from the network's logits (N, V); the mask is never predicted."""
    out = torch.arange(logits.shape[1], device=logits.device)
    out = (out == mask_id) | (out >= (config.noise_ids or config.vocab_size))
    return fp32(logits).masked_fill(out, -torch.inf).log_softmax(-1)


def token_bound(logp, x0, z, rate, config, mask_id):
    """What tokens that read z (N,) add to the NELBO, nats per unit of rate, (N,), given log p (N, V) and x0, rate (N,):

        pi(z) / (alpha q(z)) (KL(q || q^) + q(z) / q^(z) - 1 - log(q(z) / q^(z)))    (GIDD's bound; UDLM's)

    All tokens count, those that are noise and those that might be. Of masks alone: -log p(x_0) / rate of the masked."""
    pi, rate = (1 - config.mask_share) / letters(config, mask_id), rate.to(logp.dtype)  # pi of a letter
    alpha, own, there = 1 - rate, logp.gather(1, x0[:, None])[:, 0], of(logp, z)
    odds = torch.log(rate * pi / alpha)  # log(q / alpha) of all but x_0; -inf where all noise is masks
    log_ratio = torch.log1p(rate * pi / alpha) - torch.logaddexp(odds, own)  # log(q / q^) of x_0
    kl = (alpha + rate * pi) * log_ratio
    if pi:  # of the other letters it is -softplus(log p - odds)
        kl = kl - rate * pi * (F.softplus(logp - odds[:, None]).sum(1) - F.softplus(own - odds))
    r = torch.where(z == x0, log_ratio, -F.softplus(there - odds.clamp(min=-1e4)))
    r = torch.where(z == mask_id, 0.0, r)
    return torch.where(z == x0, pi / (alpha + rate * pi), 1 / rate) / alpha * (kl + r.expm1() - r)


def of(logp, tokens):
    """log p (N,) of tokens (N,), which may be masks: finite, so that it can be multiplied by 0."""
    return logp.gather(1, tokens.clamp(max=logp.shape[1] - 1)[:, None])[:, 0].clamp(min=-1e4)


# ---- 3 · loss ------------------------------------------------------------------------------------------------------


@dataclass
class LossOptions(mdlm.LossOptions):
    objective: Literal["nelbo", "noised_ce", "all_ce"] = "nelbo"  # the bound; cross entropy of noised or of all tokens
    block_size: Whole = 0  # tokens of a block, which has its own t and sees the clean text before it; 0: no blocks

    def __post_init__(self):
        super().__post_init__()
        if self.corruption != "rate" or self.complementary:
            what = "complementary=True" if self.complementary else f"corruption={self.corruption}"
            raise ValueError(f"{what} is of masks: noise that replaces tokens needs its rate; leave it out")
        if self.block_size and self.see_ahead < 1:
            raise ValueError("blocks learn to see ahead by growing, as in stages=500:block_size=8, not by see_ahead")


def corrupt(maskable, options, seed, first, total, config, mask_id):
    """The noise of rows first…first+B of `total`: 1 + the id that stands there, or 0 where the token is kept, int64
    (B, L); and its time t, float64 (B, L): one a row, or one a block. It draws q(x_t | x_0)."""
    L, device = maskable.shape[1], maskable.device
    blocks = to_blocks(home(maskable), options.block_size or L)
    n, row, i = len(blocks) // len(maskable), *(torch.arange(k, device=blocks.device) for k in blocks.shape)
    row = first * n + row[:, None]
    t = noise.times(seed, total * n, options, blocks.device)[row]
    noised = (uniform(seed, 3, row, i) < mask_rate(t, options.schedule)[0]) & blocks
    found = torch.where(noised, 1 + replacement(uniform(seed, 8, row, i), config, mask_id), 0)
    return from_blocks(found, L).to(device), from_blocks(t.expand_as(found), L)


def predict(model, xt, x0, rows, size=0, mask=None, positions=None, texts=None):
    """Logits (N, V) at the flat indices rows into xt (B, L); by blocks, each sees those of x0 before it."""
    if size:
        return bd3lm.predict(model, xt, x0, rows, size, None, texts)
    return model(xt, mask=mask, positions=positions, rows=rows)


def loss(model, x0, options=LossOptions(), *, mask_id, maskable=None, seed=0, shard=None, denominator=None, texts=None):
    """The training loss in nats per token, a scalar; the arguments are mdlm.loss's.

    nelbo      the bound, every term
    noised_ce  the mean of -log p over noised tokens, flat (as dLLM fine-tunes DiffusionGemma). Its best answer is the
               bound's at every t: where a token is noise, it says nothing of what stood there
    all_ce     … over all tokens (as NeMo does). Its best answer is p(x_0 | x_t), which believes a token as often as it
               is clean: the bound counts that twice
    """
    config, size = getattr(model, "module", model).config, options.block_size
    maskable = torch.ones_like(x0, dtype=torch.bool) if maskable is None else maskable
    draw_noise = functools.partial(corrupt, config=config, mask_id=mask_id)
    if texts:
        found, t = texts.corrupt(draw_noise, maskable, options, seed)
    else:
        found, t = draw_noise(maskable, options, seed, *(shard or (0, len(x0))))
    noised = found > 0
    counted = noised if options.objective == "noised_ce" or config.mask_share == 1 else maskable
    xt, rows = torch.where(noised, found - 1, x0), counted.flatten().nonzero()[:, 0]
    rate, slope = (x.to(x0.device) for x in mask_rate(t[home(counted)], options.schedule))
    mask, positions = (texts.mask(), texts.positions()) if texts else (None, None)
    mask = noise.see_ahead(mask, options.see_ahead, seed, x0.shape[1], x0.device)
    logits = predict(model, xt, x0, rows, size, mask, positions, texts)
    target, z = x0.flatten()[rows], xt.flatten()[rows]
    logp = log_p(logits, config, mask_id)
    if options.objective == "nelbo":
        nats = slope.to(logp) * token_bound(logp, target, z, rate, config, mask_id)
    else:
        nats = F.nll_loss(logp, target, reduction="none")
        if options.objective == "noised_ce":  # by a constant, so that micro-batches add up: about their mean
            nats = nats / mask_rate(noise.times(seed, 4096, options), options.schedule)[0].mean().to(nats)
    return nats.sum() / (maskable.sum() if denominator is None else denominator)


# ---- 4 · bound -----------------------------------------------------------------------------------------------------


@evaluating("config.mask_share")
def nelbo(model, x0, *, mask_id, maskable=None, real=None, samples=1, seed=0, first=0):
    """An estimate of each row's NELBO in nats, float64 (B,); the arguments are mdlm.nelbo's, and the fixed counts of
    noise. The bound is the same for all schedules: its time is the rate of noise itself. What rates may have led to a
    canvas of k noises the network is not told, so that the integral over them needs no draw (noise.rates_given).

    By blocks, where the network is trained on blocks; padding is then read as noise, text that is not known yet."""
    config, (B, L) = model.config, x0.shape
    if config.mask_share == 1:  # the same estimate, in closed form
        given = dict(mask_id=mask_id, maskable=maskable, real=real, samples=samples, seed=seed, first=first)
        return (bd3lm if config.block_size else mdlm).nelbo(model, x0, **given)
    shown = home(torch.ones_like(x0, dtype=torch.bool) if real is None else real)
    maskable = shown if maskable is None else home(maskable)
    blocks = to_blocks(maskable, config.block_size or L)
    row = home(first) if torch.is_tensor(first) else first + torch.arange(B, device=blocks.device)
    number = (row[:, None] + 1_000_003 * torch.arange(len(blocks) // B, device=blocks.device)).flatten()
    n, rows = blocks.sum(1), maskable.flatten().nonzero()[:, 0]
    target, total = x0.flatten()[rows.to(x0.device)], torch.zeros(B, dtype=torch.float64, device=row.device)
    for j in range(samples):
        spread = ((number * samples + j).double() * 0.6180339887498949 + uniform(seed, 5)) % 1
        k = torch.minimum((spread * (n + 1)).floor().long(), n)
        noised = mdlm.hide_by_count(k, noise.of_masks(seed, number, j, blocks.shape[1]), blocks)
        noised = from_blocks(noised, L) | ~shown
        found = replacement(uniform(seed, 9, row[:, None], j, torch.arange(L, device=row.device)), config, mask_id)
        xt = torch.where(noised.to(x0.device), found.to(x0.device), x0)
        logits = predict(model, xt, x0, rows.to(x0.device), config.block_size, real)
        z, logp = xt.flatten()[rows.to(x0.device)], log_p(logits, config, mask_id)
        for rate, weight in zip(*noise.rates_given(k, n)):  # (blocks,) each
            rate, weight = (from_blocks(x[:, None].expand_as(blocks), L).flatten()[rows] for x in (rate, weight))
            nats = token_bound(logp, target, z, rate.to(x0.device), config, mask_id)
            total.index_add_(0, rows // L, home(nats).double() * weight)
    return total / samples


# ---- 5 · sampling --------------------------------------------------------------------------------------------------


@dataclass
class SampleOptions:
    max_new_tokens: Whole = 256  # tokens appended to each prompt; 0 fills only the masks inside the prompts
    steps: Steps = 0  # denoising steps, of a block where there are blocks; 0 means as many as tokens
    quota: Literal["ancestral", "entropy_bound"] = "ancestral"  # the posterior's steps; or DiffusionGemma's
    schedule: str = "linear"  # ancestral: the rate of noise over the steps; linear, poly2 (any power), cosine, …
    forget: Unit = 0.0  # ancestral: chance that a token is drawn anew whatever it was (predictor-corrector, 2602.21185)
    entropy_bound: Amount = 0.1  # entropy_bound: nats of joint uncertainty kept per step; the rest is noise again
    last_temperature: Above0 = 0.4  # entropy_bound: temperature of the last step, from `temperature` on linearly
    stable: Whole = 1  # entropy_bound: stop when the best tokens were the same for so many steps more, and …
    sure: Amount = 0.005  # … their mean entropy is below this, nats
    temperature: Amount = 1.0  # of the token draw; 0 takes the most probable token
    seed: Seed = 0  # row i of a call draws from seed and i alone

    def __post_init__(self):
        check(self)
        if self.quota == "entropy_bound" and not self.temperature:
            raise ValueError("quota=entropy_bound goes from temperature to last_temperature: give one above 0")
        mask_rate(torch.ones(1), self.schedule)


def one_step(options, step, steps, logits, z, at, eps, config, mask_id, *key):
    """What becomes of the holes of a row in a step: new tokens (N,), log p (N, V) that they were drawn from, fp64, and
    the mean entropy in nats where it is asked for. logits (N, V) of tokens z (N,) at positions `at` (N,), all on one
    device; key: integers for the random numbers."""
    o, left = options, steps - step
    u, v, logp = uniform(*key, step, 0, at), uniform(*key, step, 1, at), log_p(logits, config, mask_id).double()
    heat = o.temperature
    if o.quota == "entropy_bound":
        heat = o.last_temperature + (heat - o.last_temperature) * left / steps
    if heat:
        logp = (logp / heat).log_softmax(-1)
    else:
        logp = torch.full_like(logp, -torch.inf).scatter_(1, logp.argmax(-1, keepdim=True), 0.0)
    tokens = draw(logp, v)
    if o.quota == "entropy_bound":  # of the surest, as many as their joint uncertainty allows (EB-Sampler, 2505.24857)
        entropy = -(logp.exp() * logp.clamp(min=-1e4)).sum(-1)
        low = entropy.sort().values
        kept = surest(entropy.neg().exp(), int((low.cumsum(0) - low <= o.entropy_bound).sum()), eps)
        return replacement(u, config, mask_id).index_copy(0, kept, tokens[kept]), logp, entropy.mean().item()
    # The posterior (GIDD's): z stays where no noise came between s and t, else x_s is drawn from what x_0 says of
    # it, alpha_s p + (1 - alpha_s) pi. With masks alone it is mdlm's: the masked are revealed, and nothing else moves.
    t = torch.tensor([left, left - 1], dtype=torch.float64) / steps
    rate, rate_s = (r.to(logits.device) for r in mask_rate(t, o.schedule)[0])
    rate_s = rate_s * (left > 1)  # 0 at the end, whatever the schedule's rounding
    p, s = of(logp, z).exp(), config.mask_share
    pi = (1 - s) / letters(config, mask_id)
    q_s, q_t = (torch.where(z == mask_id, r * s, (1 - r) * p + r * pi) for r in (rate_s, rate))
    moves = 1 - (1 - o.forget) * (1 - rate) / (1 - rate_s) * q_s / q_t
    other = torch.where(u < moves, replacement(v, config, mask_id), z)
    return torch.where(u < moves * (1 - rate_s), tokens, other), logp, 0.0


def settled(options, logp, entropy, before, last):
    """quota=entropy_bound: whether the holes are done, in the last step at the latest; and a pair, their most probable
    tokens and for how many steps these are the same, which is `before` of the next step. Of the other: False, None."""
    if options.quota != "entropy_bound":
        return False, None
    best = logp.argmax(-1)
    same = before[1] + 1 if before and torch.equal(best, before[0]) else 0
    return last or same >= options.stable and entropy < options.sure, (best, same)


def denoise(model, logits_at, x, hole, options=SampleOptions(), *, mask_id, row=0, steps=0):
    """Write noise into the holes (bool, L) of a canvas x (int64, L), and make a text of it, in place, in `steps` steps
    at most (0: one per hole). After each it yields the positions that changed, and log p of what they are.

    logits_at  canvas (L,), positions (N,) -> logits (N, V) there; all three on the network's device"""
    o, at, best = options, hole.nonzero()[:, 0], None
    steps, weights = steps or len(at), next(model.parameters())
    given = torch.finfo(weights.dtype).eps, model.config, mask_id, o.seed, row
    x[at] = replacement(uniform(o.seed, row, -1, 1, at), model.config, mask_id)
    for step in range(steps):
        logits = fp32(logits_at(x.to(weights.device), at.to(weights.device))).to(x.device)
        z = x[at]
        tokens, logp, entropy = one_step(o, step, steps, logits, z, at, *given)
        over, best = settled(o, logp, entropy, best, step + 1 == steps)
        x[at] = tokens = best[0] if over else tokens
        changed = (tokens != z).nonzero()[:, 0]
        yield at[changed], of(logp[changed], tokens[changed])
        if over:
            return


@evaluating("config.mask_share")
def generate(
    model, prompts, options=SampleOptions(), *, mask_id, eos_id=None, until=None, numbers=None, trace=False, watch=None
):
    """Fill in masks, one prompt (1-D int64 tensor) after the other; arguments and result are mdlm.generate's, and with
    blocks bd3lm.generate's. What is given stays as it is; a hole may change until its block's last step."""
    o, out = options, Output([], [])
    xs = [F.pad(home(p).long(), (0, o.max_new_tokens), value=mask_id) for p in prompts]
    for i, x in enumerate(xs):
        hole, forwards, events, end, n = x == mask_id, 0, [], len(x), len(x)
        size = model.config.block_size or max(1, n)
        more = -n % size  # the last block is whole, as in training; what lies after the text is cut off
        canvas, hole = F.pad(x, (0, more), value=mask_id), F.pad(hole, (0, more), value=True)
        xs[i], row = canvas[:n], i if numbers is None else int(numbers[i])
        for block in (hole[:n].nonzero()[:, 0] // size).unique().tolist():
            mine, logits_at = torch.ones_like(hole), lambda x, at: model(x[None], rows=at)
            if model.config.block_size:
                mine, logits_at = bd3lm.logits_of(model, canvas, block, size, model.config.seq_len)
            steps = denoise(model, logits_at, canvas, hole & mine, o, mask_id=mask_id, row=row, steps=o.steps)
            for at, logp in steps:
                events += [(forwards, *event) for event in zip(at.tolist(), canvas[at].tolist(), logp.exp().tolist())]
                forwards += 1
                if watch is not None:
                    watch([x.clone() for x in xs])
            done = min(n, (block + 1) * size)
            stop = mdlm.end_of_text(canvas[:done], hole[:done], mask_id, eos_id)
            if stop < done or until and done < n and until(canvas[:done], len(prompts[i]), size):
                end = stop
                break
        out.tokens.append(canvas[:end].to(prompts[i].device))
        out.num_forwards.append(forwards)
        out.trace += [[e for e in events if e[1] < n]] if trace else []
    return out


# ---- 6 · likelihood -------------------------------------------------------------------------------------------------


@dataclass
class LikelihoodOptions:
    method: Literal["nelbo"] = "nelbo"  # a bound: a token may change until the end, so that no chain rule is exact
    mc_samples: Size = 16  # canvases per text
    seed: Seed = 0  # of the noise

    def __post_init__(self):
        check(self)


@evaluating("config.mask_share")
def log_likelihood(model, prompts, targets, options=LikelihoodOptions(), *, mask_id, numbers=None):
    """A lower bound of log p(target | prompt) in nats for lists of 1-D int64 tensors, float64 (N,): minus the NELBO of
    `mc_samples` canvases, which depend on the seed and the pair's number."""
    found = torch.zeros(len(prompts), dtype=torch.float64)
    for i, (prompt, target) in enumerate(zip(prompts, targets)):
        x0 = torch.cat([prompt, target])
        x0 = F.pad(x0, (0, -len(x0) % (model.config.block_size or 1)))[None]
        at = torch.arange(x0.shape[1], device=x0.device)[None]
        real = at < len(prompt) + len(target)
        keys = dict(samples=options.mc_samples, seed=options.seed, first=i if numbers is None else int(numbers[i]))
        found[i] = -nelbo(model, x0, mask_id=mask_id, maskable=real & (at >= len(prompt)), real=real, **keys)
    return found


# ---- 7 · tutorial --------------------------------------------------------------------------------------------------


def tutorial(steps=800, samples=200):
    """Train a tiny model on a rule that a child sees at once, and watch it correct itself."""
    torch.manual_seed(0)
    letters, L, mask_id = "abcdefghij", 8, 10  # the mask is an id without a row: a hole, which the network never sees

    def runs(n, seed):  # "cdefghij" or, as often, "jihgfedc": 20 possible rows
        start, way = ((uniform(seed, i, torch.arange(n)) * k).long()[:, None] for i, k in ((0, 10), (1, 2)))
        return (start + (2 * way - 1) * torch.arange(L)) % 10

    def show(ids):
        return "".join(letters[i] for i in ids)

    model, x0 = Transformer(Config(vocab_size=10, seq_len=L, n_layer=2, n_head=2, n_embd=64)), runs(1, 0)
    print(f"1. Data: runs of the alphabet, forwards or backwards, as {show(x0[0])!r}; 20 different rows.")
    print("\n2. Noise: at time t each letter is replaced with probability t, by any; which ones, nobody says.")
    for t in (0.2, 0.5, 0.8):
        found, _ = corrupt(x0 >= 0, LossOptions(t_min=t, t_max=t), 2, 0, 1, model.config, mask_id)
        print(f"    t = {t}   {show(torch.where(found > 0, found - 1, x0)[0])}")
    optimizer, best = torch.optim.AdamW(model.parameters(), lr=3e-3), torch.tensor(20.0).log().item()
    print(f"\n3. Training: {model.num_params():,} parameters learn what stands there, from the other letters.")
    for i in range(steps + 1):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, i / 50, 2 * (steps - i) / steps + 1e-3)
        value = loss(model, runs(64, noise.fold(1, i)), mask_id=mask_id, seed=noise.fold(2, i))
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if i % (steps // 4) == 0:
            bound = nelbo(model, runs(256, 99), mask_id=mask_id, samples=4)
            said = f"NELBO {bound.mean():6.3f} +- {bound.std() / 16:.3f} nats a row (at least {best:.3f})"
            print(f"    step {i:4}   {said}")

    print("\n4. Sampling: from letters at random, eight steps; what was wrong is corrected.")
    seen = []
    generate(model, [x0[0, :0]], SampleOptions(L, seed=1), mask_id=mask_id, watch=lambda xs: seen.append(show(xs[0])))
    print("    " + " -> ".join(seen))
    print("\n5. Does correcting help? Of as many samples so many follow the rule, by steps:")
    rows = {show(x) for x in runs(5000, 3)}
    for n in (2, 4, 8, 64):
        made = generate(model, [x0[0, :0]] * samples, SampleOptions(L, n), mask_id=mask_id).tokens
        print(f"    {n:3} steps   {sum(show(x) in rows for x in made)} of {samples}")
    print("    Next: python train.py config/quickstart_udlm.py")


if __name__ == "__main__":
    tutorial()
