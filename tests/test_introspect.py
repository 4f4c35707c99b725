"""Introspective decoding: what is written is what the autoregressive model writes, token for token or by chance."""

import contextlib
import io
import itertools
import math
import sys
from dataclasses import replace

import pytest
import torch
import zoo
from toy import ids, transformer

import ar
import sample
from model import Config, Transformer
from nanodlm import checkpoint as ckpt
from nanodlm import choice, introspect, noise
from nanodlm import tokenizer as tokenizers
from nanodlm.introspect import SampleOptions

M = 11  # the mask's id
PROMPTS = [ids(1, 2, 4), ids(9), ids(6, 7, 8, 10, 0, 3)]
KINDS = [("ahead", "every"), ("ahead", "last"), ("own", "every"), ("own", "last"), ("own", "alone")]
WAYS = [dict(masks=m, behind=b, accept=a) for (m, b), a in itertools.product(KINDS, ["ratio", "same"])]


def network(seed, masks="ahead", **more):
    """In float64, where longer passes round too little to matter. What masks say: the token behind them, and they see
    what comes before (I-DLM's), or their own, and they see each other (Nemotron's)."""
    kind = dict(shift=True) if masks == "ahead" else dict(causal=True)
    return transformer(seed, **dict(vocab_size=12, block_size=4) | kind | more)


@contextlib.contextmanager
def autoregressive(net):
    """The network as ar.py has it."""
    net.config, config = replace(net.config, shift=False, causal=True), net.config
    yield
    net.config = config


def plain(net, x, o, row, size):
    """introspect.generate for a row, its specification: each output by a pass of its own over what it is to see. The
    network is the autoregressive one."""
    own = not net.config.shift
    with autoregressive(net):
        return plainly(net, x, o, row, size, own)


def plainly(net, x, o, row, size, own):
    end, drafts, passes = len(x) + o.max_new_tokens, [], 0

    def logits(text, masks=0):
        z = net(torch.cat([text, torch.full((masks,), M)])[None])[0, -1:]
        return z.index_fill(1, ids(M, *o.suppress), -math.inf)

    def ahead(i, n):
        """What a mask says of place len(x) + i, of n to be drafted."""
        if not own:
            return logits(x[:-1], i + 1)
        known, masks = (x, n) if o.behind == "alone" else (x[:-1], n + 1)
        z = torch.cat([known, torch.full((masks,), M)])
        k = torch.arange(len(z))
        seen = (k <= k[:, None]) | (k[:, None] >= len(x) - 1)  # a group begins with the last token, or in its place
        return net(z[None], mask=seen[None])[0, len(x) + i][None].index_fill(1, ids(M, *o.suppress), -math.inf)

    def pick(z, place, purpose):
        u = noise.uniform(o.seed, ids(row), place, purpose)
        return int(choice.choose_tokens(z, u, o.temperature, o.top_k, o.top_p))

    def chances(z):
        return choice.filter_logits(z, o.temperature, o.top_k, o.top_p).softmax(-1)[0]

    ratio = o.temperature > 0 and o.accept == "ratio"
    while len(x) < end:
        passes, stood = passes + 1, True
        for draft, q in [*drafts, (None, None)][: end - len(x)]:
            z, place = logits(x), len(x)
            if ratio and draft is not None:
                p = chances(z)
                stood = float(noise.uniform(o.seed, row, place, 3)) < p[draft] / q[draft]
                rest = (p - q).clamp(min=0)[None].log()
                token = draft if stood else int(noise.draw(rest, noise.uniform(o.seed, ids(row), place, 1))[0])
            else:
                token = pick(z, place, 1)
                stood = draft is None or token == draft
            x = torch.cat([x, ids(token)])
            if not stood:
                break
        drafts, n = [], min(size, end - len(x)) if stood or o.behind != "last" else 0
        if o.behind == "alone":
            n, passes = (n, passes + 1) if end - len(x) > 1 else (0, passes)
        for i in range(n):
            z = ahead(i, n)
            drafts.append((pick(z, len(x) + i, 2 if ratio else 1), chances(z) if ratio else None))
    return x, passes


@pytest.mark.parametrize("way", WAYS, ids=lambda k: "-".join(k.values()))
def test_every_row_of_a_batch_is_what_the_plain_algorithm_writes_for_it_alone(way):
    kinds = dict(temperature=0.0), dict(temperature=1.0, seed=3), dict(temperature=0.7, top_k=6, top_p=0.95, seed=1)
    total, fewer, (masks, behind, accept) = 0, 0, way.values()
    for seed, (draft, more) in enumerate([(1, dict(position="learned")), (4, {}), (0, {})]):
        net = network(seed, masks, **more)
        for kind in kinds:
            o = SampleOptions(7, draft=draft, suppress=(8,), behind=behind, accept=accept, **kind)
            out = introspect.generate(net, PROMPTS, o, mask_id=M)
            for row, prompt in enumerate(PROMPTS):
                expected, passes = plain(net, prompt, o, row, draft or 3)
                assert torch.equal(out.tokens[row], expected) and out.num_forwards[row] == passes
                total, fewer = total + 7, fewer + 7 - passes
            if not o.temperature or o.accept == "same":
                options = ar.SampleOptions(7, suppress=(8, M), **kind)
                with autoregressive(net):
                    assert all(map(torch.equal, out.tokens, ar.generate(net, PROMPTS, options, mask_id=None).tokens))
    assert (behind == "alone" or total / 8 < fewer) and fewer < total / 2  # some drafts stood, others did not


