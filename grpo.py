"""Policy gradients for masked and block diffusion (GRPO, arXiv 2402.03300; d1, 2504.12216; DiffuCoder, 2506.20639).

The idea in five lines. A network that can write answers a prompt several times; a reward, any function of a text, says
what each answer is worth, and its advantage is that less the mean of its group. Then log pi(answer) goes up where the
advantage is positive and down where it is not: in expectation that is the gradient of the mean reward. Nobody has to
show a right answer, only to know one when it comes. What is log pi of text that is revealed in any order? Published
codes estimate it. A sampler that reveals its surest positions has it exactly, step by step, as section 2 says.

    python grpo.py      trains something tiny by rewards alone, and says what it does

1 advantages · 2 log pi: four estimates · 3 loss · 4 what the network is otherwise · 5 tutorial

Who writes the answers and asks for rewards is nanodlm/rollouts.py; rewards are plain functions, in nanodlm/rewards.py.
"""

from dataclasses import dataclass, fields, replace
from typing import Literal

import torch

import bd3lm
import mdlm
from bd3lm import SampleOptions, from_blocks, to_blocks
from mdlm import LikelihoodOptions  # noqa: F401
from model import Config, Transformer
from nanodlm import cross_entropy, noise
from nanodlm.bounds import Amount, Line, Seconds, Size, Steps, Unit, Whole, check
from nanodlm.noise import uniform

CAUSAL = False


@dataclass
class LossOptions:
    rewards: tuple[Line, ...] = ("sudoku",)  # of nanodlm/rewards.py, or my.py:name of your own file; name=0.5 weighs it
    group: Size = 8  # answers to each prompt, which are compared with each other
    updates: Size = 1  # steps that are taken on the same answers; after the first one ratios matter, and are clipped
    max_new_tokens: Whole = 0  # tokens of an answer; 0: as many as stand after the prompt in the data's rows
    steps: Steps = 0  # denoising steps of an answer; 0 means one token per step
    temperature: Amount = 1.0  # of its tokens
    answer_block: Whole = 0  # masked diffusion: write it in blocks of so many tokens (d1: 32); 0 means all at once
    block_size: Whole = 0  # tokens of a block of a network of block diffusion; 0: masked diffusion
    estimate: Literal["d1", "coupled", "nelbo", "exact"] = "d1"  # of log pi; exact costs a forward for every step
    mask_prompt: Unit = 0.15  # d1: chance that a token of the prompt is hidden, too
    masks: Size = 1  # nelbo: masks per answer
    deviation: bool = True  # divide advantages by their group's standard deviation (GRPO); false: Dr. GRPO, DiffuCoder
    per: Literal["answer", "token"] = "answer"  # an answer's loss is the mean over its tokens; or, unbiased, their sum
    ratio: Literal["token", "answer"] = "token"  # of the new pi to the old: of each token, or their mean (GSPO)
    clip_ratio: Amount = 0.2  # ratios count from 1 - this …
    clip_higher: Amount = 0.0  # … to 1 + this; 0: the same
    kl: Amount = 0.0  # weight of the divergence from the network without its adapters (lora_r)
    reward_fails: Literal["stop", "leave_out"] = "stop"  # what to do where a reward raises, hangs or is no number
    reward_seconds: Seconds = 30.0  # how long a reward may take

    def __post_init__(self):
        check(self)
        if self.group < 2:
            raise ValueError(f"group={self.group}: an answer is compared with others to its prompt; give at least 2")
        if not self.temperature:
            raise ValueError("temperature=0 writes the same answer again and again; give one above 0")
        if self.estimate == "exact" and self.temperature != 1:
            raise ValueError(f"estimate=exact is of temperature=1, not {self.temperature:g}; or use another estimate")
        if self.clip_ratio > 1:
            raise ValueError(f"clip_ratio={self.clip_ratio:g} must be at most 1; clip_higher may be more")


# ---- 1 · advantages ------------------------------------------------------------------------------------------------


