"""Train a language model: one loop for every algorithm (mdlm, bd3lm, ar, …), from one CPU to several nodes of GPUs.

    python train.py config/quickstart.py
    python train.py config/quickstart.py --learning_rate=2e-3 --out_dir=out/try2
    torchrun --nproc_per_node=8 train.py config/owt_mdlm.py
    python train.py config/quickstart.py --init_from=resume

Windows and masks are functions of (seed, iteration, row of the global batch): the same run on 1 process or 8, with or
without gradient accumulation, stopped and resumed or not, draws the same ones. (Dropout depends on the process, too.)
"""

import contextlib
import json
import math
import os
import re
import shutil
import signal
import sys
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

import configurator
import pretrained
from data import common
from model import PEAK_FLOPS, Config, Transformer, pick_device, pick_dtype


@dataclass
class Settings:
    algorithm: str = "mdlm"  # the file whose loss is trained: mdlm, bd3lm, ar, or one of your own
    dataset: str = "pydocs"  # a name under data/, or a directory with a meta.json
    out_dir: str = "out/run"  # checkpoints last/ and best/, metrics.jsonl, loss.png
    init_from: str = "scratch"  # scratch, resume (go on with out_dir/last), or a checkpoint to start from
    overwrite: bool = False  # allow scratch to replace a run that is already in out_dir
    seed: int = 1  # of the initial weights, the windows, the masks
    batch_size: int = 32  # windows per process and micro-batch
    gradient_accumulation_steps: int = 1  # micro-batches per iteration; their sum equals one large batch
    max_iters: int = 2000  # optimiser steps
    stages: tuple[str, ...] = ()  # loss options that change during the run: iteration:key=value, as 1000:block_size=16
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for the matrices of the blocks, AdamW for the rest
    learning_rate: float = 1e-3  # AdamW's
    muon_learning_rate: float = 1e-2  # Muon's, scaled per matrix to AdamW's update size
    lr_schedule: Literal["cosine", "wsd", "constant"] = "cosine"  # after the warm-up; wsd: constant, then linear to 0
    warmup_iters: int = 100  # linear from 0
    min_lr_fraction: float = 0.1  # cosine ends at this fraction of the learning rate
    decay_fraction: float = 0.2  # wsd: the last part of the run, in which the rate falls
    weight_decay: float = 0.1  # of matrices; not of norms and biases
    beta1: float = 0.9  # AdamW
    beta2: float = 0.95  # AdamW
    grad_clip: float = 1.0  # largest gradient norm; 0 never clips
    ema: float = 0.0  # decay of the average of the weights (fp32) that is evaluated and saved; 0 keeps none
    eval_interval: int = 200  # iterations between evaluations, each of which saves out_dir/last
    eval_windows: int = 128  # validation windows, always the same
    eval_samples: int = 2  # masks per validation window, always the same
    log_interval: int = 10  # iterations between lines of metrics.jsonl
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: the GPU where there is one
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of the matrix products; weights and sums stay float32
    compile: Literal["auto", "true", "false"] = "auto"  # torch.compile; auto: on a GPU
    save_dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of model.safetensors (resuming is exact anyway)
    wandb_project: str = ""  # log to this Weights & Biases project
    tensorboard: bool = False  # log to out_dir/tensorboard

    def __post_init__(self):
        positive = ("batch_size", "gradient_accumulation_steps", "max_iters", "eval_interval", "eval_windows")
        for name in (*positive, "eval_samples", "log_interval"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, as {self.seed} is")


def get_lr(it, s):
    """The fraction of the peak learning rate at iteration `it`."""
    warmup = min(1.0, (it + 1) / (s.warmup_iters + 1))
    if s.lr_schedule == "constant":
        return warmup
    if s.lr_schedule == "wsd":
        return min(warmup, (s.max_iters - it) / max(1.0, s.decay_fraction * s.max_iters))
    done = min(1.0, max(0.0, (it - s.warmup_iters) / max(1, s.max_iters - s.warmup_iters)))
    return warmup * (s.min_lr_fraction + (1 - s.min_lr_fraction) * 0.5 * (1 + math.cos(math.pi * done)))


def read_stages(words, options):
    """[(iteration, loss options from there on)], from words such as 1000:block_size=16; the first is (0, options)."""
    stages = [(0, options)]
    for word in words:
        form = re.fullmatch(r"(\d+):(\w+)=(.+)", word)
        if not form or int(form[1]) < stages[-1][0]:
            sys.exit(f"stages: {word!r} is not of the form iteration:key=value, or begins before the one ahead of it")
        kinds = {f.name: f.type for f in fields(options)}
        if form[2] not in kinds:
            sys.exit(f"stages: {word!r} names no loss option; there are {', '.join(kinds) or 'none'}")
        value = configurator.convert(form[3], kinds[form[2]], form[2], f"stages, {word!r}")
        try:
            stages.append((int(form[1]), replace(stages[-1][1], **{form[2]: value})))
        except ValueError as e:
            sys.exit(f"stages: {word!r}: {e}")
    return stages


def make_optimizers(model, s, device):
    """A list of optimisers; every group keeps its peak rate as base_lr."""
    named = list(model.named_parameters())
    matrices = [p for n, p in named if p.dim() == 2 and n.startswith("blocks.")] if s.optimizer == "muon" else []
    taken = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": s.weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    fused = device == "cuda"
    optimizers = [torch.optim.AdamW(groups, lr=s.learning_rate, betas=(s.beta1, s.beta2), fused=fused)]
    if matrices:
        rate = {"lr": s.muon_learning_rate, "weight_decay": s.weight_decay, "adjust_lr_fn": "match_rms_adamw"}
        optimizers.append(torch.optim.Muon(matrices, **rate))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return optimizers


def read_metrics(path):
    """The lines of metrics.jsonl as dicts, without one that a kill cut short."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(line))
    return lines


def plot(out, unit, say):
    """out/loss.png: training loss and validation NELBO over iterations."""
    try:
        import matplotlib
    except ImportError:
        return say("no loss.png: it needs `pip install matplotlib`")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = read_metrics(out / "metrics.jsonl")
    train = [(m["iter"], m["train_loss"]) for m in lines if "train_loss" in m]
    val = [(m["iter"], m["val_nats"], m["val_nats_error"]) for m in lines if "val_nats" in m]
    fig, ax = plt.subplots(figsize=(7, 4))
    if train:
        ax.plot(*zip(*train), lw=0.6, alpha=0.6, label="training loss")
    if val:
        it, nats, error = zip(*val)
        ax.errorbar(it, nats, error, marker="o", ms=3, capsize=2, label=f"validation {unit}")
        ax.set_ylim(min(nats) * 0.8, max(nats) * 1.05)
    ax.set(xlabel="iteration", ylabel="nats per token")
    ax.legend()
    fig.tight_layout()
    try:
        fig.savefig(out / "loss.part.png", dpi=120)
        os.replace(out / "loss.part.png", out / "loss.png")
    except OSError as e:
        say(f"warning: no loss.png: {e}")
    plt.close(fig)


def main(argv):
    # ---------------------------------------------------------------------------------------------------------------
    # settings, processes, device
    values = configurator.read(argv)
    algorithm = pretrained.algorithm(values.get("algorithm", (Settings.algorithm, ""))[0])
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    master = rank == 0
    s, config, options = configurator.fill(values, Settings, Config, algorithm.LossOptions, quiet=not master)
    say = tqdm.write if master else lambda *_: None

    device, why_device = pick_device(s.device)
    dtype, why_dtype = pick_dtype(s.dtype, device)
    if world > 1:
        if device == "cuda":
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    kind = torch.device(device).type
    use_compile = kind == "cuda" if s.compile == "auto" else s.compile == "true"
    torch.set_float32_matmul_precision("high")
    autocast = torch.autocast(kind, dtype) if dtype != torch.float32 else contextlib.nullcontext()
    compiled, processes = "on" if use_compile else "off", f", {world} processes" if world > 1 else ""
    say(f"device {device} ({why_device}), {str(dtype)[6:]} ({why_dtype}), compile {compiled}{processes}")

    # ---------------------------------------------------------------------------------------------------------------
    # data
    meta = common.load_meta(s.dataset)
    stages = read_stages(s.stages, options)
    sizes = [getattr(o, "block_size", 0) for first, o in stages if first < s.max_iters]
    block_size = sizes[-1]  # what the run ends with is what the network is for
    if config.block_size and not block_size:
        sys.exit(f"algorithm={s.algorithm} has no blocks; use --algorithm=bd3lm, or leave block_size out")
    if max(sizes) > config.seq_len:
        sys.exit(f"block_size={max(sizes)} exceeds the context, seq_len={config.seq_len}")
    if block_size and config.shift:
        sys.exit("shift=true predicts from the token before, which may lie in another block; bd3lm needs shift=false")
    vocab_size = config.vocab_size or meta["vocab_size"]
    config = replace(config, vocab_size=vocab_size, causal=algorithm.CAUSAL, block_size=block_size)
    if config.vocab_size < meta["vocab_size"]:
        sys.exit(f"vocab_size={config.vocab_size} is below the {meta['vocab_size']} ids of {s.dataset}; leave it at 0")
    rows_of = meta.get("row_len")
    if rows_of and rows_of != config.seq_len:
        sys.exit(f"seq_len={config.seq_len} does not fit the rows of {s.dataset}; use --seq_len={rows_of}")
    tokenizer = common.load_tokenizer(s.dataset, meta)
    prompt_len = meta.get("prompt_len", 0)
    L, B, accum = config.seq_len, s.batch_size, s.gradient_accumulation_steps
    global_rows = world * accum * B
    if not rows_of and len(common.load_tokens(s.dataset, "train", meta)) <= L:
        sys.exit(f"the training text of {s.dataset} is shorter than one window of seq_len={L} tokens")
    eval_x = common.eval_windows(s.dataset, meta, L, s.eval_windows)

    def to_device(ids):
        """Checked ids (B, L) and which of them are learnt, on the device."""
        try:
            common.check_ids(ids, tokenizer, s.dataset)
        except ValueError as e:
            sys.exit(f"{e}; prepare the data again")
        x = torch.from_numpy(ids.astype(np.int64))
        x = x.pin_memory().to(device, non_blocking=True) if kind == "cuda" else x.to(device)
        maskable = (torch.arange(L, device=device) >= prompt_len).expand_as(x) if prompt_len else None
        return x, maskable

    def get_batch(it, micro):
        """Rows first…first+B of iteration `it`'s global batch."""
        tokens = common.load_tokens(s.dataset, "train", meta)
        first = (micro * world + rank) * B
        starts = len(tokens) - (0 if rows_of else L - 1)
        index = np.random.default_rng((s.seed, it)).integers(starts, size=global_rows)[first : first + B]
        return first, *to_device(np.stack([tokens[i] if rows_of else tokens[i : i + L] for i in index]))

    # ---------------------------------------------------------------------------------------------------------------
    # model, optimiser, or the run to go on with
    out = Path(s.out_dir)
    holds_run = any((out / d / "config.json").is_file() for d in ("last", "last.old", "best"))
    if holds_run and s.init_from != "resume" and not s.overwrite:
        sys.exit(
            f"{out} already holds a run: go on with --init_from=resume, replace it with --overwrite=true, "
            "or use another --out_dir"
        )
    torch.manual_seed(s.seed)
    state = None
    if s.init_from == "scratch":
        model = Transformer(config)
    else:
        source = pretrained.load(out.absolute() / "last" if s.init_from == "resume" else s.init_from)
        model = source.model.train()
        want, have = asdict(config), asdict(model.config)
        if source.tokenizer.spec != tokenizer.spec:
            sys.exit(f"{source.path} has another tokenizer than {s.dataset}; their ids do not mean the same")
        differs = [k for k in want if want[k] != have[k] and k not in ("dropout", "causal", "block_size")]
        if differs:
            k = differs[0]
            sys.exit(
                f"{source.path} has {k}={have[k]}, this run asks for {want[k]}; use the settings it was trained with"
            )
        if s.init_from == "resume":
            state = pretrained.load_train_state(source.path)
        for module in model.modules():  # what is not a weight follows this run's settings
            if isinstance(module, torch.nn.Dropout):
                module.p = config.dropout
            if hasattr(module, "config"):
                module.config = config
    model.to(device)
    optimizers = make_optimizers(model, s, kind)
    ema = {n: p.detach().clone() for n, p in model.named_parameters()} if s.ema else None
    start, evaluated, best, seconds, facts, adapted = 0, 0, math.inf, 0.0, {}, {}
    if state:
        if state["seed"] != s.seed or state["global_rows"] != global_rows or state["optimizer_name"] != s.optimizer:
            sys.exit(
                "a run cannot be resumed with another seed, optimizer or global batch; "
                f"--init_from={source.path} starts a new run from its weights"
            )
        start, best, seconds, facts = (state[k] for k in ("iter", "best", "seconds", "facts"))
        evaluated, adapted = state.get("evaluated", start), state.get("adapted", {})
        with torch.no_grad():
            for n, p in model.named_parameters():
                p.copy_(state["weights"][n])
                if ema:
                    ema[n].copy_((state["ema"] or state["weights"])[n])
        for optimizer, saved in zip(optimizers, state["optimizers"]):
            ours = optimizer.state_dict()["param_groups"]  # rates and decay are this run's settings, not the saved ones
            optimizer.load_state_dict({**saved, "param_groups": ours})
        say(f"resumed at iteration {start}")
    del state
    raw = model  # what is saved and evaluated; `model` may be compiled and wrapped
    if use_compile:
        model = torch.compile(model)
    if world > 1:
        model = torch.nn.parallel.DistributedDataParallel(model, device_ids=[device] if kind == "cuda" else None)
    if holds_run and s.init_from != "resume" and master:  # --overwrite
        for name in ("last", "best", "last.old", "best.old"):
            shutil.rmtree(out / name, ignore_errors=True)
    tokens_per_iter = global_rows * L
    say(f"{raw.num_params():,} parameters, {tokens_per_iter:,} tokens per iteration, {s.max_iters - start} iterations")

    # ---------------------------------------------------------------------------------------------------------------
    # evaluation, logs, checkpoints
    metrics = out / "metrics.jsonl"
    writer = run = None
    if master:
        out.mkdir(parents=True, exist_ok=True)
        old = read_metrics(metrics) if s.init_from == "resume" else []
        common.replace_file(metrics, "".join(json.dumps(m) + "\n" for m in old if m["iter"] <= start).encode())
        if s.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(out / "tensorboard")
        if s.wandb_project:
            try:
                import wandb
            except ImportError:
                sys.exit("wandb_project needs a package that is not among the requirements: pip install wandb")
            run = wandb.init(
                project=s.wandb_project, name=out.name, config={**asdict(s), **asdict(config), **asdict(options)}
            )

    def log(it, **numbers):
        if master:
            try:
                with metrics.open("a") as f:
                    f.write(json.dumps({"iter": it, **numbers}) + "\n")
            except OSError as e:
                say(f"warning: {metrics} misses a line: {e}")
            for key, value in numbers.items():
                if writer:
                    writer.add_scalar(key, value, it)
            if run:
                run.log(numbers, step=it)

    def sum_over_ranks(tensor):
        if world > 1:
            dist.all_reduce(tensor)
        return tensor

    @torch.no_grad()
    def copy_weights(source):
        for n, p in raw.named_parameters():
            p.copy_(source[n])

    @contextlib.contextmanager
    def averaged_weights():
        """Put the averaged weights into the network for a while."""
        kept = {n: p.detach().clone() for n, p in raw.named_parameters()} if ema else {}
        if ema:
            copy_weights(ema)
        yield
        if ema:
            copy_weights(kept)

    def estimate_loss():
        """Nats per token (mean, standard error) over the fixed windows; each rank takes its share of them."""
        raw.eval()
        nats = torch.zeros(len(eval_x), dtype=torch.float64, device=device)
        with averaged_weights(), autocast:
            for i in range(rank * B, len(eval_x), world * B):
                x, maskable = to_device(eval_x[i : i + B])
                keys = dict(mask_id=tokenizer.mask_id, maskable=maskable, samples=s.eval_samples, seed=0, first=i)
                nats[i : i + B] = algorithm.nelbo(raw, x, **keys)
        raw.train()
        nats = sum_over_ranks(nats) / (L - prompt_len)
        return nats.mean().item(), (nats.std() / len(nats) ** 0.5).item()

    def options_at(it):
        """The loss options of iteration `it`: its stage's, and what the algorithm has adapted to its measurements."""
        o = [o for first, o in stages if first <= it][-1]
        return replace(o, **adapted) if getattr(o, "clip", "") == "adaptive" else o

    def adapt(it):
        """What the algorithm makes of the fixed windows, the same on all ranks."""
        raw.eval()
        windows = (to_device(eval_x[i : i + B]) for i in range(0, len(eval_x), B))
        with autocast:
            found = [algorithm.adapt(raw, windows, options_at(it), mask_id=tokenizer.mask_id)]
        raw.train()
        if world > 1:
            dist.broadcast_object_list(found)
        return found[0]

    def save(it, name):
        """Write out_dir/name; a full disk costs a warning, not the run."""
        train_state = None
        if name == "last":
            train_state = {
                "iter": it,
                "best": best,
                "seconds": seconds,
                "facts": facts,
                "evaluated": evaluated,
                "adapted": adapted,
                "seed": s.seed,
                "global_rows": global_rows,
                "optimizer_name": s.optimizer,
                "weights": {n: p.detach() for n, p in raw.named_parameters()},
                "ema": ema,
                "optimizers": [o.state_dict() for o in optimizers],
            }
        content = {"dataset": s.dataset, "iter": it, **facts, "train": asdict(s), "loss": asdict(options_at(it))}
        weights = ema or dict(raw.named_parameters())
        dtype = getattr(torch, s.save_dtype)
        try:
            pretrained.save(
                out / name, weights, config, tokenizer, common.find(s.dataset), s.algorithm, content, dtype, train_state
            )
        except OSError as e:
            say(f"warning: {e}")
            return False
        return True

    # ---------------------------------------------------------------------------------------------------------------
    # the loop
    stop_signal = []
    handlers = {n: signal.signal(n, lambda n, _: stop_signal.append(n)) for n in (signal.SIGTERM, signal.SIGINT)}
    peak = next((f for gpu, f in PEAK_FLOPS.items() if kind == "cuda" and gpu in torch.cuda.get_device_name()), None)
    bar = tqdm(total=s.max_iters, initial=start, disable=None if master else True, unit="it", dynamic_ncols=True)
    running, since, tick, saved_ok = torch.zeros((), device=device), 0, time.time(), True
    it = start
    batch = get_batch(it, 0)
    while True:
        # once in a while: log, evaluate, save
        stopping = bool(stop_signal)
        if world > 1:  # the ranks agree on when to stop, now and then
            agreed = it % min(10, s.log_interval) == 0 and sum_over_ranks(torch.tensor(float(stopping), device=device))
            stopping = bool(agreed)
        last = it >= s.max_iters or stopping
        saving = last or (it % s.eval_interval == 0 and it > evaluated)
        if since and (it % s.log_interval == 0 or saving):
            value = sum_over_ranks(running / world).item() / since
            if not math.isfinite(value) or saving and not all(p.isfinite().all() for p in raw.parameters()):
                bar.close()
                sys.exit(
                    f"the loss or the weights are not finite within {since} iterations before {it} (loss {value}); "
                    f"what was saved in {out} is intact. Try a lower learning rate, a longer warmup_iters, or "
                    "dtype=float32"
                )
            elapsed = time.time() - tick
            seconds += elapsed
            speed = since * tokens_per_iter / elapsed
            numbers = {"train_loss": value, "lr": get_lr(it, s) * s.learning_rate, "tokens_per_s": speed}
            if peak:
                flops = raw.flops_per_token(L, 1.0 if algorithm.CAUSAL else 0.5, getattr(algorithm, "PASSES", 1))
                numbers["mfu"] = flops * speed / (peak * world)
            log(it, **numbers, seconds=seconds)
            shown = {"loss": f"{value:.3f}", "tok_s": f"{speed:,.0f}"}
            if facts:
                shown["val"] = f"{facts['val_nats']:.3f}"
            if peak:
                shown["mfu"] = f"{numbers['mfu']:.1%}"
            bar.set_postfix(shown)
            running.zero_()
            since = 0
        if saving:
            better = False
            if not stopping:  # whoever sends a signal may not wait for an evaluation
                nats, error = estimate_loss()
                bpb = 1 / math.log(2) / meta["bytes_per_token"]
                facts = {"val_nats": nats, "val_nats_error": error, "val_bpb": nats * bpb, "val_bpb_error": error * bpb}
                evaluated = it
                if hasattr(algorithm, "adapt"):
                    adapted = adapt(it)
                log(it, **facts, **adapted, seconds=seconds)
                say(
                    f"iteration {it}: validation {nats:.4f} ± {error:.4f} nats per token, {nats * bpb:.4f} ± "
                    f"{error * bpb:.4f} bits per byte, {seconds:.0f} s of training"
                )
                better = nats < best
            if master:  # best first: last says how good it is
                best_ok = not better or save(it, "best")
                best = facts["val_nats"] if better and best_ok else best
                saved_ok = save(it, "last") and best_ok
                plot(out, "NLL" if algorithm.CAUSAL else "NELBO", say)
        if last:
            break
        if since == 0:
            tick = time.time()

        # one iteration: gradient accumulation, clipping, the step
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * get_lr(it, s)
        torch.manual_seed(s.seed * 1_000_003 + it * world + rank)  # dropout, too, depends on the iteration alone
        for micro in range(accum):
            first, x, maskable = batch
            sync = contextlib.nullcontext() if world == 1 or micro == accum - 1 else model.no_sync()
            with sync:
                with autocast:
                    value = algorithm.loss(
                        model,
                        x,
                        options_at(it),
                        mask_id=tokenizer.mask_id,
                        maskable=maskable,
                        seed=s.seed * 1_000_003 + it,
                        shard=(first, global_rows),
                        denominator=accum * B * (L - prompt_len),
                    )
                batch = get_batch(it, micro + 1) if micro + 1 < accum else get_batch(it + 1, 0)  # while the GPU is busy
                value.backward()
            running += value.detach()
        if s.grad_clip:
            torch.nn.utils.clip_grad_norm_(raw.parameters(), s.grad_clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if ema:
            decay = min(s.ema, (1 + it) / (10 + it))
            torch._foreach_lerp_(list(ema.values()), [p.detach() for p in raw.parameters()], 1 - decay)
        it += 1
        since += 1
        bar.update()

    bar.close()
    for n, handler in handlers.items():
        signal.signal(n, handler)
    if stopping and saved_ok:
        say(f"stopped at iteration {it}, saved; go on with --init_from=resume")
    if master and not saved_ok:
        sys.exit(f"the last checkpoint of {out} could not be saved (see the warning above)")
    if writer:
        writer.close()
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
