"""The stage that captions tracks."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import fiftyone.core.collections as foco
from fiftyone.core.sample import SampleView

from fiftyone_regioncap.captioning.base import Captioner, CaptionerInfo
from fiftyone_regioncap.captioning.registry import CAPTIONERS
from fiftyone_regioncap.captioning.streaming import caption_stream
from fiftyone_regioncap.captioning.summary import change_summary
from fiftyone_regioncap.core.measurements import Measurements
from fiftyone_regioncap.core.progress import Stage as StageName
from fiftyone_regioncap.core.types import Caption, RegionClip, Track
from fiftyone_regioncap.dataset import fields, schema, status
from fiftyone_regioncap.dataset.captions import (
    CaptionRecord,
    Key,
    caption_is_foreign,
    clear_captions,
    read_captions,
    write_captions,
)
from fiftyone_regioncap.dataset.clips import iter_clips
from fiftyone_regioncap.dataset.embeddings import RegionEmbedding
from fiftyone_regioncap.dataset.objects import keep_object_numbers
from fiftyone_regioncap.dataset.ownership import refuse_foreign_labels
from fiftyone_regioncap.dataset.targets import Sample, Target, Targets, video_targets
from fiftyone_regioncap.dataset.tracks import read_tracks
from fiftyone_regioncap.jobs.base import Item, RunContext, model_record
from fiftyone_regioncap.jobs.clips import OnText, each_clip
from fiftyone_regioncap.jobs.options import CaptionOptions
from fiftyone_regioncap.jobs.summary import Report, Summary
from fiftyone_regioncap.measuring.regions import measure
from fiftyone_regioncap.models.registry import ModelRegistry
from fiftyone_regioncap.video.clips import ClipPlan, plan_clip
from fiftyone_regioncap.video.sampling import change_windows, fixed_windows

SUMMARY = "change summary"
"""The ``prompt`` of captions that are made of a track's other captions."""


class TrackCaptioning:
    """Captions the tracks of videos; see :class:`Stage`.

    Args:
        options: Options of the captioning.
        captioner: The captioner.
    """

    name: ClassVar[StageName] = "caption"
    options = CaptionOptions
    summary: ClassVar[type[Report]] = Summary
    models: ClassVar[Mapping[str, ModelRegistry[Any]]] = {"captioner": CAPTIONERS}

    def __init__(self, options: CaptionOptions, captioner: Captioner) -> None:
        self._options = options
        self._captioner = captioner

    def targets(self, samples: foco.SampleCollection) -> Targets:
        """Returns the videos; see :meth:`Stage.targets`."""
        return video_targets(samples)

    def check(self, samples: foco.SampleCollection) -> None:
        """Declares the field of the captions; see :meth:`Stage.check`."""
        dataset, options = samples._root_dataset, self._options
        self._captioner.info.check_prompt(options.prompt)
        fields.require_tracks(dataset, options.tracks)
        fields.require_output(options.output, options.tracks)
        fields.require_writable(dataset, options.output)
        if not options.merge:
            ids = [target.sample_id for target in self.targets(samples)]
            refuse_foreign_labels(
                dataset,
                options.output,
                ids,
                lambda label, sample_id, _: caption_is_foreign(
                    sample_id, options.output, label
                ),
            )
        schema.declare_captions(dataset, options.output)
        schema.declare_status(dataset, options.output)

    def run(self, items: Iterator[Item], context: RunContext) -> Iterator[Item]:
        """Captions sample after sample; batches reach across samples."""
        captioner, prompt = self._captioner, self._options.prompt

        def infer(
            clips: Iterator[RegionClip], on_text: OnText
        ) -> Generator[Caption, None, None]:
            return caption_stream(captioner, clips, prompt=prompt, on_token=on_text)

        return each_clip(
            self.name,
            self._options.output,
            self._prepare,
            infer,
            context.captioned,
            items,
            context,
            depth=captioner.info.batch_size,
        )

    def record(self) -> dict[str, Any]:
        """Returns the captioner; see :meth:`Stage.record`."""
        return {"captioner": model_record(self._captioner.info)}

    def _prepare(self, target: Target, sample: Sample) -> _TrackWork | None:
        options, info = self._options, self._captioner.info
        keep_object_numbers(sample, options.tracks)
        plans = _plans(target, sample, options, info.frames)
        origins = _origins(sample, options, plans)
        done = _captioned_already(sample, options, info.model, origins)
        todo = [plan for plan in plans if _key(plan) not in done]
        if not todo and _complete(sample, options):
            return None
        # What a clips view or a filtered view shows is some of many; others stay.
        some = bool(target.ranges) or isinstance(sample, SampleView)
        keep = None if some else frozenset(map(_key, plans))
        status.write_status(sample, options.output, "partial")
        return _TrackWork(sample, options, info, tuple(todo), keep, origins)


