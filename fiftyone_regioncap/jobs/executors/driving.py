"""The driver: keeps the workers of a job alive, wherever they run, and reports on them.

Workers claim their samples in the database, so that the driver hands out nothing. It
replaces workers that die, and notes on which samples they did.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from typing import Any, Literal, Protocol, TypeVar
from uuid import uuid4

import fiftyone.core.collections as foco

from fiftyone_regioncap.core.errors import (
    BackendError,
    Canceled,
    FatalError,
    OptionError,
    RegionCapError,
)
from fiftyone_regioncap.core.progress import ProgressEvent, ProgressListener
from fiftyone_regioncap.dataset import appearance, leases, locks, runs, status
from fiftyone_regioncap.dataset.leases import sample_of
from fiftyone_regioncap.dataset.sequences import as_videos
from fiftyone_regioncap.jobs import costs
from fiftyone_regioncap.jobs.base import DATABASE_GONE, STAGES, Job
from fiftyone_regioncap.jobs.board import DEATHS_FAILED, Run
from fiftyone_regioncap.jobs.executors.working import (
    WHOLE,
    Part,
    checked,
    job_signature,
    on_frames,
    shared_out,
    writes,
)
from fiftyone_regioncap.jobs.summary import Failure, Report, Summary

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PROBED = 8

POLL = 0.2
"""Seconds between looks at the workers."""

PATIENCE = 30.0
"""Seconds that workers have to stop after the job was canceled."""

SILENT_LEASES = 4
"""Times that a lease lasts after which a worker that says nothing is ended."""

QUICK_DEATHS = 5
"""Deaths in a row, with no sample at hand, after which a worker is not replaced."""

FAILED, FATAL, STOPPED = 3, 4, 5
"""Exit codes of a worker: it can't work here, nobody can, it was told to stop."""


