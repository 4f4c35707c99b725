"""How far estimates of log pi lead from the true policy gradient, which estimate=exact has (grpo.py).

    python experiments/policy_gradients.py                        the toy, where all answers can be listed: a minute
    python experiments/policy_gradients.py --sudoku=out/sudoku_start      and a network's own answers to puzzles

toy     two letters, texts of four, random networks: the expectation over all answers, each as likely as it is
sudoku  the network's answers to held-out puzzles, groups of 8; the gradient on these answers

bias    distance of the mean gradient from the true one, over the length of the latter; and again for the best multiple
        of it, as an optimiser takes steps of a length of its own: what remains is its direction
masks   standard deviation that the masks of one estimate bring, over the true gradient's length
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import bd3lm  # noqa: E402
import grpo  # noqa: E402
import mdlm  # noqa: E402
from model import Config, Transformer  # noqa: E402
from nanodlm import checkpoint as ckpt  # noqa: E402
from nanodlm import configurator, console, corpus, fast_mdlm, noise, rewards  # noqa: E402
from nanodlm.bounds import Place, Size, check  # noqa: E402

L, MASK = 4, 2
ESTIMATES = [("d1", {}), ("coupled", {}), ("nelbo", {}), ("nelbo", {"masks": 8})]


@dataclass
class Settings:
    networks: Size = 5  # random ones, on the toy
    seeds: Size = 64  # of the masks
    sudoku: Place = ""  # a checkpoint; none: the toy alone
    puzzles: Size = 32
    plot: Place = ""  # a .png of the table's points

    def __post_init__(self):
        check(self)


def random_network(seed, block_size):
    torch.manual_seed(seed)
    shape = dict(vocab_size=3, seq_len=L, block_size=block_size, n_layer=2, n_head=2, n_embd=16)
    net = Transformer(Config(**shape)).double().eval()
    with torch.no_grad():
        for p in net.parameters():
            if p.dim() == 2:
                p.normal_(0, 0.7)
    return net


def when(net, x0, steps, size):
    """When the sampler reveals each token of each text: int64 (B, L), within its block."""
    found, place = torch.zeros_like(x0), torch.arange(x0.shape[1]) // (size or x0.shape[1])
    for i, answer in enumerate(x0):
        x = torch.full_like(answer, MASK)
        for b in place.unique().tolist():
            asked = bd3lm.logits_of(net, x, b, size, L)[1] if size else lambda x, at: net(x[None], rows=at)
            with torch.no_grad():
                for k, (at, _) in enumerate(
                    mdlm.denoise(net, asked, x, place == b, mask_id=MASK, steps=steps, answer=answer)
                ):
                    found[i, at] = k
    return found


def gradient(net, a, o, mask_id):
    """Of what is maximised: the sum over answers of advantage times the estimate of log pi."""
    net.zero_grad()
    (grpo.log_pi(net, a, o, mask_id).sum(1) * a.advantage).sum().backward()
    return torch.cat([p.grad.flatten().double() for p in net.parameters() if p.grad is not None])


def compare(net, a, true, o, mask_id, seeds):
    """(bias, bias of the direction, standard deviation by masks, cosine) of an estimate."""
    found = torch.stack([gradient(net, replace(a, seed=noise.fold(3, s)), o, mask_id) for s in range(seeds)])
    mean, length = found.mean(0), true.norm()
    spread = (found - mean).square().sum(1).sum().div(max(1, seeds - 1)).sqrt() / length
    cosine = (mean @ true) / mean.norm() / length
    return [x.item() for x in ((mean - true).norm() / length, (1 - cosine.clamp(min=0) ** 2).sqrt(), spread, cosine)]


def toy(s, steps, size):
    """Rows (estimate, numbers) on random networks, the mean over them."""
    x0 = torch.tensor([[i >> k & 1 for k in range(L)] for i in range(16)])
    every, rows = torch.ones_like(x0, dtype=torch.bool), {}
    for seed in range(s.networks):
        net = random_network(seed, size)
        reward = torch.randn(16, generator=torch.Generator().manual_seed(seed)).double()
        exact = grpo.LossOptions(estimate="exact", block_size=size, per="token")
        a = grpo.Answers(x0, every, every, every, when(net, x0, steps, size), torch.arange(16), reward)
        with torch.no_grad():
            p = grpo.log_pi(net, a, exact, MASK).sum(1).exp()
        a.advantage = p * (reward - (p * reward).sum())
        true = gradient(net, a, exact, MASK)
        for name, more in ESTIMATES:
            o = replace(exact, estimate=name, mask_prompt=0.0, **more)
            rows.setdefault((name, o.masks), []).append(compare(net, a, true, o, MASK, 1 if name == "d1" else s.seeds))
    return {key: np.array(found).mean(0).tolist() for key, found in rows.items()}


def puzzles(s, steps, group=8):
    """Rows (estimate, numbers) of one network on its answers to held-out puzzles."""
    found = ckpt.load(s.sudoku)
    meta = corpus.load_meta("sudoku", "val")
    tok, n, mask_id = found.tokenizer, meta["prompt_len"], found.tokenizer.mask_id
    x = torch.from_numpy(corpus.load_tokens("sudoku", "val", meta)[: s.puzzles].astype("int64"))
    x = x.repeat_interleave(group, 0)
    o = fast_mdlm.SampleOptions(max_new_tokens=x.shape[1] - n, steps=steps)
    out = fast_mdlm.generate(found.model, list(x[:, :n]), o, mask_id=mask_id, trace=True)
    x0, place = torch.stack(out.tokens), torch.zeros_like(x)
    for row, events in zip(place, out.trace):
        for step, position, *_ in events:
            row[position] = step
    judge = rewards.function("sudoku")
    reward = [judge(tok.decode(p[:n].tolist()), tok.decode(p[n:].tolist()), "") for p in x0]
    A = grpo.advantages(torch.tensor(reward).double().view(-1, group), deviation=False).flatten()
    hole = (torch.arange(x.shape[1]) >= n).expand_as(x)
    a = grpo.Answers(x0, hole, hole, torch.ones_like(hole), place, torch.arange(len(x)), A.float())
    exact = grpo.LossOptions(estimate="exact", per="token", steps=steps)
    true, rows = gradient(found.model, a, exact, mask_id), {}
    print(f"{sum(reward) / len(reward):.1%} of the answers are right; {A.view(-1, group).any(1).sum()} groups differ")
    for name, more in ESTIMATES:
        o = replace(exact, estimate=name, **more)
        rows[name, o.masks] = compare(found.model, a, true, o, mask_id, min(16, s.seeds))
    return rows


def draw(points, file):
    """Direction against spread of every estimate, a panel for the toy and one for puzzles."""
    from matplotlib.figure import Figure

    kinds = [k for k in ("toy", "sudoku") if any(where.startswith(k) for where, *_ in points)]
    figure = Figure(figsize=(5 * len(kinds), 4))
    for ax, kind in zip(np.atleast_1d(figure.subplots(1, len(kinds))), kinds):
        for where, name, (_, _, spread, cosine) in points:
            if where.startswith(kind):
                ax.plot(max(spread, 1e-2), cosine, "o")
                ax.annotate(f"{name}, {where.partition(', ')[2]}", (max(spread, 1e-2), cosine), fontsize=7)
        ax.plot(1e-2, 1.0, "k*")
        ax.annotate("exact", (1e-2, 1.0), fontsize=8)
        ax.set(
            xscale="log",
            xlim=(7e-3, 20),
            xlabel="standard deviation by masks / true gradient",
            ylabel="cosine",
            title=kind,
        )
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def main(argv):
    s, points = configurator.fill(configurator.read(argv), Settings), []
    cases = [("toy, one per step", toy, (0, 0)), ("toy, 2 steps", toy, (2, 0)), ("toy, blocks of 2", toy, (0, 2))]
    cases += [(f"sudoku, {k} steps", puzzles, (k,)) for k in (16, 2)] if s.sudoku else []
    print("| answers | estimate | forwards | bias | of the direction | masks | cosine |\n|---|---|---|---|---|---|---|")
    for where, measure, given in cases:
        for (name, masks), numbers in measure(s, *given).items():
            cost = {"d1": 1, "coupled": 3}.get(name, masks)
            name = f"nelbo, {masks}" if name == "nelbo" else name
            points.append((where, name, numbers))
            print(f"| {where} | {name} | {cost} | " + " | ".join(f"{x:.3f}" for x in numbers) + " |", flush=True)
    if s.plot:
        draw(points, s.plot)


if __name__ == "__main__":
    console.run(main, sys.argv[1:])
