"""What the fast engine chooses: random numbers, tokens, positions; every published rule, exact numbers where these can
be enumerated, the published arithmetic, and ties.

Papers: ReMDM arXiv 2503.00307, Fast-dLLM 2505.22618, EB-Sampler 2505.24857, Dream 2508.15487, LLaDA 2502.09992.
"""

import itertools
import math
from dataclasses import replace

import pytest
import torch
import toy
from reference_sampler import narrowed, without
from toy import ARBITRARY, MASK, SCHEDULES, STRINGS, VOCAB, L, M, Net, Script, ids

import mdlm
from experiments import approximate
from model import Config
from nanodlm import choice, decode, fast_bd3lm, fast_mdlm, noise
from nanodlm.decode import SampleOptions
from nanodlm.likelihood import LikelihoodOptions

# ---- random numbers --------------------------------------------------------------------------------------------------


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


def test_uniform_depends_on_every_counter_and_on_their_order_and_on_nothing_else():
    """A row of a batch has the numbers of the row alone; fold makes unrelated seeds."""
    some = {float(noise.uniform(*c)) for c in [(1, 2, 3), (0, 2, 3), (1, 0, 3), (1, 2, 0), (3, 2, 1), (1, 2)]}
    assert len(some) == 6 and noise.uniform(1, 2, 3) == noise.uniform(1, torch.tensor(2), torch.tensor([3]))
    batch = noise.uniform(5, torch.arange(6)[:, None], torch.arange(9))
    assert all(torch.equal(batch[row, :4], noise.uniform(5, row, torch.arange(4))) for row in range(6))
    seeds = [noise.fold(seed, step) for seed in range(50) for step in range(50)]
    assert len(set(seeds)) == 2500 and all(isinstance(s, int) and 0 <= s < 2**52 for s in seeds)


# ---- tokens ----------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("keys", [dict(temperature=0.6), dict(top_k=4), dict(top_p=0.8)], ids=str)
def test_tokens_are_drawn_with_their_probabilities(keys):
    """Those that are filtered out never, not even at the ends of the unit interval; of one that is left always."""
    logits, u = torch.randn(1, 10, generator=toy.generator(2)), noise.uniform(1, torch.arange(100_000))
    law = choice.filter_logits(logits, **keys).softmax(-1)[0]
    counts = torch.bincount(choice.choose_tokens(logits.expand(len(u), 10), u, **keys), minlength=10)
    assert abs(toy.chi_square(counts, law)) < 4
    many, u = torch.randn(50, 20, generator=toy.generator(0)), noise.uniform(0, torch.arange(50))
    for greedy in (dict(temperature=0), dict(top_k=1)):
        assert torch.equal(choice.choose_tokens(many, u, **greedy), many.argmax(-1))


def test_suppressed_tokens_are_never_drawn_even_at_the_ends():
    u = torch.tensor([2.0**-53, 2.0**-40, 0.5, 1 - 2.0**-40, 1 - 2.0**-53]).double()
    for seed in range(50):
        logits = 3 * torch.randn(1, 200, generator=toy.generator(seed))
        logits[:, torch.rand(200, generator=toy.generator(seed + 1)) < 0.5] = -torch.inf
        logits[:, [0, 1, -2, -1]] = -torch.inf
        for keys in ({}, dict(top_p=0.9), dict(top_k=3), dict(temperature=0.1), dict(temperature=0)):
            drawn = choice.choose_tokens(logits.expand(5, 200), u, **keys)
            assert (logits[0, drawn] > -torch.inf).all()


# ---- positions -------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    "keys",
    [
        dict(quota="factor", factor=1.1),
        dict(quota="entropy_bound", order="entropy", entropy_bound=0.5),
        dict(quota="ancestral", steps=5, remask=0.3),
        dict(quota="ancestral", steps=6, remask=0.5, remask_from=0.7, remask_until=0.3),
    ],
    ids=str,
)
def test_generate_follows_the_law_that_its_rules_imply(keys):
    """20,000 samples against the enumerated law of the same rules."""
    o = SampleOptions(L, **keys)

    def chosen(sure, hidden, count):
        return choice.choose_positions(sure, hidden, o, count)[0].nonzero()[:, 0].tolist()

    if o.quota == "ancestral":
        law = toy.ancestral_law(ARBITRARY, o, lambda t, s: choice.ancestral_rates(t, s, o))
    else:
        law = toy.law(ARBITRARY, o, choose=chosen)
    assert abs(law.sum() - 1) < 1e-12
    assert abs(toy.chi_square(sampled_counts(ARBITRARY, o), law)) < 4


