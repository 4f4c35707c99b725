"""Measure checkpoints: likelihoods in one unit, lm-eval's tasks, samples under a judge, puzzles.

    python eval.py --checkpoint=out/quickstart,out/quickstart_ar       one table, AR and diffusion in bits per byte
    python eval.py --chain_rule=left_to_right,confidence
    python eval.py --checkpoint=out/sudoku_mdlm --order=random         accuracy: options of generate are keys here
    python eval.py --num_samples=32 --judge=out/quickstart_ar          entropy and perplexity of samples
    python eval.py --out=results/quickstart.json                       settings, seed, versions and numbers
    torchrun --nproc_per_node=8 eval.py config/eval_llada_base.py      the tasks of lm-eval (nanodlm/tasks.py)
    python eval.py --table results/*.json                 … as one table; --plot: accuracy against forwards

Windows and masks are fixed by the seed, so that two checkpoints see the same ones. Texts are cut into windows of the
checkpoint's seq_len without begin-of-text, unless the data say otherwise (data/zeroshot); every token of a window is
counted, the first one too.
"""

import importlib.metadata
import itertools
import math
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

import ar
from nanodlm import (
    algorithms,
    batches,
    configurator,
    conversations,
    corpus,
    fast_bd3lm,
    fast_mdlm,
    files,
    parallel,
    presets,
)
from nanodlm import checkpoint as ckpt
from nanodlm import results as tables
from nanodlm import tokenizer as tokenizers
from nanodlm.device import pick_device
from nanodlm.likelihood import mean_and_error, per_token


@dataclass
class Settings:
    checkpoint: tuple[str, ...] = ("checkpoints/pydocs_mdlm",)  # one or more, with commas between
    dataset: str = ""  # default: the one each checkpoint was trained on
    windows: int = 256  # validation windows; 0 leaves the likelihood out
    samples: int = 4  # masks per window of the NELBO
    batch_size: int = 16  # texts per forward
    chain_rule: tuple[Literal["left_to_right", "confidence"], ...] = ()  # exact likelihoods, a forward per token
    chain_windows: int = 16  # windows for those
    num_samples: int = 0  # generate this many and measure their entropy
    judge: str = ""  # … and their perplexity under this autoregressive model, such as openai-community/gpt2-large
    mauve: bool = False  # … and MAUVE against held-out text (needs the judge, and `pip install mauve-text`)
    puzzles: int = 1000  # puzzles to solve, where the data set has some
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights and the computation
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: the GPU where there is one
    out: str = ""  # write a JSON file with everything here; default with tasks: in results/
    tasks: tuple[str, ...] = ()  # lm-eval's tasks instead of the above, each with settings of its own behind its name
    only: tuple[str, ...] = ()  # of a recipe's tasks, those with these names or labels
    include_path: str = ""  # a directory with more tasks, as lm-eval's YAML files
    local_data: str = ""  # a directory with copies of data sets, by their hub ids: org/name
    run_code: bool = False  # allow code tasks to run what the model wrote, in a subprocess without network

    def __post_init__(self):
        for name in ("samples", "batch_size", "chain_windows", "puzzles"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} measures nothing; use at least 1")


def likelihood(checkpoint, algorithm, s, seed, windows, meta, lengths=None):
    """NELBO (exact for AR) of each of the windows (N, seq_len), nats per token, (N,). Where there are lengths (N,),
    what stands behind so many tokens of a window is padding."""
    place = torch.arange(windows.shape[1], device=windows.device).expand_as(windows)
    real = None if lengths is None else place < lengths[:, None]
    maskable = place >= meta.get("prompt_len", 0)
    maskable = maskable if real is None else maskable & real
    nats = []
    for i in tqdm(range(0, len(windows), s.batch_size), desc="NELBO", disable=None, leave=False):
        part = slice(i, i + s.batch_size)
        keys = dict(mask_id=meta["mask_id"], maskable=maskable[part], samples=s.samples, seed=seed, first=i)
        nats.append(algorithm.nelbo(checkpoint.model, windows[part], real=None if real is None else real[part], **keys))
    return per_token(torch.cat(nats), maskable.sum(1).double())


