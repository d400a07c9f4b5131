"""A propagator that fails in the middle of a video."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fiftyone_regioncap.propagation.flow import FlowPropagator


class FailingFlow(FlowPropagator):
    """Optical flow that fails on its fourth frame."""

    def propagate(self, request: Any) -> Iterator[Any]:  # type: ignore[override]
        """Yields three frames, and fails."""
        for number, masks in enumerate(super().propagate(request)):
            if number == 3:
                raise RuntimeError("out of memory")
            yield masks
