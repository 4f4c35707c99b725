"""The evaluation harness: estimates against enumeration and naive loops, answers against lm-eval's own model, tasks
against values computed by hand, and runs that were killed, shared out or badly asked."""

import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import datasets
import lm_eval.evaluator
import lm_eval.tasks
import numpy as np
import pytest
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from test_bd3lm import NET as BLOCKS
from test_decoding import NETS
from test_mdlm import ARBITRARY, CAUSAL, MASK, SUBSETS, L, M, Net, assert_mean, chain_rule, exact_nelbo, ids
from test_mdlm import NET as PLAIN

import ar
import bd3lm
import eval as evaluation
import mdlm
from model import Config, Transformer
from nanodlm import checkpoint as ckpt
from nanodlm import corpus, fast_bd3lm, fast_mdlm, harness, likelihood, tasks
from nanodlm import tokenizer as tokenizers
from nanodlm.decode import SampleOptions
from nanodlm.likelihood import LikelihoodOptions

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
TASKS = Path(lm_eval.tasks.__file__).parent
TEXT = (ROOT / "LICENSE").read_text() + (ROOT / "README.md").read_text(encoding="utf-8")[:3000]
ALGORITHMS = {"mdlm": mdlm, "bd3lm": bd3lm, "ar": ar}

# ------------------------------------------------------------------------------------------------------------------
# tiny checkpoints


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A directory with random checkpoints mdlm, bd3lm and ar, with opinions, and their byte-level BPE."""
    path = tmp_path_factory.mktemp("checkpoints")
    tokenizers.train_bpe([TEXT], 300, path / "tokenizer.json")
    tok = tokenizers.load({"kind": "bpe"}, path)
    for i, name in enumerate(ALGORITHMS):
        save(path / name, tok, path, name, seed=i)
    return path


def save(path, tok, files, algorithm="mdlm", seed=0):
    torch.manual_seed(seed)
    own = dict(causal=algorithm == "ar", block_size=8 if algorithm == "bd3lm" else 0)
    net = Transformer(Config(vocab_size=tok.vocab_size, seq_len=96, n_layer=2, n_head=2, n_embd=32, **own))
    weights = {n: torch.randn_like(p) * 0.35 if p.dim() == 2 else p for n, p in net.named_parameters()}
    ckpt.save(path, weights, net.config, tok, files, algorithm, {"seq_len": 96})


def asked(path, options=None, likelihood=None, sampling=None, batch_size=4, **keys):
    """A Harness on the checkpoint at `path`, set up for a task."""
    checkpoint = path if isinstance(path, ckpt.Checkpoint) else ckpt.load(path)
    algorithm = ALGORITHMS[checkpoint.algorithm]
    model = harness.Harness(checkpoint, algorithm, harness.Answers(checkpoint, algorithm, batch_size, **keys))
    greedy = dict(max_new_tokens=16, temperature=0.0)
    likelihood = likelihood or algorithm.LikelihoodOptions()
    model.use(options or tasks.Options(), likelihood, sampling or (lambda _: algorithm.SampleOptions(**greedy)))
    return model


def request(*args):
    return Instance("x", {}, args, 0)


# ------------------------------------------------------------------------------------------------------------------
# likelihoods


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
    different = {
        (len(PROMPTS[i]), tuple(torch.where(h, M, x[i]).tolist())) for h, i in drawn if h.any() or method != "dream"
    }
    assert len(different) <= spy.sequences // (2 if scale else 1) <= len(different) + 7 < 84
    parts = [
        fast_mdlm.log_likelihood(NETWORK, [p], [t], o, mask_id=M, numbers=n[None])
        for p, t, n in zip(PROMPTS, ANSWERS, number)
    ]
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
    values = fast_mdlm.log_likelihood(NETWORK, PROMPTS, ANSWERS, o, mask_id=M, numbers=NUMBERS)
    order = [4, 2, 6, 0, 5, 1, 3]
    turned = [[v[i] for i in order] for v in (PROMPTS, ANSWERS)]
    for size in (1, 2, 16):
        again = fast_mdlm.log_likelihood(
            NETWORK, *turned, replace(o, batch_size=size), mask_id=M, numbers=NUMBERS[order]
        )
        assert (again - values[order]).abs().max() < 1e-12
    others = fast_mdlm.log_likelihood(NETWORK, PROMPTS, ANSWERS, o, mask_id=M, numbers=NUMBERS + 1)
    assert (others != values).any() == (method in BOUNDS)
    places = fast_mdlm.log_likelihood(NETWORK, PROMPTS, ANSWERS, o, mask_id=M)
    assert torch.equal(
        places, fast_mdlm.log_likelihood(NETWORK, PROMPTS, ANSWERS, o, mask_id=M, numbers=torch.arange(7))
    )


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
            nll = (
                -ARBITRARY(torch.where(SUBSETS, MASK, x)).log_softmax(-1).gather(2, x.expand(16, -1)[..., None])[..., 0]
            )
            inside, size = (SUBSETS <= where).all(1), SUBSETS.sum(1)
            ce = (nll * SUBSETS).sum(1)
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
            logp = ARBITRARY(canvas[None])[0, :, :MASK].log_softmax(-1)
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
    exact = [
        ar.log_likelihood(CAUSAL, prompts, answers, ar.LikelihoodOptions(size), mask_id=M, numbers=numbers + size)
        for size in (1, 16)
    ]
    assert (exact[0] - exact[1]).abs().max() < 1e-12


# ------------------------------------------------------------------------------------------------------------------
# where a text ends, and its random numbers


STARTS = [ids(1, 2, 3), ids(9), ids(4, 6, 7, 8, 9, 10, 11), ids(2, 2), ids(0, 7)]
WAYS = {
    "mdlm": (mdlm, PLAIN, SampleOptions(15, block_size=3)),
    "mdlm, threshold": (mdlm, PLAIN, SampleOptions(15, block_size=5, quota="threshold", threshold=0.5)),
    "mdlm, ancestral": (mdlm, PLAIN, SampleOptions(15, block_size=3, quota="ancestral", steps=20, remask=0.2)),
    "mdlm, prefix cache": (mdlm, PLAIN, SampleOptions(15, block_size=3, cache="prefix")),
    "mdlm, dual cache": (mdlm, PLAIN, SampleOptions(15, block_size=3, cache="dual")),
    "mdlm, guidance": (mdlm, PLAIN, SampleOptions(15, block_size=3, cfg_scale=1.0)),
    "mdlm, no lookahead": (mdlm, PLAIN, SampleOptions(15, block_size=3, lookahead=False)),
    "bd3lm": (bd3lm, BLOCKS, fast_bd3lm.SampleOptions(15)),
    "bd3lm, threshold": (bd3lm, BLOCKS, fast_bd3lm.SampleOptions(15, quota="threshold", threshold=0.3)),
    "ar": (ar, CAUSAL, ar.SampleOptions(15)),
}


def ends_of(algorithm, prompt, o, size):
    """The lengths at which a block of the answer is done, the last one left out."""
    n, end = len(prompt), len(prompt) + o.max_new_tokens
    if algorithm is ar:
        return range(n + 1, end)
    first = n // size * size if algorithm is bd3lm else n
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

    def until(x):
        seen.append(x.tolist())
        return bool((x == token).any())

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
        out = algorithm.generate(net, STARTS[:1], o, mask_id=M, eos_id=stop, until=lambda x: len(x) >= 12)
        assert out.tokens[0].tolist() == whole.tokens[0][:first].tolist()
        out = algorithm.generate(net, STARTS[:1], o, mask_id=M, eos_id=stop, until=lambda x: True)
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


# ------------------------------------------------------------------------------------------------------------------
# windows


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


# ------------------------------------------------------------------------------------------------------------------
# lm-eval's own model


FAMILIES = {
    "gpt2": lambda context: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=400, n_positions=context, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
            initializer_range=0.4,
        )
    ),
    "llama": lambda context: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=400, max_position_embeddings=context, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, bos_token_id=0, eos_token_id=0, initializer_range=0.4,
        )
    ),
}  # fmt: skip


def write_family(path, family, context=48, template=None):
    """A random network of a released family with a byte-level BPE, as transformers writes it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe, end = Tokenizer(models.BPE()), "<|endoftext|>"
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    keys = dict(special_tokens=[end], initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=400, **keys))
    hf = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=end, bos_token=end)
    hf.chat_template = template
    hf.save_pretrained(path)
    torch.manual_seed(0)
    FAMILIES[family](context).save_pretrained(path)
    return path


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
    assert np.allclose([x for x, _ in found], [x for x, _ in expected], atol=1e-4)
    assert [same for _, same in found] == [same for _, same in expected]
    assert [same for _, same in found][-len(greedy) :] == [True] * len(greedy)


