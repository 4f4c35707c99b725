"""Conversations as data: what is learnt of them, how they are mixed and packed, and that packing changes nothing.

Checkpoints are tiny random ones, converted as real ones are; conversations are lines of a JSONL file.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jinja2
import numpy as np
import pytest
import torch
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import ar
import bd3lm
import convert_ar
import convert_bert
import mdlm
import sample
import train
from model import Config, Transformer
from nanodlm import batches, conversations, corpus, fast_bd3lm, fast_mdlm, noise
from nanodlm import checkpoint as ckpt
from nanodlm import tokenizer as tokenizers

torch.set_num_threads(1)
tf.utils.logging.disable_progress_bar()

CODE = Path(__file__).resolve().parent.parent
END, TURN, ENDTURN, MASK = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>"
WORDS = (
    "the user asks what a fox may eat and the assistant says that it eats a mouse or an apple most of all days".split()
)
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + ASK
TEMPLATES = {
    "chatml": CHATML,
    "plain": tokenizers.PLAIN_TEMPLATE.replace("BEGIN", "").replace("END", END),
    # LLaDA's, which asks for an answer behind every conversation
    "llada": CHATML.replace("{% if add_generation_prompt %}", "").replace("{% endif %}", ""),
    # as Qwen3's, which takes the thoughts out of earlier answers
    "thoughts": CHATML.replace(
        "{{ m.content }}", "{{ m.content if loop.last else m.content.split('</think>')[-1] | trim }}"
    ),
    "endless": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}",
    "strict": "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}" + CHATML,
}


def turns(*texts, system=None):
    """The messages of a conversation, the user's first."""
    said = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return ([] if system is None else [{"role": "system", "content": system}]) + said


def text_of(rng, low, high):
    return " ".join(rng.choice(WORDS, rng.integers(low, high)))


def talks(n, seed=0, low=2, high=9):
    """n conversations of one to three questions and answers, each with a first question of its own, one in eight for
    validation."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        said = [text_of(rng, low, high) for _ in range(2 * rng.integers(1, 4))]
        questions = (f"{said[0]} {seed} {i} {j}" for j in itertools.count())
        said[0] = next(q for q in questions if is_val(q) == (i % 8 == 3))
        said[1] += f" {seed} {i}"
        found.append(turns(*said, system="be brief" if i % 5 == 0 else None))
    return found


def is_val(question):
    return conversations.is_val(turns(question))


def write_lines(path, records):
    records = [r if isinstance(r, dict) else {"messages": r} for r in records]
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module", autouse=True)
def elsewhere(tmp_path_factory):
    """Token files go here and not into the project, which is left as it was; they are made without a pool."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("root")
        patch.setattr(corpus, "ROOT", root)
        patch.setattr(os, "cpu_count", lambda: 2)
        patch.setattr(train, "plot", lambda *_: None)  # half of the time of a tiny run
        patch.syspath_prepend(str(root))  # data/<name>/prepare.py of its own
        yield root


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe") / "bpe.json"
    tokenizers.train_bpe([" ".join(WORDS), "system user assistant be brief 0123456789"], 320, path)
    return path


def write_tokenizer(bpe, path, template, **special):
    special = dict(eos_token=END, pad_token=END, mask_token=MASK, **special)
    hf = tf.PreTrainedTokenizerFast(tokenizer_file=str(bpe), additional_special_tokens=[TURN, ENDTURN], **special)
    hf.chat_template = template
    hf.save_pretrained(path)
    return len(hf)


@pytest.fixture(scope="module")
def tokenizer_of(bpe, tmp_path_factory):
    """The tokenizer with a template, by the template's name."""
    path, made = tmp_path_factory.mktemp("tokenizers"), {}

    def get(name):
        if name not in made:
            write_tokenizer(bpe, path / name, TEMPLATES[name])
            made[name] = tokenizers.load({"kind": "hf"}, path / name)
        return made[name]

    get.path = path
    return get


@pytest.fixture(scope="module")
def tok(tokenizer_of):
    return tokenizer_of("chatml")


# ------------------------------------------------------------------------------------------------------------------
# what is learnt


def spans(learn):
    """[(begin, end)] of what is learnt."""
    edges = np.flatnonzero(np.diff([0, *np.asarray(learn, dtype=int), 0]))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist()))


DIALOGUES = [
    turns("what may a fox eat", "a mouse or an apple"),
    turns("what may a fox eat", "a mouse", "and on days of all", "an apple", "what", "most of all the mouse"),
    turns("what may a fox eat", "a mouse", "and", "an apple", system="be brief"),
    turns("\u00e9t\u00e9?", "na\u00efve \u2603 1 2 3", "2 + 2\n\n= ?", "4.\n\nOr so\n  it is"),
]


@pytest.mark.parametrize("messages", DIALOGUES, ids=["single", "multi", "system", "symbols"])
def test_the_answers_with_their_ends_of_turn_are_learnt_and_nothing_else(tok, messages):
    ids, learn = conversations.tokenize(tok, messages)
    expected = []
    for m in messages:
        answer = m["role"] == "assistant"
        expected += [(i, False) for i in tok.encode(f"{TURN}{m['role']}\n")]
        expected += [(i, answer) for i in tok.encode(m["content"] + ENDTURN)]
        expected += [(i, False) for i in tok.encode("\n")]
    expected.pop()  # behind the last answer
    assert list(zip(ids, learn)) == expected


@pytest.mark.parametrize("template", ["chatml", "plain", "llada", "strict"])
@pytest.mark.parametrize("messages", DIALOGUES, ids=["single", "multi", "system", "symbols"])
def test_what_stands_before_an_answer_is_what_a_sampler_is_given(tokenizer_of, template, messages):
    tok = tokenizer_of(template)
    if template == "strict":
        messages = conversations.settle_system(messages, "drop")
    ids, learn = conversations.tokenize(tok, messages)
    answers = [k for k, m in enumerate(messages) if m["role"] == "assistant"]
    assert len(spans(learn)) == len(answers)
    for k, (begin, end) in zip(answers, spans(learn)):
        assert ids[:begin] == tok.chat(messages[:k])
        assert tok.decode(ids[begin:end]).strip() == messages[k]["content"]
        assert ids[end - 1] in tok.stop_ids and not set(ids[begin : end - 1]) & set(tok.stop_ids)
    assert learn[-1]


def test_a_template_without_an_end_of_turn_gets_end_of_text(tokenizer_of):
    tok = tokenizer_of("endless")
    messages = turns("what may a fox eat", "a mouse  ")
    ids, learn = conversations.tokenize(tok, messages)
    ((begin, end),) = spans(learn)
    assert ids[:begin] == tok.chat(messages[:1])
    assert tok.decode(ids[begin : end - 1]).strip() == "a mouse" and ids[end - 1] == tok.eos_id and end == len(ids)
    assert END not in tok.template(messages, False)


def test_of_a_template_that_rewrites_history_the_last_answer_is_learnt(tokenizer_of):
    tok = tokenizer_of("thoughts")
    messages = turns("what", "<think>hm</think> a mouse", "and", "<think>so</think> an apple")
    ids, learn = conversations.tokenize(tok, messages)
    ((begin, end),) = spans(learn)
    assert ids[:begin] == tok.chat(messages[:3])
    assert ids[begin:end] == tok.encode("<think>so</think> an apple" + ENDTURN) and end == len(ids)
    assert "hm" not in tok.decode(ids[:begin]) and "a mouse" in tok.decode(ids[:begin])


def test_answers_behind_the_last_rewriting_are_learnt(tokenizer_of):
    """The second question finds the first answer rewritten, the third one finds nothing that is."""
    messages = turns("what", "<think>hm</think> a mouse", "and", "an apple", "or", "a fox")
    tok = tokenizer_of("thoughts")
    ids, learn = conversations.tokenize(tok, messages)
    answers = [tok.decode(ids[a:b]) for a, b in spans(learn)]
    assert answers == ["an apple", "a fox"]
    assert [ids[:a] for a, _ in spans(learn)] == [tok.chat(messages[:k]) for k in (3, 5)]


def test_an_end_of_turn_within_an_answer_does_not_end_it(tok):
    ids, learn = conversations.tokenize(tok, turns("what", f"a {ENDTURN} mouse"))
    assert [i for i, x in zip(ids, learn) if x] == tok.encode(f"a {ENDTURN} mouse{ENDTURN}")


@pytest.mark.parametrize("empty", ["", " \n "])
def test_an_empty_answer_is_given_but_not_learnt(tok, empty):
    messages = turns("what", empty, "and", "an apple")
    ids, learn = conversations.tokenize(tok, messages)
    ((begin, _),) = spans(learn)
    assert ids[:begin] == tok.chat(messages[:3])
    with pytest.raises(ValueError, match="only empty ones"):
        conversations.tokenize(tok, turns("what", empty))


def test_a_question_without_an_answer_is_left_out(tok):
    with pytest.raises(ValueError, match="no answer"):
        conversations.tokenize(tok, turns("what"))
    assert conversations.tokenize(tok, turns("what", "a mouse", "and")) == conversations.tokenize(
        tok, turns("what", "a mouse")
    )


