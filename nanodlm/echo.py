"""log p of each token of a text given those before it: what OpenAI's API calls the logprobs of an echoed prompt.

For masked and block diffusion, of the model that reveals a text from left to right: the sum over a text's end is what
log_likelihood says of it with method=left_to_right."""

import torch
import torch.nn.functional as F

import bd3lm
from model import fp32
from nanodlm.fast_bd3lm import whole_blocks
from nanodlm.guard import still
from nanodlm.noise import home

AT_ONCE = 16  # canvases per forward


def each_token(algorithm, model, ids, mask_id):
    """[(log p of the token, the likeliest one there, its log p)] of the ids of a text; None of a first token of which
    the model says nothing. `algorithm` is mdlm, bd3lm or ar; a masked one takes a forward per token, a block one as
    many as a block has tokens."""
    x = torch.tensor(ids, dtype=torch.int64, device=next(model.parameters()).device)
    T, at = len(x), torch.arange(len(x), device=x.device)
    if not T:
        return []
    if T > model.config.seq_len:
        raise ValueError(f"a text of {T} tokens exceeds the context of {model.config.seq_len}; shorten it")
    found = [None] * T
    with still(model):
        if algorithm == "ar":
            begin = [] if mask_id is None else [mask_id]
            inputs = torch.cat([x.new_tensor(begin), x[:-1]])
            if len(inputs):
                keep(found, at[T - len(inputs) :], x, model(inputs[None])[0], mask_id)
        elif algorithm == "bd3lm":
            size = bd3lm.trained_block_size(model)
            clean = F.pad(
                x[None], (0, int(whole_blocks(torch.tensor(T), size, model.config.seq_len)) - T), value=mask_id
            )
            place = torch.arange(clean.shape[1], device=x.device)
            for j in range(min(size, T)):
                rows = ((place % size == j) & (place < T)).nonzero()[:, 0]
                xt = torch.where((place % size >= j) | (place >= T), mask_id, clean)
                keep(found, rows, x, bd3lm.predict(model, xt, clean, rows, size, mask_id), mask_id)
        else:
            for i in at.split(AT_ONCE):
                canvases = torch.where(at >= i[:, None], mask_id, x)
                rows = torch.arange(len(i), device=x.device) * T + i
                keep(found, i, x, model(canvases, rows=rows), mask_id)
    return found


def keep(found, at, x, logits, mask_id):
    """Put what the logits (N, V) say of the tokens of x at the places (N,) into the list."""
    logits = fp32(logits)
    if mask_id is not None:
        logits = logits.index_fill(1, torch.tensor([mask_id], device=logits.device), -torch.inf)
    logp = home(logits).double().log_softmax(-1)
    own = logp.gather(1, home(x[at])[:, None])[:, 0]
    best = logp.max(1)
    for row in zip(at.tolist(), own.tolist(), best.indices.tolist(), best.values.tolist()):
        found[row[0]] = row[1:]
