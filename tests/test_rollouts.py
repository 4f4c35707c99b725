"""Policy gradients in the ordinary loop: the same run however it is cut up; rewards, and what goes wrong with them."""

import json
import math
import time

import pytest
from test_train import ROOT, TINY, assert_same, puzzle_data, two_processes  # noqa: F401

import train
from nanodlm import checkpoint as ckpt
from nanodlm import rewards

OWN = """
import time

def ones(prompt, answer, truth):
    return answer.count("1")

def raises(prompt, answer, truth):
    return 1 / answer.count("1")

def nothing(prompt, answer, truth):
    return float("nan") if answer.startswith("1") else 1.0

def hangs(prompt, answer, truth):
    while answer.startswith("1"):
        time.sleep(0.01)
    return 1.0
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A file with rewards of one's own."""
    path = tmp_path_factory.mktemp("own") / "rewards_of_one_s_own.py"
    path.write_text(OWN)
    return path


def words(own, *more, name="ones"):
    said = ["--algorithm=grpo", "--seq_len=33", "--group=4", "--steps=4", f"--rewards={own}:{name}"]
    return [*said, "--lr_schedule=constant", "--warmup_iters=0", "--learning_rate=3e-3", *more]


def run(data, out, *more):
    train.main([*TINY, f"--dataset={data}", f"--out_dir={out}", *more])
    return ckpt.load_train_state(out / "last")


def lines(out):
    return [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("more", [["--estimate=coupled", "--updates=2"], ["--estimate=exact", "--block_size=4"]])
def test_a_resumed_run_equals_an_unbroken_one_to_the_bit(puzzle_data, own, tmp_path, more):  # noqa: F811
    """Cut between two updates on the same answers, which are part of what is saved."""
    options = words(own, "--ema=0.9", *more)
    whole = run(puzzle_data, tmp_path / "whole", *options, "--max_iters=6")
    run(puzzle_data, tmp_path / "cut", *options, "--max_iters=3")
    cut = run(puzzle_data, tmp_path / "cut", *options, "--max_iters=6", "--init_from=resume")
    assert_same(whole, cut)
    a, b = ([m for m in lines(tmp_path / d) if "reward" in m] for d in ("whole", "cut"))
    assert [(m["iter"], m["reward"]) for m in a] == [(m["iter"], m["reward"]) for m in b] and len(a) == 6 // (
        2 if "--updates=2" in more else 1
    )


def test_micro_batches_and_two_processes_equal_one(puzzle_data, own, tmp_path):  # noqa: F811
    """Groups lie across micro-batches and processes."""
    options = words(own, "--group=16", "--updates=2", "--max_iters=4", "--eval_interval=2")
    one = run(puzzle_data, tmp_path / "one", *options, "--batch_size=16")
    small = run(puzzle_data, tmp_path / "small", *options, "--batch_size=4", "--gradient_accumulation_steps=4")
    assert_same(one, small, 2e-5)
    two_processes(puzzle_data, tmp_path / "two", *options)
    assert_same(one, ckpt.load_train_state(tmp_path / "two/last"), 2e-5)
    a, b = (lines(tmp_path / d) for d in ("one", "two"))
    for key in ("reward", "val_reward", "equal_groups"):
        assert [m[key] for m in a if key in m] == pytest.approx([m[key] for m in b if key in m], abs=1e-5)


def test_parameters_in_parts_on_two_processes_take_the_same_steps(puzzle_data, own, tmp_path):  # noqa: F811
    options = words(own, "--updates=2", "--max_iters=3")
    one = run(puzzle_data, tmp_path / "one", *options, "--batch_size=16")
    two_processes(puzzle_data, tmp_path / "two", "--sharding=fsdp", *options)
    assert_same(one, ckpt.load_train_state(tmp_path / "two/last"), 2e-5)