def test_greedy_flags_of_long_and_short_answers_in_one_batch_are_lm_evals(twins):
    """A prompt that fills the context shares a batch with an answer that is longer than the room it leaves."""
    theirs, ours = twins
    requests = [request(TEXT[:200], TEXT[200:202]), request("the", TEXT[300:340])]
    assert [x[1] for x in theirs.loglikelihood(requests, disable_tqdm=True)] == [
        x[1] for x in ours.loglikelihood(requests)
    ]


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
    says = [
        {"until": ["e", "zz"]},
        {"until": ["\n\n", "qqq"]},
        {"until": ["th", " "], "do_sample": False},
        {"until": "a"},
    ]
    requests = [request(TEXT[a : a + b], {**says[i % 4], "max_gen_toks": 16}) for i, (a, b) in enumerate(
        (a, 30 if a < 400 else 200) for a in range(0, 600, 50))]  # fmt: skip
    expected = theirs.generate_until(requests, disable_tqdm=True)
    ours.counts.clear()
    assert ours.generate_until(requests) == expected
    assert ours.counts["truncated"] >= 4 and len(set(expected)) > 6


# ------------------------------------------------------------------------------------------------------------------
# tasks


TOYS = {
    "mc": """output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: "{{c}}"
doc_to_target: a
""",
    "gen": """output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{c[0]}}"
generation_kwargs: {until: ["e", "qz"], max_gen_toks: 12}
metric_list:
  - metric: exact_match
""",
    "roll": """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{q}}"
metric_list:
  - metric: word_perplexity
  - metric: byte_perplexity
  - metric: bits_per_byte
""",
    "ll": """output_type: loglikelihood
doc_to_text: "{{q}}"
doc_to_target: "{{' ' + c[0]}}"
metric_list:
  - metric: acc
""",
    "drawn": """output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{c[0]}}"
repeats: 2
generation_kwargs: {until: [], max_gen_toks: 6, do_sample: true, temperature: 0.8, top_p: 0.95}
metric_list:
  - metric: exact_match
""",
}
WORDS = TEXT.split()
DOCS = [
    {"q": " ".join(WORDS[7 * i : 7 * i + 2 + 5 * i % 11]), "c": [" ".join(WORDS[100 + 9 * i + j : 102 + 9 * i + 2 * j])
     for j in range(3)], "a": i % 3} for i in range(6)
]  # fmt: skip
DOCS[5]["q"] = " ".join(WORDS[:60])  # longer than the context


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """A directory with tasks of all four kinds, as lm-eval's YAML, over six documents."""
    path = tmp_path_factory.mktemp("toys")
    (path / "docs.jsonl").write_text("".join(json.dumps(d) + "\n" for d in DOCS))
    where = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {path}/docs.jsonl}}}}\ntest_split: test\n"
    for name, text in TOYS.items():
        (path / f"{name}.yaml").write_text(f"task: toy_{name}\n{where}{text}metadata: {{version: 1.5}}\n")
    two = [{**DOCS[0], "a": a} for a in (0, 1)]  # of which one is answered right at most
    (path / "two.jsonl").write_text("".join(json.dumps(d) + "\n" for d in two))
    text = f"task: toy_two\n{where.replace('docs.jsonl', 'two.jsonl')}{TOYS['mc']}"
    (path / "two.yaml").write_text(text)
    (path / "all.yaml").write_text("group: toys\ntask: [toy_mc, toy_two]\n")
    (path / "mixed.yaml").write_text("group: toys_mixed\ntask: [toy_mc, toy_gen]\n")
    return path


