"""Zero-shot texts: detokenized as MDLM's code does, cut as stated to the token, and measured on those very tokens."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import torch

import eval as evaluation
import mdlm
from model import Config, Transformer
from nanodlm import checkpoint as ckpt
from nanodlm import corpus
from nanodlm import tokenizer as tokenizers

ROOT = Path(__file__).resolve().parent.parent
TIKTOKEN_FILES = ROOT.parent / "shared" / "data" / "tiktoken_cache"
spec = importlib.util.spec_from_file_location("prepare_zeroshot", ROOT / "data/zeroshot/prepare.py")
zeroshot = importlib.util.module_from_spec(spec)
spec.loader.exec_module(zeroshot)

CHARS = tokenizers.load({"kind": "char", "chars": "\n abcdefgh\u00e9?"})
EOS = CHARS.eos_id


def save(path, algorithm="mdlm", tok=CHARS, files=None):
    """A tiny checkpoint with random weights."""
    torch.manual_seed(1)
    config = Config(tok.vocab_size, seq_len=8, n_layer=1, n_head=2, n_embd=16, causal=algorithm == "ar")
    weights = {name: torch.randn_like(p) * 0.3 for name, p in Transformer(config).named_parameters()}
    ckpt.save(path, weights, config, tok, files, algorithm, {"dataset": "zeroshot", "seq_len": 8})
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save(tmp_path_factory.mktemp("model") / "mdlm")


def write(path, texts, field="text"):
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts))
    return path


def run(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["prepare.py", *map(str, args)])
    zeroshot.main()


def made(directory):
    """(what val.bin holds as lists, meta)."""
    meta = corpus.load_meta(directory)
    return corpus.load_tokens(directory, "val", meta).tolist(), meta


@pytest.fixture
def make(tmp_path, checkpoint, monkeypatch):
    """Prepare AG News, whose texts stay as they are, from these texts; with the tokenizer of characters."""

    def make(texts, *options, name="ag_news", field="text"):
        source = write(tmp_path / "texts.jsonl", texts, field)
        run(monkeypatch, name, f"--source={source}", f"--checkpoint={checkpoint}", f"--out={tmp_path}", *options)
        return made(tmp_path / name)

    return make


# ---- detokenizers: expected by hand from what MDLM's dataloader.py says ----------------------------------------------


@pytest.mark.parametrize(
    "name, text, expected",
    [
        ("wikitext", " = = Early life = = \n", " == Early life ==\n"),
        ("wikitext", " = Robert Boulter = \n", " = Robert Boulter =\n"),
        ("wikitext", "a 3 @,@ 500 @-@ ton ship of 2 @.@ 5 m", "a 3,500-ton ship of 2.5 m"),
        ("wikitext", 'He said : " No , never ! " ( or so ) .', 'He said: "No, never!" (or so) .'),
        ("wikitext", "the ship 's crew ; the dogs ' tails", "the ship's crew; the dogs' tails"),
        ("wikitext", "at 20 ° C [ sic ]", "at 20°C [sic]"),
        ("wikitext", "wait . . . what", "wait. .. what"),  # an oddity
        ("wikitext", "", ""),
        ("ptb", "the company 's N shares were n't sold", "the company's 1 shares weren't sold"),
        ("ptb", "<unk> paid $ N million or N N", "? paid $1 million or 1 N"),  # none behind the last
        ("ptb", "rose N N N times", "rose 1 1 1 times"),
        ("ptb", "the sellers ' and\\/or buyers ' # N", "the sellers' and/or buyers' # N"),
        ("lm1b", 'He said : " It \'s fine , really . "', 'He said: "It\'s fine, really."'),
        ("lm1b", "Is it ( or not ) true ?", "Is it (or not) true?"),
        ("lm1b", "See http : / / a.b / c ; it costs $ 5 .", "See http://a.b/c; it costs $5."),
        ("lm1b", "Wow ! That is 1 / 2 of £ 3 !", "Wow! That is 1/2 of £3!"),
        ("lambada", "  \u201cHello,\u201d she said. ", '\n"Hello," she said.'),
        ("lambada", "", "\n"),
        ("ag_news", "Fears for T N pension ( Reuters ) .", "Fears for T N pension ( Reuters ) ."),
        ("arxiv", "we ( see \u201c a \u201d ) find N ( 1 ) .", "we (see \u201c a \u201d) find 1 (1) ."),
        ("arxiv", "is it 5 , ?", "is it 5,?"),  # in WikiText's order, then LM1B's
        ("pubmed", "it is 5 @.@ 1 mm , and ' so ' ends .", "it is 5.1 mm, and'so' ends."),  # an oddity
    ],
)
def test_texts_are_detokenized_as_mdlm_does(name, text, expected):
    assert zeroshot.detokenize(text, zeroshot.SOURCES[name][3]) == expected and len(zeroshot.SOURCES) == 7


# ---- layouts ---------------------------------------------------------------------------------------------------------

TEXTS = ["abc", "", "defgh", "b\u00e9a"]  # 11 characters of 12 bytes


def ids(text):
    """Ids of a text in which | is an end-of-text."""
    return [EOS if c == "|" else CHARS.encode(c)[0] for c in text]


WRAP = "nothing between them, in windows of begin-of-text, {} tokens and end-of-text; begin-of-text "


@pytest.mark.parametrize(
    "options, rows, size, policy",
    [
        ("--seq_len=6", "|abcd| |efgh|", 8 / 12, WRAP.format(4) + "counts, too"),  # béa is less than a window
        ("--seq_len=5", "|abc| |def| |ghb|", (8 + 4 / 3) / 15, WRAP.format(3)),  # and here a third of it is in one
        ("--seq_len=6 --begin=given", "|abcd| |efgh|", 8 / 10, WRAP.format(4) + "is given"),
        ("--seq_len=5 --max_documents=1", "|abc|", 3 / 5, WRAP.format(3)),
        # end-of-text behind every document, even an empty one, and of the last one of the four tokens béa|
        ("--packing=wrap_eos --seq_len=8", "|abc||d| |efgh|b|", (4 + 1 + 6 + 5 / 4) / 16, "joined with end-of-text"),
        ("--packing=documents --seq_len=6", "|abc|| |defg| |béa||", (3 + 4 + 4) / 16, "at most 4 tokens, end-of-text"),
        ("--packing=stream", "abc|defgh|béa|", (12 + 3) / 14, "in windows without begin-of-text"),
    ],
)
def test_a_layout_is_as_its_policy_says_and_its_bytes_are_those_of_its_tokens(make, options, rows, size, policy):
    found, meta = make(TEXTS, *options.split())
    stream = "stream" in options
    assert found == (ids(rows) if stream else [ids(row) for row in rows.split()])
    assert meta["bytes_per_token"] == size and policy in meta["policy"]
    assert meta["documents"] == (1 if "max_documents" in options else 4)
    facts = () if stream else (len(found[0]), int("given" in options), "packing=documents" in options)
    assert tuple(meta[key] for key in ("row_len", "prompt_len", "padded") if key in meta) == facts


def test_the_lengths_of_documents_go_with_them(make, tmp_path):
    make(TEXTS, "--packing=documents", "--seq_len=6")
    assert np.fromfile(tmp_path / "ag_news/val.length.bin", "<i8").tolist() == [5, 6, 5]
    assert make(["abcdefgh" * 3])[1]["row_len"] == 8  # windows are as long as the checkpoint's
    assert {p.name for p in (tmp_path / "ag_news").iterdir()} == {"val.bin", "meta.json"}


@pytest.mark.skipif(not TIKTOKEN_FILES.is_dir(), reason="tiktoken's GPT-2 files are not in ../shared")
def test_gpt2s_tokens_are_the_default_and_one_of_them_both_begins_and_ends(tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(TIKTOKEN_FILES))
    texts = ["the company 's N shares", "were n't sold <unk>"]
    source = write(tmp_path / "a.jsonl", texts, "sentence")
    run(monkeypatch, "ptb", f"--source={source}", f"--out={tmp_path}", "--seq_len=5")
    rows, meta = made(tmp_path / "ptb")
    gpt2 = tokenizers.load({"kind": "tiktoken", "name": "gpt2"})
    first, second = gpt2.encode("the company's 1 shares"), gpt2.encode("weren't sold?")
    flat = [*first, *second]
    assert gpt2.decode(flat) == "the company's 1 sharesweren't sold?"  # PTB's lines have no space at their ends
    assert rows == [[50256, *flat[i : i + 3], 50256] for i in range(0, len(flat) // 3 * 3, 3)]
    assert meta["tokenizer"] == {"kind": "tiktoken", "name": "gpt2"} and meta["vocab_size"] == 50304


def test_a_bpe_travels_with_the_text(tmp_path, monkeypatch):
    bpe = ROOT / "data" / "pydocs"
    tok = tokenizers.load({"kind": "bpe"}, bpe)
    path = save(tmp_path / "model", tok=tok, files=bpe)
    source = write(tmp_path / "a.jsonl", ["the function returns a list of strings"])
    run(monkeypatch, "ag_news", f"--source={source}", f"--out={tmp_path}", f"--checkpoint={path}", "--seq_len=5")
    rows, meta = made(tmp_path / "ag_news")
    flat = tok.encode("the function returns a list of strings")
    assert rows == [[tok.eos_id, *flat[i : i + 3], tok.eos_id] for i in range(0, len(flat) // 3 * 3, 3)]
    assert tokenizers.alike(corpus.load_tokenizer(tmp_path / "ag_news", meta), tok)


def test_a_frame_of_the_tokenizers_own_takes_the_place_of_end_of_text():
    given = np.array([5, 6, 7, 8, 9]), np.array([2, 3]), np.array([4.0, 6.0])
    rows, lengths, size = zeroshot.lay_out(*given, "wrap", 2, (1,), (2,))
    assert rows.tolist() == [[1, 5, 6, 2], [1, 7, 8, 2]] and lengths.tolist() == [4, 4] and size == 8


# ---- sources ---------------------------------------------------------------------------------------------------------


def test_a_text_file_a_parquet_file_and_jsonl_lines_give_the_same(make, tmp_path, monkeypatch, checkpoint):
    import pyarrow
    import pyarrow.parquet

    rows, _ = make(["abc ?", "de", "gh"], "--seq_len=5", name="ptb", field="sentence")
    (tmp_path / "ptb.txt").write_text(" abc ?\nde\n gh \n")
    texts = pyarrow.table({"sentence": ["abc ?", "de", "gh"]})
    pyarrow.parquet.write_table(texts, tmp_path / "a.parquet")
    for file in ("ptb.txt", "a.parquet"):
        options = [f"--source={tmp_path / file}", f"--checkpoint={checkpoint}", f"--out={tmp_path / file}.out"]
        run(monkeypatch, "ptb", *options, "--seq_len=5")
        assert made(Path(f"{tmp_path / file}.out") / "ptb")[0] == rows


def test_of_a_directory_the_splits_files_are_read_and_wikitext_keeps_its_line_ends(tmp_path, monkeypatch, checkpoint):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/wiki.train.raw").write_text("hhhhhhhhh\n")
    (tmp_path / "raw/wiki.valid.raw").write_text(" \n a b ? c \n \n")
    run(monkeypatch, "wikitext", f"--source={tmp_path / 'raw'}", f"--checkpoint={checkpoint}", f"--out={tmp_path}")
    rows, meta = made(tmp_path / "wikitext")
    assert rows == [ids("| a b? |")]  # the c, and its line's end, are less than a window
    assert meta["source"] == str(tmp_path / "raw")


def test_offline_one_sentence_names_the_text_and_the_way_out(tmp_path, monkeypatch, checkpoint, cold):
    cold.stop()
    with pytest.raises(SystemExit, match="data set ptb-text-only/ptb_text_only@refs/convert/parquet: the hub") as e:
        run(monkeypatch, "ptb", f"--checkpoint={checkpoint}", f"--out={tmp_path}")
    assert e.value.code.endswith("; or pass a copy with --source=FILE_OR_DIRECTORY")
    assert "\n" not in e.value.code and not list(tmp_path.iterdir())


def test_without_gpt2s_vocabulary_or_the_right_name_one_sentence_says_what_to_pass(tmp_path, monkeypatch):
    def offline(*args):
        raise ConnectionError("no network")

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    with pytest.raises(SystemExit, match=r"set TIKTOKEN_CACHE_DIR to a copy \(no network\), or pass a --checkpoint"):
        run(monkeypatch, "ptb", f"--out={tmp_path}")
    with pytest.raises(SystemExit, match="no data set 'wikitex': did you mean wikitext"):
        run(monkeypatch, "wikitex")


def test_the_hubs_rows_are_read_as_a_stream(tmp_path, monkeypatch, checkpoint, cold):
    path = cold.directory / "datasets/EleutherAI/lambada_openai/data"
    path.mkdir(parents=True, exist_ok=True)
    texts = [{"text": text} for text in ("  abc ", "de")]
    (path / "lambada_test.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    run(monkeypatch, "lambada", f"--checkpoint={checkpoint}", f"--out={tmp_path}")
    assert made(tmp_path / "lambada")[0] == [ids("|\nabc\nd|")]
    assert not list(Path(os.environ["HF_HOME"]).rglob("*.arrow"))


@pytest.mark.parametrize(
    "texts, options, sentence",
    [
        (["ab"], [], "ag_news has 2 tokens, less than a window of seq_len=8"),
        (["ab"], ["--seq_len=2"], "seq_len=2 has no room"),
        (["xyz"], [], "ag_news: the text has 'x'"),
        (["ab"], ["--max_documents=0"], "max_documents=0 leaves nothing"),
        ([None], [], "has a text under 'text', not"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence_and_leaves_what_was_there(make, tmp_path, texts, options, sentence):
    make(TEXTS, "--seq_len=6")
    before = {p.name: p.read_bytes() for p in (tmp_path / "ag_news").iterdir()}
    with pytest.raises(SystemExit, match=sentence):
        make(texts, *options)
    assert {p.name: p.read_bytes() for p in (tmp_path / "ag_news").iterdir()} == before


def test_the_script_runs_as_users_run_it(tmp_path, checkpoint):
    source = write(tmp_path / "a.jsonl", ["abcdefgh"])
    command = [sys.executable, ROOT / "data/zeroshot/prepare.py", "ag_news", f"--source={source}", f"--out={tmp_path}"]
    done = subprocess.run([*command, f"--checkpoint={checkpoint}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "8 tokens of 0.750 bytes" in done.stdout and "1 rows here and 7,600 as published" in done.stdout


# ---- measured --------------------------------------------------------------------------------------------------------

LONG = ["abc", "defgh", "b\u00e9a gh", "hgfedcba", "a", "cab " * 5]


def measure(data, tmp_path, *checkpoints):
    out = tmp_path / "numbers.json"
    paths = ",".join(map(str, checkpoints))
    evaluation.main([f"--checkpoint={paths}", f"--dataset={data}", "--samples=3", "--device=cpu", f"--out={out}"])
    return [next(iter(r["likelihood"].values())) for r in json.loads(out.read_text())]


def left_to_right(path, row, begin=0):
    """-log p(row[begin:] | row[:begin]) by hand, in nats."""
    model = ckpt.load(path).model
    row = torch.tensor([row])
    inputs = torch.cat([torch.tensor([[CHARS.mask_id]]), row[:, :-1]], 1)
    with torch.no_grad():
        logits = model(inputs).double()
    logits[..., CHARS.mask_id] = -math.inf
    return -logits.log_softmax(-1).gather(-1, row[..., None])[0, begin:, 0].sum().item()


@pytest.mark.parametrize("options, given", [("--begin=counted", 0), ("--begin=given", 1), ("--packing=documents", 0)])
def test_eval_measures_all_tokens_of_each_row_and_no_padding(make, tmp_path, checkpoint, options, given):
    rows, meta = make(LONG, options)
    padded = options == "--packing=documents"
    lengths = np.fromfile(tmp_path / "ag_news/val.length.bin", "<i8").tolist() if padded else [8] * 7
    assert sorted(set(lengths)) == ([3, 5, 7, 8] if padded else [8])
    ar = save(tmp_path / "ar", "ar")
    nelbo, exact = measure(tmp_path / "ag_news", tmp_path, checkpoint, ar)
    count = sum(lengths) - given * len(rows)
    expected = sum(left_to_right(ar, row[:n], given) for row, n in zip(rows, lengths)) / count
    assert exact["nats_per_token"] == pytest.approx(expected, rel=1e-5) and exact["windows"] == len(rows)
    assert exact["bits_per_byte"] == pytest.approx(expected / math.log(2) / meta["bytes_per_token"], rel=1e-5)
    model, alone = ckpt.load(checkpoint).model, 0.0
    for i, (row, n) in enumerate(zip(rows, lengths)):
        x, maskable = torch.tensor([row[:n]]), torch.arange(n)[None] >= given
        alone += mdlm.nelbo(model, x, mask_id=CHARS.mask_id, maskable=maskable, samples=3, first=i).item()
    assert nelbo["nats_per_token"] == pytest.approx(alone / count, rel=1e-5)
