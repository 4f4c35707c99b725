"""A run is what its directory says it is: who may write to it, whether to go on with what is there, and how it stops.

    --init_from=auto     go on with the run in out_dir if there is one, or else start as the recipe says
    torchrun --max-restarts=3 …, a cluster that starts the same command again: nothing needs to be changed

Everything a run is made of is part of it (`identity`), except what stands in MAY_CHANGE.
"""

import contextlib
import math
import os
import signal
import socket
import sys
import time
from dataclasses import asdict, dataclass, field, replace

import torch

from nanodlm import checkpoint as ckpt
from nanodlm import files, parallel
from nanodlm.parallel import REQUEUE  # noqa: F401

# Of train.Settings, what may be another when a run goes on. The rest is what the run is, or (batch_size, accumulation)
# counts by what it comes to: the rows of an iteration.
MAY_CHANGE = (
    *("out_dir", "init_from", "convert", "overwrite", "preset", "random_weights"),  # where it is, how it began
    *("max_iters", "epochs", "stages", "anneal_iters"),  # how long, and what changes on the way
    *("learning_rate", "muon_learning_rate", "lr_schedule", "warmup_iters", "warmup_fraction", "min_lr_fraction"),
    *("decay_fraction", "weight_decay", "beta1", "beta2", "grad_clip", "balance", "ema"),
    *("eval_interval", "eval_windows", "eval_samples", "log_interval", "wandb_project", "tensorboard"),
    *("device", "dtype", "compile", "save_dtype", "sharding", "recompute", "patience"),  # how it is computed and kept
    "dataset",  # a name; what counts is the content
    *("batch_size", "gradient_accumulation_steps"),  # times the processes: the rows of an iteration
    *("lora_r", "lora_alpha", "lora_dropout", "lora_at"),  # compared with the adapter in the checkpoint
)


def identity(s, config, seq_len, rows, content, options, chat):
    """What a run is, {name: value}, besides its network, which is the checkpoint's: of train.Settings what may not
    change, the context, the rows of an iteration, the data by content, the loss options and those of conversations."""
    own = {k: v for k, v in asdict(s).items() if k not in MAY_CHANGE}
    own |= {"processes x batch_size x gradient_accumulation_steps": rows}
    own |= {"seq_len": seq_len, "mask_share": config.mask_share, "source": config.source}
    own |= {"content of the data": content}
    return own | asdict(options) | (asdict(chat) if chat else {})


def settle_length(s, rows_of_a_pass, global_rows, say):
    """Settings with max_iters and warmup_iters as what was said comes to."""
    if s.epochs:
        s = replace(s, max_iters=max(1, round(s.epochs * rows_of_a_pass() / global_rows)))
    warmup = round(s.warmup_fraction * s.max_iters) if s.warmup_iters is None else s.warmup_iters
    if warmup >= s.max_iters > 1:
        say(
            f"warning: the warm-up of {warmup} iterations is as long as the run of {s.max_iters}, so that the learning "
            "rate never reaches its peak; say --warmup_iters=, or train for longer"
        )
    return replace(s, warmup_iters=warmup)


def check(directory, before, now):
    """Exit where the run in a directory is another one than what was asked for."""
    for name in before.keys() & now.keys():
        if before[name] != now[name]:
            sys.exit(
                f"{directory.parent} holds another run: its {name} is {before[name]}, and here it is {now[name]}; say "
                f"the same, or start a new run from its weights with --init_from={directory} and another --out_dir"
            )


def launcher():
    """The torchrun that has started this process, or nothing. Its restarts have the same; a count of them has only the
    machine on which a process was lost."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"{socket.gethostname()} {os.getppid()} {name}" if name else ""


def launched(out):
    """Whether the torchrun that has started this process had begun, or gone on with, the run that is there."""
    file = out / "launched"
    return bool(launcher()) and file.is_file() and launcher() in file.read_text(encoding="utf-8").splitlines()


def is_there(out):
    """Whether a directory holds a run."""
    return any((out / d / "config.json").is_file() for d in ("last", "last.old", "best"))


def begin(out, init_from, before, overwrite):
    """What init_from means: "resume", or what to start from. `before` is what was said ahead of init_from=auto."""
    start, ours = before if init_from == "auto" else init_from, launched(out)
    saved = any((out / d / "config.json").is_file() for d in ("last", "last.old"))
    if saved and (ours or init_from == "auto"):
        return "resume"
    if is_there(out) and start != "resume" and not (ours or overwrite):  # ours: lost in its first save
        what = "a run: go on with --init_from=resume (or auto)"
        if not saved:  # it was lost in its first save, or somebody has removed the rest
            what = f"best/ alone, from which no run goes on: start from its weights with --init_from={out}/best"
        sys.exit(f"{out} already holds {what}, replace it with --overwrite=true, or use another --out_dir")
    return start


@dataclass
class Place:
    """Where a run stands: what, with the weights and the optimisers' state, it goes on from."""

    iter: int = 0  # iterations done
    evaluated: int = 0  # the iteration of the last evaluation
    best: float = math.inf  # of the best evaluation: see score()
    seconds: float = 0.0  # of training
    facts: dict = field(default_factory=dict)  # what the last evaluation measured
    adapted: dict = field(default_factory=dict)  # loss options that the algorithm has adapted to it


