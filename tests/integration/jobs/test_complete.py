"""What is complete: only what the same range, prompts, options, model and file made."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import fiftyone as fo
import pytest

from fiftyone_regioncap import api
from fiftyone_regioncap.captioning.base import CaptionerInfo
from fiftyone_regioncap.core.options import Options, option
from fiftyone_regioncap.core.types import Caption, Prompt, RegionClip
from fiftyone_regioncap.dataset import videos as datasets
from fiftyone_regioncap.propagation.flow import FlowOptions, FlowPropagator
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
    there = [frame.tracks.detections for frame in frames if frame.tracks]
    return {label.index for labels in there for label in labels}


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


def labels(dataset: fo.Dataset) -> set[tuple[int, int]]:
    """Frames, as FiftyOne counts, and numbers of all labels of tracks."""
    return {(frame, n) for n in tracks(dataset) for frame in frames_of(dataset, n)}


EDITS = {
    "deleted": lambda d: api.delete_track(d, 7, progress=False),
    "merged": lambda d: api.merge_tracks(d, 7, into=2, progress=False),
    "renumbered": lambda d: api.renumber_track(d, 7, 9, progress=False),
    "split": lambda d: api.split_track(d, 7, 12, new_id=9, progress=False),
}
"""Changes of a track by a person."""


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_tracks_stay_as_a_person_has_changed_them(
    dataset, edit: Callable[[fo.Dataset], object]
) -> None:
    before = labels(dataset)
    edit(dataset)
    changed = labels(dataset)
    assert changed != before
    assert propagate(dataset).skipped == 1
    for view in (dataset, clips_of(dataset)):  # with other options too, which is said
        other = propagate(view, propagator=FlowPropagator(FlowOptions(sharpen=False)))
        assert "7 stay as a person has" in other.to_markdown()
        assert labels(dataset) == changed
    # Nor are they taken for tracks whose prompts were deleted.
    assert "any more" not in propagate(dataset, prune=True).to_markdown()
    assert labels(dataset) == changed
    assert propagate(dataset, overwrite=True).ok
    assert labels(dataset) == before
    again = propagate(dataset)
    assert again.skipped == 1 and not again.notes


def test_a_changed_track_is_made_again_from_other_prompts(dataset) -> None:
    EDITS["deleted"](dataset)
    sample = dataset.first()
    sample.frames[4].prompts.detections[0].bounding_box = [0.1, 0.3, 0.3, 0.3]
    sample.save()
    assert propagate(dataset).frames and 7 in tracks(dataset)
    # A number that a person gave to a track is also a new object's, if it is marked.
    api.renumber_track(dataset, 7, 9, progress=False)
    boxes = frames_of(dataset, 9)
    assert propagate(dataset).skipped == 1 and frames_of(dataset, 9) == boxes
    mark(dataset, 12, 9)
    assert propagate(dataset).frames
    assert tracks(dataset) == {2, 9} and propagate(dataset).skipped == 1


def test_a_correction_keeps_that_a_person_has_changed_the_track(dataset) -> None:
    EDITS["split"](dataset)
    done = api.propagate_from(
        dataset, object_id=7, frame=5, direction="backward", propagator="flow"
    )
    assert done.ok
    changed = labels(dataset)
    propagate(dataset, propagator=FlowPropagator(FlowOptions(sharpen=False)))
    assert labels(dataset) == changed


def test_tracks_that_a_person_has_changed_are_of_their_file(dataset) -> None:
    EDITS["split"](dataset)
    with Path(dataset.first().filepath).open("ab") as file:
        file.write(b"another file by now")
    assert propagate(dataset).frames
    assert frames_of(dataset, 7) == EVERY


def captions_of(dataset: fo.Dataset) -> dict[tuple[int, ...], str]:
    """Captions by object and support, as FiftyOne counts."""
    dataset.reload()
    found = dataset.first().captions.detections
    return {(c.index, *c.support): c.caption for c in found}


def say(dataset: fo.Dataset, key: tuple[int, ...], review: str, text: str = "") -> None:
    """Judges a caption, as a person does."""
    sample = dataset.first()
    for label in sample.captions.detections:
        if (label.index, *label.support) == key:
            label.review = review
            label.caption = text or label.caption
    sample.save()


def test_summaries_are_made_of_captions_that_are_complete(dataset, contents) -> None:
    caption(dataset, window=8)
    windows = captions_of(dataset)
    say(dataset, (7, 9, 16), "edited", "It stops.")
    asked = {"window": 8, "summary": True}
    assert caption(dataset, **asked).captions == 0
    whole = (7, 1, 24)
    assert captions_of(dataset)[whole] == "A thing, then it stops, then a thing."
    before = contents(dataset)
    assert caption(dataset, **asked).skipped == 1
    # Where none are asked for, those that still hold stay.
    assert caption(dataset, window=8).skipped == 1
    assert contents(dataset) == before
    say(dataset, (7, 9, 16), "edited", "It falls.")
    caption(dataset, **asked)
    assert captions_of(dataset)[whole] == "A thing, then it falls, then a thing."
    api.undo_captions(dataset, progress=False)
    assert captions_of(dataset)[whole] == "A thing, then it stops, then a thing."
    # What a person has rejected is not told, and a summary that is untrue goes.
    say(dataset, (7, 9, 16), "rejected")
    caption(dataset, window=8)
    assert captions_of(dataset).keys() == windows.keys()


def test_a_summary_that_a_person_has_edited_stays(dataset) -> None:
    caption(dataset, window=8)
    say(dataset, (2, 1, 8), "edited", "It stands.")
    asked = {"window": 8, "summary": True}
    caption(dataset, **asked)
    say(dataset, (2, 1, 24), "edited", "A person's words.")
    say(dataset, (2, 1, 8), "edited", "It sits.")
    assert caption(dataset, **asked).skipped == 1
    assert captions_of(dataset)[2, 1, 24] == "A person's words."


@pytest.mark.parametrize("prompted", [2, None], ids=["one", "all"])
def test_captions_of_tracks_that_are_gone_go(dataset, prompted: int | None) -> None:
    clips = clips_of(dataset)
    caption(clips)
    caption(dataset)
    say(dataset, (7, 1, 24), "accepted")
    with_all = captions_of(dataset)
    sample = dataset.first()
    for number, index in ((1, 2), (4, 7)):
        if index != prompted:
            sample.frames[number].prompts = None
    sample.save()
    propagate(dataset, prune=True)
    assert tracks(dataset) == {prompted} - {None}
    there = dataset.first().captions.detections
    assert {c.index for c in there if not c.tags} == tracks(dataset)
    done = caption(dataset)
    assert "no longer there removed" in done.to_markdown()
    left = {key for key in with_all if key[0] == prompted}
    # What a person said stays, and is marked.
    assert captions_of(dataset).keys() == {*left, (7, 1, 24)}
    (said,) = (c for c in dataset.first().captions.detections if c.index == 7)
    assert said.tags == ["outdated"]
    assert caption(dataset).skipped == caption(clips).skipped == 1


def test_captions_of_clips_go_with_their_tracks(dataset) -> None:
    caption(clips_of(dataset))
    caption(dataset)
    api.renumber_track(dataset, 7, 9, progress=False)
    moved = captions_of(dataset)
    assert {key[0] for key in moved} == {2, 9}
    caption(dataset, window=12)
    clips = {key for key in moved if key[1:] != (1, 24)}
    assert clips <= captions_of(dataset).keys()


def test_captions_that_a_merge_left_outdated_are_made_again(dataset) -> None:
    caption(dataset)
    sample = dataset.first()
    own = sample.captions.detections
    sample.captions.detections = [label for label in own if label.index == 7]
    sample.save()
    EDITS["merged"](dataset)
    dataset.reload()
    assert dataset.count_label_tags() == {"outdated": 1}
    assert caption(dataset).captions == 1
    dataset.reload()
    assert not dataset.count_label_tags()
