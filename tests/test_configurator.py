"""Settings: the last word wins, every type is checked, and every refusal says what would have been right."""

import importlib
import subprocess
import sys
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Literal

import pytest

from nanodlm import configurator

PROJECT = Path(configurator.__file__).resolve().parent


@dataclass
class Settings:
    max_iters: int = 2000  # optimiser steps
    learning_rate: float = 1e-3  # the peak
    compile: bool = True  # torch.compile
    optimizer: Literal["adamw", "muon"] = "adamw"  # for the matrices
    suppress: tuple[int, ...] = ()  # ids never generated
    stages: tuple[float, ...] = (0.5, 1.0)  # fractions of the run
    out_dir: str = "out/run"  # where it goes
    top_k: int | None = None  # none keeps all
    prompt: str | None = None  # none starts from nothing
    seed: int = 1  # of the windows


@dataclass
class Shape:
    n_layer: int = 6  # blocks
    n_head: int = 4  # heads
    seed: int = 0  # of the weights

    def __post_init__(self):
        if self.n_layer % 2:
            raise ValueError(f"n_layer={self.n_layer} must be even")


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """A project with one recipe; the tests stand in another directory."""
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    (project / "config").mkdir(parents=True)
    elsewhere.mkdir()
    (project / "config" / "quickstart.py").write_text("max_iters = 10\n")
    monkeypatch.setattr(configurator, "ROOT", project)
    monkeypatch.chdir(elsewhere)
    return project


def config_file(text, name="mine.py"):
    Path(name).write_text(text, encoding="utf-8")
    return name


def settings(*argv, classes=(Settings,)):
    return configurator.fill(configurator.read(argv), *classes)


def refusal(*argv, classes=(Settings,)):
    """The sentence with which the words are refused."""
    with pytest.raises(SystemExit) as error:
        settings(*argv, classes=classes)
    assert isinstance(error.value.code, str)  # printed to stderr, exit status 1
    return error.value.code


def from_file(line):
    return settings(config_file(line))


# ---- sources ---------------------------------------------------------------------------------------------------------


def test_without_words_the_defaults_stand():
    assert settings() == Settings()


def test_the_command_line_wins_over_a_config_file_before_it():
    name = config_file("max_iters = 5\nseed = 7")
    assert settings(name, "--max_iters=6") == Settings(max_iters=6, seed=7)


def test_a_later_config_file_wins_over_an_earlier_one():
    first, second = config_file("max_iters = 5\nseed = 7", "first.py"), config_file("max_iters = 6", "second.py")
    assert settings(first, second) == Settings(max_iters=6, seed=7)


def test_a_later_word_wins_over_an_earlier_one():
    name = config_file("max_iters = 5")
    assert settings("--max_iters=6", name).max_iters == 5
    assert settings("--max_iters=6", "--max_iters=7").max_iters == 7


def test_a_project_config_is_found_from_another_directory():
    assert settings("config/quickstart.py").max_iters == 10


def test_a_config_in_the_current_directory_comes_before_the_projects():
    Path("config").mkdir()
    config_file("max_iters = 11", "config/quickstart.py")
    assert settings("config/quickstart.py").max_iters == 11


def test_a_config_file_may_have_a_docstring_and_comments():
    assert from_file('"""What this recipe is for."""\n\n# why\nseed = 7  # and how\n').seed == 7


def test_dashes_in_a_key_are_underscores():
    assert settings("--max-iters=5").max_iters == 5


def test_a_value_may_hold_equals_signs_and_spaces():
    assert settings("--out_dir=a=b c").out_dir == "a=b c"


