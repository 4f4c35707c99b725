"""Lesson 18: the answer, and wrong answers with a word of the hint that each must get."""

import torch

ROW, COLUMN = torch.arange(16) // 4, torch.arange(16) % 4
BOX = ROW // 2 * 2 + COLUMN // 2


def local_model(grid, houses=(ROW, COLUMN, BOX), empty=0.25, filled=1.0):
    peers = torch.stack([house == house[:, None] for house in houses]).any(0)
    there = torch.nn.functional.one_hot(grid, 5)[:, 1:].double()
    allowed = (peers.double() @ there == 0).double()
    count = allowed.sum(1, keepdim=True)
    return torch.where(grid[:, None] > 0, there * filled, torch.where(count > 0, allowed / count, empty))


def solve(grid, order, sign=1, anew=True):
    grid = grid.clone()
    p = local_model(grid)
    while (grid == 0).any():
        p = local_model(grid) if anew else p
        sure = p.amax(1) * sign if order == "surest" else torch.zeros(16)
        i = sure.masked_fill(grid > 0, -2.0).argmax()
        grid[i] = p[i].argmax() + 1
    return grid


def in_place(grid, order):
    grid[:] = solve(grid, order)
    return grid


WRONG = {
    "no boxes": ("box", dict(local_model=lambda grid: local_model(grid, (ROW, COLUMN)))),
    "rows alone": ("the column", dict(local_model=lambda grid: local_model(grid, (ROW,)))),
    "none left": ("1/4", dict(local_model=lambda grid: local_model(grid, empty=0.0))),
    "digits have nothing": ("cell with a digit", dict(local_model=lambda grid: local_model(grid, filled=0.0))),
    "counts": ("add up to 1", dict(local_model=lambda grid: (local_model(grid) > 0).double())),
    "least sure": ("not the smallest", dict(solve=lambda grid, order: solve(grid, order, sign=-1))),
    "always left": ("not the first blank", dict(solve=lambda grid, order: solve(grid, "left"))),
    "always surest": ("however sure", dict(solve=lambda grid, order: solve(grid, "surest"))),
    "asks once": ("anew", dict(solve=lambda grid, order: solve(grid, order, anew=False))),
    "in place": ("new tensor", dict(solve=in_place)),
}
