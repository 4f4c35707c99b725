"""Weights as whole numbers of eight bits (nanodlm/int8.py): how near the products are, and what the networks lose."""

from pydoc_data.topics import topics

import pytest
import torch

import mdlm
import sample
from model import Config, Transformer
from nanodlm import checkpoint as ckpt
from nanodlm import configurator, fast_mdlm, int8, lora
from train import Settings

SHIPPED = "checkpoints/pydocs_mdlm"


@pytest.mark.parametrize("shape", [(1, 7, 5), (3, 1, 1), (40, 193, 130), (0, 8, 4)], ids=str)
@pytest.mark.parametrize("whole", [True, False])
def test_a_product_is_off_by_half_a_step_of_each_factor_at_most(monkeypatch, shape, whole):
    """|sum of (x + e)(w + f) - sum of xw| <= sum of |x||f| + |w||e| + |e||f|, where e and f are half a step at most."""
    monkeypatch.setattr(int8, "whole_products", lambda: whole)
    (M, K, N), draw = shape, torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*size, generator=draw) for size in ((M, K), (N, K), (N,)))
    x[:1], weight[0] = 0, 100 * weight[0]  # nothing at all, and a row of large weights
    layer = int8.Int8(weight, bias)
    y = layer(x)
    e = x.abs().amax(1, keepdim=True) / 254 * whole  # without whole products, activations stay as they are
    f = weight.abs().amax(1, keepdim=True) / 254
    most = x.abs() @ f.expand(N, K).T + e.expand(M, K) @ weight.abs().T + K * e @ f.T
    assert ((y - torch.nn.functional.linear(x, weight, bias)).abs() <= 1.001 * most + 1e-5).all()
    assert torch.equal(y[:1], bias.expand(len(x[:1]), N)) and layer.codes.dtype == torch.int8
    assert torch.equal(layer(x[None]), y[None])
    if whole and layer.codes.numel() > 1:  # sums of integers have no order
        assert all(torch.equal(layer(x[i : i + 1]), y[i : i + 1]) for i in range(M))


@pytest.mark.parametrize("tied", [True, False])
def test_every_matrix_becomes_codes_but_the_embedding_and_nothing_is_counted_twice(tied):
    torch.manual_seed(0)
    model = Transformer(Config(vocab_size=90, seq_len=32, n_layer=2, n_head=2, n_embd=32, tied=tied)).eval()
    ids, count = torch.arange(24).view(2, 12), model.num_params()
    plain = model(ids).detach()
    coded = int8.quantize(model)
    assert coded.num_params() == count
    assert [n for n, p in coded.named_parameters() if p.dim() == 2 and p.dtype != torch.int8] == ["embed.weight"]
    assert 0 < (coded(ids) - plain).norm() < 0.05 * plain.norm()


def test_adapters_are_added_to_the_weights_first():
    pytest.importorskip("peft")
    torch.manual_seed(0)
    model = Transformer(Config(vocab_size=90, seq_len=32, n_layer=1, n_head=2, n_embd=32)).eval()
    ids = torch.arange(24).view(2, 12)
    before = model(ids).detach()
    lora.add_lora(model, 4, 8.0)
    for name, p in model.named_parameters():
        p.data.normal_(0, 0.3) if ".lora_" in name else None
    plain = model(ids).detach()
    coded = int8.quantize(model)
    assert not any(map(lora.is_adapter, dict(coded.named_parameters())))
    assert (coded(ids) - plain).norm() < 0.05 * (plain - before).norm()


def test_the_shipped_checkpoint_loses_less_than_a_hundredth_of_a_nat():
    plain, coded = ckpt.load(SHIPPED), ckpt.load(SHIPPED, dtype=torch.int8)
    ids = plain.tokenizer.encode(topics["typesseq"] + topics["exceptions"])[: 4 * 256]
    windows = torch.tensor(ids).view(4, 256)
    mask_id = plain.tokenizer.mask_id
    a, b = (mdlm.nelbo(c.model, windows, mask_id=mask_id, samples=2, seed=0) / 256 for c in (plain, coded))
    assert 0 < (a - b).abs().max() < 0.1 and abs((a - b).mean()) < 0.01
    for cache in ("none", "prefix", "dual"):
        options = fast_mdlm.SampleOptions(24, temperature=0.0, cache=cache, block_size=8, steps=6)
        out = fast_mdlm.generate(coded.model, [windows[0, :20], windows[1, :9]], options, mask_id=mask_id)
        assert [len(t) for t in out.tokens] == [44, 33]


def test_where_it_cannot_be_is_said(capsys):
    sample.main(["--dtype=int8", "--device=cpu", "--max_new_tokens=4", "--cache=dual"])
    assert "4 tokens in" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="^dtype=int8 is for CPUs; say --device=cpu, or --dtype=bfloat16$"):
        ckpt.load(SHIPPED, "cuda", torch.int8)
    with pytest.raises(SystemExit, match="dtype = 'int8' .* does not fit"):
        configurator.fill(configurator.read(["--dtype=int8"]), Settings)
