"""The stage that finds the shots of videos, whose clips are worked on in parallel."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import fiftyone as fo
import fiftyone.core.collections as foco
from bson import ObjectId

from fiftyone_regioncap.core.progress import Stage as StageName
from fiftyone_regioncap.dataset import fields, schema, status
from fiftyone_regioncap.dataset.ownership import is_numbered, numbered_id
from fiftyone_regioncap.dataset.store import Document, Store
from fiftyone_regioncap.dataset.targets import Sample, Target, name_of
from fiftyone_regioncap.jobs.base import RunContext, SampleStage
from fiftyone_regioncap.jobs.options import ShotOptions
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


class FindingShots(SampleStage[ShotOptions]):
    """Writes an event for each shot; see :class:`Stage`.

    Args:
        options: Where the shots go, and what counts as a cut.
    """

    name: ClassVar[StageName] = "shots"
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

    def process(self, target: Target, sample: Sample, context: RunContext) -> bool:
        """Searches a video, unless that was done."""
        options, output, name = self._options, self._options.output, name_of(sample)
        done = status.read_status(sample, output).state == "complete"
        if done and not options.overwrite:
            return False
        detector, starts, count = SceneCutDetector(options.sensitivity), [0], 0
        with VideoReader(sample.filepath) as reader:
            for number, frame in enumerate(reader):
                if detector.is_cut(frame):
                    starts.append(number)
                count = number + 1
                context.reporter.update(self.name, name, count, len(reader))
        store = Store.of(sample)
        shots = _shots(store, output, [*starts, count])
        value = {"_cls": "TemporalDetections", "detections": shots}
        store.write_sample({output: value})
        status.write_status(sample, output, "complete")
        context.count(shots=len(shots))
        return True


def _shots(store: Store, field: str, bounds: Sequence[int]) -> list[Document]:
    """Returns an event for each shot, given the frames at which they begin and end."""
    shots = []
    for number, start in enumerate(bounds[:-1]):
        support = [start + 1, bounds[number + 1]]
        shot = fo.TemporalDetection(label=f"shot {number + 1}", support=support)
        label_id = numbered_id(number, store.sample_id, field)
        shots.append({**shot.to_dict(), "_id": label_id})
    return shots
