"""udlm.py made fast: ragged batches, a cache of finished blocks, and likelihoods of many texts at once."""

from dataclasses import dataclass
from types import SimpleNamespace

import torch
import torch.nn.functional as F

import mdlm
import udlm
from nanodlm import decode, fast_bd3lm, fast_mdlm
from nanodlm.bounds import Size
from nanodlm.guard import evaluating
from nanodlm.likelihood import portions
from nanodlm.noise import home, to, uniform
from udlm import CAUSAL, LossOptions, Output, SampleOptions, nelbo  # noqa: F401

READ = fast_bd3lm.SampleOptions()  # the readers' own options: nothing is guided or approximate here


@evaluating("hidden", "head", "config.mask_share", "config.vocab_size", "config.position")
def generate(
    model, prompts, options=SampleOptions(), *, mask_id, eos_id=None, until=None, numbers=None, trace=False, watch=None
):
    """udlm.generate for ragged rows, each at its own block and step, which leave the batch when they are finished.
    Arguments and result are the same; num_forwards counts the storing of a block, as in fast_bd3lm."""
    o, config = options, model.config
    if not any(len(p) + o.max_new_tokens for p in prompts):
        return Output([p.long() for p in prompts], [0] * len(prompts), [[] for _ in prompts])
    x, real = decode.pad([F.pad(p.long().cpu(), (0, o.max_new_tokens), value=mask_id) for p in prompts], mask_id)
    B, lengths, size = len(x), real.sum(1), config.block_size
    ends = -(-lengths // size) * size if size else lengths
    x = F.pad(x, (0, int(ends.max()) - x.shape[1]), value=mask_id)
    decode.check_length(model, x)
    at = torch.arange(x.shape[1])
    hole = (x == mask_id) & (at < ends[:, None])
    numbers = torch.arange(B) if numbers is None else numbers.cpu()
    blocks = [(h[:n].nonzero()[:, 0] // (size or len(at))).unique().tolist() for h, n in zip(hole, lengths.tolist())]
    x = torch.where(hole, udlm.replacement(uniform(o.seed, numbers[:, None], -1, 1, at), config, mask_id), x)
    if size:
        source = fast_bd3lm.Blocks(model, size, config.seq_len, READ, mask_id)
    else:
        source = fast_mdlm.Canvas(model, decode.SampleOptions(), mask_id)
    nothing = torch.zeros(0, dtype=torch.int64)
    source.enter(SimpleNamespace(x=x, hole=hole, lengths=lengths, room=ends, origin=0 * ends), nothing)
    eps = torch.finfo(next(model.parameters()).dtype).eps
    stop, step, best, clock = lengths.clone(), [0] * B, [None] * B, [0] * B
    forwards, events = torch.zeros_like(lengths), [[] for _ in prompts]
    while live := [i for i in range(B) if blocks[i]]:
        r = torch.tensor(live)
        start = torch.tensor([blocks[i][0] * size for i in live])
        position = start[:, None] + torch.arange(size or len(at))
        wanted = hole[r[:, None], position]
        read, more = source.logits_at(r, position, wanted)
        forwards[r] += 1 + more
        logits, over = home(read(slice(None))).split(wanted.sum(1).tolist()), []
        for i, mine, p, own in zip(live, logits, position, wanted):
            p, key = p[own], (o.seed, int(numbers[i]))
            z, steps = x[i, p], o.steps or len(p)
            given = (to(v, mine.device) for v in (z, p))
            tokens, logp, entropy = udlm.one_step(o, step[i], steps, mine, *given, eps, config, mask_id, *key)
            step[i] += 1
            settled, best[i] = udlm.settled(o, logp, entropy, best[i], step[i] == steps)
            x[i, p] = tokens = (best[i][0] if settled else tokens).cpu()
            changed = ((tokens != z) & (p < lengths[i])).nonzero()[:, 0]
            if trace and len(changed):
                chance = udlm.of(logp[to(changed, logp.device)], to(tokens[changed], logp.device)).exp()
                new = zip(p[changed].tolist(), tokens[changed].tolist(), chance.tolist())
                events[i] += [(clock[i], *event) for event in new]
            clock[i] += 1
            over += [i] if settled or step[i] == steps else []
        if watch is not None:
            watch([row[:n].clone() for row, n in zip(x, lengths)])
        for i in over:
            n, block = int(lengths[i]), blocks[i].pop(0)
            done = min(n, (block + 1) * size) if size else n
            step[i], best[i] = 0, None
            end = mdlm.end_of_text(x[i, :done], hole[i, :done], mask_id, eos_id)
            if end < done or until and done < n and until(x[i, :done], len(prompts[i]), size):
                stop[i], blocks[i] = end, []
    tokens = [row[:n].to(p.device) for row, n, p in zip(x, stop.tolist(), prompts)]
    return Output(tokens, forwards.tolist(), events if trace else [])


@dataclass
class LikelihoodOptions(udlm.LikelihoodOptions):
    batch_size: Size = 16  # texts per forward


@evaluating("config.mask_share", "config.vocab_size")
def log_likelihood(model, prompts, targets, options=LikelihoodOptions(), *, mask_id, numbers=None):
    """udlm.log_likelihood for ragged pairs, in batches; float64 (N,)."""
    out, size, device = [torch.zeros(0, dtype=torch.float64)], model.config.block_size, next(model.parameters()).device
    numbers = torch.arange(len(prompts)) if numbers is None else numbers.cpu()
    for part in portions(
        [torch.cat(pair) for pair in zip(prompts, targets)], options.batch_size, model.config.vocab_size
    ):
        pairs = list(zip(prompts, targets))[part]
        x0, real = decode.pad([torch.cat([p, t]).cpu() for p, t in pairs], 0)
        more = -x0.shape[1] % size if size else 0
        x0, real = F.pad(x0, (0, more)), F.pad(real, (0, more))
        decode.check_length(model, x0)
        lengths = torch.tensor([len(p) for p, _ in pairs])
        target = real & (torch.arange(x0.shape[1]) >= lengths[:, None])
        keys = dict(maskable=target.to(device), real=real.to(device), samples=options.mc_samples, seed=options.seed)
        out.append(-nelbo(model, x0.to(device), mask_id=mask_id, first=numbers[part], **keys).cpu())
    return torch.cat(out)
