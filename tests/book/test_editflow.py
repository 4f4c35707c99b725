"""editflow.py against numbers that can be listed: two letters, texts of at most three, every alignment and every
x_t."""

import itertools
import math

import pytest
import torch
from letters import rates
from toy import assert_mean, chi_square, distance, generator, transformer

import editflow
from editflow import BLANK, DELETE, INSERT, LAST, REPLACE, LossOptions, SampleOptions
from model import Config
from nanodlm import alignments, noise

V, MASK = 3, 2
TEXTS = [t for n in range(4) for t in itertools.product(range(2), repeat=n)]  # 15
DATA = (1.5 * torch.randn(15, generator=generator(3)).double()).softmax(0)
NUMBER = {t: i for i, t in enumerate(TEXTS)}


@pytest.fixture(autouse=True)
def four_times(monkeypatch):
    monkeypatch.setattr(editflow, "TIMES", 4)


class Table:
    """A network given as a table, (times, texts, 4 places, rows): what it says behind each token, and in front."""

    def __init__(self, table, source="nothing"):
        self.table, self.embed = table, torch.nn.Embedding(1, 1)
        self.config = Config(vocab_size=2 * V + 3 + 4, seq_len=3, source=source)

    def parameters(self):
        return iter([torch.zeros(0, dtype=torch.float64)])

    def __call__(self, ids, mask=None, rows=None):
        time = ids[:, 0] - (self.config.vocab_size - 4)
        number = 2 ** (rows.sum(1) - 1) - 1  # shorter texts come first
        value = torch.zeros_like(number)
        for k in range(1, ids.shape[1]):
            value = torch.where(rows[:, k], 2 * value + ids[:, k], value)
        found = self.table[time % len(self.table), number + value]
        return found[:, : ids.shape[1]][rows]


def table(seed=0, times=4):
    """Random opinions, of which none makes a text longer than three."""
    found = 0.8 * torch.randn(times, 15, 4, 2 * V + 3 + 4, generator=generator(seed)).double()
    found[..., 2 * V :] -= 0.5
    found[:, 7:, :, 2 * V + INSERT] = -torch.inf
    return found


def moves(said, text):
    """{text: rate per unit of hazard} of what a network says (places, rows) behind the tokens of a text."""
    found = {}
    for i in range(len(text) + 1):
        count = said[i, 2 * V : 2 * V + 3].exp()
        for a in (0, 1):
            p = said[i, V : 2 * V].index_fill(0, torch.tensor(MASK), -torch.inf).softmax(0)[a]
            new = (*text[:i], a, *text[i:])
            found[new] = found.get(new, 0) + count[INSERT] * p
        if i:
            for new, rate in (
                ((*text[: i - 1], *text[i:]), count[DELETE]),
                ((*text[: i - 1], 1 - text[i - 1], *text[i:]), count[REPLACE]),
            ):
                found[new] = found.get(new, 0) + rate
    return found


def law(table, begin):
    """The distribution of the texts that the process ends in, by its master equation: within a piece of time the rates
    are those of a constant generator, per unit of hazard."""
    now = torch.zeros(15, dtype=torch.float64)
    now[NUMBER[begin]] = 1
    for k, said in enumerate(table):
        G = torch.zeros(15, 15, dtype=torch.float64)
        for i, text in enumerate(TEXTS):
            for new, rate in moves(said[i], text).items():
                if rate:
                    G[i, NUMBER[new]] += rate
        G -= torch.diag(G.sum(1))
        a, b = k / len(table), (k + 1) / len(table)
        now = now @ torch.linalg.matrix_exp(G * math.log((1 - a + LAST) / (1 - b + LAST)))
    return now


def expected(net, z0, z1, kappas, weights, monkeypatch):
    """The integral over kappa of token_bound, all x_t added up: nats of one alignment (M,)."""
    z0, z1 = (z if len(z) else torch.tensor([BLANK]) for z in (z0, z1))
    M, patterns = len(z0), torch.tensor([*itertools.product([False, True], repeat=len(z0))], dtype=torch.bool)
    p = torch.where(patterns, kappas[:, None, None], 1 - kappas[:, None, None]).prod(2) * weights[:, None]
    done = patterns.repeat(len(kappas), 1)
    monkeypatch.setattr(editflow, "made", lambda *_: (done, torch.ones(done.shape, dtype=torch.float64)))
    kappa = kappas.repeat_interleave(len(patterns))
    given = torch.zeros(len(done), M, dtype=torch.bool)
    z0, z1 = z0.expand(len(done), M), z1.expand(len(done), M)
    return (editflow.token_bound(net, z0, z1, given, kappa, 0.0, (0,), V, MASK) * p.flatten()).sum()


