r"""zeroshot: the seven texts on which diffusion models trained on OpenWebText are compared (MDLM, arXiv 2406.07524;
BD3-LM, 2503.09573; Duo, 2506.10892): wikitext, ptb, lm1b, lambada, ag_news, arxiv and pubmed, detokenized.

Needs `pip install datasets tiktoken`. Nothing but the tokens is stored.

    python data/zeroshot/prepare.py ptb                             GPT-2's tokens, windows of 1024, as in those papers
    python data/zeroshot/prepare.py all --checkpoint=out/my_run     a checkpoint's tokenizer and window
    python data/zeroshot/prepare.py lm1b --seq_len=128 --packing=documents
    python data/zeroshot/prepare.py wikitext --source=FILE_OR_DIRECTORY     a local copy: jsonl, txt or parquet
    python eval.py --checkpoint=out/my_run --dataset=zeroshot/ptb --windows=100000

How a text is cut changes its perplexity (LM1B: by 4.8, packed or not); "policy" in meta.json says it in words.

    --packing=wrap        documents joined with nothing between them, in windows of begin-of-text, seq_len - 2 tokens
                          and end-of-text. So Duo's appendix C.6 has it, and the scripts of Duo and BD3-LM that
                          measure MDLM and their own models (insert_valid_eos=False)
    --packing=wrap_eos    the same with an end-of-text behind each document: what MDLM's released dataloader.py does
    --packing=documents   a document a row, between begin- and end-of-text, cut at seq_len: MDLM's "unwrapped" LM1B,
                          but that its network sees the padding behind a text, and ours does not
    --packing=stream      documents joined with end-of-text, in windows without begin-of-text: nanoDLM's other numbers

Their attention mask of a wrapped window is all ones, and its sum divides the loss (MDLM's dataloader._group_texts,
diffusion._loss): begin- and end-of-text count like any token. An autoregressive model there is not asked for the first
token; for that, and for GPT-2 itself, which cannot be asked, there is --begin=given. The last tokens, less than a
window, are dropped. They drop such a rest in every 1000 documents of every process, so their windows are other ones.

Bits per byte are of the detokenized text. An end-of-text between documents counts as one byte, as everywhere here; the
tokens that begin and end a window are no text; a document that is cut counts by the share of its tokens.
"""

import argparse
import difflib
import json
import re
import sys
from array import array
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from nanodlm import console, corpus, hub, tokenizer  # noqa: E402
from nanodlm.files import check_directory, replace_file  # noqa: E402

# Detokenizers: (regex, replacement), one after the other. They do what MDLM's do, oddities included: two stops in a row
# keep a space, apostrophes pair up as quotes.


def spaced(marks):
    return [(rf" {re.escape(m)} ", f"{m} ") for m in marks]


def stripped(a, b):
    """Spaces go at both ends inside a pair."""
    return rf"{re.escape(a)}([^{re.escape(b)}]*){re.escape(b)}", lambda m: a + m[1].strip() + b


def closed(a, b):
    """A space goes at either end inside a pair, where both have one."""
    return rf"{re.escape(a)} ([^{re.escape(a + b)}]+) {re.escape(b)}", rf"{a}\1{b}"


WIKITEXT = [("s '", "s'"), (" @-@ ", "-"), (" @,@ ", ","), (r" @\.@ ", "."), *spaced(":;.!?,")]
WIKITEXT += [*(stripped(*pair) for pair in ("()", "[]", "{}", '""', "''")), ("= = = =", "===="), ("= = =", "===")]
WIKITEXT += [("= =", "=="), (" ° ", "°"), (" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s")]
PTB = [(" 's", "'s"), ("s ' ", "s' "), (" n't", "n't"), (" \n ", "\n"), (r"\\/", "/")]
PTB += [("(?<= )N(?= )", "1"), (r"([$#]) 1", r"\g<1>1"), ("<unk>", "?")]  # N is any number
LM1B = [("(https?) : / / ", r"\1://"), (r" '(\w+)", r"'\1"), (r" (\w+) \. ", r" \1. "), (r" (\w+) \.$", r" \1.")]
LM1B += [*spaced("?"), (r" \?$", "?"), *spaced("!"), (" !$", "!"), *spaced(",:;"), (" / ", "/")]
LM1B += [*(closed(*pair) for pair in ('""', "''", "()", "[]")), (r"\$ ", "$"), ("£ ", "£")]
LAMBADA = [("[“”]", '"'), (r"\s+\Z", ""), (r"\A\s*", "\n")]

