"""Evaluates Patch-ioner's four tasks by the paper's metrics.

Traces, dense captions, sets of regions and whole images (arXiv 2510.02898). Annotation
files are read as published; each gives items of one image, one region and its reference
captions. The paper gives all numbers times 100, as :meth:`TaskScores.to_markdown` does.
Its RefPAC score is not among them: it needs the weights of PAC-S.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from fiftyone_regioncap.captioning.patchioner.aggregation import (
    MEAN,
    BoxSet,
    Points,
    Region,
    Weighting,
    Whole,
)
from fiftyone_regioncap.captioning.patchioner.language import Description
from fiftyone_regioncap.captioning.patchioner.model import Patchioner, embed_regions
from fiftyone_regioncap.core.errors import PromptError, RegionCapError
from fiftyone_regioncap.core.types import Box, Frame
from fiftyone_regioncap.evaluation.captions import (
    java,
    meteor,
    score_captions,
    shared_meteor,
)
from fiftyone_regioncap.evaluation.dense import (
    IOU_THRESHOLDS,
    METEOR_THRESHOLDS,
    DenseResult,
    Match,
    box_iou,
    dense_map,
    match,
)

Task: TypeAlias = Literal["trace", "dense", "region-set", "image"]

Meteor: TypeAlias = Callable[[Sequence[tuple[str, Sequence[str]]]], Sequence[float]]
"""Scores captions against their references."""

METRICS = ("bleu", "meteor", "rouge_l", "cider")
"""What is computed unless asked otherwise; the paper has SPICE too."""

RECALLS = tuple(np.arange(100) / 100)
"""Recalls that the dense task's precision is taken at."""

MERGED_FROM = 0.7
"""Overlap from which two annotated boxes are one."""

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
_NUMBER = re.compile(r"(\d+)$")


@dataclass(frozen=True)
class Item:
    """One region to describe.

    Attributes:
        image: Id of the image, as its file is named.
        references: Captions by people.
        trace: Points x, y as fractions of the image, float (N, 2), for the trace task.
        boxes: Pixel edges x1, y1, x2, y2, for the dense and the region-set task.
    """

    image: str
    references: tuple[str, ...]
    trace: NDArray[np.float64] | None = None
    boxes: tuple[Box, ...] = ()

    def region(self, height: int, width: int) -> Region:
        """Returns the region on an image of a size in pixels.

        Region sets without boxes (the Flickr30k file has 22) are the whole image.
        """
        if self.trace is not None:
            return Points(self.trace * [width, height])
        return BoxSet(self.boxes) if self.boxes else Whole()


@dataclass(frozen=True)
class Answer:
    """An item and its caption.

    Attributes:
        item: The item.
        caption: Caption as the published scores take it, without spaces and periods
            around; empty when there is an error.
        description: Description with token probabilities; None when there is an error.
        error: Why there is no caption.
    """

    item: Item
    caption: str = ""
    description: Description | None = None
    error: str | None = None

    @property
    def score(self) -> float:
        """Score by which boxes are ordered: the reference's, else the confidence."""
        if self.description is None:
            return -1.0
        score = self.description.score
        return (self.description.confidence or 0.0) if score is None else score

    def to_json(self) -> str:
        """Converts to one line of JSON."""
        return json.dumps(
            {
                "image": self.item.image,
                "boxes": self.item.boxes or None,
                "references": self.item.references,
                "caption": self.caption,
                "confidence": self.description and self.description.confidence,
                "error": self.error,
            },
            ensure_ascii=False,
        )


def load_items(
    task: Task, path: str | Path, captions: str | Path | None = None
) -> list[Item]:
    """Reads a published annotation file.

    Args:
        task: One of the four tasks.
        path: File of the annotations. trace: ``{image: {captions, traces}}``; dense:
            COCO's layout with boxes x1, y1, x2, y2; region-set:
            ``{image: {caption: [boxes]}}``; image: COCO's list of images.
        captions: For the image task, a COCO file of captions; None if ``path`` holds
            them itself.

    Returns:
        The items; those of one image stand together.

    Raises:
        PromptError: If the file has another layout.
    """
    try:
        read = json.loads(Path(path).read_text())
        if task == "trace":
            items = list(_traces(read))
        elif task == "dense":
            items = list(_dense(read))
        elif task == "region-set":
            items = list(_region_sets(read))
        else:
            path = path if captions is None else captions
            items = list(_images(read, json.loads(Path(path).read_text())))
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise PromptError(
            f"{path} is not an annotation file of the {task} task: {error!r}"
        ) from error
    return sorted(items, key=lambda item: item.image)


