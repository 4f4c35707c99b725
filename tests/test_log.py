"""What a run tells of itself: three logs of one run that agree, and none of which can end it."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from test_train import ROOT, TINY, text_data  # noqa: F401

import train

torch.set_num_threads(1)
OFTEN = [*TINY, "--log_interval=1", "--eval_interval=4"]
WANDB = """
import json, os
class Run:
    def __init__(self, id): self.id = id or "abc"
    def log(self, numbers, step):
        if step > 6: raise OSError("the network is gone")
        open("logged", "a").write(f"{step} ")
    def finish(self): pass
def init(**keys):
    open("inits", "a").write(json.dumps([keys["id"], keys["resume"]]) + "\\n")
    return Run(keys["id"])
"""


def steps_of(out):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    return [e.step for e in events.Scalars("train_loss")]


def lines_of(out):
    return [m["iter"] for m in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()) if "train_loss" in m]


def test_the_logs_of_a_run_that_was_killed_and_resumed_go_forwards(text_data, tmp_path, monkeypatch, capsys):  # noqa: F811
    (tmp_path / "wandb.py").write_text(WANDB)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "run"
    words = [*OFTEN, f"--dataset={text_data}", f"--out_dir={out}", "--tensorboard", "--wandb_project=mine"]
    train.main(words)
    assert steps_of(out) == lines_of(out) == [1, 2, 3, 4]
    shutil.copytree(out / "last", tmp_path / "at 4")
    train.main([*words, "--max_iters=8", "--init_from=resume"])  # of which the last checkpoint is lost
    shutil.rmtree(out / "last")
    shutil.copytree(tmp_path / "at 4", out / "last")
    (out / "loss.part.png").write_bytes(b"half")  # and what it was writing then
    (out / "loss.png.part").write_bytes(b"half")
    train.main([*words, "--max_iters=6", "--init_from=resume"])
    assert lines_of(out) == [1, 2, 3, 4, 5, 6]
    assert steps_of(out) == [1, 2, 3, 4, 5, 6] and not [*out.glob("*part*")]
    inits = [json.loads(line) for line in open("inits")]
    assert inits == [[None, None], ["abc", "allow"], ["abc", "allow"]]
    assert "warning: wandb is left out from here on: the network is gone" in capsys.readouterr().out
    train.main([*words, "--overwrite"])
    assert steps_of(out) == [1, 2, 3, 4] and len([*(out / "tensorboard").iterdir()]) == 1
    sys.modules.pop("wandb")


def test_what_an_extra_lacks_is_said_before_any_work(text_data, tmp_path):  # noqa: F811
    if "wandb" in sys.modules:
        pytest.skip("wandb is here")
    with pytest.raises(SystemExit, match="^--wandb_project needs a package: pip install wandb$"):
        train.main([*TINY, f"--dataset={text_data}", f"--out_dir={tmp_path / 'run'}", "--wandb_project=mine"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("backend, drawn", [("module://matplotlib_inline_that_is_not_there", True), ("none", False)])
def test_a_plot_that_cannot_be_drawn_ends_no_run(backend, drawn, text_data, tmp_path):  # noqa: F811
    command = [sys.executable, ROOT / "train.py", *TINY, f"--dataset={text_data}", f"--out_dir={tmp_path / 'run'}"]
    done = subprocess.run(command, env=os.environ | {"MPLBACKEND": backend}, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert (tmp_path / "run/loss.png").is_file() == drawn and (tmp_path / "run/last/config.json").is_file()
    assert drawn or "warning: no loss.png: " in done.stdout + done.stderr
