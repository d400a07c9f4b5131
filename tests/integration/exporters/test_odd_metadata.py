"""Exports and jobs say what the file says, not what was stored of it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import fiftyone as fo
import numpy as np
import pytest

from fiftyone_regioncap import api
from fiftyone_regioncap.core.types import FrameMasks, ObjectMask
from fiftyone_regioncap.dataset.captions import CaptionRecord, write_captions
from fiftyone_regioncap.dataset.tracks import TrackWriter
from fiftyone_regioncap.exporters.staging import MANIFEST
from tests.support.videos import numbered, with_matrix, write_video

TIMES = [0, 100, 200, 800, 900]
CLOCKWISE = (0, 1, -1, 0)


@pytest.fixture
def dataset(fiftyone_database: str, tmp_path: Path) -> Iterator[fo.Dataset]:
    """A rotated video of variable rate, whose stored metadata is wrong."""
    images = [numbered(number) for number in range(len(TIMES))]  # 96 x 128
    path = with_matrix(write_video(tmp_path / "v.mp4", images, times=TIMES), CLOCKWISE)
    dataset = fo.Dataset()
    wrong = fo.VideoMetadata(
        frame_width=128, frame_height=96, total_frame_count=-25, frame_rate=25.0
    )
    sample = fo.Sample(filepath=str(path), metadata=wrong)
    dataset.add_sample(sample)
    mask = np.zeros((128, 96), dtype=bool)
    mask[100:120, 10:30] = True
    with TrackWriter(sample, "tracks") as writer:
        for frame in range(len(TIMES)):
            writer.write(FrameMasks(frame, {1: ObjectMask(mask, 1.0)}))
    records = [
        CaptionRecord(1, (0, 2), "dog", "A dog."),
        CaptionRecord(1, (3, 4), "dog", "A dog runs."),
    ]
    write_captions(sample, "captions", records)
    yield dataset
    dataset.delete()


def test_exports_take_size_length_and_times_from_the_file(
    dataset: fo.Dataset, tmp_path: Path
) -> None:
    summary = api.export(dataset, "csv", str(tmp_path / "csv"), progress=False)
    (said,) = [note for note in summary.notes if "corrected" in note]
    assert "frame width 128, not 96" in said and "frame count -25, not 5" in said
    assert any("conform" in note for note in summary.notes)
    with (tmp_path / "csv" / "captions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["start_seconds"]) for row in rows] == [0.0, 0.8]
    assert float(rows[0]["end_seconds"]) == 0.8

    api.export(dataset, "webvtt", str(tmp_path / "vtt"), progress=False)
    (subtitles,) = (tmp_path / "vtt").glob("subtitles/**/*.vtt")
    assert "00:00:00.000 --> 00:00:00.800" in subtitles.read_text()

    api.export(dataset, "youtube-vis", str(tmp_path / "vis"), progress=False)
    written = (tmp_path / "vis").glob("**/*.json")
    (file,) = (file for file in written if file.name != MANIFEST)
    (video,) = json.loads(file.read_text())["videos"]
    assert (video["width"], video["height"], video["length"]) == (96, 128, 5)


def test_captions_of_a_rotated_video_with_swapped_sides(dataset: fo.Dataset) -> None:
    summary = api.caption(
        dataset, output="others", captioner="measured", progress=False
    )
    assert summary.ok, summary.failures
    assert any("frame height 96, not 128" in note for note in summary.notes)
    dataset.reload()
    metadata = dataset.first().metadata
    assert (metadata.frame_width, metadata.total_frame_count) == (96, 5)


def test_labels_past_the_end_of_a_video_are_left_out_and_said(
    dataset: fo.Dataset, tmp_path: Path
) -> None:
    """Those of a longer file, say, that had the same name."""
    sample = dataset.first()
    for number in range(1, len(TIMES) + 4):
        box = fo.Detection(label="cat", bounding_box=[0.2, 0.2, 0.4, 0.4], index=1)
        sample.frames[number]["others"] = fo.Detections(detections=[box])
    sample.save()
    fields = {"tracks": "frames.others", "progress": False}
    summary = api.caption(dataset, output="said", captioner="measured", **fields)
    assert summary.ok and summary.captions == 1, summary.failures
    end = "the video ends with frame 5; what 3 later frames of the dataset hold"
    assert any(end in note for note in summary.notes)
    dataset.reload()
    assert [c.support for c in dataset.first().said.detections] == [[1, len(TIMES)]]
    out = tmp_path / "jsonl"
    made = api.export(dataset, "jsonl", str(out), captions="said", **fields)
    assert made.ok and any(end in note for note in made.notes)
    (line,) = map(json.loads, (out / "tracks.jsonl").read_text().splitlines())
    assert sorted(map(int, line["masks"])) == list(range(len(TIMES)))