# ---- types -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word, value",
    [
        ("max_iters=5", 5),
        ("max_iters=-5", -5),
        ("max_iters=1e4", 10_000),
        ("max_iters=1E4", 10_000),
        ("max_iters=1.5e3", 1500),
        ("learning_rate=3e-4", 3e-4),
        ("learning_rate=2", 2.0),
        ("compile=true", True),
        ("compile=True", True),
        ("compile=1", True),
        ("compile=yes", True),
        ("compile=false", False),
        ("compile=False", False),
        ("compile=0", False),
        ("compile=no", False),
        ("optimizer=muon", "muon"),
        ("suppress=1,2,3", (1, 2, 3)),
        ("suppress=7", (7,)),
        ("suppress=(1, 2)", (1, 2)),
        ("suppress=[1,2,]", (1, 2)),
        ("suppress=", ()),
        ("stages=0.25,1", (0.25, 1.0)),
        ("out_dir=5", "5"),
        ("out_dir=none", "none"),
        ("out_dir=", ""),
        ("top_k=none", None),
        ("top_k=5", 5),
        ("prompt=none", None),
        ("prompt=To be", "To be"),
    ],
)
def test_words_of_the_command_line_become_the_fields_type(word, value):
    got = getattr(settings(f"--{word}"), word.partition("=")[0])
    assert got == value and type(got) is type(value)
    assert not isinstance(got, tuple) or [type(v) for v in got] == [type(v) for v in value]


@pytest.mark.parametrize(
    "line, value",
    [
        ("max_iters = 5", 5),
        ("max_iters = 1e4", 10_000),
        ("max_iters = 8 * 1024 + 2**3", 8200),
        ("max_iters = -5", -5),
        ("learning_rate = 3e-4", 3e-4),
        ("learning_rate = 1", 1.0),
        ("learning_rate = 1 / 8", 0.125),
        ("compile = False", False),
        ("optimizer = 'muon'", "muon"),
        ("suppress = (1, 2)", (1, 2)),
        ("suppress = [1, 2]", (1, 2)),
        ("suppress = ()", ()),
        ("stages = (1, 0.5)", (1.0, 0.5)),
        ("out_dir = 'ü'", "ü"),
        ("top_k = None", None),
        ("top_k = 5", 5),
    ],
)
def test_values_of_a_config_file_become_the_fields_type(line, value):
    got = getattr(from_file(line), line.partition(" ")[0])
    assert got == value and type(got) is type(value)
    assert not isinstance(got, tuple) or [type(v) for v in got] == [type(v) for v in value]


WRONG = [
    ("max_iters", "5.5", "a whole number"),
    ("max_iters", "many", "a whole number"),
    ("max_iters", "", "a whole number"),
    ("max_iters", "1e-1", "a whole number"),
    ("max_iters", "1e999", "a whole number"),
    ("max_iters", "true", "a whole number"),
    ("learning_rate", "fast", "a number"),
    ("compile", "maybe", "true or false"),
    ("compile", "2", "true or false"),
    ("optimizer", "sgd", "one of adamw, muon"),
    ("suppress", "1,x", "a whole number, or several with commas between"),
    ("stages", "1,x", "a number, or several with commas between"),
    ("top_k", "some", "a whole number or none"),
]


@pytest.mark.parametrize("key, value, form", WRONG)
def test_a_wrong_word_is_refused_with_key_value_place_and_accepted_form(key, value, form):
    said = refusal(f"--{key}={value}")
    assert f"{key} = {value!r}" in said and "the command line" in said and said.endswith(f"it takes {form}")


WRONG_IN_FILE = [
    ("max_iters", "5.5", "a whole number"),
    ("max_iters", "True", "a whole number"),
    ("max_iters", "None", "a whole number"),
    ("max_iters", "[1]", "a whole number"),
    ("max_iters", "1e999", "a whole number"),
    ("learning_rate", "True", "a number"),
    ("learning_rate", "None", "a number"),
    ("learning_rate", "[1]", "a number"),
    ("compile", "1", "true or false"),
    ("compile", "None", "true or false"),
    ("optimizer", "None", "one of adamw, muon"),
    ("optimizer", "[1]", "one of adamw, muon"),
    ("suppress", "3", "a whole number, or several with commas between"),
    ("suppress", "None", "a whole number, or several with commas between"),
    ("suppress", "(1, 2.5)", "a whole number, or several with commas between"),
    ("stages", "(1, None)", "a number, or several with commas between"),
    ("out_dir", "5", "text"),
    ("out_dir", "None", "text"),
    ("top_k", "True", "a whole number or none"),
]


