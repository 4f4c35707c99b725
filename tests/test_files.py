"""Where something will be written is tried before the work whose result it would hold, and what cannot be is said in
one line that names the setting; what is written is whole or not there."""

import os
import subprocess
import sys

import pytest
from bad_inputs import attempt, make

from nanodlm import files
from nanodlm.files import ROOT


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return make(tmp_path_factory.mktemp("good"))


def lay(scratch):
    """What stands in the way: a directory, a file, a pipe, a link to nowhere."""
    (scratch / "directory").mkdir()
    (scratch / "file").write_text("mine")
    os.mkfifo(scratch / "pipe")


FILES = ["directory", "/dev/full", "/dev/null", "/proc/x", "/proc/1/mem", "pipe", "file/x", "x" * 300, "nowhere/x"]
DIRECTORIES = ["file", "file/x", "/dev/null", "/dev/full/x", "/proc/x", "/sys/x", "pipe", "x" * 300]
KINDS = ["a.mp4", "a.png", "a", "a.html.txt"]
CASES = [("sample", "html", f"{p}.html" if p[0] == "x" else p) for p in (*FILES, *KINDS)]
CASES += [("sample", "gif", p) for p in (*FILES, *KINDS)]
CASES += [("eval", "out", p) for p in FILES[:-1]]
CASES += [("train", "out_dir", p) for p in DIRECTORIES]
CASES += [("convert_bert", "out", p) for p in DIRECTORIES] + [("convert_ar", "out", p) for p in DIRECTORIES]
CASES += [("merge", "merge", p) for p in DIRECTORIES]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and /dev/full")
@pytest.mark.parametrize("name, key, place", CASES, ids=lambda x: x[:12])
def test_a_place_that_cannot_be_written_is_refused_before_any_work(name, key, place, paths):
    what, text = attempt(name, paths, [f"--{key}={place}"], prepare=lay)
    assert what == "refused" and "settings:" not in text, text
    assert f"{key}={place}" in text or f"{place} exists already" in text, text


@pytest.mark.parametrize("script", ["shakespeare_char", "sudoku", "pydocs", "zeroshot", "openwebtext", "fineweb_edu"])
def test_so_it_is_when_data_are_prepared(script, tmp_path):
    (tmp_path / "file").write_text("mine")
    more = {"shakespeare_char": [f"--input={ROOT / 'LICENSE'}"], "zeroshot": ["lambada"]}.get(script, [])
    command = [sys.executable, ROOT / "data" / script / "prepare.py", *more, f"--out={tmp_path / 'file'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "", done
    assert done.stderr.count("\n") == 1 and f"out={tmp_path / 'file'}" in done.stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_what_is_written_is_whole_or_not_there(tmp_path):
    file = tmp_path / "a.json"
    files.replace_file(file, b"one")
    assert file.read_bytes() == b"one" and os.listdir(tmp_path) == ["a.json"]
    (tmp_path / "taken").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / n for n in ("taken", "pipe", "nowhere/a", "x" * 300)):
        with pytest.raises(OSError) as e:
            files.replace_file(place, b"two")
        assert e.value.filename == str(place)
    assert sorted(os.listdir(tmp_path)) == ["a.json", "pipe", "taken"]  # nothing half-written is left
    files.check_file(file, "out")
    files.check_file("", "out")
    files.check_directory(tmp_path / "deep/er", "out")
    assert sorted(os.listdir(tmp_path)) == ["a.json", "pipe", "taken"] and file.read_bytes() == b"one"
