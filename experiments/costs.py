"""How the cost of decoding grows, measured beside a model of it: forwards x (tokens per forward x FLOPs per token, over
a speed, + what a forward costs whatever is in it).

    python experiments/costs.py            five axes, one plot each in assets/, 5 minutes on one thread of a quiet CPU
    python experiments/costs.py --small    the same on a toy, in seconds, to see that it runs

Five decoders of one network: LLaDA's published sampler written down plainly (bench.py), ours without a cache, with the
prefix and the dual cache (Fast-dLLM), and bd3lm's exact one. One axis is varied at a time. Rounds are interleaved, and
what counts is CPU time. Two numbers of the model are fitted, to all of ours together: FLOPs per second, and the seconds
of an empty forward; with the first alone, small forwards seem dear. What grows faster than the model is said.
"""

import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.bench import llada_plainly  # noqa: E402
from model import Config, Transformer  # noqa: E402
from nanodlm import configurator, console, fast_bd3lm, fast_mdlm  # noqa: E402
from nanodlm.bounds import Size  # noqa: E402

WAYS = ("published", "plain", "prefix", "dual", "bd3lm")


@dataclass
class Settings:
    out: str = "assets"  # where the plots go, costs_<axis>.png
    rounds: Size = 3  # timed repeats of every point, of which the median counts
    small: bool = False  # a toy, and two points an axis


@dataclass(frozen=True)
class Work:
    """What is decoded: rows of equal prompts, whose length and number of new tokens are multiples of the block size."""

    batch: int = 2
    prompt: int = 64
    new: int = 64
    block_size: int = 16
    tokens_per_forward: int = 1
    vocab_size: int = 1024