def pieces(points=8):
    """Nodes and weights of an integral over kappa in four pieces, which may blow up a little at 1."""
    node, weight = rates(points * 4)
    return torch.cat([(k + node) / 4 for k in range(4)]), weight.repeat(4) / 4


def columns_of(text):
    return torch.full((len(text),), BLANK), torch.tensor(text, dtype=torch.int64)


# ---- alignments ------------------------------------------------------------------------------------------------------


def edits(x, y):
    """Levenshtein's distance, from the definition."""
    if not x or not y:
        return len(x) + len(y)
    return min(edits(x[1:], y[1:]) + (x[0] != y[0]), edits(x[1:], y) + 1, edits(x, y[1:]) + 1)


@pytest.mark.parametrize("cheapest", [True, False])
def test_an_alignment_is_the_two_texts_with_blanks_and_the_cheapest_has_fewest_edits(cheapest):
    pairs = [*itertools.product(TEXTS, TEXTS)]
    x0, x1 = (torch.zeros(len(pairs), 3, dtype=torch.int64) for _ in "01")
    for i, pair in enumerate(pairs):
        for x, text in zip((x0, x1), pair):
            x[i, : len(text)] = torch.tensor(text)
    n0, n1 = (torch.tensor([len(pair[k]) for pair in pairs]) for k in (0, 1))
    ways = set()
    for seed in range(3):
        z0, z1 = alignments.align(
            x0, n0, x1, n1, noise.uniform(seed, torch.arange(6)[:, None], torch.arange(225)), cheapest
        )
        for i, (x, y) in enumerate(pairs):
            a, b = z0[i].tolist(), z1[i].tolist()
            assert tuple(t for t in a if t != BLANK) == x and tuple(t for t in b if t != BLANK) == y
            cost = sum(p != q for p, q in zip(a, b))
            assert cost == edits(x, y) if cheapest else cost >= edits(x, y)
        ways.add(tuple(z0.flatten().tolist()))
    assert len(ways) == 3  # where several are as good, chance decides


# ---- the loss, by enumeration --------------------------------------------------------------------------------------


def pairs_of(source):
    """[(probability, z0, z1)] of all alignments that are learnt from: of texts from nothing, or of texts and others."""
    if source == "nothing":
        return [(p, *columns_of(t)) for p, t in zip(DATA, TEXTS)]
    found = []
    for (p, x), (q, y) in itertools.product(zip(DATA, TEXTS), repeat=2):
        x0, x1 = (torch.tensor([[*t, 0]]) for t in (x, y))
        u = torch.full((8, 1), 0.5).double()
        z0, z1 = alignments.align(x0, torch.tensor([len(x)]), x1, torch.tensor([len(y)]), u)
        used = ((z0 != BLANK) | (z1 != BLANK))[0]
        if used.sum() <= 3:
            found.append((p * q, z0[0, used], z1[0, used]))
    total = sum(p for p, *_ in found)
    return [(p / total, a, b) for p, a, b in found]


def states(source, kappa):
    """Every x_t with its probability and the edits that are outstanding: [(p, text, [(kind, place, token)])]."""
    for p, z0, z1 in pairs_of(source):
        for done in itertools.product([False, True], repeat=len(z0)):
            z = [b if d else a for a, b, d in zip(z0.tolist(), z1.tolist(), done)]
            q = p * math.prod(kappa if d else 1 - kappa for d in done)
            left, place = [], 0
            for a, b in zip(z, z1.tolist()):
                place += a != BLANK
                if a != b:
                    left.append((INSERT if a == BLANK else DELETE if b == BLANK else REPLACE, place, b))
            yield q, tuple(t for t in z if t != BLANK), left


def best(source, kappa):
    """The network that knows all: its log counts are those of outstanding edits in expectation, times what the factor
    of the rates, 1 / (1 - kappa + LAST), lacks."""
    mass, count = torch.zeros(15, dtype=torch.float64), torch.zeros(15, 4, 3, V, dtype=torch.float64)
    for q, text, left in states(source, kappa):
        mass[NUMBER[text]] += q
        for kind, place, token in left:
            count[NUMBER[text], place, kind, max(token, 0)] += q
    count = count / mass[:, None, None, None] * (1 - kappa + LAST) / (1 - kappa)
    found = torch.full((1, 15, 4, 2 * V + 3 + 4), -torch.inf).double()
    found[0, ..., :V], found[0, ..., V : 2 * V] = count[:, :, REPLACE].log(), count[:, :, INSERT].log()
    found[0, ..., 2 * V : 2 * V + 3] = count.sum(3).log()
    return found.nan_to_num(neginf=-60.0), mass


def marginal(source, kappa):
    return best(source, kappa)[1]


