"""Benchmarks as FiftyOne datasets: their regions, and the results of runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.core.view as fov

from fiftyone_regioncap.core.errors import FieldError, RegionCapError
from fiftyone_regioncap.core.markdown import escape
from fiftyone_regioncap.core.types import Mask, crop_mask
from fiftyone_regioncap.dataset.caption_fields import CaptionField
from fiftyone_regioncap.dataset.geometry import relative_box
from fiftyone_regioncap.dataset.runs import record_run
from fiftyone_regioncap.evaluation.benchmarks.base import Benchmark, Item
from fiftyone_regioncap.evaluation.benchmarks.media import (
    find_media,
    is_image,
    open_image,
)
from fiftyone_regioncap.evaluation.benchmarks.predictions import SHOWN, Predictions
from fiftyone_regioncap.evaluation.benchmarks.reading import BenchmarkError
from fiftyone_regioncap.evaluation.benchmarks.report import BenchmarkReport
from fiftyone_regioncap.video.reader import read_metadata

TRUTH = "truth"
"""Field of a benchmark's items: regions of images, or spans of videos."""

TRACKS = "tracks"
"""Frame field of the regions of videos."""

_INFO = "benchmark"


@dataclass(frozen=True)
class PreparedBenchmark:
    """What a benchmark was prepared as.

    Attributes:
        benchmark: Name of the benchmark.
        dataset: Name of the dataset.
        items: Number of items in it.
        samples: Number of its images or videos.
        missing: Number of images or videos that are not there or can't be read.
        first: What is wrong with the first of them.
    """

    benchmark: str
    dataset: str
    items: int
    samples: int
    missing: int = 0
    first: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Returns whether everything is there."""
        return not self.missing

    def to_dict(self) -> dict[str, Any]:
        """Returns the summary as JSON values."""
        return asdict(self)

    def to_markdown(self) -> str:
        """Formats the summary for people."""
        lines = [
            f"**{self.items}** items on {self.samples} samples of the dataset "
            f"{escape(self.dataset)}"
        ]
        if self.missing:
            lines.append(f"{self.missing} images or videos are not there:")
            lines += [f"- {escape(error)}" for error in self.first]
        return "\n\n".join(lines) + "\n"


def dataset_name(benchmark: Benchmark) -> str:
    """Returns the name of the dataset that a benchmark is prepared as."""
    return f"benchmark-{benchmark.name}"


def prepare(
    benchmark: Benchmark,
    folder: Path,
    media: Path,
    *,
    name: str | None = None,
    checksums: Mapping[str, str] | None = None,
    limit: int | None = None,
    overwrite: bool = False,
) -> PreparedBenchmark:
    """Makes a dataset of a benchmark's items.

    Args:
        benchmark: The benchmark.
        folder: Folder of its files.
        media: Folder of its images or videos.
        name: Name of the dataset; None for that of the benchmark.
        checksums: Checksums of the files, by which a change is noticed later.
        limit: Maximum number of items, the first ones; None for all.
        overwrite: Whether a dataset of this name is replaced.

    Raises:
        BenchmarkError: If a file is not what it should be, or no media is there.
        FieldError: If there is a dataset of this name.
    """
    name = name or dataset_name(benchmark)
    if fo.dataset_exists(name) and not overwrite:
        raise FieldError(
            f"there is a dataset {name!r} already; give another name, or overwrite it"
        )
    by_media: dict[str, list[Item]] = {}
    for item in islice(benchmark.load(folder), limit):
        by_media.setdefault(item.media, []).append(item)
    errors: list[str] = []
    items = 0

    def samples() -> Iterator[fo.Sample]:
        nonlocal items
        for own in by_media.values():
            try:
                sample = _sample(own, media)
            except RegionCapError as error:
                errors.append(str(error))
                continue
            items += len(own)
            yield sample

    if fo.dataset_exists(name):
        fo.delete_dataset(name)
    dataset = fo.Dataset(name, persistent=True)
    dataset.add_samples(samples(), dynamic=True, progress=False)
    if not len(dataset):
        fo.delete_dataset(name)
        reason = errors[0] if errors else "the files hold no items"
        raise BenchmarkError(f"nothing of {benchmark.title} can be shown: {reason}")
    dataset.info[_INFO] = {
        "name": benchmark.name,
        "folder": str(folder),
        "media": str(media),
        "checksums": dict(checksums or {}),
        "license": benchmark.license,
    }
    dataset.save()
    return PreparedBenchmark(
        benchmark.name, name, items, len(dataset), len(errors), tuple(errors[:SHOWN])
    )


def prepared(benchmark: Benchmark, name: str | None = None) -> dict[str, Any] | None:
    """Returns how a benchmark was prepared; None when it was not.

    Args:
        benchmark: The benchmark.
        name: Name of the dataset; None for that of the benchmark.

    Raises:
        FieldError: If the named dataset is not there, or none of this benchmark.
    """
    chosen = name or dataset_name(benchmark)
    known = None
    if fo.dataset_exists(chosen):
        known = fo.load_dataset(chosen).info.get(_INFO)
    if known is None or known["name"] != benchmark.name:
        if name is None:
            return None
        raise FieldError(f"the dataset {name!r} is none of {benchmark.title}")
    return {**known, "dataset": chosen}


def _sample(items: Sequence[Item], media: Path) -> fo.Sample:
    """Makes the sample of an image or video with its items."""
    path = find_media(media, items[0].media)
    sample = fo.Sample(filepath=str(path))
    if is_image(path):
        picture = open_image(media, items[0].media)
        height, width = picture.shape[:2]
        sample.metadata = fo.ImageMetadata(height=height, width=width)
        regions = [_detection(item, height, width) for item in items]
        sample[TRUTH] = fo.Detections(detections=regions)
        return sample
    if path.is_dir():
        raise BenchmarkError(
            f"{path} is a folder of frames, which the App can't show; it can be run "
            "and scored all the same"
        )
    metadata = read_metadata(path)
    sample.metadata = fo.VideoMetadata(**asdict(metadata))
    spans = []
    for index, item in enumerate(items, 1):
        instance = fo.Instance()
        frames = sorted(item.regions)
        support = [frames[0] + 1, frames[-1] + 1] if frames else [1, 1]
        spans.append(
            fo.TemporalDetection(
                support=support, index=index, instance=instance, **_texts(item)
            )
        )
        for number, region in item.regions.items():
            mask = region.mask(metadata.frame_height, metadata.frame_width)
            label = _masked(mask, label="object", index=index, instance=instance)
            frame = sample.frames[number + 1]
            known = frame[TRACKS].detections if frame.has_field(TRACKS) else []
            frame[TRACKS] = fo.Detections(detections=[*known, label])
    sample[TRUTH] = fo.TemporalDetections(detections=spans)
    return sample


def _texts(item: Item) -> dict[str, Any]:
    question = {} if item.prompt is None else {"question": item.prompt}
    return {
        "label": "object",
        "item": item.id,
        "caption": item.references[0] if item.references else None,
        "references": list(item.references),
        **question,
    }


def _detection(item: Item, height: int, width: int) -> fo.Detection:
    if not item.regions:
        return fo.Detection(bounding_box=[0, 0, 1, 1], **_texts(item))
    return _masked(item.regions[0].mask(height, width), **_texts(item))


def _masked(mask: Mask, **attributes: Any) -> fo.Detection:
    """Makes a detection of a full-frame mask; an empty one has no area."""
    cropped = crop_mask(mask)
    if cropped is None:
        return fo.Detection(bounding_box=[0, 0, 0, 0], **attributes)
    box, inside = cropped
    place = relative_box(box, *mask.shape)
    return fo.Detection(
        bounding_box=place, mask=None if inside.all() else inside, **attributes
    )


def store(report: BenchmarkReport, predictions: Path) -> None:
    """Keeps a report with its dataset: a custom run, and texts and scores of items.

    Args:
        report: The report; its dataset was prepared.
        predictions: The file that was scored.
    """
    dataset = fo.load_dataset(report.dataset)
    field_ = CaptionField.of(dataset, TRUTH)
    ids = {
        str(label["item"]): str(label["_id"])
        for _, labels in field_.documents(("item",))
        for label in labels
    }
    texts: dict[str, str] = {}
    if report.benchmark.pair is None:
        with Predictions(predictions) as found:
            items = (
                Item(
                    str(label["item"]),
                    str(sample["filepath"]),
                    references=tuple(label.get("references") or ()),
                )
                for sample, labels in field_.documents(
                    ("item", "references"), paths=("filepath",)
                )
                for label in labels
            )
            texts = {
                ids[one.item.id]: one.prediction
                for one in found.pair(items, whole=False, skip=True)
                if isinstance(one.prediction, str)
            }
    scores = {ids[key]: float(v) for key, v in report.each.items() if key in ids}
    field_.write(f"{report.key}_caption", texts, fo.StringField)
    field_.write(f"{report.key}_score", scores, fo.FloatField)
    record_run(
        dataset,
        report.key,
        {"benchmark": report.benchmark.name, **report.settings},
        {"report": report.to_dict()},
    )


def worst(report: BenchmarkReport, k: int = 25) -> fov.DatasetView:
    """Returns the items with the lowest scores as patches or clips, lowest first.

    Args:
        report: A report that is kept with a dataset.
        k: Maximum number of items.

    Raises:
        FieldError: If the benchmark was not prepared as a dataset.
    """
    if report.dataset is None:
        raise FieldError(
            f"{report.benchmark.title} was not prepared as a dataset; run `regioncap "
            f"benchmark prepare {report.benchmark.name}` and score it again"
        )
    field_ = CaptionField.of(fo.load_dataset(report.dataset), TRUTH)
    name = f"{report.key}_score"
    scored = [
        (label[name], str(label["_id"]))
        for _, labels in field_.documents((name,))
        for label in labels
        if label.get(name) is not None
    ]
    return field_.view([label_id for _, label_id in sorted(scored)[:k]])
