"""What becomes of bad input: every command, as a user types it, in a process of its own with ten seconds.

    python tests/bad_inputs.py            the counts, and what was no plain sentence
    python tests/bad_inputs.py train      … of one command
    python tests/bad_inputs.py --every=8  … of every eighth input

The processes are forked, so that an input costs what it costs, not the imports. What is stopped (Ctrl-C, `timeout`)
says what it has counted so far. test_fuzz.py draws some of the same.
"""

import contextlib
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

import train  # noqa: E402
from nanodlm import bounds, console, corpus  # noqa: E402
from nanodlm import tokenizer as tokenizers  # noqa: E402

SECONDS = 10
TEXT = "the quick brown fox jumps over the lazy dog. pack my box with five dozen liquor jugs. "
TINY = "--n_layer=1 --n_head=2 --n_embd=16 --seq_len=16 --batch_size=2 --dtype=float32 --max_iters=2 --device=cpu"
TINY += " --eval_windows=2 --eval_samples=1"
COMMANDS = {  # what runs; @ is a directory of its own
    "train": "train --dataset={chars} --out_dir=@/run " + TINY,
    "train bd3lm": "train --dataset={chars} --algorithm=bd3lm --block_size=4 --out_dir=@/run " + TINY,
    "train udlm": "train --dataset={chars} --algorithm=udlm --block_size=4 --out_dir=@/run " + TINY,
    "train editflow": "train --dataset={chars} --algorithm=editflow --source=typos --out_dir=@/run " + TINY,
    "train chat": "train --dataset={chat} --init_from={llama} --algorithm=ar --out_dir=@/run --max_iters=2 "
    "--batch_size=2 --seq_len=48 --eval_windows=2 --eval_samples=1 --device=cpu --dtype=float32 --lora_r=2",
    "sample": "sample --checkpoint={mdlm} --max_new_tokens=4 --device=cpu",
    "sample bd3lm": "sample --checkpoint={bd3lm} --max_new_tokens=4 --device=cpu",
    "sample udlm": "sample --checkpoint={udlm} --max_new_tokens=4 --device=cpu",
    "sample editflow": "sample --checkpoint={editflow} --max_new_tokens=4 --device=cpu",
    "sample ar": "sample --checkpoint={ar} --max_new_tokens=4 --device=cpu",
    "eval": "eval --checkpoint={mdlm} --windows=2 --samples=1 --device=cpu",
    "eval frontier": "eval --checkpoint={mdlm} --windows=0 --num_samples=2 --temperature=0.5,1 --judge={ar} --steps=2 "
    "--max_new_tokens=4 --device=cpu",
    "convert_bert": "convert_bert {bert} --out=@/out",
    "convert_ar": "convert_ar {llama} --out=@/out",
    "merge": "nanodlm.merge --checkpoint={adapter} --merge=@/out",
}
WORDS = ["", "nan", "inf", "-inf", "-1", "0", "1", "0.5", "1.5", "1e13", "1e-320", "1e400", "9" * 23, "x", "true"]
WORDS += ["none", "1,2", "-1,nan", "\udcff", "🌊é", "a/b", "--x", "[]", "0x10", "1e3000", " ", "'", "%s", "../.."]
LONG = "n" * 300  # more than the name of a file may have
WORDS += ["/proc/x", "/dev/null", "1e9", "999999", LONG]
LINES = ["None", "True", "[]", "(1, None)", "'x'", "-1", "10**10**10", "1e999", "[[1]]", "'\\ud800'", "b'x'", "1j"]
LINES += ["9**60", "float('nan')", "__import__('os')", "{1: 2}", "1/0", "-" * 400 + "1", "(" * 300 + ")" * 300]
LINES += ["1 if 1 else 2", "'\\0'", "1" * 9999, "[" * 9000, "2**64**9", "1 << 99999999999", "'a' * 10**12"]
# What takes as long as it is told to.
PATIENT = {
    "max_iters",
    "epochs",
    "eval_samples",
    "samples",
    "mc_samples",
    "num_samples",
    "delay",
    "steps",
    "batch_size",
    "compile",
}
PATIENT |= {"chat", "watch", "gradient_accumulation_steps", "windows", "max_new_tokens"}


