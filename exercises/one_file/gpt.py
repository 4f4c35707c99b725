"""A language model of characters in one file: PyTorch, the standard library, a text, and nothing else.

Autoregression: from what stands before it, the network says what the next character is. To write, it starts from
nothing and adds one character after the other, from left to right (GPT-2, Radford et al. 2019).

It learns from the help texts that come with Python, or from a text of yours, for about 3 minutes on 2 CPU cores.

    python exercises/one_file/gpt.py [my.txt]
    python exercises/one_file/diffusion.py [my.txt]
    diff exercises/one_file/gpt.py exercises/one_file/diffusion.py      the lesson

1 settings, 2 text, 3 network, 4 corruption, 5 loss and bound, 6 sampling, 7 training. Shapes in comments: B rows,
L characters in a row, C channels, H heads, D channels per head, V ids.
"""

import math
import re
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

# ---- 1 · settings ----------------------------------------------------------------------------------------------------

seq_len = 128  # L: characters in a row, which is all that the network sees at once
batch_size = 8  # rows per iteration: few, as in minutes it is the number of iterations that counts
max_iters = 2500
learning_rate = 3e-3  # at its highest
n_layer, n_head, n_embd = 4, 4, 128
t_min, t_max = 0, 1  # of t, which does nothing here, nor does u: they are there for the comparison's sake
masks = 1  # drawn for each validation row: the likelihood is exact, and there is nothing to draw
steps = seq_len  # of sampling: one character each, no fewer steps will do
temperature = 0.6  # of sampling: below 1, what is likely becomes likelier still
MASK = 0  # the id that stands for a character one does not know; the text's own characters follow it

# ---- 2 · text --------------------------------------------------------------------------------------------------------


def read(path):
    """The text in a file, as it is; or without one the help texts that come with every Python, of which a-z and spaces
    are kept, as in text8, the field's benchmark of character models: 27 of them are enough to learn in minutes."""
    try:
        if path:
            text = Path(path).read_text(encoding="utf-8")
        else:
            from pydoc_data.topics import topics

            text = re.sub("[^a-z]+", " ", " ".join(topics.values()).lower())
    except OSError as e:
        sys.exit(f"{path} cannot be read: {e.strerror}")
    except UnicodeError:
        sys.exit(f"{path} is no text in UTF-8")
    except ImportError:
        sys.exit("this Python came without its help texts; name a text file of yours")
    if len(text) < 20 * seq_len:  # a tenth is for validation: at least two rows
        sys.exit(f"{path} has {len(text)} characters; at least {20 * seq_len} are needed")
    return text


# ---- 3 · network -----------------------------------------------------------------------------------------------------


def rotate(x):
    """Turn each pair of channels of x (B, H, L, D) by an angle in proportion to the position, so that the products of
    queries and keys know how far apart they are (RoPE, arXiv 2104.09864)."""
    L, D = x.shape[-2:]
    angle = torch.arange(L)[:, None] / 10000 ** (torch.arange(0, D, 2) / D)  # (L, D/2)
    a, b = x.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


class Attention(nn.Module):
    def __init__(self, n_head, n_embd):
        super().__init__()
        self.n_head = n_head
        self.q, self.k, self.v, self.out = (nn.Linear(n_embd, n_embd, bias=False) for _ in range(4))
        self.q_norm, self.k_norm = (nn.RMSNorm(n_embd // n_head, eps=1e-5) for _ in range(2))

    def forward(self, x):
        B, L, C = x.shape
        q, k, v = (f(x).view(B, L, self.n_head, -1).transpose(1, 2) for f in (self.q, self.k, self.v))  # (B, H, L, D)
        q, k = rotate(self.q_norm(q)), rotate(self.k_norm(k))  # with norms, high learning rates do no harm
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # nobody sees what comes
        return self.out(y.transpose(1, 2).reshape(B, L, C))


class MLP(nn.Module):
    def __init__(self, n_embd):
        super().__init__()
        self.up = nn.Linear(n_embd, 4 * n_embd, bias=False)
        self.down = nn.Linear(4 * n_embd, n_embd, bias=False)

    def forward(self, x):
        return self.down(F.relu(self.up(x)).square())


class Block(nn.Module):
    def __init__(self, n_head, n_embd):
        super().__init__()
        self.attn_norm, self.attn = nn.RMSNorm(n_embd, eps=1e-5), Attention(n_head, n_embd)
        self.mlp_norm, self.mlp = nn.RMSNorm(n_embd, eps=1e-5), MLP(n_embd)

    def forward(self, x):
        x = x + self.attn(self.attn_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Transformer(nn.Module):
    """Ids (B, L) go in, logits (B, L, V) come out: what stands at each place, as far as the network knows."""

    def __init__(self, vocab_size, n_layer=n_layer, n_head=n_head, n_embd=n_embd):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, n_embd)
        self.blocks = nn.ModuleList(Block(n_head, n_embd) for _ in range(n_layer))
        self.norm = nn.RMSNorm(n_embd, eps=1e-5)
        self.head_weight = nn.Parameter(torch.empty(vocab_size, n_embd))
        for name, p in self.named_parameters():  # as GPT-2: what is added to the residual stream starts smaller
            if p.dim() == 2:
                residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * n_layer) if residual else 0.02)

    def forward(self, ids):
        x = self.embed(ids)  # (B, L, C)
        for block in self.blocks:
            x = block(x)
        logits = self.norm(x) @ self.head_weight.T
        logits[..., MASK] = -torch.inf  # no character is a mask (MDLM, section 3.2.3)
        return logits


