"""A pretended CUDA device, to rehearse GPU code on machines without one.

Tensors on it say ``cuda:0`` and keep their values in CPU memory. They are wrapped where
PyTorch dispatches operators, below autograd and above the kernels, so that what a real
GPU refuses is refused here: operators over tensors of two devices, ``numpy()`` without
``cpu()``, and reading a value on the host while a CUDA graph is captured. A captured
graph is a list of the operators that ran; its replay runs them again on the very same
memory, as a real one does. So buffers that move, or Python numbers that were frozen
into a graph, give wrong results here too. Kernels are the CPU's: results equal the
CPU's to the bit, and nothing is learned about speed, memory or races between streams.

    with pretended_cuda():
        model.to("cuda")
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 0)

_asked = threading.local()
"""Whether a copy was asked ``to_move`` a tensor, and not by autograd."""

_aten = torch.ops.aten
# A GPU takes an index, a value or a source from the host in these.
_MIXING = {"copy_", "index", "index_put", "index_put_", "_index_put_impl_", "_to_copy"}
_HOST_READS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal"}


class CudaTensor(Tensor):
    """A tensor on the pretended device around one in CPU memory."""

    values: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: Tensor) -> CudaTensor:
        self = Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            layout=values.layout,
            device=values.device,
            requires_grad=values.requires_grad,
        )
        self.values = values
        return self

    # PyTorch itself is told "cpu", for it has no CUDA; people are told "cuda".
    @property
    def device(self) -> torch.device:
        return GPU

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def is_cpu(self) -> bool:
        return False

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, other: CudaTensor) -> None:
        torch._C.TensorBase.data.__set__(self, other)  # type: ignore[attr-defined]
        self.values = other.values

    def data_ptr(self) -> int:
        return self.values.data_ptr()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to "
            "copy the tensor to host memory first."
        )

    __array__ = numpy

    def __repr__(self) -> str:
        return f"CudaTensor({self.values!r})"

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["values"], None

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, Tensor], context: None, size: Any, stride: Any
    ) -> CudaTensor:
        return CudaTensor(inner["values"])

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _dispatch(func, args, kwargs or {})


class _EveryCall(TorchDispatchMode):
    """Sees factories and copies, which have no tensor of the GPU among their inputs."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _dispatch(func, args, kwargs or {})


