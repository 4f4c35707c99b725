"""The claims of lesson 25, beside choice.choose_positions and what the project's samplers let their networks read."""

import torch
import toy
from checks import alike, generator, kind, true

import ar
import mdlm
from nanodlm import choice, decode, fast_bd3lm

AT_LEAST = "a place that is exactly as sure as the threshold is revealed, too"
ONE = "if no hidden place is sure enough, the surest hidden one is revealed, in each row by itself"
HIDDEN = "what is not hidden is never revealed, and is not the surest: look at hidden places only"
LEFT = "of equally sure places the leftmost"
ALL = "all hidden places that reach the threshold are revealed, not the surest alone"


def random_rows(seed, B=40, L=6):
    """Certainties with many ties, and what is hidden: in some rows nothing."""
    sure = torch.randint(0, 11, (B, L), generator=generator(seed)).double() / 10
    return sure, torch.rand(B, L, generator=generator(seed + 1)) < torch.rand(B, 1, generator=generator(seed + 2))


def only(where, L):
    """bool (B, L) with one True in each row."""
    return torch.arange(L) == where[:, None]


def claim_reveal(my):
    """what is revealed is what the project's sampler reveals with quota="threshold" """
    for seed, threshold in ((1, 0.9), (2, 0.5), (3, 0.95), (4, 0.0), (5, 1.1)):
        sure, hidden = random_rows(seed)
        L, any_ = sure.shape[1], hidden.any(1, keepdim=True)
        inside = sure.masked_fill(~hidden, -1)
        best, last = only(inside.argmax(1), L) & any_, only(L - 1 - inside.flip(1).argmax(1), L) & any_
        enough, more = hidden & (sure >= threshold), hidden & (sure > threshold)
        none = ~enough.any(1, keepdim=True)
        mistakes = [
            (enough, ONE),
            (enough | (best & ~enough.any()), ONE),
            (more, ONE),
            (more | best, AT_LEAST),
            (more | (best & ~more.any(1, keepdim=True)), AT_LEAST),
            (enough | last, LEFT),
            (enough | (last & none), LEFT),
            (enough | (hidden & none & (inside == inside.amax(1, keepdim=True))), LEFT),
            (sure >= threshold, HIDDEN),
            ((sure >= threshold) | only(sure.argmax(1), L), HIDDEN),
            (enough | only(sure.argmax(1), L), HIDDEN),
            (enough | (only(sure.argmax(1), L) & hidden), HIDDEN),
            (enough | only(inside.argmax(1), L), "a row in which nothing is hidden reveals nothing"),
            (best, ALL),
            (hidden & (sure < threshold), "sure is large where the network is sure"),
        ]
        o = decode.SampleOptions(quota="threshold", threshold=threshold)
        want = choice.choose_positions(sure, hidden, o, torch.ones(len(sure), dtype=torch.int64))
        got = my.reveal(sure.clone(), hidden.clone(), threshold)
        alike(got, want, ONE, mistakes, what=f"threshold={threshold}")


def compare(my, case, want, forwards, tokens):
    """Fail unless tokens_read gives the list `want`; mistakes in the number of forwards, and of tokens, with hints."""
    method, new, prompt, size, per_step = case
    what = f'"{method}", new={new}, prompt={prompt}, block_size={size}, per_step={per_step}'
    got = my.tokens_read(*case)
    one = torch.is_tensor(got) and got.dim() == 1 and got.dtype == torch.int64
    true(one, "int64 (F,)", kind(got), "one number for each forward, in an int64 tensor")
    alike(len(got), len(want), "how many steps, and what else is a forward?", forwards, what=f"{what}: forwards")
    alike(got.sum(), sum(want), "what does each forward read?", tokens, what=f"{what}: tokens in all")
    alike(got, torch.tensor(want), "the order in which the forwards come", what=what)


def claim_ar(my):
    """ar: one forward for each new token, the first with the prompt; as the project's sampler with its cache"""
    for new, prompt in ((5, 3), (1, 4), (6, 0)):
        spy = toy.Spy(toy.CAUSAL)
        out = ar.generate(spy, [toy.texts(1, prompt)[0]], ar.SampleOptions(new), mask_id=toy.M)
        assert out.num_forwards == [len(spy.seen)]
        read = [ids.numel() for ids in spy.seen]
        forwards = [
            (new + 1, "the prompt's forward already writes a token"),
            (new + prompt, "the prompt is read at once"),
        ]
        begin = "in front of the prompt the first forward reads a token that means begin"
        tokens = [
            (sum(read) - 1, begin),
            (sum(range(prompt + 1, prompt + new + 1)), "the cache: each token is read once"),
        ]
        compare(my, ("ar", new, prompt, 1, 1), read, forwards, tokens)


