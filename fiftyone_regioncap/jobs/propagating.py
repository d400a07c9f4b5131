"""The stage that carries prompts through videos and writes tracks."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, replace
from typing import Any, ClassVar

import fiftyone.core.collections as foco
import numpy as np
from fiftyone.core.sample import SampleView

from fiftyone_regioncap.__about__ import __version__
from fiftyone_regioncap.core.errors import FieldError, PromptError
from fiftyone_regioncap.core.progress import Stage as StageName
from fiftyone_regioncap.core.types import FrameMasks, Prompt
from fiftyone_regioncap.dataset import fields, schema, status
from fiftyone_regioncap.dataset.metadata import file_digest
from fiftyone_regioncap.dataset.ownership import (
    refuse_foreign_labels,
    track_label_is_foreign,
)
from fiftyone_regioncap.dataset.prompts import PromptSet, read_prompts
from fiftyone_regioncap.dataset.store import frame_path
from fiftyone_regioncap.dataset.targets import (
    Sample,
    Target,
    Targets,
    name_of,
    video_targets,
)
from fiftyone_regioncap.dataset.tracks import (
    TrackWriter,
    foreign_indexes,
    labeled_frames,
    read_tracks,
)
from fiftyone_regioncap.jobs.base import Item, RunContext, each_sample, model_record
from fiftyone_regioncap.jobs.checkpoints import CheckpointFile, signature
from fiftyone_regioncap.jobs.options import PropagateOptions
from fiftyone_regioncap.jobs.summary import Report, Summary
from fiftyone_regioncap.models.registry import ModelRegistry
from fiftyone_regioncap.propagation.base import (
    Checkpoint,
    Direction,
    Propagation,
    PropagationRequest,
    Propagator,
    PropagatorInfo,
)
from fiftyone_regioncap.propagation.policy import PolicyPropagator
from fiftyone_regioncap.propagation.registry import PROPAGATORS
from fiftyone_regioncap.system import assets
from fiftyone_regioncap.video.prefetch import prefetch
from fiftyone_regioncap.video.reader import VideoReader

logger = logging.getLogger(__name__)

_CLAIMED = "job/frames"
"""Array of a checkpoint with the frames that have labels up to it."""

_NOT_OF_RESULTS = frozenset(
    {
        "prompts",
        "output",
        "start",
        "stop",
        "mask_storage",
        "output_dir",
        "overwrite",
        "overwrite_edited",
        "merge",
    }
)
"""Options that tracks don't depend on, or that are looked at by themselves."""

CHECKPOINT_SECONDS = 20.0
"""How much work a killed job repeats at most; saving takes well under a second."""


