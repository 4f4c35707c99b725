"""Nemotron-Labs-Diffusion as published (arXiv 2607.05722): the same logits, and the same tokens in its three modes.

golden/nemotron.json holds what the published code gave for a tiny network on 2026-11-29 (torch 2.13, transformers 5.17,
CPU, fp32): `generate`, `ar_generate` and `linear_spec_generate` of the hub's modeling_nemotron_labs_diffusion.py, as
publicly stored, without its budget of thought, on transformers' own Ministral 3, whose attention has the switch that
NVIDIA's copy of it has (that copy, modeling_ministral.py, could not be had): in diffusion a block sees all that is
given, or else what comes before. The pass of training has that file's block_diff mask. Weights are functions of their
names.
"""

import json
import math
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
import transformers as tf
import zoo

import ar
import bd3lm
import model
import sample
from model import Config, Transformer
from nanodlm import checkpoint as ckpt
from nanodlm import config_json, families, fast_bd3lm, introspect, noise, start
from nanodlm import tokenizer as tokenizers

GOLDEN = json.loads((Path(__file__).parent / "golden" / "nemotron.json").read_text())
MASK, NEW = 63, 24
PROMPTS = [torch.tensor(p) for p in GOLDEN["prompts"]]
PUBLISHED = dict(quota="threshold", measure="token", temperature=0.0, opening="next")


def weight(name, shape):
    """The head says eight of the tokens more loudly, so that some drafts stand, and never the mask."""
    n = math.prod(shape)
    u = noise.uniform(0, zlib.crc32(name.encode()), torch.arange(n)).view(shape) - 0.5
    if len(shape) == 1:
        return 1 + 0.4 * u
    w = (2.2 if "embed" in name else 1.2) * u
    if "head" in name:
        w[8:] /= 4
        w[MASK] = 0
    return w


def network():
    family = families.FAMILIES["NemotronLabsDiffusionModel"]
    net = Transformer(Config(**family.config(GOLDEN["config"]))).eval()
    own = dict(net.named_parameters())
    with torch.no_grad():
        for theirs, (ours,) in families.their_names(family, own, net.config.n_layer).items():
            own[ours].copy_(weight(theirs, tuple(own[ours].shape)))
    return net


NET = network()


def tokens(out):
    return [t.tolist() for t in out.tokens]


@torch.no_grad()
def test_the_logits_are_the_published_codes_in_both_kinds_of_attention():
    """A text is read causally; behind it a block sees all of itself. Ragged, in one batch and with a cache."""
    blocks = [torch.tensor(case["block"]) for case in GOLDEN["logits"]]
    n = max(map(len, PROMPTS))
    text = torch.stack([torch.nn.functional.pad(p, (0, n - len(p))) for p in PROMPTS])
    lengths, at = torch.tensor([len(p) for p in PROMPTS]), torch.arange(n)
    real = at < lengths[:, None]
    cache = NET.cache(3, n + 8)
    causal = NET(text, mask=real, positions=at.expand(3, n), cache=cache)
    k, where = torch.arange(n + 8), lengths[:, None] + torch.arange(8)
    inside = NET(
        torch.stack(blocks), mask=(k < lengths[:, None] + 8)[:, None].expand(3, 8, -1), positions=where, cache=cache
    )
    for i, case in enumerate(GOLDEN["logits"]):
        for mine, theirs in ((causal[i, : lengths[i]], case["causal"]), (inside[i], case["inside"])):
            assert (mine - torch.tensor(theirs)).abs().max() < 1e-5 + 5e-6  # they are written with five digits


@pytest.mark.parametrize("case", GOLDEN["generate"], ids=lambda c: f"{c['block_length']} {c['threshold']} {c['eos']}")
def test_diffusion_gives_the_published_tokens_in_as_many_forwards(case):
    """What the text before a block says of its first token, then what is sure. In one ragged batch, which the published
    code does not have."""
    size, threshold = case["block_length"], case["threshold"]
    o = fast_bd3lm.SampleOptions(NEW, size, **PUBLISHED | dict(threshold=threshold or 0.0))
    o = o if threshold is not None else replace(o, quota="steps")
    ends = dict(mask_id=MASK, eos_id=case["eos"])
    net = Transformer(replace(NET.config, block_size=size))
    net.load_state_dict(NET.state_dict())
    out = fast_bd3lm.generate(net, PROMPTS, o, **ends)
    assert tokens(out) == case["ids"]
    for x, prompt, mine, theirs in zip(out.tokens, PROMPTS, out.num_forwards, case["nfe"]):
        first = (len(x) - len(prompt)) % size == 1 and int(x[-1]) == case["eos"]  # then it reads masks behind it, too
        assert mine == theirs - first


