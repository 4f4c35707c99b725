"""Serve a checkpoint to whatever speaks OpenAI's API, with continuous batching, and a page that shows text appear.

    python serve.py                                      the checkpoint that ships with the repository
    python serve.py --checkpoint=out/quickstart --port=8080
    python serve.py --checkpoint=GSAI-ML/LLaDA-8B-Instruct --preset=fast --max_rows=32
    python serve.py --host=0.0.0.0 --api_key=@key.txt    for other machines, which must know the key

    curl localhost:8000/v1/completions -H "Content-Type: application/json" \\
         -d '{"prompt": "def mean(", "max_tokens": 32, "suffix": "    return total / n"}'

/ is a page for people, /v1/chat/completions, /v1/completions and /v1/models are for programs, /health and /metrics for
who looks after it. Every option of the algorithm's generate is a key here and in a request. docs/serving.md
"""

import asyncio
import hmac
import json
import math
import sys
import time
import uuid
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nanodlm import algorithms, configurator, console, endpoint, opening, serving
from nanodlm import text as texts
from nanodlm.bounds import Line, Place, Seconds, Size, Text, Whole, check
from nanodlm.endpoint import Refused
from nanodlm.files import ROOT

STANDARD = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


@dataclass
class Settings:
    checkpoint: Place = "checkpoints/pydocs_mdlm"  # a directory, a run's out_dir, or a hub id org/name[@revision]
    preset: str = ""  # options from config/presets: llada, dream, illada, mdlm, bd3lm, fast; none; default: the model's
    algorithm: str = ""  # decode with this one: mdlm, bd3lm or ar; default: what the checkpoint was made for
    plain: bool = False  # by the sampler in mdlm.py or bd3lm.py, one request after the other
    verify: bool = False  # as the autoregressive model that it still is, which judges its own drafts (causal bd3lm)
    pickle: bool = False  # also read weights from pytorch_model.bin; no code in it is run
    thoughts: Literal["auto", "think", "empty"] = "auto"  # ask for a thought before an answer, or for none
    name: str = ""  # what clients call the model; default: its directory's name
    host: str = "127.0.0.1"  # where to listen; 0.0.0.0 is for other machines, too, and needs api_key
    port: Whole = 8000
    api_key: Text = ""  # what clients must send as their key
    max_rows: Size = 16  # texts that are decoded at once
    max_tokens: Whole = 0  # tokens of all their canvases; 0 means max_rows full contexts
    max_queue: Size = 64  # requests that wait; more are told to try again
    max_body: Size = 2**20  # bytes of a request
    rate: Whole = 0  # requests a minute of each client, that is key or address; 0 means any number
    timeout: Seconds = 600.0  # for a request, its wait included
    grace: Seconds = 30.0  # for what is under way when the server is told to stop
    cors: tuple[Line, ...] = ()  # origins whose pages may use it, such as https://example.org; none but its own
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto"  # of the weights; auto: bfloat16 on a GPU
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # auto: the GPU where there is one; mps: Apple's

    def __post_init__(self):
        check(self)
        if self.host not in ("127.0.0.1", "localhost", "::1") and not self.api_key:
            raise ValueError(f"host={self.host} is open to other machines: name a key that they must know, --api_key=…")


# ---- 1 · what may be asked -------------------------------------------------------------------------------------------


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None

    def plain(self):
        content = self.content if isinstance(self.content, str) else "".join(p.text for p in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False


class Request(BaseModel):
    """What both kinds of completions have. Further fields are options of the engine, such as steps and threshold."""

    model_config = ConfigDict(extra="allow")
    model: str | None = None
    max_tokens: int | None = Field(None, ge=0)
    temperature: float | None = Field(None, ge=0, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=1024)
    seed: int | None = Field(None, ge=0, le=2**40)
    stop: str | list[str] | None = Field(None, max_length=256)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    canvas: bool = False  # beside a stream's text all of its canvas, step by step: what the page at / draws
    user: str | None = None
    presence_penalty: Literal[0] | None = None  # what diffusion has no use for may be said if it says nothing
    frequency_penalty: Literal[0] | None = None

    def stops(self):
        found = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(found) > 16 or any(len(s) > 256 for s in found):
            raise Refused("stop: at most 16 texts, of at most 256 characters each", "stop")
        return found


class Chat(Request):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: Literal[0] | None = None


class Completion(Request):
    prompt: str | list[str] | list[int] | list[list[int]]
    suffix: str | None = None  # what follows: max_tokens in between are filled in
    holes: bool = False  # [MASK*8] in the prompt is a hole of 8 tokens
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=1)
    best_of: Literal[1] | None = None


