"""What is said and written by real commands: into any encoding, to readers who leave, at Ctrl-C, on full disks."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nanodlm import console

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["train.py", "--n_layer=1", "--n_head=2", "--n_embd=32", "--seq_len=32", "--batch_size=4", "--max_iters=2"]
SMALL += ["--eval_windows=4", "--device=cpu", "--compile=false"]


def start(*words, **env):
    """A command of ours as a process of its own."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | env
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, *map(str, words)], cwd=ROOT, env=env, **pipes)


def end(process):
    """(exit status, all it said, as text) of a process that ends by itself."""
    out, err = process.communicate(timeout=300)
    said = (out + err).decode("ascii", "backslashreplace")
    assert "Traceback" not in said and "Exception ignored" not in said, said
    return process.returncode, said


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Running text as token files."""
    path = tmp_path_factory.mktemp("text")
    (path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 100, encoding="utf-8")
    prepare = start("data/shakespeare_char/prepare.py", f"--input={path / 'text.txt'}", f"--out={path / 'data'}")
    assert end(prepare)[0] == 0
    return path / "data"


# ---- encodings, readers, Ctrl-C --------------------------------------------------------------------------------------


def test_an_encoding_that_lacks_a_character_ends_nothing(text, tmp_path):
    runs = [
        start(*SMALL, f"--dataset={text}", f"--out_dir={tmp_path / 'run'}", PYTHONIOENCODING="ascii"),
        start("sample.py", "--max_new_tokens=4", "--watch", "--delay=0", "--prompt=中±", PYTHONIOENCODING="cp1252"),
        start("eval.py", "--windows=2", "--samples=1", "--dataset=nö±中", PYTHONIOENCODING="latin-1"),
    ]
    (trained, log), (sampled, made), (evaluated, error) = map(end, runs)
    assert trained == 0 and r" \xb1 " in log
    assert sampled == 0 and r"\u4e2d" in made
    assert evaluated == 1 and r"no data set 'n\xf6\xb1\u4e2d'" in error


@pytest.mark.parametrize("words", [["sample.py", "--help"], ["sample.py", "--max_new_tokens=1"]])
def test_a_reader_who_leaves_is_no_error(words):
    process = start(*words)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(60) == 141


def test_output_that_cannot_be_written_is_a_sentence():
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "sample.py", "--max_new_tokens=1"]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "No space left" in done.stderr


def test_a_disk_that_is_full_is_a_sentence(tmp_path):
    """Also in the middle of a file, of which an error says no name."""
    resource = pytest.importorskip("resource", reason="limiting the size of files needs Unix")
    (tmp_path / "a.txt").write_text("fox " * 20_000)
    command = [sys.executable, "data/text/prepare.py", str(tmp_path / "a.txt"), f"--name={tmp_path}/mine"]
    keys = dict(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9999, 9999)), stderr=subprocess.PIPE)
    done = subprocess.run([*command, "--tokenizer=char"], cwd=ROOT, stdout=subprocess.PIPE, text=True, **keys)
    assert done.returncode == 1 and done.stderr.strip().startswith("a file could not be written (File too large): make")
    assert done.stderr.strip().count("\n") == 0 and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("name", ["n" * 300, "n" * 300 + "/x", "a.txt/x", ".", "a\nb"], ids=map(str, range(5)))
def test_a_file_that_cannot_be_used_is_a_sentence_that_names_it(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").touch()
    with pytest.raises(SystemExit) as e:
        console.run(Path(name).read_bytes)
    assert e.value.code.startswith(f"{name!r} cannot be used: ") and "\n" not in e.value.code


@pytest.mark.parametrize("words", [["sample.py", "--watch", "--delay=0.2"], ["eval.py", "--windows=5000"]])
def test_ctrl_c_ends_a_command_without_a_traceback(words):
    process = start(*words, PYTHONUNBUFFERED="1")
    process.stdout.readline()  # its settings
    process.send_signal(signal.SIGINT)
    status, said = end(process)
    assert status == 130 and said.endswith("stopped\n")
