"""A speed-run: the best language model of the Python documentation that so many FLOPs of training can buy.

    python experiments/speedrun/run.py experiments/speedrun/base.py --seed=1
    python experiments/speedrun/run.py experiments/speedrun/base.py --budget=1min --conv=2 --name=conv
    python experiments/speedrun/run.py RECIPE.py --seed=1 --record=01-quickstart      keeps it under records/
    python experiments/speedrun/run.py RECIPE.py --state=out/speedrun/run.pt          goes on where it was stopped
    python experiments/speedrun/run.py --tables                                       brings README.md's up to date

The rules. Text is `pydocs`; a recipe chooses everything else: network, vocabulary, loss, schedule, optimiser. What is
spent is FLOPs of matrix products: those of the forward pass, three times (forward and backward), of every pass that a
step takes, and those of Muon's; not elementwise work and look-ups, beside which stand the seconds, and not evaluation.
What is measured is always the same: 256 spans of 700 bytes of validation text, whatever their tokens, with fixed masks;
the bound in bits per byte, and the exact likelihood in confidence order of some of them.
"""

import difflib
import hashlib
import io
import json
import math
import platform
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.speedrun.hiding import WAYS  # noqa: E402
from experiments.speedrun.network import Levers, Network, forward_flops, muon_flops  # noqa: E402
from model import Config  # noqa: E402
from nanodlm import algorithms, attention, configurator, console, corpus, noise, optim  # noqa: E402
from nanodlm.bounds import Amount, Below1, Place, Positive, Seed, Size, Unit, Whole, Word, check  # noqa: E402
from nanodlm.decode import pad  # noqa: E402
from nanodlm.device import pick_dtype  # noqa: E402
from nanodlm.files import ROOT, check_directory, check_file, replace_file  # noqa: E402
from nanodlm.likelihood import mean_and_error  # noqa: E402

HERE = Path(__file__).resolve().parent
BUDGETS = {"1min": 4.7e13 / 3, "3min": 4.7e13, "30min": 4.7e14}  # FLOPs: 3min is what config/quickstart.py takes
MARK = "<!-- python experiments/speedrun/run.py --tables -->"
SPANS, SPAN, CONTEXT = 256, 700, 1024  # texts, bytes of each, tokens at most
MASKS, EXACT, EXACT_MASKS = 2, 16, 32  # for each of them; how many are measured exactly; … with so many masks, too


@dataclass
class Recipe:
    algorithm: Literal["mdlm", "bd3lm", "ar"] = "mdlm"  # which track
    budget: str = "3min"  # FLOPs of training: 1min, 3min, 30min, or a number
    seed: Seed = 1  # of weights, windows and masks
    vocabulary: Size = 2048  # tokens of the BPE; other than pydocs' own are learnt, into data/pydocs<N>
    batch_size: Size = 8  # windows (of seq_len tokens) per step
    stages: tuple[str, ...] = ()  # what changes on the way: part of the budget:key=value key=value …
    hide: Literal["random", "learnt", "chains"] = "random"  # of mdlm's steps, by what it has learnt: see hiding.py
    learning_rate: Amount = 2e-3  # AdamW's: embeddings, tables, head, norms
    embed_rate: Amount = 1.0  # times as much for embeddings and tables
    muon_learning_rate: Amount = 2e-2  # of the blocks' matrices
    momentum_warmup: Unit = 0.0  # part of the budget in which Muon's momentum grows from .85 to .95
    beta1: Below1 = 0.9
    beta2: Below1 = 0.95
    weight_decay: Amount = 0.1
    warmup: Positive = 0.022  # part of the budget in which rates grow from 0
    decay: Positive = 0.5  # last part of the budget, in which they fall to 0
    grad_clip: Amount = 1.0
    ema: Below1 = 0.0  # decay of an average of the weights, which is then measured; 0 keeps none
    masks: Size = MASKS  # per span, of the bound
    exact: Whole = EXACT  # spans whose exact likelihood is measured
    name: str = ""  # of a trial: it goes into trials.jsonl
    base: str = "base"  # the trial that it is compared with, span by span
    idea: str = ""  # who had it
    record: str = ""  # directory of a record, as 01-quickstart, to which this seed is added
    out: str = "out/speedrun"  # bits of every span go there, for comparisons
    state: Place = ""  # a file that keeps the run at every twentieth of the budget, to go on from if it is there

    def __post_init__(self):
        check(self)
        if self.record and (self.masks, self.exact) != (MASKS, EXACT):
            raise ValueError(f"record={self.record}: all records have masks={MASKS} and exact={EXACT}; leave them")
        if self.budget not in BUDGETS:
            try:
                self.flops = float(self.budget)
            except ValueError:
                raise ValueError(f"budget={self.budget}: use {', '.join(BUDGETS)} or a number of FLOPs") from None
        else:
            self.flops = BUDGETS[self.budget]


