"""Blocks of a shifted network (I-DLM, arXiv 2604.11035): an autoregressive model that also reads masks, and adapters at
masks alone. Tests of its self-verification are in tests/test_introspect.py."""

import copy

import pytest
import torch
import torch.nn.functional as F

import bd3lm
from model import Config, Transformer
from nanodlm import fast_bd3lm, gated, lora
from nanodlm.likelihood import LikelihoodOptions

VOCAB, M = 12, 11


def transformer(seed=0, L=13, **keys):
    torch.manual_seed(seed)
    net = Transformer(Config(vocab_size=VOCAB, seq_len=L, n_layer=2, n_head=2, n_embd=16, shift=True, **keys))
    for p in net.parameters():
        p.data.mul_(8 if p.dim() == 2 else 1)
    return net.double().eval()


def with_adapters(net):
    lora.add_lora(net, 2, 4, row=M)
    for name, p in net.named_parameters():
        if lora.is_adapter(name):
            p.data = torch.randn_like(p, dtype=torch.float64)
    return gated.only_at(net, M)


def texts(seed=1, shape=(3, 13)):
    return torch.randint(0, M, shape, generator=torch.Generator().manual_seed(seed))


def causal(n):
    return torch.ones(1, n, n, dtype=torch.bool).tril()


def next_token_nll(net, x):
    """-log p(x_i | x_<i) for i > 0 of the network as an autoregressive one, (B, L - 1)."""
    logits = net(x, mask=causal(x.shape[1]))  # whose shift puts the prediction of token i at place i
    logits[..., M] = -torch.inf
    return F.cross_entropy(logits[:, 1:].flatten(0, 1), x[:, 1:].flatten(), reduction="none").view(len(x), -1)


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("module", [bd3lm, fast_bd3lm], ids=["plain", "fast"])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_from_left_to_right_it_is_the_autoregressive_model_whatever_it_makes_of_masks(module, size, adapted):
    net, x = transformer(block_size=size), texts()
    nll = next_token_nll(net, x)[:, 1:].sum(1)
    net = with_adapters(net) if adapted else net
    options = LikelihoodOptions("left_to_right")
    ll = module.log_likelihood(net, list(x[:, :2]), list(x[:, 2:]), options, mask_id=M)
    assert (ll + nll).abs().max() < 1e-9


@pytest.mark.parametrize("size", [2, 3, 4, 13])
def test_one_pass_over_both_halves_equals_a_pass_per_block(size):
    """Each token from what is known before its block, and of the block what has been revealed before it."""
    net, x0 = transformer(2), texts(2)
    xt = torch.where(torch.rand(3, 13, generator=torch.Generator().manual_seed(1)) < 0.6, M, x0)
    together = bd3lm.predict(net, xt, x0, torch.arange(39), size, M).view(3, 13, VOCAB)
    for i in range(13):
        begin, n = i // size * size, max(i, 1)  # the first token has nothing before it, and asks its own place
        alone = net(torch.cat([x0[:, :begin], xt[:, begin:n], x0[:, n:] * 0], 1), mask=causal(13))[:, i]
        assert (together[:, i] - alone)[:, :M].abs().max() < 1e-10


def test_no_token_is_predicted_from_itself_or_from_what_comes_after_it():
    net, x0 = transformer(3), texts(3)
    xt = torch.where(torch.arange(13) % 3 == 1, x0, M)
    reference = bd3lm.predict(net, xt, x0, torch.arange(39), 4, M).view(3, 13, VOCAB)
    for i in range(13):
        other = torch.where(torch.arange(13) >= i, 10 - x0, x0)
        again = bd3lm.predict(net, torch.where(xt == M, M, other), other, torch.arange(39), 4, M).view(3, 13, VOCAB)
        assert torch.equal(again[:, : i + 1], reference[:, : i + 1])
        assert i == 12 or not torch.equal(again, reference)


@pytest.mark.parametrize("complementary", [False, True])
def test_the_clean_halfs_loss_is_that_of_the_next_token(complementary):
    net, x = transformer(4), texts(4)
    maskable = torch.rand(3, 13, generator=torch.Generator().manual_seed(0)) < 0.7
    keys = dict(block_size=4, complementary=complementary)
    alone, both = (
        bd3lm.loss(net, x, bd3lm.LossOptions(**keys, clean_weight=w), mask_id=M, maskable=maskable, seed=5)
        for w in (0.0, 0.3)
    )
    learnt = (next_token_nll(net, x) * maskable[:, 1:]).sum() / maskable.sum()
    assert abs(both - alone - 0.3 * learnt) < 1e-10


def test_the_clean_half_of_a_network_without_the_shift_is_refused_as_it_sees_its_answers():
    net = transformer(4)
    net.config.shift = False
    with pytest.raises(ValueError, match="clean_weight is of a shifted network"):
        bd3lm.loss(net, texts(), bd3lm.LossOptions(block_size=4, clean_weight=0.3), mask_id=M)


@pytest.mark.parametrize("size, L", [(2, 7), (3, 13), (4, 12), (5, 4)])
def test_adapters_at_masks_change_nothing_else_and_their_loss_needs_no_clean_gradient(size, L):
    """What is read at other tokens is the same to the bit; loss and gradients are those of a pass over both halves."""
    net = transformer(5, L, block_size=min(size, L))
    before, x = copy.deepcopy(net), texts(5, (3, L))
    net = with_adapters(net)
    assert torch.equal(net(x), before(x)) and not torch.equal(net(x * 0 + M), before(x * 0 + M))
    masked = torch.where(torch.arange(L) == L // 2, M, x)
    rows = torch.tensor([0, L // 2 + 1, L + L // 2 + 1, 3 * L - 1])
    whole = net(masked, mask=causal(L)).flatten(0, 1)
    assert (net(masked, mask=causal(L), rows=rows) - whole[rows]).abs().max() < 1e-12

    outcomes, apart = [], net.apart
    maskable = torch.rand(3, L, generator=torch.Generator().manual_seed(L)) < 0.5
    for way in (apart, None):
        delattr(net, "apart") if way is None else None
        net.zero_grad()
        value = bd3lm.loss(net, x, bd3lm.LossOptions(block_size=size), mask_id=M, maskable=maskable, seed=6)
        value.backward()
        outcomes.append([value, *(p.grad for p in net.parameters() if p.requires_grad)])
    assert outcomes[0][0] > 0
    for a, b in zip(*outcomes):
        assert (a - b).abs().max() < 1e-9
