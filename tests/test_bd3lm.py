"""Block diffusion, proved between its two ends: size 1 is autoregression, size L is masked diffusion.

Two kinds of network. NET is a small real Transformer in float64, with opinions, for whatever concerns attention, the
cache and equal computations. A Seer is a table over the toy of test_mdlm.py that reads a canvas through the very mask,
positions and cache it is handed: with the true conditionals in its table, bounds must be tight and samples exact.
Papers: BD3LM arXiv 2503.09573, DUEL 2603.01367.
"""

import itertools
import math
import warnings
from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_mdlm import (
    ARBITRARY,
    DATA,
    EXACT,
    MASK,
    SCHEDULES,
    STRINGS,
    SUBSETS,
    L,
    assert_mean,
    canvas_of,
    chain_rule,
    chi_square,
    generator,
    ids,
    listing,
    replay,
)

import bd3lm
import mdlm
from bd3lm import LossOptions
from model import Config, KVCache, Tiles, Transformer
from nanodlm import decode, fast_bd3lm, fast_mdlm
from nanodlm.fast_bd3lm import SampleOptions
from nanodlm.likelihood import LikelihoodOptions

torch.set_num_threads(1)
SIZES = [1, 2, 3, 4]  # of the toy's blocks; 3 does not divide its length

# ------------------------------------------------------------------------------------------------------------------
# the networks


M, VOCAB = 5, 12


def transformer(seed=0, **keys):
    torch.manual_seed(seed)
    shape = dict(vocab_size=VOCAB, seq_len=12, block_size=4, n_layer=2, n_head=2, n_embd=16)
    net = Transformer(Config(**shape | keys))
    with torch.no_grad():
        for p in net.parameters():
            if p.dim() == 2:
                p.normal_(0, 0.3)
    return net.double().eval()


NET = transformer()


def texts(n, length, seed=0):
    return torch.randint(6, VOCAB, (n, length), generator=generator(seed))


class Net:
    """What samplers ask of a network, for one that answers with logits."""

    def hidden(self, *args, **keys):
        return self(*args, **keys)

    def head(self, x):
        return x

    def cache(self, batch, size):
        return KVCache(self.config, batch, size, dtype=next(self.parameters()).dtype)


class Seer(Net):
    """A denoiser given as mdlm's toy, that knows of a canvas what the mask lets each query see: the rest are masks to
    it. In a real KVCache it keeps ids as keys."""

    def __init__(self, toy, block_size):
        self.table = toy.table
        # With a window, the mask of a pass is a plain bool tensor. The network here has no other use for it.
        shape = dict(n_layer=1, n_head=1, n_embd=1, position="none", window=1)
        self.config = Config(vocab_size=3, seq_len=L, block_size=block_size, **shape)

    def parameters(self):
        yield self.table

    def __call__(self, ids, mask, positions, rows, cache=None):
        mask = mask[1] if isinstance(mask, tuple) else mask  # the last layer's: whose logits are asked for
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


class Spy(Net):
    """A network that keeps what it was asked."""

    def __init__(self, model):
        self.model, self.config, self.seen = model, model.config, []

    def parameters(self):
        return self.model.parameters()

    def __call__(self, ids, mask=None, positions=None, cache=None, rows=None):
        self.seen.append((ids.clone(), None if positions is None else positions.clone()))
        cache = {} if cache is None else dict(cache=cache)
        return self.model(ids, mask=mask, positions=positions, rows=rows, **cache)


def blocks_of(length, size):
    return [range(a, min(a + size, length)) for a in range(0, length, size)]


def block_causal(length, size):
    block = torch.arange(length) // size
    return (block <= block[:, None])[None]


def plain_logits(net, canvas, size):
    """Logits (B, T, V) of one plain pass over canvases with a block-causal mask; the mask's own is excluded."""
    logits = net(canvas, mask=block_causal(canvas.shape[1], size))
    logits[..., M] = -torch.inf
    return logits


def all_rows(x):
    return torch.arange(x.numel())


# ------------------------------------------------------------------------------------------------------------------
# who sees whom


def literal_mask(length, size):
    """Section 3.2 of the paper, case by case: M_BD, block diagonal; M_OBC, offset block causal; M_BC, block causal."""
    keys = length + (math.ceil(length / size) - 1) * size  # nobody reads the last clean block
    mask = torch.zeros(keys, keys, dtype=torch.bool)
    for q, k in itertools.product(range(keys), repeat=2):
        noised_q, noised_k = q < length, k < length
        block_q, block_k = ((i if i < length else i - length) // size for i in (q, k))
        if noised_q and noised_k:
            mask[q, k] = block_q == block_k
        elif noised_q:
            mask[q, k] = block_q > block_k
        elif not noised_k:
            mask[q, k] = block_q >= block_k
    return mask


def untile(tiles):
    """The bool mask that Tiles stand for."""
    mask = torch.zeros(tiles.shape, dtype=torch.bool)
    for row, (seen, part) in zip(mask.split(tiles.size), tiles.rows):
        columns = torch.cat([torch.arange(tiles.shape[1]).split(tiles.size)[j] for j in seen])
        row[:, columns] = True if part is None else part
    return mask


@pytest.mark.parametrize(
    "length, size", [(1, 1), (7, 1), (8, 2), (7, 3), (12, 5), (9, 8), (70, 9), (150, 16), (130, 1)]
)
def test_the_mask_is_the_papers(length, size):
    """The last layer needs the noised half's queries alone; tiles stand for the same mask."""
    literal = literal_mask(length, size)
    for kind in ("dense", "tiles"):
        pair = bd3lm.attention(length, size, torch.device("cpu"), kind)
        if size >= length:
            assert pair == (None, None)
            continue
        everywhere, last = (untile(m) for m in pair) if kind == "tiles" else (m[0] for m in pair)
        assert torch.equal(everywhere, literal) and torch.equal(last, literal[:length])


@pytest.mark.parametrize("size", [4, 9])
def test_with_a_single_block_everyone_sees_everyone(size):
    assert bd3lm.attention(4, size, torch.device("cpu"), "tiles") == (None, None) and bd3lm.clean_length(4, size) == 0


@pytest.mark.parametrize("heads", [dict(), dict(n_head=4, n_kv_head=2)], ids=["mha", "gqa"])
def test_tiles_dense_masks_and_flexattention_give_the_same_logits(heads):
    net, x0 = transformer(1, **heads), texts(2, 150)
    ids_, positions = torch.cat([x0.flip(0), x0[:, :144]], 1), torch.cat([torch.arange(150), torch.arange(144)])
    logits = {}
    for kind in ("dense", "tiles", "flex"):
        try:
            mask = bd3lm.attention(150, 16, torch.device("cpu"), kind)
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # uncompiled FlexAttention is slow, it says
                logits[kind] = net(ids_, mask=mask, positions=positions.expand(2, -1))
        except (ImportError, NotImplementedError) as error:
            assert kind == "flex"
            pytest.skip(f"FlexAttention does not run on this CPU: {error}")
    assert logits["dense"].shape == (2, 150, VOCAB)
    assert (logits["dense"] - logits["tiles"]).abs().max() < 1e-10
    assert (logits["dense"] - logits["flex"]).abs().max() < 1e-10


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_tiles_equal_dense_attention_forward_and_backward(kv_heads):
    """Also where a size does not divide the mask, a tile is empty, or full."""
    g = generator(0)
    mask = torch.rand(50, 70, generator=g) < 0.3
    mask[:16, 16:64], mask[16:32, :16] = False, True
    mask[:, 69] = True
    shapes = (2, 4, 50, 8), (2, kv_heads, 70, 8), (2, kv_heads, 70, 8)
    q, k, v = leaves = [torch.randn(s, dtype=torch.float64, generator=g, requires_grad=True) for s in shapes]
    weight = torch.randn(2, 4, 50, 8, dtype=torch.float64, generator=g)
    dense = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
    for size in (16, 7, 50, 100):
        tiled = Tiles(mask, size).attend(q, k, v, enable_gqa=True)
        assert (tiled - dense).abs().max() < 1e-12
        for a, b in zip(*(torch.autograd.grad((y * weight).sum(), leaves, retain_graph=True) for y in (tiled, dense))):
            assert (a - b).abs().max() < 1e-12


@pytest.mark.parametrize(
    "keys", [dict(), dict(window=3), dict(position="learned")], ids=["global", "window", "learned"]
)
@pytest.mark.parametrize("size", [1, 3, 4, 5])
def test_nothing_leaks_from_where_a_block_must_not_look(size, keys):
    """Logits of noised block b do not change by a single bit with x_0 from b on, nor with x_t of other blocks; they do
    change with x_0 just before, and with x_t of the block itself."""
    net, x0, xt = transformer(2, **keys), texts(1, 12), texts(1, 12, 1)
    xt[:, ::3] = M

    def logits(xt, x0):
        with torch.no_grad():
            return bd3lm.predict(net, xt, x0, all_rows(xt), size, M)

    reference = logits(xt, x0)
    for block in blocks_of(12, size):
        inside = list(block)
        later, others = torch.arange(12) >= block[0], (torch.arange(12) < block[0]) | (torch.arange(12) > block[-1])
        changed = torch.where(later, 17 - x0, x0)  # 6…11 becomes 11…6
        assert torch.equal(logits(xt, changed)[inside], reference[inside])
        assert torch.equal(logits(torch.where(others, 17 - xt, xt) % VOCAB, x0)[inside], reference[inside])
        assert not torch.equal(logits(torch.where(others, xt, 11 - xt), x0)[inside], reference[inside])
        if block[0]:
            before = x0.clone()
            before[:, block[0] - 1] = 17 - before[:, block[0] - 1]
            assert not torch.equal(logits(xt, before)[inside], reference[inside])


@pytest.mark.parametrize("keys", [dict(), dict(window=3, global_every=2), dict(n_layer=1)], ids=["2", "window", "1"])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 12])
def test_one_pass_over_both_halves_equals_a_pass_per_block(size, keys):
    """Section 3.2: p(x^b | x_t^b, x^{<b}) of every block by itself, from [x_0^{<b}, x_t^b] alone."""
    net, x0 = transformer(3, **keys), texts(3, 12)
    xt = torch.where(torch.rand(3, 12, generator=generator(1)) < 0.6, M, x0)
    together = bd3lm.predict(net, xt, x0, all_rows(xt), size, M).view(3, 12, VOCAB)
    for block in blocks_of(12, size):
        canvas = torch.cat([x0[:, : block[0]], xt[:, block[0] : block[-1] + 1]], 1)
        alone = plain_logits(net, canvas, size)[:, list(block)]
        assert (together[:, list(block)] - alone)[..., :M].abs().max() < 1e-10
        assert torch.equal(together[:, list(block)].softmax(-1)[..., M], torch.zeros(3, len(block)).double())