def claim_mdlm(my):
    """mdlm: every step reads the whole canvas; as the project's sampler does"""
    for new, prompt, per_step in ((8, 3, 1), (8, 0, 2), (7, 2, 3), (5, 4, 5), (3, 1, 8)):
        spy, steps = toy.Spy(toy.PLAIN), -(-new // per_step)
        o = mdlm.SampleOptions(new, steps=steps)
        out = mdlm.generate(spy, [toy.texts(1, prompt)[0]], o, mask_id=toy.M)
        assert out.num_forwards == [len(spy.seen)]
        up = "the last step reveals what is left, fewer than per_step: round up"
        forwards = [
            (new // per_step, up),
            (new, "each step reveals per_step tokens"),
            (steps + 1, "there is no cache to fill"),
        ]
        canvas = "each forward reads the whole canvas, the prompt and all new tokens"
        tokens = [
            (steps * new, canvas),
            (new + prompt, canvas),
            (steps * (new + prompt + 1), "mdlm has no token to begin"),
        ]
        compare(my, ("mdlm", new, prompt, 4, per_step), [ids.numel() for ids in spy.seen], forwards, tokens)


def claim_bd3lm(my):
    """bd3lm: the prompt is stored, each step reads a block, each block but the last is read once more to be stored"""
    size = 4
    for new, prompt, per_step in ((16, 4, 3), (8, 4, 1), (8, 0, 2), (4, 8, 3), (8, 4, 9)):
        steps, blocks = -(-size // per_step), new // size
        spy, o = toy.Spy(toy.BLOCKS), fast_bd3lm.SampleOptions(new, steps=steps * blocks)
        out = fast_bd3lm.generate(spy, [toy.texts(1, prompt)[0]], o, mask_id=toy.M)
        read = [prompt] * (prompt > 0) + ([size] * steps + [size]) * blocks
        read = read[:-1]
        # The project reads a block to be stored together with the next one's first step, and counts two.
        assert out.num_forwards == [len(read)] and sum(ids.numel() for ids in spy.seen) == sum(read)
        store = "a finished block is read once more, to be stored; the last need not be"
        first = "the prompt is stored by one forward, and where there is no prompt by none"
        forwards = [
            (len(read) + 1, f"{store}; {first}"),
            (len(read) - blocks + 1, store),
            (len(read) - (prompt > 0), first),
            (
                (prompt > 0) + (size // per_step) * blocks + blocks - 1,
                "the last step of a block reveals what is left: round up",
            ),
            (
                (prompt > 0) + -(-new // per_step) + blocks - 1,
                "steps are counted in each block by itself: none spans two",
            ),
            ((prompt > 0) + new + blocks - 1, "each step reveals per_step tokens"),
        ]
        tokens = [
            (len(read) * size, "the prompt's forward reads the whole prompt"),
            ((new + prompt) * len(read), "the cache: each step reads its block alone"),
        ]
        compare(my, ("bd3lm", new, prompt, size, per_step), read, forwards, tokens)


def reads(method, new, prompt, size, per_step):
    if method == "ar":
        return [prompt + 1] + [1] * (new - 1)
    if method == "mdlm":
        return [prompt + new] * -(-new // per_step)
    return ([prompt] * (prompt > 0) + [size] * ((-(-size // per_step) + 1) * (new // size)))[:-1]


def claim_break_even(my):
    """break_even finds the fewest tokens a step with which a method costs no more than ar, and says 0 where none do"""
    cases = [(64, 16, 8), (64, 0, 16), (32, 0, 32), (32, 32, 32)]
    for method, (new, prompt, size) in ((m, c) for c in cases for m in ("mdlm", "bd3lm")):
        most = new if method == "mdlm" else size
        for free in (1, 2, 8, 16, 40, 100, 1000):

            def first(cost, under=lambda a, b: a <= b, most=most, case=(new, prompt, size), method=method):
                """The smallest per_step by another notion of cost."""
                found = (
                    n for n in range(1, most + 1) if under(cost(reads(method, *case, n)), cost(reads("ar", *case, n)))
                )
                return next(found, 0)

            def cost(read, free=free):
                return sum(max(free, n) for n in read)

            mistakes = [
                (first(sum), "a forward costs at least free, however few tokens it reads"),
                (first(len), "a forward that reads more than free tokens costs more"),
                (
                    first(lambda read, free=free: max(free * len(read), sum(read))),
                    "the maximum is taken in each forward",
                ),
                (first(lambda read, free=free: free * len(read) + sum(read)), "the maximum of free and n, not the sum"),
                (first(cost, lambda a, b: a < b), "no more than ar: as much will do"),
                (most, "the smallest per_step will do, or 0 if none does"),
                (most + 1, "where no per_step will do, the answer is 0"),
            ]
            got = my.break_even(method, new, prompt, size, free)
            what = f'"{method}", new={new}, prompt={prompt}, block_size={size}, free={free}'
            alike(got, first(cost), "compare with what ar costs, from per_step = 1 on", mistakes, what=what)