def sampled_counts(model, o, n=20000):
    return toy.string_counts(fast_mdlm.generate(model, [ids()] * n, o, mask_id=MASK).tokens)


@pytest.mark.parametrize("remask", [0.0, 0.05, 0.4, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_remasking_keeps_the_marginals_of_the_forward_process(schedule, remask):
    """ReMDM eq. 6 and theorem 3.1: alpha_t (1 - sigma) + (1 - alpha_t) reveal = alpha_s, with probabilities in [0, 1]
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


# ---- which measure ---------------------------------------------------------------------------------------------------


def law(model, o):
    """The law of confidence sampling on the toy, its steps all alike, by enumeration of every draw: (16,)."""
    canvases = {(MASK,) * L: 1.0}
    for _ in range(o.steps):
        following = {}
        for canvas, weight in canvases.items():
            where = [i for i in range(L) if canvas[i] == MASK]
            logits = model(torch.tensor([canvas]))[0, where, :MASK]
            drawn = [narrowed(row, o).softmax(0).tolist() for row in logits]
            p = drawn if o.measure == "draw" else logits.softmax(-1).tolist()
            for tokens in itertools.product(range(2), repeat=len(where)):
                sure = [max(row) if o.measure == "network" else row[t] for row, t in zip(p, tokens)]
                best = sorted(range(len(where)), key=lambda j: -sure[j])[: L // o.steps]
                new = list(canvas)
                for j in best:
                    new[where[j]] = tokens[j]
                chance = math.prod(p[t] for p, t in zip(drawn, tokens))
                following[tuple(new)] = following.get(tuple(new), 0.0) + weight * chance
        canvases = following
    return torch.tensor([canvases.get(tuple(s), 0.0) for s in STRINGS.tolist()], dtype=torch.float64)


@pytest.mark.parametrize("steps", [2, 4])
@pytest.mark.parametrize(
    "keys",
    [dict(measure="token"), dict(measure="token", temperature=0.5), dict(measure="draw", temperature=1.4, top_p=0.85)],
    ids=str,
)
def test_the_surest_drawn_token_is_revealed_first(keys, steps):
    """LLaDA's and Dream's order. Unlike measure=network it changes the law: among the tokens drawn, likely ones win."""
    o = SampleOptions(L, steps=steps, **keys)
    exact, counts = law(ARBITRARY, o), sampled_counts(ARBITRARY, o)
    assert abs(toy.chi_square(counts, exact)) < 4
    other = law(ARBITRARY, replace(o, measure="network"))
    assert (20_000 * (exact - other) ** 2 / other.clamp(min=1e-12)).sum() > 100  # so many samples would show it


def fixed(*rows):
    """A network for which position i has the probabilities rows[i], {token: p}, whatever the canvas."""
    p = torch.full((len(rows), VOCAB), 1e-12, dtype=torch.float64)
    for i, row in enumerate(rows):
        for token, value in row.items():
            p[i, token] = value
    script = Script([0] * len(rows), [0.5] * len(rows))
    script.logits = p.log()
    return script


def test_at_temperature_0_the_filters_count_for_the_measure_of_a_draw_only():
    """Dream's code filters the untempered logits then. A single token that is left has no rival: both tie."""
    script = fixed({1: 0.5, 3: 0.3, 4: 0.2}, {2: 0.6, 6: 0.4})
    for keys, first in (
        (dict(measure="token", top_k=1), 1),
        (dict(measure="network", top_k=1), 1),
        (dict(measure="draw"), 1),
        (dict(measure="draw", top_k=1), 0),
        (dict(measure="draw", top_p=0.75), 0),  # 0.5 / 0.8 against 0.6
    ):
        out = fast_mdlm.generate(script, [ids()], SampleOptions(2, temperature=0.0, **keys), mask_id=M, trace=True)
        assert out.tokens[0].tolist() == [1, 2] and out.trace[0][0][1] == first, keys


@pytest.mark.parametrize("order", ["confidence", "margin", "entropy"])
def test_positions_are_drawn_without_replacement_by_the_exponentials_of_their_certainties(order):
    """Dream's alg_temp: the law of the order is Plackett and Luce's."""
    script, n = Script([1, 2, 3, 4], [0.3, 0.9, 0.6, 0.7]), 8000
    o = SampleOptions(4, order=order, order_temperature=1.5 if order == "entropy" else 0.4)
    p = without(script.logits.T, [M]).T.exp()
    best = p.sort(-1, descending=True).values
    entropy = -p.xlogy(p).sum(-1)
    score = {"confidence": best[:, 0], "margin": best[:, 0] - best[:, 1], "entropy": -entropy}[order]
    weight = (score / o.order_temperature).exp().tolist()
    orders = list(itertools.permutations(range(4)))
    exact = [math.prod(weight[i] / sum(weight[j] for j in way[k:]) for k, i in enumerate(way)) for way in orders]
    out = fast_mdlm.generate(script, [ids()] * n, o, mask_id=M, trace=True)
    ways = [orders.index(tuple(e[1] for e in events)) for events in out.trace]
    counts = torch.bincount(torch.tensor(ways), minlength=24)
    assert abs(toy.chi_square(counts, torch.tensor(exact, dtype=torch.float64))) < 4
    assert toy.chi_square(counts) > 20
    top_two = fast_mdlm.generate(script, [ids()] * n, replace(o, steps=2), mask_id=M, trace=True)
    pairs = torch.tensor([sum(2 ** e[1] for e in events[:2]) for events in top_two.trace])
    expected = torch.zeros(16, dtype=torch.float64)
    for way, chance in zip(orders, exact):
        expected[2 ** way[0] + 2 ** way[1]] += chance
    assert abs(toy.chi_square(torch.bincount(pairs, minlength=16), expected)) < 4


def test_the_last_tokens_are_revealed_after_all_others():
    """The surest positions hold end tokens: they wait, and go from left to right, also where positions are drawn; the
    rest is renormalised: 0.4 of the 0.65 that token 0 leaves are more than 0.5 of 1."""
    script = Script([3, 0, 4, 7, 1, 0], [0.5, 0.9, 0.3, 0.99, 0.4, 0.95])
    for keys in (dict(), dict(measure="token"), dict(measure="draw", order="margin"), dict(order="entropy")):
        o = SampleOptions(6, temperature=0.0, last=(0, 7), **keys)
        out = fast_mdlm.generate(script, [ids()], o, mask_id=M, trace=True)
        assert [e[1] for e in out.trace[0]] == [0, 4, 2, 1, 3, 5] and out.tokens[0].tolist() == [3, 0, 4, 7, 1, 0]
    out = fast_mdlm.generate(script, [ids()] * 50, replace(o, order_temperature=1.0), mask_id=M, trace=True)
    assert all({e[1] for e in events[:3]} == {0, 4, 2} for events in out.trace)
    two = fixed({1: 0.4, 0: 0.35, 3: 0.25}, {2: 0.5, 4: 0.3, 6: 0.2})
    for last, first in (((), 1), ((0,), 0)):
        o = SampleOptions(2, temperature=0.0, last=last)
        assert fast_mdlm.generate(two, [ids()], o, mask_id=M, trace=True).trace[0][0][1] == first


def published_counts(masks, steps):
    """Dream's loop, for rows of so many masks (N,): (N, steps)."""
    times, left, counts = torch.linspace(1, 1e-3, steps + 1), masks, []
    for i in range(steps):
        n = left / 1  # mask_index.sum() / mask_index.shape[0], in fp32
        counts.append((n * (1 - times[i + 1] / times[i])).int() if i < steps - 1 else n.int())
        left = left - counts[-1]
    return torch.stack(counts, 1)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 16, 31, 64, 100, 128, 256, 512])
