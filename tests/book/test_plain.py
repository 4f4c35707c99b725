"""The plain samplers and likelihoods of mdlm.py, bd3lm.py and udlm.py are the specification of the fast ones: the same
tokens, probabilities and forwards, over random networks, prompts with holes and settings; each row as if alone."""

from dataclasses import asdict

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import bd3lm
import mdlm
import udlm
from model import Config, Transformer
from nanodlm import fast_bd3lm, fast_mdlm, fast_udlm
from nanodlm.likelihood import LikelihoodOptions

torch.set_num_threads(1)
VOCAB, MASK, EOS, CONTEXT = 11, 10, 9, 16


def transformer(seed, dtype, **keys):
    """A random Transformer with opinions; those without RoPE see a canvas of masks as the same at every place."""
    torch.manual_seed(seed)
    net = Transformer(Config(vocab_size=VOCAB, seq_len=CONTEXT, n_layer=2, n_head=2, n_embd=16, **keys))
    with torch.no_grad():
        for p in net.parameters():
            if p.dim() == 2:
                p.normal_(0, 0.4)
    return net.to(dtype).eval()


SHAPES = [{}, dict(position="learned"), dict(position="none"), dict(n_kv_head=1), dict(position="learned", shift=True)]
NETS = [transformer(i, dtype, **keys) for i, keys in enumerate(SHAPES) for dtype in (torch.float32, torch.float64)]
BLOCKS = {s: [transformer(s, torch.float64, block_size=s, **keys) for keys in SHAPES[:3]] for s in (1, 3, 16)}
for s in (3, 16):
    BLOCKS[s] += [transformer(s, torch.float64, block_size=s, shift=True, **keys) for keys in SHAPES[:2]]
    BLOCKS[s] += [transformer(s, torch.float64, block_size=s, shift=True, two_way=True)]

token = st.integers(0, VOCAB - 2)
prompts = st.lists(st.lists(token | st.just(MASK), max_size=8), min_size=1, max_size=4)
choices = dict(
    max_new_tokens=st.integers(0, 7),
    steps=st.integers(0, 12),
    order=st.sampled_from(["confidence", "margin", "entropy", "random", "left_to_right"]),
    quota=st.sampled_from(["steps", "threshold", "ancestral"]),
    schedule=st.sampled_from(["linear", "cosine", "poly2"]),
    threshold=st.sampled_from([0.0, 0.2, 0.4, 1.0]),
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    seed=st.integers(0, 2**40),
)
blind = ("random", "left_to_right")
sampling = st.fixed_dictionaries(choices).filter(lambda o: o["order"] not in blind or o["quota"] != "threshold")
ends = st.sampled_from([None, EOS, (EOS, 3)])
many = settings(max_examples=150, deadline=None)


def tensors(rows):
    return [torch.tensor(row, dtype=torch.int64) for row in rows]


def assert_equal(plain, fast, eos_id):
    """Tokens, and what was revealed when, and how sure it was; without an end-of-text, at which only the fast sampler
    stops at once, as many forwards, too."""
    assert [x.tolist() for x in plain.tokens] == [x.tolist() for x in fast.tokens]
    for i, (a, b) in enumerate(zip(plain.trace, fast.trace)):
        assert [e[1:3] for e in a[: len(b)]] == [e[1:3] for e in b]
        assert [e[3] for e in a[: len(b)]] == pytest.approx([e[3] for e in b], abs=1e-5)
        assert eos_id is not None or (plain.num_forwards[i], len(a)) == (fast.num_forwards[i], len(b))


@many
@given(st.sampled_from(NETS), prompts, sampling, ends)
def test_masked_diffusion_samples_the_same_tokens(net, rows, options, eos_id):
    keys = dict(mask_id=MASK, eos_id=eos_id, trace=True)
    plain = mdlm.generate(net, tensors(rows), mdlm.SampleOptions(**options), **keys)
    assert_equal(plain, fast_mdlm.generate(net, tensors(rows), fast_mdlm.SampleOptions(**options), **keys), eos_id)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(BLOCKS)), prompts, st.integers(0, 20), st.integers(0, 20))
