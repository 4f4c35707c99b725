"""Introspective decoding (I-DLM, arXiv 2604.11035): a causal network drafts with masks, and then reads what it drafted.

The network is an autoregressive one, whose output at token i predicts token i + 1, and which has also learnt what masks
mean: behind a text of n tokens, masks at n + 1, n + 2, … say what tokens n + 2, n + 3, … may be, all in one pass. The
next pass reads these drafts as if they were the text. As nobody sees what comes after, the outputs there are the
autoregressive model's own: so it judges its drafts, goes on behind the first one that does not stand, and drafts anew
from masks in that same pass. What is written is the autoregressive model's text, in fewer passes.

What masks draft behind a draft that does not stand is lost. So each draft has a group of masks behind it, which sees
the text up to there and nothing else (behind="every"): whatever stands, there are new drafts that know all of it. In
the published algorithm masks stand behind the last draft alone (behind="last"): it reads fewer tokens per pass, and
after a draft that did not stand a pass has nothing to judge.

Masks of other networks see all of their group, and say what stands in their own place (Nemotron-Labs-Diffusion, arXiv
2607.05722): the first of them, in the place of the token that is judged, says nothing new. Its linear self-speculation
gives a group a pass of its own (behind="alone"), which begins with the last token, now known; the quadratic one is
behind="every".
"""

import contextlib
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F

from mdlm import Output
from model import fp32
from nanodlm.bounds import Above0, Amount, Seed, Whole, check
from nanodlm.choice import choose_tokens, filter_logits
from nanodlm.decode import check_length, pad
from nanodlm.guard import evaluating
from nanodlm.noise import draw, home, to, uniform

CAUSAL = True


@dataclass
class SampleOptions:
    max_new_tokens: Whole = 256  # tokens generated after each prompt
    draft: Whole = 0  # tokens drafted per pass; 0 means those of a block, as trained, but its first
    behind: Literal["auto", "every", "last", "alone"] = "auto"  # masks stand behind each draft, behind the last (as
    # published), or in a pass of their own (Nemotron's, as published); auto: alone for such networks, every for others
    accept: Literal["ratio", "same"] = "ratio"  # a draft stands by chance p / q; or if ar would have drawn it, too
    temperature: Amount = 1.0  # of the token draw; 0 takes the most probable token
    top_k: Whole = 0  # draw among the k most probable tokens; 0 means all
    top_p: Above0 = 1.0  # draw among the fewest tokens that hold this much probability
    suppress: tuple[Whole, ...] = ()  # token ids never generated
    seed: Seed = 0  # row i of a call draws from seed and i alone

    def __post_init__(self):
        check(self)


@dataclass
class Row:
    """A text being written."""

    x: torch.Tensor  # int64 (L,): what is written, then what is drafted, then masks
    begin: int  # the prompt's length
    length: int  # tokens that are written
    number: int  # from it, the seed and a token's position come its random numbers
    stored: int = 0  # tokens whose keys and values are in the cache for good
    drafts: int = 0
    q: torch.Tensor | None = None  # float64 (drafts, V): the probabilities that they were drawn by
    forwards: int = 0
    events: list = field(default_factory=list)


class Way(NamedTuple):
    """How drafts are made."""

    size: int  # how many at once
    behind: str
    own: int  # 1: masks see all of their group, and say what stands in their own place; the group's first is not asked

    @property
    def width(self):
        """Tokens of a group."""
        return self.size + self.own

    @property
    def slots(self):
        """Slots of the cache that are the groups': several stand at one position. They lie in front of the text's."""
        return self.width * (self.size + 1 if self.behind == "every" else 1)


class Plan(NamedTuple):
    """What a pass reads of a row, each int64 (T,)."""

    ids: torch.Tensor
    position: torch.Tensor
    slot: torch.Tensor  # of the cache, where keys and values go
    sees: torch.Tensor  # how many tokens of the text each sees
    group: torch.Tensor  # of masks, which see each other; -1: text
    until: torch.Tensor  # the last place within the group that it sees


