"""Several processes: DDP where the model fits into each, FSDP2 where it does not. `torchrun` starts them.

Sharded tensors (DTensors) are gathered before they are saved and cut up again when they are read, so that a checkpoint
looks the same whoever wrote it, and a run may be resumed by another number of processes.
"""

import contextlib
import gc
import os
import socket
import sys
import threading
import time
import traceback
import uuid
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

REQUEUE = 75  # exit status of a run that was asked to stop and has saved: start the same command again (EX_TEMPFAIL)


def start(device, patience=120.0):
    """(rank, number of processes, device of this one), with the processes connected, and each watching for the others.
    Call it inside of processes()."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        if device == "cuda":
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(device)
        # Both: what is on the CPU, as a flag, waits for no GPU. Long: machines that tokenize for themselves are not
        # equally fast, and all wait while the first one saves. A process that is gone is found by watch().
        backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
        limit = timedelta(hours=2)
        store, rank, world = next(rendezvous("env://", timeout=limit))
        name = meet(store, rank, world)
        ended.clear()
        failed.clear()
        threading.Thread(target=watch, args=(name, rank, world, patience), daemon=True).start()
        store = dist.PrefixStore(name, store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=limit)
    return rank, world, device


def meet(store, rank, world):
    """A name for this start of the processes, the same in all, which no earlier one had.

    torchrun keeps its store when it starts lost processes anew. What reads there what a dead process has written tries
    to connect to it for ever; so each process asks the first one for the name under a key of its own."""
    mine = uuid.uuid4().hex
    store.set(f"asks/{rank}", mine)
    if rank:
        name = store.get(f"name/{mine}").decode()
        store.set(f"{name}/met/{rank}", "")
        return name
    left = set(range(1, world))
    while left:
        for r in left:
            if store.check([f"asks/{r}"]):  # by a dead process, perhaps: then it is asked again
                store.set(f"name/{store.get(f'asks/{r}').decode()}", mine)
        left = {r for r in left if not store.check([f"{mine}/met/{r}"])}
        time.sleep(0.02)
    return mine


@contextlib.contextmanager
def processes():
    """Around everything that several processes do together: however it ends, the connections go last.

    Whatever holds the group must be gone when it is destroyed. A DistributedDataParallel that is freed later frees the
    group under the interpreter's lock, and waits for a thread of the group that waits for that lock: for ever."""
    try:
        yield
        any_of(False)  # nobody leaves before the last one is done
    except BaseException as e:
        if dist.is_initialized():
            if isinstance(e, RuntimeError):  # a broken connection, perhaps: watch() will know whose, and end this
                failed.set()
                time.sleep(8)
            traceback.clear_frames(e.__traceback__)
        raise
    finally:
        ended.set()
        if dist.is_initialized():
            gc.collect()
            dist.destroy_process_group()


def wrap(model, s, device, compiled):
    """The network as it is trained: compiled, and by several processes together (train.Settings.sharding=ddp)."""
    if s.sharding == "fsdp":  # which shard() has done
        return model
    model = torch.compile(model) if compiled else model
    if dist.is_initialized():
        on = [device] if torch.device(device).type == "cuda" else None
        model = torch.nn.parallel.DistributedDataParallel(model, device_ids=on)
    return model


@contextlib.contextmanager
def synchronised(model, last):
    """Within a micro-batch: gradients are summed over the processes after the last one of an iteration alone."""
    if hasattr(model, "set_requires_gradient_sync"):  # FSDP2
        model.set_requires_gradient_sync(last)
    alone = hasattr(model, "no_sync") and not last  # DDP
    with model.no_sync() if alone else contextlib.nullcontext():
        yield


