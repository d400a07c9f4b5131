"""Where models run: this machine's devices, their memory, and what they compute in.

What can be wrong with a GPU is said here, in a sentence with what to choose instead: a
driver that is too old, ``CUDA_VISIBLE_DEVICES`` that hides it, a device that is not
there, bfloat16 that it only emulates, memory that others hold.
"""

from __future__ import annotations

import gc
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import psutil  # type: ignore[import-untyped]
import torch

from fiftyone_regioncap.core.errors import BackendError, OptionError

log = logging.getLogger(__name__)

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
"""The numeric types that models can run in, by name."""

GIB = 1 << 30


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine, or one of the table.

    Attributes:
        name: Name of the card, as the driver or the data sheet gives it.
        memory: Memory in GiB.
        bandwidth: Memory bandwidth in GB/s; 0 where it is not known.
        tflops: Dense matrix throughput in TFLOP/s in bfloat16, or in float32 where the
            card does not compute in bfloat16; 0 where it is not known.
        bfloat16: Whether it computes in bfloat16 itself.
        device: Device of PyTorch, such as ``"cuda:0"``; empty for one of the table.
        free: Free memory in bytes; None for one of the table.
    """

    name: str
    memory: float
    bandwidth: float = 0.0
    tflops: float = 0.0
    bfloat16: bool = True
    device: str = ""
    free: int | None = None

    def __str__(self) -> str:
        return f"{self.name}, {self.memory:.0f} GiB"


CARDS = (
    Gpu("B200", 180, 7700, 2250),
    Gpu("H200", 141, 4800, 989),
    Gpu("H100 NVL", 94, 3900, 835),
    Gpu("H100 PCIe", 80, 2000, 756),
    Gpu("H100", 80, 3350, 989),
    Gpu("A100 80GB", 80, 1935, 312),
    Gpu("A100", 40, 1555, 312),
    Gpu("RTX 6000 Ada", 48, 960, 364),
    Gpu("L40S", 48, 864, 362),
    Gpu("RTX A6000", 48, 768, 155),
    Gpu("A40", 48, 696, 150),
    Gpu("RTX 5090", 32, 1792, 209),
    Gpu("RTX 4090", 24, 1008, 165),
    Gpu("RTX 3090", 24, 936, 71),
    Gpu("A10", 24, 600, 125),
    Gpu("L4", 24, 300, 121),
    Gpu("V100", 16, 900, 15.7, bfloat16=False),
    Gpu("T4", 16, 320, 8.1, bfloat16=False),
)
"""Cards by their makers' data sheets, without sparsity; larger memory first."""


# What there is.


