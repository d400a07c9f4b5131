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


def test_nothing_to_undo_is_said(dataset):
    with pytest.raises(FieldError, match="captions"):
        api.undo_captions(dataset, progress=False)
    caption(dataset)
    dataset.add_sample(fo.Sample(filepath="/nowhere/new.mp4"))
    with pytest.raises(FieldError, match="nothing to undo"):
        api.undo_captions(dataset.match({"filepath": "/nowhere/new.mp4"}))
