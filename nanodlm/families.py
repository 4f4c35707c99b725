"""What released families call things: config.json ⇄ model.Config, their tensors' names ⇄ ours. Only tables live here.

A name table is {theirs: ours}; `{i}` counts layers, `{e}` experts, `.weight` and `.bias` follow where ours has them,
and several of ours are stacked, in that order, in one of theirs. What a checkpoint may hold besides, because it repeats
something or is not used for language modelling, is matched by `ignore`; everything else is an error.
"""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from nanodlm.config_json import need, rope
from nanodlm.encoders import BERT, MODERNBERT, ROBERTA, bert, modernbert, roberta


@dataclass(frozen=True)
class Family:
    config: Callable[[dict], dict]  # config.json to fields of model.Config; KeyError or ValueError where it cannot be
    names: dict[str, str | tuple[str, ...]]
    algorithm: str = "mdlm"  # the module that decodes it
    preset: str = ""  # config/presets/….py: how its authors decode it
    prefix: str = ""  # some files leave this out in front of all names
    transposed: str = ""  # regex of the matrices that are stored (in, out)
    ignore: str = r".*\.rotary_emb\.inv_freq"


# ------------------------------------------------------------------------------------------------------------------
# Llama and its descendants


def llama(c, theta=10000.0, causal=True):
    need(c, hidden_act=["silu"], use_sliding_window=[False], pretraining_tp=[1])
    if set(c.get("layer_types") or ["full_attention"]) != {"full_attention"}:
        raise ValueError(f"layer_types={c['layer_types']} is not supported, only full_attention")
    bias = c.get("attention_bias") or False
    return {
        "vocab_size": c["vocab_size"],
        "seq_len": c["max_position_embeddings"],
        "n_layer": c["num_hidden_layers"],
        "n_head": c["num_attention_heads"],
        "n_kv_head": c.get("num_key_value_heads") or 0,
        "n_embd": c["hidden_size"],
        "head_dim": c.get("head_dim") or 0,
        "mlp": "swiglu",
        "mlp_dim": c["intermediate_size"],
        "norm_eps": c["rms_norm_eps"],
        **rope(c, theta),
        "qk_norm": False,
        "qkv_bias": bias,
        "out_bias": bias,
        "mlp_bias": c.get("mlp_bias") or False,
        "tied": c.get("tie_word_embeddings") or False,
        "causal": causal,
    }


def qwen2(c, causal=True):
    return llama(c, causal=causal) | {"qkv_bias": True, "out_bias": False}


def qwen3(c, causal=True):
    return llama(c, causal=causal) | {"qk_norm": True}


def dream(c):
    """Output i - 1 predicts token i: Dream was made from an autoregressive Qwen2.5 and keeps its shift."""
    return llama(c, None, causal=False) | {"qkv_bias": True, "out_bias": False, "shift": True}


def sdar(c, parent):
    """Qwen3, no shift (github.com/JetAstra/SDAR); in blocks of 4, unless config.json, or a name, says others."""
    return parent(c, causal=False) | {"block_size": c.get("block_size") or 4}


def fast_dllm(c):
    """Qwen2.5 that sees its blocks both ways and keeps the shift (github.com/NVlabs/Fast-dLLM, v2/)."""
    return qwen2(c, causal=False) | {"block_size": c["bd_size"], "shift": True, "two_way": True}


def nemotron(c):
    """Nemotron-Labs-Diffusion (arXiv 2607.05722): Ministral 3, which reads text causally, as it did, and says the next
    token there; masks see all of their block, and say their own. Its queries grow from position
    original_max_position_embeddings on (llama_4_scaling_beta): the context ends there."""
    need(c, attention_bias=[False], mlp_bias=[False], tie_word_embeddings=[False], sliding_window=[0])
    need(c, dlm_paradigm=["bidirectional", "block_diff", "autoregressive"])
    p = c["rope_parameters"]
    ends = p["original_max_position_embeddings"] if p.get("llama_4_scaling_beta") else c["max_position_embeddings"]
    return llama(c) | {"seq_len": min(ends, c["max_position_embeddings"]), "block_size": c["block_size"]}


