from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import fiftyone as fo
import numpy as np
import pytest
from fiftyone import ViewField as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fiftyone_regioncap.core.errors import FieldError
from fiftyone_regioncap.core.types import FrameMasks, ObjectMask, box_of_mask
from fiftyone_regioncap.dataset.tracks import TrackWriter, read_masks, read_tracks

HEIGHT, WIDTH = 40, 60
MakeDataset = Callable[..., fo.Dataset]


def blob(x: int, y: int = 5, size: int = 8) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y : y + size, x : x + size] = True
    mask[y, x + 1] = False
    return mask


def walk(*, objects: int = 2, frames: Iterable[int] = range(5)) -> list[FrameMasks]:
    """Objects that walk to the right; the second is hidden on frame 2."""
    return [
        FrameMasks(
            frame,
            {
                10 + number: ObjectMask(
                    None
                    if number == 1 and frame == 2
                    else blob(3 * frame, 12 * number),
                    0.9 - 0.1 * number,
                )
                for number in range(objects)
            },
            prompted=frozenset({10}) if frame == 0 else frozenset(),
        )
        for frame in frames
    ]


def write(dataset: fo.Dataset, run: Iterable[FrameMasks], **options: object) -> None:
    with TrackWriter(dataset.first(), "frames.tracks", **options) as writer:
        for frame in run:
            writer.write(frame)


def documents(dataset: fo.Dataset, *, timeless: bool = True) -> list[dict]:
    """The frame documents as they lie in the database."""
    found = list(dataset._frame_collection.find({}).sort("frame_number", 1))
    for document in found:
        if timeless:
            del document["last_modified_at"]
    return found


def test_labels_say_all_that_the_schema_promises(dataset: fo.Dataset) -> None:
    write(dataset, walk(), labels={10: "dog"})
    first = dataset.first().frames[1].tracks.detections[0]
    later = dataset.first().frames[4].tracks.detections[0]
    assert (first.label, first.index, first.confidence) == ("dog", 10, 0.9)
    assert (first.keyframe, later.keyframe) == (True, False)
    assert first.bounding_box == [0, 0, 8 / WIDTH, 8 / HEIGHT]
    assert first.mask.dtype == bool and first.mask.shape == (8, 8)
    assert first.caption is None
    assert first.instance.id == later.instance.id
    other = dataset.first().frames[1].tracks.detections[1]
    assert (other.label, other.index) == (None, 11)
    assert other.instance.id != first.instance.id


def test_fields_are_declared_without_any_label(dataset: fo.Dataset) -> None:
    write(dataset, [])
    schema = dataset.get_frame_field_schema(flat=True)
    for name in ("instance", "instance.id", "keyframe", "caption", "index", "mask"):
        assert f"tracks.detections.{name}" in schema


def test_instances_of_prompts_are_used(dataset: fo.Dataset) -> None:
    instance = fo.Instance()
    write(dataset, walk(), instances={10: instance.id})
    labels = dataset.first().frames[3].tracks.detections
    assert labels[0].instance.id == instance.id


def test_a_hidden_object_keeps_its_id(dataset: fo.Dataset) -> None:
    write(dataset, walk())
    indexes = [
        [label.index for label in frame.tracks.detections]
        for frame in dataset.first().frames.values()
    ]
    assert indexes == [[10, 11], [10, 11], [10], [10, 11], [10, 11]]


@pytest.mark.parametrize("chunk_frames", [1, 2, 100])
def test_writing_twice_is_writing_once(dataset: fo.Dataset, chunk_frames: int) -> None:
    write(dataset, walk(), chunk_frames=chunk_frames)
    once = documents(dataset)
    write(dataset, walk(), chunk_frames=chunk_frames)
    assert documents(dataset) == once


def test_a_run_in_pieces_is_a_run_in_one(make_dataset: MakeDataset) -> None:
    own = {"_id", "instance"}  # each dataset has its own ids

    def contents(dataset: fo.Dataset) -> list[list[dict]]:
        return [
            [
                {k: v for k, v in label.to_mongo().items() if k not in own}
                for label in frame.tracks.detections
            ]
            for frame in dataset.first().frames.values()
        ]

    whole, pieces = make_dataset(), make_dataset()
    write(whole, walk())
    # A killed run leaves frames 0 to 3; the next one goes on from frame 2.
    write(pieces, walk(frames=range(4)))
    write(pieces, walk(frames=range(2, 5)))
    assert contents(pieces) == contents(whole)
    instances = pieces.values("frames.tracks.detections.instance.id", unwind=True)
    assert len(set(instances)) == 2