def answers_likelihood(checkpoint, algorithm, s, seed, dataset, device):
    """NELBO (exact for AR) of the answers in held-out conversations, and bits per byte for each nat per token. What
    stands behind an answer is measured with it, as in training."""
    facts, tokenizer, seq_len = checkpoint.facts, checkpoint.tokenizer, window(checkpoint)
    options = conversations.Options(**facts.get("chat", {}) | {"packing": False, "streaming": False})
    if options.fill is None:
        options.fill = 1 if algorithm.CAUSAL else checkpoint.model.config.block_size
    rows = batches.Conversations(dataset, tokenizer, checkpoint.files, seq_len, options, 0, "val").some(s.windows)
    nats = []
    for i in tqdm(range(0, len(rows), s.batch_size), desc="NELBO", disable=None, leave=False):
        n = min(s.batch_size, len(rows) - i)
        ids, learn, texts = batches.batch(rows, i, n, options, tokenizer.eos_id, seq_len)
        x, maskable, real = (torch.from_numpy(a).to(device) for a in (ids, learn, texts["number"] >= 0))
        keys = dict(mask_id=tokenizer.mask_id, maskable=maskable, real=real, samples=s.samples, seed=seed, first=i)
        nats.append(algorithm.nelbo(checkpoint.model, x, **keys))
    nats = torch.cat(nats).cpu()
    tokens = torch.tensor([int(batches.read(row[0][1])[1].sum()) for row in rows], dtype=torch.float64)
    return per_token(nats, tokens), 1 / math.log(2) / batches.bytes_per_token(rows, tokenizer)


def window(checkpoint):
    """Tokens of a window: what it was trained on, where that is less than its context."""
    return min(checkpoint.facts.get("seq_len", checkpoint.model.config.seq_len), checkpoint.model.config.seq_len)


def chain_rule(checkpoint, algorithm, s, windows, method, meta, lengths=None):
    """Exact negative log likelihood of each window in one reveal order, nats per token, (N,)."""
    n = meta.get("prompt_len", 0)
    batch = {"batch_size": s.batch_size} if hasattr(algorithm.LikelihoodOptions, "batch_size") else {}
    options = algorithm.LikelihoodOptions(method=method, **batch)
    ends = [None] * len(windows) if lengths is None else lengths.tolist()
    given, rest = [x[:n] for x in windows], [x[n:end] for x, end in zip(windows, ends)]
    logp = algorithm.log_likelihood(checkpoint.model, given, rest, options, mask_id=meta["mask_id"])
    return per_token(-logp, torch.tensor([len(x) for x in rest], dtype=logp.dtype, device=logp.device))


def sample_quality(checkpoint, algorithm, options, s, windows, device):
    """What samples from nothing are worth, a dict: the entropy of the token frequencies within each (nats; low means
    repetitive), and under a judge their perplexity and MAUVE (arXiv 2102.01454). A low perplexity alone is no praise:
    text that repeats itself has it, too."""
    room = min(options.max_new_tokens, checkpoint.model.config.seq_len)
    empty, out = torch.empty(0, dtype=torch.int64, device=device), []
    options = replace(options, max_new_tokens=room)
    for i in range(0, s.num_samples, s.batch_size):
        numbers = torch.arange(i, min(i + s.batch_size, s.num_samples))
        keys = dict(mask_id=checkpoint.tokenizer.mask_id, numbers=numbers)
        out.append(algorithm.generate(checkpoint.model, [empty] * len(numbers), options, **keys))
    tokens = [x for part in out for x in part.tokens]
    p = [torch.bincount(x).double() / len(x) for x in tokens]
    mean, error = mean_and_error(torch.stack([-torch.special.xlogy(q, q).sum() for q in p]))
    forwards = sum(sum(part.num_forwards) for part in out) / len(tokens)
    facts = {"nats": mean, "error": error, "forwards_per_sample": forwards, "tokens": room, "dtype": s.dtype}
    if s.judge:
        facts["texts"] = [checkpoint.tokenizer.decode(x.tolist()) for x in tokens]
        held = [checkpoint.tokenizer.decode(x[:room].tolist()) for x in windows[: len(tokens)]]
        facts |= judge(facts["texts"], held, s, device)
    return facts


