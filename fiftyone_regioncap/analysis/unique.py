"""Makes the captions of a video's or an image's objects distinguish them."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from typing import Any, Protocol

import fiftyone.core.collections as foco
import fiftyone.core.sample as fos
import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.analysis.differences import (
    Subject,
    Uniqueness,
    base,
    groups,
    tell_apart,
    uniqueness,
)
from fiftyone_regioncap.analysis.hierarchy import write_hierarchy
from fiftyone_regioncap.analysis.options import UniqueOptions
from fiftyone_regioncap.captioning.base import Captioner, CaptionerInfo
from fiftyone_regioncap.captioning.batching import caption_batch
from fiftyone_regioncap.captioning.registry import CAPTIONERS
from fiftyone_regioncap.core.markdown import escape
from fiftyone_regioncap.core.progress import ProgressListener
from fiftyone_regioncap.core.types import Caption, RegionClip, box_of_mask
from fiftyone_regioncap.dataset import fields, runs
from fiftyone_regioncap.dataset.captions import (
    CaptionRecord,
    Key,
    captions_with_owner,
    shown_captions,
    write_captions,
)
from fiftyone_regioncap.dataset.clips import iter_clips, read_image, region_masks
from fiftyone_regioncap.dataset.geometry import relative_box
from fiftyone_regioncap.dataset.metadata import frame_size
from fiftyone_regioncap.dataset.regions import (
    read_regions,
    region_records,
    write_region_captions,
)
from fiftyone_regioncap.dataset.targets import Sample, Target, media_targets
from fiftyone_regioncap.dataset.tracks import read_tracks
from fiftyone_regioncap.jobs.base import RunContext, each_sample
from fiftyone_regioncap.jobs.summary import Report
from fiftyone_regioncap.models.registry import ModelSpec
from fiftyone_regioncap.system import database
from fiftyone_regioncap.video.clips import plan_clip

OTHERS_QUOTED = 5
"""Greatest number of other captions that a captioner's prompt contains."""

LETTERS_QUOTED = 200
"""Greatest length of each of these, in characters."""

LOOK_ALIKE = 0.95
"""Cosine of region embeddings from which two regions look the same."""


class ClipEmbedder(Protocol):
    """Embeds regions by how they look."""

    def embed(self, clips: Sequence[RegionClip]) -> NDArray[np.float32]:
        """Returns unit vectors (N, D) of clips, in order; rows of NaN for bad ones."""


@dataclass
class UniqueReport(Report):
    """Counts what :func:`make_unique` did.

    Attributes:
        before: Uniqueness of the captions before the job.
        after: Uniqueness of the captions after the job.
        rewritten: Number of captions that changed.
        described_again: Number of those that a captioner wrote anew.
        look_alike: Number of captions that no captioner was asked to differentiate,
            because the regions look the same.
        undistinguished: Number of captions whose object nothing that was measured
            tells from another that is described alike.
        parts: Number of labels that are parts of others; None when not asked for.
    """

    before: Uniqueness = field(default_factory=Uniqueness)
    after: Uniqueness = field(default_factory=Uniqueness)
    rewritten: int = 0
    described_again: int = 0
    look_alike: int = 0
    undistinguished: int = 0
    parts: int | None = None

    def to_markdown(self) -> str:
        """Returns a few lines for people, as Markdown."""
        before, after = self.before, self.after
        lines = [
            f"**{self.rewritten}** of {before.captions} captions rewritten in "
            f"{self.seconds:.1f} s",
            f"- the same as another object's: {before.same} before, {after.same} now",
            f"- much like another object's: {before.alike} before, {after.alike} now",
        ]
        counts = {
            "described again by the captioner": self.described_again,
            "not asked for: they look the same": self.look_alike,
            "that nothing measured tells from another": self.undistinguished,
            "labels are parts of others": self.parts,
        }
        lines += [f"- {count} {what}" for what, count in counts.items() if count]
        lines += [
            f"- FAILED {escape(f.filepath)}: {escape(f.error)}"
            for f in self.failures[:10]
        ]
        return "\n".join(lines)


