"""The training loop: the same run however it is cut up, and nothing lost when something goes wrong."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ranks
import safetensors.torch
import torch

import bd3lm
import editflow
import eval as evaluation
import mdlm
import model
import sample
import train
import udlm
from experiments import compare
from model import Config
from nanodlm import checkpoint as ckpt
from nanodlm import corpus, optim
from nanodlm import tokenizer as tokenizers

ROOT = Path(__file__).resolve().parent.parent
TEXT = "the quick brown fox jumps over the lazy dog. pack my box with five dozen liquor jugs. "


@pytest.fixture(scope="module")
def text_data(tmp_path_factory):
    """A data set of characters, 8,600 of them."""
    path = tmp_path_factory.mktemp("chars")
    tok = tokenizers.load({"kind": "char", "chars": "".join(sorted(set(TEXT)))})
    corpus.write_dataset(
        path, tok, {"train": tok.encode(TEXT * 100), "val": tok.encode(TEXT * 10)}, bytes_per_token=1.0
    )
    return path


@pytest.fixture(scope="module")
def puzzle_data(tmp_path_factory):
    path = tmp_path_factory.mktemp("sudoku")
    command = [sys.executable, ROOT / "data/sudoku/prepare.py", "--num_train=50", "--num_val=8", f"--out={path}"]
    subprocess.run(command, check=True, capture_output=True)
    return path


TINY = [
    "--n_layer=1",
    "--n_head=2",
    "--n_embd=32",
    "--seq_len=32",
    "--batch_size=8",
    "--dtype=float32",
    "--warmup_iters=2",
]
TINY += ["--eval_windows=8", "--eval_samples=1", "--device=cpu", "--max_iters=4"]


def run(data, out, *more):
    train.main([*TINY, f"--dataset={data}", f"--out_dir={out}", *more])
    return ckpt.load_train_state(out / "last")


def assert_same(a, b, tolerance=0.0):
    for name in a["weights"]:
        torch.testing.assert_close(a["weights"][name], b["weights"][name], rtol=tolerance, atol=tolerance)


def stop_at(monkeypatch, iteration, number=signal.SIGTERM):
    """Send this process a signal during the given iteration's loss."""
    calls = []

    def stopping(original):
        def loss(*args, **keys):
            calls.append(1)
            if len(calls) == iteration:
                os.kill(os.getpid(), number)
            return original(*args, **keys)

        return loss

    for algorithm in (mdlm, bd3lm, udlm, editflow):
        monkeypatch.setattr(algorithm, "loss", stopping(algorithm.loss))


# ------------------------------------------------------------------------------------------------------------------
# one run, however it is cut up


BLOCKS = ["--algorithm=bd3lm", "--block_size=4"]
ADAPTIVE = [*BLOCKS, "--clip=adaptive", "--t_min=0.45", "--t_max=0.95", "--stages=7:block_size=16,13:block_size=4"]


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--optimizer=muon", "--ema=0.9", "--dropout=0.1", "--lr_schedule=wsd"],
        [*ADAPTIVE, "--eval_interval=5"],
    ],
)
def test_20_steps_equal_10_steps_a_signal_and_10_resumed_steps_bitwise(text_data, tmp_path, monkeypatch, options):
    whole = run(text_data, tmp_path / "whole", "--max_iters=20", *options)
    stop_at(monkeypatch, 10)
    half = run(text_data, tmp_path / "cut", "--max_iters=20", *options)
    assert half["iter"] == 10
    cut = run(text_data, tmp_path / "cut", "--max_iters=20", *options, "--init_from=resume")
    assert cut["iter"] == 20
    assert_same(whole, cut)
    one = safetensors.torch.load_file(tmp_path / "whole/last/model.safetensors")
    two = safetensors.torch.load_file(tmp_path / "cut/last/model.safetensors")
    assert all(torch.equal(one[k], two[k]) for k in one)
    iterations = [json.loads(x)["iter"] for x in (tmp_path / "cut/metrics.jsonl").read_text().splitlines()]
    assert iterations == sorted(iterations)


@pytest.mark.parametrize("options", [[], ["--complementary=true", "--objective=masked_ce"], ["--algorithm=ar"], BLOCKS])
def test_accumulation_over_4_micro_batches_equals_one_large_batch(text_data, tmp_path, options):
    large = run(text_data, tmp_path / "a", "--batch_size=16", *options)
    small = run(text_data, tmp_path / "b", "--batch_size=4", "--gradient_accumulation_steps=4", *options)
    assert_same(large, small, 2e-6)


