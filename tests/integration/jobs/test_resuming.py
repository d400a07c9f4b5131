"""Jobs that go on: checkpoints are trusted no further than the database."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import fiftyone as fo
import pytest

from fiftyone_regioncap import api
from fiftyone_regioncap.core.errors import Canceled
from fiftyone_regioncap.core.types import Prompt
from fiftyone_regioncap.dataset import videos as datasets
from fiftyone_regioncap.jobs import propagating
from fiftyone_regioncap.propagation.flow import FlowOptions, FlowPropagator
from fiftyone_regioncap.propagation.mobilesam.configuration import MobileSamOptions
from fiftyone_regioncap.propagation.mobilesam.propagator import MobileSamPropagator
from fiftyone_regioncap.propagation.mobilesam.settings import Settings
from fiftyone_regioncap.system import assets

FRAMES = 24


@pytest.fixture
def dataset(
    videos: list[Path], fiftyone_database: str, tmp_path: Path, monkeypatch
) -> Iterator[fo.Dataset]:
    """A video with a prompt on frame 1, a cache of its own, and many checkpoints."""
    monkeypatch.setenv("REGIONCAP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(propagating, "CHECKPOINT_SECONDS", 0.0)
    path = tmp_path / "video.mp4"
    shutil.copy(videos[0], path)
    prompts = [Prompt(7, 0, box=(8, 20, 32, 44), label="disc")]
    made, _, _ = datasets.add_videos("resuming", [path], prompts)
    yield made
    made.delete()


def propagate(dataset: fo.Dataset, stop_after: int | None = None, **options: object):
    """Propagates; gives None when it was stopped after so many frames."""
    cancel = threading.Event()

    def listen(event) -> None:
        if stop_after is not None and event.frames >= stop_after:
            cancel.set()

    options.setdefault("propagator", FlowPropagator())
    try:
        return api.propagate(dataset, progress=listen, cancel=cancel, **options)
    except Canceled:
        return None


def frames_of(dataset: fo.Dataset) -> list[int]:
    """The frames that have tracks."""
    dataset.reload()
    return [
        number
        for number, frame in dataset.first().frames.items()
        if frame.has_field("tracks") and frame["tracks"] and frame["tracks"].detections
    ]


EVERY = list(range(1, FRAMES + 1))


def test_a_stopped_job_goes_on_from_its_checkpoint(dataset) -> None:
    assert propagate(dataset, stop_after=12) is None
    assert propagate(dataset).frames < FRAMES
    assert frames_of(dataset) == EVERY


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
def test_what_a_stopped_job_wrote_is_not_written_again(
    dataset, elsewhere, tmp_path, caplog
) -> None:
    def written() -> dict[int, object]:
        labeled = dataset._frame_collection.find({"tracks": {"$ne": None}})
        return {one["frame_number"]: one["last_modified_at"] for one in labeled}

    assert propagate(dataset, stop_after=12) is None
    if elsewhere:  # another machine, that does not see the checkpoint
        shutil.rmtree(tmp_path / "cache" / "jobs")
    before = written()
    assert len(before) >= 12
    assert propagate(dataset).ok
    after = written()
    assert sorted(after) == EVERY
    assert {number: after[number] for number in before} == before
    assert ("no checkpoint is on this machine" in caplog.text) == elsewhere


def test_a_track_that_was_deleted_meanwhile_does_not_come_back(dataset) -> None:
    sample = dataset.first()
    box = fo.Detection(bounding_box=[0.6, 0.5, 0.2, 0.25], index=2, label="brick")
    sample.frames[1].prompts.detections.append(box)
    sample.save()
    assert propagate(dataset, stop_after=12) is None
    api.delete_track(dataset, 2, progress=False)
    assert propagate(dataset).frames
    assert frames_of(dataset) == EVERY
    assert set(dataset.values("frames[].tracks.detections[].index")) == {7}
    assert propagate(dataset).skipped == 1


def test_a_job_removes_what_killed_ones_left(dataset, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(fo.config, "default_dataset_dir", str(tmp_path / "masks"))
    assert propagate(dataset, stop_after=12, mask_storage="disk") is None
    checkpoint, *_ = (tmp_path / "cache/jobs").rglob("*.safetensors")
    mask, *_ = (tmp_path / "masks").rglob("*.png")
    for path in (checkpoint, mask):
        path.with_name("tmpabc.part").touch()
    assert propagate(dataset, mask_storage="disk").ok
    assert not list(tmp_path.rglob("*.part"))
    assert not checkpoint.parent.exists()


def test_frames_that_are_gone_are_made_again(dataset) -> None:
    assert propagate(dataset, stop_after=12) is None
    dataset.delete_frame_field("tracks")
    assert propagate(dataset).ok
    assert frames_of(dataset) == EVERY


def test_a_job_with_other_options_in_between(dataset) -> None:
    assert propagate(dataset, stop_after=16) is None
    assert propagate(dataset, stop_after=1, overlap=True) is None
    assert propagate(dataset).ok
    assert frames_of(dataset) == EVERY


def test_a_cache_that_cannot_be_written(dataset, caplog) -> None:
    folder = assets.cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs").write_text("no folder")
    assert propagate(dataset).ok
    assert frames_of(dataset) == EVERY
    assert "no checkpoint can be saved" in caplog.text


def test_a_field_that_is_deleted_during_a_job(dataset) -> None:
    def listen(event) -> None:
        if event.frames == 10 and dataset.has_field("frames.tracks"):
            dataset.delete_frame_field("tracks")

    summary = api.propagate(dataset, propagator=FlowPropagator(), progress=listen)
    assert "frames.tracks was deleted" in summary.failures[0].error
    dataset.reload()
    assert dataset.first().frames[1].prompts.detections  # it still loads


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"stop": 5}, {}),
        ({"direction": "forward"}, {"direction": "both"}),
        ({"overlap": False}, {"overlap": True}),
    ],
    ids=["a shorter range", "one direction", "other options"],
)
def test_complete_means_the_same_range_and_options(dataset, first, then) -> None:
    assert propagate(dataset, **first).frames > 0
    assert propagate(dataset, **first).skipped == 1
    assert propagate(dataset, **then).frames >= FRAMES - 1
    assert frames_of(dataset) == EVERY
    assert propagate(dataset, **then).skipped == 1


@pytest.mark.parametrize(
    ("make", "other"),
    [
        (
            lambda model, **o: FlowPropagator(options=FlowOptions(**o)),
            {"sharpen": False},
        ),
        (
            lambda model, **o: MobileSamPropagator(
                model, Settings(side=64), options=MobileSamOptions(**o)
            ),
            {"preset": "fast"},
        ),
    ],
    ids=["flow", "mobilesam"],
)
def test_complete_means_the_same_options_of_the_model(
    dataset, mobile_sam, make, other
) -> None:
    assert propagate(dataset, propagator=make(mobile_sam), stop=2).ok
    assert propagate(dataset, propagator=make(mobile_sam), stop=2).skipped == 1
    changed = make(mobile_sam, **other)
    assert propagate(dataset, propagator=changed, stop=2).frames == 2


def test_objects_that_are_followed_for_a_while_are_complete(dataset) -> None:
    boxes = [
        fo.Detection(bounding_box=[0.2, 0.2, 0.3, 0.3], index=9, label="late"),
    ]
    sample = dataset.first()
    sample.frames[12]["prompts"] = fo.Detections(detections=boxes)
    sample.save()
    options = {"max_frames": 3, "direction": "forward"}
    assert propagate(dataset, **options).ok
    assert frames_of(dataset) == [1, 2, 3, 12, 13, 14]
    assert dataset.first()["tracks_status"] == "complete"
    assert propagate(dataset, **options).skipped == 1


def test_a_part_of_what_is_complete_is_complete(dataset) -> None:
    propagate(dataset)
    assert propagate(dataset, stop=5).skipped == 1


def test_a_file_that_was_replaced_is_done_again(dataset) -> None:
    propagate(dataset)
    sample = dataset.first()
    write_shorter(Path(sample.filepath))
    again = propagate(dataset)
    assert again.ok and again.frames > 0
    sample.reload()
    assert sample.metadata.total_frame_count == 12
    assert "corrected the stored metadata" in again.to_markdown()
    assert frames_of(dataset) == EVERY[:12]  # none of what is past the end now
    captioned = api.caption(dataset, captioner="measured", progress=False)
    assert captioned.ok and captioned.captions == 1


def write_shorter(path: Path) -> None:
    """Replaces a video by one with 12 of its frames."""
    import av

    shorter = path.with_suffix(".new.mp4")
    with av.open(str(path)) as source, av.open(str(shorter), "w") as target:
        stream = target.add_stream("libx264", rate=12)
        stream.width, stream.height, stream.pix_fmt = 96, 72, "yuv420p"
        for number, frame in enumerate(source.decode(video=0)):
            if number < 12:
                picture = av.VideoFrame.from_ndarray(
                    frame.to_ndarray(format="rgb24"), format="rgb24"
                )
                target.mux(stream.encode(picture))
        target.mux(stream.encode())
    shorter.replace(path)
