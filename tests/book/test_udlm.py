"""udlm.py against numbers that can be listed: three letters and a mask, texts of two."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from letters import MASK, K, language, law_of, over_rates, pi_of, q_of, truth
from toy import Net, assert_mean, chi_square, generator, ids, listing, transformer

import bd3lm
import mdlm
import udlm
from model import Config
from nanodlm import noise

L, SHARES, LANGUAGE = 2, [0.0, 0.3, 1.0], language(2)
TEXTS, CANVASES, DATA = listing(K, L), listing(K + 1, L), LANGUAGE.flatten()


class Table(Net):
    """A network given as a table, canvas -> logits (L, 4); one of t where it is a function."""

    def __init__(self, table, **config):
        self.table, self.config = table, Config(vocab_size=K + 1, seq_len=L, **config)

    def __call__(self, ids, mask=None, positions=None, rows=None):
        logits = self.table[(ids * (K + 1) ** torch.arange(L - 1, -1, -1)).sum(1)]
        return logits if rows is None else logits.flatten(0, 1)[rows.flatten()]


def table(seed=0, **config):
    return Table(1.2 * torch.randn(len(CANVASES), L, K + 1, generator=generator(seed)).double(), **config)


def predicted(net):
    """log p of all canvases, (16, L, 4), as the sampler and the bound read the network."""
    return udlm.log_p(net(CANVASES).flatten(0, 1), net.config, MASK).view(-1, L, K + 1)


def integrand(logp, rate, config):
    """What all tokens add to the bound of every text at a rate, canvases by enumeration: (9,)."""
    chance = q_of(torch.eye(K + 1).double(), rate, config.mask_share)[TEXTS[:, None], CANVASES].prod(2)  # (9, 16)
    i, j = (chance > 0).nonzero(as_tuple=True)
    x0, z, r = TEXTS[i].flatten(), CANVASES[j].flatten(), torch.full((len(i) * L,), rate, dtype=torch.float64)
    nats = udlm.token_bound(logp[j].flatten(0, 1), x0, z, r, config, MASK).nan_to_num(0.0)
    if config.mask_share == 1:  # where weight is 0 the rest may be anything
        nats = torch.where(z == MASK, nats, 0.0)
    return torch.zeros(len(TEXTS)).double().index_add_(0, i, nats.view(-1, L).sum(1) * chance[i, j])


def exact_bound(net):
    return over_rates(lambda r: integrand(predicted(net), r, net.config))


@pytest.mark.parametrize("share", SHARES)
def test_a_token_s_bound_is_the_definition(share):
    """sum over y of R' - R + R log(R / R'): the rates of the true reverse process, R, and of the network's, R'."""
    config = Config(vocab_size=K + 1, mask_share=share)
    pi = pi_of(share)
    logp = F.pad(torch.randn(20, K, generator=generator(1)).double().log_softmax(1), (0, 1), value=-torch.inf)
    for rate, x0, z in itertools.product((1e-4, 0.2, 0.7, 0.9999), range(K), range(K + 1)):
        true, ours = (q_of(p, rate, share) for p in (F.one_hot(torch.tensor(x0), K + 1).double(), logp.exp()))
        if pi[z] == 0 or true[z] == 0:
            continue
        r, r_ours = (pi[z] / (1 - rate) * q / q[..., z, None] for q in (true.expand(20, -1), ours))
        terms = r_ours - r + torch.where(r > 0, r * (r / r_ours).log(), 0.0)
        expected = terms[:, torch.arange(K + 1) != z].nan_to_num(0.0).sum(1)
        given = [torch.full((20,), v) for v in (x0, z)]
        found = udlm.token_bound(logp, *given, torch.full((20,), rate, dtype=torch.float64), config, MASK)
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("share", SHARES)
def test_it_is_a_bound_of_the_process_that_it_defines(share):
    net = table(2, mask_share=share)
    law, bound = law_of(lambda r: predicted(net), share), exact_bound(net)
    assert abs(law.sum() - 1) < 1e-3
    assert (bound > -law.log() - 1e-3).all() and (bound + law.log()).max() > 0.01


@pytest.mark.parametrize("share", SHARES)
def test_the_best_answer_leaves_out_the_token_itself(share):
    """Its bound is the entropy, so that no term is missing (at t = 0, or t = 1), and its process is the data; the
    posterior's is worse, but where all noise is masks, which say nothing of themselves."""
    config = Config(vocab_size=K + 1, mask_share=share)
    entropy = -(DATA * DATA.log()).sum()
    others = over_rates(lambda r: integrand(truth(LANGUAGE, r, share, False), r, config))
    posterior = over_rates(lambda r: integrand(truth(LANGUAGE, r, share, True), r, config))
    torch.testing.assert_close((DATA * others).sum(), entropy, rtol=1e-5, atol=0)
    assert (DATA * posterior).sum() > entropy + 0.5 if share < 1 else torch.allclose(others, posterior)
    torch.testing.assert_close(law_of(lambda r: truth(LANGUAGE, r, share, False), share), DATA, rtol=0, atol=1e-3)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_estimates_have_the_bound_s_mean(share):
    net, x0 = table(3, mask_share=share), TEXTS[[1, 5]]
    exact = exact_bound(net)[[1, 5]]
    found = udlm.nelbo(net, x0.repeat(4000, 1), mask_id=MASK, samples=2, seed=3).view(-1, 2)
    for i in range(2):
        assert_mean(found[:, i], exact[i].item())
    for schedule, spread in (("linear", True), ("poly2", False)):
        o = udlm.LossOptions(schedule=schedule, low_discrepancy=spread)
        each = [udlm.loss(net, x0.repeat(500, 1), o, mask_id=MASK, seed=i) * L for i in range(60)]
        assert_mean(torch.stack(each), exact.mean().item())


