"""The autoregressive baseline, beside ar.py: the units and the units of work are diffusion's."""

import pytest
import torch
import toy
from toy import CAUSAL, M, ids, texts, transformer

import ar
from nanodlm import choice, noise


def next_token_logp(net, tokens, mask_id):
    """log p of the next token after each prefix, by one plain forward over [mask, tokens]: (len + 1, V)."""
    logits = net(torch.cat([ids(mask_id), tokens])[None])[0]
    logits[:, mask_id] = -torch.inf
    return logits.log_softmax(-1)


def test_the_autoregressive_loss_is_the_sum_of_the_tokens_nll():
    """Every token is predicted, the first one from begin-of-text, as in diffusion: the units are the same."""
    x = texts(3, 7)
    maskable = torch.arange(7) >= torch.tensor([0, 2, 7])[:, None]
    nll = torch.stack([-next_token_logp(CAUSAL, row, M)[:-1].gather(1, row[:, None])[:, 0] for row in x])
    value = ar.nelbo(CAUSAL, x, mask_id=M)
    assert value.dtype == torch.float64 and (value - nll.sum(1)).abs().max() < 1e-5
    assert (ar.nelbo(CAUSAL, x, mask_id=M, maskable=maskable) - (nll * maskable).sum(1)).abs().max() < 1e-5
    assert abs(ar.loss(CAUSAL, x, mask_id=M) - nll.mean()) < 1e-6
    assert abs(ar.loss(CAUSAL, x, mask_id=M, maskable=maskable) - nll[maskable].mean()) < 1e-6
    parts = [ar.loss(CAUSAL, x[i : i + 1], mask_id=M, maskable=maskable[i : i + 1], denominator=12) for i in range(3)]
    assert abs(sum(parts) - nll[maskable].mean()) < 1e-6
    real = torch.arange(7) < torch.tensor([7, 3, 5])[:, None]
    padded = ar.nelbo(CAUSAL, torch.where(real, x, 0), mask_id=M, real=real)
    assert (padded - (nll * real).sum(1)).abs().max() < 1e-5


def test_autoregressive_likelihoods_sum_to_one():
    """Over all strings of a tiny vocabulary, the mask excluded, given any prompt, in ragged batches."""
    net = transformer(2, vocab_size=4, causal=True)  # the mask is id 2
    targets = [t for t in toy.listing(4, 3) if (t != 2).all()]
    assert len(targets) == 27
    for prompt in (ids(), ids(3, 0)):
        ll = ar.log_likelihood(net, [prompt] * 27, targets, ar.LikelihoodOptions(batch_size=5), mask_id=2)
        assert abs(ll.exp().sum() - 1) < 1e-6
    prompts, targets = [ids(), ids(0, 1, 3), ids(1)], [ids(3, 1), ids(0), ids(0, 0, 0, 1)]
    together = ar.log_likelihood(net, prompts, targets, mask_id=2)
    for prompt, target, value in zip(prompts, targets, together):
        logp = next_token_logp(net, torch.cat([prompt, target]), 2)[len(prompt) : -1]
        assert abs(value - logp.gather(1, target[:, None]).sum()) < 1e-5


@pytest.mark.parametrize("keys", [dict(temperature=0), {}, dict(top_k=4, top_p=0.9, temperature=1.3, seed=2)], ids=str)
def test_the_kv_cache_gives_the_tokens_of_recomputation(keys):
    """Greedy, or sampled with the same uniform numbers; a ragged row is what it is alone; the trace replays."""
    options = ar.SampleOptions(9, suppress=(3,), **keys)
    prompts = [ids(1, 2, 4), ids(), ids(6, 7, 8, 9, 10), ids(11)]
    out = ar.generate(CAUSAL, prompts, options, mask_id=M, trace=True)
    assert out.num_forwards == [9] * 4
    for row, prompt in enumerate(prompts):
        tokens = prompt
        for _, position, token, p in out.trace[row]:
            logits = next_token_logp(CAUSAL, tokens, M)[-1:]
            logits[:, 3] = -torch.inf
            u = noise.uniform(options.seed, torch.tensor([row]), len(tokens), 1)
            drawn = choice.choose_tokens(logits, u, options.temperature, options.top_k, options.top_p)
            assert (position, token) == (len(tokens), drawn.item())
            assert abs(p - logits.softmax(-1)[0, token].item()) < 1e-5
            tokens = torch.cat([tokens, drawn])
        assert torch.equal(out.tokens[row], tokens) and len(tokens) == len(prompt) + 9
        others = [ids(8, 8, 8, 8, 8, 8, 8)] * row + [prompt] + [ids(2)]
        assert torch.equal(ar.generate(CAUSAL, others, options, mask_id=M).tokens[row], tokens)


def test_autoregressive_generation_stops_at_a_generated_end_of_text():
    """Each row by itself; one in the prompt stops nothing; nothing to generate needs no forward."""
    prompts = [ids(1, 2, 4), ids(), ids(6, 7, 8, 9, 10), ids(11)]
    free = ar.generate(CAUSAL, prompts, ar.SampleOptions(9), mask_id=M)
    for eos in (0, int(free.tokens[0][5]), int(free.tokens[1][2])):
        given_eos = [torch.cat([ids(eos), p]) for p in prompts]
        for start in (prompts, given_eos):
            full = ar.generate(CAUSAL, start, ar.SampleOptions(9), mask_id=M).tokens
            out = ar.generate(CAUSAL, start, ar.SampleOptions(9), mask_id=M, eos_id=eos)
            for prompt, row, whole, forwards in zip(start, out.tokens, full, out.num_forwards):
                ends = (whole[len(prompt) :] == eos).nonzero()[:, 0].tolist()
                n = len(prompt) + ends[0] + 1 if ends else len(whole)
                assert torch.equal(row, whole[:n]) and forwards == n - len(prompt)
    none = ar.generate(CAUSAL, prompts, ar.SampleOptions(0), mask_id=M)
    assert all(torch.equal(a, b) for a, b in zip(none.tokens, prompts)) and none.num_forwards == [0] * 4
    assert ar.generate(CAUSAL, [], ar.SampleOptions(3), mask_id=M).tokens == []


def test_bad_input_is_refused_with_the_value_and_the_way_out():
    """An autoregressive model cannot fill in."""
    with pytest.raises(ValueError, match="masks"):
        ar.generate(CAUSAL, [ids(1, M, 2)], ar.SampleOptions(2), mask_id=M)
    with pytest.raises(ValueError, match="top_p=0.0 .*above 0, up to 1"):
        ar.SampleOptions(top_p=0.0)
    with pytest.raises(ValueError, match="temperature=-1.0 .*from 0"):
        ar.SampleOptions(temperature=-1.0)
