"""Generate text from a checkpoint: free, continued or filled in, or talk to it.

    python sample.py                                     the checkpoint that ships with the repository
    python sample.py --watch --prompt="class Stack:"     denoised live in the terminal
    python sample.py --infill="Return the [MASK*4] of the list.[MASK*20]"
    python sample.py --checkpoint=out/quickstart --num_samples=4 --steps=64 --html=denoise.html
    python sample.py --checkpoint=GSAI-ML/LLaDA-8B-Instruct --chat --watch
    python sample.py --checkpoint=Dream-org/Dream-v0-Instruct-7B --template --prompt="…" --preset=fast

Every option of the algorithm's generate is a key here; --help lists them. A preset (config/presets) sets them as a
published sampler does; a released checkpoint comes with its own, and what is said on the command line goes before.
"""

import sys
import time
import warnings
from dataclasses import dataclass, replace
from typing import Literal

import torch

from nanodlm import algorithms, chat, configurator, console, fast_bd3lm, files, memory, opening, presets, replay
from nanodlm import text as texts
from nanodlm import tokenizer as tokenizers
from nanodlm.bounds import Minute, Place, Size, Text, check


@dataclass
class Settings:
    checkpoint: Place = "checkpoints/pydocs_mdlm"  # a directory, a run's out_dir, or a hub id org/name[@revision]
    preset: str = ""  # options from config/presets, such as llada, dream, fast; none; default: the model's own
    algorithm: str = ""  # decode with this one, such as mdlm, bd3lm, ar; default: what the checkpoint was made for
    plain: bool = False  # by the sampler in the algorithm's own file, of which the usual one is a faster version
    verify: bool = False  # as the autoregressive model that it still is, which judges its own drafts (causal bd3lm)
    pickle: bool = False  # also read weights from pytorch_model.bin; no code in it is run
    chat: bool = False  # talk to it in the terminal
    system: Text = ""  # system prompt of --chat and --template
    thoughts: Literal["auto", "think", "empty"] = "auto"  # ask for a thought before an answer, or for none
    template: bool = False  # put the prompt into the checkpoint's chat template, as a user's turn
    stop: Text = ""  # cut the text before this, besides the checkpoint's stop tokens
    prompt: Text = ""  # text to continue; in texts \n is a line break, and @FILE what a file holds
    infill: Text = ""  # text with holes: [MASK] is one token, [MASK*8] eight
    num_samples: Size = 1  # how many, in one batch
    stop_at_eos: bool = True  # cut a sample after its end-of-text, or what else the checkpoint stops at
    watch: bool = False  # show the first sample being denoised in the terminal
    delay: Minute = 0.03  # seconds between frames of watch
    html: Place = ""  # write a page here that replays the denoising
    gif: Place = ""  # write an animated GIF of the first sample here
    font: Place = ""  # … in this font, a .ttf or .otf file
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto"  # of the weights; auto: bfloat16 on a GPU
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # auto: the GPU where there is one; mps: Apple's

    def __post_init__(self):
        check(self)


def canvas_of(s, tokenizer):
    """The ids to start from, int64 (T,), masks where there are holes; and which holes may begin with a space."""
    if s.prompt and s.infill:
        sys.exit("use --prompt (text to continue) or --infill (text with [MASK] holes), not both")
    if s.infill and tokenizer.mask_id is None:
        sys.exit("this checkpoint has no mask token: an autoregressive model cannot fill in holes; use --prompt")
    if s.template:
        if s.infill or not s.prompt or tokenizer.chat is None:
            sys.exit("--template needs --prompt, and a checkpoint with a chat template")
        try:
            asked = [{"role": "user", "content": s.prompt}]
            return torch.tensor(chat.ask(tokenizer, s.system, asked)), []
        except ValueError as e:
            sys.exit(str(e))
    before, behind = tokenizer.frame  # such as [CLS] and [SEP]
    parts = tokenizers.parts_of(s.infill) if s.infill else [s.prompt]
    ids, left = tokenizers.fill_in(tokenizer, parts, "the prompt", before)
    if s.infill and tokenizer.mask_id not in ids:
        sys.exit(f"--infill={s.infill!r} has no hole; mark what to fill in with [MASK], or [MASK*8] for eight tokens")
    return torch.tensor([*ids, *(behind if s.infill else ())], dtype=torch.int64), left


def options_of(values, s, checkpoint, algorithm):
    """(Settings, SampleOptions): the preset's, then what was said on the command line."""
    name, settled = presets.settle(checkpoint, algorithm, values, s.preset)
    if name:
        print(f"preset: {name}")
    if s.plain or s.verify:
        own, only = ("verify" if s.verify else "plain"), f"of the {'diffusion' if s.verify else 'fast'} sampler alone"
        lost = [k for k in settled if k not in presets.part(settled, Settings, algorithm.SampleOptions)]
        for key in lost:
            if key in values and hasattr(fast_bd3lm.SampleOptions, key):  # which has them all
                sys.exit(f"{key} ({values[key][1]}) is an option {only}; leave it out, or --{own}")
        settled = {k: v for k, v in settled.items() if k not in lost or k in values}
        if found := [k for k in lost if k not in values]:
            print(f"{own}: without {', '.join(found)}, {only}")
    s, options = configurator.fill(settled, Settings, algorithm.SampleOptions)
    presets.refuse_idle(options, values, checkpoint.model.config)
    return s, options


