"""What the operators of the main job have in common: each does a half, or both."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from fiftyone.operators import types

from fiftyone_regioncap import api
from fiftyone_regioncap.core.progress import ProgressListener
from fiftyone_regioncap.jobs import Summary

from . import _parts
from ._operator import JobOperator


class TrackOperator(JobOperator):
    """An operator that propagates prompts, captions tracks, or both.

    Attributes:
        propagates: whether it makes tracks; else it takes those that are there.
        captions: whether it describes them.
    """

    propagates: bool
    captions: bool

    def ask(self, inputs: types.Object, ctx: Any) -> str | None:
        """Adds the inputs of what it does."""
        ask = _parts.ask_propagate if self.propagates else _parts.ask_tracks
        problem = ask(inputs, ctx)
        if problem is None and self.captions:
            _parts.ask_caption(inputs, ctx)
        return problem

    def job(
        self,
        samples: Any,
        params: Mapping[str, Any],
        listener: ProgressListener | bool,
        cancel: threading.Event | None,
    ) -> Summary:
        """Does it."""
        return api.propagate_and_caption(
            samples,
            propagate=_parts.propagate_options(params) if self.propagates else None,
            caption=_parts.caption_options(params) if self.captions else None,
            propagator=params.get("propagator") or "auto",
            propagator_load=_parts.load_options(params, "propagator"),
            captioner=params.get("captioner") or "auto",
            captioner_load=_parts.load_options(params, "captioner"),
            progress=listener,
            cancel=cancel,
        )
