from __future__ import annotations

import json

import pytest

from fiftyone_regioncap import exporters

# Each with the options under which nothing is left out.
LOSSLESS = {
    "coco": {},
    "jsonl": {},
    "llava": {"frames": None},
    "mevis": {},
    "sa-v": {"stride": 1},
    "videorefer": {"frames": None},
    "youtube-vis": {},
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_masks_frames_and_captions_come_back(
    dataset, empty, contents_of, tmp_path, name
):
    options = LOSSLESS[name]
    done = exporters.export(
        dataset, name, tmp_path / "out", options=options, progress=False
    )
    assert done.ok and done.videos == 2
    back = exporters.import_captions(empty, name, tmp_path / "out", progress=False)
    assert back.ok and back.videos == 2, back.failures
    assert contents_of(empty) == contents_of(dataset)


@pytest.mark.parametrize("name", [*LOSSLESS, "videorefer-bench"])
def test_importing_twice_changes_nothing(dataset, contents_of, tmp_path, name):
    before = contents_of(dataset)
    options = LOSSLESS.get(name, {"frames": 99})
    out = tmp_path / "out"
    exporters.export(dataset, name, out, options=options, media="none", progress=False)
    back = exporters.import_captions(dataset, name, out, progress=False)
    assert back.ok, back.failures
    assert contents_of(dataset) == before


@pytest.mark.parametrize("name", LOSSLESS)
def test_all_that_is_kept_of_a_caption_comes_back(dataset, empty, tmp_path, name):
    from dataclasses import replace

    from fiftyone_regioncap.dataset.captions import read_captions

    out = tmp_path / "out"
    exporters.export(dataset, name, out, media="none", progress=False)
    exporters.import_captions(empty, name, out, progress=False)

    def plain(dataset):
        records = read_captions(dataset.first(), "captions")
        return [replace(record, instance=None) for record in records]

    assert plain(empty) == plain(dataset)


def test_pycocotools_reads_coco(dataset, contents_of, tmp_path):
    from pycocotools.coco import COCO

    exporters.export(dataset, "coco", tmp_path / "out", progress=False)
    coco = COCO(str(tmp_path / "out/annotations.json"))
    masks = contents_of(dataset)["one.mp4"]["masks"]
    (video,) = [v for v in coco.dataset["videos"] if v["file_name"] == "one.mp4"]
    tracks = {track["id"]: track for track in coco.dataset["tracks"]}
    found = {}
    for image in coco.loadImgs(coco.getImgIds()):
        assert (tmp_path / "out" / image["file_name"]).is_file()
        if image["video_id"] == video["id"]:
            for annotation in coco.loadAnns(coco.getAnnIds(image["id"])):
                index = tracks[annotation["track_id"]]["object_id"]
                decoded = coco.annToMask(annotation).astype(bool)
                assert annotation["area"] == decoded.sum()
                found[image["frame_id"], index] = decoded.tobytes()
    assert found == masks


def test_the_manifest_counts_and_hashes(dataset, tmp_path):
    from hashlib import sha256

    exporters.export(dataset, "youtube-vis", tmp_path / "out", progress=False)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["counts"] == {
        "videos": 2,
        "tracks": 4,
        "masks": 2 * (22 + 21),
        "frames": 48,
    }
    assert {"model": "model/a", "revision": "abc"} in manifest["models"]
    files = {entry["path"]: entry for entry in manifest["files"]}
    found = {
        path.relative_to(tmp_path / "out").as_posix()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert files.keys() == found - {"manifest.json"}
    for path, entry in files.items():
        content = (tmp_path / "out" / path).read_bytes()
        assert entry["sha256"] == sha256(content).hexdigest()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
