"""fineweb_sp1024: web pages of FineWeb in 1024 SentencePiece tokens, the very ids of OpenAI's parameter-golf, so that
its numbers, in bits per byte, can stand beside ours.

Needs `pip install huggingface_hub transformers protobuf`. The text for validation is the first 50,000 documents, 62
million tokens, and always whole; to train on there are 195 files of 100 million tokens, 200 MB each. (They are copied:
what the hub's client keeps in its cache may be deleted.) Each document begins with <s>, which is our end-of-text, as it
stands between any two. In the end it should say 2.4359 bytes a token, as parameter-golf's logs do: in its PR 71 a loss
of 2.28097 nats is 1.35092 bits per byte. (Not downloaded by us: there was no network.)

    python data/fineweb_sp1024/prepare.py                     100 million tokens to train on
    python data/fineweb_sp1024/prepare.py --train_shards=95   9.5 billion, for config/fineweb_sp1024_mdlm.py
    python data/fineweb_sp1024/prepare.py --files=FOLDER      parameter-golf's data/, as its own script fills it
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from nanodlm import console, hub, tokenizer  # noqa: E402
from nanodlm.corpus import write_meta  # noqa: E402
from nanodlm.files import check_directory, read_json  # noqa: E402

HUB, NAME = "willdepueoai/parameter-golf", "fineweb10B_sp1024"
MODEL = "tokenizers/fineweb_1024_bpe.model"
HEADER = [20240520, 1]  # then the number of tokens: 256 of int32, the others unused; then the tokens, of uint16


def get(names, folder):
    """The paths of files that parameter-golf has published."""
    if not folder:
        return hub.data_files(
            HUB, [f"datasets/{name}" for name in names], "pass copies of its files, as --files=FOLDER"
        )
    if missing := [name for name in names if not (folder / name).is_file()]:
        sys.exit(f"{folder} has no {missing[0]}: copy it there from {HUB}, or leave out --files to download all")
    return [folder / name for name in names]


def counts(manifest):
    """How many token files there are, {"val": …, "train": …}."""
    try:
        stats = next(entry["stats"] for entry in read_json(manifest)["datasets"] if entry["name"] == NAME)
        found = {"val": int(stats["files_val"]), "train": int(stats["files_train"])}
        if min(found.values()) > 0:
            return found
    except (KeyError, StopIteration, TypeError, ValueError):
        pass
    sys.exit(f"{manifest} does not say how many files {NAME} has: get it again")


def read_shard(path, vocab_size):
    """The ids of a token file, memory-mapped."""
    header = np.fromfile(path, dtype="<i4", count=256).tolist()
    if header[:2] != HEADER:
        sys.exit(f"{path} is no token file of parameter-golf: it begins with {header[:2]}, and not with {HEADER}")
    size = path.stat().st_size
    if size <= 1024 or size != 1024 + 2 * header[2]:
        sys.exit(f"{path} is damaged: it has {size:,} bytes, and its header says {header[2:3]} tokens; get it again")
    ids = np.memmap(path, dtype="<u2", mode="r", offset=1024)
    if ids.max() >= vocab_size:
        sys.exit(f"{path} has id {ids.max()}, and {Path(MODEL).name} has {vocab_size} tokens: they are no pair")
    return ids


def count_bytes(ids, pieces, chunk=2**22):
    """How many bytes ids stand for, by parameter-golf's rule: a space in front of a piece counts where other text
    stands before it; control tokens have none."""
    text = np.array([p.type not in (p.UNKNOWN, p.CONTROL, p.UNUSED) for p in pieces])
    spaced = np.array([p.piece.startswith("\u2581") for p in pieces]) & text
    sizes = np.array([1 if p.type == p.BYTE else len(p.piece.removeprefix("\u2581").encode()) for p in pieces]) * text
    total = int(sizes[ids[0]])
    for start in range(1, len(ids), chunk):
        here = ids[start : start + chunk]
        before = ids[start - 1 : start - 1 + len(here)]
        total += int(sizes[here].sum() + (spaced[here] & text[before]).sum())
    return total


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_shards", type=int, default=1, help="files of 100 million tokens (default 1)")
    parser.add_argument("--files", type=Path, help="a folder with the files, in place of a download")
    parser.add_argument("--out", type=Path, default=HERE, help="where the token files go (default: beside this script)")
    args = parser.parse_args()
    check_directory(args.out, "out")

    manifest, path = get(["manifest.json", MODEL], args.files)
    files, model = counts(manifest), tokenizer.read_sentencepiece(path)
    if not 1 <= args.train_shards <= files["train"]:
        sys.exit(f"train_shards={args.train_shards} must be from 1 to {files['train']}, as many as there are")
    files["train"], found = args.train_shards, {}
    for split, n in files.items():
        paths = get([f"datasets/{NAME}/fineweb_{split}_{i:06d}.bin" for i in range(n)], args.files)
        found[split] = [read_shard(path, len(model.pieces)) for path in paths]

    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out, prefix=".") as folder:  # whole, or not there
        tokenizer.from_sentencepiece(model).save(f"{folder}/tokenizer.json")
        tok = tokenizer.load({"kind": "bpe", "eos_id": model.trainer_spec.bos_id}, Path(folder))
        for split, parts in found.items():
            with open(f"{folder}/{split}.bin", "wb") as out:
                out.writelines(parts)
        val = np.memmap(f"{folder}/val.bin", dtype="<u2", mode="r")
        facts = {f"{split}_tokens": sum(map(len, parts)) for split, parts in found.items()}
        facts["bytes_per_token"] = count_bytes(val, model.pieces) / len(val)
        (args.out / "meta.json").unlink(missing_ok=True)  # it describes the old files
        for file in ("tokenizer.json", "train.bin", "val.bin"):
            os.replace(f"{folder}/{file}", args.out / file)
    write_meta(args.out, tok, **facts)
    print(f"{facts['train_tokens']:,} + {facts['val_tokens']:,} tokens of", end=" ")
    print(f"{facts['bytes_per_token']:.4f} bytes, vocabulary {tok.vocab_size}: {args.out}")


if __name__ == "__main__":
    console.run(main)
