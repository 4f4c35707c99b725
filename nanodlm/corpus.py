"""Token files: the one format that every data/<name>/prepare.py writes and that train.py and eval.py read.

    data/<name>/train.bin, val.bin    ids, one after the other, little-endian uint16 or uint32
    data/<name>/meta.json             tokenizer spec and dtype; vocab_size, mask_id, eos_id, bytes_per_token (of text),
                                      which can be worked out; and what else there is to say

Documents are separated by end-of-text. Data made of rows of equal length (puzzles) says so: `row_len` ids a row,
of which the first `prompt_len` are given and the rest is to be generated. Where rows are `padded` behind their text,
val.length.bin (int64) has the tokens of each that are no padding.
"""

import hashlib
import json
import math
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

from nanodlm import tokenizer as tokenizers
from nanodlm.files import ROOT, holding, read_json, replace_file, to_json


def find(dataset):
    """The directory of a data set: a path, or a name under data/."""
    return Path(dataset) if (Path(dataset) / "meta.json").is_file() else ROOT / "data" / dataset


def whole(x, low=0, end=math.inf):
    return isinstance(x, int) and not isinstance(x, bool) and low <= x < end


def is_positive(x):
    return isinstance(x, int | float) and not isinstance(x, bool) and 0 < x < math.inf


def is_dtype(x):
    try:
        return isinstance(x, str) and np.dtype(x).kind in "ui"
    except TypeError:
        return False


# What meta.json says: (whether a value is one, given all the others, and in words).
FACTS = {
    "tokenizer": (lambda x, meta: isinstance(x, dict), "a tokenizer's spec, such as that of nanodlm.tokenizer.load"),
    "dtype": (lambda x, meta: is_dtype(x), "that of the token files: uint16 or uint32"),
    "vocab_size": (lambda x, meta: whole(x, 1), "a whole number"),
    "bytes_per_token": (lambda x, meta: is_positive(x), "a positive number"),
    "row_len": (lambda x, meta: whole(x, 1), "a whole number of ids"),
    "prompt_len": (lambda x, meta: whole(x, 0, meta.get("row_len", 0)), "a whole number below row_len"),
    "padded": (lambda x, meta: x is False or x is True and "row_len" in meta, "true or false, and true for rows alone"),
    "task": (lambda x, meta: x != "sudoku" or "prompt_len" in meta, "of rows with a prompt_len"),
}


def fault(meta, tokenizer):
    """What is wrong with a data set's facts, in words, or nothing."""
    for key, (fits, words) in FACTS.items():
        if key in meta and not fits(meta[key], meta):
            return f"{key}={meta[key]!r} must be {words}"
    if meta["vocab_size"] < tokenizer.vocab_size:
        return f"vocab_size={meta['vocab_size']} is below the {tokenizer.vocab_size} ids of its tokenizer"
    for key in ("mask_id", "eos_id"):
        if meta[key] not in (None, getattr(tokenizer, key)):
            return f"{key}={meta[key]} is not its tokenizer's, {getattr(tokenizer, key)}"


