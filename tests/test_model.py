"""The network, held against formulas written out by hand: every part, every switch, every mask, the cache."""

import dataclasses
import math

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from model import MLP, Attention, Config, KVCache, Norm, Transformer, rotary, rotate

TINY = dict(vocab_size=13, seq_len=32, n_layer=3, n_head=4, n_embd=24, head_dim=8, mlp_dim=20)
IDS = torch.randint(13, (2, 7), generator=torch.Generator().manual_seed(1))


def randomize(module, seed=0):
    """Float64 weights large enough that attention is far from uniform and that every bias and gain counts."""
    generator = torch.Generator().manual_seed(seed)
    module.double().eval()
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.copy_(noise * (1 if "embed" in name else p.shape[-1] ** -0.5) if p.dim() == 2 else noise * 0.3)
            if p.dim() == 1 and name.endswith("weight"):
                p.add_(1)
    return module.requires_grad_(False)


def network(seed=0, **switches):
    return randomize(Transformer(Config(**(TINY | switches))), seed)


def tensor(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def close(a, b, tolerance=1e-5):
    """Norms and rotations are computed in fp32, so that float64 networks agree to fp32 accuracy."""
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, check_dtype=False)


# ---- parts -----------------------------------------------------------------------------------------------------------


def test_rms_norm_divides_by_the_root_mean_square():
    norm, x = randomize(Norm(6, Config(norm="rms", norm_eps=0.02))), tensor(3, 6) * 0.1
    for row, out in zip(x, norm(x)):
        rms = math.sqrt(sum(v.item() ** 2 for v in row) / 6 + 0.02)
        close(out, torch.stack([v / rms * w for v, w in zip(row, norm.weight)]), 1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm_subtracts_the_mean_and_divides_by_the_standard_deviation(bias):
    norm, x = randomize(Norm(6, Config(norm="layer", norm_eps=0.02, norm_bias=bias))), tensor(3, 6) * 0.1 + 1
    for row, out in zip(x, norm(x)):
        mean = sum(v.item() for v in row) / 6
        std = math.sqrt(sum((v.item() - mean) ** 2 for v in row) / 6 + 0.02)
        expected = torch.stack([(v - mean) / std * w for v, w in zip(row, norm.weight)])
        close(out, expected + norm.bias if bias else expected, 1e-6)


def test_norm_statistics_of_bf16_are_taken_in_fp32():
    norm = Norm(4096, Config())
    x = tensor(1, 4096, dtype=torch.bfloat16)
    out = norm(x)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, norm(x.float()).bfloat16())


