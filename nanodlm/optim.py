"""Optimisers: AdamW, its 8-bit form, and Muon for the matrices of the blocks; an average of the weights."""

import contextlib
import sys

import torch

from nanodlm.device import pick_dtype


def orthogonal(x, dtype, steps=5):
    """x (m, n) with its singular values brought near 1, between 0.7 and 1.2, by a polynomial of odd degree 5 that is
    applied to them `steps` times (Newton-Schulz; Muon, kellerjordan.github.io/posts/muon; arXiv 2502.16982, eq. 2), in
    `dtype`."""
    tall = x.shape[0] > x.shape[1]
    y = x.to(dtype)
    y = y.T if tall else y
    y = y / y.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = y @ y.T
        y = 3.4445 * y + (-4.7750 * gram + 2.0315 * gram @ gram) @ y
    return y.T if tall else y


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal (with Nesterov's look ahead, and weights that decay), scaled so that
    a step is as large as AdamW's: 0.2 sqrt(max(m, n)) (arXiv 2502.16982, eq. 4).

    torch.optim.Muon is the same, but always computes in bfloat16: on a CPU that has none, a step of the quickstart
    takes 2.6 s instead of 0.3."""

    def __init__(self, params, lr, weight_decay=0.0, momentum=0.95, dtype=torch.float32):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, beta = group["lr"], group["momentum"]
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                mean = state["momentum_buffer"]
                mean.lerp_(p.grad, 1 - beta)
                update = orthogonal(p.grad.lerp(mean, beta), self.dtype)
                p.mul_(1 - lr * group["weight_decay"])
                p.add_(update, alpha=-lr * 0.2 * max(p.shape) ** 0.5)


def make(model, s, device):
    """The optimisers of a run, by train.Settings: a list; every group keeps its peak rate as base_lr."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    matrices = [p for n, p in named if p.dim() == 2 and n.startswith("blocks.")] if s.optimizer == "muon" else []
    taken = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": s.weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    keys = dict(lr=s.learning_rate, betas=(s.beta1, s.beta2))
    if s.optimizer == "adamw8bit":
        try:
            from torchao.optim import AdamW8bit
        except ImportError:
            sys.exit("optimizer=adamw8bit needs a package that is not among the requirements: pip install torchao")
        optimizers = [AdamW8bit(groups, **keys)]
    else:
        optimizers = [torch.optim.AdamW(groups, **keys, fused=torch.device(device).type == "cuda")]
    if s.optimizer == "muon" and not matrices:
        sys.exit(
            "optimizer=muon knows the blocks of our network only, and this one runs through transformers: use adamw"
        )
    if matrices:
        dtype = pick_dtype("auto", torch.device(device).type)[0]
        optimizers.append(Muon(matrices, s.muon_learning_rate, s.weight_decay, dtype=dtype))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return optimizers


def update_average(average, parameters, decay, it):
    """Move an average of weights, {name: tensor}, towards the parameters; at first faster, when it knows little."""
    decay = min(decay, (1 + it) / (10 + it))
    torch._foreach_lerp_(list(average.values()), [p.detach() for p in parameters.values()], 1 - decay)


@contextlib.contextmanager
def averaged(parameters, average):
    """Put the averaged weights into the network for a while; without an average (an empty dict) nothing is done."""
    kept = {n: parameters[n].detach().clone() for n in average}
    with torch.no_grad():
        for n in average:
            parameters[n].copy_(average[n])
    yield
    with torch.no_grad():
        for n in kept:
            parameters[n].copy_(kept[n])
