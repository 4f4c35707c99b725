"""Merge a LoRA adapter into its base.

python -m nanodlm.merge --checkpoint=out/llada_sft --merge=checkpoints/merged    the two as one network
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from nanodlm import checkpoint as ckpt
from nanodlm import configurator, console
from nanodlm.bounds import Place
from nanodlm.files import check_directory
from nanodlm.lora import merge


@dataclass
class Settings:
    checkpoint: Place = ""  # the adapter's directory
    merge: Place = ""  # where the merged checkpoint goes
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the merged weights


def main(argv):
    s = configurator.fill(configurator.read(argv), Settings, quiet=True)
    if not s.checkpoint or not s.merge:
        sys.exit("python -m nanodlm.merge --checkpoint=ADAPTER --merge=DIRECTORY")
    check_directory(s.merge, "merge")
    checkpoint = ckpt.load(s.checkpoint)
    if "adapter" not in checkpoint.facts:
        sys.exit(f"{s.checkpoint} is no adapter, so there is nothing to merge")
    if Path(s.merge).exists():
        sys.exit(f"{s.merge} exists already; remove it, or name another directory")
    facts = {k: v for k, v in checkpoint.facts.items() if k != "adapter"}
    if checkpoint.facts["adapter"]["row"] is not None:
        facts.pop("fresh_mask", None)
    model, tokenizer = merge(checkpoint.model), checkpoint.tokenizer
    weights, dtype = dict(model.named_parameters()), getattr(torch, s.dtype)
    try:
        ckpt.save(s.merge, weights, model.config, tokenizer, checkpoint.files, checkpoint.algorithm, facts, dtype)
    except OSError as e:
        sys.exit(str(e))
    print(f"wrote {s.merge}: {model.num_params():,} parameters, {s.dtype}")


if __name__ == "__main__":
    console.run(main, sys.argv[1:])
