"""countdown: three numbers and a target, to be reached by + - * / with each number used once. A row is 25 characters:

     3, 4, 7= 40:(3+7)*4           the first 13 are given; an answer is filled up with spaces

One question in ten, by its hash, is kept for validation. Answers are one of those that there are; rewards.countdown
takes any.

    python data/countdown/prepare.py
    python data/countdown/prepare.py --chat=data/countdown/chat.jsonl     the same as conversations, for large models
"""

import argparse
import hashlib
import json
import random
import sys
from fractions import Fraction
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from nanodlm import console, tokenizer  # noqa: E402
from nanodlm.corpus import write_dataset  # noqa: E402
from nanodlm.files import check_directory, check_file  # noqa: E402

PROMPT, ANSWER = 13, 12
ASK = "Numbers: {}. Target: {}."


def apply(sign, a, b):
    if sign == "/":
        return a / b if b else None
    return {"+": a + b, "-": a - b, "*": a * b}[sign]


def question(rng, largest):
    """(numbers, target, an expression of them that comes to it)."""
    while True:
        numbers = [rng.randint(1, largest) for _ in range(3)]
        a, b, c = (Fraction(n) for n in numbers)
        s, t = rng.choice("+-*/"), rng.choice("+-*/")
        first = rng.random() < 0.5  # (a s b) t c, or a s (b t c)
        inner = apply(s, a, b) if first else apply(t, b, c)
        value = None if inner is None else apply(t, inner, c) if first else apply(s, a, inner)
        if value is not None and value.denominator == 1 and 0 < value < 1000:
            x, y, z = numbers
            said = f"({x}{s}{y}){t}{z}" if first else f"{x}{s}({y}{t}{z})"
            order = rng.sample(numbers, 3)
            return order, int(value), said


def is_val(prompt):
    return hashlib.sha256(prompt.encode()).digest()[0] % 10 == 0


def rows(rng, split, count, largest):
    """`count` different questions with answers, [(numbers, target, answer)]."""
    found = {}
    while len(found) < count:
        numbers, target, said = question(rng, largest)
        key = f"{sorted(numbers)} {target}"
        if is_val(key) == (split == "val"):
            found.setdefault(key, (numbers, target, said))
    return list(found.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_train", type=int, default=8_000, help="training questions (default 8000)")
    parser.add_argument("--num_val", type=int, default=500, help="validation questions (default 500)")
    parser.add_argument("--largest", type=int, default=25, help="numbers are from 1 to this, at most 99 (default 25)")
    parser.add_argument("--seed", type=int, default=1337, help="another seed, other questions (default 1337)")
    parser.add_argument("--out", type=Path, default=HERE, help="where the token files go (default: beside this script)")
    parser.add_argument("--chat", default="", help="write the questions as conversations to this .jsonl instead")
    args = parser.parse_args()
    if min(args.num_train, args.num_val) < 1 or not 10 <= args.largest <= 99:
        sys.exit("--num_train and --num_val must be at least 1, and --largest from 10 to 99")
    if args.num_train + args.num_val > 40 * args.largest**2:
        sys.exit(f"there are too few questions with numbers up to {args.largest}: ask for fewer, or give a larger one")
    splits = {
        split: rows(random.Random(f"{args.seed} {split}"), split, count, args.largest)
        for split, count in (("train", args.num_train), ("val", args.num_val))
    }
    if args.chat:
        check_file(args.chat, "chat", parents=True)
        ask = (
            "Use each of the numbers exactly once, with + - * / and brackets, so that the result is the target. Give "
            "the expression alone, between <answer> and </answer>. "
        )
        with open(args.chat, "w", encoding="utf-8") as f:
            for numbers, target, said in splits["train"] + splits["val"]:
                prompt = ask + ASK.format(", ".join(map(str, numbers)), target)
                f.write(json.dumps({"prompt": prompt, "response": f"<answer>{said}</answer>"}) + "\n")
        print(f"{args.num_train + args.num_val:,} questions: {args.chat}")
        return
    check_directory(args.out, "out")
    tok = tokenizer.load({"kind": "char", "chars": " ()*+,-/0123456789:="})
    texts = {
        split: "".join(f"{a:2},{b:2},{c:2}={target:3}:{said:{ANSWER}}" for (a, b, c), target, said in found)
        for split, found in splits.items()
    }
    args.out.mkdir(parents=True, exist_ok=True)
    shape = {"row_len": PROMPT + ANSWER, "prompt_len": PROMPT}
    write_dataset(args.out, tok, {k: tok.encode(v) for k, v in texts.items()}, bytes_per_token=1.0, **shape)
    print(f"{args.num_train:,} + {args.num_val:,} questions of {PROMPT + ANSWER} characters: {args.out}")


if __name__ == "__main__":
    console.run(main)