def load_meta(dataset, *splits):
    """meta.json as a dict, with what can be worked out where it does not say so, as of the token files of these splits;
    exits where they do not fit, or with the command that makes the data where there is none."""
    path = find(dataset) / "meta.json"
    if not path.exists():
        known = [p.parent.name for p in holding(ROOT / "data", "*/prepare.py")]
        if dataset in known:
            sys.exit(f"{dataset} has no token files yet: make them with `python data/{dataset}/prepare.py`")
        sys.exit(
            f"no data set {dataset!r}: use one of {', '.join(known)} or a directory with a meta.json, "
            "as data/text/prepare.py makes one of your own files"
        )
    meta = read_json(path)
    for key in ("tokenizer", "dtype"):
        if not FACTS[key][0](meta.get(key), meta):
            sys.exit(f"{path}: {key}={meta.get(key)!r} must be {FACTS[key][1]}")
    tokenizer = load_tokenizer(dataset, meta)
    meta = {k: getattr(tokenizer, k) for k in ("vocab_size", "mask_id", "eos_id")} | meta
    if wrong := fault(meta, tokenizer):
        sys.exit(f"{path}: {wrong}")
    for split in splits:
        ids = load_tokens(dataset, split, meta)
        lengths = eval_lengths(dataset, meta, len(ids)) if split == "val" else None
        if lengths is not None and (len(lengths) != len(ids) or (lengths < 1).any() or lengths.max() > ids.shape[1]):
            sys.exit(f"{path.parent}/val.length.bin must have a number from 1 to row_len for each row of val.bin")
        pieces = [ids] if ids.size <= 2**24 else [ids.reshape(-1)[i : i + 2**15] for i in spread(ids.size, 512)]
        try:
            for piece in pieces:
                check_ids(piece, tokenizer, path.parent / f"{split}.bin")
        except ValueError as e:
            sys.exit(f"{e}; prepare the data again")
    if "bytes_per_token" not in meta:
        meta["bytes_per_token"] = bytes_per_token(load_tokens(dataset, "val", meta), tokenizer)
    return meta


def bytes_per_token(ids, tokenizer):
    """How many bytes of text a token stands for; an end-of-text counts as one byte."""
    ids = np.asarray(ids).reshape(-1)
    size = len(tokenizer.decode(ids.tolist()).encode()) + int((ids == tokenizer.eos_id).sum())
    return size / max(1, ids.size)


def load_tokenizer(dataset, meta):
    """The tokenizer a data set was made with."""
    try:
        return tokenizers.load(meta["tokenizer"], find(dataset))
    except ValueError as e:
        sys.exit(str(e))
    except (AttributeError, KeyError, TypeError) as e:
        what = f"{type(e).__name__}: {e}, in {str(meta['tokenizer'])[:80]}"
        sys.exit(f"{find(dataset)} has no tokenizer that can be read: {what}")


def load_tokens(dataset, split, meta):
    """The ids of one split, memory-mapped, (N,) or (rows, row_len) for data made of rows.

    Opened anew by whoever reads a batch's worth: a map that stays open grows with every page it has touched."""
    path = find(dataset) / f"{split}.bin"
    if not path.exists():
        sys.exit(f"{path} is missing: prepare the data again")
    try:
        ids = np.memmap(path, dtype=np.dtype(meta["dtype"]), mode="r")
        return ids.reshape(-1, meta["row_len"]) if "row_len" in meta else ids
    except (OSError, ValueError) as e:
        sys.exit(f"{path} does not hold what its meta.json says: {e}")


def write_dataset(directory, tokenizer, splits, **facts):
    """Write `splits`, {"train": ids, "val": ids}, and meta.json. `facts` go into the metadata as they are."""
    directory = Path(directory)
    dtype = token_dtype(tokenizer)
    splits = {split: np.asarray(ids) for split, ids in splits.items()}
    for split, ids in splits.items():
        check_ids(ids, tokenizer, split)
        if not ids.size or ids.size % facts.get("row_len", 1):
            raise ValueError(f"{split} has {ids.size} ids, which are no {'rows' if 'row_len' in facts else 'text'}")
    if "bytes_per_token" not in facts and "val" in splits:
        facts["bytes_per_token"] = bytes_per_token(splits["val"], tokenizer)
    if wrong := fault(meta_of(tokenizer, facts), tokenizer):
        raise ValueError(wrong)
    (directory / "meta.json").unlink(missing_ok=True)  # it describes the old files
    for split, ids in splits.items():
        replace_file(directory / f"{split}.bin", ids.astype(dtype).tobytes())
        facts[f"{split}_tokens"] = int(ids.size)
    write_meta(directory, tokenizer, **facts)


def write_meta(directory, tokenizer, **facts):
    """meta.json is written last: where it stands, the token files are whole."""
    replace_file(Path(directory) / "meta.json", to_json(meta_of(tokenizer, facts), indent=1).encode())


