"""Datasets of images that are frames of videos."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import fiftyone as fo

from fiftyone_regioncap.video.reader import VideoReader


def image_samples(
    video: Path, folder: Path, count: int, marked: int
) -> Iterator[fo.Sample]:
    """Yields the first frames of a video as images, in order.

    Args:
        video: A video of :func:`tests.conftest.videos`, whose disc is object 7.
        folder: Folder to write the images to.
        count: Number of frames.
        marked: 0-based frame on which a box is around the disc, in ``prompts``.
    """
    with VideoReader(video) as reader:
        for number in range(count):
            file = folder / video.stem / f"{number}.png"
            file.parent.mkdir(exist_ok=True)
            cv2.imwrite(str(file), reader[number][:, :, ::-1])
            sample = fo.Sample(filepath=str(file), scene=video.stem, number=number)
            if number == marked:
                box = [10 / 96, 20 / 72, 24 / 96, 24 / 72]
                label = fo.Detection(label="disc", bounding_box=box, index=7)
                sample["prompts"] = fo.Detections(detections=[label])
            yield sample
