"""sample.py and chat.py from the command line, on tiny checkpoints with released models' kind of tokenizer.

Where only the conversation matters, generate() is replaced by one that answers from a list and notes what it is asked.
"""

import io
import json
import os
import re
import select
import shlex
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import test_convert
import torch
import transformers

import ar
import mdlm
import sample
from model import Config, Transformer
from nanodlm import checkpoint as ckpt
from nanodlm import configurator, fast_bd3lm, fast_mdlm
from nanodlm import tokenizer as tokenizers
from nanodlm.files import ROOT

torch.set_num_threads(1)
CONTEXT = 128
TEXT = """To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer the slings and arrows of
outrageous fortune, or to take arms against a sea of troubles and by opposing end them. The user asks the assistant;
the assistant answers the user; the system says how."""
SPECIAL = ["<|mdm_mask|>", "<|startoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
TURN = "<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>"
TEMPLATE = (
    "{{ '<|startoftext|>' }}{% for m in messages %}"
    + TURN.format("{{ m['role'] }}", "{{ m['content'] }}")
    + "{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
PRESETS = sorted((configurator.ROOT / "config" / "presets").glob("*.py"))
BLOCKS = ("fast_dllm_v2", "nemotron")  # whose way to open a block is none of a canvas
NAMES = [(p.stem, " --algorithm=bd3lm --block_size=8" if p.stem in BLOCKS else "") for p in PRESETS]


def write(path, special=SPECIAL, template=None, **more):
    """A random network whose preset is LLaDA's, with a tokenizer as released ones have it."""
    end = dict.fromkeys(("eos_token", "pad_token"), "<|endoftext|>")
    hf = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path.parent / "bpe.json"), **end)
    hf.add_special_tokens({"additional_special_tokens": special})
    hf.chat_template = template
    files = path.with_name(path.name + "_tokenizer")
    hf.save_pretrained(files)
    torch.manual_seed(0)
    net = Transformer(Config(384, CONTEXT, n_layer=1, n_head=2, n_embd=32, **more))
    weights = {n: 0.3 * torch.randn_like(p) if p.dim() == 2 else p for n, p in net.named_parameters()}
    kind = ("ar", {}) if more else ("mdlm", {"preset": "llada"})
    ckpt.save(path, weights, net.config, tokenizers.load({"kind": "hf"}, files), files, *kind)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Checkpoints: chatty, with a chat template; plain, without; causal, without a mask."""
    path = tmp_path_factory.mktemp("checkpoints")
    tokenizers.train_bpe([TEXT], 320, path / "bpe.json")
    write(path / "chatty", SPECIAL, TEMPLATE)
    write(path / "plain")
    write(path / "causal", SPECIAL[1:], causal=True)
    return path


@pytest.fixture(scope="module")
def tokenizer(made):
    return ckpt.load(made / "chatty").tokenizer


def command(path, *args):
    sample.main([f"--checkpoint={path}", "--device=cpu", *args])


def refused(path, *args):
    """The sentence that the command exits with."""
    with pytest.raises(SystemExit) as e:
        command(path, *args)
    assert isinstance(e.value.code, str) and "\n" not in e.value.code
    return e.value.code


class Answers:
    """Stands in for generate: writes the given answers one after another, and keeps what it was asked."""

    def __init__(self, tokenizer):
        self.tokenizer, self.answers, self.asked, self.options, self.stops = tokenizer, [], [], [], []

    def __call__(self, model, prompts, options, *, mask_id, eos_id=None, until=None, trace=False, watch=None):
        self.asked.append(prompts[0].tolist())
        self.options.append(options)
        self.stops.append(eos_id)
        answer = self.answers.pop(0) if self.answers else "yes"
        if answer == "^C":
            raise KeyboardInterrupt
        new = torch.tensor(self.tokenizer.encode(answer))
        for k in range(len(new) + 1) if watch else ():
            watch([torch.cat([prompts[0], new[:k], torch.full((len(new) - k,), mask_id)])])
        return mdlm.Output([torch.cat([p, new]) for p in prompts], [3] * len(prompts))


@pytest.fixture
def fake(tokenizer, monkeypatch):
    fake = Answers(tokenizer)
    for module in (fast_mdlm, fast_bd3lm, ar):
        monkeypatch.setattr(module, "generate", fake)
    return fake


def turns(*texts, system=None):
    """Messages of user and assistant in turn."""
    first = [{"role": "system", "content": system}] if system else []
    return first + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


# ---- one command, one text -------------------------------------------------------------------------------------------

TWELVE = "--prompt='to be' --max_new_tokens=12"


@pytest.mark.parametrize(
    "which, args, words",
    [
        ("plain", "--prompt='To be, or' --max_new_tokens=6 --num_samples=2", ["--- sample 2", "\n12 tokens in 12 "]),
        ("plain", "--infill='To be,[MASK*4] to be[MASK]'", ["To be,", " to be", "\n5 tokens in 5 forwards"]),
        ("causal", "--prompt='to be' --max_new_tokens=6", ["to be", "\n6 tokens in 6 forwards"]),
        ("chatty", "--template --system='be brief' --prompt='to be?' --max_new_tokens=8", ["be brief", "to be?"]),
        ("plain", f"{TWELVE} --threshold=0.0", ["\n12 tokens in 1 forwards"]),
        ("plain", f"{TWELVE} --algorithm=bd3lm --preset=bd3lm --block_size=8", ["\n12 tokens in"]),
        *(
            ("plain", f"{TWELVE} --preset={name}{said}", [f"preset: {name}\n", "\n12 tokens in"])
            for name, said in NAMES
        ),
    ],
)
def test_a_command_writes_its_text_and_what_it_took(made, capsys, which, args, words):
    command(made / which, *shlex.split(args), "--stop_at_eos=false")
    out = capsys.readouterr().out
    assert all(word in out for word in words) and "<|" not in out
    assert out.count("To be, or") >= 2 or "--num_samples=2" not in args


def test_infilling_gives_generate_one_mask_per_hole(made, fake, tokenizer):
    command(made / "plain", "--infill=To be,[MASK*4] to be[MASK]")
    mask = [tokenizer.mask_id]
    assert fake.asked == [tokenizer.encode("To be,") + 4 * mask + tokenizer.encode(" to be") + mask]
    assert fake.options[0].max_new_tokens == 0


def test_a_template_holds_the_system_prompt_and_the_prompt(made, fake, tokenizer):
    command(made / "chatty", "--template", "--system=be brief", "--prompt=to be?")
    command(made / "chatty", "--template", r"--prompt=to be\nor not")
    texts = TURN.format("system", "be brief") + TURN.format("user", "to be?"), TURN.format("user", "to be\nor not")
    ask = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    assert fake.asked == [tokenizer.encode(f"<|startoftext|>{text}{ask}") for text in texts]


def test_a_text_is_cut_before_the_stop_text_but_not_within_the_prompt(made, fake, capsys):
    fake.answers = [" not to be END and more", " that is. the question"]
    command(made / "plain", "--prompt=or", "--stop=END")
    command(made / "plain", "--prompt=to be. or", "--stop=.")
    out = capsys.readouterr().out
    assert "or not to be \n" in out and "to be. or that is\n" in out


@pytest.mark.parametrize(
    "which, args, said",
    [
        ("causal", "--infill=to_be[MASK*3]", "no mask token"),
        ("causal", "--algorithm=mdlm --prompt=to_be", "no mask token, which mdlm needs"),
        ("causal", "--algorithm=bd3lm --prompt=to_be", "no mask token, which bd3lm needs"),
        ("plain", "--template --prompt=to_be", "chat template"),
        ("plain", "--chat", "chat template"),
        ("chatty", "--template --infill=to_be[MASK]", "--template needs --prompt"),
        ("plain", "--prompt=" + "question_" * CONTEXT, f"context of {CONTEXT}"),
        ("plain", "--prompt=to_be --infill=to_be[MASK]", "not both"),
        (
            "plain",
            "--preset=lada --prompt=to_be",
            f"no preset 'lada'; there are {', '.join(p.stem for p in PRESETS)}, and none",
        ),
        (
            "plain",
            "--prompt=to_be --quota=steps --threshold=0.5",
            "threshold=0.5 (the command line) does nothing with q",
        ),
        ("chatty", f"--chat --max_new_tokens={CONTEXT}", f"leaves no room in the context of {CONTEXT} tokens"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(made, which, args, said):
    assert said in refused(made / which, *args.split())


def test_a_template_that_refuses_a_conversation_says_why(made):
    path = write(made / "strict", SPECIAL, "{{ raise_exception('no system prompts') }}")
    assert "no system prompts" in refused(path, "--template", "--system=be brief", "--prompt=to be?")


# ---- presets ---------------------------------------------------------------------------------------------------------


def values_of(file):
    return {key: value for key, (value, _) in configurator.read_file(str(file)).items()}


@pytest.mark.parametrize("algorithm", ["mdlm", "bd3lm"])
@pytest.mark.parametrize("file", PRESETS, ids=lambda p: p.stem)
def test_a_preset_is_what_generate_is_given(file, algorithm, made, fake):
    """As far as the context has room. bd3lm has caches of its own, and a few options that mean nothing to mdlm."""
    values, args = values_of(file), ("--prompt=to be", f"--preset={file.stem}", f"--algorithm={algorithm}")
    if algorithm == "bd3lm" and "cache" in values:
        assert "cache = 'dual'" in refused(made / "plain", *args)
        return
    if algorithm == "mdlm" and file.stem in BLOCKS:
        assert "opening = 'next'" in refused(made / "plain", *args)
        return
    room = fast_bd3lm if algorithm == "bd3lm" else fast_mdlm
    values = {k: v for k, v in values.items() if hasattr(room.SampleOptions, k)}
    assert room.SampleOptions(**values) != room.SampleOptions()
    command(made / "plain", *args)
    (options,), (ids,) = fake.options, fake.asked
    if algorithm == "mdlm":
        values["max_new_tokens"] = min(values.get("max_new_tokens", 256), CONTEXT - len(ids))
    assert {key: getattr(options, key) for key in values} == values


LLADA = values_of("config/presets/llada.py")
GIVEN = [
    (f"--preset={preset} --{quota}={value}", {"quota": quota, quota: value})  # naming it is asking for it
    for preset in ("none", "llada", "bd3lm")
    for quota, value in (("threshold", 0.5), ("factor", 2.0))
]
GIVEN += [
    ("--entropy_bound=0.2", dict(quota="entropy_bound", entropy_bound=0.2, order="entropy")),
    ("--quota=ancestral --entropy_bound=0.1", dict(quota="ancestral")),  # its usual value
    ("--preset=illada", dict(lookahead=False)),
    ("--preset=fast", dict(cache="dual")),
    ("--temperature=0.7 --max_new_tokens=9", LLADA | dict(temperature=0.7, max_new_tokens=9)),
]
GIVEN += [  # it keeps what is outside of a block, of which there is nothing else
    (f"--cache={cache} {said}", dict(cache=cache, block_size=size))
    for cache in ("prefix", "dual")
    for said, size in (("--preset=none", 32), ("--preset=dream", 32), ("--block_size=8", 8))
]


@pytest.mark.parametrize("args, given", GIVEN, ids=[args for args, _ in GIVEN])
def test_what_is_said_goes_before_the_preset_and_brings_what_it_needs(args, given, made, fake, capsys):
    """A released model comes with its preset."""
    command(made / "plain", "--prompt=to be", *args.split())
    assert {key: getattr(fake.options[0], key) for key in given} == given
    name = args.split("--preset=")[1].split()[0] if "--preset=" in args else "llada"
    assert (f"preset: {name}\n" in capsys.readouterr().out) == (name != "none")


def test_no_preset_is_the_defaults_and_of_the_models_own_another_algorithm_takes_what_it_knows(made, fake):
    command(made / "plain", "--prompt=to be", "--preset=none", "--max_new_tokens=9")
    command(made / "plain", "--prompt=to be", "--algorithm=ar", "--max_new_tokens=9")
    assert fake.options == [fast_mdlm.SampleOptions(9), ar.SampleOptions(9, temperature=0.0)]


def test_infilling_looks_ahead_whatever_the_preset_says(made, fake):
    command(made / "plain", "--infill=[MASK*4] to be", "--preset=illada")
    command(made / "plain", "--infill=[MASK*4] to be", "--preset=illada", "--lookahead=false")
    assert [o.lookahead for o in fake.options] == [True, False]


# ---- conversations ---------------------------------------------------------------------------------------------------


@pytest.fixture
def talk(made, fake, monkeypatch, capsys):
    """talk(lines, *args, answers=…): types the lines, then Ctrl-D. Returns what was printed."""

    def talk(lines, *args, answers=(), path=made / "chatty"):
        fake.answers = list(answers)
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
        command(path, "--chat", "--max_new_tokens=16", *args)
        assert not sys.stdin.read(), "it ended before everything was said"
        return capsys.readouterr().out

    return talk


SYSTEM, BOTH = "--system=be brief", ["to be?", "to be?~yes~or not?"]
TALKS = [  # what is typed, the answers, the conversations that were asked about, something printed, options
    ("to be?~or not?", "the question~to suffer", ["to be?", "to be?~the question~or not?"], "model> to suffer\n"),
    ("to be?~/reset~or not?", "", ["to be?", "or not?"], "(forgotten)"),
    ("to be?~/reset~or not?", "", ["to be?", "or not?"], "", SYSTEM),
    ("~   ", "", [], ""),
    ("to be\\", "", ["to be"], ""),
    ("to be,\\~or\\~not?~again", "yes~no", ["to be,\nor\nnot?", "to be,\nor\nnot?~yes~again"], ""),
    ("to be?~or not?~again", "yes~^C~no", [*BOTH, "to be?~yes~again"], "(stopped"),  # nothing of it is kept
    ("to be?~" + "so " * CONTEXT + "~or not?", "", BOTH, "(too long: more than the 112 tokens that max_new_tokens=16"),
    ("to be?~/save nowhere/chat.json~or not?", "", BOTH, "(not written: "),
    ("to be?~or not?", "yes END no~no", BOTH, "model> yes\n", "--stop=END"),
    ("to be?", "one\ntwo\n\nthree", ["to be?"], "model> one\ntwo\n(", r"--stop=\n\n"),
    *((line, "", [], "/reset forgets") for line in ("/help", "/rest", "/")),
]


@pytest.mark.parametrize("typed, answers, asked, printed, options", [(*t, [])[:5] for t in TALKS])
def test_a_conversation_asks_and_answers(talk, fake, tokenizer, typed, answers, asked, printed, options):
    out = talk(typed.split("~"), *([options] if options else []), answers=answers.split("~") if answers else ())
    system = "be brief" if options == SYSTEM else None
    assert fake.asked == [tokenizer.chat(turns(*texts.split("~"), system=system)) for texts in asked]
    assert printed in out and out.count("/reset forgets") == (2 if printed == "/reset forgets" else 1)


def test_a_network_answers(made, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("to be?\nor not?\n/quit\n"))
    command(made / "chatty", "--chat", "--max_new_tokens=8", "--block_size=4", "--cache=prefix")
    out = capsys.readouterr().out
    assert out.count("model> ") == 2 and "decoded by mdlm" in out and "forwards" in out and "<|" not in out


def test_an_answer_ends_where_the_checkpoint_says(made, talk, fake, tokenizer):
    for args in ([], ["--stop_at_eos=false"]):
        command(made / "chatty", "--prompt=to be", *args)
        talk(["to be?"], *args)
    ends = [tokenizer.encode(text)[0] for text in ("<|endoftext|>", "<|eot_id|>")]
    assert [sorted(ids) for ids in fake.stops[:2]] == [sorted(ends)] * 2 and fake.stops[2:] == [None, None]


def test_save_writes_the_conversation_readably(talk, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    out = talk(["nöt?", "/save ~/two words.json", "or not?", "/save"], SYSTEM, answers=["the question", "yes"])
    text = Path("two words.json").read_text("utf-8")
    assert json.loads(text) == turns("nöt?", "the question", system="be brief") and "nöt?" in text
    assert f"(wrote {tmp_path}/two words.json)" in out
    whole = turns("nöt?", "the question", "or not?", "yes", system="be brief")
    assert json.loads(Path("chat.json").read_text("utf-8")) == whole


def test_quit_ends(talk, fake):
    with pytest.raises(AssertionError, match="before everything was said"):
        talk(["/quit", "to be?"])
    assert not fake.asked


def test_a_history_that_is_too_long_loses_its_oldest_turns_and_keeps_the_system_prompt(talk, fake, tokenizer, tmp_path):
    said, answered = [f"the question {i}?" for i in range(8)], [f"to suffer {i}" for i in range(8)]
    out = talk([*said, f"/save {tmp_path / 'all.json'}"], SYSTEM, answers=answered)
    texts = [text for pair in zip(said, answered) for text in pair]
    assert json.loads((tmp_path / "all.json").read_text()) == turns(*texts, system="be brief")  # the record is whole

    def history(first, last):
        texts = [text for i in range(first, last) for text in (said[i], answered[i])]
        return tokenizer.chat(turns(*texts, said[last], system="be brief"))

    left = [next(j for j in range(i + 1) if len(history(j, i)) <= CONTEXT - 16) for i in range(8)]
    assert fake.asked == [history(j, i) for i, j in enumerate(left)]
    assert left[0] == left[1] == 0 < left[-1]
    lost = re.findall(r"the oldest (\d+) messages no longer fit, and are not seen", out)
    assert [int(n) for n in lost] == [2 * b for a, b in zip(left, left[1:]) if b > a] and len(lost) >= 2


def test_a_question_is_left_out_together_with_its_answer(talk, fake, tokenizer):
    """Without the first question alone it would fit."""
    first, second = "to " * 60, "or " * 60
    out = talk([first, second], answers=["yes", "no"])
    assert len(tokenizer.chat(turns("yes", second.strip()))) <= CONTEXT - 16
    assert fake.asked[1] == tokenizer.chat(turns(second.strip())) and "(the oldest 2 messages" in out


def test_a_message_fits_to_the_token(talk, fake, tokenizer):
    """The last one that fits, and one token more."""
    texts = ["to " * n for n in range(1, CONTEXT)]
    lengths = [len(tokenizer.chat(turns(t.strip()))) for t in texts]
    exact = lengths.index(CONTEXT - 16)
    out = talk([texts[exact], "/reset", texts[exact + 1]])
    assert len(fake.asked) == 1 and len(fake.asked[0]) == CONTEXT - 16 and out.count("(too long") == 1


def test_watch_draws_the_answer_and_nothing_else(talk):
    out = talk(["the question?"], "--watch", "--delay=0", answers=["to suffer"])
    assert "░" in out and "to suffer" in out and "question" not in out


def test_a_template_of_plain_text_brings_its_own_stop_text(made, talk):
    """ModernBERT-chat's: no token ends the answer, but [/Answer] does."""
    template = "{% for m in messages %}{% if m.role == 'user' %}[Question]{{ m.content }}[/Question][Answer]{% else %}"
    path = write(made / "bert", SPECIAL, template + "{{ m.content }}[/Answer]{% endif %}{% endfor %}")
    for stop, printed in ([], "model> yes\n"), (["--stop=s"], "model> ye\n"):
        assert printed in talk(["to be?"], *stop, answers=["yes[/Answer][Question]"], path=path)