def test_blocks_are_bounded_one_after_the_other():
    """Blocks of one: the second token's network has read the first one, clean, and its own noise."""
    net = transformer(0, 0.8, vocab_size=K + 1, seq_len=L, block_size=1)
    x0, seen = TEXTS[[1, 5, 6]], torch.ones(L, L).tril().bool()[None]

    def at(rate):
        total = torch.zeros(3).double()
        for i, z in itertools.product(range(L), range(K)):
            xt = x0.clone()
            xt[:, i] = z
            logits, r = net(xt, mask=seen)[:, i], torch.full((3,), rate, dtype=torch.float64)
            nats = udlm.token_bound(udlm.log_p(logits, net.config, MASK), x0[:, i], xt[:, i], r, net.config, MASK)
            total += q_of(torch.eye(K + 1).double(), rate, 0.0)[x0[:, i], z] * nats
        return total

    exact = over_rates(at, 60)
    found = udlm.nelbo(net, x0.repeat(3000, 1), mask_id=MASK, seed=1).view(-1, 3)
    for i in range(3):
        assert_mean(found[:, i], exact[i].item())
    o = udlm.LossOptions(block_size=1)
    each = [udlm.loss(net, x0.repeat(500, 1), o, mask_id=MASK, seed=i) * L for i in range(24)]
    assert_mean(torch.stack(each), exact.mean().item())


def ancestral_law(net, o):
    """The law of the ancestral sampler over canvases: a step by its definition (GIDD), each token by itself."""
    share, eye = net.config.mask_share, torch.eye(K + 1).double()
    now = pi_of(share)[CANVASES].prod(1)
    for step in range(o.steps):
        t, s = (1 - torch.tensor((step + i) / o.steps).double() for i in (0, 1))
        t, s = (mdlm.mask_rate(x, o.schedule)[0].item() for x in (t, s))
        p = (predicted(net) / o.temperature).softmax(-1)
        q_s, q_t = q_of(p, s, share), q_of(p, t, share)
        keep = (1 - t) / (1 - s)
        z = CANVASES[..., None]
        came = keep * eye[CANVASES] + (1 - keep) * pi_of(share)[CANVASES][..., None]  # q(z | y) of all y
        each = came * q_s / q_t.gather(2, z)
        each = torch.where(q_t.gather(2, z) > 0, each, eye[CANVASES])
        each = (1 - o.forget) * each + o.forget * q_s
        now = now @ torch.stack([each[:, i, CANVASES[:, i]] for i in range(L)]).prod(0)
    return now[(CANVASES < MASK).all(1)]


@pytest.mark.parametrize("share,forget,schedule", [(0.0, 0.0, "linear"), (0.3, 0.0, "poly2"), (0.3, 0.5, "linear")])
def test_the_sampler_s_law(share, forget, schedule):
    net = table(4, mask_share=share)
    o = udlm.SampleOptions(L, steps=3, forget=forget, schedule=schedule, temperature=0.8)
    law = ancestral_law(net, o)
    torch.testing.assert_close(law.sum(), torch.ones(()).double())
    made = udlm.generate(net, [ids()] * 600, o, mask_id=MASK).tokens
    counts = torch.bincount((torch.stack(made) * torch.tensor([K, 1])).sum(1), minlength=K**L)
    assert chi_square(counts, law) < 4


def test_many_steps_come_to_the_process_that_is_bounded():
    net = table(2, mask_share=0.3)
    near, far = (ancestral_law(net, udlm.SampleOptions(L, steps=n)) for n in (400, 8))
    law = law_of(lambda r: predicted(net), 0.3)
    assert (near - law).abs().max() < 2e-3 < (far - law).abs().max()


# ---- masks alone are mdlm.py -----------------------------------------------------------------------------------------

NET = transformer(0, 0.35, mask_share=1.0)
IDS = torch.randint(0, 11, (4, 12), generator=generator(7))