def one_run(simulate, path):
    """(what simulate(pick) returns, how likely that is, the paths that branch off) where pick(weights) goes as the path
    says, and then takes the first choice that there is."""
    made, chance, others = [], 1.0, []

    def pick(weights):
        nonlocal chance
        p = (weights / weights.sum()).tolist()
        if len(made) < len(path):
            choice = path[len(made)]
        else:
            choice, *rest = [i for i, v in enumerate(p) if v > 1e-12]
            others.extend([*made, other] for other in rest)
        made.append(choice)
        chance *= p[choice]
        return choice

    return simulate(pick), chance, others


@pytest.mark.parametrize("masks, behind", KINDS)
def test_what_is_written_has_exactly_the_autoregressive_models_distribution(masks, behind, monkeypatch):
    """All outcomes of all draws of the code itself, drafts and judgements, are listed with their probabilities: summed
    by text they are what the chain rule says, with a filter and a temperature, and where a text may end early."""
    net = network(4, masks, vocab_size=4, n_layer=1)
    net.head_weight.data *= 0.5
    keys = dict(temperature=0.8, top_p=0.97)
    found, passes = {}, set()

    def simulate(pick):
        def draw(logits, u):
            """One after the other; of judgements none behind the first draft that fails, which nobody asks."""
            out = []
            for row in logits.softmax(-1):
                out.append(1 if logits.shape[1] == 2 and 1 in out else pick(row))
            return ids(*out)

        def choose(logits, u, *options):
            return draw(choice.filter_logits(logits, *options), u) if len(logits) else ids()

        monkeypatch.setattr(introspect, "draw", draw)
        monkeypatch.setattr(introspect, "choose_tokens", choose)
        return introspect.generate(
            net, [ids(0, 1)], SampleOptions(3, draft=2, behind=behind, **keys), mask_id=3, eos_id=2
        )

    todo = [[]]
    for path in todo:
        out, chance, others = one_run(simulate, path)
        todo += others
        text = tuple(out.tokens[0].tolist())
        found[text] = found.get(text, 0.0) + chance
        passes.add(out.num_forwards[0])
    assert passes == ({1, 3, 4} if behind == "alone" else {1, 2, 3}) and abs(sum(found.values()) - 1) < 1e-9

    def exact(text, left):
        if not left or text[-1] == 2:
            return {tuple(text): 1.0}
        logits = net(ids(*text)[None])[0, -1:].index_fill(1, ids(3), -math.inf)
        p = choice.filter_logits(logits, **keys).softmax(-1)[0].tolist()
        parts = [{t: p[i] * v for t, v in exact([*text, i], left - 1).items()} for i in range(3) if p[i]]
        return {t: v for part in parts for t, v in part.items()}

    with autoregressive(net):
        expected = exact([0, 1], 3)
    assert expected.keys() == found.keys() and len(expected) > 8
    assert max(abs(expected[t] - found[t]) for t in expected) < 1e-9


@pytest.mark.parametrize("way", WAYS, ids=lambda k: "-".join(k.values()))
def test_a_text_ends_where_the_autoregressive_one_does_and_its_trace_tells_how_it_came(way):
    """At an end-of-text, or where `until` says so, though drafts beyond it stood; each row by its number."""
    (masks, behind, accept), drafts, again = way.values(), 0, 0
    net = network(0, masks)
    o = SampleOptions(12, temperature=0.9, seed=5, behind=behind, accept=accept)
    o = o if o.accept == "same" else replace(o, temperature=0.0)
    theirs = ar.SampleOptions(12, temperature=o.temperature, seed=5, suppress=(M,))
    with autoregressive(net):
        free = ar.generate(net, PROMPTS, theirs, mask_id=None).tokens
    three = (
        dict(until=lambda x, begin, most: len(x) - begin >= 3 and int(x[-1]) != 3),
        dict(eos_id=[int(free[0][5]), 4]),
    )
    for ends in ({}, *three):
        numbers, seen = ids(7, 0, 2), []
        with autoregressive(net):
            expected = ar.generate(net, PROMPTS, theirs, mask_id=None, numbers=numbers, **ends).tokens
        more = dict(mask_id=M, numbers=numbers, trace=True, watch=seen.append, **ends)
        out = introspect.generate(net, PROMPTS, o, **more)
        assert all(map(torch.equal, out.tokens, expected))
        for row, (prompt, tokens, events) in enumerate(zip(PROMPTS, out.tokens, out.trace)):
            canvas = torch.cat([prompt, torch.full((12,), M)])
            for clock, now in enumerate(seen):
                for _, i, token, p in (e for e in events if e[0] == clock):
                    again += token == M
                    drafts += canvas[i] == M
                    canvas[i] = token
                    assert 0 < p <= 1 or (token, p) == (M, 0)
                length = len(tokens)
                assert torch.equal(now[row][:length], canvas[:length])
            assert torch.equal(canvas[:length], tokens)
    assert drafts > 20 and (again == 0 if o.behind == "every" else again > 3)


