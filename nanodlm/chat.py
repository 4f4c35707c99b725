"""Talk to a checkpoint in the terminal: python sample.py --checkpoint=… --chat"""

import bisect
import contextlib
import functools
import json
import sys
import time
from pathlib import Path

import torch

from nanodlm import replay
from nanodlm import text as texts
from nanodlm.bounds import as_place
from nanodlm.console import UNSEEN, visible
from nanodlm.files import replace_file

HELP = "/reset forgets the conversation, /save FILE writes it as JSON, /quit or Ctrl-D ends; a \\ at the end goes on"


def ask(tokenizer, system, messages):
    """The ids of a conversation, up to where the assistant answers; ValueError where they cannot be had."""
    try:
        text = tokenizer.template([*([{"role": "system", "content": system}] if system else []), *messages], True)
    except Exception as e:  # it may refuse a role, in its own words
        raise ValueError(f"the checkpoint's chat template refuses this conversation: {e}") from e
    try:
        return tokenizer.encode(text)
    except Exception as e:  # a character outside the vocabulary, or half of one
        raise ValueError(f"the checkpoint's tokenizer cannot encode this conversation: {e}") from e


def fit(tokenizer, system, messages, room):
    """(ids, how many of the oldest messages are left out so that they fit into `room` tokens); the system turn stays,
    and the first one behind it is a question. ids are None where the last question alone does not fit."""
    starts = [i for i, m in enumerate(messages) if m["role"] == "user"]
    found = functools.cache(lambda i: ask(tokenizer, system, messages[i:]))
    if len(found(0)) <= room:
        return found(0), 0
    k = bisect.bisect_left(starts, True, key=lambda i: len(found(i)) <= room)
    return (found(starts[k]), starts[k]) if k < len(starts) else (None, 0)


def listen():
    """A function that gives what the user types next, None at the end of the input. In a terminal with readline: lines
    are edited, earlier ones come back, and what is pasted is one question, line breaks, indentation and all."""
    line = typed
    with contextlib.suppress(ImportError):  # Windows has none
        if sys.stdin.isatty() and sys.stdout.isatty():
            import readline

            readline.parse_and_bind("set enable-bracketed-paste on")
            line = input
    return functools.partial(read, line)


def typed(prompt):
    """A line without its end; EOFError behind the last. (Python's input() would lose what follows a null byte.)"""
    print(prompt, end="", flush=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removesuffix("\n")


def read(line):
    """What is said in one line, or in several of which all but the last end with a backslash."""
    said = ""
    try:
        while (new := line("… " if said else "you> ")).endswith("\\"):
            said += new[:-1] + "\n"
        said += new
    except UnicodeDecodeError:
        said = "\ufffd"  # as of what else is no text
    except EOFError:
        return said.strip("\n") or None
    except KeyboardInterrupt:
        return None
    return said.strip("\n").rstrip()


def talk(s, checkpoint, algorithm, options, stop_ids, device):
    """The conversation; s is sample.Settings."""
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    if tokenizer.chat is None:
        sys.exit(f"{checkpoint.name} has no chat template; use --prompt")
    room = model.config.seq_len - options.max_new_tokens
    if room < 1:
        sys.exit(
            f"max_new_tokens={options.max_new_tokens} leaves no room in the context of {model.config.seq_len} tokens"
        )
    name = s.algorithm or checkpoint.algorithm
    print(f"{checkpoint.name}: {model.num_params():,} parameters, decoded by {name}. {HELP}")
    messages, unseen, hear = [], 0, listen()  # all that was said; what fits the context is a view of it
    while True:
        said = hear()
        if said is None or said == "/quit":
            return
        if not said.strip():
            continue
        word, _, rest = said.partition(" ")
        if word == "/reset":
            messages = []
            print("(forgotten)")
        elif word == "/save":
            path = Path(as_place(rest.strip() or "chat.json"))
            content = [*([{"role": "system", "content": s.system}] if s.system else []), *messages]
            try:
                text = json.dumps(content, indent=1, ensure_ascii=False)  # readable, and harmless to whom it is shown
                replace_file(path, UNSEEN.sub(lambda c: f"\\u{ord(c[0]):04x}", text).encode())
                print(f"(wrote {visible(path)})")
            except (OSError, ValueError) as e:  # no place for it, or no name
                print(f"(not written: {visible(e)})")
        elif word.startswith("/"):
            print(HELP)
        else:
            asked = [*messages, {"role": "user", "content": said}]
            try:
                ids, lost = fit(tokenizer, s.system, asked, room)
            except ValueError as e:
                print(f"({visible(e)}; nothing was added to the conversation)")
                continue
            if ids is None:
                print(f"(too long: more than the {room} tokens that max_new_tokens={options.max_new_tokens} leaves)")
                continue
            if tokenizer.mask_id in ids:
                print("(the conversation holds the mask token, which would be taken for a hole to fill; leave it out)")
                continue
            if lost > unseen:
                print(f"(the oldest {lost} messages no longer fit, and are not seen)")
            unseen = lost
            try:
                text, made, forwards, seconds = answer(s, model, tokenizer, algorithm, options, stop_ids, ids, device)
            except KeyboardInterrupt:
                print("\n(stopped; nothing was added to the conversation)")
                continue
            except ValueError as e:
                print(f"({visible(e)}; nothing was added to the conversation)")
                continue
            text = text.strip()
            messages = [*asked, {"role": "assistant", "content": text}]
            print(f"model> {visible(text)}")
            print(f"({made} tokens, {forwards} forwards, {made / max(seconds, 1e-9):.0f} tokens/s)")


def answer(s, model, tokenizer, algorithm, options, stop_ids, ids, device):
    """(text, tokens made, forwards, seconds) of what follows the ids."""
    prompt = torch.tensor(ids, dtype=torch.int64, device=device)
    draw = replay.live(tokenizer, delay=s.delay) if s.watch else None
    watch = (lambda canvases: draw([canvases[0][len(ids) :]])) if s.watch else None  # the answer, not the question
    start = time.time()
    until = texts.until(tokenizer, [s.stop]) if s.stop else None
    keys = dict(mask_id=tokenizer.mask_id, eos_id=stop_ids, until=until, watch=watch)
    out = algorithm.generate(model, [prompt], options, **keys)
    made = out.tokens[0][len(ids) :].tolist()
    text = texts.answer(tokenizer, ids, made, [s.stop])[0]
    return text, len(made), out.num_forwards[0], time.time() - start
