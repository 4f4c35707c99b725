"""What graders are made of. A grader (graders/05_bound.py) is a file of functions claim_…(my): the docstring is a claim
about the functions in a student's file, `my`, and a call of alike() or true() fails where it does not hold.

grade.py calls alone(…) in a process of its own, which may be stopped.
"""

import ast
import importlib.util
import inspect
import json
import linecache
import os
import re
import sys
import traceback
import types
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE), str(HERE.parent), str(HERE.parent / "tests" / "book")]  # the graders' oracles are the tests'
MEMORY = 16 << 30  # bytes that a student's file may address


class Wrong(Exception):
    """A claim that does not hold: what was expected, what came, where to look."""

    def __init__(self, expected, came, hint):
        super().__init__(f"expected {expected}, came {came}")
        self.expected, self.came, self.hint = expected, came, hint


# ---- what a claim says -----------------------------------------------------------------------------------------------


def true(holds, expected, came, hint):
    """Fail unless it holds; expected and came are words."""
    if not holds:
        raise Wrong(expected, came, hint)


def kind(x):
    """Shape and dtype of a tensor, in words; of something else what it is."""
    if torch.is_tensor(x):
        return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"
    return "None (is there a return?)" if x is None else f"a {type(x).__name__}: {x!r}"[:100]


def number(x):
    return f"{x:.6g}" if isinstance(x, float) else str(x)


def apart(got, want, tolerance):
    """Where tensors of one shape differ, numbers by more than the tolerance, relative and absolute: bool."""
    if got.dtype == torch.bool or want.dtype == torch.bool:
        return got != want
    return ~torch.isclose(got.double(), want.double(), rtol=tolerance, atol=tolerance)


def alike(got, want, hint, mistakes=(), tolerance=None, what=""):
    """Fail unless what came is what is expected: tensors, or numbers.

    hint      where to look
    mistakes  (what comes of a typical mistake, the hint for it), …: the first that fits what came
    what      words for what is compared, where the claim says more than one thing
    """
    if not torch.is_tensor(want):
        if torch.is_tensor(got) and got.dim() == 0:
            got = got.item()
        if isinstance(got, bool) or not isinstance(got, int | float):
            raise Wrong(f"{what + ': ' if what else ''}a number", kind(got), hint)
        got, want = torch.tensor(float(got)).double(), torch.tensor(float(want)).double()
    prefix = f"{what}: " if what else ""
    if not torch.is_tensor(got) or got.shape != want.shape or got.dtype != want.dtype:
        like = "shape and dtype are said in the function's docstring"
        raise Wrong(prefix + kind(want), kind(got), like)
    bad = ~got.isfinite() & want.isfinite()
    if bad.any():
        where = place(bad)
        came = f"{number(got[where].item())} at {list(where)}, one of {int(bad.sum())} that are no finite numbers"
        raise Wrong(f"{prefix}{number(want[where].item())}", came, hint)
    tolerance = tolerance or (1e-8 if got.dtype == torch.float64 else 1e-4)
    wrong = apart(got, want, tolerance)
    if not wrong.any():
        return
    for value, said in mistakes:
        value = torch.as_tensor(value)
        if value.shape == want.shape and not apart(got, value, tolerance).any():
            hint = said
            break
    where = place(wrong)
    at = f" at {list(where)}" if want.dim() else ""
    raise Wrong(f"{prefix}{number(want[where].item())}{at}", number(got[where].item()), hint)


def place(where):
    """The first True of a bool tensor, a tuple."""
    return tuple(where.nonzero()[0].tolist())


def generator(seed):
    return torch.Generator().manual_seed(seed)


# ---- a student's file ------------------------------------------------------------------------------------------------


class Unreadable(Exception):
    """Why nothing of a file can be graded, in a sentence."""


def functions(text):
    """{name: names of its arguments} of the functions of a file."""
    found = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    return {node.name: [a.arg for a in node.args.args] for node in found}


def to_write(lesson):
    """{name: names of its arguments} of the functions that a lesson leaves to its reader."""
    text = lesson.read_text("utf-8")
    left = [n.name for n in ast.parse(text).body if "NotImplementedError" in ast.dump(n)]
    return {name: args for name, args in functions(text).items() if name in left}