AXES = {  # what is varied: (its values, the work)
    "canvas": ((128, 256, 512, 1024), lambda n: Work(prompt=n - 64)),
    "batch": ((1, 2, 4, 8), lambda n: Work(batch=n)),
    "vocabulary": ((512, 2048, 8192, 32768), lambda n: Work(vocab_size=n)),
    "blocks": ((1, 2, 4, 8), lambda n: Work(block_size=64 // n)),
    "tokens per forward": ((1, 2, 4, 8, 16), lambda n: Work(tokens_per_forward=n)),
}


@dataclass
class Count:
    """What passes through the network: forwards, tokens, pairs of a token and a key that it may look at, and tokens
    whose logits are computed, all summed over the batch."""

    forwards: int = 0
    tokens: int = 0
    pairs: int = 0
    logits: int = 0

    def add(self, batch, width, keys, logits):
        self.forwards += 1
        self.tokens += batch * width
        self.pairs += batch * width * keys
        self.logits += logits

    def flops(self, config):
        """2 for each weight of the layers and token, 4 per channel and pair, 2 for each weight of the head and row."""
        c = config
        matrices = c.n_embd * c.head_dim * 2 * (c.n_head + c.n_kv_head) + 3 * c.n_embd * c.mlp_dim
        pair = 4 * c.n_head * c.head_dim
        return c.n_layer * (2 * matrices * self.tokens + pair * self.pairs) + 2 * c.n_embd * c.vocab_size * self.logits


def predicted(way, w):
    """The Count of a way to decode, from the work alone."""
    count, L, b, k = Count(), w.prompt + w.new, w.block_size, w.tokens_per_forward
    for start in range(w.prompt, L, b):
        for step in range(b // k):
            hidden = w.batch * (b - step * k)
            if way == "published":
                count.add(w.batch, L, L, w.batch * L)
            elif way == "plain" or way in ("prefix", "dual") and step == 0:  # the block's first step reads all
                count.add(w.batch, L, L, hidden)
            elif way == "prefix":
                count.add(w.batch, L - start, L, hidden)
            elif way == "dual":
                count.add(w.batch, b, L, hidden)
            else:  # its first step stores the block before, too, or the prompt
                stored = (w.prompt if start == w.prompt else b) if step == 0 else 0
                count.add(w.batch, stored + b, start + b, hidden)
    return count


def network(w):
    """Of LLaDA's shape, on random weights large enough that tokens are not all equally likely."""
    torch.manual_seed(0)
    shape = dict(n_layer=4, n_head=2, n_embd=128, mlp="swiglu", mlp_dim=384, qk_norm=False)
    model = Transformer(Config(w.vocab_size, max(1024, w.prompt + w.new), **shape)).eval()
    for p in model.parameters():
        p.data.normal_(0, 0.1) if p.dim() == 2 else None
    return model


def decoder(way, model, w):
    """A function that decodes once."""
    mask_id = w.vocab_size - 1
    prompts = [torch.arange(w.prompt) * (37 + i) % mask_id for i in range(w.batch)]
    if way == "published":  # one token per forward
        return lambda: llada_plainly(model, prompts, mask_id, w.new, w.block_size)
    keys = dict(block_size=w.block_size, steps=w.new // w.tokens_per_forward, temperature=0.0)
    if way == "bd3lm":
        o = fast_bd3lm.SampleOptions(w.new, **keys)
        return lambda: fast_bd3lm.generate(model, prompts, o, mask_id=mask_id).tokens
    o = fast_mdlm.SampleOptions(w.new, cache="none" if way == "plain" else way, **keys)
    return lambda: fast_mdlm.generate(model, prompts, o, mask_id=mask_id).tokens


def counted(model, run):
    """The Count of what a call of run() sends through the network."""
    count, hidden = Count(), model.hidden

    def counting(ids, mask=None, positions=None, cache=None, rows=None):
        seen = range(cache.size)[cache.visible] if cache is not None else ids[0]
        count.add(*ids.shape, len(seen), ids.numel() if rows is None else len(rows))
        return hidden(ids, mask, positions, cache, rows)

    model.hidden = counting
    try:
        run()
    finally:
        del model.hidden
    return count


def measure(works, rounds):
    """{(value, way): (CPU seconds, FLOPs, forwards)} of one axis, {value: Work}; every round does all once."""
    runs, seconds, cost = {}, {}, {}
    for value, w in works.items():
        model = network(w)
        for way in WAYS:
            if way == "published" and w.tokens_per_forward > 1:
                continue
            key = value, way
            runs[key], seconds[key] = decoder(way, model, w), []
            count = predicted(way, w)
            cost[key] = count.flops(model.config), count.forwards
    for _ in range(rounds):
        for key, run in runs.items():
            start = time.process_time()
            run()
            seconds[key].append(time.process_time() - start)
    return {key: (statistics.median(seconds[key]), *cost[key]) for key in runs}


def fit(found):
    """(seconds per FLOP, seconds per forward), with the least sum of squares of the errors in per cent."""
    ours = [point for points in found.values() for (_, way), point in points.items() if way != "published"]
    seconds, *cost = torch.tensor(ours, dtype=torch.float64).T
    x = torch.stack(cost, 1) / seconds[:, None]
    return torch.linalg.lstsq(x, torch.ones(len(x), 1, dtype=torch.float64)).solution[:, 0].tolist()


def growth(points, way):
    """How much the time, and the model's, grow from the first to the last point {(value, way): (seconds, seconds of the
    model)} of an axis, or nothing for one point. Where the model says that it falls, from the last to the first."""
    mine = [point for (_, name), point in points.items() if name == way]
    if len(mine) > 1:
        (a, fa), (b, fb) = (mine[0], mine[-1]) if mine[-1][1] >= mine[0][1] else (mine[-1], mine[0])
        return b / a, fb / fa


def plot(path, axis, works, points):
    """Tokens per second: points as measured, dashed as the model has them."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(6, 4))
    for number, way in enumerate(WAYS):
        values = [v for v, name in points if name == way]
        new = [works[v].batch * works[v].new for v in values]
        for what, style in ((0, dict(marker="o", ls="", label=way)), (1, dict(ls="--", marker="_"))):
            speed = [n / points[v, way][what] for n, v in zip(new, values)]
            ax.plot(values, speed, color=f"C{number}", **style)
    ax.set(xscale="log", yscale="log", xlabel=axis, ylabel="tokens per CPU second (dashed: the model)")
    ax.set_xticks(list(works), map(str, works))
    ax.minorticks_off()
    ax.grid(alpha=0.3)
    ax.legend()
    figure.savefig(path, dpi=80, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def main(argv):
    s = configurator.fill(configurator.read(argv), Settings)
    torch.set_num_threads(1)
    axes = {name: {v: of(v) for v in values} for name, (values, of) in AXES.items()}
    if s.small:
        tiny = dict(prompt=16, new=16, block_size=8, vocab_size=64)
        axes = {
            "canvas": {n: replace(Work(**tiny), prompt=n - 16) for n in (32, 64)},
            "tokens per forward": {n: replace(Work(**tiny), tokens_per_forward=n) for n in (1, 2)},
        }
    Path(s.out).mkdir(parents=True, exist_ok=True)
    found = {}
    for axis, works in axes.items():
        decoder("plain", network(next(iter(works.values()))), next(iter(works.values())))()  # warm
        found[axis] = measure(works, s.rounds)
        print(f"{axis}: measured", file=sys.stderr, flush=True)
    a, b = fit(found)
    speed = f"{1e-9 / a:.1f} GFLOP/s and {b * 1e3:.2f} ms per forward"
    print(f"{speed} fitted; one thread, CPU time, torch {torch.__version__}, {s.rounds} rounds\n")
    print(f"| axis | | {' | '.join(WAYS)} |\n|---|---|{'---|' * len(WAYS)}")
    for axis, works in axes.items():
        points = {key: (t, a * flops + b * forwards) for key, (t, flops, forwards) in found[axis].items()}
        for v, w in works.items():
            speeds = [f"{w.batch * w.new / points[v, way][0]:,.0f}" if (v, way) in points else "" for way in WAYS]
            print(f"| {axis} | {v} | {' | '.join(speeds)} |")
        grown = {way: growth(points, way) for way in WAYS}
        shown = [f"{g[0]:.1f} / {g[1]:.1f}" if g else "" for g in grown.values()]
        print(f"| | time grows / the model's | {' | '.join(shown)} |")
        plot(Path(s.out) / f"costs_{axis.replace(' ', '_')}.png", axis, works, points)
        found[axis] = [way for way, g in grown.items() if g and g[0] > 1.25 * g[1]]
    print()
    for axis, faster in found.items():
        for way in faster:
            print(f"{way} grows faster with {axis} than the model says")


if __name__ == "__main__":
    console.run(main, sys.argv[1:])
