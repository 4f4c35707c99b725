"""Conversations as data: what of them is learnt, how they are mixed, filled and packed, and that packing changes nothing.

Checkpoints are tiny random ones, converted as real ones are; conversations are lines of a JSONL file.
"""

import itertools
import json
import os
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
import pretrained
import sample
import tokenizer as tokenizers
import train
from data import common, sft
from model import Config, Transformer

torch.set_num_threads(1)
tf.utils.logging.disable_progress_bar()

CODE = Path(__file__).resolve().parent.parent
END, TURN, ENDTURN, MASK = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>"
WORDS = "the user asks what a fox may eat and the assistant says that it eats a mouse or an apple most of all days".split()
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
    """n conversations of one to three questions and answers, each with a first question of its own."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        said = [text_of(rng, low, high) for _ in range(2 * rng.integers(1, 4))]
        said[0] = f"{said[0]} {seed} {i}"
        found.append(turns(*said, system="be brief" if i % 5 == 0 else None))
    return found


def write_lines(path, records):
    records = [r if isinstance(r, dict) else {"messages": r} for r in records]
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module", autouse=True)
def elsewhere(tmp_path_factory):
    """Token files go here and not into the project, which is left as it was; they are made without a pool."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("root")
        patch.setattr(common, "ROOT", root)
        patch.setattr(os, "cpu_count", lambda: 2)
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
    ids, learn = sft.tokenize(tok, messages)
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
        messages = sft.settle_system(messages, "drop")
    ids, learn = sft.tokenize(tok, messages)
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
    ids, learn = sft.tokenize(tok, messages)
    ((begin, end),) = spans(learn)
    assert ids[:begin] == tok.chat(messages[:1])
    assert tok.decode(ids[begin : end - 1]).strip() == "a mouse" and ids[end - 1] == tok.eos_id and end == len(ids)
    assert END not in tok.template(messages, False)


def test_of_a_template_that_rewrites_history_the_last_answer_is_learnt(tokenizer_of):
    tok = tokenizer_of("thoughts")
    messages = turns("what", "<think>hm</think> a mouse", "and", "<think>so</think> an apple")
    ids, learn = sft.tokenize(tok, messages)
    ((begin, end),) = spans(learn)
    assert ids[:begin] == tok.chat(messages[:3])
    assert ids[begin:end] == tok.encode("<think>so</think> an apple" + ENDTURN) and end == len(ids)
    assert "hm" not in tok.decode(ids[:begin]) and "a mouse" in tok.decode(ids[:begin])


def test_answers_behind_the_last_rewriting_are_learnt(tokenizer_of):
    """The second question finds the first answer rewritten, the third one finds nothing that is."""
    messages = turns("what", "<think>hm</think> a mouse", "and", "an apple", "or", "a fox")
    tok = tokenizer_of("thoughts")
    ids, learn = sft.tokenize(tok, messages)
    answers = [tok.decode(ids[a:b]) for a, b in spans(learn)]
    assert answers == ["an apple", "a fox"]
    assert [ids[:a] for a, _ in spans(learn)] == [tok.chat(messages[:k]) for k in (3, 5)]


def test_an_end_of_turn_within_an_answer_does_not_end_it(tok):
    ids, learn = sft.tokenize(tok, turns("what", f"a {ENDTURN} mouse"))
    assert [i for i, x in zip(ids, learn) if x] == tok.encode(f"a {ENDTURN} mouse{ENDTURN}")


@pytest.mark.parametrize("empty", ["", " \n "])
def test_an_empty_answer_is_given_but_not_learnt(tok, empty):
    messages = turns("what", empty, "and", "an apple")
    ids, learn = sft.tokenize(tok, messages)
    ((begin, _),) = spans(learn)
    assert ids[:begin] == tok.chat(messages[:3])
    with pytest.raises(ValueError, match="only empty ones"):
        sft.tokenize(tok, turns("what", empty))


def test_a_question_without_an_answer_is_left_out(tok):
    with pytest.raises(ValueError, match="no answer"):
        sft.tokenize(tok, turns("what"))
    assert sft.tokenize(tok, turns("what", "a mouse", "and")) == sft.tokenize(tok, turns("what", "a mouse"))


@pytest.mark.parametrize("place", [0, 1])
def test_text_with_the_mask_token_is_left_out(tok, place):
    said = ["what", "a mouse"]
    said[place] += MASK
    with pytest.raises(ValueError, match="mask token"):
        sft.tokenize(tok, turns(*said))