def meta_of(tokenizer, facts):
    named = {key: getattr(tokenizer, key) for key in ("vocab_size", "mask_id", "eos_id")}
    return {"tokenizer": tokenizer.spec, **named, "dtype": token_dtype(tokenizer), **facts}


PIECE, LONGEST = 2**18, 2**19  # characters that are encoded at once: about, and at most
CUT = re.compile(r"(?<=\S)(?= )|(?<=\S\n)(?=\S)")


def pieces(text, size=PIECE, most=LONGEST):
    """The text in pieces of about this many characters, as one long text takes 175 times its size in memory to encode.

    It is cut before a space behind a word, or behind a line break between two: there GPT-2's pattern, and those that
    were made after it, cut too, so that byte-level BPE gives the ids of the whole. Where there is no such place for
    `most` characters, it is cut all the same. (SentencePiece may begin each piece with a space of its own.)"""
    start = 0
    while len(text) - start > size:
        found = CUT.search(text, start + size, start + most)
        end = found.start() if found else start + most
        yield text[start:end]
        start = end
    if start < len(text) or not text:
        yield text[start:]


def encode(tokenizer, text):
    """The ids of a document, in which nothing is a control token, whatever it spells."""
    return [i for piece in pieces(text) for i in tokenizer.encode(tokenizer.escape(piece))]


def stream_dataset(documents_from, directory, tokenizer, max_tokens=float("inf"), val_one_in=2000, chunk=1000):
    """Write the data set of a stream too long for memory: `documents_from(n)` yields its texts from number n on.

    It ends with the stream or with the document that brings the training split to `max_tokens`. One text in
    `val_one_in`, by its hash, is for validation: two copies of a text never lie on both sides. After every `chunk`
    documents progress.json says how far the .part files are good; called again after a crash it goes on from there."""
    from tqdm import tqdm

    if not max_tokens > 0:
        sys.exit(f"max_tokens must be positive, not {max_tokens}")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    record = directory / "progress.json"
    progress = {"tokenizer": tokenizer.spec, "val_one_in": val_one_in, "complete": False}
    progress |= {"documents": 0, "train_tokens": 0, "val_tokens": 0, "val_bytes": 0}
    if record.exists():
        before = json.loads(record.read_text())
        if any(before.get(key) != progress[key] for key in ("tokenizer", "val_one_in")):
            sys.exit(f"{record} was made with other settings: delete it to start again")
        progress = before

    parts = {split: directory / f"{split}.bin.part" for split in ("train", "val")}
    if not progress["complete"]:
        for split, part in parts.items():
            part.touch()
            size = progress[f"{split}_tokens"] * np.dtype(token_dtype(tokenizer)).itemsize
            if part.stat().st_size < size:
                sys.exit(f"{part} is shorter than {record.name} says: delete {record} to start again")
            os.truncate(part, size)
        texts = iter(documents_from(progress["documents"]))
        bar = tqdm(total=max_tokens, initial=progress["train_tokens"], unit="tok", unit_scale=True)
        with bar, ThreadPoolExecutor() as pool:  # tiktoken and tokenizers let go of the GIL
            while progress["train_tokens"] < max_tokens and (batch := list(islice(texts, chunk))):
                new = {"train": [], "val": []}
                for text, ids in zip(batch, pool.map(lambda text: encode(tokenizer, text), batch), strict=True):
                    digest = hashlib.sha256(text.encode()).digest()
                    split = "val" if int.from_bytes(digest[:8], "big") % val_one_in == 0 else "train"
                    new[split] += [*ids, tokenizer.eos_id]
                    progress["documents"] += 1
                    progress[f"{split}_tokens"] += len(ids) + 1
                    if split == "val":
                        progress["val_bytes"] += len(text.encode()) + 1  # an end-of-text counts as one byte
                    if progress["train_tokens"] >= max_tokens:
                        break
                for split, ids in new.items():
                    append_tokens(parts[split], ids, tokenizer, split)
                replace_file(record, to_json(progress).encode())
                bar.update(len(new["train"]))
        if not progress["train_tokens"] or not progress["val_tokens"]:
            missing = "validation" if progress["train_tokens"] else "training"
            sys.exit(f"no {missing} document among the first {progress['documents']}: give a larger max_tokens")
        replace_file(record, to_json(progress | {"complete": True}).encode())

    (directory / "meta.json").unlink(missing_ok=True)  # it speaks of the files that are now replaced
    for split, part in parts.items():
        if part.exists():  # or else the last run ended right here, after renaming it
            os.replace(part, directory / f"{split}.bin")
    facts = {key: progress[key] for key in ("documents", "train_tokens", "val_tokens")}
    write_meta(directory, tokenizer, bytes_per_token=progress["val_bytes"] / progress["val_tokens"], **facts)
    record.unlink()


