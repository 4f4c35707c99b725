"""Records of conversations: from files and data sets to lists of messages.

    source    a name under data/, whose prepare.py has records(streaming), or a file: .jsonl, .jsonl.gz, .json (an
              array), .parquet or .csv
    record    {"messages": [{"role", "content"}, …]}, or a question and its answer under one of the usual names

A file that cannot be read as what its name says (not there, empty, no array, no table) is a wrong file, and ends the
run with one sentence. A line or a record in which there is no conversation is a bad record: it is left out, counted by
its kind, and shown with one example; where everything is bad, or with strict=true, the first one ends the run.
"""

import csv
import gzip
import hashlib
import json
import sys
import zlib
from collections import Counter
from itertools import chain
from pathlib import Path

from nanodlm import corpus, hub
from nanodlm.files import holding, holds, load_module

RECORDS = "def records("  # what a data/<name>/prepare.py of conversations has
ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".parquet", ".csv")
ROLES = {"human": "user", "prompter": "user", "developer": "system"}
ROLES |= dict.fromkeys(("gpt", "model", "bot", "chatgpt", "ai"), "assistant")
TOOLS = ("tool", "function", "tool_call", "tool_response", "observation", "ipython")
PAIRS = [("question", "answer"), ("prompt", "response"), ("prompt", "completion"), ("instruction", "output")]
PAIRS += [("instruction", "response")]


class LeftOut(ValueError):
    """A conversation cannot be learnt from, because of what it is. `kind`: in words that all of a kind share; `detail`:
    what it is here, or what to change."""

    def __init__(self, kind, detail=""):
        super().__init__(kind, detail)
        self.kind, self.detail = kind, detail

    def __str__(self):
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


class Reasons:
    """Why records are left out: counted by kind, and shown with the first one of each."""

    def __init__(self, name, strict=False):
        self.name, self.strict, self.counts, self.first = name, strict, Counter(), {}

    def add(self, where, error, wanted=False):
        """Whether it is the first of its kind. Exits where it is no property of the conversation, or where nothing may
        be left out, unless another option wants it to be (`wanted`)."""
        if not isinstance(error, LeftOut) or self.strict and not wanted:
            sys.exit(f"{self.name}, {where}: {error}")
        self.counts[error.kind] += 1
        self.first.setdefault(error.kind, f"{where}{': ' if error.detail else ''}{error.detail}")
        return self.counts[error.kind] == 1

    def words(self):
        return [f"{n} left out: {kind} ({self.first[kind]})" for kind, n in self.counts.most_common()]

    def nothing(self, what="conversation"):
        """Exit: there was no other."""
        sys.exit(f"{self.name} has no {what} to learn from" + "".join(f"; {words}" for words in self.words()))


# ------------------------------------------------------------------------------------------------------------------
# a record


def messages_of(record):
    """A record as a list of {"role", "content"}; raises LeftOut where it is none that we know."""
    if isinstance(record, LeftOut):  # as which a line is read that holds no record
        raise record
    found = next((record[k] for k in ("messages", "conversations") if record.get(k) is not None), None)
    if isinstance(found, list):
        return [message(turn) for turn in found]
    for question, answer in PAIRS:
        asked, said = record.get(question), record.get(answer)
        if asked is None or said is None:
            continue
        for key in (question, answer):
            if not isinstance(record[key], list | str):
                raise LeftOut(f"its {key} is no text", f"{str(record[key])[:60]}; write it as a text")
        asked = [message(turn) for turn in asked] if isinstance(asked, list) else [user(asked, record.get("input"))]
        said = said if isinstance(said, list) else [{"role": "assistant", "content": said}]  # TRL has lists of both
        return [*asked, *map(message, said)]
    if found is not None:
        raise LeftOut("its messages are no list", str(found)[:60])
    there = ", ".join(k for k, v in record.items() if v is not None) or "nothing"
    raise LeftOut("it has no messages, nor prompt and response (or the like)", f"there is {there}")


def user(asked, more):
    """A question, with the input that it is about."""
    if isinstance(more, int | float):  # not a number is how tables say that there is none
        more = None if more != more else json.dumps(more)
    if more is not None and not isinstance(more, str):
        raise LeftOut("its input is no text", f"{str(more)[:60]}; write it as a text")
    return message({"role": "user", "content": asked + ("\n\n" + more if more else "")})


def message(turn):
    turn = turn if isinstance(turn, dict) else {"content": turn}
    role, content = turn.get("role") or turn.get("from"), turn.get("content")
    content, said = turn.get("value") if content is None else content, str(turn)[:60]
    if not isinstance(role, str):
        raise LeftOut("a turn has no role", said)
    if role.lower() in TOOLS or turn.get("tool_calls") or turn.get("function_call"):
        raise LeftOut("a turn calls a tool, or is a tool's answer", "tools are not supported; leave such turns out")
    if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
        content = "".join(part["text"] for part in content)
    if content is None:
        raise LeftOut("a turn has no content", said)
    if not isinstance(content, str):
        raise LeftOut("a turn's content is no text", said)
    thought = next((turn[k] for k in ("reasoning_content", "thinking") if isinstance(turn.get(k), str)), "")
    content = f"<think>\n{thought}\n</think>\n\n{content}" if thought else content
    try:
        (role + content).encode()
    except UnicodeEncodeError:
        raise LeftOut("a text holds half a character", f"a lone surrogate, in {ascii(said)}") from None
    if "\0" in role + content:
        raise LeftOut("a text holds null bytes", f"it may be no text, {ascii(said)}")
    return {
        "role": ROLES.get(role.lower(), role.lower() if role.lower() in ROLES.values() else role),
        "content": content,
    }


# ------------------------------------------------------------------------------------------------------------------
# files


def is_file(name):
    return name.lower().endswith(ENDINGS)


