"""Talk to a checkpoint in the terminal: python sample.py --checkpoint=… --chat"""

import json
import sys
import time
from pathlib import Path

import torch

from nanodlm import replay

HELP = "/reset forgets the conversation, /save FILE writes it as JSON, /quit or Ctrl-D ends; a \\ at the end goes on"


def ask(tokenizer, system, messages):
    """The ids of a conversation, up to where the assistant answers."""
    try:
        return tokenizer.chat([*([{"role": "system", "content": system}] if system else []), *messages])
    except Exception as e:  # a template may refuse a role, in its own words
        sys.exit(f"the checkpoint's chat template refuses this conversation: {e}")


def cut(text, stop):
    """The text before `stop`, where there is one and it occurs."""
    return text.split(stop, 1)[0] if stop else text


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
    """What the user types, None at the end of the input."""
    lines = []
    try:
        while True:
            lines.append(input("… " if lines else "you> "))
            if not lines[-1].endswith("\\"):
                return "\n".join(lines).strip()
            lines[-1] = lines[-1][:-1]
    except KeyboardInterrupt:
        return None
    except EOFError:
        return "\n".join(lines).strip() or None


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
                path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
                print(f"(wrote {path})")
            except OSError as e:
                print(f"(not written: {e})")
        elif word.startswith("/"):
            print(HELP)
        else:
            asked = [*messages, {"role": "user", "content": said}]
            ids, kept = fit(tokenizer, s.system, asked, room)
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
            text = cut(text, s.stop).strip()
            messages = [*kept, {"role": "assistant", "content": text}]
            print(f"model> {text}\n({made} tokens, {forwards} forwards, {made / max(seconds, 1e-9):.0f} tokens/s)")


def answer(s, model, tokenizer, algorithm, options, stop_ids, ids, device):
    """(text, tokens made, forwards, seconds) of what follows the ids."""
    prompt = torch.tensor(ids, dtype=torch.int64, device=device)
    draw = replay.live(tokenizer, delay=s.delay) if s.watch else None
    watch = (lambda canvases: draw([canvases[0][len(ids) :]])) if s.watch else None  # the answer, not the question
    start = time.time()
    keys = dict(mask_id=tokenizer.mask_id, eos_id=stop_ids, watch=watch)
    try:
        out = algorithm.generate(model, [prompt], options, **keys)
    except ValueError as e:
        sys.exit(str(e))
    made = out.tokens[0][len(ids) :].tolist()
    return tokenizer.decode(made), len(made), out.num_forwards[0], time.time() - start
