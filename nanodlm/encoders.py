"""What BERT, RoBERTa and ModernBERT call things; see families.py."""

from nanodlm.config_json import need


def bert(c):
    need(c, hidden_act=["gelu"], position_embedding_type=["absolute"], is_decoder=[False], add_cross_attention=[False])
    need(c, tie_word_embeddings=[True])  # an untied head's bias is the shared one in transformers 4, its own in 5
    return {
        "vocab_size": c["vocab_size"],
        "seq_len": c["max_position_embeddings"],
        "n_layer": c["num_hidden_layers"],
        "n_head": c["num_attention_heads"],
        "n_embd": c["hidden_size"],
        "mlp": "gelu",
        "mlp_dim": c["intermediate_size"],
        "norm": "layer",
        "norm_eps": c["layer_norm_eps"],
        "norm_bias": True,
        "norm_after": True,
        "norm_embed": True,
        "position": "learned",
        "token_types": c["type_vocab_size"],
        "qk_norm": False,
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "head_dense": "bias",
        "head_bias": True,
        "tied": True,
    }


def roberta(c):
    """Positions are counted from pad_token_id + 1, so the table's first rows belong to none."""
    offset = c["pad_token_id"] + 1
    return bert(c) | {"seq_len": c["max_position_embeddings"] - offset, "position_offset": offset}


def modernbert(c):
    need(c, hidden_activation=["gelu"], classifier_activation=["gelu"])
    p, layers = c.get("rope_parameters"), c["num_hidden_layers"]
    thetas = [p[k]["rope_theta"] for k in ("full_attention", "sliding_attention")] if p else None
    thetas = thetas or [c["global_rope_theta"], c.get("local_rope_theta") or c["global_rope_theta"]]
    for kind in (p or {}).values():
        need(kind, rope_type=["default"])
    need(c, rope_scaling=[None])
    if not c.get("layer_types"):
        every = c["global_attn_every_n_layers"]
    else:
        full = [kind == "full_attention" for kind in c["layer_types"]]
        fits = [n for n in range(1, layers + 1) if full == [i % n == 0 for i in range(layers)]]
        if not fits:
            raise ValueError("layer_types is not supported, only full_attention in every n-th layer from the first on")
        every = fits[0]
    return {
        "vocab_size": c["vocab_size"],
        "seq_len": c["max_position_embeddings"],
        "n_layer": layers,
        "n_head": c["num_attention_heads"],
        "n_embd": c["hidden_size"],
        "mlp": "geglu",
        "mlp_dim": c["intermediate_size"],
        "norm": "layer",
        "norm_eps": c["norm_eps"],
        "norm_bias": c["norm_bias"],
        "norm_embed": True,
        "norm_first": False,
        "rope_theta": float(thetas[0]),
        "local_rope_theta": float(thetas[1]),
        "window": c["local_attention"] // 2,
        "global_every": every,
        "qk_norm": False,
        "qkv_bias": c["attention_bias"],
        "out_bias": c["attention_bias"],
        "mlp_bias": c["mlp_bias"],
        "head_dense": "bias" if c["classifier_bias"] else "plain",
        "head_bias": c["decoder_bias"],
        "tied": c.get("tie_word_embeddings", True),
    }


BERT = {
    "bert.embeddings.word_embeddings": "embed",
    "bert.embeddings.position_embeddings": "pos_embed",
    "bert.embeddings.token_type_embeddings": "type_embed",
    "bert.embeddings.LayerNorm": "embed_norm",
    "bert.encoder.layer.{i}.attention.self.query": "blocks.{i}.attn.q",
    "bert.encoder.layer.{i}.attention.self.key": "blocks.{i}.attn.k",
    "bert.encoder.layer.{i}.attention.self.value": "blocks.{i}.attn.v",
    "bert.encoder.layer.{i}.attention.output.dense": "blocks.{i}.attn.out",
    "bert.encoder.layer.{i}.attention.output.LayerNorm": "blocks.{i}.attn_norm",
    "bert.encoder.layer.{i}.intermediate.dense": "blocks.{i}.mlp.up",
    "bert.encoder.layer.{i}.output.dense": "blocks.{i}.mlp.down",
    "bert.encoder.layer.{i}.output.LayerNorm": "blocks.{i}.mlp_norm",
    "cls.predictions.transform.dense": "head_dense",
    "cls.predictions.transform.LayerNorm": "head_norm",
    "cls.predictions.decoder.weight": "head_weight",
    "cls.predictions.bias": "head_bias",
}

ROBERTA = {name.replace("bert.", "roberta.", 1): ours for name, ours in BERT.items() if name.startswith("bert.")} | {
    "lm_head.dense": "head_dense",
    "lm_head.layer_norm": "head_norm",
    "lm_head.decoder.weight": "head_weight",
    "lm_head.bias": "head_bias",
}

MODERNBERT = {
    "model.embeddings.tok_embeddings": "embed",
    "model.embeddings.norm": "embed_norm",
    "model.layers.{i}.attn_norm": "blocks.{i}.attn_norm",
    "model.layers.{i}.attn.Wqkv": ("blocks.{i}.attn.q", "blocks.{i}.attn.k", "blocks.{i}.attn.v"),
    "model.layers.{i}.attn.Wo": "blocks.{i}.attn.out",
    "model.layers.{i}.mlp_norm": "blocks.{i}.mlp_norm",
    "model.layers.{i}.mlp.Wi": ("blocks.{i}.mlp.gate", "blocks.{i}.mlp.up"),
    "model.layers.{i}.mlp.Wo": "blocks.{i}.mlp.down",
    "model.final_norm": "norm",
    "head.dense": "head_dense",
    "head.norm": "head_norm",
    "decoder.weight": "head_weight",
    "decoder.bias": "head_bias",
}
