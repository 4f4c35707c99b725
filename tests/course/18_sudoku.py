"""Lesson 18: the answer, and wrong answers with a word of the hint that each must get."""

import torch


def local_model(grid, box=True, column=True, empty=0.25, filled=1.0):
    p = torch.full((16, 4), empty, dtype=torch.float64)
    for i in range(16):
        peers = [j for j in range(16) if j // 4 == i // 4 or column and j % 4 == i % 4 or box and same_box(i, j)]
        allowed = [d for d in range(4) if d + 1 not in grid[peers].tolist()]
        if grid[i]:
            p[i] = 0.0
            p[i, grid[i] - 1] = filled
        elif allowed:
            p[i] = 0.0
            p[i, allowed] = 1 / len(allowed)
    return p


def same_box(i, j):
    return i // 8 == j // 8 and i % 4 // 2 == j % 4 // 2


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
    "no boxes": ("box", dict(local_model=lambda grid: local_model(grid, box=False))),
    "rows alone": ("the column", dict(local_model=lambda grid: local_model(grid, box=False, column=False))),
    "none left": ("1/4", dict(local_model=lambda grid: local_model(grid, empty=0.0))),
    "digits have nothing": ("cell with a digit", dict(local_model=lambda grid: local_model(grid, filled=0.0))),
    "counts": ("add up to 1", dict(local_model=lambda grid: (local_model(grid) > 0).double())),
    "least sure": ("not the smallest", dict(solve=lambda grid, order: solve(grid, order, sign=-1))),
    "always left": ("not the first blank", dict(solve=lambda grid, order: solve(grid, "left"))),
    "always surest": ("however sure", dict(solve=lambda grid, order: solve(grid, "surest"))),
    "asks once": ("anew", dict(solve=lambda grid, order: solve(grid, order, anew=False))),
    "in place": ("new tensor", dict(solve=in_place)),
}