@pytest.mark.parametrize("place", [0, 1])
def test_text_with_the_mask_token_is_left_out(tok, place):
    said = ["what", "a mouse"]
    said[place] += MASK
    with pytest.raises(ValueError, match="mask token"):
        conversations.tokenize(tok, turns(*said))


def test_a_template_that_asks_otherwise_than_it_writes_is_refused(tokenizer_of):
    tok = tokenizer_of("chatml")
    broken = replace(tok, template=lambda messages, ask: tok.template(messages, ask) + ("?" if ask else ""))
    with pytest.raises(ValueError, match="does not write an answer behind"):
        conversations.tokenize(broken, DIALOGUES[0])


ONE = turns("q", "a")


@pytest.mark.parametrize(
    "record, messages",
    [
        ({"messages": turns("q", "a", system="s")}, turns("q", "a", system="s")),
        ({"conversations": ONE}, ONE),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, ONE),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "model", "content": "a"}]}, ONE),
        ({"question": "q", "answer": "a", "id": 3}, ONE),
        ({"prompt": "q", "response": "a"}, ONE),
        ({"prompt": "q", "completion": "a"}, ONE),
        ({"instruction": "q", "output": "a"}, ONE),
        ({"instruction": "q", "response": "a", "input": ""}, ONE),
        ({"instruction": "q", "input": "more", "output": "a"}, turns("q\n\nmore", "a")),
        ({"instruction": "q", "input": None, "output": "a"}, ONE),
    ],
    ids=str,
)
def test_records_are_read_in_every_usual_form(record, messages):
    assert conversations.messages_of(record) == messages


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"text": "q a"},
        {"question": "q"},
        {"prompt": "q", "response": 3},
        {"messages": [{"role": "user"}]},
        {"messages": [{"content": "q"}]},
        {"messages": [{"role": "user", "content": ["q"]}]},
        {"messages": ["q", "a"]},
        {"messages": "q"},
    ],
    ids=str,
)
def test_another_form_is_an_error(record):
    with pytest.raises(ValueError):
        conversations.messages_of(record)


def test_system_turns_are_kept_merged_or_dropped():
    messages = turns("q", "a", system="s")
    assert conversations.settle_system(messages, "keep") == messages
    assert conversations.settle_system(messages, "merge") == turns("s\n\nq", "a")
    assert conversations.settle_system(messages, "drop") == turns("q", "a")
    for how in ("keep", "merge", "drop"):
        assert conversations.settle_system(turns("q", "a"), how) == turns("q", "a")
    assert messages == turns("q", "a", system="s")  # the record itself is left alone


def test_a_system_turn_in_front_of_an_answer_is_not_learnt(tok):
    messages = [{"role": "system", "content": "be brief"}, {"role": "assistant", "content": "a mouse"}]
    ids, learn = conversations.tokenize(tok, conversations.settle_system(messages, "merge"))
    assert [i for i, x in zip(ids, learn) if x] == tok.encode("a mouse" + ENDTURN)
    assert "be brief" in tok.decode(ids)


# ------------------------------------------------------------------------------------------------------------------
# what does not fit

IDS = np.arange(12)
LEARN = np.array([0, 0, 1, 1, 0, 1, 1, 1, 0, 0, 1, 1], dtype=bool)  # answers end behind 4, 8 and 12 tokens


def fitted(room, **options):
    found = conversations.fit(IDS, LEARN, room, conversations.Options(**options))
    return None if found is None else (found[0].tolist(), np.flatnonzero(found[1]).tolist())


@pytest.mark.parametrize("how", ["turns", "cut", "drop"])
def test_what_fits_is_left_as_it_is(how):
    assert fitted(12, too_long=how) == (list(range(12)), [2, 3, 5, 6, 7, 10, 11])


@pytest.mark.parametrize("room, left", [(11, 8), (9, 8), (8, 8), (7, 4), (4, 4)])
def test_the_first_turns_that_fit_are_kept(room, left):
    assert fitted(room) == (list(range(left)), [i for i in (2, 3, 5, 6, 7) if i < left])


@pytest.mark.parametrize("room", [1, 2, 3, 7, 11])
def test_a_cut_conversation_fills_its_room(room):
    learnt = [i for i in (2, 3, 5, 6, 7, 10, 11) if i < room]
    assert fitted(room, too_long="cut") == ((list(range(room)), learnt) if learnt else None)


def test_where_nothing_to_learn_is_left_the_conversation_is_left_out():
    assert fitted(3) is None and fitted(2, too_long="cut") is None and fitted(11, too_long="drop") is None


def test_the_last_answer_alone_is_learnt_where_that_is_asked_for():
    assert fitted(12, learn="last") == (list(range(12)), [10, 11])
    assert fitted(11, learn="last", too_long="cut") == (list(range(11)), [10])
    one = np.array([0, 1, 1], dtype=bool)
    assert conversations.fit(IDS[:3], one, 3, conversations.Options(learn="last"))[1].tolist() == one.tolist()
    assert conversations.fit(IDS[:3], ~one, 3, conversations.Options(learn="last"))[1].tolist() == (~one).tolist()


# ------------------------------------------------------------------------------------------------------------------
# rows and batches


