"""Buttons beside an open sample: propagate, go on from a correction, describe."""

from __future__ import annotations

from typing import Any

from fiftyone.operators import types

from fiftyone_regioncap.operations import OPERATIONS

from ._operations import OperationOperator


class _Button(OperationOperator):
    """An operation as a button beside the open sample.

    Attributes:
        name: Name of the operator.
        label: Title of the button and the form.
    """

    name: str
    label: str

    @property
    def config(self) -> Any:
        """Configuration of the operator; the browser lists the operation itself."""
        config = super().config
        config.name, config.label, config.unlisted = self.name, self.label, True
        config.icon = None
        return config

    def resolve_placement(self, ctx: Any) -> types.Placement | None:
        """Returns a button beside the open sample."""
        media = None if ctx.dataset is None else ctx.dataset.media_type
        if media not in self.operation.media:
            return None
        # Without an icon the App shows the label, which says more.
        button = types.Button(label=self.label, prompt=True)
        return types.Placement(types.Places.SAMPLES_VIEWER_ACTIONS, button)


class PropagateHere(_Button):
    """Propagates what is marked on the open sample."""

    name = "propagate_here"
    label = "Propagate"
    operation = OPERATIONS["propagate"]


class CaptionHere(_Button):
    """Describes the selected object, or all of the open sample."""

    name = "caption_here"
    label = "Caption this object"
    operation = OPERATIONS["caption"]


class PropagateFromHere(_Button):
    """Makes a track anew from a frame that a person corrected."""

    name = "propagate_from_correction"
    label = "Propagate from here"
    operation = OPERATIONS["propagate_from"]


PICTURE_OPERATORS = (PropagateHere, PropagateFromHere, CaptionHere)
