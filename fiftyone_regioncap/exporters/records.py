"""Loads what an export is made of: one video at a time, its masks frame by frame."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import fiftyone.core.collections as foco
import fiftyone.core.sample as fos
import numpy as np

from fiftyone_regioncap.core.types import Track
from fiftyone_regioncap.dataset.captions import (
    CaptionRecord,
    read_captions,
    shown_captions,
)
from fiftyone_regioncap.dataset.encoded import EncodedLabel, read_encoded
from fiftyone_regioncap.dataset.metadata import describe
from fiftyone_regioncap.dataset.targets import Sample, Targets
from fiftyone_regioncap.dataset.tracks import read_tracks
from fiftyone_regioncap.exporters.options import ExportOptions
from fiftyone_regioncap.video.image_source import LIST_SUFFIX
from fiftyone_regioncap.video.timeline import Timeline

_MAX_NAME = 120  # characters
_MAX_BYTES = 180  # in UTF-8; file systems take 255, with suffix and number


@dataclass(frozen=True)
class Job:
    """One video to export, known before anything of it is loaded.

    Attributes:
        number: Its place in the export, from 0.
        sample_id: Id of its sample.
        ranges: Ranges [start, stop) of 0-based frames to export; None for all.
        cut: Whether the one range is a video of its own.
        exact: Whether captions have to be about the whole range, not a part of it.
        name: Name made of the file's; unique in the export, and safe as a file name.
        split: Its split; see :meth:`ExportOptions.split`.
    """

    number: int
    sample_id: str
    ranges: tuple[tuple[int, int], ...] | None
    cut: bool
    exact: bool
    name: str
    split: str | None


def plan(targets: Targets, options: ExportOptions, *, exact: bool = False) -> list[Job]:
    """Returns the videos of an export, in the order of the collection.

    Args:
        targets: The samples of the collection.
        options: Options of the export.
        exact: Whether clips that are cut were made of captions, and take only those.
    """
    ids = [target.sample_id for target in targets]
    paths = _paths(targets.dataset, ids)
    names = _Names()
    jobs: list[Job] = []
    for target in targets:
        path = paths[target.sample_id]
        ranges = target.ranges and joined(target.ranges, overlap=not options.cut)
        images = path.endswith(LIST_SUFFIX)  # they become a video, as a clip does
        pieces = [(span,) for span in ranges] if ranges and options.cut else [ranges]
        for piece in pieces:
            name = Path(path).stem
            if options.cut and piece:
                name = f"{name}-{piece[0][0]:06d}-{piece[0][1] - 1:06d}"
            jobs.append(
                Job(
                    number=len(jobs),
                    sample_id=target.sample_id,
                    ranges=piece,
                    cut=images or (options.cut and piece is not None),
                    exact=options.cut and exact,
                    name=names.unique(name),
                    split=options.split(path),
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
    """Sorts ranges and removes duplicates.

    Args:
        ranges: Ranges [start, stop) of frames.
        overlap: Whether to join those that overlap; on by default.
    """
    found: list[tuple[int, int]] = []
    for start, stop in sorted(set(ranges)):
        if overlap and found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(stop, found[-1][1]))
        else:
            found.append((start, stop))
    return tuple(found)


def safe_name(text: str) -> str:
    """Makes a file name of any text: letters, digits, ``-``, ``_`` and inner dots.

    Nothing in it leads out of a folder, hides a file or means something to a shell.
    """
    name = re.sub(r"[^\w.-]+", "_", text)[:_MAX_NAME]
    name = name.encode()[:_MAX_BYTES].decode(errors="ignore")
    return name.strip(".-") or "_"


class _Names:
    """Makes safe names that differ in more than the case of their letters."""

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
        job: Its name, number and split.
        path: Path of its media.
        height: Height in pixels.
        width: Width in pixels.
        fps: Mean number of frames a second.
        frame_count: Number of frames of the video, or of the clip.
        timeline: When its frames are shown.
        captions: Selected captions by object id, in the order of time.
    """

    job: Job
    path: Path
    height: int
    width: int
    fps: float
    frame_count: int
    timeline: Timeline
    captions: Mapping[int, tuple[CaptionRecord, ...]]
    _sample: Sample = field(repr=False)
    _options: ExportOptions = field(repr=False)

    @classmethod
    def load(cls, sample: Sample, job: Job, options: ExportOptions) -> VideoRecord:
        """Reads what is known of a video, but neither its masks nor its media.

        Raises:
            FieldError: When there are no such fields.
            VideoError: When it can't be decoded and nothing is stored of it.
        """
        found = describe(sample)
        metadata = found.metadata
        start, stop = 0, metadata.total_frame_count
        if job.cut and job.ranges:
            start, stop = job.ranges[0]
            stop = min(stop, metadata.total_frame_count)
        timeline = found.timeline
        if job.cut:  # and encoded anew, at a constant rate
            rate = timeline.rate_between(start, stop - 1)
            timeline = Timeline.constant(stop - start, rate)
        captions: dict[int, list[CaptionRecord]] = {}
        for record in _visible(sample, options.captions):
            if options.takes(record) and _inside(record, job):
                captions.setdefault(record.index, []).append(shifted(record, -start))
        video = cls(
            job=job,
            path=Path(sample.filepath),
            height=metadata.frame_height,
            width=metadata.frame_width,
            fps=timeline.rate,
            frame_count=stop - start,
            timeline=timeline,
            captions={index: tuple(own) for index, own in sorted(captions.items())},
            _sample=sample,
            _options=options,
        )
        if options.min_frames > 1:
            long = {track.object_id for track in video.tracks}
            video = replace(
                video, captions={i: c for i, c in video.captions.items() if i in long}
            )
        return video

    @property
    def name(self) -> str:
        """Name that is unique in the export, and safe as a file name."""
        return self.job.name

    @property
    def file_name(self) -> str:
        """Name of its media file in the export; a clip that is cut becomes MP4."""
        return self.name + (".mp4" if self.job.cut else self.path.suffix)

    @property
    def start(self) -> int:
        """The frame of the media that is frame 0 here."""
        return self.job.ranges[0][0] if self.job.cut and self.job.ranges else 0

    @cached_property
    def tracks(self) -> tuple[Track, ...]:
        """The tracks that were selected, without masks, by object id."""
        parts: dict[int, list[Track]] = {}
        for span in self._spans():
            for track in read_tracks(self._sample, self._options.tracks, support=span):
                parts.setdefault(track.object_id, []).append(track)
        return tuple(
            replace(
                own[0],
                frames=np.concatenate([part.frames for part in own]) - self.start,
                boxes=np.concatenate([part.boxes for part in own]),
                scores=np.concatenate([part.scores for part in own]),
            )
            for index, own in sorted(parts.items())
            if (self._options.takes_all_tracks or index in self.captions)
            and sum(len(part.frames) for part in own) >= self._options.min_frames
        )

    def masks(
        self,
        frames: Collection[int] | None = None,
        objects: Collection[int] | None = None,
    ) -> Iterator[tuple[int, dict[int, EncodedLabel]]]:
        """Yields the masks of the selected tracks, read as they are asked for.

        Args:
            frames: 0-based frames to read; None means all.
            objects: Ids of the objects to read; None means all that are selected.

        Yields:
            Frames in ascending order, with their objects by id.

        Raises:
            FieldError: When a mask on disk has vanished or is damaged.
        """
        start = self.start
        if objects is None:
            objects = self._objects()
        media_frames = None if frames is None else [frame + start for frame in frames]
        for span in self._spans():
            for frame, labels in read_encoded(
                self._sample,
                self._options.tracks,
                objects=objects,
                frames=media_frames,
                support=span,
            ):
                yield frame - start, labels

    def caption_at(self, object_id: int, frame: int) -> CaptionRecord | None:
        """Returns the caption whose window covers a frame, the last one to begin."""
        covering = [
            record
            for record in self.captions.get(object_id, ())
            if record.support[0] <= frame <= record.support[1]
        ]
        return covering[-1] if covering else None

    def label(self, object_id: int) -> str | None:
        """Returns the short name that an object's captions give it, when they do."""
        named = (record.label for record in self.captions.get(object_id, ()))
        return next(filter(None, named), None)

    def others(self, objects: Collection[int]) -> list[int]:
        """Returns the ids of the selected objects that are not among some."""
        chosen = set(self.captions)
        if self._options.takes_all_tracks:
            chosen.update(track.object_id for track in self.tracks)
        return sorted(chosen.difference(objects))

    def _objects(self) -> Collection[int] | None:
        """Ids of the selected tracks; None for all."""
        if self._options.min_frames > 1:
            return {track.object_id for track in self.tracks}
        return None if self._options.takes_all_tracks else self.captions.keys()

    def _spans(self) -> Sequence[tuple[int, int] | None]:
        """Returns (first, last) frames of the exported media; None for all."""
        if self.job.ranges is None:
            return [None]
        return [(start, stop - 1) for start, stop in self.job.ranges]


def _visible(sample: Sample, field: str | None) -> Iterator[CaptionRecord]:
    """Yields the captions of a sample that its view shows."""
    if field is None:
        return
    records = read_captions(sample, field)
    if isinstance(sample, fos.SampleView):
        shown = shown_captions(sample, field)
        records = [record for record in records if record.key in shown]
    yield from records


def _inside(record: CaptionRecord, job: Job) -> bool:
    """Returns whether a caption is about a range of the job; without ranges all are."""
    if job.ranges is None:
        return True
    first, last = record.support
    if job.exact:
        return (first, last + 1) in job.ranges
    return any(start <= first and last < stop for start, stop in job.ranges)


def shifted(record: CaptionRecord, by: int) -> CaptionRecord:
    """Returns a caption whose frames count from elsewhere."""
    if not by:
        return record
    first, last = record.support
    return replace(
        record,
        support=(first + by, last + by),
        frames_used=tuple(frame + by for frame in record.frames_used),
    )
