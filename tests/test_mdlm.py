"""Masked diffusion and its autoregressive baseline, proved on toys that can be enumerated.

The toy: two letters and a mask, strings of four. All 16 strings, all 81 canvases and all 24 orders can be listed, so
that bounds, likelihoods and samplers are compared with exact numbers instead of plausible ones.
Papers: MDLM arXiv 2406.07524, MD4 2406.04329, LLaDA 2502.09992, ReMDM 2503.00307, Fast-dLLM 2505.22618,
EB-Sampler 2505.24857, DUEL 2603.01367.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ar
import mdlm
from mdlm import LossOptions
from model import Config, Transformer
from nanodlm import choice, decode, fast_mdlm, likelihood, noise
from nanodlm.decode import SampleOptions
from nanodlm.likelihood import LikelihoodOptions

torch.set_num_threads(1)
SCHEDULES = ["linear", "poly2", "poly3", "cosine", "cosine_mdlm"]

# ------------------------------------------------------------------------------------------------------------------
# the toy


L, MASK, ABSENT = 4, 2, 3


def listing(digits, length=L):
    return torch.tensor(list(itertools.product(range(digits), repeat=length)))


STRINGS, CANVASES = listing(2), listing(3)  # (16, L), (81, L)
SUBSETS = STRINGS.bool()  # every set of positions, (16, L)


class Net:
    """What samplers ask of a network, for one that is a function of ids: its hidden states are the logits."""

    config = Config(vocab_size=3)

    def hidden(self, ids, mask=None, positions=None, cache=None, rows=None):
        return self(ids, mask=mask, rows=rows)

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

    def __call__(self, ids, mask=None, positions=None, rows=None):
        ids = ids if mask is None else torch.where(mask, ids, ABSENT)
        digits = torch.nn.functional.pad(ids, (0, L - ids.shape[1]), value=ABSENT)
        logits = self.table[(digits * 4 ** torch.arange(L)).sum(1), : ids.shape[1]]
        return logits if rows is None else logits.flatten(0, 1)[rows.flatten()]


def exact_model(p):
    """The true conditionals p(x_i | revealed tokens) of a distribution p over STRINGS."""
    table = torch.zeros(4**L, L, 3, dtype=torch.float64)
    for digits in listing(4).tolist():
        digits = torch.tensor(digits)
        agree = ((STRINGS == digits) | (digits >= MASK)).all(1)
        code = (digits * 4 ** torch.arange(L)).sum()
        for i, v in itertools.product(range(L), range(2)):
            table[code, i, v] = (p * (agree & (STRINGS[:, i] == v))).sum().log()
    return Toy(table)


def nelbo_weight(t, schedule="linear"):
    """w(t) = -alpha'(t) / (1 - alpha(t))."""
    rate, slope = mdlm.mask_rate(t, schedule)
    return slope / rate


def generator(seed):
    return torch.Generator().manual_seed(seed)


DATA = (1.2 * torch.randn(16, generator=generator(3), dtype=torch.float64)).softmax(0)
ENTROPY = -(DATA * DATA.log()).sum().item()
EXACT = exact_model(DATA)
ARBITRARY = Toy(1.5 * torch.randn(4**L, L, 3, generator=generator(4)))  # no joint distribution has these conditionals


def subset_ce(model, x):
    """Summed cross entropy of the hidden tokens, for every subset of hidden positions: (N, 16)."""
    n = len(x)
    x0, hidden = x.repeat_interleave(len(SUBSETS), 0), SUBSETS.repeat(n, 1)
    nll = mdlm.hidden_nll(model, torch.where(hidden, MASK, x0), x0, hidden, MASK)
    return torch.zeros(x0.shape, dtype=torch.float64).masked_scatter_(hidden, nll).sum(1).view(n, -1)


def within(maskable):
    """Which subsets lie inside each row's maskable tokens, (N, 16), and the sizes of subsets and rows."""
    return (SUBSETS[None] <= maskable[:, None]).all(2), SUBSETS.sum(1), maskable.sum(1, keepdim=True)


def exact_nelbo(model, x, maskable=None, schedule="linear", points=64):
    """E_t E_q[w(t) sum of hidden -log p], t by Gauss-Legendre quadrature, masks by enumeration: (N,)."""
    maskable = torch.ones_like(x).bool() if maskable is None else maskable
    inside, k, n = within(maskable)
    node, weight = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(points))
    t = ((node + 1) / 2)[:, None, None]
    rate = mdlm.mask_rate(t, schedule)[0]
    chance = rate**k * (1 - rate) ** (n - k).clamp(min=0)  # (points, N, 16)
    per_subset = (weight[:, None, None] / 2 * nelbo_weight(t, schedule) * chance).sum(0)
    return (per_subset * inside * subset_ce(model, x)).sum(1)


def chain_rule(model, x, order):
    """log p(x) when positions are revealed in the given order, one at a time: (N,)."""
    total, canvas = 0.0, torch.full_like(x, MASK)
    for i in order:
        total = total + model(canvas)[:, i, :MASK].log_softmax(-1).gather(1, x[:, i : i + 1])[:, 0]
        canvas[:, i] = x[:, i]
    return total


def reveal_distribution(model, o):
    """What a sampler's own choice functions produce on the toy, by enumeration of every path: (16,)."""
    canvases = {(MASK,) * L: 1.0}
    steps = o.steps or L
    for step in range(L):
        following = {}
        for canvas, weight in canvases.items():
            x = torch.tensor([canvas])
            hidden = x == MASK
            logits = model(x, rows=hidden)
            logits[:, MASK] = -torch.inf
            p = logits.softmax(-1)
            count = choice.quota(
                torch.tensor([L]), hidden.sum(1), torch.tensor([step]), torch.tensor([steps]), o.schedule
            )
            where = hidden[0].nonzero()[:, 0].tolist()
            if o.order == "random":  # every set of `count` positions, equally likely
                sets = list(itertools.combinations(where, min(int(count), len(where))))
            else:
                score = decode.scatter(mdlm.certainty(logits, o.order), hidden)
                sets = [choice.choose_positions(score, hidden, o, count)[0].nonzero()[:, 0].tolist()]
            for chosen in sets:
                for tokens in itertools.product(range(2), repeat=len(chosen)):
                    new, chance = list(canvas), weight / len(sets)
                    for i, v in zip(chosen, tokens):
                        new[i], chance = v, chance * p[where.index(i), v].item()
                    following[tuple(new)] = following.get(tuple(new), 0.0) + chance
        canvases = following
    return torch.tensor([canvases.get(tuple(s), 0.0) for s in STRINGS.tolist()], dtype=torch.float64)


def ancestral_distribution(model, o):
    """The law of ancestral sampling (with or without remasking) after all its steps, over CANVASES: (81,)."""
    hidden = CANVASES == MASK
    p = model(CANVASES)[..., :MASK].softmax(-1)  # (81, L, 2)
    law = torch.zeros(len(CANVASES), dtype=torch.float64)
    law[-1] = 1.0  # all masks
    for step in range(o.steps):
        t, s = (torch.tensor([1 - (step + i) / o.steps], dtype=torch.float64) for i in (0, 1))
        reveal, hide = choice.ancestral_rates(t, s, o)
        stay = torch.nn.functional.one_hot(CANVASES, 3).double()
        change = torch.cat([reveal * p, (1 - reveal).expand(81, L, 1)], -1)
        stay = (1 - hide) * stay + hide * torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
        each = torch.where(hidden[..., None], change, stay)  # (81, L, 3): what becomes of each position
        law = law @ torch.stack([each[:, i, CANVASES[:, i]] for i in range(L)]).prod(0)
    return law


IS_STRING = (CANVASES != MASK).all(1)


def distance(p, q):
    return (p - q).abs().sum().item() / 2


def sampled_counts(model, options, n=20000):
    """How often generate() gives each string on the toy: (16,)."""
    empty = torch.empty(0, dtype=torch.int64)
    tokens = torch.stack(fast_mdlm.generate(model, [empty] * n, options, mask_id=MASK).tokens)
    assert tokens.shape == (n, L) and (tokens != MASK).all()
    return torch.bincount((tokens * 2 ** torch.arange(L - 1, -1, -1)).sum(1), minlength=16)


def chi_square(counts, p):
    """In standard deviations above its expectation."""
    expected = p * counts.sum()
    dof = len(p) - 1
    return (((counts - expected) ** 2 / expected).sum().item() - dof) / math.sqrt(2 * dof)


def assert_mean(values, exact, errors=4.0):
    mean, error = likelihood.mean_and_error(torch.as_tensor(values))
    assert abs(mean - exact) < errors * error + 1e-12, f"{mean} ± {error} is not {exact}"
    assert error < 0.05 * abs(exact), f"error {error} is too large to see anything"


class Spy(Net):
    """A model that keeps what it was shown and what it answered."""

    def __init__(self, model):
        self.model, self.seen, self.calls = model, [], 0
        self.config = getattr(model, "config", Net.config)

    def __call__(self, ids, mask=None, positions=None, rows=None):
        self.calls += 1
        self.seen.append(ids.clone())
        return self.model(ids, mask=mask, rows=rows)


def random_rows(n, seed=0, empty=True):
    """Rows of the toy and which of their tokens are maskable; some rows have no maskable token at all."""
    x = torch.randint(0, 2, (n, L), generator=generator(seed))
    maskable = torch.rand(n, L, generator=generator(seed + 1)) < 0.7
    maskable[::8] = not empty
    return x, maskable


# ------------------------------------------------------------------------------------------------------------------
# the small network


M, VOCAB = 5, 12  # the mask id is neither first nor last


def transformer(seed=0, vocab=VOCAB, causal=False):
    """A random Transformer with opinions: at the usual initialisation all tokens would be equally likely."""
    torch.manual_seed(seed)
    net = Transformer(Config(vocab_size=vocab, seq_len=64, n_layer=2, n_head=2, n_embd=32, causal=causal))
    with torch.no_grad():
        for p in net.parameters():
            if p.dim() == 2:
                p.normal_(0, 0.35)
    return net.double().eval()