def _traces(read: Mapping[str, Any]) -> Iterator[Item]:
    for image, entry in read.items():
        for caption, trace in zip(entry["captions"], entry["traces"], strict=True):
            points = [[point["x"], point["y"]] for point in trace]
            rows = np.array(points, dtype=np.float64).reshape(-1, 2)
            yield Item(image, (caption,), trace=rows)


def _dense(read: Mapping[str, Any]) -> Iterator[Item]:
    for entry in read["annotations"]:
        x1, y1, x2, y2 = entry["bbox"]
        box = (x1, y1, x2 + (x1 == x2), y2 + (y1 == y2))
        yield Item(str(entry["image_id"]), (entry["caption"],), boxes=(box,))


def _region_sets(read: Mapping[str, Any]) -> Iterator[Item]:
    for image, entry in read.items():
        for caption, boxes in entry.items():
            edges = tuple((x1, y1, x2, y2) for x1, y1, x2, y2 in boxes)
            yield Item(image, (caption,), boxes=edges)


def _images(read: Mapping[str, Any], spoken: Mapping[str, Any]) -> Iterator[Item]:
    captions = defaultdict(list)
    for entry in spoken["annotations"]:
        captions[entry["image_id"]].append(entry["caption"])
    for entry in read["images"]:
        yield Item(str(entry["id"]), tuple(captions[entry["id"]]))


def answer(
    model: Patchioner,
    items: Iterable[Item],
    open_image: Callable[[str], Frame],
    weighting: Weighting = MEAN,
) -> Iterator[Answer]:
    """Describes items, with one backbone pass per image.

    The published rows are ``weighting`` mean or Gaussian of variance 1, and attention
    for whole images.

    Args:
        model: Backbone and language part.
        items: Items to describe; those of one image stand together.
        open_image: Reads an image by its id, uint8 (H, W, 3) RGB.
        weighting: Weighting of the patches of each region.

    Yields:
        Answers in the order of the items.
    """
    for image, group in groupby(items, key=lambda item: item.image):
        asked = list(group)
        (features,) = model.backbone.encode([open_image(image)])
        grid = features.grid
        embeddings, errors = [], {}
        for place, item in enumerate(asked):
            try:
                region = item.region(grid.height, grid.width)
                row = embed_regions(features, [region], weighting, compat=model.compat)
                embeddings.append(row)
            except PromptError as error:
                errors[place] = str(error)
        described = iter(
            model.language.describe(torch.cat(embeddings)) if embeddings else ()
        )
        for place, item in enumerate(asked):
            if place in errors:
                yield Answer(item, error=errors[place])
                continue
            description = next(described)
            text = (description.text or "").strip(" .")
            yield Answer(item, text, description)