def read(kind, raw, served):
    """A request of that kind from its bytes, and {option of the engine: value}."""
    try:
        asked = kind.model_validate_json(raw)
    except ValidationError as e:
        first = e.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"][:2]))
        raise Refused(f"{field}: {first['msg']}" if field else f"the body is no JSON: {first['msg']}", field) from None
    extra = asked.model_extra
    for field in extra.keys() - {*served.options}:
        near = configurator.nearest(field, [*kind.model_fields, *served.options])
        raise Refused(f"unknown field {field!r}" + (f"; did you mean {near}?" if near else ""), field)
    if asked.model not in (None, "", served.name):
        raise Refused(f"there is no model {asked.model!r} here, but {served.name!r}", "model", 404)
    names = dict(max_new_tokens=asked.max_tokens, temperature=asked.temperature, top_p=asked.top_p)
    return asked, {**extra, **names}


def planned(served, asked, said):
    """(a Writer per prompt, the options) of a request."""
    options, told = endpoint.options_of(served, said)
    if isinstance(asked, Chat):
        prompts = [(endpoint.chat_of(served, [m.plain() for m in asked.messages]), [])]
    else:
        given = asked.prompt if asked.prompt and isinstance(asked.prompt[0], str | list) else [asked.prompt]
        given = [asked.prompt] if isinstance(asked.prompt, str) else given
        how = asked.suffix, asked.holes, options.max_new_tokens
        prompts = [endpoint.prompt_of(served, p, *how) for p in given]
    infill = isinstance(asked, Completion) and (asked.suffix is not None or asked.holes)
    options = endpoint.fit(served, options, told, max(len(ids) for ids, _ in prompts), infill)
    options.seed = endpoint.seeded(asked.seed)
    stops = asked.stops() + ([served.tokenizer.stop_text] if isinstance(asked, Chat) else [])
    return [endpoint.Writer(served, ids, () if infill else stops, left) for ids, left in prompts], options


# ---- 2 · what is answered --------------------------------------------------------------------------------------------


class Answer:
    """A request under way, in OpenAI's words."""

    def __init__(self, served, asked, writers, options):
        self.asked, self.options, self.began, self.n = asked, options, time.time(), asked.n or 1
        self.chat, self.tokenizer = isinstance(asked, Chat), served.tokenizer
        self.prompt_tokens = sum(len(w.prompt) - w.prompt.count(w.mask_id) for w in writers)
        self.rows = [w.again() for w in writers for _ in range(self.n)]
        self.frames = [endpoint.Frames(w, len(w.prompt) + options.max_new_tokens) for w in self.rows if asked.canvas]
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
        for k in range(len(self.rows)):
            more = {"canvas": self.frames[k].start()} if self.frames else {}
            if self.chat or more:
                chunk = self.chunk(k, "", **more)
                if self.chat:
                    chunk["choices"][0]["delta"]["role"] = "assistant"
                yield chunk

    def step(self, event):
        """The chunk of a serving.Step, or None where it says nothing."""
        k, row = event.row, self.rows[event.row]
        text = row.more(event.ids, event.finished)
        more = {"canvas": self.frames[k].next(event.ids, event.events)} if self.frames else {}
        return self.chunk(k, text, **more) if text or more else None

    def done(self, event):
        """The last chunk of a row; its whole text goes to self.choices."""
        k, row = event.row, self.rows[event.row]
        text, new, why = row.end(event.ids)
        self.made, self.forwards = self.made + row.made(event.ids), self.forwards + event.forwards
        logprobs = self.logprobs(row, event) if self.asked.logprobs not in (None, False) else None
        said = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": row.front + text}
        self.choices[k] = {"index": k, **said, "logprobs": logprobs, "finish_reason": why}
        more = {"canvas": self.frames[k].next(event.ids, event.events[self.frames[k].told :])} if self.frames else {}
        return self.chunk(k, new, why, **more)

    def logprobs(self, row, event):
        """Of the tokens written, the probability that each had when it was revealed."""
        begin = 0 if row.infill else len(row.prompt)
        found = sorted(endpoint.chances(event.ids, begin, event.events).items())
        pieces = [texts.continuation(self.tokenizer, event.ids[:i], [event.ids[i]]) for i, _ in found]
        logs = [math.log(p) if p > 0 else -9999.0 for _, p in found]
        if self.chat:
            of = [dict(token=t, logprob=x, bytes=[*t.encode()], top_logprobs=[]) for t, x in zip(pieces, logs)]
            return {"content": of, "refusal": None}
        offsets = [sum(map(len, pieces[:i])) for i in range(len(pieces))]
        top = [{t: x} for t, x in zip(pieces, logs)]
        return dict(tokens=pieces, token_logprobs=logs, top_logprobs=top, text_offset=offsets)

    def usage(self):
        counts = dict(prompt_tokens=self.prompt_tokens, completion_tokens=self.made)
        own = dict(forwards=self.forwards, seconds=round(time.time() - self.began, 3), seed=self.options.seed)
        return counts | {"total_tokens": self.prompt_tokens + self.made} | own

    def whole(self):
        return self.head | {"choices": self.choices, "usage": self.usage()}


