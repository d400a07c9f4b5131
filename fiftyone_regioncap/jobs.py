"""The pipeline: videos in, tracks and captions written, whoever asks for it.

Operators, the SDK and the CLI all end here. Work streams through stages that pull from
each other over short queues: frames are decoded ahead of the propagator, the propagator
runs ahead of the writer, clips are put together ahead of the captioner, and a video is
captioned while the next one is propagated. What goes wrong with one sample is recorded
on that sample, and the job goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal

import fiftyone.core.collections as foco
from fiftyone.core.sample import SampleView

from fiftyone_regioncap import assets
from fiftyone_regioncap.__about__ import __version__
from fiftyone_regioncap.captioning.base import Captioner
from fiftyone_regioncap.captioning.streaming import caption_stream
from fiftyone_regioncap.captioning.summary import change_summary
from fiftyone_regioncap.checkpoints import CheckpointFile, signature
from fiftyone_regioncap.clips import ClipPlan, assemble, plan_clip
from fiftyone_regioncap.errors import Cancelled, PromptError
from fiftyone_regioncap.labels import fields, runs, schema, status
from fiftyone_regioncap.labels.captions import (
    CaptionRecord,
    Key,
    clear_captions,
    read_captions,
    write_captions,
)
from fiftyone_regioncap.labels.metadata import video_metadata
from fiftyone_regioncap.labels.prompts import PromptSet, read_prompts
from fiftyone_regioncap.labels.tracks import (
    MaskStorage,
    TrackWriter,
    read_masks,
    read_tracks,
)
from fiftyone_regioncap.measuring import Measurements, measure
from fiftyone_regioncap.progress import Listener, Meter, Stage
from fiftyone_regioncap.propagation.base import (
    Checkpoint,
    Direction,
    Propagation,
    Propagator,
)
from fiftyone_regioncap.propagation.policy import Policy, PolicyPropagator
from fiftyone_regioncap.regions import Caption, FrameMasks, Prompt, RegionClip, Track
from fiftyone_regioncap.sampling import change_windows, fixed_windows
from fiftyone_regioncap.targets import (
    Sample,
    Target,
    Targets,
    name_of,
    video_targets,
)
from fiftyone_regioncap.video import VideoReader, decode_ahead

logger = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 20.0
"""How much work a killed job repeats at most; saving takes well under a second."""

CAPTIONS_AT_ONCE = 64
"""Captions are written to the database in chunks of this size, per sample."""


SUMMARY = "change summary"
"""The ``prompt`` of captions that are made of a track's other captions."""


@dataclass(frozen=True)
class PropagateOptions:
    """How to propagate prompts.

    Attributes:
        prompts: field with the prompts, ``frames.<name>`` or, for the first frame only,
            a sample-level field.
        output: frame-level field for the tracks.
        direction: which way from the prompts.
        start: first frame of interest, 0-based.
        stop: one past the last frame of interest; None means the end.
        overlap: whether objects may share pixels.
        mask_storage: ``"inline"``, ``"disk"``, or ``"auto"`` for inline until a frame
            nears MongoDB's limit.
        output_dir: where masks on disk go; None for beside the media.
        overwrite: whether to do samples again that are complete.
        policy: what ends a track before the video does.
    """

    prompts: str = "frames.prompts"
    output: str = "frames.tracks"
    direction: Direction = "both"
    start: int = 0
    stop: int | None = None
    overlap: bool = False
    mask_storage: MaskStorage = "auto"
    output_dir: str | None = None
    overwrite: bool = False
    policy: Policy = field(default_factory=Policy)


@dataclass(frozen=True)
class CaptionOptions:
    """How to caption tracks.

    Attributes:
        tracks: frame-level field with the tracks.
        output: sample-level field for the captions.
        prompt: name of one of the captioner's prompts or a text; None for its default.
        window: captions cover windows of this many frames, or with ``"change"`` those
            between changes of the object; None for the whole track.
        summary: whether a track of several windows also gets a caption of its whole,
            made of theirs alone ("..., then ...").
        overwrite: whether to do samples again that are complete, reviewed captions
            included.
    """

    tracks: str = "frames.tracks"
    output: str = "captions"
    prompt: str | None = None
    window: int | Literal["change"] | None = None
    summary: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class Failure:
    """A sample that could not be done.

    Attributes:
        sample_id: in its dataset.
        filepath: of the media.
        stage: where it failed.
        error: what is wrong and what to do.
    """

    sample_id: str
    filepath: str
    stage: Stage
    error: str


