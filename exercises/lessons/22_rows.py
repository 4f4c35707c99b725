# %% [markdown]
# # 22 · Logits only where they are needed
# *Chapter IV, networks and speed. 40 minutes. LLaDA (arXiv 2502.09992), eq. 3; checkpointing (1604.06174), sec. 3.*
#
# The last thing in a language model is a product with a matrix of V rows, one for each token of the vocabulary. V is
# large (126,464 in LLaDA), so the logits of one text can need more memory than all that came before them. Most are not
# needed. The loss looks at hidden places only; see the indicator in
#
# $$ \mathcal{L} = -\,\mathbb{E}\left[\frac{1}{t} \sum_i \mathbf{1}[x_t^i = \text{mask}] \,
# \log p(x_0^i \mid x_t)\right], \qquad \log p(x_0^i \mid x_t) = w_{x_0^i} \cdot h_i - \log \sum_v e^{w_v \cdot h_i} $$
#
# where $h_i$ is the state (C channels) that the network has at place i, and $w_v$ is row v of the head's matrix. A
# place that is not in the sum needs no logits. As logits depend on the state of their own place alone, we can choose
# before we multiply.
#
# Where even the hidden places are too many, take a few at a time: logits of a part, their cross entropy, and on to the
# next. There is a trap. In training, autograd keeps the logits of every part for the backward pass, and nothing is
# saved. `checkpoint(f, a, b, use_reentrant=False)`, from `torch.utils.checkpoint`, returns f(a, b), keeps only a and
# b, and runs f once more in the backward pass. What f makes inside (here: logits) is thrown away in between.
#
# And since nothing but attention mixes places, we can choose earlier still: behind the attention of the last layer,
# only the chosen places go on. The third function counts what that saves.
#
# ## Write

# %%
import torch
import torch.nn.functional as F


# %%
def head_at(hidden_states, weight, rows):
    """The logits of the chosen places, and of no others: choose before you multiply.

    hidden_states  float (B, T, C), what the head sees
    weight         float (V, C), the head's matrix
    rows           bool (B, T), the chosen places
    returns        float (N, V), N the number of chosen places, row by row from left to right
    """
    raise NotImplementedError("head_at is yours to write")


def nll_in_parts(states, weight, targets, at_once):
    """-log p of each target, with the logits of at most `at_once` places at a time, in the backward pass, too.

    states   float (N, C); N may be 0
    weight   float (V, C); the logits are states @ weight.T
    targets  int64 (N,), token ids; no token is excluded from the softmax
    at_once  int, at least 1; it need not divide N
    returns  float (N,), in nats, through which gradients reach states and weight. Autograd keeps no logits for them
    """
    raise NotImplementedError("nll_in_parts is yours to write")


def multiply_adds(tokens, rows, layers, C, V):
    """How many multiply-adds the matrices of a network take, if behind the last attention only `rows` places go on.

    A layer has attention with 4 matrices of C * C, then an MLP with 2 of C * 4C; the head has C * V. A matrix of m * n
    takes m * n multiply-adds for each place. (The products inside attention, queries with keys, are not counted.)

    tokens   int, the places that go in: all matrices but the last MLP's and the head's see all of them
    rows     int, the places that the last layer's MLP and the head see
    returns  int
    """
    raise NotImplementedError("multiply_adds is yours to write")


# %% [markdown]
# ## What one sees
#
#     all at once  loss 13.943654   gradient 0.776944   autograd keeps 96 rows of 1000 numbers
#     8 at once    loss 13.943654   gradient 0.776944   autograd keeps 0 rows of 1000 numbers
#     2048 places of 4096: 95.3% of the multiply-adds
#        1 places of 4096: 90.6% of the multiply-adds
#
# The loss and its gradient are the same, to the last digits that are shown, and in parts autograd keeps no logits.
# (All at once it keeps their log-softmax; the count above has that tensor twice, as two operations keep it.) The last
# lines are for a network of the depth and width of LLaDA, 32 layers of 4096 channels, on 4096 tokens: how much a
# training step's forward pass multiplies if half of them are hidden, and a sampler's if one is looked at. In
# multiplications little is saved, as the network is deep. In memory much is: the logits of a place are 126,464
# numbers, its state is 4,096.

# %%
if __name__ == "__main__":
    N, C, V = 48, 16, 1000
    g = torch.Generator().manual_seed(0)
    states, weight = (torch.randn(n, C, generator=g, dtype=torch.float64, requires_grad=True) for n in (N, V))
    targets, kept = torch.arange(N), []

    def keep(x):
        if x.dim() == 2 and x.shape[1] == V and x.untyped_storage().data_ptr() != weight.untyped_storage().data_ptr():
            kept.append(x.shape[0])
        return x

    ways = {"all at once": lambda: F.cross_entropy(states @ weight.T, targets, reduction="none")}
    ways["8 at once"] = lambda: nll_in_parts(states, weight, targets, 8)
    for name, way in ways.items():
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss = way().mean()
        norm = torch.autograd.grad(loss, states)[0].norm()
        print(f"{name:12} loss {loss:.6f}   gradient {norm:.6f}   autograd keeps {sum(kept)} rows of {V} numbers")

    measures = dict(tokens=4096, layers=32, C=4096, V=126464)
    whole = multiply_adds(rows=4096, **measures)
    for rows in (2048, 1):
        print(f"{rows:4} places of 4096: {multiply_adds(rows=rows, **measures) / whole:.1%} of the multiply-adds")

# %% [markdown]
# In the project: `rows` in `Transformer.hidden` and `model.Block.forward`, and `mdlm.hidden_nll`. The loss has no
# parts; `nanodlm/decode.py` reads a sampler's logits in parts, and `Transformer.recompute` checkpoints whole layers.
