"""Captions of all that is on pictures, from Python; operator and CLI call the same."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import fiftyone.core.collections as foco

from fiftyone_regioncap.captioning.patchioner.captioner import PatchionerCaptioner
from fiftyone_regioncap.captioning.registry import CAPTIONERS
from fiftyone_regioncap.core.errors import BackendError
from fiftyone_regioncap.core.progress import ProgressListener, progress_listener
from fiftyone_regioncap.jobs import dense_captioning as everything
from fiftyone_regioncap.jobs.options import DenseCaptionOptions
from fiftyone_regioncap.jobs.proposing import Segmenting
from fiftyone_regioncap.jobs.summary import Summary
from fiftyone_regioncap.models.registry import ModelSpec
from fiftyone_regioncap.propagation.base import Propagator
from fiftyone_regioncap.propagation.proposals import Segmenter
from fiftyone_regioncap.propagation.registry import PROPAGATORS
from fiftyone_regioncap.system import database


def caption_everything(
    samples: foco.SampleCollection,
    *,
    options: DenseCaptionOptions = DenseCaptionOptions(),  # noqa: B008
    captioner: str | PatchionerCaptioner = "patchioner",
    weights: str | None = None,
    device: str | None = None,
    backend_options: Mapping[str, Any] | None = None,
    propagator: str | Propagator | None = None,
    propagator_weights: str | None = None,
    progress: bool | ProgressListener = True,
    cancel: threading.Event | None = None,
) -> Summary:
    """Describes every part of images or of frames of videos, and maps where a text is.

    Args:
        samples: images or videos: a dataset, a view, or a clips view.
        options: fields, frames, the text to look for.
        captioner: ``"patchioner"``, or one of your own of that class.
        weights: of the captioner: a folder or a hub id; None for the default.
        device: such as ``"cuda"``; None for the best there is.
        backend_options: of the captioner.
        propagator: whose model finds the parts: a name, ``"auto"``, or one of your
            own; None for clusters of like patches.
        propagator_weights: a folder, a file or a hub id; None for the default.
        progress: whether to draw a bar, or who is told of progress.
        cancel: set it to stop.

    Returns:
        what was done, failures included.

    Raises:
        FieldError: when an output is no name for a field.
        BackendError: when the captioner is another than Patch-ioner, or the
            propagator's model doesn't segment single frames.
        WeightsError: when weights are not to be had.
        PromptError: when the text to look for is too long.
        Cancelled: when ``cancel`` was set.
    """
    database.ensure()
    reasons: list[str] = []
    segmenter = None
    if propagator is not None:
        if isinstance(propagator, str):
            spec = ModelSpec(propagator, propagator_weights, device)
            propagator = PROPAGATORS.obtain(spec, reasons)
        segmenter = _segmenter(propagator)
    if isinstance(captioner, str):
        spec = ModelSpec(captioner, weights, device, backend_options or {})
        captioner = _captioner(spec, reasons)
    with progress_listener(progress) as listener:
        summary = everything.run(
            samples,
            options,
            captioner,
            segmenter=segmenter,
            listener=listener,
            cancel=cancel,
        )
    summary.backends = reasons
    return summary


def _captioner(spec: ModelSpec, reasons: list[str]) -> PatchionerCaptioner:
    if spec.name != "patchioner":
        raise BackendError(
            f"{spec.name} describes marked regions only; use the captioner patchioner"
        )
    captioner = CAPTIONERS.obtain(spec, reasons)
    assert isinstance(captioner, PatchionerCaptioner)
    return captioner


def _segmenter(propagator: Propagator) -> Segmenter:
    if not isinstance(propagator, Segmenting):
        raise BackendError(
            f"{propagator.info.name} finds no objects; choose mobilesam or sam2, or "
            "none for clusters of like patches"
        )
    return propagator.segmenter()
