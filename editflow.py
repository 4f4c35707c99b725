"""Edit Flows (arXiv 2506.09018): a text grows and heals by insertions, deletions and substitutions.

The idea in five lines. A text x_0 (nothing, masks, a text with typos) and a text x_1 of the data are aligned with
blanks; each column that differs is an edit. At time t each edit has been made with probability kappa(t), all by
themselves: that is x_t, of any length. The network reads x_t and t and says of each place how many edits of each kind
it expects to be still outstanding, and with which tokens. Divided by the time that is left those are rates, at which
the sampler edits x_0 until t = 1: it opens places and closes them, so that no length is ever fixed. (t runs from noise
to text here.)

    python editflow.py      trains and samples something tiny, and says what it does

1 the rows of the network · 2 loss · 3 bound · 4 sampling · 5 likelihood · 6 tutorial
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

import mdlm
from mdlm import mask_rate
from model import Config, Transformer, fp32
from nanodlm import noise
from nanodlm.alignments import BLANK, DELETE, INSERT, REPLACE, align, aligned, made, to_front
from nanodlm.bounds import Amount, Seed, Steps, Unit, Whole, check
from nanodlm.guard import evaluating
from nanodlm.noise import draw, home, uniform
from udlm import LikelihoodOptions

CAUSAL = False

# ---- 1 · the rows of the network -----------------------------------------------------------------------------------
#
# It is model.py's, of more rows than there are tokens. Read as output: V for the token that replaces one, V for the one
# that is inserted after it, 3 for log counts: how many insertions are outstanding after this token, whether it is to
# go, to be replaced. Read as input: the last TIMES say t, in front of the text, where what is inserted first stands.

TIMES = 64  # what a time token can say; kappa, to be exact, so that one network is for all schedules
LAST = 0.01  # rates are counts over 1 - kappa + LAST, so that whatever the network says, the edits come to an end


def rows(vocab_size):
    """How many the network needs for a vocabulary."""
    return 2 * vocab_size + 3 + TIMES


def vocabulary(config):
    V, odd = divmod(config.vocab_size - 3 - TIMES, 2)
    if odd or V < 1 or config.position == "learned" or config.causal or config.shift:
        raise ValueError("this is no network of an edit flow, which has rows of its own: train one with train.py")
    return V


def read(model, texts, lengths, kappa):
    """What the network says of texts (B, L) of these lengths at kappa (B,): logits (N, rows), at least fp32, one row
    for the time in front of each text and one for each token; and which of (B, L + 1) they are."""
    network = getattr(model, "module", model)  # .module: of DDP
    ids = F.pad(texts, (1, 0)).to(network.embed.weight.device)
    ids[:, 0] = network.config.vocab_size - TIMES + (kappa * TIMES).long().clamp(0, TIMES - 1).to(ids.device)
    real = torch.arange(ids.shape[1], device=ids.device) <= lengths[:, None].to(ids.device)
    return fp32(model(ids, mask=None if real.all() else real, rows=real)), real


def token_logits(logits, kind, V, mask_id, tokens=None):
    """Logits (N, V) of the token that is inserted, or that replaces one of tokens (N,): another one, and no mask."""
    found = logits[:, V : 2 * V] if kind == INSERT else logits[:, :V]
    out = torch.arange(V, device=found.device) == mask_id
    if kind == REPLACE:
        out = out | (torch.arange(V, device=found.device) == tokens[:, None])
    return found.masked_fill(out, -torch.inf)


# ---- 2 · loss ------------------------------------------------------------------------------------------------------
#
# Where a text begins, which edits lead from there (nanodlm/alignments.py), and which of them have been made at time t.


@dataclass
class LossOptions:
    schedule: str = "poly3"  # kappa(t), the part of the edits that is made: poly3 is t^3 (the paper's), linear, …
    objective: Literal["nelbo", "counts"] = "nelbo"  # the bound; or times 1 - kappa, a flat mean over edits
    alignment: Literal["cheapest", "random"] = "cheapest"  # of two texts: fewest edits, or any
    errors: Unit = 0.1  # config.source=typos: the part of a text that is wrong is uniform between 0 and this
    prompts: Unit = 0.0  # chance that a text's beginning is given, c^3 of it, c uniform (appendix E)
    spread: Amount = 0.0  # an edit that is made calls for each beside it, at this many times the usual rate (C.1)
    t_shape: Literal["uniform", "bell"] = "uniform"  # bell: t ~ Beta(2, 2)
    t_min: Unit = 0.0  # t is drawn from here (mdlm.LossOptions)
    t_max: Unit = 1.0  # … to here
    low_discrepancy: bool = True  # spread t evenly over the global batch

    def __post_init__(self):
        check(self)
        if self.t_min > self.t_max:
            raise ValueError(f"t_min={self.t_min} exceeds t_max={self.t_max}; t is drawn between them")
        mask_rate(torch.ones(1), self.schedule)


def token_bound(model, z0, z1, given, kappa, spread, key, V, mask_id):
    """What texts add to the bound at kappa (B,), nats per unit of kappa, float64 (B,). With R_e the true rate of an
    edit that is outstanding, given z_0 and z_1, and u_e the network's rate of any edit that could be made,

        sum over all e of u_e  +  sum over the outstanding e of R_e (log(R_e / u_e) - 1)

    It is the paper's eq. 23 and what is constant there: the divergence of the two processes, in which edits jump."""
    done, speed = made(kappa[:, None], z0.shape[1], spread, key)
    z, there = torch.where(done, z1, z0), (z0 != BLANK) | (z1 != BLANK)
    here, outstanding = z != BLANK, ~done & (z0 != z1)
    at, lengths = here.cumsum(1), here.sum(1)  # the place of a token; of an insertion, the token that it stands after
    L, place = int(lengths.max()), torch.where(here, at - 1, int(lengths.max()))
    texts = z.new_zeros(len(z), L + 1).scatter(1, place, z)[:, :-1]
    # Given tokens stay, and nothing comes between them, but where a hole was.
    last = given.gather(1, (there * torch.arange(z.shape[1], device=z.device)).argmax(1, keepdim=True))
    fixed = last.repeat(1, L + 1).scatter(1, place, given)
    fixed[:, L:] = last
    gap = ~(F.pad(fixed[:, :-1], (1, 0), value=True) & fixed)
    gap = F.pad(gap, (0, 1)).scatter(1, torch.where(there & ~given & ~here, at, L + 1), True)[:, :-1]
    token = F.pad(~fixed[:, :-1], (1, 0))

    logits, real = read(model, texts, lengths, kappa)
    real, left = real.to(z.device), 1 - kappa + LAST
    count = home(logits[:, 2 * V : 2 * V + 3])  # log counts, (N, 3)
    total = torch.where(torch.stack([gap, token, token], 2)[real], count.exp(), 0.0).sum(1).double()
    b, m = outstanding.nonzero(as_tuple=True)
    kind = torch.where(z[b, m] == BLANK, INSERT, torch.where(z1[b, m] == BLANK, DELETE, REPLACE))
    index = (real.flatten().cumsum(0) - 1).view_as(real)[b, at[b, m]]
    logp = count[index, kind].double()
    for which in (INSERT, REPLACE):
        of = (kind == which).nonzero()[:, 0]
        old, new, row = (v[of].to(logits.device) for v in (z[b, m], z1[b, m], index))
        found = token_logits(logits[row], which, V, mask_id, old).log_softmax(1).gather(1, new[:, None])[:, 0]
        logp = logp.index_add(0, of, home(found).double())
    rate = speed[b, m] / (1 - kappa)[b]
    nats = torch.zeros_like(kappa).index_add(0, real.nonzero()[:, 0], total) / left
    return nats.index_add(0, b, rate * (rate.log() - 1 - logp + left[b].log()))


