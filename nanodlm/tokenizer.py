"""Text to ids and back. A tokenizer is described by a small JSON-able dict, its `spec`, which travels in a
data set's meta.json and in a checkpoint's config.json:

    {"kind": "char", "chars": "\\n !…z"}     one id per character
    {"kind": "bpe", "sha256": "…"}           BPE, in tokenizer.json beside the spec
    {"kind": "tiktoken", "name": "gpt2"}     GPT-2's 50257 byte-level BPE tokens
    {"kind": "hf"}                           a released checkpoint's own, in its directory

The vocabularies of the first three are laid out the same way: text ids first, then end-of-text, then the mask token.
A BPE that has a token between documents names it, as "eos_id": 1.
"""

import functools
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from nanodlm import files
from nanodlm import text as texts


@dataclass(frozen=True)
class Tokenizer:
    spec: dict
    vocab_size: int  # 1 + the largest id, as ids may have holes; end-of-text, mask and unused ones included
    eos_id: int | None  # end-of-text: separates documents, stops generation
    mask_id: int | None  # never occurs in text; None for an autoregressive model that has no such token
    encode: Callable[[str], list[int]]  # of a text with markup; ValueError where a character is outside the vocabulary
    decode: Callable[[list[int]], str]  # special ids decode to nothing
    stop_ids: tuple[int, ...] = ()  # end-of-text, end of a turn: what generation stops at
    frame: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())  # ids before and behind a text, as [CLS] and [SEP]
    chat: Callable[[list[dict]], list[int]] | None = None  # messages, as ids up to where the assistant answers
    template: Callable[[list[dict], bool], str] | None = None  # … as text for encode(), or, where False, without asking
    stop_text: str = ""  # what ends an answer where no token does
    ends: tuple[str, ...] = ()  # what ends an answer in the template's text: stop tokens and stop_text
    mask_takes_space: bool = False  # the mask token stands for a word with the space before it, as in RoBERTa
    joins: bool = False  # words are joined by spaces that no token holds, as in WordPiece
    thoughts: str = "learn"  # or drop those of answers; empty: drop them, and ask with an empty one
    escape: Callable[[str], str] = str  # content, so that encode() gives none of the control tokens that it may spell
    cut: Callable[[list], list] | None = None  # [texts of a whole] -> [(its ids, how many are each text's)]; text.py
    controls: dict[int, str] = field(default_factory=dict)  # ids that only markup gives, and their texts


def load(spec, directory=None):
    """The tokenizer that `spec` describes; `directory` holds its tokenizer.json where the kind needs one."""
    kind = spec.get("kind")
    if kind == "char":
        return char_tokenizer(spec)
    if kind == "bpe":
        return bpe_tokenizer(spec, Path(directory))
    if kind == "tiktoken":
        return tiktoken_tokenizer(spec)
    if kind == "hf":
        return hf_tokenizer(spec, Path(directory))
    raise ValueError(f"unknown tokenizer kind {kind!r}; this code knows char, bpe, tiktoken and hf")


def encode(tokenizer, text, what):
    """The ids of a text; exits with what it is where a character is outside the vocabulary."""
    try:
        return tokenizer.encode(text)
    except ValueError as e:
        sys.exit(f"{what} does not fit the vocabulary: {e}")


HOLE = r"\[MASK(?:\*\d{1,15})?\]"


def masks(hole):
    """How many masks [MASK] or [MASK*8] stands for."""
    return int(hole[6:-1] or 1)


def parts_of(text):
    """A text with such holes as fill_in() has it."""
    return [masks(part) if re.fullmatch(HOLE, part) else part for part in re.split(f"({HOLE})", text)]


