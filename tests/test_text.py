"""Where text meets tokens, for every kind of tokenizer, every manner of template and whatever is said: ids are the
library's, what a person wrote gives no control token, new tokens go on with the text before them to the character, and
what is learnt is the answers with their ends."""

import os
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import transformers as tf
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from talks import spans

import ar
from nanodlm import checkpoint as ckpt
from nanodlm import harness, tasks, turns
from nanodlm import text as texts
from nanodlm import tokenizer as tokenizers

ROLES = dict(eos_token="</s>", bos_token="<s>", unk_token="<unk>", mask_token="<|mask|>")
EXACT = [kind for kind in zoo.KINDS if "byte-level" in kind or "llama" in kind]  # whose ids hold the whole text


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(the library's tokenizer, ours) of a kind with a template."""
    root, kept = tmp_path_factory.mktemp("zoo"), {}

    def make(kind, template=None, roles=ROLES, special=zoo.SPECIAL):
        key = kind, template, str(roles), str(special)
        if key not in kept:
            path = root / str(len(kept))
            kept[key] = zoo.write(path, kind, template, special, **roles), tokenizers.load({"kind": "hf"}, path)
        return kept[key]

    make.root = root
    return make


SEEMING = [*zoo.SPECIAL, "[INST]", "</think>", "<", "|im_end|>", texts.MARK, "<" + texts.MARK + "/s>"]
WORDS = [
    "fox",
    "a mouse",
    "12",
    "345",
    ".",
    "\n",
    "\n\n",
    "  ",
    " ",
    "\u00e9",
    "\u2603",
    "assistant",
    "user no. 1",
    "-",
]
words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map("".join)
hostile = st.lists(st.sampled_from(WORDS + SEEMING), min_size=1, max_size=8).map("".join)
kinds, templates = st.sampled_from(list(zoo.KINDS)), st.sampled_from(list(zoo.TEMPLATES))
some = settings(max_examples=150, deadline=None, derandomize=True, database=None)


def conversations(contents):
    """Conversations that end with a question or an answer, some with a system turn in front."""

    def build(said, system):
        turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
        return ([{"role": "system", "content": system}] if system else []) + turns

    return st.builds(build, st.lists(contents, min_size=1, max_size=6), st.one_of(st.none(), contents))


# ---- contents and markup ---------------------------------------------------------------------------------------------


FEW = [ROLES, dict(eos_token="</s>"), dict(unk_token="<unk>"), dict(bos_token="<s>", mask_token="<|mask|>")]


@some
@given(kinds, templates, st.sampled_from(FEW), conversations(words), st.booleans())
def test_ids_of_a_conversation_are_the_librarys(made, kind, template, roles, messages, ask):
    hf, tok = made(kind, template, roles)
    theirs = hf.apply_chat_template(messages, add_generation_prompt=ask, tokenize=True, return_dict=False)
    assert tok.encode(tok.template(messages, ask)) == theirs


@settings(some, max_examples=400)
@given(kinds, templates, conversations(hostile))
def test_what_a_person_wrote_gives_no_control_token_and_is_there_to_the_character(made, kind, template, messages):
    hf, tok = made(kind, template)
    ids = tok.encode(tok.template(messages, True))
    tame = [{**m, "content": m["content"].translate(str.maketrans("<[|", "({;"))} for m in messages]
    marks = [[i for i in tok.encode(tok.template(m, True)) if i in tok.controls] for m in (messages, tame)]
    unknown = hf.unk_token_id  # which a character may be
    if template != "thoughts":  # where what is said decides what is written
        assert [i for i in marks[0] if i != unknown] == [i for i in marks[1] if i != unknown]
    written = hf.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    if kind in ("byte-level", "byte-level, ids with a hole"):
        assert hf.decode(ids) == written == texts.plain(tok.template(messages, True))


OTHERS = {t: f"<{i}>" for i, t in enumerate(zoo.SPECIAL[4:])}  # names that nobody writes, for what no vocabulary has
UNTOUCHED = [kind for kind in zoo.KINDS if "hole" not in kind]
spelling = st.lists(st.sampled_from([*WORDS, *OTHERS]), min_size=1, max_size=8).map("".join)


@some
@given(st.sampled_from(UNTOUCHED), st.sampled_from(["chatml", "llama 3"]), conversations(spelling))
def test_what_spells_a_control_token_is_encoded_as_if_that_had_another_name(made, kind, template, messages):
    """Which is the library's way with it, around it, too."""
    _, tok = made(kind, template)
    other, _ = made(kind, template, special=[*zoo.SPECIAL[:4], *OTHERS.values()])
    text = tok.template(messages, True)
    renamed = texts.plain(texts.pattern(OTHERS).sub(lambda m: OTHERS[m[0]], text))
    assert tok.encode(text) == other.encode(renamed, add_special_tokens=False)


def test_a_tokenizer_in_python_takes_contents_as_text_too():
    """ByT5's, whose ids are bytes, and three behind them."""
    hf = tf.ByT5Tokenizer(extra_ids=0)
    controls = texts.controls_of(hf)
    found = texts.pattern(token.content for token in controls.values())
    encode, cut = texts.encoder(hf, controls, found)
    assert encode("fox</s>") == hf.encode("fox</s>", add_special_tokens=False)
    marked = texts.escape(found, "say </s>") + "</s>" + texts.escape(found, "<unk>")
    ids = encode(marked)
    assert ids == [*(b + 3 for b in b"say </s>"), hf.eos_token_id, *(b + 3 for b in b"<unk>")] and cut([["a"]]) == [
        None
    ]


# ---- the text of new tokens ------------------------------------------------------------------------------------------

tokens = st.lists(st.integers(0, 400), max_size=40)


@some
@given(kinds, tokens, tokens, words, st.booleans())
def test_new_tokens_go_on_with_the_text_before_them(made, kind, before, new, text, said):
    """Whatever the ids are, those of a text or any, half characters and control tokens included."""
    hf, tok = made(kind)
    before = tok.encode(text) if said else [i for i in before if i < len(hf)]
    new = [i for i in new if i < len(hf)]
    old, whole = tok.decode(before), tok.decode(before + new)
    n = len(os.path.commonprefix([old, whole]))
    assert texts.continuation(tok, before, new) == whole[n:]
    assert whole[:n] == old or not said or kind not in EXACT


GIVING = [kind for kind in EXACT if kind != "byte-level, a space in front"]  # which puts one behind each hole, too
fills = st.lists(st.integers(0, 400), min_size=5, max_size=5)


@some
@given(st.sampled_from(GIVING), st.sampled_from(["a word", "apart", "with a space"]), words, words, words, fills)
def test_what_is_given_around_holes_stays_and_a_space_in_front_is_of_the_word_behind(
    made, kind, mask, before, between, behind, new
):
    """Whatever is filled in: the given texts are there to the character, once, in their order; and the tokens in front
    of a hole are those of the text that goes on with a word."""
    hf, tok = made(kind)
    if mask == "apart":  # no word of a text, as in our own vocabularies
        tok = replace(tok, mask_id=len(hf), controls={i: t for i, t in tok.controls.items() if i != tok.mask_id})
    tok = replace(tok, mask_takes_space=mask == "with a space")
    ids, left = tokenizers.fill_in(tok, [before, 2, between, 3, behind], "the text", [hf.bos_token_id])
    holes = [i for i, token in enumerate(ids) if token == tok.mask_id]
    assert len(holes) == 5 and ids[0] == hf.bos_token_id
    for i, token in zip(holes, new):
        ids[i] = token % len(hf) if "\ufffd" not in tok.decode([token % len(hf)]) else tok.encode("a")[0]
    said = texts.filled_in(tok, ids, left)
    assert re.fullmatch(".*".join(map(re.escape, (before, between, behind))), said, re.DOTALL)
    if before.endswith(" "):
        whole, n = tok.encode(before + "a fox"), holes[0] - 1
        assert whole[:n] == ids[1 : n + 1]
        assert texts.filled_in(tok, ids[: n + 1] + whole[n:], left[:1]) == before + "a fox"


@some
@given(st.sampled_from(EXACT), words, words)
def test_a_prompt_and_its_answer_are_one_text(made, kind, prompt, rest):
    """As HumanEval's programs are: to the character, its first spaces included."""
    _, tok = made(kind)
    ids, whole = tok.encode(prompt), tok.encode(prompt + rest)
    first, new = texts.split(ids, whole)
    assert first + new == whole and ids[: len(first)] == first
    if first == ids:
        text, stopped = texts.answer(tok, first, new)
        assert (tok.decode(first) + text, stopped) == (tok.decode(whole), False)
        assert prompt + text == prompt + rest or kind == "byte-level, a space in front"


@some
@given(kinds, words, words, st.sampled_from(["</s>", "<|im_end|>", "mouse", "\n", "<|im_end|>\n", "12"]), words)
def test_an_answer_ends_in_front_of_a_stop_whether_or_not_it_is_a_control_token(made, kind, prompt, said, stop, more):
    hf, tok = made(kind)
    before = tok.encode(prompt)
    ids = tok.encode(prompt + said + stop + more)
    if ids[: len(before)] == before:
        new = ids[len(before) :]
        shown = hf.decode(new, skip_special_tokens=False).strip()
        text, stopped = texts.answer(tok, before, new, (stop, "never"))
        plain = texts.answer(tok, before, new)[0]
        assert plain.startswith(text) and stop not in text
        assert stopped == (stop.strip() in shown and (stop in shown or stop in "".join(map(str, shown))))


@settings(some, max_examples=400)
@given(kinds, words, st.lists(st.one_of(hostile, tokens), max_size=8), st.data())
def test_whether_a_stop_has_come_is_seen_at_the_end_as_in_the_whole(made, kind, prompt, parts, data):
    """However many tokens are new since it was asked: words, control tokens, halves of characters, ids without text."""
    hf, tok = made(kind)
    before = tok.encode(prompt)
    new = [i for part in parts for i in (tok.encode(part) if isinstance(part, str) else part) if i < len(hf)]
    shown, _ = texts.spelled(tok, before, new)
    at = st.integers(0, len(shown))
    stops = [shown[a : a + n] for a, n in data.draw(st.lists(st.tuples(at, st.integers(1, 6)), max_size=2))]
    stops, done = [*stops, "never"], 0
    until, ids = texts.until(tok, stops), torch.tensor([*before, *new])
    while done < len(new):
        step = data.draw(st.integers(1, 5))
        done = min(done + step, len(new))
        found = texts.answer(tok, before, new[:done], stops)[1]
        assert until(ids[: len(before) + done], len(before), step) == found
        if found:
            return


# ---- what is learnt --------------------------------------------------------------------------------------------------


@settings(some, max_examples=500)
@given(kinds, templates, conversations(hostile))
def test_what_is_learnt_are_the_answers_with_their_ends_behind_what_a_sampler_is_given(made, kind, template, messages):
    hf, tok = made(kind, template)
    try:
        asked = turns.answer_by_answer(tok.template, tok.ends, messages)
    except ValueError:
        return
    assert turns.at_once(tok.template, tok.ends, messages) in (None, asked)
    try:
        ids, learn = turns.tokenize(tok, messages)
    except ValueError as e:
        assert not asked or "mask" in str(e) or "the text that ends one" in str(e)
        return
    learnt = [k for k, m in enumerate(messages) if m["role"] == "assistant" and m["content"].strip()]
    found = spans(learn)
    for k, (begin, end) in zip(learnt[-len(found) :], found):
        assert ids[:begin] == tok.chat(messages[:k])
        if kind == "byte-level":
            ends = [i for i in ids[begin:end] if i in tok.stop_ids]
            text = texts.answer(tok, ids[:begin], ids[begin:end], [tok.stop_text])[0]
            assert len(ends) == (template != "modernbert-chat")
            assert text.strip().endswith(messages[k]["content"].strip()) or template == "thoughts"


ASKED = "<|im_start|>user\nwhy<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    "thoughts, given, learnt",
    [
        ("learn", ASKED, "<think>\nso\n</think>\n\nyes<|im_end|>"),
        ("drop", ASKED, "<think>\n\n</think>\n\nyes<|im_end|>"),  # which is how this template writes no thought
        ("empty", ASKED + "<think>\n\n</think>\n\n", "yes<|im_end|>"),
    ],
)
def test_thoughts_are_learnt_dropped_or_given_as_an_empty_one(made, thoughts, given, learnt):
    hf, tok = made("byte-level", "thoughts")
    tok = tokenizers.with_thoughts(tok, thoughts)
    asked = [{"role": "user", "content": "why"}]
    ids, learn = turns.tokenize(tok, [*asked, {"role": "assistant", "content": "<think>\nso\n</think>\n\nyes"}])
    assert (hf.decode(ids), learn.index(True)) == (given + learnt, len(tok.encode(given)))
    assert tok.chat(asked) == ids[: learn.index(True)]  # what is asked with afterwards


