"""sample.py and chat.py from the command line, on tiny checkpoints in the layout of released ones.

Where only the conversation matters, generate() is replaced by one that answers from a list and notes what it is asked.
"""

import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import ar
import mdlm
import sample
from model import Config, Transformer
from nanodlm import checkpoint as ckpt
from nanodlm import configurator, families, fast_bd3lm, fast_mdlm
from nanodlm import tokenizer as tokenizers

torch.set_num_threads(1)
CONTEXT = 128
TEXT = """To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer the slings and arrows of
outrageous fortune, or to take arms against a sea of troubles and by opposing end them. The user asks the assistant;
the assistant answers the user; the system says how."""
SPECIAL = ["<|mdm_mask|>", "<|startoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
TURN = "<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>"
TEMPLATE = (
    "{{ '<|startoftext|>' }}{% for m in messages %}"
    + TURN.format("{{ m['role'] }}", "{{ m['content'] }}")
    + "{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
PRESETS = sorted((configurator.ROOT / "config" / "presets").glob("*.py"))


# ------------------------------------------------------------------------------------------------------------------
# tiny checkpoints


def write_checkpoint(path, source, architecture, special, template=None):
    """A random network with the tokenizer of `source`, under a released architecture's names."""
    import transformers

    end = "<|endoftext|>"
    keys = dict(eos_token=end, pad_token=end, additional_special_tokens=special)
    hf = transformers.PreTrainedTokenizerFast(tokenizer_file=str(source), **keys)
    hf.chat_template = template
    files = path.with_name(path.name + "_tokenizer")
    hf.save_pretrained(files)
    mask = {"mask_token_id": hf.convert_tokens_to_ids(SPECIAL[0])} if SPECIAL[0] in special else {}
    shape = dict(architectures=[architecture], vocab_size=384, eos_token_id=hf.eos_token_id, rms_norm_eps=1e-5, **mask)
    if architecture == "LLaDAModelLM":
        shape |= dict(model_type="llada", d_model=32, n_layers=1, n_heads=2, n_kv_heads=2, mlp_hidden_size=64)
        shape |= dict(embedding_size=384, max_sequence_length=CONTEXT, rope_theta=1e4, include_bias=False)
        shape |= dict(block_type="llama", activation_type="silu", layer_norm_type="rms", rope=True, alibi=False)
        shape |= dict(weight_tying=False, include_qkv_bias=False)
    else:
        shape |= dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
        shape |= dict(max_position_embeddings=CONTEXT, rope_theta=1e4)
    torch.manual_seed(0)
    family = families.FAMILIES[architecture]
    net = Transformer(Config(**family.config(shape)))
    with torch.no_grad():
        for p in net.parameters():
            if p.dim() == 2:
                p.normal_(0, 0.3)
    (files / "config.json").write_text(json.dumps(shape))
    facts = dict(architecture=architecture, hf_config=shape)
    tokenizer = tokenizers.load({"kind": "hf"}, files)
    ckpt.save(path, dict(net.named_parameters()), net.config, tokenizer, files, family.algorithm, facts)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Directories: chatty (LLaDA, with a chat template), plain (LLaDA, without), causal (Llama, without a mask)."""
    path = tmp_path_factory.mktemp("checkpoints")
    tokenizers.train_bpe([TEXT], 320, path / "bpe.json")
    write_checkpoint(path / "chatty", path / "bpe.json", "LLaDAModelLM", SPECIAL, TEMPLATE)
    write_checkpoint(path / "plain", path / "bpe.json", "LLaDAModelLM", SPECIAL)
    write_checkpoint(path / "causal", path / "bpe.json", "LlamaForCausalLM", SPECIAL[1:])
    return path


@pytest.fixture(scope="module")
def tokenizer(made):
    return ckpt.load(made / "chatty").tokenizer


def command(path, *args):
    sample.main([f"--checkpoint={path}", "--device=cpu", *args])


def refused(path, *args):
    """The sentence that the command exits with."""
    with pytest.raises(SystemExit) as e:
        command(path, *args)
    assert isinstance(e.value.code, str) and "\n" not in e.value.code
    return e.value.code


class Answers:
    """Stands in for generate: writes the given answers one after another, and keeps what it was asked."""

    def __init__(self, tokenizer, answers=()):
        self.tokenizer, self.answers = tokenizer, list(answers)
        self.asked, self.options, self.stops = [], [], []

    def __call__(self, model, prompts, options, *, mask_id, eos_id=None, trace=False, watch=None):
        self.asked.append(prompts[0].tolist())
        self.options.append(options)
        self.stops.append(eos_id)
        answer = self.answers.pop(0) if self.answers else "yes"
        if answer is KeyboardInterrupt:
            raise KeyboardInterrupt
        new = torch.tensor(self.tokenizer.encode(answer))
        if watch is not None:
            for k in range(len(new) + 1):
                watch([torch.cat([prompts[0], new[:k], torch.full((len(new) - k,), mask_id)])])
        return mdlm.Output([torch.cat([p, new]) for p in prompts], [3] * len(prompts))


@pytest.fixture
def fake(tokenizer, monkeypatch):
    fake = Answers(tokenizer)
    for module in (fast_mdlm, fast_bd3lm, ar):
        monkeypatch.setattr(module, "generate", fake)
    return fake


# ------------------------------------------------------------------------------------------------------------------
# one command, one text


def test_a_prompt_is_continued(made, capsys):
    command(made / "plain", "--prompt=To be, or", "--max_new_tokens=6", "--num_samples=2", "--stop_at_eos=false")
    out = capsys.readouterr().out
    assert out.count("To be, or") >= 2 and "--- sample 2" in out and "12 tokens in 12 forwards" in out


def test_holes_are_filled_in(made, capsys):
    command(made / "plain", "--infill=To be,[MASK*4] to be[MASK]", "--stop_at_eos=false")
    out = capsys.readouterr().out
    shown = out.split("--- sample 1")[1]
    assert "To be," in shown and " to be" in shown and "5 tokens in 5 forwards" in out


def test_infilling_gives_generate_one_mask_per_hole(made, fake, tokenizer):
    command(made / "plain", "--infill=To be,[MASK*4] to be[MASK]")
    mask = [tokenizer.mask_id]
    assert fake.asked == [tokenizer.encode("To be,") + 4 * mask + tokenizer.encode(" to be") + mask]
    assert fake.options[0].max_new_tokens == 0


def test_a_template_holds_the_system_prompt_and_the_prompt(made, fake, tokenizer):
    command(made / "chatty", "--template", "--system=be brief", "--prompt=to be?")
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "to be?"}]
    assert fake.asked == [tokenizer.chat(messages)]
    text = TURN.format("system", "be brief") + TURN.format("user", "to be?")
    assert fake.asked == [tokenizer.encode(f"<|startoftext|>{text}<|start_header_id|>assistant<|end_header_id|>\n\n")]


def test_a_template_without_a_system_prompt_has_one_turn(made, fake, tokenizer):
    command(made / "chatty", "--template", "--prompt=to be?")
    assert fake.asked == [tokenizer.chat([{"role": "user", "content": "to be?"}])]


def test_a_templated_prompt_is_answered(made, capsys):
    command(made / "chatty", "--template", "--system=be brief", "--prompt=to be?", "--max_new_tokens=8")
    out = capsys.readouterr().out
    assert "be brief" in out and "to be?" in out and "<|" not in out


def test_line_breaks_in_a_templated_prompt_are_line_breaks(made, fake, tokenizer):
    command(made / "chatty", "--template", r"--prompt=to be\nor not")
    assert fake.asked == [tokenizer.chat([{"role": "user", "content": "to be\nor not"}])]


def test_generation_stops_at_end_of_text_and_at_the_end_of_the_turn(made, fake, tokenizer):
    command(made / "chatty", "--prompt=to be")
    command(made / "chatty", "--prompt=to be", "--stop_at_eos=false")
    ends = [tokenizer.encode(t)[0] for t in ("<|endoftext|>", "<|eot_id|>")]
    assert sorted(fake.stops[0]) == sorted(ends) and fake.stops[1] is None


def test_a_text_is_cut_before_the_stop_text(made, fake, capsys):
    fake.answers = [" not to be END and more"]
    command(made / "plain", "--prompt=or", "--stop=END")
    assert "or not to be \n" in capsys.readouterr().out


def test_a_stop_text_within_the_prompt_cuts_nothing(made, fake, capsys):
    fake.answers = [" that is. the question"]
    command(made / "plain", "--prompt=to be. or", "--stop=.")
    assert "to be. or that is\n" in capsys.readouterr().out


def test_infilling_without_a_mask_token_is_refused(made):
    assert "no mask token" in refused(made / "causal", "--infill=to be[MASK*3]")


@pytest.mark.parametrize("algorithm", ["mdlm", "bd3lm"])
def test_diffusion_without_a_mask_token_is_refused(made, algorithm):
    assert f"no mask token, which {algorithm} needs" in refused(
        made / "causal", f"--algorithm={algorithm}", "--prompt=to be"
    )


def test_a_prompt_is_continued_without_a_mask_token(made, capsys):
    command(made / "causal", "--prompt=to be", "--max_new_tokens=6", "--stop_at_eos=false")
    assert "6 tokens in 6 forwards" in capsys.readouterr().out


def test_a_template_that_is_not_there_is_refused(made):
    assert "chat template" in refused(made / "plain", "--template", "--prompt=to be")
    assert "chat template" in refused(made / "plain", "--chat")


def test_a_template_with_holes_is_refused(made):
    assert "--template needs --prompt" in refused(made / "chatty", "--template", "--infill=to be[MASK]")


def test_a_prompt_that_fills_the_context_is_refused(made):
    assert f"context of {CONTEXT}" in refused(made / "plain", "--prompt=" + "question " * CONTEXT)


def test_a_prompt_and_holes_together_are_refused(made):
    assert "not both" in refused(made / "plain", "--prompt=to be", "--infill=to be[MASK]")


# ------------------------------------------------------------------------------------------------------------------
# presets


def values_of(file):
    return {key: value for key, (value, _) in configurator.read_file(str(file)).items()}


@pytest.mark.parametrize("file", PRESETS, ids=lambda p: p.stem)
def test_a_preset_holds_options_of_the_samplers(file):
    known = {f.name for f in fields(fast_mdlm.SampleOptions)}
    values = values_of(file)
    assert values and values.keys() <= known
    assert fast_mdlm.SampleOptions(**values) != fast_mdlm.SampleOptions()


@pytest.mark.parametrize("file", PRESETS, ids=lambda p: p.stem)
def test_every_preset_decodes(file, made, capsys):
    command(made / "plain", f"--preset={file.stem}", "--prompt=to be", "--max_new_tokens=12", "--stop_at_eos=false")
    out = capsys.readouterr().out
    assert f"preset: {file.stem}\n" in out and "\n12 tokens in" in out


def test_the_preset_for_blocks_decodes_with_bd3lm(made, capsys):
    args = ("--prompt=to be", "--max_new_tokens=12", "--stop_at_eos=false", "--block_size=8")
    command(made / "plain", "--algorithm=bd3lm", "--preset=bd3lm", *args)
    assert "\n12 tokens in" in capsys.readouterr().out


@pytest.mark.parametrize("algorithm", ["mdlm", "bd3lm"])
@pytest.mark.parametrize("file", PRESETS, ids=lambda p: p.stem)
def test_a_preset_is_what_generate_is_given(file, algorithm, made, fake):
    """As far as the context has room; bd3lm has caches of its own."""
    values, args = values_of(file), ("--prompt=to be", f"--preset={file.stem}", f"--algorithm={algorithm}")
    if algorithm == "bd3lm" and "cache" in values:
        assert "cache = 'dual'" in refused(made / "plain", *args)
        return
    command(made / "plain", *args)
    (options,), (ids,) = fake.options, fake.asked
    if algorithm == "mdlm":
        values["max_new_tokens"] = min(values.get("max_new_tokens", 256), CONTEXT - len(ids))
    assert {key: getattr(options, key) for key in values} == values


@pytest.mark.parametrize("said, quota", [("threshold", 0.5), ("factor", 2.0)])
@pytest.mark.parametrize("preset", ["none", "llada", "bd3lm"])
def test_naming_a_threshold_or_factor_is_asking_for_it(said, quota, preset, made, fake):
    command(made / "plain", "--prompt=to be", f"--preset={preset}", f"--{said}={quota}")
    assert fake.options[0].quota == said and getattr(fake.options[0], said) == quota


def test_naming_a_bound_of_entropy_is_asking_for_it(made, fake):
    command(made / "plain", "--prompt=to be", "--entropy_bound=0.2")
    assert fake.options[0].quota == "entropy_bound" and fake.options[0].entropy_bound == 0.2
    assert fake.options[0].order == "entropy"


def test_a_quota_that_is_said_goes_before_the_one_that_a_threshold_implies(made, fake):
    said = refused(made / "plain", "--prompt=to be", "--quota=steps", "--threshold=0.5")
    assert said == "threshold=0.5 (the command line) does nothing with quota=steps; leave it out"
    command(made / "plain", "--prompt=to be", "--quota=ancestral", "--entropy_bound=0.1")  # its usual value
    assert fake.options[0].quota == "ancestral"


def test_a_threshold_decodes_in_fewer_forwards(made, capsys):
    command(made / "plain", "--prompt=to be", "--max_new_tokens=12", "--threshold=0.0", "--stop_at_eos=false")
    assert "12 tokens in 1 forwards" in capsys.readouterr().out


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_cache_brings_blocks_with_it(cache, made, fake):
    """It keeps what is outside of a block, of which there is nothing else."""
    for args, size in ((["--preset=none"], 32), (["--preset=dream"], 32), (["--block_size=8"], 8)):
        command(made / "plain", "--prompt=to be", f"--cache={cache}", *args)
        assert (fake.options[-1].cache, fake.options[-1].block_size) == (cache, size)


def test_infilling_looks_ahead_whatever_the_preset_says(made, fake):
    command(made / "plain", "--infill=[MASK*4] to be", "--preset=illada")
    command(made / "plain", "--infill=[MASK*4] to be", "--preset=illada", "--lookahead=false")
    command(made / "plain", "--prompt=to be", "--preset=illada")
    assert [o.lookahead for o in fake.options] == [True, False, False]


def test_an_unknown_preset_is_refused_with_the_list(made):
    said = refused(made / "plain", "--preset=lada", "--prompt=to be")
    assert "no preset 'lada'" in said and ", ".join(p.stem for p in PRESETS) in said and "none" in said


def test_a_released_model_comes_with_its_preset_and_the_command_line_goes_before(made, fake, capsys):
    command(made / "plain", "--prompt=to be", "--temperature=0.7", "--max_new_tokens=9")
    expected = {**values_of(PRESETS[0].with_name("llada.py")), "temperature": 0.7, "max_new_tokens": 9}
    assert "preset: llada\n" in capsys.readouterr().out
    assert {key: getattr(fake.options[0], key) for key in expected} == expected


def test_another_preset_goes_before_the_models_own(made, fake, capsys):
    command(made / "plain", "--prompt=to be", "--preset=fast")
    assert "preset: fast\n" in capsys.readouterr().out and fake.options[0].cache == "dual"


def test_no_preset_is_the_defaults(made, fake, capsys):
    command(made / "plain", "--prompt=to be", "--preset=none", "--max_new_tokens=9")
    assert "preset" not in capsys.readouterr().out.replace("preset = 'none'", "")
    assert fake.options == [fast_mdlm.SampleOptions(9)]


def test_of_the_models_own_preset_another_algorithm_takes_what_it_knows(made, fake):
    command(made / "plain", "--prompt=to be", "--algorithm=ar", "--max_new_tokens=9")
    assert fake.options == [ar.SampleOptions(9, temperature=0.0)]


# ------------------------------------------------------------------------------------------------------------------
# conversations


@pytest.fixture
def talk(made, fake, monkeypatch, capsys):
    """talk(lines, *args, answers=…): types the lines, then Ctrl-D. Returns what was printed."""

    def talk(lines, *args, answers=(), path=made / "chatty"):
        typed = iter(lines)
        fake.answers = list(answers)

        def read(prompt=""):
            try:
                return next(typed)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", read)
        command(path, "--chat", *(args or ["--max_new_tokens=16"]))
        assert not [*typed], "it ended before everything was said"
        return capsys.readouterr().out

    return talk


def turns(*texts, system=None):
    """Messages of user and assistant in turn."""
    roles = ["user", "assistant"] * len(texts)
    first = [{"role": "system", "content": system}] if system else []
    return first + [{"role": role, "content": text} for role, text in zip(roles, texts)]


def test_each_turn_is_asked_with_the_turns_before_it(talk, fake, tokenizer):
    out = talk(["to be?", "or not?"], answers=["the question", "to suffer"])
    assert fake.asked == [tokenizer.chat(turns("to be?")), tokenizer.chat(turns("to be?", "the question", "or not?"))]
    assert "model> the question\n" in out and "model> to suffer\n" in out


def test_a_network_answers(made, monkeypatch, capsys):
    lines = iter(["to be?", "or not?", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    command(made / "chatty", "--chat", "--max_new_tokens=8", "--block_size=4", "--cache=prefix")
    out = capsys.readouterr().out
    assert out.count("model> ") == 2 and "decoded by mdlm" in out and "forwards" in out and "<|" not in out


def test_an_answer_ends_where_the_checkpoint_says(talk, fake, tokenizer):
    talk(["to be?"])
    talk(["to be?"], "--stop_at_eos=false", "--max_new_tokens=16")
    assert fake.stops == [tokenizer.stop_ids, None] and len(tokenizer.stop_ids) == 2


def test_the_system_prompt_goes_before_every_conversation(talk, fake, tokenizer):
    talk(["to be?", "/reset", "or not?"], "--system=be brief", "--max_new_tokens=16")
    assert fake.asked == [tokenizer.chat(turns(text, system="be brief")) for text in ("to be?", "or not?")]


def test_reset_forgets(talk, fake, tokenizer):
    out = talk(["to be?", "/reset", "or not?"])
    assert fake.asked[1] == tokenizer.chat(turns("or not?")) and "(forgotten)" in out


def test_save_writes_the_conversation(talk, tmp_path):
    file = tmp_path / "two words.json"
    out = talk(
        ["to be?", f"/save {file}", "or nöt?"],
        "--system=be brief",
        "--max_new_tokens=16",
        answers=["the question", "to suffer"],
    )
    assert json.loads(file.read_text("utf-8")) == turns("to be?", "the question", system="be brief")
    assert f"(wrote {file})" in out


def test_save_keeps_letters_readable(talk, tmp_path):
    talk(["nöt?", f"/save {tmp_path / 'chat.json'}"])
    assert "nöt?" in (tmp_path / "chat.json").read_text("utf-8")


def test_save_without_a_name_writes_chat_json_here(talk, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    talk(["to be?", "/save"], answers=["yes"])
    assert json.loads(Path("chat.json").read_text()) == turns("to be?", "yes")


def test_a_conversation_that_cannot_be_saved_goes_on(talk, tmp_path, fake):
    out = talk(["to be?", f"/save {tmp_path / 'nowhere' / 'chat.json'}", "or not?"])
    assert "(not written: " in out and len(fake.asked) == 2


@pytest.mark.parametrize("line", ["/help", "/rest", "/"])
def test_an_unknown_command_prints_the_known_ones_and_asks_nothing(talk, fake, line):
    out = talk([line])
    assert out.count("/reset forgets") == 2 and not fake.asked  # once at the beginning


def test_an_empty_line_asks_nothing(talk, fake):
    talk(["", "   "])
    assert not fake.asked


def test_quit_ends_and_so_does_the_end_of_the_input(talk, fake):
    with pytest.raises(AssertionError, match="before everything was said"):
        talk(["/quit", "to be?"])
    talk([])
    assert not fake.asked


def test_what_was_typed_before_the_end_of_the_input_is_asked(talk, fake, tokenizer):
    talk(["to be\\"])
    assert fake.asked == [tokenizer.chat(turns("to be"))]


def test_a_backslash_at_the_end_goes_on_in_the_next_line(talk, fake, tokenizer):
    talk(["to be,\\", "or\\", "not?", "again"], answers=["yes", "no"])
    assert fake.asked[0] == tokenizer.chat(turns("to be,\nor\nnot?"))
    assert fake.asked[1] == tokenizer.chat(turns("to be,\nor\nnot?", "yes", "again"))


def test_an_answer_may_be_interrupted(talk, fake, tokenizer):
    """Neither the question nor what was written of the answer is kept."""
    out = talk(["to be?", "or not?", "again"], answers=["yes", KeyboardInterrupt, "no"])
    assert "(stopped" in out and fake.asked[2] == tokenizer.chat(turns("to be?", "yes", "again"))


def test_a_message_that_is_too_long_is_refused_and_forgotten(talk, fake, tokenizer):
    out = talk(["to be?", "question " * CONTEXT, "or not?"], answers=["yes", "no"])
    assert f"(too long: more than the {CONTEXT - 16} tokens that max_new_tokens=16 leaves)" in out
    assert fake.asked[1:] == [tokenizer.chat(turns("to be?", "yes", "or not?"))]


def test_a_history_that_is_too_long_loses_its_oldest_turns_and_keeps_the_system_prompt(talk, fake, tokenizer):
    said, answered = [f"the question {i}?" for i in range(8)], [f"to suffer {i}" for i in range(8)]
    out = talk(said, "--system=be brief", "--max_new_tokens=16", answers=answered)
    room, left = CONTEXT - 16, []
    for i in range(8):
        kept = next(j for j in range(i + 1) if len(tokenizer.chat(history(said, answered, j, i))) <= room)
        left.append(kept)
        assert fake.asked[i] == tokenizer.chat(history(said, answered, kept, i))
    assert left[0] == left[1] == 0 < left[-1]
    dropped = sum(b > a for a, b in zip(left, left[1:]))
    assert out.count("no longer fit and are left out") == dropped >= 2
    assert out.count("(the oldest 2 messages no longer fit") == sum(b == a + 1 for a, b in zip(left, left[1:]))


def test_a_question_is_left_out_together_with_its_answer(talk, fake, tokenizer):
    """Without the first question alone it would fit."""
    first, second = "to " * 60, "or " * 60
    out = talk([first, second], answers=["yes", "no"])
    assert len(tokenizer.chat(turns("yes", second.strip()))) <= CONTEXT - 16
    assert fake.asked[1] == tokenizer.chat(turns(second.strip())) and "(the oldest 2 messages" in out


def history(said, answered, first, last):
    """The conversation from turn `first` up to question `last`."""
    texts = [text for i in range(first, last) for text in (said[i], answered[i])]
    return turns(*texts, said[last], system="be brief")


def test_a_message_fits_to_the_token(talk, fake, tokenizer):
    """The last one that fits, and one token more."""
    texts = ["to " * n for n in range(1, CONTEXT)]
    lengths = [len(tokenizer.chat(turns(t.strip()))) for t in texts]
    exact = lengths.index(CONTEXT - 16)
    out = talk([texts[exact], "/reset", texts[exact + 1]])
    assert len(fake.asked) == 1 and len(fake.asked[0]) == CONTEXT - 16 and out.count("(too long") == 1


def test_watch_draws_the_answer_and_nothing_else(talk):
    out = talk(["the question?"], "--max_new_tokens=16", "--watch", "--delay=0", answers=["to suffer"])
    assert "░" in out and "to suffer" in out and "question" not in out


def test_an_answer_is_cut_before_the_stop_text_and_so_it_stands_in_the_history(talk, fake, tokenizer):
    out = talk(["to be?", "or not?"], "--stop=END", "--max_new_tokens=16", answers=["yes END no", "no"])
    assert "model> yes\n" in out and "no\n" in out.split("model> ")[2]
    assert fake.asked[1] == tokenizer.chat(turns("to be?", "yes", "or not?"))


def test_line_breaks_in_the_stop_text_are_line_breaks(talk):
    out = talk(["to be?"], r"--stop=\n\n", "--max_new_tokens=16", answers=["one\ntwo\n\nthree"])
    assert "model> one\ntwo\n(" in out


def test_a_template_of_plain_text_brings_its_own_stop_text(made, talk, tmp_path, capsys):
    """ModernBERT-chat's: no token ends the answer, but [/Answer] does."""
    path = tmp_path / "bert"
    shutil.copytree(made / "chatty", path)
    template = "{% for m in messages %}{% if m.role == 'user' %}[Question]{{ m.content }}[/Question][Answer]{% else %}"
    for file in (path / "chat_template.jinja", path / "tokenizer_config.json"):
        if file.suffix == ".jinja":
            file.write_text(template + "{{ m.content }}[/Answer]{% endif %}{% endfor %}")
        else:
            content = json.loads(file.read_text())
            content.pop("chat_template", None)
            file.write_text(json.dumps(content))
    out = talk(["to be?"], "--max_new_tokens=16", answers=["yes[/Answer][Question]"], path=path)
    assert "model> yes\n" in out
    out = talk(["to be?"], "--max_new_tokens=16", "--stop=s", answers=["yes[/Answer][Question]"], path=path)
    assert "model> ye\n" in out


def test_a_context_without_room_for_a_question_is_refused(made):
    said = refused(made / "chatty", "--chat", f"--max_new_tokens={CONTEXT}")
    assert f"max_new_tokens={CONTEXT} leaves no room in the context of {CONTEXT} tokens" in said


def test_a_template_that_refuses_a_conversation_says_why(made, tmp_path):
    path = tmp_path / "strict"
    shutil.copytree(made / "chatty", path)
    (path / "chat_template.jinja").write_text("{{ raise_exception('no system prompts') }}")
    assert "no system prompts" in refused(path, "--template", "--system=be brief", "--prompt=to be?")
