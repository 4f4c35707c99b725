"""Checkpoints on disk or on the hub ⇄ a Transformer and its tokenizer.

A checkpoint of ours is a directory: config.json (architecture, tokenizer, the facts a sampler needs),
model.safetensors, the tokenizer's files, and train_state.pt where a run can be resumed. A released one (LLaDA, Dream,
Qwen, BERT, …) has the hub's layout; families.py knows its names, and save() writes it back in the same layout. Loading
is strict: a tensor too many, too few or of another shape is an error that names it. No code from a checkpoint is run.
A LoRA adapter is a checkpoint, too: it names its base, and both are loaded together.

    python pretrained.py --checkpoint=out/llada_sft --merge=checkpoints/merged    an adapter and its base as one network
"""

import hashlib
import importlib
import json
import os
import re
import shutil
import sys
import zipfile
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

import torch

import configurator
import hub
import tokenizer as tokenizers
from data import common
from families import BERT_IGNORE, FAMILIES, modern, their_names
from model import Config, KVCache, Transformer

ROOT = Path(__file__).resolve().parent


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


def find(path, pickle=False):
    """The checkpoint directory that `path` means: itself, or its best/ or last/, here or in the project; or else the
    snapshot of the hub's `org/name` or `org/name@revision`, downloaded where it is not in the cache yet.

    last.old is what save() leaves if it is killed between its two renames."""
    for base in (Path(path), ROOT / path):
        inside = [base / name for name in ("best", "last", "best.old", "last.old")]
        for candidate in (base, *inside, Path(f"{base}.old")):
            if (candidate / "config.json").is_file():
                return candidate
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


def first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def algorithm(name):
    """The module of that name: a file of this project that has a loss, such as mdlm or ar."""
    here = sorted(p.stem for p in ROOT.glob("*.py") if "\ndef loss(" in p.read_text(encoding="utf-8"))
    if name not in here:
        sys.exit(f"no algorithm {name!r}; the files with a loss are {', '.join(here)}")
    return importlib.import_module(name)


def files_of(path):
    """The directory that holds a checkpoint's tokenizer: an adapter's base, or the checkpoint itself."""
    facts = json.loads((path / "config.json").read_text(encoding="utf-8"))
    return files_of(find(facts["adapter"]["base"])) if "adapter" in facts else path


def tokenizer_of(path):
    """The tokenizer of a checkpoint's directory."""
    path = files_of(path)
    facts = json.loads((path / "config.json").read_text(encoding="utf-8"))
    try:
        return tokenizers.load(facts["tokenizer"] if "model" in facts else {"kind": "hf"}, path)
    except ValueError as e:
        sys.exit(str(e))


def load(path, device="cpu", dtype=torch.float32, pickle=False):
    """Checkpoint from a directory or the hub, in eval mode. Exits with one sentence where the files do not fit.

    pickle  also read pytorch_model.bin, where there are no safetensors (nothing in it can run code: weights_only)"""
    path = find(path, pickle)
    try:
        facts = json.loads((path / "config.json").read_text(encoding="utf-8"))
        if "adapter" in facts:
            return load_adapter(path, facts, device, dtype, pickle)
        if facts.get("architectures"):
            return load_released(path, facts, device, dtype, pickle)
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
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in read_tensors([path], {n: [n] for n in own}, own):
            own[name].copy_(tensor)


# ------------------------------------------------------------------------------------------------------------------
# released checkpoints


def load_released(path, content, device, dtype, pickle):
    """Checkpoint from a directory in the hub's layout, whose config.json has this content."""
    name = content["architectures"][0]
    family = FAMILIES.get(name)
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
        try:
            config = Config(**family.config(content) | network)
        except KeyError as e:
            sys.exit(f"{path}/config.json lacks {e}, which a {name} needs")
        except ValueError as e:
            sys.exit(f"{path}/config.json: {e}")
        with torch.device("meta"):  # no memory, no time: every parameter comes from the files
            model = Transformer(config)
        load_family(model, family, weight_files(path, pickle), device, dtype)
        algorithm = family.algorithm
        facts.setdefault("preset", family.preset)
    algorithm = facts.get("algorithm", algorithm)
    title = parts[-3 if parts[-2] == "snapshots" else -1]
    if algorithm != "ar" and "algorithm" not in facts and "bd3lm" in title:  # only its name says so
        algorithm, facts["preset"] = "bd3lm", "bd3lm"
    if algorithm == "ar":
        tokenizer = replace(tokenizer, mask_id=None)  # no begin-of-text, though its tokenizer may have a mask
    elif tokenizer.mask_id is None:
        sys.exit(f"{path}: neither config.json nor the tokenizer has a mask token, which diffusion needs")
    for what in ("mask_id", "eos_id"):
        if not 0 <= (getattr(tokenizer, what) or 0) < model.config.vocab_size:
            sys.exit(f"{path}: {what} {getattr(tokenizer, what)} is not below vocab_size={model.config.vocab_size}")
    return Checkpoint(model.eval(), tokenizer, algorithm, facts, path)


