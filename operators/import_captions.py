"""The operator ``import_captions``."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from fiftyone.operators import types

from fiftyone_regioncap import exporters
from fiftyone_regioncap.core.progress import ProgressListener

from ._operator import JobOperator
from .export_captions import ask_format


class ImportCaptions(JobOperator):
    """Reads tracks and captions of other tools into the fields of videos."""

    name = "import_captions"
    label = "Import captions"
    description = "Read tracks and captions of other tools into fields of the videos"
    action = "Import into"

    def ask(self, inputs: types.Object, ctx: Any) -> str | None:
        """Adds the format, where from, and the fields."""
        ask_format(inputs, exporters.importable_formats())
        inputs.str(
            "path",
            required=True,
            label="Folder or file",
            description="On the machine that runs this; videos are found by name",
        )
        inputs.str("tracks", default="frames.tracks", label="Tracks go to")
        inputs.str("captions", default="captions", label="Captions go to")
        inputs.bool(
            "overwrite", default=False, label="Replace captions that were reviewed"
        )
        return None

    def job(
        self,
        samples: Any,
        params: Mapping[str, Any],
        listener: ProgressListener | bool,
        cancel: threading.Event | None,
    ) -> exporters.ExportSummary:
        """Imports."""
        return exporters.import_captions(
            samples,
            params.get("format") or "coco",
            params["path"],
            tracks=params.get("tracks") or "frames.tracks",
            captions=params.get("captions") or "captions",
            overwrite=bool(params.get("overwrite")),
            progress=listener,
            cancel=cancel,
        )
