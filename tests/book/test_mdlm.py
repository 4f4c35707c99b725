"""The claims of masked diffusion, one per test, beside mdlm.py: exact by enumeration where mathematics allows.

Papers: MDLM arXiv 2406.07524, MD4 2406.04329, LLaDA 2502.09992, Fast-dLLM 2505.22618, DUEL 2603.01367. What the plain
functions and the fast ones both do is asked of both.
"""

import itertools
import math

import numpy as np
import pytest
import torch
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import ARBITRARY, DATA, ENTROPY, EXACT, MASK, ORDERS, PLAIN, SCHEDULES, SIZES, STRINGS, L, M, ids

import mdlm
from mdlm import LossOptions, SampleOptions
from nanodlm import choice, fast_mdlm, noise
from nanodlm.likelihood import LikelihoodOptions

both = pytest.mark.parametrize("module", [mdlm, fast_mdlm], ids=["plain", "fast"])


def random_rows(n, seed=0, empty=True):
    """Rows of the toy and which of their tokens are maskable; some rows have no maskable token at all."""
    x = torch.randint(0, 2, (n, L), generator=toy.generator(seed))
    maskable = torch.rand(n, L, generator=toy.generator(seed + 1)) < 0.7
    maskable[::8] = not empty
    return x, maskable


# ---- 1 · corruption --------------------------------------------------------------------------------------------------


def test_the_schedules_and_their_weights_are_the_papers():
    """w = -alpha' / (1 - alpha) is 1/t, k/t, (pi/2) tan(pi/2 (1-t)) (MD4) and (pi/2) sin(pi t/2) / (1 - cos(pi t/2))
    (MDLM); everything is clean at 0 and hidden at 1."""
    t, h = torch.linspace(0.05, 0.95, 19, dtype=torch.float64, requires_grad=True), math.pi / 2
    weights = [1 / t, 2 / t, 3 / t, h * torch.tan(h * (1 - t)), h * torch.sin(h * t) / (1 - torch.cos(h * t))]
    for schedule, weight in zip(SCHEDULES, weights):
        ends, (rate, slope) = mdlm.mask_rate(torch.tensor([0.0, 1.0]).double(), schedule), mdlm.mask_rate(t, schedule)
        assert torch.allclose(ends[0], torch.tensor([0.0, 1.0]).double(), atol=1e-15)
        assert torch.allclose(slope, torch.autograd.grad(rate.sum(), t)[0], rtol=1e-12) and (slope > 0).all()
        assert torch.allclose(toy.weight_at(t, schedule), weight, rtol=1e-12)
    for unknown in ("linera", "poly", "poly-1", "poly0", ""):
        with pytest.raises(ValueError, match="linear, poly2"):
            mdlm.mask_rate(t, unknown)


def test_low_discrepancy_puts_one_time_in_each_stratum():
    """MDLM's low-discrepancy sampler, jittered and in random order: every batch index sees all times over the seeds."""
    t = torch.stack([noise.stratified(seed, 16) for seed in range(800)])  # (seeds, 16)
    assert torch.equal((t.sort(1).values * 16).long(), torch.arange(16).expand(800, 16))
    for i in range(16):
        assert abs(toy.chi_square(torch.bincount((t[:, i] * 16).long(), minlength=16))) < 4
    assert abs(toy.chi_square(torch.bincount((t * 16 % 1 * 20).long().flatten(), minlength=20))) < 4
    independent = torch.stack([noise.stratified(seed, 16, low_discrepancy=False) for seed in range(200)])
    assert not torch.equal((independent.sort(1).values * 16).long(), torch.arange(16).expand(200, 16))
    assert abs(independent.mean() - 0.5) < 4 / (12 * 3200) ** 0.5


def test_hiding_by_count_hides_every_subset_equally_often_and_by_rate_each_token_independently():
    """q(z_t | x), MDLM section 3.2.1: each token by itself; or exactly k of the maskable ones (LLaDA eq. 6)."""
    n = 40_000
    u = noise.uniform(0, torch.arange(n)[:, None], torch.arange(5))
    maskable = torch.tensor([True, True, False, True, True]).expand(n, 5)
    by_count, by_rate = mdlm.hide_by_count(torch.full((n,), 2), u, maskable), (u < 0.3) & maskable
    for hidden, p in ((by_count, (SIZES == 2) / 6), (by_rate, 0.3**SIZES * 0.7 ** (4 - SIZES))):
        assert not hidden[:, 2].any()
        code = (hidden[:, [0, 1, 3, 4]] * torch.tensor([8, 4, 2, 1])).sum(1)
        assert abs(toy.chi_square(torch.bincount(code, minlength=16), p)) < 4
    few = torch.tensor([[True, True, False, False], [False] * 4])  # fewer than asked for: prompts and padding stay
    assert torch.equal(mdlm.hide_by_count(torch.tensor([3, 1]), u[:2, :4], few), few)


