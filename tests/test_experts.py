"""Mixtures of experts: the sum written down, who is chosen, what keeps them busy, and the published code's logits.

golden/experts.json holds the logits of two tiny networks, of 2026-11-29 (torch 2.13, transformers 5.17, CPU, fp32):
LLaDA-MoE's modelling code, as github.com/ZHZisZZ/dllm (ca17675) ships it, on a ragged batch; LLaDA 2.1's (the same
repository; 2.0's differs in imports alone), under a mask by blocks of 4. Weights are functions of their names, as in
test_published.py. For both, and Qwen3, test_families.py compares with the classes of `transformers`, too.
"""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_published import weight
from test_train import assert_same, run, text_data, two_processes  # noqa: F401

from model import MLP, Config, Transformer
from nanodlm import checkpoint as ckpt
from nanodlm import experts, families, lora, memory, optim
from nanodlm.experts import Experts

GOLDEN = json.loads((Path(__file__).parent / "golden" / "experts.json").read_text())
SMALL = dict(vocab_size=40, n_layer=2, n_head=2, n_embd=16, seq_len=16, expert_dim=8)
GROUPS = {2: (), 4: (2, 1), 6: (3, 2), 8: (4, 2)}


def layer(dtype=torch.float64, seed=0, **settings):
    """The experts of a layer, with opinions."""
    c = Config(**SMALL | dict(experts=6) | settings)
    torch.manual_seed(seed)
    mixture = Experts(c, MLP).to(dtype)
    with torch.no_grad():
        for p in mixture.parameters():
            p.copy_(torch.randn_like(p))
    return mixture


