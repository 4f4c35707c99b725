"""Released families: what their checkpoints compute, we compute; what we write, they read; what does not fit is named.

Every checkpoint here is a tiny random one, written in its family's own layout. The independent implementation is
`transformers`: its own class, or, for the bidirectional descendants of a causal model, that class under a full mask.
"""

import copy as copies
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import tokenizers as hf_tokenizers
import torch
import transformers as tf
from hub_server import quoted

import ar
import sample
from model import KVCache, Tiles
from nanodlm import checkpoint as ckpt
from nanodlm import fast_mdlm
from nanodlm import tokenizer as tokenizers
from nanodlm.families import FAMILIES

tf.utils.logging.disable_progress_bar()

ROOT = Path(__file__).resolve().parent.parent
EOS, MASK, VOCAB, LENGTHS = 56, 57, 60, (20, 13, 1)
SPECIAL = {"<eos>": EOS, "<mask>": MASK, "<cls>": 58, "<sep>": 59}
SHAPE = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=4)
SIZES = dict(vocab_size=VOCAB, **SHAPE, bos_token_id=None, pad_token_id=None, eos_token_id=EOS)
BERT_SIZES = SIZES | dict(pad_token_id=0, max_position_embeddings=40)
MODERN_SIZES = BERT_SIZES | dict(num_hidden_layers=5, cls_token_id=58, sep_token_id=59, bos_token_id=58)
GPT2_SIZES = dict(vocab_size=VOCAB, n_embd=16, n_layer=3, n_head=4, n_positions=40, eos_token_id=EOS, bos_token_id=EOS)
LLAMA3 = dict(rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
LLAMA3 |= dict(original_max_position_embeddings=16)
FAR = dict(rope_type="default", rope_theta=5e5)
LINEAR = dict(rope_type="linear", rope_theta=5000.0, factor=4.0)

# name: (class, its configuration), all of which `transformers` reads and runs itself
CAUSAL = {
    "llama": lambda: (tf.LlamaForCausalLM, tf.LlamaConfig(**SIZES, num_key_value_heads=2)),
    "llama, biases, tied, llama3": lambda: (
        tf.LlamaForCausalLM,
        tf.LlamaConfig(
            **SIZES,
            num_key_value_heads=1,
            attention_bias=True,
            mlp_bias=True,
            tie_word_embeddings=True,
            rope_parameters=LLAMA3,
        ),
    ),
    "llama, linear": lambda: (tf.LlamaForCausalLM, tf.LlamaConfig(**SIZES, rope_parameters=LINEAR, rms_norm_eps=1e-3)),
    "qwen2": lambda: (tf.Qwen2ForCausalLM, tf.Qwen2Config(**SIZES, num_key_value_heads=1)),
    "qwen3": lambda: (
        tf.Qwen3ForCausalLM,
        tf.Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True),
    ),
    "qwen3, biases": lambda: (
        tf.Qwen3ForCausalLM,
        tf.Qwen3Config(**SIZES, num_key_value_heads=4, head_dim=4, attention_bias=True),
    ),
    "gpt2": lambda: (tf.GPT2LMHeadModel, tf.GPT2Config(**GPT2_SIZES)),
    "gpt2, untied": lambda: (
        tf.GPT2LMHeadModel,
        tf.GPT2Config(**GPT2_SIZES, n_inner=24, activation_function="gelu", tie_word_embeddings=False),
    ),
}
MASKED = {
    "bert": lambda: (tf.BertForMaskedLM, tf.BertConfig(**BERT_SIZES, layer_norm_eps=1e-3)),
    "roberta": lambda: (tf.RobertaForMaskedLM, tf.RobertaConfig(**BERT_SIZES | {"pad_token_id": 1})),
    "modernbert": lambda: (tf.ModernBertForMaskedLM, tf.ModernBertConfig(**MODERN_SIZES, local_attention=6)),
    "modernbert, biases, untied": lambda: (
        tf.ModernBertForMaskedLM,
        tf.ModernBertConfig(
            **MODERN_SIZES,
            local_attention=9,
            global_attn_every_n_layers=2,
            attention_bias=True,
            mlp_bias=True,
            norm_bias=True,
            classifier_bias=True,
            tie_word_embeddings=False,
        ),
    ),
    "modernbert, no decoder bias": lambda: (
        tf.ModernBertForMaskedLM,
        tf.ModernBertConfig(**MODERN_SIZES, local_attention=2, decoder_bias=False, norm_eps=1e-3),
    ),
}
UNTIED = {
    "bert, untied": lambda: (tf.BertForMaskedLM, tf.BertConfig(**BERT_SIZES, tie_word_embeddings=False)),
    "roberta, untied": lambda: (tf.RobertaForMaskedLM, tf.RobertaConfig(**BERT_SIZES, tie_word_embeddings=False)),
}
FALLBACK = {
    "distilbert": lambda: (
        tf.DistilBertForMaskedLM,
        tf.DistilBertConfig(vocab_size=VOCAB, dim=16, hidden_dim=32, n_layers=2, n_heads=4, max_position_embeddings=40),
    ),
    "gpt-neox": lambda: (tf.GPTNeoXForCausalLM, tf.GPTNeoXConfig(**SIZES, max_position_embeddings=40)),
    "opt": lambda: (
        tf.OPTForCausalLM,
        tf.OPTConfig(
            **{**SIZES, "pad_token_id": 1}, ffn_dim=32, word_embed_proj_dim=16, max_position_embeddings=40, dropout=0.0
        ),
    ),
}
# name: (architecture, the causal model it descends from, other settings of config.json, whether its output is shifted)
DESCENDANTS = {
    "llada": ("LLaDAModelLM", "llama, theta", {}, False),
    "llada, qkv biases, tied": ("LLaDAModelLM", "qwen2, tied", {}, False),
    "illada": ("ILLaDAForCausalLM", "llama", {"rope_theta": 2e4}, False),
    "dream": ("DreamModel", "qwen2", {"rope_theta": 1e6}, True),
    "a2d-llama": ("A2DLlamaLMHeadModel", "llama, biases, tied, llama3", {}, False),
    "a2d-qwen2": ("A2DQwen2LMHeadModel", "qwen2", {}, False),
    "a2d-qwen3": ("A2DQwen3LMHeadModel", "qwen3", {}, False),
    "a2d-gpt2": ("A2DGPT2LMHeadModel", "gpt2", {}, False),
}
PARENTS = {
    "qwen2, tied": lambda: (
        tf.Qwen2ForCausalLM,
        tf.Qwen2Config(**SIZES, num_key_value_heads=2, tie_word_embeddings=True, rope_parameters=FAR),
    ),
    "llama, theta": lambda: (tf.LlamaForCausalLM, tf.LlamaConfig(**SIZES, rope_parameters=FAR, rms_norm_eps=1e-4)),
}
LIVE = {**CAUSAL, **MASKED}
ALL = [*LIVE, *DESCENDANTS]
DIFFUSION = [*MASKED, *DESCENDANTS]
LLADA_NAMES = {
    "model.embed_tokens": "model.transformer.wte",
    "model.layers": "model.transformer.blocks",
    "input_layernorm": "attn_norm",
    "self_attn.o_proj": "attn_out",
    "self_attn.": "",
    "post_attention_layernorm": "ff_norm",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
    "model.norm": "model.transformer.ln_f",
    "lm_head": "model.transformer.ff_out",
}


def words(path, **settings):
    """Write a tokenizer of 56 words and four special tokens."""
    ids = {f"w{i}": i for i in range(EOS)} | SPECIAL
    core = hf_tokenizers.Tokenizer(hf_tokenizers.models.WordLevel(ids, unk_token="w0"))
    core.pre_tokenizer = hf_tokenizers.pre_tokenizers.WhitespaceSplit()
    template = settings.pop("post_processor", None)
    if template:
        core.post_processor = hf_tokenizers.processors.TemplateProcessing(template, None, list(SPECIAL.items()))
    settings = {"eos_token": "<eos>", "mask_token": "<mask>", **settings}
    tf.PreTrainedTokenizerFast(tokenizer_object=core, **settings).save_pretrained(path)


def random_model(cls, config, seed=0):
    """A network with opinions: nothing in it is 0, 1 or equal to something else."""
    torch.manual_seed(seed)
    config._attn_implementation = "eager"
    model = cls(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.2 * torch.randn_like(p) if p.dim() > 1 else p + 0.1 * torch.randn_like(p))
    model.tie_weights()
    return model


def edit_json(path, change, name="config.json"):
    content = json.loads((path / name).read_text())
    change(content)
    (path / name).write_text(json.dumps(content))


def edit_tensors(path, change, name="model.safetensors"):
    tensors = safetensors.torch.load_file(path / name)
    change(tensors)
    safetensors.torch.save_file(tensors, path / name, {"format": "pt"})