def advantages(rewards, deviation=True):
    """Of rewards (prompts, group), float64, those of each answer: its reward less its group's mean, and over its
    group's standard deviation (GRPO, section 4.1.2). An answer whose reward is not a number is left out, with 0.

    The mean counts the answer itself, so that without the deviation the gradient is (1 - 1/group) times the true one;
    dividing by the deviation weighs prompts, those that are nearly always or never solved the most (2503.20783)."""
    found = rewards - rewards.nanmean(1, keepdim=True)
    if deviation:
        count = (~rewards.isnan()).sum(1, keepdim=True)
        found = found / ((found.square().nansum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt() + 1e-4)
    return found.nan_to_num(0.0)


# ---- 2 · log pi ----------------------------------------------------------------------------------------------------


@dataclass
class Answers:
    """Prompts with the answers that were written to them, a row each."""

    x0: torch.Tensor  # int64 (B, L)
    hole: torch.Tensor  # bool (B, L): what was written
    scored: torch.Tensor  # bool (B, L): … up to its end-of-text
    real: torch.Tensor  # bool (B, L): no padding
    when: torch.Tensor  # int64 (B, L): in which step it was
    number: torch.Tensor  # int64 (B,): the rows' numbers in the global batch, from which with the seed come their masks
    advantage: torch.Tensor  # float32 (B,)
    seed: int = 0  # of the masks: the same whenever these answers are looked at in the same update
    old: torch.Tensor | None = None  # float32 (B, L): log pi as it was when they were written; None: as it is
    base: torch.Tensor | None = None  # float32 (B, L): … of the network without adapters
    note: object = lambda **facts: None  # called with what is to be logged

    def to(self, device):
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in moved.items() if torch.is_tensor(v)})