@pytest.mark.parametrize("key, value, form", WRONG_IN_FILE)
def test_a_wrong_value_in_a_file_is_refused_with_key_value_line_and_accepted_form(key, value, form):
    said = refusal(config_file(f"\n{key} = {value}\n"))
    assert said.startswith(f"{key} = ") and "mine.py, line 2" in said and said.endswith(f"it takes {form}")


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_an_unknown_key_of_the_command_line_names_the_nearest():
    said = refusal("--learning_rat=1")
    assert "'learning_rat'" in said and "the command line" in said and "did you mean learning_rate?" in said


def test_an_unknown_key_in_a_file_names_the_nearest_and_the_line():
    said = refusal(config_file("seed = 3\nmax_iter = 5\n"))
    assert "'max_iter'" in said and "mine.py, line 2" in said and "did you mean max_iters?" in said


def test_an_unknown_key_like_no_other_points_to_help():
    assert "--help" in refusal("--zzzzzzz=1")


def test_keys_of_all_dataclasses_are_suggested():
    assert "n_layer" in refusal("--n_layers=2", classes=(Settings, Shape))


def test_a_bare_switch_means_true_and_a_value_may_follow_a_space():
    values = configurator.read(["--compile", "--max_iters", "5", "--out_dir", "out/a b", "--verbose"])
    assert {k: v for k, (v, _) in values.items()} == {
        "compile": True,
        "max_iters": "5",
        "out_dir": "out/a b",
        "verbose": True,
    }
    assert "config/" in refusal("--compile", "config/none.py")  # a config file is never taken for a value


@pytest.mark.parametrize("word", ["--max_iters", "--out_dir"])
def test_a_missing_value_is_told_what_it_should_be(word):
    assert f"{word[2:]} = True" in refusal(word)


@pytest.mark.parametrize("word", ["max_iters=5", "learning_rate=1e-3", "out_dir=out/quickstart"])
def test_an_option_without_dashes_is_told_how_to_write_it(word):
    said = refusal(word)
    assert repr(word) in said and "--key=value" in said


@pytest.mark.parametrize("name", ["config/quickstrat.py", "quickstart.py", "config/quickstart"])
def test_a_missing_config_file_suggests_the_nearest(name):
    said = refusal(name)
    assert repr(name) in said and "did you mean config/quickstart.py?" in said


def test_a_directory_is_no_config_file():
    Path("config").mkdir()
    assert "no config file 'config'" in refusal("config")


@pytest.mark.parametrize(
    "line",
    [
        "import os",
        "print(1)",
        "if True: seed = 1",
        "for seed in [1]: pass",
        "def seed(): return 1",
        "seed += 1",
        "seed, max_iters = 1, 2",
        "seed = max_iters = 1",
        "seed: int = 1",
        "seed.x = 1",
        "seed[0] = 1",
        "del seed",
        "max_iters",
    ],
)
def test_a_line_that_is_no_assignment_is_refused_with_its_number(line):
    said = refusal(config_file(f"max_iters = 1\n{line}\n"))
    assert "mine.py, line 2" in said and "only assignments" in said


def test_a_value_that_cannot_be_read_is_refused_with_its_line():
    for value in ("1 / 0", "undefined", "open('mine.py')", "print(1)", "__import__('os')"):
        said = refusal(config_file(f"max_iters = 1\nseed = {value}\n"))
        assert "mine.py, line 2" in said and "cannot read the value of seed" in said


def test_a_syntax_error_is_refused_with_its_line():
    assert "mine.py, line 2" in refusal(config_file("seed = 1\nmax_iters = = 2\n"))


def test_a_file_that_is_not_text_is_refused():
    Path("model.bin").write_bytes(b"\x80\xff\x00seed = 1")
    assert "model.bin" in refusal("model.bin")


