"""The stage that finds the shots of videos, whose clips are worked on in parallel."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import fiftyone as fo
import fiftyone.core.collections as foco
from bson import ObjectId

from fiftyone_regioncap.core.errors import FieldError
from fiftyone_regioncap.core.progress import Stage as StageName
from fiftyone_regioncap.dataset import fields, schema
from fiftyone_regioncap.dataset.geometry import labels_of
from fiftyone_regioncap.dataset.ownership import free_field, is_numbered, numbered_id
from fiftyone_regioncap.dataset.status import Span
from fiftyone_regioncap.dataset.store import Document, Store
from fiftyone_regioncap.dataset.targets import Sample, name_of
from fiftyone_regioncap.jobs.base import RunContext
from fiftyone_regioncap.jobs.options import ShotOptions
from fiftyone_regioncap.jobs.searching import SearchStage
from fiftyone_regioncap.jobs.summary import Report
from fiftyone_regioncap.models.registry import ModelRegistry
from fiftyone_regioncap.video.reader import VideoReader
from fiftyone_regioncap.video.scene_cuts import SceneCutDetector


@dataclass
class ShotSummary(Report):
    """Counts what the job did.

    Attributes:
        shots: Number of shots that were found.
        skipped: Number of videos that had been searched before.
    """

    shots: int = 0
    skipped: int = 0

    def to_markdown(self) -> str:
        """Returns a few lines for people."""
        searched = self.samples - self.skipped
        lines = [
            f"**{self.shots}** shots in {searched} of {self.samples} videos in "
            f"{self.seconds:.1f} s"
        ]
        return "\n".join(lines + self.remarks())


class FindingShots(SearchStage[ShotOptions]):
    """Writes an event for each shot; see :class:`Stage`.

    Args:
        options: Where the shots go, and what counts as a cut.
    """

    name: ClassVar[StageName] = "shots"
    found: ClassVar[str] = "shots"
    options = ShotOptions
    summary: ClassVar[type[Report]] = ShotSummary
    models: ClassVar[Mapping[str, ModelRegistry[Any]]] = {}

    @classmethod
    def check(
        cls,
        options: ShotOptions,
        samples: foco.SampleCollection,
        made: Collection[str],
    ) -> None:
        """Checks the field of the shots; see :meth:`Stage.check`."""
        output = fields.require_output(options.output)

        def is_foreign(label: Document, sample_id: ObjectId, number: int) -> bool:
            return not is_numbered(label, sample_id, output)

        cls.require_room(samples, output, fo.TemporalDetections, is_foreign)

    def declare(self, samples: foco.SampleCollection) -> None:
        """Declares the field of the shots; see :meth:`Stage.declare`."""
        dataset, output = samples._root_dataset, self._options.output
        schema.declare_events(dataset, output)
        schema.declare_status(dataset, output)
        schema.declare_origins(dataset, output)

    def require_unedited(self, sample: Sample, spans: Sequence[Span]) -> None:
        """Looks at the shots; see :meth:`SearchStage.require_unedited`."""
        output, store = self._options.output, Store.of(sample)
        if self._options.overwrite:
            return
        there = _events(store, output)
        bounds = [shot["support"][0] - 1 for shot in there]
        bounds += [shot["support"][1] for shot in there[-1:]]
        edited = [
            shot["label"]
            for shot, own in zip(there, _shots(store, output, bounds), strict=True)
            if _said(shot) != _said(own)
        ]
        if edited:
            listed = ", ".join(map(str, edited[:3]))
            raise FieldError(
                f"{output} holds shots that a person edited ({listed}); write to "
                f"{free_field(store.dataset, output)}, or replace them by the option "
                "overwrite"
            )

    def search(
        self, sample: Sample, spans: Sequence[Span], context: RunContext
    ) -> list[int]:
        """Returns the frames at which shots begin, and one past the last one."""
        detector, starts, count = SceneCutDetector(self._options.sensitivity), [0], 0
        with VideoReader(sample.filepath) as reader:
            for number, frame in enumerate(reader):
                if detector.is_cut(frame):
                    starts.append(number)
                count = number + 1
                name = name_of(sample)
                context.reporter.update(self.name, name, count, len(reader))
        return [*starts, count]

    def write(
        self,
        sample: Sample,
        spans: Sequence[Span],
        found: list[int],
        context: RunContext,
    ) -> int:
        """Writes the shots; see :meth:`SearchStage.write`."""
        output, store = self._options.output, Store.of(sample)
        replaced = len(_events(store, output))
        shots = _shots(store, output, found)
        value = {"_cls": "TemporalDetections", "detections": shots}
        store.write_sample({output: value})
        context.count(shots=len(shots))
        return replaced


def _events(store: Store, field: str) -> list[Document]:
    """Reads the shots of a video in their order."""
    found = labels_of(store.sample_document(field).get(field))
    return sorted(found, key=lambda shot: shot["support"])


def _said(shot: Document) -> Document:
    """Returns what a shot says; FiftyOne adds empty attributes where it saves one."""
    return {key: value for key, value in shot.items() if value not in (None, [])}


def _shots(store: Store, field: str, bounds: Sequence[int]) -> list[Document]:
    """Returns an event for each shot, given the frames at which they begin and end."""
    shots = []
    for number, start in enumerate(bounds[:-1]):
        support = [start + 1, bounds[number + 1]]
        shot = fo.TemporalDetection(label=f"shot {number + 1}", support=support)
        label_id = numbered_id(number, store.sample_id, field)
        shots.append({**shot.to_dict(), "_id": label_id})
    return shots
