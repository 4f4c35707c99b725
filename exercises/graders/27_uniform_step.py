"""The claims of lesson 27, by Bayes' rule over the letters, and beside udlm.replacement and udlm.generate."""

import itertools

import torch
import toy
from checks import Wrong, alike, kind, true

import udlm
from nanodlm import noise

M, NET = toy.M, toy.NETS["plain"]  # of 12 ids the mask is the sixth
GIVEN = "what was given always stays"
NOISE = "noise is a letter, never the mask: there are N = vocab_size - 1 of them"
TIMES = [(0.9, 0.4), (0.5, 0.1), (1.0, 0.3), (0.35, 0.0), (1.0, 0.0), (0.6, 0.59)]


@torch.no_grad()
def model(canvases):
    return NET(canvases)


def claim_letter(my):
    """letter gives each letter an equal part of the numbers, and never the mask"""
    for V, m in ((12, 5), (4, 3), (4, 0)):
        u = noise.uniform(V, torch.arange(300))
        want, i = udlm.replacement(u, NET.config, M) if V == 12 else None, (u * (V - 1)).long()
        want = i + (i >= m).long() if want is None else want
        further = "letters behind the mask are one further: the ids are those in order, the mask left out"
        found = [((u * V).long(), NOISE), (i, further), (torch.where(i == m, i + 1, i), further), (i + 1, further)]
        alike(my.letter(u.clone(), V, m), want, NOISE, found, what=f"vocab_size {V}, mask_id {m}")


def posterior(a, b, N):
    """q(x_s = y | x_t = 0, x_0) of y = 0, by Bayes, for x_0 = 0 and x_0 = 1; and of y = x_0 = 1: floats."""
    q_s, q_t = (c * torch.tensor([1.0, 0.0]).double() + (1 - c) / N for c in (a, b))
    same = (b / a + (1 - b / a) / N) * q_s / q_t
    return same, (1 - b / a) / N * (a + (1 - a) / N) / q_t[1]


def right(p, a, b, N):
    return b / a * (a * p + (1 - a) / N) / (b * p + (1 - b) / N)


def claim_bayes(my):
    """to stay, or to be drawn from q_s, is together what Bayes' rule gives, where x_0 is known"""
    hint = "the first part of the sum, with the network's p(z) in the place of [z = x_0]"
    for (a, b), N in itertools.product(TIMES, (2, 11)):
        p, (same, anew) = torch.tensor([1.0, 0.0]).double(), posterior(a, b, N)
        stay = my.stays(p.clone(), a, b, N)
        alike(stay, right(p, a, b, N), hint, mistakes(p, a, b, N), what=f"alpha_s = {a}, alpha_t = {b}, p = 1 and 0")
        q_s = a * p + (1 - a) / N
        alike(stay + (1 - stay) * q_s, same, hint)
        alike((1 - stay[1]) * q_s[0], anew, hint)


def mistakes(p, a, b, N):
    want = right(p, a, b, N)
    up = "q_s(z) is above, and q_t(z) below: z was likelier at s, if the network believes in it"
    return [
        (a * want, "alpha_t / alpha_s is the chance that no noise came between s and t; alpha_t that none came at all"),
        (
            torch.full_like(want, b / a),
            "that is the chance of no noise; wanted is the chance given that z is there",
        ),
        ((b / a) ** 2 / want, up),
        (1 - want, "the chance to stay, not to change"),
        (b / a * p, "p is mixed with noise: at s it is alpha_s p + (1 - alpha_s) / N, and so at t"),
    ]


def claim_stays(my):
    """stays is the chance of no noise, given what stands there, for whatever the network thinks of it"""
    p = torch.linspace(0, 1, 21).double()
    for (a, b), N in itertools.product(TIMES, (2, 11)):
        hint = "the first part of the sum, with the network's p(z) in the place of [z = x_0]"
        got = my.stays(p.clone(), a, b, N)
        alike(got, right(p, a, b, N), hint, mistakes(p, a, b, N), what=f"alpha_s = {a}, alpha_t = {b}, N = {N}")


