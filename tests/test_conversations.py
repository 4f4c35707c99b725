"""Conversations: what is learnt of them, the records that they are read from, and the token files that hold them."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import jinja2
import numpy as np
import pytest
import talks
from talks import END, ENDTURN, MASK, answers, place, question, sentence, simple, spans, turns, write_lines

from nanodlm import batches, conversations
from nanodlm import records as records_of
from nanodlm import tokenizer as tokenizers
from nanodlm import turns as in_tokens

CODE = Path(__file__).resolve().parent.parent
elsewhere, bpe, tokenizer_of, tok = talks.elsewhere, talks.bpe, talks.tokenizer_of, talks.tok

# ---- what is learnt --------------------------------------------------------------------------------------------------

DIALOGUES = [
    turns("what may a fox eat", "a mouse or an apple"),
    turns("what may a fox eat", "a mouse", "and on days of all", "an apple", "what", "most of all the mouse"),
    turns("what may a fox eat", "a mouse", "and", "an apple", system="be brief"),
    turns("\u00e9t\u00e9?", "na\u00efve \u2603 1 2 3", "2 + 2\n\n= ?", "4.\n\nOr so\n  it is"),
    turns("what", "a mouse", "and"),
]
SYSTEM_FIRST = [{"role": "system", "content": "be brief"}, {"role": "assistant", "content": "a mouse"}]
LEARNT = {  # of other templates and dialogues, these messages
    "no end of turn": ("endless", turns("what may a fox eat", "a mouse  "), [1]),
    "an end of turn within": ("chatml", turns("what", f"a {ENDTURN} mouse"), [1]),
    "a mask within": ("chatml", turns(f"what is {MASK}", f"a {MASK}"), [1]),
    "empty": ("chatml", turns("what", "", "and", "an apple"), [3]),
    "blank": ("chatml", turns("what", " \n ", "and", "an apple"), [3]),
    "a system turn first": ("chatml", conversations.settle_system(SYSTEM_FIRST, "merge"), [1]),
    "rewritten": ("thoughts", turns("what", "<think>hm</think> a mouse", "and", "<think>so</think> an apple"), [3]),
    "rewritten once": ("thoughts", turns("what", "<think>hm</think> it", "and", "an apple", "or", "a fox"), [3, 5]),
}
for template in ("chatml", "plain", "llada"):
    for messages in DIALOGUES:
        said = [k for k, m in enumerate(messages) if m["role"] == "assistant"]
        LEARNT[f"{template} {len(LEARNT)}"] = template, messages, said


@pytest.mark.parametrize("template, messages, learnt", LEARNT.values(), ids=list(LEARNT))
def test_answers_with_their_ends_are_learnt_behind_what_a_sampler_is_given(tokenizer_of, template, messages, learnt):
    tok, _ = tokenizer_of(template)
    ids, learn = in_tokens.tokenize(tok, messages)
    assert len(spans(learn)) == len(learnt) and learn[-1]
    for k, (begin, end) in zip(learnt, spans(learn)):
        text = messages[k]["content"]
        text = tok.escape(text)
        text = f" {text.strip()}{END}" if template in ("plain", "endless") else f"{text}{ENDTURN}"
        assert ids[:begin] == tok.chat(messages[:k]) and ids[begin:end] == tok.encode(text)


def test_of_a_rewritten_history_a_sampler_is_given_the_answer_without_its_thoughts(tokenizer_of):
    tok, _ = tokenizer_of("thoughts")
    ids, learn = in_tokens.tokenize(tok, LEARNT["rewritten"][1])
    assert "hm" not in tok.decode(ids) and "a mouse" in tok.decode(ids[: learn.index(True)])


@pytest.mark.parametrize(
    "messages, why",
    [
        (turns("what"), "no answer"),
        (turns("what", ""), "only empty ones"),
        (turns("what", " \n "), "only empty ones"),
    ],
)
def test_what_cannot_be_learnt_is_an_error(tok, messages, why):
    with pytest.raises(ValueError, match=why):
        in_tokens.tokenize(tok, messages)


def test_a_template_that_asks_otherwise_than_it_writes_is_refused(tok):
    broken = replace(tok, template=lambda messages, ask: tok.template(messages, ask) + ("?" if ask else ""))
    with pytest.raises(ValueError, match="does not write an answer behind"):
        in_tokens.tokenize(broken, DIALOGUES[0])


def test_system_turns_are_kept_merged_or_dropped():
    messages = turns("q", "a", system="s")
    settled = [conversations.settle_system(messages, how) for how in ("keep", "merge", "drop")]
    assert settled == [messages, turns("s\n\nq", "a"), turns("q", "a")]
    assert messages == turns("q", "a", system="s")  # the record itself is left alone
    assert all(conversations.settle_system(turns("q", "a"), how) == turns("q", "a") for how in ("merge", "drop"))


# ---- what does not fit -----------------------------------------------------------------------------------------------

ANSWERS = np.isin(np.arange(12), PLACES := [2, 3, 5, 6, 7, 10, 11])  # they end behind 4, 8 and 12 tokens


@pytest.mark.parametrize(
    "how, lengths",
    [
        ("turns", {12: 12, 11: 8, 9: 8, 8: 8, 7: 4, 4: 4, 3: 0}),  # the first turns that fit
        ("cut", {12: 12, 11: 11, 7: 7, 3: 3, 2: 0}),
        ("drop", {12: 12, 11: 0}),
    ],
)
@pytest.mark.parametrize("learn", ["all", "last"])
def test_what_fits_is_left_as_it_is_and_of_what_does_not_what_was_asked_for(how, lengths, learn):
    for room, n in lengths.items():
        found = conversations.fit(np.arange(12), ANSWERS, room, conversations.Options(too_long=how, learn=learn))
        assert (found is None) == (n == 0), room
        if n:
            begin = 0 if learn == "all" else max(i for i in (2, 5, 10) if i < n)
            assert found[0].tolist() == list(range(n))
            assert np.flatnonzero(found[1]).tolist() == [i for i in PLACES if begin <= i < n]


def test_the_last_answer_is_learnt_whatever_stands_around_it():
    for learn in ([0, 1, 1], [1, 0, 0], [1, 1, 1]):
        learn = np.array(learn, dtype=bool)
        found = conversations.fit(np.arange(3), learn, 3, conversations.Options(learn="last"))
        assert found[1].tolist() == learn.tolist()


# ---- records ---------------------------------------------------------------------------------------------------------

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
        ({"instruction": "q", "input": float("nan"), "output": "a"}, ONE),
        ({"instruction": "q", "input": 41, "output": "a"}, turns("q\n\n41", "a")),
        ({"messages": None, "conversations": ONE}, ONE),
        ({"prompt": ONE[:1], "completion": ONE[1:]}, ONE),
        ({"prompt": turns("q", system="s"), "response": "a"}, turns("q", "a", system="s")),
        ({"messages": [{"role": "Human", "content": "q"}, {"from": "ChatGPT", "value": "a"}]}, ONE),
        ({"messages": [{"role": "developer", "content": "s"}, *ONE]}, turns("q", "a", system="s")),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, ONE[1]]}, ONE),
        (
            {"messages": [ONE[0], ONE[1] | {"reasoning_content": "so"}]},
            turns("q", "<think>\nso\n</think>\n\na"),
        ),
    ],
    ids=str,
)
def test_records_are_read_in_every_usual_form(record, messages):
    assert records_of.messages_of(record) == messages


PAIR = b'{"prompt": "what", "response": "a mouse"}'
BAD = {  # a line, and why it is left out
    b'{"prompt": "what", ': "it is no JSON",
    b"a mouse": "it is no JSON",
    b'{"prompt": "what", "response": "a\0"}': "it is no JSON",
    b'["what", "a mouse"]': "it is no object in braces",
    b'{"text": "what", "id": 3}': "it has no messages, nor prompt and response (or the like): there is text, id",
    b"{}": "it has no messages, nor prompt and response (or the like): there is nothing",
    b'{"id": 3, "response": null}': "it has no messages, nor prompt and response (or the like): there is id",
    b'{"question": "what"}': "it has no messages",
    b'{"prompt": "what", "response": 3}': "its response is no text: 3; write it as a text",
    b'{"messages": "what"}': "its messages are no list: what",
    b'{"messages": [{"role": "user"}]}': "a turn has no content",
    b'{"messages": [{"content": "what"}]}': "a turn has no role",
    b'{"messages": [{"role": "user", "content": null}]}': "a turn has no content",
    b'{"messages": [{"role": "user", "content": ["what"]}]}': "a turn's content is no text",
    b'{"messages": [{"role": "assistant", "content": null, "tool_calls": [{}]}]}': "a turn calls a tool",
    b'{"messages": [{"role": "tool", "content": "42"}]}': "a turn calls a tool, or is a tool's answer",
    b'{"messages": ["what", "a mouse"]}': "a turn has no role",
    b'{"instruction": "what", "input": ["a", "b"], "output": "ab"}': "its input is no text",
    b'{"prompt": "what", "response": "\\ud83d"}': "a text holds half a character: a lone surrogate",
    b'{"prompt": "what", "response": "a\\u0000"}': "a text holds null bytes: it may be no text",
    b'{"messages": [{"role": "\\ud83d", "content": "what"}]}': "a text holds half a character: a lone surrogate",
    PAIR.decode().encode("utf-16"): "it is not UTF-8: byte 0 of the line",
    '{"prompt": "\u00e9", "response": "a"}'.encode("latin-1"): "it is not UTF-8: byte 12 of the line",
    b"[" * 100_000: "it is no JSON",
}


@pytest.mark.parametrize("line, why", BAD.items(), ids=[*map(str, range(len(BAD)))])
def test_a_bad_line_is_left_out_and_named_by_its_number(prepared, tmp_path, capsys, line, why):
    file = tmp_path / "bad.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + PAIR + b"\r\n\r\n" + line + b"\n" + PAIR.replace(b"mouse", b"fox") + b"\n")
    path = prepared(file)
    assert f"  1 left out: {why.partition(':')[0]}" in capsys.readouterr().out
    assert len(stored(path, "train")) == 2
    shutil.rmtree(path)
    said = sentence(prepared, file, strict=True)
    assert said.startswith(f"{file}, line 3: {why}")
    file.write_bytes(line + b"\n")
    said = sentence(prepared, file)
    assert said.startswith(f"{file} has no conversation to learn from; 1 left out: {why.partition(':')[0]}")


def row(record):
    return tuple(text.encode() for text in record.values())


FILES = {  # by ending
    ".jsonl": lambda records: "\n".join(map(json.dumps, records)).encode(),
    ".jsonl.gz": lambda records: gzip.compress("\n".join(map(json.dumps, records)).encode()),
    ".json": lambda records: b"\xef\xbb\xbf" + json.dumps(records, indent=1).encode(),
    ".csv": lambda records: b"prompt,response\r\n" + b"".join(b'%s,"%s"\r\n' % row(r) for r in records),
}


@pytest.mark.parametrize("ending", [*FILES, ".parquet"])
def test_files_of_every_usual_kind_hold_records(tmp_path, ending):
    records = [{"prompt": f"what {i}", "response": "a mouse,\nor 42"} for i in range(3)]
    file = tmp_path / f"talks{ending}"
    if ending == ".parquet":
        datasets.Dataset.from_list(records).to_parquet(file)
    else:
        file.write_bytes(FILES[ending](records))
    found, digest, _ = records_of.find_records(str(file))
    assert list(found) == records and len(digest) == 16 and records_of.holds_chat(f"{file}:2,{file}:1")
    for content, why in ((b"\x1f\x8b no", str(file)), (b"", f"{file} is empty")):
        file.write_bytes(content)
        if content and ending == ".jsonl":
            continue  # a bad line, in a file that may have good ones
        assert why in sentence(list, records_of.read(file))


def test_a_comma_in_a_table_cuts_no_text(tmp_path):
    """A text with a comma that is not in quotation marks has more columns than there are names."""
    for prompt, answer in (
        ("what", "a mouse"),
        ("what", "a mouse,"),
        ("what, or who", "a mouse"),
        ("what", "a mouse, or 42, or none"),
    ):
        (tmp_path / "t.csv").write_text(f"prompt,response\n{prompt},{answer}\n")
        (found,) = records_of.read(tmp_path / "t.csv")
        if "," in prompt + answer[:-1]:
            assert "more columns than the first line" in str(found) and "quotation marks" in str(found)
        else:
            assert found == {"prompt": prompt, "response": answer.rstrip(",")}


@pytest.mark.parametrize("head", ["prompt,response,response", "prompt,prompt,response", "id,prompt,response,id"])
def test_columns_of_one_name_are_refused_and_those_without_a_name_passed_over(tmp_path, head):
    """Of two, one would be silently dropped; an editor of tables leaves empty ones behind the others."""
    (tmp_path / "t.csv").write_text(f"{head}\nwhat,a mouse,a fox\n")
    assert "give each a name of its own" in sentence(list, records_of.read(tmp_path / "t.csv"))
    (tmp_path / "t.csv").write_text("prompt,response,,\nwhat,a mouse,,\n")
    (found,) = records_of.read(tmp_path / "t.csv")
    assert records_of.messages_of(found) == turns("what", "a mouse")


@pytest.mark.parametrize("row", range(3))
@pytest.mark.parametrize("text", ['"a mouse', '"a mouse" or two'])
def test_a_quotation_mark_too_few_swallows_no_rows(tmp_path, row, text):
    """Nor is a text taken without its own."""
    lines = ["prompt,response", *(f"what {i}," + (text if i == row else "a mouse") for i in range(3))]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    said = sentence(list, records_of.read(tmp_path / "t.csv"))
    assert said.startswith(f"{tmp_path}/t.csv is no CSV in UTF-8, from line {row + 2} on: "), said


def test_ten_megabytes_in_one_field_are_a_text_as_any(tmp_path):
    record = {"prompt": "what", "response": "fox " * 2_500_000}
    assert list(records_of.read(write_lines(tmp_path / "long.jsonl", [record]))) == [record]


def test_a_missing_file_is_named(tmp_path):
    said = sentence(records_of.find_records, str(tmp_path / "none.jsonl"))
    assert f"no file '{tmp_path / 'none.jsonl'}'" in said


@pytest.mark.parametrize("mixture", ["a:1,a", "a:0", "a:2,a:-1", "a:nan", "a:inf,b:1", "a:1e400"])
def test_weights_are_positive_and_for_every_source(mixture):
    assert "give every source a positive weight" in sentence(records_of.parse_mixture, mixture)


def test_a_mixture_names_its_sources_and_may_weigh_them():
    assert records_of.parse_mixture("tulu3, b.jsonl") == [("tulu3", None), ("b.jsonl", None)]
    assert records_of.parse_mixture("tulu3:2,c:/b.jsonl:0.5") == [("tulu3", 2.0), ("c:/b.jsonl", 0.5)]
    assert records_of.parse_mixture("c:/b.jsonl") == [("c:/b.jsonl", None)]


# ---- token files -----------------------------------------------------------------------------------------------------


@pytest.fixture
def prepared(tokenizer_of, tmp_path):
    """Token files of some conversations, or of a file: their directory."""

    def make(records, template="chatml", **keys):
        file = records
        if not isinstance(records, Path):
            file = write_lines(tmp_path / f"{len([*tmp_path.iterdir()])}.jsonl", records)
        return conversations.prepare(str(file), *tokenizer_of(template), **keys)

    return make


def stored(path, split):
    """[(ids, learn)] of a split, as lists."""
    source = batches.Stored(path, split, 10**6, conversations.Options())
    return [tuple(x.tolist() for x in source.read(i)) for i in range(len(source.start) - 1)]


def test_token_files_hold_what_tokenize_gives_whoever_writes_them(prepared, tok, monkeypatch):
    records = [*talks.talks(40), turns("what", "\u2603")]
    path = prepared(records, workers=1)
    meta = json.loads((path / "meta.json").read_text())
    assert meta["left_out"] == {} and tokenizers.load(meta["tokenizer"], path).spec == tok.spec
    for split in ("train", "val"):
        here = [m for m in records if conversations.is_val(m) == (split == "val")]
        mine = [in_tokens.tokenize(tok, m) for m in here]
        assert stored(path, split) == mine and len(mine) == meta[f"{split}_conversations"] > 0
        assert meta[f"{split}_tokens"] == sum(len(ids) for ids, _ in mine)
        assert meta[f"{split}_learnt"] == sum(sum(learn) for _, learn in mine)
        said = [m["content"] for messages in here for m in messages if m["role"] == "assistant"]
        assert meta[f"{split}_bytes"] == sum(len(text.encode()) + 1 for text in said)  # an end of turn counts as one

    monkeypatch.setattr(conversations, "write", None)
    assert prepared(records) == path  # they are not made again
    monkeypatch.undo()
    files = {p.name: p.read_bytes() for p in path.glob("*.bin")}
    shutil.rmtree(path)
    assert prepared(records, workers=2) == path  # by two processes
    assert {p.name: p.read_bytes() for p in path.glob("*.bin")} == files and len(files) == 6


POOL = """
import os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from nanodlm import conversations
keys = "", {"kind": "char", "chars": "ab"}, "auto", "keep"
pool = ProcessPoolExecutor(1, get_context("spawn"), conversations.start_worker, keys)
print(pool.submit(os.getpid).result(), flush=True)
time.sleep(600)
"""


def test_workers_end_with_the_process_that_started_them():
    process = subprocess.Popen([sys.executable, "-c", POOL], cwd=CODE, stdout=subprocess.PIPE, text=True)
    worker = int(process.stdout.readline())
    process.kill()
    try:
        process.communicate(timeout=20)  # what they share ends with the last of them
    except subprocess.TimeoutExpired:
        os.kill(worker, signal.SIGKILL)
        raise


def test_other_lines_another_template_or_treatment_have_files_of_their_own(prepared):
    records = [turns("what", "a mouse")]
    paths = [prepared(records), prepared(records, "plain"), prepared(records, system="drop"), prepared(records * 2)]
    assert len(set(paths)) == 4


def test_what_is_left_out_is_counted_by_reason(prepared, capsys):
    bad = [turns("what", ""), turns("and", " "), turns("so")]
    path = prepared([*bad, turns("what 1", "a mouse"), turns("what 2", "an apple")])
    meta = json.loads((path / "meta.json").read_text())
    assert meta["left_out"] == {"no answer, or only empty ones": 3}
    assert meta["train_conversations"] + meta["val_conversations"] == 2
    assert "  3 left out: no answer, or only empty ones (line 1)\n" in capsys.readouterr().out
    said = sentence(prepared, bad[:1] * 2)
    assert "no conversation to learn from; 2 left out: no answer" in said


def test_files_that_other_code_made_are_made_again_with_a_word(elsewhere, tokenizer_of, capsys):
    """A data set's own prepare.py is part of the code; as are the rooms that turn records into tokens."""
    found = []
    for answer in ("a mouse", "a fox", "a fox"):
        content = f"def records(streaming=False):\n    yield {{'prompt': 'what', 'response': {answer!r}}}\n"
        place(elsewhere, "edited", content)
        sys.modules.pop("data.edited.prepare", None)  # as in the next process
        found.append((conversations.prepare("edited", *tokenizer_of("chatml")), capsys.readouterr().out))
    (first, begun), (second, again), (third, nothing) = found
    assert first.name[:13] == second.name[:13] and first != second == third
    why = "edited: the code that makes its token files is another now; made again"
    assert begun.startswith("edited: 1 + 0 conversations") and nothing == ""
    assert again.startswith(f"{why}. Nobody needs {first}\nedited: 1 + 0 conversations")


