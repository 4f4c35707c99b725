"""The claims of block diffusion, one per test, beside bd3lm.py, proved between its two ends: size 1 is autoregression,
size L is masked diffusion.

A Transformer with opinions is for whatever concerns attention and equal computations; a Seer reads the toy through the
very mask it is handed, so that with the true conditionals bounds must be tight and samples exact.
Papers: BD3LM arXiv 2503.09573, DUEL 2603.01367.
"""

import itertools
import math
import warnings
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
import toy
from toy import ARBITRARY, BLOCKS, DATA, EXACT, MASK, SCHEDULES, STRINGS, SUBSETS, VOCAB, L, M, Seer, blocks_of, ids

import bd3lm
import mdlm
from bd3lm import LossOptions
from model import Config
from nanodlm import fast_bd3lm
from nanodlm.likelihood import LikelihoodOptions

both = pytest.mark.parametrize("module", [bd3lm, fast_bd3lm], ids=["plain", "fast"])
sizes = pytest.mark.parametrize("size", [1, 2, 3, 4])  # of the toy's blocks; 3 does not divide its length


def transformer(seed, **keys):
    return toy.transformer(seed, 0.3, **dict(seq_len=12, block_size=4) | keys)


def plain_logits(net, canvas, size):
    """Logits (B, T, V) of one plain pass over canvases with a block-causal mask; the mask's own is excluded."""
    block = torch.arange(canvas.shape[1]) // size
    logits = net(canvas, mask=(block <= block[:, None])[None])
    logits[..., M] = -torch.inf
    return logits


# ---- 1 · who sees whom -----------------------------------------------------------------------------------------------


