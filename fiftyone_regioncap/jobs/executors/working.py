"""The worker: claims samples of a job, and passes them through its stages.

Every executor runs it, in this process or in many: the local one runs one of it, others
keep several alive.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from itertools import islice
from typing import Any

import fiftyone as fo
import fiftyone.core.collections as foco
import fiftyone.core.media as fom
from mongoengine.errors import FieldDoesNotExist

from fiftyone_regioncap.core.errors import VideoError
from fiftyone_regioncap.core.progress import ProgressEvent, ProgressListener
from fiftyone_regioncap.core.progress import Stage as StageName
from fiftyone_regioncap.dataset import runs
from fiftyone_regioncap.dataset.leases import Leases
from fiftyone_regioncap.dataset.metadata import correct_metadata
from fiftyone_regioncap.dataset.store import refresh_schema
from fiftyone_regioncap.dataset.targets import Sample, Target, Targets
from fiftyone_regioncap.jobs import costs
from fiftyone_regioncap.jobs.base import (
    STAGES,
    Item,
    Job,
    RunContext,
    Stage,
    model_facts,
)
from fiftyone_regioncap.jobs.board import DEATHS_ALONE, Outcome, Run
from fiftyone_regioncap.jobs.checkpoints import signature
from fiftyone_regioncap.jobs.summary import Failure, Report, Summary

PAUSE = 0.5
"""Seconds between looks at samples that another process works on."""

_BLOCK = 64


def writes(job: Job) -> tuple[str, ...]:
    """Returns the fields that a job writes, without ``frames.``."""
    found: list[str] = []
    for spec in job.stages:
        kind: Any = STAGES[spec.stage]
        found += kind.writes(kind.options.from_mapping(spec.options))
    return tuple(dict.fromkeys(found))


def job_signature(job: Job, loaded: Mapping[str, Any]) -> str:
    """Hashes what tells jobs apart whose results differ.

    Args:
        job: The job.
        loaded: Loaded models by role, used instead of the job's specifications.
    """
    facts: dict[str, Any] = {"stages": job.record()["stages"]}
    for role, model in loaded.items():
        facts[role] = (
            model_facts(model) if hasattr(model, "info") else repr(type(model))
        )
    return signature(facts)


@dataclass
class Prepared:
    """A job whose models are loaded and whose fields are declared.

    Attributes:
        job: The job.
        stages: Its stages.
        targets: The samples.
        reasons: Name and reason of each model.
        root: Dataset that the job belongs to; that of the targets may be a generated
            one, such as of patches.
    """

    job: Job
    stages: Sequence[Stage]
    targets: Targets
    reasons: list[str]
    root: fo.Dataset

    @classmethod
    def of(
        cls,
        job: Job,
        samples: foco.SampleCollection | None = None,
        loaded: Mapping[str, Any] | None = None,
        listener: ProgressListener | None = None,
    ) -> Prepared:
        """Loads the models of a job, and checks and declares its fields.

        Args:
            job: The job.
            samples: Its samples, where the caller has them at hand.
            loaded: Loaded models by role, used instead of the specifications.
            listener: Called with progress events.
        """
        samples = job.samples() if samples is None else samples
        refresh_schema(samples._root_dataset)
        reasons: list[str] = []
        stages = list(_stages(job, loaded or {}, reasons, listener))
        targets = stages[0].targets(samples)
        for stage in stages:
            stage.check(samples)
        return cls(job, stages, targets, reasons, samples._root_dataset)

    def context(self, listener: Any, cancel: Any) -> RunContext:
        """Makes the context of a run."""
        kind = self.stages[-1].summary
        summary = kind(samples=len(self.targets), backends=self.reasons)
        names = [stage.name for stage in self.stages]
        if isinstance(summary, Summary):
            summary.stages = tuple(names)
        expected = _expected_costs(self.targets, self._models)
        return RunContext.of(summary, names, listener, cancel, expected)

    @property
    def _models(self) -> dict[StageName, str]:
        return {stage.name: _model_of(stage) for stage in self.stages}

    def remember_costs(self, context: RunContext) -> None:
        """Keeps what a frame and a caption took."""
        _remember_costs(context, self._models)

    def record(self, summary: Report) -> None:
        """Records the run with its dataset."""
        summary.run = runs.run_key(self.job.name)
        config: dict[str, Any] = {"job": self.job.record()}
        for stage in self.stages:
            config.update(stage.record())
        results = {"summary": summary.to_dict()}
        runs.record_run(self.root, summary.run, config, results)


def _stages(
    job: Job,
    loaded: Mapping[str, Any],
    reasons: list[str],
    listener: ProgressListener | None,
) -> Iterator[Stage]:
    """Makes the stages; models are loaded where none was given."""
    for spec in job.stages:
        kind: Any = STAGES[spec.stage]
        for role in kind.models:
            if listener is not None and role in spec.models:
                message = f"Loading the {role} {spec.models[role].name}"
                listener(ProgressEvent(kind.name, message, 0.0, 0, 0, None))
        models = {
            role: loaded[role]
            if role in loaded
            else registry.obtain(spec.models[role], reasons)
            for role, registry in kind.models.items()
            if role in loaded or role in spec.models
        }
        yield kind(kind.options.from_mapping(spec.options), **models)


def longest_first(prepared: Prepared) -> Prepared:
    """Returns a job that does its longest videos first, so that the end is short.

    Args:
        prepared: The job; videos whose length is not stored come first of all.
    """
    targets = prepared.targets
    if targets.dataset.media_type == fom.IMAGE:
        return prepared
    ids, counts = targets.dataset.values(["id", "metadata.total_frame_count"])
    length = dict(zip(ids, counts, strict=True))

    def order(target: Target) -> float:
        known = length.get(target.sample_id)
        return -known if known else -math.inf

    items = tuple(sorted(targets, key=order))
    return replace(prepared, targets=replace(targets, items=items))


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


@dataclass
class Worker:
    """Works on the samples of a job until none is left.

    Attributes:
        prepared: The job.
        run: The run on the board.
        context: Context of the job in this process.
        owner: Owner of its leases, unique among all workers ever.
        progress: Name under which the board shows its progress.
    """

    prepared: Prepared
    run: Run
    context: RunContext
    owner: str
    progress: str = "progress"
    _shared: int = 0
    _again: list[str] = field(default_factory=list)
    _leases: Leases = field(init=False)

    @property
    def holds_any(self) -> bool:
        """Whether it is at work on some sample."""
        leases = getattr(self, "_leases", None)
        return bool(leases and leases.held)

    def work(self) -> None:
        """Works on samples until all are done, here or by others.

        Raises:
            Canceled: When the job was canceled.
        """
        assert self.run.dataset_id is not None
        self._leases = Leases(
            self.run.dataset_id,
            self.run.fields,
            self.run.signature,
            self._beat,
            self.owner,
        )
        self.context.on_end = self._settle
        self.context.on_lost = self._again.append
        targets = {target.sample_id: target for target in self.prepared.targets}
        left: list[Target] = list(targets.values())
        with self._leases:
            while left:
                later, alone = self._pass(left)
                for target in alone:  # with no other that could be blamed for a death
                    later += self._pass([target], alone=True)[0]
                later += [targets[sample_id] for sample_id in self._again]
                self._again.clear()
                left = later
                while left and not self._any_free(left):
                    self.context.reporter.check_canceled()
                    self.context.reporter.say(
                        f"waiting for {len(left)} samples that another process is at "
                        "work on"
                    )
                    time.sleep(PAUSE)
        if self._shared:
            self.context.summary.notes.append(
                f"{self._shared} samples were done by other processes that ran the "
                "same job"
            )

    def _any_free(self, targets: Sequence[Target]) -> bool:
        """Returns whether any sample can be claimed, or is done by now."""
        if any(outcome.state for outcome in self._outcomes(targets).values()):
            return True
        ids = [target.sample_id for target in targets]
        return self.context.patiently(lambda: self._leases.any_free(ids))

    def _pass(
        self, targets: Sequence[Target], alone: bool = False
    ) -> tuple[list[Target], list[Target]]:
        """Works on those samples that are free.

        Returns:
            Those that others hold, and those that are to be tried alone.
        """
        later: list[Target] = []
        apart: list[Target] = []
        items = self._claimed(targets, later, None if alone else apart)
        for stage in self.prepared.stages:
            items = stage.run(items, self.context)
        for target, _ in items:
            self._settle(target.sample_id, None)
        return later, apart

    def _claimed(
        self,
        targets: Sequence[Target],
        later: list[Target],
        apart: list[Target] | None,
    ) -> Iterator[Item]:
        """Claims and loads sample after sample."""
        context, remaining = self.context, iter(targets)
        while block := list(islice(remaining, _BLOCK)):
            known = self._outcomes(block)
            for target in block:
                context.reporter.check_canceled()
                outcome = known.get(target.sample_id, Outcome())
                risky = outcome.state is None and outcome.deaths >= DEATHS_ALONE
                if risky and apart is not None:
                    apart.append(target)
                    continue
                if outcome.state is None:
                    if self._claim(target) is not None:
                        later.append(target)
                        continue
                    outcome = self._outcomes([target]).get(target.sample_id, outcome)
                if outcome.state is not None:
                    self._leases.release(target.sample_id)
                    self._elsewhere(target, outcome)
                    continue
                sample = context.patiently(partial(self._load, target))
                if sample is not None:
                    yield target, sample

    def _claim(self, target: Target) -> Mapping[str, Any] | None:
        return self.context.patiently(lambda: self._leases.claim(target.sample_id))

    def _outcomes(self, targets: Sequence[Target]) -> dict[str, Outcome]:
        ids = [target.sample_id for target in targets]
        return self.context.patiently(lambda: self.run.outcomes(ids))

    def _load(self, target: Target) -> Sample | None:
        """Loads a sample; None when it was deleted, which is a failure.

        Metadata that is not what a video's file says is corrected before any stage.
        """
        targets, context = self.prepared.targets, self.context
        try:
            try:
                sample = targets.load(target)
            except FieldDoesNotExist:  # that another process has declared since
                refresh_schema(targets.dataset)
                sample = targets.load(target)
        except KeyError:
            error = "the sample was deleted while the job ran"
            self._fail(target, error)
            self._settle(target.sample_id, error)
            return None
        if sample.media_type == fom.VIDEO:
            # A video that can't be read is an error of the stage that reads it.
            with contextlib.suppress(VideoError):
                context.summary.notes += correct_metadata(sample)
        return sample

    def _elsewhere(self, target: Target, outcome: Outcome) -> None:
        """Counts a sample that another process has done, or has failed on."""
        ours = outcome.run == self.run.id  # then another worker tells of it
        if outcome.state == "failed" and not ours:
            self._fail(target, outcome.error or "failed in another process")
            return
        self._shared += not ours
        self.context.reporter.skip(target.sample_id)

    def _fail(self, target: Target, error: str) -> None:
        stage, sample_id = self.context.stages[0], target.sample_id
        failure = Failure(sample_id, sample_id, stage, error)
        self.context.summary.failures.append(failure)
        self.context.reporter.skip(sample_id)

    def _settle(self, sample_id: str, error: str | None) -> None:
        """Records that a sample is done or has failed, and gives it back."""
        self.context.patiently(lambda: self.run.settle(sample_id, error))
        self._leases.release(sample_id)

    def _beat(self, now: datetime) -> None:
        self.run.beat(now, {self.progress: progress_of(self.context)})


def progress_of(context: RunContext) -> dict[str, Any]:
    """Returns how far a job is in a process, for the board."""
    values = context.summary.to_dict()
    shown = {k: v for k, v in values.items() if isinstance(v, int)}
    totals = context.reporter.totals()
    seconds = time.monotonic() - context.began
    return {
        **shown,
        "frame_rate": round(totals["frames_seen"] / seconds, 2),
        "caption_rate": round(totals["captions_seen"] / seconds, 2),
        "failed": len(values["failures"]),
        **totals,
    }
