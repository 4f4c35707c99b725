"""Networks on a device without float64, as Apple's GPUs are: losses, bounds, likelihoods, texts and runs as on the CPU.

The device is no_float64's, in a process of its own, as autograd must know it before it runs for the first time."""

import copy
import os
import subprocess
import sys
import tempfile
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ar
import bd3lm
import eval as evaluation
import mdlm
import sample
import train
from model import Config, Transformer
from nanodlm import checkpoint as ckpt
from nanodlm import corpus, fast_bd3lm, fast_mdlm, noise
from nanodlm import tokenizer as tokenizers
from nanodlm.batches import Texts

ROOT = Path(__file__).resolve().parent.parent
M, L, SIZE = 18, 24, 4


def network(scale=4.0, **switches):
    torch.manual_seed(0)
    shape = dict(vocab_size=M + 1, seq_len=L, block_size=SIZE, n_layer=2, n_head=4, n_kv_head=2, n_embd=32)
    net = Transformer(Config(**shape | switches)).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(scale)  # or all texts would be about equally likely
    return net


def rows(n=3):
    return (noise.uniform(8, torch.arange(n)[:, None], torch.arange(L)) * M).long()


def texts_of(place):
    """Two texts of 8 and 12 tokens a row, and padding."""
    at = torch.arange(L).expand(3, L)
    number = torch.where(at < 8, 0, torch.where(at < 20, 1, -1))
    number = torch.where(number < 0, -1, number + 2 * torch.arange(3)[:, None])
    position = torch.where(at < 8, at, torch.where(at < 20, at - 8, 0))
    return Texts(number, position, first=0, count=6, total=6, length=12, packed=True).to(place)


def train_a_little(place, algorithm, options, packed=False):
    """(losses, first gradients) of three steps."""
    net, losses, gradients = network(1.0, causal=algorithm.CAUSAL).to(place).train(), [], []
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    keys = dict(mask_id=M, denominator=40.0)
    if packed:
        keys |= dict(texts=texts_of(place), maskable=texts_of(place).number >= 0)
    for step in range(3):
        loss = algorithm.loss(net, rows().to(place), options, seed=step, **keys)
        loss.backward()
        gradients = gradients or [p.grad.cpu().clone() for p in net.parameters()]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses).cpu(), gradients


