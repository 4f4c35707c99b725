# %% [markdown]
# # 23 · A stale cache, and what it costs
# *Chapter IV, networks and speed. 40 minutes. Fast-dLLM (arXiv 2505.22618), section 3.2. After lesson 21.*
#
# A masked diffusion model reads the whole canvas at every step, and each step changes a few tokens only. Could the
# keys and values of the others be kept? Not exactly: attention goes both ways, so one new token changes the states of
# all others, and so their keys and values in the next layer.
#
# Fast-dLLM keeps them nevertheless, for a while. The canvas is filled in block by block. When a block begins, one full
# pass stores the keys and values of every position. In the steps that follow only the block's own tokens are read.
# They look at what is stored, and overwrite their own slots; everything before and behind the block stays as it was
# (the paper calls this the dual cache). At the next block the full pass is made anew. With f the network, $x^b$ the
# block's tokens as they are now, and $x'$ the canvas as it was when the block began:
#
# $$ \text{logits}^b = f\big(x^b \;;\; K_{\setminus b}(x'),\, V_{\setminus b}(x')\big) $$
#
# Two things are exact nevertheless. Right after the full pass nothing is stale yet. And in a network of *one* layer
# nothing ever is: its keys and values are functions of each token by itself, and the tokens outside have not changed.
# With two layers, the second layer's keys of the tokens outside have seen the block as it was.
#
# This project's `Transformer` does the reading. `model.cache(B, L)` is an empty cache for B rows of L positions, in
# which slot p holds position p. `model(ids, positions=p, cache=cache)` reads ids (B, T) that stand at p, int64 (B, T):
# each token's keys and values go, in every layer, to the slot of its position, then all filled slots are seen (of a
# causal network, those that are not later). It returns logits (B, T, V) for the tokens that it read, and changes the
# cache in place.
#
# ## Write

# %%
import sys

sys.path += ["exercises", ".", "..", "../.."]  # the course and the project, from wherever this is run
import torch

from model import Config, Transformer


# %%
def refresh(model, x):
    """One full pass, which stores every position.

    model    Transformer
    x        int64 (B, L), the canvas, masks included; it stays as it is
    returns  (cache, logits): a new KVCache of L slots, all filled, and the logits of the pass, (B, L, V)
    """
    raise NotImplementedError("refresh is yours to write")


def step(model, x, block, cache):
    """The block's logits, from its tokens alone and what is stored of the others.

    model    Transformer
    x        int64 (B, L), the canvas as it is now
    block    int64 (n,), the positions of the block, the same in each row
    cache    KVCache, all filled; in place, the block's slots are overwritten, and the others stay as they are
    returns  (B, n, V), logits at the positions of the block
    """
    raise NotImplementedError("step is yours to write")


def work(L, block_size, steps_per_block):
    """How many tokens the network reads for a canvas of L tokens, each block in steps_per_block steps.

    Without the cache every step reads L tokens. With it the first step of a block is the full pass, whose logits it
    uses, and the other steps read the block's tokens alone. The last block is shorter if block_size does not divide L.

    returns  (without, with): two ints
    """
    raise NotImplementedError("work is yours to write")


# %% [markdown]
# ## What one sees
#
#     tokens revealed since the full pass         0       1       4       8
#     n_layer=1                               0.000   0.000   0.000   0.000
#     n_layer=2                               0.000   0.021   0.057   0.151
#     n_layer=4                               0.000   0.034   0.396   0.719
#     n_layer=4, causal=True                  0.000   0.000   0.000   0.000
#     32 steps a block: 65,536 without the cache,  9,984 with it
#      8 steps a block: 16,384 without the cache,  3,840 with it
#      2 steps a block:  4,096 without the cache,  2,304 with it
#      1 steps a block:  2,048 without the cache,  2,048 with it
#
# Networks with random weights, on a canvas of 24 tokens with a block of 8, of which some have been revealed since the
# full pass. The numbers are the largest change of a log p within the block, against a full pass now. The causal
# network of four layers is exact as well: what comes before the block never saw it, and what comes behind is not seen.
# Block diffusion buys just that, and keeps attention in both directions within a block.
#
# Below, tokens read for 256 new ones, in blocks of 32.

# %%
if __name__ == "__main__":
    V, mask_id, block = 12, 11, torch.arange(8, 16)

    def network(**keys):
        torch.manual_seed(0)
        model = Transformer(Config(vocab_size=V, seq_len=24, n_head=2, n_embd=32, **keys)).double()
        for p in model.parameters():
            if p.dim() == 2:
                torch.nn.init.normal_(p, 0, 0.3)
        return model.eval()

    x = torch.full((1, 24), mask_id)
    x[0, :8] = torch.arange(8)
    print("tokens revealed since the full pass  " + "".join(f"{n:8}" for n in (0, 1, 4, 8)))
    for keys in (dict(n_layer=1), dict(n_layer=2), dict(n_layer=4), dict(n_layer=4, causal=True)):
        model, line = network(**keys), ""
        for n in (0, 1, 4, 8):
            now = x.clone()
            now[0, 8 : 8 + n] = torch.arange(n) % 10
            with torch.no_grad():
                logits, exact = step(model, now, block, refresh(model, x)[0]), model(now)[:, block]
            line += f"{(logits.log_softmax(-1) - exact.log_softmax(-1)).abs().max():8.3f}"
        print(f"{', '.join(f'{k}={v}' for k, v in keys.items()):37}{line}")

    for steps in (32, 8, 2, 1):
        without, with_it = work(256, 32, steps)
        print(f"{steps:2} steps a block: {without:6,} without the cache, {with_it:6,} with it")

# %% [markdown]
# In the project: `Canvas` in `nanodlm/fast_mdlm.py`, for rows of different lengths (`cache="dual"`, or `"prefix"`).