def test_a_template_that_asks_otherwise_than_it_writes_is_refused(tokenizer_of):
    tok = tokenizer_of("chatml")
    broken = replace(tok, template=lambda messages, ask: tok.template(messages, ask) + ("?" if ask else ""))
    with pytest.raises(ValueError, match="does not write an answer behind"):
        sft.tokenize(broken, DIALOGUES[0])


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
    assert sft.messages_of(record) == messages


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
        sft.messages_of(record)


def test_system_turns_are_kept_merged_or_dropped():
    messages = turns("q", "a", system="s")
    assert sft.settle_system(messages, "keep") == messages
    assert sft.settle_system(messages, "merge") == turns("s\n\nq", "a")
    assert sft.settle_system(messages, "drop") == turns("q", "a")
    for how in ("keep", "merge", "drop"):
        assert sft.settle_system(turns("q", "a"), how) == turns("q", "a")
    assert messages == turns("q", "a", system="s")  # the record itself is left alone


def test_a_system_turn_in_front_of_an_answer_is_not_learnt(tok):
    messages = [{"role": "system", "content": "be brief"}, {"role": "assistant", "content": "a mouse"}]
    ids, learn = sft.tokenize(tok, sft.settle_system(messages, "merge"))
    assert [i for i, x in zip(ids, learn) if x] == tok.encode("a mouse" + ENDTURN)
    assert "be brief" in tok.decode(ids)


# ------------------------------------------------------------------------------------------------------------------
# what does not fit

IDS = np.arange(12)
LEARN = np.array([0, 0, 1, 1, 0, 1, 1, 1, 0, 0, 1, 1], dtype=bool)  # answers end behind 4, 8 and 12 tokens


def fitted(room, **options):
    found = sft.fit(IDS, LEARN, room, sft.Options(**options))
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
    assert sft.fit(IDS[:3], one, 3, sft.Options(learn="last"))[1].tolist() == one.tolist()
    assert sft.fit(IDS[:3], ~one, 3, sft.Options(learn="last"))[1].tolist() == (~one).tolist()


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
    return [[found[i] for i in row] for row in sft.pack(sizes, room)]


LENGTHS, ROOM = [5, 17, 9, 30, 12, 3, 22, 8, 31, 6, 11, 4], 32
POLICIES = [(1, False), (4, False), (7, False), (0, False), (1, True), (4, True), (5, True)]


@pytest.mark.parametrize("fill, packing", POLICIES)
def test_rows_hold_their_conversations_end_of_text_and_padding(fill, packing):
    options = sft.Options(fill=fill, packing=packing)
    rows = in_rows(LENGTHS, ROOM, options)
    ids, learn, texts = sft.batch(rows, 0, len(rows), options, 0, ROOM)
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
    options = sft.Options(fill=fill, packing=packing)
    rows = in_rows(LENGTHS, ROOM, options)
    whole = sft.batch(rows, 0, len(rows), options, 0, ROOM, width)

    def texts(ids, learn, keys):
        real = keys["number"] >= 0
        return list(zip(keys["number"][real], keys["position"][real], ids[real], learn[real]))

    parts = [sft.batch(rows, i, 1, options, 0, ROOM, width) for i in range(len(rows))]
    assert [x for part in parts for x in texts(*part)] == texts(*whole)
    first = [part[2]["first"] for part in parts]
    assert first == [0, *itertools.accumulate(part[2]["count"] for part in parts)][:-1]
    assert {(p[2]["total"], p[2]["length"]) for p in parts} == {(len(LENGTHS), ROOM)}
    if width:
        assert {p[0].shape for p in parts} == {(1, width)}


