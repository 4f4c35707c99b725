"""What tokens are for, settled when a released tokenizer is given to a diffusion model: which one is the mask, what
ends an answer, how a conversation is written."""

import json
import re
import shutil
from pathlib import Path

import torch

from nanodlm.tokenizer import PLAIN_TEMPLATE, hf_tokenizer, read_hf, read_json

# How a token is written that is none of people's words: what a new mask token must look like, and a reserved one that
# the tokenizer does not call special.
A_MASK = re.compile(r"<\|\S+\|>|[<\[]+mask[\]>]+", re.IGNORECASE)
A_MARK = re.compile(r"[<\[]\S+[\]>]")


def role_of(hf, tokenizer, i):
    """What the token of id i is there for, in words, where text or a template can have it; "" where it is reserved."""
    token, added = hf.convert_ids_to_tokens(i), hf.added_tokens_decoder.get(i)
    if i in tokenizer.stop_ids:
        return "what ends a text or a turn"
    for name in ("bos", "eos", "sep", "cls", "pad", "unk"):
        if i == getattr(hf, f"{name}_token_id"):
            return f"its {name}_token"
    if i in tokenizer.frame[0] + tokenizer.frame[1]:
        return "what it puts around every text"
    marks = str(hf.chat_template or "")
    said = [{"role": role, "content": "a"} for role in ("system", "user", "assistant")]
    for turns in (said, said[1:]) if tokenizer.template else ():  # some put a mark together, of "<|" and a role
        try:
            marks += tokenizer.template(turns, True)
        except Exception:  # whatever a template says to a system prompt
            continue
    if token and token in marks and (added or len(token) > 1):
        return "a mark of its chat template"
    if token and not (added and (added.special or A_MARK.fullmatch(token))):
        return "a token of ordinary text"
    return ""


def add_mask(hf, target, token):
    """The tokenizer with one more token, of an id that nobody has. Where ids have holes, transformers, which counts
    tokens, would take a word's; then the id is written into the vocabulary."""
    if not A_MASK.fullmatch(token):
        raise ValueError(f"mask_token={token!r} may stand in a text; name one as no text has it, such as <|mask|>")
    taken = hf.get_vocab()
    hf.add_special_tokens({"mask_token": token})
    if hf.mask_token_id not in taken.values():
        return hf
    named = next(t for t, i in taken.items() if i == hf.mask_token_id)
    hf.save_pretrained(target)
    file = Path(target) / "tokenizer.json"
    core = read_json(file)
    if not isinstance(core.get("model", {}).get("vocab"), dict):
        raise ValueError(f"the id after the last, {hf.mask_token_id}, is that of {named!r}; name a reserved token")
    core["model"]["vocab"][token] = 1 + max(taken.values())
    core["added_tokens"] = [t for t in core["added_tokens"] if t["content"] != token]
    file.write_text(json.dumps(core), encoding="utf-8")
    hf = read_hf(Path(target))
    hf.add_special_tokens({"mask_token": token})
    return hf


def changed_rows(model, kept, mask_id):
    """The ids of tokens, but for the mask's, whose rows are not bit for bit those of `kept`, {name of a table: its copy
    from before}."""
    rows = {name: model.get_parameter(name)[: len(old)] for name, old in kept.items()}
    changed = [(rows[name] != old).any(1).nonzero()[:, 0] for name, old in kept.items()]
    return sorted({*torch.cat(changed).tolist()} - {mask_id})


def settle(source, target, content, mask_token=None):
    """Write a released tokenizer to the directory `target` with all that a diffusion model needs, and return the
    config.json that says so: a mask token (added as `mask_token` where there is none), an end-of-text, a pad and a chat
    template. ValueError where one cannot be had. Prints what it settled."""
    hf, was, content = read_hf(source), hf_tokenizer({"kind": "hf"}, source), dict(content)
    mask_id, eos_id = was.mask_id, was.eos_id
    if hf.mask_token is None and mask_token in hf.get_vocab():
        mask_id = hf.get_vocab()[mask_token]
    if mask_id is None and mask_token is None:
        raise ValueError(f"the tokenizer in {source} has no mask token, so this is no masked language model")
    if mask_id is None:
        hf = add_mask(hf, target, mask_token)
        mask_id = hf.mask_token_id
    elif role := role_of(hf, was, mask_id):
        chosen = mask_id != was.mask_id  # by a person; or else the files say so
        where = "by --mask_token" if chosen else "as mask_token in tokenizer_config.json, and none in config.json"
        raise ValueError(
            f"{hf.convert_ids_to_tokens(mask_id)} cannot be the mask: in the tokenizer in {source} it is {role}; name "
            f"a reserved token, or a new one such as <|mask|>, {where}"
        )
    elif mask_token in hf.get_vocab() and hf.mask_token is None:
        hf.add_special_tokens({"mask_token": mask_token})
    if eos_id is None or hf.eos_token is None and hf.sep_token is not None and eos_id == hf.pad_token_id:
        token = hf.sep_token or hf.pad_token
        if token is None:
            raise ValueError(
                f"the tokenizer in {source} has no end-of-text, separator or pad to end an answer with; name one of "
                "its tokens as eos_token in tokenizer_config.json"
            )
        eos_id = hf.convert_tokens_to_ids(token)
    end = hf.convert_ids_to_tokens(eos_id)
    hf.eos_token = hf.eos_token or end
    hf.pad_token = hf.pad_token or hf.eos_token
    template = "its own"
    if not hf.chat_template:
        begin = hf.convert_ids_to_tokens(list(was.frame[0]))
        hf.chat_template = PLAIN_TEMPLATE.replace("BEGIN", "".join(begin)).replace("END", end)
        template = "plain text"
    hf.save_pretrained(target)
    if (Path(source) / "generation_config.json").is_file():  # which may name more tokens that end an answer
        shutil.copyfile(Path(source) / "generation_config.json", Path(target) / "generation_config.json")
    content["mask_token_id"] = mask_id
    if content.get("eos_token_id") is None:
        content["eos_token_id"] = eos_id
    (Path(target) / "config.json").write_text(json.dumps(content))
    new = hf_tokenizer({"kind": "hf"}, Path(target))
    probe = "The quick brown fox: x = 3.14;\n\tHallo, Welt!"
    if new.encode(probe) != was.encode(probe):
        raise ValueError(f"the tokenizer in {source} does not survive being written by transformers")
    print(f"mask token      {hf.convert_ids_to_tokens(mask_id)} ({mask_id})")
    print(f"end of answers  {' or '.join(hf.convert_ids_to_tokens(list(new.stop_ids)))}, filled with {end} ({eos_id})")
    print(f"chat template   {template}")
    return content