ENDLESS = """
import itertools, sys
import fiftyone as fo
import numpy as np
from fiftyone_regioncap.dataset.tracks import TrackWriter
from fiftyone_regioncap.core.types import FrameMasks, ObjectMask

sample = fo.load_dataset(sys.argv[1]).first()
with TrackWriter(sample, "tracks", chunk_frames=7) as writer:
    for frame in itertools.count():
        mask = np.zeros((40, 60), dtype=bool)
        mask[frame % 30 :, frame % 50 :] = True
        writer.write(FrameMasks(frame, {n: ObjectMask(mask, 0.5) for n in (1, 2)}))
"""


def test_a_killed_run_leaves_whole_frames(dataset: fo.Dataset) -> None:
    writing = subprocess.Popen([sys.executable, "-c", ENDLESS, dataset.name])
    try:
        deadline = time.monotonic() + 120
        while dataset._frame_collection.count_documents({}) < 50:
            assert writing.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        writing.kill()
        writing.wait()
    dataset.reload()
    for document in documents(dataset):
        assert [d["index"] for d in document["tracks"]["detections"]] == [1, 2]
        assert all(d["mask"] for d in document["tracks"]["detections"])


def test_passes_merge_in_any_order(make_dataset: MakeDataset) -> None:
    def one_object(object_id: int) -> list[FrameMasks]:
        return [
            FrameMasks(f.frame, {object_id: f.objects[object_id]}, f.prompted)
            for f in walk()
        ]

    both, backward = make_dataset(), make_dataset()
    write(both, walk())
    write(backward, reversed(one_object(11)))
    write(backward, reversed(one_object(10)))
    sizes = [
        dataset.values("frames.tracks.detections.index") for dataset in (both, backward)
    ]
    assert sizes[0] == sizes[1]


def test_an_object_that_is_lost_loses_its_old_label(dataset: fo.Dataset) -> None:
    write(dataset, walk())
    lost = {10: ObjectMask(None, 0.1), 11: ObjectMask(blob(30), 0.8)}
    write(dataset, [FrameMasks(1, lost)])
    labels = dataset.first().frames[2].tracks.detections
    assert [label.index for label in labels] == [11]


def test_frames_without_objects_get_no_document(dataset: fo.Dataset) -> None:
    write(dataset, [FrameMasks(3, {1: ObjectMask(None, 0.0)}), FrameMasks(5, {})])
    assert documents(dataset) == []


def test_other_fields_of_a_frame_stay(dataset: fo.Dataset) -> None:
    sample = dataset.first()
    sample.frames[2] = fo.Frame(
        boxes=fo.Detections(detections=[fo.Detection(bounding_box=[0, 0, 0.5, 0.5])])
    )
    sample.save()
    created = sample.frames[2].created_at
    write(dataset, walk())
    assert len(sample.frames[2].boxes.detections) == 1
    assert len(sample.frames[2].tracks.detections) == 2
    assert sample.frames[2].created_at == created


def test_frames_in_memory_show_what_was_written(dataset: fo.Dataset) -> None:
    write(dataset, walk())
    sample = dataset.first()
    held = sample.frames[1]
    assert len(held.tracks.detections) == 2
    with TrackWriter(sample, "tracks") as writer:
        writer.clear_range()
    assert held.tracks is None


def test_labels_that_look_like_expressions_are_data(dataset: fo.Dataset) -> None:
    write(dataset, walk(), labels={10: "$frame_number", 11: "a.b"})
    labels = dataset.first().frames[1].tracks.detections
    assert [label.label for label in labels] == ["$frame_number", "a.b"]


def test_masks_on_disk(dataset: fo.Dataset, tmp_path: Path) -> None:
    write(dataset, walk(), mask_storage="disk", output_dir=tmp_path)
    sample = dataset.first()
    label = sample.frames[2].tracks.detections[1]
    assert label.mask is None
    assert Path(label.mask_path).is_relative_to(tmp_path.resolve())
    assert Path(label.mask_path).name == "000002-11.png"
    assert (label.get_mask() > 0).sum() == blob(0).sum()
    masks = dict(read_masks(sample, "tracks", {1: {11}}))
    assert (masks[1][11] == blob(3, 12)).all()
    with TrackWriter(sample, "tracks", output_dir=tmp_path) as writer:
        writer.clear_range()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def crowded(dataset: fo.Dataset, size: int) -> None:
    """Fills frame 1 with so many bytes of another field."""
    dataset.add_frame_field("payload", fo.VectorField)
    payload = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    sample = dataset.first()
    sample.frames[1] = fo.Frame(payload=payload)
    sample.save()


