"""Tokenizers of every kind that people have, tiny, and the chat templates that released models bring."""

import json
import shutil
from pathlib import Path

import numpy as np
import tokenizers as T
import torch
import transformers as tf

from model import Config, Transformer
from nanodlm import checkpoint as ckpt
from nanodlm import tokenizer as tokenizers

SPECIAL = ["<unk>", "<s>", "</s>", "<|mask|>", "<|im_start|>", "<|im_end|>", "[CLS]", "[SEP]"]
TEXT = """The user asks what a fox eats; the assistant answers: a mouse, or an apple. The system says: be brief!
def f(a):
    return a + 1  # 2 + 2 = 4
Question no. 0 1 2 3 4 5 6 7 8 9; Answer, User, Assistant: yes it is."""
U = "\u2581"  # SentencePiece's space


def byte_level(prefix=False, hole=False):
    bpe = T.Tokenizer(T.models.BPE())
    bpe.pre_tokenizer, bpe.decoder = T.pre_tokenizers.ByteLevel(add_prefix_space=prefix), T.decoders.ByteLevel()
    letters = T.pre_tokenizers.ByteLevel.alphabet()
    keys = dict(vocab_size=330, initial_alphabet=letters, show_progress=False)
    bpe.train_from_iterator([TEXT] * 3, T.trainers.BpeTrainer(**keys))
    if not hole:
        return bpe
    content = json.loads(bpe.to_str())
    words = [*SPECIAL, *content["model"]["vocab"]]
    content["model"]["vocab"] = {t: i + (i > 300) * 7 for i, t in enumerate(words)}
    return T.Tokenizer.from_str(json.dumps(content))


def pieces():
    """SentencePiece's words and letters, and all bytes."""
    words = {U + w for w in TEXT.split()} | {U * 4, U * 2, U, "\n"} | set(TEXT.replace(" ", U))
    return ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *sorted(words)]


