"""What is hidden, chosen by what the network has learnt so far: two levers of a run's steps of masked diffusion.

Both take (model, x0 (B, L), mask_id, seed, memory) and give the loss in nats per token, a scalar; memory, a dict of
tensors, is theirs to keep from step to step.
"""

import torch
import torch.nn.functional as F

import mdlm
from experiments.puma import hidden_after
from nanodlm import noise

BINS, PHASES = 10, 8  # of times; steps in which a row goes from hidden to known


def learnt(model, x0, mask_id, seed, memory):
    """mdlm's bound, unbiased, with more rows where it varies most: times have a density over BINS bins in proportion to
    the root mean square of a row's bound there (Nichol and Dhariwal, arXiv 2102.09672, eq. 18), a tenth of it even; a
    row weighs one over its density."""
    (B, L), i = x0.shape, torch.arange(x0.shape[0])
    square = memory.setdefault("square", torch.ones(BINS).double())
    density = 0.1 + 0.9 * square.sqrt() / square.sqrt().mean()
    before = (density.cumsum(0) - density) / BINS  # what is drawn below each bin
    v = noise.stratified(seed, B)
    bin = torch.searchsorted(before, v, right=True) - 1
    t = (bin + ((v - before[bin]) * BINS / density[bin]).clamp(max=1)) / BINS
    k = ((t * L).long() + 1).clamp(max=L)
    u = noise.uniform(seed, 3, i[:, None], torch.arange(L))
    hidden = mdlm.hide_by_count(k, u, torch.ones_like(x0, dtype=torch.bool))
    nll = mdlm.hidden_nll(model, torch.where(hidden, mask_id, x0), x0, hidden, mask_id)
    weight = 1 / (k * density[bin])
    bound = torch.zeros(x0.shape).masked_scatter(hidden, nll.detach().float()).double().sum(1) / k
    for j, value in zip(bin.tolist(), bound.tolist()):
        square[j] += 0.05 * (value**2 - square[j])
    return (weight[:, None].expand(B, L)[hidden].to(nll) * nll).sum() / B


def chains(model, x0, mask_id, seed, memory):
    """Masks as decoding meets them (PUMA, arXiv 2602.10314; experiments/puma.py): a row of text stays for PHASES steps,
    from all of it hidden on; after each the tokens are revealed of which the network was surest, true ones. The loss is
    the cross entropy of what is hidden, each token alike."""
    (B, L), i = x0.shape, torch.arange(x0.shape[0])
    every = torch.ones_like(x0, dtype=torch.bool)
    if "x0" in memory and memory["x0"].shape == x0.shape:
        new = memory["phase"][:, None] == 0
        x0, hidden = torch.where(new, x0, memory["x0"]), every & new | memory["hidden"] & ~new
    else:  # rows begin at all places of the way, at first by any masks
        memory["phase"] = i % PHASES
        u = noise.uniform(seed, 3, i[:, None], torch.arange(L))
        hidden = mdlm.hide_by_count(hidden_after(L, memory["phase"], PHASES, 0.5), u, every)
    rows = hidden.flatten().nonzero()[:, 0]
    logits = model(torch.where(hidden, mask_id, x0), rows=rows).float()
    logits = logits.index_fill(1, torch.tensor([mask_id]), -torch.inf)
    sure = torch.zeros(B * L).index_copy(0, rows, logits.detach().softmax(-1).amax(-1)).view(B, L)
    memory["phase"] = (memory["phase"] + 1) % PHASES
    keep = hidden_after(L, memory["phase"], PHASES, noise.uniform(seed, 8, i))
    memory |= dict(x0=x0, hidden=mdlm.hide_by_count(keep, sure, hidden))  # the least sure stay hidden
    return F.cross_entropy(logits, x0.flatten()[rows])


WAYS = dict(learnt=learnt, chains=chains)