LLAMA = {
    "model.embed_tokens": "embed",
    "model.layers.{i}.input_layernorm": "blocks.{i}.attn_norm",
    "model.layers.{i}.self_attn.q_proj": "blocks.{i}.attn.q",
    "model.layers.{i}.self_attn.k_proj": "blocks.{i}.attn.k",
    "model.layers.{i}.self_attn.v_proj": "blocks.{i}.attn.v",
    "model.layers.{i}.self_attn.q_norm": "blocks.{i}.attn.q_norm",
    "model.layers.{i}.self_attn.k_norm": "blocks.{i}.attn.k_norm",
    "model.layers.{i}.self_attn.o_proj": "blocks.{i}.attn.out",
    "model.layers.{i}.post_attention_layernorm": "blocks.{i}.mlp_norm",
    "model.layers.{i}.mlp.gate_proj": "blocks.{i}.mlp.gate",
    "model.layers.{i}.mlp.up_proj": "blocks.{i}.mlp.up",
    "model.layers.{i}.mlp.down_proj": "blocks.{i}.mlp.down",
    "model.norm": "norm",
    "lm_head.weight": "head_weight",
}

NEMOTRON = {name.replace("model.", "encoder.").replace("lm_", "diffusion_"): ours for name, ours in LLAMA.items()}


# ------------------------------------------------------------------------------------------------------------------
# mixtures of experts: Qwen3, LLaDA-MoE (github.com/inclusionAI/dInfer, modeling_fused_lladamoe.py), LLaDA 2
# (github.com/inclusionAI/dFactory, models/llada2_moe)


def qwen3_moe(c, causal=True):
    need(c, decoder_sparse_step=[1], mlp_only_layers=[[]])
    return qwen3(c, causal) | {
        "experts": c.get("num_experts") or c["num_local_experts"],
        "experts_per_token": c["num_experts_per_tok"],
        "expert_dim": c["moe_intermediate_size"],
        "router_norm": c["norm_topk_prob"],
    }


def llada_moe(c):
    """The first layers, if any, are dense. The weights of its router are not normalised, whatever norm_topk_prob says;
    what it would do with a bias of experts is left out, as no released one has it."""
    need(c, clip_qkv=[None], moe_router_enable_expert_bias=[False], moe_router_score_function=["softmax"])
    layers, freq = c["num_hidden_layers"], list(c["moe_layer_freq"])
    dense = layers - sum(freq)
    if freq != [0] * dense + [1] * (layers - dense):
        raise ValueError(f"moe_layer_freq={freq} is not supported, only 0 for first layers and 1 for the others")
    sizes = {"intermediate_size": c["dense_intermediate_size"] if dense else c["expert_intermediate_size"]}
    return llama(c | sizes, None, causal=False) | {
        "qk_norm": c["qk_layernorm"] or False,
        "experts": c["num_experts"],
        "experts_per_token": c["num_experts_per_tok"],
        "expert_dim": c["expert_intermediate_size"],
        "shared_dim": c.get("shared_expert_intermediate_size") or 0,
        "dense_layers": dense,
    }


def llada2(c):
    """Blocks of 32: not its config.json says so, but its generate(). A token sees its own block and those before."""
    need(c, score_function=["sigmoid"], norm_topk_prob=[True], norm_head=[False], router_dtype=["fp32"])
    need(c, moe_router_enable_expert_bias=[True], use_rmsnorm=[True])
    need(c, expert_capacity=[0])  # LLaDA 2.2: the tokens of a block choose among so many experts, found together
    return llama(c, None, causal=False) | {
        "block_size": 32,
        "rope_fraction": c["partial_rotary_factor"],
        "qk_norm": c.get("use_qk_norm", True),
        "qkv_bias": c["use_qkv_bias"],
        "out_bias": c["use_bias"],
        "experts": c["num_experts"],
        "experts_per_token": c["num_experts_per_tok"],
        "expert_dim": c["moe_intermediate_size"],
        "shared_dim": (c.get("num_shared_experts") or 0) * c["moe_intermediate_size"],
        "dense_layers": c["first_k_dense_replace"],
        "router": "sigmoid",
        "router_norm": True,
        "router_bias": True,
        "router_groups": (c["n_group"], c["topk_group"]),
        "router_scale": c["routed_scaling_factor"],
    }


EXPERTS = {
    "model.layers.{i}.mlp.gate.weight": "blocks.{i}.mlp.router",
    "model.layers.{i}.mlp.experts.{e}.gate_proj.weight": "blocks.{i}.mlp.gate.{e}",
    "model.layers.{i}.mlp.experts.{e}.up_proj.weight": "blocks.{i}.mlp.up.{e}",
    "model.layers.{i}.mlp.experts.{e}.down_proj.weight": "blocks.{i}.mlp.down.{e}",
}

LLADA_MOE = (
    LLAMA
    | EXPERTS
    | {f"model.layers.{{i}}.shared_expert.{m}_proj": f"blocks.{{i}}.mlp.shared.{m}" for m in ("gate", "up", "down")}
)

