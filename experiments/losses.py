"""What the losses of uniform-state diffusion optimise, and by how much they are no bound: exactly.

    python experiments/losses.py      on texts of three letters: 10 seconds of a core

On a language that can be listed (tests/book/letters.py), every text, canvas and rate of noise is added up, and the best
network of a loss is a table: one that is told t, and one that is not. In nats per text, beside the entropy of the
language, below which no honest measure is:

    least loss   that of the table: the mean over all tokens that the loss counts, times the tokens of a text
    NELBO        the bound of that table
    -log p       what that bounds: of the process that the table defines, by its master equation
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "book")]

from letters import MASK, K, chances, language, law_of, listing, pi_of, rates  # noqa: E402

import udlm  # noqa: E402
from model import Config  # noqa: E402
from nanodlm import configurator, console  # noqa: E402
from nanodlm.bounds import Size  # noqa: E402

POINTS = 60  # rates that an integral over them is made of
OBJECTIVES = ("nelbo", "noised_ce", "all_ce")  # udlm.LossOptions.objective


@dataclass
class Settings:
    length: Size = 3  # letters of a text; more than 3 take minutes


def log_share(weight):
    """log of the part that each letter has, (..., 3); where nothing is counted, all alike."""
    return (weight / weight.sum(-1, keepdim=True)).nan_to_num(1 / K).log()


def counted(objective, data, rate, share):
    """How often a loss is asked for letter v at place i of a canvas: (canvases, L, 3), summed over texts."""
    own, others = chances(data, rate, share)
    if objective == "noised_ce":  # what noise puts there does not depend on v
        own = rate * pi_of(share)[listing(K + 1, data.dim())][..., None]
    return own * others


def best_told(objective, data, rate, share):
    """The best log p of a network that is told the rate: what is asked for most; and of the bound, as
    tests/book/test_udlm.py proves, p(x_0^i | all tokens but the i-th), which is noised_ce's, too."""
    return log_share(chances(data, rate, share)[1] if objective != "all_ce" else counted(objective, data, rate, share))


def counts(objective, data, share):
    """counted() at all rates, each with its weight in an integral over them: (points, canvases, L, 3)."""
    return torch.stack([w * counted(objective, data, r.item(), share) for r, w in zip(*rates(POINTS))])


def value(objective, logp, count, share):
    """A loss in nats per text, at log p (points or 1, canvases, L, 3)."""
    at, L = (count > 0).nonzero(as_tuple=True), count.shape[2]
    logp, x0, z, r = logp.expand(*count.shape)[at[:3]], at[3], listing(K + 1, L)[at[1:3]], rates(POINTS)[0][at[0]]
    if objective == "nelbo":
        nats = udlm.token_bound(logp, x0, z, r, Config(vocab_size=K + 1, mask_share=share), MASK)
        return (count[at] * nats).sum()
    return L * (count[at] * F.nll_loss(logp, x0, reduction="none")).sum() / count.sum()


def best_untold(objective, data, share):
    """The best log p (canvases, L, 3) of one that is not: what is asked for most at all rates together. The bound's has
    no closed form, and is looked for."""
    if objective != "nelbo":
        return log_share(counts(objective, data, share).sum(0))
    logits, count = best_untold("noised_ce", data, share).requires_grad_(), counts("nelbo", data, share)
    search = torch.optim.LBFGS([logits], max_iter=60, tolerance_change=1e-7, line_search_fn="strong_wolfe")

    def loss():
        search.zero_grad()
        found = value("nelbo", logits.log_softmax(-1), count, share)
        found.backward()
        return found

    search.step(loss)
    return logits.detach().log_softmax(-1)


def measured(objective, told, data, share):
    """(least loss, NELBO, -log p) of the best network, floats."""
    table = None if told else best_untold(objective, data, share)

    def best(rate):
        return best_told(objective, data, rate, share) if told else table

    logp = torch.stack([best(r) for r in rates(POINTS)[0].tolist()])
    loss, bound = (value(x, logp, counts(x, data, share), share).item() for x in (objective, "nelbo"))
    law = law_of(lambda r: F.pad(best(r), (0, 1), value=-torch.inf), share)
    return loss, bound, -(data.flatten() * law.log()).sum().item()


def main(words):
    data = language(configurator.fill(configurator.read(words), Settings).length)
    entropy = -(data * data.log()).sum().item()
    print(f"Texts of {data.dim()} letters, of entropy {entropy:.3f} nats. NELBO and -log p: what is above it.\n")
    print("| noise | told t | loss | least loss | NELBO | -log p |\n|---|---|---|---|---|---|")
    kinds = (0.0, "letters", ("no", "yes")), (0.3, "30 % masks", ("no", "yes")), (1.0, "masks", ("all one",))
    for share, noise, words in kinds:  # a canvas of masks and clean letters tells as much whatever t is
        for told, word in enumerate(words):
            for objective in OBJECTIVES:
                loss, *others = measured(objective, told, data, share)
                others = " | ".join(f"+ {max(0.0, x - entropy):.3f}" for x in others)
                print(f"| {noise} | {word} | {objective} | {loss:.3f} | {others} |")


if __name__ == "__main__":
    console.run(main, sys.argv[1:])