@pytest.mark.parametrize("template", ["chatml", "llama 3", "llada", "thoughts"])
def test_of_a_conversation_that_the_assistant_opens_all_answers_are_learnt_or_given(made, template):
    hf, tok = made("byte-level", template)
    said = [{"role": role, "content": text} for role, text in (("assistant", "Welcome!"), ("user", "2 + 2"))]
    ids, learn = turns.tokenize(tok, [*said, {"role": "assistant", "content": "4"}])
    found = [hf.decode(ids[a:b]).removeprefix("<think>\n\n</think>\n\n") for a, b in spans(learn)]
    assert found == (["Welcome!<|im_end|>"] * (template != "thoughts")) + ["4<|im_end|>"]
    assert "Welcome!" in hf.decode(ids)


@pytest.mark.parametrize("end", ["", "</s>"])
def test_an_answer_that_spells_the_end_is_learnt_whole(made, end):
    """As HTML's does, of a tokenizer like Llama 2's: a sampler that has learnt it stops behind it."""
    hf, tok = made("byte-level")
    hf.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}" + end + "\n{% endfor %}"
    hf.chat_template += "{% if add_generation_prompt %}assistant: {% endif %}"
    answer = "Write <s>word</s> around it, and close the tag."
    messages = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": answer}]
    path = made.root / f"ends with {end.strip('</>')}"
    hf.save_pretrained(path)
    tok = tokenizers.load({"kind": "hf"}, path)
    ids, learn = turns.tokenize(tok, messages)
    first = learn.index(True)
    assert texts.answer(tok, ids[:first], ids[first:])[0] == answer
    assert [i for i in ids if i in tok.stop_ids] == [tok.eos_id] * (1 + bool(end)) and ids[-1] == tok.eos_id


