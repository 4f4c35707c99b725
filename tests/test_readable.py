"""The measures of experiments/readable.py, and what the shipped checkpoints write: nothing that they have read."""

import random

import numpy as np
import pytest

from experiments import readable
from nanodlm import algorithms, corpus
from nanodlm import checkpoint as ckpt
from nanodlm.files import ROOT


def test_the_longest_copied_run_is_the_one_that_trying_all_of_them_finds():
    r = random.Random(1)
    text = "".join(r.choices("ab", k=3000))
    index = readable.index_of(text)
    for _ in range(20):
        at, size = r.randrange(2900), r.randrange(40, 90)
        sample = "".join(r.choices("ab", k=20)) + text[at : at + size] + "".join(r.choices("ab", k=20))
        true = max(n for n in range(130) if any(sample[i : i + n] in text for i in range(len(sample) - n + 1)))
        run = readable.longest_run(sample, text, index)
        assert len(run) == true >= 2 * readable.GRAM - 1 and run in sample and run in text
    assert not readable.longest_run("c" * 100, text, index)


@pytest.mark.parametrize("name", ["pydocs_mdlm", "bible_mdlm"])
def test_a_shipped_checkpoint_copies_no_run_of_50_characters(name):
    checkpoint = ckpt.load(ROOT / "checkpoints" / name)
    dataset = checkpoint.facts["dataset"]
    if not (corpus.find(dataset) / "meta.json").exists():
        pytest.skip(f"{dataset} has no token files")
    meta = corpus.load_meta(dataset, "train")
    text = readable.training_text(dataset, meta, checkpoint.tokenizer)
    ids = np.asarray(corpus.load_tokens(dataset, "train", meta))[:2000]
    assert checkpoint.tokenizer.decode(ids.tolist())[:500].replace("\0", "") in text.replace("\0", "")
    s = readable.Settings(num_samples=4, max_new_tokens=128)
    algorithm = algorithms.engine(algorithms.load(checkpoint.algorithm))
    samples = readable.generate(checkpoint, algorithm, s, 1.0, "cpu")
    index = readable.index_of(text)
    runs = [readable.longest_run(checkpoint.tokenizer.decode(x.tolist()), text, index) for x in samples]
    assert max(map(len, runs)) < readable.RUN, max(runs, key=len)
