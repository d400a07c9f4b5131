from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import av
import fiftyone as fo
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from fiftyone_regioncap import api
from fiftyone_regioncap.core.types import FrameMasks, ObjectMask
from fiftyone_regioncap.dataset.captions import CaptionRecord, write_captions
from fiftyone_regioncap.dataset.tracks import TrackWriter
from fiftyone_regioncap.exporters.staging import Parts

FRAMES = 24  # of the videos
HEIGHT, WIDTH = 72, 96


def decoded(rle) -> np.ndarray:
    return coco_mask.decode(rle).astype(bool)


def masks_of(contents_of, dataset, video="one.mp4"):
    return contents_of(dataset)[video]["masks"]


def test_videorefer_has_the_published_structure(exported, source, contents_of):
    out = exported("videorefer", prompts=("Is <region> a {label}? {x}",))
    items = json.loads((out / "videorefer.json").read_text())
    assert [item["id"] for item in items] == list(range(6))
    masks = masks_of(contents_of, source)
    for item in items:
        assert (out / item["video"]).is_file()
        human, gpt = item["conversations"]
        label = item["regioncap"]["label"]
        assert human == {
            "from": "human",
            "value": f"<video>\nIs <region> a {label}? {{x}}",
        }
        assert gpt["from"] == "gpt" and gpt["value"]
        (region,) = item["annotation"]
        for frame, value in region.items():
            index = item["regioncap"]["index"]
            found = decoded(value["segmentation"]).tobytes()
            assert found == masks[int(frame), index]


def test_videorefer_bench_takes_frames_evenly(exported):
    out = exported("videorefer-bench", frames=4)
    items = json.loads((out / "videorefer_bench_d.json").read_text())
    disc = next(item for item in items if item["regioncap"]["index"] == 7)
    assert list(disc["annotation"][0]) == ["0", "9", "16", "23"]
    assert disc["frame_idx"] in disc["annotation"][0]


@pytest.mark.parametrize(
    ("kind", "key", "folder"),
    [
        ("video", "video", "videos"),
        ("clip", "video", "clips"),
        ("image",) * 2 + ("images",),
    ],
)
def test_llava_shows_videos_clips_or_images(exported, kind, key, folder):
    out = exported("llava", kind=kind)
    items = json.loads((out / "llava.json").read_text())
    assert len({item["id"] for item in items}) == 6
    for item in items:
        assert item[key].startswith(folder) and (out / item[key]).is_file()
        assert item["conversations"][0]["value"].startswith(f"<{key}>\n")


@pytest.mark.parametrize("kind", ["clip", "image"])
def test_captions_that_begin_on_one_frame_have_media_of_their_own(
    dataset, tmp_path, kind
):
    record = CaptionRecord(2, (3, 7), "brick", "A brick, briefly.")
    write_captions(dataset.first(), "captions", [record])
    options = {"kind": kind}
    api.export(dataset[:1], "llava", tmp_path / "out", options=options, progress=False)
    items = json.loads((tmp_path / "out/llava.json").read_text())
    key = "video" if kind == "clip" else "image"
    assert len({item[key] for item in items}) == len(items) == 4


def test_llava_clips_hold_their_windows(exported):
    out = exported("llava", kind="clip")
    items = json.loads((out / "llava.json").read_text())
    for item in items:
        record = item["regioncap"]
        with av.open(str(out / item["video"])) as container:
            count = sum(1 for _ in container.decode(video=0))
        assert count == record["last_frame"] - record["first_frame"] + 1


@pytest.mark.parametrize("show", ["box", "outline", "crop"])
def test_llava_images_show_the_object(exported, show):
    out = exported("llava", kind="image", show=show)
    items = json.loads((out / "llava.json").read_text())
    item = next(item for item in items if item["regioncap"]["label"] == "disc")
    picture = np.asarray(Image.open(out / item["image"]).convert("RGB")).astype(int)
    whole = picture.shape == (HEIGHT, WIDTH, 3)
    assert whole == (show != "crop")
    red = (picture[..., 0] > 200) & (picture[..., 1] < 80) & (picture[..., 2] < 80)
    assert red.any()
    assert ("[" in item["conversations"][0]["value"]) == (show == "box")


