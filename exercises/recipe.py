"""Your capstone: what network, and how it is trained. `python exercises/start.py` copies this file to exercises/mine/.

Change what you like: shape, rates, loss. What stays the same for everyone is the budget, which capstone.py counts in
arithmetic rather than in seconds, so that all laptops are equal: a larger network takes fewer iterations. The score is
always the bound.
"""

import torch

n_layer, n_head, n_embd = 4, 4, 128
seq_len = 128  # characters that the network sees at once
batch_size = 8  # rows per iteration
learning_rate = 3e-3  # at its highest, after warmup_iters
warmup_iters = 100
seed = 1


def loss(my, model, x0, uniform, mask_id):
    """What an iteration minimises: a tensor of no dimension.

    my        your functions of lessons 2, 5 and 7, such as my.hide
    x0        int64 (B, L), rows of text
    uniform   uniform(which, *shape): float64 uniform numbers, other ones for each which, and in each iteration
    """
    B, L = x0.shape
    every = torch.ones(B, L, dtype=torch.bool)
    times = my.stratified(uniform(0, B).argsort(), uniform(1, B))
    k = my.draw_count(every.sum(1), times)  # stratified, too: few hidden in some rows, many in others
    hidden = my.hide(k, uniform(2, B, L), every)
    nll = my.nll(model, torch.where(hidden, mask_id, x0), x0, mask_id)
    return (my.weight(k, every) * nll.sum(1)).mean() / L
