from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from pathlib import Path

import fiftyone as fo
import numpy as np
import pytest

from fiftyone_regioncap import api, exporters
from fiftyone_regioncap.core.errors import (
    Canceled,
    FieldError,
    OptionError,
    RegionCapError,
)
from fiftyone_regioncap.core.types import FrameMasks, ObjectMask
from fiftyone_regioncap.dataset.captions import CaptionRecord, write_captions
from fiftyone_regioncap.dataset.leases import Leases
from fiftyone_regioncap.dataset.metadata import video_metadata
from fiftyone_regioncap.dataset.tracks import TrackWriter
from fiftyone_regioncap.exporters import ExportOptions, conversations, records
from fiftyone_regioncap.exporters.coco import Coco
from fiftyone_regioncap.exporters.staging import ExportError

from .conftest import make


def export(samples, out, name="coco", **options):
    return api.export(samples, name, out, progress=False, **options)


def import_(samples, out, name="coco"):
    return api.import_captions(samples, name, out, progress=False)


# -- the target ------------------------------------------------------------------------


@pytest.fixture
def own_videos(dataset, tmp_path):
    """A folder ``videos`` with copies of the videos, which the dataset points at."""
    folder = tmp_path / "media/videos"
    folder.mkdir(parents=True)
    for sample in dataset:
        sample.filepath = shutil.copy(sample.filepath, folder)
        sample.save()
    return folder


def contents_of_folder(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_folder_that_no_export_wrote_is_never_replaced(source, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ExportError, match="exists"):
            export(source, out, overwrite=overwrite)
        assert [path.name for path in out.iterdir()] == ["mine.txt"]
        assert list(tmp_path.iterdir()) == [out]
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    with pytest.raises(ExportError, match="not a folder that an export has written"):
        export(source, file, overwrite=True)
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    "manifest", ["{", "[]", '{"files": []}', '{"generator": "other 1", "files": []}']
)
def test_a_manifest_of_another_tool_is_none(source, tmp_path, manifest):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/manifest.json").write_text(manifest)
    with pytest.raises(ExportError, match="not a folder that an export has written"):
        export(source, tmp_path / "out", overwrite=True)


@pytest.mark.parametrize("media", ["copy", "link"])
@pytest.mark.parametrize("where", [".", ".."])
def test_source_videos_are_never_replaced(dataset, own_videos, tmp_path, media, where):
    out = Path(os.path.normpath(own_videos / where))
    before = contents_of_folder(tmp_path)
    with pytest.raises(ExportError, match="not a folder that an export has written"):
        export(dataset, out, "videorefer", media=media, overwrite=True)
    assert contents_of_folder(tmp_path) == before


@pytest.mark.parametrize("linked", [False, True], ids=["file", "link"])
def test_an_export_whose_videos_became_a_dataset_is_not_replaced(
    dataset, videos, tmp_path, linked
):
    out = tmp_path / "out"
    export(dataset, out, "videorefer", media="link" if linked else "copy")
    for sample in dataset:
        sample.filepath = str(out / "videos" / Path(sample.filepath).name)
        sample.save()
    before = contents_of_folder(out)
    with pytest.raises(ExportError, match="holds media of the dataset"):
        # A view of one video protects those of the others too.
        export(dataset[:1], out, "csv", media="none", overwrite=True)
    assert contents_of_folder(out) == before


def test_only_files_of_the_earlier_export_are_replaced(source, tmp_path):
    out = tmp_path / "out"
    export(source, out, "videorefer")
    (out / "mine.txt").write_text("mine")
    (out / "videos/mine.mp4").write_text("mine too")
    for _ in range(2):
        export(source, out, media="none", overwrite=True)
        assert contents_of_folder(out).keys() == {
            *("annotations.json", "manifest.json", "mine.txt", "videos/mine.mp4")
        }
    (out / "captions.csv").write_text("in the way")
    with pytest.raises(ExportError, match="in the way"):
        export(source, out, "csv", media="none", overwrite=True)
    assert (out / "captions.csv").read_text() == "in the way"
    assert (out / "annotations.json").exists()


