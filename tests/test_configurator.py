"""Settings: the last word wins, every type is checked, and every refusal says what would have been right."""

import importlib
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import pytest

from nanodlm import configurator, tasks
from nanodlm.bounds import Line, Place, Text
from nanodlm.files import ROOT


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


# ---- sources ---------------------------------------------------------------------------------------------------------


def test_the_last_word_wins():
    first, second = config_file("max_iters = 5\nseed = 7", "first.py"), config_file("max_iters = 6", "second.py")
    assert settings() == Settings()
    assert settings(first, "--max_iters=6") == settings(first, second) == Settings(max_iters=6, seed=7)
    assert settings("--max_iters=6", first) == Settings(max_iters=5, seed=7)
    assert settings("--max_iters=6", "--max-iters=7").max_iters == 7
    assert configurator.read(["--a=b", "--a=auto"], skip=("a", "auto")) == {"a": ("b", "the command line")}


def test_a_config_of_the_project_is_found_from_elsewhere_after_one_that_is_here():
    assert settings("config/quickstart.py").max_iters == 10
    Path("config").mkdir()
    config_file('"""What this recipe is for."""\n\n# why\nmax_iters = 11  # and how\n', "config/quickstart.py")
    assert settings("config/quickstart.py").max_iters == 11
    assert "no config file 'config'" in refusal("config")


def test_a_bare_switch_means_true_and_a_value_may_follow_a_space_or_hold_one():
    words = ["--compile", "--max_iters", "5", "--out_dir", "out/a b", "--prompt=a=b c", "--verbose"]
    values = {"compile": True, "max_iters": "5", "out_dir": "out/a b", "prompt": "a=b c", "verbose": True}
    assert {k: v for k, (v, _) in configurator.read(words).items()} == values
    assert "no config file 'config/none.py'" in refusal(
        "--compile", "config/none.py"
    )  # a config file is never taken for a value
    assert "max_iters = True" in refusal("--max_iters") and "out_dir = True" in refusal("--out_dir")


# ---- types -----------------------------------------------------------------------------------------------------------

