"""Losses, bounds, likelihoods, texts and whole runs on a device that has no float64, as Apple's GPUs: as on the CPU.

The device is no_float64's, and all of this runs in one process of its own, as autograd must know a device before it
runs for the first time: this file is that program, too."""

import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
from dataclasses import replace
from functools import partial
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
from nanodlm import device as devices
from nanodlm import tokenizer as tokenizers
from nanodlm.batches import Texts

M, L, SIZE, HERE = 18, 12, 4, Path(__file__)
close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)


def network(place, causal=False, scale=4.0):
    torch.manual_seed(0)
    shape = dict(vocab_size=M + 1, seq_len=L, block_size=SIZE, n_layer=1, n_head=2, n_kv_head=1, n_embd=16)
    net = Transformer(Config(**shape, causal=causal)).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(scale)  # or all texts would be about equally likely
    return net.to(place)


def rows(place="cpu"):
    return (noise.uniform(8, torch.arange(3)[:, None], torch.arange(L)) * M).long().to(place)


def packed(place):
    """Rows of two texts, of 4 and 7 tokens, and of padding."""
    at = torch.arange(L).expand(3, L)
    text = torch.where(at < 4, 0, torch.where(at < 11, 1, -1))
    number = torch.where(text < 0, -1, text + 2 * torch.arange(3)[:, None])
    return Texts(number, torch.where(text == 1, at - 4, at * (text == 0)), 0, 6, 6, 8, True).to(place)


def losses(there):
    """And gradients, and what an optimiser makes of them."""

    def steps(place, algorithm, options, texts):
        net, values, gradients = network(place, algorithm.CAUSAL, 1.0).train(), [], []
        optimizer, keys = torch.optim.AdamW(net.parameters(), lr=1e-3), {}
        if texts:
            keys = dict(texts=packed(place), maskable=packed(place).number >= 0)
        for seed in range(2):
            value = algorithm.loss(net, rows(place), options, mask_id=M, seed=seed, **keys)
            value.backward()
            gradients += [p.grad.cpu().clone() for p in net.parameters()]
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            values.append(value.detach().cpu())
        return values, gradients

    options = [(ar, {}, False), (ar, {}, True), (mdlm, dict(see_ahead=0.5, t_shape="bell"), True)]
    for algorithm, size in ((mdlm, {}), (bd3lm, dict(block_size=SIZE))):
        options += [(algorithm, size, False), (algorithm, size | dict(corruption="count", complementary=True), True)]
        options += [(algorithm, size | dict(objective="masked_ce", schedule="cosine"), False)]
    for algorithm, keys, texts in options:
        a, b = (steps(place, algorithm, algorithm.LossOptions(**keys), texts) for place in ("cpu", there))
        close(a[0], b[0])
        close(a[1], b[1], rtol=1e-3)


def bounds(there):
    real = torch.arange(L) < torch.tensor([L, 7, 9])[:, None]
    for algorithm in (mdlm, bd3lm, ar):
        for keys in (dict(maskable=real & (torch.arange(L) > 2), real=real), dict(first=torch.tensor([4, 1, 9]))):
            given = ({k: v.to(place) for k, v in keys.items()} for place in ("cpu", there))
            nets = (network(place, algorithm.CAUSAL) for place in ("cpu", there))
            found = [
                algorithm.nelbo(net, rows(place), mask_id=M, samples=3, **more)
                for net, place, more in zip(nets, ("cpu", there), given)
            ]
            assert {x.dtype for x in found} == {torch.float64}
            close(*(x.cpu() for x in found))
    o = bd3lm.LossOptions(block_size=SIZE, clip="adaptive", t_min=0.45, t_max=0.95)
    a, b = (bd3lm.adapt(network(place), [(rows(place), None)] * 2, o, mask_id=M) for place in ("cpu", there))
    assert a == b


def likelihoods(there):
    cut = (0, 3), (7, 11), (2, 5)
    for algorithm in (mdlm, bd3lm, ar, fast_mdlm, fast_bd3lm):
        o = algorithm.LikelihoodOptions()
        options = [o]
        if algorithm is not ar:
            o.mc_samples = 2
            options = [replace(o, method=m) for m in ("nelbo", "left_to_right", "confidence")]
        if algorithm is fast_mdlm:
            options += [replace(o, method=m) for m in ("llada", "dream", "illada")] + [replace(o, cfg_scale=0.5)]
        for o in options:
            found = []
            for place in ("cpu", there):
                given = [x[:n] for x, (n, _) in zip(rows(place), cut)], [x[n:m] for x, (n, m) in zip(rows(place), cut)]
                net = network(place, algorithm.CAUSAL)
                found.append(algorithm.log_likelihood(net, *given, o, mask_id=M).cpu())
            close(*found)


def assert_same_texts(there, algorithm, *options):
    holes = rows()[1, :8]
    holes[2:5] = holes[2:5] if algorithm.CAUSAL else M
    for o in options:
        prompts = [holes, rows()[2, :3], torch.zeros(0, dtype=torch.int64)]
        prompts = prompts[:2] if getattr(o, "exact", False) else prompts  # where rounding may break ties, as published
        found, keys = [], dict(mask_id=M, eos_id=[3], trace=True)
        for place in ("cpu", there):
            net = network(place, algorithm.CAUSAL)
            out = algorithm.generate(net, [p.to(place) for p in prompts], o, **keys)
            assert {x.device.type for x in out.tokens} == {place}
            found.append(([x.tolist() for x in out.tokens], out.num_forwards, [[e[:3] for e in t] for t in out.trace]))
        assert found[0] == found[1], (algorithm.__name__, o)


