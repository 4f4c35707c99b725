"""What a run tells of itself while it trains: metrics.jsonl, a plot, TensorBoard, Weights & Biases."""

import contextlib
import json
import os
import sys

from nanodlm.files import replace_file, to_json


def read_metrics(path):
    """The lines of metrics.jsonl as dicts, without one that a kill cut short."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(line))
    return lines


class Log:
    """log(iteration, **numbers) adds a line; of several processes only the first one's does.

    A run that goes on at iteration `start` keeps the lines up to there."""

    def __init__(self, out, s, start, settings, say):
        self.out, self.say, self.file, self.writer, self.wandb = out, say, out / "metrics.jsonl", None, None
        old = read_metrics(self.file) if s.init_from == "resume" else []
        replace_file(self.file, "".join(to_json(m) + "\n" for m in old if m["iter"] <= start).encode())
        if s.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(out / "tensorboard")
        if s.wandb_project:
            try:
                import wandb
            except ImportError:
                sys.exit("wandb_project needs a package that is not among the requirements: pip install wandb")
            self.wandb = wandb.init(project=s.wandb_project, name=out.name, config=settings)

    def __call__(self, it, **numbers):
        try:
            with self.file.open("a") as f:
                f.write(to_json({"iter": it, **numbers}) + "\n")
        except OSError as e:
            self.say(f"warning: {self.file} misses a line: {e}")
        for key, value in numbers.items():
            if self.writer:
                self.writer.add_scalar(key, value, it)
        if self.wandb:
            self.wandb.log(numbers, step=it)

    def close(self):
        if self.writer:
            self.writer.close()


def plot(out, unit, say):
    """out/loss.png: training loss and validation NELBO over iterations."""
    try:
        import matplotlib
    except ImportError:
        return say("no loss.png: it needs `pip install matplotlib`")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = read_metrics(out / "metrics.jsonl")
    train = [(m["iter"], m["train_loss"]) for m in lines if "train_loss" in m]
    val = [(m["iter"], m["val_nats"], m["val_nats_error"] or 0.0) for m in lines if "val_nats" in m]
    fig, ax = plt.subplots(figsize=(7, 4))
    if train:
        ax.plot(*zip(*train), lw=0.6, alpha=0.6, label="training loss")
    if val:
        it, nats, error = zip(*val)
        ax.errorbar(it, nats, error, marker="o", ms=3, capsize=2, label=f"validation {unit}")
        ax.set_ylim(min(nats) * 0.8, max(nats) * 1.05)
    ax.set(xlabel="iteration", ylabel="nats per token")
    ax.legend()
    fig.tight_layout()
    try:
        fig.savefig(out / "loss.part.png", dpi=120)
        os.replace(out / "loss.part.png", out / "loss.png")
    except OSError as e:
        say(f"warning: no loss.png: {e}")
    plt.close(fig)
