"""GGUF, the one file that llama.cpp has of a model, written out in the hub's layout, which all else here reads.

    python -m nanodlm.gguf_files FILE.gguf --out=checkpoints/smollm2

Wherever a checkpoint is named, a FILE.gguf may be, or a directory that holds one: what it becomes is then kept in the
user's cache. Its numbers are those that llama.cpp computes with; what was quantized is stored as fp32. Two things are
otherwise in it than on the hub: the rows of Llama's queries and keys lie in pairs, as RoPE's paper has them (arXiv
2104.09864, eq. 34), and the scaled frequencies of Llama 3 are a tensor.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import hashlib
import json
import math
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from model import Config
from nanodlm import configurator, console, hub
from nanodlm.bounds import Place
from nanodlm.families import FAMILIES
from nanodlm.files import ROOT, check_directory, holds, to_json
from nanodlm.gguf_tokenizer import tokenizer_of

ARCHITECTURES = {  # llama.cpp's names of the families known here
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "llada": "LLaDAModelLM",
    "dream": "DreamModel",
}
PAIRED = ("llama", "llada")  # whose queries and keys lie in pairs
STAMP = "gguf.stamp"  # beside what is kept: of which file, by which code
SHARD = 2**31  # bytes of weights that are held at once


def one(path):
    """The GGUF file that a checkpoint's name means, or None: itself, or the only one in that directory."""
    for base in (Path(path), ROOT / path):
        if base.suffix == ".gguf" and base.is_file():
            return base
        found = sorted(base.glob("*.gguf")) if base.is_dir() else []
        if len(found) > 1:
            sys.exit(f"{path} holds {len(found)} GGUF files; name one, such as {found[0]}")
        if found:
            return found[0]
    if str(path).endswith(".gguf"):
        sys.exit(f"there is no file {path}")


def layout(file):
    """The directory, in the user's cache, with what a GGUF file holds in the hub's layout."""
    from filelock import FileLock

    file, at = file.resolve(), file.stat()
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nanodlm"
    directory = home / f"{file.stem}-{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    code = b"".join((ROOT / f"nanodlm/{room}.py").read_bytes() for room in ("gguf_files", "gguf_tokenizer"))
    stamp = f"{at.st_size} {at.st_mtime_ns} {hashlib.sha256(code).hexdigest()}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{directory}.lock"):  # several processes of one run come here at once
            if not holds(directory / STAMP, stamp):
                shutil.rmtree(directory, ignore_errors=True)
                write(file, directory, stamp)
                hub.say(f"{file.name} is kept in the hub's layout in {directory}")
    except OSError as e:
        sys.exit(f"{directory} cannot be written: {e}; XDG_CACHE_HOME says where else")
    return directory


def write(file, directory, stamp=""):
    """Write a GGUF file's model to a directory in the hub's layout, whole or not at all; exits where it cannot be read.
    OSError where it cannot be written."""
    meta, tensors = read(file)
    try:
        content = config_of(meta, tensors)
        core, said, ids = tokenizer_of(meta)
        Config(**FAMILIES[content["architectures"][0]].config(content))
    except KeyError as e:
        sys.exit(f"{file} lacks {e}, which is needed to read it")
    except Exception as e:  # ValueError, but a tokenizer that fits nothing raises nothing more specific
        sys.exit(f"{file}: {hub.first_line(e)}")
    directory = Path(directory).absolute()
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".gguf-") as folder:
        folder = Path(folder) / "whole"
        folder.mkdir()
        write_weights(folder, named(tensors, meta, content))
        core.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(to_json(said, indent=1), encoding="utf-8")
        (folder / "config.json").write_text(to_json(content | ids, indent=1), encoding="utf-8")
        if stamp:
            (folder / STAMP).write_text(stamp, encoding="utf-8")
        os.replace(folder, directory)


