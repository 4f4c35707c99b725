"""Checkpoints on disk or on the hub ⇄ a Transformer and its tokenizer.

A checkpoint of ours is a directory: config.json (architecture, tokenizer, the facts a sampler needs),
model.safetensors, the tokenizer's files, and train_state.pt where a run can be resumed. A released one (LLaDA, Dream,
Qwen, BERT, …) has the hub's layout; families.py knows its names, and save() writes it back in the same layout. Loading
is strict: a tensor too many, too few or of another shape is an error that names it. No code from a checkpoint is run.
A LoRA adapter is a checkpoint, too: it names its base, and both are loaded together.

    python -m nanodlm.merge --checkpoint=out/llada_sft --merge=checkpoints/merged    both as one network
"""

import os
import re
import sys
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

import torch

from model import Config, Transformer
from nanodlm import gguf_files, hub, memory
from nanodlm import tokenizer as tokenizers
from nanodlm.bounds import Below1, Positive, Rank, Whole, check
from nanodlm.families import FAMILIES, by_expert, their_names
from nanodlm.files import ROOT, read_json, remove, to_json
from nanodlm.gated import only_at
from nanodlm.hub import first_line
from nanodlm.int8 import quantize
from nanodlm.lora import add_lora, digest, is_adapter, merge
from nanodlm.weights import empty, load_family, load_weights, quantized, read_tensors, weight_files
from nanodlm.wrapped import is_causal, load_wrapped


@dataclass
class Checkpoint:
    model: Transformer
    tokenizer: tokenizers.Tokenizer
    algorithm: str  # the module that trained it: mdlm, bd3lm, ar, …
    facts: dict  # the rest of config.json: data set, iteration, validation NELBO, …
    path: Path

    @property
    def files(self):
        """Where the tokenizer's files are: with an adapter, its base's."""
        return files_of(self.path)

    @property
    def name(self):
        """What to call it: its directory's name, of a run's best/ or last/ the run's, of a snapshot the hub's; what is
        kept of a GGUF file, as that file."""
        path = Path(os.path.abspath(self.path))
        if (path / gguf_files.STAMP).is_file():
            return re.sub("-[0-9a-f]{8}$", "", path.name)  # which tells where the file lies
        if path.parent.name == "snapshots":  # models--org--name/snapshots/revision
            return path.parent.parent.name.rpartition("--")[2]
        return path.parent.name if path.name in INSIDE else path.name


INSIDE = ("best", "last", "best.old", "last.old")  # a run's directory


def at_hand(path):
    """find() without the hub, or None."""
    for base in (Path(path), ROOT / path):
        inside = [base / name for name in INSIDE]
        for candidate in (base, *inside, Path(f"{base}.old")):
            if (candidate / "config.json").is_file():
                return candidate


def find(path, pickle=False):
    """The checkpoint directory that `path` means: itself, or its best/ or last/, here or in the project; or else the
    snapshot of the hub's `org/name` or `org/name@revision`, downloaded where it is not in the cache yet.

    last.old is what save() leaves if it is killed between its two renames."""
    if here := at_hand(path):
        return here
    if file := gguf_files.one(path):
        return gguf_files.layout(file)
    there = re.fullmatch(r"([\w.-]+)/[\w.-]+(@[\w./-]+)?", str(path))
    if there and not any((base / there[1]).exists() for base in (Path(), ROOT)):
        return download(str(path), pickle)
    hint = "" if "/" in str(path) else "; a name on the hub is org/name, as in openai-community/gpt2"
    sys.exit(f"no checkpoint in {str(path)!r}: it needs a config.json, or a best/ or last/ that has one{hint}")


def download(name, pickle):
    """The directory of a model of the hub; exits where there is none, or it is no model of ours."""
    path = hub.snapshot(name, pickle)
    if not (path / "config.json").is_file():
        sys.exit(f"no checkpoint in {name!r}: the hub's repository has no config.json")
    return path


