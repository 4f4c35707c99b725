"""What an answer is worth, for policy gradients (grpo.py): plain functions of three texts, of which a run names some.

    reward(prompt, answer, truth) -> a number; answer is what a model wrote, truth what the data have in its place

One of your own is a function of a file of yours, named my_rewards.py:length. Whoever writes an answer wants the number
and not the work: nothing here evaluates it as a program, but code(), which does so in the sandbox.
"""

import ast
import contextlib
import functools
import math
import operator
import re
import signal
import sys
import threading
from fractions import Fraction
from pathlib import Path

from nanodlm import sandbox
from nanodlm.files import ROOT, load_module

# ---- puzzles ---------------------------------------------------------------------------------------------------------


def sudoku(prompt, answer, truth):
    """1 where the answer solves the puzzle "4.......21.4...2=" and leaves its digits as they are; else 0."""
    script = load_module("sudoku_prepare", ROOT / "data" / "sudoku" / "prepare.py")
    puzzle = prompt.split("=")[0]
    kept = len(answer) == len(puzzle) and all(p in (".", a) for p, a in zip(puzzle, answer))
    return float(kept and script.is_solved(answer, math.isqrt(len(puzzle))))


def sudoku_cells(prompt, answer, truth):
    """The share of the empty cells that are filled in as in the solution (d1, arXiv 2504.12216)."""
    empty = [i for i, p in enumerate(prompt.split("=")[0]) if p == "."]
    return sum(answer[i : i + 1] == truth[i : i + 1] for i in empty) / max(1, len(empty))


SIGNS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def value(expression):
    """(its value, a Fraction, and its numbers) of an expression of whole numbers, + - * / and brackets; ValueError
    where it is something else."""
    if len(expression) > 200 or not re.fullmatch(r"[\d+\-*/() ]+", expression) or "//" in expression:
        raise ValueError(expression)
    used = []

    def of(node):
        if isinstance(node, ast.BinOp) and type(node.op) in SIGNS:
            return SIGNS[type(node.op)](of(node.left), of(node.right))
        if isinstance(node, ast.Constant) and type(node.value) is int:
            used.append(node.value)
            return Fraction(node.value)
        raise ValueError(expression)

    try:
        return of(ast.parse(expression.strip(), mode="eval").body), used
    except (SyntaxError, ArithmeticError, RecursionError, MemoryError) as e:
        raise ValueError(expression) from e


def countdown(prompt, answer, truth):
    """1 where the answer is an expression of all the prompt's numbers, each used once, that comes to its target, as
    (3+7)*4 or (3+7)*4=40; 0.1 where it uses them and comes to something else; else 0 (as d1 has it). The prompt ends
    with numbers and a target: "3,4,7=40:", "Numbers: 3, 4, 7. Target: 40."."""
    asked = re.search(r"(\d+(?:[, ]+\d+)+)\D+(\d+)\D*$", prompt)
    if not asked:
        raise ValueError("the prompt ends with no numbers and target, as in 3,4,7=40:")
    found = re.findall(r"<answer>(.*?)</answer>|\\boxed\{(.*?)\}", answer, re.S)
    said = "".join(found[-1]) if found else answer
    try:
        result, used = value(said.split("=")[0].strip())
    except ValueError:
        return 0.0
    if sorted(used) != sorted(map(int, re.findall(r"\d+", asked[1]))):
        return 0.0
    return 1.0 if result == int(asked[2]) else 0.1


# ---- school problems -------------------------------------------------------------------------------------------------


def plain(number):
    """A number as lm-eval's gsm8k compares it: without commas, dollars, what stands before ####, a stop at its end."""
    return re.sub(r"\.$", "", re.sub(r",|\$|(?s:.*)#### ", "", number)).strip()