def looks(a, options):
    """How an estimate looks at answers: a list of (what is hidden, bool (B, L); of what log p is asked, bool (B, L);
    what it weighs, float64 (B, L)). Each of them is a forward; log pi of a token is the weighted sum.

    d1       everything written is hidden, and some of the prompt: one forward, which knows nothing of the answer
    coupled  that, and a random part of the answer and the part that this leaves, each over its chance: half of the sum,
             as DiffuCoder's code has it, by which a token weighs 3/2 on average
    nelbo    random parts, weighted as in the bound (mdlm.nelbo): in expectation the bound, not log pi
    exact    every canvas on the way to the answer, and of it the tokens that came next. The surest positions go first
             whatever is drawn there, so that given the answer the way is known, and log pi is the sum of log p along it
             (DUEL, arXiv 2603.01367, which has it for one token per step; it holds for any number)
    """
    o, hole, (B, L) = options, a.hole, a.hole.shape
    one, row = torch.ones(B, L, dtype=torch.float64, device=hole.device), a.number[:, None]
    size, column = o.block_size or L, torch.arange(L, device=hole.device)
    if o.estimate == "d1":
        also = a.real & ~hole & (uniform(a.seed, 11, row, column) < o.mask_prompt)
        return [(hole | also, hole, one)]
    if o.estimate == "coupled":
        t = 0.2 + 0.6 * uniform(a.seed, 12, row)
        part = hole & (uniform(a.seed, 13, row, column) < t)
        return [(hole, hole, one / 2), (part, part, one / 2 / t), (hole & ~part, hole & ~part, one / 2 / (1 - t))]
    if o.estimate == "nelbo":
        blocks, found = to_blocks(hole, size), []
        block = torch.arange(len(blocks) // B, device=hole.device)
        for j in range(o.masks):
            hidden, weight = mdlm.nelbo_masks(blocks, (row + 1_000_003 * block).flatten(), j, o.masks, a.seed)
            hidden, weight = (from_blocks(x, L) for x in (hidden, weight[:, None].expand_as(hidden)))
            found.append((hidden, hidden, weight / o.masks))
        return found
    when = to_blocks(a.when, size)  # what comes after a block is not seen there, so that all blocks go at once
    first = when.masked_fill(~to_blocks(hole, size), 2**40).amin(1, keepdim=True)
    when = from_blocks(when - first, L)
    steps = int(torch.where(hole, when, 0).max()) + 1
    return [(hole & (when >= k), hole & (when == k), one) for k in range(steps)]


def log_pi(model, a, options, mask_id):
    """log pi of each token that was written, fp32 (B, L), 0 elsewhere, as options.estimate has it; the sum over a row
    is that of its answer. All looks go through the network at once."""
    hidden, asked, weight = (torch.cat(x) for x in zip(*looks(a, options)))
    copies = len(hidden) // len(a.x0)
    x0, real = a.x0.repeat(copies, 1), a.real.repeat(copies, 1)
    xt, rows = torch.where(hidden | ~real, mask_id, x0), asked.flatten().nonzero()[:, 0]
    if options.block_size:
        nll = bd3lm.predict(model, xt, x0, rows, options.block_size, mask_id, targets=x0.flatten()[rows])
    else:
        nll = cross_entropy.nll(model, x0.flatten()[rows], mask_id, xt, mask=None if real.all() else real, rows=rows)
    found = torch.zeros(asked.shape, dtype=nll.dtype, device=nll.device)
    found = found.masked_scatter(asked, -nll * weight[asked].to(nll))
    return found.view(copies, *a.x0.shape).sum(0)


# ---- 3 · loss ------------------------------------------------------------------------------------------------------


def surrogate(model, a, options, mask_id):
    """What is minimised of each answer, (B,): minus the clipped ratio of the new pi to the old times the advantage
    (PPO, arXiv 1707.06347, eq. 7; GRPO, eq. 3), whose gradient at a ratio of 1 is -A grad log pi; and kl times an
    estimate of KL(pi || base) that is never negative (GRPO, eq. 4)."""
    o, scored = options, a.hole if options.estimate == "exact" else a.scored
    logp = log_pi(model, a, o, mask_id)
    n = scored.sum(1, keepdim=True).clamp(min=1)
    change = torch.where(scored, logp - (logp.detach() if a.old is None else a.old), 0.0)
    if o.ratio == "answer":  # GSPO (arXiv 2507.18071), eq. 7
        change = (change.sum(1, keepdim=True) / n).expand_as(change)
    ratio, A = change.exp(), a.advantage[:, None]
    kept = ratio.clamp(1 - o.clip_ratio, 1 + (o.clip_higher or o.clip_ratio))
    value, facts = -torch.minimum(ratio * A, kept * A), {"clipped": (kept * A < ratio * A) & scored}
    if o.kl:
        more = torch.where(scored, a.base - logp, 0.0)
        facts["kl"] = more.exp() - more - 1
        value = value + o.kl * facts["kl"]
    a.note(tokens=scored, **{k: v.detach() for k, v in facts.items()})
    value = torch.where(scored, value, 0.0).sum(1)
    return value / n[:, 0] if o.per == "answer" else value


def loss(model, x0, options=LossOptions(), *, mask_id, answers, seed=0, denominator=None):
    """The training loss, a scalar: the mean of the surrogate over answers.

    x0       int64 (B,), the rows' numbers; what is written there is not known before it is asked for
    answers  the Answers, or a function that has them written now, by the weights as they are (nanodlm/rollouts.py)
    """
    a = answers() if callable(answers) else answers
    return surrogate(model, a, options, mask_id).sum() / (len(x0) if denominator is None else denominator)


# ---- 4 · what the network is otherwise -----------------------------------------------------------------------------
#
# It stays one of masked or block diffusion: so its checkpoints are called, and so it is measured and decoded.


def network_is(config):
    return bd3lm if config.block_size else mdlm


def nelbo(model, x0, **keys):
    return network_is(model.config).nelbo(model, x0, **keys)


def generate(model, prompts, options=SampleOptions(), **keys):
    return network_is(model.config).generate(model, prompts, options, **keys)


def log_likelihood(model, prompts, targets, options=LikelihoodOptions(), **keys):
    return network_is(model.config).log_likelihood(model, prompts, targets, options, **keys)


# ---- 5 · tutorial --------------------------------------------------------------------------------------------------


def tutorial(steps=500, rounds=60, group=8, samples=400):
    """Teach a tiny model to write two letters at once, by saying of what it wrote how much of it is right."""
    from nanodlm import fast_mdlm

    torch.manual_seed(0)
    letters, L = "abcdefghijklmnopqrstuvwxyz_", 6
    mask_id = len(letters) - 1

    def runs(n, seed):  # "cdefgh" or, as often, "hgfedc": 52 possible rows
        start, sign = ((uniform(seed, i, torch.arange(n)) * k).long()[:, None] for i, k in ((0, 26), (1, 2)))
        return (start + (2 * sign - 1) * torch.arange(L)) % 26

    def show(ids):
        return "".join(letters[i] for i in ids)

    def reward(x):  # half for neighbours that follow each other, upwards or downwards, and half where all of them do
        up = (x[:, 1:] - x[:, :-1]) % 26
        share = torch.maximum((up == 1).double().mean(1), (up == 25).double().mean(1))
        return (share + (share == 1)) / 2

    def write(model, n, seed, o):
        options, nothing = fast_mdlm.SampleOptions(L, steps=o.steps, seed=seed), torch.tensor([], dtype=torch.int64)
        out = fast_mdlm.generate(model, [nothing] * n, options, mask_id=mask_id, trace=True)
        when = torch.tensor([[step for step, *_ in sorted(t, key=lambda e: e[1])] for t in out.trace])
        return torch.stack(out.tokens), when

    model = Transformer(Config(vocab_size=27, seq_len=L, n_layer=2, n_head=2, n_embd=64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for i in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, i / 50, 2 * (steps - i) / steps)
        optimizer.zero_grad()
        mdlm.loss(model, runs(64, noise.fold(1, i)), mask_id=mask_id, seed=noise.fold(2, i)).backward()
        optimizer.step()
    o = LossOptions(group=group, steps=3, estimate="exact", deviation=False)

    def score(o):
        found = reward(write(model, samples, 99, o)[0])
        return f"{found.mean():.2f} {int((found == 1).sum()):4} right"

    print(f"1. A model was shown runs of letters, as {show(runs(1, 0)[0])!r}, and writes 6 letters. The reward is half")
    print(f"    for the share of neighbours that follow each other, half for a whole run. Of {samples} answers:")
    print(f"    one letter at a time      {score(replace(o, steps=6))}")
    print(f"    two letters at a time     {score(o)}, as the first two do not know of each other")
    x0, when = write(model, group, 5, o)
    r = reward(x0)
    print("\n2. A group: its answers (the step in which each letter came), rewards, advantages:")
    for x, w, value, a in zip(x0, when, r, advantages(r[None], False)[0]):
        print(f"    {show(x)}   {''.join(str(k + 1) for k in w.tolist())}   {value:.1f}   {a:+.2f}")

    print("\n3. From here on nobody shows it a run. It writes, is told what that is worth, and learns, by each of the")
    print(f"    estimates of log pi; after so many rounds of {8 * group} answers, two letters at a time:")
    learnt = {k: v.clone() for k, v in model.state_dict().items()}
    for estimate in ("exact", "d1", "coupled", "nelbo"):
        model.load_state_dict(learnt)
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
        o, seen = replace(o, estimate=estimate), []
        for i in range(rounds):
            optimizer.param_groups[0]["lr"] = 7e-4 * (1 - i / rounds)
            x0, when = write(model, 8 * group, noise.fold(6, i) % 2**40, o)
            A = advantages(reward(x0).view(8, group), o.deviation).flatten().float()
            every = torch.ones_like(x0, dtype=torch.bool)
            a = Answers(x0, every, every, every, when, torch.arange(len(x0)), A, seed=noise.fold(7, i))
            optimizer.zero_grad()
            loss(model, torch.arange(len(x0)), o, mask_id=mask_id, answers=a).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if (i + 1) % (rounds // 3) == 0:
                seen.append(f"{i + 1}: {score(o)}")
        print(f"    {estimate:8} {'   '.join(seen)}")
    print(f"    {estimate} last wrote {', '.join(show(x) for x in x0[:6])}")
    print("    Next: python train.py config/sudoku_grpo.py")


if __name__ == "__main__":
    tutorial()