def make(where):
    """The inputs that are good, {name: path}."""
    import test_convert

    where, paths = Path(where), {}
    tok = tokenizers.load({"kind": "char", "chars": "".join(sorted(set(TEXT)))})
    texts = {"train": tok.encode(TEXT * 20), "val": tok.encode(TEXT * 4)}
    (where / "chars").mkdir()
    corpus.write_dataset(where / "chars", tok, texts, bytes_per_token=1.0)
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    (where / "chat.jsonl").write_text((json.dumps({"messages": talk}) + "\n") * 9)
    for name in ("chars", "chat.jsonl", "bert", "llama", "mdlm", "bd3lm", "udlm", "editflow", "ar", "adapter"):
        paths[name.partition(".")[0]] = where / name
    for name in ("bert", "llama"):
        test_convert.write(name, where / name, **({"chat_template": test_convert.TEMPLATE} if name == "llama" else {}))
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
        for name in ("mdlm", "bd3lm", "udlm", "editflow", "ar"):
            own = [f"--algorithm={name}", f"--out_dir={where / name}", *(["--block_size=4"] if name == "bd3lm" else [])]
            train.main([*words_of("train", paths, where)[1], *own])
        train.main([*words_of("train chat", paths, where)[1], f"--out_dir={where / 'adapter'}"])
    return paths


def words_of(name, paths, scratch):
    """(module, words) of a command that runs."""
    command, *words = COMMANDS[name].format(**paths).replace("@", str(scratch)).split()
    return command, words


