"""The operator ``export_captions``."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from typing import Any

from fiftyone.operators import types

from fiftyone_regioncap import exporters
from fiftyone_regioncap.core.progress import ProgressListener
from fiftyone_regioncap.dataset import fields
from fiftyone_regioncap.dataset.captions import Review

from . import _forms, _parts
from ._caption_operator import NO_CAPTIONS
from ._operator import JobOperator

REVIEWS: dict[str, tuple[str, Collection[Review]]] = {
    "default": ("All but rejected ones", ("unreviewed", "accepted", "edited")),
    "reviewed": ("Accepted and edited ones", {"accepted", "edited"}),
    "accepted": ("Accepted ones", {"accepted"}),
}


class ExportCaptions(JobOperator):
    """Writes tracks and captions in a format that other tools read."""

    name = "export_captions"
    label = "Export captions"
    description = "Write tracks and captions in a format that other tools read"
    action = "Export"

    def ask(self, inputs: types.Object, ctx: Any) -> str | None:
        """Adds the format, where to, and what."""
        captions = fields.caption_fields(ctx.dataset)
        if not captions:
            return NO_CAPTIONS
        problem = _parts.ask_tracks(inputs, ctx)
        if problem is not None:
            return problem
        _forms.pick_field(
            inputs,
            "captions",
            captions,
            label="Captions",
            description="What was said of the tracks",
        )
        ask_format(inputs, exporters.FORMATS.available())
        inputs.str(
            "path",
            required=True,
            label="Folder",
            description="To make, on the machine that runs this",
        )
        media = types.RadioGroup()
        media.add_choice("copy", label="Copy")
        media.add_choice("link", label="Link to where they are")
        media.add_choice("none", label="Leave out")
        inputs.enum("media", media.values(), default="copy", label="Media", view=media)
        reviews = types.DropdownView()
        for value, (label, _) in REVIEWS.items():
            reviews.add_choice(value, label=label)
        inputs.enum(
            "reviews",
            reviews.values(),
            default="default",
            label="Which captions",
            view=reviews,
        )
        inputs.float("min_confidence", required=False, label="Lowest confidence")
        inputs.float(
            "val",
            default=0.0,
            min=0.0,
            max=1.0,
            label="Share for validation",
            description="0 for no splits",
        )
        inputs.bool(
            "overwrite", default=False, label="Replace an earlier export in the folder"
        )
        return None

    def job(
        self,
        samples: Any,
        params: Mapping[str, Any],
        listener: ProgressListener | bool,
        cancel: threading.Event | None,
    ) -> exporters.ExportSummary:
        """Exports."""
        return exporters.export(
            samples,
            params.get("format") or "coco",
            params["path"],
            options=params.get("options"),
            tracks=params.get("tracks") or "frames.tracks",
            captions=params.get("captions") or "captions",
            reviews=REVIEWS[params.get("reviews") or "default"][1],
            min_confidence=params.get("min_confidence"),
            media=params.get("media") or "copy",
            val=params.get("val") or 0.0,
            overwrite=bool(params.get("overwrite")),
            progress=listener,
            cancel=cancel,
        )


def ask_format(inputs: types.Object, names: Mapping[str, Any]) -> None:
    """Asks for one of the formats."""
    choices = types.DropdownView()
    for name in sorted(names):
        choices.add_choice(name, label=name, description=names[name].summary)
    inputs.enum(
        "format",
        choices.values(),
        default="coco",
        required=True,
        label="Format",
        view=choices,
    )
