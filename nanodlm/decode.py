"""The loop of every fast sampler: reveal the holes of ragged rows block by block, each row at its own pace.

mdlm.py and bd3lm.py have the same function, written plainly for one row at a time; a test holds them equal, token for
token. What differs between samplers is who gives the logits (fast_mdlm.py, fast_bd3lm.py).

The network and its logits are on the device. Everything else, a few thousand numbers, is on the host: canvases, random
numbers in float64, which positions are chosen. So a step waits for the device once, for tokens and how sure they are
(twice where positions are chosen before tokens are drawn), and a device needs no float64."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from mdlm import Output, mask_rate
from model import fp32
from nanodlm import levenshtein
from nanodlm.bounds import Above0, Amount, Seed, Size, Steps, Unit, Whole, check
from nanodlm.choice import BLIND, choose, first_alone, rates, settled, without_logits
from nanodlm.noise import to
from nanodlm.rows import WHOLE, joined

SHAPE = "block_size sub_block window cache compile cfg_scale lookahead opening exact".split()  # what a forward is


@dataclass
class SampleOptions:
    max_new_tokens: Whole = 256  # masks appended to each prompt; 0 fills only the masks inside the prompts
    block_size: Whole = 0  # fill the canvas in blocks of this many tokens, left to right; 0 means all at once
    steps: Steps = 0  # denoising steps over the whole canvas, shared out over its blocks; 0: as many as tokens
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


class Turn(NamedTuple):
    """A step of rows that share their options, before the network is asked; R rows, W positions of their blocks."""

    options: SampleOptions
    r: torch.Tensor  # int64 (R,): the rows
    position: torch.Tensor  # int64 (R, W)
    index: tuple  # where these are in x
    in_block: torch.Tensor  # bool (R, W): what is to be filled in
    lead: torch.Tensor  # bool (R,): only a block's first token is
    hidden: torch.Tensor  # bool (R, W)
    shown: torch.Tensor  # bool (R, W): what is written, and may change
    steps: torch.Tensor  # int64 (R,): of the block
    key: tuple  # of the random numbers
    wanted: torch.Tensor  # bool (R, W): what may be revealed
    count: torch.Tensor | None  # int64 (R,): how many will be
    drop: torch.Tensor  # bool (R, W): what is hidden again


class Loop:
    """The loop of every sampler: reveal the holes of each row block by block. Rows come before any step, and go when
    they are done, or with `alive`; each is, token for token, what it would have been alone.

    Options may differ from row to row, but for those that say what a forward is (SHAPE). The network is behind
    source.logits_at: (rows r (R,), positions (R, W), wanted bool (R, W)) -> reader of the logits of the N wanted
    positions, and how many forwards it took besides one (int64 (R,), or 0); source.enter(rows, kept) tells it of rows
    that came behind those that were kept."""

    def __init__(self, model, source, size, *, mask_id, eos_id=None, trace=False):
        self.model, self.source, self.size = model, source, size or WHOLE
        self.mask_id, self.trace = mask_id, trace
        self.ends_text = None if eos_id is None else torch.tensor(eos_id, dtype=torch.int64)
        self.rows, self.kinds = None, []

    def enter(self, rows):
        """Take in rows; those that are done are forgotten, so that row i of the others becomes row i of these."""
        kept = torch.zeros(0, dtype=torch.int64) if self.rows is None else self.rows.alive.nonzero()[:, 0]
        self.rows = rows if self.rows is None else joined(self.rows, kept, rows)
        self.kinds = []  # [(options, rows that have them: bool (B,))]
        for o in self.rows.options:
            if all(o is not kind and o != kind for kind, _ in self.kinds):
                self.kinds.append((o, torch.tensor([o is p or o == p for p in self.rows.options])))
        self.source.enter(self.rows, kept)

    def step(self):
        """One step of every live row, which is one forward of the network."""
        s = self.rows
        r = s.alive.nonzero()[:, 0]  # all tensors below are of these rows (R,) only, and of their blocks (R, W)
        window = torch.arange(min(self.size, int((s.lengths - s.origin).max())))
        position = (s.origin[r] + s.blocks[r, s.current[r]] * self.size)[:, None] + window
        several = len(self.kinds) > 1
        kinds = [(o, of[r].nonzero()[:, 0] if several else torch.arange(len(r))) for o, of in self.kinds]
        turns = [(i, self.plan(o, r[i], position[i])) for o, i in kinds if len(i)]
        looked = torch.zeros(position.shape, dtype=torch.bool)
        for i, turn in turns:
            looked[i] = turn.wanted | turn.shown
        if some := bool(looked.any()):
            read, more = self.source.logits_at(r, position, looked)
            s.forwards[r] += looked.any(1) * (1 + more) * (2 if self.kinds[0][0].cfg_scale else 1)
        whose = looked.nonzero()[:, 0] if len(turns) > 1 else None
        for i, turn in turns:
            chosen = torch.zeros_like(turn.wanted)
            if some and looked[i].any():
                chosen = self.act(turn, read if whose is None else reader_of(read, whose, i))
            self.advance(turn, chosen)

    def plan(self, o, r, position):
        s = self.rows
        L = s.x.shape[1]
        index = r[:, None], position.clamp(max=L - 1)
        in_block = s.hole[index] & (position < L)
        masked = s.x[index] == self.mask_id
        in_block, lead = first_alone(in_block, masked, position - s.origin[r, None], o)
        hidden = masked & in_block
        shown = in_block & ~hidden if o.edit_threshold < 1 or o.quota == "p2" else torch.zeros_like(hidden)
        steps = torch.where(lead, 1, s.most[r, s.current[r]]) if o.steps else in_block.sum(1).clamp(min=1)
        key = s.seed[r, None], s.number[r, None], s.step[r, None]
        decided = without_logits(o, key, position, hidden, in_block, s.step[r], steps)
        return Turn(o, r, position, index, in_block, lead, hidden, shown, steps, key, *decided)

    def act(self, t, read):
        """Reveal, and change, what the logits say."""
        s, o, mask_id = self.rows, t.options, self.mask_id
        looked, old = t.wanted | t.shown, torch.where(t.shown, s.x[t.index], mask_id)
        if o.edit_ids:
            chosen, tokens, chance = levenshtein.choose(self.model, read, looked, old, o, mask_id, s.moving, t.r)
        else:
            given = looked, old, t.position, t.key, t.count, t.drop, o, mask_id, self.trace
            chosen, tokens, chance = choose(self.model, read, *given)
        if t.wanted.any() and not chosen.any() and not o.edit_ids and o.quota != "p2":  # or this would go on for ever
            raise ValueError("no token can be chosen: the network's logits are not finite numbers")
        self.write(t, chosen, tokens, chance)
        return chosen

    def advance(self, t, chosen):
        """Hide again what is to be; and then go on to the next block where one is done: when nothing in it is hidden;
        with remasking, when its steps are over; with edits, when the network, having seen all of it, changes nothing,
        or has had its steps for that."""
        s, o, r = self.rows, t.options, t.r
        self.write(t, t.drop, torch.tensor(self.mask_id), torch.tensor(0.0))
        s.clock[r] += 1
        s.step[r] += 1
        done = ~((s.x[t.index] == self.mask_id) & t.in_block).any(1)
        if o.remask:
            done &= s.step[r] >= t.steps
        if o.edit_ids:
            done = levenshtein.done(s.moving, r)
        elif o.edit_threshold < 1:
            done &= settled(~t.hidden.any(1), chosen, s.after, r, o.edit_steps)
            s.after[r] = torch.where(done, 0, s.after[r])
        s.step[r] = torch.where(done, 0, s.step[r])
        done &= ~t.lead
        s.current[r] += done
        s.alive[r] = s.current[r] < s.num_blocks[r]
        if self.ends_text is not None:
            ended = self.stops(r) < s.x.shape[1]
            s.alive[r] &= ~(ended & done if o.remask or o.edit_threshold < 1 or o.quota == "p2" else ended)
        for i in r[done & s.alive[r]].tolist():
            if s.until[i]:
                begin, end = int(s.hole[i].long().argmax()), int((s.hole[i] & (s.x[i] == self.mask_id)).long().argmax())
                if s.until[i](s.x[i, :end], begin, self.size):
                    s.alive[i], s.ends[i] = False, end

    def write(self, t, where, tokens, chance):
        """Put tokens, (n,) or one, where (bool, R, W) says, and with their probabilities into each row's trace."""
        i, j = where.nonzero(as_tuple=True)
        self.rows.x[t.r[i], t.position[i, j]] = tokens
        columns = (t.r[i], t.position[i, j], tokens.expand(len(i)), chance.expand(len(i)))
        for row, *event in zip(*(c.tolist() for c in columns)) if self.trace else ():
            self.rows.events[row].append((int(self.rows.clock[row]), *event))

    def stops(self, r):
        """Where the rows r end, (R,): see stop_position."""
        s = self.rows
        return stop_position(s.x[r], s.hole[r], s.tail[r], self.mask_id, self.ends_text)

    def finished(self, i):
        """Up to where row i will stay as it is: its first mask, or where tokens may change, its block."""
        s, o = self.rows, self.rows.options[i]
        if o.remask or o.edit_threshold < 1 or o.quota == "p2":
            return int(s.origin[i]) + int(s.blocks[i, s.current[i]]) * self.size
        masked = (s.hole[i] & (s.x[i] == self.mask_id)).nonzero()[:, 0]
        return int(masked[0]) if len(masked) else int(s.lengths[i])

    def output(self, r):
        """The Output of rows r (int64 (R,)), as far as they have come."""
        s, ends = self.rows, self.rows.ends[r]
        if self.ends_text is not None:
            ends = torch.minimum(ends, self.stops(r) + 1)
        events = [s.events[i] for i in r.tolist()] if self.trace else []
        return Output([s.x[i, :n] for i, n in zip(r.tolist(), ends.tolist())], s.forwards[r].tolist(), events)

    def run(self, rows, watch=None):
        """The Output of these rows, of a batch that has no others."""
        self.enter(rows)
        while rows.alive.any():
            self.step()
            if watch is not None:
                watch([row[:n].clone() for row, n in zip(rows.x, rows.lengths)])
        return self.output(torch.arange(len(rows.x)))


def reader_of(read, whose, rows):
    """`read` for those of its logits that are of these rows; `whose` (N,) says of which each is."""
    index = torch.isin(whose, rows).nonzero()[:, 0]
    return lambda part: read(index[part])


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
