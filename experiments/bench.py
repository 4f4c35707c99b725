"""Throughput of training and decoding: variants interleaved in one run, medians and ratios.

    python experiments/bench.py                all but weights, memory, likelihood and serve, some 20 minutes on a CPU
    python experiments/bench.py --only=head    one group: head, compile, batch, blocks, sft, decode, block_decode,
                                               cache, weights, likelihood, harness, memory, serve

Each group compares variants with the first one. Every round times every variant once, in turn, so that a machine that
slows down slows all of them; the median of the rounds is printed, with the median of the per-round ratios.
"""

import copy
import functools
import itertools
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ar  # noqa: E402
import bd3lm  # noqa: E402
import editflow  # noqa: E402
import mdlm  # noqa: E402
from experiments import load  # noqa: E402
from model import Config, Transformer  # noqa: E402
from nanodlm import (  # noqa: E402
    batches,
    configurator,
    console,
    decode,
    fast_bd3lm,
    fast_mdlm,
    harness,
    int8,
    likelihood,
    noise,
    tasks,
)
from nanodlm import checkpoint as ckpt  # noqa: E402
from nanodlm.bounds import Size  # noqa: E402
from nanodlm.device import PEAK_FLOPS, flops_per_token, pick_device, pick_dtype  # noqa: E402

Group = Literal[
    "all",
    "head",
    "compile",
    "batch",
    "blocks",
    "sft",
    "decode",
    "block_decode",
    "cache",
    "weights",
    "likelihood",
    "harness",
    "memory",
    "serve",
]


@dataclass
class Settings:
    only: Group = "all"  # which group
    rounds: Size = 7  # timed repeats of every variant, at least 1
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # auto: the GPU where there is one; mps: Apple's
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of the matrix products in training
    n_layer: Size = 6  # of the network of the training groups
    n_embd: Size = 256  # its width; heads of 64 channels
    seq_len: Size = 256  # its context
    batch_size: Size = 8  # its rows


def sync(device):
    if device != "cpu":
        torch.accelerator.synchronize()


def interleaved(variants, rounds, device, warm=True):
    """{name: [seconds]}: one warm-up call each, then `rounds` rounds of all variants in turn."""
    seconds = {name: [] for name in variants}
    for i in range(not warm, rounds + 1):
        for name, (run, _, _) in variants.items():
            sync(device)
            start = time.perf_counter()
            run()
            sync(device)
            if i:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def report(group, variants, rounds, device, warm=True):
    """Markdown rows: tokens per second and the ratio to the group's first variant."""
    seconds = interleaved(variants, rounds, device, warm)
    peak = next((f for gpu, f in PEAK_FLOPS.items() if device == "cuda" and gpu in torch.cuda.get_device_name()), None)
    first = None
    for name, (_, tokens, flops) in variants.items():
        speeds = [tokens / s for s in seconds[name]]
        first = first or speeds
        ratio = statistics.median(a / b for a, b in zip(speeds, first))
        mfu = f"{statistics.median(speeds) * flops / peak:.1%}" if peak and flops else ""
        speed = statistics.median(speeds)
        print(f"| {group} | {name} | {speed:,.{0 if speed > 20 else 1}f} | {ratio:.2f} | {mfu} |", flush=True)


def masks(seed, x):
    """What is hidden of x (B, L), each token at its row's time, and the times: bool (B, L) and float64 (B, 1)."""
    i = noise.home(torch.arange(x.numel(), device=x.device).view_as(x))
    t = noise.stratified(seed, len(x), i.device)[:, None]
    return (noise.uniform(seed, 3, i) < t).to(x.device), t


