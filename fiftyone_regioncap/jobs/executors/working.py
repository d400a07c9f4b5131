"""The worker: claims samples of a job, and passes them through its stages.

Every executor runs it, in this process or in many: the local one runs one of it, others
keep several alive.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from itertools import islice
from typing import Any

import fiftyone as fo
import fiftyone.core.collections as foco
import fiftyone.core.media as fom
from bson import ObjectId
from mongoengine.errors import FieldDoesNotExist

from fiftyone_regioncap.core.errors import VideoError
from fiftyone_regioncap.core.options import fields_of
from fiftyone_regioncap.core.progress import ProgressEvent, ProgressListener
from fiftyone_regioncap.core.progress import Stage as StageName
from fiftyone_regioncap.dataset import locks, runs
from fiftyone_regioncap.dataset.leases import Leases
from fiftyone_regioncap.dataset.locks import ServerState
from fiftyone_regioncap.dataset.metadata import correct_metadata
from fiftyone_regioncap.dataset.sequences import Videos
from fiftyone_regioncap.dataset.store import refresh_schema
from fiftyone_regioncap.dataset.targets import Sample, Target, Targets
from fiftyone_regioncap.jobs import costs
from fiftyone_regioncap.jobs.base import (
    STAGES,
    Item,
    Job,
    RunContext,
    Stage,
    StageSpec,
    model_facts,
)
from fiftyone_regioncap.jobs.board import DEATHS_ALONE, Outcome, Run
from fiftyone_regioncap.jobs.checkpoints import signature
from fiftyone_regioncap.jobs.executors.metering import Meter
from fiftyone_regioncap.jobs.summary import Failure, Report, Summary

logger = logging.getLogger(__name__)

PAUSE = 0.5
"""Seconds between looks at samples that another process works on."""

_BLOCK = 64

_IMAGES = 16
"""Number of images that are claimed at once at most, as one takes little time."""

_SHARES = 64
"""Images that are claimed at once are at most this part of those that are left, so that
all workers end together."""

_FRAME_PICKERS = ("prompts", "tracks")
"""What picks, in the App, options that name fields of frames."""

FRESH = 1.0
"""Seconds for which a worker takes as true what others are at work on."""

_UNCONFIRMED = 256
"""Samples that are done, after which it is looked whether they outlast a crash."""


@dataclass(frozen=True)
class Part:
    """Stages of a job that one pool of workers does.

    Attributes:
        stages: Names of the stages; empty for all of them.
        after: Stage that samples have passed elsewhere before; None for none.
        hands_on: Whether other workers do the stages after the last one.
    """

    stages: tuple[str, ...] = ()
    after: str | None = None
    hands_on: bool = False

    @classmethod
    def apart(cls, job: Job) -> tuple[Part, Part] | None:
        """Splits a job before the stage that captions; None where there is no other."""
        names = tuple(spec.stage for spec in job.stages)
        if len(names) < 2 or "captioner" not in STAGES[names[-1]].models:
            return None
        return cls(names[:-1], hands_on=True), cls(names[-1:], after=names[-2])

    def of(self, job: Job) -> Job:
        """Returns a job of these stages alone."""
        if not self.stages:
            return job
        chosen = tuple(spec for spec in job.stages if spec.stage in self.stages)
        return replace(job, stages=chosen)


WHOLE = Part()
"""All stages."""


def writes(job: Job) -> tuple[str, ...]:
    """Returns the fields that a job writes, without ``frames.``."""
    found: list[str] = []
    for spec in job.stages:
        kind: Any = STAGES[spec.stage]
        found += kind.writes(kind.options.from_mapping(spec.options))
    return tuple(dict.fromkeys(found))


def checked(job: Job, samples: foco.SampleCollection) -> Targets:
    """Checks the fields of a job, which takes no time, before its models are loaded.

    Args:
        job: The job.
        samples: Its samples.

    Returns:
        The samples that its first stage can work on.

    Raises:
        FieldError: When a field is absent or of the wrong kind; nothing is written.
    """
    refresh_schema(samples._root_dataset)
    first: Any = STAGES[job.stages[0].stage]
    targets = first.targets(samples)
    made: list[str] = []
    for spec in job.stages:
        kind: Any = STAGES[spec.stage]
        options = kind.options.from_mapping(spec.options)
        kind.check(options, samples, made)
        made += kind.writes(options)
    return targets


def on_frames(job: Job, videos: Videos) -> Job:
    """Returns a job that finds fields of images on the frames of their videos."""

    def stage(spec: StageSpec) -> StageSpec:
        options = dict(spec.options)
        for one in fields_of(STAGES[spec.stage].options):
            if one.declaration.picker in _FRAME_PICKERS and options.get(one.name):
                options[one.name] = videos.frames_field(options[one.name])
        return replace(spec, options=options)

    return replace(job, stages=tuple(map(stage, job.stages)))


def job_signature(
    job: Job, loaded: Mapping[str, Any], targets: Targets | None = None
) -> str:
    """Hashes what tells jobs apart that can't share their work.

    Args:
        job: The job.
        loaded: Loaded models by role, used instead of the job's specifications.
        targets: What its workers claim, where it may be less than a sample.
    """
    facts: dict[str, Any] = {"stages": job.record()["stages"]}
    if any(target.others for target in targets or ()):
        facts["clips"] = "apart"
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
        part: Part = WHOLE,
    ) -> Prepared:
        """Checks the fields of a job, loads its models, and declares its fields.

        Args:
            job: The job.
            samples: Its samples, where the caller has them at hand.
            loaded: Loaded models by role, used instead of the specifications.
            listener: Called with progress events.
            part: Stages to do, where other workers do the others.
        """
        samples = job.samples() if samples is None else samples
        targets = checked(job, samples)
        reasons: list[str] = []
        own = part.of(job)
        for spec in job.stages[: job.stages.index(own.stages[0])]:
            # Whoever comes first declares what a stage reads; no model is asked.
            kind: Any = STAGES[spec.stage]
            options = kind.options.from_mapping(spec.options)
            kind(options, **dict.fromkeys(kind.models)).declare(samples)
        stages = list(_stages(own, loaded or {}, reasons, listener))
        for stage in stages:
            stage.declare(samples)
        return cls(job, stages, targets, reasons, samples._root_dataset)

    def context(self, listener: Any, cancel: Any) -> RunContext:
        """Makes the context of a run."""
        kind = self.stages[-1].summary
        summary = kind(samples=len(self.targets), backends=self.reasons)
        names = [stage.name for stage in self.stages]
        if isinstance(summary, Summary):
            summary.stages = tuple(names)
        expected = costs.expected_costs(self.targets, self._models)
        return RunContext.of(summary, names, listener, cancel, expected)

    @property
    def _models(self) -> dict[StageName, str]:
        return {stage.name: _model_of(stage) for stage in self.stages}

    def remember_costs(self, context: RunContext) -> None:
        """Keeps what a frame and a caption took."""
        _remember_costs(context, self._models)

    def loaded(self) -> dict[str, Any]:
        """Returns the loaded models by role, for the run's record."""
        return {
            role: one for stage in self.stages for role, one in stage.record().items()
        }

    def record(self, summary: Report) -> None:
        """Records the run with its dataset."""
        summary.run = runs.run_key(self.job.name)
        config = {"job": self.job.record(), **self.loaded()}
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


