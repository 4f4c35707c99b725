"""The network, held against formulas written out by hand, beside model.py: every part, every switch, every mask.

Papers: RMSNorm arXiv 1910.07467, RoPE 2104.09864, GQA 2305.13245, gated MLPs 2002.05202.
"""

import math

import pytest
import torch

from model import MLP, Attention, Config, KVCache, Norm, Transformer, rotary, rotate
from nanodlm import device
from nanodlm.attention import Tiles

TINY = dict(vocab_size=13, seq_len=32, n_layer=3, n_head=4, n_embd=24, head_dim=8, mlp_dim=20)
IDS = torch.randint(13, (2, 7), generator=torch.Generator().manual_seed(1))
REAL = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0]]).bool()


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


@pytest.mark.parametrize("kind, bias", [("rms", False), ("layer", True), ("layer", False)])
def test_norms_are_their_formulas(kind, bias):
    """RMSNorm divides by the root mean square; LayerNorm by the standard deviation, around the mean."""
    norm, x = randomize(Norm(6, Config(norm=kind, norm_eps=0.02, norm_bias=bias))), tensor(3, 6) * 0.1 + 1
    for row, out in zip(x, norm(x)):
        mean = sum(v.item() for v in row) / 6 if kind == "layer" else 0.0
        size = math.sqrt(sum((v.item() - mean) ** 2 for v in row) / 6 + 0.02)
        expected = torch.stack([(v - mean) / size * w for v, w in zip(row, norm.weight)])
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
    """RoPE section 3.4; the channels outside its fraction are left alone."""
    x, positions = tensor(2, 3, 5, 8), torch.tensor([[0, 1, 2, 3, 4], [9, 30, 7, 7, 100]])
    out = rotate(x, *rotary(positions, dim, theta))
    assert torch.equal(out[..., dim:], x[..., dim:])
    for b, h, t in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(5)).tolist():
        close(out[b, h, t], literal_rope(x[b, h, t], positions[b, t].item(), dim, theta))


def test_rope_makes_attention_depend_on_distance_alone():
    """Query-key products, and so a network's logits, do not change with a shift of all positions."""
    q, k = tensor(1, 1, 6, 8, seed=1), tensor(1, 1, 6, 8, seed=2)

    def products(positions):
        rope = rotary(positions[None], 8, 10000.0)
        return rotate(q, *rope) @ rotate(k, *rope).mT

    model, at = network(rope_fraction=0.5), torch.arange(7).expand(2, 7)
    for f, x in ((products, torch.arange(6)), (lambda p: model(IDS, positions=p), at)):
        close(f(x), f(x + 20), 1e-4)
        assert not torch.allclose(f(x), f(x * 2), atol=1e-2)


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


MODERN = dict(window=2, global_every=3, rope_theta=1e3, local_rope_theta=50.0, norm="layer", mlp="geglu", n_layer=4)
BIASED = dict(norm="layer", norm_bias=True, qkv_bias=True, out_bias=True, mlp_bias=True, mlp="gelu", tied=True)
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
    "modernbert": dict(qk_norm=False, **MODERN),
    "gpt2": dict(causal=True, position="learned", qk_norm=False, **BIASED),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_network_equals_the_literal_one(family):
    model = network(**FAMILIES[family])
    close(model(IDS), literal(model, IDS))


@pytest.mark.parametrize("family", ["default", "causal", "causal_window", "all_local", "modernbert", "gpt2"])
def test_padding_and_positions_equal_the_literal_ones(family):
    """Padding on either side, positions with gaps; and on the right, where positions are not given."""
    model, at = network(**FAMILIES[family]), torch.tensor([[0, 0, 0, 1, 2, 5, 6], [3, 4, 5, 9, 9, 9, 9]])
    real = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0]]).bool()
    close(model(IDS, mask=real, positions=at)[real], literal(model, IDS, real, at)[real])
    close(model(IDS, mask=REAL)[REAL], literal(model, IDS, REAL)[REAL])


# ---- who sees whom ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_queries_that_see_nothing_give_no_nan_forward_or_backward(dtype):
    model = network(causal=True).to(dtype).requires_grad_(True)
    real = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0]]).bool()
    logits = model(IDS, mask=real)
    assert logits.isfinite().all()
    logits[real].float().logsumexp(-1).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_a_3d_mask_takes_the_place_of_the_networks_causality_and_is_narrowed_by_the_window():
    """For all rows, or each its own; one in tiles cannot be narrowed."""
    triangle, full = torch.ones(7, 7).tril().bool(), torch.ones(7, 7).bool()
    near = (torch.arange(7)[:, None] - torch.arange(7)).abs() <= 2
    causal, plain = network(causal=True)(IDS), network()(IDS)
    for mask in (triangle[None], triangle.expand(2, 7, 7)):
        close(network()(IDS, mask=mask), causal, 1e-9)
    close(network(causal=True)(IDS, mask=full[None]), plain, 1e-9)
    close(network(window=2)(IDS, mask=triangle[None]), network()(IDS, mask=triangle[None] & near), 1e-9)
    with pytest.raises(ValueError, match="window"):
        network(window=2)(IDS, mask=Tiles(triangle, 3))
    mixed = network()(IDS, mask=torch.stack([triangle, full]))
    close(mixed[0], causal[0], 1e-9)
    close(mixed[1], plain[1], 1e-9)


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


# ---- rows and shift --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [False, True])
def test_rows_are_those_rows_of_the_full_logits(shift):
    """As bool, or as indices in any order, which may repeat. With a shift (Dream), output i comes from state i - 1."""
    model, full = network(shift=shift, head_bias=True), network(shift=shift, head_bias=True)(IDS)
    for wanted in (IDS % 3 == 0, IDS >= 0, IDS < 0):
        close(model(IDS, rows=wanted), full[wanted], 1e-9)
    for index in (torch.tensor([13, 0, 5, 5]), torch.arange(14)[:0]):
        close(model(IDS, rows=index), full.flatten(0, 1)[index], 1e-9)
    plain = network(head_bias=True)(IDS)
    close(full, torch.cat([plain[:, :1], plain[:, :-1]], 1) if shift else plain, 1e-9)  # 0 has nothing before it
    assert not shift or not torch.allclose(full[:, 1:], plain[:, 1:], atol=1e-2)


# ---- dropout, precision, initialisation ------------------------------------------------------------------------------


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


def test_zeros_in_the_settings_take_their_documented_values():
    c = Config(n_embd=96, n_head=6)
    assert (c.n_kv_head, c.head_dim, c.mlp_dim) == (6, 16, 384)
    assert Config(n_embd=96, n_head=6, mlp="swiglu").mlp_dim == 256
    assert Config(n_embd=100, n_head=5, mlp="geglu").mlp_dim == 288  # 266.7, up to a multiple of 32
    assert Config(n_embd=100, n_head=1, rope_fraction=0.58).rope_dim == 58  # 100 * 0.58 is 57.99…
    for window, every, local in ((8, 3, [0, 1, 1, 0, 1]), (8, 0, [1] * 5), (0, 3, [0] * 5)):
        assert [Config(window=window, global_every=every).is_local(n) for n in range(5)] == local
    with pytest.raises(ValueError, match="vocab_size"):
        Transformer(Config())


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
    assert device.flops_per_token(model, 16) == 3 * (forward + scores + head)
    assert device.flops_per_token(model, 16, head_rows=0.5) == 3 * (forward + scores + head / 2)
    causal = Transformer(Config(**COUNTED, tied=tied, causal=True))
    assert device.flops_per_token(causal, 16) == 3 * (forward + scores / 2 + head)
