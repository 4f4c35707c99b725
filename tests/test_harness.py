"""The model that lm-eval asks: estimates against enumeration and naive loops, answers against lm-eval's own model, and
runs that were killed or shared out."""

import itertools
import json
import math
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import evals
import numpy as np
import pytest
import ranks
import torch
from evals import (
    ALGORITHMS,
    DOCS,
    FAMILIES,
    ROOT,
    TEXT,
    answered,
    asked,
    request,
    save,
    write_family,
)
from lm_eval.api.instance import Instance
from toy import (
    ARBITRARY,
    BLOCKS,
    CAUSAL,
    MASK,
    NETS,
    PLAIN,
    SUBSETS,
    L,
    M,
    Net,
    assert_mean,
    chain_rule,
    exact_nelbo,
    ids,
    subset_ce,
)

import ar
import eval as evaluation
from nanodlm import checkpoint as ckpt
from nanodlm import corpus, fast_bd3lm, fast_mdlm, harness, likelihood, tasks
from nanodlm import tokenizer as tokenizers
from nanodlm.decode import SampleOptions
from nanodlm.likelihood import LikelihoodOptions

made, run, toys = evals.made, evals.run, evals.toys


# ---- likelihoods -----------------------------------------------------------------------------------------------------
PROMPTS = [ids(1, 2, 3), ids(), ids(7), ids(10, 0), ids(10, 0), ids(10, 0), ids(6, 6)]
ANSWERS = [ids(9, 4, 4, 8), ids(1, 2), ids(6, 0, 11, 3, 8, 2), ids(3), ids(4), ids(3, 2), ids(8, 1, 0, 7, 2)]
NUMBERS = torch.tensor([70, 3, 12345678, 41, 5, 0, 999])
BOUNDS = ["nelbo", "llada", "dream"]
NETWORK = NETS["plain"]
METHODS = [*BOUNDS, "left_to_right", "confidence", "illada"]


class Counted(Net):
    """A network that counts what goes through it."""

    def __init__(self, net):
        self.net, self.config, self.forwards, self.sequences = net, net.config, 0, 0

    def hidden(self, ids, *args, **keys):
        self.forwards, self.sequences = self.forwards + 1, self.sequences + len(ids)
        return self.net.hidden(ids, *args, **keys)

    def head(self, x):
        return self.net.head(x)


def masks_of(method, n, begin, number, j, o):
    """Mask j of one text of n tokens whose answer begins at `begin`, and its weight."""
    maskable, batch = (torch.arange(n) >= begin)[None], min(o.mc_batch, o.mc_samples)
    more = () if method == "nelbo" else (batch,)
    hidden, weight = getattr(likelihood, f"{method}_masks")(
        maskable, number[None], torch.tensor([j]), o.mc_samples, o.seed, *more
    )
    return hidden[0], weight.item()


def naive(net, prompt, target, number, o):
    """The published loop: one mask after the other, each through the network by itself."""
    x, total = torch.cat([prompt, target]), 0.0
    for j in range(o.mc_samples):
        hidden, weight = masks_of(o.method, len(x), len(prompt), number, j, o)
        canvas = torch.where(hidden, M, x)
        with torch.no_grad():
            logits = net(canvas[None])[0]
            if o.cfg_scale:
                blind = net(torch.where(torch.arange(len(x)) < len(prompt), M, canvas)[None])[0]
                logits = blind + (o.cfg_scale + 1) * (logits - blind)
        if o.method == "nelbo":
            logits[:, M] = -torch.inf
        logp = logits.double().log_softmax(-1).gather(1, x[:, None])[:, 0]
        total += weight * logp[hidden].sum().item() / o.mc_samples
    return total


@pytest.mark.parametrize("scale", [0.0, 1.5])
@pytest.mark.parametrize("method", BOUNDS)
def test_encoding_equal_canvases_once_gives_what_the_published_loop_gives(method, scale):
    """Ragged texts, with and without guidance, to 1e-10; as many sequences as there are different canvases."""
    o = LikelihoodOptions(method, mc_samples=12, mc_batch=5, cfg_scale=scale, batch_size=3, seed=2)
    expected = torch.tensor([naive(NETWORK, *row, o) for row in zip(PROMPTS, ANSWERS, NUMBERS)], dtype=torch.float64)
    spy = Counted(NETWORK)
    found = fast_mdlm.log_likelihood(spy, PROMPTS, ANSWERS, o, mask_id=M, numbers=NUMBERS)
    assert (found - expected).abs().max() < 1e-10 and len(set(found.tolist())) >= 6
    x, number = [torch.cat(pair) for pair in zip(PROMPTS, ANSWERS)], NUMBERS
    drawn = [(masks_of(method, len(x[i]), len(PROMPTS[i]), number[i], j, o)[0], i) for i in range(7) for j in range(12)]
    drawn = [(h, i) for h, i in drawn if h.any() or method != "dream"]
    different = {(len(PROMPTS[i]), *torch.where(h, M, x[i]).tolist()) for h, i in drawn}
    assert len(different) <= spy.sequences // (2 if scale else 1) <= len(different) + 7 < 84
    rows = zip(PROMPTS, ANSWERS, number)
    parts = [fast_mdlm.log_likelihood(NETWORK, [p], [t], o, mask_id=M, numbers=n[None]) for p, t, n in rows]
    assert (found - torch.cat(parts)).abs().max() < 1e-10