def items(lengths, seed=0, vocab=20):
    """Conversations of these lengths: random ids 2… (0 is end-of-text, 1 the mask), the last third is an answer's."""
    rng = np.random.default_rng(seed)
    found = []
    for n in lengths:
        learn = np.arange(n) >= n - max(1, n // 3)
        found.append((n, (rng.integers(2, vocab, n), learn)))
    return found


def in_rows(lengths, room, options, seed=0):
    """What Conversations.rows makes of them."""
    found = items(lengths, seed)
    if not options.packing:
        return [[item] for item in found]
    sizes = [min(-(-n // options.fill) * options.fill, room) for n in lengths]
    return [[found[i] for i in row] for row in batches.pack(sizes, room)]


LENGTHS, ROOM = [5, 17, 9, 30, 12, 3, 22, 8, 31, 6, 11, 4], 32
POLICIES = [(1, False), (4, False), (7, False), (0, False), (1, True), (4, True), (5, True)]


@pytest.mark.parametrize("fill, packing", POLICIES)
def test_rows_hold_their_conversations_end_of_text_and_padding(fill, packing):
    options = conversations.Options(fill=fill, packing=packing)
    rows = in_rows(LENGTHS, ROOM, options)
    ids, learn, texts = batches.batch(rows, 0, len(rows), options, 0, ROOM)
    number, position = texts["number"], texts["position"]
    assert number[number >= 0].max() + 1 == texts["count"] == texts["total"] == len(LENGTHS) and texts["first"] == 0
    order = [item for row in rows for item in row]
    for k, (n, (text, answer)) in enumerate(order):
        mine = number == k
        full = max(LENGTHS) if fill == 0 else min(-(-n // fill) * fill, ROOM)
        assert mine.any(1).sum() == 1 and mine.sum() == full
        assert ids[mine].tolist() == text.tolist() + [0] * (full - n)  # the fill is end-of-text …
        assert learn[mine].tolist() == answer.tolist() + [True] * (full - n)  # … and learnt
        assert position[mine].tolist() == list(range(full))
    assert not learn[number < 0].any() and (ids[number < 0] == 0).all()  # padding is not
    seen = [row[row >= 0].tolist() for row in number]
    assert [k for row in seen for k in row] == sorted(k for row in seen for k in row)


@pytest.mark.parametrize("width", [None, ROOM])
@pytest.mark.parametrize("fill, packing", POLICIES)
def test_a_batch_is_the_same_however_it_is_split(fill, packing, width):
    options = conversations.Options(fill=fill, packing=packing)
    rows = in_rows(LENGTHS, ROOM, options)
    whole = batches.batch(rows, 0, len(rows), options, 0, ROOM, width)

    def texts(ids, learn, keys):
        real = keys["number"] >= 0
        return list(zip(keys["number"][real], keys["position"][real], ids[real], learn[real]))

    parts = [batches.batch(rows, i, 1, options, 0, ROOM, width) for i in range(len(rows))]
    assert [x for part in parts for x in texts(*part)] == texts(*whole)
    first = [part[2]["first"] for part in parts]
    assert first == [0, *itertools.accumulate(part[2]["count"] for part in parts)][:-1]
    assert {(p[2]["total"], p[2]["length"]) for p in parts} == {(len(LENGTHS), ROOM)}
    if width:
        assert {p[0].shape for p in parts} == {(1, width)}


@pytest.mark.parametrize("fill, packing", POLICIES)
@pytest.mark.parametrize("micro", [1, 2])
def test_what_is_counted_as_learnt_is_what_the_micro_batches_learn(fill, packing, micro):
    options = conversations.Options(fill=fill, packing=packing)
    rows = in_rows(LENGTHS, ROOM, options)
    rows = rows[: len(rows) // micro * micro]
    parts = [batches.batch(rows, i, micro, options, 0, ROOM)[1] for i in range(0, len(rows), micro)]
    assert batches.learnt(rows, options, ROOM) == sum(int(p.sum()) for p in parts) > 0


def test_the_fill_reaches_no_further_than_the_row():
    options = conversations.Options(fill=24)
    ids, learn, texts = batches.batch([[item] for item in items([20, 25, 40])], 0, 3, options, 0, 40)
    assert (texts["number"] >= 0).sum(1).tolist() == [24, 40, 40] and ids.shape == (3, 40)


sizes_and_room = st.integers(1, 64).flatmap(
    lambda room: st.tuples(st.lists(st.integers(1, room), max_size=40), st.just(room))
)


@given(sizes_and_room)
@settings(max_examples=200, deadline=None)
def test_packing_places_every_item_once_in_rows_that_hold_it(drawn):
    sizes, room = drawn
    rows = batches.pack(sizes, room)
    assert sorted(i for row in rows for i in row) == list(range(len(sizes)))
    filled = [sum(sizes[i] for i in row) for row in rows]
    assert all(0 < n <= room for n in filled)
    assert all(a + b > room for a, b in itertools.combinations(filled, 2))  # no two rows could be one


@given(st.lists(st.integers(1, 12), min_size=1, max_size=7))
@settings(max_examples=100, deadline=None)
def test_packing_is_within_the_bound_of_best_fit_decreasing(sizes):
    """11/9 of the fewest possible rows and 6/9 of a row (Dosa et al. 2013), these found by trying all."""

    def fewest(left, room):
        if not left:
            return 0
        first, *rest = left
        best = 1 + fewest(rest, [*room, 12 - first])
        for k, space in enumerate(room):
            if space >= first:
                best = min(best, fewest(rest, [*room[:k], space - first, *room[k + 1 :]]))
        return best

    assert 9 * len(batches.pack(sizes, 12)) <= 11 * fewest(sizes, []) + 6


def test_packing_loses_less_than_a_hundredth_of_the_rows():
    rng = np.random.default_rng(0)
    sizes = np.clip(rng.lognormal(5, 0.8, 4096).astype(int), 8, 1024).tolist()
    assert len(batches.pack(sizes, 1024)) <= 1.01 * sum(sizes) / 1024 + 1


# ------------------------------------------------------------------------------------------------------------------
# token files


@pytest.fixture
def prepared(tokenizer_of, tmp_path):
    """Token files of some conversations: their directory."""

    def make(records, template="chatml", **keys):
        tok = tokenizer_of(template)
        file = write_lines(tmp_path / f"{len([*tmp_path.iterdir()])}.jsonl", records)
        return conversations.prepare(file, tok, tokenizer_of.path / template, **keys)

    return make


def question(val, number=0):
    """A question on the side of validation, or of training."""
    found = (q for q in map("what {}".format, itertools.count()) if is_val(q) == val)
    return next(itertools.islice(found, number, None))


def contents(path, tok, split, field="answer"):
    """The texts of the answers (or of all) of a split, one for each conversation."""
    source = batches.Stored(path, split, 10**6, conversations.Options())
    found = [source.read(i) for i in range(len(source.start) - 1)]
    return [tok.decode(ids[learn] if field == "answer" else ids) for ids, learn in found]


def test_token_files_hold_what_tokenize_gives(prepared, tok):
    records = talks(40)
    path = prepared(records)
    for split in ("train", "val"):
        mine = [conversations.tokenize(tok, m) for m in records if conversations.is_val(m) == (split == "val")]
        source = batches.Stored(path, split, 10**6, conversations.Options())
        assert len(mine) == len(source.start) - 1 > 0
        for i, (ids, learn) in enumerate(mine):
            got = source.read(i)
            assert got[0].tolist() == ids and got[1].tolist() == learn
        meta = source.meta
        assert meta[f"{split}_conversations"] == len(mine)
        assert meta[f"{split}_tokens"] == sum(len(ids) for ids, _ in mine)
        assert meta[f"{split}_learnt"] == sum(sum(learn) for _, learn in mine)
    assert tokenizers.load(meta["tokenizer"], path).spec == tok.spec


def test_another_process_writes_the_same_files(prepared):
    records = talks(40)
    path = prepared(records, workers=1)
    files = {p.name: p.read_bytes() for p in path.glob("*.bin")}
    shutil.rmtree(path)
    assert prepared(records, workers=2) == path
    assert {p.name: p.read_bytes() for p in path.glob("*.bin")} == files and len(files) == 6


def test_token_files_that_are_there_are_not_made_again(prepared, monkeypatch):
    records = talks(5)
    path = prepared(records)
    monkeypatch.setattr(conversations, "write", None)
    assert prepared(records) == path


def test_other_lines_another_template_or_treatment_have_files_of_their_own(prepared):
    records = [turns("what", "a mouse")]
    paths = [prepared(records), prepared(records, "plain"), prepared(records, system="drop"), prepared(records * 2)]
    assert len(set(paths)) == 4


def test_what_is_left_out_is_counted_by_reason(prepared, capsys):
    bad = [turns("what", ""), turns("and", " "), turns("or", f"a {MASK}"), turns("so")]
    path = prepared([*bad, turns("what 1", "a mouse"), turns("what 2", "an apple")])
    meta = json.loads((path / "meta.json").read_text())
    assert meta["left_out"] == {"no answer, or only empty ones": 3, "the mask token is part of the text": 1}
    assert meta["train_conversations"] + meta["val_conversations"] == 2
    assert "left out 3: no answer" in capsys.readouterr().out


def test_no_question_is_on_both_sides(prepared, tok):
    rng = np.random.default_rng(0)
    questions = [f"what {i}" for i in range(150)] * 2
    path = prepared([turns(q, text_of(rng, 2, 5)) for q in questions])
    asked = {}
    for split in ("train", "val"):
        texts = contents(path, tok, split, "all")
        asked[split] = {q for q in questions for t in texts if f"user\n{q}\n" in t}
        assert len(texts) == 2 * len(asked[split]) > 0
    assert not asked["train"] & asked["val"] and asked["train"] | asked["val"] == set(questions)


@pytest.mark.parametrize("system", ["keep", "merge", "drop"])
@pytest.mark.parametrize("val", [True, False])
def test_a_question_is_on_its_side_whatever_the_system_turn_says(prepared, tok, tokenizer_of, system, val):
    records = [turns(question(val), f"a fox {i}", system=f"be brief {i}") for i in range(30)]
    path = prepared([*records, turns(question(False, 1), "an apple")], system=system)
    there = contents(path, tok, "val" if val else "train")
    assert [t for t in there if "fox" in t] == [f"a fox {i}" for i in range(30)]


# ------------------------------------------------------------------------------------------------------------------
# sources and mixtures


@pytest.fixture
def data(tokenizer_of, tmp_path):
    """Conversations of JSONL files, which are given as {name: records}; the text of a row's item says what it is."""
    tok = tokenizer_of("chatml")

    def make(files, mixture=None, seq_len=1024, seed=1, split="train", again=False, **options):
        options.setdefault("fill", 1)
        for name, records in files.items():
            write_lines(tmp_path / f"{name}.jsonl", records)
        names = mixture or dict.fromkeys(files)
        dataset = ",".join(f"{tmp_path / n}.jsonl" + ("" if w is None else f":{w}") for n, w in names.items())
        where = tokenizer_of.path / "chatml"
        return batches.Conversations(dataset, tok, where, seq_len, conversations.Options(**options), seed, split)

    return make


def simple(name, n):
    """n conversations that say whose they are and are all learnt from, and one for validation."""
    questions = (f"{name} {i}" for i in itertools.count())
    found = [turns(q, f"the fox {q}") for q in itertools.islice((q for q in questions if not is_val(q)), n)]
    return [*found, turns(next(q for q in questions if is_val(q)), f"val {name}")]


def said(rows, tok):
    """The answers of rows, in order."""
    return [tok.decode(batches.read(item)[0][batches.read(item)[1]]) for row in rows for _, item in row]


def sources_of(rows, tok):
    return Counter(text.split()[2] for text in said(rows, tok))


@pytest.mark.parametrize("streaming", [False, True])
def test_every_conversation_comes_once_in_every_pass(data, tok, monkeypatch, streaming):
    monkeypatch.setattr(batches, "CHUNK", 23)
    made = data({"a": simple("a", 23)}, streaming=streaming)
    wanted = sorted(m[1]["content"] for m in simple("a", 23)[:-1])
    passes = [said(made.next(23), tok) for _ in range(3)]
    assert all(sorted(p) == wanted for p in passes)
    assert passes[0] != passes[1] != passes[2]


def test_every_pass_brings_other_conversations_together(data, tok, monkeypatch):
    monkeypatch.setattr(batches, "CHUNK", 8)
    made = data({"a": simple("a", 24)})
    chunks = [frozenset(said(made.next(8), tok)) for _ in range(9)]
    assert len(set(chunks)) == 9 and all(len(frozenset().union(*chunks[i : i + 3])) == 24 for i in (0, 3, 6))


def test_a_stream_begins_again_at_its_end(data, tok, monkeypatch):
    monkeypatch.setattr(batches, "CHUNK", 40)
    made = data({"a": simple("a", 3)}, streaming=True)
    assert sorted(Counter(said(made.next(40), tok)).values()) == [13, 13, 14]


@pytest.mark.parametrize("streaming", [False, True])
def test_the_order_is_the_seeds(data, tok, monkeypatch, streaming):
    monkeypatch.setattr(batches, "CHUNK", 40)
    files = {"a": simple("a", 40)}
    one, same, other = (said(data(files, seed=s, streaming=streaming).next(40), tok) for s in (1, 1, 2))
    assert one == same != other and sorted(one) == sorted(other)
    assert one != [m[1]["content"] for m in files["a"][:40]]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("weights", [(3, 1), (1, 1), (0.7, 0.3), (1, 2.5)])
def test_a_mixture_has_its_weights_in_every_chunk_and_is_interleaved(data, tok, monkeypatch, weights, streaming):
    monkeypatch.setattr(batches, "CHUNK", 40)
    files = {"a": simple("a", 60), "b": simple("b", 50)}
    made = data(files, {"a": weights[0], "b": weights[1]}, streaming=streaming)
    share = weights[0] / sum(weights)
    total = Counter()
    for chunk in range(1, 8):
        rows = made.next(40)
        got = sources_of(rows, tok)
        assert abs(got["a"] - 40 * share) < 1 and sum(got.values()) == 40
        total += got
        assert abs(total["a"] - 40 * share * chunk) <= 1  # rounding does not add up
        order = [t.split()[2] for t in said(rows, tok)]
        assert sum(x != y for x, y in itertools.pairwise(order)) > 5
    assert made.state == (7, 0)


def test_a_mixture_without_weights_is_all_there_is(data, tok):
    files = {"a": simple("a", 30), "b": simple("b", 10)}
    made = data(files)
    assert (made.conversations, made.rows_per_pass()) == (40, 40)
    wanted = sorted(m[1]["content"] for part in files.values() for m in part[:-1])
    for _ in range(2):
        assert sorted(said(made.next(40), tok)) == wanted


def test_each_source_of_a_mixture_gives_everything_before_anything_twice(data, tok, monkeypatch):
    monkeypatch.setattr(batches, "CHUNK", 16)
    made = data({"a": simple("a", 30), "b": simple("b", 7)}, {"a": 3, "b": 1})
    seen = said(made.next(160), tok)
    a, b = ([t for t in seen if t.split()[2] == x] for x in "ab")
    assert len(a) == 120 and len(b) == 40
    assert set(Counter(a).values()) == {4} and set(Counter(b).values()) == {5, 6}


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_state_is_all_that_going_on_needs(data, tok, monkeypatch, streaming, packing):
    monkeypatch.setattr(batches, "CHUNK", 20)
    files = {"a": simple("a", 33), "b": simple("b", 12)}
    keys = dict(mixture={"a": 2, "b": 1}, seq_len=64, streaming=streaming, packing=packing)
    whole = data(files, **keys)
    rows, states = [], []
    for _ in range(24):
        states.append(whole.state)
        rows.append(said(whole.next(5), tok))
    assert states[-1][0] > 2 and len(set(states)) == 24
    for k in (0, 1, 7, 20):
        again = data(files, **keys)
        again.state = states[k]
        assert [said(again.next(5), tok) for _ in range(k, 24)] == rows[k:]


def test_rows_do_not_depend_on_how_many_are_taken_at_a_time(data, tok):
    files = {"a": simple("a", 30)}
    one, many = (data(files, packing=True, seq_len=64) for _ in range(2))
    assert said([row for _ in range(12) for row in one.next(1)], tok) == said(many.next(12), tok)


@pytest.mark.parametrize("fill", [1, 8])
def test_packed_rows_hold_every_conversation_once_a_pass_and_are_full(data, tok, fill):
    files = {"a": simple("a", 100)}
    made = data(files, packing=True, seq_len=160, fill=fill)
    n = made.rows_per_pass()
    rows = made.next(n)
    assert made.state == (1, 0) and n == len(made.rows(0))
    assert sorted(said(rows, tok)) == sorted(m[1]["content"] for m in files["a"][:-1])
    used = [sum(-(-size // fill) * fill for size, _ in row) for row in rows]
    assert max(used) <= 160 and len(rows) <= 1.2 * sum(used) / 160 + 1


def test_what_is_too_long_is_counted_in_the_summary(data):
    files = {"a": [*simple("a", 10), turns("why", "a", "so", "mouse " * 60), turns("who", "fox " * 60)]}
    assert not any(map(is_val, ("why", "who")))
    kept, dropped, cut = (data(files, seq_len=60, too_long=how) for how in ("turns", "drop", "cut"))
    assert "1 left out, 1 shortened" in kept.summary() and kept.conversations == 11
    assert "2 left out, 0 shortened" in dropped.summary() and dropped.conversations == 10
    assert "0 left out, 2 shortened" in cut.summary() and cut.conversations == 12
    for made in (kept, dropped, cut):
        rows = made.next(12)
        assert max(n for row in rows for n, _ in row) == (60 if made is cut else max(n for row in rows for n, _ in row))
        assert all(n == len(batches.read(item)[0]) <= 60 for row in rows for n, item in row)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("system", ["keep", "merge", "drop"])
def test_a_stream_gives_what_is_stored(data, tok, split, system):
    files = {"a": talks(100, low=3)}
    stored, streamed = (data(files, split=split, seq_len=60, streaming=s, system=system) for s in (False, True))
    n = stored.conversations
    assert n > 1 and stored.sources[0].left_out + stored.sources[0].shortened > 0
    assert (streamed.summary() != stored.summary()) and "streamed" in streamed.summary()

    def rows(made):
        found = (batches.read(item) for row in made.next(n) for _, item in row)
        return sorted((ids.tolist(), learn.tolist()) for ids, learn in found)

    streamed.chunk_size = n  # one pass
    assert rows(stored) == rows(streamed)


@pytest.mark.parametrize("streaming", [False, True])
def test_evaluation_takes_the_same_conversations_every_time_and_none_of_training(data, tok, streaming):
    files = {"a": talks(60, 0), "b": talks(30, 1)}
    train = set(said(data(files).next(80), tok))
    some = [said(data(files, split="val", seed=s, streaming=streaming).some(4), tok) for s in (1, 2)]
    assert some[0] == some[1] and len(some[0]) == len(set(some[0])) == 4 and not train & set(some[0])


@pytest.mark.parametrize("streaming", [False, True])
def test_evaluation_takes_no_more_than_there_are(data, tok, streaming):
    made = data({"a": simple("a", 20), "b": simple("b", 20)}, split="val", streaming=streaming)
    assert said(made.some(64), tok) == ["val a", "val b"]
    assert data({"c": simple("c", 20)[:-1]}, split="val", streaming=streaming).some(64) == []


# ------------------------------------------------------------------------------------------------------------------
# packed and unpacked are the same

VOCAB = 20
SHAPE = dict(vocab_size=VOCAB, seq_len=ROOM, n_layer=3, n_head=2, n_embd=16, mlp_dim=24)
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
    "bd3lm": (bd3lm, dict(block_size=4)),
    "bd3lm, complementary": (bd3lm, dict(block_size=4, complementary=True)),
    "bd3lm, count": (bd3lm, dict(block_size=4, corruption="count", t_min=0.2)),
    "ar": (ar, {}),
    "ar, no begin-of-text": (ar, {}),
}


def network(algorithm=mdlm, dtype=torch.float64, **settings):
    torch.manual_seed(0)
    model = Transformer(Config(**{**SHAPE, **settings, "causal": algorithm.CAUSAL})).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn_like(p) if p.dim() > 1 else 1 + 0.1 * torch.randn_like(p))
    return model


def batch_of(rows, options, first=0, count=None, room=ROOM, width=None):
    """ids, what is learnt and batches.Texts, as train.py makes them."""
    count = len(rows) if count is None else count
    ids, learn, texts = batches.batch(rows, first, count, options, 0, room, width)
    number, position = (torch.from_numpy(texts.pop(k)) for k in ("number", "position"))
    return torch.from_numpy(ids), torch.from_numpy(learn), batches.Texts(number, position, **texts)


def loss_of(name, model, batch, seed=3, **keys):
    algorithm, options = LOSSES[name]
    x, learn, texts = batch
    keys = dict(maskable=learn, texts=texts, seed=seed, **keys)
    mask_id = None if name == "ar, no begin-of-text" else 1
    return algorithm.loss(model, x, algorithm.LossOptions(**options), mask_id=mask_id, **keys)


def packed_and_unpacked(lengths=LENGTHS, fill=4):
    """The same conversations in packed rows, and each in a row of its own."""
    packing, alone = conversations.Options(fill=fill, packing=True), conversations.Options(fill=fill)
    rows = in_rows(lengths, ROOM, packing)
    assert 1 < len(rows) < len(lengths)
    return (rows, packing), ([[item] for row in rows for item in row], alone)


def grads(model, value):
    model.zero_grad()
    value.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_equal_grads(a, b, tolerance=1e-10):
    assert a.keys() == b.keys() and max(g.abs().max() for g in a.values()) > 1e-3
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("net", NETWORKS)
@pytest.mark.parametrize("name", LOSSES)
def test_packing_changes_neither_loss_nor_gradient(name, net):
    model = network(LOSSES[name][0], **NETWORKS[net])
    packed, alone = (loss_of(name, model, batch_of(*rows)) for rows in packed_and_unpacked())
    assert packed.item() == pytest.approx(alone.item(), rel=1e-10) and packed.item() > 0.5
    assert_equal_grads(grads(model, packed), grads(model, alone))


@pytest.mark.parametrize("name", LOSSES)
def test_packing_changes_no_loss_in_single_precision(name):
    model = network(LOSSES[name][0], torch.float32)
    packed, alone = (loss_of(name, model, batch_of(*rows)).item() for rows in packed_and_unpacked())
    assert packed == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize(
    "name, fill, packing",
    [
        (name, fill, packing)
        for name in LOSSES
        for fill, packing in [(4, False), (4, True), (0, False), (1, False), (1, True)]
        if fill == 4 or "bd3lm" not in name  # which fills whole blocks
    ],
)
def test_micro_batches_of_conversations_add_up_to_one_large_batch(name, fill, packing):
    """With one denominator, as train.py has it, and micro-batches of every size, of one row, too."""
    model, options = network(LOSSES[name][0]), conversations.Options(fill=fill, packing=packing)
    rows = in_rows(LENGTHS, ROOM, options)
    n = len(rows)
    total = batches.learnt(rows, options, ROOM)
    whole = grads(model, loss_of(name, model, batch_of(rows, options), denominator=total))
    value = loss_of(name, model, batch_of(rows, options)).item()  # which divides by what it learns itself
    for size in (1, n // 2, n - 1):
        model.zero_grad()
        parts = 0.0
        for first in range(0, n, size):
            part = batch_of(rows, options, first, min(size, n - first))
            part = loss_of(name, model, part, denominator=total)
            part.backward()
            parts += part.item()
        assert parts == pytest.approx(value, rel=1e-10)
        assert_equal_grads({k: p.grad for k, p in model.named_parameters() if p.grad is not None}, whole)


def hidden_of(name, batch, seed=3):
    """{(text, position): (hidden, weight)}, lists of one value for each copy of the batch."""
    algorithm, options = LOSSES[name]
    _, learn, texts = batch
    hidden, weight = texts.corrupt(algorithm.corrupt, learn, algorithm.LossOptions(**options), seed)
    found = {}
    copies = len(hidden) // len(learn)
    real = texts.number >= 0
    assert not hidden.view(copies, *learn.shape)[:, ~learn].any()
    for h, w in zip(hidden.view(copies, *learn.shape), weight.view(copies, *learn.shape)):
        for t, p, is_hidden, x in zip(texts.number[real], texts.position[real], h[real], w[real]):
            found.setdefault((int(t), int(p)), []).append((bool(is_hidden), float(x)))
    return found


@pytest.mark.parametrize("name", [n for n in LOSSES if not n.startswith("ar")])
def test_what_is_hidden_of_a_text_depends_on_nothing_around_it(name):
    (packed, how), (alone, each) = packed_and_unpacked()
    whole = hidden_of(name, batch_of(packed, how))
    assert hidden_of(name, batch_of(alone, each)) == whole
    parts = {}
    for i in range(len(packed)):
        parts |= hidden_of(name, batch_of(packed, how, i, 1, width=ROOM))
    assert parts == whole
    other = hidden_of(name, batch_of(packed, how), seed=4)
    assert {k: [h for h, _ in v] for k, v in other.items()} != {k: [h for h, _ in v] for k, v in whole.items()}
    assert any(h for v in whole.values() for h, _ in v)


def test_each_text_has_a_time_of_its_own_spread_over_all_texts_of_the_batch():
    (rows, how), _ = packed_and_unpacked()
    found = hidden_of("mdlm", batch_of(rows, how))
    times = sorted({k[0]: 1 / w for k, ((_, w),) in found.items()}.values())
    n = len(LENGTHS)
    assert len(times) == n and all(i / n < t < (i + 1) / n for i, t in enumerate(times))


def every_logit(name, model, batch):
    """Losses of all real tokens, each hidden alone to no one: what the network says everywhere (B, L)."""
    algorithm, options = LOSSES[name]
    x, _, texts = batch
    real = texts.number >= 0
    rows = real.flatten().nonzero()[:, 0]
    if algorithm is ar:
        mask_id = None if name == "ar, no begin-of-text" else 1
        given = real & (texts.position > 0) if mask_id is None else real
        nll = ar.token_nll(model, x, given, mask_id, texts=texts)
        return torch.zeros(x.shape, dtype=nll.dtype).masked_scatter(given, nll.detach())
    if algorithm is bd3lm:
        noised = 2 + (3 * x + 1) % (VOCAB - 2)
        out = bd3lm.predict(model, noised, x, rows, options["block_size"], 1, texts)
    else:
        out = model(x, mask=texts.mask(), positions=texts.positions(), rows=rows)
    return torch.zeros(*x.shape, VOCAB, dtype=out.dtype).masked_scatter(real[:, :, None], out.detach())[..., 2:]


@pytest.mark.parametrize("net", NETWORKS)
@pytest.mark.parametrize("name", ["mdlm", "bd3lm", "ar", "ar, no begin-of-text"])
def test_a_text_has_no_influence_on_another_in_its_row(name, net):
    model = network(LOSSES[name][0], **NETWORKS[net]).eval()
    (rows, how), _ = packed_and_unpacked()
    x, learn, texts = batch_of(rows, how)
    before = every_logit(name, model, (x, learn, texts))
    shared = next(row[row >= 0].unique().tolist() for row in texts.number if len(row[row >= 0].unique()) > 2)
    for k in shared:  # the first one, those between, the last one
        mine = texts.number == k
        own = mine.any(1).nonzero().item()
        changed = torch.where(mine, 2 + (x + 5) % (VOCAB - 2), x)
        after = every_logit(name, model, (changed, learn, texts))
        others = (texts.number >= 0) & ~mine
        assert others[own].any() and torch.equal(after[others], before[others])
        assert not torch.equal(after, before)


def test_padding_behind_texts_does_no_harm():
    """Nobody sees it and it sees nobody, which is no reason for what is not a number."""
    for name in LOSSES:
        model = network(LOSSES[name][0])
        for rows, how in packed_and_unpacked([5, 17, 9]):
            batch = batch_of(rows, how, width=ROOM)
            assert (batch[2].number < 0).any()
            value = loss_of(name, model, batch)
            assert value.isfinite() and all(g.isfinite().all() for g in grads(model, value).values())
            changed = torch.where(batch[2].number < 0, 7, batch[0])
            assert loss_of(name, model, (changed, *batch[1:])).item() == value.item()


# ------------------------------------------------------------------------------------------------------------------
# from causal to full attention


def mask_of(see_ahead, length=40, seed=0, mask=None):
    return noise.see_ahead(mask, see_ahead, seed, length, "cpu")


def test_who_sees_all_ahead_has_full_attention():
    assert mask_of(1.0) is None
    real = torch.ones(2, 5, dtype=torch.bool)
    assert mask_of(1.0, 5, mask=real) is real


def test_who_sees_nothing_ahead_is_a_causal_network():
    full, causal = network(mdlm), network(ar)
    x = torch.randint(2, VOCAB, (3, ROOM), generator=torch.Generator().manual_seed(0))
    assert torch.equal(full(x, mask=mask_of(0.0, ROOM)), causal(x, mask=mask_of(0.0, ROOM)))
    torch.testing.assert_close(full(x, mask=mask_of(0.0, ROOM)), causal(x), rtol=1e-12, atol=1e-12)
    assert (full(x) - causal(x)).abs().max() > 0.1


@pytest.mark.parametrize("chance", [0.1, 0.5, 0.9])
def test_in_between_the_past_is_seen_and_the_future_with_that_chance(chance):
    seen = torch.cat([mask_of(chance, seed=s) for s in range(50)])
    past = torch.ones(40, 40).tril().bool()
    assert seen.shape == (50, 40, 40) and seen[:, past].all()
    pairs = seen[:, ~past].double()
    assert pairs.mean().item() == pytest.approx(chance, abs=5 * (chance * (1 - chance) / pairs.numel()) ** 0.5)
    assert (pairs.mean(0) - chance).abs().max() < 5 * (chance * (1 - chance) / 50) ** 0.5  # each pair of them
    assert len({tuple(p.tolist()) for p in pairs}) == 50  # and drawn anew with every seed


def test_a_pair_that_is_seen_stays_seen_as_attention_grows():
    masks = [mask_of(chance) for chance in (0.0, 0.3, 0.6, 0.99)]
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


@pytest.mark.parametrize("complementary", [False, True])
@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_of_a_single_row_the_loss_is_its_part_of_a_larger_batch(chance, packing, complementary):
    options, how = (
        mdlm.LossOptions(see_ahead=chance, complementary=complementary),
        conversations.Options(fill=4, packing=packing),
    )
    model, rows = network(), in_rows(LENGTHS, ROOM, conversations.Options(fill=4, packing=packing))

    def value(first, count):
        x, learn, texts = batch_of(rows, how, first, count, width=ROOM)
        return mdlm.loss(model, x, options, mask_id=1, maskable=learn, seed=3, denominator=1, texts=texts).item()

    assert sum(value(i, 1) for i in range(len(rows))) == pytest.approx(value(0, len(rows)), rel=1e-10)


@pytest.mark.parametrize("chance", [0.0, 0.5, 0.99])
def test_seeing_ahead_ends_where_the_text_does(chance):
    (rows, how), _ = packed_and_unpacked()
    _, _, texts = batch_of(rows, how)
    seen = mask_of(chance, texts.number.shape[1], mask=texts.mask())
    same = texts.number[:, :, None] == texts.number[:, None]
    i = torch.arange(seen.shape[1])
    assert not seen[~same].any() and seen[same & (i <= i[:, None])].all()
    assert seen[same & (i > i[:, None])].double().mean().item() == pytest.approx(chance, abs=0.1)
    padded = torch.tensor([[True, True, False], [True, True, True]])
    assert not mask_of(0.99, 3, mask=padded)[0, :, 2].any()


# ------------------------------------------------------------------------------------------------------------------
# training

CONTEXT = 64
TINY = [f"--seq_len={CONTEXT}", "--batch_size=4", "--dtype=float32", "--device=cpu", "--warmup_iters=1"]
TINY += ["--eval_windows=5", "--eval_samples=1", "--max_iters=4", "--learning_rate=1e-2"]
KINDS = {"mdlm": ("bert", []), "bd3lm": ("blocks", ["--algorithm=bd3lm", "--block_size=4"])}
KINDS |= {"ar": ("llama", ["--algorithm=ar"]), "a2d": ("a2d", [])}


def random_model(cls, config):
    torch.manual_seed(0)
    model = cls(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.2 * torch.randn_like(p) if p.dim() > 1 else p + 0.1 * torch.randn_like(p))
    model.tie_weights()
    return model


@pytest.fixture(scope="module")
def made(bpe, tmp_path_factory):
    """Checkpoints: bert (converted, with a plain template), llama (autoregressive), made into a2d and blocks."""
    path = tmp_path_factory.mktemp("checkpoints")
    shape = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    shape |= dict(max_position_embeddings=CONTEXT)
    vocab = write_tokenizer(bpe, path / "encoder", None)
    config = tf.BertConfig(vocab_size=vocab, pad_token_id=0, **shape)
    random_model(tf.BertForMaskedLM, config).save_pretrained(path / "encoder")
    convert_bert.convert(path / "encoder", path / "bert")
    vocab = write_tokenizer(bpe, path / "llama", CHATML)
    ends = dict(bos_token_id=None, pad_token_id=None, eos_token_id=320)
    config = tf.LlamaConfig(vocab_size=vocab, **shape, **ends)
    random_model(tf.LlamaForCausalLM, config).save_pretrained(path / "llama")
    convert_ar.convert(path / "llama", path / "a2d")
    convert_ar.convert(path / "llama", path / "blocks", "bd3lm")
    return path


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    path = tmp_path_factory.mktemp("lines")
    return write_lines(path / "talks.jsonl", talks(60, low=1, high=4))


def run(made, lines, out, kind="mdlm", *more):
    checkpoint, options = KINDS[kind]
    args = [*TINY, f"--init_from={made / checkpoint}", f"--dataset={lines}", f"--out_dir={out}", *options, *more]
    train.main(args)
    return ckpt.load_train_state(out / "last")


def assert_same(a, b, tolerance=0.0):
    for name in a["weights"]:
        if tolerance and name.endswith("attn.k.bias"):  # has no gradient, of which AdamW makes steps of noise
            continue
        torch.testing.assert_close(a["weights"][name], b["weights"][name], rtol=tolerance, atol=tolerance)


def spy(monkeypatch, module, look):
    """A list of what `look` makes of the arguments of every call of the module's loss."""
    seen, original = [], module.loss

    def loss(*args, **keys):
        seen.append(look(*args, **keys))
        return original(*args, **keys)

    monkeypatch.setattr(module, "loss", loss)
    return seen


@pytest.mark.parametrize("more", [[], ["--packing=true"], ["--streaming=true", "--packing=true"]], ids=str)
@pytest.mark.parametrize("kind", ["mdlm", "bd3lm", "ar"])
def test_4_steps_equal_2_steps_a_signal_and_2_resumed_steps_bitwise(made, lines, tmp_path, monkeypatch, kind, more):
    monkeypatch.setattr(batches, "CHUNK", 32)
    whole = run(made, lines, tmp_path / "whole", kind, *more)
    start = ckpt.load(made / KINDS[kind][0])
    assert any((whole["weights"][n] != p).any() for n, p in start.model.named_parameters())
    calls = spy(
        monkeypatch,
        {"mdlm": mdlm, "bd3lm": bd3lm, "ar": ar}[kind],
        lambda *args, **keys: len(calls) == 1 and os.kill(os.getpid(), signal.SIGTERM),
    )
    half = run(made, lines, tmp_path / "cut", kind, *more)
    assert half["iter"] == 2
    cut = run(made, lines, tmp_path / "cut", kind, *more, "--init_from=resume")
    assert cut["iter"] == 4 and cut["data"] == whole["data"] != half["data"]
    assert_same(whole, cut)


@pytest.mark.parametrize(
    "kind, more",
    [
        ("mdlm", []),
        ("mdlm", ["--complementary=true", "--packing=true"]),
        ("bd3lm", ["--packing=true"]),
        ("ar", []),
        ("ar", ["--packing=true"]),
        ("a2d", ["--anneal_iters=3", "--packing=true", "--learn=last"]),
    ],
    ids=str,
)
def test_accumulation_over_micro_batches_equals_one_large_batch(made, lines, tmp_path, kind, more):
    more = [*more, "--learning_rate=1e-3"]
    large = run(made, lines, tmp_path / "a", kind, *more, "--batch_size=4")
    small = run(made, lines, tmp_path / "b", kind, *more, "--batch_size=1", "--gradient_accumulation_steps=4")
    assert_same(large, small, 5e-5)


RANKS = """
import os, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
import train
from nanodlm import corpus
corpus.ROOT = Path(sys.argv[1])
children = []
for rank in range(2):
    child = os.fork()
    if not child:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
        train.main(sys.argv[2:])
        sys.stdout.flush()
        os._exit(0)
    children.append(child)
sys.exit(max(os.waitpid(c, 0)[1] for c in children) and 1)
"""


def test_two_gloo_processes_equal_one_process(made, lines, tmp_path, elsewhere):
    one = run(made, lines, tmp_path / "one", "mdlm", "--batch_size=4", "--max_iters=2", "--learning_rate=1e-3")
    args = [*TINY, f"--init_from={made / 'bert'}", f"--dataset={lines}", f"--out_dir={tmp_path / 'two'}"]
    env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + os.getpid() % 20000)}
    command = [sys.executable, "-c", RANKS, elsewhere, *args, "--batch_size=2", "--max_iters=2", "--learning_rate=1e-3"]
    done = subprocess.run(command, cwd=CODE, env={**env, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_same(one, ckpt.load_train_state(tmp_path / "two/last"), 5e-5)
    a, b = ([json.loads(x) for x in (tmp_path / d / "metrics.jsonl").read_text().splitlines()] for d in ("one", "two"))
    for key in ("val_nats", "val_nats_error", "val_bpb"):  # each rank evaluated a part of an odd number
        assert a[-1][key] == pytest.approx(b[-1][key], abs=1e-4)
    assert a[-2]["train_loss"] == pytest.approx(b[-2]["train_loss"], abs=1e-4)


@pytest.mark.parametrize("packing", [False, True])
def test_epochs_are_passes_over_all_conversations(made, lines, tmp_path, monkeypatch, packing):
    seen = spy(monkeypatch, ar, lambda model, x, o, **keys: keys["texts"].total)
    state = run(made, lines, tmp_path, "ar", "--epochs=2", f"--packing={packing}", "--eval_samples=1")
    here = ckpt.load(made / "llama")
    chat = conversations.Options(fill=1, packing=packing)
    have = batches.Conversations(lines, here.tokenizer, here.path, CONTEXT, chat, 1)
    assert state["iter"] == round(2 * have.rows_per_pass() / 4)
    assert abs(sum(seen) - 2 * have.conversations) <= (16 if packing else 4)
    assert (state["iter"] < 2 * have.conversations / 4 - 1) == packing


def test_attention_grows_from_causal_to_full_over_anneal_iters(made, lines, tmp_path, monkeypatch):
    seen = spy(monkeypatch, mdlm, lambda model, x, o, **keys: (o.see_ahead, model.config.causal))
    run(made, lines, tmp_path, "a2d", "--anneal_iters=4", "--max_iters=6")
    assert seen == [(see, False) for see in (0.0, 0.25, 0.5, 0.75, 1.0, 1.0)]


def test_without_anneal_iters_attention_is_full_at_once(made, lines, tmp_path, monkeypatch):
    seen = spy(monkeypatch, mdlm, lambda model, x, o, **keys: o.see_ahead)
    run(made, lines, tmp_path, "a2d", "--max_iters=2")
    assert seen == [1.0, 1.0]


@pytest.mark.parametrize("kind", ["mdlm", "bd3lm", "ar"])
@pytest.mark.parametrize("packing", [False, True])
def test_the_loss_is_given_answers_and_fill_to_learn(made, lines, tmp_path, monkeypatch, kind, packing):
    """Decoded, what is learnt are the file's answers, and behind them what the policy of each algorithm adds."""
    module = {"mdlm": mdlm, "bd3lm": bd3lm, "ar": ar}[kind]
    seen = spy(monkeypatch, module, lambda model, x, o, **keys: (x, keys["maskable"], keys["texts"]))
    run(made, lines, tmp_path, kind, f"--packing={packing}", "--max_iters=2")
    tok = ckpt.load(made / KINDS[kind][0]).tokenizer
    answers = {m["content"] for line in open(lines) for m in json.loads(line)["messages"] if m["role"] == "assistant"}
    fill = {"mdlm": 32, "bd3lm": 4, "ar": 1}[kind]
    for x, learn, texts in seen:
        sizes = [int((texts.number == k).sum()) for k in texts.number[texts.number >= 0].unique()]
        if kind == "mdlm" and not packing:
            assert len(set(sizes)) == 1
        else:
            assert all(n % fill == 0 or n == CONTEXT for n in sizes)
        if kind == "ar" and not packing:
            assert len(set(sizes)) > 1
        assert (max(Counter(texts.number[:, :1].flatten().tolist()).values()) == 1) and texts.packed == packing
        for k in texts.number[texts.number >= 0].unique():
            mine = texts.number == k
            found = [tok.decode(x[mine][a:b].tolist()).strip() for a, b in spans(learn[mine])]
            assert found and set(found) <= answers


@pytest.fixture(scope="module")
def trained(made, lines, tmp_path_factory):
    """Runs of every kind."""
    path = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context():
        for kind in ("mdlm", "ar", "a2d", "bd3lm"):
            run(made, lines, path / kind, kind, "--packing=true", "--max_iters=2")
    return path


@pytest.mark.parametrize("kind, cls", [("mdlm", tf.BertForMaskedLM), ("ar", tf.LlamaForCausalLM)])
def test_a_trained_checkpoint_is_read_by_transformers_with_our_logits(made, trained, kind, cls):
    ours = ckpt.load(trained / kind / "last")
    theirs, info = cls.from_pretrained(trained / kind / "last", output_loading_info=True)
    assert not any(info.values()), info
    assert tf.AutoTokenizer.from_pretrained(trained / kind / "last").chat_template
    ids = torch.arange(40)[None] * 7 % 320
    with torch.no_grad():
        torch.testing.assert_close(ours.model(ids), theirs.eval()(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
        before = ckpt.load(made / KINDS[kind][0]).model(ids)
    assert (ours.model(ids) - before).abs().max() > 1e-2  # it was trained


@pytest.mark.parametrize("kind", ["a2d", "bd3lm"])
def test_a_trained_descendant_of_a_causal_model_has_its_weights_under_its_names(trained, kind):
    """transformers' own class under a full mask."""
    ours = ckpt.load(trained / kind / "last")
    assert ours.algorithm == {"a2d": "mdlm"}.get(kind, kind) and not ours.model.config.causal
    content = json.loads((trained / kind / "last/config.json").read_text())
    assert content["architectures"] == ["A2DLlamaLMHeadModel"] and content["nanodlm"]["chat"]["packing"]
    config = tf.LlamaConfig(**{k: v for k, v in content.items() if k not in ("model_type", "architectures", "nanodlm")})
    theirs, info = tf.LlamaForCausalLM.from_pretrained(trained / kind / "last", config=config, output_loading_info=True)
    assert not any(info.values()), info
    ids = torch.arange(40)[None] * 7 % 320
    with torch.no_grad():
        full = theirs.eval()(input_ids=ids, attention_mask=torch.zeros(1, 1, 40, 40)).logits
        torch.testing.assert_close(ours.model(ids), full, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["mdlm", "ar", "a2d", "bd3lm"])
def test_a_trained_checkpoint_answers_what_it_was_trained_to(trained, monkeypatch, kind, capsys):
    """A sampler is given what stood before the answer in training."""
    module = {"mdlm": fast_mdlm, "a2d": fast_mdlm, "bd3lm": fast_bd3lm, "ar": ar}[kind]
    asked, original = [], module.generate

    def generate(model, prompts, *args, **keys):
        asked.extend(p.tolist() for p in prompts)
        return original(model, prompts, *args, **keys)

    monkeypatch.setattr(module, "generate", generate)
    args = ["--device=cpu", "--template", "--prompt=what may a fox eat", "--max_new_tokens=8"]
    sample.main([f"--checkpoint={trained / kind}", *args])
    tok = ckpt.load(trained / kind).tokenizer
    ids, learn = conversations.tokenize(tok, turns("what may a fox eat", "a mouse"))
    assert asked == [ids[: learn.index(True)]] and "what may a fox eat" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["mdlm", "ar", "bd3lm"])
def test_validation_measures_the_answers_in_bits_of_their_bytes(made, lines, trained, kind):
    """Recomputed for the first evaluation, without train.py's batches."""
    facts = [json.loads(x) for x in (trained / kind / "metrics.jsonl").read_text().splitlines()][-1]
    here = ckpt.load(trained / kind / "last")
    fill = {"mdlm": 32, "bd3lm": 4, "ar": 1}[kind]
    have = batches.Conversations(
        lines, here.tokenizer, here.path, CONTEXT, conversations.Options(fill=fill), 1, "val"
    ).some(5)
    algorithm = {"mdlm": mdlm, "bd3lm": bd3lm, "ar": ar}[kind]
    nats = tokens = 0
    for i, ((n, item),) in enumerate(have):
        ids, learn = batches.read(item)
        full = min(-(-n // fill) * fill, CONTEXT)
        x = torch.tensor([[*ids, *[here.tokenizer.eos_id] * (full - n)]])
        maskable = torch.tensor([[*learn, *[True] * (full - n)]])
        keys = dict(maskable=maskable, samples=1, seed=0, first=i, mask_id=here.tokenizer.mask_id)
        nats += algorithm.nelbo(here.model, x, **keys).item()
        tokens += learn.sum()
    if kind == "ar":  # exact; of the others the masks depend on the width of the batch
        assert facts["val_nats"] == pytest.approx(nats / tokens, rel=1e-4)
    said = [conversations.messages_of(json.loads(line)) for line in Path(lines).read_text().splitlines()]
    answers = [m["content"] for messages in said for m in messages if m["role"] == "assistant" and m["content"].strip()]
    meta = have[0][0][1][0].meta  # bytes of the answers as they were written, and one for each end of turn
    assert meta["left_out"] == {} and meta["train_bytes"] + meta["val_bytes"] == sum(
        len(a.encode()) + 1 for a in answers
    )
    size = (meta["train_bytes"] + meta["val_bytes"]) / (meta["train_learnt"] + meta["val_learnt"])
    assert facts["val_bpb"] == pytest.approx(facts["val_nats"] / size / np.log(2), rel=1e-6)


# ------------------------------------------------------------------------------------------------------------------
# what is refused, each in one sentence


def sentence(call, *args, **keys):
    with pytest.raises(SystemExit) as e:
        call(*args, **keys)
    assert isinstance(e.value.code, str) and "\n" not in e.value.code, e.value.code
    return e.value.code


@pytest.fixture
def refused(made, lines, tmp_path):
    """What train.py says to these settings."""

    def say(*more, kind="mdlm", dataset=lines):
        return sentence(run, made, dataset, tmp_path / "refused", kind, *more)

    return say


GOOD = json.dumps({"prompt": "what", "response": "a mouse"}).encode()


@pytest.mark.parametrize("streaming", ["true", "false"])
@pytest.mark.parametrize(
    "bad, why",
    [
        (b'{"prompt": "what", ', ""),
        (b"a mouse", ""),
        (b'["what", "a mouse"]', "no object in braces"),
        (b'{"text": "what", "id": 3}', "not text, id"),
        (b"{}", "not nothing"),
        (b'{"messages": [{"role": "user", "content": null}]}', "needs a role and a content"),
        (b'{"messages": ["what", "a mouse"]}', "needs a role and a content"),
        ('{"prompt": "\u00e9", "response": "a"}'.encode("latin-1"), "utf-8"),
    ],
    ids=["cut short", "no JSON", "a list", "no answer", "empty", "null", "no turns", "latin-1"],
)
def test_a_broken_line_is_named_by_its_number(refused, tmp_path, bad, why, streaming):
    (tmp_path / "bad.jsonl").write_bytes(GOOD + b"\n\n" + bad + b"\n" + GOOD + b"\n")
    said = refused(f"--streaming={streaming}", dataset=tmp_path / "bad.jsonl")
    assert f"{tmp_path / 'bad.jsonl'}, line 3: " in said and why in said


@pytest.mark.parametrize("streaming", ["true", "false"])
def test_a_missing_file_is_named(refused, tmp_path, streaming):
    said = refused(f"--streaming={streaming}", dataset=tmp_path / "none.jsonl")
    assert f"no file '{tmp_path / 'none.jsonl'}'" in said


@pytest.mark.parametrize("streaming", ["true", "false"])
def test_a_template_that_refuses_system_turns_names_the_conversation_and_the_way_out(
    made, bpe, tmp_path, monkeypatch, streaming
):
    shutil.copytree(made / "bert", tmp_path / "strict")
    write_tokenizer(bpe, tmp_path / "strict", TEMPLATES["strict"])
    (tmp_path / "strict/config.json").write_bytes((made / "bert/config.json").read_bytes())
    records = [turns(question(False), "a mouse"), turns(question(False, 1), "an apple", system="be brief"), *talks(20)]
    file = write_lines(tmp_path / "system.jsonl", records)
    monkeypatch.setattr(batches, "CHUNK", 16)
    args = [f"--init_from={tmp_path / 'strict'}", f"--streaming={streaming}", "--max_iters=1", "--seq_len=40"]
    said = sentence(run, made, file, tmp_path / "run", "mdlm", *args)
    assert "conversation 2: the chat template refuses it: no system turns" in said and "--system=merge" in said
    assert run(made, file, tmp_path / "merge", "mdlm", *args, "--system=merge")["iter"] == 1
    assert run(made, file, tmp_path / "drop", "mdlm", *args, "--system=drop")["iter"] == 1


def test_a_template_that_fails_without_a_system_turn_does_not_blame_one(tokenizer_of, prepared):
    tok = tokenizer_of("chatml")

    def template(messages, ask):
        raise jinja2.TemplateError("no\nidea")

    broken = replace(tok, template=template)
    conversations.work.update(tokenizer=broken, system="keep")
    said = conversations.tokenize_record((7, {"prompt": "what", "response": "a"}))
    assert said == "fatal: conversation 7: the chat template refuses it: no"


def test_conversations_that_are_all_too_long_are_refused(refused):
    said = refused("--seq_len=6", "--too_long=drop")
    assert "no conversation of" in said and "fits into seq_len=6" in said and "too_long=cut" in said


@pytest.mark.parametrize("streaming", ["true", "false"])
def test_a_file_without_anything_to_learn_is_refused(refused, tmp_path, streaming):
    file = write_lines(tmp_path / "none.jsonl", [turns("what", ""), turns("what")])
    said = refused(f"--streaming={streaming}", dataset=file)
    assert "no conversation to learn from" in said and (streaming == "true" or "2 x no answer" in said)


@pytest.mark.parametrize("name", ["nosuch", "nosuch,other", "nosuch:2,other:1"])
def test_an_unknown_data_set_is_named(refused, name):
    assert f"no data set '{name}'" in refused(dataset=name)


def test_chat_jsonl_is_no_data_set_by_itself(refused, elsewhere):
    place(elsewhere, "chat_jsonl", (CODE / "data/chat_jsonl/prepare.py").read_text())
    assert "give the file itself" in refused(dataset="chat_jsonl")


@pytest.mark.parametrize("mixture", ["{0}:1,{0}", "{0}:0", "{0}:2,{0}:-1", "{0}:nan"])
def test_weights_are_positive_and_for_every_source(refused, lines, mixture):
    assert "give every source a positive weight" in refused(dataset=mixture.format(lines))


@pytest.mark.parametrize("more", [["--fill=6"], ["--fill=0"], ["--fill=1"], ["--packing=true", "--fill=2"]], ids=str)
def test_answers_end_with_whole_blocks(refused, more):
    assert "is no multiple of block_size=4: every answer ends with a whole block" in refused(*more, kind="bd3lm")


def test_packing_and_fill_up_to_the_longest_exclude_each_other(refused):
    assert "fill=0 fills rows with end-of-text, which packing fills with conversations" in refused(
        "--packing=true", "--fill=0"
    )


def test_a_negative_fill_is_refused(refused):
    assert "fill=-1 is no number of tokens" in refused("--fill=-1")


def test_epochs_of_a_stream_are_refused(refused):
    assert "nobody knows how long a stream is" in refused("--epochs=1", "--streaming=true")


@pytest.fixture
def text_data(tmp_path):
    tok = tokenizers.load({"kind": "char", "chars": "abc "})
    ids = tok.encode("abc cab " * 50)
    corpus.write_dataset(tmp_path / "text", tok, {"train": ids, "val": ids}, bytes_per_token=1.0)
    return tmp_path / "text"


@pytest.fixture(autouse=True)
def make_directories(tmp_path):
    (tmp_path / "text").mkdir()


def test_epochs_of_running_text_are_refused(text_data, tmp_path):
    args = [*TINY, f"--dataset={text_data}", f"--out_dir={tmp_path / 'out'}", "--seq_len=16", "--epochs=1"]
    assert "epochs counts passes over conversations" in sentence(train.main, args)


def test_conversations_need_a_checkpoint(refused):
    assert "need a checkpoint's chat template: give one as init_from" in refused("--init_from=scratch")


def test_a_checkpoint_without_a_chat_template_is_refused(text_data, tmp_path, lines):
    args = [*TINY, f"--out_dir={tmp_path / 'ours'}", "--n_layer=1", "--n_head=2", "--n_embd=16", "--max_iters=1"]
    train.main([*args, f"--dataset={text_data}", "--seq_len=16"])
    args = [*TINY, f"--out_dir={tmp_path / 'chat'}", f"--init_from={tmp_path / 'ours'}", "--seq_len=16"]
    said = sentence(train.main, [*args, f"--dataset={lines}"])
    assert "has no chat template; convert_bert.py and convert_ar.py attach one" in said


def test_a_longer_row_than_the_context_is_refused(refused):
    assert f"seq_len={CONTEXT + 1} exceeds the context of {CONTEXT} tokens" in refused(f"--seq_len={CONTEXT + 1}")


@pytest.mark.parametrize("streaming", ["true", "false"])
def test_a_file_without_conversations_for_validation_is_no_crash(made, tmp_path, monkeypatch, streaming):
    """A few dozen conversations often have none; a sentence or a run, but no traceback."""
    file = write_lines(tmp_path / "few.jsonl", simple("a", 9)[:-1])
    monkeypatch.setattr(batches, "CHUNK", 16)
    try:
        assert run(made, file, tmp_path / "run", "mdlm", f"--streaming={streaming}")["iter"] == 4
    except SystemExit as e:
        assert "validation" in str(e.code)


# ------------------------------------------------------------------------------------------------------------------
# data sets by name


def place(root, name, content):
    """data/<name>/prepare.py under `root`."""
    (root / "data" / name).mkdir(parents=True, exist_ok=True)
    (root / "data" / name / "prepare.py").write_text(content)


def test_a_name_under_data_is_a_source_of_records(elsewhere, data, tok, tokenizer_of):
    records = simple("named", 12)
    content = f"RECORDS = {[{'messages': r} for r in records]!r}\n\n"
    place(elsewhere, "mine", content + "def records(streaming=False):\n    return iter(RECORDS)\n")
    place(elsewhere, "prose", "def main():\n    pass\n")
    assert (
        conversations.holds_chat("mine")
        and not conversations.holds_chat("prose")
        and not conversations.holds_chat("mine,prose")
    )
    wanted = sorted(r[1]["content"] for r in records[:-1])
    for streaming in (False, True):
        have = batches.Conversations(
            "mine", tok, tokenizer_of.path / "chatml", 99, conversations.Options(streaming=streaming), 1
        )
        have.chunk_size = 12
        assert sorted(said(have.next(12), tok)) == wanted
    there = sentence(conversations.find_records, "prose").partition("use a .jsonl file, or ")[2].split(", ")
    assert "mine" in there and "prose" not in there


@pytest.mark.parametrize("streaming", [False, True])
def test_a_record_of_the_hub_in_another_form_is_named(elsewhere, tok, tokenizer_of, streaming):
    yields = "".join(f"    yield {r!r}\n" for r in ({"prompt": "what", "response": "a"}, {"text": "b"}))
    place(elsewhere, "broken", f"# two records\ndef records(streaming=False):\n{yields}")

    def start():
        how = conversations.Options(streaming=streaming)
        return batches.Conversations("broken", tok, tokenizer_of.path / "chatml", 99, how, 1).next(3)

    assert "broken, conversation 2: a record has messages" in sentence(start)


@pytest.mark.parametrize("name", ["alpaca", "gsm8k", "opc_sft", "smoltalk", "tulu3"])
def test_a_file_beside_prepare_py_goes_before_the_hub(elsewhere, name):
    """And its lines are part of what the token files are known by."""
    place(elsewhere, name, (CODE / "data" / name / "prepare.py").read_text())
    assert conversations.find_records(name)[1] == "hub"
    file = elsewhere / "data" / name / "train.jsonl"
    record = {"prompt": "what", "response": "a mouse"}
    write_lines(file, [record])
    for streaming in (False, True):
        records, digest, home = conversations.find_records(name, streaming)
        assert list(records) == [record] and digest == conversations.file_digest(file) and home == file.parent


def test_the_command_line_makes_the_token_files_that_training_reads(made, lines, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prepare.py", f"--file={lines}", f"--tokenizer={made / 'bert'}", "--workers=1"])
    conversations.main("chat_jsonl", "")
    path = Path(capsys.readouterr().out.splitlines()[-1])
    here = ckpt.load(made / "bert")
    assert (path / "meta.json").is_file() and path == conversations.directory_of(lines, here.tokenizer, "keep")
