from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fiftyone_regioncap import api
from fiftyone_regioncap.dataset.captions import read_captions

# Each with the options under which nothing is left out.
LOSSLESS = {
    "coco": ("coco", {}),
    "jsonl": ("jsonl", {}),
    "llava": ("llava", {"frames": None}),
    "llava clips": ("llava", {"frames": None, "kind": "clip"}),
    "llava images": ("llava", {"frames": None, "kind": "image"}),
    "mevis": ("mevis", {}),
    "sa-v": ("sa-v", {"stride": 1}),
    "videorefer": ("videorefer", {"frames": None}),
    "videorefer-bench": ("videorefer-bench", {"frames": 99}),
    "youtube-vis": ("youtube-vis", {}),
}


@pytest.mark.parametrize("case", LOSSLESS)
def test_all_comes_back_and_twice_changes_nothing(
    source, empty, contents_of, exported, case
):
    name, options = LOSSLESS[case]
    expected = contents_of(source)
    for _ in range(2):
        back = api.import_captions(
            empty, name, exported(name, **options), progress=False
        )
        assert back.ok and back.videos == 2, back.failures
        assert contents_of(empty) == expected

    def plain(dataset):
        records = read_captions(dataset.first(), "captions")
        return [replace(record, instance=None) for record in records]

    assert plain(empty) == plain(source)


@pytest.mark.parametrize("name", ["videorefer", "llava", "jsonl"])
def test_clips_come_back_onto_the_frames_of_their_video(
    source, empty, contents_of, tmp_path, name
):
    api.export(
        source,
        name,
        tmp_path / "out",
        cut=True,
        media="none",
        options={} if name == "jsonl" else {"frames": None},
        progress=False,
    )
    for overwrite in (False, True):
        back = api.import_captions(
            empty, name, tmp_path / "out", overwrite=overwrite, progress=False
        )
        assert back.ok and back.videos == 6, back.failures
        assert contents_of(empty) == contents_of(source)


@pytest.mark.parametrize("ranges", [[[3, 7]], [[3, 12], [12, 24]], [[3, None]]])
def test_a_clip_that_the_manifest_contradicts_is_left_out(
    source, empty, contents_of, tmp_path, ranges
):
    out = tmp_path / "out"
    options = {"media": "none", "progress": False, "cut": True}
    api.export(source[:1], "videorefer", out, **options)
    manifest = json.loads((out / "manifest.json").read_text())
    (clip,) = [v for v in manifest["videos"] if v["name"] == "one-000003-000011"]
    clip["ranges"] = ranges
    (out / "manifest.json").write_text(json.dumps(manifest))
    back = api.import_captions(empty, "videorefer", out, progress=False)
    assert back.videos == 2
    (failure,) = back.failures
    assert "one-000003-000011" in failure.name
    assert len(contents_of(empty)["one.mp4"]["captions"]) == 2


def test_pycocotools_reads_coco(source, contents_of, exported):
    from pycocotools.coco import COCO

    out = exported("coco")
    coco = COCO(str(out / "annotations.json"))
    masks = contents_of(source)["one.mp4"]["masks"]
    (video,) = [v for v in coco.dataset["videos"] if v["file_name"] == "one.mp4"]
    tracks = {track["id"]: track for track in coco.dataset["tracks"]}
    found = {}
    for image in coco.loadImgs(coco.getImgIds()):
        assert (out / image["file_name"]).is_file()
        if image["video_id"] == video["id"]:
            for annotation in coco.loadAnns(coco.getAnnIds(image["id"])):
                index = tracks[annotation["track_id"]]["object_id"]
                decoded = coco.annToMask(annotation).astype(bool)
                assert annotation["area"] == decoded.sum()
                found[image["frame_id"], index] = decoded.tobytes()
    assert found == masks


def test_the_manifest_counts_and_hashes(exported):
    from hashlib import sha256

    out = exported("youtube-vis")
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["counts"] == {
        "videos": 2,
        "tracks": 4,
        "masks": 2 * (22 + 21),
        "frames": 48,
    }
    assert {"model": "model/a", "revision": "abc"} in manifest["models"]
    files = {entry["path"]: entry for entry in manifest["files"]}
    found = {
        path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()
    }
    assert files.keys() == found - {"manifest.json"}
    for path, entry in files.items():
        content = (out / path).read_bytes()
        assert entry["sha256"] == sha256(content).hexdigest()
    assert [path.name for path in out.parent.iterdir()] == ["out"]
