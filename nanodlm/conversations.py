"""Conversations: from records (records.py) to token files; batches.py reads them.

    token files              data/<name>/<digest>/: {train,val}.bin the ids of all conversations, .learn.bin which of
                             them are an answer's (uint8), .start.bin where each begins (int64), and meta.json

What is learnt of a conversation is decided in turns.py: the answers, their ends of turn included; nothing else.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import threading
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from itertools import chain, islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Literal

import numpy as np

from nanodlm import corpus, turns
from nanodlm import tokenizer as tokenizers
from nanodlm.bounds import Whole, check
from nanodlm.records import ENDINGS, Reasons, find_records, messages_of, numbered

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
    strict: bool = False  # stop at the first record that cannot be learnt from, instead of leaving it out
    streaming: bool = False  # read records while training, for data larger than the disk

    def __post_init__(self):
        check(self)


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


# ------------------------------------------------------------------------------------------------------------------
# token files

SOURCES = ("records", "turns", "text", "tokenizer", "conversations")  # rooms that decide what the files hold


def directory_of(name, tokenizer, system, strict=False):
    """Where the token files of these records lie, of this tokenizer and this treatment of system turns and thoughts,
    and behind a dash, as this code makes them."""
    _, digest, home = find_records(name)
    t = tokenizer
    content = [digest, t.spec, t.stop_ids, t.ends, t.eos_id, t.mask_id, t.thoughts, system, strict, VAL_ONE_IN]
    code = [Path(__file__).parent / f"{room}.py" for room in SOURCES] + [*home.glob("prepare.py")]
    parts = json.dumps(content).encode(), b"".join(path.read_bytes() for path in code)
    return home / "-".join(hashlib.sha256(part).hexdigest()[:n] for part, n in zip(parts, (12, 6)))


def prepare(name, tokenizer, tokenizer_dir, system="keep", workers=None, strict=False):
    """The directory with the token files of `name`, made where they are missing. Of several processes that want them,
    one makes them and the others wait."""
    from filelock import FileLock

    target = directory_of(name, tokenizer, system, strict)
    if (target / "meta.json").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not (target / "meta.json").is_file():
            if older := sorted(target.parent.glob(target.name.partition("-")[0] + "-??????/meta.json")):
                print(f"{name}: the code that makes its token files is another now; made again. Nobody needs ", end="")
                print(", ".join(str(meta.parent) for meta in older))
            write(name, tokenizer, tokenizer_dir, target, system, workers, strict)
    return target


work = {}  # of a worker process: its tokenizer and settings


def follow():
    """End with the process that started this one: where a signal has ended it, nobody else tells its workers, and they
    would wait for work for ever."""
    parent_process().join()
    os._exit(1)


def start_worker(tokenizer_dir, spec, thoughts, system):
    threading.Thread(target=follow, daemon=True).start()
    tokenizer = tokenizers.with_thoughts(tokenizers.load(spec, tokenizer_dir), thoughts)
    work.update(tokenizer=tokenizer, system=system)


def tokenize_records(found):
    """For each (where, record): (where, split, ids, learn, bytes of the answers, how many are not learnt), or (where,
    why there is none)."""
    said = [turns.attempt(messages_of, record) for _, record in found]
    good = [i for i, messages in enumerate(said) if not isinstance(messages, Exception)]
    settled = {i: settle_system(said[i], work["system"]) for i in good}
    for i, tokens in zip(good, turns.tokenize_all(work["tokenizer"], settled.values())):
        if isinstance(tokens, Exception):
            said[i] = tokens
            continue
        answers = [m["content"] for m in settled[i] if turns.is_answer(m)]
        size = sum(len(text.encode()) + 1 for text in answers)
        unlearnt = len(answers) - int(np.count_nonzero(np.diff(tokens[1], prepend=0) == 1))
        said[i] = "val" if is_val(said[i]) else "train", *tokens, size, unlearnt
    return [(where, *(s if isinstance(s, tuple) else [s])) for (where, _), s in zip(found, said)]


def write(name, tokenizer, tokenizer_dir, target, system, workers=None, strict=False):
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
    reasons, facts = Reasons(name, strict), Counter()
    starts = {"train": [0], "val": [0]}
    files = {(s, k): (part / f"{s}{k}.bin").open("wb") for s in starts for k in ("", ".learn")}
    pool = None
    if workers > 1:
        keys = (str(tokenizer_dir), {"kind": tokenizer.spec["kind"]}, tokenizer.thoughts, system)
        pool = ProcessPoolExecutor(workers, get_context("spawn"), start_worker, keys)
    work.update(tokenizer=tokenizer, system=system)
    records = numbered(name, tqdm(records, desc=f"tokenizing {name}", disable=None))
    try:
        while batch := list(islice(records, 64 * 256)):
            parts = [batch[i : i + 256] for i in range(0, len(batch), 256)]
            done = pool.map(tokenize_records, parts) if pool else map(tokenize_records, parts)
            for where, *found in chain.from_iterable(done):
                if len(found) == 1:
                    reasons.add(where, found[0])
                    continue
                split, ids, learn, size, unlearnt = found
                files[split, ""].write(np.array(ids, dtype=corpus.token_dtype(tokenizer)).tobytes())
                files[split, ".learn"].write(np.array(learn, dtype=np.uint8).tobytes())
                starts[split].append(starts[split][-1] + len(ids))
                facts.update({f"{split}_bytes": size, f"{split}_learnt": sum(learn), "unlearnt": unlearnt})
    finally:
        for file in files.values():
            file.close()
        if pool:
            pool.shutdown(cancel_futures=True)
    if len(starts["train"]) < 2:
        if len(starts["val"]) < 2:
            shutil.rmtree(part)
            reasons.nothing()
        print(f"{name}: what can be learnt from is all on the side of validation; it is trained on, and none held out")
        for k in ("", ".learn"):
            os.replace(part / f"val{k}.bin", part / f"train{k}.bin")
            (part / f"val{k}.bin").touch()
        starts = {"train": starts["val"], "val": [0]}
        facts.update({f"train_{k}": facts.pop(f"val_{k}") for k in ("bytes", "learnt")})
    for split, begin in starts.items():
        (part / f"{split}.start.bin").write_bytes(np.array(begin, dtype="<i8").tobytes())
        facts[f"{split}_conversations"] = len(begin) - 1
        facts[f"{split}_tokens"] = begin[-1]
    tokenizers.save_files(tokenizer.spec, tokenizer_dir, part)
    corpus.write_meta(part, tokenizer, name=name, source=digest, left_out=dict(reasons.counts), **facts)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(part, target)
    print(f"{name}: {facts['train_conversations']:,} + {facts['val_conversations']:,} conversations, ", end="")
    print(f"{facts['train_tokens']:,} tokens, of which {facts['train_learnt']:,} are learnt: {target}")
    if facts["unlearnt"]:
        why = "the chat template writes them otherwise, as without their thoughts, once more is said"
        print(f"  {facts['unlearnt']:,} answers are given and not learnt: {why}")
    for words in reasons.words():
        print(f"  {words}")


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
    parser.add_argument("--strict", action="store_true", help="stop at the first record that cannot be learnt from")
    if name == "chat_jsonl":
        parser.add_argument("--file", required=True, help=f"the file: {', '.join(ENDINGS)}")
    args = parser.parse_args()

    from nanodlm import checkpoint as ckpt  # here: a worker needs no torch

    path = ckpt.find(args.tokenizer)
    source = args.file if name == "chat_jsonl" else name
    tokenizer = tokenizers.with_thoughts(ckpt.tokenizer_of(path), args.thoughts or "auto")
    print(prepare(source, tokenizer, ckpt.files_of(path), args.system, args.workers, args.strict))
