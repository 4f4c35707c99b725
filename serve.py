"""Serve a checkpoint to whatever speaks OpenAI's API, with continuous batching, and a page that shows text appear.

    python serve.py                                      the checkpoint that ships with the repository
    python serve.py --checkpoint=out/quickstart --port=8080
    python serve.py --checkpoint=GSAI-ML/LLaDA-8B-Instruct --preset=fast --max_rows=32
    python serve.py --host=0.0.0.0 --api_key=@key.txt    for other machines, which must know the key

    curl localhost:8000/v1/completions -H "Content-Type: application/json" \\
         -d '{"prompt": "def mean(", "max_tokens": 32, "suffix": "    return total / n"}'

/ is a page for people, /v1/… is OpenAI's API, /health and /metrics are for who looks after it. Every option of the
algorithm's generate is a key here and in a request. docs/serving.md
"""

import math
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import torch
import uvicorn
from fastapi import FastAPI
from fastapi import Request as HTTPRequest
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from nanodlm import algorithms, configurator, console, endpoint, opening, serving, web
from nanodlm import text as texts
from nanodlm.bounds import Line, Place, Seconds, Size, Text, Whole, check
from nanodlm.endpoint import Refused
from nanodlm.files import ROOT


@dataclass
class Settings:
    checkpoint: Place = "checkpoints/pydocs_mdlm"  # a directory, a run's out_dir, or a hub id org/name[@revision]
    preset: str = ""  # options from config/presets, such as llada, dream, fast; none; default: the model's own
    algorithm: str = ""  # decode with this one, such as mdlm, bd3lm, ar; default: what the checkpoint was made for
    plain: bool = False  # by the sampler in the algorithm's own file, one request after the other
    verify: bool = False  # as the autoregressive model that it still is, which judges its own drafts (causal bd3lm)
    pickle: bool = False  # also read weights from pytorch_model.bin; no code in it is run
    thoughts: Literal["auto", "think", "empty"] = "auto"  # ask for a thought before an answer, or for none
    name: str = ""  # what clients call the model; default: its directory's name, or its run's, or the hub's
    host: str = "127.0.0.1"  # where to listen; 0.0.0.0 is for other machines, too, and needs api_key
    port: Whole = 8000  # 0: any that is free
    api_key: Text = ""  # what clients must send as their key
    max_rows: Size = 16  # texts that are decoded at once
    max_tokens: Whole = 0  # tokens of all their canvases; 0 means max_rows full contexts
    max_queue: Size = 64  # requests that wait; more are told to try again
    max_body: Size = 2**20  # bytes of a request
    rate: Whole = 0  # requests a minute of each client (address); 0 means any number
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


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Part(Strict):
    type: Literal["text"]
    text: str


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None
    type: Literal["text"] | None = None

    def plain(self):
        content = self.content if isinstance(self.content, str) else "".join(p.text for p in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class Request(BaseModel):
    """What both kinds of completions have. Further fields are options of the engine, such as steps and threshold."""

    model_config = ConfigDict(extra="allow")
    model: str | None = None
    max_tokens: int | None = Field(None, ge=0)
    temperature: float | None = Field(None, ge=0, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=1024)
    seed: int | None = Field(None, ge=0, le=2**40)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: dict[Literal["include_usage"], bool] | None = None
    canvas: bool = False  # beside a stream's text all of its canvas, step by step: what the page at / draws
    user: str | None = None  # OpenAI's, and a message's name: taken, and used for nothing
    presence_penalty: float | None = Field(None, ge=0, le=0)  # what is not done here may be said if it says nothing
    frequency_penalty: float | None = Field(None, ge=0, le=0)

    def stops(self):
        found = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(found) > 16 or any(len(s) > 256 for s in found):
            raise Refused("stop: at most 16 texts, of at most 256 characters each", "stop")
        return found


class Chat(Request):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=0)  # OpenAI's newer name of max_tokens
    logprobs: bool | None = None
    top_logprobs: Literal[0] | None = None


