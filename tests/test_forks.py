"""An algorithm of one's own: a copy under another name gives the very numbers of the original, because whoever asks
asks what it has and not who it is; and what it lacks is said in one sentence."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from evals import TEXT, made, run, toys, write_family  # noqa: F401
from test_train import ROOT, TINY, text_data  # noqa: F401

import eval as evaluation
import mdlm
import sample
import train
from model import Config, Transformer
from nanodlm import algorithms, corpus
from nanodlm import checkpoint as ckpt
from nanodlm import tokenizer as tokenizers
from nanodlm.records import is_chat

torch.set_num_threads(1)
COPIES = {"mdlm": "copy_of_mdlm", "bd3lm": "copy_of_bd3lm", "ar": "copy_of_ar"}


@pytest.fixture
def project(tmp_path_factory, monkeypatch):
    """A project's top floor with copies of the algorithms, and their originals."""
    path = tmp_path_factory.mktemp("project")
    for name, copy in COPIES.items():
        text = (ROOT / f"{name}.py").read_text(encoding="utf-8")
        (path / f"{copy}.py").write_text(text, encoding="utf-8")
    monkeypatch.setattr(algorithms, "ROOT", path)
    yield path
    for copy in COPIES.values():
        sys.modules.pop(copy, None)


def renamed(source, target, name):
    """The checkpoint `source`, as if the algorithm `name` had made it."""
    target.mkdir(parents=True)
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    facts = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(facts | {"algorithm": name}))
    return target


@pytest.fixture
def pairs(project, made, tmp_path):  # noqa: F811
    """{algorithm: (its checkpoint, the same of its copy)}."""
    return {name: (made / name, renamed(made / name, tmp_path / copy, copy)) for name, copy in COPIES.items()}


@pytest.fixture
def data(made, tmp_path):  # noqa: F811
    return prepare(made / "mdlm", tmp_path / "data")


def prepare(checkpoint, path, **facts):
    """Running text in the tokens of a checkpoint."""
    c = ckpt.load(checkpoint)
    ids = c.tokenizer.encode(TEXT)[:1600]
    path.mkdir()
    tokenizers.save_files(c.tokenizer.spec, checkpoint, path)
    corpus.write_dataset(path, c.tokenizer, {"train": ids, "val": ids[:640]}, bytes_per_token=2.0, **facts)
    return path


def both(monkeypatch, project, measure, pair):
    """What measure(checkpoint) says of an original, in the project as it is, and of its copy, in another one."""
    monkeypatch.setattr(algorithms, "ROOT", ROOT)
    first = measure(pair[0])
    monkeypatch.setattr(algorithms, "ROOT", project)
    return first, measure(pair[1])


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_has_the_originals_likelihoods(name, pairs, project, data, tmp_path, monkeypatch, capsys):
    words = [f"--dataset={data}", "--windows=6", "--samples=2", "--device=cpu", f"--out={tmp_path}/found.json"]
    words += {"mdlm": ["--chain_rule=confidence"], "ar": []}.get(name, ["--chain_rule=left_to_right", "--block_size=4"])

    def measure(checkpoint):
        evaluation.main([f"--checkpoint={checkpoint}", "--chain_windows=2", *words])
        return json.loads((tmp_path / "found.json").read_text())[0]["likelihood"]

    first, second = both(monkeypatch, project, measure, pairs[name])
    assert first.keys() == second.keys()
    for kind, x in first.items():
        assert x["bits_per_window"] == pytest.approx(second[kind]["bits_per_window"], rel=1e-5)
    assert capsys.readouterr().out.count("was trained on blocks of 8 tokens, not 4") == 2 * (name == "bd3lm")


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_has_the_originals_scores_and_texts(name, pairs, project, run, monkeypatch, capsys):  # noqa: F811
    """Answers of a few tokens, scored and written; samples from nothing, of a seed."""

    def measure(checkpoint):
        rows = run("toy_mc,toy_gen,toy_ll", *([] if name == "ar" else ["--mc_samples=3"]), checkpoint=str(checkpoint))
        capsys.readouterr()
        words = ["--num_samples=2", "--max_new_tokens=12", "--prompt=the", "--seed=3", "--device=cpu"]
        sample.main([f"--checkpoint={checkpoint}", *words])
        said = capsys.readouterr().out
        return [[s["resps"] for s in r["samples"]] for r in rows], said[said.index("---") : said.rindex("---")]

    (first, text), (second, same) = both(monkeypatch, project, measure, pairs[name])
    assert text == same

    def flat(x):
        return [y for part in x for y in flat(part)] if isinstance(x, list) else [x]

    for a, b in zip(flat(first), flat(second), strict=True):
        number = isinstance(a, float) or str(a).lstrip("-").replace(".", "").isdigit()
        assert float(a) == pytest.approx(float(b), rel=1e-5) if number else a == b


