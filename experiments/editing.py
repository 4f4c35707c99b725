"""What are edits worth? Puzzles solved, and passes for each, with edit_threshold and without (docs/decoding.md).

    python experiments/editing.py --checkpoint=out/sudoku_mixed

The checkpoint may be udlm's: trained on masks and on wrong tokens, and decoded here by mdlm's sampler, as LLaDA2.1 is.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nanodlm import checkpoint as ckpt  # noqa: E402
from nanodlm import configurator, console, corpus, fast_mdlm, measures  # noqa: E402
from nanodlm.bounds import Place, Size, check  # noqa: E402
from nanodlm.device import pick_device  # noqa: E402

DRAFTS = [dict(steps=n) for n in (1, 2, 4)] + [dict(quota="threshold", threshold=t) for t in (0.5, 0.7, 0.9)]


@dataclass
class Settings:
    checkpoint: Place = "out/sudoku_mixed"  # trained on the data set
    dataset: Place = "sudoku"  # with puzzles
    puzzles: Size = 500  # held-out ones, the first

    def __post_init__(self):
        check(self)


def main(argv):
    s = configurator.fill(configurator.read(argv), Settings)
    device, _ = pick_device("auto")
    checkpoint, meta = ckpt.load(s.checkpoint, device), corpus.load_meta(s.dataset, "val")
    print("| draft | edit_threshold | solved | passes |\n|---|---|---|---|")
    for draft in DRAFTS:
        for threshold in (1.0, 0.9, 0.5, 0.0):
            if draft.get("threshold", 1.0) < threshold < 1:
                continue
            options = fast_mdlm.SampleOptions(temperature=0.0, edit_threshold=threshold, **draft)
            solved, error, passes = measures.solve(checkpoint, fast_mdlm, options, s, s.dataset, meta, device)
            words = " ".join(f"--{k}={v}" for k, v in draft.items() if k != "quota")
            edits = "none" if threshold == 1 else f"{threshold:g}"
            print(f"| {words} | {edits} | {solved:.1%} ± {error:.1%} | {passes:.2f} |", flush=True)


if __name__ == "__main__":
    console.run(main, sys.argv[1:])
