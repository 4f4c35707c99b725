"""Models that run through transformers: a mask that one of them would ignore, or misread, is followed or refused."""

from pathlib import Path

import pytest
import torch
import transformers

import train
from nanodlm import start
from nanodlm.checkpoint import Checkpoint
from nanodlm.int8 import quantize
from nanodlm.wrapped import Wrapped

SIZES = dict(vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
SIZES |= dict(max_position_embeddings=64, embedding_size=32, initializer_range=0.4, pad_token_id=0)
SIZES |= dict(ffn_dim=48, word_embed_proj_dim=32, n_layer=2, n_head=2)
PADDING = torch.tensor([[True, True, True, False]])
PAIRS = torch.eye(2).repeat_interleave(2, 0).repeat_interleave(2, 1).bool()[None]  # two and two


def wrapped(name, causal=False, **config):
    torch.manual_seed(0)
    cls = getattr(transformers, name)
    return Wrapped(cls(cls.config_class(**SIZES)).eval(), "Causal" in name)


def change(model, mask):
    """How the logits of four tokens change where the last one is another."""
    ids = torch.tensor([[8, 9, 10, 11], [8, 9, 10, 12]])
    with torch.no_grad():
        a, b = (model(row[None], mask=mask)[0] for row in ids)
    return (a - b).abs().amax(-1).tolist()


def test_its_matrices_become_whole_numbers():
    model, ids = wrapped("ElectraForMaskedLM"), torch.arange(3, 15).view(2, 6)
    with torch.no_grad():
        plain, count = model(ids), model.num_params()
        coded = quantize(model)
        assert 0 < (coded(ids) - plain).norm() < 0.05 * plain.norm() and coded.num_params() == count


@pytest.mark.parametrize("name", ["Electra", "SqueezeBert", "Albert"])
def test_padding_is_seen_by_nobody_and_pairs_see_each_other(name):
    model = wrapped(f"{name}ForMaskedLM")
    assert max(change(model, PADDING)[:3]) == 0 < min(change(model, torch.ones_like(PADDING))[:3])
    found = change(model, PAIRS)
    assert max(found[:2]) == 0 < min(found[2:])


@pytest.mark.parametrize("name", ["FNet", "Nystromformer", "ConvBert", "Yoso", "MobileBert"])
def test_who_would_let_padding_be_seen_refuses_it_and_reads_full_rows(name):
    model = wrapped(f"{name}ForMaskedLM")
    with pytest.raises(ValueError, match=f"^{name}ForMaskedLM, .*follow a mask of padding: give it texts of one l"):
        model(torch.tensor([[8, 9, 10, 11]]), mask=PADDING)
    assert len(change(model, torch.ones_like(PADDING))) == len(change(model, None)) == 4


@pytest.mark.parametrize("name", ["Rwkv", "Bloom", "OPT"])
def test_a_causal_model_that_cannot_be_told_to_look_ahead_says_so(name):
    model = wrapped(f"{name}ForCausalLM")
    assert change(model, PADDING)[:3] == change(model, None)[:3] == [0, 0, 0]
    model.config.causal = False
    for mask in (None, PADDING, PAIRS):
        with pytest.raises(ValueError, match="does not follow a mask of "):
            change(model, mask)


def test_a_causal_model_that_is_converted_looks_ahead_and_stays_as_it_was():
    model = wrapped("GPTNeoXForCausalLM").train()
    model.config.causal = False
    change(model, None)
    assert all(m.training for m in model.modules())
    assert min(change(model.eval(), None)) > 0 and max(change(model, PADDING)[:3]) == 0


@pytest.mark.parametrize("packing", [True, False])
def test_rows_are_packed_for_a_model_that_keeps_their_texts_apart_and_no_other(packing):
    for name in ("OPT", "GPTNeoX"):
        model = wrapped(f"{name}ForCausalLM")
        source, s = Checkpoint(model, None, "ar", {}, Path(name)), train.Settings(dataset="talk.jsonl")
        if packing and name == "OPT":
            with pytest.raises(SystemExit, match="OPT, .* does not follow a mask of who sees whom; leave out packing"):
                start.network_of(s, model.config, source, packing)
        else:
            assert start.network_of(s, model.config, source, packing)[0] is model


@pytest.mark.parametrize("mask", [(PAIRS, PAIRS), PAIRS[:, :2], torch.ones(1, 2, 3, 4).bool()])
def test_masks_of_blocks_are_refused(mask):
    with pytest.raises(ValueError, match="no attention by blocks; use mdlm or ar"):
        change(wrapped("ElectraForMaskedLM"), mask)