def make_unique(
    samples: foco.SampleCollection,
    options: UniqueOptions = UniqueOptions(),  # noqa: B008
    *,
    captioner: Captioner | ModelSpec | None = None,
    embedder: ClipEmbedder | None = None,
    listener: ProgressListener | None = None,
    cancel: threading.Event | None = None,
) -> UniqueReport:
    """Describes objects again that have nearly the same captions, differences included.

    Objects of one video or image are compared. A captioner that takes prompts is asked
    for the differences first. What is alike still (everything, without a captioner)
    gets its differences stated from what was measured: color, place, size, direction,
    speed, first and last frame. Captions that a person reviewed, that others wrote or
    that the view hides are compared with but stay. Doing it twice changes nothing the
    second time.

    Args:
        samples: Videos or images: a dataset or a view.
        options: Options of the comparison.
        captioner: Captioner that is asked for differences; None, or one that takes no
            prompts, to only state measurements.
        embedder: Decides which regions really differ, such as a Patch-ioner: of regions
            that look the same (:data:`LOOK_ALIKE`), a captioner asked for differences
            could only invent some. None takes all for different.
        listener: Called with progress events.
        cancel: Set it to stop.

    Returns:
        How unique the captions were and are, failures included.

    Raises:
        FieldError: If a field is absent or of the wrong kind; nothing is written.
        BackendError: If the captioner can't run here.
        Canceled: If ``cancel`` was set; what was written stays.
    """
    database.ensure()
    targets = media_targets(samples)
    images = samples.media_type == "image"
    tracks = None
    fields.require_writable(targets.dataset, options.captions)
    if images:
        fields.require_regions(targets.dataset, options.captions)
    else:
        fields.require_captions(targets.dataset, options.captions)
        known = fields.track_fields(targets.dataset)
        tracks = options.tracks or next(iter(known), None)
        if tracks is not None:
            fields.require_tracks(targets.dataset, tracks)
    reasons: list[str] = []
    model = None if captioner is None else CAPTIONERS.obtain(captioner, reasons)
    if model is not None and not model.info.prompts:
        model = None  # it takes no prompt that could ask for differences
    report = UniqueReport(samples=len(targets), backends=reasons)
    before: list[list[Subject]] = []
    after: list[list[Subject]] = []
    context = RunContext.of(report, ["caption"], listener, cancel)

    def process(_: Target, sample: Sample) -> bool:
        scene: _Scene = (
            _Image(sample, options.captions)
            if images
            else _Video(sample, options.captions, tracks)
        )
        old = list(scene.subjects)
        new = _rewrite(scene, model, embedder, options.threshold, context)
        before.append(old)
        after.append(new)
        if options.parts and (images or tracks):
            count = write_hierarchy(sample, tracks or options.captions)
            report.parts = (report.parts or 0) + count
        return True

    began = time.monotonic()
    for _ in each_sample("caption", None, process, targets.samples(), context):
        pass
    report.before = uniqueness(before, options.threshold)
    report.after = uniqueness(after, options.threshold)
    report.seconds = time.monotonic() - began
    report.run = runs.run_key("make_unique")
    config = {
        "captions": options.captions,
        "tracks": tracks,
        "threshold": options.threshold,
        "captioner": None if model is None else model.info.model,
    }
    runs.record_run(targets.dataset, report.run, config, {"report": report.to_dict()})
    return report


@dataclass(frozen=True)
class _Answer:
    """A caption that a captioner gave when it was asked for differences."""

    caption: Caption
    info: CaptionerInfo
    prompt: str


class _Scene(Protocol):
    """The captions of one sample."""

    subjects: list[Subject]

    def clip(self, number: int, frames: int) -> RegionClip | None:
        """Returns what a captioner sees of a subject; None when it can't see it."""

    def write(self, texts: Mapping[int, str], answers: Mapping[int, _Answer]) -> None:
        """Replaces captions; those of a captioner come with its confidence."""