def weight_files(path, pickle):
    """The files that hold the weights: one, or the shards that an index lists."""
    for name, wanted in (("model.safetensors", True), ("pytorch_model.bin", pickle)):
        index = path / f"{name}.index.json"
        if wanted and index.is_file():
            try:
                return [path / file for file in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
            except (AttributeError, KeyError, TypeError, ValueError) as e:
                sys.exit(f"{index} cannot be read ({type(e).__name__}: {e}); copy the checkpoint again")
        if wanted and (path / name).is_file():
            return [path / name]
    hint = "; --pickle reads its pytorch_model.bin" if [*path.glob("pytorch_model*.bin")] and not pickle else ""
    sys.exit(f"{path} has no model.safetensors{hint}")


def read_tensors(files, table, own, family=None):
    """(name, tensor) for every tensor of `table` {their name: our names}, one at a time, once it is sure from the
    files' headers that all are there, of the right shape, and no other."""
    import safetensors

    where, shapes, pickled = {}, {}, {}
    for file in files:
        try:
            if file.suffix == ".bin":
                new = zipfile.is_zipfile(file)  # before torch 1.6 it was none
                pickled[file] = torch.load(file, map_location="cpu", weights_only=True, mmap=new)
                found = {n: tuple(t.shape) for n, t in pickled[file].items()}
            else:
                with safetensors.safe_open(file, "pt") as f:
                    found = {n: tuple(f.get_slice(n).get_shape()) for n in f.keys()}
        except Exception as e:
            reason = str(e).splitlines()[0] if str(e) else type(e).__name__
            sys.exit(f"{file} cannot be read ({reason}); copy the checkpoint again, or use the one before it")
        for name, shape in found.items():
            ours = modern(name, family, table) if family else name
            where[ours], shapes[ours] = (file, name), shape

    def shape_of(theirs):
        parts = [own[n].shape for n in table[theirs]]
        stacked = (sum(p[0] for p in parts), *parts[0][1:])
        return stacked[::-1] if family and family.transposed and re.fullmatch(family.transposed, theirs) else stacked

    twin = {} if family is None else {n: t for n, t in tied_names(family, own).items() if n in shapes}
    wrong = [f"{n} is missing" for n in table if n not in where]
    wrong += [
        f"{n} is not part of this architecture"
        for n in where
        if n not in table and n not in twin and not (family and re.fullmatch(family.ignore, n))
    ]
    wrong += [
        f"{n} has shape {shapes[n]}, config.json says {tuple(shape_of(n))}"
        for n in table
        if n in shapes and shapes[n] != tuple(shape_of(n))
    ]
    if wrong:
        refuse(files[0].parent, wrong)

    def get(name):
        file, key = where[name]
        if file in pickled:
            return pickled[file][key]
        with safetensors.safe_open(file, "pt") as f:
            return f.get_tensor(key)

    for name, other in twin.items():
        if not torch.equal(get(name), get(other)):
            sys.exit(
                f"config.json says that the output head is tied, but {name} and {other} differ in {files[0].parent}"
            )
    for name in table:
        yield name, get(name)


def refuse(path, wrong):
    more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
    sys.exit(f"{path} does not fit its config.json: {'; '.join(wrong[:4])}{more}")


def tied_names(family, own):
    """{their name of the output head: of the embedding}, where the network has only the latter."""
    if "head_weight" in own:
        return {}
    theirs = {ours: name for name, ours in family.names.items() if isinstance(ours, str)}
    return {theirs["head_weight"]: theirs["embed"] + ".weight"}


def load_family(model, family, files, device, dtype, but=()):
    """Give a network on the meta device its parameters, one tensor at a time, straight to `device` and `dtype`; but not
    those whose names begin with one of `but`, which stay as they are, and must not be in the files."""
    own = {n: p for n, p in model.named_parameters() if not n.startswith(tuple(but))}
    table = their_names(family, own, model.config.n_layer)
    for name, tensor in read_tensors(files, table, own, family):
        if family.transposed and re.fullmatch(family.transposed, name):
            tensor = tensor.T
        parts = tensor.split([own[n].shape[0] for n in table[name]])
        for ours, part in zip(table[name], parts):
            module, _, leaf = ours.rpartition(".")
            part = part.to(device, dtype, copy=True).contiguous()
            setattr(model.get_submodule(module), leaf, torch.nn.Parameter(part))


class Wrapped(torch.nn.Module):
    """Any other masked or causal language model of `transformers`, with Transformer's interface. Its cache holds the
    tokens instead of their keys and values: always exact, but everything is computed anew. A causal one that was
    converted (config.causal is false) is told by its mask that it may look ahead."""

    def __init__(self, hf, causal):
        super().__init__()
        self.hf, self.decoder = hf, causal
        length = getattr(hf.config, "max_position_embeddings", 0) or 2048
        self.first = 0  # what the first position is called: padding_idx + 1 among RoBERTa's descendants
        for name, table in hf.named_modules():
            if name.endswith("position_embeddings") and getattr(table, "padding_idx", None) is not None:
                self.first = table.padding_idx + 1
        length -= self.first
        self.config = Config(vocab_size=hf.get_output_embeddings().weight.shape[0], seq_len=length, causal=causal)

    def hidden(self, ids, mask=None, positions=None, cache=None, rows=None):
        B, T = ids.shape
        if mask is not None and (not torch.is_tensor(mask) or cache is not None and mask.dim() != 2):
            raise ValueError("this model runs through transformers, which has no attention by blocks; use mdlm or ar")
        if cache is None:
            order = {} if positions is None else {"position_ids": positions.clamp(min=0) + self.first}
            logits = self.hf(input_ids=ids, attention_mask=self.attention_mask(mask, ids), **order).logits
        else:
            positions = cache.next_positions(T) if positions is None else positions
            slots = cache.reserve(positions, mask)
            tokens = cache.write(0, slots, *[ids[:, None, :, None]] * 2)[0][:, 0, :, 0]
            filled = cache.mine(cache.filled)[:, cache.visible]
            logits = self.hf(input_ids=tokens, attention_mask=self.attention_mask(filled, tokens)).logits
            at = (positions - int(self.config.shift)).clamp(0, cache.size - 1)
            logits = logits.gather(1, at[:, :, None].expand(-1, -1, logits.shape[2]))
        if self.config.shift and cache is None:
            logits = torch.cat([logits[:, :1], logits[:, :-1]], 1)
        return logits if rows is None else logits.flatten(0, 1)[rows.flatten()]

    def attention_mask(self, mask, ids):
        """transformers' form of a mask: 2-D where it is one of real tokens, else 4-D, 0 or the least number."""
        ahead = self.decoder and not self.config.causal
        if not ahead and (mask is None or mask.dim() == 2):
            return None if mask is None else mask.long()
        if mask is None or mask.dim() == 2:
            mask = (torch.ones_like(ids, dtype=torch.bool) if mask is None else mask)[:, None].expand(
                -1, ids.shape[1], -1
            )
        mask = (mask[:, None] if mask.dim() == 3 else mask).expand(len(ids), -1, -1, -1)
        dtype = self.hf.dtype
        return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)

    def head(self, x):
        return x

    def compiled(self):
        return self.hidden

    def forward(self, *args, **kwargs):
        return self.hidden(*args, **kwargs)

    def cache(self, batch, size, compiled=False):
        one = Config(n_layer=1, n_head=1, n_embd=2, head_dim=1, position="none")
        return KVCache(one, batch, min(size, self.config.seq_len), self.hf.device, torch.int64)

    def num_params(self):
        return sum(p.numel() for p in self.parameters())