@pytest.fixture
def run(made, toys, tmp_path, monkeypatch):
    """eval.py from its command line: the rows it writes."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(lm_eval.evaluator, "add_env_info", lambda _: None)  # it asks pip, for seconds
    paths = [toys, TASKS / "gsm8k", TASKS / "humaneval"]
    manager = tasks.Tasks(include_path=[str(p) for p in paths], include_defaults=False)
    monkeypatch.setattr(tasks, "task_manager", lambda _: manager)

    def run(tasks, *more, checkpoint="mdlm", out="results.json"):
        where = ",".join(str(made / c) if c in ALGORITHMS else str(c) for c in checkpoint.split(","))
        words = [f"--checkpoint={where}", f"--tasks={tasks}", "--device=cpu", f"--out={tmp_path / out}", *more]
        evaluation.main([w for w in words if w != "--tasks="])
        return json.loads((tmp_path / out).read_text())

    return run


def answered(rows):
    """{(task, document, filter): its samples}."""
    return {(s["task"], s["doc_id"], s["filter"]): s for r in rows for s in r["samples"]}


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
        stop = {
            "eos_id": tok.stop_ids,
            "until": lambda x: "e" in tok.decode(x.tolist()) or "qz" in tok.decode(x.tolist()),
        }
        out = algorithm.generate(c.model, [prompt], o, mask_id=tok.mask_id, **stop)
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
    assert [r["counts"]["truncated"] for r in rows] == [
        3,
        1,
        0,
        1,
    ] and "1 prompts lost their beginning" in capsys.readouterr().out


def test_the_results_file_says_all_that_a_score_depends_on(run, made):
    rows = run("toy_drawn label=Drawn published=3.5 limit=4", "--seed=7", "--batch_size=2", "--dtype=float32")
    r, c = rows[0], rows[0]["counts"]
    assert (r["checkpoint"], r["algorithm"], r["task"], r["label"]) == (
        str(made / "mdlm"),
        "mdlm",
        "toy_drawn",
        "Drawn",
    )
    assert r["parameters"] == ckpt.load(made / "mdlm").model.num_params()
    assert (r["metric"], r["published"], r["documents"]) == ("exact_match,none", 3.5, [4, 6])
    assert r["task_versions"] == {"toy_drawn": 1.5} and r["shots"] == {"toy_drawn": 0} and r["percent"]
    options = SampleOptions(6, temperature=0.8, top_p=0.95, seed=7)
    assert r["sampling"] == [json.loads(json.dumps(asdict(options)))]
    assert r["likelihood_options"]["seed"] == 7 and r["task_settings"]["fewshot_seed"] == 1234
    said = {"limit": 4, "label": "Drawn", "published": 3.5}
    assert r["task_settings"] == json.loads(json.dumps(asdict(tasks.Options(**said))))
    assert r["settings"]["dtype"] == "float32" and r["settings"]["batch_size"] == 2
    assert all(r[k] for k in ("date", "python", "torch", "transformers", "datasets", "lm_eval", "machine", "threads"))
    assert "git" in r and r["processes"] == 1 and r["overridden"] == []
    texts = [x for s in r["samples"] for resp in s["resps"] for x in resp]
    assert len(r["samples"]) == 4 and len(texts) == 8 and len(set(texts)) == 8  # asked twice, drawn twice
    assert all(
        {"doc_id", "target", "filtered_resps", "exact_match", "doc_hash", "prompt_hash"} <= s.keys()
        for s in r["samples"]
    )
    assert 0 < c["tokens"] <= 48 and c["forwards"] == 48 and c["truncated"] == 0
    assert c["tokens_per_forward"] == c["tokens"] / c["forwards"]
    assert 0 < c["seconds"] < c["wall_seconds"] < 60 and abs(c["tokens_per_s"] * c["seconds"] / c["tokens"] - 1) < 1e-9
    assert set(r["metrics"]["toy_drawn"]) >= {"exact_match,none", "exact_match_stderr,none"}


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
    seen = []
    original = fast_mdlm.log_likelihood
    monkeypatch.setattr(
        mdlm,
        "log_likelihood",
        lambda *args, numbers, **keys: seen.append(numbers.tolist()) or original(*args, numbers=numbers, **keys),
    )
    questions = [
        Instance("loglikelihood", {}, ("", f"{word} {i}"), 0, ("task", i, 1))
        for i in range(2)
        for word in ("some", "more", "other words")
    ]
    for method, different in (("nelbo", 2), ("llada", 6)):
        seen.clear()
        asked(made / "mdlm", likelihood=LikelihoodOptions(method)).loglikelihood(questions)
        assert len({n for numbers in seen for n in numbers}) == different
    seen.clear()
    asked(made / "mdlm").loglikelihood_rolling([request(text) for text in ("some words", "more", "other words")])
    assert len({n for numbers in seen for n in numbers}) == 3


def test_forwards_are_counted_and_equal_questions_cost_nothing(made):
    """Sequences through the network: one for each token of left_to_right; one for all letters of a question."""
    model = asked(made / "mdlm", likelihood=LikelihoodOptions("left_to_right"))
    n = len(model.tokenizer.encode("some words")) - len(model.tokenizer.encode("some"))
    model.loglikelihood_rolling([request("a question of some words")])
    assert model.counts["likelihood forwards"] == len(model.tokenizer.encode("a question of some words")) > n > 0
    model = asked(made / "mdlm", likelihood=LikelihoodOptions("llada", mc_samples=32))
    task = SimpleNamespace(OUTPUT_TYPE="multiple_choice", _metric_fn_list={"acc": 0})
    model.manager = SimpleNamespace(loaded={"tasks": {None: task}})
    letters = model.loglikelihood([request("Which one?\nAnswer:", x) for x in "ABCD"])
    assert abs(model.counts["likelihood forwards"] - 1) < 1e-9 and len({x for x, _ in letters}) == 4
    assert not any(k.startswith("greedy") for k in model.counts), "nobody asked whether they are greedy"


def test_the_batch_size_changes_no_answer(run):
    """Texts equal, values within 1e-5, from one request at a time to all."""
    one, many = (
        answered(run("toy_mc,toy_ll,toy_gen,toy_drawn", f"--batch_size={n}", "--mc_samples=3")) for n in (1, 16)
    )
    assert one.keys() == many.keys() and len(one) == 24
    for key, a in one.items():
        b = many[key]
        if key[0] in ("toy_gen", "toy_drawn"):
            assert a["resps"] == b["resps"]
        else:
            assert values(a) == pytest.approx(values(b), rel=1e-5)


# ------------------------------------------------------------------------------------------------------------------
# runs that are killed, and runs on several processes


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
        equal = (
            a["resps"] == b["resps"] if key[0] in ("toy_gen", "toy_drawn") else values(a) == pytest.approx(values(b))
        )
        assert equal, key


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
    monkeypatch.setattr(evaluation.shutil, "rmtree", lambda path, **keys: shutil.copytree(path, kept))
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
manager = tasks.Tasks(include_path={toys!r}, include_defaults=False)
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
    driver = tmp_path / "driver.py"
    facts = dict(root=str(ROOT), cache=str(tmp_path / "cache2"), toys=str(toys), log=str(tmp_path / "log"))
    driver.write_text(DRIVER.format(**facts))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(driver)]
    command += [
        f"--checkpoint={made / 'mdlm'}",
        f"--tasks={KINDS[0]}",
        *KINDS[1:],
        "--device=cpu",
        f"--out={tmp_path}/two.json",
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    rows = json.loads((tmp_path / "two.json").read_text())
    assert [r["processes"] for r in rows] == [2] * 4 and len(done) > 6
    assert same(rows) == same(whole)
    first, second = ((tmp_path / f"log{rank}").read_text().split() for rank in (0, 1))
    assert sorted(done + first + second) == sorted(every) and len(second) > len(every) // 4, "each did its share"
    assert ran.stdout.count("| toy_mc |") == 1, "the first process alone prints"


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


def test_what_is_asked_twice_is_counted_once(made):
    model = asked(made / "mdlm", likelihood=LikelihoodOptions("left_to_right"))
    n = len(model.encode_pair("some", " words")[1])
    values = model.score([model.encode_pair("some", " words")] * 3)
    assert len(set(values)) == 1 and model.counts["likelihood forwards"] == n


def test_windows_leave_room_for_the_end_of_text_that_dream_counts(made):
    """Every token of a text is predicted, whatever stands behind a window or before all prompts."""
    for prefix in ("", "of the "):
        o = tasks.Options(prefix=prefix)
        model = asked(made / "mdlm", o, LikelihoodOptions("dream", mc_samples=1))
        seen = []
        model.answers = lambda kind, options, pairs, questions, seen=seen: (
            seen.extend(pairs) or [{"logp": 0.0} for _ in pairs]
        )
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


# ------------------------------------------------------------------------------------------------------------------
# GSM8K and HumanEval, as they are


SHIPPED = ROOT / "checkpoints" / "pydocs_mdlm"


@pytest.fixture
def local(tmp_path):
    """Copies of the data sets, as `hf download --local-dir` lays them out."""
    files = {"gsm8k_train.jsonl": "gsm8k/train.jsonl", "gsm8k_test.jsonl": "gsm8k/test.jsonl"}
    files |= {"HumanEval.jsonl.gz": "openai_humaneval/test.jsonl.gz"}
    for source, target in files.items():
        if not (SHARED / source).is_file() or not SHIPPED.is_dir():
            pytest.skip(f"{SHARED / source} or {SHIPPED} is not here")
        target = tmp_path / "sets" / "openai" / target
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SHARED / source, target)
    return tmp_path / "sets"


class Recorder(LM):
    """Says nothing, and notes what it is asked."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def generate_until(self, requests):
        self.seen += [r.args for r in requests]
        return [""] * len(requests)

    loglikelihood = loglikelihood_rolling = None


