"""pydocs: the Python documentation that ships inside every CPython, so that nothing need be downloaded.

Two sources, read as text (no module is imported): the language reference's help topics (pydoc_data/topics.py) and the
docstrings of the standard library. About 2.5 MB; it differs a little from one Python version to the next. A document
is one help topic or all docstrings of one file; one document in ten is kept for validation.

    python data/pydocs/prepare.py                   the frozen 1024-token BPE beside this file
    python data/pydocs/prepare.py --tokenizer=char  one id per character
    python data/pydocs/prepare.py --train_bpe=1024  learn the BPE again
"""

import argparse
import ast
import hashlib
import sys
import sysconfig
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from nanodlm import console, tokenizer  # noqa: E402
from nanodlm.corpus import write_dataset  # noqa: E402
from nanodlm.files import check_directory  # noqa: E402

SKIP = {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data", "__pycache__"}


def topics(stdlib):
    """The help() topics: a dict literal of strings, evaluated without running the file."""
    path = stdlib / "pydoc_data" / "topics.py"
    if not path.exists():
        return {}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    table = next(node.value for node in tree.body if isinstance(node, ast.Assign))
    return {f"topic:{k}": v.strip() for k, v in ast.literal_eval(table).items()}


def docstrings(stdlib):
    """One document per file: for every module, class and function its signature line, then its docstring."""
    documents = {}
    for path in sorted(stdlib.rglob("*.py")):
        name = path.relative_to(stdlib)
        if SKIP & set(name.parts):
            continue
        try:
            with warnings.catch_warnings():  # old files have invalid escapes
                warnings.simplefilter("ignore")
                source = path.read_text(encoding="utf-8")
                tree = ast.parse(source)
        except (OSError, SyntaxError, ValueError):  # lib2to3 ships broken files on purpose
            continue
        parts = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text:
                    parts.append(header(node, name) + "\n" + text.strip())
        if parts:
            documents[f"file:{name.as_posix()}"] = "\n\n".join(parts)
    return documents


def header(node, name):
    if isinstance(node, ast.Module):
        return "module " + ".".join(name.with_suffix("").parts)
    if isinstance(node, ast.ClassDef):
        return f"class {node.name}:"
    return f"def {node.name}({ast.unparse(node.args)}):"


def is_val(name):
    """One document in ten, by a hash of its name: adding a document never moves another."""
    return hashlib.sha256(name.encode()).digest()[0] % 10 == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", choices=["bpe", "char"], default="bpe", help="char: one id per character")
    parser.add_argument("--train_bpe", type=int, default=0, metavar="N", help="learn a new BPE of N tokens first")
    parser.add_argument("--out", type=Path, default=HERE, help="where the token files go (default: beside this script)")
    args = parser.parse_args()
    check_directory(args.out, "out")

    stdlib = Path(sysconfig.get_path("stdlib"))
    documents = {**topics(stdlib), **docstrings(stdlib)}
    if args.tokenizer == "char":  # a few accented names are not worth 100 extra symbols
        documents = {k: "".join(c if c == "\n" or " " <= c <= "~" else "?" for c in v) for k, v in documents.items()}
    train = [text for name, text in documents.items() if not is_val(name)]
    val = [text for name, text in documents.items() if is_val(name)]

    args.out.mkdir(parents=True, exist_ok=True)
    if args.train_bpe:
        tokenizer.train_bpe(train, args.train_bpe, args.out / "tokenizer.json")
    if args.tokenizer == "char":
        tok = tokenizer.load({"kind": "char", "chars": "\n" + "".join(map(chr, range(32, 127)))})
    else:
        if args.out != HERE and not args.train_bpe:
            tokenizer.save_files({"kind": "bpe"}, HERE, args.out)
        tok = tokenizer.load({"kind": "bpe"}, args.out)

    def ids(texts):
        return [i for text in texts for i in [*tok.encode(text), tok.eos_id]]

    splits = {"train": ids(train), "val": ids(val)}
    val_bytes = sum(len(text.encode()) for text in val) + len(val)  # an end-of-text counts as one byte
    write_dataset(args.out, tok, splits, bytes_per_token=val_bytes / len(splits["val"]))
    print(f"{len(train)} + {len(val)} documents, {len(splits['train']):,} + {len(splits['val']):,} tokens of", end=" ")
    print(f"{val_bytes / len(splits['val']):.3f} bytes, vocabulary {tok.vocab_size}: {args.out}")


if __name__ == "__main__":
    console.run(main)
