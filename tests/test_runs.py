"""A run is what its directory says it is: it goes on after whatever happened, and only where it is the same run.

Processes are real ones, started by torchrun or by hand, killed, stopped and started again.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import pytest
import ranks
import safetensors.torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from test_train import ROOT, TEXT, TINY, assert_same, run, stop_at, text_data  # noqa: F401

import mdlm
import train
from nanodlm import checkpoint as ckpt
from nanodlm import corpus, files, runs
from nanodlm import tokenizer as tokenizers

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def refused(data, out, *more):
    """The sentence that train.py exits with."""
    with pytest.raises(SystemExit) as e:
        run(data, out, *more)
    assert isinstance(e.value.code, str) and "\n" not in e.value.code
    return e.value.code


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def finished(text_data, tmp_path_factory):  # noqa: F811
    out = tmp_path_factory.mktemp("finished")
    run(text_data, out)
    return out


# ---- the same run ----------------------------------------------------------------------------------------------------


def test_every_setting_is_part_of_what_a_run_is_or_may_change():
    names = {f.name for f in fields(train.Settings)}
    assert set(runs.MAY_CHANGE) <= names
    assert names - set(runs.MAY_CHANGE) == {"algorithm", "seed", "optimizer"}


OTHER = {
    "--algorithm=ar": "algorithm is mdlm, and here it is ar",
    "--seed=2": "seed is 1, and here it is 2",
    "--optimizer=muon": "optimizer is adamw, and here it is muon",
    "--seq_len=16": "seq_len=32, this run asks for 16",
    "--batch_size=4": "gradient_accumulation_steps is 8, and here it is 4",
    "--t_max=0.5": "t_max is 1.0, and here it is 0.5",
    "--objective=masked_ce": "objective is nelbo, and here it is masked_ce",
    "--n_embd=16": "n_embd=32, this run asks for 16",
}


def test_another_run_is_refused_with_both_values(text_data, finished, tmp_path):  # noqa: F811
    before = (finished / "last/train_state.pt").read_bytes()
    for i, (word, said) in enumerate(OTHER.items()):
        how = ("resume", "auto")[i % 2]
        assert said in refused(text_data, finished, f"--init_from={how}", "--max_iters=6", word)
    # other text in the same place
    tok, text = tokenizers.load({"kind": "char", "chars": "".join(sorted(set(TEXT)))}), TEXT.replace("fox", "cat") * 100
    corpus.write_dataset(tmp_path, tok, {"train": tok.encode(text), "val": tok.encode(text)}, bytes_per_token=1.0)
    assert "its content of the data is " in refused(tmp_path, finished, "--init_from=resume", "--max_iters=6")
    assert (finished / "last/train_state.pt").read_bytes() == before


def test_the_content_of_large_files_is_told_from_pieces_of_them(tmp_path):
    (tmp_path / "meta.json").write_text("{}")
    found = set()
    for size, change in ((2**24 + 8, None), (2**24 + 8, 0), (2**24 + 8, 2**24 + 7), (2**24 + 9, None)):
        content = bytearray(size)
        if change is not None:
            content[change] = 1
        (tmp_path / "train.bin").write_bytes(content)
        found.add(corpus.content(tmp_path))
    assert len(found) == 4


def test_what_may_change_may_change(text_data, finished, tmp_path):  # noqa: F811
    shutil.copytree(finished, tmp_path / "run")
    more = ["--learning_rate=2e-3", "--max_iters=6", "--stages=5:t_max=0.5", "--dtype=bfloat16", "--dropout=0.1"]
    more += ["--batch_size=4", "--gradient_accumulation_steps=2", "--ema=0.9", "--grad_clip=0", "--eval_interval=2"]
    assert run(text_data, tmp_path / "run", "--init_from=resume", *more)["iter"] == 6


# ---- auto ------------------------------------------------------------------------------------------------------------


def test_auto_begins_as_the_recipe_says_and_then_goes_on(text_data, finished, tmp_path, monkeypatch):  # noqa: F811
    """Stopped at iteration 2 of 4, the same words finish it: to the weights of the unbroken run."""
    start = f"--init_from={finished}"
    whole = run(text_data, tmp_path / "whole", start)
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert run(text_data, tmp_path / "cut", start, "--init_from=auto")["iter"] == 2
    cut = run(text_data, tmp_path / "cut", start, "--init_from", "auto")
    assert cut["iter"] == 4
    assert_same(whole, cut)
    assert run(text_data, tmp_path / "cut", start, "--init_from=auto", "--overwrite=true")["iter"] == 4
    said = refused(text_data, tmp_path / "new", "--init_from=nowhere", "--init_from=auto")
    assert "no checkpoint in 'nowhere'" in said


def test_a_restart_by_torchrun_goes_on_and_another_torchrun_is_refused(tmp_path, monkeypatch):
    """Whatever the words said; one that was lost in its very first save, when there is only best/, begins anew."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    for words in (("scratch", "scratch", False), ("start", "start", False), ("start", "start", True)):
        out = tmp_path / f"{words}"
        (out / "best").mkdir(parents=True)
        (out / "best/config.json").touch()
        (out / "launched").write_text(f"elsewhere 17 7\n{runs.launcher()}")
        assert runs.begin(out, *words) == words[0]
        (out / "best").rename(out / "last")
        assert runs.begin(out, *words) == "resume"
        (out / "launched").write_text("elsewhere 17 7")
        if words[2]:
            assert runs.begin(out, *words) == "start"
        else:
            with pytest.raises(SystemExit, match="already holds a run"):
                runs.begin(out, *words)


