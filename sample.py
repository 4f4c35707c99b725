"""Generate text from a checkpoint: free, continued or filled in.

    python sample.py                                          the checkpoint that ships with the repository
    python sample.py --watch --prompt="class Stack:"     denoised live in the terminal
    python sample.py --infill="Return the [MASK*4] of the list.[MASK*20]"
    python sample.py --checkpoint=out/quickstart --num_samples=4 --steps=64 --html=denoise.html

Every option of the algorithm's generate is a key here; --help lists them.
"""

import re
import sys
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

import bd3lm
import configurator
import pretrained
import replay
from model import pick_device


@dataclass
class Settings:
    checkpoint: str = "checkpoints/pydocs_mdlm"  # a checkpoint directory, or a run's out_dir
    prompt: str = ""  # text to continue; \n is a line break
    infill: str = ""  # text with holes: [MASK] is one token, [MASK*8] eight
    num_samples: int = 1  # how many, in one batch
    stop_at_eos: bool = True  # cut a sample behind its end-of-text
    watch: bool = False  # show the first sample being denoised in the terminal
    delay: float = 0.03  # seconds between frames of watch
    html: str = ""  # write a page here that replays the denoising
    gif: str = ""  # write an animated GIF of the first sample here
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of weights and computation; auto: bfloat16 on a GPU
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: the GPU where there is one


def canvas_of(s, tokenizer):
    """The ids to start from, int64 (T,), masks where there are holes."""
    if s.prompt and s.infill:
        sys.exit("use --prompt (text to continue) or --infill (text with [MASK] holes), not both")
    ids = []
    for part in re.split(r"(\[MASK(?:\*\d+)?\])", s.infill or s.prompt) if s.infill else [s.prompt]:
        hole = re.fullmatch(r"\[MASK(?:\*(\d+))?\]", part) if s.infill else None
        try:
            ids += [tokenizer.mask_id] * int(hole[1] or 1) if hole else tokenizer.encode(part.replace("\\n", "\n"))
        except ValueError as e:
            sys.exit(f"the prompt does not fit this checkpoint's vocabulary: {e}")
    if s.infill and tokenizer.mask_id not in ids:
        sys.exit(f"--infill={s.infill!r} has no hole; mark what to fill in with [MASK], or [MASK*8] for eight tokens")
    return torch.tensor(ids, dtype=torch.int64)


def main(argv):
    values = configurator.read(argv)
    if "help" in values:
        configurator.fill(values, Settings, bd3lm.SampleOptions)  # which has them all
    s = configurator.fill({k: v for k, v in values.items() if hasattr(Settings, k)}, Settings, quiet=True)
    device = pick_device(s.device)[0]
    dtype = torch.bfloat16 if s.dtype == "auto" and device == "cuda" else getattr(torch, s.dtype, torch.float32)
    checkpoint = pretrained.load(s.checkpoint, device, dtype)
    algorithm = pretrained.algorithm(checkpoint.algorithm)
    s, options = configurator.fill(values, Settings, algorithm.SampleOptions)
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    for file in (s.html, s.gif):
        if file and not Path(file).absolute().parent.is_dir():
            sys.exit(f"there is no directory {Path(file).parent} to write {file} to")
    if s.num_samples < 1:
        sys.exit(f"num_samples={s.num_samples} asks for nothing; use at least 1")
    for i in options.suppress:
        if not 0 <= i < model.config.vocab_size:
            sys.exit(f"suppress={i} is not one of the checkpoint's {model.config.vocab_size} token ids")

    canvas = canvas_of(s, tokenizer)
    room = model.config.seq_len - len(canvas)
    if hasattr(options, "window"):  # block by block, any length will do
        room = max(room, options.max_new_tokens)
    if room < (0 if s.infill else 1):
        sys.exit(
            f"the prompt has {len(canvas)} tokens, which fill the context of {model.config.seq_len} tokens; shorten it"
        )
    if "max_new_tokens" not in values:
        options = replace(options, max_new_tokens=0 if s.infill else min(options.max_new_tokens, room))
    if options.max_new_tokens > room:
        sys.exit(
            f"{len(canvas)} prompt tokens and max_new_tokens={options.max_new_tokens} exceed the context of "
            f"{model.config.seq_len} tokens; use --max_new_tokens={room} or a shorter prompt"
        )
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    prompts = [canvas.to(device)] * s.num_samples
    watch = replay.live(tokenizer, delay=s.delay) if s.watch else None
    start = time.time()
    try:
        out = algorithm.generate(
            model,
            prompts,
            options,
            mask_id=tokenizer.mask_id,
            eos_id=tokenizer.eos_id if s.stop_at_eos else None,
            trace=bool(s.html or s.gif),
            watch=watch,
        )
    except ValueError as e:
        sys.exit(str(e))
    seconds = time.time() - start

    for i, tokens in enumerate(out.tokens):
        print(f"--- sample {i + 1} " + "-" * 60)
        print(tokenizer.decode(tokens.tolist()))
    made = sum(len(t) for t in out.tokens) - s.num_samples * int((canvas != tokenizer.mask_id).sum())
    forwards = sum(out.num_forwards)
    print("-" * 73)
    print(f"{made} tokens in {forwards} forwards ({made / max(forwards, 1):.2f} tokens per forward), ", end="")
    print(f"{made / seconds:.0f} tokens/s{' (slowed down by watch)' if s.watch else ''}")
    starts = [torch.nn.functional.pad(canvas, (0, options.max_new_tokens), value=tokenizer.mask_id)] * s.num_samples
    if s.html:
        replay.write_html(s.html, starts, out, tokenizer, f"{checkpoint.path.name}: {len(starts[0])} tokens denoised")
        print(f"wrote {s.html}")
    if s.gif:
        replay.write_gif(s.gif, starts[0], out.trace[0], len(out.tokens[0]), tokenizer)
        print(f"wrote {s.gif}")


if __name__ == "__main__":
    main(sys.argv[1:])
