# %% [markdown]
# # 10 · Six ways to be wrong about bits per byte: the first three
# *Chapter II, the bound. 40 minutes. The cases are public: pull requests of openai/parameter-golf, in the spring of
# 2026.*
#
# Models with different tokenizers are compared in bits per byte, what a code built on the model needs for a byte of
# text:
#
# $$ \text{bits per byte} = \frac{\sum \text{nats}}{\ln 2 \cdot \text{number of bytes}} $$
#
# A contest for small language models ranked its entries by this number. Masked diffusion models entered, and some of
# their numbers were far too good. Nobody cheated; each was one small mistake, of which there are six. Three here,
# three in the next lesson.
#
# **1 · The unit.** Pull request 1106 reported 1.1465, ahead of the autoregressive baseline's 1.2244. Its code had nats
# per token, and divided by 4.3 bytes per token, a number that was written in, true of another tokenizer. Count the
# bytes of the text that was measured, instead; and bytes are not characters.
#
# **2 · One rate.** The bound is an integral over t. Pull requests 905 and 1053 measured at a single mask rate. At a
# low rate nearly everything is visible, and what is hidden is easy. What one such rate has, in expectation, is
#
# $$ g(t) = \frac{1}{t} \sum_{S} t^{|S|} (1-t)^{n-|S|} \; \mathrm{CE}(S), $$
#
# over all sets S of hidden places, and only its integral over t is the bound.
#
# **3 · A few rates.** Pull request 1596 took the mean over t = 0.1, 0.3, 0.5, 0.7, 0.9 and said that it approximates
# the bound. That is the smallest of the six mistakes: five midpoints in the place of an integral are close where g is
# smooth. But they may be above it or below, nobody knows by how much, and other rates would give another number; what
# is compared in the second decimal has to be a bound, with a standard error.

# %%
import math
import sys

import torch

sys.path += ["exercises", ".", "..", "../.."]  # the course and the project, from wherever this is run
import tiny


def ce(model, x0, hidden, mask_id):
    """The summed cross entropy of the hidden places, as in lesson 5: float64 (B,). x0 (B, L), hidden bool (L,)."""
    logits = model(torch.where(hidden, mask_id, x0)).double().index_fill(2, torch.tensor([mask_id]), -torch.inf)
    nll = -logits.log_softmax(-1).gather(2, x0[..., None])[..., 0]
    return torch.where(hidden, nll, 0.0).sum(1)


# %% [markdown]
# `ce` is given: you wrote it in lesson 5.
#
# ## Write


# %%
def bits_per_byte(nats_per_token, num_tokens, text):
    """Bits per byte of a text, a str, whose num_tokens tokens cost nats_per_token each, on average: a float."""
    raise NotImplementedError("bits_per_byte is yours to write")


def one_rate(model, x0, t, mask_id):
    """g(t), what measuring at this rate alone gives, in expectation: float64 (B,), nats per row.

    t   a float, above 0, below 1; use ce for CE(S)
    """
    raise NotImplementedError("one_rate is yours to write")


def some_rates(model, x0, times, mask_id):
    """The mean of g over a list of rates: float64 (B,), nats per row."""
    raise NotImplementedError("some_rates is yours to write")


# %% [markdown]
# ## What one sees
#
# The baseline of the contest: 2.0727 nats per token and 1.2244 bits per byte, so that its tokens have 2.44 bytes. With
# these instead of 4.3, the record is none. Then the tiny language and the model that knows the truth, for which the
# bound is the entropy. At a rate of 0.15 (BERT's) it seems to beat it, and at 0.9 to be far above. Five rates that are
# spread well are close (here g is a parabola); five low ones are not.
#
#     the baseline's tokens have 2.44 bytes; the record of 1.1465 is 2.02 bits per byte
#     'Größe ist nicht Länge': 7 tokens of 3 nats are 1.2624 bits per byte
#     entropy               2.5280 nats per word
#     one rate, 0.15        2.0988
#     one rate,  0.5        2.5377
#     one rate,  0.9        3.0044
#     rates 0.1, 0.2 … 0.5  2.2881
#     rates 0.1, 0.3 … 0.9  2.5284

# %%
if __name__ == "__main__":
    size = 2.0727 / math.log(2) / 1.2244
    print(
        f"the baseline's tokens have {size:.2f} bytes; the record of 1.1465 is {1.1465 * 4.3 / size:.2f} bits per byte"
    )
    text = "Größe ist nicht Länge"
    print(f"{text!r}: 7 tokens of 3 nats are {bits_per_byte(3.0, 7, text):.4f} bits per byte")
    print(f"entropy               {tiny.ENTROPY:.4f} nats per word")
    for t in (0.15, 0.5, 0.9):
        print(f"one rate, {t:4}        {(tiny.P * one_rate(tiny.truth, tiny.WORDS, t, tiny.MASK)).sum():.4f}")
    for name, times in (("0.1, 0.2 … 0.5", range(1, 6)), ("0.1, 0.3 … 0.9", range(1, 10, 2))):
        values = some_rates(tiny.truth, tiny.WORDS, [i / 10 for i in times], tiny.MASK)
        print(f"rates {name}  {(tiny.P * values).sum():.4f}")

# %% [markdown]
# In the project: the bytes are counted where a data set is made (`bytes_per_token` in its `meta.json`), and
# `mdlm.nelbo` draws its counts over all of 1…n.
