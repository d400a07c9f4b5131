"""Devices that a user names, or that are wrong: a sentence, and what to choose."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from fiftyone_regioncap.core.errors import BackendError, OptionError
from fiftyone_regioncap.models import devices
from fiftyone_regioncap.models.devices import (
    CARDS,
    card_like,
    choose_device,
    choose_dtype,
    find_card,
    gpu_fault,
    gpus,
    no_room,
)
from fiftyone_regioncap.models.registry import ModelCard, ModelRegistry, ModelSpec
from tests.support.cuda import PretendedCard, pretended_cuda, unusable_cuda

GIB = 1 << 30


@pytest.mark.parametrize(
    ("driver", "memory", "name"),
    [
        ("NVIDIA H100 80GB HBM3", 79.1, "H100"),
        ("NVIDIA H100 PCIe", 79.1, "H100 PCIe"),
        ("NVIDIA H100 NVL", 93.1, "H100 NVL"),
        ("NVIDIA H200", 139.8, "H200"),
        ("NVIDIA A100-SXM4-80GB", 79.1, "A100 80GB"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "A100"),
        ("NVIDIA A10G", 22.5, "A10"),
        ("NVIDIA L4", 22.0, "L4"),
        ("NVIDIA L40S", 44.4, "L40S"),
        ("NVIDIA GeForce RTX 4090", 23.6, "RTX 4090"),
        ("NVIDIA RTX 6000 Ada Generation", 47.4, "RTX 6000 Ada"),
        ("Tesla T4", 14.6, "T4"),
        ("Tesla V100-SXM2-32GB", 31.7, "V100"),
    ],
)
def test_cards_are_known_by_their_drivers_names(
    driver: str, memory: float, name: str
) -> None:
    found = card_like(driver, memory)
    assert found is not None and found.name == name


@pytest.mark.parametrize(
    ("text", "memory", "bandwidth"),
    [
        ("H100", 80, 3350),
        ("nvidia l4", 24, 300),
        ("24", 24, 300),
        ("24GB", 24, 300),
        ("20 GiB", 20, 300),
        ("12", 12, 320),
        ("500", 500, 7700),
    ],
)
def test_a_card_is_named_or_sized(text: str, memory: float, bandwidth: float) -> None:
    found = find_card(text)
    assert (found.memory, found.bandwidth) == (memory, bandwidth)


@pytest.mark.parametrize("text", ["RTX9", "", "0", "-4", "nan", "1e9", "24 TB"])
def test_a_card_that_is_not_in_the_table_is_said_with_those_that_are(text: str) -> None:
    with pytest.raises(OptionError, match=r"no card of the table.*H100.*such as 24"):
        find_card(text)


def test_cards_have_names_of_their_own() -> None:
    assert len({card.name for card in CARDS}) == len(CARDS)
    assert all(find_card(card.name) == card for card in CARDS)


@pytest.mark.parametrize(
    ("reason", "visible", "says"),
    [
        (
            "The NVIDIA driver on your system is too old (found version 11040). Please "
            "update your GPU driver",
            None,
            r"driver is too old, for CUDA 11\.4; this PyTorch is built for CUDA 12\.8.*"
            "update the driver, or install a PyTorch",
        ),
        ("No CUDA GPUs are available", "", r"CUDA_VISIBLE_DEVICES='' hides.*unset it"),
        ("No CUDA GPUs are available", "-1", r"'-1' hides all GPUs.*unset it"),
        ("No CUDA GPUs are available", "7", r"'7' names no GPU.*nvidia-smi -L"),
        (
            "Found no NVIDIA driver on your system.",
            None,
            "no NVIDIA driver.*-smi",
        ),
    ],
    ids=["driver too old", "hidden", "hidden by -1", "no such number", "no driver"],
)
def test_why_no_gpu_can_be_used_is_said(
    reason: str, visible: str | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with unusable_cuda(reason):
        assert choose_device().type == "cpu"  # it runs, and the plan says why there
        with pytest.raises(BackendError, match=says + ".*choose one of: cpu$"):
            choose_device("cuda")


def test_a_gpu_that_works_has_no_fault() -> None:
    with pretended_cuda():
        assert gpu_fault() is None


def test_a_build_without_cuda_is_said() -> None:
    if torch.version.cuda is not None:
        pytest.skip("this PyTorch is built for CUDA")
    fault = gpu_fault()
    assert fault is not None and "CPU build" in fault.found


def test_of_two_cards_of_different_size_the_larger_is_taken() -> None:
    small, large = PretendedCard(total=16 * GIB), PretendedCard(total=80 * GIB)
    with pretended_cuda(small, large):
        assert str(choose_device()) == "cuda:1"
        assert str(choose_device("cuda:0")) == "cuda:0"
    with pretended_cuda(large, large):
        assert choose_device().index in (None, 0)


def test_a_card_without_bfloat16_is_said_with_what_to_choose() -> None:
    old = PretendedCard(bf16=False, name="Tesla V100")
    with pretended_cuda(old) as device:
        assert choose_dtype(None, device) is torch.float32
        says = r"Tesla V100 \(cuda:0\) does not compute in bfloat16.*32 or float16$"
        with pytest.raises(BackendError, match=says):
            choose_dtype("bfloat16", device)
    assert choose_dtype("bfloat16", torch.device("cpu")) is torch.bfloat16


def test_each_card_says_what_is_free_and_whether_it_has_bfloat16() -> None:
    cards = PretendedCard(), PretendedCard(free=GIB, bf16=False, name="Tesla T4")
    with pretended_cuda(*cards):
        found = gpus()
    assert [(one.free, one.bfloat16, one.name) for one in found.values()] == [
        (20 * GIB, True, "Pretended"),
        (GIB, False, "Tesla T4"),
    ]
    assert found["cuda:1"].bandwidth == 320  # known by its name


class TooLarge:
    """A model that never fits."""

    @classmethod
    def from_pretrained(cls, weights: str, **kwargs: object) -> TooLarge:
        """Fails as PyTorch does."""
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


LARGE = ModelCard("large", "", f"{__name__}:TooLarge", "MIT", True)


def test_memory_taken_by_others_is_said_where_a_model_is_loaded() -> None:
    registry: ModelRegistry[TooLarge] = ModelRegistry(
        kind="captioner", entries={"large": f"{__name__}:LARGE"}, group="none"
    )
    taken = PretendedCard(free=3 * GIB), PretendedCard(free=20 * GIB)
    says = (
        r"weights of large don't fit on cuda:0 \(Pretended, 24 GiB\), of which 3\.0 "
        r"GiB are free: other programs hold 21\.0 GiB.*device=cuda:1 \(20\.0 GiB free\)"
        ".*a smaller model.*device=cpu"
    )
    with pretended_cuda(*taken), pytest.raises(BackendError, match=says):
        registry.load(ModelSpec("large", device="cuda:0"))


def test_memory_of_the_cpu_is_said_too() -> None:
    text = no_room(torch.device("cpu"), "the weights of dam", 7 * GIB)
    assert "the weights of dam (7.0 GiB) don't fit into memory" in text


@pytest.mark.parametrize(
    "device",
    ["gpu", "cuda:7", "xpu"],
    ids=["no such name", "no such card", "no driver"],
)
def test_a_device_that_is_not_there_is_said_with_those_that_are(device: str) -> None:
    for there, run in (("cpu, cuda:0", pretended_cuda), ("cpu", nullcontext)):
        says = rf"no device '{device}'.*choose one of: {there}$"
        if run is nullcontext and torch.cuda.is_available():
            continue
        with run(), pytest.raises(BackendError, match=says):
            choose_device(device)


@pytest.mark.parametrize("native", [True, False])
def test_device_and_dtype(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(devices, "has_bfloat16", lambda device: native)
    assert choose_device("cpu") == torch.device("cpu")
    assert (choose_device().type == "cuda") == torch.cuda.is_available()
    assert choose_dtype(None, torch.device("cpu")) == torch.float32
    on_gpu = choose_dtype(None, torch.device("cuda"))
    assert on_gpu == (torch.bfloat16 if native else torch.float32)
    assert choose_dtype("float16", torch.device("cpu")) == torch.float16
    assert choose_dtype(torch.bfloat16, torch.device("cpu")) == torch.bfloat16
    for dtype in ("float16", torch.float64):
        with pytest.raises(BackendError, match="choose one of float32, bfloat16"):
            choose_dtype(dtype, torch.device("cpu"), ("float32", "bfloat16"))
