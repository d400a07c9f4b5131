"""Jobs on videos: propagate prompts, caption tracks, or both in one pass."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import asdict
from typing import Any

import fiftyone.core.collections as foco

from fiftyone_regioncap.captioning.base import Captioner
from fiftyone_regioncap.core.progress import ProgressListener, ProgressReporter, Stage
from fiftyone_regioncap.dataset import fields, runs, schema
from fiftyone_regioncap.dataset.targets import Targets, video_targets
from fiftyone_regioncap.jobs.captioning import Captioning
from fiftyone_regioncap.jobs.ledger import Ledger, Summary
from fiftyone_regioncap.jobs.options import CaptionOptions, PropagateOptions
from fiftyone_regioncap.jobs.propagating import Propagating
from fiftyone_regioncap.propagation.base import Propagator


def run(
    samples: foco.SampleCollection,
    *,
    propagate: PropagateOptions | None = None,
    propagator: Propagator | None = None,
    caption: CaptionOptions | None = None,
    captioner: Captioner | None = None,
    listener: ProgressListener | None = None,
    cancel: threading.Event | None = None,
) -> Summary:
    """Propagates prompts, captions tracks, or both.

    A job that was killed goes on where it stopped when it is run again with the same
    arguments.

    Args:
        samples: videos: a dataset, a view, or a clips view.
        propagate: how; None to leave the tracks as they are.
        propagator: needed with ``propagate``.
        caption: how; None for no captions.
        captioner: needed with ``caption``.
        listener: is told how far the job is.
        cancel: set it to stop the job after its next step.

    Returns:
        what was done, failures included.

    Raises:
        FieldError: when a field is absent or of the wrong kind; nothing is written.
        Cancelled: when ``cancel`` was set; what was written stays.
    """
    targets = video_targets(samples)
    _check_fields(targets, propagate, caption)
    stages: list[Stage] = []
    if propagate is not None:
        stages.append("propagate")
    if caption is not None:
        stages.append("caption")
    summary = Summary(samples=len(targets))
    ledger = Ledger(summary, ProgressReporter(stages, len(targets), listener, cancel))
    began = time.monotonic()

    waiting = targets.samples()
    if propagate is not None and propagator is not None:
        waiting = Propagating(propagate, propagator, ledger).run(waiting)
    if caption is not None and captioner is not None:
        Captioning(caption, captioner, ledger).run(waiting)
    else:
        deque(waiting, maxlen=0)

    summary.seconds = time.monotonic() - began
    summary.run = _record(targets, summary, propagate, propagator, caption, captioner)
    return summary


def _check_fields(
    targets: Targets, propagate: PropagateOptions | None, caption: CaptionOptions | None
) -> None:
    """Declares the output fields, so that a wrong one fails before any work."""
    dataset = targets.dataset
    if propagate is not None:
        fields.require_prompts(dataset, propagate.prompts)
        fields.require_output(propagate.output, propagate.prompts)
        schema.declare_tracks(dataset, propagate.output)
    if caption is not None:
        fields.require_tracks(dataset, caption.tracks)
        fields.require_output(caption.output, caption.tracks)
        schema.declare_captions(dataset, caption.output)


def _record(
    targets: Targets,
    summary: Summary,
    propagate: PropagateOptions | None,
    propagator: Propagator | None,
    caption: CaptionOptions | None,
    captioner: Captioner | None,
) -> str:
    """Writes the job's provenance as a custom run of the dataset."""
    config: dict[str, Any] = {}
    if propagate is not None and propagator is not None:
        config["propagate"] = asdict(propagate)
        config["propagator"] = asdict(propagator.info)
    if caption is not None and captioner is not None:
        info = captioner.info
        config["caption"] = asdict(caption)
        config["captioner"] = {
            "name": info.name,
            "model": info.model,
            "revision": info.revision,
            "license": info.license,
            "space": None if info.space is None else asdict(info.space),
        }
    key = runs.run_key("_and_".join(k for k in ("propagate", "caption") if k in config))
    runs.record_run(targets.dataset, key, config, {"summary": summary.to_dict()})
    return key
