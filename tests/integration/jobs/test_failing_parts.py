"""One bad thing costs only itself, and what is said of it is true."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import fiftyone as fo
import pytest

from fiftyone_regioncap import api
from fiftyone_regioncap.captioning.base import CaptionerInfo
from fiftyone_regioncap.core.errors import FatalError
from fiftyone_regioncap.core.types import Caption, Prompt, RegionClip
from fiftyone_regioncap.dataset import videos as datasets
from fiftyone_regioncap.jobs import propagating
from fiftyone_regioncap.propagation.flow import FlowPropagator
from fiftyone_regioncap.system import assets
from tests.support.jobs import forget

PROMPTS = [
    Prompt(7, 3, box=(10, 20, 34, 44), label="disc"),
    Prompt(2, 0, box=(60, 40, 76, 56), label="brick"),
]


@dataclass
class Raising:
    """A captioner that fails on clips with a label, or gives too few captions."""

    error: Exception | None = None
    label: str = "disc"
    few: bool = False
    calls: list[int] = field(default_factory=list)

    @property
    def info(self) -> CaptionerInfo:
        """Name and license."""
        return CaptionerInfo("raising", "raising", "1", "Apache-2.0", batch_size=4)

    def caption(
        self, clips: Sequence[RegionClip], *, prompt: str | None = None
    ) -> list[Caption]:
        self.calls.append(len(clips))
        if self.error is not None and any(clip.label == self.label for clip in clips):
            raise self.error
        return [Caption(text="A thing.") for _ in clips][: 0 if self.few else None]


@dataclass
class RaisingStream(Raising):
    """The same, with a stream of its own."""

    def caption_stream(self, clips, *, prompt=None, on_token=None):
        for clip in clips:
            yield from self.caption([clip], prompt=prompt)


@pytest.fixture
def dataset(
    videos: list[Path], fiftyone_database: str, tmp_path: Path, monkeypatch
) -> Iterator[fo.Dataset]:
    """Three videos with prompts."""
    monkeypatch.setenv("REGIONCAP_CACHE", str(tmp_path / "cache"))
    paths = [tmp_path / f"{name}.mp4" for name in "abc"]
    for path in paths:
        shutil.copy(videos[0], path)
    made, _, _ = datasets.add_videos("failing_parts", paths, PROMPTS)
    yield made
    made.delete()


def run(dataset: fo.Dataset, **options: object):
    options.setdefault("captioner", "measured")
    options.setdefault("progress", False)
    return api.propagate_and_caption(dataset, propagator=FlowPropagator(), **options)


@pytest.mark.parametrize("kind", [Raising, RaisingStream], ids=["batches", "stream"])
def test_a_captioner_that_raises_costs_its_clips(dataset, kind) -> None:
    captioner = kind(RuntimeError("CUDA error: an illegal memory access"))
    made = run(dataset, captioner=captioner)
    assert (made.captions, made.caption_errors) == (6, 3)
    assert (made.ok, made.nothing_done) == (False, False)
    dataset.reload()
    for sample in dataset:
        found = {c.index: c for c in sample.captions.detections}
        assert found[2].caption == "A thing." and found[2].error is None
        assert "CUDA error" in found[7].error
        assert sample["captions_status"] == "partial"


@pytest.mark.parametrize("kind", [Raising, RaisingStream], ids=["batches", "stream"])
def test_a_captioner_that_gives_too_few_captions_ends(dataset, kind) -> None:
    made = run(dataset, captioner=kind(few=True))
    assert made.caption_errors == made.captions == 6
    text = dataset.first().captions.detections[0].error
    assert "gave 0 captions for 1 clips" in text
    assert dataset.first()["captions_status"] == "failed"


@pytest.mark.parametrize("kind", [Raising, RaisingStream], ids=["batches", "stream"])
def test_what_every_clip_would_meet_ends_the_job(dataset, kind) -> None:
    captioner = kind(FatalError("401: wrong key"))
    with pytest.raises(FatalError, match="wrong key"):
        run(dataset, captioner=captioner)
    assert len(captioner.calls) < 3


def test_what_every_sample_would_meet_ends_the_job(dataset, monkeypatch) -> None:
    calls = []

    def fatal(*_):
        calls.append(1)
        raise FatalError("the endpoint refuses the key")

    monkeypatch.setattr(propagating, "read_prompts", lambda *_, **__: fatal())
    with pytest.raises(FatalError):
        run(dataset)
    assert calls == [1]


@pytest.mark.parametrize("event", [1, 30], ids=["the first", "a later one"])
def test_a_sample_that_is_deleted_during_a_job(dataset, event) -> None:
    ids = dataset.values("id")
    victim = ids[0] if event == 1 else ids[1]

    def listen(progress) -> None:
        if progress.frames >= event and victim in dataset.values("id"):
            dataset.delete_samples([victim])

    made = run(dataset, progress=listen)
    assert [failure.sample_id for failure in made.failures] == [victim]
    assert "was deleted while the job ran" in made.failures[0].error
    dataset.reload()
    assert dataset.values("captions_status") == ["complete"] * 2
    left = dataset._frame_collection.distinct("_sample_id")
    assert {str(found) for found in left} == set(ids) - {victim}


def test_a_video_that_is_replaced_during_a_job(dataset, videos) -> None:
    path = Path(dataset.first().filepath)

    def listen(progress) -> None:
        if progress.frames == 5:
            shutil.copy(videos[1], path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)

    made = run(dataset, progress=listen)
    assert [failure.filepath for failure in made.failures] == [str(path)]
    assert "was replaced while a job read it" in made.failures[0].error
    dataset.reload()
    assert dataset.first()["tracks_status"] == "failed"
    assert run(dataset).ok


def test_checkpoints_of_deleted_datasets_are_removed(dataset, monkeypatch) -> None:
    monkeypatch.setattr(propagating, "CHECKPOINT_SECONDS", 0.0)
    other = fo.Dataset()
    folder = assets.cache_dir() / "jobs"
    kept: list[Path] = []

    def listen(progress) -> None:
        if progress.frames == 5:
            (own,) = folder.glob(f"*/{dataset._doc.id}")
            abandoned = own.parent / str(other._doc.id) / "sample-tracks"
            abandoned.mkdir(parents=True)
            kept.append(abandoned)

    run(dataset, progress=listen)
    other.delete()
    run(dataset)
    assert kept and not kept[0].parent.exists()


def test_a_database_that_is_away_for_a_while(
    dataset, caplog: pytest.LogCaptureFixture, contents
) -> None:
    """The server doesn't answer for longer than its clients wait."""
    import fiftyone.core.odm as foo
    from pymongo.errors import AutoReconnect

    from fiftyone_regioncap.dataset import locks
    from fiftyone_regioncap.dataset.store import Store

    run(dataset)
    undisturbed = contents(dataset)
    forget(dataset)
    calls, away = iter(range(10**6)), {4, 9, 31, 62, 80, 111, 112, 113, 150}
    names = ["write_frames", "write_sample", "frames", "sample_document"]
    real = {name: getattr(Store, name) for name in names}

    def unsteady(name):
        def call(self, *args, **options):
            if next(calls) in away:
                raise AutoReconnect("connection closed")
            return real[name](self, *args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(Store, name, unsteady(name))
        said: list[str] = []
        answers = iter([False, True] * len(away))
        patch.setattr(locks, "database_answers", lambda: next(answers))
        made = run(dataset, progress=lambda event: said.append(event.message))
    assert made.ok, made.failures
    assert any("waiting for the database" in line for line in said)
    assert "the database is back" in caplog.text
    assert contents(dataset) == undisturbed
    assert foo.get_db_conn().command("ping")