def plain_samplers(there):
    every = [
        dict(steps=3),
        dict(order="entropy", temperature=0.0),
        dict(quota="threshold", threshold=0.3, order="margin"),
        dict(quota="ancestral", steps=3, schedule="cosine"),
    ]
    for algorithm in (mdlm, bd3lm):
        assert_same_texts(there, algorithm, *(algorithm.SampleOptions(4, **keys) for keys in every))
    assert_same_texts(there, ar, *(ar.SampleOptions(4, **keys) for keys in ({}, dict(temperature=0.0))))


def fast_samplers(there):
    every = [
        dict(steps=3, cfg_scale=0.7),
        dict(order="entropy", temperature=0.0, last=(4,)),
        dict(order="random", top_k=9, top_p=0.8),
        dict(quota="threshold", threshold=0.3, order="margin", suppress=(4, 5)),
        dict(quota="entropy_bound", order="entropy", temperature=0.5),
        dict(steps=3, order_temperature=0.5, measure="draw"),
        dict(temperature=0.0, exact=True, measure="draw", top_p=0.9),
        dict(quota="ancestral", steps=3, schedule="dream", remask=0.2),
    ]
    for i, keys in enumerate(every):  # every option somewhere, every cache with some
        for algorithm, cache in ((fast_mdlm, "none prefix dual".split()), (fast_bd3lm, "kept block none".split())):
            more = {} if keys.get("remask") else dict(cache=cache[i % 3])
            more |= dict(block_size=SIZE) if algorithm is fast_mdlm and not keys.get("remask") else {}
            assert_same_texts(there, algorithm, algorithm.SampleOptions(4, **keys, **more))


def commands(there):
    """train.py, eval.py and sample.py, from the first word to the last."""
    numbers, train.log.plot = {}, lambda *_: None
    for place in ("cpu", there):
        for module in (train, evaluation, sample):
            module.pick_device = lambda name, place=place: (place, "where the test says")
        with tempfile.TemporaryDirectory() as out:
            text = "the quick brown fox jumps over the lazy dog. pack my box with five dozen liquor jugs. "
            tok = tokenizers.load({"kind": "char", "chars": "".join(sorted(set(text)))})
            ids = {"train": tok.encode(text * 20), "val": tok.encode(text * 3)}
            corpus.write_dataset(Path(out), tok, ids, bytes_per_token=1.0)
            common = f"--dataset={out} --n_layer=1 --n_head=2 --n_embd=16 --seq_len=16 --batch_size=4 --max_iters=2 "
            common += "--eval_windows=6 --eval_samples=1 --eval_interval=1 --dtype=float32"
            for name, words in RUNS.items():
                words = [*common.split(), *words.split(), f"--out_dir={out}/{name}"]
                train.main(words)
                if name == "mdlm":
                    train.main([*words, "--init_from=resume", "--max_iters=3"])
                numbers[place, name] = ckpt.load_train_state(Path(out) / name / "last")["facts"]["val_nats"]
            sample.main([f"--checkpoint={out}/mdlm/last", "--max_new_tokens=8", "--prompt=the", "--num_samples=2"])
            found = f"--checkpoint={out}/mdlm/last,{out}/ar/last --windows=4 --samples=1 --chain_rule=confidence "
            found += f"--chain_windows=1 --num_samples=2 --max_new_tokens=8 --judge={out}/ar/last --out={out}/a.json"
            evaluation.main(found.split())
            table = json.loads((Path(out) / "a.json").read_text())
            likely = [row["nats_per_token"] for r in table for row in r["likelihood"].values()]
            numbers[place, "eval"] = [*likely, *(r["sample_entropy"]["perplexity"] for r in table)]
    for name in (*RUNS, "eval"):
        assert numbers["cpu", name] == pytest.approx(numbers[there, name], rel=1e-3), name


RUNS = {
    "mdlm": "--optimizer=muon --gradient_accumulation_steps=2",
    "bd3lm": "--algorithm=bd3lm --block_size=8 --clip=adaptive --t_min=0.4 --t_max=0.9",
    "ar": "--algorithm=ar --ema=0.9 --recompute=True",
}
CHECKS = {f.__name__: f for f in (losses, bounds, likelihoods, plain_samplers, fast_samplers, commands)}


@pytest.fixture(scope="module")
def said():
    """What the process of its own said, check by check."""
    if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch cannot imitate a device")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent.parent), str(HERE.parent)])}
    done = subprocess.run([sys.executable, HERE], env=environment, capture_output=True, text=True, timeout=600)
    return dict(re.findall(r"^=== (\w+)\n(.*?)(?=^===|\Z)", done.stdout, re.M | re.S)) or {"": done.stderr}


@pytest.mark.parametrize("name", CHECKS)
def test_without_float64_everything_is_as_on_the_cpu(name, said):
    assert said.get(name, said).endswith("as on the CPU\n"), said.get(name, said)


def test_apples_gpu_is_taken_where_it_is_by_one_process_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="device=mps, but torch sees none of Apple's GPUs; use --device=cpu"):
        devices.pick_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert devices.pick_device("auto") == devices.pick_device("auto") == ("mps", "Apple's GPU")
    assert devices.pick_device("mps")[0] == "mps" and devices.pick_dtype("auto", "mps")[0] == torch.float32
    assert devices.pick_compile("auto", "mps") == (False, "compile off")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert devices.pick_device("auto")[0] == "cpu"
    with pytest.raises(SystemExit, match="device=mps is for one process"):
        devices.pick_device("mps")


if __name__ == "__main__":
    from no_float64 import Device

    torch.set_num_threads(1)
    with Device() as there:
        for name in sys.argv[1:] or CHECKS:
            print(f"=== {name}")
            try:
                CHECKS[name](there)
                print("as on the CPU", flush=True)
            except BaseException:
                print(traceback.format_exc(), flush=True)
    os._exit(0)  # the device's threads cannot be waited for