def recorded(monkeypatch):
    seen, plain = [], harness.Harness.generate_until

    def generate_until(self, requests):
        seen.extend(r.args for r in requests)
        return plain(self, requests)

    monkeypatch.setattr(harness.Harness, "generate_until", generate_until)
    return seen


def tell(monkeypatch, answer):
    """A model that answers what answer(the end of the prompt) says; what it is asked is noted."""
    asked_for = []

    def compute(self, kind, options, batch):
        asked_for.extend(job[3] for job in batch)
        texts = [answer(self.checkpoint.tokenizer.decode(job[2])) for job in batch]
        return [{"text": text, "tokens": 3, "forwards": 2} for text in texts]

    monkeypatch.setattr(harness.Answers, "compute", compute)
    return asked_for


def test_gsm8k_is_asked_as_lm_eval_asks_it_and_right_answers_are_right(run, local, monkeypatch):
    """Prompts byte for byte those of simple_evaluate, drawn examples included; stops of the YAML; what does not fit
    loses its beginning; both extractions."""
    seen, words = (
        recorded(monkeypatch),
        (f"--local_data={local}", "--limit=3", "--batch_size=4", "--max_new_tokens=4", "--steps=1"),
    )
    rows = run("gsm8k num_fewshot=2,gsm8k label=zero num_fewshot=0", *words, checkpoint=str(SHIPPED))
    assert [r["counts"]["tokens"] for r in rows] == [12, 12] and [r["counts"]["forwards"] for r in rows] == [3, 3]
    assert rows[0]["counts"]["truncated"] == 3 and rows[1]["label"] == "zero" and rows[1]["documents"] == [3, 1319]
    dummy = Recorder()
    with tasks.local_copies(local):
        for shots in (2, 0):
            keys = dict(num_fewshot=shots, limit=3, task_manager=tasks.task_manager(""), fewshot_random_seed=1234)
            lm_eval.evaluator.simple_evaluate(model=dummy, tasks=["gsm8k"], **keys)
    assert seen == dummy.seen and len(seen) == 6 and seen[0][0].count("Question:") == 3
    docs = [json.loads(line) for line in (local / "openai/gsm8k/test.jsonl").read_text().splitlines()[:3]]
    assert [s[0] for s in seen[3:]] == [f"Question: {d['question']}\nAnswer:" for d in docs]

    answers = {d["question"][-60:]: d["answer"] for d in docs}
    given = tell(
        monkeypatch, lambda prompt: next(a for q, a in answers.items() if q in prompt) + "\nQuestion: 1 #### 7"
    )
    rows = run(
        "gsm8k num_fewshot=0,gsm8k num_fewshot=2 metric=flexible-extract",
        *words,
        "--metric=exact_match",
        checkpoint=str(SHIPPED),
    )
    assert [r["score"] for r in rows] == [100.0, 100.0] and set(given) == {("Question:", "</s>", "<|im_end|>")}
    assert rows[0]["metrics"]["gsm8k"]["exact_match,flexible-extract"] == 1.0
    assert rows[0]["samples"][0]["resps"] == [[docs[0]["answer"] + "\n"]], "cut at the stop"
    tell(monkeypatch, lambda prompt: "It is 3, no, $1,234.")
    rows = run("gsm8k num_fewshot=0", *words, checkpoint=str(SHIPPED))
    assert (
        rows[0]["score"] == 0
        and [s["filtered_resps"] for s in rows[0]["samples"]] == [["[invalid]"]] * 3 + [["$1,234."]] * 3
    )


def test_humaneval_is_refused_where_code_may_not_run(run, local, monkeypatch):
    """One sentence, before anything is generated."""
    monkeypatch.setattr(harness.Answers, "compute", lambda *_: pytest.fail("generated before the refusal"))
    words = (f"--local_data={local}", "--limit=3", "--max_new_tokens=4", "--steps=1")
    with pytest.raises(SystemExit, match="--run_code") as e:
        run("humaneval", *words, checkpoint=str(SHIPPED))
    assert "\n" not in str(e.value)


def test_humaneval_counts_the_programs_that_pass(run, local, monkeypatch):
    """Two canonical solutions and a wrong one; prompts are the problems' own; the stops end them."""
    import gzip

    with gzip.open(local / "openai/openai_humaneval/test.jsonl.gz") as f:
        docs = [json.loads(line) for line in f][:3]
    words = (f"--local_data={local}", "--limit=3", "--max_new_tokens=4", "--steps=1", "--run_code")
    seen = recorded(monkeypatch)

    def answer(prompt):
        doc = next(d for d in docs if d["prompt"][-60:] in prompt)
        return "    return None\n" if doc is docs[1] else doc["canonical_solution"] + "\ndef more():\n    raise"

    given = tell(monkeypatch, answer)
    rows = run("humaneval", *words, checkpoint=str(SHIPPED))
    assert rows[0]["metric"].startswith("pass@1") and abs(rows[0]["score"] - 200 / 3) < 1e-9
    assert [s[0] for s in seen] == [d["prompt"] for d in docs]
    assert set(given) == {("\nclass", "\ndef", "\n#", "\nif", "\nprint")}
    assert rows[0]["samples"][0]["resps"] == [[docs[0]["canonical_solution"]]]
    assert [s["pass@1"] for s in rows[0]["samples"]] == [1.0, 0.0, 1.0]


