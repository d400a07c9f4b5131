"""Taking back what the last job did to captions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fiftyone as fo
import pytest

from fiftyone_regioncap import api
from fiftyone_regioncap.core.errors import FieldError
from fiftyone_regioncap.core.types import Prompt
from fiftyone_regioncap.dataset import videos as datasets
from fiftyone_regioncap.jobs import undoing


@pytest.fixture
def dataset(
    videos: list[Path], fiftyone_database: str, tmp_path: Path, monkeypatch
) -> Iterator[fo.Dataset]:
    monkeypatch.setenv("REGIONCAP_CACHE", str(tmp_path / "cache"))
    prompts = [Prompt(7, 3, box=(10, 20, 34, 44), label="disc")]
    made, _, _ = datasets.add_videos("undoing", videos, prompts)
    api.propagate(made, propagator="flow", progress=False)
    yield made
    made.delete()


def caption(dataset: fo.Dataset, **options: object) -> None:
    api.caption(dataset, captioner="measured", progress=False, **options)


def test_captions_of_the_last_job_are_taken_back_and_made_again(dataset, contents):
    caption(dataset)
    before = contents(dataset)
    caption(dataset, window=6, overwrite=True)
    after = contents(dataset)
    assert before != after
    undone = api.undo_captions(dataset, progress=False)
    assert (undone.samples, undone.captions) == (2, 2)
    assert contents(dataset) == before
    # A job that has nothing to do leaves what can be undone.
    caption(dataset)
    api.undo_captions(dataset, progress=False)
    assert contents(dataset) == after


def test_only_samples_of_the_view_are_changed(dataset, contents):
    caption(dataset)
    before = contents(dataset)
    caption(dataset, window=6, overwrite=True)
    after = contents(dataset)
    api.undo_captions(dataset.limit(1), progress=False)
    now = contents(dataset)
    assert [now[name] for name in now] == [before["one.mp4"], after["two.mp4"]]


def test_what_several_workers_did_is_taken_back(dataset, contents):
    caption(dataset)
    before = contents(dataset)
    caption(dataset, window=6, overwrite=True, executor="processes", workers=2)
    assert api.undo_captions(dataset, progress=False).samples == 2
    assert contents(dataset) == before


def test_workers_of_a_run_keep_what_others_kept(dataset, contents):
    caption(dataset)
    before = contents(dataset)
    for sample in dataset:
        undoing.begin(dataset, "captions", "run")
        undoing.keep(sample, "captions", "frames.tracks", "run")
    clips = dataset.to_clips("captions")
    assert api.undo_captions(clips, progress=False).samples == 2
    assert contents(dataset) == before


def test_captions_of_others_are_no_object(dataset, contents):
    caption(dataset)
    sample = dataset.first()
    mine = fo.TemporalDetection(label="mine", support=[1, 3])
    sample["captions"].detections.append(mine)
    sample.save()
    before = contents(dataset)
    caption(dataset, window=6, overwrite=True, merge=True)
    api.undo_captions(dataset, progress=False)
    assert contents(dataset) == before


def test_captions_of_tracks_that_are_gone_are_outdated(dataset):
    caption(dataset)
    caption(dataset, window=6, overwrite=True)
    view = dataset.limit(1)
    api.delete_track(view, 7, progress=False)
    assert api.undo_captions(dataset, progress=False).captions == 2
    dataset.reload()
    assert [s.captions.detections[0].tags for s in dataset] == [["outdated"], []]
    caption(dataset)
    dataset.reload()
    assert [len(s.captions.detections) for s in dataset] == [0, 1]


def test_nothing_to_undo_is_said(dataset):
    with pytest.raises(FieldError, match="captions"):
        api.undo_captions(dataset, progress=False)
    caption(dataset)
    dataset.add_sample(fo.Sample(filepath="/nowhere/new.mp4"))
    with pytest.raises(FieldError, match="nothing to undo"):
        api.undo_captions(dataset.match({"filepath": "/nowhere/new.mp4"}))