def loss(model, x0, options=LossOptions(), *, mask_id, maskable=None, seed=0, shard=None, denominator=None, texts=None):
    """The training loss in nats per token, a scalar: an estimate of the bound; the arguments are mdlm.loss's, where x0
    is the clean text (here: x_1), and what is BLANK in it is padding."""
    if texts:
        raise ValueError("an edit flow learns from running text, not from conversations")
    x1, B, config = home(x0), len(x0), getattr(model, "module", model).config
    V, (first, total) = vocabulary(config), shard or (0, B)
    key = seed, 11, first + torch.arange(B, device=x1.device)[:, None]
    real = x1 != BLANK
    maskable = real if maskable is None else home(maskable) & real
    part = torch.where(uniform(*key, 7, 0) < options.prompts, uniform(*key, 8, 0) ** 3, 0.0)
    learnt = maskable & (torch.arange(x1.shape[1], device=x1.device) >= part * x1.shape[1])
    columns = aligned(x1, learnt, real, config.source, options.alignment, options.errors, key, V, mask_id)
    kappa, weight = mask_rate(noise.times(seed, total, options, x1.device)[first : first + B], options.schedule)
    weight = weight if options.objective == "nelbo" else 1 - kappa + LAST
    nats = token_bound(model, *columns, kappa, options.spread, key, V, mask_id)
    tokens = maskable.sum().to(x0.device) if denominator is None else denominator
    return (weight * nats).sum().float().to(x0.device) / tokens


