"""How likely a text is, as published codes estimate it: against definitions that are enumerated on the toy, and token
by token on networks. (LLaDA arXiv 2502.09992, Dream 2508.15487, iLLaDA 2606.25331.)"""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from reference_sampler import Memory
from toy import ARBITRARY, MASK, NETS, SIZES, STRINGS, SUBSETS, L, M, assert_mean, ids, subset_ce

from nanodlm import fast_mdlm, likelihood
from nanodlm.likelihood import LikelihoodOptions


def mean_by_size(ce, target):
    """The mean of ce over the sets of k tokens of `target` (bool (L,)), for every k: {k: mean}."""
    inside, size = (SUBSETS <= target).all(1), SIZES
    return {k: ce[inside & (size == k)].mean().item() for k in range(1, int(target.sum()) + 1)}


def lladas_mean(ce, n, samples, batch):
    """The expectation of LLaDA's estimate of -log p, over the first count k and the masks: its code rounds halves to
    even numbers, as Python does."""
    total = 0.0
    for j, k in itertools.product(range(samples), range(1, n + 1)):
        count = (round(k + j % batch * n / batch) - 1) % n + 1
        total += n / count * ce[count] / samples / n
    return total


TARGETS = [(ids(), ids(0, 1, 1, 0)), (ids(1), ids(0, 0, 1)), (ids(0, 1, 0), ids(1))]


def estimates(prompt, target, o, n=4000):
    """n independent estimates of -log p: as many rows, each with masks of its own."""
    return -fast_mdlm.log_likelihood(ARBITRARY, [prompt] * n, [target] * n, replace(o, batch_size=n), mask_id=MASK)


@pytest.mark.parametrize("samples, batch", [(1, 1), (4, 4), (3, 8), (8, 8), (5, 3), (4, 2)])
@pytest.mark.parametrize("prompt, target", TARGETS)
def test_lladas_likelihood_has_the_expectation_of_its_definition(prompt, target, samples, batch):
    x, where = torch.cat([prompt, target]), torch.arange(L) >= len(prompt)
    ce = mean_by_size(subset_ce(ARBITRARY, x[None], mask_too=True)[0], where)
    exact = lladas_mean(ce, len(target), samples, min(batch, samples))
    assert_mean(estimates(prompt, target, LikelihoodOptions("llada", samples, batch)), exact)


@pytest.mark.parametrize("prompt, target", TARGETS)
def test_lladas_likelihood_is_an_unbiased_estimate_of_the_nelbo(prompt, target):
    """One mask at a time, or as many as the target has tokens. (Else, the rounding favours even counts.)"""
    x, where = torch.cat([prompt, target]), torch.arange(L) >= len(prompt)
    ce, n = mean_by_size(subset_ce(ARBITRARY, x[None], mask_too=True)[0], where), len(target)
    bound = sum(ce[k] / k for k in ce)  # the mean over k of n/k times the mean cross entropy
    assert abs(lladas_mean(ce, n, n, n) - bound) < 1e-12 and abs(lladas_mean(ce, n, 1, 1) - bound) < 1e-12
    assert_mean(estimates(prompt, target, LikelihoodOptions("llada", n, n)), bound)
    assert_mean(estimates(prompt, target, LikelihoodOptions("llada", 2, 1)), bound)


def test_lladas_counts_are_evenly_spread_within_a_batch():
    maskable = torch.arange(20) < torch.tensor([[20], [7], [1], [0]])
    counts = torch.stack([likelihood.llada_masks(maskable, torch.arange(4), j, 8, 0, 5)[0].sum(1) for j in range(8)], 1)
    for n, row in zip((20, 7, 1), counts.tolist()):
        for part in (row[:5], row[5:]):
            k = part[0]
            assert part == [(round(k + j * n / 5) - 1) % n + 1 for j in range(len(part))]
    assert counts[3].tolist() == [0] * 8
    assert counts[0, 0] != counts[0, 5], "each batch has a first count of its own"


@pytest.mark.parametrize("samples, batch", [(1, 1), (4, 4), (5, 3)])
@pytest.mark.parametrize("prompt, target", TARGETS[:2])
def test_dreams_likelihood_has_the_expectation_of_its_definition(prompt, target, samples, batch):
    """An integral over t of all masks that leave the last token, with weight 1 / p for p = 0.999 t + 0.001."""
    x = torch.cat([prompt, target])
    where = (torch.arange(L) >= len(prompt)) & (torch.arange(L) < L - 1)
    inside, size = (SUBSETS <= where).all(1), SIZES
    node, weight = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(8))
    t = ((node + 1) / 2)[:, None]
    p = (1 - 1e-3) * t + 1e-3
    chance = p**size * (1 - p) ** (where.sum() - size).clamp(min=0) * inside
    exact = (weight[:, None] / 2 * chance / p * subset_ce(ARBITRARY, x[None], mask_too=True)[0]).sum().item()
    assert_mean(estimates(prompt, target, LikelihoodOptions("dream", samples, batch)), exact)


def test_dreams_times_are_evenly_spread_within_a_batch_and_the_last_token_is_given():
    maskable = torch.arange(9) < torch.tensor([[9], [4], [1], [0]])
    drawn = [likelihood.dream_masks(maskable, torch.arange(4), j, 6, 3, 4) for j in range(6)]
    t = torch.stack([(1 / weight - 1e-3) / (1 - 1e-3) for _, weight in drawn], 1)
    assert torch.allclose(t[:, :4].sort(1).values.diff(dim=1), torch.tensor(0.25, dtype=torch.float64))
    assert torch.allclose((t[:, 5] - t[:, 4]) % 1, torch.tensor(0.25, dtype=torch.float64))
    ever = torch.stack([hidden for hidden, _ in drawn]).any(0)
    assert ever[0, :8].all() and not ever[0, 8] and not ever[1, 3:].any() and not ever[2:].any()