def test_dreams_quota_is_the_published_one(steps):
    masks = torch.arange(1, 1025)
    left, made = masks, []
    for i in range(steps):
        made.append(choice.quota(masks, left, torch.tensor(i), torch.tensor(steps), "dream"))
        left = left - made[-1]
    assert torch.equal(torch.stack(made, 1), published_counts(masks, steps).long()) and (left == 0).all()


@pytest.mark.parametrize("masks, steps", [(6, 4), (6, 20), (13, 5), (16, 16)])
def test_each_row_follows_dreams_schedule_for_its_own_masks(masks, steps):
    """The published code averages the masks of a batch."""
    prompts = [ids(*range(6, 12)), ids(*[M] * (masks - 3))]
    o = SampleOptions(3, order="entropy", schedule="dream", steps=steps, temperature=0.0)
    out = fast_mdlm.generate(Script([1] * 16, [0.1 * i for i in range(1, 9)] * 2), prompts, o, mask_id=M, trace=True)
    expected = published_counts(torch.tensor([3, masks]), steps).tolist()
    assert [[sum(e[0] == i for e in events) for i in range(steps)] for events in out.trace] == expected


# ---- exact: the published arithmetic ---------------------------------------------------------------------------------


def test_confidences_are_at_least_fp32_and_exact_guidance_is_computed_in_the_networks_dtype():
    """In bf16 confidences tie, and the order depends on noise."""
    cond, un = (torch.randn(3, 9, generator=toy.generator(seed)).bfloat16() for seed in (0, 1))
    assert decode.reader(Net(), cond, 0.0)(torch.arange(3)).dtype == torch.float32
    exact, plain = (decode.reader(Net(), torch.cat([cond, un]), 0.7, e)(torch.arange(3)) for e in (True, False))
    assert exact.dtype == plain.dtype == torch.float32 and not torch.equal(exact, plain)
    assert torch.equal(exact, (un + 1.7 * (cond - un)).float())
    assert torch.allclose(plain, un.float() + 1.7 * (cond.float() - un.float()), atol=1e-6)