def files_of(path):
    """The directory that holds a checkpoint's tokenizer: an adapter's base, or the checkpoint itself."""
    facts = read_json(path / "config.json")
    return base_of(path, facts)[0] if "adapter" in facts else path


def tokenizer_of(path):
    """The tokenizer of a checkpoint's directory."""
    path = files_of(path)
    facts = read_json(path / "config.json")
    try:
        return tokenizers.load(facts["tokenizer"] if "model" in facts else {"kind": "hf"}, path)
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        sys.exit(f"{path}/config.json: {e}")


def load(path, device="cpu", dtype=torch.float32, pickle=False, whole=False):
    """Checkpoint from a directory or the hub, in eval mode. Exits with one sentence where the files do not fit.

    dtype   of weights and computation; torch.int8: as in int8.py, of weights that are read in float32
    pickle  also read pytorch_model.bin, where there are no safetensors (nothing in it can run code: weights_only)
    whole   weights that can be trained and written: no quantized ones"""
    if dtype == torch.int8:
        if torch.device(device).type != "cpu":
            sys.exit("dtype=int8 is for CPUs; say --device=cpu, or --dtype=bfloat16")
        found = load(path, device, torch.float32, pickle, whole=True)
        return replace(found, model=quantize(found.model))
    path = find(path, pickle)
    facts = read_json(path / "config.json")
    if "adapter" in facts:
        return load_adapter(path, facts, device, dtype, pickle, whole)
    if architecture(facts, path):
        return load_released(path, facts, device, dtype, pickle, whole)
    try:
        config = facts.pop("model")
        unknown = config.keys() - {f.name for f in fields(Config)}
        if unknown:
            sys.exit(f"{path}/config.json has the unknown model settings {', '.join(sorted(unknown))}")
        config = Config(**config)
        tokenizer = tokenizers.load(facts.pop("tokenizer"), path)
        algorithm = facts.pop("algorithm")
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        sys.exit(f"{path}/config.json cannot be read as a nanoDLM checkpoint: {type(e).__name__}: {e}")
    if config.vocab_size < tokenizer.vocab_size:
        sys.exit(f"{path}: vocab_size={config.vocab_size} is below the tokenizer's {tokenizer.vocab_size}")
    file = path / "model.safetensors"
    memory.fits(config, [file], path / "config.json")
    with empty():
        model = Transformer(config)
    load_weights(model, file, device, dtype)
    return Checkpoint(model.eval(), tokenizer, algorithm, facts, path)


# ------------------------------------------------------------------------------------------------------------------
# released checkpoints


def architecture(content, path):
    """The name of what a released checkpoint's config.json describes; "" where it names none."""
    names = content.get("architectures") or [""]
    if not isinstance(names, list) or not isinstance(names[0], str):
        sys.exit(f"{path}/config.json: architectures={names!r} is no list of names")
    return names[0]


def family_config(path, content, pickle, network):
    """(Config, the files of the weights) of a family's checkpoint, whose config.json has this content; `network` says
    what is otherwise than the architecture's name says."""
    quantized(path, content, True)
    name, files = architecture(content, path), weight_files(path, pickle)
    try:
        config = Config(**FAMILIES[name].config(content) | network)
        if not config.vocab_size:
            raise ValueError("vocab_size=0 is no number of token ids")
    except KeyError as e:
        sys.exit(f"{path}/config.json lacks {e}, which a {name} needs")
    except (ArithmeticError, AttributeError, TypeError, ValueError) as e:
        sys.exit(f"{path}/config.json: {e}")
    memory.fits(config, files, path / "config.json")
    return config, files


