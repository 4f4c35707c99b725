"""Measure checkpoints: likelihood bounds in one unit, exact chain-rule likelihoods, samples' entropy, puzzle accuracy.

    python eval.py --checkpoint=out/quickstart,out/quickstart_ar       one table, AR and diffusion in bits per byte
    python eval.py --chain_rule=left_to_right,confidence
    python eval.py --checkpoint=out/sudoku_mdlm --order=random         accuracy: options of generate are keys here
    python eval.py --out=results/quickstart.json                       settings, seed, versions and numbers
    python eval.py --ladder                         trains and compares AR, blocks of 1, 4 and 16, and masked diffusion

Windows and masks are fixed by the seed, so that two checkpoints see the same ones. Texts are cut into windows of the
checkpoint's seq_len without begin-of-text; every token of a window is counted, the first one too.
"""

import json
import math
import platform
import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

import bd3lm
import configurator
import mdlm
import pretrained
import tokenizer as tokenizers
import train
from data import common, sft
from model import pick_device


@dataclass
class Settings:
    checkpoint: tuple[str, ...] = ("checkpoints/pydocs_mdlm",)  # one or more, with commas between
    dataset: str = ""  # default: the one each checkpoint was trained on
    windows: int = 256  # validation windows; 0 leaves the likelihood out
    samples: int = 4  # masks per window of the NELBO
    eval_batch_size: int = 16  # windows per forward
    chain_rule: tuple[Literal["left_to_right", "confidence"], ...] = ()  # exact likelihoods, a forward per token
    chain_windows: int = 16  # windows for those
    num_samples: int = 0  # generate this many and measure their entropy
    puzzles: int = 1000  # puzzles to solve, where the data set has some
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights and the computation
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: the GPU where there is one
    ladder: bool = False  # train what is missing of config/ladder.py's five models in ladder_dir, and compare them
    ladder_dir: str = "out/ladder"  # … which go there
    ladder_args: str = ""  # … more settings for their training, in quotes
    out: str = ""  # write a JSON file with everything here


def likelihood(checkpoint, algorithm, s, seed, windows, meta):
    """NELBO (exact for AR) of each of the windows (N, seq_len), nats per token, (N,)."""
    n = meta.get("prompt_len", 0)
    maskable = (torch.arange(windows.shape[1], device=windows.device) >= n).expand_as(windows)
    nats = []
    for i in tqdm(range(0, len(windows), s.eval_batch_size), desc="NELBO", disable=None, leave=False):
        part = slice(i, i + s.eval_batch_size)
        keys = dict(mask_id=meta["mask_id"], maskable=maskable[part], samples=s.samples, seed=seed, first=i)
        nats.append(algorithm.nelbo(checkpoint.model, windows[part], **keys))
    return torch.cat(nats) / (windows.shape[1] - n)


def answers_likelihood(checkpoint, algorithm, s, seed, dataset, device):
    """NELBO (exact for AR) of the answers in held-out conversations, and bits per byte for each nat per token. What
    stands behind an answer is measured with it, as in training."""
    facts, tokenizer, seq_len = checkpoint.facts, checkpoint.tokenizer, window(checkpoint)
    options = sft.Options(**facts.get("chat", {}) | {"packing": False, "streaming": False})
    if options.fill is None:
        options.fill = 1 if algorithm.CAUSAL else checkpoint.model.config.block_size
    rows = sft.Conversations(dataset, tokenizer, checkpoint.files, seq_len, options, 0, "val").some(s.windows)
    nats = []
    for i in tqdm(range(0, len(rows), s.eval_batch_size), desc="NELBO", disable=None, leave=False):
        n = min(s.eval_batch_size, len(rows) - i)
        ids, learn, texts = sft.batch(rows, i, n, options, tokenizer.eos_id, seq_len)
        x, maskable, real = (torch.from_numpy(a).to(device) for a in (ids, learn, texts["number"] >= 0))
        keys = dict(mask_id=tokenizer.mask_id, maskable=maskable, real=real, samples=s.samples, seed=seed, first=i)
        nats.append(algorithm.nelbo(checkpoint.model, x, **keys))
    nats = torch.cat(nats).cpu()
    tokens = torch.tensor([int(sft.read(row[0][1])[1].sum()) for row in rows], dtype=torch.float64)
    return mdlm.per_token(nats, tokens), 1 / math.log(2) / sft.bytes_per_token(rows, tokenizer)