class Fixed(torch.nn.Module):
    """Answers with the same logits (L, V) at every canvas, in its own dtype, as a network computes them."""

    def __init__(self, logits, dtype=torch.bfloat16):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.as_tensor(logits).to(dtype))
        self.config = Config(vocab_size=self.logits.shape[1])

    def hidden(self, ids, mask=None, positions=None, cache=None, rows=None):
        return self.logits[: ids.shape[1]].repeat(len(ids), 1)[rows]

    def head(self, x):
        return x


def order_of(model, o, n):
    out = fast_mdlm.generate(model, [ids()], replace(o, max_new_tokens=n), mask_id=2, trace=True)
    assert (out.tokens[0] != 2).all()
    return [e[1] for e in out.trace[0]]


GREEDY = SampleOptions(temperature=0.0, measure="token")


def test_exact_confidences_are_computed_in_the_networks_dtype_and_ties_go_to_the_left():
    """Logits that differ in bf16, whose softmax in bf16 does not."""
    logits = [[6.0, 0, -9, 0], [6.03125, 0, -9, 0], [2.0, 0, -9, 0], [6.0625, 0, -9, 0]]
    p = torch.tensor(logits, dtype=torch.bfloat16).softmax(-1).amax(-1)
    assert p[0] == p[1] == p[3] > p[2]
    assert order_of(Fixed(logits), replace(GREEDY, exact=True), 4) == [0, 1, 3, 2]
    for exact in (False, True):
        assert order_of(Fixed(logits, torch.float32), replace(GREEDY, exact=exact), 4) == [3, 1, 0, 2]


