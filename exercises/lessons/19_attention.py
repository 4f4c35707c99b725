# %% [markdown]
# # 19 · From a GPT to a diffusion model: three lines
# *Chapter IV, networks and speed. 30 minutes. Attention (arXiv 1706.03762), equation 1; MDLM (2406.07524), 3.2.3.*
#
# A small GPT is a stack of causal attention, trained to say the next token. A masked diffusion model is the same
# network, trained to say what is hidden. In code the difference is three lines. Here is what matters of the GPT: who
# sees whom, and which output is compared with which token. (B rows, H heads, T tokens, D channels of a head, V ids.)

# %%
import math

import torch
import torch.nn.functional as F


def causal_attention(q, k, v):
    """q, k, v (B, H, T, D) -> (B, H, T, D). Row i of the scores is a query, column j a key."""
    T, D = q.shape[-2:]
    scores = q @ k.transpose(-2, -1) / math.sqrt(D)  # (B, H, T, T)
    past = torch.ones(T, T, dtype=torch.bool).tril()  # query i sees keys j <= i
    return scores.masked_fill(~past, -torch.inf).softmax(-1) @ v


def next_token(x0):
    """(inputs, which outputs are scored, their targets): output i is scored by token i + 1."""
    B, T = x0.shape
    rows = torch.arange(B * T).view(B, T)[:, :-1].flatten()  # indices into the flattened (B * T) outputs
    return x0, rows, x0[:, 1:].flatten()


def next_token_nll(logits, rows, targets):
    """-log p of each target, (N,), from the logits (B, T, V) of all outputs."""
    return F.cross_entropy(logits.flatten(0, 1)[rows], targets, reduction="none")


# %% [markdown]
# Now change it.
#
# **Who sees whom.** A hidden token may be guessed from both sides, so everybody sees everybody. One exception remains.
# Texts of a batch are filled up to one length with padding, and nobody may see padding: its *keys* get the score minus
# infinity, so that the softmax gives them the weight 0.
#
# $$ \text{attention}(q, k, v) = \text{softmax}\!\left(\frac{q k^\top}{\sqrt{D}}\right) v $$
#
# **What is read, and what is scored.** A GPT reads the text itself, and the shift by one keeps it from reading the
# answer. The diffusion model reads the text with holes. The answer is not in the input, so no shift is needed: the
# output at a hole is scored by the token that was there. What is visible is not scored, it would be copied.
#
# **The mask is no answer.** No text contains the mask token. So its logit is set to minus infinity before the softmax,
# and the network need not learn that.
#
# ## Write


# %%
def attention(q, k, v, real):
    """Attention in which every token, padding too, sees all real tokens, and padding is seen by nobody.

    q, k, v  float (B, H, T, D): queries, keys, values
    real     bool (B, T): False where there is padding; every row has a real token
    returns  float (B, H, T, D)
    """
    raise NotImplementedError("attention is yours to write")


def scored(x0, hidden, mask_id):
    """What the network reads, and which of its outputs are scored by what.

    x0       int64 (B, T), token ids; it stays as it is
    hidden   bool (B, T), the tokens to hide
    mask_id  int, the id of the mask token
    returns  (inputs, rows, targets): inputs int64 (B, T), x0 with mask_id where hidden; rows int64 (N,), the indices
             of the hidden places in the flattened (B * T) outputs, ascending; targets int64 (N,), their tokens in x0
    """
    raise NotImplementedError("scored is yours to write")


def nll(logits, rows, targets, mask_id):
    """-log p of each target, the mask token excluded from the softmax.

    logits   float (B, T, V), of all outputs; they stay as they are
    rows     int64 (N,), indices into the flattened (B * T) outputs
    targets  int64 (N,), never mask_id
    mask_id  int
    returns  float (N,), in nats: one for each target, neither summed nor averaged
    """
    raise NotImplementedError("nll is yours to write")


# %% [markdown]
# ## What one sees
#
#     causal   both ways
#     #.....   #####.
#     ##....   #####.
#     ###...   #####.
#     ####..   #####.
#     #####.   #####.
#     ######   #####.
#     GPT        reads cats   c -> a, a -> t, t -> s
#     diffusion  reads c_t_   _ -> a, _ -> s
#
# A # is where a query (row) sees a key (column). On the right the last letter is padding: nobody sees it. Below: which
# input stands where an output is scored, and by which letter. The GPT shows c and asks for a; the diffusion model shows
# a hole and asks for what was in it.

# %%
if __name__ == "__main__":
    q, k = torch.randn(2, 1, 1, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    v = torch.eye(6).double()[None, None]  # then what comes out is the weights themselves
    real = torch.tensor([[True] * 5 + [False]])
    pair = causal_attention(q, k, v)[0, 0], attention(q, k, v, real)[0, 0]
    print("causal   both ways")
    for left, right in zip(*pair):
        print("   ".join("".join("#" if w > 0 else "." for w in row) for row in (left, right)))

    text = "cats"
    x0, hidden = torch.tensor([list(text.encode())]), torch.tensor([[False, True, False, True]])
    for name, task in (("GPT", next_token(x0)), ("diffusion", scored(x0, hidden, ord("_")))):
        inputs, rows, targets = (bytes(t.flatten().tolist()).decode() if i != 1 else t for i, t in enumerate(task))
        said = ", ".join(f"{inputs[i]} -> {target}" for i, target in zip(rows.tolist(), targets))
        print(f"{name:10} reads {inputs}   {said}")

# %% [markdown]
# In the project: `model.Attention` (which calls PyTorch's `F.scaled_dot_product_attention`), and `mdlm.hidden_nll`.