def literal_rope(x, position, dim, theta):
    """x (D): channels i and i + dim/2 are one complex number, multiplied by exp(i * position * theta^(-2i/dim))."""
    out = x.clone()
    for i in range(dim // 2):
        turned = complex(x[i], x[i + dim // 2]) * complex(math.e) ** (1j * position * theta ** (-2 * i / dim))
        out[i], out[i + dim // 2] = turned.real, turned.imag
    return out


@pytest.mark.parametrize("dim", [8, 4, 2])
@pytest.mark.parametrize("theta", [10000.0, 160000.0])
def test_rope_turns_each_pair_of_channels_by_its_angle(dim, theta):
    x, positions = tensor(2, 3, 5, 8), torch.tensor([[0, 1, 2, 3, 4], [9, 30, 7, 7, 100]])
    out = rotate(x, *rotary(positions, dim, theta))
    for b, h, t in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(5)).tolist():
        close(out[b, h, t], literal_rope(x[b, h, t], positions[b, t].item(), dim, theta))


def test_rope_leaves_the_channels_outside_its_fraction_alone():
    x = tensor(1, 2, 5, 8)
    out = rotate(x, *rotary(torch.arange(5)[None], 4, 100.0))
    assert torch.equal(out[..., 4:], x[..., 4:])
    assert not torch.allclose(out[:, :, 1:, :4], x[:, :, 1:, :4])


def test_rope_makes_query_key_products_depend_on_distance_alone():
    q, k = tensor(1, 1, 6, 8, seed=1), tensor(1, 1, 6, 8, seed=2)

    def products(positions):
        rope = rotary(positions[None], 8, 10000.0)
        return rotate(q, *rope) @ rotate(k, *rope).mT

    near, far = products(torch.arange(6)), products(torch.arange(6) + 500)
    close(near, far, 1e-4)
    assert not torch.allclose(near, products(torch.arange(6) * 2), atol=1e-2)


def test_shifting_all_positions_leaves_a_rope_network_unchanged():
    model, positions = network(rope_fraction=0.5), torch.arange(7).expand(2, 7)
    close(model(IDS, positions=positions), model(IDS, positions=positions + 20), 1e-4)
    assert not torch.allclose(model(IDS, positions=positions), model(IDS, positions=positions * 2), atol=1e-2)


def test_qk_norm_makes_attention_blind_to_the_scale_of_queries_and_keys():
    attention = randomize(Attention(Config(**TINY), 0))
    x, before = tensor(2, 5, 24), None
    for scale in (1, 50):
        attention.q.weight.mul_(scale)
        attention.k.weight.mul_(scale)
        after = attention(x, None, False, None, None, None)
        if before is not None:
            close(after, before, 1e-4)
        before = after
    plain = randomize(Attention(Config(**TINY, qk_norm=False), 0))
    before = plain(x, None, False, None, None, None)
    plain.q.weight.mul_(50)
    assert not torch.allclose(plain(x, None, False, None, None, None), before, atol=1e-2)


def test_gqa_equals_full_attention_with_each_key_value_head_repeated():
    few = network(n_kv_head=2)
    many = Transformer(dataclasses.replace(few.config, n_kv_head=4)).double().eval()
    weights = dict(few.named_parameters())
    with torch.no_grad():
        for name, p in many.named_parameters():
            w = weights[name]
            if name.endswith(("attn.k.weight", "attn.v.weight")):  # heads 0 0 1 1
                w = w.view(2, 8, 24).repeat_interleave(2, 0).reshape(32, 24)
            p.copy_(w)
    assert few.num_params() < many.num_params()
    close(few(IDS), many(IDS), 1e-9)


ACTIVATIONS = {
    "swiglu": lambda gate, up: gate / (1 + math.exp(-gate)) * up,
    "geglu": lambda gate, up: gate * 0.5 * (1 + math.erf(gate / math.sqrt(2))) * up,
    "gelu": lambda _, up: up * 0.5 * (1 + math.erf(up / math.sqrt(2))),
    "relu2": lambda _, up: max(up, 0) ** 2,
}


def literal_mlp(w, prefix, kind, x):
    """x (C), with the weights {name: tensor}, one hidden channel at a time."""

    def linear(name, v):
        y = torch.stack([(row * v).sum() for row in w[f"{prefix}{name}.weight"]])
        return y + w[f"{prefix}{name}.bias"] if f"{prefix}{name}.bias" in w else y

    up = linear("up", x)
    gate = linear("gate", x) if f"{prefix}gate.weight" in w else up
    hidden = [ACTIVATIONS[kind](g, u) for g, u in zip(gate.tolist(), up.tolist())]
    return linear("down", torch.tensor(hidden, dtype=torch.float64))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_mlp_is_its_formula(kind, bias):
    mlp, x = randomize(MLP(Config(n_embd=6, n_head=1, mlp=kind, mlp_dim=10, mlp_bias=bias))), tensor(4, 6)
    weights = dict(mlp.named_parameters())
    assert ("gate.weight" in weights) == (kind in ("swiglu", "geglu"))
    assert ("up.bias" in weights) == ("down.bias" in weights) == bias
    close(mlp(x), torch.stack([literal_mlp(weights, "", kind, row) for row in x]), 1e-9)


# ---- the whole network -----------------------------------------------------------------------------------------------


def literal(model, ids, real=None, positions=None):
    """Logits by the book: one batch row, head and query at a time; `real` (B, T) says which tokens may be seen."""
    c, w = model.config, dict(model.named_parameters())
    B, T = ids.shape
    positions = torch.arange(T).expand(B, T) if positions is None else positions

    def linear(name, x):
        return torch.einsum("tc,dc->td", x, w[f"{name}.weight"]) + w.get(f"{name}.bias", torch.zeros(()))

    def norm(name, x, kind=c.norm):
        x = x - x.mean(-1, keepdim=True) if kind == "layer" else x
        x = x / (x.pow(2).mean(-1, keepdim=True) + c.norm_eps).sqrt() * w[f"{name}.weight"]
        return x + w.get(f"{name}.bias", torch.zeros(()))

    def heads(name, x, n, p, theta):
        x = linear(name, x).view(T, n, c.head_dim).unbind(1)
        if c.qk_norm and not name.endswith(".v"):
            x = [norm(f"{name}_norm", h, "rms") for h in x]
        if c.position == "rope" and not name.endswith(".v"):
            dim = round(c.head_dim * c.rope_fraction)
            x = [torch.stack([literal_rope(h[t], p[t].item(), dim, theta) for t in range(T)]) for h in x]
        return x

    def attention(name, x, b, local):
        p, theta = positions[b], c.local_rope_theta if local and c.local_rope_theta else c.rope_theta
        q, k, v = (
            heads(f"{name}.{part}", x, n, p, theta)
            for part, n in (("q", c.n_head), ("k", c.n_kv_head), ("v", c.n_kv_head))
        )
        out = torch.zeros(T, c.n_head, c.head_dim, dtype=torch.float64)
        for h in range(c.n_head):
            g = h // (c.n_head // c.n_kv_head)
            for i in range(T):
                seen = [j for j in range(T) if (real is None or real[b, j]) and (not c.causal or p[j] <= p[i])]
                seen = [j for j in seen if not local or abs(p[i] - p[j]) <= c.window]
                if seen:
                    weight = torch.stack([(q[h][i] * k[g][j]).sum() / math.sqrt(c.head_dim) for j in seen]).exp()
                    out[i, h] = sum(a * v[g][j] for a, j in zip(weight / weight.sum(), seen))
        return linear(f"{name}.out", out.flatten(1))

    rows = []
    for b in range(B):
        x = w["embed.weight"][ids[b]]
        if c.position == "learned":
            x = x + w["pos_embed.weight"][positions[b]]
        for n in range(c.n_layer):
            local = c.window > 0 and (c.global_every == 0 or n % c.global_every != 0)
            x = x + attention(f"blocks.{n}.attn", norm(f"blocks.{n}.attn_norm", x), b, local)
            h = norm(f"blocks.{n}.mlp_norm", x)
            x = x + torch.stack([literal_mlp(w, f"blocks.{n}.mlp.", c.mlp, row) for row in h])
        x = norm("norm", x[[0, *range(T - 1)]] if c.shift else x)
        rows.append(x @ w["embed.weight" if c.tied else "head_weight"].T + w.get("head_bias", torch.zeros(())))
    return torch.stack(rows)


FAMILIES = {
    "default": dict(),
    "causal": dict(causal=True),
    "tied": dict(tied=True),
    "shift": dict(shift=True, tied=True),
    "head_bias": dict(head_bias=True),
    "large_eps": dict(norm_eps=0.3),
    "partial_rope": dict(rope_fraction=0.5, rope_theta=100.0),
    "no_positions": dict(position="none", qk_norm=False),
    "wide_heads": dict(head_dim=10, n_kv_head=1),
    "all_local": dict(window=2),
    "causal_window": dict(window=2, causal=True),
    "llama": dict(causal=True, qk_norm=False, n_kv_head=2, mlp="swiglu"),
    "qwen2": dict(causal=True, qk_norm=False, n_kv_head=2, mlp="swiglu", qkv_bias=True, tied=True, rope_theta=1e6),
    "modernbert": dict(
        window=2,
        global_every=3,
        rope_theta=1e3,
        local_rope_theta=50.0,
        norm="layer",
        mlp="geglu",
        qk_norm=False,
        n_layer=4,
    ),
    "gpt2": dict(
        causal=True,
        norm="layer",
        norm_bias=True,
        position="learned",
        qk_norm=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        mlp="gelu",
        tied=True,
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_network_equals_the_literal_one(family):
    model = network(**FAMILIES[family])
    close(model(IDS), literal(model, IDS))


@pytest.mark.parametrize("family", ["default", "causal", "causal_window", "modernbert", "gpt2"])
def test_padding_and_positions_equal_the_literal_ones(family):
    model = network(**FAMILIES[family])
    real = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0]]).bool()
    positions = torch.tensor([[0, 0, 0, 1, 2, 5, 6], [3, 4, 5, 9, 9, 9, 9]])
    close(model(IDS, mask=real, positions=positions)[real], literal(model, IDS, real, positions)[real])


@pytest.mark.parametrize("switch", ["causal", "shift", "tied", "head_bias", "qk_norm", "window", "rope_fraction"])
def test_every_switch_changes_the_logits(switch):
    off = network(seed=3)
    value = {"window": 1, "rope_fraction": 0.5}.get(switch, not getattr(off.config, switch))
    on = Transformer(dataclasses.replace(off.config, **{switch: value})).double().eval()
    on.load_state_dict(off.state_dict(), strict=False)
    if switch == "head_bias":
        torch.nn.init.ones_(on.head_bias)
    assert not torch.allclose(on(IDS), off(IDS), atol=1e-3)


def test_local_rope_theta_is_for_local_layers_only():
    window = dict(window=100, global_every=2, n_layer=1)
    close(network(**window)(IDS), network(**window, local_rope_theta=3.0)(IDS), 1e-9)  # layer 0 is global
    window["n_layer"] = 2
    assert not torch.allclose(network(**window)(IDS), network(**window, local_rope_theta=3.0)(IDS), atol=1e-3)


# ---- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["default", "causal", "all_local", "modernbert", "gpt2"])
def test_padding_on_the_right_changes_nothing_for_real_tokens(family):
    model = network(**FAMILIES[family])
    real = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0]]).bool()
    logits = model(IDS, mask=real)
    close(logits[0], model(IDS[:1])[0])
    close(logits[1, :3], model(IDS[1:, :3])[0])


