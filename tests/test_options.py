"""Every option of sample.py's --help, said once: on the checkpoint that ships with the repository, which names no
preset, and on one that names LLaDA's. Each does what it says, or is refused in one sentence."""

import functools
from dataclasses import fields

import pytest
import torch
from test_chat import made  # noqa: F401

import sample
import train
from nanodlm import checkpoint as ckpt
from nanodlm import fast_bd3lm, fast_mdlm, presets

torch.set_num_threads(1)
SHIPPED = "checkpoints/pydocs_mdlm"
RUNS = """
--checkpoint=checkpoints/pydocs_mdlm | --preset=llada | --algorithm=mdlm | --pickle | --stop=x |
--prompt=class | --infill=a[MASK*2]b | --num_samples=2 | --stop_at_eos=false | --watch | --watch --delay=0 |
--html=a.html | --gif=a.gif | --dtype=bfloat16 | --device=cpu | --max_new_tokens=5 | --block_size=4 |
--steps=2 | --order=margin | --quota=ancestral | --schedule=cosine | --threshold=0.8 | --factor=2 |
--entropy_bound=0.3 | --quota=ancestral --remask=0.1 | --quota=ancestral --remask=0.1 --remask_from=0.9 |
--quota=ancestral --remask=0.1 --remask_until=0.1 | --temperature=0.5 | --temperature=1 --top_k=5 |
--temperature=1 --top_p=0.5 | --measure=draw | --order_temperature=0.5 | --cfg_scale=0.5 | --suppress=3,4 |
--last=5 | --block_size=2 --lookahead=false | --cache=dual | --exact |
--threshold=0.8 --steps=2 --capped | --threshold=0.8 --least=2 | --threshold=0.8 --edit_threshold=0.5 |
--edit_threshold=0.5 --edit_steps=2 | --threshold=0.8 --edit_threshold=0.5 --temperature=0 --edit_ids=3,4 |
--cache=prefix --opening=first | --seed=3 | --plain
"""  # with what else each takes in front of it
RUNS = {words.rpartition("--")[2].partition("=")[0].strip(): words.strip() for words in RUNS.split("|")}
REFUSED = {
    "--verify": "cannot judge its own drafts: --verify needs a bd3lm that was trained with the shift",
    "--chat --prompt=a": "prompt .the command line. does nothing with --chat",
    "--chat --num_samples=2": "num_samples .* --chat",
    "--font=a.ttf": "font .* does nothing with no --gif",
    "--gif=a.gif --font=a.ttf": "font=a.ttf is no font file",
    "--delay=1": "delay .* does nothing with no --watch",
    "--system=a": "system .* neither --chat nor --template",
    "--thoughts=think": "thoughts .* neither --chat nor --template",
    "--infill=a[MASK] --stop=b": "stop .* --infill",
    "--template --prompt=a": "a checkpoint with a chat template",
    "--compile": "compile=True needs cache=dual",
    "--window=8": "unknown key 'window'",
    "--overhang": "unknown key 'overhang'",
    "--sub_block=2": "unknown key 'sub_block'",
    "--quota=p2 --schedule=cosine": "schedule=cosine .* quota=p2",
    "--quota=p2 --edit_threshold=0.5": "edit_threshold=0.5 does not go with quota=p2, which decides itself",
    "--order=left_to_right --threshold=0.8": "quota=threshold needs a measure of certainty",
    "--edit_steps=2": "edit_steps=2 .* edit_threshold=1, which edits nothing",
    "--threshold=0.5 --edit_threshold=0.9": "edit_threshold=0.9 is above threshold=0.5: no token may need more",
    "--edit_threshold=0.5 --order=margin": "edit_threshold=0.5 does not go with order=margin: it needs",
    "--edit_threshold=0.5 --quota=ancestral": "edit_threshold=0.5 does not go with quota=ancestral",
    "--edit_threshold=1.5": "edit_threshold = .1.5. .* from 0 to 1",
    "--threshold=0.8 --edit_threshold=0.5 --temperature=0 --edit_ids=3": "edit_ids=.3,. must be two ids",
    "--least=2": "least=2 is defined for quota=threshold only, not quota=steps",
    "--threshold=0.8 --capped --steps=2 --least=2": "least=2 .* not capped=True, which says at most",
    "--threshold=0.8 --steps=2": "steps=2 .* quota=threshold",
    "--factor=2 --schedule=cosine": "schedule=cosine .* quota=factor",
    "--threshold=0.8 --factor=2": "threshold=0.8 .* quota=factor",
    "--quota=steps --threshold=0.8": "threshold=0.8 .* quota=steps",
    "--temperature=0 --top_p=0.5": "top_p=0.5 .* temperature=0",
    "--temperature=0 --top_k=5": "top_k=5 .* temperature=0",
    "--quota=ancestral --order=margin": "order=margin .* at random",
    "--order=random --last=5": "last=.5,. .* order=random",
    "--order=random --measure=draw": "measure=draw .* order=random",
    "--order=margin --measure=token": "measure=token .* no token",
    "--threshold=0.8 --order_temperature=1": "order_temperature=1.0 .* quota=threshold",
    "--block_size=0 --lookahead=false": "lookahead=False .* block_size=0",
    "--capped": "capped=True is defined for quota=threshold only, not quota=steps",
    "--threshold=0.8 --capped --schedule=cosine": "schedule=cosine .* quota=threshold",
    "--opening=first": "opening=first is Dream.s with cache=prefix or dual .*, not cache=none",
    "--remask=0.1": "remask=0.1 is defined for quota=ancestral",
    "--quota=ancestral --remask_from=0.5": "remask_from=0.5 .* remask=0",
}


