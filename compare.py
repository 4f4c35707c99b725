"""Does conversion help? Each comparison trains what is missing, on the same data, steps and masks, and prints a table.

    python compare.py minilm       a sentence encoder learns GSM8K by diffusion: its weights against random ones
    python compare.py pydocs       our own autoregressive model becomes masked and block diffusion: against from scratch
    python compare.py endings      what stands behind an answer: one end-of-text, some, or as many as fill the row
    python compare.py minilm --max_iters=100 --out=out/short       train's settings, for all runs of the comparison

A run that was stopped goes on; one that is finished is not trained again.
"""

import json
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

import configurator
import mdlm
import pretrained
import train
from data import sft
from model import pick_device

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
}


@dataclass
class Settings:
    out: str = "out/compare"  # where the runs go
    questions: int = 16  # endings: held-out questions to answer
    max_new_tokens: int = 128  # endings: room for an answer, half as many steps


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
        train.main([*words, f"--out_dir={path}", "--init_from=resume" if there else "--overwrite=true"])
        there = facts()
        if there["iter"] < there["train"]["max_iters"]:
            sys.exit("stopped; the same command goes on")
    return there


def table(rows):
    """Markdown: each run, and by how many standard errors the first of a pair is ahead of the second."""
    print("| run | iterations | nats per token | bits per byte | ahead of the next row by |")
    print("|---|---|---|---|---|")
    for i, (name, f) in enumerate(rows):
        ahead = ""
        if i % 2 == 0 and i + 1 < len(rows):
            other = rows[i + 1][1]
            error = (f["val_bpb_error"] ** 2 + other["val_bpb_error"] ** 2) ** 0.5
            difference = other["val_bpb"] - f["val_bpb"]
            ahead = f"{difference:.3f} bits, {difference / max(error, 1e-9):.1f} standard errors"
        nats, bits = (f"{f[k]:.3f} ± {f[k + '_error']:.3f}" for k in ("val_nats", "val_bpb"))
        print(f"| {name} | {f['iter']} | {nats} | {bits} | {ahead} |")


def endings(rows, s):
    """Markdown: how the answers of the runs end, decoded in blocks of 32 and on one canvas."""
    device = pick_device("auto")[0]
    print("| trained with | nats per token | decoded | answers that end | their tokens | those of the true answers |")
    print("|---|---|---|---|---|---|")
    for name, path, facts in rows:
        checkpoint = pretrained.load(path / "last", device)
        model, tokenizer, chat = checkpoint.model, checkpoint.tokenizer, sft.Options()
        source = sft.Conversations(facts["dataset"], tokenizer, checkpoint.files, 256, chat, 0, "val")
        pairs = [sft.read(row[0][1]) for row in source.some(s.questions)]
        prompts = [torch.from_numpy(ids[~learn]).to(device) for ids, learn in pairs]
        true = sum(int(learn.sum()) for _, learn in pairs) / len(pairs)
        for how, size in (("blocks of 32", 32), ("one canvas", 0)):
            o = dict(block_size=size, lookahead=size == 0, steps=s.max_new_tokens // 2, temperature=0.0)
            o = mdlm.SampleOptions(s.max_new_tokens, **o)
            out = mdlm.generate(model, prompts, o, mask_id=tokenizer.mask_id, eos_id=tokenizer.stop_ids)
            made = [t[len(p) :] for t, p in zip(out.tokens, prompts)]
            ended = [len(t) for t in made if len(t) and int(t[-1]) in tokenizer.stop_ids]
            mean = f"{sum(ended) / len(ended):.0f}" if ended else ""
            nats = f"{facts['val_nats']:.3f} ± {facts['val_nats_error']:.3f}"
            print(f"| {name} | {nats} | {how} | {len(ended)} of {len(made)} | {mean} | {true:.0f} |", flush=True)


def main(argv):
    name = argv[0] if argv and not argv[0].startswith("-") else ""
    if name not in COMPARISONS:
        sys.exit(f"python compare.py NAME, where NAME is one of {', '.join(COMPARISONS)}, not {name!r}")
    values = configurator.read(argv[1:])
    own = {k: v for k, v in values.items() if hasattr(Settings, k)}
    more = [f"--{k}={v[0]}" for k, v in values.items() if k not in own]
    s = configurator.fill(own, Settings, quiet=True)
    before, runs = COMPARISONS[name]
    start, rows = time.time(), []
    for words in before:
        run([words], Path(configurator.read_file(words)["out_dir"][0]))
    for label, words in runs:
        path = directory(s.out, words)
        rows.append((label, path, run([*shlex.split(words), *more], path)))
    tqdm.write(f"({time.time() - start:.0f} s)")
    if name == "endings":
        endings(rows, s)
    else:
        table([(label, facts) for label, _, facts in rows])


if __name__ == "__main__":
    main(sys.argv[1:])