def test_a_long_conversation_takes_as_many_encodings_and_renderings_as_a_short_one(made):
    """Linear work: neither grows with the number of turns."""
    _, tok = made("byte-level", "chatml")
    count = []

    def template(*args, **keys):
        count.append("rendering")
        return tok.template(*args, **keys)

    def cut(many):
        count.extend(["encoding"] * len(many))
        return tok.cut(many)

    counting, costs = replace(tok, template=template, cut=cut, encode=None), []
    for n in (2, 2, 60):
        said = [{"role": ("user", "assistant")[i % 2], "content": f"the fox {i}"} for i in range(n)]
        count.clear()
        ids, learn = turns.tokenize(counting, said)
        assert len(spans(learn)) == n / 2
        costs.append(list(count))
    assert costs[1] == costs[2] == ["rendering", "rendering", "encoding"]  # the first finds the template's manner, too


# ---- evaluation ------------------------------------------------------------------------------------------------------


@pytest.fixture
def asks(tmp_path):
    """lm-eval's view of a model that says a text, and how a request to it is made."""

    def make(kind, says, template=None, kept=None, **options):
        if not (tmp_path / kind).is_dir():
            zoo.write(tmp_path / kind, kind, template, **ROLES)
        zoo.teller(tmp_path / kind, says)
        c = ckpt.load(tmp_path / kind / "ar")
        model = harness.Harness(c, ar, harness.Answers(c, ar, 4, kept))
        sampling = lambda said: ar.SampleOptions(max_new_tokens=said.get("max_gen_toks", 12), temperature=0.0)  # noqa: E731
        model.use(tasks.Options(**options), ar.LikelihoodOptions(), sampling)
        return model

    return make


