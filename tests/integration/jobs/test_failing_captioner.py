"""What the status says when captions fail."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import fiftyone as fo
import pytest

from fiftyone_regioncap import api
from fiftyone_regioncap.captioning.base import CaptionerInfo
from fiftyone_regioncap.core.types import Caption, Prompt, RegionClip
from fiftyone_regioncap.dataset import videos as datasets
from fiftyone_regioncap.propagation.flow import FlowPropagator

PROMPTS = [
    Prompt(7, 3, box=(10, 20, 34, 44), label="disc"),
    Prompt(2, 0, box=(60, 40, 76, 56), label="brick"),
]


@dataclass
class Failing:
    """A captioner whose endpoint refuses some clips."""

    labels: frozenset[str]

    @property
    def info(self) -> CaptionerInfo:
        """Name and license."""
        return CaptionerInfo("failing", "failing", "1", "Apache-2.0")

    def caption(
        self, clips: Sequence[RegionClip], *, prompt: str | None = None
    ) -> list[Caption]:
        return [
            Caption(error="401: wrong key")
            if clip.label in self.labels
            else Caption(text="A thing.")
            for clip in clips
        ]


@pytest.fixture
def dataset(
    videos: list[Path], fiftyone_database: str, tmp_path: Path, monkeypatch
) -> Iterator[fo.Dataset]:
    """A video with tracks of two objects."""
    monkeypatch.setenv("REGIONCAP_CACHE", str(tmp_path / "cache"))
    made, _, _ = datasets.add_videos("failing", videos[:1], PROMPTS)
    api.propagate(made, propagator=FlowPropagator(), progress=False)
    yield made
    made.delete()


@pytest.mark.parametrize(
    ("labels", "state"),
    [({"disc", "brick"}, "failed"), ({"disc"}, "partial"), (set(), "complete")],
    ids=["all", "some", "none"],
)
def test_failed_captions_are_never_complete(dataset, labels, state) -> None:
    captioner = Failing(frozenset(labels))
    made = api.caption(dataset, captioner=captioner, progress=False)
    assert made.caption_errors == len(labels)
    assert (made.ok, made.nothing_done) == (state == "complete", state == "failed")
    sample = dataset.first()
    assert sample["captions_status"] == state
    assert sample["captions_error"] == ("401: wrong key" if labels else None)
    # What failed is tried again.
    again = api.caption(dataset, captioner=Failing(frozenset()), progress=False)
    assert again.captions == len(labels)
    sample.reload()
    assert sample["captions_status"] == "complete"