@dataclass(frozen=True)
class Assignment:
    """What a worker is told, as plain values.

    Attributes:
        job: The job; see :meth:`Job.to_dict`.
        run: Id of the run on the board.
        group: Group of the run.
        dataset_id: Id of the dataset.
        fields: Fields that are written.
        signature: Hash of what the results depend on.
        owner: Owner of the worker's leases.
        name: Name of the worker on the board.
        database: Identity of the database, so that no other one is taken for it.
        paths: Some media that the driver sees.
        part: Stages that it does; see :class:`Part`.
    """

    job: Mapping[str, Any]
    run: str
    group: str
    dataset_id: str
    fields: tuple[str, ...]
    signature: str
    owner: str
    name: str
    database: str
    paths: Sequence[str] = ()
    part: Part = WHOLE

    def to_json(self) -> str:
        """Returns it as a line of text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Assignment:
        """Returns the inverse of :meth:`to_json`."""
        values = json.loads(text)
        part = values.pop("part")
        return cls(**values, part=Part(**{**part, "stages": tuple(part["stages"])}))


class WorkerHandle(Protocol):
    """A worker that was started."""

    def ended(self) -> int | None:
        """Returns its exit code, negative for a signal; None while it lives."""

    def end(self) -> None:
        """Ends it at once."""


Spawn = Callable[[int, Assignment], WorkerHandle]
"""Starts the worker of a slot."""


@dataclass
class _Slot:
    """The place of a worker and of those that replace it."""

    number: int
    handle: WorkerHandle | None = None
    owner: str = ""
    name: str = ""
    deaths: int = 0
    restart_at: float = 0.0
    finished: bool = False
    part: Part = WHOLE
    said: datetime | None = None
    heard: float = 0.0
    errors: list[str] = field(default_factory=list)


@dataclass
class Driver:
    """Runs a job by workers elsewhere.

    Attributes:
        job: The job; its models are loaded by the workers.
        executor: Name of the executor, for the board.
        workers: Number of workers.
        spawn: Starts a worker.
        listener: Called with progress events.
        cancel: Set by any thread to stop the job.
        captioners: Number of the workers that only caption; ``"auto"`` for what
            measured costs suggest; None for workers that do all stages.
    """

    job: Job
    executor: str
    workers: int
    spawn: Spawn
    listener: ProgressListener | None = None
    cancel: threading.Event | None = None
    captioners: int | Literal["auto"] | None = None

    def run(self) -> Report:
        """Runs the job to its end; see :meth:`Executor.run`.

        Raises:
            OptionError: When there are captioners in a job that can't be split.
        """
        samples = self.job.samples()
        self._asked, self._root = self.job, samples._root_dataset
        with as_videos(samples) as videos:
            if videos.samples is not samples:
                job = on_frames(self.job, videos)
                self.job = replace(job, dataset=videos.samples.name, view=None)
            return self._run_on(videos.samples)

    def _run_on(self, samples: foco.SampleCollection) -> Report:
        """Runs the job on videos."""
        began = time.monotonic()
        last: Any = STAGES[self.job.stages[-1].stage]
        self._targets = shared_out(self.job, checked(self.job, samples))
        parts = self._parts()
        self._run = Run.begin(
            self.job.name,
            self._asked.dataset,
            self._root._doc.id,
            writes(self.job),
            job_signature(self.job, {}, self._targets),
            executor=self.executor,
            workers=self.workers,
            samples=len(self._targets),
        )
        ids = [target.sample_id for target in self._targets[:_PROBED]]
        paths = self._targets.dataset.select(ids).values("filepath")
        self._paths = [path for path in paths if os.path.exists(path)]
        self._failures: list[Failure] = []
        self._fraction, self._began = 0.0, began
        self._shown: Mapping[str, Any] = {}
        slots = [_Slot(number, part=part) for number, part in enumerate(parts)]
        with self._run.watched(self.listener, self.cancel) as (listen, flags):
            self._listen, self._flags = listen, flags
            try:
                self._watch(slots)
                self._failures += self._patiently(self._untold)
            finally:
                for slot in slots:
                    if slot.handle is not None and slot.handle.ended() is None:
                        slot.handle.end()
                with contextlib.suppress(Exception):  # the job's own error counts
                    owners = {"owner": {"$in": [slot.owner for slot in slots]}}
                    locks.collection("leases").delete_many(owners)
            summary = self._patiently(lambda: self._summary(last.summary))
            summary.seconds = time.monotonic() - began
            summary.run = runs.run_key(self.job.name)
            self._patiently(lambda: appearance.tidy(self._root, *writes(self.job)))
            self._patiently(lambda: self._record(summary))
            self._run.outcome = summary
        return summary

    def _parts(self) -> list[Part]:
        """Returns what each worker does."""
        if self.captioners is None:
            return [WHOLE] * self.workers
        parts = Part.apart(self.job)
        if parts is None:
            raise OptionError(
                f"captioners={self.captioners}: the job has no stages before "
                "captioning; give workers alone"
            )
        before, last = parts
        number = self.captioners
        if number == "auto":
            number = self._balanced()
        elif number >= self.workers:
            raise OptionError(
                f"captioners={number}: leave at least one of {self.workers} workers "
                "for the stages before"
            )
        if not number:
            return [WHOLE] * self.workers
        return [before] * (self.workers - number) + [last] * number

    def _balanced(self) -> int:
        """Returns how many workers keep up with the others, by what was measured.

        It is 0, so that each does all stages, where that is unknown, or the share of
        captioning is too small for a worker of its own. Workers that run out of videos
        to propagate caption too, so that it may be rounded down.
        """
        models = {
            spec.stage: next(iter(spec.models.values())).name
            for spec in self.job.stages
            if spec.models
        }
        known = [costs.measured_cost(*item) for item in models.items()]
        if None in known or "caption" not in models:
            return 0
        taken = costs.expected_costs(self._targets, models)
        share = taken["caption"] / sum(taken.values())
        return min(int(self.workers * share), self.workers - 1)

    def _watch(self, slots: Sequence[_Slot]) -> None:
        """Keeps workers alive until none has anything left to do."""
        beat = 0.0
        while not all(slot.finished for slot in slots):
            try:
                if time.monotonic() - beat > 1:
                    beat = time.monotonic()
                    self._shown = self._board()["board"]
                    self._report(slots)
                for slot in slots:
                    self._look_after(slot)
            except DATABASE_GONE as error:
                logger.warning("the database does not answer: %s", error)
                for slot in slots:  # what they said meanwhile could not be heard
                    slot.heard = time.monotonic()
            if self._flags.is_set():
                self._stop(slots)
            time.sleep(POLL)
        self._gave_up = [error for slot in slots for error in slot.errors[-1:]]
        if len(self._gave_up) == len(slots):
            raise BackendError("no worker can run: " + self._gave_up[0])

    def _look_after(self, slot: _Slot) -> None:
        """Starts or replaces the worker of a slot."""
        if slot.finished:
            return
        if slot.handle is None:
            if time.monotonic() >= slot.restart_at:
                slot.owner, slot.name = uuid4().hex, f"w{slot.number}_{uuid4().hex[:6]}"
                slot.handle = self.spawn(slot.number, self._assignment(slot))
            return
        code = slot.handle.ended()
        if code is None:
            self._require_word(slot)
            return
        parts = Part.apart(self.job)
        if code == 0 and slot.part.hands_on and parts:  # nothing is left of it
            slot.part, slot.handle = parts[1], None
            return
        if code == 0 or (code == STOPPED and self._flags.is_set()):
            slot.finished = True
            return
        if code == STOPPED:  # its machine was taken away; the samples are free
            slot.handle = None
            slot.restart_at = time.monotonic() + 1
            return
        known = self._board()["board"].get(slot.name, {})
        if code == FATAL:
            raise FatalError(known.get("error", "a worker met an error that stays"))
        if code == FAILED:
            slot.finished = True
            slot.errors.append(known.get("error", "a worker can't work here"))
            logger.warning("worker %d: %s", slot.number, slot.errors[-1])
            return
        self._replace(slot, f"signal {-code}" if code < 0 else f"exit code {code}")

    def _require_word(self, slot: _Slot) -> None:
        """Ends a worker that says nothing for long while it is at work.

        It hangs in native code that lets no other thread run, was stopped, or its
        machine is gone. Others have taken over its samples by now.
        """
        shown = self._shown.get(slot.name, {}).get("progress") or {}
        said, now = shown.get("beat_at"), time.monotonic()
        if said is None or said != slot.said:
            slot.said, slot.heard = said, now
        elif now - slot.heard > SILENT_LEASES * leases.SECONDS:
            assert slot.handle is not None
            slot.handle.end()
            self._replace(slot, f"no sign of life for {now - slot.heard:.0f} s")

    def _replace(self, slot: _Slot, how: str) -> None:
        """Notes what a worker died on, and has it replaced."""
        samples = self._run.died(slot.owner)
        logger.warning("worker %d died (%s) with %s", slot.number, how, samples)
        for unit, outcome in self._run.outcomes(samples).items():
            if outcome.deaths >= DEATHS_FAILED and outcome.state is None:
                self._fail(
                    unit,
                    f"the worker died {outcome.deaths} times on this sample ({how})",
                )
        slot.handle = None
        slot.deaths = 0 if samples else slot.deaths + 1
        slot.restart_at = time.monotonic() + min(2.0**slot.deaths - 1, 60.0)
        if slot.deaths >= QUICK_DEATHS:
            slot.finished = True
            slot.errors.append(f"it died {slot.deaths} times in a row ({how})")

    def _patiently(self, action: Callable[[], T]) -> T:
        """Does something, and again when a database that was away is back."""
        while True:
            try:
                return action()
            except DATABASE_GONE as error:
                logger.warning("the database does not answer: %s", error)
                while not locks.database_answers():
                    if self._flags.is_set():
                        raise

    def _untold(self) -> list[Failure]:
        """Returns the failures of this run, also those of workers that died since."""
        stage: Any = STAGES[self.job.stages[0].stage]
        found = self._run.failures()
        ids = {unit: sample_of(unit) for unit in found}
        view = self._targets.dataset.select(list(ids.values()))
        paths = dict(zip(*view.values(["id", "filepath"]), strict=True))
        return [
            Failure(i, paths.get(i, i), stage.name, found[unit].error or "failed")
            for unit, i in ids.items()
        ]

    def _fail(self, unit: str, error: str) -> None:
        """Records that a sample can't be done."""
        self._run.settle(unit, error)
        try:
            sample = self._targets.dataset[sample_of(unit)]
        except KeyError:
            return
        for name in self._run.fields:
            with contextlib.suppress(RegionCapError):
                status.write_status(sample, name, "failed", error)

    def _stop(self, slots: Sequence[_Slot]) -> None:
        """Tells all workers to stop, and waits until they have."""
        locks.collection("jobs").update_one(
            {"_id": self._run.id}, {"$set": {"cancel": True}}
        )
        until = time.monotonic() + PATIENCE
        alive = [slot.handle for slot in slots if slot.handle and not slot.finished]
        while any(handle.ended() is None for handle in alive):
            if time.monotonic() > until:
                break
            time.sleep(POLL)
        raise Canceled("canceled; run the same job again to go on from here")

    def _assignment(self, slot: _Slot) -> Assignment:
        run = self._run
        return Assignment(
            self.job.to_dict(),
            run.id,
            run.group,
            str(run.dataset_id),
            writes(slot.part.of(self.job)),
            run.signature,
            slot.owner,
            slot.name,
            locks.database_id(),
            self._paths,
            slot.part,
        )

    def _board(self) -> dict[str, Any]:
        found = locks.collection("jobs").find_one({"_id": self._run.id}) or {}
        return {"board": {}, **found}

    def _report(self, slots: Sequence[_Slot]) -> None:
        """Tells the listener how far all workers are."""
        known = [item.get("progress", {}) for item in self._shown.values()]
        total = len(self._targets)
        done = self._run.settled()
        fraction = done / total if total else 1.0
        self._fraction = max(self._fraction, fraction)
        alive = sum(slot.handle is not None and not slot.finished for slot in slots)
        elapsed = time.monotonic() - self._began
        first: Any = STAGES[self.job.stages[0].stage]
        self._listen(
            ProgressEvent(
                stage=first.name,
                message=f"{done}/{total} samples, {alive} workers",
                fraction=self._fraction,
                frames=sum(int(item.get("frames_seen", 0)) for item in known),
                captions=sum(int(item.get("captions_seen", 0)) for item in known),
                eta=elapsed / fraction - elapsed if fraction else None,
            )
        )

    def _summary(self, kind: type[Report]) -> Report:
        """Adds up the reports of all workers, those that died as far as they came."""
        summary = kind(samples=len(self._targets), failures=list(self._failures))
        if isinstance(summary, Summary):
            names = (STAGES[spec.stage].name for spec in self.job.stages)
            summary.stages = tuple(names)
        counted = {item.name for item in fields(kind)} - {"samples"}
        for item in self._board()["board"].values():
            report = item.get("report") or item.get("progress") or {}
            for name, value in report.items():
                if name in counted and isinstance(value, int):
                    setattr(summary, name, getattr(summary, name) + value)
                elif name in counted and isinstance(value, dict):
                    total = getattr(summary, name)
                    for key, number in value.items():
                        total[key] = total.get(key, 0) + number
            for name in ("backends", "notes"):
                lines = getattr(summary, name)
                lines += [line for line in report.get(name, ()) if line not in lines]
            summary.failures += [Failure(**one) for one in report.get("failures", ())]
        summary.notes += [f"a worker gave up: {error}" for error in self._gave_up]
        # A worker's own word on a failure names the stage.
        own = {one.sample_id for one in summary.failures[len(self._failures) :]}
        summary.failures = [
            one
            for place, one in enumerate(summary.failures)
            if place >= len(self._failures) or one.sample_id not in own
        ]
        return summary

    def _record(self, summary: Report) -> None:
        assert summary.run is not None
        config = {"job": self._asked.record(), "executor": self.executor}
        for item in self._board()["board"].values():
            config.update(item.get("loaded", {}))
        results = {"summary": summary.to_dict()}
        runs.record_run(self._root, summary.run, config, results)