def fill_in(tokenizer, parts, what, frame=()):
    """The ids of a text with holes, behind those of `frame`: its parts are texts, and how many masks a hole has. It is
    encoded as one text where the mask can be written; by itself a part would begin as a text does, with SentencePiece's
    space. And the places, slices, of the holes that a space in front of them is left to, where words bring their own:
    the first token that is filled in should begin with it, and where it does not, text.filled_in() writes the space."""
    mask, ids, left, text = tokenizer.controls.get(tokenizer.mask_id), [*frame], [], ""
    for part, hole in zip(parts, [*parts[1:], ""]):
        if isinstance(part, int):
            text, ids = text + (mask or "") * part, ids + [tokenizer.mask_id] * part
            continue
        leave = isinstance(hole, int) and part.endswith(" ") and texts.is_of_next_word(tokenizer, part)
        part = part[:-1] if leave else part
        text += part
        whole = mask and not tokenizer.mask_takes_space
        ids = [*frame, *encode(tokenizer, text, what)] if whole else ids + encode(tokenizer, part, what)
        left += [slice(len(ids), len(ids) + hole)] if leave else []
    return ids, left


def end_of_text(tokenizer, what):
    """The id of end-of-text; exits with what needs it where there is none."""
    if tokenizer.eos_id is None:
        sys.exit(f"{what} needs an end-of-text, and the tokenizer has none; name one as eos_token_id in config.json")
    return tokenizer.eos_id


def alike(a, b):
    """Whether the ids of two tokenizers mean the same, as GPT-2's do in tiktoken and in transformers."""
    probe = "The quick brown fox; 3.14 + 2 = 5.14\n\tdef f(x):  # \u00e9\u4e2d"
    try:
        return a.spec == b.spec or (a.encode(probe), a.eos_id, a.mask_id) == (b.encode(probe), b.eos_id, b.mask_id)
    except ValueError:  # the probe is outside one's characters
        return False


def save_files(spec, source, target):
    """Copy what the spec needs besides itself from one directory to another."""
    if spec["kind"] == "bpe":
        shutil.copyfile(Path(source) / "tokenizer.json", Path(target) / "tokenizer.json")
    if spec["kind"] == "hf":
        for file in (f for name in HF_FILES for f in Path(source).glob(name) if f.is_file()):
            copy = Path(target) / file.relative_to(source)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)


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

    return Tokenizer(spec, n + 2, n, n + 1, encode, decode, (n,))


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
    bpe.encode_special_tokens = True  # a text is a text, whatever it spells
    n = 1 + max(bpe.get_vocab().values(), default=-1)
    eos_id = spec.get("eos_id", n)
    if not 0 <= eos_id <= n:
        raise ValueError(f"eos_id={eos_id} is none of the {n} tokens in {file}")
    mask_id = n if eos_id < n else n + 1
    return Tokenizer(
        {**spec, "sha256": digest},
        mask_id + 1,
        eos_id,
        mask_id,
        lambda text: bpe.encode(text).ids,
        lambda ids: bpe.decode([i for i in ids if i < n]),
        (eos_id,),
    )


def tiktoken_tokenizer(spec):
    import tiktoken

    if spec["name"] != "gpt2":
        raise ValueError(f"tiktoken encoding {spec['name']!r} is not supported; use gpt2")
    try:
        enc = tiktoken.get_encoding("gpt2")
    except OSError as e:  # of the network, too
        raise ValueError(
            f"GPT-2's vocabulary could not be had: set TIKTOKEN_CACHE_DIR to a copy ({str(e)[:200]})"
        ) from e
    # 50304 rows instead of 50258: a multiple of 64 is what tensor cores want. The ids after the mask are unused.
    return Tokenizer(
        spec,
        50304,
        enc.eot_token,
        enc.n_vocab,
        enc.encode_ordinary,
        lambda ids: enc.decode([i for i in ids if i < enc.eot_token]),
        (enc.eot_token,),
    )


HF_FILES = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "config.json",  # which may say the roles of tokens, too
    "*.jinja",
    "additional_chat_templates/*.jinja",  # those with names, of tools or of documents
    "*.model",
    "*.py",  # code for other libraries; never run here
)
END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<|role_end|>", "<end_of_turn>", "<turn|>")


def read_json(file):
    return files.read_json(file) if file.is_file() else {}


