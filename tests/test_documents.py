"""One's own text: what is read of files, what is held out, and that its ids are those of the whole."""

import gzip
import json
import sys

import datasets
import numpy as np
import pytest
import tokenizers as T
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st

from model import Config, Transformer
from nanodlm import checkpoint as ckpt
from nanodlm import corpus, documents
from nanodlm import tokenizer as tokenizers
from nanodlm.files import ROOT, load_module
from nanodlm.records import LeftOut, Reasons

CONTENT = {  # a file, and its documents, or why there is none
    "a.txt": (b"one\r\ntwo\r", ["one\ntwo\n"]),
    "b.md": (b"\xef\xbb\xbf# caf\xc3\xa9", ["# caf\u00e9"]),
    "c.txt": ("naïve ☃".encode("utf-16"), ["naïve ☃"]),
    "d.txt.gz": (gzip.compress(b"packed"), ["packed"]),
    "e.jsonl": (b'{"text": "x"}\n\n{"content": "y"}\n{"z": 1}\nno\n', ["x", "y", "it has no text", "it is no JSON"]),
    "f.jsonl.gz": (gzip.compress(b'{"text": "\\ud83d"}'), ["it holds half a character"]),
    "g.txt": (b"fine\ncaf\xe9", ["it is not UTF-8: byte 8, line 2"]),
    "h.txt": (b"a\nb\0", ["it holds null bytes: line 2"]),
    "i.txt.gz": (b"no gzip", ["it cannot be read"]),
    "j.txt": (b"", [""]),
    "k.txt": (b"x" * 10**7, ["x" * 10**7]),
    "l.jsonl.gz": (gzip.compress(b'{"text": "z"}\n' * 9)[:-9], [*"z" * 9, "it cannot be read"]),
    "L.TXT": ("\u2603".encode("utf-32"), ["\u2603"]),
    "m.txt.gz": (b"broken", ["it cannot be read: Error -3"]),
    "n.jsonl.gz": (b"broken", ["it cannot be read: Error -3"]),
    "o.parquet": (b"PAR1", ["it is no Parquet file"]),
}


BROKEN = bytearray(gzip.compress(b"packed"))
BROKEN[10:] = b"\xff" * (len(BROKEN) - 10)
CONTENT |= {name: (bytes(BROKEN), why) for name, (data, why) in CONTENT.items() if data == b"broken"}


@pytest.fixture
def folder(tmp_path):
    """All of them, with what is passed over."""
    for i, (name, (data, _)) in enumerate(CONTENT.items()):
        place = tmp_path / "files" / ("sub" if i % 2 else "")
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    (tmp_path / "files/.hidden.txt").write_text("hidden")
    (tmp_path / "files/prog.py").write_text("pass")
    (tmp_path / "elsewhere.txt").write_text("elsewhere")
    (tmp_path / "files/link.txt").symlink_to(tmp_path / "elsewhere.txt")
    return tmp_path / "files"


def test_every_file_gives_its_documents_or_says_why_not(folder):
    files, others = documents.find([folder, folder / "a.txt"])
    assert {f.name for f in files} == set(CONTENT) and len(files) == len(CONTENT)
    assert others == {"of .py": 1, "links": 1}
    found = {}
    for where, text in documents.read(files):
        name = where.partition(", ")[0].rpartition("/")[2]
        found.setdefault(name, []).append(str(text))
    for name, (_, wanted) in CONTENT.items():
        assert len(found[name]) == len(wanted)
        assert all(text.startswith(w) and (w or not text) for text, w in zip(found[name], wanted)), name
    latin = dict(documents.read([folder / "g.txt"], encoding="latin-1"))
    assert list(latin.values()) == ["fine\ncaf\u00e9"]
    marked = [folder / "sub/b.md", folder / "c.txt"]  # a mark goes before what is asked for
    assert [text for _, text in documents.read(marked, encoding="latin-1")] == ["# caf\u00e9", "naïve ☃"]
    with pytest.raises(ValueError, match=r"prog.py is none of .txt, .md, .jsonl, .parquet, or one of the first"):
        documents.find([folder / "prog.py"])
    (packed := folder / "t.parquet.gz").touch()
    with pytest.raises(ValueError, match="t.parquet.gz is none of"):
        documents.find([packed])
    packed.unlink()
    with pytest.raises(FileNotFoundError, match="there is no file or folder 'nowhere'"):
        documents.find(["nowhere"])


