"""What a GPU makes of all this: one command without a network, at most 35 minutes, a report with every figure.

    python experiments/gpu.py --out=out/gpu                       every section; a second call does what is missing
    python experiments/gpu.py --out=out/gpu --only=decode_1,caches
    python experiments/gpu.py --out=out/tiny --small --device=cpu    the same with tiny shapes, in seconds

Each section is a process of its own, which may take 8 minutes. What it prints is kept in the directory as SECTION.md,
whole at its end, or as SECTION.part where it failed or was too slow; report.md there has all of them, with the goals. A
section is a function of (settings, device) that prints Markdown: write one, and name it in SECTIONS.
"""

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import ar  # noqa: E402
import bd3lm  # noqa: E402
import mdlm  # noqa: E402
from experiments import peers, same  # noqa: E402
from model import Config, Transformer  # noqa: E402
from nanodlm import configurator, console, fast_bd3lm, fast_mdlm  # noqa: E402
from nanodlm.device import PEAK_FLOPS, flops_per_token, pick_compile, pick_device  # noqa: E402
from nanodlm.files import check_directory, replace_file  # noqa: E402

LIMIT, TOTAL = 480, 2100  # seconds, of a section and of all


@dataclass
class Settings:
    out: str = "out/gpu"  # the report's directory
    only: str = ""  # sections, separated by commas; all by default
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: the GPU where there is one
    small: bool = False  # tiny shapes, all in this process, to try the command itself
    fastdllm: str = ""  # a checkout of Fast-dLLM, to be timed beside ours on the same weights
    section: str = ""  # print this one, in this process (the command calls itself so)


# ---- tools -----------------------------------------------------------------------------------------------------------


def table(*columns):
    """The head of a table; row() prints what follows, a line as soon as it is known, as the section may not end."""
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)


def row(*cells):
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def sync(device):
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(run, device, rounds=3):
    """The median time of `run`, after one call that does not count."""
    found = []
    for _ in range(rounds + 1):
        sync(device)
        start = time.perf_counter()
        run()
        sync(device)
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


def forget_peak(device):
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_memory(device):
    return f"{torch.cuda.max_memory_allocated() / 1e9:.2f} GB" if device == "cuda" else "–"


