"""Show a text being denoised: live in the terminal, as a page that replays it, as an animated GIF.

All three draw the same thing, frames made from fast_mdlm.generate's trace: (step, position, token, probability).
"""

import html
import json
import re
import shutil
import sys
import time
from pathlib import Path

MASK = "░"


def pieces(ids, tokenizer):
    """The text of each id by itself; None for the mask token."""
    return [None if i in (tokenizer.mask_id, -1) else tokenizer.decode([i]) for i in ids]


def live(tokenizer, row=0, delay=0.0):
    """A `watch` callback that redraws canvas `row` in the terminal, new tokens in colour."""
    before, height, out = [], 0, sys.stdout
    tty = out.isatty()
    columns, lines = shutil.get_terminal_size((100, 30))

    def watch(canvases):
        nonlocal before, height
        now = pieces(canvases[row].tolist(), tokenizer)
        if now == before:
            return
        fresh = [i >= len(before) or p != before[i] for i, p in enumerate(now)] if before else [False] * len(now)
        text, column, drawn = "", 0, 1
        for piece, new in zip(now, fresh):
            shown = MASK if piece is None else re.sub(r"[^\S\n]|[\x00-\x08]", " ", piece)  # tabs would shift the line
            part = ""
            for c in shown:
                if c == "\n" or column == columns - 1:
                    part, column, drawn = part + "\n", 0, drawn + 1
                if c != "\n":
                    part, column = part + c, column + 1
            if tty and piece is None:
                part = f"\033[90m{part}\033[0m"
            elif tty and new:
                part = f"\033[1;32m{part}\033[0m"
            text += part
        rows = text.split("\n")
        if tty:  # what does not fit the window cannot be redrawn in place: keep to its last lines
            rows = rows[-(lines - 2) :]
            out.write((f"\033[{height}F" if height else "") + "\033[J" + "\n".join(rows) + "\n")
            height = len(rows)
        elif not before or sum(fresh) and now.count(None) <= before_masks[0] * 0.6 or now.count(None) == 0:
            before_masks[0] = now.count(None)
            out.write("\n".join(rows) + "\n" + "-" * 20 + "\n")
        out.flush()
        before = now
        time.sleep(delay)

    before_masks = [10**9]
    return watch


def write_html(path, canvases, output, tokenizer, title):
    """A self-contained page that replays the denoising of every sample: play, pause, drag, colours by probability.

    canvases: the ids each sample started from (prompt and masks); output: generate's, with its trace."""
    samples = [
        {
            "start": pieces(canvas.tolist(), tokenizer),
            "events": [[s, i, *pieces([t], tokenizer), round(p, 4)] for s, i, t, p in trace],
            "length": len(tokens),
            "forwards": n,
        }
        for canvas, tokens, trace, n in zip(canvases, output.tokens, output.trace, output.num_forwards)
    ]
    data = json.dumps(samples).replace("<", "\\u003c")  # a text may hold </script>
    before, after = PAGE.replace("TITLE", html.escape(title)).split("DATA")
    Path(path).write_text(before + data + after, encoding="utf-8")