def _rewrite(
    scene: _Scene,
    captioner: Captioner | None,
    embedder: ClipEmbedder | None,
    threshold: float,
    context: RunContext,
) -> list[Subject]:
    """Makes the captions of a sample unique, and returns its subjects with them."""
    subjects = list(scene.subjects)
    answers: dict[int, _Answer] = {}
    look_alike = 0
    for group in groups(subjects, threshold) if captioner is not None else ():
        same = _same_looks(scene, group, embedder)
        for number in group:
            context.reporter.check_canceled()
            own = subjects[number]
            if own.stays or own.caption != base(own.caption):
                continue  # differences are stated already
            others = [
                base(subjects[other].caption)
                for other in group
                if subjects[other].object_id != own.object_id
                and (number, other) not in same
            ]
            look_alike += not others
            assert captioner is not None
            clip = scene.clip(number, captioner.info.frames) if others else None
            if clip is None:
                continue
            prompt = difference_prompt(others)
            (caption,) = caption_batch(captioner, [clip], prompt=prompt)
            if caption.error is None and caption.text:
                answers[number] = _Answer(caption, captioner.info, prompt)
                subjects[number] = replace(own, caption=caption.text)
    texts, alone = tell_apart(subjects, threshold)
    changed = {
        number: text
        for number, (text, old) in enumerate(zip(texts, scene.subjects, strict=True))
        if text != old.caption and not old.stays
    }
    if changed:
        scene.write(changed, answers)
    context.count(
        rewritten=len(changed),
        described_again=len(answers),
        look_alike=look_alike,
        undistinguished=len(alone),
    )
    return [
        replace(subject, caption=changed.get(number, subject.caption))
        for number, subject in enumerate(scene.subjects)
    ]


def _same_looks(
    scene: _Scene, group: Sequence[int], embedder: ClipEmbedder | None
) -> set[tuple[int, int]]:
    """Pairs of subjects whose regions look the same, both ways round."""
    if embedder is None:
        return set()
    clips = {number: scene.clip(number, frames=1) for number in group}
    vectors = {n: embedder.embed([own])[0] for n, own in clips.items() if own}
    return {
        (one, other)
        for one, other in permutations(vectors, 2)
        if float(vectors[one] @ vectors[other]) >= LOOK_ALIKE
    }


def difference_prompt(others: Sequence[str]) -> str:
    """Makes the prompt that asks for what sets a region apart from others.

    Args:
        others: Captions of the others; what models use to mark up prompts is removed.
    """
    quoted = [
        re.sub(r"[<>|\s]+", " ", text).strip()[:LETTERS_QUOTED]
        for text in dict.fromkeys(others)
    ]
    listed = "; ".join(f'"{text}"' for text in quoted[:OTHERS_QUOTED])
    return (
        "Describe this region in the image so that it fits no other one. Other regions "
        f"were described as {listed}. Say what differs from these, and only what you "
        "can see."
    )