def source(path):
    """The Python of a student's file, .py or .ipynb: of a notebook its cells of code, without Jupyter's commands."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        if path.suffix != ".ipynb":
            return text
        cells = ["".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
        return re.sub(
            r"^(\s*)(!|%%?[a-z]).*$", r"\1pass", "\n\n".join(cells), flags=re.M
        )  # it may be all that an if has
    except (UnicodeDecodeError, ValueError, KeyError, TypeError) as e:
        what = "a notebook" if path.suffix == ".ipynb" else "UTF-8 text"
        raise Unreadable(f"{path.name} is no {what}: {e}".replace("no UTF-8", "not UTF-8")) from None


def check_functions(module, lesson):
    """Unreadable where a student's file lacks a function of its lesson, or has it with other arguments."""
    wanted, found = to_write(lesson), {name for name, value in vars(module).items() if callable(value)}
    gone = [name for name in wanted if name not in found]
    others = [p for p in sorted(lesson.parent.glob("[0-9]*.py")) if p != lesson and to_write(p).keys() <= found]
    if len(gone) == len(wanted) and others:
        raise Unreadable(f"this is the file of another exercise, {others[0].name}")
    for name in gone:
        call = f"{name}({', '.join(wanted[name])})"
        raise Unreadable(f"there is no function {call} in the file; was it renamed?")
    for name, args in wanted.items():
        try:
            has = list(inspect.signature(getattr(module, name)).parameters)
        except ValueError:  # it is none of Python's functions
            continue
        if has[: len(args)] != args:
            raise Unreadable(
                f"the lesson has {name}({', '.join(args)}), the file {name}({', '.join(has)}): keep the arguments"
            )


def last_line(error, path):
    """'line 12, `x = y`: ' of a student's file, from which an error came; empty where it came from none."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    return f"line {frames[-1].lineno}, `{(frames[-1].line or '').strip()}`: " if frames else ""


def words(error):
    return f"{type(error).__name__}: {error}".strip(": ").split("\n")[0][:300]


def load(path, lesson):
    """A student's file as a module; Unreadable where it cannot be one, or is not that lesson's."""
    text = source(path)
    try:
        code = compile(text, str(path), "exec")
    except SyntaxError as e:
        raise Unreadable(f"line {e.lineno}, `{(e.text or '').strip()}`: {e.msg}") from None
    except (ValueError, RecursionError, MemoryError) as e:
        raise Unreadable(f"Python cannot read it: {e}") from None
    linecache.cache[str(path)] = len(text), None, text.splitlines(True), str(path)  # of a notebook there is no file
    module = types.ModuleType("mine")
    module.__file__ = str(path)
    try:
        exec(code, module.__dict__)
    except (Exception, SystemExit) as e:
        raise Unreadable(last_line(e, path) + words(e)) from None
    check_functions(module, lesson)
    return module


def load_grader(path):
    spec = importlib.util.spec_from_file_location("grader", path)
    grader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(grader)
    return grader


def claims(path):
    """[(name, words)] of a grader, without running it."""
    nodes = ast.parse(path.read_text("utf-8")).body
    nodes = [node for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("claim_")]
    return [(node.name, " ".join(ast.get_docstring(node).split())) for node in nodes]


def result(claim, state="passed", expected="", came="", hint=""):
    """state: passed; wrong; missing, where a function is not written yet; broken, where nothing could be compared."""
    return dict(claim=claim, state=state, expected=expected, came=came, hint=hint)


def results(my, grader_path, path=None):
    """Grade a module: a result for each claim, as soon as it is known."""
    grader = load_grader(grader_path)
    for name, claim in claims(grader_path):
        try:
            getattr(grader, name)(my)
            yield result(claim)
        except Wrong as e:
            yield result(claim, "wrong", e.expected, e.came, e.hint)
        except NotImplementedError as e:
            yield result(claim, "missing", came=str(e) or "not written yet")
        except (Exception, SystemExit) as e:
            where = last_line(e, path)
            looked = "" if where else "what a function returned could not be looked at: "
            hint = "" if where else "shape, dtype and meaning of what is returned are said in its docstring"
            yield result(claim, "broken", came=where + looked + words(e), hint=hint)


def alone(said, path, lesson, grader, out):
    """Grade one file, in a process that is there for nothing else: into `out` goes a line of JSON for each claim, as
    soon as it is known, into `said` whatever is printed."""
    if hasattr(os, "setsid"):  # what it starts is stopped with it, and Ctrl-C is its parent's
        os.setsid()
    os.environ["MPLBACKEND"] = "Agg"
    sys.stdin = open(os.devnull)
    sys.stdout = sys.stderr = open(said, "w", encoding="utf-8", errors="backslashreplace", buffering=1)
    for i, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)):  # and those of what it starts, and of C++
        os.dup2(stream.fileno(), i)
    torch.set_num_threads(1)
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, ValueError, OSError):  # Windows; a lower limit is there already
        pass
    with open(out, "w", encoding="utf-8") as file:
        try:
            for found in results(load(path, lesson), grader, path):
                file.write(json.dumps(found) + "\n")
                file.flush()
        except Unreadable as e:
            file.write(json.dumps({"unreadable": str(e)}) + "\n")