# ---- 3 · bound -----------------------------------------------------------------------------------------------------


@evaluating("config.source")
def nelbo(model, x0, *, mask_id, maskable=None, real=None, samples=1, seed=0, first=0):
    """An unbiased estimate of each row's NELBO in nats, float64 (B,): an upper bound on -log p(x_1 | x_0), the chance
    that the process which the network's rates define ends in this text; x_1 is the argument x0, and x_0 what
    config.source makes of it, so that from typos it is that of mending. The arguments are mdlm.nelbo's.

    Is it a bound? The edits that lead from z_0 to z_1 are a path of the network's process, too, and no two ways to make
    them are one path, as each token of x_1 tells which column it came from. So the divergence of the two path measures
    bounds what the last text of a path says; of any alignment, and in expectation of all. Its time is kappa."""
    x1, config, usual, total = home(x0), model.config, LossOptions(), 0.0
    real = x1 != BLANK if real is None else home(real)
    maskable, V = real if maskable is None else home(maskable) & real, vocabulary(config)
    number = home(first) if torch.is_tensor(first) else first + torch.arange(len(x1), device=x1.device)
    for j in range(samples):
        key = seed, 12, j, number[:, None]
        columns = aligned(x1, maskable, real, config.source, usual.alignment, usual.errors, key, V, mask_id)
        kappa = ((number * samples + j).double() * 0.6180339887498949 + uniform(seed, 5)) % 1
        total += token_bound(model, *columns, kappa, 0.0, key, V, mask_id)
    return total / samples


# ---- 4 · sampling --------------------------------------------------------------------------------------------------


@dataclass
class SampleOptions:
    max_new_tokens: Whole = 256  # a text may become so much longer than its prompt
    given: Literal["auto", "stays", "changes"] = "auto"  # the prompt: may it be edited? auto: by a network of typos
    jumps: Literal["leap", "one"] = "leap"  # all edits of a step at once (tau-leaping), or one by one, which is exact
    steps: Steps = 64  # leap: steps from kappa = 0 to 1, a forward each
    schedule: str = "poly3"  # leap: kappa over the steps: poly3 is t^3, small ones while all is open; linear, …
    temperature: Amount = 1.0  # of the tokens; 0: no chance at all, the edits that are likely to be outstanding
    seed: Seed = 0  # row i of a call draws from seed and i alone

    def __post_init__(self):
        check(self)
        if self.jumps == "one" and not self.temperature:
            raise ValueError("jumps=one draws the time of each edit: it needs a temperature above 0, or jumps=leap")
        if not self.steps:
            raise ValueError("steps=0 is no number of steps: an edit flow takes the same ones, whatever the length")
        mask_rate(torch.ones(1), self.schedule)


@dataclass
class Output(mdlm.Output):
    start: list[torch.Tensor] = field(default_factory=list)  # per prompt: the text x_0 that its trace begins with


def first_text(prompt, options, source, mask_id, V, row):
    """The text x_0 of a prompt (n,), which of its tokens stay (n,), and where something may be inserted, in front of
    all or after a token (n + 1,). Masks are holes: who begins with masks reads them, to others they are gaps. What
    follows the prompt begins as in training: as nothing, or as masks or noise of any length."""
    hole, stays = prompt == mask_id, options.given == "stays" or options.given == "auto" and source != "typos"
    fixed, keep, more = ~hole & stays, ~hole | (source == "masks"), 0
    gap = ~(F.pad(fixed, (1, 0), value=True) & F.pad(fixed, (0, 1), value=not options.max_new_tokens))
    place = F.pad(keep.long().cumsum(0), (1, 0))  # a gap on either side of a hole that goes is one
    gap = torch.zeros(int(keep.sum()) + 1, dtype=torch.long).index_add(0, place, gap.long()) > 0
    if source in ("masks", "noise"):
        more = int(uniform(options.seed, row, -1, 0) * (options.max_new_tokens + 1))
    letter = (uniform(options.seed, row, -2, torch.arange(more)) * (V - 1)).long()
    letter = torch.full_like(letter, mask_id) if source == "masks" else letter + (letter >= mask_id)
    return torch.cat([prompt[keep], letter]), F.pad(fixed[keep], (0, more)), F.pad(gap, (0, more), value=True)