@pytest.mark.parametrize("fill, packing", POLICIES)
@pytest.mark.parametrize("micro", [1, 2])
def test_what_is_counted_as_learnt_is_what_the_micro_batches_learn(fill, packing, micro):
    options = sft.Options(fill=fill, packing=packing)
    rows = in_rows(LENGTHS, ROOM, options)
    rows = rows[: len(rows) // micro * micro]
    parts = [sft.batch(rows, i, micro, options, 0, ROOM)[1] for i in range(0, len(rows), micro)]
    assert sft.learnt(rows, options, ROOM) == sum(int(p.sum()) for p in parts) > 0


def test_the_fill_reaches_no_further_than_the_row():
    options = sft.Options(fill=24)
    ids, learn, texts = sft.batch([[item] for item in items([20, 25, 40])], 0, 3, options, 0, 40)
    assert (texts["number"] >= 0).sum(1).tolist() == [24, 40, 40] and ids.shape == (3, 40)


sizes_and_room = st.integers(1, 64).flatmap(
    lambda room: st.tuples(st.lists(st.integers(1, room), max_size=40), st.just(room))
)


@given(sizes_and_room)
@settings(max_examples=200, deadline=None)
def test_packing_places_every_item_once_in_rows_that_hold_it(drawn):
    sizes, room = drawn
    rows = sft.pack(sizes, room)
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

    assert 9 * len(sft.pack(sizes, 12)) <= 11 * fewest(sizes, []) + 6


def test_packing_loses_less_than_a_hundredth_of_the_rows():
    rng = np.random.default_rng(0)
    sizes = np.clip(rng.lognormal(5, 0.8, 4096).astype(int), 8, 1024).tolist()
    assert len(sft.pack(sizes, 1024)) <= 1.01 * sum(sizes) / 1024 + 1


# ------------------------------------------------------------------------------------------------------------------
# token files


@pytest.fixture
def prepared(tokenizer_of, tmp_path):
    """Token files of some conversations: their directory."""

    def make(records, template="chatml", **keys):
        tok = tokenizer_of(template)
        file = write_lines(tmp_path / f"{len([*tmp_path.iterdir()])}.jsonl", records)
        return sft.prepare(file, tok, tokenizer_of.path / template, **keys)

    return make


def side(number):
    """A question on the side of validation (True) or of training, and a number of its own."""
    return {
        val: next(itertools.islice((q for q in map("what {}".format, itertools.count()) if is_val(q) == val), number, None))
        for val in (True, False)
    }


def is_val(question):
    return sft.is_val(turns(question))


def contents(path, tok, split, field="answer"):
    """The texts of the answers (or of all) of a split, one for each conversation."""
    source = sft.Stored(path, split, 10**6, sft.Options())
    found = [source.read(i) for i in range(len(source.start) - 1)]
    return [tok.decode(ids[learn] if field == "answer" else ids) for ids, learn in found]


def test_token_files_hold_what_tokenize_gives(prepared, tok):
    records = talks(120)
    path = prepared(records)
    for split in ("train", "val"):
        mine = [sft.tokenize(tok, m) for m in records if sft.is_val(m) == (split == "val")]
        source = sft.Stored(path, split, 10**6, sft.Options())
        assert len(mine) == len(source.start) - 1 > 0
        for i, (ids, learn) in enumerate(mine):
            got = source.read(i)
            assert got[0].tolist() == ids and got[1].tolist() == learn
        meta = source.meta
        assert meta[f"{split}_conversations"] == len(mine)
        assert meta[f"{split}_tokens"] == sum(len(ids) for ids, _ in mine)
        assert meta[f"{split}_learnt"] == sum(sum(learn) for _, learn in mine)
    assert tokenizers.load(meta["tokenizer"], path).spec == tok.spec


def test_several_processes_write_the_same_files(prepared):
    records = talks(600)
    one, two = prepared(records, workers=1), prepared(records, system="drop", workers=1)
    files = {p.name: p.read_bytes() for p in one.iterdir()}
    import shutil

    shutil.rmtree(one)
    assert prepared(records, workers=3) == one != two
    assert {p.name: p.read_bytes() for p in one.iterdir()} == files
    assert files["train.bin"] != (two / "train.bin").read_bytes()


def test_token_files_that_are_there_are_not_made_again(prepared, monkeypatch):
    records = talks(5)
    path = prepared(records)
    monkeypatch.setattr(sft, "write", None)
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
    question, other = side(0)[val], side(1)[False]
    records = [turns(question, f"a fox {i}", system=f"be brief {i}") for i in range(30)]
    path = prepared([*records, turns(other, "an apple")], system=system)
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
        return sft.Conversations(dataset, tok, where, seq_len, sft.Options(**options), seed, split)

    return make


def simple(name, n):
    """n conversations that say whose they are and are all learnt from, and one for validation."""
    questions = (f"{name} {i}" for i in itertools.count())
    found = [turns(q, f"the fox {q}") for q in itertools.islice((q for q in questions if not is_val(q)), n)]
    return [*found, turns(next(q for q in questions if is_val(q)), f"val {name}")]


def said(rows, tok):
    """The answers of rows, in order."""
    return [tok.decode(sft.read(item)[0][sft.read(item)[1]]) for row in rows for _, item in row]


def sources_of(rows, tok):
    return Counter(text.split()[2] for text in said(rows, tok))


@pytest.mark.parametrize("streaming", [False, True])
def test_every_conversation_comes_once_in_every_pass(data, tok, streaming):
    made = data({"a": simple("a", 23)}, streaming=streaming)
    wanted = sorted(m[1]["content"] for m in simple("a", 23)[:-1])
    passes = [said(made.next(23), tok) for _ in range(3)]
    assert all(sorted(p) == wanted for p in passes)
    assert passes[0] != passes[1] or streaming  # stored, the order of each pass is its own


def test_a_stream_begins_again_at_its_end(data, tok):
    made = data({"a": simple("a", 3)}, streaming=True)
    assert set(Counter(said(made.next(sft.CHUNK), tok)).values()) <= {sft.CHUNK // 3, sft.CHUNK // 3 + 1}


@pytest.mark.parametrize("streaming", [False, True])
def test_the_order_is_the_seeds(data, tok, streaming):
    files = {"a": simple("a", 40)}
    one, same, other = (said(data(files, seed=s, streaming=streaming).next(40), tok) for s in (1, 1, 2))
    assert one == same != other and (streaming or sorted(one) == sorted(other))
    assert one != [m[1]["content"] for m in files["a"][:40]]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("weights", [(3, 1), (1, 1), (0.7, 0.3), (1, 2.5)])
def test_a_mixture_has_its_weights_in_every_chunk_and_is_interleaved(data, tok, monkeypatch, weights, streaming):
    monkeypatch.setattr(sft, "CHUNK", 40)
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
    monkeypatch.setattr(sft, "CHUNK", 16)
    made = data({"a": simple("a", 30), "b": simple("b", 7)}, {"a": 3, "b": 1})
    seen = said(made.next(160), tok)
    a, b = ([t for t in seen if t.split()[2] == x] for x in "ab")
    assert len(a) == 120 and len(b) == 40
    assert set(Counter(a).values()) == {4} and set(Counter(b).values()) == {5, 6}


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_state_is_all_that_going_on_needs(data, tok, monkeypatch, streaming, packing):
    monkeypatch.setattr(sft, "CHUNK", 20)
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
    made = data(files, packing=True, seq_len=64, fill=fill)
    n = made.rows_per_pass()
    rows = made.next(n)
    assert made.state == (1, 0) and n == len(made.rows(0))
    assert sorted(said(rows, tok)) == sorted(m[1]["content"] for m in files["a"][:-1])
    used = [sum(-(-size // fill) * fill for size, _ in row) for row in rows]
    assert max(used) <= 64 and len(rows) <= 1.1 * sum(used) / 64 + 1


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
        assert all(n == len(sft.read(item)[0]) <= 60 for row in rows for n, item in row)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("system", ["keep", "merge", "drop"])
def test_a_stream_gives_what_is_stored(data, tok, split, system):
    files = {"a": talks(200, low=3)}
    stored, streamed = (data(files, split=split, seq_len=60, streaming=s, system=system) for s in (False, True))
    n = stored.conversations
    assert n > 1 and stored.sources[0].left_out + stored.sources[0].shortened > 0
    assert (streamed.summary() != stored.summary()) and "streamed" in streamed.summary()

    def rows(made):
        found = (sft.read(item) for row in made.next(n) for _, item in row)
        return sorted((ids.tolist(), learn.tolist()) for ids, learn in found)

    streamed.chunk_size = n  # one pass
    assert rows(stored) == rows(streamed)


@pytest.mark.parametrize("streaming", [False, True])
def test_evaluation_takes_the_same_conversations_every_time_and_none_of_training(data, tok, streaming):
    files = {"a": talks(300, 0), "b": talks(150, 1)}
    train = set(said(data(files).next(400), tok))
    some = [said(data(files, split="val", seed=s, streaming=streaming).some(4), tok) for s in (1, 2)]
    assert some[0] == some[1] and len(some[0]) == len(set(some[0])) == 4 and not train & set(some[0])


def test_evaluation_takes_no_more_than_there_are(data):
    made = data({"a": simple("a", 20), "b": simple("b", 20)}, split="val")
    assert made.conversations == 2 and len(made.some(64)) == 2
