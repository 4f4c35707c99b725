"""experiments/speedrun: what is counted is what is computed, no lever tells a token its answer, and the tables say what
the records do."""

import json
from dataclasses import replace

import pytest
import torch
from test_train import text_data  # noqa: F401
from torch.utils.flop_counter import FlopCounterMode

import ar
import bd3lm
import mdlm
from experiments.speedrun import hiding, run
from experiments.speedrun.network import Levers, Network, muon_flops
from model import Config, Transformer
from nanodlm import algorithms
from nanodlm.files import ROOT

SMALL = Config(vocab_size=50, seq_len=64, n_layer=3, n_head=2, n_embd=16)
ALL = Levers(2, 3, 97, 2, True, True, True, 15.0, False, 8)
BLOCKS = dict(mdlm={}, bd3lm=dict(block_size=4), ar=dict(causal=True))


def network(name, levers=ALL, **keys):
    """With every parameter random: what begins as zeros would say nothing."""
    torch.manual_seed(0)
    model = Network(replace(SMALL, **BLOCKS[name], **keys), levers)
    for p in model.parameters():
        p.data.add_(torch.randn_like(p) * 0.1)
    return model.eval()


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("levers", [Levers(), ALL])
def test_the_flops_that_are_counted_are_those_of_the_real_step(name, levers):
    algorithm, model = dict(mdlm=mdlm, bd3lm=bd3lm, ar=ar)[name], network(name, levers).train()
    options = bd3lm.LossOptions(block_size=4) if name == "bd3lm" else algorithm.LossOptions()
    x0, said = torch.randint(48, (2, 32)), []
    keys = dict(with_kwargs=True)
    model.register_forward_pre_hook(lambda m, a, k: said.append(run.spent_by(m, *a, k["mask"], k["rows"])), **keys)
    values = dict(n_embd=(16, ""), n_head=(2, ""))
    _, muon = run.optimisers(model, run.settings(values)[0])
    with FlopCounterMode(display=False) as counter:
        with torch.autocast("cpu", torch.bfloat16):  # in which attention is two products, which the counter knows
            value = algorithm.loss(model, x0, options, mask_id=49)
        value.backward()
        muon.step()
    flops = sum(said) + muon_flops(model)
    if name == "ar":  # causal attention is one call that it does not know: two products forward, four backward
        flops -= 3 * 2 * 3 * 2 * 2 * 32 * 32 * 16
    assert counter.get_total_flops() == flops


@pytest.mark.parametrize("keys", [*BLOCKS.values(), dict(shift=True)], ids=str)
def test_without_levers_it_is_the_same_network(keys):
    torch.manual_seed(0)
    plain = Transformer(replace(SMALL, **keys)).eval()
    torch.manual_seed(0)
    model = Network(replace(SMALL, **keys), Levers()).eval()
    ids, rows = torch.randint(50, (2, 16)), torch.tensor([1, 7, 30])
    assert plain.state_dict().keys() == model.state_dict().keys()
    for keys in ({}, dict(rows=rows), dict(rows=rows, targets=ids[0, :3], excluded=49)):
        assert torch.equal(plain(ids, **keys), model(ids, **keys))
    real = torch.arange(16) < torch.tensor([[16], [9]])
    assert torch.equal(plain(ids, mask=real)[real], model(ids, mask=real)[real])


def moved(model, call, ids, other):
    """Which outputs (B, T, …) change when ids become `other`."""
    return (call(model, ids) - call(model, other)).abs().amax(-1) > 0


def test_no_lever_tells_of_what_attention_may_not_see():
    """mdlm's pads and ar's future; all that may be seen is."""
    torch.manual_seed(0)
    ids, i = torch.randint(48, (12, 12)), torch.arange(12)
    one = ids[:1].repeat(12, 1)
    other = torch.where(torch.eye(12).bool(), (one + 1) % 48, one)  # row j: token j is another
    assert moved(network("mdlm"), lambda m, x: m(x), one, other).all()
    assert torch.equal(moved(network("ar"), lambda m, x: m(x), one, other), i >= i[:, None])
    begun = network("mdlm")  # a run that starts with autoregression, on the network that mdlm will have
    begun.config.causal = True
    assert torch.equal(moved(begun, lambda m, x: m(x), one, other), i >= i[:, None])
    real = (i < 9).expand(12, -1)
    seen = moved(network("mdlm"), lambda m, x: m(x, mask=real), one, other)
    assert seen[:9, :9].all() and not seen[9:, :9].any()