WORDS = {
    "max_iters": {"5": 5, "-5": -5, "1e4": 10_000, "1E4": 10_000, "1.5e3": 1500},
    "learning_rate": {"3e-4": 3e-4, "2": 2.0},
    "compile": dict.fromkeys(["true", "True", "1", "yes"], True) | dict.fromkeys(["false", "False", "0", "no"], False),
    "optimizer": {"muon": "muon"},
    "suppress": {"1,2,3": (1, 2, 3), "7": (7,), "(1, 2)": (1, 2), "[1,2,]": (1, 2), "": ()},
    "stages": {"0.25,1": (0.25, 1.0)},
    "out_dir": {"5": "5", "none": "none", "": ""},
    "top_k": {"none": None, "5": 5},
    "prompt": {"none": None, "To be": "To be"},
}
LINES = {
    "max_iters": {"5": 5, "1e4": 10_000, "8 * 1024 + 2**3": 8200, "-5": -5},
    "learning_rate": {"3e-4": 3e-4, "1": 1.0, "1 / 8": 0.125},
    "compile": {"False": False},
    "optimizer": {"'muon'": "muon"},
    "suppress": {"(1, 2)": (1, 2), "[1, 2]": (1, 2), "()": ()},
    "stages": {"(1, 0.5)": (1.0, 0.5)},
    "out_dir": {"'ü'": "ü"},
    "top_k": {"None": None, "5": 5},
}
FORMS = {
    "max_iters": "a whole number",
    "learning_rate": "a number",
    "compile": "true or false",
    "optimizer": "one of adamw, muon",
    "suppress": "a whole number, or several with commas between",
    "stages": "a number, or several with commas between",
    "out_dir": "text",
    "top_k": "a whole number or none",
}
WRONG_WORDS = {
    "max_iters": ["5.5", "many", "", "1e-1", "1e999", "true"],
    "learning_rate": ["fast"],
    "compile": ["maybe", "2"],
    "optimizer": ["sgd"],
    "suppress": ["1,x"],
    "stages": ["1,x"],
    "top_k": ["some"],
}
WRONG_LINES = {
    "max_iters": ["5.5", "True", "None", "[1]", "1e999"],
    "learning_rate": ["True", "None", "[1]"],
    "compile": ["1", "None"],
    "optimizer": ["None", "[1]"],
    "suppress": ["3", "None", "(1, 2.5)", "'x'"],
    "stages": ["(1, None)"],
    "out_dir": ["5", "None"],
    "top_k": ["True"],
}
PLACES = {"the command line": (WORDS, WRONG_WORDS), "mine.py, line 2": (LINES, WRONG_LINES)}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("key", [*FORMS, "prompt"])
def test_a_value_becomes_the_fields_type_or_is_refused_with_key_value_place_and_form(key, place):
    def said(value):
        return f"--{key}={value}" if place == "the command line" else config_file(f"\n{key} = {value}\n")

    right, wrong = PLACES[place]
    for value, want in right.get(key, {}).items():
        got = getattr(settings(said(value)), key)
        assert repr(got) == repr(want), value  # of the same type, and what is in it
    for value in wrong.get(key, ()):
        sentence = refusal(said(value))
        assert sentence.startswith(f"{key} = {value!r} (" if place == "the command line" else f"{key} = ")
        assert f"({place})" in sentence and sentence.endswith(f"it takes {FORMS[key]}"), value


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_an_unknown_key_names_the_place_and_the_nearest_of_all_dataclasses_or_points_to_help():
    assert refusal("--learning_rat=1") == "unknown key 'learning_rat' (the command line); did you mean learning_rate?"
    said = refusal(config_file("seed = 3\nmax_iter = 5\n"))
    assert said == "unknown key 'max_iter' (mine.py, line 2); did you mean max_iters?"
    assert "n_layer?" in refusal("--n_layers=2", classes=(Settings, Shape))
    assert "--help" in refusal("--zzzzzzz=1")


def test_an_option_without_dashes_is_told_how_to_write_it_and_a_missing_file_the_nearest():
    for word in ("max_iters=5", "learning_rate=1e-3", "out_dir=out/quickstart"):
        assert repr(word) in refusal(word) and "--key=value" in refusal(word)
    for name in ("config/quickstrat.py", "quickstart.py", "config/quickstart"):
        said = refusal(name)
        assert repr(name) in said and "did you mean config/quickstart.py?" in said


def test_a_config_file_holds_assignments_of_values_and_nothing_else():
    """Whatever else stands there is refused with its line, and not run."""
    lines = ["import os", "print(1)", "if True: seed = 1", "for seed in [1]: pass", "def seed(): return 1", "seed += 1"]
    lines += ["seed, max_iters = 1, 2", "seed = max_iters = 1", "seed: int = 1", "seed.x = 1", "seed[0] = 1"]
    said = dict.fromkeys([*lines, "del seed", "max_iters"], "only assignments")
    for value in ("1 / 0", "undefined", "open('mine.py')", "print(1)", "__import__('os')"):
        said[f"seed = {value}"] = "cannot read the value of seed"
    for line, why in (said | {"max_iters = = 2": "invalid syntax"}).items():
        sentence = refusal(config_file(f"max_iters = 1\n{line}\n"))
        assert "mine.py, line 2: " in sentence and why in sentence, line
    Path("model.bin").write_bytes(b"\x80\xff\x00seed = 1")
    assert "model.bin" in refusal("model.bin")


