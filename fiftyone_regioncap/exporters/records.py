"""What an export is made of: one video at a time, its masks frame by frame."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import get_args

import fiftyone.core.collections as foco
import fiftyone.core.sample as fos
import numpy as np

from fiftyone_regioncap.core.types import Track
from fiftyone_regioncap.dataset.captions import CaptionRecord, Review, read_captions
from fiftyone_regioncap.dataset.encoded import EncodedLabel, read_encoded
from fiftyone_regioncap.dataset.metadata import video_metadata
from fiftyone_regioncap.dataset.targets import Sample, Targets
from fiftyone_regioncap.dataset.tracks import read_tracks
from fiftyone_regioncap.exporters.staging import ExportError

REVIEWS: frozenset[Review] = frozenset({"unreviewed", "accepted", "edited"})
"""What is exported unless asked otherwise: all but what a person rejected."""

_MAX_NAME = 120  # characters; with a suffix, in UTF-8, still under 255 bytes for most


@dataclass(frozen=True)
class Selection:
    """Which captions and tracks are exported. Captions with an error never are.

    Attributes:
        reviews: states of review to take.
        min_confidence: captions below are left out, and those of unknown confidence.
        min_words: captions with fewer words are left out.
        max_words: captions with more words are left out; None for no limit.
        min_frames: tracks visible on fewer frames are left out.
        uncaptioned: whether tracks without a caption are kept, in formats that have a
            place for them.
    """

    reviews: frozenset[Review] = REVIEWS
    min_confidence: float | None = None
    min_words: int = 1
    max_words: int | None = None
    min_frames: int = 1
    uncaptioned: bool = False

    def __post_init__(self) -> None:
        if unknown := sorted(self.reviews - set(get_args(Review))):
            raise ExportError(
                f"no state of review {unknown[0]!r}; there are "
                + ", ".join(get_args(Review))
            )

    def takes(self, record: CaptionRecord) -> bool:
        """Whether a caption is exported."""
        words = len(record.caption.split())
        return (
            record.error is None
            and record.review in self.reviews
            and words >= max(self.min_words, 1)
            and (self.max_words is None or words <= self.max_words)
            and (
                self.min_confidence is None
                or (
                    record.confidence is not None
                    and record.confidence >= self.min_confidence
                )
            )
        )


@dataclass(frozen=True)
class Source:
    """Which fields are exported, and how the videos are divided.

    Attributes:
        tracks: frame-level field of the tracks.
        captions: sample-level field of the captions; None for masks only, which takes
            all tracks.
        selection: what is taken of them.
        cut: whether each clip of a clips view becomes a video of its own.
        val: share of the videos that goes to the validation split, in [0, 1].
        seed: which videos these are.
    """

    tracks: str = "frames.tracks"
    captions: str | None = "captions"
    selection: Selection = field(default_factory=Selection)
    cut: bool = False
    val: float = 0.0
    seed: int = 0

    def split(self, path: str) -> str | None:
        """The split of a video: ``"train"`` or ``"val"``; None when there is one.

        It depends on the names of the file and its folder only, so that it is the same
        in every export, and clips of one video stay together.
        """
        if self.val <= 0:
            return None
        name = "/".join(Path(path).parts[-2:])
        digest = sha256(f"{self.seed}/{name}".encode()).digest()
        return (
            "val" if int.from_bytes(digest[:8], "big") < self.val * 2**64 else "train"
        )


@dataclass(frozen=True)
class Job:
    """One video to export, known before anything of it is loaded.

    Attributes:
        number: its place in the export, from 0.
        sample_id: of its sample.
        ranges: [start, stop) of 0-based frames to export; None for all.
        cut: whether the one range is a video of its own.
        exact: whether captions have to be about the whole range, not a part of it.
        name: from the file's name; unique in the export, and safe as a file name.
        split: see :meth:`Source.split`.
    """

    number: int
    sample_id: str
    ranges: tuple[tuple[int, int], ...] | None
    cut: bool
    exact: bool
    name: str
    split: str | None


def plan(targets: Targets, source: Source, *, exact: bool = False) -> list[Job]:
    """The videos of an export, in the order of the collection.

    Args:
        targets: of the collection.
        source: how they are divided.
        exact: whether clips that are cut were made of captions, and take only those.
    """
    ids = [target.sample_id for target in targets]
    paths = _paths(targets.dataset, ids)
    names = _Names()
    jobs: list[Job] = []
    for target in targets:
        path = paths[target.sample_id]
        ranges = target.ranges and joined(target.ranges, overlap=not source.cut)
        pieces = [(span,) for span in ranges] if ranges and source.cut else [ranges]
        for piece in pieces:
            name = Path(path).stem
            if source.cut and piece:
                name = f"{name}-{piece[0][0]:06d}-{piece[0][1] - 1:06d}"
            jobs.append(
                Job(
                    number=len(jobs),
                    sample_id=target.sample_id,
                    ranges=piece,
                    cut=source.cut and piece is not None,
                    exact=source.cut and exact,
                    name=names.unique(name),
                    split=source.split(path),
                )
            )
    return jobs


def _paths(dataset: foco.SampleCollection, ids: Sequence[str]) -> dict[str, str]:
    known, paths = dataset.values(["id", "filepath"])
    wanted = set(ids)
    return {i: path for i, path in zip(known, paths, strict=True) if i in wanted}


def joined(
    ranges: Iterable[tuple[int, int]], *, overlap: bool = True
) -> tuple[tuple[int, int], ...]:
    """Ranges in order, none twice.

    Args:
        ranges: [start, stop) of frames.
        overlap: whether those that overlap become one.
    """
    found: list[tuple[int, int]] = []
    for start, stop in sorted(set(ranges)):
        if overlap and found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(stop, found[-1][1]))
        else:
            found.append((start, stop))
    return tuple(found)


def safe_name(text: str) -> str:
    """A file name out of any text: letters, digits, ``-``, ``_`` and inner dots.

    Nothing in it leads out of a folder, hides a file or means something to a shell.
    """
    name = re.sub(r"[^\w.-]+", "_", text)[:_MAX_NAME].strip(".-")
    return name or "_"


class _Names:
    """Gives safe names out once, whatever the case of their letters."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def unique(self, text: str) -> str:
        base = name = safe_name(text)
        number = 2
        while name.casefold() in self._taken:
            name = f"{base}-{number}"
            number += 1
        self._taken.add(name.casefold())
        return name


