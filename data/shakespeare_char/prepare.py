"""shakespeare_char: Tiny Shakespeare, one id per character, split as nanoGPT splits it: the last tenth is validation.

The text (1.1 MB) is downloaded once and kept as input.txt beside this script; --input reads a local file instead.

    python data/shakespeare_char/prepare.py
    python data/shakespeare_char/prepare.py --input=my_text.txt --out=data/my_text
"""

import argparse
import sys
import urllib.request
from http.client import HTTPException
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from nanodlm import console, tokenizer  # noqa: E402
from nanodlm.corpus import replace_file, write_dataset  # noqa: E402
from nanodlm.files import check_directory  # noqa: E402

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"


def download(path):
    try:
        with urllib.request.urlopen(URL, timeout=60) as response:
            replace_file(path, response.read())
    except (OSError, HTTPException) as error:
        sys.exit(f"{URL} could not be downloaded ({error}): fetch it some other way and pass --input=FILE")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, help="a UTF-8 text file to use instead of the download")
    parser.add_argument("--out", type=Path, default=HERE, help="where the token files go (default: beside this script)")
    args = parser.parse_args()
    check_directory(args.out, "out")

    path = args.input or HERE / "input.txt"
    if not args.input and not path.exists():
        download(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"{path} could not be read as UTF-8 text: {error}")
    train, val = text[: int(len(text) * 0.9)], text[int(len(text) * 0.9) :]
    if not train:
        sys.exit(f"{path} has {len(text)} characters, too few for a training and a validation part")

    tok = tokenizer.load({"kind": "char", "chars": "".join(sorted(set(text)))})
    splits = {"train": tok.encode(train), "val": tok.encode(val)}
    args.out.mkdir(parents=True, exist_ok=True)
    write_dataset(args.out, tok, splits, bytes_per_token=len(val.encode()) / len(val))
    print(f"{len(train):,} + {len(val):,} characters, vocabulary {tok.vocab_size}: {args.out}")


if __name__ == "__main__":
    console.run(main)