NET = transformer()


def ids(*tokens):
    return torch.tensor(tokens, dtype=torch.int64)


class Script(Net):
    """Wants tokens[i] at position i, with probability sure[i] whatever the canvas; the rest is shared evenly."""

    config = Config(vocab_size=VOCAB)

    def __init__(self, tokens, sure):
        p = torch.tensor(sure, dtype=torch.float64)[:, None]
        logits = ((1 - p) / (VOCAB - 2)).log().repeat(1, VOCAB)  # the mask has no share
        self.logits = logits.scatter(1, torch.tensor(tokens)[:, None], p.log())

    def __call__(self, ids, mask=None, positions=None, rows=None):
        return self.logits[: ids.shape[1]].repeat(len(ids), 1)[rows.flatten()]


RAGGED = [ids(1, 2, 3), ids(), ids(4, 6, 7, 8, 9, 10, 11), ids(M, 3, M, M, 8, 2, M, 1), ids(0, M, 7)]
QUOTAS = {
    "steps": dict(steps=4),
    "one per step": {},
    "cosine": dict(steps=4, schedule="cosine"),
    "threshold": dict(quota="threshold", threshold=0.5),
    "factor": dict(quota="factor", factor=1.2),
    "ancestral": dict(quota="ancestral", steps=5),
    "remask": dict(quota="ancestral", steps=7, remask=0.3),
    "blocks": dict(block_size=3, steps=7),
    "guided": dict(steps=4, cfg_scale=1.5),
    "filtered": dict(steps=4, top_k=5, top_p=0.9, temperature=0.7, suppress=(3, 4)),
    "greedy": dict(steps=4, temperature=0),
    "entropy_bound": dict(quota="entropy_bound", entropy_bound=1.5, order="entropy"),
    "guided blocks": dict(quota="threshold", threshold=0.6, block_size=2, cfg_scale=0.5),
}
SETTINGS = {
    f"{name} {order}": SampleOptions(6, **{"order": order, **keys})
    for name, keys in QUOTAS.items()
    for order in ("confidence", "margin", "entropy", "random")
    if not (order == "random" and keys.get("quota") in ("threshold", "factor"))
    and not (name == "entropy_bound" and order != "entropy")
}


def canvas_of(prompt, options, mask_id=M):
    return torch.cat([prompt, torch.full((options.max_new_tokens,), mask_id)])


def replay(canvas, events):
    canvas = canvas.clone()
    for _, position, token, _ in events:
        canvas[position] = token
    return canvas


# ------------------------------------------------------------------------------------------------------------------
# random numbers


def test_uniform_is_splitmix64_over_the_counters():
    """Pinned by integers of unlimited size: any change of the stream would change every published number."""

    def reference(*counters):
        state, m = 0, 2**64
        for c in counters:
            z = (state - 0x9E3779B97F4A7C15 + c) % m
            z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % m
            z = (z ^ z >> 27) * 0x94D049BB133111EB % m
            state = z ^ z >> 31
        return ((state >> 12) + 0.5) * 2.0**-52

    for counters in [(0,), (1, 2, 3), (-5, 7), (2**52 - 1, 0, 10**9, 4)]:
        assert float(noise.uniform(*counters)) == reference(*counters)
    x = noise.uniform(9, torch.arange(4)[:, None], 3, torch.arange(5))
    assert x.dtype == torch.float64 and x.shape == (4, 5) and x[2, 4].item() == reference(9, 2, 3, 4)


def test_uniform_numbers_are_uniform_and_independent():
    """Each counter alone gives even frequencies, down to the low bits, and neighbours do not correlate."""
    i, n = torch.arange(100_000), 100_000
    for counters in [(i,), (i, 1, 2), (7, i, 2), (7, 1, i)]:
        u = noise.uniform(*counters)
        assert 0 < u.min() and u.max() < 1
        for part in (u, u * 2**16 % 1, u * 2**40 % 1):
            counts = torch.bincount((part * 100).long(), minlength=100)
            assert abs(chi_square(counts, torch.full((100,), 0.01))) < 4
        for lag in (1, 2, 16):
            assert abs(torch.corrcoef(torch.stack([u[:-lag], u[lag:]]))[0, 1]) < 4 / n**0.5
    grid = noise.uniform(3, torch.arange(300)[:, None], torch.arange(300))
    for a, b in [(grid[:-1], grid[1:]), (grid[:, :-1], grid[:, 1:]), (grid, grid.T + 0 * grid)]:
        off = a.flatten(), b.flatten()
        keep = off[0] != off[1]  # the diagonal of the transpose is itself
        assert abs(torch.corrcoef(torch.stack([o[keep] for o in off]))[0, 1]) < 4 / 300


def test_uniform_depends_on_every_counter_and_on_their_order():
    base = noise.uniform(1, 2, 3)
    assert len({float(noise.uniform(*c)) for c in [(1, 2, 3), (0, 2, 3), (1, 0, 3), (1, 2, 0), (3, 2, 1), (1, 2)]}) == 6
    assert base == noise.uniform(1, torch.tensor(2), torch.tensor([3]))


def test_a_row_of_a_batch_has_the_random_numbers_of_the_row_alone():
    batch = noise.uniform(5, torch.arange(6)[:, None], torch.arange(9))
    for row in range(6):
        assert torch.equal(batch[row, :4], noise.uniform(5, row, torch.arange(4)))


def test_fold_makes_unrelated_seeds():
    seeds = [noise.fold(seed, step) for seed in range(50) for step in range(50)]
    assert len(set(seeds)) == 2500 and all(isinstance(s, int) and 0 <= s < 2**52 for s in seeds)


# ------------------------------------------------------------------------------------------------------------------
# schedules and corruption


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_everything_is_clean_at_0_and_hidden_at_1_and_the_slope_is_the_derivative(schedule):
    """alpha(0) = 1, alpha(1) = 0, w(t) = -alpha'(t) / (1 - alpha(t))."""
    ends = mdlm.mask_rate(torch.tensor([0.0, 1.0], dtype=torch.float64), schedule)[0]
    assert torch.allclose(ends, torch.tensor([0.0, 1.0]).double(), atol=1e-15)
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64, requires_grad=True)
    rate, slope = mdlm.mask_rate(t, schedule)
    (derivative,) = torch.autograd.grad(rate.sum(), t)
    assert torch.allclose(slope, derivative, rtol=1e-12) and (derivative > 0).all()
    assert torch.allclose(nelbo_weight(t, schedule), derivative / rate, rtol=1e-12)


def test_the_schedules_are_the_papers():
    """w = 1/t, k/t, (pi/2) tan(pi/2 (1-t)) (MD4), (pi/2) sin(pi t/2) / (1 - cos(pi t/2)) (MDLM)."""
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    h = math.pi / 2
    weights = [1 / t, 2 / t, 3 / t, h * torch.tan(h * (1 - t)), h * torch.sin(h * t) / (1 - torch.cos(h * t))]
    for schedule, weight in zip(SCHEDULES, weights):
        assert torch.allclose(nelbo_weight(t, schedule), weight, rtol=1e-12)
    for unknown in ("linera", "poly", "poly-1", "poly0", ""):
        with pytest.raises(ValueError, match="linear, poly2"):
            mdlm.mask_rate(t, unknown)


def test_low_discrepancy_puts_one_time_in_each_stratum():
    """MDLM's low-discrepancy sampler, jittered and in random order: every batch index sees all times over the seeds."""
    t = torch.stack([noise.stratified(seed, 16) for seed in range(800)])  # (seeds, 16)
    assert torch.equal((t.sort(1).values * 16).long(), torch.arange(16).expand(800, 16))
    for i in range(16):
        counts = torch.bincount((t[:, i] * 16).long(), minlength=16)
        assert abs(chi_square(counts, torch.full((16,), 1 / 16))) < 4
    jitter = (t * 16 % 1).flatten()
    assert abs(chi_square(torch.bincount((jitter * 20).long(), minlength=20), torch.full((20,), 0.05))) < 4
    independent = torch.stack([noise.stratified(seed, 16, low_discrepancy=False) for seed in range(200)])
    assert not torch.equal((independent.sort(1).values * 16).long(), torch.arange(16).expand(200, 16))
    assert abs(independent.mean() - 0.5) < 4 / (12 * 3200) ** 0.5


def test_hiding_by_count_hides_every_subset_equally_often_and_by_rate_each_token_independently():
    """q(z_t | x): exactly k of the maskable tokens, uniformly; or each one with probability 1 - alpha."""
    n = 40_000
    u = noise.uniform(0, torch.arange(n)[:, None], torch.arange(5))
    maskable = torch.tensor([True, True, False, True, True]).expand(n, 5)
    number = 2 ** torch.arange(5)
    hidden = mdlm.hide_by_count(torch.full((n,), 2), u, maskable)
    assert (hidden.sum(1) == 2).all() and not hidden[:, 2].any()
    counts = torch.bincount((hidden * number).sum(1), minlength=32)
    assert abs(chi_square(counts[counts > 0], torch.full((6,), 1 / 6))) < 4
    hidden = (u < 0.3) & maskable
    counts = torch.bincount((hidden[:, [0, 1, 3, 4]] * number[:4]).sum(1), minlength=16)
    k = SUBSETS.sum(1)
    assert abs(chi_square(counts, 0.3**k * 0.7 ** (4 - k))) < 4 and not hidden[:, 2].any()


def test_hiding_by_count_never_hides_what_is_not_maskable():
    """A row without maskable tokens, or with fewer than asked for, keeps its prompt and its padding."""
    maskable = torch.tensor([[True, True, False, False], [False] * 4])
    hidden = mdlm.hide_by_count(torch.tensor([3, 1]), noise.uniform(0, torch.arange(8)).view(2, 4), maskable)
    assert torch.equal(hidden, maskable)


