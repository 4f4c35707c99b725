"""LLaDA2.0's threshold decoding, LLaDA2.1's and LLaDA2.2's editing: as published, and as the plain rule says.

golden/llada2.json holds what the published `generate` of LLaDA2.0 and of LLaDA2.1 gave (modeling_llada2_moe.py and
modeling_llada21_moe.py as github.com/ZHZisZZ/dllm ships them, commit ca17675) on 2026-11-29 (torch 2.13, CPU, fp32),
with a small network of ours in place of their mixture of experts, of which it asks nothing but logits. Weights are
functions of their names, as in test_published.py; the head's row of the mask token is zero, so that it is never
written. A prompt at a time, greedily; `forwards` counts its passes, which encode the prefix anew. Of LLaDA2.2, whose
generate draws random numbers to leave a circle, it holds what SGLang's own, deterministic rule gave (step of
srt/dllm/algorithm/joint_threshold_indel.py, commit 0fbe7e4, called block after block): 926 deletions, 293 insertions,
and a circle left 100 times.

What the plain samplers have not, edits by blocks, is specified here by `plain`; on a whole canvas, with its caches, by
reference_sampler.alone.
"""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference_sampler import alone, judge, noise_at, pick, quota_of, shares_of
from test_published import weight
from toy import NETS, M, ids, transformer

from model import Config, Transformer
from nanodlm import fast_bd3lm, fast_mdlm, replay
from nanodlm.fast_bd3lm import SampleOptions

GOLDEN = json.loads((Path(__file__).parent / "golden" / "llada2.json").read_text())
KEYS = dict(mask_id=GOLDEN["mask_id"], eos_id=GOLDEN["eos_id"])
PROMPTS = [torch.tensor(p) for p in GOLDEN["prompts"]]


def golden_network():
    model = Transformer(Config(**GOLDEN["config"])).eval()
    with torch.no_grad():
        for name, own in model.named_parameters():
            w = weight(name, tuple(own.shape)).float()
            if name == "embed.weight":
                w = w / 2.2 * 2.4
            if name == "head_weight":
                w[KEYS["mask_id"]] = 0
                w = w * GOLDEN["head_scale"]
            own.copy_(w)
    return model


NET = golden_network()


def as_ours(version, gen_length, threshold, block_length=8, steps=0, **rules):
    """Their settings in our words."""
    o = dict(max_new_tokens=gen_length, block_size=block_length, threshold=threshold, temperature=0.0, exact=True)
    names = dict(editing_threshold="edit_threshold", max_post_steps="edit_steps", num_to_transfer="least")
    names |= dict(edit_threshold="edit_threshold", max_post_edit_steps="edit_steps")
    o |= {names[k]: v for k, v in rules.items() if k in names}
    o |= dict(edit_ids=tuple(rules.get("edit_ids", ())))
    if version == "2.0":
        o["least"] = max(1, block_length // steps)
    return SampleOptions(quota="threshold", measure="token", overhang=True, **o)


@pytest.mark.parametrize("cache", ["none", "kept"])
@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda c: f"{c['version']} {c['settings']}")
@pytest.mark.filterwarnings("ignore:the network was trained on blocks of 8 tokens, not 4")
def test_tokens_and_forwards_are_those_of_the_published_code(case, cache):
    """Ragged prompts, in one batch: of less than a block, of whole ones, ending inside one."""
    options = as_ours(case["version"], **case["settings"])
    options.cache = cache
    out = fast_bd3lm.generate(NET, PROMPTS, options, **KEYS)
    stops = case["settings"].get("eos_early_stop", case["version"] == "2.2")  # else it writes on, and cuts
    for prompt, tokens, n, expected, theirs in zip(
        PROMPTS, out.tokens, out.num_forwards, case["tokens"], case["forwards"]
    ):
        assert tokens.tolist() == [*prompt.tolist(), *expected]
        if cache == "none":
            assert n == theirs or n < theirs and not stops and KEYS["eos_id"] in expected


# ---- the plain rule --------------------------------------------------------------------------------------------------

BLOCKS = transformer(31, 0.3, seq_len=24, block_size=4)