def llama(prefix=True):
    """As Llama 2's tokenizer.json: a space put in front of each stretch of text, and taken away by the decoder."""
    vocab, merges = {p: i for i, p in enumerate(pieces())}, []
    for word in sorted((p for p in vocab if len(p) > 1 and not p.startswith("<")), key=len):
        for n in range(2, len(word) + 1):
            pair = word[: n - 1], word[n - 1]
            vocab.setdefault(word[:n], len(vocab))
            merges += [pair] if pair not in merges else []
    core = T.Tokenizer(T.models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    replace = T.normalizers.Replace(" ", U)
    core.normalizer = T.normalizers.Sequence([T.normalizers.Prepend(U), replace]) if prefix else replace
    D = T.decoders
    strip = [D.Strip(" ", 1, 0)] if prefix else []
    core.decoder = D.Sequence([D.Replace(U, " "), D.ByteFallback(), D.Fuse(), *strip])
    return core


def unigram(scheme):
    scores = [(p, 0.0 if len(p) == 3 and p == "<unk>" else -2.0 - 8 / len(p)) for p in pieces()]
    core = T.Tokenizer(T.models.Unigram(scores, unk_id=0, byte_fallback=True))
    core.pre_tokenizer = T.pre_tokenizers.Metaspace(prepend_scheme=scheme)
    D = T.decoders
    core.decoder = D.Sequence([D.ByteFallback(), D.Metaspace(prepend_scheme=scheme)])
    return core


def wordpiece():
    letters = sorted({c for c in TEXT.lower() if not c.isspace()} | set("\u00e9"))
    words = ["<unk>", *letters, *(f"##{c}" for c in letters), "the", "fox", "##s", "user", "mouse", "assistant"]
    core = T.Tokenizer(T.models.WordPiece({w: i for i, w in enumerate(dict.fromkeys(words))}, unk_token="<unk>"))
    core.normalizer, core.pre_tokenizer = (
        T.normalizers.BertNormalizer(lowercase=True),
        T.pre_tokenizers.BertPreTokenizer(),
    )
    core.decoder = T.decoders.WordPiece()
    return core


def wordlevel():
    words = ["<unk>", *dict.fromkeys(TEXT.split())]
    core = T.Tokenizer(T.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = T.pre_tokenizers.WhitespaceSplit()
    return core


KINDS = {
    "byte-level": byte_level,
    "byte-level, a space in front": lambda: byte_level(True),
    "byte-level, ids with a hole": lambda: byte_level(hole=True),
    "llama": llama,
    "llama, no space in front": lambda: llama(False),
    "unigram": lambda: unigram("always"),
    "unigram, first only": lambda: unigram("first"),
    "unigram, no space in front": lambda: unigram("never"),
    "wordpiece": wordpiece,
    "wordlevel": wordlevel,
}

EACH, DONE, ASKING = "{% for m in messages %}", "{% endfor %}", "{% if add_generation_prompt %}"
TURN = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
ASK = ASKING + "<|im_start|>assistant\n{% endif %}"
LLAMA2 = """{% if messages[0].role == 'system' %}
{% set first = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}{% set rest = messages[1:] %}
{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}
{% for m in rest %}
{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{% set text = first + m.content if loop.first else m.content %}
{% if m.role == 'user' %}{{ '<s>[INST] ' + text.strip() + ' [/INST]' }}
{% else %}{{ ' ' + text.strip() + ' </s>' }}{% endif %}
{% endfor %}""".replace("}\n", "}")
# as Qwen3's: the thoughts of earlier answers are taken out, and the last one is given an empty one
THOUGHTS = """{% for m in messages %}{% set parts = m.content.split('</think>') %}
{% set text = parts[-1].lstrip('\n') %}
{% if m.role == 'assistant' and loop.last %}
{% set thought = parts[0].split('<think>')[-1].strip('\n') if parts | length > 1 else '' %}
{{ '<|im_start|>assistant\n<think>\n' + thought + '\n</think>\n\n' + text + '<|im_end|>\n' }}
{% else %}{{ '<|im_start|>' + m.role + '\n' + text + '<|im_end|>\n' }}{% endif %}{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}
{% if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}""".replace("}\n", "}")
TEMPLATES = {
    "chatml": EACH + TURN + DONE + ASK,
    "llama 3": "<s>"
    + EACH
    + "<|im_start|>{{ m.role }}[SEP]\n\n{{ m.content | trim }}<|im_end|>"
    + DONE
    + ASKING
    + "<|im_start|>assistant[SEP]\n\n{% endif %}",
    "llama 2": LLAMA2,
    "llada": "<s>" + EACH + TURN + DONE + "{{ '<|im_start|>assistant\n' }}",
    "modernbert-chat": EACH + "{% if m.role == 'assistant' %}[Answer]{{ m.content }}[/Answer]\n{% else %}"
    "[Question]{{ m.content }}[/Question]\n{% endif %}" + DONE + ASKING + "[Answer]{% endif %}",
    "plain": tokenizers.PLAIN_TEMPLATE.replace("BEGIN", "[CLS]").replace("END", "</s>"),
    "no end of turn": EACH + "{{ m.role }}: {{ m.content }}\n" + DONE + ASKING + "assistant:{% endif %}",
    "thoughts": THOUGHTS,
}


def write(path, kind, template=None, special=SPECIAL, **roles):
    """Write a tokenizer to a directory, with what special tokens there are, and the roles that they have."""
    hf = tf.PreTrainedTokenizerFast(tokenizer_object=KINDS[kind](), **roles)
    hf.add_special_tokens({"additional_special_tokens": [t for t in special if t not in roles.values()]})
    hf.chat_template = TEMPLATES.get(template)
    hf.save_pretrained(path)
    return hf


def teller(path, text):
    """Write, beside a tokenizer, an autoregressive model that says this text, and then its end, from wherever it is in
    it."""
    tokenizer = tokenizers.load({"kind": "hf"}, path)
    said = [*tokenizer.encode(text), tokenizer.eos_id]
    keys = dict(n_layer=1, n_head=1, n_embd=64, position="learned", causal=True)
    net = Transformer(Config(max(tokenizer.vocab_size, max(said) + 1), 64, **keys))
    weights = {name: torch.full_like(p, float(p.dim() == 1)) for name, p in net.named_parameters()}
    weights["pos_embed.weight"] = torch.eye(64)  # nothing but a token's place is seen
    for place, token in enumerate(said):  # behind a mask, which an autoregressive model of ours begins with
        weights["head_weight"][token, place] = 9.0
    ckpt.save(path / "ar", weights, net.config, tokenizer, path, "ar", {})


GOLDEN = Path(__file__).parent / "golden"  # sentencepiece.model was made by sentencepiece 0.2.3, and so was the .json


def parameter_golf(folder, train=3):
    """Files as parameter-golf publishes them, of the texts in sentencepiece.json: one for validation, in which all
    texts are, and `train` of the texts backwards."""
    golden = json.loads((GOLDEN / "sentencepiece.json").read_text())
    texts = [[1, *ids] for _, ids, _ in golden["texts"]]  # behind <s>
    named = {f"train_{i:06d}": sum(texts[::-1], []) for i in range(train)} | {"val_000000": sum(texts, [])}
    (folder / "tokenizers").mkdir(parents=True)
    shutil.copy(GOLDEN / "sentencepiece.model", folder / "tokenizers/fineweb_1024_bpe.model")
    for name, ids in named.items():
        header = np.zeros(256, "<i4")
        header[:3] = 20240520, 1, len(ids)
        file = folder / f"datasets/fineweb10B_sp1024/fineweb_{name}.bin"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(header.tobytes() + np.array(ids, "<u2").tobytes())
    entry = {"name": "fineweb10B_sp1024", "stats": {"files_train": train, "files_val": 1}}
    (folder / "manifest.json").write_text(json.dumps({"datasets": [{"name": "fineweb10B_sp512"}, entry]}))
    return golden
