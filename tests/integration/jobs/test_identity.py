"""Jobs keep objects apart and numbered, and one bad prompt costs only itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fiftyone as fo
import fiftyone.utils.labels as foul
import numpy as np
import pytest
from fiftyone import ViewField as F

from fiftyone_regioncap import api
from fiftyone_regioncap.dataset.captions import read_captions

DISC = [10 / 96, 20 / 72, 24 / 96, 24 / 72]  # on frame 4 of the videos of conftest.py
BRICK = [60 / 96, 40 / 72, 16 / 96, 16 / 72]
FRAMES = 24


@pytest.fixture
def dataset(
    videos: list[Path], fiftyone_database: str, tmp_path: Path, monkeypatch
) -> Iterator[fo.Dataset]:
    """One video, and a cache of its own."""
    monkeypatch.setenv("REGIONCAP_CACHE", str(tmp_path / "cache"))
    made = fo.Dataset()
    made.add_sample(fo.Sample(filepath=str(videos[0])))
    yield made
    made.delete()


def put(
    dataset: fo.Dataset, labels: dict[int, list[fo.Label]], field: str = "prompts"
) -> None:
    sample = dataset.first()
    for number, items in labels.items():
        kind = fo.Keypoints if isinstance(items[0], fo.Keypoint) else fo.Detections
        sample.frames[number][field] = kind(**{kind._LABEL_LIST_FIELD: items})
    sample.save()


def box(where: list[float], label: str | None = None, **more: object) -> fo.Detection:
    return fo.Detection(bounding_box=where, label=label, **more)


def propagate(samples: fo.DatasetView, **options):
    return api.propagate(samples, propagator="flow", progress=False, **options)


def caption(samples: fo.DatasetView, **options):
    return api.caption(samples, captioner="measured", progress=False, **options)


def tracks(dataset: fo.Dataset, field: str = "tracks") -> dict[int, str]:
    """Labels of the tracks by index."""
    dataset.reload()
    return {
        label.index: label.label
        for frame in dataset.first().frames.values()
        if frame[field] is not None
        for label in frame[field].detections
    }


def masks(dataset: fo.Dataset, index: int) -> dict[int, bytes]:
    """Masks of a track by frame."""
    return {
        number: label.mask.tobytes()
        for number, frame in dataset.first().frames.items()
        if frame.tracks is not None
        for label in frame.tracks.detections
        if label.index == index
    }


VIEWS = {
    "filter_labels": lambda d: d.filter_labels("frames.prompts", F("label") == "dog"),
    "match_frames": lambda d: d.match_frames(F("frame_number") == 6),
    "select_labels": lambda d: d.select_labels(
        ids=[label.id for label in d.first().frames[6].prompts.detections],
        fields="frames.prompts",
    ),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("linked", [False, True], ids=["alone", "by instance"])
def test_a_view_renumbers_nothing_and_destroys_nothing(dataset, view, linked):
    links = [{"instance": fo.Instance()} if linked else {} for _ in range(2)]
    put(
        dataset, {4: [box(DISC, "car", **links[0])], 6: [box(BRICK, "dog", **links[1])]}
    )
    propagate(dataset)
    assert tracks(dataset) == {1: "car", 2: "dog"}
    before = masks(dataset, 1)
    summary = propagate(VIEWS[view](dataset), overwrite=True)
    assert summary.tracks == 1
    assert tracks(dataset) == {1: "car", 2: "dog"}
    assert masks(dataset, 1) == before


def test_a_box_on_an_earlier_frame_takes_no_number_and_no_caption(dataset):
    put(dataset, {4: [box(DISC, "car"), box(BRICK, "dog")]})
    propagate(dataset)
    caption(dataset)
    sample = dataset.first()
    edited = sample["captions"].detections[0]
    assert edited.index == 1
    edited["caption"], edited["review"] = "A car that I know", "edited"
    sample.save()
    put(dataset, {1: [box([0.05, 0.7, 0.2, 0.2], "cat")]})
    propagate(dataset, overwrite=True)
    caption(dataset, overwrite=True)
    assert tracks(dataset) == {1: "car", 2: "dog", 3: "cat"}
    captions = {record.index: record for record in read_captions(sample, "captions")}
    assert captions[1].caption == "A car that I know"


def test_one_index_of_two_labels_is_two_objects(dataset):
    put(dataset, {4: [box(DISC, "car", index=1), box(BRICK, "person", index=1)]})
    assert propagate(dataset).ok
    assert tracks(dataset) == {1: "car", 2: "person"}
    foul.index_to_instance(dataset, "frames.prompts")
    assert propagate(dataset, overwrite=True).ok
    assert tracks(dataset) == {1: "car", 2: "person"}


def test_a_label_that_changes_is_one_object(dataset):
    put(dataset, {4: [box(BRICK, "red", index=3)], 9: [box(BRICK, "green", index=3)]})
    assert propagate(dataset).ok
    assert tracks(dataset) == {3: "red"}


@pytest.mark.parametrize("converted", ["as they are", "to instances", "cleared"])
def test_captions_of_tracks_of_another_tool_go_to_their_objects(dataset, converted):
    """FiftyOne names objects by label and index."""
    marks = [(DISC, "car"), (BRICK, "person")]
    put(
        dataset,
        {n: [box(b, name, index=1) for b, name in marks] for n in range(4, 9)},
        "others",
    )
    dataset.add_frame_field("others.detections.index", fo.IntField)
    assert caption(dataset, tracks="frames.others").captions == 2
    if converted != "as they are":
        foul.index_to_instance(
            dataset, "frames.others", clear_index=converted == "cleared"
        )
        caption(dataset, tracks="frames.others", overwrite=True)
    dataset.reload()
    found = read_captions(dataset.first(), "captions")
    assert [record.index for record in found] == [1, 2]
    texts = {record.index: record.caption for record in found}
    assert "red" in texts[1] and "blue" in texts[2]
    for number in range(4, 9):
        shown = dataset.first().frames[number]["others"].detections
        assert {label.label: label.caption for label in shown} == {
            "car": texts[1],
            "person": texts[2],
        }


def test_boxes_that_nothing_links_are_counted(dataset):
    put(dataset, {n: [box(DISC), box(BRICK)] for n in range(1, 21)})
    refused = propagate(dataset)
    assert refused.nothing_done
    assert "40 labels" in refused.failures[0].error
    assert "40 objects" in refused.failures[0].error
    assert "`index`" in refused.failures[0].error
    # The first frame alone starts two, and a few marks of a person are said.
    assert propagate(dataset.match_frames(F("frame_number") == 1)).tracks == 2
    few = propagate(dataset.match_frames(F("frame_number") < 3), overwrite=True)
    assert few.ok and few.tracks == 4
    assert "4 labels" in few.notes[0] and "4 objects" in few.to_markdown()
    allowed = propagate(dataset, unlinked=True, overwrite=True, stop=20)
    assert allowed.ok and allowed.tracks == 40


BAD = {
    "outside": (2, box([1.5, 1.5, 0.1, 0.1], index=9), "lies outside"),
    "no box": (2, fo.Detection(index=9), "no box"),
    "no mask file": (2, box(DISC, index=9, mask_path="/nowhere.png"), "restore"),
    "past the end": (99, box(DISC, index=9), "frames 1 to 24"),
}


def test_bad_prompts_are_named_and_the_others_are_propagated(dataset):
    put(dataset, {4: [box(DISC, index=7)]})
    propagate(dataset)
    before = masks(dataset, 7)
    put(dataset, {2: [BAD[case][1] for case in BAD if BAD[case][0] == 2]})
    put(dataset, {99: [BAD["past the end"][1]]})
    summary = propagate(dataset, overwrite=True)
    assert not summary.ok and not summary.nothing_done
    assert (summary.tracks, len(summary.failures)) == (1, len(BAD))
    for number, label, message in BAD.values():
        (error,) = [f.error for f in summary.failures if label.id in f.error]
        assert message in error and f"on frame {number}" in error
        assert label.id in summary.to_markdown()
    sample = dataset.first()
    assert masks(dataset, 7) == before
    assert sample["tracks_status"] == "partial"
    assert sample["tracks_error"] == summary.failures[0].error
    # The same again says the same, and does nothing.
    again = propagate(dataset)
    assert (again.frames, len(again.failures)) == (0, len(BAD))
    # What is mended is complete.
    del sample.frames[2], sample.frames[99]
    sample.save()
    assert propagate(dataset).ok
    dataset.reload()
    assert dataset.first()["tracks_status"] == "complete"
    assert dataset.first()["tracks_error"] is None


def test_points_off_an_object_correct_it(dataset):
    put(dataset, {4: [box([8 / 96, 18 / 72, 72 / 96, 40 / 72], index=7)]})
    click = fo.Keypoint(points=[(68 / 96, 48 / 72)], index=7)
    put(dataset, {4: [click], 8: [fo.Keypoint(points=[(68 / 96, 48 / 72)])]}, "off")
    assert propagate(dataset, negative_prompts="frames.off", overlap=True).ok
    for number in (4, 8):
        (label,) = dataset.first().frames[number].tracks.detections
        x, y, _, _ = label.bounding_box
        column, row = 68 - round(x * 96), 48 - round(y * 72)
        inside = 0 <= row < label.mask.shape[0] and 0 <= column < label.mask.shape[1]
        assert not inside or not label.mask[row, column]
    assert Counter(label for label in tracks(dataset)) == {7: 1}


def test_media_that_are_gone_take_nothing_from_complete_tracks(dataset, tmp_path):
    put(dataset, {4: [box(DISC, index=7)]})
    propagate(dataset)
    caption(dataset)
    path = dataset.first().filepath
    dataset.set_values("filepath", [str(tmp_path / "gone.mp4")])
    dataset.reload()
    summary = propagate(dataset)
    assert summary.nothing_done and "gone.mp4" in summary.failures[0].error
    dataset.set_values("filepath", [path])
    dataset.reload()
    assert dataset.first()["tracks_status"] == "complete"
    assert propagate(dataset).skipped == 1
    assert np.any([masks(dataset, 7)])
