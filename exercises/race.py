"""The race: autoregression, block diffusion and masked diffusion write side by side, each as fast as it can.

    python exercises/race.py                                 trains what is missing, once; then they run
    python exercises/race.py --prompt="def read(" --speed=1
    python exercises/race.py --masked=checkpoints/pydocs_mdlm --threshold=0.5

Each writes alone on the machine, while a clock notes the time of every step. Then all of them are shown on one clock,
in the terminal and in a page. Models of your own: --ar, --block and --masked are checkpoints.
"""

import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sample  # noqa: E402
from nanodlm import algorithms, configurator, console, files, replay, runs  # noqa: E402
from nanodlm import checkpoint as ckpt  # noqa: E402
from nanodlm import tokenizer as tokenizers  # noqa: E402
from nanodlm.bounds import Amount, Place, Positive, Seed, Size, Text, Unit, check  # noqa: E402
from nanodlm.device import pick_device  # noqa: E402


@dataclass
class Settings:
    ar: Place = "out/race/ar"  # the autoregressive checkpoint; this one is trained where it is missing
    block: Place = "out/race/bd3lm"  # … by blocks
    masked: Place = "out/race/mdlm"  # … that writes the whole text at once
    prompt: Text = "class "  # what all of them continue
    max_new_tokens: Size = 128  # each writes as many: end-of-text is never drawn
    temperature: Amount = 0.7  # of the token draw; 0 takes the most probable token
    per_step: Size = 4  # block, masked: tokens written in a step
    threshold: Unit | None = None  # block, masked: … or, in place of per_step, all of which the network is so sure
    seed: Seed = 1  # of the token draw
    rounds: Size = 3  # timed runs of each, in turn, behind one that warms up; the median is shown
    speed: Positive = 0.1  # of the replay: 1 is as measured, 0.1 ten times slower
    html: Place = "race.html"  # write a page here that replays it; empty for none
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # auto: the GPU where there is one; mps: Apple's

    def __post_init__(self):
        check(self)


# {setting: (algorithm, what it is called, the recipe that trains it, its minutes on two CPU cores, how it decodes)}
KINDS = {
    "ar": (
        "ar",
        "autoregression",
        "quickstart_ar",
        4,
        "from left to right, one token per step, which reads that one; the rest is in its cache",
    ),
    "block": (
        "bd3lm",
        "block diffusion",
        "quickstart_bd3lm",
        8,
        "blocks of {size}, {many} per step, which reads one block; the rest is in its cache",
    ),
    "masked": (
        "mdlm",
        "masked diffusion",
        "quickstart",
        4,
        "anywhere in the text, {many} per step, which reads all of it",
    ),
}


# ---- who runs --------------------------------------------------------------------------------------------------------


def is_missing(place):
    """Whether a checkpoint is still to be trained, or to be trained to its end."""
    run = files.ROOT / place
    if not runs.is_there(run):
        return ckpt.at_hand(place) is None
    facts = files.read_json(run / "last/config.json") if (run / "last/config.json").is_file() else {}
    return facts.get("iter", 0) < facts.get("train", {}).get("max_iters", 1)