# ---- data ----------------------------------------------------------------------------------------------------------


def dataset(vocabulary):
    """The directory of pydocs in a vocabulary; made where it is missing."""
    path = ROOT / "data" / ("pydocs" if vocabulary == 2048 else f"pydocs{vocabulary}")
    if not (path / "meta.json").exists():
        words = [] if vocabulary == 2048 else [f"--train_bpe={vocabulary}", f"--out={path}"]
        subprocess.run([sys.executable, ROOT / "data/pydocs/prepare.py", *words], check=True)
    return path


def spans(count=SPANS, size=SPAN):
    """`count` texts of `size` bytes of ASCII, evenly spread over pydocs' validation documents, each from a line's
    beginning on."""
    path, found = dataset(2048), []
    meta = corpus.load_meta(path)
    ids = np.array(corpus.load_tokens(path, "val", meta))
    for document in np.split(ids, np.flatnonzero(ids == meta["eos_id"]) + 1):
        text, start = corpus.load_tokenizer(path, meta).decode(document.tolist()).encode(), 0
        while start + size <= len(text):
            piece = text[start : start + size]
            found += [piece.decode()] if piece.isascii() else []
            start = text.find(b"\n", start + size - 1) + 1 or len(text)
    return [found[i] for i in corpus.spread(len(found), count)]


def windows(tokens, r, step):
    """The step's windows, int64 (batch_size, seq_len), a function of seed and step."""
    starts = np.random.default_rng((r.seed, step)).integers(len(tokens) - r.seq_len + 1, size=r.batch_size)
    return torch.from_numpy(np.stack([tokens[i : i + r.seq_len] for i in starts]).astype(np.int64))


# ---- what is spent -------------------------------------------------------------------------------------------------


def pairs(mask, tokens):
    """Queries, and pairs of a query and a key of a row that attention multiplies under a mask."""
    if isinstance(mask, attention.Tiles):
        total, size = mask.shape[1], mask.size
        widths = [sum(min(size, total - j * size) for j in seen) for seen, _ in mask.rows]
        return mask.shape[0], sum(w * min(size, mask.shape[0] - i * size) for i, w in enumerate(widths))
    queries = tokens if mask is None or mask.dim() == 2 else mask.shape[-2]
    return queries, queries * tokens


def spent_by(model, ids, mask=None, rows=None):
    """FLOPs of a forward and a backward pass of a call."""
    first, last = mask if isinstance(mask, tuple) else (mask, mask)
    (queries, last_pairs), n = pairs(last, ids.shape[1]), ids.numel() if rows is None else len(rows)
    given = len(ids), ids.shape[1], queries, pairs(first, ids.shape[1])[1], last_pairs, n
    return 3 * forward_flops(model.config, model.levers, *given)


# ---- training ------------------------------------------------------------------------------------------------------


