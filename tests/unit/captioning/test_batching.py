from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from fiftyone_regioncap.captioning.base import CaptionerInfo
from fiftyone_regioncap.captioning.batching import caption_batch
from fiftyone_regioncap.captioning.streaming import caption_stream
from fiftyone_regioncap.core.types import Caption, RegionClip
from fiftyone_regioncap.models.devices import is_out_of_memory


def clip(number: int) -> RegionClip:
    return RegionClip(
        [np.zeros((4, 4, 3), np.uint8)],
        [np.ones((4, 4), dtype=bool)],
        label=str(number),
    )


class Small:
    """A captioner on a device with room for so many clips, and never for some."""

    info = CaptionerInfo("small", "small", "0", "MIT", batch_size=8)

    def __init__(self, room: int, error: Exception, never: str = "") -> None:
        self.room, self.error, self.never = room, error, never
        self.sizes: list[int] = []

    def caption(
        self, clips: Sequence[RegionClip], *, prompt: str | None = None
    ) -> list[Caption]:
        self.sizes.append(len(clips))
        if len(clips) > self.room or any(c.label == self.never for c in clips):
            raise self.error
        return [Caption(text=f"{prompt} {c.label}") for c in clips]


CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
CPU = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes")
CUBLAS = RuntimeError(
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"
)


@pytest.mark.parametrize("error", [CUDA, CPU, CUBLAS, MemoryError()])
@pytest.mark.parametrize(
    ("room", "sizes"),
    [(8, [8, 2]), (4, [8, 4, 4, 2]), (3, [8, 4, 2, 2, 2, 2, 2]), (1, None)],
)
def test_half_as_many_until_they_fit(
    error: Exception, room: int, sizes: list[int] | None
) -> None:
    captioner = Small(room, error)
    clips = [clip(n) for n in range(10)]
    captions = list(caption_stream(captioner, clips, prompt="is"))
    assert [caption.text for caption in captions] == [f"is {n}" for n in range(10)]
    if sizes:
        assert captioner.sizes == sizes


def test_only_the_clip_that_never_fits_fails() -> None:
    captions = caption_batch(Small(8, CUDA, never="5"), [clip(n) for n in range(9)])
    failed = [n for n, caption in enumerate(captions) if caption.error]
    assert failed == [5]
    assert "doesn't fit into memory (CUDA out of memory" in captions[5].error


def test_other_errors_are_no_reason_to_try_again() -> None:
    captioner = Small(0, RuntimeError("shapes don't match"))
    with pytest.raises(RuntimeError, match="shapes"):
        caption_batch(captioner, [clip(0), clip(1)])
    assert captioner.sizes == [2]


def test_nothing_to_do() -> None:
    assert caption_batch(Small(1, CUDA), []) == []


def test_signs_of_too_little_memory() -> None:
    assert all(map(is_out_of_memory, (CUDA, CPU, CUBLAS, MemoryError())))
    assert not is_out_of_memory(ValueError("can't allocate memory"))
