"""Sizes of media, without ffprobe."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict
from hashlib import blake2b

import fiftyone as fo

from fiftyone_regioncap.core.errors import VideoError
from fiftyone_regioncap.video.reader import read_metadata

logger = logging.getLogger(__name__)

_DIGESTED = 1 << 20


def video_metadata(sample: fo.Sample | fo.SampleView) -> fo.VideoMetadata:
    """Measures a sample's video.

    Raises:
        VideoError: When it can't be opened or decoded.
    """
    return fo.VideoMetadata(**asdict(read_metadata(sample.filepath)))


def correct_metadata(sample: fo.Sample | fo.SampleView) -> None:
    """Stores a video's metadata where it is absent or of another file.

    Without it, every look at the tracks would open the video.

    Raises:
        VideoError: When the video can't be opened or decoded.
    """
    measured, stored = video_metadata(sample), sample.metadata
    names = ("frame_width", "frame_height", "total_frame_count", "frame_rate")
    if stored is None or any(stored[name] != measured[name] for name in names):
        if stored is not None:
            logger.warning(
                "%s: the stored metadata is not the file's; it is corrected",
                sample.filepath,
            )
        sample["metadata"] = measured
        sample.save()


def file_digest(path: str) -> str:
    """Hashes a file's length, beginning and end, to detect that it was replaced.

    Raises:
        VideoError: When it can't be read.
    """
    digest = blake2b(digest_size=16)
    try:
        with open(path, "rb") as file:
            length = file.seek(0, os.SEEK_END)
            digest.update(str(length).encode())
            for start in (0, max(length - _DIGESTED, 0)):
                file.seek(start)
                digest.update(file.read(_DIGESTED))
    except OSError as error:
        raise VideoError(path, str(error)) from error
    return digest.hexdigest()


def frame_size(sample: fo.Sample | fo.SampleView) -> tuple[int, int]:
    """Returns height and width of a video's frames, from its metadata if present.

    Raises:
        VideoError: When it has none and can't be decoded.
    """
    metadata = sample.metadata
    if metadata is None or metadata.frame_height is None:
        metadata = video_metadata(sample)
    return metadata.frame_height, metadata.frame_width
