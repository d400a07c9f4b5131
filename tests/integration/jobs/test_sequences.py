"""Ordered groups of images are videos."""

from __future__ import annotations

import mimetypes
from collections.abc import Iterator
from pathlib import Path

import cv2
import fiftyone as fo
import numpy as np
import pytest

from fiftyone_regioncap import api
from fiftyone_regioncap.core.errors import BackendError, FieldError
from fiftyone_regioncap.dataset.sequences import as_videos
from fiftyone_regioncap.dataset.videos import add_images
from fiftyone_regioncap.exporters import ExportError
from fiftyone_regioncap.review import session as review
from fiftyone_regioncap.video.reader import VideoReader
from tests.support.sequences import image_samples

FRAMES = 12


@pytest.fixture
def images(
    videos: list[Path], fiftyone_database: str, tmp_path: Path, monkeypatch
) -> Iterator[fo.Dataset]:
    """The frames of two videos as images in any order; each fourth has a box."""
    monkeypatch.setenv("REGIONCAP_CACHE", str(tmp_path / "cache"))
    dataset = fo.Dataset()
    samples = [
        sample
        for path in videos
        for sample in image_samples(path, tmp_path, FRAMES, marked=3)
    ]
    order = np.random.default_rng(0).permutation(len(samples))
    dataset.add_samples([samples[i] for i in order])
    yield dataset
    dataset.delete()


def sequences(images: fo.Dataset) -> fo.DatasetView:
    return images.group_by("scene", order_by="number")


def both(samples, **options):
    return api.propagate_and_caption(
        samples, propagator="flow", captioner="measured", progress=False, **options
    )


def found(images: fo.Dataset) -> dict[tuple[str, int], fo.Detection]:
    images.reload()
    return {
        (sample.scene, sample.number): label
        for sample in images
        if sample.tracks is not None
        for label in sample.tracks.detections
    }


@pytest.mark.parametrize("prompts", ["prompts", "frames.prompts"])
def test_tracks_and_captions_are_labels_of_the_images(
    images: fo.Dataset, videos: list[Path], prompts: str
) -> None:
    before = set(fo.list_datasets())
    mimetypes.init()  # as other libraries do; it forgets what was added at import
    summary = both(sequences(images), prompts=prompts)
    assert summary.ok, summary.failures
    assert (summary.samples, summary.tracks, summary.captions) == (2, 2, 2)
    tracks = found(images)
    assert len(tracks) == 2 * FRAMES
    for (scene, number), label in tracks.items():
        assert (label.index, label.label, label.keyframe) == (7, "disc", number == 3)
        assert "red" in label.caption and label.caption_model
        assert label.instance.id == tracks[scene, 0].instance.id
        assert label.mask is not None
    assert set(images.values("tracks_status")) == {"complete"}
    assert set(fo.list_datasets()) == before
    for prompted in images.exists("prompts"):
        assert not prompted.prompts.detections[0].has_attribute("caption_model")
    assert both(sequences(images), prompts=prompts).skipped == 4  # each stage of each


def test_groups_that_a_view_leaves_out_stay_as_they_are(images: fo.Dataset) -> None:
    both(sequences(images).limit(1), prompts="prompts")
    tracks = found(images)
    assert len(tracks) == FRAMES and len({scene for scene, _ in tracks}) == 1
    left = [label.bounding_box[0] for _, label in sorted(tracks.items())]
    assert left[-1] > left[0]  # the disc moves right


def test_a_deleted_track_does_not_come_back(images: fo.Dataset) -> None:
    both(sequences(images), prompts="prompts")
    deleted = api.delete_track(sequences(images).limit(1), 7, progress=False)
    assert deleted.removed == FRAMES
    assert both(sequences(images), prompts="prompts").skipped == 4
    assert len(found(images)) == FRAMES


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_a_person_said_of_captions_stays(
    images: fo.Dataset, overwrite: bool
) -> None:
    both(sequences(images).limit(1), prompts="prompts")
    shown = images.match(fo.ViewField("number").is_in([5, 7])).exists("tracks")
    for sample, action in zip(
        shown.sort_by("number"), (review.edit("MINE"), review.reject), strict=True
    ):
        ref = review.Ref(sample.id, sample.tracks.detections[0].id)
        review.apply(images, "tracks", [ref], action)
    before = {key: label.caption for key, label in found(images).items()}
    (scene,) = {scene for scene, _ in before}
    assert before[scene, 5] == "MINE"
    summary = api.caption(
        sequences(images).limit(1),
        captioner="measured",
        window=6,
        overwrite=overwrite,
        progress=False,
    )
    assert summary.captions
    after = {key: label.caption for key, label in found(images).items()}
    for number in (5, 7):
        assert after[scene, number] == before[scene, number]


def test_what_a_person_changes_meanwhile_stays(images: fo.Dataset) -> None:
    def box(label: str) -> fo.Detections:
        return fo.Detections(
            detections=[fo.Detection(label=label, bounding_box=[0, 0, 1, 1])]
        )

    with as_videos(sequences(images).limit(1)) as videos:
        (video,) = videos.samples
        video.frames[4]["tracks"] = box("ours")
        video.frames[4].prompts.detections[0].label = "ours"
        video.frames[5]["prompts"] = box("ours")
        video.save()
        sample = images[str(videos.images[video.id][3])]
        sample["tracks"] = box("mine")
        sample.prompts.detections[0].label = "mine"
        sample.save()
        following = str(videos.images[video.id][4])
    images.reload()
    sample = images[sample.id]
    assert [label.label for label in sample.tracks.detections] == ["mine", "ours"]
    assert [label.label for label in sample.prompts.detections] == ["mine"]
    assert images[following].prompts.detections[0].label == "ours"


