# %% [markdown]
# # 29 · Insertions, deletions, replacements
# *Chapter VII, edits. 45 minutes. Edit Flows (arXiv 2506.09018); jump processes: 2205.14987.*
#
# Everywhere so far a text had its length before it had a word. Now it has none: it *grows*. Take a text $x_0$, perhaps
# an empty one, and a text $x_1$ of the data, and write one below the other, with blanks (dots) so that both are equally
# long. For an empty text there is nothing to decide, all is to be inserted; for others there are many ways:
#
#     z_0  . . .        z_0  b . d e k        z_0  b d e k . . . .
#     z_1  a b c        z_1  b c d e .        z_1  . . . . b c d e
#
# A column in which the two differ is an **edit**: of a blank into a letter (insert), of a letter into a blank (delete),
# or into another letter (replace). Now let a time κ run from 0 to 1, and make each edit at a moment of its own, uniform
# in [0, 1]. At κ some are made: that is $z_\kappa$, and without its blanks the text $x_\kappa$. Each of the others is
# *outstanding*, and comes, per unit of time, at the rate
#
# $$ R = \frac{1}{1 - \kappa} $$
#
# as what is uniform in the time that is left. Whoever knows $x_\kappa$ alone does not know the edits. So a network
# says, of all edits that could be made at all, at which rates $u$ they come: of every place and every letter. What does
# that cost? As in lesson 26, the divergence of two processes that jump, per unit of time:
#
# $$ \sum_{\text{all edits } e} u_e \;+\; \sum_{\text{outstanding } e} R \, \Big( \log \frac{R}{u_e} - 1 \Big) $$
#
# The first sum is for the edits that the network expects, the second for those that come. Its integral over κ, in
# expectation over what is made, is a bound on $-\log p(x_1 \mid x_0)$: two orders of making the edits are never the
# same path (of aa, to insert in front of the first a is not to insert behind it), as every letter of $x_1$ tells which
# column it came from.
#
# If $u_e$ is R times the expected number of outstanding edits e, given $x_\kappa$, the bound cannot be lower; and then
# whoever makes edits at these rates, and knows nothing of z, writes exactly the texts of the data.

# %%
import sys

sys.path += ["exercises", ".", "..", "../.."]  # the course and the project, from wherever this is run

import itertools
import math

import numpy as np
import torch

from nanodlm.noise import uniform

BLANK = -1

# %% [markdown]
# ## Write
#
# An edit is a tuple (kind, place, letter). Its place is the number of letters of $x_\kappa$ that stand before the
# column: so it is the index of the letter that goes or is replaced, or of that in front of which the new one comes. The
# letter is BLANK where one is deleted.


# %%
def outstanding(z, z1):
    """The edits that are not made yet, from left to right.

    z, z1    lists of ints, equally long: a letter, or BLANK
    returns  list of tuples ("insert" or "delete" or "replace", place, letter)
    """
    raise NotImplementedError("outstanding is yours to write")


def apply(x, edits):
    """Make several edits at once: their places are all those of x as it is now.

    x        list of ints; leave it as it is
    edits    list of tuples as above, in any order, at most one insertion and one other edit at a place
    returns  list of ints
    """
    raise NotImplementedError("apply is yours to write")


def estimate(total, u, kappa):
    """What is inside of the expectation and the integral.

    total    float, the sum of the network's rates of all edits
    u        float64 (n,), the network's rates of the outstanding edits, above 0
    kappa    float, at least 0 and below 1
    returns  float, nats
    """
    raise NotImplementedError("estimate is yours to write")


# %% [markdown]
# ## What one sees
#
# A language of five words, of one to three letters, and a model that knows it. Its bound of every word is -log p, the
# length of the word included: nobody has to say it. Then words that grow from nothing, one edit after the other; and
# how often each comes, of 1000.
#
#     a: bound 1.2040, -log p 1.2040
#     ab: bound 1.6094, -log p 1.6094
#     bab: bound 0.9163, -log p 0.9163
#     bb: bound 2.9957, -log p 2.9957
#     aaa: bound 2.9957, -log p 2.9957
#     nothing → b → ab → bab
#     nothing → b → ab
#     nothing → a
#     nothing → a
#     nothing → b → ab
#     nothing → a → ab → bab
#     a 0.293 (0.3), ab 0.223 (0.2), bab 0.368 (0.4), bb 0.063 (0.05), aaa 0.053 (0.05)

# %%
if __name__ == "__main__":
    WORDS = {"a": 0.3, "ab": 0.2, "bab": 0.4, "bb": 0.05, "aaa": 0.05}

    def states(word, kappa):
        """(probability, x, outstanding edits) of all that may be made of a word at kappa."""
        z1 = ["ab".index(c) for c in word]
        for done in itertools.product([False, True], repeat=len(z1)):
            z = [a if d else BLANK for a, d in zip(z1, done)]
            yield math.prod(kappa if d else 1 - kappa for d in done), tuple(a for a in z if a >= 0), outstanding(z, z1)

    def knowing(kappa):
        """{x: {edit: its rate}}: R times the expected number of outstanding edits."""
        mass, count = {}, {}
        for word, p in WORDS.items():
            for q, x, edits in states(word, kappa):
                mass[x] = mass.get(x, 0) + p * q
                for e in edits:
                    count.setdefault(x, {})[e] = count.get(x, {}).get(e, 0) + p * q
        return {x: {e: c / mass[x] / (1 - kappa) for e, c in count.get(x, {}).items()} for x in mass if mass[x]}

    bounds = dict.fromkeys(WORDS, 0.0)
    for node, weight in zip(*np.polynomial.legendre.leggauss(60)):
        v = (node + 1) / 2
        kappa = v * v * (3 - 2 * v)  # denser at both ends
        rates = knowing(kappa)
        for word in WORDS:
            for q, x, edits in states(word, kappa):
                u = torch.tensor([rates[x][e] for e in edits], dtype=torch.float64)
                bounds[word] += 3 * weight * v * (1 - v) * q * estimate(sum(rates[x].values()), u, kappa)
    for word, p in WORDS.items():
        print(f"{word}: bound {bounds[word]:.4f}, -log p {-math.log(p):.4f}")
    grid = [1 - (1 - k / 100) ** 2 for k in range(101)]  # small steps at the end, where the rates are large
    table, ends = [knowing(k) for k in grid[:-1]], []
    for row in range(1000):
        x, seen = [], [""]
        for k, v in enumerate(uniform(row, torch.arange(100)).tolist()):
            for e, rate in table[k].get(tuple(x), {}).items():  # one of them comes, or none
                v -= rate * (grid[k + 1] - grid[k])
                if v < 0:
                    x = apply(x, [e])
                    seen.append("".join("ab"[i] for i in x))
                    break
        ends.append(seen[-1])
        if row < 6:
            print(" → ".join(["nothing", *seen[1:]]))
    print(", ".join(f"{word} {ends.count(word) / 1000:.3f} ({p})" for word, p in WORDS.items()))

# %% [markdown]
# In the project: `editflow.token_bound`, whose network says for every place how many edits are outstanding there and
# with which letters, `editflow.generate`, which makes them in leaps or one by one, and `nanodlm.alignments.align`. What
# can be undone, here and in LLaDA 2.1 and 2.2: `docs/editing.md`.
