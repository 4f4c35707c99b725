"""Cross entropy in parts of the vocabulary: PyTorch's numbers and gradients, without its logits."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ar
import bd3lm
import mdlm
from model import Config, Transformer
from nanodlm import cross_entropy as ce


def plainly(x, weight, bias, targets, excluded):
    logits = F.linear(x, weight, bias)
    if excluded is not None:
        logits = logits.index_fill(1, torch.tensor(excluded), -torch.inf)
    return F.cross_entropy(logits.float() if logits.dtype == torch.bfloat16 else logits, targets, reduction="none")


def numbers(loss, x, weight, bias, targets, excluded):
    """Values and gradients at rows of different weights, one of them nothing and one negative."""
    given = [p.detach().clone().requires_grad_() for p in (x, weight, bias) if p is not None]
    value = loss(*given, *[None] * (3 - len(given)), targets, excluded)
    value.backward(torch.linspace(-1, 2, len(x), dtype=value.dtype))
    return [value.detach(), *(p.grad for p in given)]


@pytest.mark.parametrize("part, keep", [(2**22, 2**26), (1, 2**26), (1, 0)])  # in one, in parts, in parts made again
@pytest.mark.parametrize("vocab, excluded", [(2, 1), (5, 4), (33, 32), (50, None), (50, 7)])
def test_values_and_gradients_are_pytorch_s(monkeypatch, part, keep, vocab, excluded):
    monkeypatch.setattr(ce, "PART", part)
    monkeypatch.setattr(ce, "KEEP", keep)
    torch.manual_seed(0)
    x, weight, bias = torch.randn(7, 6).double() * 3, torch.randn(vocab, 6).double() * 3, torch.randn(vocab).double()
    targets = torch.randint(vocab - 1, (7,))
    targets = targets + (targets == 7 if excluded == 7 else 0)
    for b in (bias, None):
        found, want = (numbers(loss, x, weight, b, targets, excluded) for loss in (ce.cross_entropy, plainly))
        for a, c in zip(found, want, strict=True):
            torch.testing.assert_close(a, c, rtol=1e-11, atol=1e-12)
    given = [p.requires_grad_() for p in (x, weight, bias)]
    assert torch.autograd.gradcheck(lambda *p: ce.cross_entropy(*p, targets, excluded), given)


def test_far_logits_frozen_weights_no_rows_and_bfloat16(monkeypatch):
    monkeypatch.setattr(ce, "PART", 1)
    x, weight = torch.tensor([[1e4], [-1e4], [0.0]]), torch.tensor([[1.0], [0.5], [-1.0]])  # p = 1, 0, 1/3
    found, want = (numbers(f, x, weight, None, torch.zeros(3).long(), None) for f in (ce.cross_entropy, plainly))
    assert found[0].tolist() == want[0].tolist() and all(a.isfinite().all() for a in found)
    torch.testing.assert_close(found[1:], want[1:])
    frozen = x.clone().requires_grad_()
    ce.cross_entropy(frozen, weight, None, torch.zeros(3).long(), 2).sum().backward()
    assert frozen.grad is not None and weight.grad is None
    assert ce.cross_entropy(x[:0], weight, None, torch.zeros(0).long(), 2).shape == (0,)
    torch.manual_seed(0)
    x, weight = torch.randn(40, 16), torch.randn(90, 16)
    with torch.autocast("cpu", torch.bfloat16):
        found, want = (numbers(f, x, weight, None, torch.arange(40), 89) for f in (ce.cross_entropy, plainly))
    assert torch.allclose(found[0], want[0], atol=1e-5) and found[1].dtype == found[2].dtype == torch.float32
    assert all((a - b).norm() < 0.01 * b.norm() for a, b in zip(found[1:], want[1:]))


class Largest(TorchDispatchMode):
    """The most numbers that one new tensor had."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.most = max([getattr(self, "most", 0), *(x.numel() for x in tree_leaves(out) if torch.is_tensor(x))])
        return out


class Logits(Transformer):
    """A network that is asked for its logits, as any other's."""

    def forward(self, ids, mask=None, positions=None, rows=None):
        return super().forward(ids, mask, positions, rows=rows)


@pytest.mark.parametrize("tied", [False, True])
def test_every_loss_goes_without_the_table_of_logits_and_is_what_the_logits_give(monkeypatch, tied):
    monkeypatch.setattr(ce, "PART", 1)
    monkeypatch.setattr(ce, "KEEP", 0)
    x0 = torch.randint(639, (8, 32), generator=torch.Generator().manual_seed(0))
    for algorithm in (mdlm, bd3lm, ar):
        found = []
        for network in (Transformer, Logits):
            torch.manual_seed(0)
            model = network(Config(vocab_size=640, seq_len=32, n_layer=1, n_head=1, n_embd=8, tied=tied)).double()
            with Largest() as seen:
                value = algorithm.loss(model, x0, mask_id=639, seed=1)
                value.backward()
            found.append((seen.most, value.item(), [p.grad for p in model.parameters()]))
        (most, value, gradients), (table, want, others) = found
        assert most < table / 8 and value == pytest.approx(want, rel=1e-12), algorithm.__name__
        torch.testing.assert_close(gradients, others, rtol=1e-9, atol=1e-12)
