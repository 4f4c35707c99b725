"""The course: graders pass the project's own functions and refuse typical wrong ones with the hint that names the idea;
whatever a student's file does, there is one clear line, and the others are graded."""

import contextlib
import functools
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COURSE = ROOT / "exercises"
sys.path += [str(COURSE)]

import capstone  # noqa: E402
import export  # noqa: E402
import grade  # noqa: E402
import student  # noqa: E402

from model import Transformer  # noqa: E402
from nanodlm import checkpoint as ckpt  # noqa: E402

LESSONS = sorted((COURSE / "lessons").glob("*.py"))
NAMES = [p.stem for p in LESSONS]
CHAPTERS = {"I, the process": 4, "II, the bound": 7, "III, sampling": 7, "IV, networks and speed": 7}
CHAPTERS |= {"V, uniform noise": 2, "VI, rewards": 1, "VII, edits": 1}
every = pytest.mark.parametrize("lesson", LESSONS, ids=NAMES)


@pytest.fixture(autouse=True)
def a_path_of_its_own(monkeypatch):
    """Lessons add to sys.path, relative to where they are run: no other test may meet that."""
    monkeypatch.setattr(sys, "path", [*sys.path])


@functools.cache
def answers(lesson):
    """The right functions of a lesson, {name: function}, and the wrong ones, {name: (part of a hint, functions)}."""
    spec = importlib.util.spec_from_file_location("answers", ROOT / "tests/course" / lesson.name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {name: getattr(module, name) for name in student.to_write(lesson)}, module.WRONG


def graded(lesson, functions):
    """A result for each claim, as soon as it is known."""
    return student.results(types.SimpleNamespace(**functions), COURSE / "graders" / lesson.name)


# ---- lessons and graders ---------------------------------------------------------------------------------------------


@every
def test_the_right_functions_pass_and_what_one_sees_is_what_the_lesson_shows(lesson):
    right, _ = answers(lesson)
    assert [r for r in graded(lesson, right) if r["state"] != "passed"] == []
    text, out = lesson.read_text("utf-8"), io.StringIO()
    head, mark, demo = text.partition("# %% [markdown]\n# ## What one sees")
    names = {"__name__": "__main__"}
    with contextlib.redirect_stdout(out):
        exec(compile(head, lesson.name, "exec"), names)
        names.update(right)
        exec(compile(mark + demo, lesson.name, "exec"), names)
    shown = re.findall(r"^#     (.*)$", demo.split("\n# %%\n")[0], re.M)
    assert shown == [line for line in out.getvalue().splitlines() if line], (
        "what the lesson shows is not what it prints"
    )


def wrong_answers():
    return [(p, name) for p in LESSONS for name in answers(p)[1]]


@pytest.mark.parametrize("lesson, name", wrong_answers(), ids=lambda x: x.stem[:2] if isinstance(x, Path) else x)
def test_a_typical_mistake_is_refused_with_the_hint_that_names_the_idea(lesson, name):
    right, wrong = answers(lesson)
    phrase, functions = wrong[name]
    hints = []
    for r in graded(lesson, right | functions):
        hints.append(r["hint"])
        if phrase in r["hint"]:
            return
    pytest.fail(f"{phrase} is in none of {hints}")


@every
def test_what_is_not_written_yet_is_said_so(lesson):
    module = student.load(lesson, lesson)
    assert {r["state"] for r in student.results(module, COURSE / "graders" / lesson.name)} == {"missing"}
    assert all(r["state"] == "missing" for r in grade.grade(lesson, lesson)[0])


@every
def test_a_lesson_is_a_text_with_a_source_an_equation_a_time_and_a_place_in_the_project(lesson):
    text = lesson.read_text("utf-8")
    found = re.search(r"^# # (\d+) · .+\n# \*Chapter (.+?)\. (\d+) minutes\. .+", text, re.M)
    number, chapter, minutes = int(found[1]), found[2], int(found[3])
    assert number == int(lesson.stem[:2]) and chapter in CHAPTERS and 20 <= minutes <= 60
    said = "".join(re.findall(r"^# .*\n", text, re.M))
    assert re.search(r"\d{4}\.\d{5}|[Pp]ull requests", said) and said.count("$$") >= 2
    assert 1 <= len(student.to_write(lesson)) <= 3 and len(answers(lesson)[1]) >= 4
    for module, attribute in re.findall(r"`(mdlm|bd3lm|udlm|editflow|model|ar|nanodlm\.\w+)\.(\w+)", text):
        there = (
            hasattr(importlib.import_module(module), attribute) or module == "model" and hasattr(Transformer, attribute)
        )
        assert attribute == "py" or there, f"{module}.{attribute}"


def test_the_lessons_are_counted_from_1_and_each_chapter_has_its_own():
    assert [int(p.stem[:2]) for p in LESSONS] == list(range(1, sum(CHAPTERS.values()) + 1))
    texts = [p.read_text("utf-8") for p in LESSONS]
    assert {c: sum(f"*Chapter {c}." in t for t in texts) for c in CHAPTERS} == CHAPTERS


# ---- the grader, as a student meets it -------------------------------------------------------------------------------

HEAD = "import torch\ndef corrupt(x0, t, u, maskable, mask_id):\n"
RIGHT = HEAD + "    return torch.where((u < t[:, None]) & maskable, mask_id, x0)\n"
BAD = {
    "a renamed function": (RIGHT.replace("corrupt", "corupt"), "no function corrupt(x0, t, u, maskable, mask_id)"),
    "other arguments": (RIGHT.replace("(x0, t, u", "(x, t, u"), "the file corrupt(x, t, u, maskable, mask_id)"),
    "a syntax error": (HEAD + "    return x0 +\n", "line 3, `return x0 +`: invalid syntax"),
    "an error while it is read": ("import torch\nx = 1 / 0\n" + RIGHT, "line 2, `x = 1 / 0`: ZeroDivisionError"),
    "an error in a function": (HEAD + "    y = x0\n    return y @ u\n", "line 4, `return y @ u`: RuntimeError: "),
    "an endless loop": (HEAD + "    while True:\n        pass\n", "stopped after 1 s: an endless loop?"),
    "an endless loop outside": ("while True:\n    pass\n", "stopped after 1 s: an endless loop?"),
    "nothing returned": (HEAD + "    x0 = x0 + 1\n", "None (is there a return?)"),
    "another dtype": (HEAD + "    return x0.double()\n", "float64 (64, 8)"),
    "another shape": (HEAD + "    return x0[:, :7]\n", "int64 (64, 7)"),
    "another file": ((COURSE / "lessons/03_schedules.py").read_text("utf-8"), "another exercise, 03_schedules.py"),
    "it leaves": (HEAD + "    exit()\n", "line 3, `exit()`: SystemExit"),
    "it aborts": (HEAD + "    import os; os.abort()\n", "the process ended"),
    "no text": (b"\xff\xfe\x00", "01_corruption.py is not UTF-8 text"),
    "a null byte": ("x = 1\0\n", "null byte"),
    "too deep": ("x = " + "(" * 5000 + ")" * 5000 + "\n" + RIGHT, "01_corruption.py"),
}


@pytest.mark.parametrize("name", BAD)
def test_whatever_a_file_does_there_is_one_clear_line(name, tmp_path):
    content, said = BAD[name]
    path = tmp_path / "01_corruption.py"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    results, _ = grade.grade(path, LESSONS[0], seconds=1 if "endless" in name else 60)
    assert len(results) == 4 and not any(r["state"] == "passed" for r in results[:1])
    words = " ".join(results[0].values())
    assert said in words or name == "too deep" and "line 1" in words, results[0]
    assert "Traceback" not in words and str(ROOT) not in words and "\n" not in words


def test_nan_is_said_with_its_place(tmp_path):
    path = tmp_path / "02_counts.py"
    text = "import torch\ndef draw_count(n, u):\n    return (u * n).floor().long() + 1\n"
    text += "def hide(k, u, maskable):\n    return u < 0\n"
    text += "def weight(k, maskable):\n    return k / maskable.sum(1).double() * 0 / 0\n"
    path.write_text(text, encoding="utf-8")
    results, _ = grade.grade(path, LESSONS[1])
    assert [r["state"] for r in results] == ["passed", "wrong", "wrong", "wrong", "wrong"]
    assert "nan at [0], one of 200 that are no finite numbers" in results[3]["came"]


def run(*words):
    done = subprocess.run(
        [sys.executable, COURSE / "grade.py", *map(str, words)], capture_output=True, encoding="utf-8"
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def inside(monkeypatch, capsys):
    """run, but in this process, whose forks need not read torch anew; returns what is printed."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["grade.py", *map(str, words)])
        grade.main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def mine(tmp_path):
    """A student's directory: lesson 1 is right, lesson 2 a notebook with a mistake, lesson 3 broken, the others new."""
    done = subprocess.run(
        [sys.executable, COURSE / "start.py", f"--to={tmp_path}"], capture_output=True, encoding="utf-8"
    )
    assert f"{len(LESSONS) + 1} files copied" in done.stdout, done.stdout + done.stderr
    (tmp_path / "01_corruption.py").write_text(RIGHT, encoding="utf-8")
    (tmp_path / "02_counts.py").unlink()
    code = "%matplotlib inline\n!pip install torch\nimport torch\nprint('hello')\nx = (7\n  % 2)\n"
    code += "def draw_count(n, u):\n    return (u * n).long()\n"
    more = "def hide(k, u, maskable):\n    raise NotImplementedError('not yet')\n"
    more += "def weight(k, maskable):\n    return maskable.sum(1).double() / k\n"
    cells = [{"cell_type": "code", "source": code.splitlines(True)}, {"cell_type": "markdown", "source": ["x ("]}]
    cells += [{"cell_type": "code", "source": more}]
    (tmp_path / "02_counts.ipynb").write_text(json.dumps({"cells": cells}), encoding="utf-8")
    (tmp_path / "03_schedules.py").write_text("def alpha(:\n", encoding="utf-8")
    return tmp_path


def test_the_grader_as_a_student_sees_it(mine, inside):
    before = (mine / "04_posterior.py").read_bytes()
    text = inside(f"--of={mine}")
    assert re.search(r"^ 1 · .* ✔ 4 of 4$", text, re.M) and f"1 of {len(LESSONS)} exercises" in text
    assert "✘ line 1, `def alpha(:`: invalid syntax" in text and text.count("○ not written yet") == len(LESSONS) - 3
    assert "○ hide takes exactly k" in text and "came     not yet" in text and "counts run from 1 to n" in text
    kept = json.loads((mine / "progress.json").read_text("utf-8"))
    assert kept["01_corruption"]["results"][0]["state"] == "passed" and "04_posterior" in kept
    kept["01_corruption"]["results"][0]["state"] = "wrong"  # what is kept is shown, until the file changes
    (mine / "progress.json").write_text(json.dumps(kept), encoding="utf-8")
    status, text = run(f"--of={mine}")
    assert status == 0 and "1 · " in text and "3 of 4" in text
    (mine / "01_corruption.py").write_text(RIGHT + "\n", encoding="utf-8")
    assert re.search(r"^ 1 · .* ✔ 4 of 4$", inside(f"--of={mine}"), re.M)
    text = inside(2, f"--of={mine}")
    assert "your file printed:\n     hello" in text and "exercises/grade.py NUMBER" not in text
    again = subprocess.run([sys.executable, COURSE / "start.py", f"--to={mine}"], capture_output=True, encoding="utf-8")
    assert "0 files copied" in again.stdout and (mine / "01_corruption.py").read_text("utf-8") == RIGHT + "\n"
    assert (mine / "04_posterior.py").read_bytes() == before and not (mine / "02_counts.py").exists()


def test_a_class_is_graded_by_programs(mine, inside, tmp_path_factory):
    found = json.loads(inside(1, 2, 3, "--json", f"--of={mine}"))
    assert (found["exercises"], found["of_exercises"], found["claims"]) == (1, 3, 6)
    states = ["wrong", "missing", "missing", "passed", "passed"]
    assert [c["state"] for c in found["results"][1]["claims"]] == states
    path = tmp_path_factory.mktemp("out") / "results.json"
    assert inside(1, 2, f"--gradescope={path}", f"--of={mine}") == ""
    tests = json.loads(path.read_text("utf-8"))["tests"]
    assert [t["score"] for t in tests][0] == tests[0]["max_score"] == 4 and tests[0]["status"] == "passed"
    assert tests[1]["status"] == "failed" and "counts run from 1 to n" in tests[1]["output"]


def test_the_grader_says_what_is_not_there(tmp_path):
    assert run(99) == (1, f"there is no exercise 99; they have the numbers 1 to {len(LESSONS)}\n")
    status, text = run(f"--of={tmp_path / 'no'}")
    assert status == 1 and "exercises/start.py makes exercises/mine" in text
    assert run(1, f"--of={tmp_path}")[1].startswith(" 1 · Corruption")


# ---- the capstone ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def needed(tmp_path_factory):
    """A directory with the right answers to what the capstone needs, which it has graded."""
    place = tmp_path_factory.mktemp("needed")
    for number in capstone.NEEDED:
        shutil.copy(ROOT / "tests/course" / grade.LESSONS[number].name, place)
    capstone.functions(place)
    return place


@pytest.fixture
def solved(needed, tmp_path):
    """A copy of it, with a small recipe."""
    shutil.copytree(needed, tmp_path, dirs_exist_ok=True)
    text = (COURSE / "recipe.py").read_text("utf-8").replace("n_embd = 4, 4, 128", "n_embd = 1, 2, 32")
    (tmp_path / "recipe.py").write_text(text.replace("seq_len = 128", "seq_len = 32"), encoding="utf-8")
    return tmp_path


def test_a_capstone_trains_is_measured_by_both_bounds_writes_and_is_compared(solved, monkeypatch, capsys):
    monkeypatch.chdir(solved)
    capstone.run(solved, "ada | <b>", 2e9)
    said = capsys.readouterr().out
    (mine, error), (own, own_error) = (map(float, x) for x in re.findall(r"([\d.]+) \+- ([\d.]+) by", said))
    assert abs(mine - own) < 5 * (error + own_error) and mine < 7
    result = json.loads((solved / "capstone/result.json").read_text("utf-8"))
    assert result["name"] == "ada | <b>" and abs(result["bits_per_character"] - mine) < 1e-3
    page = (solved / "capstone/page.html").read_text("utf-8")
    assert ckpt.load(str(solved / "capstone")).algorithm == "mdlm" and "ada | &lt;b&gt;" in page
    capstone.board([solved / "capstone", solved / "nobody"])
    said = capsys.readouterr()
    assert (
        "nobody holds no capstone" in said.err
        and f"| 1 | ada / <b> (of another budget, 2e+09) | {mine:.3f}" in said.out
    )
    assert said.out in (solved / "leaderboard.md").read_text("utf-8")


def test_a_capstone_says_what_it_lacks(solved):
    recipe = (solved / "recipe.py").read_text("utf-8")
    changes = {"1 / 0\n": "ZeroDivisionError", "n_embd = 33\n": "n_embd=33 is not divisible"}
    changes |= {"del seed\n": "seed is not there", "seq_len = 10**6\n": "seq_len=1000000 is more than the 32768"}
    changes |= {"def loss(my, *args):\n    return my.nothing\n": "line .*`return my.nothing`: AttributeError"}
    for change, said in changes.items():
        (solved / "recipe.py").write_text(recipe + change, encoding="utf-8")
        with pytest.raises(SystemExit, match=said):
            capstone.run(solved, "ada", 1e9)
    (solved / "recipe.py").write_text(recipe.replace("return (my", "return torch.nan * (my"), encoding="utf-8")
    with pytest.raises(SystemExit, match="the loss is nan in iteration 0"):
        capstone.run(solved, "ada", 1e10)
    wrong = (solved / "05_bound.py").read_text("utf-8").replace("mask_id).sum(1) / t", "mask_id).sum(1)")
    (solved / "05_bound.py").write_text(wrong, encoding="utf-8")
    with pytest.raises(SystemExit, match=r"exercise 5, of which this does not hold yet: estimate weighs"):
        capstone.run(solved, "ada", 1e9)
    (solved / "13_confidence.py").unlink()
    (solved / "05_bound.py").unlink()
    with pytest.raises(SystemExit, match=r"needs exercise 5 \(nll, estimate\): not begun"):
        capstone.run(solved, "ada", 1e9)
    (solved / "05_bound.py").write_text("def nll(:\n", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"needs exercise 5 \(nll, estimate\): line 1, .*: invalid syntax"):
        capstone.run(solved, "ada", 1e9)
    assert not (solved / "capstone").exists()


# ---- the rooms where it is taught ------------------------------------------------------------------------------------


def solved_notebook(number):
    """A lesson's notebook, with the right answer in front of what one sees."""
    import nbformat

    book = nbformat.reads(export.notebook(number, "https://example.org/course"), as_version=4)
    nbformat.validate(book)
    assert "https://example.org/course" in book.cells[1].source and "git clone" in book.cells[1].source
    place = next(i for i, cell in enumerate(book.cells) if cell.source.startswith("## What one sees"))
    answer = f"exec(open({str(ROOT / 'tests/course' / grade.LESSONS[number].name)!r}, encoding='utf-8').read())"
    book.cells.insert(place, nbformat.v4.new_code_cell(answer))
    return book


def test_notebooks_run_from_their_first_cell_to_the_grades(tmp_path):
    """In one kernel, as to read torch takes seconds; after each notebook it forgets all names."""
    import nbformat
    from nbclient import NotebookClient

    books = {number: solved_notebook(number) for number in (4, 9, 15, 20, 27)}  # one of each chapter
    cells = [c for book in books.values() for c in (*book.cells, nbformat.v4.new_code_cell("%reset -f"))]
    everything = nbformat.v4.new_notebook(cells=cells)
    place = {"metadata": {"path": str(COURSE)}}
    NotebookClient(everything, kernel_name="python3", timeout=60, resources=place).execute()
    for number, book in books.items():
        lesson = grade.LESSONS[number]
        said = "".join(out.get("text", "") for out in book.cells[-1].outputs)
        claims = len(student.claims(COURSE / "graders" / lesson.name))
        assert f"✔ {claims} of {claims}" in said or said.count("✔") == claims, said
    path = tmp_path / lesson.with_suffix(".ipynb").name  # the last one, as it is handed in
    path.write_text(nbformat.writes(book), encoding="utf-8")
    results, printed = grade.grade(path, lesson)
    assert {r["state"] for r in results} == {"passed"} and printed == "", (results, printed)


def test_an_autograder_is_a_zip_that_grades_what_is_submitted(tmp_path):
    """Run as Gradescope does, but for set-up: its Python is this one."""
    for name in ("source", "submission", "results"):
        (tmp_path / name).mkdir()
    export.gradescope(tmp_path / "autograder.zip", [1, 24])
    with zipfile.ZipFile(tmp_path / "autograder.zip") as archive:
        archive.extractall(tmp_path / "source")
        assert archive.getinfo("run_autograder").external_attr >> 16 & 0o111
    packages = re.search(r"pip install (.+)", (tmp_path / "source/setup.sh").read_text("utf-8"))[1]
    required = (ROOT / "requirements.txt").read_text("utf-8").split("\n")
    assert "torch" in packages and set(packages.split()) <= set(required)
    (tmp_path / "submission/01_corruption.py").write_text(RIGHT, encoding="utf-8")
    env = os.environ | {"AUTOGRADER": str(tmp_path), "PYTHON": sys.executable}
    done = subprocess.run(["bash", tmp_path / "source/run_autograder"], env=env, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    tests = json.loads((tmp_path / "results/results.json").read_text("utf-8"))["tests"]
    assert [(t["number"], t["score"], t["status"]) for t in tests] == [("1", 4, "passed"), ("24", 0, "failed")]


def test_the_page_has_every_exercise_with_its_title_minutes_and_functions():
    page = (ROOT / "docs/course.md").read_text("utf-8")
    for lesson in LESSONS:
        number, minutes = int(lesson.stem[:2]), re.search(r"(\d+) minutes", lesson.read_text("utf-8"))[1]
        title = grade.title(number).replace("|", "\\|")
        names = ", ".join(f"`{name}`" for name in student.to_write(lesson))
        row = f"| [{number}](../exercises/lessons/{lesson.name}) | {title} | {names} | {minutes} | "
        assert row in page, row
    assert all(f"exercises/{name}.py" in page for name in ("start", "grade", "capstone", "race", "export"))


def test_the_page_shows_what_a_grader_says(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (right, wrong), path = answers(LESSONS[4]), COURSE / "mine/05_bound.py"
    results = list(graded(LESSONS[4], right | wrong["forgot 1/t"][1]))
    grade.show(5, path, results, "", short=False)
    page, said = (ROOT / "docs/course.md").read_text("utf-8"), capsys.readouterr().out
    assert re.sub(r"\d\.\d+", "x", said) in re.sub(r"\d\.\d+", "x", page)  # the last digit is the processor's
