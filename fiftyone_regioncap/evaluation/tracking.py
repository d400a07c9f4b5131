"""Compares tracks by HOTA and IDF1, whatever the ids of the predicted ones.

HOTA (Luiten et al., IJCV 2020) is the geometric mean of detection and association
accuracy over 19 thresholds of overlap; IDF1 (Ristani et al., ECCV workshops 2016) is
the F1 of the frames that the best one-to-one assignment of tracks explains at an
overlap of 0.5. Both as TrackEval computes them, over all videos together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

THRESHOLDS = np.arange(0.05, 0.99, 0.05)
_TINY = np.finfo(float).eps

FrameOverlaps: TypeAlias = tuple[Sequence[int], Sequence[int], NDArray[np.float64]]
"""Ids of the true and of the predicted objects of a frame, and their IoU as (true,
predicted)."""


class TrackingScores:
    """Collects videos, and computes HOTA and IDF1 over all of them."""

    def __init__(self) -> None:
        shape = len(THRESHOLDS)
        self._found = np.zeros(shape)
        self._missed = np.zeros(shape)
        self._wrong = np.zeros(shape)
        self._association = np.zeros(shape)
        self._identity = np.zeros(3)  # true positives, false negatives and positives

    def add(self, frames: Iterable[FrameOverlaps]) -> None:
        """Adds a video.

        Args:
            frames: Overlaps of each frame, those without objects included.
        """
        listed = list(frames)
        truth = _numbered(true for true, _, _ in listed)
        guess = _numbered(said for _, said, _ in listed)
        counts = np.zeros(len(truth)), np.zeros(len(guess))
        shared = np.zeros((len(truth), len(guess)))
        overlapping = np.zeros_like(shared)
        numbered = []
        for true, said, iou in listed:
            rows = np.array([truth[i] for i in true], dtype=int)
            columns = np.array([guess[i] for i in said], dtype=int)
            counts[0][rows] += 1
            counts[1][columns] += 1
            place = np.ix_(rows, columns)
            sums = iou.sum(axis=0)[None] + iou.sum(axis=1)[:, None] - iou
            near = sums > _TINY
            shared[place] += np.divide(iou, sums, out=np.zeros_like(iou), where=near)
            overlapping[place] += iou >= 0.5
            numbered.append((rows, columns, iou))
        self._add_identity(overlapping, *counts)
        aligned = shared / np.maximum(counts[0][:, None] + counts[1] - shared, _TINY)
        matches = np.zeros((len(THRESHOLDS), *shared.shape))
        found = np.zeros(len(THRESHOLDS))
        for rows, columns, iou in numbered:
            score = aligned[np.ix_(rows, columns)] * iou
            own, other = linear_sum_assignment(-score)
            right = iou[own, other] >= THRESHOLDS[:, None] - _TINY
            number = right.sum(axis=1)
            found += number
            self._missed += len(rows) - number
            self._wrong += len(columns) - number
            for threshold, kept in enumerate(right):
                matches[threshold, rows[own[kept]], columns[other[kept]]] += 1
        self._found += found
        union = counts[0][:, None] + counts[1] - matches
        accuracy = matches * matches / np.maximum(union, 1)
        self._association += accuracy.sum(axis=(1, 2))

    def _add_identity(
        self,
        overlapping: NDArray[np.float64],
        truth: NDArray[np.float64],
        guess: NDArray[np.float64],
    ) -> None:
        """Adds the frames that the best assignment of whole tracks explains."""
        own, other = linear_sum_assignment(-overlapping)
        right = overlapping[own, other].sum()
        self._identity += right, truth.sum() - right, guess.sum() - right

    def result(self) -> dict[str, float]:
        """Computes ``hota``, its parts ``deta`` and ``assa``, and ``idf1``."""
        total = np.maximum(self._found + self._missed + self._wrong, 1)
        detection = self._found / total
        association = self._association / np.maximum(self._found, 1)
        right, missed, wrong = self._identity
        return {
            "hota": float(np.sqrt(detection * association).mean()),
            "deta": float(detection.mean()),
            "assa": float(association.mean()),
            "idf1": float(right / max(1.0, right + 0.5 * missed + 0.5 * wrong)),
        }


def _numbered(groups: Iterable[Sequence[int]]) -> dict[int, int]:
    """Numbers ids in the order of their first frame."""
    numbers: dict[int, int] = defaultdict(lambda: len(numbers))
    for ids in groups:
        for one in ids:
            numbers[one]
    return dict(numbers)
