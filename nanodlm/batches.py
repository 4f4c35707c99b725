"""What a training loop is given: windows of running text, or conversations.

Conversations are read in chunks of a few thousand. Each source gives its share by weight; the chunk is shuffled, and
packed if so wished. So mixtures are interleaved exactly, and the pair (chunk, row) says where a run stands in its data:
stored or streamed, it is all that resuming needs.
"""

import json
import math
import sys
from bisect import bisect_left, insort
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from nanodlm import corpus, counts, hub, turns
from nanodlm import tokenizer as tokenizers
from nanodlm.conversations import fit, is_val, prepare, settle_system
from nanodlm.records import LeftOut, Reasons, file_digest, find_records, is_file, messages_of, numbered, parse_mixture

CHUNK = 4096  # conversations that are shuffled and packed together


@dataclass
class Texts:
    """Which text each token of a batch belongs to, where rows hold several texts, or one and padding."""

    number: torch.Tensor  # int64 (B, L): of the text in the global batch, -1 for padding; each row's texts are in order
    position: torch.Tensor  # int64 (B, L): of the token in its text
    first: int  # number of the first text here
    count: int  # texts here
    total: int  # texts in the global batch
    length: int  # tokens of a text at most, the same for the whole run
    packed: bool  # several texts in a row

    def to(self, *where, **keys):
        number, position = (x.to(*where, **keys) for x in (self.number, self.position))
        return replace(self, number=number, position=position)

    def mask(self):
        """Who sees whom: bool (B, L), the real tokens; or with several texts in a row (B, L, L), each its own text."""
        if not self.packed:
            return self.number >= 0
        return self.number[:, :, None] == self.number[:, None, :]  # padding sees padding, or it would see nothing

    def positions(self):
        """What the network is given: None, which counts from the row's start, or those within each text."""
        return self.position if self.packed else None

    def apart(self, x):
        """x (B, L), a row for every text: (count, length), where what a text lacks is 0 or False."""
        rows = x.new_zeros(self.count * self.length + 1)
        return rows.index_put((self.index,), x.masked_fill(self.number < 0, 0))[:-1].view(self.count, self.length)

    def together(self, x):
        """The inverse of apart, for one or several copies below each other: (k count, length) to (k B, L)."""
        copies = F.pad(x.reshape(-1, self.count * self.length), (0, 1))
        return copies[:, self.index.to(x.device)].flatten(0, 1)

    def corrupt(self, rule, maskable, options, seed):
        """What rule (mdlm.corrupt, bd3lm.corrupt) hides and its weight for every token, both (B, L), where each text is
        a row of its own: its own time t, and the same tokens hidden whatever it shares its row with."""
        hidden, weight = rule(self.apart(maskable), options, seed, self.first, self.total)
        return self.together(hidden), self.together(weight.expand_as(hidden))

    @cached_property
    def index(self):
        inside = (self.number - self.first) * self.length + self.position
        return torch.where(self.number >= 0, inside, self.count * self.length)


