"""Train a language model: one loop for every algorithm (mdlm, bd3lm, ar, …), from one CPU to several nodes of GPUs.

    python train.py config/quickstart.py
    python train.py config/quickstart.py --learning_rate=2e-3 --out_dir=out/try2
    torchrun --nproc_per_node=8 train.py config/owt_mdlm.py
    python train.py config/quickstart.py --init_from=resume       auto: go on with it, or begin
    torchrun --nproc_per_node=8 train.py config/modernbert_chat.py      makes what it starts from, if need be

Windows and masks are functions of (seed, iteration, row of the global batch): the same run on 1 process or 8, with or
without gradient accumulation, stopped and resumed or not, draws the same ones. (Dropout depends on the process, too.)
Data are running text, or conversations (nanodlm/batches.py), of which only the answers are hidden and learnt.
"""

import contextlib
import json
import math
import os
import re
import shutil
import sys
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from model import PEAK_FLOPS, Config, Transformer, pick_device, pick_dtype
from nanodlm import (
    algorithms,
    batches,
    configurator,
    conversations,
    corpus,
    files,
    likelihood,
    lora,
    optim,
    parallel,
    runs,
    wrapped,
)
from nanodlm import checkpoint as ckpt
from nanodlm import tokenizer as tokenizers
from nanodlm.results import with_error


@dataclass
class Settings:
    algorithm: str = "mdlm"  # the file whose loss is trained: mdlm, bd3lm, ar, or one of your own
    dataset: str = "pydocs"  # a name under data/, or a directory with a meta.json; conversations: tulu3:2,my.jsonl:1
    out_dir: str = "out/run"  # checkpoints last/ and best/, metrics.jsonl, loss.png
    init_from: str = "scratch"  # scratch; a checkpoint; resume (go on with out_dir/last); auto: that, or the recipe's
    convert: str = ""  # what init_from is converted from, where it is not there yet: a directory or a name on the hub
    preset: str = ""  # how to decode what is trained: one of config/presets; default: as what it starts from
    random_weights: bool = False  # of the checkpoint to start from take the architecture only, to compare with
    overwrite: bool = False  # allow scratch to replace a run that is already in out_dir
    seed: int = 1  # of the initial weights, the windows, the masks
    batch_size: int = 32  # windows per process and micro-batch
    gradient_accumulation_steps: int = 1  # micro-batches per iteration; their sum equals one large batch
    max_iters: int = 2000  # optimiser steps
    epochs: float = 0.0  # passes over the conversations, in place of max_iters
    stages: tuple[str, ...] = ()  # loss options that change during the run: iteration:key=value, as 1000:block_size=16
    anneal_iters: int = 0  # iterations over which a converted model's attention grows from causal to full
    optimizer: Literal["adamw", "muon", "adamw8bit"] = "adamw"  # muon: for the blocks' matrices; 8bit: torchao's
    learning_rate: float = 1e-3  # AdamW's
    muon_learning_rate: float = 1e-2  # Muon's, scaled per matrix to AdamW's update size
    lr_schedule: Literal["cosine", "wsd", "constant"] = "cosine"  # after the warm-up; wsd: constant, then linear to 0
    warmup_iters: int | None = None  # linear from 0
    warmup_fraction: float = 0.05  # … or where they are not given, over this part of all iterations
    min_lr_fraction: float = 0.1  # cosine ends at this fraction of the learning rate
    decay_fraction: float = 0.2  # wsd: the last part of the run, in which the rate falls
    weight_decay: float = 0.1  # of matrices; not of norms and biases
    beta1: float = 0.9  # AdamW
    beta2: float = 0.95  # AdamW
    grad_clip: float = 1.0  # largest gradient norm; 0 never clips
    lora_r: int = 0  # train low-rank adapters of this rank and save them alone; 0 trains all weights
    lora_alpha: float = 0.0  # their scale is this over the rank; 0 means twice the rank
    lora_dropout: float = 0.0  # in front of them
    sharding: Literal["ddp", "fsdp"] = "ddp"  # fsdp: weights, gradients and optimiser in parts, for large models
    recompute: bool = False  # activations again in the backward pass: less memory, a third more time
    ema: float = 0.0  # decay of the average of the weights (fp32) that is evaluated and saved; 0 keeps none
    patience: float = 120.0  # seconds without a sign of life from another process before this one ends, too
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
        if self.lora_r < 0 or self.anneal_iters < 0 or self.epochs < 0:
            raise ValueError("lora_r, anneal_iters and epochs must not be negative")
        if self.epochs and self.stages:
            raise ValueError("stages begin at iterations: with them give max_iters, not epochs")
        if self.optimizer == "muon" and (self.sharding == "fsdp" or self.lora_r):
            raise ValueError("optimizer=muon needs whole matrices: with sharding=fsdp or lora_r use adamw")
        if self.patience <= 0:
            raise ValueError(f"patience={self.patience} must be positive: seconds")
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
    val = [(m["iter"], m["val_nats"], m["val_nats_error"] or 0.0) for m in lines if "val_nats" in m]
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