def settle(s, kind, tokenizer, seq_len):
    """(SampleOptions, the prompt's ids); exits where the prompt cannot be encoded, or is too long."""
    name = KINDS[kind][0]
    keys = dict(max_new_tokens=s.max_new_tokens, temperature=s.temperature, seed=s.seed, suppress=tokenizer.stop_ids)
    if name != "ar":
        steps = dict(quota="steps", steps=-(-s.max_new_tokens // s.per_step))
        keys |= steps if s.threshold is None else dict(quota="threshold", threshold=s.threshold)
    options = algorithms.engine(algorithms.load(name)).SampleOptions(**keys)
    prompt, _ = sample.canvas_of(sample.Settings(prompt=s.prompt), tokenizer)
    return sample.fit(sample.Settings(), asdict(s), options, prompt, seq_len, tokenizer.mask_id), prompt


def runner(s, kind, device):
    """(Checkpoint, SampleOptions, the prompt's ids) of a checkpoint that is there; exits where it does not fit."""
    name, place = KINDS[kind][0], getattr(s, kind)
    checkpoint = ckpt.load(place, device, torch.bfloat16 if device == "cuda" else torch.float32)
    if checkpoint.algorithm != name:
        sys.exit(f"{kind}={place} was trained by {checkpoint.algorithm}; here goes a checkpoint of {name}")
    options, prompt = settle(s, kind, checkpoint.tokenizer, checkpoint.model.config.seq_len)
    return checkpoint, options, prompt.to(device)


def train(s, missing):
    """Train the missing checkpoints, or go on with them, each in a process of its own."""
    data = files.ROOT / "data/pydocs"
    places, minutes = ", ".join(getattr(s, kind) for kind in missing), sum(KINDS[kind][3] for kind in missing)
    print(f"Not trained yet, or not to the end: {places}.")
    print(f"That is done now, in about {minutes} minutes on two CPU cores, and kept for the next time.")
    print("Ctrl-C stops; the same command goes on with it.")
    commands = [] if (data / "meta.json").is_file() else [[data / "prepare.py"]]
    for kind in missing:
        words = [f"--out_dir={files.ROOT / getattr(s, kind)}", "--init_from=auto"]
        commands.append([files.ROOT / "train.py", files.ROOT / f"config/{KINDS[kind][2]}.py", *words])
    for words in commands:
        print("race: python", *(str(w).replace(f"{files.ROOT}/", "") for w in words), flush=True)
        child = subprocess.Popen([sys.executable, *words], cwd=files.ROOT)
        try:
            status = child.wait()
        except KeyboardInterrupt:  # which the child has heard, too; it saves
            child.wait()
            raise
        if status:
            sys.exit(status)


# ---- the race --------------------------------------------------------------------------------------------------------


def clocked(checkpoint, options, prompt):
    """(Output, seconds from the start to the end of each step) of one run."""
    times = []

    def watch(canvases):
        canvases[0][-1].item()  # which waits for a GPU
        times.append(time.perf_counter() - start)

    generate, mask_id = algorithms.engine(algorithms.load(checkpoint.algorithm)).generate, checkpoint.tokenizer.mask_id
    start = time.perf_counter()
    return generate(checkpoint.model, [prompt], options, mask_id=mask_id, trace=True, watch=watch), times


def measure(runners, rounds):
    """[(Output, times)], for each runner the median of its runs. All have their turn in every round, so that a machine
    that slows down slows all of them."""
    for r in runners:
        clocked(*r)
    done = [[clocked(*r) for r in runners] for _ in range(rounds)]
    return [sorted(own, key=lambda run: run[1][-1])[rounds // 2] for own in zip(*done)]


def lane(s, kind, runner, out, times):
    """What replay.py shows of one of them."""
    (checkpoint, _, prompt), (_, name, *_, about) = runner, KINDS[kind]
    mask_id = -1 if checkpoint.tokenizer.mask_id is None else checkpoint.tokenizer.mask_id
    canvas = F.pad(prompt, (0, s.max_new_tokens), value=mask_id).cpu()
    many = f"{s.per_step} tokens" if s.threshold is None else f"all tokens with p ≥ {s.threshold:g}"
    about = about.format(size=checkpoint.model.config.block_size, many=many)
    parts = canvas, out.tokens[0], out.trace[0], out.num_forwards[0], checkpoint.tokenizer
    return replay.record(*parts, name=name, about=about, times=times, speed=s.speed)


def main(argv):
    values = configurator.read(argv)
    s = configurator.fill(values, Settings)
    if s.threshold is not None and "per_step" in values:
        sys.exit(f"per_step={s.per_step} does nothing with threshold={s.threshold}; leave one of them out")
    files.check_file(s.html, "html", (".html", ".htm"))
    device, why = pick_device(s.device)
    usual = [kind for kind in KINDS if getattr(s, kind) == getattr(Settings, kind)]
    missing = [kind for kind in usual if is_missing(getattr(s, kind))]
    runners = {kind: runner(s, kind, device) for kind in KINDS if kind not in missing}
    if missing:
        tokenizer = tokenizers.load({"kind": "bpe"}, files.ROOT / "data/pydocs")
        for kind in missing:  # what does not fit is said now, not when it is trained
            recipe = configurator.read_file(f"config/{KINDS[kind][2]}.py")
            settle(s, kind, tokenizer, recipe["seq_len"][0])
        train(s, missing)
        runners |= {kind: runner(s, kind, device) for kind in missing}
    try:
        done = measure([runners[kind] for kind in KINDS], s.rounds)
    except ValueError as e:
        sys.exit(str(e))
    lanes = [lane(s, kind, runners[kind], *run) for kind, run in zip(KINDS, done)]
    print(f"shown at {s.speed:g} times the speed")
    replay.race(lanes)
    n, where = s.max_new_tokens, why if device != "cpu" else f"CPU threads: {torch.get_num_threads()}"
    note = f"Each wrote alone on the machine ({where}), after a run to warm up; the median of {s.rounds} runs."
    print(f"\n{n} tokens           forwards   tokens per forward   seconds   tokens per second")
    for x in lanes:
        f, t = x["forwards"], x["times"][-1]
        print(f"{x['name']:18} {f:8} {n / f:20.2f} {t:9.2f} {n / t:19.0f}")
    print("\n".join(f"{x['name']}: {x['about']}" for x in lanes))
    print(note)
    if s.html:
        told = f"{note} Temperature {s.temperature:g}, seed {s.seed}; end-of-text is never drawn."
        try:
            replay.write_page(s.html, lanes, f"Three ways to write {n} tokens", told)
        except OSError as e:  # a full disk
            sys.exit(f"the race above was not written as a page: {e}")
        print(f"wrote {s.html}")


if __name__ == "__main__":
    console.run(main, sys.argv[1:])