@pytest.mark.parametrize("init_from", ["auto", "scratch", "elsewhere"])
def test_of_the_best_weights_alone_nobody_is_told_to_go_on(tmp_path, init_from):
    """All that is advised can be done."""
    out = tmp_path / "run"
    (out / "best").mkdir(parents=True)
    (out / "best/config.json").touch()
    with pytest.raises(SystemExit) as e:
        runs.begin(out, init_from, "scratch", False)
    assert "resume" not in e.value.code and f"--init_from={out}/best" in e.value.code
    assert runs.begin(out, init_from, "scratch", True) == ("scratch" if init_from == "auto" else init_from)
    assert runs.begin(tmp_path / "other", f"{out}/best", "scratch", False) == f"{out}/best"


# ---- one run holds its directory, until it is told to stop -----------------------------------------------------------

HOLD = """import pathlib, sys, time
sys.path.insert(0, sys.argv[1])
from nanodlm import runs
with runs.held(pathlib.Path(sys.argv[2])):
    print('held', flush=True)
    time.sleep(100)"""


def test_a_second_run_in_a_directory_is_refused_and_a_killed_one_is_no_obstacle(text_data, tmp_path):  # noqa: F811
    out = tmp_path / "run"
    command = [sys.executable, "-c", HOLD, str(ROOT), str(out)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "held\n"
        for more in ((), ("--overwrite=true",), ("--init_from=auto",)):
            said = refused(text_data, out, *more)
            assert f"is being written by process {first.pid} on {socket.gethostname()}, since 20" in said
    finally:
        first.kill()
        first.wait()
    with runs.held(out):
        assert f"process {os.getpid()} on" in (out / "lock.holder").read_text()
    assert not out.exists()  # nothing came of it


def test_a_signal_saves_and_asks_to_be_started_again(text_data, tmp_path, monkeypatch):  # noqa: F811
    args = [*TINY, f"--dataset={text_data}", f"--out_dir={tmp_path}", "--init_from=auto"]
    signals = [getattr(signal, n) for n in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, n)]
    for done, number in enumerate(signals, 1):
        before = signal.getsignal(number)
        with monkeypatch.context() as patch:
            stop_at(patch, 1, number)
            assert train.main(args) == runs.REQUEUE == 75
        assert ckpt.load_train_state(tmp_path / "last")["iter"] == done
        assert signal.getsignal(number) is before
    assert train.main(args) == 0