@pytest.mark.parametrize("method", BOUNDS)
def test_one_canvas_of_two_questions_is_encoded_twice_under_guidance(method):
    """The same text and mask, cut elsewhere into prompt and answer: what is blind to the prompt sees other tokens."""
    o = LikelihoodOptions(method, mc_samples=8, cfg_scale=1.5)
    prompts, answers = [ids(10, 0), ids(10, 0, 3), ids(10)], [ids(3, 2, 4), ids(2, 4), ids(0, 3, 2, 4)]
    found = fast_mdlm.log_likelihood(NETWORK, prompts, answers, o, mask_id=M)
    rows = zip(prompts, answers, torch.arange(3))
    assert np.allclose(found, [naive(NETWORK, p, t, n, o) for p, t, n in rows], atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_numbers_decide_the_masks_and_neither_order_nor_batch_size_matters(method):
    o = LikelihoodOptions(method, mc_samples=3, mc_batch=2)

    def score(numbers=None, order=range(7), **keys):
        pairs = [[v[i] for i in order] for v in (PROMPTS, ANSWERS)]
        return fast_mdlm.log_likelihood(NETWORK, *pairs, replace(o, **keys), mask_id=M, numbers=numbers)

    values, order = score(NUMBERS), [4, 2, 6, 0, 5, 1, 3]
    for size in (1, 2, 16):
        assert (score(NUMBERS[order], order, batch_size=size) - values[order]).abs().max() < 1e-12
    assert (score(NUMBERS + 1) != values).any() == (method in BOUNDS)
    assert torch.equal(score(), score(torch.arange(7)))


@pytest.mark.parametrize("method, scale, sequences", [("nelbo", 0.0, 1), ("llada", 0.0, 1), ("llada", 2.0, 2)])
def test_the_letters_of_a_multiple_choice_take_one_forward(method, scale, sequences):
    """32 masks of four answers of one token: one canvas, two with guidance; another question is another canvas."""
    o, spy = LikelihoodOptions(method, mc_samples=32, cfg_scale=scale), Counted(NETWORK)
    letters = [ids(i) for i in (3, 4, 6, 7)]
    found = fast_mdlm.log_likelihood(spy, [ids(1, 2)] * 4, letters, o, mask_id=M, numbers=NUMBERS[:4])
    assert (spy.forwards, spy.sequences) == (1, sequences)
    conditional, blind = (NETWORK(torch.tensor([[*p, M]]))[0, -1].detach() for p in ((1, 2), (M, M)))
    logits = blind + (scale + 1) * (conditional - blind)
    logits[M] = -torch.inf if method == "nelbo" else logits[M]
    assert torch.allclose(found, logits.log_softmax(-1)[[3, 4, 6, 7]], atol=1e-12)
    fast_mdlm.log_likelihood(spy, [ids(1, 2), ids(2, 1)], letters[:2], o, mask_id=M)
    assert spy.sequences == 3 * sequences


@pytest.mark.parametrize("begin", [0, 1, 3])
def test_estimates_of_different_numbers_are_independent_and_their_mean_is_the_nelbo(begin):
    """400 estimates of each bound on the toy; dream's is that of an answer whose last token is given."""
    x, where = ids(0, 1, 1, 0), torch.arange(L) >= begin
    exact = exact_nelbo(ARBITRARY, x[None], where[None]).item()
    for method, keys in (("nelbo", dict(mc_samples=1)), ("nelbo", dict(mc_samples=40)), ("llada", dict(mc_batch=1))):
        o = LikelihoodOptions(method, **{"mc_samples": 8, **keys})
        rows = [[v] * 400 for v in (x[:begin], x[begin:])]
        found = -fast_mdlm.log_likelihood(ARBITRARY, *rows, o, mask_id=MASK, numbers=torch.arange(400) * 7919 % 2**24)
        if method == "nelbo":
            assert_mean(found, exact)
        else:  # the mask is an alternative
            inside, size = (SUBSETS <= where).all(1), SUBSETS.sum(1)
            ce = subset_ce(ARBITRARY, x[None], mask_too=True)[0]
            assert_mean(found, sum(ce[inside & (size == k)].mean().item() / k for k in range(1, L - begin + 1)))
    o = LikelihoodOptions("nelbo", mc_samples=30_000)
    many = -fast_mdlm.log_likelihood(ARBITRARY, [x[:begin]], [x[begin:]], o, mask_id=MASK).item()
    assert abs(many - exact) < 0.01 * exact


def test_deterministic_scores_follow_their_definitions():
    """left_to_right is the chain rule; confidence and illada reveal what they should first; numbers do nothing."""
    x = ids(1, 0, 0, 1)
    for method in ("left_to_right", "confidence", "illada"):
        canvas, hidden, total = ids(1, MASK, MASK, MASK), [1, 2, 3], 0.0
        while hidden:
            logits = ARBITRARY(canvas[None])[0]  # iLLaDA's code leaves the mask among the alternatives
            logp = logits[:, : None if method == "illada" else MASK].log_softmax(-1)
            key = {"left_to_right": -torch.arange(L), "confidence": logp.amax(1)}
            key["illada"] = logp.gather(1, x[:, None])[:, 0]
            best = max(hidden, key=key[method].tolist().__getitem__)
            total += logp[best, x[best]].item()
            canvas[best] = x[best]
            hidden.remove(best)
        o = LikelihoodOptions(method)
        found = fast_mdlm.log_likelihood(ARBITRARY, [x[:1]], [x[1:]], o, mask_id=MASK, numbers=ids(77))
        assert abs(found.item() - total) < 1e-12
        if method == "left_to_right":
            whole = fast_mdlm.log_likelihood(ARBITRARY, [ids()], [x], o, mask_id=MASK)
            assert abs(whole - chain_rule(ARBITRARY, x[None], range(L))).max() < 1e-12


def test_blocks_and_autoregression_take_numbers_too():
    """bd3lm: numbers decide, order and batch size do not. ar: exact whatever they are."""
    prompts, answers = [p for p in PROMPTS if len(p)], [a[:4] for p, a in zip(PROMPTS, ANSWERS) if len(p)]
    numbers, order = NUMBERS[:6], [3, 0, 5, 1, 4, 2]
    turned = [[v[i] for i in order] for v in (prompts, answers)]
    o = LikelihoodOptions(mc_samples=3)
    found = fast_bd3lm.log_likelihood(BLOCKS, prompts, answers, o, mask_id=M, numbers=numbers)
    again = fast_bd3lm.log_likelihood(BLOCKS, *turned, replace(o, batch_size=2), mask_id=M, numbers=numbers[order])
    assert (again - found[order]).abs().max() < 1e-12
    others = fast_bd3lm.log_likelihood(BLOCKS, prompts, answers, o, mask_id=M, numbers=numbers + 1)
    assert (others != found).any()
    keys = [(ar.LikelihoodOptions(size), dict(mask_id=M, numbers=numbers + size)) for size in (1, 16)]
    one, many = (ar.log_likelihood(CAUSAL, prompts, answers, o, **more) for o, more in keys)
    assert (one - many).abs().max() < 1e-12


# ---- where a text ends, and its random numbers -----------------------------------------------------------------------
STARTS = [ids(1, 2, 3), ids(9), ids(4, 6, 7, 8, 9, 10, 11), ids(2, 2), ids(0, 7)]
WAYS = {
    "mdlm": (fast_mdlm, PLAIN, SampleOptions(15, block_size=3)),
    "mdlm, threshold": (fast_mdlm, PLAIN, SampleOptions(15, block_size=5, quota="threshold", threshold=0.5)),
    "mdlm, ancestral": (fast_mdlm, PLAIN, SampleOptions(15, block_size=3, quota="ancestral", steps=20, remask=0.2)),
    "mdlm, prefix cache": (fast_mdlm, PLAIN, SampleOptions(15, block_size=3, cache="prefix")),
    "mdlm, dual cache": (fast_mdlm, PLAIN, SampleOptions(15, block_size=3, cache="dual")),
    "mdlm, guidance": (fast_mdlm, PLAIN, SampleOptions(15, block_size=3, cfg_scale=1.0)),
    "mdlm, no lookahead": (fast_mdlm, PLAIN, SampleOptions(15, block_size=3, lookahead=False)),
    "bd3lm": (fast_bd3lm, BLOCKS, fast_bd3lm.SampleOptions(15)),
    "bd3lm, threshold": (fast_bd3lm, BLOCKS, fast_bd3lm.SampleOptions(15, quota="threshold", threshold=0.3)),
    "ar": (ar, CAUSAL, ar.SampleOptions(15)),
}


def ends_of(algorithm, prompt, o, size):
    """The lengths at which a block of the answer is done, the last one left out."""
    n, end = len(prompt), len(prompt) + o.max_new_tokens
    if algorithm is ar:
        return range(n + 1, end)
    first = n // size * size if algorithm is fast_bd3lm else n
    return [e for e in range(first + size, end, size) if e > n]


@pytest.mark.parametrize("way", WAYS)
def test_a_row_ends_with_the_block_in_which_until_says_so(way):
    """Others go on as if nothing had happened; what until sees, and what is returned, has no masks."""
    algorithm, net, o = WAYS[way]
    whole = algorithm.generate(net, STARTS, o, mask_id=M)
    size = getattr(o, "block_size", 0) or 4

    def cuts(token):
        """Where each row ends that ends with the block that holds the token; None: it goes on to its end."""
        rows = [(x, len(p), ends_of(algorithm, p, o, size)) for p, x in zip(STARTS, whole.tokens)]
        return [next((e for e in ends if (x[n:e] == token).any()), None) for x, n, ends in rows]

    token = max((t for t in range(12) if t != M), key=lambda t: len(set(cuts(t))))
    assert len(set(cuts(token))) > 1 and token in torch.cat(whole.tokens)
    seen = []

    def until(x, begin, new):
        old = x[begin : max(begin, len(x) - new)].tolist()  # of which it was asked before
        assert any(old == before[: len(old)] for before in [[], *seen])
        seen.append(x[begin:].tolist())
        return token in seen[-1]

    out = algorithm.generate(net, STARTS, o, mask_id=M, until=until)
    for i, (p, x, w, end) in enumerate(zip(STARTS, out.tokens, whole.tokens, cuts(token))):
        assert x.tolist() == w[: end or len(w)].tolist() and not (x == M).any()
        assert (out.num_forwards[i] < whole.num_forwards[i]) == (end is not None)
        single = algorithm.generate(net, [p], o, mask_id=M, until=until, numbers=ids(i))
        assert single.tokens[0].tolist() == x.tolist() and single.num_forwards == [out.num_forwards[i]]
    assert all(M not in x for x in seen)
    answers = [x[len(p) :].tolist() for p, x in zip(STARTS, whole.tokens)]
    assert all(any(a[: len(x)] == x for a in answers) for x in seen)


def test_until_and_an_end_of_text_end_a_row_at_the_earlier_one():
    for algorithm, net, o in (WAYS["mdlm"], WAYS["bd3lm"], WAYS["ar"]):
        whole = algorithm.generate(net, STARTS, o, mask_id=M)
        answer = whole.tokens[0][3:]
        stop = answer[6].item()
        first = 3 + (answer == stop).long().argmax().item() + 1
        out = algorithm.generate(net, STARTS[:1], o, mask_id=M, eos_id=stop, until=lambda x, n, _: len(x) - n >= 12)
        assert out.tokens[0].tolist() == whole.tokens[0][:first].tolist()
        out = algorithm.generate(net, STARTS[:1], o, mask_id=M, eos_id=stop, until=lambda x, n, _: True)
        assert len(out.tokens[0]) <= first and len(out.tokens[0]) < len(whole.tokens[0])


@pytest.mark.parametrize("way", WAYS)
def test_numbers_go_with_their_prompts(way):
    """Prompts and numbers in another order give the same texts in that order; other numbers give others."""
    algorithm, net, o = WAYS[way]
    whole = algorithm.generate(net, STARTS, o, mask_id=M, numbers=NUMBERS[:5])
    order = [3, 0, 4, 2, 1]
    turned = algorithm.generate(net, [STARTS[i] for i in order], o, mask_id=M, numbers=NUMBERS[order])
    assert [x.tolist() for x in turned.tokens] == [whole.tokens[i].tolist() for i in order]
    others = algorithm.generate(net, STARTS, o, mask_id=M, numbers=NUMBERS[:5] + 1)
    assert all(a.tolist() != b.tolist() for a, b in zip(whole.tokens, others.tokens))
    same = algorithm.generate(net, [STARTS[0]] * 3, o, mask_id=M, numbers=ids(8, 9, 8)).tokens
    assert same[0].tolist() == same[2].tolist() != same[1].tolist()


# ---- windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [[], [99]])
def test_windows_predict_every_id_once_and_the_last_is_given_all_that_fits(first):
    for n, size in itertools.product((0, 1, 4, 5, 6, 11, 20), (1, 5)):
        text = list(range(n))
        cut = corpus.windows(text, size, first)
        assert [i for _, predicted in cut for i in predicted] == text
        assert cut[0] == (first, text[:size])
        for given, predicted in cut[1:]:
            assert len(given) + len(predicted) == len(first) + size  # full
            assert given == text[predicted[0] - len(given) : predicted[0]]  # what stands right before


# ---- lm-eval's own model ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=FAMILIES)
def twins(request, tmp_path_factory):
    """(lm-eval's HFLM, our Harness) on one random network with a context of 48 tokens."""
    import lm_eval.models.huggingface as hf

    path = write_family(tmp_path_factory.mktemp(request.param), request.param)
    return hf.HFLM(pretrained=str(path), device="cpu", batch_size=3, dtype="float32"), asked(path, batch_size=3)


def continued(theirs, context, n=4):
    """Text that greedy decoding gives behind a context, such that it is encoded as those very tokens."""
    prompt = theirs.tok_encode(context)
    for length in range(n, 0, -1):
        with torch.no_grad():
            out = theirs.model.generate(torch.tensor([prompt]), max_new_tokens=length, do_sample=False)[0].tolist()
        text = theirs.tokenizer.decode(out[len(prompt) :])
        if theirs.tok_encode(context + text) == out:
            return text


def test_loglikelihoods_are_lm_evals(twins):
    """Values and greedy flags: prompts that lose their beginning, none, spaces at the end, answers that are greedy."""
    theirs, ours = twins
    cuts = ((0, 20, 7), (30, 90, 40), (200, 3, 9), (500, 40, 5), (520, 8, 60), (700, 30, 3), (800, 300, 20))
    pairs = [(TEXT[a : a + b], TEXT[a + b : a + b + c]) for a, b, c in cuts]
    pairs += [("", "the licence"), ("", " of"), ("of the ", "software"), ("of the  \n", " software"), ("a", " b")]
    contexts = [TEXT[a : a + 25].rstrip() for a in range(0, 1000, 60)]
    greedy = [(c, text) for c in contexts if (text := continued(theirs, c)) and text.strip()]
    assert len(greedy) >= 3
    pairs = [p for p in pairs if not p[0] or theirs._encode_pair(*p)[1]] + greedy  # they refuse what has no token
    requests = [request(*p) for p in pairs]
    expected, found = theirs.loglikelihood(requests, disable_tqdm=True), ours.loglikelihood(requests)
    for i, p in enumerate(pairs):  # a token over the edge is the answer's here, theirs cut the whole by number
        if p[0] and sum(theirs._encode_pair(*p), []) != theirs.tok_encode("".join(p)):
            prompt, answer = ours.encode_pair(*p)
            assert prompt + answer == theirs.tok_encode("".join(p))
            expected[i] = theirs._loglikelihood_tokens([(p, prompt, answer)], disable_tqdm=True)[0]
    assert np.allclose([x for x, _ in found], [x for x, _ in expected], atol=1e-4)
    assert [same for _, same in found] == [same for _, same in expected]
    assert [same for _, same in found][-len(greedy) :] == [True] * len(greedy)


def test_greedy_flags_of_long_and_short_answers_in_one_batch_are_lm_evals(twins):
    """A prompt that fills the context shares a batch with an answer that is longer than the room it leaves."""
    theirs, ours = twins
    requests = [request(TEXT[:200], TEXT[200:202]), request("the", TEXT[300:340])]
    expected, found = theirs.loglikelihood(requests, disable_tqdm=True), ours.loglikelihood(requests)
    assert [same for _, same in found] == [same for _, same in expected]


def test_rolling_loglikelihoods_are_lm_evals(twins):
    """Windows: shorter than the context, exactly as long, a bit longer, and many."""
    theirs, ours = twins
    exact = theirs.tokenizer.decode(theirs.tok_encode(TEXT)[:48])
    texts = [TEXT[:10], TEXT[100:400], TEXT[:1500], TEXT[50:146], exact, exact + " a"]
    requests = [request(text) for text in texts]
    expected = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    assert np.allclose(ours.loglikelihood_rolling(requests), expected, atol=1e-3, rtol=1e-6)


def test_generated_texts_are_lm_evals(twins):
    """Several strings that end an answer, groups of different settings, and prompts that lose their beginning."""
    theirs, ours = twins
    says = [{"until": ["e", "zz"]}, {"until": ["\n\n", "qqq"]}, {"until": ["th", " "], "do_sample": False}]
    says += [{"until": "a"}]
    requests = [request(TEXT[a : a + b], {**says[i % 4], "max_gen_toks": 16}) for i, (a, b) in enumerate(
        (a, 30 if a < 400 else 200) for a in range(0, 600, 50))]  # fmt: skip
    expected = theirs.generate_until(requests, disable_tqdm=True)
    ours.counts.clear()
    assert ours.generate_until(requests) == expected
    assert ours.counts["truncated"] >= 4 and len(set(expected)) > 6


# ---- tasks -----------------------------------------------------------------------------------------------------------


def values(sample):
    """The log likelihoods of a document."""
    return [float(r[0][0]) for r in sample["resps"]]


def logp(checkpoint, prompt, target, question="", **keys):
    """log p of an answer, the algorithm's own function asked for it alone, with the masks that its content gives."""
    import zlib

    algorithm, tok = ALGORITHMS[checkpoint.algorithm], checkpoint.tokenizer
    room = 96 - len(target)
    prompt = prompt[max(0, len(prompt) - room) :]
    number = zlib.crc32((question or f"{json.dumps(['likelihood', prompt, target])} 0").encode()) >> 8
    options = algorithm.LikelihoodOptions(**keys)
    pair = ([torch.tensor(ids, dtype=torch.int64)] for ids in (prompt, target))
    return algorithm.log_likelihood(checkpoint.model, *pair, options, mask_id=tok.mask_id, numbers=ids(number)).item()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_tasks_of_all_kinds_get_what_the_algorithms_own_functions_say(name, run, made, capsys):
    rows = run("toy_mc,toy_gen,toy_roll,toy_ll", *([] if name == "ar" else ["--mc_samples=3"]), checkpoint=name)
    c, found = ckpt.load(made / name), answered(rows)
    algorithm, tok = ALGORITHMS[name], c.tokenizer
    keys = {} if name == "ar" else {"mc_samples": 3}
    scores = {r["task"]: r["score"] for r in rows}
    right, bits, exact, words, cost = [], 0.0, [], 0, [0, 0]
    for i, doc in enumerate(DOCS):
        context, whole = tok.encode(doc["q"]), [tok.encode(f"{doc['q']} {choice}") for choice in doc["c"]]
        values = [logp(c, context, w[len(context) :], f"toy_mc {i}", **keys) for w in whole]
        said = [float(resp[0][0]) for resp in found["toy_mc", i, "none"]["resps"]]
        assert np.allclose(said, values, atol=1e-4)
        right.append(int(np.argmax(values)) == doc["a"])
        assert found["toy_mc", i, "none"]["acc"] == right[-1]
        alone = logp(c, context, whole[0][len(context) :], f"toy_ll {i}", **keys)
        assert abs(float(found["toy_ll", i, "none"]["resps"][0][0][0]) - alone) < 1e-4
        text = tok.encode(doc["q"])
        rolled = sum(logp(c, *window, **keys) for window in corpus.windows(text, 96, []))
        said = found["toy_roll", i, "none"]["resps"][0][0]
        assert abs(float(said[0] if isinstance(said, list) else said) - rolled) < 1e-3
        bits -= rolled / math.log(2)
        words += len(re.split(r"\s+", doc["q"]))
        o = algorithm.SampleOptions(max_new_tokens=12, temperature=0.0)
        prompt = torch.tensor(context[-84:])
        until = lambda x, n, _: any(s in tok.decode(x[n:].tolist()) for s in ("e", "qz"))  # noqa: E731
        out = algorithm.generate(c.model, [prompt], o, mask_id=tok.mask_id, eos_id=tok.stop_ids, until=until)
        made_by = out.tokens[0]
        cost = [cost[0] + out.num_forwards[0], cost[1] + len(made_by) - len(prompt)]
        text = tok.decode(made_by[len(prompt) :].tolist()).split("e")[0].split("qz")[0]
        assert found["toy_gen", i, "none"]["resps"][0][0] == text
        exact.append(text == doc["c"][0])
    assert abs(scores["toy_mc"] - 100 * np.mean(right)) < 1e-9 and abs(scores["toy_gen"] - 100 * np.mean(exact)) < 1e-9
    counts = next(r["counts"] for r in rows if r["task"] == "toy_gen")
    assert [counts["forwards"], counts["tokens"]] == cost and counts["tokens_per_forward"] == cost[1] / cost[0]
    metrics = next(r["metrics"]["toy_roll"] for r in rows if r["task"] == "toy_roll")
    assert abs(metrics["bits_per_byte,none"] / (bits / sum(len(d["q"].encode()) for d in DOCS)) - 1) < 1e-5
    assert abs(scores["toy_roll"] / math.exp(bits * math.log(2) / words) - 1) < 1e-4
    assert [r["counts"]["truncated"] for r in rows] == [3, 1, 0, 1]
    assert "1 prompts lost their beginning" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["bert", "modernbert", "dream", "llada", "illada", "distilbert", "gpt2", "llama"])
