"""In which order is a text likeliest to a masked diffusion model? And is it right where it is sure?

    python experiments/orders.py                                    5 minutes on one core
    python experiments/orders.py --checkpoint=checkpoints/bible_mdlm --dataset=bible --windows=8

The chain rule gives a text's exact likelihood for whoever reveals it token by token, whatever the order, as long as
that looks at nothing but what is revealed (DUEL, arXiv 2603.01367). The mean over random orders is the bound that was
trained. A sampler's order, the surest place first, should do better, if the network knows when it knows. So beside each
order stands how often the network's best token was the right one, of the places that had a probability in some range
when they were revealed: a network that is calibrated is right as often as it says.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mdlm import certainty  # noqa: E402
from nanodlm import checkpoint as ckpt  # noqa: E402
from nanodlm import configurator, console, corpus, noise  # noqa: E402
from nanodlm import results as tables  # noqa: E402
from nanodlm import tokenizer as tokenizers  # noqa: E402
from nanodlm.bounds import Place, Seed, Size, check  # noqa: E402
from nanodlm.choice import one_per_row, resolution  # noqa: E402
from nanodlm.device import pick_device  # noqa: E402
from nanodlm.likelihood import mean_and_error  # noqa: E402

ORDERS = "random", "left_to_right", "confidence", "entropy", "least_sure"
RANGES = (0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 0.95), (0.95, 1.01)


@dataclass
class Settings:
    checkpoint: Place = "checkpoints/pydocs_mdlm"  # a masked diffusion model
    dataset: Place = "pydocs"  # of its vocabulary
    windows: Size = 16  # held-out texts
    length: Size = 128  # tokens of each
    orders: tuple[str, ...] = ORDERS  # the first is what the others are compared with, text by text
    seed: Seed = 1  # of the random order

    def __post_init__(self):
        check(self)
        if wrong := [order for order in self.orders if order not in ORDERS]:
            raise ValueError(f"orders={wrong[0]}: choose among {', '.join(ORDERS)}")


@torch.no_grad()
def reveal(model, x0, order, mask_id, seed=1):
    """Reveal the rows of x0 (B, L) one token at a time in an order. Returns, for each row and step, the probability of
    the network's best token, that of the right one, both float64 (B, L), and whether they are the same, bool."""
    B, L = x0.shape
    hidden, place = torch.ones_like(x0, dtype=torch.bool), torch.arange(L, device=x0.device)
    drawn, eps = noise.uniform(seed, torch.arange(B)[:, None], torch.arange(L)).to(x0.device), resolution(model)
    found = []
    for _ in range(L):
        logits = model(torch.where(hidden, mask_id, x0)).float()
        logits[..., mask_id] = -torch.inf
        if order == "random":
            best = one_per_row(drawn, hidden)
        elif order == "left_to_right":
            best = one_per_row(-place.expand(B, L).double(), hidden)
        else:
            measure = "entropy" if order == "entropy" else "confidence"
            sure = certainty(logits.flatten(0, 1), measure).view(B, L).double()
            best = one_per_row(1 - sure if order == "least_sure" else sure, hidden, eps)
        p, token = logits[best].double().softmax(-1), x0[best]
        found.append((p.amax(1), p.gather(1, token[:, None])[:, 0], p.argmax(1) == token))
        hidden &= ~best
    return tuple(torch.stack(column, 1) for column in zip(*found))


def main(argv):
    s = configurator.fill(configurator.read(argv), Settings)
    device, _ = pick_device("auto")
    there = ckpt.load(s.checkpoint, device)
    if there.algorithm != "mdlm":
        sys.exit(f"{s.checkpoint} is decoded by {there.algorithm}: name a checkpoint of mdlm")
    meta = corpus.load_meta(s.dataset, "val")
    if not tokenizers.alike(corpus.load_tokenizer(s.dataset, meta), there.tokenizer):
        sys.exit(f"{s.checkpoint} and {s.dataset} have different tokenizers; name data prepared with its own")
    x0 = torch.from_numpy(corpus.eval_windows(s.dataset, meta, s.length, s.windows).astype("int64")).to(device)
    heads = [f"right at {a:g} to {min(b, 1):g}" for a, b in RANGES]
    print(f"| order | bits per byte | more than {s.orders[0]} | {' | '.join(heads)} |\n|{'---|' * (3 + len(heads))}")
    base = None
    for order in s.orders:
        sure, own, same = reveal(there.model, x0, order, there.tokenizer.mask_id, s.seed)
        bits = -own.log().sum(1) / (math.log(2) * s.length * meta["bytes_per_token"])
        base = bits if base is None else base
        cells = [tables.with_error(*mean_and_error(x), 3) for x in (bits, bits - base)]
        for a, b in RANGES:
            these = (sure >= a) & (sure < b)
            share, said = (x[these].double().mean().item() for x in (same, sure))
            cells.append(f"{share:.2f} (says {said:.2f}, {these.sum()})" if these.any() else "")
        print(f"| {order.replace('_', ' ')} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    console.run(main, sys.argv[1:])
