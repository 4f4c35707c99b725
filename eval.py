"""Measure checkpoints: likelihoods in one unit, lm-eval's tasks, samples under a judge, puzzles.

    python eval.py --checkpoint=out/quickstart,out/quickstart_ar       one table, AR and diffusion in bits per byte
    python eval.py --chain_rule=left_to_right,confidence
    python eval.py --checkpoint=out/sudoku_mdlm --order=random         accuracy: options of generate are keys here
    python eval.py --num_samples=32 --judge=out/quickstart_ar          entropy and perplexity of samples
    python eval.py --num_samples=32 --judge=out/quickstart_ar --temperature=0.5,0.7,0.9,1 --frontier=line.png
    python eval.py --out=results/quickstart.json                       settings, seed, versions and numbers
    torchrun --nproc_per_node=8 eval.py config/eval_llada_base.py      the tasks of lm-eval (nanodlm/tasks.py)
    python eval.py --table results/*.json                 … as one table; --plot: accuracy against forwards

Windows and masks are fixed by the seed, so that two checkpoints see the same ones. Texts are cut into windows of the
checkpoint's seq_len without begin-of-text, unless the data say otherwise (data/zeroshot); every token of a window is
counted, the first one too.
"""

import itertools
import math
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from nanodlm import algorithms, configurator, console, corpus, files, frontier, measures, parallel, records
from nanodlm import checkpoint as ckpt
from nanodlm import results as tables
from nanodlm import tokenizer as tokenizers
from nanodlm.bounds import Line, Place, Size, Whole, check
from nanodlm.device import pick_device


@dataclass
class Settings:
    checkpoint: tuple[Place, ...] = ("checkpoints/pydocs_mdlm",)  # one or more, with commas between
    dataset: Place = ""  # default: the one each checkpoint was trained on
    windows: Whole = 256  # validation windows; 0 leaves the likelihood out
    samples: Size = 4  # masks per window of the NELBO
    batch_size: Size = 16  # texts per forward
    chain_rule: tuple[Literal["left_to_right", "confidence"], ...] = ()  # exact likelihoods, a forward per token
    chain_windows: Size = 16  # windows for those
    num_samples: Whole = 0  # generate this many and measure their entropy
    judge: Place = ""  # … and their perplexity under this autoregressive model, such as openai-community/gpt2-large
    frontier: Place = ""  # … of several values of temperature, top_p, threshold or steps, as a plot: a .png, .pdf, .svg
    mauve: bool = False  # … and MAUVE against held-out text (needs the judge, and `pip install mauve-text`)
    puzzles: Size = 1000  # puzzles to solve, where the data set has some
    dtype: Literal["float32", "bfloat16", "int8"] = "float32"  # of the weights and the computation
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # auto: the GPU where there is one; mps: Apple's
    out: Place = ""  # write a JSON file with everything here; default with tasks: in results/
    tasks: tuple[Line, ...] = ()  # lm-eval's tasks instead of the above, each with settings of its own after its name
    only: tuple[str, ...] = ()  # of a recipe's tasks, those with these names or labels
    include_path: Place = ""  # a directory with more tasks, as lm-eval's YAML files
    local_data: Place = ""  # a directory with copies of data sets, by their hub ids: org/name
    run_code: Literal["false", "true", "unguarded"] = "false"  # run what the model wrote: inside bubblewrap, or without

    def __post_init__(self):
        check(self)
        if not self.checkpoint:
            raise ValueError("checkpoint names none; say which with --checkpoint=…")


