"""What is it worth? Each comparison trains what is missing, on the same data, steps and masks, and prints a table.

    python experiments/compare.py minilm
    python experiments/compare.py minilm --max_iters=100 --out=out/short      train's settings, for all of its runs
    python experiments/compare.py ladder --windows=64 --temperature=0         … and for the ladder eval.py's, too

minilm    a sentence encoder learns GSM8K by diffusion: its weights against random ones
pydocs    our own autoregressive model becomes masked and block diffusion: against from scratch
endings   what stands behind an answer: one end-of-text, some, or as many as fill the row
ladder    from autoregression by blocks of 1, 4 and 16 to masked diffusion: bits, and speed

A run that was stopped goes on; one that is finished is not trained again: delete it to train it anew.
"""

import json
import math
import shlex
import statistics
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import eval as evaluation  # noqa: E402
import train  # noqa: E402
from nanodlm import (  # noqa: E402
    algorithms,
    batches,
    configurator,
    console,
    conversations,
    fast_bd3lm,
    fast_mdlm,
    likelihood,
)
from nanodlm import checkpoint as ckpt  # noqa: E402
from nanodlm import results as tables  # noqa: E402
from nanodlm.bounds import Size  # noqa: E402
from nanodlm.device import pick_device  # noqa: E402
from nanodlm.files import check_directory, check_file  # noqa: E402

RANDOM = "--random_weights=true"

# {name: (what has to be there first, [(row of the table, what train.py is called with)])}
COMPARISONS = {
    "minilm": (
        [],
        [
            ("converted", "config/minilm_gsm8k.py"),
            ("random weights", f"config/minilm_gsm8k.py {RANDOM}"),
        ],
    ),
    "pydocs": (
        ["config/quickstart_ar.py"],
        [
            ("mdlm, converted", "config/pydocs_ar_mdlm.py"),
            ("mdlm, from scratch", f"config/pydocs_ar_mdlm.py {RANDOM}"),
            ("bd3lm, converted", "config/pydocs_ar_bd3lm.py"),
            ("bd3lm, from scratch", f"config/pydocs_ar_bd3lm.py {RANDOM}"),
        ],
    ),
    "endings": (
        [],
        [
            ("end-of-text to a multiple of 32", "config/minilm_gsm8k.py"),
            ("one end-of-text", "config/minilm_gsm8k.py --fill=1"),
            ("end-of-text to the longest row", "config/minilm_gsm8k.py --fill=0 --packing=false"),
        ],
    ),
    # One network, one text, the same windows and steps; each rung with the recipe that suits it: the t that its block
    # size learns most from, and for masked diffusion no weight 1/t. A step by blocks is up to twice the work of others.
    "ladder": (
        [],
        [
            ("ar", "config/ladder.py --algorithm=ar"),
            ("block1", "config/ladder.py --algorithm=bd3lm --block_size=1 --t_min=1"),
            ("block4", "config/ladder.py --algorithm=bd3lm --block_size=4 --corruption=count"),
            ("block16", "config/ladder.py --algorithm=bd3lm --block_size=16 --t_min=0.3 --t_max=0.8"),
            ("mdlm", "config/ladder.py --algorithm=mdlm --objective=masked_ce --t_shape=bell --t_max=0.8"),
        ],
    ),
}


@dataclass
class Settings:
    out: str = ""  # where the runs go; default: out/compare, those of the ladder to out/ladder
    questions: Size = 16  # endings: held-out questions to answer
    max_new_tokens: Size = 128  # endings: room for an answer, half as many steps
    json: str = ""  # ladder: write a JSON file with everything here


def directory(out, words):
    """A name for a run that says what it is: two comparisons share a run that they have in common."""
    config, *rest = words.split()
    return Path(out) / "-".join([Path(config).stem, *(w.lstrip("-").replace("=", "_") for w in rest)])


