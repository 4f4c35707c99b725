"""What should be the same on every device, and what makes the host wait for one: for gpu.py and tests/test_cuda.py."""

import os
import traceback
import warnings
from collections import Counter
from functools import partial
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ar
import bd3lm
import mdlm
from model import Config, Transformer
from nanodlm import fast_bd3lm, fast_mdlm
from nanodlm.files import ROOT

# ---- networks, losses, samplers ----------------------------------------------------------------------------------


def network(config, device, dtype=torch.float32, std=0.02):
    """A network with random weights, which are made on the device: on the host they would take minutes and 32 GB."""
    with torch.device("meta"):
        model = Transformer(config).to(dtype)
    model = model.to_empty(device=device)
    torch.manual_seed(0)
    for p in model.parameters():
        with torch.no_grad():
            p.normal_(0, std) if p.dim() == 2 else p.fill_(1)
    return model.eval()


VOCAB, MASK = 211, 210
PROMPTS = [list(range(3, 3 + n)) for n in (5, 16, 1, 11)]
SAMPLERS = {f"mdlm, cache={c}": (fast_mdlm, dict(block_size=8, cache=c)) for c in ("none", "prefix", "dual")}
SAMPLERS |= {f"bd3lm, cache={c}": (fast_bd3lm, dict(cache=c)) for c in ("none", "block", "kept")}
SAMPLERS |= {"mdlm, cache=dual, compiled": (fast_mdlm, dict(block_size=8, cache="dual", compile=True))}
SAMPLERS |= {"plain mdlm": (mdlm, {}), "plain bd3lm": (bd3lm, {}), "ar": (ar, {})}
FAST = {
    "threshold": dict(block_size=8, cache="dual", quota="threshold", threshold=0.2),
    "entropy bound": dict(order="entropy", quota="entropy_bound", entropy_bound=3.0),
    "guided": dict(cfg_scale=1.0, cache="prefix", block_size=8),
    "drawn": dict(temperature=1.0),
    "drawn, random order": dict(temperature=1.0, order="random", steps=12),
    "drawn, nucleus": dict(temperature=0.7, top_p=0.9, top_k=50, measure="draw", steps=12),
    "remasking": dict(temperature=1.0, quota="ancestral", remask=0.3, steps=24),
}
SAMPLERS |= {name: (fast_mdlm, options) for name, options in FAST.items()}


def tiny(device, dtype=torch.float32, **changes):
    """A small network whose logits lie far enough apart for rounding to change no token, from numbers of the host."""
    shape = dict(n_layer=3, n_head=4, n_kv_head=2, n_embd=64, seq_len=128, block_size=8)
    return network(Config(vocab_size=VOCAB, **shape | changes), "cpu", std=0.15).to(device, dtype)


LOSSES = {"mdlm": (mdlm, mdlm.LossOptions()), "bd3lm": (bd3lm, bd3lm.LossOptions(block_size=8)), "ar": (ar, None)}


def loss_of(name, model, device, seed=3):
    algorithm, options = LOSSES[name]
    x = (torch.arange(4 * 128).view(4, 128) * 37 % MASK).to(device)
    return algorithm.loss(model, x, options, mask_id=MASK, seed=seed)


def sampler(name, device, new=24):
    """A call of one of SAMPLERS; on the CPU, which is compared with, nothing is compiled."""
    algorithm, options = SAMPLERS[name]
    options = {k: v for k, v in options.items() if k != "compile" or device != "cpu"}
    o = algorithm.SampleOptions(new, **{"temperature": 0.0} | options)
    prompts = [torch.tensor(p, device=device) for p in PROMPTS]
    return partial(algorithm.generate, tiny(device, causal=algorithm.CAUSAL), prompts, o, mask_id=MASK)


def tokens_of(name, device, new=24):
    return [t.tolist() for t in sampler(name, device, new)().tokens]


# ---- waiting ------------------------------------------------------------------------------------------------------

aten = torch.ops.aten
ASK = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default}
ASK |= {aten._unique2.default, aten.unique_dim.default, aten.repeat_interleave.Tensor, aten.bincount.default}


class Waits(TorchDispatchMode):
    """Counts, by line, what makes the host wait for a device: numbers, sizes and tensors of it that it wants to know.

    Works for any device but the CPU, and needs no GPU where one is imitated; compiled code it does not see (see
    cuda_waits). A boolean mask as an index is a nonzero, except where one number is put in its places."""

    def __init__(self):
        super().__init__()
        self.lines = Counter()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        given = [x for x in tree_leaves((args, kwargs)) if torch.is_tensor(x)]
        out = op(*args, **(kwargs or {}))
        if not any(x.device.type != "cpu" for x in given):
            return out
        masks = [x for x in given[1:] if x.dtype == torch.bool]
        by_mask = op is aten.index.Tensor or "index_put" in str(op) and given[-1].numel() > 1
        home = op is aten._to_copy.default and out.device.type == "cpu"
        home |= op is aten.copy_.default and args[0].device.type == "cpu"
        if op in ASK or by_mask and masks or home:
            frames = [
                f for f in traceback.extract_stack() if f[0].startswith(f"{ROOT}{os.sep}") and ".venv" not in f[0]
            ]
            ours = [f for f in frames if not {"experiments", "tests"} & {*Path(f[0]).parts}]
            f = (ours or frames or traceback.extract_stack())[-1]
            self.lines[f"{os.path.relpath(f.filename, ROOT)}:{f.lineno} `{(f.line or '')[:70]}`"] += 1
        return out


def cuda_waits(run):
    """What CUDA itself counts: the warnings of its synchronisation debug mode."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            run()
        return sum("called a synchronizing" in str(w.message) for w in said)
    finally:
        torch.cuda.set_sync_debug_mode("default")
