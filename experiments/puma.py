"""Does it pay to train on the masks that decoding meets? PUMA (arXiv 2602.10314), on sudoku.

    python data/sudoku/prepare.py
    python experiments/puma.py                                        19 minutes on one core

Random masks are mostly such as a sampler never sees: it fills in the cells that it is surest of first. So a row stays
in the batch, from all of it hidden to none: in each iteration the network is taught what is hidden, and what it was
surest of is then revealed, by the true tokens (the forward pass is the training step's, so that this costs nothing).
The same network, rows, loss (cross entropy over hidden tokens) and optimiser; each number is a run of its own, whose
rate ends at 0. Solved: held-out puzzles, greedily, the surest cell first, in 16 forwards and in 4; and 16 in an order
at random, which is what PUMA is not trained for.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mdlm  # noqa: E402
from model import Config, Transformer  # noqa: E402
from nanodlm import configurator, console, corpus, fast_mdlm, measures, noise, optim  # noqa: E402
from nanodlm.bounds import Amount, Place, Seed, Size, check  # noqa: E402
from nanodlm.device import pick_dtype  # noqa: E402

NETWORK = "n_layer", "n_head", "n_embd"
DECODED = {"16 forwards": dict(steps=16), "4": dict(steps=4), "16, at random": dict(steps=16, order="random")}


@dataclass
class Settings:
    dataset: Place = "sudoku"  # of rows, of which a part is given
    iters: tuple[Size, ...] = (60, 120, 250)  # of each run
    phases: Size = 8  # iterations in which a row goes from hidden to known
    seeds: Size = 3
    puzzles: Size = 1000  # held-out ones, the first
    batch_size: Size = 128
    seed: Seed = 1  # of the first
    n_layer: Size = 4  # config/sudoku_mdlm.py's network and rates
    n_head: Size = 4
    n_embd: Size = 128
    optimizer: Literal["muon", "adamw"] = "muon"
    learning_rate: Amount = 2e-3
    muon_learning_rate: Amount = 2e-2
    beta1: Amount = 0.9
    beta2: Amount = 0.95
    weight_decay: Amount = 0.1

    def __post_init__(self):
        check(self)


def hidden_after(n, phase, phases, u):
    """How many of n tokens are hidden in a phase 0…phases-1 of a row, by u in (0, 1): at the beginning of the phase's
    part of the way, up to where the next begins (there a row is done). Int64, as n and phase."""
    return n - (n * (phase + u * (phase > 0)) / phases).round().long().clamp(max=n - 1)


def train(tokens, maskable, iters, chains, vocab, mask_id, seed, s):
    """A network, after so many iterations: on chains, or on masks at random."""
    torch.manual_seed(seed)
    B, n = s.batch_size, int(maskable.sum())
    model = Transformer(Config(vocab_size=vocab, seq_len=len(maskable), **{k: getattr(s, k) for k in NETWORK})).train()
    optimizers, dtype = optim.make(model, s, "cpu"), pick_dtype("auto", "cpu")[0]
    phase, all_rows = torch.arange(B) % s.phases, torch.arange(B)
    x0 = hidden = maskable.expand(B, -1)
    for it in range(iters):
        rate = min(1.0, (it + 1) / 50, 2 * (iters - it) / iters)
        for group in (g for optimizer in optimizers for g in optimizer.param_groups):
            group["lr"] = group["base_lr"] * rate
        index = np.random.default_rng((seed, it)).integers(len(tokens), size=B)
        drawn = torch.from_numpy(tokens[index].astype("int64"))
        if not chains:
            x0, hidden = drawn, mdlm.corrupt(maskable.expand(B, -1), mdlm.LossOptions(), noise.fold(seed, it), 0, B)[0]
        elif it:
            x0, hidden = (torch.where(phase[:, None] == 0, a, b) for a, b in ((drawn, x0), (maskable, hidden)))
        else:  # rows begin at all places of the way, at first by any masks
            u = noise.uniform(seed, all_rows[:, None], torch.arange(len(maskable)))
            x0, hidden = drawn, mdlm.hide_by_count(hidden_after(n, phase, s.phases, 0.5), u, hidden)
        rows = hidden.flatten().nonzero()[:, 0]
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = model(torch.where(hidden, mask_id, x0), rows=rows).float()
        logits = logits.index_fill(1, torch.tensor([mask_id]), -torch.inf)
        loss = torch.nn.functional.cross_entropy(logits, x0.flatten()[rows])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if chains:
            sure = torch.zeros(x0.shape).flatten().index_copy(0, rows, logits.detach().softmax(-1).amax(-1))
            phase = (phase + 1) % s.phases
            keep = hidden_after(n, phase, s.phases, noise.uniform(seed, it, all_rows))
            hidden = mdlm.hide_by_count(keep, sure.view_as(x0), hidden)  # the least sure stay hidden
    return model.eval()


def main(argv):
    s = configurator.fill(configurator.read(argv), Settings)
    meta = corpus.load_meta(s.dataset, "train", "val")
    if not meta.get("prompt_len"):
        sys.exit(f"dataset={s.dataset} is no data of rows of which a part is given; use sudoku")
    tokens, tokenizer = corpus.load_tokens(s.dataset, "train", meta), corpus.load_tokenizer(s.dataset, meta)
    maskable = torch.arange(meta["row_len"]) >= meta["prompt_len"]
    print(f"| iterations | masks | {' | '.join(DECODED)} |\n|---|---|{'---|' * len(DECODED)}")
    for iters in s.iters:
        for name in ("at random", "of decoding"):
            found = {how: [] for how in DECODED}
            for seed in range(s.seed, s.seed + s.seeds):
                chains = name == "of decoding"
                model = train(tokens, maskable, iters, chains, meta["vocab_size"], tokenizer.mask_id, seed, s)
                both = SimpleNamespace(model=model, tokenizer=tokenizer)
                for how, keys in DECODED.items():
                    o = fast_mdlm.SampleOptions(temperature=0.0, **keys)
                    found[how].append(measures.solve(both, fast_mdlm, o, s, s.dataset, meta, "cpu")[0])
            cells = [" ".join(f"{100 * x:.1f}" for x in values) for values in found.values()]
            print(f"| {iters} | {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    console.run(main, sys.argv[1:])
