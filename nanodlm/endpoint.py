"""Between OpenAI's API and the engine: a request as ids and options, and what is written as text, piece by piece.

serve.py has the HTTP, serving.py the batches; here nothing waits for anything."""

import copy
import itertools
import math
import secrets
import time
import uuid
from dataclasses import asdict, dataclass, fields, replace

from nanodlm import chat, configurator, echo, presets, replay
from nanodlm import text as texts
from nanodlm import tokenizer as tokenizers
from nanodlm.bounds import YES

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
    algorithm: str
    checkpoint: object  # checkpoint.Checkpoint
    engine: object  # what decodes it
    values: dict  # what the command line says of decoding, {option: (value, where)}
    preset: str = ""

    def __post_init__(self):
        self.tokenizer, self.config = self.checkpoint.tokenizer, self.checkpoint.model.config
        self.stop_ids = self.tokenizer.stop_ids or None
        self.edits = getattr(self.config, "source", "") == "typos"
        self.can_infill = self.tokenizer.mask_id is not None and not self.engine.CAUSAL
        self.defaults = options_of(self, {})[0]

    @property
    def options(self):
        """The names of the engine's options that a request may set beside OpenAI's own."""
        return [f.name for f in fields(self.engine.SampleOptions) if f.name not in OWN]

    def card(self):
        """What /v1/models says of it."""
        own = dict(algorithm=self.algorithm, context=self.config.seq_len)
        own |= dict(chat=self.tokenizer.chat is not None, infill=self.can_infill, defaults=asdict(self.defaults))
        own |= dict(streams=hasattr(self.engine, "open_batch") or self.engine.CAUSAL)
        return {"id": self.name, "object": "model", "created": int(time.time()), "owned_by": "nanodlm", "nanodlm": own}


def options_of(served, said):
    """(SampleOptions, whether the length was said) by what a request says, {option: value}, as sample.py has it."""
    values = served.values | {k: (v, "the request") for k, v in said.items() if v is not None}
    algorithm = served.engine
    try:
        settled = presets.settle(served.checkpoint, algorithm, values, served.preset)[1]
        settled = {k: v for k, v in settled.items() if k in values or hasattr(algorithm.SampleOptions, k)}
        if str(settled.pop("compile", ("",))[0]).lower() in YES and "compile" in values:
            raise Refused("compile takes a batch of one shape, which a server does not have; leave it out", "compile")
        options = configurator.fill(settled, algorithm.SampleOptions, quiet=True)
        own = {k: v for k, v in values.items() if k in served.options}
        presets.refuse_idle(options, own, served.config)
    except SystemExit as e:
        raise Refused(str(e), next((k for k in said if k in str(e)), None)) from None
    return options, "max_new_tokens" in values


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


def planned(served, asked, said):
    """(a Writer per prompt, the options) of a request (serve.Chat or serve.Completion)."""
    (options, told), chat = options_of(served, said), hasattr(asked, "messages")
    infill = not chat and (asked.suffix is not None or asked.holes)
    if chat:
        prompts = [(chat_of(served, [m.plain() for m in asked.messages]), [], None)]
    else:
        given = asked.prompt if isinstance(asked.prompt, list) else [asked.prompt]
        given = [given] if given and isinstance(given[0], int) else given
        if not given:
            raise Refused("the list of prompts is empty", "prompt")
        room = options.max_new_tokens
        if asked.suffix is not None and not told:
            longest = max(len(prompt_of(served, p, asked.suffix, False, 1)[0]) for p in given)
            room = max(1, min(room, served.config.seq_len - longest + 1))
        around = [None if asked.suffix is None else (p, asked.suffix) for p in given]
        prompts = [(*prompt_of(served, p, asked.suffix, asked.holes, room), b) for p, b in zip(given, around)]
    options = fit(served, options, told, max(len(ids) for ids, *_ in prompts), infill)
    options = replace(options, seed=secrets.randbelow(2**31) if asked.seed is None else asked.seed)
    stops = asked.stops() + ([served.tokenizer.stop_text] if chat else [])
    if not chat and asked.holes and stops:
        raise Refused("stop does nothing with holes, whose answer is the whole text; leave it out", "stop")
    return [Writer(served, ids, stops, left, between) for ids, left, between in prompts], options


