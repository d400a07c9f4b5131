from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import fiftyone as fo
import numpy as np
import pytest

from fiftyone_regioncap import api
from fiftyone_regioncap.captioning.dam.captioner import DamCaptioner
from fiftyone_regioncap.captioning.dam.configuration import DamOptions
from fiftyone_regioncap.core.errors import Canceled, FieldError, OptionError
from fiftyone_regioncap.core.progress import ProgressEvent
from fiftyone_regioncap.core.types import Prompt
from fiftyone_regioncap.dataset import videos as datasets
from fiftyone_regioncap.jobs import (
    checkpoints,
    propagating,
)
from fiftyone_regioncap.jobs.base import Job, StageSpec
from fiftyone_regioncap.models.registry import ModelSpec
from fiftyone_regioncap.operations import OPERATIONS
from fiftyone_regioncap.propagation.flow import FlowPropagator
from tests.support.dam import TINY, write_checkpoint
from tests.support.jobs import forget

FRAMES = 24  # of the videos of tests/conftest.py
PROMPTS = [
    Prompt(7, 3, box=(10, 20, 34, 44), label="disc"),
    Prompt(2, 0, box=(60, 40, 76, 56), label="brick"),
]


@pytest.fixture
def dataset(
    videos: list[Path], fiftyone_database: str, tmp_path: Path, monkeypatch
) -> Iterator[fo.Dataset]:
    """Both videos with prompts, and a cache of their own."""
    monkeypatch.setenv("REGIONCAP_CACHE", str(tmp_path / "cache"))
    made, _, _ = datasets.add_videos("jobs", videos, PROMPTS)
    yield made
    made.delete()


def both(samples, **options):
    """Propagates and captions without weights; without GrabCut, which is slow."""
    return api.propagate_and_caption(
        samples,
        propagator="flow",
        captioner="measured",
        **{"propagator_options": {"sharpen": False}, "progress": False, **options},
    )


def test_every_object_is_masked_numbered_linked_and_described(dataset):
    summary = both(dataset, propagator_options={"sharpen": True})
    assert summary.ok, summary.failures
    assert (summary.samples, summary.captions) == (2, 4)
    sample = dataset.first()
    last = {d.index: d for d in sample.frames[FRAMES].tracks.detections}
    assert set(last) == {7, 2}
    assert last[7].label == "disc" and last[7].mask.any()
    assert 0 <= last[7].confidence <= 1
    # It moved 20 of 96 pixels since the prompt; a still box would not have.
    first = {d.index: d for d in sample.frames[4].tracks.detections}
    assert last[7].bounding_box[0] - first[7].bounding_box[0] > 0.1
    assert first[7].keyframe and not last[7].keyframe
    assert first[7].instance.id == last[7].instance.id != last[2].instance.id
    # Both directions: the disc was prompted on frame 4 and is on frame 1 too.
    assert 7 in {d.index for d in sample.frames[1].tracks.detections}
    captions = {c.index: c for c in sample.captions.detections}
    assert captions[7].support == [1, FRAMES]
    assert captions[7].dominant_color == "red" and "red" in captions[7].caption
    assert captions[2].dominant_color == "blue"
    assert captions[7].instance.id == first[7].instance.id
    assert last[7].caption == captions[7].caption
    assert sample["tracks_status"] == sample["captions_status"] == "complete"
    assert summary.run in dataset.list_runs()


def test_the_same_job_twice_does_nothing_and_overwriting_the_same(dataset, contents):
    both(dataset)
    before = contents(dataset)
    assert both(dataset).skipped == 4
    assert contents(dataset) == before
    summary = both(
        dataset,
        overwrite=True,
        overwrite_captions=True,
    )
    assert summary.skipped == 0 and summary.frames > 0
    assert contents(dataset) == before


def cancel_after(
    cancel: threading.Event, frames: int
) -> Callable[[ProgressEvent], None]:
    def listen(event: ProgressEvent) -> None:
        if event.frames >= frames:
            cancel.set()

    return listen


