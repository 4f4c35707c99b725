"""Edits that move tokens: LLaDA2.2's keep, substitute, delete and insert (github.com/inclusionAI/LLaDA2.X, its
technical report, section 3.1), as SGLang decides them (srt/dllm/algorithm/joint_threshold_indel.py).

Two tokens of the vocabulary, edit_ids, are no text. Written where a token stands, the first deletes it, and what is
behind it in the block moves up; the second opens a place before it, a mask. The block keeps its length: masks are
appended, or its end is cut off. All else is as edit_threshold has it (decode.py), but that masks which came so do not
hold the block up: beside one of the masks that it began with, as many are revealed as have come; once those are gone,
all. And a block that was the same before would go round in circles: the least sure of its changes becomes another.
"""

from dataclasses import dataclass, field

import torch

from nanodlm.choice import look, top_per_row


@dataclass
class Block:
    """What is remembered of a row's block from step to step."""

    begun: list[bool]  # the place is one that it began with, however it has moved since
    steps: int = 0
    full: int = 0  # steps that began without any of its first masks
    seen: set = field(default_factory=set)  # what it was before each step
    tried: dict = field(default_factory=dict)  # position: the tokens written there
    done: bool = False


def edit(tokens, best, sure, other, block, size, options, mask_id):
    """What a block (its ids, a list) is after a step; `block` remembers.

    best, sure  the network's token of each position, and how sure it is
    other       (position, ids) -> its best token that is none of these"""
    o, places = options, range(len(tokens))
    hidden = [i for i in places if tokens[i] == mask_id]
    first = [i for i in hidden if block.begun[i]]
    block.steps += 1
    block.full += not first
    last = block.steps > size + o.edit_steps or not first and block.full >= o.edit_steps
    reveal = hidden
    if first and not last:
        need = 1 + len(hidden) - len(first)
        reveal = [i for i in hidden if sure[i] >= o.threshold]
        if len(reveal) < need:
            score = torch.tensor([sure[i] if i in hidden else -torch.inf for i in places])
            reveal = top_per_row(score[None], torch.tensor([need]))[0].nonzero()[:, 0].tolist()
        if not o.edit_steps and set(first) <= set(reveal):
            last, reveal = True, hidden
    change = [i for i in places if i not in hidden and best[i] != tokens[i] and sure[i] > o.edit_threshold]
    new = {i: best[i] for i in reveal + change}
    block.done = last or not new
    moving = [i for i in new if new[i] != tokens[i]]
    if last:
        new |= {i: other(i, o.edit_ids) for i in new if new[i] in o.edit_ids}
    elif tuple(tokens) in block.seen and moving:
        i = min(moving, key=lambda i: sure[i])
        new[i] = other(i, block.tried.get(i, ()))
    block.seen.add(tuple(tokens))
    for i, token in new.items():
        block.tried.setdefault(i, set()).add(token)
    delete, insert = o.edit_ids
    out = []
    for i in places:
        token = new.get(i, tokens[i])
        out += [(mask_id, False)] if token == insert else []
        out += [(tokens[i] if token == insert else token, block.begun[i])] if token != delete else []
    out = (out + [(mask_id, False)] * len(tokens))[: len(tokens)]
    block.begun = [begun for _, begun in out]
    return [token for token, _ in out]


def check(options, given, hole):
    """Refuse prompts (bool (B, L)) in which something given stands behind a hole: it would be moved."""
    behind = given & (hole.cumsum(1) > 0)
    if options.edit_ids and behind.any():
        raise ValueError("edit_ids would move given tokens: a prompt may have no holes before its end")


def choose(model, read, looked, old, options, mask_id, blocks, r):
    """choice.choose for edit_ids: where the blocks of rows r change (bool, R, W), to which tokens, and with which
    probabilities (0 of what has only moved), both (n,). `blocks` remembers them, a Block or None per row."""
    dtype, begin = next(model.parameters()).dtype, 0
    new, p = old.clone(), torch.zeros(old.shape)
    for i in looked.any(1).nonzero()[:, 0].tolist():
        where = looked[i].nonzero()[:, 0]
        index, before, begin = begin + torch.arange(len(where)), old[i, where].tolist(), begin + len(where)
        best, sure, chance = (v.cpu() for v in look(read(index), None, options, mask_id, dtype, True))

        def other(j, ids, index=index):
            logits = read(index[j : j + 1])[0]
            logits[[mask_id, *options.suppress, *ids]] = -torch.inf
            return int(logits.argmax())

        row = int(r[i])
        block = blocks[row] = blocks[row] or Block([token == mask_id for token in before])
        after = edit(before, best.tolist(), sure.tolist(), other, block, looked.shape[1], options, mask_id)
        new[i, where] = torch.tensor(after)
        p[i, where] = torch.where(new[i, where] == best, chance.float(), 0.0)
    changed = new != old
    return changed, new[changed], p[changed]


def done(blocks, r):
    """Which of rows r are done with their block, bool (R,); those are forgotten."""
    over = torch.tensor([blocks[row].done for row in r.tolist()])
    for row in r[over].tolist():
        blocks[row] = None
    return over