METHODS = ["nelbo", "left_to_right", "confidence", "llada", "dream", "illada"]


def plain_score(logits_of, prompt, target, o, row=0):
    """log_likelihood of one text; logits_of(canvas (T,)) are the network's, the shift undone."""
    x, scale = torch.cat([prompt, target]), o.cfg_scale
    places = list(range(len(prompt), len(x)))

    def own(hidden):
        """{place: (log p of its own token, the largest)} for hidden places."""
        canvas = torch.tensor([M if i in hidden else int(t) for i, t in enumerate(x)])
        blind = torch.tensor([M if i not in places else int(t) for i, t in enumerate(canvas)])
        logits = logits_of(canvas)
        if scale:
            logits = logits_of(blind) + (scale + 1) * (logits - logits_of(blind))
        if o.method not in ("llada", "dream", "illada"):
            logits[:, M] = -torch.inf
        logp = logits.log_softmax(-1)
        return {i: (logp[i, x[i]].item(), logp[i].max().item()) for i in hidden}

    if o.method in ("nelbo", "llada", "dream"):
        total, maskable, row = 0.0, (torch.arange(len(x)) >= len(prompt))[None], torch.tensor([row])
        for j in range(o.mc_samples):
            batch = () if o.method == "nelbo" else (o.mc_batch,)
            hidden, weight = getattr(likelihood, f"{o.method}_masks")(maskable, row, j, o.mc_samples, o.seed, *batch)
            found = own(set(hidden[0].nonzero()[:, 0].tolist()))
            total += weight.item() * sum(logp for logp, _ in found.values()) / o.mc_samples
        return total
    hidden, total = set(places), 0.0
    while hidden:
        found = own(hidden)
        key = {
            i: {"left_to_right": -i, "confidence": sure, "illada": logp}[o.method] for i, (logp, sure) in found.items()
        }
        best = min(i for i in key if key[i] > max(key.values()) - 1e-5)  # of equal ones the first
        total += found[best][0]
        hidden.remove(best)
    return total


PROMPTS = [ids(1, 2, 3), ids(), ids(7), ids(10, 0), ids(6, 6)]
ANSWERS = [ids(9, 4, 4, 8), ids(1, 2), ids(6, 0, 11, 3, 8, 2), ids(3), ids(8, 1, 0, 7, 2)]


def score(net, method, **keys):
    return fast_mdlm.log_likelihood(net, PROMPTS, ANSWERS, LikelihoodOptions(method, **keys), mask_id=M)


@pytest.mark.parametrize("scale", [0.0, 1.5])
@pytest.mark.parametrize("net", ["plain", "shift", "all of it"])
@pytest.mark.parametrize("method", METHODS)
def test_a_ragged_batch_of_texts_scores_as_the_plain_definition_one_by_one(method, net, scale):
    """In batches of any size; a shift is the token before's output, as reference_sampler reads it by hand."""
    o = dict(mc_samples=5, mc_batch=3, cfg_scale=scale, seed=2)
    whole = score(NETS[net], method, batch_size=3, **o)

    @torch.no_grad()
    def logits_of(canvas):
        read = Memory(NETS[net]).read(canvas, list(range(len(canvas))))
        return torch.stack([read[i] for i in range(len(canvas))])

    options = LikelihoodOptions(method, **o)
    expected = [plain_score(logits_of, p, t, options, i) for i, (p, t) in enumerate(zip(PROMPTS, ANSWERS))]
    assert np.allclose(whole, expected, atol=1e-5)
    assert whole.dtype == torch.float64 and len(set(whole.tolist())) == 5
    for size in (1, 16):
        assert torch.allclose(score(NETS[net], method, batch_size=size, **o), whole, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_answer_is_certain(method):
    """Dream gives the last token, so that an answer of one token is certain, too."""
    o = LikelihoodOptions(method, mc_samples=3)
    answers = [ids(), ids(4, 6), ids(3)]
    a, _, c = fast_mdlm.log_likelihood(NETS["plain"], [ids(1, 2)] * 3, answers, o, mask_id=M).tolist()
    assert a == 0 and (c == 0) == (method == "dream")
    assert (
        fast_mdlm.log_likelihood(NETS["plain"], [ids(1)], [ids(3)], replace(o, method="dream"), mask_id=M).item() == 0
    )
    assert fast_mdlm.log_likelihood(NETS["plain"], [], [], o, mask_id=M).shape == (0,)


def test_illadas_score_reveals_the_likeliest_own_token_first_and_so_is_no_likelihood():
    """On the toy its probabilities do not sum to one; those of the confidence order do."""
    confidence, illada = (
        fast_mdlm.log_likelihood(ARBITRARY, [ids()] * 16, list(STRINGS), LikelihoodOptions(m), mask_id=MASK).exp().sum()
        for m in ("confidence", "illada")
    )
    assert abs(confidence - 1) < 1e-9 and abs(illada - 1) > 1e-3


@pytest.mark.parametrize("method", ["left_to_right", "confidence"])
def test_an_answer_that_holds_a_mask_is_impossible(method):
    found = fast_mdlm.log_likelihood(NETS["plain"], [ids(1)], [ids(2, M, 3)], LikelihoodOptions(method), mask_id=M)
    assert found.item() == -math.inf