@pytest.mark.parametrize(
    "executor", ["processes", pytest.param("ray", marks=pytest.mark.slow)]
)
def test_processes_do_what_one_does(
    images: fo.Dataset, executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    summary = both(sequences(images), prompts="prompts", executor=executor, workers=2)
    assert summary.ok, summary.failures
    assert (summary.samples, summary.tracks, summary.captions) == (2, 2, 2)
    tracks = found(images)
    assert len(tracks) == 2 * FRAMES
    assert all("red" in label.caption for label in tracks.values())
    assert both(sequences(images), prompts="prompts").skipped == 4


@pytest.mark.parametrize("given", [True, False], ids=["option", "variable"])
def test_a_cluster_takes_no_sequences(
    images: fo.Dataset, given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"address": "10.0.0.1:6379"} if given else {}
    if not given:
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(BackendError, match=r"10\.0\.0\.1.*executor=processes"):
        both(sequences(images), prompts="prompts", executor="ray", **options)
    assert not images.has_field("tracks")


@pytest.mark.parametrize("media", ["copy", "link", "none"])
def test_export_and_import(images: fo.Dataset, tmp_path: Path, media: str) -> None:
    both(sequences(images), prompts="prompts")
    before = {
        key: (label.mask.tobytes(), label.caption)
        for key, label in found(images).items()
    }
    folder = tmp_path / "out"
    made = api.export(
        sequences(images), "jsonl", folder, tracks="tracks", media=media, progress=False
    )
    assert made.ok and made.videos == 2, made.failures
    written = sorted(folder.rglob("*.mp4"))
    assert len(written) == (0 if media == "none" else 2)
    for path in written:  # images make a video, which can't be a link
        with VideoReader(path) as reader:
            assert len(reader) == FRAMES
    forget_sequences(images)
    assert not images.has_field("tracks")
    back = api.import_captions(
        sequences(images), "jsonl", folder, tracks="tracks", progress=False
    )
    assert back.ok and back.videos == 2, back.failures
    after = {
        key: (label.mask.tobytes(), label.caption)
        for key, label in found(images).items()
    }
    assert after == before


def forget_sequences(images: fo.Dataset) -> None:
    """Removes the tracks of the images, and what jobs keep of them."""
    for name in ["tracks", *images.get_field_schema()]:
        if name == "tracks" or name.startswith(("tracks_", "captions_")):
            if name not in images.get_field_schema():
                continue
            field = images.get_field(name)
            field.read_only = False
            field.save()
            images.delete_sample_field(name)


def test_an_export_never_replaces_the_images(images: fo.Dataset, tmp_path: Path):
    both(sequences(images), prompts="prompts")
    names = {path.name for path in (tmp_path / "one").iterdir()}
    with pytest.raises(ExportError):
        api.export(
            sequences(images),
            "jsonl",
            tmp_path / "one",
            tracks="tracks",
            overwrite=True,
            progress=False,
        )
    assert {path.name for path in (tmp_path / "one").iterdir()} == names


def test_splits_of_sequences_stay_the_same(images: fo.Dataset, tmp_path: Path) -> None:
    both(sequences(images), prompts="prompts")
    splits = []
    for number in range(2):
        out = tmp_path / f"out{number}"
        options = {"tracks": "tracks", "val": 0.5, "media": "none", "progress": False}
        api.export(sequences(images), "jsonl", out, **options)
        files = (path.relative_to(out) for path in out.rglob("*") if path.is_file())
        splits.append(sorted(map(str, files)))
    assert splits[0] == splits[1]


def test_images_whose_field_is_read_only_are_not_written(images: fo.Dataset) -> None:
    both(sequences(images).limit(1), prompts="prompts")
    field = images.get_field("tracks")
    field.read_only = True
    field.save()
    with pytest.raises(FieldError, match="read-only"):
        both(sequences(images), prompts="prompts", overwrite=True)
    assert len(found(images)) == FRAMES


@pytest.mark.parametrize("case", ["no order", "hidden labels"])
def test_groups_that_are_no_videos(images: fo.Dataset, case: str) -> None:
    view = {
        "no order": lambda: images.group_by("scene"),
        "hidden labels": lambda: images.filter_labels(
            "prompts", fo.ViewField("index") == 7
        ).group_by("scene", order_by="number"),
    }[case]()
    with pytest.raises(FieldError, match="group"):
        both(view)


def test_images_that_are_added_later_take_their_place(
    fiftyone_database: str, tmp_path: Path
) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for path in paths:
        cv2.imwrite(str(path), np.zeros((8, 8, 3), np.uint8))
    for some in (paths[1::2], paths):
        view, _ = add_images("later", some, [])
    dataset = view._root_dataset
    try:
        numbers = dict(zip(*dataset.values(["filepath", "frame_number"]), strict=True))
        assert [numbers[str(path)] for path in paths] == [1, 2, 3, 4]
    finally:
        dataset.delete()