def test_times_are_clipped_and_bell_shaped_as_asked():
    """The fraction hidden of a long row is t (linear schedule): uniform, Beta(2, 2), or between t_min and t_max."""
    every = torch.ones(400, 400).bool()

    def fractions(**keys):
        return mdlm.corrupt(every, LossOptions(**keys), 0, 0, 400)[0].double().mean(1)

    for keys, share in [({}, lambda t: t), (dict(t_shape="bell"), lambda t: 3 * t**2 - 2 * t**3)]:
        for t in (0.1, 0.25, 0.5, 0.8):
            assert abs((fractions(**keys) < t).double().mean() - share(t)) < 0.02
    f = fractions(t_min=0.3, t_max=0.8)
    assert 0.2 < f.min() < 0.35 and 0.75 < f.max() < 0.9 and abs(f.mean() - 0.55) < 0.01


# ---- 2 · loss --------------------------------------------------------------------------------------------------------


def test_the_mask_token_is_never_predicted():
    """SUBS, MDLM section 3.2.3: probabilities over the real tokens sum to one, however likely masks look."""
    x = torch.tensor([[0, MASK, 1, MASK]])
    p = sum(mdlm.hidden_nll(ARBITRARY, x, torch.full_like(x, v), x == MASK, MASK).neg().exp() for v in range(2))
    assert torch.allclose(p, torch.ones(2, dtype=torch.float64), atol=1e-14)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_continuous_nelbo_of_exact_conditionals_is_minus_log_p(schedule):
    """MDLM eq. 11 is tight for the true posterior: NELBO(x) = -log p(x) for every x, at every schedule."""
    assert (toy.exact_nelbo(EXACT, STRINGS, schedule=schedule) + DATA.log()).abs().max() < 1e-10


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_discrete_nelbo_falls_towards_the_entropy_as_steps_grow(schedule):
    """MDLM eq. 8, weight T (alpha_s - alpha_t) / (1 - alpha_t): T = 1, 2, 4, 8, 16 … are ever tighter bounds."""

    def bound(T):
        t = torch.arange(1, T + 1, dtype=torch.float64)[:, None] / T
        rate_t, rate_s = (mdlm.mask_rate(time, schedule)[0] for time in (t, t - 1 / T))
        weight = ((rate_t - rate_s) / rate_t * rate_t**SIZES * (1 - rate_t) ** (L - SIZES)).sum(0)
        return (DATA @ (toy.subset_ce(EXACT, STRINGS) * weight).sum(1)).item()

    bounds = [bound(T) for T in (1, 2, 4, 8, 16)]
    assert all(a > b + 0.005 for a, b in zip(bounds, bounds[1:])) and bounds[-1] > ENTROPY
    assert bounds[0] - ENTROPY > 4 * (bounds[-1] - ENTROPY)
    assert 0 < bound(2048) - ENTROPY < 1e-3


def test_the_nelbo_of_any_denoiser_is_the_mean_over_all_orders():
    """At any schedule (MD4) = by exact counts (LLaDA eq. 6) = mean over the L! orders of the chain rule;
    and the mixture of the orders is at least as likely (Jensen)."""
    reference = toy.exact_nelbo(ARBITRARY, STRINGS)
    for schedule in SCHEDULES:
        assert (toy.exact_nelbo(ARBITRARY, STRINGS, schedule=schedule) - reference).abs().max() < 1e-10
    share = torch.tensor([L / k / (L * math.comb(L, k)) if k else 0.0 for k in SIZES.tolist()], dtype=torch.float64)
    assert ((toy.subset_ce(ARBITRARY, STRINGS) * share).sum(1) - reference).abs().max() < 1e-10
    chains = torch.stack([toy.chain_rule(ARBITRARY, STRINGS, order) for order in itertools.permutations(range(L))])
    assert (chains.mean(0) + reference).abs().max() < 1e-10
    mixture = chains.logsumexp(0) - math.log(len(chains))
    assert abs(mixture.exp().sum() - 1) < 1e-12 and (reference + mixture > 1e-3).all()


