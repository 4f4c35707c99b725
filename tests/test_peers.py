"""Beside checkouts of the published code, where there are any: the same tokens, estimates, losses and gradients."""

import os
from pathlib import Path

import pytest
import torch

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


def test_the_network_is_sure_of_several_tokens_at_once_but_not_of_all():
    s = peers.Settings(**SMALL)
    model, x = peers.network(s, "cpu"), peers.prompts(s, "cpu", 1)
    tokens, forwards = peers.our_tokens(s, model, x, quota="threshold", threshold=0.9)()
    assert 2 < forwards < s.length == len(tokens[0]) - len(x[0])


def test_rows_are_equal_only_to_the_last_token_and_up_to_rounding():
    assert peers.same_rows([torch.tensor([3, 4]), torch.tensor([5])], [torch.tensor([3, 4]), torch.tensor([6])]) == 1
    assert peers.same_rows([torch.tensor(2.0), torch.tensor(2.0)], [torch.tensor(2.00001), torch.tensor(2.0001)]) == 1


def test_checkouts_that_are_not_given_are_passed_over(capsys):
    assert peers.compare(peers.Settings()) == (0, 0)
    said = capsys.readouterr().out
    assert all(f"{name}: passed over" in said for name in peers.PEERS)