@dataclass
class Summary:
    """What a job did.

    Attributes:
        samples: how many it was given.
        frames: how many it propagated.
        tracks: how many it wrote.
        captions: how many it wrote, those with an error included.
        caption_errors: how many of these have an error.
        skipped: samples passed over because they were complete, once per stage.
        failures: samples that could not be done.
        seconds: how long it took.
        run: key of the dataset's custom run that records it.
        backends: name and reason of each backend used.
    """

    samples: int = 0
    frames: int = 0
    tracks: int = 0
    captions: int = 0
    caption_errors: int = 0
    skipped: int = 0
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0
    run: str | None = None
    backends: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every sample is done."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def to_markdown(self) -> str:
        """A few lines for people."""
        lines = [
            f"**{self.samples}** samples, **{self.frames}** frames propagated, "
            f"**{self.tracks}** tracks and **{self.captions}** captions written "
            f"in {self.seconds:.1f} s"
        ]
        if self.skipped:
            lines.append(f"- {self.skipped} skipped: complete already")
        if self.caption_errors:
            lines.append(f"- {self.caption_errors} captions failed; see their `error`")
        lines += [f"- {line}" for line in self.backends]
        lines += [
            f"- FAILED {failure.filepath}: {failure.error}"
            for failure in self.failures[:10]
        ]
        if len(self.failures) > 10:
            lines.append(f"- and {len(self.failures) - 10} more")
        return "\n".join(lines)


def run(
    samples: foco.SampleCollection,
    *,
    propagate: PropagateOptions | None = None,
    propagator: Propagator | None = None,
    caption: CaptionOptions | None = None,
    captioner: Captioner | None = None,
    listener: Listener | None = None,
    cancel: threading.Event | None = None,
) -> Summary:
    """Propagates prompts, captions tracks, or both.

    A job that was killed goes on where it stopped when it is run again with the same
    arguments.

    Args:
        samples: videos: a dataset, a view, or a clips view.
        propagate: how; None to leave the tracks as they are.
        propagator: needed with ``propagate``.
        caption: how; None for no captions.
        captioner: needed with ``caption``.
        listener: is told how far the job is.
        cancel: set it to stop the job after its next step.

    Returns:
        what was done, failures included.

    Raises:
        FieldError: when a field is absent or of the wrong kind; nothing is written.
        Cancelled: when ``cancel`` was set; what was written stays.
    """
    targets = video_targets(samples)
    _check_fields(targets, propagate, caption)
    stages: list[Stage] = []
    if propagate is not None:
        stages.append("propagate")
    if caption is not None:
        stages.append("caption")
    summary = Summary(samples=len(targets))
    job = _Job(targets, summary, Meter(stages, len(targets), listener, cancel))
    began = time.monotonic()

    waiting = targets.samples()
    if propagate is not None and propagator is not None:
        waiting = job.propagated(waiting, propagate, propagator)
    if caption is not None and captioner is not None:
        job.captioned(waiting, caption, captioner)
    else:
        deque(waiting, maxlen=0)

    summary.seconds = time.monotonic() - began
    summary.run = _record(targets, summary, propagate, propagator, caption, captioner)
    return summary


def _check_fields(
    targets: Targets, propagate: PropagateOptions | None, caption: CaptionOptions | None
) -> None:
    """Declares the output fields, so that a wrong one fails before any work."""
    dataset = targets.dataset
    if propagate is not None:
        fields.require_prompts(dataset, propagate.prompts)
        fields.require_output(propagate.output, propagate.prompts)
        schema.declare_tracks(dataset, propagate.output)
    if caption is not None:
        fields.require_tracks(dataset, caption.tracks)
        fields.require_output(caption.output, caption.tracks)
        schema.declare_captions(dataset, caption.output)


