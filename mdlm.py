"""Masked diffusion language models (MDLM, arXiv 2406.07524; MD4, 2406.04329; LLaDA, 2502.09992).

The idea in five lines. Hide each token of a text x_0 with probability 1 - alpha(t), t uniform in [0, 1]; the result
is x_t. A Transformer sees x_t, in both directions, and predicts what is hidden. The cross entropy at the hidden
positions, weighted by -alpha'(t) / (1 - alpha(t)), is in expectation an upper bound on -log p(x_0): the NELBO.
Sampling goes the other way: start from a canvas of masks and reveal a few positions per step, in any order.

    python mdlm.py      trains and samples something tiny, and says what it does

1 corruption · 2 loss · 3 bound · 4 sampling · 5 likelihood · 6 tutorial

Everything here is plain. nanodlm/fast_mdlm.py has the same sampler and likelihoods for ragged batches, with caches and
every published option; a test holds the two equal, token for token, as random numbers are functions of integers.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F

from model import Config, Transformer, fp32
from nanodlm import cross_entropy, noise
from nanodlm.bounds import Amount, Seed, Size, Steps, Unit, Whole, check
from nanodlm.guard import evaluating
from nanodlm.noise import draw, home, share, uniform

CAUSAL = False  # the attention this algorithm needs; train.py sets the network's switch by it

# ---- 1 · corruption ------------------------------------------------------------------------------------------------


def mask_rate(t, schedule="linear"):
    """The probability 1 - alpha(t) that a token is hidden at time t, and its derivative -alpha'(t).

    linear (MDLM's "log-linear"; LLaDA, eq. 8): alpha(t) = 1 - t, so that the loss weighs 1/t. Others: noise.py."""
    return (t, torch.ones_like(t)) if schedule == "linear" else noise.schedule(t, schedule)


def hide_by_count(count, u, maskable):
    """Hide exactly count (B,) of each row's maskable tokens, chosen uniformly: those with the smallest u."""
    ranks = u.masked_fill(~maskable, 2.0).argsort(1).argsort(1)
    return (ranks < count[:, None]) & maskable


@dataclass
class LossOptions:
    schedule: str = "linear"  # mask rate over time: linear, poly2 (any power), cosine (MD4's), cosine_mdlm
    objective: Literal["nelbo", "masked_ce"] = "nelbo"  # w(t) times cross entropy, the bound; or without w(t)
    corruption: Literal["rate", "count"] = "rate"  # hide independently; or an exact count, with less variance
    complementary: bool = False  # also train on the opposite mask: every token is predicted once; doubles the batch
    t_shape: Literal["uniform", "bell"] = "uniform"  # bell: t ~ Beta(2, 2), fewer nearly clean and nearly empty rows
    t_min: Unit = 0.0  # t is drawn between t_min and t_max; clipped or bell-shaped times train well, but the
    t_max: Unit = 1.0  # weighted loss is then no longer the bound (nelbo() always integrates over all t)
    low_discrepancy: bool = True  # spread t evenly over the global batch
    see_ahead: Unit = 1.0  # chance that a token sees a later one; 0 is causal attention (see train's anneal_iters)

    def __post_init__(self):
        check(self)
        if self.t_min > self.t_max:
            raise ValueError(f"t_min={self.t_min} exceeds t_max={self.t_max}; t is drawn between them")
        mask_rate(torch.ones(1), self.schedule)


def corrupt(maskable, options, seed, first, total):
    """What is hidden of rows first…first+B of `total`, and its weight in the loss: bool (B, L) and float64 (B, 1), one
    time t a row; both twice as long with complementary masks. It draws q(x_t | x_0) (MDLM, eq. 4; LLaDA, eq. 7)."""
    (B, L), device, maskable = maskable.shape, maskable.device, home(maskable)
    t_all = noise.times(seed, total, options, maskable.device)
    rate, slope = mask_rate(t_all[first : first + B], options.schedule)
    row = first + torch.arange(B, device=maskable.device)[:, None]
    u = uniform(seed, 3, row, torch.arange(L, device=maskable.device))

    if options.corruption == "count":  # k of n hidden, weight n/k: the same expectation, less variance (LLaDA, eq. 6)
        n = maskable.sum(1)
        k = torch.minimum((rate * n).floor().long() + 1, n.clamp(min=1))
        hidden = hide_by_count(k, u, maskable)
        weight, other_weight = slope * n / k, slope * n / (n - k).clamp(min=1)
        if options.complementary:  # the opposite of hiding everything is empty, so everything counts for both
            weight = torch.where(k >= n, 2 * weight, weight)
    else:
        hidden = (u < rate[:, None]) & maskable
        weight, other_weight = slope / rate, slope / (1 - rate)  # w(t) = -alpha'(t) / (1 - alpha(t)) (MDLM, eq. 11)
    if options.complementary:
        # The opposite mask has rate 1 - r. Its density under this draw is 1/slope too, so its weight in the bound is
        # slope / (1 - r) where the first one's is slope / r; half the sum of both is the bound again.
        hidden = torch.cat([hidden, maskable & ~hidden])
        weight = torch.cat([weight, other_weight]) / 2
    if options.objective == "masked_ce":
        # A constant weight, so that micro-batches add up; about the mean over hidden tokens.
        mean_rate = mask_rate(t_all, options.schedule)[0].mean()
        weight = torch.full_like(weight, 1.0) / (1.0 if options.complementary else mean_rate)
    return hidden.to(device), weight[:, None]


# ---- 2 · loss ------------------------------------------------------------------------------------------------------


def hidden_nll(model, xt, x0, hidden, mask_id, mask=None, positions=None):
    """-log p(x_0 | x_t) at the hidden tokens, fp32 (N,), in row-major order; logits are computed for those alone, a
    part of the vocabulary at a time (nanodlm/cross_entropy.py), or else they would need more memory than all the rest.

    The mask token is never predicted: its logit is excluded (SUBS, MDLM section 3.2.3)."""
    rows = hidden.flatten().nonzero()[:, 0]
    return cross_entropy.nll(model, x0.flatten()[rows], mask_id, xt, mask=mask, positions=positions, rows=rows)


def loss(model, x0, options=LossOptions(), *, mask_id, maskable=None, seed=0, shard=None, denominator=None, texts=None):
    """The training loss in nats per token, a scalar (MDLM, eq. 11; LLaDA, eq. 3, and eq. 5 given prompts).

    x0           int64 (B, L), clean tokens
    maskable     bool (B, L): the tokens to learn; prompts and pads are not. Default: all
    seed         of this step; shard = (first, total): these are rows first…first+B of a global batch of total rows.
                 t is stratified over the whole of it, and the sum over its parts equals one large batch
    denominator  what the summed loss is divided by; default: the number of maskable tokens here
    texts        nanodlm.batches.Texts, in place of shard: each text has its own t, positions and attention, so that
                 the loss of packed rows is that of rows with one text each
    """
    maskable = torch.ones_like(x0, dtype=torch.bool) if maskable is None else maskable
    mask, positions = (texts.mask(), texts.positions()) if texts else (None, None)
    if texts:
        hidden, weight = texts.corrupt(corrupt, maskable, options, seed)
    else:
        hidden, weight = corrupt(maskable, options, seed, *(shard or (0, len(x0))))
    mask = noise.see_ahead(mask, options.see_ahead, seed, x0.shape[1], x0.device)
    if options.complementary:
        x0 = torch.cat([x0, x0])
        mask, positions = (m if m is None or len(m) < len(maskable) else torch.cat([m, m]) for m in (mask, positions))
    weight = weight.expand_as(hidden)[home(hidden)]  # here: after the network a GPU would have to be waited for
    nll = hidden_nll(model, torch.where(hidden, mask_id, x0), x0, hidden, mask_id, mask, positions)
    total = (weight.to(nll) * nll).sum()
    return total / (maskable.sum() if denominator is None else denominator)


# ---- 3 · bound -----------------------------------------------------------------------------------------------------


def nelbo_masks(maskable, row, j, samples, seed, begin=0):
    """Mask j (an int, or int64 (B,)) of `samples` of each row (numbered by row, int64 (B,)), which begins at position
    `begin`: what is hidden, bool (B, L), and the weight n/k of its cross entropy, float64 (B,) (LLaDA, eq. 6)."""
    n = maskable.sum(1)
    spread = ((row * samples + j).double() * 0.6180339887498949 + uniform(seed, 5)) % 1
    k = torch.minimum((spread * n).floor().long() + 1, n.clamp(min=1))
    u = noise.of_masks(seed, row, j, maskable.shape[1], begin)
    return hide_by_count(k, u, maskable), n.double() / k


@evaluating()
def nelbo(model, x0, *, mask_id, maskable=None, real=None, samples=1, seed=0, first=0):
    """An unbiased estimate of each row's NELBO in nats, float64 (B,): an upper bound on -log p(maskable | the rest).

    Fixed-count estimator (LLaDA, alg. 3): k ~ U{1…n}, hide exactly k of the n maskable tokens, n/k times their summed
    cross entropy; for all schedules the same expectation. Row i's masks depend on seed and first + i alone; k is spread
    evenly over samples and rows by the golden ratio, so a standard error over rows is, if anything, too large.
    real       bool (B, L): padding, as the network's mask
    first      the first row's number; or all of them, int64 (B,)
    """
    maskable = real if maskable is None else maskable
    maskable = home(torch.ones_like(x0, dtype=torch.bool) if maskable is None else maskable)
    total = 0.0
    row = home(first) if torch.is_tensor(first) else first + torch.arange(len(x0), device=maskable.device)
    for j in range(samples):
        hidden, weight = nelbo_masks(maskable, row, j, samples, seed)
        hidden = hidden.to(x0.device)
        nll = hidden_nll(model, torch.where(hidden, mask_id, x0), x0, hidden, mask_id, real)
        ce = home(torch.zeros_like(x0, dtype=nll.dtype).masked_scatter_(hidden, nll)).double()
        total += ce.sum(1) * weight
    return total / samples


# ---- 4 · sampling --------------------------------------------------------------------------------------------------


@dataclass
class SampleOptions:
    max_new_tokens: Whole = 256  # masks appended to each prompt; 0 fills only the masks inside the prompts
    steps: Steps = 0  # denoising steps; 0 means as many as tokens, of which linear shares are one each
    order: Literal["confidence", "margin", "entropy", "random", "left_to_right"] = "confidence"  # who is revealed first
    quota: Literal["steps", "threshold", "ancestral"] = "steps"  # how many per step
    schedule: str = "linear"  # of the steps and ancestral quotas: linear, poly2 (any power), cosine, cosine_mdlm
    threshold: Amount = 0.9  # quota=threshold: reveal every position at least this sure (Fast-dLLM, arXiv 2505.22618)
    temperature: Amount = 1.0  # of the token draw; 0 takes the most probable token
    seed: Seed = 0  # row i of a call draws from seed and i alone

    def __post_init__(self):
        check(self)
        if self.order in ("random", "left_to_right") and self.quota == "threshold":
            raise ValueError("quota=threshold needs a measure of certainty: use order=confidence, margin or entropy")
        mask_rate(torch.ones(1), self.schedule)


@dataclass
class Output:
    tokens: list[torch.Tensor]  # per prompt: int64 (length,), prompt included, cut after a generated end-of-text
    num_forwards: list[int]  # per prompt: network evaluations (NFE); guidance counts twice
    trace: list[list[tuple]] = field(default_factory=list)  # per prompt: (step, position, token, its probability)


def certainty(logits, order, tokens=None):
    """How sure the network is of a position, (N,) in [0, 1], from its logits (N, V); the larger goes first.

    confidence: the largest probability, or that of the given tokens; margin: first minus second; entropy: exp(-H), 1
    over the perplexity. Without tokens none of them looks at the token drawn, so that choosing positions by them leaves
    the distribution of the tokens intact. All three: EB-Sampler, arXiv 2505.24857, eq. 1."""
    p = logits.softmax(-1)
    if order == "confidence":
        return p.amax(-1) if tokens is None else p.gather(1, tokens[:, None])[:, 0]
    if order == "margin":
        best = p.topk(min(2, p.shape[-1]), -1).values
        return best[:, 0] - (best[:, 1] if best.shape[1] > 1 else 0)
    # 1e-10 as in Dream's code, and so that 0 log 0 = 0; exp in fp64, or small entropies would tie.
    return home((p * (p + 1e-10).log()).sum(-1)).double().exp()


def surest(p, count, eps=0.0):
    """The indices, ascending, of the `count` largest probabilities p (N,); equal ones go from left to right.

    Where they are equal by symmetry, as all are on a canvas of masks under RoPE, rounding would decide who goes first,
    and so the machine. So equal means: log-odds that differ by half of the digits of the network's dtype at most, whose
    last digit is eps. That is far coarser than rounding, and far finer than what it means."""
    last = p.sort(descending=True).values[max(count, 1) - 1]
    alike = eps**0.5 * last * (1 - last + 1 / 256)  # a logit moves p by p (1 - p) times itself; near 1 by fp32's digits
    level = (p > last + alike).long() + (p >= last - alike).long()
    return level.argsort(descending=True, stable=True)[:count].sort().values


def denoise(model, logits_at, x, hole, options=SampleOptions(), *, mask_id, row=0, steps=0, answer=None):
    """Reveal the masks among the holes (bool, L) of a canvas x (int64, L), in place, in `steps` steps (0: as many as
    there are holes). After each it yields the positions that were revealed and the log p of their tokens, both (n,).

    logits_at  canvas (L,), positions (N,) -> logits (N, V) there; all three on the network's device
    row        its number, from which with the seed, the step and the position come all random numbers
    answer     int64 (L,): the tokens that are written, in place of those drawn
    """
    o, hidden, step, weights = options, hole & (x == mask_id), 0, next(model.parameters())
    n = int(hidden.sum())
    steps = steps or max(1, n)
    while hidden.any():
        at = hidden.nonzero()[:, 0]
        u, count = uniform(o.seed, row, step, 0, at), int(share(n, step, steps, o.schedule, mask_rate))
        if o.quota == "ancestral":  # each hidden token by itself: (alpha_s - alpha_t) / (1 - alpha_t) (MDLM, eq. 7)
            t, s = (1 - torch.tensor(step + i).double() / steps for i in (0, 1))
            rate_t, rate_s = mask_rate(t, o.schedule)[0], mask_rate(s, o.schedule)[0] if step + 1 < steps else 0.0
            at = at[u < (rate_t - rate_s) / rate_t]
        elif o.order in ("random", "left_to_right"):  # LLaDA's random remasking (alg. 4)
            at = at[surest(u if o.order == "random" else -at.double(), count)]
        elif o.quota == "steps" and not count:
            at = at[:0]
        logp = at.double()
        if len(at):
            logits = fp32(logits_at(x.to(weights.device), at.to(weights.device))).to(x.device)
            logits = logits.index_fill(1, at.new_tensor(mask_id), -torch.inf)
            v = uniform(o.seed, row, step, 1, at)
            tokens = draw(logits, v, o.temperature) if answer is None else answer[at]
            logp = logits.double().log_softmax(-1).gather(1, tokens[:, None])[:, 0]
            if o.order not in ("random", "left_to_right") and o.quota != "ancestral":  # LLaDA, alg. 5
                sure = certainty(logits, o.order).double()
                level = (1 + sure) / 2 if o.order == "margin" else sure  # how a difference of probabilities rounds
                now = surest(level, count if o.quota == "steps" else 1, torch.finfo(weights.dtype).eps)
                if o.quota == "threshold":
                    now = torch.cat([now, (sure >= o.threshold).nonzero()[:, 0]]).unique()
                at, tokens, logp = at[now], tokens[now], logp[now]
            x[at], hidden[at] = tokens, False
        step += 1
        yield at, logp


@evaluating()
def generate(
    model, prompts, options=SampleOptions(), *, mask_id, eos_id=None, until=None, numbers=None, trace=False, watch=None
):
    """Fill in masks, one prompt (1-D int64 tensor) after the other: its own masks, and `max_new_tokens` after it.

    eos_id   ids that end a text, where they stand after the last given token: what follows is cut off
    until    for samplers that go block by block (bd3lm.py); trace: keep what was revealed, step by step
    numbers  of the prompts, int64 (B,), from which with the seed alone their random numbers come; default: their places
    watch    called after each step with the list of canvases, one int64 tensor per prompt
    """
    xs, out = [F.pad(home(p).long(), (0, options.max_new_tokens), value=mask_id) for p in prompts], Output([], [])
    for i, x in enumerate(xs):
        hole, forwards, events = x == mask_id, 0, []
        keys = dict(mask_id=mask_id, row=i if numbers is None else int(numbers[i]), steps=options.steps)
        steps = denoise(model, lambda x, at: model(x[None], rows=at), x, hole, options, **keys)
        for step, (at, logp) in enumerate(steps):
            forwards += len(at) > 0
            events += [(step, *event) for event in zip(at.tolist(), x[at].tolist(), logp.exp().tolist())]
            if watch is not None:
                watch([x.clone() for x in xs])
        out.tokens.append(x[: end_of_text(x, hole, mask_id, eos_id)].to(prompts[i].device))
        out.num_forwards.append(forwards)
        out.trace += [events] if trace else []
    return out


def end_of_text(x, hole, mask_id, eos_id):
    """Where the text x ends: after its first end-of-text that follows all given tokens, and no mask; or len(x)."""
    ends = torch.isin(x, torch.as_tensor([] if eos_id is None else eos_id, dtype=x.dtype, device=x.device))
    ends &= ((~hole).flip(0).cumsum(0).flip(0) == 0) & ((x == mask_id).cumsum(0) == 0)
    return int(ends.long().argmax()) + 1 if ends.any() else len(x)


# ---- 5 · likelihood -------------------------------------------------------------------------------------------------


@dataclass
class LikelihoodOptions:
    method: Literal["nelbo", "left_to_right", "confidence"] = "nelbo"  # a bound, or exact
    mc_samples: Size = 16  # masks per text (nelbo)
    seed: Seed = 0  # of the masks

    def __post_init__(self):
        check(self)


@evaluating()
def log_likelihood(model, prompts, targets, options=LikelihoodOptions(), *, mask_id, numbers=None):
    """log p(target | prompt) in nats for lists of 1-D int64 tensors, float64 (N,); one pair at a time.

    nelbo          minus the NELBO: a lower bound, of `mc_samples` masks, which depend on the seed and the pair's number
    left_to_right  exact, for the model that reveals the target from left to right: one forward per token
    confidence     exact, for the sampler that reveals the surest position first and samples its token: whatever it
                   writes, the order depends on revealed tokens only, and the chain rule holds (DUEL, arXiv 2603.01367)
    """
    found = torch.zeros(len(prompts), dtype=torch.float64)
    for i, (prompt, target) in enumerate(zip(prompts, targets)):
        x0 = torch.cat([prompt, target])
        hidden = torch.arange(len(x0), device=x0.device) >= len(prompt)
        if options.method == "nelbo":
            keys = dict(samples=options.mc_samples, seed=options.seed, first=i if numbers is None else int(numbers[i]))
            found[i] = -nelbo(model, x0[None], mask_id=mask_id, maskable=hidden[None], **keys)
            continue
        x, x0, hidden = map(home, (torch.where(hidden, mask_id, x0), x0, hidden))
        # From left to right, each token is a hole of its own; else all are one, and the sampler chooses.
        for hole in [hidden] if options.method == "confidence" else torch.diag(hidden)[hidden]:
            steps = denoise(model, lambda x, at: model(x[None], rows=at), x, hole, mask_id=mask_id, answer=x0)
            found[i] += sum(logp.sum().cpu() for _, logp in steps)
    return found


# ---- 6 · tutorial --------------------------------------------------------------------------------------------------


def tutorial(steps=800, samples=200):
    """Train a tiny model on a rule that a child sees at once, and watch it work."""
    torch.manual_seed(0)
    letters, L = "abcdefghijklmnopqrstuvwxyz_", 10
    mask_id = len(letters) - 1

    def runs(n, seed):  # "cdefghijkl" or, as often, "lkjihgfedc": 52 possible rows
        start, way = ((uniform(seed, i, torch.arange(n)) * k).long()[:, None] for i, k in ((0, 26), (1, 2)))
        return (start + (2 * way - 1) * torch.arange(L)) % 26

    def show(ids):
        return "".join(letters[i] for i in ids)

    def fill(text, n=1, watch=None, **options):
        canvas = torch.tensor([letters.index(c) for c in text])
        return generate(model, [canvas] * n, SampleOptions(0, **options), mask_id=mask_id, watch=watch)

    x0 = runs(1, 0)
    print(f"1. Data: runs of the alphabet, forwards or backwards, as {show(x0[0])!r}; 52 different rows.")
    print("\n2. Corruption: at time t each letter is hidden (_) with probability t.")
    for t in (0.2, 0.5, 0.8):
        hidden = uniform(0, torch.arange(L))[None] < t
        print(f"    t = {t}   {show(torch.where(hidden, mask_id, x0)[0])}   weight 1/t = {1 / t:.2f}")

    model = Transformer(Config(vocab_size=len(letters), seq_len=L, n_layer=2, n_head=2, n_embd=64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    best = torch.tensor(52.0).log().item()
    print(f"\n3. Training: {model.num_params():,} parameters learn to fill in what is hidden. The loss is, on average,")
    print(f"    an upper bound on -log p(row), which no model can push below ln 52 = {best:.3f} nats.")
    for i in range(steps + 1):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, i / 50, 2 * (steps - i) / steps + 1e-3)
        value = loss(model, runs(64, noise.fold(1, i)), mask_id=mask_id, seed=noise.fold(2, i))
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if i % (steps // 4) == 0:
            bound = nelbo(model, runs(256, 99), mask_id=mask_id, samples=4)
            said = f"NELBO {bound.mean():6.3f} +- {bound.std() / 16:.3f} nats a row"
            print(f"    step {i:4}   loss {value.item() * L:6.3f}   {said}")

    model.eval()
    print("\n4. Sampling: from a canvas of masks, the surest position first, its letter drawn from the model.")
    seen = ["_" * L]
    fill("_" * L, watch=lambda xs: seen.append(show(xs[0])))
    print("    " + " -> ".join([*seen[:5], "...", seen[-1]]))
    print("\n5. Any pattern of holes can be filled in, several at once where the model is sure (threshold 0.9):")
    for canvas in ("wx________", "____q_____", "______ih__"):
        out = fill(canvas, quota="threshold")
        print(f"    {canvas} -> {show(out.tokens[0])}   in {out.num_forwards[0]} forwards")
    made, rows = [show(x) for x in fill("_" * L, samples).tokens], {show(x) for x in runs(5000, 3)}
    good = sum(m in rows for m in made)
    print(f"\n6. Of {samples} samples {good} follow the rule; they cover {len(rows & set(made))} of the 52 rows.")
    print("    Next: python train.py config/quickstart.py")


if __name__ == "__main__":
    tutorial()