def judge(texts, held, s, device):
    """Perplexity of texts under the autoregressive model s.judge, of all tokens behind a begin-of-text, in its own
    tokens; and with s.mauve how near they are to held-out texts, by its last hidden states."""
    j = ckpt.load(s.judge, device)
    if j.algorithm != "ar":
        sys.exit(
            f"judge={s.judge} is decoded by {j.algorithm}; a judge is autoregressive, as openai-community/gpt2-large"
        )
    begin = [] if j.tokenizer.mask_id is not None else list(j.tokenizer.frame[0]) or [j.tokenizer.eos_id]
    size = j.model.config.seq_len - len(begin)

    def tensor(ids):
        return torch.tensor(ids, dtype=torch.int64, device=device)

    ids = [j.tokenizer.encode(text) for text in texts]
    cut = [corpus.windows(x, size, begin) for x in ids if x]
    pairs = [(tensor(given), tensor(predicted)) for parts in cut for given, predicted in parts]
    if not pairs:
        sys.exit("the samples are empty, so that there is nothing to judge")
    o = ar.LikelihoodOptions(batch_size=s.batch_size)
    logp = iter(ar.log_likelihood(j.model, *zip(*pairs), o, mask_id=j.tokenizer.mask_id).tolist())
    nats = torch.tensor([-sum(next(logp) for _ in parts) for parts in cut], dtype=torch.float64)
    mean, error = mean_and_error(per_token(nats, torch.tensor([float(len(x)) for x in ids if x])))
    found = {"judge": s.judge, "perplexity": math.exp(mean), "perplexity_error": error and math.exp(mean) * error}
    if s.mauve:
        try:
            import mauve
        except ImportError:
            sys.exit("--mauve needs a library: pip install mauve-text")
        features = []
        with torch.no_grad():
            for x in [*texts, *held]:
                x = tensor(begin + j.tokenizer.encode(x)[:size])
                features.append(j.model.hidden(x[None], rows=tensor([len(x) - 1]))[0].float().cpu().numpy())
        n = len(texts)
        keys = dict(p_features=np.stack(features[n:]), q_features=np.stack(features[:n]), verbose=False)
        found["mauve"] = float(mauve.compute_mauve(**keys).mauve)
    return found


def solve(checkpoint, algorithm, options, s, dataset, meta, device):
    """Fraction of held-out puzzles solved exactly, its standard error, and forwards per puzzle."""
    rows = corpus.load_tokens(dataset, "val", meta)[: s.puzzles]
    rows = torch.from_numpy(rows.astype("int64")).to(device)
    n = meta["prompt_len"]
    options = replace(options, max_new_tokens=rows.shape[1] - n)
    right, forwards = [], 0
    for i in tqdm(range(0, len(rows), 100), desc="puzzles", disable=None, leave=False):
        batch = rows[i : i + 100]
        out = algorithm.generate(checkpoint.model, list(batch[:, :n]), options, mask_id=meta["mask_id"])
        right += [torch.equal(a, b) for a, b in zip(out.tokens, batch)]  # the solution is unique
        forwards += sum(out.num_forwards)
    p = sum(right) / len(right)
    return p, math.sqrt(p * (1 - p) / len(right)), forwards / len(right)


