"""SDAR, Fast-dLLM v2, iLLaDA and Open-dCoder as published: the same logits, the same tokens, the same scores.

golden/blocks.json holds what published code gave for tiny networks on 2026-11-29 (torch 2.13, transformers 4.53.3, CPU,
fp32), with weights that are functions of their names, as in test_published.py:
SDAR          modeling_sdar.py and generate.py of github.com/JetAstra/SDAR, c2041a8, where flash_attn is scaled products
              and the plain RMSNorm that stands beside it; LMDeploy's unmasking (FOCUS's copy, 8f06592), by which its
              scores were measured; the lines of its engine, github.com/Labman42/JetEngine, 11563d1, for entropies
Fast-dLLM v2  v2/generation_functions.py of github.com/NVlabs/Fast-dLLM, d259b48; its modelling file in DLLM-AccelEval's
              copy, 0165127
iLLaDA        generate.py of github.com/ML-GSAI/LLaDA, b7e6c35, with mask 5; around it the loops of pull request 134's
              var_generate and get_loglikelihood_confidence; on transformers' Llama, where everyone sees everyone: its
              own file was only read, and is the same network
Open-dCoder   generation_utils.py of github.com/pengzhangzhi/Open-dLLM, 8b38787, on transformers' Qwen2 likewise
Where the published code draws (multinomial), it was given the numbers that ours draws.
"""

import json
from pathlib import Path

import pytest
import torch
from test_published import weight

import bd3lm
from model import Config, Transformer
from nanodlm import families, fast_bd3lm, fast_mdlm
from nanodlm.fast_bd3lm import SampleOptions
from nanodlm.likelihood import LikelihoodOptions

GOLDEN = json.loads((Path(__file__).parent / "golden" / "blocks.json").read_text())
SDAR, FAST, ILLADA, DCODER = (GOLDEN[which] for which in ("sdar", "fast_dllm_v2", "illada", "open_dcoder"))
MASK, STOP, MASK_5 = 63, 62, 5


def network(golden, mask):
    content = golden["config"]
    family = families.FAMILIES[content["architectures"][0]]
    model = Transformer(Config(**family.config(content))).eval()
    own = dict(model.named_parameters())
    with torch.no_grad():
        for theirs, (ours,) in families.their_names(family, own, model.config.n_layer).items():
            w = weight(theirs, tuple(own[ours].shape)).float()
            if ours == ("embed.weight" if model.config.tied else "head_weight"):
                w[mask] = 0
                w *= 1 if model.config.tied else 2
            own[ours].copy_(w)
    return model


NETS = {which: network(golden, MASK_5 if which == "illada" else MASK) for which, golden in GOLDEN.items()}


torch.set_num_threads(1)


def tensors(rows):
    return [torch.tensor(row) for row in rows]


def case_id(case):
    return " ".join(f"{k}={v}" for k, v in (case.get("options") or case).items() if not isinstance(v, list))


