"""What is written past FiftyOne: checked, declared once, and only where it belongs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import fiftyone as fo
import numpy as np
import pytest

from fiftyone_regioncap.core.errors import FieldError
from fiftyone_regioncap.core.types import FrameMasks, ObjectMask, Prompt
from fiftyone_regioncap.dataset.captions import (
    CaptionRecord,
    clear_captions,
    write_captions,
)
from fiftyone_regioncap.dataset.corrections import mark_outdated
from fiftyone_regioncap.dataset.dense import DenseWriter
from fiftyone_regioncap.dataset.locks import locked
from fiftyone_regioncap.dataset.mask_storage import move_masks
from fiftyone_regioncap.dataset.prompts import write_prompts
from fiftyone_regioncap.dataset.store import Store
from fiftyone_regioncap.dataset.tracks import TrackWriter
from fiftyone_regioncap.review import session as review
from fiftyone_regioncap.review.queue import ReviewQueue

METADATA = fo.VideoMetadata(
    frame_width=60, frame_height=40, frame_rate=10.0, total_frame_count=20
)


@pytest.fixture
def dataset(fiftyone_database: str) -> Iterator[fo.Dataset]:
    """A video that is nowhere, with two captions."""
    made = fo.Dataset()
    sample = fo.Sample(filepath="/nowhere/video.mp4", metadata=METADATA)
    made.add_sample(sample)
    records = [CaptionRecord(index, (0, 9), caption="A car.") for index in (1, 2)]
    write_captions(sample, "captions", records)
    yield made
    made.delete()


@pytest.mark.parametrize(
    "wrong",
    [
        {"label": 5},
        {"caption": ["a"]},
        {"model": 1.5},
        {"error": {"code": 5}},
        {"confidence": "high"},
        {"index": True},
        {"tags": "car"},
        {"tags": [5]},
        {"support": ["1", "2"]},
    ],
    ids=lambda wrong: "-".join(wrong),
)
def test_a_value_of_another_type_is_refused(dataset, wrong) -> None:
    store = Store.of(dataset.first())
    value = store.sample_document("captions")["captions"]
    value["detections"][0].update(wrong)
    (name,) = wrong
    with pytest.raises(FieldError, match=rf"captions\.detections\.{name} can't be"):
        store.write_sample({"captions": value})
    dataset.reload()
    assert [c.caption for c in dataset.first().captions.detections] == ["A car."] * 2


@pytest.mark.parametrize(
    ("delete", "says"),
    [
        (lambda d: d.delete_sample_field("captions"), "captions was deleted"),
        (lambda d: d.delete_samples(d.values("id")), "the sample was deleted"),
    ],
    ids=["field", "sample"],
)
def test_what_was_deleted_is_not_written(dataset, delete, says) -> None:
    sample = dataset.first()
    store = Store.of(sample)
    delete(dataset)
    with pytest.raises(FieldError, match=says):
        store.write_sample({"captions": None})
    dataset.reload()
    assert len(dataset.values("id")) == len(list(dataset))


def make_read_only(dataset: fo.Dataset, path: str) -> None:
    field = dataset.get_field(path)
    field.read_only = True
    field.save()


def write_tracks(sample: fo.Sample) -> None:
    """Writes a track over two frames."""
    with TrackWriter(sample, "tracks") as writer:
        for frame in range(2):
            writer.write(FrameMasks(frame, {1: ObjectMask(np.ones((40, 60), bool), 1)}))


WRITERS = {
    "captions": lambda s: write_captions(
        s, "captions", [CaptionRecord(3, (0, 9), caption="A bus.")]
    ),
    "captions.removed": lambda s: clear_captions(s, "captions"),
    "captions.reviewed": lambda s: review.apply(
        s._dataset,
        "captions",
        ReviewQueue.of(s._dataset, "captions").select(),
        review.accept,
    ),
    "captions.outdated": lambda s: mark_outdated(s, "captions", 1),
    "frames.tracks": write_tracks,
    "frames.tracks.cleared": lambda s: TrackWriter(s, "tracks").clear_range(),
    "frames.tracks.moved": lambda s: list(move_masks(s, "tracks", "disk")),
    "frames.prompts": lambda s: write_prompts(
        s, "prompts", [Prompt(1, 0, box=(0, 0, 9, 9))]
    ),
    "frames.parts": lambda s: DenseWriter(s, "parts").clear(),
}


@pytest.mark.parametrize("path", WRITERS)
def test_a_read_only_field_is_never_written(dataset, path, tmp_path, monkeypatch):
    monkeypatch.setattr(fo.config, "default_dataset_dir", str(tmp_path))
    sample = dataset.first()
    write_tracks(sample)
    for name in ("prompts", "parts"):
        sample.frames[1][name] = fo.Detections()
    sample.save()
    field = ".".join(path.split(".")[: 2 if path.startswith("frames") else 1])
    make_read_only(dataset, field)

    def contents() -> list[dict]:
        frames = dataset._frame_collection.find({}, {"last_modified_at": 0})
        return [*frames, *dataset._sample_collection.find({}, {"last_modified_at": 0})]

    before = contents()
    with pytest.raises(FieldError, match=f"'{field}' is read-only"):
        WRITERS[path](sample)
    assert contents() == before


def test_captions_of_tracks_that_are_read_only_are_written(dataset) -> None:
    sample = dataset.first()
    write_tracks(sample)
    make_read_only(dataset, "frames.tracks")
    records = [CaptionRecord(1, (10, 19), caption="A bus.")]
    assert write_captions(sample, "captions", records, tracks_field="tracks") == 1
    dataset.reload()
    assert dataset.first().frames[1].tracks.detections[0].caption is None


DECLARING = """
import sys, time
import fiftyone as fo
from fiftyone_regioncap.dataset import schema, status
dataset = fo.load_dataset(sys.argv[1])
sample, number = dataset.first(), sys.argv[2]
time.sleep(max(float(sys.argv[3]) - time.time(), 0))
for k in range(5):
    schema.declare_captions(dataset, f"said{number}{k}")
    status.write_status(sample, f"said{number}{k}", "complete")
    schema.declare_tracks(dataset, f"tracks{number}{k}")