@pytest.mark.parametrize("frames", [1, 9, FRAMES, FRAMES + 2, 2 * FRAMES + 2])
@pytest.mark.parametrize("seconds", [0.0, 1000.0])
def test_a_canceled_job_goes_on_to_what_an_undisturbed_one_gives(
    dataset, contents, monkeypatch, frames, seconds
):
    both(dataset)
    undisturbed = contents(dataset)
    forget(dataset, ("status", "error"))
    monkeypatch.setattr(propagating, "CHECKPOINT_SECONDS", seconds)
    cancel = threading.Event()
    with pytest.raises(Canceled):
        both(dataset, progress=cancel_after(cancel, frames), cancel=cancel)
    rest = both(dataset)
    assert rest.ok
    if seconds == 0.0:
        total = 2 * (FRAMES + 3)
        assert rest.frames <= total - frames + 8  # what was under way is repeated
    assert contents(dataset) == undisturbed


def test_a_checkpoint_of_other_prompts_is_not_used(dataset, monkeypatch):
    monkeypatch.setattr(propagating, "CHECKPOINT_SECONDS", 0.0)
    cancel = threading.Event()
    with pytest.raises(Canceled):
        both(dataset, progress=cancel_after(cancel, 9), cancel=cancel)
    videos = [Path(path) for path in dataset.values("filepath")]
    other = [Prompt(5, 0, box=(58, 38, 78, 58), label="brick")]
    datasets.add_videos("jobs", videos, other)
    both(dataset)
    found = {
        label.index
        for sample in dataset
        for frame in sample.frames.values()
        for label in frame.tracks.detections
    }
    assert found == {5}


def test_clips_are_done_one_by_one(dataset):
    sample = dataset.first()
    sample["events"] = fo.TemporalDetections(
        detections=[fo.TemporalDetection(label="a", support=[1, 10])]
    )
    sample.save()
    view = dataset.match({"events": {"$ne": None}}).to_clips("events")
    assert both(view).samples == 1
    sample.reload()
    numbers = [
        n for n, f in sample.frames.items() if f["tracks"] and f["tracks"].detections
    ]
    assert numbers and max(numbers) <= 10
    assert {tuple(c.support) for c in sample["captions"].detections} == {(1, 10)}
    assert both(view).skipped >= 1


def test_windows_get_a_caption_each(dataset):
    both(dataset, window=8)
    supports = {tuple(c.support) for c in dataset.first().captions.detections}
    assert supports == {(1, 8), (9, 16), (17, 24)}
    # A later run with other windows leaves none of the old ones.
    both(dataset, window=12, overwrite_captions=True)
    supports = {tuple(c.support) for c in dataset.first().captions.detections}
    assert supports == {(1, 12), (13, 24)}


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        # The file is gone.
        (lambda s, f: s.set_field("filepath", str(f / "gone.mp4")), "gone.mp4"),
        # The file is no video.
        (lambda s, f: s.set_field("filepath", str(f / "text.mp4")), "text.mp4"),
    ],
    ids=["missing", "no video"],
)
def test_a_bad_sample_is_recorded_and_the_others_are_done(
    dataset, tmp_path, damage, says
):
    (tmp_path / "text.mp4").write_text("this is no video")
    sample = dataset.first()
    damage(sample, tmp_path)
    sample.save()
    summary = both(dataset)
    assert [failure.sample_id for failure in summary.failures] == [sample.id]
    assert says in summary.failures[0].error
    sample.reload()
    assert sample["tracks_status"] == "failed" and says in sample["tracks_error"]
    assert dataset.last()["captions_status"] == "complete"


def test_a_video_on_which_nothing_is_marked_is_passed_over(dataset):
    sample = dataset.first()
    sample.frames.clear()
    sample.save()
    summary = both(dataset)
    assert summary.ok and summary.unmarked == 1 and summary.captions == 2
    assert "1 skipped: nothing is marked" in summary.to_markdown()
    sample.reload()
    assert not sample["tracks_status"] and not sample["captions_status"]
    again = both(dataset).to_markdown()
    assert "1 skipped: tracks complete" in again
    assert "1 skipped: captions complete" in again


