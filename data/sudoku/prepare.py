"""sudoku: generated puzzles, each with exactly one solution. A row is the puzzle, "=", and its solution:

    4.......21.4...2=4321124321343412     4 x 4: 16 + 1 + 16 characters, of which the first 17 are given
    42...7..1...14.26. … =426857931 …     9 x 9: 81 + 1 + 81 characters, of which the first 82 are given

One solution grid in ten, by its hash, is kept for validation, so no validation answer was ever a training answer.
Blanks are made in random order as long as the solution stays unique, down to a random number of clues between a
quarter and a half of the cells; where that many cannot be removed the puzzle is minimal: every clue is needed.

    python data/sudoku/prepare.py                              4 x 4, seconds
    python data/sudoku/prepare.py --size=9 --num_train=5000    9 x 9, about a minute
"""

import argparse
import functools
import hashlib
import math
import random
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from nanodlm import console, tokenizer  # noqa: E402
from nanodlm.corpus import write_dataset  # noqa: E402
from nanodlm.files import check_directory  # noqa: E402

PATIENCE = 10_000  # after so many puzzles in a row without a new one there are no more


@functools.cache
def houses(size):
    """For every cell the three houses it lies in: rows are 0…, columns size…, boxes 2 size…"""
    box = math.isqrt(size)
    cells = [divmod(cell, size) for cell in range(size * size)]
    return [(r, size + c, 2 * size + r // box * box + c // box) for r, c in cells]


def solutions(grid, size, limit=2, rng=None):
    """The first `limit` solutions of `grid`, a list of size² ints with 0 for a blank: exactly one means unique.

    Backtracking on the cell with the fewest candidates. With `rng` the candidates are tried in random order."""
    where, full = houses(size), (1 << size) - 1
    used = [0] * (3 * size)  # one bit per digit that a house has
    for cell, digit in enumerate(grid):
        bit = 1 << digit >> 1  # 0 for a blank
        for house in where[cell]:
            if used[house] & bit:
                return []
            used[house] |= bit
    grid, found = list(grid), []

    def fill(blanks):
        if not blanks:
            found.append(list(grid))
            return
        fewest = size + 1
        for candidate in blanks:
            r, c, b = where[candidate]
            free = full & ~(used[r] | used[c] | used[b])
            count = free.bit_count()
            if count < fewest:
                fewest, cell, options = count, candidate, free
                if count < 2:
                    break
        digits = [d for d in range(1, size + 1) if options >> (d - 1) & 1]
        if rng:
            rng.shuffle(digits)
        rest = [other for other in blanks if other != cell]
        for digit in digits:
            bit = 1 << (digit - 1)
            for house in where[cell]:
                used[house] ^= bit
            grid[cell] = digit
            fill(rest)
            for house in where[cell]:
                used[house] ^= bit
            if len(found) >= limit:
                return

    fill([cell for cell, digit in enumerate(grid) if not digit])
    return found


def make_puzzle(rng, solution, size):
    """Blank cells of `solution` in random order, each one only if the solution stays unique."""
    puzzle, clues = list(solution), size * size
    target = rng.randint(size * size // 4, size * size // 2)
    for cell in rng.sample(range(size * size), size * size):
        if clues == target:
            break
        puzzle[cell] = 0
        if len(solutions(puzzle, size)) == 1:
            clues -= 1
        else:
            puzzle[cell] = solution[cell]
    return puzzle


def is_solved(cells, size):
    """Whether `cells`, ints or characters, are a complete grid with every digit once in every house."""
    cells = [str(cell) for cell in cells]
    if len(cells) != size * size or not set(cells) <= set("123456789"[:size]):
        return False
    seen = {(house, cell) for cell, place in zip(cells, houses(size), strict=True) for house in place}
    return len(seen) == 3 * size * size


def is_val(solution):
    """One grid in ten, by its hash, whatever the seed."""
    return hashlib.sha256(bytes(solution)).digest()[0] % 10 == 0


def make_rows(rng, size, split, count):
    """`count` different puzzles with their solutions, as strings, on the grids that belong to `split`."""
    from tqdm import tqdm

    rows, repeats = {}, 0
    with tqdm(total=count, desc=split, unit="puzzle") as bar:
        while len(rows) < count:
            solution = solutions([0] * size**2, size, 1, rng)[0]
            if is_val(solution) != (split == "val"):
                continue
            puzzle = make_puzzle(rng, solution, size)
            row = "".join(".123456789"[digit] for digit in puzzle) + "=" + "".join(map(str, solution))
            repeats = repeats + 1 if row in rows else 0
            if repeats == PATIENCE:
                sys.exit(f"found only {len(rows)} different {split} puzzles of size {size}: ask for fewer than {count}")
            bar.update(row not in rows)
            rows[row] = None
    return list(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, choices=[4, 9], default=4, help="4 x 4 or 9 x 9 cells (default 4)")
    parser.add_argument("--num_train", type=int, default=20_000, help="training puzzles (default 20000)")
    parser.add_argument("--num_val", type=int, default=1_000, help="validation puzzles (default 1000)")
    parser.add_argument("--seed", type=int, default=1337, help="another seed, other puzzles (default 1337)")
    parser.add_argument("--out", type=Path, default=HERE, help="where the token files go (default: beside this script)")
    args = parser.parse_args()
    check_directory(args.out, "out")
    if min(args.num_train, args.num_val) < 1:
        sys.exit("--num_train and --num_val must be at least 1")

    size = args.size
    tok = tokenizer.load({"kind": "char", "chars": ".=123456789"[: 2 + size]})
    splits = {}
    for split, count in (("train", args.num_train), ("val", args.num_val)):
        rows = make_rows(random.Random(f"{args.seed} {split}"), size, split, count)
        splits[split] = tok.encode("".join(rows))
    shape = {"row_len": 2 * size**2 + 1, "prompt_len": size**2 + 1}
    args.out.mkdir(parents=True, exist_ok=True)
    write_dataset(args.out, tok, splits, bytes_per_token=1.0, task="sudoku", size=size, **shape)
    print(f"{args.num_train:,} + {args.num_val:,} puzzles of {shape['row_len']} characters: {args.out}")


if __name__ == "__main__":
    console.run(main)
