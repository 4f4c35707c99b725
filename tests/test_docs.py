"""README.md, docs/ and config/: every recipe trains, every command runs, every name exists."""

import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from test_families import words as write_tokenizer
from test_families import write
from test_train import ROOT, puzzle_data, text_data  # noqa: F401

import bd3lm
import editflow
import eval as evaluation
import mdlm
import model
import sample
import serve
import train
from exercises import race
from experiments import (
    approximate,
    bench,
    compare,
    costs,
    editing,
    gpu,
    load,
    losses,
    orders,
    own_answers,
    peers,
    policy_gradients,
    puma,
    readable,
    repair,
    smollm,
    uniform_time,
)
from experiments.speedrun import run as speedrun
from nanodlm import (
    algorithms,
    configurator,
    corpus,
    fast_bd3lm,
    fast_mdlm,
    fast_udlm,
    frontier,
    gguf_files,
    introspect,
    merge,
    tasks,
)
from nanodlm import checkpoint as ckpt
from nanodlm.files import load_module

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("experiments/**/README.md")), *sorted((ROOT / "docs").glob("*.md"))]

# ------------------------------------------------------------------------------------------------------------------
# recipes and commands

SMALL = ["--n_layer=1", "--n_head=2", "--n_embd=32", "--batch_size=4", "--device=cpu", "--compile=false"]
SMALL += ["--max_iters=2", "--eval_windows=4", "--gradient_accumulation_steps=1", "--init_from=scratch"]
SMALL += ["--n_kv_head=0"]

# Recipes that start from a released model, and the tiny one of its family that stands in for it. They take their steps
# in test_hub.py, from the hub; here only where a page names them.
FAMILY = {"llada": "llada", "dream": "dream", "gpt2": "gpt2", "qwen3": "qwen3", "qwen_coder": "qwen2"}
FAMILY |= {"modernbert": "modernbert", "minilm": "bert", "smollm": "llama", "nemotron": "nemotron"}
RECIPES = [p.name for p in (ROOT / "config").glob("*.py") if not p.name.startswith(("eval_", *FAMILY))]


@pytest.fixture(scope="module")
def data(text_data, puzzle_data):  # noqa: F811
    return text_data, puzzle_data