# ------------------------------------------------------------------------------------------------------------------
# conversations


TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
FEW = """output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{c[0]}}"
fewshot_split: test
fewshot_config: {sampler: first_n}
generation_kwargs: {until: ["zq"], max_gen_toks: 4}
metric_list:
  - metric: exact_match
"""


@pytest.fixture
def chatty(tmp_path):
    return write_family(tmp_path / "chatty", "llama", 512, TEMPLATE)


@pytest.mark.parametrize("multiturn", [True, False])
@pytest.mark.parametrize("begun", ["", "The answer is"])
def test_conversations_are_the_templates_own(multiturn, begun, run, chatty, toys, monkeypatch):
    """System prompt, examples as turns or in one, and an answer that is begun for the assistant."""
    name = f"toy_few{len(begun)}"
    where = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {toys}/docs.jsonl}}}}\ntest_split: test\n"
    (toys / f"{name}.yaml").write_text(f"task: {name}\n{where}{FEW}" + (f'gen_prefix: "{begun}"\n' if begun else ""))
    manager = tasks.Tasks(include_path=str(toys), include_defaults=False)
    monkeypatch.setattr(tasks, "task_manager", lambda _: manager)
    seen, stops = recorded(monkeypatch), tell(monkeypatch, lambda prompt: " yes")
    entry = f"{name} num_fewshot=2 fewshot_as_multiturn={multiturn}"
    rows = run(entry, "--apply_chat_template", "--system=Be brief.", checkpoint=str(chatty))
    assert len(seen) == 6 and set(stops) == {("zq",)} and rows[0]["task_settings"]["system"] == "Be brief."
    hf = transformers.AutoTokenizer.from_pretrained(chatty)
    first = f"{begun} {DOCS[0]['c'][0]}" if begun else DOCS[0]["c"][0]
    second = f"{begun} {DOCS[1]['c'][0]}" if begun else DOCS[1]["c"][0]
    for (prompt, _), doc in list(zip(seen, DOCS))[2:]:
        turns = [
            ("user", DOCS[0]["q"]),
            ("assistant", first),
            ("user", DOCS[1]["q"]),
            ("assistant", second),
            ("user", doc["q"]),
        ]
        messages = [{"role": "system", "content": "Be brief."}, *({"role": r, "content": c} for r, c in turns)]
        if multiturn:
            assert prompt == hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) + begun
        else:
            assert (
                prompt.startswith("[system]Be brief.<|endoftext|>[user]" + DOCS[0]["q"]) and prompt.count("[user]") == 1
            )
            assert prompt.endswith(f"{doc['q']}<|endoftext|>[assistant]{begun}")
            assert first in prompt and second in prompt
    assert not any(text.startswith("<|endoftext|>") for text, _ in seen)


def test_a_template_is_asked_for_where_there_is_none_and_may_refuse(run, chatty, tmp_path):
    with pytest.raises(SystemExit, match="has no chat template; leave out --apply_chat_template"):
        run("toy_gen", "--apply_chat_template")
    model = asked(chatty, tasks.Options(apply_chat_template=True))
    object.__setattr__(model.tokenizer, "template", lambda *_: 1 / 0)
    with pytest.raises(SystemExit, match="chat template refuses this conversation: division by zero"):
        model.apply_chat_template([{"role": "user", "content": "a"}])


# ------------------------------------------------------------------------------------------------------------------
# settings


@pytest.fixture
def settled(run, monkeypatch, tmp_path):
    """(Options, LikelihoodOptions, SampleOptions, what is overridden) of one task, as eval.py's command line or a
    recipe has them, where the task says `task` about generation; nothing is computed."""
    box = {}

    def evaluate(model, name, manager):
        box["found"] = model.options, model.likelihood, model.sampling(box["task"])
        return {k: v for k, v in line().items() if k in ("metric", "score", "error", "documents", "shots", "counts")}

    monkeypatch.setattr(tasks, "evaluate", evaluate)

    def settled(entry, *words, recipe=None, task=None):
        box["task"] = task or {}
        if recipe is None:
            rows = run(entry, *words)
        else:
            said = {"tasks": [entry], **recipe}
            (tmp_path / "recipe.py").write_text("".join(f"{k} = {v!r}\n" for k, v in said.items()))
            rows = run("", str(tmp_path / "recipe.py"), *words)
        return *box["found"], [x for x in rows[0]["overridden"] if not x.startswith("checkpoint")]

    return settled


def test_an_entry_brings_settings_of_its_own(settled):
    words = "toy_gen num_fewshot=2 max_new_tokens=8 label=x mc_samples=7 'system=Be brief.'"
    o, likelihood, s, overridden = settled(words)
    assert (o.num_fewshot, o.label, o.system, s.max_new_tokens, overridden) == (2, "x", "Be brief.", 8, [])
    assert likelihood == LikelihoodOptions(mc_samples=7)


def test_later_sources_go_before_earlier_ones(settled):
    """preset < task's YAML < recipe < entry < command line; where tasks are named there, their entries go last."""
    yaml = {"do_sample": True, "temperature": 0.7, "max_gen_toks": 40, "top_p": 0.5}

    def ways(*args, task=yaml, **keys):
        o = settled(*args, task=task, **keys)[2]
        return o.temperature, o.max_new_tokens, o.top_p, o.measure

    t, dream = "toy_gen", {"preset": "dream"}
    assert ways(t, recipe=dream, task={"do_sample": True}) == (0.2, 512, 0.95, "draw")
    assert ways(t, recipe=dream) == (0.7, 40, 0.5, "draw")
    assert ways(t, recipe=dream | {"temperature": 0.4}) == (0.4, 40, 0.5, "draw")
    both = f"{t} temperature=0.3 max_new_tokens=9"
    assert ways(both, recipe=dream | {"temperature": 0.4}) == (0.3, 9, 0.5, "draw")
    assert ways(both, "--temperature=0.1", recipe=dream) == (0.1, 9, 0.5, "draw")
    assert ways(f"{t} temperature=0.3", "--temperature=0.1") == (0.3, 40, 0.5, "network")
    assert ways(t, "--temperature=0.1") == (0.1, 40, 0.5, "network")
    assert ways(f"{t} preset=dream measure=token", task={}) == (0.0, 512, 0.95, "token"), "greedy, if nothing is said"
    assert ways(t, task={"do_sample": False, "temperature": 0.9})[0] == 0.0
    assert ways(t, task={"temperature": 0.6})[0] == 0.6
    assert settled(f"{t} threshold=0.7")[2] == SampleOptions(quota="threshold", threshold=0.7, temperature=0.0)


