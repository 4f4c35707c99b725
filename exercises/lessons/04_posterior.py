# %% [markdown]
# # 4 · The way back: q(x_s | x_t, x_0), and why a revealed token stays
# *Chapter I, the process. 30 minutes. MDLM (arXiv 2406.07524), equations 6 and 7; D3PM (2107.03006) for other noise.*
#
# The process hides more and more. To sample, we go back: from time t to an earlier time s < t. If we knew the clean
# text x_0, what would x_s be? Bayes' rule says it, for each token by itself:
#
# $$ q(x_s \mid x_t, x_0) = \frac{q(x_t \mid x_s)\, q(x_s \mid x_0)}{q(x_t \mid x_0)} $$
#
# Each token is in one of two states, clean or masked. From s to t, a clean token stays clean with probability
# α(t)/α(s), since α(t) = α(s) · α(t)/α(s); a masked one stays masked for good. Fill that in, and two things come out:
#
# - A token that is **clean** in x_t was clean in x_s: nothing ever comes back by itself. Going backwards: what is
#   revealed stays, forever. This is why a sampler never changes its mind (unless one makes it, lesson 16).
# - A token that is **masked** in x_t is clean in x_s with a probability that depends on the two times alone, and not
#   on the token. So which texts are possible, given x_t, and how likely each is, does not depend on t either: q(x_t |
#   x_0) is the same number, α(t)^(clean) · (1 − α(t))^(masked), for every text that agrees with what is visible. This
#   is why a network needs not be told the time.
#
# Work the second one out on paper first.

# %%
import torch

# %% [markdown]
# ## Write


# %%
def posterior(alpha_s, alpha_t):
    """q(x_s | x_t, x_0) for the two states of a token, 0 clean and 1 masked.

    alpha_s, alpha_t  floats: the probabilities of being clean at times s < t, 1 >= alpha_s > alpha_t >= 0
    returns           float64 (2, 2): row = the state in x_t, column = the state in x_s; each row sums to 1.
                      Where alpha_t = 0 nothing is clean in x_t, and Bayes gives 0/0 for row 0: there, too, it is [1, 0]
    """
    raise NotImplementedError("posterior is yours to write")


def back(xt, x0, alpha_s, alpha_t, u, mask_id):
    """Draw x_s given x_t and x_0: a masked token is revealed where its u is below the probability of that.

    xt, x0   int64 (B, L), xt is x0 with masks
    u        float64 (B, L), uniform numbers
    returns  int64 (B, L), x_s
    """
    raise NotImplementedError("back is yours to write")


# %% [markdown]
# ## What one sees
#
# From the empty canvas at t = 1 back to the text in five steps of the linear schedule (this is how a sampler works,
# except that it has to guess x_0):
#
#     t = 1.0 -> 0.8   t__ __i___b____ f__ __m__ _____the _a______
#     t = 0.8 -> 0.6   t__ __i___b____ fo_ j_mp_ ove__the la_y___g
#     t = 0.6 -> 0.4   t__ __ic__b_ow_ fo_ jump_ ove_ the la_y___g
#     t = 0.4 -> 0.2   t_e quick_b_ow_ fox jump_ ove_ the lazy dog
#     t = 0.2 -> 0.0   the quick brown fox jumps over the lazy dog

# %%
if __name__ == "__main__":
    x0 = torch.tensor([list(b"the quick brown fox jumps over the lazy dog")])
    x, steps = torch.full_like(x0, ord("_")), 5
    generator = torch.Generator().manual_seed(3)
    for step in range(steps):
        t, s = 1 - step / steps, 1 - (step + 1) / steps
        u = torch.rand(x.shape, generator=generator, dtype=torch.float64)
        x = back(x, x0, 1 - s, 1 - t, u, ord("_"))
        print(f"t = {t:.1f} -> {s:.1f}   {bytes(x[0].tolist()).decode()}")

# %% [markdown]
# In the project: `quota="ancestral"` in `mdlm.denoise`, with the probability that you found.