def fit(s, values, options, canvas, seq_len, mask_id):
    """The options with a length that fits the context; exits where nothing does."""
    room = seq_len - len(canvas)
    if hasattr(options, "window"):  # block by block, any length will do
        room = max(room, options.max_new_tokens)
    if room < (0 if s.infill else 1):
        sys.exit(f"the prompt has {len(canvas)} tokens, which fill the context of {seq_len} tokens; shorten it")
    if "max_new_tokens" not in values:
        options = replace(options, max_new_tokens=0 if s.infill else min(options.max_new_tokens, room))
    if options.max_new_tokens > room:
        sys.exit(
            f"{len(canvas)} prompt tokens and max_new_tokens={options.max_new_tokens} exceed the context of "
            f"{seq_len} tokens; use --max_new_tokens={room} or a shorter prompt"
        )
    holes = options.max_new_tokens + canvas.tolist().count(mask_id)
    if "steps" in values and getattr(options, "quota", "") == "steps" and options.steps > holes:
        sys.exit(f"steps={options.steps}, but there are {holes} tokens to write, one a step at least: --steps={holes}")
    return options


def refuse_idle(s, values):
    """Exit where something was said that does nothing beside the other settings."""
    asked = ("prompt", "infill", "template", "num_samples", "html", "gif")
    idle = dict.fromkeys(asked, "--chat, which asks and answers in the terminal") if s.chat else {}
    idle |= {} if s.watch else {"delay": "no --watch"}
    idle |= {} if s.gif else {"font": "no --gif"}
    idle |= {} if s.chat or s.template else dict.fromkeys(("system", "thoughts"), "neither --chat nor --template")
    idle |= {"stop": "--infill"} if s.infill else {}
    idle |= {"plain": "--verify"} if s.verify else {}
    for name in idle.keys() & values.keys():
        if getattr(s, name) != getattr(Settings, name):
            sys.exit(f"{name} ({values[name][1]}) does nothing with {idle[name]}; leave it out")


def main(argv):
    values = configurator.read(argv)
    if "help" in values:
        configurator.fill(values, Settings, *(a.SampleOptions for a in algorithms.named(values)))
    s = configurator.fill({k: v for k, v in values.items() if hasattr(Settings, k)}, Settings, quiet=True)
    refuse_idle(s, values)
    files.check_file(s.html, "html", (".html", ".htm"))
    files.check_file(s.gif, "gif", (".gif",))
    if s.font:
        replay.load_font(s.font)
    checkpoint, algorithm, _, device = opening.network(s)
    s, options = options_of(values, s, checkpoint, algorithm)
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    if s.infill and hasattr(options, "lookahead") and "lookahead" not in values:
        options = replace(options, lookahead=True)  # what is given after a hole must be seen
    stop_ids = tokenizer.stop_ids if s.stop_at_eos and tokenizer.stop_ids else None
    s.stop = s.stop or (tokenizer.stop_text if s.chat or s.template else "")
    if s.chat:
        return chat.talk(s, checkpoint, algorithm, options, stop_ids, device)

    made = sum(n for n in tokenizers.parts_of(s.infill) if isinstance(n, int)) if s.infill else options.max_new_tokens
    memory.to_sample(s.num_samples, made, model.config, device)
    canvas, left = canvas_of(s, tokenizer)
    options = fit(s, values, options, canvas, model.config.seq_len, tokenizer.mask_id)
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    watch = replay.live(tokenizer, delay=s.delay) if s.watch else None
    start = time.time()
    try:
        until = texts.until(tokenizer, [s.stop]) if s.stop and not s.infill else None
        keys = dict(mask_id=tokenizer.mask_id, eos_id=stop_ids, until=until, trace=bool(s.html or s.gif), watch=watch)
        out = algorithm.generate(model, [canvas.to(device)] * s.num_samples, options, **keys)
    except ValueError as e:
        sys.exit(str(e))
    show(s, options, canvas, left, out, time.time() - start, checkpoint)


def show(s, options, canvas, left, out, seconds, checkpoint):
    """Print the samples and what they took, and write the pages that were asked for."""
    tokenizer = checkpoint.tokenizer
    for i, tokens in enumerate(out.tokens):
        print(f"--- sample {i + 1} " + "-" * 60)
        n, ids = len(tokens) if s.infill else len(canvas), tokens.tolist()
        text = texts.filled_in(tokenizer, ids[:n], left) + texts.answer(tokenizer, ids[:n], ids[n:], [s.stop])[0]
        print(console.visible(text))
    mask_id = -1 if tokenizer.mask_id is None else tokenizer.mask_id
    made = sum(len(t) for t in out.tokens) - s.num_samples * int((canvas != mask_id).sum())
    forwards = sum(out.num_forwards)
    print("-" * 73)
    print(f"{made} tokens in {forwards} forwards ({made / max(forwards, 1):.2f} tokens per forward), ", end="")
    print(f"{made / seconds:.0f} tokens/s{' (slowed down by watch)' if s.watch else ''}")
    start = torch.nn.functional.pad(canvas, (0, options.max_new_tokens), value=mask_id)
    starts = getattr(out, "start", [start] * s.num_samples)  # where texts grow, their own
    try:
        if s.html:
            title = f"{checkpoint.name}: {len(start)} tokens denoised"
            replay.write_html(s.html, starts, out, tokenizer, title)
            print(f"wrote {s.html}")
        if s.gif:
            replay.write_gif(s.gif, starts[0], out.trace[0], len(out.tokens[0]), tokenizer, font=s.font)
            print(f"wrote {s.gif}")
    except OSError as e:  # a full disk
        sys.exit(f"the samples above were not written as a page: {e}")


if __name__ == "__main__":
    console.run(main, sys.argv[1:])
