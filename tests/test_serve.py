"""serve.py through real sockets: what OpenAI's own client and lm-eval get, whoever else asks, and whatever is sent.

The server runs in a thread of its own here, but where it is told to stop by a signal."""

import concurrent.futures
import contextlib
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import httpx
import openai
import pytest
import test_chat
import torch
import uvicorn

import editflow
import serve
from model import Config, Transformer
from nanodlm import checkpoint as ckpt
from nanodlm import endpoint, serving
from nanodlm import text as texts
from nanodlm.files import ROOT

torch.set_num_threads(1)
made = test_chat.made
WORDS = "To be or not to be the question whether nobler in the mind suffer slings and arrows of fortune".split()


@contextlib.contextmanager
def running(path, **settings):
    """A server of a checkpoint at a free port."""
    s = serve.Settings(checkpoint=str(path), device="cpu", port=0, **settings)
    served, worker = serve.opened(s, {})
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(serve.build(s, served, worker), log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    keys = {"Authorization": f"Bearer {s.api_key}".encode()} if s.api_key else {}
    try:
        with httpx.Client(base_url=url, headers=keys, timeout=60) as http:
            yield SimpleNamespace(url=url, http=http, served=served, worker=worker, settings=s)
    finally:
        server.should_exit = True
        worker.close(0)
        thread.join()
        worker.join()


@pytest.fixture(scope="module")
def chatty(made):
    with running(made / "chatty", preset="none", max_rows=8) as server:
        yield server


@pytest.fixture(scope="module")
def client(chatty):
    return openai.OpenAI(base_url=chatty.url + "/v1", api_key="none", max_retries=0)


def alone(server, prompt, n=1, stops=(), new=16, **options):
    """[(text, why)] of a prompt's ids, by the algorithm's own generate."""
    served = server.served
    o = endpoint.options_of(served, options | {"max_new_tokens": new})[0]
    until = texts.until(served.tokenizer, stops) if stops else None
    keys = dict(mask_id=served.tokenizer.mask_id, eos_id=served.stop_ids, until=until)
    out = served.engine.generate(served.checkpoint.model, [torch.tensor(prompt)] * n, o, **keys)
    return [endpoint.Writer(served, prompt, stops).end(t.tolist())[::2] for t in out.tokens]


def ids_of(server, text):
    return endpoint.prompt_of(server.served, text)[0]


def metric(server, name):
    found = [line for line in server.http.get("/metrics").text.splitlines() if line.startswith(f"nanodlm_{name} ")]
    return float(found[0].split()[1])


def idle(server, seconds=20):
    """Whether the server comes to hold nothing within so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and (metric(server, "rows") or metric(server, "queue")):
        time.sleep(0.02)
    return metric(server, "rows") == metric(server, "queue") == 0


# ---- what clients get ------------------------------------------------------------------------------------------------


def test_openais_own_client_talks_to_it(chatty, client):
    asked = dict(model="chatty", messages=[{"role": "user", "content": "whether tis nobler"}], max_tokens=24, seed=3)
    ids = endpoint.chat_of(chatty.served, asked["messages"])
    expected = alone(chatty, ids, 2, new=24, seed=3)
    found = client.chat.completions.create(**asked, n=2, logprobs=True)
    assert [(c.message.content, c.finish_reason) for c in found.choices] == expected
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (len(ids), found.usage.forwards)
    for choice in found.choices:
        assert "".join(t.token for t in choice.logprobs.content) == choice.message.content
        assert all(t.logprob <= 0 for t in choice.logprobs.content)

    parts, usage, whys = {0: "", 1: ""}, None, {}
    for chunk in client.chat.completions.create(**asked, n=2, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            parts[choice.index] += choice.delta.content
            whys[choice.index] = choice.finish_reason or whys.get(choice.index)
        usage = chunk.usage or usage
    assert [(parts[i], whys[i]) for i in (0, 1)] == expected and usage.total_tokens == found.usage.total_tokens
    assert client.models.list().data[0].id == "chatty"

    keys = dict(model="chatty", max_tokens=8, seed=5, temperature=0.5, extra_body={"order": "margin", "steps": 4})
    said = dict(seed=5, temperature=0.5, order="margin", steps=4)
    found = client.completions.create(prompt=["To be", "the mind"], **keys)
    assert found.choices[0].text == alone(chatty, ids_of(chatty, "To be"), new=8, **said)[0][0]
    assert found.usage.forwards == 8, "two prompts in four steps"
    filled = client.completions.create(prompt="To be, or", suffix=" to be", **keys).choices[0]
    assert filled.finish_reason == "stop" and filled.text
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt' here, but 'chatty'"):
        client.completions.create(model="gpt", prompt="To be")


def test_an_infilling_is_sample_pys_and_the_canvas_ends_as_the_text(chatty):
    body = dict(prompt="whether [MASK*4] in the [MASK]", holes=True, seed=2, stream=True, canvas=True)
    with chatty.http.stream("POST", "/v1/completions", json=body) as answer:
        chunks = [json.loads(x[6:]) for x in answer.iter_lines() if x.startswith("data: {")]
    canvas = list(chunks[0]["canvas"]["start"])
    for chunk in chunks[1:]:
        for i, piece, p in chunk["canvas"]["changes"]:
            canvas[i] = piece
            assert p is None or 0 <= p <= 1
    text = chunks[-1]["choices"][0]["text"]  # which may have spaces that no token holds
    assert chunks[0]["canvas"]["start"].count(None) == 5 and "".join(canvas).replace(" ", "") == text.replace(" ", "")
    assert text.startswith("whether ") and " in the" in text


def requests(rng, n):
    for _ in range(n):
        rules = [dict(), dict(order="margin", steps=5), dict(threshold=0.02), dict(temperature=0), dict(block_size=8)]
        rules += [dict(quota="ancestral", steps=7, remask=0.3), dict(block_size=8, cache="prefix"), dict(cfg_scale=0.5)]
        prompt = " ".join(rng.choices(WORDS, k=rng.randint(1, 12)))
        stops = rng.choice([[], [], ["e"], ["the", " o"]])
        yield prompt, stops, dict(new=rng.randint(1, 40), seed=rng.randint(0, 99), **rng.choice(rules))


def ask(server, prompt, stops, options, stream, n=1):
    body = {"prompt": prompt, "stop": stops, "max_tokens": options["new"], "n": n, "stream": stream}
    body |= {k: v for k, v in options.items() if k != "new"}
    if not stream:
        found = server.http.post("/v1/completions", json=body).json()["choices"]
        return [(c["text"], c["finish_reason"]) for c in found]
    text, why = "", None
    with server.http.stream("POST", "/v1/completions", json=body) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                choice = json.loads(line[6:])["choices"][0]
                text, why = text + choice["text"], choice["finish_reason"] or why
    return [(text, why)]


def test_each_of_many_at_once_gets_what_it_would_alone(chatty):
    """Of any options, streamed or not, more than there are rows for; and rows were shared."""
    rng = random.Random(0)
    asked = list(requests(rng, 40))
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        found = [pool.submit(ask, chatty, *a, stream=rng.random() < 0.5) for a in asked]
        found = [f.result() for f in found]
    for (prompt, stops, options), answer in zip(asked, found):
        assert answer == alone(chatty, ids_of(chatty, prompt), 1, stops, **options), (prompt, stops, options)
    sums = [metric(chatty, f"batch_rows_{what}") for what in ("sum", "count")]
    assert sums[0] > sums[1] and idle(chatty)


def test_several_prompts_get_what_each_gets_alone(chatty):
    """Continued, or filled in, with whatever is asked beside it."""
    rng, said = random.Random(0), dict(max_tokens=4, temperature=0)

    def texts_of(prompt, more):
        answer = chatty.http.post("/v1/completions", json={"prompt": prompt, **said, **more}).json()
        return [c["text"] for c in answer["choices"]]

    for more in [{}, {"suffix": " mind"}, {"holes": True}, {"echo": True, "suffix": "?"}, {"stop": "e", "suffix": "."}]:
        ends = " [MASK*2] be" if "holes" in more else ""
        prompts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 6))) + ends for _ in range(3)]
        assert texts_of(prompts, more) == [texts_of(p, more)[0] for p in prompts], more


@pytest.mark.parametrize("seed", range(4))
def test_the_pieces_of_logprobs_are_the_text_at_the_places_told(chatty, seed):
    """Also where a character has several tokens, or the answer is more than what was written."""
    said = dict(seed=seed, temperature=1, logprobs=0)
    for body in [{"prompt": "dé 中😀"}, {"prompt": "dé", "echo": True}, {"prompt": "à la", "suffix": "é"}]:
        choice = chatty.http.post("/v1/completions", json=said | body | {"max_tokens": 12}).json()["choices"][0]
        text, pieces = choice["text"], choice["logprobs"]["tokens"]
        assert "".join(pieces).rstrip("\ufffd") == text.rstrip("\ufffd"), "half a character is the suffix's"
        assert all(text.startswith(t, at) for t, at in zip(pieces, choice["logprobs"]["text_offset"])), body
        if len(text) < 6 or "\ufffd" in text[:6] or "echo" in body:
            continue
        more = {"max_tokens": 12, "stop": text[3:5]}  # what stands behind it was not said
        cut = chatty.http.post("/v1/completions", json=said | body | more).json()["choices"][0]
        tokens, wanted = cut["logprobs"]["tokens"], text[: text.find(text[3:5])]
        assert cut["text"] == wanted and "".join(tokens).startswith(wanted)
        assert not tokens or len("".join(tokens[:-1])) < len(wanted)
    body = said | {"prompt": "é[MASK*3]中[MASK*2]", "holes": True}
    choice = chatty.http.post("/v1/completions", json=body).json()["choices"][0]
    places = zip(choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"])
    assert all(choice["text"].startswith(t, at) for t, at in places) and choice["text"].startswith("é")
    body |= {"prompt": "to be [MASK*2], or [MASK] not [MASK*3] be"}  # where a space is a token's, or of none
    choice = chatty.http.post("/v1/completions", json=body).json()["choices"][0]
    places = zip(choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"])
    assert all(choice["text"].startswith(t, at) for t, at in places), choice
    for stop in None, "e":
        body = said | {"prompt": "whether tis ", "suffix": " mind", "max_tokens": 5, "stop": stop}
        choice = chatty.http.post("/v1/completions", json=body).json()["choices"][0]
        whole, places = " " + choice["text"], choice["logprobs"]["text_offset"]  # the prompt's space may be its token's
        for t, at in zip(choice["logprobs"]["tokens"], places):
            assert whole[1:].startswith(t, at) or at == 0 and whole.startswith(t) or stop, choice
        assert stop or len(places) == 5 and (places[-1] < len(choice["text"]) or "" in choice["logprobs"]["tokens"])
    body = said | {"messages": [{"role": "user", "content": "é"}], "max_tokens": 24, "logprobs": True}
    choice = chatty.http.post("/v1/chat/completions", json=body).json()["choices"][0]
    pieces = b"".join(bytes(t["bytes"]) for t in choice["logprobs"]["content"])
    assert pieces.decode() == choice["message"]["content"]


def test_an_infilling_is_cut_and_echoed_as_what_it_is(chatty):
    """A hole's text ends at a stop, and behind an echo; where the answer is the whole text, it is said once."""
    post = lambda **body: chatty.http.post("/v1/completions", json=body | {"seed": 1}).json()  # noqa: E731
    between = dict(prompt="whether tis", suffix=" mind", max_tokens=12)
    (plain,) = post(**between)["choices"]
    for stop in plain["text"][3], plain["text"][5:7]:
        (cut,) = post(**between, stop=stop, echo=True)["choices"]
        assert cut["text"] == "whether tis" + plain["text"].partition(stop)[0] and stop in plain["text"]
    holes = dict(prompt="whether [MASK*2] in", holes=True)
    assert post(**holes, echo=True)["choices"] == post(**holes)["choices"]
    assert "stop does nothing with holes" in post(**holes, stop="a")["error"]["message"]


@pytest.mark.parametrize("which, settings", [("causal", {}), ("chatty", dict(plain=True, preset="none"))])
def test_what_has_no_such_loop_is_served_request_by_request(made, which, settings):
    with running(made / which, **settings) as server:
        ids = ids_of(server, "To be")
        options = dict(new=12, seed=1)
        assert not server.worker.joins
        assert [ask(server, "To be", [], options, stream) for stream in (False, True)] == [
            alone(server, ids, **options)
        ] * 2


@pytest.mark.parametrize("source", ["nothing", "typos"])
def test_a_text_that_is_edited_is_the_answer(made, tmp_path, source):
    """Of edit flows what is written behind a prompt, or, where that may change, all of it; its canvas, too."""
    shape = dict(n_layer=1, n_head=2, n_embd=32, source=source)
    tokenizer = ckpt.load(made / "plain").tokenizer
    torch.manual_seed(0)
    net = Transformer(Config(editflow.rows(tokenizer.vocab_size), 64, **shape))
    ckpt.save(tmp_path / "net", net.state_dict(), net.config, tokenizer, made / "plain", "editflow", {})
    with running(tmp_path / "net") as server:
        ids = torch.tensor(ids_of(server, "To be"))
        keys = dict(mask_id=tokenizer.mask_id, eos_id=server.served.stop_ids)
        out = editflow.generate(net, [ids], editflow.SampleOptions(12, steps=8, seed=1), **keys).tokens[0].tolist()
        body = {"prompt": "To be", "max_tokens": 12, "steps": 8, "seed": 1}
        text = server.http.post("/v1/completions", json=body).json()["choices"][0]["text"]
        begin = 0 if source == "typos" else len(ids)
        assert text == texts.answer(tokenizer, out[:begin], out[begin:])[0]
        with server.http.stream("POST", "/v1/completions", json=body | {"stream": True, "canvas": True}) as answer:
            chunks = [json.loads(x[6:]) for x in answer.iter_lines() if x.startswith("data: {")]
        assert chunks[-1]["canvas"]["length"] == len(out) - begin and chunks[-1]["choices"][0]["text"] == text


@pytest.mark.parametrize("tokens", range(1, 4))
def test_what_was_said_is_never_taken_back(chatty, tokens):
    """Whatever is written: the pieces that were said as it grew are the text, and no stop is ever said."""
    rng, served = random.Random(tokens), chatty.served
    for _ in range(30):
        new = [rng.randrange(served.tokenizer.vocab_size) for _ in range(rng.randint(0, 30))]
        new = [i for i in new if i not in (served.tokenizer.mask_id, *served.stop_ids)]
        whole = served.tokenizer.decode(new)
        stops = [whole[i : i + tokens] for i in rng.sample(range(len(whole) + 1), min(2, len(whole)))]
        writer, said = endpoint.Writer(served, ids_of(chatty, "To"), stops), ""
        canvas = writer.prompt + new
        for finished in sorted(rng.choices(range(len(canvas) + 1), k=8)):
            said += writer.more(canvas, finished)
        text, last, why = writer.end(canvas)
        assert said + last == text and not any(s and s in text[1:] for s in stops) and why in ("stop", "length")


# ---- lm-eval ---------------------------------------------------------------------------------------------------------


def test_lm_eval_gets_the_scores_that_eval_py_gives(chatty):
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

    keys = dict(model="chatty", num_concurrent=1, max_retries=1, batch_size=2, max_length=128)
    lm = LocalCompletionsAPI(base_url=f"{chatty.url}/v1/completions", **keys)
    assert lm.tokenizer_backend == "remote"
    pairs = [("To be, or not", " to be"), ("whether 'tis nobler in", " the mind"), ("The user asks", " the assistant;")]
    made = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    found = lm.loglikelihood(made, disable_tqdm=True)
    tokenizer, engine = chatty.served.tokenizer, chatty.served.engine
    o = engine.LikelihoodOptions(method="left_to_right")
    for (context, answer), (logp, _) in zip(pairs, found):
        n, whole = len(tokenizer.encode(context)), torch.tensor(tokenizer.encode(context + answer))
        keys = dict(mask_id=tokenizer.mask_id)
        expected = engine.log_likelihood(chatty.served.checkpoint.model, [whole[:n]], [whole[n:]], o, **keys)
        assert abs(logp - expected.item()) < 1e-4

    gen = {"until": ["the"], "max_gen_toks": 20, "temperature": 0.0}
    made = [Instance("generate_until", {}, (context, dict(gen)), i) for i, (context, _) in enumerate(pairs)]
    options = dict(new=20, seed=1234, temperature=0.0)
    expected = [alone(chatty, tokenizer.encode(c), 1, ["the"], **options)[0][0] for c, _ in pairs]
    assert lm.generate_until(made, disable_tqdm=True) == expected
    url = f"{chatty.url}/v1/chat/completions"
    lm = LocalChatCompletion(base_url=url, model="chatty", max_retries=1)
    asked = [[{"role": "user", "content": c}] for c, _ in pairs]
    made = [
        Instance("generate_until", {}, (lm.apply_chat_template(messages), dict(gen)), i)
        for i, messages in enumerate(asked)
    ]
    expected = [alone(chatty, endpoint.chat_of(chatty.served, m), 1, ["the"], **options)[0][0] for m in asked]
    assert lm.generate_until(made, disable_tqdm=True) == expected


# ---- what goes wrong -------------------------------------------------------------------------------------------------

BAD = [  # body, or bytes; status; words of the sentence
    (b"{", 400, "the body is no JSON"),
    (b"[1]", 400, "the body is no JSON object"),
    (b'{"prompt": "\xff\xfe"}', 400, "the body is no JSON"),
    (b"[" * 10000, 400, "the body is no JSON"),
    ({}, 400, "prompt: "),
    ({"prompt": "To", "tempurature": 1}, 400, "unknown field 'tempurature'; did you mean temperature"),
    ({"prompt": "To", "n": 0}, 400, "n: "),
    ({"prompt": "To", "n": 9}, 400, "9 texts of up to"),
    ({"prompt": "To", "max_tokens": -1}, 400, "max_tokens: "),
    ({"prompt": "To", "max_tokens": 1000}, 400, "exceed the context of 128 tokens"),
    ({"prompt": "To be " * 200}, 400, "the prompt has"),
    ({"prompt": ["To", 3]}, 400, "prompt: it takes"),
    ({"prompt": [1, 10**9]}, 400, "prompt: ids are from 0 to"),
    ({"prompt": []}, 400, "the list of prompts is empty"),
    ({"prompt": "a <|mdm_mask|> b"}, 400, "spells the mask token"),
    ({"prompt": "no hole", "holes": True}, 400, "the prompt has no hole"),
    ({"prompt": "[MASK*999999999]", "holes": True}, 400, "the holes are larger than the context"),
    ({"prompt": "To", "suffix": "be", "holes": True}, 400, "use suffix, or holes, not both"),
    ({"prompt": "To", "stop": "a" * 10000}, 400, "stop: at most 16 texts"),
    ({"prompt": "To", "stop": ["a"] * 1000}, 400, "stop: at most 16 texts"),
    ({"prompt": "To", "seed": -1}, 400, "seed: "),
    ({"prompt": "To", "temperature": 1e999}, 400, "temperature: "),
    ({"prompt": "To", "order": "up"}, 400, "order = 'up' (the request) does not fit"),
    ({"prompt": "To", "steps": [1]}, 400, "steps = "),
    ({"prompt": "To", "threshold": 0.9, "order": "random"}, 400, "needs a measure of certainty"),
    ({"prompt": "To", "edit_ids": [3, 4]}, 400, "edit_ids"),
    ({"prompt": "To", "compile": True}, 400, "unknown field 'compile'"),
    ({"prompt": "To", "suppress": [10**6]}, 400, "suppress=1000000 is not one of"),
    ({"prompt": "\ud800"}, 400, ""),
    ({"prompt": "To", "model": "../../etc/passwd"}, 404, "there is no model"),
    ({"prompt": "To", "logprobs": 5}, 400, "logprobs: "),
    (b'{"prompt": "' + b"a" * 2**21 + b'"}', 413, "the request has more than 1,048,576 bytes"),
]


@pytest.mark.parametrize("body, status, words", BAD, ids=[str(b[0])[:40] for b in BAD])
def test_what_cannot_be_is_one_sentence_and_the_next_request_is_served(chatty, body, status, words):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = chatty.http.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, status) and words in error["message"]
    assert set(error) == {"message", "type", "param", "code"} and "\n" not in error["message"]
    assert "Traceback" not in answer.text and str(ROOT) not in answer.text
    assert ask(chatty, "To", [], dict(new=2, seed=0), False)