@dataclass
class DenseTask:
    """The dense task's score: mean average precision over overlaps and METEOR.

    Johnson et al. 2016 (DenseCap), as later work counts: annotated boxes that overlap
    much are one object with several captions, and precision is taken at recalls from 0
    to 0.99.
    """

    _matches: list[Match] = field(default_factory=list)
    _pairs: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    _objects: int = 0

    def add(self, answers: Sequence[Answer], truth: Sequence[Item]) -> None:
        """Adds an image.

        Args:
            answers: Described boxes of the image.
            truth: Its annotated boxes, items of the dense task.
        """
        objects = merge_boxes(
            [(item.boxes[0], item.references) for item in truth if item.boxes]
        )
        overlaps = np.array(
            [[iou(one.item.boxes[0], box) for box, _ in objects] for one in answers]
        )
        found = match(
            [str(number) for number in range(len(answers))],
            [str(number) for number in range(len(objects))],
            [one.score for one in answers],
            overlaps.reshape(len(answers), len(objects)),
        )
        for one in found:
            said = () if one.reference is None else objects[int(one.reference)][1]
            self._pairs.append((answers[int(one.caption)].caption, said))
        self._matches += found
        self._objects += len(objects)

    def meteors(self, meteor: Meteor) -> list[float]:
        """Scores the captions, the most confident of each image first.

        Args:
            meteor: Scores captions against references, in [0, 1].

        Returns:
            A score for each box, against all captions of the object that it overlaps
            most; 0 where it overlaps none.
        """
        asked = [place for place, (_, said) in enumerate(self._pairs) if said]
        scores = [0.0] * len(self._pairs)
        for place, score in zip(
            asked, meteor([self._pairs[place] for place in asked]), strict=True
        ):
            scores[place] = score
        return scores

    def result(
        self,
        meteors: Sequence[float] | None = None,
        *,
        ious: Sequence[float] = IOU_THRESHOLDS,
    ) -> DenseResult:
        """Computes average precisions.

        Args:
            meteors: Scores of the captions, from :meth:`meteors`; None for the boxes
                alone.
            ious: Thresholds that overlaps have to reach.
        """
        boxes_alone = meteors is None
        return dense_map(
            self._matches,
            [0.0] * len(self._matches) if meteors is None else meteors,
            self._objects,
            iou_thresholds=ious,
            meteor_thresholds=(-1.0,) if boxes_alone else METEOR_THRESHOLDS,
            recalls=RECALLS,
        )


def iou(first: Box, second: Box) -> float:
    """Computes the intersection over union of two boxes, in [0, 1]."""
    return box_iou(*((x1, y1, x2 - x1, y2 - y1) for x1, y1, x2, y2 in (first, second)))


def merge_boxes(
    boxes: Sequence[tuple[Box, Sequence[str]]],
) -> list[tuple[Box, tuple[str, ...]]]:
    """Joins annotated boxes of the same object.

    Repeatedly, the box with most others close to it becomes, with them, one object.

    Args:
        boxes: Boxes with their captions.

    Returns:
        The mean box and all captions of each object.
    """
    left = list(boxes)
    merged = []
    while left:
        close = np.array([[iou(a, b) >= MERGED_FROM for b, _ in left] for a, _ in left])
        members = np.flatnonzero(close[close.sum(axis=1).argmax()])
        mean = np.mean([left[n][0] for n in members], axis=0)
        x1, y1, x2, y2 = (float(edge) for edge in mean)
        captions = tuple(caption for n in members for caption in left[n][1])
        merged.append(((x1, y1, x2, y2), captions))
        gone = set(members.tolist())
        left = [entry for n, entry in enumerate(left) if n not in gone]
    return merged


