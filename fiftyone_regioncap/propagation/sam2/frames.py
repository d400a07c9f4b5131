"""Frames for the model: decoded ahead in a thread, resized, uploaded."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fiftyone_regioncap.core.types import Frame
from fiftyone_regioncap.propagation.base import Frames

AHEAD = 2
"""Frames that are decoded while the model runs."""

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class FrameFeed:
    """Gives a video's frames as resized uint8 tensors, the next ones in advance.

    The video is read by one thread at a time.
    """

    def __init__(
        self, frames: Frames, order: Iterable[int], image_size: int, *, pin: bool
    ) -> None:
        """Starts reading.

        Args:
            frames: Frames of the video.
            order: The frames that will be asked for, in that order, or a part of them.
            image_size: Side of the square that frames are resized to, in pixels.
            pin: Whether to put them into page-locked memory, for upload to CUDA.
        """
        self._frames = frames
        self._image_size = image_size
        self._pin = pin
        self._order: Iterator[int] = iter(order)
        self._waiting: deque[tuple[int, Future[Tensor]]] = deque()
        self._reading = Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="regioncap-frames")

    def get(self, index: int) -> Tensor:
        """Returns the frame, uint8 (3, S, S).

        Frames of the order come from the thread; any other is read here.
        """
        while any(waiting == index for waiting, _ in self._waiting):
            waiting, future = self._waiting.popleft()
            if waiting == index:
                self._read_ahead()
                return future.result()
        return self._read(index)

    def skip_to(self, index: int) -> None:
        """Says that frames before ``index`` in the order are not needed any more."""
        while self._waiting and self._waiting[0][0] != index:
            self._waiting.popleft()[1].cancel()
        self._read_ahead()

    def _read_ahead(self) -> None:
        while len(self._waiting) < AHEAD:
            index = next(self._order, None)
            if index is None:
                return
            self._waiting.append((index, self._pool.submit(self._read, index)))

    def _read(self, index: int) -> Tensor:
        with self._reading:
            frame = self._frames[index]
        resized = shrink(frame, self._image_size)
        return resized.pin_memory() if self._pin else resized

    def close(self) -> None:
        """Stops reading ahead."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._waiting.clear()


def shrink(frame: Frame, image_size: int) -> Tensor:
    """Resizes a frame as the model's own processor does.

    The antialiased filter runs on integers; in floats the result would differ.

    Args:
        frame: RGB frame, uint8 (H, W, 3).
        image_size: Side of the square in pixels.

    Returns:
        uint8 (3, S, S).
    """
    # NumPy images may have negative strides or be read-only; torch wants neither.
    pixels = torch.from_numpy(np.array(frame, order="C")).permute(2, 0, 1)
    resized = F.interpolate(
        pixels.unsqueeze(0),
        size=(image_size, image_size),
        mode="bilinear",
        antialias=True,
    )
    return resized[0].contiguous()


def normalize(pixels: Tensor, device: torch.device) -> Tensor:
    """Moves uint8 (3, S, S) to the device and makes it float32 (1, 3, S, S)."""
    values = pixels.to(device, non_blocking=True).float().unsqueeze(0) / 255
    mean = torch.tensor(MEAN, device=device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=device).view(1, 3, 1, 1)
    return (values - mean) / std