@pytest.mark.parametrize(
    "options", [{}, dict(schedule="cosine"), dict(t_shape="bell", t_min=0.1), dict(low_discrepancy=False)]
)
def test_a_share_of_one_has_mdlm_s_loss_and_bound(options):
    maskable = torch.rand(4, 12, generator=generator(8)) < 0.8
    keys = dict(mask_id=11, maskable=maskable, seed=3)
    found, expected = (m.loss(NET, IDS, m.LossOptions(**options), **keys) for m in (udlm, mdlm))
    torch.testing.assert_close(found, expected)
    o = udlm.LossOptions(block_size=4, **options)
    found, expected = (
        udlm.loss(NET, IDS, o, **keys),
        bd3lm.loss(NET, IDS, bd3lm.LossOptions(block_size=4, **options), **keys),
    )
    torch.testing.assert_close(found, expected)
    assert torch.equal(*(m.nelbo(NET, IDS, mask_id=11, samples=2) for m in (udlm, mdlm)))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_share_of_one_writes_mdlm_s_tokens(temperature):
    prompts = [ids(1, 2), ids(3, 11, 4, 11), ids()]
    given = dict(max_new_tokens=8, quota="ancestral", steps=5, temperature=temperature, seed=2)
    found, expected = (m.generate(NET, prompts, m.SampleOptions(**given), mask_id=11).tokens for m in (udlm, mdlm))
    assert all(map(torch.equal, found, expected))


# ---- what a caller sees ----------------------------------------------------------------------------------------------


def test_noise_is_of_ids_in_use_and_never_the_mask():
    config = Config(vocab_size=12, noise_ids=9, mask_share=0.25)
    found = udlm.replacement(noise.uniform(0, torch.arange(4000)), config, 5)
    counts = torch.bincount(found, minlength=12)
    p = torch.tensor([0.75 / 8] * 5 + [0.25] + [0.75 / 8] * 3 + [0.0] * 3).double()
    assert chi_square(counts, p) < 4
    logits = torch.zeros(1, 12)
    assert (udlm.log_p(logits, config, 5).exp()[0] > 0).tolist() == (p > 0).tolist()[:5] + [False] + [True] * 3 + [
        False
    ] * 3


@pytest.mark.parametrize("quota", ["ancestral", "entropy_bound"])
@pytest.mark.parametrize("size", [0, 4])
def test_given_tokens_stay_and_no_hole_does(quota, size):
    net = transformer(3, 0.5, block_size=size, mask_share=0.2)
    prompts = [ids(1, 2, 3), ids(4, 11, 6, 11, 8), ids()]
    o = udlm.SampleOptions(6, steps=7, quota=quota)
    out = udlm.generate(net, prompts, o, mask_id=11, trace=True)
    for prompt, tokens, forwards, events in zip(prompts, out.tokens, out.num_forwards, out.trace):
        given = prompt != 11
        assert torch.equal(tokens[: len(prompt)][given], prompt[given])
        assert len(tokens) == len(prompt) + 6 and (tokens != 11).all()
        assert forwards <= 7 * (-(-len(tokens) // size) if size else 1) and events
        last = {at: token for _, at, token, _ in events}
        assert all(tokens[at] == token for at, token in last.items())
    alone = udlm.generate(net, prompts[1:2], o, mask_id=11, numbers=ids(1)).tokens[0]
    assert torch.equal(alone, out.tokens[1])


def test_a_table_of_the_truth_writes_the_truth():
    """Entropy bound: what is sure is kept, the rest noise again, until nothing changes."""
    net = Table(torch.full((len(CANVASES), L, K + 1), -30.0).double())
    net.table[:, torch.arange(L), ids(2, 1)] = 0.0
    out = udlm.generate(net, [ids()], udlm.SampleOptions(L, quota="entropy_bound", steps=20), mask_id=MASK)
    assert out.tokens[0].tolist() == [2, 1] and out.num_forwards == [2]  # the second forward sees that it is stable


@pytest.mark.parametrize(
    "options,said",
    [
        (dict(corruption="count"), "corruption=count is of masks"),
        (dict(complementary=True), "complementary=True is of masks"),
        (dict(block_size=2, see_ahead=0.5), "growing"),
    ],
)
def test_options_that_mean_nothing_here(options, said):
    with pytest.raises(ValueError, match=said):
        udlm.LossOptions(**options)


def test_packed_texts_have_the_loss_of_rows_of_their_own():
    from nanodlm.batches import Texts

    x0 = torch.randint(0, 11, (2, 6), generator=generator(1))
    number, position = torch.arange(2).repeat_interleave(6)[None], torch.arange(6).repeat(2)[None]
    packed = Texts(number, position, 0, 2, 2, 6, True)
    for net in (transformer(2, 0.3), transformer(2, 0.3, mask_share=0.5)):
        for size in (0, 3):
            o = udlm.LossOptions(block_size=size)
            one = udlm.loss(net, x0.flatten()[None], o, mask_id=11, seed=4, texts=packed)
            torch.testing.assert_close(one, udlm.loss(net, x0, o, mask_id=11, seed=4))
