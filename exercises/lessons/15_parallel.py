# %% [markdown]
# # 15 · In parallel: the price of independence
# *Chapter III, sampling. 30 minutes. MDLM (arXiv 2406.07524), section 4.1; Discrete Copula Diffusion (2410.01949).*
#
# A diffusion model may reveal several tokens in one step, that is after one question to the network. But the network
# answers for each place by itself: it says how probable each letter is here, and there, not which letters go together.
# So the tokens of one step are drawn independently of each other, given what was revealed in earlier steps. Let $G_1,
# G_2, \dots$ be the groups of places that are revealed one after the other. What comes out has the distribution
#
# $$ q(x) = \prod_k \prod_{i \in G_k} p(x^i \mid x^j, \; j \in G_1 \cup \dots \cup G_{k-1}) $$
#
# Even when every factor is right, q is not the truth P. How far it is away is measured by the Kullback-Leibler
# divergence, in nats: the code length that is wasted by believing q.
#
# $$ KL(P \,\|\, q) = \sum_x P(x) \log \frac{P(x)}{q(x)} $$
#
# With one place a group, q = P by the chain rule, and the price is 0. With all places in one group, q is the product
# of the marginals, and the price has a name, *total correlation*: the sum of the entropies of the places, less the
# entropy of the whole,
#
# $$ TC = \sum_i H(x^i) - H(x), \qquad H(x) = - \sum_x P(x) \log P(x) $$
#
# In a language that can be listed all of this is a sum. No sampling is needed.

# %%
import sys

sys.path += ["exercises", ".", "..", "../.."]  # the course and the project, from wherever this is run

import tiny
import torch

# %% [markdown]
# ## Write


# %%
def law(model, words, groups, mask_id):
    """How probable each word is to be written, when groups of places are revealed one after the other.

    model    a function from canvases int64 (B, L) to logits (B, L, V), which include the mask's own: set it to -inf
             before the softmax, as the mask is never written
    words    int64 (N, L), words without masks
    groups   a list of lists of places, such as [[1], [0, 2]]: first place 1, then 0 and 2 together. Every place from 0
             to L - 1 is in exactly one of them. At the beginning all places are masks; the model is asked once a group
    mask_id  int
    returns  float64 (N,), probabilities
    """
    raise NotImplementedError("law is yours to write")


def kl(p, q):
    """The Kullback-Leibler divergence of q from p in nats, the sum of p log(p / q). Where p is 0 the summand is 0.

    p, q     float64 (N,), probabilities, q above 0
    returns  float64 (), a number
    """
    raise NotImplementedError("kl is yours to write")


def total_correlation(p, words):
    """The sum of the entropies of the places, less the entropy of the words, in nats.

    p        float64 (N,), the probability of each word, all above 0
    words    int64 (N, L), all different
    returns  float64 (), a number
    """
    raise NotImplementedError("total_correlation is yours to write")


# %% [markdown]
# ## What one sees
#
# The tiny language with a model that is right. Groups, how many questions they take, and the price in nats.
#
#     [[0, 1, 2]]      questions 1, price 0.5873
#     [[0], [1, 2]]    questions 2, price 0.2535
#     [[1], [0, 2]]    questions 2, price 0.2241
#     [[2], [0, 1]]    questions 2, price 0.1869
#     [[2], [0], [1]]  questions 3, price 0.0000
#     total correlation 0.5873, entropy of the language 2.5280
#
# To split a group makes it cheaper, for a model that is right. And it matters which places share a group: two that say
# little about each other are cheap.

# %%
if __name__ == "__main__":
    for groups in ([[0, 1, 2]], [[0], [1, 2]], [[1], [0, 2]], [[2], [0, 1]], [[2], [0], [1]]):
        price = kl(tiny.P, law(tiny.truth, tiny.WORDS, groups, tiny.MASK))
        print(f"{groups!s:16} questions {len(groups)}, price {abs(price):.4f}")
    whole = torch.special.entr(tiny.P).sum()  # entr is -p log p
    print(f"total correlation {total_correlation(tiny.P, tiny.WORDS):.4f}, entropy of the language {whole:.4f}")

# %% [markdown]
# In the project: `mdlm.log_likelihood`, whose exact methods reveal one token a step, and `law` in `tests/book/toy.py`.