def plan(row, way, mask_id):
    """The tokens that are new or drafted, then the groups of masks, each of as many as there is room for. The text's
    last token is not read: nothing is written behind it."""
    known, last = row.length + row.drafts, len(row.x) - 1
    first, groups = (row.length, row.drafts + 1) if way.behind == "every" else (known, 1)
    if way.behind == "alone":  # a pass that drafts, where there is more than one token to write, or one that judges
        first, groups = row.length - 1, int(row.forwards > 0 and not row.drafts and row.length < last)
    spans = [(row.stored, row.stored if way.behind == "alone" and groups else min(known, last))]
    spans += [(i, min(i + way.size, last) + (way.own if i < last else 0)) for i in range(first, first + groups)]
    counts = [max(0, b - a) for a, b in spans]
    position = torch.cat([torch.arange(a, a + n) for (a, _), n in zip(spans, counts)])
    group = torch.arange(-1, groups).repeat_interleave(torch.tensor(counts))
    text, place = group < 0, position - first - group
    ids = torch.where(text | (position < row.length), row.x[position], mask_id)
    slot = torch.where(text, way.slots + position, group * way.width + place)
    until = torch.tensor(counts)[group + 1] - 1 if way.own else place
    return Plan(ids, position, slot, torch.where(text, position + 1, first + group), group, until)


@contextlib.contextmanager
def unshifted(model):
    """Every output where it is, whatever token the network is used to calling it by."""
    config, model.config = model.config, replace(model.config, shift=False)
    try:
        yield
    finally:
        model.config = config


