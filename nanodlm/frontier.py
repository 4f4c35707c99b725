"""Samples at several temperatures, say, under one judge: a line of perplexity against entropy, and where two compare.

    python eval.py --checkpoint=A,B --num_samples=32 --judge=C --temperature=0.5,0.7,0.9,1 --frontier=line.png

Perplexity under a judge and entropy are the two parts of a divergence from what the judge expects, and a temperature
trades one for the other: either alone ranks models in any order that is wanted. So models compare where their
entropies are equal, on the line that each draws ("Generative Frontiers", arXiv 2604.02718). The entropy here is that of
the token frequencies within a sample; it sees no repetition from one sample to the next.
"""

import sys

import torch

from nanodlm import corpus, files, measures
from nanodlm import tokenizer as tokenizers
from nanodlm.bounds import several
from nanodlm.noise import uniform
from nanodlm.results import with_error

OVER = ("temperature", "top_p", "threshold", "steps")  # what a line may be drawn over: options of generate
REDRAWS = 1000  # of the samples, for standard errors


def spread(values):
    """(which of OVER is said as a list, or "", the values of a command line once for each number of that list)."""
    lists = {}
    for name in OVER:
        value = values.get(name, (None,))[0]
        if isinstance(value, tuple) or isinstance(value, str) and "," in value:
            parts = several(value, float) if isinstance(value, str) else value
            lists[name] = [type(value)(v) if isinstance(value, str) else v for v in parts]
    if len(lists) > 1:
        sys.exit(f"{' and '.join(lists)} are lists; a line is drawn over one of them")
    for name, parts in lists.items():
        if len(parts) < 2:
            sys.exit(f"{name}={values[name][0]} is a list of {len(parts)}; a line needs two values or more")
        return name, [values | {name: (v, values[name][1])} for v in parts]
    return "", [values]


def check(values, s):
    """Exit where what was said of samples does not go together; else what a line is to be drawn over, or ""."""
    over = spread(values)[0]
    if s.judge and not s.num_samples or s.mauve and not s.judge:
        sys.exit("a judge reads samples, and mauve is the judge's: say num_samples, and judge, too")
    if over and (not s.judge or s.num_samples < 2):
        sys.exit(f"a list of {over} draws a line of samples under a judge: say judge, and num_samples of at least 2")
    if s.frontier and not over:
        sys.exit(f"frontier={s.frontier} shows a line of samples: say several values, as --temperature=0.5,0.7,0.9,1")
    files.check_file(s.frontier, "frontier", (".png", ".pdf", ".svg"))
    return over


def comparable(paths, checkpoints, sampling, s):
    """Exit where the entropies of several checkpoints would be of different things."""
    first = None
    for path, c, options in zip(paths, checkpoints, sampling):
        has = {"dataset": s.dataset or c.facts.get("dataset"), "max_new_tokens": measures.room(options[0], c)}
        first = first or (path, c, has)
        why = [f"{k} is {first[2][k]} and {has[k]}; say --{k}" for k in has if has[k] != first[2][k]]
        why += [] if tokenizers.alike(first[1].tokenizer, c.tokenizer) else ["their tokenizers are different"]
        if why:
            sys.exit(f"the entropies of samples of {first[0]} and of {path} do not compare: {why[0]}")


def sample(checkpoint, algorithm, options, over, s, dataset, meta, judge, device):
    """What samples are worth, a dict for a result: with one of several options each, and held-out text beside them."""
    size = measures.room(options[0], checkpoint) if over else measures.window(checkpoint)
    held = torch.from_numpy(corpus.eval_windows(dataset, meta, size, s.num_samples).astype("int64"))
    found = [measures.sample_quality(checkpoint, algorithm, o, s, held, judge, device) for o in options]
    if not over:
        return {"sample_entropy": found[0]}
    ends = corpus.eval_lengths(dataset, meta, s.num_samples)  # None where no row is padded
    ends = [held.shape[1]] * len(held) if ends is None else ends
    whole = [x[:size] for x, n in zip(held, ends) if n >= size]  # a shorter text has less entropy
    points = [{over: getattr(o, over, None)} | f for o, f in zip(options, found)]
    text = measures.quality(checkpoint, whole, [], s, judge, device) if whole else None
    return {"frontier": {"over": over, "points": points, "held_out": text}}


def redraws(n):
    """Which of n samples each redraw has, int64 (1 + REDRAWS, n); the first has them all. All lines share them: samples
    of one number share their random numbers, too, at every temperature."""
    i, j = torch.arange(REDRAWS)[:, None], torch.arange(n)
    return torch.cat([j[None], (uniform(0, 8, i, j) * n).long()])


def line(points):
    """A line's points, the lowest entropy first: of each, entropy and log perplexity of all redraws, float64
    (2, 1 + REDRAWS)."""
    found, keys = [], ("entropies", "judged_nats", "judged_tokens")
    for p in points:
        e, nats, tokens = (torch.tensor(p[k], dtype=torch.float64) for k in keys)
        drawn = redraws(len(e))
        found.append(torch.stack([e[drawn].mean(1), nats[drawn].sum(1) / tokens[drawn].sum(1)]))
    return sorted(found, key=lambda f: f[0, 0].item())


