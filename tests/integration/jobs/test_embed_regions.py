"""Region embeddings from real videos and images, by a small Patch-ioner."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pytest
from click.testing import CliRunner
from fiftyone import ViewField as F
from PIL import Image
from pymongo.errors import AutoReconnect

import fiftyone_regioncap as regioncap
from fiftyone_regioncap.captioning.patchioner.captioner import PatchionerCaptioner
from fiftyone_regioncap.captioning.patchioner.configuration import PatchionerOptions
from fiftyone_regioncap.cli.main import main
from fiftyone_regioncap.core.errors import BackendError, FieldError
from fiftyone_regioncap.core.markdown import plain
from fiftyone_regioncap.core.types import Prompt
from fiftyone_regioncap.dataset import videos as datasets
from fiftyone_regioncap.dataset.captions import (
    CaptionRecord,
    read_captions,
    write_captions,
)
from fiftyone_regioncap.jobs import embedding

PROMPTS = [
    Prompt(7, 0, box=(10, 20, 34, 44), label="disc"),
    Prompt(2, 0, box=(60, 40, 76, 56), label="brick"),
]


@pytest.fixture
def dataset(
    videos: list[Path], fiftyone_database: str, tmp_path: Path, monkeypatch
) -> Iterator[fo.Dataset]:
    """Two videos with tracks."""
    monkeypatch.setenv("REGIONCAP_CACHE", str(tmp_path / "cache"))
    made, _, _ = datasets.add_videos("looks", videos, PROMPTS)
    regioncap.propagate(made, propagator="flow", progress=False)
    yield made
    made.delete()


def embed(samples, checkpoint: Path, **options):
    return regioncap.embed_regions(
        samples, weights=str(checkpoint), device="cpu", progress=False, **options
    )


def vectors(sample: fo.Sample) -> dict[tuple[int, int], np.ndarray]:
    """By object and first frame."""
    return {
        (record.index, record.support[0]): record.embedding.vector()
        for record in read_captions(sample, "captions")
        if record.embedding is not None
    }


def test_the_job_keeps_them_with_the_captions(
    dataset: fo.Dataset, checkpoint: Path
) -> None:
    for window in (None, 8):
        summary = regioncap.caption(
            dataset,
            captioner="patchioner",
            weights=str(checkpoint),
            device="cpu",
            window=window,
            summary=window is not None,
            overwrite=True,
            progress=False,
        )
        assert summary.ok and not summary.caption_errors
        config = dataset.get_run_info(summary.run).config
        space = PatchionerCaptioner.from_pretrained(checkpoint).space
        assert config.captioner["space"]["fingerprint"] == space.fingerprint
        assert config.captioner["space"]["model"] == str(checkpoint.resolve())
        for sample in dataset:
            found = vectors(sample)
            assert len(found) == (2 if window is None else 6)
            disc, brick = found[7, 0], found[2, 0]
            np.testing.assert_allclose(np.linalg.norm(disc), 1, atol=1e-3)
            assert disc @ brick < 0.999
    for record in read_captions(dataset.first(), "captions"):
        # What is told of a track's other captions was seen on none of its frames.
        assert (record.embedding is None) == (record.prompt == "change summary")


def test_they_can_be_left_out(dataset: fo.Dataset, checkpoint: Path) -> None:
    regioncap.caption(
        dataset,
        captioner="patchioner",
        weights=str(checkpoint),
        device="cpu",
        captioner_options={"embeddings": False},
        progress=False,
    )
    assert not dataset.has_field("captions.detections.region_embedding")


def test_captions_of_others_get_them_too(dataset: fo.Dataset, checkpoint: Path) -> None:
    options = {"captioner": "measured", "window": 8, "progress": False}
    regioncap.caption(dataset, **options)
    one = dataset.first()
    lost = CaptionRecord(99, (0, 3), caption="A track that is gone.")
    failed = CaptionRecord(98, (0, 3), error="the mask is empty")
    late = CaptionRecord(7, (90, 99), caption="It is never seen then.")
    write_captions(one, "captions", [lost, failed, late])
    ids = dataset.values("captions.detections.id", unwind=True)
    dataset.set_label_values("captions.detections.review", {ids[0]: "accepted"})
    before = read_captions(one, "captions")

    # Of a view, what it shows.
    shown = dataset.limit(1).filter_labels("captions", F("index") == 7)
    assert embed(shown, checkpoint).embedded == 3
    assert {index for index, _ in vectors(one)} == {7}
    summary = embed(dataset, checkpoint)
    assert summary.ok and (summary.embedded, summary.kept) == (9, 3)
    assert summary.unseen == 2 and "no region to look at" in summary.to_markdown()
    assert dataset.get_run_info(summary.run).config.space["captioner"] == "patchioner"
    # Nothing else of the captions has changed.
    after = read_captions(one, "captions")
    assert [r.caption for r in after] == [r.caption for r in before]
    assert [r.review for r in after] == [r.review for r in before]
    assert [r.model for r in after] == [r.model for r in before]
    again = embed(dataset, checkpoint)
    assert (again.embedded, again.kept) == (0, 12)
    assert embed(dataset, checkpoint, overwrite=True).embedded == 12

    found = regioncap.search_captions(dataset, "a disc", mode="visual")
    assert len(found.hits) == 12
    # They are those of the captioner's own captions.
    own = vectors(one)
    regioncap.caption(
        dataset.limit(1),
        output="own",
        captioner="patchioner",
        weights=str(checkpoint),
        device="cpu",
        window=8,
        progress=False,
    )
    for record in read_captions(dataset.first(), "own"):
        same = own[record.index, record.support[0]]
        np.testing.assert_array_equal(record.embedding.vector(), same)


def test_regions_of_images(
    fiftyone_database: str, checkpoint: Path, tmp_path: Path
) -> None:
    dataset = fo.Dataset()
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    boxes = ([0, 0, 0.3, 0.5], [0.5, 0.5, 0.5, 0.5])
    labels = [fo.Detection(bounding_box=box, caption="It.") for box in boxes]
    labels.append(fo.Detection(bounding_box=boxes[0]))
    sample = fo.Sample(
        str(tmp_path / "image.png"),
        objects=fo.Detections(detections=labels),
        single=fo.Detection(bounding_box=boxes[0], caption="A single one."),
    )
    dataset.add_sample(sample)
    dataset.add_dynamic_sample_fields()
    # The third has no caption, and is nothing that could be found by it.
    assert embed(dataset, checkpoint, captions="objects").embedded == 2
    assert embed(dataset, checkpoint, captions="single").embedded == 1
    dataset.reload()
    sample = dataset.first()
    first, second, _ = sample.objects.detections
    assert first.region_embedding @ second.region_embedding < 0.999
    np.testing.assert_array_equal(
        sample.single.region_embedding, first.region_embedding
    )
    dataset.delete()


@pytest.fixture
def image(fiftyone_database: str, tmp_path: Path) -> Iterator[fo.Dataset]:
    """An image of 150 described boxes, and a described point."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    boxes = [[n % 15 / 15, n // 15 / 10, 1 / 15, 0.1] for n in range(150)]
    labels = [fo.Detection(bounding_box=box, caption="It.") for box in boxes]
    point = fo.Keypoint(points=[(0.5, 0.5)], caption="A point.")
    made = fo.Dataset()
    sample = fo.Sample(
        str(tmp_path / "image.png"),
        objects=fo.Detections(detections=labels),
        points=fo.Keypoints(keypoints=[point]),
    )
    made.add_sample(sample)
    made.add_dynamic_sample_fields()
    yield made
    made.delete()


