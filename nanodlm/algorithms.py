"""Algorithms by name: a file at the top floor that has a loss; and what decodes and measures for it."""

import importlib
import sys
from dataclasses import fields, is_dataclass

from nanodlm import checkpoint as ckpt
from nanodlm.bounds import YES
from nanodlm.files import ROOT, holding, holds, load_module, read_json

PARTS = ("CAUSAL", "loss", "nelbo", "log_likelihood", "generate", "LossOptions", "LikelihoodOptions", "SampleOptions")


def load(name):
    """The module of that name: a file of this project that has a loss, such as mdlm or ar; or a room (nanodlm) of a
    released model that has one of its own."""
    there = [(ROOT / f"{name}.py", name), (ROOT / "nanodlm" / f"{name}.py", f"nanodlm.{name}")]
    there = [pair for pair in there if str(name).isidentifier() and holds(pair[0], "def loss(")]
    if not there:
        here = ", ".join(p.stem for p in holding(ROOT, "*.py", "def loss("))
        sys.exit(f"no algorithm {name!r}; the files with a loss are {here}")
    path, whole_name = there[0]
    module = load_module(whole_name, path)
    if lacks := [part for part in PARTS if not hasattr(module, part)]:
        sys.exit(f"{path.name} has no {' and no '.join(lacks)}: an algorithm has {', '.join(PARTS)}")
    for part in PARTS[-3:]:
        if not is_dataclass(getattr(module, part)):
            sys.exit(f"{path.name}: {part} must be a dataclass, whose fields are options")
    if lacks := {"max_new_tokens", "temperature", "seed"} - {f.name for f in fields(module.SampleOptions)}:
        sys.exit(f"{path.name}: SampleOptions has no {' and no '.join(sorted(lacks))}")
    return module


def named(values):
    """What decodes and measures by the values of a command line, which name an algorithm, or checkpoints that are at
    hand; or else ours, which have every option."""
    said = values.get("algorithm", values.get("checkpoint", ((),)))[0]
    names = said if isinstance(said, tuple) else str(said).split(",")
    if "algorithm" not in values:
        found = [read_json(path / "config.json") for name in names if (path := ckpt.at_hand(name))]
        found = [own if isinstance(own := facts.get("nanodlm"), dict) else facts for facts in found]
        names = [facts["algorithm"] for facts in found if "algorithm" in facts]
        names += ["diffusion_gemma" for facts in found if facts.get("model_type") == "diffusion_gemma"]
    verify = str(values.get("verify", ("",))[0]).lower() in YES
    return [engine(load(name), verify=verify) for name in names or ("mdlm", "bd3lm")]


def engine(algorithm, plain=False, verify=False):
    """What decodes and measures for an algorithm, a module of the top floor: nanodlm/fast_<name>.py where there is one,
    or (plain, and algorithms of your own) the file itself; or what decodes alone, by drafts that are verified."""
    if verify:
        return importlib.import_module("nanodlm.introspect")
    fast = ROOT / "nanodlm" / f"fast_{algorithm.__name__}.py"
    return algorithm if plain or not fast.is_file() else importlib.import_module(f"nanodlm.{fast.stem}")