def test_what_the_command_line_changes_of_a_recipe_is_told(settled):
    recipe = {"mc_samples": 4, "num_fewshot": 5}
    words = ["--batch_size=2", "--label=y", "--mc_samples=4", "--num_fewshot=3"]
    assert settled("toy_mc num_fewshot=3", *words, recipe=recipe)[3] == [], "nothing that changes a score, or anything"
    told = settled("toy_mc num_fewshot=3", "--num_fewshot=1", "--mc_samples=8", "--limit=5", recipe=recipe)[3]
    has = {"num_fewshot=1, where the recipe has 3", "mc_samples=8, where the recipe has 4"}
    assert set(told) == has | {"limit=5, where the recipe has 0"}


def test_a_recipe_runs_and_its_table_warns_of_what_was_overridden(run, made, tmp_path, capsys):
    """--only picks tasks; warnings stand where a published score stands, and nowhere else."""
    (tmp_path / "recipe.py").write_text(
        'tasks = ["toy_gen label=Short published=50 max_new_tokens=3", "toy_mc", "toy_ll label=Last"]\nsteps = 2\n'
    )
    recipe = str(tmp_path / "recipe.py")
    rows = run("", recipe, "--only=toy_gen,toy_mc", "--steps=1", "--metric=acc_norm", "--limit=2")
    said = capsys.readouterr().out
    assert [(r["task"], r["label"]) for r in rows] == [("toy_gen", "Short"), ("toy_mc", "toy_mc")]
    assert rows[0]["sampling"][0]["steps"] == 1 and rows[0]["sampling"][0]["max_new_tokens"] == 3
    name = f"warning: {made / 'mdlm'}, Short: "
    assert f"{name}steps=1, where the recipe has 2" in said
    assert f"{name}the published score is that of all documents" in said and f"{made / 'mdlm'}, toy_mc: " not in said
    assert "warning: toy_gen has no metric 'acc_norm'; it has exact_match,none" in said
    assert (rows[0]["metric"], rows[1]["metric"]) == ("exact_match,none", "acc_norm,none")
    with pytest.raises(SystemExit, match="only=toy_all is none of the recipe's tasks: .*toy_gen, toy_mc, .*toy_ll"):
        run("", recipe, "--only=toy_all")


def test_other_strings_may_end_an_answer_than_the_tasks(run, monkeypatch):
    given = tell(monkeypatch, lambda prompt: "one two e three")
    rows = run("toy_gen until=two,toy_gen label=again")
    assert set(given) == {("two",), ("e", "qz")}
    assert [r["samples"][0]["resps"] for r in rows] == [[["one "]], [["on"]]]


def test_the_score_of_a_group_counts_every_document_once(run):
    """Six documents and two, where lm-eval does not sum up; parts without a common score are refused."""
    rows = run("toys,toy_mc,toy_two", "--mc_samples=2")
    scores, errors = ([r[k] for r in rows] for k in ("score", "error"))
    assert [r["documents"] for r in rows] == [[8, 8], [6, 6], [2, 2]]
    assert len(rows[0]["samples"]) == 8 and scores[1] != scores[2]
    assert scores[0] == pytest.approx((6 * scores[1] + 2 * scores[2]) / 8)
    assert errors[0] == pytest.approx(((6 * errors[1]) ** 2 + (2 * errors[2]) ** 2) ** 0.5 / 8)
    with pytest.raises(SystemExit, match="the parts of toys_mixed have no score in common"):
        run("toys_mixed", "--mc_samples=2")


# ------------------------------------------------------------------------------------------------------------------
# bad input


@pytest.mark.parametrize(
    "tasks, more, words",
    [
        ("toy_m", [], "lm-eval has no task 'toy_m'; did you mean toy_mc"),
        ("gsm8", [], "lm-eval has no task 'gsm8'; did you mean gsm8k"),
        ("nothing_like_it", [], "lm-eval has no task 'nothing_like_it'; --include_path adds your own"),
        ("toy_mc num_fewshots=2", [], r"unknown key 'num_fewshots' \(the task toy_mc\); did you mean num_fewshot"),
        ("toy_mc max_new_token=2", [], "did you mean max_new_tokens"),
        ("toy_mc five", [], "the task 'toy_mc five' has the word 'five', which is no key=value"),
        ("toy_mc num_fewshot=many", [], "num_fewshot = 'many' .* takes a whole number"),
        ("toy_gen preset=fastest", [], "no preset 'fastest'; there are .*fast, .*and none"),
        ("toy_gen", ["--max_new_tokens=96"], "max_new_tokens=96 leaves no room for a prompt in the 96 tokens"),
        ("toy_gen max_length=10", [], "max_new_tokens=12 leaves no room for a prompt in the 10 tokens"),
        ("toy_gen remask=0.1 quota=steps", [], "remask=0.1 is defined for quota=ancestral only"),
        ("toy_mc", ["--batch_size=0"], "batch_size=0 measures nothing"),
    ],
)
def test_bad_input_is_one_clear_sentence(tasks, more, words, run, tmp_path):
    with pytest.raises(SystemExit, match=words) as e:
        run(tasks, *more)
    assert "\n" not in str(e.value) and not (tmp_path / "results.json").exists()


def test_code_that_would_run_outside_of_the_sandbox_is_refused(run, toys, monkeypatch):
    """Before another task is asked, with and without --run_code."""
    where = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {toys}/docs.jsonl}}}}\ntest_split: test\n"
    (toys / "unsafe.yaml").write_text(f"task: toy_unsafe\nunsafe_code: true\n{where}{TOYS['gen']}")
    manager = tasks.Tasks(include_path=str(toys), include_defaults=False)
    monkeypatch.setattr(tasks, "task_manager", lambda _: manager)
    monkeypatch.setattr(harness.Answers, "compute", lambda *_: pytest.fail("computed before the refusal"))
    for more in ([], ["--run_code"]):
        with pytest.raises(SystemExit, match="toy_unsafe runs code that the model wrote in a way of its own"):
            run("toy_gen,toy_unsafe", *more)


def test_a_method_that_an_algorithm_lacks_is_one_sentence(run):
    with pytest.raises(SystemExit, match="method=llada, .* is defined for mdlm only"):
        run("toy_mc", "--method=llada", checkpoint="bd3lm")


def test_scores_that_are_percentages_stay_what_they_are():
    def found(metric, score):
        results = {"t": {"name": "t", f"{metric},none": score, f"{metric}_stderr,none": 0.01}}
        n = {"t": {"effective": 4, "original": 4}}
        better = {"t": {metric: True}}
        return tasks.headline({"results": results, "n-samples": n, "higher_is_better": better}, "t", "")["score"]

    assert [found("acc", 0.5), found("acc", 1.0), found("f1", 81.5), found("chrf", 0.07)] == [50.0, 100.0, 81.5, 0.07]


def test_results_are_not_written_over_others(tmp_path):
    file = tmp_path / "base-piqa.json"
    for name in ("base-piqa.json", "base-piqa-2.json", "base-piqa-3.json"):
        assert evaluation.unused(file).name == name
        (tmp_path / name).write_text("[]")