class Propagating:
    """Propagates prompts and writes tracks; see :class:`Stage`.

    Args:
        options: Options of the propagation.
        propagator: The propagator.
    """

    name: ClassVar[StageName] = "propagate"
    options = PropagateOptions
    summary: ClassVar[type[Report]] = Summary
    models: ClassVar[Mapping[str, ModelRegistry[Any]]] = {"propagator": PROPAGATORS}

    def __init__(self, options: PropagateOptions, propagator: Propagator) -> None:
        self._options = options
        self._propagator = propagator

    def targets(self, samples: foco.SampleCollection) -> Targets:
        """Returns the videos; see :meth:`Stage.targets`."""
        return video_targets(samples)

    def check(self, samples: foco.SampleCollection) -> None:
        """Declares the field of the tracks; see :meth:`Stage.check`."""
        dataset, options = samples._root_dataset, self._options
        fields.require_prompts(dataset, options.prompts)
        fields.require_output(options.output, options.prompts)
        output = fields.frames_field(options.output)
        fields.require_writable(dataset, output)
        if not options.merge:
            ids = [target.sample_id for target in self.targets(samples)]
            is_foreign = track_label_is_foreign(output)
            refuse_foreign_labels(dataset, output, ids, is_foreign)
        schema.declare_tracks(dataset, options.output)
        schema.declare_status(dataset, options.output)

    def run(self, items: Iterator[Item], context: RunContext) -> Iterator[Item]:
        """Propagates sample after sample and passes on those that have tracks."""
        return each_sample(
            self.name,
            self._options.output,
            lambda target, sample: self._sample(target, sample, context),
            items,
            context,
        )

    def record(self) -> dict[str, Any]:
        """Returns the propagator; see :meth:`Stage.record`."""
        return {"propagator": model_record(self._propagator.info)}

    def _sample(self, target: Target, sample: Sample, context: RunContext) -> bool:
        """Propagates one sample, clip by clip; False when it is complete."""
        options = self._options
        with VideoReader(sample.filepath) as reader:
            found = read_prompts(
                sample,
                options.prompts,
                height=reader.height,
                width=reader.width,
                frame_count=len(reader),
            )
            if not found.prompts:
                raise PromptError(
                    f"{options.prompts} is empty; mark an object on some frame"
                )
            if options.merge:
                _refuse_shared_indexes(sample, found, options.output)
            made_by = _fingerprint(sample, reader, options, self._propagator.info)
            ranges = _to_do(target, sample, found, options, made_by)
            if not ranges:
                return False
            status.write_status(sample, options.output, "partial")
            for (start, stop), objects in ranges.items():
                there = replace(options, start=start, stop=stop)
                self._range(sample, reader, found, there, objects, context)
        status.write_status(sample, options.output, "complete")
        return True

    def _range(
        self,
        sample: Sample,
        reader: VideoReader,
        found: PromptSet,
        options: PropagateOptions,
        objects: frozenset[int] | None,
        context: RunContext,
    ) -> None:
        """Propagates the prompts inside a range, from its checkpoint if it has one."""
        start = options.start
        stop = min(options.stop or len(reader), len(reader))
        prompts = _inside(found, options, objects)
        if not prompts:
            raise PromptError(
                f"{options.prompts} has nothing on frames {start + 1} to {stop}"
            )
        made_by = _fingerprint(sample, reader, options, self._propagator.info)
        mark = _mark(sample, prompts, options, made_by)
        origins = {
            key: f"{made_from}:{made_by}:{mark.signature}"
            for key, made_from in _origins(prompts, options).items()
        }
        status.write_origins(sample, options.output, dict.fromkeys(origins))
        state, claimed = _resumed(mark, sample, prompts, options)
        propagation = PolicyPropagator(self._propagator, options.policy).propagate(
            PropagationRequest(
                reader,
                prompts,
                direction=options.direction,
                start=start,
                stop=stop,
                overlap=options.overlap,
                checkpoint=state,
            )
        )
        reporter = context.reporter
        total = _frames_to_come(prompts, options.direction, start, stop)
        done = 0
        seen: set[int] = set()
        with TrackWriter(
            sample,
            options.output,
            labels=found.labels,
            instances=found.instances,
            mask_storage=options.mask_storage,
            output_dir=options.output_dir,
            overwrite_edited=options.overwrite_edited,
        ) as writer:
            if state is None:
                # Checkpoints go first, as they speak of frames that are cleared now.
                mark.remove_all()
                writer.clear_range((start, stop - 1), objects)
            steps = prefetch(_with_checkpoints(propagation), depth=4)
            with closing(steps):
                for masks, checkpoint in steps:
                    writer.write(masks)
                    if any(
                        item.mask is not None and item.mask.any()
                        for item in masks.objects.values()
                    ):
                        claimed.add(masks.frame)
                    if checkpoint is not None:
                        writer.flush(durable=True)
                        _save(mark, checkpoint, claimed)
                    seen |= masks.objects.keys()
                    done += 1
                    reporter.add(frames=1)
                    reporter.update("propagate", name_of(sample), done, total)
        status.write_origins(sample, options.output, origins)
        mark.remove()
        context.count(frames=done, tracks=len(seen))


def _refuse_shared_indexes(sample: Sample, found: PromptSet, output: str) -> None:
    """Makes sure that no object has the number of another's in the output field."""
    indexes = {prompt.object_id for prompt in found.prompts}
    shared = sorted(indexes & foreign_indexes(sample, output))
    if shared:
        raise FieldError(
            f"object {shared[0]} is also the index of labels in {output} that this "
            "plugin did not write; give the prompt another index, or write to another "
            "field"
        )


def _to_do(
    target: Target,
    sample: Sample,
    found: PromptSet,
    options: PropagateOptions,
    made_by: str,
) -> dict[tuple[int, int | None], frozenset[int] | None]:
    """Returns what is not done of a sample: object ids by range, None for all.

    An object is done when it has a track that was made over this range from the same
    prompts, options, model and file; where nothing says what it was made from, when its
    sample is complete.
    """
    ranges = target.ranges or ((options.start, options.stop),)
    prompted = frozenset(prompt.object_id for prompt in found.prompts)
    # Objects that the view hides keep what they have.
    everything = prompted if isinstance(sample, SampleView) else None
    if options.overwrite:
        return dict.fromkeys(ranges, everything)
    complete = status.read_status(sample, options.output).state == "complete"
    known = status.read_origins(sample, options.output)
    told = {status.origin_object(key) for key in known}
    todo: dict[tuple[int, int | None], frozenset[int] | None] = {}
    for start, stop in ranges:
        there = replace(options, start=start, stop=stop)
        support = None if stop is None else (start, stop - 1)
        tracks = read_tracks(sample, options.output, support=support)
        tracked = {track.object_id for track in tracks}
        inside = _inside(found, there, None)
        undone = set()
        for key, made_from in _origins(inside, there).items():
            object_id = status.origin_object(key)
            made = f"{made_from}:{made_by}"
            whole = status.origin_key(object_id)
            same = made in (known.get(k, "").rpartition(":")[0] for k in (key, whole))
            if object_id not in tracked or not (
                same or (complete and object_id not in told)
            ):
                undone.add(object_id)
        if undone or not inside:
            # What an earlier, unfinished job left of other prompts goes too.
            every = not complete and undone == {prompt.object_id for prompt in inside}
            todo[start, stop] = everything if every else frozenset(undone)
    return todo