# ------------------------------------------------------------------------------------------------------------------
# the bound


def test_the_mask_token_is_never_predicted():
    """SUBS, MDLM section 3.2.3: probabilities over the real tokens sum to one, however likely masks look."""
    x = torch.tensor([[0, MASK, 1, MASK]])
    hidden = x == MASK
    p = sum(mdlm.hidden_nll(ARBITRARY, x, torch.full_like(x, v), hidden, MASK).neg().exp() for v in range(2))
    assert torch.allclose(p, torch.ones(2, dtype=torch.float64), atol=1e-14)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_continuous_nelbo_of_exact_conditionals_is_minus_log_p(schedule):
    """MDLM eq. 10 is tight for the true posterior: NELBO(x) = -log p(x) for every x, at every schedule."""
    assert (exact_nelbo(EXACT, STRINGS, schedule=schedule) + DATA.log()).abs().max() < 1e-10


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_discrete_nelbo_falls_towards_the_entropy_as_steps_grow(schedule):
    """MDLM eq. 8, weight T (alpha_s - alpha_t) / (1 - alpha_t): T = 1, 2, 4, 8, 16 … are ever tighter bounds."""
    ce, k = subset_ce(EXACT, STRINGS), SUBSETS.sum(1)

    def bound(T):
        t = torch.arange(1, T + 1, dtype=torch.float64)[:, None] / T
        rate_t, rate_s = (mdlm.mask_rate(time, schedule)[0] for time in (t, t - 1 / T))
        weight = ((rate_t - rate_s) / rate_t * rate_t**k * (1 - rate_t) ** (L - k)).sum(0)  # mean over t of T (…)
        return (DATA @ (ce * weight).sum(1)).item()

    bounds = [bound(T) for T in (1, 2, 4, 8, 16)]
    assert all(a > b + 0.005 for a, b in zip(bounds, bounds[1:])) and bounds[-1] > ENTROPY
    assert bounds[0] - ENTROPY > 4 * (bounds[-1] - ENTROPY)
    assert 0 < bound(2048) - ENTROPY < 1e-3


def test_the_nelbo_of_any_denoiser_is_the_mean_over_all_orders():
    """By independent masking at any schedule = by exact counts (LLaDA eq. 6) = mean over the L! orders of the chain
    rule (any-order autoregression); and the mixture of the orders is at least as likely (Jensen)."""
    reference = exact_nelbo(ARBITRARY, STRINGS)
    for schedule in SCHEDULES:
        assert (exact_nelbo(ARBITRARY, STRINGS, schedule=schedule) - reference).abs().max() < 1e-10
    k = SUBSETS.sum(1)
    share = torch.tensor([0.0 if i == 0 else L / i / (L * math.comb(L, i)) for i in k.tolist()], dtype=torch.float64)
    assert ((subset_ce(ARBITRARY, STRINGS) * share).sum(1) - reference).abs().max() < 1e-10
    chains = torch.stack([chain_rule(ARBITRARY, STRINGS, order) for order in itertools.permutations(range(L))])
    assert (chains.mean(0) + reference).abs().max() < 1e-10
    mixture = chains.logsumexp(0) - math.log(len(chains))
    assert abs(mixture.exp().sum() - 1) < 1e-12 and (reference + mixture > 1e-3).all()


def test_the_estimator_of_the_nelbo_is_unbiased_over_seeds():
    """E over seeds of every row's estimate is that row's NELBO, with all tokens or only some maskable."""
    x, maskable = random_rows(16, empty=False)
    for model, where in [(EXACT, None), (ARBITRARY, None), (ARBITRARY, maskable)]:
        exact = exact_nelbo(model, x, where)
        runs = [mdlm.nelbo(model, x, mask_id=MASK, maskable=where, seed=seed) for seed in range(600)]
        for values, value in zip(torch.stack(runs, 1), exact.tolist()):
            assert_mean(values, value)


def test_the_estimator_of_the_nelbo_is_unbiased_over_rows_and_spreads_the_counts():
    """One seed and many rows suffice: counts are spread evenly, and the standard error over rows is not too small."""
    n = 4096
    for model in (EXACT, ARBITRARY):
        x = STRINGS[[6]].expand(n, L)
        exact = exact_nelbo(model, x[:1]).item()
        for samples in (1, 3):
            assert_mean(mdlm.nelbo(model, x, mask_id=MASK, samples=samples, seed=1), exact)
    spy = Spy(EXACT)
    mdlm.nelbo(spy, STRINGS[[6]].expand(64, L), mask_id=MASK)
    counts = torch.bincount((spy.seen[0] == MASK).sum(1), minlength=L + 1)
    assert counts[0] == 0 and (counts[1:] - 16).abs().max() <= 2


def test_exact_counts_have_less_variance_than_independent_masks():
    """LLaDA section 2.2's reason for equation 6."""
    n = 4096
    x0 = STRINGS[[6]].expand(n, L)
    t, u = noise.stratified(0, n), noise.uniform(1, torch.arange(n)[:, None], torch.arange(L))
    hidden = u < t[:, None]
    nll = mdlm.hidden_nll(ARBITRARY, torch.where(hidden, MASK, x0), x0, hidden, MASK)
    by_rate = torch.zeros(n, L, dtype=torch.float64).masked_scatter_(hidden, nll).sum(1) * nelbo_weight(t)
    assert_mean(by_rate, exact_nelbo(ARBITRARY, x0[:1]).item())
    assert mdlm.nelbo(ARBITRARY, x0, mask_id=MASK).var() < 0.5 * by_rate.var()


def test_the_nelbo_of_a_row_does_not_depend_on_its_batch():
    """Fast-dLLM issue 39: scores moved with the batch size."""
    x, maskable = random_rows(10, empty=False)
    keys = dict(mask_id=MASK, samples=3, seed=7)
    whole = mdlm.nelbo(ARBITRARY, x, maskable=maskable, **keys)
    for size in (1, 3):
        cut = range(0, 10, size)
        parts = [mdlm.nelbo(ARBITRARY, x[i : i + size], maskable=maskable[i : i + size], first=i, **keys) for i in cut]
        assert (torch.cat(parts) - whole).abs().max() < 1e-12
    assert (mdlm.nelbo(ARBITRARY, x, maskable=maskable, first=1, **keys) - whole).abs().max() > 0.1


def test_padding_does_not_change_the_nelbo():
    """dLLM issues 86-88: padded prompts leaked into the result."""
    x, real = torch.cat([STRINGS, STRINGS.flip(0)]), torch.arange(L) < torch.arange(32)[:, None] % L + 1
    padded = mdlm.nelbo(ARBITRARY, torch.where(real, x, MASK), mask_id=MASK, real=real, samples=2)
    for i, n in enumerate(real.sum(1).tolist()):
        alone = mdlm.nelbo(ARBITRARY, x[i : i + 1, :n], mask_id=MASK, samples=2, first=i)
        assert abs(padded[i] - alone) < 1e-12


def test_nothing_to_predict_costs_nothing():
    """The NELBO and the likelihood of no token at all are 0, beside rows that have some."""
    x, maskable = random_rows(9)
    value = mdlm.nelbo(ARBITRARY, x, mask_id=MASK, maskable=maskable, samples=2)
    assert (value[~maskable.any(1)] == 0).all() and (value[maskable.any(1)] > 0).all()
    for method in ("nelbo", "left_to_right", "confidence"):
        options = LikelihoodOptions(method)
        ll = fast_mdlm.log_likelihood(ARBITRARY, [ids(0, 1), ids(0)], [ids(), ids(1)], options, mask_id=MASK)
        assert ll[0] == 0 and ll[1] < 0
        assert fast_mdlm.log_likelihood(ARBITRARY, [], [], options, mask_id=MASK).shape == (0,)


# ------------------------------------------------------------------------------------------------------------------
# likelihood


@pytest.mark.parametrize("method", ["left_to_right", "confidence"])
def test_a_deterministic_order_has_an_exact_likelihood(method):
    """DUEL: whatever the denoiser, probabilities over all strings sum to one, also given a prompt, also in ragged
    batches."""
    options = LikelihoodOptions(method, batch_size=7)
    everything = fast_mdlm.log_likelihood(ARBITRARY, [ids()] * 16, list(STRINGS), options, mask_id=MASK)
    assert abs(everything.exp().sum() - 1) < 1e-12
    cases = [(torch.tensor(p), t) for n in range(4) for p in STRINGS[::3, :n].tolist() for t in listing(2, L - n)]
    ll = fast_mdlm.log_likelihood(ARBITRARY, [p.long() for p, _ in cases], [t for _, t in cases], options, mask_id=MASK)
    for prompt in {tuple(p.tolist()) for p, _ in cases}:
        of_prompt = torch.tensor([tuple(p.tolist()) == prompt for p, _ in cases])
        repeats = of_prompt.sum() / 2 ** (L - len(prompt))
        assert abs(ll[of_prompt].exp().sum() - repeats) < 1e-12
    ragged = [(ids(1), ids(0, 1)), (ids(), ids(1)), (ids(0, 1, 1), ids(0)), (ids(), ids(0, 0, 1))]
    together = fast_mdlm.log_likelihood(ARBITRARY, *zip(*ragged), options, mask_id=MASK)
    for (prompt, target), value in zip(ragged, together):
        assert abs(fast_mdlm.log_likelihood(ARBITRARY, [prompt], [target], options, mask_id=MASK) - value) < 1e-12


def test_left_to_right_likelihood_is_the_chain_rule():
    options = LikelihoodOptions("left_to_right")
    ll = fast_mdlm.log_likelihood(ARBITRARY, [ids()] * 16, list(STRINGS), options, mask_id=MASK)
    assert (ll - chain_rule(ARBITRARY, STRINGS, range(L))).abs().max() < 1e-12