@pytest.mark.parametrize(
    "entry", [{}, {"bytes": 5, "sha256": "0"}, {"link": "/nowhere"}]
)
def test_a_manifest_by_hand_gives_away_no_file(source, tmp_path, entry):
    out = tmp_path / "out"
    (out / "videos").mkdir(parents=True)
    (out / "videos/mine.mp4").write_text("mine")
    files = [{"path": "videos/mine.mp4", **entry}]
    manifest = {"generator": "fiftyone-regioncap 1", "files": files}
    (out / "manifest.json").write_text(json.dumps(manifest))
    export(source, out, "csv", media="none", overwrite=True)
    assert (out / "videos/mine.mp4").read_text() == "mine"


def test_a_changed_file_of_an_export_is_not_replaced(source, tmp_path):
    out = tmp_path / "out"
    export(source, out, "csv", media="none")
    (out / "captions.csv").write_text("corrected by hand")
    with pytest.raises(ExportError, match="in the way"):
        export(source, out, "csv", media="none", overwrite=True)
    assert (out / "captions.csv").read_text() == "corrected by hand"


def test_an_empty_folder_is_filled(source, tmp_path):
    (tmp_path / "out").mkdir()
    assert export(source, tmp_path / "out", media="none").ok


class Full(Coco):
    """A format whose second video meets a full disk."""

    broken = True

    def write(self, video, part, media):
        if video.name == "two" and Full.broken:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(video, part, media)


def test_a_full_disk_leaves_nothing_that_looks_whole_and_goes_on_later(
    source, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    with pytest.raises(ExportError, match="No space left"):
        export(source, out, Full(), media="none")
    assert not out.exists()
    monkeypatch.setattr(Full, "broken", False)
    done = export(source, out, Full(), media="none")
    assert (done.videos, done.resumed) == (2, 1)
    export(source, tmp_path / "again", media="none")
    assert (out / "annotations.json").read_bytes() == (
        tmp_path / "again/annotations.json"
    ).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"out", "again"}


@pytest.mark.parametrize("moment", ["before", "between", "after", "while restored"])
def test_an_export_killed_around_its_rename_loses_nothing(
    source, tmp_path, monkeypatch, moment
):
    class Killed(BaseException):
        pass

    real = os.rename, os.replace

    def rename(source, target):
        if moment == "before":
            raise Killed
        real[0](source, target)

    def replace(source, target):
        if Path(target) == out and moment == "between":
            raise Killed
        if Path(target) == out / "mine.txt" and moment == "while restored":
            raise Killed
        real[1](source, target)
        if Path(target) == out and moment == "after":
            raise Killed

    out = tmp_path / "out"
    export(source, out, "csv", media="none")
    (out / "mine.txt").write_text("mine")
    with monkeypatch.context() as patches, pytest.raises(Killed):
        patches.setattr(os, "rename", rename)
        patches.setattr(os, "replace", replace)
        export(source, out, "videorefer", overwrite=True)
    if moment != "between":
        assert (out / "manifest.json").exists()
    with pytest.raises(ExportError, match="exists"):
        # An export without leave to overwrite gives back what was there.
        export(source, out, "videorefer")
    assert (out / "captions.csv").exists() == (moment in ("before", "between"))
    assert (out / "mine.txt").read_text() == "mine"
    export(source, out, "videorefer", overwrite=True)
    assert {p.name for p in (out / "videos").iterdir()} == {"one.mp4", "two.mp4"}
    assert (out / "mine.txt").read_text() == "mine"
    assert list(tmp_path.iterdir()) == [out]


def test_several_processes_write_what_one_does(source, tmp_path):
    view = source.filter_labels("captions", fo.ViewField("index") == 7)
    for workers in (1, 2):
        done = export(view, tmp_path / str(workers), media="none", workers=workers)
        assert done.ok and done.videos == 2
    one, two = (
        (tmp_path / str(workers) / "annotations.json").read_bytes()
        for workers in (1, 2)
    )
    assert one == two


