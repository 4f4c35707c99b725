"""What a run tells of itself while it trains: metrics.jsonl, a plot, TensorBoard, Weights & Biases."""

import contextlib
import importlib.util
import io
import json
import sys

from nanodlm.files import replace_file, to_json
from nanodlm.hub import first_line


def read_metrics(path):
    """The lines of metrics.jsonl as dicts, without one that a kill cut short."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(line))
    return lines


def check(s, say):
    """Say at the start what an extra lacks: exit where it was asked for (train.Settings), go on where it was not."""
    asked = {"wandb": s.wandb_project, "tensorboard": s.tensorboard}
    for name in [name for name, wanted in asked.items() if wanted and not importlib.util.find_spec(name)]:
        sys.exit(f"--{'wandb_project' if name == 'wandb' else name} needs a package: pip install {name}")
    if not importlib.util.find_spec("matplotlib"):
        say("no loss.png will be drawn: it needs `pip install matplotlib`")


class Log:
    """log(iteration, **numbers) adds a line; of several processes only the first one's does.

    A run that goes on at iteration `start` keeps what was logged up to there, in all of them. Nothing here ends a run:
    what cannot be logged costs a warning."""

    def __init__(self, out, s, start, settings, say):
        self.out, self.say, self.file, self.others = out, say, out / "metrics.jsonl", {}
        resumed = s.init_from == "resume"
        old = read_metrics(self.file) if resumed else []
        replace_file(self.file, "".join(to_json(m) + "\n" for m in old if m["iter"] <= start).encode())
        if s.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.others["tensorboard"] = SummaryWriter(out / "tensorboard", purge_step=start + 1 if resumed else None)
        if s.wandb_project:
            import wandb

            kept = out / "wandb_id"  # by which a run that goes on is the same there
            known = kept.read_text(encoding="utf-8") if resumed and kept.is_file() else None
            keys = dict(project=s.wandb_project, name=out.name, config=settings, id=known)
            self.others["wandb"] = wandb.init(**keys, resume="allow" if known else None)
            replace_file(kept, self.others["wandb"].id.encode())

    def __call__(self, it, **numbers):
        try:
            with self.file.open("a", encoding="utf-8") as f:
                f.write(to_json({"iter": it, **numbers}) + "\n")
        except OSError as e:
            self.say(f"warning: {self.file} misses a line: {e}")
        for name, other in list(self.others.items()):
            try:
                if name == "wandb":
                    other.log(numbers, step=it)
                for key, value in numbers.items() if name == "tensorboard" else ():
                    other.add_scalar(key, value, it)
            except Exception as e:  # a full disk, a network that is gone
                self.say(f"warning: {name} is left out from here on: {first_line(e)}")
                del self.others[name]

    def close(self):
        for name, other in self.others.items():
            with contextlib.suppress(Exception):
                other.finish() if name == "wandb" else other.close()


def plot(out, unit, say):
    """out/loss.png: training loss and validation NELBO over iterations. A warning where it cannot be drawn."""
    lines = read_metrics(out / "metrics.jsonl")
    train = [(m["iter"], m["train_loss"]) for m in lines if "train_loss" in m]
    val = [(m["iter"], m["val_nats"], m["val_nats_error"] or 0.0) for m in lines if "val_nats" in m]
    if not importlib.util.find_spec("matplotlib"):
        return
    try:
        from matplotlib.figure import Figure  # without pyplot, whose backend may be a notebook's

        figure = Figure(figsize=(7, 4))
        ax = figure.subplots()
        if train:
            ax.plot(*zip(*train), lw=0.6, alpha=0.6, label="training loss")
        if val:
            it, nats, error = zip(*val)
            ax.errorbar(it, nats, error, marker="o", ms=3, capsize=2, label=f"validation {unit}")
            ax.set_ylim(min(nats) * 0.8, max(nats) * 1.05)
        ax.set(xlabel="iteration", ylabel="nats per token")
        ax.legend()
        figure.tight_layout()
        image = io.BytesIO()
        figure.savefig(image, dpi=120)
        replace_file(out / "loss.png", image.getvalue())
    except Exception as e:  # of an extra: it ends no run
        say(f"warning: no loss.png: {first_line(e)}")