def load_released(path, content, device, dtype, pickle, whole):
    """Checkpoint from a directory in the hub's layout, whose config.json has this content."""
    name = architecture(content, path)
    family = None if quantized(path, content, whole) else FAMILIES.get(name)
    try:
        tokenizer = tokenizers.load({"kind": "hf"}, path)
    except ValueError as e:
        sys.exit(str(e))
    parts = path.resolve().parts  # …/models--org--name/snapshots/revision, or …/name
    if parts[-2] == "snapshots":  # where transformers finds code that is not beside the weights
        origin = parts[-3].removeprefix("models--").replace("--", "/", 1)
        code = content.get("auto_map", {})
        there = {k: f"{origin}--{v}" for k, v in code.items() if isinstance(v, str) and "--" not in v}
        content |= {"auto_map": code | there} if code else {}
    facts = {"architecture": name, "hf_config": content, **content.get("nanodlm", {})}
    network = facts.pop("network", {})  # what training or conversion made otherwise than the architecture's name says
    if family is None:
        model, algorithm = load_wrapped(path, content, device, dtype, pickle)
        model.config = replace(model.config, **network)
    else:
        config, files = family_config(path, content, pickle, network)
        with empty():
            model = Transformer(config)
        load_family(model, family, files, device, dtype)
        algorithm = family.algorithm
        facts.setdefault("preset", family.preset)
    algorithm = facts.get("algorithm", algorithm)
    if family and not model.config.causal and "algorithm" not in facts:
        size, said = blocks_of(content, parts[-3 if parts[-2] == "snapshots" else -1])
        if said and algorithm == "bd3lm":
            model.config = replace(model.config, block_size=size or model.config.block_size)
        elif said:
            algorithm, facts["preset"], model.config = "bd3lm", "bd3lm", replace(model.config, block_size=size)
            hub.say(f"{path} is decoded by bd3lm: {said}")
    if algorithm == "diffusion_gemma":  # which has no mask: a hole in a text is an id that no token has
        return Checkpoint(model.eval(), replace(tokenizer, mask_id=model.config.vocab_size), algorithm, facts, path)
    if model.config.causal and (algorithm == "ar" or not model.config.block_size):
        tokenizer = replace(tokenizer, mask_id=None)  # no begin-of-text, though its tokenizer may have a mask
    elif tokenizer.mask_id is None:
        sys.exit(f"{path}: neither config.json nor the tokenizer has a mask token, which diffusion needs")
    elif tokenizer.mask_id in tokenizer.stop_ids:
        sys.exit(f"{path}: the mask, {tokenizer.mask_id}, ends texts, too; give config.json another mask_token_id")
    for what in ("mask_id", "eos_id"):
        if not 0 <= (getattr(tokenizer, what) or 0) < model.config.vocab_size:
            sys.exit(f"{path}: {what} {getattr(tokenizer, what)} is not below vocab_size={model.config.vocab_size}")
    return Checkpoint(model.eval(), tokenizer, algorithm, facts, path)


def blocks_of(content, name):
    """(tokens of a block or 0, how one knows of blocks or "") of a released diffusion model that was not saved here: by
    its config.json, and where that has none, by its name alone, as dLLM's."""
    for key in ("block_size", "block_length", "bd_size"):
        if type(content.get(key)) is int and content[key] > 0:
            return content[key], f"its config.json has {key}={content[key]}"
    if found := re.fullmatch(r".*SDAR.*-b(\d+)", name):  # those of blocks of 4 have no such name
        return int(found[1]), "so its name says, and its config.json has no block_size"
    return 0, "so its name says, and its config.json has no block_size" if "bd3lm" in name.lower() else ""


# ------------------------------------------------------------------------------------------------------------------
# adapters


@dataclass
class Adapter:
    """What an adapter's config.json says of it."""

    base: str  # the checkpoint that it stands beside
    base_digest: str  # of that one's weights
    r: Rank
    alpha: Positive  # its scale is this over the rank
    dropout: Below1 = 0.0  # in front of it
    row: Whole | None = None  # the mask token's, where it is trained, too
    at: Literal["all", "experts", "masks"] = "all"  # beside a mixture's experts, too; at masks alone

    def __post_init__(self):
        check(self)
        if not self.r:
            raise ValueError("r=0 is no rank")