def evaluate(path, checkpoint, algorithm, s, every, over, judge, device):
    """Everything that was asked for about one checkpoint, as a dict for the table and the JSON file. Samples are drawn
    with every one of some options, whose values of `over` differ."""
    start, options = time.time(), every[0]
    dataset = s.dataset or checkpoint.facts.get("dataset")
    if not dataset:
        sys.exit(f"{path} does not say what it was trained on; name the data with --dataset")
    result = {"checkpoint": path, "algorithm": checkpoint.algorithm, "parameters": checkpoint.model.num_params()}
    result |= {"dataset": dataset, "block_size": getattr(checkpoint.model.config, "block_size", 0)}
    if records.holds_chat(dataset):
        if s.num_samples:
            sys.exit(
                f"samples are not compared with conversations, as {dataset} are; leave out num_samples, or name text"
            )
        if checkpoint.tokenizer.template is None:
            sys.exit(f"{path} has no chat template, and {dataset} are conversations; name text with --dataset")
        nats, per_bit = measures.answers_likelihood(checkpoint, algorithm, s, options.seed, dataset, device)
        result["likelihood"] = {"exact" if algorithm.CAUSAL else "NELBO": measures.row(nats, per_bit)}
        return {**result, "seconds": time.time() - start, "settings": asdict(s), "sampling": asdict(options)}
    meta = corpus.load_meta(dataset, "val")
    if not tokenizers.alike(corpus.load_tokenizer(dataset, meta), checkpoint.tokenizer):
        sys.exit(f"{path} and {dataset} have different tokenizers; evaluate it on data prepared with its own")
    per_bit = 1 / math.log(2) / meta["bytes_per_token"]
    result["policy"] = meta.get("policy", "windows of running text, without begin-of-text")
    if s.windows:
        if algorithm.CAUSAL and checkpoint.tokenizer.mask_id is None and not meta.get("prompt_len"):
            sys.exit(
                f"{path} has no begin-of-text, so that it says nothing of a window's first token; use data whose "
                "windows begin with a given one, as those of data/zeroshot/prepare.py --begin=given"
            )
        windows = corpus.eval_windows(dataset, meta, measures.window(checkpoint), s.windows)
        windows = torch.from_numpy(windows.astype("int64")).to(device)
        if windows.shape[1] > checkpoint.model.config.seq_len:
            sys.exit(f"the rows of {dataset} have {windows.shape[1]} tokens, more than the context of {path}")
        lengths = corpus.eval_lengths(dataset, meta, s.windows)
        lengths = lengths if lengths is None else torch.from_numpy(lengths).to(device)
        nats = measures.likelihood(checkpoint, algorithm, s, options.seed, windows, meta, lengths)
        exact, begun = algorithm.CAUSAL, getattr(checkpoint.model.config, "source", "nothing")
        bound = "NELBO" if begun == "nothing" else f"NELBO from {begun}"  # of a text that is not written, but mended
        result["likelihood"] = {"exact" if exact else bound: measures.row(nats, per_bit)}
        for method in () if exact else s.chain_rule:
            some = torch.linspace(0, len(windows) - 1, min(s.chain_windows, len(windows))).long()
            ends = lengths if lengths is None else lengths[some]
            nats = measures.chain_rule(checkpoint, algorithm, s, windows[some], method, meta, ends)
            result["likelihood"][f"exact, {method}"] = measures.row(nats, per_bit)
    if s.num_samples:
        result |= frontier.sample(checkpoint, algorithm, every, over, s, dataset, meta, judge, device)
    if meta.get("task") == "sudoku" and s.puzzles and not over:
        p, error, forwards = measures.solve(checkpoint, algorithm, options, s, dataset, meta, device)
        result["accuracy"] = {"solved": p, "error": error, "forwards_per_puzzle": forwards}
    result |= {"seconds": time.time() - start, "settings": asdict(s)}
    return {**result, "sampling": {k: v for k, v in asdict(options).items() if k != over}}


def measure(values, s, over=""):
    """Everything that was asked for, a dict for each of s.checkpoint; the sampling options are among the values, that
    which a line of samples is drawn over as a list."""
    device = pick_device(s.device)[0]
    checkpoints = [ckpt.load(path, device, getattr(torch, s.dtype)) for path in s.checkpoint]
    engines = [algorithms.engine(algorithms.load(c.algorithm)) for c in checkpoints]
    each, classes = frontier.spread(values)[1] if over else [values], dict.fromkeys(a.SampleOptions for a in engines)
    for said in each:  # refuses unknown keys
        configurator.fill(said, Settings, *classes, quiet=True)
    configurator.fill({k: v for k, v in values.items() if k != over}, Settings, *classes)
    facts, sampling = tables.environment(device), []
    for path, checkpoint, algorithm in zip(s.checkpoint, checkpoints, engines):
        measures.check_chain_rule(path, algorithm, s.chain_rule)
        options = [measures.sampling(said, path, checkpoint, algorithm) for said in each]
        sampling.append([o for i, o in enumerate(options) if o not in options[:i]])  # one, if it does not know `over`
    if over:
        frontier.comparable(s.checkpoint, checkpoints, sampling, s)
    judge = measures.read_judge(s, checkpoints, device) if s.judge else None
    found = zip(s.checkpoint, checkpoints, engines, sampling)
    return [evaluate(path, c, algorithm, s, o, over, judge, device) | facts for path, c, algorithm, o in found]


