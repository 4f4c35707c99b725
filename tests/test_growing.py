"""Edit flows from the command line: trained, resumed, sampled, measured, replayed; and what they refuse."""

import json

import pytest
import torch
from test_train import assert_same, run, stop_at, text_data  # noqa: F401

import eval as evaluation
import sample
from nanodlm import checkpoint as ckpt

FLOW = ["--algorithm=editflow", "--dtype=float32"]


@pytest.fixture(scope="module")
def checkpoints(text_data, tmp_path_factory):  # noqa: F811
    out = tmp_path_factory.mktemp("editflow")
    run(text_data, out / "nothing", *FLOW, "--prompts=0.5", "--objective=counts")
    run(text_data, out / "typos", *FLOW, "--source=typos", "--errors=0.3")
    run(text_data, out / "mdlm", "--max_iters=1")
    return out


@pytest.mark.parametrize("keys", [["--source=typos", "--spread=2"], ["--source=noise", "--alignment=random"]])
def test_a_run_stopped_and_resumed_is_the_run(text_data, tmp_path, monkeypatch, keys):  # noqa: F811
    whole = run(text_data, tmp_path / "whole", "--max_iters=6", *FLOW, *keys)
    stop_at(monkeypatch, 3)
    run(text_data, tmp_path / "cut", "--max_iters=6", *FLOW, *keys)
    monkeypatch.undo()
    assert_same(whole, run(text_data, tmp_path / "cut", "--max_iters=6", *FLOW, *keys, "--init_from=resume"))


def test_it_writes_fills_in_mends_records_and_is_measured(checkpoints, tmp_path, capsys):
    base = [f"--checkpoint={checkpoints / 'nothing'}", "--device=cpu"]
    page, gif = tmp_path / "a.html", tmp_path / "a.gif"
    sample.main([*base, "--prompt=the quick", "--num_samples=2", "--steps=9", f"--html={page}", f"--gif={gif}"])
    assert capsys.readouterr().out.count("\nthe quick") == 2 and gif.stat().st_size > 100
    shown = json.JSONDecoder().raw_decode(page.read_text().split("const samples = ")[1])[0][0]
    assert shown["grows"] and "".join(shown["start"]) == "the quick"
    sample.main([*base, "--infill=the [MASK*5] brown", "--jumps=one", "--watch=true", "--delay=0"])
    assert "the " in capsys.readouterr().out
    mends = [f"--checkpoint={checkpoints / 'typos'}", "--device=cpu", "--prompt=the qick brown", "--max_new_tokens=4"]
    sample.main([*mends, "--temperature=0", "--steps=4"])
    sample.main([*mends, "--given=stays", "--steps=3"])
    assert "\nthe qick brown" in capsys.readouterr().out
    out = tmp_path / "r.json"
    paths = ",".join(str(checkpoints / name) for name in ("nothing", "typos"))
    words = ["--windows=6", "--num_samples=2", "--steps=2", "--device=cpu", f"--out={out}"]
    evaluation.main([f"--checkpoint={paths}", *words])
    a, b = (x["likelihood"] for x in json.loads(out.read_text()))
    assert a["NELBO"]["nats_per_token"] > 1 and b["NELBO from typos"]["nats_per_token"] > 0


def test_the_network_has_rows_of_its_own_and_remembers_what_it_begins_with(checkpoints):
    found = ckpt.load(checkpoints / "typos")
    assert found.model.config.source == "typos"
    assert found.model.config.vocab_size == 2 * found.tokenizer.vocab_size + 67


@pytest.mark.parametrize(
    "name,script,args,said",
    [
        ("nothing", sample, ["--order=random"], "unknown key 'order'"),
        ("nothing", sample, ["--jumps=one", "--steps=5"], "steps=5 .* does nothing with jumps=one"),
        ("nothing", sample, ["--steps=0"], "steps=0 is no number of steps"),
        ("nothing", sample, ["--algorithm=mdlm"], "is a network for algorithm=editflow, not for mdlm"),
        ("mdlm", sample, ["--algorithm=editflow"], "is a network for algorithm=mdlm, not for editflow"),
        ("typos", sample, ["--prompt=" + "the quick " * 9], "which fill the context"),
        ("nothing", evaluation, ["--windows=2", "--chain_rule=confidence"], "is only bounded"),
    ],
)
def test_what_means_nothing_here_is_said(checkpoints, name, script, args, said):
    with pytest.raises(SystemExit, match=said):
        script.main([f"--checkpoint={checkpoints / name}", "--device=cpu", *args])


def test_an_empty_text_to_mend_is_no_error(checkpoints, capsys):
    sample.main([f"--checkpoint={checkpoints / 'typos'}", "--device=cpu", "--max_new_tokens=3", "--steps=2"])
    assert "tokens in 2 forwards" in capsys.readouterr().out


@pytest.mark.parametrize(
    "args,said",
    [
        ([*FLOW, "--source=everything"], "takes one of nothing, masks, noise, typos"),
        (["--source=typos"], "algorithm=mdlm begins with masks, or noise: source is of --algorithm=editflow"),
        ([*FLOW, "--position=learned"], "position=learned does not go with algorithm=editflow"),
        ([*FLOW, "--complementary=true"], "unknown key 'complementary'"),
        ([*FLOW, "--t_min=0.5", "--t_max=0.1"], "t_min=0.5 exceeds t_max=0.1"),
        ([*FLOW, "--block_size=4"], "algorithm=editflow has no blocks"),
    ],
)
def test_training_says_so_before_it_begins(text_data, tmp_path, args, said):  # noqa: F811
    with pytest.raises((SystemExit, ValueError), match=said):
        run(text_data, tmp_path, *args)


def test_no_run_starts_from_another_kind_of_network_or_goes_on_as_another(checkpoints, text_data, tmp_path):  # noqa: F811
    with pytest.raises(SystemExit, match="is a network for --algorithm=mdlm, not for editflow"):
        run(text_data, tmp_path / "a", *FLOW, f"--init_from={checkpoints / 'mdlm'}")
    with pytest.raises(SystemExit, match="its source is typos, and here it is noise"):
        keys = ["--errors=0.3", "--init_from=resume", "--max_iters=9"]
        run(text_data, checkpoints / "typos", *FLOW, "--source=noise", *keys)
    again = run(text_data, tmp_path / "b", *FLOW, f"--init_from={checkpoints / 'typos'}", "--max_iters=1")
    assert all(torch.isfinite(w).all() for w in again["weights"].values())