def two_processes(text_data, out, *options):
    """train.py on two gloo processes, half of the batch each."""
    words = [*TINY, f"--dataset={text_data}", f"--out_dir={out}", "--batch_size=4", *options]
    ranks.run("import sys, train; sys.exit(train.main(sys.argv[1:]))", [*words, "--gradient_accumulation_steps=2"])


@pytest.mark.parametrize(
    "options", [["--ema=0.9", "--eval_interval=1", "--dropout=0"], ["--n_layer=2", "--tied=true", *BLOCKS]]
)
def test_parameters_in_parts_on_two_processes_take_the_steps_of_one_process(text_data, tmp_path, options):
    one = run(text_data, tmp_path / "one", "--batch_size=16", *options)
    two_processes(text_data, tmp_path / "two", "--sharding=fsdp", *options)
    assert_same(one, ckpt.load_train_state(tmp_path / "two/last"), 2e-6)
    a, b = ([json.loads(x) for x in (tmp_path / d / "metrics.jsonl").read_text().splitlines()] for d in ("one", "two"))
    assert a[-1]["val_nats"] == pytest.approx(b[-1]["val_nats"], abs=1e-5)
    saved = [safetensors.torch.load_file(tmp_path / d / "last/model.safetensors") for d in ("one", "two")]
    assert saved[0].keys() == saved[1].keys()  # gathered: whoever reads it need not know that it was in parts


def test_what_two_processes_saved_in_parts_goes_on_in_one_and_back(text_data, tmp_path):
    out = tmp_path / "parts"
    two_processes(text_data, out, "--sharding=fsdp", "--max_iters=2", "--lr_schedule=constant")
    shared = ["--batch_size=16", "--lr_schedule=constant", "--init_from=resume"]
    run(text_data, out, *shared, "--max_iters=4")
    two_processes(text_data, out, "--sharding=fsdp", "--max_iters=6", *shared[1:])
    whole = run(text_data, tmp_path / "constant", "--batch_size=16", "--max_iters=6", "--lr_schedule=constant")
    assert_same(whole, ckpt.load_train_state(out / "last"), 4e-6)
    with pytest.raises(SystemExit, match="its processes x batch_size x .* is 16, and here it is 8"):
        run(text_data, out, "--batch_size=8", "--max_iters=8", *shared[1:])


def test_two_gloo_processes_equal_one_process(text_data, tmp_path):
    one = run(text_data, tmp_path / "one", "--batch_size=16", "--gradient_accumulation_steps=1")
    two_processes(text_data, tmp_path / "two")
    assert_same(one, ckpt.load_train_state(tmp_path / "two/last"), 2e-6)
    a, b = ([json.loads(x) for x in (tmp_path / d / "metrics.jsonl").read_text().splitlines()] for d in ("one", "two"))
    assert a[-1]["val_nats"] == pytest.approx(b[-1]["val_nats"], abs=1e-5)  # each rank evaluated half of the windows
    assert a[-2]["train_loss"] == pytest.approx(b[-2]["train_loss"], abs=1e-5)


def test_evaluating_more_often_changes_nothing(text_data, tmp_path):
    """Averaged weights are there while it is evaluated, and no longer."""
    seldom = run(text_data, tmp_path / "a", "--eval_interval=100", "--dropout=0.2", "--ema=0.5")
    often = run(text_data, tmp_path / "b", "--eval_interval=1", "--dropout=0.2", "--ema=0.5")
    assert_same(seldom, often)


def test_training_lowers_the_validation_bound_and_leaves_its_records(text_data, tmp_path):
    run(text_data, tmp_path, "--max_iters=60", "--eval_interval=30", "--learning_rate=3e-3", "--tensorboard=true")
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    val = [x["val_nats"] for x in lines if "val_nats" in x]
    assert val[-1] < np.log(28)  # better than guessing
    assert val[-1] < val[0]
    assert {"iter", "train_loss", "lr", "tokens_per_s", "seconds"} <= lines[0].keys()
    assert (tmp_path / "loss.png").stat().st_size > 5000
    assert list((tmp_path / "tensorboard").iterdir())
    facts = json.loads((tmp_path / "best/config.json").read_text())
    assert facts["val_nats"] == min(val)


def test_a_resumed_run_takes_its_rates_from_the_command_line(text_data, tmp_path, monkeypatch):
    stop_at(monkeypatch, 2)
    before = run(text_data, tmp_path)
    after = run(text_data, tmp_path, "--init_from=resume", "--learning_rate=0")
    assert (before["iter"], after["iter"]) == (2, 4)
    assert_same(before, after)


def test_what_was_evaluated_is_not_evaluated_again(text_data, tmp_path):
    run(text_data, tmp_path, "--eval_interval=2", "--lr_schedule=constant")
    run(text_data, tmp_path, "--eval_interval=2", "--lr_schedule=constant", "--max_iters=6", "--init_from=resume")
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [x["iter"] for x in lines if "val_nats" in x] == [2, 4, 6]


