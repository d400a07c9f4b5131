"""The stage that carries prompts through videos and writes tracks."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import asdict, replace
from typing import Any, ClassVar

import fiftyone as fo
import fiftyone.core.collections as foco
import numpy as np
from fiftyone.core.sample import SampleView

from fiftyone_regioncap.__about__ import __version__
from fiftyone_regioncap.core.errors import FieldError, NothingMarked, PromptError
from fiftyone_regioncap.core.progress import Stage as StageName
from fiftyone_regioncap.core.types import FrameMasks, Prompt
from fiftyone_regioncap.dataset import caches, fields, origins, schema, status
from fiftyone_regioncap.dataset.corrections import (
    instance_of,
    mark_outdated,
    track_labels,
)
from fiftyone_regioncap.dataset.metadata import WatchedFile, file_digest
from fiftyone_regioncap.dataset.objects import read_numbers, write_numbers
from fiftyone_regioncap.dataset.origins import TrackOrigin
from fiftyone_regioncap.dataset.ownership import track_label_is_foreign
from fiftyone_regioncap.dataset.prompts import PromptSet, read_prompts
from fiftyone_regioncap.dataset.status import Kept, Span, is_inside, ranges_overlap
from fiftyone_regioncap.dataset.store import Store, frame_path
from fiftyone_regioncap.dataset.targets import Sample, Target, name_of
from fiftyone_regioncap.dataset.tracks import (
    CHUNK_FRAMES,
    TrackWriter,
    foreign_indexes,
    labeled_frames,
    read_tracks,
)
from fiftyone_regioncap.jobs.base import RunContext, SampleStage, model_facts
from fiftyone_regioncap.jobs.checkpoints import (
    CheckpointFile,
    signature,
)
from fiftyone_regioncap.jobs.options import PropagateOptions
from fiftyone_regioncap.jobs.summary import Report, Summary
from fiftyone_regioncap.models.registry import ModelRegistry
from fiftyone_regioncap.propagation.base import (
    Checkpoint,
    Direction,
    Propagation,
    PropagationRequest,
    Propagator,
)
from fiftyone_regioncap.propagation.policy import PolicyPropagator
from fiftyone_regioncap.propagation.registry import PROPAGATORS
from fiftyone_regioncap.video.prefetch import prefetch
from fiftyone_regioncap.video.reader import VideoReader

logger = logging.getLogger(__name__)

CHECKPOINTS = "jobs"
"""Folder of the cache with the checkpoints."""

_NO_END = 2**31 - 2
"""Stands for the last frame where nothing says which it is; the database counts on."""

_CLAIMED = "job/frames"
"""Array of a checkpoint with the frames that have labels up to it."""

UNLINKED_FRAMES = 10
"""Frames on which labels that nothing links are taken for marks of a person; a detector
finds the same objects on many more."""

CHECKPOINT_SECONDS = 20.0
"""How much work a killed job repeats at most; saving takes well under a second."""


class Propagating(SampleStage[PropagateOptions]):
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
        super().__init__(options)
        self._propagator = propagator

    @classmethod
    def check(
        cls,
        options: PropagateOptions,
        samples: foco.SampleCollection,
        made: Collection[str],
    ) -> None:
        """Checks the fields of prompts and tracks; see :meth:`Stage.check`."""
        dataset = samples._root_dataset
        inputs = [options.prompts]
        if options.negative_prompts is not None:
            inputs.append(options.negative_prompts)
        for prompts in inputs:
            if frame_path(prompts) not in made:
                fields.require_prompts(dataset, prompts)
        fields.require_output(options.output, *inputs)
        output = fields.frames_field(options.output)
        is_foreign = track_label_is_foreign(output)
        cls.require_room(
            samples, output, fo.Detections, is_foreign, merge=options.merge
        )

    def declare(self, samples: foco.SampleCollection) -> None:
        """Declares the field of the tracks; see :meth:`Stage.declare`."""
        dataset, options = samples._root_dataset, self._options
        schema.declare_tracks(dataset, options.output)
        schema.declare_status(dataset, options.output)
        schema.declare_origins(dataset, options.output)
        caches.remove_abandoned(CHECKPOINTS)

    def process(self, target: Target, sample: Sample, context: RunContext) -> bool:
        """Propagates one sample, clip by clip; False when it is complete."""
        options = self._options
        with VideoReader(sample.filepath) as reader:
            spans = target.ranges or ((options.start, options.stop),)
            try:
                found = self._prompts(sample, reader, spans, context)
            except NothingMarked:
                kept = status.read_kept(sample, options.output)
                self._orphans(sample, frozenset(), kept, context)
                raise
            kept = status.read_kept(sample, options.output)
            problems = [*found.problems, *_problems(found, spans, options)]
            made_by = _fingerprint(sample, reader, options, self._propagator)
            if not found.problems:  # what is damaged was not deleted
                prompted = {prompt.object_id for prompt in found.prompts}
                kept = self._orphans(sample, prompted, kept, context)
            ranges, by_hand = _to_do(sample, found, spans, options, made_by, kept)
            if by_hand:
                context.summary.notes.append(
                    f"{name_of(sample)}: tracks {_listed(by_hand)} stay as a person "
                    "has split, merged, renumbered or deleted them; overwrite makes "
                    "them again"
                )
            outdated = _outdated(kept, ranges)
            if outdated and not options.overwrite:
                context.redone("tracks", name_of(sample), outdated)
            if ranges:
                status.write_status(sample, options.output, "partial")
            for (start, stop), objects in ranges.items():
                there = replace(options, start=start, stop=stop)
                inside = _inside(found, there, objects)
                if inside.prompts:
                    self._range(
                        *(sample, reader, inside, there, objects, context),
                        spans=spans,
                        others=bool(target.others),
                    )
            # Whoever does the last range of a sample sees that all are there.
            left, _ = _to_do(
                *(sample, found, target.others),
                *(replace(options, overwrite=False), made_by),
                status.read_kept(sample, options.output),
            )
        for problem in problems:
            context.failed_in_part(self.name, sample, problem)
        state: status.State = "partial" if problems or left else "complete"
        error = problems[0] if problems else None
        reached = status.Status(state, error)
        if ranges or kept.status != reached:
            status.write_status(sample, options.output, state, error)
        return bool(ranges)

    def _prompts(
        self,
        sample: Sample,
        reader: VideoReader,
        spans: Sequence[Span],
        context: RunContext,
    ) -> PromptSet:
        """Reads the prompts of a sample, and keeps the numbers of its objects.

        Raises:
            PromptError: When there is none, none can be used, or they look like the
                boxes of a detector that nothing links.
        """
        options, store = self._options, Store.of(sample)
        foreign = foreign_indexes(sample, options.output) if options.merge else set()
        known = read_numbers(store, options.output, "prompts")
        found = read_prompts(
            sample,
            options.prompts,
            height=reader.height,
            width=reader.width,
            frame_count=len(reader),
            negative=options.negative_prompts,
            known=known,
            taken=foreign,
        )
        if not found.prompts:
            raise NothingMarked(
                f"{options.prompts} is empty; mark an object on some frame"
            )
        unlinked = [frame for frame in found.unlinked if is_inside(frame, spans)]
        objects, frames = len(unlinked), len(set(unlinked))
        if frames > 1 and not options.unlinked:
            message = (
                f"{options.prompts} has {objects} labels without an index or an "
                f"instance on {frames} frames, which are {objects} objects; give the "
                "labels of one object the same `index`, or link them by `instance`"
            )
            if frames > UNLINKED_FRAMES:
                raise PromptError(f"{message}; unlinked=True allows it")
            logger.warning("%s: %s", name_of(sample), message)
            context.summary.notes.append(f"{name_of(sample)}: {message}")
        if options.merge:
            _refuse_shared_indexes(found, options.output, foreign)
        write_numbers(store, options.output, "prompts", found.numbers, known)
        return found

    def _orphans(
        self, sample: Sample, prompted: Set[int], kept: Kept, context: RunContext
    ) -> Kept:
        """Lists the tracks whose prompts were deleted, and removes them on request.

        Returns:
            What the sample keeps afterwards.
        """
        output = self._options.output
        if isinstance(sample, SampleView):
            return kept  # it may hide their prompts
        made = origins.read_tracks(kept)
        objects = {
            status.origin_object(key)
            for key, origin in made.items()
            if not origin.of_others
        }
        gone = {
            number
            for number in objects - prompted
            if labeled_frames(sample, output, {number})
        }
        if not gone:
            return kept
        if self._options.prune:
            labels = track_labels(sample, output, gone)
            with TrackWriter(sample, output) as writer:
                writer.clear_range(None, gone)
            for captions in fields.caption_fields(sample._dataset):
                if sample._dataset.get_field(captions).read_only:
                    continue
                for number in gone:
                    instance = instance_of(one for one in labels if one.index == number)
                    mark_outdated(sample, captions, number, instance)
            keys = [key for key in made if status.origin_object(key) in gone]
            status.write_origins(sample, output, dict.fromkeys(keys))
            kept = status.read_kept(sample, output)
            note = "were removed, as they have no prompt any more"
        else:
            note = "have no prompt any more; the option prune removes them"
        context.summary.notes.append(
            f"{name_of(sample)}: tracks {_listed(gone)} {note}"
        )
        return kept

    def _range(
        self,
        sample: Sample,
        reader: VideoReader,
        found: PromptSet,
        options: PropagateOptions,
        objects: frozenset[int] | None,
        context: RunContext,
        *,
        spans: Sequence[Span],
        others: bool,
    ) -> None:
        """Propagates the prompts of a range, from its checkpoint if it has one.

        Args:
            sample: The video.
            reader: Its frames.
            found: The prompts.
            options: Options, with the range.
            objects: Objects to propagate; None for all.
            context: Context of the job.
            spans: All ranges of the video that this worker does.
            others: Whether other workers do other ranges of the video.
        """
        start = options.start
        stop = min(options.stop or len(reader), len(reader))
        prompts = found.prompts
        made_by = _fingerprint(sample, reader, options, self._propagator)
        mark = _mark(sample, prompts, options, made_by)
        what = signature({"mark": mark.signature, "objects": sorted(objects or ())})
        made, begun = {}, {}
        for object_id, made_from in _prompts_by_object(prompts).items():
            key = status.origin_key(object_id, start, options.stop)
            made[key] = str(TrackOrigin(made_from, made_by, mark.signature))
            begun[key] = str(TrackOrigin(made_from, content=what, begun=True))
        kept = status.read_kept(sample, options.output)
        again = begun.items() <= kept.begun.items()
        if not again:
            replaced = _replaced(kept, options, objects, spans)
            lost = dict.fromkeys([*made, *replaced], str(TrackOrigin(begun=True)))
            status.write_origins(sample, options.output, lost)
        # Where another job wrote meanwhile, a checkpoint speaks of what it replaced.
        found_state = _resumed(mark, sample, prompts, options) if again else None
        state, claimed = found_state or (None, set())
        if again and state is None:
            logger.warning(
                "%s: an earlier run has begun it, of which no checkpoint is on this "
                "machine; the video starts anew",
                name_of(sample),
            )
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
        file = WatchedFile(sample.filepath)
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
            expected_frames=stop - start,
        ) as writer:
            if state is None:
                # Checkpoints go first, as they speak of frames that are cleared now.
                if others:
                    mark.remove()
                else:
                    mark.remove_all()
                if not again:  # else all that is there is what is made now
                    # Up to the end: an earlier file of this name may have been longer.
                    last = _NO_END if options.stop is None else stop - 1
                    writer.clear_range((start, last), objects)
                    status.write_origins(sample, options.output, begun)
            steps = prefetch(_with_checkpoints(propagation), depth=4)
            with closing(steps):
                for masks, checkpoint in steps:
                    writer.write(masks)
                    if any(
                        item.mask is not None and item.mask.any()
                        for item in masks.objects.values()
                    ):
                        claimed.add(masks.frame)
                    seen |= masks.objects.keys()
                    done += 1
                    if checkpoint is not None or done % CHUNK_FRAMES == 0:
                        file.require_unchanged()
                    if checkpoint is not None:
                        writer.flush(durable=True)
                        _save(mark, checkpoint, claimed)
                    reporter.add(frames=1)
                    reporter.update("propagate", name_of(sample), done, total)
        file.require_unchanged()
        status.write_origins(sample, options.output, made)
        mark.remove()
        context.count(frames=done, tracks=len(seen))


def _refuse_shared_indexes(found: PromptSet, output: str, foreign: set[int]) -> None:
    """Makes sure that no object has the number of another's in the output field."""
    shared = sorted({prompt.object_id for prompt in found.prompts} & foreign)
    if shared:
        raise FieldError(
            f"object {shared[0]} is also the index of labels in {output} that this "
            "plugin did not write; give the prompt another index, or write to another "
            "field"
        )