def window(checkpoint):
    """Tokens of a window: what it was trained on, where that is less than its context."""
    return min(checkpoint.facts.get("seq_len", checkpoint.model.config.seq_len), checkpoint.model.config.seq_len)


def chain_rule(checkpoint, algorithm, s, windows, method, meta):
    """Exact negative log likelihood of each window in one reveal order, nats per token, (N,)."""
    n = meta.get("prompt_len", 0)
    options = algorithm.LikelihoodOptions(method=method, batch_size=s.eval_batch_size)
    given, rest = [x[:n] for x in windows], [x[n:] for x in windows]
    logp = algorithm.log_likelihood(checkpoint.model, given, rest, options, mask_id=meta["mask_id"])
    return -logp / (windows.shape[1] - n)


def sample_entropy(checkpoint, algorithm, options, n, device):
    """Entropy of the token frequencies within each sample, in nats: mean and error. Low means repetitive."""
    room = min(options.max_new_tokens, checkpoint.model.config.seq_len)
    options = replace(options, max_new_tokens=room)
    empty = torch.empty(0, dtype=torch.int64, device=device)
    out = algorithm.generate(checkpoint.model, [empty] * n, options, mask_id=checkpoint.tokenizer.mask_id)
    entropies = []
    for tokens in out.tokens:
        p = torch.bincount(tokens).double() / len(tokens)
        entropies.append(-torch.special.xlogy(p, p).sum())
    return mdlm.mean_and_error(torch.stack(entropies)), sum(out.num_forwards) / n


def solve(checkpoint, algorithm, options, s, dataset, meta, device):
    """Fraction of held-out puzzles solved exactly, its standard error, and forwards per puzzle."""
    rows = common.load_tokens(dataset, "val", meta)[: s.puzzles]
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


# One network, one text, the same windows and steps; each rung with the recipe that suits it: the t that its block size
# learns most from, and for masked diffusion no weight 1/t. A step by blocks takes up to twice the work of another.
LADDER = {
    "ar": "--algorithm=ar",
    "block1": "--algorithm=bd3lm --block_size=1 --t_min=1",
    "block4": "--algorithm=bd3lm --block_size=4 --corruption=count",
    "block16": "--algorithm=bd3lm --block_size=16 --t_min=0.3 --t_max=0.8",
    "mdlm": "--algorithm=mdlm --objective=masked_ce --t_shape=bell --t_max=0.8",
}


def train_ladder(s):
    """The ladder's checkpoints, those that are missing trained first; a rung that was stopped goes on."""

    def finished(path):
        facts = json.loads((path / "last/config.json").read_text())
        return facts["iter"] >= facts["train"]["max_iters"]

    paths = []
    for name, words in LADDER.items():
        path = Path(s.ladder_dir) / name
        there = (path / "last/config.json").is_file()
        if there and finished(path):
            print(f"ladder: {path} is there already; delete it to train it anew")
        else:
            print(f"ladder: {name}", flush=True)
            args = ["config/ladder.py", *words.split(), f"--out_dir={path}", *shlex.split(s.ladder_args)]
            train.main([*args, "--init_from=resume" if there else "--overwrite=true"])
            if not finished(path):
                sys.exit(f"the ladder was stopped at {name}; the same command goes on")
        paths.append(str(path / "last"))
    torch.set_float32_matmul_precision("highest")  # as if they had been trained elsewhere
    return tuple(paths)


def speed(checkpoints, algorithms, options, device, rows=4, rounds=3):
    """Forwards per token and tokens per second of generating `rows` texts as long as the context, for each checkpoint;
    the median of rounds in which every checkpoint has its turn."""
    seconds, forwards = [[] for _ in checkpoints], []
    for _ in range(rounds):
        for i, (checkpoint, algorithm, o) in enumerate(zip(checkpoints, algorithms, options)):
            n = checkpoint.model.config.seq_len
            prompts = [torch.empty(0, dtype=torch.int64, device=device)] * rows
            o = replace(o, max_new_tokens=n)
            start = time.time()
            out = algorithm.generate(checkpoint.model, prompts, o, mask_id=checkpoint.tokenizer.mask_id)
            seconds[i].append((time.time() - start) / (rows * n))
            forwards.append(sum(out.num_forwards) / (rows * n))
    return [{"forwards_per_token": f, "tokens_per_s": 1 / statistics.median(t)} for f, t in zip(forwards, seconds)]