class _Video:
    """The captions of the tracks of a video, in the order of objects and windows."""

    def __init__(self, sample: Sample, captions: str, tracks: str | None) -> None:
        self._sample, self._captions, self._field = sample, captions, tracks
        found = [] if tracks is None else read_tracks(sample, tracks)
        self._tracks = {track.object_id: track for track in found}
        known = [
            (record, own)
            for record, own in captions_with_owner(sample, captions)
            if _counts(record)
        ]
        self._records = [record for record, _ in known]
        hidden: set[Key] = set()
        if isinstance(sample, fos.SampleView):
            shown = shown_captions(sample, captions)
            hidden = {record.key for record in self._records} - shown
        height, width = frame_size(sample) if found else (1, 1)
        self.subjects: list[Subject] = []
        for record, own in known:
            where: dict[str, Any] = {}
            if (track := self._tracks.get(record.index)) is not None:
                boxes = track.boxes / np.array([width, height, width, height])
                where = {"frames": tuple(track.frames.tolist()), "boxes": boxes}
            subject = Subject(
                record.index,
                record.caption,
                color=record.dominant_color,
                area=record.mean_area,
                speed=record.speed,
                direction=record.direction,
                stays=not own or record.review != "unreviewed" or record.key in hidden,
                **where,
            )
            self.subjects.append(subject)

    def clip(self, number: int, frames: int) -> RegionClip | None:
        """Returns the window of a caption; None without a track."""
        record = self._records[number]
        track = self._tracks.get(record.index)
        if track is None or self._field is None:
            return None
        plan = plan_clip(track, record.support, frames)
        if not plan.frames:
            return None
        ((_, clip),) = iter_clips(self._sample, self._field, [plan])
        return clip

    def write(self, texts: Mapping[int, str], answers: Mapping[int, _Answer]) -> None:
        """Replaces captions, on the tracks too."""
        records = []
        for number, text in texts.items():
            values: dict[str, Any] = {}
            if (new := answers.get(number)) is not None:
                values = {
                    "confidence": new.caption.confidence,
                    "min_confidence": new.caption.min_confidence,
                    "agreement": new.caption.agreement,
                    "model": new.info.model,
                    "revision": new.info.revision,
                    "prompt": new.prompt,
                }
            records.append(replace(self._records[number], caption=text, **values))
        write_captions(self._sample, self._captions, records, tracks_field=self._field)


def _counts(record: CaptionRecord) -> bool:
    """Returns whether a caption is one that others are compared with."""
    return record.error is None and bool(record.caption) and record.review != "rejected"


class _Image:
    """The captions of the regions of an image, in the order of the labels."""

    def __init__(self, sample: Sample, name: str) -> None:
        self._sample, self._field = sample, name
        self._image = read_image(sample.filepath)
        height, width = self._image.shape[:2]
        regions = read_regions(sample, name, height=height, width=width)
        self._records = region_records(sample, name)
        self._regions = [
            region for region in regions if _counts(self._records[region.id])
        ]
        self.subjects: list[Subject] = []
        for region in self._regions:
            record = self._records[region.id]
            mask = region.shape.mask
            box = region.shape.box if mask is None else box_of_mask(mask)
            where: dict[str, Any] = {}
            if box is not None:
                x, y, w, h = relative_box(box, height, width)
                area = w * h if mask is None else float(mask.mean())
                edges = np.array([[x, y, x + w, y + h]])
                where = {"area": area, "frames": (0,), "boxes": edges}
            stays = record.review != "unreviewed" or record.model is None
            self.subjects.append(
                Subject(region.id, record.caption, image=True, stays=stays, **where)
            )

    def clip(self, number: int, frames: int) -> RegionClip | None:
        """Returns the image with the region; None for points."""
        region = self._regions[number]
        if region.shape.mask is None and region.shape.box is None:
            return None
        masks, _ = region_masks(self._image, [region], None)
        return RegionClip([self._image], masks, label=region.label)

    def write(self, texts: Mapping[int, str], answers: Mapping[int, _Answer]) -> None:
        """Replaces captions; what else is said of the regions stays."""
        by_model: dict[str, dict[str, Caption]] = {}
        for number, text in texts.items():
            region = self._regions[number]
            record = self._records[region.id]
            confidence, model = record.confidence, record.model
            if (new := answers.get(number)) is not None:
                confidence, model = new.caption.confidence, new.info.model
            assert model is not None  # captions of others stay
            by_model.setdefault(model, {})[region.id] = Caption(
                text,
                confidence=confidence,
                tags=record.tags,
                attributes=record.attributes,
                category=record.category,
            )
        for model, captions in by_model.items():
            write_region_captions(self._sample, self._field, captions, model=model)
