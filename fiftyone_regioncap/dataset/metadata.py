"""Sizes of media, without ffprobe."""

from __future__ import annotations

from dataclasses import asdict

import fiftyone as fo

from fiftyone_regioncap.video.reader import read_metadata


def video_metadata(sample: fo.Sample | fo.SampleView) -> fo.VideoMetadata:
    """Measures a sample's video.

    Raises:
        VideoError: when it can't be opened or decoded.
    """
    return fo.VideoMetadata(**asdict(read_metadata(sample.filepath)))


def frame_size(sample: fo.Sample | fo.SampleView) -> tuple[int, int]:
    """Height and width of a video's frames, from its metadata where it has some.

    Raises:
        VideoError: when it has none and can't be decoded.
    """
    metadata = sample.metadata
    if metadata is None or metadata.frame_height is None:
        metadata = video_metadata(sample)
    return metadata.frame_height, metadata.frame_width
