"""Rows of conversations: how they are mixed and packed, that packing changes nothing, and training on them.

Checkpoints are tiny random ones, converted as real ones are; conversations are lines of a JSONL file.
"""

import itertools
import json
import os
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ranks
import talks
import torch
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from talks import TEMPLATES, answers, is_val, place, question, sentence, simple, sources_of, spans, turns, write_lines

import ar
import bd3lm
import convert_ar
import convert_bert
import mdlm
import train
from model import Config, Transformer
from nanodlm import batches, conversations, corpus, counts, noise
from nanodlm import checkpoint as ckpt
from nanodlm import tokenizer as tokenizers

CODE = Path(__file__).resolve().parent.parent
elsewhere, bpe, tokenizer_of, tok, data = talks.elsewhere, talks.bpe, talks.tokenizer_of, talks.tok, talks.data


@pytest.fixture
def chunks_of(monkeypatch):
    return lambda n: monkeypatch.setattr(batches, "CHUNK", n)


# ---- rows and batches ------------------------------------------------------------------------------------------------

LENGTHS, ROOM = [5, 17, 9, 30, 12, 3, 22, 8, 31, 6, 11, 4], 32


def in_rows(options, lengths=LENGTHS):
    """What Conversations.rows makes of conversations of these lengths: random ids 2… (0 is end-of-text, 1 the mask),
    the last third is an answer's."""
    rng = np.random.default_rng(0)
    items = [(n, (rng.integers(2, 20, n), np.arange(n) >= n - max(1, n // 3))) for n in lengths]
    if not options.packing:
        return [[item] for item in items]
    return [[items[i] for i in row] for row in batches.pack([full_size(n, options) for n in lengths], ROOM)]


def full_size(n, options):
    return max(LENGTHS) if options.fill == 0 else min(-(-n // options.fill) * options.fill, ROOM)


@pytest.mark.parametrize("fill, packing", [(1, 0), (4, 0), (7, 0), (0, 0), (1, 1), (4, 1), (5, 1)])
def test_rows_hold_their_conversations_end_of_text_and_padding_however_they_are_split(fill, packing):
    options = conversations.Options(fill=fill, packing=bool(packing))
    rows = in_rows(options)
    ids, learn, texts = batches.batch(rows, 0, len(rows), options, 0, ROOM)
    number, position = texts["number"], texts["position"]
    assert number.max() + 1 == texts["count"] == texts["total"] == len(LENGTHS) and texts["first"] == 0
    for k, (n, (text, answer)) in enumerate(item for row in rows for item in row):
        mine, full = number == k, full_size(n, options)
        assert mine.any(1).sum() == 1 and mine.sum() == full
        assert ids[mine].tolist() == text.tolist() + [0] * (full - n)  # the fill is end-of-text …
        assert learn[mine].tolist() == answer.tolist() + [True] * (full - n)  # … and learnt
        assert position[mine].tolist() == list(range(full))
    assert not learn[number < 0].any() and (ids[number < 0] == 0).all()  # padding is not

    def all_of(ids, learn, keys):
        real = keys["number"] >= 0
        return list(zip(keys["number"][real], keys["position"][real], ids[real], learn[real]))

    for size, width in itertools.product((1, 2), (None, ROOM)):
        parts = [(i, min(size, len(rows) - i)) for i in range(0, len(rows), size)]
        parts = [batches.batch(rows, *part, options, 0, ROOM, width) for part in parts]
        assert [x for part in parts for x in all_of(*part)] == all_of(ids, learn, texts)
        first = [part[2]["first"] for part in parts]
        assert first == [0, *itertools.accumulate(part[2]["count"] for part in parts)][:-1]
        assert {(p[2]["total"], p[2]["length"]) for p in parts} == {(len(LENGTHS), ROOM)}
        assert not width or {p[0].shape[1] for p in parts} == {width}
        assert batches.learnt(rows, options, ROOM) == sum(int(part[1].sum()) for part in parts)


@given(st.integers(1, 64).flatmap(lambda room: st.tuples(st.lists(st.integers(1, room), max_size=40), st.just(room))))
@settings(max_examples=60, deadline=None)
def test_packing_is_best_fit_the_longest_first(drawn):
    sizes, room = drawn
    rows = batches.pack(sizes, room)
    used = [sum(sizes[i] for i in row) for row in rows]
    assert sorted(i for row in rows for i in row) == list(range(len(sizes))) and all(n <= room for n in used)
    wanted = []  # how full the rows are
    for size in sorted(sizes, reverse=True):
        fits = [n for n in wanted if n + size <= room]
        wanted.remove(max(fits)) if fits else None
        wanted.append(max(fits, default=0) + size)
    assert sorted(used) == sorted(wanted)


# ---- sources and mixtures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
def test_every_conversation_comes_once_in_every_pass_in_an_order_that_is_the_seeds(data, tok, chunks_of, streaming):
    chunks_of(23)
    files = {"a": simple("a", 23)}
    written = [m[1]["content"] for m in files["a"][:-1]]
    made, same, other = (data(files, seed=seed, streaming=streaming) for seed in (1, 1, 2))
    passes = [answers(made.next(23), tok) for _ in range(3)]
    assert all(sorted(p) == sorted(written) for p in passes)
    assert written != passes[0] != passes[1] != passes[2]
    assert answers(same.next(23), tok) == passes[0] != answers(other.next(23), tok)


def test_every_pass_brings_other_conversations_together(data, tok, chunks_of):
    chunks_of(8)
    made = data({"a": simple("a", 24)})
    chunks = [frozenset(answers(made.next(8), tok)) for _ in range(9)]
    assert len(set(chunks)) == 9 and all(len(frozenset().union(*chunks[i : i + 3])) == 24 for i in (0, 3, 6))


def test_a_stream_begins_again_at_its_end(data, tok, chunks_of):
    chunks_of(40)
    made = data({"a": simple("a", 3)}, streaming=True)
    assert sorted(Counter(answers(made.next(40), tok)).values()) == [13, 13, 14]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("weights", [(3, 1), (0.7, 0.3), (1, 2.5)])
def test_a_mixture_has_its_weights_in_every_chunk_and_is_interleaved(data, tok, chunks_of, weights, streaming):
    chunks_of(40)
    made = data({"a": simple("a", 60), "b": simple("b", 50)}, dict(zip("ab", weights)), streaming=streaming)
    share, total = weights[0] / sum(weights), Counter()
    for chunk in range(1, 8):
        rows = made.next(40)
        got = sources_of(rows, tok)
        assert abs(got["a"] - 40 * share) < 1 and sum(got.values()) == 40
        total += got
        assert abs(total["a"] - 40 * share * chunk) <= 1  # rounding does not add up
        order = [t.split()[2] for t in answers(rows, tok)]
        assert sum(x != y for x, y in itertools.pairwise(order)) > 5
    assert made.state[:2] == (7, 0)


def test_a_mixture_without_weights_is_all_there_is(data, tok):
    files = {"a": simple("a", 30), "b": simple("b", 10)}
    made = data(files)
    assert (made.conversations, made.rows_per_pass()) == (40, 40)
    wanted = sorted(m[1]["content"] for part in files.values() for m in part[:-1])
    assert [sorted(answers(made.next(40), tok)) for _ in range(2)] == [wanted, wanted]


def test_each_source_of_a_mixture_gives_everything_before_anything_twice(data, tok, chunks_of):
    chunks_of(16)
    made = data({"a": simple("a", 30), "b": simple("b", 7)}, {"a": 3, "b": 1})
    times = Counter(answers(made.next(160), tok))
    a, b = (Counter(n for text, n in times.items() if text.split()[2] == x) for x in "ab")
    assert a == {4: 30} and b == {5: 2, 6: 5}


@pytest.mark.parametrize("streaming, packing", itertools.product([False, True], repeat=2))
def test_a_state_is_all_that_going_on_needs(data, tok, chunks_of, streaming, packing):
    chunks_of(20)
    files, keys = {"a": simple("a", 33), "b": simple("b", 12)}, dict(mixture={"a": 2, "b": 1}, seq_len=64)
    rows, states = [], []
    whole = data(files, **keys, streaming=streaming, packing=packing)
    for _ in range(14):
        states.append(whole.state)
        rows.append(answers(whole.next(5), tok))
    assert states[-1][0] > 2 and len(set(states)) == 14
    for k in (1, 7, 12):
        again = data(files, **keys, streaming=streaming, packing=packing)
        again.state = states[k]
        tried = []
        for source in again.sources if streaming else ():
            source.one = lambda *args, one=source.one, tried=tried: tried.append(args) or one(*args)
        again.rows(states[k][0])
        assert len(tried) <= 20 + 2 * len(again.sources)  # what stands before is not tokenized again
        one_by_one = [answers([row for _ in range(5) for row in again.next(1)], tok) for _ in range(k, 14)]
        assert one_by_one == rows[k:]


def test_what_stands_before_a_resumed_chunk_is_not_tokenized_again(data, tok, chunks_of):
    chunks_of(20)
    whole, asked = data({"a": simple("a", 90)}, streaming=True), []
    rows = [answers(whole.next(20), tok) for _ in range(4)]
    state, after = whole.state, answers(whole.next(20), tok)
    assert len({text for chunk in rows for text in chunk}) == 80
    again = data({"a": simple("a", 90)}, streaming=True)
    again.sources[0].tokenizer = replace(tok, cut=lambda many: asked.extend(many) or tok.cut(many))
    again.state = state
    assert answers(again.next(20), tok) == after and len(asked) == 20


@pytest.mark.parametrize("fill", [1, 8])
def test_packed_rows_hold_every_conversation_once_a_pass_and_are_full(data, tok, fill):
    files = {"a": simple("a", 100)}
    made = data(files, packing=True, seq_len=160, fill=fill)
    n = made.rows_per_pass()
    rows = made.next(n)
    assert made.state == (1, 0) and n == len(made.rows(0))
    assert sorted(answers(rows, tok)) == sorted(m[1]["content"] for m in files["a"][:-1])
    used = [sum(-(-size // fill) * fill for size, _ in row) for row in rows]
    assert max(used) <= 160 and len(rows) <= 1.2 * sum(used) / 160 + 1
    first = [row[0][0] for row in rows]  # the longest: rows with many short ones do not come last
    assert first != sorted(first, reverse=True)


texts_of = st.lists(st.lists(st.booleans(), min_size=1, max_size=9).filter(any), max_size=8)
sizes_of = st.tuples(st.integers(1, 10), st.sampled_from(["turns", "cut", "drop"]), st.sampled_from(["all", "last"]))


@given(texts_of, sizes_of, st.integers(1, 20))
@settings(deadline=None)
def test_whole_files_are_counted_as_each_conversation_would_be(drawn, how, at_once):
    room, options = how[0], conversations.Options(too_long=how[1], learn=how[2])
    start = np.cumsum([0, *map(len, drawn)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counts, "AT_ONCE", at_once)
        found = counts.fitted(np.array(sum(drawn, []), dtype=np.uint8), start, room, options)
    for text, length, learnt in zip(drawn, *found.tolist(), strict=True):
        one = conversations.fit(np.arange(len(text)), np.array(text), room, options)
        assert (length, learnt) == ((0, 0) if one is None else (len(one[0]), one[1].sum()))


@pytest.mark.parametrize("how, out, short", [("turns", 1, 1), ("drop", 2, 0), ("cut", 0, 2)])
def test_what_is_too_long_is_counted_in_the_summary(data, how, out, short):
    assert not any(map(is_val, ("why", "who")))
    long = [turns("why", "a", "so", "mouse " * 60), turns("who", "fox " * 60)]
    made = data({"a": [*simple("a", 10), *long]}, seq_len=60, too_long=how)
    assert f"{out} left out, {short} shortened" in made.summary() and made.conversations == 12 - out
    lengths = [(n, len(batches.read(item)[0])) for row in made.next(12 - out) for n, item in row]
    assert all(n == m for n, m in lengths) and (max(lengths)[0] == 60) == (how == "cut") and max(lengths)[0] <= 60


@pytest.mark.parametrize("system", ["keep", "merge", "drop"])
def test_a_stream_gives_what_is_stored(data, tok, system):
    files = {"a": talks.talks(60, low=3)}
    for split in ("train", "val"):
        stored, streamed = (data(files, split=split, seq_len=60, streaming=s, system=system) for s in (False, True))
        n = streamed.chunk_size = stored.conversations  # one pass
        assert n > 1 and stored.sources[0].left_out + stored.sources[0].shortened > 0
        assert "streamed" in streamed.summary() and "streamed" not in stored.summary()
        found = [[batches.read(item) for row in made.next(n) for _, item in row] for made in (stored, streamed)]
        one, other = (sorted((ids.tolist(), learn.tolist()) for ids, learn in part) for part in found)
        assert one == other


@pytest.mark.parametrize("streaming", [False, True])
def test_evaluation_takes_the_same_conversations_every_time_and_none_of_training(data, tok, streaming):
    files = {"a": talks.talks(60, 0), "b": talks.talks(30, 1)}
    trained = set(answers(data(files).next(80), tok))
    some = [answers(data(files, split="val", seed=s, streaming=streaming).some(4), tok) for s in (1, 2)]
    assert some[0] == some[1] and len(some[0]) == len(set(some[0])) == 4 and not trained & set(some[0])
    few = data({"a": simple("a", 20), "b": simple("b", 20)}, split="val", streaming=streaming)
    assert answers(few.some(64), tok) == ["val a", "val b"]  # no more than there are
    assert data({"c": simple("c", 20)[:-1]}, split="val", streaming=streaming).some(64) == []


def test_bytes_are_those_of_the_answers_and_one_for_each_end_of_turn(data, tok):
    """Of stored ones as they were written, for all of a source; of streamed ones as they are decoded, for these."""
    files = {"a": [turns(question(False), "a \u2603", "and", "an apple"), turns(question(False, number=1), "a fox")]}
    for streaming in (False, True):
        made = data(files, streaming=streaming)
        made.chunk_size = 2
        rows = made.next(2)
        learnt = sum(int(batches.read(item)[1].sum()) for row in rows for _, item in row)
        assert batches.bytes_per_token(rows, tok) == pytest.approx((5 + 8 + 5 + 3) / learnt)


@pytest.mark.parametrize("streaming", [False, True])
def test_what_no_source_can_give_is_said_in_a_sentence(elsewhere, data, tok, tokenizer_of, chunks_of, streaming):
    def start(*args, **keys):
        return data(*args, streaming=streaming, **keys).next(3)

    chunks_of(16)
    assert "no conversation to learn from" in sentence(start, {"none": [turns("what", ""), turns("what")]})
    said = sentence(start, {"long": simple("long", 3)[:-1]}, seq_len=6)
    why = (
        "no conversation to learn from; 3 left out: it does not fit seq_len=6 (line 1: "
        if streaming
        else "fits seq_len=6"
    )
    assert why in said and "too_long=cut" in said
    records = [turns(question(False), "a mouse"), turns(question(False, number=1), "a fox", system="be brief")]
    assert start({"system": records}, template="strict")  # the other one
    said = sentence(start, {"system": records}, template="strict", strict=True)
    assert "line 2: the chat template refuses it: no system turns" in said and "--system=merge" in said
    assert all(start({"system": records}, template="strict", system=how) for how in ("merge", "drop"))

    yields = "".join(f"    yield {r!r}\n" for r in ({"prompt": "what", "response": "a"}, {"text": "b"}))
    place(elsewhere, "broken", f"# two records\ndef records(streaming=False):\n{yields}")
    how = conversations.Options(streaming=streaming, strict=True)
    said = sentence(lambda: batches.Conversations("broken", *tokenizer_of("chatml"), 99, how, 1).next(3))
    assert "broken, record 2: it has no messages, nor prompt and response" in said


# ---- packed and unpacked are the same --------------------------------------------------------------------------------

VOCAB = 20
SHAPE = dict(vocab_size=VOCAB, seq_len=ROOM, n_layer=2, n_head=2, n_embd=16, mlp_dim=24)
NETWORKS = {
    "rope": {},
    "learned": dict(position="learned"),
    "local": dict(window=3, local_rope_theta=100.0),
    "local and global": dict(window=4, global_every=2, position="learned"),
}
LOSSES = {
    "mdlm": (mdlm, {}),
    "mdlm, masked_ce": (mdlm, dict(objective="masked_ce")),
    "mdlm, count": (mdlm, dict(corruption="count")),
    "mdlm, complementary": (mdlm, dict(complementary=True)),
    "mdlm, complementary count": (mdlm, dict(complementary=True, corruption="count", objective="masked_ce")),
    "mdlm, independent times": (mdlm, dict(low_discrepancy=False, t_shape="bell")),
    "mdlm, annealed": (mdlm, dict(see_ahead=0.5, complementary=True)),
    "bd3lm": (bd3lm, dict(block_size=4)),
    "bd3lm, complementary": (bd3lm, dict(block_size=4, complementary=True)),
    "bd3lm, count": (bd3lm, dict(block_size=4, corruption="count", t_min=0.2)),
    "ar": (ar, {}),
    "ar, no begin-of-text": (ar, {}),
}
PACKED, ALONE = conversations.Options(fill=4, packing=True), conversations.Options(fill=4)


def network(algorithm=mdlm, dtype=torch.float64, **settings):
    torch.manual_seed(0)
    model = Transformer(Config(**{**SHAPE, **settings, "causal": algorithm.CAUSAL})).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn_like(p) if p.dim() > 1 else 1 + 0.1 * torch.randn_like(p))
    return model


def batch_of(rows, options, first=0, count=None, width=None):
    """ids, what is learnt and batches.Texts, as train.py makes them."""
    count = len(rows) if count is None else count
    ids, learn, texts = batches.batch(rows, first, count, options, 0, ROOM, width)
    number, position = (torch.from_numpy(texts.pop(k)) for k in ("number", "position"))
    return torch.from_numpy(ids), torch.from_numpy(learn), batches.Texts(number, position, **texts)


def loss_of(name, model, batch, **keys):
    algorithm, options = LOSSES[name]
    x, learn, texts = batch
    keys = dict(mask_id=None if name == "ar, no begin-of-text" else 1, seed=3, **keys)
    return algorithm.loss(model, x, algorithm.LossOptions(**options), maskable=learn, texts=texts, **keys)


def packed_and_unpacked(lengths=LENGTHS):
    """The same conversations in packed rows, and each in a row of its own: arguments of batch_of."""
    rows = in_rows(PACKED, lengths)
    assert 1 < len(rows) < len(lengths)
    return (rows, PACKED), ([[item] for row in rows for item in row], ALONE)


def grads(model, value=None):
    if value is not None:
        model.zero_grad()
        value.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_equal_grads(a, b):
    assert a.keys() == b.keys() and max(g.abs().max() for g in a.values()) > 1e-3
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


EACH = [(name, "rope") for name in LOSSES if "annealed" not in name]  # whose pairs are drawn for places in the row
EACH += [(name, net) for name in ("mdlm", "bd3lm", "ar") for net in NETWORKS if net != "rope"]


@pytest.mark.parametrize("name, net", EACH)
def test_packing_changes_neither_loss_nor_gradient(name, net):
    model = network(LOSSES[name][0], **NETWORKS[net])
    packed, alone = (loss_of(name, model, batch_of(*rows)) for rows in packed_and_unpacked())
    assert packed.item() == pytest.approx(alone.item(), rel=1e-10) and packed.item() > 0.5
    assert_equal_grads(grads(model, packed), grads(model, alone))
    packed, alone = (loss_of(name, model.float(), batch_of(*rows)).item() for rows in packed_and_unpacked())
    assert packed == pytest.approx(alone, rel=1e-5)


MICRO = [(name, 4, True) for name in LOSSES] + [(name, 0, False) for name in ("mdlm", "mdlm, annealed", "ar")]


@pytest.mark.parametrize("name, fill, packing", [*MICRO, ("bd3lm", 4, False), ("ar", 1, True)])
def test_micro_batches_of_conversations_add_up_to_one_large_batch(name, fill, packing):
    options = conversations.Options(fill=fill, packing=packing)
    model, rows = network(LOSSES[name][0]), in_rows(options, LENGTHS[:7])
    total = batches.learnt(rows, options, ROOM)
    value = loss_of(name, model, batch_of(rows, options)).item()  # which divides by what it learns itself
    whole = grads(model, loss_of(name, model, batch_of(rows, options, width=ROOM), denominator=total))
    for size in (1, len(rows) - 1):
        model.zero_grad()
        parts = 0.0
        for first in range(0, len(rows), size):
            width = ROOM if "annealed" in name else None
            part = batch_of(rows, options, first, min(size, len(rows) - first), width)
            part = loss_of(name, model, part, denominator=total)
            part.backward()
            parts += part.item()
        assert "annealed" in name or parts == pytest.approx(value, rel=1e-10)
        assert_equal_grads(grads(model), whole)


def test_nothing_but_answers_is_hidden_of_each_text_at_a_time_of_its_own_spread_over_the_batch():
    _, learn, texts = batch_of(*packed_and_unpacked()[0])
    for algorithm, options in (LOSSES[name] for name in LOSSES if not name.startswith("ar")):
        given = algorithm.corrupt, learn, algorithm.LossOptions(**options)
        hidden, other = (texts.corrupt(*given, seed)[0].view(-1, *learn.shape) for seed in (3, 4))
        assert not hidden[:, ~learn].any() and hidden.any() and (hidden != other).any()
    _, weight = texts.corrupt(mdlm.corrupt, learn, mdlm.LossOptions(), 3)
    n = len(LENGTHS)
    times = sorted(1 / weight[texts.number == k][0].item() for k in range(n))
    assert all(i / n < t < (i + 1) / n for i, t in enumerate(times))


# ---- from causal to full attention -----------------------------------------------------------------------------------


def mask_of(see_ahead, length=40, seed=0, mask=None):
    return noise.see_ahead(mask, see_ahead, seed, length, "cpu")


def test_who_sees_all_ahead_has_full_attention_and_who_sees_nothing_is_a_causal_network():
    real = torch.ones(2, 5, dtype=torch.bool)
    assert mask_of(1.0) is None and mask_of(1.0, 5, mask=real) is real
    full, causal = network(mdlm), network(ar)
    x = torch.randint(2, VOCAB, (3, ROOM), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(full(x, mask=mask_of(0.0, ROOM)), causal(x), rtol=1e-12, atol=1e-12)
    assert (full(x) - causal(x)).abs().max() > 0.1


def test_in_between_the_past_is_seen_and_the_future_with_that_chance():
    for chance in (0.1, 0.5, 0.9):
        seen = torch.cat([mask_of(chance, seed=s) for s in range(50)])
        past = torch.ones(40, 40).tril().bool()
        assert seen.shape == (50, 40, 40) and seen[:, past].all()
        pairs = seen[:, ~past].double()
        assert pairs.mean().item() == pytest.approx(chance, abs=5 * (chance * (1 - chance) / pairs.numel()) ** 0.5)
        assert (pairs.mean(0) - chance).abs().max() < 5 * (chance * (1 - chance) / 50) ** 0.5  # each pair of them
        assert len({tuple(p.tolist()) for p in pairs}) == 50  # and drawn anew with every seed
    masks = [mask_of(chance) for chance in (0.0, 0.3, 0.6, 0.99)]  # a pair that is seen stays seen as it grows
    assert all((b | ~a).all() and (a != b).any() for a, b in itertools.pairwise(masks))


@pytest.mark.parametrize("complementary", [False, True])
@pytest.mark.parametrize("chance", [0.0, 0.5])
def test_the_loss_uses_the_mask_of_what_is_seen_ahead(chance, complementary):
    options = mdlm.LossOptions(see_ahead=chance, complementary=complementary)
    model = network()
    x = torch.randint(2, VOCAB, (3, ROOM), generator=torch.Generator().manual_seed(0))
    value = mdlm.loss(model, x, options, mask_id=1, seed=9)
    hidden, weight = mdlm.corrupt(torch.ones_like(x, dtype=torch.bool), options, 9, 0, 3)
    x0 = torch.cat([x, x]) if complementary else x
    logits = model(torch.where(hidden, 1, x0), mask=mask_of(chance, ROOM, 9))
    logits[..., 1] = -torch.inf
    nll = -logits.log_softmax(-1).gather(2, x0[..., None])[..., 0]
    assert value.item() == pytest.approx(((weight * nll)[hidden].sum() / x.numel()).item(), rel=1e-10)
    assert value.item() != pytest.approx(mdlm.loss(model, x, replace(options, see_ahead=1), mask_id=1, seed=9).item())


@pytest.mark.parametrize("chance", [0.0, 0.5, 0.99])
def test_seeing_ahead_ends_where_the_text_does(chance):
    _, _, texts = batch_of(*packed_and_unpacked()[0])
    seen = mask_of(chance, texts.number.shape[1], mask=texts.mask())
    same = texts.number[:, :, None] == texts.number[:, None]
    i = torch.arange(seen.shape[1])
    assert not seen[~same].any() and seen[same & (i <= i[:, None])].all()
    assert seen[same & (i > i[:, None])].double().mean().item() == pytest.approx(chance, abs=0.1)
    padded = torch.tensor([[True, True, False], [True, True, True]])
    assert not mask_of(0.99, 3, mask=padded)[0, :, 2].any()


# ---- training --------------------------------------------------------------------------------------------------------

CONTEXT = 64
TINY = [f"--seq_len={CONTEXT}", "--batch_size=4", "--dtype=float32", "--device=cpu", "--warmup_iters=1"]
TINY += ["--eval_windows=5", "--eval_samples=1", "--max_iters=4", "--learning_rate=1e-3"]
MODULES = {"mdlm": mdlm, "bd3lm": bd3lm, "ar": ar, "a2d": mdlm}
FILL = {"mdlm": 32, "bd3lm": 4, "ar": 1, "a2d": 32}
KINDS = {"mdlm": ("bert", []), "bd3lm": ("blocks", ["--algorithm=bd3lm", "--block_size=4"])}
KINDS |= {"ar": ("llama", ["--algorithm=ar"]), "a2d": ("a2d", [])}
RUNS = {
    "mdlm": [],
    "mdlm packed": ["--packing=true", "--complementary=true"],
    "bd3lm": [],
    "bd3lm packed": ["--packing=true"],
    "ar": [],
    "ar packed": ["--packing=true", "--streaming=true"],
    "a2d packed": ["--packing=true", "--anneal_iters=3", "--learn=last"],
}


@pytest.fixture(scope="module")
def made(bpe, tmp_path_factory):
    """Checkpoints: bert (converted, with a plain template), llama (autoregressive), made into a2d and blocks."""
    path = tmp_path_factory.mktemp("checkpoints")
    shape = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    shape |= dict(max_position_embeddings=CONTEXT)

    def write(name, template, cls, config, **more):
        vocab = talks.write_tokenizer(bpe, path / name, template)
        torch.manual_seed(0)
        model = cls(config(vocab_size=vocab, **shape, **more))
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(0.2 * torch.randn_like(p) if p.dim() > 1 else p + 0.1 * torch.randn_like(p))
        model.tie_weights()
        model.save_pretrained(path / name)

    write("encoder", None, tf.BertForMaskedLM, tf.BertConfig, pad_token_id=0)
    ends = dict(bos_token_id=None, pad_token_id=None, eos_token_id=320)
    write("llama", TEMPLATES["chatml"], tf.LlamaForCausalLM, tf.LlamaConfig, **ends)
    convert_bert.convert(path / "encoder", path / "bert")
    convert_ar.convert(path / "llama", path / "a2d")
    convert_ar.convert(path / "llama", path / "blocks", "bd3lm")
    return path


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    return write_lines(tmp_path_factory.mktemp("lines") / "talks.jsonl", talks.talks(60, low=1, high=4))


def run(made, lines, out, name="mdlm", *more):
    checkpoint, options = KINDS[name.split()[0]]
    args = [*TINY, f"--init_from={made / checkpoint}", f"--dataset={lines}", f"--out_dir={out}", *options]
    train.main([*args, *RUNS[name], *more])
    return ckpt.load_train_state(out / "last")


def spy(patch, module, look):
    """A list of what `look` makes of the arguments of every call of the module's loss."""
    seen, original = [], module.loss

    def loss(*args, **keys):
        seen.append(look(*args, **keys))
        return original(*args, **keys)

    patch.setattr(module, "loss", loss)
    return seen


@pytest.fixture(scope="module")
def trained(made, lines, tmp_path_factory):
    """Runs of four iterations of every kind: (directory, state, what the loss was given) by name."""
    path, found = tmp_path_factory.mktemp("runs"), {}
    for name in RUNS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(batches, "CHUNK", 32)
            seen = spy(patch, MODULES[name.split()[0]], lambda model, x, o, **keys: (model.config.causal, x, o, keys))
            found[name] = path / name, run(made, lines, path / name, name), seen
    return found


def assert_same(a, b, tolerance=0.0):
    for name in a["weights"]:
        if tolerance and name.endswith("attn.k.bias"):  # has no gradient, of which AdamW makes steps of noise
            continue
        torch.testing.assert_close(a["weights"][name], b["weights"][name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["mdlm", "bd3lm packed", "ar packed"])
def test_4_steps_equal_2_steps_a_signal_and_2_resumed_steps_bitwise(
    trained, made, lines, tmp_path, monkeypatch, chunks_of, name
):
    chunks_of(32)
    _, whole, _ = trained[name]
    start = ckpt.load(made / KINDS[name.split()[0]][0])
    assert any((whole["weights"][n] != p).any() for n, p in start.model.named_parameters())

    def stop(*args, **keys):
        return len(calls) == 1 and os.kill(os.getpid(), signal.SIGTERM)

    calls = spy(monkeypatch, MODULES[name.split()[0]], stop)
    half = run(made, lines, tmp_path, name)
    cut = run(made, lines, tmp_path, name, "--init_from=resume")
    assert (half["iter"], cut["iter"]) == (2, 4) and cut["data"] == whole["data"] != half["data"]
    assert_same(whole, cut)


@pytest.mark.parametrize("name", ["mdlm", "mdlm packed", "bd3lm packed", "ar", "a2d packed"])
def test_accumulation_over_micro_batches_equals_one_large_batch(trained, made, lines, tmp_path, chunks_of, name):
    chunks_of(32)
    small = run(made, lines, tmp_path, name, "--batch_size=1", "--gradient_accumulation_steps=4")
    assert_same(trained[name][1], small, 5e-5)


RANK = """
import sys
from pathlib import Path
import train
from nanodlm import batches, corpus
corpus.ROOT, batches.CHUNK = Path(sys.argv[1]), 32
sys.exit(train.main(sys.argv[2:]))
"""


def test_two_gloo_processes_equal_one_process(trained, made, lines, tmp_path, elsewhere):
    args = [*TINY, f"--init_from={made / 'bert'}", f"--dataset={lines}", f"--out_dir={tmp_path}", "--batch_size=2"]
    ranks.run(RANK, [elsewhere, *args])
    path, one, _ = trained["mdlm"]
    assert_same(one, ckpt.load_train_state(tmp_path / "last"), 5e-5)
    a, b = ([json.loads(x) for x in (d / "metrics.jsonl").read_text().splitlines()] for d in (path, tmp_path))
    for key in ("val_nats", "val_nats_error", "val_bpb"):  # each rank evaluated a part of an odd number
        assert a[-1][key] == pytest.approx(b[-1][key], abs=1e-4)
    assert a[-2]["train_loss"] == pytest.approx(b[-2]["train_loss"], abs=1e-4)


@pytest.mark.parametrize("packing", [False, True])
def test_epochs_are_passes_over_all_conversations(made, lines, tmp_path, monkeypatch, packing):
    seen = spy(monkeypatch, ar, lambda model, x, o, **keys: keys["texts"].total)
    state = run(made, lines, tmp_path, "ar", "--epochs=1.5", f"--packing={packing}")
    here = ckpt.load(made / "llama")
    options = conversations.Options(fill=1, packing=packing)
    have = batches.Conversations(lines, here.tokenizer, here.path, CONTEXT, options, 1)
    assert state["iter"] == round(1.5 * have.rows_per_pass() / 4)
    assert abs(sum(seen) - 1.5 * have.conversations) <= (16 if packing else 4)
    assert (state["iter"] < 1.5 * have.conversations / 4 - 1) == packing


def test_attention_grows_from_causal_to_full_over_anneal_iters(trained):
    seen = {name: [(causal, o.see_ahead) for causal, _, o, _ in trained[name][2]] for name in ("a2d packed", "mdlm")}
    assert seen == {"a2d packed": [(False, i / 3) for i in range(4)], "mdlm": [(False, 1.0)] * 4}


@pytest.mark.parametrize("name", RUNS)
def test_the_loss_is_given_answers_and_fill_to_learn(trained, made, lines, name):
    """Decoded, what is learnt are the file's answers, and behind them what the policy of each algorithm adds."""
    kind, packing = name.split()[0], "packed" in name
    tok = ckpt.load(made / KINDS[kind][0]).tokenizer
    said = {m["content"] for line in open(lines) for m in json.loads(line)["messages"] if m["role"] == "assistant"}
    assert len(trained[name][2]) == 4
    for _, x, _, keys in trained[name][2]:
        learn, texts = keys["maskable"], keys["texts"]
        numbers = texts.number[texts.number >= 0].unique()
        sizes = {int((texts.number == k).sum()) for k in numbers}
        if kind == "mdlm" and not packing:
            assert len(sizes) == 1
        else:
            assert all(n % FILL[kind] == 0 or n == CONTEXT for n in sizes)
        assert kind != "ar" or packing or len(sizes) > 1
        assert len(texts.number[:, 0].unique()) == len(x) and texts.packed == packing
        for k in numbers:
            mine = texts.number == k
            found = [tok.decode(x[mine][a:b].tolist()).strip() for a, b in spans(learn[mine])]
            assert found and set(found) <= said and (kind != "a2d" or len(found) == 1)


@pytest.mark.parametrize("name", ["mdlm", "ar packed", "a2d packed", "bd3lm packed"])
def test_a_trained_checkpoint_is_read_by_transformers_with_our_logits(made, trained, name):
    """Of a descendant of a causal model, by transformers' own class under a full mask. And it talks as before."""
    path, kind = trained[name][0] / "last", name.split()[0]
    ours, before, keys, mask = ckpt.load(path), ckpt.load(made / KINDS[kind][0]), {}, {}
    assert ours.tokenizer.chat(turns("what")) == before.tokenizer.chat(turns("what"))
    assert ours.algorithm == {"a2d": "mdlm"}.get(kind, kind) and ours.model.config.causal == (kind == "ar")
    if FILL[kind] > 1 and kind != "mdlm":
        content = json.loads((path / "config.json").read_text())
        assert content["architectures"] == ["A2DLlamaLMHeadModel"] and content["nanodlm"]["chat"]["packing"]
        content = {k: v for k, v in content.items() if k not in ("model_type", "architectures", "nanodlm")}
        keys, mask = {"config": tf.LlamaConfig(**content)}, {"attention_mask": torch.zeros(1, 1, 40, 40)}
    cls = tf.BertForMaskedLM if kind == "mdlm" else tf.LlamaForCausalLM
    theirs, info = cls.from_pretrained(path, output_loading_info=True, **keys)
    assert not any(info.values()), info
    ids = torch.arange(40)[None] * 7 % 320
    with torch.no_grad():
        logits = ours.model(ids)
        torch.testing.assert_close(logits, theirs.eval()(input_ids=ids, **mask).logits, rtol=1e-4, atol=1e-5)
        assert (logits - before.model(ids)).abs().max() > 1e-3  # it was trained


@pytest.mark.parametrize("name", ["mdlm", "ar", "bd3lm packed"])
def test_validation_measures_the_answers_in_bits_of_their_bytes(lines, trained, name):
    """Of ar, of which it is exact, recomputed without train.py's batches."""
    path = trained[name][0]
    facts = [json.loads(x) for x in (path / "metrics.jsonl").read_text().splitlines()][-1]
    here = ckpt.load(path / "last")
    options = conversations.Options(fill=FILL[name.split()[0]])
    have = batches.Conversations(lines, here.tokenizer, here.path, CONTEXT, options, 1, "val").some(5)
    nats = tokens = 0
    for _, item in itertools.chain(*have) if name == "ar" else ():
        ids, learn = (torch.from_numpy(x)[None] for x in batches.read(item))
        nats += ar.nelbo(here.model, ids, maskable=learn, samples=1, mask_id=here.tokenizer.mask_id).item()
        tokens += learn.sum().item()
    assert name != "ar" or facts["val_nats"] == pytest.approx(nats / tokens, rel=1e-4)
    size = have[0][0][1][0].bytes_per_token
    assert facts["val_bpb"] == pytest.approx(facts["val_nats"] / size / np.log(2), rel=1e-6)


def test_a_file_without_conversations_for_validation_is_no_crash(made, tmp_path, chunks_of, capsys):
    """A few dozen conversations often have none."""
    file = write_lines(tmp_path / "few.jsonl", simple("a", 9)[:-1])
    chunks_of(16)
    for streaming in ("true", "false"):
        assert run(made, file, tmp_path / streaming, "mdlm", f"--streaming={streaming}", "--max_iters=1")["iter"] == 1
        assert "is left for validation, which is of training conversations instead" in capsys.readouterr().out


# ---- what is refused, each in one sentence ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said, name, more",
    [
        ("no conversation of .* fits seq_len=6; .* too_long=cut", "mdlm", ["--seq_len=6", "--too_long=drop"]),
        ("no data set 'nosuch'", "mdlm", ["--dataset=nosuch"]),
        ("no data set 'nosuch:2,other:1'", "mdlm", ["--dataset=nosuch:2,other:1"]),
        ("no file 'nosuch.jsonl'", "mdlm", ["--dataset=nosuch.jsonl"]),
        ("fill=6 is no multiple of block_size=4: every answer ends with a whole block", "bd3lm", ["--fill=6"]),
        ("fill=0 is no multiple of block_size=4", "bd3lm", ["--fill=0"]),
        ("fill=2 is no multiple of block_size=4", "bd3lm packed", ["--fill=2"]),
        ("fill=0 fills rows with end-of-text, which packing fills with conv", "mdlm packed", ["--fill=0"]),
        ("fill = '-1' .* of at least 0 or none", "mdlm", ["--fill=-1"]),
        ("nobody knows how long a stream is", "ar packed", ["--epochs=1"]),
        ("need a checkpoint's chat template: give one as init_from", "mdlm", ["--init_from=scratch"]),
        (f"seq_len=65 exceeds the context of {CONTEXT} tokens", "mdlm", ["--seq_len=65"]),
    ],
)
def test_settings_that_do_not_go_with_conversations_are_refused(made, lines, tmp_path, said, name, more):
    with pytest.raises(SystemExit, match=said) as e:
        run(made, lines, tmp_path / "refused", name, *more)
    assert "\n" not in e.value.code


def test_running_text_has_no_epochs_and_what_it_trained_no_chat_template(tmp_path, lines):
    tok = tokenizers.load({"kind": "char", "chars": "abc "})
    ids = tok.encode("abc cab " * 50)
    (tmp_path / "text").mkdir()
    corpus.write_dataset(tmp_path / "text", tok, {"train": ids, "val": ids}, bytes_per_token=1.0)
    args = [*TINY, f"--dataset={tmp_path / 'text'}", f"--out_dir={tmp_path / 'ours'}", "--seq_len=16", "--max_iters=1"]
    args += ["--n_layer=1", "--n_head=2", "--n_embd=16"]
    assert "epochs counts passes over conversations" in sentence(train.main, [*args, "--epochs=1"])
    train.main(args)
    args = [*TINY, f"--dataset={lines}", f"--out_dir={tmp_path / 'chat'}", f"--init_from={tmp_path / 'ours'}"]
    said = sentence(train.main, [*args, "--seq_len=16"])
    assert "has no chat template; convert_bert.py and convert_ar.py attach one" in said