@pytest.mark.parametrize("source", ["nothing", "typos"])
def test_the_rates_that_the_loss_asks_for_move_the_marginal_as_time_does(source, monkeypatch):
    """d/dkappa p(x) is what flows in less what flows out; and at those rates the loss has no slope."""
    for kappa in (0.2, 0.7):
        said, mass = best(source, kappa)
        flow = torch.zeros(15, dtype=torch.float64)
        for i, text in enumerate(TEXTS):
            for new, rate in moves(said[0, i], text).items():
                if mass[i] * rate > 1e-15:
                    amount = mass[i] * rate / (1 - kappa + LAST)
                    flow[i] -= amount
                    flow[NUMBER[new]] += amount
        h = 1e-5
        slope = (marginal(source, kappa + h) - marginal(source, kappa - h)) / (2 * h)
        torch.testing.assert_close(flow, slope, rtol=1e-6, atol=1e-8)
        net, at = Table(said.clone().requires_grad_()), torch.tensor([kappa], dtype=torch.float64)
        total = sum(
            p * expected(net, z0, z1, at, torch.ones(1).double(), monkeypatch) for p, z0, z1 in pairs_of(source)
        )
        total.backward()
        assert net.table.grad.abs().max() < 1e-8
        worse = Table(said + 0.1 * torch.randn(said.shape, generator=generator(1)).double())
        with torch.no_grad():
            more = sum(
                p * expected(worse, z0, z1, at, torch.ones(1).double(), monkeypatch) for p, z0, z1 in pairs_of(source)
            )
        assert more > total + 1e-4


# ---- the bound, by enumeration -------------------------------------------------------------------------------------