@pytest.mark.parametrize("case", GOLDEN["speculate"], ids=lambda c: f"{c['block_length']} {c['eos']}")
def test_self_speculation_writes_the_published_tokens_and_those_of_autoregression(case):
    """The published code goes on to the end of a block, and drafts where there is one token to write."""
    o = introspect.SampleOptions(NEW, draft=case["block_length"] - 1, temperature=0.0)
    ends = dict(mask_id=MASK, eos_id=case["eos"])
    out = introspect.generate(NET, PROMPTS, o, **ends)
    theirs = ar.generate(NET, PROMPTS, ar.SampleOptions(NEW, temperature=0.0), mask_id=None, eos_id=case["eos"])
    assert tokens(out) == tokens(theirs)
    for mine, full, prompt, trail, passes in zip(tokens(out), case["ids"], PROMPTS, case["trail"], out.num_forwards):
        assert mine == full[: len(prompt) + NEW]
        before, needed = [(nfe, n) for nfe, n in trail if n < len(mine) - len(prompt)][-1], len(mine) - len(prompt)
        assert passes in (before[0] + 2, before[0] + (needed - before[1] == 1 and needed == NEW))
    quadratic = introspect.generate(NET, PROMPTS, replace(o, behind="every"), **ends)
    assert tokens(quadratic) == tokens(out) and sum(quadratic.num_forwards) < sum(out.num_forwards)
    if case["eos"] is None:
        assert tokens(out) == GOLDEN["ar"]


@pytest.mark.parametrize("opening", ["rule", "next"])
@pytest.mark.parametrize("size", [4, 8])
def test_the_plain_sampler_is_the_specification_of_blocks_behind_causal_text(size, opening):
    """In a batch, with holes in the prompt, beyond the context, with and without the published opening."""
    texts = [*PROMPTS, torch.tensor([5, 6, MASK, MASK, 7, 8, MASK, 9, 10, 11, MASK, MASK])]
    net = Transformer(replace(NET.config, block_size=size, seq_len=24)).double()
    net.load_state_dict(NET.state_dict())
    keys = dict(quota="threshold", threshold=0.1, temperature=0.7, seed=3, opening=opening)
    expected = bd3lm.generate(net, texts, bd3lm.SampleOptions(20, **keys), mask_id=MASK, eos_id=[4])
    for cache in ("kept", "block", "none"):
        o = fast_bd3lm.SampleOptions(20, cache=cache, **keys)
        assert tokens(fast_bd3lm.generate(net, texts, o, mask_id=MASK, eos_id=[4])) == tokens(expected)


def test_the_pass_of_training_is_the_published_one():
    """Noised blocks behind clean text that is read causally, and what it says of the next token (the joint loss)."""
    case = GOLDEN["training"]
    x0, hidden = torch.tensor(case["x0"]), torch.tensor(case["hidden"])
    clean = torch.ones_like(hidden).index_fill(1, torch.tensor([0]), False)
    xt, size = torch.where(hidden, MASK, x0), case["block_size"]
    both = bd3lm.hidden_nll(NET, xt, x0, hidden, size, MASK, clean=clean)
    expected = torch.tensor(case["hidden_nll"] + case["clean_nll"])
    assert (both - expected).abs().max() < 1e-5 + 5e-6
    alone = bd3lm.hidden_nll(NET, xt, x0, hidden, size, MASK)
    assert torch.equal(alone, both[: len(alone)]) or (alone - both[: len(alone)]).abs().max() < 1e-5
    o = bd3lm.LossOptions(block_size=4, clean_weight=1 / 0.3)
    a, b = (bd3lm.loss(NET, x0, replace(o, clean_weight=w), mask_id=MASK) for w in (0.0, 1 / 0.3))
    assert abs((b - a) - sum(case["clean_nll"]) / 0.3 / x0.numel()) < 1e-4