@pytest.fixture(scope="module")
def checkpoints(made):  # noqa: F811
    return {"shipped": SHIPPED, "llada": str(made / "plain")}


@pytest.fixture(autouse=True)
def read_once(monkeypatch, tmp_path):
    monkeypatch.setattr(ckpt, "load", load)
    monkeypatch.chdir(tmp_path)


load = functools.cache(ckpt.load)


def command(path, words):
    """sample.main with as little to do as the words allow."""
    words = words.split()
    said = {w[2:].partition("=")[0] for w in words}
    words += [] if said & {"infill", "chat", "max_new_tokens"} else ["--max_new_tokens=4"]
    words += [] if "checkpoint" in said else [f"--checkpoint={path}"]
    sample.main(words if "device" in said else [*words, "--device=cpu"])


def test_no_option_is_forgotten():
    names = {f.name for c in (sample.Settings, fast_mdlm.SampleOptions, fast_bd3lm.SampleOptions) for f in fields(c)}
    refused = {w[2:].partition("=")[0] for words in REFUSED for w in words.split()}
    assert RUNS.keys() <= names and names <= RUNS.keys() | refused


@pytest.mark.parametrize("which", ["shipped", "llada"])
@pytest.mark.parametrize("name", RUNS)
def test_every_option_works(name, which, checkpoints, capsys):
    command(checkpoints[which], RUNS[name])
    out = capsys.readouterr().out
    assert "tokens per forward" in out
    assert ("preset: llada" in out) == (which == "llada" and name != "checkpoint" or name == "preset")


@pytest.mark.parametrize("which", ["shipped", "llada"])
@pytest.mark.parametrize("words", REFUSED)
def test_what_does_nothing_is_refused_in_one_sentence(words, which, checkpoints):
    with pytest.raises(SystemExit, match=REFUSED[words]) as e:
        command(checkpoints[which], words)
    assert "\n" not in e.value.code


@pytest.mark.parametrize(
    "text, said",
    [
        ("temprature = 0.5", "the preset mine has the unknown key 'temprature' .mine.py, line 1."),
        ("steps = 'many'", "steps = 'many' .mine.py, line 1. does not fit: it takes a whole number"),
        ("order = 'random'\nquota = 'threshold'", "quota=threshold needs a measure of certainty"),
    ],
)
def test_a_preset_of_ones_own_is_read_before_a_run_names_it(text, said, monkeypatch, tmp_path):
    (tmp_path / "config/presets").mkdir(parents=True)
    (tmp_path / "config/presets/mine.py").write_text(text)
    monkeypatch.setattr(presets, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match=said):
        command(SHIPPED, "--preset=mine")
    with pytest.raises(SystemExit, match=said):
        train.main(["--preset=mine", "--out_dir=out", "--device=cpu"])
    assert not (tmp_path / "out").exists()


def test_what_a_preset_says_may_do_nothing(checkpoints, capsys):
    """It was not asked for: Dream's has 512 steps and a nucleus."""
    for words in ("--preset=dream --threshold=0.9", "--preset=dream --temperature=0 --measure=network"):
        command(checkpoints["llada"], words)
        assert "preset: dream" in capsys.readouterr().out
