"""What a run starts from: a checkpoint or nothing, the context, the blocks, the network with its adapters."""

import importlib
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

from model import Config, Transformer
from nanodlm import checkpoint as ckpt
from nanodlm import configurator, conversations, gated, lora, records, rollouts, runs
from nanodlm.batches import Chats, Windows
from nanodlm.experts import mixtures
from nanodlm.files import ROOT
from nanodlm.wrapped import is_causal

# What a run may change of the network that it starts from, without changing a weight.
FREE = ("dropout", "causal", "block_size", "seq_len", "mask_share", "source")


def convert_first(s, shift):
    """Make the checkpoint to start from out of what it is converted from, where it is not there yet. Of several
    processes one does, and the others wait."""
    from filelock import FileLock

    there = [base / s.init_from / "config.json" for base in (Path(), ROOT)]
    if s.init_from in ("scratch", "resume"):
        sys.exit(f"convert={s.convert} needs a directory for the converted checkpoint: init_from=checkpoints/…")
    Path(s.init_from).parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{s.init_from}.lock"):
        if any(file.is_file() for file in there):
            return
        path = ckpt.find(s.convert)
        content = ckpt.read_json(path / "config.json")
        if is_causal(ckpt.architecture(content, path)) or content.get("model", {}).get("causal"):
            importlib.import_module("convert_ar").convert(s.convert, s.init_from, s.algorithm, shift)
        else:
            importlib.import_module("convert_bert").convert(s.convert, s.init_from)


def checkpoint_of(s, dtype, algorithm):
    """The checkpoint that a run starts from (train.Settings), or None; exits where it cannot be trained."""
    if s.init_from == "scratch":
        return None
    out = Path(s.out_dir)
    held = dtype if s.lora_r else torch.float32  # a frozen base needs no more
    start = out.absolute() / "last" if s.init_from == "resume" else s.init_from
    source = ckpt.load(start, dtype=held, whole=True)
    if source.algorithm != s.algorithm and {"diffusion_gemma", "editflow"} & {source.algorithm, s.algorithm}:
        sys.exit(f"{source.path} is a network for --algorithm={source.algorithm}, not for {s.algorithm}")
    if source.tokenizer.mask_id is None and not algorithm.CAUSAL:
        sys.exit(
            f"{source.path} is an autoregressive model without a mask token: convert it first, by convert_ar.py or "
            f"with --convert={s.init_from} --init_from=checkpoints/…"
        )
    lost = [p for p in (source.path, source.files) if p.resolve().is_relative_to(out.resolve())]
    if runs.is_there(out) and lost and s.init_from != "resume":
        sys.exit(f"--overwrite would remove {lost[0]}, which this run starts from; use another --out_dir")
    return source


def network_settings(source, config, said, is_chat, say):
    """(Config, seq_len) of a run, from what it asks for and what it starts from; exits where these do not go together.
    A window shorter than the checkpoint's context is the run's business, where that is a conversation's or a released
    model's; a longer one is an error."""
    context = config.seq_len
    released = source is not None and "architecture" in source.facts
    if source:
        have = asdict(source.model.config)
        differs = [k for k in said if k in have and getattr(config, k) != have[k] and k not in FREE]
        if not (is_chat or released) and "seq_len" in said and config.seq_len != have["seq_len"]:
            differs.append("seq_len")
        if differs:
            k = differs[0]
            sys.exit(
                f"{source.path} has {k}={have[k]}, this run asks for {getattr(config, k)}; leave it out, or use the "
                "settings it was trained with"
            )
        kept = [k for k in ("mask_share", "source") if k not in said]
        config = replace(config, **{k: getattr(source.model.config, k) for k in kept})
        own = {k: getattr(config, k) for k in ("dropout", "mask_share", "source")}
        config = replace(source.model.config, **own)
        context = config.seq_len
    seq_len = context
    if "seq_len" in said:
        seq_len = configurator.parse(said["seq_len"][0], int)
    elif released:
        seq_len = min(context, 1024)
        say(f"seq_len = {seq_len} of the context of {context} tokens")
    if seq_len > context:
        sys.exit(f"seq_len={seq_len} exceeds the context of {context} tokens of {source.path}")
    return config, seq_len


