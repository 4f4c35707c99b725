"""The race: autoregression, block diffusion and masked diffusion write side by side, each as fast as it can.

    python exercises/race.py                                 trains what is missing, once; then they run
    python exercises/race.py --prompt="def read(" --speed=0.1
    python exercises/race.py --masked=checkpoints/pydocs_mdlm --threshold=0.5

Each writes alone on the machine, while a clock notes the time of every step. Then all of them are shown on one clock,
in the terminal and in a page. Models of your own: --ar, --block and --masked are checkpoints.
"""

import bisect
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sample  # noqa: E402
from mdlm import Output  # noqa: E402
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
    prompt: Text = "class "  # what all of them continue; \n is a line break, and @FILE what a file holds
    max_new_tokens: Size = 128  # each writes as many: end-of-text is never drawn
    temperature: Amount = 0.7  # of the token draw; 0 takes the most probable token
    threshold: Unit = 0.7  # block, masked: write all tokens of which the network is so sure in one step
    seed: Seed = 1  # of the token draw
    rounds: Size = 3  # timed runs of each, in turn, behind one that warms up; the median is shown
    speed: Positive = 1.0  # of the replay: 1 is as measured, 0.1 ten times slower
    html: Place = "race.html"  # write a page here that replays it; empty for none
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: the GPU where there is one

    def __post_init__(self):
        check(self)


# {setting: (algorithm, what it is called, the recipe that trains it, how it decodes)}
KINDS = {
    "ar": ("ar", "autoregression", "quickstart_ar", "one token per forward, from left to right"),
    "block": ("bd3lm", "block diffusion", "quickstart_bd3lm", "block by block; within one, all tokens with p ≥ {}"),
    "masked": ("mdlm", "masked diffusion", "quickstart", "the whole text at once; in a step all tokens with p ≥ {}"),
}
MINUTES = 9  # of training each on two slow CPU cores


@dataclass
class Runner:
    title: str
    about: str  # how it decodes
    checkpoint: ckpt.Checkpoint
    options: object
    prompt: torch.Tensor  # its ids
    out: Output = None
    times: list = field(default_factory=list)  # seconds from the start to the end of each step

    @property
    def made(self):
        return len(self.out.tokens[0]) - len(self.prompt)

    @property
    def row(self):
        """Its line of the table: tokens, forwards, tokens per forward, seconds, tokens per second."""
        forwards, seconds = self.out.num_forwards[0], self.times[-1]
        return f"{self.made:8} {forwards:9} {self.made / forwards:12.2f} {seconds:9.2f} {self.made / seconds:9.0f}"


# ---- who runs --------------------------------------------------------------------------------------------------------


def is_missing(place):
    """Whether a checkpoint is still to be trained, or to be trained to its end."""
    run = files.ROOT / place
    if not runs.is_there(run):
        return ckpt.at_hand(place) is None
    facts = files.read_json(run / "last/config.json") if (run / "last/config.json").is_file() else {}
    return facts.get("iter", 0) < facts.get("train", {}).get("max_iters", 1)


def options_of(s, kind, tokenizer):
    name = KINDS[kind][0]
    options = algorithms.engine(algorithms.load(name)).SampleOptions
    keys = dict(max_new_tokens=s.max_new_tokens, temperature=s.temperature, seed=s.seed)
    keys |= {} if name == "ar" else dict(quota="threshold", threshold=s.threshold)
    return options(**keys, suppress=tokenizer.stop_ids)


def prompt_of(s, options, tokenizer, seq_len):
    """The prompt's ids; exits where it cannot be encoded or leaves too little room in the context."""
    ids = sample.canvas_of(sample.Settings(prompt=s.prompt), tokenizer)
    sample.fit(sample.Settings(), asdict(s), options, ids, seq_len, tokenizer.mask_id)
    return ids


def runner(s, kind, device):
    """The Runner of a checkpoint that is there; exits where it does not fit."""
    name, title, _, about = KINDS[kind]
    place = getattr(s, kind)
    checkpoint = ckpt.load(place, device, torch.bfloat16 if device == "cuda" else torch.float32)
    if checkpoint.algorithm != name:
        sys.exit(f"{kind}={place} was trained by {checkpoint.algorithm}; here goes a checkpoint of {name}")
    tokenizer, config = checkpoint.tokenizer, checkpoint.model.config
    options = options_of(s, kind, tokenizer)
    about = about.format(s.threshold) + (f", {config.block_size} tokens each" if name == "bd3lm" else "")
    return Runner(title, about, checkpoint, options, prompt_of(s, options, tokenizer, config.seq_len).to(device))


def train(s, missing):
    """Train the missing checkpoints, or go on with them, each in a process of its own."""
    data = files.ROOT / "data/pydocs"
    print(f"{', '.join(getattr(s, kind) for kind in missing)}: not trained yet, or not to the end. That is done now, ")
    print(f"about {MINUTES} minutes each on two CPU cores, and is kept; Ctrl-C stops, the same command goes on.")
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


def clocked(r):
    """(Output, seconds from the start to the end of each step) of one run."""
    times, tokenizer = [], r.checkpoint.tokenizer

    def watch(canvases):
        canvases[0][-1].item()  # which waits for a GPU
        times.append(time.perf_counter() - start)

    generate = algorithms.engine(algorithms.load(r.checkpoint.algorithm)).generate
    start = time.perf_counter()
    out = generate(r.checkpoint.model, [r.prompt], r.options, mask_id=tokenizer.mask_id, trace=True, watch=watch)
    return out, times