def test_a_signal_does_not_wait_for_an_evaluation(text_data, tmp_path, monkeypatch):  # noqa: F811
    calls, nelbo = [], mdlm.nelbo

    def slow(*args, **keys):
        calls.append(1)
        os.kill(os.getpid(), signal.SIGTERM)
        return nelbo(*args, **keys)

    monkeypatch.setattr(mdlm, "nelbo", slow)
    args = [*TINY, f"--dataset={text_data}", f"--out_dir={tmp_path}", "--batch_size=1", "--eval_interval=2"]
    assert train.main(args) == runs.REQUEUE
    state = ckpt.load_train_state(tmp_path / "last")
    assert len(calls) == 1 and state["iter"] == 2 and state["facts"] == {}
    monkeypatch.setattr(mdlm, "nelbo", nelbo)
    assert train.main([*args, "--init_from=auto"]) == 0
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [x["iter"] for x in lines if "val_nats" in x] == [2, 4]  # the one that was cut short comes first


def test_ctrl_c_is_answered_at_once_and_the_second_stops_at_once_with_whole_files(text_data, tmp_path):  # noqa: F811
    """A real process within an evaluation that would take hours."""
    args = [*TINY, f"--dataset={text_data}", f"--out_dir={tmp_path / 'run'}"]
    train.main(args)
    before = {p: p.read_bytes() for p in (tmp_path / "run/last").iterdir()}
    command = [sys.executable, ROOT / "train.py", *args, "--init_from=resume", "--max_iters=9", "--eval_interval=5"]
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen([*command, "--eval_samples=1000000"], stdout=said, stderr=said)

    def wait_for(words, seconds):
        end = time.time() + seconds
        while words not in (text := (tmp_path / "said").read_text()):
            assert time.time() < end and process.poll() is None, text
            time.sleep(0.02)

    try:
        wait_for("iterations", 100)
        while '"iter": 5' not in (tmp_path / "run/metrics.jsonl").read_text():  # from here on it evaluates
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        wait_for("asked to stop", 10)
        process.send_signal(signal.SIGINT)  # torchrun's repetition of the same
        time.sleep(1.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    finally:
        process.kill()
    text = (tmp_path / "said").read_text()
    assert text.count("asked to stop") == 1 and text.rstrip().endswith("stopped") and "Traceback" not in text
    assert {p: p.read_bytes() for p in (tmp_path / "run/last").iterdir()} == before


# ---- several processes -----------------------------------------------------------------------------------------------

DRIVER = """
import gc, os, signal, sys, weakref
import torch, torch.distributed as dist
import mdlm, train
rank, destroy, loss, made = int(os.environ["RANK"]), dist.destroy_process_group, mdlm.loss, []
Wrapper = torch.nn.parallel.DistributedDataParallel

class Noted(Wrapper):
    def __init__(self, *args, **keys):
        super().__init__(*args, **keys)
        made.append(weakref.ref(self))

def destroyed():
    print(way, "alive", sum(w() is not None for w in made), "of", len(made), flush=True)
    destroy()

def shaken(model, x, *args, **keys):
    calls.append(1)
    if len(calls) == 3 and way == "error":
        raise ValueError("on purpose")
    if len(calls) == 3 and way == "signal" and rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    if len(calls) == 3 and way == "hang" and rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    return loss(model, x, *args, **keys) * (float("nan") if way == "nan" else 1)

torch.nn.parallel.DistributedDataParallel, dist.destroy_process_group, mdlm.loss = Noted, destroyed, shaken
ways, ports, words = sys.argv[1].split(","), sys.argv[2].split(","), sys.argv[3:]
more = {"finish": LONG, "hang": ["--patience=2"]}
for way, port in zip(ways, ports):
    os.environ["MASTER_PORT"], calls = port, []
    try:
        print(way, "status", train.main([*words[:-1], *more.get(way, []), f"--out_dir={words[-1]}/{way}"]), flush=True)
    except (SystemExit, ValueError) as e:
        print(way, "exit", str(e)[:40], flush=True)
"""
LONG = ["--max_iters=240", "--eval_interval=30", "--eval_windows=2", "--batch_size=4"]
ENDS = {"finish": "status 0", "signal": "status 75", "error": "exit on purpose", "nan": "exit", "hang": None}


@pytest.fixture(scope="module")
def driven(text_data, tmp_path_factory):  # noqa: F811
    """Two processes of our own that train once for each of the ways to end, the last of which ends the first one and
    leaves the second one to us: (directory, the two)."""
    out, driver = tmp_path_factory.mktemp("driven"), DRIVER.replace("LONG", repr(LONG))
    stores = [dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) for _ in ENDS]
    ports = ",".join(str(store.port) for store in stores)
    both = ranks.start(driver, [",".join(ENDS), ports, *TINY, f"--dataset={text_data}", "--batch_size=4", out])
    both[0].process.join(300)
    for rank in both:
        rank.process.kill()
        rank.process.join()
    return out, both


