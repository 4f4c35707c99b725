"""Released families: what their checkpoints compute, we compute; what we write, they read; what does not fit is named.

Every checkpoint here is a tiny random one, written in its family's own layout. The independent implementation is
`transformers`: its own class, or, for the bidirectional descendants of a causal model, that class under a full mask.
"""

import copy as copies
import ctypes
import functools
import gc
import importlib.util
import json
import os
import re
import shutil
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
from model import KVCache
from nanodlm import checkpoint as ckpt
from nanodlm import fast_mdlm, lora
from nanodlm import tokenizer as tokenizers
from nanodlm.attention import Tiles
from nanodlm.families import FAMILIES

tf.utils.logging.disable_progress_bar()

EOS, MASK, VOCAB, LENGTHS = 56, 57, 60, (20, 13, 1)
SPECIAL = {"<eos>": EOS, "<mask>": MASK, "<cls>": 58, "<sep>": 59}
SHAPE = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=4)
SIZES = dict(vocab_size=VOCAB, **SHAPE, bos_token_id=None, pad_token_id=None, eos_token_id=EOS)
BERT_SIZES = SIZES | dict(pad_token_id=0, max_position_embeddings=40)
MODERN_SIZES = BERT_SIZES | dict(num_hidden_layers=5, cls_token_id=58, sep_token_id=59, bos_token_id=58)
MOE_SIZES = SIZES | dict(num_key_value_heads=2, head_dim=8, moe_intermediate_size=24, num_experts_per_tok=2)
GLM_SIZES = MOE_SIZES | dict(n_routed_experts=8, n_shared_experts=2, n_group=4, topk_group=2, use_qk_norm=True)
GLM_SIZES |= dict(first_k_dense_replace=1, routed_scaling_factor=2.5, rms_norm_eps=1e-6)
GPT2_SIZES = dict(vocab_size=VOCAB, n_embd=16, n_layer=3, n_head=4, n_positions=40, eos_token_id=EOS, bos_token_id=EOS)
DISTIL_SIZES = dict(vocab_size=VOCAB, dim=16, hidden_dim=32, n_layers=2, n_heads=4, max_position_embeddings=40)
OPT_SIZES = BERT_SIZES | dict(pad_token_id=1, ffn_dim=32, word_embed_proj_dim=16, dropout=0.0)
BIASED = dict(attention_bias=True, mlp_bias=True)
LLAMA3 = dict(rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
LLAMA3 = dict(rope_parameters=LLAMA3 | dict(original_max_position_embeddings=16))
LINEAR = dict(rope_type="linear", rope_theta=5000.0, factor=4.0)
YARN = dict(rope_type="yarn", rope_theta=1e4, factor=4.0, beta_fast=4.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0)
YARN |= dict(original_max_position_embeddings=64, llama_4_scaling_beta=0.1)
TIED, UNTIED = dict(tie_word_embeddings=True), dict(tie_word_embeddings=False)
MODERN_BIASED = MODERN_SIZES | BIASED | UNTIED | dict(norm_bias=True, classifier_bias=True)
MODERN_BIASED |= dict(global_attn_every_n_layers=2)
MODERN_PLAIN = MODERN_SIZES | dict(decoder_bias=False, norm_eps=1e-3)


def kind(cls, sizes, **settings):
    """A class of `transformers` and its configuration, which is another one each time."""
    config = re.match(r"(\w+?)(For|LMHead|Model)", cls)[1] + "Config"
    return lambda: (getattr(tf, cls), getattr(tf, config)(**copies.deepcopy(sizes | settings)))


FAR = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
CAUSAL = {
    "llama": kind("LlamaForCausalLM", SIZES, num_key_value_heads=2),
    "llama, biases, tied, llama3": kind("LlamaForCausalLM", SIZES | BIASED | TIED | LLAMA3, num_key_value_heads=1),
    "llama, linear": kind("LlamaForCausalLM", SIZES, rope_parameters=LINEAR, rms_norm_eps=1e-3),
    "qwen2": kind("Qwen2ForCausalLM", SIZES, num_key_value_heads=1),
    "qwen3": kind("Qwen3ForCausalLM", SIZES | TIED, num_key_value_heads=2, head_dim=8),
    "qwen3, biases": kind("Qwen3ForCausalLM", SIZES, num_key_value_heads=4, head_dim=4, attention_bias=True),
    "qwen3-moe": kind("Qwen3MoeForCausalLM", MOE_SIZES, num_experts=6, norm_topk_prob=True),
    "gpt2": kind("GPT2LMHeadModel", GPT2_SIZES),
    "gpt2, untied": kind("GPT2LMHeadModel", GPT2_SIZES | UNTIED, n_inner=24, activation_function="gelu"),
}
MASKED = {
    "bert": kind("BertForMaskedLM", BERT_SIZES, layer_norm_eps=1e-3),
    "roberta": kind("RobertaForMaskedLM", BERT_SIZES, pad_token_id=1),
    "modernbert": kind("ModernBertForMaskedLM", MODERN_SIZES, local_attention=6),  # windows narrower than the texts
    "modernbert, biases, untied": kind("ModernBertForMaskedLM", MODERN_BIASED, local_attention=9),
    "modernbert, no decoder bias": kind("ModernBertForMaskedLM", MODERN_PLAIN, local_attention=2),
}
FALLBACK = {
    "distilbert": kind("DistilBertForMaskedLM", DISTIL_SIZES),
    "gpt-neox": kind("GPTNeoXForCausalLM", SIZES, max_position_embeddings=40),
    "opt": kind("OPTForCausalLM", OPT_SIZES),
}
PARENTS = {
    "qwen2, tied": kind("Qwen2ForCausalLM", SIZES | TIED, num_key_value_heads=2, **FAR),
    "llama, theta": kind("LlamaForCausalLM", SIZES, **FAR, rms_norm_eps=1e-4),
    "ministral": kind("Ministral3ForCausalLM", SIZES, num_key_value_heads=2, head_dim=8, rope_parameters=YARN),
    "qwen3-moe, plain": kind("Qwen3MoeForCausalLM", MOE_SIZES, num_experts=6, norm_topk_prob=False, head_dim=4),
    "glm4-moe": kind("Glm4MoeForCausalLM", GLM_SIZES),  # which is what LLaDA 2 is, but for attention and names
}
# name: (architecture, the causal model it descends from, its rope_theta in config.json, whether its output is shifted)
DESCENDANTS = {
    "llada": ("LLaDAModelLM", "llama, theta", None, False),
    "llada, qkv biases, tied": ("LLaDAModelLM", "qwen2, tied", None, False),
    "llada-moe": ("LLaDAMoEModelLM", "qwen3-moe, plain", None, False),
    "llada2": ("LLaDA2MoeModelLM", "glm4-moe", None, False),
    "illada": ("ILLaDAForCausalLM", "llama", 2e4, False),
    "dream": ("DreamModel", "qwen2", 1e6, True),
    "sdar": ("SDARForCausalLM", "qwen3", 1e6, False),
    "sdar-moe": ("SDARMoeForCausalLM", "qwen3-moe", 1e6, False),
    "fast-dllm": ("Fast_dLLM_QwenForCausalLM", "qwen2", 1e6, True),
    "a2d-llama": ("A2DLlamaLMHeadModel", "llama, biases, tied, llama3", None, False),
    "a2d-qwen2": ("A2DQwen2LMHeadModel", "qwen2", None, False),
    "a2d-qwen3": ("A2DQwen3LMHeadModel", "qwen3", None, False),
    "a2d-gpt2": ("A2DGPT2LMHeadModel", "gpt2", None, False),
    "nemotron": ("NemotronLabsDiffusionModel", "ministral", None, False),  # which stays causal where nothing is masked
}
LIVE = {**CAUSAL, **MASKED}
ALL = [*LIVE, *DESCENDANTS]
LLADA_NAMES = (
    "model.embed_tokens=model.transformer.wte model.layers=model.transformer.blocks self_attn.o_proj=attn_out "
)
LLADA_NAMES += "self_attn.= input_layernorm=attn_norm post_attention_layernorm=ff_norm mlp.gate_proj=ff_proj "
LLADA_NAMES += "mlp.up_proj=up_proj mlp.down_proj=ff_out model.norm=model.transformer.ln_f "
LLADA_NAMES += "lm_head=model.transformer.ff_out"


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
        for name, bias in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                bias.copy_(0.2 * torch.randn_like(bias))
    model.tie_weights()
    return model


def edit_json(path, *changes, name="config.json"):
    content = json.loads((path / name).read_text())
    for change in changes:
        change(content)
    (path / name).write_text(json.dumps(content))


def put(key, value):
    """A change of config.json: `value` at a dotted key, or nothing there any more."""

    def change(content):
        *way, last = key.split(".")
        content = functools.reduce(dict.__getitem__, way, content)
        content.pop(last, None) if value is None else content.update({last: value})

    return change


def edit_tensors(path, *changes, name="model.safetensors"):
    tensors = safetensors.torch.load_file(path / name)
    for change in changes:
        change(tensors)
    safetensors.torch.save_file(tensors, path / name, {"format": "pt"})


def rename(*names):
    """A change of tensors: (regex, what takes its place) of their names, one after the other."""

    def change(tensors):
        for name in list(tensors):
            new = functools.reduce(lambda n, one: re.sub(*one, n), names, name)
            tensors[new] = tensors.pop(name)

    return change


DAMAGES = {"cut": lambda b: b[:-100], "empty": lambda b: b"", "garbage": lambda b: b"\xff" * len(b), "missing": None}


def damage(file, how):
    content = file.read_bytes()
    file.unlink()
    if how != "missing":
        file.write_bytes(DAMAGES[how](content))


def flat_rope(content):
    """Rotary settings as before transformers 5: rope_theta and rope_scaling."""
    rope = content.pop("rope_parameters")
    content["rope_theta"] = rope.pop("rope_theta")
    content["rope_scaling"] = {"type": rope.pop("rope_type"), **rope} if len(rope) > 1 else None


def as_llada(path, parent):
    """Rewrite a checkpoint of Llama's or Qwen2's under LLaDA's names."""
    edit_tensors(path, rename(*(pair.split("=") for pair in LLADA_NAMES.split())))
    c = parent.config
    content = {"architectures": ["LLaDAModelLM"], "model_type": "llada", "max_sequence_length": 64, "mlp_ratio": 4}
    content |= {"d_model": c.hidden_size, "mlp_hidden_size": c.intermediate_size, "n_layers": c.num_hidden_layers}
    content |= {"n_heads": c.num_attention_heads, "n_kv_heads": c.num_key_value_heads, "rms_norm_eps": c.rms_norm_eps}
    content |= {"vocab_size": c.vocab_size - 3, "embedding_size": c.vocab_size}  # the rows are the latter, if it is set
    content |= {"block_type": "llama", "activation_type": "silu", "layer_norm_type": "rms", "alibi": False}
    content |= {"rope": True, "rope_full_precision": True, "rope_theta": c.rope_parameters["rope_theta"]}
    content |= {"include_bias": False, "include_qkv_bias": isinstance(c, tf.Qwen2Config), "bias_for_layer_norm": False}
    content |= {"weight_tying": c.tie_word_embeddings, "mask_token_id": MASK, "eos_token_id": EOS, "pad_token_id": EOS}
    content |= {"auto_map": {"AutoModelForCausalLM": "modeling_llada.LLaDAModelLM"}}
    (path / "config.json").write_text(json.dumps(content))


def as_llada_moe(path, parent):
    """Rewrite the config.json of a checkpoint of Qwen3-MoE's as LLaDA-MoE's; the names of the tensors are the same."""
    c = parent.config
    content = {"dense_intermediate_size": 40, "expert_intermediate_size": c.moe_intermediate_size, "clip_qkv": None}
    content |= {"moe_layer_freq": [1] * c.num_hidden_layers, "qk_layernorm": True, "num_experts": c.num_experts}
    content |= {"shared_expert_intermediate_size": None, "moe_router_enable_expert_bias": False, "norm_topk_prob": None}
    drop = [
        put(k, None) for k in ("intermediate_size", "moe_intermediate_size", "num_local_experts", "mlp_only_layers")
    ]
    edit_json(path, flat_rope, *drop, lambda c: c.update(content | {"model_type": "llada"}))


def as_llada2(path, parent):
    """Rewrite a checkpoint of GLM-4's mixture under LLaDA 2's names."""
    c = parent.config

    def fuse(tensors):
        for i in range(c.num_hidden_layers):
            parts = [tensors.pop(f"model.layers.{i}.self_attn.{m}_proj.weight") for m in "qkv"]
            tensors[f"model.layers.{i}.attention.query_key_value.weight"] = torch.cat(parts)

    names = "embed_tokens=word_embeddings self_attn.o_proj=attention.dense self_attn.q_norm=attention.query_layernorm "
    names += "self_attn.k_norm=attention.key_layernorm gate.e_score_correction_bias=gate.expert_bias"
    edit_tensors(path, fuse, rename(*(pair.split("=") for pair in names.split())))
    content = {"num_experts": c.n_routed_experts, "num_shared_experts": c.n_shared_experts, "use_qkv_bias": False}
    content |= {"use_bias": False, "score_function": "sigmoid", "moe_router_enable_expert_bias": True}
    drop = [put(k, None) for k in ("n_routed_experts", "n_shared_experts")]
    edit_json(path, flat_rope, *drop, lambda c: c.update(content, rope_scaling=None))


def as_nemotron(path, parent):
    """Rewrite a checkpoint of Ministral 3 under Nemotron-Labs-Diffusion's names."""
    edit_tensors(path, rename(("^model", "encoder"), ("lm_head", "diffusion_head")))
    edit_json(path, lambda c: c.update(block_size=8, dlm_paradigm="bidirectional"))


def write(name, path):
    """Write the checkpoint of that name and its tokenizer; returns the model of `transformers` that it was made of."""
    if name not in DESCENDANTS:
        hf = random_model(*(LIVE | FALLBACK)[name]())
        hf.save_pretrained(path)
        words(path)
        return hf
    architecture, parent, theta, _ = DESCENDANTS[name]
    cls, config = (PARENTS | CAUSAL)[parent]()
    if theta:
        config.rope_parameters = {"rope_type": "default", "rope_theta": theta}
    hf = random_model(cls, config)
    hf.save_pretrained(path)
    own = {"bd_size": 8} if name == "fast-dllm" else {}
    edit_json(path, lambda c: c.update(architectures=[architecture], model_type=name, mask_token_id=MASK, **own))
    if theta:
        edit_json(path, flat_rope)
    rewrite = {"LLaDAModelLM": as_llada, "LLaDAMoEModelLM": as_llada_moe, "LLaDA2MoeModelLM": as_llada2}
    rewrite["NemotronLabsDiffusionModel"] = as_nemotron
    if architecture in rewrite:
        rewrite[architecture](path, hf)
    (path / "generation_config.json").unlink(missing_ok=True)
    words(path, mask_token=None)
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
    seen = seen + torch.full_like(seen[0, 0], -torch.inf).triu(1) if name == "nemotron" else seen
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


def stored(path):
    """All tensors of a checkpoint's safetensors."""
    return {n: t for file in path.glob("*.safetensors") for n, t in safetensors.torch.load_file(file).items()}


def refusal(call, *args, **options):
    """The one sentence with which a call exits."""
    with pytest.raises(SystemExit) as error:
        call(*args, **options)
    said = error.value.code
    assert isinstance(said, str) and said and "\n" not in said  # printed to stderr, exit status 1
    return said


def child(work):
    """A process that does the work and ends, with status 1 where the work raised; its id."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return pid


def status_of(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ---- the same numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*ALL, *FALLBACK])
def test_logits_are_those_of_transformers_at_every_real_position_and_every_parameter_shows_in_them(original, name):
    hf, path, checkpoint = original(name)
    ids, real = ragged(hf)
    expected = reference(name, hf, ids, real)[real]
    assert expected.std() > 0.5
    model = checkpoint.model
    found = model(ids, mask=real)[real]
    same(found.detach(), expected)
    if name in (
        "gpt2",
        "gpt2, untied",
        "bert",
        "roberta",
    ):  # elsewhere transformers rounds rotations and norms to single
        exact = reference(name, copies.deepcopy(hf).double(), ids, real)[real]
        same(logits(ckpt.load(path, dtype=torch.float64), hf), exact, 1e-12)
    assert all(p.is_contiguous() for p in model.parameters()) and not any(m.training for m in model.modules())
    if name in FALLBACK:
        return
    parameters = {n: p for n, p in model.named_parameters() if not n.endswith("router_bias")}  # it only chooses
    assert len({p.untyped_storage().data_ptr() for p in parameters.values()}) == len(parameters)  # none shares memory
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    for parameter, g in zip(parameters, torch.autograd.grad((found * weights).sum(), list(parameters.values()))):
        # A bias of the keys adds the same to all of a query's scores, unless a rotation follows.
        unseen = parameter.endswith("attn.k.bias") and model.config.position == "learned"
        assert (g.abs().max() < 1e-4) if unseen else (g.abs().max() > 1e-2), parameter


SETTINGS = [("llada", "rope_theta", 1e4), ("llada", "rms_norm_eps", 0.1), ("dream", "rope_theta", 1e4)]
SETTINGS += [("dream", "rms_norm_eps", 0.1), ("illada", "rope_theta", 1e6), ("a2d-qwen3", "rms_norm_eps", 0.1)]
SETTINGS += [("gpt2", "layer_norm_epsilon", 0.1), ("bert", "layer_norm_eps", 0.1), ("modernbert", "norm_eps", 0.1)]
SETTINGS += [("modernbert", "local_attention", 8), ("modernbert", "layer_types", ["full_attention"] * 5)]
SETTINGS += [("qwen3-moe", "num_experts_per_tok", 3), ("qwen3-moe", "norm_topk_prob", False)]
SETTINGS += [("llada2", k, v) for k, v in dict(n_group=2, topk_group=3, routed_scaling_factor=1.0).items()]
SETTINGS += [("llada2", k, v) for k, v in dict(partial_rotary_factor=1.0, num_experts_per_tok=3).items()]
SETTINGS += [("modernbert", f"rope_parameters.{kind}_attention.rope_theta", 3.0) for kind in ("full", "sliding")]


@pytest.mark.parametrize("name, key, value", SETTINGS)
def test_every_setting_shows_in_the_logits(copy, original, name, key, value):
    path = copy(name)
    edit_json(path, put(key, value))
    hf, _, checkpoint = original(name)
    assert (logits(ckpt.load(path), hf) - logits(checkpoint, hf)).abs().max() > 1e-3


@pytest.mark.parametrize("name", [*CAUSAL, "gpt-neox", "opt"])
def test_greedy_continuations_of_a_ragged_batch_are_those_of_transformers_up_to_the_end_of_text(original, name):
    hf, _, checkpoint = original(name)
    prompts, o = prompts_of(hf), ar.SampleOptions(8, temperature=0)
    how = dict(max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
    theirs = [hf.generate(prompt[None], **how)[0, len(prompt) :].tolist() for prompt in prompts]
    assert len({token for continued in theirs for token in continued}) > 3  # they do say something
    for end in (None, theirs[0][3]):
        cut = [t[: t.index(end) + 1] if end in t else t for t in theirs]
        ours = ar.generate(checkpoint.model, prompts, o, mask_id=None, eos_id=end).tokens
        assert [t.tolist() for t in ours] == [p.tolist() + t for p, t in zip(prompts, cut)]


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


FILLED = [(name, "none") for name in (*MASKED, *DESCENDANTS)] + [("distilbert", c) for c in ("none", "prefix", "dual")]


@pytest.mark.parametrize("name, cache", FILLED)
def test_masks_of_a_ragged_batch_are_filled_as_by_a_plain_sampler_on_transformers(original, name, cache):
    hf, _, checkpoint = original(name)
    prompts = prompts_of(hf)
    prompts[1][3] = MASK
    options = fast_mdlm.SampleOptions(6, temperature=0, cache=cache)
    found = fast_mdlm.generate(checkpoint.model, prompts, options, mask_id=MASK, trace=True)
    ours = [[(position, token) for _, position, token, _ in made] for made in found.trace]
    assert ours == plainly(name, hf, prompts, 6)
    assert len({token for made in ours for _, token in made}) > 1


@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
def test_the_caches_of_an_unknown_masked_model_are_exact_over_many_blocks(original, cfg_scale):
    hf, _, checkpoint = original("distilbert")
    options = dict(max_new_tokens=12, block_size=4, temperature=0, steps=6, cfg_scale=cfg_scale)
    found = []
    for cache in ("none", "prefix", "dual"):
        o = fast_mdlm.SampleOptions(**options, cache=cache)
        found.append(fast_mdlm.generate(checkpoint.model, prompts_of(hf), o, mask_id=MASK).tokens)
    exact, *cached = ([t.tolist() for t in tokens] for tokens in found)
    assert cached == [exact, exact]


OLD_GPT2 = [put(k, None) for k in ("n_positions", "activation_function", "n_inner", "tie_word_embeddings")]
OLD_MODERN = [put("rope_parameters", None), put("layer_types", None), put("global_attn_every_n_layers", 3)]
OLD_MODERN += [put("global_rope_theta", 160000.0), put("local_rope_theta", 10000.0)]
OLD_CONFIGS = [(n, [flat_rope]) for n in ("llama", "llama, linear", "llama, biases, tied, llama3", "qwen3")]
OLD_CONFIGS += [("modernbert", OLD_MODERN), ("gpt2", [put("n_ctx", 40), *OLD_GPT2])]
OLD_CONFIGS += [("bert", [put("tie_word_embeddings", None)])]


@pytest.mark.parametrize("name, changes", OLD_CONFIGS)
def test_a_config_as_older_releases_wrote_it_means_the_same(copy, original, name, changes):
    path = copy(name)
    edit_json(path, *changes)
    assert ckpt.load(path).model.config == original(name)[2].model.config


BLOCKS = dict.fromkeys(("llada2", "sdar", "sdar-moe", "fast-dllm", "nemotron"), "bd3lm")
PRESETS = {
    "llada": "llada",
    "llada2": "llada2",
    "illada": "illada",
    "dream": "dream",
    "sdar": "sdar",
    "fast": "fast_dllm_v2",
    "a2d": "mdlm",
    "modernbert": "llada",
    "nemotron": "nemotron",
}


def test_every_family_is_tested_here_and_decoded_as_its_authors_do(original):
    tested = {DESCENDANTS[n][0] if n in DESCENDANTS else LIVE[n]()[0].__name__ for n in ALL}
    assert tested == FAMILIES.keys() - {"LLaDAMoEModel"}  # another name of the same
    for name in (*ALL, *FALLBACK):
        c, causal = original(name)[2], name in (*CAUSAL, "gpt-neox", "opt")
        algorithm = "ar" if causal else BLOCKS.get(name, "mdlm")
        assert (c.algorithm, c.model.config.causal) == (algorithm, causal or name == "nemotron")
        assert c.facts.get("preset", "") == PRESETS.get(re.split("[-,]", name)[0], "")


NAMED = {"Qwen3-0.6B-diffusion-bd3lm-v0.1": "bd3lm", "bd3lm-experiments/baselines/masked/last": "mdlm"}
NAMED |= {"models--dllm-hub--Qwen3-0.6B-diffusion-bd3lm-v0.1/snapshots/0123abc": "bd3lm"}


@pytest.mark.parametrize("directory, algorithm", NAMED.items())
def test_a_model_converted_to_blocks_is_known_by_its_own_name(original, tmp_path, directory, algorithm):
    shutil.copytree(original("a2d-qwen3")[1], tmp_path / directory)
    checkpoint = ckpt.load(tmp_path / directory)
    assert (checkpoint.algorithm, checkpoint.facts["preset"]) == (algorithm, algorithm)


@pytest.mark.parametrize("directory, size", [("SDAR-8B-Chat", 4), ("SDAR-8B-Chat-b8", 8)])
def test_sdars_blocks_are_those_of_its_config_or_else_its_name(original, tmp_path, directory, size):
    """And are kept, whatever a checkpoint that was trained on from it is called."""
    path = shutil.copytree(original("sdar")[1], tmp_path / directory)
    found = ckpt.load(path)
    assert (found.model.config.block_size, found.facts["preset"]) == (size, "sdar")
    again = ckpt.load(save(found, tmp_path / "mine"))
    assert (again.algorithm, again.model.config.block_size, again.facts["preset"]) == ("bd3lm", size, "sdar")
    edit_json(path, put("block_size", 2))
    assert ckpt.load(path).model.config.block_size == 2


@pytest.mark.parametrize("key", ["block_size", "bd_size"])
def test_a_model_of_blocks_is_known_by_its_config_and_how_is_said(copy, tmp_path, capsys, key):
    path = copy("a2d-qwen3")
    for value, says in ((8, f"decoded by bd3lm: its config.json has {key}=8"), (None, ""), (0, "")):
        edit_json(path, put(key, value))
        checkpoint = ckpt.load(path)
        assert (checkpoint.algorithm, checkpoint.model.config.block_size) == (("bd3lm", 8) if value else ("mdlm", 0))
        printed = capsys.readouterr().out
        assert says in printed and bool(printed) == bool(value)
        if value:
            again = ckpt.load(save(checkpoint, tmp_path / "again"))  # which says it itself, and is not asked again
            assert (again.algorithm, again.model.config.block_size) == ("bd3lm", 8) and not capsys.readouterr().out


# ---- what is saved ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*ALL, *FALLBACK])
def test_trained_weights_are_saved_in_the_layout_that_was_loaded_and_both_read_it(original, tmp_path, name):
    hf, path, before = original(name)
    trained = ckpt.load(path)
    with torch.no_grad():
        for p in trained.model.parameters():
            p.mul_(2)  # exactly
    back = save(trained, tmp_path / "back")
    content = json.loads((back / "config.json").read_text())
    assert content.pop("nanodlm")["algorithm"] == before.algorithm
    assert content == json.loads((path / "config.json").read_text())
    again = ckpt.load(back)
    assert again.model.config == before.model.config and equal_parameters(again.model, trained.model)
    assert (again.algorithm, again.facts.get("preset")) == (before.algorithm, before.facts.get("preset"))
    if name in ALL:
        old, new = stored(path), stored(back)
        assert old.keys() == new.keys()
        assert all(torch.equal(2 * t, new[n]) and t.dtype == new[n].dtype for n, t in old.items())
    if name not in DESCENDANTS:
        theirs, info = type(hf).from_pretrained(back, output_loading_info=True)
        assert {k: list(v) for k, v in info.items() if v} == {}
        assert all(torch.equal(2 * p, theirs.get_parameter(n)) for n, p in hf.named_parameters())


def test_facts_of_ours_and_the_algorithm_of_the_last_training_survive_every_saving(copy, tmp_path):
    checkpoint = ckpt.load(copy("a2d-qwen3"))
    checkpoint.facts["iter"] = 7
    once = ckpt.load(save(checkpoint, tmp_path / "once"))
    assert once.algorithm == "mdlm"
    once.algorithm = "bd3lm"
    twice = ckpt.load(save(once, tmp_path / "twice"))
    assert once.facts["iter"] == twice.facts["iter"] == 7 and twice.algorithm == "bd3lm"
    config = json.loads((tmp_path / "twice" / "config.json").read_text())
    assert "nanodlm" not in config["nanodlm"] and "hf_config" not in config["nanodlm"]


TEMPLATE = "{{ eos_token }} {% for m in messages %}<sep> {{ m.role }} {{ m.content }} {% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}<sep> w9{% endif %}"


def test_the_tokenizer_with_its_stop_tokens_and_template_travels_with_a_released_checkpoint(copy, tmp_path):
    path = copy("modernbert")
    words(path, chat_template=TEMPLATE, post_processor="<cls> $A <sep>")
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, EOS]}))
    checkpoint = ckpt.load(path)
    for t in (checkpoint.tokenizer, ckpt.load(save(checkpoint, tmp_path / "back")).tokenizer):
        assert (t.vocab_size, t.eos_id, t.mask_id, t.stop_ids, t.frame) == (VOCAB, 7, MASK, (7, EOS), ((58,), (59,)))
        assert t.encode("w3 w44") == [3, 44] and t.decode([3, 44]) == "w3 w44"
        assert t.chat([{"role": "w1", "content": "w2"}]) == [EOS, 59, 1, 2, 59, 9]


# ---- files: shards, types, old names ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2", "modernbert"])
def test_shards_of_theirs_and_of_ours_load_as_one_file_does(original, tmp_path, monkeypatch, name):
    hf, _, checkpoint = original(name)
    hf.save_pretrained(tmp_path / "theirs", max_shard_size="8KB")
    words(tmp_path / "theirs")
    write_shards = huggingface_hub.save_torch_state_dict

    def small(tensors, directory, max_shard_size):
        assert max_shard_size == "5GB"
        write_shards(tensors, directory, max_shard_size=8000)

    monkeypatch.setattr(huggingface_hub, "save_torch_state_dict", small)
    for path in (tmp_path / "theirs", save(checkpoint, tmp_path / "ours")):
        assert len(list(path.glob("*.safetensors"))) > 3 and not (path / "model.safetensors").exists()
        assert equal_parameters(ckpt.load(path).model, checkpoint.model)


@pytest.mark.parametrize("name", ["dream", "gpt2", "modernbert", "distilbert"])
def test_parameters_have_the_type_that_was_asked_for_whatever_the_files(copy, original, name):
    path, wanted = copy(name), dict(original(name)[2].model.named_parameters())
    for dtype in (torch.bfloat16, torch.float32):
        for n, p in ckpt.load(path, dtype=dtype).model.named_parameters():
            assert p.dtype == dtype and torch.equal(p, wanted[n].bfloat16().to(dtype))
        edit_tensors(path, lambda tensors: tensors.update({n: t.bfloat16() for n, t in tensors.items()}))


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("device", ["meta", pytest.param("cuda", marks=needs_gpu)])  # every machine has the first
def test_tensors_go_to_the_device_that_was_asked_for(original, device):
    for name in ("llama", "gpt2"):
        loaded = ckpt.load(original(name)[1], device=device).model
        assert {p.device.type for p in loaded.parameters()} == {device}
        assert device == "meta" or equal_parameters(loaded.cpu(), original(name)[2].model)


def more(*names):
    """Tensors that are of no use, and no error."""
    return lambda tensors: tensors.update({name: torch.ones(2) for name in names})


BUFFERS = more(*(f"transformer.h.{i}.attn.{n}" for i in range(3) for n in ("bias", "masked_bias")))
NO_PREFIX = rename((r"^transformer\.", ""))
GAMMA = rename((r"(LayerNorm\.)weight", r"\1gamma"), (r"(LayerNorm\.)bias", r"\1beta"))
HEADS = more(*(f"{n}.{leaf}" for n in ("bert.pooler.dense", "cls.seq_relationship") for leaf in ("weight", "bias")))
ROBERTAS = more("roberta.embeddings.position_ids", "lm_head.decoder.bias", "roberta.pooler.dense.weight")
ROTATIONS = more(*(f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(3)))
OLD_FILES = [("gpt2", NO_PREFIX), ("gpt2", BUFFERS), ("gpt2", BUFFERS, NO_PREFIX), ("bert", GAMMA), ("bert", HEADS)]
OLD_FILES += [("bert", HEADS, more("bert.embeddings.position_ids"), GAMMA), ("roberta", ROBERTAS)]
OLD_FILES += [("llama", ROTATIONS), ("a2d-llama", ROTATIONS)]
OLD_FILES += [("bert", rename((r"^cls\.predictions\.bias", "cls.predictions.decoder.bias")))]  # its other name
OLD_FILES += [("roberta", rename((r"^lm_head\.bias", "lm_head.decoder.bias")))]


@pytest.mark.parametrize("name, changes", [(name, changes) for name, *changes in OLD_FILES])
def test_a_file_as_older_releases_wrote_it_loads_the_same(copy, original, name, changes):
    path = copy(name)
    edit_tensors(path, *changes)
    assert stored(path).keys() != stored(original(name)[1]).keys()
    assert equal_parameters(ckpt.load(path).model, original(name)[2].model)


TWINS = {
    "a2d-qwen3": "lm_head.weight model.embed_tokens.weight",
    "a2d-llama": "lm_head.weight model.embed_tokens.weight",
    "gpt2": "lm_head.weight transformer.wte.weight",
    "bert": "cls.predictions.decoder.weight bert.embeddings.word_embeddings.weight",
    "roberta": "lm_head.decoder.weight roberta.embeddings.word_embeddings.weight",
    "modernbert": "decoder.weight model.embeddings.tok_embeddings.weight",
    "llada, qkv biases, tied": "model.transformer.ff_out.weight model.transformer.wte.weight",
}


@pytest.mark.parametrize("name", TWINS)
def test_a_tied_head_may_be_stored_beside_the_embedding_or_alone_but_not_differ(copy, original, name):
    path, (head, embedding) = copy(name), TWINS[name].split()
    edit_tensors(path, lambda tensors: tensors.update({head: tensors[embedding].clone()}))
    assert equal_parameters(ckpt.load(path).model, original(name)[2].model)
    edit_tensors(path, lambda tensors: tensors.pop(embedding))
    assert equal_parameters(ckpt.load(path).model, original(name)[2].model)
    edit_tensors(path, lambda tensors: tensors.update({embedding: tensors[head] + 1e-3}))
    assert f"{head} and {embedding} differ" in refusal(ckpt.load, path)


# ---- quantized weights -----------------------------------------------------------------------------------------------

PACKAGES = ("bitsandbytes", "torchao")
METHODS = ["gptq", "awq", "fp8", "compressed-tensors", *PACKAGES]


@pytest.mark.parametrize("name, method", [(name, m) for name in ("a2d-llama", "distilbert") for m in METHODS])
def test_quantized_weights_are_named_before_any_is_read(copy, name, method):
    path = copy(name)
    edit_json(path, put("quantization_config", {"quant_method": method, "bits": 8}))
    (path / "model.safetensors").unlink()
    assert f"{path}: its weights are quantized ({method}) and " in refusal(ckpt.load, path, whole=True)
    assert f"{path}: its weights are quantized ({method}) and " in refusal(ckpt.load, path, dtype=torch.int8)
    if method not in PACKAGES:
        assert f"({method}) and are not read here; take the model in bfloat16" in refusal(ckpt.load, path)
    elif importlib.util.find_spec(method) is None:
        assert f"pip install {method}" in refusal(ckpt.load, path)


@torch.no_grad()
def test_quantized_weights_are_decoded_where_their_package_is_there(original, tmp_path, capsys):
    config = pytest.importorskip("torchao.quantization").Int8WeightOnlyConfig()
    path = original("llama")[1]
    hf = tf.AutoModelForCausalLM.from_pretrained(path, quantization_config=tf.TorchAoConfig(config))
    shutil.copytree(path, tmp_path / "int8")
    (tmp_path / "int8/model.safetensors").unlink()
    hf.save_pretrained(tmp_path / "int8")
    checkpoint, ids = ckpt.load(tmp_path / "int8"), torch.arange(3, 12)[None]
    assert checkpoint.algorithm == "ar" and (hf(ids).logits - original("llama")[0](ids).logits).abs().max() > 0
    same(checkpoint.model(ids), hf(ids).logits)
    assert lora.digest(checkpoint.model) != lora.digest(original("llama")[2].model)
    sample.main([f"--checkpoint={tmp_path}/int8", "--prompt=w3 w4", "--max_new_tokens=6", "--device=cpu"])
    assert "6 tokens in" in capsys.readouterr().out


CODES = {"a2d-llama": "model.layers.1.self_attn.k_proj.weight"}
CODES |= {"distilbert": "distilbert.transformer.layer.0.attention.q_lin.weight"}


@pytest.mark.parametrize("model, name", CODES.items())
def test_codes_of_few_bits_are_not_read_as_weights(copy, model, name):
    path = copy(model)
    for kind, says in ((torch.int8, "I8"), (torch.uint8, "U8"), (torch.bool, "BOOL")):
        edit_tensors(path, lambda tensors, kind=kind: tensors.update({name: tensors[name].to(kind)}))
        assert f"{name} holds whole numbers ({says})" in refusal(ckpt.load, path)
    torch.save(stored(path), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    assert f"{name} holds whole numbers (torch.bool)" in refusal(ckpt.load, path, pickle=True)


# ---- strictness ------------------------------------------------------------------------------------------------------

# name: a tensor of its, and one that is none
TENSORS = {
    "llama": "model.layers.1.self_attn.k_proj.weight model.layers.0.self_attn.q_proj.bias",
    "gpt2": "transformer.h.2.attn.c_attn.bias transformer.h.0.attn.c_attn.scale",
    "bert": "bert.encoder.layer.0.output.LayerNorm.weight bert.encoder.layer.0.adapter.weight",
    "roberta": "lm_head.bias roberta.encoder.layer.0.adapter.weight",
    "modernbert": "model.layers.1.attn.Wqkv.weight model.layers.0.attn_norm.weight",
    "llada": "model.transformer.ff_out.weight model.transformer.blocks.0.q_norm.weight",
    "dream": "model.layers.0.self_attn.q_proj.bias model.layers.3.input_layernorm.weight",
    "a2d-qwen3": "model.layers.2.self_attn.q_norm.weight model.layers.0.self_attn.q_proj.weight_scale",
    "distilbert": "distilbert.transformer.layer.0.attention.q_lin.weight distilbert.transformer.layer.0.adapter.weight",
    "llada-moe": "model.layers.1.mlp.experts.4.up_proj.weight model.layers.1.mlp.experts.6.up_proj.weight",
    "llada2": "model.layers.2.mlp.gate.expert_bias model.layers.0.mlp.experts.0.up_proj.weight",
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_too_few_too_many_or_of_another_shape_is_named_as_its_family_names_it(copy, name):
    path, (tensor, none) = copy(name), TENSORS[name].split()
    right = tuple(stored(path)[tensor].shape)
    edit_tensors(path, lambda tensors: tensors.update({tensor: torch.ones(3, 5), none: torch.ones(16)}))
    said = refusal(ckpt.load, path)
    assert f"{tensor} has shape (3, 5), config.json says {right}" in said
    assert f" {none} is not part of this architecture" in said
    edit_tensors(path, lambda tensors: tensors.pop(tensor))
    assert f" {tensor} is missing" in refusal(ckpt.load, path)


def test_the_tensors_of_an_old_file_are_named_as_the_file_names_them_and_stored_as_their_family_stores_them(copy):
    path, name = copy("gpt2"), "transformer.h.0.mlp.c_fc.weight"
    edit_tensors(path, lambda tensors: tensors.update({name: tensors[name].T.contiguous()}), NO_PREFIX, more("h.0.x"))
    said = refusal(ckpt.load, path)
    assert f"{name} has shape (64, 16), config.json says (16, 64)" in said
    assert " h.0.x is not part of this architecture" in said


# name: settings of config.json that are never guessed
NEEDED = {
    "llada": "d_model n_layers n_heads max_sequence_length rms_norm_eps rope_theta weight_tying include_qkv_bias",
    "llada-moe": "num_experts num_experts_per_tok expert_intermediate_size moe_layer_freq qk_layernorm",
    "llada2": "n_group topk_group routed_scaling_factor first_k_dense_replace moe_intermediate_size",
    "illada": "hidden_size rms_norm_eps rope_theta vocab_size",
    "fast-dllm": "bd_size hidden_size",
    "dream": "num_hidden_layers num_attention_heads intermediate_size max_position_embeddings rope_theta",
    "gpt2": "vocab_size n_layer n_head n_embd layer_norm_epsilon",
    "bert": "hidden_size intermediate_size layer_norm_eps type_vocab_size max_position_embeddings",
    "roberta": "pad_token_id layer_norm_eps",
    "nemotron": "block_size rope_parameters hidden_size",
    "modernbert": "hidden_size local_attention norm_eps norm_bias attention_bias decoder_bias",
}
# name: settings that our network does not have
UNSUPPORTED = {
    "llama": dict(hidden_act="gelu", pretraining_tp=2),
    "qwen2": dict(use_sliding_window=True),
    "llada": dict(block_type="sequential", activation_type="swiglu", layer_norm_type="low_precision", rope=False)
    | dict(alibi=True, include_bias=True, scale_logits=True, attention_layer_norm=True),
    "gpt2": dict(activation_function="relu", scale_attn_by_inverse_layer_idx=True, scale_attn_weights=False),
    "llada-moe": dict(moe_router_score_function="sigmoid", moe_router_enable_expert_bias=True, clip_qkv=8.0),
    "llada2": dict(
        expert_capacity=48, score_function="softmax", norm_topk_prob=False, moe_router_enable_expert_bias=False
    ),
    "qwen3-moe": dict(mlp_only_layers=[1], decoder_sparse_step=2),
    "bert": dict(hidden_act="gelu_new", position_embedding_type="relative_key", tie_word_embeddings=False),
    "roberta": dict(is_decoder=True, tie_word_embeddings=False),  # whose bias is it then? transformers 4 and 5 differ
    "modernbert": dict(hidden_activation="silu"),
    "nemotron": dict(attention_bias=True, tie_word_embeddings=True, dlm_paradigm="sbd_block_diff", sliding_window=8),
}
FULL, SLIDING = "full_attention", "sliding_attention"
# name, what config.json says (None: nothing), and what is said of it
UNFIT = [(name, key, None, f"'{key}'") for name, keys in NEEDED.items() for key in keys.split()]
UNFIT += [(n, k, v, f"{k}={v!r} is not supported") for n, values in UNSUPPORTED.items() for k, v in values.items()]
UNFIT += [
    ("llama", "rope_parameters", YARN | {"mscale": None}, "rope_type='yarn' is supported where it leaves the logits"),
    ("nemotron", "rope_parameters.mscale", 0.7, "equal mscale and mscale_all_dim, not by None, 0.7, 1.0"),
    ("nemotron", "rope_parameters.truncate", False, "truncate=False is not supported"),
    ("dream", "rope_scaling", {"type": "yarn", "factor": 4.0}, "rope_type='yarn'"),
    ("illada", "rope_scaling", {"rope_type": "dynamic", "factor": 4.0}, "rope_type='dynamic'"),
    ("modernbert", "rope_parameters.full_attention.rope_type", "linear", "rope_type='linear'"),
    ("llama, linear", "rope_parameters.factor", None, "'factor'"),
    ("qwen3", "layer_types", [FULL, SLIDING, FULL], f"layer_types=['{FULL}', '{SLIDING}', '{FULL}'] is not supported"),
    ("modernbert", "layer_types", [FULL] * 2 + [SLIDING] * 3, "layer_types is not supported"),
    ("modernbert", "layer_types", None, "'global_attn_every_n_layers'"),
    ("dream", "mask_token_id", VOCAB, f"mask_id {VOCAB} is not below vocab_size={VOCAB}"),
    ("dream", "mask_token_id", 1.5, "mask_token_id=1.5 is no token id"),
    ("llama", "eos_token_id", 99, f"eos_id 99 is not below vocab_size={VOCAB}"),
    *(("llama", "architectures", [a], a) for a in ("BertModel", "LLaDAMoEModelLM", "LlamaForSequenceClassification")),
    ("llama", "architectures", ["BertModel"], "known by name are LLaDAModelLM"),
    ("llada-moe", "moe_layer_freq", [1, 0, 1], "moe_layer_freq=[1, 0, 1] is not supported, only 0 for first layers"),
    ("llada-moe", "num_experts_per_tok", 7, "experts_per_token=7 is more than the experts=6 of a layer"),
    ("llada-moe", "num_experts", 7, "model.layers.0.mlp.experts.6.gate_proj.weight is missing"),
    ("llada2", "n_group", 3, "router_groups=(3, 2) does not fit experts=8, experts_per_token=2"),
    ("llada2", "topk_group", 5, "router_groups=(4, 5) must be (groups, those that a token may choose from)"),
    ("llama", "model_type", "novel", "NovelForCausalLM"),
]


@pytest.mark.parametrize("name", dict.fromkeys(name for name, *_ in UNFIT))
def test_what_a_config_lacks_or_our_network_does_not_have_is_named_and_never_guessed(copy, name):
    path = copy(name)
    (path / "generation_config.json").unlink(missing_ok=True)
    config = (path / "config.json").read_text()
    for _, key, value, says in (unfit for unfit in UNFIT if unfit[0] == name):
        edit_json(path, put(key, value))
        if value == "novel":
            edit_json(path, put("architectures", ["NovelForCausalLM"]))
        said = refusal(ckpt.load, path)
        assert says in said and str(path) in said, key
        (path / "config.json").write_text(config)
    for content in ("", "{", "[]", "5", '{"architectures": 5}', '{"architectures": [5]}'):
        (path / "config.json").write_text(content)
        assert str(path) in refusal(ckpt.load, path)


@pytest.mark.parametrize("name", ["bert", "modernbert", "dream", "llada", "distilbert", "llama"])
def test_a_diffusion_model_without_a_mask_token_is_refused(copy, name):
    path = copy(name)
    words(path, mask_token=None)
    edit_json(path, put("mask_token_id", None))
    if name == "llama":  # needs none
        assert ckpt.load(path).tokenizer.mask_id is None
    else:
        assert "has a mask token" in refusal(ckpt.load, path)


def test_a_checkpoint_without_weights_or_tokenizer_says_what_it_lacks(copy):
    path = copy("llama")
    (path / "model.safetensors").unlink()
    assert refusal(ckpt.load, path) == f"{path} has no model.safetensors"
    for file in path.glob("tokenizer*"):
        file.unlink()
    assert f"{path} has no tokenizer.json" in refusal(ckpt.load, path)


def test_a_damaged_shard_or_index_is_named(original, copy, tmp_path):
    original("llama")[0].save_pretrained(tmp_path, max_shard_size="8KB")
    words(tmp_path)
    shard, index = sorted(tmp_path.glob("*.safetensors"))[2], tmp_path / "model.safetensors.index.json"
    content, lost = shard.read_bytes(), sorted(safetensors.torch.load_file(shard))
    for how in DAMAGES:
        damage(shard, how)
        assert f"{shard} cannot be read" in refusal(ckpt.load, tmp_path)
        shard.write_bytes(content)
    ckpt.load(tmp_path)
    names = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": {n: file for n, file in names.items() if file != shard.name}}))
    assert f"{lost[0]} is missing" in refusal(ckpt.load, tmp_path)
    for content in ("{", "{}", "[]", '{"weight_map": {}}'):
        index.write_text(content)
        assert f"{index} cannot be read" in refusal(ckpt.load, tmp_path)
    path = copy("distilbert")
    damage(path / "model.safetensors", "garbage")
    assert f"{path}: DistilBertForMaskedLM is unknown here, and transformers cannot load it" in refusal(ckpt.load, path)


# ---- pickled weights, and code ---------------------------------------------------------------------------------------


def pickled(path, *changes, **options):
    """Turn a checkpoint's safetensors into a pytorch_model.bin."""
    tensors = stored(path)
    for change in changes:
        change(tensors)
    torch.save(tensors, path / "pytorch_model.bin", **options)
    (path / "model.safetensors").unlink()
    return path


PICKLES = [("gpt2", {}), ("llama", {}), ("distilbert", {}), ("bert", dict(_use_new_zipfile_serialization=False))]


@pytest.mark.parametrize("name, options", PICKLES)
def test_a_pickle_is_refused_with_the_way_out_and_loads_where_it_is_asked_for(copy, original, name, options):
    path = pickled(copy(name), *([GAMMA] if name == "bert" else []), **options)
    said = refusal(ckpt.load, path)
    assert name == "distilbert" or f"{path} has no model.safetensors; --pickle reads its pytorch_model.bin" == said
    assert equal_parameters(ckpt.load(path, pickle=True).model, original(name)[2].model)


def test_sharded_pickles_load_where_they_are_asked_for_but_safetensors_go_before(copy, original):
    path, names = copy("llama"), {}
    for i, (name, tensor) in enumerate(stored(path).items()):
        names[name] = f"pytorch_model-{i:05}.bin"
        torch.save({name: tensor + 1}, path / names[name])
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    assert equal_parameters(ckpt.load(path, pickle=True).model, original("llama")[2].model)
    (path / "model.safetensors").unlink()
    assert "--pickle" in refusal(ckpt.load, path)
    found, wanted = ckpt.load(path, pickle=True).model, dict(original("llama")[2].model.named_parameters())
    assert all(torch.equal(p, wanted[n] + 1) for n, p in found.named_parameters())


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
    refusal(ckpt.load, path, pickle=True)
    assert not proof.exists()
    torch.save({"state_dict": {"a": torch.ones(1)}}, path / "pytorch_model.bin")  # none either
    assert f"{path / 'pytorch_model.bin'} cannot be read" in refusal(ckpt.load, path, pickle=True) or name != "gpt2"


@pytest.mark.parametrize("name", ["dream", "llada", "llama", "NovelForCausalLM", "NovelForMaskedLM"])
def test_code_that_comes_with_a_checkpoint_is_never_run(copy, original, tmp_path, name):
    novel = name.startswith("Novel")
    path = copy("llama" if novel else name)
    for file in ("configuration_own.py", "modeling_own.py", "tokenization_own.py"):
        (path / file).write_text(f"import os\nos.mkdir({str(tmp_path / 'proof')!r})\n")
    remote = {a: "modeling_own.M" for a in ("AutoModel", "AutoModelForCausalLM", "AutoModelForMaskedLM")}
    edit_json(path, lambda c: c.update(auto_map=remote | {"AutoConfig": "configuration_own.C"}, model_type="own"))
    edit_json(path, put("auto_map", {"AutoTokenizer": ["tokenization_own.T", None]}), name="tokenizer_config.json")
    if novel:
        edit_json(path, put("architectures", [name]))
        assert name in refusal(ckpt.load, path)
    else:
        assert equal_parameters(ckpt.load(path).model, original(name)[2].model)
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


def test_a_name_of_the_hub_is_downloaded_and_loaded_in_the_revision_that_is_asked_for(hub, original):
    hub.put(original("llama")[1], "some-org/tiny.llama-1")
    assert equal_parameters(ckpt.load("some-org/tiny.llama-1").model, original("llama")[2].model)
    assert len(hub.asked("/some-org/tiny.llama-1/resolve/")) >= 3
    for revision in ("v1.0", "refs/pr/3", "0123abc"):
        hub.put(original("qwen2")[1], quoted("some-org/tiny.llama-1", revision))
        assert equal_parameters(ckpt.load(f"some-org/tiny.llama-1@{revision}").model, original("qwen2")[2].model)
    assert equal_parameters(ckpt.load("some-org/tiny.llama-1").model, original("llama")[2].model)


@pytest.mark.parametrize("pickle", [False, True])
def test_what_is_of_use_is_downloaded_and_pickles_only_where_they_are_asked_for(hub, original, pickle):
    path = hub.put(original("llama")[1], "org/name")
    needed = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json"]
    needed += ["generation_config.json", "merges.txt", "vocab.txt", "chat_template.jinja", "tokenizer.model"]
    pickles = ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"]
    for name in (*needed, *pickles, "modeling_dream.py", "model.gguf", "tf_model.h5", "README.md"):
        (path / name).touch()
    found = {p.name for p in ckpt.find("org/name", pickle).iterdir()}
    assert found == {p.name for p in original("llama")[1].iterdir()} | {*needed} | ({*pickles} if pickle else set())
    hub.put(original("llama")[1], "org/gguf").joinpath("config.json").unlink()
    assert "no checkpoint in 'org/gguf': the hub's repository has no config.json" in refusal(ckpt.find, "org/gguf")


@pytest.mark.parametrize("where", ["here", "project"])
def test_the_hub_is_not_asked_for_a_directory_or_what_is_no_name(hub, original, monkeypatch, tmp_path, where):
    monkeypatch.setattr(ckpt, "ROOT", tmp_path / "project")
    shutil.copytree(original("llama")[1], tmp_path / where / "out/run/best")
    assert ckpt.load("out/run").path == (Path() if where == "here" else tmp_path / where) / "out/run/best"
    for name in ("out/quickstart", "nothing", "a/b/c", "./name", "../name", "/org/name", "org/", "org/na me"):
        assert repr(name) in refusal(ckpt.load, name)
    assert not hub.log


# ---- any other architecture, through transformers --------------------------------------------------------------------


@pytest.mark.parametrize("name", FALLBACK)
@torch.no_grad()
def test_an_unknown_language_model_has_a_networks_interface(original, name):
    hf, _, checkpoint = original(name)
    model = checkpoint.model
    assert (model.config.vocab_size, model.config.seq_len) == (VOCAB, hf.config.max_position_embeddings)
    assert model.num_params() == hf.num_parameters() and isinstance(model.cache(2, 8), KVCache)
    ids, real = ragged(hf)
    wanted, everywhere = real & (torch.arange(20) % 3 == 0), model(ids, mask=real)
    for rows in (wanted, wanted.flatten().nonzero()[:, 0]):
        assert torch.equal(model(ids, mask=real, rows=rows), everywhere[wanted])
    assert torch.equal(model.head(model.hidden(ids, mask=real, rows=wanted)), everywhere[wanted])


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


# ---- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="measures Linux's peak resident memory")
@pytest.mark.parametrize("name", ["llama", "qwen3-moe"])
def test_loading_shards_needs_the_memory_of_the_model_and_one_shard(original, tmp_path, name):
    original(name)  # what the first loading needs is not counted
    big, found = tmp_path / "big", tmp_path / "found"
    wide = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=6)
    cls, config = tf.LlamaForCausalLM, tf.LlamaConfig(**SIZES | wide)
    if name == "qwen3-moe":
        more = dict(num_experts=32, moe_intermediate_size=192, head_dim=64)
        cls, config = tf.Qwen3MoeForCausalLM, tf.Qwen3MoeConfig(**MOE_SIZES | wide | more)
    config.architectures = [cls.__name__]
    words(big)
    config.save_pretrained(big)
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in cls(config).named_parameters()}
    for n in [n for n in shapes if n.endswith("gate_up_proj")]:  # one by one in files
        (e, two, c), base = shapes.pop(n), n.removesuffix("gate_up_proj")
        down = shapes.pop(base + "down_proj")[1:]
        each = {"gate_proj": (two // 2, c), "up_proj": (two // 2, c), "down_proj": down}
        shapes |= {f"{base}{i}.{m}.weight": shape for i in range(e) for m, shape in each.items()}

    def fill():
        tensors = {n: torch.full(shape, 0.5, dtype=torch.bfloat16) for n, shape in shapes.items()}
        huggingface_hub.save_torch_state_dict(tensors, big, max_shard_size=20 * 2**20)

    def memory(key):  # in MB
        (line,) = [line for line in open("/proc/self/status") if line.startswith(key)]
        return int(line.split()[1]) / 1024

    def load():
        before = memory("VmRSS")
        model = ckpt.load(big, dtype=torch.bfloat16).model
        size = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
        found.write_text(f"{size} {memory('VmHWM') - before}")

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what earlier tests freed would be used again, and nothing grow
    assert status_of(child(fill)) == status_of(child(load)) == 0  # a child's peak begins with what it has
    shards = [file.stat().st_size / 2**20 for file in big.glob("*.safetensors")]
    size, grown = map(float, found.read_text().split())
    assert len(shards) >= 6 and size > 100 and size * 0.5 < grown < size + max(shards) + 20


# ---- tokenizers ------------------------------------------------------------------------------------------------------

NO_EOS, NO_MASK = {"eos_token": None}, {"mask_token": None}
# the tokenizer's settings, what the config and the generation config say; eos_id, mask_id, stop_ids
SPECIAL_IDS = [
    ({}, None, None, EOS, MASK, (EOS,)),
    ({}, {"eos_token_id": 7, "mask_token_id": 0, "model_type": "llada"}, None, 7, 0, (7, EOS)),
    ({}, {"eos_token_id": 7}, {"eos_token_id": [9, 8]}, 9, MASK, (9, 8, EOS)),
    ({}, {"eos_token_id": 0}, None, 0, MASK, (0, EOS)),
    (NO_EOS, {"pad_token_id": 5}, None, 5, MASK, (5,)),
    (NO_EOS | NO_MASK, None, None, None, None, ()),
]
for token in ("<|mdm_mask|>", "<|mask|>", "<[MASK]>"):
    SPECIAL_IDS += [(NO_MASK | {"extra_special_tokens": [token]}, None, None, EOS, VOCAB, (EOS,))]
for token in ("<|eot_id|>", "<|im_end|>", "<|role_end|>", "<end_of_turn>"):
    SPECIAL_IDS += [({"extra_special_tokens": [token]}, None, None, EOS, MASK, (EOS, VOCAB))]


@pytest.mark.parametrize("settings, config, generation, eos, mask, stops", SPECIAL_IDS)
def test_special_ids_come_from_either_config_or_the_tokenizer(tmp_path, settings, config, generation, eos, mask, stops):
    words(tmp_path, **settings)
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        if content is not None:
            (tmp_path / name).write_text(json.dumps(content))
    t = tokenizers.load({"kind": "hf"}, tmp_path)
    assert (t.eos_id, t.mask_id, t.stop_ids) == (eos, mask, stops)
    assert t.vocab_size == VOCAB + ("extra_special_tokens" in settings) and t.chat is None
    if not settings:
        assert t.decode([MASK, 4, EOS, 5, MASK]) == "w4 w5"


FRAMES = {"": ((), ()), "<cls> $A <sep>": ((58,), (59,)), "<cls> <cls> $A": ((58, 58), ())}


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_tokenizer_says_how_it_frames_a_text_but_not_a_chat_which_is_as_its_template_says(tmp_path, frame, place):
    words(tmp_path, post_processor=frame)
    if place.endswith("jinja"):
        (tmp_path / place).write_text(TEMPLATE)
    else:
        edit_json(tmp_path, put("chat_template", TEMPLATE), name=place)
    t = tokenizers.load({"kind": "hf"}, tmp_path)
    assert t.frame == FRAMES[frame] and t.encode("w4 w5") == [4, 5]
    messages = [{"role": "w1", "content": "w20 w21"}, {"role": "w2", "content": "w22"}]
    assert t.chat(messages) == [EOS, 59, 1, 20, 21, 59, 2, 22, 59, 9]


def test_a_tokenizer_class_that_nobody_knows_is_read_by_its_tokenizer_json(tmp_path):
    words(tmp_path)
    remote = {"AutoTokenizer": ["tokenization_novel.NovelTokenizer", None]}
    change = dict(tokenizer_class="NovelTokenizer", auto_map=remote)
    edit_json(tmp_path, lambda content: content.update(change), name="tokenizer_config.json")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "novel", "mask_token_id": MASK}))
    t = tokenizers.load({"kind": "hf"}, tmp_path)
    assert t.encode("w4 w5") == [4, 5] and (t.eos_id, t.mask_id) == (EOS, MASK)


