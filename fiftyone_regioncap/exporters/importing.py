"""Writes what a format holds into the fields of a dataset's videos."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import fiftyone as fo
import fiftyone.core.collections as foco

from fiftyone_regioncap.core.errors import VideoError
from fiftyone_regioncap.core.progress import ProgressListener, ProgressReporter
from fiftyone_regioncap.core.types import FrameMasks, ObjectMask
from fiftyone_regioncap.dataset import fields, schema, status
from fiftyone_regioncap.dataset.captions import write_captions
from fiftyone_regioncap.dataset.leases import Leases
from fiftyone_regioncap.dataset.metadata import correct_metadata, describe
from fiftyone_regioncap.dataset.store import Store, frame_path
from fiftyone_regioncap.dataset.targets import Sample, Targets, video_targets
from fiftyone_regioncap.dataset.tracks import TrackWriter
from fiftyone_regioncap.exporters.base import ImportableFormat
from fiftyone_regioncap.exporters.job import STAGE, ExportSummary
from fiftyone_regioncap.exporters.options import ImportOptions
from fiftyone_regioncap.exporters.reading import (
    BrokenVideo,
    Entry,
    ImportedVideo,
    array,
    integer,
    read_document,
)
from fiftyone_regioncap.exporters.records import safe_name, shifted
from fiftyone_regioncap.exporters.staging import MANIFEST, ExportError
from fiftyone_regioncap.exporters.tasks import VideoFailure

logger = logging.getLogger(__name__)


def run(
    samples: foco.SampleCollection,
    format: type[ImportableFormat],
    options: ImportOptions,
    *,
    listener: ProgressListener | None = None,
    cancel: threading.Event | None = None,
) -> ExportSummary:
    """Imports videos; see :func:`fiftyone_regioncap.exporters.import_captions`."""
    began = time.monotonic()
    targets = video_targets(samples)
    fields.require_output(options.tracks)
    fields.require_output(options.captions, options.tracks)
    tracks, captions = fields.frames_field(options.tracks), options.captions
    fields.require_writable(targets.dataset, tracks, fo.Detections)
    fields.require_writable(targets.dataset, captions, fo.TemporalDetections)
    path = Path(options.path).expanduser()
    if not path.exists():
        raise ExportError(f"there is no {path}; give an exported folder or its file")
    videos = format.read(path)
    finder = _Finder.of(targets, path)
    summary = ExportSummary("imported", str(path), counts={"tracks": 0, "captions": 0})
    progress = ProgressReporter([STAGE], len(targets), listener, cancel)
    schema.declare_tracks(targets.dataset, options.tracks)
    schema.declare_captions(targets.dataset, options.captions)
    statuses = [
        name(field)
        for field in (options.tracks, options.captions)
        for name in (schema.status_field, schema.error_field)
    ]
    for field in (options.tracks, options.captions):
        schema.declare_status(targets.dataset, field)
    written = (frame_path(options.tracks), options.captions)
    with Leases(targets.dataset._doc.id, written, "import") as leases:
        for video in videos:
            progress.check_canceled()
            try:
                if isinstance(video, BrokenVideo):
                    raise ExportError(video.error)
                sample, span = finder.find(video.name)
                with _claimed(leases, sample):
                    with contextlib.suppress(VideoError):  # its media may be gone
                        summary.notes += correct_metadata(sample)
                    placed = video if span is None else _placed(video, span, sample)
                    _check(placed, sample)
                    with Store.of(sample).restored_on_error(*written, *statuses):
                        _write(placed, span, sample, options, summary)
            except Exception as error:
                logger.warning("%s: %s", video.name, error, exc_info=True)
                message = f"{type(error).__name__}: {error}"
                summary.failures.append(VideoFailure(video.name, message))
            else:
                summary.videos += 1
                summary.failures += [
                    VideoFailure(video.name, f"passed over: {what}")
                    for what in video.skipped
                ]
            progress.finish(STAGE, video.name)
    summary.seconds = time.monotonic() - began
    return summary


@contextlib.contextmanager
def _claimed(leases: Leases, sample: Sample) -> Iterator[None]:
    """Keeps jobs from the sample while it is written.

    Raises:
        ExportError: When a job works on it.
    """
    if leases.claim(sample.id) is not None:
        raise ExportError(
            "a job is at work on this video; import it again when that is done"
        )
    try:
        yield
    finally:
        leases.release(sample.id)


@dataclass(frozen=True)
class _Finder:
    """Finds the sample of a video by its name.

    Attributes:
        targets: Samples of the collection.
        ids: Sample ids by the names that a video may go by.
        clips: Entries of the manifest about clips that were cut, by name.
    """

    targets: Targets
    ids: Mapping[str, frozenset[str]]
    clips: Mapping[str, Entry]

    @classmethod
    def of(cls, targets: Targets, path: Path) -> _Finder:
        wanted = {target.sample_id for target in targets}
        ids: dict[str, set[str]] = {}
        paths: dict[str, str] = {}
        for key, media in zip(*targets.dataset.values(["id", "filepath"]), strict=True):
            if key in wanted:
                file = Path(media)
                paths[key] = media
                for name in {file.name, file.stem, safe_name(file.stem)}:
                    ids.setdefault(name, set()).add(key)
        # The manifest of an export tells videos of one name apart.
        manifest = _manifest(path)
        cut = manifest.mapping("options").get("cut") is True
        clips: dict[str, Entry] = {}
        for entry in manifest.entries("videos", "video", required=False):
            name = str(entry.get("name"))
            same = [
                key for key, media in paths.items() if media == entry.get("filepath")
            ]
            if str(entry.get("sample_id")) in wanted and not same:
                same = [str(entry.get("sample_id"))]
            if same:
                ids[name] = set(same)
                if cut and entry.items("ranges"):
                    clips[name] = entry
        return cls(targets, {name: frozenset(own) for name, own in ids.items()}, clips)

    def find(self, name: str) -> tuple[Sample, tuple[int, int] | None]:
        """Finds the sample of a video.

        Returns:
            The sample; and the range [start, stop) of its 0-based frames that the video
            is a clip of, from whose start the import counts, None for all of it.

        Raises:
            ExportError: When there is none, or more than one.
        """
        file = Path(name)
        for candidate in (name, file.name, file.stem):
            found = self.ids.get(candidate, frozenset())
            if len(found) == 1:
                clip = self.clips.get(candidate)
                span = None if clip is None else _span(clip)
                return self.targets.dataset[next(iter(found))], span
            if found:
                raise ExportError(
                    f"{len(found)} videos of the dataset are called {candidate!r}; "
                    "import into a view of one of them"
                )
        raise ExportError(
            f"no video of the dataset is called {file.name!r}; add it first, or rename "
            "it as it is in the import"
        )


def _manifest(path: Path) -> Entry:
    root = path if path.is_dir() else path.parent
    for folder in (root, root.parent):  # of an export with splits it is one up
        if (folder / MANIFEST).is_file():
            return read_document(folder / MANIFEST)
    return Entry({}, MANIFEST)


def _span(clip: Entry) -> tuple[int, int]:
    """Reads which frames [start, stop) of its source a clip holds.

    Raises:
        ExportError: When the manifest doesn't say.
    """
    what = f"'ranges' of {clip.what} in {MANIFEST}"
    ranges = [
        [integer(frame, what) for frame in array(span, what)]
        for span in clip.items("ranges")
    ]
    match ranges:
        case [[start, stop]] if 0 <= start < stop:
            return start, stop
    raise ExportError(
        f"{what} is {ranges}, and a clip has one range of frames; import into the clip "
        "itself"
    )


def _placed(
    clip: ImportedVideo, span: tuple[int, int], sample: Sample
) -> ImportedVideo:
    """Returns the import of a clip with frames that count from its source's start.

    Raises:
        ExportError: When it is about more frames than the clip has.
    """
    start, stop = span
    length = min(stop, describe(sample).metadata.total_frame_count) - start
    _check_frames(clip, length, f"this clip of frames {start} to {stop - 1}")
    captions = [shifted(record, start) for record in clip.captions.values()]
    return replace(
        clip,
        frame_count=None,
        masks={frame + start: masks for frame, masks in clip.masks.items()},
        captions={record.key: record for record in captions},
        scores={(f + start, index): s for (f, index), s in clip.scores.items()},
    )


def _check(video: ImportedVideo, sample: Sample) -> None:
    """Compares with the video, so that nothing is written that doesn't fit it."""
    metadata = describe(sample).metadata
    size = (metadata.frame_height, metadata.frame_width)
    count = metadata.total_frame_count
    found = {rle.size for own in video.masks.values() for rle in own.values()}
    if video.size is not None:
        found.add(video.size)
    for height, width in found:
        if (height, width) != size:
            raise ExportError(
                f"the import is for a video of {width}x{height}, this one is "
                f"{size[1]}x{size[0]}; import into the video that it was made for"
            )
    _check_frames(video, count, "this one")


