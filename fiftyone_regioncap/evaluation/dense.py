"""Computes dense captioning mAP, which judges both localization and description.

After DenseCap (Johnson, Karpathy and Fei-Fei, CVPR 2016), as later work counts:
references that overlap much are one object with several texts; each caption, the most
confident first, belongs to the object that it overlaps most; it is right when no other
has taken that object, the overlap reaches a threshold and METEOR is over another.
Average precision is interpolated at the recalls 0, 0.01, ... 0.99 and averaged over all
pairs of thresholds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.core.types import Box

IOU_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
METEOR_THRESHOLDS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25)
RECALLS = tuple(np.arange(100) / 100)

MERGED_FROM = 0.7
"""Overlap from which two references are of one object."""


@dataclass(frozen=True)
class Match:
    """One caption with the reference that it overlaps most.

    Attributes:
        caption: Id of the caption.
        reference: Id of the reference; None when it overlaps none.
        iou: Their overlap in [0, 1].
        first: Whether no more confident caption has taken the reference.
        confidence: Value that captions are ordered by.
    """

    caption: str
    reference: str | None
    iou: float
    first: bool
    confidence: float


def merged(overlaps: NDArray[np.float64]) -> list[list[int]]:
    """Groups references of the same object.

    Repeatedly, the reference with most others close to it becomes one object with them.

    Args:
        overlaps: (references, references), in [0, 1].

    Returns:
        The references of each object.
    """
    left = np.arange(len(overlaps))
    groups = []
    while len(left):
        close = overlaps[np.ix_(left, left)] >= MERGED_FROM
        np.fill_diagonal(close, True)
        chosen = close[close.sum(axis=0).argmax()]
        groups.append(left[chosen].tolist())
        left = left[~chosen]
    return groups


def match(
    captions: Sequence[str],
    references: Sequence[str],
    confidences: Sequence[float],
    ious: NDArray[np.float64],
) -> list[Match]:
    """Gives each caption of one video or image the reference that it overlaps most.

    Args:
        captions: Ids of the captions.
        references: Ids of the references.
        confidences: Confidence of each caption.
        ious: (captions, references), in [0, 1].

    Returns:
        One match for each caption, the most confident first.
    """
    taken: set[int] = set()
    matches = []
    for place in sorted(range(len(captions)), key=lambda i: -confidences[i]):
        best = int(np.argmax(ious[place])) if len(references) else -1
        iou = float(ious[place, best]) if best >= 0 else 0.0
        if iou <= 0:
            found = Match(captions[place], None, 0.0, False, confidences[place])
        else:
            found = Match(
                captions[place],
                references[best],
                iou,
                best not in taken,
                confidences[place],
            )
            taken.add(best)
        matches.append(found)
    return matches


@dataclass(frozen=True)
class DenseResult:
    """Average precisions.

    Attributes:
        mean: Mean over all pairs of thresholds, in [0, 1].
        by_threshold: Average precision by (IoU, METEOR).
    """

    mean: float
    by_threshold: dict[tuple[float, float], float]


def dense_map(
    matches: Iterable[Match],
    meteors: Sequence[float],
    references: int,
    *,
    iou_thresholds: Sequence[float] = IOU_THRESHOLDS,
    meteor_thresholds: Sequence[float] = METEOR_THRESHOLDS,
    recalls: Sequence[float] = RECALLS,
) -> DenseResult:
    """Computes mean average precision over overlaps and METEOR.

    Args:
        matches: Matches of all videos or images, in any order.
        meteors: METEOR of each match's caption against its reference; anything where
            there is no reference.
        references: Number of references, the missed ones included.
        iou_thresholds: Thresholds that overlaps have to reach.
        meteor_thresholds: Thresholds that METEOR has to be over.
        recalls: Recalls that precision is taken at.
    """
    found = list(matches)
    order = sorted(range(len(found)), key=lambda i: -found[i].confidence)
    first = np.array([found[i].first for i in order], bool)
    iou = np.array([found[i].iou for i in order], float)
    meteor = np.array([meteors[i] for i in order], float)
    table = {
        (least, score): _average_precision(
            first & (iou >= least) & (meteor > score), references, recalls
        )
        for least, score in product(iou_thresholds, meteor_thresholds)
    }
    return DenseResult(float(np.mean(list(table.values()))), table)


@dataclass(frozen=True)
class Detection:
    """A box that was described.

    Attributes:
        box: Pixel edges.
        confidence: Value that boxes are ordered by.
        caption: The description.
    """

    box: Box
    confidence: float
    caption: str


@dataclass
class ImageMatches:
    """Matches of the boxes of images, collected image by image.

    Attributes:
        matches: Matches of all boxes, the most confident of each image first.
        pairs: Caption of each, with all references of the object it overlaps most.
        objects: Number of annotated objects. As in the published evaluator, those of
            images without any box that was described don't count.
    """

    matches: list[Match] = field(default_factory=list)
    pairs: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    objects: int = 0

    def add(
        self, detections: Sequence[Detection], truth: Sequence[tuple[Box, str]]
    ) -> None:
        """Adds an image.

        Args:
            detections: Its described boxes.
            truth: Its annotated boxes with a caption each.
        """
        if not detections:
            return
        boxes = [box for box, _ in truth]
        overlaps = [[edges_iou(a, b) for b in boxes] for a in boxes]
        groups = merged(np.array(overlaps, float).reshape(len(boxes), len(boxes)))
        means = [np.mean([boxes[i] for i in group], axis=0) for group in groups]
        ious = [[edges_iou(one.box, box) for box in means] for one in detections]
        found = match(
            [str(number) for number in range(len(detections))],
            [str(number) for number in range(len(groups))],
            [one.confidence for one in detections],
            np.array(ious, float).reshape(len(detections), len(groups)),
        )
        for one in found:
            group = [] if one.reference is None else groups[int(one.reference)]
            said = tuple(truth[i][1] for i in group)
            self.pairs.append((detections[int(one.caption)].caption, said))
        self.matches += found
        self.objects += len(groups)

    def placed(self) -> list[tuple[str, tuple[str, ...]]]:
        """Returns the pairs of boxes that overlap an object, for METEOR."""
        return [pair for pair in self.pairs if pair[1]]

    def result(self, meteors: Sequence[float] | None = None) -> DenseResult:
        """Computes average precisions.

        Args:
            meteors: METEOR of each of :meth:`placed`; None to judge the boxes alone.
        """
        if meteors is None:
            scores = [0.0] * len(self.pairs)
        else:
            scored = iter(meteors)
            scores = [next(scored) if said else 0.0 for _, said in self.pairs]
        return dense_map(
            self.matches,
            scores,
            self.objects,
            meteor_thresholds=(-1.0,) if meteors is None else METEOR_THRESHOLDS,
        )


def _average_precision(
    right: NDArray[np.bool_], references: int, recalls: Sequence[float]
) -> float:
    """Averages the best precisions at some recalls or higher ones.

    Args:
        right: Whether each caption is right, the most confident first.
        references: Number of references that could have been found.
        recalls: Recalls in [0, 1].
    """
    if not references or not len(right):
        return 0.0
    hits = np.cumsum(right)
    recall = hits / references
    precision = hits / np.arange(1, len(right) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, np.asarray(recalls) - 1e-12)
    return float(np.mean(np.append(best, 0.0)[places]))


def support_iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Returns the IoU of two spans of frames, first and last frame included."""
    shared = min(one[1], other[1]) - max(one[0], other[0]) + 1
    if shared <= 0:
        return 0.0
    lengths = one[1] - one[0] + other[1] - other[0] + 2
    return shared / (lengths - shared)


def box_iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Returns the IoU of two boxes, each as [left, top, width, height]."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / (one[2] * one[3] + other[2] * other[3] - shared)


def edges_iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Returns the IoU of two boxes, each as pixel edges."""
    (a, b, c, d), (e, f, g, h) = one, other
    return box_iou((a, b, c - a, d - b), (e, f, g - e, h - f))
