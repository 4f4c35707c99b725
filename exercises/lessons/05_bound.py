# %% [markdown]
# # 5 · The loss is an estimate of a bound
# *Chapter II, the bound. 45 minutes. MDLM (arXiv 2406.07524), equation 11, section 3.2.3; LLaDA (2502.09992), eq. 3.*
#
# What is a loss worth? That of an autoregressive model is -log p(x), the number of nats that a code built on the model
# needs for the text, so that two models can be compared. Ours is an expectation over times and masks. MDLM proves that
# it is never below -log p(x), where p(x) is the probability that a sampler using this model, one token at a time in
# random order, writes x: an upper bound, called the NELBO (negative evidence lower bound). Lesson 9 shows why.
#
# $$ -\log p(x_0) \;\le\; \mathcal{L}(x_0) = \int_0^1 \frac{1}{t} \,
#    \mathbb{E}_{q(x_t \mid x_0)} \Big[ \sum_{i \text{ hidden}} -\log p(x_0^i \mid x_t) \Big] dt $$
#
# Training and evaluation draw one t and one mask for a text, and take what is inside: an *estimate*, right on average.
# On a language that can be listed nothing has to be drawn. A set of k of n places is hidden at time t with probability
# $t^k (1-t)^{n-k}$; so all times together give it the weight
#
# $$ \int_0^1 t^{k-1} (1-t)^{n-k} \, dt = \frac{(k-1)!\,(n-k)!}{n!} $$
#
# and the bound is a sum over the $2^n - 1$ sets that are not empty. This is a proof by adding up: if your estimate is
# right, its average over everything that may be drawn is your sum; and for a model that knows the truth, your sum is
# -log p(x) exactly.
#
# One more rule. A network gives logits for all ids, the mask's too. But a hidden token is never a mask: so its logit
# is left out before the softmax (MDLM calls this zero masking probability).

# %%
import sys

import torch

sys.path += ["exercises", ".", "..", "../.."]  # the course and the project, from wherever this is run
import tiny

# %% [markdown]
# A model is a function from canvases, int64 (B, L), to logits (B, L, V). `tiny.py` has a language of 27 words of three
# letters, a model that knows it, `tiny.truth`, and one with opinions, `tiny.opinions`. Read that file first: it is
# short. (For listing sets, `itertools.product`; `math.factorial` is what it says.)
#
# ## Write


# %%
def nll(model, xt, x0, mask_id):
    """-log p(x_0 at i | x_t) at each place i that is hidden in xt, and 0 where nothing is hidden.

    xt, x0   int64 (B, L); xt is x0 with masks
    returns  float64 (B, L); the logit of the mask is left out before the softmax
    """
    raise NotImplementedError("nll is yours to write")


def estimate(model, x0, t, u, mask_id):
    """What is inside of the integral, for one time and one mask of each row: the loss of a training step.

    t        float64 (B,), above 0; the tokens whose u is below it are hidden
    u        float64 (B, L), uniform numbers
    returns  float64 (B,), nats for each row
    """
    raise NotImplementedError("estimate is yours to write")


def bound(model, x0, mask_id):
    """The integral itself: the sum over all sets of hidden places. float64 (B,), nats for each row."""
    raise NotImplementedError("bound is yours to write")


# %% [markdown]
# ## What one sees
#
# For the model that knows the truth the bound is -log p of the language, and its average the entropy. For the one with
# opinions the average is larger: it pays for being wrong. (A single word may get less than the language's -log p: the
# model likes it too much.) The estimates scatter a lot, and now and then one is huge: their variance is infinite, as
# lesson 2 says, so that the number behind +- must not be believed.
#
#     truth    aaa: bound 2.4845, the language's -log p 2.4845, estimates 2.59 +- 0.08
#     truth    abc: bound 3.1458, the language's -log p 3.1458, estimates 3.20 +- 0.09
#     truth    bbb: bound 4.8794, the language's -log p 4.8794, estimates 5.24 +- 0.42
#     truth    on average 2.5280, entropy 2.5280
#     opinions aaa: bound 4.6028, the language's -log p 2.4845, estimates 4.95 +- 0.36
#     opinions abc: bound 4.3941, the language's -log p 3.1458, estimates 4.43 +- 0.11
#     opinions bbb: bound 4.5721, the language's -log p 4.8794, estimates 4.87 +- 0.32
#     opinions on average 4.3020, entropy 2.5280

# %%
if __name__ == "__main__":
    some = [0, 5, 13]
    words = tiny.WORDS[some]
    for name, model in (("truth", tiny.truth), ("opinions", tiny.opinions)):
        exact = bound(model, words, tiny.MASK)
        t, u = (torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n in (2000, 6000))
        for i, word in enumerate(tiny.show(words)):
            drawn = estimate(model, words[[i] * 2000], t, u.view(2000, 3), tiny.MASK)
            text = f"{word}: bound {exact[i]:.4f}, the language's -log p {-tiny.P[some[i]].log():.4f}"
            print(f"{name:8} {text}, estimates {drawn.mean():.2f} +- {drawn.std() / 2000**0.5:.2f}")
        mean = (tiny.P * bound(model, tiny.WORDS, tiny.MASK)).sum()
        print(f"{name:8} on average {mean:.4f}, entropy {tiny.ENTROPY:.4f}")

# %% [markdown]
# In the project: `mdlm.hidden_nll`, `mdlm.loss`, `mdlm.nelbo`. The sum over all sets is `exact_nelbo` in
# `tests/book/toy.py`, which holds them to it.
