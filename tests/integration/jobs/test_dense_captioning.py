from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.operators as foo
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fiftyone.operators.executor import ExecutionContext
from PIL import Image

from fiftyone_regioncap import api
from fiftyone_regioncap.captioning.patchioner import dense
from fiftyone_regioncap.captioning.patchioner.aggregation import Grid
from fiftyone_regioncap.captioning.patchioner.captioner import PatchionerCaptioner
from fiftyone_regioncap.captioning.patchioner.configuration import PatchionerOptions
from fiftyone_regioncap.captioning.patchioner.vision import FrameFeatures
from fiftyone_regioncap.cli.main import main
from fiftyone_regioncap.core.errors import (
    BackendError,
    Canceled,
    FieldError,
    OptionError,
    PromptError,
)
from fiftyone_regioncap.core.types import RegionClip
from fiftyone_regioncap.dataset import videos as datasets
from fiftyone_regioncap.dataset.regions import read_regions
from fiftyone_regioncap.jobs.dense_captioning import similarity
from fiftyone_regioncap.jobs.options import DenseCaptionOptions
from fiftyone_regioncap.propagation.flow import FlowPropagator
from tests.support import ROOT
from tests.support.patchioner import write_random_checkpoint


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("patchioner"))


@pytest.fixture(scope="module")
def captioner(weights: Path) -> PatchionerCaptioner:
    return PatchionerCaptioner.from_pretrained(weights, "cpu")


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real photo of a flower, 160 x 107."""
    from sklearn.datasets import load_sample_image

    path = tmp_path_factory.mktemp("photos") / "flower.png"
    Image.fromarray(load_sample_image("flower.jpg")).resize((160, 107)).save(path)
    return path


@pytest.fixture
def images(photo: Path, fiftyone_database: str) -> Iterator[fo.Dataset]:
    """The photo, a picture of two pixels, and one that is not there."""
    tiny = photo.with_name("tiny.png")
    Image.open(photo).resize((2, 1)).save(tiny)
    paths = [photo, tiny, photo.with_name("gone.png")]
    made = fo.Dataset()
    made.add_samples([fo.Sample(filepath=str(path)) for path in paths])
    yield made
    made.delete()


@pytest.fixture
def dataset(videos: list[Path], fiftyone_database: str) -> Iterator[fo.Dataset]:
    made, _ = datasets.open_videos("everything", videos[:1])
    yield made
    made.delete()


def describe(samples, captioner, *, progress=False, cancel=None, **options: Any):
    return api.dense_caption(
        samples,
        **options,
        captioner=captioner,
        progress=progress,
        cancel=cancel,
    )


def written(dataset: fo.Dataset, field: str) -> dict[int, Any]:
    """What the frames of the only video have in a field, by frame number."""
    dataset.reload()
    return {
        number: frame[field].to_dict()
        for number, frame in dataset.first().frames.items()
        if frame.has_field(field) and frame[field] is not None
    }


def test_all_parts_of_images_are_described_and_bad_files_stay_alone(images, captioner):
    summary = describe(images, captioner, count=6)
    assert [f.filepath for f in summary.failures] == [images.last().filepath]
    photo, tiny, gone = images
    assert [photo, tiny, gone] and summary.captions == sum(
        len(sample.everything.detections) for sample in (photo, tiny)
    )
    states = images.values("everything_status")
    assert states == ["complete", "complete", "failed"]
    assert "can't be read" in gone.everything_error
    parts = photo.everything.detections
    assert 2 <= len(parts) <= 6
    assert 1 <= len(tiny.everything.detections) <= 2
    pixels = np.asarray(Image.open(photo.filepath))
    regions = read_regions(photo, "everything", height=107, width=160)
    masks = [region.shape.mask for region in regions]
    covered = np.sum(masks, axis=0)
    assert covered.max() == 1 and covered.mean() > 0.5
    # The captioner says the same of each mask when it is asked for it alone.
    for part, mask in zip(parts, masks, strict=True):
        (alone,) = captioner.caption([RegionClip(frames=[pixels], masks=[mask])])
        assert part.caption == alone.text and part.caption_error is None
        assert part.confidence == pytest.approx(alone.confidence, abs=1e-4)
        assert part.caption_model == captioner.info.model
    assert images.has_field("everything.detections.caption")
    assert summary.run in images.list_runs()


def test_a_map_shows_where_a_text_is(images, captioner):
    view = images.limit(1)
    describe(view, captioner, query="a red flower", count=2)
    label = images.first().similarity
    assert label.query == "a red flower" and label.range == [-1, 1]
    assert label.map.shape == (107, 160) and np.isfinite(label.map).all()
    pixels = np.asarray(Image.open(images.first().filepath))
    (features,) = captioner.features([pixels])
    (vector,) = captioner.embed_text(["a red flower"])
    patches = dense.similarity_map(features, vector)
    rows, columns = patches.shape
    y, x = np.unravel_index(label.map.argmax(), label.map.shape)
    assert patches[y * rows // 107, x * columns // 160] == patches.max()
    assert label.map.max() == pytest.approx(patches.max(), abs=0.02)


@pytest.mark.parametrize(
    ("height", "width", "crop", "shape"),
    [
        (2160, 3840, False, (144, 256)),  # 4K: a full map wouldn't fit a document
        (30, 20, False, (30, 20)),  # small enough as it is
        (3000, 1, False, (256, 1)),  # a line
        (100, 400, True, (64, 256)),  # only the middle square is seen
    ],
)
def test_maps_are_small_and_of_the_frames_shape(height, width, crop, shape):
    grid = Grid(4, 4, 14, height, width, crop)
    patches = torch.nn.functional.one_hot(torch.arange(16) % 4).float()
    found = similarity(FrameFeatures(grid, patches), np.eye(4, dtype=np.float32)[0])
    assert found.shape == shape
    seen = ~np.isnan(found)
    assert seen.all() != crop
    assert found[seen].min() >= -1 and found[seen].max() <= 1


def test_every_nth_frame_of_a_video_is_described_once(dataset, captioner):
    first = describe(dataset, captioner, every=10, count=4, query="a disc")
    assert first.ok and first.captions
    parts = written(dataset, "everything")
    assert set(parts) == set(written(dataset, "similarity")) == {1, 11, 21}
    again = describe(dataset, captioner, every=10, count=4, query="a disc")
    assert (again.skipped, again.captions) == (1, 0)
    assert written(dataset, "everything") == parts
    # Another query asks for no captions, and leaves no map of the old one.
    other = describe(dataset, captioner, every=20, query="a brick")
    assert other.ok and other.captions == 0
    assert written(dataset, "everything") == parts
    maps = written(dataset, "similarity")
    assert {number: m["query"] for number, m in maps.items()} == {
        1: "a brick",
        21: "a brick",
    }
    # More frames are added to those there are; overwriting leaves only its own.
    describe(dataset, captioner, every=12, count=4)
    assert set(written(dataset, "everything")) == {1, 11, 13, 21}
    describe(dataset, captioner, every=12, count=4, overwrite=True)
    assert set(written(dataset, "everything")) == {1, 13}


def test_only_the_frames_of_clips_are_described(dataset, captioner):
    sample = dataset.first()
    sample["scene"] = fo.TemporalDetection(support=[5, 14])
    sample.save()
    describe(dataset.to_clips("scene"), captioner, every=6, count=2)
    assert set(written(dataset, "everything")) == {5, 11}
    describe(dataset, captioner, every=20, count=2)
    describe(dataset.to_clips("scene"), captioner, every=9, count=2, overwrite=True)
    assert set(written(dataset, "everything")) == {1, 5, 14, 21}


def test_a_canceled_job_goes_on_where_it_stopped(dataset, captioner):
    describe(dataset, captioner, every=6, count=3, query="a disc")
    whole = [written(dataset, field) for field in ("everything", "similarity")]
    dataset.delete_frame_fields(["everything", "similarity"])
    cancel = threading.Event()
    with pytest.raises(Canceled):
        describe(
            dataset,
            captioner,
            every=6,
            count=3,
            query="a disc",
            progress=lambda event: cancel.set(),
            cancel=cancel,
        )
    some = written(dataset, "everything")
    assert 0 < len(some) < 4
    assert dataset.first().everything_status == "partial"
    rest = describe(dataset, captioner, every=6, count=3, query="a disc")
    assert rest.captions == sum(
        len(value["detections"])
        for number, value in whole[0].items()
        if number not in some
    )
    assert [written(dataset, f) for f in ("everything", "similarity")] == whole
    assert dataset.first().everything_status == "complete"


class ByColor:
    """Segments what has the color under each point."""

    def encode(self, frame: np.ndarray) -> np.ndarray:
        return frame.astype(np.float32)

    def decode(
        self, encoded: np.ndarray, points: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        colors = encoded[points[:, 1].astype(int), points[:, 0].astype(int)]
        far = np.abs(encoded[None] - colors[:, None, None]).max(axis=3)
        logits = np.where(far < 50, 8.0, -8.0).astype(np.float32)
        return logits, np.full(len(points), 0.95, np.float32)


class ColorPropagator(FlowPropagator):
    def segmenter(self) -> ByColor:
        return ByColor()


def test_parts_may_be_what_a_segmenter_finds(dataset, captioner):
    def segmented(count: int) -> list[fo.Detection]:
        summary = api.dense_caption(
            dataset,
            every=24,
            count=count,
            overwrite=True,
            captioner=captioner,
            propagator=ColorPropagator(),
            progress=False,
        )
        assert summary.ok, summary.failures
        return dataset.reload() or dataset.first().frames[1].everything.detections

    assert len(segmented(1)) == 1
    parts = segmented(30)
    assert all(part.caption for part in parts)
    boxes = [np.multiply(part.bounding_box, [96, 72, 96, 72]) for part in parts]
    for expected in ([8, 21, 23, 23], [60, 40, 16, 16]):  # the disc and the brick
        assert any(np.abs(box - expected).max() <= 3 for box in boxes), boxes


def test_what_cropping_cuts_off_is_no_part(tmp_path, fiftyone_database, weights):
    picture = np.full((60, 200, 3), 128, np.uint8)
    picture[20:40, 5:25] = (250, 0, 0)  # left of the middle square
    picture[20:40, 90:110] = (0, 0, 250)
    Image.fromarray(picture).save(tmp_path / "wide.png")
    dataset = fo.Dataset()
    dataset.add_sample(fo.Sample(filepath=str(tmp_path / "wide.png")))
    cropping = PatchionerCaptioner.from_pretrained(
        weights, "cpu", PatchionerOptions(crop=True)
    )
    try:
        summary = api.dense_caption(
            dataset,
            query="a brick",
            captioner=cropping,
            propagator=ColorPropagator(),
            progress=False,
        )
        assert summary.ok, summary.failures
        (part,) = dataset.first().everything.detections
        assert part.bounding_box == pytest.approx([0.45, 1 / 3, 0.1, 1 / 3])
        shown = dataset.first().similarity.map != 0
        assert shown[:, 70:130].all() and not shown[:, :69].any()
    finally:
        dataset.delete()


@pytest.mark.parametrize(
    ("options", "arguments", "error", "says"),
    [
        (
            {},
            {"captioner": "measured", "weights": None},
            BackendError,
            "choose one of patchioner",
        ),
        ({}, {"propagator": "flow"}, BackendError, "choose mobilesam or sam2"),
        ({}, {"weights": "./no"}, BackendError, "no weights at"),
        ({"output": "a b"}, {}, OptionError, "no field name"),
        ({"output": "filepath"}, {}, OptionError, "FiftyOne's own"),
        ({"query": "x", "heatmap": "frames.everything"}, {}, FieldError, "overwritten"),
        ({"query": "x", "heatmap": "filepath"}, {}, OptionError, "FiftyOne's own"),
        ({"query": "red " * 99}, {}, PromptError, "77"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(
    images, weights, options, arguments, error, says
):
    arguments = {"weights": str(weights), "device": "cpu", **arguments}
    with pytest.raises(error, match=says):
        api.dense_caption(images, progress=False, **options, **arguments)
    assert not images.has_field("everything_status")


@pytest.mark.parametrize("options", [{"every": 0}, {"count": 0}])
def test_options_that_mean_nothing_are_refused(options):
    with pytest.raises(ValueError, match="at least 1"):
        DenseCaptionOptions(**options)


def test_command(dataset, weights):
    arguments = ["dense-caption", "--dataset", dataset.name, "--every", "20"]
    arguments += ["--weights", str(weights)]
    arguments += ["--query", "a disc", "--count", "3", "--device", "cpu"]
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["captions"] and not summary["failures"]
    assert set(written(dataset, "similarity")) == {1, 21}
    sample = dataset.first()
    sample.filepath = "gone.mp4"
    sample.save()
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 3 and "FAILED gone.mp4" in result.output


@pytest.fixture
def operator(fiftyone_database: str, monkeypatch) -> Any:
    """The operator, from the plugin as FiftyOne loads it."""
    monkeypatch.setattr(fo.config, "plugins_dir", str(ROOT))
    return foo.get_operator("@fiftyone-regioncap/regioncap/dense_caption")


@pytest.fixture
def form(operator: Any) -> Callable[..., dict[str, Any]]:
    def inputs(dataset: fo.Dataset, **params: Any) -> dict[str, Any]:
        context = ExecutionContext(
            {"dataset_name": dataset.name, "view": [], "params": params}
        )
        return operator.resolve_input(context).to_json()["type"]["properties"]

    return inputs


def test_form(dataset, images, form):
    asked = form(dataset)
    assert {"output", "every", "query", "captioner_weights", "propagator"} <= set(asked)
    assert asked["output"]["default"] == "everything" and "heatmap" not in asked
    asked = form(images, query="a disc", heatmap="tags", advanced=True)
    assert "another field" in asked["heatmap"]["error_message"]


def test_operator(dataset, weights, operator):
    params = {
        "captioner_weights": str(weights),
        "device": "cpu",
        "every": 12,
        "count": 3,
        "query": "a disc",
    }
    summary = operator(dataset, **params)
    assert summary.ok and set(written(dataset, "everything")) == {1, 13}
    assert operator(dataset, **params).skipped == 1
    params["overwrite"] = True
    assert operator(dataset, **params).captions == summary.captions