def test_sa_v_has_the_published_structure(exported, source, contents_of):
    out = exported("sa-v")
    value = json.loads((out / "one_manual.json").read_text())
    assert (out / "one.mp4").is_file()
    assert len(value["masklet"]) == FRAMES // 4
    assert value["masklet_id"] == [2, 7] and value["masklet_num"] == 2
    assert value["masklet_first_appeared_frame"] == [1, 0]
    assert value["masklet_visibility_changes"] == [0, 0]
    masks = masks_of(contents_of, source)
    for number, objects in enumerate(value["masklet"]):
        for index, rle in zip(value["masklet_id"], objects, strict=True):
            expected = masks.get((4 * number, index), bytes(HEIGHT * WIDTH))
            assert decoded(rle).tobytes() == expected


def test_sa_v_has_the_published_types(exported):
    value = json.loads((exported("sa-v") / "one_manual.json").read_text())
    assert isinstance(value["video_environment"], str)
    assert all(isinstance(n, float) for n in value["masklet_first_appeared_frame"])


def test_visibility_changes_are_counted(exported):
    value = json.loads((exported("sa-v", stride=1) / "one_manual.json").read_text())
    assert value["masklet_visibility_changes"] == [0, 2]


def test_mevis_pads_to_the_length_of_the_video(exported):
    out = exported("mevis")
    videos = json.loads((out / "meta_expressions.json").read_text())["videos"]
    masks = json.loads((out / "mask_dict.json").read_text())
    assert list(videos) == ["one", "two"] and len(masks) == 4
    for name, video in videos.items():
        assert len(video["frames"]) == FRAMES
        for frame in video["frames"]:
            assert (out / "JPEGImages" / name / f"{frame}.jpg").is_file()
        for expression in video["expressions"].values():
            (annotation,) = expression["anno_id"]
            assert len(masks[str(annotation)]) == FRAMES
    used = [
        e["anno_id"][0]
        for video in videos.values()
        for e in video["expressions"].values()
    ]
    assert sorted(set(used)) == [0, 1, 2, 3]
    hidden = [masks["1"][frame] for frame in (5, 6)]
    assert hidden == [None, None]


def test_ref_youtube_vos_paints_ids(exported, source, contents_of):
    out = exported("ref-youtube-vos")
    video = json.loads((out / "meta_expressions.json").read_text())["videos"]["one"]
    ids = {
        e["regioncap"]["index"]: int(e["obj_id"]) for e in video["expressions"].values()
    }
    masks = masks_of(contents_of, source)
    for frame in range(FRAMES):
        image = Image.open(out / f"Annotations/one/{frame:05d}.png")
        assert image.mode == "P"
        painted = np.asarray(image)
        for index, number in ids.items():
            expected = masks.get((frame, index), bytes(HEIGHT * WIDTH))
            assert (painted == number).tobytes() == expected


def test_ref_youtube_vos_says_where_objects_are(exported):
    out = exported("ref-youtube-vos")
    objects = json.loads((out / "meta.json").read_text())["videos"]["one"]["objects"]
    assert {o["category"] for o in objects.values()} == {"disc", "brick/wall"}
    for number, entry in objects.items():
        for frame in range(FRAMES):
            painted = np.asarray(Image.open(out / f"Annotations/one/{frame:05d}.png"))
            listed = f"{frame:05d}" in entry["frames"]
            # Objects may hide each other, so that a listed one may be unseen.
            assert listed or not (painted == int(number)).any()


def test_webvtt_keeps_text_and_times(exported):
    webvtt = pytest.importorskip("webvtt")
    out = exported("webvtt")
    found = webvtt.read(str(out / "subtitles/one/2-brick_wall.vtt"))
    assert [(c.start, c.end) for c in found.captions] == [
        ("00:00:00.250", "00:00:01.000"),
        ("00:00:01.000", "00:00:02.000"),
    ]
    assert found.captions[0].text == "A blue brick."
    hard = webvtt.read(str(out / "subtitles/one/7-disc.vtt")).captions[0].raw_text
    assert hard.startswith('A "red" disc\nthat moves; 100 % &lt;b&gt;bold')


