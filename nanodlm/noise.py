"""Noise: random numbers as functions of integers, draws from them, times spread over [0, 1], schedules.

Every random number is a pure function of integers: (seed, row, step, position). So a row of a batch is what it would
have been alone, any split of a batch over processes or micro-batches gives the same numbers, CPU and GPU agree, and a
resumed run needs no generator state.
"""

import torch


def mix(x):
    """The splitmix64 finaliser on int64 (products wrap; torch's >> is arithmetic, so the sign bits are cut off)."""
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * -4658895280553007687
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * -7723592293110705685
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def uniform(*counters):
    """Uniform numbers strictly inside (0, 1), float64, from ints and int64 tensors; they broadcast together."""
    device = next((c.device for c in counters if torch.is_tensor(c)), None)
    state = torch.zeros((), dtype=torch.int64, device=device)
    for c in counters:
        c = c + 7046029254386353131
        state = mix(state + (c if torch.is_tensor(c) else (c + 2**63) % 2**64 - 2**63))  # ints wrap as tensors do
    return (((state >> 12) & ((1 << 52) - 1)).double() + 0.5) * 2.0**-52


NO_FLOAT64 = ("mps",)  # kinds of devices that lack it: Apple's GPUs


def home(x):
    """A tensor where float64 is: its device, or the host if that has none."""
    return x.cpu() if x.device.type in NO_FLOAT64 else x


def to(x, device):
    """A tensor of the host on a device, without waiting for what that is doing."""
    return x.to(device, non_blocking=torch.device(device).type == "cuda")


def fold(seed, *counters):
    """One int64 seed from several: fold(seed, step) is a new, unrelated seed."""
    return int(uniform(seed, *counters) * 2**52)


def schedule(t, name):
    """The probability 1 - alpha(t) that a token is hidden at time t, and its derivative, of the schedules besides the
    linear one (mdlm.mask_rate): poly2, poly3, … (t^k) and cosine (MD4, arXiv 2406.04329, table 4), and cosine_mdlm
    (MDLM's code's, the other way round)."""
    if name == "cosine":
        a = torch.pi / 2 * (1 - t)
        return a.cos(), torch.pi / 2 * a.sin()
    if name == "cosine_mdlm":
        a = torch.pi / 2 * t
        return 2 * (a / 2).sin() ** 2, torch.pi / 2 * a.sin()  # 1 - cos(a), without the cancellation
    if name.startswith("poly") and name[4:].replace(".", "", 1).isdecimal() and 0 < float(name[4:]) <= 64:
        k = float(name[4:])
        return t**k, k * t ** (k - 1)
    raise ValueError(f"unknown schedule {name!r}; use linear, poly2 (a power up to 64), cosine or cosine_mdlm")


def stratified(seed, total, device=None, low_discrepancy=True):
    """`total` times in (0, 1), float64: one in each of `total` equal strata, jittered (MDLM, section 3.5.1).

    Toy standard deviation of a batch loss at 16 rows: 0.378 independent, 0.042 jittered strata. The order is random
    because a batch index should not always see the same t."""
    i = torch.arange(total, device=device)
    u = uniform(seed, 1, i)
    if not low_discrepancy:
        return u
    return (uniform(seed, 2, i).argsort() + u) / total


def times(seed, total, options, device=None):
    """The times of a batch of `total` rows by mdlm.LossOptions (t_shape, t_min, t_max, low_discrepancy), float64."""
    t = stratified(seed, total, device, options.low_discrepancy)
    if options.t_shape == "bell":  # the inverse of Beta(2, 2)'s distribution function, 3t^2 - 2t^3
        t = 0.5 - torch.sin(torch.asin(1 - 2 * t) / 3)
    return options.t_min + (options.t_max - options.t_min) * t


def of_masks(seed, row, j, length, begin=0):
    """The random numbers (B, length) that say what mask j (an int, or int64 (B,)) of each row (B,) hides, of its
    positions from begin (an int, or int64 (B,)) on."""
    j, begin = (torch.as_tensor(v, device=row.device)[..., None] for v in (j, begin))
    return uniform(seed, 4, row[:, None], j, begin + torch.arange(length, device=row.device))


