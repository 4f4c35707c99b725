"""What experiments/ says can be said again: the scripts run, at a size that says nothing, on what train.py makes. Those
that are missing here have tests elsewhere, but for load.py, which keeps a server busy for minutes."""

import pytest
import torch
from test_gguf import byte_level, vocabulary, write
from test_train import puzzle_data, run, text_data  # noqa: F401

from experiments import approximate, editing, orders, own_answers, policy_gradients, puma, repair, uniform_time
from nanodlm import checkpoint as ckpt


@pytest.fixture(scope="module")
def puzzles(puzzle_data, tmp_path_factory):  # noqa: F811
    """(the data set, a checkpoint that has seen 64 of them)."""
    out = tmp_path_factory.mktemp("run")
    run(puzzle_data, out, "--seq_len=33")
    return puzzle_data, out


def table(capsys):
    """The rows of the tables that were printed, without their heads, each a list of its cells."""
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    heads = [i for i, cells in enumerate(lines) if cells[0].startswith("---")]
    return [cells for i, cells in enumerate(lines) if i not in heads and i + 1 not in heads]


def test_edits(puzzles, capsys):
    editing.main([f"--dataset={puzzles[0]}", f"--checkpoint={puzzles[1]}", "--puzzles=2"])
    assert {row[0] for row in table(capsys)} >= {"--steps=1", "--threshold=0.9"}


def test_approximations(puzzles, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(approximate.corpus, "ROOT", tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/sudoku").symlink_to(puzzles[0])
    words = ["--only=sudoku", "--small", "--puzzles=2", f"--sudoku={puzzles[1]}", f"--out={tmp_path / 'points'}"]
    approximate.main(words)
    assert {"threshold", "LocalLeap", "WINO", "blocks of 8"} <= {row[0] for row in table(capsys)}


def test_estimates_of_gradients(puzzles, tmp_path, capsys):
    plot = tmp_path / "plot.png"
    policy_gradients.main(["--networks=1", "--seeds=2", f"--plot={plot}"])
    assert len(table(capsys)) > 4 and plot.stat().st_size > 1000


def test_times(capsys):
    uniform_time.main(["--seeds=1", "--iters=2", "--samples=2", "--rows=16"])
    assert [row[0] for row in table(capsys)] == ["nothing more", "time", "two passes", "last guess"]


def test_mending(text_data, tmp_path, capsys):  # noqa: F811
    run(text_data, tmp_path / "flow", "--algorithm=editflow", "--source=typos")
    run(text_data, tmp_path / "masks")
    words = [f"--checkpoint={tmp_path / 'flow'}", f"--baseline={tmp_path / 'masks'}", f"--dataset={text_data}"]
    repair.main([*words, "--windows=2", "--length=16", "--errors=0,2"])
    rows = table(capsys)
    assert [row[0] for row in rows] == ["0", "2"] and all("%" in row[1] for row in rows)
    with pytest.raises(SystemExit, match="masks is no edit flow of typos: train config/pydocs_typos.py"):
        repair.main([*words, f"--checkpoint={tmp_path / 'masks'}"])


def test_answers_of_its_own(tmp_path, capsys):
    write(tmp_path / "m.gguf", said=vocabulary(byte_level(), "smollm"))
    words = [str(tmp_path / "m.gguf"), f"--out={tmp_path / 'own/a.jsonl'}", "--question=4", "--answer=4"]
    own_answers.main([*words, "--rows=3", "--batch_size=2"])
    assert "a.jsonl: 0 conversations" in capsys.readouterr().out and (tmp_path / "own/a.jsonl").exists()


def test_masks_as_decoding_meets_them(puzzles, text_data, capsys):  # noqa: F811
    words = ["--iters=3", "--puzzles=2", "--batch_size=9", "--n_layer=1", "--n_head=2", "--n_embd=16"]
    puma.main([f"--dataset={puzzles[0]}", *words])
    assert [row[:2] for row in table(capsys)] == [["3", "at random"], ["3", "of decoding"]]
    with pytest.raises(SystemExit, match="is no data of rows of which a part is given; use sudoku"):
        puma.main([f"--dataset={text_data}"])


def test_a_row_goes_from_hidden_to_known():
    phase, u = torch.arange(8), torch.rand(8, generator=torch.Generator().manual_seed(0)).double()
    for n in (1, 5, 16, 81):
        counts = puma.hidden_after(n, phase, 8, u).tolist()
        assert counts[0] == n and counts == sorted(counts, reverse=True) and min(counts) >= 1


def test_orders(text_data, tmp_path, capsys):  # noqa: F811
    """Only what is revealed decides who is next: with two tokens, the four canvases say what each order costs."""
    run(text_data, tmp_path / "masks")
    words = [f"--dataset={text_data}", "--windows=2", "--length=5"]
    orders.main([f"--checkpoint={tmp_path / 'masks'}", *words])
    rows = table(capsys)
    assert [row[0] for row in rows] == ["random", "left to right", "confidence", "entropy", "least sure"]
    net = ckpt.load(tmp_path / "masks").model
    x0, M = torch.tensor([[1, 2], [3, 3]]), net.config.vocab_size - 1

    def log_p(canvas, place, token):
        logits = net(torch.tensor([canvas]))[0, place].double()
        logits[M] = -torch.inf
        return logits.log_softmax(-1)[token].item()

    for order in orders.ORDERS:
        own = orders.reveal(net, x0, order, M)[1].log().sum(1).tolist()
        for (a, b), found in zip(x0.tolist(), own):
            first = log_p([M, M], 0, a) + log_p([a, M], 1, b), log_p([M, M], 1, b) + log_p([M, b], 0, a)
            assert min(abs(found - x) for x in first[: 1 if order == "left_to_right" else 2]) < 1e-5, order
    with pytest.raises(SystemExit, match="orders=best: choose among random"):
        orders.main([f"--checkpoint={tmp_path / 'masks'}", *words, "--orders=best"])
