"""A language that can be listed: 27 words of three letters, their true probabilities, and two models of them.

    canvases  words in which some letters are hidden, int64 (B, 3): 0, 1, 2 are a, b, c; 3 is the mask, shown as _
    a model   is a function from canvases (B, 3) to logits (B, 3, 4): for each place, one for each id, the mask's too

So every word, every canvas and every order can be tried, and a claim about expectations is proved by adding up.
"""

import itertools

import torch

MASK = 3
WORDS = torch.tensor(list(itertools.product(range(3), repeat=3)))  # (27, 3)
CANVASES = torch.tensor(list(itertools.product(range(4), repeat=3)))  # (64, 3), a word or with holes
PLACES = torch.tensor(list(itertools.product([False, True], repeat=3)))  # (8, 3): every choice of places to hide


def random(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


P = (1.5 * random(27, seed=5)).softmax(0)  # (27,), the probability of each word
ENTROPY = -(P * P.log()).sum().item()  # nats per word: what no honest measure of a model can get below


def show(canvases):
    """Canvases (B, 3) as strings, such as a_c."""
    return ["".join("abc_"[i] for i in row) for row in canvases.tolist()]


def number(canvases):
    """The row of CANVASES at which each canvas (B, 3) stands, (B,)."""
    return (canvases * torch.tensor([16, 4, 1])).sum(-1)


def true_logits():
    """The logits (64, 3, 4) of the true p(letter at a place | the letters of a canvas that are not hidden)."""
    logits = torch.full((64, 3, 4), 2.0, dtype=torch.float64)  # the mask's stays 2: who forgets it will see
    for n, canvas in enumerate(CANVASES):
        possible = ((WORDS == canvas) | (canvas == MASK)).all(1)
        for place, letter in itertools.product(range(3), range(3)):
            logits[n, place, letter] = P[possible & (WORDS[:, place] == letter)].sum().log()
    return logits


TRUE = true_logits()
WRONG = torch.cat([random(64, 3, 3, seed=8), torch.full((64, 3, 1), 2.0).double()], 2)


def truth(canvases):
    """The model that knows P, and says of each hidden letter exactly what can be known."""
    return TRUE[number(canvases)]


def opinions(canvases):
    """A model with opinions, which are wrong: no distribution of words has these conditionals. As any network's."""
    return WRONG[number(canvases)]


def side_by_side(model):
    """The same model, for canvases (B, 3 N) in which N words stand side by side: it reads each word by itself."""
    return lambda canvases: model(canvases.reshape(-1, 3)).view(*canvases.shape, -1)


def doubting(rate):
    """A model that knows P, of words whose letters were each replaced by any of the three with probability `rate`, and
    nobody says which: of each place it says what follows from the *other* letters, as far as they can be trusted."""
    replaced = (1 - rate) * torch.eye(3).double() + rate / 3  # of a letter (row), what stands there
    each = replaced[WORDS[:, None], WORDS]  # (27, 27, 3): of a word, letters of a canvas
    logits = torch.full((27, 3, 4), 2.0, dtype=torch.float64)
    for place, letter in itertools.product(range(3), range(3)):
        others = each[:, :, [i for i in range(3) if i != place]].prod(2)
        logits[:, place, letter] = (P[:, None] * others)[WORDS[:, place] == letter].sum(0).log()
    return lambda canvases: logits[(canvases * torch.tensor([9, 3, 1])).sum(-1)]
