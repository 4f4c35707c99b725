"""Parts of texts. A tokenizer's ids are those of a whole text: a part encoded or decoded by itself may lose a space, a
character or a merge, so that here alone is decided what the text of new tokens is, which ids are those of a
continuation, where a stop ends an answer, and what in a text was written by a person and what by a template.

1 the text of new tokens · 2 the ids of a continuation · 3 contents and markup
"""

import functools
import json
import os
import re
import secrets
import string

# ------------------------------------------------------------------------------------------------------------------
# 1 · the text of new tokens

CONTEXT = 32  # tokens in front of new ones that may decide how they are written: a space, the bytes of a character


def continuation(tokenizer, before, new):
    """How the text of the ids `before` goes on with the ids `new`: decode(before + new) minus decode(before).

    SentencePiece drops a text's first space and WordPiece joins words, so that new ids alone would give another text.
    A character that `before` holds in part is counted as new."""
    near = before[-CONTEXT:] if tokenizer.decode(before[-CONTEXT:]) else before
    old, whole = tokenizer.decode(near), tokenizer.decode([*near, *new])
    return whole[len(os.path.commonprefix([old, whole])) :]


def answer(tokenizer, before, new, stops=()):
    """(text, stopped): what the ids `new` say behind the ids `before`, up to the first of the strings `stops`, and
    whether one occurs. A stop may be, or hold, a control token's text, which the answer itself never shows; in a
    thought nothing stops."""
    shown, plain = spelled(tokenizer, before, new)
    first = int(tokenizer.joins and shown.startswith(" "))  # a space that no token holds is nobody's stop
    end = min((at for s in stops if s and (at := shown.find(s, first)) >= 0), default=None)
    if end is None:
        return "".join(text for _, text in plain), False
    return "".join(text[: max(0, end - at)] for at, text in plain), True


def is_of_next_word(tokenizer, text):
    """Whether the space that ends a text would be in the next word's first token, as in byte-level BPE, where no such
    word ever stood behind a space of its own; or has no token at all."""
    if tokenizer.spec["kind"] == "char":
        return False
    spaced = tokenizer.encode(text)
    if tokenizer.mask_takes_space or spaced == tokenizer.encode(text[:-1]):  # RoBERTa's mask: a space and a word
        return True
    return any(tokenizer.encode(text + letter)[: len(spaced)] != spaced for letter in string.ascii_lowercase)


def without_space(tokenizer, ids, left):
    """Those of the places, slices, of holes that a space in front was left to which do not begin with it."""
    return [hole for hole in left if not continuation(tokenizer, ids[: hole.start], ids[hole]).startswith(" ")]


def filled_in(tokenizer, ids, left):
    """The text of ids where holes were; `left`: see above."""
    word = tokenizer.encode("a") if left else []
    for hole in reversed(without_space(tokenizer, ids, left)):
        ids = [*ids[: hole.start], *tokenizer.encode("a ")[len(word) :], *ids[hole.start :]]
    return tokenizer.decode(ids)


def spelled(tokenizer, before, new, thinking=False):
    """(the text of `new` with that of control tokens, [(where in it, text)] of what is between these); without thoughts
    in a channel, in one of which it may begin."""
    shown, plain, done = "", [], 0
    for i, token in enumerate([*new, None]):
        if token is None or token in tokenizer.controls:
            name = tokenizer.controls.get(token, "")
            if not thinking:
                text = continuation(tokenizer, [*before, *new[:done]], new[done:i])
                plain.append((len(shown), text))
                shown += text + name
            thinking = name == CHANNEL[0] or thinking and name != CHANNEL[1]
            done = i + 1
    return shown, plain


CHANNEL = "<|channel>", "<channel|>"  # the control tokens around a thought of Gemma 4's


def in_thought(tokenizer, ids):
    """Whether a text of these ids ends within a thought."""
    names = [tokenizer.controls[i] for i in ids if i in tokenizer.controls]
    return next((name == CHANNEL[0] for name in reversed(names) if name in CHANNEL), False)


