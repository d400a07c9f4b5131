"""Published sizes of trackers to the byte; what an object takes as it is allocated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fiftyone_regioncap.core.registry import resolve
from fiftyone_regioncap.propagation import sam2_official
from fiftyone_regioncap.propagation.mobilesam import sizes as mobilesam_sizes
from fiftyone_regioncap.propagation.mobilesam.configuration import MobileSamOptions
from fiftyone_regioncap.propagation.sam2 import sizes
from fiftyone_regioncap.propagation.sam2.configuration import (
    EDGETAM,
    SAM2,
    SAM3_TRACKER,
    Sam2OfficialOptions,
    Sam2Options,
)
from fiftyone_regioncap.propagation.sam2.model import EdgeTamModel, TrackerModel

COUNTS = {
    # Those that facebook's package builds from its own configurations.
    "facebook/sam2.1-hiera-tiny": (SAM2, "SAM 2.1 hiera-tiny", 38962498),
    "facebook/sam2.1-hiera-small": (SAM2, "SAM 2.1 hiera-small", 46060354),
    "facebook/sam2.1-hiera-base-plus": (SAM2, "SAM 2.1 hiera-base-plus", 80850178),
    "facebook/sam2.1-hiera-large": (SAM2, "SAM 2.1 hiera-large", 224446642),
    "facebook/sam2-hiera-tiny": (SAM2, "SAM 2 hiera-tiny", 38945986),
    "facebook/sam2-hiera-large": (SAM2, "SAM 2 hiera-large", 224430130),
    "facebook/sam3": (SAM3_TRACKER, "SAM 3, tracker", 465782146),
    "yonigozlan/EdgeTAM-hf": (EDGETAM, "EdgeTAM", 13912306),
}


@pytest.mark.parametrize("weights", COUNTS)
def test_each_published_size_has_its_parameters_in_float32(weights: str) -> None:
    card, name, count = COUNTS[weights]
    if card is EDGETAM:
        pytest.importorskip("timm", reason="has the backbone of EdgeTAM")
    made = resolve(card.footprint)(weights, Sam2Options(), torch.bfloat16)
    assert (made.name, made.parameters, made.weights) == (name, count, 4 * count)


@pytest.mark.parametrize(
    ("weights", "config"),
    [
        ("/weights/sam2.1_hiera_base_plus.pt", None),
        ("mine.pt", "configs/sam2.1/sam2.1_hiera_b+.yaml"),
    ],
    ids=["by the file's name", "by the configuration"],
)
def test_the_official_predictor_has_those_of_sam2(
    weights: str, config: str | None
) -> None:
    made = sam2_official.footprint(
        weights, Sam2OfficialOptions(config=config), torch.float32
    )
    assert (made.parameters, made.rows["cuda"]) == (80850178, 1)


def test_a_smaller_image_takes_less() -> None:
    whole, half = (
        sizes.footprint(None, Sam2Options(image_size=side), torch.bfloat16)
        for side in (1024, 512)
    )
    assert half.row < whole.row / 3 and half.image_size == 512


@pytest.mark.parametrize(
    ("kind", "tracker_class"), [("sam2", TrackerModel), ("edgetam", EdgeTamModel)]
)
def test_an_object_takes_what_the_cpu_allocates(
    kind: str, tracker_class: type[TrackerModel], make_model: Callable[..., Any]
) -> None:
    tracker = tracker_class(make_model(kind))
    expected = sizes.object_bytes(tracker, torch.float32)
    side = tracker.image_size
    features = tracker.encode_image(torch.zeros(1, 3, side, side))
    memory, pointers = sizes.full_memory(tracker, torch.float32, "cpu")
    _, (tokens, _) = sizes.track(tracker, features, memory, pointers)
    assert tokens.shape[1] == tracker.memory_tokens
    track = sizes.phase(
        "track", 0, lambda: sizes.track(tracker, features, memory, pointers)
    )
    found = track.memory + memory.numel() * memory.element_size()
    assert found == pytest.approx(expected, rel=0.05)


def test_mobilesam_is_small() -> None:
    made = mobilesam_sizes.footprint(None, MobileSamOptions(), torch.float32)
    assert made.weights == 4 * made.parameters < 50_000_000