def training_step(model, config, batch_size, device, dtype, full=False, block_size=0):
    """A function that does one forward and backward of mdlm.loss, or of bd3lm.loss where there is a block size. `full`:
    mdlm's as it is usually written, with logits and cross entropy at every position and a weight of zero where nothing
    is hidden."""
    x = torch.randint(config.vocab_size - 1, (batch_size, config.seq_len), device=device)
    mask_id, counter = config.vocab_size - 1, itertools.count()

    def full_loss(seed):
        hidden, t = masks(seed, x)
        logits = model(torch.where(hidden, mask_id, x)).flatten(0, 1).float()
        logits.detach()[:, mask_id] = -torch.inf
        nll = torch.nn.functional.cross_entropy(logits, x.flatten(), reduction="none").view_as(x)
        return (nll * hidden / t.to(nll)).sum() / x.numel()

    def step():
        seed = next(counter)
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            if full:
                value = full_loss(seed)
            elif block_size:
                value = bd3lm.loss(model, x, bd3lm.LossOptions(block_size=block_size), mask_id=mask_id, seed=seed)
            else:
                value = mdlm.loss(model, x, mask_id=mask_id, seed=seed)
        value.backward()
        model.zero_grad(set_to_none=True)

    passes = 1 + bd3lm.clean_length(config.seq_len, block_size) / config.seq_len if block_size else 1
    flops = flops_per_token(model, config.seq_len, 1.0 if full else 0.5, passes)
    return step, batch_size * config.seq_len, flops


