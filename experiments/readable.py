"""Is what a small model writes worth reading, and is it its own?

    python data/pydocs/prepare.py && python train.py config/quickstart_ar.py      (the judge)
    python experiments/readable.py --judge=out/quickstart_ar                      the shipped checkpoint
    python experiments/readable.py --temperature=0.7,1 --num_samples=32 --page=4
    python experiments/readable.py --checkpoint=checkpoints/bible_mdlm --quota=ancestral --steps=256 --remask=0.02

One line for each temperature, and one for held-out text of the same length:

  entropy      of the token frequencies within a text, nats: compare perplexities at equal entropy, as text that repeats
               itself has a low one of both ("Generative Frontiers", arXiv 2604.02718)
  perplexity   under the judge, an autoregressive model of the same training text
  words        the share of the words that occur in the training text
  copied       texts with a run of 50 characters that stands in the training text, and the longest run of all; what
               held-out text has of these is formula, as a document's refrains

Behind the table is a page of samples for the eye, the first ones of the seed, and where the longest run is from.
"""

import math
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nanodlm import algorithms, configurator, console, corpus, measures  # noqa: E402
from nanodlm import checkpoint as ckpt  # noqa: E402
from nanodlm.bounds import Amount, Place, Seed, Size, Whole, check  # noqa: E402
from nanodlm.likelihood import mean_and_error  # noqa: E402

RUN = 50  # characters: so long a run is a copy
GRAM = 16  # characters of the index: runs of 2 * GRAM - 1 and more are found


@dataclass
class Settings:
    checkpoint: Place = "checkpoints/pydocs_mdlm"
    judge: Place = ""  # an autoregressive checkpoint of the same text
    dataset: Place = ""  # default: what the checkpoint was trained on
    temperature: tuple[Amount, ...] = (1.0,)
    num_samples: Size = 32
    max_new_tokens: Size = 256
    batch_size: Size = 16
    windows: Whole = 64  # of held-out text, for bits per byte; 0 leaves them out
    samples: Size = 4  # masks per window
    page: Whole = 4  # samples to print
    seed: Seed = 1

    def __post_init__(self):
        check(self)


def training_text(dataset, meta, tokenizer):
    """The documents of the training split, with "\\0" between them, so that no run goes from one to the next."""
    ids = np.asarray(corpus.load_tokens(dataset, "train", meta)).reshape(-1)
    parts = np.split(ids, np.flatnonzero(ids == tokenizer.eos_id))
    return "\0".join(tokenizer.decode(part.tolist()) for part in parts)


def index_of(text):
    """{GRAM characters: where}, of every GRAMth place of the text: a run of 2 * GRAM - 1 covers one of them."""
    index = {}
    for i in range(0, len(text) - GRAM + 1, GRAM):
        index.setdefault(text[i : i + GRAM], []).append(i)
    return index


def longest_run(sample, text, index):
    """The longest run of characters in both, if it has 2 * GRAM - 1 at least (shorter ones may be missed)."""
    best = ""
    for i in range(len(sample) - GRAM + 1):
        for j in index.get(sample[i : i + GRAM], ()):
            a, b = i, i + GRAM
            while a and j - (i - a) and sample[a - 1] == text[j - (i - a) - 1]:
                a -= 1
            while b < len(sample) and j + b - i < len(text) and sample[b] == text[j + b - i]:
                b += 1
            best = max(best, sample[a:b], key=len)
    return best


def words(text):
    return re.findall(r"[a-z]+", text.lower())