@dataclass(frozen=True)
class TaskScores:
    """Scores of a task.

    Attributes:
        task: One of the four tasks.
        items: Number of items.
        failed: Number of items without a caption; they count as empty captions.
        metrics: Metrics over all items: BLEU-1 to 4, METEOR, ROUGE-L and SPICE in
            [0, 1], CIDEr up to 10; ``meteor_of_boxes`` is the mean of the dense task's
            own METEOR.
        dense: Mean average precision in [0, 1], for the dense task; None elsewhere, or
            without Java, which METEOR needs.
        detection: Mean average precision of the boxes alone, for the dense task.
        notes: Notes on what wasn't possible or differs from the paper.
    """

    task: Task
    items: int
    failed: int
    metrics: dict[str, float]
    dense: DenseResult | None = None
    detection: float | None = None
    notes: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Converts to plain values, for JSON."""
        values = asdict(self)
        values["dense"] = None
        if self.dense is not None:
            values["dense"] = self.dense.mean
            values["dense_by_threshold"] = [
                {"iou": overlap, "meteor": said, "ap": value}
                for (overlap, said), value in self.dense.by_threshold.items()
            ]
        return values

    def to_markdown(self) -> str:
        """Formats a table, times 100 as in the paper."""
        rows = dict(self.metrics)
        if self.dense is not None:
            rows["mAP"] = self.dense.mean
        if self.detection is not None:
            rows["mAP of boxes alone"] = self.detection
        lines = [
            f"**{self.items}** items of the {self.task} task, {self.failed} without a "
            "caption",
            "",
            "| metric | x 100 |",
            "|---|---|",
            *(f"| {name} | {100 * value:.2f} |" for name, value in rows.items()),
        ]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)]).rstrip()


def evaluate_task(
    task: Task,
    annotations: str | Path,
    images: str | Path,
    model: Patchioner,
    *,
    captions: str | Path | None = None,
    weighting: Weighting = MEAN,
    metrics: Sequence[str] = METRICS,
    limit: int | None = None,
    listener: Callable[[Answer], None] | None = None,
) -> TaskScores:
    """Describes the items of an annotation file, and scores the captions.

    Args:
        task: One of the four tasks.
        annotations: The published file; see :func:`load_items`.
        images: Folder of the images, subfolders included.
        model: Backbone and language part; ``compat="reference"`` for the published
            numbers.
        captions: For the image task, a COCO file of captions.
        weighting: Weighting of the patches of each region.
        metrics: Some of :data:`fiftyone_regioncap.evaluation.captions.METRICS`.
        limit: Maximum number of images, the first ones; None for all.
        listener: Called with every answer.

    Raises:
        PromptError: If the file has another layout.
        RegionCapError: If an image is missing or no image, there is nothing to
            describe, or a metric is unknown.
        BackendError: If pycocoevalcap isn't there.
    """
    items = load_items(task, annotations, captions)
    groups = groupby(items, key=lambda item: item.image)
    items = [item for _, own in islice(groups, limit) for item in own]
    open_image = partial(_open, image_files(images), Path(images))
    answers = []
    for one in answer(model, items, open_image, weighting):
        if listener is not None:
            listener(one)
        answers.append(one)
    return score_answers(task, answers, metrics)


@shared_meteor()
def score_answers(
    task: Task, answers: Iterable[Answer], metrics: Sequence[str] = METRICS
) -> TaskScores:
    """Scores captions of a task as the paper does.

    Items without a caption count as empty captions. In the dense task, boxes are
    ordered by the reference's score where there is one, else by confidence.

    Args:
        task: One of the four tasks.
        answers: Answers; those of one image stand together.
        metrics: Some of :data:`fiftyone_regioncap.evaluation.captions.METRICS`.

    Raises:
        RegionCapError: If there are no answers, or a metric is unknown.
        BackendError: If pycocoevalcap isn't there.
    """
    said = list(answers)
    if not said:
        raise RegionCapError(f"there is nothing to describe in the {task} task")
    keys = [str(place) for place in range(len(said))]
    scored = score_captions(
        dict(zip(keys, (one.caption for one in said), strict=True)),
        dict(zip(keys, (one.item.references for one in said), strict=True)),
        metrics,
    )
    notes, overall = list(scored.notes), dict(scored.overall)
    dense, detection = None, None
    if task == "dense":
        boxes = DenseTask()
        for _, group in groupby(said, key=lambda one: one.item.image):
            own = list(group)
            boxes.add(own, [one.item for one in own])
        detection = boxes.result().mean
        if java() is None:
            notes.append("mAP left out: its METEOR needs Java")
        else:
            meteors = boxes.meteors(partial(meteor, raw=True))
            dense = boxes.result(meteors)
            overall["meteor_of_boxes"] = sum(meteors) / len(meteors)
    return TaskScores(
        task=task,
        items=len(said),
        failed=sum(one.error is not None for one in said),
        metrics=overall,
        dense=dense,
        detection=detection,
        notes=tuple(notes),
    )


def image_files(folder: str | Path) -> dict[str, Path]:
    """Finds the images of a folder by what annotation files call them.

    That is the file's name, with or without its suffix, or the number that it ends in
    (``COCO_val2014_000000000042.jpg`` is 42).

    Args:
        folder: Folder of images, subfolders included.

    Raises:
        RegionCapError: If it is no folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise RegionCapError(f"{root} is no folder of images")
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in _SUFFIXES)
    numbers: dict[str, Path] = {}
    for path in paths:
        number = _NUMBER.search(path.stem)
        if number:
            numbers.setdefault(str(int(number[1])), path)
    names = {name: path for path in reversed(paths) for name in (path.stem, path.name)}
    return {**numbers, **names}


def _open(files: dict[str, Path], folder: Path, image: str) -> Frame:
    from fiftyone_regioncap.dataset.clips import read_image

    if image not in files:
        raise RegionCapError(
            f"{folder} has no image {image}; give the folder of the images that the "
            "annotations are of, or --limit to those that are there"
        )
    return read_image(str(files[image]))
