"""Train a language model: one loop for every algorithm (mdlm, bd3lm, ar, …), from one CPU to several nodes of GPUs.

    python train.py config/quickstart.py
    python train.py config/quickstart.py --learning_rate=2e-3 --out_dir=out/try2
    torchrun --nproc_per_node=8 train.py config/owt_mdlm.py
    python train.py config/quickstart.py --init_from=resume       auto: go on with it, or begin
    torchrun --nproc_per_node=8 train.py config/modernbert_chat.py      makes what it starts from, if need be

Windows and masks are functions of (seed, iteration, row of the global batch): the same run on 1 process or 8, with or
without gradient accumulation, stopped and resumed or not, draws the same ones. (Dropout depends on the process, too.)
Data are running text, or conversations, of which only the answers are hidden and learnt (nanodlm/batches.py).

1 settings · 2 set-up · 3 the loop
"""

import contextlib
import math
import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from model import Config, Transformer
from nanodlm import (
    algorithms,
    configurator,
    console,
    conversations,
    log,
    memory,
    optim,
    parallel,
    presets,
    records,
    rollouts,
    runs,
    stages,
    start,
)
from nanodlm.bounds import Amount, Below1, Place, Rank, Seconds, Seed, Size, Unit, Whole, check
from nanodlm.checkpoint import load_train_state
from nanodlm.device import PEAK_FLOPS, flops_per_token, pick_compile, pick_device, pick_dtype
from nanodlm.files import check_directory, replace_file
from nanodlm.likelihood import mean_and_error, per_token
from nanodlm.results import with_error

# ---- 1 · settings ----------------------------------------------------------------------------------------------------


@dataclass
class Settings:
    algorithm: str = "mdlm"  # the file whose loss is trained: mdlm, bd3lm, udlm, editflow, grpo, ar, or one of your own
    dataset: Place = "pydocs"  # a name under data/, or a directory with a meta.json; conversations: tulu3:2,my.jsonl:1
    out_dir: Place = "out/run"  # checkpoints last/ and best/, metrics.jsonl, loss.png
    init_from: Place = "scratch"  # scratch; a checkpoint; resume (go on with out_dir/last); auto: that, or the recipe's
    convert: Place = ""  # what init_from is converted from, where it is not there yet: a directory or a name on the hub
    preset: str = ""  # how to decode what is trained: one of config/presets; default: as what it starts from
    random_weights: bool = False  # of the checkpoint to start from take the architecture only, to compare with
    overwrite: bool = False  # allow scratch to replace a run that is already in out_dir
    seed: Seed = 1  # of the initial weights, the windows, the masks
    batch_size: Size = 32  # windows per process and micro-batch
    gradient_accumulation_steps: Size = 1  # micro-batches per iteration; their sum equals one large batch
    max_iters: Size = 2000  # optimiser steps
    epochs: Amount = 0.0  # passes over the conversations, in place of max_iters
    stages: tuple[str, ...] = ()  # loss options that change during the run: iteration:key=value, as 1000:block_size=16
    anneal_iters: Whole = 0  # iterations over which a converted model's attention grows from causal to full
    optimizer: Literal["adamw", "muon", "adamw8bit"] = "adamw"  # muon: for the blocks' matrices; 8bit: torchao's
    learning_rate: Amount = 1e-3  # AdamW's
    muon_learning_rate: Amount = 1e-2  # Muon's, scaled per matrix to AdamW's update size
    lr_schedule: Literal["cosine", "wsd", "constant"] = "cosine"  # after the warm-up; wsd: constant, then linear to 0
    warmup_iters: Whole | None = None  # linear from 0
    warmup_fraction: Unit = 0.05  # … or where they are not given, over this part of all iterations
    min_lr_fraction: Unit = 0.1  # cosine ends at this fraction of the learning rate
    decay_fraction: Unit = 0.2  # wsd: the last part of the run, in which the rate falls
    weight_decay: Amount = 0.1  # of matrices; not of norms and biases
    beta1: Below1 = 0.9  # AdamW
    beta2: Below1 = 0.95  # AdamW
    grad_clip: Amount = 1.0  # largest gradient norm; 0 never clips
    balance: Amount = 1e-3  # of a mixture's experts: a step of the routers' biases, or weight of an auxiliary loss
    lora_r: Rank = 0  # train low-rank adapters of this rank and save them alone; 0 trains all weights
    lora_alpha: Amount = 0.0  # their scale is this over the rank; 0 means twice the rank
    lora_dropout: Below1 = 0.0  # in front of them
    lora_at: Literal["all", "experts", "masks"] = "all"  # experts: theirs, too; masks: at these alone ("gated LoRA")
    sharding: Literal["ddp", "fsdp"] = "ddp"  # fsdp: weights, gradients and optimiser in parts, for large models
    recompute: bool = False  # activations again in the backward pass: less memory, a third more time
    ema: Below1 = 0.0  # decay of the average of the weights (fp32) that is evaluated and saved; 0 keeps none
    patience: Seconds = 120.0  # seconds without a sign of life from another process before this one ends, too
    eval_interval: Size = 200  # iterations between evaluations, each of which saves out_dir/last
    eval_windows: Size = 128  # validation windows, always the same
    eval_samples: Size = 2  # masks per validation window, always the same
    log_interval: Size = 10  # iterations between lines of metrics.jsonl
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # auto: the GPU where there is one; mps: Apple's
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of the matrix products; weights and sums stay float32
    compile: Literal["auto", "true", "false"] = "auto"  # torch.compile; auto: on a GPU, where it works
    save_dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of model.safetensors (resuming is exact anyway)
    wandb_project: str = ""  # log to this Weights & Biases project
    tensorboard: bool = False  # log to out_dir/tensorboard

    def __post_init__(self):
        check(self)
        if self.epochs and self.stages:
            raise ValueError("stages begin at iterations: with them give max_iters, not epochs")
        if self.optimizer == "muon" and (self.sharding == "fsdp" or self.lora_r):
            raise ValueError("optimizer=muon needs whole matrices: with sharding=fsdp or lora_r use adamw")