VALUES = [
    None,
    True,
    -1,
    0,
    1,
    2,
    3.5,
    1e300,
    2**70,
    "",
    "x",
    "0.5",
    "\0",
    "\ud83d",
    [],
    [1],
    ["a", "b"],
    [[]],
    {},
    {"a": 1},
]


@pytest.mark.parametrize("part", range(6))
def test_whatever_a_field_holds_is_served_or_refused(chatty, part):
    """Every field of both kinds of requests, and every option of the engine, with values of every kind."""
    rng = random.Random(part)
    for _ in range(60):
        body = {"prompt": "To be", "max_tokens": 3, "steps": 2}
        path, fields = "/v1/completions", [*serve.Completion.model_fields, *chatty.served.options, "thoughts"]
        if rng.random() < 0.3:
            path, body = "/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
            fields = [*serve.Chat.model_fields, *chatty.served.options]
        for name in rng.sample(fields, rng.randint(1, 2)):
            body[name] = rng.choice(VALUES)
        answer = chatty.http.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
        assert answer.status_code in (200, 400, 404), (body, answer.text)
        if answer.status_code != 200:
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}, body
    assert idle(chatty)


def test_a_model_that_cannot_says_so(made):
    with running(made / "causal") as server:
        for body, words in [({"prompt": "To", "suffix": "be"}, "is autoregressive and cannot fill in")]:
            assert words in server.http.post("/v1/completions", json=body).json()["error"]["message"]
        answer = server.http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "hi"}]})
        assert answer.status_code == 400 and "has no chat template" in answer.json()["error"]["message"]
        bad = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}
        assert server.http.post("/v1/chat/completions", json=bad).status_code == 400