LLADA2 = {
    "model.word_embeddings": "embed",
    "model.layers.{i}.input_layernorm": "blocks.{i}.attn_norm",
    "model.layers.{i}.attention.query_key_value": tuple(f"blocks.{{i}}.attn.{m}" for m in "qkv"),
    "model.layers.{i}.attention.query_layernorm": "blocks.{i}.attn.q_norm",
    "model.layers.{i}.attention.key_layernorm": "blocks.{i}.attn.k_norm",
    "model.layers.{i}.attention.dense": "blocks.{i}.attn.out",
    "model.layers.{i}.mlp.gate.expert_bias": "blocks.{i}.mlp.router_bias",
    **{n: ours for n, ours in LLAMA.items() if ".attn" not in ours and ours != "embed"},
    **EXPERTS,
} | {f"model.layers.{{i}}.mlp.shared_experts.{m}_proj": f"blocks.{{i}}.mlp.shared.{m}" for m in ("gate", "up", "down")}


# ------------------------------------------------------------------------------------------------------------------
# LLaDA: the same network under OLMo's names


def llada(c):
    need(
        c,
        block_type=["llama"],
        activation_type=["silu"],
        layer_norm_type=["rms"],
        rope=[True],
        alibi=[False],
        include_bias=[False],
        bias_for_layer_norm=[False],
        attention_layer_norm=[False],
        scale_logits=[False],
        input_emb_norm=[False],
        multi_query_attention=[False],
    )
    return {
        "vocab_size": c.get("embedding_size") or c["vocab_size"],
        "seq_len": c["max_sequence_length"],
        "n_layer": c["n_layers"],
        "n_head": c["n_heads"],
        "n_kv_head": c.get("n_kv_heads") or 0,
        "n_embd": c["d_model"],
        "mlp": "swiglu",
        "mlp_dim": c.get("mlp_hidden_size") or c["mlp_ratio"] * c["d_model"],
        "norm_eps": c["rms_norm_eps"],
        "rope_theta": float(c["rope_theta"]),
        "qk_norm": False,
        "qkv_bias": c["include_qkv_bias"] or False,
        "tied": c["weight_tying"],
    }


LLADA = {
    "model.transformer.wte": "embed",
    "model.transformer.blocks.{i}.attn_norm": "blocks.{i}.attn_norm",
    "model.transformer.blocks.{i}.q_proj": "blocks.{i}.attn.q",
    "model.transformer.blocks.{i}.k_proj": "blocks.{i}.attn.k",
    "model.transformer.blocks.{i}.v_proj": "blocks.{i}.attn.v",
    "model.transformer.blocks.{i}.attn_out": "blocks.{i}.attn.out",
    "model.transformer.blocks.{i}.ff_norm": "blocks.{i}.mlp_norm",
    "model.transformer.blocks.{i}.ff_proj": "blocks.{i}.mlp.gate",
    "model.transformer.blocks.{i}.up_proj": "blocks.{i}.mlp.up",
    "model.transformer.blocks.{i}.ff_out": "blocks.{i}.mlp.down",
    "model.transformer.ln_f": "norm",
    "model.transformer.ff_out.weight": "head_weight",
}


# ------------------------------------------------------------------------------------------------------------------
# GPT-2


def gpt2(c):
    need(
        c,
        scale_attn_weights=[True],
        scale_attn_by_inverse_layer_idx=[False],
        add_cross_attention=[False],
        activation_function=["gelu_new", "gelu_pytorch_tanh", "gelu"],
    )
    return {
        "vocab_size": c["vocab_size"],
        "seq_len": c.get("n_positions") or c["n_ctx"],
        "n_layer": c["n_layer"],
        "n_head": c["n_head"],
        "n_embd": c["n_embd"],
        "mlp": "gelu" if c.get("activation_function") == "gelu" else "gelu_tanh",
        "mlp_dim": c.get("n_inner") or 0,
        "norm": "layer",
        "norm_eps": c["layer_norm_epsilon"],
        "norm_bias": True,
        "position": "learned",
        "qk_norm": False,
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "tied": c.get("tie_word_embeddings", True),
        "causal": True,
    }


GPT2 = {
    "transformer.wte": "embed",
    "transformer.wpe": "pos_embed",
    "transformer.h.{i}.ln_1": "blocks.{i}.attn_norm",
    "transformer.h.{i}.attn.c_attn": ("blocks.{i}.attn.q", "blocks.{i}.attn.k", "blocks.{i}.attn.v"),
    "transformer.h.{i}.attn.c_proj": "blocks.{i}.attn.out",
    "transformer.h.{i}.ln_2": "blocks.{i}.mlp_norm",
    "transformer.h.{i}.mlp.c_fc": "blocks.{i}.mlp.up",
    "transformer.h.{i}.mlp.c_proj": "blocks.{i}.mlp.down",
    "transformer.ln_f": "norm",
    "lm_head.weight": "head_weight",
}


