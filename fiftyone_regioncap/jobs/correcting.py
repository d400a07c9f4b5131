"""The stage that goes on with a track from a frame that a person corrected."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import asdict
from typing import Any, ClassVar

import fiftyone.core.collections as foco

from fiftyone_regioncap.core.errors import FieldError
from fiftyone_regioncap.core.progress import Stage as StageName
from fiftyone_regioncap.core.types import Prompt
from fiftyone_regioncap.dataset import fields, origins, status
from fiftyone_regioncap.dataset.corrections import (
    TrackLabel,
    instance_of,
    last_edited,
    mark_outdated,
    track_labels,
)
from fiftyone_regioncap.dataset.objects import read_numbers
from fiftyone_regioncap.dataset.prompts import read_prompts
from fiftyone_regioncap.dataset.store import Store, frame_path
from fiftyone_regioncap.dataset.targets import Sample, Target, name_of
from fiftyone_regioncap.dataset.tracks import TrackWriter, foreign_indexes
from fiftyone_regioncap.jobs.base import RunContext, SampleStage
from fiftyone_regioncap.jobs.checkpoints import signature
from fiftyone_regioncap.jobs.options import CorrectionOptions
from fiftyone_regioncap.jobs.summary import Report, Summary
from fiftyone_regioncap.models.registry import ModelRegistry
from fiftyone_regioncap.propagation.base import PropagationRequest, Propagator
from fiftyone_regioncap.propagation.registry import PROPAGATORS
from fiftyone_regioncap.video.prefetch import prefetch
from fiftyone_regioncap.video.reader import VideoReader


class Correcting(SampleStage[CorrectionOptions]):
    """Propagates one object of a track anew from a frame on; see :class:`Stage`.

    The frames on the other side of it stay, and so do other objects. Other labels of
    the object that a person edited stay too, and are prompts as well.

    Args:
        options: Which object, from which frame, and which way.
        propagator: The propagator.
    """

    name: ClassVar[StageName] = "propagate"
    options = CorrectionOptions
    summary: ClassVar[type[Report]] = Summary
    models: ClassVar[Mapping[str, ModelRegistry[Any]]] = {"propagator": PROPAGATORS}

    def __init__(self, options: CorrectionOptions, propagator: Propagator) -> None:
        super().__init__(options)
        self._propagator = propagator

    @classmethod
    def writes(cls, options: CorrectionOptions) -> tuple[str, ...]:
        """Returns the field of the tracks; see :meth:`Stage.writes`."""
        return (frame_path(options.tracks),)

    @classmethod
    def check(
        cls,
        options: CorrectionOptions,
        samples: foco.SampleCollection,
        made: Collection[str],
    ) -> None:
        """Checks the fields; see :meth:`Stage.check`."""
        dataset = samples._root_dataset
        fields.require_writable(dataset, fields.require_tracks(dataset, options.tracks))
        for captions in fields.caption_fields(dataset):
            fields.require_writable(dataset, captions)
        if options.prompts is not None:
            fields.require_prompts(dataset, options.prompts)

    def process(self, target: Target, sample: Sample, context: RunContext) -> bool:
        """Propagates one object of one sample."""
        options = self._options
        wanted = None if options.object_id is None else [options.object_id]
        labels = track_labels(sample, options.tracks, wanted)
        object_id, frame = _choose(labels, options)
        own = [label for label in labels if label.index == object_id]
        if any(label.owner == "foreign" for label in own):
            raise FieldError(
                f"object {object_id} of {options.tracks} was made by another tool, "
                "whose labels are never replaced; propagate it into another field"
            )
        with VideoReader(sample.filepath) as reader:
            size = reader.height, reader.width
            start, stop = _range(frame, options.direction, len(reader))
            drawn = [] if options.prompts is None else self._drawn(sample, reader)
            prompts = _prompts(own, drawn, object_id, frame, (start, stop), size)
            propagation = self._propagator.propagate(
                PropagationRequest(
                    reader,
                    prompts,
                    direction=options.direction,
                    start=start,
                    stop=stop,
                    overlap=True,
                )
            )
            before = origins.withdraw(sample, options.tracks, object_id).status
            if before.state is not None:
                status.write_status(sample, options.tracks, "partial")
            self._write(sample, own, (start, stop), prefetch(propagation), context)
        # They are tagged until they are made anew.
        for captions in fields.caption_fields(sample._dataset):
            mark_outdated(sample, captions, object_id, instance_of(own))
        corrected = signature({"prompts": [asdict(prompt) for prompt in prompts]})
        origins.correct(sample, options.tracks, object_id, corrected)
        if before.state is not None:
            status.write_status(sample, options.tracks, before.state, before.error)
        return True

    def _drawn(self, sample: Sample, reader: VideoReader) -> list[Prompt]:
        """Returns what a person drew in the field of prompts."""
        options = self._options
        assert options.prompts is not None
        return read_prompts(
            sample,
            options.prompts,
            height=reader.height,
            width=reader.width,
            frame_count=len(reader),
            # Objects keep the numbers that the tracks were made with.
            known=read_numbers(Store.of(sample), options.tracks, "prompts"),
            taken=foreign_indexes(sample, options.tracks),
        ).prompts

    def _write(
        self,
        sample: Sample,
        own: list[TrackLabel],
        support: tuple[int, int],
        steps: Any,
        context: RunContext,
    ) -> None:
        """Writes the masks of the range in place of those that are there."""
        start, stop = support
        object_id = own[0].index
        names = [label.label.get("label") for label in own]
        instance = instance_of(own)
        with (
            TrackWriter(
                sample,
                self._options.tracks,
                labels={object_id: next(filter(None, names), None)},
                instances={} if instance is None else {object_id: instance},
            ) as writer,
            closing(steps),
        ):
            writer.clear_range((start, stop - 1), {object_id})
            for done, masks in enumerate(steps, start=1):
                writer.write(masks)
                context.reporter.add(frames=1)
                context.count(frames=1)
                total = stop - start
                context.reporter.update(self.name, name_of(sample), done, total)
        context.count(tracks=1)


def _choose(labels: list[TrackLabel], options: CorrectionOptions) -> tuple[int, int]:
    """Returns the object and the frame to go on from.

    Raises:
        FieldError: When there is no such object, or nothing was edited and no frame is
            named.
    """
    what = (
        "no object" if options.object_id is None else f"no object {options.object_id}"
    )
    if not labels:
        raise FieldError(f"{options.tracks} holds {what} on this video")
    edited = last_edited(labels)
    if options.object_id is not None and options.frame is not None:
        return options.object_id, options.frame
    if edited is None:
        raise FieldError(
            f"no label of {options.tracks} was edited on this video; correct one, or "
            "name the object and the frame to go on from"
        )
    return edited.index, edited.frame if options.frame is None else options.frame


def _range(frame: int, direction: str, count: int) -> tuple[int, int]:
    """Returns the frames [start, stop) that are propagated to."""
    start = frame if direction == "forward" else 0
    stop = frame + 1 if direction == "backward" else count
    return start, stop


def _prompts(
    own: list[TrackLabel],
    drawn: list[Prompt],
    object_id: int,
    frame: int,
    support: tuple[int, int],
    size: tuple[int, int],
) -> list[Prompt]:
    """Returns what the object is propagated from: corrections, then the label there.

    Raises:
        FieldError: When the object has no label on the frame.
    """
    start, stop = support
    prompts = [
        label.prompt(*size)
        for label in own
        if label.owner == "edited" and start <= label.frame < stop
    ]
    known = {prompt.frame for prompt in prompts}
    prompts += [
        prompt
        for prompt in drawn
        if prompt.object_id == object_id
        and start <= prompt.frame < stop
        and prompt.frame not in known
    ]
    if frame not in {prompt.frame for prompt in prompts}:
        there = [label.prompt(*size) for label in own if label.frame == frame]
        if not there:
            raise FieldError(
                f"object {object_id} has no label on frame {frame + 1}; go on from a "
                "frame that shows it, or draw it there"
            )
        prompts += there
    return sorted(prompts, key=lambda prompt: prompt.frame)
