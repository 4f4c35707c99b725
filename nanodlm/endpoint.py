"""Between OpenAI's API and the engine: a request as ids and options, and what is written as text, piece by piece.

serve.py has the HTTP, serving.py the batches; here nothing waits for anything."""

import copy
import secrets
import time
from dataclasses import asdict, dataclass, fields, replace

import torch

from nanodlm import chat, configurator, presets, replay
from nanodlm import text as texts
from nanodlm import tokenizer as tokenizers

OWN = (
    "max_new_tokens",
    "temperature",
    "top_p",
    "seed",
    "compile",
)  # options with names of OpenAI's; or not per request


class Refused(ValueError):
    """One sentence for a client, and the field that it is about."""

    def __init__(self, message, param=None, status=400):
        super().__init__(message)
        self.param, self.status = param, status


@dataclass
class Served:
    """A model as requests are read with it."""

    name: str
    checkpoint: object  # checkpoint.Checkpoint
    engine: object  # what decodes it
    values: dict  # what the command line says of decoding, {option: (value, where)}
    preset: str = ""
    stop: str = ""  # besides the checkpoint's own stops

    def __post_init__(self):
        self.tokenizer, self.config = self.checkpoint.tokenizer, self.checkpoint.model.config
        self.stop_ids = self.tokenizer.stop_ids or None
        self.can_infill = self.tokenizer.mask_id is not None and not self.engine.CAUSAL
        self.defaults = options_of(self, {})[0]

    @property
    def options(self):
        """The names of the engine's options that a request may set beside OpenAI's own."""
        return [f.name for f in fields(self.engine.SampleOptions) if f.name not in OWN]

    def card(self):
        """What /v1/models says of it."""
        own = dict(algorithm=self.engine.__name__.rpartition(".")[2].removeprefix("fast_"), context=self.config.seq_len)
        own |= dict(chat=self.tokenizer.chat is not None, infill=self.can_infill, defaults=asdict(self.defaults))
        own |= dict(streams=hasattr(self.engine, "start") or self.engine.CAUSAL)
        return {"id": self.name, "object": "model", "created": int(time.time()), "owned_by": "nanodlm", "nanodlm": own}


def options_of(served, said):
    """(SampleOptions, whether the length was said) by what a request says, {option: value}, as sample.py has it."""
    values = served.values | {k: (v, "the request") for k, v in said.items() if v is not None}
    algorithm = served.engine
    try:
        settled = presets.settle(served.checkpoint, algorithm, values, served.preset)[1]
        settled = {k: v for k, v in settled.items() if k in values or hasattr(algorithm.SampleOptions, k)}
        options = configurator.fill(settled, algorithm.SampleOptions, quiet=True)
        own = {k: v for k, v in values.items() if k in served.options}
        presets.refuse_idle(options, own, served.config)
    except SystemExit as e:
        raise Refused(str(e), next((k for k in said if k in str(e)), None)) from None
    return options, "max_new_tokens" in values


def seeded(seed):
    return secrets.randbelow(2**31) if seed is None else seed


def prompt_of(served, prompt, suffix=None, holes=False, room=0):
    """(ids, the places of its holes that a space was left to) of a completion's prompt, a text or ids; with a suffix,
    `room` masks between the two."""
    tokenizer = served.tokenizer
    if not isinstance(prompt, str):
        if suffix is not None or holes:
            raise Refused("suffix and holes need a prompt that is text, not ids", "prompt")
        if any(not 0 <= i < tokenizer.vocab_size for i in prompt):
            raise Refused(f"prompt: ids are from 0 to {tokenizer.vocab_size - 1}", "prompt")
        if tokenizer.mask_id in prompt:
            raise Refused("prompt: the id of the mask is no text; use suffix or holes", "prompt")
        return list(prompt), []
    if (suffix is not None or holes) and not served.can_infill:
        raise Refused(f"{served.name} is autoregressive and cannot fill in; leave out suffix and holes", "suffix")
    if suffix is not None and holes:
        raise Refused("use suffix, or holes, not both", "suffix")
    before, behind = tokenizer.frame
    parts = tokenizers.parts_of(prompt) if holes else [prompt] if suffix is None else [prompt, room, suffix]
    if holes and len(parts) == 1:
        raise Refused(
            "the prompt has no hole; mark what to fill in with [MASK], or [MASK*8] for eight tokens", "prompt"
        )
    wide = sum(n for n in parts if isinstance(n, int))
    if wide > served.config.seq_len:
        raise Refused(f"the holes are larger than the context of {served.config.seq_len} tokens", "prompt")
    try:
        ids, left = tokenizers.fill_in(tokenizer, parts, "the prompt", before)
    except (SystemExit, ValueError) as e:
        raise Refused(str(e), "prompt") from None
    if tokenizer.mask_id is not None and ids.count(tokenizer.mask_id) != wide:
        raise Refused("the prompt spells the mask token, which would be taken for a hole; leave it out", "prompt")
    return [*ids, *(behind if len(parts) > 1 else ())], left


