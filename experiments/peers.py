"""Beside the published code: its samplers, likelihoods and training steps and ours, on one set of weights.

    python experiments/peers.py --fastdllm=DIR --llada=DIR --dllm=DIR      checkouts, none of them shipped
    python experiments/peers.py --llada=DIR --only=llada

One process builds a small network of random weights, gives the same to the peers' own classes, and calls their code as
it is and ours in turn, once each a round. It checks that tokens (losses, estimates) are equal, row by row, and prints a
row of a table each: seconds (of the CPU, one thread; on a GPU of the clock), the median of the rounds' ratios, and by
how much memory grew at most. Adapters own no logic of the peers'. Checkouts that are not named are passed over.

The peers were written for transformers 4. What stands in for it here: the plain rotary frequencies, which version 5 no
longer lists; use_cache, which it no longer gives every config; a `validate` that takes what it is given. The two of
einops' patterns that are called are here, too, and empty modules for what the trainers of dLLM and bd3lms import, such
as lightning, and a step does not call. A step is given our masks and times by what torch.rand returns.
"""

import gc
import importlib.util
import statistics
import sys
import time
import types
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Literal
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import bd3lm  # noqa: E402
import mdlm  # noqa: E402
from model import Config, Transformer  # noqa: E402
from nanodlm import configurator, console, families, fast_bd3lm, fast_mdlm, likelihood  # noqa: E402
from nanodlm.bounds import Seed, Size  # noqa: E402
from nanodlm.device import pick_device  # noqa: E402

PEERS = ("llada", "fastdllm", "dllm", "dream", "bd3lms")


@dataclass
class Settings:
    llada: str = ""  # a checkout of github.com/ML-GSAI/LLaDA
    fastdllm: str = ""  # of github.com/NVlabs/Fast-dLLM
    dllm: str = ""  # of github.com/ZHZisZZ/dllm
    dream: str = ""  # of github.com/DreamLM/Dream
    bd3lms: str = ""  # of github.com/kuleshov-group/bd3lms
    only: str = ""  # a peer, or several with commas between; empty means all that are given
    rounds: Size = 5  # timed calls of each, at least 1
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: the GPU where there is one
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights; equal tokens are promised in float32
    n_layer: Size = 4  # of the network
    n_embd: Size = 256  # its width; heads of 64 channels, or one
    vocab_size: Size = 8192  # its last token is the mask
    length: Size = 64  # tokens of a prompt, and new ones; in two blocks, so it is even
    seed: Seed = 0  # of the weights and prompts

    def __post_init__(self):
        if self.length % 2:
            raise ValueError(f"length={self.length} is cut into two blocks: take an even number")
        for name in filter(None, self.only.split(",")):
            if name not in PEERS:
                raise ValueError(f"only={name} is none of {', '.join(PEERS)}")


# ---- their code ----------------------------------------------------------------------------------------------------


def plain_rope(config, device=None, **_):
    """The frequencies of RoPE without scaling, as transformers 4 had them (arXiv 2104.09864, section 3.2.2)."""
    d = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    theta = getattr(config, "rope_theta", None) or config.rope_parameters["rope_theta"]
    return 1.0 / theta ** (torch.arange(0, d, 2, device=device).float() / d), 1.0


def rearrange(x, pattern, three=None, h=None):
    """Einops' for the two patterns that are called: heads side by side; q, k, v and heads apart."""
    return x.flatten(2) if three is None else x.unflatten(2, (three, h, -1))