def run(words, path):
    """Train it, or go on with it, unless it is finished; its facts."""

    def facts():
        file = path / "last/config.json"
        content = json.loads(file.read_text()) if file.is_file() else {}
        return content.get("nanodlm", content)

    there = facts()
    if not there or there["iter"] < there["train"]["max_iters"]:
        print(f"compare: {path}", flush=True)
        status = train.main([*words, f"--out_dir={path}", "--init_from=resume" if there else "--overwrite=true"])
        there = facts()
        if status or there["iter"] < there["train"]["max_iters"]:
            print("stopped; the same command goes on")
            sys.exit(status)
    return there


def table(rows):
    """Markdown: each run, and by how many standard errors the first of a pair is ahead of the second."""
    print("| run | iterations | nats per token | bits per byte | ahead of the next row by |")
    print("|---|---|---|---|---|")
    for i, (name, f) in enumerate(rows):
        ahead = ""
        if i % 2 == 0 and i + 1 < len(rows):
            other = rows[i + 1][1]
            difference, errors = other["val_bpb"] - f["val_bpb"], (f["val_bpb_error"], other["val_bpb_error"])
            ahead = f"{difference:.3f} bits"
            if None not in errors:
                ahead += f", {difference / max(math.hypot(*errors), 1e-9):.1f} standard errors"
        nats, bits = (tables.with_error(f[k], f[f"{k}_error"], 3) for k in ("val_nats", "val_bpb"))
        print(f"| {name} | {f['iter']} | {nats} | {bits} | {ahead} |")


