"""The house: scripts to read, one library beneath, and doors that open one way only."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nanodlm import algorithms

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {"model", "mdlm", "bd3lm", "udlm", "editflow", "grpo", "ar", "convert_bert", "convert_ar"}
SCRIPTS |= {"train", "sample", "serve", "eval"}
ROOMS = {p.stem for p in (ROOT / "nanodlm").glob("*.py")} - {"__init__"}


def imports(path):
    """The scripts and rooms that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "nanodlm":
            found |= {f"nanodlm.{a.name}" for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return found & (SCRIPTS | {f"nanodlm.{room}" for room in ROOMS})


PLAIN = ("noise", "bounds", "guard", "cross_entropy")  # which know nothing of the house
DOORS = {s: imports(ROOT / f"{s}.py") for s in SCRIPTS}
DOORS |= {f"nanodlm.{room}": imports(ROOT / "nanodlm" / f"{room}.py") for room in ROOMS}


def test_the_top_floor_has_exactly_these_scripts():
    assert {p.stem for p in ROOT.glob("*.py")} == SCRIPTS


def test_the_network_knows_nothing_and_the_idea_knows_the_network_and_noise():
    """Besides them, what a setting may be and what is asked of a network and of texts: an import and a line each."""
    assert DOORS["model"] == {f"nanodlm.{room}" for room in ("attention", "bounds", "cross_entropy", "experts")}
    assert not any(DOORS[f"nanodlm.{room}"] for room in (*PLAIN, "attention", "experts"))
    assert DOORS["mdlm"] == {"model", *(f"nanodlm.{room}" for room in PLAIN)}
    assert DOORS["bd3lm"] == DOORS["mdlm"] | {"mdlm", "nanodlm.attention"}
    assert DOORS["grpo"] == DOORS["mdlm"] - {"nanodlm.guard"} | {"mdlm", "bd3lm", "nanodlm.fast_mdlm"}  # its tutorial's
    own = {"nanodlm.alignments", "mdlm", "udlm"}
    assert DOORS["editflow"] == DOORS["mdlm"] - {"nanodlm.cross_entropy"} | own
    assert DOORS["udlm"] == DOORS["mdlm"] - {"nanodlm.cross_entropy"} | {"mdlm", "bd3lm"}


def test_no_room_imports_a_command_and_nothing_goes_round_in_circles():
    for room in ROOMS:
        assert not DOORS[f"nanodlm.{room}"] & {"train", "sample", "serve", "eval", "convert_ar", "convert_bert"}, room
    left = dict(DOORS)
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"a cycle among {sorted(left)}"


@pytest.mark.parametrize(
    "path", [p for d in (ROOT, ROOT / "nanodlm") for p in sorted(d.glob("*.py"))], ids=lambda p: p.name
)
def test_no_room_and_no_function_is_too_long_to_hold_in_the_head(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 100, node.name


def imported(*words):
    """The modules that Python imports for a command."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    run = [sys.executable, "-X", "importtime", *words]
    done = subprocess.run(run, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


def test_nothing_is_imported_before_it_is_needed():
    """--help, a key that is wrong, and our own checkpoint need little more than torch: not its compiler, which takes as
    long as torch, nor what releases and tasks need."""
    plain = imported("-c", "import torch")
    heavy = {"torch._dynamo", "torch._inductor", "torch.fx.experimental.symbolic_shapes", "torch.distributed.tensor"}
    sampling = "sample.py --max_new_tokens=2 --device=cpu"
    for command in ("train.py --lr=1", "eval.py --help", sampling):
        new = imported(*command.split()) - plain
        assert {"nanodlm.configurator", "nanodlm.checkpoint", "mdlm"} <= new and not new & heavy, command
        others = {name.partition(".")[0] for name in new} - SCRIPTS - set(sys.stdlib_module_names)
        assert others <= {"nanodlm", "torch", "numpy", "psutil", "safetensors", "tokenizers", "tqdm"}, command
    assert {"safetensors", "tokenizers"} <= others  # the last one has read the checkpoint


def test_every_command_begins_and_ends_in_one_place():
    """The tutorials, which need no library, print ASCII alone."""
    scripts = [
        p for places in ("", "nanodlm/", "experiments/", "exercises/", "data/*/") for p in ROOT.glob(f"{places}*.py")
    ]
    main = 'if __name__ == "__main__":\n'
    ends = {p: text.split(main)[-1] for p in scripts if main in (text := p.read_text(encoding="utf-8"))}
    tutorials = {p.stem for p, end in ends.items() if end.startswith("    tutorial()\n")}
    others = {p.stem for p, end in ends.items() if not end.startswith("    console.run(")} - tutorials
    assert tutorials >= {"model", "mdlm", "bd3lm", "udlm", "editflow", "grpo"}
    assert others == {"inside"} and len(ends) > 23


def test_who_copies_an_algorithm_has_its_own_functions_and_ours_have_their_fast_ones(tmp_path, monkeypatch):
    text = (ROOT / "mdlm.py").read_text(encoding="utf-8")
    (tmp_path / "of_my_own.py").write_text(text, encoding="utf-8")
    monkeypatch.setattr(algorithms, "ROOT", tmp_path)
    mine = algorithms.load("of_my_own")
    assert algorithms.engine(mine) is mine and callable(mine.generate)
    with pytest.raises(SystemExit, match="no algorithm 'mine'; the files with a loss are of_my_own"):
        algorithms.load("mine")
    monkeypatch.undo()
    mdlm = algorithms.load("mdlm")
    assert algorithms.engine(mdlm).__name__ == "nanodlm.fast_mdlm" and algorithms.engine(mdlm, plain=True) is mdlm
