"""Low-rank adapters (LoRA, arXiv 2106.09685): put beside a network's layers, merged into them, told apart."""

import hashlib

import torch

from nanodlm.wrapped import Wrapped


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


def merge(model):
    """Add the adapters to the weights they stand beside, and take them away."""
    for name, module in list(model.named_modules()):
        if hasattr(module, "base_layer"):
            with torch.no_grad():
                module.merge()
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, module.base_layer)
    return model.requires_grad_(True)
