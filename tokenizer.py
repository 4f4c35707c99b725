"""Text to ids and back. A tokenizer is described by a small JSON-able dict, its `spec`, which travels in a
data set's meta.json and in a checkpoint's config.json:

    {"kind": "char", "chars": "\\n !…z"}     one id per character
    {"kind": "bpe", "sha256": "…"}           byte-level BPE, in tokenizer.json beside the spec
    {"kind": "tiktoken", "name": "gpt2"}     GPT-2's 50257 byte-level BPE tokens

Every vocabulary is laid out the same way: text ids first, then end-of-text, then the mask token.
"""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Tokenizer:
    spec: dict
    vocab_size: int  # all ids, end-of-text, mask and unused ones included
    eos_id: int  # end-of-text: separates documents, stops generation
    mask_id: int  # never occurs in text
    encode: Callable[[str], list[int]]  # ValueError where a character is outside the vocabulary
    decode: Callable[[list[int]], str]  # special ids decode to nothing


def load(spec, directory=None):
    """The tokenizer that `spec` describes; `directory` holds its tokenizer.json where the kind needs one."""
    kind = spec.get("kind")
    if kind == "char":
        return char_tokenizer(spec)
    if kind == "bpe":
        return bpe_tokenizer(spec, Path(directory))
    if kind == "tiktoken":
        return tiktoken_tokenizer(spec)
    raise ValueError(f"unknown tokenizer kind {kind!r}; this code knows char, bpe and tiktoken")


def save_files(spec, source, target):
    """Copy what the spec needs besides itself from one directory to another."""
    if spec["kind"] == "bpe":
        shutil.copyfile(Path(source) / "tokenizer.json", Path(target) / "tokenizer.json")


def char_tokenizer(spec):
    chars = spec["chars"]
    stoi = {c: i for i, c in enumerate(chars)}
    n = len(chars)

    def encode(text):
        unknown = sorted(set(text) - stoi.keys())
        if unknown:
            raise ValueError(f"the text has {unknown[0]!r}, which is outside the {n} characters {chars!r}")
        return [stoi[c] for c in text]

    def decode(ids):
        return "".join(chars[i] for i in ids if i < n)

    return Tokenizer(spec, n + 2, n, n + 1, encode, decode)


def bpe_tokenizer(spec, directory):
    import tokenizers

    file = directory / "tokenizer.json"
    try:
        bpe = tokenizers.Tokenizer.from_file(str(file))
    except Exception as e:  # tokenizers raises nothing more specific
        raise ValueError(f"{file} cannot be read: {e}") from e
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]  # two BPEs of one size are not the same
    if spec.get("sha256", digest) != digest:
        raise ValueError(f"{file} is not the tokenizer that this data or checkpoint was made with; prepare it again")
    n = bpe.get_vocab_size()
    return Tokenizer(
        {**spec, "sha256": digest},
        n + 2,
        n,
        n + 1,
        lambda text: bpe.encode(text).ids,
        lambda ids: bpe.decode([i for i in ids if i < n]),
    )


def tiktoken_tokenizer(spec):
    import tiktoken

    if spec["name"] != "gpt2":
        raise ValueError(f"tiktoken encoding {spec['name']!r} is not supported; use gpt2")
    enc = tiktoken.get_encoding("gpt2")
    # 50304 rows instead of 50258: a multiple of 64 is what tensor cores want. The ids after the mask are unused.
    return Tokenizer(
        spec,
        50304,
        enc.eot_token,
        enc.n_vocab,
        enc.encode_ordinary,
        lambda ids: enc.decode([i for i in ids if i < enc.eot_token]),
    )


def train_bpe(texts, vocab_size, path):
    """Learn a byte-level BPE of `vocab_size` tokens (all 256 bytes included, so that no text is outside it)."""
    from tokenizers import Tokenizer as BPE
    from tokenizers import decoders, models, pre_tokenizers, trainers

    bpe = BPE(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet))
    bpe.save(str(path))