def _problems(
    found: PromptSet, spans: Sequence[Span], options: PropagateOptions
) -> list[str]:
    """Returns what is wrong with the prompts inside some ranges.

    Raises:
        PromptError: When none of them can be propagated.
        NothingMarked: When there is none.
    """
    inside = [
        _inside(found, replace(options, start=start, stop=stop), None)
        for start, stop in spans
    ]
    problems = [problem for span in inside for problem in span.problems]
    if not any(span.prompts for span in inside):
        if problems:
            raise PromptError("; ".join(problems))
        start, stop = spans[0]
        last = found.size[2] if stop is None else stop
        raise NothingMarked(
            f"{options.prompts} has nothing on frames {start + 1} to {last}"
            + " or those of the other clips" * (len(spans) > 1)
        )
    return problems


def _to_do(
    sample: Sample,
    found: PromptSet,
    spans: Sequence[Span],
    options: PropagateOptions,
    made_by: str,
    kept: Kept,
) -> tuple[dict[Span, frozenset[int] | None], set[int]]:
    """Returns what is not done of a sample: object ids by range, None for all.

    An object is done when it has a track that was made over this range from the same
    prompts, options, model and file; where nothing says what it was made from, when its
    sample is complete. One whose track a person has changed is done while its prompts
    are the same.

    Returns:
        What is to be done, and the objects that are done for the last reason alone.
    """
    prompted = frozenset(prompt.object_id for prompt in found.prompts)
    # Objects that the view hides, or whose prompts are damaged, keep what they have.
    some = isinstance(sample, SampleView) or bool(found.problems)
    everything = prompted if some else None
    complete, told = kept.complete, kept.objects
    known = {k: TrackOrigin.parse(origin) for k, origin in kept.origins.items()}
    todo: dict[Span, frozenset[int] | None] = {}
    by_hand: set[int] = set()
    for start, stop in spans:
        there = replace(options, start=start, stop=stop)
        # Where the ranges of a job overlap, none removes what it does not make.
        apart = not any(
            ranges_overlap(one, (start, stop)) for one in {*spans} - {(start, stop)}
        )
        if options.overwrite:
            own = {prompt.object_id for prompt in _inside(found, there, None).prompts}
            todo[start, stop] = everything if apart else frozenset(own)
            continue
        support = None if stop is None else (start, stop - 1)
        tracks = read_tracks(sample, options.output, support=support)
        tracked = {track.object_id for track in tracks}
        inside = _inside(found, there, None).prompts
        undone: set[int] = set()
        for object_id, made_from in _prompts_by_object(inside).items():
            ranges = ((0, None), (start, stop))
            keys = [status.origin_key(object_id, *span) for span in ranges]
            made = [known[key] for key in keys if key in known]
            same = (made_from, made_by) in [(one.prompts, one.made_by) for one in made]
            untold = complete and object_id not in told
            if object_id in tracked and (same or untold):
                continue
            changed = _is_changed(sample, found, there, object_id, known)
            (by_hand if changed else undone).add(object_id)
        if undone:
            # What an earlier, unfinished job left of other prompts goes too.
            every = (
                not complete
                and apart
                and not any(
                    status.origin_object(key) not in undone
                    and ranges_overlap(status.origin_range(key), (start, stop))
                    for key in known
                )
            )
            todo[start, stop] = everything if every else frozenset(undone)
    return todo, by_hand


