"""Where it runs, and in which precision: chosen by themselves, with the reason."""

import sys

import torch

PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}  # dense bf16


def pick_device(name):
    """(device, why)"""
    if name == "cuda" and not torch.cuda.is_available():
        sys.exit("device=cuda, but torch sees no GPU; use --device=cpu, or install torch with CUDA")
    if name != "auto":
        return name, "asked for"
    if torch.cuda.is_available():
        return "cuda", torch.cuda.get_device_name()
    if torch.backends.mps.is_available():
        return "cpu", "Apple's GPU has no float64, which the samplers and the random numbers need"
    return "cpu", "no GPU found"


def pick_dtype(name, device):
    if name != "auto":
        return getattr(torch, name), "asked for"
    if device == "cuda":
        ok = torch.cuda.is_bf16_supported(including_emulation=False)
        return (torch.bfloat16, "the GPU has it") if ok else (torch.float32, "the GPU has no bfloat16")
    has = [f for f in ("_is_avx512_bf16_supported", "_is_amx_tile_supported") if getattr(torch.cpu, f, bool)()]
    return (torch.bfloat16, "the CPU multiplies it natively") if has else (torch.float32, "the CPU has no bfloat16")
