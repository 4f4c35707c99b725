"""Show a text being denoised: live in the terminal, as a page that replays it, as an animated GIF; several as a race.

All of them draw the same thing, frames made from fast_mdlm.generate's trace: (step, position, token, probability).
Where a text grows and shrinks (editflow.generate), an event has a fifth part, "insert" or "delete"; then each token
that ever was there is given a column of its own, which opens and closes (unfold)."""

import bisect
import difflib
import functools
import html
import io
import itertools
import json
import math
import re
import shutil
import sys
import time
from pathlib import Path

from nanodlm.console import visible
from nanodlm.files import replace_file

MASK = "░"
PART = "▒"  # of a character whose other tokens are hidden
ABSENT = -2  # the id of a column in which there is nothing, yet or any more: its piece is empty


def pieces(ids, tokenizer):
    """The text of each id, None for the mask token.

    A token by itself may have none: a character may take several, a space may stand only between two. So neighbours
    that are known are decoded together: joined, their pieces are that text, and a character of several tokens is the
    piece of the one that completes it."""
    out = []
    if ABSENT in ids:
        there = iter(pieces([i for i in ids if i != ABSENT], tokenizer))
        return ["" if i == ABSENT else next(there) for i in ids]
    for known, run in itertools.groupby(ids, lambda i: i not in (tokenizer.mask_id, -1)):
        run = tuple(run)
        behind = len(out) + len(run) < len(ids)
        out += cut(run, tokenizer.decode, bool(out), behind) if known else [None] * len(run)
    return out


@functools.lru_cache(2**8)  # from one frame to the next most runs stay as they are
def cut(ids, decode, before, behind):
    """The text of a run of ids, in a piece for each; whether a mask is before it, or behind it."""
    given = int(before)  # a decoder may take the space from the first token: then that is a second one
    ids = ids[:given] + ids
    text = decode(list(ids))[len(decode(list(ids[:given]))) :]
    ends, begin, middle = [0], 0, given  # up to `middle` all is complete; what follows is read with what is before it
    for end in range(given + 1, len(ids) + 1):
        new = decoded(ids[begin:end], decode)[len(decoded(ids[begin:middle], decode)) :]
        if new and not new.endswith("\ufffd"):
            ends.append(ends[-1] + len(new))
            begin, middle = middle, end
        else:
            ends.append(ends[-1])
    for edge in ["^\ufffd+"] * before + ["\ufffd+$"] * behind:
        text = re.sub(edge, lambda halves: PART * len(halves[0]), text)
    return [text[a:b] for a, b in zip(ends, [*ends[1:-1], len(text)])]


@functools.lru_cache(2**16)
def decoded(ids, decode):
    return decode(list(ids))


def unfold(canvas, trace, length):
    """The canvas (a tensor of ids), trace and length of a text that grew and shrank, as those of one that does neither:
    with a column for each token that ever was there."""
    order = list(range(len(canvas)))  # the columns, from left to right; those behind the first ones come as they come
    alive, first, events = list(order), canvas.tolist(), []
    for step, place, token, p, *what in trace:
        if what == ["insert"]:  # behind the token before it
            at = order.index(alive[place - 1]) + 1 if place else 0
            order.insert(at, len(first))
            alive.insert(place, len(first))
            first.append(ABSENT)
        events.append((step, alive[place], ABSENT if what == ["delete"] else token, p))
        if what == ["delete"]:
            del alive[place]
    place = {column: i for i, column in enumerate(order)}
    end = 1 + place[alive[length - 1]] if 0 < length <= len(alive) else len(order)
    return canvas.new_tensor([first[i] for i in order]), [(e[0], place[e[1]], *e[2:]) for e in events], end


def frames(canvas, trace, tokenizer, length):
    """[(pieces, {position: probability} of what was revealed)] before the first step and after each one. The last step
    leaves `length` tokens."""
    ids, steps = canvas.tolist(), [{} for _ in range(1 + max((e[0] for e in trace), default=-1))]
    for step, i, token, p in trace:
        steps[step][i] = token, p
    out = [(pieces(ids, tokenizer), {})]
    for number, events in enumerate(steps, 1):
        for i, (token, _) in events.items():
            ids[i] = token
        now = ids[:length] if number == len(steps) else ids
        out.append((pieces(now, tokenizer), {i: p for i, (_, p) in events.items()}))
    return out


