# %% [markdown]
# # 24 · Converting a BERT or a GPT
# *Chapter IV, networks and speed. 25 minutes. DiffuLLaMA (arXiv 2410.17891), attention mask annealing and shift.*
#
# What a network has learnt of language is in its weights, whatever it was trained for. So a diffusion model need not
# start from random ones.
#
# **A BERT needs nothing but all rates.** It sees both ways, it has a mask token, and its output at a hole predicts
# what was there. It was trained to fill in holes of one rate, 15 % of the tokens. Masked diffusion is the same sum,
# with the rate t drawn from all of [0, 1], and weighed by 1/t:
#
# $$ \text{NELBO} = \mathbb{E}_{t \sim U[0, 1]}\left[-\frac{1}{t} \sum_{i \text{ hidden}} \log p(x_0^i \mid x_t)\right]
# \quad \text{(MDLM, arXiv 2406.07524, equation 11; alpha = 1 - t)} $$
#
# What it has never seen is a text that is mostly hidden. That is what the training afterwards is for.
#
# **A GPT needs three things more.**
#
# 1. *A mask token.* It gets the next free id, V, and so a new row at the end of the embedding (and of the head, where
#    that is another matrix). Random numbers would be a word from nowhere. The mean of all rows is a word that means
#    "some word".
# 2. *The shift.* Output i of a GPT predicts token i + 1. A hole at i has an output of its own, but what has learnt to
#    predict token i is the output before. So the outputs move one place to the right: output i - 1 predicts token i.
#    The first token has none before it, and keeps its own. DiffuLLaMA and Dream keep this shift; LLaDA, which did not
#    start from a GPT, has none. A GPT that drops it must learn anew where to look.
# 3. *A look ahead.* Attention is opened: at once, or little by little. DiffuLLaMA lets a token see a later one by
#    chance, each pair by itself, and the chance grows in the course of training from 0 to 1.
#
# ## Write

# %%
import sys

sys.path += ["exercises", ".", "..", "../.."]  # the course and the project, from wherever this is run
import torch

from model import Config, Transformer


# %%
def shift(logits):
    """Output i - 1 predicts token i; the first token keeps its own output.

    logits   float (B, T, V), T at least 1; they stay as they are
    returns  float (B, T, V), at place i the logits for token i
    """
    raise NotImplementedError("shift is yours to write")


def add_mask_row(weight):
    """A matrix with a row for each token gets one more, at the end: the mean of all rows there were.

    weight   float (V, C); it stays as it is
    returns  float (V + 1, C)
    """
    raise NotImplementedError("add_mask_row is yours to write")


def anneal(L, chance, u):
    """Who sees whom while a causal model learns to look ahead.

    L        int, tokens
    chance   float in [0, 1]
    u        float64 (L, L), uniform numbers, one for each pair: row i, column j for query i and key j
    returns  bool (L, L): row i, column j: whether query i sees key j. The past and itself always; a later one
             (j > i) where u[i, j] < chance
    """
    raise NotImplementedError("anneal is yours to write")


# %% [markdown]
# ## What one sees
#
#     place 0 1 2 3 4 5 is predicted by output 0 0 1 2 3 4
#     new row [1.0, 1.0]
#     0.0      0.25     0.5      0.75     1.0
#     #.....   ##....   ##....   ####.#   ######
#     ##....   ##..#.   ##.##.   ######   ######
#     ###...   ###..#   ####.#   ####.#   ######
#     ####..   ####..   ####..   ####.#   ######
#     #####.   #####.   ######   ######   ######
#     ######   ######   ######   ######   ######
#     with the shift    off by 0.000
#     without           off by 4.146
#
# First, which output speaks for which place. Then who sees whom, at five chances and with the same u. At the end, a
# small causal network with random weights, and a text whose last token becomes a hole: with the shift, it says of the
# hole exactly what it said of the next token when it was a GPT; without, something else. Until it looks ahead, nothing
# that it knew is lost.

# %%
if __name__ == "__main__":
    outputs = torch.eye(6)[None]
    print("place", *range(6), "is predicted by output", *shift(outputs)[0].argmax(1).tolist())
    print("new row", add_mask_row(torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]]))[-1].tolist())

    u = torch.rand(6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    chances = (0.0, 0.25, 0.5, 0.75, 1.0)
    print("   ".join(f"{c:<6}" for c in chances).rstrip())
    for rows in zip(*(anneal(6, c, u).tolist() for c in chances)):
        print("   ".join("".join("#" if seen else "." for seen in row) for row in rows))

    torch.manual_seed(0)
    gpt = Transformer(Config(vocab_size=11, seq_len=8, n_layer=2, n_head=2, n_embd=32, causal=True)).double().eval()
    for p in gpt.parameters():
        if p.dim() == 2:
            torch.nn.init.normal_(p, 0, 0.3)
    text = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    hole = text.clone()
    hole[0, -1] = 10  # the mask's id
    with torch.no_grad():
        said, logits = gpt(text)[0, -2], gpt(hole)
    print(f"with the shift    off by {(shift(logits)[0, -1] - said).abs().max():.3f}")
    print(f"without           off by {(logits[0, -1] - said).abs().max():.3f}")

# %% [markdown]
# In the project: `convert_bert.py`; `give_row` in `convert_ar.py`, which makes the table a multiple of 64 rows;
# `Config.shift` and the two lines of `model.py` that look at it; `noise.see_ahead`, whose chance `nanodlm/stages.py`
# raises over `anneal_iters` steps of training.
