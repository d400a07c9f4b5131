"""The stage that captions tracks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import fiftyone as fo
import fiftyone.core.collections as foco
from bson import ObjectId
from fiftyone.core.sample import SampleView

from fiftyone_regioncap.captioning.base import Captioner, CaptionerInfo
from fiftyone_regioncap.captioning.registry import CAPTIONERS
from fiftyone_regioncap.captioning.summary import change_summary
from fiftyone_regioncap.core.measurements import Measurements
from fiftyone_regioncap.core.progress import Stage as StageName
from fiftyone_regioncap.core.types import Caption, RegionClip, Track
from fiftyone_regioncap.dataset import fields, origins, schema, status
from fiftyone_regioncap.dataset.captions import (
    OUTDATED,
    CaptionRecord,
    Key,
    caption_is_foreign,
    clear_captions,
    mirror_captions,
    read_captions,
    write_captions,
)
from fiftyone_regioncap.dataset.clips import iter_clips
from fiftyone_regioncap.dataset.corrections import mark_outdated
from fiftyone_regioncap.dataset.embeddings import RegionEmbedding
from fiftyone_regioncap.dataset.metadata import file_digest
from fiftyone_regioncap.dataset.objects import keep_object_numbers
from fiftyone_regioncap.dataset.origins import CaptionOrigin
from fiftyone_regioncap.dataset.status import Kept
from fiftyone_regioncap.dataset.store import Document, frame_path
from fiftyone_regioncap.dataset.targets import Sample, Target, name_of
from fiftyone_regioncap.dataset.tracks import read_tracks
from fiftyone_regioncap.jobs import undoing
from fiftyone_regioncap.jobs.base import RunContext, model_facts
from fiftyone_regioncap.jobs.checkpoints import signature
from fiftyone_regioncap.jobs.clips import ClipStage
from fiftyone_regioncap.jobs.options import CaptionOptions
from fiftyone_regioncap.jobs.summary import Report, Summary, counted
from fiftyone_regioncap.measuring.regions import measure
from fiftyone_regioncap.models.registry import ModelRegistry
from fiftyone_regioncap.video.clips import ClipPlan, plan_clip
from fiftyone_regioncap.video.sampling import change_windows, fixed_windows

SUMMARY = "change summary"
"""The ``prompt`` of captions that are made of a track's other captions."""


class TrackCaptioning(ClipStage[CaptionOptions]):
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
        super().__init__(options)
        self._captioner = captioner
        self._undoable = False

    @classmethod
    def check(
        cls,
        options: CaptionOptions,
        samples: foco.SampleCollection,
        made: Collection[str],
    ) -> None:
        """Checks the fields of tracks and captions; see :meth:`Stage.check`."""
        if frame_path(options.tracks) not in made:
            fields.require_tracks(samples._root_dataset, options.tracks)
        fields.require_output(options.output, options.tracks)

        def is_foreign(label: Document, sample_id: ObjectId, _: int) -> bool:
            return caption_is_foreign(sample_id, options.output, label)

        cls.require_room(
            samples,
            options.output,
            fo.TemporalDetections,
            is_foreign,
            merge=options.merge,
        )

    def declare(self, samples: foco.SampleCollection) -> None:
        """Declares the field of the captions; see :meth:`Stage.declare`."""
        dataset, options = samples._root_dataset, self._options
        self._captioner.info.check_prompt(options.prompt)
        schema.declare_captions(dataset, options.output)
        schema.declare_status(dataset, options.output)
        schema.declare_origins(dataset, options.output)

    def prepare(
        self, target: Target, sample: Sample, context: RunContext
    ) -> _TrackWork | None:
        """Returns the captions that are missing or outdated."""
        options, info = self._options, self._captioner.info
        keep_object_numbers(sample, options.tracks)
        plans = _plans(target, sample, options, info.frames)
        made_by = model_facts(self._captioner)
        wanted = _origins(sample, options, plans, made_by)
        kept = status.read_kept(sample, options.output)
        made = read_captions(sample, options.output, own=True)
        done, outdated = _captioned_already(made, options, info.model, wanted, kept)
        todo = [plan for plan, _ in plans if _key(plan) not in done]
        # Captions of other ranges stay, and so does what a filtered view hides.
        ours = None if isinstance(sample, SampleView) else _spans(target)
        work = _TrackWork(sample, options, info, tuple(todo), ours, wanted)
        leftovers = work.leftovers(made, kept)
        if not todo and kept.complete and not leftovers:
            work.show()
            return None
        self._keep_for_undo(sample, context.run)
        if outdated and not options.overwrite:
            context.redone("captions", name_of(sample), len(outdated))
        if leftovers.gone and not todo:
            context.summary.notes.append(
                f"{name_of(sample)}: {counted(len(leftovers.gone), 'caption')} of "
                "tracks or windows that are no longer there removed"
            )
        status.write_status(sample, options.output, "partial")
        return work

    def _keep_for_undo(self, sample: Sample, run: str) -> None:
        """Keeps the captions of a sample, in place of those of the job before."""
        output = self._options.output
        if not self._undoable:
            undoing.begin(sample._dataset, output, run)
            self._undoable = True
        undoing.keep(sample, output, self._options.tracks, run)


