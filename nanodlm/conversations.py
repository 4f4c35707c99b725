"""Conversations: from a data set's records to token files; batches.py reads them.

    data/<name>/prepare.py   says where records come from; `records(streaming)` yields dicts
    record                   {"messages": [{"role", "content"}, …]}, or a question and its answer under the usual names
    token files              data/<name>/<digest>/: {train,val}.bin the ids of all conversations, .learn.bin which of
                             them are an answer's (uint8), .start.bin where each begins (int64), and meta.json

A conversation is written as the checkpoint's chat template writes it, turn by turn, so that what comes before an answer
is to the token what a sampler will be given. An answer's tokens, its end-of-turn included, are learnt; nothing else is.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import numpy as np

from nanodlm import corpus, hub, turns
from nanodlm import tokenizer as tokenizers
from nanodlm.bounds import Whole, check
from nanodlm.files import holding, holds, load_module

RECORDS = "def records("  # what a data/<name>/prepare.py of conversations has
VAL_ONE_IN = 50  # conversations, by a hash of their first question, so that no question is on both sides


@dataclass
class Options:
    learn: Literal["all", "last"] = "all"  # conversations: train on every answer, or on the last one only
    too_long: Literal["turns", "cut", "drop"] = "turns"  # beyond seq_len: keep the first turns that fit, cut, leave out
    fill: Whole | None = None  # end-of-text, learnt, behind a conversation to a multiple of this; 0: to the longest row
    # 1 adds none. Where nothing is said: 0, as LLaDA, or with packing 32; block_size (bd3lm); 1 (ar)
    packing: bool = False  # several conversations in a row, each with its own attention, positions and mask rate
    system: Literal["keep", "merge", "drop"] = "keep"  # system turns; merge: into the turn behind
    thoughts: Literal["auto", "learn", "drop", "empty"] = "auto"  # before </think> in answers; auto: as the checkpoint
    # has it. empty: dropped, and the template asks with an empty one, as Qwen3's for enable_thinking=False
    streaming: bool = False  # read records while training, for data larger than the disk

    def __post_init__(self):
        check(self)


# ------------------------------------------------------------------------------------------------------------------
# records


def messages_of(record):
    """A record as a list of {"role", "content"}; ValueError where it is none that we know."""
    if isinstance(record.get("messages", record.get("conversations")), list):
        turns = record.get("messages", record.get("conversations"))
        names = {"human": "user", "gpt": "assistant", "model": "assistant"}
        messages = []
        for turn in turns:
            turn = turn if isinstance(turn, dict) else {"content": turn}
            role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
            if not isinstance(role, str) or not isinstance(content, str):
                raise ValueError(f"the turn {str(turn)[:60]!r} needs a role and a content, both text")
            messages.append({"role": names.get(role, role), "content": content})
        return messages
    for question, answer in (
        ("question", "answer"),
        ("prompt", "response"),
        ("prompt", "completion"),
        ("instruction", "output"),
        ("instruction", "response"),
    ):
        if isinstance(record.get(question), str) and isinstance(record.get(answer), str):
            more = record.get("input") or ""
            asked = record[question] + ("\n\n" + more if more else "")
            return [{"role": "user", "content": asked}, {"role": "assistant", "content": record[answer]}]
    raise ValueError(
        f"a record has messages, or prompt and response (or the like), not {', '.join(record) or 'nothing'}"
    )


def jsonl(path):
    """The records of a JSONL file; exits naming the line that is none."""
    path = Path(path)
    if not path.is_file():
        sys.exit(f"there is no file {str(path)!r} with conversations")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError("it is no object in braces")
                messages_of(record)
            except ValueError as e:
                sys.exit(f"{path}, line {number}: {e}")
            yield record


def local_or_hub(here, name, *configs, streaming=False):
    """The records of train.jsonl beside a prepare.py, where there is one, or else of a data set on the hub, one of its
    configurations after the other."""
    file = Path(here) / "train.jsonl"
    if file.is_file():
        return jsonl(file)
    instead = f"put the records into data/{file.parent.name}/train.jsonl"
    tables = (hub.rows(name, config, streaming=streaming, instead=instead) for config in configs or (None,))
    return chain.from_iterable(tables)


def find_records(name, streaming=False):
    """(records, a text that changes when they do, their directory under data/) of a name under data/, or of a JSONL
    file."""
    if name.endswith(".jsonl"):
        return jsonl(name), file_digest(Path(name)), corpus.ROOT / "data" / "chat_jsonl"
    here = corpus.ROOT / "data" / name
    if not is_chat(here / "prepare.py"):
        known = [p.parent.name for p in holding(corpus.ROOT / "data", "*/prepare.py", RECORDS)]
        sys.exit(f"no conversations {name!r}: use a .jsonl file, or {', '.join(known)}")
    module = load_module(f"data.{name}.prepare", here / "prepare.py")
    local = here / "train.jsonl"
    return module.records(streaming), file_digest(local) if local.is_file() else "hub", here


def is_chat(prepare):
    return holds(prepare, RECORDS)


def file_digest(path):
    if not path.is_file():
        sys.exit(f"there is no file {str(path)!r} with conversations")
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while part := f.read(2**20):
            digest.update(part)
    return digest.hexdigest()[:16]


def holds_chat(dataset):
    """Whether `dataset` names conversations (and not running text)."""
    return all(
        name.endswith(".jsonl") or is_chat(corpus.ROOT / "data" / name / "prepare.py")
        for name, _ in parse_mixture(dataset)
    )


def parse_mixture(dataset):
    """[(name, weight or None)] of tulu3,smoltalk or tulu3:2,my.jsonl:1."""
    parts = []
    for word in dataset.split(","):
        name, colon, weight = word.strip().rpartition(":")
        try:
            parts.append((name, float(weight)) if colon else (weight, None))
        except ValueError:
            parts.append((word.strip(), None))
    if any(w is not None and not w > 0 for _, w in parts) or len({w is None for _, w in parts}) > 1:
        sys.exit(f"dataset={dataset!r}: give every source a positive weight, as in tulu3:2,smoltalk:1, or none")
    return parts


# ------------------------------------------------------------------------------------------------------------------
# a conversation in tokens


def settle_system(messages, system):
    """The messages with their system turn kept, merged into the turn behind it, or dropped."""
    if system == "keep" or not messages or messages[0]["role"] != "system":
        return messages
    first, rest = messages[0]["content"], messages[1:]
    if system == "merge" and rest:
        if rest[0]["role"] != "user":  # an answer is learnt, what it is told is not
            return [{"role": "user", "content": first}, *rest]
        rest = [{**rest[0], "content": f"{first}\n\n{rest[0]['content']}"}, *rest[1:]]
    return rest


def fit(ids, learn, room, options):
    """The conversation as the options want it, in `room` tokens; None where nothing to learn is left."""
    if len(ids) > room:
        if options.too_long == "drop":
            return None
        if options.too_long == "cut":
            ids, learn = ids[:room], learn[:room]
        else:  # behind the last answer that ends in time
            ends = np.flatnonzero(learn[:-1] & ~learn[1:]) + 1
            n = int(max(ends[ends <= room], default=0))
            ids, learn = ids[:n], learn[:n]
    if not learn.any():
        return None
    return ids, learn & (np.arange(len(learn)) > last_false(learn)) if options.learn == "last" else learn


def last_false(learn):
    """The last place in front of the last answer that is not learnt."""
    end = np.flatnonzero(learn)[-1]
    before = np.flatnonzero(~learn[:end])
    return before[-1] if len(before) else -1


def is_val(messages):
    asked = next((m["content"] for m in messages if m["role"] == "user"), "")
    return int.from_bytes(hashlib.sha256(asked.encode()).digest()[:8], "big") % VAL_ONE_IN == 0


def system_hint(error, messages):
    hint = "; use --system=merge or --system=drop" if messages and messages[0]["role"] == "system" else ""
    return f"the chat template refuses it: {hub.first_line(error)}{hint}"


# ------------------------------------------------------------------------------------------------------------------
# token files


def directory_of(name, tokenizer, system):
    """Where the token files of these records, this tokenizer and this treatment of system turns lie."""
    _, digest, home = find_records(name)
    content = [digest, tokenizer.spec, tokenizer.thoughts, system, VAL_ONE_IN]
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
    return home / key


def prepare(name, tokenizer, tokenizer_dir, system="keep", workers=None):
    """The directory with the token files of `name`, made where they are missing. Of several processes that want them,
    one makes them and the others wait."""
    from filelock import FileLock

    target = directory_of(name, tokenizer, system)
    if (target / "meta.json").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not (target / "meta.json").is_file():
            write(name, tokenizer, tokenizer_dir, target, system, workers)
    return target


work = {}  # of a worker process: its tokenizer and settings


def start_worker(tokenizer_dir, spec, thoughts, system):
    tokenizer = tokenizers.with_thoughts(tokenizers.load(spec, tokenizer_dir), thoughts)
    work.update(tokenizer=tokenizer, system=system)


def tokenize_record(numbered):
    """(split, ids, learn, bytes of the answers), or the reason why there is none."""
    number, record = numbered
    try:
        asked = messages_of(record)
    except ValueError as e:
        return f"fatal: conversation {number}: {e}"
    messages = settle_system(asked, work["system"])
    try:
        ids, learn = turns.tokenize(work["tokenizer"], messages)
    except ValueError as e:
        return str(e)
    except Exception as e:  # what jinja or a template raises
        return f"fatal: conversation {number}: {system_hint(e, messages)}"
    size = sum(len(m["content"].encode()) + 1 for m in messages if m["role"] == "assistant" and m["content"].strip())
    return "val" if is_val(asked) else "train", ids, learn, size


def write(name, tokenizer, tokenizer_dir, target, system, workers=None):
    """Make the token files; `target` appears whole or not at all."""
    from tqdm import tqdm

    if tokenizer.template is None:
        sys.exit(f"the tokenizer of {tokenizer_dir} has no chat template; convert_bert.py and convert_ar.py attach one")
    if tokenizer.eos_id is None:
        sys.exit(f"the tokenizer of {tokenizer_dir} has no end-of-text, which ends an answer; convert it first")
    records, digest, _ = find_records(name)
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    workers = max(1, (os.cpu_count() or 1) // 2) if workers is None else workers
    left_out, facts = Counter(), Counter()
    starts = {"train": [0], "val": [0]}
    files = {(s, k): (part / f"{s}{k}.bin").open("wb") for s in starts for k in ("", ".learn")}
    pool = None
    if workers > 1:
        keys = (str(tokenizer_dir), {"kind": tokenizer.spec["kind"]}, tokenizer.thoughts, system)
        pool = ProcessPoolExecutor(workers, get_context("spawn"), start_worker, keys)
    work.update(tokenizer=tokenizer, system=system)
    records = iter(enumerate(tqdm(records, desc=f"tokenizing {name}", disable=None), 1))
    try:
        while batch := list(islice(records, 64 * 256)):
            done = pool.map(tokenize_record, batch, chunksize=256) if pool else map(tokenize_record, batch)
            for found in done:
                if isinstance(found, str):
                    if found.startswith("fatal: "):
                        sys.exit(f"{name}, {found.removeprefix('fatal: ')}")
                    left_out[found] += 1
                    continue
                split, ids, learn, size = found
                files[split, ""].write(np.array(ids, dtype=corpus.token_dtype(tokenizer)).tobytes())
                files[split, ".learn"].write(np.array(learn, dtype=np.uint8).tobytes())
                starts[split].append(starts[split][-1] + len(ids))
                facts[f"{split}_bytes"] += size
                facts[f"{split}_learnt"] += sum(learn)
    finally:
        for file in files.values():
            file.close()
        if pool:
            pool.shutdown(cancel_futures=True)
    if len(starts["train"]) < 2:
        shutil.rmtree(part)
        reasons = "; ".join(f"{n} x {why}" for why, n in left_out.most_common(3))
        sys.exit(f"{name} has no conversation to learn from{': ' + reasons if reasons else ''}")
    for split, begin in starts.items():
        (part / f"{split}.start.bin").write_bytes(np.array(begin, dtype="<i8").tobytes())
        facts[f"{split}_conversations"] = len(begin) - 1
        facts[f"{split}_tokens"] = begin[-1]
    tokenizers.save_files(tokenizer.spec, tokenizer_dir, part)
    corpus.write_meta(part, tokenizer, name=name, source=digest, left_out=dict(left_out), **facts)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(part, target)
    print(f"{name}: {facts['train_conversations']:,} + {facts['val_conversations']:,} conversations, ", end="")
    print(f"{facts['train_tokens']:,} tokens, of which {facts['train_learnt']:,} are learnt: {target}")
    for why, n in left_out.most_common():
        print(f"  left out {n}: {why}")


def refuse(options, dataset):
    """Exit where an option of conversations is said of running text."""
    for f in fields(options):
        if getattr(options, f.name) != f.default:
            sys.exit(f"{f.name} is for conversations, and {dataset} is running text; leave it out")


def main(name, doc):
    """The command line that every data/<name>/prepare.py of conversations has."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="the checkpoint (directory or hub id) that will be trained")
    parser.add_argument(
        "--system", choices=["keep", "merge", "drop"], default="keep", help="what becomes of system turns"
    )
    parser.add_argument(
        "--thoughts",
        choices=["learn", "drop", "empty"],
        help="what becomes of answers' (default: as the checkpoint has it)",
    )
    parser.add_argument("--workers", type=int, help="processes (default: half of the cores)")
    if name == "chat_jsonl":
        parser.add_argument("--file", required=True, help="the JSONL file")
    args = parser.parse_args()

    from nanodlm import checkpoint as ckpt  # here: a worker needs no torch

    path = ckpt.find(args.tokenizer)
    source = args.file if name == "chat_jsonl" else name
    tokenizer = ckpt.tokenizer_of(path)
    tokenizer = tokenizers.with_thoughts(tokenizer, args.thoughts or tokenizer.thoughts)
    print(prepare(source, tokenizer, ckpt.files_of(path), args.system, args.workers))
