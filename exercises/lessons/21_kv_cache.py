# %% [markdown]
# # 21 · A cache for keys and values: slot p holds position p
# *Chapter IV, networks and speed. 30 minutes. Attention (arXiv 1706.03762), eq. 1; BD3LM (2503.09573), eq. 7.*
#
# When a text grows, most of it stays as it is. A token that is finished, and that sees nothing of what comes after it,
# has the same keys and values in every later pass. So they are kept, and a pass reads new tokens only: their queries
# look at what is kept. Autoregression stores a token at a time; block diffusion stores a block, and while it fills in
# the block, whose tokens change, it writes that block's keys and values again and again.
#
# One rule serves all of these: **slot p holds position p.** A store has S slots for each row, `filled` says which of
# them hold something, and each token goes where its position says. Nothing there yet? That is appending. Something
# there? That is overwriting. To the program it is the same act.
#
# Rows of a batch have different lengths, so in one call one row may bring three tokens and another only one. The rest
# is padding, and has a negative position: it goes nowhere. (Take care: in Python the index -1 is the *last* slot.)
#
# Queries then see all filled slots of their row, and no others. With P the filled slots:
#
# $$ \text{attend}(q) = \text{softmax}\!\left(\frac{q K_P^\top}{\sqrt{D}}\right) V_P $$
#
# Note what is missing: a causal mask. If tokens come one at a time, the future is not in the store yet. (A call with
# several tokens at once would need one, where attention is causal.)
#
# ## Write

# %%
import torch


# %%
def write(store, filled, positions, new):
    """Put each token into the slot of its position. Keys and values are written the same way, with one call each.

    store      float (B, H, S, D): B rows, H heads, S slots, D channels; it stays as it is
    filled     bool (B, S), the slots that hold something; it stays as it is
    positions  int64 (B, T), each below S; negative: padding, which goes nowhere. The others of a row differ
    new        float (B, H, T, D), the keys (or values) of T tokens
    returns    (store, filled): a new store and a new filled, of the same shapes. Slots to which no token goes keep what
               they had, in both
    """
    raise NotImplementedError("write is yours to write")


def attend(q, store_k, store_v, filled):
    """Attention of queries to all filled slots of their row.

    q                 float (B, H, T, D)
    store_k, store_v  float (B, H, S, D); what is in a slot that is not filled may be anything, but is finite
    filled            bool (B, S); each row has a filled slot
    returns           float (B, H, T, D)
    """
    raise NotImplementedError("attend is yours to write")


# %% [markdown]
# ## What one sees
#
#     prompts    abc.....   x.......
#     append     abc__...   xyz.....
#     overwrite  abcde...   xyw.....
#     token 0   causal pass -0.5919   cache -0.5919
#     token 1   causal pass -0.5611   cache -0.5611
#     token 2   causal pass  0.3064   cache  0.3064
#     token 3   causal pass  0.0196   cache  0.0196
#     token 4   causal pass -0.0462   cache -0.0462
#     token 5   causal pass -0.1194   cache -0.1194
#
# Two rows of eight slots. The first call brings three tokens to one row and one to the other; the second appends, the
# third overwrites: the same function. Below, side by side: what one causal pass over six tokens says, and what six
# calls with one token each say.

# %%
if __name__ == "__main__":
    store, filled = torch.zeros(2, 1, 8, 1), torch.zeros(2, 8, dtype=torch.bool)
    calls = [
        ("prompts", "abcx??", [[0, 1, 2], [0, -1, -1]]),
        ("append", "__yz", [[3, 4], [1, 2]]),
        ("overwrite", "de?w", [[3, 4], [-1, 2]]),
    ]
    for what, letters, positions in calls:
        new = torch.tensor(list(letters.encode())).float().view(2, 1, -1, 1)
        store, filled = write(store, filled, torch.tensor(positions), new)
        rows = ["".join(chr(int(s)) if f else "." for s, f in zip(*row)) for row in zip(store[:, 0, :, 0], filled)]
        print(f"{what:10} {rows[0]}   {rows[1]}")

    q, k, v = torch.randn(3, 1, 2, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    causal = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    keys, values, filled = torch.zeros_like(k), torch.zeros_like(v), torch.zeros(1, 6, dtype=torch.bool)
    for i in range(6):
        at, one = torch.tensor([[i]]), slice(i, i + 1)
        keys, now = write(keys, filled, at, k[:, :, one])
        values, filled = write(values, filled, at, v[:, :, one])
        y = attend(q[:, :, one], keys, values, now)
        print(f"token {i}   causal pass {causal[0, 0, i, 0]:7.4f}   cache {y[0, 0, 0, 0]:7.4f}")

# %% [markdown]
# In the project: `model.KVCache` (`reserve` and `write`), and `Transformer.attention_mask`, which hides empty slots.
