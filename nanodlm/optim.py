"""Optimisers: AdamW, its 8-bit form, and Muon for the matrices of the blocks; an average of the weights."""

import contextlib
import sys
from collections import defaultdict

import torch

from nanodlm.device import pick_dtype
from nanodlm.experts import mixtures


def orthogonal(x, dtype, steps=5):
    """Matrices x (k, m, n) with their singular values brought near 1, between 0.7 and 1.2, by a polynomial of odd
    degree 5 that is applied to them `steps` times (Newton-Schulz; Muon, kellerjordan.github.io/posts/muon; arXiv
    2502.16982, eq. 2), in `dtype`."""
    if len(x) > 1 and x.device.type == "cpu" and dtype == torch.float32:  # there, and there alone, one by one is faster
        return torch.cat([orthogonal(one, dtype, steps) for one in x.split(1)])
    tall = x.shape[1] > x.shape[2]
    y = x.to(dtype)
    y = y.mT if tall else y
    y = y / y.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = y @ y.mT
        y = torch.baddbmm(y, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), y, beta=3.4445)
    return y.mT if tall else y


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
            lr, beta, alike = group["lr"], group["momentum"], defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[p.shape].append(p)
            for shape, same in alike.items():  # matrices of one shape together
                for p in same:
                    if not self.state[p]:
                        self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                gradients, means = [p.grad for p in same], [self.state[p]["momentum_buffer"] for p in same]
                torch._foreach_lerp_(means, gradients, 1 - beta)
                updates = torch.stack(torch._foreach_lerp(gradients, means, beta))
                updates = orthogonal(updates.flatten(0, -3), self.dtype).view_as(updates)  # of each expert by itself
                torch._foreach_mul_(same, 1 - lr * group["weight_decay"])
                torch._foreach_add_(same, updates.unbind(), alpha=-lr * 0.2 * max(shape[-2:]) ** 0.5)


def make(model, s, device):
    """The optimisers of a run, by train.Settings: a list; every group keeps its peak rate as base_lr."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    inside = [(n, p) for n, p in named if p.dim() >= 2 and n.startswith("blocks.") and not n.endswith("mlp.router")]
    matrices = [p for _, p in inside] if s.optimizer == "muon" else []
    biases = [p for n, p in named if n.endswith("mlp.router_bias")]
    taken = {id(p) for p in (*matrices, *biases)}
    rest = [p for _, p in named if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": s.weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    if biases:  # AdamW without a memory takes the gradient's sign
        sign = {"lr": s.balance, "betas": (0.0, 0.0), "eps": 1e-15, "weight_decay": 0.0}
        groups.append({"params": biases} | sign)
    for layer in mixtures(model):
        layer.balance = s.balance / s.gradient_accumulation_steps
    keys = dict(lr=s.learning_rate, betas=(s.beta1, s.beta2))
    if s.optimizer == "adamw8bit":
        try:
            from torchao.optim import AdamW8bit
        except ImportError:
            sys.exit("optimizer=adamw8bit needs a package that is not among the requirements: pip install torchao")
        optimizers = [AdamW8bit(groups, **keys)]
    else:
        optimizers = [torch.optim.AdamW(groups, **keys, fused=torch.device(device).type in ("cpu", "cuda"))]
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


def loads(model):
    """{"busiest": how many times its share the busiest expert of any layer has had since this was last asked for}, or
    nothing where a network has no experts, or these have had no tokens."""
    found = [float(m.load.max() * len(m.load) / m.load.sum()) for m in mixtures(model) if m.load.any()]
    for m in mixtures(model):
        m.load.zero_()
    return {"busiest": max(found)} if found else {}


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