@example(16, [[]], 17, 2)  # whose last token has less than a step's worth
@example(3, [[0, 1]], 7, 7)
def test_a_row_takes_the_steps_it_was_given_and_one_token_each_where_these_are_as_many(size, rows, new, steps):
    """Wherever a prompt ends and its holes are; but each block that has holes takes a step."""
    net, keys = BLOCKS[size][0], dict(mask_id=MASK, trace=True)
    out = bd3lm.generate(net, tensors(rows), bd3lm.SampleOptions(new, steps, temperature=0.0), **keys)
    for row, forwards, trace in zip(rows, out.num_forwards, out.trace):
        holes = [i for i, token in enumerate(row + new * [MASK]) if token == MASK]
        wanted = min(steps, len(holes)) if steps else len(holes)
        assert forwards == len({clock for clock, *_ in trace}) == max(wanted, len({i // size for i in holes}))


@many
@given(
    st.sampled_from([(size, net) for size, nets in BLOCKS.items() for net in nets]),
    prompts,
    sampling,
    ends,
    st.sampled_from([0, 4, 9]),
    st.sampled_from(["kept", "block", "none"]),
    st.none() | st.integers(2, 9),
    st.sampled_from([0, 0, 1, 4, 8]),
    st.sampled_from(["rule", "next"]),
)
def test_block_diffusion_samples_the_same_tokens_under_every_cache(
    sized, rows, options, eos_id, window, cache, stop, part, opening
):
    """Beyond the context, too, through a window; where somebody says after a block that this is enough; and where
    blocks are revealed in parts."""
    size, net = sized
    options = options | dict(sub_block=0 if size % (part or 1) else part, opening=opening)
    window = max(size, window) if window else 0
    if net.config.position != "learned":
        options |= {"max_new_tokens": 3 * options["max_new_tokens"]}
    until = None if stop is None else lambda x, n, new: len(x) - n >= stop
    rows = tensors([[i for i in row if i != MASK] for row in rows] if until else rows)
    keys = dict(mask_id=MASK, eos_id=eos_id, until=until, trace=True)
    plain = bd3lm.generate(net, rows, bd3lm.SampleOptions(**options, window=window), **keys)
    fast = fast_bd3lm.generate(net, rows, fast_bd3lm.SampleOptions(**options, window=window, cache=cache), **keys)
    if cache != "none":  # which count the storing of a block
        fast.num_forwards = plain.num_forwards
    assert_equal(plain, fast, eos_id)


@settings(max_examples=60, deadline=None)
@given(
    st.booleans(),
    st.lists(st.tuples(st.lists(token, max_size=6), st.lists(token, min_size=1, max_size=6)), min_size=1, max_size=4),
    st.sampled_from(["nelbo", "left_to_right", "confidence"]),
    st.integers(0, 9),
    st.integers(0, 1000),
)
def test_likelihoods_are_the_same(by_blocks, pairs, method, which, seed):
    given_, targets = (tensors(part) for part in zip(*pairs))
    options = mdlm.LikelihoodOptions(method, mc_samples=3, seed=seed)
    nets = BLOCKS[(1, 3, 16)[which % 3]] if by_blocks else NETS
    net = nets[which % len(nets)]
    plain, fast = (bd3lm, fast_bd3lm) if by_blocks else (mdlm, fast_mdlm)
    numbers = torch.arange(len(pairs)) * 7 + seed
    a = plain.log_likelihood(net, given_, targets, options, mask_id=MASK, numbers=numbers)
    b = fast.log_likelihood(net, given_, targets, LikelihoodOptions(**asdict(options)), mask_id=MASK, numbers=numbers)
    assert torch.allclose(a, b, atol=1e-4 if next(net.parameters()).dtype == torch.float32 else 1e-9)


UNIFORM = [
    transformer(i, torch.float64, mask_share=share, block_size=size, noise_ids=VOCAB * (share == 0.4), **keys)
    for i, (share, size, keys) in enumerate(
        [
            (0.0, 0, {}),
            (0.4, 0, SHAPES[1]),
            (1.0, 0, SHAPES[4]),
            (0.0, 3, {}),
            (0.4, 3, SHAPES[3]),
            (0.2, 4, dict(shift=True)),
        ]
    )
]
noisy = dict(
    steps=st.integers(0, 6),
    quota=st.sampled_from(["ancestral", "entropy_bound"]),
    forget=st.sampled_from([0.0, 0.3]),
    entropy_bound=st.sampled_from([0.1, 3.0]),
    sure=st.sampled_from([0.005, 2.0]),
    stable=st.sampled_from([0, 1]),
    temperature=st.sampled_from([0.7, 1.0]),
) | {key: choices[key] for key in ("max_new_tokens", "schedule", "seed")}


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(UNIFORM), prompts, st.fixed_dictionaries(noisy), ends, st.none() | st.integers(2, 9))
def test_uniform_diffusion_samples_the_same_tokens(net, rows, options, eos_id, stop):
    until = None if stop is None else lambda x, n, new: len(x) - n >= stop
    rows = tensors([[i for i in row if i != MASK] for row in rows] if until else rows)
    keys = dict(mask_id=MASK, eos_id=eos_id, until=until, trace=True)
    plain, fast = (m.generate(net, rows, udlm.SampleOptions(**options), **keys) for m in (udlm, fast_udlm))
    if net.config.block_size:  # the fast one counts the storing of a block
        fast.num_forwards = plain.num_forwards
    assert_equal(plain, fast, eos_id)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(UNIFORM),
    st.lists(st.tuples(st.lists(token, max_size=6), st.lists(token, min_size=1, max_size=6)), min_size=1, max_size=4),
    st.integers(0, 1000),
)
def test_uniform_diffusion_has_the_same_bounds(net, pairs, seed):
    given_, targets = (tensors(part) for part in zip(*pairs))
    keys = dict(mask_id=MASK, numbers=torch.arange(len(pairs)) * 7 + seed)
    o = fast_udlm.LikelihoodOptions(mc_samples=3, seed=seed, batch_size=3)
    a, b = (m.log_likelihood(net, given_, targets, o, **keys) for m in (udlm, fast_udlm))
    assert torch.allclose(a, b, atol=1e-9)