def _is_changed(
    sample: Sample,
    found: PromptSet,
    options: PropagateOptions,
    object_id: int,
    known: Mapping[str, TrackOrigin],
) -> bool:
    """Returns whether a person has changed the track of an object with these prompts.

    A track that is gone was of the same prompts, whichever range is asked for. One that
    is there was made of the same file, over all of the range.
    """

    def own(span: Span) -> list[Prompt]:
        there = replace(options, start=span[0], stop=span[1])
        return _inside(found, there, frozenset({object_id})).prompts

    asked = options.start, options.stop
    for key, origin in known.items():
        if origin.edited is None or status.origin_object(key) != object_id:
            continue
        span = status.origin_range(key)
        prompts = own(span)
        if origin.prompts != _prompts_by_object(prompts).get(object_id):
            continue
        if origin.edited == origins.GONE:
            frames = {prompt.frame for prompt in prompts}
            if all(prompt.frame in frames for prompt in own(asked)):
                return True
        elif (
            _is_part(asked, span)
            and origin.edited in ("", file_digest(sample.filepath))
            and labeled_frames(sample, options.output, {object_id})
        ):
            return True
    return False


def _is_part(one: Span, other: Span) -> bool:
    """Returns whether a range is part of another one."""
    (start, stop), (first, end) = one, other
    return first <= start and (end is None or (stop is not None and stop <= end))


