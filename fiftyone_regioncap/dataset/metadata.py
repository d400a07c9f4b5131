"""Describes videos by what their files say, and corrects the metadata stored."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b

import fiftyone as fo

from fiftyone_regioncap.core.errors import VideoError
from fiftyone_regioncap.dataset.store import Store
from fiftyone_regioncap.dataset.targets import name_of
from fiftyone_regioncap.video.reader import VideoReader, read_metadata
from fiftyone_regioncap.video.sources import VideoMetadata
from fiftyone_regioncap.video.timeline import Timeline

_NAMES = ("frame_width", "frame_height", "total_frame_count", "frame_rate")
_SAME = 1e-4  # relative, of rates that were computed in another way
_DIGESTED = 1 << 20


@dataclass(frozen=True)
class Description:
    """What the file of a video says of it.

    Attributes:
        metadata: Size, rate, length and encoding.
        timeline: When its frames are shown.
    """

    metadata: VideoMetadata
    timeline: Timeline


def describe(sample: fo.Sample | fo.SampleView) -> Description:
    """Describes a sample's video by its file; by the stored metadata if that is gone.

    Raises:
        VideoError: When it can't be decoded, and its metadata is not stored either.
    """
    try:
        with VideoReader(sample.filepath, cache_frames=1) as reader:
            return Description(reader.metadata, reader.timeline)
    except VideoError:
        stored = sample.metadata
        if stored is None or any((stored[name] or 0) <= 0 for name in _NAMES):
            raise
        known = {field.name: stored[field.name] for field in fields(VideoMetadata)}
        metadata = VideoMetadata(**known)
        count, rate = metadata.total_frame_count, metadata.frame_rate
        return Description(metadata, Timeline.constant(count, rate))


def video_metadata(sample: fo.Sample | fo.SampleView) -> fo.VideoMetadata:
    """Measures a sample's video.

    Raises:
        VideoError: When it can't be opened or decoded.
    """
    return fo.VideoMetadata(**asdict(read_metadata(sample.filepath)))


def correct_metadata(sample: fo.Sample | fo.SampleView) -> list[str]:
    """Stores a video's metadata where it is absent, or not what the file says.

    FiftyOne's own is wrong for rotated videos, and for containers that state no length
    or a wrong one.

    Returns:
        What a person should know: that it was wrong, and that FiftyOne's App will show
        labels on other frames than those that they are about.

    Raises:
        VideoError: When the video can't be opened or decoded.
    """
    found, stored = describe(sample), sample.metadata
    measured = asdict(found.metadata)
    wrong = [
        f"{name.replace('_', ' ')} {stored[name]}, not {measured[name]}"
        for name in _NAMES
        if stored is not None
        and stored[name] is not None
        and not math.isclose(stored[name], measured[name], rel_tol=_SAME)
    ]
    fixed = sample._dataset.get_field("metadata").read_only
    incomplete = stored is None or any(stored[name] is None for name in _NAMES)
    if (wrong or incomplete) and not fixed:
        document = fo.VideoMetadata(**measured).to_dict()
        Store.of(sample).write_sample({"metadata": document})
    notes = []
    if wrong:
        said = ", ".join(wrong)
        done = "left the wrong metadata, as it is read-only"
        done = done if fixed else "corrected the stored metadata"
        notes.append(f"{name_of(sample)}: {done} ({said})")
    count = found.metadata.total_frame_count
    past = Store.of(sample).count_frames(count)
    if past:
        notes.append(
            f"{name_of(sample)}: the video ends with frame {count}; what {past} later "
            "frames of the dataset hold is left out"
        )
    misplaced = found.timeline.misplaced()
    if misplaced:
        notes.append(
            f"{name_of(sample)}: FiftyOne's App shows the labels of {misplaced} of "
            f"{count} frames on other frames, as the video "
            + ("starts late" if found.timeline.start else "has a variable frame rate")
            + "; 'Conform videos' (`regioncap conform`) makes a copy that it shows "
            "right"
        )
    return notes


def inside(support: tuple[int, int] | None, metadata: VideoMetadata) -> tuple[int, int]:
    """Returns the part of a range of frames that a video has.

    Args:
        support: (first, last) 0-based frames, inclusive; None means all.
        metadata: Metadata of the video.
    """
    end = metadata.total_frame_count - 1
    first, last = (0, end) if support is None else support
    return first, min(last, end)


class WatchedFile:
    """Notices that a file was replaced while a job reads it.

    Args:
        path: The file, or a folder of images.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._state = self._stat()

    def require_unchanged(self) -> None:
        """Makes sure that the file is the one that the job began with.

        Raises:
            VideoError: When it was replaced, changed or deleted.
        """
        if self._stat() != self._state:
            raise VideoError(
                self._path,
                "the file was replaced while a job read it; run the job again",
            )

    def _stat(self) -> tuple[int, ...]:
        try:
            found = os.stat(self._path)
        except OSError as error:
            raise VideoError(self._path, str(error)) from error
        return found.st_ino, found.st_dev, found.st_size, found.st_mtime_ns


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
    """Returns height and width of a video's frames; see :func:`describe`.

    Raises:
        VideoError: As :func:`describe`.
    """
    metadata = describe(sample).metadata
    return metadata.frame_height, metadata.frame_width
