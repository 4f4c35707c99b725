"""The toy of udlm.py: three letters and a mask. Texts, canvases and the process itself are listed: its bound by adding
up, and, as a second way, its law by its master equation. data is the probability of every text, (3,) * L."""

import numpy as np
import torch
import torch.nn.functional as F
from toy import generator, listing

K, MASK = 3, 3  # letters, the mask


def language(length, seed=5):
    return (1.5 * torch.randn(K**length, generator=generator(seed)).double()).softmax(0).view((K,) * length)


def pi_of(share):
    return torch.tensor([(1 - share) / K] * K + [share], dtype=torch.float64)


def q_of(p, rate, share):
    """q(x_t) of a token whose x_0 has the distribution p (..., 4)."""
    return (1 - rate) * p + rate * pi_of(share)


def chances(data, rate, share):
    """Two tables of canvases, places i and letters v, (canvases, L, 3): q(x_t^i | x_0^i = v), and the chance that v is
    at i and that the noise makes all of the canvas but its i-th token. The product is the chance of canvas and v."""
    L = data.dim()
    texts, canvases = listing(K, L), listing(K + 1, L)
    q = q_of(torch.eye(K, K + 1).double(), rate, share)
    each = q[texts[:, None], canvases]  # (texts, canvases, L)
    others = torch.stack([torch.where(torch.arange(L) == i, 1.0, each).prod(2) for i in range(L)], 2)
    joint = data.flatten()[:, None, None] * others
    return q.T[canvases], torch.einsum("tcl,tlv->clv", joint, F.one_hot(texts, K).double())


def truth(data, rate, share, itself):
    """log p(x_0^i | x_t) of the data, (canvases, L, 4); or, without itself, of all tokens of x_t but the i-th."""
    own, others = chances(data, rate, share)
    p = own * others if itself else others
    return F.pad(p / p.sum(2, keepdim=True), (0, 1)).log()


def rates(points):
    """Rates and weights, float64 (points,), of an integral over (0, 1) of what may blow up a little at its ends."""
    node, weight = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(points))
    u = (node + 1) / 2
    return u * u * (3 - 2 * u), weight * 3 * u * (1 - u)


def over_rates(f, points=80):
    return sum(w * f(r.item()) for r, w in zip(*rates(points)))


def reverse_rates(logp, rate, share):
    """How the process that predictions (N, canvases, L, 4) define goes from canvas to canvas, one token at a time, per
    unit of rate: pi(z) q(y) / (alpha q(z)), (N, canvases, canvases), and minus their sum on the diagonal, as an
    exponential wants it (UDLM; GIDD). rate (N,)."""
    L = logp.shape[-2]
    canvases = listing(K + 1, L)
    a, b = ((canvases[:, None] != canvases).sum(2) == 1).nonzero(as_tuple=True)
    i = (canvases[a] != canvases[b]).long().argmax(1)
    z, y = canvases[a, i], canvases[b, i]
    q = q_of(logp.exp(), rate[:, None, None, None], share)
    out = torch.zeros(len(rate), len(canvases), len(canvases)).double()
    out[:, a, b] = (pi_of(share)[z] * q[:, a, i, y] / q[:, a, i, z]).nan_to_num(0.0) / (1 - rate[:, None])
    return out - torch.diag_embed(out.sum(-1))


def law_of(predictions, share, pieces=300):
    """The distribution of the texts that the reverse process ends in, (texts,), by its master equation: a matrix
    exponential for every short time, in which the rates stand still."""
    high, low = 1 / (1 + torch.exp(torch.linspace(-14, 14, pieces + 1).double())).unfold(0, 2, 1).T  # from near 1 to 0
    middle = 1 / (1 + ((1 - high) / high * (1 - low) / low).sqrt())
    logp = torch.stack([predictions(r) for r in middle.tolist()])
    canvases = listing(K + 1, logp.shape[2])
    now = pi_of(share)[canvases].prod(1)
    for step in torch.linalg.matrix_exp(reverse_rates(logp, middle, share) * (high - low)[:, None, None]):
        now = now @ step
    return now[(canvases < MASK).all(1)]