def test_a_foreign_page_cannot_use_it(chatty):
    plain = chatty.http.post("/v1/completions", content=b'{"prompt": "To"}', headers={"Content-Type": "text/plain"})
    assert plain.status_code == 415, "what a form of any page may send"
    assert chatty.http.get("/v1/models", headers={"Host": "evil.example"}).status_code == 400
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    answer = chatty.http.options("/v1/completions", headers=preflight)
    assert answer.status_code >= 400 and "access-control-allow-origin" not in answer.headers


def test_clients_that_die_leave_nothing_behind(chatty):
    rng = random.Random(1)
    port = int(chatty.url.rpartition(":")[2])

    def die(_):
        body = json.dumps({"prompt": "To be", "max_tokens": 100, "stream": rng.random() < 0.5, "n": rng.randint(1, 3)})
        text = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        text += f"Content-Length: {len(body)}\r\n\r\n{body}"
        with socket.create_connection(("127.0.0.1", port)) as s:
            s.sendall(text.encode()[: rng.choice([10, 120, 10000, 10000, 10000])])
            time.sleep(rng.random() * 0.1)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(die, range(60)))
    assert idle(chatty) and not chatty.worker.running and not chatty.worker.waiting
    assert ask(chatty, "To", [], dict(new=4, seed=0), True) == alone(chatty, ids_of(chatty, "To"), new=4, seed=0)