def read_hf(directory):
    """The tokenizer of `transformers` in a directory, without running code from there."""
    import transformers

    if not any(f.is_file() for name in ("tokenizer.json", "vocab*", "*.model") for f in directory.glob(name)):
        raise ValueError(f"{directory} has no tokenizer.json, vocabulary or *.model")  # some would load as empty
    classes = [transformers.AutoTokenizer]
    if (directory / "tokenizer.json").is_file():  # whatever class of its own the checkpoint names, this says it all
        classes.append(transformers.PreTrainedTokenizerFast)
    if (
        read_json(directory / "tokenizer_config.json").get("tokenizer_class") == "DreamTokenizer"
    ):  # a copy of Qwen2's, in Python
        classes = [transformers.Qwen2Tokenizer]
    said, level = None, transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # it warns of every model_type that it does not know
    try:
        for kind in classes:
            try:
                return kind.from_pretrained(str(directory), trust_remote_code=False)
            except Exception as e:  # whatever transformers raises
                said = said or (str(e).strip() or type(e).__name__).splitlines()[0]
        raise ValueError(f"the tokenizer in {directory} cannot be read: {said}")
    finally:
        transformers.logging.set_verbosity(level)


def hf_tokenizer(spec, directory):
    """A released checkpoint's tokenizer, through `transformers`. What config.json and generation_config.json say of
    special tokens goes before what the tokenizer says."""
    hf = read_hf(directory)
    config, generation = (read_json(directory / f"{name}.json") for name in ("config", "generation_config"))
    if isinstance(hf.chat_template, dict):  # templates with names; conversations are written by the default one
        named = ", ".join(sorted(hf.chat_template))
        hf.chat_template = hf.chat_template.get("default")
        if hf.chat_template is None:
            raise ValueError(
                f"{directory} has no default chat template, only {named}; save the one for conversations as "
                "chat_template.jinja there"
            )

    def ids_of(key, default):
        found = next((c[key] for c in (generation, config) if c.get(key) is not None), default)
        found = [] if found is None else found if isinstance(found, list) else [found]
        for i in found:
            if type(i) is not int or i >= 2**31:
                raise ValueError(f"{directory}: {key}={i!r} is no token id")
        return [i for i in found if i >= 0]  # -1 is how some say that there is none

    vocab = hf.get_vocab()
    ends = ids_of("eos_token_id", hf.eos_token_id) or ids_of("pad_token_id", hf.pad_token_id)
    stops = dict.fromkeys([*ends, *([hf.eos_token_id] if hf.eos_token_id is not None else [])])
    stops |= dict.fromkeys(vocab[t] for t in END_OF_TURN if t in vocab)
    mask = next(iter(ids_of("mask_token_id", hf.mask_token_id)), None)
    mask = vocab.get("<|mdm_mask|>", vocab.get("<|mask|>", vocab.get("<[MASK]>"))) if mask is None else mask
    mask = vocab.get("|<MASK>|") if mask is None else mask  # Fast-dLLM v2

    controls = texts.controls_of(hf)
    found = texts.pattern(token.content for token in controls.values())
    encode, cut = texts.encoder(hf, controls, found)

    def escape(content):
        return texts.escape(found, content)

    framed, plain = hf.encode("a"), encode("a")
    at = next((i for i in range(len(framed)) if framed[i : i + len(plain)] == plain), 0)

    # Converted Qwen3s were trained, and are evaluated, with an empty thought in front of every answer.
    thinking = {"enable_thinking": False} if "A2D" in str(config.get("architectures")) else {}

    def template(messages, ask, thoughts=""):
        keys = dict(add_generation_prompt=ask, tokenize=False)
        keys |= {"enable_thinking": thoughts == "think"} if thoughts in ("empty", "think") else {}
        said = [text for m in messages for text in m.values() if isinstance(text, str)]
        if not found or found.search("\0".join(said)) or any(texts.MARK in text for text in said):  # which is rare
            messages = escape(messages)
        return hf.apply_chat_template([messages], **keys)[0]  # a list of one, as it refuses an empty one

    # What ids mean, and how conversations look: data prepared for one tokenizer does not fit another.
    content = [sorted(vocab.items()), encode("Hello, World! 1234\n  \u00e9"), hf.chat_template, thinking]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    if spec.get("sha256", digest) != digest:
        raise ValueError(f"{directory} has not the tokenizer that this data was made with; prepare it again")

    word = next((t for t in vocab if t.isalnum() and t.isascii()), None)
    own = config.get("nanodlm", config)  # what a checkpoint of ours says of how it was trained
    thoughts = own.get("thoughts", "empty" if thinking else "learn") if isinstance(own, dict) else "learn"
    stop_text = "[/Answer]" if "[/Answer]" in str(hf.chat_template) else ""  # ModernBERT-chat's template is plain text
    made = Tokenizer(
        {**spec, "sha256": digest},
        1 + max([*vocab.values(), *hf.added_tokens_decoder], default=-1),
        ends[0] if ends else None,
        mask,
        encode,
        lambda ids: hf.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False),
        tuple(stops),
        (tuple(framed[:at]), tuple(framed[at + len(plain) :])),
        None,
        template if hf.chat_template else None,
        stop_text,
        tuple(t for t in (*hf.convert_ids_to_tokens(list(stops)), stop_text) if t),
        mask_takes_space=bool(mask in hf.added_tokens_decoder and hf.added_tokens_decoder[mask].lstrip),
        joins=hf.decode([vocab[word]] * 2) == f"{word} {word}" if word else False,
        escape=escape,
        cut=cut,
        controls={i: token.content for i, token in controls.items()},
    )
    return with_thoughts(made, thoughts)


