"""What does a language model lose, and win, when it becomes a diffusion model? Checkpoints beside their original.

    python experiments/smollm.py checkpoints/smollm2-bd3lm out/smollm_bd3lm
    python experiments/smollm.py out/smollm_bd3lm --answers=64 --chain_answers=64 --thresholds=1,0.9,0.8

1 likelihood   bits per byte of held-out GSM8K answers behind their questions, end of turn included: a bound, and what
               is exact, in two orders; and how much more that is than the original's, on the same answers
2 speed        tokens per forward, by the threshold from which a token is sure enough; and where a model that kept its
               shift judges its own drafts (--verify), of which the text has to be the original's, token for token
3 answers      to plain questions, greedy

Exact likelihoods take a block's size of forwards, without blocks (mdlm) one per token: chain_answers says of how many.
"""

import math
import sys
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from nanodlm import algorithms, configurator, console, hub, presets, records  # noqa: E402
from nanodlm import checkpoint as ckpt  # noqa: E402
from nanodlm import results as tables  # noqa: E402
from nanodlm import text as texts  # noqa: E402
from nanodlm.bounds import Place, Size, Whole, check  # noqa: E402
from nanodlm.device import pick_device  # noqa: E402
from nanodlm.likelihood import mean_and_error, per_token  # noqa: E402

QUESTIONS = """What is the capital of France?
Why is the sky blue?
Who wrote Romeo and Juliet?
What do bees make?
Name three colors.
How many days are in a week?
What is water made of?
Write one sentence about a dog.
Give me a tip for better sleep.
What is 2 + 3?""".splitlines()


@dataclass
class Settings:
    checkpoint: tuple[Place, ...] = ()  # diffusion models; those behind the script's name
    ar: Place = "checkpoints/smollm2"  # the autoregressive one that they come from; empty: leave it out
    answers: Whole = 32  # held-out answers of which the bound is measured; 0 leaves likelihoods out
    samples: Size = 4  # masks for each of them
    chain_answers: Whole = 16  # … whose exact likelihood is, the first ones
    thresholds: tuple[float, ...] = (1.0, 0.9, 0.8, 0.7, 0.6)
    max_new_tokens: Size = 64  # of an answer to a plain question
    block_size: Size = 4  # of a block diffusion model that was converted, and not trained yet
    batch_size: Size = 4
    local_data: Place = ""  # a directory with gsm8k_test.jsonl; default: ../shared/data, or else the hub
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    seed: Whole = 0

    def __post_init__(self):
        check(self)


def gsm8k(s):
    """The first held-out conversations: a question and its answer each."""
    file = Path(s.local_data or ROOT.parent / "shared/data") / "gsm8k_test.jsonl"
    if s.local_data and not file.is_file():
        sys.exit(f"local_data={s.local_data} has no gsm8k_test.jsonl")
    instead = "bring a copy as gsm8k_test.jsonl, and name its directory as --local_data"
    rows = records.read(file) if file.is_file() else hub.rows("openai/gsm8k", "main", "test", instead=instead)
    return [records.messages_of(r) for r in islice(rows, s.answers)]


def pair_of(tokenizer, messages):
    """(ids of a question, up to where the assistant answers, ids of the answer up to the end of its turn), int64."""
    asked, whole = tokenizer.chat(messages[:-1]), tokenizer.encode(tokenizer.template(messages, False))
    if whole[: len(asked)] != asked:
        sys.exit("the chat template writes a question otherwise when its answer follows, so nothing can be measured")
    end = max((i for i, token in enumerate(whole) if token in tokenizer.stop_ids), default=len(whole) - 1)
    return torch.tensor(asked), torch.tensor(whole[len(asked) : end + 1])


def nats_of(checkpoint, pairs, s, method):
    """-log p of the answers, (N,) float64, by a method of the algorithm's log_likelihood; "": what an autoregressive
    model has."""
    algorithm = algorithms.engine(algorithms.load(checkpoint.algorithm))
    said = {"method": method, "mc_samples": s.samples, "seed": s.seed} if method else {}
    said["batch_size"] = s.batch_size
    o = algorithm.LikelihoodOptions(**{k: v for k, v in said.items() if hasattr(algorithm.LikelihoodOptions, k)})
    numbers = torch.tensor(sorted(range(len(pairs)), key=lambda i: -sum(map(len, pairs[i]))))  # alike side by side
    prompts, targets = zip(*(pairs[i] for i in numbers.tolist()))
    device, out = next(checkpoint.model.parameters()).device, torch.zeros(len(pairs), dtype=torch.float64)
    prompts, targets = ([x.to(device) for x in xs] for xs in (prompts, targets))
    keys = dict(mask_id=checkpoint.tokenizer.mask_id, numbers=numbers)
    out[numbers] = -algorithm.log_likelihood(checkpoint.model, prompts, targets, o, **keys).cpu()
    return out


