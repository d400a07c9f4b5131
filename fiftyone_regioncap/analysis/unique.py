"""Makes the captions of a video's or an image's objects tell them apart."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import permutations
from typing import Any, Protocol

import fiftyone as fo
import fiftyone.core.collections as foco
import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.analysis.differences import (
    ALIKE,
    Subject,
    Uniqueness,
    base,
    groups,
    tell_apart,
    uniqueness,
)
from fiftyone_regioncap.captioning.base import Captioner, CaptionerInfo
from fiftyone_regioncap.captioning.batching import caption_batch
from fiftyone_regioncap.captioning.registry import CAPTIONERS
from fiftyone_regioncap.core.errors import BackendError, Cancelled
from fiftyone_regioncap.core.markdown import escape
from fiftyone_regioncap.core.progress import (
    ProgressListener,
    ProgressReporter,
    progress_listener,
)
from fiftyone_regioncap.core.types import Caption, RegionClip, Track, box_of_mask
from fiftyone_regioncap.dataset import fields, runs
from fiftyone_regioncap.dataset.captions import (
    CaptionRecord,
    read_captions,
    write_captions,
)
from fiftyone_regioncap.dataset.clips import iter_clips, read_image, region_masks
from fiftyone_regioncap.dataset.geometry import relative_box
from fiftyone_regioncap.dataset.metadata import frame_size
from fiftyone_regioncap.dataset.regions import (
    ImageRegion,
    read_regions,
    write_region_captions,
)
from fiftyone_regioncap.dataset.targets import (
    Sample,
    image_targets,
    name_of,
    video_targets,
)
from fiftyone_regioncap.dataset.tracks import read_tracks
from fiftyone_regioncap.jobs import Failure
from fiftyone_regioncap.models.registry import ModelSpec
from fiftyone_regioncap.system import database
from fiftyone_regioncap.video.clips import plan_clip

logger = logging.getLogger(__name__)

OTHERS_QUOTED = 5
"""Captions of other objects that a captioner is told of at most."""

LETTERS_QUOTED = 200
"""Of each of these."""

LOOK_ALIKE = 0.95
"""Cosine of region embeddings from which two regions look the same."""


class RegionEmbedder(Protocol):
    """Tells how regions look."""

    def embed(self, clips: Sequence[RegionClip]) -> NDArray[np.float32]:
        """Unit vectors (N, D) of clips, in order; rows of NaN for bad ones."""


@dataclass
class UniqueReport:
    """What :func:`make_unique` did.

    Attributes:
        samples: how many it was given.
        before: how far the captions told their objects apart.
        after: how far they do now.
        rewritten: captions that are others now.
        described_again: those of them that a captioner wrote anew.
        look_alike: captions that no captioner was asked for differences of, because
            the regions look the same.
        parts: labels whose mask is part of another, where this was asked for.
        undistinguished: captions whose object nothing that was measured tells from
            another that is described alike.
        failures: samples that could not be done.
        seconds: how long it took.
        run: key of the dataset's custom run that records it.
    """

    samples: int = 0
    before: Uniqueness = field(default_factory=Uniqueness)
    after: Uniqueness = field(default_factory=Uniqueness)
    rewritten: int = 0
    described_again: int = 0
    look_alike: int = 0
    undistinguished: int = 0
    parts: int | None = None
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0
    run: str | None = None

    @property
    def ok(self) -> bool:
        """Whether every sample is done."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def to_markdown(self) -> str:
        """A few lines for people."""
        before, after = self.before, self.after
        lines = [
            f"**{self.rewritten}** of {before.captions} captions rewritten in "
            f"{self.seconds:.1f} s",
            f"- the same as another object's: {before.same} before, {after.same} now",
            f"- much like another object's: {before.alike} before, {after.alike} now",
        ]
        if self.described_again:
            lines.append(f"- {self.described_again} described again by the captioner")
        if self.look_alike:
            lines.append(f"- {self.look_alike} not asked for: they look the same")
        if self.undistinguished:
            lines.append(
                f"- {self.undistinguished} that nothing measured tells from another"
            )
        lines += [
            f"- FAILED {escape(f.filepath)}: {escape(f.error)}"
            for f in self.failures[:10]
        ]
        return "\n".join(lines)