@pytest.mark.parametrize("system", ["keep", "merge", "drop"])
def test_a_question_is_on_one_side_alone_whatever_the_system_turn_says(prepared, tok, system):
    asked = [f"what {i}" for i in range(150)] * 2
    path = prepared([turns(q, f"a fox {q}", system=f"be brief {i}") for i, q in enumerate(asked)], system=system)
    for split in ("train", "val"):
        said = Counter(tok.decode([i for i, x in zip(ids, learn) if x]) for ids, learn in stored(path, split))
        assert said == Counter(f"a fox {q}" for q in asked if talks.is_val(q) == (split == "val"))
    assert 0 < len(said) < 20  # one in 50


def test_what_a_template_refuses_is_left_out_and_what_it_fails_on_ends_the_run(prepared, tok, capsys):
    records = [turns(question(False), "a mouse"), turns(question(False, number=1), "an apple", system="be brief")]
    why = "the chat template refuses it"
    assert len(stored(prepared(records, "strict"), "train")) == 1
    assert f"1 left out: {why} (line 2: no system turns; --system=merge and" in capsys.readouterr().out
    assert f"line 2: {why}: no system turns; --system=merge" in sentence(prepared, records * 2, "strict", strict=True)
    for system in ("merge", "drop"):
        assert len(stored(prepared(records, "strict", system=system), "train")) == 2
    for error in (jinja2.UndefinedError("no\nidea"), KeyError("x")):

        def template(messages, ask, error=error):
            raise error

        conversations.work.update(tokenizer=replace(tok, template=template), system="keep")
        ((where, said),) = conversations.tokenize_records([("line 7", {"prompt": "what", "response": "a"})])
        said = sentence(records_of.Reasons("mine").add, where, said)
        assert said.startswith("mine, line 7: the chat template fails on it: ")