def test_every_family_answers_every_kind_of_request(name, dtype, tmp_path):
    """As released checkpoints come, with tokens around a text, shifted, or through transformers."""
    from test_families import write

    write(name, tmp_path)
    c = ckpt.load(tmp_path, dtype=dtype)
    algorithm, tok = ALGORITHMS[c.algorithm], c.tokenizer
    o = algorithm.LikelihoodOptions() if c.algorithm == "ar" else algorithm.LikelihoodOptions("confidence")
    model = asked(c, likelihood=o, sampling=lambda _: algorithm.SampleOptions(max_new_tokens=5, temperature=0.0))
    prompt, target = (tok.encode(text) for text in ("w1 w2 w3", "w4 w5"))
    begin = list(tok.frame[0])
    pair = [torch.tensor([*begin, *prompt])], [torch.tensor(target)]
    expected = algorithm.log_likelihood(c.model, *pair, o, mask_id=tok.mask_id).item()
    said = model.loglikelihood([request("w1 w2 w3 ", "w4 w5"), request("", "w4")])
    assert said[0][0] == pytest.approx(expected, rel=0.02 if dtype == torch.bfloat16 else 1e-5) and said[1][0] < 0
    first = begin or ([tok.eos_id] if c.algorithm == "ar" else [])
    pair = [torch.tensor(first, dtype=torch.int64)], [torch.tensor(prompt)]
    whole = algorithm.log_likelihood(c.model, *pair, o, mask_id=tok.mask_id).item()
    rolled = model.loglikelihood_rolling([request("w1 w2 w3")])[0]
    assert rolled == pytest.approx(whole, rel=0.02 if dtype == torch.bfloat16 else 1e-5)
    keys = dict(mask_id=tok.mask_id, eos_id=tok.stop_ids or None)
    out = algorithm.generate(c.model, [torch.tensor([*begin, *prompt])], model.sampling({}), **keys).tokens[0]
    text = tok.decode(out[len(begin) + len(prompt) :].tolist())
    assert model.generate_until([request("w1 w2 w3", {"until": []})]) == [text]
    stop = text[2:4]
    assert model.generate_until([request("w1 w2 w3", {"until": [stop]})]) == [text.split(stop)[0] if stop else text]


