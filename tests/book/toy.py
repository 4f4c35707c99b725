"""The toy that can be enumerated: two letters and a mask, strings of four; and small networks beside it.

All 16 strings, all 81 canvases and all 24 orders can be listed, so that bounds, likelihoods and samplers are compared
with exact numbers instead of plausible ones.
"""

import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F

import mdlm
from model import Config, KVCache, Transformer
from nanodlm import likelihood, noise

torch.set_num_threads(1)
SCHEDULES = ["linear", "poly2", "poly3", "cosine", "cosine_mdlm"]
ORDERS = ["confidence", "margin", "entropy", "random"]

# ---- strings, and distributions over them ----------------------------------------------------------------------------

L, MASK, ABSENT = 4, 2, 3


def listing(digits, length=L):
    return torch.tensor(list(itertools.product(range(digits), repeat=length)))


STRINGS, CANVASES = listing(2), listing(3)  # (16, L), (81, L)
SUBSETS, SIZES = STRINGS.bool(), STRINGS.sum(1)  # every set of positions (16, L), and how many they are


def ids(*tokens):
    return torch.tensor(tokens, dtype=torch.int64)


def generator(seed):
    return torch.Generator().manual_seed(seed)


class Net:
    """What samplers ask of a network, for one that is a function of ids: its hidden states are the logits."""

    config = Config(vocab_size=3)

    def hidden(self, *args, **keys):
        return self(*args, **keys)

    def head(self, x):
        return x

    def parameters(self):
        return iter([torch.zeros(0, dtype=torch.float64)])


class Toy(Net):
    """A denoiser given as a table: canvas -> logits (L, 3). Padding and missing positions read as a fourth digit, so
    that a shorter canvas has conditionals of its own. The mask's logit is large, so that forgetting it shows."""

    def __init__(self, table):
        self.table = table.double()  # (4^L, L, 3)
        self.table[..., MASK] = 3.0

    def __call__(self, ids, mask=None, positions=None, cache=None, rows=None):
        ids = ids if mask is None else torch.where(mask, ids, ABSENT)
        digits = F.pad(ids, (0, L - ids.shape[1]), value=ABSENT)
        logits = self.table[(digits * 4 ** torch.arange(L)).sum(1), : ids.shape[1]]
        return logits if rows is None else logits.flatten(0, 1)[rows.flatten()]


def exact_model(p):
    """The true conditionals p(x_i | revealed tokens) of a distribution p over STRINGS."""
    table = torch.zeros(4**L, L, 3, dtype=torch.float64)
    for digits in listing(4):
        agree = ((STRINGS == digits) | (digits >= MASK)).all(1)
        for i, v in itertools.product(range(L), range(2)):
            table[(digits * 4 ** torch.arange(L)).sum(), i, v] = p[agree & (STRINGS[:, i] == v)].sum().log()
    return Toy(table)


DATA = (1.2 * torch.randn(16, generator=generator(3), dtype=torch.float64)).softmax(0)
ENTROPY = -(DATA * DATA.log()).sum().item()
EXACT = exact_model(DATA)
ARBITRARY = Toy(1.5 * torch.randn(4**L, L, 3, generator=generator(4)))  # no joint distribution has these conditionals


