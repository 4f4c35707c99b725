# %% [markdown]
# # 28 · Groups, advantages, clipped ratios
# *Chapter VI, rewards. 35 minutes. GRPO (arXiv 2402.03300), section 4.1; PPO (1707.06347), eq. 7; DUEL (2603.01367).*
#
# A model writes a **group** of answers to one prompt, and something says what each is worth: $r_1, \ldots, r_G$. No
# right answer is shown. An answer's **advantage** is how much better it is than its group,
#
# $$ A_i = r_i - \bar r, \qquad \text{or, as in GRPO,} \quad A_i = \frac{r_i - \bar r}{s + 10^{-4}} $$
#
# with the mean $\bar r$ and the standard deviation $s$ of the group (a sample's: over G − 1; the $10^{-4}$, which codes
# add, keeps 0 from being divided by 0). Where all are worth the same, all advantages are 0, and nothing is learnt:
# nobody is better than anybody. A reward that could not be had is not a number; that answer is left out: its advantage
# is 0, and mean and deviation are those of the others.
#
# Then log π of the answers with a positive advantage is raised, of the others lowered. Its gradient times A is, on
# average, the gradient of the expected reward. Answers are dear, so several steps are taken on the same ones; behind
# the first, π no longer is what wrote them, and each token counts by the **ratio** $\rho = \pi / \pi_{old}$. So that
# nobody runs away on old answers, what is gained beyond $1 \pm \epsilon$ does not count:
#
# $$ -\min\big(\rho A, \; \mathrm{clip}(\rho, 1 - \epsilon, 1 + \epsilon) A \big) $$
#
# The minimum makes it a one-sided affair: a good token ($A > 0$) that became likelier by more than ε is left alone, and
# so is a bad one that became less likely by more; one that went the *wrong* way is pulled back, however far.
#
# What is log π of a text that was revealed in an order that the model chose? If the order never looks at the tokens
# that are drawn, but at those that stand there (lesson 13: the surest place first), then a finished text says by which
# canvases it was reached, and log π is the sum of log p along that **way**.

# %%
import sys

sys.path += ["exercises", ".", "..", "../.."]  # the course and the project, from wherever this is run

import tiny
import torch

# %% [markdown]
# ## Write


# %%
def advantages(rewards, deviation):
    """Advantages within groups.

    rewards    float64 (P, G), of G answers to each of P prompts; not a number (nan) where a reward failed
    deviation  bool: divide by the group's standard deviation + 1e-4, too. (A group with one reward has deviation 0.)
    returns    float64 (P, G), 0 where a reward failed
    """
    raise NotImplementedError("advantages is yours to write")


def clipped(logp, old, A, eps):
    """What is minimised, of each token.

    logp     float64 (B, L), log π of tokens, as it is now
    old      float64 (B, L), as it was when they were written
    A        float64 (B,), the advantage of each answer
    eps      float, how far a ratio counts
    returns  float64 (B, L)
    """
    raise NotImplementedError("clipped is yours to write")


def log_pi(model, x, mask_id):
    """log π of the text x for the sampler that starts from masks alone and reveals the surest position first, the
    leftmost of equals; how sure the model is of a position is its largest probability there.

    model    a function from canvases int64 (B, L) to logits (B, L, V), whose gradient is asked for; V counts the mask,
             whose logit is set to -inf
    x        int64 (L,), without masks
    returns  float64, a scalar with a gradient (which keeps the canvases it saw: hand the model a clone of yours)
    """
    raise NotImplementedError("log_pi is yours to write")


# %% [markdown]
# ## What one sees
#
# A group of five, then log π of three words of the tiny language; over all words, π adds up to 1.
#
#     [0.6, -0.4, -0.4, 0.6, -0.4]
#     -3.35 -3.74 -4.48
#     1.000000

# %%
if __name__ == "__main__":
    print([round(a, 2) for a in advantages(torch.tensor([[1.0, 0, 0, 1, 0]]).double(), False)[0].tolist()])
    words = [log_pi(tiny.opinions, x, tiny.MASK) for x in tiny.WORDS]
    print(*(f"{w.item():.2f}" for w in words[:3]))
    print(f"{torch.stack(words).exp().sum().item():.6f}")

# %% [markdown]
# In the project: `grpo.advantages`, `grpo.surrogate`, and `grpo.looks`, which has the way from the sampler, so that all
# canvases go through the network at once; `tests/book/test_grpo.py` proves that its gradient is that of the expected
# reward. Published codes do with one canvas: `experiments/policy_gradients.py` measures what that costs.
