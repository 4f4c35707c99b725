"""Edit Flows (arXiv 2506.09018): a text grows and heals by insertions, deletions and substitutions.

The idea in five lines. A text x_0 (nothing, masks, a text with typos) and a text x_1 of the data are aligned with blanks;
each column that differs is an edit. At time t each edit has been made with probability kappa(t), all by themselves: that
is x_t, of any length. The network reads x_t and t and says of each place how many edits of each kind it expects to be
still outstanding, and with which tokens. Divided by the time that is left those are rates, at which the sampler edits
x_0 until t = 1: it opens places and closes them, so that no length is ever fixed. (t runs from noise to text here.)

    python editflow.py      trains and samples something tiny, and says what it does

1 the rows of the network · 2 where a text begins · 3 alignments · 4 loss · 5 bound · 6 sampling · 7 likelihood
8 tutorial
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F

import mdlm
from mdlm import mask_rate
from model import Config, Transformer, fp32
from nanodlm import noise
from nanodlm.alignments import BLANK, DELETE, INSERT, REPLACE, align, to_front, with_errors
from nanodlm.bounds import Amount, Seed, Size, Steps, Unit, Whole, check
from nanodlm.guard import evaluating
from nanodlm.noise import draw, home, uniform

CAUSAL = False

# ---- 1 · the rows of the network -----------------------------------------------------------------------------------
#
# It is model.py's, of more rows than there are tokens. Read as output: V for the token that replaces one, V for the one
# that is inserted behind it, 3 for log counts: how many insertions are outstanding behind this token, whether it is to
# go, to be replaced. Read as input: the last TIMES say t, in front of the text, where what is inserted first stands.

TIMES = 64  # what a time token can say; kappa, to be exact, so that one network is for all schedules
LAST = 0.01  # rates are counts over 1 - kappa + LAST: the process ends, whatever the network says, in finitely many edits


def rows(vocab_size):
    """How many the network needs for a vocabulary."""
    return 2 * vocab_size + 3 + TIMES


def vocabulary(config):
    V, odd = divmod(config.vocab_size - 3 - TIMES, 2)
    if odd or V < 1 or config.position == "learned" or config.causal or config.shift:
        raise ValueError("this is no network of an edit flow, which has rows of its own: train one with train.py")
    return V


def read(model, texts, lengths, kappa):
    """What the network says of texts (B, L) of these lengths at kappa (B,): logits (N, rows), at least fp32, one row for
    the time in front of each text and one for each token; and which of (B, L + 1) they are."""
    ids = F.pad(texts, (1, 0))
    ids[:, 0] = model_of(model).config.vocab_size - TIMES + (kappa * TIMES).long().clamp(0, TIMES - 1).to(ids.device)
    real = torch.arange(ids.shape[1], device=ids.device) <= lengths[:, None].to(ids.device)
    return fp32(model(ids, mask=None if real.all() else real, rows=real)), real


def model_of(model):
    return getattr(model, "module", model)  # of DDP


def token_logits(logits, kind, V, mask_id, tokens=None):
    """Logits (N, V) of the token that is inserted, or that replaces one of tokens (N,): another one, and no mask."""
    found = logits[:, V : 2 * V] if kind == INSERT else logits[:, :V]
    out = torch.arange(V, device=found.device) == mask_id
    if kind == REPLACE:
        out = out | (torch.arange(V, device=found.device) == tokens[:, None])
    return found.masked_fill(out, -torch.inf)


# ---- 2 · where a text begins ---------------------------------------------------------------------------------------


@dataclass
class LossOptions:
    schedule: str = "poly3"  # kappa(t), the part of the edits that is made: poly3 is t^3 (the paper's), linear, cosine, …
    alignment: Literal["cheapest", "random"] = "cheapest"  # of two texts: fewest edits, or any
    errors: Unit = 0.1  # config.source=typos: a text has up to so many in a hundred tokens, evenly spread over texts
    prompts: Unit = 0.0  # chance that a text's beginning is given, c^3 of it, c uniform (appendix E)
    spread: Amount = 0.0  # an edit that is made calls for each beside it, at this many times the usual rate (C.1)
    low_discrepancy: bool = True  # spread t evenly over the global batch

    def __post_init__(self):
        check(self)
        mask_rate(torch.ones(1), self.schedule)


def begin(x1, free, source, options, key, V, mask_id):
    """What the free (bool) tokens of texts x1 (B, L) begin as: texts (B, L') and their lengths (B,)."""
    at = torch.arange(x1.shape[1], device=x1.device)
    letter = (uniform(*key, 0, at) * (V - 1)).long()
    letter += letter >= mask_id
    if source == "typos":
        return with_errors(x1, free, options.errors, letter, *key, 1)
    n = (uniform(*key, 2, 0)[:, 0] * (free.sum(1) + 1)).long()  # as long as the text at most
    return {"nothing": x1[:, :0], "masks": torch.full_like(x1, mask_id), "noise": letter}[source], n * (source != "nothing")


# ---- 3 · alignments ------------------------------------------------------------------------------------------------


def columns(x1, maskable, real, source, options, key, V, mask_id, given=None):
    """z0 and z1 (B, M) of texts x1 (B, L), and which columns are given (bool): prompts, whose tokens no edit touches."""
    given = real & ~maskable if given is None else given & real
    free = real & ~given
    if source == "nothing":
        return torch.where(given, x1, BLANK), torch.where(real, x1, BLANK), given
    if (given & (free.cumsum(1) > 0)).any():
        raise ValueError(f"source={source} aligns what follows a prompt: given tokens may stand at the beginning alone")
    x0, n0 = begin(x1, free, source, options, key, V, mask_id)
    rest, n1 = to_front(x1, free)
    total = x0.shape[1] + rest.shape[1]
    u = uniform(*key, 4, torch.arange(total, device=x1.device)).T
    z0, z1 = align(x0, n0, rest, n1, u, options.alignment == "cheapest")
    front = torch.where(given, x1, BLANK)
    return torch.cat([front, z0], 1), torch.cat([front, z1], 1), F.pad(given, (0, total))


# ---- 4 · loss ------------------------------------------------------------------------------------------------------


def made(kappa, M, spread, key):
    """Which of M columns are edited at kappa (B, 1): bool (B, M); and how fast each of the others is, relative to the
    usual rate, float64 (B, M).

    In the time -log(1 - kappa) an edit comes at a rate of 1, and from each neighbour that is there at one of `spread`:
    first passage, as columns reach each other in a random time, which is exponential. (In the paper the calls of several
    edits add up, and their rate is constant in t.)"""
    at = torch.arange(M, device=kappa.device)
    came = -uniform(*key, 5, at).log()
    if spread:
        way = F.pad((-uniform(*key, 6, at).log() / spread)[:, 1:].cumsum(1), (1, 0))
        from_left = way + (came - way).cummin(1).values
        came = torch.minimum(from_left, ((came + way).flip(1).cummin(1).values.flip(1)) - way)
    done = came <= -torch.log1p(-kappa)
    beside = F.pad(done, (1, 1)).double()
    return done, 1 + spread * (beside[:, 2:] + beside[:, :-2])


def token_bound(model, z0, z1, given, kappa, spread, key, V, mask_id):
    """What texts add to the bound at kappa, nats per unit of kappa, float64 (B,). With R_e the true rate of an edit that
    is outstanding, given z_0 and z_1, and u_e the network's rate of an edit, of those that could be made at all,

        sum over all e of u_e  +  sum over outstanding e of R_e (log(R_e / u_e) - 1)       (the paper's eq. 23, and what
                                                                                            is constant in it)
    the Bregman divergence, and KL divergence of the two jump processes. R is speed / (1 - kappa)."""
    done, speed = made(kappa[:, None], z0.shape[1], spread, key)
    z, real_column = torch.where(done, z1, z0), (z0 != BLANK) | (z1 != BLANK)
    here, outstanding = z != BLANK, ~done & (z0 != z1)
    at, lengths = here.cumsum(1), here.sum(1)  # the place of a token; of an insertion, the token that it stands behind
    B, L = len(z), int(lengths.max())
    place = torch.where(here, at - 1, L)
    texts = z.new_zeros(B, L + 1).scatter(1, place, z)[:, :-1]
    # Given tokens stay, and nothing comes between them, but where a hole was.
    last = given.gather(1, (real_column * torch.arange(z.shape[1], device=z.device)).argmax(1, keepdim=True))
    fixed = last.expand(B, L + 1).scatter(1, place, given)
    fixed[:, L:] = last
    gap = ~(F.pad(fixed[:, :-1], (1, 0), value=True) & fixed)
    gap |= F.pad(gap, (0, 1)).scatter(1, torch.where(real_column & ~given & ~here, at, L + 1), True)[:, :-1]
    token = F.pad(~fixed[:, :-1], (1, 0))
    may = torch.stack([gap, token, token], 2)
    logits, real = read(model, texts.to(model_of(model).embed.weight.device), lengths, kappa)
    left, may = (1 - kappa + LAST).to(logits), may.to(logits.device)
    count = logits[:, 2 * V : 2 * V + 3]  # log counts, (N, 3)
    row = real.nonzero()[:, 0]
    total = (count.exp() * may[real]).sum(1).double()
    nats = torch.zeros(B, dtype=torch.float64, device=total.device).index_add_(0, row, total) / left.double()

    b, m = outstanding.nonzero(as_tuple=True)
    kind = torch.where(z[b, m] == BLANK, INSERT, torch.where(z1[b, m] == BLANK, DELETE, REPLACE))
    index = (real.flatten().cumsum(0) - 1).view_as(real)[b, at[b, m]]
    logp = count[index, kind]
    for which in (INSERT, REPLACE):
        of = kind == which
        others = token_logits(logits[index[of]], which, V, mask_id, z[b, m][of]).log_softmax(1)
        logp = logp.index_add(0, of.nonzero()[:, 0], others.gather(1, z1[b, m][of][:, None])[:, 0])
    rate = speed[b, m] / (1 - kappa[b])
    each = rate * (rate.log() - 1 - logp.double() + left.double()[b].log())
    return nats.index_add(0, b, each)


def loss(model, x0, options=LossOptions(), *, mask_id, maskable=None, seed=0, shard=None, denominator=None, texts=None):
    """The training loss in nats per token, a scalar: an estimate of the bound; the arguments are mdlm.loss's, where x0 is
    the clean text (here: x_1)."""
    if texts:
        raise ValueError("an edit flow learns from running text, not from conversations")
    x1, config = home(x0), model_of(model).config
    first, total = shard or (0, len(x1))
    key = seed, 11, first + torch.arange(len(x1), device=x1.device)[:, None]
    real = torch.ones_like(x1, dtype=torch.bool)
    maskable = real if maskable is None else home(maskable)
    u, v = uniform(*key, 7, 0), uniform(*key, 8, 0)
    prompt = torch.arange(x1.shape[1], device=x1.device) < torch.where(u < options.prompts, v**3, 0.0) * x1.shape[1]
    V = vocabulary(config)
    z0, z1, given = columns(x1, maskable & ~prompt, real, config.source, options, key, V, mask_id)
    t = noise.stratified(seed, total, x1.device, options.low_discrepancy)[first : first + len(x1)]
    kappa, slope = mask_rate(t, options.schedule)
    nats = token_bound(model, z0, z1, given, kappa, options.spread, key, V, mask_id)
    return (slope * nats).sum().to(x0.device) / (maskable.sum() if denominator is None else denominator)


# ---- 5 · bound -----------------------------------------------------------------------------------------------------


@evaluating("config.source")
def nelbo(model, x0, *, mask_id, maskable=None, real=None, samples=1, seed=0, first=0):
    """An unbiased estimate of each row's NELBO in nats, float64 (B,): an upper bound on -log p(x_1 | x_0), the chance that
    the process which the network's rates define ends in this text; x_1 is the argument x0, and x_0 what config.source
    makes of it, so that from typos it is that of mending. The arguments are mdlm.nelbo's.

    Is it a bound? The edits that lead from z_0 to z_1 are a path of the network's process, too, and no two ways to make
    them are one path, as each token of x_1 tells which column it came from. So the divergence of the two path measures
    bounds what the last text of a path says; of any alignment, and in expectation of all. Its time is kappa."""
    x1, config, options = home(x0), model.config, LossOptions()
    real = torch.ones_like(x1, dtype=torch.bool) if real is None else home(real)
    maskable = real if maskable is None else home(maskable) & real
    number = home(first) if torch.is_tensor(first) else first + torch.arange(len(x1), device=x1.device)
    V, total = vocabulary(config), 0.0
    for j in range(samples):
        key = seed, 12, j, number[:, None]
        z0, z1, given = columns(x1, maskable, real, config.source, options, key, V, mask_id)
        kappa = ((number * samples + j).double() * 0.6180339887498949 + uniform(seed, 5)) % 1
        total += home(token_bound(model, z0, z1, given, kappa, 0.0, key, V, mask_id))
    return total / samples


# ---- 6 · sampling --------------------------------------------------------------------------------------------------


@dataclass
class SampleOptions:
    max_new_tokens: Whole = 256  # a text may become so much longer than its prompt
    given: Literal["auto", "stays", "changes"] = "auto"  # the prompt: may it be edited? auto: by a network of typos
    jumps: Literal["leap", "one"] = "leap"  # all edits of a step at once (tau-leaping), or one by one, which is exact
    steps: Steps = 64  # leap: steps from kappa = 0 to 1, a forward each
    schedule: str = "poly3"  # leap: kappa over the steps: poly3 is t^3, small steps while all is open; linear, cosine, …
    temperature: Amount = 1.0  # of the tokens; 0: no chance at all, the edits that are more likely than not outstanding
    seed: Seed = 0  # row i of a call draws from seed and i alone

    def __post_init__(self):
        check(self)
        if self.jumps == "one" and not self.temperature:
            raise ValueError("jumps=one draws the time of each edit: it needs a temperature above 0, or jumps=leap")
        if not self.steps:
            raise ValueError("steps=0 is no number of steps: an edit flow takes the same steps, however long the text is")
        mask_rate(torch.ones(1), self.schedule)


@dataclass
class Output(mdlm.Output):
    start: list[torch.Tensor] = field(default_factory=list)  # per prompt: the text x_0 that its trace begins with


@dataclass
class Row:
    """A text that is being edited."""

    x: torch.Tensor  # int64 (n,)
    fixed: torch.Tensor  # bool (n,): given
    gap: torch.Tensor  # bool (n + 1,): something may come in front of all, or behind a token
    most: int  # tokens
    key: tuple  # of its random numbers
    kappa: float = 0.0
    step: int = 0
    events: list = field(default_factory=list)


def start(prompt, options, source, most, key, mask_id):
    """The Row of a prompt. Masks are holes: where the network begins with masks they stay, else they are open places."""
    hole, stays = prompt == mask_id, options.given == "stays" or options.given == "auto" and source != "typos"
    fixed = ~hole & stays
    before, behind = F.pad(fixed, (1, 0), value=True), F.pad(fixed, (0, 1), value=not options.max_new_tokens)
    gap = ~(before & behind)
    keep = torch.ones_like(hole) if source == "masks" else ~hole
    x = prompt
    if source == "masks" and options.max_new_tokens:  # the text that follows is masks, too
        x, keep, fixed = (F.pad(v, (0, options.max_new_tokens), value=w) for v, w in ((x, mask_id), (keep, 1), (fixed, 0)))
        gap = F.pad(gap, (0, options.max_new_tokens), value=1)
    place = F.pad(keep.long().cumsum(0), (1, 0))
    gap = torch.zeros(int(keep.sum()) + 1, dtype=torch.long, device=x.device).index_add(0, place, gap.long()) > 0
    return Row(x[keep], fixed[keep], gap, most, key)


def hazard(a, b):
    """The integral of the rates per outstanding edit from kappa a to b."""
    return torch.log((1 - a + LAST) / (1 - b + LAST))


def edit(row, logits, insert, change, tokens, p, trace):
    """Make the edits: insert (n + 1,) bool behind the places, change (n,) 0, DELETE or REPLACE; tokens int64 (n + 1, 2) of
    insertions and replacements; p (n + 1, 2) what the trace says of them."""
    own = torch.where(change == REPLACE, tokens[1:, 1], row.x)
    new = torch.where(insert, tokens[:, 0], BLANK)
    if trace:  # from right to left, so that places are those of the text as it is
        for i in (insert | F.pad(change > 0, (1, 0))).nonzero()[:, 0].flip(0).tolist():
            if insert[i]:
                row.events.append((row.step, i, int(new[i]), float(p[i, 0]), "insert"))
            if i and change[i - 1]:
                what = ("delete",) if change[i - 1] == DELETE else ()
                row.events.append((row.step, i - 1, int(own[i - 1]), float(p[i, 1]), *what))
    kept = torch.stack([F.pad(change != DELETE, (1, 0)), insert], 1).flatten()
    kept[0] = True  # the place in front of all
    gap = torch.stack([row.gap, torch.ones_like(row.gap)], 1).flatten()
    row.x = torch.stack([F.pad(own, (1, 0)), new], 1).flatten()[kept][1:]
    row.fixed = torch.stack([F.pad(row.fixed, (1, 0)), torch.zeros_like(insert)], 1).flatten()[kept][1:]
    row.gap = gap[kept]


def jumps(row, logits, o, b, V, mask_id):
    """What becomes of a Row up to kappa b by its logits (n + 1, rows): edit()'s insert, change, tokens and p."""
    n, at = len(row.x), torch.arange(len(row.x) + 1, device=logits.device)
    token = F.pad(~row.fixed, (1, 0))
    count = logits[:, 2 * V : 2 * V + 3].double().exp() * torch.stack([row.gap & (n < row.most), token, token], 1)
    u = [uniform(*row.key, row.step, i, at) for i in range(4)]
    if o.jumps == "one":  # by Gillespie: the next edit comes when a unit of an exponential's time is used up
        total = count.sum()
        left = (1 - row.kappa + LAST) * torch.exp(u[0][0].log() / total.clamp(min=1e-30))
        row.kappa, came = (b, False) if 1 + LAST - left > b else (float(1 + LAST - left), True)
        which = int(draw(count.flatten()[None].log(), u[1][:1])) if came else -1
        hit = (torch.arange(count.numel(), device=at.device) == which).view_as(count)
        insert, change = hit[:, 0], (hit * torch.arange(3, device=at.device))[1:].sum(1)
    else:
        p = 1 - torch.exp(-hazard(row.kappa, b) * torch.stack([count[:, 0], count[:, 1:].sum(1)], 1))
        p = p if o.temperature else (torch.stack([count[:, 0], count[:, 1:].sum(1)], 1) >= 0.5).double()
        part = count[:, 1] / count[:, 1:].sum(1).clamp(min=1e-30)  # of the changes that delete
        insert, changed = u[0] < p[:, 0], u[1] < p[:, 1]
        delete = changed & (u[1] < part * p[:, 1] if o.temperature else part >= 0.5)
        change = torch.where(delete, DELETE, torch.where(changed, REPLACE, 0))[1:]
        room = max(0, row.most - n + int(delete.sum()))
        insert[torch.where(insert, u[0], 2.0).argsort()[room:]] = False
        row.kappa = b
    tokens, chance = torch.zeros(n + 1, 2, dtype=torch.long, device=at.device), 1 - torch.exp(-count)
    chance = torch.stack([chance[:, 0], chance[:, 1]], 1)
    for kind, where, i in ((INSERT, insert, 0), (REPLACE, F.pad(change == REPLACE, (1, 0)), 1)):
        if where.any():
            old = F.pad(row.x, (1, 0))[where]
            found = token_logits(logits[where], kind, V, mask_id, old)
            tokens[where, i] = new = draw(found, u[2 + i][where], o.temperature)
            chance[where, i] = found.double().softmax(1).gather(1, new[:, None])[:, 0]
    return insert, change, tokens, chance


@evaluating("config.source")
def generate(
    model, prompts, options=SampleOptions(), *, mask_id, eos_id=None, until=None, numbers=None, trace=False, watch=None
):
    """Edit texts until kappa is 1, all in one batch; arguments and result are mdlm.generate's, but that the texts end
    where the edits end, and that an event of the trace may have a fifth part, "insert" (in front of what stands at that
    place), or "delete"; a step's events follow each other from right to left."""
    o, config, V = options, model.config, vocabulary(model.config)
    device = model.embed.weight.device
    names = range(len(prompts)) if numbers is None else map(int, numbers)
    texts = []
    for prompt, name in zip(prompts, names):
        most = min(len(prompt) + o.max_new_tokens, config.seq_len)
        if len(prompt) > config.seq_len:
            raise ValueError(f"a text of {len(prompt)} tokens is longer than the context of {config.seq_len}; shorten it")
        texts.append(start(home(prompt), o, config.source, most, (o.seed, name), mask_id))
    out, forwards = Output([], [], start=[row.x for row in texts]), [0] * len(texts)
    grid = mask_rate(torch.arange(o.steps + 1).double() / o.steps, o.schedule)[0].tolist()
    while live := [i for i, row in enumerate(texts) if row.kappa < 1]:
        x = torch.nn.utils.rnn.pad_sequence([texts[i].x for i in live], batch_first=True)
        lengths, kappa = torch.tensor([len(texts[i].x) for i in live]), torch.tensor([texts[i].kappa for i in live]).double()
        logits, _ = read(model, x.to(device), lengths, kappa)
        for i, mine in zip(live, home(logits).split((lengths + 1).tolist())):
            row = texts[i]
            piece = (int(row.kappa * TIMES) + 1) / TIMES  # up to here the network's counts stand still
            b = min(1.0, piece if o.jumps == "one" else grid[row.step + 1])
            edit(row, *[*jumps(row, mine, o, b, V, mask_id)], trace)
            row.step, forwards[i] = row.step + 1, forwards[i] + 1
        if watch is not None:
            watch([row.x.clone() for row in texts])
    for row, prompt in zip(texts, prompts):
        end = mdlm.end_of_text(row.x, ~row.fixed, mask_id, eos_id)
        out.tokens.append(row.x[:end].to(prompt.device))
        out.trace += [row.events] if trace else []
    return Output(out.tokens, forwards, out.trace, out.start)


# ---- 7 · likelihood -------------------------------------------------------------------------------------------------


@dataclass
class LikelihoodOptions:
    method: Literal["nelbo"] = "nelbo"  # a bound: many ways of editing end in one text, so that no chain rule is exact
    mc_samples: Size = 16  # times and texts x_t per text
    seed: Seed = 0  # of these

    def __post_init__(self):
        check(self)


@evaluating("config.source")
def log_likelihood(model, prompts, targets, options=LikelihoodOptions(), *, mask_id, numbers=None):
    """A lower bound of log p(target | prompt) in nats for lists of 1-D int64 tensors, float64 (N,): minus the NELBO."""
    found = torch.zeros(len(prompts), dtype=torch.float64)
    for i, (prompt, target) in enumerate(zip(prompts, targets)):
        x = torch.cat([prompt, target])[None]
        keys = dict(samples=options.mc_samples, seed=options.seed, first=i if numbers is None else int(numbers[i]))
        asked = torch.arange(x.shape[1], device=x.device)[None] >= len(prompt)
        found[i] = -nelbo(model, x, mask_id=mask_id, maskable=asked, **keys)
    return found
