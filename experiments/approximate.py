"""Quality against speed: what a sampler that reveals several tokens per forward loses, for every rule that we have.

    python data/sudoku/prepare.py && python data/pydocs/prepare.py
    python train.py config/sudoku_mdlm.py --max_iters=1000       (a ceiling of 100 % would tell nothing)
    python experiments/approximate.py                            all that is not in --out yet; table and plot
    python experiments/approximate.py --only=infill --small      a few rows, to see that it runs

sudoku  held-out puzzles solved, temperature 0
infill  held-out documentation, 16 of the 32 tokens in the middle of 64 hidden: how many are found, temperature 0
text    32 tokens behind 32 held-out ones, temperature 1: nats per token of what was written, exact for the model
        (method=confidence); a sampler of one token per forward draws from that very distribution

The task of ours, pydocs_next, asks for likelihoods, in which no sampler has a part. Points are kept with their rows,
so that rules are compared row by row: the last column is the difference to the threshold's curve at equal speed.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nanodlm import checkpoint as ckpt  # noqa: E402
from nanodlm import configurator, console, corpus, fast_mdlm, noise  # noqa: E402
from nanodlm.bounds import Size  # noqa: E402
from nanodlm.files import check_directory, replace_file  # noqa: E402
from nanodlm.likelihood import mean_and_error  # noqa: E402

HOLES = {"sudoku": 16, "infill": 16, "text": 32}
CACHES = ("none", "prefix", "dual")
BETTER = {"sudoku": "puzzles solved", "infill": "tokens found", "text": "nats per token (less is better)"}


@dataclass
class Settings:
    only: Literal["all", "sudoku", "infill", "text"] = "all"  # which task
    sudoku: str = "out/sudoku_mdlm"  # its checkpoint
    pydocs: str = "checkpoints/pydocs_mdlm"  # that of the other tasks
    puzzles: Size = 500  # of sudoku
    windows: Size = 96  # of infill
    texts: Size = 32  # of text
    small: bool = False  # eight of each, and few points
    out: str = "out/approximate"  # where the points are kept; delete it to measure anew


def rules(task):
    """{family: [(what is said of a point, its options)]}."""
    holes = HOLES[task]

    def steps(**keys):
        return [(f"{n} per step", dict(steps=holes // n, **keys)) for n in (1, 2, 4, 8)]

    def several(name, values, **keys):
        return [(f"{name}={v:g}", {**keys, name: v}) for v in values]

    sure, twice = dict(quota="threshold"), ((0.8, 0.9), (0.6, 0.9), (0.3, 0.9), (0.6, 0.5), (0.3, 0.5))
    found = {
        "threshold": several("threshold", (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999), **sure),
        "LocalLeap": several("near", (0.3, 0.5, 0.75), threshold=0.9),
        "CreditDecoding": several("threshold", (0.3, 0.5, 0.7, 0.9), credit=0.7),
        "WINO": [(f"{a:g} to {b:g}", dict(threshold=a, verify=b)) for a, b in twice] if task != "text" else [],
        "cooler": several("threshold", (0.2, 0.3, 0.4), temperature=0.8, **sure) if task == "text" else [],
        "confidence": steps(),
        "margin": steps(order="margin"),
        "entropy": steps(order="entropy"),
        "factor": several("factor", (0.5, 1, 2, 4), quota="factor"),
        "entropy bound": several("entropy_bound", (0.1, 0.5, 2, 8), quota="entropy_bound", order="entropy"),
        "remasking": [(f"{n} steps", dict(quota="ancestral", remask=0.1, steps=n)) for n in (holes, holes // 2, 4)],
        "blocks of 8": [(f"{k}, {c}", o | dict(block_size=8, cache=c)) for k, o in steps()[:3] for c in CACHES],
    }
    if task == "text":  # whose likelihoods take their time
        found = {name: said if name == "cooler" else said[::2] for name, said in found.items()}
        found["threshold"] += several("threshold", (0.2,), **sure)
    return found


def canvases(task, rows, mask_id):
    """The prompts of a task, int64 (rows, L), with masks as holes, and the answers (rows, L)."""
    if task == "sudoku":
        x = torch.from_numpy(corpus.load_tokens("sudoku", "val", corpus.load_meta("sudoku"))[:rows].astype("int64"))
        hole = torch.arange(x.shape[1]).expand_as(x) >= x.shape[1] - HOLES[task]
    else:
        ids = corpus.load_tokens("pydocs", "val", corpus.load_meta("pydocs"))
        begins = np.linspace(0, len(ids) - 64, rows).astype(int)
        x = torch.stack([torch.from_numpy(ids[b : b + 64].astype("int64")) for b in begins])
        u = torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
        u[:, :16] = u[:, 48:] = 1
        hole = torch.arange(64).expand_as(x) >= 32 if task == "text" else u.argsort(1).argsort(1) < HOLES[task]
    return torch.where(hole, mask_id, x), x


def measure(model, task, prompts, answers, options, mask_id):
    """Of a rule: {"quality": [row by row], "forwards": [row by row], "again": share of a text's tokens that repeat}."""
    temperature, quality, forwards, again = 1.0 if task == "text" else 0.0, [], [], []
    for part in torch.arange(len(prompts)).split(100):
        if not options.keys() - {"threshold", "near", "credit", "verify"}:
            made, count = published(model, prompts[part], mask_id, **options, temperature=temperature, numbers=part)
        else:
            o = fast_mdlm.SampleOptions(0, **{"temperature": temperature} | options)
            out = fast_mdlm.generate(model, list(prompts[part]), o, mask_id=mask_id, numbers=part)
            made, count = torch.stack(out.tokens), torch.tensor(out.num_forwards)
        forwards += count.tolist()
        if task == "text":
            keys = dict(options=fast_mdlm.LikelihoodOptions("confidence", batch_size=32), mask_id=mask_id)
            logp = fast_mdlm.log_likelihood(model, list(made[:, :32]), list(made[:, 32:]), **keys)
            quality += (-logp / HOLES[task]).tolist()
            again += [1 - len(set(row[32:].tolist())) / HOLES[task] for row in made]
        else:
            found = ((made == answers[part]) & (prompts[part] == mask_id)).sum(1) / HOLES[task]
            quality += ((found == 1).float() if task == "sudoku" else found).tolist()
    return dict(quality=quality, forwards=forwards, again=float(np.mean(again)) if again else None)


@torch.no_grad()
def published(model, x, mask_id, threshold, near=0.0, credit=0.0, verify=0.0, temperature=0.0, numbers=None):
    """Fill in the holes of int64 x (B, L), as many in every row, by rules that the engine has not: (x, forwards (B,)).
    Without them it is quota=threshold, token for token.

    near    LocalLeap (arXiv 2510.07081): this is enough within four positions of what is as sure as the threshold
    credit  CreditDecoding (arXiv 2510.06133; as in dInfer, its authors' code): C fades by a fifth a
            step, that of the best token, of probability p, grows by p^0.2; logits are raised by credit * log(1 + C)
    verify  WINO (arXiv 2507.18578, with the limits of its code): a second mask for each hole, which sees all but
            its token, says how likely that is; what falls below this is hidden again. Forwards are longer by the holes
    """
    (B, L), hole, C = x.shape, x == mask_id, 0.0
    at = hole.nonzero()[:, 1].view(B, -1)
    n = at.shape[1]
    forwards, last, row = torch.zeros(B, dtype=torch.int64), torch.full((B,), n + 1), torch.arange(B)
    position = torch.cat([torch.arange(L).expand(B, L), at], 1)
    sees = torch.ones(B, L + n, L + n, dtype=torch.bool)
    sees[:, :L, L:], sees[:, L:, :L] = False, torch.arange(L) != at[:, :, None]
    while (x == mask_id).any():
        now = x.gather(1, at)
        hidden = now == mask_id
        if verify:
            both = model(torch.cat([x, torch.full_like(at, mask_id)], 1), mask=sees, positions=position)
            both[..., mask_id] = -torch.inf
            logits = both.gather(1, at[..., None].expand(-1, -1, both.shape[-1]))
            belief = both[:, L:].softmax(-1).gather(2, now[..., None])[..., 0].masked_fill(hidden, 2.0)
        else:
            logits = model(x, rows=hole).view(B, n, -1)
            logits[..., mask_id] = -torch.inf
        p, best = logits.softmax(-1).max(-1, keepdim=True)
        if credit:
            C = (0.8 * C + torch.zeros_like(logits)).scatter_add_(2, best, p**0.2)
            logits = logits + credit * C.log1p()
            p = logits.softmax(-1).amax(-1, keepdim=True)
        u = noise.uniform(0, (row if numbers is None else numbers)[:, None], int(forwards.max()), 1, at)
        token = noise.draw(logits.flatten(0, 1), u.flatten(), temperature).view(B, n)
        p = p[..., 0].masked_fill(~hidden, -1.0)
        take = p >= threshold
        if near:
            take |= (p >= near) & (take[:, None] & ((at[:, None] - at[:, :, None]).abs() <= 4)).any(2)
        if verify:
            rank = p.argsort(dim=1, descending=True, stable=True).argsort(1)
            take &= rank < (hidden.sum(1, keepdim=True) * 0.7).long().clamp(5, 20)
        take[row, p.argmax(1)] |= hidden.any(1)
        write = torch.where(take, token, now)
        if verify:  # fewer at a time than were revealed the time before, so that it ends
            doubted = (belief.argsort(1).argsort(1) < last[:, None] - 1) & (take.sum(1, keepdim=True) > 1)
            write[doubted & (belief < verify)] = mask_id
            last = take.sum(1)
        x = x.scatter(1, at, write)
        forwards += hidden.any(1)
    return x, forwards


def speed(point, task):
    return HOLES[task] / np.mean(point["forwards"])


def beside(point, curve, task):
    """Mean and error, over rows, of a point's quality less the curve's at equal speed, between its two neighbours there
    (row by row, the nearer counting more). None where the curve does not reach."""
    curve, s = sorted(curve, key=lambda p: speed(p, task)), speed(point, task)
    for a, b in zip(curve, curve[1:]):
        if (low := speed(a, task)) <= s <= (high := speed(b, task)) and high > low:
            w = (s - low) / (high - low)
            other = (1 - w) * np.array(a["quality"]) + w * np.array(b["quality"])
            return mean_and_error(torch.tensor(np.array(point["quality"]) - other))
    return None


def table(task, points):
    """Markdown rows of a task's points, {family: {said: point}}."""
    print(f"\n| {task} | | tokens per forward | {BETTER[task]} | beside threshold |\n|---|---|---|---|---|")
    for family, found in points.items():
        for said, point in found.items():
            mean, error = mean_and_error(torch.tensor(point["quality"]))
            other = None if family == "threshold" else beside(point, points.get("threshold", {}).values(), task)
            last = f"{other[0]:+.3f} ± {other[1]:.3f}" if other else ""
            again = f" ({point['again']:.2f} again)" if point["again"] is not None else ""
            print(f"| {family} | {said} | {speed(point, task):.2f} | {mean:.3f} ± {error:.3f}{again} | {last} |")


def plot(all_points, path):
    """One panel per task: quality against tokens per forward, with standard errors."""
    from matplotlib.figure import Figure  # without pyplot, whose backend may be a notebook's

    panels = (figure := Figure(figsize=(4.6 * len(all_points), 4.4))).subplots(1, len(all_points), squeeze=False)[0]
    for ax, (task, points) in zip(panels, all_points.items()):
        lines = [
            (i, *line) for i, line in enumerate((f, c) for f in rules(task) for c in CACHES[: 1 + 2 * ("blocks" in f)])
        ]
        for i, family, cache in lines:
            rows = {k: p for k, p in points.get(family, {}).items() if "blocks" not in family or k.endswith(cache)}
            rows = sorted(rows.values(), key=lambda p: speed(p, task))
            mean, error = np.array([mean_and_error(torch.tensor(p["quality"])) for p in rows]).reshape(-1, 2).T
            style = dict(
                lw=2 if i < 4 else 0.8, elinewidth=0.5, marker=".", color=f"C{i % 10}", ls="--" if i > 9 else "-"
            )
            label = family if cache == "none" else f"… {cache} cache"
            ax.errorbar([speed(p, task) for p in rows], mean, error, label=label, **style)
        ax.set(xlabel="tokens per forward", ylabel=BETTER[task], title=task, xscale="log")
        if task == "text":
            ax.invert_yaxis()
    panels[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=62, pil_kwargs={"optimize": True})


def main(argv):
    s = configurator.fill(configurator.read(argv), Settings)
    check_directory(Path(s.out), "out")
    Path(s.out).mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    all_points = {}
    for task in ("sudoku", "infill", "text") if s.only == "all" else (s.only,):
        rows = 8 if s.small else dict(sudoku=s.puzzles, infill=s.windows, text=s.texts)[task]
        points = json.loads(path.read_text()) if (path := Path(s.out) / f"{task}_{rows}.json").exists() else {}
        checkpoint = ckpt.load(s.sudoku if task == "sudoku" else s.pydocs, "cpu")
        prompts, answers = canvases(task, rows, mask_id := checkpoint.tokenizer.mask_id)
        todo = [(family, *p) for family, said in rules(task).items() for p in said[:: 3 if s.small else 1]]
        for family, said, options in tqdm(todo, desc=task, disable=None):
            if said not in points.setdefault(family, {}):
                points[family][said] = measure(checkpoint.model, task, prompts, answers, options, mask_id)
                replace_file(path, json.dumps(points).encode())
        all_points[task] = points
        table(task, points)
    plot(all_points, Path(s.out) / "approximate.png")


if __name__ == "__main__":
    console.run(main, sys.argv[1:])