@torch.no_grad()
def test_from_nothing_the_bound_of_the_network_that_knows_all_is_minus_log_p_of_every_text(monkeypatch):
    nats = torch.zeros(15, dtype=torch.float64)
    for kappa, weight in zip(*rates(60)):
        net = Table(best("nothing", kappa.item())[0])
        for i, text in enumerate(TEXTS):
            nats[i] += expected(net, *columns_of(text), kappa[None], weight[None], monkeypatch)
    torch.testing.assert_close(nats, -DATA.log(), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("begin", [(), (1,), (0, 1)])
def test_whatever_a_network_says_the_bound_is_above_minus_log_p_of_its_process(begin, monkeypatch):
    net = Table(table())
    p, (kappas, weights) = law(net.table, begin), pieces()
    assert abs(p.sum() - 1) < 1e-9
    for i, text in enumerate(TEXTS):
        x0, x1 = (torch.tensor([[*t, 0]]) for t in (begin, text))
        u = torch.full((8, 1), 0.5).double()
        z0, z1 = alignments.align(x0, torch.tensor([len(begin)]), x1, torch.tensor([len(text)]), u)
        used = ((z0 != BLANK) | (z1 != BLANK))[0]
        if used.sum() <= 3:
            bound = expected(net, z0[0, used], z1[0, used], kappas, weights, monkeypatch)
            assert -p[i].log() < bound < 60


def test_nelbo_is_unbiased(monkeypatch):
    net, texts = Table(table(2)), torch.tensor([[0, 1, 1], [1, 1, 1], [1, 0, 0]])
    with torch.no_grad():
        exact = [expected(net, *columns_of(t), *pieces(), monkeypatch).item() for t in map(tuple, texts.tolist())]
    monkeypatch.undo()
    monkeypatch.setattr(editflow, "TIMES", 4)
    drawn = editflow.nelbo(net, texts.repeat(3000, 1), mask_id=MASK, seed=4).view(3000, 3)
    assert_mean(drawn.mean(1), sum(exact) / 3)


# ---- samplers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begin", [(), (0, 1)])
def test_one_by_one_edits_follow_the_law_of_the_process_and_leaps_come_to_it(begin):
    net = Table(table(5), "typos")
    exact = law(net.table, begin)

    def drawn(n, **options):
        out = editflow.generate(net, [[*begin]] * n, SampleOptions(3, **options), mask_id=MASK)
        return torch.bincount(torch.tensor([NUMBER[tuple(x.tolist())] for x in out.tokens]), minlength=15)

    assert chi_square(drawn(800, jumps="one"), exact) < 4
    far, near = (distance(drawn(400, steps=n, schedule="linear") / 400, exact) for n in (1, 256))
    assert near < 0.12 and near < 0.7 * far


def test_localised_edits_come_as_the_master_equation_has_it():
    """Two columns: at a rate of 1 by itself, at 1 + spread beside one that is there, in the time -log(1 - kappa)."""
    n, spread = 20000, 3.0
    kappa = torch.full((n, 1), 0.4).double()
    done, speed = editflow.made(kappa, 3, spread, (0, torch.arange(n)[:, None]))
    states = [*itertools.product([0, 1], repeat=3)]
    G = torch.zeros(8, 8, dtype=torch.float64)
    for i, s in enumerate(states):
        for c in range(3):
            if not s[c]:
                beside = sum(s[k] for k in (c - 1, c + 1) if 0 <= k < 3)
                G[i, states.index((*s[:c], 1, *s[c + 1 :]))] = 1 + spread * beside
    G -= torch.diag(G.sum(1))
    p = torch.linalg.matrix_exp(-math.log(0.6) * G)[0]
    assert chi_square(torch.bincount((done.long() * torch.tensor([4, 2, 1])).sum(1), minlength=8), p) < 4
    assert speed[(done == torch.tensor([True, False, True])).all(1), 1].unique().tolist() == [7.0]


def test_rows_are_what_they_are_alone_and_a_trace_is_how_a_text_came_to_be(monkeypatch):
    monkeypatch.setattr(editflow, "TIMES", 64)
    net = transformer(3, 0.3, vocab_size=editflow.rows(9), seq_len=24, source="typos")
    prompts = [torch.tensor(t) for t in ([1, 2, 3, 4, 5], [6], [7, 0, 1, 2, 3, 3, 2])]
    for options in (dict(steps=6), dict(steps=3, temperature=0.0), dict(jumps="one")):
        o = SampleOptions(4, **options)
        both = editflow.generate(net, prompts, o, mask_id=8, trace=True)
        alone = editflow.generate(net, prompts[1:2], o, mask_id=8, numbers=[1])
        assert torch.equal(both.tokens[1], alone.tokens[0]) and both.num_forwards[1] == alone.num_forwards[0]
        for begun, text, events, prompt in zip(both.start, both.tokens, both.trace, prompts):
            now = begun.tolist()
            for _, place, token, p, *what in events:
                assert 0 < p <= 1
                if what == ["insert"]:
                    now.insert(place, token)
                elif what == ["delete"]:
                    assert now.pop(place) == token
                else:
                    now[place] = token
            assert now == text.tolist() and len(text) <= len(prompt) + 4 and 8 not in now


def test_given_tokens_stay_and_holes_are_filled_in():
    net = transformer(3, 0.3, vocab_size=2 * 9 + 3 + 4, seq_len=24)
    prompt = torch.tensor([1, 2, 8, 8, 8, 3, 8, 4])
    for source in ("nothing", "masks", "noise", "typos"):
        net.config.source = source
        text = editflow.generate(net, [prompt], SampleOptions(0, given="stays", steps=8), mask_id=8).tokens[0].tolist()
        assert text[:2] == [1, 2] and text[-1] == 4 and 3 in text[2:-1] and len(text) <= 8
    assert editflow.generate(net, [prompt], SampleOptions(0, given="changes"), mask_id=8).tokens[0][:2].tolist() != [
        1,
        2,
    ]


# ---- training ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["nothing", "masks", "noise", "typos"])
def test_micro_batches_add_up_and_what_a_prompt_holds_is_never_edited(source):
    net = transformer(1, 0.3, vocab_size=2 * 9 + 3 + 4, seq_len=24, source=source)
    x, maskable = torch.randint(0, 8, (5, 12), generator=generator(0)), torch.arange(12).expand(5, 12) > 3
    for o in (LossOptions(prompts=0.5, spread=2.0), LossOptions(schedule="linear", alignment="random", errors=0.5)):
        keys = dict(mask_id=8, seed=7, denominator=30)
        whole = editflow.loss(net, x, o, maskable=maskable, **keys)
        parts = sum(
            editflow.loss(net, x[a:b], o, maskable=maskable[a:b], shard=(a, 5), **keys) for a, b in ((0, 2), (2, 5))
        )
        torch.testing.assert_close(whole, parts)
    other = editflow.log_likelihood(net, [x[0, :4]], [x[0, 4:]], mask_id=8)
    assert other.isfinite().all() and other < 0


def test_what_cannot_be_is_said():
    net = transformer(1, 0.3, vocab_size=2 * 9 + 3 + 4, seq_len=6)
    with pytest.raises(ValueError, match="a text of 7 tokens is longer than the context of 6"):
        editflow.generate(net, [[1] * 7], mask_id=8)
    with pytest.raises(ValueError, match="this is no network of an edit flow"):
        editflow.nelbo(transformer(1, 0.3, vocab_size=12), torch.zeros(1, 4).long(), mask_id=8)
    with pytest.raises(ValueError, match="jumps=one draws the time"):
        SampleOptions(jumps="one", temperature=0.0)
    assert editflow.generate(net, [[]], SampleOptions(0), mask_id=8).tokens[0].tolist() == []