def test_csv_keeps_text(exported, source, contents_of):
    with (exported("csv") / "captions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    captions = contents_of(source)["one.mp4"]["captions"]
    found = {
        (int(row["index"]), (int(row["first_frame"]), int(row["last_frame"]))): row
        for row in rows
        if row["video"] == "videos/one.mp4"
    }
    assert {key: row["caption"] for key, row in found.items()} == captions
    assert found[2, (3, 11)]["start_seconds"] == "0.25"


@pytest.mark.parametrize("kind", ["conversation", "detail"])
def test_osprey_numbers_the_regions_of_an_image(exported, kind):
    out = exported("osprey", kind=kind)
    items = json.loads((out / "osprey.json").read_text())
    assert sum(len(item["annotation"]) for item in items) == 6
    for item in items:
        assert Image.open(out / item["file_name"]).size == (WIDTH, HEIGHT)
        for number, region in enumerate(item["annotation"], 1):
            assert decoded(region["segmentation"]).sum() == region["area"]
            told = (
                item["description"][number - 1]
                if kind == "detail"
                else item["conversations"][2 * number - 2]["value"]
            )
            assert f"<region{number}>" in told
            assert "\n" not in told


def test_osprey_cuts_no_file_name_at_an_underscore(source, videos, tmp_path):
    renamed = tmp_path / "a_b_c.mp4"
    shutil.copy(videos[0], renamed)
    view = source.clone()
    try:
        sample = view.first()
        sample.filepath = str(renamed)
        sample.save()
        api.export(view, "osprey", tmp_path / "out", progress=False)
        items = json.loads((tmp_path / "out/osprey.json").read_text())
        # Osprey's loader looks for what follows the last underscore of a name.
        names = [item["file_name"].split("_")[-1] for item in items]
        assert all((tmp_path / "out" / name).is_file() for name in names)
        assert len(set(names)) == len(items) == 6
    finally:
        view.delete()


def test_plm_speaks_of_the_masklets_beside_it(exported):
    out = exported("plm")
    rcap = [json.loads(line) for line in (out / "rcap.jsonl").read_text().splitlines()]
    rdcap = [
        json.loads(line) for line in (out / "rdcap.jsonl").read_text().splitlines()
    ]
    assert len(rcap) == 6 and len(rdcap) == 4
    ids = json.loads((out / "one_manual.json").read_text())["masklet_id"]
    assert {line["masklet_id"] for line in rcap} == set(ids)
    assert rcap[0].keys() == {
        "uid",
        "video",
        "masklet_id",
        "total_frames",
        "caption",
        "start_frame",
        "end_frame",
    }
    assert [len(line["dense_captions"]) for line in rdcap] == [2, 1, 2, 1]


@pytest.mark.parametrize("name", ["plm", "sa-v"])
def test_objects_that_no_annotated_frame_shows_are_named(dataset, tmp_path, name):
    sample = dataset.first()
    with TrackWriter(sample, "tracks", labels={9: "flash"}) as writer:
        seen = ObjectMask(np.ones((HEIGHT, WIDTH), bool), 1.0)
        writer.write(FrameMasks(1, {9: seen}))
    record = CaptionRecord(9, (1, 1), "flash", "A flash.")
    write_captions(sample, "captions", [record])
    out = tmp_path / "out"
    done = api.export(dataset[:1], name, out, media="none", progress=False)
    assert any("one: left out objects 9," in note for note in done.notes), done.notes
    ids = json.loads((out / "one_manual.json").read_text())["masklet_id"]
    assert ids == [2, 7]
    if name == "plm":
        for file in ("rcap.jsonl", "rdcap.jsonl"):
            lines = map(json.loads, (out / file).read_text().splitlines())
            assert {line["masklet_id"] for line in lines} == {2, 7}


def test_webdataset_reads_the_shards(exported):
    webdataset = pytest.importorskip("webdataset")
    out = exported("dam", shard_bytes=20_000)
    shards = sorted(map(str, (out / "shards").glob("*.tar")))
    assert len(shards) > 1
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8"))
    assert sum(len(sample["json"]) for sample in samples) == 6
    for sample in samples:
        assert sample["jpg"].shape == (HEIGHT, WIDTH, 3)
        for region in sample["json"]:
            assert decoded(region["mask_rle"]).any() and region["caption"]


def test_pycocotools_reads_dlc_bench(exported):
    from pycocotools.coco import COCO

    out = exported("dlc-bench")
    coco = COCO(str(out / "annotations.json"))
    captions = json.loads((out / "captions.json").read_text())
    assert len(coco.anns) == 6
    for key, annotation in coco.anns.items():
        image = coco.imgs[annotation["image_id"]]
        assert (out / "images" / image["file_name"]).is_file()
        assert coco.annToMask(annotation).sum() == annotation["area"]
        assert captions[str(key)] == annotation["caption"]
        assert annotation["record"]["first_frame"] <= image["frame_id"]


def test_hugging_face_reads_the_parquet_files(exported, tmp_path, source, contents_of):
    datasets = pytest.importorskip("datasets")
    out = exported("hf-datasets", frames=None)
    loaded = datasets.load_dataset(
        "parquet",
        data_files=str(out / "data/*.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert len(loaded) == 6
    masks = masks_of(contents_of, source)
    captions = contents_of(source)["one.mp4"]["captions"]
    for row in loaded:
        assert row["image"].size == (WIDTH, HEIGHT)
        key = row["object_id"], (row["first_frame"], row["last_frame"])
        assert row["caption"] == captions[key]
        for frame, counts in zip(row["mask_frames"], row["masks"], strict=True):
            rle = {"size": [row["height"], row["width"]], "counts": counts}
            assert decoded(rle).tobytes() == masks[frame, row["object_id"]]


def test_supervision_reads_coco(exported):
    supervision = pytest.importorskip("supervision")
    out = exported("coco")
    loaded = supervision.DetectionDataset.from_coco(
        images_directory_path=str(out),
        annotations_path=str(out / "annotations.json"),
        force_masks=True,
    )
    assert len(loaded) == 48 and sorted(loaded.classes) == ["brick/wall", "disc"]


def test_clips_are_cut_frame_for_frame(exported, source, contents_of, tmp_path):
    clips = source[:1].to_clips("captions")
    out = tmp_path / "cut"
    done = api.export(clips, "jsonl", out, cut=True, progress=False)
    assert done.ok and done.videos == 3, done.failures
    masks = masks_of(contents_of, source)
    for line in map(json.loads, (out / "tracks.jsonl").read_text().splitlines()):
        start = int(Path(line["video"]).stem.split("-")[1])
        with av.open(str(out / line["video"])) as container:
            assert sum(1 for _ in container.decode(video=0)) == line["frame_count"]
        for frame, rle in line["masks"].items():
            found = decoded(rle).tobytes()
            assert found == masks[int(frame) + start, line["index"]]
    brick = next(
        json.loads(line)
        for line in (out / "tracks.jsonl").read_text().splitlines()
        if "000012-000023" in line
    )
    assert brick["captions"][0]["first_frame"] == 0


def test_a_clips_view_that_is_not_cut_keeps_the_video_s_frames(source, tmp_path):
    view = source[:1].filter_labels("captions", fo.ViewField("index") == 2)
    clips = view.to_clips("captions")[1:]
    out = tmp_path / "out"
    api.export(clips, "jsonl", out, progress=False)
    (line,) = map(json.loads, (out / "tracks.jsonl").read_text().splitlines())
    assert sorted(map(int, line["masks"])) == list(range(12, 24))
    assert line["captions"][0]["first_frame"] == 12


def test_a_format_may_write_a_file_right_away(tmp_path):
    parts = Parts(tmp_path / "parts")
    for _ in range(2):  # begun again, from nothing
        part = parts.part(3)
        for folder in (part.folder, part.scratch):
            assert not list(folder.iterdir())
            (folder / "file").touch()