def get_lr(it, s):
    """The fraction of the peak learning rate at iteration `it`."""
    warmup = min(1.0, (it + 1) / (s.warmup_iters + 1))
    if s.lr_schedule == "constant":
        return warmup
    if s.lr_schedule == "wsd":
        return min(warmup, (s.max_iters - it) / max(1.0, s.decay_fraction * s.max_iters))
    done = min(1.0, max(0.0, (it - s.warmup_iters) / max(1, s.max_iters - s.warmup_iters)))
    return warmup * (s.min_lr_fraction + (1 - s.min_lr_fraction) * 0.5 * (1 + math.cos(math.pi * done)))


# ---- 2 · set-up ------------------------------------------------------------------------------------------------------


def main(argv):
    """Train as the words of a command line say. Returns the exit status: 0, or runs.REQUEUE where the run was asked to
    stop and has saved."""
    with parallel.processes(), contextlib.ExitStack() as stack:
        return train(set_up(argv, stack), stack)


def set_up(argv, stack):
    # settings
    values = configurator.read(argv)
    algorithm = algorithms.load(values.get("algorithm", (Settings.algorithm, ""))[0])
    master = int(os.environ.get("RANK", 0)) == 0
    say = tqdm.write if master else lambda *_: None
    classes = (Settings, Config, algorithm.LossOptions, conversations.Options)
    s, config, options, chat = configurator.fill(values, *classes, quiet=not master)
    log.check(s, say)
    check_directory(s.out_dir, "out_dir")
    device, why_device = pick_device(s.device)
    dtype, why_dtype = pick_dtype(s.dtype, device)
    compiled, compiling = pick_compile(s.compile, device)
    presets.check(s.preset, algorithm)

    # what it starts from, and the data: made here where they are missing, before the processes wait for each other
    out = Path(s.out_dir)
    before = configurator.read(argv, skip=("init_from", "auto")).get("init_from", (Settings.init_from, ""))[0]
    s = replace(s, init_from=runs.begin(out, s.init_from, before, s.overwrite))
    replaces = runs.is_there(out) and s.init_from != "resume"  # --overwrite
    if master:
        stack.enter_context(runs.held(out))
    if s.convert and s.init_from != "resume":
        start.convert_first(s, config.shift)
    source, is_chat = start.checkpoint_of(s, dtype, algorithm), records.holds_chat(s.dataset)
    config, L = start.network_settings(source, config, values, is_chat, say)
    staged = stages.read(s.stages, options)
    sizes = [getattr(o, "block_size", 0) for first, o in staged if first < s.max_iters]
    config = start.settle_blocks(s, config, sizes, source, algorithm, L, values)
    data, config = start.data_of(s, chat, source, config, L, sizes, compiled, options, algorithm)
    rows = int(os.environ.get("WORLD_SIZE", 1)) * s.gradient_accumulation_steps * s.batch_size
    s = runs.settle_length(s, data.rows_per_pass, rows, say)
    for line in data.said:
        say(line)
    count = source.model.num_params() if source else memory.parameters(config)
    memory.to_train(count, s, config, L, rows, device)
    identity = runs.identity(s, config, L, rows, data.content(), options, data.options)
    state = load_train_state(source.path) if s.init_from == "resume" else None
    if state:
        runs.check(source.path, state.get("run", {}), identity)

    # the processes, the network, the optimiser, or the run to go on with
    rank, world, device = parallel.start(device, s.patience)
    if s.sharding == "fsdp" and world == 1:
        sys.exit("sharding=fsdp cuts the model into parts for several processes: start them with torchrun")
    torch.set_float32_matmul_precision("high")
    autocast = torch.autocast(torch.device(device).type, dtype) if dtype != torch.float32 else contextlib.nullcontext()
    words = compiling + (f", {world} processes ({s.sharding})" if world > 1 else "")
    say(f"device {device} ({why_device}), {str(dtype)[6:]} ({why_dtype}), {words}")
    torch.manual_seed(s.seed)
    raw, said = start.network_of(s, config, source, is_chat and chat.packing, say)
    if s.recompute:
        raw.hf.gradient_checkpointing_enable() if hasattr(raw, "hf") else setattr(raw, "recompute", True)
    if s.sharding == "fsdp":
        raw = parallel.shard(raw, dtype, device, compiled)
    raw.to(device)
    trained = {n: p for n, p in raw.named_parameters() if p.requires_grad}
    optimizers = optim.make(raw, s, device)
    average = {n: p.detach().clone() for n, p in trained.items()} if s.ema else {}
    place = runs.Place()
    if state:
        place = runs.resume(state, trained, average, optimizers, data)
        say(f"resumed at iteration {place.iter}")
    del state
    model = parallel.wrap(raw, s, device, compiled)
    count, size = sum(p.numel() for p in trained.values()), raw.num_params()
    these = f" ({count:,} of them trained)" if count < size else ""
    say(f"{size:,} parameters{these}, {data.amount(rows)} per iteration, {s.max_iters - place.iter} iterations")
    said |= {"seq_len": L} | ({"chat": asdict(data.options)} if is_chat else {})

    # what is written, from here on: until now the directory of a run was as it is
    launchers = parallel.gather(runs.launcher())
    write = lambda *_, **__: None  # noqa: E731
    if master:
        if replaces:
            runs.remove(out)
        replace_file(out / "launched", "\n".join(launchers).encode())  # for runs.begin
        write = log.Log(out, s, place.iter, {**asdict(s), **asdict(config), **asdict(options)}, say)
        stack.callback(write.close)
    given = s, algorithm, config, staged, data, rows, out, rank, world, device, autocast, raw, model
    return runs.Run(*given, trained, average, optimizers, place, identity, said, say, write)


