"""What eval.py measures of one checkpoint: how likely texts are, what samples are worth, how many puzzles it solves."""

import importlib.util
import math
import sys
from dataclasses import replace

import numpy as np
import torch
from tqdm import tqdm

from nanodlm import algorithms, batches, configurator, conversations, corpus, presets
from nanodlm import checkpoint as ckpt
from nanodlm import tokenizer as tokenizers
from nanodlm.likelihood import mean_and_error, per_token
from nanodlm.noise import home


def likelihood(checkpoint, algorithm, s, seed, windows, meta, lengths=None):
    """NELBO (exact for AR) of each of the windows (N, seq_len), nats per token, (N,). Where there are lengths (N,),
    what stands behind so many tokens of a window is padding."""
    place = torch.arange(windows.shape[1], device=windows.device).expand_as(windows)
    real = None if lengths is None else place < lengths[:, None]
    maskable = place >= meta.get("prompt_len", 0)
    maskable = maskable if real is None else maskable & real
    nats = []
    for i in tqdm(range(0, len(windows), s.batch_size), desc="NELBO", disable=None, leave=False):
        part = slice(i, i + s.batch_size)
        keys = dict(mask_id=checkpoint.tokenizer.mask_id, samples=s.samples, seed=seed, first=i)
        keys["maskable"] = maskable[part]
        nats.append(algorithm.nelbo(checkpoint.model, windows[part], real=None if real is None else real[part], **keys))
    return per_token(torch.cat(nats), home(maskable).sum(1).double())


def answers_likelihood(checkpoint, algorithm, s, seed, dataset, device):
    """NELBO (exact for AR) of the answers in held-out conversations, and bits per byte for each nat per token. What
    stands behind an answer is measured with it, as in training."""
    facts, tokenizer, seq_len = checkpoint.facts, checkpoint.tokenizer, window(checkpoint)
    options = conversations.Options(**facts.get("chat", {}) | {"packing": False, "streaming": False})
    if options.fill is None:
        options.fill = 1 if algorithm.CAUSAL else checkpoint.model.config.block_size
    rows = batches.Conversations(dataset, tokenizer, checkpoint.files, seq_len, options, 0, "val").some(s.windows)
    nats = []
    for i in tqdm(range(0, len(rows), s.batch_size), desc="NELBO", disable=None, leave=False):
        n = min(s.batch_size, len(rows) - i)
        ids, learn, texts = batches.batch(rows, i, n, options, tokenizer.eos_id, seq_len)
        x, maskable, real = (torch.from_numpy(a).to(device) for a in (ids, learn, texts["number"] >= 0))
        keys = dict(mask_id=tokenizer.mask_id, maskable=maskable, real=real, samples=s.samples, seed=seed, first=i)
        nats.append(algorithm.nelbo(checkpoint.model, x, **keys))
    nats = torch.cat(nats).cpu()
    tokens = torch.tensor([batches.learnt_of(row[0][1]) for row in rows], dtype=torch.float64)
    return per_token(nats, tokens), 1 / math.log(2) / batches.bytes_per_token(rows, tokenizer)


def window(checkpoint):
    """Tokens of a window: what it was trained on, where that is less than its context."""
    return min(checkpoint.facts.get("seq_len", checkpoint.model.config.seq_len), checkpoint.model.config.seq_len)


def likelihood_options(algorithm, s, **said):
    """LikelihoodOptions, in batches of s.batch_size where the algorithm makes batches."""
    batch = {"batch_size": s.batch_size} if hasattr(algorithm.LikelihoodOptions, "batch_size") else {}
    return algorithm.LikelihoodOptions(**said, **batch)


def check_chain_rule(path, algorithm, methods):
    """Exit where an algorithm, which is not exact anyway, has no such exact measure."""
    for method in () if algorithm.CAUSAL else methods:
        try:
            algorithm.LikelihoodOptions(method=method)
        except ValueError:
            sys.exit(f"chain_rule={method}: {path} is only bounded, as any token may change to the last; leave it out")


