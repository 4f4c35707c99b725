"""text: your own files as a data set. A file of .txt or .md is a document, a line of .jsonl, a row of .parquet.

    python data/text/prepare.py my_notes/ --name=mine
    python data/text/prepare.py a.txt b.jsonl.gz --tokenizer=char --name=mine
    python train.py config/quickstart.py --dataset=mine

Tokenizers: bpe:4096 (byte-level, learnt from the training part), char, gpt2, or a checkpoint, whose training goes on.
Some documents are held out, by their hash; of a single one the end is. Second copies and empty ones are left out.
"""

import argparse
import contextlib
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from nanodlm import checkpoint as ckpt  # noqa: E402
from nanodlm import console, corpus, documents, tokenizer  # noqa: E402
from nanodlm.files import ROOT, check_directory, read_json  # noqa: E402
from nanodlm.records import Reasons  # noqa: E402


def share(word):
    if not 0 < float(word) < 1:
        raise argparse.ArgumentTypeError(f"{word} is no share of the documents; give one between 0 and 1, as 0.05")
    return float(word)


def path(word):
    if not word:  # which Python reads as the directory where one is
        sys.exit("'' is no file or folder; this directory is .")
    return Path(word).expanduser()


def place(name):
    """The directory of a data set of that name; exits where it holds what is not ours to replace."""
    if not name.strip(". "):
        sys.exit(f"{name!r} is no name for a data set; give one with --name")
    out = (Path(name).expanduser() if "/" in name else ROOT / "data" / name).resolve()
    meta = out / "meta.json"
    if (out / "prepare.py").exists() or meta.exists() and "sources" not in read_json(meta):
        sys.exit(f"{out} has a prepare.py of its own, or what another one made; choose another --name")
    if (out / "config.json").exists() and not meta.exists():
        sys.exit(f"{out} is a checkpoint; choose another --name")
    check_directory(out, "name")
    return out


def known(name):
    """The tokenizer of that name and the directory of its files; nothing where it is to be learnt from the text."""
    kind, _, size = name.partition(":")
    if kind == "bpe":
        if not size.isdecimal() or not 257 <= int(size) <= 2**16 - 2:
            sys.exit(f"tokenizer={name}: bpe:N takes a number of tokens from 257 to 65534, as bpe:4096")
        return None, None
    if name == "char":
        return None, None
    if name == "gpt2":
        return corpus.load_tokenizer(name, {"tokenizer": {"kind": "tiktoken", "name": "gpt2"}}), None
    path = ckpt.find(name)
    found = ckpt.tokenizer_of(path)
    if found.eos_id is None:
        sys.exit(f"{name} has no end-of-text, which stands between documents; convert it first")
    return found, ckpt.files_of(path)


def learnt(name, held, directory):
    """The tokenizer of that name, learnt from the text, its files in the directory."""
    if name == "char":
        chars = set()
        for text in held("all"):
            chars.update(text)
        return tokenizer.load({"kind": "char", "chars": "".join(sorted(chars))})
    texts = (piece for text in held("train") for piece in corpus.pieces(text, 2**10, 2**12))  # slow on long words
    tokenizer.train_bpe(texts, int(name.partition(":")[2]), directory / "tokenizer.json")
    return tokenizer.load({"kind": "bpe"}, directory)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", metavar="FILE_OR_FOLDER", type=path)
    parser.add_argument(
        "--tokenizer", default="bpe:4096", help="bpe:N, char, gpt2, or a checkpoint (default: bpe:4096)"
    )
    parser.add_argument("--name", help="of the data set: data/NAME, or a path (default: the first file's)")
    parser.add_argument(
        "--val", type=share, default=0.05, help="share of the documents that is held out (default: 0.05)"
    )
    parser.add_argument(
        "--column", default="", help="the key of the text in .jsonl and .parquet (default: text, content)"
    )
    parser.add_argument("--encoding", default="", help="of .txt and .md without a mark of it (default: UTF-8)")
    parser.add_argument("--strict", action="store_true", help="stop at the first document that is no text")
    args = parser.parse_args()
    name = args.paths[0].resolve().name.partition(".")[0] if args.name is None else args.name
    out, (tok, source) = place(name), known(args.tokenizer)
    try:
        "".encode(args.encoding or "utf-8")
        files, others = documents.find(args.paths)
    except (LookupError, OSError, ValueError) as e:
        sys.exit(str(e))
    if others:
        print("passed over: " + ", ".join(f"{n} {end}" for end, n in others.most_common()))
    reasons = Reasons(name, args.strict)
    held = documents.Held(lambda: documents.read(files, args.column, args.encoding), args.val, reasons)
    for words in reasons.words():
        print(words)
    part = out / ".part"  # what is in `out` stays until all is made; beside it may be another disk, or a closed place
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        if tok:
            tokenizer.save_files(tok.spec, source, part)
        tok = tok or learnt(args.tokenizer, held, part)
        sizes = documents.write(part, tok, held, sources=[str(p) for p in args.paths], left_out=dict(reasons.counts))
        documents.install(part, out)
    except ValueError as e:
        sys.exit(str(e))
    finally:
        shutil.rmtree(part, ignore_errors=True)
        with contextlib.suppress(OSError):
            out.rmdir()  # where nothing came of it
    print(f"{held.counts['documents']:,} documents in {len(files):,} files; ", end="")
    print(
        f"left out: {held.counts['copies']:,} copies, {held.counts['empty']:,} empty, {reasons.counts.total():,} others"
    )
    print(f"{sizes['train_tokens']:,} + {sizes['val_tokens']:,} tokens, vocabulary {tok.vocab_size:,}: {out}")


if __name__ == "__main__":
    console.run(main)