def load(directory, *names, empty=(), standing_in=()):
    """Modules of a checkout by name. They leave sys.modules at once, as peers (and we: model.py) give others the same
    names; `empty`: packages whose own __init__ is not run; `standing_in`: {name: what a module of that name holds}."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    ROPE_INIT_FUNCTIONS.setdefault("default", plain_rope)
    root = Path(directory).resolve()
    if not root.is_dir():
        sys.exit(f"{directory} is no directory; name a checkout")
    made = {name: dict(__path__=[str(root.joinpath(*name.split(".")))]) for name in empty} | dict(standing_in)
    if importlib.util.find_spec("einops") is None:
        made["einops"] = dict(rearrange=rearrange)
    tops = {name.split(".")[0] for name in (*names, *made)}
    aside = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in tops}
    for name, holds in made.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(holds)
    sys.path.insert(0, str(root))
    try:
        return [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(str(root))
        for name in [name for name in sys.modules if name.split(".")[0] in tops]:
            del sys.modules[name]
        sys.modules.update(aside)


def with_weights(network, model, family, strict=True):
    """Their network with the weights of our `model`, under a family's names; on its device, in its dtype. The two share
    them, so that a second network takes no memory, wherever theirs stacks nothing."""
    own = families.by_expert(dict(model.named_parameters()))
    names = families.their_names(families.FAMILIES.get(family, family), own, model.config.n_layer)
    data = {name: [own[n].data for n in ours] for name, ours in names.items()}
    data = {name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in data.items()}
    network.load_state_dict(data, strict=strict, assign=True)
    at = next(model.parameters())
    return network.to(at.device, at.dtype).eval()


def llada_network(module, model, classes=("LLaDAConfig", "LLaDAModelLM")):
    """A LLaDA of a peer's module, with the weights of ours."""
    c, (config, network) = model.config, (getattr(module, name) for name in classes)
    shape = dict(d_model=c.n_embd, n_heads=c.n_head, n_kv_heads=c.n_kv_head or c.n_head, n_layers=c.n_layer)
    shape |= dict(mlp_hidden_size=c.mlp_dim, max_sequence_length=c.seq_len, rope_theta=c.rope_theta)
    shape |= dict(vocab_size=c.vocab_size, embedding_size=c.vocab_size, weight_tying=False, rms_norm_eps=c.norm_eps)
    kind = dict(block_type="llama", activation_type="silu", layer_norm_type="rms", rope=True, include_bias=False)
    kind |= dict(include_qkv_bias=False, bias_for_layer_norm=False, attention_layer_norm=False, init_device="meta")
    kind |= dict(attention_dropout=0.0, embedding_dropout=0.0, residual_dropout=0.0, multi_query_attention=None)
    config = config(**shape, **kind, eos_token_id=0, pad_token_id=0)
    config.use_cache = False
    inner = getattr(module, "LLaDAModel", None)  # made here; they would make it on the CPU, or dLLM on a GPU
    given = [inner(module.create_model_config_from_pretrained_config(config), init_params=False)] if inner else []
    return with_weights(network(config, *given), model, families.FAMILIES["LLaDAModelLM"])


def with_shape(config, c, **more):
    """A config of transformers' kind with the shape that ours, c, has."""
    shape = dict(hidden_size=c.n_embd, num_attention_heads=c.n_head, num_key_value_heads=c.n_kv_head or c.n_head)
    shape |= dict(num_hidden_layers=c.n_layer, intermediate_size=c.mlp_dim, vocab_size=c.vocab_size)
    shape |= dict(max_position_embeddings=c.seq_len, rms_norm_eps=c.norm_eps, attn_implementation="sdpa")
    return config(**shape, **more)


def fastdllm_llada(directory, model):
    """Fast-dLLM's own code on the weights of `model`, of LLaDA's shape, whose last token is the mask: a function
    generate(prompt (1, L), cache="none" | "prefix" | "dual", **its options) -> tokens (1, L + gen_length), forwards."""
    module, code = load(Path(directory) / "llada", "model.modeling_llada", "generate")
    network, mask_id = llada_network(module, model), model.config.vocab_size - 1
    calls = dict(none=code.generate, prefix=code.generate_with_prefix_cache, dual=code.generate_with_dual_cache)
    return lambda prompt, cache="none", **options: calls[cache](network, prompt, mask_id=mask_id, **options)


def fastdllm_dream(directory, model):
    """As fastdllm_llada, for a model of Dream's shape: generate(prompt (1, L), cache, **options) -> tokens (1, …)."""
    names = "model.modeling_dream", "model.generation_utils", "model.generation_utils_block"
    (module, *codes), c = load(Path(directory) / "dream", *names), model.config
    special = dict(mask_token_id=c.vocab_size - 1, pad_token_id=0, eos_token_id=0)
    config = with_shape(module.DreamConfig, c, rope_theta=c.rope_theta, **special)
    config.rope_scaling, config.use_cache = None, False
    network = with_weights(module.DreamModel(config), model, families.FAMILIES["DreamModel"])

    def generate(prompt, cache="none", **options):
        code, more = codes[cache != "none"], {} if cache == "none" else dict(dual_cache=cache == "dual")
        code.DreamGenerationConfig.validate = lambda self, **_: None  # transformers 5 calls it with more
        for name in ("diffusion_generate", "_sample"):  # as its eval.py does
            setattr(network, name, types.MethodType(getattr(code.DreamGenerationMixin, name), network))
        with redirect_stdout(StringIO()):
            return network.diffusion_generate(prompt, code.DreamGenerationConfig(**special), **options, **more)

    return generate


