"""Writes captioned tracks in the formats of others, and reads them back."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

import fiftyone.core.collections as foco

from fiftyone_regioncap.core.progress import ProgressListener, progress_listener
from fiftyone_regioncap.exporters import importing, job
from fiftyone_regioncap.exporters.base import Format, ImportableFormat
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
from fiftyone_regioncap.system import database

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
    samples: foco.SampleCollection,
    format: str | Format,
    path: str | os.PathLike[str],
    *,
    options: Mapping[str, Any] | None = None,
    progress: bool | ProgressListener = True,
    cancel: threading.Event | None = None,
    **settings: Any,
) -> ExportSummary:
    """Writes tracks and captions in a format that other tools read.

    The folder appears when it is whole. An export that was stopped goes on where it was
    when it is run again with the same arguments.

    Args:
        samples: Videos: a dataset, a view, or a clips view, which exports the captions
            that lie inside a clip, and the frames of the clips.
        format: A name out of :data:`FORMATS`, or a format of your own.
        path: Folder to make.
        options: Options of the format, such as ``{"prompts": ["What is <region>?"]}``.
        progress: Whether to draw a bar, or the function that is called with progress.
        cancel: Set it to stop the job.
        **settings: Fields of :class:`ExportOptions`, such as ``captions="captions"``.

    Returns:
        What was done, and the videos that could not be exported.

    Raises:
        OptionError: When a setting or an option of the format is unknown or wrong.
        FieldError: When a field is absent or of the wrong kind.
        ExportError: When the folder exists or can't be written, or there is nothing to
            export.
        Cancelled: When ``cancel`` was set.
    """
    database.ensure()
    chosen = make_format(format, options) if isinstance(format, str) else format
    given = ExportOptions.from_mapping({**settings, "path": path})
    with progress_listener(progress) as listener:
        return job.run(samples, chosen, given, listener=listener, cancel=cancel)


def import_captions(
    samples: foco.SampleCollection,
    format: str | type[ImportableFormat],
    path: str | os.PathLike[str],
    *,
    progress: bool | ProgressListener = True,
    cancel: threading.Event | None = None,
    **settings: Any,
) -> ExportSummary:
    """Reads tracks and captions into the fields of videos that are in a dataset.

    Videos are found by the names of their files. A mask takes the place of that of the
    same object on that frame, a caption that of the one of the same object and frames;
    others stay. A video that doesn't fit is left as it is, and the others are imported.

    Args:
        samples: Videos: a dataset or a view.
        format: A name out of :func:`importable_formats`, or a format of your own.
        path: The exported folder, or its main file.
        progress: Whether to draw a bar, or the function that is called with progress.
        cancel: Set it to stop the job.
        **settings: Fields of :class:`ImportOptions`, such as ``overwrite=True``.

    Returns:
        What was done, and the videos that could not be imported.

    Raises:
        OptionError: When a setting is unknown or wrong.
        FieldError: When a field is of the wrong kind.
        ExportError: When nothing of the format is there.
        Cancelled: When ``cancel`` was set.
    """
    database.ensure()
    chosen = find_importable(format) if isinstance(format, str) else format
    given = ImportOptions.from_mapping({**settings, "path": path})
    with progress_listener(progress) as listener:
        return importing.run(samples, chosen, given, listener=listener, cancel=cancel)