def test_an_outage_of_the_database_leaves_none_out(
    image: fo.Dataset, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = embedding.iter_image_clips
    left = [140]  # more clips than wait for the first write

    def interrupted(*args: Any) -> Iterator[Any]:
        for made in real(*args):
            left[0] -= 1
            if not left[0]:
                raise AutoReconnect("the database is away")
            yield made

    monkeypatch.setattr(embedding, "iter_image_clips", interrupted)
    summary = embed(image, checkpoint, captions="objects")
    assert left[0] < 0 and summary.ok
    assert (summary.embedded, summary.unseen) == (150, 0)
    image.reload()
    labels = image.first().objects.detections
    assert all(label.region_embedding is not None for label in labels)


def test_points_of_images_need_a_segmenter(image: fo.Dataset, checkpoint: Path) -> None:
    summary = embed(image, checkpoint, captions="points")
    (failure,) = summary.failures
    label = image.first().points.keypoints[0].id
    assert f"label {label}: points need a segmenter" in failure.error
    assert "mobilesam" in failure.error and not failure.whole
    assert (summary.embedded, summary.unseen) == (0, 0)
    chosen = embed(image, checkpoint, captions="points", segmenter="flow")
    assert chosen.ok and chosen.embedded == 1


def test_bad_input(dataset: fo.Dataset, checkpoint: Path) -> None:
    with pytest.raises(FieldError, match="captions"):
        embed(dataset, checkpoint)
    regioncap.caption(dataset, captioner="measured", progress=False)
    with pytest.raises(
        BackendError,
        match="captioner=measured: it can't do this; choose one of patchioner",
    ):
        regioncap.embed_regions(dataset, captioner="measured", progress=False)
    silent = PatchionerCaptioner.from_pretrained(
        checkpoint, "cpu", PatchionerOptions(embeddings=False)
    )
    with pytest.raises(BackendError, match="embeddings=True"):
        regioncap.embed_regions(dataset, captioner=silent, progress=False)
    with pytest.raises(FieldError, match="nowhere"):
        embed(dataset, checkpoint, tracks="frames.nowhere")
    # A sample whose media is gone leaves the others alone.
    last = dataset.last()
    last.filepath = "/nowhere/video.mp4"
    last.save()
    summary = embed(dataset, checkpoint)
    assert summary.embedded == 2 and len(summary.failures) == 1 and not summary.ok
    assert "FAILED /nowhere/video.mp4" in plain(summary.to_markdown())


def test_the_command(dataset: fo.Dataset, checkpoint: Path) -> None:
    regioncap.caption(dataset, captioner="measured", progress=False)
    on = ["embed-regions", "--dataset", dataset.name]
    on += ["--weights", str(checkpoint), "--device", "cpu"]
    shown = CliRunner().invoke(main, on, catch_exceptions=False)
    assert shown.exit_code == 0 and "4 regions of 2 samples embedded" in shown.stdout
    again = CliRunner().invoke(main, [*on, "--json"], catch_exceptions=False)
    assert json.loads(again.stdout)["kept"] == 4