# ---- 3 · the server --------------------------------------------------------------------------------------------------


def problem(message, status=400, param=None, **headers):
    from fastapi.responses import JSONResponse

    kind = STANDARD.get(status, "server_error" if status >= 500 else "invalid_request_error")
    content = {"error": {"message": console.visible(message), "type": kind, "param": param, "code": status}}
    return JSONResponse(content, status, headers={k.replace("_", "-"): v for k, v in headers.items()})


async def body_of(request, most):
    """The bytes of a request; Refused where they are too many, or no JSON that a foreign page could not send."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise Refused("send JSON, with the header Content-Type: application/json", None, 415)
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        if (size := size + len(part)) > most:
            raise Refused(f"the request has more than {most} bytes", None, 413)
    return b"".join(parts)


async def told(request, job, worker):
    """What the worker tells of a job, until it is over. Who hangs up ends it, and frees its rows."""
    loop, queue = asyncio.get_running_loop(), asyncio.Queue()

    def tell(event):
        try:
            loop.call_soon_threadsafe(queue.put_nowait, event)
        except RuntimeError:  # the server has ended
            job.gone = True

    async def listen():
        while (await request.receive())["type"] != "http.disconnect":
            pass
        queue.put_nowait(None)

    job.tell, left = tell, len(job.prompts)
    worker.submit(job)
    listener = asyncio.create_task(listen())
    try:
        while left and (event := await queue.get()) is not None:
            left -= isinstance(event, serving.Done)
            yield event
            if isinstance(event, serving.Failed):
                return
    finally:
        job.gone = True
        listener.cancel()


def build(s, served, worker):
    """The application: routes, and what goes for all of them."""
    from fastapi import FastAPI, Request
    from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
    from starlette.exceptions import HTTPException
    from starlette.middleware.cors import CORSMiddleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    app = FastAPI(title="nanoDLM", docs_url=None, redoc_url=None, openapi_url=None)
    if s.cors:
        app.add_middleware(CORSMiddleware, allow_origins=list(s.cors), allow_methods=["*"], allow_headers=["*"])
    if not s.api_key:  # a foreign page that has made its name mean this machine is told so
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "[::1]", "::1"])
    page = (ROOT / "nanodlm/serve.html").read_text(encoding="utf-8")
    calls = {}  # of each client within the last minute

    @app.exception_handler(HTTPException)
    async def _(request, error):
        return problem(error.detail, error.status_code)

    @app.exception_handler(Refused)
    async def _(request, error):
        return problem(str(error), error.status, error.param)

    @app.exception_handler(Exception)
    async def _(request, error):
        return problem(f"the server could not answer this ({type(error).__name__})", 500)

    def admit(request):
        """Refused, unless the client may ask now."""
        key = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if s.api_key and not hmac.compare_digest(key, s.api_key.strip().encode()):
            raise Refused("this server needs its key: Authorization: Bearer …", None, 401)
        if not s.rate:
            return
        now, client = time.monotonic(), request.client.host
        for other in [c for c, times in calls.items() if times[-1] < now - 60]:
            del calls[other]
        recent = [t for t in calls.get(client, ()) if t > now - 60]
        if len(recent) >= s.rate:
            raise serving.Full(math.ceil(recent[0] + 60 - now))
        calls[client] = [*recent, now]

    async def answer(kind, request):
        admit(request)
        asked, said = read(kind, await body_of(request, s.max_body), served)
        writers, options = planned(served, asked, said)
        result = Answer(served, asked, writers, options)
        prompts, stops = endpoint.tensors([w.prompt for w in result.rows]), writers[0].stops
        until = texts.until(served.tokenizer, stops) if stops else None
        keys = dict(client=request.client.host, seconds=s.timeout, until=until, watched=bool(asked.stream))
        events = told(request, serving.Job(prompts, options, None, **keys), worker)
        first = await anext(events, None)
        if isinstance(first, serving.Failed):
            return problem(first.message, first.status)
        if not asked.stream:
            async for event in chain(first, events):
                if isinstance(event, serving.Failed):
                    return problem(event.message, event.status)
                result.done(event)
            return JSONResponse(result.whole())

        async def lines():
            for chunk in result.opening():
                yield line(chunk)
            async for event in chain(first, events):
                if isinstance(event, serving.Failed):
                    yield b"data: " + problem(event.message, event.status).body + b"\n\n"
                elif chunk := (result.done if isinstance(event, serving.Done) else result.step)(event):
                    yield line(chunk)
            if asked.stream_options and asked.stream_options.include_usage:
                yield line(result.head | {"choices": [], "usage": result.usage()})
            yield b"data: [DONE]\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    @app.exception_handler(serving.Full)
    async def _(request, error):
        wait = max(1, error.args[0])
        return problem(f"too many requests; try again in {wait} seconds", 429, None, Retry_After=str(wait))

    @app.post("/v1/chat/completions")
    async def _(request: Request):
        return await answer(Chat, request)

    @app.post("/v1/completions")
    async def _(request: Request):
        return await answer(Completion, request)

    @app.get("/v1/models")
    async def _(request: Request):
        admit(request)
        return {"object": "list", "data": [served.card()]}

    @app.get("/")
    async def _():
        own = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"
        return HTMLResponse(page, headers={"Content-Security-Policy": own})

    @app.get("/health")
    async def _():
        return {"status": "ok"} if worker.is_alive() else problem("the network's thread has ended", 503)

    @app.get("/metrics")
    async def _(request: Request):
        admit(request)
        return Response(worker.metrics.text(), media_type="text/plain; version=0.0.4")

    return app


def line(chunk):
    return f"data: {json.dumps(chunk)}\n\n".encode()


async def chain(first, rest):
    if first is not None:
        yield first
    async for event in rest:
        yield event


def main(argv):
    values = configurator.read(argv)
    if "help" in values:
        configurator.fill(values, Settings, *(a.SampleOptions for a in algorithms.named(values)))
    s = configurator.fill({k: v for k, v in values.items() if hasattr(Settings, k)}, Settings)
    import socket

    import uvicorn

    try:
        listening = socket.create_server((s.host, s.port), family=socket.AF_INET6 if ":" in s.host else socket.AF_INET)
    except (OSError, OverflowError) as e:
        sys.exit(f"cannot listen at host={s.host}, port={s.port}: {e}")
    checkpoint, engine, name, _ = opening.network(s)
    try:
        decoding = {k: v for k, v in values.items() if not hasattr(Settings, k)}
        served = endpoint.Served(s.name or checkpoint.path.name, checkpoint, engine, decoding, s.preset)
    except Refused as e:
        sys.exit(str(e))
    limits = serving.Limits(s.max_rows, s.max_tokens or s.max_rows * served.config.seq_len, s.max_queue)
    worker = serving.Worker(checkpoint.model, engine, served.tokenizer.mask_id, served.stop_ids, limits)
    worker.start()

    class Server(uvicorn.Server):
        def handle_exit(self, sig, frame):
            worker.close(s.grace)
            super().handle_exit(sig, frame)

    app = build(s, served, worker)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=math.ceil(s.grace) + 5, lifespan="off")
    where = f"http://{s.host}:{listening.getsockname()[1]}"
    print(f"{where} serves {served.name}: {checkpoint.model.num_params():,} parameters, decoded by {name}", flush=True)
    Server(config).run(sockets=[listening])
    worker.close(0)


if __name__ == "__main__":
    console.run(main, sys.argv[1:])
