"""Settings from config files and the command line, over typed dataclasses.

    python train.py config/quickstart.py --learning_rate=1e-3 --compile=false

A config file holds plain assignments, `learning_rate = 1e-3`; later sources win. The keys are the fields of the
dataclasses that the script names; the comment behind a field is its --help. An unknown key or a wrong type is an
error, in the file as on the command line, that names the nearest key or the accepted form.
"""

import ast
import difflib
import operator
import re
import sys
from dataclasses import fields
from pathlib import Path

from nanodlm.bounds import Unreadable, Word, describe, kinds, parse, shorten
from nanodlm.files import ROOT, holding


def read(argv, skip=None):
    """The key-value pairs of config files and --key=value words, {key: (value, where it was said)}; later wins.

    Values from the command line stay strings until fill() knows their type. `--key value` is read as --key=value,
    and --key alone as true. --help is returned as a key.
    skip  (key, value) that is passed over, so that what was said of the key before holds"""
    values = {}
    for key, value in split(argv):
        new = {key: (value, "the command line")} if key else read_file(value)
        values |= {k: v for k, v in new.items() if (k, v[0]) != skip}
    return values


def split(argv):
    """The words as [(key, value)], and ("", name) for a config file."""
    pairs, words = [], list(argv)
    while words:
        word = words.pop(0)
        if word in ("-h", "--help"):
            pairs.append(("help", True))
        elif word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            if not equals:  # what follows is its value, unless it is an option or a file: a text has blanks
                alone = not words or re.match(r"--\w[\w-]*(=|$)|-h$|\S+\.py$", words[0])
                value = True if alone else words.pop(0)
            pairs.append((key.replace("-", "_") or "--", value if value is True else Word(value)))
        else:
            pairs.append(("", word))
    return pairs


def files(argv):
    """The config files among the words, in their order."""
    return [value for key, value in split(argv) if not key]


def read_file(name):
    path = Path(name) if Path(name).exists() else ROOT / name
    if not path.is_file():
        recipes = [] if "=" in name else [f"config/{p.name}" for p in holding(ROOT / "config", "*.py")]
        near = difflib.get_close_matches(name, recipes, 1, 0.3)
        sys.exit(f"no config file {name!r}" + (f"; did you mean {near[0]}?" if near else "; options are --key=value"))
    try:
        if path.stat().st_size > 2**20:
            raise ValueError("it has more than a megabyte")
        tree = ast.parse(path.read_text(encoding="utf-8-sig"))  # Windows' editors begin a file with a mark of its bytes
    except SyntaxError as e:
        sys.exit(f"{path}, line {e.lineno}: {e.msg}")
    except (ValueError, OSError) as e:  # bytes that are no text, or may not be read
        sys.exit(f"{path} is not a config file: {e}")
    except (RecursionError, MemoryError):
        sys.exit(f"{path} is not a config file: it is nested too deeply")
    values = {}
    for node in tree.body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # the docstring
        if not isinstance(node, ast.Assign) or len(node.targets) != 1 or not isinstance(node.targets[0], ast.Name):
            sys.exit(f"{path}, line {node.lineno}: a config file holds only assignments like `key = value`")
        key = node.targets[0].id
        try:
            values[key] = (evaluate(node.value), f"{path.name}, line {node.lineno}")
        except (ValueError, TypeError, ArithmeticError, RecursionError) as e:
            sys.exit(f"{path}, line {node.lineno}: cannot read the value of {key}: {e}")
    return values


SIGNS = {ast.UAdd: operator.pos, ast.USub: operator.neg}
ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
ARITHMETIC |= {ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow}


def evaluate(node):
    """The value of a literal, a list or tuple of them, or arithmetic on numbers, as in 8 * 1024. Nothing else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float | None):
        return node.value
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(evaluate(e) for e in node.elts)
    if isinstance(node, ast.UnaryOp) and type(node.op) in SIGNS:
        return SIGNS[type(node.op)](number(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        a, b = number(node.left), number(node.right)
        if isinstance(node.op, ast.Pow) and abs(b) > 64:
            raise ValueError("an exponent beyond 64")  # 10**10**10 would not come to an end
        return ARITHMETIC[type(node.op)](a, b)
    raise ValueError("it may hold numbers, texts, true or false, lists of these, and arithmetic on numbers")


def number(node):
    value = evaluate(node)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{shorten(value)} is no number")
    if abs(value) > 2.0**64:
        raise ValueError("a number beyond 2^64")
    return value


def fill(values, *classes, quiet=False):
    """One instance of each dataclass, from values and the fields' defaults. A key that several have goes to all.

    Prints what differs from the defaults; with the key "help", prints every key and exits."""
    if "help" in values:
        print_help(classes)
        sys.exit(0)
    known = {name: kind for c in classes for name, kind in kinds(c).items()}
    for key, (_, where) in values.items():
        if key not in known:
            near = nearest(key, known)
            sys.exit(
                f"unknown key {key!r} ({where}); " + (f"did you mean {near}?" if near else "--help lists all keys")
            )
    typed = {key: convert(value, known[key], key, where) for key, (value, where) in values.items()}
    defaults = [(f.name, f.default) for c in classes for f in fields(c)]
    changed = [f"{k} = {v!r}" for k, v in typed.items() if any(k == name and v != d for name, d in defaults)]
    if changed and not quiet:
        print("settings: " + ", ".join(changed))
    try:
        filled = [c(**{f.name: typed[f.name] for f in fields(c) if f.name in typed}) for c in classes]
    except ValueError as e:
        sys.exit(str(e))
    return filled[0] if len(classes) == 1 else filled


def nearest(key, known):
    """The key that was meant: lr is learning_rate, learning_rat too."""
    initials = [k for k in known if "_" in k and "".join(word[:1] for word in k.split("_")) == key]
    return next(iter(initials or difflib.get_close_matches(key, known, 1, 0.5)), None)


def convert(value, kind, key, where):
    """value as the type `kind`, from a string of the command line or a value of a config file."""
    try:
        accepted = describe(kind)
    except TypeError as e:
        sys.exit(f"the field {key}: {e}")
    try:
        return parse(value, kind)
    except Unreadable as e:
        sys.exit(f"{key} ({where}): {e}")
    except (ValueError, TypeError, OverflowError):
        sys.exit(f"{key} = {shorten(value)} ({where}) does not fit: it takes {accepted}")


def print_help(classes):
    doc = sys.modules["__main__"].__doc__
    if doc:
        print(doc.strip() + "\n")
    printed = set()
    for c in classes:
        comments, types = field_comments(c), kinds(c)
        new = [f for f in fields(c) if (f.name, str(types[f.name]), f.default) not in printed]
        printed |= {(f.name, str(types[f.name]), f.default) for f in new}
        if new:
            print(f"{c.__module__}.{c.__name__}")
        for f in new:
            print(f"  --{f.name}={f.default}  ({describe(types[f.name])})  {comments.get(f.name, '')}")
        if new:
            print()


def field_comments(c):
    """The comment at the end of each field's line, {field: comment}, those of a base class included."""
    import inspect

    comments = {}
    for line in (line for base in c.__mro__[-2::-1] for line in inspect.getsource(base).splitlines()):
        head, mark, comment = line.partition("  # ")
        name = head.strip().partition(":")[0]
        if mark and name.isidentifier():
            comments[name] = comment.strip()
    return comments
