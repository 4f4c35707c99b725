"""Low-rank adapters (LoRA, arXiv 2106.09685): put beside a network's layers, merged into them, told apart."""

import contextlib
import hashlib
import sys

import torch

from nanodlm.experts import mixtures
from nanodlm.gemma import DiffusionGemma
from nanodlm.wrapped import Wrapped


def add_lora(model, r, alpha, dropout=0.0, row=None, at="all"):
    """Put low-rank adapters (LoRA, arXiv 2106.09685) beside every linear layer of the blocks; peft freezes the rest,
    but for a row of the embedding, where one is given: a mask token's that nobody has trained. With at="experts" they
    stand beside the matrices of a mixture's experts, too, one for each of these."""
    import peft

    wrapped = isinstance(model, Wrapped | DiffusionGemma)
    blocks = model.adapted if isinstance(model, DiffusionGemma) else model.hf.base_model if wrapped else model.blocks
    embed = model.hf.get_input_embeddings() if wrapped else model.embed
    # peft knows a module by how its name ends, and "embed" would be pos_embed, too; ".embed" is not. Of a model of
    # `transformers` it asks whether its output head is tied.
    inner = model.hf if wrapped else torch.nn.ModuleDict({"net": model})
    inside = {m for m in blocks.modules() if isinstance(m, torch.nn.Linear)}
    targets = [n for n, m in inner.named_modules() if m in inside or type(m).__name__ == "Conv1D"]
    rows = {n: [row] for n, m in inner.named_modules() if m is embed and row is not None}
    dtype = next(model.parameters()).dtype
    keys = dict(target_modules=targets, trainable_token_indices=rows or None)
    if at == "experts":
        if not mixtures(model):
            sys.exit("lora_at=experts is for mixtures of experts, and this network is none; use lora_at=all")
        if dropout:
            sys.exit(f"lora_at=experts knows no dropout, and lora_dropout={dropout}; set it to 0")
        keys["target_parameters"] = [n for n, p in inner.named_parameters() if p.dim() == 3]
    config = peft.LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, **keys)
    peft.inject_adapter_in_model(config, inner)  # keeps the class, and so hidden(), head() and cache()
    if isinstance(model, DiffusionGemma):
        model.tie(targets)
    for name, p in model.named_parameters():
        if is_adapter(name) and dtype != torch.float64:
            p.data = p.data.float()  # small, and trained: not in the base's bfloat16
    return model


def is_adapter(name):
    """Whether the parameter of that name is an adapter's: a low-rank matrix, or the row of a token."""
    return ".lora_" in name or ".trainable_tokens_" in name


@contextlib.contextmanager
def left_out(model):
    """The network as it is without its adapters, for a while."""
    layers = [m for m in model.modules() if hasattr(m, "_disable_adapters")]  # peft's own switch would thaw, or freeze
    for m in layers:
        m._disable_adapters = True
    try:
        yield
    finally:
        for m in layers:
            m._disable_adapters = False


def digest(model, adapters=False):
    """Tells one base from another: a hash of some numbers of every tensor, as bfloat16, whatever they are held in; of
    those of adapters, too, where that is asked for."""
    found = hashlib.sha256()
    for name, p in sorted(model.named_parameters()):
        if adapters or not is_adapter(name):
            p = p.dequantize() if type(p.data).__module__.startswith("torchao") else p
            some = p.detach().flatten()[:64].to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes()
            name = name.replace(".token_adapter", "").replace(".base_layer", "")
            found.update(f"{name} {tuple(p.shape)}".encode() + some)
    return found.hexdigest()[:16]


def merge(model, low_rank=True):
    """Add the adapters to the weights they stand beside, and take them away; without `low_rank` only a token's row, for
    which peft would copy the table in every forward."""
    if low_rank and hasattr(model, "apart"):
        sys.exit("adapters at masks alone are no change of the weights: they cannot be merged, nor read as int8")
    for name, module in reversed(list(model.named_modules(remove_duplicate=False))):  # of two, the inner one first
        if hasattr(module, "base_layer") and (name.endswith(".token_adapter") or low_rank and hasattr(module, "merge")):
            if not module.merged:
                with torch.no_grad():
                    module.merge()
            parent, _, leaf = name.removesuffix(".token_adapter").rpartition(".")
            setattr(model.get_submodule(parent), leaf, module.base_layer)
    return model.requires_grad_(True) if low_rank else model