def flat_rope(content):
    """Rotary settings as before transformers 5: rope_theta and rope_scaling."""
    rope = content.pop("rope_parameters")
    content["rope_theta"] = rope.pop("rope_theta")
    content["rope_scaling"] = {"type": rope.pop("rope_type"), **rope} if len(rope) > 1 else None


def as_llada(path, parent):
    """Rewrite a checkpoint of Llama's or Qwen2's under LLaDA's names."""

    def rename(tensors):
        for name in list(tensors):
            new = name
            for theirs, llada in LLADA_NAMES.items():
                new = new.replace(theirs, llada)
            tensors[new] = tensors.pop(name)

    edit_tensors(path, rename)
    c = parent.config
    content = {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "d_model": c.hidden_size,
        "n_layers": c.num_hidden_layers,
        "n_heads": c.num_attention_heads,
        "n_kv_heads": c.num_key_value_heads,
        "mlp_hidden_size": c.intermediate_size,
        "mlp_ratio": 4,
        "vocab_size": c.vocab_size - 3,  # the rows are embedding_size, where it is set
        "embedding_size": c.vocab_size,
        "max_sequence_length": 64,
        "block_type": "llama",
        "activation_type": "silu",
        "layer_norm_type": "rms",
        "rms_norm_eps": c.rms_norm_eps,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": c.rope_parameters["rope_theta"],
        "alibi": False,
        "include_bias": False,
        "include_qkv_bias": isinstance(c, tf.Qwen2Config),
        "bias_for_layer_norm": False,
        "weight_tying": c.tie_word_embeddings,
        "mask_token_id": MASK,
        "eos_token_id": EOS,
        "pad_token_id": EOS,
        "auto_map": {"AutoModelForCausalLM": "modeling_llada.LLaDAModelLM"},
    }
    (path / "config.json").write_text(json.dumps(content))


def write(name, path):
    """Write the checkpoint of that name and its tokenizer; returns the model of `transformers` that it was made of."""
    if name in DESCENDANTS:
        architecture, parent, settings, _ = DESCENDANTS[name]
        cls, config = (PARENTS | CAUSAL)[parent]()
        if settings:
            config.rope_parameters = {"rope_type": "default", **settings}
        hf = random_model(cls, config)
        hf.save_pretrained(path)
        changes = dict(architectures=[architecture], model_type=name, mask_token_id=MASK)
        edit_json(path, lambda content: content.update(changes))
        if settings:
            edit_json(path, flat_rope)
        if architecture == "LLaDAModelLM":
            as_llada(path, hf)
        (path / "generation_config.json").unlink(missing_ok=True)
        words(path, mask_token=None)
    else:
        hf = random_model(*(LIVE | UNTIED | FALLBACK)[name]())
        hf.save_pretrained(path)
        words(path)
    return hf


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """name → (its model of `transformers`, its directory, our checkpoint), all of them only to be looked at."""

    @functools.cache
    def get(name):
        path = tmp_path_factory.mktemp("original")
        hf = write(name, path)
        return hf, path, ckpt.load(path)

    return get


@pytest.fixture
def copy(original, tmp_path):
    """name → a directory with that checkpoint, to be spoiled."""
    return lambda name: Path(shutil.copytree(original(name)[1], tmp_path / "model"))


def ragged(hf, seed=0):
    """ids (3, 20) and which of them are real."""
    ids = torch.randint(3, EOS, (3, max(LENGTHS)), generator=torch.Generator().manual_seed(seed))
    real = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    return ids.where(real, torch.tensor(getattr(hf.config, "pad_token_id", None) or 0)), real


def prompts_of(hf):
    """Six prompts of different lengths."""
    return [ragged(hf, seed)[0][0, :length] for seed, length in enumerate((5, 9, 1, 3, 7, 2))]


@torch.no_grad()
def reference(name, hf, ids, real):
    """The logits of `transformers`."""
    if name not in DESCENDANTS:
        return hf(input_ids=ids, attention_mask=real.long()).logits
    seen = torch.zeros(len(ids), 1, *[ids.shape[1]] * 2).masked_fill(~real[:, None, None], -torch.inf)
    logits = hf(input_ids=ids, attention_mask=seen).logits
    return torch.cat([logits[:, :1], logits[:, :-1]], 1) if DESCENDANTS[name][3] else logits


@torch.no_grad()
def logits(checkpoint, hf):
    ids, real = ragged(hf)
    return checkpoint.model(ids, mask=real)[real]


def same(a, b, tolerance=1e-5):
    assert a.shape == b.shape and torch.isfinite(a).all()
    assert (a - b).abs().max() <= tolerance


def save(checkpoint, path, **options):
    c = checkpoint
    weights = dict(c.model.named_parameters())
    ckpt.save(path, weights, c.model.config, c.tokenizer, c.path, c.algorithm, c.facts, **options)
    return path


def equal_parameters(a, b):
    a, b = dict(a.named_parameters()), dict(b.named_parameters())
    return a.keys() == b.keys() and all(torch.equal(p, b[n]) and p.dtype == b[n].dtype for n, p in a.items())


def label(value):
    return getattr(value, "__name__", str(value))


def stored(path):
    """All tensors of a checkpoint's safetensors."""
    return {n: t for file in path.glob("*.safetensors") for n, t in safetensors.torch.load_file(file).items()}


def refusal(path, **options):
    """The one sentence with which loading exits."""
    with pytest.raises(SystemExit) as error:
        ckpt.load(path, **options)
    said = error.value.code
    assert isinstance(said, str) and said and "\n" not in said
    return said


# ---- the same numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_logits_are_those_of_transformers_at_every_real_position(original, name):
    hf, _, checkpoint = original(name)
    ids, real = ragged(hf)
    expected = reference(name, hf, ids, real)[real]
    assert expected.std() > 0.5
    same(logits(checkpoint, hf), expected)


@pytest.mark.parametrize("name", ["gpt2", "gpt2, untied", "bert", "roberta"])
def test_in_double_precision_logits_differ_by_rounding_alone(original, name):
    """(Rotations and RMSNorms of `transformers` are rounded to single precision, whatever the model's.)"""
    hf, path, _ = original(name)
    ids, real = ragged(hf)
    expected = reference(name, copies.deepcopy(hf).double(), ids, real)[real]
    same(logits(ckpt.load(path, dtype=torch.float64), hf), expected, 1e-12)


@pytest.mark.parametrize("name", ALL)
def test_every_parameter_shows_in_the_logits(copy, name):
    """Or else equal logits would prove little."""
    checkpoint = ckpt.load(copy(name))
    model = checkpoint.model
    ids = torch.randint(3, EOS, (1, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model(ids)
        for parameter, p in model.named_parameters():
            kept = p.clone()
            p += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2))
            moved = (model(ids) - before).abs().max()
            # A bias of the keys adds the same to all of a query's scores, unless a rotation follows.
            unseen = parameter.endswith("attn.k.bias") and model.config.position == "learned"
            assert (moved < 1e-4) if unseen else (moved > 1e-3), parameter
            p.copy_(kept)


SETTINGS = [
    ("llada", "rope_theta", 1e4),
    ("llada", "rms_norm_eps", 0.1),
    ("dream", "rope_theta", 1e4),
    ("dream", "rms_norm_eps", 0.1),
    ("illada", "rope_theta", 1e6),
    ("a2d-qwen3", "rms_norm_eps", 0.1),
    ("gpt2", "layer_norm_epsilon", 0.1),
    ("bert", "layer_norm_eps", 0.1),
    ("modernbert", "norm_eps", 0.1),
    ("modernbert", "local_attention", 8),
    ("modernbert", "layer_types", ["full_attention"] * 5),
]


@pytest.mark.parametrize("name, key, value", SETTINGS, ids=[f"{n} {k}" for n, k, _ in SETTINGS])
def test_every_setting_shows_in_the_logits(copy, original, name, key, value):
    path = copy(name)
    edit_json(path, lambda content: content.update({key: value}))
    hf, _, checkpoint = original(name)
    assert (logits(ckpt.load(path), hf) - logits(checkpoint, hf)).abs().max() > 1e-3


@pytest.mark.parametrize("layers", ["full_attention", "sliding_attention"])
def test_both_rotations_of_modernbert_show_in_the_logits(copy, original, layers):
    path = copy("modernbert")
    edit_json(path, lambda content: content["rope_parameters"][layers].update(rope_theta=3.0))
    hf, _, checkpoint = original("modernbert")
    assert (logits(ckpt.load(path), hf) - logits(checkpoint, hf)).abs().max() > 1e-3