def chat_of(served, messages):
    """The ids of a conversation, up to where the assistant answers."""
    if served.tokenizer.chat is None:
        raise Refused(f"{served.name} has no chat template; use /v1/completions", "messages")
    try:
        ids = chat.ask(served.tokenizer, "", messages)
    except ValueError as e:
        raise Refused(str(e), "messages") from None
    if served.tokenizer.mask_id is not None and served.tokenizer.mask_id in ids:
        raise Refused(
            "the conversation holds the mask token, which would be taken for a hole; leave it out", "messages"
        )
    return ids


def fit(served, options, said, longest, infill):
    """The options with a length that fits behind a prompt of so many tokens."""
    if infill:
        options, room = replace(options, max_new_tokens=0), served.config.seq_len - longest
        options = replace(options, lookahead=True) if hasattr(options, "lookahead") else options
    else:
        room = served.config.seq_len - longest
        if hasattr(options, "window"):  # block by block, any length will do
            room = max(room, options.max_new_tokens)
    if room < (not infill):
        raise Refused(f"the prompt has {longest} tokens, and the context {served.config.seq_len}; shorten it", "prompt")
    if not said:
        options = replace(options, max_new_tokens=min(options.max_new_tokens, room))
    if options.max_new_tokens > room:
        raise Refused(
            f"{longest} prompt tokens and max_tokens={options.max_new_tokens} exceed the context of "
            f"{served.config.seq_len} tokens; at most {room} fit",
            "max_tokens",
        )
    return options


class Writer:
    """The text of one row while it is being written.

    prompt  its ids before anything was written; `left`: see prompt_of; `stops`: texts that end it"""

    def __init__(self, served, prompt, stops=(), left=()):
        self.tokenizer, self.stop_ids = served.tokenizer, set(served.stop_ids or ())
        self.prompt, self.stops, self.left = prompt, [s for s in stops if s], left
        self.mask_id = served.tokenizer.mask_id
        self.infill = self.mask_id is not None and self.mask_id in prompt
        self.said, self.known, self.front = "", 0, ""

    def again(self):
        """Another one of the same prompt."""
        return copy.copy(self)

    def more(self, ids, finished):
        """What can be said for good of a canvas whose first `finished` ids will stay: text that was not said yet."""
        if self.infill or finished <= max(self.known, len(self.prompt)):
            return ""
        self.known = finished
        new = ids[len(self.prompt) : finished]
        if (end := next((i for i, t in enumerate(new) if t in self.stop_ids), None)) is not None:
            new = new[:end]
        text, stopped = texts.answer(self.tokenizer, self.prompt, new, self.stops)
        if not stopped:
            text = text.rstrip("\ufffd")  # a character of which a token is missing
            held = max((n for s in self.stops for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
            text = text[: len(text) - held]  # it may become a stop
        return self.say(text)

    def say(self, text):
        if not text.startswith(self.said):  # a decoder that joins words may still change its mind
            return ""
        delta, self.said = text[len(self.said) :], text
        return delta

    def end(self, ids):
        """(all of the text, what of it was not said yet, why it ends: stop or length)."""
        if self.infill:
            text = texts.filled_in(self.tokenizer, ids, self.left)
            return text, text, "stop"
        new = ids[len(self.prompt) :]
        text, stopped = texts.answer(self.tokenizer, self.prompt, new, self.stops)
        stopped |= bool(new) and new[-1] in self.stop_ids
        return text, self.say(text), "stop" if stopped else "length"

    def made(self, ids):
        """How many tokens were written."""
        return len(ids) - len(self.prompt) + self.prompt.count(self.mask_id)


class Frames:
    """A canvas as a page shows it, step by step: [position, text, probability if it was revealed] of what changes. Of a
    text that goes on, behind its prompt."""

    def __init__(self, writer, tokens):
        self.writer, n = writer, len(writer.prompt)
        self.begin = 0 if writer.infill else n
        self.first = max(0, self.begin - texts.CONTEXT)
        unknown = -1 if writer.mask_id is None else writer.mask_id
        self.pieces = self.read(writer.prompt + [unknown] * (tokens - n))
        self.step, self.told = 0, 0

    def read(self, ids):
        pieces = replay.pieces(ids[self.first :], self.writer.tokenizer)[self.begin - self.first :]
        return [replay.seen(p) for p in pieces]

    def start(self):
        return {"start": self.pieces}

    def next(self, ids, events):
        now, chance = self.read(ids), {i - self.begin: p for _, i, _, p in events}
        length = len(now)
        changed = [i for i, p in enumerate(now) if i in chance or i >= len(self.pieces) or p != self.pieces[i]]
        self.pieces, self.step, self.told = now, self.step + 1, self.told + len(events)
        changes = [[i, now[i], round(chance[i], 4) if i in chance else None] for i in changed]
        return {"step": self.step, "changes": changes, "length": length}


def chances(ids, begin, events):
    """{position: probability} of what stands in the end."""
    found = {}
    for _, i, token, p in events:
        if i < len(ids) and ids[i] == token:
            found[i] = p
    return {i: p for i, p in found.items() if i >= begin}


def tensors(prompts):
    return [torch.tensor(p, dtype=torch.int64) for p in prompts]