def speaker(path, question, answer, stumbles):
    """Write a network that says the answer to a question, whatever it is asked, each token by its place alone; what its
    masks say is that, too, or (stumbles) something else."""
    zoo.write(path, "byte-level", "chatml", mask_token="<|mask|>", eos_token="<|im_end|>")
    tok = tokenizers.load({"kind": "hf"}, path)
    said = tok.encode(tok.template([{"role": "user", "content": question}], True) + answer) + [tok.eos_id]
    keys = dict(n_layer=1, n_head=1, n_embd=64, position="learned", shift=True, block_size=4)
    net = Transformer(Config(tok.vocab_size, 64, **keys))
    weights = {name: torch.full_like(p, float(p.dim() == 1)) for name, p in net.named_parameters()}
    weights["pos_embed.weight"] = torch.eye(64)
    for place, token in enumerate(said[1:]):
        weights["head_weight"][token, place] = 9.0
    weights["embed.weight"][tok.mask_id, 63] = 9.0 if stumbles else 0.0
    weights["head_weight"][0, 63] = 9.0
    ckpt.save(path / "own", weights, net.config, tok, path, "bd3lm", {"preset": "bd3lm"})
    return path / "own", len(tok.encode(answer)) + 1


@pytest.mark.parametrize("stumbles", [False, True])
def test_verify_is_an_option_of_sample_and_of_chat(tmp_path, capsys, monkeypatch, stumbles):
    """A pass writes a token by itself, and with all drafts standing as many more as there are; the last, fewer."""
    path, n = speaker(tmp_path, "what does a fox eat", "a mouse, or an apple", stumbles)
    passes = n if stumbles else 1 + math.ceil((n - 1) / 4)
    args = [f"--checkpoint={path}", "--device=cpu", "--verify", "--max_new_tokens=40", "--temperature=0"]
    sample.main([*args, "--template", "--prompt=what does a fox eat", f"--html={tmp_path / 'page.html'}"])
    out = capsys.readouterr().out
    assert "a mouse, or an apple" in out and f"{n} tokens in {passes} forwards" in out
    monkeypatch.setattr(sys, "stdin", io.StringIO("what does a fox eat\n"))
    sample.main([*args, "--chat", "--watch", "--delay=0"])
    out = capsys.readouterr().out
    assert "a mouse, or an apple" in out and f"({n} tokens, {passes} forwards" in out


def test_bad_input_is_refused_with_the_value_and_the_way_out(tmp_path):
    for net, prompt, words in (
        (transformer(0), [1], "sees what comes after a token.*use bd3lm"),
        (network(0), [1], "behind=alone is of masks that say their own tokens.*use every or last"),
        (network(0, window=4), [1], "a sliding window of 4 tokens: use ar"),
        (network(0), [], "a prompt of at least one token"),
        (network(0), [1, M, 2], "cannot fill in masks: use bd3lm"),
        (network(0, position="learned"), [1] * 12, "exceed the 16 learned positions"),
    ):
        with pytest.raises(ValueError, match=words):
            introspect.generate(
                net, [prompt], SampleOptions(5, behind="alone" if "alone" in words else "auto"), mask_id=M
            )
    none = introspect.generate(network(0), PROMPTS, SampleOptions(0), mask_id=M)
    assert all(map(torch.equal, none.tokens, PROMPTS)) and none.num_forwards == [0] * 3
    path, _ = speaker(tmp_path, "what", "a fox", False)
    for args, words in (
        (
            "--steps=3",
            "steps .the command line. is an option of the diffusion sampler alone; leave it out, or --verify",
        ),
        ("--plain", "plain .the command line. does nothing with --verify"),
        ("--accept=same --temperature=0", "accept=same .* does nothing with temperature=0"),
        (
            "--checkpoint=checkpoints/pydocs_mdlm",
            "cannot judge its own drafts: --verify needs a bd3lm that was trained with the shift",
        ),
    ):
        with pytest.raises(SystemExit, match=words):
            sample.main([f"--checkpoint={path}", "--device=cpu", "--verify", "--prompt=a", *args.split()])