def test_conversations_that_all_belong_to_validation_are_trained_on(prepared, tokenizer_of, tmp_path, capsys):
    records = [turns(question(True), f"a fox {i}") for i in range(5)]
    path = prepared(records)
    meta = json.loads((path / "meta.json").read_text())
    assert len(stored(path, "train")) == 5 == meta["train_conversations"] and stored(path, "val") == []
    assert meta["train_bytes"] > 0 and "learnt from is all on the side of validation" in capsys.readouterr().out
    file = write_lines(tmp_path / "again.jsonl", records)
    stream = batches.Conversations(file, *tokenizer_of("chatml"), 99, conversations.Options(streaming=True), 1)
    stream.chunk_size = 5
    assert len(answers(stream.next(12), tokenizer_of("chatml")[0])) == 12


def test_answers_that_a_template_writes_otherwise_later_are_counted(prepared, capsys):
    path = prepared([LEARNT["rewritten"][1], turns("what", "a mouse")], "thoughts")
    assert json.loads((path / "meta.json").read_text())["unlearnt"] == 1
    assert "1 answers are given and not learnt: the chat template writes them otherwise" in capsys.readouterr().out


# ---- data sets by name -----------------------------------------------------------------------------------------------


def test_a_name_under_data_is_a_source_of_records(elsewhere, tok, tokenizer_of):
    records = simple("named", 12)
    content = f"RECORDS = {[{'messages': r} for r in records]!r}\n\n"
    place(elsewhere, "mine", content + "def records(streaming=False):\n    return iter(RECORDS)\n")
    place(elsewhere, "prose", "def main():\n    pass\n")
    chats = [records_of.holds_chat(name) for name in ("mine", "mine:2,a.jsonl:1", "prose", "mine,prose", "nosuch")]
    assert chats == [True, True, False, False, False]
    for streaming in (False, True):
        options = conversations.Options(streaming=streaming)
        have = batches.Conversations("mine", *tokenizer_of("chatml"), 99, options, 1)
        have.chunk_size = 12
        assert sorted(answers(have.next(12), tok)) == sorted(r[1]["content"] for r in records[:-1])
    there = sentence(records_of.find_records, "prose").partition(" or .csv file, or ")[2].split(", ")
    assert "mine" in there and "prose" not in there


