"""How long each conversation of a token file is in a context, and how many of its tokens are learnt: what
conversations.fit gives of one, for whole files at once. So nobody reads a conversation to know how large it is."""

import numpy as np

AT_ONCE = 2**22  # tokens


def fitted(learn, start, room, options):
    """(length, learnt tokens) of conversations start[i] … start[i + 1] in `room` tokens by conversations.Options, int64
    (N,) both; 0 and 0 of those that are left out. learn: uint8, of all tokens."""
    found, first = [], 0
    while first < len(start) - 1:
        end = max(first + 1, int(np.searchsorted(start, start[first] + AT_ONCE, "right")) - 1)
        begin = start[first : end + 1]
        found.append(part(np.asarray(learn[begin[0] : begin[-1]], dtype=bool), begin - begin[0], room, options))
        first = end
    return np.concatenate(found, 1) if found else np.zeros((2, 0), dtype=np.int64)


def part(learn, start, room, options):
    start, length = start[:-1], np.diff(start)
    n = np.minimum(length, room)
    if options.too_long == "drop":
        n = np.where(length > room, 0, n)
    if options.too_long == "turns" and (length > room).any():  # behind the last answer that ends in time
        ends = np.concatenate([[-1], np.flatnonzero(learn[:-1] & ~learn[1:]) + 1])
        last = ends[np.searchsorted(ends, start + room, "right") - 1] - start
        n = np.where(length > room, np.maximum(last, 0), n)
    sums = np.concatenate([[0], np.cumsum(learn)])
    learnt = sums[start + n] - sums[start]
    if options.learn == "last":  # those behind the last place that is not learnt before the last that is
        ones, zeros = (np.concatenate([[-1], np.flatnonzero(x)]) for x in (learn, ~learn))
        end = ones[np.searchsorted(ones, start + n) - 1]
        before = np.maximum(zeros[np.searchsorted(zeros, end) - 1], start - 1)
        learnt = np.where(learnt > 0, end - before, 0)
    return np.stack([np.where(learnt > 0, n, 0), learnt])