@pytest.mark.parametrize("measure", ["network", "token", "draw"])
@pytest.mark.parametrize("order", ["confidence", "margin", "entropy"])
def test_exact_certainties_count_the_mask_among_the_alternatives(order, measure):
    """0.449 for the token and 0.55 for the mask is less sure than 0.85; without the mask it is surer."""
    p = torch.tensor([[0.449, 0.001, 0.55, 1e-9], [0.85, 0.1, 1e-9, 0.05], [0.5, 0.3, 0.1, 0.1]])
    o = SampleOptions(temperature=0.0, order=order, measure=measure)
    assert order_of(Fixed(p.log(), torch.float32), o, 3)[0] == 0
    first, *_ = order_of(Fixed(p.log(), torch.float32), replace(o, exact=True), 3)
    assert first == 1


def test_exact_draws_take_the_maximum_of_the_probabilities_in_the_networks_dtype():
    """As Dream's code does: logits that differ in bf16, whose softmax in bf16 does not; the left token wins."""
    logits = [[-9.0, 0.25, -9.0, 0.251953125]]
    p = torch.tensor(logits, dtype=torch.bfloat16)
    assert p[0, 1] < p[0, 3] and p.softmax(-1)[0, 1] == p.softmax(-1)[0, 3]
    o = SampleOptions(1, temperature=0.0, exact=True)
    for measure, token in (("draw", 1), ("token", 3), ("network", 3)):
        out = fast_mdlm.generate(Fixed(logits), [ids()], replace(o, measure=measure), mask_id=2)
        assert out.tokens[0].tolist() == [token]


@pytest.mark.parametrize("exact, least", [(False, -13), (True, -17)])
def test_small_entropies_do_not_tie(exact, least):
    """Down to the last digits of a probability near 1; exact, as small as they may be."""
    logits = [[0.0, least, -99, -99], [0.0, least - 2, -99, -99], [0.0, least - 1, -99, -99]]
    o = SampleOptions(temperature=0.0, order="entropy", exact=exact)
    assert order_of(Fixed(logits, torch.float32), o, 3) == [1, 2, 0]


@pytest.mark.parametrize(
    "keys",
    [{}, dict(measure="draw"), dict(order="random"), dict(quota="threshold"), dict(measure="draw", top_k=1)]
    + [dict(top_k=1, temperature=1.0), dict(top_p=0.3, temperature=1.0)],
    ids=str,
)
def test_where_the_published_code_would_write_a_mask_the_best_other_token_stands(keys):
    """As where its filters leave the mask alone."""
    keys = dict(temperature=0.0, threshold=0.2) | keys
    p = torch.tensor([[0.1, 0.3, 0.5, 0.1], [0.2, 0.1, 0.6, 0.1]])
    out = fast_mdlm.generate(Fixed(p.log()), [ids()], SampleOptions(2, exact=True, **keys), mask_id=2)
    assert out.tokens[0].tolist() == [1, 0]


def test_exact_decoding_draws_tokens_as_if_the_mask_had_no_probability():
    p = torch.tensor([[0.1, 0.3, 0.4, 0.2]], dtype=torch.float64)
    o = SampleOptions(1, exact=True)
    out = fast_mdlm.generate(Fixed(p.log(), torch.float64), [ids()] * 20000, o, mask_id=2)
    counts = torch.bincount(torch.cat(out.tokens), minlength=4)
    assert abs(toy.chi_square(counts, torch.tensor([1, 3, 0, 2], dtype=torch.float64) / 6)) < 4


# ---- ties ------------------------------------------------------------------------------------------------------------
#
# On a canvas of masks under RoPE all positions are equally sure, and so are the first two of a shifted network. The
# networks here answer with logits that are moved by rounding, differently at every call, as other machines and batch
# shapes move them; what is decoded must not.


DTYPES = [torch.float64, torch.float32, torch.bfloat16]


class Shaken(Net):
    """A network whose logits are off by up to `ulps` units in the last place, anew at each call."""

    def __init__(self, net, seed=0, ulps=1.0):
        self.net, self.config, self.cache, self.parameters = net, net.config, net.cache, net.parameters
        self.random, self.ulps = toy.generator(seed), ulps

    def hidden(self, *args, **keys):
        return self.net.hidden(*args, **keys)

    def head(self, x):
        logits = self.net.head(x)
        off = 2 * torch.rand(logits.shape, generator=self.random) - 1
        return logits * (1 + self.ulps * torch.finfo(logits.dtype).eps * off).to(logits.dtype)

    def __call__(self, *args, **keys):
        return self.head(self.hidden(*args, **keys))