def _replaced(
    kept: Kept,
    options: PropagateOptions,
    objects: frozenset[int] | None,
    spans: Sequence[Span],
) -> list[str]:
    """Returns the keys of the origins of tracks that lose labels on a range.

    Args:
        kept: What the video keeps of earlier jobs.
        options: Options, with the range.
        objects: Objects whose labels are cleared; None for all.
        spans: Ranges of the same job, of which the later one holds where they overlap.
    """
    own = (options.start, options.stop)
    return [
        key
        for key in (*kept.origins, *kept.begun)
        if (objects is None or status.origin_object(key) in objects)
        and ranges_overlap(span := status.origin_range(key), own)
        and (span == own or span not in spans)
    ]


def _outdated(kept: Kept, ranges: Mapping[Span, frozenset[int] | None]) -> int:
    """Counts the finished tracks of some ranges that are made again."""
    return sum(
        objects is None or status.origin_object(key) in objects
        for (start, stop), objects in ranges.items()
        for key in kept.origins
        if key == status.origin_key(status.origin_object(key), start, stop)
    )


def _inside(
    found: PromptSet, options: PropagateOptions, objects: frozenset[int] | None
) -> PromptSet:
    """Returns the prompts of a range, of some objects or all."""
    return found.inside(
        options.start, options.stop, direction=options.direction, objects=objects
    )


def _listed(numbers: Collection[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))


def _prompts_by_object(prompts: list[Prompt]) -> dict[int, str]:
    """Hashes the prompts of each object."""
    by_object: dict[int, list[Prompt]] = {}
    for prompt in prompts:
        by_object.setdefault(prompt.object_id, []).append(prompt)
    return {
        object_id: signature({"prompts": [asdict(prompt) for prompt in own]})
        for object_id, own in by_object.items()
    }


def _fingerprint(
    sample: Sample,
    reader: VideoReader,
    options: PropagateOptions,
    propagator: Propagator,
) -> str:
    """Hashes all that tracks depend on beside their prompts and their range."""
    return signature(
        {
            "propagator": model_facts(propagator),
            "options": options.result_facts(),
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
    store = Store.of(sample)
    name = f"{store.sample_id}-{frame_path(options.output)}"
    folder = caches.dataset_folder(CHECKPOINTS, store.dataset) / name
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
