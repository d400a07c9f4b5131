"""The operator ``caption_everything``."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import fiftyone as fo
import fiftyone.core.media as fom
from fiftyone.operators import types

from fiftyone_regioncap.captioning.registry import CAPTIONERS
from fiftyone_regioncap.core.progress import ProgressListener
from fiftyone_regioncap.jobs import Summary
from fiftyone_regioncap.jobs.dense_captions import (
    DenseCaptionOptions,
    caption_everything,
)
from fiftyone_regioncap.propagation.registry import PROPAGATORS

from . import _forms, _parts
from ._operator import JobOperator


class CaptionEverything(JobOperator):
    """Describes all parts of images or frames, and maps where a text is on them."""

    name = "caption_everything"
    label = "Caption everything"
    description = "Describe all parts of images or frames; map where a text is on them"
    action = "Caption"
    media = ("video", "image", "group")

    def ask(self, inputs: types.Object, ctx: Any) -> str | None:
        """Adds the fields, the text to look for, and what finds the parts."""
        defaults = DenseCaptionOptions()
        # Of a dataset of groups, the view says which slices are meant.
        video = ctx.view.media_type == fom.VIDEO
        schema = (
            ctx.dataset.get_frame_field_schema
            if video
            else ctx.dataset.get_field_schema
        )
        prefix = "frames." if video else ""
        kind = {"ftype": fo.EmbeddedDocumentField}
        parts = schema(**kind, embedded_doc_type=fo.Detections) or {}
        maps = schema(**kind, embedded_doc_type=fo.Heatmap) or {}
        taken = [prefix + field for field in schema() or {}]
        _forms.output_field(
            inputs,
            ctx,
            "output",
            default=prefix + defaults.output,
            label="Parts and their captions",
            existing=[prefix + field for field in parts],
            taken=taken,
        )
        inputs.int("count", default=defaults.count, min=1, label="Parts at most")
        if video:
            inputs.int("every", default=defaults.every, min=1, label="Every n-th frame")
        inputs.str(
            "query",
            required=False,
            label="Text to look for",
            description="Adds a heat map of where it is; empty for none",
        )
        if ctx.params.get("query"):
            heatmap = inputs.str(
                "heatmap",
                default=prefix + defaults.heatmap,
                required=True,
                label="Heat maps",
                description="A new field, or one of heat maps",
            )
            value = ctx.params.get("heatmap") or prefix + defaults.heatmap
            own = [prefix + field for field in maps]
            if value in taken and value not in own:
                heatmap.invalid = True
                heatmap.error_message = f"{value} holds something else"
        inputs.str(
            "captioner_weights",
            required=False,
            label="Weights of Patch-ioner",
            description="A folder or a hub id; empty for the default",
        )
        missing = CAPTIONERS["patchioner"].missing()
        if missing is not None and not ctx.params.get("captioner_weights"):
            inputs.view(
                "captioner_missing",
                types.Warning(label="Patch-ioner is not ready", description=missing),
            )
        inputs.bool(
            "proposals",
            default=False,
            label="Parts are objects that a segmenter finds",
            description="Else clusters of patches that look alike",
        )
        if ctx.params.get("proposals"):
            _forms.pick_backend(inputs, ctx, PROPAGATORS, label="Segmenter")
        return None

    def job(
        self,
        samples: Any,
        params: Mapping[str, Any],
        listener: ProgressListener | bool,
        cancel: threading.Event | None,
    ) -> Summary:
        """Describes everything."""
        defaults = DenseCaptionOptions()
        captioner = _parts.load_options(params, "captioner")
        propagator = params.get("propagator") or "auto"
        return caption_everything(
            samples,
            options=DenseCaptionOptions(
                output=params.get("output") or defaults.output,
                every=params.get("every") or defaults.every,
                count=params.get("count") or defaults.count,
                query=params.get("query") or None,
                heatmap=params.get("heatmap") or defaults.heatmap,
                overwrite=_parts.overwrites(params),
            ),
            weights=captioner.weights,
            device=captioner.device,
            backend_options=captioner.options,
            propagator=propagator if params.get("proposals") else None,
            propagator_weights=params.get("propagator_weights") or None,
            progress=listener,
            cancel=cancel,
        )
