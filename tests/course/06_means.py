"""Lesson 6."""


def weighted(ce, hidden, t):
    return (ce.sum(1) / t).mean() / ce.shape[1]


def by_row(ce, hidden):
    k = hidden.sum(1)
    return (ce.sum(1) / k)[k > 0].mean()


def pooled(ce, hidden):
    return ce[hidden].mean()


WRONG = {
    "forgot 1/t": ("weighs 1/t", dict(weighted=lambda ce, h, t: ce.mean())),
    "averaged over hidden": ("hidden or not", dict(weighted=lambda ce, h, t: (ce / t[:, None]).sum() / h.sum())),
    "per row": ("divide by L", dict(weighted=lambda ce, h, t: (ce.sum(1) / t).mean())),
    "ratio of sums": ("not the ratio", dict(weighted=lambda ce, h, t: ce.mean() / t.mean())),
    "0/0": ("leave out the rows", dict(by_row=lambda ce, h: (ce.sum(1) / h.sum(1)).mean())),
    "empty rows as 0": ("do not count", dict(by_row=lambda ce, h: (ce.sum(1) / h.sum(1).clamp(min=1)).mean())),
    "pooled by row": ("average within each row", dict(by_row=pooled)),
    "mean over all": ("not over all", dict(pooled=lambda ce, h: ce.mean())),
    "by row, pooled": ("pool all hidden", dict(pooled=by_row)),
}
