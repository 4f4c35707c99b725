"""A text being denoised is shown as what it will be: whatever the tokenizer, whatever the order, on any terminal."""

import io
import json
import os
import random
import re
import shutil
import sys
from pathlib import Path

import pytest
import tokenizers as hf
import torch
import transformers
import wcwidth
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from mdlm import Output
from nanodlm import replay
from nanodlm import tokenizer as tokenizers

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("TIKTOKEN_CACHE_DIR", ROOT.parent / "shared/data/tiktoken_cache"))
WORDS = ["東京は", "مرحبا", "\U0001f469\u200d\U0001f469\u200d\U0001f467", "🇩🇪", "é", "e\u0301", "the", " ", "  ", "\n"]
WORDS += ["ไทย", "ß", "\u200d", ".", "class Stack", "🌊", "1"]
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


@given(text=TEXTS, columns=st.integers(4, 20))
@settings(max_examples=60, deadline=None)
def test_no_line_is_wider_than_the_terminal_and_nothing_is_lost(text, columns):
    parts = [text[i : i + 3] for i in range(0, len(text), 3)]
    cells, count = replay.layout(parts, columns)
    lines = [[c for c in cells if c[0] == line] for line in range(count)]
    assert "".join(c[2] for c in cells) == text.replace("\n", "")
    for line in lines:
        assert not line or line[-1][1] + max(0, wcwidth.wcwidth(line[-1][2][0])) <= columns
        assert [c[1] for c in line] == sorted(c[1] for c in line)
        assert all(wcwidth.wcwidth(c[2][0]) for c in line[1:])  # an accent stays with its letter


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_a_terminal_is_redrawn_in_as_many_lines_as_it_took(tokenizer, monkeypatch):
    """Wide characters at the edge would leave a line of the frame before behind."""
    text = "東京は " * 40 + "e\u0301" * 60 + "the class Stack. " * 5
    try:
        ids = tokenizer.encode(text)
    except ValueError:
        ids = tokenizer.encode("the ")
    monkeypatch.setattr(sys, "stdout", screen := Terminal())
    monkeypatch.setattr(shutil, "get_terminal_size", lambda fallback: os.terminal_size((40, 1000)))
    watch, drawn = replay.live(tokenizer), []
    for known in range(0, len(ids) + 1, max(1, len(ids) // 5)):
        watch([torch.tensor(ids[:known] + [tokenizer.mask_id] * (len(ids) - known))])
        drawn.append(screen.getvalue())
        screen.truncate(0)
        screen.seek(0)
    heights = []
    for frame in drawn:
        up = re.match(r"(?:\033\[(\d+)F)?\033\[J", frame)
        assert (int(up[1]) if up[1] else 0) == (heights[-1] if heights else 0)
        rows = re.sub(r"\033\[[\d;]*[mJF]", "", frame).split("\n")[:-1]
        assert all(0 <= wcwidth.wcswidth(row) < 40 for row in rows)
        heights.append(len(rows))


HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202e<script>alert(1)</script>\0\x7f\u2028"


def test_what_a_model_writes_is_shown_and_not_obeyed(tmp_path, monkeypatch):
    tokenizer = tokenizers.load({"kind": "char", "chars": "".join(sorted(set(HOSTILE)))})
    ids = tokenizer.encode(HOSTILE)
    canvas, trace = torch.full((len(ids),), tokenizer.mask_id), [(k, k, i, 0.5) for k, i in enumerate(ids)]
    out = Output([torch.tensor(ids)], [len(ids)], [trace])
    replay.write_html(tmp_path / "a.html", [canvas], out, tokenizer, HOSTILE)
    page = (tmp_path / "a.html").read_text("utf-8")
    shown, _ = pieces_of_page(page, len(ids))
    for text in (page.replace("\n", ""), "".join(shown)):
        assert not re.search("[\0-\x1f\x7f-\x9f\u202e\u2028]", text)
    assert "<script>alert" not in page and "".join(shown).startswith("␛]0;owned␇␛[2J␍\\x9b31m\\u202e<script>")
    replay.write_gif(tmp_path / "a.gif", canvas, trace, len(ids), tokenizer)
    monkeypatch.setattr(sys, "stdout", screen := Terminal())
    replay.live(tokenizer)([torch.tensor(ids)])
    assert set(re.findall("[\0-\x09\x0b-\x1f\x7f-\x9f\u202e]", screen.getvalue())) == {"\x1b"}  # of the frame itself
    assert screen.getvalue().count("\x1b") == 1