def noise(side: int) -> list[FrameMasks]:
    """Frame 0 with masks that hardly compress, frame 1 with a small one."""
    masks = np.random.default_rng(1).random((3, side, side)) < 0.5
    objects = {number: ObjectMask(mask, 0.5) for number, mask in enumerate(masks)}
    small = np.zeros((side, side), dtype=bool)
    small[0, 0] = True
    return [FrameMasks(0, objects), FrameMasks(1, {0: ObjectMask(small, 0.5)})]


@pytest.mark.parametrize(
    ("limit", "side", "other_bytes"),
    [
        (2**16, 600, 0),  # the masks of a frame are more than we let into a document
        (2**23, 1500, 16 * 10**6),  # they are not, but with the frame's other fields
        # they don't fit into one request
        pytest.param(2**30, 6800, 0, marks=pytest.mark.slow),
    ],
)
def test_masks_that_dont_fit_go_to_disk(
    make_dataset: MakeDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
    side: int,
    other_bytes: int,
) -> None:
    monkeypatch.setattr("fiftyone_regioncap.dataset.tracks.FRAME_BYTES", limit)
    monkeypatch.setattr("fiftyone_regioncap.dataset.tracks.VIDEO_BYTES", 2**30)
    dataset = make_dataset(height=side, width=side, frames=2)
    crowded(dataset, other_bytes)
    run = noise(side)
    write(dataset, run, output_dir=tmp_path)
    paths = dataset.values("frames.tracks.detections.mask_path")[0]
    assert all(paths[0]) and not any(paths[1])
    ((_, read),) = read_masks(dataset.first(), "tracks", {0: {0, 1, 2}})
    for number, item in run[0].objects.items():
        np.testing.assert_array_equal(read[number], item.mask)


def test_masks_that_must_stay_inline_and_dont_fit(make_dataset: MakeDataset) -> None:
    dataset = make_dataset(height=1500, width=1500, frames=2)
    crowded(dataset, 16 * 10**6)
    with pytest.raises(FieldError, match="16 MB"):
        write(dataset, noise(1500), mask_storage="inline")


@pytest.mark.parametrize(
    ("support", "objects", "left"),
    [
        (None, None, []),
        ((1, 2), None, [1, 4, 5]),
        ((0, 4), [11], [1, 2, 3, 4, 5]),
        (None, [10, 11], []),
    ],
)
def test_clearing(
    dataset: fo.Dataset,
    support: tuple[int, int] | None,
    objects: list[int] | None,
    left: list[int],
) -> None:
    write(dataset, walk())
    with TrackWriter(dataset.first(), "tracks") as writer:
        writer.clear_range(support, objects)
    found = {
        number: [
            label.index for label in (frame.tracks and frame.tracks.detections) or []
        ]
        for number, frame in dataset.first().frames.items()
    }
    assert [number for number, indexes in found.items() if 10 in indexes] == left
    if objects == [11]:
        assert all(11 not in indexes for indexes in found.values())


def test_tracks_come_back(dataset: fo.Dataset) -> None:
    write(dataset, walk(), labels={10: "dog"})
    one, two = read_tracks(dataset.first(), "frames.tracks")
    assert (one.object_id, one.label) == (10, "dog")
    assert two.frames.tolist() == [0, 1, 3, 4]
    assert two.scores.tolist() == [0.8] * 4
    assert [tuple(box) for box in one.boxes] == [
        box_of_mask(blob(3 * frame, 0)) for frame in range(5)
    ]
    instance = dataset.first().frames[1].tracks.detections[0].instance.id
    assert one.instance == instance
    (part, _) = read_tracks(dataset.first(), "tracks", support=(1, 2))
    assert part.frames.tolist() == [1, 2]


def test_filters_of_a_view_hold(dataset: fo.Dataset) -> None:
    write(dataset, walk(), labels={10: "dog", 11: "cat"})
    view = dataset.filter_labels("frames.tracks", F("label") == "cat")
    (track,) = read_tracks(view.first(), "tracks")
    assert track.object_id == 11
    masks = dict(read_masks(view.first(), "tracks", {0: {10, 11}, 1: {11}}))
    assert {frame: list(objects) for frame, objects in masks.items()} == {
        0: [11],
        1: [11],
    }


def test_clips_are_read_and_written_in_place(dataset: fo.Dataset) -> None:
    write(dataset, walk())
    sample = dataset.first()
    sample["events"] = fo.TemporalDetections(
        detections=[fo.TemporalDetection(label="a", support=[2, 3])]
    )
    sample.save()
    clip = dataset.to_clips("events").first()
    (track, _) = read_tracks(clip, "tracks")
    assert track.frames.tolist() == [1, 2]
    with TrackWriter(clip, "others") as writer:
        writer.write(walk()[1])
    assert len(dataset.first().frames[2].others.detections) == 2