def likelihoods(names, checkpoints, s):
    """Markdown: bits per byte of each checkpoint, and how much more than the first one's where that is the original."""
    talks = gsm8k(s)
    sizes = torch.tensor([len(t[-1]["content"].encode()) for t in talks], dtype=torch.float64)
    methods = {"NELBO": len(talks)} | dict.fromkeys(("left_to_right", "confidence"), min(s.chain_answers, len(talks)))
    print(f"\n| bits per byte of {len(talks)} answers | NELBO | ", end="")
    print(" | ".join(f"exact, {m}, of {n}" for m, n in methods.items() if m != "NELBO"), "|\n|---|---|---|---|")
    original = None
    for name, checkpoint in zip(names, checkpoints):
        pairs, cells = [pair_of(checkpoint.tokenizer, t) for t in talks], []
        causal = algorithms.load(checkpoint.algorithm).CAUSAL
        for method, n in methods.items():
            if not n or causal and method == "confidence":
                cells.append("")
                continue
            if not causal or method == "NELBO":
                nats = nats_of(checkpoint, pairs[:n], s, "" if causal else method.lower())[:n]
            original = nats if causal else original
            bits = per_token(nats[:n], sizes[:n]) / math.log(2)
            cells.append(tables.with_error(*mean_and_error(bits), 3))
            if original is not None and not causal:
                mean, error = mean_and_error(bits - per_token(original[:n], sizes[:n]) / math.log(2))
                cells[-1] += f" ({mean:+.3f}{'' if error is None else f' ± {error:.3f}'})"
        cells[0] = "" if causal else cells[0]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def answered(checkpoint, s, threshold=None):
    """(answers to the questions, their ids, tokens, forwards) where what is this sure is revealed at once; without a
    threshold, where the model judges its own drafts."""
    algorithm = algorithms.engine(algorithms.load(checkpoint.algorithm), verify=threshold is None)
    tokenizer, device = checkpoint.tokenizer, next(checkpoint.model.parameters()).device
    said = dict(max_new_tokens=s.max_new_tokens, temperature=0.0, threshold=threshold)
    said = {k: (v, "--" + k) for k, v in said.items() if v is not None}
    said = presets.part(said, algorithm.SampleOptions)
    settled = presets.settle(checkpoint, algorithm, said)[1]
    o = configurator.fill(presets.part(settled, algorithm.SampleOptions), algorithm.SampleOptions, quiet=True)
    prompts = [torch.tensor(tokenizer.chat([{"role": "user", "content": q}]), device=device) for q in QUESTIONS]
    keys = dict(mask_id=tokenizer.mask_id, eos_id=tokenizer.stop_ids or None)
    out = algorithm.generate(checkpoint.model, prompts, o, **keys)
    pairs = [(p.tolist(), x[len(p) :].tolist()) for p, x in zip(prompts, out.tokens)]
    said = [texts.answer(tokenizer, before, new, [tokenizer.stop_text])[0].strip() for before, new in pairs]
    return said, [new for _, new in pairs], sum(len(new) for _, new in pairs), sum(out.num_forwards)


def main(argv):
    names = list(dict.fromkeys(x.rstrip("/") for x in argv if not x.startswith("-")))
    s = configurator.fill(configurator.read([x for x in argv if x.startswith("-")]), Settings, quiet=True)
    names += s.checkpoint
    if not names:
        sys.exit("python experiments/smollm.py CHECKPOINT …, the diffusion models that are compared")
    start, device = time.time(), pick_device(s.device)[0]
    names = [*([s.ar] if s.ar else []), *names]
    checkpoints = [ckpt.load(name, device, getattr(torch, s.dtype)) for name in names]
    if s.ar and not algorithms.load(checkpoints[0].algorithm).CAUSAL:
        sys.exit(f"ar={s.ar} is no autoregressive model, it is decoded by {checkpoints[0].algorithm}")
    if wrong := [name for name, c in zip(names, checkpoints) if c.tokenizer.chat is None]:
        sys.exit(f"{wrong[0]} has no chat template, so that it can be asked nothing")
    for checkpoint in checkpoints:
        if checkpoint.algorithm == "bd3lm" and not checkpoint.model.config.block_size:
            checkpoint.model.config.block_size = s.block_size
    if s.answers:
        likelihoods(names, checkpoints, s)
    print(
        "\n| tokens per forward | " + " | ".join(f"threshold {t:g}" for t in s.thresholds) + " | verified | as before |"
    )
    print("|---" * (3 + len(s.thresholds)) + "|")
    first, before = [], None
    for name, checkpoint in zip(names, checkpoints):
        causal = algorithms.load(checkpoint.algorithm).CAUSAL
        found = [answered(checkpoint, s, t) for t in s.thresholds[: 1 if causal else None]]
        cells = [f"{tokens / max(forwards, 1):.2f}" for *_, tokens, forwards in found]
        cells = cells * len(s.thresholds) if causal else cells
        before, more = found[0][1] if causal else before, ["", ""]
        if checkpoint.algorithm == "bd3lm" and checkpoint.model.config.shift:
            _, ids, tokens, forwards = answered(checkpoint, s)
            more = [f"{tokens / max(forwards, 1):.2f}", ""]
            more[1] = f"{sum(map(list.__eq__, ids, before))} of {len(ids)} texts" if before else ""
        print(f"| {name} | {' | '.join(cells + more)} |", flush=True)
        first.append(found[0][0])
    for i, question in enumerate(QUESTIONS):
        print(f"\n{question}")
        for name, said in zip(names, first):
            print(console.visible(f"  {Path(name).name}: {' / '.join(said[i].split(chr(10)))}"))
    print(f"\n({time.time() - start:.0f} s)")


if __name__ == "__main__":
    console.run(main, sys.argv[1:])
