"""Which tokens a sampler draws, and which positions it reveals: every published rule, and what is exact about each."""

import torch
import torch.nn.functional as F

from mdlm import certainty, mask_rate
from model import fp32
from nanodlm.noise import draw, home, share, to, uniform

BLIND = ("random", "left_to_right")  # orders that look at no logits


def filter_logits(logits, temperature=1.0, top_k=0, top_p=1.0, dtype=torch.float64):
    """Log-weights (N, V) of the distribution to sample from: tempered, then cut to the tokens that are both among the
    top k and in the nucleus; computed in `dtype`.

    The token that crosses top_p stays in, so that the nucleus (arXiv 1904.09751, 3.1) holds at least that mass."""
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
    """One token per row of logits (N, V) from one uniform number each (N,): int64 (N,), as mdlm.draw."""
    if temperature == 0:
        return logits.argmax(-1)
    return draw(filter_logits(logits, temperature, top_k, top_p), u)


def look(logits, u, options, mask_id, dtype, trace):
    """From the logits (N, V) of candidates and one uniform number each (N,), in place: the token drawn, how sure the
    network is (not where nobody asks), and (for a trace) the token's probability, each (N,).

    `measure` says of what order=confidence takes the probability: of the network's best token; of the token drawn
    (LLaDA, alg. 5); of the token drawn, after temperature, top_k, top_p, which other orders then look at, too (Dream).
    `exact` repeats the published samplers' arithmetic: the network's own dtype, and the mask token an alternative that
    counts, though it is never drawn."""
    o = options
    if o.temperature or o.measure == "draw":
        logits = home(logits)
    for token in o.suppress if o.exact else (*o.suppress, mask_id):
        logits[:, token] = -torch.inf
    weights, published = logits, o.exact and o.measure == "draw"  # Dream filters, and finds its maximum, in that dtype
    if o.temperature or o.measure == "draw":
        weights = filter_logits(logits, o.temperature or 1.0, o.top_k, o.top_p, dtype if published else torch.float64)
    mask_weight = weights[:, mask_id].clone()
    best = weights.softmax(-1) if published and not o.temperature else weights
    best[:, mask_id] = weights[:, mask_id] = -torch.inf
    tokens = draw(weights, to(u, weights.device)) if o.temperature else best.argmax(-1)
    if o.exact and weights is not logits:  # the filters may have left the mask alone: then the best other token of all
        other = logits.clone()
        other[:, mask_id] = -torch.inf
        tokens = torch.where((weights > -torch.inf).any(-1), tokens, other.argmax(-1))
    chance = tokens
    if trace:
        allowed = logits.clone()
        allowed[:, mask_id] = -torch.inf
        chance = allowed.softmax(-1).gather(1, tokens[:, None])[:, 0]
    if o.order in ("random", "left_to_right") or o.quota == "ancestral":
        return tokens, chance
    weights[:, mask_id] = mask_weight
    if o.measure == "draw":
        logits = weights
    if o.exact:
        logits = logits.to(dtype)
    for token in o.last:
        logits[:, token] = -torch.inf
    sure = fp32(certainty(logits, o.order, None if o.measure == "network" and o.temperature else tokens))
    for token in o.last:
        # behind all others, however positions are drawn
        sure = sure.masked_fill((tokens == token).to(sure.device), -1e4)
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

    linear  equal shares, the remainder one each to the first steps (LLaDA's code)
    dream   left * (1 - s/t), rounded down, at Dream's times (arXiv 2508.15487); all that is left in the last step
    others  as many stay hidden as the schedule says, rounded down"""
    if schedule == "dream":
        return (left * (1 - dream_time(step + 1, steps) / dream_time(step, steps))).long()
    return share(masks, step, steps, schedule)


def rates(schedule):
    """The schedule that has the mask rates of this one: Dream's differs from the linear one by its steps alone."""
    return "linear" if schedule == "dream" else schedule


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
                   adding Gumbel noise from u (B, L) (arXiv 1903.06059)
    threshold      all that reach the threshold (Fast-dLLM, arXiv 2505.22618, alg. 1), and the `least` best (LLaDA2.0,
                   arXiv 2512.15745); `capped`, of the `count` best
    factor         the best r, for the largest r whose r-th score is at least 1 - factor / (r + 1) (ibid.); `exact`, as
                   its code has it: where the last candidate is the first one to fail, it, too
    entropy_bound  the longest run of ascending entropies whose sum without the largest stays within the bound
                   (EB-Sampler, arXiv 2505.24857, eq. 2); `exact`, as SDAR's engine has it: the sum with it, too, and
                   stays below
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
        best = top_per_row(level, torch.full_like(level[:, 0], options.least, dtype=torch.int64), slack)
        sure = (score >= options.threshold) & candidates
        return (sure & top_per_row(level, count, slack) if options.capped else sure) | best
    ordered = score.sort(1, descending=True).values
    rank = torch.arange(1, score.shape[1] + 1, device=score.device)
    if options.quota == "factor":
        r = torch.where(ordered >= 1 - options.factor / (rank + 1).double(), rank, 0).amax(1)
        if options.exact:
            r = r.clamp(min=1) + (r.clamp(min=1) + 1 == candidates.sum(1))
        return top_per_row(level, r, slack) | best
    entropy = -ordered.clamp(min=1e-300).log()  # the score is exp(-H)
    sums, bound = entropy.cumsum(1), options.entropy_bound
    ok = (sums < bound if options.exact else sums - entropy <= bound) & (ordered > -torch.inf)
    return top_per_row(level, ok.cumprod(1).sum(1), slack) | best


def ancestral_rates(t, s, options):
    """Probabilities, from time t to s, that a hidden token is revealed and that a revealed one is hidden again, (R,).

    Without remasking (alpha_s - alpha_t) / (1 - alpha_t) (MDLM, eq. 7). ReMDM-cap (arXiv 2503.00307, section 4.1):
    sigma = min(remask, (1 - alpha_s) / alpha_t), and (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t) (eq. 6);
    off outside of remask_from and remask_until: section 4.2."""
    rate_t, rate_s = (mask_rate(time, rates(options.schedule))[0] for time in (t, s))
    rate_s = torch.where(s <= 1e-12, 0.0, rate_s)
    alpha_t = 1 - rate_t
    sigma = torch.minimum(torch.full_like(t, options.remask), rate_s / alpha_t.clamp(min=1e-12))
    sigma = torch.where((t <= options.remask_from) & (t >= options.remask_until), sigma, 0.0)
    return (rate_t - rate_s + sigma * alpha_t) / rate_t, sigma


def first_alone(in_block, masked, position, options):
    """opening=next: in_block (bool, R, W) as long as a block's first token is hidden that one, then all but it; and the
    rows (bool, R) of which that is so."""
    if options.opening != "next":
        return in_block, torch.zeros(len(in_block), dtype=torch.bool)
    first = in_block & (position % options.block_size == 0)
    lead = (first & masked).any(1)
    return in_block & torch.where(lead[:, None], first, ~first), lead


def without_logits(options, key, position, hidden, in_block, step, steps):
    """What can be said of a step without logits, so that logits are computed for few positions: which may be revealed,
    bool (R, W); how many will be (R,), or None; which are hidden again, bool (R, W)."""
    o, drop = options, torch.zeros_like(hidden)
    u = uniform(*key, 0, position) if o.order == "random" or o.quota == "ancestral" else -position.double()
    if o.quota == "ancestral":
        if o.schedule == "dream":
            t, s = (dream_time(step + i, steps) for i in (0, 1))
        else:
            t, s = (1 - (step + i).double() / steps for i in (0, 1))
        reveal, hide = ancestral_rates(t, s, o)
        return hidden & (u < reveal[:, None]), None, in_block & ~hidden & (u < hide[:, None])
    masks, left = in_block.sum(1), hidden.sum(1)
    count = quota(masks, left, step, steps, o.schedule)
    if o.capped:
        count = left - masks + masks * torch.minimum(step + 1, steps) // steps
    if o.quota == "p2":
        count = masks - (masks.float() * (1 - (step + 1).double() / steps).float()).floor().long()
    if o.opening == "first":  # whatever the schedule says of it; the last step takes what is left
        count = torch.where(step == 0, 1, torch.where(step + 1 >= steps, left, count))
        hidden = hidden & ((step > 0)[:, None] | (hidden.cumsum(1) == 1))
    if o.order in BLIND:
        return top_per_row(u.masked_fill(~hidden, -torch.inf), count), count, drop
    return hidden & (count > 0)[:, None] if o.quota == "steps" else hidden, count, drop


def choose(model, read, wanted, old, position, key, count, drop, options, mask_id, trace):
    """Which of the wanted positions (bool, R, W) are revealed now (bool, R, W), their tokens, and (for a trace) their
    probabilities, both (n,); `read` gives logits, `key` and `position` the random numbers. Those that hold a token
    already (`old`, int64 (R, W), masks elsewhere) take another of which the network is surer than edit_threshold
    (LLaDA2.1, arXiv 2602.08676, eq. 2). quota=p2: of all that are to be filled in, those already filled too, the
    `count` surest stay or are revealed, and the others are hidden, or hidden again, as `drop` (bool, R, W) then says
    (P2, arXiv 2502.03540, with the network as its own planner).

    Logits exist for some positions at a time: 128 MB of them in fp32; where tokens are drawn, in float64, for fewer."""
    o, V, n = options, model.config.vocab_size, int(wanted.sum())
    dtype = next(model.parameters()).dtype if o.exact else None
    u = uniform(*key, 1, position)[wanted] if o.temperature else None

    def drawn(index, read=read):
        size = max(1, (2**23 if o.temperature or o.measure == "draw" else 2**25) // V)
        parts = [index] if len(index) <= size else index.split(size)
        found = [look(read(i), u if u is None else u[i], o, mask_id, dtype, trace) for i in parts]
        return to_host(*(torch.cat(column) for column in zip(*found)))

    index = torch.arange(n)
    if o.order in BLIND or o.quota == "ancestral":
        tokens, chance = drawn(index)
        return wanted, tokens, chance
    first = o.temperature == 0 or o.measure != "network" or o.exact or len(o.last) > 0 or o.edit_threshold < 1
    if first:
        tokens, sure, chance = drawn(index)
    else:  # draw only for those that are chosen, from the same logits where there is room for all
        banned, sure = [mask_id, *o.suppress], []
        for start in range(0, n, size := max(1, 2**25 // V)):
            logits = read(slice(start, start + size))
            for token in banned:  # one by one: a list of them would be copied to the device, and waited for
                logits[:, token] = -torch.inf
            sure.append(certainty(logits, o.order))
        (sure,) = to_host(torch.cat(sure))
        read = logits.__getitem__ if n <= size else read
    w = uniform(*key, 2, position) if o.order_temperature else None
    slack = 0.0 if o.exact else resolution(model)
    sure, shown = scatter(sure, wanted), wanted & (old != mask_id)
    if o.quota == "p2":
        stay = top_per_row(sure, count, slack)
        drop |= shown & ~stay
        chosen = stay & ~shown
    else:
        chosen = choose_positions(sure, wanted & ~shown, o, count, w, slack)
    if o.edit_threshold < 1:
        chosen |= shown & (sure > o.edit_threshold) & (old != old.masked_scatter(wanted, tokens))
    index = chosen[wanted].nonzero()[:, 0]
    if first:
        return chosen, tokens[index], chance[index]
    tokens, _, chance = drawn(index, read)
    return chosen, tokens, chance


def settled(full, chosen, after, r, most):
    """Which rows r need no more edits: what was full (bool, R) did not change, or was so `most` times (after (B,))."""
    after[r] += full
    return full & ~chosen.any(1) | (after[r] >= most)


def to_host(*columns):
    """Tensors (N,) of a device, in one copy: the wait for it. Ids below 2^24 are exact in fp32."""
    if any(c.device.type == "cpu" for c in columns):
        return [c.cpu() for c in columns]
    dtype = max((c.dtype for c in columns), key=lambda d: (d.is_floating_point, d.itemsize))
    found = torch.stack([c.to(dtype) for c in columns]).cpu()
    return [row.to(c.dtype) for row, c in zip(found, columns)]


def scatter(values, where):
    """values (N,) to the N True places of where (B, L); -inf elsewhere."""
    return torch.full(where.shape, -torch.inf, dtype=values.dtype, device=where.device).masked_scatter_(where, values)
