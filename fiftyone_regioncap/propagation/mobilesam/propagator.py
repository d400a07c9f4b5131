"""MobileSAM as a propagator, the default one."""

from __future__ import annotations

from pathlib import Path

import torch

from fiftyone_regioncap.propagation.base import PropagationRequest, PropagatorInfo
from fiftyone_regioncap.propagation.mobilesam.configuration import (
    WEIGHTS,
    MobileSamOptions,
)
from fiftyone_regioncap.propagation.mobilesam.pointing import PointSegmenter
from fiftyone_regioncap.propagation.mobilesam.searching import side_for
from fiftyone_regioncap.propagation.mobilesam.segmenter import Grid, MobileSam
from fiftyone_regioncap.propagation.mobilesam.settings import Settings
from fiftyone_regioncap.propagation.mobilesam.tracker import MobileSamTracker
from fiftyone_regioncap.propagation.stream import StreamPropagation
from fiftyone_regioncap.system import assets

SHA256 = "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f"
"""Of the published ``mobile_sam.pt``."""


class MobileSamPropagator:
    """Carries prompts through a video with MobileSAM.

    A :class:`~fiftyone_regioncap.propagation.base.Propagator`. A prompt becomes a mask
    on its frame; from there masks are carried by matching features of MobileSAM's image
    encoder between frames, and refined by its mask decoder.
    """

    info = PropagatorInfo("mobilesam", "mobile_sam.pt", SHA256, "Apache-2.0")

    def __init__(
        self,
        model: MobileSam,
        settings: Settings | None = None,
        *,
        options: MobileSamOptions | None = None,
    ) -> None:
        """Takes a loaded model.

        Args:
            model: MobileSAM model.
            settings: Settings of tracking; None for those of the options.
            options: Options; None for the defaults.
        """
        self._model = model
        self.options = options or MobileSamOptions()
        self._settings = settings or self.options.settings()

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path = WEIGHTS,
        device: str | torch.device | None = None,
        options: MobileSamOptions | None = None,
    ) -> MobileSamPropagator:
        """Loads the published weights.

        Args:
            path: Path of the weights file; the asset is fetched when only its name is
                given.
            device: Torch device to run on; None for a GPU where there is one.
            options: Options, such as the quality preset; None for the defaults.

        Returns:
            The propagator.

        Raises:
            WeightsError: When the weights are absent or of another model.
        """
        if path == WEIGHTS:
            path = assets.fetch(WEIGHTS)
        model = MobileSam.from_pretrained(path, device)
        return cls(model, options=options)

    def segmenter(self) -> PointSegmenter:
        """Returns the model on single frames, for proposals."""
        return PointSegmenter(self._model, self._settings.side)

    def propagate(self, request: PropagationRequest) -> StreamPropagation:
        """Starts or resumes a run; see the protocol."""
        frames, settings = request.frames, self._settings
        prompts = sorted(
            request.prompts,
            key=lambda prompt: prompt.frame,
            reverse=request.direction == "backward",
        )
        side = side_for(prompts, frames.height, frames.width, settings)
        grid = Grid(frames.height, frames.width, side)
        return StreamPropagation(
            request,
            lambda: MobileSamTracker(self._model, grid, settings, request.overlap),
            (self.info, settings),
        )
