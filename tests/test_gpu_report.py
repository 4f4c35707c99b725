"""experiments/gpu.py with tiny shapes, without a GPU: so that no minute of one goes into typos."""

import subprocess
import sys
import time

import pytest
import torch

from experiments import gpu
from nanodlm.files import ROOT


def test_every_section_runs_small_and_a_second_call_does_what_is_missing(tmp_path, capsys):
    words = [f"--out={tmp_path}", "--small", "--device=cpu"]
    same = ("decode_8", "decode_32", "training_350m")  # functions of which another section is one, too
    names = {*gpu.SECTIONS} - {*same}
    gpu.main([*words, f"--only={','.join(names)}"])
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert {p.stem for p in tmp_path.glob("*.md")} == {*names, "report"} and not list(tmp_path.glob("*.part"))
    assert "failed" not in text and "4 of 4" in text and "| dual, threshold 0 |" in text
    before = {name: (tmp_path / f"{name}.md").stat().st_mtime_ns for name in names}
    (tmp_path / "machine.md").unlink()
    gpu.main([*words, "--only=machine,caches"])
    assert {n for n, t in before.items() if (tmp_path / f"{n}.md").stat().st_mtime_ns != t} == {"machine"}


def test_a_section_that_fails_or_takes_too_long_says_so_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    def broken(s, device):
        print("so far so good")
        raise MemoryError("out of it")

    monkeypatch.setattr(gpu, "SECTIONS", {"broken": broken, "machine": gpu.machine})
    gpu.main([f"--out={tmp_path}", "--small", "--device=cpu"])
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "so far so good" in text and "Did not finish: MemoryError: out of it" in text and "Copying" in text
    assert not (tmp_path / "broken.md").exists()
    start = time.monotonic()
    assert gpu.run_section("machine", gpu.Settings(device="cpu"), tmp_path, 0.2) == "stopped after 0 s"
    assert time.monotonic() - start < 60 and "Did not finish" in (tmp_path / "machine.part").read_text(encoding="utf-8")
    with pytest.raises(SystemExit, match="no section 'decode'; there are broken, machine"):
        gpu.main([f"--out={tmp_path}", "--only=machine,decode"])


def test_a_variant_that_fails_takes_only_its_own_row(capsys):
    assert gpu.attempt("dual", lambda: 1 / 0) is None
    assert "| dual | **failed**: ZeroDivisionError: division by zero |" in capsys.readouterr().out


WAITS = """
from no_float64 import Device
from experiments import same
with Device() as device:
    for name in [f"{a}, cache={c}" for a, c in (("mdlm", "none"), ("mdlm", "dual"), ("bd3lm", "kept"))]:
        steps = []
        with same.Waits() as found:
            same.sampler(name, device, 8)(watch=steps.append)
        assert sum(found.lines.values()) == len(steps) + len(same.PROMPTS), found.lines
    model = same.tiny(device)
    with same.Waits() as found:
        same.loss_of("mdlm", model, device).backward()
    assert any("hidden" in line for line in found.lines), found.lines  # so that it is seen to count
"""


def test_a_step_of_decoding_waits_for_the_device_once():
    """On a device that is imitated: for tokens and how sure they are, and once for each prompt."""
    if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch cannot imitate a device")
    path = f"import sys; sys.path[:0] = ['{ROOT.as_posix()}', '{(ROOT / 'tests').as_posix()}']"
    done = subprocess.run([sys.executable, "-c", path + WAITS], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
