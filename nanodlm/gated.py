"""Adapters that act at masks alone: whatever else a network reads, it reads as it did before ("gated LoRA", I-DLM,
arXiv 2604.11035). So an autoregressive model that learns to read masks remains itself: it can verify its own drafts."""

import torch

from model import Block, KVCache
from nanodlm import cross_entropy


def only_at(model, mask_id):
    """Let the low-rank adapters of a network act at masks alone.

    The embedding sees the ids of a pass; each block says which of its tokens go on behind its attention."""
    now = {}

    def begin(module, given, out):
        now["gate"] = (given[0] == mask_id)[..., None]  # (B, T, 1)

    def enter(module, given):
        x, rows, mask = given[:3]
        n = x.shape[1] if mask is None else mask.shape[-2]
        now["behind"] = now["gate"][:, :n] if rows is None else now["gate"][:, :n].flatten(0, 1)[rows]

    def close(module, given, out):
        gate = now["behind"] if out.dim() == 2 else now["gate"][:, : out.shape[1]]
        return out * gate.type_as(out)

    model.embed.register_forward_hook(begin)
    for name, module in model.named_modules():
        if isinstance(module, Block):
            module.register_forward_pre_hook(enter)
            module.mlp.at_once = 2**62  # its tokens together, as their gates are
        elif name.endswith(".lora_B.default"):
            module.register_forward_hook(close)
    model.apart = over_blocks
    return model


class InOrder(KVCache):
    """A cache in which tokens stand in the order in which they come, whatever their positions are."""

    begin = 0

    def reserve(self, positions, real):
        slots = self.begin + torch.arange(positions.shape[1], device=positions.device).expand_as(positions)
        self.filled.scatter_(1, slots, True)
        return slots


def over_blocks(model, xt, x0, rows, size, excluded, number, position, targets):
    """What bd3lm.predict gives for a shifted network, with its gradient, for less: clean tokens, at which nothing is
    trained, need none, and of the noised ones those blocks alone are read in which something is hidden.

    number, position  int64 (B, L): the text of each token, or None where a row is one, and its place there"""
    (B, L), device, network = xt.shape, xt.device, getattr(model, "module", model)
    number = torch.zeros_like(xt) if number is None else number
    j = torch.arange(L, device=device)
    block = (j + 1) // size  # of an input: that of the token it predicts
    asked = torch.zeros(B, block[-1] + 1, dtype=torch.bool, device=device)
    asked[rows // L, rows % L // size] = True
    asked = asked[:, block]  # (B, L), inputs
    width = int(asked.sum(1).max()) + 1  # the last one is nobody's, so that a row never ends in what is asked for
    cache = InOrder(network.config, B, L + width, device, network.embed.weight.dtype)
    same = number[:, :, None] == number[:, None]
    with torch.no_grad():
        seen = torch.zeros(B, L, L + width, dtype=torch.bool, device=device)
        seen[..., :L] = same & (j <= j[:, None])
        network.hidden(x0, mask=seen, positions=position, cache=cache, rows=rows[:1])
    order = (~asked).long().argsort(dim=1, stable=True)  # (B, L): first the inputs that are asked, in order
    order = torch.nn.functional.pad(order, (0, 1))[:, :width] if width > L else order[:, :width]
    theirs, texts = block[order], number.gather(1, order)
    same = texts[:, :, None] == number[:, None]
    clean = same & (block < theirs[:, :, None])
    own = (theirs[:, :, None] == theirs[:, None]) & (order[:, None] <= order[:, :, None])
    own &= texts[:, :, None] == texts[:, None]
    own[:, :-1, -1] = False  # nobody's may be a copy of the row's first
    column = torch.zeros(B, L, dtype=torch.int64, device=device)
    column.scatter_(1, order[:, : width - 1], torch.arange(width - 1, device=device).expand(B, -1))
    row, i = rows // L, rows % L
    at = row * width + column[row, (i - 1).clamp(min=0)] + (i > 0)  # from which the network's own shift takes one
    cache.begin, cache.filled[:] = L, True
    keys = dict(mask=torch.cat([clean, own], 2), positions=position.gather(1, order), cache=cache, rows=at)
    return cross_entropy.nll(model, targets, excluded, xt.gather(1, order), **keys)