PAGE = """<!doctype html><meta charset="utf-8"><title>TITLE</title>
<style>
 body { font: 15px/1.5 ui-monospace, Menlo, Consolas, monospace; background: #16181d; color: #d8dee9;
        max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
 #text { white-space: pre-wrap; overflow-wrap: anywhere; background: #1e2128; border-radius: 8px; padding: 1rem;
         min-height: 16rem }
 .m { color: #4c566a } .g { color: #8fbcbb } .new { background: #a3be8c; color: #16181d; border-radius: 2px }
 .bar { display: flex; gap: .8rem; align-items: center; margin: 1rem 0 } input[type=range] { flex: 1 }
 button, select { font: inherit; background: #2e3440; color: inherit; border: 0; border-radius: 6px;
   padding: .3rem .8rem }
 small { color: #7b8494 }
</style>
<h3>TITLE</h3>
<div class="bar"><button id="play">pause</button><input id="step" type="range" min="0" value="0">
<span id="where"></span><select id="which"></select></div>
<div id="text"></div>
<p><small>Grey: still hidden. Light blue: given. Green background: revealed in this step. The colour of a revealed token
goes from red (the model was unsure) to white (sure); hover for its probability and step.</small></p>
<script>
const samples = DATA, $ = id => document.getElementById(id);
let s = 0, k = 0, playing = true, last = 0;
samples.forEach((_, i) => $("which").add(new Option("sample " + (i + 1), i)));
$("which").hidden = samples.length < 2;
const steps = () => samples[s].events.reduce((a, e) => Math.max(a, e[0] + 1), 0);
function draw() {
  const x = samples[s], now = x.start.map(p => ({p, given: p !== null}));
  for (const [t, i, p, c] of x.events) if (t < k) now[i] = {p, c, t, fresh: t === k - 1};
  const shown = k >= steps() ? now.slice(0, x.length) : now;
  $("text").replaceChildren(...shown.map(o => {
    const e = document.createElement("span");
    e.textContent = o.p === null ? "░" : o.p;
    if (o.p === null) e.className = "m";
    else if (o.given) e.className = "g";
    else {
      if (o.fresh && k < steps()) e.className = "new";
      else e.style.color = `hsl(${o.c * 40} ${100 - 90 * o.c}% ${62 + 25 * o.c}%)`;
      e.title = `p = ${o.c.toFixed(3)}, step ${o.t + 1}`;
    }
    return e;
  }));
  $("step").max = steps(); $("step").value = k;
  $("where").textContent = `step ${k} / ${steps()}, ${x.forwards} forwards`;
}
function tick(time) {
  const wait = k >= steps() ? 2500 : Math.max(20, 6000 / steps());
  if (playing && time - last > wait) { last = time; k = k >= steps() ? 0 : k + 1; draw(); }
  requestAnimationFrame(tick);
}
$("play").onclick = () => { playing = !playing; $("play").textContent = playing ? "pause" : "play"; };
$("step").oninput = e => { playing = false; $("play").textContent = "play"; k = +e.target.value; draw(); };
$("which").onchange = e => { s = +e.target.value; k = 0; draw(); };
draw(); requestAnimationFrame(tick);
</script>
"""


def write_gif(path, canvas, trace, length, tokenizer, columns=72, max_frames=64):
    """An animated GIF of one sample's denoising, `columns` characters wide."""
    import matplotlib
    from PIL import Image, ImageColor, ImageDraw, ImageFont

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    font = ImageFont.truetype(str(fonts / "DejaVuSansMono.ttf"), 15)
    wide, high = font.getlength("m"), 20
    start = pieces(canvas.tolist(), tokenizer)
    steps = max((e[0] for e in trace), default=-1) + 1
    shown_steps = sorted({round(i * steps / max_frames) for i in range(max_frames)} | {steps}) if steps else [0]

    def layout(state):
        """(line, column, character, kind) of every character, wrapped; a mask is one character."""
        line = column = 0
        for piece, kind in state:
            for c in MASK if piece is None else piece:
                if c == "\n" or column == columns:
                    line, column = line + 1, 0
                if c != "\n":
                    yield line, column, c, kind
                    column += 1

    def state_at(k):
        state = [[p, "given" if p is not None else "mask"] for p in start]
        for t, i, token, _ in trace:
            if t < k:
                p = pieces([token], tokenizer)[0]
                state[i] = [p, "mask" if p is None else "new" if t >= before and k < steps else "text"]
        return state[:length] if k == steps else state

    colours = {"mask": "#4c566a", "given": "#8fbcbb", "new": "#a3be8c", "text": "#d8dee9"}
    drawn, before = [], 0
    for k in shown_steps:
        drawn.append(list(layout(state_at(k))))
        before = k
    height = max((line for frame in drawn for line, *_ in frame), default=0) + 1
    # One palette for all frames: each colour in eight steps from the background, for the letters' soft edges.
    background = ImageColor.getrgb("#16181d")
    palette = Image.new("P", (1, 1))
    shades = [(ImageColor.getrgb(c), i / 7) for c in colours.values() for i in range(8)]
    palette.putpalette([round(b + (f - b) * a) for colour, a in shades for f, b in zip(colour, background)])
    images = []
    for frame in drawn:
        image = Image.new("RGB", (int(wide * columns) + 32, high * height + 32), background)
        pen = ImageDraw.Draw(image)
        for line, column, c, kind in frame:
            pen.text((16 + column * wide, 16 + line * high), c, font=font, fill=colours[kind])
        images.append(image.quantize(palette=palette, dither=Image.Dither.NONE))
    times = [90] * (len(images) - 1) + [2500]
    images[0].save(path, save_all=True, append_images=images[1:], duration=times, loop=0, optimize=True)