@pytest.mark.parametrize("family", ["default", "causal", "all_local", "modernbert", "gpt2"])
def test_padding_on_the_left_changes_nothing_for_real_tokens_at_their_positions(family):
    model = network(**FAMILIES[family])
    real = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1]]).bool()
    logits = model(IDS, mask=real, positions=(real.cumsum(1) - 1).clamp(min=0))
    close(logits[0], model(IDS[:1])[0])
    close(logits[1, 4:], model(IDS[1:, 4:])[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_queries_that_see_nothing_give_no_nan_forward_or_backward(dtype):
    model = network(causal=True).to(dtype).requires_grad_(True)
    real = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0]]).bool()
    logits = model(IDS, mask=real)
    assert logits.isfinite().all()
    logits[real].float().logsumexp(-1).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_a_3d_mask_that_is_causal_equals_a_causal_network():
    triangle = torch.ones(7, 7).tril().bool()
    for mask in (triangle[None], triangle.expand(2, 7, 7)):
        close(network()(IDS, mask=mask), network(causal=True)(IDS), 1e-9)


def test_a_3d_mask_takes_the_place_of_the_networks_causality():
    everything = torch.ones(1, 7, 7).bool()
    close(network(causal=True)(IDS, mask=everything), network()(IDS), 1e-9)


