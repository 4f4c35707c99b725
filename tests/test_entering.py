"""Rows that come while others are under way, of other options, and are called off: each is what it is alone."""

from dataclasses import replace

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy import NETS, VOCAB, M, transformer

from nanodlm import decode, fast_bd3lm, fast_mdlm

STOP = (9,)
BLOCKS = transformer(13, 0.3, seq_len=24, block_size=4)
CAUSAL = transformer(14, 0.3, seq_len=24, block_size=4, causal=True, shift=True)
SHAPES = [  # what rows must share
    (fast_mdlm, NETS["plain"], dict()),
    (fast_mdlm, NETS["learned"], dict(block_size=3, cache="prefix")),
    (fast_mdlm, NETS["shift"], dict(block_size=4, cache="dual", cfg_scale=0.5)),
    (fast_mdlm, NETS["plain"], dict(block_size=3, cache="dual", lookahead=False)),
    (fast_bd3lm, BLOCKS, dict()),
    (fast_bd3lm, BLOCKS, dict(window=8, cfg_scale=1.0)),
    (fast_bd3lm, BLOCKS, dict(sub_block=2, cache="parts")),
    (fast_bd3lm, CAUSAL, dict(cache="kept")),
]
RULES = [  # what they need not
    dict(),
    dict(quota="threshold", threshold=0.3, temperature=0.0),
    dict(quota="ancestral", steps=9, remask=0.4),
    dict(order="entropy", steps=4, measure="draw", top_k=5),
    dict(edit_threshold=0.3, edit_steps=2, temperature=0.5),
    dict(quota="threshold", threshold=0.35, edit_threshold=0.2, edit_steps=3, temperature=0.0, edit_ids=(3, 4)),
    dict(quota="p2", steps=5),
]
prompts = st.lists(st.integers(0, VOCAB - 1).filter(lambda i: i != M), min_size=1, max_size=8)
requests = st.tuples(
    st.integers(0, 12),  # before which step it comes
    st.sampled_from(RULES),
    st.integers(0, 9),  # seed
    st.integers(0, 5),  # the first number
    st.integers(1, 8),  # max_new_tokens
    st.lists(prompts, min_size=1, max_size=3),
    st.sampled_from([None, None, None, 2]),  # after how many steps it is called off
)


def decoded(module, net, shape, asked):
    """{(request, its row): (tokens, forwards, trace)} of one batch, but for what was called off."""
    loop = module.open_batch(net, module.SampleOptions(**shape), mask_id=M, eos_id=STOP, trace=True)
    found, clock, came = {}, 0, set()
    while len(came) < len(asked) or loop.rows is not None and loop.rows.alive.any():
        for k, (at, rule, seed, first, new, texts, _) in enumerate(asked):
            if at <= clock and k not in came:
                came.add(k)
                options = module.SampleOptions(**shape | rule, seed=seed, max_new_tokens=new)
                numbers = first + torch.arange(len(texts))
                rows = module.rows_of_prompts(
                    net, [torch.tensor(t) for t in texts], options, mask_id=M, numbers=numbers
                )
                rows.name = [(k, i) for i in range(len(texts))]
                loop.enter(rows)
        clock += 1
        if loop.rows is None or not loop.rows.alive.any():
            continue
        before = loop.rows.alive.clone()
        loop.step()
        for i in (before & ~loop.rows.alive).nonzero()[:, 0]:
            out = loop.output(i[None])
            found[loop.rows.name[i]] = out.tokens[0].tolist(), out.num_forwards[0], out.trace[0]
        for i, (k, _) in enumerate(loop.rows.name):
            if asked[k][-1] == loop.rows.clock[i]:
                loop.rows.alive[i] = False
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(st.sampled_from(SHAPES), st.lists(requests, min_size=1, max_size=5))
def test_each_row_is_what_it_is_alone_whoever_comes_and_goes(shape, asked):
    module, net, shape = shape
    asked = [(at, rule, *rest) for at, rule, *rest in asked if "edit_ids" not in rule or not shape.get("cfg_scale")]
    with torch.no_grad():
        found = decoded(module, net, shape, asked)
    for k, (_, rule, seed, first, new, texts, off) in enumerate(asked):
        options = module.SampleOptions(**shape | rule, seed=seed, max_new_tokens=new)
        for i, text in enumerate(texts):
            keys = dict(mask_id=M, eos_id=STOP, numbers=torch.tensor([first + i]), trace=True)
            out = module.generate(net, [torch.tensor(text)], options, **keys)
            tokens, forwards, trace = found.get((k, i), (None, None, None))
            assert tokens is not None or off is not None
            if tokens is not None:
                assert (tokens, forwards) == (out.tokens[0].tolist(), out.num_forwards[0])
                assert [e[:3] for e in trace if e[1] < len(text) + new] == [e[:3] for e in out.trace[0]]


def test_what_is_forgotten_takes_no_room():
    """The batch is as large as its live rows, and as wide as the longest of them."""
    net, options = NETS["plain"], fast_mdlm.SampleOptions(block_size=3, cache="prefix", max_new_tokens=6)
    loop = fast_mdlm.open_batch(net, options, mask_id=M)
    with torch.no_grad():
        for new in (9, 2, 2):
            loop.enter(
                fast_mdlm.rows_of_prompts(net, [torch.tensor([1])], replace(options, max_new_tokens=new), mask_id=M)
            )
            while loop.rows.alive.any():
                loop.step()
    assert loop.rows.x.shape == (1, 3) and loop.source.cache.k[0].shape[:2] == (1, 4)
    assert set(decode.SHAPE) <= {f for f in fast_bd3lm.SampleOptions.__dataclass_fields__}