def sft_group(s, device, dtype):
    """Fine-tuning a network of ModernBERT's shape (every third layer global, a window of 128, 50,368 tokens; 22 layers
    of 256 channels by default) on conversations as long as GSM8K's; what counts is their tokens, not the padding."""
    conversations, length, layers = 4 * s.batch_size, 2 * s.seq_len, 4 * s.n_layer - 2
    shape = dict(n_layer=layers, n_embd=s.n_embd, n_head=max(1, s.n_embd // 64), mlp="geglu", norm="layer")
    shape |= dict(mlp_dim=3 * s.n_embd // 2, norm_embed=True)
    shape |= dict(norm_first=False, window=64, global_every=3, qk_norm=False, head_dense="plain", head_bias=True)
    c = Config(vocab_size=50368, seq_len=length, tied=True, **shape)
    model, mask_id = Transformer(c).to(device), c.vocab_size - 1
    rng = torch.Generator().manual_seed(1)
    sizes = (torch.randn(conversations, generator=rng) * 0.4 + 5.1).exp().long().clamp(length // 16, length).tolist()
    items = []
    for n in sizes:
        ids = torch.randint(mask_id, (n,), generator=rng).numpy()
        items.append((n, (ids, torch.arange(n).numpy() > 0.4 * n)))
    counter = itertools.count()

    def batch(packing):
        options = conversations.Options(packing=packing, fill=1)
        rows = [[item] for item in items]
        if packing:
            rows = [[items[i] for i in row] for row in batches.pack(sizes, length)]
        ids, learn, texts = batches.batch(rows, 0, len(rows), options, 0, length)
        ids, learn, number, position = (
            torch.from_numpy(x).to(device) for x in (ids, learn, texts.pop("number"), texts.pop("position"))
        )
        return ids, learn, batches.Texts(number, position, **texts)

    def step(loss):
        def run():
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                value = loss(next(counter))
            value.backward()
            model.zero_grad(set_to_none=True)

        return run, sum(sizes), 0

    def ours(packing):
        x, learn, texts = batch(packing)
        return step(lambda seed: mdlm.loss(model, x, mask_id=mask_id, maskable=learn, seed=seed, texts=texts))

    x, learn, texts = batch(False)
    pad = length - x.shape[1]
    x, learn, real = (torch.nn.functional.pad(y, (0, pad)) for y in (x, learn, texts.number >= 0))

    def plain(seed):
        """As it is usually written: rows padded to the context, logits and cross entropy everywhere."""
        hidden, t = masks(seed, x)
        hidden &= learn
        logits = model(torch.where(hidden, mask_id, x), mask=real).flatten(0, 1).float()
        logits.detach()[:, mask_id] = -torch.inf
        nll = torch.nn.functional.cross_entropy(logits, x.flatten(), reduction="none").view_as(x)
        return (nll * hidden / t.to(nll)).sum() / learn.sum()

    variants = {"plain: padded rows, logits everywhere": step(plain), "ours": ours(False), "ours, packed": ours(True)}
    report(
        f"fine-tuning, {conversations} conversations of {sum(sizes) / len(sizes):.0f} tokens",
        variants,
        s.rounds,
        device,
    )


def llada_plainly(model, prompts, mask_id, max_new_tokens, block_size):
    """LLaDA's published sampler written down as it stands, one token per step, right-padded: logits of the whole canvas
    at every step, their softmax in float64, a loop over rows."""
    x, real = decode.pad([torch.nn.functional.pad(p, (0, max_new_tokens), value=mask_id) for p in prompts], mask_id)
    position = torch.arange(x.shape[1], device=x.device)
    for block in range(max_new_tokens // block_size):
        end = torch.tensor([len(p) + (block + 1) * block_size for p in prompts], device=x.device)
        for _ in range(block_size):
            with torch.no_grad():
                logits = model(x, mask=real)
            logits[..., mask_id] = -torch.inf
            x0 = logits.argmax(-1)
            confidence = logits.double().softmax(-1).gather(-1, x0[..., None])[..., 0]
            candidate = (x == mask_id) & (position < end[:, None])
            for row, score, new in zip(x, confidence.masked_fill(~candidate, -torch.inf), x0):
                best = score.topk(1).indices
                row[best] = new[best]
    return [row[: len(p) + max_new_tokens] for row, p in zip(x, prompts)]


def cache_group(s, device):
    """Decoding with a small network of LLaDA's shape: 8 ragged prompts, 256 new tokens, blocks of 32, 256 steps."""
    shape = dict(n_layer=4, n_head=2, n_embd=128, mlp="swiglu", mlp_dim=384, qk_norm=False, rope_theta=5e5)
    c = Config(vocab_size=4096, seq_len=512, **shape)
    model, mask_id = Transformer(c).to(device).eval(), c.vocab_size - 1
    for p in model.parameters():  # at the usual initialisation all tokens are nearly equally likely: ties
        p.data.normal_(0, 0.1) if p.dim() == 2 else None
    prompts = [torch.arange(n, device=device) * 37 % 4000 for n in (8, 16, 24, 32, 48, 64, 80, 96)]

    def ours(**options):
        o = fast_mdlm.SampleOptions(256, block_size=32, temperature=0.0, **options)
        return lambda: fast_mdlm.generate(model, prompts, o, mask_id=mask_id).tokens

    runs = {
        "published algorithm, plainly": lambda: llada_plainly(model, prompts, mask_id, 256, 32),
        "no cache": ours(),
        "prefix cache": ours(cache="prefix"),
        "dual cache": ours(cache="dual"),
    }
    same = [torch.equal(a, b) for a, b in zip(runs["published algorithm, plainly"](), runs["no cache"]())]
    print(f"(no cache and the published algorithm: {sum(same)} of {len(same)} rows equal, token for token)")
    report("decoding 8 x 256, LLaDA's shape", {k: (f, 8 * 256, 0) for k, f in runs.items()}, min(3, s.rounds), device)


def weights_group(s):
    """Decoding on a CPU by weights of float32, bfloat16 and int8: the shipped checkpoint, and GPT-2's shape with its
    vocabulary; 32 tokens behind 16, in 8 steps."""
    shape = Config(vocab_size=50304, seq_len=128, n_layer=12, n_head=12, n_embd=768)
    o = fast_mdlm.SampleOptions(32, steps=8, temperature=0.0)
    for name in ("pydocs_mdlm", "12 layers of 768"):
        own = ckpt.load("checkpoints/pydocs_mdlm").model if name == "pydocs_mdlm" else Transformer(shape).eval()
        models = {"float32": own, "bfloat16": copy.deepcopy(own).bfloat16(), "int8": int8.quantize(copy.deepcopy(own))}
        for B, cache in itertools.product((1, 8), ("none", "dual")):
            options = replace(o, cache=cache, block_size=16 if cache == "dual" else 0)
            given = [torch.arange(16) + i for i in range(B)], options
            run = functools.partial(functools.partial, fast_mdlm.generate, mask_id=own.config.vocab_size - 1)
            runs = {k: (run(m, *given), B * 32, 0) for k, m in models.items()}
            report(f"{name}, {B} x 32, cache={cache}", runs, s.rounds, "cpu")


def likelihoods_plainly(model, pairs, mask_id, samples, batch):
    """LLaDA's published estimate written down as it stands: one request at a time, `batch` copies of it with masks of
    their own, logits of the whole canvas; with the masks that ours are given, so that the estimates are equal."""
    out = []
    for number, (prompt, target) in enumerate(pairs):
        x = torch.cat([prompt, target]).repeat(batch, 1)
        maskable = (torch.arange(x.shape[1], device=x.device) >= len(prompt)).expand_as(x)
        row, total = torch.full((batch,), number, device=x.device), 0.0
        for start in range(0, samples, batch):
            j = start + torch.arange(batch, device=x.device)
            hidden, weight = likelihood.llada_masks(maskable, row, j, samples, 0, batch)
            with torch.no_grad():
                logits = model(torch.where(hidden, mask_id, x))
            nll = torch.nn.functional.cross_entropy(logits[hidden], x[hidden], reduction="none")
            total -= (nll * weight[:, None].expand_as(x)[hidden]).sum().item() / samples
        out.append(total)
    return torch.tensor(out)


def likelihood_group(s, device, vocab_size, name, low, high):
    """64 questions of 16 to 256 tokens with 4 answers of `low` to `high` tokens each, as multiple choice has them. A
    small network of LLaDA's shape, 32 masks, 8 at a time."""
    shape = dict(n_layer=4, n_head=2, n_embd=128, mlp="swiglu", mlp_dim=384, qk_norm=False, rope_theta=5e5)
    model, mask_id = Transformer(Config(vocab_size=vocab_size, seq_len=512, **shape)).to(device).eval(), vocab_size - 1
    rng = torch.Generator().manual_seed(1)

    def text(low, high):
        length = int(torch.randint(low, high + 1, (), generator=rng))
        return torch.randint(mask_id, (length,), generator=rng).to(device)

    pairs = [(prompt, text(low, high)) for prompt in [text(16, 256) for _ in range(64)] for _ in range(4)]
    o = fast_mdlm.LikelihoodOptions("llada", mc_samples=32, mc_batch=8)
    found = {}
    runs = {
        "published algorithm, one by one": lambda: found.update(a=likelihoods_plainly(model, pairs, mask_id, 32, 8)),
        "ours": lambda: found.update(b=fast_mdlm.log_likelihood(model, *zip(*pairs), o, mask_id=mask_id).cpu()),
    }
    group = f"likelihoods, 64 x 4 {name} (answers per second), vocabulary {vocab_size}"
    report(group, {k: (f, len(pairs), 0) for k, f in runs.items()}, 1, device, warm=False)  # a round takes minutes
    a, b = found.values()
    print(f"(the estimates differ by {(a - b).abs().max():.1e} nats at most, of {a.abs().mean():.0f})")


def harness_group(s, device):
    """Writing 16 answers of 128 tokens to prompts of 16 to 96 tokens in one batch: the sampler as sample.py calls it,
    and lm-eval's generate_until, with the text, the stop strings and the file of finished requests."""
    from lm_eval.api.instance import Instance

    checkpoint = ckpt.load("checkpoints/pydocs_mdlm", device)
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    texts = [("class Stack: a list of things that " * 9)[: 70 + 20 * i] for i in range(16)]
    prompts = [torch.tensor(tokenizer.encode(text), device=device) for text in texts]
    o = fast_mdlm.SampleOptions(128, block_size=32, temperature=0.0)
    requests = [Instance("generate_until", {}, (text, {"until": ["qqqq", "zzzz"]}), i) for i, text in enumerate(texts)]

    def in_harness():
        with tempfile.TemporaryDirectory() as directory:
            lm = harness.Harness(checkpoint, fast_mdlm, harness.Answers(checkpoint, fast_mdlm, 16, directory))
            lm.use(tasks.Options(), fast_mdlm.LikelihoodOptions(), lambda said: o)
            return lm.generate_until(requests)

    keys = dict(mask_id=tokenizer.mask_id, eos_id=tokenizer.stop_ids)
    runs = {
        "generate, as sample.py calls it": lambda: fast_mdlm.generate(model, prompts, o, **keys),
        "lm-eval's generate_until": in_harness,
    }
    report("16 answers of 128 tokens", {k: (f, 16 * 128, 0) for k, f in runs.items()}, s.rounds, device)


def memory_group(device):
    """Peak memory of decoding beyond weights and cache: LLaDA's width and vocabulary in one layer (what a layer needs
    is freed before the next), bf16, batch 8, a canvas of 1300 tokens, two blocks of 32."""
    shape = dict(n_layer=1, n_head=32, n_embd=4096, mlp="swiglu", mlp_dim=12288, qk_norm=False)
    model = Transformer(Config(vocab_size=126464, seq_len=4096, **shape)).to(device, torch.bfloat16).eval()
    prompts = [torch.randint(126000, (1300 - 64,), device=device) for _ in range(8)]
    for cache in ("none", "dual"):
        for temperature in (0.0, 1.0):
            o = fast_mdlm.SampleOptions(
                64, block_size=32, steps=2 if cache == "none" else 4, temperature=temperature, cache=cache
            )
            kept = 2 * 8 * 1301 * 4096 * 2 if cache == "dual" else 0
            if device == "cuda":
                before = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
                fast_mdlm.generate(model, prompts, o, mask_id=126336)
                peak = torch.cuda.max_memory_allocated() - before - kept
            else:
                with Live(model) as live:
                    fast_mdlm.generate(model, prompts, o, mask_id=126336)
                peak = live.peak - kept
            name = f"cache={cache}, temperature={temperature:g}"
            print(f"| peak memory, 8 x 1300, vocabulary 126464 | {name} | {peak / 1e9:.2f} GB | | |", flush=True)


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that live at a time, but for a network's weights. (The process's size would
    count what the libraries keep for later, too.)"""

    def __init__(self, model):
        super().__init__()
        self.weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.alive, self.peak = {}, 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if torch.is_tensor(x) and x.untyped_storage().data_ptr() not in self.weights:
                ref = StorageWeakRef(x.untyped_storage())
                self.alive[ref.cdata] = (ref, x.untyped_storage().nbytes())
        self.alive = {k: v for k, v in self.alive.items() if not v[0].expired()}
        self.peak = max(self.peak, sum(n for _, n in self.alive.values()))
        return out


def config(s, vocab_size, **changes):
    shape = dict(seq_len=s.seq_len, n_layer=s.n_layer, n_embd=s.n_embd, n_head=max(1, s.n_embd // 64))
    return Config(vocab_size=vocab_size, **shape | changes)


def training_groups(s, device, dtype):
    if s.only in ("all", "head"):
        c = config(s, 50304)
        model = Transformer(c).to(device)
        step = {
            "logits everywhere": training_step(model, c, s.batch_size, device, dtype, full=True),
            "logits at masked rows": training_step(model, c, s.batch_size, device, dtype),
        }
        report("training, vocabulary 50304", step, s.rounds, device)

    if s.only in ("all", "compile"):
        c = config(s, 1026)
        model = Transformer(c).to(device)
        step = {
            "eager": training_step(model, c, s.batch_size, device, dtype),
            "torch.compile": training_step(torch.compile(model), c, s.batch_size, device, dtype),
        }
        for _ in range(2):  # the number of masked rows varies: let the compiler see that before timing
            step["torch.compile"][0]()
        report("training, vocabulary 1026", step, s.rounds, device)

    if s.only in ("all", "batch"):
        c = config(s, 1026)
        model = Transformer(c).to(device)
        step = {f"batch {b}": training_step(model, c, b, device, dtype) for b in (4, 8, 16, 32)}
        report("training, vocabulary 1026", step, s.rounds, device)

    if s.only in ("all", "blocks"):
        c = config(s, 1026)
        model = Transformer(c).to(device)
        step = {"mdlm": training_step(model, c, s.batch_size, device, dtype)}
        for size in dict.fromkeys(min(k, c.seq_len) for k in (c.seq_len, 64, 16, 4)):
            name = f"bd3lm, blocks of {size}"
            step[name] = training_step(model, c, s.batch_size, device, dtype, block_size=size)
        report("training by blocks", step, s.rounds, device)


def decoding_groups(s, device):
    n = s.seq_len
    prompts = [torch.empty(0, dtype=torch.int64, device=device)] * s.batch_size

    def run_of(algorithm, net, **options):
        def run():
            algorithm.generate(net, prompts, algorithm.SampleOptions(max_new_tokens=n, **options), mask_id=1025)

        return run, s.batch_size * n, 0

    if s.only in ("all", "decode"):
        model = Transformer(config(s, 1026)).to(device).eval()
        causal = Transformer(config(s, 1026, causal=True)).to(device).eval()
        grows = Transformer(config(s, editflow.rows(1026))).to(device).eval()
        variants = {
            "mdlm, 1 token per forward": run_of(fast_mdlm, model),
            "mdlm, 4 tokens per forward": run_of(fast_mdlm, model, steps=max(1, n // 4)),
            "mdlm, 16 tokens per forward": run_of(fast_mdlm, model, steps=max(1, n // 16)),
            "mdlm, ancestral, 64 steps": run_of(fast_mdlm, model, quota="ancestral", steps=64),
            "editflow, 64 leaps": run_of(editflow, grows, steps=64),
            "ar, KV cache": run_of(ar, causal),
        }
        report(f"decoding {s.batch_size} x {n}", variants, min(3, s.rounds), device)

    if s.only in ("all", "block_decode"):
        size = min(16, n)
        model = Transformer(config(s, 1026, block_size=size)).to(device).eval()
        for tokens in (1, 4, 8):
            variants = {
                name: run_of(fast_bd3lm, model, cache=cache, steps=max(1, n // tokens))
                for name, cache in (("no cache", "none"), ("prefix anew per block", "block"), ("exact cache", "kept"))
            }
            group = f"decoding {s.batch_size} x {n}, blocks of {size}, {tokens} per forward"
            report(group, variants, min(3, s.rounds), device)


def main(argv):
    s = configurator.fill(configurator.read(argv), Settings)
    device, _ = pick_device(s.device)
    dtype, _ = pick_dtype(s.dtype, device)
    torch.manual_seed(0)
    where = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"{where}, torch {torch.__version__}, training in {str(dtype)[6:]}, {s.rounds} rounds\n")
    print("| group | variant | tokens/s (median) | ratio | MFU |\n|---|---|---|---|---|")

    training_groups(s, device, dtype)
    if s.only in ("all", "sft"):
        sft_group(s, device, dtype)
    decoding_groups(s, device)
    if s.only in ("all", "cache"):
        cache_group(s, device)

    if s.only == "weights":
        weights_group(s)

    if s.only in ("all", "harness"):
        harness_group(s, device)

    if s.only == "likelihood":
        likelihood_group(s, device, 4096, "letters", 1, 1)
        likelihood_group(s, device, 4096, "sentences", 8, 40)
        likelihood_group(s, device, 126464, "letters to sentences", 1, 40)

    if s.only == "memory":
        memory_group(device)

    if s.only == "serve":  # of a real server
        load.measure(s.rounds)


if __name__ == "__main__":
    console.run(main, sys.argv[1:])