class Completion(Request):
    prompt: str | list[str] | list[int] | list[list[int]]
    suffix: str | None = None  # what follows: max_tokens in between are filled in
    holes: bool = False  # [MASK*8] in the prompt is a hole of 8 tokens
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=1)
    best_of: Literal[1] | None = None


class Tokenize(Strict):
    prompt: str = ""
    tokens: list[int] = []
    add_special_tokens: bool = False


def parsed(kind, raw):
    try:
        return kind.model_validate_json(raw)
    except ValidationError as e:
        first = e.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"][: 1 if first["loc"][:1] == ("prompt",) else 3]))
        message = "it takes a text, a list of texts, ids, or a list of these" if field == "prompt" else first["msg"]
        raise Refused(f"{field or 'the body is no JSON object'}: {message}", field or None) from None


def read(kind, raw, served):
    """A request of that kind from its bytes, and {option of the engine: value}."""
    asked = parsed(kind, raw)
    extra, length = asked.model_extra, getattr(asked, "max_completion_tokens", None)
    extra = {k: v for k, v in extra.items() if v is not None}
    for field in extra.keys() - {*served.options}:
        near = configurator.nearest(field, [*kind.model_fields, *served.options])
        raise Refused(f"unknown field {field!r}" + (f"; did you mean {near}?" if near else ""), field)
    if asked.model not in (None, "", served.name):
        raise Refused(f"there is no model {asked.model!r} here, but {served.name!r}", "model", 404)
    length = asked.max_tokens if length is None else length
    return asked, {**extra, "max_new_tokens": length, "temperature": asked.temperature, "top_p": asked.top_p}


# ---- 2 · the server --------------------------------------------------------------------------------------------------


def build(s, served, worker):
    """The application: its routes, and what goes for all of them."""
    app, gate = FastAPI(docs_url=None, redoc_url=None, openapi_url=None), web.Gate(s.api_key, s.rate)
    web.add_problems(app)
    if s.cors:
        app.add_middleware(CORSMiddleware, allow_origins=list(s.cors), allow_methods=["*"], allow_headers=["*"])
    if not s.api_key:  # a foreign page whose name was made to mean this machine is told so
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "[::1]"])
    page = (ROOT / "nanodlm/serve.html").read_text(encoding="utf-8")

    async def answer(kind, request):
        gate(request)
        asked, said = read(kind, await web.body_of(request, s.max_body), served)
        writers, options = endpoint.planned(served, asked, said)
        keys = dict(client=request.client.host, seconds=s.timeout)
        echo = kind is Completion and asked.echo
        fronts, scores = endpoint.echoed(served, asked, writers) if echo else (), ()
        if echo and asked.logprobs is not None:
            job = serving.Job([], options, **keys, work=endpoint.scoring(served, writers))
            scores = (await web.first(request, job, worker)).result
        result = endpoint.Answer(served, asked, writers, options, fronts, scores)
        until = texts.until(served.tokenizer, writers[0].stops) if writers[0].stops else None
        prompts = [torch.tensor(w.prompt, dtype=torch.int64) for w in result.rows]
        job = serving.Job(prompts, options, **keys, until=until, watched=bool(asked.stream))
        events = web.told(request, job, worker)
        first = await anext(events)  # or it says here why not
        if asked.stream:
            return web.stream(lines(result, web.chain(first, events)))
        async for event in web.chain(first, events):
            result.done(event)
        return JSONResponse(result.whole())

    async def lines(result, events):
        for chunk in result.opening():
            yield chunk
        async for event in events:
            if chunk := (result.done if isinstance(event, serving.Done) else result.step)(event):
                yield chunk
        if result.asked.stream_options and result.asked.stream_options.get("include_usage"):
            yield result.head | {"choices": [], "usage": result.usage()}

    @app.post("/v1/chat/completions")
    async def _(request: HTTPRequest):
        return await answer(Chat, request)

    @app.post("/v1/completions")
    async def _(request: HTTPRequest):
        return await answer(Completion, request)

    @app.get("/v1/models")
    async def _(request: HTTPRequest):
        gate(request)
        return {"object": "list", "data": [served.card()]}

    @app.get("/tokenizer_info")  # these three are what lm-eval asks of a server, to count tokens as it does
    async def _(request: HTTPRequest):
        gate(request)
        name = served.tokenizer.controls.get(served.tokenizer.eos_id)
        return {"eos_token": name, "bos_token": None, "pad_token": None, "chat_template": None}

    @app.post("/tokenize")
    async def _(request: HTTPRequest):
        gate(request)
        asked = parsed(Tokenize, await web.body_of(request, s.max_body))
        ids = endpoint.prompt_of(served, asked.prompt)[0]
        return {"tokens": ids, "count": len(ids), "max_model_len": served.config.seq_len}

    @app.post("/detokenize")
    async def _(request: HTTPRequest):
        gate(request)
        asked = parsed(Tokenize, await web.body_of(request, s.max_body))
        return {"prompt": served.tokenizer.decode(endpoint.prompt_of(served, asked.tokens)[0])}

    @app.get("/")
    async def _():
        own = "default-src 'none'; connect-src 'self'; img-src data:; script-src 'unsafe-inline'; style-src"
        keys = {"Content-Security-Policy": own + " 'unsafe-inline'", "Cache-Control": "no-cache"}
        return HTMLResponse(page, headers=keys)

    @app.get("/health")
    async def _():
        return {"status": "ok"} if worker.is_alive() else web.problem("the network's thread has ended", 503)

    @app.get("/metrics")
    async def _(request: HTTPRequest):
        gate(request)
        return PlainTextResponse(worker.metrics.text())

    return app