@pytest.mark.parametrize("name", CAUSAL)
def test_greedy_continuations_of_a_ragged_batch_are_those_of_transformers(original, name):
    hf, _, checkpoint = original(name)
    prompts = prompts_of(hf)
    ours = ar.generate(checkpoint.model, prompts, ar.SampleOptions(12, temperature=0), mask_id=None).tokens
    for prompt, continued in zip(prompts, ours):
        theirs = hf.generate(prompt[None], max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
        assert continued.tolist() == theirs[0].tolist()
    assert len({token for continued in ours for token in continued[-12:].tolist()}) > 3  # they do say something


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox"])
def test_greedy_generation_ends_at_the_end_of_text_where_transformers_does(original, name):
    hf, _, checkpoint = original(name)
    prompts = prompts_of(hf)
    free = ar.generate(checkpoint.model, prompts, ar.SampleOptions(12, temperature=0), mask_id=None).tokens
    end = int(free[0][5 + 3])
    ours = ar.generate(checkpoint.model, prompts, ar.SampleOptions(12, temperature=0), mask_id=None, eos_id=end).tokens
    assert 5 < len(ours[0]) < 5 + 12 and any(len(t) == len(p) + 12 for p, t in zip(prompts, ours))
    for prompt, continued in zip(prompts, ours):
        theirs = hf.generate(prompt[None], max_new_tokens=12, do_sample=False, eos_token_id=end, pad_token_id=0)
        assert continued.tolist() == theirs[0].tolist()


def test_sampling_a_causal_model_puts_no_mask_token_in_front_though_its_tokenizer_has_one(original, capsys):
    hf, path, checkpoint = original("llama")
    assert checkpoint.tokenizer.decode([5, MASK, 9]) == "w5 w9"
    theirs = hf.generate(torch.tensor([[5, 9, 14]]), max_new_tokens=8, do_sample=False, pad_token_id=0)
    sample.main([f"--checkpoint={path}", "--prompt=w5 w9 w14", "--temperature=0", "--max_new_tokens=8", "--device=cpu"])
    assert checkpoint.tokenizer.decode(theirs[0].tolist()) in capsys.readouterr().out.splitlines()


def plainly(name, hf, prompts, more):
    """Masked diffusion with no frills: the surest hidden position gets its best token, one after the other; the
    leftmost of those that are as sure (choice.resolution). For each prompt the list of (position, token)."""
    out = []
    for prompt in prompts:
        x, made = torch.cat([prompt, torch.full((more,), MASK)])[None], []
        while (x == MASK).any():
            p = reference(name, hf, x, torch.ones_like(x, dtype=torch.bool))[0]
            sure, token = p.index_fill(1, torch.tensor(MASK), -torch.inf).softmax(-1).max(-1)
            sure = sure.masked_fill(x[0] != MASK, -1.0)
            best = sure.max()
            behind, slack = best - sure, 2**-11.5 * best * (1 - best + 1 / 256)
            assert ((behind - slack).abs() > 1e-6).all()  # not a matter of rounding
            at = int((behind <= slack).nonzero()[0])
            x[0, at] = token[at]
            made.append((at, int(token[at])))
        out.append(made)
    return out


def events(output):
    return [[(position, token) for _, position, token, _ in made] for made in output.trace]


@pytest.mark.parametrize("name", DIFFUSION)
def test_masks_of_a_ragged_batch_are_filled_as_by_a_plain_sampler_on_transformers(original, name):
    hf, _, checkpoint = original(name)
    prompts = prompts_of(hf)
    prompts[1][3] = MASK
    options = fast_mdlm.SampleOptions(6, temperature=0)
    ours = events(fast_mdlm.generate(checkpoint.model, prompts, options, mask_id=MASK, trace=True))
    assert ours == plainly(name, hf, prompts, 6)
    assert len({token for made in ours for _, token in made}) > 1


@pytest.mark.parametrize("name, sees", [("llama", False), ("a2d-llama", True), ("dream", True), ("bert", True)])
def test_only_diffusion_models_see_what_follows(original, name, sees):
    model = original(name)[2].model
    ids = torch.arange(5, 15)[None]
    changed = ids.clone()
    changed[0, -1] = 30
    with torch.no_grad():
        assert (not torch.equal(model(ids)[:, :5], model(changed)[:, :5])) == sees


def test_the_window_of_modernbert_is_narrower_than_the_test():
    """Or else the comparison above would not see it."""
    windows = {n: MASKED[n]()[1].local_attention // 2 for n in MASKED if n.startswith("modernbert")}
    assert set(windows.values()) == {1, 3, 4} and max(windows.values()) < max(LENGTHS) // 2


@pytest.mark.parametrize("name", ["modernbert", "modernbert, biases, untied"])
def test_the_layers_of_modernbert_alternate_as_its_config_says(original, name):
    hf, _, checkpoint = original(name)
    local = [kind == "sliding_attention" for kind in hf.config.layer_types]
    assert [checkpoint.model.config.is_local(i) for i in range(5)] == local and len(set(local)) == 2


def old_modernbert(content):
    rope = content.pop("rope_parameters")
    content.pop("layer_types")
    content["global_rope_theta"] = rope["full_attention"]["rope_theta"]
    content["local_rope_theta"] = rope["sliding_attention"]["rope_theta"]
    content["global_attn_every_n_layers"] = 3


def old_gpt2(content):
    content["n_ctx"] = content.pop("n_positions")
    for key in ("activation_function", "n_inner", "tie_word_embeddings"):
        content.pop(key)


def old_bert(content):
    content.pop("tie_word_embeddings")


OLD_CONFIGS = [
    ("llama", flat_rope),
    ("llama, linear", flat_rope),
    ("llama, biases, tied, llama3", flat_rope),
    ("qwen3", flat_rope),
    ("modernbert", old_modernbert),
    ("gpt2", old_gpt2),
    ("bert", old_bert),
]


@pytest.mark.parametrize("name, age", OLD_CONFIGS, ids=label)
def test_a_config_as_older_releases_wrote_it_means_the_same(copy, original, name, age):
    path = copy(name)
    edit_json(path, age)
    assert ckpt.load(path).model.config == original(name)[2].model.config


def test_every_family_of_the_table_is_tested_here(original):
    tested = {DESCENDANTS[n][0] if n in DESCENDANTS else LIVE[n]()[0].__name__ for n in ALL}
    assert tested == FAMILIES.keys()


PRESETS = {
    "llada": "llada",
    "illada": "illada",
    "dream": "dream",
    "a2d-qwen3": "mdlm",
    "modernbert": "llada",
    "bert": "",
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_diffusion_family_brings_its_authors_sampler(original, name):
    checkpoint = original(name)[2]
    assert (checkpoint.algorithm, checkpoint.facts["preset"]) == ("mdlm", PRESETS[name])


BLOCKS = ["Qwen3-0.6B-diffusion-bd3lm-v0.1", "models--dllm-hub--Qwen3-0.6B-diffusion-bd3lm-v0.1/snapshots/0123abc"]


@pytest.mark.parametrize("directory", BLOCKS)
def test_a_model_converted_to_blocks_is_known_by_its_name(original, tmp_path, directory):
    shutil.copytree(original("a2d-qwen3")[1], tmp_path / directory)
    checkpoint = ckpt.load(tmp_path / directory)
    assert (checkpoint.algorithm, checkpoint.facts["preset"]) == ("bd3lm", "bd3lm")


def test_a_model_is_not_known_by_the_name_of_the_directories_above_it(original, tmp_path):
    path = shutil.copytree(original("a2d-qwen3")[1], tmp_path / "bd3lm-experiments" / "baselines" / "masked" / "last")
    assert ckpt.load(path).algorithm == "mdlm"


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gpt2"])
def test_a_causal_family_is_decoded_from_left_to_right(original, name):
    checkpoint = original(name)[2]
    assert checkpoint.algorithm == "ar" and checkpoint.model.config.causal


# ---- what is saved ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_saving_writes_the_tensors_that_were_loaded_under_their_own_names(original, tmp_path, name):
    _, path, checkpoint = original(name)
    before, after = stored(path), stored(save(checkpoint, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(t, after[n]) and t.dtype == after[n].dtype for n, t in before.items())


@pytest.mark.parametrize("name", ALL)
def test_saving_keeps_the_config_and_adds_only_facts_of_its_own(original, tmp_path, name):
    _, path, checkpoint = original(name)
    before = json.loads((path / "config.json").read_text())
    after = json.loads((save(checkpoint, tmp_path / "back") / "config.json").read_text())
    assert after.pop("nanodlm")["algorithm"] == checkpoint.algorithm
    assert after == before


@pytest.mark.parametrize("name", ALL)
def test_what_was_saved_loads_again_bit_for_bit(original, tmp_path, name):
    checkpoint = original(name)[2]
    again = ckpt.load(save(checkpoint, tmp_path / "back"))
    assert again.model.config == checkpoint.model.config and equal_parameters(again.model, checkpoint.model)
    assert again.algorithm == checkpoint.algorithm and again.facts["preset"] == checkpoint.facts["preset"]


@pytest.mark.parametrize("name", LIVE)
def test_transformers_reads_what_was_saved_without_a_complaint(original, tmp_path, name):
    hf, _, checkpoint = original(name)
    path = save(checkpoint, tmp_path / "back")
    again, info = type(hf).from_pretrained(path, output_loading_info=True, attn_implementation="eager")
    assert {k: list(v) for k, v in info.items() if v} == {}
    ids, real = ragged(hf)
    assert torch.equal(reference(name, again.eval(), ids, real), reference(name, hf, ids, real))


def test_trained_weights_are_what_transformers_reads_after_saving(copy, tmp_path):
    checkpoint = ckpt.load(copy("gpt2"))
    with torch.no_grad():
        for p in checkpoint.model.parameters():
            p.mul_(1.25)
    hf = tf.GPT2LMHeadModel.from_pretrained(save(checkpoint, tmp_path / "back"), attn_implementation="eager").eval()
    ids, real = ragged(hf)
    same(logits(checkpoint, hf), reference("gpt2", hf, ids, real)[real], 2e-5)


def test_facts_of_ours_survive_a_second_saving(copy, tmp_path):
    checkpoint = ckpt.load(copy("bert"))
    checkpoint.facts["iter"] = 7
    once = ckpt.load(save(checkpoint, tmp_path / "once"))
    twice = ckpt.load(save(once, tmp_path / "twice"))
    assert once.facts["iter"] == twice.facts["iter"] == 7
    config = json.loads((tmp_path / "twice" / "config.json").read_text())
    assert "nanodlm" not in config["nanodlm"] and "hf_config" not in config["nanodlm"]


def test_the_algorithm_of_the_last_training_is_the_one_that_is_saved(copy, tmp_path):
    checkpoint = ckpt.load(save(ckpt.load(copy("a2d-qwen3")), tmp_path / "mdlm"))
    checkpoint.algorithm = "bd3lm"
    assert ckpt.load(save(checkpoint, tmp_path / "blocks")).algorithm == "bd3lm"


@pytest.mark.parametrize("name", FALLBACK)
def test_a_model_that_runs_through_transformers_is_saved_in_its_own_layout(original, tmp_path, name):
    hf, _, checkpoint = original(name)
    path = save(checkpoint, tmp_path / "back")
    again, info = type(hf).from_pretrained(path, output_loading_info=True)
    assert {k: list(v) for k, v in info.items() if v} == {}
    assert equal_parameters(again, hf) and equal_parameters(ckpt.load(path).model, checkpoint.model)


def test_the_tokenizer_travels_with_a_released_checkpoint(original, tmp_path):
    checkpoint = original("modernbert")[2]
    again = ckpt.load(save(checkpoint, tmp_path / "back")).tokenizer
    kept = ("vocab_size", "eos_id", "mask_id", "stop_ids", "frame")
    assert [getattr(again, k) for k in kept] == [getattr(checkpoint.tokenizer, k) for k in kept]
    assert again.encode("w3 w44") == [3, 44] and again.decode([3, 44]) == "w3 w44"


def test_the_stop_tokens_of_the_generation_config_travel_with_a_released_checkpoint(copy, tmp_path):
    path = copy("llama")
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, EOS]}))
    checkpoint = ckpt.load(path)
    again = ckpt.load(save(checkpoint, tmp_path / "back"))
    assert (again.tokenizer.eos_id, again.tokenizer.stop_ids) == (7, (7, EOS))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limiting the size of files needs Unix")
