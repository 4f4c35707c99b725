"""Whatever is typed, a command runs or says in one line what would have been right: values drawn for every setting of
every command, and for every key of a checkpoint's config.json. tests/bad_inputs.py tries them all."""

import random
import sys

import pytest
import torch

if sys.platform == "win32":
    pytest.skip("processes are forked", allow_module_level=True)

import bad_inputs

from nanodlm import bounds

torch.set_num_threads(1)
# What three draws a setting may miss: the inputs that were found to end in a traceback, to hang, or to be accepted.
KNOWN = """
train --learning_rate=nan | train --learning_rate=-1 | train --dropout=2 | train --dropout=-1 | train --dropout=nan |
train --ema=nan | train --ema=2 | train --ema=-1 | train --beta1=1.5 | train --beta2=1.0 | train --warmup_fraction=nan |
train --warmup_fraction=7 | train --muon_learning_rate=-1 | train --head_dim=-4 | train --mlp_dim=-4 |
train --n_kv_head=-1 | train --token_types=-1 | train --rope_scaling=0 | train --seed=99999999999999999999999 |
train --vocab_size=1e13 | train --n_embd=1e9 | train --batch_size=1e12 | train --weight_decay=-1 |
train --grad_clip=-1 | train --warmup_iters=-5 | train --min_lr_fraction=-3 | train --gradient_accumulation_steps=1e12 |
train --n_layer=1e9 | train --seq_len=1e12 | train --patience=inf | train chat --lora_r=1e9 | sample --temperature=nan |
sample --temperature=inf | sample --num_samples=1e11 | sample --infill=[MASK*99999999999] | sample --steps=1e12 |
sample --steps=5 | sample --top_k=999999 | sample --delay=1e9 | sample --suppress=1e9 | sample --cfg_scale=1e300 |
sample bd3lm --max_new_tokens=1e12 | sample bd3lm --window=-1 | eval --windows=-1 | eval --batch_size=0 |
eval --temperature=nan
"""


# {(script, setting): the first of the script's commands that has it}; of the others' every fifth one is tried.
FIRST = {(n.split()[0], key): n for n in reversed(bad_inputs.COMMANDS) for key in bad_inputs.settings_of(n)}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return bad_inputs.make(tmp_path_factory.mktemp("good"))


@pytest.mark.parametrize("name", bad_inputs.COMMANDS)
def test_each_command_runs_and_with_a_bad_value_says_which(name, paths):
    assert bad_inputs.attempt(name, paths)[0] == "ran"
    every = {}
    for case in bad_inputs.inputs(name):
        every.setdefault(case[0], []).append(case)
    assert every.keys() == bad_inputs.settings_of(name).keys()
    for key, cases in every.items():
        if FIRST[name.split()[0], key] != name and random.Random(f"{key} of {name}").random() > 0.2:
            continue
        if key in bad_inputs.PATIENT:  # its values are tried, but not those that take as long as they say
            cases = [c for c in cases if "1" not in str(c) and "9" not in str(c) and "true" not in str(c).lower()]
        for _, words, content in random.Random(f"{name} {key}").sample(cases, 1):
            what, text = bad_inputs.tried(name, paths, key, words, content)
            assert bad_inputs.acceptable(key, what, text), (words, content, what, text)


@pytest.mark.parametrize("line", [line.strip() for line in KNOWN.split("|")])
def test_what_once_slipped_through_is_refused_in_one_line_that_names_it(line, paths):
    name, _, word = line.partition(" --")
    key = word.partition("=")[0]
    what, text = bad_inputs.attempt(name, paths, [f"--{word}"])
    assert what == "refused" and key in text, (what, text)
    if any(c in word for c in ("e11", "e12", "e13", "e9", "999999999")) and "GB" not in text:
        assert "it takes" in text or "is not" in text or "exceed" in text or "shorter" in text, text


@pytest.mark.parametrize("name", ["mdlm", "llama", "bert", "adapter"])
def test_each_checkpoint_is_read_or_refused_in_one_line(name, paths):
    cases = bad_inputs.spoiled(name, paths)
    assert len(cases) > 300
    always = [c for c in cases if "n_layer = 1000000000" in c[0] or "=" not in c[0]]
    for label, spoil in [*always, *random.Random(name).sample(cases, 15)]:
        what, text = bad_inputs.tried_checkpoint(name, paths, spoil)
        assert what in ("ran", "refused"), (label, what, text)
        if what == "refused" and label in [c[0] for c in always]:
            assert "bad" in text, (label, text)  # the file is named


def test_a_bound_is_the_same_from_python_from_a_word_and_from_a_file():
    kind = bounds.Below1
    for value in (0, 0.5, "0.5", "0"):
        assert bounds.parse(value, kind) == float(value)
    for value in (1, -0.1, "1", "nan", float("nan"), float("inf"), "inf", 1e-320, True, None, "", "x", [1]):
        with pytest.raises((ValueError, TypeError)):
            bounds.parse(value, kind)
    with pytest.raises(ValueError):
        bounds.parse("0.5", kind, spoken=False)  # in JSON and in Python, a text is no number
