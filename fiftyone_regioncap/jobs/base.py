"""Runs jobs, which consist of stages that share a run context.

A :class:`Job` is plain values: it can be sent to another process or machine, it is
what a dataset's custom run records, and running it again repeats the work. Its stages
pull samples from each other one by one, so that a video is captioned while the next
one is propagated, and batches reach across samples.
"""

from __future__ import annotations

import errno
import logging
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar

import fiftyone as fo
import fiftyone.core.collections as foco
import fiftyone.core.dataset as fod
import fiftyone.core.view as fov
from bson import ObjectId, json_util
from pymongo.errors import ConnectionFailure, CursorNotFound

from fiftyone_regioncap.core.errors import (
    BackendError,
    Canceled,
    FatalError,
    Fenced,
    FieldError,
    NothingMarked,
    RegionCapError,
    VideoError,
)
from fiftyone_regioncap.core.options import Options
from fiftyone_regioncap.core.progress import Flag, ProgressListener, ProgressReporter
from fiftyone_regioncap.core.progress import Stage as StageName
from fiftyone_regioncap.core.registry import LazyRegistry
from fiftyone_regioncap.core.types import Caption
from fiftyone_regioncap.dataset import fields, locks, status
from fiftyone_regioncap.dataset.ownership import refuse_foreign_labels
from fiftyone_regioncap.dataset.store import Document, frame_path
from fiftyone_regioncap.dataset.targets import (
    Sample,
    Target,
    Targets,
    name_of,
    video_targets,
)
from fiftyone_regioncap.jobs.summary import Failure, Report
from fiftyone_regioncap.models.registry import ModelRegistry, ModelSpec
from fiftyone_regioncap.video.prefetch import QueueGauge

logger = logging.getLogger(__name__)

Item: TypeAlias = tuple[Target, Sample]
"""A sample and what of it a job works on."""

T = TypeVar("T")
OptionsT = TypeVar("OptionsT", bound=Options)