def convert_first(s, shift):
    """Make the checkpoint to start from out of what it is converted from, where it is not there yet. Of several
    processes one does, and the others wait."""
    from filelock import FileLock

    there = [base / s.init_from / "config.json" for base in (Path(), files.ROOT)]
    if s.init_from in ("scratch", "resume"):
        sys.exit(f"convert={s.convert} needs a directory for the converted checkpoint: init_from=checkpoints/…")
    Path(s.init_from).parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{s.init_from}.lock"):
        if any(file.is_file() for file in there):
            return
        path = ckpt.find(s.convert)
        content = json.loads((path / "config.json").read_text(encoding="utf-8"))
        name = (content.get("architectures") or [""])[0]
        if wrapped.is_causal(name) or content.get("algorithm") == "ar":
            import convert_ar

            convert_ar.convert(s.convert, s.init_from, s.algorithm, shift)
        else:
            import convert_bert

            convert_bert.convert(s.convert, s.init_from)


# What a run may change of the network that it starts from, without changing a weight.
FREE = ("dropout", "causal", "block_size", "seq_len")


def config_from(source, config, said, context):
    """The network settings of the checkpoint `source`; exits where the run asks for other ones. A window shorter than
    its context is the run's business (context), a longer one is an error."""
    have = asdict(source.model.config)
    differs = [k for k in said if k in have and getattr(config, k) != have[k] and k not in FREE]
    if not context and "seq_len" in said and config.seq_len != have["seq_len"]:
        differs.append("seq_len")
    if differs:
        k = differs[0]
        sys.exit(
            f"{source.path} has {k}={have[k]}, this run asks for {getattr(config, k)}; leave it out, or use the "
            "settings it was trained with"
        )
    return replace(source.model.config, dropout=config.dropout)


def main(argv):
    """Train as the words of a command line say. Returns the exit status: 0, or runs.REQUEUE where the run was asked to
    stop and has saved."""
    with parallel.processes(), contextlib.ExitStack() as stack:
        return one_run(argv, stack)