def attempt(name, run):
    """A row that fails takes only itself: what it says is printed, and None comes back."""
    try:
        return run()
    except Exception as e:  # out of memory, a compiler's error, tokens that differ
        traceback.print_exc()
        row(name, f"**failed**: {type(e).__name__}: {(str(e).strip() or '-').splitlines()[0][:150]}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def copy_bandwidth(device, size=2**30):
    """Bytes per second that a copy reads and writes."""
    a = torch.empty(size if device == "cuda" else 2**24, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2 * len(a) / seconds(lambda: b.copy_(a), device, 9)


def floor(model, device):
    """Seconds to read the matrices once: a forward of few tokens is never faster. (The table of embeddings is looked
    up, not read, unless it is the head, too.)"""
    read = [p for n, p in model.named_parameters() if n != "embed.weight" or model.config.tied]
    return sum(p.numel() * p.element_size() for p in read) / copy_bandwidth(device)


# ---- the same numbers? -----------------------------------------------------------------------------------------------


def shown(s):
    """The samplers that a section shows, and how many tokens they write."""
    return (list(same.SAMPLERS)[::4], 8) if s.small else (list(same.SAMPLERS), 24)


def numerics(s, device):
    """Losses, gradients and tokens in float32 beside the CPU's; logits in bfloat16 beside both."""
    print("Goals: losses to 1e-5, tokens equal; in bfloat16 logits as far off as the CPU's are.")
    table("loss, float32", "CPU", device, "relative difference", "largest difference of gradients")
    for name in same.LOSSES:
        nets = [same.tiny(d, causal=name == "ar") for d in ("cpu", device)]
        values = [same.loss_of(name, net, d) for net, d in zip(nets, ("cpu", device))]
        for value in values:
            value.backward()
        a, b = (value.item() for value in values)
        off = max((p.grad - q.grad.cpu()).abs().max().item() for p, q in zip(*(net.parameters() for net in nets)))
        row(name, f"{a:.6f}", f"{b:.6f}", f"{abs(a - b) / abs(a):.1e}", f"{off:.1e}")
    table("tokens, float32", "rows equal")
    names, new = shown(s)
    for name in names:
        a, b = same.tokens_of(name, "cpu", new), same.tokens_of(name, device, new)
        row(name, f"{sum(map(list.__eq__, a, b))} of {len(a)}")
    x = torch.arange(128)[None] * 37 % same.MASK
    with torch.no_grad():
        exact = same.tiny("cpu")(x)
        off = [(same.tiny(d, torch.bfloat16)(x.to(d)).float().cpu() - exact).abs() for d in ("cpu", device)]
    table("logits, bfloat16 less float32", "CPU", device)
    row("mean", *(f"{x.mean():.1e}" for x in off))
    row("largest", *(f"{x.max():.1e}" for x in off))


def waits(s, device):
    """How often the host waits for the device: within a step of decoding, and within one of training."""
    print("Goals: at most one in a step of decoding; in training, one for the hidden rows.")
    table("decoding, 4 ragged rows", "steps", "waits", "per step", "counted by CUDA", "where")
    names, new = shown(s)
    for name in names:
        run, steps = same.sampler(name, device, new), []
        cuda = same.cuda_waits(run) if device == "cuda" else "–"
        if "compiled" in name:
            row(name, "–", "–", "–", cuda, "")
            continue
        with same.Waits() as found:
            out = run(**dict(watch=steps.append) if run.func.__module__.startswith("nanodlm") else {})
        count, total = len(steps) or max(out.num_forwards), sum(found.lines.values())
        where = ", ".join(f"{n} × {line}" for line, n in found.lines.most_common(3))
        row(name, count, total, f"{total / count:.2f}", cuda, where)
    table("a step of training", "waits", "where")
    for name in same.LOSSES:
        model = same.tiny(device, causal=name == "ar")
        same.loss_of(name, model, device).backward()
        with same.Waits() as found:
            same.loss_of(name, model, device).backward()
        row(name, sum(found.lines.values()), ", ".join(f"{n} × {line}" for line, n in found.lines.items()))


# ---- training --------------------------------------------------------------------------------------------------------


def training(s, device, layers, width, goals):
    """config/owt_mdlm.py's shape on random tokens: steps as train.py takes them, compiled and not."""
    L, rows, vocab = (32, 2, 300) if s.small else (1024, 16, 50304)
    shape = dict(n_layer=layers, n_embd=width, n_head=width // 64, mlp="gelu", seq_len=L)
    if s.small:
        shape |= dict(n_layer=1, n_embd=32, n_head=2)
    peak = next((f for gpu, f in PEAK_FLOPS.items() if device == "cuda" and gpu in torch.cuda.get_device_name()), None)
    print(f"{rows} windows of {L} tokens, bfloat16 by autocast, AdamW, clipping. Goals compiled: {goals}.")
    table("algorithm", "tokens/s", "ms per step", "MFU", "peak memory", "compiled graphs, of them after the third step")
    algorithms = [
        ("mdlm", mdlm, 0),
        ("ar", ar, 0),
        ("bd3lm, blocks of 16", bd3lm, 16),
        ("bd3lm, blocks of 64", bd3lm, 64),
    ]

    def measure(name, algorithm, block, compiled):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        torch.manual_seed(0)
        model = Transformer(Config(vocab_size=vocab, causal=algorithm.CAUSAL, **shape)).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=device == "cuda")
        net = torch.compile(model) if compiled else model
        options = bd3lm.LossOptions(block_size=min(block, L)) if block else algorithm.LossOptions()
        x = torch.randint(vocab - 1, (rows, L), device=device)
        number = iter(range(10**6))

        def step():
            with torch.autocast(device, torch.bfloat16):
                value = algorithm.loss(net, x, options, mask_id=vocab - 1, seed=next(number), denominator=x.numel())
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        graphs = lambda: torch._dynamo.utils.counters["stats"]["unique_graphs"]  # noqa: E731
        for _ in range(1 if s.small else 3):  # the number of hidden rows varies: let the compiler see that
            step()
        early = graphs()
        forget_peak(device)
        ten = 1 if s.small else 10
        time_ = seconds(lambda: [step() for _ in range(ten)], device, 1 if s.small else 3) / ten
        passes = 1 + bd3lm.clean_length(L, block) / L if block else 1
        flops = flops_per_token(model, L, 1.0 if algorithm is ar else 0.5, passes)
        mfu = f"{flops * rows * L / time_ / peak:.1%}" if peak else "–"
        said = f"{graphs()}, {graphs() - early}" if compiled else "–"
        row(name, f"{rows * L / time_:,.0f}", f"{time_ * 1e3:.1f}", mfu, peak_memory(device), said)

    torch.set_float32_matmul_precision("high")
    can, why = pick_compile("auto", device)
    for compiled in (True, False) if can and not s.small else (False,):
        for name, algorithm, block in algorithms:
            name = f"{name}, {'compiled' if compiled else 'eager'}"
            attempt(name, partial(measure, name, algorithm, block, compiled))
    print(f"\n({why})")


# ---- decoding --------------------------------------------------------------------------------------------------------

LLADA = dict(vocab_size=126464, n_layer=32, n_head=32, n_embd=4096, mlp="swiglu", mlp_dim=12288, qk_norm=False)
LLADA |= dict(rope_theta=5e5, seq_len=4096)
QWEN = dict(vocab_size=151936, n_layer=28, n_head=16, n_kv_head=8, head_dim=128, n_embd=1024, tied=True)
QWEN |= dict(mlp="swiglu", mlp_dim=3072, rope_theta=1e6, seq_len=4096)
SMALL = dict(vocab_size=512, n_layer=2, n_head=2, n_kv_head=2, head_dim=16, n_embd=32, mlp_dim=64)


def big(s, device, shape, **changes):
    """Random bf16 weights of a released model's shape, and the floor of its forward in seconds."""
    model = same.network(Config(**shape | (SMALL if s.small else {}) | changes), device, torch.bfloat16)
    least = floor(model, device)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    print(f"{model.num_params():,} parameters, {size / 1e9:.1f} GB; reading the matrices once: {least * 1e3:.2f} ms.")
    return model, least


def shape_of(s):
    """Tokens of a prompt, new ones, and those of a block."""
    return (8, 16, 8) if s.small else (128, 256, 32)


def ours(s, device, algorithm, model, batch, **options):
    """A function of steps that decodes `batch` prompts, and returns the forwards that it took."""
    prompt, new, size = shape_of(s)
    mask_id = model.config.vocab_size - 1
    prompts = [torch.arange(prompt, device=device) * (37 + i) % (mask_id - 1) for i in range(batch)]
    keys = dict(max_new_tokens=new, block_size=size, temperature=0.0) | options

    def run(steps):
        o = algorithm.SampleOptions(**keys, steps=steps)
        return max(algorithm.generate(model, prompts, o, mask_id=mask_id).num_forwards)

    return run


def decode(s, device, batch, least, runs):
    """Time functions of steps, {name: function}. Runs of two and of ten steps for each block tell apart what a block's
    first pass takes, and what every other step does."""
    _, new, size = shape_of(s)
    blocks, once = new // size, 1 if s.small or batch > 8 else 2
    few, many = 2 * blocks, (4 if s.small else 10) * blocks
    heads = "ms per step", "over the floor", "ms of a block's first", "tokens per forward", "tokens/s", "peak memory"
    table(f"batch {batch}", *heads)

    def measure(name, run):
        forwards = run(many)
        forget_peak(device)
        short, long = (seconds(partial(run, steps), device, once) for steps in (few, many))
        inner = (long - short) / (many - few)
        cells = f"{inner * 1e3:.2f}", f"{inner / least:.2f} ×", f"{(short / blocks - inner) * 1e3:.2f}"
        cells = ("–",) * 3 if "threshold" in name else cells
        row(name, *cells, f"{new / forwards:.2f}", f"{batch * new / long:,.0f}", peak_memory(device))

    for name, run in runs.items():
        attempt(name, partial(measure, name, run))


def decoding(s, device, batch):
    """LLaDA-8B's shape with Fast-dLLM's caches."""
    print("Goals: the compiled dual step ≤ 1.5 × the floor at batch 1; 3 × Fast-dLLM at equal tokens per forward.")
    model, least = big(s, device, LLADA)
    print("Random weights are never sure: threshold 0.9 reveals one token a step, and 0 a whole block in its first.")
    one = partial(ours, s, device, fast_mdlm, model, batch)
    runs = {"plain": one(), "prefix": one(cache="prefix"), "dual": one(cache="dual")}
    runs |= {f"dual, threshold {t:g}": one(cache="dual", quota="threshold", threshold=t) for t in (0.9, 0.0)}
    if not s.small:
        runs["dual, compiled"] = one(cache="dual", compile=True)
    decode(s, device, batch, least, runs)
    if s.fastdllm and batch == 1:  # which is all that it takes
        print("\nFast-dLLM's own code:")
        decode(s, device, batch, least, fastdllm(s, device, model))


def fastdllm(s, device, model):
    """Functions as ours(), of the samplers in a checkout of Fast-dLLM, on the very weights of `model`."""
    generate, (prompt, new, size) = peers.fastdllm_llada(s.fastdllm, model), shape_of(s)
    x = torch.arange(prompt, device=device)[None] * 37 % (model.config.vocab_size - 2)

    def of(**options):
        return lambda steps: generate(x, steps=steps, gen_length=new, block_length=size, **options)[1]

    runs = {"plain": of(), "prefix": of(cache="prefix"), "dual": of(cache="dual")}
    return runs | {"dual, threshold 0.9": of(cache="dual", threshold=0.9)}


def caches(s, device):
    """bd3lm's exact cache, at the size of Qwen3-0.6B and of LLaDA-8B."""
    for shape in (QWEN, LLADA):
        model, least = big(s, device, shape, block_size=8 if s.small else 32)
        for batch in (1, 8):
            one = partial(ours, s, device, fast_bd3lm, model, batch)
            runs = {"no cache": one(cache="none"), "prefix anew per block": one(cache="block")}
            decode(s, device, batch, least, runs | {"exact cache": one(cache="kept")})
        del model, one, runs


def likelihoods(s, device):
    """Answers of 1 and of 64 tokens to questions of 128, LLaDA-8B's shape, 16 masks each."""
    model, least = big(s, device, LLADA)
    count, prompt = (2, 8) if s.small else (16, 128)
    mask_id = model.config.vocab_size - 1
    o = fast_mdlm.LikelihoodOptions(mc_samples=2 if s.small else 16)
    table("16 questions", "answers/s", "peak memory")
    for length in (1, 4 if s.small else 64):
        prompts = [torch.arange(prompt, device=device) * (i + 3) % (mask_id - 1) for i in range(count)]
        targets = [torch.arange(length, device=device) * (i + 5) % (mask_id - 1) for i in range(count)]
        forget_peak(device)
        taken = seconds(partial(fast_mdlm.log_likelihood, model, prompts, targets, o, mask_id=mask_id), device, 1)
        row(f"answers of {length}", f"{count / taken:.1f}", peak_memory(device))


# ---- what it runs on, and its tests ----------------------------------------------------------------------------------


def machine(s, device):
    name = torch.cuda.get_device_name() if device == "cuda" else "the CPU, which says nothing about a GPU"
    print(f"{name}; torch {torch.__version__}, CUDA {torch.version.cuda}, {os.cpu_count()} cores of the host.")
    n = 8192 if device == "cuda" else 256
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16)
    product = 2 * n**3 / seconds(lambda: a @ a, device, 5)
    print(f"Copying: {copy_bandwidth(device) / 1e9:,.0f} GB/s. Products in bfloat16: {product / 1e12:,.1f} TFLOPS.")


def command(s, *words):
    """A command as a line of the report; where it fails, so does the section."""
    print(f"\n`python {' '.join(words)}`", flush=True)
    if s.small:
        return print("(not in the small version)")
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    tail = (done.stdout + done.stderr).strip().splitlines()[-6:]
    print(
        f"\n```\n{chr(10).join(tail)}\n```\n{time.perf_counter() - start:.0f} s, exit status {done.returncode}",
        flush=True,
    )
    if done.returncode:
        sys.exit(f"{words[0]} failed")


def tests(s, device):
    """Those that need CUDA, wherever they stand: their names say so."""
    command(s, "-m", "pytest", "-q", "-k", "cuda", "tests/test_cuda.py", "tests/test_families.py")


def commands(s, device):
    """The quick start, compiled, its sampler and its measure; all from what every Python has."""
    run = str(Path(s.out).absolute() / "quickstart")
    command(s, "data/pydocs/prepare.py")
    words = ["--max_iters=200", f"--out_dir={run}", "--overwrite", f"--device={device}"]
    command(s, "train.py", "config/quickstart.py", *words)
    command(s, "sample.py", f"--checkpoint={run}", "--max_new_tokens=64", f"--device={device}")
    command(s, "eval.py", f"--checkpoint={run}", "--windows=16", "--samples=1", f"--device={device}")


SECTIONS = {
    "machine": machine,
    "tests": tests,
    "numerics": numerics,
    "waits": waits,
    "training_124m": partial(training, layers=12, width=768, goals="MFU ≥ 50 % (mdlm, ar), ≥ 40 % (bd3lm)"),
    "decode_1": partial(decoding, batch=1),
    "decode_8": partial(decoding, batch=8),
    "commands": commands,
    "caches": caches,
    "likelihoods": likelihoods,
    "training_350m": partial(training, layers=24, width=1024, goals="none of their own"),
    "decode_32": partial(decoding, batch=32),
}  # in this order, until the time is over; one of yours is a function and a line here


# ---- the command -----------------------------------------------------------------------------------------------------


def run_section(name, s, out, limit):
    """Print a section into DIR/name.part, which becomes name.md when it has ended well."""
    part = out / f"{name}.part"
    start, why = time.perf_counter(), ""
    with open(part, "w", encoding="utf-8") as file, open(out / f"{name}.err", "w", encoding="utf-8") as err:
        if s.small:
            device, _ = pick_device(s.device)
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(err):
                try:
                    SECTIONS[name](s, device)
                except Exception as e:
                    traceback.print_exc()
                    why = f"{type(e).__name__}: {e}"
        else:
            keys = [f"--{k}={v}" for k, v in asdict(s).items() if v and k not in ("only", "section")]
            words = [sys.executable, str(Path(__file__).resolve()), f"--section={name}", *keys]
            child = subprocess.Popen(words, stdout=file, stderr=err, start_new_session=True)
            try:
                why = f"exit status {child.returncode}" if child.wait(limit) else ""
            except subprocess.TimeoutExpired:
                why = f"stopped after {limit:.0f} s"
            finally:
                with contextlib.suppress(ProcessLookupError):  # with the compilers that it has started
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        said = f"**Did not finish: {why}**; {name}.err says more." if why else ""
        print(f"\n{said or f'({time.perf_counter() - start:.0f} s)'}", file=file)
    if not why:
        os.replace(part, out / f"{name}.md")
    return why


def report(out, argv):
    """All sections as one page."""
    words = " ".join(argv)
    text = [
        f"# On a GPU\n\n`python experiments/gpu.py {words}`, {time.strftime('%Y-%m-%d')}, torch {torch.__version__}"
    ]
    for name, section in SECTIONS.items():
        kept = [p for p in (out / f"{name}.md", out / f"{name}.part") if p.exists()]
        doc = " ".join(((section.func if isinstance(section, partial) else section).__doc__ or "").split())
        text.append(f"## {name}\n\n{doc}\n\n{kept[0].read_text(encoding='utf-8').strip() if kept else 'Not run.'}")
    replace_file(out / "report.md", ("\n\n".join(text) + "\n").encode())


def main(argv):
    s = configurator.fill(configurator.read(argv), Settings, quiet=True)
    chosen = s.only.split(",") if s.only else list(SECTIONS)
    for name in [*chosen, s.section or "machine"]:
        if name not in SECTIONS:
            sys.exit(f"there is no section {name!r}; there are {', '.join(SECTIONS)}")
    if s.section:
        return SECTIONS[s.section](s, pick_device(s.device)[0])
    check_directory(s.out, "out")
    if not s.small and s.device != "cpu" and not torch.cuda.is_available():
        sys.exit("torch sees no GPU; --small --device=cpu tries the command without one")
    out, end = Path(s.out), time.monotonic() + TOTAL
    out.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        left = min(LIMIT, end - time.monotonic())
        if (out / f"{name}.md").exists() or left < 10:
            print(f"{name}: {'is there' if left >= 10 else 'no time is left; call the same again'}")
            continue
        why = run_section(name, s, out, left)
        print(f"{name}: {why or 'done'}", flush=True)
        report(out, argv)
    report(out, argv)
    print(f"{out / 'report.md'}")


if __name__ == "__main__":
    console.run(main, sys.argv[1:])