def test_rows_of_a_table_are_documents_under_a_key_of_ones_own(tmp_path):
    datasets.Dataset.from_list([{"body": "one"}, {"body": "two"}]).to_parquet(tmp_path / "t.parquet")
    said = [text for _, text in documents.read([tmp_path / "t.parquet"], "body")]
    assert said == ["one", "two"]
    assert isinstance(next(documents.read([tmp_path / "t.parquet"]))[1], LeftOut)


def held_of(texts, share=0.05):
    return documents.Held(lambda: enumerate(texts), share, Reasons("mine"))


def test_documents_are_held_out_by_their_hash_once_and_on_one_side_alone():
    texts = [f"document {i}" for i in range(200)]
    held = held_of([*texts, texts[3], "", " \n"], 0.1)
    train, val = set(held("train")), set(held("val"))
    assert train | val == set(texts) and not train & val and 5 < len(val) < 40
    assert (held.counts["documents"], held.counts["copies"], held.counts["empty"]) == (200, 1, 2)
    assert len([*held("all")]) == 200
    more = held_of([*texts, *(f"another {i}" for i in range(50))], 0.1)
    assert val <= set(more("val")) and train <= set(more("train"))  # each stays where it was
    for share in (1e-9, 1 - 1e-9):
        some = held_of(["a", "b"], share)
        assert len([*some("train")]) == len([*some("val")]) == 1


def test_of_a_single_document_the_end_is_held_out():
    text = "".join(f"line {i}\n" for i in range(100))
    held = held_of([text], 0.1)
    (train,), (val,) = held("train"), held("val")
    assert train + val == text and train.endswith("\n") and 0.05 < len(val) / len(text) < 0.15
    held = held_of(["x" * 100])
    assert [*held("train")] == ["x" * 95] and [*held("val")] == ["x" * 5]
    held = held_of(["# Title\n" + "word " * 1000])  # its only line end is far from the end
    assert 0.9 < len([*held("train")][0]) / 5008 < 0.96
    with pytest.raises(SystemExit, match="mine has no document to learn from"):
        held_of(["", " "])


LATER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
lines = st.lists(
    st.sampled_from(["the fox", "\n", "\n\n", " ", "a", "12", "  x", "it's", "\u00e9", "\t", "\r", "."]), max_size=60
)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(lines.map("".join), st.integers(1, 40))
def test_a_text_cut_in_pieces_has_the_ids_of_the_whole(shipped, text, size):
    parts = [*corpus.pieces(text, size)]
    assert "".join(parts) == text
    for encode in shipped:
        assert sum(map(encode, parts), []) == encode(text)


def test_no_piece_is_long_whatever_the_text():
    for text in ("x" * 1000, "a b " * 250, "a\n\n\nb" * 200, " " * 1000, "", "x" * 100, "x" * 101):
        parts = [*corpus.pieces(text, 50, 100)]
        assert "".join(parts) == text and max(map(len, parts)) <= 100 and (all(parts) or not text)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """Ids by byte-level BPEs: ours, one through transformers, and one with the later pattern of Llama 3 and Qwen."""
    path = tmp_path_factory.mktemp("zoo")
    zoo.write(path, "byte-level")
    hf = tokenizers.load({"kind": "hf"}, path)
    later = T.Tokenizer.from_file(str(ROOT / "checkpoints/pydocs_mdlm/tokenizer.json"))
    cut = T.pre_tokenizers.Split(T.Regex(LATER), "isolated")
    later.pre_tokenizer = T.pre_tokenizers.Sequence([cut, T.pre_tokenizers.ByteLevel(False, use_regex=False)])
    ours = tokenizers.load({"kind": "bpe"}, ROOT / "checkpoints/pydocs_mdlm")
    return ours.encode, hf.encode, lambda text: later.encode(text).ids


