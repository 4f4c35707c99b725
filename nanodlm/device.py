"""Where it runs, in which precision, compiled or not (chosen by themselves, with the reason), and how many operations
it takes."""

import functools
import os
import sys

import torch

PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}  # dense bf16


def pick_device(name):
    """(device, why)"""
    alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
    if name == "cuda" and not torch.cuda.is_available():
        sys.exit("device=cuda, but torch sees no GPU; use --device=cpu, or install torch with CUDA")
    if name == "mps" and not torch.backends.mps.is_available():
        sys.exit("device=mps, but torch sees none of Apple's GPUs; use --device=cpu")
    if name == "mps" and not alone:
        sys.exit("device=mps is for one process, as several cannot exchange what is on Apple's GPU; use --device=cpu")
    if name != "auto":
        return name, "asked for"
    if torch.cuda.is_available():
        return "cuda", torch.cuda.get_device_name()
    if torch.backends.mps.is_available():
        return ("mps", "Apple's GPU") if alone else ("cpu", "Apple's GPU is for one process")
    return "cpu", "no GPU found"


def pick_dtype(name, device):
    if name != "auto":
        return getattr(torch, name), "asked for"
    if device == "mps":
        return torch.float32, "sure to work on Apple's GPUs"
    if device == "cuda":
        ok = torch.cuda.is_bf16_supported(including_emulation=False)
        return (torch.bfloat16, "the GPU has it") if ok else (torch.float32, "the GPU has no bfloat16")
    has = [f for f in ("_is_avx512_bf16_supported", "_is_amx_tile_supported") if getattr(torch.cpu, f, bool)()]
    return (torch.bfloat16, "the CPU multiplies it natively") if has else (torch.float32, "the CPU has no bfloat16")


def pick_compile(name, device):
    """(whether to compile, that in words)"""
    if name == "false" or name == "auto" and device != "cuda":
        return False, "compile off"
    lack = compiler_lacks(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" else device)
    if lack and name == "true":
        sys.exit(f"compile=true cannot be here: {lack}; install a C++ compiler, or use --compile=false")
    return not lack, f"compile off ({lack})" if lack else "compile on"


@functools.cache
def compiler_lacks(device):
    """Why torch.compile does not work on a device, or nothing: it takes more than torch, and a function will tell."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=device))
    except Exception as e:
        torch.compiler.reset()
        while e.__cause__ or e.__context__:
            e = e.__cause__ or e.__context__
        return f"{type(e).__name__}: {str(e).strip().splitlines()[0]}" if str(e).strip() else type(e).__name__
    return ""


def flops_per_token(model, seq_len, head_rows=1.0, passes=1):
    """FLOPs of one training step per token (forward and backward): 6 per matrix weight, 12 per channel and key
    (windows not counted). `head_rows` is the fraction of tokens whose logits are computed, `passes` how often a
    token goes through the blocks."""
    c = model.config
    matrices = sum(p.numel() for p in model.blocks.parameters() if p.dim() == 2)
    matrices += sum(p[0].numel() * c.experts_per_token for p in model.blocks.parameters() if p.dim() == 3)
    attention = 12 * c.n_layer * c.n_head * c.head_dim * seq_len * (0.5 if c.causal else 1)
    return 6 * (passes * matrices + head_rows * c.vocab_size * c.n_embd) + attention