def row(name, texts, tokens, text, index, known, judge, s, device):
    """One line of the table, and the longest copied run."""
    p = [np.bincount(x) / len(x) for x in tokens]
    entropy = mean_and_error(torch.tensor([-sum(q * math.log(q) for q in x if q) for x in p]))[0]
    runs = [longest_run(sample, text, index) for sample in texts]
    found = [word in known for sample in texts for word in words(sample)]
    judged = measures.judge(texts, [], s, judge, device) if judge else {}
    perplexity = f"{judged['perplexity']:7.1f} ± {judged['perplexity_error'] or 0:<5.1f}" if judged else " " * 15
    copies = sum(len(run) >= RUN for run in runs)
    longest = max(runs, key=len)
    share = sum(found) / max(1, len(found))
    print(f"{name:18s} {entropy:7.3f}  {perplexity}  {share:6.1%}  {copies:4d} of {len(texts)}, longest {len(longest)}")
    return longest


def generate(checkpoint, algorithm, s, temperature, device, options=None):
    """The ids of s.num_samples texts, arrays; text number i is the same in batches of any size."""
    room = min(s.max_new_tokens, checkpoint.model.config.seq_len)
    given = dict(max_new_tokens=room, temperature=temperature, seed=s.seed)
    options = replace(options or algorithm.SampleOptions(), **given)
    empty, out = torch.empty(0, dtype=torch.int64, device=device), []
    for i in range(0, s.num_samples, s.batch_size):
        numbers = torch.arange(i, min(i + s.batch_size, s.num_samples))
        keys = dict(mask_id=checkpoint.tokenizer.mask_id, numbers=numbers)
        out += algorithm.generate(checkpoint.model, [empty] * len(numbers), options, **keys).tokens
    return [x.cpu().numpy() for x in out]


def main(argv):
    values = configurator.read(argv)
    s = configurator.fill({k: v for k, v in values.items() if hasattr(Settings, k) or k == "help"}, Settings)
    device = torch.device("cpu")
    checkpoint = ckpt.load(s.checkpoint, device)
    algorithm = algorithms.engine(algorithms.load(checkpoint.algorithm))
    rest = {k: v for k, v in values.items() if not hasattr(Settings, k)}  # how to decode
    options = configurator.fill(rest, algorithm.SampleOptions, quiet=True)
    as_eval = SimpleNamespace(**vars(s), dtype="float32", mauve=False)  # what measures.py asks eval.py's settings
    judge = measures.read_judge(as_eval, [checkpoint], device) if s.judge else None
    dataset, tokenizer = s.dataset or checkpoint.facts.get("dataset"), checkpoint.tokenizer
    meta = corpus.load_meta(dataset, "train", "val")
    text = training_text(dataset, meta, tokenizer)
    index, known = index_of(text), set(words(text))

    size = min(s.max_new_tokens, measures.window(checkpoint))
    if s.windows:
        windows = corpus.eval_windows(dataset, meta, measures.window(checkpoint), s.windows).astype("int64")
        nats = measures.likelihood(checkpoint, algorithm, s, s.seed, torch.from_numpy(windows).to(device), meta)
        bits, error = (x / math.log(2) / meta["bytes_per_token"] for x in mean_and_error(nats))
        print(f"{'exact' if algorithm.CAUSAL else 'NELBO'} {bits:.3f} ± {error:.3f} bits per byte of {dataset}")
    print(f"{size} tokens     entropy  {'perplexity' if judge else '':15s}   words  copied runs of {RUN} characters")
    measure = dict(text=text, index=index, known=known, judge=judge, s=as_eval, device=device)
    held = list(corpus.eval_windows(dataset, meta, size, s.num_samples).astype("int64"))
    row("held-out text", [tokenizer.decode(x.tolist()) for x in held], held, **measure)
    for temperature in s.temperature:
        tokens = generate(checkpoint, algorithm, s, temperature, device, options)
        texts = [tokenizer.decode(x.tolist()) for x in tokens]
        longest = row(f"temperature {temperature:g}", texts, tokens, **measure)
        if longest:
            print(f"  its longest run: {longest!r}")
        for number, sample in enumerate(texts[: s.page]):
            print(f"\n---- temperature {temperature:g}, seed {s.seed}, text {number} " + "-" * 40 + f"\n{sample}\n")


if __name__ == "__main__":
    console.run(main, sys.argv[1:])