def test_a_copy_of_ar_can_judge_be_converted_and_be_released(pairs, project, data, tmp_path, monkeypatch):
    import convert_ar
    from nanodlm import measures

    def measure(checkpoint):
        s = evaluation.Settings(judge=str(checkpoint))
        return measures.judge([TEXT[:60], TEXT[60:200]], [], s, measures.read_judge(s, [], "cpu"), "cpu")

    first, second = both(monkeypatch, project, measure, pairs["ar"])
    assert first["perplexity"] == second["perplexity"] > 1
    convert_ar.convert(pairs["ar"][1], tmp_path / "converted")
    assert ckpt.load(tmp_path / "converted").algorithm == "mdlm"
    gpt2, words = write_family(tmp_path / "gpt2", "gpt2"), ["--algorithm=copy_of_ar", "--seq_len=16", "--max_iters=1"]
    words += [*TINY[4:-1], f"--init_from={gpt2}", f"--out_dir={tmp_path}/out"]
    with pytest.raises(SystemExit, match="gpt2 has no begin-of-text, .* before a window's first token"):
        train.main([*words, f"--dataset={prepare(gpt2, tmp_path / 'text')}"])
    train.main([*words, f"--dataset={prepare(gpt2, tmp_path / 'rows', row_len=16, prompt_len=4)}"])
    trained = ckpt.load(tmp_path / "out/last")
    assert (trained.algorithm, trained.tokenizer.mask_id) == ("copy_of_ar", None)


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_trains_as_the_original(name, project, text_data, tmp_path, monkeypatch):  # noqa: F811
    blocks = ["--block_size=8"] if name == "bd3lm" else []

    def measure(algorithm):
        words = [*TINY, *blocks, f"--dataset={text_data}", f"--out_dir={tmp_path / algorithm}", "--max_iters=2"]
        train.main([*words, f"--algorithm={algorithm}", "--device=cpu"])
        weights = safetensors.torch.load_file(tmp_path / algorithm / "last/model.safetensors")
        return weights, json.loads((tmp_path / algorithm / "last/config.json").read_text())

    (first, facts), (second, others) = both(monkeypatch, project, measure, (name, COPIES[name]))
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
    assert facts["val_nats"] == others["val_nats"] and facts["model"] == others["model"]


@pytest.mark.parametrize("quota", ["steps", "ancestral"])
def test_a_schedule_that_a_copy_adds_to_its_mask_rate_is_its_samplers_too(quota, project):
    file, line = project / "copy_of_mdlm.py", '    return (t, torch.ones_like(t)) if schedule == "linear"'
    text = file.read_text(encoding="utf-8")
    assert text.count(line) == 1
    own = '    if schedule == "squared":\n        return t**2, 2 * t\n'
    file.write_text(text.replace(line, own + line), encoding="utf-8")
    mine = algorithms.load("copy_of_mdlm")
    torch.manual_seed(0)
    model, masks = Transformer(Config(vocab_size=9, seq_len=12, n_layer=1, n_head=1, n_embd=8)), torch.full((12,), 8)
    options = {m: m.SampleOptions(0, 4, quota=quota, schedule=s) for m, s in ((mine, "squared"), (mdlm, "poly2"))}
    found, expected = (m.generate(model, [masks], o, mask_id=8, trace=True).trace for m, o in options.items())
    assert found == expected


def test_help_has_the_options_of_the_algorithm_that_is_named(project, pairs, capsys):
    """By its name, or by its checkpoint; others' options it has not."""
    ours = (project / "copy_of_mdlm.py").read_text(encoding="utf-8")
    new = "class SampleOptions:\n    sharpness: float = 2.5  # how sharp it is\n"
    (project / "copy_of_mdlm.py").write_text(ours.replace("class SampleOptions:\n", new), encoding="utf-8")
    for main in (sample.main, evaluation.main):
        for word in ("--algorithm=copy_of_mdlm", f"--checkpoint={pairs['mdlm'][1]}"):
            if main is sample.main or "checkpoint" in word:
                with pytest.raises(SystemExit) as e:
                    main([word, "--help"])
                said = capsys.readouterr().out
                assert e.value.code == 0 and "--sharpness=2.5  (" in said and "how sharp it is" in said
                assert "--quota=steps" in said and "--cfg_scale" not in said and "--window=" not in said
    with pytest.raises(SystemExit, match="no algorithm 'nobody'"):
        sample.main(["--algorithm=nobody", "--help"])