@pytest.mark.parametrize(
    ("job", "options", "says", "silent"),
    [
        ("propagate", {"propagator": "flow"}, "**2** tracks on **48** frames", "capt"),
        ("caption", {"captioner": "measured"}, "**2** captions", "tracks on"),
    ],
)
def test_summaries_tell_what_the_job_is_about(dataset, job, options, says, silent):
    if job == "caption":
        api.propagate(dataset, propagator="flow", progress=False)
    summary = getattr(api, job)(dataset.limit(1), progress=False, **options)
    assert says.replace("48", str(summary.frames)) in summary.to_markdown()
    assert silent not in summary.to_markdown().splitlines()[0]


@pytest.mark.parametrize(
    ("operation", "options", "says"),
    [
        ("propagate", {"prompts": "frames.nothing"}, "frames.prompts"),
        ("propagate", {"output": "frames.prompts"}, "prompts"),
        ("propagate", {"output": "frames.not a name"}, "not a name"),
        ("caption", {"tracks": "frames.nothing"}, "nothing"),
        ("propagate_and_caption", {"captions": "filepath"}, "filepath"),
    ],
    ids=["no field", "onto its input", "no identifier", "no tracks", "other kind"],
)
def test_wrong_fields_fail_before_any_work(dataset, operation, options, says):
    wanted = OPERATIONS[operation].models
    light = {"propagator": "flow", "captioner": "measured"}
    models = {model.name: light[model.name] for model in wanted}
    with pytest.raises((FieldError, OptionError), match=says):
        getattr(api, operation)(dataset, progress=False, **models, **options)
    marked = [frame for s in dataset for frame in s.frames.values()]
    assert marked and all(frame["prompts"] for frame in marked)
    assert not any(f.has_field("tracks") and f["tracks"] for f in marked)


def test_images_are_refused_by_video_jobs(fiftyone_database):
    images = fo.Dataset()
    images.add_sample(fo.Sample(filepath="image.png"))
    try:
        with pytest.raises(FieldError, match="give a view of video samples"):
            both(images)
    finally:
        images.delete()


def test_a_full_disk_costs_the_checkpoint_alone_and_the_old_one_stays(
    dataset, tmp_path, monkeypatch, caplog
):
    mark = checkpoints.CheckpointFile(tmp_path / "mark.safetensors", "a")
    mark.save({"x": np.arange(3)})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        mark.save({"x": np.arange(4)})
    assert np.array_equal(mark.load()["x"], np.arange(3))
    assert list(tmp_path.glob("*.part")) == []
    monkeypatch.setattr(propagating, "CHECKPOINT_SECONDS", 0.0)
    summary = api.propagate(dataset, propagator=FlowPropagator(), progress=False)
    assert summary.ok and summary.tracks == 4  # without checkpoints
    assert "no checkpoint can be saved" in caplog.text


def test_what_a_view_hides_stays_as_it_is(dataset, contents):
    both(dataset)
    before = contents(dataset)
    only = dataset.filter_labels("frames.prompts", fo.ViewField("index") == 7)
    summary = both(
        only,
        overwrite=True,
        overwrite_captions=True,
    )
    assert summary.ok and summary.tracks == 2
    after = contents(dataset)
    for video in before:
        for number, frame in before[video]["frames"].items():
            kept = [d for d in frame["detections"] if d["index"] == 2]
            now = after[video]["frames"][number]["detections"]
            assert [d["mask"] for d in now if d["index"] == 2] == [
                d["mask"] for d in kept
            ]
        assert {c["index"] for c in after[video]["captions"]["detections"]} == {2, 7}


