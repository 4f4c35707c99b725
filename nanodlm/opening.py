"""What a command line says of a network and of how it decodes (sample.Settings), opened."""

import sys
from dataclasses import replace

import torch

from nanodlm import algorithms, checkpoint
from nanodlm import tokenizer as tokenizers
from nanodlm.device import pick_device


def network(s):
    """(checkpoint, what decodes it, its algorithm's name, the device) of settings; exits where they do not fit it."""
    device = pick_device(s.device)[0]
    dtype = torch.bfloat16 if s.dtype == "auto" and device == "cuda" else getattr(torch, s.dtype, torch.float32)
    found = checkpoint.load(s.checkpoint, device, dtype, s.pickle)
    found.tokenizer = tokenizers.with_thoughts(found.tokenizer, s.thoughts)
    name, config = s.algorithm or found.algorithm, found.model.config
    if s.verify and not (name == "bd3lm" and (config.shift or config.causal)):
        sys.exit(
            f"{s.checkpoint} cannot judge its own drafts: --verify needs a bd3lm that was trained with the shift, or "
            "whose clean text is causal"
        )
    if name != found.algorithm and "editflow" in (name, found.algorithm):
        sys.exit(f"{s.checkpoint} is a network for algorithm={found.algorithm}, not for {name}; leave it out")
    if name == "ar" and found.algorithm == "bd3lm" and config.causal:  # whose mask is no begin-of-text
        found.tokenizer = replace(found.tokenizer, mask_id=None)
    algorithm = algorithms.engine(algorithms.load(name), s.plain, s.verify)
    if found.tokenizer.mask_id is None and not algorithm.CAUSAL:
        sys.exit(f"{s.checkpoint} has no mask token, which {name} needs; decode it with --algorithm=ar")
    return found, algorithm, name, device