def test_a_real_write_error_leaves_the_released_checkpoint_before_it(original, tmp_path):
    import resource

    checkpoint = original("llama")[2]
    last = save(checkpoint, tmp_path / "last")
    before = {p.name: p.read_bytes() for p in last.iterdir()}
    pid = os.fork()
    if pid == 0:
        said = "nothing was raised"
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))  # less than the tensors
        try:
            save(checkpoint, last)
        except BaseException as e:
            said = f"{type(e).__name__}: {e}"
        finally:
            (tmp_path / "said").write_text(said)
            os._exit(0)
    os.waitpid(pid, 0)
    assert (tmp_path / "said").read_text().startswith(f"OSError: could not save {last}")
    assert {p.name: p.read_bytes() for p in last.iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last", "said"]


# ---- files: shards, types, old names ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2", "modernbert"])
def test_shards_that_transformers_wrote_load_as_one_file_does(original, tmp_path, name):
    hf, path, checkpoint = original(name)
    hf.save_pretrained(tmp_path, max_shard_size="8KB")
    words(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 3 and not (tmp_path / "model.safetensors").exists()
    assert equal_parameters(ckpt.load(tmp_path).model, checkpoint.model)


@pytest.mark.parametrize("name", ["qwen3", "llada"])
def test_a_large_model_is_saved_in_shards_that_load_again(original, tmp_path, monkeypatch, name):
    checkpoint = original(name)[2]
    write_shards = huggingface_hub.save_torch_state_dict

    def small(tensors, directory, max_shard_size):
        assert max_shard_size == "5GB"
        write_shards(tensors, directory, max_shard_size=8000)

    monkeypatch.setattr(huggingface_hub, "save_torch_state_dict", small)
    path = save(checkpoint, tmp_path / "back")
    assert len(list(path.glob("*.safetensors"))) > 3 and (path / "model.safetensors.index.json").is_file()
    assert equal_parameters(ckpt.load(path).model, checkpoint.model)


def halve(tensors):
    tensors.update({n: t.bfloat16() for n, t in tensors.items()})


@pytest.mark.parametrize("name", ["llama", "gpt2", "modernbert"])
def test_a_bfloat16_file_becomes_float32_exactly(copy, original, name):
    path = copy(name)
    edit_tensors(path, halve)
    loaded = dict(ckpt.load(path).model.named_parameters())
    for n, p in original(name)[2].model.named_parameters():
        assert loaded[n].dtype == torch.float32 and torch.equal(loaded[n], p.bfloat16().float())


@pytest.mark.parametrize("name", ["qwen2", "gpt2", "dream", "distilbert"])
def test_every_parameter_has_the_type_that_was_asked_for(original, name):
    loaded = ckpt.load(original(name)[1], dtype=torch.bfloat16).model
    wanted = dict(original(name)[2].model.named_parameters())
    for n, p in loaded.named_parameters():
        assert p.dtype == torch.bfloat16 and torch.equal(p, wanted[n].bfloat16())


@pytest.mark.parametrize("name", [*ALL, *FALLBACK])
def test_a_loaded_network_is_whole_and_in_eval_mode(original, name):
    model = original(name)[2].model
    tensors = [*model.parameters(), *model.buffers()]
    assert {t.device.type for t in tensors} == {"cpu"} and all(p.is_contiguous() for p in model.parameters())
    assert not any(m.training for m in model.modules())


def test_tensors_go_to_the_device_that_was_asked_for(original):
    for name in ("llama", "gpt2"):
        loaded = ckpt.load(original(name)[1], device="meta").model  # a device that every machine has
        assert {p.device.type for p in loaded.parameters()} == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_arrive_on_a_gpu_unchanged(original):
    hf, path, checkpoint = original("gpt2")
    loaded = ckpt.load(path, device="cuda").model
    assert {p.device.type for p in loaded.parameters()} == {"cuda"}
    assert equal_parameters(loaded.cpu(), checkpoint.model)


def test_a_loaded_parameter_does_not_share_memory_with_another(original):
    model = original("gpt2")[2].model
    assert len({p.untyped_storage().data_ptr() for p in model.parameters()}) == len(list(model.parameters()))


def without_prefix(tensors):
    for name in list(tensors):
        tensors[name.removeprefix("transformer.")] = tensors.pop(name)


def with_buffers(tensors):
    for i in range(3):
        tensors[f"transformer.h.{i}.attn.bias"] = torch.ones(1, 1, 40, 40).tril()
        tensors[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)


def gamma_and_beta(tensors):
    for name in [n for n in tensors if "LayerNorm." in n]:
        tensors[name.replace(".weight", ".gamma").replace(".bias", ".beta")] = tensors.pop(name)


def pretraining_heads(tensors):
    extra = ("bert.pooler.dense", "cls.seq_relationship")
    tensors |= {f"{n}.{leaf}": torch.ones(2) for n in extra for leaf in ("weight", "bias")}
    tensors["bert.embeddings.position_ids"] = torch.arange(40)[None]


def roberta_extras(tensors):
    tensors["roberta.embeddings.position_ids"] = torch.arange(40)[None]
    tensors["lm_head.decoder.bias"] = tensors["lm_head.bias"].clone()
    tensors["roberta.pooler.dense.weight"] = torch.ones(2)


def frequencies(tensors):
    tensors |= {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(2) for i in range(3)}


def tied_head(head, embedding):
    def add(tensors):
        tensors[head] = tensors[embedding].clone()

    add.__name__ = f"a copy of the embedding as {head}"
    return add


def in_order(*changes):
    def change(tensors):
        for c in changes:
            c(tensors)

    change.__name__ = " and ".join(c.__name__ for c in changes)
    return change


LLAMA_HEAD = tied_head("lm_head.weight", "model.embed_tokens.weight")
GPT2_HEAD = tied_head("lm_head.weight", "transformer.wte.weight")
BERT_HEAD = tied_head("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight")
OLD_FILES = [
    ("gpt2", without_prefix),
    ("gpt2", with_buffers),
    ("gpt2", in_order(with_buffers, without_prefix)),
    pytest.param("gpt2", GPT2_HEAD),
    ("bert", gamma_and_beta),
    ("bert", pretraining_heads),
    ("bert", in_order(pretraining_heads, gamma_and_beta)),
    ("bert", BERT_HEAD),
    ("roberta", roberta_extras),
    ("roberta", tied_head("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight")),
    ("modernbert", tied_head("decoder.weight", "model.embeddings.tok_embeddings.weight")),
    ("llama", frequencies),
    ("a2d-qwen3", LLAMA_HEAD),
    ("a2d-llama", in_order(frequencies, LLAMA_HEAD)),
    ("llada, qkv biases, tied", tied_head("model.transformer.ff_out.weight", "model.transformer.wte.weight")),
]


@pytest.mark.parametrize("name, age", OLD_FILES, ids=label)
def test_a_file_as_older_releases_wrote_it_loads_the_same(copy, original, name, age):
    path = copy(name)
    edit_tensors(path, age)
    assert stored(path).keys() != stored(original(name)[1]).keys()
    assert equal_parameters(ckpt.load(path).model, original(name)[2].model)


TWINS = [
    ("a2d-qwen3", "lm_head.weight", "model.embed_tokens.weight"),
    ("bert", "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    pytest.param("gpt2", "lm_head.weight", "transformer.wte.weight"),
]


@pytest.mark.parametrize("name, head, embedding", TWINS)
def test_a_tied_head_that_differs_from_the_embedding_is_refused_by_name(copy, name, head, embedding):
    path = copy(name)
    edit_tensors(path, lambda tensors: tensors.update({head: tensors[embedding] + 1e-3}))
    said = refusal(path)
    assert head in said and embedding in said and "differ" in said


# ---- strictness ------------------------------------------------------------------------------------------------------

EXAMPLES = [
    ("llama", "model.layers.1.self_attn.k_proj.weight"),
    ("gpt2", "transformer.h.2.attn.c_attn.bias"),
    ("bert", "bert.encoder.layer.0.output.LayerNorm.weight"),
    ("roberta", "lm_head.bias"),
    ("modernbert", "model.layers.1.attn.Wqkv.weight"),
    ("llada", "model.transformer.ff_out.weight"),
    ("dream", "model.layers.0.self_attn.q_proj.bias"),
    ("a2d-qwen3", "model.layers.2.self_attn.q_norm.weight"),
]


@pytest.mark.parametrize("name, tensor", EXAMPLES)
def test_a_missing_tensor_is_named_as_its_family_names_it(copy, name, tensor):
    path = copy(name)
    edit_tensors(path, lambda tensors: tensors.pop(tensor))
    assert f"{tensor} is missing" in refusal(path)


EXTRA = [
    ("llama", "model.layers.0.self_attn.q_proj.bias"),
    ("llama", "model.layers.3.input_layernorm.weight"),
    ("gpt2", "transformer.h.0.attn.c_attn.scale"),
    ("bert", "bert.encoder.layer.0.adapter.weight"),
    ("modernbert", "model.layers.0.attn_norm.weight"),
    ("llada", "model.transformer.blocks.0.q_norm.weight"),
    ("a2d-qwen2", "model.layers.0.self_attn.q_proj.weight_scale"),
]


@pytest.mark.parametrize("name, tensor", EXTRA)
def test_an_unexpected_tensor_is_named(copy, name, tensor):
    path = copy(name)
    edit_tensors(path, lambda tensors: tensors.update({tensor: torch.ones(16)}))
    assert f"{tensor} is not part of this architecture" in refusal(path)


def test_an_unexpected_tensor_of_an_old_file_is_named_as_the_file_names_it(copy):
    path = copy("gpt2")
    edit_tensors(path, lambda tensors: (without_prefix(tensors), tensors.update({"h.0.extra": torch.ones(2)})))
    assert " h.0.extra is not part of this architecture" in refusal(path)


@pytest.mark.parametrize("name, tensor", EXAMPLES)
def test_a_tensor_of_another_shape_is_named_with_both_shapes(copy, name, tensor):
    path = copy(name)
    right = stored(path)[tensor].shape
    edit_tensors(path, lambda tensors: tensors.update({tensor: torch.ones(3, 5)}))
    said = refusal(path)
    assert f"{tensor} has shape (3, 5)" in said and str(tuple(right)) in said


def test_a_matrix_that_is_not_transposed_as_its_family_stores_it_is_refused(copy):
    path, name = copy("gpt2"), "transformer.h.0.mlp.c_fc.weight"
    edit_tensors(path, lambda tensors: tensors.update({name: tensors[name].T.contiguous()}))
    assert f"{name} has shape (64, 16), config.json says (16, 64)" in refusal(path)


def test_of_many_wrong_tensors_four_are_named_and_the_rest_counted(copy):
    path = copy("llama")
    edit_tensors(path, lambda tensors: [tensors.pop(n) for n in list(tensors) if "layernorm" in n])
    said = refusal(path)
    assert said.count(" is missing") == 4 and "and 2 more" in said


@pytest.mark.parametrize("architecture", ["LlamaForSequenceClassification", "BertModel", "LLaDAMoEModelLM"])
def test_an_architecture_that_is_no_language_model_is_named(copy, architecture):
    path = copy("llama")
    edit_json(path, lambda content: content.update(architectures=[architecture]))
    said = refusal(path)
    assert architecture in said and "LLaDAModelLM" in said


def test_a_language_model_that_nobody_knows_is_named(copy):
    path = copy("llama")
    edit_json(path, lambda content: content.update(architectures=["NovelForCausalLM"], model_type="novel"))
    assert "NovelForCausalLM" in refusal(path)


SIZES_OF = dict(
    llada="d_model n_layers n_heads max_sequence_length rms_norm_eps rope_theta weight_tying include_qkv_bias".split(),
    illada="hidden_size rms_norm_eps rope_theta vocab_size".split(),
    dream="num_hidden_layers num_attention_heads intermediate_size max_position_embeddings rope_theta".split(),
    gpt2="vocab_size n_layer n_head n_embd layer_norm_epsilon".split(),
    bert="hidden_size intermediate_size layer_norm_eps type_vocab_size max_position_embeddings".split(),
    roberta="pad_token_id layer_norm_eps".split(),
    modernbert="hidden_size local_attention norm_eps norm_bias attention_bias decoder_bias".split(),
)


@pytest.mark.parametrize("name, key", [(n, k) for n, keys in SIZES_OF.items() for k in keys])
def test_a_missing_setting_is_named_and_never_guessed(copy, name, key):
    path = copy(name)
    edit_json(path, lambda content: content.pop(key))
    said = refusal(path)
    assert f"'{key}'" in said and "config.json" in said


def test_modernbert_without_its_pattern_of_layers_is_refused(copy):
    path = copy("modernbert")
    edit_json(path, lambda content: content.pop("layer_types"))
    assert "global_attn_every_n_layers" in refusal(path)


UNSUPPORTED = [
    ("llama", {"hidden_act": "gelu"}),
    ("llama", {"pretraining_tp": 2}),
    ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}),
    ("dream", {"rope_scaling": {"type": "yarn", "factor": 4.0}}),
    ("illada", {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}),
    ("qwen2", {"use_sliding_window": True}),
    ("qwen3", {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}),
    ("llada", {"block_type": "sequential"}),
    ("llada", {"activation_type": "swiglu"}),
    ("llada", {"layer_norm_type": "low_precision"}),
    ("llada", {"rope": False}),
    ("llada", {"alibi": True}),
    ("llada", {"include_bias": True}),
    ("llada", {"scale_logits": True}),
    ("llada", {"attention_layer_norm": True}),
    ("gpt2", {"activation_function": "relu"}),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    ("gpt2", {"scale_attn_weights": False}),
    ("bert", {"hidden_act": "gelu_new"}),
    ("bert", {"position_embedding_type": "relative_key"}),
    ("roberta", {"is_decoder": True}),
    ("modernbert", {"hidden_activation": "silu"}),
    ("modernbert", {"layer_types": ["full_attention"] * 2 + ["sliding_attention"] * 3}),
]


@pytest.mark.parametrize("name, settings", UNSUPPORTED, ids=[f"{n} {s}" for n, s in UNSUPPORTED])
def test_a_setting_that_our_network_does_not_have_is_named_with_its_value(copy, name, settings):
    path = copy(name)
    edit_json(path, lambda content: content.update(settings))
    said = refusal(path)
    key, value = next(iter(settings.items()))
    if isinstance(value, dict):
        key, value = "rope_type", value.get("rope_type", value.get("type"))
    assert key in said and "not supported" in said
    assert isinstance(value, list) or repr(value) in said


def test_scaled_rotations_of_modernbert_are_refused(copy):
    path = copy("modernbert")
    scaled = {"rope_type": "linear", "rope_theta": 160000.0, "factor": 4.0}
    edit_json(path, lambda content: content["rope_parameters"].update(full_attention=scaled))
    assert "linear" in refusal(path)


@pytest.mark.parametrize("name", UNTIED)
def test_an_untied_head_of_bert_with_a_bias_of_its_own_is_refused(tmp_path, name):
    """transformers 4 adds predictions.bias, transformers 5 predictions.decoder.bias: no reading suits both."""
    write(name, tmp_path)
    assert "tie_word_embeddings=False is not supported" in refusal(tmp_path)


def test_a_scaling_that_lacks_its_factor_is_named(copy):
    path = copy("llama, linear")
    edit_json(path, lambda content: content["rope_parameters"].pop("factor"))
    assert "'factor'" in refusal(path)


@pytest.mark.parametrize("name", ["bert", "modernbert", "dream", "llada", "distilbert"])
def test_a_diffusion_model_without_a_mask_token_is_refused(copy, name):
    path = copy(name)
    words(path, mask_token=None)
    edit_json(path, lambda content: content.pop("mask_token_id", None))
    assert "mask token" in refusal(path)


@pytest.mark.parametrize("mask", [VOCAB, -1])
def test_a_mask_outside_the_vocabulary_is_named(copy, mask):
    path = copy("dream")
    edit_json(path, lambda content: content.update(mask_token_id=mask))
    said = refusal(path)
    assert f"mask_id {mask}" in said and f"vocab_size={VOCAB}" in said


def test_an_end_of_text_outside_the_vocabulary_is_named(copy):
    path = copy("llama")
    (path / "generation_config.json").unlink()
    edit_json(path, lambda content: content.update(eos_token_id=99))
    said = refusal(path)
    assert "eos_id 99" in said and f"vocab_size={VOCAB}" in said


def test_a_causal_model_needs_no_mask_token(copy):
    path = copy("llama")
    words(path, mask_token=None)
    assert ckpt.load(path).tokenizer.mask_id is None


@pytest.mark.parametrize("content", ["", "{", "[]", "5", '{"architectures": 5}', '{"architectures": [5]}'])
def test_a_config_that_is_none_is_refused(copy, content):
    path = copy("llama")
    (path / "config.json").write_text(content)
    assert str(path) in refusal(path)


def test_a_missing_tokenizer_is_named(copy):
    path = copy("llama")
    for file in path.glob("tokenizer*"):
        file.unlink()
    said = refusal(path)
    assert str(path) in said and "tokenizer" in said


@pytest.fixture
def shards(original, tmp_path):
    """A directory with a checkpoint in several shards, and the path of one of them."""
    path = tmp_path / "shards"
    original("llama")[0].save_pretrained(path, max_shard_size="8KB")
    words(path)
    return path, sorted(path.glob("*.safetensors"))[2]


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "missing"])
def test_a_damaged_shard_is_named(shards, damage):
    path, shard = shards
    content = shard.read_bytes()
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes({"cut": content[:-100], "empty": b"", "garbage": b"\xff" * len(content)}[damage])
    assert f"{shard} cannot be read" in refusal(path)