@pytest.mark.parametrize("kind", ["dense", "tiles"])
def test_the_clean_half_of_the_last_layer_is_never_computed_and_nobody_notices(kind):
    """A pair of masks gives the logits and the gradients of one mask for all layers; rows pick from the noised half."""
    net, x0 = transformer(4), texts(2, 11)
    ids_ = torch.cat([torch.where(x0 % 2 == 0, M, x0), x0[:, :8]], 1)
    positions = torch.cat([torch.arange(11), torch.arange(8)]).expand(2, -1)
    pair = bd3lm.attention(11, 4, torch.device("cpu"), kind)
    rows, weight = torch.tensor([3, 0, 21, 11, 3]), torch.randn(5, VOCAB, dtype=torch.float64, generator=generator(0))
    outcomes = []
    for mask in (pair, pair[0]):
        net.zero_grad()
        logits = net(ids_, mask=mask, positions=positions)
        picked = net(ids_, mask=mask, positions=positions, rows=rows if mask is pair else rows + rows // 11 * 8)
        assert logits.shape[1] == (11 if mask is pair else 19)
        assert (picked - logits[:, :11].flatten(0, 1)[rows]).abs().max() < 1e-12
        (picked * weight).sum().backward()
        outcomes.append((logits[:, :11], torch.cat([p.grad.flatten() for p in net.parameters()])))
    for a, b in zip(*outcomes):
        assert b.abs().max() > 0.1 and (a - b).abs().max() < 1e-10


# ------------------------------------------------------------------------------------------------------------------
# the two ends


def test_block_size_1_at_time_1_is_autoregression_without_a_shift():
    """Section 4.2: position b is a mask that sees x^{<b}, and predicts token b itself."""
    net, x = transformer(5, block_size=1), texts(4, 9)
    nll = torch.zeros(4, 9, dtype=torch.float64)
    for b in range(9):
        canvas = torch.cat([x[:, :b], torch.full((4, 1), M)], 1)
        nll[:, b] = F.cross_entropy(plain_logits(net, canvas, 1)[:, b], x[:, b], reduction="none")
    for corruption in ("rate", "count"):
        options = LossOptions(block_size=1, t_min=1.0, t_max=1.0, corruption=corruption)
        for seed in range(3):
            assert abs(bd3lm.loss(net, x, options, mask_id=M, seed=seed) - nll.mean()) < 1e-10
    # No variance is left in the bound either: it is the likelihood.
    for keys in (dict(), dict(samples=3), dict(seed=8, first=5)):
        assert (bd3lm.nelbo(net, x, mask_id=M, **keys) - nll.sum(1)).abs().max() < 1e-10
    for method in ("left_to_right", "confidence"):
        ll = fast_bd3lm.log_likelihood(net, list(x[:, :2]), list(x[:, 2:]), LikelihoodOptions(method), mask_id=M)
        assert (ll + nll[:, 2:].sum(1)).abs().max() < 1e-10


ALL_LOSSES = [
    dict(zip(("schedule", "corruption", "complementary", "objective", "t_shape"), choice))
    for choice in itertools.product(
        SCHEDULES, ("rate", "count"), (False, True), ("nelbo", "masked_ce"), ("uniform", "bell")
    )
]


def test_block_size_l_is_masked_diffusion():
    """With the same seed, the same number: every loss, the bound and the likelihoods."""
    net, x = transformer(6, block_size=12), texts(3, 12)
    maskable = torch.rand(3, 12, generator=generator(0)) < 0.8
    for keys in [*ALL_LOSSES, dict(t_min=0.3, t_max=0.8), dict(low_discrepancy=False)]:
        for extra in (dict(), dict(maskable=maskable, shard=(2, 7), denominator=11)):
            blocks = bd3lm.loss(net, x, LossOptions(**keys, block_size=12), mask_id=M, seed=4, **extra)
            whole = mdlm.loss(net, x, mdlm.LossOptions(**keys), mask_id=M, seed=4, **extra)
            assert abs(blocks - whole) < 1e-12, keys
    for extra in (dict(), dict(maskable=maskable, samples=4, seed=3, first=2)):
        values = (module.nelbo(net, x, mask_id=M, **extra) for module in (bd3lm, mdlm))
        assert (next(values) - next(values)).abs().max() < 1e-10
    prompts, targets = [x[0, :5], x[1, :0], x[2, :11]], [x[0, 5:], x[1], x[2, 11:]]
    for method in ("nelbo", "left_to_right", "confidence"):
        options = LikelihoodOptions(method, batch_size=2, seed=1)
        values = (module.log_likelihood(net, prompts, targets, options, mask_id=M) for module in (bd3lm, mdlm))
        assert (next(values) - next(values)).abs().max() < 1e-10


QUOTAS = {
    "one": dict(),
    "steps": dict(steps=5),
    "cosine": dict(steps=5, schedule="cosine"),
    "threshold": dict(quota="threshold", threshold=0.4),
    "factor": dict(quota="factor", factor=1.2),
    "ancestral": dict(quota="ancestral", steps=6),
    "remask": dict(quota="ancestral", steps=9, remask=0.4),
    "entropy_bound": dict(quota="entropy_bound", order="entropy", entropy_bound=1.5),
    "guided": dict(steps=5, cfg_scale=1.3),
    "filtered": dict(top_k=5, top_p=0.8, temperature=0.7, suppress=(3, 4)),
    "greedy": dict(temperature=0),
    "random": dict(order="random", steps=5),
    "margin": dict(order="margin"),
    "entropy": dict(order="entropy", quota="threshold", threshold=0.3),
}


@pytest.mark.parametrize("name", QUOTAS)
def test_generating_in_one_block_is_masked_diffusions(name):
    """Prompts that fill the context to 12 tokens, by any rule: tokens, forwards and traces."""
    net = transformer(6, block_size=12)
    for prompts in ([ids(7)], [ids(6, M, 8), ids(1, M, M)]):
        keys = dict(max_new_tokens=12 - len(prompts[0]), **QUOTAS[name])
        blocks = fast_bd3lm.generate(net, prompts, SampleOptions(**keys), mask_id=M, eos_id=0, trace=True)
        whole = fast_mdlm.generate(net, prompts, fast_mdlm.SampleOptions(**keys), mask_id=M, eos_id=0, trace=True)
        assert_same_output(blocks, whole)


def assert_same_output(a, b, forwards=True):
    assert [t.tolist() for t in a.tokens] == [t.tolist() for t in b.tokens]
    assert not forwards or a.num_forwards == b.num_forwards
    for events, others in zip(a.trace, b.trace):
        assert [e[:3] for e in events] == [e[:3] for e in others]
        assert all(abs(e[3] - o[3]) < 1e-8 for e, o in zip(events, others))


# ------------------------------------------------------------------------------------------------------------------
# the bound


def orders(size):
    """All orders in which a block is finished before the next one starts."""
    each = [itertools.permutations(block) for block in blocks_of(L, size)]
    return [sum(parts, ()) for parts in itertools.product(*each)]


def chains(toy, x, size):
    """log p(x) along each of these orders, (orders, N), from the table alone."""
    return torch.stack([chain_rule(toy, x, order) for order in orders(size)])


def block_nelbo(toy, x, size, maskable=None):
    """Enumerated through the code's cross entropies: each block's t integrated in closed form. A set of k of n tokens
    is hidden with weight int w(t) r^k (1-r)^(n-k) dt = (k-1)! (n-k)! / n!, whatever the schedule."""
    model, total = Seer(toy, size), torch.zeros(len(x), dtype=torch.float64)
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


@pytest.mark.parametrize("size", SIZES)
def test_the_nelbo_of_exact_conditionals_is_minus_log_p_at_every_block_size(size):
    """Equation 5 is tight for the true conditionals, of every string."""
    assert (block_nelbo(EXACT, STRINGS, size) + DATA.log()).abs().max() < 1e-10


@pytest.mark.parametrize("size", SIZES)
def test_the_nelbo_of_any_denoiser_is_the_mean_over_orders_that_keep_to_the_blocks(size):
    """And bounds the mixture of those orders, tightly at size 1 only."""
    logp = chains(ARBITRARY, STRINGS, size)
    nelbo = block_nelbo(ARBITRARY, STRINGS, size)
    assert (nelbo + logp.mean(0)).abs().max() < 1e-10
    mixture = logp.logsumexp(0) - math.log(len(logp))
    gap = nelbo + mixture
    assert abs(mixture.exp().sum() - 1) < 1e-12
    assert gap.abs().max() < 1e-10 if size == 1 else gap.min() > 1e-4


@pytest.mark.parametrize("complementary", [False, True])
@pytest.mark.parametrize("corruption", ["rate", "count"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_loss_is_the_nelbo_per_token_in_expectation(schedule, corruption, complementary):
    x = STRINGS.repeat(16, 1)
    maskable = torch.rand(len(x), L, generator=generator(2)) < 0.8
    for size, where in ((2, None), (3, None), (3, maskable)):
        options = LossOptions(schedule, corruption=corruption, complementary=complementary, block_size=size)
        exact = block_nelbo(ARBITRARY, x, size, where).sum() / (x.numel() if where is None else where.sum())
        keys = dict(mask_id=MASK, maskable=where)
        runs = [bd3lm.loss(Seer(ARBITRARY, size), x, options, seed=s, **keys).item() for s in range(40)]
        assert_mean(runs, exact.item())


@pytest.mark.parametrize("size", SIZES)
def test_the_estimator_of_the_nelbo_is_unbiased_for_every_row(size):
    """The fixed-count identity, block by block; over rows and over samples, with all tokens or some."""
    maskable = torch.tensor([True, False, True, True])
    for string, where in ((6, None), (9, maskable)):
        x = STRINGS[[string]]
        exact = block_nelbo(ARBITRARY, x, size, None if where is None else where[None]).item()
        for samples in (1, 3):
            keys = dict(mask_id=MASK, samples=samples, maskable=None if where is None else where.expand(2000, L))
            values = bd3lm.nelbo(Seer(ARBITRARY, size), x.expand(2000, L), **keys, seed=1)
            assert values.dtype == torch.float64
            if size == 1:
                assert (values - exact).abs().max() < 1e-10
            else:
                assert_mean(values, exact)


def test_the_counts_of_every_block_are_spread_evenly_over_the_samples():
    """However many blocks there are: 100 samples hide 1, 2, 3 and 4 of 4 tokens 25 times each, give or take 2. Every
    block has masks of its own."""
    blank, counts = Blank(), torch.zeros(64, 5)
    bd3lm.nelbo(blank, torch.zeros(1, 256, dtype=torch.int64), mask_id=2, samples=100)
    for ids_ in blank.seen:
        counts[torch.arange(64), (ids_[0, :256] == 2).view(64, 4).sum(1)] += 1
    assert (counts[:, 1:] - 25).abs().max() <= 2
    hidden = torch.stack([ids_[0, :256] == 2 for ids_ in blank.seen], 1).view(64, -1)
    assert len(hidden.unique(dim=0)) == 64


def test_the_nelbo_of_a_row_does_not_depend_on_its_batch():
    x, keys = STRINGS, dict(mask_id=MASK, samples=2, seed=7)
    whole = bd3lm.nelbo(Seer(ARBITRARY, 3), x, **keys)
    parts = [bd3lm.nelbo(Seer(ARBITRARY, 3), x[i : i + 5], first=i, **keys) for i in range(0, 16, 5)]
    assert (torch.cat(parts) - whole).abs().max() < 1e-12
    assert (bd3lm.nelbo(Seer(ARBITRARY, 3), x, first=1, **keys) - whole).abs().max() > 0.1


@pytest.mark.parametrize("size", SIZES)
def test_padding_is_text_that_is_not_known_yet(size):
    """A padded string's bound is that of its marginal: what follows is summed out, whatever ids lie there."""
    real = torch.arange(L) < torch.tensor([1, 2, 3, 4]).repeat_interleave(16)[:, None]
    x = STRINGS.repeat(4, 1)
    log_marginal = torch.stack([DATA[((STRINGS == s) | ~r).all(1)].sum().log() for s, r in zip(x, real)])
    values = bd3lm.nelbo(Seer(EXACT, size), x, mask_id=MASK, real=real, samples=300)
    if size == 1:
        assert (values + log_marginal).abs().max() < 1e-10
    assert (values + log_marginal).abs().max() < 0.4 and (values + log_marginal).mean().abs() < 0.02
    other = torch.where(real, x, 1 - x)
    assert torch.equal(bd3lm.nelbo(Seer(EXACT, size), other, mask_id=MASK, real=real, samples=300), values)


# ------------------------------------------------------------------------------------------------------------------
# times


class Blank:
    """Sees what is hidden, and has no opinion."""

    def __init__(self):
        self.config, self.seen = Config(vocab_size=3, block_size=4), []

    def __call__(self, ids, mask, positions, rows):
        self.seen.append(ids)
        return torch.zeros(len(rows), 3)


def hidden_counts(B, length, size, seed=0, shard=None, **keys):
    """How many tokens of each block the loss hides: (B, blocks)."""
    blank, x0 = Blank(), torch.zeros(B, length, dtype=torch.int64)
    bd3lm.loss(blank, x0, LossOptions(block_size=size, **keys), mask_id=2, seed=seed, shard=shard)
    return (blank.seen[0][:, :length] == 2).view(B, -1, size).sum(2)


def test_every_block_has_its_own_time_one_in_each_stratum_of_the_global_batch():
    """One t per block. 4 rows of 4 blocks of 16 tokens: exactly one block hides 1 token, one 2, … one 16.
    A block sees every stratum over the seeds. (The research code orders strata by batch, dLLM has one t per row.)"""
    runs = torch.stack([hidden_counts(4, 64, 16, seed, corruption="count") for seed in range(400)]).view(400, 16)
    assert torch.equal(runs.sort(1).values, torch.arange(1, 17).expand(400, 16))
    for block in range(16):
        seen = torch.bincount(runs[:, block] - 1, minlength=16)
        assert abs(chi_square(seen, torch.full((16,), 1 / 16))) < 4
    for a, b in ((0, 1), (0, 4), (5, 6)):  # neighbours in a row or a column are unrelated
        assert abs(torch.corrcoef(runs[:, [a, b]].T.double())[0, 1] + 1 / 15) < 4 / 400**0.5


def test_a_shard_hides_what_the_global_batch_hides_there():
    whole = hidden_counts(4, 64, 16, 3, corruption="count")
    for first, n in ((0, 1), (1, 2), (3, 1)):
        part = hidden_counts(n, 64, 16, 3, (first, 4), corruption="count")
        assert torch.equal(part, whole[first : first + n])


@pytest.mark.parametrize("objective", ["nelbo", "masked_ce"])
@pytest.mark.parametrize("corruption", ["rate", "count"])
@pytest.mark.parametrize("complementary", [False, True])
def test_micro_batches_add_up_to_one_large_batch(objective, corruption, complementary):
    """Losses and gradients, with prompts, and a last block that is shorter."""
    keys = dict(objective=objective, corruption=corruption, complementary=complementary)
    options, net, x = LossOptions(**keys, block_size=4), transformer(7), texts(6, 10)
    maskable = torch.arange(10) >= torch.arange(6)[:, None] % 4

    def gradients(cuts):
        net.zero_grad()
        total = 0.0
        for a, b in zip(cuts, cuts[1:]):
            where = dict(maskable=maskable[a:b], shard=(a, 6), denominator=maskable.sum())
            value = bd3lm.loss(net, x[a:b], options, mask_id=M, seed=3, **where)
            value.backward()
            total += value.item()
        return total, torch.cat([p.grad.flatten() for p in net.parameters()])

    whole, whole_gradient = gradients([0, 6])
    assert abs(whole - bd3lm.loss(net, x, options, maskable=maskable, mask_id=M, seed=3)) < 1e-12
    parts, gradient = gradients([0, 1, 3, 6])
    assert abs(parts - whole) < 1e-10 and (gradient - whole_gradient).norm() < 1e-10 * whole_gradient.norm()


@pytest.mark.parametrize("objective", ["nelbo", "masked_ce"])
def test_prompts_are_never_hidden_and_never_learned(objective):
    x, maskable = texts(5, 10), torch.arange(10) >= torch.tensor([0, 3, 4, 9, 10])[:, None]
    for complementary in (False, True):
        options, spy = LossOptions(objective=objective, complementary=complementary, block_size=4), Spy(NET)
        value = bd3lm.loss(spy, x, options, mask_id=M, maskable=maskable)
        noised = spy.seen[0][0][:, :10]
        assert torch.equal((noised == M).view(-1, 5, 10).any(0), (noised == M).view(-1, 5, 10).any(0) & maskable)
        assert (noised == M).any() and value > 0
        alone = bd3lm.loss(NET, x[:4], options, mask_id=M, maskable=maskable[:4], shard=(0, 5))
        assert abs(value - alone) < 1e-12  # the last row is all prompt


def test_clipped_rates_hide_as_much_as_they_say():
    """Section 5, U[beta, omega]: of 20 tokens never fewer than beta, never more than omega."""
    counts = hidden_counts(30, 80, 20, corruption="count", t_min=0.3, t_max=0.8)
    assert counts.min() == 7 and counts.max() == 16
    assert (torch.bincount(counts.flatten())[7:] - 12).abs().max() <= 1  # as many of each
    rate = hidden_counts(30, 800, 200, t_min=0.3, t_max=0.8) / 200
    assert 0.2 < rate.min() < 0.33 and 0.77 < rate.max() < 0.9 and abs(rate.mean() - 0.55) < 0.01


class Profile:
    """Its cross entropy depends on the fraction of a block that is hidden alone: 1 + (f - centre)^2."""

    def __init__(self, centre, size):
        self.centre, self.size, self.config = centre, size, Config(vocab_size=3)

    def __call__(self, ids, mask, positions, rows):
        noised = (ids[:, : self.length] == 2).double().view(len(ids), -1, self.size)
        f = noised.mean(2, keepdim=True).expand_as(noised).flatten()[rows]
        nll = 1 + (f - self.centre) ** 2
        return torch.stack([-nll, torch.log1p(-torch.exp(-nll)), nll], 1)


@pytest.mark.parametrize("width, centre, low", [(0.3, 0.6, 0.45), (0.5, 0.4, 0.15), (0.3, 0.95, 0.7), (0.25, 0.0, 0.0)])
def test_adaptive_clipping_finds_the_interval_of_least_variance(width, centre, low):
    """With exact counts a block's loss is n (1 + (t - centre)^2): it varies least around the centre. The distance of
    t_min and t_max stays, and where they stood before does not matter."""
    model = Profile(centre, 20)
    model.length = 400
    windows = [(torch.zeros(16, 400, dtype=torch.int64), None)] * 4
    for start in (0.0, 1 - width):
        options = LossOptions(
            corruption="count", block_size=20, clip="adaptive", t_min=start, t_max=start + width, t_shape="bell"
        )
        found = bd3lm.adapt(model, windows, options, mask_id=2)
        assert abs(found["t_min"] - low) < 1e-9 and abs(found["t_max"] - low - width) < 1e-9 and len(found) == 2
        LossOptions(**{f.name: getattr(options, f.name) for f in fields(options)} | found)  # may be used as they are


def test_fixed_clipping_looks_at_nothing():
    assert bd3lm.adapt(None, None, LossOptions(t_min=0.3, t_max=0.8), mask_id=2) == {}


# ------------------------------------------------------------------------------------------------------------------
# likelihood


def naive_log_likelihood(net, prompt, target, size, method):
    """Token by token: every time a fresh plain pass over the text so far and the rest of its block in masks."""
    text, seq_len = torch.cat([prompt, target]), net.config.seq_len
    total, end = 0.0, len(text)
    for block in blocks_of(seq_len, size):
        hidden = [i for i in block if len(prompt) <= i < end]
        canvas = torch.full((1, block[-1] + 1), M)
        canvas[0, : min(end, block[-1] + 1)] = text[: block[-1] + 1]
        while hidden:
            canvas[0, hidden] = M
            logp = plain_logits(net, canvas, size)[0].log_softmax(-1)
            i = hidden[0] if method == "left_to_right" else max(hidden, key=lambda i: logp[i].max().item())
            total += logp[i, text[i]].item()
            canvas[0, i] = text[i]
            hidden.remove(i)
    return total


PAIRS = [
    (ids(7), ids(8, 9, 6, 10, 11)),
    (ids(6, 7, 8, 9, 10), ids(11, 0, 3)),
    (ids(1, 2, 3, 4, 6, 7, 8, 9), ids(10, 11)),
    (ids(9, 9, 1, 2), ids(4, 7, 0, 0, 1, 1, 2, 6)),
    (ids(3, 8), ids()),
]


@pytest.mark.parametrize("method", ["left_to_right", "confidence"])
@pytest.mark.parametrize("size", [1, 3, 4, 5, 12])
def test_a_deterministic_order_has_an_exact_likelihood(size, method):
    """DUEL, block by block: equal to token after token, alone or in a ragged batch; in block_size forwards at most,
    because what every block is given is known from the start."""
    net = transformer(8, block_size=size)
    spy = Spy(net)
    together = fast_bd3lm.log_likelihood(spy, *zip(*PAIRS), LikelihoodOptions(method), mask_id=M)
    assert len(spy.seen) <= size and together.dtype == torch.float64
    if size < 12:  # 8 tokens of the fourth target fill a block of any of these sizes
        assert len(spy.seen) == size
    for (prompt, target), value in zip(PAIRS, together.tolist()):
        alone = fast_bd3lm.log_likelihood(net, [prompt], [target], LikelihoodOptions(method), mask_id=M)
        assert abs(alone - value) < 1e-10
        assert abs(naive_log_likelihood(net, prompt, target, size, method) - value) < 1e-10
    pieces = fast_bd3lm.log_likelihood(net, *zip(*PAIRS), LikelihoodOptions(method, batch_size=2), mask_id=M)
    assert (pieces - together).abs().max() < 1e-10
    assert fast_bd3lm.log_likelihood(net, [], [], LikelihoodOptions(method), mask_id=M).shape == (0,)


@pytest.mark.parametrize("size", SIZES)
def test_exact_likelihoods_of_exact_conditionals_are_log_p_and_marginalise_what_follows(size):
    """A target that ends inside a block is followed by masks: the text behind it is summed out."""
    cases = [(s[:a], s[a:b]) for a in range(L) for b in range(a + 1, L + 1) for s in STRINGS]
    for method in ("left_to_right", "confidence"):
        options = LikelihoodOptions(method, batch_size=64)
        ll = fast_bd3lm.log_likelihood(Seer(EXACT, size), *zip(*cases), options, mask_id=MASK)
        for (prompt, target), value in zip(cases, ll.tolist()):
            text, n = torch.cat([prompt, target]), len(prompt)
            p = [DATA[(STRINGS[:, :k] == text[:k]).all(1)].sum().log().item() for k in (n, len(text))]
            assert abs(p[1] - p[0] - value) < 1e-10


@pytest.mark.parametrize("method", ["left_to_right", "confidence"])
def test_likelihoods_of_all_targets_sum_to_one(method):
    """Of a network that was never trained, given any prompt, for targets across and inside blocks; on the toy, the
    likelihoods are the laws of the orders."""
    net = transformer(9, vocab_size=4, seq_len=7, block_size=3)
    targets = [t for t in listing(4, 3) if (t != 2).all()]
    nothing = [ids()] if method == "left_to_right" else []  # masks alone: no position is surer than another
    for prompt in (*nothing, ids(1), ids(3, 0, 0), ids(0, 1, 3, 3)):
        ll = fast_bd3lm.log_likelihood(net, [prompt] * 27, targets, LikelihoodOptions(method, batch_size=27), mask_id=2)
        assert abs(ll.exp().sum() - 1) < 1e-10
    for size in SIZES:
        ll = fast_bd3lm.log_likelihood(
            Seer(ARBITRARY, size), [ids()] * 16, list(STRINGS), LikelihoodOptions(method), mask_id=MASK
        )
        law = block_law(ARBITRARY, size, SampleOptions(L))
        left = chain_rule(ARBITRARY, STRINGS, range(L)).exp()
        assert (ll.exp() - (left if method == "left_to_right" else law)).abs().max() < 1e-10


def test_the_bound_of_a_prompted_target_is_its_nelbo():
    x, n = STRINGS, 1
    maskable = (torch.arange(L) >= n).expand_as(x)
    for size in (2, 3):
        exact = block_nelbo(ARBITRARY, x, size, maskable)
        values = [
            fast_bd3lm.log_likelihood(
                Seer(ARBITRARY, size),
                list(x[:, :n]),
                list(x[:, n:]),
                LikelihoodOptions(mc_samples=200, batch_size=b),
                mask_id=MASK,
            )
            for b in (5, 16)
        ]
        assert (values[0] - values[1]).abs().max() < 1e-10
        assert (values[0] + exact).abs().max() < 0.6 and (values[0] + exact).mean().abs() < 0.06


# ------------------------------------------------------------------------------------------------------------------
# generation


def naive(net, prompts, o, size=4, window=None, eos=None):
    """No cache, no batch, no saving: for every row and step a fresh pass over its whole canvas up to the end of the
    block, through a mask that is written down densely. What to reveal is decode.decode's choice, as everywhere."""
    window, seq_len = window or net.config.seq_len, net.config.seq_len
    canvases = [canvas_of(p, o) for p in prompts]
    x, real = decode.pad(canvases, M)
    hole, lengths = (x == M) & real, real.sum(1)
    x = F.pad(x, (0, size), value=M)

    def logits_at(r, position, wanted):
        answers = []
        for row, places, want in zip(r.tolist(), position, wanted):
            if not want.any():
                continue
            n = len(canvases[row])
            ends = [min(start + size, seq_len) if n <= seq_len else start + size for start in range(0, n, size)]
            end = next(e for e in ends if e > places[0])
            mask = torch.zeros(1, end, end, dtype=torch.bool)
            for q in range(end):
                mask[0, q, max(0, ends[q // size] - window) : ends[q // size]] = True
            given = ~F.pad(hole[row], (0, size))[:end] & (torch.arange(end) < n)
            canvas = x[row, :end]
            versions = [canvas] if not o.cfg_scale else [canvas, canvas.masked_fill(given, M)]
            out = [net(v[None], mask=mask)[0, places[want]] for v in versions]
            answers.append(out[0] if not o.cfg_scale else out[1] + (o.cfg_scale + 1) * (out[0] - out[1]))
        return torch.cat(answers).__getitem__, 0

    options = SampleOptions(**{f.name: getattr(o, f.name) for f in fields(o)} | dict(block_size=size))
    with torch.no_grad():
        return decode.decode(
            net, x, F.pad(hole, (0, size)), lengths, 0 * lengths, options, logits_at, mask_id=M, eos_id=eos, trace=True
        )


PROMPTS = [
    ids(7),
    ids(6, 7, 8, 9),
    ids(1, 2, 3, 4, 6, 7),
    ids(8, 1, 0),
    ids(9, 9, 1, M, M, 2, 6, M, 8),
    ids(11, 6, 7, 3, 2),
]


@pytest.mark.parametrize("name", QUOTAS)
def test_the_cache_gives_the_tokens_of_recomputing_everything(name):
    """Three ways to cache, and a naive generator without any: the same tokens and probabilities, by every rule, at
    block sizes that do not divide, from ragged prompts."""
    for size, seed in ((5, 0), (3, 1), (1, 2)):
        net = transformer(10 + seed, block_size=size, seq_len=24)
        o = dict(max_new_tokens=7, seed=seed, **QUOTAS[name])
        expected = naive(net, PROMPTS, SampleOptions(**o), size)
        kept = fast_bd3lm.generate(net, PROMPTS, SampleOptions(**o), mask_id=M, trace=True)
        assert_same_output(kept, expected, forwards=False)
        for cache in ("block", "none"):
            other = fast_bd3lm.generate(net, PROMPTS, SampleOptions(**o, cache=cache), mask_id=M, trace=True)
            assert_same_output(other, expected, forwards=False)


def test_the_last_block_of_the_context_is_short_in_generation_as_it_was_in_training():
    """10 tokens in blocks of 4 are 4, 4 and 2. The likelihood of what was generated, by the pass of training, is that
    in its trace: also where nothing is asked of the window."""
    net = transformer(11, seq_len=10)
    for prompt in (ids(7), ids(1, 2, 3, 4, 6), ids(1, 2, 3, 4, 6, 7, 8, 9)):
        out = fast_bd3lm.generate(net, [prompt], SampleOptions(10 - len(prompt)), mask_id=M, trace=True)
        targets = [out.tokens[0][len(prompt) :]]
        ll = fast_bd3lm.log_likelihood(net, [prompt], targets, LikelihoodOptions("confidence"), mask_id=M)
        assert abs(ll.item() - sum(math.log(p) for *_, p in out.trace[0])) < 1e-8


def test_the_probabilities_in_the_trace_are_the_likelihood():
    """DUEL: generating and scoring are one model, at every block size, in ragged batches."""
    for size in (1, 3, 4, 6):
        net = transformer(12, block_size=size, seq_len=24)
        prompts = [ids(7), ids(6, 7, 8, 9), ids(1, 2, 3, 4, 6, 7)]
        out = fast_bd3lm.generate(net, prompts, SampleOptions(8), mask_id=M, trace=True)
        targets = [t[len(p) :] for p, t in zip(prompts, out.tokens)]
        ll = fast_bd3lm.log_likelihood(net, prompts, targets, LikelihoodOptions("confidence"), mask_id=M)
        for value, events in zip(ll.tolist(), out.trace):
            assert abs(value - sum(math.log(p) for *_, p in events)) < 1e-8


def block_law(toy, size, o):
    """What revealing block by block produces on the toy, by enumeration of every path: (16,)."""
    canvases = {(MASK,) * L: 1.0}
    number = len(blocks_of(L, size))
    for b, block in enumerate(blocks_of(L, size)):
        steps = max(1, o.steps // number + (b < o.steps % number)) if o.steps else len(block)
        for step in range(steps):
            following = {}
            for canvas, weight in canvases.items():
                where = [i for i in block if canvas[i] == MASK]
                p = toy(torch.tensor([canvas]))[0, :, :MASK].softmax(-1)
                count = len(block) // steps + (step < len(block) % steps)
                surest = sorted(where, key=lambda i: -p[i].max().item())[:count]
                sets = list(itertools.combinations(where, count)) if o.order == "random" else [surest]
                for chosen in sets:
                    for tokens in itertools.product(range(2), repeat=len(chosen)):
                        new, chance = list(canvas), weight / len(sets)
                        for i, v in zip(chosen, tokens):
                            new[i], chance = v, chance * p[i, v].item()
                        following[tuple(new)] = following.get(tuple(new), 0.0) + chance
            canvases = following
    return torch.tensor([canvases[tuple(s)] for s in STRINGS.tolist()], dtype=torch.float64)


@pytest.mark.parametrize("keys", [{}, dict(order="random"), dict(steps=1), dict(steps=3, order="random")], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_generate_follows_the_law_of_its_rules_and_with_exact_conditionals_the_data(size, keys):
    """20,000 samples through a real KV cache against every path enumerated. One token at a time is exact whatever the
    order; two at once are not, unless their block is that small."""
    o = SampleOptions(L, **keys)
    exact = block_law(EXACT, size, o)
    if "steps" not in keys or size == 1:
        assert (exact - DATA).abs().max() < 1e-12
    elif keys["steps"] == 1:
        assert (exact - DATA).abs().max() > 1e-3
    for toy in (ARBITRARY,) if keys else (ARBITRARY, EXACT):
        law = block_law(toy, size, o)
        assert abs(law.sum() - 1) < 1e-12
        tokens = torch.stack(fast_bd3lm.generate(Seer(toy, size), [ids()] * 20_000, o, mask_id=MASK).tokens)
        counts = torch.bincount((tokens * 2 ** torch.arange(L - 1, -1, -1)).sum(1), minlength=16)
        assert abs(chi_square(counts, law)) < 4


@pytest.mark.parametrize("name", QUOTAS)
def test_a_row_of_a_ragged_batch_is_what_it_would_have_been_alone(name):
    """Tokens, forwards and trace, whoever else is in the batch."""
    o, others = SampleOptions(7, **QUOTAS[name]), [ids(3), ids(8, 8, 1, M, 2, 1, 1, 1, 1, 1, 1, 1), ids(2, 6)]
    whole = fast_bd3lm.generate(NET, PROMPTS, o, mask_id=M, eos_id=9, trace=True)
    for i, prompt in enumerate(PROMPTS):
        batch = [others[(i + j) % 3] for j in range(i)] + [prompt] + others[: i % 2]
        alone = fast_bd3lm.generate(NET, batch, o, mask_id=M, eos_id=9, trace=True)
        assert alone.tokens[i].tolist() == whole.tokens[i].tolist()
        assert alone.num_forwards[i] == whole.num_forwards[i]
        assert [e[:3] for e in alone.trace[i]] == [e[:3] for e in whole.trace[i]]


def test_rows_leave_the_batch_when_they_are_finished():
    """Holes: 7, 5 and 1, that end in the third, the second and the first block. Guidance has two of each."""
    prompts = [ids(1, 2, 3, M, M, M, M, M, M, M), ids(7, M, M, 3, 4, M, M, M), ids(1, M, 3, 4, 6)]
    for scale, copies in ((0.0, 1), (1.0, 2)):
        spy = Spy(NET)
        fast_bd3lm.generate(spy, prompts, SampleOptions(0, cfg_scale=scale), mask_id=M)
        assert [len(i) for i, _ in spy.seen] == [copies * n for n in (3, 2, 2, 2, 2, 1, 1)]


# ------------------------------------------------------------------------------------------------------------------
# what is paid


@pytest.mark.parametrize(
    "prompt, new, stored", [(0, 4, 0), (0, 9, 2), (3, 1, 0), (3, 9, 2), (4, 4, 1), (5, 9, 3), (11, 3, 2)]
)
def test_each_token_is_encoded_once_when_it_is_final_and_the_storing_is_counted(prompt, new, stored):
    """One pass per token and one for each block, or prompt, that is stored; fused with the next step, it is no call of
    its own. Behind it come the tokens of the current block, and nothing else."""
    spy, text = Spy(NET), texts(1, prompt)[0]
    out = fast_bd3lm.generate(spy, [text], SampleOptions(new), mask_id=M)
    assert out.num_forwards == [new + stored] and len(spy.seen) == new
    final = []
    for tokens, positions in spy.seen:
        tokens, positions = tokens[0], positions[0]
        assert (positions >= 0).all()
        clean = positions // 4 < positions.max() // 4
        assert torch.equal(tokens[clean], out.tokens[0][positions[clean]])
        assert (tokens[~clean] == M).any() and (positions[~clean] // 4 == positions.max() // 4).all()
        final += positions[clean].tolist()
    assert final == list(range((prompt + new - 1) // 4 * 4))


def test_without_a_cache_the_same_forwards_are_longer():
    """What the options are for: none encodes everything at each step, block the prefix once per block, kept never."""
    lengths = {}
    for cache in ("kept", "block", "none"):
        spy = Spy(NET)
        fast_bd3lm.generate(spy, [ids(6, 7, 8, 9, 10)], SampleOptions(7, cache=cache), mask_id=M)
        lengths[cache] = [i.shape[1] for i, _ in spy.seen]
    assert lengths == {
        "kept": [8, 4, 4, 8, 4, 4, 4],
        "block": [8, 4, 4, 12, 4, 4, 4],
        "none": [8, 8, 8, 12, 12, 12, 12],
    }


def test_guidance_counts_twice():
    out = [
        fast_bd3lm.generate(NET, [ids(6, 7, 8, 9, 10)], SampleOptions(7, cfg_scale=s), mask_id=M) for s in (0.0, 1.0)
    ]
    assert out[0].num_forwards == [9] and out[1].num_forwards == [18]


def test_steps_are_shared_out_over_the_blocks_and_blocks_count_from_the_start_of_the_text():
    """dLLM aligned blocks to the text in training, to the prompt's end in sampling."""
    out = fast_bd3lm.generate(NET, [ids(6, 7, 8)], SampleOptions(9, steps=7), mask_id=M, trace=True)
    clocks = [{clock for clock, position, *_ in out.trace[0] if position // 4 == b} for b in range(3)]
    assert [len(c) for c in clocks] == [1, 2, 2]  # of 3, 2 and 2 steps: the first block has one hole only
    assert max(clocks[0]) < min(clocks[1]) and max(clocks[1]) < min(clocks[2])


# ------------------------------------------------------------------------------------------------------------------
# where it stops


class Script(Net):
    """Wants tokens[i] at position i, with probability sure[i], whatever it sees."""

    def __init__(self, tokens, sure, block_size=4):
        p = torch.tensor(sure, dtype=torch.float64)[:, None]
        self.logits = ((1 - p) / (VOCAB - 2)).log().repeat(1, VOCAB)
        self.logits.scatter_(1, torch.tensor(tokens)[:, None], p.log())
        self.config = Config(VOCAB, 64, block_size, 1, 1, n_embd=2)

    def parameters(self):
        yield self.logits

    def __call__(self, ids, mask=None, positions=None, cache=None, rows=None):
        return self.logits[positions.clamp(0, len(self.logits) - 1)].flatten(0, 1)[rows]


def test_a_generated_end_of_text_ends_a_row_at_once():
    """Nothing behind it, no forward for later blocks, id 0 included; without one, all of max_new_tokens."""
    o = SampleOptions(12, temperature=0)
    script = Script([3, 1, 4, 1, 6, 0, 2, 7, 8, 0, 9, 9], [0.5, 0.6, 0.7, 0.8, 0.9, 0.5, 0.8, 0.7, 0.5, 0.5, 0.5, 0.5])
    spy = Spy(script)
    out = fast_bd3lm.generate(spy, [ids()], o, mask_id=M, eos_id=0)
    assert out.tokens[0].tolist() == [3, 1, 4, 1, 6, 0]
    assert out.num_forwards == [4 + 1 + 4] and len(spy.seen) == 8  # of the end's own block, what is surer comes first
    script.logits[6:8] = script.logits[9]  # now the end is surer than what follows it
    script.logits[5] += torch.zeros(VOCAB).double().index_fill(0, ids(0), 2.0)
    out = fast_bd3lm.generate(script, [ids(), ids(1, 2, 3, 4, 9, 7)], o, mask_id=M, eos_id=0)
    assert [t.tolist() for t in out.tokens] == [[3, 1, 4, 1, 6, 0], [1, 2, 3, 4, 9, 7, 0]]
    assert out.num_forwards[0] == 4 + 1 + 2
    out = fast_bd3lm.generate(script, [ids()], o, mask_id=M)
    assert out.tokens[0].tolist()[5] == 0 and len(out.tokens[0]) == 12 and out.num_forwards == [14]


def test_an_end_of_text_in_the_prompt_ends_nothing():
    script = Script([1, 0, 2, 3, 4, 6, 7, 0, 9], [0.5] * 9)
    o = SampleOptions(7, temperature=0)
    assert fast_bd3lm.generate(script, [ids(1, 0)], o, mask_id=M, eos_id=0).tokens[0].tolist() == [
        1,
        0,
        2,
        3,
        4,
        6,
        7,
        0,
    ]


def test_infilling_passes_over_given_blocks():
    """Masks in a prompt are holes; what is given stays. Later blocks see it, earlier ones do not."""
    canvas = ids(1, 2, M, 3, 4, 6, 7, 8, 9, M, M, 10, 11)
    for cache in ("kept", "block", "none"):
        out = fast_bd3lm.generate(NET, [canvas], SampleOptions(2, cache=cache), mask_id=M, trace=True)
        assert torch.equal(out.tokens[0][:13][canvas != M], canvas[canvas != M]) and len(out.tokens[0]) == 15
        assert sorted(e[1] for e in out.trace[0]) == [2, 9, 10, 13, 14]
        assert out.num_forwards == [5 + 2 * (cache != "none")]
        blocks = [e[1] // 4 for e in out.trace[0]]
        assert blocks == sorted(blocks)
    after = canvas.clone()
    after[4:] = 6
    later = fast_bd3lm.generate(NET, [after], SampleOptions(0), mask_id=M, trace=True)
    assert later.trace[0][0] == pytest.approx(out.trace[0][0], abs=1e-10)
    assert_same_output(
        fast_bd3lm.generate(NET, [canvas], SampleOptions(2), mask_id=M, trace=True),
        naive(NET, [canvas], SampleOptions(2), 4),
        forwards=False,
    )


@st.composite
def cases(draw):
    quota = draw(st.sampled_from(["steps", "threshold", "factor", "entropy_bound", "ancestral", "ancestral"]))
    orders = ["entropy", "confidence", "margin", "random"]
    orders = orders[: {"entropy_bound": 1, "threshold": 3, "factor": 3}.get(quota, 4)]
    size = draw(st.sampled_from([4, 3, 5, 1, 12]))
    options = SampleOptions(
        max_new_tokens=draw(st.sampled_from([9, 6, 12, 1, 0])),
        block_size=size,
        window=draw(st.sampled_from([0, 0, size, size + 1, 30])),
        cache=draw(st.sampled_from(["kept", "kept", "block", "none"])),
        steps=draw(st.sampled_from([9, 30, 5, 2, 1, 0])),
        order=draw(st.sampled_from(orders)),
        quota=quota,
        schedule=draw(st.sampled_from(SCHEDULES)),
        threshold=draw(st.sampled_from([0.0, 0.4, 2.0])),
        remask=draw(st.sampled_from([0.2, 1.0, 0.0])) if quota == "ancestral" else 0.0,
        temperature=draw(st.sampled_from([0.0, 1.0])),
        top_k=draw(st.sampled_from([0, 1, 4])),
        top_p=draw(st.sampled_from([1.0, 0.5])),
        cfg_scale=draw(st.sampled_from([0.0, 0.0, 0.5])),
        suppress=draw(st.sampled_from([(), (11, 3, 4)])),
        seed=draw(st.integers(0, 99)),
    )
    token = st.one_of(st.just(M), st.integers(0, VOCAB - 1))
    prompts = draw(st.lists(st.lists(token, max_size=9), min_size=1, max_size=4))
    return options, [ids(*p) for p in prompts], draw(st.sampled_from([None, 0, 7]))


FREE = transformer(13, block_size=0)


@settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(cases())
def test_every_sampler_ends_without_masks_and_keeps_what_was_given(case):
    """At any setting: it ends, no mask is returned, given tokens stay, suppressed ones never appear, nothing stands
    behind an end-of-text, and the trace replays to the output."""
    o, prompts, eos = case
    ticks = []

    def watch(rows):
        ticks.append(len(rows))
        assert len(ticks) <= 40 + max(o.steps, 21), "does not end"

    out = fast_bd3lm.generate(FREE, prompts, o, mask_id=M, eos_id=eos, trace=True, watch=watch)
    for prompt, row, forwards, events in zip(prompts, out.tokens, out.num_forwards, out.trace):
        canvas = canvas_of(prompt, o)
        n, here = len(row), canvas != M
        assert row.dtype == torch.int64 and (row != M).all()
        assert torch.equal(row[here[:n]], canvas[:n][here[:n]])
        assert not torch.isin(row[~here[:n]], torch.tensor(o.suppress + (-1,))).any()
        tail = int(here.nonzero().max()) + 1 if here.any() else 0
        stops = [] if eos is None else (row[tail:] == eos).nonzero()[:, 0].tolist()
        assert n == (tail + stops[0] + 1 if stops else len(canvas))
        assert (forwards > 0) == bool((~here).any()) and torch.equal(replay(canvas, events)[:n], row)


def test_nothing_to_do_is_done_without_a_forward():
    spy = Spy(NET)
    out = fast_bd3lm.generate(spy, [ids(1, 2), ids()], SampleOptions(0), mask_id=M, trace=True)
    assert [t.tolist() for t in out.tokens] == [[1, 2], []] and out.num_forwards == [0, 0] and out.trace == [[], []]
    assert fast_bd3lm.generate(spy, [], SampleOptions(3), mask_id=M).tokens == [] and not spy.seen


# ------------------------------------------------------------------------------------------------------------------
# beyond the context


@pytest.mark.parametrize("window", [0, 4, 7, 10, 40])
def test_beyond_the_context_a_block_sees_itself_and_what_fits_into_the_window_before(window):
    """Texts of any length. The default window is the context, 12 tokens; blocks beyond it are whole ones. (A block that
    sees nothing but its own masks has no surest position: it is filled in random order.)"""
    prompts = [ids(7, 8, 9), texts(1, 14)[0], texts(1, 25, 1)[0], ids(6, 7, 8, 9, M, M)]
    for keys in (dict(), dict(steps=9, cfg_scale=0.7)):
        o = dict(max_new_tokens=15, window=window, order="random" if window == 4 else "confidence", **keys)
        expected = naive(NET, prompts, SampleOptions(**o), 4, window or 12)
        for cache in ("kept", "block", "none"):
            out = fast_bd3lm.generate(NET, prompts, SampleOptions(**o, cache=cache), mask_id=M, trace=True)
            assert_same_output(out, expected, forwards=False)


def test_what_is_out_of_the_window_of_a_single_layer_changes_nothing():
    """A block of 4 in a window of 7 sees 3 tokens before it. (With more layers, those carry what they saw.)"""
    net, text = transformer(14, n_layer=1), texts(1, 8)[0]
    o = SampleOptions(4, window=7)

    def trace(text):
        return fast_bd3lm.generate(net, [text], o, mask_id=M, trace=True).trace[0]

    reference = trace(text)
    for i in range(8):
        changed = text.clone()
        changed[i] = 17 - text[i]
        assert (trace(changed) == reference) == (i < 5)


def test_no_key_out_of_sight_is_read():
    """The cache narrows to the slots that somebody's window reaches."""
    reach = []

    class Watch(Spy):
        def __call__(self, ids, cache, **keys):
            reach.append((cache.visible.start, cache.visible.stop))
            return super().__call__(ids, cache=cache, **keys)

    fast_bd3lm.generate(Watch(NET), [texts(1, 20)[0]], SampleOptions(8, window=6), mask_id=M)
    assert reach[1:4] == [(18, 24)] * 3 and reach[5:] == [(22, 28)] * 3


# ------------------------------------------------------------------------------------------------------------------
# bad input


def generate(net=NET, prompt=7, new=4, **keys):
    return fast_bd3lm.generate(net, [texts(1, prompt)[0]], SampleOptions(new, **keys), mask_id=M)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: generate(block_size=13), "block_size=13 exceeds the context of 12"),
        (lambda: generate(window=3), "window=3 is smaller than a block of 4"),
        (lambda: generate(FREE), "not trained on blocks: set block_size"),
        (lambda: generate(transformer(position="learned"), new=6), "learned positions end at 12.*max_new_tokens"),
        (lambda: bd3lm.nelbo(FREE, texts(1, 8), mask_id=M), "not trained on blocks"),
        (lambda: fast_bd3lm.log_likelihood(FREE, [ids(7)], [ids(8)], mask_id=M), "not trained on blocks"),
        (lambda: Config(VOCAB, 8, block_size=9), "block_size=9.*seq_len=8"),
        (lambda: LossOptions(block_size=0), "block_size must be at least 1, not 0"),
        (lambda: LossOptions(clip="adaptive", objective="masked_ce"), "clip=adaptive.*objective=nelbo"),
        (lambda: LossOptions(clip="adaptive"), "give one, such as t_min=0.45 and t_max=0.95"),
        (
            lambda: fast_bd3lm.log_likelihood(NET, [ids(*[7] * 9)], [ids(*[8] * 4)], mask_id=M),
            "13 tokens.*context of 12",
        ),
        (lambda: LossOptions(clip="adaptiv"), "adaptiv.*fixed, adaptive"),
        (lambda: LossOptions(schedule="linera"), "linera.*linear, poly2"),
        (lambda: SampleOptions(cache="keep"), "keep.*kept, block, none"),
        (lambda: SampleOptions(window=-1), "window=-1.*negative"),
    ],
)
def test_bad_input_is_refused_with_the_value_and_the_way_out(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_another_block_size_than_that_of_training_works_with_a_warning():
    with pytest.warns(UserWarning, match="trained on blocks of 4 tokens, not 3"):
        out = generate(block_size=3)
    assert len(out.tokens[0]) == 11
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(block_size=4)
        generate(FREE, block_size=3)
        assert len(generate(transformer(position="learned"), new=5).tokens[0]) == 12  # as long as the context is fine


# ------------------------------------------------------------------------------------------------------------------
# the cache


def test_rows_that_are_kept_go_on_as_if_nothing_had_happened():
    x = texts(4, 9)
    for rows in (torch.tensor([True, False, True, True]), torch.tensor([2, 0])):
        caches = [KVCache(NET.config, 4, 12, dtype=torch.float64) for _ in range(2)]
        for cache in caches:
            NET(x[:, :6], cache=cache)
        caches[0].keep(rows)
        kept, all_of_them = NET(x[rows, 6:], cache=caches[0]), NET(x[:, 6:], cache=caches[1])
        assert (kept - all_of_them[rows]).abs().max() < 1e-12
        assert len(caches[0].filled) == caches[0].k.shape[1] == len(kept)


def test_negative_positions_are_padding():
    """They are stored nowhere and seen by nobody, wherever they stand."""
    x = texts(1, 6)[0]
    cache = KVCache(NET.config, 2, 8, dtype=torch.float64)
    rows = torch.tensor([[0, 1, 2, 3, 4, 5], [-1, 0, -1, 1, 2, -1]])
    logits = NET(torch.stack([x, x]), positions=rows, cache=cache)
    alone = NET(x[[1, 3, 4]][None])
    assert (logits[1, [1, 3, 4]] - alone[0]).abs().max() < 1e-12
    assert cache.filled[:, :8].sum(1).tolist() == [6, 3] and cache.filled[1, :3].all()
    learned = transformer(15, position="learned")
    assert NET(x[None], positions=rows[1:], cache=KVCache(NET.config, 1, 8, dtype=torch.float64)).isfinite().all()
    assert learned(x[None], positions=rows[1:], cache=KVCache(NET.config, 1, 8, dtype=torch.float64)).isfinite().all()


def test_visible_slots_are_all_that_is_attended_to():
    """A mask over the visible slots gives what a mask over all of them gives that hides the others."""
    x, narrow, wide = texts(2, 8), *(KVCache(NET.config, 2, 12, dtype=torch.float64) for _ in range(2))
    for cache in (narrow, wide):
        NET(x[:, :4], cache=cache)
    narrow.visible = slice(2, 8)
    everyone = torch.zeros(1, 4, 12, dtype=torch.bool).index_fill(2, torch.arange(2, 8), True)
    expected = NET(x[:, 4:], mask=everyone, cache=wide)
    assert (NET(x[:, 4:], mask=everyone[..., 2:8], cache=narrow) - expected).abs().max() < 1e-12
    narrow.filled[:, 4:] = False
    assert (NET(x[:, 4:], cache=narrow) - expected).abs().max() < 1e-12
    narrow.filled[:, 4:], narrow.visible = False, slice(0, 12)
    assert (NET(x[:, 4:], cache=narrow) - expected).abs().max() > 1e-3