def layout(parts, columns):
    """([[line, column, character, number of its part]], the number of lines) of a text in parts, wrapped to columns of
    a terminal: a Chinese character takes two, an accent none, a tab one, as a blank."""
    from wcwidth import wcwidth

    cells, line, column = [], 0, 0
    for number, part in enumerate(parts):
        for c in part.replace("\t", " "):
            wide = max(0, wcwidth(c)) + (c == "\ufe0f")  # which may make the sign before it an emoji, twice as wide
            if c == "\n" or wide and column + wide > columns:
                line, column = line + 1, 0
            if c == "\n":
                continue
            if not wcwidth(c) and cells and cells[-1][0] == line:
                cells[-1][2] += c
            else:
                cells.append([line, column, c, number])
            column += wide
    return cells, line + 1


def painted(now, fresh, columns):
    """[(line, its width)] as a terminal shows the pieces: masks in grey, what is fresh (a list of bool) in green, or
    "gone" in red, crossed out; where stdout is no terminal, without colours."""
    from wcwidth import wcswidth

    tty, encoding = sys.stdout.isatty(), sys.stdout.encoding or "utf-8"
    mask = MASK if MASK.encode(encoding, "ignore") else "_"

    def shown(piece):
        return visible(piece).encode(encoding, "backslashreplace").decode(encoding)  # as the stream will write it

    def paint(number, text):
        if tty and now[number] is None:
            return f"\033[90m{text}\033[0m"
        colour = "9;31" if fresh[number] == "gone" else "1;32"
        return f"\033[{colour}m{text}\033[0m" if tty and fresh[number] else text

    cells, count = layout([mask if p is None else shown(p) for p in now], columns)
    rows, widths = [""] * count, [0] * count
    for (line, number), same in itertools.groupby(cells, lambda cell: (cell[0], cell[3])):
        text = "".join(cell[2] for cell in same)
        rows[line] += paint(number, text)
        widths[line] += max(0, wcswidth(text))
    return [*zip(rows, widths)]


def edited(before, ids):
    """What of a text's ids is new, a list of bool; and what of those before has gone: [(its place, the place in
    ids)]."""
    fresh, gone = [True] * len(ids), []
    for what, a, end, b, _ in difflib.SequenceMatcher(None, before, ids, False).get_opcodes():
        if what == "equal":
            fresh[b : b + end - a] = [False] * (end - a)
        gone += [(i, b) for i in range(a, end)] if what in ("delete", "replace") else []
    return fresh, gone


def live(tokenizer, row=0, delay=0.0):
    """A `watch` callback that redraws canvas `row` in the terminal, new tokens in colour."""
    before, height, masks, out = [], 0, math.inf, sys.stdout
    tty = out.isatty()
    columns, lines = shutil.get_terminal_size((100, 30))

    def redraw(now, fresh):
        nonlocal height
        rows = [text for text, _ in painted(now, fresh, columns - 1)][-(lines - 2) :]  # the window's last lines alone
        out.write((f"\033[{height}F" if height else "") + "\033[J" + "\n".join(rows) + "\n")
        out.flush()
        height = len(rows)

    def watch(canvases):
        nonlocal before, masks
        ids = canvases[row].tolist()
        if ids == before:
            return
        now = pieces(ids, tokenizer)
        fresh = [bool(before) and (i >= len(before) or x != before[i]) for i, x in enumerate(ids)]
        if before and len(before) != len(ids):
            fresh, gone = edited(before, ids)
            if tty and gone:  # what goes is seen for a moment, crossed out
                old, parts = pieces(before, tokenizer), [*zip(now, fresh)]
                for i, place in reversed(gone):
                    parts.insert(place, (old[i], "gone"))
                redraw(*map(list, zip(*parts)))
                time.sleep(delay / 2)
        if tty:  # what does not fit the window cannot be redrawn in place
            redraw(now, fresh)
        elif not before or any(fresh) and now.count(None) <= masks * 0.6 or now.count(None) == 0:
            masks = now.count(None)
            out.write("\n".join(text for text, _ in painted(now, fresh, columns - 1)) + "\n" + "-" * 20 + "\n")
            out.flush()
        before = ids
        time.sleep(delay)

    return watch


# ---- samples that were written, step by step or side by side ---------------------------------------------------------