def test_nothing_that_holds_the_connections_is_left_when_they_are_closed(driven):
    """A DistributedDataParallel that is freed later may wait for ever. Finished, told to stop, wrong, not finite."""
    ends = {way: end for way, end in ENDS.items() if end}
    for rank in driven[1]:
        out, errors = rank.said("out"), rank.said("err")
        lines = [line for line in out.splitlines() if line.split()[0] in ends]
        assert lines[::2] == [f"{way} alive 0 of {i}" for i, way in enumerate(ends, 1)], out + errors
        assert all(said.startswith(f"{way} {end}") for said, (way, end) in zip(lines[1::2], ends.items())), out + errors


def test_a_process_that_gives_no_sign_of_life_ends_the_others_which_say_which_it_was(driven):
    """It stands still in the middle of an iteration, so that no connection breaks."""
    _, (first, second) = driven
    assert first.process.exitcode == runs.REQUEUE
    said = f"rank 1 ({socket.gethostname()}, process {second.process.pid}) has given no sign of life for"
    assert said in first.said("err")


def test_what_two_processes_saved_goes_on_in_one(text_data, driven, finished, tmp_path):  # noqa: F811
    """One of the two was told to stop; half of the processes, twice the micro-batches."""
    shutil.copytree(driven[0] / "signal", tmp_path / "run")
    assert ckpt.load_train_state(tmp_path / "run/last")["iter"] == 3
    one = run(text_data, tmp_path / "run", "--batch_size=4", "--gradient_accumulation_steps=2", "--init_from=auto")
    assert one["iter"] == 4
    assert_same(one, ckpt.load_train_state(finished / "last"), tolerance=1e-3)


def test_a_lost_process_and_a_signal_cost_the_steps_since_the_last_save_and_nothing_else(
    text_data,  # noqa: F811
    driven,
    tmp_path,
):
    """kill -9 of one of two processes under torchrun --max-restarts, with the words of the first start; then SIGTERM to
    torchrun, which passes it on; then two nodes go on. What they end with is what two processes have that nobody
    disturbed, to the bit."""

    def torchrun(*launch):
        command = [sys.executable, "-m", "torch.distributed.run", *launch, f"--out_dir={tmp_path}"]
        keys = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return subprocess.Popen(command, cwd=ROOT, env=ONE_THREAD, **keys)

    def iteration():
        with suppress(OSError):  # it is being replaced
            return json.loads((tmp_path / "last/config.json").read_text())["iter"]
        return 0

    def holder():
        with suppress(OSError, IndexError):
            return int((tmp_path / "lock.holder").read_text().split()[1])

    words = ["train.py", *TINY, *LONG, f"--dataset={text_data}"]
    process = torchrun("--standalone", "--nproc_per_node=2", "--max-restarts=1", *words, "--overwrite=true")
    wait_for(iteration)
    first = holder()
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(next(int(pid) for pid in children if int(pid) != first), signal.SIGKILL)
    wait_for(lambda: holder() not in (first, None))
    lost = iteration()
    wait_for(lambda: iteration() > lost)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode and "resumed at iteration" in said and "saved; go on with" in said, said
    assert lost < iteration() < 240

    launch = ["--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", "--rdzv_id=7", "--rdzv_conf=store_type=file"]
    launch += [f"--rdzv_endpoint={tmp_path / 'rendezvous'}", *words, "--init_from=auto"]  # no port, which may be taken
    for node in [torchrun(*launch) for _ in range(2)]:
        said, _ = node.communicate(timeout=300)
        assert node.returncode == 0, said
    assert iteration() == 240
    a, b = (safetensors.torch.load_file(out / "last/model.safetensors") for out in (tmp_path, driven[0] / "finish"))
    assert all((a[k] == b[k]).all() for k in a) and a.keys() == b.keys()