def is_causal(name):
    return "ForCausalLM" in name or "LMHead" in name


def load_wrapped(path, content, device, dtype, pickle):
    """(Wrapped, algorithm) for an architecture that families.py does not have."""
    import transformers

    name = content["architectures"][0]
    causal = is_causal(name)
    auto = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForMaskedLM
    if not causal and "MaskedLM" not in name:
        sys.exit(f"{path}: {name} is no masked or causal language model; known by name are {', '.join(FAMILIES)}")
    try:
        hf, said = auto.from_pretrained(
            path,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=None if pickle else True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
        )
    except Exception as e:
        sys.exit(f"{path}: {name} is unknown here, and transformers cannot load it: {first_line(e)}")
    wrong = [f"{n} is missing" for n in sorted(said["missing_keys"])]
    wrong += [f"{n} has shape {tuple(a)}, config.json says {tuple(b)}" for n, a, b in sorted(said["mismatched_keys"])]
    known = rf"{BERT_IGNORE}|.*rotary_emb\.inv_freq"
    wrong += [
        f"{n} is not part of this architecture" for n in sorted(said["unexpected_keys"]) if not re.fullmatch(known, n)
    ]
    if wrong:
        refuse(path, wrong)
    print(f"{name} runs through transformers: slower, without a cache of keys and values")
    return Wrapped(hf.to(device), causal), "ar" if causal else "mdlm"


