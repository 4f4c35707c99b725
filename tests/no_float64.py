"""A device without float64 on a machine that has none: Apple's GPUs, as far as a CPU can tell.

Its tensors say that they are on `lacking:0`, hold what they hold on the CPU, and refuse what such a device refuses:
float64, tensors of the host beside their own (but single numbers, and indices), and sorting int64, which is wrong there
from 256 numbers on (pytorch/pytorch issue 155560). So it finds what a CUDA device would refuse, too.

Autograd must know of a device before it runs for the first time: use this in a process of its own (see Device)."""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from nanodlm import noise

NAME, aten = "lacking", torch.ops.aten
CROSSING = {aten._to_copy.default, aten.copy_.default}  # between devices
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
ORDER = {aten.sort.default, aten.sort.stable, aten.argsort.default, aten.argsort.stable, aten._unique2.default}


class Module:
    """What torch asks of the module torch.lacking."""

    def is_available(self):
        return True

    def device_count(self):
        return 1

    def current_device(self):
        return 0

    def _is_in_bad_fork(self):
        return False

    def manual_seed_all(self, seed):
        pass

    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]


class There(torch.Tensor):
    """A tensor of the device: `held`, on the CPU, is what it holds."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held):
        if held.dtype in (torch.float64, torch.complex64, torch.complex128):
            raise TypeError(f"there is no {held.dtype} on this device")
        keys = dict(strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=f"{NAME}:0")
        return torch.Tensor._make_wrapper_subclass(cls, held.size(), **keys)

    def __init__(self, held):
        self.held = held

    def __reduce_ex__(self, protocol):  # in a file as what torch.load gives on a machine with a CPU alone
        return self.held.__reduce_ex__(protocol)

    def __repr__(self):
        return f"there({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), keys=None):
        return run(function, args, keys or {})


def tensors(x):
    """Those in lists and tuples of anything."""
    if isinstance(x, list | tuple):
        return [t for y in x for t in tensors(y)]
    return [x] if isinstance(x, torch.Tensor) else []


def each(change, x):
    return type(x)(each(change, y) for y in x) if isinstance(x, list | tuple) else change(x)


def run(function, args, keys):
    """An operation of which a tensor, or the result, is on the device."""
    given = tensors((args, tuple(keys.values())))
    asked = keys.get("device") and torch.device(keys["device"]).type
    there = asked == NAME if asked else any(isinstance(x, There) for x in given)
    if function in INDEXING and isinstance(args[0], There):  # whose indices may be the host's
        given = [args[0], *args[2:3]]
    places = {isinstance(x, There) for x in given if x.dim() or isinstance(x, There)}
    if len(places) == 2 and function not in CROSSING:
        said = ", ".join(f"{x.dtype}{tuple(x.shape)} on {x.device}" for x in given)
        raise RuntimeError(f"{function}: tensors of two devices: {said}")
    if function in ORDER and there and args[0].dtype == torch.int64:
        raise TypeError(f"{function}: sorting int64 is wrong on Apple's GPUs")
    made = args[0].dtype if function is aten.copy_.default else keys.get("dtype")
    if function in CROSSING and made == torch.float64 and isinstance(given[-1], There):
        raise TypeError("what is on this device becomes float64 on the host, not on the way there")

    def held(x):
        return x.held if isinstance(x, There) else x

    inside = keys | ({"device": torch.device("cpu")} if asked else {})
    out = function(*each(held, args), **{k: each(held, v) for k, v in inside.items()})
    if function is aten.copy_.default:
        return args[0]
    if not there:
        return out
    out = each(lambda x: There(x) if isinstance(x, torch.Tensor) else x, out)
    on_device = any(isinstance(x, There) for x in given)
    return return_and_correct_aliasing(function, args, keys, out) if on_device else out


class Factories(TorchDispatchMode):
    """Tensors made on the device, or brought to it."""

    def __torch_dispatch__(self, function, types, args=(), keys=None):
        keys = keys or {}
        asked = keys.get("device") and torch.device(keys["device"]).type
        there = asked == NAME or any(isinstance(x, There) for x in tensors((args, tuple(keys.values()))))
        return run(function, args, keys) if there else function(*args, **keys)


class Literals(TorchFunctionMode):
    """torch.tensor and its like, which reach no dispatch mode."""

    def __torch_function__(self, function, types, args=(), keys=None):
        keys = dict(keys or {})
        if function in (torch.tensor, torch.as_tensor) and keys.get("device") is not None:
            device = keys.pop("device")
            return function(*args, **keys).to(device)
        if function in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):  # lists among the indices
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor(i) if isinstance(i, list) else i for i in index)
            return function(args[0], index, *args[2:])
        if function is torch.Tensor.tolist:
            return args[0].cpu().tolist()
        if function is torch.Tensor.new_tensor:
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype} | keys).to(args[0].device)
        return function(*args, **keys)


class Device:
    """with Device() as name: the device is there, and the project knows that it has no float64."""

    def __enter__(self):
        if not hasattr(torch, NAME):
            _setup_privateuseone_for_python_backend(NAME, Module())
            self.library = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
            self.library.fallback(torch.library.fallthrough_kernel)  # autocast changes nothing here
        self.modes = Factories(), Literals()
        for mode in self.modes:
            mode.__enter__()
        self.before, noise.NO_FLOAT64 = noise.NO_FLOAT64, (*noise.NO_FLOAT64, NAME)
        return NAME

    def __exit__(self, *what):
        noise.NO_FLOAT64 = self.before
        for mode in reversed(self.modes):
            mode.__exit__(*what)