def network(dtype, seed=0, **keys):
    return toy.transformer(seed, 0.4, dtype, **dict(seq_len=24) | keys)


TIES = {
    "one": {},
    "steps": dict(steps=5),
    "cosine": dict(steps=4, schedule="cosine"),
    "threshold": dict(quota="threshold", threshold=0.6),
    "factor": dict(quota="factor", factor=1.3),
    "entropy bound": dict(quota="entropy_bound", order="entropy", entropy_bound=2.5),
    "blocks": dict(block_size=4, steps=6),
    "dual": dict(block_size=4, cache="dual"),
    "guided": dict(cfg_scale=0.5, steps=5),
}
GRID = [(q, TIES[q].get("order", "confidence")) for q in TIES]
GRID += [(q, order) for q in ("one", "steps", "threshold", "guided") for order in ("margin", "entropy")]


@pytest.mark.parametrize("quota, order", GRID)
def test_a_text_without_a_prompt_begins_at_the_left_and_is_the_same_alone_and_in_every_batch(quota, order):
    """The first step, of every dtype; the first two positions of a shifted network; and to the end in float32, with
    logits that are off by several times their rounding, however tokens are drawn."""
    keys = dict(max_new_tokens=7, order=order) | TIES[quota]
    for shift, dtype in zip((False, True, False, True), (torch.float64, torch.float32, *DTYPES[1:])):
        if quota == "guided" and dtype is torch.bfloat16:
            continue  # guidance doubles the rounding, which in bfloat16 is then more than a tie allows
        net = network(dtype, shift=shift)
        o = SampleOptions(temperature=0.0, measure="draw" if shift else "network", **keys)
        batches = ([ids()], [ids(), ids(1, 2, 3)], [ids(), ids(), ids(*range(5))])
        seen = [fast_mdlm.generate(Shaken(net), rows, o, mask_id=M, trace=True).trace[0] for rows in batches]
        first = [sorted(e[1] for e in events if e[0] == 0) for events in seen]
        assert first[0] == first[1] == first[2] == list(range(len(first[0])))
        begins = torch.cat([ids(M, M), toy.texts(1, 5)[0]])
        if shift and not o.block_size:
            events = fast_mdlm.generate(Shaken(net), [begins], replace(o, max_new_tokens=0), mask_id=M, trace=True)
            assert [e[1] for e in events.trace[0]] == [0, 1]
    for shift, temperature in ((False, 0.0), (True, 1.0)):
        net, o = network(torch.float32, 3, shift=shift), SampleOptions(temperature=temperature, seed=5, **keys)
        rows = [ids(), ids(M, M, 4), ids(7), ids(8, 1, 2, 3)]
        batch = fast_mdlm.generate(Shaken(net, 0, 4), rows, o, mask_id=M)
        for i, row in enumerate(rows):
            alone = fast_mdlm.generate(Shaken(net, 1 + i, 4), [row], o, mask_id=M, numbers=torch.tensor([i]))
            assert alone.tokens[0].tolist() == batch.tokens[i].tolist()
            assert alone.num_forwards[0] == batch.num_forwards[i]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_blocks_without_a_prompt_begin_at_the_left(dtype):
    net = Shaken(network(dtype, block_size=8))
    for order, rows in itertools.product(("confidence", "margin", "entropy"), ([ids()], [ids(), ids(1, 2, 3, 4, 5)])):
        o = fast_bd3lm.SampleOptions(8, order=order, temperature=0.0, steps=3)
        events = fast_bd3lm.generate(net, rows, o, mask_id=M, trace=True).trace[0]
        assert [e[1] for e in events if e[0] == 0] == [0, 1, 2]


