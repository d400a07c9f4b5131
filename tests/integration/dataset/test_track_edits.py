"""Splitting, merging, deleting and renumbering tracks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fiftyone_regioncap as frc
from fiftyone_regioncap.core.errors import FieldError
from fiftyone_regioncap.core.types import FrameMasks, ObjectMask
from fiftyone_regioncap.dataset.captions import CaptionRecord, write_captions
from fiftyone_regioncap.dataset.objects import read_numbers
from fiftyone_regioncap.dataset.store import Store
from fiftyone_regioncap.dataset.track_edits import change_numbers, used_numbers
from fiftyone_regioncap.dataset.tracks import TrackWriter, read_tracks

FRAMES = 8


@pytest.fixture(scope="module")
def module_sample(fiftyone_database: str) -> Iterator[fo.Sample]:
    made = fo.Dataset("track-edits")
    metadata = fo.VideoMetadata(
        frame_width=20, frame_height=10, frame_rate=10.0, total_frame_count=FRAMES
    )
    made.add_sample(fo.Sample(filepath="/nowhere/a.mp4", metadata=metadata))
    yield made.first()
    made.delete()


@pytest.fixture
def sample(module_sample: fo.Sample) -> fo.Sample:
    """A video with objects 1 (all frames) and 4 (frames 3 to 6), and captions."""
    return fill(module_sample, {1: range(FRAMES), 4: range(2, 6)})


def fill(
    sample: fo.Sample,
    objects: dict[int, Any],
    storage: Any = "inline",
    output_dir: Any = None,
) -> Any:
    """Writes tracks and captions anew."""
    dataset = sample._dataset
    dataset._frame_collection.delete_many({})
    dataset._sample_collection.update_many(
        {}, {"$unset": {"captions": "", "tracks_objects": "", "tracks_origin": ""}}
    )
    sample.reload()
    sample.frames.reload()
    with TrackWriter(
        sample, "tracks", mask_storage=storage, output_dir=output_dir
    ) as writer:
        for frame in range(FRAMES):
            there = {}
            for index in (index for index, own in objects.items() if frame in own):
                mask = np.zeros((10, 20), dtype=bool)
                mask[index : index + 3, frame : frame + 5] = True
                there[index] = ObjectMask(mask, 0.5)
            writer.write(FrameMasks(frame, there))
    records = [
        CaptionRecord(index, support, caption=f"#{index} {support}")
        for index in objects
        for support in ((0, 3), (4, 7))
    ]
    write_captions(sample, "captions", records, tracks_field="tracks")
    return sample


def labels(sample: fo.Sample) -> dict[tuple[int, int], Any]:
    """What lies in the database, by frame and number."""
    found = {}
    query = {"_sample_id": Store.of(sample).sample_id}
    for document in sample._dataset._frame_collection.find(query):
        for label in (document.get("tracks") or {}).get("detections") or []:
            key = document["frame_number"] - 1, label["index"]
            assert key not in found, "two labels of a frame have one number"
            found[key] = label
    return found


def captions(sample: fo.Sample) -> dict[tuple[int, int], Any]:
    sample.reload()
    return {
        (label.index, label.support[0] - 1): label
        for label in sample["captions"].detections
    }


def of(found: dict[tuple[int, int], Any], number: int) -> list[int]:
    return sorted(frame for frame, index in found if index == number)


def test_a_split_makes_the_later_part_another_object(sample: fo.Sample) -> None:
    before = labels(sample)
    view = sample._dataset
    summary = frc.split_track(view, 1, 4, progress=False)
    after = labels(sample)
    # 2 is the smallest number that was never used.
    assert of(after, 1) == [0, 1, 2, 3] and of(after, 2) == [4, 5, 6, 7]
    assert {k: v for k, v in after.items() if k[1] == 4} == {
        k: v for k, v in before.items() if k[1] == 4
    }
    assert after[5, 2]["instance"] != before[5, 1]["instance"]
    assert after[5, 2]["mask"] == before[5, 1]["mask"]
    said = captions(sample)
    assert said[2, 4].caption == "#1 (4, 7)" and (1, 4) not in said
    assert not any("outdated" in label.tags for label in said.values())
    assert after[5, 2]["caption"] == "#1 (4, 7)"
    assert (summary.labels, summary.captions) == (4, 1)
    # The labels are still a job's, so that jobs replace them.
    with TrackWriter(sample, "tracks") as writer:
        writer.clear_range(None, {1, 2})
    assert {index for _, index in labels(sample)} == {4}


def test_a_caption_over_the_cut_is_outdated(sample: fo.Sample) -> None:
    frc.split_track(sample._dataset, 1, 2, new_id=9, progress=False)
    said = captions(sample)
    assert said[1, 0].tags == ["outdated"] and said[9, 4].tags == []
    assert [track.object_id for track in read_tracks(sample, "tracks")] == [1, 4, 9]


@given(cut=st.integers(1, FRAMES - 1), data=st.data())
@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_what_is_split_and_merged_is_as_before(
    module_sample: fo.Sample, cut: int, data: st.DataObject
) -> None:
    frames = st.sets(st.integers(0, FRAMES - 1), min_size=1)
    objects = {1: data.draw(frames), 4: data.draw(frames)}
    sample = fill(module_sample, objects)
    before = labels(sample)
    new = data.draw(st.sampled_from([2, 77]))
    change_numbers(sample, "tracks", {1: lambda frame: 1 if frame < cut else new})
    split = labels(sample)
    assert {(f, 1 if i == new else i) for f, i in split} == set(before)
    assert of(split, new) == [f for f in of(before, 1) if f >= cut]
    assert {k: v for k, v in split.items() if k[1] == 4} == {
        k: v for k, v in before.items() if k[1] == 4
    }
    if of(split, new) and of(split, 1):
        change_numbers(sample, "frames.tracks", {new: lambda frame: 1})
        after = labels(sample)
        same = {k: {**v, "caption": None} for k, v in after.items()}
        assert same == {k: {**v, "caption": None} for k, v in before.items()}


def test_of_two_labels_on_a_frame_the_edited_one_stays(sample: fo.Sample) -> None:
    frame = sample.frames[4]
    edited = next(d for d in frame["tracks"].detections if d.index == 4)
    edited.bounding_box = [0.1, 0.1, 0.2, 0.2]
    sample.save()
    before = labels(sample)
    summary = frc.merge_tracks(sample._dataset, 4, into=1, progress=False)
    after = labels(sample)
    assert {index for _, index in after} == {1} and len(after) == FRAMES
    assert after[3, 1]["bounding_box"] == [0.1, 0.1, 0.2, 0.2]
    # Still a person's, with the id that it had.
    assert after[3, 1]["_id"] == before[3, 4]["_id"]
    assert after[2, 1] == before[2, 1]
    assert (summary.labels, summary.removed) == (1, 4)
    assert {label.index for label in captions(sample).values()} == {1}
    assert captions(sample)[1, 0].tags == ["outdated"]
    assert captions(sample)[1, 4].tags == []  # as nothing of it changed


def test_a_deleted_number_is_never_used_again(sample: fo.Sample) -> None:
    said = sample["captions"].detections
    said[-1].review = "edited"
    sample.save()
    frc.delete_track(sample._dataset, 4, progress=False)
    assert {index for _, index in labels(sample)} == {1}
    left = captions(sample)
    # What a person said stays.
    assert sorted(left) == [(1, 0), (1, 4), (4, 4)]
    assert left[4, 4].tags == ["outdated"]
    sample["captions"].detections.pop()
    sample.save()
    assert 4 in read_numbers(Store.of(sample), "tracks", "labels").values()
    there, used = used_numbers(sample, "tracks")
    assert there == {1} and 4 in used
    summary = frc.renumber_track(sample._dataset, 1, 4, progress=False)
    assert "is or was the number" in str(summary.failures[0].error)
    frc.renumber_track(sample._dataset, 1, progress=False)
    assert {index for _, index in labels(sample)} == {2}
    assert {index for index, _ in captions(sample)} == {2}


@pytest.mark.parametrize("own_folder", [False, True])
def test_files_of_masks_go_with_their_labels(
    module_sample: fo.Sample, own_folder: bool, tmp_path: Path
) -> None:
    folder = tmp_path if own_folder else None
    sample = fill(module_sample, {1: range(3)}, "disk", folder)
    frc.renumber_track(sample._dataset, 1, 6, progress=False)
    for (frame, index), label in labels(sample).items():
        assert label["mask_path"].endswith(f"{frame + 1:06d}-{index}.png")
    sample.frames.reload()
    assert sample.frames[1]["tracks"].detections[0].get_mask().any()


def test_a_label_that_stays_keeps_its_mask_file(
    module_sample: fo.Sample, tmp_path: Path
) -> None:
    sample = fill(module_sample, {1: range(2), 4: range(2)}, "disk", tmp_path)
    (edited,) = (d for d in sample.frames[1]["tracks"].detections if d.index == 4)
    edited.label = "edited by a person"
    mask = edited.get_mask()
    sample.save()
    frc.merge_tracks(sample._dataset, 4, into=1, progress=False)
    sample.frames.reload()
    (kept,) = sample.frames[1]["tracks"].detections
    assert (kept.index, kept.label) == (1, "edited by a person")
    np.testing.assert_array_equal(kept.get_mask(), mask)
    assert len(list(tmp_path.rglob("*.png"))) == 2


def test_objects_that_instances_name(module_sample: fo.Sample) -> None:
    """As FiftyOne's own tools write them: an instance, and no index."""
    sample = fill(module_sample, {})
    one, two = fo.Instance(), fo.Instance()
    for number in (1, 2, 3):
        sample.frames[number]["tracks"] = fo.Detections(
            detections=[
                fo.Detection(bounding_box=[0, 0, 0.5, 0.5], instance=instance)
                for instance in (one, two)
            ]
        )
    sample.save()
    first, second = (track.object_id for track in read_tracks(sample, "tracks"))
    change_numbers(sample, "tracks", {second: lambda f: second if f < 1 else 9})
    sample.frames.reload()
    found = {track.object_id: track for track in read_tracks(sample, "tracks")}
    assert set(found) == {first, second, 9}
    assert list(found[9].frames) == [1, 2] and list(found[second].frames) == [0]
    change_numbers(sample, "tracks", {9: lambda frame: second})
    sample.frames.reload()
    found = {track.object_id: track for track in read_tracks(sample, "tracks")}
    assert {n: len(track.frames) for n, track in found.items()} == {first: 3, second: 3}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: frc.split_track(d, 3, 2, progress=False), "holds no object 3"),
        (lambda d: frc.merge_tracks(d, 1, 3, progress=False), "holds no object 3"),
        (lambda d: frc.merge_tracks(d, 1, 1, progress=False), "the object itself"),
    ],
    ids=["no such object", "into none", "into itself"],
)
def test_bad_input_says_what_to_do(sample: fo.Sample, call: Any, message: str) -> None:
    before = labels(sample)
    summary = call(sample._dataset)
    assert message in str(summary.failures[0].error)
    assert labels(sample) == before


@pytest.mark.parametrize("field", ["frames.tracks", "captions"])
def test_read_only_fields_are_refused(sample: fo.Sample, field: str) -> None:
    declared = sample._dataset.get_field(field)
    declared.read_only = True
    declared.save()
    try:
        with pytest.raises(FieldError, match="read-only"):
            frc.delete_track(sample._dataset, 1, progress=False)
    finally:
        declared.read_only = False
        declared.save()
