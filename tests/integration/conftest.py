"""A dataset of described tracks, and a model that embeds without weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import fiftyone as fo
import numpy as np
import pytest

from fiftyone_regioncap.dataset.captions import CaptionRecord, write_captions


class BagOfWords:
    """Embeds a text as the sum of a random vector for each of its words."""

    name = "bag-of-words"
    dimension = 256

    def __init__(self) -> None:
        self.embedded: list[str] = []

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.embedded += texts
        sums = [sum(map(self._of, text.lower().split())) for text in texts]
        vectors = np.asarray(sums, np.float32).reshape(len(texts), self.dimension)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def _of(self, word: str) -> np.ndarray:
        seed = list(word.strip(".,").encode())
        return np.random.default_rng(seed).standard_normal(self.dimension)


@pytest.fixture
def embedder() -> BagOfWords:
    return BagOfWords()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test's own."""
    monkeypatch.setenv("REGIONCAP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@contextmanager
def describing() -> Iterator[Callable[..., fo.Dataset]]:
    """Makes datasets of one video a list, with one track a caption."""
    made = []

    def make(*videos: Sequence[str | CaptionRecord]) -> fo.Dataset:
        dataset = fo.Dataset()
        made.append(dataset)
        for number, captions in enumerate(videos):
            metadata = fo.VideoMetadata(
                frame_width=60,
                frame_height=40,
                frame_rate=10.0,
                total_frame_count=20,
                duration=2.0,
            )
            sample = fo.Sample(filepath=f"/nowhere/{number}.mp4", metadata=metadata)
            dataset.add_sample(sample)
            records = [
                text
                if isinstance(text, CaptionRecord)
                else CaptionRecord(place, (0, 9), label="thing", caption=text)
                for place, text in enumerate(captions, start=1)
            ]
            write_captions(sample, "captions", records)
        return dataset

    try:
        yield make
    finally:
        for dataset in made:
            dataset.delete()


@pytest.fixture
def described(
    fiftyone_database: str, cache: Path
) -> Iterator[Callable[..., fo.Dataset]]:
    """See :func:`describing`."""
    with describing() as make:
        yield make