class Stored:
    """Token files, in an order of its own for each pass over them."""

    def __init__(self, directory, split, room, options):
        self.meta = json.loads((directory / "meta.json").read_text())
        self.directory, self.split, self.room, self.options = directory, split, room, options
        self.start = np.fromfile(directory / f"{split}.start.bin", dtype="<i8")
        file = directory / f"{split}.learn.bin"
        learn = np.memmap(file, np.uint8, "r") if file.stat().st_size else np.zeros(0, np.uint8)
        self.lengths, self.learnt = counts.fitted(learn, self.start, room, options)
        self.index, self.orders = np.flatnonzero(self.lengths), {}
        self.left_out = len(self.lengths) - len(self.index)
        self.shortened = int((np.diff(self.start) > room).sum()) - self.left_out
        size, tokens = (sum(self.meta.get(f"{s}_{k}", 0) for s in ("train", "val")) for k in ("bytes", "learnt"))
        self.bytes_per_token = size / tokens  # of the answers as they were written, which a tokenizer may not give back

    def read(self, i):
        """(ids, learn) of conversation i, int64 and bool; read and not mapped, which takes several times as long."""
        begin, n, dtype = int(self.start[i]), int(self.start[i + 1] - self.start[i]), np.dtype(self.meta["dtype"])
        ids = np.fromfile(self.directory / f"{self.split}.bin", dtype, n, offset=begin * dtype.itemsize)
        learn = np.fromfile(self.directory / f"{self.split}.learn.bin", np.uint8, n, offset=begin)
        return fit(ids.astype(np.int64), learn.astype(bool), self.room, self.options)

    def take(self, first, n, seed):
        """Conversations first … first+n-1 of the sequence, as [(length, how to read it)]."""
        found = []
        for p in range(first, first + n):
            lap, place = divmod(p, len(self.index))
            if lap not in self.orders:
                self.orders = {lap: np.random.default_rng((seed, lap)).permutation(len(self.index))}
            i = int(self.index[self.orders[lap][place]])
            found.append((int(self.lengths[i]), (self, i)))
        return found


class Streamed:
    """Records tokenized as they come, in their own order, again from the start at the end.

    marks  {number of a conversation: how many records of its pass stand before it}, of those that chunks begin with: a
           resumed run does not tokenize these again; {-1: 1}: training has those of validation, as there are no others
    """

    def __init__(self, name, tokenizer, split, room, options):
        self.name, self.tokenizer, self.split, self.room, self.options = name, tokenizer, split, room, options
        self.place, self.records, self.marks, self.reasons = 0, None, {}, Reasons(name, options.strict)
        self.seen, self.begun, self.others = 0, 0, 0  # records, the place where the pass began, another split's

    def conversations(self, skip=0):
        """One pass over the records behind the first few."""
        found = numbered(self.name, find_records(self.name, streaming=True)[0])
        for self.seen, (where, record) in enumerate(found, 1):
            if self.seen > skip and (one := self.one(where, record)) is not None:
                yield one

    def one(self, where, record):  # (ids, learn); None where it is another split's, or left out
        try:
            asked = messages_of(record)
            if is_val(asked) != (self.split == "val") and not self.marks.get(-1):
                self.others += 1
                return None
            ids, learn = turns.tokenize(self.tokenizer, settle_system(asked, self.options.system))
        except (ValueError, RuntimeError) as e:
            return self.leave_out(where, e)
        found = fit(np.array(ids), np.array(learn), self.room, self.options)
        if found is None:
            return self.leave_out(where, LeftOut(f"it does not fit seq_len={self.room}", "or use too_long=cut"), True)
        return found

    def leave_out(self, where, why, wanted=False):
        if self.reasons.add(where, why, wanted) and self.split == "train":
            hub.say(f"{self.name}, {where}: left out, as others of its kind will be without a word: {why}")

    def take(self, first, n, seed):
        if self.records is None or first < self.place:
            self.place, self.seen = (first, self.marks[first]) if first in self.marks else (0, 0)
            self.records, self.begun = self.conversations(self.seen), -1 if self.seen else self.place
        found, marks = [], {-1: self.marks.get(-1, 0)}
        while self.place < first + n:
            marks |= {first: self.seen} if self.place == first else {}
            one = next(self.records, None)
            if one is None:
                if self.split == "val":  # all there are, once
                    return found
                if self.place == self.begun:
                    if not self.others or marks[-1]:
                        self.reasons.nothing()
                    marks[-1] = self.marks[-1] = 1
                    hub.say(f"{self.name}: what can be learnt from is all on the side of validation; it is trained on")
                self.seen, self.records, self.begun = 0, self.conversations(), self.place
                continue
            if self.place >= first:
                found.append((len(one[0]), one))
            self.place += 1
        self.marks = marks | {self.place: self.seen}
        return found


def read(item):
    """(ids, learn) of what a source's take() gave."""
    return item[0].read(item[1]) if isinstance(item[0], Stored) else item


