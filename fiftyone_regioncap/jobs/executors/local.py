"""Runs jobs in this process, beside others that may share the work."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import fiftyone.core.collections as foco

from fiftyone_regioncap.core.progress import Flag, ProgressListener
from fiftyone_regioncap.dataset import appearance
from fiftyone_regioncap.dataset.sequences import as_videos
from fiftyone_regioncap.jobs.base import Job
from fiftyone_regioncap.jobs.board import Run
from fiftyone_regioncap.jobs.executors.working import (
    Prepared,
    Worker,
    job_signature,
    on_frames,
    writes,
)
from fiftyone_regioncap.jobs.summary import Report


@dataclass(frozen=True)
class LocalExecutor:
    """Runs the stages of a job in this process; see :class:`Executor`.

    Samples are claimed before they are worked on, so that processes that run the same
    job at the same time share them.

    Attributes:
        models: Loaded models by role, used instead of the job's specifications.
        samples: The samples, where the caller has them at hand; else those that the
            job names are loaded.
    """

    models: Mapping[str, Any] = field(default_factory=dict)
    samples: foco.SampleCollection | None = None

    def run(
        self,
        job: Job,
        *,
        listener: ProgressListener | None = None,
        cancel: threading.Event | None = None,
    ) -> Report:
        """Runs a job to its end; see :meth:`Executor.run`."""
        samples = job.samples() if self.samples is None else self.samples
        run = Run.begin(
            job.name,
            job.dataset,
            samples._root_dataset._doc.id,
            writes(job),
            job_signature(job, self.models),
            executor="local",
        )
        with (
            run.watched(listener, cancel) as (listen, flags),
            as_videos(samples) as videos,
        ):
            prepared = Prepared.of(
                on_frames(job, videos), videos.samples, self.models, listen
            )
            if videos.samples is not samples:
                prepared = replace(prepared, root=samples._root_dataset)
            run.outcome = _work(job, prepared, run, listen, flags)
        return run.outcome


def _work(
    job: Job, prepared: Prepared, run: Run, listen: ProgressListener, flags: Flag
) -> Report:
    """Does a job whose models are loaded."""
    run.shown["samples"] = len(prepared.targets)
    context = prepared.context(listen, flags)
    began = time.monotonic()
    worker = Worker(prepared, run, context, run.id)
    try:
        worker.work()
    finally:
        run.shown["progress"] = worker.meter.read()
    context.summary.seconds = time.monotonic() - began
    prepared.remember_costs(context)
    context.patiently(lambda: appearance.tidy(prepared.root, *writes(job)))
    context.patiently(lambda: prepared.record(context.summary))
    return context.summary
