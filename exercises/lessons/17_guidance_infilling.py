# %% [markdown]
# # 17 · Infilling and guidance
# *Chapter III, sampling. 30 minutes. LLaDA (arXiv 2502.09992), equation 16; classifier-free guidance: 2207.12598.*
#
# A model that reads left to right can only go on writing. A diffusion model fills holes wherever they are: a canvas is
# what is given and masks, in any places, and each hole sees what stands on both sides of it. Nothing has to be added
# for that. What is given stays, and the masks are revealed as in lesson 13.
#
# What is given should have its say, and can be given more of it than the model thinks right. Ask twice: about the
# canvas, and about the same canvas in which what was given is masked, too. Where the first answer differs from the
# second, that is the doing of what was given. Go further in that direction:
#
# $$ \ell = \ell_{uncond} + (w + 1) \, (\ell_{cond} - \ell_{uncond}) $$
#
# (LLaDA, equation 16, on logits $\ell$, with the scale w.) Mind the convention: in LLaDA's, w = 0 is the model itself,
# and w = -1 does not know what was given. Others write w for what is w + 1 here.
#
# With w > 0 the samples have no longer the model's distribution: they are more typical of what was given, and less
# various. Each step costs two questions.

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
def guide(cond, uncond, scale):
    """Guided logits, as in the equation above.

    cond     float, any shape, logits of the canvas; uncond the same, of the canvas without what was given
    scale    float, w: 0 gives cond
    returns  float, the same shape
    """
    raise NotImplementedError("guide is yours to write")


def without_prompt(x, given, mask_id):
    """A canvas in which what was given is masked, and what was revealed since then stays.

    x        int64 (L,), a canvas; leave it as it is: return a new tensor
    given    bool (L,), what was no mask in the beginning
    returns  int64 (L,)
    """
    raise NotImplementedError("without_prompt is yours to write")


def infill(model, x, scale, uniform, mask_id):
    """Fill the holes of a canvas, one token a step, the surest hole first, with guidance.

    model    a function from canvases int64 (B, L) to logits (B, L, V); ask it anew in every step
    x        int64 (L,), a canvas of tokens and masks; leave it as it is: return a new tensor. What is no mask is given
    scale    float, for guide
    uniform  a function: uniform(k, which) are the random numbers of step k = 0, 1, …, float64 (L,), one for each
             position. which = 1: for noise.draw, of the token that is revealed
    mask_id  int
    returns  int64 (L,), without masks

    In a step: guide the logits of the canvas by those of the canvas without what was given. Then set the mask's own
    logit to -inf (then, and not before: -inf minus -inf is no number). Of the hidden places the one goes first whose
    largest probability of any token, the softmax of these logits, is largest; of equal ones the leftmost. Its token is
    drawn from the same logits.
    """
    raise NotImplementedError("infill is yours to write")


# %% [markdown]
# ## What one sees
#
# The tiny language. First the middle of a_a, a_b and a_c, where both sides matter: how often each letter was written
# there in 300 samples, and in brackets how often it should be. Then the probabilities of the letter behind c, with
# more and more guidance: what c makes more probable than it is anyway (scale -1) becomes more probable still.
#
#     a_a   a 0.45 (0.40)   b 0.07 (0.06)   c 0.48 (0.53)
#     a_b   a 0.17 (0.16)   b 0.68 (0.69)   c 0.15 (0.15)
#     a_c   a 0.19 (0.17)   b 0.72 (0.75)   c 0.09 (0.07)
#     c__   scale -1.0   a 0.42   b 0.41   c 0.17
#     c__   scale  0.0   a 0.32   b 0.61   c 0.06
#     c__   scale  1.0   a 0.21   b 0.77   c 0.02
#     c__   scale  3.0   a 0.07   b 0.93   c 0.00

# %%
if __name__ == "__main__":

    def sample(canvas, scale, seed):
        def uniform(k, which):
            return noise.uniform(seed, k, which, torch.arange(3))

        return infill(tiny.truth, torch.tensor(canvas), scale, uniform, tiny.MASK)

    for last in range(3):
        canvas = [0, tiny.MASK, last]
        words = torch.stack([sample(canvas, 0.0, seed) for seed in range(300)])
        p = tiny.truth(torch.tensor([canvas]))[0, 1, :3].softmax(0)
        found = [f"{'abc'[i]} {(words[:, 1] == i).double().mean():.2f} ({p[i]:.2f})" for i in range(3)]
        print(*tiny.show(torch.tensor([canvas])), *found, sep="   ")
    x = torch.tensor([2, tiny.MASK, tiny.MASK])
    blank = without_prompt(x, x != tiny.MASK, tiny.MASK)
    for scale in (-1.0, 0.0, 1.0, 3.0):
        p = guide(tiny.truth(x[None]), tiny.truth(blank[None]), scale)[0, 1, :3].softmax(0)
        print(f"{tiny.show(x[None])[0]}   scale {scale:4}   " + "   ".join(f"{'abc'[i]} {p[i]:.2f}" for i in range(3)))

# %% [markdown]
# In the project: `decode.guide` and `decode.states`; `mdlm.generate` fills the masks of a prompt in the same way.
