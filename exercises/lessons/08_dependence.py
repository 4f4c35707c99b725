# %% [markdown]
# # 8 · Catch a wrong bound
# *Chapter II, the bound. 40 minutes. EDLM (arXiv 2410.21357), MDM-Prime (2505.18495), and their authors' joint note
# "Dependency breaks validity" (chen-hao-chao.github.io/dependency-breaks-validity).*
#
# The network of lesson 5 predicts every hidden token *by itself*: given the visible ones, hidden tokens do not know of
# each other. That looks like a weakness. Two published models mended it: they predict the hidden tokens together, with
# an energy, or in parts, and put what came into the same loss,
#
# $$ \int_0^1 \frac{1}{t} \, \mathbb{E}_{q(x_t \mid x_0)} \big[ -\log p(x_0^{\text{hidden}} \mid x_t) \big] dt . $$
#
# The numbers were splendid, for a successor (MDM-Prime-v2, 2603.16077) a perplexity of 7.77 where an autoregressive
# model had 12.99. Then their authors found that they mean nothing, said so together, and withdrew that paper. You will
# find it in another way: on a language that can be listed, with the *true* probabilities in the place of a network,
# this loss falls below the entropy. No code needs fewer nats than the entropy. So it is no bound.
#
# Why not? The weight 1/t was found by counting each token once, in the moment in which it is revealed (lesson 3), and
# in one moment one token is revealed. What else is hidden then is not known yet. A joint prediction of all hidden
# tokens makes the second one cheap, as the first is known, while the weights were counted for tokens of which each
# knows what is visible, and nothing else.

# %%
import sys

import torch

sys.path += ["exercises", ".", "..", "../.."]  # the course and the project, from wherever this is run
import tiny

# %% [markdown]
# ## Write
#
# A language is given by its words, int64 (N, L), and the probability of each, float64 (N,).


# %%
def product_nll(p, words, x0, hidden):
    """The sum, over the hidden places, of -log p(the letter of x0 there | the visible letters of x0).

    x0      int64 (L,), one of the words
    hidden  bool (L,)
    returns a float64 tensor of no dimension; 0 where nothing is hidden
    """
    raise NotImplementedError("product_nll is yours to write")


def joint_nll(p, words, x0, hidden):
    """-log p(all hidden letters of x0 together | the visible letters of x0). As product_nll."""
    raise NotImplementedError("joint_nll is yours to write")


def expected_loss(p, words, nll):
    """The loss above, averaged over the language's words: a float64 tensor of no dimension.

    nll   product_nll, joint_nll, or another function with the same arguments

    All sets of hidden places that are not empty, with the weights of lesson 5, (k - 1)! (n - k)! / n!.
    """
    raise NotImplementedError("expected_loss is yours to write")


# %% [markdown]
# ## What one sees
#
# First a language of two words, aa and bb: to know one letter is to know the other. Then the tiny one.
#
#     aa, bb  entropy 0.6931   each by itself 0.6931   together 0.3466
#     tiny    entropy 2.5280   each by itself 2.5280   together 2.2215

# %%
if __name__ == "__main__":
    twins = torch.tensor([[0, 0], [1, 1]])
    for name, words, p in (("aa, bb", twins, torch.ones(2).double() / 2), ("tiny", tiny.WORDS, tiny.P)):
        entropy = -(p * p.log()).sum()
        each, together = (expected_loss(p, words, nll) for nll in (product_nll, joint_nll))
        print(f"{name:7} entropy {entropy:.4f}   each by itself {each:.4f}   together {together:.4f}")

# %% [markdown]
# You may train on whatever loss you like; but a number that is to be compared must be a bound, or exact. In the
# project every bound is held to the entropy of a toy so: `tests/book/test_mdlm.py`.