def test_a_3d_mask_is_narrowed_by_the_window():
    near = (torch.arange(7)[:, None] - torch.arange(7)).abs() <= 2
    triangle = torch.ones(1, 7, 7).tril().bool()
    close(network(window=2)(IDS, mask=triangle), network()(IDS, mask=triangle & near), 1e-9)


def test_a_3d_mask_may_differ_between_rows():
    mask = torch.stack([torch.ones(7, 7).tril(), torch.ones(7, 7)]).bool()
    logits = network()(IDS, mask=mask)
    close(logits[0], network(causal=True)(IDS)[0], 1e-9)
    close(logits[1], network()(IDS)[1], 1e-9)


@pytest.mark.parametrize("head", range(4))
def test_a_4d_mask_may_differ_between_heads(head):
    model = network(n_layer=1)
    full, triangle = torch.ones(7, 7).bool(), torch.ones(7, 7).tril().bool()
    mixed = torch.stack([full, triangle, full, triangle])[None]
    out = model.blocks[0].attn.out.weight.unflatten(1, (4, 8))  # (C, H, D)
    out[:, [h for h in range(4) if h != head]] = 0  # only this head is heard
    close(model(IDS, mask=mixed), model(IDS, mask=mixed[:, head]), 1e-9)
    assert not torch.allclose(model(IDS, mask=mixed), model(IDS, mask=mixed[:, head - 1]), atol=1e-3)


@pytest.mark.parametrize("family", ["causal", "causal_window", "llama", "gpt2"])
@pytest.mark.parametrize("padded", [False, True])
def test_causal_never_looks_ahead(family, padded):
    model = network(**FAMILIES[family])
    mask = torch.ones_like(IDS).bool() if padded else None
    before = model(IDS, mask=mask)
    for t in range(6):
        changed = IDS.clone()
        changed[:, t + 1 :] = (changed[:, t + 1 :] + 1) % 13
        after = model(changed, mask=mask)
        assert torch.equal(after[:, : t + 1], before[:, : t + 1])
        assert not torch.allclose(after[:, t + 1 :], before[:, t + 1 :], atol=1e-3)


def test_causality_goes_by_the_given_positions():
    model = network(causal=True)
    order = torch.tensor([[3, 1, 0, 2, 6, 5, 4]]).expand(2, 7)
    shuffled = model(IDS, positions=order)
    close(shuffled, model(IDS, mask=torch.ones_like(IDS).bool(), positions=order))
    close(shuffled.gather(1, order.argsort(1)[..., None].expand_as(shuffled)), model(IDS.gather(1, order.argsort(1))))


