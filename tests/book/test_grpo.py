"""grpo.py against numbers that can be listed: two letters and a mask, texts of four, all ways to write them."""

import itertools
import math

import pytest
import torch
from toy import MASK, STRINGS, L, assert_mean, generator, transformer

import bd3lm
import grpo
import mdlm
from grpo import Answers, LossOptions
from nanodlm import noise

REWARD = torch.randn(16, generator=generator(8)).double()
EVERY, NONE = torch.ones(16, L, dtype=torch.bool), torch.zeros(16, L, dtype=torch.int64)


def network(block_size=0):
    """A random Transformer in float64, far enough from uniform that orders differ."""
    return transformer(seed=2, scale=0.7, vocab_size=3, seq_len=L, block_size=block_size)


def law(net, steps, size=L):
    """log p of all strings by enumeration of every path of the sampler, from the definition, with a gradient: (16,)."""
    parts = [list(range(a, min(a + size, L))) for a in range(0, L, size)]
    shares = noise.shares(steps, torch.tensor([len(p) for p in parts])).tolist() if steps else [len(p) for p in parts]
    canvases = {(MASK,) * L: torch.zeros((), dtype=torch.float64)}
    for part, n in zip(parts, shares):
        for step in range(n):
            following = {}
            for canvas, logp in canvases.items():
                where = [i for i in part if canvas[i] == MASK]
                x = torch.tensor([canvas])
                if size == L:
                    logits = net(x)[0, where, :MASK]
                else:
                    flat = torch.tensor(where)
                    logits = bd3lm.predict(net, x, x, flat, size, MASK)[:, :MASK]
                p = logits.log_softmax(-1)
                count = int(noise.share(len(part), step, n))
                order = sorted(range(len(where)), key=lambda j: -p[j].max().item())[:count]
                for tokens in itertools.product(range(2), repeat=count):
                    new, total = list(canvas), logp
                    for j, v in zip(order, tokens):
                        new[where[j]], total = v, total + p[j, v]
                    following[tuple(new)] = total
            canvases = following
    assert len(canvases) == 16
    return torch.stack([canvases[tuple(s)] for s in STRINGS.tolist()])


def gradient(net, value):
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(net.parameters())) if g is not None])


def answers(when=NONE, advantage=None, **keys):
    advantage = torch.zeros(16) if advantage is None else advantage
    return Answers(STRINGS, EVERY, EVERY, EVERY, when, torch.arange(16), advantage, **keys)


def steps_of(net, options):
    """When each token of each string is revealed, by the sampler itself (mdlm.denoise), block by block."""
    found, place = NONE.clone(), torch.arange(L) // (options.block_size or L)
    for i, x0 in enumerate(STRINGS):
        x = torch.full((L,), MASK)
        for b in place.unique().tolist():
            logits_at = lambda x, at: net(x[None], rows=at)  # noqa: E731
            if options.block_size:
                _, logits_at = bd3lm.logits_of(net, x, b, options.block_size, L)
            keys = dict(mask_id=MASK, steps=options.steps, answer=x0)
            with torch.no_grad():
                for step, (at, _) in enumerate(mdlm.denoise(net, logits_at, x, place == b, **keys)):
                    found[i, at] = step
    return found


@pytest.mark.parametrize("steps, size", [(0, 0), (2, 0), (3, 0), (1, 0), (0, 2)])
def test_the_exact_estimate_is_log_pi_and_its_gradient_that_of_the_expected_reward(steps, size):
    """For any number of tokens per step. The gradient of sum pi(x) r(x), by autograd through the enumeration."""
    net, o = network(size), LossOptions(steps=steps, block_size=size, estimate="exact", per="token")
    logp = law(net, steps, size or L)
    assert abs(logp.exp().sum().item() - 1) < 1e-12
    wanted = gradient(net, (logp.exp() * REWARD).sum())
    weight = (logp.exp() * (REWARD - 0.3)).detach()  # a baseline changes nothing, as sum pi grad log pi = 0
    a = answers(steps_of(net, o), weight)
    torch.testing.assert_close(grpo.log_pi(net, a, o, MASK).sum(1), logp, rtol=0, atol=1e-10)
    if not steps and not size:
        exact = mdlm.log_likelihood(net, [STRINGS[0, :0]] * 16, list(STRINGS), likelihood(), mask_id=MASK)
        torch.testing.assert_close(logp.detach(), exact, rtol=0, atol=1e-10)
    found = gradient(net, grpo.loss(net, torch.arange(16), o, mask_id=MASK, answers=a, denominator=1))
    torch.testing.assert_close(-found, wanted, rtol=0, atol=1e-8)
    assert wanted.abs().max() > 1e-3


def likelihood():
    return mdlm.LikelihoodOptions(method="confidence")


