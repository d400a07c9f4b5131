"""Leases: one owner at a time, and a late write changes nothing."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta

import fiftyone as fo
import numpy as np
import pytest

from fiftyone_regioncap.core.errors import Fenced
from fiftyone_regioncap.core.types import FrameMasks, ObjectMask
from fiftyone_regioncap.dataset import leases, locks, status
from fiftyone_regioncap.dataset.captions import CaptionRecord, write_captions
from fiftyone_regioncap.dataset.leases import Leases, lease_of
from fiftyone_regioncap.dataset.store import Store
from fiftyone_regioncap.dataset.tracks import TrackWriter

METADATA = fo.VideoMetadata(
    frame_width=60, frame_height=40, frame_rate=10.0, total_frame_count=20
)


@pytest.fixture
def sample(fiftyone_database: str) -> Iterator[fo.Sample]:
    """A video that is nowhere."""
    dataset = fo.Dataset()
    sample = fo.Sample(filepath="/nowhere/video.mp4", metadata=METADATA)
    dataset.add_sample(sample)
    yield sample
    dataset.delete()


def leases_of(sample: fo.Sample, **options: object) -> Leases:
    dataset_id = sample._dataset._doc.id
    return Leases(dataset_id, ("tracks", "captions"), "job", **options)


def held() -> int:
    return locks.collection("leases").count_documents({})


def test_one_at_a_time(sample) -> None:
    first, second = leases_of(sample), leases_of(sample)
    with first, second:
        assert first.claim(sample.id) is None
        there = second.claim(sample.id)
        assert there is not None and there["owner"] == first.owner
        first.release(sample.id)
        assert second.claim(sample.id) is None
    assert held() == 0


def test_all_fields_or_none(sample) -> None:
    other = Leases(sample._dataset._doc.id, ("captions",), "job")
    with other, leases_of(sample) as both:
        assert other.claim(sample.id) is None
        assert both.claim(sample.id) is not None
        assert held() == 1


def test_several_at_once(sample) -> None:
    works = [sample.id, f"{sample.id}:0-9", f"{sample.id}:10-19"]
    with leases_of(sample) as first, leases_of(sample) as second:
        assert first.claim(works[1]) is None
        busy = second.claim_each(works)
        assert set(busy) == {works[1]}
        assert busy[works[1]]["owner"] == first.owner
        assert second.held == {works[0], works[2]} and held() == 6
        assert set(first.claim_each(works)) == {works[0], works[2]}
    assert held() == 0


def test_an_owner_that_died_here_is_replaced_at_once(sample) -> None:
    claiming = (
        "import sys\n"
        "from bson import ObjectId\n"
        "from fiftyone_regioncap.dataset.leases import Leases\n"
        "leases = Leases(ObjectId(sys.argv[1]), ('tracks', 'captions'), 'job')\n"
        "print(leases.claim(sys.argv[2]), flush=True)\n"
        "import os; os.kill(os.getpid(), 9)\n"
    )
    dataset_id = str(sample._dataset._doc.id)
    command = [sys.executable, "-c", claiming, dataset_id, sample.id]
    died = subprocess.run(command, capture_output=True, text=True)
    assert died.returncode == -9 and died.stdout == "None\n" and held() == 2
    with leases_of(sample) as mine:
        assert mine.claim(sample.id) is None


def test_an_owner_elsewhere_is_waited_for(sample, monkeypatch) -> None:
    monkeypatch.setattr(leases, "SECONDS", 1.0)
    first = leases_of(sample)  # whose thread doesn't run: nothing is renewed
    assert first.claim(sample.id) is None
    locks.collection("leases").update_many({}, {"$set": {"node": "another machine"}})
    with leases_of(sample) as second:
        assert second.claim(sample.id) is not None
        while second.claim(sample.id) is not None:
            time.sleep(0.1)
        first._renew()
        assert all(lease.lost for lease in first._mine[sample.id])
        first.release(sample.id)  # which takes nothing from the other
        assert held() == 2 and lease_of(sample.id, "tracks") is not None


def test_leases_are_renewed_as_long_as_their_owner_lives(sample, monkeypatch) -> None:
    monkeypatch.setattr(leases, "SECONDS", 1.0)
    with leases_of(sample) as first, leases_of(sample) as second:
        assert first.claim(sample.id) is None
        time.sleep(2)
        assert second.claim(sample.id) is not None
        status.write_status(sample, "tracks", "partial")  # goes through


def masks(frame: int) -> FrameMasks:
    mask = np.zeros((40, 60), bool)
    mask[5:15, 5 + frame : 15 + frame] = True
    return FrameMasks(frame, {1: ObjectMask(mask, 1.0)})


def expire(sample: fo.Sample, name: str) -> None:
    """Lets the time of a lease be over, as in a process that was stopped meanwhile."""
    lease = lease_of(sample.id, name)
    assert lease is not None
    lease.until = locks.server_time() - timedelta(seconds=1)


def contents(sample: fo.Sample) -> list[dict]:
    dataset = sample._dataset
    frames = dataset._frame_collection.find({}, {"last_modified_at": 0})
    samples = dataset._sample_collection.find({}, {"last_modified_at": 0})
    return [*frames, *samples]


def test_a_zombie_writes_nothing(sample) -> None:
    record = CaptionRecord(1, (0, 9), caption="A car.")
    with leases_of(sample) as mine:
        assert mine.claim(sample.id) is None
        with TrackWriter(sample, "tracks") as writer:
            writer.write(masks(0))
            writer.write(masks(1))
        write_captions(sample, "captions", [record], tracks_field="tracks")
        status.write_status(sample, "tracks", "partial")
        # A person edits, and removes the labels of a frame.
        sample.frames[1].tracks.detections[0].label = "a red car"
        sample.frames[2]["tracks"] = None
        sample.save()
        before = contents(sample)
        expire(sample, "tracks")
        expire(sample, "captions")
        writer = TrackWriter(sample, "tracks", overwrite_edited=True)
        for frame in (0, 1, 5):  # with labels, without, and without a document
            with pytest.raises(Fenced):
                writer.write(masks(frame))
                writer.flush()
            writer._pending.clear()
        writer.clear_range()
        with pytest.raises(Fenced):
            status.write_status(sample, "tracks", "complete")
        with pytest.raises(Fenced):
            write_captions(
                sample, "captions", [CaptionRecord(1, (0, 9), caption="A bus.")]
            )
        assert contents(sample) == before


@pytest.mark.parametrize("lost", [False, True], ids=["held", "lost"])
def test_what_failed_is_put_back_only_under_its_lease(sample, lost) -> None:
    def write() -> None:
        with TrackWriter(sample, "tracks") as writer:
            writer.write(masks(3))
        status.write_status(sample, "tracks", "complete")

    with leases_of(sample) as mine:
        assert mine.claim(sample.id) is None
        with TrackWriter(sample, "tracks") as writer:
            writer.write(masks(0))
        status.write_status(sample, "tracks", "partial")
        before = contents(sample)
        restored = Store.of(sample).restored_on_error("tracks", "tracks_status")
        with pytest.raises(KeyError), restored:
            write()
            after = contents(sample)
            if lost:
                expire(sample, "tracks")
            raise KeyError
        left = contents(sample)
        plain = [{k: v for k, v in one.items() if v} for one in left]
        if lost:
            assert left == after
        else:
            frames = [one for one in plain if "tracks" in one or "filepath" in one]
            assert frames == [{k: v for k, v in one.items() if v} for one in before]


def test_labels_that_came_meanwhile_stay(sample) -> None:
    with TrackWriter(sample, "tracks") as writer:
        writer.write(masks(0))
        writer.flush()
        frame = sample.frames[1]
        frame.reload()
        theirs = fo.Detection(label="theirs", index=1, bounding_box=[0, 0, 0.5, 0.5])
        frame.tracks.detections.append(theirs)
        frame.save()
        writer.write(masks(0))
    sample.frames.reload()
    labels = [label.label for label in sample.frames[1].tracks.detections]
    assert sorted(map(str, labels)) == ["None", "theirs"]