def block_mask(T=7):
    from torch.nn.attention.flex_attention import create_block_mask

    blocks = torch.arange(T) // 3  # block-causal: whole blocks of the past, and one's own
    mask = create_block_mask(lambda b, h, q, k: q // 3 >= k // 3, None, None, T, T, device="cpu")
    return mask, (blocks[:, None] >= blocks)[None]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("switches", [dict(), dict(n_kv_head=2), dict(causal=True)])
def test_a_block_mask_equals_the_bool_mask(switches):
    model = network(**switches).float()
    mask, plain = block_mask()
    try:
        logits = model(IDS, mask=mask)
    except NotImplementedError as e:
        pytest.skip(f"FlexAttention does not run here: {e}")
    close(logits, model(IDS, mask=plain), 1e-4)
    assert not torch.allclose(logits, network().float()(IDS), atol=1e-2)


def test_a_block_mask_with_a_window_is_refused():
    with pytest.raises(ValueError, match="window"):
        network(window=2)(IDS, mask=block_mask()[0])


# ---- rows and shift --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("rows", ["some", "all", "none"])
def test_rows_are_those_rows_of_the_full_logits(shift, rows):
    model = network(shift=shift, head_bias=True)
    wanted = {"some": IDS % 3 == 0, "all": IDS >= 0, "none": IDS < 0}[rows]
    full = model(IDS)[wanted]
    assert full.shape == (wanted.sum(), 13)
    close(model(IDS, rows=wanted), full, 1e-9)
    close(model(IDS, rows=wanted.flatten().nonzero()[:, 0]), full, 1e-9)


def test_rows_as_indices_come_in_the_order_asked_for_and_may_repeat():
    model, index = network(), torch.tensor([13, 0, 5, 5])
    close(model(IDS, rows=index), model(IDS).flatten(0, 1)[index], 1e-9)


def test_with_shift_output_i_comes_from_hidden_state_i_minus_1():
    shifted, plain = network(shift=True)(IDS), network(shift=False)(IDS)
    close(shifted[:, 1:], plain[:, :-1], 1e-9)
    close(shifted[:, 0], plain[:, 0], 1e-9)  # token 0 has nothing before it
    assert not torch.allclose(shifted[:, 1:], plain[:, 1:], atol=1e-2)


# ---- the cache -------------------------------------------------------------------------------------------------------


def cache_for(model, batch=2, size=7):
    return KVCache(model.config, batch, size, dtype=torch.float64)


CAUSAL_FAMILIES = ["causal", "causal_window", "llama", "qwen2", "gpt2"]


@pytest.mark.parametrize("family", CAUSAL_FAMILIES)
@pytest.mark.parametrize("chunks", [[7], [1] * 7, [3, 1, 3], [2, 5]], ids=str)
def test_reading_through_the_cache_equals_reading_at_once(family, chunks):
    model = network(**FAMILIES[family])
    cache = cache_for(model)
    logits = [model(ids, cache=cache) for ids in IDS.split(chunks, 1)]
    close(torch.cat(logits, 1), model(IDS))


def test_a_cache_larger_than_the_text_changes_nothing():
    model = network(causal=True)
    cache = cache_for(model, size=20)
    close(torch.cat([model(ids, cache=cache) for ids in IDS.split(3, 1)], 1), model(IDS))


def test_a_token_beyond_the_cache_is_refused():
    model = network(causal=True)
    for size in (6, 5):
        with pytest.raises((IndexError, RuntimeError, ValueError)):
            model(IDS, cache=cache_for(model, size=size))


def test_overwriting_slots_of_one_layer_equals_recomputing_the_changed_text():
    model = network(n_layer=1)
    cache = cache_for(model)
    model(IDS, cache=cache)
    places = torch.tensor([[1, 4], [6, 0]])
    changed = IDS.scatter(1, places, (IDS.gather(1, places) + 5) % 13)
    logits = model(changed.gather(1, places), positions=places, cache=cache)
    close(logits, model(changed).gather(1, places[..., None].expand(2, 2, 13)))
    assert cache.filled.sum() == 14


def test_rewriting_all_slots_equals_a_fresh_cache():
    model = network()
    cache = cache_for(model)
    model(IDS.flip(1), cache=cache)
    close(model(IDS, positions=torch.arange(7).expand(2, 7), cache=cache), model(IDS))


def test_a_bidirectional_network_sees_all_filled_slots_and_no_others():
    model = network()
    cache = cache_for(model, size=12)
    first, second = model(IDS[:, :3], cache=cache), model(IDS[:, 3:], cache=cache)
    mask = torch.ones(1, 7, 7).bool()
    mask[:, :3, 3:] = False  # when the first chunk was read, the second was not there
    close(torch.cat([first, second], 1), model(IDS, mask=mask))


def test_slots_may_be_filled_with_gaps():
    model = network(causal=True)
    cache = cache_for(model, size=20)
    positions = torch.tensor([[2, 5, 6, 9, 11, 12, 17], [0, 1, 2, 3, 4, 5, 6]])
    a = model(IDS[:, :4], positions=positions[:, :4], cache=cache)
    b = model(IDS[:, 4:], positions=positions[:, 4:], cache=cache)
    close(torch.cat([a, b], 1), model(IDS, positions=positions))
    assert cache.next_positions(2).tolist() == [[18, 19], [7, 8]]


def test_next_positions_are_behind_each_rows_last_real_token():
    model = network(causal=True)
    cache = KVCache(model.config, 3, 9, dtype=torch.float64)
    assert cache.next_positions(2).tolist() == [[0, 1]] * 3
    ids, real = IDS[[0, 1, 0], :4], torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()
    model(ids, mask=real, cache=cache)
    assert cache.next_positions(3).tolist() == [[2, 3, 4], [4, 5, 6], [0, 1, 2]]


@pytest.mark.parametrize("family", [*CAUSAL_FAMILIES, "default", "all_local"])
def test_in_a_ragged_batch_with_a_cache_each_row_gets_what_it_gets_alone(family):
    model = network(**FAMILIES[family])
    lengths, new = [5, 2, 1], 3
    texts = [IDS.flatten()[i : i + n + new] for i, n in enumerate(lengths)]
    prompts = torch.zeros(3, 5, dtype=torch.long)
    for i, n in enumerate(lengths):
        prompts[i, :n] = texts[i][:n]
    real = torch.arange(5) < torch.tensor(lengths)[:, None]
    cache = cache_for(model, batch=3, size=8)
    together = [model(prompts, mask=real, cache=cache)]
    for j in range(new):  # every row appends its next token
        together.append(model(torch.stack([t[n + j] for t, n in zip(texts, lengths)])[:, None], cache=cache))
    for i, n in enumerate(lengths):
        alone = cache_for(model, batch=1, size=8)
        close(together[0][i, :n], model(texts[i][None, :n], cache=alone)[0])
        for j in range(new):
            close(together[1 + j][i], model(texts[i][None, n + j : n + j + 1], cache=alone)[0])


def test_tokens_of_a_finished_row_are_stored_nowhere():
    model = network(causal=True)
    cache = cache_for(model, size=9)
    model(IDS[:, :4], cache=cache)
    keys, values, filled = (t[..., :9, :].clone() for t in (cache.k, cache.v, cache.filled[..., None]))
    alive = torch.tensor([[True], [False]])
    logits = model(IDS[:, 4:5], mask=alive, cache=cache)
    assert torch.equal(cache.k[:, 1, :, :9], keys[:, 1]) and torch.equal(cache.v[:, 1, :, :9], values[:, 1])
    assert torch.equal(cache.filled[1, :9], filled[1, :, 0])
    assert cache.next_positions(1).tolist() == [[5], [4]]
    close(logits[0], model(IDS[:1, :5])[0, 4:])
    close(model(IDS[:, 4:5], cache=cache)[1], model(IDS[1:, :5])[0, 4:])  # the row can go on where it stopped


def test_a_finished_row_may_stand_at_the_end_of_the_cache():
    model = network(causal=True)
    cache = cache_for(model, size=5)
    model(IDS[:, :5], mask=torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]).bool(), cache=cache)
    logits = model(IDS[:, 4:5], mask=torch.tensor([[True], [False]]), cache=cache)
    close(logits[0], model(IDS[:1, :5])[0, 4:])