def endings(rows, s):
    """Markdown: how the answers of the runs end, decoded in blocks of 32 and on one canvas."""
    device = pick_device("auto")[0]
    print("| trained with | nats per token | decoded | answers that end | their tokens | those of the true answers |")
    print("|---|---|---|---|---|---|")
    for name, path, facts in rows:
        checkpoint = ckpt.load(path / "last", device)
        model, tokenizer, chat = checkpoint.model, checkpoint.tokenizer, conversations.Options()
        source = batches.Conversations(facts["dataset"], tokenizer, checkpoint.files, 256, chat, 0, "val")
        pairs = [batches.read(row[0][1]) for row in source.some(s.questions)]
        prompts = [torch.from_numpy(ids[~learn]).to(device) for ids, learn in pairs]
        true = sum(int(learn.sum()) for _, learn in pairs) / len(pairs)
        for how, size in (("blocks of 32", 32), ("one canvas", 0)):
            o = dict(block_size=size, lookahead=size == 0, steps=s.max_new_tokens // 2, temperature=0.0)
            o = fast_mdlm.SampleOptions(s.max_new_tokens, **o)
            out = fast_mdlm.generate(model, prompts, o, mask_id=tokenizer.mask_id, eos_id=tokenizer.stop_ids)
            made = [t[len(p) :] for t, p in zip(out.tokens, prompts)]
            ended = [len(t) for t in made if len(t) and int(t[-1]) in tokenizer.stop_ids]
            mean = f"{sum(ended) / len(ended):.0f}" if ended else ""
            nats = tables.with_error(facts["val_nats"], facts["val_nats_error"], 3)
            print(f"| {name} | {nats} | {how} | {len(ended)} of {len(made)} | {mean} | {true:.0f} |", flush=True)


def speed(results, device, rows=4, rounds=3):
    """Give each result the forwards per token and tokens per second of generating `rows` texts as long as the context;
    the median of rounds in which every checkpoint has its turn."""
    dtype = getattr(torch, results[0]["settings"]["dtype"])
    checkpoints = [ckpt.load(r["checkpoint"], device, dtype) for r in results]
    prompts = [torch.empty(0, dtype=torch.int64, device=device)] * rows
    seconds = [[] for _ in results]
    for _ in range(rounds):
        for r, checkpoint, t in zip(results, checkpoints, seconds):
            algorithm, n = algorithms.engine(algorithms.load(r["algorithm"])), checkpoint.model.config.seq_len
            o = algorithm.SampleOptions(**r["sampling"] | {"max_new_tokens": n})
            start = time.time()
            out = algorithm.generate(checkpoint.model, prompts, o, mask_id=checkpoint.tokenizer.mask_id)
            t.append((time.time() - start) / (rows * n))
            forwards = sum(out.num_forwards) / (rows * n)
            r["speed"] = {"forwards_per_token": forwards, "tokens_per_s": 1 / statistics.median(t)}


def print_ladder(results):
    """Markdown: quality against speed. Each rung is compared with the one above it window by window, which is a far
    smaller error than that of either mean."""
    print("\n| rung | bits per byte | more than the rung above | forwards per token | tokens per second |")
    print("|---|---|---|---|---|")
    above = None
    for r in results:
        x = next(iter(r["likelihood"].values()))
        here, more = torch.tensor(x["bits_per_window"]), ""
        if above is not None:
            more = tables.with_error(*likelihood.mean_and_error(here - above), 4)
        bits = tables.with_error(x["bits_per_byte"], x["bits_error"], 4)
        line = [Path(r["checkpoint"]).parent.name, bits, more]
        line += [f"{r['speed']['forwards_per_token']:.2f}", f"{r['speed']['tokens_per_s']:,.0f}"]
        print(f"| {' | '.join(line)} |")
        above = here


def ladder(values, s, file):
    """Measure s.checkpoint, quality and speed: two tables, and all of it as JSON where a file is named."""
    torch.set_float32_matmul_precision("highest")  # training lowers it; as if they had been trained elsewhere
    results = evaluation.measure(values, s)
    speed(results, pick_device(s.device)[0])
    tables.data_table(results)
    print_ladder(results)
    if file:
        evaluation.write(file, results)


def main(argv):
    name = argv[0] if argv and not argv[0].startswith("-") else ""
    if name not in COMPARISONS:
        sys.exit(f"python experiments/compare.py NAME, where NAME is one of {', '.join(COMPARISONS)}, not {name!r}")
    values = configurator.read(argv[1:])
    if "help" in values:
        configurator.fill(values, Settings, evaluation.Settings, fast_bd3lm.SampleOptions, train.Settings)
    own = {k: v for k, v in values.items() if hasattr(Settings, k)}
    s = configurator.fill(own, Settings, quiet=True)
    # What eval.py knows goes there, the rest to training; data, device, dtype and seed go to both. What is wrong in the
    # former is refused now, not when the rungs are trained.
    known = {f.name for c in (evaluation.Settings, fast_bd3lm.SampleOptions) for f in fields(c)} - {"out", "frontier"}
    asked = {k: v for k, v in values.items() if name == "ladder" and k in known}
    measure, _ = configurator.fill(asked, evaluation.Settings, fast_bd3lm.SampleOptions, quiet=True)
    if not measure.windows or "checkpoint" in asked:
        sys.exit("the ladder compares likelihoods of checkpoints of its own; leave out --windows=0 and --checkpoint")
    other = {k: v for k, v in values.items() if k not in own and (k not in asked or hasattr(train.Settings, k))}
    more = [f"--{k}={v}" for k, (v, _) in other.items()]
    before, runs = COMPARISONS[name]
    check_directory(s.out or "out", "out")
    check_file(s.json, "json")
    start, rows = time.time(), []
    for words in before:
        run([words], Path(configurator.read_file(words)["out_dir"][0]))
    for label, words in runs:
        path = Path(s.out or "out/ladder") / label if name == "ladder" else directory(s.out or "out/compare", words)
        rows.append((label, path, run([*shlex.split(words), *more], path)))
    tqdm.write(f"({time.time() - start:.0f} s)")
    if name == "endings":
        endings(rows, s)
    elif name == "ladder":
        measure.checkpoint = tuple(str(path / "last") for _, path, _ in rows)
        ladder(asked, measure, s.json)
    else:
        table([(label, facts) for label, _, facts in rows])


if __name__ == "__main__":
    console.run(main, sys.argv[1:])