# ---- filling ---------------------------------------------------------------------------------------------------------


def test_each_dataclass_gets_its_own_keys():
    assert settings("--max_iters=3", "--n_layer=2", classes=(Settings, Shape)) == [
        Settings(max_iters=3),
        Shape(n_layer=2),
    ]


def test_a_key_of_two_dataclasses_reaches_both():
    assert settings("--seed=5", classes=(Settings, Shape)) == [Settings(seed=5), Shape(seed=5)]


def test_a_shared_key_that_is_not_given_keeps_each_default():
    assert [s.seed for s in settings(classes=(Settings, Shape))] == [1, 0]


def test_a_value_error_of_the_dataclass_is_a_clean_exit():
    assert refusal("--n_layer=3", classes=(Shape,)) == "n_layer=3 must be even"


def test_what_differs_from_the_defaults_is_printed(capsys):
    settings("--max_iters=2000", "--seed=3", config_file("out_dir = 'x'"))
    printed = capsys.readouterr().out
    assert "seed = 3" in printed and "out_dir = 'x'" in printed
    assert "max_iters" not in printed and "learning_rate" not in printed


@pytest.mark.parametrize("classes", [(Settings, Shape), (Shape, Settings)])
def test_a_shared_key_is_printed_where_it_differs_from_one_of_the_defaults(classes, capsys):
    settings("--seed=0", classes=classes)
    assert "seed = 0" in capsys.readouterr().out


def test_nothing_is_printed_where_nothing_differs_or_quiet_is_asked_for(capsys):
    settings("--max_iters=2000")
    configurator.fill(configurator.read(["--max_iters=5"]), Settings, quiet=True)
    assert capsys.readouterr().out == ""


# ---- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [["--help"], ["-h"], ["--max_iters=3", "--help"], ["config/quickstart.py", "-h"]], ids=str
)
def test_help_lists_every_field_with_default_type_and_comment(words, capsys):
    with pytest.raises(SystemExit) as error:
        settings(*words, classes=(Settings, Shape))
    assert error.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    expected = {
        "max_iters=2000": ("int", "optimiser steps"),
        "learning_rate=0.001": ("float", "the peak"),
        "compile=True": ("bool", "torch.compile"),
        "optimizer=adamw": ("one of adamw, muon", "for the matrices"),
        "suppress=()": ("a whole number, or several with commas between", "ids never generated"),
        "stages=(0.5, 1.0)": ("a number, or several with commas between", "fractions of the run"),
        "out_dir=out/run": ("str", "where it goes"),
        "top_k=None": ("a whole number or none", "none keeps all"),
        "prompt=None": ("text or none", "none starts from nothing"),
        "seed=1": ("int", "of the windows"),
        "n_layer=6": ("int", "blocks"),
        "n_head=4": ("int", "heads"),
        "seed=0": ("int", "of the weights"),
    }
    options = [line.strip() for line in lines if line.strip().startswith("--")]
    assert options == [f"--{key}  ({kind})  {comment}" for key, (kind, comment) in expected.items()]


@pytest.mark.parametrize("script", sorted(p.stem for p in PROJECT.glob("*.py")))
def test_every_setting_of_the_project_explains_itself(script):
    module = importlib.import_module(script)
    for name, c in vars(module).items():
        if is_dataclass(c) and c.__module__ == script and name.endswith(("Config", "Settings", "Options")):
            comments = configurator.field_comments(c)
            assert [f.name for f in fields(c) if not comments.get(f.name)] == []


def test_help_begins_with_the_scripts_docstring_and_exits_cleanly():
    script = (
        '"""What this script does."""\n'
        "import sys\nfrom model import Config\nfrom nanodlm import configurator\n"
        "configurator.fill(configurator.read(sys.argv[1:]), Config)\n"
    )
    Path("script.py").write_text(script)
    command = [sys.executable, "script.py", "--help"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("What this script does.")
    assert "--n_head=6  (int)  query heads" in done.stdout