def until(tokenizer, stops):
    """What generate() asks whether a row has come to one of the strings `stops`: (its ids, its prompt's length, of how
    many of the last ids it has not asked before; without that, of all).

    So much of the end is decoded as may hold a stop that was not there before: as many tokens that have a text as the
    longest has bytes, from one on that is no part of a character."""
    longest = max((len(s.encode()) for s in stops), default=0)
    has_thoughts = CHANNEL[0] in tokenizer.controls.values()
    text_of = functools.cache(lambda token: tokenizer.controls.get(token) or tokenizer.decode([token]))

    def stopped(ids, begin, new=None):
        ids = ids.cpu().numpy()
        start, need = begin if new is None else max(begin, len(ids) - new), longest
        while start > begin and (need > 0 or not text_of(int(ids[start])).strip("\ufffd ")):
            start -= 1
            need -= text_of(int(ids[start])) != ""
        if start == begin:
            return answer(tokenizer, ids[:begin].tolist(), ids[begin:].tolist(), stops)[1]
        near = ids[max(0, start - CONTEXT) : start].tolist()
        before = near if tokenizer.decode(near) else ids[:start].tolist()
        inside = has_thoughts and in_thought(tokenizer, ids[begin:start].tolist())
        shown, _ = spelled(tokenizer, before, ids[start:].tolist(), inside)
        return any(s in shown for s in stops if s)

    return stopped


# ------------------------------------------------------------------------------------------------------------------
# 2 · the ids of a continuation


