"""What is called from Python, as in a notebook: a network that is still training is evaluated without dropout, texts
may be lists, and what does not fit is one sentence."""

import pytest
import torch

import ar
import bd3lm
import mdlm
from model import Config, Transformer
from nanodlm import fast_bd3lm, fast_mdlm

ALGORITHMS = [mdlm, bd3lm, ar, fast_mdlm, fast_bd3lm]
MASK = 20
PROMPTS, TARGETS = [[1, 2, 3], [], [4]], [[5, 6], [7], [8, 9, 10]]
every = pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: a.__name__)


def network(algorithm, dropout=0.3):
    torch.manual_seed(0)
    shape = dict(vocab_size=21, seq_len=16, block_size=4, n_layer=2, n_head=2, n_embd=32)
    model = Transformer(Config(**shape, causal=algorithm.CAUSAL, dropout=dropout))
    model.blocks[0].eval()  # a part of it is frozen
    return model


def answers(algorithm, model, prompts=PROMPTS, targets=TARGETS):
    """What its functions say, all of them."""
    x = torch.arange(16).view(2, 8)
    options = algorithm.LikelihoodOptions(**({} if algorithm is ar else {"mc_samples": 3}))
    generated = algorithm.generate(model, prompts, algorithm.SampleOptions(max_new_tokens=6), mask_id=MASK)
    bound = algorithm.nelbo(model, x, mask_id=MASK, samples=2)
    logp = algorithm.log_likelihood(model, prompts=prompts, targets=targets, options=options, mask_id=MASK)
    return [*(t.tolist() for t in generated.tokens), bound.tolist(), logp.tolist()]


@every
def test_a_network_that_is_training_is_evaluated_and_goes_on_training(algorithm):
    model = network(algorithm)
    expected = answers(algorithm, network(algorithm).eval())
    before = {name: m.training for name, m in model.named_modules()}
    assert answers(algorithm, model) == expected
    with pytest.raises((ValueError, IndexError)):
        algorithm.nelbo(model, torch.full((1, 4), 99), mask_id=MASK)
    assert {name: m.training for name, m in model.named_modules()} == before and {*before.values()} == {True, False}
    assert torch.is_grad_enabled() and not model.embed.weight.grad


@every
def test_texts_may_be_lists_or_rows_of_a_table(algorithm):
    model = network(algorithm)
    lists = answers(algorithm, model)
    assert lists == answers(algorithm, model, *([torch.tensor(x).long() for x in xs] for xs in (PROMPTS, TARGETS)))
    table = torch.tensor([[1, 2], [3, 4]])
    assert answers(algorithm, model, table, table) == answers(algorithm, model, table.tolist(), table.int())


@every
@pytest.mark.parametrize("prompts", [[1, 2], ["ab"], torch.tensor([1, 2]), [[[1, 2]]], [[0.5]], [[True]], [[1, [2]]]])
def test_what_is_no_text_is_one_sentence(algorithm, prompts):
    for call in (algorithm.generate, lambda *a, **k: algorithm.log_likelihood(*a[:2], TARGETS, **k)):
        with pytest.raises(ValueError, match="^prompts are texts, each a row of ids, .*; one here is [^\n]*$"):
            call(network(algorithm), prompts, mask_id=MASK)


class Bag(torch.nn.Module):
    """A network of one's own: it predicts everywhere what the mean of all tokens says."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = torch.nn.Embedding(21, 8), torch.nn.Linear(8, 21)

    def forward(self, ids, mask=None, positions=None, rows=None):
        logits = self.out(self.embed(ids).mean(1, keepdim=True)).expand(-1, ids.shape[1], -1).flatten(0, 1)
        return logits if rows is None else logits[rows]


def test_a_network_of_ones_own_works_or_is_told_what_it_lacks():
    assert answers(mdlm, Bag())
    lacks = {bd3lm: "block_size", ar: "cache", fast_mdlm: "hidden", fast_bd3lm: "hidden"}
    for algorithm, what in lacks.items():
        with pytest.raises(ValueError, match=f"^Bag has no .*{what}; see model.Transformer"):
            algorithm.generate(Bag(), PROMPTS, mask_id=MASK)
    with pytest.raises(ValueError, match="^Linear.forward takes no rows; see model.Transformer.forward$"):
        mdlm.nelbo(torch.nn.Linear(2, 2), torch.zeros(1, 2).long(), mask_id=MASK)