@pytest.mark.parametrize(
    "module, method, keys",
    [(fast_mdlm, "confidence", {}), (fast_mdlm, "illada", {}), (fast_bd3lm, "confidence", dict(block_size=6))],
    ids=["confidence", "illada", "blocks"],
)
def test_a_score_does_not_depend_on_the_batch_it_was_computed_in(module, method, keys):
    """Ragged texts without a prompt, with tokens that repeat, in float32."""
    for seed in range(3):
        net, found = network(torch.float32, seed, **keys), []
        targets = [toy.texts(1, n, n + seed)[0] for n in (9, 4, 12, 7, 10, 3)]
        for size in (1, 2, 4, 6):
            o = LikelihoodOptions(method, batch_size=size)
            found.append(module.log_likelihood(Shaken(net, size, 4), [ids()] * 6, targets, o, mask_id=M))
        assert max((f - found[0]).abs().max() for f in found) < 1e-3


@pytest.mark.parametrize("module", [mdlm, fast_mdlm], ids=["plain", "fast"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_likelihood_by_confidence_is_the_law_of_the_sampler_where_certainties_tie(dtype, module):
    """The probabilities that a sample was drawn with multiply to it, and those of all texts add up to one."""
    net = Shaken(network(dtype, 2, vocab_size=3, seq_len=4), ulps=2)
    out = module.generate(net, [ids()] * 20, module.SampleOptions(4, seed=1), mask_id=2, trace=True)
    assert len({tuple(t.tolist()) for t in out.tokens}) > 3
    drawn = torch.tensor([sum(math.log(e[3]) for e in events) for events in out.trace], dtype=torch.float64)
    o = LikelihoodOptions("confidence", batch_size=7)
    assert torch.allclose(module.log_likelihood(net, [ids()] * 20, out.tokens, o, mask_id=2), drawn, atol=1e-4)
    total = module.log_likelihood(net, [ids()] * 16, list(STRINGS), o, mask_id=2).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-4)


# ---- tried, and measured beside the engine ---------------------------------------------------------------------------


def test_the_rules_that_did_not_pay_are_what_their_papers_say():
    """LocalLeap, CreditDecoding and WINO in experiments/approximate.py: without them the threshold, token for token; by
    hand; and they end."""
    net, x = toy.transformer(0), torch.tensor([[1, M, 3, M, M, 0, M], [M, M, 2, M, 4, M, 9]])
    o = SampleOptions(0, quota="threshold", threshold=0.4)
    for temperature in (0.0, 1.0):
        out = fast_mdlm.generate(net, list(x), replace(o, temperature=temperature), mask_id=M)
        for keys in ({}, dict(verify=1e-9), dict(credit=1e-12), dict(near=0.4)):  # it never doubts; it adds nothing
            made, forwards = approximate.published(net, x[:, :], M, 0.4, temperature=temperature, **keys)
            assert torch.equal(made, torch.stack(out.tokens)) and forwards.tolist() == out.num_forwards
    for keys in (dict(threshold=0.0, verify=2.0), dict(threshold=0.6, verify=0.9), dict(threshold=2.0, credit=9.0)):
        made, forwards = approximate.published(net, x, M, **keys)
        assert (made != M).all() and torch.equal(made[x != M], x[x != M]) and (forwards <= 9).all()

    def forwards(sure, **keys):
        made, count = approximate.published(Script([1] * len(sure), sure), ids(*[M] * len(sure))[None], M, **keys)
        assert (made == 1).all()
        return int(count)

    far = [0.95, 0.3, 0.8, 0.3, 0.8, 0.8, 0.8]  # the third and the fifth are near the first, the others are not
    assert [forwards(far, threshold=0.9, near=near) for near in (0.0, 0.7, 0.85)] == [7, 5, 7]
    # 0.6 is 1.5 to 1; eq. 6 and 7 make that 1.5 (1 + 0.6^0.2) = 2.85, and then 1.5 (1 + 1.8 * 0.6^0.2) = 3.94 to 1
    p = [0.6 * boost / (0.6 * boost + 0.4) for boost in (1 + 0.6**0.2, 1 + 1.8 * 0.6**0.2)]
    assert [forwards([0.6] * 4, threshold=t, credit=1.0) for t in (p[0] - 1e-6, p[0] + 1e-6)] == [1, 2]
    assert [forwards([0.6] * 4, threshold=t, credit=1.0) for t in (p[1] - 1e-6, p[1] + 1e-6)] == [2, 3]
