"""One thread owns the network: requests join a running batch before any of its steps, and leave when they are done.

Rows whose options are of one shape (decode.SHAPE) share every forward, and each is what it would have been alone. What
an algorithm without such a loop decodes (ar, udlm, drafts that are verified, one of your own) is decoded request by
request, in between.

Who asks gives a Job and is told of it by calls of job.tell, from that thread: Step, Done (of each row) and Failed."""

import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import prometheus_client as prometheus
import torch

from nanodlm.decode import SHAPE
from nanodlm.guard import still


class Step(NamedTuple):
    row: int
    ids: list  # of the canvas, masks where nothing stands yet
    finished: int  # so many of them will stay as they are
    events: list  # [(step, position, token, its probability)] since the last one


class Done(NamedTuple):
    row: int
    ids: list  # the prompt's, and what was written
    forwards: int
    events: list  # of all steps
    result: object = None  # of job.work


class Failed(NamedTuple):
    message: str
    status: int  # of HTTP


class Full(Exception):
    """No place in the queue; try again after so many seconds."""


class Gone(Exception):
    """Nobody waits for this any more."""


@dataclass(eq=False)
class Job:
    """A request. Its rows share options and seed, and are told apart by their numbers: 0, 1, 2, …"""

    prompts: list  # int64 (T,) each
    options: object  # the algorithm's SampleOptions
    tell: Callable | None = None  # takes a Step, Done or Failed
    client: str = ""  # in the queue, clients take turns
    seconds: float = math.inf  # it may take, from when it came
    until: Callable | None = None  # generate's
    watched: bool = False  # whether it is told of steps
    work: Callable | None = None  # in place of decoding: called with the model, once
    gone: bool = False  # set by whoever does not wait any more
    came: float = field(default_factory=time.monotonic)
    begun: float = 0.0
    seen: list = field(default_factory=list)  # events of each row that were told
    left: int = 0  # rows that are not done

    @property
    def tokens(self):
        """Of its longest canvas."""
        return max(map(len, self.prompts), default=0) + getattr(self.options, "max_new_tokens", 0)

    @property
    def late(self):
        return time.monotonic() - self.came > self.seconds


@dataclass
class Limits:
    rows: int = 16  # in all batches
    tokens: int = 2**20  # of all canvases, the padding of shorter rows included
    queue: int = 64  # requests that wait


class Metrics:
    """What Prometheus is told."""

    def __init__(self):
        self.registry = prometheus.CollectorRegistry()
        keys = dict(registry=self.registry, namespace="nanodlm")
        self.requests = prometheus.Counter("requests", "Requests, by how they ended", ["outcome"], **keys)
        self.tokens = prometheus.Counter("tokens", "Tokens written", **keys)
        self.forwards = prometheus.Counter("forwards", "Forwards, summed over rows", **keys)
        self.queue = prometheus.Gauge("queue", "Requests that wait", **keys)
        self.rows = prometheus.Gauge("rows", "Rows being decoded", **keys)
        sizes = [2**k for k in range(9)]
        self.batch = prometheus.Histogram("batch_rows", "Rows that share a step", buckets=sizes, **keys)
        self.step = prometheus.Histogram("step_seconds", "Seconds of a step", **keys)
        self.seconds = prometheus.Histogram("request_seconds", "Seconds of a request, its wait included", **keys)

    def text(self):
        return prometheus.generate_latest(self.registry)