@pytest.fixture
def prepare(monkeypatch):
    """The command line of data/text/prepare.py."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["prepare.py", *map(str, words)])
        load_module("data.text.prepare", ROOT / "data/text/prepare.py").main()

    return run


@pytest.mark.parametrize("name", ["bpe:300", "char", "checkpoint"])
def test_ones_own_text_becomes_a_data_set_whatever_the_tokenizer(prepare, tmp_path, capsys, name):
    """And nothing that is written in it is a control token."""
    text = "".join(f"the fox </s> {i} <|im_end|>\n" for i in range(400))
    (tmp_path / "notes.txt").write_text(text)
    if name == "checkpoint":
        zoo.write(tmp_path / "made", "byte-level", eos_token="</s>", mask_token="<|mask|>")
        (tmp_path / "made/config.json").write_text("{}")
        name = tmp_path / "made"
    prepare(tmp_path / "notes.txt", f"--tokenizer={name}", f"--name={tmp_path}/mine")
    assert "1 documents in 1 files; left out: 0 copies, 0 empty, 0 others" in capsys.readouterr().out
    meta = corpus.load_meta(str(tmp_path / "mine"), "train", "val")
    tok = corpus.load_tokenizer(str(tmp_path / "mine"), meta)
    parts = [corpus.load_tokens(str(tmp_path / "mine"), split, meta) for split in ("train", "val")]
    assert "".join(tok.decode(ids[:-1].tolist()) for ids in parts) == text
    for ids in parts:
        assert ids[-1] == tok.eos_id and not np.isin(ids[:-1], [*tok.controls, tok.eos_id, tok.mask_id]).any()
    size = len(text) - int(len(text) * 0.95)
    assert abs(meta["bytes_per_token"] * len(parts[1]) - size) < 40 and json.dumps(meta["sources"])


def test_data_are_replaced_when_the_new_ones_are_whole_and_nothing_else_is_touched(prepare, tmp_path):
    file, mine = tmp_path / "a.txt", tmp_path / "mine"
    file.write_text("the fox\n" * 99)
    (mine / "sub").mkdir(parents=True)
    (mine / "notes.txt").write_text("my own")
    prepare(file, f"--name={mine}", "--tokenizer=bpe:300")
    prepare(file, f"--name={mine}", "--tokenizer=char")
    assert sorted(p.name for p in mine.iterdir()) == ["meta.json", "notes.txt", "sub", "train.bin", "val.bin"]
    before = {p: p.read_bytes() for p in mine.glob("*.*")}
    made = tmp_path / "made"  # a checkpoint whose characters are others
    made.mkdir()
    (made / "config.json").write_text(json.dumps({"model": {}, "tokenizer": {"kind": "char", "chars": "abc"}}))
    with pytest.raises(SystemExit, match="the text has '.n', which is outside the 3 characters"):
        prepare(file, f"--name={mine}", f"--tokenizer={made}")
    assert before == {p: p.read_bytes() for p in mine.glob("*.*")}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "made", "mine"]


def test_roles_that_only_config_json_says_stay_with_the_data(prepare, tmp_path):
    (tmp_path / "a.txt").write_text("the fox\n" * 99)
    zoo.write(tmp_path / "made", "byte-level", eos_token="</s>")
    ids = json.loads((tmp_path / "made/tokenizer.json").read_text())["added_tokens"]
    mask, end = (next(t["id"] for t in ids if t["content"] == word) for word in ("[CLS]", "<|im_end|>"))
    roles = {"mask_token_id": mask, "eos_token_id": [end]}
    (tmp_path / "made/config.json").write_text(json.dumps(roles))
    net = Transformer(Config(400, 8, 1, n_layer=1, n_head=8))
    tok = tokenizers.load({"kind": "hf"}, tmp_path / "made")
    ckpt.save(tmp_path / "new", dict(net.named_parameters()), net.config, tok, tmp_path / "made", "mdlm", {})
    new = ckpt.load(tmp_path / "new").tokenizer  # learnt from data in these tokens
    assert (new.mask_id, new.eos_id, new.stop_ids) == (mask, end, tok.stop_ids)
    (tmp_path / "made/config.json").write_text(json.dumps(roles | {"architectures": ["A2DQwen3LMHeadModel"]}))
    prepare(tmp_path / "a.txt", f"--name={tmp_path}/mine", f"--tokenizer={tmp_path}/made")
    meta = corpus.load_meta(str(tmp_path / "mine"), "train", "val")
    assert (meta["mask_id"], meta["eos_id"]) == (mask, end)


def test_what_cannot_be_prepared_is_one_sentence(prepare, tmp_path):
    file, out = tmp_path / "a.txt", f"--name={tmp_path}/m"
    file.write_text("a b")
    bad = tmp_path / "b.txt"
    bad.write_bytes(b"\xe9")
    for name, found in (("other", "meta.json"), ("made", "config.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / found).write_text("{}")
    for words, why in (
        ((file, "--name=pydocs"), "has a prepare.py of its own, or what another one made; choose another --name"),
        ((file, f"--name={tmp_path}/other"), "or what another one made; choose another --name"),
        ((file, f"--name={tmp_path}/made"), "made is a checkpoint; choose another --name"),
        ((file, "--name=.."), "'..' is no name for a data set"),
        ((tmp_path, out, "--tokenizer=nowhere"), "no checkpoint in 'nowhere'"),
        ((file, out, "--tokenizer=bpe:1"), "tokenizer=bpe:1: bpe:N takes a number of tokens from 257 to 65534"),
        ((file, bad, out, "--strict"), f"m, {bad}: it is not UTF-8: byte 0, line 1; --encoding="),
        ((bad, out), "m has no document to learn from; 1 left out: it is not UTF-8"),
        ((tmp_path / "none", out), "there is no file or folder"),
        (("", out), "'' is no file or folder"),
        ((file, out, "--encoding=klingon"), "unknown encoding: klingon"),
    ):
        with pytest.raises(SystemExit) as e:
            prepare(*words)
        assert why in str(e.value)


def test_what_is_there_stays_until_all_is_made_and_then_goes(prepare, tmp_path):
    """Not a file of another kind, though; and nothing beside it, which may be another disk."""
    file, out = tmp_path / "a.txt", tmp_path / "mine"
    file.write_text("the fox\n" * 200)
    prepare(file, "--tokenizer=bpe:300", f"--name={out}")
    (out / "notes.md").write_text("mine")
    (tmp_path / "mine.part").mkdir()
    (tmp_path / "mine.part/notes.md").write_text("mine, too")
    before = {f.name: f.read_bytes() for f in out.iterdir()}
    file.write_text("a\0b")
    with pytest.raises(SystemExit):
        prepare(file, "--tokenizer=char", f"--name={out}")
    assert {f.name: f.read_bytes() for f in out.iterdir()} == before
    file.write_text("a mouse\n" * 200)
    prepare(file, "--tokenizer=char", f"--name={out}")
    assert sorted(f.name for f in out.iterdir()) == ["meta.json", "notes.md", "train.bin", "val.bin"]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.txt", "mine", "mine.part"]
    assert (tmp_path / "mine.part/notes.md").read_text() == "mine, too"
    for name, why in (
        (ROOT / "data/pydocs", "has a prepare.py"),
        (ROOT / "checkpoints/pydocs_mdlm", "is a checkpoint"),
    ):
        with pytest.raises(SystemExit, match=why):
            prepare(file, f"--name={name}/")
