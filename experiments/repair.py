"""How many texts with typing errors are mended? By an edit flow, which finds them, and by infilling that is told where.

    python experiments/repair.py --checkpoint=out/pydocs_typos --baseline=out/pydocs_chars_mdlm

In held-out windows so many characters, never two of them side by side, are lost, doubled by a wrong one, or wrong. The
edit flow is given the text (temperature 0: the edits that are more likely than not outstanding). The masked model is
given more: what is too much is gone already, and masks stand where something is lost or wrong, the surest filled in
first, so that it cannot do harm elsewhere, nor is it asked whether there is an error at all.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import editflow  # noqa: E402
from nanodlm import alignments, configurator, console, corpus, fast_mdlm  # noqa: E402
from nanodlm import checkpoint as ckpt  # noqa: E402
from nanodlm.alignments import DELETE, INSERT, REPLACE  # noqa: E402
from nanodlm.bounds import Place, Size, Whole, check  # noqa: E402
from nanodlm.device import pick_device  # noqa: E402
from nanodlm.noise import uniform  # noqa: E402


@dataclass
class Settings:
    checkpoint: Place = "out/pydocs_typos"  # an edit flow of typos
    baseline: Place = "out/pydocs_chars_mdlm"  # a masked model of the same characters
    dataset: Place = "pydocs_chars"
    windows: Size = 200  # held-out ones
    length: Size = 120  # characters of each: what is lost or too many fits beside them
    errors: tuple[Whole, ...] = (0, 1, 2, 4)  # in each

    def __post_init__(self):
        check(self)


def spoil(text, errors, seed, letters):
    """(what was typed, the text with masks at what is lost or wrong: where they stand): int64 (n,), and bool (L,)."""
    L = len(text)
    order = uniform(seed, 0, torch.arange(L // 2)).argsort()[:errors] * 2  # no two side by side
    kind = (uniform(seed, 1, torch.arange(L)) * 3).long()
    other = (text + 1 + (uniform(seed, 2, torch.arange(L)) * (letters - 1)).long()) % letters
    wrong = torch.zeros(L, dtype=torch.bool).index_fill(0, order, True)
    own = torch.where(wrong & (kind == REPLACE), other, text)
    pair = torch.stack([other, own], 1)
    kept = torch.stack([wrong & (kind == INSERT), ~(wrong & (kind == DELETE))], 1)
    return pair[kept], wrong & (kind != INSERT)


def distance(a, b):
    """Levenshtein's."""
    return int(alignments.costs(a[None], b[None])[0, len(a), len(b)])


def main(argv):
    s = configurator.fill(configurator.read(argv), Settings)
    device, _ = pick_device("auto")
    flow, masked = (ckpt.load(path, device) for path in (s.checkpoint, s.baseline))
    if flow.algorithm != "editflow" or flow.model.config.source != "typos":
        sys.exit(f"{s.checkpoint} is no edit flow of typos: train config/pydocs_typos.py")
    meta = corpus.load_meta(s.dataset, "val")
    texts = torch.from_numpy(corpus.eval_windows(s.dataset, meta, s.length, s.windows).astype("int64"))
    mask_id, letters = masked.tokenizer.mask_id, min(meta["mask_id"], meta["eos_id"])
    print("| errors | edit flow: texts mended | errors left | infilling, told where | errors left |")
    print("|---|---|---|---|---|")
    for errors in s.errors:
        typed, holes = zip(*(spoil(text, errors, i, letters) for i, text in enumerate(texts)))
        o = editflow.SampleOptions(8, steps=16, schedule="linear", temperature=0.0)
        found = [editflow.generate(flow.model, list(typed), o, mask_id=flow.tokenizer.mask_id).tokens]
        canvases = [torch.where(hole, mask_id, text) for hole, text in zip(holes, texts)]
        o = fast_mdlm.SampleOptions(0, temperature=0.0)
        found += [fast_mdlm.generate(masked.model, canvases, o, mask_id=mask_id).tokens] if errors else []
        cells = []
        for some in found:
            left = torch.tensor([distance(x.cpu(), text) for x, text in zip(some, texts)]).double()
            p = (left == 0).double().mean().item()
            cells += [f"{p:.1%} ± {(p * (1 - p) / len(texts)) ** 0.5:.1%}", f"{left.mean():.2f}"]
        print(f"| {errors} | " + " | ".join(cells + [""] * (4 - len(cells))) + " |", flush=True)


if __name__ == "__main__":
    console.run(main, sys.argv[1:])