@torch.no_grad()
def plain(net, prompt, o, row):
    """(tokens, passes) of one text, block after block: no cache, and all that a position may become by one rule.

    A hidden position is revealed as ever. A shown one that was not given is judged from the same logits as if it were
    hidden: another token that is surer than edit_threshold replaces it. A block that is full is done when nothing
    changes, or when it was full at the start of `edit_steps` passes (LLaDA2.1, arXiv 2602.08676, eqs. 1 to 3)."""
    size, length, passes = net.config.block_size, len(prompt) + o.max_new_tokens, 0
    x = torch.cat([prompt, torch.full((-(-length // size) * size - len(prompt),), M)])
    holes = [i for i in range(len(x) if o.overhang and (x[:length] == M).any() else length) if x[i] == M]
    blocks = sorted({i // size for i in holes})
    shares = shares_of(o.steps, [sum(i // size == b for i in holes) for b in blocks])
    for block, share in zip(blocks, shares):
        inside, end, step, looks = [i for i in holes if i // size == block], (block + 1) * size, 0, 0
        at = torch.arange(end) // size
        while True:
            hidden, shown = ([i for i in inside if (x[i] == M) == masked] for masked in (True, False))
            if not hidden and (looks == o.edit_steps or o.edit_threshold == 1):
                break
            logits, looks = net(x[None, :end], mask=(at[:, None] >= at)[None])[0], looks + (not hidden)
            u = noise_at(o.seed, row, step, 1)
            found = {i: judge(logits[i], u[i], o) for i in inside}
            count = quota_of(len(inside), len(hidden), step, share if o.steps else len(inside), o.schedule)
            new = pick({i: found[i][1] for i in hidden}, o, count, None) if hidden else []
            new += [i for i in shown if found[i][0] != x[i] and found[i][1] > o.edit_threshold < 1]
            x[new] = torch.tensor([found[i][0] for i in new], dtype=torch.int64)
            step, passes = step + 1, passes + (count > 0 or o.quota != "steps" or len(shown) > 0)
            if not hidden and not new:
                break
    return x[:length].tolist(), passes


@st.composite
def cases(draw):
    def one_of(*values):
        return draw(st.sampled_from(values))

    quota = one_of("threshold", "steps", "factor")
    options = dict(
        max_new_tokens=one_of(6, 0),
        steps=one_of(0, 3, 7),
        quota=quota,
        threshold=one_of(0.4, 0.9, 1.0),
        least=one_of(1, 2) if quota == "threshold" else 1,
        factor=one_of(0.5, 1.5),
        edit_threshold=one_of(0.0, 0.2, 0.4, 1.0),
        edit_steps=one_of(3, 0, 1),
        temperature=one_of(0.0, 1.0, 0.3),
        measure=one_of("network", "token", "draw"),
        seed=draw(st.integers(0, 99)),
    )
    token = st.one_of(st.just(M), st.integers(0, 11))
    prompts = draw(st.lists(st.lists(token, min_size=1, max_size=7), min_size=1, max_size=2))
    return options, [ids(*p) for p in prompts], one_of(False, True)


@settings(max_examples=10, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(cases())
def test_the_engine_writes_what_the_plain_rule_writes(case):
    """At drawn settings, tokens and passes: by blocks with the exact cache, and on a whole canvas."""
    o, prompts, overhang = case
    by_blocks = SampleOptions(**o, overhang=overhang, cache="none")
    whole = fast_mdlm.SampleOptions(**o, block_size=5)
    out = fast_bd3lm.generate(BLOCKS, prompts, by_blocks, mask_id=M)
    by_blocks.cache = "kept"
    kept = fast_bd3lm.generate(BLOCKS, prompts, by_blocks, mask_id=M, trace=True)
    canvases = fast_mdlm.generate(NETS["plain"], prompts, whole, mask_id=M)
    for i, prompt in enumerate(prompts):
        tokens, passes = plain(BLOCKS, prompt, by_blocks, i)
        assert (out.tokens[i].tolist(), out.num_forwards[i]) == (tokens, passes)
        assert kept.tokens[i].tolist() == tokens and all(prompt[e[1]] == M for e in kept.trace[i] if e[1] < len(prompt))
        if (prompt == M).any() or o["max_new_tokens"]:
            tokens, passes, _ = alone(NETS["plain"], prompt, whole, i)
            assert (canvases.tokens[i].tolist(), canvases.num_forwards[i]) == (tokens, passes)


# ---- around it -------------------------------------------------------------------------------------------------------

MOVES = dict(quota="threshold", threshold=0.5, edit_threshold=0.1, edit_steps=4, edit_ids=(3, 8), temperature=0.0)


@pytest.mark.parametrize("module, net", [(fast_bd3lm, BLOCKS), (fast_mdlm, NETS["plain"])], ids=["blocks", "canvas"])
def test_edits_may_move_tokens_and_leave_no_trace_of_it(module, net):
    """Of ragged prompts, each what it is alone: given tokens stay, no mask, and none of the two tokens, is left."""
    prompts = [ids(1, 2, 3, 8, 4), ids(7), ids(9, 9)]
    without = module.generate(net, prompts, module.SampleOptions(9, **MOVES | dict(edit_ids=())), mask_id=M)
    often = torch.cat(without.tokens).bincount().argsort(descending=True).tolist()
    options = module.SampleOptions(9, block_size=4, **MOVES | dict(edit_ids=(often[0], often[1])))
    out = module.generate(net, prompts, options, mask_id=M, trace=True)
    for prompt, tokens, events in zip(prompts, out.tokens, out.trace):
        assert tokens[: len(prompt)].equal(prompt) and len(tokens) == len(prompt) + 9
        assert not set(tokens[len(prompt) :].tolist()) & {M, *options.edit_ids}
        canvas = torch.cat([prompt, torch.full((9,), M)])
        for _, position, token, _ in events:
            canvas[position] = token
        assert canvas.equal(tokens)
        assert module.generate(net, [prompt], options, mask_id=M).tokens[0].equal(tokens)
    assert any(token == M for events in out.trace for _, _, token, _ in events)
    with pytest.raises(ValueError, match="edit_ids would move given tokens: a prompt may have no holes before its end"):
        module.generate(net, [ids(1, M, 2)], options, mask_id=M)


def test_a_replay_shows_a_token_that_changes_as_changing():
    class Letters:
        mask_id = M

        def decode(self, ids):
            return "".join(chr(97 + i) for i in ids)

    options, prompt = SampleOptions(9, quota="threshold", threshold=0.4, edit_threshold=0.2), ids(7)
    out = fast_bd3lm.generate(BLOCKS, [prompt], options, mask_id=M, trace=True)
    canvas = torch.cat([prompt, torch.full((9,), M)])
    shown = replay.record(canvas, out.tokens[0], out.trace[0], 1, Letters())
    written = [(i, text) for step in shown["steps"] for i, text, p in step if p is not None]
    assert len(written) > len(set(i for i, _ in written)) == 9  # some more than once, each time another
    assert all(a != b for a, b in zip(written, written[1:]))
    assert "".join(dict(written)[i] for i in range(1, 10)) == Letters().decode(out.tokens[0][1:].tolist())


@pytest.mark.parametrize(
    "options, said",
    [
        (dict(quota="threshold", threshold=0.5, edit_threshold=0.7), "edit_threshold=0.7 is above threshold=0.5"),
        (dict(edit_threshold=0.5, order="entropy"), "edit_threshold=0.5 does not go with order=entropy: it needs"),
        (dict(edit_threshold=0.5, quota="ancestral"), "does not go with quota=ancestral, which has remask"),
        (dict(edit_threshold=0.5, opening="next"), "edit_threshold=0.5 does not go with opening=next"),
        (dict(least=2), "least=2 is defined for quota=threshold only, not quota=steps"),
        (dict(MOVES, edit_ids=(3,)), "edit_ids=.3,. must be two ids"),
        (dict(MOVES, temperature=1.0), "must be two ids, beside quota=threshold, temperature=0 and an edit_threshold"),
        (dict(MOVES, edit_threshold=1.0), "and an edit_threshold"),
    ],
)
def test_what_means_nothing_is_refused_in_one_sentence(options, said):
    with pytest.raises(ValueError, match=said) as e:
        SampleOptions(**options)
    assert "\n" not in str(e.value)
