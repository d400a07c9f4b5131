"""Runs jobs in this process, beside others that may share the work."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import fiftyone.core.collections as foco

from fiftyone_regioncap.core.errors import Cancelled
from fiftyone_regioncap.core.progress import ProgressListener
from fiftyone_regioncap.jobs.base import Job
from fiftyone_regioncap.jobs.board import Run, State
from fiftyone_regioncap.jobs.executors.working import (
    CancelFlags,
    Prepared,
    Worker,
    job_signature,
    progress_of,
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
        prepared = Prepared.of(job, self.samples, self.models, listener)
        run = Run.begin(
            job.name,
            job.dataset,
            prepared.root._doc.id,
            writes(job),
            job_signature(job, self.models),
            executor="local",
            samples=len(prepared.targets),
        )
        context = prepared.context(listener, CancelFlags(cancel, run.cancelled))
        began = time.monotonic()
        state: State = "failed"
        try:
            Worker(prepared, run, context, run.id).work()
            state = "done"
        except Cancelled:
            state = "cancelled"
            raise
        finally:
            with contextlib.suppress(Exception):  # the job's own error is what counts
                run.end(state, {"progress": progress_of(context)})
        context.summary.seconds = time.monotonic() - began
        prepared.remember_costs(context)
        context.patiently(lambda: prepared.record(context.summary))
        return context.summary