# ---- 4 · corruption --------------------------------------------------------------------------------------------------


def corrupt(x0, t, u):
    """What the network is shown of x0 (B, L), and where it is asked, bool (B, L).

    Each place is shown the character before it, the first one a mask, and is asked for its own. Nothing is random."""
    return F.pad(x0, (1, 0), value=MASK)[:, :-1], torch.ones_like(x0, dtype=torch.bool)


def random_numbers(n, generator=None):
    """t and u for n rows. A t lies in each nth of [0, 1), so that all batches are alike (MDLM, section 3.5.1)."""
    t = (torch.randperm(n, generator=generator) + torch.rand(n, generator=generator)) / n
    return t[:, None], torch.rand(n, seq_len, generator=generator)


# ---- 5 · loss and bound ----------------------------------------------------------------------------------------------


def nlls(model, x0, t, u):
    """-log p of each character (B, L), and where it counts."""
    xt, asked = corrupt(x0, t, u)
    return F.cross_entropy(model(xt).transpose(1, 2), x0, reduction="none"), asked


def loss(model, x0, t, u):
    """What is trained, in nats: the mean over all that is asked."""
    nll, asked = nlls(model, x0, t, u)
    return nll[asked].mean()


def bound(model, x0, t, u):
    """What is reported: -log p(x0) / L, per row (B,); exact, by the chain rule from left to right."""
    nll, asked = nlls(model, x0, t, u)
    return (nll * asked).sum(1) / asked.sum(1)


# ---- 6 · sampling ----------------------------------------------------------------------------------------------------


def uniform(step, at):
    """A random number for each place (N,). Tests hand in another function of the two."""
    return torch.rand(len(at), dtype=torch.float64)


def draw(logits, u):
    """Invert the distribution function at u (N,): the first id at which it exceeds u. In float64, as in float32 the
    rare ones would be drawn too rarely (arXiv 2409.02908)."""
    cdf = logits.double().softmax(-1).cumsum(-1)  # (N, V)
    return torch.searchsorted(cdf, u[:, None] * cdf[:, -1:], right=True)[:, 0]


@torch.no_grad()
def sample(model, x, steps, temperature, u=uniform):
    """Replace the masks in x (L,) by characters; x is yielded after every step."""
    for step in range(steps):
        at = (x == MASK).nonzero()[:1, 0]  # (N,) the first that is not written
        logits = model(F.pad(x, (1, 0), value=MASK)[None, :-1])[0]  # (L, V)
        x[at] = draw(logits[at] / temperature, u(step, at))
        yield x


# ---- 7 · training ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def evaluate(model, x0):
    """Bits per character of rows x0 (B, L) and the standard error of that; the same random numbers every time."""
    generator, nats = torch.Generator().manual_seed(0), torch.zeros(len(x0))
    for _ in range(masks):
        parts = zip(*(x.split(64) for x in (x0, *random_numbers(len(x0), generator))))
        nats += torch.cat([bound(model, *part) for part in parts]) / masks
    bits = nats / math.log(2)
    return bits.mean().item(), bits.std().item() / len(bits) ** 0.5


def main(path=None, iters=max_iters, seed=1):
    torch.manual_seed(seed)
    text = read(path)
    chars = ["_", *sorted(set(text))]  # of each id; masks are shown as _
    ids = {c: i for i, c in enumerate(chars)}
    data = torch.tensor([ids[c] for c in text])
    train, val = data[: len(data) * 9 // 10], data[len(data) * 9 // 10 :]
    model = Transformer(len(chars))
    size = sum(p.numel() for p in model.parameters())
    print(f"{len(text):,} characters, {len(chars) - 1} different ones; {size:,} parameters; seed {seed}")

    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    begin, losses = time.time(), []
    for i in range(iters):
        x0 = train[torch.randint(len(train) - seq_len + 1, (batch_size, 1)) + torch.arange(seq_len)]  # (B, L)
        t, u = random_numbers(batch_size)
        value = loss(model, x0, t_min + (t_max - t_min) * t, u)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        # Up within 100 iterations, and in the second half down to nothing, which is where most is gained.
        optimizer.param_groups[0]["lr"] = learning_rate * min(1, (i + 1) / 100, 2 * (iters - i) / iters)
        optimizer.step()
        losses.append(value.item())
        if (i + 1) % 250 == 0 or i + 1 == iters:
            mean = sum(losses[-250:]) / len(losses[-250:])
            print(f"iteration {i + 1:4}   loss {mean:.3f} nats   {time.time() - begin:3.0f} s", flush=True)

    rows = val[: len(val) // seq_len * seq_len].view(-1, seq_len)[:400]
    print("validation: {:.3f} +- {:.3f} bits per character (exact)".format(*evaluate(model, rows)))

    def show(x):
        return "".join(chars[i] if chars[i].isprintable() else " " for i in x)

    for n in range(4):
        for step, x in enumerate(sample(model, torch.full((seq_len,), MASK), steps, temperature), 1):
            if step == steps or n == 0 and step % math.ceil(steps / 8) == 0:
                print(f"step {step:3}: {show(x)}")


if __name__ == "__main__":
    if len(sys.argv) > 2 or {"-h", "--help"} & {*sys.argv}:
        sys.exit(__doc__)
    sys.stdout.reconfigure(errors="replace")  # where the terminal lacks a character of the text
    main(*sys.argv[1:])
