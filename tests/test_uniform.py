"""Uniform noise from the command line: trained, resumed, converted to, sampled, measured; and what it refuses."""

import json
import re

import pytest
import torch
from test_train import assert_same, run, stop_at, text_data  # noqa: F401

import convert_ar
import eval as evaluation
import sample
import udlm
from nanodlm import checkpoint as ckpt

UNIFORM = ["--algorithm=udlm", "--dtype=float32"]
RESUMED = ["--objective=noised_ce", "--init_from=resume", "--max_iters=9"]


@pytest.fixture(scope="module")
def checkpoints(text_data, tmp_path_factory):  # noqa: F811
    out = tmp_path_factory.mktemp("udlm")
    run(text_data, out / "whole", *UNIFORM, "--mask_share=0.25", "--objective=noised_ce")
    run(text_data, out / "blocks", *UNIFORM, "--block_size=4")
    run(text_data, out / "ar", "--algorithm=ar")
    return out


def test_a_run_stopped_and_resumed_is_the_run(text_data, tmp_path, monkeypatch):  # noqa: F811
    keys = [*UNIFORM, "--block_size=8", "--mask_share=0.5", "--schedule=poly2"]
    whole = run(text_data, tmp_path / "whole", "--max_iters=6", *keys)
    stop_at(monkeypatch, 3)
    run(text_data, tmp_path / "cut", "--max_iters=6", *keys)
    monkeypatch.undo()
    assert_same(whole, run(text_data, tmp_path / "cut", "--max_iters=6", *keys, "--init_from=resume"))


@pytest.mark.parametrize("name", ["whole", "blocks"])
def test_it_samples_fills_in_records_and_is_measured(checkpoints, name, tmp_path, capsys):
    base = [f"--checkpoint={checkpoints / name}", "--device=cpu"]
    page = tmp_path / "a.html"
    sample.main([*base, "--prompt=the quick", "--max_new_tokens=11", "--steps=5", "--num_samples=2", f"--html={page}"])
    assert "22 tokens in" in capsys.readouterr().out
    steps = json.JSONDecoder().raw_decode(page.read_text().split("const samples = ")[1])[0][0]["steps"]
    assert len({at for step in steps for at, *_ in step}) < sum(map(len, steps))  # somewhere a token was corrected
    given = "--quota=entropy_bound", "--entropy_bound=2", "--watch=true", "--delay=0"
    sample.main([*base, "--infill=the [MASK*5] brown [MASK]ox", "--steps=4", *given])
    assert re.search(r"the .{5} brown .ox", capsys.readouterr().out)
    sample.main([*base, "--prompt=the quick", "--max_new_tokens=9", "--steps=3", "--plain"])
    out = tmp_path / "r.json"
    evaluation.main([*base, "--windows=6", "--num_samples=2", "--steps=2", f"--out={out}"])
    found = json.loads(out.read_text())[0]
    assert found["likelihood"]["NELBO"]["nats_per_token"] > 1 and found["algorithm"] == "udlm"


def test_an_autoregressive_model_becomes_one_that_reads_no_mask(checkpoints, text_data, tmp_path, capsys):  # noqa: F811
    convert_ar.main([str(checkpoints / "ar"), f"--out={tmp_path / 'u'}", "--algorithm=udlm"])
    found = ckpt.load(tmp_path / "u")
    assert found.algorithm == "udlm" and not found.facts["fresh_mask"] and found.model.config.mask_share == 0
    run(text_data, tmp_path / "run", *UNIFORM, f"--init_from={tmp_path / 'u'}", "--max_iters=2")
    run(text_data, tmp_path / "half", *UNIFORM, f"--init_from={tmp_path / 'u'}", "--max_iters=2", "--mask_share=0.5")
    shares = [ckpt.load(tmp_path / name).model.config.mask_share for name in ("run", "half")]
    assert shares == [0.0, 0.5]


@pytest.mark.parametrize(
    "script,args,said",
    [
        (sample, ["--order=random"], "unknown key 'order'"),
        (sample, ["--quota=threshold"], "takes one of ancestral, entropy_bound"),
        (sample, ["--stable=2"], "stable=2 .* does nothing with quota=ancestral"),
        (sample, ["--quota=entropy_bound", "--forget=0.2"], "forget=0.2 .* does nothing with quota=entropy_bound"),
        (sample, ["--infill=nothing to do"], "has no hole"),
        (evaluation, ["--windows=2", "--chain_rule=confidence"], "is only bounded"),
    ],
)
def test_what_means_nothing_here_is_said(checkpoints, script, args, said):
    with pytest.raises(SystemExit, match=said):
        script.main([f"--checkpoint={checkpoints / 'whole'}", "--device=cpu", *args])


@pytest.mark.parametrize(
    "args,said",
    [
        (["--mask_share=1.5"], "mask_share.*from 0 to 1"),
        (["--noise_ids=5"], "noise_ids is what convert_ar.py"),
        (["--mask_share=0.5", "--algorithm=mdlm"], "algorithm=mdlm has no noise but its own"),
        (["--corruption=count"], "corruption=count is of masks"),
        (["--objective=masked_ce"], "takes one of nelbo, noised_ce, all_ce"),
        (["--block_size=99"], "block_size=99 must lie between 1 and the context"),
    ],
)
def test_training_says_so_before_it_begins(text_data, tmp_path, args, said):  # noqa: F811
    with pytest.raises((SystemExit, ValueError), match=said):
        run(text_data, tmp_path, *UNIFORM, *args)


def test_a_run_goes_on_with_the_share_that_it_had(checkpoints, text_data):  # noqa: F811
    with pytest.raises(SystemExit, match="mask_share"):
        run(text_data, checkpoints / "whole", *UNIFORM, "--mask_share=0", *RESUMED)


def test_parts_of_a_batch_have_the_sum_of_its_loss(checkpoints):
    model, x0 = ckpt.load(checkpoints / "blocks").model.double(), torch.randint(0, 9, (4, 16))
    for options in (udlm.LossOptions(block_size=4), udlm.LossOptions(objective="noised_ce")):
        keys = dict(mask_id=0, seed=3, denominator=64)
        whole = udlm.loss(model, x0, options, **keys)
        parts = sum(udlm.loss(model, x0[i : i + 2], options, **keys, shard=(i, 4)) for i in (0, 2))
        torch.testing.assert_close(whole, parts)