def test_rewards_rise_and_the_network_stays_one_of_masked_diffusion(puzzle_data, own, tmp_path):  # noqa: F811
    options = words(own, "--estimate=exact", "--max_iters=30", "--batch_size=32", "--eval_interval=15")
    run(puzzle_data, tmp_path, *options)
    found = [m["reward"] for m in lines(tmp_path) if "reward" in m]
    assert sum(found[-5:]) > 1.5 * sum(found[:5])
    assert ckpt.load(tmp_path).algorithm == "mdlm" and ckpt.load(tmp_path).facts["val_reward"] > found[0]


def test_the_base_of_adapters_is_what_kl_is_from(puzzle_data, own, tmp_path):  # noqa: F811
    train.main([*TINY, f"--dataset={puzzle_data}", f"--out_dir={tmp_path / 'a'}", "--seq_len=33", "--max_iters=1"])
    start = [f"--init_from={tmp_path / 'a'}", "--lora_r=2", "--kl=0.1", "--batch_size=16", "--max_iters=3"]
    run(puzzle_data, tmp_path / "b", *words(own, *start))
    kl = [m["kl"] for m in lines(tmp_path / "b") if "kl" in m]
    assert len(kl) == 2 and kl[0] < 1e-9 < kl[1]  # nothing is learnt before the first step
    with pytest.raises(SystemExit, match="kl is the divergence from the network without its adapters: give lora_r"):
        run(puzzle_data, tmp_path / "c", *words(own, "--kl=0.1"))


@pytest.mark.parametrize(
    "name, said",
    [
        ("raises", "raises failed .ZeroDivisionError: division by zero. on the answer .* to .*="),
        ("nothing", "nothing failed .ValueError: it gave nan. on the answer '1"),
        ("hangs", "hangs failed .TimeoutError: it took more than 0.1 s. on the answer '1"),
    ],
)
def test_a_reward_that_fails_is_named_and_nothing_is_lost(puzzle_data, own, tmp_path, capsys, name, said):  # noqa: F811
    options = words(own, "--reward_seconds=0.1", "--batch_size=32", "--max_iters=2", name=name)
    with pytest.raises(SystemExit, match=f"{said}.*reward_fails=leave_out"):
        run(puzzle_data, tmp_path / "a", *options)
    assert ckpt.load_train_state(tmp_path / "a/last")["iter"] < 2
    state = run(puzzle_data, tmp_path / "b", *options, "--reward_fails=leave_out")
    assert state["iter"] == 2 and all(math.isfinite(p.sum()) for p in state["weights"].values())
    assert any(m.get("failed") for m in lines(tmp_path / "b")) and "warning: the reward" in capsys.readouterr().out


@pytest.mark.parametrize(
    "more, said",
    [
        (["--group=1"], "group=1: an answer is compared with others"),
        (["--group=3"], "an iteration has 8 rows .* which groups of 3 do not fill"),
        (["--rewards=sudokus"], "no reward 'sudokus'; there are sudoku, "),
        (["--rewards=sudoku=much"], "'sudoku=much' is not of the form name or name=weight"),
        (["--rewards=none.py:x"], "there is no file 'none.py'"),
        (["--max_new_tokens=40"], "max_new_tokens=40, with its prompt, exceeds seq_len=33"),
        (["--estimate=exact", "--temperature=0.5"], "estimate=exact is of temperature=1, not 0.5"),
        (["--temperature=0"], "temperature=0 writes the same answer again and again"),
    ],
)
def test_what_cannot_be_is_one_clear_sentence(puzzle_data, own, tmp_path, more, said):  # noqa: F811
    with pytest.raises(SystemExit, match=said):
        run(puzzle_data, tmp_path, *words(own, *more))
    assert not (tmp_path / "last").exists()


def test_text_without_prompts_is_refused(tmp_path, own):
    with pytest.raises(SystemExit, match="needs prompts: rows with a prompt_len"):
        (data := tmp_path / "text").mkdir()
        from nanodlm import corpus
        from nanodlm import tokenizer as tokenizers

        tok = tokenizers.load({"kind": "char", "chars": "ab "})
        ids = tok.encode("ab ba " * 100)
        corpus.write_dataset(data, tok, {"train": ids, "val": ids}, bytes_per_token=1.0)
        run(data, tmp_path / "out", *words(own, "--seq_len=16"))


# ------------------------------------------------------------------------------------------------------------------
# rewards