def test_keys_rates_queues_and_time_have_their_limits(made):
    settings = dict(api_key="sésame", rate=20, max_rows=1, max_queue=1, timeout=30.0, preset="none")
    with running(made / "chatty", **settings) as server:
        open_to_all = [httpx.get(server.url + p).status_code == 200 for p in ("/health", "/", "/metrics", "/v1/models")]
        assert open_to_all == [True, True, False, False]
        wrong = {"Authorization": "Bearer sésam".encode()}
        assert httpx.post(server.url + "/v1/completions", json={"prompt": "To"}, headers=wrong).status_code == 401
        long = dict(new=120, seed=0)
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            body = {"prompt": "To", "max_tokens": 120}
            found = [pool.submit(server.http.post, "/v1/completions", json=body) for _ in range(6)]
            found = [f.result() for f in found]
        codes = sorted(a.status_code for a in found)
        assert codes[0] == 200 and codes[-1] == 429 and set(codes) == {200, 429}
        full = next(a for a in found if a.status_code == 429)
        assert int(full.headers["Retry-After"]) >= 1 and "try again in" in full.json()["error"]["message"]
        server.settings.timeout = 0.01
        late = server.http.post("/v1/completions", json={"prompt": "To", "max_tokens": 120})
        assert late.status_code == 504 and "not finished within 0.01 seconds" in late.json()["error"]["message"]
        server.settings.timeout = 30.0
        assert ask(server, "To", [], long, False), "and the row is free again"
        codes = [server.http.get("/v1/models").status_code for _ in range(20)]
        assert codes[-1] == 429, "more than 20 a minute"