def test_confidence_likelihood_is_that_of_the_confidence_sampler():
    """DUEL: equal to the law of the sampler by enumeration, and to the probabilities in the trace of generate()."""
    options = LikelihoodOptions("confidence")
    ll = fast_mdlm.log_likelihood(ARBITRARY, [ids()] * 16, list(STRINGS), options, mask_id=MASK)
    assert (ll.exp() - reveal_distribution(ARBITRARY, SampleOptions(L))).abs().max() < 1e-12
    for method, keys in [("confidence", {}), ("left_to_right", dict(block_size=1))]:
        prompts = [ids(1, 2, 3), ids(), ids(4, 6, 7, 8)]
        out = fast_mdlm.generate(NET, prompts, SampleOptions(8, **keys), mask_id=M, trace=True)
        targets = [t[len(p) :] for p, t in zip(prompts, out.tokens)]
        ll = fast_mdlm.log_likelihood(NET, prompts, targets, LikelihoodOptions(method), mask_id=M)
        traced = [sum(math.log(p) for *_, p in events) for events in out.trace]
        assert torch.allclose(ll, torch.tensor(traced).double(), atol=1e-4)


def test_confidence_likelihood_breaks_ties_as_the_sampler_does():
    """Probabilities that round to 1 in fp32 are tied for the sampler; the likelihood must follow the same order."""

    class Model(Net):  # two sure positions, of which the second is surer and changes the first
        def __call__(self, ids, mask=None, positions=None, rows=None):
            first = torch.where(ids[:, 1:] == MASK, torch.tensor([30.0, 0.0]), torch.tensor([0.0, 0.0]))
            second = torch.tensor([40.0, 0.0]).expand_as(first)
            logits = torch.nn.functional.pad(torch.stack([first, second], 1), (0, 1))
            return logits if rows is None else logits.flatten(0, 1)[rows.flatten()]

    model = Model()
    out = fast_mdlm.generate(model, [ids()], SampleOptions(2), mask_id=MASK, trace=True)
    ll = fast_mdlm.log_likelihood(model, [ids()], out.tokens, LikelihoodOptions("confidence"), mask_id=MASK)
    assert abs(ll.item() - sum(math.log(p) for *_, p in out.trace[0])) < 1e-6


def test_the_bound_is_a_bound_on_the_likelihood_of_a_prompted_target():
    """log_likelihood's nelbo: minus the NELBO of the target given the prompt, with masks that ignore the batch size."""
    x, n = STRINGS, 2
    maskable = (torch.arange(L) >= n).expand_as(x)
    exact = exact_nelbo(ARBITRARY, x, maskable)
    prompts, targets = list(x[:, :n]), list(x[:, n:])
    values = [
        fast_mdlm.log_likelihood(
            ARBITRARY, prompts, targets, LikelihoodOptions(mc_samples=900, batch_size=b), mask_id=MASK
        )
        for b in (5, 16)
    ]
    assert (values[0] - values[1]).abs().max() < 1e-12
    assert (values[0] + exact).abs().max() < 0.2 and (values[0] + exact).mean().abs() < 0.03
    assert values[0].dtype == torch.float64


# ------------------------------------------------------------------------------------------------------------------
# the training loss