def test_max_length_shortens_prompts_and_says_so(run, capsys):
    rows = run("toy_gen max_length=14", "--max_new_tokens=4")
    cut = sum(len(ckpt.load(rows[0]["checkpoint"]).tokenizer.encode(d["q"])) > 10 for d in DOCS)
    assert rows[0]["counts"]["truncated"] == cut > 1
    assert f"toy_gen: {cut} prompts lost their beginning" in capsys.readouterr().out


def test_a_data_set_without_a_network_says_how_to_bring_a_copy(run, cold, tmp_path):
    cold.stop()
    plain = datasets.load_dataset
    for words, where in (([], "DIR"), ([f"--local_data={tmp_path}"], str(tmp_path))):
        with pytest.raises(SystemExit) as e:
            run("gsm8k", *words)
        what, advice, instead = e.value.code.split("; ")
        assert what == f"data set openai/gsm8k: the hub ({os.environ['HF_ENDPOINT']}) cannot be reached"
        assert advice.startswith("it is not in the cache")
        assert instead == (
            f"or bring a copy, `hf download openai/gsm8k --repo-type=dataset --local-dir={where}/openai/gsm8k`, "
            f"and say --local_data={where}"
        )
    assert datasets.load_dataset is plain


def test_a_local_copy_that_cannot_be_read_is_named(run, tmp_path):
    file = tmp_path / "openai/gsm8k/test.parquet"
    file.parent.mkdir(parents=True)
    file.write_text("no parquet")
    with pytest.raises(SystemExit, match=f"the data set {file.parent} cannot be read: "):
        run("gsm8k", f"--local_data={tmp_path}")


def test_an_include_path_that_is_none_is_named():
    with pytest.raises(SystemExit, match="include_path=/nowhere is no directory of task files"):
        tasks.task_manager("/nowhere")


# ------------------------------------------------------------------------------------------------------------------
# tables and plots


def line(**keys):
    """A row of results as run_tasks writes it, by hand."""
    counts = dict(
        forwards=1200,
        tokens=600,
        tokens_per_forward=0.5,
        tokens_per_s=12.34,
        seconds=9.0,
        wall_seconds=9.5,
        truncated=0,
    )
    settings = dict(apply_chat_template=False, fewshot_as_multiturn=True, system="", max_length=0)
    own = {k: keys.pop(k) for k in list(keys) if k in counts}
    return {
        "checkpoint": "llada", "task": "gsm8k", "label": "GSM8K", "metric": "exact_match,strict-match", "score": 70.0,
        "error": 1.25, "percent": True, "published": 70.3, "published_speed": None, "documents": [1319, 1319],
        "shots": {"gsm8k": 5}, "task_versions": {"gsm8k": 3.0}, "lm_eval": "0.4.13", "counts": counts | own,
        "task_settings": settings | keys.pop("task_settings", {}), "settings": {"dtype": "float32"},
        "likelihood_options": {"method": "llada", "mc_samples": 128}, "overridden": [],
        "sampling": [asdict(SampleOptions(256))],
        "samples": [], **keys,
    }  # fmt: skip


def files_of(tmp_path, *rows):
    names = [tmp_path / f"{chr(97 + i)}.json" for i in range(len(rows))]
    for name, row in zip(names, rows):
        name.write_text(json.dumps([row]))
    return [str(n) for n in names]


def test_a_table_has_scores_with_errors_beside_published_ones(tmp_path, capsys):
    files = files_of(
        tmp_path,
        line(published_speed=20.0),
        line(
            checkpoint="dream",
            score=65.0,
            published=None,
            error=None,
            tokens=0,
            tokens_per_forward=None,
            tokens_per_s=None,
            sampling=[],
        ),
        line(checkpoint="other", score=73.425, documents=[1319, 1319]),
    )
    evaluation.main(["--table", *files])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[0].count("|") == lines[2].count("|") == lines[3].count("|")
    how = "5-shot, 256 tokens, T=1, 256 steps"
    score = "| llada | GSM8K | exact_match,strict-match | 70.00 ± 1.25 | 70.3 | -0.30 (-0.2 SE) | 1,319"
    assert lines[2] == f"{score} | {how} | 1,200 | 600 | 0.50 | 12.3 | 20 |"
    how = "5-shot, llada, 128 masks"
    dream = "| dream | GSM8K | exact_match,strict-match | 65.00 |  |  | 1,319"
    assert lines[3] == f"{dream} | {how} | 1,200 |  |  |  |  |"
    assert "| 73.42 ± 1.25 | 70.3 | +3.12 (+2.5 SE) |" in lines[4]


@pytest.mark.parametrize(
    "keys, words",
    [
        (
            {"metric": "exact_match,flexible-extract"},
            "metric is exact_match,strict-match in A, and exact_match,flexible-extract in B",
        ),
        ({"documents": [100, 1319], "published": None}, "documents is 1319 of 1319 in A, and 100 of 1319 in B"),
        ({"shots": {"gsm8k": 8}}, "num_fewshot is 5 in A, and 8 in B"),
        ({"task_versions": {"gsm8k": 2.0}}, "version of the task is 3.0 in A, and 2.0 in B"),
        ({"lm_eval": "0.4.8"}, "version of lm-eval is 0.4.13 in A, and 0.4.8 in B"),
        ({"task_settings": {"apply_chat_template": True}}, "apply_chat_template is False in A, and True in B"),
        ({"settings": {"dtype": "bfloat16"}}, "dtype is float32 in A, and bfloat16 in B"),
        ({"likelihood_options": {"method": "llada", "mc_samples": 1}}, "mc_samples is 128 in A, and 1 in B"),
        ({"likelihood_options": {"batch_size": 4}}, None),  # ar: it has no such thing
        ({"checkpoint": "dream", "score": 1.0, "sampling": []}, None),
        ({"task": "mmlu", "shots": {"mmlu": 0}}, None),
    ],
)
def test_rows_of_one_task_that_do_not_compare_are_warned_of(keys, words, tmp_path, capsys):
    files = files_of(tmp_path, line(), line(**keys))
    evaluation.main(["--table", *files])
    found = [x for x in capsys.readouterr().out.splitlines() if x.startswith("warning")]
    expected = words and words.replace(" A", " " + files[0]).replace(" B", " " + files[1])
    assert found == ([f"warning: gsm8k: {expected}"] if words else [])


def test_published_scores_are_not_compared_silently(tmp_path, capsys):
    row = line(overridden=["steps=1, where the recipe has 2"], documents=[10, 1319], truncated=4)
    evaluation.main(["--table", *files_of(tmp_path, row)])
    assert capsys.readouterr().out.splitlines()[3:] == [
        "warning: llada, GSM8K: steps=1, where the recipe has 2",
        "warning: llada, GSM8K: the published score is that of all documents",
        "warning: llada, GSM8K: 4 prompts lost their beginning",
    ]
    evaluation.main(["--table", *files_of(tmp_path, {**row, "published": None})])
    assert capsys.readouterr().out.splitlines()[3:] == ["warning: llada, GSM8K: 4 prompts lost their beginning"]


