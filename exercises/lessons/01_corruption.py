# %% [markdown]
# # 1 · Corruption: hide each token with probability t
# *Chapter I, the process. 20 minutes. MDLM (arXiv 2406.07524), equation 4; LLaDA (2502.09992), equation 7.*
#
# A diffusion model learns to undo a process that destroys. For text the simplest such process hides tokens: at time t,
# between 0 and 1, each token of a text $x_0$ is replaced by a mask token with probability t, each by itself; what
# comes out is called $x_t$. At t = 0 nothing is hidden, at t = 1 everything.
#
# $$ q(x_t^i \mid x_0^i) = \begin{cases} 1 - t & x_t^i = x_0^i \\ t & x_t^i = \text{mask} \end{cases} $$
#
# How does a program do something with probability t? It draws a number u, uniform between 0 and 1, and does it where u
# < t. Here, as everywhere in this course, the uniform numbers are an argument of the function, and not drawn in it:
# the same numbers give the same result, which is what makes a test exact.
#
# Not all tokens may be hidden. When a model learns to answer, the question stays as it is: `maskable` says which
# tokens are learnt.

# %%
import torch

# %% [markdown]
# ## Write


# %%
def corrupt(x0, t, u, maskable, mask_id):
    """Hide each maskable token of row b with probability t[b]: where its u is below t[b].

    x0        int64 (B, L), token ids; it stays as it is: return a new tensor
    t         float64 (B,), the time of each row; as a column, t[:, None], it can be compared with all of a row's u
    u         float64 (B, L), uniform numbers, one for each token
    maskable  bool (B, L), the tokens that may be hidden
    mask_id   int, the id of the mask token
    returns   int64 (B, L), x_t
    """
    raise NotImplementedError("corrupt is yours to write")


# %% [markdown]
# ## What one sees
#
#     t = 0.2   _he_q_ick brow__f_x jumps__ver the _azy _og
#     t = 0.5   ____q__ck_b_o___f_x jumps__ve___he _a______
#     t = 0.8   ____________________jumps__ve____e _a______
#
# The same u, three times: what is hidden at a time stays hidden at every later one.

# %%
if __name__ == "__main__":
    text = "the quick brown fox jumps over the lazy dog"
    x0 = torch.tensor([list(text.encode())])
    u = torch.rand(1, len(text), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for t in (0.2, 0.5, 0.8):
        xt = corrupt(x0, torch.tensor([t]).double(), u, torch.ones_like(x0).bool(), ord("_"))
        print(f"t = {t}   {bytes(xt[0].tolist()).decode()}")

# %% [markdown]
# In the project: the first lines of `mdlm.corrupt`, which also draws t, and takes other schedules (lesson 3).