def settings(values, done=0.0):
    """What holds when this part of the budget is spent: (Recipe, Config, Levers, the algorithm's LossOptions)."""
    track = algorithms.load(values.get("algorithm", (Recipe.algorithm, ""))[0])
    stages = configurator.fill({k: v for k, v in values.items() if k == "stages"}, Recipe, quiet=True).stages
    for stage in stages:
        begin, _, words = stage.partition(":")
        try:
            over = {k: (Word(v), f"stages, {stage!r}") for k, v in (word.split("=") for word in words.split())}
            values = values | over if float(begin) <= done else values
        except ValueError:
            sys.exit(f"stages: {stage!r} is not of the form part:key=value key=value, as 0.3:seq_len=128")
    algorithm = algorithms.load(values.get("algorithm", (Recipe.algorithm, ""))[0])
    classes = [track.LossOptions] + [algorithm.LossOptions] * (algorithm is not track)
    r, config, levers, *options = configurator.fill(values, Recipe, Config, Levers, *classes, quiet=True)
    r.seq_len, blocks = config.seq_len, getattr(options[-1], "block_size", 0)
    config = replace(config, seq_len=CONTEXT, block_size=blocks, causal=algorithm.CAUSAL)
    return r, config, levers, options[-1], algorithm


def optimisers(model, r):
    """Muon for the blocks' matrices, AdamW for the rest; every group keeps its peak rate as base_lr."""
    named = list(model.named_parameters())
    matrices = [p for n, p in named if p.dim() == 2 and n.startswith("blocks.")]
    tables = [p for n, p in named if p.dim() > 1 and n.startswith(("embed.", "side_", "near_", "pair_", "value_"))]
    taken = {id(p) for p in matrices + tables}
    rest = [p for _, p in named if id(p) not in taken]
    groups = [
        dict(params=tables, lr=r.learning_rate * r.embed_rate, weight_decay=r.weight_decay),
        dict(params=[p for p in rest if p.shape[-1] > 1 and p.dim() > 1], weight_decay=r.weight_decay),
        dict(params=[p for p in rest if p.shape[-1] <= 1 or p.dim() <= 1], weight_decay=0.0),
    ]
    adamw = torch.optim.AdamW(groups, lr=r.learning_rate, betas=(r.beta1, r.beta2), fused=True)
    muon = optim.Muon(matrices, r.muon_learning_rate, r.weight_decay, dtype=pick_dtype("auto", "cpu")[0])
    for group in adamw.param_groups + muon.param_groups:
        group["base_lr"] = group["lr"]
    return adamw, muon


def autocast():
    """As train.py computes: matrix products in bfloat16, where the processor has it."""
    dtype = pick_dtype("auto", "cpu")[0]
    return torch.autocast("cpu", dtype, enabled=dtype != torch.float32)


def identity(values):
    """What a run is: all that was said of it, but for what becomes of it."""
    after = ("masks", "exact", "name", "base", "idea", "record", "out", "state")
    return {key: str(value) for key, (value, _) in sorted(values.items()) if key not in after}


def resume(file, values, parts, average):
    """Put what a file kept into the parts of a run and the average of its weights; the rest of it, a dict."""
    there = torch.load(file, weights_only=True)
    if there.pop("values") != identity(values):
        sys.exit(f"{file} is of another run; name another file with --state, or delete it")
    for name, part in parts.items():
        part.load_state_dict(there.pop(name))
    for name, kept in there.pop("average").items():
        average[name].copy_(kept)
    return there