# ---- what lies beside ours -------------------------------------------------------------------------------------------

BROKEN = {
    "import nothing_of_this_name\n": "fork.py, line 1: ModuleNotFoundError: No module named 'nothing_of_this_name'",
    "from mdlm import *\n\ndef generate(:\n": "fork.py, line 3: SyntaxError: invalid syntax",
    "from mdlm import *\n\nCAUSAL = 1 / 0\n": "fork.py, line 3: ZeroDivisionError: division by zero",
    "from mdlm import *\n\ndel CAUSAL, generate\n": "fork.py has no CAUSAL and no generate: an algorithm has",
    "from mdlm import *\n\nLossOptions = dict\n": "fork.py: LossOptions must be a dataclass",
    "from ar import *\n\nSampleOptions = LossOptions\n": "fork.py: SampleOptions has no max_new_tokens and no seed",
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_fork_that_cannot_be_used_is_one_sentence_with_its_line(text, project):
    (project / "fork.py").write_text(text + "\n\ndef loss(model, x0):\n    pass\n")
    with pytest.raises(SystemExit) as e:
        algorithms.load("fork")
    sys.modules.pop("fork", None)
    assert BROKEN[text] in e.value.code and "\n" not in e.value.code


@pytest.mark.parametrize("name", ["../ar", "a.b", "", "none", 5, "json\0", "copy_of_ar/", "prose"])
def test_what_names_no_algorithm_is_told_which_there_are(name, project):
    (project / "prose.py").write_bytes(b"# caf\xe9\n")
    with pytest.raises(SystemExit, match="no algorithm .*; the files with a loss are copy_of_ar, copy_of_bd3lm, copy"):
        algorithms.load(name)


def test_a_fork_may_not_have_the_name_of_what_is_loaded_already(project):
    (project / "json.py").write_text((ROOT / "mdlm.py").read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(SystemExit, match="json.py has the name of .*, which is loaded already"):
        algorithms.load("json")


def test_what_editors_and_other_systems_leave_beside_our_files_stops_nothing(tmp_path):
    """A dangling lock, another system's shadow of a file and a text in Latin-1, in every directory that is listed; and
    a package with the name of our data. As processes, in a project of their own."""
    here, other = tmp_path / "project", tmp_path / "other"
    ignored = shutil.ignore_patterns("__pycache__", "*.bin", "meta.json", "[0-9a-f]" * 12)
    for part in ("nanodlm", "config", "data"):
        shutil.copytree(ROOT / part, here / part, ignore=ignored)
    for script in ROOT.glob("[a-z]*.py"):
        shutil.copy(script, here)
    for directory in (here, here / "config", here / "config/presets", here / "data/gsm8k", here / "data/.#tulu3"):
        directory.mkdir(exist_ok=True)
        for name in (".#mine.py", ".#prepare.py"):
            (directory / name).symlink_to("someone@somewhere.1234:1")
        for name in ("._mdlm.py", "._prepare.py"):
            (directory / name).write_bytes(b"\0\5\26\7\xff\xfe")
        (directory / "notes.py").write_bytes(b"# caf\xe9\nx = 1\n")
    (here / "data/notes").mkdir()
    (here / "data/notes/prepare.py").write_bytes(b"# caf\xe9\nx = 1\n")
    (other / "data").mkdir(parents=True)
    (other / "data/__init__.py").touch()

    def said(*words):
        keys = dict(cwd=tmp_path, capture_output=True, text=True, timeout=300)
        return subprocess.run([sys.executable, *words], env={**os.environ, "PYTHONPATH": str(other)}, **keys)

    few = ["--max_new_tokens=4", "--steps=2", "--device=cpu", f"--checkpoint={ROOT / 'checkpoints/pydocs_mdlm'}"]
    done = said(here / "sample.py", *few, "--preset=llada")
    assert done.returncode == 0 and "4 tokens in" in done.stdout, done.stderr
    program = "from nanodlm import conversations as c; print(next(c.find_records('gsm8k')[0])); c.find_records('no')"
    (here / "data/gsm8k/train.jsonl").write_text('{"question": "why", "answer": "so"}\n')
    done = said("-c", f"import sys; sys.path.append({str(here)!r}); {program}")
    assert done.stdout.strip() == "{'question': 'why', 'answer': 'so'}", done.stderr
    known = ", ".join(sorted(p.parent.name for p in (ROOT / "data").glob("[a-z]*/prepare.py") if is_chat(p)))
    assert (
        done.stderr.strip()
        == f"no conversations 'no': use a .jsonl, .jsonl.gz, .json, .parquet or .csv file, or {known}"
    )