def test_rows_work_with_a_cache():
    model = network(causal=True)
    full = model(IDS)
    cache = cache_for(model)
    model(IDS[:, :4], cache=cache)
    last = torch.zeros(2, 3, dtype=torch.bool)
    last[:, -1] = True
    close(model(IDS[:, 4:], cache=cache, rows=last), full[:, -1])


def test_a_3d_mask_over_the_slots_chooses_what_is_seen():
    model = network()
    cache = cache_for(model, size=9)
    model(IDS[:, :4], cache=cache)
    seen = torch.ones(1, 3, 9).bool()  # the last two slots stay empty, so that choosing them means nothing
    seen[:, :, :2] = False
    masked = model(IDS[:, 4:], mask=seen, cache=cache)
    whole = torch.ones(1, 7, 7).bool()
    whole[:, :4, 4:] = False
    whole[:, 4:, :2] = False
    close(masked, model(IDS, mask=whole)[:, 4:])


# ---- compile, dropout, precision -------------------------------------------------------------------------------------

REAL = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0]]).bool()


@pytest.mark.parametrize(
    "arguments",
    [dict(), dict(mask=REAL), dict(rows=torch.tensor([1, 5, 8])), dict(mask=REAL, rows=torch.tensor([1, 5, 8]))],
    ids=lambda arguments: " and ".join(arguments) or "ids alone",
)
def test_the_network_compiles_to_one_graph(arguments):
    torch._dynamo.reset()
    model = network(window=2, global_every=2, n_kv_head=2, n_layer=2)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    close(compiled(IDS, **arguments), model(IDS, **arguments), 1e-9)


def test_the_compiled_network_trains():
    torch._dynamo.reset()
    grads = []
    for wrap in (lambda m: m, lambda m: torch.compile(m, fullgraph=True, backend="aot_eager")):
        model = network(n_layer=2).requires_grad_(True)
        wrap(model)(IDS, rows=torch.tensor([0, 3, 9])).logsumexp(-1).sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert grads[0].norm() > 0
    close(grads[0], grads[1], 1e-9)


def test_a_changing_number_of_rows_is_compiled_only_twice():
    torch._dynamo.reset()
    counter = CompileCounter()
    model = network(n_layer=1)
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for n in (3, 5, 8, 2, 11):
        compiled(IDS, rows=torch.arange(n))
    assert 1 <= counter.frame_count <= 2  # once for the first number, once for any


def test_dropout_acts_in_training_only():
    model = network(dropout=0.5)
    close(model(IDS), network()(IDS), 1e-9)
    model.train()
    assert not torch.allclose(model(IDS), model(IDS), atol=1e-2)


@pytest.mark.parametrize("place", ["embeddings", "attention weights", "attention branch", "mlp branch"])
def test_dropout_acts_on(place):
    model = network(n_layer=1, dropout=0.0).train()
    assert torch.equal(model(IDS), model(IDS))
    if place == "attention weights":
        model.config.dropout = 0.5
    else:
        (model.drop if place == "embeddings" else model.blocks[0].drop).p = 0.5
    if place == "attention branch":
        model.blocks[0].mlp.down.weight.zero_()
    if place == "mlp branch":
        model.blocks[0].attn.out.weight.zero_()
    assert not torch.allclose(model(IDS), model(IDS), atol=1e-3)


