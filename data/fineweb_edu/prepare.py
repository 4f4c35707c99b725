"""fineweb_edu: FineWeb-Edu's 10-billion-token sample of educational web pages, as GPT-2 tokens (20 GB).

Needs `pip install datasets tiktoken`. The documents are streamed, nothing but the tokens is stored. Stopped and
started again it goes on where it was. One document in 2000 is kept for validation.

    python data/fineweb_edu/prepare.py
    python data/fineweb_edu/prepare.py --max_tokens=100e6    the first 100 million tokens
"""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from nanodlm import console, hub  # noqa: E402
from nanodlm.corpus import load_tokenizer, stream_dataset  # noqa: E402
from nanodlm.files import check_directory  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_tokens", type=float, default=10e9, help="stop at so many training tokens (default 10e9)")
    parser.add_argument("--out", type=Path, default=HERE, help="where the token files go (default: beside this script)")
    args = parser.parse_args()
    check_directory(args.out, "out")

    def documents(first):
        return (
            row["text"] for row in hub.rows("HuggingFaceFW/fineweb-edu", "sample-10BT", streaming=True, first=first)
        )

    tok = load_tokenizer(args.out, {"tokenizer": {"kind": "tiktoken", "name": "gpt2"}})
    stream_dataset(documents, args.out, tok, args.max_tokens)
    print(f"token files: {args.out}")


if __name__ == "__main__":
    console.run(main)