def test_a_network_without_numbers_fails_its_requests_and_no_others(made):
    with running(made / "chatty", preset="none") as server:
        weight = server.served.checkpoint.model.embed.weight
        kept = weight.clone()
        with torch.no_grad():
            weight.fill_(float("nan"))
        answer = server.http.post("/v1/completions", json={"prompt": "To", "max_tokens": 4})
        assert answer.status_code == 500 and "not finite numbers" in answer.json()["error"]["message"]
        with torch.no_grad():
            weight.copy_(kept)
        assert ask(server, "To", [], dict(new=4, seed=0), False) == alone(server, ids_of(server, "To"), new=4, seed=0)


def test_clients_take_turns():
    """Who has many requests in the queue does not keep another waiting behind all of them."""
    worker = serving.Worker(torch.nn.Linear(1, 1), SimpleNamespace(open_batch=None), 0)
    worker.is_alive = lambda: True
    for client, n in (("a", 3), ("b", 1), ("c", 2)):
        for k in range(n):
            worker.submit(serving.Job([torch.tensor([k])], SimpleNamespace(max_new_tokens=1), client=client))
    order = []
    while (job := worker.next()) is not None:
        order.append(job.client)
    assert order == ["a", "b", "c", "a", "c", "a"]


@pytest.mark.parametrize("grace, whole", [(30, True), (0.001, False)])
def test_told_to_stop_it_finishes_or_says_why(made, grace, whole):
    words = [
        sys.executable,
        "serve.py",
        f"--checkpoint={made / 'chatty'}",
        "--port=0",
        f"--grace={grace}",
        "--device=cpu",
    ]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        url = next(line for line in process.stdout if line.startswith("http")).split()[0]
        body = {"prompt": "To", "max_tokens": 120, "stream": True, "seed": 1, "steps": 120, "order": "left_to_right"}
        with httpx.stream("POST", url + "/v1/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line.startswith("data")]
        assert rest[-1] == "data: [DONE]"
        last = json.loads(rest[-2][6:])
        assert (
            (last["choices"][0]["finish_reason"] == "length") if whole else "stops before" in last["error"]["message"]
        )
        assert process.wait(30) == 0 and "Traceback" not in process.stdout.read()
    finally:
        process.kill()


@pytest.mark.parametrize(
    "args, words",
    [
        (["--host=0.0.0.0"], "is open to other machines: name a key"),
        (["--port=99999999"], "cannot listen at"),
        (["--treshold=0.5"], "unknown key 'treshold'"),
        (["--threshold=high"], "does not fit"),
        (["--cache=dual", "--compile=true"], "compile takes a batch of one shape"),
        (["--cors=5", "--rate=-1"], "rate"),
    ],
)
def test_what_cannot_be_served_is_said_at_once(made, args, words):
    with pytest.raises(SystemExit) as e:
        serve.main([f"--checkpoint={made / 'chatty'}", "--device=cpu", "--port=0", *args])
    assert words in str(e.value) and "\n" not in str(e.value)