@dataclass
class Run:
    """What a run has in its hands while it trains (train.set_up)."""

    s: object  # train.Settings
    algorithm: object  # the module whose loss is trained
    config: object  # model.Config, of the network
    stages: list  # [(iteration, loss options from there on)]
    data: object  # batches.Windows or batches.Chats
    rows: int  # of an iteration, over all processes and micro-batches
    out: object  # its directory
    rank: int  # of this process
    world: int  # processes
    device: str
    autocast: object  # the precision of the matrix products
    raw: torch.nn.Module  # the network, which is evaluated and saved
    model: torch.nn.Module  # … as it is trained: compiled, by several processes
    trained: dict  # its parameters that are trained, by name
    average: dict  # … and their average over time, where one is kept (ema)
    optimizers: list
    place: Place  # where it stands
    identity: dict  # what it is, compared when it goes on
    said: dict  # what its checkpoints say, besides where it stands
    say: object  # print, in the first process
    log: object  # log(iteration, **numbers), in the first process

    def __post_init__(self):
        if hasattr(self.data, "meet"):
            self.data.meet(self)


def score(facts):
    """What evaluations are compared by, less being better: nats per token, or where there are rewards, minus these."""
    return -facts["val_reward"] if "val_reward" in facts else facts["val_nats"]


def resume(state, trained, average, optimizers, data):
    """Give all of them what was saved (load_train_state); returns the Place."""
    with torch.no_grad():
        for n, p in trained.items():
            p.copy_(parallel.like(p, state["weights"][n]))
            if average:
                average[n].copy_(parallel.like(p, (state["ema"] or state["weights"])[n]))
    for optimizer, saved in zip(optimizers, state["optimizers"]):
        parallel.load_optimizer(optimizer, saved)
    if state["data"] is not None:
        data.source.state = tuple(state["data"])
    before = {"evaluated": state["iter"], "adapted": {}} | state  # older runs lack some
    return Place(**{k: before[k] for k in ("iter", "evaluated", "best", "seconds", "facts", "adapted")})


def save(run, name, options):
    """Write out_dir/name (train.Run); a full disk costs a warning, not the run. All processes gather, the first one
    writes, and all return whether it could, as what they save next depends on it."""
    s, place, state = run.s, run.place, None
    weights = parallel.whole(run.average or run.trained)
    if name == "last":
        state = asdict(place) | {
            "run": run.identity,
            "data": run.data.state(place.iter),
            "weights": parallel.whole(run.trained) if run.average else weights,
            "ema": weights if run.average else None,
            "optimizers": parallel.whole([o.state_dict() for o in run.optimizers]),
        }
    content = {"dataset": s.dataset, "iter": place.iter, **place.facts, "train": asdict(s), "loss": asdict(options)}
    if run.data.tokenizer.template:  # an adapter's base may say otherwise
        content["thoughts"] = run.data.tokenizer.thoughts
    files = run.data.files if run.data.files.is_dir() else run.out / "last"  # resumed from last.old, which is gone now
    # A network that was taught by rewards is still one of masked or block diffusion.
    kind = run.algorithm.network_is(run.config).__name__ if hasattr(run.algorithm, "network_is") else s.algorithm
    given = run.config, run.data.tokenizer, files, kind, content | run.said, getattr(torch, s.save_dtype), state
    failed = False
    if run.rank == 0:
        try:
            ckpt.save(run.out / name, weights, *given)
        except OSError as e:
            run.say(f"warning: {e}")
            failed = True
    return not parallel.any_of(failed)


def remove(out):
    """The checkpoints of a run that --overwrite replaces, and its events, which would be read with the new ones."""
    for name in ("last", "best", "last.old", "best.old", "tensorboard"):
        files.remove(out / name)


@contextlib.contextmanager
def held(out):
    """This process alone writes to the directory; the lock goes with the process, however it ends."""
    from filelock import FileLock, Timeout

    out.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(out / "lock"), out / "lock.holder"
    try:
        lock.acquire(timeout=30 if launched(out) else 0)  # the lost process may not be quite gone
    except Timeout:
        who = holder.read_text(encoding="utf-8") if holder.is_file() else "another process"
        sys.exit(f"{out} is being written by {who}; wait until that run ends, or use another --out_dir")
    try:
        for part in [*out.glob("*.part"), *out.glob("*.part.png")]:  # of a process that was killed while it wrote
            if part.is_file():
                part.unlink(missing_ok=True)
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}, since {now}", encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
        with contextlib.suppress(OSError):
            if os.listdir(out) == ["lock"]:  # nothing came of it
                (out / "lock").unlink()
                out.rmdir()


class Stop:
    asked = False


@contextlib.contextmanager
def signals():
    """Stop, whose `asked` turns true when the process is told to end: by a cluster (SIGTERM, SIGUSR1) or by Ctrl-C. The
    first is answered at once; a second Ctrl-C ends all at once, which costs no file: each is whole or not there."""
    stop, first = Stop(), math.inf

    def told(number, frame):
        nonlocal first
        if number == signal.SIGINT and time.monotonic() > first + 1:  # torchrun repeats the first one
            raise KeyboardInterrupt
        if not stop.asked and int(os.environ.get("RANK", 0)) == 0:
            answer = "asked to stop: after this step, or this batch of the evaluation, all is saved; Ctrl-C once more"
            os.write(2, f"\n{answer} stops at once, with what was saved before\n".encode())  # print is for no handler
        first, stop.asked = min(first, time.monotonic()), True

    names = [n for n in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, n)]  # Windows has no SIGUSR1
    before = {n: signal.signal(getattr(signal, n), told) for n in names}
    try:
        yield stop
    finally:
        for n, handler in before.items():
            signal.signal(getattr(signal, n), handler)
