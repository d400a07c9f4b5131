"""The operator ``caption_tracks``."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from fiftyone.operators import types

from fiftyone_regioncap import sdk
from fiftyone_regioncap.jobs import Summary
from fiftyone_regioncap.progress import Listener

from . import _parts
from ._operator import JobOperator


class CaptionTracks(JobOperator):
    """Describes every track of a frame field."""

    name = "caption_tracks"
    label = "Caption tracks"
    description = "Describe every track of a frame field"
    action = "Caption"

    def ask(self, inputs: types.Object, ctx: Any) -> str | None:
        """Adds the captioner's inputs."""
        problem = _parts.ask_tracks(inputs, ctx)
        if problem is None:
            _parts.ask_caption(inputs, ctx)
        return problem

    def job(
        self,
        samples: Any,
        params: Mapping[str, Any],
        listener: Listener | bool,
        cancel: threading.Event | None,
    ) -> Summary:
        """Captions."""
        return sdk.propagate_and_caption(
            samples,
            propagate=None,
            caption=_parts.caption_options(params),
            captioner=params.get("captioner") or "auto",
            captioner_load=_parts.load_options(params, "captioner"),
            progress=listener,
            cancel=cancel,
        )