DATABASE_GONE = (ConnectionFailure, CursorNotFound)
"""Errors of a database that is away, or was; the same call may work later."""

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""Numbers of errors of a machine whose disk is full or can't be written."""

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
        began: When it began, by the clock of ``time.monotonic``.
        on_end: Called with the id of a sample that goes through no further stage, and
            the reason if it failed.
        on_lost: Called with the id of a sample that another process has taken over.
        shared: Whether workers on other machines do the same job, and can do what
            fails on this machine for want of room.
        tokens: Number of tokens that captioners wrote.
        queues: What waits in front of stages, by their names.
        run: Id that all workers of a run share.
    """

    summary: Report
    reporter: ProgressReporter
    stages: tuple[StageName, ...]
    began: float = field(default_factory=time.monotonic)
    on_end: Callable[[str, str | None], None] = lambda *_: None
    on_lost: Callable[[str], None] = lambda _: None
    shared: bool = False
    tokens: int = 0
    queues: dict[StageName, QueueGauge] = field(default_factory=dict)
    run: str = ""

    @classmethod
    def of(
        cls,
        summary: Report,
        stages: Iterable[StageName],
        listener: ProgressListener | None = None,
        cancel: Flag | None = None,
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
        self.tokens += caption.tokens

    def passed_over(self, stage: StageName) -> None:
        """Counts a sample that is complete already in a stage."""
        self.count(skipped=1)
        by_stage = getattr(self.summary, "complete_before", None)
        if by_stage is not None:
            by_stage[stage] = by_stage.get(stage, 0) + 1

    def unmarked(self, stage: StageName, item: Item) -> None:
        """Counts a sample on which nothing is marked; no later stage gets it."""
        self.count(unmarked=1)
        self._leave(stage, item[1])
        self.on_end(item[0].unit, None)

    def redone(self, what: str, name: str, number: int) -> None:
        """Says that outdated results of a sample are made anew."""
        self.summary.notes.append(
            f"{name}: {number} {what} were made from other prompts, options, models or "
            "files, and are made again"
        )

    def finished(self, stage: StageName, sample: Sample) -> None:
        """Reports that a sample has passed a stage."""
        self.reporter.finish(stage, name_of(sample))

    def failed(
        self, stage: StageName, item: Item, output: str | None, error: Exception
    ) -> None:
        """Records a failure on the sample and in the summary.

        Args:
            stage: The stage that failed; the sample passes through no later one.
            item: The sample.
            output: Field whose status says so; None for a stage without one.
            error: The failure.

        Raises:
            BackendError: When this machine has no room, and others may have.
        """
        target, sample = item
        if self.shared and isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise BackendError(
                f"{socket.gethostname()}: {error}; free some space there; other "
                "workers do its samples"
            ) from error
        if isinstance(error, Fenced):
            logger.warning("%s: %s", sample.filepath, error)
            self.on_lost(target.unit)
            return
        if not sample._in_db:  # which FiftyOne forgets when it is deleted
            error, output = FieldError("the sample was deleted while the job ran"), None
        logger.warning("%s: %s", sample.filepath, error, exc_info=error)
        message = f"{type(error).__name__}: {error}"
        failure = Failure(target.sample_id, sample.filepath, stage, message)
        self.summary.failures.append(failure)
        try:
            if output is not None:
                self.patiently(partial(_write_failed, sample, output, error, message))
        except RegionCapError as gone:  # the sample or the field, so nobody misses it
            logger.info("%s: no status: %s", sample.filepath, gone)
        self._leave(stage, sample)
        self.on_end(target.unit, message)

    def _leave(self, stage: StageName, sample: Sample) -> None:
        """Reports that a sample goes through no stage from this one on."""
        for name in self.stages[self.stages.index(stage) :]:
            self.reporter.finish(name, name_of(sample))

    def failed_in_part(self, stage: StageName, sample: Sample, message: str) -> None:
        """Records in the summary what of a sample could not be done."""
        logger.warning("%s: %s", sample.filepath, message)
        failure = Failure(sample.id, sample.filepath, stage, message, whole=False)
        self.summary.failures.append(failure)

    def patiently(self, action: Callable[[], T]) -> T:
        """Does something, and again when a database that was away is back.

        Args:
            action: What to do; it can be repeated.

        Raises:
            Canceled: When the job is canceled while the database is away.
        """
        while True:
            try:
                return action()
            except DATABASE_GONE as error:
                self.wait_for_database(error)

    def wait_for_database(self, error: Exception) -> None:
        """Waits, and says so, until the database answers again."""
        began = time.monotonic()
        logger.warning("the database does not answer; waiting for it (%s)", error)
        while not locks.database_answers():
            self.reporter.check_canceled()
            waited = int(time.monotonic() - began)
            self.reporter.say(f"waiting for the database, for {waited} s so far")
        logger.warning(
            "the database is back after %d s; the job goes on", time.monotonic() - began
        )


def _write_failed(sample: Sample, output: str, error: Exception, message: str) -> None:
    # Media that can't be read now take nothing from what was made of them.
    complete = status.read_status(sample, output).state == "complete"
    if not (isinstance(error, VideoError) and complete):
        status.write_status(sample, output, "failed", error=message)


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

    @classmethod
    def writes(cls, options: Any) -> tuple[str, ...]:
        """Returns the fields that it writes, without ``frames.``.

        Two jobs never write a field of a sample at the same time.
        """

    @classmethod
    def targets(cls, samples: foco.SampleCollection) -> Targets:
        """Returns the samples that the stage can work on.

        Raises:
            FieldError: When the collection holds another kind of media.
        """

    @classmethod
    def check(
        cls, options: Any, samples: foco.SampleCollection, made: Collection[str]
    ) -> None:
        """Checks the stage's fields, before any model is loaded; writes nothing.

        Args:
            options: Options of the stage.
            samples: Samples of the job.
            made: Fields that earlier stages of the job write, without ``frames.``.

        Raises:
            FieldError: When a field is absent or of the wrong kind.
        """

    def declare(self, samples: foco.SampleCollection) -> None:
        """Checks what depends on the models, and declares the stage's fields.

        It is called before any work of the job, once all models are loaded.

        Raises:
            FieldError: When a field exists with another type.
        """

    def run(self, items: Iterator[Item], context: RunContext) -> Iterator[Item]:
        """Works on samples as they come, and passes on those that did not fail."""

    def record(self) -> dict[str, Any]:
        """Returns the stage's models for the run's record, as JSON values."""


STAGES: LazyRegistry[type[Stage]] = LazyRegistry(
    kind="stage",
    entries={
        "propose": "fiftyone_regioncap.jobs.proposing:Proposing",
        "find_shots": "fiftyone_regioncap.jobs.shots:FindingShots",
        "propagate": "fiftyone_regioncap.jobs.propagating:Propagating",
        "correct": "fiftyone_regioncap.jobs.correcting:Correcting",
        "caption": "fiftyone_regioncap.jobs.captioning:TrackCaptioning",
        "caption_regions": "fiftyone_regioncap.jobs.images:RegionCaptioning",
        "caption_densely": "fiftyone_regioncap.jobs.dense_captioning:DenseCaptioning",
        "embed_regions": "fiftyone_regioncap.jobs.embedding:Embedding",
        "split_track": "fiftyone_regioncap.jobs.editing:Splitting",
        "merge_tracks": "fiftyone_regioncap.jobs.editing:Merging",
        "delete_track": "fiftyone_regioncap.jobs.editing:Deleting",
        "renumber_track": "fiftyone_regioncap.jobs.editing:Renumbering",
        "move_masks": "fiftyone_regioncap.jobs.moving:MovingMasks",
        "conform": "fiftyone_regioncap.jobs.conforming:Conforming",
    },
    group="fiftyone_regioncap.stages",
)


class BaseStage(Generic[OptionsT]):
    """What the stages of this package have in common; see :class:`Stage`.

    Args:
        options: Options of the stage.

    Attributes:
        find: Finds the samples in a collection; videos by default.
    """

    name: ClassVar[StageName]
    models: ClassVar[Mapping[str, ModelRegistry[Any]]]
    find: ClassVar[Callable[[foco.SampleCollection], Targets]] = video_targets

    def __init__(self, options: OptionsT) -> None:
        self._options = options

    @property
    def output(self) -> str | None:
        """Field whose status says how far samples have come; None for none."""
        return getattr(self._options, "output", None)

    @classmethod
    def writes(cls, options: Any) -> tuple[str, ...]:
        """Returns the output field; see :meth:`Stage.writes`."""
        return (frame_path(options.output),)

    @classmethod
    def targets(cls, samples: foco.SampleCollection) -> Targets:
        """Returns the samples; see :meth:`Stage.targets`."""
        return cls.find(samples)

    @classmethod
    def check(
        cls, options: OptionsT, samples: foco.SampleCollection, made: Collection[str]
    ) -> None:
        """Checks nothing; see :meth:`Stage.check`."""

    def declare(self, samples: foco.SampleCollection) -> None:
        """Declares nothing; see :meth:`Stage.declare`."""

    def record(self) -> dict[str, Any]:
        """Returns the stage's first model, if any; see :meth:`Stage.record`."""
        first = list(self.models)[:1]
        return {role: model_record(getattr(self, f"_{role}").info) for role in first}

    @classmethod
    def require_room(
        cls,
        samples: foco.SampleCollection,
        field: str,
        kind: type[fo.Label],
        is_foreign: Callable[[Document, ObjectId, int], bool],
        *,
        merge: bool = False,
    ) -> None:
        """Makes sure that a field may be written, without a loss of others' labels.

        Args:
            samples: The samples that would be written.
            field: The field, with ``frames.`` in front for one of frames.
            kind: Type of its labels.
            is_foreign: See :func:`.ownership.refuse_foreign_labels`.
            merge: Whether labels that others made may lie beside the stage's own.

        Raises:
            FieldError: When it is read-only, FiftyOne's own, of another type, or holds
                others' labels.
        """
        dataset = samples._root_dataset
        fields.require_writable(dataset, field, kind)
        if not merge:
            ids = [target.sample_id for target in cls.targets(samples)]
            refuse_foreign_labels(dataset, field, ids, is_foreign)