def last_number(text):
    """As lm-eval's flexible-extract finds it; "" where there is none."""
    found = re.findall(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", text)
    return next((part for part in found[-1] if part), "") if found else ""


def gsm8k(prompt, answer, truth):
    """1 where the last number of the answer is that of the truth, which stands behind ####; else 0."""
    right = re.search(r"#### (-?[0-9.,]+)", truth)
    if not right:
        raise ValueError("the truth has no #### with a number behind it")
    return float(plain(last_number(answer)) == plain(right[1]))


def gsm8k_strict(prompt, answer, truth):
    """1 where the number behind #### in the answer is that of the truth; else 0 (lm-eval's strict-match)."""
    said, right = (re.search(r"#### (-?[0-9.,]+)", text) for text in (answer, truth))
    return float(bool(said and right) and plain(said[1]) == plain(right[1]))


def answer_format(prompt, answer, truth):
    """1 where the answer ends with #### and a number, once; else 0."""
    return float(answer.count("####") == 1 and bool(re.search(r"#### -?[0-9][0-9.,]*\s*$", answer)))


def tags_format(prompt, answer, truth):
    """1 where the answer is <reasoning>…</reasoning> and <answer>…</answer>, each once, and nothing else; else 0."""
    tags = ["<reasoning>", "</reasoning>", "<answer>", "</answer>"]
    whole = re.fullmatch(r"\s*<reasoning>.*</reasoning>\s*<answer>.*</answer>\s*", answer, re.S)
    return float(bool(whole) and all(answer.count(tag) == 1 for tag in tags))


# ---- programs --------------------------------------------------------------------------------------------------------


def code(prompt, answer, truth):
    """1 where the answer's program, its last ```python block or all of it, passes the tests that the truth is, in the
    sandbox, within 10 seconds; else 0."""
    if why := sandbox.missing():
        raise RuntimeError(why)
    blocks = re.findall(r"```(?:python)?\n(.*?)```", answer, re.S)
    return float(sandbox.run((blocks[-1] if blocks else answer) + "\n\n" + truth, seconds=10)[0])


# ---- by name ---------------------------------------------------------------------------------------------------------


@functools.cache
def function(name):
    """The reward of that name; exits where there is none."""
    file, _, inside = name.rpartition(":")
    if file:
        if not Path(file).is_file():
            sys.exit(f"rewards: there is no file {file!r}; a reward of your own is named my_rewards.py:length")
        module = load_module(Path(file).stem, Path(file).absolute())
    else:
        module = sys.modules[__name__]
    found = getattr(module, inside, None)
    names = ("sudoku", "sudoku_cells", "countdown", "gsm8k", "gsm8k_strict", "answer_format", "tags_format", "code")
    if not callable(found) or not file and inside not in names:
        there = f"{file} has none of that name" if file else "there are " + ", ".join(names)
        sys.exit(f"rewards: no reward {inside!r}; {there}")
    return found


def named(words):
    """[(function, weight)] of words such as gsm8k, answer_format=0.5, my_rewards.py:length=0.1."""
    found = []
    for word in words:
        name, mark, weight = word.partition("=")
        try:
            weight = float(weight) if mark else 1.0
        except ValueError:
            weight = math.nan
        if not math.isfinite(weight):
            sys.exit(f"rewards: {word!r} is not of the form name or name=weight, as answer_format=0.5")
        found.append((function(name.strip()), weight))
    return found


@contextlib.contextmanager
def at_most(seconds):
    """TimeoutError where what is inside takes longer: Python, that is, in the main thread of a system with alarms."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(number, frame):
        raise TimeoutError(f"it took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def total(functions, prompt, answer, truth, seconds=30.0):
    """(the weighted sum of some rewards, nothing), or (not a number, what went wrong, in words)."""
    found = 0.0
    for reward, weight in functions:
        try:
            with at_most(seconds):
                one = float(reward(prompt, answer, truth))
            if not math.isfinite(one):
                raise ValueError(f"it gave {one}")
        except Exception as e:
            return math.nan, f"the reward {reward.__name__} failed ({type(e).__name__}: {e})"
        found += weight * one
    return found, ""