def test_plots_and_what_is_no_results_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    evaluation.main(["--plot", *files_of(tmp_path, line(), line(score=60.0, error=None, forwards=300))])
    assert (tmp_path / "accuracy.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert capsys.readouterr().out == "wrote accuracy.png\n"
    for content in ("no json", '{"a": 1}', "[1]", "7", '[{"task": 1}]'):
        (tmp_path / "bad.json").write_text(content)
        for command in ("--table", "--plot"):
            with pytest.raises(SystemExit, match="bad.json is no results file of eval.py"):
                evaluation.main([command, "bad.json"])
    with pytest.raises(SystemExit, match="missing.json is no results file"):
        evaluation.main(["--table", "missing.json"])
    with pytest.raises(SystemExit, match="name the files"):
        evaluation.main(["--table"])
    (tmp_path / "none.json").write_text("[]")
    with pytest.raises(SystemExit, match="no results of tasks to plot"):
        evaluation.main(["--plot", "none.json"])


# ------------------------------------------------------------------------------------------------------------------
# samples


class Samples:
    """An algorithm that generates what it is told, row by row of a whole run."""

    def __init__(self, rows):
        self.rows, self.asked = rows, []

    def generate(self, model, prompts, options, *, mask_id, numbers):
        self.asked.append((len(prompts), options.max_new_tokens))
        return mdlm.Output([torch.tensor(self.rows[i]) for i in numbers.tolist()], [4] * len(prompts))


def test_entropy_is_that_of_each_samples_tokens(made):
    checkpoint = ckpt.load(made / "mdlm")
    rows = [[1, 1, 1, 1], [1, 2, 1, 2], [1, 2, 3, 4]]
    s, samples = evaluation.Settings(num_samples=3, batch_size=2), Samples(rows)
    found = evaluation.sample_quality(checkpoint, samples, SampleOptions(500), s, None, "cpu")
    assert abs(found["nats"] - (0 + math.log(2) + math.log(4)) / 3) < 1e-12
    assert abs(found["error"] - np.std([0, math.log(2), math.log(4)], ddof=1) / 3**0.5) < 1e-12
    assert samples.asked == [(2, 96), (1, 96)] and found["forwards_per_sample"] == 4 and found["tokens"] == 96
    assert "perplexity" not in found


def test_samples_do_not_depend_on_the_batch_size(made):
    checkpoint, texts = ckpt.load(made / "mdlm"), []
    o = SampleOptions(5, order="random")  # on an empty canvas all positions tie
    for size in (2, 16):
        s = evaluation.Settings(num_samples=3, batch_size=size, judge=str(made / "ar"))
        held = torch.arange(30).view(3, 10)
        texts.append(evaluation.sample_quality(checkpoint, mdlm, o, s, held, "cpu"))
    assert texts[0]["texts"] == texts[1]["texts"] and len(set(texts[0]["texts"])) == 3
    assert texts[0]["perplexity"] == pytest.approx(texts[1]["perplexity"], rel=1e-5)


def test_the_judges_perplexity_is_that_of_all_tokens(made, tmp_path):
    """With a begin-of-text of our own, or an end-of-text before a released model's; texts beyond the context."""
    texts = [TEXT[:40], TEXT[50:700], "", "a"]
    for path in (made / "ar", write_family(tmp_path / "gpt2", "gpt2")):
        c = ckpt.load(path)
        own = c.tokenizer.mask_id is not None
        size = c.model.config.seq_len - (not own)
        nats, tokens = 0.0, 0
        for text in texts:
            x = c.tokenizer.encode(text)
            for start in range(0, len(x), size):  # the last window is given as much as fits before it
                end = min(len(x), start + size)
                given = x[max(0, end - size) : start] if own or not start else x[end - size - 1 : start]
                given = given if own or start else [c.tokenizer.eos_id, *given]
                pair = [torch.tensor(v, dtype=torch.int64)[None] for v in ([*given, *x[start:end]], given)]
                with torch.no_grad():
                    first = torch.full((1, 1), c.tokenizer.mask_id or 0)
                    seen = torch.cat([first, pair[0]], 1)[:, :-1] if own else pair[0][:, :-1]
                    logits = c.model(seen).double()
                if own:
                    logits[..., c.tokenizer.mask_id] = -torch.inf
                n = end - start
                nats -= logits.log_softmax(-1)[0, -n:].gather(1, pair[0][0, -n:, None]).sum().item()
                tokens += n
        s = evaluation.Settings(judge=str(path), batch_size=2)
        found = evaluation.judge(texts, [], s, "cpu")
        assert found["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
        assert found["perplexity_error"] > 0 and found["judge"] == str(path)


def test_judges_that_cannot_judge_are_refused(made, monkeypatch):
    with pytest.raises(SystemExit, match="is decoded by mdlm; a judge is autoregressive"):
        evaluation.judge(["a"], [], evaluation.Settings(judge=str(made / "mdlm")), "cpu")
    monkeypatch.setitem(sys.modules, "mauve", None)
    with pytest.raises(SystemExit, match="--mauve needs a library: pip install mauve-text"):
        evaluation.judge(["ab", "c"], ["a"], evaluation.Settings(judge=str(made / "ar"), mauve=True), "cpu")


def test_samples_without_text_are_not_judged(made):
    """A model that writes end-of-text alone: a sentence, no crash."""
    with pytest.raises(SystemExit, match="nothing to judge"):
        evaluation.judge(["", ""], [], evaluation.Settings(judge=str(made / "ar")), "cpu")


def test_the_machine_is_the_gpu_on_every_process(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "H100")
    assert [evaluation.environment(d)["machine"] for d in ("cuda", "cuda:1")] == ["H100", "H100"]


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


@pytest.mark.parametrize(
    "words, said",
    [
        (["--tasks=toy_mc dtype=bfloat16"], "dtype is a setting of a whole run"),
        (["--tasks=toy_mc", "--judge=x"], "judge does nothing beside tasks"),
        (["--run_code=true"], "run_code does nothing without tasks"),
        (["--judge=x"], "a judge reads samples"),
        (["--num_samples=1", "--mauve=true"], "mauve is the judge's"),
        (["--tasks=toy_mc", "--mc_samples=0"], "mc_samples=0 estimates nothing"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(words, said, made, toys, monkeypatch):
    monkeypatch.setattr(tasks, "task_manager", lambda _: tasks.Tasks(include_path=str(toys), include_defaults=False))
    with pytest.raises(SystemExit, match=said):
        evaluation.main([f"--checkpoint={made / 'mdlm'}", "--device=cpu", *words])