def test_whatever_is_typed_and_written_the_conversation_goes_on(tmp_path):
    """A real terminal, and a network that writes any bytes."""
    import pty

    test_convert.write("llama", tmp_path / "llama", chat_template=test_convert.TEMPLATE)
    command = [sys.executable, ROOT / "sample.py", f"--checkpoint={tmp_path / 'llama'}", "--chat", "--algorithm=ar"]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*command, "--max_new_tokens=60", "--temperature=1.5", "--stop_at_eos=false"],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    typed = [
        b"hi",
        b"a\x16\0b",
        b"\xff\xfe\x80",
        b"\x16\x1b]0;x\x16\x07",
        "日本 \u202e e\u0301".encode(),
        b"/save nowhere/x",
    ]
    typed += [b"\x1b[200~  def f(a):\r      return a\x1b[201~"]  # pasted
    typed += [b"/save " + b"y" * 300, b"/save good.json", b"/quit"]
    said, begun = b"", time.time()
    try:
        while time.time() < begun + 120:
            with suppress(OSError):  # the terminal is gone when the process is
                if select.select([ours], [], [], 0.1)[0]:
                    said += os.read(ours, 65536)
            if said.count(b"you> ") > 10 - len(typed) and typed:
                os.write(ours, typed.pop(0) + b"\n")
            if process.poll() is not None:
                break
        assert process.poll() == 0 and not typed, said
    finally:
        process.kill()
    text = said.decode(errors="replace")
    answers = re.findall(r"model> (.*?)\r\n\(60 tokens", text, re.S)
    assert len(answers) == 6 and "Traceback" not in text and text.count("(not written: ") == 2, text
    for answer in answers:
        assert not re.search("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e]", answer), ascii(answer)
    saved = (tmp_path / "good.json").read_text("utf-8")
    assert json.loads(saved)[-2]["content"] == "  def f(a):\n      return a" and not re.search(
        "[\0-\x09\x0b-\x1f\x7f-\x9f\u202e]", saved
    )
