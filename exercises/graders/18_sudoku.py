"""The claims of lesson 18, beside the puzzles and rules of data/sudoku/prepare.py."""

import functools
import random

import torch
from checks import alike, kind, true

from nanodlm.files import ROOT, load_module

sudoku = load_module("sudoku_prepare", ROOT / "data" / "sudoku" / "prepare.py")
HOUSES = torch.tensor(sudoku.houses(4))  # (16, 3): the row, the column and the box of each cell, numbered apart
PEERS = torch.stack([(HOUSES == HOUSES[i]).any(1) for i in range(16)])  # (16, 16): who shares a house
BOX = "the box counts, too: 2 x 2 cells, the box of row r and column c is r // 2 and c // 2"
ANEW = "ask local_model anew in every step, about the grid with what was filled in"


@functools.cache
def puzzles():
    rng = random.Random(3)
    made = [sudoku.make_puzzle(rng, sudoku.solutions([0] * 16, 4, 1, rng)[0], 4) for _ in range(15)]
    return torch.tensor(made)


def model(grid, peers=PEERS, empty=0.25):
    there = torch.nn.functional.one_hot(grid, 5)[:, 1:].double()
    allowed = (peers.double() @ there == 0).double()
    count = allowed.sum(1, keepdim=True)
    p = torch.where(count > 0, allowed / count.clamp(min=1), empty)
    return torch.where(grid[:, None] > 0, there, p)


def play(grid, order, stale=False):
    grid, first = grid.clone(), model(grid)
    while (grid == 0).any():
        p = first if stale else model(grid)
        sure = p.amax(1)
        if order == "left":
            sure = torch.zeros(16)
        elif order == "least":
            sure = -sure
        cell = torch.where(grid == 0, sure, -2.0).argmax()
        grid[cell] = p[cell].argmax() + 1
    return grid


def grids():
    """Puzzles, some of them with digits filled in at random, so that of some cells no digit is left."""
    wild = torch.randint(0, 5, (10, 16), generator=torch.Generator().manual_seed(1))
    return torch.cat([puzzles()[:10], wild])


def claim_model(my):
    """local_model spreads a blank over the digits that its row, column and box allow"""
    houses = "a digit is not allowed where it is in the row, the column or the box of the cell"
    none = "where no digit is allowed each has 1/4"
    for grid in grids():
        there = torch.nn.functional.one_hot(grid, 5)[:, 1:].double()
        raw = model(grid, empty=0.0)
        lines = torch.stack([(HOUSES[:, :2] == HOUSES[i, :2]).any(1) for i in range(16)])
        allowed = (model(grid) > 0).double()
        mistakes = [
            (model(grid, lines), BOX),
            (model(grid, PEERS & (HOUSES[:, None, 0] == HOUSES[None, :, 0])), houses),
            (torch.where(grid[:, None] > 0, torch.zeros_like(there), model(grid)), "a cell with a digit has 1 for it"),
            (torch.where(grid[:, None] > 0, 0.25, model(grid)), "a cell with a digit has 1 for it"),
            (torch.where(grid[:, None] > 0, model(grid * 0 + 0), model(grid)), "a cell with a digit has 1 for it"),
            (allowed, "probabilities: the digits of a cell add up to 1"),
            (raw, none),
        ]
        alike(my.local_model(grid.clone()), model(grid), houses, mistakes)


def compare(my, order, mistakes):
    ties = "of equal digits the smallest, of equal cells the first: what argmax does"
    for grid in puzzles():
        before, want = grid.clone(), play(grid, order)
        got = my.solve(grid, order)
        true(torch.equal(grid, before), "the puzzle as it was", "it changed", "return a new tensor: grid.clone() first")
        found = ((play(grid, *case), hint) for case, hint in mistakes)  # noqa: B023
        alike(got, want, ties, found, what=f"order {order}")


def claim_left(my):
    """order left fills the blanks from the first to the last, greedily"""
    compare(my, "left", [(("surest",), 'order "left" is the first blank, however sure'), (("left", True), ANEW)])


def claim_surest(my):
    """order surest begins, in every step, with the blank that is surest"""
    least = "the surest: the blank with the largest probability, not the smallest"
    left = 'order "surest" is not the first blank: whose most probable digit is most probable?'
    compare(my, "surest", [(("left",), left), (("least",), least), (("surest", True), ANEW), (("left", True), ANEW)])


def claim_order(my):
    """with one and the same model, more than twice as many puzzles are solved surest first as from left to right"""
    solved = {}
    for order in ("left", "surest"):
        found = [my.solve(grid.clone(), order) for grid in puzzles()]
        grids_back = all(torch.is_tensor(grid) and grid.shape == (16,) for grid in found)
        true(grids_back, "int64 (16,)", kind(found[0]), "shape and dtype are said in the function's docstring")
        solved[order] = sum(sudoku.is_solved(grid.tolist(), 4) for grid in found)
    came = f"{solved['surest']} surest first, {solved['left']} from left to right, of {len(puzzles())}"
    true(2 * solved["left"] < solved["surest"], "more than twice as many", came, "see the claims above")