def test_dreams_tokenizer_loads_chats_and_is_saved_without_its_code(tmp_path):
    """As it is published: Qwen2's files, and a class of its own in Python, which is never run."""
    path, back = tmp_path / "dream", tmp_path / "back"
    path.mkdir()
    back.mkdir()
    tokenizers.train_bpe(["to be or not to be, that is the question"] * 5, 300, path / "tokenizer.json")
    core = hf_tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    core.model.save(str(path))
    (path / "tokenizer.json").unlink()
    assert {"vocab.json", "merges.txt"} == {p.name for p in path.iterdir()}
    n, flags = core.get_vocab_size(), dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    added = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|beginoftext|>", "<|mask|>"]
    content = {"tokenizer_class": "DreamTokenizer", "add_bos_token": False, "unk_token": None, "errors": "replace"}
    content |= {"auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]}, "mask_token": "<|mask|>"}
    content |= {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "bos_token": "<|beginoftext|>"}
    tokens = {str(n + i): {"content": t, "special": True, **flags} for i, t in enumerate(added)}
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    template += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    content |= {"added_tokens_decoder": tokens, "chat_template": template}
    (path / "tokenizer_config.json").write_text(json.dumps(content))
    (path / "tokenization_dream.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'proof')!r})\n")
    (path / "config.json").write_text(json.dumps({"model_type": "Dream", "mask_token_id": n + 4}))
    t = tokenizers.load({"kind": "hf"}, path)
    tokenizers.save_files(t.spec, path, back)
    shutil.copyfile(path / "config.json", back / "config.json")
    text = "not to be, that is the question é"
    question, answer, end = (core.encode(text).ids for text in ("user\nto be", "assistant\n", "\n"))
    for again in (t, tokenizers.load({"kind": "hf"}, back)):
        assert again.encode(text) == core.encode(text).ids and again.decode(again.encode(text)) == text
        assert (again.eos_id, again.mask_id, again.stop_ids, again.vocab_size) == (n, n + 4, (n, n + 2), n + 5)
        ids = again.chat([{"role": "user", "content": "to be"}])
        assert ids == [n + 1, *question, n + 2, *end, n + 1, *answer]
    assert not (tmp_path / "proof").exists()