def test_a_shard_that_the_index_forgets_leaves_its_tensors_missing(shards):
    path, shard = shards

    def forget(content):
        content["weight_map"] = {n: f for n, f in content["weight_map"].items() if f != shard.name}

    edit_json(path, forget, "model.safetensors.index.json")
    lost = sorted(safetensors.torch.load_file(shard))
    assert f"{lost[0]} is missing" in refusal(path)


@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_a_damaged_index_is_named(shards, content):
    path, _ = shards
    (path / "model.safetensors.index.json").write_text(content)
    assert "model.safetensors.index.json" in refusal(path)


def test_a_checkpoint_without_weights_says_what_it_lacks(copy):
    path = copy("llama")
    (path / "model.safetensors").unlink()
    said = refusal(path)
    assert str(path) in said and "model.safetensors" in said and "--pickle" not in said


# ---- pickled weights -------------------------------------------------------------------------------------------------


def pickled(path, change=lambda tensors: None, **options):
    """Turn a checkpoint's safetensors into a pytorch_model.bin."""
    tensors = stored(path)
    change(tensors)
    torch.save(tensors, path / "pytorch_model.bin", **options)
    (path / "model.safetensors").unlink()
    return path


def test_a_pickle_is_refused_with_the_way_out(copy):
    said = refusal(pickled(copy("gpt2")))
    assert "pytorch_model.bin" in said and "--pickle" in said


