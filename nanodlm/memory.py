"""What something would need in memory, said before it is asked for: a sentence instead of a killed process."""

import os
import sys
from pathlib import Path

import psutil
import torch

SIZES = "n_layer n_head n_kv_head head_dim n_embd mlp_dim experts expert_dim vocab_size seq_len".split()
SIZES += "position_offset token_types".split()


def available(device="cpu"):
    """Bytes that can be had, on the device or on the machine; in a container, of its share."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info()[0]
    free = psutil.virtual_memory().available
    for names in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        try:
            most, used = (int(Path("/sys/fs/cgroup", name).read_text()) for name in names)
            free = min(free, max(0, most - used))
        except (OSError, ValueError):  # there is no such file, or it says "max"
            pass
    return free


def require(need, what, device="cpu"):
    """Exit where there are not so many bytes. Pages of the disk's cache count as used, so that twice as many may do."""
    have = available(device)
    if need > 2 * have:
        sys.exit(f"{what} needs at least {gigabytes(need)} of memory, and {gigabytes(have)} are free; make it smaller")


def gigabytes(n):
    return f"{n / 1e9:,.1f} GB" if n < 1e15 else f"{n / 1e9:.1e} GB"


def parameters(c):
    """How many numbers a Transformer of this Config holds, num_params() without building it."""
    q, kv, norm = c.n_head * c.head_dim, c.n_kv_head * c.head_dim, c.n_embd * (1 + c.norm_bias)
    gated, table = c.mlp in ("swiglu", "geglu"), c.vocab_size * c.n_embd
    attention = c.n_embd * (2 * q + 2 * kv) + c.qkv_bias * (q + 2 * kv) + c.out_bias * c.n_embd
    attention += 2 * c.head_dim * c.qk_norm
    mlp = (2 + gated) * c.n_embd * c.mlp_dim + c.mlp_bias * ((1 + gated) * c.mlp_dim + c.n_embd)
    mixture = c.n_embd * (c.experts * (1 + (2 + gated) * c.expert_dim) + (2 + gated) * c.shared_dim)
    dense = min(c.dense_layers, c.n_layer) if c.experts else c.n_layer
    mlps = dense * mlp + (c.n_layer - dense) * (mixture + c.router_bias * c.experts)
    blocks = c.n_layer * (attention + 2 * norm) + mlps - (not c.norm_first) * norm
    tables = table + c.token_types * c.n_embd
    tables += (c.position == "learned") * (c.seq_len + c.position_offset) * c.n_embd
    head = (not c.tied) * table + c.head_bias * c.vocab_size + (not c.norm_after) * norm
    head += (c.head_dense != "none") * (c.n_embd**2 + (c.head_dense == "bias") * c.n_embd + norm)
    return tables + c.norm_embed * norm + blocks + head


def sizes(c):
    """The sizes of a Config, in words."""
    return ", ".join(f"{name}={getattr(c, name)}" for name in SIZES if getattr(c, name))


def fits(config, files, where):
    """Exit where a config.json describes a network with more numbers than its weights' files have bytes: before it is
    built, as building a billion layers takes days."""
    count, held = parameters(config), sum(file.stat().st_size for file in files if file.is_file())
    if count > 4 * held + 10**7:  # less is told better by what does not fit, or by a file that was cut
        sys.exit(
            f"{where} describes a network of {count:,} parameters ({sizes(config)}), but its weights' files have "
            f"{held:,} bytes; one of the two is not the checkpoint's own"
        )


def to_train(count, s, config, seq_len, rows, device):
    """Exit where a run (train.Settings) cannot fit: at least its weights with their gradients and what the optimiser
    keeps, and of a micro-batch the ids and what each layer keeps for its gradient, all in as few bytes as may be."""
    kept = 4 + (0 if s.lora_r else 4 + 4 + 4 * bool(s.ema))
    need = kept * count // (int(os.environ.get("WORLD_SIZE", 1)) if s.sharding == "fsdp" else 1)
    require(need, f"training {count:,} parameters ({sizes(config)})", device)
    per_token = 8 + 2 * config.n_layer * config.n_embd
    what = f"a micro-batch of batch_size={s.batch_size} windows of seq_len={seq_len} tokens"
    require(s.batch_size * seq_len * per_token, what, device)
    what = f"an iteration of {rows:,} rows (batch_size x gradient_accumulation_steps={s.gradient_accumulation_steps})"
    require(rows * 24, what)  # a time, a window and a place for each


def to_sample(rows, tokens, config, device):
    """Exit where so many canvases of so many tokens cannot fit: at least their ids and one hidden state of each."""
    what = f"{rows:,} samples of {tokens:,} tokens (num_samples; --infill, --prompt, max_new_tokens)"
    require(rows * tokens * (8 + 2 * config.n_embd), what, device)