def jumps(count, kappa, b, n, most, u, options):
    """Which edits come between kappa and b, both (R,), by counts (R, L + 1, 3) and u, two of (R, L + 1), uniform:
    where something is inserted, bool; where a token is another or goes, REPLACE, DELETE or 0; the kappa reached."""
    change = count[..., 1:].sum(2)
    if options.jumps == "one":  # Gillespie's: an edit comes when the integral of all rates has grown by an exponential
        left = (1 - kappa + LAST) * torch.exp(u[0][:, 0].log() / count.sum((1, 2)).clamp(min=1e-30))
        came = (1 + LAST - left < b).nonzero()[:, 0]
        hit = torch.zeros_like(count).flatten(1)
        hit[came, draw(count[came].flatten(1).log(), u[1][came, 0])] = 1
        insert, delete, replace = hit.view_as(count).bool().unbind(2)
        return insert, delete * DELETE + replace * REPLACE, torch.minimum(1 + LAST - left, b)
    if not options.temperature:  # what is likely, each the surest among those beside it, which it may make needless
        best, kind = count.max(2)
        some = (best >= 0.5) & (best >= F.max_pool1d(best[:, None], 5, 1, 2)[:, 0])
        insert, some, delete = some & (kind == INSERT), some & (kind > INSERT), kind == DELETE
    else:  # as likely as an edit is to come in the meantime, and the kind in proportion (appendix C)
        time = ((1 - kappa + LAST) / (1 - b + LAST)).log()[:, None]
        insert, chance = u[0] < -torch.expm1(-time * count[..., 0]), -torch.expm1(-time * change)
        some, delete = u[1] < chance, u[1] * change < chance * count[..., 1]
    room = most - n + (some & delete).sum(1)
    insert &= torch.where(insert, u[0], 2.0).argsort(1).argsort(1) < room[:, None]
    return insert, some * torch.where(delete, DELETE, REPLACE), b


def events_of(step, x, insert, change, tokens, p):
    """The trace of one text's edits, from right to left, so that places are those of the text as it is."""
    for i in (insert | (change > 0)).nonzero()[:, 0].flip(0).tolist():
        if insert[i]:
            yield step, i, int(tokens[i, INSERT]), float(p[i, INSERT]), "insert"
        if change[i] == DELETE:
            yield step, i - 1, int(x[i - 1]), float(p[i, DELETE]), "delete"
        elif change[i]:
            yield step, i - 1, int(tokens[i, REPLACE]), float(p[i, REPLACE])