class Worker(threading.Thread):
    """Owns the model. submit() and close() are for other threads; the rest is its own."""

    def __init__(self, model, engine, mask_id, stop_ids=None, limits=None):
        super().__init__(daemon=True)
        self.model, self.engine, self.mask_id, self.stop_ids = model, engine, mask_id, stop_ids
        self.limits, self.metrics = limits or Limits(), Metrics()
        self.joins = hasattr(engine, "open_batch")
        self.wake, self.waiting, self.count = threading.Condition(), {}, 0  # the queue: {client: its jobs}
        self.loops, self.running = {}, set()  # {shape: decode.Loop}
        self.closing, self.usual = math.inf, 1.0  # when to give up what is left; the usual seconds of a job

    # ---- for others ----

    def submit(self, job):
        """Put a job into the queue; Full if there is no place in it, Gone if the server is about to stop, ValueError if
        it could never be begun."""
        rows, tokens = len(job.prompts), len(job.prompts) * job.tokens
        if rows > self.limits.rows or tokens > self.limits.tokens:
            raise ValueError(
                f"{rows} texts of up to {job.tokens} tokens are more than this server decodes at once: "
                f"{self.limits.rows} texts, {self.limits.tokens} tokens"
            )
        with self.wake:
            if self.closing < math.inf or not self.is_alive():
                raise Gone("the server is about to stop")
            if self.count >= self.limits.queue:
                raise Full(min(600, math.ceil(self.usual * self.count / self.limits.rows)))
            self.waiting.setdefault(job.client, deque()).append(job)
            self.count += 1
            self.metrics.queue.set(self.count)
            self.wake.notify()

    def close(self, seconds):
        """Take in nothing more, finish what came within so many seconds, tell the others why it was not finished."""
        with self.wake:
            self.closing = min(self.closing, time.monotonic() + seconds)
            self.wake.notify()

    # ---- the thread ----

    def run(self):
        with still(self.model):
            while True:
                with self.wake:
                    self.wake.wait_for(lambda: self.count or self.running or self.closing < math.inf)
                    if not self.count and not self.running:
                        return
                try:
                    self.drop()
                    self.admit()
                    for shape in [*self.loops]:
                        self.step(shape)
                except Exception as e:  # a mistake of ours: whose job it is nobody knows, but all of them are told
                    self.loops.clear()
                    for job in [*self.running]:
                        self.fail(job, *told(e))

    def drop(self):
        """Let go of who hung up, or waited too long, or cannot be finished any more."""
        over = time.monotonic() > self.closing
        with self.wake:
            waiting = [job for jobs in self.waiting.values() for job in jobs]
        for job in [*self.running, *waiting]:
            if job.gone:
                self.end(job, "gone")
            elif job.late:
                self.fail(job, f"not finished within {job.seconds:g} seconds", 504, "late")
            elif over:
                self.fail(job, "the server stops before this could be finished", 503, "stopped")

    def admit(self):
        """Begin what waits, a job of each client in turn, as long as there is room for the next one."""
        while (job := self.next()) is not None:
            self.running.add(job)
            job.begun, job.seen, job.left = time.monotonic(), [0] * len(job.prompts), len(job.prompts)
            try:
                if job.work:
                    job.tell(Done(0, [], 0, [], job.work(self.model)))
                    self.end(job, "done")
                elif self.joins:
                    self.enter(job)
                else:
                    self.alone(job)
            except Gone:
                pass  # the next drop() says why
            except Exception as e:
                self.fail(job, *told(e))

    def next(self):
        """The job to begin now, taken from the queue; None if there is none, or no room for it."""
        with self.wake:
            client = next(iter(self.waiting), None)
            if client is None or not self.fits(job := self.waiting[client][0]):
                return None
            self.take(job)
            if client in self.waiting:
                self.waiting[client] = self.waiting.pop(client)  # behind the others
            return job

    def take(self, job):
        """Out of the queue."""
        jobs = self.waiting.get(job.client, ())
        if job in jobs:
            jobs.remove(job)
            self.count -= 1
            self.metrics.queue.set(self.count)
        if not jobs:
            self.waiting.pop(job.client, None)

    def fits(self, job):
        if not self.running:
            return True
        held, rows, mine = 0, len(job.prompts), shape_of(job.options)
        for shape, loop in self.loops.items():
            live, width = int(loop.rows.alive.sum()), loop.rows.x.shape[1]
            rows += live
            held += (live + len(job.prompts)) * max(width, job.tokens) if shape == mine else live * width
        held += 0 if mine in self.loops else len(job.prompts) * job.tokens
        return rows <= self.limits.rows and held <= self.limits.tokens

    def enter(self, job):
        shape, keys = shape_of(job.options), dict(mask_id=self.mask_id)
        rows = self.engine.rows_of_prompts(self.model, job.prompts, job.options, **keys, until=job.until)
        rows.name = [(job, k) for k in range(len(job.prompts))]
        if shape not in self.loops:
            self.loops[shape] = self.engine.open_batch(
                self.model, job.options, **keys, eos_id=self.stop_ids, trace=True
            )
        loop = self.loops[shape]
        loop.enter(rows)
        for i, name in enumerate(loop.rows.name):
            if name[0] is job and not loop.rows.alive[i]:  # nothing is to be written
                self.done(loop, i)
        self.metrics.rows.set(sum(int(b.rows.alive.sum()) for b in self.loops.values()))

    def step(self, shape):
        loop, start = self.loops[shape], time.monotonic()
        live = loop.rows.alive.nonzero()[:, 0].tolist()
        if not live:
            del self.loops[shape]
            return
        before = loop.rows.forwards.clone()
        try:
            loop.step()
        except Exception as e:  # no memory, or numbers that are none: of whose rows, nobody knows
            del self.loops[shape]
            for job in {loop.rows.name[i][0] for i in live}:
                self.fail(job, told(e)[0], max(500, told(e)[1]))
            return
        self.metrics.step.observe(time.monotonic() - start)
        self.metrics.batch.observe(len(live))
        self.metrics.forwards.inc(int((loop.rows.forwards - before).sum()))
        for i in live:
            if not loop.rows.alive[i]:
                self.done(loop, i)
            elif (job := loop.rows.name[i][0]).watched:
                self.tell_step(job, loop.rows.name[i][1], loop.rows.x[i], loop.finished(i), loop.rows.events[i])

    def tell_step(self, job, k, x, finished, events):
        n = len(job.prompts[k]) + job.options.max_new_tokens
        new = [e for e in events[job.seen[k] :] if e[1] < n]
        job.seen[k] = len(events)
        job.tell(Step(k, x[:n].tolist(), min(finished, n), new))

    def done(self, loop, i):
        out, (job, k) = loop.output(torch.tensor([i])), loop.rows.name[i]
        self.finish(job, k, out.tokens[0], out.num_forwards[0], out.trace[0])

    def finish(self, job, k, tokens, forwards, events):
        n = len(job.prompts[k]) + job.options.max_new_tokens
        ids = tokens[:n].tolist()
        made = len(ids) - int((job.prompts[k] != self.mask_id).sum()) if self.mask_id is not None else len(ids)
        self.metrics.tokens.inc(max(0, made))
        job.left -= 1
        job.tell(Done(k, ids, forwards, [e for e in events if e[1] < n]))
        if not job.left:
            self.end(job, "done")

    def alone(self, job):
        """Decode a job by its algorithm's generate, which has a batch to itself."""
        changes = not self.engine.CAUSAL or hasattr(job.options, "draft")  # what stands may be written anew

        def watch(canvases):
            if job.gone or job.late or time.monotonic() > self.closing:
                raise Gone
            for k, x in enumerate(canvases if job.watched else ()):
                unknown = (x == (-1 if self.mask_id is None else self.mask_id)).nonzero()[:, 0]
                finished = len(x) if not len(unknown) else int(unknown[0])
                self.tell_step(job, k, x, len(job.prompts[k]) if changes else finished, [])

        keys = dict(mask_id=self.mask_id, eos_id=self.stop_ids, until=job.until, trace=True, watch=watch)
        out = self.engine.generate(self.model, job.prompts, job.options, **keys)
        self.metrics.forwards.inc(sum(out.num_forwards))
        for k, (tokens, forwards) in enumerate(zip(out.tokens, out.num_forwards)):
            events = out.trace[k] if out.trace else []
            moved = any(len(e) > 4 for e in events)  # by insertions and deletions: such places say nothing in the end
            self.finish(job, k, tokens, forwards, [] if moved else events)

    def fail(self, job, message, status, outcome="failed"):
        job.tell(Failed(message, status))
        self.end(job, outcome)

    def end(self, job, outcome):
        """Forget a job, and take its rows out of their batch."""
        with self.wake:
            self.take(job)
        self.running.discard(job)
        for loop in self.loops.values():
            for i, (whose, _) in enumerate(loop.rows.name):
                if whose is job:
                    loop.rows.alive[i] = False
        seconds = time.monotonic() - job.came
        self.usual += 0.1 * (time.monotonic() - (job.begun or time.monotonic()) - self.usual)
        self.metrics.requests.labels(outcome).inc()
        self.metrics.seconds.observe(seconds)
        self.metrics.rows.set(sum(int(b.rows.alive.sum()) for b in self.loops.values()))


def shape_of(options):
    """What rows must have in common that share a forward."""
    return tuple(getattr(options, name, None) for name in SHAPE)


def told(error):
    """(what a client is told of an error, HTTP's status)."""
    if isinstance(error, ValueError):
        return str(error), 400
    if isinstance(error, torch.OutOfMemoryError):
        return "there is not enough memory for this batch; try again, or ask for fewer tokens", 503
    traceback.print_exception(error)  # for whoever runs the server
    return f"the server could not decode this ({type(error).__name__})", 500
