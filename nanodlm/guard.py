"""What a function of a network and of texts asks of the two, in one decorator: no dropout, no gradients, texts that are
rows of ids, a network that can do what will be asked of it; or one sentence that says what is not so."""

import contextlib
import functools
import inspect

import torch


@contextlib.contextmanager
def still(model):
    """Without gradients and dropout."""
    active = [m for m in model.modules() if m.training] if isinstance(model, torch.nn.Module) else []
    try:
        for m in active:
            m.training = False
        with torch.no_grad():
            yield
    finally:
        for m in active:  # each as it was: a part may be frozen
            m.training = True


def evaluating(*needs):
    """For functions of a network and of texts: without gradients and dropout, which comes back behind them; prompts and
    targets may be lists of ids, too. `needs` are attributes that the network must have, besides a forward with rows (or
    hidden, where that is needed)."""

    def decorate(function):
        signature = inspect.signature(function)

        @functools.wraps(function)
        def evaluated(*args, **keys):
            bound = signature.bind(*args, **keys)
            model = bound.arguments["model"]
            check_network(model, needs)
            for name in bound.arguments.keys() & {"prompts", "targets"}:
                bound.arguments[name] = texts(bound.arguments[name], name, model)
            with still(model):
                return function(*bound.args, **bound.kwargs)

        return evaluated

    return decorate


def check_network(model, needs):
    """ValueError where a network lacks what it is asked for; model.Transformer has it all."""
    for need in needs:
        found = model
        for part in need.split("."):
            if not hasattr(found, part):
                raise ValueError(f"{type(model).__name__} has no {need}; see model.Transformer for what is asked of it")
            found = getattr(found, part)
    if isinstance(model, torch.nn.Module):
        name = "hidden" if "hidden" in needs else "forward"
        takes = inspect.signature(getattr(model, name)).parameters.values()
        if not any(p.name == "rows" or p.kind == p.VAR_KEYWORD for p in takes):
            raise ValueError(f"{type(model).__name__}.{name} takes no rows; see model.Transformer.{name}")


def texts(given, name, model):
    """Texts, each a row of ids, as 1-D int64 tensors; ValueError where they are something else."""
    found = []
    for ids in given:
        try:
            row = ids if torch.is_tensor(ids) else torch.as_tensor(ids, device=next(model.parameters()).device)
        except (TypeError, ValueError, RuntimeError):
            row = None
        if row is None or row.dim() != 1 or len(row) and (row.is_floating_point() or row.dtype == torch.bool):
            shape = f"{type(ids).__name__}" if row is None else f"{row.dtype} of shape {tuple(row.shape)}"
            raise ValueError(f"{name} are texts, each a row of ids, as [[1, 2, 3], [4, 5]]; one here is {shape}")
        found.append(row.long())
    return found
