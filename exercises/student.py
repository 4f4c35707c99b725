"""A student's file: what is in it, and how it is graded, by the claims of a grader (see checks.py).

grade.py calls alone(…) in a process of its own, which may be stopped. Only that one reads torch, which takes seconds.
"""

import ast
import functools
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

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE), str(HERE.parent), str(HERE.parent / "tests" / "book")]  # the graders' oracles are the tests'
MEMORY = 16 << 30  # bytes that a student's file may address


class Wrong(Exception):
    """A claim that does not hold: what was expected, what came, where to look."""

    def __init__(self, expected, came, hint):
        super().__init__(f"expected {expected}, came {came}")
        self.expected, self.came, self.hint = expected, came, hint


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
    for other in sorted(lesson.parent.glob("[0-9]*.py")) if len(gone) == len(wanted) else ():
        if other != lesson and to_write(other).keys() <= found:
            raise Unreadable(f"this is the file of another exercise, {other.name}")
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


@functools.cache
def load_grader(path):
    spec = importlib.util.spec_from_file_location("grader", path)
    grader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(grader)
    return grader


@functools.cache
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
    import torch

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
