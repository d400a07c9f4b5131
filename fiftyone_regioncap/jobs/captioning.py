"""The stage that describes tracks and writes captions."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from fiftyone.core.sample import SampleView

from fiftyone_regioncap.captioning.base import Captioner, CaptionerInfo
from fiftyone_regioncap.captioning.streaming import caption_stream
from fiftyone_regioncap.captioning.summary import change_summary
from fiftyone_regioncap.core.types import Caption, RegionClip, Track
from fiftyone_regioncap.dataset import status
from fiftyone_regioncap.dataset.captions import (
    CaptionRecord,
    Key,
    clear_captions,
    read_captions,
    write_captions,
)
from fiftyone_regioncap.dataset.embeddings import RegionEmbedding
from fiftyone_regioncap.dataset.targets import Sample, Target, name_of
from fiftyone_regioncap.dataset.tracks import read_masks, read_tracks
from fiftyone_regioncap.jobs.ledger import Ledger
from fiftyone_regioncap.jobs.options import CaptionOptions
from fiftyone_regioncap.measuring.regions import Measurements, measure
from fiftyone_regioncap.video.clips import ClipPlan, assemble, plan_clip
from fiftyone_regioncap.video.reader import VideoReader, decode_ahead
from fiftyone_regioncap.video.sampling import change_windows, fixed_windows

CAPTIONS_AT_ONCE = 64
"""Captions are written to the database in chunks of this size, per sample."""

SUMMARY = "change summary"
"""The ``prompt`` of captions that are made of a track's other captions."""


@dataclass(frozen=True)
class _Waiting:
    """A caption that is being made, or without a plan the end of a sample."""

    sample: Sample
    plan: ClipPlan | None = None
    measurements: Measurements | None = None
    number: int = 0
    total: int = 0
    keep: frozenset[Key] | None = None
    origins: Mapping[str, str] = field(default_factory=dict)
    skipped: bool = False
    error: Exception | None = None


class Captioning:
    """Describes the tracks of sample after sample.

    Args:
        options: how.
        captioner: who.
        ledger: where it is written down.
    """

    def __init__(
        self, options: CaptionOptions, captioner: Captioner, ledger: Ledger
    ) -> None:
        self._options = options
        self._captioner = captioner
        self._ledger = ledger

    def run(self, samples: Iterable[tuple[Target, Sample]]) -> None:
        """Captions sample after sample; batches reach across samples."""
        captioner, reporter = self._captioner, self._ledger.reporter
        waiting: deque[_Waiting] = deque()

        def clips() -> Iterator[RegionClip]:
            for target, sample in samples:
                for item, clip in self._clips(target, sample):
                    waiting.append(item)
                    if clip is not None:
                        yield clip

        def on_token(text: str) -> None:
            item = waiting[0]
            if item.total == 1 and self._ledger.summary.samples == 1:
                reporter.update_text("caption", name_of(item.sample), text)

        made: list[CaptionRecord] = []
        prompt = self._options.prompt
        ahead = decode_ahead(clips(), depth=captioner.info.batch_size)
        captions = caption_stream(captioner, ahead, prompt=prompt, on_token=on_token)
        # The captions first: a captioner may be reading clips in a thread of its own.
        with closing(ahead), closing(captions):
            for caption in captions:
                while waiting[0].plan is None:
                    self._end(waiting.popleft(), made)
                item = waiting.popleft()
                made.append(_record_of(item, caption, prompt, captioner.info))
                self._ledger.captioned(caption)
                if len(made) >= CAPTIONS_AT_ONCE:
                    self._write(item.sample, made)
                    made.clear()
                reporter.update(
                    "caption", name_of(item.sample), item.number, item.total
                )
        for item in waiting:
            self._end(item, made)

    def _clips(
        self, target: Target, sample: Sample
    ) -> Iterator[tuple[_Waiting, RegionClip | None]]:
        """The clips of one sample, and then the mark of its end."""
        options, info = self._options, self._captioner.info
        try:
            plans = _plans(target, sample, options, info.frames)
            origins = _origins(sample, options, plans)
            done = _captioned_already(sample, options, info.model, origins)
            todo = [plan for plan in plans if _key(plan) not in done]
            if not todo and _complete(sample, options):
                self._ledger.summary.skipped += 1
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
                    measured = measure(clip)
                    waiting = _Waiting(sample, plan, measured, number, len(todo))
                    yield waiting, replace(clip, measurements=measured)
            # What a clips view or a filtered view shows is some of many; others stay.
            some = target.ranges or isinstance(sample, SampleView)
            keep = None if some else frozenset(map(_key, plans))
            yield _Waiting(sample, keep=keep, origins=origins), None
        except Exception as error:
            yield _Waiting(sample, error=error), None

    def _write(self, sample: Sample, made: list[CaptionRecord]) -> None:
        if not made:
            return
        options = self._options
        write_captions(
            sample,
            options.output,
            made,
            tracks_field=options.tracks,
            overwrite=options.overwrite,
        )

    def _end(self, item: _Waiting, made: list[CaptionRecord]) -> None:
        """Writes what is left of a sample and how it ended."""
        options = self._options
        self._write(item.sample, made)
        made.clear()
        if item.error is not None:
            self._ledger.failed("caption", item.sample, options.output, item.error)
        elif not item.skipped:
            summaries = _summaries(item.sample, options) if options.summary else []
            self._write(item.sample, summaries)
            if item.keep is not None:
                clear_captions(
                    item.sample,
                    options.output,
                    keep={*item.keep, *(record.key for record in summaries)},
                    tracks_field=options.tracks,
                )
            status.write_origins(item.sample, options.output, item.origins)
            status.write_status(item.sample, options.output, "complete")
        self._ledger.reporter.finish("caption", name_of(item.sample))


def _key(plan: ClipPlan) -> Key:
    return plan.track.object_id, plan.support


def _complete(sample: Sample, options: CaptionOptions) -> bool:
    return status.read_status(sample, options.output).state == "complete"


def _plans(
    target: Target, sample: Sample, options: CaptionOptions, frames: int
) -> list[ClipPlan]:
    """One plan per track and window of a sample."""
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
    """What the tracks of the plans were made from."""
    objects = {plan.track.object_id for plan in plans}
    found = status.read_origins(sample, options.tracks)
    return {
        key: made for key, made in found.items() if status.origin_object(key) in objects
    }


def _captioned_already(
    sample: Sample, options: CaptionOptions, model: str, origins: Mapping[str, str]
) -> set[Key]:
    """The captions that stay: all of a complete sample, else this model's.

    Those of tracks that were made anew since don't, unless a person reviewed them.
    """
    if options.overwrite:
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
        for record in read_captions(sample, options.output)
        if record.error is None
        and (complete or record.model == model)
        and (record.index not in outdated or record.review != "unreviewed")
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
    item: _Waiting, caption: Caption, prompt: str | None, info: CaptionerInfo
) -> CaptionRecord:
    """Everything that is stored of a caption."""
    plan, measured = item.plan, item.measurements
    assert plan is not None and measured is not None  # only ends have none
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
                    embedding=None,
                )
            )
    return summaries
