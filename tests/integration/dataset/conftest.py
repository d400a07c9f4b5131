"""Datasets for the tests of labels, in a real database."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import fiftyone as fo
import pytest


@pytest.fixture
def make_dataset(fiftyone_database: str) -> Iterator[Callable[..., fo.Dataset]]:
    """Makes datasets with one video sample, 10 frames of 40 x 60 unless told."""
    made = []

    def make(
        height: int = 40, width: int = 60, frames: int = 10, **fields: object
    ) -> fo.Dataset:
        dataset = fo.Dataset()
        made.append(dataset)
        metadata = fo.VideoMetadata(
            frame_width=width,
            frame_height=height,
            frame_rate=10.0,
            total_frame_count=frames,
            duration=frames / 10,
        )
        dataset.add_sample(
            fo.Sample(filepath="/nowhere/video.mp4", metadata=metadata, **fields)
        )
        return dataset

    yield make
    for dataset in made:
        dataset.delete()


@pytest.fixture
def dataset(make_dataset: Callable[..., fo.Dataset]) -> fo.Dataset:
    """One video sample of 10 frames of 40 x 60."""
    return make_dataset()


@pytest.fixture
def images(fiftyone_database: str) -> Iterator[fo.Dataset]:
    """One image sample of 40 x 60."""
    dataset = fo.Dataset()
    dataset.add_sample(fo.Sample(filepath="/nowhere/image.png"))
    yield dataset
    dataset.delete()
