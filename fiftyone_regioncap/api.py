"""The functions that people call from Python; operators and CLI call the same."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import fiftyone.core.collections as foco

from fiftyone_regioncap.captioning.base import Captioner, RegionEmbedder
from fiftyone_regioncap.captioning.registry import CAPTIONERS
from fiftyone_regioncap.core.errors import BackendError
from fiftyone_regioncap.core.progress import ProgressListener, progress_listener
from fiftyone_regioncap.dataset.fields import track_fields
from fiftyone_regioncap.dataset.tracks import MaskStorage
from fiftyone_regioncap.jobs import (
    CaptionOptions,
    PropagateOptions,
    RegionOptions,
    Summary,
    embedding,
    images,
    proposing,
    videos,
)
from fiftyone_regioncap.jobs.embedding import EmbedSummary
from fiftyone_regioncap.models.registry import AUTO, ModelRegistry, ModelSpec, T
from fiftyone_regioncap.propagation.base import Direction, Propagator
from fiftyone_regioncap.propagation.policy import Policy
from fiftyone_regioncap.propagation.proposals import ProposalOptions
from fiftyone_regioncap.propagation.registry import PROPAGATORS
from fiftyone_regioncap.system import database


def propagate(
    samples: foco.SampleCollection,
    prompts: str = "frames.prompts",
    *,
    output: str = "frames.tracks",
    propagator: str | Propagator = "auto",
    weights: str | None = None,
    device: str | None = None,
    backend_options: Mapping[str, Any] | None = None,
    direction: Direction = "both",
    start: int = 0,
    stop: int | None = None,
    overlap: bool = False,
    mask_storage: MaskStorage = "auto",
    output_dir: str | None = None,
    overwrite: bool = False,
    policy: Policy = Policy(),  # noqa: B008
    progress: bool | ProgressListener = True,
    cancel: threading.Event | None = None,
) -> Summary:
    """Carries prompts through videos and writes a mask per object and frame.

    Args:
        samples: videos: a dataset, a view, or a clips view.
        prompts: field with boxes, masks, points or polylines, on any frames.
        output: frame-level field for the tracks.
        propagator: a name (see ``regioncap models``), ``"auto"``, or one of your own.
        weights: a folder, a file or a hub id; None for the backend's default.
        device: such as ``"cuda"``; None for the best there is.
        backend_options: what only the chosen backend knows.
        direction: which way from the prompts.
        start: first frame of interest, 0-based.
        stop: one past the last frame of interest; None means the end.
        overlap: whether objects may share pixels.
        mask_storage: ``"inline"``, ``"disk"`` or ``"auto"``.
        output_dir: where masks on disk go; None for beside the media.
        overwrite: whether to do samples again that are complete.
        policy: what ends a track before the video does, such as scene cuts.
        progress: whether to draw a bar, or who is told of progress.
        cancel: set it to stop.

    Returns:
        what was done, failures included.

    Raises:
        FieldError: when a field is absent or of the wrong kind.
        BackendError: when the propagator can't run here.
        Cancelled: when ``cancel`` was set.
    """
    options = PropagateOptions(
        prompts=prompts,
        output=output,
        direction=direction,
        start=start,
        stop=stop,
        overlap=overlap,
        mask_storage=mask_storage,
        output_dir=output_dir,
        overwrite=overwrite,
        policy=policy,
    )
    return propagate_and_caption(
        samples,
        propagate=options,
        caption=None,
        propagator=propagator,
        propagator_load=ModelSpec(AUTO, weights, device, backend_options or {}),
        progress=progress,
        cancel=cancel,
    )


def caption(
    samples: foco.SampleCollection,
    tracks: str = "frames.tracks",
    *,
    output: str = "captions",
    captioner: str | Captioner = "auto",
    weights: str | None = None,
    device: str | None = None,
    backend_options: Mapping[str, Any] | None = None,
    prompt: str | None = None,
    window: int | Literal["change"] | None = None,
    summary: bool = False,
    overwrite: bool = False,
    progress: bool | ProgressListener = True,
    cancel: threading.Event | None = None,
) -> Summary:
    """Describes every track and writes the captions as temporal detections.

    Args:
        samples: videos: a dataset, a view, or a clips view.
        tracks: frame-level Detections with an ``index`` each.
        output: sample-level field for the captions.
        captioner: a name (see ``regioncap models``), ``"auto"``, or one of your own.
        weights: a folder, a file or a hub id; None for the backend's default.
        device: such as ``"cuda"``; None for the best there is.
        backend_options: what only the chosen backend knows.
        prompt: name of one of the captioner's prompts, or a text of your own.
        window: a caption for every so many frames, or with ``"change"`` for every
            stretch between changes of the object; None for one per track.
        summary: whether a track of several windows also gets a caption of its whole.
        overwrite: whether to do samples again that are complete.
        progress: whether to draw a bar, or who is told of progress.
        cancel: set it to stop.

    Returns:
        what was done, failures included.

    Raises:
        FieldError: when a field is absent or of the wrong kind.
        BackendError: when the captioner can't run here.
        Cancelled: when ``cancel`` was set.
    """
    options = CaptionOptions(
        tracks=tracks,
        output=output,
        prompt=prompt,
        window=window,
        summary=summary,
        overwrite=overwrite,
    )
    return propagate_and_caption(
        samples,
        propagate=None,
        caption=options,
        captioner=captioner,
        captioner_load=ModelSpec(AUTO, weights, device, backend_options or {}),
        progress=progress,
        cancel=cancel,
    )


def propagate_and_caption(
    samples: foco.SampleCollection,
    *,
    propagate: PropagateOptions | None = PropagateOptions(),  # noqa: B008
    caption: CaptionOptions | None = CaptionOptions(),  # noqa: B008
    propagator: str | Propagator = "auto",
    propagator_load: ModelSpec = ModelSpec(),  # noqa: B008
    captioner: str | Captioner = "auto",
    captioner_load: ModelSpec = ModelSpec(),  # noqa: B008
    progress: bool | ProgressListener = True,
    cancel: threading.Event | None = None,
) -> Summary:
    """Does both in one pass: a video is captioned while the next one is propagated.

    Args:
        samples: videos: a dataset, a view, or a clips view.
        propagate: how to propagate; None to leave the tracks as they are.
        caption: how to caption; None for no captions.
        propagator: a name, ``"auto"``, or one of your own.
        propagator_load: how to load a propagator given by name.
        captioner: a name, ``"auto"``, or one of your own.
        captioner_load: how to load a captioner given by name.
        progress: whether to draw a bar, or who is told of progress.
        cancel: set it to stop.

    Returns:
        what was done, failures included.

    Raises:
        FieldError: when a field is absent or of the wrong kind.
        BackendError: when a backend can't run here.
        Cancelled: when ``cancel`` was set.
    """
    database.ensure()
    reasons: list[str] = []
    with progress_listener(progress) as listener:
        summary = videos.run(
            samples,
            propagate=propagate,
            propagator=(
                _load(PROPAGATORS, propagator, propagator_load, reasons)
                if propagate is not None
                else None
            ),
            caption=caption,
            captioner=(
                _load(CAPTIONERS, captioner, captioner_load, reasons)
                if caption is not None
                else None
            ),
            listener=listener,
            cancel=cancel,
        )
    summary.backends = reasons
    return summary


def _load(
    registry: ModelRegistry[T], chosen: str | T, spec: ModelSpec, reasons: list[str]
) -> T:
    """Loads a backend given by name; one given as an object is taken as it is."""
    if isinstance(chosen, str):
        chosen, reason = registry.load(replace(spec, name=chosen))
        reasons.append(reason)
    return chosen


def caption_regions(
    samples: foco.SampleCollection,
    field: str,
    *,
    captioner: str | Captioner = "auto",
    weights: str | None = None,
    device: str | None = None,
    backend_options: Mapping[str, Any] | None = None,
    segmenter: str | Propagator | None = "auto",
    prompt: str | None = None,
    overwrite: bool = False,
    progress: bool | ProgressListener = True,
    cancel: threading.Event | None = None,
) -> Summary:
    """Describes the regions of images, and writes captions onto their labels.

    Args:
        samples: images: a dataset or a view.
        field: of Detections with or without masks, Polylines or Keypoints.
        captioner: a name (see ``regioncap models``), ``"auto"``, or one of your own.
        weights: of the captioner: a folder, a file or a hub id.
        device: such as ``"cuda"``; None for the best there is.
        backend_options: what only the chosen captioner knows.
        segmenter: the propagator that makes masks of boxes and points; None to take
            boxes as they are.
        prompt: name of one of the captioner's prompts, or a text of your own.
        overwrite: whether to caption regions again that have a caption.
        progress: whether to draw a bar, or who is told of progress.
        cancel: set it to stop.

    Returns:
        what was done, failures included.

    Raises:
        FieldError: when the field is absent or of the wrong kind.
        BackendError: when a backend can't run here.
        Cancelled: when ``cancel`` was set.
    """
    database.ensure()
    reasons: list[str] = []
    load = ModelSpec(AUTO, weights, device, backend_options or {})
    with progress_listener(progress) as listener:
        summary = images.run(
            samples,
            RegionOptions(field, prompt, overwrite),
            _load(CAPTIONERS, captioner, load, reasons),
            segmenter=(
                None
                if segmenter is None
                else _load(PROPAGATORS, segmenter, ModelSpec(device=device), reasons)
            ),
            listener=listener,
            cancel=cancel,
        )
    summary.backends = reasons
    return summary


def propose(
    samples: foco.SampleCollection,
    *,
    output: str = "frames.prompts",
    propagator: str | Propagator = "auto",
    weights: str | None = None,
    device: str | None = None,
    options: ProposalOptions = ProposalOptions(),  # noqa: B008
    overwrite: bool = False,
    progress: bool | ProgressListener = True,
    cancel: threading.Event | None = None,
) -> Summary:
    """Finds the objects of videos that have no prompts, and writes a prompt for each.

    Args:
        samples: videos: a dataset, a view, or a clips view.
        output: frame-level field for the prompts.
        propagator: whose model finds masks: a name, ``"auto"``, or one of your own.
        weights: a folder, a file or a hub id; None for the backend's default.
        device: such as ``"cuda"``; None for the best there is.
        options: what counts as an object.
        overwrite: whether to do samples again that are complete.
        progress: whether to draw a bar, or who is told of progress.
        cancel: set it to stop.

    Returns:
        what was done, failures included.

    Raises:
        BackendError: when the propagator's model doesn't segment single frames.
        Cancelled: when ``cancel`` was set.
    """
    database.ensure()
    reasons: list[str] = []
    with progress_listener(progress) as listener:
        summary = proposing.run(
            samples,
            output,
            _load(PROPAGATORS, propagator, ModelSpec(AUTO, weights, device), reasons),
            options,
            overwrite=overwrite,
            listener=listener,
            cancel=cancel,
        )
    summary.backends = reasons
    return summary


def embed_regions(
    samples: foco.SampleCollection,
    field: str = "captions",
    *,
    tracks: str | None = None,
    captioner: str | RegionEmbedder = "patchioner",
    weights: str | None = None,
    device: str | None = None,
    backend_options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: bool | ProgressListener = True,
    cancel: threading.Event | None = None,
) -> EmbedSummary:
    """Embeds the regions of captions by how they look, whoever wrote the captions.

    What captioners such as Patch-ioner leave with their own captions, this adds to
    those of others: visual search and maps, and the comparison of captions with their
    regions, then work on them too.

    Args:
        samples: videos or images: a dataset or a view.
        field: of the captions.
        tracks: of a video's tracks; None for the first field of tracks.
        captioner: a name of one that embeds regions, or one of your own.
        weights: a folder, a file or a hub id; None for the captioner's default.
        device: such as ``"cuda"``; None for the best there is.
        backend_options: what only the chosen captioner knows.
        overwrite: whether to embed regions again that this model has embedded.
        progress: whether to draw a bar, or who is told of progress.
        cancel: set it to stop.

    Returns:
        what was done, failures included.

    Raises:
        FieldError: when a field is absent or of the wrong kind.
        BackendError: when the captioner embeds no regions, or can't run here.
        Cancelled: when ``cancel`` was set.
    """
    database.ensure()
    reasons: list[str] = []
    load = ModelSpec(AUTO, weights, device, backend_options or {})
    embedder: object = captioner
    if isinstance(captioner, str):
        embedder = _load(CAPTIONERS, captioner, load, reasons)
    if not isinstance(embedder, RegionEmbedder):
        raise BackendError(
            f"the captioner {captioner!r} embeds no regions; patchioner does"
        )
    if tracks is None:
        tracks = next(iter(track_fields(samples._root_dataset)), None)
    with progress_listener(progress) as listener:
        summary = embedding.run(
            samples,
            field,
            tracks,
            embedder,
            overwrite=overwrite,
            listener=listener,
            cancel=cancel,
        )
    summary.backends = reasons
    return summary
