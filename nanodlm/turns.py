"""A conversation in tokens, and which of them are learnt.

It is written by the checkpoint's chat template and encoded as one text, so that what comes before an answer is to the
token what a sampler will be given. An answer's tokens, its end of turn included, are learnt; nothing else is.

A template says by one call each what it asks with (the messages so far, and the assistant's turn begun) and what it
writes (the messages so far); an answer is the second minus the first. To call it twice an answer would cost the square
of the conversation's length. So a template's manner is found once, on a conversation of ours, and where a conversation
follows it, one call with a mark behind each turn says where all answers are; where it does not, it is asked answer by
answer.
"""

import contextlib
import functools
import itertools

from nanodlm.records import LeftOut

BEHIND = "\ufdd3"  # the mark behind a turn's content; no character, as those of text.py
THOUGHT = "<think>", "</think>"
NO_THOUGHT = "<|channel>thought\n<channel|>"  # what Gemma 4's asks with for an answer without one, and does not write


def without_thoughts(messages):
    """The messages, their answers without their thoughts: what stands in front of the last </think>."""
    said = [m["content"].rpartition(THOUGHT[1])[2].lstrip("\n") for m in messages]
    return [{**m, "content": text} if m["role"] == "assistant" else m for m, text in zip(messages, said)]


def is_answer(message):
    return message["role"] == "assistant" and bool(message["content"].strip())


# ------------------------------------------------------------------------------------------------------------------
# what of a conversation's text is an answer


def answer_by_answer(template, ends, messages):
    """[(text, whether it is an answer's)] up to the end of the last answer.

    Where the template writes earlier turns otherwise than it did when they were answered (Qwen3 takes out their
    thoughts), those are given, as a sampler would be given them, but not learnt."""
    text, parts = "", []
    for k in (k for k, m in enumerate(messages) if is_answer(m)):
        whole = template(messages[: k + 1], False)
        before = template(messages[:k], True) if k else opening(template, messages[0], whole)
        if before is None:  # nobody asked for it
            continue
        turn = before.removesuffix(NO_THOUGHT)
        if not whole.startswith(turn):
            raise LeftOut("the chat template does not write an answer behind what it writes to ask for one")
        answer = whole[len(before) if whole.startswith(before) else len(turn) :]
        if not before.startswith(text):
            text, parts = "", []
        parts += [(before[len(text) :], False), (answer[: end_of(answer, ends)], True)]
        text = before + parts[-1][0]
    return parts


def end_of(answer, ends):
    """Where an answer ends: behind the last of the strings that end one, or else behind its text."""
    return max((answer.rfind(end) + len(end) for end in ends if end in answer), default=len(answer.rstrip()))


def opening(template, message, whole):
    """What a template asks with for an answer that opens the conversation, of which it writes `whole`; None where that
    cannot be told. Not every template takes a conversation without a message; its words come from another one then."""
    said = [{"role": "user", "content": message["content"]}]
    with contextlib.suppress(Exception):  # whatever a template raises
        if whole.startswith(before := template([], True)):
            return before
    with contextlib.suppress(Exception):
        asked, told = template(said, True), template(said, False)
        words = asked[len(told) :] if asked.startswith(told) else ""
        at = whole.find(words) if words else -1
        return whole[: at + len(words)] if at >= 0 else None


@functools.lru_cache(64)
def manner(template, ends):
    """(what is written between a question and its answer's turn, what that turn begins with, what ends it), where they
    are the same in every turn; else None."""
    said = [{"role": role, "content": f"{role} no. {i}"} for i in range(3) for role in ("user", "assistant")]
    found = set()
    for messages in (said, [{"role": "system", "content": "briefly"}, *said]):
        try:
            parts = answer_by_answer(template, ends, messages)
            whole = template(messages, False)
        except Exception:  # whatever a template raises; many refuse a system turn
            if messages is said:
                return None
            continue
        texts = [text for text, _ in parts]
        if len(parts) != 6 or not whole.startswith("".join(texts)):
            return None
        for i, (before, answer) in enumerate(zip(texts[::2], texts[1::2])):
            asked, told = before.split(f"user no. {i}"), answer.split(f"assistant no. {i}")
            if len(asked) != 2 or len(told) != 2:
                return None
            found.add((asked[1], *told))
    return found.pop() if len(found) == 1 else None


