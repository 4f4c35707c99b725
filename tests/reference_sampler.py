"""fast_mdlm.generate once more, slow and plain: one row, one position at a time, by floats, sorted lists and dicts.

mdlm.py's sampler is the specification of the orders and quotas that it has. This one is that of what only the fast one
has: blocks of a whole canvas, the prefix and dual caches (the keys and values of every layer kept by hand), guidance,
remasking, filters, the measures of certainty, tokens that are suppressed or come last, the factor and entropy-bound
quotas, Dream's schedule, and the published arithmetic. Whatever is fast (batches, caches, positions chosen by tensors,
logits in parts) must give its tokens.

And of edits (LLaDA2.1, arXiv 2602.08676, section 2): what is shown is judged as if it were hidden, in the same pass,
and gives way to another token of which the network is surer than `edit_threshold`; a block is done when, with nothing
hidden, nothing changes, or after `edit_steps` such passes."""

import functools
import math
from fractions import Fraction

import torch
from toy import M

from nanodlm import noise

CONTEXT = 16


def canvas_of(prompt, options):
    return torch.cat([prompt, torch.full((options.max_new_tokens,), M)])


class Memory:
    """A network for one row, with every layer's keys and values in plain view, {position: (key, value)}."""

    def __init__(self, net):
        self.net, self.kept = net, [{} for _ in net.blocks]

    def read(self, canvas, positions):
        """{position: logits} of what stands at `positions`, which must be neighbours. Their keys and values replace
        those kept; they see all that are kept."""
        net, c = self.net, self.net.config
        at = torch.tensor(positions)
        x = net.embed(canvas[at])
        x = x if net.pos_embed is None else x + net.pos_embed(at)
        for layer, (block, kept) in enumerate(zip(net.blocks, self.kept)):
            local, a, h = c.is_local(layer), block.attn, block.attn_norm(x)
            q, k, v = (f(h).unflatten(1, (-1, c.head_dim)) for f in (a.q, a.k, a.v))
            q, k = a.q_norm(q), a.k_norm(k)
            if c.position == "rope":
                q, k = (turn(z, at, local and c.local_rope_theta or c.rope_theta) for z in (q, k))
            kept.update(zip(positions, zip(k, v)))
            away = torch.tensor(list(kept)) - at[:, None]
            seen = (away.abs() <= c.window if local else away.abs() >= 0) & ((away <= 0) | (not c.causal))
            k, v = (torch.stack(z).repeat_interleave(c.n_head // c.n_kv_head, 1) for z in zip(*kept.values()))
            score = torch.einsum("ihd,jhd->hij", q, k) / c.head_dim**0.5
            y = torch.einsum("hij,jhd->ihd", score.masked_fill(~seen, -torch.inf).softmax(-1), v)
            x = x + a.out(y.flatten(1))
            x = x + block.mlp(block.mlp_norm(x))
        logits = net.head(net.norm(x))
        shifted = {p + 1: row for p, row in zip(positions, logits)} | {0: logits[0]}
        return shifted if c.shift else dict(zip(positions, logits))


def turn(x, position, theta):
    """RoPE by complex numbers: channel i and i + half are one of them."""
    half = x.shape[-1] // 2
    angle = position[:, None, None] * theta ** (-torch.arange(half, dtype=torch.float64) / half)
    z = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([z.real, z.imag], -1)


def narrowed(logits, o):
    """Tempered, then -inf outside the top k and outside the nucleus."""
    logits = logits / (o.temperature or 1.0)
    p, mass, keep = logits.softmax(0), 0.0, set()
    ordered = sorted(range(len(p)), key=lambda i: -p[i])
    for rank, i in enumerate(ordered):
        if (not o.top_k or rank < o.top_k) and mass <= o.top_p:
            keep.add(i)
        mass += p[i].item()
    return torch.tensor([logits[i] if i in keep else -math.inf for i in range(len(p))], dtype=logits.dtype)


def without(logits, tokens):
    logits = logits.clone()
    logits[list(tokens)] = -torch.inf
    return logits


def judge(logits, u, o):
    """(token, how sure, its probability) at one position, from its logits (V,) and one uniform number."""
    logits = without(logits, o.suppress if o.exact else (*o.suppress, M))
    drawn = narrowed(logits, o) if o.temperature or o.measure == "draw" else logits
    p = without(drawn, [M]).softmax(0)
    token = int((p.cumsum(0) <= u).sum()) if o.temperature else int(p.argmax())
    chance = without(logits, [M]).softmax(0)[token].item()
    p = without(drawn if o.measure == "draw" else logits, o.last).softmax(0)
    if o.order == "confidence":
        sure = p.max() if o.measure == "network" and o.temperature else p[token]
    elif o.order == "margin":
        sure = p.sort().values[-1] - p.sort().values[-2]
    else:
        sure = math.exp(sum(v * math.log(v + 1e-10) for v in p.tolist()))
    return token, 0.0 if token in o.last else float(sure), chance


def quota_of(masks, left, step, steps, schedule):
    if schedule == "dream":
        t = torch.linspace(1, 1e-3, steps + 1)
        return left if step >= steps - 1 else int(torch.tensor(float(left)) * (1 - t[step + 1] / t[step]))
    if schedule == "cosine":
        stay = [math.floor(masks * math.cos(math.pi / 2 * i / steps) + 1e-9) for i in (step, step + 1)]
        return stay[0] - stay[1]
    return masks // steps + (step < masks % steps)


def ranked(sure, slack):
    """Positions, the surest first: each time the leftmost of those that equal the best that is left."""
    left, out = sorted(sure), []
    while left:
        p = max(sure[i] for i in left)
        out.append(next(i for i in left if sure[i] >= p - slack * abs(p) * (1 - p + 1 / 256)))
        left.remove(out[-1])
    return out


def pick(sure, o, count, u):
    """Which positions to reveal, of a dict {position: how sure}; u: a uniform number for each."""
    best = ranked({i: (1 + s) / 2 if o.order == "margin" else s for i, s in sure.items()}, 0.0 if o.exact else 2**-26)
    if o.quota == "steps":
        if o.order_temperature:  # exponential clocks: the first rings with probability rate / sum of rates
            rate = {i: (math.log(s) if o.order == "entropy" else s) / o.order_temperature for i, s in sure.items()}
            best = sorted(sure, key=lambda i: -math.log(u[i]) * math.exp(-rate[i]))
        return best[:count]
    n = min(o.least, len(best))
    for r in range(1, len(best) + 1):
        if o.quota == "threshold" and sure[best[r - 1]] >= o.threshold:
            n = max(n, r)
        if o.quota == "factor" and sure[best[r - 1]] >= 1 - o.factor / (r + 1):
            n = r
        if o.quota == "entropy_bound" and sum(-math.log(sure[i]) for i in best[: r - 1]) <= o.entropy_bound:
            n = r
    if o.quota == "threshold" and o.capped:
        n = max(1, min(n, count))
    if o.quota == "factor" and o.exact and n == len(best) - 1:
        n += 1
    return best[:n]


def shares_of(n, sizes):
    """n in proportion to the sizes, by fractions: rounded down, the largest remainders one more, the first of equal
    ones; at least 1 each, and what lies above 1 then shares, in the same way, what is left of n."""

    def proportional(n, sizes):
        parts = [Fraction(n * size, max(1, sum(sizes))) for size in sizes]
        left = n - sum(map(math.floor, parts))
        up = sorted(range(len(parts)), key=lambda k: (math.floor(parts[k]) - parts[k], k))[:left]
        return [math.floor(part) + (k in up) for k, part in enumerate(parts)]

    more = [max(0, part - 1) for part in proportional(n, sizes)]
    return [1 + (part if any(more) else 0) for part in proportional(max(0, n - len(sizes)), more)]


def ancestral_chances(step, steps, o):
    """Probabilities that a mask is revealed, and that a revealed token is hidden again."""
    if o.schedule == "dream":
        times = torch.linspace(1, 1e-3, steps + 1).tolist()
        return (1.0 if step == steps - 1 else 1 - times[step + 1] / times[step]), 0.0
    t, s = 1 - step / steps, 1 - (step + 1) / steps
    hide = min(o.remask, s / (1 - t)) if step else o.remask
    hide = hide if o.remask_until <= t <= o.remask_from else 0.0
    return (t - s + hide * (1 - t)) / t, hide


@functools.cache
def noise_at(seed, row, step, kind):
    return noise.uniform(seed, row, step, kind, torch.arange(CONTEXT)).tolist()


@torch.no_grad()
def alone(net, prompt, o, row=0, stops=()):
    """(tokens, forwards, [(position, token, probability), …]) of one row."""
    canvas, shift = canvas_of(prompt, o), int(net.config.shift)
    length, events, forwards = len(canvas), [], 0
    holes = [i for i in range(length) if canvas[i] == M]
    tail = max([i for i in range(length) if i not in holes], default=-1) + 1
    size = o.block_size or length
    numbers = sorted({(i - holes[0]) // size for i in holes})

    def end_of_text():
        ends = [i for i in range(tail, length) if canvas[i] in stops]
        return ends[0] + 1 if ends and not any(canvas[i] == M for i in holes if i < ends[0]) else 0

    for b, number in enumerate(numbers):
        start = holes[0] + number * size
        after = min(start + size, length)
        end = length if o.lookahead else after
        inside = [i for i in holes if start <= i < after]
        sizes = [sum((i - holes[0]) // size == k for i in holes) for k in numbers]
        steps = shares_of(o.steps, sizes)[b] if o.steps else len(inside)
        memories, step, looks, done = None, 0, 0, False
        while not done:
            hidden = [i for i in inside if canvas[i] == M]
            u, v, w = (noise_at(o.seed, row, step, kind) for kind in range(3))
            chosen, again, count = None, [], quota_of(len(inside), len(hidden), step, steps, o.schedule)
            if o.capped:
                count = len(inside) * min(step + 1, steps) // steps - len(inside) + len(hidden)
            if o.opening == "first":
                count = 1 if step == 0 else len(hidden) if step + 1 >= steps else count
                hidden = hidden[:1] if step == 0 else hidden
            if o.quota == "ancestral":
                reveal, hide = ancestral_chances(step, steps, o)
                chosen = [i for i in hidden if u[i] < reveal]
                again = [i for i in inside if i not in hidden and u[i] < hide]
            elif o.order == "random":
                chosen = sorted(sorted(hidden, key=lambda i: -u[i])[:count])
            elif o.quota == "steps" and not count:
                chosen = []
            shown = [i for i in inside if canvas[i] != M] if o.edit_threshold < 1 else []
            changed = []
            if chosen is None or chosen or shown:
                if memories is None or o.cache == "none":
                    memories, span = [Memory(net) for _ in range(2 if o.cfg_scale else 1)], range(end)
                else:
                    span = range(max(start - shift * (o.opening == "rule"), 0), end if o.cache == "prefix" else after)
                given_hidden = torch.tensor([int(canvas[i]) if i in holes else M for i in range(length)])
                logits = [m.read(x, list(span)) for m, x in zip(memories, (canvas, given_hidden))]
                forwards += len(memories)
                found = {}
                for i in sorted((hidden if chosen is None else chosen) + shown):
                    row_logits = logits[0][i]
                    if o.cfg_scale:
                        row_logits = logits[1][i] + (o.cfg_scale + 1) * (logits[0][i] - logits[1][i])
                    found[i] = judge(row_logits, v[i], o)
                if chosen is None:
                    chosen = pick({i: sure for i, (_, sure, _) in found.items() if i in hidden}, o, count, w)
                changed = [i for i in shown if found[i][0] != canvas[i] and found[i][1] > o.edit_threshold]
                for i in sorted(chosen + changed):
                    canvas[i] = found[i][0]
                    events.append((i, found[i][0], found[i][2]))
            for i in again:
                canvas[i] = M
                events.append((i, M, 0.0))
            step += 1
            done = all(canvas[i] != M for i in inside) and (not o.remask or step >= steps)
            if o.edit_threshold < 1 and done:
                looks += len(shown) == len(inside)
                done = looks >= o.edit_steps or len(shown) == len(inside) and not changed
            if end_of_text() and (done or not o.remask and o.edit_threshold == 1):
                return canvas[: end_of_text()].tolist(), forwards, events
    return canvas[: end_of_text() or length].tolist(), forwards, events
