"""The loop of every fast sampler: reveal the holes of ragged rows block by block, each row at its own pace.

mdlm.py and bd3lm.py have the same function, written plainly for one row at a time; a test holds them equal, token for
token. What differs between samplers is who gives the logits (fast_mdlm.py, fast_bd3lm.py).

The network and its logits are on the device. Everything else, a few thousand numbers, is on the host: canvases, random
numbers in float64, which positions are chosen. So a step waits for the device once, for tokens and how sure they are
(twice where positions are chosen before tokens are drawn), and a device needs no float64."""

from dataclasses import dataclass
from typing import Literal

import torch

from mdlm import Output, certainty, mask_rate
from model import fp32
from nanodlm import levenshtein
from nanodlm.bounds import Above0, Amount, Seed, Size, Steps, Unit, Whole, check
from nanodlm.choice import ancestral_rates, choose_positions, dream_time, look, quota, rates, resolution, top_per_row
from nanodlm.noise import shares, to, uniform

BLIND = ("random", "left_to_right")  # orders that look at no logits


@dataclass
class SampleOptions:
    max_new_tokens: Whole = 256  # masks appended to each prompt; 0 fills only the masks inside the prompts
    block_size: Whole = 0  # fill the canvas in blocks of this many tokens, left to right; 0 means all at once
    steps: Steps = 0  # denoising steps over the whole canvas, shared out over its blocks; 0 means one token per step
    order: Literal["confidence", "margin", "entropy", "random", "left_to_right"] = "confidence"  # who is revealed first
    quota: Literal["steps", "threshold", "factor", "entropy_bound", "ancestral", "p2"] = "steps"  # how many per step
    schedule: str = "linear"  # of the steps and ancestral quotas: linear, poly2 (any power), cosine, cosine_mdlm, dream
    threshold: Amount = 0.9  # quota=threshold: reveal every position at least this sure
    capped: bool = False  # quota=threshold: … but so far no more than equal steps would have; at least one a step
    least: Size = 1  # quota=threshold: … but at least this many a step, the surest (LLaDA2.0)
    factor: Amount = 1.0  # quota=factor: larger reveals more at once
    entropy_bound: Amount = 0.1  # quota=entropy_bound: nats of joint uncertainty accepted per step
    edit_threshold: Unit = 1.0  # a token of the block gives way to another that is surer than this; 1: none (LLaDA2.1)
    edit_steps: Whole = 16  # edit_threshold: steps of a block, at most, once nothing in it is hidden
    edit_ids: tuple[Whole, ...] = ()  # … ids of two tokens that delete one, and open a place before it (LLaDA2.2)
    remask: Unit = 0.0  # quota=ancestral: hide revealed tokens again with at most this probability per step (ReMDM)
    remask_from: Unit = 1.0  # … only while t is below this
    remask_until: Unit = 0.0  # … and above this
    temperature: Amount = 1.0  # of the token draw; 0 takes the most probable token
    top_k: Whole = 0  # draw among the k most probable tokens; 0 means all
    top_p: Above0 = 1.0  # draw among the fewest tokens that hold this much probability
    measure: Literal["network", "token", "draw"] = "network"  # confidence in the best token, the drawn, or its draw
    order_temperature: Amount = 0.0  # quota=steps: draw the positions by exp(certainty / this) (Dream's alg_temp)
    cfg_scale: Amount = 0.0  # classifier-free guidance: logits = un + (scale + 1)(cond - un); twice the forwards
    suppress: tuple[Whole, ...] = ()  # token ids never generated
    last: tuple[Whole, ...] = ()  # token ids revealed after all others (LLaDA does so with the two end tokens)
    lookahead: bool = True  # later blocks are seen, as masks; false: the canvas ends with this block (iLLaDA, bd3lm)
    cache: Literal["none", "prefix", "dual"] = "none"  # keys and values kept within a block: those before it, or all
    opening: Literal["rule", "first"] = "rule"  # cache: a block's first pass reveals as ruled, or its first mask alone
    compile: bool = False  # cache=dual: steps within a block through torch.compile, on a GPU as CUDA graphs
    exact: bool = False  # certainty as published code computes it: in the network's dtype, the mask token included
    seed: Seed = 0  # row i of a call draws from seed and i alone

    def __post_init__(self):
        check(self)
        if self.order in BLIND and self.quota in ("threshold", "factor", "entropy_bound", "p2"):
            raise ValueError(
                f"quota={self.quota} needs a measure of certainty: use order=confidence, margin or entropy"
            )
        if self.quota == "entropy_bound" and self.order != "entropy":
            raise ValueError(f"quota=entropy_bound ranks by entropy: use order=entropy, not {self.order}")
        if self.remask and self.quota != "ancestral":
            raise ValueError(f"remask={self.remask} is defined for quota=ancestral only, not quota={self.quota}")
        if self.capped and self.quota != "threshold":
            raise ValueError(f"capped=True is defined for quota=threshold only, not quota={self.quota}")
        if self.least > 1 and (self.capped or self.quota != "threshold"):
            why = "capped=True, which says at most" if self.capped else f"quota={self.quota}"
            raise ValueError(f"least={self.least} is defined for quota=threshold only, not {why}")
        edited = self.edit_threshold < 1
        lacks = {f"order={self.order}": self.order != "confidence", f"opening={self.opening}": self.opening != "rule"}
        lacks["quota=p2, which decides itself which tokens stay"] = self.quota == "p2"
        lacks["quota=ancestral, which has remask"] = self.quota == "ancestral"
        if why := edited and [k for k, v in lacks.items() if v]:
            needs = "it needs order=confidence and opening=rule"
            raise ValueError(f"edit_threshold={self.edit_threshold} does not go with {why[0]}: {needs}")
        if self.edit_ids and (len(self.edit_ids) != 2 or self.temperature or self.quota != "threshold" or not edited):
            raise ValueError(
                f"edit_ids={self.edit_ids} must be two ids, beside quota=threshold, temperature=0 and an edit_threshold"
            )
        if self.threshold < self.edit_threshold < 1 and self.quota == "threshold":
            raise ValueError(
                f"edit_threshold={self.edit_threshold} is above threshold={self.threshold}: no token may need more "
                "certainty to be replaced than to be written; lower the first, or raise the second"
            )
        if self.opening == "first" and (self.cache not in ("prefix", "dual") or self.quota == "ancestral"):
            why = f"cache={self.cache}" if self.quota != "ancestral" else "quota=ancestral"
            raise ValueError(f"opening=first is Dream's with cache=prefix or dual (Fast-dLLM), not {why}")
        if self.compile and self.cache != "dual":
            raise ValueError("compile=True needs cache=dual, whose steps all have one shape")
        mask_rate(torch.ones(1), rates(self.schedule))