def write(file, results):
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    files.replace_file(Path(file), files.to_json(results, indent=1).encode())
    print(f"wrote {file}")


def run_tasks(values, recipe, s):
    """Every task of s.tasks for each of s.checkpoint, on all processes; the table and the file are the first one's."""
    from nanodlm import tasks  # and with it lm-eval, which takes its time

    where = values["tasks"][1]  # "eval_llada_base.py, line 12", or the command line
    said = where == "the command line"
    names = ["-".join(entry.split()[0] for entry in s.tasks)] if said else [Path(where.split(",")[0]).stem]
    if said or values.get("checkpoint", ("", ""))[1] == "the command line":
        names += [Path(path).name for path in s.checkpoint]
    names = [*reversed(names), *s.only]  # a part of a recipe has a file, and finished requests, of its own
    names += [f"limit{values['limit'][0]}"] if "limit" in values else []
    out = Path(s.out or f"results/{'-'.join(names)[:150]}.json")
    requests = out.with_suffix(".requests")
    rank, world, device = parallel.start(pick_device(s.device)[0])
    checkpoints = [ckpt.load(path, device, getattr(torch, s.dtype)) for path in s.checkpoint]
    engines = [algorithms.engine(algorithms.load(c.algorithm)) for c in checkpoints]
    classes = [o for a in engines for o in (a.SampleOptions, a.LikelihoodOptions)]
    classes = (Settings, tasks.Options, *dict.fromkeys(classes))
    results, facts = [], tables.environment(device)
    try:
        for path, checkpoint, algorithm in zip(s.checkpoint, checkpoints, engines):
            rows = tasks.rows(values, recipe, s, path, checkpoint, algorithm, classes, rank, world, requests)
            results += [r | facts | {"processes": world} for r in rows]
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on where it was")
    if not rank:
        out = out if s.out else unused(out)
        tables.table([r | {"file": str(out)} for r in results])
        write(out, results)
        shutil.rmtree(requests, ignore_errors=True)  # what they answered stands in the results


def unused(file):
    """The file, or file-2, file-3, …: results that nobody named are not written over others."""
    more = (file.with_stem(f"{file.stem}-{i}") for i in itertools.count(2))
    return next(f for f in itertools.chain([file], more) if not f.exists())


def show(rows, others):
    """The tables of rows about tasks, and of others."""
    tables.table(rows)
    tables.data_table(others)
    frontier.show(others)


def main(argv):
    if argv and argv[0] in ("--table", "--plot"):
        rows, others = tables.read(argv[1:], show)
        if argv[0] == "--plot":
            lines = [] if rows else [r for r in others if "frontier" in r]
            return frontier.show(lines, "frontier.png") if lines else tables.plot(rows, "accuracy.png")
        return show(rows, others)
    values = configurator.read(argv)
    if "help" in values:
        from nanodlm import tasks

        options = [o for a in algorithms.named(values) for o in (a.SampleOptions, a.LikelihoodOptions)]
        configurator.fill(values, Settings, tasks.Options, *options)
    own = {k: v for k, v in values.items() if hasattr(Settings, k)}
    s = configurator.fill(own, Settings, quiet=True)
    files.check_file(s.out, "out", parents=True)
    data = ("dataset", "windows", "samples", "chain_rule", "chain_windows", "num_samples", "judge", "mauve", "puzzles")
    for name in (*data, "frontier") if s.tasks else ("only", "include_path", "local_data", "run_code"):
        if name in values:
            sys.exit(f"{name} does nothing {'beside' if s.tasks else 'without'} tasks; leave it out")
    if s.tasks:
        recipe = configurator.read(configurator.files(argv))
        with parallel.processes():
            return run_tasks(values, recipe, s)
    over = frontier.check(values, s)
    results = measure(values, s, over)
    tables.data_table(results)
    if s.out:
        write(s.out, results)
    frontier.show(results, s.frontier)


if __name__ == "__main__":
    console.run(main, sys.argv[1:])
