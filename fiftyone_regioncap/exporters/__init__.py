"""Writes captioned tracks in the formats of others, and reads them back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import fiftyone.core.collections as foco
from fiftyone.core.clips import ClipsView

from fiftyone_regioncap.dataset.sequences import as_videos
from fiftyone_regioncap.exporters import importing, job
from fiftyone_regioncap.exporters.job import ExportSummary
from fiftyone_regioncap.exporters.options import ExportOptions, ImportOptions
from fiftyone_regioncap.exporters.registry import (
    FORMATS,
    find_importable,
    importable_formats,
    make_format,
)
from fiftyone_regioncap.exporters.staging import ExportError
from fiftyone_regioncap.exporters.tasks import VideoFailure

__all__ = [
    "FORMATS",
    "ExportError",
    "ExportOptions",
    "ExportSummary",
    "ImportOptions",
    "VideoFailure",
    "export",
    "import_captions",
    "importable_formats",
]


def export(
    samples: foco.SampleCollection, options: ExportOptions, **reporting: Any
) -> ExportSummary:
    """Writes tracks and captions in a format that other tools read.

    The folder appears when it is whole. An export that was stopped goes on where it was
    when it is run again with the same options.

    Args:
        samples: Videos: a dataset, a view, or a clips view, which exports the captions
            that lie inside a clip, and the frames of the clips. Ordered groups of
            images are videos too.
        options: The format, where to, and what.
        **reporting: ``listener`` and ``cancel`` of the job.

    Returns:
        What was done, and the videos that could not be exported.

    Raises:
        OptionError: When an option of the format is unknown or wrong.
        FieldError: When a field is absent or of the wrong kind.
        ExportError: When the folder exists or can't be written, or there is nothing to
            export.
        Canceled: When ``cancel`` was set.
    """
    chosen = options.format
    if isinstance(chosen, str):
        chosen = make_format(chosen, options.options)
    with as_videos(samples) as videos:
        options = replace(options, tracks=videos.frames_field(options.tracks))
        found = videos.samples
        if options.cut and options.captions and not isinstance(found, ClipsView):
            found = found.to_clips(options.captions)
        return job.run(found, chosen, options, media=videos.media(), **reporting)


def import_captions(
    samples: foco.SampleCollection, options: ImportOptions, **reporting: Any
) -> ExportSummary:
    """Reads tracks and captions into the fields of videos that are in a dataset.

    Videos are found by the names of their files. A mask takes the place of that of the
    same object on that frame, a caption that of the one of the same object and frames;
    others stay. A video that doesn't fit is left as it is, and the others are imported.

    Args:
        samples: Videos: a dataset or a view; or ordered groups of images.
        options: The format, where from, and into which fields.
        **reporting: ``listener`` and ``cancel`` of the job.

    Returns:
        What was done, and the videos that could not be imported.

    Raises:
        FieldError: When a field is of the wrong kind.
        ExportError: When nothing of the format is there.
        Canceled: When ``cancel`` was set.
    """
    chosen = options.format
    if isinstance(chosen, str):
        chosen = find_importable(chosen)
    with as_videos(samples) as videos:
        return importing.run(videos.samples, chosen, options, **reporting)