# ------------------------------------------------------------------------------------------------------------------
# adapters


def add_lora(model, r, alpha, dropout=0.0):
    """Put low-rank adapters (LoRA, arXiv 2106.09685) beside every linear layer of the blocks; peft freezes the rest."""
    import peft

    blocks = model.hf.base_model if isinstance(model, Wrapped) else model.blocks
    inside = {m for m in blocks.modules() if isinstance(m, torch.nn.Linear)}
    targets = [n for n, m in model.named_modules() if m in inside or type(m).__name__ == "Conv1D"]
    dtype = next(model.parameters()).dtype
    config = peft.LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets)
    peft.inject_adapter_in_model(config, model)  # keeps the class, and so hidden(), head() and cache()
    for name, p in model.named_parameters():
        if ".lora_" in name and dtype != torch.float64:
            p.data = p.data.float()  # small, and trained: not in the base's bfloat16
    return model


def digest(model, adapters=False):
    """Tells one base from another: a hash of some numbers of every tensor, as bfloat16, whatever they are held in; of
    those of adapters, too, where that is asked for."""
    found = hashlib.sha256()
    for name, p in sorted(model.named_parameters()):
        if adapters or ".lora_" not in name:
            some = p.detach().flatten()[:64].to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes()
            found.update(f"{name.replace('.base_layer', '')} {tuple(p.shape)}".encode() + some)
    return found.hexdigest()[:16]


def load_adapter(path, facts, device, dtype, pickle):
    """An adapter's checkpoint: its base, with the adapter beside its layers."""
    adapter = facts["adapter"]
    base = load(adapter["base"], device, dtype, pickle)
    found = digest(base.model)
    if found != adapter["base_digest"]:
        sys.exit(
            f"{path} is an adapter for another base than what {adapter['base']} holds now (its digest is {found}, not "
            f"{adapter['base_digest']}); name the right one in {path}/config.json"
        )
    model = add_lora(base.model, adapter["r"], adapter["alpha"], adapter.get("dropout", 0.0)).to(device)
    own = {n: p for n, p in model.named_parameters() if ".lora_" in n}
    with torch.no_grad():
        for name, tensor in read_tensors([path / "adapter_model.safetensors"], {n: [n] for n in own}, own):
            own[name].copy_(tensor)
    model.config = replace(model.config, **adapter["network"])
    return Checkpoint(model.eval(), base.tokenizer, facts["algorithm"], {**base.facts, **facts}, path)


