"""A pretended accelerator: runs and counts device code on a machine that has none.

Its tensors are torch's own, of device type "fake" and with memory of the host. Each operator is run by the CPU's kernel
on that memory, so results equal the CPU's bit for bit. As CUDA does, it refuses tensors of two devices in one operator,
except where CUDA takes a 0-d tensor of the CPU. It counts operators that launch kernels, and waits of the host.
Where there is a GPU nothing is pretended, and the fixture `accelerator` is that GPU.

    device = install()  # torch.device("fake", 0); before the first backward pass of the process, so in conftest.py
    with watch() as seen:
        torch.randn(3, device=device).sum().item()
    seen.launches, seen.waits, seen.lines(waits=True)  # 2, 1, Counter({"script.py:3": 1})

It has no generators, streams, graphs, autocast or pinned memory. An operator is one launch, though CUDA makes several
for a factorisation, a sort or foreach over hundreds of tensors. ``x[mask] = 0.0`` is a wait, which on CUDA it is not.
DLPack gives memory another device type without a copy; `torch.library` takes Python kernels for it.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import sys
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import backend_registration

NAME, KIND, KEY, _CPU = "fake", 12, "PrivateUse1", 1  # device type, its number in dlpack.h, its key in torch; the CPU's
# torch has one accelerator, whose streams a backward pass asks for; older ones take none that is made in Python
PRETENDS = not torch.cuda.is_available() and hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
_device = torch.device("cpu")  # until it is installed
_watching: list[Seen] = []
_aten, _autocast = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]

# Where CUDA takes a 0-d tensor of the CPU: as an argument of the kernel, or (where) by a copy for which the host waits.
_TAKES_NUMBERS = """add sub rsub mul div floor_divide remainder fmod pow atan2 hypot copysign xlogy maximum minimum fmax
    fmin eq ne lt le gt ge logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor lerp addcmul addcdiv
    clamp_min clamp_max logaddexp masked_fill fill index_fill index_put _index_put_impl where""".split()  # noqa: SIM905
_TAKES_INDICES = ["index", "index_put", "_index_put_impl"]  # of the CPU, by a copy
_WRAPS_NUMBERS = ["add", "sub", "mul", "div", "true_divide", "floor_divide"]  # given from Python to an operator
# Where CUDA reads numbers of the device, since a shape or the next step depends on them.
_READS = """nonzero masked_select _unique _unique2 unique_dim unique_consecutive equal bincount multinomial linalg_lstsq
    linalg_eig _linalg_eigvals _linalg_svd repeat_interleave""".split()  # noqa: SIM905
# C++ that only arranges tensors, whatever their device.
_NATIVE = """set_ is_set_to _nnz sparse_dim dense_dim _dimI _dimV is_coalesced _coalesced_ _sparse_coo_tensor_with_dims
    _sparse_coo_tensor_with_dims_and_tensors _sparse_compressed_tensor_with_dims""".split()  # noqa: SIM905


@dataclass
class Seen:
    """What all threads did in a watched block."""

    allow_waits: bool = True
    launches: int = 0
    waits: int = 0
    # of an operator, a kind ("launch", or of a wait "read", "to host" or "to device") and callers outside torch
    events: Counter[tuple[str, str, tuple[str, ...]]] = field(default_factory=Counter)

    def lines(self, *, waits: bool = False, within: str = "") -> Counter[str]:
        """Launches or waits by the innermost line of a file whose path has ``within`` in it."""
        found: Counter[str] = Counter()
        for (_, kind, callers), n in self.events.items():
            found[next((c for c in callers if within in c), "elsewhere")] += n if waits is (kind != "launch") else 0
        return +found


@contextmanager
def watch(*, allow_waits: bool = True) -> Iterator[Seen]:
    """Count launches and waits within the block; a wait is an error at its place if none is allowed, on a GPU too."""
    _watching.append(seen := Seen(allow_waits))
    if on_gpu := not allow_waits and torch.cuda.is_available():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is a prototype
            torch.cuda.set_sync_debug_mode("error")
    try:
        yield seen
    finally:
        _watching.remove(seen)
        if on_gpu:
            torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def accelerator() -> torch.device:
    """A GPU where there is one, else the pretended accelerator."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    return install() if PRETENDS else pytest.skip("no GPU, and this torch takes no pretended device")


