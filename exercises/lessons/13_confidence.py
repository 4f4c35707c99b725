# %% [markdown]
# # 13 · Confidence: the surest place first
# *Chapter III, sampling. 30 minutes. EB-Sampler (arXiv 2505.24857), equation 1; LLaDA (2502.09992), algorithm 5.*
#
# Lesson 12 let chance decide which tokens come to light. A sampler may choose. It asks the model about every hidden
# position and reveals first where the model is surest, that is where its most probable token is most probable:
#
# $$ i^* = \arg\max_{i \text{ hidden}} \; \max_v \; p(x_0^i = v \mid x_t) $$
#
# (EB-Sampler, equation 1: the confidence.) The token that is written there is still *drawn*. This is worth a thought.
# Whichever position comes first, the chain rule holds: p(word) = p(first revealed) p(second | first) … So with a model
# that is right, and one token a step, the samples have exactly the distribution of the data, in *any* order, as long
# as the order never looks at the token that was drawn. Two popular habits break this:
#
# - to draw a token for every position, and to keep the one whose own probability is largest: then rare tokens, which
#   are never "sure", are put off until they are drawn as something else;
# - to write the most probable token everywhere (greedy): then all samples are one.
#
# Several tokens a step are a bargain (fewer questions) with a price of its own (lesson 15).

# %%
import sys

sys.path += ["exercises", ".", "..", "../.."]  # the course and the project, from wherever this is run

import tiny
import torch

from nanodlm import noise

# %% [markdown]
# ## Write
#
# To draw is ready, as in lesson 12: `noise.draw(logits, u)` takes logits (N, V), the mask's set to -inf before, and u,
# float64 (N,), and returns the tokens, int64 (N,).


# %%
def surest(p, count):
    """Where the largest are.

    p        float (N,), at least count of them
    count    int; 0 is none of them
    returns  int64 (count,), the indices of the count largest, ascending. Of equal ones those further left are taken
    """
    raise NotImplementedError("surest is yours to write")


def decode(model, x, steps, uniform, mask_id):
    """Fill in the masks of one canvas, the surest first.

    model    a function from canvases int64 (B, L) to logits (B, L, V); ask it anew in every step
    x        int64 (L,), a canvas of tokens and masks; leave it as it is: return a new tensor
    steps    int. Of the n masks of x, step k = 0, 1, …, steps - 1 reveals n // steps, and one more if k < n % steps
    uniform  a function: uniform(k, which) are the random numbers of step k, float64 (L,), one for each position.
             which = 1: for noise.draw, of the tokens that are revealed (which = 0, of lesson 12, is not needed here)
    mask_id  int; its logit is set to -inf, before anything else is done with the logits
    returns  int64 (L,), without masks

    A step reveals the hidden positions whose largest probability of any token is largest, equal ones from left to
    right; the probabilities are the softmax of the logits. The tokens there are drawn.
    """
    raise NotImplementedError("decode is yours to write")


# %% [markdown]
# ## What one sees
#
# Words of the tiny language, where the model is right: which place comes first, and which then, depends on what was
# drawn before. Below, how far the frequencies of 200 words are from the true probabilities, and how many different
# words there are: one token a step; all three in one step; greedy, by logits that are 100 times as large; and 200 words
# that are drawn from the truth itself, to which one token a step comes as near as chance allows.
#
#     ___ → c__ → c_c → cac
#     ___ → c__ → c_b → ccb
#     ___ → c__ → c_b → cbb
#     one a step   0.127 from the truth, 21 different words
#     all at once  0.480 from the truth, 27 different words
#     greedy       0.711 from the truth,  1 different words
#     the truth    0.103 from the truth, 24 different words

# %%
if __name__ == "__main__":

    def sample(model, steps, seed):
        def uniform(k, which):
            return noise.uniform(seed, k, which, torch.arange(3))

        return decode(model, torch.full((3,), tiny.MASK), steps, uniform, tiny.MASK)

    def watched(canvases):
        seen.append(tiny.show(canvases)[0])
        return tiny.truth(canvases)

    for seed in (1, 2, 3):
        seen = []
        word = sample(watched, 3, seed)
        print(" → ".join([*seen, *tiny.show(word[None])]))
    models = {
        "one a step": (tiny.truth, 3),
        "all at once": (tiny.truth, 1),
        "greedy": (lambda x: 100 * tiny.truth(x), 3),
    }
    found = {name: torch.stack([sample(*case, seed) for seed in range(200)]) for name, case in models.items()}
    found["the truth"] = tiny.WORDS[torch.searchsorted(tiny.P.cumsum(0), noise.uniform(1, torch.arange(200)))]
    for name, words in found.items():
        counts = torch.bincount((words * torch.tensor([9, 3, 1])).sum(1), minlength=27)
        far = (counts / 200 - tiny.P).abs().sum() / 2
        print(f"{name:12} {far:.3f} from the truth, {int((counts > 0).sum()):2} different words")

# %% [markdown]
# In the project: `mdlm.surest` and `mdlm.certainty`, and in `mdlm.denoise` the lines that use them.
