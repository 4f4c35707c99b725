"""The documents of the task pydocs_next, from the token files that data/pydocs/prepare.py makes."""

import random

import datasets
import numpy as np

from nanodlm import corpus


def continuations(count=250, given=40, asked=16, **metadata):
    """{"test": data set} with text, choices and the number of the true one: `given` tokens of a document, and the next
    `asked` of it and of three other passages."""
    meta = corpus.load_meta("pydocs", "val")
    tokenizer, ids = corpus.load_tokenizer("pydocs", meta), corpus.load_tokens("pydocs", "val", meta)
    texts = np.split(ids, np.flatnonzero(ids == meta["eos_id"]) + 1)
    size = given + asked
    texts = [x[i : i + size] for x in texts for i in range(0, len(x) - size, size)]
    rng = random.Random(0)
    rng.shuffle(texts)
    rest = [tokenizer.decode(x[given:].tolist()) for x in texts]
    rows = []
    for i in range(min(count, len(texts) - 3)):
        choices = rest[i : i + 4]
        rng.shuffle(choices)
        text = tokenizer.decode(texts[i][:given].tolist())
        rows.append({"text": text, "choices": choices, "answer": choices.index(rest[i])})
    return {"test": datasets.Dataset.from_list(rows)}