def chain_rule(checkpoint, algorithm, s, windows, method, meta, lengths=None):
    """Exact negative log likelihood of each window in one reveal order, nats per token, (N,)."""
    n = meta.get("prompt_len", 0)
    options = likelihood_options(algorithm, s, method=method)
    ends = [None] * len(windows) if lengths is None else lengths.tolist()
    given, rest = [x[:n] for x in windows], [x[n:end] for x, end in zip(windows, ends)]
    logp = algorithm.log_likelihood(checkpoint.model, given, rest, options, mask_id=checkpoint.tokenizer.mask_id)
    return per_token(-logp, torch.tensor([len(x) for x in rest], dtype=logp.dtype, device=logp.device))


def room(options, checkpoint):
    """Tokens of a sample: as many as asked for, where the context has room for them."""
    return min(options.max_new_tokens, checkpoint.model.config.seq_len)


def sample_quality(checkpoint, algorithm, options, s, windows, j, device):
    """What samples from nothing are worth, a dict: quality()'s of their tokens, and forwards."""
    empty, out = torch.empty(0, dtype=torch.int64, device=device), []
    options = replace(options, max_new_tokens=room(options, checkpoint))
    for i in range(0, s.num_samples, s.batch_size):
        numbers = torch.arange(i, min(i + s.batch_size, s.num_samples))
        keys = dict(mask_id=checkpoint.tokenizer.mask_id, numbers=numbers)
        out.append(algorithm.generate(checkpoint.model, [empty] * len(numbers), options, **keys))
    tokens = [x for part in out for x in part.tokens]
    forwards = sum(sum(part.num_forwards) for part in out) / len(tokens)
    facts = {"forwards_per_sample": forwards, "tokens": options.max_new_tokens, "dtype": s.dtype}
    held = windows[: len(tokens), : options.max_new_tokens] if j else []
    return facts | quality(checkpoint, tokens, held, s, j, device)


def quality(checkpoint, tokens, held, s, j, device):
    """What texts, 1-D int64 tensors, are worth, a dict: the entropy of the token frequencies within each (nats; low
    means repetitive), and under a judge j their perplexity and MAUVE against others (arXiv 2102.01454). Low perplexity
    alone is no praise: text that repeats itself has it, too."""
    p = [torch.bincount(x.cpu()).double() / max(1, len(x)) for x in tokens]  # a text may have come out empty
    nats = torch.stack([-torch.special.xlogy(q, q).sum() for q in p])
    mean, error = mean_and_error(nats)
    facts = {"nats": mean, "error": error}
    if j:
        facts["entropies"] = nats.tolist()
        facts["texts"], held = ([checkpoint.tokenizer.decode(x.tolist()) for x in some] for some in (tokens, held))
        facts |= judge(facts["texts"], held, s, j, device)
    return facts


def read_judge(s, checkpoints, device):
    """The checkpoint s.judge; exits where it cannot judge what these may write."""
    j = ckpt.load(s.judge, device)
    if not algorithms.load(j.algorithm).CAUSAL:
        sys.exit(
            f"judge={s.judge} is decoded by {j.algorithm}; a judge is autoregressive, as openai-community/gpt2-large"
        )
    if j.tokenizer.mask_id is None and not j.tokenizer.frame[0]:
        tokenizers.end_of_text(j.tokenizer, f"judge={s.judge}, which has no begin-of-text,")
    if s.mauve and not importlib.util.find_spec("mauve"):
        sys.exit("--mauve needs a library: pip install mauve-text")
    for c in checkpoints:
        words = c.tokenizer.decode(list(range(c.tokenizer.vocab_size)))
        tokenizers.encode(j.tokenizer, j.tokenizer.escape(words), f"what {c.path} may write to the judge {s.judge}")
    return j


