"""The stage that finds the objects of videos that have no prompts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

import fiftyone as fo
import fiftyone.core.collections as foco

from fiftyone_regioncap.core.errors import BackendError
from fiftyone_regioncap.core.progress import Stage as StageName
from fiftyone_regioncap.core.types import Prompt
from fiftyone_regioncap.dataset import fields, schema
from fiftyone_regioncap.dataset.ownership import track_label_is_foreign
from fiftyone_regioncap.dataset.prompts import (
    prompt_numbers,
    require_own_prompts,
    write_prompts,
)
from fiftyone_regioncap.dataset.status import Span
from fiftyone_regioncap.dataset.store import frame_path
from fiftyone_regioncap.dataset.targets import Sample, Target
from fiftyone_regioncap.jobs.base import RunContext, model_facts
from fiftyone_regioncap.jobs.options import ProposeOptions
from fiftyone_regioncap.jobs.searching import SearchStage
from fiftyone_regioncap.jobs.summary import Report, Summary
from fiftyone_regioncap.models.registry import ModelRegistry
from fiftyone_regioncap.propagation.base import Propagator
from fiftyone_regioncap.propagation.proposals import Segmenter, propose
from fiftyone_regioncap.propagation.registry import PROPAGATORS
from fiftyone_regioncap.video.reader import VideoReader


@runtime_checkable
class Segmenting(Protocol):
    """A propagator whose model also segments single frames."""

    def segmenter(self) -> Segmenter:
        """Returns the model on single frames."""


def require_segmenter(model: Propagator | Segmenter) -> Segmenter:
    """Returns the segmenter of a propagator; a segmenter is taken as it is.

    Raises:
        BackendError: When its model doesn't segment single frames.
    """
    if isinstance(model, Segmenting):
        return model.segmenter()
    if not hasattr(model, "encode"):
        name = getattr(getattr(model, "info", None), "name", "the propagator")
        raise BackendError(f"{name} finds no objects; choose mobilesam or sam2")
    return cast(Segmenter, model)


class Proposing(SearchStage[ProposeOptions]):
    """Writes a mask prompt for each object that is found; see :class:`Stage`.

    Args:
        options: Options that define what counts as an object.
        propagator: Propagator whose model finds masks.
    """

    name: ClassVar[StageName] = "propose"
    found: ClassVar[str] = "proposals"
    options = ProposeOptions
    summary: ClassVar[type[Report]] = Summary
    models: ClassVar[Mapping[str, ModelRegistry[Any]]] = {"propagator": PROPAGATORS}

    def __init__(self, options: ProposeOptions, propagator: Propagator) -> None:
        super().__init__(options)
        self._propagator = propagator
        self._segmenter = require_segmenter(propagator)

    @classmethod
    def check(
        cls,
        options: ProposeOptions,
        samples: foco.SampleCollection,
        made: Collection[str],
    ) -> None:
        """Checks the field of the prompts; see :meth:`Stage.check`."""
        path = fields.frames_field(fields.require_output(options.output))
        is_foreign = track_label_is_foreign(path)
        cls.require_room(samples, path, fo.Detections, is_foreign)

    def declare(self, samples: foco.SampleCollection) -> None:
        """Declares the field of the prompts; see :meth:`Stage.declare`."""
        dataset, output = samples._root_dataset, self._options.output
        schema.declare_labels(dataset, output, fo.Detections)
        schema.declare_status(dataset, output)
        schema.declare_origins(dataset, output)

    def facts(self) -> dict[str, Any]:
        """Returns the model that finds masks; see :meth:`SearchStage.facts`."""
        return {"propagator": model_facts(self._propagator)}

    def spans(self, target: Target) -> list[Span]:
        """Returns the clips, those that overlap as one; else all of the video."""
        spans: list[tuple[int, int]] = []
        for start, stop in sorted(target.ranges or ()):
            if spans and start < spans[-1][1]:
                start, last = spans.pop()
                stop = max(stop, last)
            spans.append((start, stop))
        return [*spans] or [(0, None)]

    def require_unedited(self, sample: Sample, spans: Sequence[Span]) -> None:
        """Looks at the prompts; see :meth:`SearchStage.require_unedited`."""
        require_own_prompts(sample, frame_path(self._options.output), spans)

    def search(
        self, sample: Sample, spans: Sequence[Span], context: RunContext
    ) -> list[Prompt]:
        """Finds the objects of each range, whose numbers nothing else has."""
        name = frame_path(self._options.output)
        taken = prompt_numbers(sample, name, outside=spans)
        numbers = (number for number in count(1) if number not in taken)
        with VideoReader(sample.filepath) as reader:
            return [
                replace(prompt, object_id=next(numbers))
                for start, stop in spans
                for prompt in propose(
                    reader,
                    self._segmenter,
                    self._options.proposals,
                    start=start,
                    stop=min(stop or len(reader), len(reader)),
                )
            ]

    def write(
        self,
        sample: Sample,
        spans: Sequence[Span],
        found: list[Prompt],
        context: RunContext,
    ) -> int:
        """Writes the prompts; see :meth:`SearchStage.write`."""
        replaced = write_prompts(
            sample, frame_path(self._options.output), found, spans=spans
        )
        context.count(tracks=len(found))
        return replaced
