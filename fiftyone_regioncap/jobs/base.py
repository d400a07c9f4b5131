"""Runs jobs, which consist of stages that share a run context.

A :class:`Job` is plain values: it can be sent to another process or machine, it is
what a dataset's custom run records, and running it again repeats the work. Its stages
pull samples from each other one by one, so that a video is captioned while the next
one is propagated, and batches reach across samples.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Protocol, TypeAlias

import fiftyone as fo
import fiftyone.core.collections as foco
import fiftyone.core.dataset as fod
import fiftyone.core.view as fov
from bson import json_util

from fiftyone_regioncap.core.errors import Cancelled, NothingMarked, VideoError
from fiftyone_regioncap.core.options import Options
from fiftyone_regioncap.core.progress import ProgressListener, ProgressReporter
from fiftyone_regioncap.core.progress import Stage as StageName
from fiftyone_regioncap.core.registry import LazyRegistry
from fiftyone_regioncap.core.types import Caption
from fiftyone_regioncap.dataset import status
from fiftyone_regioncap.dataset.targets import Sample, Target, Targets, name_of
from fiftyone_regioncap.jobs.summary import Failure, Report
from fiftyone_regioncap.models.registry import ModelRegistry, ModelSpec

logger = logging.getLogger(__name__)

Item: TypeAlias = tuple[Target, Sample]
"""A sample and what of it a job works on."""

_ROOM = 1 << 20  # characters of a view that a run's record still holds


@dataclass(frozen=True)
class StageSpec:
    """One stage of a job as plain values.

    Attributes:
        stage: Name of the stage in :data:`STAGES`.
        options: Options of the stage by name.
        models: Models of the stage by role, such as ``"captioner"``.
    """

    stage: str
    options: Mapping[str, Any]
    models: Mapping[str, ModelSpec] = field(default_factory=dict)

    @classmethod
    def of(cls, stage: str, options: Options, **models: ModelSpec | None) -> StageSpec:
        """Specifies a stage; a model that is None is left out."""
        chosen = {role: spec for role, spec in models.items() if spec is not None}
        return cls(stage, options.to_mapping(), chosen)


@dataclass(frozen=True)
class Job:
    """A unit of work on the samples of a dataset.

    Attributes:
        name: Name, such as ``"propagate_and_caption"``, that begins its run's key.
        dataset: Name of the dataset.
        view: The view's stages as FiftyOne serializes them, as JSON text, which no
            database takes for documents; None for all samples.
        stages: The stages in the order in which samples pass through them.
    """

    name: str
    dataset: str
    view: str | None
    stages: tuple[StageSpec, ...]

    @classmethod
    def of(cls, samples: foco.SampleCollection, name: str, *stages: StageSpec) -> Job:
        """Specifies a job on a dataset or a view of one."""
        whole = isinstance(samples, fod.Dataset)
        view = None if whole else json_util.dumps(samples._serialize())
        return cls(name, samples._root_dataset.name, view, stages)

    def samples(self) -> foco.SampleCollection:
        """Loads the dataset, or builds the view of it."""
        dataset = fo.load_dataset(self.dataset)
        if self.view is None:
            return dataset
        return fov.DatasetView._build(dataset, json_util.loads(self.view))

    def to_dict(self) -> dict[str, Any]:
        """Returns the job as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Job:
        """Returns the inverse of :meth:`to_dict`, also after a trip through JSON."""
        stages = tuple(
            StageSpec(
                item["stage"],
                item["options"],
                {role: ModelSpec(**spec) for role, spec in item["models"].items()},
            )
            for item in values["stages"]
        )
        return cls(values["name"], values["dataset"], values["view"], stages)

    def record(self) -> dict[str, Any]:
        """Returns the job for its run's record: no keys, no view of very many ids."""
        stages = tuple(
            replace(
                stage,
                models={role: spec.public() for role, spec in stage.models.items()},
            )
            for stage in self.stages
        )
        values = replace(self, stages=stages).to_dict()
        if self.view is not None and len(self.view) > _ROOM:
            values["view"] = "too long to be recorded"
        return values