def test_answers_to_one_question_share_their_masks_but_not_in_published_estimates(made, monkeypatch):
    """So that noise does not choose between them; neither do documents share them, nor windows of texts."""
    seen, original, words = [], fast_mdlm.log_likelihood, ("some", "more", "other words")

    def log_likelihood(*args, numbers, **keys):
        seen.extend(numbers.tolist())
        return original(*args, numbers=numbers, **keys)

    monkeypatch.setattr(fast_mdlm, "log_likelihood", log_likelihood)
    told = [(("", f"{word} {i}"), ("task", i, 1)) for i in range(2) for word in words]
    questions = [Instance("loglikelihood", {}, args, 0, where) for args, where in told]
    for method, different in (("nelbo", 2), ("llada", 6)):
        seen.clear()
        asked(made / "mdlm", likelihood=LikelihoodOptions(method)).loglikelihood(questions)
        assert len({*seen}) == different
    seen.clear()
    asked(made / "mdlm").loglikelihood_rolling([request(text) for text in words])
    assert len({*seen}) == 3


def test_forwards_are_counted_and_equal_questions_cost_nothing(made):
    """Sequences through the network: one for each token of left_to_right; one for all letters of a question."""
    model = asked(made / "mdlm", likelihood=LikelihoodOptions("left_to_right"))
    model.loglikelihood_rolling([request("a question of some words")])
    assert model.counts["likelihood forwards"] == len(model.tokenizer.encode("a question of some words")) > 0
    model.counts.clear()
    pair = model.encode_pair("some", " words")
    assert len({*model.score([pair] * 3)}) == 1 and model.counts["likelihood forwards"] == len(pair[1])
    model = asked(made / "mdlm", likelihood=LikelihoodOptions("llada", mc_samples=32))
    task = SimpleNamespace(OUTPUT_TYPE="multiple_choice", _metric_fn_list={"acc": 0})
    model.manager = SimpleNamespace(loaded={"tasks": {None: task}})
    letters = model.loglikelihood([request("Which one?\nAnswer:", x) for x in "ABCD"])
    assert abs(model.counts["likelihood forwards"] - 1) < 1e-9 and len({x for x, _ in letters}) == 4
    assert not any(k.startswith("greedy") for k in model.counts), "nobody asked whether they are greedy"