# Files on the hub, split, field, detokenizer and rows; but for the files as in MDLM's dataloader.py. Scripts made ptb,
# lm1b, arxiv and pubmed, and `datasets` no longer runs those; the hub's conversions to parquet are read instead. All
# files were seen on the hub's pages or in others' code but AG News', whose name is from memory, as are most numbers of
# rows; arxiv's conversion is called partial, for its training split: another number of rows than this is told.
# WikiText-2 and -103 have one validation text. AG News passes WikiText's and LM1B's detokenizers in Duo's words, and
# none in the code of MDLM, BD3-LM and Duo: here none.
PARQUET = "@refs/convert/parquet"
PAPERS, LM = f"armanc/scientific_papers{PARQUET}", f"billion-word-benchmark/lm1b{PARQUET}"
WIKI = ("Salesforce/wikitext", "wikitext-2-raw-v1/validation-*.parquet")
TREEBANK = (f"ptb-text-only/ptb_text_only{PARQUET}", "*/validation/*.parquet")
SOURCES = {
    "wikitext": (WIKI, "validation", "text", WIKITEXT, 3760),
    "ptb": (TREEBANK, "validation", "sentence", PTB, 3370),
    "lm1b": ((LM, "plain_text/test/*.parquet"), "test", "text", LM1B, 306688),
    "lambada": (("EleutherAI/lambada_openai", "data/lambada_test.jsonl"), "test", "text", LAMBADA, 5153),
    "ag_news": (("fancyzhx/ag_news", "data/test-*.parquet"), "test", "text", [], 7600),
    "arxiv": ((PAPERS, "arxiv/*validation/*.parquet"), "validation", "article", WIKITEXT + LM1B, 6436),
    "pubmed": ((PAPERS, "pubmed/*validation/*.parquet"), "validation", "article", WIKITEXT + LM1B, 6633),
}

WINDOWS = "in windows of begin-of-text, {} tokens and end-of-text"
PACKINGS = {
    "wrap": f"documents joined with nothing between them, {WINDOWS}",
    "wrap_eos": f"documents joined with end-of-text, {WINDOWS}",
    "documents": "a document a row: begin-of-text, at most {} tokens, end-of-text",
    "stream": "documents joined with end-of-text, in windows without begin-of-text",
}
BEGIN = {"counted": "begin-of-text counts, too", "given": "begin-of-text is given"}


def detokenize(text, rules):
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


def read_parquet(file):
    import pyarrow.parquet

    for batch in pyarrow.parquet.ParquetFile(file).iter_batches(1000):
        yield from batch.to_pylist()


READERS = {
    ".parquet": read_parquet,
    ".jsonl": lambda file: (json.loads(line) for line in file.open("rb") if line.strip()),
    ".txt": lambda file: file.open(encoding="utf-8", newline="\n"),
    ".raw": lambda file: file.open(encoding="utf-8", newline="\n"),  # WikiText's own
}


