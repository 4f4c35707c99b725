# %% [markdown]
# # 18 · Sudoku: where the order matters
# *Chapter III, sampling. 30 minutes. arXiv 2502.06768 (train for the worst, plan for the best), section 4.*
#
# Lesson 13 said that with a model that is right, and draws, the order does not matter. No model is right, and where
# there is one answer nobody draws: the most probable digit is written. What a network learns first is what can be seen
# at once; of a sudoku, for an empty cell, which digits its row, its column and its box still allow:
#
# $$ p(x^i = d \mid x_t) = \begin{cases} 1 / n_i & d \text{ is not yet in the row, column or box of } i \\ 0 &
# \text{else} \end{cases} $$
#
# with $n_i$ the number of digits that are allowed. (This is the exercise's own model; the paper trains networks.)
# Where only one digit is allowed it is sure, and right, if what was filled in before is; where three are allowed it
# guesses. Nobody forces a sampler to begin with the guess. Each digit that is filled in makes others surer, so that
# what would have been a guess may be none when its turn comes.
#
# So the same model can be a bad player from left to right, and a good one that begins where it is surest. No training
# is needed to see that. In the project a network of one size was trained for both, see README.md and docs/training.md:
# 99.9 % of the puzzles surest first, 79.5 % for autoregression, which must go from left to right (there the two
# networks differ, too; here only the order does).
#
# The grid is 4 x 4, cell by cell, row by row: cell 4 r + c is in row r and column c. A box is 2 x 2: rows 0 and 1 with
# columns 0 and 1, and so on. Each row, column and box has to hold 1, 2, 3 and 4.

# %%
import sys

sys.path += ["exercises", ".", "..", "../.."]  # the course and the project, from wherever this is run

import random

import torch

from nanodlm.files import ROOT, load_module

# %% [markdown]
# ## Write


# %%
def local_model(grid):
    """What a cell's row, column and box say of it.

    grid     int64 (16,), digits 1, 2, 3, 4, and 0 for a blank
    returns  float64 (16, 4), the probabilities of the digits 1, 2, 3, 4 for each cell (digit d in column d - 1).
             A blank: all digits that are in no other cell of its row, column and box, each the same; if there is none,
             as after a wrong guess, 1/4 for each of the four. A cell with a digit: 1 for that digit
    """
    raise NotImplementedError("local_model is yours to write")


def solve(grid, order):
    """Fill in the blanks, one after the other, each with the most probable digit; of equal ones the smallest.

    grid     int64 (16,), a puzzle; leave it as it is: return a new tensor
    order    "left": the blanks from the first cell to the last. "surest": in every step the blank whose most probable
             digit is most probable; of equal ones the first. Ask local_model anew in every step
    returns  int64 (16,), without blanks. What was filled in stays, also if it turns out to be wrong
    """
    raise NotImplementedError("solve is yours to write")


# %% [markdown]
# ## What one sees
#
# A puzzle that has one solution, what the two orders make of it, and how many of 50 such puzzles they solve.
#
#     puzzle    34.. 1... ..1. ...3
#     left      3421 1234 2311 4113   22 of 50 solved
#     surest    3421 1234 4312 2143   50 of 50 solved
#
# The model is the same in both rows.

# %%
if __name__ == "__main__":
    sudoku = load_module("sudoku_prepare", ROOT / "data" / "sudoku" / "prepare.py")  # the project's own puzzles
    rng = random.Random(18)
    solutions = [sudoku.solutions([0] * 16, 4, 1, rng)[0] for _ in range(50)]
    puzzles = [torch.tensor(sudoku.make_puzzle(rng, solution, 4)) for solution in solutions]

    def show(grid):
        rows = "".join(".1234"[digit] for digit in grid.tolist())
        return " ".join(rows[i : i + 4] for i in range(0, 16, 4))

    print(f"puzzle    {show(puzzles[0])}")
    for order in ("left", "surest"):
        solved = sum(sudoku.is_solved(solve(puzzle, order).tolist(), 4) for puzzle in puzzles)
        print(f"{order:8}  {show(solve(puzzles[0], order))}   {solved} of {len(puzzles)} solved")

# %% [markdown]
# In the project: `data/sudoku/prepare.py`, `config/sudoku_mdlm.py`, `config/sudoku_ar.py`, and `tasks/sudoku.py`.