@pytest.mark.parametrize("name", ["gpt2", "bert", "llama"])
def test_a_pickle_loads_where_it_is_asked_for(copy, original, name):
    loaded = ckpt.load(pickled(copy(name)), pickle=True).model
    assert equal_parameters(loaded, original(name)[2].model)


def test_a_pickle_of_the_old_format_loads_where_it_is_asked_for(copy, original):
    path = pickled(copy("bert"), gamma_and_beta, _use_new_zipfile_serialization=False)
    assert equal_parameters(ckpt.load(path, pickle=True).model, original("bert")[2].model)


def test_sharded_pickles_load_where_they_are_asked_for(copy, original):
    path, names = copy("llama"), {}
    for i, (name, tensor) in enumerate(stored(path).items()):
        names[name] = f"pytorch_model-{i:05}.bin"
        torch.save({name: tensor}, path / names[name])
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    (path / "model.safetensors").unlink()
    assert "--pickle" in refusal(path)
    assert equal_parameters(ckpt.load(path, pickle=True).model, original("llama")[2].model)


def test_safetensors_go_before_a_pickle(copy, original):
    path = copy("llama")
    (path / "pytorch_model.bin").write_bytes(b"nothing good")
    assert equal_parameters(ckpt.load(path, pickle=True).model, original("llama")[2].model)


@pytest.mark.parametrize("name", ["distilbert"])
def test_a_pickle_that_runs_through_transformers_is_refused_and_loaded_alike(copy, original, name):
    path = pickled(copy(name))
    refusal(path)
    assert equal_parameters(ckpt.load(path, pickle=True).model, original(name)[2].model)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["gpt2", "distilbert"])
def test_a_malicious_pickle_runs_no_code(copy, tmp_path, name):
    path, proof = copy(name), tmp_path / "proof"
    pickled(path, lambda tensors: tensors.update(evil=Malicious(proof)))
    torch.load(path / "pytorch_model.bin", weights_only=False)
    proof.rmdir()  # the attack is a real one: plain unpickling ran it
    refusal(path, pickle=True)
    assert not proof.exists()


def test_a_pickle_of_something_else_is_named(copy):
    path = copy("gpt2")
    (path / "model.safetensors").unlink()
    torch.save({"state_dict": {"a": torch.ones(1)}}, path / "pytorch_model.bin")
    assert f"{path / 'pytorch_model.bin'} cannot be read" in refusal(path, pickle=True)


def with_code(path, proof):
    """Give a checkpoint code of its own, which leaves a proof where it is run."""
    for file in ("configuration_own.py", "modeling_own.py", "tokenization_own.py"):
        (path / file).write_text(f"import os\nos.mkdir({str(proof)!r})\n")
    remote = {"AutoConfig": "configuration_own.C"}
    remote |= {a: "modeling_own.M" for a in ("AutoModel", "AutoModelForCausalLM", "AutoModelForMaskedLM")}
    edit_json(path, lambda content: content.update(auto_map=remote, model_type="own"))
    remote = {"AutoTokenizer": ["tokenization_own.T", None]}
    edit_json(path, lambda content: content.update(auto_map=remote), "tokenizer_config.json")


@pytest.mark.parametrize("name", ["dream", "llada", "llama"])
def test_a_familys_own_code_is_never_run(copy, original, tmp_path, name):
    path = copy(name)
    with_code(path, tmp_path / "proof")
    assert equal_parameters(ckpt.load(path).model, original(name)[2].model)
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("architecture", ["NovelForCausalLM", "NovelForMaskedLM"])
def test_the_code_of_a_model_that_nobody_knows_is_never_run(copy, tmp_path, architecture):
    path = copy("llama")
    with_code(path, tmp_path / "proof")
    edit_json(path, lambda content: content.update(architectures=[architecture]))
    assert architecture in refusal(path)
    assert not (tmp_path / "proof").exists()