def rows_of(name, source):
    """The rows of a data set: of the hub, or of a file or a directory's files, those of its split if they say so."""
    (repository, wanted), split = SOURCES[name][:2]
    if not source:
        instead = "pass a copy with --source=FILE_OR_DIRECTORY"
        yield from hub.rows(repository, files=wanted, streaming=True, instead=instead)
        return
    files = [source] if source.is_file() else sorted(source.rglob("*"))
    files = [f for f in files if f.is_file() and f.suffix in READERS and not f.name.startswith(".")]
    files = [f for f in files if split[:5] in str(f.relative_to(source))] or files  # wiki.valid.raw, validation-*
    if not files:
        sys.exit(f"--source={source} is no file, and no directory of files, that end in {', '.join(READERS)}")
    for file in files:
        try:
            yield from READERS[file.suffix](file)
        except (ValueError, OSError) as e:  # pyarrow's, too
            sys.exit(f"{file} cannot be read: {e}")


def text_of(row, name):
    """A row's text, detokenized; of a text file's lines only WikiText's keep their end, as on the hub."""
    field, rules = SOURCES[name][2:4]
    if isinstance(row, str):
        row = {"text": row if name == "wikitext" and row.strip() else row.strip()}
    text = row.get(field, row.get("text")) if isinstance(row, dict) else None
    if not isinstance(text, str):
        sys.exit(f"a row of {name} has a text under {field!r}, not {str(row)[:80]!r}")
    return detokenize(text, rules)


def tokenize(texts, tok, packing, room, end):
    """All ids one after the other, and for each document how many there are, and of how many bytes."""
    ids, counts, sizes = array("I"), [], []
    for text in texts:
        new, size, behind = corpus.encode(tok, text), len(text.encode()), {"wrap_eos": end, "stream": (tok.eos_id,)}
        if packing in ("documents", "stream") and not text.strip():
            new, size, behind = [], 0, {}  # WikiText's empty lines
        if packing == "documents" and len(new) > room:
            new, size = new[:room], size * room / len(new)
        new = [*new, *behind.get(packing, ())]
        ids.extend(new)
        counts.append(len(new))
        sizes.append(size + (packing in behind))
    return np.array(ids, dtype=np.int64), np.array(counts, dtype=np.int64), np.array(sizes, dtype=np.float64)


def lay_out(ids, counts, sizes, packing, room, begin, end):
    """A packing's rows (N, seq_len), how many tokens of each are no padding (N,), and how many bytes they hold."""
    frame, starts = len(begin) + len(end), np.cumsum(counts) - counts
    if packing == "documents":
        rows = np.full((len(counts), room + frame), end[-1])
        for row, start, n in zip(rows, starts, counts):
            row[: n + frame] = [*begin, *ids[start : start + n], *end]
        return rows[counts > 0], counts[counts > 0] + frame, sizes.sum()
    n = len(ids) // room
    left, right = (np.tile(np.array(part, dtype=np.int64), (n, 1)) for part in (begin, end))
    rows = np.hstack([left, ids[: n * room].reshape(n, room), right])
    inside = np.clip((n * room - starts) / np.maximum(counts, 1), 0, 1)
    return rows, np.full(n, room + frame), (sizes * inside).sum()