class Seer(Net):
    """A toy in blocks, that knows of a canvas what the mask lets each query see: the rest are masks to it. So it reads
    through the very mask, positions and cache that it is handed; in a real KVCache it keeps ids as keys."""

    def __init__(self, toy, block_size):
        self.table = toy.table
        # With a window, the mask of a pass is a plain bool tensor. The network here has no other use for it.
        shape = dict(n_layer=1, n_head=1, n_embd=1, position="none", window=1)
        self.config = Config(vocab_size=3, seq_len=L, block_size=block_size, **shape)

    def cache(self, batch, size):
        return KVCache(self.config, batch, size, dtype=torch.float64)

    def __call__(self, ids, mask, positions=None, cache=None, rows=None):
        mask = mask[1] if isinstance(mask, tuple) else mask  # the last layer's: whose logits are asked for
        positions = torch.arange(ids.shape[1])[None] if positions is None else positions
        if cache is None:
            place, known = positions[:, None], ids[:, None]  # (B, 1, S)
        else:
            k, _ = cache.write(0, cache.reserve(positions, None), *[ids[:, None, :, None].double()] * 2)
            place, known = torch.arange(cache.size)[None, None, cache.visible], k[..., 0].long()
            mask = mask & cache.filled[:, None, cache.visible]
        mask = torch.ones(1, ids.shape[1], ids.shape[1]).bool() if mask is None else mask
        shape = (len(ids), *mask.shape[1:])
        known, place = torch.where(mask, known, MASK).expand(shape), torch.where(mask, place, L).expand(shape)
        canvas = torch.full((*shape[:2], L + 1), MASK).scatter_(2, place, known)[..., :L]
        code = (canvas * 4 ** torch.arange(L)).sum(2)
        return self.table[code, positions[:, : shape[1]].clamp(min=0)].flatten(0, 1)[rows]


# ---- exact numbers ---------------------------------------------------------------------------------------------------


def last(model, mask_id):
    """The model, to one who takes the last id for the mask: that id's logit is lost, and the mask's is its own."""

    def logits(canvases):
        out = model(canvases).clone()
        out[..., -1] = out[..., mask_id]
        return out

    return logits


def weight_at(t, schedule="linear"):
    """w(t) = -alpha'(t) / (1 - alpha(t))."""
    rate, slope = mdlm.mask_rate(t, schedule)
    return slope / rate


