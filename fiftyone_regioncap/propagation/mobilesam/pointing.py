"""MobileSAM as a segmenter of points, for proposals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fiftyone_regioncap.core.types import Frame
from fiftyone_regioncap.propagation.mobilesam.segmenter import Grid, MobileSam


class PointSegmenter:
    """Segments points with MobileSAM; see ``proposals.Segmenter``."""

    def __init__(self, model: MobileSam, side: int) -> None:
        """Takes a model.

        Args:
            model: MobileSAM model.
            side: Longest side of the encoder's input in pixels.
        """
        self._model = model
        self._side = side

    def encode(self, frame: Frame) -> tuple[Tensor, Grid]:
        """Returns the embedding of a frame, and its grid."""
        grid = Grid(frame.shape[0], frame.shape[1], self._side)
        return self._model.encode(frame, side=self._side), grid

    def decode(
        self, encoded: tuple[Tensor, Grid], points: NDArray[np.float64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns logits (N, H, W) and predicted IoU (N,) of what is under N points."""
        embedding, grid = encoded
        decoded = self._model.decode(
            embedding,
            grid,
            points=points[:, None],
            point_signs=np.ones((len(points), 1), dtype=np.int64),
            best_of_three=True,
        )
        return decoded.logits.float().cpu().numpy(), decoded.iou.float().cpu().numpy()
