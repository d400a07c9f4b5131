"""The operator ``caption_regions``."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from fiftyone.operators import types

from fiftyone_regioncap import api
from fiftyone_regioncap.captioning.registry import CAPTIONERS
from fiftyone_regioncap.core.progress import ProgressListener
from fiftyone_regioncap.dataset import fields
from fiftyone_regioncap.jobs import Summary
from fiftyone_regioncap.propagation.registry import PROPAGATORS

from . import _forms, _parts
from ._operator import JobOperator


class CaptionRegions(JobOperator):
    """Describes the labeled regions of images."""

    name = "caption_regions"
    label = "Caption regions"
    description = "Describe the labeled regions of images"
    action = "Caption"
    media = ("image", "group")

    def ask(self, inputs: types.Object, ctx: Any) -> str | None:
        """Adds the field, the captioner and the segmenter."""
        regions = fields.region_fields(ctx.dataset)
        if not regions:
            return "No field holds Detections, Polylines or Keypoints yet"
        _forms.pick_field(
            inputs,
            "field",
            regions,
            label="Regions",
            description="Captions are written onto these labels",
        )
        _forms.pick_backend(inputs, ctx, CAPTIONERS, label="Captioner")
        _forms.pick_backend(
            inputs, ctx, PROPAGATORS, label="Segmenter for boxes and points"
        )
        inputs.str("prompt", required=False, label="Prompt")
        inputs.bool("overwrite", default=False, label="Replace captions")
        return None

    def job(
        self,
        samples: Any,
        params: Mapping[str, Any],
        listener: ProgressListener | bool,
        cancel: threading.Event | None,
    ) -> Summary:
        """Captions."""
        load = _parts.load_options(params, "captioner")
        return api.caption_regions(
            samples,
            params["field"],
            captioner=params.get("captioner") or "auto",
            weights=load.weights,
            device=load.device,
            segmenter=params.get("propagator") or "auto",
            prompt=params.get("prompt") or None,
            overwrite=bool(params.get("overwrite")),
            progress=listener,
            cancel=cancel,
        )
