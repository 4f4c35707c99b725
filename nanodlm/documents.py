"""Documents: a user's own files as training text.

    .txt .md     a file is a document
    .jsonl       a line is one, .parquet a row, under `text` or `content`, or another key
    .gz          of these

Text is UTF-8, with a mark or without, or what its mark says (UTF-16, UTF-32); lines end with \\n, however the file
ends them. What is no text is left out and counted by its kind, as in records.py. Empty documents and second copies are
left out, too.
"""

import codecs
import gzip
import hashlib
import os
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from nanodlm import corpus, records
from nanodlm.files import read_json
from nanodlm.records import LeftOut

ENDINGS = (".txt", ".md", ".jsonl", ".parquet")
MARKS = {  # what a file may begin with, and its encoding; UTF-32's begins with UTF-16's
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def find(paths):
    """(the files of these files and folders, in order, how many others the folders hold, by kind). What is hidden is
    passed over, and so are links, which may lead out of a folder. FileNotFoundError, or ValueError for a file named
    itself that has another ending."""
    files, others = [], Counter()
    for path in map(Path, paths):
        if path.is_dir():
            for file in sorted(path.rglob("*")):
                if any(part.startswith(".") for part in file.relative_to(path).parts):
                    continue
                if file.is_symlink():
                    others["links"] += 1
                elif file.is_file() and is_text(file):
                    files.append(file)
                elif file.is_file():
                    others[f"of {file.suffix or 'no ending'}"] += 1
        elif not path.is_file():
            raise FileNotFoundError(f"there is no file or folder {str(path)!r}")
        elif not is_text(path):
            raise ValueError(f"{path} is none of {', '.join(ENDINGS)}, or one of the first three as .gz")
        else:
            files.append(path)
    return list(dict.fromkeys(files)), others


def is_text(path):
    return path.name.lower().endswith((*ENDINGS, *(e + ".gz" for e in ENDINGS[:3])))  # Parquet compresses by itself


def read(files, column="", encoding=""):
    """(where, the document or why it is left out) of each."""
    for file in files:
        kind = Path(file.name.lower().removesuffix(".gz")).suffix
        how = {".jsonl": records.lines, ".parquet": records.parquet}.get(kind)
        try:
            for where, record in records.numbered(kind, how(file)) if how else ():
                yield f"{file}, {where}", field(record, column)
        except LeftOut as e:  # the rest of the file
            yield str(file), e
        if not how:
            yield str(file), whole(file, encoding)


def field(record, column):
    if isinstance(record, LeftOut):
        return record
    keys = [column] if column else ["text", "content"]
    text = next((record[k] for k in keys if isinstance(record.get(k), str)), None)
    if text is None:
        there = ", ".join(f"{k} ({type(v).__name__})" for k, v in record.items()) or "nothing"
        return LeftOut(f"it has no text under {' or '.join(keys)}", f"there is {there}; --column names a key")
    return tidy(text)


def whole(file, encoding):
    try:
        data = (gzip.open if file.suffix.lower() == ".gz" else open)(file, "rb").read()
    except (OSError, EOFError, zlib.error) as e:
        return LeftOut("it cannot be read", str(e))
    encoding = next((name for mark, name in MARKS.items() if data.startswith(mark)), encoding or "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as e:
        line = data[: e.start].count(b"\n") + 1
        return LeftOut(
            f"it is not {encoding.upper()}", f"byte {e.start}, line {line}; --encoding=latin-1, say, or another"
        )
    return tidy(text)


def tidy(text):
    if "\0" in text:
        return LeftOut(
            "it holds null bytes", f"line {text[: text.index(chr(0))].count(chr(10)) + 1}; it may be no text"
        )
    try:
        text.encode()
    except UnicodeEncodeError as e:
        return LeftOut("it holds half a character", f"a lone surrogate at character {e.start}")
    return text.replace("\r\n", "\n").replace("\r", "\n")


class Held:
    """Documents that were read once, to know which is whose: iterate over a split to read them again."""

    def __init__(self, again, share, reasons):
        """again: () -> (where, document or LeftOut) of each; share: of the documents that are held out, by their hash,
        so that a document stays where it is when others come; of one alone, of its end."""
        self.again, self.share, self.counts, seen = again, share, Counter(), set()
        for where, text in again():
            if isinstance(text, LeftOut):
                reasons.add(where, text)
                continue
            self.counts["empty"] += not text.strip()
            self.counts["copies"] += bool(text.strip()) and digest(text) in seen
            seen |= {digest(text)} if text.strip() else set()
        if not seen:
            reasons.nothing("document")
        order, n = sorted(seen), len(seen)
        held = sum(int.from_bytes(d[:8], "big") < share * 2**64 for d in order)
        self.val = set(order[: min(max(held, 1), n - 1)])  # never all, never none
        self.alone, self.counts["documents"] = n == 1, n

    def __call__(self, split):
        """The documents of "train", "val" or "all", each once."""
        seen = set()
        for _, text in self.again():
            if isinstance(text, LeftOut) or not text.strip() or digest(text) in seen:
                continue
            seen.add(digest(text))
            if self.alone and split != "all":
                end = int(len(text) * (1 - self.share))
                end = text.rfind("\n", int(len(text) * max(0, 1 - 2 * self.share)), end) + 1 or end
                yield text[:end] if split == "train" else text[end:]
            elif split == "all" or (digest(text) in self.val) == (split == "val"):
                yield text


def digest(text):
    return hashlib.sha256(text.encode()).digest()


def write(directory, tokenizer, held, **facts):
    """Write the token files of the documents, and meta.json. ValueError where one does not fit the vocabulary."""
    sizes = Counter()
    with ThreadPoolExecutor() as pool:  # tiktoken and tokenizers let go of the GIL
        for split in ("train", "val"):
            parts = ((piece, last) for text in held(split) for piece, last in ends(corpus.pieces(text)))
            while batch := list(islice(parts, 64)):
                encoded = pool.map(lambda p: tokenizer.encode(tokenizer.escape(p[0])), batch)
                ids = [i for found, (_, last) in zip(encoded, batch) for i in [*found, *[tokenizer.eos_id] * last]]
                corpus.append_tokens(directory / f"{split}.bin", ids, tokenizer, split)
                sizes[f"{split}_tokens"] += len(ids)
                sizes[f"{split}_bytes"] += sum(len(p.encode()) + last for p, last in batch)
    facts["files"] = sorted(str(f.relative_to(directory)) for f in directory.rglob("*") if f.is_file())
    facts |= held.counts | {k: sizes[k] for k in ("train_tokens", "val_tokens")}
    corpus.write_meta(directory, tokenizer, bytes_per_token=sizes["val_bytes"] / sizes["val_tokens"], **facts)
    return sizes


def install(part, directory):
    """Put the data set in `part` into its directory, in place of the one that is there: of other files, none is
    touched."""
    meta = directory / "meta.json"
    before = read_json(meta).get("files", []) if meta.is_file() else []
    meta.unlink(missing_ok=True)  # it speaks of the files that are now replaced
    for name in before:
        if ".." not in Path(name).parts and not Path(name).is_absolute():  # what was made here
            (directory / name).unlink(missing_ok=True)
    for name in [*read_json(part / "meta.json")["files"], "meta.json"]:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(part / name, directory / name)


def ends(parts):
    """(part, whether it is the last one) of each."""
    parts = iter(parts)
    before = next(parts)
    for part in parts:
        yield before, False
        before = part
    yield before, True