def _record(
    targets: Targets,
    summary: Summary,
    propagate: PropagateOptions | None,
    propagator: Propagator | None,
    caption: CaptionOptions | None,
    captioner: Captioner | None,
) -> str:
    """Writes the job's provenance as a custom run of the dataset."""
    config: dict[str, Any] = {}
    if propagate is not None and propagator is not None:
        config["propagate"] = asdict(propagate)
        config["propagator"] = asdict(propagator.info)
    if caption is not None and captioner is not None:
        info = captioner.info
        config["caption"] = asdict(caption)
        config["captioner"] = {
            "name": info.name,
            "model": info.model,
            "revision": info.revision,
            "license": info.license,
        }
    key = runs.run_key("_and_".join(k for k in ("propagate", "caption") if k in config))
    runs.record_run(targets.dataset, key, config, {"summary": summary.to_dict()})
    return key


class _Job:
    """The stages of one job, and what they share."""

    def __init__(self, targets: Targets, summary: Summary, meter: Meter) -> None:
        self._dataset = targets.dataset
        self._summary = summary
        self._meter = meter

    def _failed(
        self, stage: Stage, sample: Sample, output: str, error: Exception
    ) -> None:
        """Records what went wrong on the sample and in the summary."""
        logger.warning("%s: %s", sample.filepath, error, exc_info=True)
        message = f"{type(error).__name__}: {error}"
        self._summary.failures.append(
            Failure(sample.id, sample.filepath, stage, message)
        )
        status.write_status(sample, output, "failed", error=message)

    # -- propagation ------------------------------------------------------------------

    def propagated(
        self,
        samples: Iterable[tuple[Target, Sample]],
        options: PropagateOptions,
        propagator: Propagator,
    ) -> Iterator[tuple[Target, Sample]]:
        """Propagates sample after sample and passes on those that have tracks."""
        for target, sample in samples:
            try:
                self._propagate(target, sample, options, propagator)
            except Cancelled:
                raise
            except Exception as error:
                self._failed("propagate", sample, options.output, error)
                self._meter.drop(name_of(sample))
            else:
                self._meter.finish("propagate", name_of(sample))
                yield target, sample

    def _propagate(
        self,
        target: Target,
        sample: Sample,
        options: PropagateOptions,
        propagator: Propagator,
    ) -> None:
        """Propagates one sample, clip by clip."""
        with VideoReader(sample.filepath) as reader:
            if sample.metadata is None:
                # Without it, every look at the tracks would open the video.
                sample["metadata"] = video_metadata(sample)
                sample.save()
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
            ranges = _to_do(target, sample, found, options)
            if not ranges:
                self._summary.skipped += 1
                return
            status.write_status(sample, options.output, "partial")
            for (start, stop), objects in ranges.items():
                self._propagate_range(
                    sample,
                    reader,
                    found,
                    replace(options, start=start, stop=stop),
                    propagator,
                    objects,
                )
        status.write_status(sample, options.output, "complete")

    def _propagate_range(
        self,
        sample: Sample,
        reader: VideoReader,
        found: PromptSet,
        options: PropagateOptions,
        propagator: Propagator,
        objects: frozenset[int] | None,
    ) -> None:
        """Propagates the prompts inside a range, from its checkpoint if it has one."""
        start = options.start
        stop = min(options.stop or len(reader), len(reader))
        prompts = [
            prompt
            for prompt in found.prompts
            if start <= prompt.frame < stop
            and (objects is None or prompt.object_id in objects)
        ]
        if not prompts:
            raise PromptError(
                f"{options.prompts} has nothing on frames {start + 1} to {stop}"
            )
        mark = _mark(sample, reader, prompts, options, propagator)
        state = mark.load()
        propagation = PolicyPropagator(propagator, options.policy).propagate(
            reader,
            prompts,
            direction=options.direction,
            start=start,
            stop=stop,
            overlap=options.overlap,
            checkpoint=state,
        )
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
        ) as writer:
            if state is None:
                writer.clear_range((start, stop - 1), objects)
            steps = decode_ahead(_with_checkpoints(propagation), depth=4)
            with closing(steps):
                for masks, checkpoint in steps:
                    writer.write(masks)
                    if checkpoint is not None:
                        writer.flush()
                        mark.save(checkpoint)
                    seen |= masks.objects.keys()
                    done += 1
                    self._meter.count(frames=1)
                    self._meter.step("propagate", name_of(sample), done, total)
        mark.remove()
        self._summary.frames += done
        self._summary.tracks += len(seen)

    # -- captions ---------------------------------------------------------------------

    def captioned(
        self,
        samples: Iterable[tuple[Target, Sample]],
        options: CaptionOptions,
        captioner: Captioner,
    ) -> None:
        """Captions sample after sample; batches reach across samples."""
        waiting: deque[_Waiting] = deque()

        def clips() -> Iterator[RegionClip]:
            for target, sample in samples:
                for item, clip in self._clips(target, sample, options, captioner):
                    waiting.append(item)
                    if clip is not None:
                        yield clip

        made: list[CaptionRecord] = []
        ahead = decode_ahead(clips(), depth=2 * captioner.info.batch_size)
        with closing(ahead):
            for caption in caption_stream(captioner, ahead, prompt=options.prompt):
                while waiting[0].plan is None:
                    self._end(waiting.popleft(), made, options)
                item = waiting.popleft()
                made.append(_record_of(item, caption, options, captioner))
                self._count(caption)
                if len(made) >= CAPTIONS_AT_ONCE:
                    self._write(item.sample, made, options)
                    made.clear()
                self._meter.step(
                    "caption", name_of(item.sample), item.number, item.total
                )
        for item in waiting:
            self._end(item, made, options)

    def _clips(
        self,
        target: Target,
        sample: Sample,
        options: CaptionOptions,
        captioner: Captioner,
    ) -> Iterator[tuple[_Waiting, RegionClip | None]]:
        """The clips of one sample, and then the mark of its end."""
        try:
            plans = _plans(target, sample, options, captioner)
            done = _captioned_already(sample, options, captioner)
            todo = [plan for plan in plans if _key(plan) not in done]
            if not todo and _complete(sample, options):
                self._summary.skipped += 1
                yield _Waiting(sample, skipped=True), None
                return
            status.write_status(sample, options.output, "partial")
            with VideoReader(sample.filepath) as reader:
                clips = assemble(
                    todo,
                    reader.read,
                    partial(read_masks, sample, options.tracks),
                    reader.fps,
                )
                for number, (plan, clip) in enumerate(clips, start=1):
                    facts = measure(clip)
                    yield _Waiting(sample, plan, facts, number, len(todo)), clip
            # What a clips view or a filtered view shows is some of many; others stay.
            some = target.ranges or isinstance(sample, SampleView)
            keep = None if some else frozenset(map(_key, plans))
            yield _Waiting(sample, keep=keep), None
        except Exception as error:
            yield _Waiting(sample, error=error), None

    def _count(self, caption: Caption) -> None:
        self._summary.captions += 1
        self._summary.caption_errors += caption.error is not None
        self._meter.count(captions=1)

    def _write(
        self, sample: Sample, made: list[CaptionRecord], options: CaptionOptions
    ) -> None:
        if not made:
            return
        write_captions(
            sample,
            options.output,
            made,
            tracks_field=options.tracks,
            overwrite=options.overwrite,
        )

    def _end(
        self, item: _Waiting, made: list[CaptionRecord], options: CaptionOptions
    ) -> None:
        """Writes what is left of a sample and how it ended."""
        self._write(item.sample, made, options)
        made.clear()
        if item.error is not None:
            self._failed("caption", item.sample, options.output, item.error)
        elif not item.skipped:
            summaries = _summaries(item.sample, options) if options.summary else []
            self._write(item.sample, summaries, options)
            if item.keep is not None:
                clear_captions(
                    item.sample,
                    options.output,
                    keep={*item.keep, *(record.key for record in summaries)},
                    tracks_field=options.tracks,
                )
            status.write_status(item.sample, options.output, "complete")
        self._meter.finish("caption", name_of(item.sample))


