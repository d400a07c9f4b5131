from __future__ import annotations

import fiftyone as fo
import pytest

from fiftyone_regioncap.core.errors import FieldError
from fiftyone_regioncap.dataset.status import Status, done, read_status, write_status


@pytest.mark.parametrize("field", ["captions", "frames.tracks", "tracks"])
def test_status_is_kept_and_updated(dataset: fo.Dataset, field: str) -> None:
    sample = dataset.first()
    assert read_status(sample, field) == Status(None)
    write_status(sample, field, "partial")
    assert read_status(sample, field) == Status("partial")
    write_status(sample, field, "failed", "VideoError: broken")
    assert read_status(sample, field) == Status("failed", "VideoError: broken")
    write_status(sample, field, "complete")
    assert read_status(sample, field) == Status("complete")
    name = field.removeprefix("frames.")
    assert sample[f"{name}_status"] == "complete"
    assert sample[f"{name}_error"] is None


def test_only_complete_samples_are_done(dataset: fo.Dataset) -> None:
    states = ["complete", "partial", "failed", None, "complete"]
    dataset.add_samples([fo.Sample(filepath=f"/{n}.mp4") for n in range(4)])
    assert done(dataset, "captions") == set()
    for sample, state in zip(dataset, states, strict=True):
        if state is not None:
            write_status(sample, "captions", state)
    ids = dataset.values("id")
    assert done(dataset, "captions") == {ids[0], ids[4]}
    assert done(dataset[:3], "captions") == {ids[0]}


def test_a_clip_shares_the_status_of_its_video(dataset: fo.Dataset) -> None:
    sample = dataset.first()
    sample["events"] = fo.TemporalDetections(
        detections=[fo.TemporalDetection(label="a", support=[2, 3])]
    )
    sample.save()
    clips = dataset.to_clips("events")
    write_status(clips.first(), "captions", "complete")
    assert read_status(sample, "captions") == Status("complete")
    assert done(clips, "captions") == {sample.id}


def test_a_status_field_of_another_type(dataset: fo.Dataset) -> None:
    dataset.add_sample_field("captions_status", fo.IntField)
    with pytest.raises(FieldError, match="captions_status"):
        write_status(dataset.first(), "captions", "complete")
