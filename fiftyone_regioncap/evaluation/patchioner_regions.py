"""The paper's four tasks: what is asked, what is answered, and the dense task's boxes.

Annotation files are read as published; each gives items of one image, one region and
its reference captions. :mod:`fiftyone_regioncap.evaluation.patchioner_tasks` scores the
answers.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
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
from fiftyone_regioncap.core.errors import PromptError
from fiftyone_regioncap.core.types import Box, Frame
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

RECALLS = tuple(np.arange(100) / 100)
"""Recalls that the dense task's precision is taken at."""

MERGED_FROM = 0.7
"""Overlap from which two annotated boxes are one."""


@dataclass(frozen=True)
class Item:
    """One thing to describe.

    Attributes:
        image: id of the image, as its file is named.
        references: captions by people.
        trace: float (N, 2) of x, y as fractions of the image, for the trace task.
        boxes: pixel edges, for the dense and the region-set task.
    """

    image: str
    references: tuple[str, ...]
    trace: NDArray[np.float64] | None = None
    boxes: tuple[Box, ...] | None = None

    def region(self, height: int, width: int) -> Region:
        """The region on an image of a size in pixels.

        Region sets without boxes (the Flickr30k file has 22) are the whole image.
        """
        if self.trace is not None:
            return Points(self.trace * [width, height])
        if self.boxes:
            return BoxSet(self.boxes)
        return Whole()


@dataclass(frozen=True)
class Answer:
    """An item and its caption.

    Attributes:
        item: that was asked.
        caption: as the published scores take it, without spaces and periods around;
            empty when there is an error.
        description: with token probabilities; None when there is an error.
        error: why there is no caption.
    """

    item: Item
    caption: str = ""
    description: Description | None = None
    error: str | None = None


def load_items(
    task: Task, path: str | Path, captions: str | Path | None = None
) -> list[Item]:
    """Reads a published annotation file.

    Args:
        task: which of the four.
        path: trace: ``{image: {captions, traces}}``; dense: COCO's layout with boxes
            x1, y1, x2, y2; region-set: ``{image: {caption: [boxes]}}``; image: COCO's
            list of images.
        captions: for the image task, a COCO file of captions; None where ``path`` holds
            them itself.

    Returns:
        items, those of an image together.

    Raises:
        PromptError: when the file has another layout.
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
            spoken = (
                read if captions is None else json.loads(Path(captions).read_text())
            )
            items = list(_images(read, spoken))
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
    """Describes items, one backbone pass per image.

    The published rows are ``weighting`` mean or Gaussian of variance 1, and attention
    for whole images.

    Args:
        model: backbone and language part.
        items: those of an image together.
        open_image: reads an image by its id, uint8 (H, W, 3) RGB.
        weighting: of the patches of each region.

    Yields:
        answers in order.
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


@dataclass(frozen=True)
class Detection:
    """A described box.

    Attributes:
        box: pixel edges.
        caption: of it.
        score: how sure the model is, any scale; higher is surer.
    """

    box: Box
    caption: str
    score: float


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

    def add(self, detections: Sequence[Detection], truth: Sequence[Item]) -> None:
        """Adds an image.

        Args:
            detections: on it.
            truth: its items of the dense task, of one box each.
        """
        objects = merge_boxes(
            [(item.boxes[0], item.references) for item in truth if item.boxes]
        )
        overlaps = np.array(
            [[iou(d.box, box) for box, _ in objects] for d in detections]
        )
        found = match(
            [str(place) for place in range(len(detections))],
            [str(place) for place in range(len(objects))],
            [detection.score for detection in detections],
            overlaps.reshape(len(detections), len(objects)),
        )
        for one in found:
            said = () if one.reference is None else objects[int(one.reference)][1]
            self._pairs.append((detections[int(one.caption)].caption, said))
        self._matches += found
        self._objects += len(objects)

    def meteors(self, meteor: Meteor) -> list[float]:
        """Scores of the detections' captions, the surest of each image first.

        Args:
            meteor: scores captions against references, in [0, 1].

        Returns:
            one for each detection, against all captions of the object that it overlaps
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
        """Average precisions.

        Args:
            meteors: of the captions, from :meth:`meteors`; None looks at boxes alone.
            ious: that overlaps have to reach.
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
    """The overlap of two boxes over their union, in [0, 1]."""
    return box_iou(*((x1, y1, x2 - x1, y2 - y1) for x1, y1, x2, y2 in (first, second)))


def merge_boxes(
    boxes: Sequence[tuple[Box, Sequence[str]]],
) -> list[tuple[Box, tuple[str, ...]]]:
    """Joins annotated boxes of the same object.

    Repeatedly, the box with most others close to it becomes, with them, one object.

    Args:
        boxes: with their captions.

    Returns:
        the mean box and all captions of each object.
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