def test_the_batch_size_changes_no_answer(run):
    """Texts equal, values within 1e-5, from one request at a time to all."""
    one, many = (answered(run(KINDS[0], f"--batch_size={n}", "--mc_samples=3")) for n in (1, 16))
    assert one.keys() == many.keys() and len(one) == 24
    for key, a in one.items():
        b = many[key]
        if key[0] in ("toy_gen", "toy_drawn"):
            assert a["resps"] == b["resps"]
        else:
            assert values(a) == pytest.approx(values(b), rel=1e-5)


# ---- runs that are killed, and runs on several processes -------------------------------------------------------------


class Killed(BaseException):
    pass


@pytest.fixture
def computed(monkeypatch):
    """The keys of all requests that were computed, batch by batch; give it .last to be killed within a later batch."""

    class Log(list):
        last = None

    log, plain = Log(), harness.Answers.compute

    def compute(self, kind, options, batch):
        if log.last is not None and len(log) == log.last:
            raise Killed
        log.append([job[0] for job in batch])
        return plain(self, kind, options, batch)

    monkeypatch.setattr(harness.Answers, "compute", compute)
    return log


def same(rows):
    """What does not depend on when, how fast and on how many processes it was computed."""
    counts = ("forwards", "tokens", "truncated")
    drop = ("date", "counts", "settings", "processes", "checkpoint")
    return [{k: v for k, v in r.items() if k not in drop} | {k: r["counts"][k] for k in counts} for r in rows]


