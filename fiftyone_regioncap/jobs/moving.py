"""The stage that moves masks from the database to files and back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import fiftyone.core.collections as foco

from fiftyone_regioncap.core.progress import Stage as StageName
from fiftyone_regioncap.dataset import fields
from fiftyone_regioncap.dataset.mask_storage import move_masks
from fiftyone_regioncap.dataset.store import frame_path
from fiftyone_regioncap.dataset.targets import Sample, Target
from fiftyone_regioncap.jobs.base import RunContext, SampleStage
from fiftyone_regioncap.jobs.options import MoveMasksOptions
from fiftyone_regioncap.jobs.summary import Report
from fiftyone_regioncap.models.registry import ModelRegistry


@dataclass
class MoveSummary(Report):
    """Counts what the job did.

    Attributes:
        moved: Number of masks moved.
    """

    moved: int = 0

    def to_markdown(self) -> str:
        """Returns a few lines for people."""
        head = (
            f"**{self.moved}** masks of {self.samples} videos moved in "
            f"{self.seconds:.1f} s"
        )
        return "\n".join([head, *self.remarks()])


class MovingMasks(SampleStage[MoveMasksOptions]):
    """Moves the masks of tracks; see :class:`Stage`.

    Args:
        options: Which masks, and where to.
    """

    name: ClassVar[StageName] = "move"
    options = MoveMasksOptions
    summary: ClassVar[type[Report]] = MoveSummary
    models: ClassVar[Mapping[str, ModelRegistry[Any]]] = {}

    @classmethod
    def writes(cls, options: MoveMasksOptions) -> tuple[str, ...]:
        """Returns the field of the tracks; see :meth:`Stage.writes`."""
        return (frame_path(options.tracks),)

    @classmethod
    def check(
        cls,
        options: MoveMasksOptions,
        samples: foco.SampleCollection,
        made: Collection[str],
    ) -> None:
        """Checks the field of the tracks; see :meth:`Stage.check`."""
        dataset = samples._root_dataset
        field = fields.require_tracks(dataset, options.tracks)
        fields.require_writable(dataset, field)

    def process(self, target: Target, sample: Sample, context: RunContext) -> bool:
        """Moves the masks of a sample."""
        options = self._options
        for moved in move_masks(sample, options.tracks, options.to, options.output_dir):
            context.count(moved=moved)
            context.reporter.check_canceled()
        return True