def read(path):
    """The records of a file, in order; a LeftOut in place of one that cannot be read."""
    path = Path(path).expanduser()
    if not path.is_file():
        sys.exit(f"there is no file {str(path)!r} with conversations")
    if not path.stat().st_size:
        sys.exit(f"{path} is empty; it should hold conversations")
    how = {".parquet": parquet, ".csv": table, ".json": array}.get(path.suffix.lower(), lines)
    try:
        yield from how(path)
    except LeftOut as e:
        sys.exit(f"{path}: {e}")


def lines(path):
    """Of a JSONL file: one for each line, empty ones too, so that numbers are those of an editor. LeftOut where it
    cannot be read on."""
    with (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rb") as file:
        try:
            for number, line in enumerate(file, 1):
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line  # a mark of its bytes
                yield record_of(line) if line.strip() else None
        except (OSError, EOFError, zlib.error) as e:  # no gzip, or not all of it
            raise LeftOut("it cannot be read", hub.first_line(e)) from None


def record_of(line):
    try:
        record = json.loads(line.decode())  # of bytes, it would guess that some are UTF-16
    except UnicodeDecodeError as e:
        return LeftOut("it is not UTF-8", f"byte {e.start} of the line; save the file as UTF-8")
    except (ValueError, RecursionError) as e:
        return LeftOut("it is no JSON", hub.first_line(e))
    return record if isinstance(record, dict) else LeftOut("it is no object in braces", ascii(record)[:60])


def array(path):
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as e:
        sys.exit(f"{path} is no JSON ({hub.first_line(e)}); with a record in each line it is to be called .jsonl")
    if not isinstance(found, list):
        sys.exit(f"{path} holds no array of records in brackets; with a record in each line it is to be called .jsonl")
    yield from (x if isinstance(x, dict) else LeftOut("it is no object in braces", ascii(x)[:60]) for x in found)


def table(path):
    csv.field_size_limit(2**30)
    many = LeftOut("it has more columns than the first line", "a text with a comma stands in quotation marks")
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            found = csv.DictReader(file, strict=True)  # or a quotation mark too few would swallow what follows
            names = found.fieldnames or []
            if twice := [n for n in names if n and names.count(n) > 1]:
                sys.exit(f"{path} has several columns {twice[0]!r}; give each a name of its own")
            line = 1 + found.line_num
            for record in found:
                line = 1 + found.line_num
                yield many if any(record.pop(None, ())) else record
    except (UnicodeDecodeError, csv.Error) as e:
        sys.exit(f"{path} is no CSV in UTF-8, from line {line} on: {hub.first_line(e)}")


def parquet(path):
    import pyarrow.parquet

    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(1024):
            yield from batch.to_pylist()
    except Exception as e:  # whatever pyarrow raises
        raise LeftOut("it is no Parquet file", hub.first_line(e)) from None


def numbered(name, records):
    """(where a record is, the record), without empty lines."""
    word = "line" if ".jsonl" in Path(name).name.lower() else "record"
    return ((f"{word} {i}", record) for i, record in enumerate(records, 1) if record is not None)


# ------------------------------------------------------------------------------------------------------------------
# sources


def local_or_hub(here, name, *configs, streaming=False):
    """The records of train.jsonl beside a prepare.py, where there is one, or else of a data set on the hub, one of its
    configurations after the other."""
    file = Path(here) / "train.jsonl"
    if file.is_file():
        return read(file)
    instead = f"put the records into data/{file.parent.name}/train.jsonl"
    tables = (hub.rows(name, config, streaming=streaming, instead=instead) for config in configs or (None,))
    return chain.from_iterable(tables)


def find_records(name, streaming=False):
    """(records, a text that changes when they do, their directory under data/) of a name under data/, or of a file."""
    if is_file(name):
        return read(name), file_digest(Path(name)), corpus.ROOT / "data" / "chat_jsonl"
    here = corpus.ROOT / "data" / name
    if not is_chat(here / "prepare.py"):
        known = [p.parent.name for p in holding(corpus.ROOT / "data", "*/prepare.py", RECORDS)]
        sys.exit(f"no conversations {name!r}: use a {', '.join(ENDINGS[:-1])} or .csv file, or {', '.join(known)}")
    module = load_module(f"data.{name}.prepare", here / "prepare.py")
    local = here / "train.jsonl"
    return module.records(streaming), file_digest(local) if local.is_file() else "hub", here


def is_chat(prepare):
    return holds(prepare, RECORDS)


def file_digest(path):
    path = path.expanduser()
    if not path.is_file():
        sys.exit(f"there is no file {str(path)!r} with conversations")
    digest = hashlib.sha256()
    try:
        with path.open("rb") as f:
            while part := f.read(2**20):
                digest.update(part)
    except OSError as e:
        sys.exit(f"{path} cannot be read: {e.strerror}")
    return digest.hexdigest()[:16]


def holds_chat(dataset):
    """Whether `dataset` names conversations (and not running text)."""
    names = [name for name, _ in parse_mixture(dataset)]
    return all(is_file(name) or is_chat(corpus.ROOT / "data" / name / "prepare.py") for name in names)


def parse_mixture(dataset):
    """[(name, weight or None)] of tulu3,smoltalk or tulu3:2,my.jsonl:1."""
    parts = []
    for word in dataset.split(","):
        name, colon, weight = word.strip().rpartition(":")
        try:
            parts.append((name, float(weight)) if colon else (weight, None))
        except ValueError:
            parts.append((word.strip(), None))
    if any(w is not None and not corpus.is_positive(w) for _, w in parts) or len({w is None for _, w in parts}) > 1:
        sys.exit(f"dataset={dataset!r}: give every source a positive weight, as in tulu3:2,smoltalk:1, or none")
    return parts