def pad(sequences, value):
    """A list of 1-D tensors as one (B, L), padded on the right, and the bool (B, L) of what is real."""
    x = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=value)
    lengths = torch.tensor([len(s) for s in sequences], device=x.device)
    return x, torch.arange(x.shape[1], device=x.device) < lengths[:, None]


def check_length(model, x):
    """Refuse canvases (B, L) that are longer than a table of learned positions."""
    if model.config.position == "learned" and x.shape[1] > model.config.seq_len:
        raise ValueError(f"{x.shape[1]} tokens exceed the {model.config.seq_len} learned positions; shorten the text")


def to_host(*columns):
    """Tensors (N,) of a device, in one copy: the wait for it. Ids below 2^24 are exact in fp32."""
    if any(c.device.type == "cpu" for c in columns):
        return [c.cpu() for c in columns]
    dtype = max((c.dtype for c in columns), key=lambda d: (d.is_floating_point, d.itemsize))
    found = torch.stack([c.to(dtype) for c in columns]).cpu()
    return [row.to(c.dtype) for row, c in zip(found, columns)]


def states(model, x, real, target, rows, mask_id, scale):
    """Hidden states (N, C) of x (B, L) at the flat indices rows; with guidance (2N, C), the second half with all but
    the target (bool, B, L) masked. Padding is mentioned only where there is some, for SDPA's fastest path."""
    if scale:
        rows = torch.cat([rows, rows + x.numel()])
        x, real = torch.cat([x, torch.where(target, x, mask_id)]), torch.cat([real, real])
    return model.hidden(x, mask=None if real.all() else real, rows=rows)