def environment(device):
    """What a result depends on besides its settings."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        git = subprocess.run(command, cwd=corpus.ROOT, capture_output=True, text=True).stdout.strip()
    except OSError:  # no git here
        git = ""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "git": git,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{
            name.replace("-", "_"): importlib.metadata.version(name) for name in ("transformers", "datasets", "lm-eval")
        },
        "machine": torch.cuda.get_device_name() if device.startswith("cuda") else f"{platform.machine()} CPU",
        "threads": torch.get_num_threads(),
    }


def evaluate(path, checkpoint, algorithm, s, options, device):
    """Everything that was asked for about one checkpoint, as a dict for the table and the JSON file."""
    start = time.time()
    dataset = s.dataset or checkpoint.facts.get("dataset")
    if not dataset:
        sys.exit(f"{path} does not say what it was trained on; name the data with --dataset")
    result = {"checkpoint": path, "algorithm": checkpoint.algorithm, "parameters": checkpoint.model.num_params()}
    result["dataset"] = dataset
    if conversations.holds_chat(dataset):
        if checkpoint.tokenizer.template is None:
            sys.exit(f"{path} has no chat template, and {dataset} are conversations; name text with --dataset")
        nats, per_bit = answers_likelihood(checkpoint, algorithm, s, options.seed, dataset, device)
        result["likelihood"] = {"exact" if algorithm.CAUSAL else "NELBO": row(nats, per_bit)}
        return {**result, "seconds": time.time() - start, "settings": asdict(s), "sampling": asdict(options)}
    meta = corpus.load_meta(dataset)
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
        windows = corpus.eval_windows(dataset, meta, window(checkpoint), s.windows)
        windows = torch.from_numpy(windows.astype("int64")).to(device)
        if windows.shape[1] > checkpoint.model.config.seq_len:
            sys.exit(f"the rows of {dataset} have {windows.shape[1]} tokens, more than the context of {path}")
        lengths = corpus.eval_lengths(dataset, meta, s.windows)
        lengths = lengths if lengths is None else torch.from_numpy(lengths).to(device)
        nats = likelihood(checkpoint, algorithm, s, options.seed, windows, meta, lengths)
        exact = algorithm.CAUSAL
        result["likelihood"] = {"exact" if exact else "NELBO": row(nats, per_bit)}
        for method in () if exact else s.chain_rule:
            some = torch.linspace(0, len(windows) - 1, min(s.chain_windows, len(windows))).long()
            ends = lengths if lengths is None else lengths[some]
            nats = chain_rule(checkpoint, algorithm, s, windows[some], method, meta, ends)
            result["likelihood"][f"exact, {method}"] = row(nats, per_bit)
    if s.num_samples:
        held = torch.from_numpy(corpus.eval_windows(dataset, meta, window(checkpoint), s.num_samples).astype("int64"))
        result["sample_entropy"] = sample_quality(checkpoint, algorithm, options, s, held, device)
    if meta.get("task") == "sudoku" and s.puzzles:
        p, error, forwards = solve(checkpoint, algorithm, options, s, dataset, meta, device)
        result["accuracy"] = {"solved": p, "error": error, "forwards_per_puzzle": forwards}
    result["seconds"] = time.time() - start
    return {**result, "settings": asdict(s), "sampling": asdict(options)}


def measure(values, s):
    """Everything that was asked for, a dict for each of s.checkpoint; the sampling options are among the values."""
    device = pick_device(s.device)[0]
    checkpoints = [ckpt.load(path, device, getattr(torch, s.dtype)) for path in s.checkpoint]
    engines = [algorithms.engine(algorithms.load(c.algorithm)) for c in checkpoints]
    configurator.fill(values, Settings, *dict.fromkeys(a.SampleOptions for a in engines))  # refuses unknown keys
    results, facts = [], environment(device)
    for path, checkpoint, algorithm in zip(s.checkpoint, checkpoints, engines):
        keys = {k: v for k, v in values.items() if hasattr(algorithm.SampleOptions, k)}
        options = configurator.fill(keys, algorithm.SampleOptions, quiet=True)
        presets.refuse_idle(options, keys)
        if algorithm is fast_bd3lm and options.block_size:
            use_block_size(path, checkpoint.model.config, options.block_size)
        results.append(evaluate(path, checkpoint, algorithm, s, options, device) | facts)
    return results


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
    results, facts = [], environment(device)
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


def main(argv):
    if argv and argv[0] in ("--table", "--plot"):
        rows, others = tables.read(argv[1:])
        if argv[0] == "--plot":
            return tables.plot(rows, "accuracy.png")
        tables.table(rows)
        return tables.data_table(others)
    values = configurator.read(argv)
    if "help" in values:
        from nanodlm import tasks

        options = (
            fast_mdlm.SampleOptions,
            fast_bd3lm.SampleOptions,
            fast_mdlm.LikelihoodOptions,
        )  # which have them all
        configurator.fill(values, Settings, tasks.Options, *options)
    own = {k: v for k, v in values.items() if hasattr(Settings, k)}
    s = configurator.fill(own, Settings, quiet=True)
    data = ("dataset", "windows", "samples", "chain_rule", "chain_windows", "num_samples", "judge", "mauve", "puzzles")
    for name in data if s.tasks else ("only", "include_path", "local_data", "run_code"):
        if name in values:
            sys.exit(f"{name} does nothing {'beside' if s.tasks else 'without'} tasks; leave it out")
    if s.tasks:
        recipe = configurator.read([word for word in argv if word.endswith(".py") and not word.startswith("-")])
        with parallel.processes():
            return run_tasks(values, recipe, s)
    if s.judge and not s.num_samples or s.mauve and not s.judge:
        sys.exit("a judge reads samples, and mauve is the judge's: say num_samples, and judge, too")
    results = measure(values, s)
    tables.data_table(results)
    if s.out:
        write(s.out, results)


def use_block_size(path, config, block_size):
    """Measure a network with another block size than it was trained with, but not without saying so."""
    if not 0 < block_size <= config.seq_len:
        sys.exit(f"block_size={block_size} does not fit the context of {config.seq_len} tokens of {path}")
    if config.block_size not in (0, block_size):
        print(f"warning: {path} was trained on blocks of {config.block_size} tokens, not {block_size}")
    config.block_size = block_size


def row(per_window, per_bit):
    """What the table shows of one measure; the values per window serve to compare checkpoints on the same windows."""
    nats, error = mean_and_error(per_window)
    return {
        "nats_per_token": nats,
        "nats_error": error,
        "bits_per_byte": nats * per_bit,
        "bits_error": error and error * per_bit,
        "perplexity": math.exp(nats),
        "windows": len(per_window),
        "bits_per_window": [round(x, 6) for x in (per_window * per_bit).tolist()],
    }


if __name__ == "__main__":
    main(sys.argv[1:])
