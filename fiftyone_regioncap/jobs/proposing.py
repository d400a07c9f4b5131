"""The stage that finds the objects of videos that have no prompts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

import fiftyone as fo
import fiftyone.core.collections as foco

from fiftyone_regioncap.core.errors import BackendError
from fiftyone_regioncap.core.progress import Stage as StageName
from fiftyone_regioncap.dataset import fields, schema, status
from fiftyone_regioncap.dataset.ownership import track_label_is_foreign
from fiftyone_regioncap.dataset.prompts import write_prompts
from fiftyone_regioncap.dataset.store import frame_path
from fiftyone_regioncap.dataset.targets import Sample, Target
from fiftyone_regioncap.jobs.base import RunContext, SampleStage
from fiftyone_regioncap.jobs.options import ProposeOptions
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


class Proposing(SampleStage[ProposeOptions]):
    """Writes a mask prompt for each object that is found; see :class:`Stage`.

    Args:
        options: Options that define what counts as an object.
        propagator: Propagator whose model finds masks.
    """

    name: ClassVar[StageName] = "propose"
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

    def process(self, target: Target, sample: Sample, context: RunContext) -> bool:
        """Searches a sample, unless that was done."""
        options, output = self._options, self._options.output
        done = status.read_status(sample, output).state == "complete"
        if done and not options.overwrite:
            return False
        with VideoReader(sample.filepath) as reader:
            start, stop = (target.ranges or ((0, len(reader)),))[0]
            prompts = propose(
                reader, self._segmenter, options.proposals, start=start, stop=stop
            )
        write_prompts(sample, frame_path(output), prompts)
        status.write_status(sample, output, "complete")
        context.count(tracks=len(prompts))
        return True
