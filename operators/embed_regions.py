"""The operator ``embed_regions``."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from fiftyone.operators import types

from fiftyone_regioncap import api
from fiftyone_regioncap.core.progress import ProgressListener
from fiftyone_regioncap.dataset import fields
from fiftyone_regioncap.dataset.caption_fields import caption_fields
from fiftyone_regioncap.jobs.embedding import EmbedSummary

from . import _forms
from ._operator import JobOperator


class EmbedRegions(JobOperator):
    """Embeds the regions of captions by how they look."""

    name = "embed_regions"
    label = "Embed regions"
    description = (
        "Let captions of any captioner be searched, mapped and checked by looks"
    )
    action = "Embed"
    media = ("video", "image", "group")

    def ask(self, inputs: types.Object, ctx: Any) -> str | None:
        """Adds the field, the tracks and the model."""
        captions = caption_fields(ctx.dataset)
        tracks = fields.track_fields(ctx.dataset)
        if not captions:
            return "No field holds captions yet. Caption tracks or regions first"
        _forms.pick_field(
            inputs,
            "captions",
            captions,
            label="Captions",
            description="Whose regions are embedded",
        )
        if tracks:
            _forms.pick_field(
                inputs, "tracks", tracks, label="Tracks", description="Where they are"
            )
        inputs.str(
            "weights",
            required=False,
            label="Weights of Patch-ioner",
            description="A folder or a hub id; empty for the default",
        )
        inputs.bool(
            "overwrite",
            default=False,
            label="Embed again what this model has embedded",
        )
        return None

    def job(
        self,
        samples: Any,
        params: Mapping[str, Any],
        listener: ProgressListener | bool,
        cancel: threading.Event | None,
    ) -> EmbedSummary:
        """Embeds, and writes."""
        return api.embed_regions(
            samples,
            params.get("captions") or "captions",
            tracks=params.get("tracks") or None,
            weights=params.get("weights") or None,
            overwrite=bool(params.get("overwrite")),
            progress=listener,
            cancel=cancel,
        )
