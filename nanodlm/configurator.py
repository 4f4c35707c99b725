"""Settings from config files and the command line, over typed dataclasses.

    python train.py config/quickstart.py --learning_rate=1e-3 --compile=false

A config file holds plain assignments, `learning_rate = 1e-3`; later sources win. The keys are the fields of the
dataclasses that the script names; the comment behind a field is its --help. An unknown key or a wrong type is an
error, in the file as on the command line, that names the nearest key or the accepted form.
"""

import ast
import difflib
import sys
import types
from dataclasses import fields
from pathlib import Path
from typing import Literal, Union, get_args, get_origin

from nanodlm.files import ROOT


def read(argv, skip=None):
    """The key-value pairs of config files and --key=value words, {key: (value, where it was said)}; later wins.

    Values from the command line stay strings until fill() knows their type. `--key value` is read as --key=value,
    and --key alone as true. --help is returned as a key.
    skip  (key, value) that is passed over, so that what was said of the key before holds"""
    values, words = {}, list(argv)
    while words:
        word = words.pop(0)
        if word in ("-h", "--help"):
            new = {"help": (True, word)}
        elif word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            if not equals:
                value = True if not words or words[0].startswith("--") or words[0].endswith(".py") else words.pop(0)
            new = {key.replace("-", "_"): (value, "the command line")}
        else:
            new = read_file(word)
        values |= {k: v for k, v in new.items() if (k, v[0]) != skip}
    return values


def read_file(name):
    path = Path(name) if Path(name).exists() else ROOT / name
    if not path.is_file():
        recipes = [] if "=" in name else [f"config/{p.name}" for p in (ROOT / "config").glob("*.py")]
        near = difflib.get_close_matches(name, recipes, 1, 0.3)
        sys.exit(f"no config file {name!r}" + (f"; did you mean {near[0]}?" if near else "; options are --key=value"))
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as e:
        sys.exit(f"{path}, line {e.lineno}: {e.msg}")
    except ValueError as e:  # bytes that are no text
        sys.exit(f"{path} is not a config file: {e}")
    values = {}
    for node in tree.body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # the docstring
        if not isinstance(node, ast.Assign) or len(node.targets) != 1 or not isinstance(node.targets[0], ast.Name):
            sys.exit(f"{path}, line {node.lineno}: a config file holds only assignments like `key = value`")
        try:  # arithmetic on numbers, as in 8 * 1024, is welcome
            value = eval(compile(ast.Expression(node.value), str(path), "eval"), {"__builtins__": {}})
        except Exception as e:
            sys.exit(f"{path}, line {node.lineno}: cannot read the value of {node.targets[0].id}: {e}")
        values[node.targets[0].id] = (value, f"{path.name}, line {node.lineno}")
    return values


def fill(values, *classes, quiet=False):
    """One instance of each dataclass, from values and the fields' defaults. A key that several have goes to all.

    Prints what differs from the defaults; with the key "help", prints every key and exits."""
    known = {f.name: f for c in classes for f in fields(c)}
    if "help" in values:
        print_help(classes)
        sys.exit(0)
    for key, (_, where) in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, 0.5)
            sys.exit(
                f"unknown key {key!r} ({where})" + (f"; did you mean {near[0]}?" if near else "; --help lists all keys")
            )
    typed = {key: convert(value, known[key].type, key, where) for key, (value, where) in values.items()}
    defaults = [(f.name, f.default) for c in classes for f in fields(c)]
    changed = [f"{k} = {v!r}" for k, v in typed.items() if any(k == name and v != d for name, d in defaults)]
    if changed and not quiet:
        print("settings: " + ", ".join(changed))
    try:
        filled = [c(**{f.name: typed[f.name] for f in fields(c) if f.name in typed}) for c in classes]
    except ValueError as e:
        sys.exit(str(e))
    return filled[0] if len(classes) == 1 else filled


def convert(value, kind, key, where):
    """value as the type `kind`, from a string of the command line or a value of a config file."""
    try:
        return parse(value, kind)
    except (ValueError, TypeError, OverflowError):
        sys.exit(f"{key} = {value!r} ({where}) does not fit: it takes {describe(kind)}")


def parse(value, kind):
    is_text = isinstance(value, str)
    if get_origin(kind) is Literal:
        value = str(value).lower() if isinstance(value, bool) else value
        if value in get_args(kind):
            return value
    elif get_origin(kind) in (Union, types.UnionType):  # X | None
        if value is None or value == "none":
            return None
        return parse(value, next(k for k in get_args(kind) if k is not type(None)))
    elif get_origin(kind) is tuple:  # tuple[X, ...]; on the command line 1,2,3
        parts = [v for v in value.strip("()[] ").split(",") if v.strip()] if is_text else value
        if is_text or isinstance(value, tuple | list):
            return tuple(parse(v.strip() if is_text else v, get_args(kind)[0]) for v in parts)
    elif kind is bool:
        if isinstance(value, bool):
            return value
        if is_text and value.lower() in ("true", "1", "yes", "false", "0", "no"):
            return value.lower() in ("true", "1", "yes")
    elif kind is int:
        number = float(value) if is_text and "e" in value.lower() else int(value) if is_text else value  # 1e4 is an int
        if isinstance(number, int | float) and not isinstance(number, bool) and number == int(number):
            return int(number)
    elif kind is float:
        if not isinstance(value, bool):
            return float(value)
    elif kind is str:
        if is_text:
            return value
    raise ValueError


def describe(kind):
    """The accepted form of a type, in words."""
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if get_origin(kind) in (Union, types.UnionType):
        return describe(next(k for k in get_args(kind) if k is not type(None))) + " or none"
    if get_origin(kind) is tuple:
        return f"{describe(get_args(kind)[0])}, or several with commas between"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]


def print_help(classes):
    doc = sys.modules["__main__"].__doc__
    if doc:
        print(doc.strip() + "\n")
    printed = set()
    for c in classes:
        comments = field_comments(c)
        new = [f for f in fields(c) if (f.name, str(f.type), f.default) not in printed]
        printed |= {(f.name, str(f.type), f.default) for f in new}
        if new:
            print(f"{c.__module__}.{c.__name__}")
        for f in new:
            kind = f.type.__name__ if isinstance(f.type, type) and get_origin(f.type) is None else describe(f.type)
            print(f"  --{f.name}={f.default}  ({kind})  {comments.get(f.name, '')}")
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
