# %% [markdown]
# # 2 · Exact counts, and why the weight is n/k
# *Chapter I, the process. 30 minutes. LLaDA (arXiv 2502.09992), equation 6 and algorithm 3.*
#
# Hiding each token by itself, as in lesson 1, hides sometimes many tokens and sometimes few, even at the same t. That
# is noise in a loss, and needless. Instead draw a count: k uniform in {1, …, n}, where n is the number of tokens that
# may be hidden, and hide exactly k of them, every choice of k places being as likely.
#
# Is that the same? The loss at rate t weighs what is hidden by 1/t (lesson 3 says why). How much weight does it put on
# masks that hide exactly k tokens, all times together? For k of at least 1, an integral that is known (Euler's beta
# function) says
#
# $$ \int_0^1 \frac{1}{t} \binom{n}{k} t^k (1-t)^{n-k} \, dt = \frac{1}{k}. $$
#
# A draw of k gives each count the chance 1/n. To put the weight 1/k on it, what is hidden has to be weighed by n/k.
# Same expectation, far less noise. With rates the variance is even infinite: a row of which by chance one token is
# hidden at a t near 0 weighs 1/t. With counts nothing weighs more than n.
#
# How does one choose k of n places, all choices alike, from uniform numbers? Give each place its own, and take the
# places with the k smallest.

# %%
import torch

# %% [markdown]
# ## Write


# %%
def draw_count(n, u):
    """A count k, uniform in 1…n, for each row: one n-th of all u for each count, the smallest u for the smallest.

    n        int64 (B,), at least 1
    u        float64 (B,), uniform numbers strictly between 0 and 1
    returns  int64 (B,)
    """
    raise NotImplementedError("draw_count is yours to write")


def hide(k, u, maskable):
    """Exactly k[b] of the maskable tokens of row b: those with the smallest u.

    k         int64 (B,), from 0 to the number of maskable tokens of the row
    u         float64 (B, L), all different
    maskable  bool (B, L)
    returns   bool (B, L), what is hidden
    """
    raise NotImplementedError("hide is yours to write")


def weight(k, maskable):
    """The weight of what is hidden where k of the n maskable tokens of a row are.

    k        int64 (B,), at least 1
    returns  float64 (B,)
    """
    raise NotImplementedError("weight is yours to write")


# %% [markdown]
# ## What one sees
#
# The question (in capitals) is never hidden, and n counts only what may be.
#
#     TWO AND TWO? fou_   k = 1   weight 4.000
#     TWO AND TWO? fo__   k = 2   weight 2.000
#     TWO AND TWO? _o__   k = 3   weight 1.333
#     TWO AND TWO? ____   k = 4   weight 1.000

# %%
if __name__ == "__main__":
    text = "TWO AND TWO? four"
    x = torch.tensor([list(text.encode())] * 4)
    maskable = (torch.arange(len(text)) > 12).expand(4, -1)
    generator = torch.Generator().manual_seed(0)
    k = draw_count(maskable.sum(1), torch.tensor([0.1, 0.3, 0.6, 0.9]).double())
    hidden = hide(k, torch.rand(4, len(text), generator=generator, dtype=torch.float64), maskable)
    for row, count, w in zip(torch.where(hidden, ord("_"), x), k, weight(k, maskable)):
        print(f"{bytes(row.tolist()).decode()}   k = {count}   weight {w:.3f}")

# %% [markdown]
# In the project: `mdlm.hide_by_count`, and `mdlm.nelbo_masks`, which draws masks so for the bound.
