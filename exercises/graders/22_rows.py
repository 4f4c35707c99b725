"""The claims of lesson 22, beside model.Transformer and plain cross entropy; a spy sees what is multiplied."""

import contextlib

import torch
import torch.nn.functional as F
import toy
from checks import alike, generator, true
from torch.overrides import TorchFunctionMode

C, V, N = 4, 37, 20  # C and V are unlike everything else here, so that logits are known by their shape
FIRST = "choose the places first, then multiply: no logits of others are computed"
ORDER = "row by row, from left to right, as hidden_states[rows] has them"
PARTS = "multiply part by part, and keep of each part its nll alone"
KEEPS = "autograd keeps the logits for the backward pass: checkpoint the function that makes them"
GRADIENT = "the result leads back to states and weight: no detach, no torch.no_grad, no .data"


def storage(x):
    return x.untyped_storage().data_ptr()


def places(x, weight):
    """How many places have logits in x; 0 where x holds none, or is the weight by another view."""
    if not torch.is_tensor(x) or V not in x.shape or storage(x) == storage(weight):
        return 0
    return x.numel() // V


class Spy(TorchFunctionMode):
    """The most places of which any one function returned logits."""

    def __init__(self, weight):
        super().__init__()
        self.weight, self.most = weight, 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.most = max(
            self.most, *(places(x, self.weight) for x in (out if isinstance(out, tuple | list) else [out])), 0
        )
        return out


def random(*shape, seed):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def claim_chosen(my):
    """the logits are those that the whole network has at the chosen places"""
    states, weight = random(3, 5, C, seed=0), random(V, C, seed=1)
    rows = torch.rand(3, 5, generator=generator(2)) < 0.4
    logits = states @ weight.T
    mistakes = [
        (logits.transpose(0, 1)[rows.T], ORDER),
        (logits[~rows][: int(rows.sum())], "rows are the chosen places"),
    ]
    alike(my.head_at(states, weight, rows), logits[rows], ORDER, mistakes)
    alike(
        my.head_at(states, weight, rows & False), logits[rows][:0], "there may be no place at all", what="none chosen"
    )
    net, x = toy.transformer(), toy.texts(3, 5)
    with torch.no_grad():
        alike(my.head_at(net.hidden(x), net.head_weight, rows), net(x, rows=rows), ORDER, what="a Transformer's")


def claim_only(my):
    """no logits are computed of places that nobody chose"""
    states, weight = random(3, 5, C, seed=0), random(V, C, seed=1)
    rows = torch.zeros(3, 5, dtype=torch.bool)
    rows[0, 1] = rows[2, 3] = True
    with Spy(weight) as spy:
        my.head_at(states, weight, rows)
    true(spy.most <= 2, "logits of 2 places", f"{spy.most}", FIRST)


def problem():
    states, weight = random(N, C, seed=3).requires_grad_(), random(V, C, seed=4).requires_grad_()
    return states, weight, torch.randint(V, (N,), generator=generator(5))


def claim_same(my):
    """in parts of any size the nll is the same, and so are the gradients"""
    states, weight, targets = problem()
    want = F.cross_entropy(states @ weight.T, targets, reduction="none")
    each = "one number for each target: neither sum nor mean"
    for at_once in (1, 7, N, 3 * N):
        got, what = my.nll_in_parts(states, weight, targets, at_once), f"N={N}, at_once={at_once}"
        short = torch.is_tensor(got) and got.shape == (N // at_once * at_once,) != (N,)
        true(not short, f"{N} numbers", f"{what}: {len(got) if short else 0}", "the last part may be shorter")
        true(not (torch.is_tensor(got) and got.numel() == 1), f"{N} numbers", "one number", each)
        alike(got, want, "-log_softmax at the target, place by place", [(-want, "the sign: -log p")], what=what)
        true(got.requires_grad, "a result with a gradient", "none", GRADIENT)
        factor = random(N, seed=6)
        wanted = torch.autograd.grad((want * factor).sum(), (states, weight), retain_graph=True)
        found = torch.autograd.grad((got * factor).sum(), (states, weight), allow_unused=True)
        for name, a, b in zip(("states", "weight"), found, wanted):
            true(a is not None, f"a gradient of {name}", "none", GRADIENT)
            alike(a, b, GRADIENT, what=f"{what}, the gradient of {name}")
    none = my.nll_in_parts(states[:0], weight, targets[:0], 7)
    alike(none, want[:0], "N may be 0, and then there is nothing to put together", what="N=0")


def claim_memory(my):
    """logits are never there of more than at_once places"""
    states, weight, targets = problem()
    for grad in (False, True):
        with torch.set_grad_enabled(grad), Spy(weight) as spy:
            my.nll_in_parts(states, weight, targets, 6)
        true(spy.most <= 6, "logits of at most 6 places at once", f"{spy.most}", PARTS)
        true(spy.most > 0, "logits of some places", "none, in any function of PyTorch", PARTS)


def claim_kept(my):
    """between the forward and the backward pass autograd keeps no logits"""
    states, weight, targets = problem()
    kept = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(places(x, weight)), x)[1], lambda x: x)
    with contextlib.ExitStack() as stack:
        stack.enter_context(hooks)
        got = my.nll_in_parts(states, weight, targets, 6)
    want = F.cross_entropy(states @ weight.T, targets, reduction="none").detach()
    alike(got.detach() if torch.is_tensor(got) else got, want, PARTS)
    true(not sum(kept), "no logits kept", f"of {sum(kept)} places", KEEPS)


def counted(net, x, rows):
    """Multiply-adds of all matrices in a pass, by looking at it."""
    total = 0

    class Count(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            nonlocal total
            if function is F.linear:
                total += args[0].numel() * args[1].shape[0]
            return function(*args, **(kwargs or {}))

    with torch.no_grad(), Count():
        net(x, rows=rows)
    return total


def claim_count(my):
    """the count is what a Transformer multiplies, with all rows, and with some"""
    x = toy.texts(2, 9)
    for layers, chosen in ((1, 18), (3, 18), (3, 5), (2, 0), (1, 1)):
        net = toy.transformer(n_layer=layers)
        size, c, v, t = layers, 16, toy.VOCAB, 18
        last = "of the last layer only the MLP sees the rows: its attention reads all tokens"
        wrong = [
            (t * 12 * size * c * c + chosen * c * v, "behind the last attention the MLP, too, sees the rows alone"),
            (t * 12 * (size - 1) * c * c + chosen * (12 * c * c + c * v), last),
            (chosen * (12 * size * c * c + c * v), "all layers but the end of the last see all tokens"),
            (t * (12 * size * c * c - 8 * c * c + c * v) + chosen * 8 * c * c, "the head sees the rows alone"),
            (2 * counted(net, x, torch.arange(chosen)), "a multiplication with its addition counts once"),
        ]
        what = f"tokens={t}, rows={chosen}, layers={size}, C={c}, V={v}"
        hint = "12 C^2 in each layer, of which 8 C^2 are the MLP's"
        got = my.multiply_adds(t, chosen, size, c, v)
        alike(got, counted(net, x, torch.arange(chosen)), hint, wrong, what=what)