def test_yarn_is_transformers_own_for_the_released_sizes():
    """Frequencies of 3B, 8B and 14B alike: config.json's rope_parameters, heads of 128 channels."""
    rope = GOLDEN["config"]["rope_parameters"] | dict(
        factor=16.0, original_max_position_embeddings=16384, rope_theta=1e6
    )
    config = tf.Ministral3Config(head_dim=128, max_position_embeddings=262144, rope_parameters=dict(rope))
    frequencies, scale = tf.modeling_rope_utils.ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
    ours = config_json.rope({"head_dim": 128, "rope_parameters": rope})
    cos, sin = model.rotary(torch.ones(1, 1), 128, ours["rope_theta"], ours["rope_scaling"])
    assert ours["rope_scaling"] == (16.0, 37.0, 17.0) and scale == 1
    assert (torch.atan2(sin[0, 0, 0, 64:], cos[0, 0, 0, 64:]) / frequencies - 1).abs().max() < 1e-5


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A checkpoint in the published layout, of a tokenizer with letters."""
    path = tmp_path_factory.mktemp("nemotron")
    zoo.write(path / "tokenizer", "byte-level", "chatml", mask_token="<|mask|>", eos_token="<|im_end|>")
    tok = tokenizers.load({"kind": "hf"}, path / "tokenizer")
    content = GOLDEN["config"] | dict(vocab_size=tok.vocab_size, mask_token_id=tok.mask_id, eos_token_id=tok.eos_id)
    facts = {"architecture": content["architectures"][0], "hf_config": content}
    net = Transformer(Config(**families.FAMILIES[facts["architecture"]].config(content)))
    torch.manual_seed(3)
    weights = {n: torch.randn_like(p) * 0.3 if p.dim() > 1 else p for n, p in net.named_parameters()}
    ckpt.save(path / "own", weights, net.config, tok, path / "tokenizer", "bd3lm", facts)
    return path / "own"


def test_what_is_saved_has_the_published_names_and_settings(path):
    names = ["encoder.embed_tokens.weight", "encoder.norm.weight", "diffusion_head.weight"]
    parts = [f"self_attn.{m}_proj" for m in "qkvo"] + [f"mlp.{m}_proj" for m in ("gate", "up", "down")]
    parts += ["input_layernorm", "post_attention_layernorm"]
    names += [f"encoder.layers.{i}.{part}.weight" for i in range(2) for part in parts]
    assert safetensors.torch.load_file(path / "model.safetensors").keys() == set(names)
    content = json.loads((path / "config.json").read_text())
    assert (
        content.items()
        >= (GOLDEN["config"] | {k: content[k] for k in ("vocab_size", "mask_token_id", "eos_token_id")}).items()
    )
    again = ckpt.load(path)
    assert (again.algorithm, again.facts["preset"], again.model.config.causal) == ("bd3lm", "nemotron", True)
    assert (again.model.config.block_size, again.model.config.seq_len) == (8, 64)  # where queries begin to grow


def test_one_checkpoint_is_sampled_in_three_modes(path, capsys):
    said = [f"--checkpoint={path}", "--device=cpu", "--prompt=The user asks", "--max_new_tokens=24", "--temperature=0"]
    said += ["--stop_at_eos=false"]
    texts = {}
    for mode in ("", "--algorithm=ar", "--verify", "--verify --behind=every", "--plain"):
        sample.main([*said, *mode.split()])
        out = capsys.readouterr().out
        texts[mode] = out.split("-" * 60)[1], out.splitlines()[-1]
        assert "preset: nemotron" in out
    assert texts["--algorithm=ar"][0].split("-----")[0] == texts["--verify"][0].split("-----")[0]
    assert texts["--verify --behind=every"][0].split("-----")[0] == texts["--verify"][0].split("-----")[0]
    assert texts[""][0] != texts["--verify"][0] and "24 tokens in 24 forwards" in texts["--algorithm=ar"][1]
    with pytest.raises(SystemExit, match="--infill .text with .MASK. holes|has no mask token"):
        sample.main([*said[:2], "--infill=a [MASK] b", "--algorithm=ar"])
    ours = ["--checkpoint=checkpoints/pydocs_mdlm", "--device=cpu", "--max_new_tokens=4"]
    with pytest.raises(SystemExit, match="cannot judge its own drafts.* or whose clean text is causal"):
        sample.main([*ours, "--verify"])


def test_training_leaves_clean_text_causal_or_makes_it_so_where_that_is_asked_for(path):
    source = ckpt.load(path)

    def settled(algorithm, **said):
        source.algorithm = algorithm
        s = SimpleNamespace(algorithm="bd3lm", anneal_iters=0)
        said = {k: (v, "the command line") for k, v in said.items()}
        return start.settle_blocks(s, source.model.config, [8], source, bd3lm, 64, said).causal

    assert settled("bd3lm", clean_weight="3") and settled("ar", clean_weight="3", causal="true")
    assert not settled("ar") and not settled("bd3lm", causal="false")
    with pytest.raises(SystemExit, match="clean_weight is of a shifted network .* clean text causally .--causal=true"):
        settled("ar", clean_weight="3")
