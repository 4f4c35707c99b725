"""exercises/race.py on tiny random networks: what it writes, counts and shows. How long it takes is nobody's claim."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import sample
from model import Config, Transformer
from nanodlm import checkpoint as ckpt
from nanodlm import files, replay
from nanodlm import tokenizer as tokenizers

torch.set_num_threads(1)
race = files.load_module("race", files.ROOT / "exercises/race.py")
CHARS = "".join(map(chr, range(32, 127))) + "\n</é"
NEW, CONTEXT = 20, 32
KINDS = {"ar": "ar", "block": "bd3lm", "masked": "mdlm"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """{setting: a checkpoint} of the three kinds, and `small` of another context."""
    torch.manual_seed(0)
    tokenizer, places = tokenizers.load({"kind": "char", "chars": "".join(dict.fromkeys(CHARS))}), {}
    for key, name in {**KINDS, "small": "mdlm"}.items():
        more = {"ar": dict(causal=True), "bd3lm": dict(block_size=4)}.get(name, {})
        config = Config(tokenizer.vocab_size, 8 if key == "small" else CONTEXT, n_layer=1, n_head=2, n_embd=32, **more)
        weights = {n: 2 * p if p.dim() == 2 else p for n, p in Transformer(config).named_parameters()}
        places[key] = tmp_path_factory.mktemp("race") / name
        ckpt.save(places[key], weights, config, tokenizer, places[key], name, {})
    return places


def words(made, tmp_path, **more):
    keys = {k: made[k] for k in KINDS} | dict(max_new_tokens=NEW, threshold=0.013, rounds=1, device="cpu")
    return [
        f"--{k}={v}"
        for k, v in (keys | dict(prompt="class ", html=tmp_path / "race.html") | more).items()
        if v is not None
    ]


@pytest.mark.parametrize("how", [{}, {"per_step": 2, "threshold": None}])
def test_each_writes_what_sample_writes_in_as_many_forwards(made, tmp_path, capsys, monkeypatch, how):
    monkeypatch.setenv("COLUMNS", "100")  # wide enough that no text is cut, whatever the terminal
    race.main(words(made, tmp_path, **how))
    lanes = samples_of(tmp_path / "race.html")
    table = capsys.readouterr().out
    for lane, (key, name) in zip(lanes, KINDS.items()):
        eos = ckpt.load(made[key]).tokenizer.eos_id
        same = [f"--max_new_tokens={NEW}", "--temperature=0.7", "--seed=1", f"--suppress={eos}", "--prompt=class "]
        same += [] if name == "ar" else ["--steps=10" if how else "--threshold=0.013"]
        sample.main([f"--checkpoint={made[key]}", *same, "--device=cpu"])
        said = capsys.readouterr().out
        text, forwards = said.split("-\n", 1)[1].split("\n---")[0], int(re.search(r"(\d+) forwards", said)[1])
        assert "".join(at_end(lane)) == text and len(at_end(lane)) == 6 + NEW
        assert lane["forwards"] == forwards and re.search(rf"^{lane['name']} +{forwards} ", table, re.M)
        assert text.splitlines()[-1][-4:] in table
    ar, block, masked = lanes
    assert ar["forwards"] == NEW == len(ar["steps"]) and masked["forwards"] == len(masked["steps"]) < NEW
    assert len(block["steps"]) < block["forwards"] == len(block["steps"]) + 6  # the prompt, and all blocks but the last
    assert "blocks of 4" in block["about"] and all(
        (", 2 tokens per" if how else "0.013") in x["about"] for x in lanes[1:]
    )


def samples_of(page):
    return json.loads(re.search(r"const samples = (.*), \$ = id", page.read_text("utf-8"))[1])


def at_end(lane):
    now = list(lane["start"])
    for changes in lane["steps"]:
        for i, piece, _ in changes:
            now[i] = piece
    return now[: lane["length"]]


def test_the_page_has_a_clock_for_every_step_and_says_how_it_was_measured(made, tmp_path):
    race.main(words(made, tmp_path, prompt="</script>", speed=0.25))
    for lane in samples_of(tmp_path / "race.html"):
        assert len(lane["times"]) == len(lane["steps"]) and lane["times"] == sorted(lane["times"])
        assert lane["speed"] == 0.25 and lane["times"][0] > 0
    page = (tmp_path / "race.html").read_text("utf-8")
    assert page.count("</script>") == 1 and "Each wrote alone on the machine" in page and "seed 1" in page


@pytest.mark.parametrize("columns", [100, 40])
def test_a_terminal_shows_all_three_beside_or_below_each_other(made, tmp_path, monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    race.main(words(made, tmp_path, speed=1e6, html=""))
    last = re.sub(r"\033\[[\d;]*m", "", capsys.readouterr().out.rpartition("\033[J")[2])
    shown = last.split("\n\n20 tokens  ")[0].splitlines()
    titles = [line for line in shown if "DIFFUSION" in line]
    assert len(titles) == (1 if columns == 100 else 2) and max(map(len, shown)) <= columns
    assert replay.MASK not in last and last.count("20 tokens, ") == 3


REFUSED = [
    (dict(block="nowhere"), "no checkpoint in 'nowhere'"),
    (dict(ar="{masked}"), "ar={masked} was trained by mdlm; here goes a checkpoint of ar"),
    (dict(prompt="日"), "the prompt"),
    (dict(html="{tmp}"), "must end in .html or .htm"),
    (dict(html="{tmp}/x/y.html"), "there is no directory"),
    (dict(max_new_tokens=30), "use --max_new_tokens=26 or a shorter prompt"),
    (dict(masked="{small}", max_new_tokens=1, prompt="a longer one"), "fill the context of 8 tokens"),
    (dict(per_step=2), "per_step=2 does nothing with threshold=0.013; leave one of them out"),
    (dict(threshold=1.5), "threshold = '1.5'"),
    (dict(rounds=0), "rounds = '0'"),
    (dict(prompts="x"), "did you mean prompt?"),
]


@pytest.mark.parametrize("more, sentence", REFUSED, ids=[s for _, s in REFUSED])
def test_what_does_not_fit_is_said_in_one_line_before_any_work(made, tmp_path, monkeypatch, more, sentence):
    places = {**{k: str(v) for k, v in made.items()}, "tmp": str(tmp_path)}
    for name in ("train", "measure"):
        monkeypatch.setattr(race, name, None)
    with pytest.raises(SystemExit) as e:
        race.main(words(made, tmp_path, **{k: v and str(v).format(**places) for k, v in more.items()}))
    assert sentence.format(**places) in e.value.code and "\n" not in e.value.code


@pytest.fixture
def fresh(monkeypatch, tmp_path, made):
    """A clone in which nothing is trained; what would be run is noted, and `does` is then called."""
    started = []

    class Child:
        does, status = staticmethod(lambda: None), 0

        def __init__(self, argv, cwd):
            started.append([str(w).replace(f"{tmp_path}/", "") for w in argv[1:]])

        def wait(self):
            self.does()
            return self.status

    monkeypatch.setattr(files, "ROOT", tmp_path)
    monkeypatch.setattr(ckpt, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "Popen", Child)
    (tmp_path / "data/pydocs").mkdir(parents=True)
    tokenizer = Path(race.__file__).resolve().parents[1] / "data/pydocs/tokenizer.json"
    (tmp_path / "data/pydocs/tokenizer.json").write_bytes(tokenizer.read_bytes())
    return started, Child


def test_what_is_missing_is_trained_first_and_resumed(made, fresh, tmp_path, capsys):
    started, child = fresh
    child.status = 3
    keys = [f"--{k}={made[k]}" for k in ("block", "masked")]
    with pytest.raises(SystemExit, match="3"):
        race.main([*keys, "--max_new_tokens=20"])
    assert started == [["data/pydocs/prepare.py"]] and "about 4 minutes" in capsys.readouterr().out
    (tmp_path / "data/pydocs/meta.json").touch()
    child.status = 0
    last = tmp_path / "out/race/ar/last"

    def trained():
        shutil.copytree(made["ar"], last)

    child.does = staticmethod(trained)
    race.main([*keys, "--max_new_tokens=20", "--rounds=1"])
    assert started[1:] == [["train.py", "config/quickstart_ar.py", "--out_dir=out/race/ar", "--init_from=auto"]]
    config = json.loads((last / "config.json").read_text())
    for at, missing in ((3, True), (5, False)):
        (last / "config.json").write_text(json.dumps(config | {"iter": at, "train": {"max_iters": 5}}))
        assert race.is_missing("out/race/ar") == missing


def test_ctrl_c_while_it_trains_waits_until_that_is_saved(fresh, made, monkeypatch):
    started, child = fresh
    waits = []

    def pressed():
        waits.append(1)
        if len(waits) == 1:
            raise KeyboardInterrupt

    child.does = staticmethod(pressed)
    with pytest.raises(KeyboardInterrupt):
        race.main([f"--{k}={made[k]}" for k in ("block", "masked")] + ["--max_new_tokens=20"])
    assert len(waits) == 2 and len(started) == 1


def test_too_long_a_text_is_refused_before_anything_is_trained(fresh):
    with pytest.raises(SystemExit, match="exceed the context of 256 tokens"):
        race.main(["--max_new_tokens=256"])
    assert not fresh[0]


def test_its_help_names_every_setting(capsys):
    with pytest.raises(SystemExit):
        race.main(["--help"])
    said = capsys.readouterr().out
    assert all(f"--{name}=" in said for name in race.Settings.__dataclass_fields__)
