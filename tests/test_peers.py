"""Beside checkouts of the published code, where there are any: the same tokens and estimates."""

import os
from pathlib import Path

import pytest

from experiments import peers

HERE = Path(os.environ.get("NANODLM_PEERS", "nowhere"))
SMALL = dict(n_layer=2, n_embd=64, vocab_size=211, length=16, rounds=1, device="cpu")


@pytest.mark.parametrize("name", peers.SECTIONS)
def test_what_the_published_code_gives_is_what_ours_gives(name):
    if not (HERE / name).is_dir():
        pytest.skip(f"NANODLM_PEERS names no folder with a checkout {name}")
    given = {peer: str(HERE / peer) for peer in peers.PEERS if (HERE / peer).is_dir()}
    equal, rows = peers.compare(peers.Settings(**given, **SMALL, only=name))
    assert equal == rows > 0


def test_checkouts_that_are_not_given_are_passed_over(capsys):
    assert peers.compare(peers.Settings()) == (0, 0)
    said = capsys.readouterr().out
    assert all(f"{name}: passed over" in said for name in peers.PEERS)
