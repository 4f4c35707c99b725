"""A text being denoised is shown as what it will be: whatever the tokenizer, whatever the order, on any terminal."""

import contextlib
import io
import json
import os
import random
import re
from pathlib import Path
from unittest import mock

import matplotlib
import pytest
import tokenizers as hf
import torch
import transformers
import wcwidth
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from tokenizers import decoders, models, normalizers, pre_tokenizers

from mdlm import Output
from nanodlm import console, replay
from nanodlm import tokenizer as tokenizers

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("TIKTOKEN_CACHE_DIR", ROOT.parent / "shared/data/tiktoken_cache"))
WORDS = [
    "東京は",
    "مرحبا",
    "👩‍👩‍👧",
    "🇩🇪",
    "é",
    "e\u0301",
    "the",
    " ",
    "  ",
    "\n",
    "ไทย",
    "ß",
    "\u200d",
    ".",
    "class Stack",
    "🌊",
    "1",
]
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map("".join) | st.text(min_size=1, max_size=12)


def released(directory, bpe, **special):
    """A tokenizer of the `tokenizers` library, as a released checkpoint has it."""
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, mask_token="<mask>", **special)
    fast.save_pretrained(directory)
    return tokenizers.load({"kind": "hf"}, directory)


def sentence_pieces(directory):
    """Llama's kind: a space is a part of the word behind it, of the first word none; unknown characters as bytes."""
    chars = sorted(set("".join(WORDS)) - {"東", "م", "🌊", " ", "\n"}) + ["▁", "▁the", "▁class"]
    vocab = {t: i for i, t in enumerate(["<unk>", *(f"<0x{b:02X}>" for b in range(256)), *chars])}
    bpe = hf.Tokenizer(models.BPE(vocab, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    bpe.decoder = decoders.Sequence(steps)
    return released(directory, bpe, unk_token="<unk>")


def word_pieces(directory):
    """BERT's kind: spaces stand between tokens, and in none."""
    chars = sorted(set("".join(WORDS)))
    vocab = {t: i for i, t in enumerate(["[UNK]", "the", "class", *chars, *(f"##{c}" for c in chars)])}
    bert = hf.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    bert.pre_tokenizer, bert.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    return released(directory, bert, unk_token="[UNK]")


def tiny_bytes(directory):
    """Byte-level, with hardly a token of more than one byte."""
    tokenizers.train_bpe(["the quick brown fox"], 260, directory / "tokenizer.json")
    return tokenizers.load({"kind": "bpe"}, directory)


def gpt2(directory):
    os.environ["TIKTOKEN_CACHE_DIR"] = str(CACHE)
    return tokenizers.load({"kind": "tiktoken", "name": "gpt2"})


KINDS = {f.__name__: f for f in (gpt2, tiny_bytes, sentence_pieces, word_pieces)}
KINDS["shipped"] = lambda directory: tokenizers.load({"kind": "bpe"}, ROOT / "checkpoints/pydocs_mdlm")
KINDS["chars"] = lambda directory: tokenizers.load({"kind": "char", "chars": "".join(sorted(set("".join(WORDS))))})


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request, tmp_path_factory):
    if request.param == "gpt2" and not CACHE.is_dir():
        pytest.skip("needs GPT-2's vocabulary: set TIKTOKEN_CACHE_DIR")
    return KINDS[request.param](tmp_path_factory.mktemp(request.param))


def pieces_of_page(page, k):
    """The pieces that the page shows of the first sample after step k, and of which step each is, None where given."""
    x = json.loads(re.search(r"const samples = (.*), \$ = id", page)[1])[0]
    now, when = list(x["start"]), [None] * len(x["start"])
    for t, changes in enumerate(x["steps"][:k]):
        for i, piece, p in changes:
            now[i], when[i] = piece, when[i] if p is None else t
    end = x["length"] if k == len(x["steps"]) else None
    return now[:end], when[:end]


@given(text=TEXTS, seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_text_is_shown_as_it_is_decoded_in_whatever_order_it_is_revealed(tokenizer, tmp_path_factory, text, seed):
    try:
        ids = tokenizer.encode(text)
    except ValueError:  # outside of a vocabulary of characters
        return
    order = random.Random(seed).sample(range(len(ids)), len(ids))
    given, order = order[: seed % 3], order[seed % 3 :]
    canvas = torch.tensor([i if n in given else tokenizer.mask_id for n, i in enumerate(ids)], dtype=torch.int64)
    trace, whole = [(k, n, ids[n], 0.5) for k, n in enumerate(order)], tokenizer.decode(ids)
    for k, (now, _) in enumerate(replay.frames(canvas, trace, tokenizer, len(ids))):
        assert [i for i, piece in enumerate(now) if piece is not None] == sorted(given + order[:k])
        assert "\ufffd" in whole or not any("\ufffd" in (piece or "") for piece in now)
    assert "".join(now) == whole
    out = Output([torch.tensor(ids)], [len(order)], [trace])
    page = tmp_path_factory.getbasetemp() / "page.html"
    replay.write_html(page, [canvas], out, tokenizer, "DATA")
    shown, when = pieces_of_page(page.read_text("utf-8"), len(order))
    assert "".join(shown) == replay.visible(whole)
    assert when == [order.index(n) if n in order else None for n in range(len(ids))]


PIECES = [  # of a text whose last token but one is hidden
    (sentence_pieces, "a 🌊 as", ["", "a", " ", "", "", "", "🌊", " ", None, "s"]),
    (word_pieces, "the class the", ["the", None, " the"]),
    (tiny_bytes, "a 🌊 as", ["a", " ", "", "", "", "🌊", " ", None, "s"]),
]


@pytest.mark.parametrize("kind, text, expected", PIECES)
def test_a_space_and_a_character_of_several_tokens_stand_where_they_end(tmp_path, kind, text, expected):
    tokenizer = kind(tmp_path)
    ids = tokenizer.encode(text)
    assert replay.pieces([*ids[:-2], tokenizer.mask_id, ids[-1]], tokenizer) == expected
    if "🌊" in text:
        third = expected.index("🌊") - 1
        shown = replay.pieces([*ids[:third], tokenizer.mask_id, *ids[third + 1 :]], tokenizer)
        assert re.sub("▒+", "▒", "".join("_" if p is None else p for p in shown)) == "a ▒_▒ as"


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True

    def screen(self, columns):
        """The lines that a terminal of so many columns shows of all that was written."""
        rows, y = [""], 0
        for code, text in re.findall(r"\033\[(\d*[FJm]|[\d;]+m)|(\n|[^\033\n]+)", self.getvalue()):
            if code.endswith("F"):
                y -= int(code[:-1])
            elif code == "J":
                del rows[y:]
                rows.append("")
            for c in text:
                if c == "\n" or wcwidth.wcswidth(rows[y] + c) > columns:
                    y += 1
                    rows += [""] * (y == len(rows))
                rows[y] += c.strip("\n")
        return rows


@given(text=TEXTS, seed=st.integers(0, 99), columns=st.integers(8, 30))
@settings(max_examples=40, deadline=None)
def test_the_terminal_holds_the_text_and_no_trail_of_older_lines(tokenizer, text, seed, columns):
    try:
        ids = tokenizer.encode(text)
    except ValueError:
        return
    order, terminal = random.Random(seed).sample(range(len(ids)), len(ids)), Terminal()
    size = {"COLUMNS": str(columns), "LINES": "1000"}
    with mock.patch.dict(os.environ, size), contextlib.redirect_stdout(terminal):
        watch = replay.live(tokenizer)
        for k in range(len(ids) + 1):
            hidden = set(order[k:])
            watch([torch.tensor([tokenizer.mask_id if n in hidden else i for n, i in enumerate(ids)])])
    shown = replay.visible(tokenizer.decode(ids)).replace("\t", " ").replace("\n", "")
    assert "".join(terminal.screen(columns)) == shown


def test_a_wide_character_takes_two_columns_and_an_accent_none():
    cells, lines = replay.layout(["ab", "中e", "\u0301中\n", "x"], 4)
    where = [(0, 0, "a", 0), (0, 1, "b", 0), (0, 2, "中", 1), (1, 0, "e\u0301", 1), (1, 1, "中", 2), (2, 0, "x", 3)]
    assert [*map(tuple, cells)] == where and lines == 3
    for seed in range(50):  # and no two signs at one place, whatever there is of them
        text = "x" + "".join(random.Random(seed).choices("a\té中\n🌊\xa0░", k=20))
        places = [(line, column) for line, column, _, _ in replay.layout([console.visible(text)], 7)[0]]
        assert len(set(places)) == len(places) == len(text) - text.count("\n"), text


HOSTILE = "\033]0;title\a\033[2J\r\0\x9b2J\u202eevil\u2066\x7f</script><script>alert(1)</script>"


def test_a_page_and_a_gif_show_what_a_model_writes_and_obey_none_of_it(tmp_path):
    tokenizer = tokenizers.load({"kind": "char", "chars": "".join(sorted(set(HOSTILE)))})
    ids = torch.tensor(tokenizer.encode(HOSTILE))
    canvas, trace = torch.full_like(ids, tokenizer.mask_id), [(n, n, int(i), 0.5) for n, i in enumerate(ids)]
    replay.write_html(tmp_path / "x.html", [canvas], Output([ids], [len(ids)], [trace]), tokenizer, HOSTILE)
    page = (tmp_path / "x.html").read_text("utf-8")
    assert not console.UNSEEN.search(page) and page.count("<script>") == page.count("</script>") == 1
    shown = "".join(pieces_of_page(page, len(ids))[0])
    assert shown.startswith("␛]0;title␇␛[2J␍␀\\x9b2J\\u202eevil\\u2066\\x7f</script>")
    replay.write_gif(tmp_path / "x.gif", canvas, trace, len(ids), tokenizer)
    with Image.open(tmp_path / "x.gif") as gif:
        assert gif.n_frames > 10
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.gif", "x.html"]


def test_the_page_is_whole_in_itself_and_has_what_its_script_asks_for():
    page = (ROOT / "nanodlm/replay.html").read_text("utf-8")
    assert all(page.count(word) == n for word, n in (("DATA", 1), ("NOTE", 1), ("TITLE", 2)))
    assert not re.search(r"(src|href)=|https?:|@import|url\(", page)
    assert set(re.findall(r'\$\("(\w+)"\)', page)) == set(re.findall(r'id="(\w+)"', page))


def test_what_a_font_cannot_draw_is_said_and_another_may_be_named(tmp_path, capsys):
    fonts = Path(matplotlib.get_data_path()) / "fonts/ttf"
    tokenizer = tokenizers.load({"kind": "char", "chars": "fox \u00e9\u6771\U0001f30a"})
    for text, font, lacking in (
        ("fox \u00e9", "", ""),
        ("fox \u6771\U0001f30a", "", "\u6771\U0001f30a (2 characters)"),
        ("fox \u00e9", str(fonts / "cmmi10.ttf"), "\u00e9\u2591 (2 characters)"),
    ):
        ids = torch.tensor(tokenizer.encode(text))
        trace = [(n, n, int(i), 0.5) for n, i in enumerate(ids)]
        canvas = torch.full_like(ids, tokenizer.mask_id)
        replay.write_gif(tmp_path / "x.gif", canvas, trace, len(ids), tokenizer, font=font)
        said = capsys.readouterr().out
        assert lacking in said and ("the font of the GIF cannot draw" in said) == bool(lacking)
    (tmp_path / "x.ttf").write_text("no font")
    with pytest.raises(SystemExit, match="x.ttf is no font file"):
        replay.load_font(str(tmp_path / "x.ttf"))


def test_a_letter_whose_shape_is_kept_is_the_letter_to_the_pixel():
    """At every part of a pixel, over others, with accents and signs that the font lacks."""
    font, _ = replay.load_font()
    write, images = replay.writer(font), [Image.new("RGB", (400, 60), "#16181d") for _ in range(2)]
    kept, plain = map(ImageDraw.Draw, images)
    for i, text in enumerate(["j", "W", " ", "e\u0301", "\u6771", "\u2591", "_", "W", "j"] * 6):
        at, colour = (3 + i * 7.03125, 10.0 + i % 3 * 9), ("#a3be8c", "#d8dee9")[i % 2]
        write(kept, *at, text, colour)
        plain.text(at, text, font=font, fill=colour)
    assert images[0].tobytes() == images[1].tobytes() != bytes(len(images[0].tobytes()))


GROWN = [  # of "fox": a step per line, from right to left
    [(0, 3, "s", 0.5, "insert"), (0, 0, "a", 0.5, "insert")],  # afoxs
    [(1, 4, "s", 0.5, "delete"), (1, 2, "i", 0.5), (1, 1, "f", 0.5, "delete")],  # aix
    [(2, 3, "e", 0.5, "insert"), (2, 0, "t", 0.5, "insert")],  # taixe
]
SEEN = ["fox", "afoxs", "aix", "taixe"]


def test_a_text_that_grows_and_shrinks_opens_and_closes_columns_everywhere(tmp_path):
    tokenizer = tokenizers.load({"kind": "char", "chars": "afoxiest"})
    canvas = torch.tensor(tokenizer.encode("fox"))
    trace = [(step, i, tokenizer.encode(c)[0], *rest) for events in GROWN for step, i, c, *rest in events]
    out = Output([torch.tensor(tokenizer.encode("taixe"))], [3], [trace])
    replay.write_html(tmp_path / "x.html", [canvas], out, tokenizer, "x")
    page = (tmp_path / "x.html").read_text("utf-8")
    assert ["".join(pieces_of_page(page, k)[0]) for k in range(4)] == SEEN
    replay.write_gif(tmp_path / "x.gif", canvas, trace, 5, tokenizer)
    with Image.open(tmp_path / "x.gif") as gif:
        assert gif.n_frames == 4
    terminal = Terminal()
    with contextlib.redirect_stdout(terminal):
        watch = replay.live(tokenizer)
        for text in SEEN:
            watch([torch.tensor(tokenizer.encode(text))])
    assert terminal.screen(80)[0] == "taixe" and "\033[9;31mf\033[0m" in terminal.getvalue()
    short = replay.unfold(canvas, trace, 2)  # cut behind two of five tokens
    assert "".join(replay.frames(*short[:2], tokenizer, short[2])[-1][0]) == "ta"
