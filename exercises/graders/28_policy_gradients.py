"""The claims of lesson 28, beside grpo.advantages, grpo.surrogate and mdlm.log_likelihood."""

import math

import torch
import toy
from checks import Wrong, alike, kind

import grpo
import mdlm

M, NET = toy.M, toy.NETS["learned"]  # learned positions: no two places look alike, so that rounding decides nothing
REWARDS = torch.tensor([[1, 0, 0, 1, 0], [2, 2, 2, 2, 2], [0.5, 0.1, 0.9, 0.4, 0.7]]).double()
FAILED = torch.tensor([[1, math.nan, 0, 1, 0], [math.nan] * 5, [math.nan, 3, math.nan, 1, 2]]).double()


def mistakes(r, deviation):
    """What a typical mistake gives."""
    d = r - r.nanmean(1, keepdim=True)
    kept, n = d.nan_to_num(0.0), (~r.isnan()).sum(1, keepdim=True)
    over = (kept.square().sum(1, keepdim=True) / (n - 1).clamp(min=1)).sqrt() + 1e-4
    biased = (kept.square().sum(1, keepdim=True) / n.clamp(min=1)).sqrt() + 1e-4
    all_of = r - r.nanmean()
    within = "a group is compared with itself: means along the second dimension"
    return [
        (all_of / (all_of.std() + 1e-4 if deviation else 1), within),
        (
            kept / biased,
            "the deviation is a sample's: over G - 1" if deviation else "deviation is False: do not divide",
        ),
        (kept / over, "deviation is False: do not divide"),
        (kept, "deviation is True: divide by it, and 1e-4"),
        (kept / (over - 1e-4), "add 1e-4 to the deviation, or equal rewards divide 0 by 0"),
        (-kept / (over if deviation else 1), "an answer that is better than its group has a positive advantage"),
    ]


def claim_advantages(my):
    """advantages are rewards less their group's mean, over its deviation if that is asked for"""
    for deviation in (False, True):
        hint = "subtract each row's mean; then, if asked, divide by its standard deviation + 1e-4"
        got = my.advantages(REWARDS.clone(), deviation)
        alike(
            got, grpo.advantages(REWARDS, deviation), hint, mistakes(REWARDS, deviation), what=f"deviation {deviation}"
        )


def claim_failed(my):
    """a reward that is not a number counts for nobody: not for the mean, not for the deviation"""
    for deviation in (False, True):
        hint = "nan is left out of mean (nanmean) and deviation, and its own advantage is 0"
        wanted, zeros = grpo.advantages(FAILED, deviation), FAILED.nan_to_num(0.0)
        found = mistakes(FAILED, deviation)
        found.insert(
            0, (grpo.advantages(zeros, deviation), "a failed reward is no reward of 0: leave it out of the mean")
        )
        alike(my.advantages(FAILED.clone(), deviation), wanted, hint, found, what=f"deviation {deviation}")


def claim_clipped(my):
    """ratios count up to 1 + eps where the advantage is positive, down to 1 - eps where it is not"""
    change = torch.linspace(-0.6, 0.6, 12).double().view(2, 6)
    old = -1 - torch.arange(12).double().view(2, 6) / 7
    for eps, A in ((0.2, [1.0, 1.0]), (0.3, [-2.0, -2.0]), (0.1, [-0.5, 1.0])):
        A = torch.tensor(A).double()
        rho, a = change.exp(), A[:, None]
        cut = rho.clamp(1 - eps, 1 + eps)
        want = -torch.minimum(rho * a, cut * a)
        found = [
            (-cut * a, "the minimum of both: what went the wrong way is pulled back, however far"),
            (-torch.maximum(rho * a, cut * a), "the minimum of both products, and then the sign"),
            (-want, "this is minimised: minus the gain"),
            (-rho * a, "clip the ratio, too, and take the smaller gain"),
            (-torch.minimum(rho, cut) * a, "the minimum is of the products with A, not of the ratios"),
            (-torch.minimum(change * a, change.clamp(-eps, eps) * a), "the ratio is exp(logp - old)"),
            (
                -torch.minimum((-change).exp() * a, (-change).exp().clamp(1 - eps, 1 + eps) * a),
                "the new pi over the old",
            ),
            (-torch.minimum(rho * a, rho.clamp(0.8, 1.2) * a), "eps is what is given, not always 0.2"),
        ]
        alike(
            my.clipped(old + change, old.clone(), A, eps),
            want,
            "write down the formula",
            found,
            what=f"A = {A.tolist()}, eps = {eps}",
        )


def claim_log_pi(my):
    """log_pi is log p of the text along its way, exactly, with the gradient of all of its terms"""
    texts = torch.tensor([[9, 3, 4, 0], [11, 10, 9, 8], [0, 1, 2, 3]])  # by logits the first has another way
    options = mdlm.LikelihoodOptions(method="confidence")
    exact = mdlm.log_likelihood(NET, [texts[0, :0]] * 3, list(texts), options, mask_id=M)
    left = mdlm.log_likelihood(NET, [texts[0, :0]] * 3, list(texts), mdlm.LikelihoodOptions("left_to_right"), mask_id=M)
    at_once = grpo.log_pi(NET, answers(texts), grpo.LossOptions(estimate="d1", mask_prompt=0.0), M).sum(1).detach()
    for x, want, other, once in zip(texts, exact, left, at_once):
        NET.zero_grad()
        got = my.log_pi(NET, x.clone(), M)
        if not torch.is_tensor(got) or got.shape != () or not got.requires_grad:
            raise Wrong("a scalar with a gradient", kind(got), "add up log p of the tokens; do not detach it")
        found = [
            (other, "the surest position goes first, not the leftmost"),
            (once, "after each token look again: the canvas has changed"),
        ]
        hint = "while there are masks: ask, find the surest, by its largest probability (of the softmax with the mask "
        hint += "left out, not of logits), add log p of the text's token there, put it in"
        alike(got.detach().double(), want, hint, found, tolerance=1e-6, what=f"the text {x.tolist()}")
        got.backward()
        grad = NET.head_weight.grad.norm() if NET.head_weight is not None else NET.embed.weight.grad.norm()
        a = answers(x[None], steps_of(x)[None])
        NET.zero_grad()
        grpo.log_pi(NET, a, grpo.LossOptions(estimate="exact"), M).sum().backward()
        right = NET.head_weight.grad.norm() if NET.head_weight is not None else NET.embed.weight.grad.norm()
        alike(grad, right, "every step's log p has a gradient; the choice of the position has none", tolerance=1e-5)


def steps_of(answer):
    """The step in which the sampler would reveal each token of an answer, int64 (L,)."""
    x, when = torch.full_like(answer, M), torch.zeros_like(answer)
    with torch.no_grad():
        steps = mdlm.denoise(NET, lambda x, at: NET(x[None], rows=at), x, x == M, mask_id=M, answer=answer)
        for step, (at, _) in enumerate(steps):
            when[at] = step
    return when


def answers(x0, when=None):
    every = torch.ones_like(x0, dtype=torch.bool)
    when = torch.zeros_like(x0) if when is None else when
    return grpo.Answers(x0, every, every, every, when, torch.arange(len(x0)), torch.zeros(len(x0)))