def test_tracks_by_instance_alone(dataset: fo.Dataset) -> None:
    linked = fo.Instance()
    sample = dataset.first()
    for number in (2, 9):
        sample.frames[number] = fo.Frame(
            tracks=fo.Detections(
                detections=[
                    fo.Detection(bounding_box=[0, 0, 0.5, 0.5], instance=linked),
                    fo.Detection(bounding_box=[0, 0, 0.5, 0.5], index=1),
                    fo.Detection(bounding_box=[0, 0, 0.5, 0.5], label="untracked"),
                ]
            )
        )
    sample.save()
    one, two = read_tracks(sample, "tracks")
    assert (one.object_id, two.object_id) == (1, 2)
    assert two.instance == linked.id
    assert two.frames.tolist() == [1, 8]


def test_labels_that_nothing_links(dataset: fo.Dataset) -> None:
    sample = dataset.first()
    sample.frames[1] = fo.Frame(
        tracks=fo.Detections(detections=[fo.Detection(bounding_box=[0, 0, 1, 1])])
    )
    sample.save()
    with pytest.raises(FieldError, match="neither an index nor an instance"):
        read_tracks(sample, "tracks")


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("frames.absent", "fields that do: frames.tracks"),
        ("captions", "no field 'frames.captions'"),
    ],
)
def test_fields_that_hold_no_tracks(
    dataset: fo.Dataset, field: str, message: str
) -> None:
    write(dataset, walk())
    with pytest.raises(FieldError, match=message):
        read_tracks(dataset.first(), field)


@pytest.mark.parametrize(
    ("field", "options", "message"),
    [
        ("frames.no good", {}, "no field name"),
        ("tracks", {"mask_storage": "cloud"}, "auto, inline, disk"),
        ("number", {}, "another type"),
    ],
)
def test_what_cannot_be_written(
    dataset: fo.Dataset, field: str, options: dict, message: str
) -> None:
    dataset.add_frame_field("number", fo.IntField)
    with pytest.raises(FieldError, match=message):
        TrackWriter(dataset.first(), field, **options)


def test_images_have_no_tracks(images: fo.Dataset) -> None:
    with pytest.raises(FieldError, match="no frames"):
        TrackWriter(images.first(), "tracks")


@st.composite
def runs(draw: st.DrawFn) -> dict[int, dict[int, np.ndarray]]:
    """Masks by frame and object, frames sparse and in any order."""
    frames = draw(st.lists(st.integers(0, 10_000), unique=True, max_size=5))
    height, width = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    objects = draw(st.lists(st.integers(0, 2**31 - 1), unique=True, max_size=3))
    return {
        frame: {
            object_id: rng.random((height, width)) < rng.random()
            for object_id in objects
        }
        for frame in frames
    }


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(run=runs())
def test_any_masks_on_any_frames_come_back(
    make_dataset: MakeDataset, run: dict[int, dict[int, np.ndarray]]
) -> None:
    shapes = {mask.shape for masks in run.values() for mask in masks.values()}
    height, width = shapes.pop() if shapes else (5, 5)
    dataset = make_dataset(height=height, width=width, frames=10_001)
    frames = [
        FrameMasks(frame, {n: ObjectMask(mask, 0.5) for n, mask in masks.items()})
        for frame, masks in run.items()
    ]
    write(dataset, frames, chunk_frames=2)
    once = documents(dataset)
    write(dataset, frames, chunk_frames=3)
    assert documents(dataset) == once
    sample = dataset.first()
    read = dict(read_masks(sample, "tracks", {f: list(m) for f, m in run.items()}))
    expected = {
        frame: {n: mask for n, mask in masks.items() if mask.any()}
        for frame, masks in run.items()
    }
    expected = {frame: masks for frame, masks in expected.items() if masks}
    assert list(read) == sorted(expected)
    for frame, masks in expected.items():
        assert set(read[frame]) == set(masks)
        for object_id, mask in masks.items():
            np.testing.assert_array_equal(read[frame][object_id], mask)
    for track in read_tracks(sample, "tracks"):
        visible = [f for f in sorted(expected) if track.object_id in expected[f]]
        assert track.frames.tolist() == visible
        boxes = [box_of_mask(expected[f][track.object_id]) for f in visible]
        assert [tuple(box) for box in track.boxes] == boxes