def make_unique(
    samples: foco.SampleCollection,
    captions_field: str = "captions",
    *,
    tracks_field: str | None = "frames.tracks",
    threshold: float = ALIKE,
    captioner: str | Captioner | None = None,
    captioner_load: ModelSpec = ModelSpec(),  # noqa: B008
    embedder: RegionEmbedder | None = None,
    progress: bool | ProgressListener = True,
    cancel: threading.Event | None = None,
) -> UniqueReport:
    """Describes objects again that have nearly the same captions, differences included.

    Objects of one video or image are compared. A captioner that takes prompts is asked
    for the differences first. What is alike still (everything, without a captioner)
    gets its differences stated from what was measured: color, place, size, direction,
    speed, first and last frame. Captions that a person reviewed are compared with but
    stay. Doing it twice changes nothing the second time.

    Args:
        samples: videos or images: a dataset or a view.
        captions_field: of the captions; for images, of the regions that have them.
        tracks_field: of a video's tracks, for places and times; None to do without.
        threshold: share of content words in common from which captions are alike.
        captioner: a name, or one of your own; None, or one that takes no prompts, to
            only state measured facts.
        captioner_load: how to load a captioner given by name.
        embedder: says which regions really differ, such as a Patch-ioner: of regions
            that look the same (:data:`LOOK_ALIKE`), a captioner asked for differences
            could only invent some. None takes all for different.
        progress: whether to draw a bar, or who is told of progress.
        cancel: set it to stop.

    Returns:
        how unique the captions were and are, failures included.

    Raises:
        FieldError: when a field is absent or of the wrong kind; nothing is written.
        BackendError: when the threshold is no share, or the captioner can't run here.
        Cancelled: when ``cancel`` was set; what was written stays.
    """
    if not 0 < threshold <= 1:
        raise BackendError(f"threshold is {threshold}; give a share above 0, up to 1")
    database.ensure()
    images = samples.media_type == "image"
    targets = image_targets(samples) if images else video_targets(samples)
    if images:
        fields.require_regions(targets.dataset, captions_field)
    else:
        fields.require_captions(targets.dataset, captions_field)
        if tracks_field is not None:
            fields.require_tracks(targets.dataset, tracks_field)
    if isinstance(captioner, str):
        captioner, _ = CAPTIONERS.load(replace(captioner_load, name=captioner))
    if captioner is not None and not captioner.info.prompts:
        captioner = None  # it takes no prompt that could ask for differences
    report = UniqueReport(samples=len(targets))
    before: list[list[Subject]] = []
    after: list[list[Subject]] = []
    began = time.monotonic()
    with progress_listener(progress) as listener:
        reporter = ProgressReporter(["caption"], len(targets), listener, cancel)
        for _, sample in targets.samples():
            reporter.check_cancelled()
            try:
                scene: _Scene = (
                    _Image(sample, captions_field)
                    if images
                    else _Video(sample, captions_field, tracks_field)
                )
                old, new = _rewrite(
                    scene, captioner, embedder, threshold, report, reporter
                )
                before.append(old)
                after.append(new)
            except Cancelled:
                raise
            except Exception as error:
                logger.warning("%s: %s", sample.filepath, error, exc_info=True)
                message = f"{type(error).__name__}: {error}"
                report.failures.append(
                    Failure(sample.id, sample.filepath, "caption", message)
                )
            reporter.finish("caption", name_of(sample))
    report.before = uniqueness(before, threshold)
    report.after = uniqueness(after, threshold)
    report.seconds = time.monotonic() - began
    report.run = runs.run_key("make_unique")
    config = {
        "captions": captions_field,
        "tracks": tracks_field,
        "threshold": threshold,
        "captioner": None if captioner is None else captioner.info.model,
    }
    runs.record_run(targets.dataset, report.run, config, {"report": report.to_dict()})
    return report


@dataclass(frozen=True)
class _Said:
    """What a captioner said when it was asked for differences.

    Attributes:
        caption: not an error.
        info: of the captioner.
        prompt: what it was asked.
    """

    caption: Caption
    info: CaptionerInfo
    prompt: str