# ---- 3 · the loop ----------------------------------------------------------------------------------------------------


def get_batch(run, it, micro):
    """Micro-batch `micro` of this process in iteration `it`: x0, the loss's arguments, its denominator, all tokens."""
    first = (micro * run.world + run.rank) * run.s.batch_size
    x, keys, learnt, tokens = run.data.next(it, first, run.s.batch_size, run.rows)
    return *parallel.to(run.device, (x, keys)), learnt / run.world, tokens


def estimate_loss(run, stop):
    """Nats per token (mean, standard error) over the fixed windows or conversations; each process takes its share. None
    where somebody asks to stop meanwhile."""
    B, total = run.s.batch_size, len(run.data.held)
    nats, tokens = torch.zeros(2, total, dtype=torch.float64)
    run.raw.eval()
    with optim.averaged(run.trained, run.average), run.autocast:
        for i in range(run.rank * B, max(total, 1) + run.rank * B, run.world * B):  # as often in all, which FSDP wants
            first = min(i, total - 1)
            x, keys, lengths = run.data.held_out(first, min(B, total - first))
            keys = parallel.to(run.device, keys) | dict(samples=run.s.eval_samples, seed=0, first=first)
            found = run.algorithm.nelbo(run.raw, x.to(run.device), mask_id=run.data.tokenizer.mask_id, **keys)
            if i < total:
                nats[i : i + len(x)] = found
                tokens[i : i + len(x)] = torch.tensor(lengths, dtype=torch.float64)
            if stopped := parallel.any_of(stop.asked):
                break
    run.raw.train()
    return None if stopped else mean_and_error(per_token(parallel.total(nats), parallel.total(tokens)))


def evaluate(run, stop):
    """Measure, and log and keep what was measured; returns whether it is the best so far, or None (see above)."""
    measured = estimate_loss(run, stop)
    if measured is None:
        return None
    place, (nats, error) = run.place, measured
    bpb = 1 / math.log(2) / run.data.bytes_per_token
    bits, bits_error = nats * bpb, error and error * bpb
    place.facts = {"val_nats": nats, "val_nats_error": error, "val_bpb": bits, "val_bpb_error": bits_error}
    place.facts |= rollouts.held_out(run)
    place.evaluated = place.iter
    place.adapted = stages.adapt(run)
    run.log(place.iter, **place.facts, **place.adapted, seconds=place.seconds)
    said = f"{with_error(nats, error, 4)} nats per token, {with_error(bits, bits_error, 4)} bits per byte"
    run.say(f"iteration {place.iter}: validation {said}, {place.seconds:.0f} s of training")
    return runs.score(place.facts) < place.best