def learnt_of(item):
    """The learnt tokens of what a source's take() gave; of a stored one it is not read."""
    return int(item[0].learnt[item[1]] if isinstance(item[0], Stored) else item[1].sum())


class Conversations:
    """The rows of a run, one global batch after the other; `state`, (chunk, row), is where the next one begins."""

    def __init__(self, dataset, tokenizer, tokenizer_dir, seq_len, options, seed, split="train"):
        self.parts = parse_mixture(dataset)
        o = self.options = options
        self.seq_len, self.seed = seq_len, seed
        if o.streaming:
            self.sources = [Streamed(name, tokenizer, split, seq_len, o) for name, _ in self.parts]
            shares = [1.0 if w is None else w for _, w in self.parts]
            self.conversations = None
        else:
            keys = dict(system=o.system, strict=o.strict)
            paths = [prepare(name, tokenizer, tokenizer_dir, **keys) for name, _ in self.parts]
            self.sources = [Stored(path, split, seq_len, o) for path in paths]
            for (name, _), source in zip(self.parts, self.sources):
                if split == "train" and not len(source.index):
                    sys.exit(f"no conversation of {name} fits seq_len={seq_len}; use a larger one, or too_long=cut")
            shares = [w or len(s.index) for (_, w), s in zip(self.parts, self.sources)]
            self.conversations = sum(len(s.index) for s in self.sources)
        self.shares = [x / max(sum(shares), 1e-9) for x in shares]
        self.chunk_size = min(CHUNK, self.conversations or CHUNK)
        self.at, self.planned = (0, 0), (None, None)

    @property
    def state(self):
        """(chunk, row), and the marks of sources that are streamed."""
        return *self.at, *(tuple(s.marks.items()) for s in self.sources if isinstance(s, Streamed))

    @state.setter
    def state(self, state):
        self.at = tuple(state[:2])
        for source, marks in zip(self.sources, state[2:]):
            source.marks = dict(marks)

    def rows(self, chunk):
        """The rows of a chunk, lists of (length, item): the sources' shares, shuffled, and packed."""
        if self.planned[0] != chunk:
            items = []
            for k, (source, share) in enumerate(zip(self.sources, self.shares)):
                first, end = (int(share * self.chunk_size * c + 1e-6) for c in (chunk, chunk + 1))
                items += source.take(first, end - first, self.seed + 1000 * k)
            order = np.random.default_rng((self.seed, chunk, 1)).permutation(len(items))
            items = [items[i] for i in order]
            rows = [[item] for item in items]
            if self.options.packing:
                sizes = [filled(n, self.options.fill or 1, self.seq_len) for n, _ in items]
                rows = [[items[i] for i in row] for row in pack(sizes, self.seq_len)]
                order = np.random.default_rng((self.seed, chunk, 2)).permutation(len(rows))
                rows = [rows[i] for i in order]
            self.planned = chunk, rows
        return self.planned[1]

    def summary(self):
        """One line on what is trained on, and what was left out."""
        shares = ", ".join(f"{name} {share:.0%}" for (name, _), share in zip(self.parts, self.shares))
        if self.conversations is None:
            return f"conversations, streamed: {shares}"
        out, short = (sum(getattr(x, k) for x in self.sources) for k in ("left_out", "shortened"))
        lost = f"; longer than seq_len={self.seq_len}: {out} left out, {short} shortened" if out or short else ""
        return f"{self.conversations:,} conversations: {shares}{lost}"

    def content(self):
        """Tells these data from others, with their shares: of stored ones by all that is learnt from, of a stream by
        its file, or its name."""
        words = []
        for (name, weight), source in zip(self.parts, self.sources):
            if isinstance(source, Stored):
                found = corpus.content(source.directory, [f"train{k}.bin" for k in ("", ".learn", ".start")])
            else:
                found = file_digest(Path(name)) if is_file(name) else name
            words.append(found + ("" if weight is None else f":{weight:g}"))
        return ",".join(words)

    def rows_per_pass(self):
        """Rows of one pass over all conversations."""
        if not self.options.packing:
            return self.conversations
        chunks = -(-self.conversations // self.chunk_size)
        rows = sum(len(self.rows(c)) for c in range(chunks))
        return round(rows * self.conversations / (chunks * self.chunk_size))

    def next(self, count):
        """The next `count` rows."""
        found, (chunk, row) = [], self.at
        while len(found) < count:
            rows = self.rows(chunk)[row : row + count - len(found)]
            found, row = found + rows, row + len(rows)
            if row == len(self.rows(chunk)):
                chunk, row = chunk + 1, 0
        self.at = chunk, row
        return found

    def some(self, count):
        """`count` conversations for evaluation, always the same, from every source its share."""
        if self.conversations is not None:
            count = min(count, self.conversations)
        found = []
        for source, share in zip(self.sources, self.shares):
            n = max(1, round(count * share))
            n = min(n, len(source.index)) if isinstance(source, Stored) else n
            found += [[item] for item in source.take(0, n, 0)] if n else []
        return found


def filled(n, fill, room):
    """Tokens of a conversation of n with the end-of-text behind it."""
    return min(-(-n // fill) * fill, room)


def batch(rows, first, count, options, eos_id, seq_len, width=None):
    """Rows first … first+count of the global batch `rows`, as numpy arrays (count, width): ids, learn, and the fields
    of batches.Texts as a dict.

    width  tokens of a row, for shapes that do not change; default: as many as the longest row here needs, or, where
           rows are filled up to the longest, the longest of the global batch"""
    longest = max(sum(n for n, _ in row) for row in rows)
    fill = options.fill or longest
    sizes = [[filled(n, fill, seq_len) for n, _ in row] for row in rows]
    here = slice(first, first + count)
    width = width or min(-(-max(map(sum, sizes[here])) // 64) * 64, seq_len)
    ids = np.full((count, width), eos_id, dtype=np.int64)
    learn = np.zeros((count, width), dtype=bool)
    number, position = np.full((count, width), -1, dtype=np.int64), np.zeros((count, width), dtype=np.int64)
    before = sum(len(row) for row in rows[:first])
    text = before
    for r, (row, size) in enumerate(zip(rows[here], sizes[here])):
        at = 0
        for (n, item), full in zip(row, size):
            ids[r, at : at + n], learn[r, at : at + n] = read(item)
            learn[r, at + n : at + full] = True  # end-of-text, which ids are full of
            number[r, at : at + full], position[r, at : at + full] = text, np.arange(full)
            text, at = text + 1, at + full
    keys = dict(first=before, count=text - before, total=sum(map(len, rows)), length=seq_len, packed=options.packing)
    return ids, learn, dict(number=number, position=position, **keys)


def learnt(rows, options, seq_len):
    """Learnt tokens of the whole global batch, end-of-text behind the answers included."""
    fill = options.fill or max(sum(n for n, _ in row) for row in rows)
    answers = sum(learnt_of(item) for row in rows for _, item in row)
    return answers + sum(filled(n, fill, seq_len) - n for row in rows for n, _ in row)


def bytes_per_token(rows, tokenizer):
    """Bytes of text per learnt token of these rows; every answer's end of turn counts as one byte. Stored ones take
    their source's ratio; of streamed ones, what the tokens decode to is counted."""
    size = tokens = 0
    for _, item in (one for row in rows for one in row):
        n = learnt_of(item)
        if isinstance(item[0], Stored):
            size += n * item[0].bytes_per_token
        else:
            size += len(tokenizer.decode(item[0][item[1]].tolist()).encode()) + int((np.diff(item[1] * 1) > 0).sum())
        tokens += n
    return size / max(tokens, 1)


def pack(sizes, room):
    """Rows of at most `room` tokens, lists of indices into `sizes`: best fit, the longest first."""
    rows, left = [], []  # left: sorted (room left, row)
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        at = bisect_left(left, (sizes[i],))
        if at == len(left):
            rows.append([i])
            rest, row = room - sizes[i], len(rows) - 1
        else:
            rest, row = left.pop(at)
            rows[row].append(i)
            rest -= sizes[i]
        insort(left, (rest, row))
    return rows


# ------------------------------------------------------------------------------------------------------------------
# what train.py is given: two objects with the same methods


def all_of(held, s):
    """What to say where fewer texts are held out than eval_windows asks for."""
    return [f"eval_windows = {len(held)}, all that are held out"] if len(held) < s.eval_windows else []


class Windows:
    """Windows of running text, or the rows of data made of rows: functions of (seed, iteration, row) alone."""

    def __init__(self, s, config, source, seq_len):
        self.name, self.seed, self.seq_len = s.dataset, s.seed, seq_len
        self.meta = meta = corpus.load_meta(s.dataset, "train", "val")
        self.tokenizer, self.files = corpus.load_tokenizer(s.dataset, meta), corpus.find(s.dataset)
        self.prompt_len, self.rows = meta.get("prompt_len", 0), meta.get("row_len")
        self.vocab_size = config.vocab_size or meta["vocab_size"]
        if self.vocab_size < meta["vocab_size"]:
            sys.exit(
                f"vocab_size={self.vocab_size} is below the {meta['vocab_size']} ids of {self.name}; leave it at 0"
            )
        if source and not tokenizers.alike(source.tokenizer, self.tokenizer):
            sys.exit(f"{source.path} has another tokenizer than {self.name}; their ids do not mean the same")
        if source:
            self.tokenizer, self.files = source.tokenizer, source.files
        if config.causal and self.tokenizer.mask_id is None and not self.prompt_len:
            sys.exit(
                f"{source.path} has no begin-of-text, so that nothing comes before a window's first token; give it "
                "conversations, or rows with a prompt_len"
            )
        if self.rows and self.rows != seq_len:
            sys.exit(f"seq_len={seq_len} does not fit the rows of {self.name}; use --seq_len={self.rows}")
        if not self.rows and len(corpus.load_tokens(self.name, "train", meta)) <= seq_len:
            sys.exit(f"the training text of {self.name} is shorter than one window of seq_len={seq_len} tokens")
        self.held = corpus.eval_windows(self.name, meta, seq_len, s.eval_windows)
        self.bytes_per_token, self.said, self.options = meta["bytes_per_token"], all_of(self.held, s), None

    def next(self, it, first, count, total):
        """Rows first…first+count of the `total` of iteration `it`: (x0, the loss's other arguments, learnt tokens and
        tokens of all the rows)."""
        tokens, L = corpus.load_tokens(self.name, "train", self.meta), self.seq_len
        starts = len(tokens) - (0 if self.rows else L - 1)
        index = np.random.default_rng((self.seed, it)).integers(starts, size=total)[first : first + count]
        x, maskable = self.checked(np.stack([tokens[i] if self.rows else tokens[i : i + L] for i in index]))
        return x, dict(maskable=maskable, shard=(first, total)), total * (L - self.prompt_len), total * L

    def held_out(self, first, count):
        """(x0, the bound's other arguments, tokens that are measured of each) of rows for evaluation."""
        x, maskable = self.checked(self.held[first : first + count])
        return x, dict(maskable=maskable, real=None), [self.seq_len - self.prompt_len] * len(x)

    def checked(self, ids):
        """int64 ids, and what of them is learnt."""
        try:
            corpus.check_ids(ids, self.tokenizer, self.name)
        except ValueError as e:
            sys.exit(f"{e}; prepare the data again")
        x = torch.from_numpy(ids.astype(np.int64))
        learnt = torch.arange(x.shape[1]) >= self.prompt_len
        return x, learnt.expand_as(x).contiguous() if self.prompt_len else None

    def amount(self, rows):
        return f"{rows * self.seq_len:,} tokens"

    def content(self):
        """Tells these data from others."""
        return corpus.content(self.name)

    def rows_per_pass(self):
        sys.exit("epochs counts passes over conversations; for running text use max_iters")

    def state(self, it):
        """Where the data stand before iteration `it`: nowhere, as windows are drawn."""


class Chats:
    """Conversations, of which the answers are learnt, in rows of their own or packed; one after the other."""

    def __init__(self, s, options, source, config, seq_len, sizes, fixed):
        """sizes: of the blocks that the rows are cut into; fixed: rows of one width, for a compiled network."""
        self.options = o = self.settled(s, options, source, config.causal, sizes)
        self.tokenizer = tokenizers.with_thoughts(source.tokenizer, o.thoughts)
        self.files, self.vocab_size = source.files, config.vocab_size
        self.seq_len, self.fixed, self.taken = seq_len, fixed, {}
        given = s.dataset, self.tokenizer, self.files, seq_len
        self.source, self.alone = Conversations(*given, o, s.seed), replace(o, packing=False)
        self.held = Conversations(*given, self.alone, s.seed, "val").some(s.eval_windows)
        self.said = [self.source.summary(), *all_of(self.held, s)]
        if not self.held:  # a small file may have none
            instead = "no conversation of {} is left for validation, which is of training conversations instead"
            self.said.append(instead.format(s.dataset))
            self.held = Conversations(*given, self.alone, s.seed).some(s.eval_windows)
        self.content, self.rows_per_pass = self.source.content, self.source.rows_per_pass

    def amount(self, rows):
        return f"{rows} rows"

    @property
    def bytes_per_token(self):
        return bytes_per_token(self.held, self.tokenizer)

    def settled(self, s, options, source, causal, sizes):
        """The options, with `fill` as it is meant where nobody says it."""
        if source is None:
            sys.exit(f"{s.dataset} are conversations, which need a checkpoint's chat template: give one as init_from")
        if source.tokenizer.template is None:
            sys.exit(f"{source.path} has no chat template; convert_bert.py and convert_ar.py attach one")
        if options.fill is None:
            fill = 1 if causal and not any(sizes) else math.lcm(*sizes) or (32 if options.packing else 0)
            options = replace(options, fill=fill)
        for size in sizes:
            if size and (options.fill == 0 or options.fill % size):
                sys.exit(
                    f"fill={options.fill} is no multiple of block_size={size}: every answer ends with a whole block"
                )
        if options.packing and not options.fill:
            sys.exit("fill=0 fills rows with end-of-text, which packing fills with conversations; use fill=32, or 1")
        if s.epochs and options.streaming:
            sys.exit("epochs: nobody knows how long a stream is; use max_iters")
        return options

    def next(self, it, first, count, total):
        if self.taken.get("it") != it:
            self.taken = dict(it=it, state=self.source.state, rows=self.source.next(total))
            self.taken["learnt"] = learnt(self.taken["rows"], self.options, self.seq_len)
        rows, fixed = self.taken["rows"], self.fixed or self.options.packing
        x, maskable, texts = self.batch(rows, first, count, self.options, fixed)
        return x, dict(maskable=maskable, texts=texts), self.taken["learnt"], sum(n for row in rows for n, _ in row)

    def held_out(self, first, count):
        """As Windows'. The end-of-text behind an answer is part of what is measured, but not a token more."""
        x, maskable, texts = self.batch(self.held, first, count, self.alone, self.fixed)
        lengths = [learnt_of(row[0][1]) for row in self.held[first : first + count]]
        return x, dict(maskable=maskable, real=texts.number >= 0), lengths

    def batch(self, rows, first, count, options, fixed):
        width = self.seq_len if fixed else None
        ids, learn, texts = batch(rows, first, count, options, self.tokenizer.eos_id, self.seq_len, width)
        number, position = (torch.from_numpy(texts.pop(k)) for k in ("number", "position"))
        return torch.from_numpy(ids), torch.from_numpy(learn), Texts(number, position, **texts)

    def state(self, it):
        return self.taken["state"] if self.taken.get("it") == it else self.source.state