def base_of(path, facts, pickle=False):
    """(directory of the checkpoint that an adapter stands beside, Adapter, settings of the network that it changed)."""
    try:
        network = dict(facts["adapter"].pop("network", {}))
        adapter = Adapter(**facts["adapter"])
    except (AttributeError, TypeError, ValueError) as e:
        sys.exit(f"{path}/config.json: its adapter cannot be read: {e}")
    if Path(adapter.base).parts[:1] == ("checkpoints",) and not at_hand(adapter.base):  # ours, where nothing is trained
        made = "make chat makes it" if "smollm2" in adapter.base else "convert or download it"
        sys.exit(f"{path} is an adapter, and {adapter.base}, which it stands beside, is not here; {made}")
    base = find(adapter.base, pickle)
    if "adapter" in read_json(base / "config.json"):
        sys.exit(f"{path}/config.json: its adapter's base {adapter.base} is an adapter itself; name what that one has")
    return base, adapter, network


def load_adapter(path, facts, device, dtype, pickle, whole):
    """An adapter's checkpoint: its base, with the adapter beside its layers."""
    where, adapter, network = base_of(path, facts, pickle)
    base = load(where, device, dtype, pickle, whole)
    found = digest(base.model)
    if found != adapter.base_digest:
        sys.exit(
            f"{path} is an adapter for another base than what {adapter.base} holds now (its digest is {found}, not "
            f"{adapter.base_digest}); name the right one in {path}/config.json"
        )
    if adapter.row is not None and adapter.row >= base.model.config.vocab_size:
        sys.exit(f"{path}/config.json: its adapter's row={adapter.row} is not one of the base's token ids")
    model = add_lora(base.model, adapter.r, adapter.alpha, adapter.dropout, adapter.row, adapter.at).to(device)
    own = {n: p for n, p in model.named_parameters() if is_adapter(n)}
    with torch.no_grad():
        for name, tensor in read_tensors([path / "adapter_model.safetensors"], {n: [n] for n in own}, own):
            own[name].copy_(tensor)
    model = model if whole else merge(model, low_rank=False)
    model = only_at(model, base.tokenizer.mask_id) if adapter.at == "masks" else model
    try:
        model.config = replace(model.config, **network)
    except (TypeError, ValueError) as e:
        sys.exit(f"{path}/config.json: its adapter's network cannot be read: {e}")
    facts = facts | {"adapter": asdict(adapter) | {"network": network}}
    tokenizer = tokenizers.with_thoughts(base.tokenizer, facts.get("thoughts", base.tokenizer.thoughts))
    return Checkpoint(model.eval(), tokenizer, facts["algorithm"], {**base.facts, **facts}, path)


# ------------------------------------------------------------------------------------------------------------------
# saving


def save(path, weights, config, tokenizer, tokenizer_dir, algorithm, facts, dtype=None, train_state=None):
    """Write a checkpoint directory, whole or not at all: into path.tmp first, then two renames. A released family's
    checkpoint (facts has its "architecture" and "hf_config") is written in the hub's layout, for `transformers`, too.

    weights      {name: tensor}, the network's named parameters; saved as `dtype` if given
    train_state  what torch.save takes, for resuming
    Raises OSError where the disk is full; what stood at `path` is then untouched.
    """
    import safetensors.torch

    path = Path(path)
    tmp, old = path.with_name(path.name + ".tmp"), path.with_name(path.name + ".old")
    remove(tmp)
    try:
        tmp.mkdir(parents=True)
        tensors = {n: p.detach().to("cpu", dtype or p.dtype).contiguous() for n, p in weights.items()}
        ends = None if tokenizer.eos_id is None else list(tokenizer.stop_ids)
        content = {"algorithm": algorithm, "model": asdict(config), "tokenizer": tokenizer.spec, **facts}
        if tokenizer.spec["kind"] == "hf":  # whose own files need not say it
            content |= {"mask_token_id": tokenizer.mask_id, "eos_token_id": ends}
        if "adapter" in facts:
            content = {"algorithm": algorithm, **{k: v for k, v in facts.items() if k not in BASE_FACTS}}
            (tmp / "adapter_model.safetensors").write_bytes(safetensors.torch.save(tensors, {"format": "pt"}))
        elif "architecture" in facts:
            content = save_released(tmp, tensors, config, algorithm, facts)
        else:
            (tmp / "model.safetensors").write_bytes(safetensors.torch.save(tensors, {"format": "pt"}))
            exact = all(t.dtype == weights[n].dtype for n, t in tensors.items())
            if exact and (train_state or {}).get("weights") is weights:  # written once
                train_state = {k: v for k, v in train_state.items() if k != "weights"}
        if "adapter" not in facts:
            tokenizers.save_files(tokenizer.spec, tokenizer_dir, tmp)
        if train_state is not None:
            torch.save(train_state, tmp / "train_state.pt")
        (tmp / "config.json").write_text(to_json(content, indent=1))
        for file in (f for f in tmp.rglob("*") if f.is_file()):  # on disk before it gets its name
            with file.open("rb") as f:
                os.fsync(f.fileno())
    except (OSError, RuntimeError, safetensors.SafetensorError) as e:  # torch.save reports a full disk as RuntimeError
        remove(tmp)
        raise OSError(f"could not save {path}: {e}; what was there before is intact") from e
    if os.path.lexists(path):  # or else a save was killed between its two renames, and old is all there is
        remove(old)
        os.replace(path, old)
    os.replace(tmp, path)
    remove(old)