def read(file):
    """({key: value}, {name: gguf's tensor}) of a GGUF file, whose numbers stay on disk; exits where it is none, is not
    whole, or its numbers are in a form that cannot be read."""
    try:
        import gguf
    except ImportError:
        sys.exit(f"to read {file} the package gguf is needed: pip install gguf==0.19.0")
    try:
        reader = gguf.GGUFReader(file)
        meta = {key: field.contents() for key, field in reader.fields.items()}
    except Exception as e:  # numpy's, of bytes that are not there, among others
        if unknown := re.search(r"(\d+)\D* is not a valid GGMLQuantizationType", str(e)):
            sys.exit(f"{file} has tensors of an unknown quantization, number {unknown[1]}; take the model as Q8_0")
        sys.exit(f"{file} cannot be read as GGUF ({hub.first_line(e)}); it may be cut off: copy it again")
    known = ["F32", "F16", *(k.name for k in gguf.GGMLQuantizationType if hasattr(gguf.quants, k.name))]
    for t in reader.tensors:
        if not t.n_elements:
            sys.exit(f"{file}: {t.name} holds no numbers; copy it again")
        if t.tensor_type.name not in known:
            sys.exit(
                f"{file}: {t.name} is held as {t.tensor_type.name}, which is not read here, only {', '.join(known)}"
            )
    return meta, {t.name: t for t in reader.tensors}


# ------------------------------------------------------------------------------------------------------------------
# configuration


def value(meta, key, *default):
    """What metadata say under a key; of a list with one value for each layer, that of all. KeyError where they say
    nothing, and there is no default."""
    found = meta.get(key, *default) if default else meta[key]
    return found[0] if isinstance(found, list) and len(set(found)) == 1 else found