# ---- the hub ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(cold, monkeypatch, tmp_path):
    """Our hub (conftest.py): hub.put(directory, name) puts a model there. We stand in an empty directory."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = {*(cold.directory / "models").glob("*/*")}
    cold.put = lambda path, name: Path(shutil.copytree(path, cold.directory / "models" / name))
    yield cold
    for path in {*(cold.directory / "models").glob("*/*")} - before:
        shutil.rmtree(path)


def test_a_name_of_the_hub_is_downloaded_and_loaded(hub, original):
    hub.put(original("llama")[1], "some-org/tiny.llama-1")
    assert equal_parameters(ckpt.load("some-org/tiny.llama-1").model, original("llama")[2].model)
    assert len(hub.asked("/some-org/tiny.llama-1/resolve/")) >= 3


@pytest.mark.parametrize("revision", ["v1.0", "refs/pr/3", "0123abc"])
def test_a_revision_of_the_hub_is_asked_for(hub, original, revision):
    hub.put(original("llama")[1], "org/name")
    hub.put(original("qwen2")[1], quoted("org/name", revision))
    assert equal_parameters(ckpt.load(f"org/name@{revision}").model, original("qwen2")[2].model)
    assert equal_parameters(ckpt.load("org/name").model, original("llama")[2].model)


@pytest.mark.parametrize("pickle", [False, True])
def test_pickles_are_downloaded_only_where_they_are_asked_for(hub, original, pickle):
    path = hub.put(original("llama")[1], "org/name")
    needed = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json"]
    needed += ["generation_config.json", "merges.txt", "vocab.txt", "chat_template.jinja", "tokenizer.model"]
    pickles = ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"]
    for name in (*needed, *pickles, "modeling_dream.py", "model.gguf", "tf_model.h5", "README.md"):
        (path / name).touch()
    found = {p.name for p in ckpt.find("org/name", pickle).iterdir()}
    assert found == {p.name for p in original("llama")[1].iterdir()} | {*needed} | ({*pickles} if pickle else set())


def test_a_download_that_fails_is_one_sentence_that_names_the_repository(hub):
    hub.stop()
    said = refusal("org/name")
    assert "org/name" in said and "cannot be reached" in said


def test_a_repository_without_a_config_is_named(hub, tmp_path):
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf/vocab.txt").touch()
    hub.put(tmp_path / "gguf", "org/name")
    assert "no checkpoint in 'org/name': the hub's repository has no config.json" in refusal("org/name")


def test_a_directory_goes_before_the_hub(hub, original):
    shutil.copytree(original("llama")[1], "org/name")
    assert ckpt.load("org/name").path == Path("org/name") and not hub.log


def test_a_project_directory_goes_before_the_hub(hub, original, monkeypatch, tmp_path):
    shutil.copytree(original("llama")[1], tmp_path / "project" / "out" / "run" / "best")
    monkeypatch.setattr(ckpt, "ROOT", tmp_path / "project")
    ckpt.load("out/run")
    assert not hub.log


@pytest.mark.parametrize("where", ["here", "project"])
def test_a_name_in_a_directory_that_exists_never_asks_the_hub(hub, monkeypatch, tmp_path, where):
    (tmp_path / where / "out").mkdir(parents=True)
    monkeypatch.setattr(ckpt, "ROOT", tmp_path / "project")
    assert "'out/quickstart'" in refusal("out/quickstart") and not hub.log


@pytest.mark.parametrize("name", ["nothing", "a/b/c", "./name", "../name", "/org/name", "org/", "org/na me"])
def test_what_is_no_name_of_the_hub_never_asks_it(hub, name):
    assert repr(name) in refusal(name) and not hub.log


# ---- any other architecture, through transformers --------------------------------------------------------------------


@pytest.mark.parametrize("name", FALLBACK)
def test_an_unknown_language_model_gives_the_logits_of_transformers(original, name):
    hf, _, checkpoint = original(name)
    ids, real = ragged(hf)
    same(logits(checkpoint, hf), reference(name, hf, ids, real)[real])
    assert checkpoint.algorithm == ("mdlm" if name == "distilbert" else "ar")


@pytest.mark.parametrize("name", FALLBACK)
@torch.no_grad()
def test_an_unknown_language_model_gives_logits_of_some_rows(original, name):
    hf, _, checkpoint = original(name)
    ids, real = ragged(hf)
    wanted = real & (torch.arange(20) % 3 == 0)
    everywhere = checkpoint.model(ids, mask=real)
    assert torch.equal(checkpoint.model(ids, mask=real, rows=wanted), everywhere[wanted])
    assert torch.equal(checkpoint.model(ids, mask=real, rows=wanted.flatten().nonzero()[:, 0]), everywhere[wanted])
    halves = checkpoint.model.head(checkpoint.model.hidden(ids, mask=real, rows=wanted))
    assert torch.equal(halves, everywhere[wanted])


@pytest.mark.parametrize("name", ["gpt-neox", "opt"])
def test_an_unknown_causal_model_continues_a_ragged_batch_as_transformers_does(original, name):
    hf, _, checkpoint = original(name)
    prompts = prompts_of(hf)
    ours = ar.generate(checkpoint.model, prompts, ar.SampleOptions(12, temperature=0), mask_id=None).tokens
    for prompt, continued in zip(prompts, ours):
        theirs = hf.generate(prompt[None], max_new_tokens=12, do_sample=False, eos_token_id=None)
        assert continued.tolist() == theirs[0].tolist()


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_an_unknown_masked_model_fills_masks_as_a_plain_sampler_with_every_cache(original, cache):
    hf, _, checkpoint = original("distilbert")
    prompts, options = prompts_of(hf), fast_mdlm.SampleOptions(6, temperature=0, cache=cache)
    ours = fast_mdlm.generate(checkpoint.model, prompts, options, mask_id=MASK, trace=True)
    assert events(ours) == plainly("distilbert", hf, prompts, 6)


@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_the_cache_of_an_unknown_masked_model_is_exact_over_many_blocks(original, cache, cfg_scale):
    hf, _, checkpoint = original("distilbert")
    prompts = prompts_of(hf)
    options = dict(max_new_tokens=12, block_size=4, temperature=0, steps=6, cfg_scale=cfg_scale)
    exact = fast_mdlm.generate(checkpoint.model, prompts, fast_mdlm.SampleOptions(**options), mask_id=MASK).tokens
    cached = fast_mdlm.generate(
        checkpoint.model, prompts, fast_mdlm.SampleOptions(**options, cache=cache), mask_id=MASK
    ).tokens
    assert [t.tolist() for t in cached] == [t.tolist() for t in exact]


@pytest.mark.parametrize("name", ["distilbert", "gpt-neox"])
def test_an_unknown_model_obeys_a_mask_of_who_sees_whom_but_has_no_attention_by_tiles(original, name):
    model = original(name)[2].model
    ids, text = torch.arange(6)[None] + 3, torch.tensor([0, 0, 0, 1, 1, 1])
    apart = (text[:, None] == text)[None]
    other = ids.clone()
    other[0, 4] = 50
    with torch.no_grad():
        a, b = (model(x, mask=apart)[0] for x in (ids, other))
        assert torch.equal(a[:3], b[:3]) and not torch.allclose(a[3], b[3])  # a later token is seen, but no other text
    with pytest.raises(ValueError, match="no attention by blocks"):
        model(ids, mask=Tiles(apart[0], 3))


@pytest.mark.parametrize("name", FALLBACK)
def test_an_unknown_model_has_a_networks_interface(original, name):
    hf, _, checkpoint = original(name)
    model = checkpoint.model
    assert (model.config.vocab_size, model.config.causal) == (VOCAB, checkpoint.algorithm == "ar")
    assert model.config.seq_len == hf.config.max_position_embeddings
    assert model.num_params() == hf.num_parameters() and isinstance(model.cache(2, 8), KVCache)


def test_a_missing_tensor_of_an_unknown_model_is_named(copy):
    path, name = copy("distilbert"), "distilbert.transformer.layer.0.attention.q_lin.weight"
    edit_tensors(path, lambda tensors: tensors.pop(name))
    assert name in refusal(path)


def test_an_unexpected_tensor_of_an_unknown_model_is_named(copy):
    path, name = copy("distilbert"), "distilbert.transformer.layer.0.adapter.weight"
    edit_tensors(path, lambda tensors: tensors.update({name: torch.ones(2)}))
    assert name in refusal(path)


def test_a_tensor_of_another_shape_of_an_unknown_model_is_named(copy):
    path, name = copy("distilbert"), "distilbert.transformer.layer.0.attention.q_lin.weight"
    edit_tensors(path, lambda tensors: tensors.update({name: torch.ones(3, 5)}))
    assert name in refusal(path)


def test_damaged_weights_of_an_unknown_model_are_one_sentence(copy):
    path = copy("distilbert")
    (path / "model.safetensors").write_bytes(b"\xff" * 1000)
    assert str(path) in refusal(path)


# ---- memory ----------------------------------------------------------------------------------------------------------

PEAK = """
import sys, torch
from nanodlm import checkpoint as ckpt
def memory(key):  # in MB; getrusage would tell the peak of the process that started this one
    (line,) = [line for line in open("/proc/self/status") if line.startswith(key)]
    return int(line.split()[1]) / 1024