@evaluating("config.source")
def generate(
    model, prompts, options=SampleOptions(), *, mask_id, eos_id=None, until=None, numbers=None, trace=False, watch=None
):
    """Edit texts until kappa is 1, all in one batch, each as it would be alone; arguments and result are
    mdlm.generate's, but that a text ends where it ends, and that an event of the trace may have a fifth part, "insert"
    (in front of what is at that place) or "delete"; events of a step follow each other from right to left."""
    o, config, V = options, model.config, vocabulary(model.config)
    if long := [len(p) for p in prompts if len(p) > config.seq_len]:
        raise ValueError(f"a text of {long[0]} tokens is longer than the context of {config.seq_len}; shorten it")
    numbers = torch.arange(len(prompts)) if numbers is None else torch.as_tensor(numbers).cpu()
    begun = [first_text(p.cpu(), o, config.source, mask_id, V, int(i)) for p, i in zip(prompts, numbers)]
    texts, ends = [x for x, _, _ in begun], [fixed for _, fixed, _ in begun]
    events, forwards = [[] for _ in prompts], [0] * len(prompts)
    x, fixed, gap = (pad_sequence(v, batch_first=True) for v in zip(*begun or [[torch.zeros(0)] * 3]))
    who, n = torch.arange(len(texts)), torch.tensor([len(t) for t in texts])
    most = torch.tensor([min(len(p) + o.max_new_tokens, config.seq_len) for p in prompts])
    kappa, step = torch.zeros(len(texts), dtype=torch.float64), 0
    grid = mask_rate(torch.arange(o.steps + 1).double() / o.steps, o.schedule)[0].clamp(max=1.0)
    while len(who):
        logits, real = (v.cpu() for v in read(model, x, n, kappa))
        token = F.pad(~fixed, (1, 0))
        may = torch.stack([gap & (n < most)[:, None], token, token], 2)
        count = torch.zeros(may.shape, dtype=torch.float64)
        count[real] = torch.where(may[real], logits[:, 2 * V : 2 * V + 3].double().exp(), 0.0)
        if not count.isfinite().all():
            raise ValueError("no edit can be chosen: the network's logits are not finite numbers")
        u = [uniform(o.seed, numbers[who][:, None], step, i, torch.arange(real.shape[1])) for i in range(4)]
        # in one piece of time the network's counts stand still
        b = ((kappa * TIMES).floor() + 1) / TIMES if o.jumps == "one" else grid[step + 1].expand_as(kappa)
        insert, change, kappa = jumps(count, kappa, b, n, most, u, o)
        tokens, p = torch.zeros(may.shape, dtype=torch.long), -torch.expm1(-count)
        for kind, where in ((INSERT, insert), (REPLACE, change == REPLACE)):
            old = F.pad(x, (1, 0))[where]
            found = token_logits(logits[where[real]], kind, V, mask_id, old).double()
            tokens[where, kind] = new = draw(found, u[2 + (kind > 0)][where], o.temperature)
            p[where, kind] = found.softmax(1).gather(1, new[:, None])[:, 0]
        for j, i in enumerate(who.tolist()):
            forwards[i] += 1
            events[i] += events_of(step, x[j], insert[j], change[j], tokens[j], p[j]) if trace else []
        own = torch.where(change == REPLACE, tokens[..., REPLACE], F.pad(x, (1, 0)))
        kept = torch.stack([real & (change != DELETE), insert], 2).flatten(1)
        pairs = (own, tokens[..., INSERT]), (F.pad(fixed, (1, 0)), 0 * insert), (gap, 0 * insert + 1)
        (x, n), (fixed, _), (gap, _) = (to_front(torch.stack([a.long(), c], 2).flatten(1), kept) for a, c in pairs)
        L = int(n.max())  # with the place in front of all
        x, fixed, gap, n, step = x[:, 1:L], fixed[:, 1:L].bool(), gap[:, :L].bool(), n - 1, step + 1
        for j, i in enumerate(who.tolist()):
            texts[i], ends[i] = x[j, : n[j]], fixed[j, : n[j]]
        if watch is not None:
            watch([text.clone() for text in texts])
        live = kappa < 1
        x, fixed, gap, n, most, who, kappa = (v[live] for v in (x, fixed, gap, n, most, who, kappa))
    ends = [mdlm.end_of_text(text, ~f, mask_id, eos_id) for text, f in zip(texts, ends)]
    tokens = [text[:end].to(p.device) for text, end, p in zip(texts, ends, prompts)]
    return Output(tokens, forwards, events if trace else [], [b[0] for b in begun])


# ---- 5 · likelihood -------------------------------------------------------------------------------------------------


@evaluating("config.source")
def log_likelihood(model, prompts, targets, options=LikelihoodOptions(), *, mask_id, numbers=None):
    """A lower bound of log p(target | prompt) in nats for lists of 1-D int64 tensors, float64 (N,): minus the NELBO.
    Many ways of editing end in one text, so that no chain rule is exact."""
    found = torch.zeros(len(prompts), dtype=torch.float64)
    for i, (prompt, target) in enumerate(zip(prompts, targets)):
        x = torch.cat([prompt, target])[None]
        keys = dict(samples=options.mc_samples, seed=options.seed, first=i if numbers is None else int(numbers[i]))
        asked = torch.arange(x.shape[1], device=x.device)[None] >= len(prompt)
        found[i] = -nelbo(model, x, mask_id=mask_id, maskable=asked, **keys)
    return found