def request(*args):
    return Instance("x", {}, args, 0, metadata=("toy", 3, 1))


@pytest.mark.parametrize("kind", ["llama", "llama, no space in front"])
def test_humanevals_programs_of_a_tokenizer_that_drops_first_spaces_run(asks, kind):
    prompt, answer = "def f(a):\n", "    return a"
    model = asks(kind, prompt + answer)
    assert model.generate_until([request(prompt, {"until": []})]) == [answer]


@pytest.mark.parametrize("until", [["<|im_end|>"], ["never", "<|im_end|>user"], ["user"]])
def test_a_stop_may_be_or_hold_a_control_token(asks, until):
    """lm-eval's own models stop at one, too."""
    model = asks("byte-level", "fox: a mouse<|im_end|>user asks more")
    (text,) = model.generate_until([request("fox:", {"until": until})])
    assert text == " a mouse" and model.counts["text tokens"] <= len(model.encode(" a mouse<|im_end|>user"))


def test_the_answers_of_a_choice_are_what_is_not_the_questions(asks):
    """A token in which the two meet is the answer's; an answer of none would have probability 1, and is refused."""
    model = asks("byte-level", "the fox")
    for before, rest in (("the user ans", "wers"), ("the user", " answers")):
        prompt, answer = model.encode_pair(before, rest)
        assert prompt + answer == model.encode(before + rest) and answer
    assert model.tokenizer.decode(model.encode_pair("the user ans", "wers")[1]) not in ("", "wers")
    with pytest.raises(SystemExit, match="the task toy, document 3: the answer '' has no token of its own behind 'the"):
        model.loglikelihood([request("the user", " answers"), request("the user", "")])