@dataclass
class RunContext:
    """Context of a running job: counts, progress and cancellation.

    Attributes:
        summary: Summary of what was done so far.
        reporter: Reports progress to the job's listener.
        stages: Names of the job's stages in their order.
    """

    summary: Report
    reporter: ProgressReporter
    stages: tuple[StageName, ...]

    @classmethod
    def of(
        cls,
        summary: Report,
        stages: Iterable[StageName],
        listener: ProgressListener | None = None,
        cancel: threading.Event | None = None,
        costs: Mapping[StageName, float] | None = None,
    ) -> RunContext:
        """Makes the context of a job that begins; see :class:`ProgressReporter`."""
        names = tuple(stages)
        reporter = ProgressReporter(names, summary.samples, listener, cancel, costs)
        return cls(summary, reporter, names)

    def count(self, **counts: int) -> None:
        """Adds to counts of the summary by name."""
        for name, number in counts.items():
            if number:
                setattr(self.summary, name, getattr(self.summary, name) + number)

    def captioned(self, caption: Caption) -> None:
        """Counts a caption."""
        self.count(captions=1, caption_errors=int(caption.error is not None))
        self.reporter.add(captions=1)

    def passed_over(self, stage: StageName) -> None:
        """Counts a sample that is complete already in a stage."""
        self.count(skipped=1)
        by_stage = getattr(self.summary, "complete_before", None)
        if by_stage is not None:
            by_stage[stage] = by_stage.get(stage, 0) + 1

    def unmarked(self, stage: StageName, sample: Sample) -> None:
        """Counts a sample on which nothing is marked; no later stage gets it."""
        self.count(unmarked=1)
        self._leave(stage, sample)

    def finished(self, stage: StageName, sample: Sample) -> None:
        """Reports that a sample has passed a stage."""
        self.reporter.finish(stage, name_of(sample))

    def failed(
        self, stage: StageName, sample: Sample, output: str | None, error: Exception
    ) -> None:
        """Records a failure on the sample and in the summary.

        Args:
            stage: The stage that failed; the sample passes through no later one.
            sample: The sample.
            output: Field whose status says so; None for a stage without one.
            error: The failure.
        """
        logger.warning("%s: %s", sample.filepath, error, exc_info=error)
        message = f"{type(error).__name__}: {error}"
        failure = Failure(sample.id, sample.filepath, stage, message)
        self.summary.failures.append(failure)
        if output is not None and not (
            # Media that can't be read now take nothing from what was made of them.
            isinstance(error, VideoError)
            and status.read_status(sample, output).state == "complete"
        ):
            status.write_status(sample, output, "failed", error=message)
        self._leave(stage, sample)

    def _leave(self, stage: StageName, sample: Sample) -> None:
        """Reports that a sample goes through no stage from this one on."""
        for name in self.stages[self.stages.index(stage) :]:
            self.reporter.finish(name, name_of(sample))

    def failed_in_part(self, stage: StageName, sample: Sample, message: str) -> None:
        """Records in the summary what of a sample could not be done."""
        logger.warning("%s: %s", sample.filepath, message)
        failure = Failure(sample.id, sample.filepath, stage, message, whole=False)
        self.summary.failures.append(failure)


class Stage(Protocol):
    """A step of a job.

    A class with the options and the models (by role) as arguments.

    Attributes:
        name: Name for progress and failures.
        options: Class of its options.
        summary: Class of the summary of a job that ends with this stage.
        models: Registry of each role's models.
    """

    name: ClassVar[StageName]
    options: ClassVar[type[Options]]
    summary: ClassVar[type[Report]]
    models: ClassVar[Mapping[str, ModelRegistry[Any]]]

    def targets(self, samples: foco.SampleCollection) -> Targets:
        """Returns the samples that the stage can work on.

        Raises:
            FieldError: When the collection holds another kind of media.
        """

    def check(self, samples: foco.SampleCollection) -> None:
        """Checks and declares the stage's fields, before any work of the job.

        Raises:
            FieldError: When a field is absent or of the wrong kind.
        """

    def run(self, items: Iterator[Item], context: RunContext) -> Iterator[Item]:
        """Works on samples as they come, and passes on those that did not fail."""

    def record(self) -> dict[str, Any]:
        """Returns the stage's models for the run's record, as JSON values."""


STAGES: LazyRegistry[type[Stage]] = LazyRegistry(
    kind="stage",
    entries={
        "propose": "fiftyone_regioncap.jobs.proposing:Proposing",
        "propagate": "fiftyone_regioncap.jobs.propagating:Propagating",
        "correct": "fiftyone_regioncap.jobs.correcting:Correcting",
        "caption": "fiftyone_regioncap.jobs.captioning:TrackCaptioning",
        "caption_regions": "fiftyone_regioncap.jobs.images:RegionCaptioning",
        "caption_densely": "fiftyone_regioncap.jobs.dense_captioning:DenseCaptioning",
        "embed_regions": "fiftyone_regioncap.jobs.embedding:Embedding",
        "move_masks": "fiftyone_regioncap.jobs.moving:MovingMasks",
        "conform": "fiftyone_regioncap.jobs.conforming:Conforming",
    },
    group="fiftyone_regioncap.stages",
)


class Executor(Protocol):
    """Runs jobs, in this process or elsewhere."""

    def run(
        self,
        job: Job,
        *,
        listener: ProgressListener | None = None,
        cancel: threading.Event | None = None,
    ) -> Report:
        """Runs a job to its end.

        Args:
            job: The job.
            listener: Called with progress events.
            cancel: Set by any thread to stop the job; what was written stays.

        Raises:
            FieldError: When a field is absent or of the wrong kind.
            Cancelled: When ``cancel`` was set.
        """


def model_record(info: Any) -> dict[str, Any]:
    """Returns a model's entry in a run's record.

    Args:
        info: A PropagatorInfo or CaptionerInfo.
    """
    values = asdict(info)
    named = ("name", "model", "revision", "license", "space")
    return {name: values[name] for name in named if name in values}


def each_sample(
    stage: StageName,
    output: str | None,
    process: Callable[[Target, Sample], bool],
    items: Iterable[Item],
    context: RunContext,
) -> Iterator[Item]:
    """Loops over the samples of stages that work on one after the other.

    Args:
        stage: Name of the stage.
        output: Field whose status says when a sample failed; None for none.
        process: Works on a sample; returns whether there was anything to do.
            ``NothingMarked`` passes over the sample.
        items: The samples.
        context: Context of the job.

    Yields:
        Samples that did not fail.
    """
    for target, sample in items:
        context.reporter.check_cancelled()
        try:
            worked = process(target, sample)
        except Cancelled:
            raise
        except NothingMarked:
            context.unmarked(stage, sample)
        except Exception as error:
            context.failed(stage, sample, output, error)
        else:
            if not worked:
                context.passed_over(stage)
            context.finished(stage, sample)
            yield target, sample