def total(tensor):
    """The sum of a tensor over all processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def from_first(value):
    """The value that the first process has. All call this together."""
    box = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(box)
    return box[0]


def to(device, x):
    """Tensors, and dicts, tuples and objects of them (with a `to` of their own), on the device; others as they are."""
    if isinstance(x, dict):
        return {k: to(device, v) for k, v in x.items()}
    if isinstance(x, tuple):
        return tuple(to(device, v) for v in x)
    cuda = torch.device(device).type == "cuda"
    if torch.is_tensor(x) and cuda:
        x = x.pin_memory()
    return x.to(device, non_blocking=cuda) if hasattr(x, "to") else x


def any_of(flag):
    """Whether it is true in any process. All processes call this together."""
    if not dist.is_initialized():
        return bool(flag)
    flag = torch.tensor(float(flag))
    dist.all_reduce(flag)
    return bool(flag)


def gather(value):
    """The values of all processes, a list. All call this together."""
    found = [value]
    if dist.is_initialized():
        found *= dist.get_world_size()
        dist.all_gather_object(found, value)
    return found


ended, failed = threading.Event(), threading.Event()  # for watch(): all is over; a collective has gone wrong


def watch(name, rank, world, patience):
    """Give a sign of life twice a second, and end this process once another one has given none for `patience` seconds,
    or for 3 where a collective has already failed. It says which. Without this, what waits for a process that is gone
    would wait for hours.

    The signs are counters in the store that connected the processes. The first process looks at all of them, the others
    at the first one's, and at what it found."""
    here = f"{socket.gethostname()}, process {os.getpid()}"
    seen = {}

    def lost(store):
        """What is wrong, or nothing."""
        store.add(f"{name}/alive/{rank}", 1)
        if store.check([f"{name}/lost"]):
            return store.get(f"{name}/lost").decode()
        for r in range(world) if rank == 0 or failed.is_set() else (0,):
            count, now = store.add(f"{name}/alive/{r}", 0), time.monotonic()
            if seen.get(r, (-1, 0))[0] != count:
                seen[r] = count, now
            quiet = now - seen[r][1]
            if r != rank and quiet > (min(3.0, patience) if failed.is_set() else patience):
                who = store.get(f"{name}/who/{r}").decode() if store.check([f"{name}/who/{r}"]) else "never heard of"
                store.set(f"{name}/lost", f"rank {r} ({who}) has given no sign of life for {quiet:.0f} s")
                return store.get(f"{name}/lost").decode()
        return ""

    try:
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        limit = timedelta(seconds=max(patience, 5))
        store = dist.TCPStore(*address, is_master=False, wait_for_workers=False, timeout=limit)
        store.set(f"{name}/who/{rank}", here)
        while not ended.wait(0.5):
            if found := lost(store):
                break
        else:
            return
    except Exception as e:
        found = f"rank 0, which keeps the connections, cannot be reached ({str(e).splitlines()[0][:80]})"
    if not ended.wait(1.5):  # the others read it, too
        print(f"{found}; rank {rank} ({here}) ends. Start the same command to go on", file=sys.stderr, flush=True)
        os._exit(REQUEUE)


def blocks(model):
    """The repeated parts of a network, which are sharded, compiled and recomputed one by one."""
    if hasattr(model, "blocks"):
        return list(model.blocks)
    names = set(getattr(model.hf, "_no_split_modules", None) or ())
    return [m for m in model.modules() if type(m).__name__ in names]


def shard(model, dtype, device, compiled=False):
    """Cut every block's parameters, and what is left, into a part for each process (FSDP2): they come together, in
    `dtype`, only while they are used; gradients are summed in float32."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # Inputs stay as they are: rotary angles are float32, and until torch 2.12 recomputation would not cast them again.
    for block in blocks(model) if compiled else ():
        block.compile()
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    mesh = dist.init_device_mesh(torch.device(device).type, (dist.get_world_size(),))
    for module in (*blocks(model), model):
        # The root, too, parts again after each forward: or evaluating averaged weights would leave them behind in it.
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    return model.to(device)


@contextlib.contextmanager
def undivided(model):
    """All of a network that is cut into parts in every process for a while, where each may use it as often as it likes
    (FSDP2 puts it together anew, by all, for every forward). Of other networks nothing is done."""
    parts = [*blocks(model), model] if hasattr(model, "unshard") else []
    if parts and not hasattr(model, "has_run"):  # until its first forward the whole does not know its parts
        with torch.no_grad():
            model(torch.zeros(1, 1, dtype=torch.int64, device=next(model.parameters()).device))
        model.has_run = True
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def sharded(x):
    """Whether it is a DTensor; its class would take half a second to import, for one process as for many."""
    return hasattr(x, "full_tensor")


def whole(x):
    """x with every sharded tensor in it gathered, on the CPU of the first process, and None in the others: of a tensor,
    or dicts and lists of them. All processes call this together."""
    if isinstance(x, dict):
        return {k: whole(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return type(x)(whole(v) for v in x)
    if sharded(x):
        full = x.detach().full_tensor()
        return None if dist.get_rank() else full.to("cpu", copy=True)  # a view of something larger could not be saved
    return x.detach() if torch.is_tensor(x) else x


def is_finite(x):
    """Whether all numbers are finite that this process has of the tensor x."""
    return (x.to_local() if sharded(x) else x).isfinite().all()


def like(parameter, x):
    """The whole tensor x, cut up as the parameter is; tensors of another shape (an optimiser's counts) as they are."""
    if sharded(parameter) and torch.is_tensor(x) and x.shape == parameter.shape:
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(x.to(parameter.device), parameter.device_mesh, parameter.placements)
    return x


def load_optimizer(optimizer, saved):
    """Give an optimiser the state that whole() made of one; rates and decay stay this run's."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {i: {k: like(parameters[i], v) for k, v in s.items()} for i, s in saved["state"].items()}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
