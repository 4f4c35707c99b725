"""Block diffusion language models (BD3LM, arXiv 2503.09573): what differs from mdlm.py, and only that.

The idea in five lines. Cut a text into blocks of `block_size` tokens. Blocks follow each other from left to right, as
tokens do in an autoregressive model; within a block, tokens are hidden and revealed as in masked diffusion:
log p(x) = sum over blocks b of log p(x^b | x^{<b}) (eq. 4), each bounded by a NELBO of its own (eq. 6). Block size 1 is
autoregression, block size L is masked diffusion. What it buys: texts of any length, and a KV cache that is exact,
because a finished block sees nothing of what comes after it.

    python bd3lm.py      trains and samples something tiny, and says what it does

1 who sees whom · 2 loss · 3 bound · 4 sampling · 5 likelihood · 6 tutorial

As in mdlm.py, everything is plain; nanodlm/fast_bd3lm.py has the cache, ragged batches and every option.
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F

import mdlm
from mdlm import LikelihoodOptions, Output
from model import Config, Transformer
from nanodlm import cross_entropy, noise
from nanodlm.attention import as_masks
from nanodlm.bounds import Amount, Size, Whole
from nanodlm.guard import evaluating

CAUSAL = False  # attention is causal between blocks, which the masks below say
PASSES = 2  # a training step takes nearly two passes over the text

# ---- 1 · who sees whom ---------------------------------------------------------------------------------------------
#
# All blocks of a text are trained in one pass over [x_t ; x_0]: first the noised text, then the clean one, both at
# positions 0…L-1. Nobody reads the last clean block, so it is left out; with one block that is masked diffusion.
#
# A shifted network (config.shift), in which output i - 1 predicts token i, is an autoregressive one that also reads
# masks (I-DLM, arXiv 2604.11035): everyone sees itself and what comes before it, and an input is of the block of the
# token that it predicts. So a block is noised from the token before it on, clean, to its last but one. Where it sees
# all of its block (config.two_way; Fast-dLLM v2, arXiv 2509.26328), the clean block before predicts a block's first.
#
# In a causal network (config.causal) that is none of these, clean text alone sees only what comes before it, and says
# the next token; the rest is as above (Nemotron-Labs-Diffusion, arXiv 2607.05722). It is an autoregressive one, too.


def sees(block_q, clean_q, block_k, clean_k):
    """Whether a query in block_q of the clean or the noised half attends to a key in block_k (BD3LM, suppl. B.6)."""
    same = (block_q == block_k) & (clean_q == clean_k)  # everyone sees its own block, noised or clean as itself
    past = clean_k & (block_k < block_q)  # and the clean version of those before
    return same | past


def rule_of(length, block_size, shift, number=None, causal=False):
    """(row, head, query, key) -> bool for a pass over `length` noised tokens and the clean ones after them. Of several
    texts in a row (number, int64 (B, L): batches.Texts') nobody sees another."""

    def rule(b, h, q, k):
        clean_q, clean_k = q >= length, k >= length
        q, k = q - length * clean_q, k - length * clean_k
        seen = sees((q + shift) // block_size, clean_q, (k + shift) // block_size, clean_k)
        seen = seen & (k <= q) if shift else seen & ((k <= q) | ~clean_q) if causal else seen
        return seen if number is None else seen & (number[b, q] == number[b, k])

    return rule


@functools.lru_cache(maxsize=64)
def attention(length, block_size, device, kind, shift=False, whole=False, causal=False):
    """The masks of one pass, (all layers, the last layer): there, the clean half is only seen. For kinds of masks see
    nanodlm/attention.py; whole: the last clean block is there, too."""
    both = length + (length if whole else clean_length(length, block_size))
    if both == length and not shift and not causal:
        return None, None  # one block: everyone sees everyone
    return as_masks(rule_of(length, block_size, shift, causal=causal), None, (both, length), both, device, kind)


def clean_length(length, block_size):
    """Tokens of the clean half that somebody sees: all but the last block."""
    return (length - 1) // block_size * block_size


def predict(model, xt, x0, rows, block_size, mask_id, texts=None, targets=None, clean=None):
    """Logits (N, V), at least fp32, at the flat indices `rows` into the noised text xt (B, L), each block given the
    blocks of x0 before it; the mask's is excluded. With targets (N,), their -log p. Padding after a single text
    (batches.Texts) is in blocks of its own, which nobody sees. With `clean`, flat indices into x0 that are no row's
    first, the same of these tokens follows, each given the clean text before it."""
    B, L = xt.shape
    network = getattr(model, "module", model)  # .module: of DDP
    config, packed = network.config, texts is not None and texts.packed
    shift, two_way, causal = config.shift and not config.two_way, config.shift and config.two_way, config.causal
    if config.shift and block_size == 1:
        raise ValueError("block_size=1 of a shifted network is autoregression: use ar.py, or at least 2")
    if clean is not None and not shift and not causal:
        raise ValueError("clean_weight is of a shifted network, or a causal one: else clean tokens see their block")
    number, position = None, torch.arange(L, device=xt.device).expand(B, -1)
    if packed:
        number, position = (x.repeat(B // len(x), 1) for x in (texts.number, texts.position))  # complementary masks: 2
    if shift:  # the token before a block is clean, and none of the block that it ends
        before = torch.arange(1, L + 1, device=xt.device) % block_size == 0
        xt = torch.where(before, x0, xt)
    if hasattr(network, "apart") and shift and clean is None:  # nanodlm/gated.py: the clean half is nobody's to learn
        return network.apart(model, xt, x0, rows, block_size, mask_id, number, position, targets)
    flex = xt.is_cuda and not config.dropout and config.head_dim >= 16  # which FlexAttention needs
    kind = "dense" if config.window else "flex" if flex else "tiles"
    if two_way:  # the first token of a block is asked of the clean half, at which the one before it has seen its block
        at, column = rows + rows // L * L, rows % L
        rows, clean = at + L * ((column > 0) & (column % block_size == 0)), rows[:0]
    n = L if packed or clean is not None else clean_length(L, block_size)  # packed: each text has a last block
    if packed:
        rule, kind = rule_of(L, block_size, shift, number, causal), "dense" if kind == "tiles" else kind
        mask = as_masks(rule, B, (2 * L, L), 2 * L, xt.device, kind)
    else:
        mask = attention(L, block_size, xt.device, kind, shift, clean is not None, causal)
    if clean is not None:  # then both halves go on after the last attention
        clean = clean + clean // L * L + L - int(not shift)  # where it is said, which a shifted network knows
        rows = rows if two_way else torch.cat([rows + rows // L * L, clean])
        mask = (mask[0], mask[0])
    ids, positions = torch.cat([xt, x0[:, :n]], 1), torch.cat([position, position[:, :n]], 1)
    return cross_entropy.nll(model, targets, mask_id, ids, mask=mask, positions=positions, rows=rows)


def hidden_nll(model, xt, x0, hidden, block_size, mask_id, texts=None, clean=None):
    """-log p(x_0^b | x_t^b, x_0^{<b}) at the hidden tokens (BD3LM, eq. 8), fp32 (N,), in row-major order; after them
    -log p(x_0^i | x_0^{<i}) at those of `clean` (bool (B, L))."""
    rows, clean = (x if x is None else x.flatten().nonzero()[:, 0] for x in (hidden, clean))
    targets = x0.flatten()[rows if clean is None else torch.cat([rows, clean])]
    return predict(model, xt, x0, rows, block_size, mask_id, texts, targets, clean)


def to_blocks(x, size):
    """(B, L) as (B * blocks, size); what the last block lacks is 0 or False."""
    return F.pad(x, (0, -x.shape[1] % size)).view(-1, size)


def from_blocks(x, length):
    """The inverse of to_blocks."""
    return x.reshape(-1, -(-length // x.shape[1]) * x.shape[1])[:, :length]


# ---- 2 · loss ------------------------------------------------------------------------------------------------------


@dataclass
class LossOptions(mdlm.LossOptions):
    block_size: Size = 16  # tokens of a block; the last block of a text may be shorter
    clip: Literal["fixed", "adaptive"] = "fixed"  # adaptive: t_min and t_max slide to where the loss varies least
    clean_weight: Amount = 0.0  # shifted, causal: times the clean half's own cross entropy, the next token's (I-DLM)

    def __post_init__(self):
        super().__post_init__()
        if self.see_ahead < 1:
            raise ValueError("bd3lm sees ahead by growing blocks, as in stages=500:block_size=8, not by see_ahead")
        if self.clip == "adaptive" and self.objective != "nelbo":
            raise ValueError("clip=adaptive compares the variance of the bound: use objective=nelbo")
        if self.clip == "adaptive" and not 0 < self.t_max - self.t_min < 1:
            raise ValueError("clip=adaptive slides a part of [0, 1]: give one, such as t_min=0.45 and t_max=0.95")


def corrupt(maskable, options, seed, first, total):
    """mdlm.corrupt where every block is a row of its own: its own t, stratified over all blocks of the global batch.
    Bool (B, L) and the weights, float64 (B, L) (BD3LM, alg. 1)."""
    size, L = options.block_size, maskable.shape[1]
    n = -(-L // size)
    hidden, weight = mdlm.corrupt(to_blocks(maskable, size), options, seed, first * n, total * n)
    return from_blocks(hidden, L), from_blocks(weight.expand_as(hidden), L)


def loss(model, x0, options=LossOptions(), *, mask_id, maskable=None, seed=0, shard=None, denominator=None, texts=None):
    """The training loss in nats per token, a scalar; the arguments are mdlm.loss's. Texts, where there are some, must
    begin at multiples of block_size, and so must padding. BD3LM, eq. 8."""
    size = options.block_size
    if maskable is None:
        maskable = torch.ones_like(x0, dtype=torch.bool)
    if texts:
        hidden, weight = texts.corrupt(corrupt, maskable, options, seed)
    else:
        hidden, weight = corrupt(maskable, options, seed, *(shard or (0, len(x0))))
    x0 = torch.cat([x0, x0]) if options.complementary else x0
    weight, clean = weight[noise.home(hidden)], None  # before the network, as in mdlm.loss
    if options.clean_weight:
        clean = maskable.repeat(len(x0) // len(maskable), 1).index_fill(1, maskable.new_zeros(1).long(), False)
        its = options.clean_weight * len(maskable) / len(x0)
        weight = torch.cat([weight, weight.new_full((int(clean.sum()),), its)])
    nll = hidden_nll(model, torch.where(hidden, mask_id, x0), x0, hidden, size, mask_id, texts, clean)
    return (weight.to(nll) * nll).sum() / (maskable.sum() if denominator is None else denominator)


@evaluating()
def adapt(model, windows, options, *, mask_id, seed=0):
    """clip=adaptive: {"t_min", "t_max"}, as far apart as they are, where the blocks' loss varies least (BD3LM, section
    5.3), from an iterable of (x0, maskable). One sweep over t in [0, 1] measures all intervals: what fell into an
    interval is a sample of the loss with t uniform there."""
    if options.clip == "fixed":
        return {}
    free = replace(options, clip="fixed", t_min=0.0, t_max=1.0, t_shape="uniform", complementary=False)
    width, size, times, losses = options.t_max - options.t_min, options.block_size, [], []
    for i, (x0, maskable) in enumerate(windows):
        blocks = to_blocks(torch.ones_like(x0, dtype=torch.bool) if maskable is None else maskable, size)
        hidden, weight = mdlm.corrupt(blocks, free, noise.fold(seed, i), 0, len(blocks))
        hidden = from_blocks(hidden, x0.shape[1])
        nll = hidden_nll(model, torch.where(hidden, mask_id, x0), x0, hidden, size, mask_id)
        ce = noise.home(torch.zeros_like(x0, dtype=nll.dtype).masked_scatter_(hidden, nll)).double()
        times.append(noise.stratified(noise.fold(seed, i), len(blocks), ce.device, free.low_discrepancy))
        losses.append(to_blocks(ce, size).sum(1) * weight[:, 0])
    t, value = torch.cat(times), torch.cat(losses)

    def variance(low):
        inside = value[(t >= low) & (t <= low + width)]
        return inside.var().item() if len(inside) > 1 else math.inf

    lows = [options.t_min, *(0.05 * k for k in range(int((1 - width) / 0.05 + 1e-6) + 1))]
    low = min(lows, key=variance)
    return {"t_min": low, "t_max": min(1.0, low + width)}


# ---- 3 · bound -----------------------------------------------------------------------------------------------------


def trained_block_size(model):
    if not model.config.block_size:
        raise ValueError("this network was not trained on blocks: set block_size, of generate, or config.block_size")
    return model.config.block_size


@evaluating("config.block_size", "config.seq_len", "config.window")
def nelbo(model, x0, *, mask_id, maskable=None, real=None, samples=1, seed=0, first=0):
    """An unbiased estimate of each row's NELBO in nats, float64 (B,): over all t in [0, 1], one pass per sample. The
    arguments are mdlm.nelbo's; the fixed-count estimator is applied to every block by itself (BD3LM, eq. 8).

    Padding, which must be on the right, is read as masks: as text that is not known yet, as when generating."""
    B, L = x0.shape
    size = trained_block_size(model)
    real = torch.ones_like(x0, dtype=torch.bool) if real is None else real
    blocks = to_blocks(noise.home(real if maskable is None else maskable), size)
    block = torch.arange(len(blocks) // B, device=blocks.device)
    row = noise.home(first) if torch.is_tensor(first) else first + torch.arange(B, device=blocks.device)
    row, total = (row[:, None] + 1_000_003 * block).flatten(), 0.0  # a number of its own for every block
    for j in range(samples):
        hidden, weight = mdlm.nelbo_masks(blocks, row, j, samples, seed)
        hidden, weight = from_blocks(hidden, L).to(x0.device), from_blocks(weight[:, None].expand_as(hidden), L)
        nll = hidden_nll(model, torch.where(hidden | ~real, mask_id, x0), x0, hidden, size, mask_id)
        ce = noise.home(torch.zeros_like(x0, dtype=nll.dtype).masked_scatter_(hidden, nll)).double()
        total += (weight * ce).sum(1)
    return total / samples


# ---- 4 · sampling ---------------------------------------------------------------------------------------------------


@dataclass
class SampleOptions(mdlm.SampleOptions):
    block_size: Whole = 0  # tokens of a block; 0 means as trained
    window: Whole = 0  # a block sees this many tokens, its own included; 0 means the context it was trained on
    sub_block: Whole = 0  # reveal a block in parts of this many tokens, from left to right; 0 means all of it at once
    opening: Literal["rule", "next"] = "rule"  # next: a block's first token is a part of its own (Fast-dLLM v2)


def part_of(size, options):
    """Tokens of a part of a block."""
    if options.sub_block and size % options.sub_block:
        raise ValueError(f"sub_block={options.sub_block} must divide the block, {size} tokens")
    return options.sub_block or size


def whole_blocks(length, size, seq_len):
    """Where the block that holds a text's last token ends, as in training: a whole block, or the end of the context."""
    end = -(-length // size) * size
    return min(end, seq_len) if length <= seq_len else end


def logits_of(model, x, block, size, window, origin=0):
    """(block's positions, bool (L,), what mdlm.denoise asks for logits there): of the text x (L,) up to the block's
    end, where each block sees itself and those before it, `window` tokens at most. Block 0 begins at `origin`."""
    position, config = torch.arange(len(x), device=x.device), model.config
    i = position[: origin + (block + 1) * size]
    number = (i - origin) // size
    end = (origin + (number + 1) * size).clamp(max=len(x))[:, None]
    seen = number[:, None] >= number
    if config.causal or config.shift and not config.two_way:
        seen = i[:, None] >= i if config.shift else (i[:, None] >= i) | (number[:, None] == block)
    mask, mine = (seen & (i >= end - window))[None], (position - origin) // size == block
    return mine, lambda x, at: model(x[None, : len(i)], mask=mask.to(x.device), rows=at)


@evaluating("config.block_size", "config.seq_len", "config.window")
def generate(
    model, prompts, options=SampleOptions(), *, mask_id, eos_id=None, until=None, numbers=None, trace=False, watch=None
):
    """Continue or fill in each prompt (1-D int64 tensor) block by block; arguments and result are mdlm.generate's.

    Blocks lie where they lay in training, so a prompt's last tokens share a block with the first new ones; a causal
    network, which reads a prompt without blocks, begins them where the prompt ends. The prefix and the block go through
    the network at every step. A text may be longer than the context: what lies before the window is then out of sight.
    The steps are shared out over the blocks by their holes. BD3LM, alg. 2.

    until   called when a block is done: (the row so far, its prompt's length, how many are new, at most); true ends it
    """
    o, size, out = options, options.block_size or trained_block_size(model), Output([], [])
    window, part = o.window or model.config.seq_len, part_of(size, o)
    own = model.config.causal and not model.config.shift  # then what stands before a block can say its first token
    xs = [F.pad(noise.home(p).long(), (0, o.max_new_tokens), value=mask_id) for p in prompts]
    for i, (prompt, x) in enumerate(zip(prompts, xs)):
        hole, end, clock, forwards, events = x == mask_id, len(x), 0, 0, []
        origin = int(hole.long().argmax()) % size if own else 0
        parts, holes = ((hole.nonzero()[:, 0] - origin) // part).unique(return_counts=True)
        # What follows a text within its last block stays hidden for good: seen as masks, as in training.
        more = origin + whole_blocks(len(x) - origin, size, model.config.seq_len - origin) - len(x)
        canvas, hole = F.pad(x, (0, more), value=mask_id), F.pad(hole, (0, more))
        xs[i] = x = canvas[: len(x)]
        position = torch.arange(len(canvas)) - origin
        first = (position % size == 0) & (o.opening == "next")
        keys = dict(mask_id=mask_id, row=i if numbers is None else int(numbers[i]))
        for k, steps in zip(parts.tolist(), noise.shares(o.steps, holes).tolist()):
            _, logits_at = logits_of(model, canvas, k * part // size, size, window, origin)
            mine = hole & (position // part == k)
            for now, n in ((mine & first, 1), (mine & ~first, steps)):
                before = own and origin + k * part > 0 and bool((now & first).any())
                asked = (lambda x, at, ask=logits_at: ask(x, at - 1)) if before else logits_at
                for at, logp in mdlm.denoise(model, asked, canvas, now, o, steps=o.steps and n, **keys):
                    forwards += len(at) > 0
                    events += [(clock, *event) for event in zip(at.tolist(), x[at].tolist(), logp.exp().tolist())]
                    clock += 1
                    if watch is not None:
                        watch([x.clone() for x in xs])
            end, done = mdlm.end_of_text(x, hole[: len(x)], mask_id, eos_id), origin + (k + 1) * part
            if end < len(x) or until and k != parts[-1] and until(x[:done], len(prompt), part):
                end = min(end, done)
                break
        out.tokens.append(x[:end].to(prompt.device))
        out.num_forwards.append(forwards)
        out.trace += [events] if trace else []
    return out


# ---- 5 · likelihood -------------------------------------------------------------------------------------------------


@evaluating("config.block_size", "config.seq_len", "config.window")
def log_likelihood(model, prompts, targets, options=LikelihoodOptions(), *, mask_id, numbers=None):
    """log p(target | prompt) in nats for lists of 1-D int64 tensors, float64 (N,), one pair at a time: the sum over
    blocks of log p(x^b | x^{<b}) (BD3LM, eq. 4), each by mdlm.log_likelihood's methods."""
    size, seq_len, found = trained_block_size(model), model.config.seq_len, torch.zeros(len(prompts)).double()
    for i, (prompt, target) in enumerate(zip(prompts, targets)):
        length = len(prompt) + len(target)
        if length > seq_len:
            raise ValueError(f"a text of {length} tokens exceeds the context of {seq_len}; cut it into windows")
        x0 = F.pad(torch.cat([prompt, target]), (0, whole_blocks(length, size, seq_len) - length), value=mask_id)
        position = torch.arange(len(x0), device=x0.device)
        real, hidden = position < length, (position >= len(prompt)) & (position < length)
        if options.method == "nelbo":
            keys = dict(samples=options.mc_samples, seed=options.seed, first=i if numbers is None else int(numbers[i]))
            found[i] = -nelbo(model, x0[None], mask_id=mask_id, maskable=hidden[None], real=real[None], **keys)
            continue
        x, x0, hidden, position = map(noise.home, (torch.where(hidden, mask_id, x0), x0, hidden, position))
        for block in (position[hidden] // size).unique().tolist():
            mine, logits_at = logits_of(model, x, block, size, seq_len)
            mine &= hidden
            # As in mdlm.py: from left to right, each token is a hole of its own.
            for hole in [mine] if options.method == "confidence" else torch.diag(mine)[mine]:
                steps = mdlm.denoise(model, logits_at, x, hole, mask_id=mask_id, answer=x0)
                found[i] += sum(logp.sum().cpu() for _, logp in steps)
    return found


# ---- 6 · tutorial --------------------------------------------------------------------------------------------------


def tutorial(steps=350, samples=50):
    """Climb the ladder from autoregression to masked diffusion on a rule that a child sees at once."""
    torch.manual_seed(0)
    letters, L = "abcdefghijklmnopqrstuvwxyz_", 12
    mask_id = len(letters) - 1

    def runs(n, seed):  # "cdefghijklmn" or, as often, "nmlkjihgfedc": 52 possible rows
        start, way = ((noise.uniform(seed, i, torch.arange(n)) * k).long()[:, None] for i, k in ((0, 26), (1, 2)))
        return (start + (2 * way - 1) * torch.arange(L)) % 26

    def show(ids):
        return "".join(letters[i] for i in ids)

    def ids(text):
        return torch.tensor([letters.index(c) for c in text], dtype=torch.int64)

    print("1. A text is cut into blocks, here three of 4 letters. All are trained in one pass over the noised text")
    print("    and the clean one. Who sees whom (rows see columns):\n")
    x0 = runs(1, 0)
    hidden = mdlm.corrupt(to_blocks(torch.ones_like(x0).bool(), 4), mdlm.LossOptions(), 1, 0, 3)[0]
    both = show(torch.where(from_blocks(hidden, L), mask_id, x0)[0]) + show(x0[0, : clean_length(L, 4)])
    print("      " + both)
    for letter, row in zip(both, attention(L, 4, x0.device, "dense")[0][0]):
        print(f"    {letter} " + "".join("#" if seen else "." for seen in row.tolist()))
    print("\n    Each block has its own t. A noised block sees itself and the clean text before it, never the answer.")

    def train(size):
        model = Transformer(Config(vocab_size=27, seq_len=L, block_size=size, n_layer=2, n_head=2, n_embd=64))
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for i in range(steps):
            optimizer.param_groups[0]["lr"] = 3e-3 * min(1, i / 50, 2 * (steps - i) / steps)
            options = LossOptions(block_size=size, t_min=1.0 if size == 1 else 0.0)
            value = loss(model, runs(64, noise.fold(1, i)), options, mask_id=mask_id, seed=noise.fold(2, i))
            optimizer.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return model.eval()

    best = torch.tensor(52.0).log().item()
    print(f"\n2. The ladder: the same network, {steps} steps on the same letters, blocks of 1 (autoregression) to {L}")
    print(f"    (masked diffusion). Nats a row, at least ln 52 = {best:.3f}; forwards to write a row where letters of")
    print("    which the network is sure (p >= 0.9) are revealed at once:")
    models = {}
    for size in (1, 4, L):
        models[size] = train(size)
        bound = nelbo(models[size], runs(256, 99), mask_id=mask_id, samples=4)
        o = SampleOptions(L, quota="threshold")
        out = generate(models[size], [ids("")] * samples, o, mask_id=mask_id)
        forwards = sum(out.num_forwards) / samples
        mean, error = bound.mean(), bound.std() / 16
        print(f"    blocks of {size:2}   NELBO {mean:6.3f} +- {error:.3f}   {forwards:4.1f} forwards")

    print("\n3. Sampling block by block; what is finished stays, so that its keys and values could be kept:")
    seen = []
    generate(models[4], [ids("")], SampleOptions(L), mask_id=mask_id, watch=lambda xs: seen.append(show(xs[0])))
    print("    " + " -> ".join(seen[1::2]))

    print(f"\n4. Beyond the {L} letters it was trained on, through a sliding window; the prompt's end shares a block:")
    out = generate(models[4], [ids("vwxyza")], SampleOptions(32, temperature=0.0), mask_id=mask_id)
    print(f"    vwxyza -> {show(out.tokens[0])}   in {out.num_forwards[0]} forwards")
    print("    Next: python train.py config/quickstart_bd3lm.py")


if __name__ == "__main__":
    tutorial()