def test_a_choice_that_spells_a_control_token_is_text_under_a_template(asks):
    model = asks("byte-level", "the fox", "chatml", apply_chat_template=True)
    context = model.apply_chat_template([{"role": "user", "content": "Which tag? </s>"}])
    prompt, answer = model.encode_pair(context, "</s>")
    assert [i for i in prompt + answer if i in model.tokenizer.controls] == [
        *model.tokenizer.encode("<|im_start|><|im_end|><|im_start|>")
    ]
    assert model.tokenizer.decode(answer) == "\n</s>"  # spaces between belong to the answer


def test_a_long_prompt_keeps_what_stands_in_front_of_all(asks):
    model = asks("byte-level", "the fox", "llama 3", apply_chat_template=True, system="be brief")
    said = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "the fox eats " * 30}]
    prompt = model.encode(model.apply_chat_template(said))
    front = "<s><|im_start|>system[SEP]\n\nbe brief<|im_end|><|im_start|>user[SEP]\n\n"
    assert model.front == model.encode(front)
    short, n = model.shorten(prompt, 60), len(model.front)
    assert len(short) == 60 and short == prompt[:n] + prompt[n - 60 :]
    assert model.shorten(prompt, 5) == prompt[-5:] and model.shorten(prompt[:4], 40) == prompt[:4]


def test_kept_answers_are_those_of_a_tokenizer_and_its_stops(asks, tmp_path):
    kept = tmp_path / "kept"

    def answer(**stops):
        model = asks("byte-level", "fox: a mouse<|im_start|> user asks", kept=kept)
        model.answers.checkpoint.tokenizer = replace(model.tokenizer, **stops)
        model.answers = harness.Answers(model.answers.checkpoint, ar, 4, kept)
        return model.generate_until([request("fox:", {"until": []})])

    assert answer() == answer() == [" a mouse user asks"]
    lines = (kept / "0.jsonl").read_text().count('"text"')
    tok = asks("byte-level", "fox").tokenizer
    assert lines == 1 and answer(stop_ids=(tok.eos_id, *tok.encode("<|im_start|>"))) == [" a mouse"]


PATTERNS = {"strict": r"#### (\d+)", "loose": r"(\d+)"}


def test_what_a_tokenizer_cannot_write_and_what_cannot_fit_is_said_before_the_first_answer(asks, capsys):
    """GSM8K's #### through WordPiece."""
    steps = {name: [{"function": "regex", "regex_pattern": pattern}] for name, pattern in PATTERNS.items()}
    config = SimpleNamespace(task="sums", generation_kwargs={})
    config.filter_list = [{"name": name, "filter": step} for name, step in steps.items()]
    task = SimpleNamespace(OUTPUT_TYPE="generate_until", config=config, eval_docs=[{"a": "a fox #### 42"}])
    task.doc_to_target = lambda doc: doc["a"]
    for kind in ("wordpiece", "byte-level"):
        tasks.check_fits(model := asks(kind, "the fox"), task)
        said = capsys.readouterr().out
        assert ("sums: strict cannot be reached" in said) == (kind == "wordpiece") and "loose" not in said
    config.generation_kwargs = {"max_gen_toks": 100}
    with pytest.raises(SystemExit, match="max_new_tokens=100 leaves no room"):
        tasks.check_fits(model, task)
