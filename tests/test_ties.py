"""Where certainties are equal, a rule decides which position goes first, and never rounding: the leftmost.

On a canvas of masks under RoPE all positions are equally sure, and so are the first two of a shifted network. The
networks here answer with logits that are moved by rounding, differently at every call, as other machines and batch
shapes move them; what is decoded must not.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_mdlm import Net, generator, ids

from model import Config, Transformer
from nanodlm import choice, fast_bd3lm, fast_mdlm
from nanodlm.decode import SampleOptions
from nanodlm.likelihood import LikelihoodOptions

torch.set_num_threads(1)
M, VOCAB, CONTEXT = 6, 12, 24
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


class Shaken(Net):
    """A network whose logits are off by up to `ulps` units in the last place, anew at each call."""

    def __init__(self, net, seed=0, ulps=1.0):
        self.net, self.config, self.cache, self.parameters = net, net.config, net.cache, net.parameters
        self.random, self.ulps = generator(seed), ulps

    def hidden(self, *args, **keys):
        return self.net.hidden(*args, **keys)

    def head(self, x):
        logits = self.net.head(x)
        off = 2 * torch.rand(logits.shape, generator=self.random) - 1
        return logits * (1 + self.ulps * torch.finfo(logits.dtype).eps * off).to(logits.dtype)

    def __call__(self, *args, **keys):
        return self.head(self.hidden(*args, **keys))


def transformer(dtype=torch.float64, seed=0, **keys):
    torch.manual_seed(seed)
    shape = dict(vocab_size=VOCAB, seq_len=CONTEXT, n_layer=2, n_head=2, n_embd=16)
    net = Transformer(Config(**shape | keys))
    with torch.no_grad():
        for p in net.parameters():
            if p.dim() == 2:
                p.normal_(0, 0.4)
    return net.to(dtype).eval()


# ------------------------------------------------------------------------------------------------------------------
# the rule


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
    expected = sorted(range(n), key=lambda i: (-level[i], i))[:count]
    chosen = choice.top_per_row(score[None], torch.tensor([count]), slack)
    assert chosen[0].nonzero()[:, 0].tolist() == sorted(expected)


def test_what_differs_by_more_than_rounding_is_no_tie():
    """A difference of 1 % in the odds means something to float32, one of 20 % to bfloat16, sure or not."""
    for dtype, odds in ((torch.float32, 0.01), (torch.bfloat16, 0.2)):
        slack = torch.finfo(dtype).eps ** 0.5
        for x in (-8.0, -2.0, 0.0, 2.0, 4.0):
            score = torch.sigmoid(torch.tensor([[x, x + odds]], dtype=torch.float64))
            assert choice.top_per_row(score, torch.tensor([1]), slack).tolist() == [[False, True]]


# ------------------------------------------------------------------------------------------------------------------
# samplers


QUOTAS = {
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
ORDERS = ("confidence", "margin", "entropy")
GRID = [(quota, order) for quota in QUOTAS for order in ORDERS if QUOTAS[quota].get("order", order) == order]


def options_of(quota, order, **keys):
    return SampleOptions(**dict(max_new_tokens=9, order=order, temperature=0.0) | QUOTAS[quota] | keys)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("quota, order", GRID)
def test_on_an_empty_canvas_the_first_step_reveals_from_the_left(quota, order, dtype):
    """Alone and beside a longer row; through a shift; however tokens are drawn."""
    for shift in (False, True):
        net = Shaken(transformer(dtype, shift=shift))
        o = options_of(quota, order, measure="draw" if shift else "network")
        batches = ([ids()], [ids(), ids(1, 2, 3)], [ids(), ids(), ids(*range(6))])
        seen = [fast_mdlm.generate(net, rows, o, mask_id=M, trace=True).trace[0] for rows in batches]
        first = [sorted(e[1] for e in events if e[0] == 0) for events in seen]
        assert first[0] == first[1] == first[2] == list(range(len(first[0])))


def test_the_first_two_positions_of_a_shifted_network_tie():
    """Both are read from the first output, whatever stands behind them."""
    for dtype in DTYPES:
        net = Shaken(transformer(dtype, shift=True), ulps=1)
        for seed in range(5):
            o = SampleOptions(0, temperature=0.0, order=ORDERS[seed % 3])
            rows = [torch.cat([ids(M, M), torch.randint(7, VOCAB, (n,), generator=generator(seed))]) for n in (3, 9)]
            for events in fast_mdlm.generate(net, rows, o, mask_id=M, trace=True).trace:
                assert [e[1] for e in events] == [0, 1]


@pytest.mark.parametrize("quota, order", GRID)
def test_a_text_without_a_prompt_is_the_same_alone_and_in_every_batch(quota, order):
    """To the end, in float32, with logits that are off by several times their rounding."""
    for shift, temperature in ((False, 0.0), (True, 1.0)):
        net = transformer(torch.float32, 3, shift=shift)
        o = options_of(quota, order, temperature=temperature, seed=5)
        rows = [ids(), ids(M, M, 4), ids(7), ids(8, 1, 2, 3)]
        batch = fast_mdlm.generate(Shaken(net, 0, 4), rows, o, mask_id=M)
        for i, row in enumerate(rows):
            alone = fast_mdlm.generate(Shaken(net, 1 + i, 4), [row], o, mask_id=M, numbers=torch.tensor([i]))
            assert alone.tokens[0].tolist() == batch.tokens[i].tolist()
            assert alone.num_forwards[0] == batch.num_forwards[i]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_blocks_without_a_prompt_begin_at_the_left(order, dtype):
    net = Shaken(transformer(dtype, block_size=8))
    for rows in ([ids()], [ids(), ids(1, 2, 3, 4, 5)]):
        o = fast_bd3lm.SampleOptions(8, order=order, temperature=0.0, steps=3)
        events = fast_bd3lm.generate(net, rows, o, mask_id=M, trace=True).trace[0]
        assert [e[1] for e in events if e[0] == 0] == [0, 1, 2]


# ------------------------------------------------------------------------------------------------------------------
# likelihoods


@pytest.mark.parametrize("method", ["confidence", "illada"])
def test_a_score_does_not_depend_on_the_batch_it_was_computed_in(method):
    """Ragged texts without a prompt, with tokens that repeat, in float32."""
    for seed in range(3):
        net = transformer(torch.float32, seed)
        targets = [torch.randint(7, VOCAB, (n,), generator=generator(n + seed)) for n in (9, 4, 12, 7, 9, 3)]
        prompts = [ids() for _ in targets]
        found = [
            fast_mdlm.log_likelihood(
                Shaken(net, size, 4), prompts, targets, LikelihoodOptions(method, batch_size=size), mask_id=M
            )
            for size in (1, 2, 4, 6)
        ]
        assert max((f - found[0]).abs().max() for f in found) < 1e-3


def test_a_block_score_does_not_depend_on_the_batch_it_was_computed_in():
    net = transformer(torch.float32, 1, block_size=6)
    targets = [torch.randint(7, VOCAB, (n,), generator=generator(n)) for n in (9, 4, 12, 7, 10, 3)]
    prompts, found = [ids() for _ in targets], []
    for size in (1, 2, 4, 6):
        o = LikelihoodOptions("confidence", batch_size=size)
        found.append(fast_bd3lm.log_likelihood(Shaken(net, size, 4), prompts, targets, o, mask_id=M))
    assert max((f - found[0]).abs().max() for f in found) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_likelihood_by_confidence_is_the_law_of_the_sampler_where_certainties_tie(dtype):
    """The probabilities that a sample was drawn with multiply to it, and those of all texts add up to one."""
    net = Shaken(transformer(dtype, 2, vocab_size=4, seq_len=4), ulps=2)
    out = fast_mdlm.generate(net, [ids()] * 30, SampleOptions(4, seed=1), mask_id=3, trace=True)
    assert len({tuple(t.tolist()) for t in out.tokens}) > 5
    drawn = torch.tensor([sum(math.log(e[3]) for e in events) for events in out.trace], dtype=torch.float64)
    o = LikelihoodOptions("confidence", batch_size=7)
    assert torch.allclose(fast_mdlm.log_likelihood(net, [ids()] * 30, out.tokens, o, mask_id=3), drawn, atol=1e-4)
    texts = list(torch.cartesian_prod(*[torch.arange(3)] * 4))
    total = fast_mdlm.log_likelihood(net, [ids()] * len(texts), texts, o, mask_id=3).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-4)