def test_a_line_of_metrics_that_a_kill_cut_short_does_no_harm(text_data, tmp_path, monkeypatch):
    stop_at(monkeypatch, 2)
    run(text_data, tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as f:
        f.write('{"iter": 2, "train_lo')
    assert run(text_data, tmp_path, "--init_from=resume")["iter"] == 4
    assert all(json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())


def test_weights_are_written_once_where_they_are_exact_and_runs_that_have_them_twice_go_on(
    text_data, tmp_path, monkeypatch
):
    stop_at(monkeypatch, 2)
    before, file = run(text_data, tmp_path), tmp_path / "last/train_state.pt"
    assert "weights" not in torch.load(file)
    torch.save(before, file)  # as they were written once
    safetensors.torch.save_file({n: 0 * w for n, w in before["weights"].items()}, tmp_path / "last/model.safetensors")
    after = run(text_data, tmp_path, "--init_from=resume", "--learning_rate=0", "--save_dtype=bfloat16")
    assert_same(before, after)
    assert "weights" in torch.load(file)


def test_overwriting_a_run_leaves_nothing_of_it(text_data, tmp_path, monkeypatch):
    run(text_data, tmp_path)
    stop_at(monkeypatch, 1)
    run(text_data, tmp_path, "--overwrite=true")  # stopped before its first evaluation, so it has no best/
    assert ckpt.find(tmp_path) == tmp_path / "last"


def test_the_average_of_the_weights_is_what_is_saved(text_data, tmp_path):
    state = run(text_data, tmp_path, "--ema=0.5")
    saved = safetensors.torch.load_file(tmp_path / "last/model.safetensors")
    name = next(iter(saved))
    assert torch.equal(saved[name], state["ema"][name])
    assert not torch.equal(saved[name], state["weights"][name])


def spy_on_options(monkeypatch, *names):
    """A list that grows by the values of these loss options with every call of bd3lm.loss."""
    seen, original = [], bd3lm.loss

    def loss(model, x0, options, **keys):
        seen.append(tuple(getattr(options, name) for name in names))
        return original(model, x0, options, **keys)

    monkeypatch.setattr(bd3lm, "loss", loss)
    return seen


def test_stages_change_the_loss_options_at_their_iterations(text_data, tmp_path, monkeypatch):
    seen = spy_on_options(monkeypatch, "block_size", "t_max")
    stages = "--stages=2:block_size=32,3:t_max=0.5,5:block_size=8"
    run(text_data, tmp_path, *BLOCKS, stages, "--max_iters=6")
    assert seen == [(4, 1.0)] * 2 + [(32, 1.0), (32, 0.5), (32, 0.5), (8, 0.5)]
    saved = json.loads((tmp_path / "last/config.json").read_text())
    assert saved["model"]["block_size"] == 8 and saved["loss"]["t_max"] == 0.5  # what the run ended with


def test_adaptive_mask_rates_are_measured_at_evaluations_and_keep_their_distance(text_data, tmp_path, monkeypatch):
    seen = spy_on_options(monkeypatch, "t_min", "t_max")
    run(text_data, tmp_path, *BLOCKS, "--clip=adaptive", "--t_min=0.0", "--t_max=0.5", "--eval_interval=2")
    assert seen[:2] == [(0.0, 0.5)] * 2
    assert seen[2] == seen[3] != seen[0]  # the 1/t of small t varies most of all
    assert all(t_max - t_min == pytest.approx(0.5) for t_min, t_max in seen)


def test_block_diffusion_starts_from_masked_diffusion(text_data, tmp_path):
    run(text_data, tmp_path / "mdlm")
    run(text_data, tmp_path / "blocks", *BLOCKS, f"--init_from={tmp_path / 'mdlm'}", "--max_iters=1")
    assert ckpt.load(tmp_path / "blocks").model.config.block_size == 4


def test_learning_rate_schedules():
    def rates(**settings):
        s = train.Settings(max_iters=100, warmup_iters=10, **settings)
        return [train.get_lr(i, s) for i in range(101)]

    cosine, wsd, constant = rates(min_lr_fraction=0.1), rates(lr_schedule="wsd"), rates(lr_schedule="constant")
    assert cosine[0] == wsd[0] == constant[0] == pytest.approx(1 / 11)
    assert max(cosine) == pytest.approx(1.0) and cosine[100] == pytest.approx(0.1)
    assert wsd[50] == wsd[80] == 1.0 and wsd[90] == pytest.approx(0.5) and wsd[100] == 0.0
    assert constant[10:] == [1.0] * 91


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest():
    model = train.Transformer(Config(vocab_size=9, n_layer=2, n_head=2, n_embd=8))
    adamw, muon = optim.make(model, train.Settings(optimizer="muon"), "cpu")
    taken = {id(p) for g in muon.param_groups for p in g["params"]}
    assert taken == {id(p) for n, p in model.named_parameters() if n.startswith("blocks.") and p.dim() == 2}
    rest = [id(p) for g in adamw.param_groups for p in g["params"]]
    assert len(rest) == len(set(rest)) and taken.isdisjoint(rest)
    assert len(rest) + len(taken) == len(list(model.parameters()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_muon_takes_torchs_steps_in_a_precision_that_the_machine_has(dtype):
    """torch's computes in bfloat16 everywhere, and rounds at other places."""
    torch.manual_seed(0)
    ours, theirs = ([torch.nn.Parameter(p.clone()) for p in FLAT_AND_TALL] for _ in range(2))
    a = optim.Muon(ours, 0.02, 0.1, dtype=dtype)
    b = torch.optim.Muon(theirs, 0.02, 0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        for p, q in zip(ours, theirs):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    for p, q, start in zip(ours, theirs, FLAT_AND_TALL):
        assert (p - q).norm() < 0.02 * (q - start).norm()


FLAT_AND_TALL = [torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in ((12, 40), (33, 8))]


def test_muon_brings_singular_values_near_one():
    for x in FLAT_AND_TALL:
        values = torch.linalg.svdvals(optim.orthogonal(x[None], torch.float32))
        assert 0.6 < values.min() and values.max() < 1.3


def test_a_run_starts_from_another_checkpoints_weights(text_data, tmp_path):
    first = run(text_data, tmp_path / "a")
    second = run(text_data, tmp_path / "b", f"--init_from={tmp_path / 'a'}", "--learning_rate=0", "--max_iters=1")
    assert_same(first, second)


def test_puzzles_train_on_their_solutions_only(puzzle_data, tmp_path, monkeypatch):
    seen, original = [], mdlm.loss
    monkeypatch.setattr(mdlm, "loss", lambda *a, **k: seen.append(k) or original(*a, **k))
    run(puzzle_data, tmp_path, "--seq_len=33", "--max_iters=1")
    assert not seen[0]["maskable"][:, :17].any() and seen[0]["maskable"][:, 17:].all()
    assert seen[0]["denominator"] == 8 * 16


# ------------------------------------------------------------------------------------------------------------------
# bad input


@pytest.mark.parametrize(
    "args, words",
    [
        (["--learning_rat=1"], "learning_rat.*did you mean learning_rate"),
        (["--batch_size=many"], "batch_size.*many.*whole number"),
        (["--batch_size=0"], "batch_size = '0' .*of at least 1"),
        (["--device=cuda"] if not torch.cuda.is_available() else ["--device=gpu"], "device.*cuda"),
        (["--lr_schedule=linear"], "lr_schedule.*cosine, wsd, constant"),
        (["config/quikstart.py"], "quikstart.*did you mean config/quickstart.py"),
        (["--algorithm=gan"], "no algorithm 'gan'.*ar, bd3lm, editflow, grpo, mdlm, udlm"),
        (["--dataset=nowhere"], "no data set 'nowhere'.*pydocs"),
        (["--vocab_size=5"], "vocab_size=5.*leave it at 0"),
        (["--n_embd=30", "--n_head=4"], "n_embd=30.*n_head=4"),
        (["--seq_len=100000"], "shorter than one window"),
        (["--init_from=nowhere"], "no checkpoint in 'nowhere'"),
        (["--init_from=resume"], "no checkpoint in"),
        (["--schedule=exponential"], "unknown schedule 'exponential'"),
        (["--algorithm=bd3lm", "--block_size=33"], "block_size=33.*context, seq_len=32"),
        (["--algorithm=bd3lm", "--seq_len=8"], "block_size=16 exceeds the context, seq_len=8"),
        (["--block_size=4"], "algorithm=mdlm has no blocks; use --algorithm=bd3lm"),
        (["--algorithm=bd3lm", "--clip=adaptive", "--objective=masked_ce"], "use objective=nelbo"),
        (["--algorithm=bd3lm", "--clip=adaptive"], "clip=adaptive slides a part of"),
        (
            ["--algorithm=bd3lm", "--shift=true", "--block_size=1"],
            "block_size=1 of a shifted network is autoregression",
        ),
        (["--algorithm=bd3lm", "--clean_weight=0.1"], "clean_weight is of a shifted network"),
        (["--lora_at=masks"], "lora_at=masks is of adapters.*give lora_r"),
        (["--algorithm=bd3lm", "--stages=1:block_size=99,2:block_size=4"], "block_size=99 exceeds the context"),
        (["--t_max=1.5"], "t_max = .1.5. .*from 0 to 1"),
        (["--stages=block_size=4"], "'block_size=4' is not of the form iteration:key=value"),
        (["--stages=9:t_max=1,3:t_max=0.5"], "'3:t_max=0.5'.*before"),
        (["--stages=9:t_maxx=1"], "no loss option; there are.*t_max"),
        (["--stages=9:t_max=high"], "t_max = 'high'.*a number"),
        (["--stages=9:schedule=steep"], "unknown schedule 'steep'"),
    ],
)
def test_bad_settings_are_one_clear_sentence(text_data, tmp_path, args, words):
    with pytest.raises(SystemExit, match=words):
        run(text_data, tmp_path / "out", *args)
    assert not (tmp_path / "out/last").exists()


def test_a_missing_data_file_names_the_command_that_makes_it(tmp_path, monkeypatch):
    (tmp_path / "data/pydocs").mkdir(parents=True)
    (tmp_path / "data/pydocs/prepare.py").touch()
    monkeypatch.setattr(corpus, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match="python data/pydocs/prepare.py"):
        run("pydocs", tmp_path / "out")


def test_an_out_dir_that_holds_a_run_is_not_overwritten(text_data, tmp_path):
    before = run(text_data, tmp_path)
    with pytest.raises(SystemExit, match="already holds a run.*resume.*overwrite"):
        run(text_data, tmp_path, "--max_iters=1")
    assert ckpt.load_train_state(tmp_path / "last")["iter"] == before["iter"]
    assert run(text_data, tmp_path, "--max_iters=1", "--overwrite=true")["iter"] == 1


def test_resuming_with_other_sizes_names_the_first_difference(text_data, tmp_path):
    run(text_data, tmp_path)
    with pytest.raises(SystemExit, match="n_layer=1.*asks for 2"):
        run(text_data, tmp_path, "--n_layer=2", "--init_from=resume")
    with pytest.raises(SystemExit, match="processes x batch_size x gradient_accumulation_steps is 8, and here it is 4"):
        run(text_data, tmp_path, "--batch_size=4", "--init_from=resume")


@pytest.mark.parametrize("bad, words", [(200, "holds id 200, outside the vocabulary"), ("mask", "mask id")])
def test_ids_that_do_not_belong_in_the_text_stop_the_run(text_data, tmp_path, bad, words):
    meta = corpus.load_meta(str(text_data))
    for name in ("meta.json", "val.bin"):
        (tmp_path / name).write_bytes((text_data / name).read_bytes())
    ids = np.full(400, meta["mask_id"] if bad == "mask" else bad, dtype=meta["dtype"])
    (tmp_path / "train.bin").write_bytes(ids.tobytes())
    with pytest.raises(SystemExit, match=words):
        run(tmp_path, tmp_path / "out")


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(text_data, tmp_path, monkeypatch):
    original, calls = mdlm.loss, []

    def loss(*args, **keys):
        calls.append(1)
        return original(*args, **keys) * (float("nan") if len(calls) == 7 else 1)

    monkeypatch.setattr(mdlm, "loss", loss)
    with pytest.raises(SystemExit, match="not finite.*before 10.*lower learning rate"):
        run(text_data, tmp_path, "--max_iters=20", "--eval_interval=5")
    state = ckpt.load_train_state(tmp_path / "last")
    assert state["iter"] == 5 and all(p.isfinite().all() for p in state["weights"].values())


def test_a_full_disk_costs_a_warning_and_at_the_end_an_error(text_data, tmp_path, monkeypatch, capsys):
    original, calls = ckpt.save, []

    def save(*args, **keys):
        calls.append(1)
        if len(calls) > 2:
            raise OSError("could not save: no space left on device")
        original(*args, **keys)

    monkeypatch.setattr(ckpt, "save", save)
    with pytest.raises(SystemExit, match="could not be saved"):
        run(text_data, tmp_path, "--eval_interval=2")
    assert "no space left" in capsys.readouterr().out
    assert ckpt.load_train_state(tmp_path / "last")["iter"] == 2


def test_a_corrupted_train_state_is_named(text_data, tmp_path):
    run(text_data, tmp_path)
    state = tmp_path / "last/train_state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(SystemExit, match="train_state.pt is corrupted.*--init_from"):
        run(text_data, tmp_path, "--init_from=resume")


# ------------------------------------------------------------------------------------------------------------------
# command lines


def test_a_comparison_trains_its_pairs_once_and_prints_by_how_much_the_first_is_ahead(text_data, tmp_path, capsys):
    small = ["--batch_size=4", "--max_iters=2", f"--dataset={text_data}", "--eval_windows=4", "--device=cpu"]
    train.main(["--algorithm=ar", *small, *TINY[:4], f"--out_dir={tmp_path / 'ar'}"])
    runs = [(name, f"config/pydocs_ar_mdlm.py {more}") for name, more in (("first", ""), ("second", compare.RANDOM))]
    args = [*small, f"--convert={tmp_path / 'ar'}", f"--init_from={tmp_path / 'start'}", f"--out={tmp_path / 'runs'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(compare.COMPARISONS, "tiny", ([], runs))
        compare.main(["tiny", *args])
        first = capsys.readouterr().out
        compare.main(["tiny", *args])
        second = capsys.readouterr().out
    facts = [json.loads((p / "last/config.json").read_text()) for p in sorted((tmp_path / "runs").iterdir())]
    ahead = facts[1]["val_bpb"] - facts[0]["val_bpb"]
    assert f"| {ahead:.3f} bits, " in first.splitlines()[-2] and first.splitlines()[-2].startswith("| first | 2 |")
    assert first.splitlines()[-1].startswith(f"| second | 2 | {facts[1]['val_nats']:.3f} ±")
    assert second.splitlines()[1:] == first.splitlines()[-4:] and "compare: " not in second  # nothing is trained twice
    with pytest.raises(SystemExit, match="one of minilm, pydocs, endings, ladder, not 'pydoc'"):
        compare.main(["pydoc"])


def test_scripts_print_help(capsys):
    for main, *args in ((train.main,), (sample.main,), (evaluation.main,), (compare.main, "ladder")):
        with pytest.raises(SystemExit):
            main([*args, "--help"])
    text = capsys.readouterr().out
    assert "--learning_rate=0.001  (a number from 0 to 1e15)  AdamW's" in text
    assert "--temperature" in text and "--infill" in text and "--chain_rule" in text


# ------------------------------------------------------------------------------------------------------------------
# sample.py and eval.py on a run of our own


@pytest.fixture(scope="module")
def trained(text_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    run(text_data, out / "mdlm", "--max_iters=30")
    run(text_data, out / "ar", "--max_iters=30", "--algorithm=ar")
    run(text_data, out / "bd3lm", "--max_iters=30", *BLOCKS)
    return out


def test_sample_continues_fills_in_and_writes_replays(trained, tmp_path, capsys):
    page, gif = tmp_path / "a.html", tmp_path / "a.gif"
    base = [f"--checkpoint={trained / 'mdlm'}", "--device=cpu"]
    sample.main([*base, "--prompt=the quick", "--num_samples=2", "--steps=4", f"--html={page}", f"--gif={gif}"])
    out = capsys.readouterr().out
    assert out.count("the quick") >= 2 and "8 forwards" in out and "tokens/s" in out
    assert "DATA" not in page.read_text() and '"steps"' in page.read_text()
    assert gif.read_bytes()[:3] == b"GIF"
    sample.main(
        [*base, "--infill=the [MASK*5] brown [MASK]ox", "--watch=true", "--delay=0", f"--suppress={len(set(TEXT))}"]
    )
    out = capsys.readouterr().out
    assert re.search(r"the .{5} brown .ox", out) and "6 tokens" in out


@pytest.mark.parametrize("algorithm", [mdlm, bd3lm], ids=["mdlm", "bd3lm"])
def test_plain_decodes_by_the_file_that_one_reads_and_prints_the_same(trained, monkeypatch, capsys, algorithm):
    asked, original = [], algorithm.generate
    monkeypatch.setattr(algorithm, "generate", lambda *a, **k: asked.append(1) or original(*a, **k))
    base = [f"--checkpoint={trained / algorithm.__name__}", "--device=cpu", "--prompt=the", "--max_new_tokens=9"]
    said = []
    for more in ([], ["--plain"]):
        sample.main([*base, *more])
        said.append(capsys.readouterr().out.split("--- sample")[1].rpartition("---")[0])
        assert len(asked) == len(more)
    assert said[0] == said[1]
    with pytest.raises(SystemExit, match="cache .the command line. is an option of the fast sampler alone"):
        sample.main([*base, "--plain", "--cache=none"])
    sample.main([*base, "--plain", "--preset=llada"])
    assert "plain: without" in capsys.readouterr().out and len(asked) == 2


def test_sample_continues_with_an_ar_checkpoint(trained, capsys):
    sample.main([f"--checkpoint={trained / 'ar'}", "--device=cpu", "--prompt=the", "--max_new_tokens=7"])
    assert "7 tokens in 7 forwards" in capsys.readouterr().out


@pytest.mark.parametrize(
    "args, words",
    [
        (["--prompt=ABC"], "'A', which is outside"),
        (["--prompt=" + "a" * 40], "40 tokens, which fill the context of 32"),
        (["--prompt=abc", "--max_new_tokens=100"], "--max_new_tokens=29"),
        (["--infill=abc"], r"no hole.*\[MASK\]"),
        (["--quota=threshold", "--order=random"], "quota=threshold.*order=confidence"),
        (["--temprature=1"], "temprature.*temperature"),
        (["--suppress=3,999"], "suppress=999.*30 token ids"),
        (["--html=nowhere/a.html"], "there is no directory nowhere"),
    ],
)
def test_sample_explains_bad_input(trained, args, words):
    with pytest.raises(SystemExit, match=words):
        sample.main([f"--checkpoint={trained / 'mdlm'}", "--device=cpu", *args])


def test_ar_checkpoints_refuse_holes(trained):
    with pytest.raises(SystemExit, match="cannot fill in masks"):
        sample.main([f"--checkpoint={trained / 'ar'}", "--device=cpu", "--infill=a[MASK]b"])


def test_eval_prints_one_table_for_both_kinds_and_writes_json(trained, tmp_path, capsys):
    out = tmp_path / "r/results.json"
    paths = f"--checkpoint={trained / 'mdlm'},{trained / 'ar'}"
    keys = ["--windows=6", "--chain_rule=left_to_right", "--chain_windows=2", "--num_samples=2", "--device=cpu"]
    evaluation.main([paths, *keys, f"--out={out}"])
    text = capsys.readouterr().out
    assert "| NELBO, a bound |" in text and "| exact |" in text and "left_to_right" in text and "entropy" in text
    results = json.loads(out.read_text())
    assert [r["algorithm"] for r in results] == ["mdlm", "ar"]
    first = results[0]
    bits = first["likelihood"]["NELBO"]
    assert bits["bits_per_byte"] == pytest.approx(bits["nats_per_token"] / np.log(2))  # one byte per character
    assert {"settings", "sampling", "torch", "git", "date", "threads"} <= first.keys()


def test_eval_measures_what_training_measured(text_data, tmp_path, capsys):
    run(text_data, tmp_path, "--eval_windows=8", "--eval_samples=3", "--ema=0.5", "--learning_rate=0.01")
    logged = json.loads((tmp_path / "last/config.json").read_text())["val_nats"]
    out = tmp_path / "r.json"
    evaluation.main([f"--checkpoint={tmp_path}", "--windows=8", "--samples=3", "--device=cpu", f"--out={out}"])
    assert json.loads(out.read_text())[0]["likelihood"]["NELBO"]["nats_per_token"] == pytest.approx(logged, abs=1e-5)


def test_sample_writes_block_by_block_beyond_the_context(trained, tmp_path, capsys):
    base = [f"--checkpoint={trained / 'bd3lm'}", "--device=cpu"]
    page = tmp_path / "a.html"
    sample.main([*base, "--prompt=the quick", "--max_new_tokens=70", "--stop_at_eos=false", f"--html={page}"])
    out = capsys.readouterr().out
    assert "70 tokens in 88 forwards" in out and page.exists()  # 70 steps; the prompt and 17 blocks stored
    sample.main([*base, "--infill=the [MASK*5] brown [MASK]ox", "--watch=true", "--delay=0", "--cfg_scale=1"])
    assert re.search(r"the .{5} brown .ox", capsys.readouterr().out)
    with pytest.warns(UserWarning, match="trained on blocks of 4 tokens, not 8"):
        sample.main([*base, "--prompt=the quick", "--block_size=8", "--window=16", "--max_new_tokens=40"])


@pytest.mark.parametrize(
    "args, words",
    [
        (["--block_size=64"], "block_size=64 exceeds the context of 32"),
        (["--window=3"], "window=3 is smaller than a block of 4"),
        (["--cache=sometimes"], "cache.*kept, parts, block, none"),
    ],
)
def test_sample_explains_bad_input_for_blocks(trained, args, words):
    with pytest.raises(SystemExit, match=words):
        sample.main([f"--checkpoint={trained / 'bd3lm'}", "--device=cpu", "--prompt=abc", *args])


def test_eval_measures_blocks_and_says_when_they_are_not_those_of_training(trained, tmp_path, capsys):
    keys = [f"--checkpoint={trained / 'bd3lm'}", "--windows=6", "--device=cpu"]
    evaluation.main([*keys, "--chain_rule=left_to_right,confidence", "--chain_windows=2", "--num_samples=2"])
    text = capsys.readouterr().out
    assert "| NELBO |" in text and "confidence" in text and "warning" not in text
    evaluation.main([*keys, "--block_size=8"])
    assert "trained on blocks of 4 tokens, not 8" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="block_size=99 does not fit the context of 32"):
        evaluation.main([*keys, "--block_size=99"])


def test_the_ladder_trains_what_is_missing_and_prints_one_table(text_data, tmp_path, capsys):
    settings = [*TINY, "--max_iters=2", f"--dataset={text_data}", "--seq_len=24"]
    keys = ["ladder", *settings, f"--out={tmp_path}", "--windows=4", "--steps=6"]
    out = tmp_path / "ladder.json"
    compare.main([*keys, f"--json={out}"])
    text = capsys.readouterr().out
    results = json.loads(out.read_text())
    assert [Path(r["checkpoint"]).parent.name for r in results] == ["ar", "block1", "block4", "block16", "mdlm"]
    assert text.count("±") >= 10 and "forwards per token" in text
    assert [r["speed"]["forwards_per_token"] for r in results][::4] == [1.0, 0.25]
    before = {p: p.stat().st_mtime for p in tmp_path.glob("*/last/model.safetensors")}
    compare.main(keys)  # nothing is missing: nothing is trained
    assert before == {p: p.stat().st_mtime for p in tmp_path.glob("*/last/model.safetensors")}


@pytest.mark.parametrize(
    "args, words",
    [
        (["--checkpoint=out/x"], "and --checkpoint"),
        (["--windows=0"], "leave out --windows=0"),
        (["--samples=0"], "samples = '0' .*of at least 1"),
        (["--steps=six"], "steps.*a whole number"),
        (["--max_itres=2"], "max_itres.*max_iters"),
    ],
)
def test_the_ladder_explains_bad_input_before_it_trains(tmp_path, args, words):
    with pytest.raises(SystemExit, match=words):
        compare.main(["ladder", f"--out={tmp_path}", *args])
    assert not any(tmp_path.iterdir())


def test_eval_counts_solved_puzzles(puzzle_data, tmp_path, capsys):
    run(puzzle_data, tmp_path, "--seq_len=33", "--max_iters=2")
    logged = json.loads((tmp_path / "last/config.json").read_text())["val_nats"]
    out = tmp_path / "r.json"
    words = ["--windows=8", "--samples=1", "--puzzles=8", "--device=cpu", f"--out={out}"]
    evaluation.main([f"--checkpoint={tmp_path}", *words])
    assert "0.00% ± 0.00% of puzzles solved, 16.0 forwards each" in capsys.readouterr().out
    nats = json.loads(out.read_text())[0]["likelihood"]["NELBO"]["nats_per_token"]
    assert nats == pytest.approx(logged, abs=1e-5)  # per token of the solutions


def test_eval_refuses_data_of_another_tokenizer(trained, puzzle_data):
    with pytest.raises(SystemExit, match="different tokenizers"):
        evaluation.main([f"--checkpoint={trained / 'mdlm'}", f"--dataset={puzzle_data}", "--device=cpu"])


def test_bench_prints_its_table(capsys):
    from experiments import bench

    tiny = ["--rounds=1", "--n_layer=1", "--n_embd=64", "--seq_len=16", "--batch_size=2", "--device=cpu"]
    for group in ("head", "batch", "blocks", "decode", "block_decode"):
        bench.main([*tiny, f"--only={group}"])
    out = capsys.readouterr().out
    assert "logits at masked rows" in out and "ar, KV cache" in out and "prefix anew per block" in out


def test_the_tutorials_run(capsys):
    model.tutorial()
    assert "logits                 (1, 8, 100)" in capsys.readouterr().out
    mdlm.tutorial(steps=300, samples=20)
    text = capsys.readouterr().out
    assert float(re.findall(r"NELBO +([\d.]+)", text)[-1]) < 8 and int(re.search(r"Of 20 samples (\d+)", text)[1]) > 9
    bd3lm.tutorial(steps=120, samples=2)
    bounds = [float(x) for x in re.findall(r"NELBO +([\d.]+)", capsys.readouterr().out)]
    assert len(bounds) == 3 and bounds[0] < 5 and max(bounds) < 11
    udlm.tutorial(steps=60, samples=2)
    bounds = [float(x) for x in re.findall(r"NELBO +([\d.]+)", capsys.readouterr().out)]
    assert len(bounds) == 5 and bounds[-1] < 0.8 * bounds[0]
    editflow.tutorial(steps=60, samples=2)
    bounds = [float(x) for x in re.findall(r"NELBO +([\d.]+)", capsys.readouterr().out)]
    assert len(bounds) == 6 and bounds[2] < 0.5 * bounds[0] and bounds[5] < 0.2 * bounds[3]