def at_once(template, ends, messages):
    """What answer_by_answer() gives, from two calls; None where a conversation is not written in the template's manner,
    or may not be."""
    known, contents = manner(template, ends), [m["content"] for m in messages]
    if not known or any(not c.strip() or BEHIND in c or any(w in c for w in THOUGHT) for c in contents):
        return None
    ask, lead, close = known
    spaces = [c[len(c.rstrip()) :] for c in contents]
    marked = [{**m, "content": m["content"].rstrip() + BEHIND + space} for m, space in zip(messages, spaces)]
    written = template(marked, False).split(BEHIND)
    whole = "".join(written)
    if len(written) != len(messages) + 1 or whole != template(messages, False):
        return None
    behind = list(itertools.accumulate(map(len, written)))  # where each turn's content ends

    def follows(k, text):
        """Where the text begins, if it follows turn k's content, whose spaces may have been cut."""
        return next((behind[k] + len(s) for s in (spaces[k], "") if whole.startswith(s + text, behind[k])), None)

    parts, done = [], 0
    for k, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        begin = follows(k - 1, ask + lead) if k and messages[k - 1]["role"] == "user" else None
        end = follows(k, close)
        if begin is None or end is None:
            return None
        begin, end = begin + len(ask), end + len(close) if close else behind[k]
        parts += [(whole[done:begin], False), (whole[begin:end], True)]
        done = end
    return parts


# ------------------------------------------------------------------------------------------------------------------
# in tokens


def tokenize(tokenizer, messages):
    """(ids, learn), lists of int and bool: the conversation up to the end of its last answer, and what is an answer's.

    Every answer ends with the template's end of turn; where it has none, the last one ends with end-of-text. LeftOut
    where there is nothing to learn; RuntimeError where the template itself fails."""
    (found,) = tokenize_all(tokenizer, [messages])
    if isinstance(found, Exception):
        raise found
    return found


def tokenize_all(tokenizer, conversations):
    """What tokenize() gives for each conversation, or raises; they are encoded together, on all cores."""
    found = [attempt(parts_of, tokenizer, messages) for messages in conversations]
    there = [i for i, parts in enumerate(found) if not isinstance(parts, Exception)]
    for i, cut in zip(there, tokenizer.cut([[text for text, _ in found[i]] for i in there])):
        found[i] = attempt(learnt_of, tokenizer, found[i], cut)
    return found


def attempt(function, *args):
    """What it gives, or the exception that it raises."""
    try:
        return function(*args)
    except Exception as e:
        return e


def parts_of(tokenizer, messages):
    """[(text, whether it is an answer's)], none of them empty."""
    if tokenizer.thoughts != "learn" and any(THOUGHT[1] in m["content"] for m in messages):
        messages = without_thoughts(messages)
    if not any(map(is_answer, messages)):
        raise LeftOut("no answer, or only empty ones")
    stop = tokenizer.stop_text
    if stop and any(stop in m["content"] for m in messages if m["role"] == "assistant"):
        raise LeftOut("an answer holds the text that ends one", stop)
    template, ends = tokenizer.template, tokenizer.ends
    try:
        parts = at_once(template, ends, messages) or answer_by_answer(template, ends, messages)
    except LeftOut:
        raise
    except Exception as e:  # whatever a template raises
        import jinja2

        said = (str(e).strip() or type(e).__name__).splitlines()[0]
        if type(e) is not jinja2.TemplateError:  # which is how a template itself says no
            raise RuntimeError(f"the chat template fails on it: {said}") from e
        hint = "; --system=merge and --system=drop are ways out" if messages[0]["role"] == "system" else ""
        raise LeftOut("the chat template refuses it", said + hint) from e
    if not parts:
        raise LeftOut("no answer that was asked for")
    return [part for part in parts if part[0]]


def learnt_of(tokenizer, parts, cut):
    texts, learnt = zip(*parts)
    try:
        ids, counts = cut or in_pieces(tokenizer.encode, texts)
    except ValueError as e:
        raise LeftOut("a character is outside the vocabulary", str(e)) from e
    learn = [x for x, n in zip(learnt, counts) for _ in range(n)]
    if not texts[-1].endswith(tokenizer.ends):  # a template without an end of turn
        ids, learn = [*ids, tokenizer.eos_id], [*learn, True]
    if tokenizer.mask_id in ids:
        raise LeftOut("the mask token is part of the text")
    return ids, learn


def in_pieces(encode, texts):
    """(ids, how many are each text's), where tokens reach from one text into the next: each has those that it is
    given where the sum ends with it, or else its own."""
    ids, counts, whole = [], [], ""
    for text in texts:
        whole += text
        new = encode(whole)
        new = new[len(ids) :] if new[: len(ids)] == ids else encode(text)
        ids, counts = [*ids, *new], [*counts, len(new)]
    return ids, counts