def common(a, b):
    """How many items at their beginning two lists share."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def split(before, whole):
    """(ids of the prompt, of what follows): `whole`, the ids of a text, cut where those of its beginning, `before`,
    part from them. A token in which the beginning ends and the rest begins is part of the rest: it is predicted."""
    n = common(before, whole)
    return whole[:n], whole[n:]


# ------------------------------------------------------------------------------------------------------------------
# 3 · contents and markup

# What a person wrote may spell a control token, as HTML's </s> does Llama 2's end. In a text with markup, MARK behind
# its first character says that it is no more than that; a MARK of the content itself is doubled. (Unicode promises that
# U+FDD0 to U+FDEF will never be characters.)
MARK, OPEN, CLOSE = "\ufdd0", "\ufdd1", "\ufdd2"


def controls_of(hf):
    """The tokens of a tokenizer of `transformers` that only markup may give, {id: AddedToken}."""
    added = hf.added_tokens_decoder.items()
    return {i: token for i, token in added if token.special or i in hf.all_special_ids}


def pattern(controls):
    """What finds any of these texts, the longest first, as `tokenizers` does; None where there are none."""
    words = sorted(map(re.escape, filter(None, controls)), key=len, reverse=True)
    return re.compile("|".join(words)) if words else None


def escape(found, content):
    """The content with marks in what the pattern `found` finds there; of messages, in all their texts."""
    if isinstance(content, str):
        content = content.replace(MARK, MARK + MARK) if MARK in content else content
        return found.sub(lambda m: m[0][0] + MARK + m[0][1:], content) if found and found.search(content) else content
    if isinstance(content, dict):
        return {k: escape(found, v) for k, v in content.items()}
    return [escape(found, x) for x in content] if isinstance(content, list) else content


def plain(text):
    """A marked text without its marks."""
    return re.sub(f"{MARK}({MARK}?)", r"\1", text) if MARK in text else text


def encoder(hf, controls, found):
    """Two functions for a tokenizer of `transformers`; `controls`: the added tokens {id: AddedToken} that only markup
    may give, `found`: their pattern().

    encode  text, marked by escape() -> ids, as the library has them where there are no marks
    cut     lists of texts, marked -> for each (ids of their sum, how many of them are each text's), from one encoding;
            None where a token belongs to two texts, or where the first few alone would have other ids than they have

    Where there are marks, a copy of the tokenizer is asked that knows the control tokens by other names, which nobody
    can write; so that all the library does around a control token is done, and nothing around what only looks so."""
    names, copy, ids_of = {}, None, {}

    def sealed():
        nonlocal copy
        import tokenizers

        content = json.loads(hf.backend_tokenizer.to_str())
        if content["model"].get("type") == "Unigram":  # for which a control token is a word like any other
            words = content["model"]["vocab"]
            content["model"]["vocab"] = [[w, s - 1e6 * (i in controls)] for i, (w, s) in enumerate(words)]
        copy = tokenizers.Tokenizer.from_str(json.dumps(content))
        copy.no_truncation()
        copy.no_padding()
        copy.encode_special_tokens = True  # their texts are texts
        nonce = secrets.token_hex(8)
        names.update({token.content: f"{OPEN}{nonce} {i}{CLOSE}" for i, token in controls.items()})
        holes = max(hf.get_vocab().values()) + 1 - copy.get_vocab_size()  # a new token's id is the number of others
        copy.add_tokens([f"{OPEN}{nonce} no. {i}{CLOSE}" for i in range(holes)])
        for i, t in controls.items():
            keys = dict(single_word=t.single_word, lstrip=t.lstrip, rstrip=t.rstrip, normalized=False, special=False)
            copy.add_tokens([tokenizers.AddedToken(names[t.content], **keys)])
            ids_of[copy.token_to_id(names[t.content])] = i

    def apart(text):
        """For a tokenizer in Python, which has no such copy: between markup, text by text."""
        ids, last = [], 0
        for m in [*found.finditer(text), None]:
            part = plain(text[last : m.start() if m else len(text)])
            ids += hf.encode(part, add_special_tokens=False, split_special_tokens=True) if part else []
            ids += [hf.convert_tokens_to_ids(m[0])] if m else []
            last = m.end() if m else last
        return ids

    def encoded(many):
        """For each list of texts: (the texts as the library is given them, ids, what it knows of their sum)."""
        plain_ones = [not any(MARK in part for part in parts) for parts in many]
        texts = ["".join(parts) for parts, is_plain in zip(many, plain_ones) if is_plain]
        outs = iter(hf.backend_tokenizer.encode_batch(texts, add_special_tokens=False))  # on all cores
        for parts, is_plain in zip(many, plain_ones):
            if is_plain:
                out = next(outs)
                yield parts, out.ids, out
                continue
            if copy is None:
                sealed()
            parts = [plain(found.sub(lambda m: names[m[0]], part)) for part in parts]
            out = copy.encode("".join(parts), add_special_tokens=False)
            ids, unknown = [ids_of.get(i, i) for i in out.ids], hf.unk_token_id
            if unknown is not None:  # what a control token's text is that a vocabulary has as a word, too
                ids = [unknown if i in controls and j not in ids_of else i for i, j in zip(ids, out.ids)]
            yield parts, ids, out

    def encode(text):
        if MARK not in text:
            return hf.encode(text, add_special_tokens=False)
        return next(encoded([[text]]))[1] if hf.is_fast else apart(text)

    def cut(many):
        if not hf.is_fast:
            return [None] * len(many)
        return [counted(given, *what) for given, what in zip(many, encoded(many))]

    def counted(given, parts, ids, out):
        text, edge, counts = "".join(parts), 0, [0]
        for k, part in enumerate(parts[:-1]):
            edge += len(part)
            # The token of the first character that has one: of a space, the library may say that it has none.
            n = next((n for at in range(edge, len(text)) if (n := out.char_to_token(at)) is not None), len(ids))
            while n and out.token_to_chars(n - 1)[0] >= edge:
                n -= 1
            if not 0 < n < len(ids) or out.token_to_chars(n - 1)[1] > edge or out.token_to_chars(n)[0] < edge:
                return None
            counts.append(n)
            if ids[n - 1] in controls or ids[n] in controls:
                continue  # what stands on both sides of a control token is encoded apart
            # Of a space that a token begins with, places may say nothing; and where no space parts two characters,
            # what stands before may have other tokens for what stands behind.
            unsure = text[edge - 1] == " " or text[edge - 1].isspace() == text[edge].isspace()
            if unsure and encode("".join(given[: k + 1])) != ids[:n]:
                return None
        counts.append(len(ids))
        return ids, [b - a for a, b in zip(counts, counts[1:])]

    return encode, cut