def shared_out(job: Job, targets: Targets) -> Targets:
    """Returns what several workers claim: the clips of a video apart, where they may.

    Clips of a video are propagated each on its own, so that it doesn't matter who does
    which. Other stages look at all of a sample.

    Args:
        job: The job.
        targets: Its samples.
    """
    if [spec.stage for spec in job.stages] != ["propagate"]:
        return targets
    return replace(targets, items=tuple(t for one in targets for t in one.apart()))


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
        if target.ranges is not None:
            return -sum(stop - start for start, stop in target.ranges)
        known = length.get(target.sample_id)
        return -known if known else -math.inf

    items = tuple(sorted(targets, key=order))
    return replace(prepared, targets=replace(targets, items=items))


def _state(known: Mapping[str, Outcome], sample_id: str) -> str | None:
    return known.get(sample_id, Outcome()).state


def _model_of(stage: Stage) -> str:
    """Returns the name of a stage's first model; empty when it has none."""
    record = stage.record().values()
    models = [one for one in record if isinstance(one, Mapping) and "name" in one]
    return models[0]["name"] if models else ""


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
        part: Stages that it does, where other workers do the others.
    """

    prepared: Prepared
    run: Run
    context: RunContext
    owner: str
    progress: str = "progress"
    part: Part = WHOLE
    _shared: int = 0
    _seen: int = 0
    _again: list[str] = field(default_factory=list)
    _servers: dict[str, ObjectId | None] = field(default_factory=dict)
    _unconfirmed: dict[str, ObjectId | None] = field(default_factory=dict)
    _leases: Leases = field(init=False)

    def __post_init__(self) -> None:
        """Begins to measure."""
        self.meter = Meter(self.context)

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
        self.context.run = self.run.group
        self.context.on_end = self._settle
        self.context.on_lost = self._again.append
        targets = {target.unit: target for target in self.prepared.targets}
        left: list[Target] = list(targets.values())
        with self._leases:
            while left:
                if self.part.after is None:
                    left = self._work_on(left, targets)
                else:
                    self._work_on(self._handed_on(targets), targets)
                    left = self._unsettled(self.prepared.targets)
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

    def _work_on(
        self, samples: Iterable[Target], targets: Mapping[str, Target]
    ) -> list[Target]:
        """Works on samples; returns those that are left.

        Args:
            samples: The samples.
            targets: All samples of the job by id.
        """
        later, alone = self._pass(samples)
        for target in alone:  # with no other that could be blamed for a death
            later += self._pass([target], alone=True)[0]
        self.context.patiently(self._confirm)
        later += [targets[sample_id] for sample_id in self._again]
        self._again.clear()
        return later

    def _confirm(self) -> None:
        """Makes sure that a crash of the database took nothing from what is done.

        A server that crashes loses what it was written in the last moments. What was
        under way at that time goes through all stages once more, which pass over what
        is complete.
        """
        done = dict(self._unconfirmed)
        if not done:
            return
        locks.sync()
        process = ServerState.now().process
        lost = [sample_id for sample_id, then in done.items() if then != process]
        if lost:
            logger.warning("the database crashed; %d samples are checked", len(lost))
            self.run.reopen(lost, passed=self.part.after)
        self._again += lost
        for sample_id in done:
            self._unconfirmed.pop(sample_id, None)

    def _handed_on(self, targets: Mapping[str, Target]) -> Iterator[Target]:
        """Yields samples of which other workers have done the stages before."""
        after = ""
        while page := self._page(after):
            after = max(page)
            found = [targets[sample_id] for sample_id in page if sample_id in targets]
            random.shuffle(found)  # else all workers ask for the same ones
            yield from found

    def _page(self, after: str = "") -> Mapping[str, Outcome]:
        stage = self.part.after
        assert stage is not None
        return self.context.patiently(lambda: self.run.handed_on(stage, after))

    def _unsettled(self, targets: Sequence[Target]) -> list[Target]:
        """Returns samples that are neither done nor have failed."""
        if self.context.patiently(self.run.settled) < len(targets):
            return list(targets)
        known = self._outcomes(targets)
        return [one for one in targets if _state(known, one.unit) is None]

    def _any_free(self, targets: Sequence[Target]) -> bool:
        """Returns whether any sample can be claimed, or is done by now."""
        if self.part.after is not None:
            ready = list(self._page())
            if not ready:
                return not self._unsettled(targets)
            return self.context.patiently(lambda: self._leases.any_free(ready))
        if any(outcome.state for outcome in self._outcomes(targets).values()):
            return True
        ids = [target.unit for target in targets]
        return self.context.patiently(lambda: self._leases.any_free(ids))

    def _pass(
        self, targets: Iterable[Target], alone: bool = False
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
            if self.part.hands_on:
                self._hand_on(target.unit)
            else:
                self._settle(target.unit, None)
        return later, apart

    def _claimed(
        self,
        targets: Iterable[Target],
        later: list[Target],
        apart: list[Target] | None,
    ) -> Iterator[Item]:
        """Claims and loads sample after sample."""
        context, remaining = self.context, iter(targets)
        while block := list(islice(remaining, _BLOCK)):
            if len(self._unconfirmed) >= _UNCONFIRMED:
                context.patiently(self._confirm)
            left, failures, asked = block, 0, -math.inf
            while left:
                context.reporter.check_canceled()
                if time.monotonic() - asked > FRESH:
                    known, taken = self._outcomes(left), self._taken(left)
                    asked = time.monotonic()
                chosen: list[Target] = []
                for _ in range(min(self._at_once(apart), len(left))):
                    # In order, but not the one for which all others ask as well.
                    target = left.pop(random.randrange(min(1 + failures, len(left))))
                    self._seen += 1
                    outcome = known.get(target.unit, Outcome())
                    if outcome.state is not None:
                        self._elsewhere(target, outcome)
                    elif outcome.passed and self.part.hands_on:
                        context.reporter.skip(target.unit)
                    elif outcome.deaths >= DEATHS_ALONE and apart is not None:
                        apart.append(target)
                    elif target.unit in taken:
                        later.append(target)
                    else:
                        chosen.append(target)
                if not chosen:
                    continue
                busy = self._claim(chosen)
                if busy:
                    later += [target for target in chosen if target.unit in busy]
                    failures, asked = failures + 1, -math.inf
                mine = [target for target in chosen if target.unit not in busy]
                yield from self._begun(mine)

    def _at_once(self, apart: list[Target] | None) -> int:
        """Returns how many samples are claimed with one command."""
        targets = self.prepared.targets
        if apart is None or targets.dataset.media_type != fom.IMAGE:
            return 1
        return max(min((len(targets) - self._seen) // _SHARES, _IMAGES), 1)

    def _begun(self, targets: Sequence[Target]) -> Iterator[Item]:
        """Loads samples that were claimed, and are still to be done."""
        known = self._outcomes(targets)
        for target in targets:
            self.context.reporter.check_canceled()
            outcome = known.get(target.unit, Outcome())
            if outcome.state is not None:
                self._leases.release(target.unit)
                self._elsewhere(target, outcome)
                continue
            if self.part.after is not None and outcome.passed != self.part.after:
                self._leases.release(target.unit)  # it was taken back
                continue
            self._servers[target.unit] = self._leases.server.process
            sample = self.context.patiently(partial(self._load, target))
            if sample is not None:
                logger.info("%s: begun, %s", target.unit, sample.filepath)
                yield target, sample

    def _claim(self, targets: Sequence[Target]) -> Mapping[str, Any]:
        units = [target.unit for target in targets]
        return self.context.patiently(lambda: self._leases.claim_each(units))

    def _taken(self, targets: Sequence[Target]) -> set[str]:
        units = [target.unit for target in targets]
        return self.context.patiently(lambda: self._leases.taken(units))

    def _outcomes(self, targets: Sequence[Target]) -> dict[str, Outcome]:
        ids = [target.unit for target in targets]
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
            self._settle(target.unit, error)
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
        self.context.reporter.skip(target.unit)

    def _fail(self, target: Target, error: str) -> None:
        stage, sample_id = self.context.stages[0], target.sample_id
        failure = Failure(sample_id, sample_id, stage, error)
        self.context.summary.failures.append(failure)
        self.context.reporter.skip(sample_id)

    def _settle(self, sample_id: str, error: str | None) -> None:
        """Records that a sample is done or has failed, and gives it back."""
        self.context.patiently(lambda: self.run.settle(sample_id, error))
        logger.info("%s: %s", sample_id, error or "done")
        self._release(sample_id, error)

    def _hand_on(self, sample_id: str) -> None:
        """Leaves a sample to the workers that do the next stages."""
        last = self.part.stages[-1]
        self.context.patiently(lambda: self.run.hand_on(sample_id, last))
        logger.info("%s: passed %s", sample_id, last)
        self._release(sample_id)

    def _release(self, sample_id: str, error: str | None = None) -> None:
        server = self._servers.pop(sample_id, None)
        if error is None:
            self._unconfirmed[sample_id] = server
        self._leases.release(sample_id)

    def _beat(self, now: datetime) -> None:
        shown = self.meter.read(self._leases.held)
        self.run.beat(now, {self.progress: {**shown, "beat_at": now}})
