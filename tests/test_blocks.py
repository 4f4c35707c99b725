"""bd3lm's fast sampler and likelihoods: the cache against recomputing all, what is paid, and beyond the context."""

import warnings
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import toy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy import BLOCKS, SCHEDULES, VOCAB, M, Script, blocks_of, ids, listing, texts

from nanodlm import decode, fast_bd3lm, fast_mdlm
from nanodlm.fast_bd3lm import SampleOptions
from nanodlm.likelihood import LikelihoodOptions
from nanodlm.rows import rows_of


def transformer(seed, **keys):
    return toy.transformer(seed, 0.3, **dict(seq_len=12, block_size=4) | keys)


def canvas_of(prompt, options):
    return torch.cat([prompt, torch.full((options.max_new_tokens,), M)])


FREE, CACHES = transformer(13, block_size=0), ["kept", "block", "none"]


def naive(net, prompt, o, size=4, window=None, row=0):
    """No cache, no batch, no saving: for every step a fresh pass over the whole canvas up to the end of the block,
    through a mask that is written down densely. What to reveal is decode.Loop's choice, as everywhere."""
    window, seq_len = window or net.config.seq_len, net.config.seq_len
    x = canvas_of(prompt, o)
    n, hole = len(x), F.pad(x == M, (0, size))
    x = F.pad(x, (0, size), value=M)[None]
    ends = [min(start + size, seq_len) if n <= seq_len else start + size for start in range(0, n, size)]
    mask = torch.zeros(1, ends[-1], ends[-1], dtype=torch.bool)
    for q in range(ends[-1]):
        mask[0, q, max(0, ends[q // size] - window) : ends[q // size]] = True

    def logits_at(r, position, wanted):
        end = next(e for e in ends if e > position[0, 0])
        blind = torch.where(~hole[:end] & (torch.arange(end) < n), M, x[0, :end])
        cond, un = (net(v[None], mask=mask[:, :end, :end])[0, position[wanted]] for v in (x[0, :end], blind))
        return (un + (o.cfg_scale + 1) * (cond - un) if o.cfg_scale else cond).__getitem__, 0

    options = SampleOptions(**asdict(o) | dict(block_size=size))
    given = x, hole[None], torch.tensor([n]), torch.tensor([0]), options, size, torch.tensor([row])
    source = SimpleNamespace(logits_at=logits_at, enter=lambda rows, kept: None)
    with torch.no_grad():
        return decode.Loop(net, source, size, mask_id=M, trace=True).run(rows_of(*given))


def assert_as_naive(net, prompts, o, size=4, window=None):
    """Each row of one batch, by all three ways to cache."""
    expected = [naive(net, prompt, o, size, window, i) for i, prompt in enumerate(prompts)]
    for cache in CACHES:
        options = SampleOptions(**asdict(o) | dict(cache=cache))
        out = fast_bd3lm.generate(net, prompts, options, mask_id=M, trace=True)
        for i, alone in enumerate(expected):
            assert out.tokens[i].tolist() == alone.tokens[0].tolist()
            assert [e[1:3] for e in out.trace[i]] == [e[1:3] for e in alone.trace[0]]
            assert [e[3] for e in out.trace[i]] == pytest.approx([e[3] for e in alone.trace[0]], abs=1e-8)


PROMPTS = [
    ids(7),
    ids(6, 7, 8, 9),
    ids(1, 2, 3, 4, 6, 7),
    ids(8, 1, 0),
    ids(9, 9, 1, M, M, 2, 6, M, 8),
    ids(11, 6, 7, 3, 2),
]
QUOTAS = {
    "one": dict(),
    "steps": dict(steps=5),
    "cosine": dict(steps=5, schedule="cosine"),
    "threshold": dict(quota="threshold", threshold=0.4),
    "factor": dict(quota="factor", factor=1.2),
    "edits": dict(quota="threshold", threshold=0.35, edit_threshold=0.25, edit_steps=3),
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
def test_the_cache_gives_the_tokens_of_recomputing_everything(name):
    """By every rule, at block sizes that do not divide, from ragged prompts, and whoever else is in the batch."""
    for size, seed in ((5, 0), (3, 1), (1, 2))[: 3 if name in ("one", "guided") else 2]:
        net = transformer(10 + seed, block_size=size, seq_len=24)
        assert_as_naive(net, PROMPTS, SampleOptions(7, seed=seed, **QUOTAS[name]), size)


@pytest.mark.parametrize("name", QUOTAS)
def test_generating_in_one_block_is_masked_diffusions(name):
    """Prompts that fill the context to 12 tokens, by any rule: tokens, forwards and traces."""
    net = transformer(6, block_size=12)
    for prompts in ([ids(7)], [ids(6, M, 8), ids(1, M, M)]):
        o = dict(max_new_tokens=12 - len(prompts[0]), **QUOTAS[name])
        a, b = (m.generate(net, prompts, m.SampleOptions(**o), mask_id=M, eos_id=0, trace=True) for m in BOTH)
        assert [t.tolist() for t in a.tokens] == [t.tolist() for t in b.tokens] and a.num_forwards == b.num_forwards
        for events, others in zip(a.trace, b.trace):
            assert [e[:3] for e in events] == [e[:3] for e in others]
            assert [e[3] for e in events] == pytest.approx([e[3] for e in others], abs=1e-8)


BOTH = (fast_bd3lm, fast_mdlm)


@pytest.mark.parametrize("window", [0, 4, 7, 10, 40])
def test_beyond_the_context_a_block_sees_itself_and_what_fits_into_the_window_before(window):
    """Texts of any length. The default window is the context, 12 tokens; blocks beyond it are whole ones. (A block that
    sees nothing but its own masks has no surest position: it is filled in random order.)"""
    prompts = [ids(7, 8, 9), texts(1, 14)[0], texts(1, 25, 1)[0], ids(6, 7, 8, 9, M, M)]
    for keys in (dict(), dict(steps=9, cfg_scale=0.7)):
        o = SampleOptions(9, window=window, order="random" if window == 4 else "confidence", **keys)
        assert_as_naive(BLOCKS, prompts, o, 4, window or 12)


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

    class Watch(toy.Spy):
        def __call__(self, ids, cache, **keys):
            reach.append((cache.visible.start, cache.visible.stop))
            return super().__call__(ids, cache=cache, **keys)

    fast_bd3lm.generate(Watch(BLOCKS), [texts(1, 20)[0]], SampleOptions(8, window=6), mask_id=M)
    assert reach[1:4] == [(18, 24)] * 3 and reach[5:] == [(22, 28)] * 3


# ---- what is paid ----------------------------------------------------------------------------------------------------


def test_rows_leave_the_batch_when_they_are_finished():
    """Holes: 7, 5 and 1, that end in the third, the second and the first block. Guidance has two of each."""
    prompts = [ids(1, 2, 3, M, M, M, M, M, M, M), ids(7, M, M, 3, 4, M, M, M), ids(1, M, 3, 4, 6)]
    for scale, copies in ((0.0, 1), (1.0, 2)):
        spy = toy.Spy(BLOCKS)
        fast_bd3lm.generate(spy, prompts, SampleOptions(0, cfg_scale=scale), mask_id=M)
        assert [len(i) for i in spy.seen] == [copies * n for n in (3, 2, 2, 2, 2, 1, 1)]


@pytest.mark.parametrize(
    "prompt, new, stored", [(0, 4, 0), (0, 9, 2), (3, 1, 0), (3, 9, 2), (4, 4, 1), (5, 9, 3), (11, 3, 2)]
)
def test_each_token_is_encoded_once_when_it_is_final_and_the_storing_is_counted(prompt, new, stored):
    """One pass per token and one for each block, or prompt, that is stored; fused with the next step, it is no call of
    its own. Behind it come the tokens of the current block, and nothing else."""
    spy, text = toy.Spy(BLOCKS), texts(1, prompt)[0]
    out = fast_bd3lm.generate(spy, [text], SampleOptions(new), mask_id=M)
    assert out.num_forwards == [new + stored] and len(spy.seen) == new
    final = []
    for (tokens,), (positions,) in zip(spy.seen, spy.places):
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
        spy = toy.Spy(BLOCKS)
        fast_bd3lm.generate(spy, [ids(6, 7, 8, 9, 10)], SampleOptions(7, cache=cache), mask_id=M)
        lengths[cache] = [i.shape[1] for i in spy.seen]
    assert lengths == {
        "kept": [8, 4, 4, 8, 4, 4, 4],
        "block": [8, 4, 4, 12, 4, 4, 4],
        "none": [8, 8, 8, 12, 12, 12, 12],
    }


def test_a_generated_end_of_text_ends_a_row_at_once():
    """Nothing behind it, no forward for later blocks, id 0 included; without one, all of max_new_tokens."""
    o = SampleOptions(12, temperature=0)
    script = Script(
        [3, 1, 4, 1, 6, 0, 2, 7, 8, 0, 9, 9], [0.5, 0.6, 0.7, 0.8, 0.9, 0.5, 0.8, 0.7, 0.5, 0.5, 0.5, 0.5], 4
    )
    spy = toy.Spy(script)
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


def test_an_end_of_text_in_the_prompt_ends_nothing_and_nothing_to_do_costs_nothing():
    script, o = Script([1, 0, 2, 3, 4, 6, 7, 0, 9], [0.5] * 9, 4), SampleOptions(7, temperature=0)
    out = fast_bd3lm.generate(script, [ids(1, 0)], o, mask_id=M, eos_id=0)
    assert out.tokens[0].tolist() == [1, 0, 2, 3, 4, 6, 7, 0]
    spy = toy.Spy(BLOCKS)
    out = fast_bd3lm.generate(spy, [ids(1, 2), ids()], SampleOptions(0), mask_id=M, trace=True)
    assert [t.tolist() for t in out.tokens] == [[1, 2], []] and out.num_forwards == [0, 0] and out.trace == [[], []]
    assert fast_bd3lm.generate(spy, [], SampleOptions(3), mask_id=M).tokens == [] and not spy.seen


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


@settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(cases())
def test_every_sampler_ends_without_masks_and_keeps_what_was_given(case):
    """At any setting: it ends, no mask is returned, given tokens stay, suppressed ones never appear, nothing stands
    behind an end-of-text, and the trace replays to the output."""
    o, prompts, eos = case
    ticks = iter(range(40 + max(o.steps, 21)))
    keys = dict(mask_id=M, eos_id=eos, trace=True, watch=lambda _: next(ticks))
    out = fast_bd3lm.generate(FREE, prompts, o, **keys)
    for prompt, row, forwards, events in zip(prompts, out.tokens, out.num_forwards, out.trace):
        canvas = canvas_of(prompt, o)
        n, here = len(row), canvas != M
        assert row.dtype == torch.int64 and (row != M).all() and torch.equal(row[here[:n]], canvas[:n][here[:n]])
        assert not torch.isin(row[~here[:n]], torch.tensor(o.suppress + (-1,))).any()
        tail = int(here.nonzero().max()) + 1 if here.any() else 0
        stops = [] if eos is None else (row[tail:] == eos).nonzero()[:, 0].tolist()
        assert n == (tail + stops[0] + 1 if stops else len(canvas)) and (forwards > 0) == bool((~here).any())
        for _, position, token, _ in events:
            canvas[position] = token
        assert torch.equal(canvas[:n], row)


# ---- likelihood ------------------------------------------------------------------------------------------------------


def naive_log_likelihood(net, prompt, target, size, method):
    """Token by token: every time a fresh plain pass over the text so far and the rest of its block in masks."""
    text, total = torch.cat([prompt, target]), 0.0
    for block in blocks_of(net.config.seq_len, size):
        hidden = [i for i in block if len(prompt) <= i < len(text)]
        canvas = torch.full((1, block[-1] + 1), M)
        canvas[0, : len(text)] = text[: block[-1] + 1]
        while hidden:
            canvas[0, hidden] = M
            index = torch.arange(canvas.shape[1]) // size
            logits = net(canvas, mask=(index <= index[:, None])[None])[0]
            logits[:, M] = -torch.inf
            logp = logits.log_softmax(-1)
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
    """DUEL, block by block: equal to token after token, in ragged batches of any size; in block_size forwards at most,
    because what every block is given is known from the start."""
    net, spy = transformer(8, block_size=size), toy.Spy(transformer(8, block_size=size))
    together = fast_bd3lm.log_likelihood(spy, *zip(*PAIRS), LikelihoodOptions(method), mask_id=M)
    assert len(spy.seen) == min(size, 8)  # the fourth target, of 8 tokens, fills a block of any but the last size
    expected = torch.tensor([naive_log_likelihood(net, *pair, size, method) for pair in PAIRS], dtype=torch.float64)
    assert (together - expected).abs().max() < 1e-10
    for n in (1, 2):
        pieces = fast_bd3lm.log_likelihood(net, *zip(*PAIRS), LikelihoodOptions(method, batch_size=n), mask_id=M)
        assert (pieces - together).abs().max() < 1e-10
    assert fast_bd3lm.log_likelihood(net, [], [], LikelihoodOptions(method), mask_id=M).shape == (0,)


@pytest.mark.parametrize("method", ["left_to_right", "confidence"])
def test_likelihoods_of_all_targets_sum_to_one(method):
    """Of a network that was never trained, given any prompt, for targets across and inside blocks."""
    net = transformer(9, vocab_size=4, seq_len=7, block_size=3)
    targets = [t for t in listing(4, 3) if (t != 2).all()]
    nothing = [ids()] if method == "left_to_right" else []  # masks alone: no position is surer than another
    for prompt in (*nothing, ids(1), ids(3, 0, 0), ids(0, 1, 3, 3)):
        ll = fast_bd3lm.log_likelihood(net, [prompt] * 27, targets, LikelihoodOptions(method, batch_size=27), mask_id=2)
        assert abs(ll.exp().sum() - 1) < 1e-10


# ---- bad input -------------------------------------------------------------------------------------------------------


def generate(net=BLOCKS, prompt=7, new=4, **keys):
    return fast_bd3lm.generate(net, [texts(1, prompt)[0]], SampleOptions(new, **keys), mask_id=M)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: generate(block_size=13), "block_size=13 exceeds the context of 12"),
        (lambda: generate(window=3), "window=3 is smaller than a block of 4"),
        (lambda: generate(FREE), "not trained on blocks: set block_size"),
        (lambda: generate(transformer(0, position="learned"), new=6), "learned positions end at 12.*max_new_tokens"),
        (lambda: fast_bd3lm.log_likelihood(FREE, [ids(7)], [ids(8)], mask_id=M), "not trained on blocks"),
        (lambda: fast_bd3lm.log_likelihood(BLOCKS, [ids(*[7] * 9)], [ids(*[8] * 4)], mask_id=M), "13 tokens.*of 12"),
        (lambda: SampleOptions(cache="keep"), "keep.*kept, parts, block, none"),
        (lambda: SampleOptions(cache="parts"), "cache=parts needs sub_block"),
        (lambda: generate(sub_block=3), "sub_block=3 must divide the block, 4 tokens"),
        (lambda: SampleOptions(window=-1), "window=-1 .*at least 0"),
        (lambda: SampleOptions(compile=True), "compile does nothing for bd3lm"),
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
        assert (
            len(generate(transformer(0, position="learned"), new=5).tokens[0]) == 12
        )  # as long as the context is fine