def prepare(name, tok, files, args):
    """Write one data set; the tokenizer's files are in the directory `files`."""
    begin, end = (part or (tok.eos_id,) for part in tok.frame)
    room = args.seq_len - len(begin) - len(end)
    if None in (tok.eos_id, *begin, *end):
        sys.exit("this tokenizer has no end-of-text to put around texts")
    if room < 1:
        sys.exit(f"seq_len={args.seq_len} has no room for a token between begin- and end-of-text")
    count = SOURCES[name][4]
    rows = tqdm(islice(rows_of(name, args.source), args.max_documents), name, args.max_documents or count, disable=None)
    try:
        ids, counts, sizes = tokenize((text_of(row, name) for row in rows), tok, args.packing, room, end)
    except ValueError as e:  # a character that a vocabulary of characters lacks
        sys.exit(f"{name}: {e}")
    if not args.max_documents and len(counts) != count:
        print(f"warning: {name} has {len(counts):,} rows here and {count:,} as published")
    source = str(args.source or "/".join(SOURCES[name][0]))
    facts = {"source": source, "documents": len(counts), "packing": args.packing}
    val, counted, size, policy = ids, len(ids), sizes.sum(), PACKINGS[args.packing].format(room)
    if args.packing != "stream":
        val, lengths, size = lay_out(ids, counts, sizes, args.packing, room, begin, end)
        given = len(begin) if args.begin == "given" else 0
        counted, policy = int(lengths.sum()) - given * len(val), f"{policy}; {BEGIN[args.begin]}"
        facts |= {"row_len": args.seq_len, "prompt_len": given, "padded": args.packing == "documents"}
    if not val.size:
        sys.exit(f"{name} has {len(ids)} tokens, less than a window of seq_len={args.seq_len}")
    facts |= {"policy": policy, "bytes_per_token": float(size / counted)}

    out = args.out / name
    out.mkdir(parents=True, exist_ok=True)
    (out / "meta.json").unlink(missing_ok=True)  # it describes the old files
    tokenizer.save_files(tok.spec, files, out)
    (out / "val.length.bin").unlink(missing_ok=True)
    if facts.get("padded"):
        replace_file(out / "val.length.bin", lengths.astype("<i8").tobytes())
    corpus.write_dataset(out, tok, {"val": val}, **facts)
    print(f"{name}: {counted:,} tokens of {facts['bytes_per_token']:.3f} bytes; {policy}: {out}")


def window(path):
    """Tokens of a checkpoint's windows, as in eval.py; of a released one's, 1024 if it reads as many."""
    facts = json.loads((path / "config.json").read_text(encoding="utf-8"))
    context = facts.get("model", {}).get("seq_len") or facts.get("n_positions") or facts.get("max_position_embeddings")
    trained = facts.get("nanodlm", facts).get("seq_len") or (context if "model" in facts else 1024)
    return min(trained, context or trained)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help=f"{', '.join(SOURCES)} or all")
    parser.add_argument("--checkpoint", help="directory or hub id whose tokenizer to take (default: GPT-2's)")
    parser.add_argument("--packing", choices=PACKINGS, default="wrap", help="see above (default: wrap)")
    parser.add_argument("--begin", choices=BEGIN, default="counted", help="is begin-of-text predicted? (default: yes)")
    parser.add_argument("--seq_len", type=int, help="tokens of a window (default: the checkpoint's, or 1024)")
    parser.add_argument(
        "--source", type=Path, help="a local copy: a jsonl, txt or parquet file, or a directory of them"
    )
    parser.add_argument("--max_documents", type=int, help="read no more rows than this")
    parser.add_argument("--out", type=Path, default=HERE, help="NAME/ in it is written (default: beside this script)")
    args = parser.parse_args()
    check_directory(args.out, "out")
    if args.name not in [*SOURCES, "all"]:
        near = difflib.get_close_matches(args.name, SOURCES, 1, 0.3)
        sys.exit(f"no data set {args.name!r}: " + (f"did you mean {near[0]}?" if near else f"use {', '.join(SOURCES)}"))
    if args.source and args.name == "all":
        sys.exit("--source is a copy of one data set: say which, instead of all")
    if args.max_documents is not None and args.max_documents < 1:
        sys.exit(f"max_documents={args.max_documents} leaves nothing to read")
    if args.checkpoint:
        from nanodlm import checkpoint as ckpt

        path = ckpt.find(args.checkpoint)
        tok, files, usual = ckpt.tokenizer_of(path), ckpt.files_of(path), window(path)
    else:
        try:
            tok, files, usual = tokenizer.load({"kind": "tiktoken", "name": "gpt2"}), None, 1024
        except ValueError as e:
            sys.exit(f"{e}, or pass a --checkpoint")
    args.seq_len = usual if args.seq_len is None else args.seq_len
    for name in SOURCES if args.name == "all" else [args.name]:
        prepare(name, tok, files, args)


if __name__ == "__main__":
    console.run(main)