@pytest.mark.parametrize("complementary", [False, True])
@pytest.mark.parametrize("corruption", ["rate", "count"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_loss_is_the_nelbo_per_token_in_expectation(schedule, corruption, complementary):
    """MDLM eq. 11, LLaDA eq. 5: whatever the schedule and however masks are drawn; with prompts, and without."""
    options = LossOptions(schedule, corruption=corruption, complementary=complementary)
    x, maskable = random_rows(24)
    for rows, where in ((x, maskable), *[(STRINGS, None)] * (schedule == "linear")):
        exact = toy.exact_nelbo(ARBITRARY, rows, where).sum() / (rows.numel() if where is None else where.sum())
        keys = dict(mask_id=MASK, maskable=where)
        toy.assert_mean([mdlm.loss(ARBITRARY, rows, options, seed=s, **keys).item() for s in range(260)], exact.item())


@pytest.mark.parametrize("options", toy.OBJECTIVES, ids=str)
def test_prompts_are_never_hidden_and_never_learned(options):
    """LLaDA eq. 5. Rows without anything to learn add nothing, even where their tokens cannot be predicted at all."""
    x, maskable = random_rows(24)
    blank = torch.where(maskable.any(1)[:, None], x, MASK)  # a mask's cross entropy is infinite
    for seed in range(10):
        spy, copies = toy.Spy(ARBITRARY), 1 + options.complementary
        value = mdlm.loss(spy, x, options, mask_id=MASK, maskable=maskable, seed=seed)
        assert spy.seen[0].shape == (24 * copies, L)
        assert torch.equal(spy.seen[0][~maskable.repeat(copies, 1)], x[~maskable].repeat(copies))
        assert mdlm.loss(ARBITRARY, blank, options, mask_id=MASK, maskable=maskable, seed=seed) == value


@pytest.mark.parametrize("corruption", ["rate", "count"])
def test_at_time_1_everything_is_hidden_and_weighs_1(corruption):
    """With t_min = t_max = 1 the loss is the mean cross entropy of an empty canvas."""
    value = mdlm.loss(ARBITRARY, STRINGS, LossOptions(corruption=corruption, t_min=1.0, t_max=1.0), mask_id=MASK)
    assert abs(value - toy.subset_ce(ARBITRARY, STRINGS)[:, -1].mean() / L) < 1e-12


@pytest.mark.parametrize("options", toy.OBJECTIVES, ids=str)
def test_micro_batches_add_up_to_one_large_batch(options):
    """dLLM's gradient accumulation was 3.9 times too large. With one denominator, losses and gradients add up."""
    maskable = torch.arange(10) >= torch.arange(8)[:, None] % 4
    toy.assert_parts_add_up(mdlm.loss, toy.transformer(), toy.texts(8, 10), maskable, options)


def test_masked_ce_is_the_mean_cross_entropy_of_hidden_tokens():
    """LLaDA's loss without 1/t. With complementary masks exactly the mean over all tokens, each of which is predicted
    once; otherwise the ratio of the expectations."""

    def hidden_ce(seed, options):
        spy = toy.Spy(ARBITRARY)
        value = mdlm.loss(spy, STRINGS, options, mask_id=MASK, seed=seed).item()
        hidden = spy.seen[0] == MASK
        ce = mdlm.hidden_nll(ARBITRARY, spy.seen[0], STRINGS.repeat(len(hidden) // 16, 1), hidden, MASK)
        return value, ce.sum().item(), hidden

    for seed in range(5):
        value, ce, hidden = hidden_ce(seed, LossOptions(objective="masked_ce", complementary=True))
        first, second = hidden.chunk(2)
        assert torch.equal(first, ~second) and first.any() and abs(value - ce / STRINGS.numel()) < 1e-12
    for schedule in SCHEDULES:
        runs = [hidden_ce(seed, LossOptions(schedule, "masked_ce")) for seed in range(100)]
        value, ce, count = np.array([(v, c, h.sum()) for v, c, h in runs]).sum(0)
        assert abs(value / 100 / (ce / count) - 1) < 0.03


def test_low_discrepancy_and_exact_counts_reduce_the_variance_of_a_batch():
    """MDLM appendix: a loss that depends on t is steadier when every batch covers [0, 1] evenly. LLaDA section
    2.2: and one that depends on how many are hidden when they are counted."""

    def model(ids, mask=None, positions=None, rows=None):  # cross entropy 3 f^2 where a fraction f is hidden
        nll = 3 * (ids == MASK).double().mean(1, keepdim=True).expand_as(ids).flatten()[rows] ** 2
        return torch.stack([-nll, torch.log1p(-torch.exp(-nll)), nll], -1)

    def spread(model, x, **keys):
        return torch.tensor([mdlm.loss(model, x, LossOptions(**keys), mask_id=MASK, seed=s) for s in range(200)]).std()

    zeros, same = torch.zeros(16, 300, dtype=torch.int64), STRINGS[[6]].expand(16, L)
    assert spread(model, zeros, corruption="count") < 0.2 * spread(
        model, zeros, corruption="count", low_discrepancy=False
    )
    assert spread(EXACT, same, corruption="count") < 0.7 * spread(EXACT, same)


# ---- 3 · bound -------------------------------------------------------------------------------------------------------


def test_the_estimator_of_the_nelbo_is_unbiased_over_seeds():
    """LLaDA eq. 6. E over seeds of every row's estimate is that row's NELBO, with all tokens or only some maskable."""
    x, maskable = random_rows(16, empty=False)
    for model, where in [(EXACT, None), (ARBITRARY, None), (ARBITRARY, maskable)]:
        runs = [mdlm.nelbo(model, x, mask_id=MASK, maskable=where, seed=seed) for seed in range(600)]
        for values, exact in zip(torch.stack(runs, 1), toy.exact_nelbo(model, x, where).tolist()):
            toy.assert_mean(values, exact)


def test_the_estimator_of_the_nelbo_is_unbiased_over_rows_and_spreads_the_counts():
    """One seed and many rows suffice, counts are spread evenly, and the standard error over rows is not too small; it
    is smaller than that of independent masks, LLaDA section 2.4's reason for equation 6."""
    x0 = STRINGS[[6]].expand(4096, L)
    for model in (EXACT, ARBITRARY):
        for samples in (1, 3):
            values = mdlm.nelbo(model, x0, mask_id=MASK, samples=samples, seed=1)
            toy.assert_mean(values, toy.exact_nelbo(model, x0[:1]).item())
    t, u = noise.stratified(0, 4096), noise.uniform(1, torch.arange(4096)[:, None], torch.arange(L))
    which = ((u < t[:, None]) * torch.tensor([8, 4, 2, 1])).sum(1)
    by_rate = toy.subset_ce(ARBITRARY, x0[:1])[0, which] * toy.weight_at(t)
    toy.assert_mean(by_rate, toy.exact_nelbo(ARBITRARY, x0[:1]).item())
    assert mdlm.nelbo(ARBITRARY, x0, mask_id=MASK).var() < 0.5 * by_rate.var()
    spy = toy.Spy(EXACT)
    mdlm.nelbo(spy, x0[:64], mask_id=MASK)
    counts = torch.bincount((spy.seen[0] == MASK).sum(1), minlength=L + 1)
    assert counts[0] == 0 and (counts[1:] - 16).abs().max() <= 2


def test_neither_the_batch_nor_padding_changes_the_nelbo_of_a_row():
    """Fast-dLLM issue 39: scores moved with the batch size. dLLM issues 86-88: padding leaked into it."""
    x, maskable = random_rows(10, empty=False)
    keys = dict(mask_id=MASK, samples=3, seed=7)
    whole = mdlm.nelbo(ARBITRARY, x, maskable=maskable, **keys)
    for size in (1, 3):
        cut = range(0, 10, size)
        parts = [mdlm.nelbo(ARBITRARY, x[i : i + size], maskable=maskable[i : i + size], first=i, **keys) for i in cut]
        assert (torch.cat(parts) - whole).abs().max() < 1e-12
    assert (mdlm.nelbo(ARBITRARY, x, maskable=maskable, first=1, **keys) - whole).abs().max() > 0.1
    x, real = torch.cat([STRINGS, STRINGS.flip(0)]), torch.arange(L) < torch.arange(32)[:, None] % L + 1
    padded = mdlm.nelbo(ARBITRARY, torch.where(real, x, MASK), mask_id=MASK, real=real, samples=2)
    for i, n in enumerate(real.sum(1).tolist()):
        assert abs(padded[i] - mdlm.nelbo(ARBITRARY, x[i : i + 1, :n], mask_id=MASK, samples=2, first=i)) < 1e-12


# ---- 4 · sampling: which token, which position -----------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_tokens_are_drawn_with_their_probabilities(temperature):
    """By inverting the distribution function (arXiv 2409.02908); the temperature divides the logits."""
    logits, u = torch.randn(1, 10, generator=toy.generator(2)), noise.uniform(1, torch.arange(100_000))
    counts = torch.bincount(noise.draw(logits.expand(len(u), 10), u, temperature), minlength=10)
    assert abs(toy.chi_square(counts, (logits[0].double() / temperature).softmax(-1))) < 4
    many, u = torch.randn(50, 20, generator=toy.generator(0)), noise.uniform(0, torch.arange(50))
    for cold in (0, 1e-4):
        assert torch.equal(noise.draw(many, u, cold), many.argmax(-1))
    assert not torch.equal(noise.draw(many, u), many.argmax(-1))


def test_rare_tokens_keep_their_probability():
    """arXiv 2409.02908: -log(-log(u)) of an fp32 uniform is at most 16.6, so that with Gumbel noise 1e-12 never
    happens. Here each token owns exactly its share of the unit interval."""
    p = torch.tensor([1e-12, 1e-7, 0.5, 1e-9, 0.5 - 1e-7, 1e-12]).double()
    p = p / p.sum()
    ends = torch.cat([torch.zeros(1), p.cumsum(0)]).double()
    for token in range(6):
        inside = torch.stack([ends[token] + f * p[token] for f in (0.01, 0.5, 0.99)])
        assert noise.draw(p.log().expand(3, 6), inside).tolist() == [token] * 3


def test_certainty_is_the_largest_probability_the_margin_or_one_over_the_perplexity():
    """LLaDA's, MDM's top-K margin (arXiv 2502.06768) and Dream's entropy."""
    p = torch.tensor([[0.7, 0.2, 0.1, 0.0], [0.25, 0.25, 0.25, 0.25], [0.0, 0.0, 1.0, 0.0]]).double()
    perplexity = math.exp(-sum(v * math.log(v) for v in (0.7, 0.2, 0.1)))
    expected = {"confidence": [0.7, 0.25, 1.0], "margin": [0.5, 0.0, 1.0], "entropy": [1 / perplexity, 0.25, 1.0]}
    for order, values in expected.items():
        assert torch.allclose(mdlm.certainty(p.log(), order), torch.tensor(values).double(), atol=1e-12)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_equals_go_from_left_to_right_whatever_rounding_did_to_them(data):
    """Log-odds of a few levels, far apart, each moved by less than half of the slack."""
    slack = data.draw(st.sampled_from([2**-26, 3.5e-4, 0.088]))
    n = data.draw(st.integers(1, 12))
    level = data.draw(st.lists(st.integers(-2, 2), min_size=n, max_size=n))
    moved = data.draw(st.lists(st.floats(-0.45, 0.45), min_size=n, max_size=n))
    score = torch.sigmoid(torch.tensor(level).double() + slack * torch.tensor(moved, dtype=torch.float64))
    count = data.draw(st.integers(0, n))
    expected = sorted(sorted(range(n), key=lambda i: (-level[i], i))[:count])
    assert mdlm.surest(score, count, slack**2).tolist() == expected
    chosen = choice.top_per_row(score[None], torch.tensor([count]), slack)
    assert chosen[0].nonzero()[:, 0].tolist() == expected


def test_what_differs_by_more_than_rounding_is_no_tie():
    """A difference of 1 % in the odds means something to float32, one of 20 % to bfloat16, sure or not."""
    for dtype, odds in ((torch.float32, 0.01), (torch.bfloat16, 0.2)):
        for x in (-8.0, -2.0, 0.0, 2.0, 4.0):
            score, eps = torch.sigmoid(torch.tensor([x, x + odds], dtype=torch.float64)), torch.finfo(dtype).eps
            assert mdlm.surest(score, 1, eps).tolist() == [1]
            assert choice.top_per_row(score[None], torch.tensor([1]), eps**0.5).tolist() == [[False, True]]


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 300), st.lists(st.integers(0, 40), min_size=1, max_size=9))
def test_steps_are_shared_out_by_what_blocks_hold(n, sizes):
    """As many as are written, one token each; equal blocks equally, the remainder to the first ones, as in LLaDA; and
    never more than were asked for, where each block that has something takes one."""
    found = noise.shares(n, torch.tensor(sizes)).tolist()
    assert found == noise.shares(torch.tensor([n]), torch.tensor([sizes]))[0].tolist() and min(found) >= 1
    held = [(f, size) for f, size in zip(found, sizes) if size]
    if held:
        assert sum(f for f, _ in held) == max(n, len(held))
        parts = [(f, n * size / sum(sizes)) for f, size in held]
        assert all(f == 1 or f < x + 1 for f, x in parts)
        assert all(f > x - 1 for f, x in parts) or any(x < 1 for _, x in parts)
    assert noise.shares(sum(sizes), torch.tensor(sizes)).tolist() == [max(1, size) for size in sizes]
    assert noise.shares(n, torch.ones(2, 3, dtype=torch.int64, device="meta")).device.type == "meta"  # as on a GPU
    even = noise.shares(n, torch.full((len(sizes),), 8)).tolist()
    assert even == [max(1, int(noise.share(n, k, len(sizes)))) for k in range(len(sizes))]


def test_the_linear_share_is_lladas_and_the_cosine_maskgits():
    """LLaDA: n // steps per step, the first n % steps one more. MaskGIT: floor(n cos(pi/2 k/steps)) stay hidden."""

    def counts(n, steps, schedule="linear"):
        found = [int(noise.share(n, i, steps, schedule)) for i in range(steps)]
        rows = torch.tensor([n]), torch.tensor([steps])
        assert found == [
            int(choice.quota(rows[0], rows[0], torch.tensor([i]), rows[1], schedule)) for i in range(steps)
        ]
        return found

    assert counts(10, 4) == [3, 3, 2, 2] and counts(8, 4) == [2, 2, 2, 2] and counts(3, 5) == [1, 1, 1, 0, 0]
    assert counts(16, 4, "cosine") == [2, 3, 5, 6]  # 16, 14, 11, 6, 0 stay hidden
    for n, steps, schedule in itertools.product((1, 7, 64), (1, 3, 10, 30), SCHEDULES):
        assert sum(counts(n, steps, schedule)) == n and min(counts(n, steps, schedule)) >= 0


# ---- 4 · sampling: the laws ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
def test_one_sampled_token_per_step_gives_exactly_the_data_distribution(order):
    """First hitting (arXiv 2409.02908) = random order; and no order that looks at revealed tokens alone can bias a
    *sampled* token. Two at once do bias, which is what makes this test able to fail."""
    assert toy.distance(toy.law(EXACT, SampleOptions(L, order=order)), DATA) < 1e-12
    assert toy.distance(toy.law(EXACT, SampleOptions(L, order=order, steps=2)), DATA) > 1e-2


def rates(schedule):
    """Of ancestral sampling, MDLM eq. 7: (alpha_s - alpha_t) / (1 - alpha_t), and nothing is hidden again."""

    def of(t, s):
        rate_t, rate_s = (mdlm.mask_rate(time, schedule)[0] for time in (t, s))
        return (rate_t - rate_s) / rate_t, torch.zeros(1)

    return of


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_error_of_ancestral_sampling_halves_with_each_doubling_of_the_steps(schedule):
    """MDLM section 4.1 with exact conditionals: only tokens revealed in the same step are wrongly independent."""
    laws = [toy.ancestral_law(EXACT, SampleOptions(L, steps=T), rates(schedule)) for T in (8, 16, 32, 64, 128)]
    assert all(abs(p.sum() - 1) < 1e-12 for p in laws)  # the last step reveals everything
    errors = [toy.distance(p, DATA) for p in laws]
    assert all(1.7 < a / b < 2.3 for a, b in zip(errors, errors[1:])), errors


@pytest.mark.parametrize(
    "keys",
    [
        dict(order="random"),
        dict(),
        dict(order="margin", steps=2),
        dict(order="entropy", steps=3),
        dict(order="random", steps=3, schedule="cosine"),
        dict(quota="threshold", threshold=0.75),
        dict(quota="ancestral", steps=3),
        dict(quota="ancestral", steps=3, schedule="cosine_mdlm"),
    ],
    ids=str,
)
def test_generate_follows_the_law_that_its_rules_imply(keys):
    """20,000 samples of the fast sampler and 500 of the plain one, which is as exact and slower, against the
    enumerated law of the same rules (Fast-dLLM's for the threshold), biased ones included."""
    o = SampleOptions(L, **keys)

    def surest(sure, hidden, count):
        where = hidden[0].nonzero()[:, 0].tolist()
        best = max(where, key=lambda i: sure[0, i])
        return [i for i in where if i == best or sure[0, i] >= o.threshold]

    rule = surest if o.quota == "threshold" else None
    p = toy.law(ARBITRARY, o, choose=rule)
    p = toy.ancestral_law(ARBITRARY, o, rates(o.schedule)) if o.quota == "ancestral" else p
    assert abs(p.sum() - 1) < 1e-12
    for module, n in ((mdlm, 500), (fast_mdlm, 20_000)):
        out = module.generate(ARBITRARY, [ids()] * n, module.SampleOptions(L, **keys), mask_id=MASK)
        assert abs(toy.chi_square(toy.string_counts(out.tokens), p)) < 4


# ---- 4 · sampling: what is paid -------------------------------------------------------------------------------------


@both
def test_a_threshold_takes_fewer_forwards_where_the_network_is_sure(module):
    """Fast-dLLM: all that reach it at once, and at least the surest."""
    script = toy.Script([1, 2, 3, 4, 6, 7], [0.95, 0.5, 0.92, 0.99, 0.6, 0.3])
    options = module.SampleOptions(6, quota="threshold", temperature=0.0)
    out = module.generate(script, [ids()], options, mask_id=M, trace=True)
    assert out.tokens[0].tolist() == [1, 2, 3, 4, 6, 7] and out.num_forwards == [4]  # three at once, then one by one
    assert [event[:2] for event in out.trace[0]] == [(0, 0), (0, 2), (0, 3), (1, 4), (2, 1), (3, 5)]


@both
def test_ancestral_sampling_skips_forwards_that_would_reveal_nothing(module):
    """MDLM section 4.1: without time conditioning, an unchanged canvas needs no new forward."""
    options = module.SampleOptions(4, quota="ancestral", steps=300)
    out = module.generate(PLAIN, [ids(1)] * 3, options, mask_id=M, trace=True)
    clocks = [{clock for clock, *_ in events} for events in out.trace]
    assert out.num_forwards == [len(c) for c in clocks] and max(max(c) for c in clocks) > 20


# ---- 5 · likelihood --------------------------------------------------------------------------------------------------


@both
def test_nothing_to_predict_costs_nothing(module):
    """The NELBO and the likelihood of no token at all are 0, beside rows that have some."""
    x, maskable = random_rows(9)
    value = mdlm.nelbo(ARBITRARY, x, mask_id=MASK, maskable=maskable, samples=2)
    assert (value[~maskable.any(1)] == 0).all() and (value[maskable.any(1)] > 0).all()
    for method in ("nelbo", "left_to_right", "confidence"):
        options = LikelihoodOptions(method)
        ll = module.log_likelihood(ARBITRARY, [ids(0, 1), ids(0)], [ids(), ids(1)], options, mask_id=MASK)
        assert ll[0] == 0 and ll[1] < 0
        assert module.log_likelihood(ARBITRARY, [], [], options, mask_id=MASK).shape == (0,)


@both
@pytest.mark.parametrize("method", ["left_to_right", "confidence"])
def test_a_deterministic_order_has_an_exact_likelihood(method, module):
    """DUEL: whatever the denoiser, it is the law of that sampler, so that probabilities over all strings sum to one,
    also given a prompt; left to right it is the chain rule."""
    options = LikelihoodOptions(method, batch_size=7)
    ll = module.log_likelihood(ARBITRARY, [ids()] * 16, list(STRINGS), options, mask_id=MASK)
    assert ll.dtype == torch.float64 and abs(ll.exp().sum() - 1) < 1e-12
    left, sure = toy.chain_rule(ARBITRARY, STRINGS, range(L)).exp(), toy.law(ARBITRARY, SampleOptions(L))
    assert (ll.exp() - (left if method == "left_to_right" else sure)).abs().max() < 1e-12
    for n in (1, 2, 3):
        cases = [(p, t) for p in toy.listing(2, n) for t in toy.listing(2, L - n)]
        ll = module.log_likelihood(ARBITRARY, *zip(*cases), options, mask_id=MASK)
        assert (ll.exp().view(2**n, -1).sum(1) - 1).abs().max() < 1e-12


@both
def test_the_probabilities_in_the_trace_are_the_confidence_likelihood(module):
    """DUEL: generating and scoring are one model, also where probabilities that round to 1 in fp32 are tied for the
    sampler: the likelihood follows the same order."""

    class Sure(toy.Net):  # two sure positions, of which the second is surer and changes the first
        def __call__(self, ids, mask=None, positions=None, rows=None):
            first = torch.where(ids[:, 1:] == MASK, torch.tensor([30.0, 0.0]), torch.tensor([0.0, 0.0]))
            second = torch.tensor([40.0, 0.0]).expand_as(first)
            return torch.nn.functional.pad(torch.stack([first, second], 1), (0, 1)).flatten(0, 1)[rows.flatten()]

    prompts = [ids(1, 2, 3), ids(), ids(4, 6, 7, 8)]
    for model, mask_id, starts, n in ((PLAIN, M, prompts, 8), (Sure(), MASK, [ids()], 2)):
        out = module.generate(model, starts, module.SampleOptions(n), mask_id=mask_id, trace=True)
        targets = [t[len(p) :] for p, t in zip(starts, out.tokens)]
        ll = module.log_likelihood(model, starts, targets, LikelihoodOptions("confidence"), mask_id=mask_id)
        traced = torch.tensor([sum(math.log(p) for *_, p in events) for events in out.trace])
        assert torch.allclose(ll, traced.double(), atol=1e-5)


@both
def test_the_bound_of_a_prompted_target_is_its_nelbo(module):
    """log_likelihood's nelbo: minus the NELBO of the target given the prompt (LLaDA eq. 6)."""
    exact = toy.exact_nelbo(ARBITRARY, STRINGS, (torch.arange(L) >= 2).expand_as(STRINGS))
    options = LikelihoodOptions(mc_samples=150, batch_size=5)
    found = module.log_likelihood(ARBITRARY, list(STRINGS[:, :2]), list(STRINGS[:, 2:]), options, mask_id=MASK)
    assert (found + exact).abs().max() < 0.5 and (found + exact).mean().abs() < 0.08


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: SampleOptions(order="random", quota="threshold"), "quota=threshold.*order=confidence"),
        (lambda: SampleOptions(-1), "max_new_tokens=-1 .*at least 0"),
        (lambda: SampleOptions(steps=-4), "steps=-4 .*from 0"),
        (lambda: SampleOptions(temperature=-0.5), "temperature=-0.5 .*from 0"),
        (lambda: SampleOptions(schedule="linera"), "linera.*linear, poly2"),
        (lambda: SampleOptions(order="confidnce"), "confidnce.*confidence"),
        (lambda: SampleOptions(quota="treshold"), "treshold.*threshold"),
        (lambda: LossOptions(corruption="counts"), "counts.*count"),
        (lambda: LossOptions(objective="elbo"), "elbo.*nelbo"),
        (lambda: LossOptions(schedule="linera"), "linera.*linear, poly2"),
        (lambda: LossOptions(schedule="dream"), "dream.*linear, poly2"),  # the steps of a sampler, and no rates
        (lambda: mdlm.SampleOptions(schedule="dream"), "dream.*linear, poly2"),  # which has not these steps
        (lambda: LossOptions(see_ahead=1.5), "see_ahead=1.5 .*from 0 to 1"),
        (lambda: LossOptions(t_min=0.6, t_max=0.5), "t_min=0.6 exceeds t_max=0.5"),
        (lambda: mdlm.LikelihoodOptions("l2r"), "l2r.*left_to_right"),
        (lambda: mdlm.LikelihoodOptions(mc_samples=0), "mc_samples=0.*at least 1"),
    ],
)
def test_bad_options_are_refused_with_the_value_and_the_way_out(make, message):
    with pytest.raises(ValueError, match=message):
        make()