def append_tokens(path, ids, tokenizer, split):
    ids = np.asarray(ids, dtype=np.int64)
    check_ids(ids, tokenizer, split)
    with open(path, "ab") as out:
        out.write(ids.astype(token_dtype(tokenizer)).tobytes())
        out.flush()
        os.fsync(out.fileno())  # the record of these tokens may not reach the disk before they do


def token_dtype(tokenizer):
    return "<u2" if tokenizer.vocab_size <= 2**16 else "<u4"


def check_ids(ids, tokenizer, split):
    """The mask token stands for 'unknown', so it may not be a word of the text."""
    if (ids == tokenizer.mask_id).any():
        raise ValueError(f"the mask id {tokenizer.mask_id} occurs in the {split} text; give the mask an id of its own")
    for i in (int(ids.min()), int(ids.max())) if ids.size else ():  # -1 or -100 is padding elsewhere
        if not 0 <= i < tokenizer.vocab_size:
            raise ValueError(f"{split} holds id {i}, outside the vocabulary of {tokenizer.vocab_size}")


def windows(ids, size, first):
    """(given, predicted) pairs that predict each id once, `size` of them at a time, in windows of len(first) + size:
    the first is given `first`, the last as much of the text before it as fits."""
    out = [(list(first), ids[:size])]
    for start in range(size, len(ids), size):
        end = min(start + size, len(ids))
        out.append((ids[end - size - len(first) : start], ids[start:end]))
    return out


def content(directory, names=("train.bin",)):
    """Tells one text from another: a hash of files, of large ones of their size and 512 pieces of them."""
    digest = hashlib.sha256()
    for name in names:
        path = find(directory) / name
        size = path.stat().st_size
        digest.update(f"{name} {size} ".encode())
        with path.open("rb") as f:
            for start in [0] if size <= 2**24 else np.linspace(0, size - 2**15, 512).astype(np.int64).tolist():
                f.seek(start)
                digest.update(f.read(2**15 if size > 2**24 else -1))
    return digest.hexdigest()[:16]


def eval_windows(dataset, meta, seq_len, count):
    """`count` validation windows (count, seq_len), evenly spread and always the same; fewer where the text is short."""
    tokens = load_tokens(dataset, "val", meta)
    if tokens.ndim == 2:
        return np.array(tokens[spread(len(tokens), count)])
    if len(tokens) < seq_len:
        sys.exit(
            f"the validation text of {dataset} has {len(tokens)} tokens, less than one window of seq_len={seq_len}"
        )
    count = min(count, len(tokens) // seq_len)
    starts = np.linspace(0, len(tokens) - seq_len, count).astype(np.int64)
    return np.stack([tokens[i : i + seq_len] for i in starts])


def eval_lengths(dataset, meta, count):
    """How many tokens of each of eval_windows' rows are no padding (count,); None where rows have none."""
    if not meta.get("padded"):
        return None
    path = find(dataset) / "val.length.bin"
    if not path.exists():
        sys.exit(f"{path} is missing, of rows that are padded: prepare the data again")
    lengths = np.fromfile(path, dtype="<i8")
    return lengths[spread(len(lengths), count)]


def spread(n, count):
    """`count` of n rows, or all of fewer: evenly spread and always the same."""
    return np.linspace(0, n - 1, min(count, n)).astype(np.int64)