def measure(runners, rounds):
    """Give each runner the median of its runs; all have their turn in every round, so that a machine that slows down
    slows all of them."""
    for r in runners:
        clocked(r)
    done = [[clocked(r) for r in runners] for _ in range(rounds)]
    for r, own in zip(runners, zip(*done)):
        r.out, r.times = sorted(own, key=lambda run: run[1][-1])[rounds // 2]


def canvas(r):
    """The ids that it starts from, with what is not written yet."""
    mask_id = r.checkpoint.tokenizer.mask_id
    return F.pad(r.prompt, (0, r.made), value=-1 if mask_id is None else mask_id).cpu()


# ---- the terminal ----------------------------------------------------------------------------------------------------


def screen(runners, frames, t, columns, lines=None):
    """The lines of a terminal at a time: the runners side by side, or where that is too narrow one below the other; of
    each text so many lines as fit, the last ones."""
    beside = columns >= 25 * len(runners)
    width = columns // len(runners) - 2 if beside else columns - 1
    room = lines and max(2, (lines - 4 if beside else (lines - 1) // len(runners) - 3))
    lanes = []
    for r, own in zip(runners, frames):
        k = bisect.bisect_right(r.times, t)
        now, revealed = own[k]
        fresh = [i in revealed and k < len(r.times) for i in range(len(now))]
        text = replay.painted(now, fresh, width, sys.stdout)
        made = sum(p is not None for p in now) - len(r.prompt)
        said = [f"{made} tokens, {min(t, r.times[-1]):.2f} s"[:width], f"{made / max(min(t, r.times[-1]), 1e-9):.0f} tokens/s"[:width]]
        lanes.append([(r.title.upper(), len(r.title)), *text[-(room or len(text)) :], *((x, len(x)) for x in said)])
    if not beside:
        return [text for lane in lanes for text, _ in [*lane, ("", 0)]]
    height = max(map(len, lanes))
    lanes = [[*lane[:-2], *[("", 0)] * (height - len(lane)), *lane[-2:]] for lane in lanes]
    return ["  ".join(text + " " * (width - w) for text, w in row).rstrip() for row in zip(*lanes)]


def show(runners, speed):
    """Replay all on one clock: redrawn in a terminal, elsewhere in a few frames."""
    frames = [replay.frames(canvas(r), r.out.trace[0], r.checkpoint.tokenizer, len(r.out.tokens[0])) for r in runners]
    columns, lines = shutil.get_terminal_size((100, 30))
    end, height, start = max(r.times[-1] for r in runners), 0, time.perf_counter()
    if not sys.stdout.isatty():
        for part in (0.1, 0.3, 0.6, 1):
            print("\n".join(screen(runners, frames, part * end, columns)) + "\n" + "-" * min(columns, 73))
        return
    while True:
        t = (time.perf_counter() - start) * speed
        rows = screen(runners, frames, t, columns, lines if t < end else None)
        sys.stdout.write((f"\033[{height}F" if height else "") + "\033[J" + "\n".join(rows) + "\n")
        sys.stdout.flush()
        height = len(rows)
        if t >= end:
            return
        time.sleep(0.04)


def main(argv):
    s = configurator.fill(configurator.read(argv), Settings)
    files.check_file(s.html, "html", (".html", ".htm"))
    device, why = pick_device(s.device)
    usual = [kind for kind in KINDS if getattr(s, kind) == getattr(Settings, kind)]
    missing = [kind for kind in usual if is_missing(getattr(s, kind))]
    runners = {kind: runner(s, kind, device) for kind in KINDS if kind not in missing}
    if missing:
        tokenizer = tokenizers.load({"kind": "bpe"}, files.ROOT / "data/pydocs")
        for kind in missing:  # what does not fit is said now, not when it is trained
            recipe = configurator.read_file(f"config/{KINDS[kind][2]}.py")
            prompt_of(s, options_of(s, kind, tokenizer), tokenizer, recipe["seq_len"][0])
        train(s, missing)
        runners |= {kind: runner(s, kind, device) for kind in missing}
    runners = [runners[kind] for kind in KINDS]
    measure(runners, s.rounds)
    show(runners, s.speed)
    where = why if device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    note = f"Each wrote alone on the machine ({where}), after a run to warm up; the median of {s.rounds} runs."
    print(f"{'':16}   tokens  forwards  per forward   seconds  tokens/s")
    for r in runners:
        print(f"{r.title:16} {r.row}")
    print(note)
    if s.html:
        told = f"{note} temperature {s.temperature:g}, seed {s.seed}."
        keys = [dict(name=r.title, about=r.about, times=r.times, speed=s.speed) for r in runners]
        parts = [(canvas(r), r.out.tokens[0], r.out.trace[0], r.out.num_forwards[0]) for r in runners]
        lanes = [replay.record(*p, r.checkpoint.tokenizer) | k for r, p, k in zip(runners, parts, keys)]
        replay.write_page(s.html, lanes, f"Three ways to write {s.max_new_tokens} tokens", told)
        print(f"wrote {s.html}")


if __name__ == "__main__":
    console.run(main, sys.argv[1:])