# ---- what is said and written ----------------------------------------------------------------------------------------


def refuse(word):
    raise ValueError(f"{word} is no JSON")


def test_one_window_has_no_standard_error_and_the_files_are_json_and_no_others(text_data, tmp_path, capsys):  # noqa: F811
    run(text_data, tmp_path, "--eval_windows=1")
    assert "± " not in capsys.readouterr().out
    config = json.loads((tmp_path / "last/config.json").read_text(), parse_constant=refuse)
    lines = [json.loads(x, parse_constant=refuse) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert config["val_nats"] > 0 and config["val_nats_error"] is None and lines[-1]["val_bpb_error"] is None
    assert (tmp_path / "loss.png").stat().st_size > 5000
    there = {p.name for p in Path(tmp_path).iterdir()}
    assert there - {"launched"} == {"best", "last", "lock", "loss.png", "metrics.jsonl"}


numbers = st.floats() | st.integers() | st.none() | st.text(max_size=3) | st.booleans()
values = st.recursive(numbers, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=3))


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(values)
def test_json_is_strict_and_keeps_what_json_has(value):
    text = files.to_json(value)
    again = json.loads(text, parse_constant=refuse)
    if "nan" not in (whole := repr(value)) and "inf" not in whole:
        assert again == value


def test_the_usual_warm_up_is_a_part_of_the_run_and_one_as_long_as_the_run_is_told():
    cases = ((60, None, 3), (2000, None, 100), (10**6, None, 50_000), (4, 3, 3), (1, 1, 1), (4, 4, 4))
    for n, length, warmup in cases:
        said = []
        assert (
            runs.settle_length(train.Settings(max_iters=n, warmup_iters=length), None, 1, said.append).warmup_iters
            == warmup
        )
        assert ["the learning rate never reaches its peak" in line for line in said] == [True] * (n == warmup > 1)


STANDINS = {
    "srun": 'exec "$@"',
    "scontrol": 'if [ "$1" = show ]; then echo node0; else echo "$@" >> "$TOLD"; fi',
    "torchrun": 'trap "sleep 0.2; exit 1" TERM; echo "$@" > "$STARTED"; sleep 10 & wait $!',
}


@pytest.mark.parametrize("how", ["the time is over", "torchrun fails"])
def test_the_slurm_script_asks_to_be_started_again_when_it_has_to_go_and_only_then(how, tmp_path):
    """With stand-ins for the cluster's commands."""
    text = (ROOT / "docs/clusters.md").read_text(encoding="utf-8")
    script = re.search(r"```sh\n(#!/bin/bash\n.*?)```", text, re.S)[1]
    for name, body in STANDINS.items():
        body = "exit 3" if name == "torchrun" and how == "torchrun fails" else body
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "TOLD": str(tmp_path / "told")}
    env |= {"STARTED": str(tmp_path / "started"), "SLURM_JOB_ID": "17", "SLURM_NNODES": "4"}
    job = subprocess.Popen(["bash", "-c", script], env=env)
    if how == "torchrun fails":
        assert job.wait(20) == 3 and not (tmp_path / "told").exists()
        return
    wait_for((tmp_path / "started").exists)
    assert "--rdzv_endpoint=node0:29500 train.py" in (tmp_path / "started").read_text()
    job.send_signal(signal.SIGUSR1)
    assert job.wait(20) == 0 and (tmp_path / "told").read_text() == "requeue 17\n"