def train(values, tokens, mask_id, say=print):
    """Spend the budget. Returns the network, with the average of its weights where one is kept, and the log."""
    r, config, levers, _, _ = settings(values, 1.0)  # the network of the end: its tables are there from the beginning
    if r.hide != "random" and not any("mdlm" in words for words in (r.algorithm, *r.stages)):
        sys.exit(f"hide={r.hide} is of mdlm's steps, and this run has none; leave it out")
    torch.manual_seed(r.seed)
    model = Network(config, levers).train()
    trained, (adamw, muon) = dict(model.named_parameters()), optimisers(model, r)
    average = {n: p.detach().clone() for n, p in trained.items()} if r.ema else {}
    step_itself, calls, log, memory = muon_flops(model), [], [], {}

    def count(_, args, keys):
        calls.append(spent_by(model, *args, mask=keys.get("mask"), rows=keys.get("rows")))
        if calls[-1] + step_itself > r.flops:
            sys.exit(
                f"the budget of {r.flops:.2g} FLOPs is spent before the first step, which takes "
                f"{calls[-1] + step_itself:.2g}; give a larger one, or a smaller batch_size"
            )

    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    spent, cost, step, total, begin = 0.0, 0.0, 0, 0.0, time.process_time()
    file, parts = r.state and Path(r.state), dict(model=model, adamw=adamw, muon=muon)
    if file and file.exists():
        there = resume(file, values, parts, average)
        spent, cost, step, total, log = (there[key] for key in ("spent", "cost", "step", "total", "log"))
        memory = there["memory"]
        begin -= there["seconds"]
    while spent + cost <= r.flops:
        done = spent / r.flops
        r, config, _, options, algorithm = settings(values, done)
        model.config.causal, model.config.block_size = config.causal, config.block_size
        rate = min(1.0, (done + 1e-3) / r.warmup, (1 - done) / r.decay)
        for group in adamw.param_groups + muon.param_groups:
            group["lr"] = group["base_lr"] * rate
        muon.param_groups[0]["momentum"] = 0.95 - 0.1 * max(0.0, 1 - done / max(r.momentum_warmup, 1e-9))
        calls.clear()
        torch.manual_seed(noise.fold(r.seed, step))
        x0 = windows(tokens, r, step)
        with autocast():
            fresh = noise.fold(r.seed, step, 1)
            if r.hide != "random" and algorithm.__name__ == "mdlm":
                loss = WAYS[r.hide](model, x0, mask_id, fresh, memory)
            else:
                loss = algorithm.loss(model, x0, options, mask_id=mask_id, seed=fresh)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), r.grad_clip or math.inf)
        for optimiser in (adamw, muon):
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        if average:
            optim.update_average(average, trained, r.ema, step)
        cost = sum(calls) + step_itself
        spent, step, total = spent + cost, step + 1, total + loss.item()
        if int(20 * spent / r.flops) > len(log):
            since = step - (log[-1]["step"] if log else 0)
            log.append(dict(step=step, flops=spent, seconds=round(time.process_time() - begin, 1)))
            log[-1]["loss"], total = round(total / since, 4), 0.0
            if file:
                there = dict(spent=spent, cost=cost, step=step, total=total, log=log, average=average)
                there |= dict(memory=memory, values=identity(values), seconds=time.process_time() - begin)
                content = io.BytesIO()
                torch.save(there | {name: part.state_dict() for name, part in parts.items()}, content)
                replace_file(file, content.getvalue())
            say(json.dumps(log[-1]))
    hook.remove()
    if not math.isfinite(loss.item()):
        sys.exit(f"the loss is not finite after {step} steps; try a lower learning rate")
    for n, value in average.items():
        trained[n].data.copy_(value)
    facts = dict(flops=spent, steps=step, seconds=round(time.process_time() - begin, 1))
    return model, log, facts | dict(parameters=model.num_params())


@torch.no_grad()
def measure(model, algorithm, tokenizer, texts, r):
    """Bits per byte of every text, float64, by the bound; and of a few of them, spread over all: exactly, in confidence
    order, and by the bound of many more masks (it takes some hundred masks to know it to .02)."""
    model.eval()
    ids = [torch.tensor(tokenizer.encode(text)) for text in texts]
    few = [ids[i] for i in corpus.spread(len(ids), r.exact)] if r.exact else []

    def bound(ids, masks):
        nats = [torch.zeros(0).double()]
        for i in range(0, len(ids), 16):
            x, real = pad(ids[i : i + 16], tokenizer.mask_id)
            keys = dict(mask_id=tokenizer.mask_id, maskable=real, real=real, samples=masks, seed=0, first=i)
            nats.append(algorithm.nelbo(model, x, **keys))
        return torch.cat(nats)

    with autocast():
        nats, again, exact = bound(ids, r.masks), bound(few, EXACT_MASKS), torch.zeros(0).double()
        if few:
            engine = algorithms.engine(algorithm)
            options = [] if algorithm.CAUSAL else [engine.LikelihoodOptions(method="confidence")]
            none = [torch.zeros(0, dtype=torch.int64)] * len(few)
            exact = -engine.log_likelihood(model, none, few, *options, mask_id=tokenizer.mask_id)
    byte = math.log(2) * SPAN
    return nats / byte, exact / byte, again / byte


