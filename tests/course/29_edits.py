"""Lesson 29: the answer, and wrong answers with a word of the hint that each must get."""


def outstanding(z, z1, count=True, same=False, own=False):
    found, place = [], 0
    for a, b in zip(z, z1):
        if a != b or same:
            kind = "insert" if a == -1 else "delete" if b == -1 else "replace"
            found.append((kind, place, a if own else b))
        place += (a != -1) if count else 1
    return found


def apply(x, edits):
    insert = {i: a for kind, i, a in edits if kind == "insert"}
    change = {i: a for kind, i, a in edits if kind != "insert"}
    new = []
    for i in range(len(x) + 1):
        new += [insert[i]] if i in insert else []
        new += [a for a in [change.get(i, x[i])] if a != -1] if i < len(x) else []
    return new


def one_by_one(x, edits, backwards=False):
    x = list(x)
    for kind, i, a in sorted(edits, key=lambda e: e[1], reverse=backwards):
        i = min(i, len(x) - (kind != "insert"))
        if kind == "insert":
            x.insert(i, a)
        elif kind == "delete":
            del x[i]
        else:
            x[i] = a
    return x


def behind(x, edits):
    return apply(x, [(k, min(i + 1, len(x)) if k == "insert" else i, a) for k, i, a in edits])


def in_place(x, edits):
    x[:] = apply(x, edits)
    return x


def estimate(total, u, kappa):
    R = 1 / (1 - kappa)
    return total + (R * ((R / u).log() - 1)).sum().item()


def other(**keys):
    return dict(outstanding=lambda z, z1: outstanding(z, z1, **keys))


WRONG = {
    "columns": ("blanks are no letters", other(count=False)),
    "all columns": ("both have the same", other(same=True)),
    "the old letter": ("the letter of z_1", other(own=True)),
    "from left to right": ("as it is now", dict(apply=one_by_one)),
    "behind": ("in front of", dict(apply=behind)),
    "in place": ("new list", dict(apply=in_place)),
    "no total": ("expects", dict(estimate=lambda t, u, k: estimate(0.0, u, k))),
    "no -1": ("minus 1", dict(estimate=lambda t, u, k: estimate(t, u, k) + len(u) / (1 - k))),
    "no R": ("1 / (1 - kappa)", dict(estimate=lambda t, u, k: t - (u.log() + 1).sum().item())),
    "upside down": ("R is before", dict(estimate=lambda t, u, k: t + ((u * (1 - k)).log() - 1).sum().item() / (1 - k))),
    "R once": ("times R", dict(estimate=lambda t, u, k: t - ((u * (1 - k)).log() + 1).sum().item())),
}