# ------------------------------------------------------------------------------------------------------------------
# the table, by the `architectures` of config.json; model_type is not unique: LLaDA's mixture of experts says llada, too

LLADA_FAMILY = Family(llada, LLADA, preset="llada")
AR = Family(llama, LLAMA, algorithm="ar")
A2D = Family(lambda c: llama(c, causal=False), LLAMA, preset="mdlm")
AR_GPT2 = Family(
    gpt2,
    GPT2,
    algorithm="ar",
    prefix="transformer.",
    transposed=r".*\.(c_attn|c_proj|c_fc)\.weight",
    ignore=r".*\.attn\.(bias|masked_bias)",
)
A2D_GPT2 = replace(AR_GPT2, config=lambda c: gpt2(c) | {"causal": False}, algorithm="mdlm", preset="mdlm")
BERT_IGNORE = r"(.*\.)?position_ids|(.*\.)?pooler\..*|cls\.seq_relationship\..*|.*\.decoder\.bias"

FAMILIES = {
    "LLaDAModelLM": LLADA_FAMILY,
    **dict.fromkeys(("LLaDAMoEModelLM", "LLaDAMoEModel"), Family(llada_moe, LLADA_MOE, preset="llada")),
    "LLaDA2MoeModelLM": Family(llada2, LLADA2, algorithm="bd3lm", preset="llada2"),
    "ILLaDAForCausalLM": Family(lambda c: llama(c, None, causal=False), LLAMA, preset="illada"),
    "DreamModel": Family(dream, LLAMA, preset="dream"),
    "SDARForCausalLM": Family(lambda c: sdar(c, qwen3), LLAMA, "bd3lm", "sdar"),
    "SDARMoeForCausalLM": Family(lambda c: sdar(c, qwen3_moe), LLAMA | EXPERTS, "bd3lm", "sdar"),
    "Fast_dLLM_QwenForCausalLM": Family(fast_dllm, LLAMA, "bd3lm", "fast_dllm_v2"),
    "NemotronLabsDiffusionModel": Family(nemotron, NEMOTRON, algorithm="bd3lm", preset="nemotron"),
    "A2DLlamaLMHeadModel": A2D,
    "A2DQwen2LMHeadModel": replace(A2D, config=lambda c: qwen2(c, causal=False)),
    "A2DQwen3LMHeadModel": replace(A2D, config=lambda c: qwen3(c, causal=False)),
    "LlamaForCausalLM": AR,
    "Qwen2ForCausalLM": replace(AR, config=qwen2),
    "Qwen3ForCausalLM": replace(AR, config=qwen3),
    "Qwen3MoeForCausalLM": replace(AR, config=qwen3_moe, names=LLAMA | EXPERTS),
    "GPT2LMHeadModel": AR_GPT2,
    "A2DGPT2LMHeadModel": A2D_GPT2,
    "BertForMaskedLM": Family(bert, BERT, prefix="bert.", ignore=BERT_IGNORE),
    "RobertaForMaskedLM": Family(roberta, ROBERTA, prefix="roberta.", ignore=BERT_IGNORE),
    "ModernBertForMaskedLM": Family(modernbert, MODERNBERT, preset="llada", prefix="model."),
}


def their_names(family, ours, n_layer):
    """{their name: the names of ours that are stacked in it}, for the parameters `ours` of one network."""
    table = {}
    for theirs, mine in family.names.items():
        mine = (mine,) if isinstance(mine, str) else mine
        for i in range(n_layer if "{i}" in theirs else 1):
            for suffix in ("", ".weight", ".bias"):
                names = [m.replace("{i}", str(i)) + suffix for m in mine]
                if all(n in ours for n in names):
                    table[theirs.replace("{i}", str(i)) + suffix] = names
            for e in itertools.count() if "{e}" in theirs else ():
                if (name := mine[0].replace("{i}", str(i)).replace("{e}", str(e))) not in ours:
                    break
                table[theirs.replace("{i}", str(i)).replace("{e}", str(e))] = [name]
    return table


def by_expert(parameters):
    """{name: tensor} with the stacked matrices of experts one by one, `name.e`, as released files have them."""
    found = {}
    for name, p in parameters.items():
        found |= {f"{name}.{e}": part for e, part in enumerate(p)} if p.dim() == 3 else {name: p}
    return found


def modern(name, family, names):
    """A tensor's name as today's files have it: with the family's prefix, and no gamma and beta."""
    name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
    return family.prefix + name if family.prefix and family.prefix + name in names else name