def record(canvas, tokens, trace, forwards, tokenizer, **more):
    """What is replayed of one sample, as JSON has it. `canvas` are the ids it started from (prompt and masks); the rest
    is generate's. More may be said of it: `name`; `about`, how it was decoded; `times`, the seconds from the start to
    the end of each step; `speed`, at which these are replayed."""
    length = len(tokens)
    if grows := any(len(event) > 4 for event in trace):
        canvas, trace, length = unfold(canvas, trace, length)
        more["grows"] = grows
    (start, _), *after = frames(canvas, trace, tokenizer, length)
    steps, before = [], start
    for now, revealed in after:  # what changes in a step: [position, text, its probability if it is revealed]
        changed = [i for i, p in enumerate(now) if i in revealed or p != before[i]]
        steps.append([[i, seen(now[i]), round(revealed[i], 4) if i in revealed else None] for i in changed])
        before = now
    return {"start": [*map(seen, start)], "steps": steps, "length": length, "forwards": forwards, **more}


def seen(piece):
    return piece and visible(piece)


def screen(samples, t, columns, lines=None):
    """The lines of a terminal at t seconds: samples (record's, with times) side by side, or where that is too narrow
    one below the other; of each text the last lines, as many as fit."""
    beside = columns >= 25 * len(samples)
    width = columns // len(samples) - 2 if beside else columns - 1
    room = max(1, (lines if beside else lines // len(samples)) - 4) if lines else 0
    lanes = []
    for x in samples:
        k, now, revealed = bisect.bisect_right(x["times"], t), list(x["start"]), set()
        for changes in x["steps"][:k]:
            for i, piece, _ in changes:
                now[i] = piece
            revealed = {i for i, _, p in changes if p is not None}
        over = k == len(x["steps"])
        text = painted(
            now[: x["length"]] if over else now, [i in revealed and not over for i in range(len(now))], width
        )
        made = x["start"].count(None) - now.count(None)
        seconds = min(t, x["times"][-1])
        said = x["name"].upper(), f"{made} tokens, {seconds:.2f} s", f"{made / max(seconds, 1e-9):.0f} tokens/s"
        head, *foot = [(line, len(line)) for line in said]
        lanes.append((head, text[-room:], foot))
    if not beside:
        return [line for head, text, foot in lanes for line, _ in [head, *text, *foot, ("", 0)]]
    height = max(len(text) for _, text, _ in lanes)
    parts = [[head, *text, *[("", 0)] * (height - len(text)), *foot] for head, text, foot in lanes]
    return ["  ".join(line + " " * (width - wide) for line, wide in row).rstrip() for row in zip(*parts)]


def race(samples):
    """Replay samples (record's, with times) on one clock: redrawn in a terminal, elsewhere in a few frames."""
    columns, lines = shutil.get_terminal_size((100, 30))
    end, height, start, t = max(x["times"][-1] for x in samples), 0, time.perf_counter(), 0.0
    if not sys.stdout.isatty():
        for part in (0.1, 0.3, 0.6, 1):
            print("\n".join(screen(samples, part * end, columns)) + "\n" + "-" * min(columns, 73))
        return
    while t < end:
        t = (time.perf_counter() - start) * samples[0].get("speed", 1)
        rows = screen(samples, t, columns, lines if t < end else None)
        print((f"\033[{height}F" if height else "") + "\033[J" + "\n".join(rows), flush=True)
        height = len(rows)
        time.sleep(0.04)


def write_html(path, canvases, output, tokenizer, title):
    """A page that replays the denoising of every sample; `output` is generate's, with its trace."""
    samples = zip(canvases, output.tokens, output.trace, output.num_forwards)
    write_page(path, [record(*sample, tokenizer) for sample in samples], title)


def write_page(path, samples, title, note=""):
    """A self-contained page (replay.html) of what record() gives: one sample at a time, or all side by side."""
    head, tail = Path(__file__).with_name("replay.html").read_text(encoding="utf-8").split("DATA")
    words = {"TITLE": html.escape(visible(title)), "NOTE": html.escape(visible(note))}
    head = re.sub("TITLE|NOTE", lambda m: words[m[0]], head)
    data = json.dumps(samples).replace("<", "\\u003c")  # a text may hold </script>
    replace_file(Path(path), (head + data + tail).encode())


# ---- an animated GIF -------------------------------------------------------------------------------------------------


def load_font(path=""):
    """(the font of a file, or DejaVu Sans Mono; a function that says whether it has a character). Exits where the file
    holds none."""
    import matplotlib
    from matplotlib.ft2font import FT2Font
    from PIL import ImageFont

    path = path or str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSansMono.ttf")
    try:
        font, glyphs = ImageFont.truetype(path, 15), FT2Font(path)
    except (OSError, RuntimeError) as e:
        sys.exit(f"font={path} is no font file (.ttf or .otf): {e}")
    return font, lambda c: glyphs.get_char_index(ord(c)) > 0


def writer(font):
    """A function (pen, x, y, text, colour) that writes as pen.text does, to the pixel, but keeps the shapes of what it
    has written: most of a text stands in every frame."""
    from PIL import Image, ImageDraw

    @functools.cache
    def shape(text, part):
        """How much of each pixel a text covers that begins this part of a pixel behind its place, and where."""
        left, top, right, bottom = font.getbbox(text)
        image = Image.new("L", (right - left + 4, bottom - top + 4))
        ImageDraw.Draw(image).text((2 - left + part, 2 - top), text, font=font, fill=255)
        return image, left - 2, top - 2

    def write(pen, x, y, text, colour):
        covered, left, top = shape(text, x % 1)
        pen.bitmap((int(x) + left, y + top), covered, fill=colour)

    return write


def write_gif(path, canvas, trace, length, tokenizer, columns=72, max_frames=64, font=""):
    """An animated GIF of one sample's denoising, `columns` characters wide; prints what the font cannot draw."""
    from PIL import Image, ImageColor, ImageDraw

    font, has = load_font(font)
    write, wide, high = writer(font), font.getlength("m"), 20
    if any(len(event) > 4 for event in trace):
        canvas, trace, length = unfold(canvas, trace, length)
    every = frames(canvas, trace, tokenizer, length)
    last, before = len(every) - 1, []
    shown_frames = {round(i * last / max_frames) for i in range(max_frames)} | {last}
    drawn, height, made, new = [], 1, set(), set()
    for k, (now, revealed) in enumerate(every):
        made |= revealed.keys()
        new |= revealed.keys()
        if k in shown_frames:
            kinds = ["mask" if p is None else "given" if i not in made else "text" for i, p in enumerate(now)]
            if k < last:
                kinds = ["new" if i in new and kind == "text" else kind for i, kind in enumerate(kinds)]
                closing = {i for i, p in enumerate(now) if p == "" and i < len(before) and before[i] and i in new}
                kinds = ["gone" if i in closing else kind for i, kind in enumerate(kinds)]
                now, before = [before[i] if i in closing else p for i, p in enumerate(now)], now
            cells, count = layout([MASK if p is None else visible(p) for p in now], columns)
            drawn.append([(*cell[:3], kinds[cell[3]]) for cell in cells])
            height, new = max(height, count), set()
    lacking = sorted({c for frame in drawn for _, _, text, _ in frame for c in text if not has(c)})
    if lacking:
        what = f"{''.join(lacking[:20])} ({len(lacking)} characters)"
        print(f"warning: the font of the GIF cannot draw {what}; --font=FILE names one that can")
    colours = {"mask": "#4c566a", "given": "#8fbcbb", "new": "#a3be8c", "text": "#d8dee9", "gone": "#bf616a"}
    # One palette for all frames: each colour in eight steps from the background, for the letters' soft edges.
    background = ImageColor.getrgb("#16181d")
    palette = Image.new("P", (1, 1))
    shades = [(ImageColor.getrgb(c), i / 7) for c in colours.values() for i in range(8)]
    palette.putpalette([round(b + (f - b) * a) for colour, a in shades for f, b in zip(colour, background)])
    images = []
    for frame in drawn:
        image = Image.new("RGB", (int(wide * columns) + 32, high * height + 32), background)
        pen = ImageDraw.Draw(image)
        for line, column, text, kind in frame:
            write(pen, 16 + column * wide, 16 + line * high, text, colours[kind])
        images.append(image.quantize(palette=palette, dither=Image.Dither.NONE))
    times, content = [90] * (len(images) - 1) + [2500], io.BytesIO()
    images[0].save(content, "GIF", save_all=True, append_images=images[1:], duration=times, loop=0, optimize=True)
    replace_file(Path(path), content.getvalue())
