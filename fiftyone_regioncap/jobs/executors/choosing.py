"""Chooses the executor of a job."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import fiftyone.core.collections as foco

from fiftyone_regioncap.core.errors import OptionError
from fiftyone_regioncap.core.options import Options
from fiftyone_regioncap.core.progress import ProgressListener
from fiftyone_regioncap.jobs.base import Executor, Job, StageSpec
from fiftyone_regioncap.jobs.executors.local import LocalExecutor
from fiftyone_regioncap.jobs.executors.processes import ProcessExecutor, has_gpus
from fiftyone_regioncap.jobs.metrics import served
from fiftyone_regioncap.jobs.options import ExecutionOptions
from fiftyone_regioncap.models.registry import ModelSpec


def run_stages(
    samples: foco.SampleCollection,
    name: str,
    stages: Mapping[str, Options | None],
    models: Mapping[str, Any],
    execution: Options | None = None,
    *,
    listener: ProgressListener | None = None,
    cancel: threading.Event | None = None,
) -> Any:
    """Runs stages on samples.

    Args:
        samples: A dataset or a view.
        name: Name of the job, that begins its run's key.
        stages: Options of the stages by name, in their order; those that are None are
            left out.
        models: Models by role: specifications, loaded models, or None for none.
        execution: Where the job runs; None for the default.
        listener: Called with progress events.
        cancel: Set by any thread to stop the job; what was written stays.

    Returns:
        The summary of the last stage.

    Raises:
        FieldError: When a field is absent or of the wrong kind; nothing is written.
        BackendError: When a model can't do what a stage needs.
        Canceled: When ``cancel`` was set.
    """
    specs = {k: v for k, v in models.items() if isinstance(v, ModelSpec)}
    loaded = {k: v for k, v in models.items() if v is not None and k not in specs}
    chosen = [
        StageSpec.of(stage, options, **specs)
        for stage, options in stages.items()
        if options is not None
    ]
    job = Job.of(samples, name, *chosen)
    chosen_here = execution or ExecutionOptions()
    assert isinstance(chosen_here, ExecutionOptions)
    executor = _executor(chosen_here, job, loaded, samples)
    with served(chosen_here.metrics_port):
        return executor.run(job, listener=listener, cancel=cancel)


def _executor(
    options: ExecutionOptions,
    job: Job,
    loaded: Mapping[str, Any],
    samples: foco.SampleCollection,
) -> Executor:
    """Makes the executor that options name.

    Raises:
        OptionError: When models are loaded here already that workers have to load.
    """
    name = options.executor
    if name == "auto":
        free = all(
            spec.device in (None, "cuda")
            for stage in job.stages
            for spec in stage.models.values()
        )
        several = not loaded and free and len(samples) > 1 and has_gpus(2)
        name = "processes" if several else "local"
    if name == "local":
        return LocalExecutor(loaded, samples)
    if loaded:
        raise OptionError(
            f"executor={name}: workers load their models themselves; give the "
            f"{next(iter(loaded))} by its name"
        )
    if name == "processes":
        return ProcessExecutor(options.workers, options.captioners)
    from fiftyone_regioncap.jobs.executors.on_ray import RayExecutor

    return RayExecutor(options.workers, options.captioners, options.address)