def test_a_config_file_is_read_and_not_run_however_it_is_written():
    """Literals and arithmetic on numbers, within bounds: nothing that takes long, nothing that ends in a traceback."""
    read = {"2 ** 3": 8, "-7 // 2": -4, "7 % 4 + 1.5": 4.5, "(1 + 2) * 1e3": 3000.0, "8 * 1024": 8192, "1 / 8": 0.125}
    for text, value in read.items():
        assert settings(config_file(f"learning_rate = {text}")).learning_rate == value
    for text in ("10**10**10", "9**9**9", "2**1000", "10**60 * 10**60", "-" * 5000 + "1", "[" * 5000, "1 << 9**9"):
        assert "mine.py" in refusal(config_file(f"seed = {text}")), text
    for text in ("'a' * 10**12", "True + 1", "1 if 1 else 2", "b'x'", "1j", "...", "[x for x in (1,)]", "f'{1}'", "{}"):
        assert "cannot read the value of seed" in refusal(config_file(f"seed = {text}")), text
    for text in ("'\\ud800'", "'\\0'"):
        assert "out_dir = " in refusal(config_file(f"out_dir = {text}")), text
    Path("null.py").write_bytes(b"seed = 1\0")
    Path("large.py").write_bytes(b"# " + b"x" * 2**20 + b"\nseed = 1\n")
    for name in ("null.py", "large.py"):
        assert f"{name} is not a config file" in refusal(name) or f"{name}, line" in refusal(name)


def test_a_file_may_begin_with_a_byte_order_mark_and_end_its_lines_as_windows_does():
    Path("mine.py").write_bytes(b"\xef\xbb\xbfseed = 7\r\nmax_iters = 5\r\n")
    assert settings("mine.py") == Settings(seed=7, max_iters=5)


def test_one_spelling_is_as_good_as_another():
    @dataclass
    class Choice:
        compile: Literal["auto", "true", "false"] = "auto"  # nanoGPT's is a bool
        prompt: str = ""  # a text

    for word in ("--compile=False", "--compile=false", "--compile=0", "--compile=no", config_file("compile = False")):
        assert settings(word, classes=(Choice,)).compile == "false"
    for word in ("--compile=True", "--compile", "--compile=1", config_file("compile = True")):
        assert settings(word, classes=(Choice,)).compile == "true"
    for text in ("what is in main.py", "--x is a switch", "-5 apples"):
        for words in ([f"--prompt={text}"], ["--prompt", text]):
            assert settings(*words, classes=(Choice,)).prompt == text
    assert settings("--prompt=main.py", "--compile", config_file(""), classes=(Choice,)) == Choice("true", "main.py")


def test_initials_are_understood():
    assert refusal("--lr=1") == "unknown key 'lr' (the command line); did you mean learning_rate?"
    assert "n_layer?" in refusal("--layers=2", classes=(Settings, Shape)) and "--help" in refusal("--=1")


def test_annotations_may_be_postponed_and_an_unknown_type_is_named(monkeypatch):
    lines = ["from __future__ import annotations", "from dataclasses import dataclass", "@dataclass", "class Mine:"]
    lines += ["    weight: float = 1.0", "    size: int | None = None"]
    config_file("\n".join(lines), "postponed.py")
    monkeypatch.syspath_prepend(".")
    Mine = importlib.import_module("postponed").Mine
    assert settings("--weight=2", "--size=3", classes=(Mine,)) == Mine(2.0, 3)

    @dataclass
    class Other:
        sizes: list[int] = None
        when: complex = 1j

    for key in ("sizes", "when"):
        said = refusal(f"--{key}=1", classes=(Other,))
        assert key in said and "no type of a setting: those are bool, int, float" in said


# ---- filling ---------------------------------------------------------------------------------------------------------


def test_each_dataclass_gets_its_own_keys_and_a_shared_one_reaches_both():
    both = (Settings, Shape)
    assert settings("--max_iters=3", "--n_layer=2", classes=both) == [Settings(max_iters=3), Shape(n_layer=2)]
    assert settings("--seed=5", classes=both) == [Settings(seed=5), Shape(seed=5)]
    assert [s.seed for s in settings(classes=both)] == [1, 0]
    assert refusal("--n_layer=3", classes=(Shape,)) == "n_layer=3 must be even"


