"""What is complete: only what the same range, prompts, options, model and file made."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import fiftyone as fo
import pytest

from fiftyone_regioncap import api
from fiftyone_regioncap.captioning.base import CaptionerInfo
from fiftyone_regioncap.core.options import Options, option
from fiftyone_regioncap.core.types import Caption, Prompt, RegionClip
from fiftyone_regioncap.dataset import videos as datasets
from fiftyone_regioncap.propagation.flow import FlowPropagator
from tests.support.failing import FailingFlow


@dataclass(frozen=True)
class SayingOptions(Options):
    """Options of a captioner for tests."""

    text: str = option("A thing.", "What it says.")
    speed: int = option(1, "How fast it says so.", result=False)


@dataclass
class Saying:
    """A captioner that says the same of everything."""

    options: SayingOptions = SayingOptions()
    model: str = "saying"

    @property
    def info(self) -> CaptionerInfo:
        """Name and license."""
        return CaptionerInfo("saying", self.model, "1", "Apache-2.0")

    def caption(
        self, clips: Sequence[RegionClip], *, prompt: str | None = None
    ) -> list[Caption]:
        return [Caption(text=f"{self.options.text} {prompt or ''}") for _ in clips]


@pytest.fixture
def dataset(
    videos: list[Path], fiftyone_database: str, tmp_path: Path, monkeypatch
) -> Iterator[fo.Dataset]:
    """A video with tracks of two objects."""
    monkeypatch.setenv("REGIONCAP_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "video.mp4"
    shutil.copy(videos[0], path)
    prompts = [
        Prompt(7, 3, box=(10, 20, 34, 44), label="disc"),
        Prompt(2, 0, box=(60, 40, 76, 56), label="brick"),
    ]
    made, _, _ = datasets.add_videos("complete", [path], prompts)
    api.propagate(made, propagator=FlowPropagator(), progress=False)
    yield made
    made.delete()


def caption(dataset: fo.Dataset, captioner: Saying | None = None, **options: object):
    return api.caption(
        dataset, captioner=captioner or Saying(), progress=False, **options
    )


OTHER = SayingOptions(text="Something else.")


@pytest.mark.parametrize(
    ("captioner", "options", "again"),
    [
        (Saying(), {}, 0),
        (Saying(SayingOptions(speed=2)), {}, 0),
        (Saying(OTHER), {}, 2),
        (Saying(model="other"), {}, 2),
        (Saying(), {"prompt": "What color?"}, 2),
    ],
    ids=["the same", "only faster", "options", "model", "prompt"],
)
def test_captions_that_were_made_otherwise_are_redone(
    dataset, captioner, options, again
) -> None:
    assert caption(dataset).captions == 2
    second = caption(dataset, captioner, **options)
    assert (second.captions, second.skipped) == (again, int(not again))
    assert bool(second.notes) == bool(again)  # and it is said
    third = caption(dataset, captioner, **options)
    assert (third.captions, third.skipped) == (0, 1)


def test_reviewed_captions_stay_when_the_model_changes(dataset) -> None:
    caption(dataset)
    sample = dataset.first()
    sample.captions.detections[0].review = "accepted"
    sample.save()
    assert caption(dataset, Saying(model="other")).captions == 1


def clips_of(dataset: fo.Dataset) -> fo.core.clips.ClipsView:
    sample = dataset.first()
    events = [fo.TemporalDetection(label="a", support=s) for s in ([1, 8], [11, 16])]
    sample["events"] = fo.TemporalDetections(detections=events)
    sample.save()
    return dataset.to_clips("events")


def supports(dataset: fo.Dataset) -> set[tuple[int, ...]]:
    dataset.reload()
    return {tuple(c.support) for c in dataset.first().captions.detections}


def test_captions_of_clips_and_of_the_whole_video_lie_beside_each_other(
    dataset,
) -> None:
    clips = clips_of(dataset)
    assert caption(clips).captions == 4
    assert caption(dataset).captions == 2
    assert supports(dataset) == {(1, 8), (11, 16), (1, 24)}
    assert caption(clips).skipped == caption(dataset).skipped == 1
    # Other windows of the whole video leave none of the old ones, but the clips'.
    assert caption(dataset, window=12).captions == 4
    assert supports(dataset) == {(1, 8), (11, 16), (1, 12), (13, 24)}


def tracks(dataset: fo.Dataset) -> set[int]:
    dataset.reload()
    frames = dataset.first().frames.values()
    return {d.index for frame in frames for d in frame.tracks.detections}


def test_tracks_of_deleted_prompts_are_listed_and_removed_on_request(dataset) -> None:
    sample = dataset.first()
    sample.frames[4].prompts = None
    sample.save()
    listed = api.propagate(dataset, propagator=FlowPropagator(), progress=False)
    assert "tracks 7 have no prompt any more" in listed.to_markdown()
    assert listed.frames == 0 and tracks(dataset) == {2, 7}
    removed = api.propagate(
        dataset, propagator=FlowPropagator(), prune=True, progress=False
    )
    assert "tracks 7 were removed" in removed.to_markdown()
    assert removed.frames == 0 and tracks(dataset) == {2}
    again = api.propagate(dataset, propagator=FlowPropagator(), progress=False)
    assert not again.notes
    # Its caption goes with the next captions.
    caption(dataset)
    assert {c.index for c in dataset.first().captions.detections} == {2}


def test_captions_are_on_tracks_that_were_made_anew(dataset) -> None:
    caption(dataset)
    api.propagate(dataset, propagator=FlowPropagator(), overwrite=True, progress=False)
    assert caption(dataset).skipped == 1
    dataset.reload()
    shown = {d.caption for d in dataset.first().frames[20].tracks.detections}
    assert shown == {"A thing. "}


def propagate(view: fo.core.collections.SampleCollection, **options: object):
    options.setdefault("propagator", FlowPropagator())
    return api.propagate(view, progress=False, **options)


def frames_of(dataset: fo.Dataset, number: int) -> list[int]:
    """The frames that have a label of an object, as FiftyOne counts."""
    dataset.reload()
    return [
        frame
        for frame, document in dataset.first().frames.items()
        if document.tracks and number in {d.index for d in document.tracks.detections}
    ]


def mark(dataset: fo.Dataset, frame: int, index: int) -> fo.core.clips.ClipsView:
    """Marks an object on a frame, and returns the clip of frames 10 to 15."""
    sample = dataset.first()
    box = fo.Detection(label="x", index=index, bounding_box=[0.6, 0.5, 0.2, 0.25])
    sample.frames[frame]["prompts"] = fo.Detections(detections=[box])
    sample["scene"] = fo.TemporalDetections(
        detections=[fo.TemporalDetection(label="a", support=[10, 15])]
    )
    sample.save()
    return dataset.to_clips("scene")


EVERY = list(range(1, 25))


def test_what_a_job_on_clips_replaced_is_made_again(dataset) -> None:
    clip = mark(dataset, 12, 2)
    assert propagate(dataset).ok and frames_of(dataset, 2) == EVERY
    assert propagate(clip, direction="forward").frames
    assert frames_of(dataset, 2) == [n for n in EVERY if n not in (10, 11)]
    assert propagate(dataset).frames and frames_of(dataset, 2) == EVERY
    # And the other way round: the clip has no longer what was made of it.
    assert propagate(clip, direction="forward").frames
    assert propagate(clip, direction="forward").skipped == 1


def test_a_job_on_clips_leaves_objects_that_are_not_prompted_there(dataset) -> None:
    clip = mark(dataset, 12, 5)
    assert propagate(dataset, propagator=FailingFlow()).failures
    assert propagate(clip).ok
    assert frames_of(dataset, 2) == EVERY
    assert propagate(dataset).ok
    assert frames_of(dataset, 2) == frames_of(dataset, 5) == EVERY
    # With overwrite they go, and are made again with the video.
    assert propagate(clip, overwrite=True).ok
    assert frames_of(dataset, 2) == [n for n in EVERY if not 10 <= n <= 15]
    assert propagate(dataset).ok and frames_of(dataset, 2) == EVERY


def test_clips_that_overlap_are_complete_together(dataset) -> None:
    mark(dataset, 12, 5)
    sample = dataset.first()
    for support in ([1, 8], [3, 14]):
        one = fo.TemporalDetection(label="a", support=support)
        sample["scene"].detections.append(one)
    sample.save()
    clips = dataset.to_clips("scene")
    assert propagate(clips, overwrite=True).ok
    assert frames_of(dataset, 2) == EVERY
    assert propagate(clips).skipped == 1