def _check_frames(video: ImportedVideo, count: int, what: str) -> None:
    if video.frame_count not in (None, count):
        raise ExportError(
            f"the import is for a video of {video.frame_count} frames, {what} has "
            f"{count}; import into the video that it was made for"
        )
    last = max(
        [*video.masks, *(record.support[1] for record in video.captions.values())]
        or [0]
    )
    first = min(video.masks, default=0)
    if first < 0 or last >= count:
        raise ExportError(
            f"the import is about frame {first if first < 0 else last} (from 0), "
            f"{what} has {count}"
        )


def _write(
    video: ImportedVideo,
    span: tuple[int, int] | None,
    sample: Sample,
    options: ImportOptions,
    summary: ExportSummary,
) -> None:
    objects = {index for own in video.masks.values() for index in own}
    captions = list(video.captions.values())
    if objects:
        status.write_status(sample, options.tracks, "partial")
        with TrackWriter(
            sample,
            options.tracks,
            labels=video.labels,
            mask_storage=options.mask_storage,
            output_dir=options.output_dir,
        ) as writer:
            if options.overwrite:
                # Other clips of the video have brought these objects, too.
                support = None if span is None else (span[0], span[1] - 1)
                writer.clear_range(support, objects)
            for frame, masks in sorted(video.masks.items()):
                writer.write(
                    FrameMasks(
                        frame,
                        {
                            index: ObjectMask(
                                rle.decode(), video.scores.get((frame, index), 1.0)
                            )
                            for index, rle in masks.items()
                        },
                    )
                )
            captions = [
                replace(record, instance=writer.instance(record.index))
                for record in captions
            ]
        status.write_status(sample, options.tracks, "complete")
    tracked = status.read_status(sample, options.tracks).state is not None
    if captions:
        write_captions(
            sample,
            options.captions,
            captions,
            tracks_field=options.tracks if tracked else None,
            overwrite=options.overwrite,
        )
        status.write_status(sample, options.captions, "complete")
    summary.counts["tracks"] += len(objects)
    summary.counts["captions"] += len(captions)
