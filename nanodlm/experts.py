"""Mixtures of experts: many MLPs in a layer, of which each token takes a few, chosen by a router.

The router gives every expert a score, s = softmax or sigmoid of W x, in float32. A token goes to the K experts of the
highest score, and y = sum_k w_k MLP_k(x), where w_k is the score of the k-th, divided by their sum where `router_norm`
says so, times `router_scale` (arXiv 2101.03961, eq. 2, for K = 1; DeepSeek-V3, arXiv 2412.19437, eq. 12-16, for the
rest). Where scores tie, the experts that come first are taken.

What keeps experts equally busy in training (train.Settings.balance): a bias for each, which is added to the scores for
the choice alone, and grows by a fixed step while the expert has less than its share (arXiv 2408.15664, algorithm 1);
or, where the router has none, a loss E sum_e f_e P_e of the tokens' share f and the mean score P (arXiv 2101.03961, eq.
4-6). Both come into the gradient here, so that neither the loop nor a loss knows of them: the bias's is what its expert
has had beyond its share, of which the optimiser takes the sign.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn


def check_settings(c):
    """ValueError where a model.Config's experts cannot be, or what is said of them would do nothing."""
    idle = {"shared_dim": 0, "dense_layers": 0, "router": "softmax", "router_norm": False, "router_bias": False}
    for name, usual in (idle | {"router_groups": (), "router_scale": 1.0}).items():
        if not c.experts and getattr(c, name) != usual:
            raise ValueError(f"{name}={getattr(c, name)} is of a mixture: set experts, or leave it out")
    if c.experts and not c.experts_per_token <= c.experts:
        raise ValueError(f"experts_per_token={c.experts_per_token} is more than the experts={c.experts} of a layer")
    if c.router_groups:
        if len(c.router_groups) != 2 or c.router_groups[0] < c.router_groups[1]:
            raise ValueError(f"router_groups={c.router_groups} must be (groups, those that a token may choose from)")
        groups, kept = c.router_groups
        if c.experts % groups or c.experts < 2 * groups or kept * (c.experts // groups) < c.experts_per_token:
            raise ValueError(
                f"router_groups={c.router_groups} does not fit experts={c.experts}, experts_per_token="
                f"{c.experts_per_token}: groups are equal, of two experts at least, and those kept hold enough"
            )
    if c.experts and c.mlp_bias:
        raise ValueError("experts have no biases: set mlp_bias=false")


class Experts(nn.Module):
    """The experts of a layer in place of its MLP, which gives the class of the shared one and the activation."""

    def __init__(self, config, mlp):
        super().__init__()
        c = self.config = config
        self.kind, self.act, gated = c.mlp, mlp.act, c.mlp in ("swiglu", "geglu")
        self.at_once = max(1, 2**25 // (c.expert_dim * c.experts_per_token))  # tokens, as in model.MLP
        self.router = nn.Parameter(torch.empty(c.experts, c.n_embd))
        self.router_bias = nn.Parameter(torch.zeros(c.experts)) if c.router_bias else None
        self.up = nn.Parameter(torch.empty(c.experts, c.expert_dim, c.n_embd))
        self.gate = nn.Parameter(torch.empty(c.experts, c.expert_dim, c.n_embd)) if gated else None
        self.down = nn.Parameter(torch.empty(c.experts, c.n_embd, c.expert_dim))
        self.shared = mlp(replace(c, mlp_dim=c.shared_dim)) if c.shared_dim else None
        # How many tokens each has had in training; a number also where the network is made without any (weights.empty).
        self.register_buffer("load", torch.zeros(c.experts, dtype=torch.int64, device="cpu"), persistent=False)
        self.balance = 0.0  # weight of the auxiliary loss

    def forward(self, x):
        """x (…, C), and so is what comes."""
        shape, x = x.shape, x.flatten(0, -2)
        if not torch.is_grad_enabled() and len(x) > self.at_once:
            return torch.cat([self(part) for part in x.split(self.at_once)]).view(shape)
        with torch.autocast(x.device.type, enabled=False):
            expert, weight = self.choose(x)
        y = self.routed(x, expert, weight)
        return (y if self.shared is None else y + self.shared(x)).view(shape)

    def choose(self, x):
        """The experts of each token, int64 (N, K), and their weights, at least fp32 (N, K)."""
        c, dtype = self.config, torch.promote_types(x.dtype, torch.float32)
        logits = F.linear(x.to(dtype), self.router.to(dtype))
        scores = logits.softmax(-1) if c.router == "softmax" else logits.sigmoid()
        wish = scores.detach() if self.router_bias is None else scores.detach() + self.router_bias
        if c.router_groups:  # of each group's two best: DeepSeek-V3, section 2.1.2
            groups, kept = c.router_groups
            of_group = wish.view(len(x), groups, -1)
            best = first(of_group.sort(-1, descending=True).values[..., :2].sum(-1), kept)
            open_ = torch.zeros(len(x), groups, dtype=torch.bool, device=x.device).scatter_(1, best, True)
            wish = of_group.masked_fill(~open_[..., None], -torch.inf).flatten(1)
        expert = first(wish, c.experts_per_token)
        weight = scores.gather(1, expert)
        if c.router_norm and c.experts_per_token > 1:
            weight = weight / weight.sum(-1, keepdim=True).clamp(min=1e-20)
        if self.training and torch.is_grad_enabled():
            count = tokens_of(expert, c.experts)
            self.load += count
            share = count / expert.numel()
            if self.router_bias is not None:
                weight = Besides.apply(weight, self.router_bias, TINY * (share - 1 / c.experts))
            elif self.balance:
                loss = c.experts * (share * c.experts_per_token * scores.mean(0)).sum()
                weight = Besides.apply(weight, loss, torch.full_like(loss, self.balance))
        return expert, weight * c.router_scale

    def routed(self, x, expert, weight):
        """sum_k weight_k MLP_k(x): tokens sorted by expert, so that each matrix meets all of its own at once."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        order = expert.flatten().argsort(stable=True)
        ends = tokens_of(expert, self.config.experts).cumsum(0).to(torch.int32)
        h = x.to(dtype)[order // expert.shape[1]]
        gate = None if self.gate is None else products(h, self.gate, ends)
        y = products(self.act(self.kind, products(h, self.up, ends), gate), self.down, ends)
        y = y[order.argsort()].view(*expert.shape, -1)  # each token's again, in the order of its experts
        return (y * weight[..., None].type_as(y)).sum(1)


def first(score, n):
    """The indices of the n highest scores of each row (N, E), and of those that tie the first ones."""
    return score.sort(dim=-1, descending=True, stable=True).indices[:, :n]


def tokens_of(expert, number):
    """How many tokens each expert has, int64 (number,)."""
    return torch.zeros(number, dtype=torch.int64, device=expert.device).scatter_add_(
        0, expert.flatten(), torch.ones_like(expert.flatten())
    )


def products(x, weight, ends):
    """x[i] @ weight[e].T for the rows i of x (N, C) that are expert e's: they end before ends[e], int32 (E,); weight is
    (E, F, C)."""
    if x.dtype == torch.float64:  # which the grouped product does not know
        return plain_products(x, weight, ends)
    return F.grouped_mm(x, weight.to(x.dtype).mT, offs=ends)


def plain_products(x, weight, ends):
    """The same, one expert after the other: the specification."""
    begins = [0, *ends.tolist()]
    return torch.cat([F.linear(x[a:b], w.to(x.dtype)) for a, b, w in zip(begins, begins[1:], weight)])


TINY = 1e-6  # of a bias's gradient, so that it counts for nothing where gradients are clipped: its sign is enough


class Besides(torch.autograd.Function):
    """x as it is; whoever minimises what is made of it gives `other` the gradient that stands here, besides."""

    @staticmethod
    def forward(ctx, x, other, gradient):
        ctx.save_for_backward(gradient)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, ctx.saved_tensors[0], None


def mixtures(model):
    """The Experts of a network."""
    return [m for m in model.modules() if isinstance(m, Experts)]
