"""Jobs never clear or replace what they didn't write, or what a person has edited."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fiftyone as fo
import numpy as np
import pytest

from fiftyone_regioncap import api
from fiftyone_regioncap.captioning.measured import MeasuredCaptioner
from fiftyone_regioncap.core.errors import FieldError, OptionError
from fiftyone_regioncap.core.types import Prompt
from fiftyone_regioncap.dataset import videos as datasets
from fiftyone_regioncap.propagation.flow import FlowPropagator

FRAMES = 24


@pytest.fixture
def dataset(
    videos: list[Path], fiftyone_database: str, tmp_path: Path, monkeypatch
) -> Iterator[fo.Dataset]:
    """A video with a prompt."""
    monkeypatch.setenv("REGIONCAP_CACHE", str(tmp_path / "cache"))
    prompts = [Prompt(7, 3, box=(10, 20, 34, 44), label="disc")]
    made, _, _ = datasets.add_videos("ownership", videos[:1], prompts)
    yield made
    made.delete()


def propagate(dataset: fo.Dataset, **options: object):
    return api.propagate(
        dataset, propagator=FlowPropagator(), progress=False, **options
    )


def caption(dataset: fo.Dataset, **options: object):
    return api.caption(
        dataset, captioner=MeasuredCaptioner(), progress=False, **options
    )


def labels(dataset: fo.Dataset, field: str = "tracks") -> dict[int, list[fo.Detection]]:
    dataset.reload()
    return {
        number: list(frame[field].detections) if frame[field] else []
        for number, frame in dataset.first().frames.items()
        if frame.has_field(field)
    }


def draw(dataset: fo.Dataset, field: str) -> None:
    """Labels of a person on every frame."""
    sample = dataset.first()
    for number in range(1, FRAMES + 1):
        box = fo.Detection(label="mine", bounding_box=[0.1, 0.1, 0.2, 0.2], index=3)
        sample.frames[number][field] = fo.Detections(detections=[box])
    sample.save()


def test_tracks_onto_labels_of_a_person_are_refused(dataset) -> None:
    draw(dataset, "detections")
    for overwrite in (False, True):
        with pytest.raises(FieldError, match=r"24 labels .*frames\.detections_2"):
            propagate(dataset, output="frames.detections", overwrite=overwrite)
    found = labels(dataset, "detections")
    assert [label.label for own in found.values() for label in own] == ["mine"] * FRAMES
    assert propagate(dataset, output="frames.detections_2").ok


def test_tracks_beside_labels_of_a_person_when_asked(dataset) -> None:
    draw(dataset, "detections")
    assert propagate(dataset, output="frames.detections", merge=True).ok
    assert propagate(dataset, output="frames.detections", merge=True, overwrite=True).ok
    for own in labels(dataset, "detections").values():
        assert sorted((label.index, label.label) for label in own) == [
            (3, "mine"),
            (7, "disc"),
        ]


def test_merged_tracks_never_share_a_number(dataset) -> None:
    draw(dataset, "detections")
    sample = dataset.first()
    sample.frames[5].detections.detections[0].index = 7
    sample.save()
    summary = propagate(dataset, output="frames.detections", merge=True)
    assert "object 7" in summary.failures[0].error
    found = labels(dataset, "detections")
    assert [label.label for own in found.values() for label in own] == ["mine"] * FRAMES


@pytest.mark.parametrize("edit", ["mask", "label", "box", "index"])
def test_an_edited_label_stays(dataset, edit) -> None:
    propagate(dataset)
    sample = dataset.first()
    label = sample.frames[9].tracks.detections[0]
    if edit == "mask":
        label.mask = np.ones_like(label.mask)
    elif edit == "label":
        label.label = "ball"
    elif edit == "box":
        label.bounding_box = [0.0, 0.0, 0.5, 0.5]
    else:
        label.index = 70
    sample.save()
    before = label.to_dict()
    assert propagate(dataset, overwrite=True).ok
    (kept,) = [d for d in labels(dataset)[9] if str(d.id) == str(label.id)]
    assert kept.to_dict() == before
    assert propagate(dataset, overwrite=True, overwrite_edited=True).ok
    (again,) = labels(dataset)[9]
    assert (again.label, again.index) == ("disc", 7)
    assert again.to_dict() != before


def test_a_mask_whose_file_is_gone_is_made_again(dataset, tmp_path) -> None:
    """Nobody edits a mask by removing its file; a name that a person gave stays."""
    stored = {"mask_storage": "disk", "output_dir": str(tmp_path / "masks")}
    propagate(dataset, **stored)
    for number in (5, 9):
        Path(labels(dataset)[number][0].mask_path).unlink()
    on = api.propagate_from(dataset, propagator=FlowPropagator(), progress=False)
    assert "was edited" in on.failures[0].error
    sample = dataset.first()
    sample.frames[9].tracks.detections[0].label = "ball"
    sample.save()
    assert propagate(dataset, overwrite=True, **stored).ok
    found = labels(dataset)
    assert Path(found[5][0].mask_path).is_file()
    assert found[9][0].label == "ball"


def test_captions_onto_labels_of_a_person_are_refused(dataset) -> None:
    propagate(dataset)
    sample = dataset.first()
    sample["events"] = fo.TemporalDetections(
        detections=[fo.TemporalDetection(label="goal", support=[3, 9])]
    )
    sample.save()
    for overwrite in (False, True):
        with pytest.raises(FieldError, match=r"1 labels .*events_2"):
            caption(dataset, output="events", overwrite=overwrite)
    assert caption(dataset, output="events", merge=True).captions == 1
    assert caption(dataset, output="events", merge=True, overwrite=True).captions == 1
    sample.reload()
    assert sorted(d.label for d in sample.events.detections) == ["disc", "goal"]


def test_a_reviewed_caption_stays_unless_asked(dataset) -> None:
    propagate(dataset)
    caption(dataset)
    sample = dataset.first()
    sample.captions.detections[0].caption = "A ball."
    sample.captions.detections[0].review = "edited"
    sample.save()
    caption(dataset, overwrite=True)
    sample.reload()
    assert sample.captions.detections[0].caption == "A ball."
    caption(dataset, overwrite=True, overwrite_edited=True)
    sample.reload()
    assert "red" in sample.captions.detections[0].caption


@pytest.mark.parametrize("field", ["frames.tracks", "captions"])
def test_read_only_fields_are_refused(dataset, field) -> None:
    propagate(dataset)
    caption(dataset)
    declared = dataset.get_field(field)
    declared.read_only = True
    declared.save()
    job = propagate if field == "frames.tracks" else caption
    with pytest.raises(FieldError, match="read-only"):
        job(dataset, output=field, overwrite=True)


@pytest.mark.parametrize(
    ("job", "field"),
    [
        (propagate, "frames.frame_number"),
        (caption, "metadata"),
        (caption, "filepath"),
        (caption, "tags"),
    ],
)
def test_fields_of_fiftyone_are_refused(dataset, job, field) -> None:
    if job is caption:
        propagate(dataset)
    with pytest.raises(OptionError, match="FiftyOne's own"):
        job(dataset, output=field)


def test_prompts_that_a_person_drew_or_edited_are_not_replaced(dataset) -> None:
    video = [Path(dataset.first().filepath)]
    other = [Prompt(1, 0, box=(60, 40, 76, 56))]
    datasets.add_videos("ownership", video, other)  # its own are
    sample = dataset.first()
    sample.frames[1].prompts.detections[0].bounding_box = [0.5, 0.5, 0.2, 0.2]
    sample.save()
    with pytest.raises(FieldError, match=r"frame 1 has labels .*frames\.prompts_2"):
        datasets.add_videos("ownership", video, [Prompt(1, 2, box=(60, 40, 76, 56))])
    assert dataset.first().frames[1].prompts.detections[0].bounding_box[0] == 0.5


@pytest.mark.parametrize("new_ids", [False, True], ids=["same ids", "new ids"])
def test_labels_of_a_copy_are_still_ours(dataset, new_ids: bool) -> None:
    propagate(dataset)
    caption(dataset)
    sample = dataset.first()
    sample.frames[5].tracks.detections[0].label = "ball"  # a person's
    sample.save()
    clone = fo.Dataset()
    clone.add_collection(dataset, new_ids=new_ids)
    assert (clone.first().id != sample.id) == new_ids
    try:
        assert propagate(clone, overwrite=True).tracks == 1
        assert caption(clone, overwrite=True).captions == 1
        (after,) = clone.first().captions.detections
        assert after.index == 7
        found = labels(clone)
        assert [len(found[number]) for number in (1, 5, FRAMES)] == [1, 1, 1]
        assert found[5][0].label == "ball"
    finally:
        clone.delete()