@pytest.mark.parametrize("which", NETS)
def test_the_logits_are_the_published_codes(which):
    """In blocks from the text's start; a shifted network's output i is asked for as that of token i + 1."""
    golden, net = GOLDEN[which], NETS[which]
    i, expected = torch.arange(len(golden["ids"])), torch.tensor(golden["logits"])
    size = net.config.block_size or len(i)
    mask = (i[:, None] // size >= i // size)[None]
    rows = torch.tensor(golden.get("rows", i.tolist())) + int(net.config.shift)
    with torch.no_grad():
        found = net(torch.tensor([golden["ids"]]), mask=mask, rows=rows)
    assert expected.std() > 1 and (found - expected).abs().max() < 1e-5 + 5e-6  # they are written with five digits


RULES = {
    "sequential": dict(order="left_to_right"),
    "low_confidence_static": {},
    "low_confidence_dynamic": dict(quota="threshold"),
}


@pytest.mark.parametrize("case", SDAR["generate"], ids=case_id)
def test_sdars_sampler(case):
    """It draws, and is as sure as the filters leave it; a prompt's end shares a block with the first new tokens; the
    last block is filled to its end. (Not with fewer steps than tokens in a block that holds given ones: it overwrites
    them; nor by its entropy_bounded, which asks for a variable that is not there.)"""
    k = case["options"]
    o = dict(RULES[k["remasking_strategy"]], temperature=k["temperature"], top_k=k["top_k"], top_p=k["top_p"])
    o |= dict(threshold=k["confidence_threshold"]) if "quota" in o else {}
    for prompt, expected in zip(case.get("prompts", SDAR["prompts"]), case["ids"]):
        new = len(expected) - len(prompt)
        steps = 0 if k["denoising_steps"] == 4 else new // 4 * k["denoising_steps"]
        options = SampleOptions(new, steps=steps, measure="draw", exact=True, **o)
        out = fast_bd3lm.generate(NETS["sdar"], tensors([prompt]), options, mask_id=MASK)
        assert out.tokens[0].tolist() == expected


@pytest.mark.parametrize("case", SDAR["lmdeploy"], ids=case_id)
def test_sdars_scores_were_decoded_so(case):
    """Greedily, by LMDeploy: every rule of its is one of ours, in the plain sampler, too."""
    o = dict(RULES[case["strategy"]], temperature=0.0)
    o |= dict(threshold=case["threshold"]) if "quota" in o else {}
    for prompt, expected, forwards in zip(SDAR["prompts"], case["ids"], case["forwards"]):
        rest = NETS["sdar"], tensors([prompt])
        new = len(expected) - len(prompt)
        fast = fast_bd3lm.generate(*rest, SampleOptions(new, exact=True, **o), mask_id=MASK)
        plain = bd3lm.generate(*rest, bd3lm.SampleOptions(new, **o), mask_id=MASK)
        assert fast.tokens[0].tolist() == plain.tokens[0].tolist() == expected
        assert plain.num_forwards == [forwards]


@pytest.mark.parametrize("case", SDAR["jetengine"], ids=case_id)
def test_sdars_engine_bounds_the_sum_of_entropies(case):
    """Where EB-Sampler's rule takes one more; without exact that is ours."""
    o = dict(quota="entropy_bound", order="entropy", entropy_bound=case["eb_threshold"], temperature=0.0)
    for prompt, expected in zip(SDAR["prompts"][:2], case["ids"]):
        new, rest = len(expected) - len(prompt), (NETS["sdar"], tensors([prompt]))
        theirs, ours = (
            fast_bd3lm.generate(*rest, SampleOptions(new, exact=exact, **o), mask_id=MASK) for exact in (True, False)
        )
        assert theirs.tokens[0].tolist() == expected
        assert case["eb_threshold"] < 1 or ours.num_forwards < theirs.num_forwards


@pytest.mark.parametrize("case", FAST["generate"], ids=case_id)
def test_fast_dllm_v2s_sampler(case):
    """The pass that stores a block says what comes next; a block is then revealed in parts. Each prompt alone, and all
    in one ragged batch, by whole blocks; as many forwards, but for the last block's, which is stored for nobody."""
    k = case["options"]
    o = dict(sub_block=k["small_block_size"], opening="next", quota="threshold", threshold=k["threshold"])
    o |= dict(temperature=0.0)
    cache = "parts" if k.get("use_block_cache") else "kept"
    options = [SampleOptions(64 - len(p) % 32, **o, cache=cache, measure="token", exact=True) for p in FAST["prompts"]]
    keys = dict(mask_id=MASK, eos_id=STOP)
    for prompt, expected, forwards, mine in zip(FAST["prompts"], case["ids"], case["forwards"], options):
        out = fast_bd3lm.generate(NETS["fast_dllm_v2"], tensors([prompt]), mine, **keys)
        text = out.tokens[0].tolist()
        assert text == expected[: len(text)] and (text[-1] == STOP or len(text) % 32 == 0)
        assert text[-1] == STOP or out.num_forwards == [forwards - 1]
        if cache == "kept" and len(prompt) == 33:
            plain = bd3lm.SampleOptions(mine.max_new_tokens, **o)
            assert bd3lm.generate(NETS["fast_dllm_v2"], tensors([prompt]), plain, **keys).tokens[0].tolist() == text
    together = fast_bd3lm.generate(NETS["fast_dllm_v2"], tensors(FAST["prompts"]), options[0], **keys)
    for tokens, prompt, expected in zip(together.tokens, FAST["prompts"], case["ids"]):
        n = min(len(tokens), (len(prompt) + options[0].max_new_tokens) // 32 * 32)
        assert tokens.tolist()[:n] == expected[:n]


@pytest.mark.parametrize("case", ILLADA["generate"], ids=case_id)
def test_illada_is_decoded_by_lladas_code_with_its_own_mask(case):
    k = case["options"]
    o = fast_mdlm.SampleOptions(
        k["gen_length"], k["block_length"], k["steps"], measure="token", temperature=0.0, exact=True
    )
    out = fast_mdlm.generate(NETS["illada"], tensors(ILLADA["prompts"]), o, mask_id=MASK_5)
    assert [t.tolist() for t in out.tokens] == case["ids"]


@pytest.mark.parametrize("case", ILLADA["variable"], ids=lambda c: f"{case_id(c)} stops={c['stops']}")
def test_illadas_variable_length_is_its_evaluations(case):
    """A ragged batch, where it has one prompt; what stands behind the first end is cut."""
    k = case["options"]
    steps = k["steps"] * (k["gen_length"] // k["block_length"])
    o = dict(measure="token", temperature=0.0, exact=True, lookahead=False)
    o = fast_mdlm.SampleOptions(k["gen_length"], k["block_length"], steps, **o)
    out = fast_mdlm.generate(NETS["illada"], tensors(ILLADA["prompts"]), o, mask_id=MASK_5, eos_id=case["stops"])
    for tokens, prompt, expected in zip(out.tokens, ILLADA["prompts"], case["ids"]):
        new = expected[len(prompt) :]
        end = next((i + 1 for i, t in enumerate(new) if t in case["stops"]), len(new))
        assert tokens.tolist() == prompt + new[:end]


def test_illadas_score_is_its_evaluations():
    """With an end-of-text behind the answer that is seen and not scored, and without."""
    for case in ILLADA["scores"]:
        target = torch.tensor([*case["target"], *([ILLADA["config"]["eos_token_id"]] if case["eos"] else [])])
        o = LikelihoodOptions("illada", seen_end=case["eos"])
        pair = [torch.tensor(case["prompt"])], [target]
        assert abs(fast_mdlm.log_likelihood(NETS["illada"], *pair, o, mask_id=MASK_5).item() - case["value"]) < 1e-4


@pytest.mark.parametrize("case", DCODER["generate"], ids=case_id)
def test_open_dcoders_samplers(case):
    """Dream's, and P2, which hides again what has become unsure; in a ragged batch, where it has one prompt."""
    k = case["options"]
    order = {"maskgit_plus": "confidence", "topk_margin": "margin", "entropy": "entropy", "p2": "confidence"}[k["alg"]]
    o = dict(order=order, measure="draw", temperature=0.0, exact=True)
    o |= dict(quota="p2") if k["alg"] == "p2" else dict(schedule="dream")
    options = fast_mdlm.SampleOptions(k["max_new_tokens"], steps=k["steps"], **o)
    out = fast_mdlm.generate(NETS["open_dcoder"], tensors(DCODER["prompts"]), options, mask_id=MASK)
    assert [t.tolist() for t in out.tokens] == case["ids"]