@dataclass(frozen=True)
class _Waiting:
    """A caption that is being made, or without a plan the end of a sample."""

    sample: Sample
    plan: ClipPlan | None = None
    facts: Measurements | None = None
    number: int = 0
    total: int = 0
    keep: frozenset[Key] | None = None
    skipped: bool = False
    error: Exception | None = None


def _to_do(
    target: Target, sample: Sample, found: PromptSet, options: PropagateOptions
) -> dict[tuple[int, int | None], frozenset[int] | None]:
    """What is not done of a sample: object ids by range, None for all objects.

    A sample that is not complete is done whole (or gone on with from its checkpoint);
    of a complete one, only the objects that have no track yet.
    """
    ranges = target.ranges or ((options.start, options.stop),)
    prompted = frozenset(prompt.object_id for prompt in found.prompts)
    # Objects that the view hides keep what they have.
    everything = prompted if isinstance(sample, SampleView) else None
    complete = status.read_status(sample, options.output).state == "complete"
    if options.overwrite or (not complete and target.ranges is None):
        return dict.fromkeys(ranges, everything)
    todo: dict[tuple[int, int | None], frozenset[int] | None] = {}
    for start, stop in ranges:
        support = None if stop is None else (start, stop - 1)
        tracks = read_tracks(sample, options.output, support=support)
        missing = prompted - {track.object_id for track in tracks}
        if missing:
            todo[start, stop] = everything if missing == prompted else missing
    return todo