def rows_of(algorithm, vocab_size, source):
    """How many rows the network has: those of its tokens, or as many as an algorithm makes of them."""
    return vocab_size if source or not hasattr(algorithm, "rows") else algorithm.rows(vocab_size)


def settle_blocks(s, config, sizes, source, algorithm, seq_len, said):
    """The Config with the attention and the blocks that the algorithm trains; sizes: of its stages' blocks."""
    block_size = sizes[-1]  # what the run ends with is what the network is for
    if "block_size" in said and not block_size:
        sys.exit(f"algorithm={s.algorithm} has no blocks; use --algorithm=bd3lm, or leave block_size out")
    if "mask_share" in said and not hasattr(algorithm, "token_bound"):
        sys.exit(f"algorithm={s.algorithm} has no noise but its own: mask_share is of --algorithm=udlm; leave it out")
    if "source" in said and not hasattr(algorithm, "rows"):
        sys.exit(
            f"algorithm={s.algorithm} begins with masks, or noise: source is of --algorithm=editflow; leave it out"
        )
    if hasattr(algorithm, "rows") and (config.position == "learned" or config.shift):
        what = "shift=True" if config.shift else "position=learned"
        sys.exit(
            f"{what} does not go with algorithm={s.algorithm}, whose tokens move: use position=rope, without shift"
        )
    if "balance" in said and not config.experts:
        sys.exit("balance is of a mixture's experts, and this network has none; set experts, or leave it out")
    if "two_way" in said and not config.shift:
        sys.exit("two_way is of a shifted network (convert_ar.py --algorithm=bd3lm --shift=true); leave it out")
    if "noise_ids" in said:
        sys.exit("noise_ids is what convert_ar.py --algorithm=udlm found, or all ids; leave it out")
    if max(sizes) > seq_len:
        sys.exit(f"block_size={max(sizes)} exceeds the context, seq_len={seq_len}")
    if block_size and config.shift and min(sizes) < 2:
        sys.exit("block_size=1 of a shifted network is autoregression, which it is already; blocks begin at 2")
    # Blocks behind causal text: of a checkpoint that has them, or where they are asked for.
    own = config.causal and (source is None or source.algorithm == s.algorithm)
    own = configurator.parse(said["causal"][0], bool) if "causal" in said else own
    own = bool(block_size and own and not config.shift)
    if "clean_weight" in said and (not config.shift or config.two_way) and not own:
        sys.exit(
            "clean_weight is of a shifted network (convert_ar.py --algorithm=bd3lm --shift=true), or of one that reads "
            "clean text causally (--causal=true); leave it out"
        )
    if block_size and source and not isinstance(source.model, Transformer):
        sys.exit(f"{source.path} runs through transformers, which has no attention by blocks; use --algorithm=mdlm")
    if s.anneal_iters and (block_size or not hasattr(algorithm.LossOptions, "see_ahead")):
        sys.exit("anneal_iters is for mdlm; bd3lm anneals by growing blocks, as in --stages=500:block_size=8")
    return replace(config, causal=algorithm.CAUSAL or own, block_size=block_size)


def data_of(s, chat, source, config, seq_len, sizes, compiled, options, algorithm):
    """(what the loop is given, the Config with the size of its vocabulary)."""
    if records.holds_chat(s.dataset):
        data = Chats(s, chat, source, config, seq_len, sizes, compiled)
    else:
        conversations.refuse(chat, s.dataset)
        data = Windows(s, config, source, seq_len)
        config = replace(config, vocab_size=rows_of(algorithm, data.vocab_size, source))
    return rollouts.of(s, data, options, algorithm), config


