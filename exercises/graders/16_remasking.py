"""The claims of lesson 16, beside choice.ancestral_rates, fast_mdlm.generate and toy.ancestral_law."""

import itertools

import torch
import toy
from checks import Wrong, alike, kind, true

from nanodlm import choice, fast_mdlm, noise

M, NET = toy.M, toy.NETS["plain"]
CAP = "sigma is the smaller of eta and (1 - alpha_s) / alpha_t"
WHICH = "reveal comes first, hide second: a pair"
GIVEN = "what was given always stays: only what the model wrote may be hidden"
SHOWN = "a token is hidden with probability hide, where uniform(0) is below it, and is shown in x, and was not given"


@torch.no_grad()
def model(canvases):
    return NET(canvases)


def options(eta, steps=8):
    return fast_mdlm.SampleOptions(0, steps=steps, quota="ancestral", remask=eta)


def times():
    t = torch.tensor([1.0, 1.0, 0.9, 0.8, 0.6, 0.5, 0.3, 0.1, 0.25], dtype=torch.float64)
    s = torch.tensor([0.9, 0.0, 0.8, 0.1, 0.5, 0.25, 0.2, 0.0, 0.1], dtype=torch.float64)
    return t, s


def pair(got):
    if not isinstance(got, tuple | list) or len(got) != 2:
        raise Wrong("two tensors, reveal and hide", kind(got), WHICH)
    return got


def numbers(seed, k):
    """uniform(which) of step k and row 0, as fast_mdlm.generate draws them."""
    return lambda which: noise.uniform(seed, 0, k, which, torch.arange(10))


def canvas():
    x = torch.full((10,), M)
    x[:2], x[6] = torch.tensor([7, 8]), 9
    return x


def walk(step, eta, steps, seed):
    """The canvases after each step, a list."""
    x, seen = canvas(), []
    given = x != M
    for k in range(steps):
        t, s = (torch.tensor([1 - (k + i) / steps], dtype=torch.float64) for i in (0, 1))
        x = step(model, x.clone(), given.clone(), t, s, eta, numbers(seed, k), M)
        if not torch.is_tensor(x) or x.shape != (10,) or x.dtype != torch.int64:
            raise Wrong("int64 (10,)", kind(x), "shape and dtype are said in the function's docstring")
        seen.append(x)
    return torch.stack(seen)


def variant(spare=True, masked=True, twice=False, fresh=False, never=False, same=False):
    """A step with a typical mistake."""

    def step(model, x, given, t, s, eta, uniform, mask_id):
        reveal, hide = choice.ancestral_rates(t, s, options(eta))
        hidden = x == mask_id
        now, back = hidden & (uniform(0) < reveal), ~hidden & (uniform(0) < hide)
        if fresh:
            back = ~hidden & (uniform(1) < hide)
        if never:
            back = back & False
        if spare:
            back = back & ~given
        logits = model(x[None])[0]
        if masked:
            logits = logits.index_fill(1, torch.tensor([mask_id]), -torch.inf)
        x = x.clone()
        x[now] = noise.draw(logits[now], uniform(0 if same else 1)[now])
        if twice:
            back = (x != mask_id) & ~given & (uniform(0) < hide)
        x[back] = mask_id
        return x

    return step


def claim_rates(my):
    """rates are ReMDM-cap's, as choice.ancestral_rates gives them"""
    t, s = times()
    for eta in (1.0, 0.4, 0.1, 0.0):
        reveal, hide = choice.ancestral_rates(t, s, options(eta))
        plain = choice.ancestral_rates(t, s, options(0.0))[0]
        swapped = torch.minimum(torch.full_like(t, eta), t / (1 - s).clamp(min=1e-12))
        free = (t - s + eta * (1 - t)) / t
        other = "which of the two is alpha_t, and which alpha_s? alpha = 1 - time, and s is the earlier time"
        constant = torch.full_like(t, eta)
        got = pair(my.rates(t.clone(), s.clone(), eta))
        found = [(constant, CAP), (swapped, other), (reveal, WHICH), (s / t, CAP), (1 - hide, "hide is sigma itself")]
        alike(got[1], hide, f"{CAP}; at alpha_t = 0 divide by 1e-12", found, what=f"eta {eta}, hide")
        found = [(plain, "reveal has to make up for what is hidden: sigma is in it, too"), (free, CAP)]
        found += [(1 - reveal, "the probability to be revealed, not to stay hidden"), (hide, WHICH)]
        alike(got[0], reveal, "solve the equation for r: sigma is the capped one", found, what=f"eta {eta}, reveal")


