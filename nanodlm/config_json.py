"""What a released config.json says that several families share: what our network has not, and rotary positions."""

import math


def need(c, **values):
    """Refuse a config.json that asks for what our network does not have."""
    for key, allowed in values.items():
        if c.get(key) not in (None, *allowed):
            raise ValueError(f"{key}={c[key]!r} is not supported, only {' or '.join(map(repr, allowed))}")


def rope(c, theta=None):
    """rope_theta and rope_scaling of a config.json, old (rope_theta, rope_scaling) or new (rope_parameters)."""
    new = c.get("rope_parameters")
    p = new or c.get("rope_scaling") or {}
    theta = p["rope_theta"] if "rope_theta" in p else c.get("rope_theta", theta)
    if theta is None:
        raise KeyError("rope_theta")
    kind = p.get("rope_type", p.get("type", "default"))
    scaling = {
        "default": (),
        "linear": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    }
    if kind not in (*scaling, "yarn"):
        raise ValueError(f"rope_type={kind!r} is not supported, only {', '.join(scaling)}, yarn")
    fraction = p.get("partial_rotary_factor", c.get("partial_rotary_factor", 1.0))
    if kind == "yarn":
        numbers = yarn(p, theta, round((c.get("head_dim") or c["hidden_size"] / c["num_attention_heads"]) * fraction))
    else:
        numbers = tuple(float(p[k]) for k in scaling[kind])
    return {"rope_theta": float(theta), "rope_scaling": numbers, "rope_fraction": fraction}


def yarn(p, theta, dim):
    """rotary()'s (factor, last, width) of YaRN (arXiv 2309.00071, section 3.2): frequencies that turn `beta_fast` times
    or more within the old context stay, those that turn `beta_slow` times or less are divided by the factor."""
    one, most, every = (p.get(key) for key in ("attention_factor", "mscale", "mscale_all_dim"))
    if one != 1 and (one is not None or not most or most != every):
        raise ValueError(
            "rope_type='yarn' is supported where it leaves the logits as they are, by attention_factor=1 or equal "
            f"mscale and mscale_all_dim, not by {one}, {most}, {every}"
        )
    if p.get("truncate") not in (None, True):
        raise ValueError(f"truncate={p['truncate']!r} is not supported, only True")
    fast, slow = (
        dim * math.log(p["original_max_position_embeddings"] / (turns * 2 * math.pi)) / (2 * math.log(theta))
        for turns in (p.get("beta_fast") or 32, p.get("beta_slow") or 1)
    )
    first, last = max(math.floor(fast), 0), min(math.ceil(slow), dim - 1)
    return float(p["factor"]), float(last), float(last - first or 1e-3)
