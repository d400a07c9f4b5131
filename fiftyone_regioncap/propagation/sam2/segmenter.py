"""A tracker's image part on its own: masks for points on one frame."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from fiftyone_regioncap.core.types import Frame
from fiftyone_regioncap.propagation.sam2.frames import normalize, shrink
from fiftyone_regioncap.propagation.sam2.model import Features, TrackerModel


class FrameSegmenter:
    """Segments points with a tracker; see ``proposals.Segmenter``."""

    def __init__(self, model: TrackerModel, dtype: torch.dtype) -> None:
        self._model = model
        self._dtype = dtype

    def encode(self, frame: Frame) -> tuple[Features, tuple[int, int]]:
        """Returns a frame's features and size; the frame is uint8 (H, W, 3) RGB."""
        small = shrink(frame, self._model.image_size)
        with self._model.arithmetic(self._dtype):
            features = self._model.encode_image(normalize(small, self._model.device))
        return features, (frame.shape[0], frame.shape[1])

    def decode(
        self,
        encoded: tuple[Features, tuple[int, int]],
        points: NDArray[np.float64],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns logits (N, h, w) and predicted IoU (N,) of what is under N points."""
        features, (height, width) = encoded
        model = self._model
        scale = np.array([model.image_size / width, model.image_size / height])
        places = torch.from_numpy(points * scale).float().to(model.device)
        labels = torch.ones(len(points), 1, dtype=torch.int32, device=model.device)
        with model.arithmetic(self._dtype):
            decoded = model.decode(
                features,
                model.without_memory(features).expand(len(points), -1, -1, -1),
                points=(places.unsqueeze(1), labels),
                multimask=model.multimask(1, starting=True),
            )
        return decoded.logits.cpu().numpy(), decoded.iou.cpu().numpy()
