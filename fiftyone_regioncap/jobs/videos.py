"""Jobs on videos: propagate prompts, caption tracks, or both in one pass."""

from __future__ import annotations

from typing import Any

import fiftyone.core.collections as foco

from fiftyone_regioncap.captioning.base import Captioner
from fiftyone_regioncap.jobs.executors.local import run_stages
from fiftyone_regioncap.jobs.options import CaptionOptions, PropagateOptions
from fiftyone_regioncap.jobs.summary import Summary
from fiftyone_regioncap.propagation.base import Propagator


def run(
    samples: foco.SampleCollection,
    *,
    propagate: PropagateOptions | None = None,
    propagator: Propagator | None = None,
    caption: CaptionOptions | None = None,
    captioner: Captioner | None = None,
    **reporting: Any,
) -> Summary:
    """Propagates prompts, captions tracks, or both; see :func:`run_stages`."""
    stages = {"propagate": propagate, "caption": caption}
    name = "_and_".join(stage for stage, options in stages.items() if options)
    models = {"propagator": propagator, "captioner": captioner}
    return run_stages(samples, name, stages, models, **reporting)