def where(points, entropy):
    """Log perplexity at an entropy of all redraws, (1 + REDRAWS,), on the straight line between the two points about
    it; None where there are none."""
    for (x0, y0), (x1, y1) in zip(points, points[1:]):
        if x0[0] <= entropy <= x1[0] and x0[0] < x1[0]:
            return y0 + (entropy - x0) / (x1 - x0) * (y1 - y0)
    return None


def spoken(logs, digits=2):
    """exp of the first of some logarithms, and half of what two thirds of the others span: a standard error which
    outliers do not decide."""
    low, high = logs[1:].exp().quantile(torch.tensor([0.1587, 0.8413], dtype=torch.float64))
    return with_error(logs[0].exp().item(), (high - low).item() / 2, digits)


def show(results, path=""):
    """Markdown of all lines: their points, then perplexities at equal entropy; and a plot, where a file is named."""
    groups = {}
    for r in results:
        if f := r.get("frontier"):
            p = f["points"][0]
            groups.setdefault((r["dataset"], p["judge"], p["tokens"], f["over"]), []).append(r)
    if path and len(groups) > 1:
        sys.exit("these lines are of different data, judges, lengths or options; plot those of one kind at a time")
    for (dataset, judge, tokens, over), rows in groups.items():
        print(f"\nsamples of {tokens} tokens, judged by {judge}; held-out text: {dataset}")
        names = [r["checkpoint"] for r in rows]
        rows = [r | {"name": r["file"] if "file" in r and names.count(n) > 1 else n} for n, r in zip(names, rows)]
        points = [(r["name"], p) for r in rows for p in r["frontier"]["points"]]
        held = rows[0]["frontier"]["held_out"]
        mauve = ["MAUVE"] if any("mauve" in p for _, p in points) else []
        head = ["checkpoint", over, "entropy", "generative perplexity", "forwards per token", "samples", *mauve]
        print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
        for name, p in [*points, *([("held-out text", held)] if held else [])]:
            cells = [name, "" if p.get(over) is None else f"{p[over]:g}", with_error(p["nats"], p["error"], 3)]
            cells += [with_error(p["perplexity"], p["perplexity_error"])]
            cells += [f"{p['forwards_per_sample'] / p['tokens']:.3g}" if "tokens" in p else ""]
            cells += [str(len(p["entropies"])), *(f"{p['mauve']:.3f}" if "mauve" in p else "" for _ in mauve)]
            print(f"| {' | '.join(cells)} |")
        at_equal_entropy(rows, held)
        if path:
            draw(rows, held, over, judge, path)


def at_equal_entropy(rows, held):
    """Markdown: the perplexity of each line at the entropy of held-out text, and amid the entropies that all have."""
    lines = [line(r["frontier"]["points"]) for r in rows]
    ends = [(f[0][0, 0].item(), f[-1][0, 0].item()) for f in lines]
    places = [(held["nats"], "held-out text's")] if held else []
    longer = [e for e, points in zip(ends, lines) if len(points) > 1]
    low, high = max((a for a, _ in longer), default=0), min((b for _, b in longer), default=0)
    places += [((low + high) / 2, "amid what all lines have")] if len(longer) > 1 and low < high else []
    if not places:
        return
    print("\nPerplexity at equal entropy, on straight lines (of its logarithm) between points next to each other:")
    print("| entropy | checkpoint | generative perplexity | times the first |\n|---|---|---|---|")
    for entropy, what in places:
        first = None
        for r, points, (a, b) in zip(rows, lines, ends):
            logs = where(points, entropy)
            cells = [f"not reached: from {a:.3f} to {b:.3f}", ""]
            if logs is not None:
                cells = [spoken(logs), "1" if first is None else spoken(logs - first, 3)]
                first = logs if first is None else first
            print(f"| {entropy:.3f}, {what} | {r['name']} | {' | '.join(cells)} |")


def draw(rows, held, over, judge, path):
    """The lines, and held-out text as a star; beside each point what it was drawn at, and its forwards per token."""
    from matplotlib.figure import Figure  # without pyplot, whose backend may be a notebook's

    figure = Figure(figsize=(7, 4.5))
    axes = figure.subplots()
    for r in rows:
        points = sorted(r["frontier"]["points"], key=lambda p: p["nats"])
        x, dx, y, dy = ([p[k] or 0.0 for p in points] for k in ("nats", "error", "perplexity", "perplexity_error"))
        axes.errorbar(x, y, dy, dx, marker="o", capsize=2, label=r["name"])
        for p in points:
            said = [] if p[over] is None else [f"{p[over]:g}"]
            said = ", ".join([*said, f"{p['forwards_per_sample'] / p['tokens']:.3g}"])
            axes.annotate(said, (p["nats"], p["perplexity"]), (5, -9), textcoords="offset points", fontsize=7)
    if held:
        axes.plot(held["nats"], held["perplexity"], "k*", markersize=12, label="held-out text")
    axes.set(yscale="log", xlabel="entropy of a sample's tokens, nats", ylabel=f"perplexity under {judge}")
    axes.set_title(f"at each point: {over}, forwards per token", fontsize=9)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    print(f"wrote {path}")
