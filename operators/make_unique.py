"""The operator ``make_unique``."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from fiftyone.operators import types

from fiftyone_regioncap.analysis.differences import ALIKE
from fiftyone_regioncap.analysis.unique import UniqueReport, make_unique
from fiftyone_regioncap.captioning.registry import CAPTIONERS
from fiftyone_regioncap.core.progress import ProgressListener
from fiftyone_regioncap.dataset import fields

from . import _forms, _parts
from ._operator import JobOperator

MEASURED = "measured"


class MakeUnique(JobOperator):
    """States what tells objects apart that have nearly the same captions."""

    name = "make_unique"
    label = "Tell objects apart"
    description = "Describe objects again that have nearly the same captions"
    action = "Compare"
    media = ("video", "image", "group")

    def ask(self, inputs: types.Object, ctx: Any) -> str | None:
        """Adds the field, the tracks, the captioner and how alike is alike."""
        captions = fields.caption_fields(ctx.dataset)
        tracks = fields.track_fields(ctx.dataset)
        if ctx.dataset.media_type == "image":
            captions = fields.region_fields(ctx.dataset)
        if not captions:
            return "No field holds captions yet. Caption tracks or regions first"
        _forms.pick_field(
            inputs,
            "captions",
            captions,
            label="Captions",
            description="What is said of the objects of each video or image",
        )
        if tracks:
            _forms.pick_field(
                inputs,
                "tracks",
                tracks,
                label="Tracks",
                description="Where the objects are: for places and times",
            )
        choices = types.DropdownView()
        for backend in CAPTIONERS.available().values():
            missing = backend.missing()
            choices.add_choice(
                backend.name,
                label=(
                    "what was measured"
                    if backend.name == MEASURED
                    else f"{backend.name}, then what was measured"
                ),
                description="ready" if missing is None else missing,
            )
        inputs.enum(
            "captioner",
            choices.values(),
            default=MEASURED,
            required=True,
            label="Differences from",
            view=choices,
        )
        inputs.str(
            "captioner_weights",
            required=False,
            label="Weights of the captioner",
            description="A folder, a file or a hub id; empty for the default",
        )
        inputs.float(
            "threshold",
            default=ALIKE,
            min=0.05,
            max=1,
            label="Alike from",
            description="Share of content words that two captions have in common",
        )
        return None

    def job(
        self,
        samples: Any,
        params: Mapping[str, Any],
        listener: ProgressListener | bool,
        cancel: threading.Event | None,
    ) -> UniqueReport:
        """Compares, and writes."""
        tracks = params.get("tracks") or next(iter(fields.track_fields(samples)), None)
        return make_unique(
            samples,
            params.get("captions") or "captions",
            tracks_field=tracks,
            threshold=float(params.get("threshold") or ALIKE),
            captioner=params.get("captioner") or MEASURED,
            captioner_load=_parts.load_options(params, "captioner"),
            progress=listener,
            cancel=cancel,
        )
