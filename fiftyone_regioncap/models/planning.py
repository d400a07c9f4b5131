"""What fits on a GPU, and how fast it can be: arithmetic, before weights are loaded.

Networks are built on PyTorch's meta device, which has shapes and no memory, and run
there by the code that runs on a GPU: its operations are counted, and the bytes alive at
one time. Time follows from the roofline (Williams et al. 2009): what takes longer, the
arithmetic or the reading of weights and caches.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from fiftyone_regioncap.models.devices import GIB, Gpu, free_memory

SPARE = 0.07
"""Share of a card's memory that driver, error correction and CUDA's context take."""

ARITHMETIC = 0.5
"""Share of the data sheet's matrix throughput that is reckoned with."""

READING = 0.6
"""Share of the data sheet's memory bandwidth that is reckoned with."""


def rows_that_fit(free: int, row: int, at_most: int) -> int:
    """Returns how many rows are worked on at once; one where not even that fits.

    A third of the memory stays for what is computed meanwhile.

    Args:
        free: Free memory beside the weights, in bytes.
        row: Memory of a row in bytes, such as that of a caption's cache.
        at_most: Maximum number of rows, even where more would fit.
    """
    return max(1, min(at_most, free * 2 // 3 // max(row, 1)))


def rows_on(device: torch.device, row: int, at_most: int) -> int:
    """Returns :func:`rows_that_fit` into the memory that is free on a device now."""
    return rows_that_fit(free_memory(device), row, at_most)


def given(rows: int | None, defaults: Mapping[str, int]) -> Mapping[str, int]:
    """Returns the maximum number of rows by type of device: the user's, or defaults."""
    return defaults if rows is None else dict.fromkeys(defaults, rows)


# What a model needs.


@dataclass(frozen=True)
class Phase:
    """A part of the work on a batch of rows.

    Attributes:
        name: Name of the part.
        flops: Floating point operations; a multiplication and addition are two.
        traffic: Bytes of weights and caches that are read.
        memory: Most bytes alive at one time, beside weights and rows.
    """

    name: str
    flops: float
    traffic: float
    memory: float


@dataclass(frozen=True)
class Footprint:
    """What a model needs of a device, by its configuration.

    Attributes:
        name: Name of the configuration.
        parameters: Number of parameters.
        weights: Their bytes.
        row: Bytes that a row keeps while it is worked on.
        rows: Maximum number of rows by type of device.
        row_name: What a row is, in the plural.
        unit: What is made, in the plural.
        phases: Gives the parts of the work for a number of rows.
        made: Gives what is made by them, in units.
        image_size: Side of the image that the model sees in pixels; 0 where it is not
            to be told.
        assumptions: What is reckoned with, in full sentences.
    """

    name: str
    parameters: int
    weights: int
    row: int
    rows: Mapping[str, int]
    row_name: str
    unit: str
    phases: Callable[[int], Sequence[Phase]]
    made: Callable[[int], float]
    image_size: int
    assumptions: tuple[str, ...] = ()


def parameters_of(*modules: nn.Module) -> int:
    """Returns the number of parameters of modules, shared ones once."""
    return sum(p.numel() for p in _parameters(modules))


def bytes_of(*modules: nn.Module) -> int:
    """Returns the bytes of the parameters of modules, shared ones once."""
    return sum(p.numel() * p.element_size() for p in _parameters(modules))


def _parameters(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    return iter({id(p): p for m in modules for p in m.parameters()}.values())


# Counting.


class Meter(TorchDispatchMode):
    """Counts operations, and the bytes that tensors made meanwhile hold.

    Attributes:
        flops: Floating point operations of matrix products, convolutions and attention.
        held: Bytes that are alive now.
        peak: Most bytes alive at one time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.held = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return 1  # there are no values here; checks of inputs take this for yes
        if _is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                self._note(value, 0)
        made = func(*args, **kwargs)
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=made)
        for value in tree_leaves(made):
            if isinstance(value, Tensor):
                self._note(value, value.untyped_storage().nbytes())
        return made

    def _note(self, tensor: Tensor, size: int) -> None:
        """Counts a tensor's memory, once, until it is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.held -= size


@cache
def _is_composite(func: Any) -> bool:
    """Returns whether an operator is made of others, which are counted instead."""
    return func._overloadpacket not in flop_registry and (
        torch._C._dispatch_has_kernel_for_dispatch_key(
            func.name(), "CompositeImplicitAutograd"
        )
    )


class _LikeGpu(TorchFunctionMode):
    """Lets the meta device do what a GPU does: attention in one kernel, autocast.

    Labels may stay on the CPU, where their values are known.
    """

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self._meter = meter

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.cross_entropy:
            scores, labels = args
            return func(scores, labels.to(scores.device), **kwargs)
        if func is nn.functional.linear and args[0].is_meta:
            return func(args[0].to(args[1].dtype), *args[1:], **kwargs)
        attention = nn.functional.scaled_dot_product_attention
        if func is not attention or not args[0].is_meta:
            return func(*args, **kwargs)
        query, key, value = args[:3]
        pairs = query.shape[:-1].numel() * key.shape[-2]
        self._meter.flops += 2 * pairs * (query.shape[-1] + value.shape[-1])
        return _Attended.apply(query, key, value, self._meter)


class _Attended(torch.autograd.Function):
    """Shapes, memory and operations of fused attention."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, meter: Meter
    ) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, sums)
        ctx.meter = meter
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *_ = ctx.saved_tensors
        pairs = query.shape[:-1].numel() * key.shape[-2]
        # Scores anew, and the gradients of both products.
        ctx.meter.flops += 5 * pairs * (query.shape[-1] + value.shape[-1])
        return (*map(torch.empty_like, (query, key, value)), None)


@contextmanager
def metered() -> Iterator[Meter]:
    """Counts what is computed inside, on the meta device or on a real one."""
    meter = Meter()
    with _LikeGpu(meter), meter:
        yield meter


def phase(name: str, traffic: float, work: Callable[[], Any]) -> Phase:
    """Returns the phase of work that is done once, here on the meta device.

    Args:
        name: Name of the phase.
        traffic: Bytes of weights and caches that it reads.
        work: Does the work.
    """
    with torch.inference_mode(), metered() as meter:
        made = work()
        peak = meter.peak
        del made
    return Phase(name, meter.flops, traffic, peak)


# The plan.


@dataclass(frozen=True)
class ModelPlan:
    """How one model runs on a device.

    Attributes:
        role: What it is for, such as ``"captioner"``.
        name: Name of the model.
        footprint: What it needs; None where that is next to nothing, or not known.
        dtype: Numeric type that it computes in.
        rows: Number of rows at once.
        memory: Most bytes beside weights and rows.
        rates: What it makes in a second by number of rows: one, and as many as fit;
            empty where the device's speed is not known.
    """

    role: str
    name: str
    footprint: Footprint | None = None
    dtype: str = ""
    rows: int = 0
    memory: float = 0.0
    rates: Mapping[int, float] = field(default_factory=dict)

    @property
    def weights(self) -> int:
        """Returns the bytes of the weights."""
        return 0 if self.footprint is None else self.footprint.weights

    @property
    def working(self) -> float:
        """Returns the bytes of rows and of what is computed."""
        row = 0 if self.footprint is None else self.footprint.row
        return self.rows * row + self.memory

    def to_dict(self) -> dict[str, Any]:
        """Returns the plan as JSON values."""
        if self.footprint is None:
            return {"role": self.role, "name": self.name}
        return {
            "role": self.role,
            "name": self.name,
            "configuration": self.footprint.name,
            "parameters": self.footprint.parameters,
            "dtype": self.dtype,
            "image_size": self.footprint.image_size,
            "weights_gib": round(self.weights / GIB, 2),
            "rows": self.rows,
            "row_mib": round(self.footprint.row / (1 << 20), 1),
            "activations_gib": round(self.memory / GIB, 2),
            "unit": f"{self.footprint.unit}/s",
            "rates": {str(k): float(f"{v:.3g}") for k, v in self.rates.items()},
        }


def plan_model(
    role: str,
    name: str,
    needs: Footprint,
    dtype: torch.dtype,
    gpu: Gpu | None,
    free: float,
) -> ModelPlan:
    """Returns how a model runs on a card.

    Args:
        role: What it is for.
        name: Name of the model.
        needs: What it needs.
        dtype: Numeric type that it computes in.
        gpu: The card; None for the CPU.
        free: Bytes that are free beside all weights.
    """
    at_most = needs.rows["cpu" if gpu is None else "cuda"]
    rows = rows_that_fit(max(int(free), 0), needs.row, at_most)
    rates = {}
    if gpu is not None and gpu.bandwidth and gpu.tflops:
        for count in sorted({1, rows}):
            took = sum(seconds(one, gpu, dtype) for one in needs.phases(count))
            rates[count] = needs.made(count) / took
    return ModelPlan(
        role=role,
        name=name,
        footprint=needs,
        dtype=str(dtype).removeprefix("torch."),
        rows=rows,
        memory=max(one.memory for one in needs.phases(rows)),
        rates=rates,
    )


def seconds(work: Phase, gpu: Gpu, dtype: torch.dtype) -> float:
    """Returns how long a phase takes on a card whose speed is known.

    Args:
        work: The phase.
        gpu: The card.
        dtype: Numeric type that it computes in. In float32, PyTorch leaves the tensor
            cores alone by default: an eighth of the throughput.
    """
    flops = gpu.tflops * 1e12 * ARITHMETIC
    if dtype == torch.float32 and gpu.bfloat16:
        flops /= 8
    return max(work.flops / flops, work.traffic / (gpu.bandwidth * 1e9 * READING))


@dataclass(frozen=True)
class Plan:
    """What runs on a device together.

    Attributes:
        gpu: The card; None for the CPU.
        free: Bytes that are free on it.
        models: The models.
        notes: What else there is to know, in full sentences.
    """

    gpu: Gpu | None
    free: float
    models: Sequence[ModelPlan]
    notes: Sequence[str] = ()

    @property
    def device(self) -> str:
        """Returns the device by PyTorch's name."""
        return "cpu" if self.gpu is None else self.gpu.device or "cuda"

    @property
    def needs(self) -> float:
        """Returns the bytes of all weights, and of the model that takes most beside.

        Models take turns: memory for rows is given back between them.
        """
        working = max((one.working for one in self.models), default=0.0)
        return sum(one.weights for one in self.models) + working

    @property
    def ok(self) -> bool:
        """Whether all of it fits."""
        return self.needs <= self.free

    def to_dict(self) -> dict[str, Any]:
        """Returns the plan as JSON values."""
        return {
            "gpu": None if self.gpu is None else str(self.gpu),
            "device": self.device,
            "free_gib": round(self.free / GIB, 2),
            "needs_gib": round(self.needs / GIB, 2),
            "fits": self.ok,
            "models": [one.to_dict() for one in self.models],
            "notes": list(self.notes),
        }

    def to_markdown(self) -> str:
        """Returns the plan for people."""
        where = "CPU" if self.gpu is None else str(self.gpu)
        verdict = "fits" if self.ok else "does not fit"
        lines = [
            f"**{where}** ({self.device}): {self.free / GIB:.1f} GiB free, "
            f"{self.needs / GIB:.1f} GiB needed: {verdict}"
        ]
        for one in self.models:
            if one.footprint is None:
                lines.append(f"**{one.role} {one.name}**: nothing to plan")
                continue
            row = one.to_dict()
            side = f", images of {row['image_size']} pixels" * bool(row["image_size"])
            lines += [
                f"**{one.role} {one.name}** ({row['configuration']}): "
                f"{row['parameters']:,} parameters, {row['dtype']}{side}",
                f"weights {row['weights_gib']} GiB; {one.footprint.row_name} at once: "
                f"{row['rows']} of {row['row_mib']} MiB; {row['activations_gib']} GiB "
                "for what is computed",
                *[
                    f"about {rate} {row['unit']} with {count} at once"
                    for count, rate in row["rates"].items()
                ],
            ]
        return "\n\n".join([*lines, *self.notes]) + "\n"