@pytest.mark.parametrize("name", ["alpaca", "gsm8k", "opc_sft", "smoltalk", "tulu3"])
def test_a_file_beside_prepare_py_goes_before_the_hub(elsewhere, name):
    """And its lines are part of what the token files are known by."""
    place(elsewhere, name, (CODE / "data" / name / "prepare.py").read_text())
    assert records_of.find_records(name)[1] == "hub"
    file = elsewhere / "data" / name / "train.jsonl"
    record = {"prompt": "what", "response": "a mouse"}
    write_lines(file, [record])
    for streaming in (False, True):
        records, digest, home = records_of.find_records(name, streaming)
        assert list(records) == [record] and digest == records_of.file_digest(file) and home == file.parent


def test_chat_jsonl_is_no_data_set_by_itself(elsewhere):
    place(elsewhere, "chat_jsonl", (CODE / "data/chat_jsonl/prepare.py").read_text())
    assert "give the file itself" in sentence(records_of.find_records, "chat_jsonl")


def test_the_command_line_makes_the_token_files_that_training_reads(tokenizer_of, tmp_path, monkeypatch, capsys):
    lines, (tok, path) = write_lines(tmp_path / "talks.jsonl", talks.talks(8)), tokenizer_of("chatml")
    (path / "config.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["prepare.py", f"--file={lines}", f"--tokenizer={path}", "--workers=1"])
    conversations.main("chat_jsonl", "")
    made = Path(capsys.readouterr().out.splitlines()[-1])
    assert (made / "meta.json").is_file() and made == conversations.directory_of(lines, tok, "keep")