KEPT = ("architecture", "hf_config", "preset", "converted_from", "adapter")  # what training hands on of the facts
BASE_FACTS = ("architecture", "hf_config")  # of a checkpoint in the hub's layout: what its config.json says anyway


def network_facts(config, usual):
    """The settings that training or conversion may change without changing a weight, where they are not the usual."""
    names = ("causal", "shift", "block_size", "mask_share", "noise_ids", "source")
    return {k: getattr(config, k) for k in names if getattr(config, k) != getattr(usual, k)}


def save_released(directory, tensors, config, algorithm, facts):
    """Write tensors under their family's names, in shards where they are large; returns what config.json will hold."""
    import huggingface_hub

    family = FAMILIES.get(facts["architecture"])
    if family is None:
        theirs = {n.removeprefix("hf."): t for n, t in tensors.items()}
    else:
        theirs, own, tensors = {}, tensors, by_expert(tensors)
        for name, ours in their_names(family, tensors, config.n_layer).items():
            stacked = torch.cat([tensors[n] for n in ours]) if len(ours) > 1 else tensors[ours[0]]
            swap = family.transposed and re.fullmatch(family.transposed, name)
            whole = stacked.T.contiguous() if swap else stacked
            theirs[name] = whole.clone() if ours[0] not in own else whole  # an expert's: no view of all of them
    huggingface_hub.save_torch_state_dict(theirs, directory, max_shard_size="5GB")
    own = {k: v for k, v in facts.items() if k not in BASE_FACTS}
    name = facts["architecture"]
    usual = Config(**family.config(facts["hf_config"])) if family else Config(causal=is_causal(name))
    own["network"] = network_facts(config, usual)
    kind = str(next(iter(theirs.values())).dtype).removeprefix("torch.")
    said = {k: kind for k in ("dtype", "torch_dtype") if k in facts["hf_config"]}
    return {**facts["hf_config"], **said, "nanodlm": {**own, "algorithm": algorithm}}


def load_train_state(path):
    """train_state.pt as a dict of tensors and numbers; nothing in it can run code (weights_only)."""
    file = find(path) / "train_state.pt"
    if not file.is_file():
        sys.exit(f"{file} is missing, so this run cannot be resumed; --init_from={file.parent} starts from its weights")
    from safetensors.torch import load_file

    try:
        state = dict(torch.load(file, map_location="cpu", weights_only=True))
        if "weights" not in state:  # they are the checkpoint's own
            state["weights"] = load_file(file.with_name("model.safetensors"))
        return state
    except Exception as e:
        sys.exit(
            f"{file} is corrupted ({first_line(e)}); its weights may still be good: --init_from={file.parent} starts "
            "from them"
        )
