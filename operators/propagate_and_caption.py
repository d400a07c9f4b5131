"""The operator ``propagate_and_caption``."""

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


class PropagateAndCaption(JobOperator):
    """Masks the marked objects through videos and describes each of them."""

    name = "propagate_and_caption"
    label = "Propagate and caption"
    description = "Mask the marked objects through videos and describe each of them"
    action = "Propagate and caption"

    def ask(self, inputs: types.Object, ctx: Any) -> str | None:
        """Adds the inputs of both."""
        problem = _parts.ask_propagate(inputs, ctx)
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
        """Propagates and captions."""
        return sdk.propagate_and_caption(
            samples,
            propagate=_parts.propagate_options(params),
            caption=_parts.caption_options(params),
            propagator=params.get("propagator") or "auto",
            propagator_load=_parts.load_options(params, "propagator"),
            captioner=params.get("captioner") or "auto",
            captioner_load=_parts.load_options(params, "captioner"),
            progress=listener,
            cancel=cancel,
        )