def two_steps_from_a_released_model(words, kind, out):
    """What `train.py words` does, with a tiny released model, which it converts, and with tiny conversations."""
    source, data = out / "source", out / "chat.jsonl"
    write(FAMILY[kind], source)
    if kind in ("llada", "dream", "nemotron"):  # released with a chat template, and not converted
        template = (
            "{% for m in messages %}{{ m['content'] + (' <eos> ' if m['role'] == 'assistant' else ' ') }}{% endfor %}"
        )
        write_tokenizer(source, mask_token=None, chat_template=template)
        start = [f"--init_from={source}", "--sharding=ddp"]
    else:
        start = [f"--convert={source}", f"--init_from={out / 'converted'}"]
    records = [{"prompt": f"w{i} w{i % 5}", "response": "w7 w8 w9 w10"} for i in range(200)]
    data.write_text("".join(json.dumps(r) + "\n" for r in records))
    small = ["--batch_size=4", "--gradient_accumulation_steps=1", "--epochs=0", "--max_iters=2", "--seq_len=40"]
    small += [f"--dataset={data}", "--eval_windows=4", "--device=cpu", "--compile=false", f"--out_dir={out / 'run'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "ROOT", out)  # where the token files go
        train.main([*words, *start, *small])
    assert ckpt.load_train_state(out / "run/last")["iter"] == 2
    assert ckpt.load(out / "run").algorithm == configurator.read(words)["algorithm"][0]


def two_steps_from_our_own_model(words, data, out):
    """What `train.py words` does, with a tiny autoregressive model of ours, which it converts."""
    small = ["--batch_size=4", "--max_iters=2", f"--dataset={data}", "--eval_windows=4", "--device=cpu"]
    small += ["--seq_len=32", "--compile=false"]
    sizes = ["--n_layer=1", "--n_head=2", "--n_embd=32"]
    train.main(["--algorithm=ar", *small, *sizes, f"--out_dir={out / 'ar'}"])
    start = [f"--convert={out / 'ar'}", f"--init_from={out / 'converted'}", f"--out_dir={out / 'run'}"]
    train.main([*words, *small, *start])
    assert ckpt.load_train_state(out / "run/last")["iter"] == 2


def two_small_steps(words, data, out):
    """What `train.py words` does, on a tiny network and tiny data."""
    recipe, (text, puzzles) = Path(words[0]).stem, data
    kind = next((k for k in FAMILY if recipe.startswith(k)), "")
    if kind:
        return two_steps_from_a_released_model(words, kind, out)
    if recipe.startswith("pydocs_ar_"):
        return two_steps_from_our_own_model(words, text, out)
    found, length = (puzzles, 33) if "sudoku" in recipe or "countdown" in recipe else (text, 32)
    more = ["--group=2", "--steps=4", "--rewards=sudoku_cells"] if "_grpo" in recipe else []
    train.main([*words, *SMALL, *more, f"--dataset={found}", f"--seq_len={length}", f"--out_dir={out}"])
    assert ckpt.load_train_state(out / "last")["iter"] == 2


def commands():
    """(script, argument, …) of every command in the pages' code blocks, each once, and of every recipe."""
    found = {("train.py", f"config/{name}") for name in RECIPES}
    for page in PAGES:
        for block in re.findall(r"^```\w*\n(.*?)^```$", page.read_text(encoding="utf-8"), re.S | re.M):
            for line in block.replace("\\\n", " ").splitlines():
                line = re.sub(r"^(\$ )?(\w+=\S+ )*", "", line.split("  #")[0].strip())
                if re.match(r"(python|torchrun) (?!-m sglang)", line):
                    line = re.sub(r"^python -m ([\w.]+)", lambda m: f"python {m[1].replace('.', '/')}.py", line)
                    words = shlex.split(line)
                    found.add(tuple(words[next(i for i, w in enumerate(words) if w.endswith(".py")) :]))
    return sorted(found)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """mine.py, a copy of mdlm.py, as if it stood beside it."""
    (tmp_path / "mine.py").write_text((ROOT / "mdlm.py").read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(algorithms, "ROOT", tmp_path)
    yield load_module("mine", tmp_path / "mine.py")
    del sys.modules["mine"]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_that_a_page_shows_runs_or_has_keys_that_exist(command, data, tmp_path, monkeypatch, request):
    script, *args = command
    assert (ROOT / script).is_file(), script
    monkeypatch.chdir(tmp_path)  # where --html and --gif write
    if "--algorithm=mine" in args:
        request.getfixturevalue("mine")
    if script == "train.py":
        two_small_steps(args, data, tmp_path)
    elif script == "sample.py" and "--help" in args:
        pytest.raises(SystemExit, sample.main, args)
    elif script == "sample.py" and not re.search(
        r"out/|smollm2|--checkpoint=[\w-]+/[A-Z]|--checkpoint=google/", " ".join(args)
    ):
        few = [] if any(word.startswith("--infill") for word in args) else ["--max_new_tokens=8"]
        few += ["--steps=8"] if any(word.startswith("--steps") for word in args) else []
        sample.main([*args, *few, *(["--delay=0"] if "--watch" in args else []), "--device=cpu"])
    elif script.startswith("data/"):
        source = "".join((ROOT / name).read_text(encoding="utf-8") for name in (script, "nanodlm/conversations.py"))
        assert all(f'"{word.split("=")[0]}"' in source for word in args if word.startswith("--"))
    elif script == "exercises/race.py":
        configurator.fill(configurator.read(args), race.Settings)
    elif script.startswith("exercises/"):
        source = (ROOT / script).read_text(encoding="utf-8")
        assert all(f'"{word.split("=")[0]}"' in source for word in args if word.startswith("--"))
    elif script == "model.py":
        model.tutorial()
    elif script == "experiments/speedrun/run.py":
        assert args == ["--tables"] or speedrun.settings(configurator.read(args))
    elif script not in (
        "mdlm.py",
        "bd3lm.py",
        "udlm.py",
        "editflow.py",
        "grpo.py",
    ):  # tutorials have tests of their own
        fast = introspect if "--verify" in args else fast_mdlm if "--cache=dual" in args else fast_bd3lm
        fast = fast_udlm if "_udlm" in " ".join(args) else fast
        fast = editflow if re.search("_(editflow|typos)", " ".join(args)) else fast
        drawn = fast if fast in (fast_udlm, editflow) else fast_bd3lm
        keys = {
            "sample.py": [sample.Settings, fast.SampleOptions],
            "serve.py": [serve.Settings, fast.SampleOptions],
            "eval.py": [evaluation.Settings, tasks.Options, drawn.SampleOptions, fast_mdlm.LikelihoodOptions],
            "experiments/approximate.py": [approximate.Settings],
            "experiments/bench.py": [bench.Settings],
            "experiments/compare.py": [compare.Settings],
            "experiments/costs.py": [costs.Settings],
            "experiments/editing.py": [editing.Settings],
            "experiments/load.py": [load.Settings],
            "experiments/losses.py": [losses.Settings],
            "experiments/peers.py": [peers.Settings],
            "experiments/policy_gradients.py": [policy_gradients.Settings],
            "experiments/puma.py": [puma.Settings],
            "experiments/orders.py": [orders.Settings],
            "experiments/gpu.py": [gpu.Settings],
            "experiments/repair.py": [repair.Settings],
            "experiments/readable.py": [readable.Settings, fast.SampleOptions],
            "experiments/uniform_time.py": [uniform_time.Settings],
            "experiments/smollm.py": [smollm.Settings],
            "experiments/own_answers.py": [own_answers.Settings],
            "nanodlm/gguf_files.py": [gguf_files.Settings],
            "nanodlm/merge.py": [merge.Settings],
        }
        if script == "experiments/compare.py":
            assert args.pop(0) in compare.COMPARISONS
        if script.startswith("convert_"):
            args, keys = args[1:], {script: [importlib.import_module(script.removesuffix(".py")).Settings]}
        if script == "experiments/readable.py":  # which decodes with each of its temperatures
            args = [word for word in args if not word.startswith("--temperature")]
        if script in ("experiments/smollm.py", "experiments/own_answers.py", "nanodlm/gguf_files.py"):
            args = [word for word in args if word.startswith("--")]
        if not args or args[0] not in ("--table", "--plot"):
            for values in (
                frontier.spread(configurator.read(args))[1] if script == "eval.py" else [configurator.read(args)]
            ):
                configurator.fill(values, *keys[script])


def test_a_copy_of_mdlm_trains_writes_and_is_measured_by_its_own_functions(mine, data, tmp_path, monkeypatch, capsys):
    run, small = f"--checkpoint={tmp_path / 'run'}", ["--steps=4", "--device=cpu"]
    two_small_steps(["config/quickstart.py", "--algorithm=mine"], data, tmp_path / "run")
    asked, texts = [], []
    for name in ("generate", "log_likelihood", "nelbo"):
        original = getattr(mine, name)
        monkeypatch.setattr(mine, name, lambda *a, _f=original, _n=name, **k: asked.append(_n) or _f(*a, **k))
    for algorithm, root in (("mine", tmp_path), ("mdlm", ROOT)):  # the latter is decoded by fast_mdlm.py
        monkeypatch.setattr(algorithms, "ROOT", root)
        capsys.readouterr()
        sample.main([run, f"--algorithm={algorithm}", "--prompt=the", "--max_new_tokens=6", *small])
        texts.append(capsys.readouterr().out.splitlines()[2:-1])
    assert asked == ["generate"] and texts[0] == texts[1]
    monkeypatch.setattr(algorithms, "ROOT", tmp_path)
    words = ["--windows=4", "--chain_rule=confidence", "--chain_windows=2", "--num_samples=2", "--steps=4"]
    evaluation.main([run, *words, "--device=cpu"])
    assert set(asked) == {"generate", "log_likelihood", "nelbo"}
    text = capsys.readouterr().out
    assert "exact, confidence" in text and "sample entropy" in text


def test_the_task_of_ours_is_found_and_needs_no_network(mine, data, tmp_path, monkeypatch, capsys):
    """tasks/pydocs.yaml, answered by an algorithm of one's own, whose likelihood takes a text at a time."""
    two_small_steps(["config/quickstart.py", "--algorithm=mine"], data, tmp_path / "run")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/pydocs").symlink_to(data[0])
    monkeypatch.setattr(corpus, "ROOT", tmp_path)
    words = ["--tasks=pydocs_next limit=3", "--mc_samples=1", f"--out={tmp_path / 'next.json'}", "--device=cpu"]
    evaluation.main([f"--checkpoint={tmp_path / 'run'}", *words])
    assert "| pydocs_next | acc |" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------------
# names


def test_the_readme_has_at_most_200_lines_and_a_place_for_every_file_of_both_floors():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    files = [p.name for folder in (ROOT, ROOT / "nanodlm", ROOT / "experiments") for p in folder.glob("[a-z]*.py")]
    missing = [name for name in files if not re.search(rf"`[\w/]*\b{re.escape(name)}`", text)]
    assert not missing, "the map has no place for them"
    linked = [str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md")]
    assert not [name for name in linked if f"]({name})" not in text]


HOMES = (".", "nanodlm", "exercises", "exercises/lessons")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_a_page_links_to_or_names_is_there(page):
    """Links; files and folders in backticks, beside the page and where they are at home by name alone; module.name."""
    text = page.read_text(encoding="utf-8")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    named = re.findall(r"`([\w.*/-]+(?:\.(?:py|md|ya?ml)|/))`", re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M))
    allowed = {"mine.py", "prepare.py"}  # yours; and one in every folder of data/
    gone = [link for link in links if not (page.parent / link).exists()]
    gone += [x for x in named if x not in allowed and not any(any((ROOT / d).glob(x)) for d in (*HOMES, page.parent))]
    for name in re.findall(r"`((?:nanodlm\.\w+|mdlm|bd3lm|udlm|editflow|ar|model|train|sample)\.\w+)\b[^`\n]*`", text):
        module, attribute = name.rsplit(".", 1)
        gone += [] if attribute in ("py", "jsonl") or hasattr(importlib.import_module(module), attribute) else [name]
    assert not gone


def test_the_docs_have_the_algorithms_that_there_are():
    """What the section on forking says an algorithm has, mdlm.py and bd3lm.py have."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## Fork it")[1]
    names = re.findall(r"`(\w+)`", text.split("What else")[0])
    assert {"loss", "nelbo", "generate", "CAUSAL", "SampleOptions"} <= set(names)
    assert all(hasattr(algorithm, name) for algorithm in (mdlm, bd3lm) for name in names)