def read(model, cache, rows, plans, way):
    """One pass over the rows. For each, logits (n, V), at least fp32, at its last written token and all behind it."""
    ends = 0, -1, cache.size, 1, -1, 0  # what stands behind a shorter plan: it sees one token, and nobody sees it
    ids, position, slot, sees, group, until = (pad([*p], end)[0] for p, end in zip(zip(*plans), ends))
    masks, width = way.slots, way.width
    s = torch.arange(masks + int(sees.max()))
    sees, group, until = sees[..., None], group[..., None], until[..., None]
    seen = torch.where(s < masks, (s // width == group) & (s % width <= until), s - masks < sees)
    rows = torch.tensor([row.length - 1 for row in rows])[:, None] <= position
    count = rows.sum(1).tolist()
    ids, position, slot, seen, rows = (to(v, cache.filled.device) for v in (ids, position, slot, seen, rows))
    cache.visible, cache.reserve = slice(0, len(s)), lambda *_: slot
    with unshifted(model):
        hidden = model.hidden(ids, mask=seen, positions=position, cache=cache, rows=rows)
    return home(fp32(model.head(hidden))).split(count)


def judge(logits, drafts, q, u, options):
    """The tokens that a pass writes: those of the drafts (k,) that stand, and one more where logits (n, V) reach: n is
    k + 1, or k where the text ends. u(purpose, n) are uniform numbers for the first n places.

    ratio  draft x stands by chance min(1, p(x) / q(x)), where it was drawn by q, and p is what the network says now. In
           place of the first that does not, one is drawn by the positive part of p - q. What is written is distributed
           by p, whatever q is (Leviathan et al., arXiv 2211.17192, algorithm 1)
    same   each place has one number, by which ar.generate draws its token, and so does the draft: it stands if it is
           that token"""
    o, k = options, len(drafts)
    if o.temperature == 0 or o.accept == "same":
        tokens = choose_tokens(logits, u(1, len(logits)), o.temperature, o.top_k, o.top_p)
        return tokens[: int((tokens[:k] == drafts).long().cumprod(0).sum()) + 1]
    p, stand = filter_logits(logits, o.temperature, o.top_k, o.top_p).softmax(-1), 0
    if k:
        chance = (p[:k].gather(1, drafts[:, None]) / q.gather(1, drafts[:, None])).clamp(max=1)
        fails = draw(torch.cat([chance, 1 - chance], 1).log(), u(3, k))
        stand = int((1 - fails).cumprod(0).sum())
    if stand == len(p):
        return drafts
    rest = (p[stand] - q[stand]).clamp(min=0) if stand < k else p[stand]
    rest = rest if rest.sum() > 0 else p[stand]  # p and q are the same, but for rounding
    return torch.cat([drafts[:stand], draw(rest[None].log(), u(1, stand + 1)[stand:])])


def advance(row, group, logits, options, way, mask_id, clock, trace):
    """Write, in place, the tokens that a pass says, and the drafts behind them; returns how many are written.

    group, logits  of the row's outputs (n,), (n, V)"""
    o, ratio = options, options.temperature > 0 and options.accept == "ratio"
    old = row.length + row.drafts

    def u(purpose, n, begin=row.length):
        return uniform(o.seed, row.number, begin + torch.arange(n, device=logits.device), purpose)

    drafts = row.x[row.length : old].to(logits.device)
    new = judge(logits[: int((group < 0).sum())], drafts, row.q, u, o)
    begin, stand = row.length + len(new), len(new) - 1
    # The masks that saw what is written, but for its last token, in whose place they begin.
    mine = stand if way.behind == "every" else 0 if stand == row.drafts or way.behind == "alone" else -2
    ahead = logits[(group == mine).to(logits.device)][way.own :]
    drafted = choose_tokens(ahead, u(2 if ratio else 1, len(ahead), begin), o.temperature, o.top_k, o.top_p)
    tokens, end = torch.cat([new, drafted]), begin + len(ahead)
    if trace:
        chance = torch.cat([logits[: len(new)], ahead]).softmax(-1).gather(1, tokens[:, None])[:, 0]
        row.events += [(clock, *e) for e in zip(range(row.length, end), tokens.tolist(), chance.tolist())]
        row.events += [(clock, i, mask_id, 0.0) for i in range(end, old)]
    row.x[row.length :] = mask_id
    row.x[row.length : end] = tokens.cpu()
    row.q = filter_logits(ahead, o.temperature, o.top_k, o.top_p).softmax(-1) if ratio else None
    row.stored, row.drafts, row.forwards = begin - 1, len(ahead), row.forwards + 1
    return len(new)


@evaluating("hidden", "head", "cache", "config.causal", "config.shift", "config.window", "config.block_size")
def generate(
    model, prompts, options=SampleOptions(), *, mask_id, eos_id=None, until=None, numbers=None, trace=False, watch=None
):
    """Continue each prompt by what the network says as the autoregressive model that it is. Arguments and result are
    ar.generate's, for networks without begin-of-text. At temperature 0, and with accept="same", so are the tokens (up
    to rounding, as passes are longer); with accept="ratio" their distribution is. The mask is never written.

    num_forwards counts passes, the prompt's included. Drafts are in the trace, and on the canvases of watch, as the
    tokens that they may become; where one is dropped, a mask is again."""
    o, config = options, model.config
    if not (config.causal or config.shift and not config.two_way):  # a shifted bd3lm is causal by the masks it is given
        raise ValueError("this network sees what comes after a token, so it cannot judge its own drafts: use bd3lm")
    if config.window:
        raise ValueError(f"drafts are not judged through a sliding window of {config.window} tokens: use ar")
    for p in prompts:
        if not len(p):
            raise ValueError("this model has no begin-of-text: give it a prompt of at least one token")
        if (p == mask_id).any():
            raise ValueError("what is judged is written from left to right, so it cannot fill in masks: use bd3lm")
    own, behind = int(not config.shift), o.behind if o.behind != "auto" else "every" if config.shift else "alone"
    if behind == "alone" and not own:
        raise ValueError("behind=alone is of masks that say their own tokens, as Nemotron's do: use every or last")
    way = Way(max(1, min(o.draft or config.block_size - 1, o.max_new_tokens - 1)), behind, own)
    xs = [F.pad(p.long().cpu(), (0, o.max_new_tokens), value=mask_id) for p in prompts]
    numbers = range(len(xs)) if numbers is None else numbers.tolist()
    rows = [Row(x, len(p), len(p), number) for x, p, number in zip(xs, prompts, numbers)]
    ends_text = torch.as_tensor([] if eos_id is None else eos_id).flatten().tolist()
    banned = [mask_id, *o.suppress]
    live, clock = [row for row in rows if o.max_new_tokens], 0
    if live:
        check_length(model, pad(xs, mask_id)[0])
        cache = model.cache(len(live), way.slots + max(map(len, xs)))
        cache.filled[:] = True  # who sees whom is said by read() alone
    while live:
        plans, going = [plan(row, way, mask_id) for row in live], []
        for i, (row, logits) in enumerate(zip(live, read(model, cache, live, plans, way))):
            logits[:, banned] = -torch.inf
            for _ in range(advance(row, plans[i].group[-len(logits) :], logits, o, way, mask_id, clock, trace)):
                row.length += 1
                over = row.length == len(row.x) or int(row.x[row.length - 1]) in ends_text
                if over or until and until(row.x[: row.length], row.begin, 1):
                    row.x[row.length :] = mask_id
                    break
            else:
                going.append(i)
        if len(going) < len(live):
            cache.keep(torch.tensor(going, dtype=torch.int64, device=cache.filled.device))
            live = [live[i] for i in going]
        clock += 1
        if watch is not None:
            watch([row.x.clone() for row in rows])
    tokens = [row.x[: row.length].to(p.device) for row, p in zip(rows, prompts)]
    return Output(tokens, [row.forwards for row in rows], [row.events for row in rows] if trace else [])
