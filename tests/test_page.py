"""The page at / in a real browser, in front of a real serve.py: what a person types, sees, stops and comes back to.

The model is one that says the same text over and over, whatever it is asked: HTML and signs that do something, which
must be shown as they are."""

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request

import pytest
import torch
import zoo

from model import Config, Transformer
from nanodlm import checkpoint as ckpt
from nanodlm import tokenizer as tokenizers
from nanodlm.files import ROOT

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright, which finds Debian's chromium")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium here")
CONTEXT, SAID = 512, "<script>owned=1</script>\x1b[2J<img src=x onerror=owned=1> the fox: "
CONTRASTS = """() => {
  const paint = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const light = colour => {
    paint.fillStyle = colour;
    paint.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...paint.getImageData(0, 0, 1, 1).data].map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = e => { for (; e; e = e.parentElement) {
    const colour = getComputedStyle(e).backgroundColor;
    if (colour !== "rgba(0, 0, 0, 0)") return light(colour);
  } };
  const found = {};
  for (const e of document.querySelectorAll("body *:not(.m, .sr, option, script, style, template)"))
    if (e.checkVisibility() && !e.disabled && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) {
      const [a, b] = [light(getComputedStyle(e).color), behind(e)].sort((x, y) => x - y);
      found[`${e.tagName} ${e.id} ${e.className} ${e.textContent.slice(0, 20)}`] = (b + 0.05) / (a + 0.05);
    }
  return found;
}"""


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """serve.py, with a model that can chat and fill in, at a free port."""
    path = tmp_path_factory.mktemp("page")
    zoo.write(path / "tokenizer", "byte-level", "chatml", eos_token="</s>", mask_token="<|mask|>")
    tokenizer = tokenizers.load({"kind": "hf"}, path / "tokenizer")
    said, vocab = tokenizer.encode(SAID), tokenizer.vocab_size
    net = Transformer(Config(vocab, CONTEXT, n_layer=1, n_head=1, n_embd=CONTEXT, position="learned"))
    weights = {name: torch.full_like(p, float(p.dim() == 1)) for name, p in net.named_parameters()}
    weights["pos_embed.weight"] = torch.eye(CONTEXT)  # nothing but a token's place is seen
    for place in range(CONTEXT):
        weights["head_weight"][said[place % len(said)], place] = (4 + place % 5) / CONTEXT**0.5  # more or less sure
    ckpt.save(path / "fox", weights, net.config, tokenizer, path / "tokenizer", "mdlm", {})
    words = [sys.executable, "serve.py", f"--checkpoint={path / 'fox'}", "--port=0", "--temperature=0", "--device=cpu"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    yield next(line for line in process.stdout if line.startswith("http")).split()[0]
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(url, browser):
    """Opens the page in a window of its own. At the end nothing was wrong, and nobody else was asked for anything."""
    contexts, wrong = [], []

    def open_page(**window):
        contexts.append(browser.new_context(**window))
        page = contexts[-1].new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: wrong.append(str(e)))
        page.on("request", lambda r: None if r.url.startswith(url) else wrong.append(r.url))
        page.goto(url)
        page.wait_for_selector("#send:enabled")
        return page

    yield open_page
    for context in contexts:
        assert context.pages[0].evaluate("typeof owned") == "undefined", "what a model wrote was run"
        context.close()
    assert not [w for w in wrong if "400 (Bad Request)" not in w and "401 (Unauthorized)" not in w]


def canvas(page, which=-1):
    return page.locator(".canvas").nth(which).text_content()


def write(page, text, mode=None, **options):
    """Ask for a text and wait until it is written."""
    if mode:
        page.click(f".modes >> text={mode}")
    for key, value in options.items():
        (page.select_option if key in ("order", "quota") else page.fill)(f"#{key}", str(value))
    page.fill("#text", text)
    page.press("#text", "Enter")
    page.wait_for_selector("#send:not([hidden])")


def eventually(what, seconds=20):
    """Whether it comes true. (The page's own rules keep Playwright's wait_for_function out.)"""
    end = time.monotonic() + seconds
    while not (found := what()) and time.monotonic() < end:
        time.sleep(0.02)
    return found