def attempt(name, paths, more=(), seconds=SECONDS, prepare=None):
    """(what became of it, what was said) of a command with more words: "ran"; "refused", in one line; or what may not
    be: "traceback", "many lines", "hung", "killed". `prepare` is called before, in the directory where it runs."""
    scratch = Path(tempfile.mkdtemp(prefix="bad-"))
    command, words = words_of(name, paths, scratch)
    module = importlib.import_module(command)
    said = scratch / "said"
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setsid()
            os.chdir(scratch)
            out = os.open(said, os.O_WRONLY | os.O_CREAT)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(out, 1)
            os.dup2(out, 2)
            resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            if prepare:
                prepare(scratch)
            try:
                console.run(module.main, [*words, *more])
                status = 0
            except SystemExit as e:
                status = e.code if isinstance(e.code, int) else 1 if e.code else 0
                if isinstance(e.code, str):
                    sys.stdout.flush()
                    os.write(2, b"EXIT " + e.code.encode(errors="backslashreplace") + b"\n")
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
            status = 99
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)
    end, found = time.time() + seconds, (0, 0)
    try:
        while (found := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.time() < end:
            time.sleep(0.005)
    except KeyboardInterrupt:
        os.killpg(child, signal.SIGKILL)
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    if found == (0, 0):
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        status, what = None, "hung"
    else:
        status = os.waitstatus_to_exitcode(found[1])
    text = said.read_text(errors="replace") if said.exists() else ""
    shutil.rmtree(scratch, ignore_errors=True)
    if status is not None:
        reason = text.rpartition("EXIT ")[2].strip()
        what = "ran" if status == 0 else "killed" if status < 0 else "refused"
        if what == "refused" and "\n" in reason:
            what = "many lines"
        if "Traceback (most recent" in text:
            what = "traceback"
        text = reason if what == "refused" else text
    return what, text


def settings_of(name):
    """{field: type} of everything that a command's --key=value may say."""
    from nanodlm import algorithms, conversations

    command = COMMANDS[name].split()[0]
    module = importlib.import_module(command)
    classes = [module.Settings]
    algorithm = next((a for a in ("bd3lm", "udlm", "editflow", "ar") if a in name), "mdlm")
    if command == "train":
        classes += [importlib.import_module("model").Config, algorithms.load(algorithm).LossOptions]
        classes += [conversations.Options] if "chat" in name else []
    elif command in ("sample", "eval"):
        classes += [algorithms.engine(algorithms.load(algorithm)).SampleOptions]
    return {key: kind for c in classes for key, kind in bounds.kinds(c).items()}


def inputs(name):
    """[(key, words, a config file's text or "")]: each setting with each of the values."""
    found = []
    for key in settings_of(name):
        found += [(key, [f"--{key}={word}"], "") for word in WORDS]
        found += [(key, ["bad.py"], f"{key} = {line}\n") for line in LINES]
    return found


def acceptable(key, what, text):
    """Whether that is how a bad value of a setting may end."""
    if what == "hung":
        return key in PATIENT
    # Where the key is not named, what it holds is.
    others = {
        "checkpoint": "model a/b",
        "init_from": "no checkpoint in",
        "judge": "no checkpoint in",
        "dataset": "data set",
        "infill": "the prompt",
    }
    named = key in text or LONG[:60] in text or "bad.py" in text or "model a/b" in text or others.get(key, key) in text
    return what == "ran" or what == "refused" and (named or "not finite" in text)


def tried(name, paths, key, words, content):
    def prepare(scratch):
        if content:
            (scratch / "bad.py").write_text(content, encoding="utf-8")

    return attempt(name, paths, words, prepare=prepare)


VALUES = [None, -1, 0, 1, 1.5, 10**9, 10**30, 1e300, "x", "", [], ["x"], {}, {"x": 1}, True]
FILES = [
    b"",
    b"[1]",
    b"\xff",
    b"{",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"null",
    b"\xef\xbb\xbf{}",
    b'{"a": 1e999, "a": NaN}',
]


def spoiled(name, paths):
    """[(label, what spoils a copy of the checkpoint in `bad`)]: each value of its config.json replaced by others."""
    whole = json.loads((folder(paths[name]) / "config.json").read_text())
    places = [(k,) for k in whole] + [(k, sub) for k, v in whole.items() if isinstance(v, dict) for sub in v]

    def put(place, value):
        def prepare(scratch):
            content = json.loads((scratch / "bad/config.json").read_text())
            at = content[place[0]] if len(place) == 2 else content
            at[place[-1]] = value
            (scratch / "bad/config.json").write_text(json.dumps(content))

        return prepare

    found = [(f"{'.'.join(place)} = {value!r}", put(place, value)) for place in places for value in VALUES]
    found += [
        (repr(content[:20]), lambda scratch, c=content: (scratch / "bad/config.json").write_bytes(c))
        for content in FILES
    ]
    if name == "adapter":
        found.append(("its own base", put(("adapter", "base"), "bad")))
    if name == "mdlm":
        found.append(("without a network", put(("tokenizer",), {"kind": "tiktoken", "name": "gpt2"})))
    return found


def folder(path):
    return path / "last" if (path / "last").is_dir() else path


def tried_checkpoint(name, paths, spoil):
    def prepare(scratch):
        shutil.copytree(folder(paths[name]), scratch / "bad")
        spoil(scratch)

    prompt = ["--prompt=the"] if name in ("llama", "adapter") else []
    return attempt("sample", paths, ["--checkpoint=bad", *prompt], prepare=prepare)


def count(argv, every, counts, wrong):
    """Try them all; how each ended goes into `counts`, and what is not acceptable into `wrong`."""
    with tempfile.TemporaryDirectory() as where:
        paths = make(where)
        for name in argv or ("mdlm", "llama", "bert", "adapter"):
            for label, spoil in tqdm(spoiled(name, paths)[::every], desc=name) if name in paths else ():
                what, text = tried_checkpoint(name, paths, spoil)
                counts[what] = counts.get(what, 0) + 1
                if what not in ("ran", "refused"):
                    wrong.append(label)
                    print(name, label, what, text[-700:], sep=" | ", flush=True)
        for name in [name for name in argv or COMMANDS if name in COMMANDS]:
            for key, words, content in tqdm(inputs(name)[::every], desc=name):
                what, text = tried(name, paths, key, words, content)
                counts[what] = counts.get(what, 0) + 1
                if not acceptable(key, what, text):
                    wrong.append((name, words, content, what, text[-1500:]))
                    print(name, *map(ascii, words), repr(content), what, text[-300:], sep=" | ", flush=True)


def main(argv):
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    counts, wrong, stopped = {}, [], False
    every = int(next((word[8:] for word in argv if word.startswith("--every=")), 1))
    try:
        count([word for word in argv if not word.startswith("--")], every, counts, wrong)
    except KeyboardInterrupt:
        stopped = True
    print("stopped early:" * stopped, counts, f"{len(wrong)} of them are not acceptable", flush=True)
    return stopped or bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
