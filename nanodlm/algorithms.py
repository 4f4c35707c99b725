"""Algorithms by name: a file at the top floor that has a loss; and what decodes and measures for it."""

import importlib
import sys

from nanodlm.files import ROOT


def load(name):
    """The module of that name: a file of this project that has a loss, such as mdlm or ar."""
    here = sorted(p.stem for p in ROOT.glob("*.py") if "\ndef loss(" in p.read_text(encoding="utf-8"))
    if name not in here:
        sys.exit(f"no algorithm {name!r}; the files with a loss are {', '.join(here)}")
    return importlib.import_module(name)


def engine(algorithm, plain=False):
    """What decodes and measures for an algorithm, a module of the top floor: nanodlm/fast_<name>.py where there is one,
    or (plain, and algorithms of your own) the file itself."""
    fast = ROOT / "nanodlm" / f"fast_{algorithm.__name__}.py"
    return algorithm if plain or not fast.is_file() else importlib.import_module(f"nanodlm.{fast.stem}")