def gpus() -> dict[str, Gpu]:
    """Returns the GPUs that PyTorch can use, by device, with their free memory."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = {}
    for number in range(count):
        device = torch.device("cuda", number)
        card = torch.cuda.get_device_properties(device)
        known = card_like(card.name, card.total_memory / GIB)
        found[str(device)] = replace(
            known or Gpu(card.name, 0),
            name=card.name,
            memory=card.total_memory / GIB,
            bfloat16=has_bfloat16(device),
            device=str(device),
            free=free_memory(device),
        )
    return found


def card_like(name: str, memory: float) -> Gpu | None:
    """Returns the card of the table that a driver's name means; None for none.

    Args:
        name: Name such as ``"NVIDIA H100 80GB HBM3"``.
        memory: Memory in GiB, which tells cards of one name apart.
    """
    words = set(_words(name))
    named = [card for card in CARDS if words.issuperset(_words(card.name))]

    def fits(card: Gpu) -> tuple[int, float]:
        return len(_words(card.name)), -abs(card.memory - memory)

    return max(named, key=fits, default=None)


def find_card(text: str) -> Gpu:
    """Returns the card that a user names.

    Args:
        text: Name such as ``"H100"`` or ``"NVIDIA L4"``, or memory in GiB such as
            ``"24"`` or ``"24GB"``, which stands for the slowest card of the table
            with as much.

    Raises:
        OptionError: When there is no such card in the table.
    """
    size = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:gb|gib|g)?\s*", text, re.IGNORECASE)
    if size is not None and 0 < float(size[1]) < 10_000:
        memory = float(size[1])
        like = [card for card in CARDS if card.memory >= memory] or CARDS[:1]
        least = min(card.memory for card in like)
        slowest = min(
            (card for card in like if card.memory == least), key=lambda c: c.bandwidth
        )
        return replace(slowest, name=f"{memory:g} GiB as {slowest.name}", memory=memory)
    found = card_like(text, 0)
    if found is None:
        names = ", ".join(sorted(card.name for card in CARDS))
        raise OptionError(
            f"gpu={text!r} is no card of the table; give one of {names}, or its "
            "memory in GiB, such as 24"
        )
    return found


def _words(name: str) -> list[str]:
    # AWS calls its A10 "A10G".
    return re.findall(r"[a-z0-9]+", name.lower().replace("a10g", "a10"))


def free_memory(device: torch.device) -> int:
    """Returns the bytes that this process can still take on a device.

    On a GPU, what PyTorch keeps for reuse counts as free; on a CPU, what the system
    can give without swapping.
    """
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device)
    return int(free - torch.cuda.memory_allocated(device))


def release_memory() -> None:
    """Releases the memory that failed work left behind."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error means that a smaller batch may fit."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # PyTorch's CPU allocator and cuBLAS have no class of their own for it.
    return isinstance(error, RuntimeError) and any(
        sign in str(error)
        for sign in ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    )


# What to choose.


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """Returns the device that a model runs on.

    Args:
        device: Device name such as ``"cpu"``, ``"cuda"`` or ``"cuda:1"``; None for the
            GPU with the most memory, or the CPU where there is none.

    Raises:
        BackendError: When this machine has no such device.
    """
    if device is None:
        device = _largest_gpu() if torch.cuda.is_available() else "cpu"
    try:
        chosen = device if isinstance(device, torch.device) else torch.device(device)
        torch.empty(0, device=chosen)
    # Backends that PyTorch was built without raise errors of several kinds.
    except Exception as error:
        reason = str(error).splitlines()[0]
        fault = gpu_fault() if str(device).startswith("cuda") else None
        if fault is not None:
            reason = f"PyTorch finds no CUDA device: {fault.found}; {fault.advice}"
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        there = ["cpu", *(f"cuda:{number}" for number in range(count))]
        raise BackendError(
            f"there is no device {str(device)!r} here ({reason}); choose one of: "
            f"{', '.join(there)}"
        ) from error
    return chosen


def _largest_gpu() -> str:
    """Returns ``"cuda"``, or the largest of several cards that are not alike."""
    sizes = [
        torch.cuda.get_device_properties(number).total_memory
        for number in range(torch.cuda.device_count())
    ]
    if len(set(sizes)) < 2:
        return "cuda"
    largest = sizes.index(max(sizes))
    told = ", ".join(f"cuda:{n} {size / GIB:.0f} GiB" for n, size in enumerate(sizes))
    log.info("cuda:%d is the largest of %s; name another as device", largest, told)
    return f"cuda:{largest}"


def choose_dtype(
    dtype: str | torch.dtype | None,
    device: torch.device,
    choices: Sequence[str] = tuple(DTYPES),
) -> torch.dtype:
    """Returns the numeric type that a model computes in.

    Args:
        dtype: Name in :data:`DTYPES` or a PyTorch dtype; None for bfloat16 on a GPU
            that computes in it, else float32.
        device: Device that the model runs on.
        choices: Names of the dtypes that the model supports.

    Raises:
        BackendError: When the model or the device cannot compute in it.
    """
    native = device.type == "cuda" and has_bfloat16(device)
    if dtype is None:
        return default_dtype(native)
    for name in choices:
        if dtype not in (name, DTYPES[name]):
            continue
        if name == "bfloat16" and device.type == "cuda" and not native:
            others = " or ".join(one for one in choices if one != name)
            raise BackendError(
                f"{torch.cuda.get_device_name(device)} ({device}) does not compute in "
                f"bfloat16, and emulates it slowly; choose dtype {others}"
            )
        return DTYPES[name]
    raise BackendError(f"dtype {dtype!r}: choose one of {', '.join(choices)}")