def subset_ce(model, x, mask_too=False):
    """Summed cross entropy of the hidden tokens, for every subset of hidden positions: (N, 16). With mask_too, the mask
    is one of the alternatives, as in two published evaluations."""
    x = x.repeat_interleave(16, 0)
    logits = model(torch.where(SUBSETS.repeat(len(x) // 16, 1), MASK, x))
    nll = -logits[..., : 3 if mask_too else MASK].log_softmax(-1).gather(2, x[..., None])[..., 0]
    return torch.where(SUBSETS, nll.view(-1, 16, L), 0.0).sum(2)


def exact_nelbo(model, x, maskable=None, schedule="linear", points=64):
    """E_t E_q[w(t) sum of hidden -log p], t by Gauss-Legendre quadrature, masks by enumeration: (N,)."""
    maskable = torch.ones_like(x).bool() if maskable is None else maskable
    inside, n = (SUBSETS <= maskable[:, None]).all(2), maskable.sum(1, keepdim=True)
    node, weight = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(points))
    t = ((node + 1) / 2)[:, None, None]
    rate = mdlm.mask_rate(t, schedule)[0]
    chance = rate**SIZES * (1 - rate) ** (n - SIZES).clamp(min=0)  # (points, N, 16)
    per_subset = (weight[:, None, None] / 2 * weight_at(t, schedule) * chance).sum(0)
    return (per_subset * inside * subset_ce(model, x)).sum(1)


def chain_rule(model, x, order):
    """log p(x) when positions are revealed in the given order, one at a time: (N,)."""
    total, canvas = 0.0, torch.full_like(x, MASK)
    for i in order:
        total = total + model(canvas)[:, i, :MASK].log_softmax(-1).gather(1, x[:, i : i + 1])[:, 0]
        canvas[:, i] = x[:, i]
    return total


def blocks_of(length, size):
    return [range(a, min(a + size, length)) for a in range(0, length, size)]


def law(model, o, size=L, choose=None):
    """What a sampler that reveals its share of each block per step produces on the toy, by enumeration of every path:
    (16,). The surest positions go first, or every set of as many; or choose(sure, hidden) -> the positions (fast
    samplers' rules), of certainties and hidden places (1, L)."""
    canvases, blocks = {(MASK,) * L: 1.0}, blocks_of(L, size)
    for b, block in enumerate(blocks):
        steps = noise.shares(o.steps, torch.tensor([len(x) for x in blocks]))[b].item() if o.steps else len(block)
        for step in range(steps if o.quota == "steps" else len(block)):
            following = {}
            for canvas, weight in canvases.items():
                where = [i for i in block if canvas[i] == MASK]
                if not where:
                    following[canvas] = following.get(canvas, 0.0) + weight
                    continue
                logits = model(torch.tensor([canvas]))[0, :, :MASK]
                p, count = logits.softmax(-1), int(noise.share(len(block), step, steps, o.schedule))
                sets = list(itertools.combinations(where, count))
                if o.order != "random":
                    sure = mdlm.certainty(logits, o.order)
                    sets = [sorted(where, key=lambda i: -sure[i].item())[:count]]
                    if choose is not None:
                        sets = [choose(sure[None], torch.tensor([canvas]) == MASK, torch.tensor([count]))]
                for chosen, tokens in ((c, t) for c in sets for t in itertools.product(range(2), repeat=len(c))):
                    new, chance = list(canvas), weight / len(sets)
                    for i, v in zip(chosen, tokens):
                        new[i], chance = v, chance * p[i, v].item()
                    following[tuple(new)] = following.get(tuple(new), 0.0) + chance
            canvases = following
    return torch.tensor([canvases.get(tuple(s), 0.0) for s in STRINGS.tolist()], dtype=torch.float64)


def ancestral_law(model, o, rates):
    """The law of ancestral sampling after all its steps, over STRINGS: (16,); rates(t, s) are the probabilities that
    from time t to s a hidden token is revealed, and a revealed one hidden again."""
    hidden, p = CANVASES == MASK, model(CANVASES)[..., :MASK].softmax(-1)  # (81, L, 2)
    now = torch.zeros(len(CANVASES), dtype=torch.float64)
    now[-1] = 1.0  # all masks
    for step in range(o.steps):
        t, s = (torch.tensor([1 - (step + i) / o.steps], dtype=torch.float64) for i in (0, 1))
        reveal, hide = rates(t, s)
        change = torch.cat([reveal * p, (1 - reveal).expand(81, L, 1)], -1)
        stay = (1 - hide) * F.one_hot(CANVASES, 3) + hide * torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
        each = torch.where(hidden[..., None], change, stay)  # (81, L, 3): what becomes of each position
        now = now @ torch.stack([each[:, i, CANVASES[:, i]] for i in range(L)]).prod(0)
    return now[~hidden.any(1)]


def string_counts(tokens):
    """How often each string is among these: (16,)."""
    return torch.bincount((torch.stack(tokens) * 2 ** torch.arange(L - 1, -1, -1)).sum(1), minlength=16)


def distance(p, q):
    return (p - q).abs().sum().item() / 2


def chi_square(counts, p=None):
    """In standard deviations above its expectation; what cannot happen must not; without p, all are as likely."""
    p = torch.full((len(counts),), 1 / len(counts)) if p is None else p
    assert (counts[p == 0] == 0).all()
    counts, expected, dof = counts[p > 0], (p * counts.sum())[p > 0], int((p > 0).sum()) - 1
    return (((counts - expected) ** 2 / expected).sum().item() - dof) / math.sqrt(2 * dof)


def assert_mean(values, exact, errors=4.0):
    mean, error = likelihood.mean_and_error(torch.as_tensor(values))
    assert abs(mean - exact) < errors * error + 1e-12, f"{mean} ± {error} is not {exact}"
    assert error < 0.05 * abs(exact), f"error {error} is too large to see anything"


# ---- small networks --------------------------------------------------------------------------------------------------

M, VOCAB = 5, 12  # the mask id is neither first nor last


def transformer(seed=0, scale=0.4, dtype=torch.float64, **keys):
    """A random Transformer with opinions: at the usual initialisation all tokens would be equally likely."""
    torch.manual_seed(seed)
    net = Transformer(Config(**dict(vocab_size=VOCAB, seq_len=16, n_layer=2, n_head=2, n_embd=16) | keys))
    with torch.no_grad():
        for p in net.parameters():
            if p.dim() == 2:
                p.normal_(0, scale)
    return net.to(dtype).eval()


PLAIN = transformer(0, 0.35, seq_len=64, n_embd=32)
CAUSAL = transformer(1, 0.35, seq_len=64, n_embd=32, causal=True)
BLOCKS = transformer(0, 0.3, seq_len=12, block_size=4)
NETS = {
    "plain": {},
    "shift": dict(shift=True),
    "gqa": dict(n_head=4, n_kv_head=2),
    "learned": dict(position="learned"),
    "local": dict(window=2, global_every=2, local_rope_theta=100.0),
    "all of it": dict(shift=True, n_head=4, n_kv_head=1, position="learned", window=3, global_every=2),
}
NETS = {name: transformer(**keys) for name, keys in NETS.items()}


OBJECTIVES = [
    mdlm.LossOptions(objective=objective, corruption=corruption, complementary=complementary)
    for objective, corruption, complementary in itertools.product(
        ("nelbo", "masked_ce"), ("rate", "count"), (False, True)
    )
]


def assert_parts_add_up(loss, net, x, maskable, options):
    """With one denominator, losses and gradients of micro-batches add up to those of one large batch."""

    def gradients(cuts):
        net.zero_grad()
        total = 0.0
        for a, b in zip(cuts, cuts[1:]):
            where = dict(maskable=maskable[a:b], shard=(a, len(x)), denominator=maskable.sum())
            value = loss(net, x[a:b], options, mask_id=M, seed=3, **where)
            value.backward()
            total += value.item()
        return total, torch.cat([p.grad.flatten() for p in net.parameters()])

    (whole, expected), (parts, gradient) = gradients([0, len(x)]), gradients([0, 1, 4, len(x)])
    assert abs(whole - loss(net, x, options, maskable=maskable, mask_id=M, seed=3).item()) < 1e-12
    assert expected.norm() > 0.1 and (gradient - expected).norm() < 1e-6 * expected.norm() and abs(parts - whole) < 1e-6


def texts(n, length, seed=0):
    return torch.randint(6, VOCAB, (n, length), generator=generator(seed))


class Spy(Net):
    """A network that keeps the ids and positions it was shown."""

    def __init__(self, model):
        self.model, self.seen, self.places = model, [], []
        self.config, self.parameters = model.config, model.parameters
        self.cache = getattr(model, "cache", None)

    def __call__(self, ids, mask=None, positions=None, cache=None, rows=None):
        self.seen.append(ids.clone())
        self.places.append(positions)
        cache = {} if cache is None else dict(cache=cache)
        return self.model(ids, mask=mask, positions=positions, rows=rows, **cache)


class Script(Net):
    """Wants tokens[i] at position i, with probability sure[i], whatever it sees; the rest is shared evenly."""

    def __init__(self, tokens, sure, block_size=0):
        p = torch.tensor(sure, dtype=torch.float64)[:, None]
        logits = ((1 - p) / (VOCAB - 2)).log().repeat(1, VOCAB)  # the mask has no share
        self.logits = logits.scatter(1, torch.tensor(tokens)[:, None], p.log())
        self.config = Config(VOCAB, 64, block_size, n_layer=1, n_head=1, n_embd=2)

    def cache(self, batch, size):
        return KVCache(self.config, batch, size)

    def __call__(self, ids, mask=None, positions=None, cache=None, rows=None):
        positions = torch.arange(ids.shape[1]).expand_as(ids) if positions is None else positions
        return self.logits[positions.clamp(0, len(self.logits) - 1)].flatten(0, 1)[rows.flatten()]
