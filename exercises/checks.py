"""What graders are made of. A grader (graders/05_bound.py) is a file of functions claim_…(my): the docstring is a claim
about the functions in a student's file, `my`, and a call of alike() or true() fails where it does not hold.
"""

import torch
from student import Wrong


def true(holds, expected, came, hint):
    """Fail unless it holds; expected and came are words."""
    if not holds:
        raise Wrong(expected, came, hint)


def kind(x):
    """Shape and dtype of a tensor, in words; of something else what it is."""
    if torch.is_tensor(x):
        return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"
    return "None (is there a return?)" if x is None else f"a {type(x).__name__}: {x!r}"[:100]


def number(x):
    return f"{x:.6g}" if isinstance(x, float) else str(x)


def apart(got, want, tolerance):
    """Where tensors of one shape differ, numbers by more than the tolerance, relative and absolute: bool."""
    if got.dtype == torch.bool or want.dtype == torch.bool:
        return got != want
    return ~torch.isclose(got.double(), want.double(), rtol=tolerance, atol=tolerance)


def alike(got, want, hint, mistakes=(), tolerance=None, what=""):
    """Fail unless what came is what is expected: tensors, or numbers.

    hint      where to look
    mistakes  (what comes of a typical mistake, the hint for it), …: the first that fits what came. A generator works
              only where something is wrong, and as far as it is asked
    what      words for what is compared, where the claim says more than one thing
    """
    if not torch.is_tensor(want):
        if torch.is_tensor(got) and got.dim() == 0:
            got = got.item()
        if isinstance(got, bool) or not isinstance(got, int | float):
            raise Wrong(f"{what + ': ' if what else ''}a number", kind(got), hint)
        got, want = torch.tensor(float(got)).double(), torch.tensor(float(want)).double()
    prefix = f"{what}: " if what else ""
    if not torch.is_tensor(got) or got.shape != want.shape or got.dtype != want.dtype:
        like = "shape and dtype are said in the function's docstring"
        raise Wrong(prefix + kind(want), kind(got), like)
    bad = ~got.isfinite() & want.isfinite()
    if bad.any():
        where = place(bad)
        came = f"{number(got[where].item())} at {list(where)}, one of {int(bad.sum())} that are no finite numbers"
        raise Wrong(f"{prefix}{number(want[where].item())}", came, hint)
    tolerance = tolerance or (1e-8 if got.dtype == torch.float64 else 1e-4)
    wrong = apart(got, want, tolerance)
    if not wrong.any():
        return
    for value, said in mistakes:
        value = torch.as_tensor(value)
        if value.shape == want.shape and not apart(got, value, tolerance).any():
            hint = said
            break
    where = place(wrong)
    at = f" at {list(where)}" if want.dim() else ""
    raise Wrong(f"{prefix}{number(want[where].item())}{at}", number(got[where].item()), hint)


def place(where):
    """The first True of a bool tensor, a tuple."""
    return tuple(where.nonzero()[0].tolist())


ELSEWHERE = "the mask is the id that mask_id says, which need not be the last: leave out its logit, and no other"


def mask_first(model, mask_id):
    """A model whose mask is the last id, told of with other ids: the mask is 0, and every other id one more."""
    return lambda canvases: model((canvases - 1) % (mask_id + 1)).roll(1, -1)


def generator(seed):
    return torch.Generator().manual_seed(seed)