def canvas():
    x = torch.full((10,), M)
    x[:2], x[6] = torch.tensor([7, 8]), 9
    return x


def numbers(seed, k):
    """uniform(which) of step k and row 0, as udlm.generate draws them."""
    return lambda which: noise.uniform(seed, 0, k, which, torch.arange(10))


def walk(step, steps, seed):
    """The canvases after each step, (steps, 10)."""
    x, seen, given = canvas(), [], canvas() != M
    x = torch.where(given, x, udlm.replacement(noise.uniform(seed, 0, -1, 1, torch.arange(10)), NET.config, M))
    for k in range(steps):
        s, t = 1 - (k + 1) / steps, 1 - k / steps
        x = step(model, x.clone(), given.clone(), 1 - s, 1 - t, numbers(seed, k), M)
        if not torch.is_tensor(x) or x.shape != (10,) or x.dtype != torch.int64:
            raise Wrong("int64 (10,)", kind(x), "shape and dtype are said in the function's docstring")
        seen.append(x)
    return torch.stack(seen)


def variant(kept=right, masked=True, spare=True, doubt=True, letters=None, which=1, always=False):
    """A step with a typical mistake."""

    def step(model, x, given, a, b, uniform, mask_id):
        logits = model(x[None])[0].double()
        if masked:
            logits = logits.index_fill(1, torch.tensor([mask_id]), -torch.inf)
        change = 1 - kept(logits.softmax(1).gather(1, x[:, None])[:, 0], a, b, 11)
        u, v = uniform(0), uniform(which)
        other = (v * 12).long() if letters else udlm.replacement(v, NET.config, M)
        drawn = torch.where((u < change * a) | torch.tensor(always), noise.draw(logits, v), other)
        move = u < change
        if spare:
            move = move & ~given
        if not doubt:
            move = move & (logits.argmax(1) != x)
        return torch.where(move, drawn, x)

    return step


def claim_step(my):
    """step after step, token for token, what udlm.generate writes"""
    typical = [
        (variant(kept=lambda p, a, b, N: 0 * p), "a token stays where no noise came: do not draw it anew each time"),
        (
            variant(kept=lambda p, a, b, N: a * right(p, a, b, N)),
            "in stays, alpha_t / alpha_s is the chance of no noise",
        ),
        (variant(kept=lambda p, a, b, N: b / a + 0 * p), "stays asks what the network thinks of the token"),
        (variant(letters=True), NOISE),
        (variant(always=True), "where a token changes, it is x_0 with probability alpha_s, and else any letter"),
        (variant(doubt=False), "every token may change that was not given, also one that the network likes best"),
        (variant(spare=False), GIVEN),
        (variant(masked=False), "the mask's logit is set to -inf before the softmax"),
        (variant(which=0), "uniform(0) says who changes, uniform(1) what is drawn there"),
    ]
    for steps, seed in ((2, 0), (5, 1), (5, 2), (12, 3)):
        seen, o = [], udlm.SampleOptions(0, steps=steps, seed=seed)
        udlm.generate(NET, [canvas()], o, mask_id=M, watch=lambda xs: seen.append(xs[0].clone()))  # noqa: B023
        got, want = walk(my.step, steps, seed), torch.stack(seen)
        found = ((walk(step, steps, seed), said) for step, said in typical)  # noqa: B023
        hint = "follow one step by hand: who stays, who is drawn from p, who is noise (do the claims before hold?)"
        alike(got, want, hint, found, what=f"{steps} steps, canvases after each")


def claim_given(my):
    """what was given stays, whatever the network thinks of it, and the canvas that was handed in is left as it was"""
    x = torch.where(canvas() == M, 3, canvas())
    given, before, u = canvas() != M, x.clone(), torch.full((10,), 1e-6).double()
    got = my.step(model, x, given, 0.5, 0.4, lambda which: u, M)
    true(torch.equal(x, before), "x as it was", "x changed", "return a new tensor: begin with x.clone()")
    kept = torch.where(given, before, got) if torch.is_tensor(got) and got.shape == x.shape else before
    alike(got, kept, GIVEN)