def environment(device):
    """What a result depends on besides its settings."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        git = subprocess.run(command, cwd=common.ROOT, capture_output=True, text=True).stdout.strip()
    except OSError:  # no git here
        git = ""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "git": git,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU",
        "threads": torch.get_num_threads(),
    }


def evaluate(path, checkpoint, algorithm, s, options, device):
    """Everything that was asked for about one checkpoint, as a dict for the table and the JSON file."""
    start = time.time()
    dataset = s.dataset or checkpoint.facts.get("dataset")
    if not dataset:
        sys.exit(f"{path} does not say what it was trained on; name the data with --dataset")
    result = {"checkpoint": path, "algorithm": checkpoint.algorithm, "parameters": checkpoint.model.num_params()}
    if sft.holds_chat(dataset):
        if checkpoint.tokenizer.template is None:
            sys.exit(f"{path} has no chat template, and {dataset} are conversations; name text with --dataset")
        nats, per_bit = answers_likelihood(checkpoint, algorithm, s, options.seed, dataset, device)
        result["likelihood"] = {"exact" if algorithm.CAUSAL else "NELBO": row(nats, per_bit)}
        return {**result, "seconds": time.time() - start, "settings": asdict(s), "sampling": asdict(options)}
    meta = common.load_meta(dataset)
    if not tokenizers.alike(common.load_tokenizer(dataset, meta), checkpoint.tokenizer):
        sys.exit(f"{path} and {dataset} have different tokenizers; evaluate it on data prepared with its own")
    per_bit = 1 / math.log(2) / meta["bytes_per_token"]
    if s.windows:
        windows = common.eval_windows(dataset, meta, window(checkpoint), s.windows)
        windows = torch.from_numpy(windows.astype("int64")).to(device)
        nats = likelihood(checkpoint, algorithm, s, options.seed, windows, meta)
        exact = algorithm.CAUSAL
        result["likelihood"] = {"exact" if exact else "NELBO": row(nats, per_bit)}
        for method in () if exact else s.chain_rule:
            some = windows[torch.linspace(0, len(windows) - 1, min(s.chain_windows, len(windows))).long()]
            nats = chain_rule(checkpoint, algorithm, s, some, method, meta)
            result["likelihood"][f"exact, {method}"] = row(nats, per_bit)
    if s.num_samples:
        (mean, error), forwards = sample_entropy(checkpoint, algorithm, options, s.num_samples, device)
        result["sample_entropy"] = {"nats": mean, "error": error, "forwards_per_sample": forwards}
    if meta.get("task") == "sudoku" and s.puzzles:
        p, error, forwards = solve(checkpoint, algorithm, options, s, dataset, meta, device)
        result["accuracy"] = {"solved": p, "error": error, "forwards_per_puzzle": forwards}
    result["seconds"] = time.time() - start
    return {**result, "settings": asdict(s), "sampling": asdict(options)}


def main(argv):
    values = configurator.read(argv)
    if "help" in values:
        configurator.fill(values, Settings, mdlm.SampleOptions, bd3lm.SampleOptions)  # which have them all
    own = {k: v for k, v in values.items() if hasattr(Settings, k)}
    s = configurator.fill(own, Settings, quiet=True)
    for name in ("samples", "eval_batch_size", "chain_windows", "puzzles"):
        if getattr(s, name) < 1:
            sys.exit(f"{name}={getattr(s, name)} measures nothing; use at least 1")
    if s.ladder:
        if not s.windows:
            sys.exit("windows=0 leaves out the likelihoods, which the ladder compares")
        if "checkpoint" in values:
            sys.exit("--ladder compares checkpoints of its own; leave out --checkpoint, or --ladder")
        s.checkpoint = train_ladder(s)
    device = pick_device(s.device)[0]
    checkpoints = [pretrained.load(path, device, getattr(torch, s.dtype)) for path in s.checkpoint]
    algorithms = [pretrained.algorithm(c.algorithm) for c in checkpoints]
    configurator.fill(values, Settings, *dict.fromkeys(a.SampleOptions for a in algorithms))  # refuses unknown keys
    results, options = [], []
    for path, checkpoint, algorithm in zip(s.checkpoint, checkpoints, algorithms):
        keys = {k: v for k, v in values.items() if hasattr(algorithm.SampleOptions, k)}
        options.append(configurator.fill(keys, algorithm.SampleOptions, quiet=True))
        if algorithm is bd3lm and options[-1].block_size:
            use_block_size(path, checkpoint.model.config, options[-1].block_size)
        results.append(evaluate(path, checkpoint, algorithm, s, options[-1], device))
    if s.ladder:
        for result, measured in zip(results, speed(checkpoints, algorithms, options, device)):
            result["speed"] = measured
    print_table(results)
    if s.ladder:
        print_ladder(results)
    if s.out:
        Path(s.out).parent.mkdir(parents=True, exist_ok=True)
        facts = environment(device)
        common.replace_file(Path(s.out), json.dumps([{**r, **facts} for r in results], indent=1).encode())
        print(f"wrote {s.out}")


def use_block_size(path, config, block_size):
    """Measure a network with another block size than it was trained with, but not without saying so."""
    if not 0 < block_size <= config.seq_len:
        sys.exit(f"block_size={block_size} does not fit the context of {config.seq_len} tokens of {path}")
    if config.block_size not in (0, block_size):
        print(f"warning: {path} was trained on blocks of {config.block_size} tokens, not {block_size}")
    config.block_size = block_size


def row(per_window, per_bit):
    """What the table shows of one measure; the values per window serve to compare checkpoints on the same windows."""
    nats, error = mdlm.mean_and_error(per_window)
    return {
        "nats_per_token": nats,
        "nats_error": error,
        "bits_per_byte": nats * per_bit,
        "bits_error": error * per_bit,
        "perplexity": math.exp(nats),
        "windows": len(per_window),
        "bits_per_window": [round(x, 6) for x in (per_window * per_bit).tolist()],
    }


def print_table(results):
    """Markdown: a line per checkpoint and measure."""
    if any("likelihood" in r for r in results):
        print("| checkpoint | parameters | measure | nats per token | bits per byte | perplexity | windows |")
        print("|---|---|---|---|---|---|---|")
    for r in results:
        for kind, x in r.get("likelihood", {}).items():
            nats = f"{x['nats_per_token']:.4f} ± {x['nats_error']:.4f}"
            bits = f"{x['bits_per_byte']:.4f} ± {x['bits_error']:.4f}"
            name, n = r["checkpoint"], f"{r['parameters']:,}"
            print(f"| {name} | {n} | {kind} | {nats} | {bits} | {x['perplexity']:.2f} | {x['windows']} |")
    for r in results:
        if e := r.get("sample_entropy"):
            print(f"{r['checkpoint']}: sample entropy {e['nats']:.3f} ± {e['error']:.3f} nats, ", end="")
            print(f"{e['forwards_per_sample']:.0f} forwards each")
        if a := r.get("accuracy"):
            print(f"{r['checkpoint']}: {a['solved']:.2%} ± {a['error']:.2%} of puzzles solved, ", end="")
            print(f"{a['forwards_per_puzzle']:.1f} forwards each")


def print_ladder(results):
    """Markdown: quality against speed. Each rung is compared with the one above it window by window, which is a far
    smaller error than that of either mean."""
    print("\n| rung | bits per byte | more than the rung above | forwards per token | tokens per second |")
    print("|---|---|---|---|---|")
    above = None
    for r in results:
        x = next(iter(r["likelihood"].values()))
        here = torch.tensor(x["bits_per_window"])
        more, error = mdlm.mean_and_error(here - above) if above is not None else (0.0, 0.0)
        line = [Path(r["checkpoint"]).parent.name, f"{x['bits_per_byte']:.4f} ± {x['bits_error']:.4f}"]
        line += [f"{more:.4f} ± {error:.4f}" if above is not None else ""]
        line += [f"{r['speed']['forwards_per_token']:.2f}", f"{r['speed']['tokens_per_s']:,.0f}"]
        print(f"| {' | '.join(line)} |")
        above = here


if __name__ == "__main__":
    main(sys.argv[1:])
