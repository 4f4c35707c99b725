"""HTTP as serve.py needs it, on top of FastAPI: errors in OpenAI's form, who may ask, and a client that hangs up."""

import asyncio
import hmac
import json
import math
import time

from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from nanodlm import serving
from nanodlm.console import visible
from nanodlm.endpoint import Refused

PATIENCE = 60  # seconds that a client may take to send a request

KINDS = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def problem(message, status=400, param=None, headers=None):
    kind = KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    said = {"message": visible(message), "type": kind, "param": param, "code": status}
    return JSONResponse({"error": said}, status, headers)


def add_problems(app):
    """Whatever goes wrong is one sentence: no traceback, no path."""

    @app.exception_handler(HTTPException)
    async def _(request, e):
        return problem(e.detail, e.status_code)

    @app.exception_handler(Refused)
    async def _(request, e):
        return problem(str(e), e.status, e.param)

    @app.exception_handler(serving.Full)
    async def _(request, e):
        wait = str(max(1, e.args[0]))
        return problem(f"too many requests; try again in {wait} seconds", 429, None, {"Retry-After": wait})

    @app.exception_handler(serving.Gone)
    async def _(request, e):
        return problem(str(e), 503)

    @app.exception_handler(ValueError)
    async def _(request, e):
        return problem(str(e), 400)

    @app.exception_handler(Exception)
    async def _(request, e):
        return problem(f"the server could not answer this ({type(e).__name__})", 500)


class Gate:
    """Who may ask: whoever knows the key, if there is one, and so often a minute, if that is limited."""

    def __init__(self, key="", rate=0):
        self.key, self.rate, self.calls = key.strip().encode(), rate, {}  # of each client within the last minute

    def __call__(self, request):
        said = request.headers.get("authorization", "").encode("latin-1").removeprefix(b"Bearer ").strip()  # its bytes
        if self.key and not hmac.compare_digest(said, self.key):
            raise Refused("this server needs its key: Authorization: Bearer …", None, 401)
        if not self.rate:
            return
        now, client = time.monotonic(), request.client.host
        self.calls = {c: recent for c, times in self.calls.items() if (recent := [t for t in times if t > now - 60])}
        times = self.calls.setdefault(client, [])
        if len(times) >= self.rate:
            raise serving.Full(math.ceil(times[0] + 60 - now))
        times.append(now)


async def body_of(request, most):
    """The bytes of a request; Refused where they are too many, or of a kind that any page in a browser may send."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused("send JSON, with the header Content-Type: application/json", None, 415)

    async def read():
        parts, size = [], 0
        async for part in request.stream():
            parts.append(part)
            if (size := size + len(part)) > most:
                raise Refused(f"the request has more than {most:,} bytes", None, 413)
        return b"".join(parts)

    try:
        return await asyncio.wait_for(read(), PATIENCE)
    except asyncio.TimeoutError:
        raise Refused(f"the request was not sent within {PATIENCE} seconds", None, 408) from None


async def told(request, job, worker):
    """The Steps and Dones of a job, until all is done; Refused where it fails. Who hangs up, or stops listening, frees
    its rows."""
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

    job.tell, left = tell, max(1, len(job.prompts))
    worker.submit(job)
    listener = asyncio.create_task(listen())
    try:
        while left:
            if (event := await queue.get()) is None:
                raise Refused("the client hung up", None, 499)
            if isinstance(event, serving.Failed):
                raise Refused(event.message, None, event.status)
            left -= isinstance(event, serving.Done)
            yield event
    finally:
        job.gone = True
        listener.cancel()


async def first(request, job, worker):
    async for event in told(request, job, worker):
        return event


def stream(chunks):
    """Server-sent events, as OpenAI has them."""

    async def lines():
        try:
            async for chunk in chunks:
                yield f"data: {json.dumps(chunk)}\n\n"
        except Refused as e:
            yield f"data: {problem(str(e), e.status).body.decode()}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def chain(first, rest):
    """An iterator whose first item was taken already."""
    yield first
    async for item in rest:
        yield item
