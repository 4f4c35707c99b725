"""Talk to a checkpoint in the terminal: python sample.py --checkpoint=… --chat"""

import json
import sys
import time
from pathlib import Path

import torch

from nanodlm import replay
from nanodlm import text as texts
from nanodlm.console import UNSEEN, visible
from nanodlm.files import replace_file

HELP = "/reset forgets the conversation, /save FILE writes it as JSON, /quit or Ctrl-D ends; a \\ at the end goes on"


def ask(tokenizer, system, messages):
    """The ids of a conversation, up to where the assistant answers; ValueError where they cannot be had."""
    try:
        return tokenizer.chat([*([{"role": "system", "content": system}] if system else []), *messages])
    except Exception as e:  # a template may refuse a role, in its own words, and a tokenizer a character
        raise ValueError(f"the checkpoint's chat template refuses this conversation: {e}") from e


def fit(tokenizer, system, messages, room):
    """(ids, messages): without as many of the oldest turns as it takes for the ids to fit into `room` tokens; ids are
    None where the last turn alone does not."""
    ids = ask(tokenizer, system, messages)
    while len(ids) > room:
        if len(messages) < 3:
            return None, messages
        messages = messages[2:]  # a question and its answer
        ids = ask(tokenizer, system, messages)
    return ids, messages


def read_line():
    """What the user types, None at the end of the input. (Python's input() would lose what follows a null byte.)"""
    said = ""
    try:
        while True:
            print("… " if said else "you> ", end="", flush=True)
            line = sys.stdin.readline()
            said += line.rstrip("\n")
            if not line.rstrip("\n").endswith("\\"):
                return said.strip() if line or said else None
            said = said[:-1] + "\n"
    except KeyboardInterrupt:
        return None


def talk(s, checkpoint, algorithm, options, stop_ids, device):
    """The conversation; s is sample.Settings."""
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    if tokenizer.chat is None:
        sys.exit(f"{checkpoint.path.name} has no chat template; use --prompt")
    room = model.config.seq_len - options.max_new_tokens
    if room < 1:
        sys.exit(
            f"max_new_tokens={options.max_new_tokens} leaves no room in the context of {model.config.seq_len} tokens"
        )
    name = s.algorithm or checkpoint.algorithm
    print(f"{checkpoint.path.name}: {model.num_params():,} parameters, decoded by {name}. {HELP}")
    messages = []
    while True:
        said = read_line()
        if said is None or said == "/quit":
            return
        if not said:
            continue
        word, _, rest = said.partition(" ")
        if word == "/reset":
            messages = []
            print("(forgotten)")
        elif word == "/save":
            path = Path(rest.strip() or "chat.json")
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
                ids, kept = fit(tokenizer, s.system, asked, room)
            except ValueError as e:
                print(f"({visible(e)}; nothing was added to the conversation)")
                continue
            if ids is None:
                print(f"(too long: more than the {room} tokens that max_new_tokens={options.max_new_tokens} leaves)")
                continue
            if tokenizer.mask_id in ids:
                print("(the conversation holds the mask token, which would be taken for a hole to fill; leave it out)")
                continue
            if len(kept) < len(asked):
                print(f"(the oldest {len(asked) - len(kept)} messages no longer fit and are left out)")
            try:
                text, made, forwards, seconds = answer(s, model, tokenizer, algorithm, options, stop_ids, ids, device)
            except KeyboardInterrupt:
                print("\n(stopped; nothing was added to the conversation)")
                continue
            except ValueError as e:
                print(f"({visible(e)}; nothing was added to the conversation)")
                continue
            text = text.strip()
            messages = [*kept, {"role": "assistant", "content": text}]
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