# ---- beside ours ---------------------------------------------------------------------------------------------------


def network(s, device, **changes):
    """A Transformer of LLaDA's shape, unless changed, whose logits are far apart; it never prefers the mask.

    A trained network is often sure of a token, and a threshold of 0.9 then reveals several a step. Random logits must
    be spread 8 wide for that: the best of many is ahead of the second by 8 / sqrt(2 log vocabulary), about 2."""
    torch.manual_seed(s.seed)
    shape = dict(n_layer=s.n_layer, n_embd=s.n_embd, n_head=max(1, s.n_embd // 64), mlp="swiglu", mlp_dim=3 * s.n_embd)
    shape |= dict(qk_norm=False, rope_theta=5e5, tied=False, vocab_size=s.vocab_size, seq_len=4 * s.length)
    model = Transformer(Config(**shape | changes))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 2 / s.n_embd**0.5) if p.dim() >= 2 else p.add_(0.1 * torch.randn_like(p))
        model.embed.weight.normal_()
        model.head_weight.mul_(4)[-1] = 0
    return model.to(device, getattr(torch, s.dtype)).eval()


def memory(run, device):
    """By how many bytes memory grows at most while `run` runs; None where that cannot be known."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before

    def status(key):
        return 1024 * int(Path("/proc/self/status").read_text().split(key + ":")[1].split()[0])

    try:
        Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts anew
        before = status("VmRSS")
        run()
        return status("VmHWM") - before
    except OSError:
        run()
        return None


def same_rows(theirs, ours):
    """How many rows are equal: of tokens to the last, of numbers up to rounding, beside the row's largest."""

    def alike(a, b):
        return torch.equal(a, b) if not ours[0].is_floating_point() else (a - b).abs().max() <= 1e-5 * b.abs().max()

    return sum(bool(alike(a.double(), b.double())) for a, b in zip(theirs, ours))


def beside(what, theirs, ours, s, device):
    """One row of the table, from two functions without arguments that give a list of tensors, one per row each; and
    behind it, where they count them, forwards, which must be equal, too."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    grown = [memory(run, device) for run in (theirs, ours)]  # and a warm-up
    seconds, found = ([], []), [None, None]
    for _ in range(s.rounds):
        for i, run in enumerate((theirs, ours)):
            start = clock()
            found[i] = run()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[i].append(clock() - start)
    (theirs, *n), (ours, *m) = (of if isinstance(of, tuple) else (of,) for of in found)
    ratio = [a / b for a, b in zip(*seconds)]
    a, b = (statistics.median(column) for column in seconds)
    equal, spread = same_rows(theirs, ours), f"{statistics.median(ratio):.2f} ({min(ratio):.2f}–{max(ratio):.2f})"
    mb = " / ".join("?" if g is None else f"{g / 2**20:.0f}" for g in grown)
    forwards = " / ".join(str(*count) if count else "–" for count in (n, m))
    print(f"| {what} | {a:.3f} | {b:.3f} | {spread} | {equal} of {len(ours)} | {forwards} | {mb} |", flush=True)
    return equal == len(ours) and (n == m or not n)


def prompts(s, device, rows, ragged=False):
    """Prompts of random tokens, int64, of s.length each, or each of another length."""
    rng = torch.Generator().manual_seed(s.seed + 1)
    sizes = [s.length * (i + 1) // rows for i in range(rows)] if ragged else [s.length] * rows
    return [torch.randint(1, s.vocab_size - 1, (n,), generator=rng).to(device) for n in sizes]


def our_tokens(s, model, x, algorithm=fast_mdlm, **options):
    """Our sampler on the prompts x as LLaDA decodes (options change that): a function that gives rows and forwards."""
    o = dict(max_new_tokens=s.length, block_size=s.length // 2, measure="token", temperature=0.0, exact=True)
    o = algorithm.SampleOptions(**o | options)

    def run():
        out = algorithm.generate(model, x, o, mask_id=s.vocab_size - 1)
        return out.tokens, max(out.num_forwards)

    return run


def training_step(network, loss):
    """Forward and backward: a function that gives the loss and the norm of its gradient."""

    def run():
        network.zero_grad()
        nats = loss()
        nats.backward()
        norms = [p.grad.norm() for p in network.parameters() if p.grad is not None]
        return [nats.detach(), torch.stack(norms).norm()]

    return run


def llada(s, device):
    """LLaDA's sampler, and its likelihood."""
    code, score = load(s.llada, "generate", "get_log_likelihood")
    if not (s.fastdllm or s.dllm):
        print("llada: passed over, as its checkout has no network: name --fastdllm or --dllm, too, for theirs")
        return
    model, mask_id = network(s, device), s.vocab_size - 1
    module = load(Path(s.fastdllm) / "llada", "model.modeling_llada")[0] if s.fastdllm else dllm_module(s, DLLM_LLADA)
    net, n = llada_network(module, model), s.length
    o = dict(steps=n, gen_length=n, block_length=n // 2, mask_id=mask_id)
    for rows in (1, 8):
        x = prompts(s, device, rows)
        theirs = lambda x=x: list(code.generate(net, torch.stack(x), **o))  # noqa: E731
        yield f"LLaDA `generate`, batch {rows}", theirs, our_tokens(s, model, x)

    pairs = [x.split(n // 2) for x in prompts(s, device, 4)]
    options = likelihood.LikelihoodOptions("llada", 32, 8)

    def their_estimates():
        return [torch.tensor(with_our_masks(score, net, i, *pair, 32, 8, mask_id)) for i, pair in enumerate(pairs)]

    def our_estimates():
        return list(fast_mdlm.log_likelihood(model, *map(list, zip(*pairs)), options, mask_id=mask_id).float().cpu())

    yield "LLaDA `get_log_likelihood`, 32 masks", their_estimates, our_estimates


def with_our_masks(score, net, row, prompt, target, samples, batch, mask_id):
    """LLaDA's estimate with the masks of ours: the one function of its that draws them is given ours."""
    calls = iter(range(0, samples, batch))

    def forward_process(x, prompt_index, mask_id):
        j = next(calls) + torch.arange(batch, device=x.device)
        maskable = ~prompt_index.expand_as(x)
        hidden, weight = likelihood.llada_masks(maskable, torch.full_like(j, row), j, samples, 0, batch)
        return torch.where(hidden, mask_id, x), (1 / weight[:, None]).expand(x.shape).float()

    with mock.patch.object(score, "forward_process", forward_process):
        return score.get_log_likelihood(net, prompt, target, samples, batch, mask_id=mask_id)


def fastdllm(s, device):
    """Fast-dLLM's LLaDA and Dream."""
    model, n = network(s, device), s.length
    generate, x = fastdllm_llada(s.fastdllm, model), prompts(s, device, 1)
    for said, rule in (("", {}), (", threshold 0.9", dict(threshold=0.9))):
        for cache in ("none", "prefix", "dual"):
            o = dict(steps=n, gen_length=n, block_length=n // 2) | rule
            theirs = lambda c=cache, o=o: generate(x[0][None], c, **o)  # noqa: E731
            ours = our_tokens(s, model, x, cache=cache, **(dict(quota="threshold") | rule if rule else {}))
            yield f"Fast-dLLM, LLaDA, cache {cache}{said}", theirs, ours

    model = network(s, device, shift=True, qkv_bias=True)
    dream = fastdllm_dream(s.fastdllm, model)
    entropy, sure = dict(order="entropy", schedule="dream", steps=n), dict(quota="threshold")
    rows = [("none", "entropy", entropy | dict(block_size=0))]
    rows += [("none", "threshold 0.9 in steps of 4", sure | dict(block_size=0, capped=True, steps=n // 4))]
    rows += [(c, "entropy", entropy | dict(cache=c, opening="first")) for c in ("prefix", "dual")]
    rows += [(c, "threshold 0.9", sure | dict(cache=c, opening="first")) for c in ("prefix", "dual")]
    for cache, said, rule in rows:
        o = dict(alg="entropy") if said == "entropy" else dict(alg="confidence_threshold", threshold=0.9)
        o |= dict(max_new_tokens=n, steps=rule.get("steps", n), temperature=0.0)
        o |= {} if cache == "none" else dict(block_length=n // 2)
        theirs = lambda c=cache, o=o: list(dream(x[0][None], c, **o))  # noqa: E731
        yield f"Fast-dLLM, Dream, cache {cache}, {said}", theirs, our_tokens(s, model, x, measure="draw", **rule)


DLLM_LLADA = "pipelines.llada.models.modeling_llada"


def dllm_module(s, name):
    """A module of dLLM's; packages around it, and modules that import what is not installed, are left empty."""
    packages = [f"dllm.{name}".rsplit(".", i)[0] for i in range(name.count(".") + 1, 0, -1)]
    empty = dict.fromkeys([*packages, "dllm.core", "dllm.core.samplers", "dllm.utils"])
    absent = {"dllm.utils.configs": dict(TrainingArguments=object), "dllm.utils.data": dict(prepend_bos=None)}
    absent["dllm.core.trainers.utils"] = dict.fromkeys(("NLLMetric", "PPLMetric", "OnEvaluateMetricsCallback"))
    return load(s.dllm, f"dllm.{name}", empty=empty, standing_in=absent)[0]


def dllm(s, device):
    """dLLM's samplers on its own LLaDA."""
    model, mask_id, n = network(s, device), s.vocab_size - 1, s.length
    net = llada_network(dllm_module(s, DLLM_LLADA), model)
    tokens = types.SimpleNamespace(mask_token_id=mask_id, bos_token_id=0, eos_token_id=0, padding_side="right")
    sampler, x = dllm_module(s, "core.samplers.mdlm").MDLMSampler(net, tokens), prompts(s, device, 8, ragged=True)
    o = dict(max_new_tokens=n, steps=n, block_size=n // 2)

    def plain():
        return [row[: len(p) + n] for row, p in zip(sampler.sample(x, **o), x)]

    yield "dLLM, 8 ragged prompts", plain, our_tokens(s, model, x)

    module = dllm_module(s, "pipelines.fastdllm.llada.models.modeling_llada")
    fast = llada_network(module, model, ("FastdLLMLLaDAConfig", "FastdLLMLLaDAModelLM"))
    fast = dllm_module(s, "pipelines.fastdllm.llada.sampler").FastdLLMLLaDASampler(fast, tokens)
    for rows in (1, 8):
        x = prompts(s, device, rows)
        for cache in ("prefix", "dual"):
            theirs = lambda x=x, c=cache: list(fast.sample(x, use_cache=c, **o))  # noqa: E731
            yield f"dLLM's Fast-dLLM, cache {cache}, batch {rows}", theirs, our_tokens(s, model, x, cache=cache)

    # No token that it reads or writes may be its pad. Blocks lie alike as these prompts are whole ones.
    tokens.pad_token_id, tokens.eos_token_id = -1, None
    module = dllm_module(s, "pipelines.a2d.models.llama.modeling_llama")
    rope = dict(rope_type="default", rope_theta=model.config.rope_theta)
    config = with_shape(module.A2DLlamaConfig, model.config, rope_parameters=rope, tie_word_embeddings=False)
    net = with_weights(module.A2DLlamaLMHeadModel(config), model, families.FAMILIES["A2DLlamaLMHeadModel"])
    blocks = dllm_module(s, "core.samplers.bd3lm").BD3LMSampler(net, tokens)
    for rows in (1, 8):
        x = prompts(s, device, rows)
        theirs = lambda x=x: list(blocks.sample(x, **o))  # noqa: E731
        yield f"dLLM's BD3LM, batch {rows}", theirs, our_tokens(s, model, x, fast_bd3lm)
    yield "dLLM's training step, MDLM, 8 rows", *dllm_training(s, device, tokens)
    yield from mixtures(s, device)


def dllm_training(s, device, tokens):
    """A step of dLLM's trainer, without what it logs, and of ours: the same rows, times and masks."""
    model, mask_id, x0 = network(s, device), s.vocab_size - 1, torch.stack(prompts(s, device, 8))
    net, code = llada_network(dllm_module(s, DLLM_LLADA), model), dllm_module(s, "core.trainers.mdlm")
    options = mdlm.LossOptions(t_min=0.2)  # as its weight is 1 / (t + 1e-6): where t is not tiny 1/t, which is ours
    hidden, weight = mdlm.corrupt(torch.ones_like(x0, dtype=torch.bool), options, s.seed, 0, len(x0))
    numbers = (1 / weight[:, 0]).float(), 1 - hidden.float()  # what it must draw to hide the same
    its = object.__new__(code.MDLMTrainer)
    its.processing_class, its.scheduler, its.time_epsilon = tokens, code.LinearAlphaScheduler(), 0.0
    its.loss_weight_type, its.loss_norm_type, its.right_shift_logits = "scheduler", "token", False
    its.meter = types.SimpleNamespace(update=lambda **_: None)

    def their_loss():
        with mock.patch.object(torch, "rand", side_effect=numbers):
            return its.compute_loss(net, dict(input_ids=x0, labels=x0))

    ours = training_step(model, lambda: mdlm.loss(model, x0, options, mask_id=mask_id, seed=s.seed))
    return training_step(net, their_loss), ours


def mixtures(s, device):
    """A forward pass of 512 tokens through 64 experts of which each takes 8, by the modelling files of LLaDA-MoE and
    LLaDA 2.1 that dLLM ships, and by ours."""
    many = dict(qk_norm=True, experts=64, experts_per_token=8, expert_dim=s.n_embd // 2)
    grouped = many | dict(router="sigmoid", router_norm=True, router_bias=True, router_groups=(8, 4), router_scale=2.5)
    grouped |= dict(dense_layers=1, shared_dim=s.n_embd // 2, norm_eps=1e-6)
    x = torch.cat(prompts(s, device, -(-512 // s.length)))[None, :512]

    module = dllm_module(s, "pipelines.llada.models.modeling_lladamoe")
    model = network(s, device, **many)
    c = model.config
    said = dict(num_experts=64, num_experts_per_tok=8, expert_intermediate_size=c.expert_dim, qk_layernorm=True)
    said |= dict(moe_layer_freq=[1] * c.n_layer, rope_theta=c.rope_theta, partial_rotary_factor=1.0)
    said |= dict(eos_token_id=0, shared_expert_intermediate_size=None, dense_intermediate_size=c.mlp_dim)
    net = with_weights(module.LLaDAMoEModelLM(with_shape(module.LLaDAMoEConfig, c, **said)), model, "LLaDAMoEModelLM")
    yield "LLaDA-MoE, forward", partial(logits, net, x), lambda: list(model(x)[0])

    module = dllm_module(s, "pipelines.llada21.models.modeling_llada21_moe")
    other = network(s, device, **grouped)
    said = dict(num_experts=64, num_experts_per_tok=8, moe_intermediate_size=c.expert_dim, num_shared_experts=1)
    said |= dict(n_group=8, topk_group=4, first_k_dense_replace=1, rope_theta=c.rope_theta, partial_rotary_factor=1.0)
    said |= dict(use_qkv_bias=False, use_bias=False, head_dim=c.head_dim, pad_token_id=0)
    net = with_weights(
        module.LLaDA2MoeModelLM(with_shape(module.LLaDA2MoeConfig, other.config, **said)), other, "LLaDA2MoeModelLM"
    )
    everyone = torch.ones(1, 1, 512, 512, dtype=torch.bool, device=device)
    yield "LLaDA 2.1, forward", partial(logits, net, x, attention_mask=everyone), lambda: list(other(x)[0])


@torch.no_grad()
def logits(net, x, **keys):
    """Rows of a peer's logits."""
    return list(net(input_ids=x, **keys).logits[0])


# What BD3LM's authors call ours; without their layers that feed in the time.
DIT = {"vocab_embed.embedding": "embed.weight", "output_layer.norm_final": "norm"}
DIT |= {"blocks.{i}.attn_qkv": tuple(f"blocks.{{i}}.attn.{x}" for x in "qkv")}
DIT |= {"blocks.{i}.norm1": "blocks.{i}.attn_norm", "blocks.{i}.attn_out": "blocks.{i}.attn.out"}
DIT |= {"blocks.{i}.norm2": "blocks.{i}.mlp_norm", "blocks.{i}.mlp.0": "blocks.{i}.mlp.up"}
DIT |= {"blocks.{i}.mlp.2": "blocks.{i}.mlp.down"}
DIT |= {"output_layer.linear.weight": "head_weight", "output_layer.linear.bias": "head_bias"}


def bd3lms(s, device):
    """The training step of BD3LM's authors, without the layers that feed in the time, which is 0 in what they publish;
    they compute in bfloat16 on GPUs."""
    if device == "cuda" or s.dtype != "float32":
        print("bd3lms: passed over, as its network takes float32 alone, and on a GPU makes bfloat16 of it")
        return
    standing_in = dict.fromkeys(("hydra", "hydra.utils", "omegaconf", "dataloader", "metrics"), {})
    standing_in |= dict(lightning=dict(LightningModule=torch.nn.Module), utils=dict(print_nans=lambda *_: None))
    code, dit, noise = load(s.bd3lms, "diffusion", "models.dit", "noise_schedule", standing_in=standing_in)
    n, size, space = 4 * s.length, s.length // 2, types.SimpleNamespace
    kind = dict(mlp="gelu_tanh", mlp_dim=4 * s.n_embd, norm="layer", rope_theta=1e4, mlp_bias=True, head_bias=True)
    model, mask_id = network(s, device, **kind), s.vocab_size - 1
    shape = dict(length=n, hidden_size=s.n_embd, n_heads=model.config.n_head, n_blocks=s.n_layer)
    config = space(model=space(**shape, cond_dim=8, dropout=0.0, tie_word_embeddings=False, attn_backend="sdpa"))
    config.algo = space(name="bd3lm", parameterization="subs", cross_attn=True, backbone="dit")
    config.block_size, config.training, config.loader = size, space(resample=False), space(eval_batch_size=1)
    net = with_weights(dit.DIT(config, s.vocab_size), model, families.Family(None, DIT), strict=False)
    its = object.__new__(code.Diffusion)
    torch.nn.Module.__init__(its)
    its.config, its.backbone, its.noise = config, net, noise.LogLinearNoise()
    its.parameterization, its.mask_index, its.block_size, its.neg_infinity = "subs", mask_id, size, -1e6
    its.cross_attn, its.mdlm_loss_scale, its.ignore_bos = True, False, False
    its._process_sigma = lambda sigma: None
    x0, options = torch.stack(prompts(s, device, 8 * n // s.length)).view(8, n), bd3lm.LossOptions(block_size=size)
    hidden, weight = bd3lm.corrupt(torch.ones_like(x0, dtype=torch.bool), options, s.seed, 0, len(x0))

    def their_loss():
        with mock.patch.object(torch, "rand", return_value=torch.where(hidden, 0.0, 2.0)):
            return its._forward_pass_diffusion(x0, t=(1 / weight).float()).mean()

    ours = training_step(model, lambda: bd3lm.loss(model, x0, options, mask_id=mask_id, seed=s.seed))
    yield "BD3LM's own training step, 8 rows", training_step(net, their_loss), ours


SECTIONS = dict(llada=llada, fastdllm=fastdllm, dllm=dllm, bd3lms=bd3lms)


def compare(s):
    """Prints the table; how many of its rows' tokens were equal, and how many rows it has."""
    device, _ = pick_device(s.device)
    if device == "cpu":
        torch.set_num_threads(1)
    where = torch.cuda.get_device_name() if device == "cuda" else "one CPU thread, seconds of the CPU"
    print(f"{where}; torch {torch.__version__}; {s.n_layer} layers, {s.n_embd} wide, {s.vocab_size} tokens, {s.dtype};")
    print(f"prompts of {s.length} tokens, {s.length} new ones in two blocks; medians of {s.rounds} rounds\n")
    wanted, good = [name for name in PEERS if not s.only or name in s.only.split(",")], []
    for name in wanted:
        if not getattr(s, name):
            print(f"{name}: passed over, as no --{name}=DIRECTORY is given")
        elif name not in SECTIONS:
            print(f"{name}: passed over: its sampler comes with its weights; Fast-dLLM has a copy, which is compared")
    print("\n| what | theirs, s | ours, s | ratio, median (min–max) | equal rows | forwards | memory, MB |")
    print("|---|---|---|---|---|---|---|")
    for name in wanted:
        rows = SECTIONS[name](s, device) if getattr(s, name) and name in SECTIONS else ()
        good += [beside(*row, s, device) for row in rows]
    return sum(good), len(good)


def main(argv):
    compare(configurator.fill(configurator.read(argv), Settings))


if __name__ == "__main__":
    console.run(main, sys.argv[1:])
