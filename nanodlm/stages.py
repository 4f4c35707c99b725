"""Loss options that change during a run: stages, annealed attention, what the algorithm has adapted."""

import re
import sys
from dataclasses import fields, replace

from nanodlm import configurator, parallel


def read(words, options):
    """[(iteration, loss options from there on)], from words such as 1000:block_size=16; the first is (0, options)."""
    stages = [(0, options)]
    for word in words:
        form = re.fullmatch(r"(\d+):(\w+)=(.+)", word)
        if not form or int(form[1]) < stages[-1][0]:
            sys.exit(f"stages: {word!r} is not of the form iteration:key=value, or begins before the one ahead of it")
        kinds = {f.name: f.type for f in fields(options)}
        if form[2] not in kinds:
            sys.exit(f"stages: {word!r} names no loss option; there are {', '.join(kinds) or 'none'}")
        value = configurator.convert(form[3], kinds[form[2]], form[2], f"stages, {word!r}")
        try:
            stages.append((int(form[1]), replace(stages[-1][1], **{form[2]: value})))
        except ValueError as e:
            sys.exit(f"stages: {word!r}: {e}")
    return stages


def at(run, it):
    """The loss options of iteration `it`: its stage's, and what the algorithm has adapted to its measurements."""
    o = [o for first, o in run.stages if first <= it][-1]
    if run.s.anneal_iters:
        o = replace(o, see_ahead=min(1.0, it / run.s.anneal_iters))
    return replace(o, **run.place.adapted) if getattr(o, "clip", "") == "adaptive" else o


def adapt(run):
    """What an algorithm that adapts its loss makes of the rows for evaluation, the same in all processes."""
    if not hasattr(run.algorithm, "adapt"):
        return {}
    B, total = run.s.batch_size, len(run.data.held)
    held = (run.data.held_out(i, min(B, total - i)) for i in range(0, total, B))
    windows = (parallel.to(run.device, (x, keys["maskable"])) for x, keys, _ in held)
    run.raw.eval()
    with run.autocast:
        found = run.algorithm.adapt(run.raw, windows, at(run, run.place.iter), mask_id=run.data.tokenizer.mask_id)
    run.raw.train()
    return parallel.from_first(found)