def literal_mask(length, size):
    """BD3LM supplement B.6, case by case: M_BD, block diagonal; M_OBC, offset block causal; M_BC, block causal."""
    keys = length + (math.ceil(length / size) - 1) * size  # nobody reads the last clean block
    mask = torch.zeros(keys, keys, dtype=torch.bool)
    for q, k in itertools.product(range(keys), repeat=2):
        block_q, block_k = ((i if i < length else i - length) // size for i in (q, k))
        if q < length and k < length:
            mask[q, k] = block_q == block_k
        elif q < length:
            mask[q, k] = block_q > block_k
        elif k >= length:
            mask[q, k] = block_q >= block_k
    return mask


def untile(tiles):
    """The bool mask that Tiles stand for."""
    mask = torch.zeros(tiles.shape, dtype=torch.bool)
    for row, (seen, part) in zip(mask.split(tiles.size), tiles.rows):
        columns = torch.cat([torch.arange(tiles.shape[1]).split(tiles.size)[j] for j in seen])
        row[:, columns] = True if part is None else part
    return mask


@pytest.mark.parametrize("length, size", [(1, 1), (7, 1), (8, 2), (7, 3), (12, 5), (9, 8), (9, 9), (150, 16), (70, 1)])
def test_the_mask_is_the_papers(length, size):
    """Section 3.2. The last layer needs the noised half's queries alone; tiles stand for the same mask; with a single
    block everyone sees everyone."""
    literal = literal_mask(length, size)
    for kind in ("dense", "tiles"):
        pair = bd3lm.attention(length, size, torch.device("cpu"), kind)
        if size >= length:
            assert pair == (None, None) and bd3lm.clean_length(length, size) == 0
            continue
        everywhere, last = (untile(m) for m in pair) if kind == "tiles" else (m[0] for m in pair)
        assert torch.equal(everywhere, literal) and torch.equal(last, literal[:length])


@pytest.mark.parametrize("kind", ["dense", "tiles", "flex"])
def test_the_clean_half_of_the_last_layer_is_never_computed_and_nobody_notices(kind):
    """A pair of masks of any kind gives the logits and gradients of one dense mask for all layers; rows pick from the
    noised half."""
    x0, weight = toy.texts(2, 70), torch.randn(5, VOCAB, dtype=torch.float64, generator=toy.generator(0))
    ids_ = torch.cat([torch.where(x0 % 2 == 0, M, x0), x0[:, :64]], 1)
    positions = torch.cat([torch.arange(70), torch.arange(64)]).expand(2, -1)
    pair, dense = (bd3lm.attention(70, 16, torch.device("cpu"), k) for k in (kind, "dense"))
    net, rows = transformer(4, n_head=4, n_kv_head=2), torch.tensor([3, 0, 139, 70, 3])
    grad, outcomes = kind != "flex", []  # FlexAttention has no backward pass on CPUs
    for mask, places in ((pair, rows), (dense[0], rows + rows // 70 * 64)):
        net.zero_grad()
        with torch.set_grad_enabled(grad), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # uncompiled FlexAttention is slow, it says
            logits, picked = (net(ids_, mask=mask, positions=positions, rows=r) for r in (None, places))
        assert logits.shape[1] == (70 if mask is pair else 134)
        assert (picked - logits[:, :70].flatten(0, 1)[rows]).abs().max() < 1e-12
        outcomes.append([logits[:, :70]])
        if grad:
            (picked * weight).sum().backward()
            outcomes[-1].append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    for a, b in zip(*outcomes):
        assert b.abs().max() > 0.1 and (a - b).abs().max() < 1e-10


@pytest.mark.parametrize("keys", [dict(), dict(window=3), dict(position="learned")], ids=str)
@pytest.mark.parametrize("size", [1, 3, 4, 5])
def test_nothing_leaks_from_where_a_block_must_not_look(size, keys):
    """Section 3.2. Logits of noised block b do not change by a single bit with x_0 from b on, nor with x_t of other
    blocks; they do change with x_0 just before, and with x_t of the block itself."""
    net, x0, xt, position = transformer(2, **keys), toy.texts(1, 12), toy.texts(1, 12, 1), torch.arange(12)
    xt[:, ::3] = M

    @torch.no_grad()
    def logits(xt, x0):
        return bd3lm.predict(net, xt, x0, position, size, M)

    reference = logits(xt, x0)
    for block in blocks_of(12, size):
        inside, others = list(block), (position < block[0]) | (position > block[-1])
        later = torch.where(position >= block[0], 17 - x0, x0)  # 6…11 becomes 11…6
        assert torch.equal(logits(xt, later)[inside], reference[inside])
        assert torch.equal(logits(torch.where(others, 17 - xt, xt) % VOCAB, x0)[inside], reference[inside])
        assert not torch.equal(logits(torch.where(others, xt, 11 - xt), x0)[inside], reference[inside])
        before = torch.where(position == block[0] - 1, 17 - x0, x0)
        assert torch.equal(logits(xt, before)[inside], reference[inside]) == (block[0] == 0)


@pytest.mark.parametrize("keys", [dict(), dict(window=3, global_every=2), dict(n_layer=1)], ids=str)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 12])
def test_one_pass_over_both_halves_equals_a_pass_per_block(size, keys):
    """Section 3.2: p(x^b | x_t^b, x^{<b}) of every block by itself, from [x_0^{<b}, x_t^b] alone."""
    net, x0 = transformer(3, **keys), toy.texts(3, 12)
    xt = torch.where(torch.rand(3, 12, generator=toy.generator(1)) < 0.6, M, x0)
    together = bd3lm.predict(net, xt, x0, torch.arange(36), size, M).view(3, 12, VOCAB)
    assert (together.softmax(-1)[..., M] == 0).all()
    for block in map(list, blocks_of(12, size)):
        alone = plain_logits(net, torch.cat([x0[:, : block[0]], xt[:, block]], 1), size)[:, block]
        assert (together[:, block] - alone)[..., :M].abs().max() < 1e-10


# ---- the two ends ----------------------------------------------------------------------------------------------------


@both
def test_block_size_1_at_time_1_is_autoregression_without_a_shift(module):
    """Section 4.2: position b is a mask that sees x^{<b}, and predicts token b itself."""
    net, x = transformer(5, block_size=1), toy.texts(4, 9)
    nll = torch.zeros(4, 9, dtype=torch.float64)
    for b in range(9):
        canvas = torch.cat([x[:, :b], torch.full((4, 1), M)], 1)
        nll[:, b] = F.cross_entropy(plain_logits(net, canvas, 1)[:, b], x[:, b], reduction="none")
    for corruption, seed in itertools.product(("rate", "count"), range(3)):
        options = LossOptions(block_size=1, t_min=1.0, t_max=1.0, corruption=corruption)
        assert abs(bd3lm.loss(net, x, options, mask_id=M, seed=seed) - nll.mean()) < 1e-10
    for keys in (dict(), dict(samples=3), dict(seed=8, first=5)):  # no variance is left in the bound: it is exact
        assert (bd3lm.nelbo(net, x, mask_id=M, **keys) - nll.sum(1)).abs().max() < 1e-10
    for method in ("left_to_right", "confidence"):
        ll = module.log_likelihood(net, list(x[:, :2]), list(x[:, 2:]), LikelihoodOptions(method), mask_id=M)
        assert (ll + nll[:, 2:].sum(1)).abs().max() < 1e-10


def test_block_size_l_is_masked_diffusion():
    """With the same seed, the same number, for every loss, the bound, the likelihoods and the samples."""
    net, x = transformer(6, block_size=12), toy.texts(3, 12)
    maskable = torch.rand(3, 12, generator=toy.generator(0)) < 0.8
    names = ("schedule", "corruption", "complementary", "objective", "t_shape")
    ways = itertools.product(SCHEDULES, ("rate", "count"), (False, True), ("nelbo", "masked_ce"), ("uniform", "bell"))
    losses = [dict(zip(names, way)) for way in ways][::3]  # every choice of each, beside every choice of the others
    for keys in [*losses, dict(t_min=0.3, t_max=0.8), dict(low_discrepancy=False)]:
        for extra in (dict(), dict(maskable=maskable, shard=(2, 7), denominator=11)):
            blocks = bd3lm.loss(net, x, LossOptions(**keys, block_size=12), mask_id=M, seed=4, **extra)
            assert abs(blocks - mdlm.loss(net, x, mdlm.LossOptions(**keys), mask_id=M, seed=4, **extra)) < 1e-12, keys
    for extra in (dict(), dict(maskable=maskable, samples=4, seed=3, first=2)):
        a, b = (module.nelbo(net, x, mask_id=M, **extra) for module in (bd3lm, mdlm))
        assert (a - b).abs().max() < 1e-10
    prompts, targets = [x[0, :5], x[1, :0], x[2, :11]], [x[0, 5:], x[1], x[2, 11:]]
    for method in ("nelbo", "left_to_right", "confidence"):
        options = mdlm.LikelihoodOptions(method, seed=1)
        a, b = (module.log_likelihood(net, prompts, targets, options, mask_id=M) for module in (bd3lm, mdlm))
        assert (a - b).abs().max() < 1e-10
    for keys in ({}, dict(order="random", steps=5), dict(quota="threshold", threshold=0.4), dict(quota="ancestral")):
        for prompt in (ids(7), ids(6, M, 8, 7)):
            o = dict(max_new_tokens=12 - len(prompt)) | keys
            a, b = (m.generate(net, [prompt], m.SampleOptions(**o), mask_id=M, trace=True) for m in (bd3lm, mdlm))
            assert a.num_forwards == b.num_forwards and [e[:3] for e in a.trace[0]] == [e[:3] for e in b.trace[0]]


# ---- 2 · loss --------------------------------------------------------------------------------------------------------


def block_nelbo(model, x, size, maskable=None):
    """Enumerated through the code's cross entropies: each block's t integrated in closed form. A set of k of n tokens
    is hidden with weight int w(t) r^k (1-r)^(n-k) dt = (k-1)! (n-k)! / n!, whatever the schedule."""
    model, total = Seer(model, size), torch.zeros(len(x), dtype=torch.float64)
    maskable = torch.ones_like(x).bool() if maskable is None else maskable
    for block in blocks_of(L, size):
        inside = torch.zeros(L, dtype=torch.bool).index_fill(0, torch.tensor(block), True) & maskable
        for hidden in SUBSETS[1:]:
            rows = (hidden <= inside).all(1)
            if rows.any():
                h, x0, n, k = hidden.expand(int(rows.sum()), L), x[rows], inside[rows].sum(1), int(hidden.sum())
                nll = bd3lm.hidden_nll(model, torch.where(h, MASK, x0), x0, h, size, MASK).view(-1, k).sum(1)
                weight = [math.factorial(k - 1) * math.factorial(m - k) / math.factorial(m) for m in n.tolist()]
                total[rows] += nll * torch.tensor(weight, dtype=torch.float64)
    return total


@sizes
def test_the_nelbo_of_exact_conditionals_is_minus_log_p_at_every_block_size(size):
    """Equation 6 is tight for the true conditionals, of every string."""
    assert (block_nelbo(EXACT, STRINGS, size) + DATA.log()).abs().max() < 1e-10


@sizes
def test_the_nelbo_of_any_denoiser_is_the_mean_over_orders_that_keep_to_the_blocks(size):
    """Equation 6 again. It bounds the mixture of those orders, tightly at size 1 only."""
    orders = itertools.product(*(itertools.permutations(block) for block in blocks_of(L, size)))
    logp = torch.stack([toy.chain_rule(ARBITRARY, STRINGS, sum(parts, ())) for parts in orders])
    nelbo, mixture = block_nelbo(ARBITRARY, STRINGS, size), logp.logsumexp(0) - math.log(len(logp))
    assert (nelbo + logp.mean(0)).abs().max() < 1e-10 and abs(mixture.exp().sum() - 1) < 1e-12
    gap = nelbo + mixture
    assert gap.abs().max() < 1e-10 if size == 1 else gap.min() > 1e-4


@pytest.mark.parametrize("complementary", [False, True])
@pytest.mark.parametrize("corruption", ["rate", "count"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_loss_is_the_nelbo_per_token_in_expectation(schedule, corruption, complementary):
    """Equation 6, with and without prompts."""
    x = STRINGS.repeat(16, 1)
    maskable = torch.rand(len(x), L, generator=toy.generator(2)) < 0.8
    for size, where in ((2, None), (3, maskable)):
        options = LossOptions(schedule, corruption=corruption, complementary=complementary, block_size=size)
        exact = block_nelbo(ARBITRARY, x, size, where).sum() / (x.numel() if where is None else where.sum())
        model, keys = Seer(ARBITRARY, size), dict(mask_id=MASK, maskable=where)
        toy.assert_mean([bd3lm.loss(model, x, options, seed=s, **keys) for s in range(40)], exact.item())


class Blank(toy.Net):
    """Sees what is hidden, and has no opinion."""

    config = Config(vocab_size=3, block_size=4)

    def __call__(self, ids, mask=None, positions=None, rows=None):
        return torch.zeros(len(rows), 3)


def hidden_counts(B, length, size, seed=0, shard=(0, 4), **keys):
    """How many tokens of each block the loss hides: (B, blocks)."""
    every, options = torch.ones(B, length).bool(), LossOptions(block_size=size, **keys)
    return bd3lm.corrupt(every, options, seed, *shard)[0].view(B, -1, size).sum(2)


def test_every_block_has_its_own_time_one_in_each_stratum_of_the_global_batch():
    """One t per block. 4 rows of 4 blocks of 16 tokens: exactly one block hides 1 token, one 2, … one 16; a
    block sees every stratum over the seeds; a shard hides what the global batch hides there. (The research code orders
    strata by batch, dLLM has one t per row.)"""
    runs = torch.stack([hidden_counts(4, 64, 16, seed, corruption="count") for seed in range(400)]).view(400, 16)
    assert torch.equal(runs.sort(1).values, torch.arange(1, 17).expand(400, 16))
    for block in range(16):
        assert abs(toy.chi_square(torch.bincount(runs[:, block] - 1, minlength=16))) < 4
    for a, b in ((0, 1), (0, 4), (5, 6)):  # neighbours in a row or a column are unrelated
        assert abs(torch.corrcoef(runs[:, [a, b]].T.double())[0, 1] + 1 / 15) < 4 / 400**0.5
    for first, n in ((0, 1), (1, 2), (3, 1)):
        part = hidden_counts(n, 64, 16, 3, (first, 4), corruption="count")
        assert torch.equal(part, runs[3].view(4, 4)[first : first + n])


@pytest.mark.parametrize("options", toy.OBJECTIVES, ids=str)
def test_micro_batches_add_up_and_prompts_are_not_learned(options):
    """Losses and gradients, with a last block that is shorter, and a row that is all prompt."""
    options = LossOptions(**asdict(options), block_size=4)
    x, maskable = toy.texts(6, 10), torch.arange(10) >= torch.tensor([0, 3, 4, 9, 10, 2])[:, None]
    toy.assert_parts_add_up(bd3lm.loss, transformer(7), x, maskable, options)
    spy = toy.Spy(BLOCKS)
    bd3lm.loss(spy, x, options, mask_id=M, maskable=maskable)
    noised = (spy.seen[0][:, :10] == M).view(-1, 6, 10).any(0)
    assert noised.any() and not (noised & ~maskable).any()


def test_clipped_rates_hide_as_much_as_they_say():
    """Section 5, U[beta, omega]: of 20 tokens never fewer than beta, never more than omega."""
    counts = hidden_counts(30, 80, 20, 0, (0, 30), corruption="count", t_min=0.3, t_max=0.8)
    assert counts.min() == 7 and counts.max() == 16
    assert (torch.bincount(counts.flatten())[7:] - 12).abs().max() <= 1  # as many of each
    rate = hidden_counts(30, 800, 200, 0, (0, 30), t_min=0.3, t_max=0.8) / 200
    assert 0.2 < rate.min() < 0.33 and 0.77 < rate.max() < 0.9 and abs(rate.mean() - 0.55) < 0.01


@pytest.mark.parametrize("width, centre, low", [(0.3, 0.6, 0.45), (0.5, 0.4, 0.15), (0.3, 0.95, 0.7), (0.25, 0.0, 0.0)])
def test_adaptive_clipping_finds_the_interval_of_least_variance(width, centre, low):
    """Section 5. With exact counts a block's loss is n (1 + (t - centre)^2): it varies least around the centre. The
    distance of t_min and t_max stays, and where they stood before does not matter."""

    class Profile(Blank):
        def __call__(self, ids, mask, positions, rows):
            noised = (ids[:, :400] == 2).double().view(len(ids), -1, 20)
            nll = 1 + (noised.mean(2, keepdim=True).expand_as(noised).flatten()[rows] - centre) ** 2
            return torch.stack([-nll, torch.log1p(-torch.exp(-nll)), nll], 1)

    windows = [(torch.zeros(16, 400, dtype=torch.int64), None)] * 4
    for start in (0.0, 1 - width):
        keys = dict(corruption="count", block_size=20, clip="adaptive", t_shape="bell")
        options = LossOptions(**keys, t_min=start, t_max=start + width)
        found = bd3lm.adapt(Profile(), windows, options, mask_id=2)
        assert abs(found["t_min"] - low) < 1e-9 and abs(found["t_max"] - low - width) < 1e-9 and len(found) == 2
        LossOptions(**keys, **found)  # may be used as they are
    assert bd3lm.adapt(None, None, LossOptions(t_min=0.3, t_max=0.8), mask_id=2) == {}


# ---- 3 · bound -------------------------------------------------------------------------------------------------------


@sizes
def test_the_estimator_of_the_nelbo_is_unbiased_for_every_row_whatever_its_batch(size):
    """LLaDA's fixed-count identity, block by block; over rows and over samples, with all tokens or some."""
    maskable = torch.tensor([True, False, True, True])
    for string, where in ((6, None), (9, maskable)):
        x = STRINGS[[string]]
        exact = block_nelbo(ARBITRARY, x, size, None if where is None else where[None]).item()
        for samples in (1, 3):
            keys = dict(mask_id=MASK, samples=samples, maskable=None if where is None else where.expand(2000, L))
            values = bd3lm.nelbo(Seer(ARBITRARY, size), x.expand(2000, L), **keys, seed=1)
            assert values.dtype == torch.float64 and (size > 1 or (values - exact).abs().max() < 1e-10)
            size > 1 and toy.assert_mean(values, exact)
    model, keys = Seer(ARBITRARY, size), dict(mask_id=MASK, samples=2, seed=7)
    whole = bd3lm.nelbo(model, STRINGS, **keys)
    parts = [bd3lm.nelbo(model, STRINGS[i : i + 5], first=i, **keys) for i in range(0, 16, 5)]
    assert (torch.cat(parts) - whole).abs().max() < 1e-12
    assert size == 1 or (bd3lm.nelbo(model, STRINGS, first=1, **keys) - whole).abs().max() > 0.1


def test_the_counts_of_every_block_are_spread_evenly_over_the_samples():
    """However many blocks there are: 100 samples hide 1, 2, 3 and 4 of 4 tokens 25 times each, give or take 2. Every
    block has masks of its own."""
    spy, block = toy.Spy(Blank()), torch.arange(64)
    bd3lm.nelbo(spy, torch.zeros(1, 256, dtype=torch.int64), mask_id=2, samples=100)
    hidden = torch.stack([(x[0, :256] == 2).view(64, 4) for x in spy.seen], 1)  # (64, 100, 4)
    counts = torch.zeros(64, 5).scatter_add_(1, hidden.sum(2), torch.ones(64, 100))
    assert (counts[:, 1:] - 25).abs().max() <= 2 and len(hidden.flatten(1)[block].unique(dim=0)) == 64


@sizes
def test_padding_is_text_that_is_not_known_yet(size):
    """A padded string's bound is that of its marginal: what follows is summed out, whatever ids lie there."""
    real = torch.arange(L) < torch.tensor([1, 2, 3, 4]).repeat_interleave(16)[:, None]
    x, keys = STRINGS.repeat(4, 1), dict(mask_id=MASK, real=real, samples=300)
    log_marginal = torch.stack([DATA[((STRINGS == s) | ~r).all(1)].sum().log() for s, r in zip(x, real)])
    values = bd3lm.nelbo(Seer(EXACT, size), x, **keys)
    gap = values + log_marginal
    assert gap.abs().max() < (1e-10 if size == 1 else 0.4) and gap.mean().abs() < 0.02
    assert torch.equal(bd3lm.nelbo(Seer(EXACT, size), torch.where(real, x, 1 - x), **keys), values)


# ---- 4 · sampling ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [{}, dict(order="random"), dict(steps=1), dict(steps=3, order="random")], ids=str)
@sizes
def test_generate_follows_the_law_of_its_rules_and_with_exact_conditionals_the_data(size, keys):
    """8,000 samples through a real KV cache, and 300 of the plain sampler, against every path enumerated.
    One token at a time is exact whatever the order; two at once are not, unless their block is that small."""
    exact = toy.law(EXACT, bd3lm.SampleOptions(L, **keys), size)
    if "steps" not in keys or size == 1:
        assert (exact - DATA).abs().max() < 1e-12
    elif keys["steps"] == 1:
        assert (exact - DATA).abs().max() > 1e-3
    law = toy.law(ARBITRARY, bd3lm.SampleOptions(L, **keys), size)
    for module, n in ((bd3lm, 300), (fast_bd3lm, 8000)):
        out = module.generate(Seer(ARBITRARY, size), [ids()] * n, module.SampleOptions(L, **keys), mask_id=MASK)
        assert abs(toy.chi_square(toy.string_counts(out.tokens), law)) < 4


@both
def test_steps_are_shared_out_over_the_blocks_and_blocks_count_from_the_start_of_the_text(module):
    """dLLM aligned blocks to the text in training, to the prompt's end in sampling. Blocks that are given take no step,
    later ones see them, earlier ones do not."""
    out = module.generate(BLOCKS, [ids(6, 7, 8)], module.SampleOptions(9, steps=7), mask_id=M, trace=True)
    clocks = [{clock for clock, position, *_ in out.trace[0] if position // 4 == b} for b in range(3)]
    assert [len(c) for c in clocks] == [1, 3, 3]  # as the first block has one hole, and the others four
    assert max(clocks[0]) < min(clocks[1]) and max(clocks[1]) < min(clocks[2])
    holes, first = ids(1, 2, M, 3, 4, 6, 7, 8, 9, M, M, 10, 11), None
    for canvas in (holes, torch.where(torch.arange(13) < 4, holes, 6)):
        out = module.generate(BLOCKS, [canvas], module.SampleOptions(2), mask_id=M, trace=True)
        assert torch.equal(out.tokens[0][:13][canvas != M], canvas[canvas != M]) and len(out.tokens[0]) == 15
        where = [e[1] for e in out.trace[0]]
        assert sorted(where) == [*(canvas == M).nonzero()[:, 0], 13, 14]
        assert [i // 4 for i in where] == sorted(i // 4 for i in where)
        assert first is None or out.trace[0][0] == pytest.approx(first, abs=1e-10)
        first = out.trace[0][0]


# ---- 5 · likelihood --------------------------------------------------------------------------------------------------


@both
@sizes
def test_exact_likelihoods_of_exact_conditionals_are_log_p_and_marginalise_what_follows(size, module):
    """DUEL, block by block. A target that ends inside a block is followed by masks: the text behind is summed out."""
    cases = [(s[:a], s[a:b]) for a in range(L) for b in range(a + 1, L + 1) for s in STRINGS[::3]]
    log_p = [[DATA[(STRINGS[:, : len(x)] == x).all(1)].sum().log() for x in (p, torch.cat([p, t]))] for p, t in cases]
    for method in ("left_to_right", "confidence"):
        options = LikelihoodOptions(method, batch_size=64)
        ll = module.log_likelihood(Seer(EXACT, size), *zip(*cases), options, mask_id=MASK)
        assert (ll - torch.tensor(log_p).diff(dim=1)[:, 0]).abs().max() < 1e-10


@both
@sizes
def test_a_deterministic_order_has_an_exact_likelihood(size, module):
    """DUEL: on the toy, of any denoiser, the law of that order, which sums to one."""
    left, sure = toy.chain_rule(ARBITRARY, STRINGS, range(L)).exp(), toy.law(ARBITRARY, bd3lm.SampleOptions(L), size)
    for method, law in (("left_to_right", left), ("confidence", sure)):
        options = LikelihoodOptions(method)
        ll = module.log_likelihood(Seer(ARBITRARY, size), [ids()] * 16, list(STRINGS), options, mask_id=MASK)
        assert abs(law.sum() - 1) < 1e-12 and (ll.exp() - law).abs().max() < 1e-10


@both
@pytest.mark.parametrize("size", [2, 3])
def test_the_bound_of_a_prompted_target_is_its_nelbo(size, module):
    """Equation 6 given a prompt, by log_likelihood's nelbo."""
    exact = block_nelbo(ARBITRARY, STRINGS, size, (torch.arange(L) >= 1).expand_as(STRINGS))
    options, pairs = LikelihoodOptions(mc_samples=100, batch_size=5), (list(STRINGS[:, :1]), list(STRINGS[:, 1:]))
    found = module.log_likelihood(Seer(ARBITRARY, size), *pairs, options, mask_id=MASK)
    assert (found + exact).abs().max() < 0.6 and (found + exact).mean().abs() < 0.06


@both
def test_the_probabilities_in_the_trace_are_the_likelihood(module):
    """DUEL: generating and scoring are one model, at every block size, and where the context's last block is short:
    10 tokens in blocks of 4 are 4, 4 and 2, in generation as in training."""
    longer = [(transformer(12, block_size=size, seq_len=24), 8, 14) for size in (1, 3, 4, 6)]
    for net, n, end in (*longer, (transformer(11, seq_len=10), 10, 10)):
        prompts = [p[: end - 1] for p in (ids(7), ids(1, 2, 3, 4, 6), ids(1, 2, 3, 4, 6, 7, 8, 9))]
        for prompt in prompts:
            o = module.SampleOptions(min(n, end - len(prompt)))
            out = module.generate(net, [prompt], o, mask_id=M, trace=True)
            targets = [out.tokens[0][len(prompt) :]]
            ll = module.log_likelihood(net, [prompt], targets, LikelihoodOptions("confidence"), mask_id=M)
            assert abs(ll.item() - sum(math.log(p) for *_, p in out.trace[0])) < 1e-8


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: bd3lm.generate(FREE, [ids(7)], mask_id=M), "not trained on blocks: set block_size"),
        (lambda: bd3lm.nelbo(FREE, toy.texts(1, 8), mask_id=M), "not trained on blocks"),
        (lambda: bd3lm.log_likelihood(FREE, [ids(7)], [ids(8)], mask_id=M), "not trained on blocks"),
        (lambda: bd3lm.log_likelihood(BLOCKS, [ids(*[7] * 9)], [ids(*[8] * 4)], mask_id=M), "13 tokens.*context of 12"),
        (lambda: Config(VOCAB, 8, block_size=9), "block_size=9.*seq_len=8"),
        (lambda: LossOptions(block_size=0), "block_size=0 .*of at least 1"),
        (lambda: LossOptions(clip="adaptive", objective="masked_ce"), "clip=adaptive.*objective=nelbo"),
        (lambda: LossOptions(clip="adaptive"), "give one, such as t_min=0.45 and t_max=0.95"),
        (lambda: LossOptions(clip="adaptiv"), "adaptiv.*fixed, adaptive"),
        (lambda: LossOptions(see_ahead=0.5), "by growing blocks"),
        (lambda: LossOptions(schedule="linera"), "linera.*linear, poly2"),
    ],
)
def test_bad_input_is_refused_with_the_value_and_the_way_out(make, message):
    with pytest.raises(ValueError, match=message):
        make()


FREE = transformer(13, block_size=0)
