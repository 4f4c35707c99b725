"""Checkpoints on disk ⇄ a Transformer and its tokenizer.

A checkpoint is a directory: config.json (architecture, tokenizer, the facts a sampler needs), model.safetensors, the
tokenizer's files, and train_state.pt where a run can be resumed. Loading is strict: a tensor too many, too few or of
another shape is an error that names it.
"""

import importlib
import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

import tokenizer as tokenizers
from model import Config, Transformer

ROOT = Path(__file__).resolve().parent


@dataclass
class Checkpoint:
    model: Transformer
    tokenizer: tokenizers.Tokenizer
    algorithm: str  # the module that trained it: mdlm, bd3lm, ar, …
    facts: dict  # the rest of config.json: data set, iteration, validation NELBO, …
    path: Path


def find(path):
    """The checkpoint directory that `path` means: itself, or its best/ or last/, here or in the project.

    last.old is what save() leaves if it is killed between its two renames."""
    for base in (Path(path), ROOT / path):
        inside = [base / name for name in ("best", "last", "best.old", "last.old")]
        for candidate in (base, *inside, Path(f"{base}.old")):
            if (candidate / "config.json").is_file():
                return candidate
    sys.exit(f"no checkpoint in {str(path)!r}: it needs a config.json, or a best/ or last/ that has one")


def algorithm(name):
    """The module of that name: a file of this project that has a loss, such as mdlm or ar."""
    here = sorted(p.stem for p in ROOT.glob("*.py") if "\ndef loss(" in p.read_text(encoding="utf-8"))
    if name not in here:
        sys.exit(f"no algorithm {name!r}; the files with a loss are {', '.join(here)}")
    return importlib.import_module(name)


def load(path, device="cpu", dtype=torch.float32):
    """Checkpoint from a directory, in eval mode. Exits with one sentence where the files do not fit."""
    path = find(path)
    try:
        facts = json.loads((path / "config.json").read_text())
        config = facts.pop("model")
        unknown = config.keys() - {f.name for f in fields(Config)}
        if unknown:
            sys.exit(f"{path}/config.json has the unknown model settings {', '.join(sorted(unknown))}")
        model = Transformer(Config(**config))
        tokenizer = tokenizers.load(facts.pop("tokenizer"), path)
        algorithm = facts.pop("algorithm")
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        sys.exit(f"{path}/config.json cannot be read as a nanoDLM checkpoint: {type(e).__name__}: {e}")
    if config["vocab_size"] < tokenizer.vocab_size:
        sys.exit(f"{path}: vocab_size={config['vocab_size']} is below the tokenizer's {tokenizer.vocab_size}")
    load_weights(model, path / "model.safetensors")
    return Checkpoint(model.to(device, dtype).eval(), tokenizer, algorithm, facts, path)


def load_weights(model, path):
    """Copy a safetensors file into the model, strictly; any floating dtype is converted to the model's."""
    import safetensors.torch

    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as e:
        sys.exit(f"{path} cannot be read ({e}); copy the checkpoint again, or use the one before it")
    own = dict(model.named_parameters())
    wrong = [f"{n} is missing" for n in own if n not in tensors]
    wrong += [f"{n} is not part of this architecture" for n in tensors if n not in own]
    wrong += [
        f"{n} has shape {tuple(tensors[n].shape)}, config.json says {tuple(p.shape)}"
        for n, p in own.items()
        if n in tensors and tensors[n].shape != p.shape
    ]
    if wrong:
        more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        sys.exit(f"{path} does not fit its config.json: {'; '.join(wrong[:4])}{more}")
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(tensors[name])


def save(path, weights, config, tokenizer, tokenizer_dir, algorithm, facts, dtype=None, train_state=None):
    """Write a checkpoint directory, whole or not at all: into path.tmp first, then two renames.

    weights      {name: tensor}, the network's named parameters; saved as `dtype` if given
    train_state  what torch.save takes, for resuming
    Raises OSError where the disk is full; what stood at `path` is then untouched.
    """
    import safetensors.torch

    path = Path(path)
    tmp, old = path.with_name(path.name + ".tmp"), path.with_name(path.name + ".old")
    shutil.rmtree(tmp, ignore_errors=True)
    try:
        tmp.mkdir(parents=True)
        tensors = {n: p.detach().to("cpu", dtype or p.dtype).contiguous() for n, p in weights.items()}
        (tmp / "model.safetensors").write_bytes(safetensors.torch.save(tensors, {"format": "pt"}))
        tokenizers.save_files(tokenizer.spec, tokenizer_dir, tmp)
        if train_state is not None:
            torch.save(train_state, tmp / "train_state.pt")
        content = {"algorithm": algorithm, "model": asdict(config), "tokenizer": tokenizer.spec, **facts}
        (tmp / "config.json").write_text(json.dumps(content, indent=1))
        for file in tmp.iterdir():  # on disk before it gets its name
            with file.open("rb") as f:
                os.fsync(f.fileno())
    except (OSError, RuntimeError) as e:  # torch.save reports a full disk as a RuntimeError
        shutil.rmtree(tmp, ignore_errors=True)
        raise OSError(f"could not save {path}: {e}; what was there before is intact") from e
    if path.exists():  # or else a save was killed between its two renames, and old is all there is
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, old)
    os.replace(tmp, path)
    shutil.rmtree(old, ignore_errors=True)


def load_train_state(path):
    """train_state.pt as a dict of tensors and numbers; nothing in it can run code (weights_only)."""
    file = find(path) / "train_state.pt"
    if not file.is_file():
        sys.exit(f"{file} is missing, so this run cannot be resumed; --init_from={file.parent} starts from its weights")
    try:
        return dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as e:
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        sys.exit(
            f"{file} is corrupted ({reason}); its weights may still be good: --init_from={file.parent} starts from them"
        )