def config_of(meta, tensors):
    """config.json, from metadata, and from tensors where these say more. KeyError or ValueError where it cannot be."""
    kind = meta["general.architecture"]
    if kind not in ARCHITECTURES:
        raise ValueError(f"its architecture {kind!r} is not one of those known here: {', '.join(ARCHITECTURES)}")
    if meta.get("general.type", "model") != "model" or meta.get("split.count", 0) > 1:
        raise ValueError(
            "it holds a part of a model; join the parts (llama-gguf-split --merge), adapters into its base"
        )

    def get(key, *default):
        return value(meta, f"{kind}.{key}", *default)

    if get("expert_count", 0):
        raise ValueError("a mixture of experts is not supported")
    tokens, rows = meta.get("tokenizer.ggml.tokens"), int(tensors["token_embd.weight"].shape[1])
    if not tokens:
        raise ValueError("it holds no tokenizer; convert the model with its vocabulary")
    if len(tokens) != rows:
        raise ValueError(f"its tokenizer has {len(tokens)} tokens, its embedding {rows} rows; convert the model again")
    width, heads, layers = get("embedding_length"), get("attention.head_count"), get("block_count")
    tied = "output.weight" not in tensors
    name, context, inner = ARCHITECTURES[kind], get("context_length"), get("feed_forward_length")
    said = {"architectures": [name], "model_type": kind, "vocab_size": rows, "dtype": "float32"}
    if kind == "gpt2":
        said |= {"n_positions": context, "n_layer": layers, "n_head": heads, "n_embd": width, "n_inner": inner}
        eps = get("attention.layer_norm_epsilon")
        return said | {"layer_norm_epsilon": eps, "activation_function": "gelu_new", "tie_word_embeddings": tied}
    size = get("attention.key_length", width // heads)
    if get("rope.dimension_count", size) != size:
        raise ValueError(f"RoPE turns {get('rope.dimension_count')} of {size} channels, which is not supported")
    theta, bias = float(get("rope.freq_base", 10000.0)), "blk.0.attn_q.bias" in tensors
    said |= {"rms_norm_eps": get("attention.layer_norm_rms_epsilon"), "rope_theta": theta}
    kv = get("attention.head_count_kv", heads)
    if kind == "llada":
        said |= {"embedding_size": rows, "max_sequence_length": context, "n_layers": layers, "n_heads": heads}
        said |= {"n_kv_heads": kv, "d_model": width, "mlp_hidden_size": inner, "block_type": "llama"}
        return said | {"weight_tying": tied, "include_qkv_bias": bias}
    factors = tensors["rope_freqs.weight"].data if "rope_freqs.weight" in tensors else None
    factor = get("rope.scaling.factor", get("rope.scale_linear", 1.0))
    scaling = {"rope_type": get("rope.scaling.type", "linear" if factor != 1.0 else "none"), "factor": factor}
    if factors is not None:
        scaling = llama3(torch.tensor(factors), theta, size)
    return said | {
        "model_type": "Dream" if kind == "dream" else kind,
        "max_position_embeddings": context,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "hidden_size": width,
        "intermediate_size": inner,
        "head_dim": size,
        "hidden_act": "silu",
        "attention_bias": bias and kind == "llama",
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
        "rope_scaling": None if scaling["rope_type"] == "none" else scaling,
        "tie_word_embeddings": tied,
    }


def llama3(factors, theta, size):
    """rope_scaling of Llama 3.1 and its successors, by what each frequency is divided by, (size / 2,) fp32."""
    factor, low, high, context = factors.max().item(), 1.0, 4.0, 8192.0  # the last three as in all that were released
    turns = context / (2 * math.pi) * theta ** -(torch.arange(0, size, 2) / size)  # within the old context
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    if factors.shape != turns.shape or not torch.allclose(1 / (keep + (1 - keep) / factor), factors, rtol=1e-4):
        raise ValueError("its scaled frequencies (rope_freqs) are not Llama 3.1's, so they are not supported")
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    return {"rope_type": "llama3", **dict(zip(keys, (factor, low, high, context)))}


# ------------------------------------------------------------------------------------------------------------------
# weights


def named(tensors, meta, content):
    """(their name on the hub, tensor) for every tensor but the frequencies; those without a name there keep their own,
    by which whoever loads them will refuse them."""
    import gguf

    kind, family = meta["general.architecture"], FAMILIES[content["architectures"][0]]
    layers = meta[f"{kind}.block_count"]
    arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    theirs, table = gguf.get_tensor_name_map(arch, layers), {}
    for name in family.names:
        for i in range(layers if "{i}" in name else 1):
            plain = name.replace("{i}", str(i)).removesuffix(".weight")
            table[theirs.get_name(plain)] = plain
    heads = value(meta, f"{kind}.attention.head_count")
    turned = (
        {"attn_q": heads, "attn_k": value(meta, f"{kind}.attention.head_count_kv", heads)} if kind in PAIRED else {}
    )
    for name, t in tensors.items():
        if name == "rope_freqs.weight":
            continue
        half = t.tensor_type.name in ("F16", "F32")
        x = torch.from_numpy((t.data if half else gguf.quants.dequantize(t.data, t.tensor_type)).copy())
        n = turned.get(name.split(".")[-2])
        if n and not len(x) % (2 * n):  # or else whoever loads it will refuse its shape
            x = x.unflatten(0, (n, -1, 2)).transpose(1, 2).flatten(0, 2)  # from i, i + 1 to i, i + half
        stem, _, leaf = name.rpartition(".")
        name = f"{table[stem]}.{leaf}" if stem in table else name
        if family.transposed and re.fullmatch(family.transposed, name):
            x = x.T
        yield name, x.contiguous()


def write_weights(directory, tensors):
    """Write (name, tensor) as one file of safetensors, or as several with their index where they are large."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    where, part, size, files = {}, {}, 0, 0

    def flush():
        try:
            save_file(part, directory / f"model-{files + 1:05d}.safetensors", {"format": "pt"})
        except SafetensorError as e:  # a full disk
            raise OSError(str(e)) from e
        where.update(dict.fromkeys(part, f"model-{files + 1:05d}.safetensors"))
        part.clear()

    for name, x in tensors:
        if part and size + x.nbytes > SHARD:
            flush()
            files, size = files + 1, 0
        part[name], size = x, size + x.nbytes
    flush()
    if files:
        (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    else:
        (directory / "model-00001.safetensors").rename(directory / "model.safetensors")


@dataclass
class Settings:
    out: Place = ""  # where the hub's layout goes


def main(argv):
    source = argv[0] if argv and not argv[0].startswith("-") else ""
    s = configurator.fill(configurator.read(argv[bool(source) :]), Settings, quiet=True)
    file = one(source) if source else None
    if not file or not s.out:
        sys.exit("python -m nanodlm.gguf_files FILE.gguf --out=DIRECTORY")
    check_directory(s.out, "out")
    if Path(s.out).exists():
        sys.exit(f"{s.out} exists already; remove it, or name another directory")
    try:
        write(file, s.out)
    except OSError as e:
        sys.exit(f"{s.out} cannot be written: {e}")
    print(f"wrote {s.out}")


if __name__ == "__main__":
    console.run(main, sys.argv[1:])
