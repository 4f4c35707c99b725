"""Files that are whole or not there, strict JSON, and the project's own Python files."""

import contextlib
import errno
import importlib.util
import json
import math
import os
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # of the project


def replace_file(path, content):
    """Write beside the file, then rename: a reader sees the old file or the new one, never half of one. OSError where
    the disk is full or the place is closed; what was there is then untouched."""
    part = path.with_name(path.name + ".part")
    if os.path.exists(path) and not os.path.isfile(path):  # an administrator could replace /dev/null
        raise OSError(errno.EINVAL, "no file that could be replaced", str(path))
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as e:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        e.filename, e.filename2 = str(path), None  # as the caller knows it
        raise


def remove(path):
    """Remove a file, a directory with all that is in it, or a link and nothing that it leads to; as far as that can
    be done."""
    if path.is_symlink() or path.is_file():  # to which rmtree does nothing
        with contextlib.suppress(OSError):
            path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def check_file(path, key, kinds=(), parents=False):
    """Exit where a file cannot be written, before the work whose result it will hold. An empty path is none.

    key      the setting that names it
    kinds    the endings that it may have
    parents  whether the directories in front of it will be made"""
    if not path:
        return
    what, place = f"{key}={path}", Path(path).absolute()
    if kinds and place.suffix.lower() not in kinds:
        sys.exit(f"{what} must end in {' or '.join(kinds)}")
    if os.path.isdir(place) or os.path.exists(place) and not os.path.isfile(place):  # /dev/full, a pipe
        sys.exit(
            f"{what} is {'a directory' if os.path.isdir(place) else 'no file that could be replaced'}; name a file"
        )
    if not parents and not os.path.lexists(place.parent):
        sys.exit(f"{what}: there is no directory {Path(path).parent}")
    try_in(nearest(place.parent), place.name + ".part", what)


def check_directory(path, key):
    """Exit where a directory cannot be written to, or made."""
    place = Path(path).absolute()
    there = nearest(place)
    try_in(there, "part" if there == place else place.relative_to(there).parts[0], f"{key}={path}")


def nearest(place):
    """The deepest part of a path that is there."""
    return next(p for p in (place, *place.parents) if os.path.lexists(p))


def try_in(directory, name, what):
    """Exit where no file of that name can be made: only trying tells, as an administrator may do all but that."""
    if not directory.is_dir():
        sys.exit(f"{what} cannot be written: {directory} is no directory")
    try:
        with tempfile.TemporaryDirectory(dir=directory, prefix=".") as own:
            (Path(own) / name).touch()
    except (OSError, ValueError) as e:
        sys.exit(f"{what} cannot be written: {getattr(e, 'strerror', None) or e}")


def read_json(path):
    """The object that a JSON file holds, a dict; exits in one sentence where it holds none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as e:
        sys.exit(f"{path} cannot be read: {e}")
    except RecursionError:
        sys.exit(f"{path} cannot be read: it is nested too deeply")
    if not isinstance(found, dict):
        sys.exit(f"{path} cannot be read: it holds a {type(found).__name__}, not keys and values")
    return found


def to_json(value, **keys):
    """Strict JSON: what is no number, or infinite, becomes null, which every reader understands."""

    def strict(x):
        if isinstance(x, dict):
            return {k: strict(v) for k, v in x.items()}
        if isinstance(x, list | tuple):
            return [strict(v) for v in x]
        return None if isinstance(x, float) and not math.isfinite(x) else x

    return json.dumps(strict(value), allow_nan=False, **keys)


def holds(path, line):
    """Whether a line of a file begins so; "": whether it can be read."""
    try:
        return any(text.startswith(line.encode()) for text in [b"", *path.read_bytes().splitlines()])
    except OSError:
        return False


def holding(directory, pattern, line=""):
    """The files of a directory in which a line begins so. Not what an editor or another system leaves beside them, as
    .#mine.py or ._mine.py."""
    found = sorted(p for p in Path(directory).glob(pattern) if holds(p, line))
    return [p for p in found if not any(part.startswith(".") for part in p.relative_to(directory).parts)]


def load_module(name, path):
    """The module in the file `path`, wherever Python would look for one of that name; exits with the line that is at
    fault where it cannot be imported."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)  # for dataclasses, which look there
        try:
            spec.loader.exec_module(sys.modules[name])
        except Exception as e:
            del sys.modules[name]
            at = [f.lineno for f in traceback.extract_tb(e.__traceback__) if Path(f.filename) == path]
            file, line = (e.filename, e.lineno) if isinstance(e, SyntaxError) else (path, at[-1] if at else 1)
            sys.exit(f"{file}, line {line}: {type(e).__name__}: {e}")
    module = sys.modules[name]
    found = getattr(module, "__file__", None) or "a module of Python's own"
    if not Path(found).exists() or not path.samefile(found):
        sys.exit(f"{path} has the name of {found}, which is loaded already; give it another one")
    return module
