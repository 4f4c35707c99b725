"""What the two public losses of uniform-state diffusion optimise, on a language of nine texts, all of it added up."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent / "book"))

from letters import language

from experiments import losses

DATA = language(2)
ENTROPY = -(DATA * DATA.log()).sum().item()


def measured(objective, told, share=0.0):
    return losses.measured(objective, told, DATA, share)


def test_a_flat_mean_over_noise_has_the_bound_s_network_where_t_is_told():
    loss, bound, exact = measured("noised_ce", True)
    assert bound == pytest.approx(ENTROPY, abs=1e-4) and exact == pytest.approx(ENTROPY, abs=1e-4)
    assert loss > ENTROPY + 0.02  # of a network that is perfect: it is another question


def test_a_flat_mean_over_all_tokens_is_below_the_entropy_and_its_network_is_worse():
    """It believes what it sees; told t, the more. Where all noise is masks there is nothing to believe."""
    for told, worse, exactly in ((False, 0.3, 0.1), (True, 0.7, 0.2)):
        loss, bound, exact = measured("all_ce", told)
        assert loss < ENTROPY - 0.1 and bound > ENTROPY + worse and bound > exact > ENTROPY + exactly
    loss, bound, _ = measured("all_ce", False, 1.0)
    assert loss < ENTROPY / 1.5 and bound == pytest.approx(ENTROPY, abs=1e-4)


def test_not_told_t_the_bound_s_own_network_is_the_best_and_worse_than_the_entropy():
    _, bound, exact = measured("nelbo", False)
    assert ENTROPY < exact < bound < ENTROPY + 0.01 < measured("noised_ce", False)[1]


def test_the_table_has_a_row_for_each(capsys):
    losses.main(["--length=1"])
    out = capsys.readouterr().out
    assert out.count("\n| ") == 1 + 5 * 3 and "| masks | all one | nelbo |" in out