@dataclass(frozen=True)
class _Leftovers:
    """What of the captions of a video is not as its tracks and windows are.

    Attributes:
        summaries: Summaries that are missing, or say what the windows no longer say.
        keep: The captions to keep.
        gone: The captions to remove; those of which nothing is known are removed only
            where others are made.
        outdated: Objects that have no track any more, of whose captions a person has
            reviewed some, which stay.
        forget: The captions of which nothing is to be known any more.
    """

    summaries: Sequence[CaptionRecord] = ()
    keep: Set[Key] = frozenset()
    gone: Set[Key] = frozenset()
    outdated: Set[int] = frozenset()
    forget: Set[Key] = frozenset()

    def __bool__(self) -> bool:
        """Returns whether there is something to do."""
        return bool(self.summaries or self.gone or self.outdated)


@dataclass(frozen=True)
class _TrackWork:
    """The tracks of one video; see :class:`ClipWork`.

    Attributes:
        sample: The video.
        options: Options of the captioning.
        info: Info of the captioner.
        plans: The captions to make.
        ours: Ranges whose other captions are removed at the end; None for none.
        origins: What each caption of these ranges is made from.
    """

    sample: Sample
    options: CaptionOptions
    info: CaptionerInfo
    plans: tuple[ClipPlan, ...]
    ours: frozenset[str] | None
    origins: Mapping[Key, CaptionOrigin]

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

    def leftovers(self, made: Sequence[CaptionRecord], kept: Kept) -> _Leftovers:
        """Compares the captions that are there with the tracks and their windows.

        Args:
            made: The captions that this package wrote.
            kept: What is known of how they were made.
        """
        options, keys = self.options, self.origins.keys()
        there = {record.key: record for record in made}
        reviewed = {key for key in there if there[key].review != "unreviewed"}
        again = options.overwrite and options.overwrite_edited
        keep, missing = set(keys), []
        for record in _summaries(record for record in made if record.key in keys):
            old = there.get(record.key)
            holds = old is not None and old.caption == record.caption
            # One that holds stays, even if no summaries are asked for.
            if record.key in keys or not (holds or options.summary):
                continue
            keep.add(record.key)
            left = record.key in reviewed and not again
            if not left and not (holds and old and not _is_tagged(old)):
                missing.append(record)
        if self.ours is None:
            return _Leftovers(missing)
        absent = self._absent({index for index, _ in there})
        known = origins.read_captions(kept)
        keep |= {
            key
            for key, origin in known.items()
            if origin.span not in self.ours and key[0] not in absent
        }
        outdated = {
            key[0]
            for key in reviewed
            if key[0] in absent and not _is_tagged(there[key])
        }
        gone = {
            key
            for key in there.keys() - keep - reviewed
            if key in known or key[0] in absent
        }
        return _Leftovers(missing, keep, gone, outdated, known.keys() - keep)

    def _absent(self, objects: Set[int]) -> Set[int]:
        """Returns which of some objects have no track any more."""
        absent = objects - {index for index, _ in self.origins}
        if absent and self.ours != {_span(None)}:
            tracks = read_tracks(self.sample, self.options.tracks)
            absent -= {track.object_id for track in tracks}
        return absent

    def finish(self) -> None:
        """Adds summaries, removes captions of other windows, records completion."""
        sample, options = self.sample, self.options
        made = read_captions(sample, options.output, own=True)
        leftovers = self.leftovers(made, status.read_kept(sample, options.output))
        self._write(leftovers.summaries)
        if self.ours is not None:
            clear_captions(
                *(sample, options.output),
                keep=leftovers.keep,
                tracks_field=options.tracks,
            )
            gone = dict.fromkeys(leftovers.forget)
            origins.write_captions(sample, options.output, gone)
            for index in leftovers.outdated:
                mark_outdated(sample, options.output, index)
        self.show()
        made = read_captions(sample, options.output, own=True)
        errors = [record.error for record in made if record.error is not None]
        status.settle(sample, options.output, errors, len(made))

    def show(self) -> None:
        """Puts captions on tracks that were made anew since; others have them."""
        written = {plan.track.object_id for plan in self.plans}
        objects = {index for index, _ in self.origins} - written
        if objects:
            mirror_captions(
                *(self.sample, self.options.output, self.options.tracks),
                objects=objects,
            )

    def _write(self, records: Sequence[CaptionRecord]) -> None:
        if not records:
            return
        write_captions(
            self.sample,
            self.options.output,
            records,
            tracks_field=self.options.tracks,
            overwrite=self.options.overwrite_edited,
        )
        whole = next(iter(self.origins.values()))
        made = {record.key: self.origins.get(record.key, whole) for record in records}
        origins.write_captions(self.sample, self.options.output, made)


