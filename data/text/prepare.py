"""text: your own files as a data set. A file of .txt or .md is a document, a line of .jsonl, a row of .parquet.

    python data/text/prepare.py my_notes/ --name=mine
    python data/text/prepare.py a.txt b.jsonl.gz --tokenizer=char --name=mine
    python train.py config/quickstart.py --dataset=mine

Tokenizers: bpe:4096 (byte-level, learnt from the training part), char, gpt2, or a checkpoint, whose training goes on.
Some documents are held out, by their hash; of a single one the end is. Second copies and empty ones are left out.
"""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from nanodlm import checkpoint as ckpt  # noqa: E402
from nanodlm import console, corpus, documents, tokenizer  # noqa: E402
from nanodlm.files import ROOT, check_directory  # noqa: E402
from nanodlm.records import Reasons  # noqa: E402


def share(word):
    if not 0 < float(word) < 1:
        raise ValueError
    return float(word)


def tokenizer_of(name, held, out):
    """The tokenizer of that name, its files in `out`."""
    kind, _, size = name.partition(":")
    if kind == "bpe":
        if not size.isdecimal() or not 257 <= int(size) <= 2**16 - 2:
            sys.exit(f"tokenizer={name}: bpe:N takes a number of tokens from 257 to 65534, as bpe:4096")
        texts = (piece for text in held("train") for piece in corpus.pieces(text))
        tokenizer.train_bpe(texts, int(size), out / "tokenizer.json")
        return tokenizer.load({"kind": "bpe"}, out)
    if name == "char":
        return tokenizer.load({"kind": "char", "chars": "".join(sorted(set().union(*held("all"))))})
    if name == "gpt2":
        return corpus.load_tokenizer(out, {"tokenizer": {"kind": "tiktoken", "name": "gpt2"}})
    path = ckpt.find(name)
    found = ckpt.tokenizer_of(path)
    if found.eos_id is None:
        sys.exit(f"{name} has no end-of-text, which stands between documents; convert it first")
    tokenizer.save_files(found.spec, ckpt.files_of(path), out)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", metavar="FILE_OR_FOLDER", type=lambda p: Path(p).expanduser())
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
    parser.add_argument("--encoding", default="", help="of .txt and .md (default: UTF-8, or UTF-16 where marked)")
    parser.add_argument("--strict", action="store_true", help="stop at the first document that is no text")
    args = parser.parse_args()
    name = args.name or args.paths[0].resolve().name.partition(".")[0]
    out = Path(name).expanduser() if "/" in name else ROOT / "data" / name
    if (out / "prepare.py").exists():
        sys.exit(f"{out} has a prepare.py of its own; choose another --name")
    check_directory(out, "name")
    try:
        "".encode(args.encoding or "utf-8")
        files, others = documents.find(args.paths)
    except (LookupError, OSError, ValueError) as e:
        sys.exit(str(e))
    if others:
        print("passed over: " + ", ".join(f"{n} of {end or 'no ending'}" for end, n in others.most_common()))
    reasons = Reasons(name, args.strict)
    held = documents.Held(lambda: documents.read(files, args.column, args.encoding), args.val, reasons)
    for words in reasons.words():
        print(words)
    out.mkdir(parents=True, exist_ok=True)
    tok = tokenizer_of(args.tokenizer, held, out)
    try:
        sizes = documents.write(out, tok, held, sources=[str(p) for p in args.paths], left_out=dict(reasons.counts))
    except ValueError as e:
        sys.exit(str(e))
    print(f"{held.counts['documents']:,} documents in {len(files):,} files; ", end="")
    print(
        f"left out: {held.counts['copies']:,} copies, {held.counts['empty']:,} empty, {reasons.counts.total():,} others"
    )
    print(f"{sizes['train_tokens']:,} + {sizes['val_tokens']:,} tokens, vocabulary {tok.vocab_size:,}: {out}")


if __name__ == "__main__":
    console.run(main)
