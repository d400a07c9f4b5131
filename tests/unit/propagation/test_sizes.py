"""Published sizes of SAM 2 to the byte, and what an object takes as it is allocated."""

from __future__ import annotations

import pytest
import torch
from transformers import Sam2VideoModel

from benchmarks.propagation import small_model
from fiftyone_regioncap.models.planning import parameters_of
from fiftyone_regioncap.propagation.mobilesam import sizes as mobilesam_sizes
from fiftyone_regioncap.propagation.mobilesam.configuration import MobileSamOptions
from fiftyone_regioncap.propagation.sam2 import sizes
from fiftyone_regioncap.propagation.sam2.configuration import Sam2Options
from fiftyone_regioncap.propagation.sam2.model import TrackerModel

COUNTS = {
    "tiny": 38962498,
    "small": 46060354,
    "base-plus": 80850178,
    "large": 224446642,
}


@pytest.mark.parametrize(("size", "count"), COUNTS.items())
def test_each_published_size_has_its_parameters(
    size: sizes.HieraSize, count: int
) -> None:
    with torch.device("meta"):
        assert parameters_of(Sam2VideoModel(sizes.published(size))) == count


def test_weights_are_float32_whatever_it_computes_in() -> None:
    name = "facebook/sam2.1-hiera-base-plus"
    made = sizes.footprint(name, Sam2Options(), torch.bfloat16)
    assert (made.name, made.weights) == ("SAM 2.1 hiera-base-plus", 4 * 80850178)


def test_a_smaller_image_takes_less() -> None:
    whole, half = (
        sizes.footprint(None, Sam2Options(image_size=side), torch.bfloat16)
        for side in (1024, 512)
    )
    assert half.row < whole.row / 3 and half.image_size == 512


def test_an_object_takes_what_the_cpu_allocates() -> None:
    model = small_model()
    expected = sizes.object_bytes(model.config, torch.float32)
    tracker = TrackerModel(model)
    features = tracker.encode_image(torch.zeros(1, 3, 128, 128))
    memory, pointers = sizes.full_memory(tracker, torch.float32, "cpu")
    track = sizes.phase(
        "track", 0, lambda: sizes.track(tracker, features, memory, pointers)
    )
    found = track.memory + memory.numel() * memory.element_size()
    assert found == pytest.approx(expected, rel=0.05)


def test_mobilesam_is_small() -> None:
    made = mobilesam_sizes.footprint(None, MobileSamOptions(), torch.float32)
    assert made.weights == 4 * made.parameters < 50_000_000