def test_what_differs_from_one_of_the_defaults_is_printed_unless_quiet_is_asked_for(capsys):
    settings("--max_iters=2000", "--seed=3", config_file("out_dir = 'x'"))
    assert capsys.readouterr().out == "settings: seed = 3, out_dir = 'x'\n"
    for classes in ((Settings, Shape), (Shape, Settings)):
        settings("--seed=0", classes=classes)
        assert "seed = 0" in capsys.readouterr().out
    settings("--max_iters=2000")
    configurator.fill(configurator.read(["--max_iters=5"]), Settings, quiet=True)
    assert capsys.readouterr().out == ""


# ---- help ------------------------------------------------------------------------------------------------------------

HELP = """--max_iters=2000  (a whole number)  optimiser steps
--learning_rate=0.001  (a number)  the peak
--compile=True  (true or false)  torch.compile
--optimizer=adamw  (one of adamw, muon)  for the matrices
--suppress=()  (a whole number, or several with commas between)  ids never generated
--stages=(0.5, 1.0)  (a number, or several with commas between)  fractions of the run
--out_dir=out/run  (text)  where it goes
--top_k=None  (a whole number or none)  none keeps all
--prompt=None  (text or none)  none starts from nothing
--seed=1  (a whole number)  of the windows
--n_layer=6  (a whole number)  blocks
--n_head=4  (a whole number)  heads
--seed=0  (a whole number)  of the weights"""


@pytest.mark.parametrize("words", ["--help", "-h", "--max_iters=3 --help", "config/quickstart.py -h"])
def test_help_lists_every_field_with_default_type_and_comment(words, capsys):
    with pytest.raises(SystemExit) as error:
        settings(*words.split(), classes=(Settings, Shape))
    assert error.value.code == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if line.startswith("--")] == HELP.splitlines()


def test_every_setting_of_the_project_explains_itself():
    silent, seen = [], set()
    for path in [*ROOT.glob("*.py"), *(ROOT / "nanodlm").glob("*.py")]:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for c in vars(importlib.import_module(name)).values():
            if isinstance(c, type) and c.__module__ == name and c.__name__.endswith(("Config", "Settings", "Options")):
                comments = configurator.field_comments(c)
                silent += [f"{name}.{c.__name__}.{f.name}" for f in fields(c) if not comments.get(f.name)]
                seen.add(f"{name}.{c.__name__}")
    assert silent == []
    assert seen >= set("train.Settings model.Config mdlm.LossOptions nanodlm.conversations.Options".split())


SCRIPT = '''"""What this script does."""
import sys
import threading
from dataclasses import dataclass
from nanodlm import configurator
@dataclass
class Base:
    n_head: int = 6  # query heads
@dataclass
class Config(Base):
    n_layer: int = 2  # blocks
configurator.fill(configurator.read(sys.argv[1:]), Config)
'''