KINDS = ("toy_mc,toy_gen,toy_ll,toy_drawn", "--batch_size=2", "--mc_samples=3")


def killed(run, computed, n, *args):
    computed.clear()
    computed.last = n
    with pytest.raises(Killed):
        run(*args)
    computed.last, done = None, [key for batch in computed for key in batch]
    computed.clear()
    return done


def test_a_killed_run_goes_on_where_it_was(run, computed, tmp_path):
    """Only the batch in flight is computed again; until then what stood in the results file stands there."""
    whole = run(*KINDS)
    every = [key for batch in computed for key in batch]
    assert len(every) == len(set(every)) > 40 and not (tmp_path / "results.requests").exists()
    (tmp_path / "cut.json").write_text("[1]")
    done = []
    for n in (3, len(computed) // 2):  # twice
        done += killed(run, computed, n, *KINDS, "--out=" + str(tmp_path / "cut.json"))
        assert (tmp_path / "cut.json").read_text() == "[1]" and (tmp_path / "cut.requests").is_dir()
    run(*KINDS, "--out=" + str(tmp_path / "cut.json"))
    rest = [key for batch in computed for key in batch]
    assert sorted(done + rest) == sorted(every) and len(done) > 6
    assert same(json.loads((tmp_path / "cut.json").read_text())) == same(whole)
    assert not (tmp_path / "cut.requests").exists()
    computed.clear()
    run(*KINDS)
    assert sum(map(len, computed)) == len(every), "a run that is over is no longer there to be gone on with"


def test_a_torn_line_costs_its_answer_alone(run, computed, tmp_path):
    """The file is cut in the middle of its last line, and of bytes; answers of several processes are read by one."""
    whole = run(*KINDS)
    every, requests = sum(map(len, computed)), tmp_path / "results.requests"
    done = killed(run, computed, 5, *KINDS)
    text = (requests / "0.jsonl").read_bytes()
    (requests / "0.jsonl").write_bytes(text[: len(text) - 20])
    again = killed(run, computed, 2, *KINDS)
    assert again[0] == done[-1] or done[-1] in again
    lines = (requests / "0.jsonl").read_bytes().splitlines(keepends=True)
    assert sum(line.startswith(b"[") and not line.rstrip().endswith(b"]") for line in lines) == 1, "torn, and alone"
    (requests / "0.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]))
    (requests / "7.jsonl").write_bytes(b"".join(lines[len(lines) // 2 :]))
    rows = run(*KINDS)
    assert sum(map(len, computed)) == every - len(set(done + again))
    for key, a in answered(rows).items():  # batches were others
        b = answered(whole)[key]
        texts = key[0] in ("toy_gen", "toy_drawn")
        assert a["resps"] == b["resps"] if texts else values(a) == pytest.approx(values(b)), key


def test_answers_of_another_checkpoint_precision_or_setting_are_not_used(run, made, computed, tmp_path, monkeypatch):
    tok = tokenizers.load({"kind": "bpe"}, made)
    save(tmp_path / "net", tok, made, seed=0)
    asked_for = ("toy_gen,toy_mc", "--batch_size=2", "--mc_samples=3")
    new = {
        "nothing": (asked_for, 0),
        "the batch size": (("toy_gen,toy_mc", "--batch_size=16", "--mc_samples=3"), 0),
        "the precision": ((*asked_for, "--dtype=bfloat16"), 24),
        "the decoding": ((*asked_for, "--steps=3"), 6),
        "the masks": (("toy_gen,toy_mc", "--mc_samples=4"), 18),
        "the seed": ((*asked_for, "--seed=1"), 24),
        "the weights": (asked_for, 24),
    }
    out, kept, remove = tmp_path / "results.requests", tmp_path / "kept", shutil.rmtree

    def keep(path, **keys):
        return shutil.copytree(path, kept) if path == out else remove(path, **keys)

    monkeypatch.setattr(evaluation.shutil, "rmtree", keep)
    run(*asked_for, checkpoint=str(tmp_path / "net"))
    monkeypatch.setattr(evaluation.shutil, "rmtree", remove)
    for what, (words, count) in new.items():
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(kept, out)
        if what == "the weights":
            save(tmp_path / "net", tok, made, seed=9)
        computed.clear()
        run(*words, checkpoint=str(tmp_path / "net"))
        assert sum(map(len, computed)) == count, what


DRIVER = """
import sys
import datasets, lm_eval.evaluator
sys.path.insert(0, {root!r})
import eval
from nanodlm import harness, tasks
datasets.config.HF_DATASETS_CACHE = {cache!r}
lm_eval.evaluator.add_env_info = lambda _: None
manager = harness.Tasks(include_path={toys!r}, include_defaults=False)
tasks.task_manager = lambda _: manager
plain = harness.Answers.compute
def compute(self, kind, options, batch):
    with open({log!r} + str(self.rank), "a") as f:
        f.write("".join(job[0] + "\\n" for job in batch))
    return plain(self, kind, options, batch)
harness.Answers.compute = compute
eval.main(sys.argv[1:])
"""


def test_two_processes_equal_one_and_go_on_where_one_was_killed(run, made, toys, tmp_path, computed):
    whole = run(*KINDS)
    every = [key for batch in computed for key in batch]
    done = killed(run, computed, 4, *KINDS, "--out=" + str(tmp_path / "two.json"))
    facts = dict(root=str(ROOT), cache=str(tmp_path / "cache2"), toys=str(toys), log=str(tmp_path / "log"))
    words = [f"--checkpoint={made / 'mdlm'}", f"--tasks={KINDS[0]}", *KINDS[1:]]
    said = ranks.run(DRIVER.format(**facts), [*words, "--device=cpu", f"--out={tmp_path}/two.json"])
    rows = json.loads((tmp_path / "two.json").read_text())
    assert [r["processes"] for r in rows] == [2] * 4 and len(done) > 6
    assert same(rows) == same(whole)
    first, second = ((tmp_path / f"log{rank}").read_text().split() for rank in (0, 1))
    assert sorted(done + first + second) == sorted(every) and len(second) > len(every) // 4, "each did its share"
    assert said.count("| toy_mc |") == 1, "the first process alone prints"


@pytest.mark.parametrize("name", ["mdlm", "bd3lm"])
def test_an_answer_is_greedy_where_filling_its_place_in_gives_it(name, made):
    """Answers of different lengths in one batch, each filled in as it would be alone."""
    model = asked(made / name)
    o, tok = model.algorithm.SampleOptions(0, temperature=0.0), model.tokenizer
    pairs = []
    for prompt, n in (([1, 2, 3], 4), ([9] * 20, 1), ([7], 6)):
        canvas = torch.tensor([*prompt, *[tok.mask_id] * n])
        out = model.algorithm.generate(model.checkpoint.model, [canvas], o, mask_id=tok.mask_id).tokens[0]
        answer = out[len(prompt) :].tolist()
        pairs += [(prompt, answer), (prompt, [*answer[:-1], (answer[-1] + 1) % 250])]
    assert [a["same"] for a in model.ask("greedy", o, pairs)] == [True, False] * 3


def test_windows_leave_room_for_the_end_of_text_that_dream_counts(made):
    """Every token of a text is predicted, whatever stands behind a window or before all prompts."""
    for prefix in ("", "of the "):
        o = tasks.Options(prefix=prefix)
        model = asked(made / "mdlm", o, LikelihoodOptions("dream", mc_samples=1))
        seen = []
        model.answers = lambda kind, o, pairs, _, seen=seen: seen.extend(pairs) or [{"logp": 0.0}] * len(pairs)
        model.loglikelihood_rolling([request(TEXT[:500])])
        end, begin = model.tokenizer.eos_id, model.tokenizer.encode(prefix)
        whole = model.encode(TEXT[:500])
        assert begin == whole[: len(begin)] and seen[0][0] == begin and all(t[-1] == end for _, t in seen)
        assert [i for _, t in seen for i in t[:-1]] == whole[len(begin) :]
        assert max(len(p) + len(t) for p, t in seen) == 96 and model.counts["truncated"] == 0


def test_an_answer_longer_than_the_context_has_a_likelihood(tmp_path):
    """A model without begin-of-text is given one token at least."""
    model = asked(write_family(tmp_path / "gpt2", "gpt2"))
    ((logp, same),) = model.loglikelihood([request("a", TEXT[:600])])
    assert -1000 < logp < -48 and not same and model.counts["truncated"] == 1


def test_what_frames_a_text_stands_before_prompts_but_not_before_a_templates_text(made):
    checkpoint = ckpt.load(made / "mdlm")
    checkpoint.tokenizer = replace(checkpoint.tokenizer, frame=((7,), (8,)))
    a, b, both = (checkpoint.tokenizer.encode(text) for text in ("some", " text", "some text"))
    model = asked(checkpoint)
    assert model.encode("some text") == [7, *both] and both == a + b
    assert model.encode_pair("some", " text") == model.encode_pair("some ", "text") == ([7, *a], b)
    assert model.encode_pair("", "some text") == ([7], both)
    chat = asked(checkpoint, tasks.Options(apply_chat_template=True))
    assert chat.encode("some text") == both and chat.encode_pair("some", " text") == (a, b)
    assert asked(checkpoint, tasks.Options(prefix="some")).encode(" text") == [7, *both]
