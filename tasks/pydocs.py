"""The documents of the task pydocs_next, from the token files that data/pydocs/prepare.py makes."""

import random

import datasets
import numpy as np

from data import common


def continuations(count=250, given=40, asked=20, **metadata):
    """{"test": data set} with text, choices and the number of the true one: `given` tokens of a document, and the next
    `asked` of it and of three others, which begin at the same place of theirs."""
    meta = common.load_meta("pydocs")
    tokenizer, ids = common.load_tokenizer("pydocs", meta), common.load_tokens("pydocs", "val", meta)
    texts = np.split(ids, np.flatnonzero(ids == meta["eos_id"]) + 1)
    texts = [x for x in texts if len(x) > given + asked]
    rng = random.Random(0)
    rng.shuffle(texts)
    rest = [tokenizer.decode(x[given : given + asked].tolist()) for x in texts]
    rows = []
    for i in range(min(count, len(texts) - 3)):
        choices = rest[i : i + 4]
        rng.shuffle(choices)
        text = tokenizer.decode(texts[i][:given].tolist())
        rows.append({"text": text, "choices": choices, "answer": choices.index(rest[i])})
    return {"test": datasets.Dataset.from_list(rows)}