def _mark(
    sample: Sample,
    reader: VideoReader,
    prompts: list[Prompt],
    options: PropagateOptions,
    propagator: Propagator,
) -> CheckpointFile:
    """Where the checkpoint of a range is kept, and what it depends on."""
    facts = {
        "version": __version__,
        "propagator": asdict(propagator.info),
        "options": asdict(replace(options, overwrite=False)),
        "video": asdict(reader.metadata),
        "prompts": [asdict(prompt) for prompt in prompts],
    }
    name = f"{sample.id}-{options.output}-{options.start}.safetensors"
    return CheckpointFile(assets.cache_dir() / "jobs" / name, signature(facts))


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
    """How many frames a propagation gives out, for the progress bar."""
    first = min(prompt.frame for prompt in prompts)
    last = max(prompt.frame for prompt in prompts)
    forward = stop - first if direction != "backward" else 0
    backward = last - start if direction != "forward" else 0
    return max(forward + backward, 1)


def _key(plan: ClipPlan) -> Key:
    return plan.track.object_id, plan.support


def _complete(sample: Sample, options: CaptionOptions) -> bool:
    return status.read_status(sample, options.output).state == "complete"


def _plans(
    target: Target, sample: Sample, options: CaptionOptions, captioner: Captioner
) -> list[ClipPlan]:
    """One plan per track and window of a sample."""
    return [
        plan_clip(track, support, captioner.info.frames)
        for clip in target.ranges or (None,)
        for track in read_tracks(
            sample, options.tracks, support=clip and (clip[0], clip[1] - 1)
        )
        for support in _supports(track, options.window)
    ]


def _captioned_already(
    sample: Sample, options: CaptionOptions, captioner: Captioner
) -> set[Key]:
    """The captions that stay: all of a complete sample, else this captioner's."""
    if options.overwrite:
        return set()
    complete = _complete(sample, options)
    return {
        record.key
        for record in read_captions(sample, options.output)
        if record.error is None and (complete or record.model == captioner.info.model)
    }


def _supports(
    track: Track, window: int | Literal["change"] | None
) -> Iterable[tuple[int, int]]:
    """The windows of a track that get a caption each."""
    if window == "change":
        return change_windows(track)
    if window is None:
        return [(int(track.frames[0]), int(track.frames[-1]))]
    return fixed_windows(track.frames, window)


def _record_of(
    item: _Waiting, caption: Caption, options: CaptionOptions, captioner: Captioner
) -> CaptionRecord:
    """Everything that is stored of a caption."""
    plan, facts, info = item.plan, item.facts, captioner.info
    assert plan is not None and facts is not None  # only ends have none
    return CaptionRecord.of(
        caption,
        plan.track.object_id,
        plan.support,
        label=plan.track.label,
        instance=plan.track.instance,
        model=info.model,
        revision=info.revision,
        prompt=options.prompt,
        frames_used=plan.frames,
        visible_fraction=facts.visible_fraction,
        mean_area=facts.mean_area,
        speed=facts.speed,
        direction=facts.direction,
        dominant_color=facts.dominant_color,
    )


def _summaries(sample: Sample, options: CaptionOptions) -> list[CaptionRecord]:
    """A caption of the whole for each track whose windows tell of a change."""
    by_object: dict[int, list[CaptionRecord]] = {}
    for record in read_captions(sample, options.output):
        if record.error is None and record.prompt != SUMMARY:
            by_object.setdefault(record.index, []).append(record)
    summaries = []
    for windows in by_object.values():
        text = change_summary([record.caption for record in windows])
        if text is not None:
            whole = windows[0].support[0], windows[-1].support[1]
            summaries.append(
                replace(
                    windows[0],
                    support=whole,
                    caption=text,
                    prompt=SUMMARY,
                    confidence=None,
                    min_confidence=None,
                )
            )
    return summaries