@dataclass(frozen=True)
class VideoRecord:
    """One video of an export. Frames count from 0, for a cut clip at its start.

    Attributes:
        job: its name, number and split.
        path: of its media.
        height: in pixels.
        width: in pixels.
        fps: frames a second.
        frame_count: of the video, or of the clip.
        captions: those that were selected, by object id, in the order of time.
    """

    job: Job
    path: Path
    height: int
    width: int
    fps: float
    frame_count: int
    captions: Mapping[int, tuple[CaptionRecord, ...]]
    _sample: Sample = field(repr=False)
    _source: Source = field(repr=False)

    @classmethod
    def load(cls, sample: Sample, job: Job, source: Source) -> VideoRecord:
        """Reads what is known of a video, but neither its masks nor its media.

        Raises:
            FieldError: when there are no such fields.
            VideoError: when its size is unknown and it can't be decoded.
        """
        metadata = sample.metadata
        if metadata is None or None in (
            metadata.frame_height,
            metadata.frame_width,
            metadata.total_frame_count,
        ):
            metadata = video_metadata(sample)
        start, stop = 0, metadata.total_frame_count
        if job.cut and job.ranges:
            start, stop = job.ranges[0]
            stop = min(stop, metadata.total_frame_count)
        captions: dict[int, list[CaptionRecord]] = {}
        for record in _visible(sample, source.captions):
            if source.selection.takes(record) and _inside(record, job):
                captions.setdefault(record.index, []).append(shifted(record, -start))
        video = cls(
            job=job,
            path=Path(sample.filepath),
            height=metadata.frame_height,
            width=metadata.frame_width,
            fps=metadata.frame_rate or 0.0,
            frame_count=stop - start,
            captions={index: tuple(own) for index, own in sorted(captions.items())},
            _sample=sample,
            _source=source,
        )
        if source.selection.min_frames > 1:
            long = {track.object_id for track in video.tracks}
            video = replace(
                video, captions={i: c for i, c in video.captions.items() if i in long}
            )
        return video

    @property
    def name(self) -> str:
        """Unique in the export, and safe as a file name."""
        return self.job.name

    @property
    def start(self) -> int:
        """The frame of the media that is frame 0 here."""
        return self.job.ranges[0][0] if self.job.cut and self.job.ranges else 0

    @cached_property
    def tracks(self) -> tuple[Track, ...]:
        """The tracks that were selected, without masks, by object id."""
        parts: dict[int, list[Track]] = {}
        for span in self._spans():
            for track in read_tracks(self._sample, self._source.tracks, support=span):
                parts.setdefault(track.object_id, []).append(track)
        return tuple(
            replace(
                own[0],
                frames=np.concatenate([part.frames for part in own]) - self.start,
                boxes=np.concatenate([part.boxes for part in own]),
                scores=np.concatenate([part.scores for part in own]),
            )
            for index, own in sorted(parts.items())
            if (self._takes_all() or index in self.captions)
            and sum(len(part.frames) for part in own)
            >= self._source.selection.min_frames
        )

    def masks(
        self,
        frames: Collection[int] | None = None,
        objects: Collection[int] | None = None,
    ) -> Iterator[tuple[int, dict[int, EncodedLabel]]]:
        """The masks of the selected tracks, read as they are asked for.

        Args:
            frames: 0-based frames to read; None means all.
            objects: ids of the objects to read; None means all that are selected.

        Yields:
            frames in ascending order, with their objects by id.

        Raises:
            FieldError: when a mask on disk has vanished or is damaged.
        """
        start = self.start
        if objects is None:
            objects = self._objects()
        media_frames = None if frames is None else [frame + start for frame in frames]
        for span in self._spans():
            for frame, labels in read_encoded(
                self._sample,
                self._source.tracks,
                objects=objects,
                frames=media_frames,
                support=span,
            ):
                yield frame - start, labels

    def label(self, object_id: int) -> str | None:
        """The short name that an object's captions give it, when they do."""
        named = (record.label for record in self.captions.get(object_id, ()))
        return next(filter(None, named), None)

    def _objects(self) -> Collection[int] | None:
        """Ids of the selected tracks; None for all."""
        if self._source.selection.min_frames > 1:
            return {track.object_id for track in self.tracks}
        return None if self._takes_all() else self.captions.keys()

    def _takes_all(self) -> bool:
        return self._source.selection.uncaptioned or self._source.captions is None

    def _spans(self) -> Sequence[tuple[int, int] | None]:
        """(first, last) frames of the media that are exported; None for all."""
        if self.job.ranges is None:
            return [None]
        return [(start, stop - 1) for start, stop in self.job.ranges]


def _visible(sample: Sample, field: str | None) -> Iterator[CaptionRecord]:
    """The captions of a sample that its view shows."""
    if field is None:
        return
    records = read_captions(sample, field)
    if isinstance(sample, fos.SampleView):
        value = sample[field]
        shown = {
            (-1 if label.index is None else label.index, tuple(label.support))
            for label in (value.detections if value else ())
        }
        records = [
            record
            for record in records
            if (record.index, (record.support[0] + 1, record.support[1] + 1)) in shown
        ]
    yield from records


def _inside(record: CaptionRecord, job: Job) -> bool:
    """Whether a caption is about a range of the job; without ranges all are."""
    if job.ranges is None:
        return True
    first, last = record.support
    if job.exact:
        return (first, last + 1) in job.ranges
    return any(start <= first and last < stop for start, stop in job.ranges)


def shifted(record: CaptionRecord, by: int) -> CaptionRecord:
    """A caption whose frames count from elsewhere."""
    if not by:
        return record
    first, last = record.support
    return replace(
        record,
        support=(first + by, last + by),
        frames_used=tuple(frame + by for frame in record.frames_used),
    )