def test_no_lever_tells_a_block_of_its_answer_or_of_what_comes_after_it():
    """Rows of one text: token j is another in the clean half. A noised block's predictions change where that lies in an
    earlier block, and there alone; and where it is another in the noised half, those of its own block alone."""
    L, size, model = 14, 4, network("bd3lm")  # the last block is shorter
    torch.manual_seed(1)
    x0, i = torch.randint(48, (1, L)).repeat(L, 1), torch.arange(L)
    xt, change = torch.where(torch.rand(L) < 0.5, 49, x0), torch.eye(L).bool()
    rows, everywhere = torch.arange(L * L), (x0 + 1) % 48

    def call(model, pair):
        return bd3lm.predict(model, *pair, rows, size, 49)[..., :49].view(L, L, 49)

    clean = moved(model, call, (xt, x0), (xt, torch.where(change, everywhere, x0)))
    assert torch.equal(clean, i // size > i[:, None] // size)
    noised = moved(model, call, (xt, x0), (torch.where(change, everywhere, xt), x0))
    assert torch.equal(noised, i // size == i[:, None] // size)
    # What a sampler sees, the text up to a block, is what both halves said.
    for block in range(-(-L // size)):
        text = torch.where(i // size < block, x0, xt)[:, : (block + 1) * size]
        n = text.shape[1]
        mask = (i[:n, None] // size >= i[:n] // size)[None]
        mine = i[:n] // size == block
        alone = model(text, mask=mask)[:, mine, :49]
        torch.testing.assert_close(alone, call(model, (xt, x0))[:, :n][:, mine], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name, shift", [("mdlm", False), ("mdlm", True), ("bd3lm", False), ("ar", False)])
def test_with_all_levers_the_probabilities_of_all_texts_sum_to_1(name, shift):
    """Of six letters of three kinds, in blocks of four: what is reported is a likelihood, of what can be sampled."""
    model = network(name, vocab_size=4, shift=shift)
    texts, engine = torch.cartesian_prod(*[torch.arange(3)] * 6), algorithms.engine(algorithms.load(name))
    options = [] if name == "ar" else [engine.LikelihoodOptions(method="confidence")]
    found = engine.log_likelihood(model, [torch.zeros(0).long()] * len(texts), texts, *options, mask_id=3)
    torch.testing.assert_close(found.exp().sum(), torch.ones(()).double(), atol=1e-5, rtol=0)


def test_times_that_are_learnt_leave_the_bound_what_it_is():
    """The mean over many steps is the bound itself, of all masks of five tokens, whatever the density; and the density
    becomes what its formula says: where a row's bound is larger, there are more rows."""
    model, x0 = network("mdlm", vocab_size=8), torch.tensor([[1, 2, 3, 1, 0]]).repeat(500, 1)
    masks = torch.cartesian_prod(*[torch.tensor([False, True])] * 5)[1:]
    xs, k = x0[:1].expand(31, -1), masks.sum(1)
    nll = mdlm.hidden_nll(model, torch.where(masks, 7, xs), xs, masks, 7)
    each = torch.zeros(31, 5).masked_scatter(masks, nll.float()).double().sum(1) / k  # a row's bound per token
    exact = sum(each[k == n].mean() for n in range(1, 6)) / 5
    memory = dict(square=torch.tensor([9.0, 1, 1, 4, 1, 1, 1, 0, 1, 25]).double())
    with torch.no_grad():
        found = torch.stack([hiding.learnt(model, x0, 7, seed, memory) for seed in range(40)]).double()
    assert (found.mean() - exact).abs() < 4 * found.std() / 40**0.5 + 1e-6 and found.std() < 0.05
    wanted = torch.stack([(each[k == n] ** 2).mean() for n in range(1, 6)]).repeat_interleave(2)
    torch.testing.assert_close(memory["square"], wanted, rtol=0.2, atol=0)


def test_a_row_of_a_chain_is_revealed_from_the_surest_token_on():
    model, memory = network("mdlm"), {}
    with torch.no_grad():
        for step in range(30):
            fresh = torch.randint(48, (16, 24), generator=torch.Generator().manual_seed(step))
            before = {key: value.clone() for key, value in memory.items()}
            assert hiding.chains(model, fresh, 49, step, memory).isfinite()
            if not before:
                continue
            new = before["phase"] == 0
            assert torch.equal(memory["x0"], torch.where(new[:, None], fresh, before["x0"]))
            was = before["hidden"] | new[:, None]
            assert not (memory["hidden"] & ~was).any() and memory["hidden"].any(1).all()
            sure = model(torch.where(was, 49, memory["x0"]))[..., :49].softmax(-1).amax(-1)
            least = sure.masked_fill(~(was & ~memory["hidden"]), 2).amin(1)  # of those that were revealed
            assert (sure.masked_fill(~memory["hidden"], 0).amax(1) <= least + 1e-6).all()
    assert torch.equal(memory["phase"], (torch.arange(16) + 30) % hiding.PHASES)


def test_a_budget_that_is_spent_before_the_first_step_is_refused(monkeypatch):
    values = dict(budget=("1e6", ""), n_embd=(16, ""), n_head=(2, ""), seq_len=(32, ""), vocab_size=(50, ""))
    with pytest.raises(SystemExit, match="the budget of 1e.06 FLOPs is spent before the first step, which takes .*"):
        run.train(values, torch.randint(48, (100,)).numpy(), 49)
    with pytest.raises(SystemExit, match="hide=learnt is of mdlm's steps, and this run has none"):
        run.train(values | dict(algorithm=("ar", ""), hide=("learnt", "")), torch.randint(48, (100,)).numpy(), 49)
    with pytest.raises(SystemExit, match="budget=3mim: use 1min, 3min, 30min or a number"):
        run.settings(dict(budget=("3mim", "")))


def test_a_run_spends_its_budget_and_no_more_through_all_its_stages_and_goes_on_where_it_was_stopped(tmp_path):
    values = dict(budget=("5e8", ""), n_embd=(16, ""), n_head=(2, ""), seq_len=(32, ""), vocab_size=(50, ""))
    values |= dict(stages=(("0:algorithm=ar seq_len=16", "0.5:algorithm=mdlm seq_len=32"), ""), ema=(0.9, ""))
    values |= dict(sides=(1, ""), conv=(1, ""), hide=("chains", ""))
    tokens = (torch.arange(400) % 7).numpy()
    model, log, facts = run.train(values, tokens, 49, say=lambda _: None)
    assert 4.5e8 < facts["flops"] <= 5e8 and log[-1]["loss"] < log[0]["loss"] and not model.config.causal
    values["state"] = str(tmp_path / "run.pt"), ""

    def stop(line):
        if json.loads(line)["flops"] > 3e8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.train(values, tokens, 49, say=stop)
    again, its_log, its_facts = run.train(values, tokens, 49, say=lambda _: None)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
    assert [(x["step"], x["loss"]) for x in its_log] == [(x["step"], x["loss"]) for x in log]
    assert its_facts["flops"] == facts["flops"]
    with pytest.raises(SystemExit, match="run.pt is of another run; name another file with --state, or delete it"):
        run.train(values | dict(seed=(2, "")), tokens, 49)


def test_a_trial_is_compared_with_its_base_where_nothing_was_made_before(text_data, tmp_path, monkeypatch):  # noqa: F811
    """The real command, for two or three steps on a small text."""
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setattr(run, "dataset", lambda vocabulary: text_data)
    monkeypatch.setattr(run, "spans", lambda: ["the first text", "and a second one"])
    small = ["--n_layer=1", "--n_embd=24", "--n_head=1", "--seq_len=64", "--budget=2e9", "--exact=2"]
    out = [f"--out={tmp_path / 'out'}", f"--state={tmp_path / 'out' / 'run.pt'}"]
    with pytest.raises(SystemExit, match="base=base: .*-base.json is not there; run that trial first"):
        run.main([str(ROOT / "experiments/speedrun/base.py"), *small, *out, "--name=near"])
    for name in ("base", "near", "near"):
        run.main([str(ROOT / "experiments/speedrun/base.py"), *small, *out, f"--name={name}", "--idea=a mind, 2026",
                  *(["--nearest=2"] if name == "near" else [])])  # fmt: skip
    base, near = (json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines())
    assert base["source"] == near["source"] == "a mind, 2026" and base["difference"] == 0 != near["difference"]
    assert base["exact_spans"] == 2 and abs(base["bound_of_the_same"] - base["exact_bpb"]) < 0.1 * base["exact_bpb"]
    with pytest.raises(SystemExit, match="record=01-a: all records have masks=2 and exact=16; leave them"):
        run.main([str(ROOT / "experiments/speedrun/base.py"), *small, *out, "--record=01-a"])
    with pytest.raises(SystemExit, match="name=near is that of a trial against base; choose another"):
        run.main([str(ROOT / "experiments/speedrun/base.py"), *small, *out, "--name=near", "--base=near"])
    assert "| near |" in run.tables() and not (tmp_path / "out/run.pt").exists()


def test_the_tables_say_what_the_records_do():
    readme = (run.HERE / "README.md").read_text(encoding="utf-8")
    assert run.tables().strip() in readme
    for file in (run.HERE / "records").glob("*/*/result.json"):
        found = json.loads(file.read_text())
        assert run.summary(found["seeds"]) == {k: v for k, v in found.items() if k != "seeds"}
        budget = run.BUDGETS[file.parent.parent.name.rpartition("-")[2]]
        assert all(0.99 * budget < s["flops"] <= budget for s in found["seeds"].values())
        assert (file.parent / "recipe.py").is_file() and (file.parent / "log.jsonl").is_file()
        assert sum(f.stat().st_size for f in file.parent.iterdir()) < 20_000