def network_of(s, config, source, packing=False, say=print):
    """(the network to train, what its checkpoints say of where it comes from)."""
    if s.lora_at == "experts" and not s.lora_r:
        sys.exit("lora_at=experts is of adapters: give their rank as lora_r")
    if s.lora_at == "masks" and (not s.lora_r or s.sharding == "fsdp"):
        sys.exit("lora_at=masks is of adapters whose base is whole in every process: give lora_r, and no sharding=fsdp")
    if source is None:
        if s.lora_r:
            sys.exit("lora_r needs a checkpoint to stand beside: give one as init_from")
        return Transformer(config), {"preset": s.preset} if s.preset else {}
    model = source.model.train()
    if s.random_weights:
        if not isinstance(model, Transformer):
            sys.exit("random_weights: this model runs through transformers; use a family that is known here")
        model = Transformer(config)
    if not isinstance(model, Transformer):
        pairs = packing or not config.causal and (model.decoder or s.anneal_iters)
        padded = not config.causal and records.holds_chat(s.dataset)
        if (pairs or padded) and not model.follows("pairs") and (pairs or not model.follows("padding")):
            what = "who sees whom" if pairs else "padding, which conversations need"
            instead = "leave out packing" if packing else "use another model"
            sys.exit(f"{source.path}, through transformers, does not follow a mask of {what}; {instead}")
    base = {k: source.facts[k] for k in ckpt.KEPT if k in source.facts}
    changed = ckpt.network_facts(config, source.model.config)  # what an adapter has to remember
    for name, module in model.named_modules():  # what is not a weight follows this run's settings
        if isinstance(module, torch.nn.Dropout) and isinstance(model, Transformer) and not lora.is_adapter(name):
            module.p = config.dropout
        if isinstance(getattr(module, "config", None), Config):
            module.config = config
    base |= {"preset": s.preset} if s.preset else {}
    if s.lora_r and s.random_weights:
        sys.exit("lora_r stands beside weights that are on disk, and random_weights are not; use one of the two")
    if s.lora_r and "adapter" not in base:
        alpha = s.lora_alpha or 2.0 * s.lora_r
        base["adapter"] = {"base": s.init_from, "base_digest": lora.digest(model), "r": s.lora_r, "alpha": alpha}
        base["adapter"] |= {"dropout": s.lora_dropout, "at": s.lora_at, "network": changed}
        row = source.tokenizer.mask_id if source.facts.get("fresh_mask") else None
        if row is not None:
            base["adapter"]["row"] = row
            say(f"the mask token's row, {row}, is trained beside the adapters: nobody has trained it yet")
        lora.add_lora(model, s.lora_r, alpha, s.lora_dropout, row, s.lora_at)
        if s.lora_at == "masks":
            if not isinstance(model, Transformer):
                sys.exit(f"{source.path} runs through transformers, where adapters act at all tokens: lora_at=all")
            if mixtures(model):
                sys.exit("lora_at=masks does not know mixtures of experts; use lora_at=all, or experts")
            gated.only_at(model, source.tokenizer.mask_id)
    elif "adapter" in base:
        have = base["adapter"]
        check_adapter(s, have, source.path)
        base["adapter"] = have | {"network": have["network"] | changed}
    return model, base


def check_adapter(s, have, path):
    """Exit where an adapter that is trained further is asked to be another one."""
    asked = {"rank": ("r", s.lora_r), "alpha": ("alpha", s.lora_alpha), "dropout": ("dropout", s.lora_dropout)}
    at = have.get("at", "all")
    if s.lora_at != at:
        sys.exit(f"{path} is an adapter at {at}, not at {s.lora_at}; train it with --lora_at={at}")
    for word, (key, value) in asked.items():
        old = have.get(key, 0.0)
        if value != old and (value or key != "alpha"):  # no alpha: as it was
            sys.exit(f"{path} is an adapter of {word} {old:g}, not {value:g}; train it with --lora_{key}={old:g}")