def learn(run, batch):
    """One iteration: gradient accumulation, clipping, the step. Returns (loss, tokens, the next iteration's batch)."""
    s, it, total = run.s, run.place.iter, 0.0
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * get_lr(it, s)
    torch.manual_seed(s.seed * 1_000_003 + it * run.world + run.rank)  # dropout, too, depends on the iteration alone
    keys = dict(mask_id=run.data.tokenizer.mask_id, seed=s.seed * 1_000_003 + it)
    for micro in range(s.gradient_accumulation_steps):
        x, given, learnt, tokens = batch
        last = micro == s.gradient_accumulation_steps - 1
        with parallel.synchronised(run.model, last):
            with run.autocast:
                loss = run.algorithm.loss(run.model, x, stages.at(run, it), denominator=learnt, **keys, **given)
            batch = get_batch(run, it + 1, 0) if last else get_batch(run, it, micro + 1)  # while the GPU is busy
            loss.backward()
        total += loss.detach()
    if s.grad_clip:
        torch.nn.utils.clip_grad_norm_(run.trained.values(), s.grad_clip)
    for optimizer in run.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if run.average:
        optim.update_average(run.average, run.trained, s.ema, it)
    return total, tokens, batch


def train(run, stack):
    """The loop. Returns the exit status."""
    stop = stack.enter_context(runs.signals())  # until now there was nothing to save: a signal just ended all
    s, place, L = run.s, run.place, run.data.seq_len
    counted = run.device.startswith("cuda") and isinstance(run.raw, Transformer)
    peak = next((f for gpu, f in PEAK_FLOPS.items() if counted and gpu in torch.cuda.get_device_name()), None)
    master, causal = run.rank == 0, run.algorithm.CAUSAL
    bar = tqdm(total=s.max_iters, initial=place.iter, disable=None if master else True, unit="it", dynamic_ncols=True)
    running, since, tokens_since, tick, saved_ok = torch.zeros((), device=run.device), 0, 0, time.time(), True
    batch = get_batch(run, place.iter, 0)
    while True:
        # once in a while: log, evaluate, save
        it, stopping = place.iter, parallel.any_of(stop.asked)
        last = it >= s.max_iters or stopping
        saving = last or (it % s.eval_interval == 0 and it > place.evaluated)
        if since and (it % s.log_interval == 0 or saving):
            value = parallel.total(running / run.world).item() / since
            bad = not math.isfinite(value) or saving and not all(map(parallel.is_finite, run.raw.parameters()))
            if parallel.any_of(bad):  # each may see another part of the weights
                bar.close()
                what = (
                    f"the loss or the weights are not finite within {since} iterations before {it} (loss {value}); "
                    f"what was saved in {run.out} is intact. Try a lower learning rate, a longer warmup_iters, or "
                    "dtype=float32"
                )
                sys.exit(what if master else 1)
            elapsed = time.time() - tick
            place.seconds += elapsed
            speed = tokens_since / elapsed
            numbers = {"train_loss": value, "lr": get_lr(it, s) * s.learning_rate, "tokens_per_s": speed}
            shown = {"loss": f"{value:.3f}", "tok_s": f"{speed:,.0f}"}
            shown |= {"val": f"{place.facts['val_nats']:.3f}"} if place.facts else {}
            if peak:
                flops = flops_per_token(run.raw, L, 1.0 if causal else 0.5, getattr(run.algorithm, "PASSES", 1))
                numbers["mfu"] = flops * speed / (peak * run.world)
                shown["mfu"] = f"{numbers['mfu']:.1%}"
            run.log(it, **numbers, **optim.loads(run.raw), seconds=place.seconds)
            bar.set_postfix(shown)
            running.zero_()
            since = tokens_since = 0
        if saving:
            better = None if stopping else evaluate(run, stop)  # whoever sends a signal may not wait for one
            if better is None:
                stopping = last = True
            best_ok = not better or runs.save(run, "best", stages.at(run, it))  # best first: last says how good it is
            place.best = runs.score(place.facts) if better and best_ok else place.best
            saved_ok = runs.save(run, "last", stages.at(run, it)) and best_ok
            if master:
                log.plot(run.out, "NLL" if causal else "NELBO", run.say)
        if last:
            break
        if since == 0:
            tick = time.time()

        loss, tokens, batch = learn(run, batch)
        running, tokens_since, since = running + loss, tokens_since + tokens, since + 1
        place.iter += 1
        bar.update()

    bar.close()
    if not saved_ok:
        sys.exit(f"the last checkpoint of {run.out} could not be saved (see the warning above)" if master else 1)
    if stopping:
        run.say(f"stopped at iteration {place.iter}, saved; go on with --init_from=resume, or auto")
    return runs.REQUEUE if stopping else 0


if __name__ == "__main__":
    console.run(main, sys.argv[1:])