"""


def test_processes_that_declare_at_once_lose_no_field(dataset) -> None:
    import time

    begin = str(time.time() + 8)
    processes = [
        subprocess.Popen([sys.executable, "-c", DECLARING, dataset.name, name, begin])
        for name in "ab"
    ]
    assert [process.wait() for process in processes] == [0] * 2
    dataset.reload()
    sample = dataset.first()
    for name in [f"{letter}{k}" for letter in "ab" for k in range(5)]:
        assert sample[f"said{name}_status"] == "complete"
        assert dataset.get_field(f"said{name}.detections.caption") is not None
        assert dataset.get_field(f"frames.tracks{name}") is not None


def test_a_lock_is_held_by_one(fiftyone_database, monkeypatch) -> None:
    from fiftyone_regioncap.core.errors import DatabaseError
    from fiftyone_regioncap.dataset import locks

    with locked("something"), locked("something else"):
        monkeypatch.setattr(locks, "SECONDS", 0.1)
        with pytest.raises(DatabaseError), locked("something"):
            pass
    with locked("something"):  # released
        pass


def test_a_review_while_captions_are_written_is_kept(
    dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = dataset.first()
    read: Callable[..., dict] = Store.sample_document
    once = [True]

    def reviewing(self, *paths):
        found = read(self, *paths)
        if once and paths == ("captions",):
            once.clear()
            self.dataset._sample_collection.update_one(
                {"_id": self.sample_id},
                {
                    "$set": {
                        "captions.detections.0.review": "edited",
                        "captions.detections.0.caption": "A red car.",
                    }
                },
            )
        return found

    monkeypatch.setattr(Store, "sample_document", reviewing)
    records = [CaptionRecord(index, (0, 9), caption="A bus.") for index in (1, 2, 3)]
    assert write_captions(sample, "captions", records) == 2
    dataset.reload()
    texts = [c.caption for c in dataset.first().captions.detections]
    assert texts == ["A red car.", "A bus.", "A bus."]