def judge(texts, held, s, j, device):
    """Perplexity of texts under the autoregressive model j, of all tokens behind a begin-of-text, in its own tokens;
    and with s.mauve how near they are to held-out texts, where there are any, by its last hidden states."""
    algorithm = algorithms.engine(algorithms.load(j.algorithm))
    begin = [] if j.tokenizer.mask_id is not None else list(j.tokenizer.frame[0]) or [j.tokenizer.eos_id]
    size = j.model.config.seq_len - len(begin)

    def tensor(ids):
        return torch.tensor(ids, dtype=torch.int64, device=device)

    ids = [tokenizers.encode(j.tokenizer, j.tokenizer.escape(text), "a sample") for text in texts]
    cut = [corpus.windows(x, size, begin) if x else [] for x in ids]
    pairs = [(tensor(given), tensor(predicted)) for parts in cut for given, predicted in parts]
    if not pairs:
        sys.exit("the samples are empty, so that there is nothing to judge")
    o = likelihood_options(algorithm, s)
    logp = iter(algorithm.log_likelihood(j.model, *zip(*pairs), o, mask_id=j.tokenizer.mask_id).tolist())
    nats, lengths = [-sum(next(logp) for _ in parts) for parts in cut], [len(x) for x in ids]
    some = [i for i, n in enumerate(lengths) if n]
    mean, error = mean_and_error(per_token(*(torch.tensor(v, dtype=torch.float64)[some] for v in (nats, lengths))))
    found = {"judge": s.judge, "perplexity": exp(mean), "perplexity_error": error and exp(mean) * error}
    found |= {"judged_nats": nats, "judged_tokens": lengths}
    if s.mauve and held:
        import mauve

        features, begin = [], begin or [j.tokenizer.mask_id]
        with torch.no_grad():
            for x in [*texts, *held]:
                x = tensor(
                    [*begin, *tokenizers.encode(j.tokenizer, j.tokenizer.escape(x), "a text")][: j.model.config.seq_len]
                )
                features.append(j.model.hidden(x[None], rows=tensor([len(x) - 1]))[0].float().cpu().numpy())
        n = len(texts)
        keys = dict(p_features=np.stack(features[n:]), q_features=np.stack(features[:n]), verbose=False)
        found["mauve"] = float(mauve.compute_mauve(**keys).mauve)
    return found


def solve(checkpoint, algorithm, options, s, dataset, meta, device):
    """Fraction of held-out puzzles solved exactly, its standard error, and forwards per puzzle."""
    rows = corpus.load_tokens(dataset, "val", meta)[: s.puzzles]
    rows = torch.from_numpy(rows.astype("int64"))
    n = meta["prompt_len"]
    options = replace(options, max_new_tokens=rows.shape[1] - n)
    right, forwards = [], 0
    for i in tqdm(range(0, len(rows), 100), desc="puzzles", disable=None, leave=False):
        batch = rows[i : i + 100]
        given = list(batch[:, :n].to(device))
        out = algorithm.generate(checkpoint.model, given, options, mask_id=checkpoint.tokenizer.mask_id)
        right += [torch.equal(a.cpu(), b) for a, b in zip(out.tokens, batch)]  # the solution is unique
        forwards += sum(out.num_forwards)
    p = sum(right) / len(right)
    return p, math.sqrt(p * (1 - p) / len(right)), forwards / len(right)


def exp(x):
    """Infinite where math.exp would raise: a network that is broken costs no result of the others."""
    return torch.tensor(x, dtype=torch.float64).exp().item()


def row(per_window, per_bit):
    """What the table shows of one measure; the values per window serve to compare checkpoints on the same windows."""
    nats, error = mean_and_error(per_window)
    return {
        "nats_per_token": nats,
        "nats_error": error,
        "bits_per_byte": nats * per_bit,
        "bits_error": error and error * per_bit,
        "perplexity": exp(nats),
        "windows": len(per_window),
        "bits_per_window": [round(x, 6) for x in (per_window * per_bit).tolist()],
    }


def sampling(values, path, checkpoint, algorithm):
    """The algorithm's SampleOptions, of the values of a command line; exits where they mean nothing to a checkpoint."""
    known = presets.part(values | presets.implied({}, values) | values, algorithm.SampleOptions)
    options = configurator.fill(known, algorithm.SampleOptions, quiet=True)
    presets.refuse_idle(options, known, checkpoint.model.config)
    if hasattr(algorithm.LossOptions, "block_size") and getattr(
        options, "block_size", 0
    ):  # its bound is of such blocks
        use_block_size(path, checkpoint.model.config, options.block_size)
    return options


def use_block_size(path, config, block_size):
    """Measure a network with another block size than it was trained with, but not without saying so."""
    if not 0 < block_size <= config.seq_len:
        sys.exit(f"block_size={block_size} does not fit the context of {config.seq_len} tokens of {path}")
    if config.block_size not in (0, block_size):
        print(f"warning: {path} was trained on blocks of {config.block_size} tokens, not {block_size}")
    config.block_size = block_size
