"""What a setting may be: stated once, in the type of its field, and checked in one place.

    @dataclass
    class Options:
        dropout: Below1 = 0.0  # on embeddings
        def __post_init__(self):
            check(self)

The same types read the command line and config files (configurator.py), a checkpoint's config.json and a task's entry.
Not a number and infinity are no numbers.
"""

import functools
import math
import os
import re
import types
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Bounds:
    low: float
    high: float
    words: str  # for a message, behind "a number" or "a whole number"
    without: tuple = ()  # of the ends, those that do not belong

    def hold(self, x):
        return self.low <= x <= self.high and x not in self.without and (x == 0 or abs(x) >= NEAREST)


class Word(str):
    """What was said on the command line, or in a task's line, in which a text has a notation of its own."""


class Unreadable(ValueError):
    """Its words say to a user what is wrong."""


ESCAPES = {"n": "\n", "t": "\t", "\\": "\\", ",": ","}


def as_text(value):
    """A text, as it is; of a Word, \\n is a line break, \\t a tab, \\\\ a backslash, and @FILE what a file holds."""
    if not isinstance(value, Word):
        return value
    if value.startswith("@") and not value.startswith("@@"):
        try:
            path = Path(value[1:]).expanduser()
            text = (path.read_bytes() if path.is_file() else once(path)).decode("utf-8-sig")
            why = "holds a null byte" if "\0" in text else ""
        except (OSError, RuntimeError, ValueError) as e:
            why = "is not UTF-8" if isinstance(e, UnicodeDecodeError) else "cannot be read"
        if why:
            raise Unreadable(f"the file {value[1:]!r} {why}; a text that begins with @ is said as @{value}")
        return text
    return re.sub(r"\\([nt,\\])", lambda m: ESCAPES[m[1]], value.removeprefix("@"))


@functools.cache
def once(path):
    """What a pipe holds, such as <(command) of a shell: whoever reads it a second time finds nothing."""
    return path.read_bytes()


def as_place(value):
    """A path, or several with commas between; ~ is the user's own directory."""
    return ",".join(map(os.path.expanduser, value.split(","))) if isinstance(value, str) else value


def as_line(value):
    """A name with words behind it, key=value."""
    if isinstance(value, str) and not value.strip():
        raise Unreadable("an entry is empty")
    return value


LARGEST = 2**63 - 1  # int64
NEAREST, FARTHEST = 1e-30, 1e15  # of numbers from 0: what lies beyond becomes 0, or infinite, in the arithmetic
Whole = Annotated[int, Bounds(0, LARGEST, "of at least 0")]
Size = Annotated[int, Bounds(1, LARGEST, "of at least 1")]
Layers = Annotated[int, Bounds(1, 10**4, "from 1 to 10,000")]
Rank = Annotated[int, Bounds(0, 2**16, "from 0 to 65,536")]
Seed = Annotated[int, Bounds(0, 2**40, "from 0 to 2^40")]  # times what it is multiplied by, it fits into int64
Steps = Annotated[int, Bounds(0, 10**6, "from 0 to a million")]
Amount = Annotated[float, Bounds(0, FARTHEST, "from 0 to 1e15")]
Seconds = Annotated[float, Bounds(0, 10**6, "above 0, up to a million", (0,))]
Minute = Annotated[float, Bounds(0, 60, "from 0 to 60")]
Positive = Annotated[float, Bounds(0, FARTHEST, "from 1e-30 to 1e15", (0,))]
Unit = Annotated[float, Bounds(0, 1, "from 0 to 1")]
Above0 = Annotated[float, Bounds(0, 1, "above 0, up to 1", (0,))]
Below1 = Annotated[float, Bounds(0, 1, "from 0, below 1", (1,))]

Text = Annotated[str, as_text]
Place = Annotated[str, as_place]
Line = Annotated[str, as_line]

YES, NO = ("true", "1", "yes"), ("false", "0", "no")


@functools.cache
def kinds(c):
    """{field: type} of a dataclass, also where its file postpones annotations."""
    hints = get_type_hints(c, include_extras=True)
    return {f.name: hints[f.name] for f in fields(c)}