def test_bf16_autocast_is_close_to_fp32():
    model = network(causal=True).float()
    exact = model(IDS)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(IDS)
        cache = KVCache(model.config, 2, 7)
        cached = torch.cat([model(ids, cache=cache) for ids in IDS.split(3, 1)], 1)
    assert rough.dtype == torch.bfloat16
    for logits in (rough, cached):
        error = (logits.float() - exact).norm() / exact.norm()
        assert 0 < error < 0.03


def test_new_weights_have_gpt2s_scale():
    model = Transformer(Config(vocab_size=500, n_embd=120, n_head=4, n_layer=8, head_bias=True, mlp_bias=True))
    for name, p in model.named_parameters():
        if p.dim() == 2:
            std = 0.02 / math.sqrt(16) if name.endswith(("attn.out.weight", "mlp.down.weight")) else 0.02
            assert abs(p.std().item() / std - 1) < 0.05, name
        else:
            assert (p == (0 if name.endswith("bias") else 1)).all(), name


# ---- settings and counts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "switches, names",
    [
        (dict(n_embd=10, n_head=4), ["n_embd=10", "n_head=4"]),
        (dict(n_embd=24, n_head=4, n_kv_head=3), ["n_head=4", "n_kv_head=3"]),
        (dict(n_embd=24, n_head=2, n_kv_head=4), ["n_head=2", "n_kv_head=4"]),
        (dict(n_embd=12, n_head=4), ["3", "head_dim", "rope_fraction"]),
        (dict(n_embd=24, n_head=4, rope_fraction=0.5), ["3", "head_dim", "rope_fraction"]),
        (dict(n_embd=32, n_head=4, rope_fraction=1.5), ["rope_fraction"]),
        (dict(n_head=0), ["n_head"]),
    ],
    ids=str,
)
def test_impossible_shapes_are_refused_by_name(switches, names):
    with pytest.raises(ValueError) as error:
        Config(**switches)
    assert all(name in str(error.value) for name in names)


def test_a_rope_fraction_is_not_spoilt_by_rounding():
    assert Config(n_embd=100, n_head=1, rope_fraction=0.58).rope_dim == 58  # 100 * 0.58 is 57.99…


def test_a_network_without_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match="vocab_size"):
        Transformer(Config())


def test_zeros_in_the_settings_take_their_documented_values():
    c = Config(n_embd=96, n_head=6)
    assert (c.n_kv_head, c.head_dim, c.mlp_dim) == (6, 16, 384)
    assert Config(n_embd=96, n_head=6, mlp="swiglu").mlp_dim == 256
    assert Config(n_embd=100, n_head=5, mlp="geglu").mlp_dim == 288  # 266.7, up to a multiple of 32


def test_which_layers_are_local():
    assert [Config(window=8, global_every=3).is_local(n) for n in range(5)] == [False, True, True, False, True]
    assert all(Config(window=8).is_local(n) for n in range(5))
    assert not any(Config(window=0, global_every=3).is_local(n) for n in range(5))


COUNTED = dict(
    vocab_size=10, seq_len=16, n_layer=2, n_head=2, n_kv_head=1, n_embd=8, head_dim=4, mlp="relu2", mlp_dim=32
)


def test_num_params_equals_a_count_by_hand():
    attention = 8 * 8 + 8 * 4 + 8 * 4 + 8 * 8 + 4 + 4  # q, k, v, out, q_norm, k_norm
    layer = attention + 8 * 32 + 32 * 8 + 8 + 8  # up, down, two norms
    assert Transformer(Config(**COUNTED)).num_params() == 10 * 8 + 2 * layer + 8 + 10 * 8
    assert Transformer(Config(**COUNTED, tied=True)).num_params() == 10 * 8 + 2 * layer + 8
    learned = Config(**COUNTED, position="learned", head_bias=True, norm_bias=True, qk_norm=False)
    assert Transformer(learned).num_params() == 10 * 8 + 16 * 8 + 2 * (layer - 8 + 16) + 16 + 10 * 8 + 10


@pytest.mark.parametrize("tied", [False, True])
def test_flops_per_token_equal_a_count_by_hand(tied):
    forward = 2 * 2 * (8 * 8 + 8 * 4 + 8 * 4 + 8 * 8 + 8 * 32 + 32 * 8)  # 2 layers, multiply and add
    scores = 2 * 2 * (2 * 2 * 4 * 16)  # 2 layers, q·k and weights·v, 2 heads of 4 channels, 16 keys
    head = 2 * 8 * 10
    model = Transformer(Config(**COUNTED, tied=tied))
    assert model.flops_per_token(16) == 3 * (forward + scores + head)
    assert model.flops_per_token(16, head_rows=0.5) == 3 * (forward + scores + head / 2)
    causal = Transformer(Config(**COUNTED, tied=tied, causal=True))
    assert causal.flops_per_token(16) == 3 * (forward + scores / 2 + head)