def test_help_begins_with_the_scripts_docstring_has_what_is_inherited_and_exits_cleanly():
    command, env = [sys.executable, config_file(SCRIPT, "script.py"), "--help"], {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("What this script does.")
    assert (
        "--n_head=6  (a whole number)  query heads" in done.stdout
        and "--n_layer=2  (a whole number)  blocks" in done.stdout
    )


# ---- texts and paths -------------------------------------------------------------------------------------------------


@dataclass
class Texts:
    prompt: Text = ""  # what to go on with
    until: tuple[Text, ...] | None = None  # what ends it
    out: Place = ""  # where it goes


@dataclass
class Lines:
    tasks: tuple[Line, ...] = ()  # what to do


TEXTS = {  # said on the command line: the prompt, what until is
    r"\n\n": ("\n\n", ("\n\n",)),
    "\n\n": ("\n\n", ("\n\n",)),
    "[END]": ("[END]", ("[END]",)),
    "f(x)": ("f(x)", ("f(x)",)),
    "Q:,</s>": ("Q:,</s>", ("Q:", "</s>")),
    r"a\,b,c": ("a,b" + ",c", ("a,b", "c")),
    r"print('\\n')": (r"print('\n')", (r"print('\n')",)),
    r"\d+\t": ("\\d+\t", ("\\d+\t",)),
    " : ": (" : ", (" : ",)),
    "@@mention": ("@mention", ("@mention",)),
    "@said.txt": (" a\r\n\\n ", (" a\r\n\\n ",)),  # as it is, but for the mark of its bytes
    "1e4": ("1e4", ("1e4",)),
    "true": ("true", ("true",)),
}


@pytest.mark.parametrize("said", TEXTS)
def test_a_text_is_said_in_one_way_on_the_command_line_and_in_a_tasks_line(said):
    Path("said.txt").write_bytes(b"\xef\xbb\xbf a\r\n\\n ")
    prompt, until = TEXTS[said]
    assert settings(f"--prompt={said}", f"--until={said}", classes=(Texts,)) == Texts(prompt, until)
    mark = '"' if "'" in said else "'"
    line = f"toy prefix={mark}{said}{mark} until={mark}{said}{mark}"
    assert settings(f"--tasks={line},{line}", classes=(Lines,)).tasks == (line, line)  # no comma in it parts it
    name, own = tasks.read_task(line)
    found = configurator.fill(own, tasks.Options, quiet=True)
    assert (name, found.prefix, found.until) == ("toy", prompt, until)


def test_without_quotation_marks_a_tasks_line_keeps_what_its_texts_hold():
    for said, wanted in ((r"\n\nQ", "\n\nQ"), ("[END]", "[END]"), ("f(x)", "f(x)"), (r"a\,b", "a,b"), ("#", "#")):
        for words in (f"toy until={said}", f"[toy, toy until={said}]"):
            line = settings(f"--tasks={words}", classes=(Lines,)).tasks[-1]
            found = configurator.fill(tasks.read_task(line)[1], tasks.Options, quiet=True)
            assert found.until == (wanted,), words
    assert "an entry is empty" in refusal(config_file("tasks = ['']"), classes=(Lines,))


def test_in_a_config_file_a_text_is_what_python_says_it_is():
    file = config_file("prompt = '@x\\\\n'\nuntil = ('a,b', '[END]')\nout = '~/x'")
    found = settings(file, classes=(Texts,))
    assert found == Texts("@x\\n", ("a,b", "[END]"), str(Path.home() / "x"))
    for text in ("\n\n", "[END]", "a,b", r"\n", "@x"):  # one needs no brackets
        assert settings(config_file(f"until = {text!r}"), classes=(Texts,)).until == (text,)


def test_a_file_that_holds_no_text_and_a_task_that_cannot_be_read_are_named():
    Path("latin.txt").write_bytes(b"\xe9")
    Path("null.txt").write_bytes(b"a\0b")
    whys = {"none.txt": "cannot be read", "latin.txt": "is not UTF-8", "null.txt": "holds a null byte"}
    for name, why in (whys | {".": "cannot be read"}).items():
        said = refusal(f"--prompt=@{name}", classes=(Texts,))
        assert f"prompt (the command line): the file {name!r} {why}; " in said and f"@@{name}" in said
    with pytest.raises(SystemExit, match="the task .* cannot be read: No closing quotation"):
        tasks.read_task("toy until='a")


def test_a_tilde_is_the_users_own_directory_also_behind_a_comma():
    home = str(Path.home())
    assert settings("--out=~/a,~/b,c~", classes=(Texts,)).out == f"{home}/a,{home}/b,c~"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a pipe with a name")
def test_a_text_from_a_pipe_is_the_same_however_often_settings_are_filled(tmp_path):
    """As `--prompt=@<(command)`, of which nothing is left when it has been read."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text("once", encoding="utf-8"), daemon=True)
    writer.start()
    values = configurator.read([f"--prompt=@{pipe}"])
    assert [configurator.fill(values, Texts).prompt for _ in range(3)] == ["once"] * 3
