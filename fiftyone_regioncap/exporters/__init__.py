"""Writes captioned tracks in the formats of others, and reads them back."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import fiftyone.core.collections as foco

from fiftyone_regioncap.core.progress import ProgressListener, progress_listener
from fiftyone_regioncap.dataset.captions import Review
from fiftyone_regioncap.dataset.tracks import MaskStorage
from fiftyone_regioncap.exporters import importing, job
from fiftyone_regioncap.exporters.base import Format, Importer
from fiftyone_regioncap.exporters.importing import ImportOptions
from fiftyone_regioncap.exporters.job import ExportSummary
from fiftyone_regioncap.exporters.media import Media, Mode
from fiftyone_regioncap.exporters.records import REVIEWS, Selection, Source
from fiftyone_regioncap.exporters.registry import (
    FORMATS,
    IMPORTERS,
    find_importer,
    make_format,
)
from fiftyone_regioncap.exporters.staging import ExportError
from fiftyone_regioncap.exporters.tasks import VideoFailure
from fiftyone_regioncap.system import database

__all__ = [
    "FORMATS",
    "IMPORTERS",
    "ExportError",
    "ExportSummary",
    "Selection",
    "VideoFailure",
    "export",
    "import_captions",
]


def export(
    samples: foco.SampleCollection,
    format: str | Format,
    path: str | os.PathLike[str],
    *,
    options: Mapping[str, Any] | None = None,
    tracks: str = "frames.tracks",
    captions: str | None = "captions",
    reviews: Collection[Review] = REVIEWS,
    min_confidence: float | None = None,
    min_words: int = 1,
    max_words: int | None = None,
    min_frames: int = 1,
    uncaptioned: bool = False,
    media: Mode = "copy",
    cut: bool = False,
    val: float = 0.0,
    seed: int = 0,
    overwrite: bool = False,
    workers: int = 1,
    progress: bool | ProgressListener = True,
    cancel: threading.Event | None = None,
) -> ExportSummary:
    """Writes tracks and captions in a format that other tools read.

    The folder appears when it is whole. An export that was stopped goes on where it was
    when it is run again with the same arguments.

    Args:
        samples: videos: a dataset, a view, or a clips view, which exports the captions
            that lie inside a clip, and the frames of the clips.
        format: a name out of :data:`FORMATS`, or one of your own.
        path: of the folder to make.
        options: of the format, such as ``{"prompts": ["What is <region>?"]}``.
        tracks: frame-level field of the tracks.
        captions: sample-level field of the captions; None exports masks only.
        reviews: states of review to take.
        min_confidence: captions below, or of unknown confidence, are left out.
        min_words: captions with fewer words are left out.
        max_words: captions with more words are left out.
        min_frames: tracks visible on fewer frames are left out.
        uncaptioned: whether tracks without a caption are kept, in formats that have a
            place for them.
        media: whether media are copied, linked or left out (``"none"``).
        cut: whether each clip of a clips view becomes a video of its own.
        val: share of the videos that goes to ``val/``, the others to ``train/``; 0 for
            no splits.
        seed: which videos these are.
        overwrite: whether to replace an earlier export in the folder. Only files that
            its manifest names are replaced; a folder that has no manifest, or holds
            media of the dataset, is refused.
        workers: processes to use; more than one pays for more than about a hundred
            videos.
        progress: whether to draw a bar, or who is told of progress.
        cancel: set it to stop.

    Returns:
        what was done, and the videos that could not be exported.

    Raises:
        FieldError: when a field is absent or of the wrong kind.
        ExportError: when the folder exists or can't be written, the format or one of
            its options is unknown, or there is nothing to export.
        Cancelled: when ``cancel`` was set.
    """
    database.ensure()
    source = Source(
        tracks=tracks,
        captions=captions,
        selection=Selection(
            reviews=frozenset(reviews),
            min_confidence=min_confidence,
            min_words=min_words,
            max_words=max_words,
            min_frames=min_frames,
            uncaptioned=uncaptioned,
        ),
        cut=cut,
        val=val,
        seed=seed,
    )
    with progress_listener(progress) as listener:
        return job.run(
            samples,
            make_format(format, options) if isinstance(format, str) else format,
            Path(path),
            source=source,
            media=Media(media),
            overwrite=overwrite,
            workers=workers,
            listener=listener,
            cancel=cancel,
        )


def import_captions(
    samples: foco.SampleCollection,
    format: str | Importer,
    path: str | os.PathLike[str],
    *,
    tracks: str = "frames.tracks",
    captions: str = "captions",
    mask_storage: MaskStorage = "auto",
    output_dir: str | None = None,
    overwrite: bool = False,
    progress: bool | ProgressListener = True,
    cancel: threading.Event | None = None,
) -> ExportSummary:
    """Reads tracks and captions into the fields of videos that are in a dataset.

    Videos are found by the names of their files. A mask takes the place of that of the
    same object on that frame, a caption that of the one of the same object and frames;
    others stay. A video that doesn't fit is left as it is, and the others are imported.

    Args:
        samples: videos: a dataset or a view.
        format: a name out of :data:`IMPORTERS`, or a reader of your own.
        path: of the exported folder, or of its main file.
        tracks: frame-level field for the tracks.
        captions: sample-level field for the captions.
        mask_storage: ``"inline"``, ``"disk"`` or ``"auto"``.
        output_dir: where masks on disk go; None for beside the media.
        overwrite: whether captions that a person has reviewed are replaced too, and
            objects lose the masks of frames that the import doesn't speak of.
        progress: whether to draw a bar, or who is told of progress.
        cancel: set it to stop.

    Returns:
        what was done, and the videos that could not be imported.

    Raises:
        FieldError: when a field is of the wrong kind.
        ExportError: when nothing of the format is there.
        Cancelled: when ``cancel`` was set.
    """
    database.ensure()
    with progress_listener(progress) as listener:
        return importing.run(
            samples,
            find_importer(format) if isinstance(format, str) else format,
            Path(path),
            ImportOptions(tracks, captions, overwrite, mask_storage, output_dir),
            listener=listener,
            cancel=cancel,
        )