# ---- parity with transformers ----------------------------------------------------------------------------------------

LLAMA_NAMES = {
    "embed.weight": "model.embed_tokens.weight",
    "head_weight": "lm_head.weight",
    "norm.weight": "model.norm.weight",
    "attn_norm.weight": "input_layernorm.weight",
    "mlp_norm.weight": "post_attention_layernorm.weight",
    "attn.q_norm.weight": "self_attn.q_norm.weight",
    "attn.k_norm.weight": "self_attn.k_norm.weight",
    "attn.q.weight": "self_attn.q_proj.weight",
    "attn.k.weight": "self_attn.k_proj.weight",
    "attn.v.weight": "self_attn.v_proj.weight",
    "attn.out.weight": "self_attn.o_proj.weight",
    "mlp.gate.weight": "mlp.gate_proj.weight",
    "mlp.up.weight": "mlp.up_proj.weight",
    "mlp.down.weight": "mlp.down_proj.weight",
}
SHAPE = dict(vocab_size=13, n_layer=3, n_head=4, n_embd=32)
HF_SHAPE = dict(vocab_size=13, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)


def hf(kind, **settings):
    """A tiny transformers model with large random weights, and its tensors."""
    transformers = pytest.importorskip("transformers", reason="parity with transformers needs transformers")
    config = getattr(transformers, kind + "Config")(**settings, attn_implementation="eager")
    model = randomize(getattr(transformers, {"GPT2": "GPT2LMHeadModel"}.get(kind, kind + "ForCausalLM"))(config))
    return model, model.state_dict()


def copy_llama(model, theirs):
    for name, p in model.named_parameters():
        _, layer, part = name.split(".", 2) if name.startswith("blocks.") else ("", "", name)
        p.data.copy_(theirs[f"model.layers.{layer}.{LLAMA_NAMES[part]}" if layer else LLAMA_NAMES[part]])


@pytest.mark.parametrize("kind", ["Llama", "Qwen3"])
def test_logits_equal_those_of_transformers(kind):
    rope = {"rope_type": "default", "rope_theta": 5000.0}
    shape = HF_SHAPE | dict(num_key_value_heads=2, head_dim=8, rms_norm_eps=1e-6, rope_parameters=rope)
    upstream, theirs = hf(kind, **shape, tie_word_embeddings=False)
    switches = dict(n_kv_head=2, head_dim=8, mlp="swiglu", mlp_dim=48, rope_theta=5000.0, norm_eps=1e-6)
    model = Transformer(Config(**SHAPE, **switches, qk_norm=kind == "Qwen3", causal=True)).double().eval()
    assert len(theirs) == len(list(model.parameters()))
    copy_llama(model, theirs)
    close(model(IDS), upstream(IDS).logits)
    close(model.float()(IDS), upstream.float()(IDS).logits, 1e-4)
    real = REAL.flip(1)  # transformers pads on the left
    positions = (real.cumsum(1) - 1).clamp(min=0)
    padded = upstream(IDS, attention_mask=real.long(), position_ids=positions).logits
    close(model(IDS, mask=real, positions=positions)[real], padded[real], 1e-4)


def test_logits_equal_those_of_gpt2():
    shape = dict(vocab_size=13, n_positions=16, n_embd=32, n_layer=3, n_head=4, activation_function="gelu")
    upstream, theirs = hf("GPT2", **shape)
    biases = dict(norm_bias=True, qkv_bias=True, out_bias=True, mlp_bias=True)
    switches = dict(norm="layer", position="learned", qk_norm=False, mlp="gelu", tied=True, causal=True, seq_len=16)
    model = Transformer(Config(**SHAPE, **switches, **biases)).double().eval()
    table = {
        "attn_norm": "ln_1",
        "mlp_norm": "ln_2",
        "attn.out": "attn.c_proj",
        "mlp.up": "mlp.c_fc",
        "mlp.down": "mlp.c_proj",
    }
    outside = {"embed.weight": "wte.weight", "pos_embed.weight": "wpe.weight", "norm.weight": "ln_f.weight"}
    outside["norm.bias"] = "ln_f.bias"
    for name, p in model.named_parameters():
        if name in outside:
            p.data.copy_(theirs[f"transformer.{outside[name]}"])
            continue
        _, layer, part = name.split(".", 2)
        part, end = part.rsplit(".", 1)
        fused = part in ("attn.q", "attn.k", "attn.v")
        w = theirs[f"transformer.h.{layer}.{'attn.c_attn' if fused else table[part]}.{end}"]
        w = w.T if w.dim() == 2 else w  # Conv1D keeps its weights as (in, out)
        p.data.copy_(w.chunk(3)["qkv".index(part[-1])] if fused else w)
    close(model(IDS), upstream(IDS).logits)
    close(model.float()(IDS), upstream.float()(IDS).logits, 1e-4)
