"""The operator ``propagate_masks``."""

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


class PropagateMasks(JobOperator):
    """Carries boxes, masks, points or polylines through videos as masks."""

    name = "propagate_masks"
    label = "Propagate masks"
    description = "Carry boxes, masks, points or polylines through videos as masks"
    action = "Propagate"

    def ask(self, inputs: types.Object, ctx: Any) -> str | None:
        """Adds the propagator's inputs."""
        return _parts.ask_propagate(inputs, ctx)

    def job(
        self,
        samples: Any,
        params: Mapping[str, Any],
        listener: Listener | bool,
        cancel: threading.Event | None,
    ) -> Summary:
        """Propagates."""
        return sdk.propagate_and_caption(
            samples,
            propagate=_parts.propagate_options(params),
            caption=None,
            propagator=params.get("propagator") or "auto",
            propagator_load=_parts.load_options(params, "propagator"),
            progress=listener,
            cancel=cancel,
        )