ckpt.load(sys.argv[1])
before = memory("VmRSS")
checkpoint = ckpt.load(sys.argv[2], dtype=torch.bfloat16)
size = sum(p.numel() * p.element_size() for p in checkpoint.model.parameters()) / 2**20
print(size, memory("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measures Linux's peak resident memory")
def test_loading_shards_needs_the_memory_of_the_model_and_one_shard(original, tmp_path):
    big = tmp_path / "big"
    big.mkdir()
    words(big)
    config = tf.LlamaConfig(**SIZES | dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=6))
    with torch.device("meta"):
        hf = tf.LlamaForCausalLM(config)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(big)
    tensors = {n: torch.full(p.shape, 0.5, dtype=torch.bfloat16) for n, p in hf.named_parameters()}
    huggingface_hub.save_torch_state_dict(tensors, big, max_shard_size=20 * 2**20)
    largest = max(file.stat().st_size for file in big.glob("*.safetensors")) / 2**20
    assert len(list(big.glob("*.safetensors"))) >= 6
    command = [sys.executable, "-c", PEAK, str(original("llama")[1]), str(big)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    size, grown = map(float, done.stdout.split())
    assert size > 100 and size * 0.9 < grown < size + largest + 20


# ---- tokenizers ------------------------------------------------------------------------------------------------------


def load_words(path, config=None, generation=None, **settings):
    """A tokenizer of kind "hf" beside these two files."""
    words(path, **settings)
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        if content is not None:
            (path / name).write_text(json.dumps(content))
    return tokenizers.load({"kind": "hf"}, path)


def test_special_ids_are_the_tokenizers_where_no_config_says_more(tmp_path):
    t = load_words(tmp_path)
    assert (t.eos_id, t.mask_id, t.stop_ids, t.vocab_size) == (EOS, MASK, (EOS,), VOCAB)


def test_the_config_goes_before_the_tokenizer(tmp_path):
    t = load_words(tmp_path, config={"eos_token_id": 7, "mask_token_id": 0, "model_type": "llada"})
    assert (t.eos_id, t.mask_id, t.stop_ids) == (7, 0, (7, EOS))


def test_the_generation_config_goes_before_the_config(tmp_path):
    t = load_words(tmp_path, config={"eos_token_id": 7}, generation={"eos_token_id": [9, 8]})
    assert (t.eos_id, t.stop_ids) == (9, (9, 8, EOS))


def test_an_end_of_text_with_the_id_0_is_one(tmp_path):
    t = load_words(tmp_path, config={"eos_token_id": 0})
    assert (t.eos_id, t.stop_ids) == (0, (0, EOS))


def test_padding_ends_a_text_where_no_token_is_made_for_it(tmp_path):
    t = load_words(tmp_path, config={"pad_token_id": 5}, eos_token=None)
    assert (t.eos_id, t.stop_ids) == (5, (5,))


def test_a_tokenizer_without_special_tokens_has_none(tmp_path):
    t = load_words(tmp_path, eos_token=None, mask_token=None)
    assert (t.eos_id, t.mask_id, t.stop_ids, t.chat) == (None, None, (), None)


@pytest.mark.parametrize("token", ["<|mdm_mask|>", "<|mask|>", "<[MASK]>"])
def test_a_mask_is_recognised_by_the_names_that_released_models_give_it(tmp_path, token):
    t = load_words(tmp_path, mask_token=None, extra_special_tokens=[token])
    assert t.mask_id == VOCAB and t.vocab_size == VOCAB + 1


@pytest.mark.parametrize("token", ["<|eot_id|>", "<|im_end|>", "<|role_end|>", "<end_of_turn>"])
def test_the_end_of_a_turn_stops_generation(tmp_path, token):
    t = load_words(tmp_path, extra_special_tokens=[token])
    assert t.stop_ids == (EOS, VOCAB) and t.eos_id == EOS


def test_a_tokenizer_that_frames_texts_says_how(tmp_path):
    t = load_words(tmp_path, post_processor="<cls> $A <sep>")
    assert t.frame == ((58,), (59,)) and t.encode("w4 w5") == [4, 5]


def test_a_tokenizer_that_begins_texts_says_how(tmp_path):
    t = load_words(tmp_path, post_processor="<cls> <cls> $A")
    assert t.frame == ((58, 58), ()) and t.encode("w4 w5") == [4, 5]


def test_a_tokenizer_that_frames_no_text_has_an_empty_frame(tmp_path):
    assert load_words(tmp_path).frame == ((), ())


def test_special_ids_decode_to_nothing(tmp_path):
    assert load_words(tmp_path).decode([MASK, 4, EOS, 5, MASK]) == "w4 w5"


TEMPLATE = "{{ eos_token }} {% for m in messages %}<sep> {{ m.role }} {{ m.content }} {% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}<sep> w9{% endif %}"


def test_a_chat_is_encoded_as_its_template_says_and_not_framed_again(tmp_path):
    t = load_words(tmp_path, post_processor="<cls> $A <sep>", chat_template=TEMPLATE)
    messages = [{"role": "w1", "content": "w20 w21"}, {"role": "w2", "content": "w22"}]
    assert t.chat(messages) == [EOS, 59, 1, 20, 21, 59, 2, 22, 59, 9]


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_chat_template_is_read_from_either_place(tmp_path, name):
    words(tmp_path)
    if name.endswith("jinja"):
        (tmp_path / name).write_text(TEMPLATE)
    else:
        edit_json(tmp_path, lambda content: content.update(chat_template=TEMPLATE), name)
    t = tokenizers.load({"kind": "hf"}, tmp_path)
    assert t.chat([{"role": "w1", "content": "w2"}]) == [EOS, 59, 1, 2, 59, 9]


def test_a_chat_template_travels_with_the_checkpoint(copy, tmp_path):
    path = copy("llama")
    words(path, chat_template=TEMPLATE)
    checkpoint = ckpt.load(path)
    again = ckpt.load(save(checkpoint, tmp_path / "back"))
    messages = [{"role": "w1", "content": "w2"}]
    assert again.tokenizer.chat(messages) == checkpoint.tokenizer.chat(messages) == [EOS, 59, 1, 2, 59, 9]


def test_a_tokenizer_class_that_nobody_knows_is_read_by_its_tokenizer_json(tmp_path):
    words(tmp_path)
    remote = {"AutoTokenizer": ["tokenization_novel.NovelTokenizer", None]}
    change = dict(tokenizer_class="NovelTokenizer", auto_map=remote)
    edit_json(tmp_path, lambda content: content.update(change), "tokenizer_config.json")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "novel", "mask_token_id": MASK}))
    t = tokenizers.load({"kind": "hf"}, tmp_path)
    assert t.encode("w4 w5") == [4, 5] and (t.eos_id, t.mask_id) == (EOS, MASK)


@pytest.fixture
def dream(tmp_path):
    """Dream's tokenizer as it is published: Qwen2's files, and a class of its own in Python, which is never run."""
    core = hf_tokenizers.Tokenizer(hf_tokenizers.models.BPE())
    core.pre_tokenizer = hf_tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = hf_tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=hf_tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator(["to be or not to be, that is the question"] * 5, trainer)
    core.model.save(str(tmp_path))
    n = core.get_vocab_size()
    added = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|beginoftext|>", "<|mask|>"]
    flags = dict(lstrip=False, normalized=False, rstrip=False, single_word=False, special=True)
    content = {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "added_tokens_decoder": {str(n + i): {"content": t, **flags} for i, t in enumerate(added)},
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "bos_token": "<|beginoftext|>",
        "mask_token": "<|mask|>",
        "add_bos_token": False,
        "unk_token": None,
        "errors": "replace",
        "chat_template": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(content))
    (tmp_path / "tokenization_dream.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'proof')!r})\n")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "Dream", "mask_token_id": n + 4}))
    assert {"vocab.json", "merges.txt"} <= {p.name for p in tmp_path.iterdir()}
    return core, n, tmp_path


def test_dreams_tokenizer_loads_without_its_code(dream):
    core, n, path = dream
    t = tokenizers.load({"kind": "hf"}, path)
    text = "not to be, that is the question é"
    assert t.encode(text) == core.encode(text).ids and t.decode(t.encode(text)) == text
    assert (t.eos_id, t.mask_id, t.stop_ids, t.vocab_size) == (n, n + 4, (n, n + 2), n + 5)
    assert not (path / "proof").exists()


def test_dreams_chat_is_encoded_with_its_special_tokens(dream):
    core, n, path = dream
    ids = tokenizers.load({"kind": "hf"}, path).chat([{"role": "user", "content": "to be"}])
    question, answer, end = (core.encode(text).ids for text in ("user\nto be", "assistant\n", "\n"))
    assert ids == [n + 1, *question, n + 2, *end, n + 1, *answer]


def test_dreams_tokenizer_is_saved_in_the_same_files(dream, tmp_path):
    _, _, path = dream
    t = tokenizers.load({"kind": "hf"}, path)
    (tmp_path / "back").mkdir()
    tokenizers.save_files(t.spec, path, tmp_path / "back")
    shutil.copyfile(path / "config.json", tmp_path / "back" / "config.json")
    again = tokenizers.load({"kind": "hf"}, tmp_path / "back")
    assert again.encode("to be<|mask|>") == t.encode("to be<|mask|>") and again.stop_ids == t.stop_ids
