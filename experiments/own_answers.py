"""What would a chat model say? Conversations that it writes itself, both sides of them, as lines of JSON.

    python experiments/own_answers.py checkpoints/smollm2 --out=data/own_answers.jsonl
    python train.py config/smollm_chat.py --dataset=data/own_answers.jsonl

A model that has learnt conversations also knows what people ask: where its template has a user's turn begin, it goes
on with a question (Magpie, arXiv 2406.08464). It then answers that, greedily. Adapters that are to draft what a model
will say learn most from what it does say. An answer that is too long is cut behind its last whole sentence.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ar  # noqa: E402
from nanodlm import checkpoint as ckpt  # noqa: E402
from nanodlm import configurator, console  # noqa: E402
from nanodlm import text as texts  # noqa: E402
from nanodlm.bounds import Amount, Place, Seed, Size, check  # noqa: E402
from nanodlm.device import pick_device, pick_dtype  # noqa: E402
from nanodlm.files import check_file, replace_file  # noqa: E402

BEGINNINGS = " |What|What is|How|How do|Why|Why do|Who|Write|Write a short|Explain|Can you|Describe|Tell me|Give me"
BEGINNINGS += "|List|When|Where|Which|What are|How can I|Is it|Summarize|Name"


@dataclass
class Settings:
    checkpoint: Place = ""  # an autoregressive chat model; the one behind the script's name
    out: Place = ""  # the .jsonl file to write
    rows: Size = 384  # questions; those without an end, or too short to be one, are left out
    batch_size: Size = 128
    question: Size = 48  # tokens of a question at most
    answer: Size = 120  # … and of an answer
    temperature: Amount = 0.8  # of the questions
    seed: Seed = 1

    def __post_init__(self):
        check(self)


def conversations(model, tokenizer, s, first):
    """One batch of (question, answer), its rows from number `first` on."""
    before = tokenizer.encode(tokenizer.template([{"role": "user", "content": "§"}], False).partition("§")[0])
    words = [tokenizer.encode(word.strip()) for word in BEGINNINGS.split("|")]
    numbers = torch.arange(first, min(first + s.batch_size, s.rows))
    prompts = [torch.tensor(before + words[i % len(words)]) for i in numbers.tolist()]
    keys = dict(mask_id=None, eos_id=tokenizer.stop_ids, numbers=numbers)
    out = ar.generate(model, prompts, ar.SampleOptions(s.question, s.temperature, seed=s.seed), **keys)
    ended = [row for row in out.tokens if int(row[-1]) in tokenizer.stop_ids]
    questions = [texts.answer(tokenizer, before, row[len(before) :].tolist())[0].strip() for row in ended]
    questions = [q for q in dict.fromkeys(questions) if 8 < len(q) < 240]
    if not questions:
        return []
    prompts = [tokenizer.encode(tokenizer.template([{"role": "user", "content": q}], True)) for q in questions]
    prompts = [torch.tensor(p) for p in prompts]
    keys["numbers"] = None
    out = ar.generate(model, prompts, ar.SampleOptions(s.answer, 0.0), **keys)
    answers = []
    for prompt, row in zip(prompts, out.tokens):
        answer, _ = texts.answer(tokenizer, prompt.tolist(), row[len(prompt) :].tolist())
        whole = int(row[-1]) in tokenizer.stop_ids
        end = len(answer) if whole else max(answer.rfind(mark) for mark in (". ", ".\n", "! ", "? ")) + 1
        answers.append(answer[:end].strip())
    return [(q, a) for q, a in zip(questions, answers) if len(a) > 8]


def main(argv):
    values = configurator.read([f"--checkpoint={argv[0]}", *argv[1:]] if argv and argv[0][:1] != "-" else argv)
    s = configurator.fill(values, Settings, quiet=True)
    if not s.checkpoint or not s.out:
        sys.exit("python experiments/own_answers.py CHECKPOINT --out=FILE.jsonl")
    check_file(s.out, "out", parents=True)
    device, _ = pick_device("auto")
    checkpoint = ckpt.load(s.checkpoint, device, pick_dtype("auto", device)[0])
    if checkpoint.tokenizer.template is None or not checkpoint.model.config.causal:
        sys.exit(f"{s.checkpoint} is no autoregressive model with a chat template; name one that can converse")
    rows = []
    for first in tqdm(range(0, s.rows, s.batch_size), disable=None):
        rows += conversations(checkpoint.model, checkpoint.tokenizer, s, first)
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in rows]
    Path(s.out).parent.mkdir(parents=True, exist_ok=True)
    replace_file(Path(s.out), "".join(json.dumps({"messages": turn}) + "\n" for turn in turns).encode())
    print(f"{s.out}: {len(rows)} conversations")
    for q, a in rows[:3]:
        print(f"\n> {q}\n{a[:200]}")


if __name__ == "__main__":
    console.run(main, sys.argv[1:])
