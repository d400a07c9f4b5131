"""Runs jobs in this process."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import fiftyone.core.collections as foco
import fiftyone.core.media as fom

from fiftyone_regioncap.core.errors import VideoError
from fiftyone_regioncap.core.options import Options
from fiftyone_regioncap.core.progress import ProgressEvent, ProgressListener
from fiftyone_regioncap.core.progress import Stage as StageName
from fiftyone_regioncap.dataset import runs
from fiftyone_regioncap.dataset.metadata import correct_metadata
from fiftyone_regioncap.dataset.targets import Targets
from fiftyone_regioncap.jobs import costs
from fiftyone_regioncap.jobs.base import (
    STAGES,
    Item,
    Job,
    RunContext,
    Stage,
    StageSpec,
)
from fiftyone_regioncap.jobs.summary import Failure, Report, Summary
from fiftyone_regioncap.models.registry import ModelSpec


@dataclass(frozen=True)
class LocalExecutor:
    """Runs the stages of a job in this process; see :class:`Executor`.

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
        reasons: list[str] = []
        stages = list(self._stages(job, reasons, listener))
        targets = stages[0].targets(samples)
        for stage in stages:
            stage.check(samples)
        summary = stages[-1].summary(samples=len(targets), backends=reasons)
        names = [stage.name for stage in stages]
        if isinstance(summary, Summary):
            summary.stages = tuple(names)
        models = {stage.name: _model_of(stage) for stage in stages}
        context = RunContext.of(
            summary, names, listener, cancel, _expected_costs(targets, models)
        )
        began = time.monotonic()
        items = _load(targets, context)
        for stage in stages:
            items = stage.run(items, context)
        deque(items, maxlen=0)
        summary.seconds = time.monotonic() - began
        _remember_costs(context, models)
        summary.run = runs.run_key(job.name)
        config = {"job": job.record()}
        for stage in stages:
            config.update(stage.record())
        results = {"summary": summary.to_dict()}
        runs.record_run(samples._root_dataset, summary.run, config, results)
        return summary

    def _stages(
        self, job: Job, reasons: list[str], listener: ProgressListener | None
    ) -> Iterator[Stage]:
        """Makes the stages; models are loaded where none was given."""
        for spec in job.stages:
            kind: Any = STAGES[spec.stage]
            for role in kind.models:
                if listener is not None and role in spec.models:
                    message = f"Loading the {role} {spec.models[role].name}"
                    listener(ProgressEvent(kind.name, message, 0.0, 0, 0, None))
            models = {
                role: self.models[role]
                if role in self.models
                else registry.obtain(spec.models[role], reasons)
                for role, registry in kind.models.items()
                if role in self.models or role in spec.models
            }
            yield kind(kind.options.from_mapping(spec.options), **models)


def _model_of(stage: Stage) -> str:
    """Returns the name of a stage's first model; empty when it has none."""
    record = stage.record().values()
    models = [one for one in record if isinstance(one, Mapping) and "name" in one]
    return models[0]["name"] if models else ""


def _expected_costs(
    targets: Targets, models: Mapping[StageName, str]
) -> dict[StageName, float]:
    """Returns the seconds that a sample is expected to take in each stage."""
    frames = 1.0
    if "propagate" in models:
        view = targets.dataset.select([target.sample_id for target in targets])
        frames = view.mean("metadata.total_frame_count") or 100.0
    return {
        stage: costs.expected_cost(stage, model)
        * (frames if stage == "propagate" else 1.0)
        for stage, model in models.items()
    }


def _remember_costs(context: RunContext, models: Mapping[StageName, str]) -> None:
    """Keeps what a frame and a caption took."""
    counts: dict[StageName, str] = {"propagate": "frames", "caption": "captions"}
    for stage, count in counts.items():
        units = getattr(context.summary, count, 0)
        if units and stage in models:
            seconds, _ = context.reporter.spent(stage)
            costs.remember_cost(stage, models[stage], seconds / units)


def _load(targets: Targets, context: RunContext) -> Iterator[Item]:
    """Loads sample after sample; one that was deleted meanwhile is a failure.

    Metadata that is not what a video's file says is corrected before any stage.
    """
    for target in targets:
        try:
            sample = targets.load(target)
        except KeyError:
            stage = context.stages[0]
            error = "the sample was deleted while the job ran"
            context.summary.failures.append(
                Failure(target.sample_id, target.sample_id, stage, error)
            )
            context.reporter.skip(target.sample_id)
        else:
            if sample.media_type == fom.VIDEO:
                # A video that can't be read is an error of the stage that reads it.
                with contextlib.suppress(VideoError):
                    context.summary.notes += correct_metadata(sample)
            yield target, sample


def run_stages(
    samples: foco.SampleCollection,
    name: str,
    stages: Mapping[str, Options | None],
    models: Mapping[str, Any],
    *,
    listener: ProgressListener | None = None,
    cancel: threading.Event | None = None,
) -> Any:
    """Runs stages on samples in this process.

    Args:
        samples: A dataset or a view.
        name: Name of the job, that begins its run's key.
        stages: Options of the stages by name, in their order; those that are None are
            left out.
        models: Models by role: specifications, loaded models, or None for none.
        listener: Called with progress events.
        cancel: Set by any thread to stop the job; what was written stays.

    Returns:
        The summary of the last stage.

    Raises:
        FieldError: When a field is absent or of the wrong kind; nothing is written.
        BackendError: When a model can't do what a stage needs.
        Cancelled: When ``cancel`` was set.
    """
    specs = {k: v for k, v in models.items() if isinstance(v, ModelSpec)}
    loaded = {k: v for k, v in models.items() if v is not None and k not in specs}
    chosen = [
        StageSpec.of(stage, options, **specs)
        for stage, options in stages.items()
        if options is not None
    ]
    job = Job.of(samples, name, *chosen)
    executor = LocalExecutor(loaded, samples)
    return executor.run(job, listener=listener, cancel=cancel)