class SampleStage(BaseStage[OptionsT]):
    """A stage that works on one sample after the other."""

    def process(self, target: Target, sample: Sample, context: RunContext) -> bool:
        """Works on a sample; returns whether there was anything to do."""
        raise NotImplementedError

    def run(self, items: Iterator[Item], context: RunContext) -> Iterator[Item]:
        """Works on sample after sample; see :meth:`Stage.run`."""

        def process(target: Target, sample: Sample) -> bool:
            return self.process(target, sample, context)

        return each_sample(self.name, self.output, process, items, context)


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
            Canceled: When ``cancel`` was set.
        """


def model_record(info: Any) -> dict[str, Any]:
    """Returns a model's entry in a run's record.

    Args:
        info: A PropagatorInfo or CaptionerInfo.
    """
    values = asdict(info)
    named = ("name", "model", "revision", "license", "space")
    return {name: values[name] for name in named if name in values}


def model_facts(model: Any) -> dict[str, Any]:
    """Returns what results depend on of a model: its record and its own options.

    Args:
        model: A propagator or captioner that is loaded; the options that it was made
            with are its attribute ``options``.
    """
    facts = {"model": model_record(model.info)}
    options = getattr(model, "options", None)
    if isinstance(options, Options):
        facts["options"] = options.result_facts()
    return facts


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

    Raises:
        FatalError: When every further sample would fail too.
    """
    for target, sample in items:
        context.reporter.check_canceled()
        try:
            worked = context.patiently(partial(process, target, sample))
        except (Canceled, FatalError):
            raise
        except NothingMarked:
            context.unmarked(stage, (target, sample))
        except Exception as error:
            context.failed(stage, (target, sample), output, error)
        else:
            if not worked:
                context.passed_over(stage)
            context.finished(stage, sample)
            yield target, sample