# ---- records -------------------------------------------------------------------------------------------------------


def machine():
    """In words."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), platform.machine())
    return f"{name}, {torch.get_num_threads()} thread(s), {pick_dtype('auto', 'cpu')[0]}, torch {torch.__version__}"


def track(r, options):
    return r.algorithm + (f"{options.block_size}" if r.algorithm == "bd3lm" else "")


def keep(directory, recipe, seed, result, log):
    """Add a seed's result to a record: recipe.py, diff.txt to the record before, log.jsonl (of the first seed), and
    result.json."""
    directory.mkdir(parents=True, exist_ok=True)
    text, target = Path(recipe).read_text(), directory / "recipe.py"
    if target.exists() and target.read_text() != text and Path(recipe).resolve() != target:
        sys.exit(f"{directory} is the record of another recipe: choose another name")
    replace_file(target, text.encode())
    before = [d for d in sorted(directory.parent.iterdir()) if d.name < directory.name and (d / "recipe.py").exists()]
    old = (before[-1] / "recipe.py").read_text() if before else ""
    named = f"{before[-1].name}/recipe.py" if before else "nothing", f"{directory.name}/recipe.py"
    diff = "".join(difflib.unified_diff(old.splitlines(True), text.splitlines(True), *named, n=0))
    replace_file(directory / "diff.txt", diff.encode())
    file = directory / "result.json"
    seeds = (json.loads(file.read_text())["seeds"] if file.exists() else {}) | {str(seed): result}
    if not (directory / "log.jsonl").exists():
        replace_file(directory / "log.jsonl", "".join(json.dumps(line) + "\n" for line in log).encode())
    replace_file(file, (json.dumps(dict(summary(seeds), seeds=seeds), indent=1) + "\n").encode())


def summary(seeds):
    """Means over seeds, and the error of each that is due to the seeds; spans_error is due to the choice of texts."""
    found = dict(n=len(seeds))
    for key in ("bpb", "exact_bpb", "flops", "seconds"):
        mean, error = mean_and_error(torch.tensor([s[key] for s in seeds.values()], dtype=torch.float64))
        found[key] = round(mean, 4) if "bpb" in key else round(mean, 1)
        found |= {f"{key}_error": error and round(error, 4)} if "bpb" in key else {}
    return found | dict(spans_error=max(s["spans_error"] for s in seeds.values()))


def trials():
    """Those of trials.jsonl, by (track, name)."""
    file = HERE / "trials.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return {(t["track"], t["name"]): t for t in map(json.loads, lines)}


def tables():
    """The tables of README.md: records by track, and trials."""
    lines = []
    for directory in sorted({file.parents[1] for file in (HERE / "records").glob("*/*/result.json")}):
        lines += [f"### {directory.name}", "", "| record | bits per byte | exact | seeds | steps | CPU s |"]
        lines += ["|---|---|---|---|---|---|"]
        for file in sorted(directory.glob("*/result.json")):
            x = json.loads(file.read_text())
            errors = [f" ± {x[k]:.3f}" if x[k] is not None else "" for k in ("bpb_error", "exact_bpb_error")]
            first = next(iter(x["seeds"].values()))  # others may have been run on another machine
            link = f"[{file.parent.name}](records/{directory.name}/{file.parent.name}/recipe.py)"
            spans = {s["exact_spans"] for s in x["seeds"].values()}
            of = "" if spans == {EXACT} else f", of {min(spans)}"
            lines += [f"| {link} | **{x['bpb']:.3f}**{errors[0]} | {x['exact_bpb']:.3f}{errors[1]}{of} | {x['n']} | "
                      f"{first['steps']} | {first['seconds']:.0f} |"]  # fmt: skip
        lines.append("")
    found = trials().values()
    for base in dict.fromkeys(t["base"] for t in found):
        lines += [
            f"### Trials against `{base}`",
            "",
            "| lever | changes | bits/byte | difference | steps | CPU s | from |",
        ]
        lines += ["|---|---|---|---|---|---|---|"]
        for t in (t for t in found if t["base"] == base):
            difference = f"{t['difference']:+.3f} ± {t['difference_error']:.3f}" if t["name"] != base else "0"
            lines += [f"| {t['name']} | `{t['changes'] or '-'}` | {t['bpb']:.3f} | {difference} | {t['steps']} | "
                      f"{t['seconds']:.0f} | {t['source']} |"]  # fmt: skip
        lines.append("")
    return "\n".join(lines)


def main(argv):
    if argv == ["--tables"]:
        readme = HERE / "README.md"
        said = readme.read_text(encoding="utf-8").split(MARK)[0]
        return replace_file(readme, (said + MARK + "\n\n" + tables()).encode())
    values = configurator.read(argv)
    if "help" in values:
        configurator.fill(values, Recipe, Config, Levers, algorithms.load("bd3lm").LossOptions)
    r, _, _, options, _ = settings(values, 1.0)
    path = dataset(r.vocabulary)
    meta = corpus.load_meta(path, "train", "val")
    tokenizer = corpus.load_tokenizer(path, meta)
    values["vocab_size"] = tokenizer.vocab_size, "the vocabulary"
    out = ROOT / r.out
    check_directory(out, "out")
    out.mkdir(parents=True, exist_ok=True)
    check_file(r.state, "state")
    said = f"{track(r, options)}-{r.budget}"
    kept, before = out / f"{said}-{r.base}.json", trials().get((said, r.name))
    if r.name and before and before["base"] != r.base:
        sys.exit(f"name={r.name} is that of a trial against {before['base']}; choose another")
    if r.name and r.name != r.base and not kept.exists():
        sys.exit(f"base={r.base}: {kept} is not there; run that trial first")
    texts = spans()
    model, log, facts = train(values, np.array(corpus.load_tokens(path, "train", meta)), tokenizer.mask_id)
    *_, algorithm = settings(values, 1.0)
    if algorithm is not algorithms.load(r.algorithm):
        sys.exit("stages end with another algorithm than the recipe's, which is what is measured")
    bits, exact, again = measure(model, algorithm, tokenizer, texts, r)
    bpb, error = mean_and_error(bits)
    result = dict(bpb=round(bpb, 4), spans_error=round(error, 4)) | facts
    result |= dict(machine=machine(), date=str(date.today()))
    result["texts"] = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
    for key, values in (("exact_bpb", exact), ("bound_of_the_same", again)):
        result[key] = round(values.mean().item(), 4) if len(values) else None
    result["exact_spans"] = len(exact)
    if r.name:
        base = bits if r.name == r.base else torch.tensor(json.loads(kept.read_text()))
        replace_file(out / f"{said}-{r.name}.json", json.dumps([round(x, 4) for x in bits.tolist()]).encode())
        apart = SimpleNamespace(**dict(zip(("mean", "error"), mean_and_error(bits - base))))
        hidden = ("name", "idea", "base", "out", "budget", "exact", "seed")
        changes = [a for a in argv if a.startswith("--") and a[2:].partition("=")[0] not in hidden]
        line = dict(name=r.name, base=r.base, source=r.idea, changes=" ".join(a[2:] for a in changes))
        line |= dict(difference=round(apart.mean, 4), difference_error=round(apart.error, 4), track=said)
        lines = trials() | {(said, r.name): line | result}
        replace_file(HERE / "trials.jsonl", "".join(json.dumps(t) + "\n" for t in lines.values()).encode())
    if r.state:
        Path(r.state).unlink(missing_ok=True)
    if r.record:
        keep(HERE / "records" / said / r.record, configurator.files(argv)[0], r.seed, result, log)
    print(json.dumps(result))


if __name__ == "__main__":
    console.run(main, sys.argv[1:])