def claim_marginals(my):
    """at every s as much is shown as the process shows: alpha_t (1 - hide) + (1 - alpha_t) reveal = alpha_s"""
    t = torch.linspace(0.05, 1.0, 20, dtype=torch.float64)
    for eta, share in itertools.product((0.0, 0.2, 0.7, 1.0), (0.0, 0.3, 0.9)):
        s = t * share
        reveal, hide = pair(my.rates(t.clone(), s.clone(), eta))
        both = torch.is_tensor(reveal) and torch.is_tensor(hide)
        true(both, "two tensors", f"{kind(reveal)} and {kind(hide)}", WHICH)
        alike((1 - t) * (1 - hide) + t * reveal, 1 - s, "solve the equation for r, with the capped sigma in it")
        ends = f"between {min(reveal.min(), hide.min()):.3f} and {max(reveal.max(), hide.max()):.3f}"
        inside = min(reveal.min(), hide.min()) >= -1e-9 and max(reveal.max(), hide.max()) <= 1 + 1e-9
        true(bool(inside), "probabilities, from 0 to 1", ends, CAP)


def claim_step(my):
    """step after step, token for token, what fast_mdlm.generate writes with remask = eta"""
    revealed = "a token that is revealed in a step is not hidden in the same one: look at what is shown in x"
    logits = "the mask's logit is set to -inf before the softmax"
    one = "uniform(0) says who is revealed and who is hidden, uniform(1) what is drawn"
    typical = [(variant(never=True), SHOWN), (variant(spare=False), GIVEN), (variant(twice=True), revealed)]
    typical += [(variant(masked=False), logits), (variant(fresh=True), one), (variant(same=True), one)]
    for eta, seed in ((0.0, 0), (0.3, 0), (0.3, 1), (1.0, 0)):
        seen, o = [], fast_mdlm.SampleOptions(0, steps=8, quota="ancestral", remask=eta, seed=seed)
        fast_mdlm.generate(NET, [canvas()], o, mask_id=M, watch=lambda xs: seen.append(xs[0].clone()))  # noqa: B023
        got, want = walk(my.step, eta, 8, seed), torch.stack(seen)
        found = ((walk(step, eta, 8, seed)[: len(want)], said) for step, said in typical)  # noqa: B023
        hint = "follow one step by hand: who is revealed, what is drawn there, who is hidden"
        alike(got[: len(want)], want, hint, found, what=f"eta {eta}, canvases after each step")


def claim_given(my):
    """what was given is never hidden, and the canvas that was handed in is left as it was"""
    x, one = canvas(), torch.ones(1, dtype=torch.float64)
    x[3] = 4
    given, before = canvas() != M, x.clone()
    u = torch.full((10,), 1e-6, dtype=torch.float64)
    got = my.step(model, x, given, 0.6 * one, 0.5 * one, 1.0, lambda which: u, M)
    true(torch.equal(x, before), "x as it was", "x changed", "return a new tensor: begin with x.clone()")
    kept = torch.where(given, before, got) if torch.is_tensor(got) and got.shape == x.shape else before
    alike(got, kept, GIVEN)


def claim_law(my):
    """with these rates, the words that a sampler writes have the right law on a language of 16 words"""
    for eta in (0.0, 0.5):
        want = toy.ancestral_law(toy.EXACT, options(eta), lambda t, s: choice.ancestral_rates(t, s, options(eta)))  # noqa: B023
        got = toy.ancestral_law(toy.EXACT, options(eta), lambda t, s: pair(my.rates(t, s, eta)))  # noqa: B023
        alike(got, want, "the law of rates(t, s, eta) over 8 steps", what=f"eta {eta}")