def test_what_changed_since_is_not_taken_from_an_interrupted_export(
    dataset, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    monkeypatch.setattr(Full, "broken", True)
    with pytest.raises(ExportError):
        export(dataset, out, Full(), media="none")
    record = CaptionRecord(7, (0, 23), "disc", "Something new.", review="accepted")
    write_captions(dataset.first(), "captions", [record], overwrite=True)
    monkeypatch.setattr(Full, "broken", False)
    done = export(dataset, out, Full(), media="none")
    assert done.resumed == 0
    assert "Something new." in (out / "annotations.json").read_text()


def test_tracks_that_changed_since_are_not_taken_from_an_interrupted_export(
    dataset, tmp_path, monkeypatch
):
    monkeypatch.setattr(Full, "broken", True)
    with pytest.raises(ExportError):
        export(dataset, tmp_path / "out", Full(), media="none")
    frame = dataset.first().frames[1]
    frame.tracks.detections = []
    frame.save()
    monkeypatch.setattr(Full, "broken", False)
    done = export(dataset, tmp_path / "out", Full(), media="none")
    assert done.resumed == 0


def test_a_canceled_export_goes_on(source, tmp_path):
    cancel = threading.Event()
    with pytest.raises(Canceled):
        api.export(
            source,
            "jsonl",
            tmp_path / "out",
            progress=lambda event: cancel.set(),
            cancel=cancel,
        )
    assert not (tmp_path / "out").exists()
    done = export(source, tmp_path / "out", "jsonl")
    assert (done.videos, done.resumed) == (2, 1)


# -- the source -----------------------------------------------------------------------


def test_a_missing_video_is_left_out_and_the_rest_goes_on(dataset, tmp_path):
    copy = tmp_path / "gone.mp4"
    sample = dataset.last()
    sample.filepath = str(copy)
    sample.save()
    done = export(dataset, tmp_path / "out", "videorefer")
    assert done.videos == 1 and "gone.mp4" in done.failures[0].error
    out = tmp_path / "out"
    assert [p.name for p in (out / "videos").iterdir()] == ["one.mp4"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert len(manifest["failures"]) == 1 and manifest["counts"]["videos"] == 1
    # Without media it isn't missed.
    assert export(dataset, tmp_path / "labels", "videorefer", media="none").ok


def test_masks_that_vanished_are_named(videos, tmp_path, fiftyone_database):
    made = fo.Dataset()
    try:
        for video in videos:
            sample = fo.Sample(filepath=str(video))
            sample.metadata = video_metadata(sample)
            made.add_sample(sample)
            full = np.zeros((72, 96), dtype=bool)
            full[2:9, 3:11] = True
            with TrackWriter(
                sample, "tracks", mask_storage="disk", output_dir=tmp_path / "masks"
            ) as writer:
                writer.write(FrameMasks(0, {1: ObjectMask(full, 1.0)}))
        shutil.rmtree(tmp_path / "masks/tracks" / made.first().id)
        done = export(made, tmp_path / "out", captions=None, media="none")
        assert done.videos == 1
        assert "is not there" in done.failures[0].error
    finally:
        made.delete()


@pytest.fixture(scope="module")
def failed(fiftyone_database, videos):
    """Captions that are null, blank or failed, and a good one of confidence NaN."""
    made = make(videos, filled=True)
    for sample in made:
        records = [
            CaptionRecord(2, (3, 11), error="out of memory"),
            CaptionRecord(2, (12, 23), "brick/wall", "  \n "),
            CaptionRecord(
                *(7, (0, 23), "disc", "Only this."),
                confidence=float("nan"),
                review="accepted",
            ),
        ]
        write_captions(sample, "captions", records, overwrite=True)
        made._sample_collection.update_one(
            {"_id": sample._id}, {"$set": {"captions.detections.0.caption": None}}
        )
    made.reload()
    yield made
    made.delete()


@pytest.mark.parametrize("name", sorted(exporters.FORMATS))
def test_captions_that_are_null_or_failed_are_never_exported(failed, tmp_path, name):
    if name == "hf-datasets":
        pytest.importorskip("datasets")
    done = export(failed, tmp_path / "out", name)
    assert done.ok
    assert done.counts.get("captions", done.counts.get("tracks")) == 2
    for file in (tmp_path / "out").rglob("*.json*"):
        lines = file.read_text().splitlines() if file.suffix == ".jsonl" else None
        for text in lines or [file.read_text()]:
            json.loads(text, parse_constant=pytest.fail)  # NaN is no JSON


def test_filters_choose_captions(source, tmp_path):
    out = tmp_path / "out"
    cases = {
        "reviewed": ({"reviews": ["edited"]}, {7}),
        "sure": ({"min_confidence": 0.6}, {7}),
        "short": ({"max_words": 4}, {2}),
        "long": ({"min_words": 1000}, {2}),
        "whole tracks": ({"min_frames": 22}, {7}),
        "with the others": ({"reviews": ["edited"], "uncaptioned": True}, {2, 7}),
        "masks only": ({"captions": None}, {2, 7}),
    }
    for word, (options, expected) in cases.items():
        target = out / word
        export(source, target, "jsonl", media="none", **options)
        lines = (target / "tracks.jsonl").read_text().splitlines()
        assert {json.loads(line)["index"] for line in lines} == expected, word
    with pytest.raises(ExportError, match="no track or caption"):
        export(source, out / "none", min_words=5000)
    assert {path.name for path in out.iterdir()} == cases.keys()


def test_a_view_s_filters_hold(source, tmp_path):
    view = source.filter_labels("captions", fo.ViewField("confidence") > 0.6)
    export(view, tmp_path / "out", "csv", media="none")
    text = (tmp_path / "out/captions.csv").read_text(encoding="utf-8")
    assert "blue brick" not in text and "مرحبا" in text


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"tracks": "frames.nothing"}, FieldError),
        ({"captions": "nothing"}, FieldError),
        ({"val": 2.0}, OptionError),
        ({"options": {"nothing": 1}}, OptionError),
        ({"nothing": 1}, OptionError),
        ({"media": "move"}, OptionError),
        ({"reviews": ["good"]}, OptionError),
        ({"workers": 0}, OptionError),
    ],
)
def test_wrong_arguments_touch_nothing(source, tmp_path, options, error):
    with pytest.raises(error):
        export(source, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_splits_go_by_video_and_stay_the_same(source, empty, contents_of, tmp_path):
    options = ExportOptions("coco", "out", val=0.5)
    seen = {options.split(f"folder/{n}.mp4") for n in range(50)}
    assert seen == {"train", "val"}
    share = sum(options.split(f"folder/{n}.mp4") == "val" for n in range(2000)) / 2000
    assert 0.45 < share < 0.55
    export(source, tmp_path / "out", val=0.5, seed=3)
    found = {}
    for split in ("train", "val"):
        folder = tmp_path / "out" / split
        if folder.exists():
            assert import_(empty, folder).ok
            for video in json.loads((folder / "annotations.json").read_text())[
                "videos"
            ]:
                found[video["file_name"]] = split
    assert found == {
        Path(path).name: ExportOptions("coco", "out", val=0.5, seed=3).split(path)
        for path in source.values("filepath")
    }
    assert contents_of(empty) == contents_of(source)


def test_links_lead_to_the_videos(source, tmp_path):
    export(source, tmp_path / "out", "videorefer", media="link")
    link = tmp_path / "out/videos/one.mp4"
    assert link.is_symlink() and link.resolve() == Path(source.first().filepath)


# -- what is imported ------------------------------------------------------------------


def broken(out: Path, name: str, change) -> Path:
    path = out / name
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    return out


def test_unknown_videos_and_wrong_sizes_are_left_out(
    source, empty, contents_of, tmp_path
):
    out = tmp_path / "out"
    export(source, out, "youtube-vis", media="none")
    (out / "manifest.json").unlink()

    def change(value):
        first, second = value["videos"]
        first["height"] = 71
        stranger = {**second, "id": 9, "file_names": ["stranger/0.jpg"] * 24}
        value["videos"].append(stranger)

    back = import_(empty, broken(out, "instances.json", change), "youtube-vis")
    assert back.videos == 1
    assert {f.name for f in back.failures} == {"one", "stranger"}
    found = contents_of(empty)
    assert found["one.mp4"] == {"masks": {}, "captions": {}}
    assert found["two.mp4"] == contents_of(source)["two.mp4"]


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v["videos"][0].update(length=25),
        lambda v: v["annotations"][0]["segmentations"][9].update(counts="PPPPPPPP"),
        lambda v: v["annotations"][0]["segmentations"][9].update(counts="\x01\x02"),
        lambda v: v["annotations"][0]["segmentations"][9].update(size=[7200, 9600]),
        lambda v: v["annotations"][0]["captions"][0].update(first_frame=-1),
        lambda v: v["annotations"][0]["captions"][0].update(last_frame=99),
        lambda v: v["annotations"][0]["captions"][0].update(review="perhaps"),
        lambda v: v["annotations"][0].update(track_id="seven"),
        lambda v: v["annotations"][0].pop("segmentations"),
    ],
    ids=[
        "another length",
        "runs too long",
        "no run lengths",
        "another size",
        "a frame before the first",
        "a frame past the end",
        "an unknown state",
        "an id in words",
        "no masks",
    ],
)
def test_a_damaged_video_is_left_as_it_was(
    source, empty, contents_of, tmp_path, change
):
    out = tmp_path / "out"
    export(source, out, "youtube-vis", media="none")
    back = import_(empty, broken(out, "instances.json", change), "youtube-vis")
    assert (back.videos, len(back.failures)) == (1, 1)
    found = contents_of(empty)
    assert found["one.mp4"] == {"masks": {}, "captions": {}}
    assert found["two.mp4"] == contents_of(source)["two.mp4"]