class Writer:
    """The text of one row while it is being written.

    prompt   its ids before anything was written; `left`: see prompt_of
    stops    texts that end it
    between  the texts before and behind the one hole: of which it is the text, not of all"""

    def __init__(self, served, prompt, stops=(), left=(), between=None):
        self.tokenizer, self.stop_ids = served.tokenizer, set(served.stop_ids or ())
        self.prompt, self.stops, self.left, self.between = prompt, [s for s in stops if s], left, between
        self.mask_id = served.tokenizer.mask_id
        # The answer is the whole text where it has holes, or may be edited (editflow.py).
        self.infill = self.mask_id is not None and self.mask_id in prompt or served.edits
        self.said, self.known = "", 0

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
            if self.between and text.startswith(self.between[0]) and text.endswith(self.between[1]):
                text = text[len(self.between[0]) : len(text) - len(self.between[1])]
            elif self.between:  # a decoder that joins words
                holes = [i for i, t in enumerate(self.prompt) if t == self.mask_id]
                text = texts.continuation(self.tokenizer, ids[: holes[0]], ids[holes[0] : holes[-1] + 1])
            text = text[: min((at for s in self.stops if (at := text.find(s)) >= 0), default=len(text))]
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


class Answer:
    """A request under way, in OpenAI's words."""

    def __init__(self, served, asked, writers, options, fronts=(), scores=()):
        self.asked, self.options, self.began, n = asked, options, time.time(), asked.n or 1
        self.chat, self.tokenizer = hasattr(asked, "messages"), served.tokenizer
        self.prompt_tokens = sum(len(w.prompt) - w.prompt.count(w.mask_id) for w in writers)
        self.rows = [copy.copy(w) for w in writers for _ in range(n)]
        self.fronts = [text for text in fronts or [""] * len(writers) for _ in range(n)]  # what is echoed
        self.scores = [each for each in scores or [[]] * len(writers) for _ in range(n)]  # … and echo.each_token of it
        self.frames = [Frames(w, len(w.prompt) + options.max_new_tokens) for w in self.rows if asked.canvas]
        kind = "chat.completion" if self.chat else "text_completion"
        self.head = dict(id=f"{'chatcmpl' if self.chat else 'cmpl'}-{uuid.uuid4().hex}", object=kind)
        self.head |= dict(created=int(self.began), model=served.name)
        self.made, self.forwards, self.choices = 0, 0, [None] * len(self.rows)

    def chunk(self, k, text, why=None, **more):
        """A piece of a stream: what is new of row k."""
        said = {"delta": {"content": text}} if self.chat else {"text": text}
        head = self.head | ({"object": "chat.completion.chunk"} if self.chat else {})
        return head | {"choices": [{"index": k, **said, "logprobs": None, "finish_reason": why}], **more}

    def opening(self):
        """The first chunks of a stream."""
        for k, front in enumerate(self.fronts):
            more = {"canvas": self.frames[k].start()} if self.frames else {}
            if self.chat or front or more:
                chunk = self.chunk(k, front, **more)
                if self.chat:
                    chunk["choices"][0]["delta"]["role"] = "assistant"
                yield chunk

    def step(self, event):
        """The chunk of a serving.Step, or None where it says nothing."""
        k, text = event.row, self.rows[event.row].more(event.ids, event.finished)
        more = {"canvas": self.frames[k].next(event.ids, event.events)} if self.frames else {}
        return self.chunk(k, text, **more) if text or more else None

    def done(self, event):
        """The last chunk of a row; its whole text goes to self.choices."""
        k, row = event.row, self.rows[event.row]
        text, new, why = row.end(event.ids)
        self.made, self.forwards = self.made + row.made(event.ids), self.forwards + event.forwards
        silent = self.asked.logprobs is None or self.asked.logprobs is False  # 0 asks for those of what was written
        logprobs = None if silent else self.logprobs(k, event, text)
        said = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": self.fronts[k] + text}
        self.choices[k] = {"index": k, **said, "logprobs": logprobs, "finish_reason": why}
        more = {"canvas": self.frames[k].next(event.ids, event.events[self.frames[k].told :])} if self.frames else {}
        return self.chunk(k, new, why, **more)

    def logprobs(self, k, event, text):
        """Of the tokens of the text written, the probability that each had when it was revealed; before them, of what
        is echoed."""
        row, ids, scores = self.rows[k], event.ids, self.scores[k]
        found = {i: s and s[0] for i, s in enumerate(scores)}
        for i, p in chances(ids, 0 if row.infill else len(row.prompt), event.events).items():
            found[i] = math.log(p) if p > 0 else -9999.0
        found, whole = dict(sorted(found.items())), [p or "" for p in replay.pieces(ids, self.tokenizer)]
        ends = [0, *itertools.accumulate(map(len, whole))]
        first = min((i for i in found if i >= len(scores)), default=0)  # token of the text
        added = [hole.start for hole in texts.without_space(self.tokenizer, ids, row.left)]  # spaces of no token
        lead = len(row.left) - len(added) if row.between else 0  # a space that is the first token's, and of the prompt
        if row.stops and ends[max(found, default=-1) + 1] > (end := ends[first] + lead + len(text)):  # one has cut it
            found = {i: x for i, x in found.items() if i < first or ends[i] < end}
        pieces, begin = [whole[i] for i in found], 0 if row.infill and not row.between else min(found, default=0)
        if self.chat:
            of = [
                dict(token=t, logprob=x, bytes=[*t.encode()], top_logprobs=[]) for t, x in zip(pieces, found.values())
            ]
            return {"content": of, "refusal": None}
        added = [] if row.between else added
        offsets = [max(0, ends[i] - ends[begin] - lead + sum(at <= i for at in added)) for i in found]
        top = [x if x is None else {t: x} for t, x in zip(pieces, found.values())]
        for i, score in enumerate(scores):
            if score and score[1] != ids[i]:  # not the likeliest one, which stands beside it
                top[i] = {f"{texts.continuation(self.tokenizer, ids[:i], [score[1]])}": score[2], **top[i]}
        return dict(tokens=pieces, token_logprobs=[*found.values()], top_logprobs=top, text_offset=offsets)

    def usage(self):
        counts = dict(prompt_tokens=self.prompt_tokens, completion_tokens=self.made)
        own = dict(forwards=self.forwards, seconds=round(time.time() - self.began, 3), seed=self.options.seed)
        return counts | {"total_tokens": self.prompt_tokens + self.made} | own

    def whole(self):
        return self.head | {"choices": self.choices, "usage": self.usage()}


def echoed(served, asked, writers):
    """The texts of the prompts of a completion; none of one that the answer holds already."""
    given = asked.prompt if isinstance(asked.prompt, list) else [asked.prompt]
    is_text = given and isinstance(given[0], str)
    found = given if is_text else [served.tokenizer.decode(w.prompt) for w in writers]
    return ["" if w.infill and not w.between else text for text, w in zip(found, writers)]


def scoring(served, writers):
    """The work (serving.Job) of saying how likely each token of the prompts is."""
    if served.algorithm not in ("mdlm", "bd3lm", "ar") or any(w.infill for w in writers):
        raise Refused(f"{served.algorithm} says nothing of each token of a prompt; leave out echo or logprobs", "echo")
    mask_id = served.tokenizer.mask_id
    return lambda model: [echo.each_token(served.algorithm, model, w.prompt, mask_id) for w in writers]
