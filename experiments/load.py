"""serve.py under load: a real server, and clients at real sockets.

    python experiments/bench.py --only=serve     requests and tokens per second at 1, 8 and 32 clients at once
    python experiments/load.py                   10,000 short requests, 1,000 clients that die: does it stay small?

One at a time is one client that waits for each answer. The rounds of all numbers of clients are interleaved.
"""

import asyncio
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from model import Config, Transformer  # noqa: E402
from nanodlm import checkpoint as ckpt  # noqa: E402
from nanodlm import configurator, console, endpoint, fast_mdlm  # noqa: E402
from nanodlm.bounds import Whole  # noqa: E402

SHIPPED = ROOT / "checkpoints/pydocs_mdlm"
WORDS = "class def return the list of a file object value name if is not string number time error".split()


@dataclass
class Settings:
    requests: Whole = 10000  # short ones, at 8 clients at once
    deaths: Whole = 1000  # clients that hang up at any time


@contextmanager
def serving(checkpoint, *words):
    """(the server's address, its process)."""
    command = [sys.executable, "serve.py", f"--checkpoint={checkpoint}", "--port=0", *words]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield (
                next(line for line in process.stdout if line.startswith("http")).split()[0],
                psutil.Process(process.pid),
            )
        finally:
            process.terminate()


def bodies(n, tokens, seed=0, **more):
    rng = random.Random(seed)
    return [
        {"prompt": " ".join(rng.choices(WORDS, k=rng.randint(2, 8))), "max_tokens": tokens, "seed": i, **more}
        for i in range(n)
    ]


async def load(url, asked, clients):
    """(seconds in all, [seconds of each request], tokens) of so many clients at once, each of which asks again as soon
    as it has its answer."""
    waiting, seconds, tokens = list(asked)[::-1], [], 0
    async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=clients)) as http:

        async def client():
            nonlocal tokens
            while waiting:
                body, start = waiting.pop(), time.perf_counter()
                answer = await http.post(url + "/v1/completions", json=body)
                answer.raise_for_status()
                seconds.append(time.perf_counter() - start)
                tokens += answer.json()["usage"]["completion_tokens"]

        start = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return time.perf_counter() - start, seconds, tokens


def llada_shape(folder):
    """A random network with LLaDA's proportions and vocabulary, on the shipped checkpoint's words."""
    source = ckpt.load(SHIPPED)
    shape = dict(n_layer=4, n_head=4, n_embd=256, mlp="swiglu", mlp_dim=768, qk_norm=False)
    net = Transformer(Config(source.model.config.vocab_size, 512, **shape))
    ckpt.save(Path(folder), net.state_dict(), net.config, source.tokenizer, SHIPPED, "mdlm", {})
    return folder


def measure(rounds=3):
    """A table: checkpoints, at so many clients at once; and what the server costs beside generate()."""
    print("| checkpoint | clients | requests/s | tokens/s | ratio | p50, s | p99, s |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, path, words in (
            ("checkpoints/pydocs_mdlm", SHIPPED, ()),
            ("… by blocks of 16, cache=dual", SHIPPED, ("--block_size=16", "--cache=dual")),
            ("a random LLaDA of 4 layers", llada_shape(folder), ("--block_size=16", "--cache=dual")),
        ):
            one_server(name, path, words, rounds)
    overhead(rounds)


def one_server(name, path, words, rounds):
    with serving(path, "--max_rows=32", *words) as (url, _):
        asyncio.run(load(url, bodies(4, 8), 2))
        found = {clients: [] for clients in (1, 8, 32)}
        for i in range(rounds):
            for clients, parts in found.items():
                parts.append(asyncio.run(load(url, bodies(8 if clients == 1 else 4 * clients, 32, i), clients)))
    alone = [tokens / seconds for seconds, _, tokens in found[1]]
    for clients, parts in found.items():
        speeds = [tokens / seconds for seconds, _, tokens in parts]
        asked = statistics.median(len(each) / seconds for seconds, each, _ in parts)
        ratio = statistics.median(a / b for a, b in zip(speeds, alone))
        times = sorted(x for _, each, _ in parts for x in each)
        p50, p99 = (times[min(len(times) - 1, int(q * len(times)))] for q in (0.5, 0.99))
        speed = statistics.median(speeds)
        row = f"{asked:.1f} | {speed:,.0f} | {ratio:.2f} | {p50:.2f} | {p99:.2f}"
        print(f"| {name} | {clients} | {row} |", flush=True)


def overhead(rounds):
    """8 clients at once beside generate() with a batch of the same 8 prompts, in turn."""
    path, ratios = SHIPPED, []
    checkpoint = ckpt.load(path)
    with serving(path, "--max_rows=8") as (url, _):
        asked = bodies(8, 128, 7)
        served = endpoint.Served("pydocs", "mdlm", checkpoint, fast_mdlm, {})
        prompts = [torch.tensor(endpoint.prompt_of(served, body["prompt"])[0]) for body in asked]
        for i in range(rounds + 1):
            start = time.perf_counter()
            o = fast_mdlm.SampleOptions(max_new_tokens=128)
            fast_mdlm.generate(checkpoint.model, prompts, o, mask_id=checkpoint.tokenizer.mask_id)
            alone = time.perf_counter() - start
            seconds = asyncio.run(load(url, asked, 8))[0]
            ratios += [seconds / alone] if i else []
    print(
        f"8 requests of 128 tokens at once take {statistics.median(ratios):.3f} of generate()'s time for these prompts"
    )


def soak(requests, deaths):
    """The server's memory while it answers short requests, and after clients that hang up at any time."""
    with serving(SHIPPED, "--max_rows=16") as (url, process):
        asyncio.run(load(url, bodies(200, 1), 8))
        for part in range(6):
            if part:
                asyncio.run(load(url, bodies(requests // 5, 1, part), 8))
            memory = process.memory_info().rss / 2**20
            print(f"{part * requests // 5:6,} requests: {memory:,.0f} MB, {process.num_fds()} open files", flush=True)
        rng, left = random.Random(0), list(range(deaths))
        host, port = url.removeprefix("http://").split(":")

        def die():
            while left:
                left.pop()
                body = json.dumps(bodies(1, 60, stream=rng.random() < 0.5)[0])
                head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                text = f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()
                with socket.create_connection((host, int(port))) as s:
                    s.sendall(text[: rng.choice([5, 100, 10**4, 10**4, 10**4])])
                    time.sleep(rng.random() / 10)

        threads = [threading.Thread(target=die) for _ in range(8)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        time.sleep(2)
        lines = httpx.get(url + "/metrics").text.splitlines()
        now = {
            line.split()[0]: line.split()[1] for line in lines if line.startswith(("nanodlm_rows ", "nanodlm_queue "))
        }
        memory = process.memory_info().rss / 2**20
        print(f"after {deaths} deaths: {memory:,.0f} MB, {process.num_fds()} open files; {now}", flush=True)


def main(argv):
    s = configurator.fill(configurator.read(argv), Settings)
    soak(s.requests, s.deaths)


if __name__ == "__main__":
    console.run(main, sys.argv[1:])
