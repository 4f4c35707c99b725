"""Weights in files ⇄ a network's parameters. Strict: a tensor too many, too few or of another shape is an error that
names it."""

import contextlib
import importlib.util
import json
import re
import sys
import zipfile

import torch
from torch.overrides import TorchFunctionMode

from nanodlm.families import by_expert, modern, their_names
from nanodlm.hub import first_line


@contextlib.contextmanager
def empty():
    """Networks made within have no numbers, as every parameter comes from files: no memory, no time."""
    with torch.device("meta"), Undrawn():
        yield


class Undrawn(TorchFunctionMode):
    """No random numbers: on the meta device torch would draw them through its compiler, a second to import."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function.__name__ in ("normal_", "kaiming_uniform_", "uniform_"):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs or {})


def load_weights(model, path, device, dtype):
    """Give an empty() network the parameters that a safetensors file has, strictly, in `dtype`."""
    own = dict(model.named_parameters())
    for name, tensor in read_tensors([path], {n: [n] for n in own}, own):
        put(model, name, tensor, device, dtype)


def put(model, name, tensor, device, dtype, copy=True):
    """Make a tensor, or a part of one, the parameter of that name."""
    module, _, leaf = name.rpartition(".")
    if leaf.isdigit():  # one expert's part of the matrices of all, which are made when the first one comes
        where, _, leaf = module.rpartition(".")
        whole = getattr(model.get_submodule(where), leaf)
        if whole.is_meta:
            put(model, module, torch.empty(whole.shape, dtype=dtype, device=device), device, dtype, copy=False)
        with torch.no_grad():
            getattr(model.get_submodule(where), leaf)[int(name.rpartition(".")[2])].copy_(tensor)
        return
    tensor = tensor.to(device, dtype, copy=copy).contiguous()
    setattr(model.get_submodule(module), leaf, torch.nn.Parameter(tensor))


def quantized(path, content, whole):
    """Whether the weights of a released checkpoint are held as codes of fewer bits, by its config.json. Exits where
    they cannot be used; `whole`: as weights that can be trained and written."""
    said = content.get("quantization_config") or content.get("compression_config")
    if not said:
        return False
    method = str(said.get("quant_method") if isinstance(said, dict) else said)
    if whole or method not in ("bitsandbytes", "torchao"):
        known = method in ("bitsandbytes", "torchao")
        what = "cannot be trained, converted or quantized anew" if known else "are not read here"
        sys.exit(f"{path}: its weights are quantized ({method}) and {what}; take the model in bfloat16 or float32")
    if importlib.util.find_spec(method) is None:
        sys.exit(f"{path}: its weights are quantized by {method}, which is not installed: pip install {method}")
    return True


def weight_files(path, pickle):
    """The files that hold the weights: one, or the shards that an index lists."""
    for name, wanted in (("model.safetensors", True), ("pytorch_model.bin", pickle)):
        index = path / f"{name}.index.json"
        if wanted and index.is_file():
            try:
                if files := [path / f for f in sorted(set(json.loads(index.read_text())["weight_map"].values()))]:
                    return files
                raise ValueError("it lists no file")
            except (AttributeError, KeyError, TypeError, ValueError) as e:
                sys.exit(f"{index} cannot be read ({type(e).__name__}: {e}); copy the checkpoint again")
        if wanted and (path / name).is_file():
            return [path / name]
    pickles = [f for f in path.glob("pytorch_model*.bin") if f.is_file()]
    hint = "; --pickle reads its pytorch_model.bin" if pickles and not pickle else ""
    sys.exit(f"{path} has no model.safetensors{hint}")


def header(file):
    """({name: (shape, kind of number)} of a file of weights, its tensors by name where it is a pickle)."""
    import safetensors

    try:
        if file.suffix == ".bin":
            new = zipfile.is_zipfile(file)  # before torch 1.6 it was none
            tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=new)
            return {n: (tuple(t.shape), str(t.dtype)) for n, t in tensors.items()}, tensors
        with safetensors.safe_open(file, "pt") as f:
            slices = {n: f.get_slice(n) for n in f.keys()}
            return {n: (tuple(s.get_shape()), s.get_dtype()) for n, s in slices.items()}, {}
    except Exception as e:
        sys.exit(f"{file} cannot be read ({first_line(e)}); copy the checkpoint again, or use the one before it")


def whole_numbers(kinds):
    """What is wrong with tensors, {name: kind of number}, that hold no fractions: codes of weights, and no weights."""
    codes = re.compile(r"(torch\.)?(u?int\d+|[IU]\d+|bool|BOOL)")
    return [f"{n} holds whole numbers ({kind})" for n, kind in kinds.items() if codes.fullmatch(kind)]


def read_tensors(files, table, own, family=None):
    """(name, tensor) for every tensor of `table` {their name: our names}, one at a time, once it is sure from the
    files' headers that all are there, of the right shape, and no other."""
    import safetensors

    where, shapes, kinds, pickled = {}, {}, {}, {}
    for file in files:
        found, pickled[file] = header(file)
        for name, (shape, kind) in found.items():
            ours = modern(name, family, table) if family else name
            where[ours], shapes[ours], kinds[ours] = (file, name), shape, kind
    for other, name in repeated(family, own).items():  # what is there twice is sometimes stored under its other name
        if name in table and name not in where and other in where:
            where[name], shapes[name], kinds[name] = (d.pop(other) for d in (where, shapes, kinds))

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
    wrong += whole_numbers({n: kinds[n] for n in table if n in kinds})
    if wrong:
        refuse(files[0].parent, wrong)

    opened = []  # the file read last: one at a time, as what has been read of it stays in memory while it is open

    def get(name):
        file, key = where[name]
        if pickled[file]:
            return pickled[file][key]
        if not opened or opened[0] != file:
            opened[:] = file, safetensors.safe_open(file, "pt")
        return opened[1].get_tensor(key)

    for name, other in twin.items():
        if not torch.equal(get(name), get(other)):
            sys.exit(
                f"config.json says that the output head is tied, but {name} and {other} differ in {files[0].parent}"
            )
    for name in sorted(table, key=lambda name: str(where[name][0])):
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


def repeated(family, own):
    """{another name of a tensor: its name in the family's table}: the output head where it is the embedding, and the
    bias of heads that have it in two places."""
    theirs = {} if family is None else {ours: n for n, ours in family.names.items() if isinstance(ours, str)}
    bias = theirs.get("head_weight", "").removesuffix("weight") + "bias"
    return ({} if family is None else tied_names(family, own)) | {bias: theirs.get("head_bias")}


def load_family(model, family, files, device, dtype, but=()):
    """Give a network on the meta device its parameters, one tensor at a time, straight to `device` and `dtype`; but not
    those whose names begin with one of `but`, which stay as they are, and must not be in the files."""
    own = by_expert({n: p for n, p in model.named_parameters() if not n.startswith(tuple(but))})
    table = their_names(family, own, model.config.n_layer)
    for name, tensor in read_tensors(files, table, own, family):
        if family.transposed and re.fullmatch(family.transposed, name):
            tensor = tensor.T
        parts = tensor.split([own[n].shape[0] for n in table[name]])
        for ours, part in zip(table[name], parts):
            put(model, ours, part, device, dtype)
