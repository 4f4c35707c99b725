"""Weights held as whole numbers from -127 to 127 and multiplied as such (--dtype=int8): a quarter of float32's memory.

Every row of a matrix has a scale of its own, and so has what each token brings to it, found when it comes: the
vector-wise quantization of LLM.int8() (arXiv 2208.07339, section 3.1), but for its outliers. A token's scale depends on
no other one: a row of a batch is what it would be alone. Embeddings, norms, attention and sums stay float32."""

import sys
from functools import partial

import torch
import torch.nn.functional as F

from nanodlm.cross_entropy import of_logits
from nanodlm.experts import mixtures
from nanodlm.lora import merge


class Int8(torch.nn.Module):
    """What a linear layer of this weight (N, K) and bias (N) or None computes, nearly."""

    def __init__(self, weight, bias):
        super().__init__()
        codes, scale = coded(weight.detach().float())
        self.codes, self.bias = torch.nn.Parameter(codes, requires_grad=False), bias
        self.register_buffer("scale", scale[:, 0])

    @property
    def weight(self):
        """The weight that the codes stand for, float32 (N, K)."""
        return self.codes * self.scale[:, None]

    def forward(self, x):
        if not whole_products():
            return F.linear(x, self.weight, self.bias)
        codes, scale = coded(x.flatten(0, -2))
        y = (torch._int_mm(codes, self.codes.T) * scale).mul_(self.scale)
        return (y if self.bias is None else y.add_(self.bias)).unflatten(0, x.shape[:-1])


def coded(x):
    """(int8 codes of x (M, K), scale (M, 1)): x is nearly codes * scale."""
    scale = x.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
    return (x / scale).round().to(torch.int8), scale


def whole_products():
    """Whether the CPU sums products of int8 in int32: without VNNI, some would be cut off at int16."""
    return getattr(torch.cpu, "_is_vnni_supported", bool)()


def read(head, x, targets=None, excluded=None):
    """Transformer.head of an Int8."""
    return head(x) if targets is None else of_logits(head(x), targets, excluded)


@torch.no_grad()
def quantize(model):
    """A network in float32, adapters merged, its matrices as codes: those of linear layers, and the output head."""
    model = merge(model)
    if mixtures(model):
        sys.exit("dtype=int8 does not know mixtures of experts; take --dtype=bfloat16")
    tables = [m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    for module in list(model.modules()):
        for name, part in list(module.named_children()):
            if isinstance(part, torch.nn.Linear) and not any(part.weight is table for table in tables):
                setattr(module, name, Int8(part.weight, part.bias))
    if hasattr(model, "head_weight"):  # a tied one stays, too, as the table that it is
        head = Int8(model.embed.weight if model.config.tied else model.head_weight, model.head_bias)
        model.head = partial(read, head)
        if not model.config.tied:
            model.head_weight, model.codes_of_head = None, head
    return model.eval()
