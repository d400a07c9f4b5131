"""The stages that split, merge, delete and renumber tracks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any, ClassVar, TypeVar

import fiftyone.core.collections as foco

from fiftyone_regioncap.core.errors import FieldError, OptionError
from fiftyone_regioncap.core.progress import Stage as StageName
from fiftyone_regioncap.dataset import fields
from fiftyone_regioncap.dataset.store import frame_path
from fiftyone_regioncap.dataset.targets import Sample, Target
from fiftyone_regioncap.dataset.track_edits import (
    NewNumber,
    TrackChange,
    change_numbers,
    used_numbers,
)
from fiftyone_regioncap.jobs.base import RunContext, SampleStage
from fiftyone_regioncap.jobs.options import (
    DeleteOptions,
    MergeOptions,
    RenumberOptions,
    SplitOptions,
    TrackEditOptions,
)
from fiftyone_regioncap.jobs.summary import Report, counted
from fiftyone_regioncap.models.registry import ModelRegistry

EditOptions = TypeVar("EditOptions", bound=TrackEditOptions)


@dataclass
class TrackEditSummary(TrackChange, Report):
    """Counts what the job did; see :class:`TrackChange`."""

    def to_markdown(self) -> str:
        """Returns a few lines for people."""
        lines = [
            f"{counted(self.labels, 'label')} renumbered, "
            f"{counted(self.removed, 'label')} removed; "
            f"{counted(self.captions, 'caption')} went with them"
        ]
        if self.outdated:
            lines.append(
                f"- {counted(self.outdated, 'caption')} tagged outdated; caption the "
                "tracks again"
            )
        return "\n".join([*lines, *self.remarks()])


class TrackEditing(SampleStage[EditOptions]):
    """Changes the numbers of one object's labels; see :class:`Stage`.

    Args:
        options: Which object, and how.
    """

    name: ClassVar[StageName] = "edit"
    summary: ClassVar[type[Report]] = TrackEditSummary
    models: ClassVar[Mapping[str, ModelRegistry[Any]]] = {}

    @classmethod
    def writes(cls, options: EditOptions) -> tuple[str, ...]:
        """Returns the field of the tracks; see :meth:`Stage.writes`."""
        return (frame_path(options.tracks),)

    @classmethod
    def check(
        cls,
        options: EditOptions,
        samples: foco.SampleCollection,
        made: Collection[str],
    ) -> None:
        """Checks the fields; see :meth:`Stage.check`."""
        dataset = samples._root_dataset
        tracks = fields.require_tracks(dataset, options.tracks)
        for name in (tracks, *fields.caption_fields(dataset)):
            fields.require_writable(dataset, name)

    def new_number(self, there: set[int], used: set[int]) -> NewNumber:
        """Returns the numbers that the object's labels get, by frame.

        Args:
            there: The numbers of the objects of the video.
            used: The numbers that objects have or had.

        Raises:
            FieldError: When the new number is another object's.
        """
        raise NotImplementedError

    def process(self, target: Target, sample: Sample, context: RunContext) -> bool:
        """Changes the tracks of a sample."""
        options = self._options
        there, used = used_numbers(sample, options.tracks)
        new = self.new_number(there, used)
        change = change_numbers(sample, options.tracks, {options.object_id: new})
        context.count(**asdict(change))
        return True

    def _free(self, wanted: int | None, used: set[int]) -> int:
        """Returns a number that no object has, the wanted one if there is one."""
        if wanted in used:
            raise FieldError(
                f"{wanted} is or was the number of an object of this video; give "
                "another one, or merge the tracks"
            )
        free = next(n for n in count(1) if n not in used)
        return free if wanted is None else wanted


class Splitting(TrackEditing[SplitOptions]):
    """Makes the later part of a track an object of its own."""

    options = SplitOptions

    def new_number(self, there: set[int], used: set[int]) -> NewNumber:
        """Returns the new number from the frame on."""
        own, start = self._options.object_id, self._options.frame
        new = self._free(self._options.new_id, used)
        return lambda frame: own if frame < start else new


class Merging(TrackEditing[MergeOptions]):
    """Makes a track part of another one."""

    options = MergeOptions

    def new_number(self, there: set[int], used: set[int]) -> NewNumber:
        """Returns the number of the other object."""
        into = self._options.into
        if into == self._options.object_id:
            raise OptionError(f"into={into} is the object itself; give another one")
        if into not in there:
            raise FieldError(
                f"{self._options.tracks} holds no object {into} on this video; there "
                f"are: {', '.join(map(str, sorted(there)))}"
            )
        return lambda frame: into


class Deleting(TrackEditing[DeleteOptions]):
    """Removes a track."""

    options = DeleteOptions

    def new_number(self, there: set[int], used: set[int]) -> NewNumber:
        """Returns no number."""
        return lambda frame: None


class Renumbering(TrackEditing[RenumberOptions]):
    """Gives a track another number."""

    options = RenumberOptions

    def new_number(self, there: set[int], used: set[int]) -> NewNumber:
        """Returns the new number."""
        new = self._free(self._options.new_id, used)
        return lambda frame: new