@pytest.mark.parametrize("complementary", [False, True])
@pytest.mark.parametrize("corruption", ["rate", "count"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_loss_is_the_nelbo_per_token_in_expectation(schedule, corruption, complementary):
    """MDLM eq. 10, LLaDA eq. 5: whatever the schedule and however the masks are drawn; also with prompts."""
    options = LossOptions(schedule=schedule, corruption=corruption, complementary=complementary)
    x, maskable = random_rows(24)
    exact = (exact_nelbo(ARBITRARY, x, maskable).sum() / maskable.sum()).item()
    runs = [mdlm.loss(ARBITRARY, x, options, mask_id=MASK, maskable=maskable, seed=s).item() for s in range(300)]
    assert_mean(runs, exact)


def test_the_loss_without_maskable_is_over_all_tokens():
    exact = exact_nelbo(EXACT, STRINGS).mean().item() / L
    runs = [mdlm.loss(EXACT, STRINGS, mask_id=MASK, seed=s).item() for s in range(300)]
    assert_mean(runs, exact)


@pytest.mark.parametrize("objective", ["nelbo", "masked_ce"])
@pytest.mark.parametrize("corruption", ["rate", "count"])
@pytest.mark.parametrize("complementary", [False, True])
def test_prompts_are_never_hidden_and_never_learned(objective, corruption, complementary):
    """Rows without anything to learn add nothing, even where their tokens cannot be predicted at all."""
    options = LossOptions(objective=objective, corruption=corruption, complementary=complementary)
    x, maskable = random_rows(24)
    some = maskable.any(1)
    blank = torch.where(some[:, None], x, MASK)  # padding may well be the mask id: its cross entropy is infinite
    for seed in range(20):
        spy = Spy(ARBITRARY)
        value = mdlm.loss(spy, x, options, mask_id=MASK, maskable=maskable, seed=seed)
        seen, copies = spy.seen[0], 1 + complementary
        assert seen.shape == (24 * copies, L)
        assert torch.equal(seen[~maskable.repeat(copies, 1)], x[~maskable].repeat(copies))
        assert mdlm.loss(ARBITRARY, blank, options, mask_id=MASK, maskable=maskable, seed=seed) == value


@pytest.mark.parametrize("corruption", ["rate", "count"])
def test_at_time_1_everything_is_hidden_and_weighs_1(corruption):
    """The end of the interval is as good as its inside: with t_min = t_max = 1 the loss is the mean cross entropy of an
    empty canvas."""
    options = LossOptions(corruption=corruption, t_min=1.0, t_max=1.0)
    value = mdlm.loss(ARBITRARY, STRINGS, options, mask_id=MASK)
    assert abs(value - subset_ce(ARBITRARY, STRINGS)[:, -1].mean() / L) < 1e-12


def test_complementary_masks_predict_every_token_once():
    spy = Spy(EXACT)
    mdlm.loss(spy, STRINGS, LossOptions(complementary=True), mask_id=MASK)
    first, second = (spy.seen[0] == MASK).chunk(2)
    assert torch.equal(first, ~second) and first.any()


@pytest.mark.parametrize("objective", ["nelbo", "masked_ce"])
@pytest.mark.parametrize("corruption", ["rate", "count"])
@pytest.mark.parametrize("complementary", [False, True])
def test_micro_batches_add_up_to_one_large_batch(objective, corruption, complementary):
    """dLLM's gradient accumulation was 3.9 times too large. With one denominator, losses and gradients add up."""
    options = LossOptions(objective=objective, corruption=corruption, complementary=complementary)
    x = torch.randint(6, VOCAB, (8, 10), generator=generator(0))
    maskable = torch.arange(10) >= torch.arange(8)[:, None] % 4
    keys = dict(mask_id=M, seed=3, denominator=maskable.sum())
    net = transformer()

    def gradients(cuts):
        net.zero_grad()
        total = 0.0
        for a, b in zip(cuts, cuts[1:]):
            value = mdlm.loss(net, x[a:b], options, maskable=maskable[a:b], shard=(a, 8), **keys)
            value.backward()
            total += value.item()
        return total, torch.cat([p.grad.flatten() for p in net.parameters()])

    whole, whole_gradient = gradients([0, 8])
    assert abs(whole - mdlm.loss(net, x, options, maskable=maskable, mask_id=M, seed=3).item()) < 1e-12
    assert whole_gradient.norm() > 0.1
    for cuts in ([0, 2, 4, 6, 8], [0, 1, 8]):
        parts, gradient = gradients(cuts)
        assert abs(parts - whole) < 1e-6 and (gradient - whole_gradient).norm() < 1e-6 * whole_gradient.norm()


def test_masked_ce_is_the_mean_cross_entropy_of_hidden_tokens():
    """With complementary masks exactly the mean over all tokens; otherwise the ratio of the expectations."""
    x = STRINGS

    def hidden_ce(seed, options):
        spy = Spy(ARBITRARY)
        value = mdlm.loss(spy, x, options, mask_id=MASK, seed=seed).item()
        hidden = spy.seen[0] == MASK
        ce = mdlm.hidden_nll(ARBITRARY, spy.seen[0], x.repeat(len(hidden) // 16, 1), hidden, MASK)
        return value, ce.sum().item(), hidden.sum().item()

    both = LossOptions(objective="masked_ce", complementary=True)
    for seed in range(5):
        value, ce, count = hidden_ce(seed, both)
        assert count == x.numel() and abs(value - ce / count) < 1e-12
    for schedule in SCHEDULES:
        runs = np.array([hidden_ce(seed, LossOptions(schedule, "masked_ce")) for seed in range(100)])
        assert abs(runs[:, 0].mean() / (runs[:, 1].sum() / runs[:, 2].sum()) - 1) < 0.03


def test_times_are_clipped_and_bell_shaped_as_asked():
    """The fraction hidden of a long row is t (linear schedule): uniform, Beta(2, 2), or between t_min and t_max."""
    spy = Spy(lambda ids, mask=None, positions=None, rows=None: torch.zeros(len(rows), 3))
    x = torch.zeros(400, 400, dtype=torch.int64)

    def fractions(**keys):
        mdlm.loss(spy, x, LossOptions(**keys), mask_id=MASK)
        return (spy.seen.pop() == MASK).double().mean(1)

    for keys, share in [({}, lambda t: t), (dict(t_shape="bell"), lambda t: 3 * t**2 - 2 * t**3)]:
        f = fractions(**keys)
        for t in (0.1, 0.25, 0.5, 0.8):
            assert abs((f < t).double().mean() - share(t)) < 0.02
    f = fractions(t_min=0.3, t_max=0.8)
    assert 0.2 < f.min() < 0.35 and 0.75 < f.max() < 0.9 and abs(f.mean() - 0.55) < 0.01


def test_low_discrepancy_reduces_the_variance_of_a_batch():
    """MDLM appendix: a loss that depends on t is steadier when every batch covers [0, 1] evenly."""

    def model(ids, mask=None, positions=None, rows=None):  # cross entropy 3 f^2 where a fraction f is hidden
        nll = 3 * (ids == MASK).double().mean(1, keepdim=True).expand_as(ids).flatten()[rows] ** 2
        return torch.stack([-nll, torch.log1p(-torch.exp(-nll)), nll], -1)

    x = torch.zeros(16, 300, dtype=torch.int64)

    def spread(**keys):
        options = LossOptions(corruption="count", **keys)
        return torch.tensor([mdlm.loss(model, x, options, mask_id=MASK, seed=s).item() for s in range(200)]).std()

    assert spread() < 0.2 * spread(low_discrepancy=False)


def test_exact_counts_reduce_the_variance_of_a_batch():
    def spread(corruption):
        options, x = LossOptions(corruption=corruption), STRINGS[[6]].expand(16, L)
        return torch.tensor([mdlm.loss(EXACT, x, options, mask_id=MASK, seed=s).item() for s in range(300)]).std()

    assert spread("count") < 0.7 * spread("rate")


# ------------------------------------------------------------------------------------------------------------------
# samplers on the toy


@pytest.mark.parametrize("order", ["random", "confidence", "margin", "entropy"])
def test_one_sampled_token_per_step_gives_exactly_the_data_distribution(order):
    """First hitting = random order; and no order that looks at revealed tokens alone can bias a *sampled* token. Two at
    once do bias, which is what makes this test able to fail."""
    assert distance(reveal_distribution(EXACT, SampleOptions(L, order=order)), DATA) < 1e-12
    assert distance(reveal_distribution(EXACT, SampleOptions(L, order=order, steps=2)), DATA) > 1e-2


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_error_of_ancestral_sampling_halves_with_each_doubling_of_the_steps(schedule):
    """MDLM section 3.3 with exact conditionals: only tokens revealed in the same step are wrongly independent."""
    errors = []
    for T in (8, 16, 32, 64, 128):
        law = ancestral_distribution(EXACT, SampleOptions(L, quota="ancestral", steps=T, schedule=schedule))
        assert abs(law[IS_STRING].sum() - 1) < 1e-12  # the last step reveals everything
        errors.append(distance(law[IS_STRING], DATA))
    ratios = [a / b for a, b in zip(errors, errors[1:])]
    assert all(1.7 < r < 2.3 for r in ratios), ratios


@pytest.mark.parametrize("remask", [0.0, 0.05, 0.4, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_remasking_keeps_the_marginals_of_the_forward_process(schedule, remask):
    """ReMDM eq. 9 and theorem 3.1: alpha_t (1 - sigma) + (1 - alpha_t) reveal = alpha_s, with probabilities in [0, 1]
    and sigma = min(eta, (1 - alpha_s) / alpha_t) inside the window, 0 outside."""
    t = torch.linspace(0.02, 1, 50, dtype=torch.float64)
    for s in (t - 0.02, t / 2, torch.zeros_like(t)):
        for window in (dict(), dict(remask_from=0.55, remask_until=0.2)):
            options = SampleOptions(quota="ancestral", remask=remask, schedule=schedule, **window)
            reveal, hide = choice.ancestral_rates(t, s, options)
            alpha_t, alpha_s = (1 - mdlm.mask_rate(time, schedule)[0] for time in (t, s))
            alpha_s = torch.where(s == 0, 1.0, alpha_s)
            assert (alpha_t * (1 - hide) + (1 - alpha_t) * reveal - alpha_s).abs().max() < 1e-12
            assert reveal.min() >= 0 and reveal.max() < 1 + 1e-12 and hide.min() >= 0 and hide.max() <= 1
            inside = (t <= options.remask_from) & (t >= options.remask_until)
            assert (hide[~inside] == 0).all()
            cap = ((1 - alpha_s) / alpha_t.clamp(min=1e-12)).clamp(max=remask)
            assert torch.allclose(hide[inside], cap[inside], atol=1e-9)


@pytest.mark.parametrize(
    "keys",
    [
        dict(order="random"),
        dict(order="confidence"),
        dict(order="margin", steps=2),
        dict(order="entropy", steps=3),
        dict(order="random", steps=2),
        dict(order="random", steps=3, schedule="cosine"),
        dict(quota="threshold", threshold=0.75),
        dict(quota="factor", factor=1.1),
        dict(quota="entropy_bound", order="entropy", entropy_bound=0.5),
        dict(quota="ancestral", steps=3),
        dict(quota="ancestral", steps=3, schedule="cosine_mdlm"),
        dict(quota="ancestral", steps=5, remask=0.3),
        dict(quota="ancestral", steps=6, remask=0.5, remask_from=0.7, remask_until=0.3),
    ],
    ids=str,
)
def test_generate_follows_the_law_that_its_rules_imply(keys):
    """20,000 samples against the enumerated law of the same rules, biased ones included."""
    o = SampleOptions(L, **keys)
    ancestral = o.quota == "ancestral"
    law = ancestral_distribution(ARBITRARY, o)[IS_STRING] if ancestral else reveal_distribution(ARBITRARY, o)
    assert abs(law.sum() - 1) < 1e-12
    assert abs(chi_square(sampled_counts(ARBITRARY, o), law)) < 4


# ------------------------------------------------------------------------------------------------------------------
# choice of tokens and positions


def test_the_nucleus_keeps_the_token_that_crosses_top_p():
    """Holtzman et al. 1904.09751: the smallest set whose mass is at least p."""
    p = torch.tensor([[0.05, 0.5, 0.15, 0.3], [0.3, 0.05, 0.5, 0.15]]).double()
    for top_p, size in [(1e-9, 1), (0.3, 1), (0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (0.96, 4), (1.0, 4)]:
        kept = choice.filter_logits(p.log(), top_p=top_p) > -torch.inf
        assert torch.equal(kept, p >= p.sort(1, descending=True).values[:, [size - 1]])


def test_filters_temper_then_keep_what_is_among_the_top_k_and_in_the_nucleus():
    p = torch.tensor([[0.05, 0.5, 0.15, 0.3]]).double()

    def weights(**keys):
        return choice.filter_logits(p.log().float(), **keys).softmax(-1)[0]

    def law(*w):
        return torch.tensor(w).double() / sum(w)

    assert weights().dtype == torch.float64
    assert torch.allclose(weights(temperature=0.5), law(0.0025, 0.25, 0.0225, 0.09), atol=1e-6)
    assert torch.allclose(weights(top_k=2), law(0, 0.5, 0, 0.3), atol=1e-6)
    assert torch.allclose(weights(top_k=9), law(0.05, 0.5, 0.15, 0.3), atol=1e-6)
    assert torch.allclose(weights(top_k=2, top_p=0.6), law(0, 0.5, 0, 0.3), atol=1e-6)  # .5 is not yet .6 of all
    assert torch.allclose(weights(top_k=2, top_p=0.4), law(0, 1, 0, 0), atol=1e-6)
    assert torch.allclose(weights(temperature=0.5, top_p=0.6), law(0, 1, 0, 0), atol=1e-6)  # .5 becomes .685
    assert torch.allclose(weights(temperature=2, top_p=0.6), law(0, 0.5**0.5, 0, 0.3**0.5), atol=1e-6)


def test_temperature_0_takes_the_most_probable_token():
    logits = torch.randn(50, 20, generator=generator(0))
    u = noise.uniform(0, torch.arange(50))
    assert torch.equal(choice.choose_tokens(logits, u, 0), logits.argmax(-1))
    assert torch.equal(choice.choose_tokens(logits, u, 1e-4), logits.argmax(-1))
    assert torch.equal(choice.choose_tokens(logits, u, top_k=1), logits.argmax(-1))
    assert not torch.equal(choice.choose_tokens(logits, u), logits.argmax(-1))


@pytest.mark.parametrize("keys", [{}, dict(temperature=0.6), dict(top_k=4), dict(top_p=0.8)], ids=str)
def test_tokens_are_drawn_with_their_probabilities(keys):
    logits = torch.randn(1, 10, generator=generator(2))
    law = choice.filter_logits(logits, **keys).softmax(-1)[0]
    u = noise.uniform(1, torch.arange(100_000))
    counts = torch.bincount(choice.choose_tokens(logits.expand(len(u), 10), u, **keys), minlength=10)
    assert (counts[law == 0] == 0).all()
    assert abs(chi_square(counts[law > 0], law[law > 0])) < 4


def test_suppressed_tokens_are_never_drawn_even_at_the_ends():
    u = torch.tensor([2.0**-53, 2.0**-40, 0.5, 1 - 2.0**-40, 1 - 2.0**-53]).double()
    for seed in range(50):
        logits = 3 * torch.randn(1, 200, generator=generator(seed))
        logits[:, torch.rand(200, generator=generator(seed + 1)) < 0.5] = -torch.inf
        logits[:, [0, 1, -2, -1]] = -torch.inf
        for keys in ({}, dict(top_p=0.9), dict(top_k=3), dict(temperature=0.1), dict(temperature=0)):
            drawn = choice.choose_tokens(logits.expand(5, 200), u, **keys)
            assert (logits[0, drawn] > -torch.inf).all()


def test_rare_tokens_keep_their_probability():
    """MDLM-era samplers with 32-bit Gumbel noise cut the tails off (arXiv 2409.02908): -log(-log(u)) of an fp32 uniform
    is at most 16.6, so that 1e-12 never happens. Here each token owns exactly its share of the unit interval."""
    p = torch.tensor([1e-12, 1e-7, 0.5, 1e-9, 0.5 - 1e-7, 1e-12]).double()
    p = p / p.sum()
    ends = torch.cat([torch.zeros(1), p.cumsum(0)]).double()
    for token in range(6):
        inside = torch.stack([ends[token] + f * p[token] for f in (0.01, 0.5, 0.99)])
        assert choice.choose_tokens(p.log().expand(3, 6), inside).tolist() == [token] * 3


def test_certainty_is_the_largest_probability_the_margin_or_one_over_the_perplexity():
    p = torch.tensor([[0.7, 0.2, 0.1, 0.0], [0.25, 0.25, 0.25, 0.25], [0.0, 0.0, 1.0, 0.0]]).double()
    expected = {
        "confidence": [0.7, 0.25, 1.0],
        "margin": [0.5, 0.0, 1.0],
        "entropy": [math.exp(0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1)), 0.25, 1.0],
    }
    for order, values in expected.items():
        assert torch.allclose(mdlm.certainty(p.log(), order), torch.tensor(values).double(), atol=1e-12)


def choose(score, options, candidates=None, count=None):
    score = torch.tensor(score, dtype=torch.float64)
    candidates = torch.ones_like(score).bool() if candidates is None else torch.tensor(candidates).bool()
    count = torch.zeros(len(score), dtype=torch.int64) if count is None else torch.tensor(count)
    return choice.choose_positions(score, candidates, options, count).int().tolist()


def test_threshold_reveals_all_that_reach_it_and_at_least_one_per_row():
    """Fast-dLLM: confidence >= tau, always the top one; a row without candidates gets none."""
    score = [[0.95, 0.5, 0.9, 0.2], [0.3, 0.6, 0.2, 0.1], [0.99, 0.2, 0.3, 0.1], [0.99] * 4]
    candidates = [[1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0]]
    chosen = choose(score, SampleOptions(quota="threshold", threshold=0.9), candidates)
    assert chosen == [[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_factor_accepts_up_to_the_largest_rank_that_passes():
    """Fast-dLLM: the r-th confidence must be at least 1 - f / (r + 1): .5, .667, .75, .8 for f = 1."""
    score = [[0.7, 0.9, 0.1, 0.74], [0.76, 0.99, 0.1, 0.8], [0.3, 0.4, 0.2, 0.1], [0.81, 0.82, 0.83, 0.84], [0.9] * 4]
    candidates = [[1] * 4] * 4 + [[0] * 4]
    chosen = choose(score, SampleOptions(quota="factor"), candidates)
    assert chosen == [[0, 1, 0, 1], [1, 1, 0, 1], [0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]
    assert choose(score, SampleOptions(quota="factor", factor=0.0), candidates) == choose(
        score, SampleOptions(quota="threshold", threshold=1.0), candidates
    )


def test_entropy_bound_accepts_the_prefix_whose_sum_without_the_largest_stays_within():
    """EB-Sampler: sort entropies up, accept while sum - max <= gamma; the surest one always."""
    entropy = torch.tensor([[0.05, 0.01, 1.0, 0.02], [2.0, 3.0, 1.5, 2.5], [0.01, 0.04, 0.2, 0.3], [0.0] * 4])
    candidates = [[1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0]]
    for bound, expected in [
        (0.1, [[1, 1, 1, 1], [0, 0, 1, 0], [0, 1, 1, 0], [0] * 4]),
        (0.05, [[1, 1, 0, 1], [0, 0, 1, 0], [0, 1, 1, 0], [0] * 4]),
        (0.0, [[0, 1, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0] * 4]),
    ]:
        options = SampleOptions(quota="entropy_bound", order="entropy", entropy_bound=bound)
        assert choose((-entropy.double()).exp().tolist(), options, candidates) == expected


def test_the_linear_quota_is_lladas():
    """masks // steps per step, the first masks % steps steps one more; surest first, the leftmost of equals."""

    def counts(masks, steps, schedule="linear"):
        n, steps = torch.tensor([masks]), torch.tensor([steps])
        return [int(choice.quota(n, n, torch.tensor([i]), steps, schedule)) for i in range(steps)]

    assert counts(10, 4) == [3, 3, 2, 2] and counts(8, 4) == [2, 2, 2, 2] and counts(3, 5) == [1, 1, 1, 0, 0]
    assert counts(16, 4, "cosine") == [2, 3, 5, 6]  # MaskGIT's: floor(16 cos(pi/2 k/4)) = 16, 14, 11, 6, 0 stay hidden
    for masks, steps, schedule in itertools.product((1, 7, 64), (1, 3, 10, 100), SCHEDULES):
        assert sum(counts(masks, steps, schedule)) == masks and min(counts(masks, steps, schedule)) >= 0
    assert choose([[0.5, 0.9, 0.5, 0.1]], SampleOptions(), count=[2]) == [[1, 1, 0, 0]]


# ------------------------------------------------------------------------------------------------------------------
# generation


@pytest.mark.parametrize("name", SETTINGS)
def test_a_row_of_a_ragged_batch_is_what_it_would_have_been_alone(name):
    """The other rows are replaced by other prompts of other lengths, at every order and quota: nothing changes."""
    options, others = SETTINGS[name], [ids(), ids(8, 8, 1, M, 2, 1, 1, 1, 1, 1, 1, 1), ids(2)]
    whole = fast_mdlm.generate(NET, RAGGED, options, mask_id=M, eos_id=9, trace=True)
    for i, prompt in enumerate(RAGGED):
        batch = [others[(i + j) % 3] for j in range(i)] + [prompt] + others[: i % 2]
        alone = fast_mdlm.generate(NET, batch, options, mask_id=M, eos_id=9, trace=True)
        assert alone.tokens[i].tolist() == whole.tokens[i].tolist()
        assert alone.num_forwards[i] == whole.num_forwards[i]
        assert [e[:3] for e in alone.trace[i]] == [e[:3] for e in whole.trace[i]]


def test_rows_and_seeds_draw_different_samples():
    options = SampleOptions(20)
    samples = fast_mdlm.generate(NET, [ids()] * 8, options, mask_id=M).tokens
    samples += fast_mdlm.generate(NET, [ids()] * 8, SampleOptions(20, seed=1), mask_id=M).tokens
    assert len({tuple(s.tolist()) for s in samples}) == 16
    again = fast_mdlm.generate(NET, [ids()] * 8, options, mask_id=M).tokens
    assert all(torch.equal(a, b) for a, b in zip(again, samples))


@st.composite
def cases(draw):
    quota = draw(st.sampled_from(["steps", "threshold", "factor", "entropy_bound", "ancestral", "ancestral"]))
    orders = ["entropy", "confidence", "margin", "random"]
    orders = orders[: {"entropy_bound": 1, "threshold": 3, "factor": 3}.get(quota, 4)]
    options = SampleOptions(
        max_new_tokens=draw(st.sampled_from([9, 6, 12, 1, 0])),
        block_size=draw(st.sampled_from([3, 4, 0, 1, 20])),
        steps=draw(st.sampled_from([9, 30, 5, 2, 1, 0])),
        order=draw(st.sampled_from(orders)),
        quota=quota,
        schedule=draw(st.sampled_from(SCHEDULES)),
        threshold=draw(st.sampled_from([0.0, 0.4, 0.9, 2.0])),
        factor=draw(st.sampled_from([0.0, 1.0, 3.0])),
        entropy_bound=draw(st.sampled_from([0.0, 0.5, 5.0])),
        remask=draw(st.sampled_from([0.2, 1.0, 0.0])) if quota == "ancestral" else 0.0,
        remask_from=draw(st.sampled_from([1.0, 0.6])),
        remask_until=draw(st.sampled_from([0.0, 0.3])),
        temperature=draw(st.sampled_from([0.0, 1.0, 1.5])),
        top_k=draw(st.sampled_from([0, 1, 4, 50])),
        top_p=draw(st.sampled_from([1.0, 0.5, 1e-6])),
        cfg_scale=draw(st.sampled_from([0.0, 0.0, 1.0, 0.5])),
        suppress=draw(st.sampled_from([(), (0,), (11, 3, 4)])),
        seed=draw(st.integers(0, 99)),
    )
    token = st.one_of(st.just(M), st.integers(0, VOCAB - 1))
    prompts = draw(st.lists(st.lists(token, max_size=8), min_size=1, max_size=4))
    return options, [ids(*p) for p in prompts], draw(st.sampled_from([None, 0, 7]))


@settings(max_examples=120, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(cases())
def test_every_sampler_ends_without_masks_and_keeps_what_was_given(case):
    """At any setting: it ends, no mask is returned, given tokens stay, suppressed ones never appear, nothing stands
    behind an end-of-text, and the trace replays to the output. (dLLM: 56 masks of 64 left; a hang at batch 2.)"""
    o, prompts, eos = case
    canvases = [canvas_of(p, o) for p in prompts]
    longest = max(len(c) for c in canvases)
    ticks = []

    def watch(rows):
        ticks.append(len(rows))
        assert len(ticks) <= max(o.steps, longest) + longest, "does not end"

    out = fast_mdlm.generate(NET, prompts, o, mask_id=M, eos_id=eos, trace=True, watch=watch)
    assert len(out.tokens) == len(out.num_forwards) == len(out.trace) == len(prompts)
    for canvas, row, forwards, events in zip(canvases, out.tokens, out.num_forwards, out.trace):
        n, given_here = len(row), canvas != M
        assert row.dtype == torch.int64 and (row != M).all()
        assert torch.equal(row[given_here[:n]], canvas[:n][given_here[:n]])
        assert not torch.isin(row[~given_here[:n]], torch.tensor(o.suppress + (-1,))).any()
        tail = int(given_here.nonzero().max()) + 1 if given_here.any() else 0
        stops = [] if eos is None else (row[tail:] == eos).nonzero()[:, 0].tolist()
        assert n == (tail + stops[0] + 1 if stops else len(canvas))
        holes = int((~given_here).sum())
        limit = max(o.steps, holes) + longest if o.remask else holes
        assert forwards <= limit * (2 if o.cfg_scale else 1) and (forwards > 0) == (holes > 0)
        assert torch.equal(replay(canvas, events)[:n], row)
        if not o.remask:
            assert len({position for _, position, _, _ in events}) == len(events)
        if holes and not stops and not o.remask:
            assert len(events) == holes
        assert all(not given_here[position] for _, position, _, _ in events)


def test_nothing_to_do_is_done_without_a_forward():
    spy = Spy(NET)
    out = fast_mdlm.generate(spy, [ids(1, 2), ids()], SampleOptions(0), mask_id=M, trace=True)
    assert [t.tolist() for t in out.tokens] == [[1, 2], []] and out.num_forwards == [0, 0] and out.trace == [[], []]
    assert fast_mdlm.generate(spy, [], SampleOptions(3), mask_id=M).tokens == []
    assert [t.tolist() for t in fast_mdlm.generate(spy, [ids()], SampleOptions(0), mask_id=M).tokens] == [[]]
    assert spy.calls == 0


@pytest.mark.parametrize("order", ["confidence", "margin", "entropy", "random"])
def test_steps_are_forwards(order):
    """`steps` forwards where there are as many tokens, else one per token; guidance doubles them."""
    for steps, forwards in [(1, 1), (3, 3), (8, 8), (0, 8), (20, 8)]:
        for scale, times in [(0.0, 1), (1.0, 2)]:
            spy = Spy(NET)
            options = SampleOptions(8, order=order, steps=steps, cfg_scale=scale)
            out = fast_mdlm.generate(spy, [ids(1, 2), ids()], options, mask_id=M)
            assert out.num_forwards == [forwards * times] * 2 and spy.calls == forwards


def test_parallel_quotas_take_at_most_one_forward_per_token_and_fewer_where_the_network_is_sure():
    script = Script([1, 2, 3, 4, 6, 7], [0.95, 0.5, 0.92, 0.99, 0.6, 0.3])
    options = SampleOptions(6, quota="threshold", temperature=0)
    out = fast_mdlm.generate(script, [ids()], options, mask_id=M, trace=True)
    assert out.tokens[0].tolist() == [1, 2, 3, 4, 6, 7] and out.num_forwards == [4]  # three at once, then one by one
    assert [event[:2] for event in out.trace[0]] == [(0, 0), (0, 2), (0, 3), (1, 4), (2, 1), (3, 5)]
    for name, options in SETTINGS.items():
        if options.quota in ("threshold", "factor", "entropy_bound"):
            out = fast_mdlm.generate(NET, [ids(1, 2)] * 4, options, mask_id=M)
            assert max(out.num_forwards) <= 6 * (2 if options.cfg_scale else 1), name
    loose = SampleOptions(6, quota="entropy_bound", order="entropy", entropy_bound=100.0)
    assert fast_mdlm.generate(NET, [ids()], loose, mask_id=M).num_forwards == [1]


def test_ancestral_sampling_skips_forwards_that_would_reveal_nothing():
    """MDLM section 3.3: without time conditioning, an unchanged canvas needs no new forward."""
    spy = Spy(NET)
    options = SampleOptions(4, quota="ancestral", steps=300)
    out = fast_mdlm.generate(spy, [ids(1)] * 3, options, mask_id=M, trace=True)
    clocks = [{clock for clock, *_ in events} for events in out.trace]
    assert out.num_forwards == [len(c) for c in clocks] and spy.calls == len(set.union(*clocks)) <= 12
    assert max(max(c) for c in clocks) > 20


@pytest.mark.parametrize("order", ["confidence", "random"])
def test_steps_whose_quota_is_nothing_need_no_forward(order):
    """More steps than tokens on a curved schedule: most steps reveal nothing."""
    spy = Spy(NET)
    options = SampleOptions(4, steps=40, schedule="cosine", order=order)
    assert fast_mdlm.generate(spy, [ids(1)], options, mask_id=M).num_forwards == [4] and spy.calls == 4


def test_remasking_hides_again_and_still_ends_with_its_steps():
    options = SampleOptions(8, quota="ancestral", steps=20, remask=0.4)
    ticks = []
    out = fast_mdlm.generate(NET, [ids(1)], options, mask_id=M, trace=True, watch=ticks.append)
    hidden_again = [e for e in out.trace[0] if e[2] == M]
    assert len(ticks) == 20 and hidden_again and all(p == 0 for *_, p in hidden_again)
    assert torch.equal(replay(canvas_of(ids(1), options), out.trace[0]), out.tokens[0])
    last = max(clock for clock, *_ in hidden_again)
    assert last < 19 and len(out.trace[0]) == 8 + 2 * len(hidden_again)


def test_the_trace_holds_the_probability_of_each_token_and_watch_sees_each_step():
    options = SampleOptions(3, temperature=0.5)
    frames = []
    out = fast_mdlm.generate(NET, [ids(1, 2)], options, mask_id=M, trace=True, watch=frames.append)
    canvas = canvas_of(ids(1, 2), options)
    assert len(frames) == len(out.trace[0]) == 3
    for (_, position, token, p), frame in zip(out.trace[0], frames):
        logits = NET(canvas[None])[0, position]
        logits[M] = -torch.inf
        assert abs(p - logits.softmax(-1)[token].item()) < 1e-5
        canvas[position] = token
        assert torch.equal(frame[0], canvas)  # frames may be kept: each is a copy


def test_a_block_is_finished_before_the_next_one_starts():
    """LLaDA's semi-autoregressive decoding; blocks are counted from each row's first hole; remasking stays inside."""
    for name in ("steps", "ancestral", "threshold", "remask"):
        options = SampleOptions(11, block_size=4, **QUOTAS[name] | dict(steps=12))
        out = fast_mdlm.generate(NET, [ids(1, 2, 3), ids(), ids(1, M, 3)], options, mask_id=M, trace=True)
        for first_hole, events in zip((3, 0, 1), out.trace):
            spans = {}
            for clock, position, *_ in events:
                spans.setdefault((position - first_hole) // 4, []).append(clock)
            assert sorted(spans) == list(range(len(spans))) and len(spans) in (3, 4)
            assert all(max(spans[b]) < min(spans[b + 1]) for b in range(len(spans) - 1))


def test_steps_are_shared_out_over_the_blocks():
    """10 steps over 3 blocks are 4, 3 and 3; fewer steps than blocks are one each."""
    options = SampleOptions(15, block_size=5, steps=10)
    out = fast_mdlm.generate(NET, [ids(1)], options, mask_id=M, trace=True)
    clocks = [{clock for clock, position, *_ in out.trace[0] if (position - 1) // 5 == b} for b in range(3)]
    assert [len(c) for c in clocks] == [4, 3, 3] and out.num_forwards == [10]
    assert fast_mdlm.generate(NET, [ids(1)], SampleOptions(15, block_size=5, steps=2), mask_id=M).num_forwards == [3]


def test_blocks_without_holes_take_no_share_of_the_steps():
    """Infilling: 6 steps over two blocks of holes with a given block between them are 3 and 3."""
    canvas = ids(M, M, M, M, 1, 2, 3, 4, M, M, M, M)
    out = fast_mdlm.generate(NET, [canvas], SampleOptions(0, block_size=4, steps=6), mask_id=M, trace=True)
    clocks = [{clock for clock, position, *_ in out.trace[0] if position // 4 == b} for b in range(3)]
    assert [len(c) for c in clocks] == [3, 0, 3] and out.num_forwards == [6]


def test_a_generated_end_of_text_ends_a_row_once_nothing_before_it_is_hidden():
    """Id 0 works; text behind it is cut and costs nothing; rows end one by one."""
    script = Script([3, 0, 4, 4], [0.5, 0.9, 0.3, 0.2])
    greedy = SampleOptions(4, temperature=0)
    out = fast_mdlm.generate(script, [ids()], greedy, mask_id=M, eos_id=0)
    assert out.tokens[0].tolist() == [3, 0] and out.num_forwards == [2]  # the end first, then what comes before it
    out = fast_mdlm.generate(script, [ids(), ids(1, 1)], SampleOptions(2, temperature=0), mask_id=M, eos_id=0)
    assert [t.tolist() for t in out.tokens] == [[3, 0], [1, 1, 4, 4]] and out.num_forwards == [2, 2]
    script = Script([3, 0, 4, 0, 4], [0.5, 0.4, 0.3, 0.9, 0.8])  # two ends: the first one counts
    out = fast_mdlm.generate(script, [ids()], SampleOptions(5, temperature=0), mask_id=M, eos_id=0)
    assert out.tokens[0].tolist() == [3, 0] and out.num_forwards == [4]
    blocks = SampleOptions(4, temperature=0, block_size=2)
    assert fast_mdlm.generate(Script([3, 0, 4, 4], [0.5] * 4), [ids()], blocks, mask_id=M, eos_id=0).num_forwards == [2]
    assert fast_mdlm.generate(Script([3, 0, 4, 4], [0.5] * 4), [ids()], greedy, mask_id=M).tokens[0].tolist() == [
        3,
        0,
        4,
        4,
    ]


def test_an_end_of_text_that_was_given_or_is_followed_by_given_tokens_does_not_end_anything():
    greedy = SampleOptions(3, temperature=0)
    script = Script([1, 0, 2, 3, 4, 6], [0.5] * 6)
    assert fast_mdlm.generate(script, [ids(1, 0, 2)], greedy, mask_id=M, eos_id=0).tokens[0].tolist() == [
        1,
        0,
        2,
        3,
        4,
        6,
    ]
    assert fast_mdlm.generate(script, [ids(1, M, 2)], greedy, mask_id=M, eos_id=0).tokens[0].tolist() == [
        1,
        0,
        2,
        3,
        4,
        6,
    ]
    hole = SampleOptions(0, temperature=0)
    assert fast_mdlm.generate(script, [ids(1, M, M)], hole, mask_id=M, eos_id=0).tokens[0].tolist() == [1, 0]
    script = Script([7, 1, 0, 4], [0.2, 0.5, 0.9, 0.1])  # an end behind a hole in the prompt waits for that hole
    out = fast_mdlm.generate(script, [ids(M, 1)], SampleOptions(2, temperature=0), mask_id=M, eos_id=0)
    assert out.tokens[0].tolist() == [7, 1, 0] and out.num_forwards == [2]


def test_guidance_is_un_plus_scale_plus_one_times_the_difference():
    """LLaDA's classifier-free guidance: `un` sees the given tokens as masks and keeps what was generated; 0 is none."""
    x = torch.tensor([[1, 2, M, 4, M, 7], [3, M, M, 6, 0, 0]])
    hole = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0]]).bool()
    real = torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]]).bool()
    rows = (x == M) & real
    blind = torch.tensor([[M, M, M, 4, M, 7], [M, M, M, 6, M, M]])
    cond, un = (NET(ids, mask=real)[rows] for ids in (x, blind))
    assert (cond - un).abs().max() > 0.1
    for scale in (0.0, 0.7, 3.0):
        hidden = decode.states(NET, x, real, hole, rows.flatten().nonzero()[:, 0], M, scale)
        guided = decode.reader(NET, hidden, scale)(torch.arange(int(rows.sum())))
        assert torch.allclose(guided, un + (scale + 1) * (cond - un), atol=1e-5)


def test_confidences_are_at_least_fp32():
    """In bf16 confidences tie, and the order depends on noise."""

    hidden = torch.zeros(3, VOCAB, dtype=torch.bfloat16)
    assert decode.reader(Net(), hidden, 0.0)(torch.arange(3)).dtype == torch.float32


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: SampleOptions(order="random", quota="threshold"), "quota=threshold.*order=confidence"),
        (lambda: SampleOptions(order="random", quota="factor"), "quota=factor.*order=confidence"),
        (lambda: SampleOptions(quota="entropy_bound"), "order=entropy, not confidence"),
        (lambda: SampleOptions(remask=0.1), "remask=0.1.*quota=ancestral"),
        (lambda: SampleOptions(quota="ancestral", remask=1.5), "remask=1.5.*1"),
        (lambda: SampleOptions(-1), "max_new_tokens=-1.*negative"),
        (lambda: SampleOptions(block_size=-4), "block_size=-4.*negative"),
        (lambda: SampleOptions(steps=-4), "steps=-4.*negative"),
        (lambda: SampleOptions(temperature=-0.5), "temperature=-0.5.*negative"),
        (lambda: SampleOptions(top_k=-1), "top_k=-1.*negative"),
        (lambda: SampleOptions(cfg_scale=-0.5), "cfg_scale=-0.5.*negative"),
        (lambda: SampleOptions(top_p=0.0), r"top_p=0.0.*\(0, 1\]"),
        (lambda: SampleOptions(top_p=1.5), r"top_p=1.5.*\(0, 1\]"),
        (lambda: SampleOptions(schedule="linera"), "linera.*linear, poly2"),
        (lambda: SampleOptions(order="confidnce"), "confidnce.*confidence"),
        (lambda: SampleOptions(quota="treshold"), "treshold.*threshold"),
        (lambda: LossOptions(corruption="counts"), "counts.*count"),
        (lambda: LossOptions(objective="elbo"), "elbo.*nelbo"),
        (lambda: LossOptions(schedule="linera"), "linera.*linear, poly2"),
        (lambda: LikelihoodOptions("l2r"), "l2r.*left_to_right"),
        (lambda: ar.SampleOptions(top_p=0.0), r"top_p=0.0.*\(0, 1\]"),
        (lambda: ar.SampleOptions(temperature=-1.0), "temperature=-1.0.*negative"),
    ],
)
def test_bad_options_are_refused_with_the_value_and_the_way_out(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ------------------------------------------------------------------------------------------------------------------
# the autoregressive baseline


CAUSAL = transformer(1, causal=True)


def next_token_logp(net, tokens, mask_id):
    """log p of the next token after each prefix, by one plain forward over [mask, tokens]: (len + 1, V)."""
    logits = net(torch.cat([ids(mask_id), tokens])[None])[0]
    logits[:, mask_id] = -torch.inf
    return logits.log_softmax(-1)


def test_the_autoregressive_loss_is_the_sum_of_the_tokens_nll():
    """Every token is predicted, the first one from begin-of-text, as in diffusion: the units are the same."""
    x = torch.randint(6, VOCAB, (3, 7), generator=generator(0))
    maskable = torch.arange(7) >= torch.tensor([0, 2, 7])[:, None]
    nll = torch.stack([-next_token_logp(CAUSAL, row, M)[:-1].gather(1, row[:, None])[:, 0] for row in x])
    value = ar.nelbo(CAUSAL, x, mask_id=M)
    assert value.dtype == torch.float64 and (value - nll.sum(1)).abs().max() < 1e-5
    assert (ar.nelbo(CAUSAL, x, mask_id=M, maskable=maskable) - (nll * maskable).sum(1)).abs().max() < 1e-5
    assert abs(ar.loss(CAUSAL, x, mask_id=M) - nll.mean()) < 1e-6
    assert abs(ar.loss(CAUSAL, x, mask_id=M, maskable=maskable) - nll[maskable].mean()) < 1e-6
    parts = [ar.loss(CAUSAL, x[i : i + 1], mask_id=M, maskable=maskable[i : i + 1], denominator=12) for i in range(3)]
    assert abs(sum(parts) - nll[maskable].mean()) < 1e-6
    real = torch.arange(7) < torch.tensor([7, 3, 5])[:, None]
    padded = ar.nelbo(CAUSAL, torch.where(real, x, 0), mask_id=M, real=real)
    assert (padded - (nll * real).sum(1)).abs().max() < 1e-5


def test_autoregressive_likelihoods_sum_to_one():
    """Over all strings of a tiny vocabulary, the mask excluded, given any prompt, in ragged batches."""
    net = transformer(2, vocab=4, causal=True)  # the mask is id 2
    targets = [t for t in listing(4, 3) if (t != 2).all()]
    assert len(targets) == 27
    for prompt in (ids(), ids(3, 0)):
        ll = ar.log_likelihood(net, [prompt] * 27, targets, ar.LikelihoodOptions(batch_size=5), mask_id=2)
        assert abs(ll.exp().sum() - 1) < 1e-6
    prompts, targets = [ids(), ids(0, 1, 3), ids(1)], [ids(3, 1), ids(0), ids(0, 0, 0, 1)]
    together = ar.log_likelihood(net, prompts, targets, mask_id=2)
    for prompt, target, value in zip(prompts, targets, together):
        logp = next_token_logp(net, torch.cat([prompt, target]), 2)[len(prompt) : -1]
        assert abs(value - logp.gather(1, target[:, None]).sum()) < 1e-5


@pytest.mark.parametrize("keys", [dict(temperature=0), {}, dict(top_k=4, top_p=0.9, temperature=1.3, seed=2)], ids=str)
def test_the_kv_cache_gives_the_tokens_of_recomputation(keys):
    """Greedy, or sampled with the same uniform numbers; a ragged row is what it is alone; the trace replays."""
    options = ar.SampleOptions(9, suppress=(3,), **keys)
    prompts = [ids(1, 2, 4), ids(), ids(6, 7, 8, 9, 10), ids(11)]
    out = ar.generate(CAUSAL, prompts, options, mask_id=M, trace=True)
    assert out.num_forwards == [9] * 4
    for row, prompt in enumerate(prompts):
        tokens = prompt
        for _, position, token, p in out.trace[row]:
            logits = next_token_logp(CAUSAL, tokens, M)[-1:]
            logits[:, 3] = -torch.inf
            u = noise.uniform(options.seed, torch.tensor([row]), len(tokens), 1)
            drawn = choice.choose_tokens(logits, u, options.temperature, options.top_k, options.top_p)
            assert (position, token) == (len(tokens), drawn.item())
            assert abs(p - logits.softmax(-1)[0, token].item()) < 1e-5
            tokens = torch.cat([tokens, drawn])
        assert torch.equal(out.tokens[row], tokens) and len(tokens) == len(prompt) + 9
        others = [ids(8, 8, 8, 8, 8, 8, 8)] * row + [prompt] + [ids(2)]
        assert torch.equal(ar.generate(CAUSAL, others, options, mask_id=M).tokens[row], tokens)


def test_autoregressive_generation_stops_at_a_generated_end_of_text():
    """Each row by itself; one in the prompt stops nothing; nothing to generate needs no forward."""
    prompts = [ids(1, 2, 4), ids(), ids(6, 7, 8, 9, 10), ids(11)]
    free = ar.generate(CAUSAL, prompts, ar.SampleOptions(9), mask_id=M)
    for eos in (0, int(free.tokens[0][5]), int(free.tokens[1][2])):
        given_eos = [torch.cat([ids(eos), p]) for p in prompts]
        for start in (prompts, given_eos):
            full = ar.generate(CAUSAL, start, ar.SampleOptions(9), mask_id=M).tokens
            out = ar.generate(CAUSAL, start, ar.SampleOptions(9), mask_id=M, eos_id=eos)
            for prompt, row, whole, forwards in zip(start, out.tokens, full, out.num_forwards):
                ends = (whole[len(prompt) :] == eos).nonzero()[:, 0].tolist()
                n = len(prompt) + ends[0] + 1 if ends else len(whole)
                assert torch.equal(row, whole[:n]) and forwards == n - len(prompt)
    none = ar.generate(CAUSAL, prompts, ar.SampleOptions(0), mask_id=M)
    assert all(torch.equal(a, b) for a, b in zip(none.tokens, prompts)) and none.num_forwards == [0] * 4
    assert ar.generate(CAUSAL, [], ar.SampleOptions(3), mask_id=M).tokens == []


def test_an_autoregressive_model_refuses_to_fill_in():
    with pytest.raises(ValueError, match="masks"):
        ar.generate(CAUSAL, [ids(1, M, 2)], ar.SampleOptions(2), mask_id=M)
