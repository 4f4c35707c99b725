"""Lesson 25: the answer, and wrong answers with a word of the hint that each must get."""

import torch

from nanodlm import choice, decode


def reveal(sure, hidden, threshold):
    o = decode.SampleOptions(quota="threshold", threshold=threshold)
    return choice.choose_positions(sure, hidden, o, torch.ones(len(sure), dtype=torch.int64))


def tokens_read(method, new, prompt, block_size, per_step):
    if method == "ar":
        read = [prompt + 1] + [1] * (new - 1)
    elif method == "mdlm":
        read = [prompt + new] * -(-new // per_step)
    else:
        blocks, steps = new // block_size, -(-block_size // per_step)
        read = [prompt] * (prompt > 0) + [block_size] * (blocks * steps + blocks - 1)
    return torch.tensor(read)


def cost(method, new, prompt, block_size, per_step, free):
    return int(tokens_read(method, new, prompt, block_size, per_step).clamp(min=free).sum())


def break_even(method, new, prompt, block_size, free, cost=cost, none=0):
    limit = cost("ar", new, prompt, block_size, 1, free)
    for n in range(1, (new if method == "mdlm" else block_size) + 1):
        if cost(method, new, prompt, block_size, n, free) <= limit:
            return n
    return none


def no_last(method, new, prompt, block_size, per_step):
    """bd3lm's last block stored, too."""
    read = tokens_read(method, new, prompt, block_size, per_step)
    return torch.cat([read, torch.tensor([block_size])]) if method == "bd3lm" else read


def none_stored(method, new, prompt, block_size, per_step):
    read = tokens_read(method, new, prompt, block_size, per_step)
    return read[: len(read) - new // block_size + 1] if method == "bd3lm" else read


def prompt_free(method, new, prompt, block_size, per_step):
    read = tokens_read(method, new, prompt, block_size, per_step)
    return read[1:] if method == "bd3lm" and prompt else read


def across(method, new, prompt, block_size, per_step):
    if method != "bd3lm":
        return tokens_read(method, new, prompt, block_size, per_step)
    n = -(-new // per_step) + new // block_size - 1
    return torch.tensor([prompt] * (prompt > 0) + [block_size] * n)


def changed(name, function):
    """tokens_read with another answer for one method."""
    return dict(tokens_read=lambda m, *a: torch.tensor(function(*a)) if m == name else tokens_read(m, *a))


def above(sure, hidden, threshold):
    return hidden & (sure > threshold) | reveal(sure, hidden, 2.0)


def rightmost(sure, hidden, threshold):
    return reveal(sure.flip(1), hidden.flip(1), threshold).flip(1)


def anywhere(sure, hidden, threshold):
    best = torch.arange(sure.shape[1]) == sure.argmax(1, keepdim=True)
    return hidden & (sure >= threshold) | best & hidden


WRONG = {
    "none where none is sure": ("the surest hidden one", dict(reveal=lambda s, h, t: h & (s >= t))),
    "above": ("exactly as sure", dict(reveal=above)),
    "rightmost": ("leftmost", dict(reveal=rightmost)),
    "hidden or not": ("never revealed", dict(reveal=lambda s, h, t: s >= t)),
    "the surest of all": ("is not the surest", dict(reveal=anywhere)),
    "one alone": ("not the surest alone", dict(reveal=lambda s, h, t: reveal(s, h, 2.0))),
    "a sum": ("one number for each", dict(tokens_read=lambda *a: int(tokens_read(*a).sum()))),
    "no begin": ("means begin", changed("ar", lambda new, prompt, s, n: [prompt] + [1] * (new - 1))),
    "prompt apart": ("already writes", changed("ar", lambda new, prompt, s, n: [prompt + 1] + [1] * new)),
    "no cache": ("read once", changed("ar", lambda new, prompt, s, n: [prompt + 1 + i for i in range(new)])),
    "rounded down": ("round up", changed("mdlm", lambda new, prompt, s, n: [prompt + new] * (new // n))),
    "new alone": ("whole canvas", changed("mdlm", lambda new, prompt, s, n: [new] * -(-new // n))),
    "last stored": ("need not be", dict(tokens_read=no_last)),
    "none stored": ("to be stored", dict(tokens_read=none_stored)),
    "prompt for nothing": ("by one forward", dict(tokens_read=prompt_free)),
    "across blocks": ("by itself", dict(tokens_read=across)),
    "tokens alone": ("at least free", dict(break_even=lambda m, n, p, s, free: break_even(m, n, p, s, 1))),
    "forwards alone": (
        "costs more",
        dict(break_even=lambda *a: break_even(*a, cost=lambda *b: len(tokens_read(*b[:5])))),
    ),
    "never is one more": (
        "the answer is 0",
        dict(break_even=lambda m, n, p, s, f: break_even(m, n, p, s, f, none=(n if m == "mdlm" else s) + 1)),
    ),
}
