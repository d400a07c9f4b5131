"""The stage that moves masks from the database to files and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import fiftyone.core.collections as foco

from fiftyone_regioncap.core.progress import Stage as StageName
from fiftyone_regioncap.dataset import fields
from fiftyone_regioncap.dataset.mask_storage import move_masks
from fiftyone_regioncap.dataset.targets import Sample, Target, Targets, video_targets
from fiftyone_regioncap.jobs.base import Item, RunContext, each_sample
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


class MovingMasks:
    """Moves the masks of tracks; see :class:`Stage`.

    Args:
        options: Which masks, and where to.
    """

    name: ClassVar[StageName] = "move"
    options = MoveMasksOptions
    summary: ClassVar[type[Report]] = MoveSummary
    models: ClassVar[Mapping[str, ModelRegistry[Any]]] = {}

    def __init__(self, options: MoveMasksOptions) -> None:
        self._options = options

    def targets(self, samples: foco.SampleCollection) -> Targets:
        """Returns the videos; see :meth:`Stage.targets`."""
        return video_targets(samples)

    def check(self, samples: foco.SampleCollection) -> None:
        """Checks the field of the tracks; see :meth:`Stage.check`."""
        dataset = samples._root_dataset
        field = fields.require_tracks(dataset, self._options.tracks)
        fields.require_writable(dataset, field)

    def run(self, items: Iterator[Item], context: RunContext) -> Iterator[Item]:
        """Moves the masks of sample after sample."""
        options = self._options

        def process(target: Target, sample: Sample) -> bool:
            for moved in move_masks(
                sample, options.tracks, options.to, options.output_dir
            ):
                context.count(moved=moved)
                context.reporter.check_cancelled()
            return True

        return each_sample(self.name, None, process, items, context)

    def record(self) -> dict[str, Any]:
        """Returns nothing, as there is no model; see :meth:`Stage.record`."""
        return {}
