"""Conversations for tests, as lines of a JSONL file, and a tiny tokenizer to write them with."""

import itertools
import json
import os
from collections import Counter

import numpy as np
import pytest
import torch
import transformers as tf

from nanodlm import batches, conversations, corpus, log
from nanodlm import tokenizer as tokenizers

torch.set_num_threads(1)
tf.utils.logging.disable_progress_bar()

END, TURN, ENDTURN, MASK = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>"
WORDS = "the user asks what a fox may eat and the assistant says that it eats a mouse or an apple most of all days"
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + ASK
TEMPLATES = {
    "chatml": CHATML,
    "plain": tokenizers.PLAIN_TEMPLATE.replace("BEGIN", "").replace("END", END),
    # LLaDA's, which asks for an answer behind every conversation
    "llada": CHATML.replace("{% if add_generation_prompt %}", "").replace("{% endif %}", "{{ '' }}"),
    # as Qwen3's, which takes the thoughts out of earlier answers
    "thoughts": CHATML.replace(
        "{{ m.content }}", "{{ m.content if loop.last else m.content.split('</think>')[-1] | trim }}"
    ),
    "endless": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}",
    "strict": "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}" + CHATML,
}


def turns(*texts, system=None):
    """The messages of a conversation, the user's first."""
    said = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return ([] if system is None else [{"role": "system", "content": system}]) + said


def is_val(question):
    return conversations.is_val(turns(question))


def question(val, beginning="what", number=0):
    """A question on the side of validation, or of training."""
    found = (q for q in (f"{beginning} {i}" for i in itertools.count()) if is_val(q) == val)
    return next(itertools.islice(found, number, None))


def simple(name, n):
    """n conversations that say whose they are and are all learnt from, and one for validation."""
    asked = (question(False, name, i) for i in range(n))
    return [*(turns(q, f"the fox {q}") for q in asked), turns(question(True, name), f"val {name}")]


def talks(n, seed=0, low=2, high=9):
    """n conversations of one to three questions and answers, one in eight for validation, some with a system turn."""
    rng, found = np.random.default_rng(seed), []
    for i in range(n):
        said = [" ".join(rng.choice(WORDS.split(), rng.integers(low, high))) for _ in range(2 * rng.integers(1, 4))]
        said[0], said[1] = question(i % 8 == 3, f"{said[0]} {seed} {i}"), f"{said[1]} {seed} {i}"
        found.append(turns(*said, system="be brief" if i % 5 == 0 else None))
    return found


def write_lines(path, records):
    records = [r if isinstance(r, dict) else {"messages": r} for r in records]
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return str(path)


def spans(learn):
    """[(begin, end)] of what is learnt."""
    edges = np.flatnonzero(np.diff([0, *np.asarray(learn, dtype=int), 0]))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist()))


def answers(rows, tok):
    """What is learnt of the conversations in these rows, in order."""
    found = (batches.read(item) for row in rows for _, item in row)
    return [tok.decode(ids[learn]) for ids, learn in found]


def sources_of(rows, tok):
    """How many of the rows' conversations, by simple(), are whose."""
    return Counter(text.split()[2] for text in answers(rows, tok))


def sentence(call, *args, **keys):
    """The one sentence that the call exits with."""
    with pytest.raises(SystemExit) as e:
        call(*args, **keys)
    assert isinstance(e.value.code, str) and "\n" not in e.value.code, e.value.code
    return e.value.code


def place(root, name, content):
    """data/<name>/prepare.py under `root`."""
    (root / "data" / name).mkdir(parents=True, exist_ok=True)
    (root / "data" / name / "prepare.py").write_text(content)


def write_tokenizer(bpe, path, template):
    special = dict(eos_token=END, pad_token=END, mask_token=MASK, additional_special_tokens=[TURN, ENDTURN])
    hf = tf.PreTrainedTokenizerFast(tokenizer_file=str(bpe), **special)
    hf.chat_template = template
    hf.save_pretrained(path)
    return len(hf)


@pytest.fixture(scope="module", autouse=True)
def elsewhere(tmp_path_factory):
    """Token files go here and not into the project, which is left as it was; they are made without a pool."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("root")
        patch.setattr(corpus, "ROOT", root)
        patch.setattr(os, "cpu_count", lambda: 2)
        patch.setattr(log, "plot", lambda *_: None)  # half of the time of a tiny run
        patch.syspath_prepend(str(root))  # data/<name>/prepare.py of its own
        yield root


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe") / "bpe.json"
    tokenizers.train_bpe([WORDS, "system user assistant be brief 0123456789"], 320, path)
    return path


@pytest.fixture(scope="module")
def tokenizer_of(bpe, tmp_path_factory):
    """(tokenizer, its directory) of a template, by its name."""
    path, made = tmp_path_factory.mktemp("tokenizers"), {}

    def get(name):
        if name not in made:
            write_tokenizer(bpe, path / name, TEMPLATES[name])
            made[name] = tokenizers.load({"kind": "hf"}, path / name), path / name
        return made[name]

    return get


@pytest.fixture(scope="module")
def tok(tokenizer_of):
    return tokenizer_of("chatml")[0]


@pytest.fixture
def data(tokenizer_of, tmp_path):
    """Conversations of JSONL files, which are given as {name: records}."""

    def make(files, mixture=None, seq_len=1024, seed=1, split="train", template="chatml", **options):
        for name, records in files.items():
            write_lines(tmp_path / f"{name}.jsonl", records)
        names = mixture or dict.fromkeys(files)
        dataset = ",".join(f"{tmp_path / n}.jsonl" + ("" if w is None else f":{w}") for n, w in names.items())
        options = conversations.Options(**{"fill": 1, **options})
        return batches.Conversations(dataset, *tokenizer_of(template), seq_len, options, seed, split)

    return make