def losses(there):
    options = [(ar, ar.LossOptions())]
    for keys in ({}, dict(corruption="count", complementary=True), dict(objective="masked_ce", schedule="cosine")):
        options += [(mdlm, mdlm.LossOptions(**keys)), (bd3lm, bd3lm.LossOptions(block_size=SIZE, **keys))]
    options += [(mdlm, mdlm.LossOptions(see_ahead=0.5, t_shape="bell"))]
    for algorithm, o in options:
        for packed in (False, True):
            a, b = (train_a_little(place, algorithm, o, packed) for place in ("cpu", there))
            torch.testing.assert_close(a[0], b[0], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(a[1], b[1], rtol=1e-3, atol=1e-4)


def bounds(there):
    real = torch.arange(L) < torch.tensor([L, 17, 9])[:, None]
    for algorithm in (mdlm, bd3lm, ar):
        net = network(causal=algorithm.CAUSAL)
        for keys in (dict(maskable=real & (torch.arange(L) > 2), real=real), {}, dict(first=torch.tensor([4, 1, 9]))):
            a, b = (
                algorithm.nelbo(
                    copy.deepcopy(net).to(place),
                    rows().to(place),
                    mask_id=M,
                    samples=3,
                    **{k: v.to(place) for k, v in keys.items()},
                )
                for place in ("cpu", there)
            )
            assert b.dtype == torch.float64
            torch.testing.assert_close(a, b.cpu(), rtol=1e-5, atol=1e-5)
    o = bd3lm.LossOptions(block_size=SIZE, clip="adaptive", t_min=0.45, t_max=0.95)
    a, b = (bd3lm.adapt(network().to(place), [(rows().to(place), None)] * 2, o, mask_id=M) for place in ("cpu", there))
    assert a == b


def likelihoods(there):
    prompts, targets = (
        [r[:n] for r, n in zip(rows(), (0, 7, 3))],
        [r[n:m] for r, n, m in zip(rows(), (0, 7, 3), (5, 20, 9))],
    )
    for algorithm in (mdlm, bd3lm, ar, fast_mdlm, fast_bd3lm):
        options = [algorithm.LikelihoodOptions()]
        if algorithm is not ar:
            options = [replace(options[0], method=m) for m in ("nelbo", "left_to_right", "confidence")]
        if algorithm is fast_mdlm:
            options += [replace(options[0], method=m) for m in ("llada", "dream", "illada")]
            options += [replace(options[0], cfg_scale=0.5)]
        for o in options:
            found = []
            for place in ("cpu", there):
                net = network(causal=algorithm.CAUSAL).to(place)
                texts = ([x.to(place) for x in given] for given in (prompts, targets))
                found.append(algorithm.log_likelihood(net, *texts, o, mask_id=M).cpu())
            torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def generated(there, algorithm, options, **keys):
    holes = rows(3)[:, :14].clone()
    holes[1, 5:9] = M
    prompts = [torch.zeros(0, dtype=torch.int64), holes[1], holes[2, :3]]
    if algorithm.CAUSAL:
        prompts[1] = rows(3)[1, :14]
    for o in options:
        found = []
        for place in ("cpu", there):
            net = network(causal=algorithm.CAUSAL).to(place)
            out = algorithm.generate(net, [p.to(place) for p in prompts], o, mask_id=M, eos_id=[3], trace=True, **keys)
            found.append(([x.tolist() for x in out.tokens], out.num_forwards, [[e[:3] for e in t] for t in out.trace]))
        assert found[0] == found[1], (algorithm.__name__, o)


PLAIN = [
    dict(steps=3),
    dict(order="random", temperature=0.0),
    dict(quota="threshold", threshold=0.3, order="margin"),
    dict(quota="ancestral", steps=4, schedule="cosine"),
    dict(order="entropy", temperature=0.5),
]


def plain_samplers(there):
    for algorithm in (mdlm, bd3lm):
        generated(there, algorithm, [algorithm.SampleOptions(8, **keys) for keys in PLAIN])
    generated(there, ar, [ar.SampleOptions(8, **k) for k in ({}, dict(temperature=0.0), dict(top_k=5, top_p=0.8))])


def fast_samplers(there):
    options = [*PLAIN, dict(steps=3, cfg_scale=0.7), dict(temperature=0.0, exact=True, measure="draw", top_p=0.9)]
    options += [dict(quota="ancestral", steps=6, remask=0.2), dict(order_temperature=0.5, steps=4)]
    options += [dict(quota="factor", factor=1.0), dict(quota="entropy_bound", order="entropy", suppress=(4, 5))]
    for keys in options:
        for cache in ("none",) if keys.get("remask") else ("none", "prefix", "dual"):
            size = 0 if keys.get("quota") == "ancestral" and cache == "none" else 6
            generated(there, fast_mdlm, [fast_mdlm.SampleOptions(8, cache=cache, block_size=size, **keys)])
    for keys in options:
        for cache in ("kept", "block", "none"):
            if not keys.get("remask"):
                generated(there, fast_bd3lm, [fast_bd3lm.SampleOptions(8, cache=cache, **keys)])


def commands(there):
    """train.py, eval.py and sample.py from the first word to the last."""
    numbers = {}
    for place in ("cpu", there):
        for module in (train, evaluation, sample):
            module.pick_device = lambda name, place=place: (place, "for a test")
        with tempfile.TemporaryDirectory() as out:
            text = "the quick brown fox jumps over the lazy dog. pack my box with five dozen liquor jugs. "
            tok = tokenizers.load({"kind": "char", "chars": "".join(sorted(set(text)))})
            corpus.write_dataset(
                Path(out), tok, {"train": tok.encode(text * 20), "val": tok.encode(text * 3)}, bytes_per_token=1.0
            )
            common = (
                f"--dataset={out} --n_layer=1 --n_head=2 --n_embd=32 --seq_len=32 --batch_size=4 --max_iters=3".split()
            )
            common += "--eval_windows=6 --eval_samples=1 --eval_interval=2 --dtype=float32".split()
            for name, more in RUNS.items():
                train.main([*common, f"--out_dir={out}/{name}", *more])
                state = ckpt.load_train_state(Path(out) / name / "last")
                numbers[place, name] = state["facts"]["val_nats"]
    for name in RUNS:
        assert numbers["cpu", name] == pytest.approx(numbers[there, name], abs=1e-4), name


RUNS = {
    "mdlm": ["--optimizer=muon", "--gradient_accumulation_steps=2"],
    "bd3lm": ["--algorithm=bd3lm", "--block_size=8", "--clip=adaptive", "--t_min=0.4", "--t_max=0.9"],
    "ar": ["--algorithm=ar", "--ema=0.9"],
}
CHECKS = {f.__name__: f for f in (losses, bounds, likelihoods, plain_samplers, fast_samplers, commands)}

if __name__ == "__main__":
    from no_float64 import Device

    torch.set_num_threads(1)
    with Device() as there:
        for name in sys.argv[1:] or CHECKS:
            try:
                CHECKS[name](there)
                print(f"--- {name}: as on the CPU")
            except Exception:
                print(f"--- {name}: {traceback.format_exc()}")
    sys.stdout.flush()
    os._exit(0)  # the threads of the device are not those of one that can be left
