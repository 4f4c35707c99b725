"""Several processes: DDP where the model fits into each, FSDP2 where it does not. `torchrun` starts them.

Sharded tensors (DTensors) are gathered before they are saved and cut up again when they are read, so that a checkpoint
looks the same whoever wrote it, and a run may be resumed by another number of processes.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor


def start(device):
    """(rank, number of processes, device of this one), with the processes connected."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        if device == "cuda":
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(device)
        # Long: machines that tokenize for themselves are not equally fast, and all wait while the first one saves.
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=timedelta(hours=2))
    return rank, world, device


def blocks(model):
    """The repeated parts of a network, which are sharded, compiled and recomputed one by one."""
    if hasattr(model, "blocks"):
        return list(model.blocks)
    names = set(getattr(model.hf, "_no_split_modules", None) or ())
    return [m for m in model.modules() if type(m).__name__ in names]


def shard(model, dtype, device):
    """Cut every block's parameters, and what is left, into a part for each process (FSDP2): they come together, in
    `dtype`, only while they are used; gradients are summed in float32."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # Inputs stay as they are: rotary angles are float32, and until torch 2.12 recomputation would not cast them again.
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    mesh = dist.init_device_mesh(torch.device(device).type, (dist.get_world_size(),))
    for module in (*blocks(model), model):
        # The root, too, parts again after each forward: or evaluating averaged weights would leave them behind in it.
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    return model.to(device)


def whole(x):
    """x with every sharded tensor in it gathered, on the CPU of the first process, and None in the others: of a tensor,
    or dicts and lists of them. All processes call this together."""
    if isinstance(x, dict):
        return {k: whole(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return type(x)(whole(v) for v in x)
    if isinstance(x, DTensor):
        full = x.detach().full_tensor()
        return None if dist.get_rank() else full.to("cpu", copy=True)  # a view of something larger could not be saved
    return x.detach() if torch.is_tensor(x) else x


def is_finite(x):
    """Whether all numbers are finite that this process has of the tensor x."""
    return (x.to_local() if isinstance(x, DTensor) else x).isfinite().all()


def like(parameter, x):
    """The whole tensor x, cut up as the parameter is; tensors of another shape (an optimiser's counts) as they are."""
    if isinstance(parameter, DTensor) and torch.is_tensor(x) and x.shape == parameter.shape:
        return distribute_tensor(x.to(parameter.device), parameter.device_mesh, parameter.placements)
    return x


def load_optimizer(optimizer, saved):
    """Give an optimiser the state that whole() made of one; rates and decay stay this run's."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {i: {k: like(parameters[i], v) for k, v in s.items()} for i, s in saved["state"].items()}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