def _inside(
    found: PromptSet, options: PropagateOptions, objects: frozenset[int] | None
) -> list[Prompt]:
    """Returns the prompts of a range, of some objects or all."""
    stop = options.stop
    return [
        prompt
        for prompt in found.prompts
        if options.start <= prompt.frame
        and (stop is None or prompt.frame < stop)
        and (objects is None or prompt.object_id in objects)
    ]


def _origins(prompts: list[Prompt], options: PropagateOptions) -> dict[str, str]:
    """Hashes the prompts of each object."""
    by_object: dict[int, list[Prompt]] = {}
    for prompt in prompts:
        by_object.setdefault(prompt.object_id, []).append(prompt)
    return {
        status.origin_key(object_id, options.start, options.stop): signature(
            {"prompts": [asdict(prompt) for prompt in own]}
        )
        for object_id, own in by_object.items()
    }


def _fingerprint(
    sample: Sample, reader: VideoReader, options: PropagateOptions, info: PropagatorInfo
) -> str:
    """Hashes all that tracks depend on beside their prompts and their range."""
    made_by = {
        name: value
        for name, value in options.to_mapping().items()
        if name not in _NOT_OF_RESULTS
    }
    return signature(
        {
            "propagator": model_record(info),
            "options": made_by,
            "video": asdict(reader.metadata),
            "file": file_digest(sample.filepath),
        }
    )


def _mark(
    sample: Sample, prompts: list[Prompt], options: PropagateOptions, made_by: str
) -> CheckpointFile:
    """Returns the checkpoint file of a range."""
    facts = {
        "version": __version__,
        "made by": made_by,
        "range": [options.start, options.stop],
        "prompts": [asdict(prompt) for prompt in prompts],
    }
    folder = assets.cache_dir() / "jobs" / f"{sample.id}-{frame_path(options.output)}"
    return CheckpointFile(folder / f"{options.start}.safetensors", signature(facts))


def _resumed(
    mark: CheckpointFile,
    sample: Sample,
    prompts: list[Prompt],
    options: PropagateOptions,
) -> tuple[Checkpoint | None, set[int]]:
    """Returns the state to go on from, and the frames that were written up to it.

    A checkpoint is of use only if the frames that it claims are in the database.
    """
    found = mark.load()
    if found is None:
        return None, set()
    state = dict(found)
    claimed = set(state.pop(_CLAIMED, np.zeros(0)).astype(int).tolist())
    objects = {prompt.object_id for prompt in prompts}
    missing = claimed - labeled_frames(sample, options.output, objects)
    if missing:
        logger.warning(
            "%s: %d frames of an earlier run are gone; starting anew",
            name_of(sample),
            len(missing),
        )
        return None, set()
    return state, claimed


def _save(mark: CheckpointFile, checkpoint: Checkpoint, claimed: set[int]) -> None:
    """Saves a checkpoint if there is room; the job goes on without."""
    frames = np.asarray(sorted(claimed), np.int32)
    try:
        mark.save({**checkpoint, _CLAIMED: frames})
    except OSError as error:
        logger.warning(
            "no checkpoint can be saved in %s (%s); a job that is stopped starts its "
            "video anew",
            mark.path.parent,
            error,
        )


def _with_checkpoints(
    propagation: Propagation,
) -> Iterator[tuple[FrameMasks, Checkpoint | None]]:
    """Adds a checkpoint to a frame now and then."""
    last = time.monotonic()
    for masks in propagation:
        checkpoint = None
        if time.monotonic() - last >= CHECKPOINT_SECONDS:
            checkpoint = propagation.checkpoint()
            last = time.monotonic()
        yield masks, checkpoint


def _frames_to_come(
    prompts: list[Prompt], direction: Direction, start: int, stop: int
) -> int:
    """Counts the frames that a propagation yields, for the progress bar."""
    first = min(prompt.frame for prompt in prompts)
    last = max(prompt.frame for prompt in prompts)
    forward = stop - first if direction != "backward" else 0
    backward = last - start if direction != "forward" else 0
    return max(forward + backward, 1)
