"""Does a network of uniform noise need to be told the time? And its own last guess?

    python experiments/uniform_time.py              10 minutes on one core
    python experiments/uniform_time.py --seeds=1 --iters=200

udlm.py's network reads x_t alone. Here the same one, on the tutorial's toy (runs of ten letters), beside two that are
given more, and what each is worth by the bound and by samples that follow the rule:

  nothing       udlm.py's
  time          a token in front says t, in 16 steps
  two passes    a first pass guesses, the second reads x_t and the guess, as each token's mean embedding under it. Both
                are of the same x_t, so that it is one network, only slower, and its bound is a bound
  last guess    the same network, sampled as DiffusionGemma is: the guess is the last step's, which saves the first
                pass. What it then does is no function of x_t, and the bound does not speak of it

All bounds are estimated in one way here, from drawn times, as a network that knows t cannot be integrated over it.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import udlm  # noqa: E402
from model import Config, Transformer  # noqa: E402
from nanodlm import configurator, console, noise  # noqa: E402
from nanodlm.bounds import Size, check  # noqa: E402
from nanodlm.likelihood import mean_and_error  # noqa: E402

K, L, STEPS = 10, 8, 16  # letters, positions, what a time token can say
LETTERS = Config(vocab_size=K)  # without the rows of time tokens


@dataclass
class Settings:
    seeds: Size = 3
    iters: Size = 800  # of 64 rows
    samples: Size = 200
    rows: Size = 8192  # of the bound

    def __post_init__(self):
        check(self)


class Told(Transformer):
    """A Transformer that reads self.t (B,), the rate of noise, as a token in front of each row."""

    def forward(self, ids, rows, **keys):
        said = K + (self.t * STEPS).long().clamp(0, STEPS - 1)
        return super().forward(torch.cat([said[:, None], ids], 1), rows=rows + rows // ids.shape[1] + 1)


class Guessing(Transformer):
    """A Transformer that reads a guess, too: self.kept if there is one, (B, L, K), or else that of a first pass."""

    kept = None

    def __init__(self, config):
        super().__init__(config)
        self.guess = torch.nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.embed.register_forward_hook(lambda m, i, out: out + self.extra)
        self.extra = 0.0

    def forward(self, ids, rows, **keys):
        p = self.kept
        if p is None:
            self.extra = 0.0
            with torch.no_grad():
                p = super().forward(ids).softmax(-1)
        self.extra = self.guess(p @ self.embed.weight)
        return super().forward(ids, rows=rows)


def runs(n, seed):
    """The tutorial's rows (n, L): runs of the alphabet, forwards or backwards; 20 are possible."""
    start, way = ((noise.uniform(seed, i, torch.arange(n)) * k).long()[:, None] for i, k in ((0, K), (1, 2)))
    return (start + (2 * way - 1) * torch.arange(L)) % K


def nelbo(model, x0, seed):
    """Nats of each row (B,), one time each, as udlm.loss draws it; model.t is told."""
    found, t = udlm.corrupt(x0 >= 0, udlm.LossOptions(), seed, 0, len(x0), LETTERS, K)
    model.t = t[:, 0]
    xt, rows = torch.where(found > 0, found - 1, x0), torch.arange(x0.numel())
    logp = udlm.log_p(model(xt, rows=rows)[:, :K], LETTERS, K)
    given = x0.flatten(), xt.flatten(), t.flatten()
    return udlm.token_bound(logp, *given, LETTERS, K).view(x0.shape).sum(1)


@torch.no_grad()
def follow(model, n, steps, keep):
    """How many of n samples follow the rule; keep: a guess is the last step's."""
    rows, good = {tuple(x) for x in runs(5000, 3).tolist()}, 0
    for i in range(n):
        x, model.kept, model.step = torch.zeros(L, dtype=torch.int64), None, 0

        def logits_at(x, at):
            model.t = torch.tensor([1 - model.step / steps])
            model.step += 1
            logits = model(x[None], rows=at)[:, :K]
            model.kept = logits.softmax(-1)[None] if keep else None
            return logits

        o = udlm.SampleOptions(L, seed=7)
        for _ in udlm.denoise(Plain(model), logits_at, x, x >= 0, o, mask_id=K, row=i, steps=steps):
            pass
        good += tuple(x.tolist()) in rows
    return good


class Plain:
    """What a sampler asks of the network besides logits."""

    def __init__(self, model):
        self.config, self.parameters = LETTERS, model.parameters


def trained(kind, iters, seed):
    torch.manual_seed(seed)
    size = K + STEPS if kind is Told else K
    model = kind(Config(vocab_size=size, seq_len=L + 1, n_layer=2, n_head=2, n_embd=64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, i / 50, 2 * (iters - i) / iters + 1e-3)
        value = nelbo(model, runs(64, noise.fold(1, seed, i)), noise.fold(2, seed, i)).mean() / L
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


def main(argv):
    s = configurator.fill(configurator.read(argv), Settings)
    print("| the network reads | NELBO, nats a row | follow the rule in 8 steps | in 64 |\n|---|---|---|---|")
    for name, kind in (("nothing more", Transformer), ("time", Told), ("two passes", Guessing)):
        models = [trained(kind, s.iters, seed) for seed in range(1, s.seeds + 1)]
        with torch.no_grad():
            nats = torch.stack([nelbo(m, runs(s.rows, 99), 5).mean() for m in models])
        mean, error = mean_and_error(nats)
        for label, keep in ((name, False), ("last guess", True))[: 1 + (kind is Guessing)]:
            good = [sum(follow(m, s.samples, n, keep) for m in models) / s.samples / s.seeds for n in (8, 64)]
            bound = "no bound" if keep else f"{mean:.2f} ± {error or 0:.2f}"
            print(f"| {label} | {bound} | {good[0]:.0%} | {good[1]:.0%} |", flush=True)


if __name__ == "__main__":
    console.run(main, sys.argv[1:])