def give(name, prompt, answer, truth=""):
    return rewards.function(name)(prompt, answer, truth)


def test_sudoku():
    puzzle, right = "4.......21.4...2=", "4321124321343412"
    assert give("sudoku", puzzle, right, right) == give("sudoku_cells", puzzle, right, right) == 1
    for wrong in ("", right[:-1], right + "1", right.replace("2", "1"), "1234341221434321", "x" * 16, "=" * 500):
        assert give("sudoku", puzzle, wrong, right) == 0, wrong
    half = right[:8] + "1" * 8
    assert 0.5 < give("sudoku_cells", puzzle, half, right) < 1 and give("sudoku_cells", puzzle, "", right) == 0


def test_countdown_evaluates_arithmetic_and_nothing_else():
    for prompt in ("3,4,7=40:", "Numbers: 3, 4, 7. Target: 40.\nAnswer with <answer>1 + 2</answer>."[:33]):
        for right in (
            "(3+7)*4",
            "4*(7+3)=40",
            " <answer>(3 + 7) * 4</answer>",
            "so \\boxed{4*3+4*7}"[:3] and "7*4+3*4"[:0],
        ):
            if right:
                assert give("countdown", prompt, right) == 1, right
        assert give("countdown", prompt, "3+4+7") == 0.1
        assert give("countdown", prompt, "3/(4-4)") == give("countdown", prompt, "(3+7)*4*1") == 0
    hostile = [
        "__import__('os').system('true')",
        "4**7**9**9**9",
        "(" * 150,
        "9" * 199,
        "40",
        "",
        "3,4,7",
        "4//3*7",
        "1e9",
    ]
    hostile += ["(3+7)*4 and 1", "[3,4,7]", "-" * 200, "3+4+7\n=40" * 3]
    began = time.time()
    assert all(give("countdown", "3,4,7=40:", answer) <= 0.1 for answer in hostile) and time.time() - began < 1
    with pytest.raises(ValueError, match="ends with no numbers"):
        give("countdown", "Add them up!", "1+2")


def test_gsm8k_finds_the_number_as_lm_eval_does():
    truth = "5 + 3 = <<5+3=8>>8\n#### 1,008"
    right = ["#### 1008", "It costs $1,008.", "1008", "first 3, then 1,008", "#### $1,008."]
    assert all(give("gsm8k", "", answer, truth) == 1 for answer in right)
    assert all(
        give("gsm8k", "", answer, truth) == 0 for answer in ("", "#### 8", "1008 or 9", "a thousand", "#### -1008")
    )
    assert give("gsm8k_strict", "", "so\n#### 1,008", truth) == 1 and give("gsm8k_strict", "", "1008", truth) == 0
    assert give("answer_format", "", "so\n#### 12", "") == 1
    assert give("answer_format", "", "#### 1 #### 2", "") == give("answer_format", "", "12", "") == 0
    assert give("tags_format", "", "<reasoning>a</reasoning>\n<answer>b</answer>", "") == 1
    assert give("tags_format", "", "<answer>b</answer>", "") == 0
    with pytest.raises(ValueError, match="no ####"):
        give("gsm8k", "", "8", "8")


@pytest.mark.skipif(bool(rewards.sandbox.missing()), reason="no bubblewrap")
def test_code_passes_its_tests_or_not():
    tests = "assert double(2) == 4"
    assert give("code", "", "```python\ndef double(x):\n    return 2 * x\n```", tests) == 1
    for wrong in (
        "def double(x): return x",
        "import sys; sys.exit(0)",
        "```python\n(",
        "def double(x): return open('/etc/shadow')",
    ):
        assert give("code", "", wrong, tests) == 0


def test_what_an_alarm_interrupts_is_named_and_the_sum_is_weighted(own):
    found = rewards.named(("answer_format=0.5", f"{own}:ones"))
    assert rewards.total(found, "", "11 #### 1", "", 1.0) == (3.5, "")
    value, why = rewards.total(rewards.named((f"{own}:hangs",)), "", "1", "", 0.05)
    assert math.isnan(value) and "TimeoutError" in why