def rates_given(k, n, points=8):
    """The rates r ~ U(0, 1) that may have led to k noises among n tokens (int64 (B,) both): nodes and weights of an
    integral over r^k (1 - r)^(n - k) (n + 1) C(n, k), float64 (points, B) each, for functions that grow like k / r.

    Gauss and Jacobi's rule, by Golub and Welsch (1969), for that density over r where k > 0, times r."""
    a, b = (n - k).double(), (k - 1).clamp(min=0).double()  # of (1 - r)^a r^b
    i = torch.arange(1, points, device=k.device).double()[:, None]
    s = 2 * i + a + b
    side = 4 * i * (i + a) * (i + b) * (i + a + b) / (s * s * (s + 1) * (s - 1))
    side[0] = 4 * (1 + a) * (1 + b) / ((2 + a + b) ** 2 * (3 + a + b))  # s - 1 is i + a + b there
    middle = torch.cat([((b - a) / (a + b + 2))[None], (b * b - a * a) / (s * (s + 2))])
    matrix = torch.diag_embed(middle.T) + sum(torch.diag_embed(side.sqrt().T, d) for d in (1, -1))
    node, vector = torch.linalg.eigh(matrix)
    r = (1 + node.T) / 2
    return r, vector[:, 0].T ** 2 * torch.where(k > 0, r * (n + 1) / k.clamp(min=1), 1.0)


def see_ahead(mask, chance, seed, length, device):
    """A mask of who sees whom, made causal, but that each pair of a token and a later one is seen with this chance,
    drawn anew in every step: so a causal network learns to use it little by little (DiffuLLaMA, arXiv 2410.17891,
    "attention mask annealing")."""
    if chance == 1:
        return mask
    i = home(torch.arange(length, device=device))
    seen = ((i <= i[:, None]) | (uniform(seed, 7, i[:, None], i) < chance)).to(device)
    return seen[None] if mask is None else seen & (mask if mask.dim() == 3 else mask[:, None])


def draw(logits, u, temperature=1.0):
    """One token per row of logits (N, V) from one uniform number each (N,): int64 (N,).

    By inverting the distribution function in float64. 32-bit Gumbel noise, the usual way, cannot reach the tails and
    silently lowers the temperature (generative perplexity 126 → 31 from precision alone; arXiv 2409.02908)."""
    if temperature == 0:
        return logits.argmax(-1)
    c = (logits.double() / temperature).softmax(-1).cumsum(-1)
    total = c[:, -1]
    x = torch.minimum(u * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(c, x[:, None], right=True)[:, 0]


def shares(n, sizes):
    """n shared out in proportion to sizes (..., K), int64 (..., K): whole shares, the largest remainders one more, of
    equal ones the first; at least 1 each, for which the others give up theirs. n: an int, or int64 (...)."""

    def proportional(n, sizes):
        total = sizes.sum(-1, keepdim=True).clamp(min=1)
        part, rest = n[..., None] * sizes // total, n[..., None] * sizes % total
        rank = rest.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        return part + (rank < (n - part.sum(-1))[..., None])

    n = torch.as_tensor(n, device=sizes.device)
    more = (proportional(n, sizes) - 1).clamp(min=0)  # than 1 each
    return 1 + torch.where(sizes > 0, proportional((n - (sizes > 0).sum(-1)).clamp(min=0), more), 0)


def share(n, step, steps, name="linear", rate=schedule):
    """How many of n tokens to reveal in `step` of `steps`; ints, or int64 tensors (B,).

    linear: equal shares, the remainder one each to the first steps (LLaDA); others: as many stay hidden as the schedule
    says, rounded down; by `rate`, who asks with a mask_rate of its own may have schedules that are not here."""
    if name == "linear":
        return n // steps + (step < n % steps)
    stay, then = (rate(1 - (torch.as_tensor(step) + i).double() / steps, name)[0] for i in (0, 1))
    return (n * stay + 1e-9).floor().long() - (n * then + 1e-9).floor().long()