def rows(url):
    metrics = urllib.request.urlopen(f"{url}/metrics").read().decode()
    return float(re.search(r"^nanodlm_rows (.*)$", metrics, re.M)[1])


def test_a_conversation_is_written_looked_back_at_and_kept(open_page):
    page = open_page(viewport={"width": 1280, "height": 800})
    asked = []
    page.on("request", lambda r: asked.append(json.loads(r.post_data)) if r.method == "POST" else None)
    write(page, "who <b>eats</b>?", max_tokens=64, steps=8)
    said = canvas(page)
    assert "<script>owned=1</script>" in said and "onerror" in said and "\x1b" not in said and "░" not in said
    assert page.locator(".asked").text_content() == "who <b>eats</b>?" and page.locator(".asked b").count() == 0
    spoken = page.locator(".whole[aria-live=polite]")
    assert "the fox" in spoken.text_content(), "what is read aloud, once it is whole"
    assert re.match(r"64 tokens in 8 forwards · 8.00 per forward · [\d.]+ per second", page.inner_text(".stats"))
    colours = page.evaluate("[...new Set([...document.querySelectorAll('.s')].map(e => getComputedStyle(e).color))]")
    assert len(colours) > 2, "by probability"

    page.focus("#at")  # back in time: each step hides what it revealed
    for k in range(7, -1, -1):
        page.keyboard.press("ArrowLeft")
        assert canvas(page).count("░") == 64 - 8 * k and page.inner_text("#where") == f"step {k} of 8"
    page.keyboard.press("ArrowRight")
    assert page.locator(".canvas .new").count() == 8 and "% sure" in page.inner_text("#picked")
    assert page.get_attribute("#at", "aria-valuetext").startswith("step 1 of 8: “")
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    page.click("#play")
    assert eventually(lambda: page.inner_text("#where") == "step 8 of 8") and canvas(page) == said

    write(page, "and then?")
    first, second = asked
    assert [m["role"] for m in second["messages"]] == ["user", "assistant", "user"]
    assert first["max_tokens"] == 64 and not {"order", "quota", "temperature", "seed"} & first.keys(), "no defaults"
    page.click(".again")
    assert page.locator("article:first-child #player").count() == 1 and page.inner_text("#play") == "pause"
    page.reload()
    page.wait_for_selector("#send:enabled")
    assert [canvas(page, i) for i in (0, 1)] == [said, canvas(page)] and page.input_value("#steps") == "8"
    write(page, "so?")
    assert [m["content"] for m in asked[-1]["messages"][::2]] == ["who <b>eats</b>?", "and then?", "so?"]
    page.click("#fresh")
    assert page.locator("article").count() == 0 and page.is_visible("#intro")
    page.reload()
    page.wait_for_selector("#send:enabled")
    assert page.locator("article").count() == 0


def test_it_appears_step_by_step_and_stops_when_told(open_page, url):
    page = open_page(viewport={"width": 1280, "height": 800})
    page.fill("#max_tokens", "450")
    page.fill("#text", "go on")
    page.press("#text", "Enter")
    masks = page.locator(".canvas .m")
    for n in (449, 440, 430):
        assert eventually(lambda n=n: 0 < masks.count() <= n)
    assert rows(url) == 1
    page.keyboard.press("Escape")
    page.wait_for_selector("#send:not([hidden])")
    assert page.inner_text(".stats").startswith("stopped") and masks.count() > 0
    assert eventually(lambda: rows(url) == 0)
    write(page, "again", max_tokens=8)
    assert canvas(page).count("░") == 0, "and the next one is served"