@dataclass(frozen=True)
class _TrackWork:
    """The tracks of one video; see :class:`ClipWork`.

    Attributes:
        sample: The video.
        options: Options of the captioning.
        info: Info of the captioner.
        plans: The captions to make.
        keep: Captions that stay at the end; None for all.
        origins: Fingerprints of the tracks.
    """

    sample: Sample
    options: CaptionOptions
    info: CaptionerInfo
    plans: tuple[ClipPlan, ...]
    keep: frozenset[Key] | None
    origins: Mapping[str, str]

    @property
    def total(self) -> int:
        """Number of captions to make."""
        return len(self.plans)

    def clips(self) -> Iterator[tuple[tuple[ClipPlan, Measurements], RegionClip]]:
        """Yields the clips of the windows, measured."""
        for plan, clip in iter_clips(self.sample, self.options.tracks, self.plans):
            measured = measure(clip)
            yield (plan, measured), replace(clip, measurements=measured)

    def write(
        self, results: Sequence[tuple[tuple[ClipPlan, Measurements], Caption]]
    ) -> None:
        """Writes captions into the field and onto the tracks."""
        self._write(
            [
                _record_of(plan, measured, caption, self.options.prompt, self.info)
                for (plan, measured), caption in results
            ]
        )

    def finish(self) -> None:
        """Adds summaries, removes captions of other windows, records completion."""
        sample, options = self.sample, self.options
        summaries = _summaries(sample, options) if options.summary else []
        self._write(summaries)
        if self.keep is not None:
            clear_captions(
                sample,
                options.output,
                keep={*self.keep, *(record.key for record in summaries)},
                tracks_field=options.tracks,
            )
        status.write_origins(sample, options.output, self.origins)
        made = read_captions(sample, options.output, own=True)
        errors = [record.error for record in made if record.error is not None]
        state: status.State = "complete"
        if errors:
            state = "failed" if len(errors) == len(made) else "partial"
        status.write_status(
            sample, options.output, state, errors[0] if errors else None
        )

    def _write(self, records: list[CaptionRecord]) -> None:
        if records:
            write_captions(
                self.sample,
                self.options.output,
                records,
                tracks_field=self.options.tracks,
                overwrite=self.options.overwrite_edited,
            )


def _key(plan: ClipPlan) -> Key:
    return plan.track.object_id, plan.support


def _complete(sample: Sample, options: CaptionOptions) -> bool:
    return status.read_status(sample, options.output).state == "complete"


def _plans(
    target: Target, sample: Sample, options: CaptionOptions, frames: int
) -> list[ClipPlan]:
    """Plans one clip per track and window of a sample."""
    return [
        plan_clip(track, support, frames)
        for clip in target.ranges or (None,)
        for track in read_tracks(
            sample, options.tracks, support=clip and (clip[0], clip[1] - 1)
        )
        for support in _supports(track, options.window)
    ]


def _origins(
    sample: Sample, options: CaptionOptions, plans: Iterable[ClipPlan]
) -> dict[str, str]:
    """Returns the origins of the tracks of the plans."""
    objects = {plan.track.object_id for plan in plans}
    found = status.read_origins(sample, options.tracks)
    return {
        key: made for key, made in found.items() if status.origin_object(key) in objects
    }


def _captioned_already(
    sample: Sample, options: CaptionOptions, model: str, origins: Mapping[str, str]
) -> set[Key]:
    """Returns the captions that stay: all of a complete sample, else this model's.

    Those of tracks that were made anew since don't, unless a person reviewed them.
    """
    if options.overwrite and options.overwrite_edited:
        return set()
    complete = _complete(sample, options)
    known = status.read_origins(sample, options.output)
    outdated = {
        status.origin_object(key)
        for key, made in origins.items()
        if known.get(key, made) != made
    }
    return {
        record.key
        for record in read_captions(sample, options.output, own=True)
        if record.error is None
        and (record.review != "unreviewed" or not options.overwrite)
        and (complete or record.model == model)
        and (record.index not in outdated or record.review != "unreviewed")
    }


def _supports(
    track: Track, window: int | Literal["change"] | None
) -> Iterable[tuple[int, int]]:
    """Yields the windows of a track that get a caption each."""
    if window == "change":
        return change_windows(track)
    if window is None:
        return [(int(track.frames[0]), int(track.frames[-1]))]
    return fixed_windows(track.frames, window)


def _record_of(
    plan: ClipPlan,
    measured: Measurements,
    caption: Caption,
    prompt: str | None,
    info: CaptionerInfo,
) -> CaptionRecord:
    """Makes the record of a caption."""
    return CaptionRecord.of(
        caption,
        plan.track.object_id,
        plan.support,
        label=plan.track.label,
        instance=plan.track.instance,
        model=info.model,
        revision=info.revision,
        prompt=prompt,
        frames_used=plan.frames,
        visible_fraction=measured.visible_fraction,
        mean_area=measured.mean_area,
        speed=measured.speed,
        direction=measured.direction,
        dominant_color=measured.dominant_color,
        embedding=RegionEmbedding.of(caption.embedding, info.space),
    )


def _summaries(sample: Sample, options: CaptionOptions) -> list[CaptionRecord]:
    """Makes one caption of the whole for each track whose windows differ."""
    by_object: dict[int, list[CaptionRecord]] = {}
    for record in read_captions(sample, options.output, own=True):
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
                    embedding=None,
                )
            )
    return summaries