# ---- 6 · tutorial --------------------------------------------------------------------------------------------------


def tutorial(steps=1200, samples=200):
    """Two tiny networks: one writes words of any length, from nothing; one mends words with wrong letters."""
    letters, mask_id, L = "abcdefghijkl_", 12, 9

    def runs(n, seed):  # "cdefg" or, as often, "gfedc": 3 to 9 of 12 letters that follow each other, 98 possible words
        u, v, w = (uniform(seed, i, torch.arange(n))[:, None] for i in range(3))
        long, at = 3 + (7 * u).long(), torch.arange(L)
        return torch.where(at < long, (v * (13 - long)).long() + torch.where(w < 0.5, at, long - 1 - at), BLANK)

    def show(ids, blank=""):
        return "".join(letters[i] if i >= 0 else blank for i in ids)

    def ids(*words):
        return [torch.tensor([letters.index(c) for c in word], dtype=torch.int64) for word in words]

    def write(model, *words, **options):
        return generate(model, ids(*words), SampleOptions(9, **options), mask_id=mask_id)

    words = {show(x) for x in runs(9000, 3)}
    print(f"1. Data: {', '.join(show(x) for x in runs(4, 1))}, ...: {len(words)} words, of 3 to 9 letters.")
    print("\n2. Two words with blanks (.), one below the other: what differs is an edit; at time t some are made:")
    a, b = (x[None] for x in ids("bdekfa", "bcdefg"))
    a, b = (z[0, -7:] for z in align(a, torch.tensor([6]), b, torch.tensor([6]), torch.zeros(12, 1)))
    for name, z in (("z_0", a), ("z_t", torch.where(torch.arange(7) < 4, b, a)), ("z_1", b)):
        print(f"    {name}  {show(z, '.')}" + (f", and x_t is {show(z)}" if name == "z_t" else ""))
    models = []
    for source, what in (("nothing", "words from nothing"), ("typos", "words with typos")):
        torch.manual_seed(0)
        model = Transformer(Config(vocab_size=rows(13), seq_len=16, n_layer=2, n_head=2, n_embd=64, source=source))
        print(f"\n{3 + len(models)}. Training: {model.num_params():,} parameters learn what is outstanding, of {what}.")
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        options = LossOptions(schedule="linear", objective="counts", errors=0.3)
        for i in range(steps + 1):
            optimizer.param_groups[0]["lr"] = 3e-3 * min(1, i / 50, 2 * (steps - i) / steps + 1e-3)
            value = loss(model, runs(64, noise.fold(1, i)), options, mask_id=mask_id, seed=noise.fold(2, i))
            optimizer.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if i % (steps // 2) == 0:
                bound = nelbo(model, runs(256, 99), mask_id=mask_id, samples=4)
                print(f"    step {i:4}   NELBO {bound.mean():6.3f} +- {bound.std() / 16:.3f} nats a word")
        models.append(model)

    print("\n5. Sampling: one edit after the other opens places, and closes them; nobody has said how long a word is.")
    out, seen = generate(models[0], ids(""), SampleOptions(9, seed=1), mask_id=mask_id, trace=True), [""]
    for _, i, token, _, *what in out.trace[0]:
        x = seen[-1]
        seen.append(x[:i] + ("" if what == ["delete"] else letters[token]) + x[i + (what != ["insert"]) :])
    print("    " + " -> ".join(seen)[3:])
    made = [show(x) for x in write(models[0], *[""] * samples).tokens]
    print(f"    Of {samples} words {sum(x in words for x in made)} are right, of {len(set(map(len, made)))} lengths.")
    print("\n6. Mending: here all may change, and where nothing is wrong nothing should.")
    wrong = ["bcdfgh", "hgffed", "abkde", "lkjih"]
    mended = write(models[1], *wrong, temperature=0.0).tokens
    print("    " + ", ".join(f"{x} -> {show(y)}" for x, y in zip(wrong, mended)))
    print("\n7. Masked diffusion undoes nothing; LLaDA2.1 edits tokens where they stand; LLaDA2.2 deletes and inserts")
    print("    as well, within a block; here both are the process itself, which has a bound: docs/editing.md")
    print("    Next: python train.py config/pydocs_editflow.py")


if __name__ == "__main__":
    tutorial()