class _Moves(TorchFunctionMode):
    """Moves tensors: PyTorch itself thinks that all of them are on the CPU."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.device:
            return func(*args, **kwargs)
        if func is Tensor.pin_memory:
            return args[0]
        if func is Tensor.cpu:
            return _to(args[0], "cpu")
        if func is Tensor.tolist:
            return func(_to(args[0], "cpu"))
        if func is Tensor.cuda:
            return _to(args[0], GPU)
        if func is Tensor.to:
            return _to(*args, **kwargs)
        if func is torch._C._nn.pad_sequence and isinstance(args[0][0], CudaTensor):
            # It makes its result where PyTorch believes that the inputs are.
            rows = [_to(row, "cpu") for row in args[0]]
            return _to(func(rows, *args[1:], **kwargs), GPU)
        if func is scaled_dot_product_attention and kwargs.get("dropout_p"):
            # Its causal mask is made where PyTorch believes that the inputs are.
            if kwargs.pop("is_causal", False):
                sides = args[0].shape[-2], args[1].shape[-2]
                mask = torch.ones(sides, dtype=torch.bool, device=GPU).tril()
                kwargs["attn_mask"] = mask
            return func(*args, **kwargs)
        if func is Tensor.new_tensor:
            device = kwargs.pop("device", args[0].device)
            return _to(
                torch.tensor(*args[1:], **{"dtype": args[0].dtype, **kwargs}), device
            )
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and kwargs.get(
            "device"
        ):
            device = kwargs.pop("device")
            return _to(func(*args, **kwargs), device)
        args = tuple(map(_indexed, args))
        return func(*args, **{key: _indexed(value) for key, value in kwargs.items()})


def _to(tensor: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
    if args and isinstance(args[0], Tensor):
        args = (args[0].device, args[0].dtype, *args[1:])
    device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
    device, dtype = _indexed(device) or tensor.device, dtype or tensor.dtype
    if (device, dtype) == (tensor.device, tensor.dtype) and not copy:
        return tensor
    _asked.to_move = True
    try:
        return _aten._to_copy(
            tensor, device=device, dtype=dtype, non_blocking=non_blocking
        )
    finally:
        _asked.to_move = False


def _indexed(value: Any) -> Any:
    named = isinstance(value, (str, torch.device)) and str(value) == "cuda"
    return GPU if named else value


def _dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func._schema.name.split("::")[-1]
    leaves = tree_leaves((args, kwargs))
    tensors = [value for value in leaves if isinstance(value, Tensor)]
    ours = [isinstance(tensor, CudaTensor) for tensor in tensors]
    target = kwargs.get("device")
    moved = name == "_to_copy" and getattr(_asked, "to_move", False)
    if any(ours) and (name.startswith("new_") or (name == "_to_copy" and not moved)):
        target = None  # autograd names the device that PyTorch believes in
    on_gpu = any(ours) if target is None else torch.device(target).type == "cuda"
    number = 0 if target is None else torch.device(target).index or 0
    if on_gpu and number >= torch.cuda.device_count():
        raise RuntimeError("CUDA error: invalid device ordinal")
    if name == "copy_":
        on_gpu = ours[0]
    _refuse_mixing(name, tensors, ours)
    capture = CudaGraph.capturing.get(threading.get_ident())
    reads = name in _HOST_READS or (name == "_to_copy" and not on_gpu)
    if capture is not None and any(ours) and reads:
        raise RuntimeError(
            f"CUDA error: operation not permitted when stream is capturing: {name}"
        )
    if name in {"_pin_memory", "pin_memory"}:
        return args[0]
    if name == "is_pinned":
        return True
    plain_args, plain_kwargs = tree_map(_plain, (args, kwargs))
    if target is not None and on_gpu:
        plain_kwargs["device"] = torch.device("cpu")
    plain_kwargs.pop("pin_memory", None)
    out = func(*plain_args, **plain_kwargs)
    if capture is not None and on_gpu:
        capture.record(func, plain_args, plain_kwargs, out)
    if not on_gpu:
        return out
    wrapped = tree_map(_wrap, out)
    inference = any(v.is_inference() for v in tree_leaves(out) if isinstance(v, Tensor))
    if inference and not func._schema.is_mutable:
        return wrapped  # autograd need not know what is a view of what
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


def _wrap(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    with torch.inference_mode(value.is_inference()):
        return CudaTensor(value)


def _plain(value: Any) -> Any:
    return value.values if isinstance(value, CudaTensor) else value


def _refuse_mixing(name: str, tensors: list[Tensor], ours: list[bool]) -> None:
    if not any(ours) or all(ours):
        return
    if name in _MIXING and (ours[0] or name == "copy_"):
        return
    if name == "_to_copy":
        return
    if any(not our and tensor.dim() for tensor, our in zip(tensors, ours, strict=True)):
        where = [
            f"{'cuda:0' if our else 'cpu'} {tuple(tensor.shape)}"
            for tensor, our in zip(tensors, ours, strict=True)
        ]
        raise RuntimeError(
            f"Expected all tensors to be on the same device, in {name}: {where}"
        )


@dataclass
class CudaGraph:
    """A captured graph: operators that a replay runs again on the same memory."""

    capturing: ClassVar[dict[int, CudaGraph]] = {}
    captured: ClassVar[int] = 0
    steps: list[tuple[Callable[..., Any], Any, Any, Any]] = field(default_factory=list)

    def record(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Notes an operator that ran while capturing."""
        self.steps.append((func, args, kwargs, out))

    def replay(self) -> None:
        """Runs the operators again, into the outputs of the capture."""
        with torch._C._DisableTorchDispatch():
            for func, args, kwargs, out in self.steps:
                again = func(*args, **kwargs)
                for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)

    def reset(self) -> None:
        """Forgets the operators."""
        self.steps.clear()


@contextmanager
def _capture(graph: CudaGraph, **options: Any) -> Iterator[None]:
    CudaGraph.capturing[threading.get_ident()] = graph
    CudaGraph.captured += 1
    try:
        yield
    finally:
        del CudaGraph.capturing[threading.get_ident()]