def opened(s, values):
    """(what is served, the worker that has it), by settings and all that was said, {key: (value, where)}."""
    checkpoint, engine, name, _ = opening.network(s)
    decoding = {k: v for k, v in values.items() if not hasattr(Settings, k)}
    try:
        served = endpoint.Served(s.name or checkpoint.name, name, checkpoint, engine, decoding, s.preset)
    except Refused as e:
        sys.exit(str(e))
    limits = serving.Limits(s.max_rows, s.max_tokens or s.max_rows * served.config.seq_len, s.max_queue)
    worker = serving.Worker(checkpoint.model, engine, served.tokenizer.mask_id, served.stop_ids, limits)
    worker.start()
    return served, worker


def main(argv):
    values = configurator.read(argv)
    if "help" in values:
        configurator.fill(values, Settings, *(a.SampleOptions for a in algorithms.named(values)))
    s = configurator.fill({k: v for k, v in values.items() if hasattr(Settings, k)}, Settings)
    try:
        family = socket.AF_INET6 if ":" in s.host else socket.AF_INET
        listening = socket.create_server((s.host, s.port), family=family)
    except (OSError, OverflowError) as e:
        sys.exit(f"cannot listen at host={s.host}, port={s.port}: {e}")
    with ThreadPoolExecutor(1) as apart:  # with a network opened in this one, the worker was a quarter slower
        served, worker = apart.submit(opened, s, values).result()

    class Server(uvicorn.Server):  # at Ctrl-C, or SIGTERM, what is under way is finished, or told why not
        def handle_exit(self, sig, frame):
            worker.close(s.grace)
            self.should_exit, self.force_exit = True, self.should_exit

    keys = dict(log_level="warning", lifespan="off", timeout_graceful_shutdown=math.ceil(s.grace) + 5)
    where = f"http://{f'[{s.host}]' if ':' in s.host else s.host}:{listening.getsockname()[1]}"
    size = served.checkpoint.model.num_params()
    print(f"{where} serves {served.name}: {size:,} parameters, decoded by {served.algorithm}", flush=True)
    Server(uvicorn.Config(build(s, served, worker), **keys)).run(sockets=[listening])
    worker.close(0)


if __name__ == "__main__":
    console.run(main, sys.argv[1:])