class _Scene(Protocol):
    """The captions of one sample."""

    def subjects(self) -> list[Subject]:
        """What is said and was measured, in an order of its own."""

    def reviewed(self, number: int) -> bool:
        """Whether a person has judged a caption."""

    def clip(self, number: int, frames: int) -> RegionClip | None:
        """What a captioner sees of a subject; None when it can't see it."""

    def write(self, texts: Mapping[int, str], said: Mapping[int, _Said]) -> None:
        """Replaces captions; what a captioner said comes with its confidence."""


def _rewrite(
    scene: _Scene,
    captioner: Captioner | None,
    embedder: RegionEmbedder | None,
    threshold: float,
    report: UniqueReport,
    reporter: ProgressReporter,
) -> tuple[list[Subject], list[Subject]]:
    """Makes the captions of a sample unique; gives the old and the new."""
    old = scene.subjects()
    subjects = list(old)
    said: dict[int, _Said] = {}
    if captioner is not None:
        for group in groups(subjects, threshold):
            same = _same_looks(scene, group, embedder)
            for number in group:
                reporter.check_cancelled()
                if scene.reviewed(number) or _tells(subjects[number]):
                    continue
                others = [
                    base(subjects[other].caption)
                    for other in group
                    if subjects[other].object_id != subjects[number].object_id
                    and (number, other) not in same
                ]
                report.look_alike += not others
                clip = scene.clip(number, captioner.info.frames) if others else None
                if clip is None:
                    continue
                prompt = difference_prompt(others)
                (caption,) = caption_batch(captioner, [clip], prompt=prompt)
                if caption.error is None and caption.text:
                    said[number] = _Said(caption, captioner.info, prompt)
                    subjects[number] = replace(subjects[number], caption=caption.text)
    texts, alone = tell_apart(subjects, threshold)
    changed = {
        number: text
        for number, text in enumerate(texts)
        if text != old[number].caption and not scene.reviewed(number)
    }
    if changed:
        scene.write(changed, said)
    report.rewritten += len(changed)
    report.described_again += len(said)
    report.undistinguished += len(alone)
    new = [
        replace(subject, caption=changed.get(number, subject.caption))
        for number, subject in enumerate(old)
    ]
    return old, new


def _same_looks(
    scene: _Scene, group: Sequence[int], embedder: RegionEmbedder | None
) -> set[tuple[int, int]]:
    """Pairs of subjects whose regions look the same, both ways round."""
    if embedder is None:
        return set()
    looks = {}
    for number in group:
        clip = scene.clip(number, frames=1)
        if clip is not None:
            looks[number] = embedder.embed([clip])[0]
    return {
        pair
        for pair in permutations(looks, 2)
        if float(looks[pair[0]] @ looks[pair[1]]) >= LOOK_ALIKE
    }


def _tells(subject: Subject) -> bool:
    """Whether a caption says already what its object is told apart by."""
    return subject.caption != base(subject.caption)


