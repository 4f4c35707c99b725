"""The model of what decoding costs counts what goes through the network, exactly."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "experiments"))

import costs


@pytest.mark.parametrize("way", costs.WAYS)
@pytest.mark.parametrize("block_size, tokens_per_forward", [(4, 1), (8, 2), (16, 4)])
def test_forwards_tokens_pairs_and_logits_are_those_of_the_model(way, block_size, tokens_per_forward):
    tokens_per_forward = 1 if way == "published" else tokens_per_forward
    w = costs.Work(3, 32, 16, block_size, tokens_per_forward, vocab_size=64)
    model = costs.network(w)
    found = costs.counted(model, costs.decoder(way, model, w))
    assert found == costs.predicted(way, w) and found.tokens > found.forwards
    layers = sum(p.numel() for p in model.blocks.parameters() if p.dim() == 2)
    once = costs.Count(1, 1)
    assert once.flops(model.config) == 2 * layers


def test_the_small_run_draws_its_plots(tmp_path, capsys):
    costs.main(["--small", "--rounds=1", f"--out={tmp_path}"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["costs_canvas.png", "costs_tokens_per_forward.png"]
    assert "| canvas | 64 |" in capsys.readouterr().out