class _Stream:
    """A stream on which everything has happened already; also its events."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def __getattr__(self, name: str) -> Callable[..., bool]:
        return lambda *args, **kwargs: True

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *args: object) -> None: ...


@dataclass(frozen=True)
class PretendedCard:
    """What the pretended device says of itself.

    Attributes:
        free: Free memory in bytes.
        total: Memory in bytes.
        bf16: Whether bfloat16 is computed natively.
        name: The card's name.
    """

    free: int = 20 << 30
    total: int = 24 << 30
    bf16: bool = True
    name: str = "Pretended"
    major: int = 8
    minor: int = 6
    multi_processor_count: int = 1

    @property
    def total_memory(self) -> int:
        """Returns the memory in bytes."""
        return self.total


@contextmanager
def pretended_cuda(*cards: PretendedCard) -> Iterator[torch.device]:
    """Makes ``cuda`` usable, in threads that start meanwhile too.

    Args:
        cards: What the devices say of themselves; one without any. All that is computed
            is computed on the first.

    Yields:
        The first device.
    """
    cards = cards or (PretendedCard(),)
    run = threading.Thread.run
    current = [0]

    class Current(_Stream):
        def __init__(self, device: Any) -> None:
            self.device = number_of(device)

        def __enter__(self) -> Current:
            current.append(self.device)
            return self

        def __exit__(self, *args: object) -> None:
            current.pop()

    def number_of(device: Any) -> int:
        if device is None:
            return current[-1]
        if isinstance(device, str | torch.device):
            return torch.device(device).index or 0
        return int(device)

    def of_card(say: Callable[[PretendedCard], Any]) -> Callable[..., Any]:
        return lambda device=None, **kwargs: say(cards[number_of(device)])

    def run_with_cuda(self: threading.Thread) -> None:
        with _Moves(), _EveryCall():
            run(self)

    def answer(value: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: value

    patched = {
        "_lazy_init": answer(None),
        "synchronize": answer(None),
        "empty_cache": answer(None),
        "reset_peak_memory_stats": answer(None),
        "manual_seed_all": answer(None),
        "is_available": answer(True),
        "is_initialized": answer(True),
        "is_bf16_supported": of_card(lambda card: card.bf16),
        "device_count": answer(len(cards)),
        "current_device": lambda: current[-1],
        "get_device_properties": of_card(lambda card: card),
        "get_device_name": of_card(lambda card: card.name),
        "get_device_capability": of_card(lambda card: (card.major, card.minor)),
        "mem_get_info": of_card(lambda card: (card.free, card.total)),
        "memory_reserved": answer(0),
        "memory_allocated": answer(0),
        "max_memory_allocated": answer(0),
        "current_stream": answer(_Stream()),
        "default_stream": answer(_Stream()),
        "stream": answer(_Stream()),
        "device": Current,
        "Stream": _Stream,
        "Event": _Stream,
        "graph_pool_handle": answer(None),
        "CUDAGraph": CudaGraph,
        "graph": _capture,
    }

    generator = torch.Generator

    def host_generator(device: Any = "cpu") -> torch.Generator:
        return generator("cpu")

    class Autocast(torch.autocast):
        def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
            device_type = "cpu" if device_type == "cuda" else device_type
            super().__init__(device_type, *args, **kwargs)

    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with (
            mock.patch.multiple(torch.cuda, **patched),
            mock.patch.object(threading.Thread, "run", run_with_cuda),
            mock.patch.object(torch, "autocast", Autocast),
            mock.patch.object(torch, "Generator", host_generator),
            _Moves(),
            _EveryCall(),
        ):
            yield GPU
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)


@contextmanager
def unusable_cuda(reason: str) -> Iterator[None]:
    """Makes this PyTorch one for CUDA 12.8 that finds no device it can use.

    Args:
        reason: What it says of it.
    """

    def fail() -> None:
        raise RuntimeError(reason)

    with (
        mock.patch.object(torch.version, "cuda", "12.8"),
        mock.patch.multiple(
            torch.cuda, _lazy_init=fail, init=fail, is_available=lambda: False,
            device_count=lambda: 0,
        ),
    ):  # fmt: skip
        yield