@pytest.fixture(params=["cpu", "accelerator"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, then the accelerator."""
    return torch.device("cpu") if request.param == "cpu" else request.getfixturevalue("accelerator")


@pytest.fixture
def fake() -> torch.device:
    """The pretended accelerator, whose launches are counted."""
    return install() if PRETENDS else pytest.skip("beside a GPU, or by an older torch, no device is pretended")


def _count(operator: str, kind: str, times: int = 1) -> None:
    callers, frame = [], sys._getframe(1) if _watching else None
    while frame is not None:
        if not frame.f_code.co_filename.startswith((torch.__path__[0], __file__)):
            callers.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
        frame = frame.f_back
    for seen in _watching:
        seen.events[operator, kind, tuple(callers)] += times
        seen.launches += times if kind == "launch" else 0
        seen.waits += times if kind != "launch" else 0
        if seen.waits and not seen.allow_waits:
            raise RuntimeError(f"the host waits for the device ({kind}) in aten::{operator}")


def _on(t: Any, kind: int) -> Any:
    """Tensors, and what is in lists, with the same memory on another type of device."""
    if isinstance(t, (list, tuple)):
        return [_on(part, kind) for part in t]
    if not isinstance(t, Tensor):
        return t
    if t.layout == torch.sparse_coo:
        parts = _on((t._indices(), t._values()), kind)
        return torch.sparse_coo_tensor(*parts, t.shape, is_coalesced=t.is_coalesced(), check_invariants=False)
    if t.layout != torch.strided:
        names = ("crow", "col") if t.layout in (torch.sparse_csr, torch.sparse_bsr) else ("ccol", "row")
        parts = _on((*(getattr(t, f"{name}_indices")() for name in names), t.values()), kind)
        return torch.sparse_compressed_tensor(*parts, t.shape, layout=t.layout, check_invariants=False)
    capsule = torch._C._to_dlpack(t)
    at = _pointer(capsule, b"dltensor") + ctypes.sizeof(ctypes.c_void_p)  # DLTensor: data; device type, number; ...
    (ctypes.c_int32 * 2).from_address(at)[:] = kind, 0
    return torch._C._from_dlpack(capsule)


def _kernel(op: Any, name: str) -> Callable[..., Any]:
    """The CPU's kernel of an operator, for tensors of the device."""
    bare, each = name.split(".")[0].rstrip("_").removeprefix("_foreach_"), name.startswith("_foreach_")
    names, outs = [a.name for a in op._schema.arguments], [a.name for a in op._schema.arguments if a.is_out]
    tensors = {a.name for a in op._schema.arguments if isinstance(a.type, torch.TensorType)}
    writes = [(a.name, a.alias_info) for a in op._schema.arguments if a.alias_info and a.alias_info.is_write]
    written = {symbol: name for name, alias in writes for symbol in alias.before_set}
    results = [next(iter(r.alias_info.before_set), None) if r.alias_info else None for r in op._schema.returns]

    def plain(value: Any, argument: str, *, listed: bool = False) -> Any:
        if isinstance(value, (list, tuple)):
            return [plain(v, argument, listed=True) for v in value]
        if argument in tensors and isinstance(value, (bool, int, float)):  # torch had made it of a 0-d tensor
            return value if bare in _WRAPS_NUMBERS and value is not True else torch.tensor(value, device="cpu")
        if not isinstance(value, Tensor) or value.device == _device:
            return torch.device("cpu") if argument == "device" else _on(value, _CPU)
        indices = argument == "indices" and bare in _TAKES_INDICES
        taken = bare in _TAKES_NUMBERS and (listed is each or bare in ("mul", "div")) and value.dim() == 0
        if not indices and not taken:
            which = f"at least two devices, {_device} and {value.device}! (argument {argument} of aten::{name})"
            raise RuntimeError(f"Expected all tensors to be on the same device, but found {which}")
        if indices or bare == "where":
            _count(name, "to device")
        return value

    def run(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(names, args, strict=False)) | kwargs
        if given.get("generator") is not None:
            raise RuntimeError(f"Expected a {NAME!r} device type for generator but found 'cpu'")
        lists = [part for part in given.values() if each and isinstance(part, list) and isinstance(part[0], Tensor)]
        shapes = {tuple((t.shape, t.stride()) for t in part) for part in lists}
        one = [
            v for v in given.values() if lists and isinstance(v, Tensor) and v.device == _device
        ]  # for all of a list
        parts = lists if bare == "copy" else [[*itertools.chain(*lists), *one]]  # a copy may change the dtype
        alike = len(shapes) <= 1 and all(len({(t.device, t.dtype) for t in part}) <= 1 for part in parts)
        if bare not in ("empty", "empty_strided"):  # foreach goes one by one where lists differ
            _count(name, "launch", 1 if alike else len(lists[0]))
        if _reads(bare, given):
            _count(name, "read")
        host = {argument: plain(value, argument) for argument, value in given.items()}
        fresh = [out for out in outs if not given[out].numel()]  # these the CPU's kernel may resize
        host |= {out: torch.empty(0, dtype=given[out].dtype, device="cpu") for out in fresh}
        found = op(*(host[argument] for argument in names[: len(args)]), **{key: host[key] for key in kwargs})
        for out in fresh:
            _on(given[out].resize_(host[out].shape), _CPU).copy_(host[out])
        pairs = zip([found] if len(results) == 1 else found or [], results, strict=True)
        made = [given[written[s]] if s else _on(part, KIND) for part, s in pairs]
        return made[0] if len(made) == 1 else tuple(made) or None

    return run


def _reads(bare: str, given: dict[str, Any]) -> bool:
    value = given.get("values", given.get("value"))
    on_device = isinstance(value, Tensor) and value.device == _device
    if bare in _TAKES_INDICES:  # a number of the host under a mask is a masked_fill
        masked = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in given["indices"])
        return masked and (bare == "index" or on_device)
    return (bare in ("masked_fill", "index_fill") and on_device) or (bare in _READS and not given.get("output_size"))


def _register() -> None:
    """A kernel for every operator that the CPU has one for, or CUDA a foreach kernel; copies of whole storages."""

    def item(t: Tensor) -> Any:
        _count("_local_scalar_dense", "read")
        return _on(t, _CPU).item()

    def copy(to: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        kind = "launch" if to.device == source.device else "to host" if to.device.type == "cpu" else "to device"
        if kind == "launch" or not non_blocking:
            _count("copy_", kind)
        _on(to, _CPU).copy_(_on(source, _CPU))
        return to

    by_hand: dict[str, Any] = {"copy_": copy, "_local_scalar_dense": item}
    by_hand["resize_"] = lambda t, size, **o: t.set_(torch.empty(size, dtype=t.dtype, device=_device, **o))
    by_hand["_efficientzerotensor"] = lambda size, **o: torch.zeros(size, **o | {"device": _device})
    by_hand["convolution_overrideable"] = _kernel(torch.ops.aten.convolution.default, "convolution")
    back = _kernel(torch.ops.aten.convolution_backward.default, "convolution_backward")
    by_hand["convolution_backward_overrideable"] = lambda g, x, w, *more: back(g, x, w, [g.shape[1]], *more)
    for prefix in ("", "Sparse", "SparseCsr"):
        known = set(torch._C._dispatch_get_registrations_for_dispatch_key(prefix + "CPU"))
        known |= set() if prefix else {n for n in torch._C._dispatch_get_all_op_names() if "::_foreach_" in n}
        host_keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, prefix + "CPU"))
        for operator in sorted(n.removeprefix("aten::") for n in known if n.startswith("aten::")):
            packet, _, overload = operator.partition(".")
            op = getattr(getattr(torch.ops.aten, packet), overload or "default")
            native = packet in _NATIVE or any(r.alias_info and not r.alias_info.is_write for r in op._schema.returns)
            kernel = functools.partial(op.redispatch, host_keys) if native else _kernel(op, operator)
            _aten.impl(operator, kernel if prefix else by_hand.pop(operator, kernel), prefix + KEY)
    for operator, kernel in by_hand.items():
        _aten.impl(operator, kernel, KEY)
    storage, room = torch.UntypedStorage, {"dtype": torch.uint8, "device": _device}  # for torch.load and deepcopy
    to, clone, copied = storage.to, storage.clone, lambda s: torch.empty(len(s), **room).untyped_storage().copy_(s)
    comes = lambda s, device: torch.device(device).type == NAME != s.device.type  # noqa: E731
    storage.to = lambda s, *, device, **o: copied(s) if comes(s, device) else to(s, device=device, **o)
    storage.clone = lambda s: copied(s) if s.device == _device else clone(s)


def install() -> torch.device:
    """Make the device, once per process."""
    global _device
    if _device.type == "cpu":
        answers = {"is_available": True, "is_initialized": True, "_is_in_bad_fork": False, "device_count": 1}
        answers |= {"current_device": 0, "manual_seed_all": None, "get_amp_supported_dtype": [torch.bfloat16]}
        stream = types.SimpleNamespace(synchronize=lambda: None)  # what torch.distributed.checkpoint copies on
        answers |= {"current_stream": stream, "stream": nullcontext()}
        vars(module := types.ModuleType("torch.fake")).update({k: lambda *_, a=a: a for k, a in answers.items()})
        backend_registration._setup_privateuseone_for_python_backend(NAME, module)
        _autocast.fallback(torch.library.fallthrough_kernel)
        _device = torch.device(NAME, 0)
        _register()
    return _device
