"""Cross entropy where the vocabulary is large: its logits are made a part at a time, and never held all at once.

Written down plainly, the logits of N hidden tokens stand in memory up to four times: as they come, in float32, as log p
and as gradient. But -log p = log sum_v exp(logit_v) - logit of the target, and its gradient, p_v - [v is the target],
need one part of the vocabulary after the other. Where there are too many to keep, the backward pass makes them again: a
third more work in the head. The numbers are those of F.cross_entropy up to rounding.
"""

import inspect

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

PART, KEEP = 2**22, 2**26  # logits at a time, if that is not less than a 16th; logits kept for the backward pass


def nll(model, targets, excluded, ids, **keys):
    """-log p of targets (N,) at the N tokens that `rows` (one of the keys, which are a network's) names, at least fp32
    (N,), where the id `excluded`, or None, is impossible. Of a network that takes no targets it is made from its
    logits; these are returned where targets are None."""
    network = getattr(model, "module", model)  # of DDP
    network = getattr(network, "_orig_mod", network)  # of torch.compile
    if targets is not None and "targets" in inspect.signature(getattr(network, "forward", network)).parameters:
        return model(ids, **keys, targets=targets, excluded=excluded)
    return of_logits(model(ids, **keys), targets, excluded)


def of_logits(logits, targets, excluded):
    """nll() of logits (N, V)."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if excluded is not None:  # behind autograd's back, which would copy all logits: the gradient there is exp(-inf) = 0
        logits.detach()[:, excluded] = -torch.inf
    return logits if targets is None else F.cross_entropy(logits, targets, reduction="none")


def cross_entropy(x, weight, bias, targets, excluded):
    """F.cross_entropy(F.linear(x, weight, bias), targets, reduction="none") without the column `excluded`, for x
    (N, C), weight (V, C) and bias (V,) or None; at least fp32 (N,). Products are in autocast's dtype, if that is on."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    keep = torch.is_grad_enabled() and len(x) * len(weight) <= KEEP
    with torch.autocast(kind, enabled=False):
        return CrossEntropy.apply(x, weight, bias, targets, excluded, dtype, keep)


# As torch.compiler.disable says, which would import the compiler: the number of parts changes with N.
cross_entropy._torchdynamo_disable = True


class CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, targets, excluded, dtype, keep):
        ctx.given, ctx.kept = (excluded, dtype), []
        picked = x.new_full((len(x),), -torch.inf, dtype=torch.promote_types(x.dtype, torch.float32))
        sums = []  # log sum of exp(logits), of each part
        for part, y in parts(x, weight, bias, excluded, dtype):
            y, (at, here) = y.to(picked.dtype), inside(part, targets)
            picked = torch.where(here, y.gather(1, at)[:, 0], picked)
            p = y.softmax(1)  # which is faster than exp: the largest logit and its p say the sum
            sums.append(y.amax(1) - p.amax(1).log())
            ctx.kept += [(part, p.to(dtype))] if keep else []
        total = torch.stack(sums).logsumexp(0)
        ctx.save_for_backward(x, weight, bias, targets, (picked - total).expm1(), *[(s - total).exp() for s in sums])
        return total - picked

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, bias, targets, p_less_1, *shares = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_x = torch.zeros_like(x, dtype=grad.dtype) if need_x else None
        grad_weight = torch.empty_like(weight) if need_weight else None
        grad_bias = torch.empty_like(bias) if need_bias else None
        dtype = ctx.given[1]
        again = ((part, y.to(grad.dtype).softmax(1)) for part, y in parts(x, weight, bias, *ctx.given))
        for (part, p), share in zip(ctx.kept or again, shares):
            at, here = inside(part, targets)
            p = p * (share * grad)[:, None]
            p.scatter_(1, at, torch.where(here, p_less_1 * grad, p.gather(1, at)[:, 0])[:, None])
            if need_bias:
                grad_bias[part] = p.sum(0)
            p = p.to(dtype)
            if need_x:
                grad_x += p @ weight[part].to(dtype)
            if need_weight:
                grad_weight[part] = p.T @ x.to(dtype)
        return None if grad_x is None else grad_x.to(x.dtype), grad_weight, grad_bias, None, None, None, None


def parts(x, weight, bias, excluded, dtype):
    """(slice of the vocabulary, its logits (N, n)), one after the other; n is never 1, which might be the excluded."""
    vocab, x = len(weight), x.to(dtype)
    count = max(1, min(16, vocab // 2, -(-len(x) * vocab // PART)))
    for i in range(count):
        part = slice(i * vocab // count, (i + 1) * vocab // count)
        y = F.linear(x, weight[part].to(dtype), None if bias is None else bias[part].to(dtype))
        if excluded is not None and part.start <= excluded < part.stop:
            y[:, excluded - part.start] = -torch.inf
        yield part, y


def inside(part, targets):
    """The places (N, 1) of targets in a part of the vocabulary, and which of them (N,) are in it at all."""
    at = targets - part.start
    return at.clamp(0, part.stop - part.start - 1)[:, None], (at >= 0) & (targets < part.stop)