@pytest.fixture(scope="module")
def untouched(fiftyone_database, videos):
    """A dataset that nothing is imported into."""
    made = make(videos, filled=False)
    yield made
    made.delete()


@pytest.mark.parametrize("name", sorted(exporters.importable_formats()))
@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe{", b"[1, 2", b'"text"'])
def test_files_of_another_kind_are_refused(untouched, tmp_path, name, content):
    path = tmp_path / "file_manual.json"
    if content is not None:
        path.write_bytes(content)
    try:
        back = import_(untouched, path, name)
    except RegionCapError:
        return
    assert not back.videos


@pytest.mark.parametrize("storage", ["inline", "disk"])
def test_an_import_that_fails_half_way_changes_nothing(
    dataset, contents, tmp_path, storage
):
    """The caption of one video is larger than a document, after its tracks."""
    out = tmp_path / "out"
    export(dataset, out, "jsonl", media="none")
    file = out / "tracks.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    frames = lines[0]["masks"]
    frames["1"] = frames.pop(next(iter(frames)))
    lines[0]["captions"][0]["caption"] = "x" * 2**24
    file.write_text("\n".join(map(json.dumps, lines)))

    def into(tracks):
        return api.import_captions(
            dataset,
            "jsonl",
            out,
            tracks=tracks,
            mask_storage=storage,
            output_dir=str(tmp_path / "masks"),
            overwrite=True,
            progress=False,
        )

    before = contents(dataset)
    done = into("frames.tracks")
    (failure,) = done.failures
    assert "don't fit into one document" in failure.error
    bad = Path(failure.name).name
    assert done.videos == 1
    assert contents(dataset)[bad] == before[bad]
    into("frames.other")
    dataset.reload()
    sample = next(s for s in dataset if s.filepath.endswith(bad))
    assert sample["other_status"] is None
    assert not any(frame["other"] for frame in sample.frames.values())


def test_a_video_that_a_job_works_on_is_left_alone(exported, empty, contents_of):
    folder = exported("jsonl")
    sample = empty.first()
    with Leases(empty._doc.id, ("tracks",), "job") as job:
        assert job.claim(sample.id) is None
        made = api.import_captions(empty, "jsonl", folder, progress=False)
        assert made.videos == 1
        assert "a job is at work on this video" in made.failures[0].error
        assert sample.id not in empty.exists("captions").values("id")
    again = api.import_captions(empty, "jsonl", folder, progress=False)
    assert again.ok and again.videos == 2


@pytest.mark.parametrize("path", ["frames.tracks", "captions"])
def test_a_read_only_field_takes_no_import(exported, dataset, path):
    field = dataset.get_field(path)
    field.read_only = True
    field.save()
    with pytest.raises(FieldError, match="read-only"):
        api.import_captions(
            dataset, "jsonl", exported("jsonl"), overwrite=True, progress=False
        )


def test_a_reviewed_caption_survives_an_import(dataset, tmp_path, contents_of):
    export(dataset, tmp_path / "out", "jsonl", media="none")
    record = CaptionRecord(7, (0, 23), "disc", "By hand.", review="edited")
    write_captions(dataset.first(), "captions", [record], overwrite=True)
    import_(dataset, tmp_path / "out", "jsonl")
    assert contents_of(dataset)["one.mp4"]["captions"][7, (0, 23)] == "By hand."


# -- pieces ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("../../etc/passwd", "_.._etc_passwd"),
        ("a b/c", "a_b_c"),
        (".hidden", "hidden"),
        ("-rf", "rf"),
        ("", "_"),
        ("🦊", "_"),
        ("مرحبا", "مرحبا"),
        ("x" * 500, "x" * 120),
        ("clip.v2", "clip.v2"),
    ],
)
def test_names_of_files_are_harmless(text, name):
    assert records.safe_name(text) == name


def test_braces_of_captions_are_text():
    filled = conversations.fill("Is {label} a {x}? {", {"label": "{x} {label}"})
    assert filled == "Is {x} {label} a {x}? {"