def one_run(argv, stack):
    # ---------------------------------------------------------------------------------------------------------------
    # settings, processes, device
    values = configurator.read(argv)
    algorithm = algorithms.load(values.get("algorithm", (Settings.algorithm, ""))[0])
    master = int(os.environ.get("RANK", 0)) == 0
    say = tqdm.write if master else lambda *_: None
    classes = (Settings, Config, algorithm.LossOptions, conversations.Options)
    s, config, options, chat = configurator.fill(values, *classes, quiet=not master)
    device, why_device = pick_device(s.device)
    dtype, why_dtype = pick_dtype(s.dtype, device)

    # ---------------------------------------------------------------------------------------------------------------
    # the checkpoint to start from, and the data: made here where they are missing, before the processes wait for each
    # other
    out = Path(s.out_dir)
    before = configurator.read(argv, skip=("init_from", "auto")).get("init_from", (Settings.init_from, ""))[0]
    s = replace(s, init_from=runs.begin(out, s.init_from, before, s.overwrite))
    holds_run = runs.is_there(out)
    if master:
        stack.enter_context(runs.held(out))
    if s.convert and s.init_from != "resume":
        convert_first(s, config.shift)
    is_chat = conversations.holds_chat(s.dataset)
    source = None
    if s.init_from != "scratch":
        held = dtype if s.lora_r else torch.float32  # a frozen base needs no more
        source = ckpt.load(out.absolute() / "last" if s.init_from == "resume" else s.init_from, dtype=held)
        released = "architecture" in source.facts
        config = config_from(source, config, values, is_chat or released)
        if source.tokenizer.mask_id is None and not algorithm.CAUSAL:
            sys.exit(
                f"{source.path} is an autoregressive model without a mask token: convert it first, by convert_ar.py or "
                f"with --convert={s.init_from} --init_from=checkpoints/…"
            )
        lost = [p for p in (source.path, source.files) if p.resolve().is_relative_to(out.resolve())]
        if holds_run and lost and s.init_from != "resume":
            sys.exit(f"--overwrite would remove {lost[0]}, which this run starts from; use another --out_dir")
    L = config.seq_len
    if "seq_len" in values:
        L = configurator.parse(values["seq_len"][0], int)
    elif source and released:
        L = min(L, 1024)
        say(f"seq_len = {L} of the context of {config.seq_len} tokens")
    if L > config.seq_len:
        sys.exit(f"seq_len={L} exceeds the context of {config.seq_len} tokens of {source.path}")
    if is_chat:
        if source is None:
            sys.exit(f"{s.dataset} are conversations, which need a checkpoint's chat template: give one as init_from")
        tokenizer, tokenizer_dir, meta, prompt_len, rows_of = source.tokenizer, source.files, {}, 0, None
        if tokenizer.template is None:
            sys.exit(f"{source.path} has no chat template; convert_bert.py and convert_ar.py attach one")
    else:
        for field in fields(chat):
            if getattr(chat, field.name) != field.default:
                sys.exit(f"{field.name} is for conversations, and {s.dataset} is running text; leave it out")
        meta = corpus.load_meta(s.dataset)
        tokenizer, tokenizer_dir = corpus.load_tokenizer(s.dataset, meta), corpus.find(s.dataset)
        prompt_len, rows_of = meta.get("prompt_len", 0), meta.get("row_len")
        vocab_size = config.vocab_size or meta["vocab_size"]
        if vocab_size < meta["vocab_size"]:
            sys.exit(f"vocab_size={vocab_size} is below the {meta['vocab_size']} ids of {s.dataset}; leave it at 0")
        config = replace(config, vocab_size=vocab_size)
        if source and not tokenizers.alike(source.tokenizer, tokenizer):
            sys.exit(f"{source.path} has another tokenizer than {s.dataset}; their ids do not mean the same")
        if source:
            tokenizer, tokenizer_dir = source.tokenizer, source.files
        if rows_of and rows_of != L:
            sys.exit(f"seq_len={L} does not fit the rows of {s.dataset}; use --seq_len={rows_of}")
        if not rows_of and len(corpus.load_tokens(s.dataset, "train", meta)) <= L:
            sys.exit(f"the training text of {s.dataset} is shorter than one window of seq_len={L} tokens")
    stages = read_stages(s.stages, options)
    sizes = [getattr(o, "block_size", 0) for first, o in stages if first < s.max_iters]
    block_size = sizes[-1]  # what the run ends with is what the network is for
    if "block_size" in values and not block_size:
        sys.exit(f"algorithm={s.algorithm} has no blocks; use --algorithm=bd3lm, or leave block_size out")
    if max(sizes) > L:
        sys.exit(f"block_size={max(sizes)} exceeds the context, seq_len={L}")
    if block_size and config.shift:
        sys.exit("shift=true predicts from the token before, which may lie in another block; bd3lm needs shift=false")
    if block_size and source and not isinstance(source.model, Transformer):
        sys.exit(f"{source.path} runs through transformers, which has no attention by blocks; use --algorithm=mdlm")
    if s.anneal_iters and (algorithm.CAUSAL or block_size):
        sys.exit("anneal_iters is for mdlm; bd3lm anneals by growing blocks, as in --stages=500:block_size=8")
    config = replace(config, causal=algorithm.CAUSAL, block_size=block_size)
    B, accum, world = s.batch_size, s.gradient_accumulation_steps, int(os.environ.get("WORLD_SIZE", 1))
    global_rows = world * accum * B
    if is_chat:
        if chat.fill is None:
            chat = replace(chat, fill=1 if algorithm.CAUSAL else math.lcm(*sizes) or (32 if chat.packing else 0))
        for size in sizes:
            if size and (chat.fill == 0 or chat.fill % size):
                sys.exit(f"fill={chat.fill} is no multiple of block_size={size}: every answer ends with a whole block")
        if chat.packing and not chat.fill:
            sys.exit("fill=0 fills rows with end-of-text, which packing fills with conversations; use fill=32, or 1")
        if s.epochs and chat.streaming:
            sys.exit("epochs: nobody knows how long a stream is; use max_iters")
        data = batches.Conversations(s.dataset, tokenizer, tokenizer_dir, L, chat, s.seed)
        s = runs.settle_length(s, data.rows_per_pass, global_rows, say)
        alone = replace(chat, packing=False)
        eval_rows = batches.Conversations(s.dataset, tokenizer, tokenizer_dir, L, alone, s.seed, "val").some(
            s.eval_windows
        )
        say(data.summary())
        if not eval_rows:  # a small file may have none
            say(f"no conversation of {s.dataset} is left for validation, which is of training conversations instead")
            eval_rows = batches.Conversations(s.dataset, tokenizer, tokenizer_dir, L, alone, s.seed).some(
                s.eval_windows
            )
    else:
        if s.epochs:
            sys.exit("epochs counts passes over conversations; for running text use max_iters")
        s = runs.settle_length(s, None, global_rows, say)
        eval_x = corpus.eval_windows(s.dataset, meta, L, s.eval_windows)
    if s.preset not in ("", "none") and not (files.ROOT / f"config/presets/{s.preset}.py").is_file():
        sys.exit(f"there is no preset config/presets/{s.preset}.py")
    content = data.content() if is_chat else corpus.content(s.dataset)
    identity = runs.identity(s, L, global_rows, content, options, chat if is_chat else None)

    state = ckpt.load_train_state(source.path) if s.init_from == "resume" else None
    if state:
        runs.check(source.path, state.get("run", {}), identity)

    rank, world, device = parallel.start(device, s.patience)
    kind = torch.device(device).type
    if s.sharding == "fsdp" and world == 1:
        sys.exit("sharding=fsdp cuts the model into parts for several processes: start them with torchrun")
    use_compile = kind == "cuda" if s.compile == "auto" else s.compile == "true"
    torch.set_float32_matmul_precision("high")
    autocast = torch.autocast(kind, dtype) if dtype != torch.float32 else contextlib.nullcontext()
    compiled, processes = "on" if use_compile else "off", f", {world} processes ({s.sharding})" if world > 1 else ""
    say(f"device {device} ({why_device}), {str(dtype)[6:]} ({why_dtype}), compile {compiled}{processes}")

    def to_device(ids):
        """Checked ids (B, L) and which of them are learnt, on the device."""
        try:
            corpus.check_ids(ids, tokenizer, s.dataset)
        except ValueError as e:
            sys.exit(f"{e}; prepare the data again")
        x = move(ids.astype(np.int64))
        maskable = (torch.arange(L, device=device) >= prompt_len).expand_as(x) if prompt_len else None
        return x, maskable

    def move(array):
        x = torch.from_numpy(array)
        return x.pin_memory().to(device, non_blocking=True) if kind == "cuda" else x.to(device)

    def chat_batch(rows, first, count, how, width=None):
        """`count` rows of conversations from row `first` of the global batch on: ids, what is learnt, batches.Texts."""
        ids, learn, texts = batches.batch(rows, first, count, how, tokenizer.eos_id, L, width)
        number, position = move(texts.pop("number")), move(texts.pop("position"))
        return move(ids), move(learn), batches.Texts(number, position, **texts)

    taken = {}  # the conversations of an iteration, and where in the data they begin

    def rows_of_iteration(it):
        if taken.get("it") != it:
            taken.update(it=it, state=data.state, rows=data.next(global_rows))
            taken["learnt"] = batches.learnt(taken["rows"], chat, L)
            taken["tokens"] = sum(n for row in taken["rows"] for n, _ in row)
        return taken["rows"]

    def get_batch(it, micro):
        """What the loss is given for micro-batch `micro` of this process: rows first…first+B of the global batch of
        iteration `it`, as (x0, the other arguments)."""
        first = (micro * world + rank) * B
        if is_chat:
            x, learn, texts = chat_batch(
                rows_of_iteration(it), first, B, chat, L if use_compile or chat.packing else None
            )
            return x, dict(maskable=learn, texts=texts, denominator=taken["learnt"] / world)
        tokens = corpus.load_tokens(s.dataset, "train", meta)
        starts = len(tokens) - (0 if rows_of else L - 1)
        index = np.random.default_rng((s.seed, it)).integers(starts, size=global_rows)[first : first + B]
        x, maskable = to_device(np.stack([tokens[i] if rows_of else tokens[i : i + L] for i in index]))
        return x, dict(maskable=maskable, shard=(first, global_rows), denominator=accum * B * (L - prompt_len))

    # ---------------------------------------------------------------------------------------------------------------
    # model, optimiser, or the run to go on with
    torch.manual_seed(s.seed)
    base = {}  # what the checkpoint says of itself that goes into those of this run
    if source is None:
        model = Transformer(config)
    else:
        model = source.model.train()
        if s.random_weights:
            if not isinstance(model, Transformer):
                sys.exit("random_weights: this model runs through transformers; use a family that is known here")
            model = Transformer(config)
        base = {k: source.facts[k] for k in ckpt.KEPT if k in source.facts}
        changed = ckpt.network_facts(config, source.model.config)  # what an adapter has to remember
        for name, module in model.named_modules():  # what is not a weight follows this run's settings
            if isinstance(module, torch.nn.Dropout) and isinstance(model, Transformer) and ".lora_" not in name:
                module.p = config.dropout
            if isinstance(getattr(module, "config", None), Config):
                module.config = config
    base |= {"preset": s.preset} if s.preset else {}
    if s.lora_r and source is None:
        sys.exit("lora_r needs a checkpoint to stand beside: give one as init_from")
    if s.lora_r and s.random_weights:
        sys.exit("lora_r stands beside weights that are on disk, and random_weights are not; use one of the two")
    if s.lora_r and "adapter" not in base:
        alpha = s.lora_alpha or 2.0 * s.lora_r
        base["adapter"] = {"base": s.init_from, "base_digest": lora.digest(model), "r": s.lora_r, "alpha": alpha}
        base["adapter"] |= {"dropout": s.lora_dropout, "network": changed}
        lora.add_lora(model, s.lora_r, alpha, s.lora_dropout)
    elif "adapter" in base:
        have = base["adapter"]
        asked = {"rank": ("r", s.lora_r), "alpha": ("alpha", s.lora_alpha), "dropout": ("dropout", s.lora_dropout)}
        for word, (key, value) in asked.items():
            old = have.get(key, 0.0)
            if value != old and (value or key != "alpha"):  # no alpha: as it was
                sys.exit(
                    f"{source.path} is an adapter of {word} {old:g}, not {value:g}; train it with --lora_{key}={old:g}"
                )
        base["adapter"] = have | {"network": have["network"] | changed}
    if s.recompute:
        model.hf.gradient_checkpointing_enable() if hasattr(model, "hf") else setattr(model, "recompute", True)
    if s.sharding == "fsdp":
        for block in parallel.blocks(model) if use_compile else ():
            block.compile()
        model = parallel.shard(model, dtype, device)
    model.to(device)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizers = optim.make(model, s, device)
    ema = {n: p.detach().clone() for n, p in trained.items()} if s.ema else None
    start, evaluated, best, seconds, facts, adapted = 0, 0, math.inf, 0.0, {}, {}
    if state:
        start, best, seconds, facts = (state[k] for k in ("iter", "best", "seconds", "facts"))
        evaluated, adapted = state.get("evaluated", start), state.get("adapted", {})
        if is_chat:
            data.state = tuple(state["data"])
        with torch.no_grad():
            for n, p in trained.items():
                p.copy_(parallel.like(p, state["weights"][n]))
                if ema:
                    ema[n].copy_(parallel.like(p, (state["ema"] or state["weights"])[n]))
        for optimizer, saved in zip(optimizers, state["optimizers"]):
            parallel.load_optimizer(optimizer, saved)
        say(f"resumed at iteration {start}")
    del state
    raw = model  # what is saved and evaluated; `model` may be compiled and wrapped
    if use_compile and s.sharding == "ddp":
        model = torch.compile(model)
    if world > 1 and s.sharding == "ddp":
        model = torch.nn.parallel.DistributedDataParallel(model, device_ids=[device] if kind == "cuda" else None)
    if holds_run and s.init_from != "resume" and master:  # --overwrite
        for name in ("last", "best", "last.old", "best.old"):
            shutil.rmtree(out / name, ignore_errors=True)
    count = sum(p.numel() for p in trained.values())
    these = f" ({count:,} of them trained)" if count < raw.num_params() else ""
    amount = f"{global_rows} rows" if is_chat else f"{global_rows * L:,} tokens"
    say(f"{raw.num_params():,} parameters{these}, {amount} per iteration, {s.max_iters - start} iterations")

    # ---------------------------------------------------------------------------------------------------------------
    # evaluation, logs, checkpoints
    metrics = out / "metrics.jsonl"
    launchers = parallel.gather(runs.launcher())
    writer = run = None
    if master:
        files.replace_file(out / "launched", "\n".join(launchers).encode())  # for runs.begin
        old = read_metrics(metrics) if s.init_from == "resume" else []
        files.replace_file(metrics, "".join(files.to_json(m) + "\n" for m in old if m["iter"] <= start).encode())
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
                    f.write(files.to_json({"iter": it, **numbers}) + "\n")
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
        for n, p in trained.items():
            p.copy_(source[n])

    @contextlib.contextmanager
    def averaged_weights():
        """Put the averaged weights into the network for a while."""
        kept = {n: p.detach().clone() for n, p in trained.items()} if ema else {}
        if ema:
            copy_weights(ema)
        yield
        if ema:
            copy_weights(kept)

    def estimate_loss():
        """Nats per token (mean, standard error) over the fixed windows or conversations; each rank takes its share.
        None where somebody asks to stop meanwhile."""
        raw.eval()
        stopped = False
        total = len(eval_rows) if is_chat else len(eval_x)
        nats = torch.zeros(total, dtype=torch.float64, device=device)
        tokens = torch.zeros_like(nats)
        with averaged_weights(), autocast:
            for i in range(rank * B, max(total, 1) + rank * B, world * B):  # as often on every rank, which FSDP wants
                first = min(i, total - 1)
                n = min(B, total - first)
                real, lengths = None, [L - prompt_len] * n
                if is_chat:  # the end-of-text behind an answer is part of what is measured, but not a token more
                    x, maskable, texts = chat_batch(eval_rows, first, n, alone, L if use_compile else None)
                    real = texts.number >= 0
                    lengths = [int(batches.read(row[0][1])[1].sum()) for row in eval_rows[first : first + n]]
                else:
                    x, maskable = to_device(eval_x[first : first + n])
                keys = dict(mask_id=tokenizer.mask_id, maskable=maskable, real=real, samples=s.eval_samples, seed=0)
                found = algorithm.nelbo(raw, x, **keys, first=first)
                if i < total:
                    nats[i : i + n] = found
                    tokens[i : i + n] = torch.tensor(lengths, dtype=torch.float64, device=device)
                if stopped := parallel.any_of(stop.asked):
                    break
        raw.train()
        return (
            None
            if stopped
            else likelihood.mean_and_error(likelihood.per_token(sum_over_ranks(nats), sum_over_ranks(tokens)))
        )

    def options_at(it):
        """The loss options of iteration `it`: its stage's, and what the algorithm has adapted to its measurements."""
        o = [o for first, o in stages if first <= it][-1]
        if s.anneal_iters:
            o = replace(o, see_ahead=min(1.0, it / s.anneal_iters))
        return replace(o, **adapted) if getattr(o, "clip", "") == "adaptive" else o

    def adapt(it):
        """What the algorithm makes of the fixed windows, the same on all ranks."""
        raw.eval()
        if is_chat:
            starts = range(0, len(eval_rows), B)
            windows = (chat_batch(eval_rows, i, min(B, len(eval_rows) - i), alone)[:2] for i in starts)
        else:
            windows = (to_device(eval_x[i : i + B]) for i in range(0, len(eval_x), B))
        with autocast:
            found = [algorithm.adapt(raw, windows, options_at(it), mask_id=tokenizer.mask_id)]
        raw.train()
        if world > 1:
            dist.broadcast_object_list(found)
        return found[0]

    def save(it, name):
        """Write out_dir/name; a full disk costs a warning, not the run. All processes gather, the first one writes, and
        all return whether it could, as what they save next depends on it."""
        train_state = None
        weights = parallel.whole(ema or trained)
        if name == "last":
            train_state = {
                "iter": it,
                "best": best,
                "seconds": seconds,
                "facts": facts,
                "evaluated": evaluated,
                "adapted": adapted,
                "run": identity,
                "data": (taken["state"] if taken.get("it") == it else data.state) if is_chat else None,
                "weights": parallel.whole(trained) if ema else weights,
                "ema": weights if ema else None,
                "optimizers": parallel.whole([o.state_dict() for o in optimizers]),
            }
        content = {"dataset": s.dataset, "iter": it, **facts, "train": asdict(s), "loss": asdict(options_at(it))}
        content |= base | {"seq_len": L} | ({"chat": asdict(chat)} if is_chat else {})
        dtype, failed = getattr(torch, s.save_dtype), False
        files = tokenizer_dir if tokenizer_dir.is_dir() else out / "last"  # resumed from last.old, which is gone now
        if master:
            try:
                ckpt.save(out / name, weights, config, tokenizer, files, s.algorithm, content, dtype, train_state)
            except OSError as e:
                say(f"warning: {e}")
                failed = True
        return not parallel.any_of(failed)

    # ---------------------------------------------------------------------------------------------------------------
    # the loop
    stop = stack.enter_context(runs.signals())  # until now there was nothing to save: a signal just ended the process
    counted = kind == "cuda" and isinstance(raw, Transformer)  # what runs through transformers has no flops_per_token
    gpu = torch.cuda.get_device_name() if counted else ""
    peak = next((f for name, f in PEAK_FLOPS.items() if name in gpu), None)
    bar = tqdm(total=s.max_iters, initial=start, disable=None if master else True, unit="it", dynamic_ncols=True)
    running, since, tokens_since, tick, saved_ok = torch.zeros((), device=device), 0, 0, time.time(), True
    it = start
    batch = get_batch(it, 0)
    while True:
        # once in a while: log, evaluate, save
        stopping = parallel.any_of(stop.asked)
        last = it >= s.max_iters or stopping
        saving = last or (it % s.eval_interval == 0 and it > evaluated)
        if since and (it % s.log_interval == 0 or saving):
            value = sum_over_ranks(running / world).item() / since
            bad = not math.isfinite(value) or saving and not all(map(parallel.is_finite, raw.parameters()))
            if parallel.any_of(bad):  # each may see another part of the weights
                bar.close()
                what = (
                    f"the loss or the weights are not finite within {since} iterations before {it} (loss {value}); "
                    f"what was saved in {out} is intact. Try a lower learning rate, a longer warmup_iters, or "
                    "dtype=float32"
                )
                sys.exit(what if master else 1)
            elapsed = time.time() - tick
            seconds += elapsed
            speed = tokens_since / elapsed
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
            since = tokens_since = 0
        if saving:
            better = False
            measured = None if stopping else estimate_loss()  # whoever sends a signal may not wait for one
            if measured is None:
                stopping = last = True
            else:
                nats, error = measured
                size = batches.bytes_per_token(eval_rows, tokenizer) if is_chat else meta["bytes_per_token"]
                bpb = 1 / math.log(2) / size
                bits, bits_error = nats * bpb, error and error * bpb
                facts = {"val_nats": nats, "val_nats_error": error, "val_bpb": bits, "val_bpb_error": bits_error}
                evaluated = it
                if hasattr(algorithm, "adapt"):
                    adapted = adapt(it)
                log(it, **facts, **adapted, seconds=seconds)
                in_nats, in_bits = with_error(nats, error, 4), with_error(bits, bits_error, 4)
                say(
                    f"iteration {it}: validation {in_nats} nats per token, {in_bits} bits per byte, "
                    f"{seconds:.0f} s of training"
                )
                better = nats < best
            best_ok = not better or save(it, "best")  # best first: last says how good it is
            best = facts["val_nats"] if better and best_ok else best
            saved_ok = save(it, "last") and best_ok
            if master:
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
            x, keys = batch
            if micro == 0:
                tokens_since += taken["tokens"] if is_chat else global_rows * L
            if s.sharding == "fsdp":
                model.set_requires_gradient_sync(micro == accum - 1)
            alone_now = world > 1 and s.sharding == "ddp" and micro < accum - 1
            with model.no_sync() if alone_now else contextlib.nullcontext():
                with autocast:
                    seed = s.seed * 1_000_003 + it
                    value = algorithm.loss(model, x, options_at(it), mask_id=tokenizer.mask_id, seed=seed, **keys)
                batch = get_batch(it, micro + 1) if micro + 1 < accum else get_batch(it + 1, 0)  # while the GPU is busy
                value.backward()
            running += value.detach()
        if s.grad_clip:
            torch.nn.utils.clip_grad_norm_(trained.values(), s.grad_clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if ema:
            decay = min(s.ema, (1 + it) / (10 + it))
            torch._foreach_lerp_(list(ema.values()), [p.detach() for p in trained.values()], 1 - decay)
        it += 1
        since += 1
        bar.update()

    bar.close()
    if writer:
        writer.close()
    if not saved_ok:
        sys.exit(f"the last checkpoint of {out} could not be saved (see the warning above)" if master else 1)
    if stopping:
        say(f"stopped at iteration {it}, saved; go on with --init_from=resume, or auto")
    return runs.REQUEUE if stopping else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