def difference_prompt(others: Sequence[str]) -> str:
    """Asks for what sets a region apart from others.

    Args:
        others: their captions; what models use to mark up prompts is taken out.
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
    """Captions of tracks."""

    def __init__(self, sample: Sample, captions: str, tracks: str | None) -> None:
        self._sample = sample
        self._captions = captions
        self._field = tracks
        self._records = [
            record
            for record in read_captions(sample, captions)
            if record.error is None and record.caption and record.review != "rejected"
        ]
        found = [] if tracks is None else read_tracks(sample, tracks)
        self._tracks = {track.object_id: track for track in found}

    def subjects(self) -> list[Subject]:
        """What is said and was measured, in the order of objects and windows."""
        size = frame_size(self._sample) if self._tracks else (1, 1)
        return [
            self._subject(record, self._tracks.get(record.index), size)
            for record in self._records
        ]

    @staticmethod
    def _subject(
        record: CaptionRecord, track: Track | None, size: tuple[int, int]
    ) -> Subject:
        height, width = size
        frames: tuple[int, ...] = ()
        boxes = np.zeros((0, 4))
        if track is not None:
            frames = tuple(track.frames.tolist())
            boxes = track.boxes / np.array([width, height, width, height])
        return Subject(
            record.index,
            record.caption,
            color=record.dominant_color,
            area=record.mean_area,
            speed=record.speed,
            direction=record.direction,
            frames=frames,
            boxes=boxes,
        )

    def reviewed(self, number: int) -> bool:
        """Whether a person has judged a caption."""
        return self._records[number].review != "unreviewed"

    def clip(self, number: int, frames: int) -> RegionClip | None:
        """The window of a caption; None without a track."""
        record = self._records[number]
        track = self._tracks.get(record.index)
        if track is None or self._field is None:
            return None
        plan = plan_clip(track, record.support, frames)
        if not plan.frames:
            return None
        ((_, clip),) = iter_clips(self._sample, self._field, [plan])
        return clip

    def write(self, texts: Mapping[int, str], said: Mapping[int, _Said]) -> None:
        """Replaces captions, on the tracks too."""
        records = []
        for number, text in texts.items():
            record = replace(self._records[number], caption=text)
            new = said.get(number)
            if new is not None:
                record = replace(
                    record,
                    confidence=new.caption.confidence,
                    min_confidence=new.caption.min_confidence,
                    agreement=new.caption.agreement,
                    model=new.info.model,
                    revision=new.info.revision,
                    prompt=new.prompt,
                )
            records.append(record)
        write_captions(self._sample, self._captions, records, tracks_field=self._field)


class _Image:
    """Captions of the regions of an image."""

    def __init__(self, sample: Sample, name: str) -> None:
        self._sample = sample
        self._field = name
        self._image = read_image(sample.filepath)
        height, width = self._image.shape[:2]
        self._regions = [
            region
            for region in read_regions(sample, name, height=height, width=width)
            if region.caption
        ]

    def subjects(self) -> list[Subject]:
        """What is said and where it is, in the order of the labels."""
        return [self._subject(region) for region in self._regions]

    def _subject(self, region: ImageRegion) -> Subject:
        height, width = self._image.shape[:2]
        shape = region.shape
        box = shape.box if shape.mask is None else box_of_mask(shape.mask)
        place: dict[str, Any] = {}
        if box is not None:
            x, y, w, h = relative_box(box, height, width)
            area = w * h if shape.mask is None else float(shape.mask.mean())
            edges = np.array([[x, y, x + w, y + h]])
            place = {"area": area, "frames": (0,), "boxes": edges}
        assert region.caption is not None  # others were left out above
        return Subject(region.id, region.caption, still=True, **place)

    def reviewed(self, number: int) -> bool:
        """Regions of images have no reviews."""
        return False

    def clip(self, number: int, frames: int) -> RegionClip | None:
        """The image with the region; None for points."""
        region = self._regions[number]
        if region.shape.mask is None and region.shape.box is None:
            return None
        masks = region_masks(self._image, [region], None)
        return RegionClip([self._image], masks, label=region.label)

    def write(self, texts: Mapping[int, str], said: Mapping[int, _Said]) -> None:
        """Replaces captions; whose they are and how sure stays with the label."""
        labels = {label.id: label for label in _labels(self._sample[self._field])}
        by_model: dict[Any, dict[str, Caption]] = {}
        for number, text in texts.items():
            label = labels[self._regions[number].id]
            new = said.get(number)
            if new is None:
                caption = Caption(confidence=_attribute(label, "caption_confidence"))
                model = _attribute(label, "caption_model")
            else:
                caption, model = new.caption, new.info.model
            said_so = by_model.setdefault(model, {})
            said_so[label.id] = replace(caption, text=text, tags=())
        for model, captions in by_model.items():
            write_region_captions(self._sample, self._field, captions, model=model)


def _labels(value: Any) -> list[fo.Label]:
    inner = getattr(value, "_LABEL_LIST_FIELD", None)
    return list(getattr(value, inner)) if inner else [value]


def _attribute(label: fo.Label, name: str) -> Any:
    return label[name] if label.has_field(name) else None