def test_holes_are_filled_and_what_cannot_be_is_said(open_page):
    page = open_page(viewport={"width": 1280, "height": 800})
    page.click(".modes >> text=fill in")
    page.fill("#text", "a  b")
    page.evaluate("document.getElementById('text').setSelectionRange(2, 2)")
    page.click("#hole")
    assert page.input_value("#text") == "a [MASK*8] b"
    write(page, "a [MASK*8] b", quota="threshold", threshold=0.05)
    assert canvas(page).startswith("a") and canvas(page).endswith(" b") and "░" not in canvas(page)
    assert page.locator(".canvas .g").count() >= 2 and "quota threshold · threshold 0.05" in page.inner_text(".stats")
    assert not page.is_visible("#steps") and not page.is_visible("#max_tokens")

    write(page, "a [MASK] b", order="random")
    assert "needs a measure of certainty" in page.inner_text("[role=alert]") and page.locator("article").count() == 1
    page.click("#reset")
    write(page, "the fox", "continue", max_tokens=4, seed=7)
    assert page.inner_text("[role=alert]") == "" and "seed 7" in page.locator(".stats").nth(1).inner_text()
    assert page.locator(".before").nth(1).text_content() == "the fox" and page.input_value("#text") == "the fox"


def test_whoever_must_know_a_key_is_asked_for_it(open_page):
    page = open_page()
    problem = json.dumps({"error": {"message": "this server needs its key"}})

    def guard(route):
        known = route.request.headers.get("authorization") == "Bearer sesame"
        route.continue_() if known else route.fulfill(status=401, body=problem, content_type="application/json")

    page.route("**/v1/**", guard)
    page.reload()
    page.fill("#key", "sesame")
    page.press("#key", "Enter")
    page.wait_for_selector("#send:enabled")
    assert not page.is_visible("#door") and page.inner_text("[role=alert]") == ""
    write(page, "hello", max_tokens=4)
    assert page.locator("article").count() == 1


def test_it_is_readable_on_a_phone_in_both_schemes_and_by_those_who_do_not_see_it(open_page):
    page = open_page(viewport={"width": 360, "height": 640}, color_scheme="dark", reduced_motion="reduce")
    page.click("summary")
    write(page, "a" * 100, max_tokens=64, steps=8)
    for ground in ("rgb(22, 24, 29)", "rgb(255, 255, 255)"):
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == ground
        assert page.evaluate("document.documentElement.scrollWidth") == 360, "nothing goes off the side"
        assert not {name: round(x, 2) for name, x in page.evaluate(CONTRASTS).items() if x < 4.5}
        page.click("#scheme")
    assert not page.evaluate("""[...document.querySelectorAll("input, select, textarea, button")].filter(e =>
        !(e.labels?.length && e.labels[0].textContent || e.ariaLabel || e.textContent)).map(e => e.outerHTML)"""), (
        "a name"
    )
    page.focus("#scheme")  # a keyboard goes everywhere, and is seen there
    outline = "e => getComputedStyle(e.matches('.sr') ? e.parentElement : e).outlineWidth"
    for name in ("fresh", None, "order", "quota", "steps"):
        page.keyboard.press("Tab")
        assert name in (None, page.evaluate("document.activeElement.id"))
        assert page.evaluate(f"({outline})(document.activeElement)") == "3px"


def test_a_canvas_after_each_step(open_page):
    """Drafts give way, and are hidden again; what is said of tokens at the end belongs to their steps."""
    turn = {"start": ["x", None, None]}
    turn["steps"] = [[[1, "a", None], [2, "b", None]], [[2, "c", None]], [[1, "a", 0.5], [2, "c", 0.25]]]
    turn["steps"] = [{"changes": changes, "length": 3} for changes in turn["steps"]]
    page = open_page()
    told = page.evaluate("t => { settle(t); return t.steps.map((_, k) => canvas(t, k + 1)) }", turn)
    seen = [[(x["piece"], x.get("p"), x.get("changed")) for x in now] for now in told]
    assert seen == [
        [("x", None, None), ("a", 0.5, 1), ("b", None, 1)],
        [("x", None, None), ("a", 0.5, 1), ("c", 0.25, 2)],
    ]
    turn["steps"] = [{"changes": [[1, "a", 0.5]], "length": 3}, {"changes": [[1, None, 0.0]], "length": 2}]
    assert page.evaluate("t => { settle(t); return canvas(t, 2).map(x => x.piece) }", turn) == ["x", None]