def test_a_group_of_two_gives_half_of_the_gradient():
    """The mean counts the answer itself: 1 - 1/group of the true gradient, over all pairs of answers."""
    net, o = network(), LossOptions(group=2, estimate="exact", per="token", deviation=False)
    logp, a = law(net, 0), answers(steps_of(net, LossOptions()))
    wanted, p = gradient(net, (logp.exp() * REWARD).sum()), logp.detach().exp()
    A = torch.stack([grpo.advantages(REWARD[[i, j]][None], False)[0] for i in range(16) for j in range(16)])
    weight = (p[:, None] * p).flatten()[:, None] * A / 2  # the mean over a group, of every pair of strings
    a.advantage = weight[:, 0].view(16, 16).sum(1) + weight[:, 1].view(16, 16).sum(0)
    found = gradient(net, grpo.loss(net, torch.arange(16), o, mask_id=MASK, answers=a, denominator=1))
    torch.testing.assert_close(-found, wanted / 2, rtol=0, atol=1e-8)


def test_advantages_of_groups():
    r = torch.tensor([[1, 0, 0, 1], [1, 1, 1, 1], [math.nan, 0, 2, 1], [math.nan] * 4]).double()
    plain, scaled = grpo.advantages(r, False), grpo.advantages(r)
    assert plain.tolist() == [[0.5, -0.5, -0.5, 0.5], [0] * 4, [0, -1, 1, 0], [0] * 4]
    torch.testing.assert_close(scaled[0], plain[0] / (r[0].std() + 1e-4))
    torch.testing.assert_close(scaled[2], plain[2] / (r[2, 1:].std() + 1e-4))
    assert not scaled[1].any() and not scaled[3].any()  # nobody is better, or nobody is judged: nothing is learnt


@pytest.mark.parametrize("size", [0, 2])
def test_the_other_estimates_are_what_they_say(size):
    """d1: all at once. nelbo: minus the bound, on average. coupled: every token on the empty canvas and on one of two
    that are each other's opposite."""
    net, x = network(size), STRINGS
    a = answers()
    empty = torch.full_like(x, MASK)
    rows = torch.arange(x.numel())
    logits = net(empty) if not size else bd3lm.predict(net, empty, x, rows, size, MASK).view(16, L, -1)
    alone = logits[..., :MASK].log_softmax(-1).gather(2, x[..., None])[..., 0]
    found = grpo.log_pi(net, a, LossOptions(estimate="d1", block_size=size), MASK)
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-10)
    o = LossOptions(estimate="nelbo", masks=16, block_size=size)
    found = torch.stack([grpo.log_pi(net, answers(seed=s), o, MASK).detach().sum(1) for s in range(40)])
    bound = (bd3lm if size else mdlm).nelbo(net, x, mask_id=MASK, samples=400)
    for i in range(0, 16, 5):
        assert_mean(found[:, i], -bound[i].item())
    (every, _, half), (part, _, w), (rest, _, v) = grpo.looks(a, LossOptions(estimate="coupled"))
    assert every.all() and (half == 0.5).all() and (part ^ rest).all() and part.any() and rest.any()
    torch.testing.assert_close(1 / (2 * w) + 1 / (2 * v), torch.ones_like(w))


def test_masks_are_the_rows_own_and_the_same_when_looked_at_again():
    for estimate in ("d1", "coupled", "nelbo"):
        o = LossOptions(estimate=estimate)
        a = answers(seed=5)
        a.hole = torch.arange(L).expand(16, -1) >= 2
        again, all_of = grpo.looks(a, o), grpo.looks(a, o)
        some = Answers(**{k: v[3:7] if torch.is_tensor(v) else v for k, v in vars(a).items()})
        for one, two, few in zip(again, all_of, grpo.looks(some, o)):
            assert torch.equal(one[0], two[0]) and torch.equal(one[0][3:7], few[0])
            assert not (one[1] & ~a.hole).any()


def test_ratios_are_clipped_on_the_side_that_would_go_on():
    net, o = network(), LossOptions(per="token", clip_ratio=0.2, clip_higher=0.3)
    logp = grpo.log_pi(net, answers(), o, MASK).detach()
    change = torch.linspace(-1, 1, 16 * L).view(16, L).double()
    for A in (1.0, -1.0):
        facts = {}
        a = answers(advantage=torch.full((16,), A).double(), old=logp - change, note=facts.update)
        found = grpo.surrogate(net, a, o, MASK)
        ratio = change.exp()
        want = -(torch.minimum(ratio * A, ratio.clamp(0.8, 1.3) * A)).sum(1)
        torch.testing.assert_close(found.detach(), want.double(), rtol=0, atol=1e-8)
        assert torch.equal(facts["clipped"], ratio > 1.3 if A > 0 else ratio < 0.8)
    o = LossOptions(ratio="answer", kl=0.5)
    a = answers(advantage=torch.ones(16), old=logp - change, base=logp + change)
    want = -torch.minimum(change.mean(1).exp(), change.mean(1).exp().clamp(max=1.2)) + 0.5 * (
        change.exp() - change - 1
    ).mean(1)
    torch.testing.assert_close(grpo.surrogate(net, a, o, MASK).detach(), want.double(), rtol=0, atol=1e-8)


def test_the_tutorial_runs(capsys):
    grpo.tutorial(steps=8, rounds=3, group=2, samples=8)
    assert "exact" in capsys.readouterr().out