def check(options):
    """Raise ValueError where a field of a dataclass's instance holds what its type does not: for those, too, who make
    it in Python, or from JSON. Lists become tuples, and whole numbers floats, where the field has those."""
    for name, kind in kinds(type(options)).items():
        value = getattr(options, name)
        try:
            setattr(options, name, parse(value, kind, spoken=False))
        except (ValueError, TypeError, OverflowError):
            raise ValueError(f"{name}={shorten(value)} does not fit: it takes {describe(kind)}") from None


def parse(value, kind, spoken=True):
    """value as the type `kind` has it; ValueError where it is none of its values.

    spoken  it may be a word of the command line, in which "1e4" is a number and "1,2" are two"""
    is_text = spoken and isinstance(value, str)
    if get_origin(kind) is Annotated:
        base, bounds = get_args(kind)
        if not isinstance(bounds, Bounds):
            return parse(bounds(value), base, spoken)
        value = parse(value, base, spoken)
        if bounds.hold(value):
            return value
    elif get_origin(kind) is Literal:
        options = get_args(kind)
        if value not in options and isinstance(value, str | bool) and spoken:  # compile=False is as good as "false"
            value = str(value).lower()
            for name, words in (("true", YES), ("false", NO)):
                value = name if value in words and name in options else value
        if value in options:
            return str(value) if isinstance(value, Word) else value
    elif get_origin(kind) in (Union, types.UnionType):  # X | None
        if value is None or is_text and value.lower() == "none":
            return None
        return parse(value, optional(kind), spoken)
    elif get_origin(kind) is tuple:  # tuple[X, ...]; on the command line 1,2,3
        parts = several(value, get_args(kind)[0]) if is_text else value
        if isinstance(parts, tuple | list):
            return tuple(parse(v, get_args(kind)[0], spoken) for v in parts)
    elif kind is bool:
        if isinstance(value, bool):
            return value
        if is_text and value.lower() in YES + NO:
            return value.lower() in YES
    elif kind is int:
        number = float(value) if is_text and "e" in value.lower() else int(value) if is_text else value  # 1e4 is an int
        if isinstance(number, int | float) and not isinstance(number, bool) and number == int(number):
            return int(number)
    elif kind is float:
        if (is_text or isinstance(value, int | float) and not isinstance(value, bool)) and math.isfinite(float(value)):
            return float(value)
    elif kind is str:
        if isinstance(value, str) and "\0" not in value:
            value.encode()  # UnicodeEncodeError, which is a ValueError, where it holds half a character
            return str(value)
    raise ValueError


def several(value, kind):
    """The parts of a string that says several values of a type: with commas between, in brackets or not.

    Outside the command line a text is one, as it is; there, a comma behind a backslash is the text's own. So it is in a
    line, and within its quotation marks, which stay; and brackets may end a line without beginning it."""
    if kind is Text:
        words = re.findall(r"(?:\\.|[^,])+", value, re.DOTALL) if isinstance(value, Word) else [value]
        return [type(value)(v) for v in words]
    value = value.strip()
    if kind is not Line:
        return [v.strip() for v in value.strip("()[] ").split(",") if v.strip()]
    value = value[1:-1] if value[:1] + value[-1:] in ("()", "[]") else value
    words = re.findall(r"""(?:"[^"]*"|'[^']*'|\\.|[^,])+""", value, re.DOTALL)
    return [v.strip() for v in words if v.strip()]


def optional(kind):
    """X, of X | None."""
    return next(k for k in get_args(kind) if k is not type(None))


def describe(kind):
    """The accepted form of a type, in words; TypeError where it is none of those that a setting can have."""
    if kind is Text:
        return "text, where \\n is a line break and @FILE what a file holds"
    if kind in (Place, Line):
        return "text"
    if get_origin(kind) is Annotated:
        return f"{describe(get_args(kind)[0])} {get_args(kind)[1].words}"
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if get_origin(kind) in (Union, types.UnionType):
        return describe(optional(kind)) + " or none"
    if get_origin(kind) is tuple:
        return f"{describe(get_args(kind)[0])}, or several with commas between"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    if kind not in words:
        raise TypeError(
            f"{kind} is no type of a setting: those are bool, int, float, str, Literal, tuple[…, ...], … | None"
        )
    return words[kind]


def shorten(value):
    """repr, of which a message shows no more than a line."""
    try:
        text = repr(value)
    except ValueError:  # an int of more than 4300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else text[:60] + "…"