def _is_tagged(record: CaptionRecord) -> bool:
    return OUTDATED in dict(record.tags)


def _key(plan: ClipPlan) -> Key:
    return plan.track.object_id, plan.support


def _plans(
    target: Target, sample: Sample, options: CaptionOptions, frames: int
) -> list[tuple[ClipPlan, str]]:
    """Plans one clip per track and window of a sample, each with its range."""
    return [
        (plan_clip(track, support, frames), _span(clip))
        for clip in target.ranges or (None,)
        for track in read_tracks(
            sample, options.tracks, support=clip and (clip[0], clip[1] - 1)
        )
        for support in _supports(track, options.window)
    ]


def _span(clip: tuple[int, int] | None) -> str:
    return "all" if clip is None else f"{clip[0]}-{clip[1]}"


def _spans(target: Target) -> frozenset[str]:
    return frozenset(_span(clip) for clip in target.ranges or (None,))


def _origins(
    sample: Sample,
    options: CaptionOptions,
    plans: Iterable[tuple[ClipPlan, str]],
    made_by: Mapping[str, Any],
) -> dict[Key, CaptionOrigin]:
    """Hashes all that each caption depends on: file, track, prompt, options, model."""
    found = status.read_kept(sample, options.tracks).origins
    facts = {**made_by, "prompt": options.prompt, "file": file_digest(sample.filepath)}
    wanted = {}
    for plan, span in plans:
        track = plan.track
        tracked = [
            found.get(key)
            for key in sorted(found, key=str)
            if status.origin_object(key) == track.object_id
        ]
        own = (track.frames >= plan.support[0]) & (track.frames <= plan.support[1])
        made_from = {
            **facts,
            "track": tracked,
            "label": track.label,
            "frames": list(plan.frames),
            "boxes": track.boxes[own],
        }
        wanted[_key(plan)] = CaptionOrigin(span, signature(made_from))
    return wanted


def _captioned_already(
    made: Iterable[CaptionRecord],
    options: CaptionOptions,
    model: str,
    wanted: Mapping[Key, CaptionOrigin],
    kept: Kept,
) -> tuple[set[Key], set[Key]]:
    """Returns the captions that stay, and those that were made otherwise.

    Captions that a person reviewed stay. So do those that don't say what they were made
    from, as far as they tell: of an older version of this package, or of an object
    whose number a person has changed.
    """
    done: set[Key] = set()
    outdated: set[Key] = set()
    known, complete = origins.read_captions(kept), kept.complete
    for record in made:
        if record.error is not None:
            continue
        now, before = wanted.get(record.key), known.get(record.key)
        if now is None or before is None or not before.made_from:
            prompt = record.prompt == options.prompt
            same = (complete or record.model == model) and prompt
        else:
            same = before.made_from == now.made_from
        if record.review != "unreviewed":
            stays = not (options.overwrite and options.overwrite_edited)
        else:
            stays = same and not _is_tagged(record) and not options.overwrite
        (done if stays else outdated).add(record.key)
    return done, outdated & wanted.keys()


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


def _summaries(records: Iterable[CaptionRecord]) -> Iterator[CaptionRecord]:
    """Yields one caption of the whole for each track whose windows differ."""
    by_object: dict[int, list[CaptionRecord]] = {}
    for record in records:
        if record.error is None and record.review != "rejected":
            by_object.setdefault(record.index, []).append(record)
    for windows in by_object.values():
        text = change_summary([record.caption for record in windows])
        if text is not None:
            yield replace(
                windows[0],
                support=(windows[0].support[0], windows[-1].support[1]),
                caption=text,
                prompt=SUMMARY,
                review="unreviewed",
                source_caption=None,
                tags=tuple(tag for tag in windows[0].tags if tag[0] != OUTDATED),
                confidence=None,
                min_confidence=None,
                embedding=None,
            )