def reader(model, hidden, scale, exact=False):
    """A function from indices (int64 of the host, or a slice) into the N states to their logits (n, V), at least fp32,
    guided where scale is not 0; as published (exact) in the network's dtype."""

    def read(part):
        part = part if isinstance(part, slice) else to(part, hidden.device)
        if not scale:
            return fp32(model.head(hidden[part]))
        logits = model.head(torch.cat([half[part] for half in hidden.chunk(2)]))
        return fp32(guide(logits if exact else fp32(logits), scale))

    return read


def scatter(values, where):
    """values (N,) to the N True places of where (B, L); -inf elsewhere."""
    return torch.full(where.shape, -torch.inf, dtype=values.dtype, device=where.device).masked_scatter_(where, values)


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

    All tensors are of the host:
    x          int64 (B, L), the canvases: given tokens, and masks
    hole       bool (B, L): what is to be filled in
    lengths    int64 (B,): where each row's canvas ends
    origin     int64 (B,): where its first block starts; blocks without holes are passed over
    logits_at  (rows r (R,), positions (R, W), wanted bool (R, W)) -> reader of the logits of the N wanted positions,
               and how many forwards it took besides one (int64 (R,), or 0)
    """
    o = options
    ends_text = torch.tensor([] if eos_id is None else eos_id, dtype=torch.int64)
    B, L = x.shape
    numbers = torch.arange(B) if numbers is None else numbers.cpu()
    at = torch.arange(L)
    given = (at < lengths[:, None]) & ~hole
    tail = hole & (at > torch.where(given, at, -1).amax(1, keepdim=True))

    size = getattr(o, "sub_block", 0) or o.block_size or L
    blocks, num_blocks, holes = blocks_with_holes(hole, origin, size)
    most = shares(o.steps, holes)  # steps of each block
    window = torch.arange(min(size, int((lengths - origin).max())))
    current = torch.zeros(B, dtype=torch.int64)  # the row is in block blocks[i, current[i]]
    step, after = torch.zeros_like(current), torch.zeros_like(current)  # within that block; once nothing was hidden
    forwards, events, clock = torch.zeros_like(current), [[] for _ in range(B if trace else 0)], 0
    edited, p2, moving = o.edit_threshold < 1, o.quota == "p2", {}
    levenshtein.check(o, given, hole)

    alive, ends = hole.any(1), lengths.clone()
    while alive.any():
        r = alive.nonzero()[:, 0]  # live rows (R,): all tensors below are of these only, and of their blocks (R, W)
        position = (origin[r] + blocks[r, current[r]] * size)[:, None] + window
        index = r[:, None], position.clamp(max=L - 1)
        in_block = hole[index] & (position < L)
        in_block, lead = first_alone(in_block, x[index] == mask_id, position - origin[r, None], o)
        hidden = (x[index] == mask_id) & in_block
        shown = in_block & ~hidden if edited or p2 else torch.zeros_like(hidden)  # and may change
        steps = torch.where(lead, 1, most[r, current[r]]) if o.steps else in_block.sum(1).clamp(min=1)
        key = (o.seed, numbers[r, None], step[r, None])  # a row's number, not its place in the batch
        wanted, count, drop = without_logits(o, key, position, hidden, in_block, step[r], steps)

        looked, chosen = wanted | shown, torch.zeros_like(hidden)
        if looked.any():
            read, more = logits_at(r, position, looked)
            forwards[r] += looked.any(1) * (1 + more) * (2 if o.cfg_scale else 1)
            old = torch.where(shown, x[index], mask_id)
            if o.edit_ids:
                chosen, tokens, chance = levenshtein.choose(model, read, looked, old, o, mask_id, moving, r)
            else:
                chosen, tokens, chance = choose(model, read, looked, old, position, key, count, drop, o, mask_id, trace)
            if wanted.any() and not chosen.any() and not o.edit_ids and not p2:  # or this would go on for ever
                raise ValueError("no token can be chosen: the network's logits are not finite numbers")
            write(x, r, position, chosen, tokens, chance, events, clock)
        write(x, r, position, drop, torch.tensor(mask_id), torch.tensor(0.0), events, clock)
        clock += 1
        if watch is not None:
            watch([row[:n].clone() for row, n in zip(x, lengths)])

        # A block is done when nothing in it is hidden; with remasking, when its steps are over; with edits, when the
        # network, having seen all of it, changes nothing, or has had its steps for that.
        step[r] += 1
        done = ~((x[index] == mask_id) & in_block).any(1)
        if o.remask:
            done &= step[r] >= steps
        if o.edit_ids:
            done = levenshtein.done(moving, r)
        elif edited:
            done &= settled(~hidden.any(1), chosen, after, r, o.edit_steps)
            after[r] = torch.where(done, 0, after[r])
        step[r] = torch.where(done, 0, step[r])
        done &= ~lead
        current[r] += done
        alive[r] = current[r] < num_blocks[r]
        if eos_id is not None:
            ended = stop_position(x[r], hole[r], tail[r], mask_id, ends_text) < L
            alive[r] &= ~(ended & done if o.remask or edited or p2 else ended)
        for i in r[done & alive[r]].tolist() if until else ():
            begin, end = int(hole[i].long().argmax()), int((hole[i] & (x[i] == mask_id)).long().argmax())
            if until(x[i, :end], begin, size):
                alive[i], ends[i] = False, end

    if eos_id is not None:
        ends = torch.minimum(ends, stop_position(x, hole, tail, mask_id, ends_text) + 1)
    return Output([row[:n] for row, n in zip(x, ends.tolist())], forwards.tolist(), events)


def settled(full, chosen, after, r, most):
    """Which rows r need no more edits: what was full (bool, R) did not change, or was so `most` times (after (B,))."""
    after[r] += full
    return full & ~chosen.any(1) | (after[r] >= most)


def blocks_with_holes(hole, origin, size):
    """The numbers of each row's blocks that have holes, in order, int64 (B, blocks), how many there are (B,), and the
    holes of each (B, blocks)."""
    most = -(-hole.shape[1] // size)
    block_of = torch.where(hole, (torch.arange(hole.shape[1], device=hole.device) - origin[:, None]) // size, most)
    holes = torch.zeros(len(hole), most + 1, dtype=torch.int64, device=hole.device)
    holes.scatter_add_(1, block_of, torch.ones_like(block_of))[:, most] = 0
    blocks = torch.where(holes > 0, torch.arange(most + 1, device=hole.device), most).sort(1).values
    return blocks[:, :most], (holes > 0).sum(1), holes.gather(1, blocks)[:, :most]


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


def guide(logits, scale):
    """Classifier-free guidance (LLaDA, eq. 16), un + (scale + 1)(cond - un), of logits (2N, V), cond, un: (N, V)."""
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


def write(x, r, position, where, tokens, chance, events, clock):
    """Put tokens, (n,) or one, where (bool, R, W) says, into rows r of x, and with their probabilities into each row's
    trace, if there is one."""
    i, j = where.nonzero(as_tuple=True)
    x[r[i], position[i, j]] = tokens
    columns = (r[i], position[i, j], tokens.expand(len(i)), chance.expand(len(i)))
    for row, *event in zip(*(c.tolist() for c in columns)) if events else ():
        events[row].append((clock, *event))