def default_dtype(bfloat16: bool) -> torch.dtype:
    """Returns what models compute in by default.

    Args:
        bfloat16: Whether they are on a GPU that computes in bfloat16 itself.
    """
    return torch.bfloat16 if bfloat16 else torch.float32


def has_bfloat16(device: torch.device) -> bool:
    """Returns whether a CUDA device computes in bfloat16 itself, without emulation."""
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


# What can be wrong.


@dataclass(frozen=True)
class GpuFault:
    """Why PyTorch can use no GPU.

    Attributes:
        found: What was found.
        advice: What to do about it.
    """

    found: str
    advice: str


def gpu_fault() -> GpuFault | None:
    """Returns why PyTorch can use no GPU; None where it can."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None and torch.version.hip is None:
        return GpuFault(
            "this PyTorch is a CPU build",
            "install a CUDA build: https://pytorch.org/get-started/locally/",
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1", "NoDevFiles"):
        return GpuFault(
            f"CUDA_VISIBLE_DEVICES={visible!r} hides all GPUs",
            "unset it, or name GPUs as nvidia-smi -L numbers them",
        )
    try:
        torch.cuda.init()
        reason = "no GPU was found"
    except Exception as error:  # whatever a driver may raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
    if "too old" in reason:
        version = re.search(r"found version (\d+)", reason)
        has = ""
        if version:
            number = int(version[1])
            has = f", for CUDA {number // 1000}.{number % 1000 // 10}"
        return GpuFault(
            f"the NVIDIA driver is too old{has}; this PyTorch is built for CUDA "
            f"{torch.version.cuda}",
            "update the driver, or install a PyTorch that is built for the driver's "
            "CUDA",
        )
    if visible is not None:
        return GpuFault(
            f"CUDA_VISIBLE_DEVICES={visible!r} names no GPU of this machine",
            "unset it, or name GPUs as nvidia-smi -L numbers them",
        )
    return GpuFault(reason.rstrip("."), "see what nvidia-smi says")


def no_room(device: torch.device, what: str, needs: int | None = None) -> str:
    """Returns why something did not fit into a device's memory, and what to choose.

    Args:
        device: The device.
        what: What did not fit, such as ``"the weights of dam"``.
        needs: Its bytes; None where they are not known.
    """
    size = "" if needs is None else f" ({needs / GIB:.1f} GiB)"
    if device.type != "cuda":
        return (
            f"{what}{size} don't fit into memory, of which "
            f"{free_memory(device) / GIB:.1f} GiB are free; end other programs, or "
            "choose a smaller model"
        )
    cards = gpus()
    here = cards.pop(str(torch.device("cuda", device.index or 0)))
    assert here.free is not None
    own = torch.cuda.memory_allocated(device)
    taken = max(here.memory * GIB - here.free - own, 0) / GIB
    better = [
        f"device={name} ({card.free / GIB:.1f} GiB free)"
        for name, card in cards.items()
        if card.free is not None and card.free > max(here.free, needs or 0)
    ]
    choices = [*better, "a smaller model", "device=cpu"]
    return (
        f"{what}{size} don't fit on {here.device} ({here}), of which "
        f"{here.free / GIB:.1f} GiB are free: other programs hold {taken:.1f} GiB; end "
        f"those (nvidia-smi lists them), or choose {', or '.join(choices)}"
    )