def merge(model):
    """Add the adapters to the weights they stand beside, and take them away."""
    for name, module in list(model.named_modules()):
        if hasattr(module, "base_layer"):
            with torch.no_grad():
                module.merge()
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, module.base_layer)
    return model.requires_grad_(True)


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
    shutil.rmtree(tmp, ignore_errors=True)
    try:
        tmp.mkdir(parents=True)
        tensors = {n: p.detach().to("cpu", dtype or p.dtype).contiguous() for n, p in weights.items()}
        content = {"algorithm": algorithm, "model": asdict(config), "tokenizer": tokenizer.spec, **facts}
        if "adapter" in facts:
            content = {"algorithm": algorithm, **{k: v for k, v in facts.items() if k not in BASE_FACTS}}
            (tmp / "adapter_model.safetensors").write_bytes(safetensors.torch.save(tensors, {"format": "pt"}))
        elif "architecture" in facts:
            content = save_released(tmp, tensors, config, algorithm, facts)
        else:
            (tmp / "model.safetensors").write_bytes(safetensors.torch.save(tensors, {"format": "pt"}))
        if "adapter" not in facts:
            tokenizers.save_files(tokenizer.spec, tokenizer_dir, tmp)
        if train_state is not None:
            torch.save(train_state, tmp / "train_state.pt")
        (tmp / "config.json").write_text(common.to_json(content, indent=1))
        for file in tmp.iterdir():  # on disk before it gets its name
            with file.open("rb") as f:
                os.fsync(f.fileno())
    except (OSError, RuntimeError, safetensors.SafetensorError) as e:  # torch.save reports a full disk as RuntimeError
        shutil.rmtree(tmp, ignore_errors=True)
        raise OSError(f"could not save {path}: {e}; what was there before is intact") from e
    if path.exists():  # or else a save was killed between its two renames, and old is all there is
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, old)
    os.replace(tmp, path)
    shutil.rmtree(old, ignore_errors=True)


KEPT = ("architecture", "hf_config", "preset", "converted_from", "adapter")  # what training hands on of the facts
BASE_FACTS = ("architecture", "hf_config")  # of a checkpoint in the hub's layout: what its config.json says anyway


def network_facts(config, usual):
    """The settings that training or conversion may change without changing a weight, where they are not the usual."""
    return {k: getattr(config, k) for k in ("causal", "shift", "block_size") if getattr(config, k) != getattr(usual, k)}


def save_released(directory, tensors, config, algorithm, facts):
    """Write tensors under their family's names, in shards where they are large; returns what config.json will hold."""
    import huggingface_hub

    family = FAMILIES.get(facts["architecture"])
    if family is None:
        theirs = {n.removeprefix("hf."): t for n, t in tensors.items()}
    else:
        theirs = {}
        for name, ours in their_names(family, tensors, config.n_layer).items():
            stacked = torch.cat([tensors[n] for n in ours]) if len(ours) > 1 else tensors[ours[0]]
            swap = family.transposed and re.fullmatch(family.transposed, name)
            theirs[name] = stacked.T.contiguous() if swap else stacked
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
    try:
        return dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as e:
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        sys.exit(
            f"{file} is corrupted ({reason}); its weights may still be good: --init_from={file.parent} starts from them"
        )


# ------------------------------------------------------------------------------------------------------------------
# the command line: merging


@dataclass
class Settings:
    checkpoint: str = ""  # the adapter's directory
    merge: str = ""  # where the merged checkpoint goes
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the merged weights


def main(argv):
    s = configurator.fill(configurator.read(argv), Settings, quiet=True)
    if not s.checkpoint or not s.merge:
        sys.exit("python pretrained.py --checkpoint=ADAPTER --merge=DIRECTORY")
    checkpoint = load(s.checkpoint)
    if "adapter" not in checkpoint.facts:
        sys.exit(f"{s.checkpoint} is no adapter, so there is nothing to merge")
    if Path(s.merge).exists():
        sys.exit(f"{s.merge} exists already; remove it, or name another directory")
    facts = {k: v for k, v in checkpoint.facts.items() if k != "adapter"}
    model, tokenizer = merge(checkpoint.model), checkpoint.tokenizer
    weights, dtype = dict(model.named_parameters()), getattr(torch, s.dtype)
    try:
        save(s.merge, weights, model.config, tokenizer, checkpoint.files, checkpoint.algorithm, facts, dtype)
    except OSError as e:
        sys.exit(str(e))
    print(f"wrote {s.merge}: {model.num_params():,} parameters, {s.dtype}")


if __name__ == "__main__":
    main(sys.argv[1:])