def test_an_object_marked_later_is_added_to_those_that_are_done(dataset):
    both(dataset)
    sample = dataset.first()
    new = fo.Detection(bounding_box=[0.2, 0.6, 0.2, 0.3], index=9, label="wall")
    sample.frames[2]["prompts"] = fo.Detections(detections=[new])
    sample.save()
    summary = both(dataset)
    assert (summary.tracks, summary.captions) == (1, 1)
    sample.reload()
    assert {c.index for c in sample["captions"].detections} == {2, 7, 9}


def test_a_single_caption_is_told_while_it_is_written(dataset, tmp_path):
    write_checkpoint(tmp_path / "dam", TINY)
    api.propagate(dataset, propagator="flow", progress=False)
    captioner = DamCaptioner.from_pretrained(
        tmp_path / "dam", options=DamOptions(max_new_tokens=8)
    )

    def texts(view) -> list[str]:
        heard: list[str] = []

        def listen(event: ProgressEvent) -> None:
            if event.text is not None:
                heard.append(event.text)

        api.caption(
            view,
            overwrite=True,
            captioner=captioner,
            progress=listen,
        )
        return heard

    one = dataset.limit(1).filter_labels("frames.tracks", fo.ViewField("index") == 7)
    heard = texts(one)
    (written,) = dataset.first().captions.detections
    assert heard and written.caption.startswith(heard[-1])
    assert not texts(dataset)  # of many, nobody could read along


def test_a_corrected_prompt_redoes_its_object_alone(dataset, contents):
    both(dataset)
    before = contents(dataset)
    sample = dataset.first()
    texts = {c.index: c.caption for c in sample.captions.detections}
    prompts = sample.frames[1].prompts.detections
    (brick,) = [prompt for prompt in prompts if prompt.index == 2]
    brick.bounding_box = [0.02, 0.6, 0.2, 0.3]
    sample.save()
    summary = both(dataset)
    assert (summary.tracks, summary.captions) == (1, 1)
    after, name = contents(dataset), Path(sample.filepath).name
    for number, frame in before[name]["frames"].items():
        then = {d["index"]: d for d in frame["detections"]}
        now = {d["index"]: d for d in after[name]["frames"][number]["detections"]}
        assert now[7] == then[7]
        assert now[2]["bounding_box"] != then[2]["bounding_box"]
    sample.reload()
    captions = {c.index: c.caption for c in sample.captions.detections}
    assert captions[7] == texts[7]
    assert captions[2] != texts[2]
    assert both(dataset).skipped == 4


def test_captions_follow_tracks_that_were_made_otherwise(dataset):
    both(dataset)
    again = both(dataset, overwrite=True)
    assert (again.tracks, again.captions) == (4, 0)  # the same tracks
    other = both(dataset, overwrite=True, direction="forward")
    assert other.captions == 4
    assert both(dataset, direction="forward").skipped == 4


def test_a_correction_that_was_cut_short_goes_on_with_its_object(dataset, contents):
    both(dataset)
    sample = dataset.first()
    sample.frames[1].prompts.detections[0].bounding_box = [0.02, 0.6, 0.2, 0.3]
    sample.save()
    cancel = threading.Event()
    with pytest.raises(Canceled):
        both(dataset, progress=cancel_after(cancel, 5), cancel=cancel)
    summary = both(dataset)
    assert (summary.tracks, summary.captions) == (1, 1)


def test_a_job_that_was_cut_short_while_overwriting_is_not_taken_for_done(dataset):
    both(dataset)
    cancel = threading.Event()
    with pytest.raises(Canceled):
        both(
            dataset,
            overwrite=True,
            progress=cancel_after(cancel, 5),
            cancel=cancel,
        )
    assert both(dataset).tracks == 2


def test_a_recorded_job_holds_no_secret():
    captioner = ModelSpec(
        "openai", "https://a:password@b/v1", options={"api_key": "sk-secret"}
    )
    stage = StageSpec("caption", {}, {"captioner": captioner})
    job = Job("caption", "videos", None, (stage,))
    recorded = json.dumps(job.record())
    assert "sk-secret" not in recorded and "password" not in recorded
    assert "sk-secret" in json.dumps(job.to_dict())  # what a worker is sent