def by_hand(m, x):
    """Experts' forward, a token after the other, from the formulas of DeepSeek-V3 (arXiv 2412.19437, eq. 12-16)."""
    c, out = m.config, []
    for u in x:
        z = m.router @ u
        s = z.softmax(0) if c.router == "softmax" else z.sigmoid()
        wish = (s if m.router_bias is None else s + m.router_bias).tolist()
        allowed = range(c.experts)
        if c.router_groups:
            groups, kept = c.router_groups
            size = c.experts // groups
            value = [sum(sorted(wish[g * size : (g + 1) * size])[-2:]) for g in range(groups)]
            best = sorted(range(groups), key=lambda g: -value[g])[:kept]
            allowed = [e for e in allowed if e // size in best]
        chosen = sorted(allowed, key=lambda e: -wish[e])[: c.experts_per_token]  # stable: the first of equals
        total = sum(s[e] for e in chosen) if c.router_norm and len(chosen) > 1 else 1.0
        y = sum(
            c.router_scale
            * s[e]
            / total
            * (m.down[e] @ MLP.act(c.mlp, m.up[e] @ u, m.gate[e] @ u if gated(c) else None))
            for e in chosen
        )
        out.append(y if m.shared is None else y + m.shared(u))
    return torch.stack(out)


def gated(c):
    return c.mlp in ("swiglu", "geglu")


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_mixture_is_the_sum_of_its_chosen_experts(data):
    number = data.draw(st.sampled_from([2, 4, 6, 8]))
    groups = data.draw(st.sampled_from([(), GROUPS[number]]))
    most = groups[1] * number // groups[0] if groups else number
    drawn = dict(experts=number, router_groups=groups, experts_per_token=data.draw(st.integers(1, most)))
    drawn |= {k: data.draw(st.booleans()) for k in ("router_norm", "router_bias")}
    drawn |= {"router": data.draw(st.sampled_from(["softmax", "sigmoid"])), "shared_dim": data.draw(st.integers(0, 5))}
    drawn |= {"router_scale": 2.5, "mlp": data.draw(st.sampled_from(["swiglu", "geglu", "gelu", "relu2"]))}
    m, x = layer(seed=data.draw(st.integers(0, 99)), **drawn), torch.randn(9, 16, dtype=torch.float64)
    torch.testing.assert_close(m(x), by_hand(m, x), rtol=1e-10, atol=1e-10)
    m.at_once = 4
    with torch.no_grad():
        torch.testing.assert_close(m(x), by_hand(m, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype, off", [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_the_grouped_product_is_one_expert_after_the_other_with_its_gradient(dtype, off):
    torch.manual_seed(0)
    ends = torch.tensor([0, 3, 3, 20], dtype=torch.int32)  # two of them have no tokens
    x, w = torch.randn(20, 16), torch.randn(4, 8, 16)
    found = []
    for product in (experts.products, experts.plain_products):
        given = [t.to(dtype).requires_grad_() for t in (x, w)]
        y = product(*given, ends)
        found.append([y, *torch.autograd.grad(y.square().sum(), given)])
    for a, b in zip(*found):
        assert a.dtype == dtype and (a - b).abs().max() <= off * b.abs().max()


def test_of_experts_that_tie_the_first_are_chosen_and_a_row_is_what_it_is_alone():
    m = layer(experts=6, experts_per_token=2, router="sigmoid", router_bias=True, router_groups=(3, 2))
    with torch.no_grad():
        m.router.zero_(), m.router_bias.zero_()
    assert m.choose(torch.randn(5, 16, dtype=torch.float64))[0].tolist() == [[0, 1]] * 5
    c = Config(**SMALL, experts=6, mlp="swiglu")
    torch.manual_seed(1)
    net, ids = Transformer(c).eval(), torch.randint(40, (3, 16))
    together = net(ids)
    for i in range(3):
        torch.testing.assert_close(net(ids[i : i + 1]), together[i : i + 1])


# ---- in training -----------------------------------------------------------------------------------------------------


def test_a_bias_grows_by_a_step_where_its_expert_has_less_than_its_share():
    """arXiv 2408.15664, algorithm 1: b_e + u sign(mean load - load_e); through the optimiser, over micro-batches."""
    m = layer(torch.float32, experts=4, experts_per_token=1, router="sigmoid", router_bias=True)
    net = Transformer(replace(m.config, n_layer=1)).train()
    net.blocks[0].mlp = m.train()
    s = SimpleNamespace(optimizer="muon", learning_rate=1e-3, muon_learning_rate=1e-2, beta1=0.9, beta2=0.95)
    s.weight_decay, s.balance, s.gradient_accumulation_steps = 0.1, 0.01, 2
    optimizers, before = optim.make(net, s, "cpu"), m.router_bias.detach().clone()
    other = {n: p.detach().clone() for n, p in net.named_parameters()}
    for seed in (1, 2):
        torch.manual_seed(seed)
        net(torch.randint(40, (2, 16))).square().mean().backward()
    load = m.load.clone()
    assert load.sum() == 64 and load.max() > 16
    for optimizer in optimizers:
        optimizer.step()
    step = 0.01 * torch.sign(16 - load)
    torch.testing.assert_close(m.router_bias.detach() - before, step)
    moved = {n: float((p.detach() - other[n]).abs().max()) for n, p in net.named_parameters()}
    assert all(v > 0 for v in moved.values()), moved
    muon = {id(p) for group in optimizers[1].param_groups for p in group["params"]}
    assert {id(m.up), id(m.down)} <= muon and not {id(m.router), id(m.router_bias)} & muon
    assert optim.loads(net) == {"busiest": float(load.max()) / 16} and optim.loads(net) == {}


def test_without_a_bias_an_auxiliary_loss_comes_into_the_gradient_and_into_nothing_else():
    """arXiv 2101.03961, eq. 4-6, for K experts per token, as in LLaDA-MoE's code for one layer."""
    m, x = layer(experts=6, experts_per_token=2).train(), torch.randn(30, 16, dtype=torch.float64)
    m.balance = 0.3
    y = m(x)
    (found,) = torch.autograd.grad(y.sum(), [m.router])
    p = F.linear(x, m.router).softmax(-1)
    chosen = F.one_hot(p.topk(2).indices, 6).double()  # (N, K, E)
    loss = 6 * (chosen.mean(0) * p.mean(0)).sum()
    m.balance = 0.0
    plain = m(x)
    wanted = torch.autograd.grad(plain.sum() + 0.3 * loss, [m.router], retain_graph=True)[0]
    torch.testing.assert_close(y, plain)
    torch.testing.assert_close(found, wanted)
    m.eval().balance = 0.3
    torch.testing.assert_close(
        torch.autograd.grad(m(x).sum(), [m.router]), torch.autograd.grad(plain.sum(), [m.router])
    )


MIXTURE = ["--experts=4", "--expert_dim=16", "--dense_layers=1", "--n_layer=2", "--shared_dim=8"]
BIASED = [*MIXTURE, "--router=sigmoid", "--router_norm=true", "--router_bias=true", "--balance=0.01"]


def test_a_mixture_in_parts_on_two_processes_takes_the_steps_of_one_process(text_data, tmp_path):  # noqa: F811
    one = run(text_data, tmp_path / "one", "--batch_size=16", *BIASED)
    two_processes(text_data, tmp_path / "two", "--sharding=fsdp", *BIASED)
    assert_same(one, ckpt.load_train_state(tmp_path / "two/last"), 2e-6)
    bias = one["weights"]["blocks.1.mlp.router_bias"]
    assert bias.abs().max() > 0 and "busiest" in (tmp_path / "one/metrics.jsonl").read_text()


def test_cut_up_into_micro_batches_a_run_is_the_same(text_data, tmp_path):  # noqa: F811
    """With a bias, whose step is the sign of a whole batch's excess."""
    large = run(text_data, tmp_path / "a", "--batch_size=16", *BIASED)
    small = run(text_data, tmp_path / "b", "--batch_size=4", "--gradient_accumulation_steps=4", *BIASED)
    assert_same(large, small, 2e-6)


def test_adapters_stand_beside_experts_where_that_is_asked_for(text_data, tmp_path):  # noqa: F811
    run(text_data, tmp_path / "base", *MIXTURE)
    tuned = [*MIXTURE, f"--init_from={tmp_path}/base", "--lora_r=2", "--learning_rate=0.05"]
    for at in ("all", "experts"):
        run(text_data, tmp_path / at, *tuned, f"--lora_at={at}")
        found = ckpt.load(tmp_path / at, whole=True)
        names = {n for n, _ in found.model.named_parameters() if lora.is_adapter(n)}
        assert any(".mlp.base_layer." in n for n in names) == (at == "experts") and any(".attn.q." in n for n in names)
        assert any(".shared.up." in n for n in names)
        ids = torch.arange(12)[None]
        apart = found.model(ids)
        assert (apart - ckpt.load(tmp_path / "base").model(ids)).abs().max() > 1e-4
        torch.testing.assert_close(lora.merge(found.model)(ids), apart)
        assert not any(lora.is_adapter(n) for n, _ in found.model.named_parameters())
    for word, says in (
        ("balance=0.1", "balance is of a mixture's experts"),
        ("two_way=true", "two_way is of a shifted"),
    ):
        with pytest.raises(SystemExit, match=says):
            run(text_data, tmp_path / "none", f"--{word}")
    for words, says in (
        (
            ["--lora_at=experts", "--lora_dropout=0.1"],
            "lora_at=experts knows no dropout, and lora_dropout=0.1; set it to 0",
        ),
        (["--lora_at=masks"], "lora_at=masks does not know mixtures of experts; use lora_at=all, or experts"),
    ):
        with pytest.raises(SystemExit, match=says):
            run(text_data, tmp_path / "none", *tuned, *words)
    with pytest.raises(SystemExit, match="dtype=int8 does not know mixtures of experts"):
        ckpt.load(tmp_path / "base", dtype=torch.int8)


@pytest.mark.parametrize(
    "wrong, says",
    [
        (dict(experts=2, experts_per_token=3), "experts_per_token=3 is more than the experts=2 of a layer"),
        (dict(experts=6, router_groups=(4, 2)), r"router_groups=\(4, 2\) does not fit experts=6"),
        (dict(experts=6, router_groups=(2,)), r"router_groups=\(2,\) must be \(groups, those that"),
        (dict(experts=8, router_groups=(4, 1), experts_per_token=3), "does not fit experts=8, experts_per_token=3"),
        (dict(experts=4, mlp_bias=True), "experts have no biases: set mlp_bias=false"),
        (dict(router="hash"), "router='hash' does not fit"),
        (dict(router_bias=True), "router_bias=True is of a mixture: set experts, or leave it out"),
        (dict(shared_dim=4), "shared_dim=4 is of a mixture"),
    ],
)
def test_what_cannot_be_routed_is_said(wrong, says):
    with pytest.raises(ValueError, match=says):
        Config(**SMALL | wrong)


def test_parameters_are_counted_without_building_them():
    for more in (MIXTURE, BIASED):
        words = {k.strip("-"): {"true": True}.get(v, v) for k, v in (w.split("=") for w in more if "balance" not in w)}
        c = Config(**SMALL | {k: int(v) if str(v).isdigit() else v for k, v in words.items()})
        assert memory.parameters(c) == Transformer(c).num_params()


# ---- the published networks ------------------------------------------------------------------------------------------


def network(which):
    """Our network with the weights that the published one had."""
    golden = GOLDEN[which]
    family = families.FAMILIES[golden["config"]["architectures"][0]]
    model = Transformer(Config(**family.config(golden["config"]))).eval()
    own = families.by_expert(dict(model.named_parameters()))
    with torch.no_grad():
        for theirs, ours in families.their_names(family, own, model.config.n_layer).items():
            shapes = [own[n].shape for n in ours]
            w = weight(theirs, (sum(s[0] for s in shapes), *shapes[0][1:])).float()
            if theirs == "lm_head.weight":
                w[63] = 0
                w *= 2
            for name, part in zip(ours, w.split([s[0] for s in shapes])):
                own[name].copy_(part)
    return model


@pytest.mark.parametrize("which", GOLDEN)
def test_the_logits_are_the_published_codes(which):
    golden, model = GOLDEN[which], network(which)
    ids, real = torch.tensor(golden["ids"]), torch.tensor(golden["real"]).bool()
    position = (real.cumsum(1) - 1).clamp(min=0)
    mask = real
    if which == "llada2":
        block = position // 4
        mask = (block[:, :, None] >= block[:, None]) & real[:, None] | torch.eye(len(ids[0]), dtype=torch.bool)
    found = model(
        ids, mask=mask, positions=position.where(real, torch.tensor(-1)) if which == "llada_moe" else position
    )
    assert (found[real] - torch.tensor(golden["logits"])).abs().max() < 5e-5  # they are about 13, and rounded to 1e-5


@pytest.mark.parametrize("which", GOLDEN)
def test_what_is_saved_has_the_names_and_shapes_and_the_config_that_published_code_reads(which, tmp_path):
    """As other engines' loaders want them (docs/decoding.md): golden "tensors" are the published class's own."""
    config, model = GOLDEN[which]["config"], network(which)
    facts = {"architecture": config["architectures"][0], "hf_config": config}
    content = ckpt.save_released(tmp_path, dict(model.named_parameters()), model.config, "bd3lm", facts)
    assert content.pop("nanodlm") and content == config
    found = {}
    for name, tensor in safetensors.torch.load_file(tmp_path / "model.safetensors").items():
        template = re.sub(r"\.\d+(?=\.)", ".{}", name)
        found.setdefault(template, [list(tensor.shape), 0])[1] += 1
    assert found == GOLDEN[which]["tensors"]