def with_thoughts(tokenizer, thoughts):
    """The tokenizer whose template writes thoughts so: learn, drop or empty; auto: as it is. For `empty`, templates
    like Qwen3's put an empty thought in front of an answer; for `think`, those like Gemma 4's ask for one."""
    if not tokenizer.template or thoughts == "auto":
        return tokenizer
    template = functools.partial(tokenizer.template, thoughts=thoughts)
    chat = lambda messages: tokenizer.encode(template(messages, True))  # noqa: E731
    return replace(tokenizer, template=template, chat=chat, thoughts=thoughts)


# A conversation in plain text, for a model that has no template of its own.
PLAIN_TEMPLATE = (
    "BEGIN{% for m in messages %}{{ m['role'] | capitalize }}: {{ m['content'] | trim }}"
    "{% if m['role'] == 'assistant' %}END{% endif %}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
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


def read_sentencepiece(path):
    """The protobuf that a SentencePiece model is, one of BPE that falls back to bytes; exits where it is none."""
    from google.protobuf.message import DecodeError
    from transformers.convert_slow_tokenizer import import_protobuf

    model = import_protobuf().ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError:
        model.Clear()
    said = model.trainer_spec
    if not model.pieces or said.model_type != said.BPE or not said.byte_fallback:
        sys.exit(f"{path} is no SentencePiece model of BPE with bytes: get it again")
    return model


def from_sentencepiece(model):
    """Such a model as a BPE of `tokenizers`: the same ids of a text, but for some that no keyboard types, and the same
    text of ids, but for bytes that are no UTF-8. Spaces at both ends are kept, as a text may be a part of another."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers

    vocab = {p.piece: i for i, p in enumerate(model.pieces)}
    words = {p.piece: p.score for p in model.pieces if p.type in (p.NORMAL, p.USER_DEFINED)}
    cuts = [(word[:i], word[i:]) for word in words for i in range(1, len(word))]
    merges = sorted((cut for cut in cuts if words.keys() >= {*cut}), key=lambda cut: -words["".join(cut)])
    bpe = Tokenizer(models.BPE(vocab, merges, byte_fallback=True))

    space, said, steps = "\u2581", model.normalizer_spec, []
    if said.precompiled_charsmap:
        steps.append(normalizers.Precompiled(said.precompiled_charsmap))
    if said.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if said.add_dummy_prefix:
        steps.append(normalizers.Prepend(" "))
    bpe.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", space)])
    bpe.decoder = decoders.Sequence([decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse()])
    bpe.add_special_tokens([p.piece for p in model.pieces if p.type in (p.CONTROL, p.UNKNOWN)])
    return bpe
